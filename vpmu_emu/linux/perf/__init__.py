"""The perf subsystem and its x86 driver: events, their scheduling, the overflow NMI."""
