/* The guest kernel that runs workloads (perf_kernel.c): what it calls, and what it offers. */
#pragma once
#include <stdint.h>

/* The workload's */
extern const char workload_name[];
void workload_setup(uint64_t seed);
uint64_t workload_unit(void);

/* The kernel's */
uint64_t clock_tsc(void);
void hrtimer_start(unsigned timer, uint64_t tsc); /* timer 2 is the workload's: io_done counts its ends */
void idle(void); /* with interrupts off: sleeps until one came, and comes back with them off again */
extern volatile uint64_t io_done;
extern uint64_t tsc_khz;

/* Labels of perf_kernel.inc: the TSC where what is measured begins, and where it ends. */
uint64_t measured(void);
uint64_t measured_end(void);
