"""What the host kernel writes into the trace ring; the machine's own kinds are below 64."""

from __future__ import annotations

TR_PERF_STATE = 64  # a id of the event, b old state + 2, c new state + 2
TR_PERF_CREATE = 65  # a id of the event, b config, c period
TR_PERF_RELEASE = 66  # a id of the event
TR_REPROGRAM = 67  # a pmc (fixed ones are 32 + i), b new config, c REPROGRAM_*
TR_REQUEST = 68  # a request bit, b request bits before
TR_PMI_INJECT = 69  # a LVTPC, b 0 dropped, 1 fixed, 2 NMI
TR_NMI_HANDLER = 70  # a GLOBAL_STATUS, b 1 if it returned at once
TR_ROTATE = 71
TR_PMU_LOAD = 72  # guest context into the hardware
TR_PMU_PUT = 73
TR_EMULATED = 74  # a counters that counted an emulated instruction (bits), b 1 for a branch
TR_INJECT_NMI = 75
TR_HOST_IRQ = 76  # a vector
TR_PAUSE = 77  # a pmc, b value
TR_EMULATE_INSN = 78  # a first eight bytes, b length, c 1 if the emulator gave up
TR_SCHED_SWITCH = 79  # a task that leaves + 1, b task that comes + 1; 0 is the idle task
TR_LOCKUP = 80  # a the CPU that is locked up

REPROGRAM_OFF = 0  # disabled or filtered: stays paused
REPROGRAM_RESUME = 1  # the event is reused
REPROGRAM_CREATE = 2  # released and made anew
REPROGRAM_FAILED = 3  # perf refused; tried again later
REPROGRAM_NAMES = ("off", "resume", "create", "failed")

LINUX_KINDS = {
    TR_PERF_STATE: "perf_event_state",
    TR_PERF_CREATE: "perf_event_create",
    TR_PERF_RELEASE: "perf_event_release",
    TR_REPROGRAM: "reprogram_counter",
    TR_REQUEST: "kvm_make_request",
    TR_PMI_INJECT: "kvm_pmu_deliver_pmi",
    TR_NMI_HANDLER: "perf_event_nmi_handler",
    TR_ROTATE: "perf_rotate_context",
    TR_PMU_LOAD: "pmu_load",
    TR_PMU_PUT: "pmu_put",
    TR_EMULATED: "kvm_pmu_trigger_event",
    TR_INJECT_NMI: "kvm_inj_nmi",
    TR_HOST_IRQ: "host_irq",
    TR_PAUSE: "pmc_pause_counter",
    TR_EMULATE_INSN: "kvm_emulate_insn",
    TR_SCHED_SWITCH: "sched_switch",
    TR_LOCKUP: "watchdog_hardlockup_check",
}
