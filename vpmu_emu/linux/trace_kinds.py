"""What the host kernel writes into the trace ring; the machine's own kinds are below 64."""

from __future__ import annotations

TR_PERF_STATE = 64  # a id of the event, b old state + 2, c new state + 2
TR_PERF_CREATE = 65  # a id of the event, b config, c period
TR_PERF_RELEASE = 66  # a id of the event
TR_REPROGRAM = 67  # a pmc, b new config, c REPROGRAM_*, for FAILED with the errno from bit 8 on
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
TR_FILTER = 81  # a pmc, b 1 if it may count, c FILTER_*, for entries the one that decides from bit 8 on
TR_SELECTOR_HW = 82  # a pmc, b selector (or field of FIXED_CTR_CTRL) for the hardware, c the guest's
TR_FASTPATH = 83  # a exit reason, b EXIT_FASTPATH_*
TR_KVM_MSR = 84  # a index, b MSR_OF_*, c 1 for a write
TR_MSR_USER_SPACE = 85  # the VMM is asked: a index, b KVM_MSR_EXIT_REASON_*, c 1 for a write
TR_VMCS_ACCESS = 86  # the guest's GLOBAL_CTRL in the VMCS: b value, c ACCESS_VMREAD or ACCESS_VMWRITE

REPROGRAM_OFF = 0  # its own enable bits are clear: stays paused, as with the other two that are off
REPROGRAM_RESUME = 1  # the event is reused
REPROGRAM_CREATE = 2  # released and made anew
REPROGRAM_FAILED = 3  # perf refused; tried again later
REPROGRAM_GLOBALLY_OFF = 4  # GLOBAL_CTRL has it off
REPROGRAM_FILTERED = 5  # the event filter denies its event
REPROGRAM_NAMES = ("off", "resume", "create", "failed", "off by GLOBAL_CTRL", "off by the event filter")

# What of an event filter decides: no entry has the event, an entry, an exclude entry, the fixed bitmap.
FILTER_UNLISTED, FILTER_LISTED, FILTER_EXCLUDED, FILTER_FIXED = range(4)

# Whose register an MSR that exits is.
MSR_OF_COMMON, MSR_OF_PMU, MSR_OF_LBR = range(3)

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
    TR_FILTER: "check_pmu_event_filter",
    TR_SELECTOR_HW: "eventsel_hw",
    TR_FASTPATH: "vmx_exit_handlers_fastpath",
    TR_KVM_MSR: "kvm_msr_handler",
    TR_MSR_USER_SPACE: "kvm_msr_user_space",
    TR_VMCS_ACCESS: "vmcs_global_ctrl",
}
