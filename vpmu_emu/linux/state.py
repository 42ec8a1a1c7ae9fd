"""The host kernel's whole state as NumPy dtypes: nothing hides in a Python object.

`SYSTEM` joins it to the machine's cores. Values are uint64, indices, states and times int64; times are
in 1/16 cycle as in `machine/state.py`. Capacities are constants, because a dtype that varied with the
configuration would recompile everything. There are no padding holes (a test proves it).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from vpmu_emu.machine import state as machine
from vpmu_emu.machine.u64 import U64
from vpmu_emu.tables.cpus import COST_NAMES, PARTS
from vpmu_emu.tables.modes import SWITCH_POLICIES, VPMUS

# --- sizes ----------------------------------------------------------------------------------------------
N_CORES = machine.N_CORES
N_EVENTS = 64  # perf events that may exist at one time
N_TASKS = 8  # threads of host programs
N_MMS = 6  # their address spaces
N_VMAS = 16  # mappings of each
N_FILES = 96  # open files of all processes
N_VMS = 2
N_VCPUS = 4
N_CONTEXTS = N_CORES + N_TASKS  # perf contexts: those of the CPUs, then those of the tasks
N_GP_PMC = 8  # KVM_MAX_NR_INTEL_GP_COUNTERS
N_FIXED_PMC = 4  # KVM_MAX_NR_INTEL_FIXED_COUNTERS after it was raised from 3
N_PMC = N_GP_PMC + N_FIXED_PMC  # pmc i < 8 is GP i, 8 + j is fixed j
N_FILTER = 300  # KVM_PMU_EVENT_FILTER_MAX_EVENTS
N_ERRORS = 32  # last transitions of perf events to ERROR
N_KLOG = 64  # lines of the kernel's log
N_CLOSED = 16  # last events of the host that were closed
N_COSTS = len(COST_NAMES)
N_PARTS = len(PARTS)
N_SWITCHES = 4  # SWITCH_*
N_ACCESSES = 5  # ACCESS_*
IDX_VLBR = machine.N_CTR  # INTEL_PMC_IDX_FIXED_VLBR: the counter, which is none, of the guest's LBR event
IDX_METRIC = IDX_VLBR + 1  # INTEL_PMC_IDX_METRIC_BASE: the fractions of PERF_METRICS, which are none either
N_IDX = IDX_METRIC + machine.N_METRICS  # counters that perf hands out

# --- perf -----------------------------------------------------------------------------------------------
# enum perf_event_state
PERF_EVENT_STATE_EXIT = -3  # its task is gone
PERF_EVENT_STATE_ERROR = -2
PERF_EVENT_STATE_OFF = -1
PERF_EVENT_STATE_INACTIVE = 0
PERF_EVENT_STATE_ACTIVE = 1
STATE_NAMES = {-3: "EXIT", -2: "ERROR", -1: "OFF", 0: "INACTIVE", 1: "ACTIVE"}

CTX_NONE = -1
CTX_TASK = N_CORES  # context c < CTX_TASK is that of CPU c: system-wide events; CTX_TASK + k of task k

# enum perf_type_id; a number above these is a PMU that registered itself
PERF_TYPE_HARDWARE = 0
PERF_TYPE_SOFTWARE = 1
PERF_TYPE_HW_CACHE = 3
PERF_TYPE_RAW = 4
PERF_TYPE_UNCORE = 8

# whose counters a group needs (struct perf_event_pmu_context): of mixed groups the ones that are scarce
PMU_CORE = 0
PMU_UNCORE = 1
PMU_SOFTWARE = 2

# what an interrupt of a core came upon: pt_regs, or the guest by perf_guest_state()
FROM_KERNEL = 0
FROM_USER = 1
FROM_GUEST = 2

# a core that stopped, or whose turn ended, goes on where it was: in the kernel at the top of its loop,
# in a program at CPL 3, in vcpu_run(), before a system call that Python has not begun
INSIDE_KERNEL, INSIDE_USER, INSIDE_KVM, INSIDE_SYSCALL = range(4)

OWNER_HOST = 0
OWNER_KVM = 1

# what a switch of a guest's PMU context is made of: the context in and out around the inner run loop, and
# GLOBAL_CTRL at VM entry and exit; and what KVM does in it
SWITCH_LOAD, SWITCH_PUT, SWITCH_ENTRY, SWITCH_EXIT = range(N_SWITCHES)
SWITCH_NAMES = ("load", "put", "entry", "exit")
ACCESS_RDMSR, ACCESS_WRMSR, ACCESS_RDPMC, ACCESS_VMREAD, ACCESS_VMWRITE = range(N_ACCESSES)
ACCESS_NAMES = ("rdmsr", "wrmsr", "rdpmc", "vmread", "vmwrite")
# how much of it KVM does: `--switch`
EAGER, ELIDE, ENABLED_ONLY, LAZY, RUN_LOOP = range(len(SWITCH_POLICIES))

ERR_NONE = 0
ERR_NO_COUNTER = 1  # merge_sched_in(): a pinned event did not fit
ERR_GUEST_ENTER = 2  # perf_guest_enter(): an event without exclude_guest met a guest that owns the PMU
ERR_NO_LEADER = 3  # perf_group_detach(): a fraction of PERF_METRICS cannot be without its slots leader
CAUSE_NAMES = {
    ERR_NONE: "",
    ERR_NO_COUNTER: "no free counter",
    ERR_GUEST_ENTER: "guest owns the PMU",
    ERR_NO_LEADER: "its slots event is gone",
}

PERF_EVENT = np.dtype(
    [
        ("used", "i8"),  # 1: this row is an event
        ("id", "u8"),  # PERF_EVENT_IOC_ID: never used again
        ("state", "i8"),  # PERF_EVENT_STATE_*
        ("pmu_type", "i8"),  # attr.type of its PMU: PERF_TYPE_RAW for all of the core PMU, else as given
        ("pmu_ctx", "i8"),  # PMU_*: what its group needs
        ("ctx", "i8"),  # its context
        ("cpu", "i8"),  # the CPU that it is bound to, -1 any
        ("vcpu", "i8"),  # KVM's vCPU behind it, -1 for host events
        ("parent", "i8"),  # event that it was inherited from, -1 none
        ("owner", "i8"),  # OWNER_HOST, OWNER_KVM
        ("pmc", "i8"),  # KVM's counter behind it, -1 for host events
        ("spec", "i8"),  # which --host-event it came from, -1 for KVM's
        ("leader", "i8"),  # event that leads its group, itself when alone
        ("group_generation", "i8"),  # of a leader: times that its group has changed
        ("order", "i8"),  # position in its context's list; rotation moves it to the end
        ("config", "u8"),  # selector bits: EVENT UMASK EDGE INV CMASK
        ("disabled", "i8"),  # attr.disabled: OFF until somebody enables it
        ("pinned", "i8"),  # attr.pinned: must be on a counter, or goes to ERROR
        ("exclusive", "i8"),  # attr.exclusive: no other group of the core PMU beside this one
        ("exclude_user", "i8"),  # does not count at CPL 3
        ("exclude_kernel", "i8"),  # does not count at CPL 0
        ("exclude_host", "i8"),  # counts in the guest only
        ("exclude_guest", "i8"),  # counts in the host only
        ("exclude_idle", "i8"),  # does not count while its CPU idles
        ("inherit", "i8"),  # attr.inherit: children of its task get one of their own
        ("precise_ip", "i8"),  # attr.precise_ip: PEBS
        ("sample_freq", "i8"),  # attr.sample_freq with attr.freq, else 0
        ("sample_type", "u8"),  # attr.sample_type: PERF_SAMPLE_*
        ("read_format", "u8"),  # attr.read_format: PERF_FORMAT_*
        ("sample_id_all", "i8"),  # attr.sample_id_all: records end with who, when and where
        ("clock", "i8"),  # 1 + attr.clockid with attr.use_clockid; 0: sched_clock()
        ("watchdog", "i8"),  # 1: the NMI watchdog's
        ("sample_period", "u8"),  # attr.sample_period; 0 counts without sampling
        ("count", "u8"),  # event->count: events up to the last update
        ("tstamp", "i8"),  # time at which its times were last brought forward
        ("total_time_enabled", "i8"),  # time in which it wanted to count
        ("total_time_running", "i8"),  # time on a counter
        ("error_cause", "i8"),  # ERR_*: why it last went to ERROR
        ("error_time", "i8"),  # and when
        ("error_log", "i8"),  # how many ERRORs there had been with this one, 0 never
        ("samples", "u8"),  # overflows reported to its handler
        ("throttles", "u8"),  # times that it was stopped until the next tick
        ("child_count", "u8"),  # counts of inherited events that are gone
        ("child_enabled", "i8"),  # and their times
        ("child_running", "i8"),  # on counters
        # struct perf_buffer: 0 until it is mapped
        ("buffer", "i8"),  # index of the control page in the array of physical memory; data follows it
        ("buffer_pages", "i8"),  # pages of data, a power of 2
        ("head", "u8"),  # data_head: bytes written so far
        ("output", "i8"),  # event into whose ring its records go, -1 its own
        ("paused", "i8"),  # 1: nothing is written into its ring (PERF_EVENT_IOC_PAUSE_OUTPUT)
        ("overwrite", "i8"),  # 1: mapped without PROT_WRITE: data_tail means nothing
        ("lost", "u8"),  # records that found no room
        ("rb_lost", "u8"),  # of them not told by a PERF_RECORD_LOST yet
        # struct hw_perf_event
        ("idx", "i8"),  # counter it is (or was last) on, -1 none; fixed counter j is 8 + j
        ("stopped", "i8"),  # PERF_HES_STOPPED: not counting although scheduled
        ("arch_stopped", "i8"),  # PERF_HES_ARCH: was stopped when its counter moved
        ("prev_count", "u8"),  # raw counter value at the last update
        ("period", "u8"),  # hwc->sample_period: attr.sample_period, or the longest one
        ("last_period", "u8"),  # the one that ended last: what a sample stands for
        ("event_limit", "i8"),  # overflows until it is disabled (PERF_EVENT_IOC_REFRESH), 0 never, -1 now
        ("period_left", "i8"),  # events up to the next overflow to report
        ("topdown", "i8"),  # PERF_X86_EVENT_TOPDOWN: in a group that reads PERF_METRICS
        ("saved_slots", "u8"),  # what of fixed counter 3 is in its count already
        ("saved_metric", "u8"),  # PERF_METRICS then
        ("interrupts", "i8"),  # overflows within the present tick, -1 throttled
        ("interrupts_seq", "i8"),  # tick that `interrupts` counts
        ("freq_time", "i8"),  # frequency mode: time of the last overflow; of a clock: its next one
        ("freq_count", "u8"),  # frequency mode: count at the last tick
    ]
)

# A transition to ERROR, and what came of it.
PERF_ERROR = np.dtype(
    [
        ("id", "u8"),  # of the event
        ("config", "u8"),  # selector bits
        ("attr", "i8"),  # ATTR_*
        ("owner", "i8"),  # OWNER_*
        ("ctx", "i8"),  # context of the event
        ("pmc", "i8"),  # KVM's counter, -1 for host events
        ("vcpu", "i8"),  # and its vCPU
        ("cause", "i8"),  # ERR_*
        ("time", "i8"),  # when
        ("retries", "i8"),  # times that it was enabled since then and failed again
        ("revived", "i8"),  # time at which it was on a counter again, 0 never
        ("released", "i8"),  # time at which the event was removed, 0 not yet
    ]
)

PERCPU = np.dtype(
    [
        # struct cpu_hw_events of the Intel driver
        ("enabled", "i8"),  # the PMU as a whole is on (x86_pmu_enable)
        ("disable_count", "i8"),  # nesting of perf_pmu_disable()
        ("n_events", "i8"),  # events that are scheduled
        ("n_added", "i8"),  # of them not programmed yet
        ("event_list", "i8", (N_IDX,)),  # their rows in `perf_events`
        ("assign", "i8", (N_IDX,)),  # counter chosen for each
        ("events", "i8", (N_IDX,)),  # the reverse: event running on counter i, -1 none
        ("last_event", "i8", (N_IDX,)),  # event that used counter i last
        ("fake_list", "i8", (N_IDX,)),  # rows of a group that validate_group() tries out
        ("fake_assign", "i8", (N_IDX,)),  # what x86_schedule_events() found last
        ("event_constraint", "u8", (N_IDX,)),  # and what it could choose from, bits by counter
        ("active_mask", "u8"),  # counters that run; bit i, fixed j at 32 + j
        ("intel_ctrl", "u8"),  # GLOBAL_CTRL bits of all counters
        ("intel_ctrl_guest_mask", "u8"),  # those of exclude_host events
        ("intel_ctrl_host_mask", "u8"),  # those of exclude_guest events
        ("fixed_ctrl_val", "u8"),  # wanted FIXED_CTR_CTRL
        ("active_fixed_ctrl_val", "u8"),  # as last written
        ("exclusive", "i8"),  # 1: an exclusive group is on
        ("lbr_users", "i8"),  # events that have the branch records
        ("pebs_enabled", "u8"),  # counters of events with precise_ip; bits as in IA32_PEBS_ENABLE
        ("task_ctx", "i8"),  # context of the task whose events are scheduled in, CTX_NONE
        ("force_exclude_guest", "i8"),  # __perf_force_exclude_guest: a guest owns the PMU
        ("guest_ctx_loaded", "i8"),  # the same as merged: perf_load_guest_context()
        ("guest_lvtpc_loaded", "i8"),  # and the vector of its PMIs is in the LVTPC
        # scheduler
        ("online", "i8"),  # the host uses this core
        ("booted", "i8"),  # its first events are scheduled, its timers armed
        ("curr", "i8"),  # the task that runs, -1 idle
        ("inside", "i8"),  # INSIDE_*: what goes on when this core goes on
        ("need_resched", "i8"),  # TIF_NEED_RESCHED of it
        ("slice_end", "i8"),  # time at which its slice is over
        ("min_vruntime", "i8"),  # what a task that wakes begins with
        ("call", "i8"),  # 1: another core wants this one out of its guest, 2: it is and waits (csd_lock)
        ("vcpu", "i8"),  # vCPU whose state is on this core (vcpu_load), -1 none
        ("space", "i8"),  # address space that the core's TLB and decoded code belong to, see SPACE_*
        ("lockup", "i8"),  # 1: spins with interrupts off for ever (lkdtm HARDLOCKUP)
        ("lockup_at", "i8"),  # time of its first turn
        # watchdog
        ("watchdog_at", "i8"),  # next watchdog_timer_fn(), NEVER when off
        ("hrtimer_interrupts", "i8"),  # its calls
        ("hrtimer_saved", "i8"),  # as the detector saw them last (hrtimer_interrupts_saved)
        ("watchdog_touched", "i8"),  # 1: the next check is skipped
        ("nmi_rearmed", "i8"),  # NMIs that came too early to check, since the last check
        ("last_timestamp", "i8"),  # time of that
        ("watchdog_reported", "i8"),  # time of the report of a lockup, 0 none
        ("watchdog_by", "i8"),  # which CPU made it
        # time
        ("mux_at", "i8"),  # perf_mux_hrtimer: next rotation, NEVER when off
        ("tick_at", "i8"),  # next tick with something to unthrottle or adjust, NEVER when off
        ("clock_at", "i8"),  # next sample of a clock (perf_swevent_hrtimer), NEVER when off
        ("timer_at", "i8"),  # what the TSC-deadline timer is armed for
        ("interrupted", "i8"),  # FROM_*: what the interrupt at hand came upon
        ("row", "i8"),  # row of the costs that the kernel is at
        ("interrupted_row", "i8"),  # at which it was interrupted
        ("running_sample_length", "i8"),  # 128 times the average of what a sample takes, in 1/16 cycle
        ("pending_disable", "i8"),  # 1: an event of this CPU has reached its limit
        ("in_nmi", "i8"),  # an NMI handler runs: NMIs wait
        ("swallow_nmi", "i8"),  # 1: the last NMI had several causes, one right behind it may have none
        ("nmi_over", "i8"),  # time at which its handlers were done
        # numbers for reports
        ("part", "i8"),  # row of PARTS that the work at hand belongs to
        ("spent", "i8", (N_PARTS,)),  # cycles of host work by part
        ("work", "u8", (N_COSTS,)),  # pieces of host work, by row of COST_NAMES
        ("nmis", "u8"),  # calls of default_do_nmi()
        ("timer_irqs", "u8"),  # local timer interrupts taken by the host
        # switches of guests' PMU context
        ("switching", "i8"),  # 1 + SWITCH_*: the part at hand, 0 none
        ("switch_began", "i8"),  # and since when
        ("switch_n", "u8", (N_SWITCHES,)),  # how many there were of each part
        ("switch_time", "i8", (N_SWITCHES,)),  # how long they took together
        ("switch_ops", "u8", (N_SWITCHES, N_ACCESSES)),  # their accesses
        ("pmu_away_since", "i8"),  # when a guest got the PMU to itself, NEVER: it is the host's
        ("pmu_away", "i8"),  # how long the host could not profile before that
        ("vpmi_irqs", "u8"),  # guest PMIs taken through vector 0xf5 (VPMI of /proc/interrupts)
        ("pmis_misattributed", "u8"),  # PMIs taken for those of somebody else
        ("pmis_lost", "u8"),  # PMIs of which their owner never heard
        ("nmis_unclaimed", "u8"),  # NMIs for which no handler found a cause
        ("rotations", "u8"),  # turns of the multiplexing timer
        ("throttles", "u8"),  # times that a group was stopped until the next tick
        ("too_long", "u8"),  # times that perf_sample_event_took() lowered the sample rate
        ("context_switches", "u8"),  # times that a task was switched to
        ("user_insns", "u8"),  # instructions of host programs at CPL 3 on this core, the VMM's apart
        ("user_cycles", "u8"),  # unhalted time of them all, in 1/16 cycle
        ("mark_insns", "u8"),  # running totals when the present stretch of a host program began
        ("mark_cycles", "u8"),  # and their time
    ]
)

# --- KVM ------------------------------------------------------------------------------------------------
KVM_PMC = np.dtype(
    [
        ("counter", "u8"),  # value at the last pause, put or write
        ("emulated_counter", "u8"),  # events that KVM counted in software since the last reprogram
        ("eventsel", "u8"),  # what the guest wrote; of a fixed counter the event it stands for
        ("eventsel_hw", "u8"),  # what hardware gets of a guest that owns the PMU
        ("uncounted", "u8"),  # selector of the guest that it last counted nothing for, 0 none
        ("current_config", "u8"),  # what the perf event was made from
        ("is_paused", "i8"),  # 1: the event is disabled, `counter` holds all
        ("intr", "i8"),  # the guest wants a PMI
        ("perf_event", "i8"),  # row in host.perf_events, -1 none
    ]
)

KVM_PMU = np.dtype(
    [
        # shape, from the guest's CPUID leaf 0xA and IA32_PERF_CAPABILITIES (kvm_pmu_refresh)
        ("version", "i8"),  # 2 at the most; 0 no PMU
        ("nr_arch_gp_counters", "i8"),  # GP counters that the guest has
        ("nr_arch_fixed_counters", "i8"),  # fixed counters that it has
        ("width", "i8"),  # bits of every counter
        ("counter_bitmask", "u8"),  # (1 << width) - 1
        ("perf_capabilities", "u8"),  # IA32_PERF_CAPABILITIES
        ("eventsel_rsvd", "u8"),  # reserved bits: a guest write that sets one is #GP
        ("fixed_ctr_ctrl_rsvd", "u8"),  # the same of FIXED_CTR_CTRL
        ("global_ctrl_rsvd", "u8"),  # of GLOBAL_CTRL
        ("global_status_rsvd", "u8"),  # of GLOBAL_STATUS and its RESET register
        ("all_valid_pmc", "u8"),  # bits of the counters that exist; fixed j at 32 + j
        # registers as the guest sees them
        ("fixed_ctr_ctrl", "u8"),  # IA32_FIXED_CTR_CTRL
        ("fixed_ctr_ctrl_hw", "u8"),  # after the filter, of a guest that owns the PMU
        ("global_ctrl", "u8"),  # IA32_PERF_GLOBAL_CTRL
        ("global_status", "u8"),  # IA32_PERF_GLOBAL_STATUS
        # work that waits for the next entry
        ("reprogram_pmi", "u8"),  # counters to reprogram at KVM_REQ_PMU
        ("incremented_pmc_idx", "u8"),  # counters with software counts to add (passthrough)
        ("pmc_in_use", "u8"),  # written since the vCPU was last scheduled in
        ("pmc_counting_instructions", "u8"),  # counters that count the instructions which KVM emulates
        ("pmc_counting_branches", "u8"),  # the same of branches
        ("need_cleanup", "i8"),  # 1: release what was not used for a time slice
        ("event_count", "i8"),  # perf events that exist
        ("guest_ctx_loaded", "i8"),  # guest values are in the hardware PMU
        ("lazy", "i8"),  # 1: all of it exits until the guest touches it (`--switch lazy`)
        ("lvtpc_masked", "u8"),  # APIC_LVT_MASKED of the hardware's LVTPC, as KVM knows it
        # PEBS (emulated)
        ("has_ds", "i8"),  # CPUID shows the debug store
        ("pebs_enable", "u8"),  # IA32_PEBS_ENABLE
        ("pebs_enable_rsvd", "u8"),  # its reserved bits
        ("ds_area", "u8"),  # IA32_DS_AREA
        ("host_cross_mapped_mask", "u8"),  # hardware counters behind a guest counter of another number
        # struct lbr_desc (emulated)
        ("lbr_event", "i8"),  # row in host.perf_events of the event that keeps the LBRs for it, -1 none
        ("lbr_passthrough", "i8"),  # 1: the MSR bitmap lets the LBR registers through
        ("lbr_warnings", "u8"),  # entries with "fail to passthrough LBR"
        # numbers for reports
        ("created", "u8"),  # perf_event_create_kernel_counter()
        ("released", "u8"),  # perf_event_release_kernel()
        ("resumed", "u8"),  # pmc_resume_counter() that succeeded
        ("paused", "u8"),  # pmc_pause_counter() of a live event
        ("loads", "u8"),  # PMU context switches into the guest
        ("puts", "u8"),  # and back
        ("loaded_insns", "u8"),  # host instructions retired while the guest's counters could count them
        ("loaded_branches", "u8"),  # the same of branches
        ("mark_insns", "u8"),  # core.stats.host_insns when the present stretch began
        ("mark_branches", "u8"),  # core.stats.host_branches then
        # the hardware PMU right after the last put, before any host event is back
        ("put_eventsel", "u8", (N_GP_PMC,)),  # IA32_PERFEVTSELx
        ("put_counters", "u8", (N_PMC,)),  # GP, then fixed
        ("put_fixed_ctr_ctrl", "u8"),  # IA32_FIXED_CTR_CTRL
        ("put_global_ctrl", "u8"),  # IA32_PERF_GLOBAL_CTRL
        ("put_global_status", "u8"),  # IA32_PERF_GLOBAL_STATUS
        ("loaded_lvtpc", "u8"),  # the hardware's LVTPC when the guest's context was last put in
        ("dirty_puts", "u8"),  # puts after which any of them was not 0
        ("pmcs", KVM_PMC, (N_PMC,)),  # its counters
    ]
)

# runnable; halted; halted with its thread off the CPU; before its INIT; before its startup message
MP_STATE_RUNNABLE, MP_STATE_HALTED, MP_STATE_ASLEEP = 0, 1, 2
MP_STATE_UNINITIALIZED, MP_STATE_INIT_RECEIVED = 3, 4
APIC_INIT, APIC_SIPI = 1, 2
# as a KVM_EXIT_*: KVM_RUN fails with EAGAIN; with EFAULT
USER_AGAIN, USER_FAULT = 256, 257
USER_IO_NONE, USER_IO_OUT, USER_IO_IN, USER_IO_RDMSR, USER_IO_WRMSR, USER_IO_STRING = range(6)
USER_IO_MMIO_READ, USER_IO_MMIO_WRITE = 6, 7

VCPU = np.dtype(
    [
        ("requests", "u8"),  # KVM_REQ_* bits
        ("nmi_queued", "i8"),  # NMIs sent since the last KVM_REQ_NMI
        ("nmi_pending", "i8"),  # NMIs to inject, at most 2
        ("nmi_injected", "i8"),  # 1: the next entry injects one again, masked or not
        ("interrupt", "i8"),  # vector of the VMM's interrupt controller to inject, -1 none
        ("interrupt_soft", "i8"),  # 1: that of an INT instruction
        ("exception", "i8"),  # vector to inject at the next entry, -1 none
        ("exception_error", "u8"),  # its error code
        ("exception_has_error", "i8"),  # 1 if it pushes one
        ("exception_pending", "i8"),  # 1: no entry has tried to inject it yet
        ("pv_unhalted", "i8"),  # KVM_HC_KICK_CPU: the next HLT is over at once
        ("pv_enforce", "i8"),  # KVM_CAP_ENFORCE_PV_FEATURE_CPUID: hypercalls by CPUID only
        ("exception_has_payload", "i8"),  # 1: #DB, and DR6 has still to learn of
        ("exception_payload", "u8"),  # why
        ("event_exit_inst_len", "u8"),  # bytes of the INT3 that the VMM was told of
        # debug registers: the guest's, and those in effect
        ("db", "u8", (machine.N_DR,)),  # DR0 to DR3
        ("eff_db", "u8", (machine.N_DR,)),  # or those of its VMM: what VM entry loads
        ("dr6", "u8"),  # as the guest reads it
        ("dr7", "u8"),  # as the guest wrote it
        ("switch_db_regs", "u8"),  # KVM_DEBUGREG_*
        ("guest_debug", "u8"),  # KVM_GUESTDBG_*, 0: the VMM debugs nothing
        ("guest_debug_dr7", "u8"),  # with KVM_GUESTDBG_USE_HW_BP: instead of the guest's
        ("mp_state", "i8"),  # MP_STATE_*
        ("apic_events", "i8"),  # APIC_INIT, APIC_SIPI: messages that its thread has to look at
        ("sipi_vector", "i8"),  # page number of the last startup message
        ("launched", "i8"),  # 1 after the first entry
        ("cpl", "i8"),  # of the guest at the last exit
        ("entry_intr_info", "u8"),  # event injected at the last entry
        ("ia32_misc_enable_msr", "u8"),  # IA32_MISC_ENABLE of the guest
        ("hypercall_nr", "u8"),  # of the last VMCALL
        ("emulated_insns", "u8"),  # instructions that KVM did for the guest: they retire nowhere
        ("entries", "u8"),  # VM entries
        ("exit_fastpath", "i8"),  # EXIT_FASTPATH_* of the last exit
        ("used", "i8"),  # KVM_CREATE_VCPU made it
        ("vm", "i8"),  # whose it is
        ("task", "i8"),  # the thread that is in KVM_RUN with it, -1 none
        ("cpu", "i8"),  # core that it was loaded on last, -1 never
        ("vcpu_idx", "i8"),  # its row
        ("vcpu_id", "i8"),  # what KVM_CREATE_VCPU called it: its APIC id
        ("run_page", "i8"),  # struct kvm_run: index into the array of physical memory
        ("sigset_active", "i8"),  # KVM_SET_SIGNAL_MASK: during KVM_RUN its thread has
        ("sigset", "u8"),  # this signal mask
        ("user_exit", "i8"),  # KVM_EXIT_* that waits for the VMM, USER_AGAIN, USER_FAULT, -1 none
        ("complete", "i8"),  # USER_IO_*: what the next KVM_RUN finishes (complete_userspace_io)
        ("completed", "i8"),  # 1: this KVM_RUN has finished an instruction already
        ("wrmsr_old", "u8"),  # what RDMSR would have given the guest at its last WRMSR that left it
        ("wrmsr_kind", "i8"),  # WRITE, or WRITE_BLIND if it would have given nothing
        ("io_len", "u8"),  # bytes of the instruction that the next KVM_RUN finishes
        ("pio_size", "u8"),  # bytes of its access to a port
        ("pio_count", "u8"),  # elements of INS that the VMM was asked for
        # accesses of the instruction at hand that the VMM does: vcpu->mmio_fragments
        ("mmio_read", "u8", (machine.N_MMIO,)),  # what it gave so far
        ("mmio_reads", "i8"),  # so many
        ("mmio_gpa", "u8", (machine.N_MMIO,)),  # writes that it is told of, one exit each: addresses,
        ("mmio_len", "u8", (machine.N_MMIO,)),  # bytes
        ("mmio_data", "u8", (machine.N_MMIO,)),  # and values
        ("mmio_writes", "i8"),  # so many
        ("mmio_cur", "i8"),  # the one that it was told of last
        ("cui_linear_rip", "u8"),  # where it lies; ALL: the emulator's, which does not look
        ("ended", "i8"),  # STOP_*: why the guest cannot go on, 0
        ("ended_info", "u8"),  # and its number
        ("recalc_intercepts", "i8"),  # the APIC's part of the MSR bitmap is to be made again
        ("perf_capabilities", "u8"),  # IA32_PERF_CAPABILITIES as the VMM set it
        ("n_cpuid", "i8"),  # entries that KVM_SET_CPUID2 gave
        # pages of host memory: index into the array of physical memory
        ("vmcs", "i8"),  # the VMCS page
        ("msr_bitmap", "i8"),  # the page of the MSR bitmap
        ("msr_lists", "i8"),  # exit-store at +0, exit-load at +0x400, entry-load at +0x800
        ("cpuid", machine.CPUID, (machine.N_CPUID,)),  # KVM_SET_CPUID2; leaf ALL: unused entry
        # what KVM's handlers do with each row of the MSR table, for the shape that the guest sees
        ("msr_n", "i8", (machine.N_MSR_ROWS,)),  # instances that exist
        ("msr_reserved", "u8", (machine.N_MSR_ROWS,)),  # writing any of these bits is #GP
        ("msr_access", "i8", (machine.N_MSR_ROWS,)),  # 0 read-write, 1 read-only, 2 write-only, 3 dropped
        ("msr_dropped", "i8", (machine.N_MSR_ROWS,)),  # first instances that never fault although absent
        # of the guest while the vCPU is not loaded on a core
        ("regs", "u8", (machine.N_REGS,)),  # general registers and segment bases
        ("cr2", "u8"),  # address of the last page fault
        ("star", "u8"),  # SYSCALL and SYSRET
        ("lstar", "u8"),  # entry of SYSCALL
        ("cstar", "u8"),  # entry of SYSCALL in compatibility mode
        ("fmask", "u8"),  # flags that SYSCALL clears
        ("kernel_gs_base", "u8"),  # SWAPGS
        ("tsc_aux", "u8"),  # RDTSCP
        ("sysenter_cs", "u8"),  # SYSENTER
        ("sysenter_esp", "u8"),  # its stack pointer
        ("sysenter_eip", "u8"),  # its entry
        ("pat", "u8"),  # memory types
        ("power_ctl", "u8"),  # MSR_POWER_CTL
        ("xcr0", "u8"),  # XSETBV
        ("vapic", machine.LAPIC),  # its virtual-APIC page
        ("entered_t", "i8"),  # time of its last entry
        ("guest_t", "i8"),  # time that its guest ran
        ("stolen_t", "i8"),  # time that its thread was in KVM_RUN and another one had the core (run_delay)
        ("fastpaths", "u8"),  # re-entries inside the inner loop
        ("pmu", KVM_PMU),  # its virtual PMU
    ]
)

VPMU_EMULATED, VPMU_PASSTHROUGH, VPMU_MEDIATED = range(len(VPMUS))

VM = np.dtype(
    [
        # struct kvm_x86_pmu_event_filter
        ("filter_on", "i8"),  # 0: a NULL filter, everything is allowed
        ("action", "i8"),  # KVM_PMU_EVENT_ALLOW, KVM_PMU_EVENT_DENY
        ("fixed_counter_bitmap", "u8"),  # bit j: fixed counter j
        ("nr_includes", "i8"),  # entries that include
        ("nr_excludes", "i8"),  # entries behind them that exclude
        ("events", "u8", (N_FILTER,)),  # masked entries: includes sorted by select, then excludes
        ("used", "i8"),  # KVM_CREATE_VM made it
        ("mm", "i8"),  # address space of the process that made it
        ("created", "i8"),  # when, in 1/16 cycle
        # kvm_synchronize_tsc(): the TSC that its vCPUs have in common
        ("last_tsc_khz", "i8"),  # rate of the TSC that was set last, 0 none yet
        ("last_tsc", "u8"),  # the host's TSC then
        ("last_tsc_write", "u8"),  # what was written
        ("cur_tsc_offset", "u8"),  # what the guest's TSC is more than the host's
        ("user_set_tsc", "i8"),  # 1: the VMM has written one
        ("irqchip", "i8"),  # KVM_CREATE_IRQCHIP, KVM_CAP_SPLIT_IRQCHIP
        ("bsp_vcpu_id", "i8"),  # KVM_SET_BOOT_CPU_ID
        ("kvmclock_offset", "u8"),  # KVM_SET_CLOCK: nanoseconds beyond its age
        ("vpmu", "i8"),  # VPMU_*: whose the hardware counters are while its guest runs
        ("created_mediated_pmu", "i8"),  # 1: perf has let it (perf_create_mediated_pmu)
        ("pmu_off", "i8"),  # KVM_CAP_PMU_CAPABILITY with KVM_PMU_CAP_DISABLE
        ("ram_size", "u8"),  # bytes of the memory slot at guest address 0
        ("msr_filter", "i8"),  # KVM_X86_SET_MSR_FILTER: where it lies in physical memory, 0 none
        ("msr_filter_n", "i8"),  # its ranges
        ("msr_filter_allow", "i8"),  # 1: what is in no range is allowed
        ("user_space_msr_mask", "i8"),  # KVM_CAP_X86_USER_SPACE_MSR: KVM_MSR_EXIT_REASON_*
        # memory slots: what the guest sees there is what its VMM has at `slot_hva` at that time
        ("slot_gpa", "u8", (machine.N_SLOTS,)),  # guest-physical
        ("slot_size", "u8", (machine.N_SLOTS,)),  # length 0: unused
        ("slot_id", "i8", (machine.N_SLOTS,)),  # number that the VMM gave it
        ("slot_hva", "u8", (machine.N_SLOTS,)),  # where the VMM sees it
    ]
)

# --- settings that do not change during a run -----------------------------------------------------------
CONFIG = np.dtype(
    [
        ("mode", "i8"),  # row of isa/modes.toml, for its name alone
        ("kernel", "i8"),  # LINUX_VERSION_CODE of the host
        ("series", "i8"),  # 1: the passthrough series is applied to it
        ("enable_pmu", "i8"),  # kvm.enable_pmu
        ("quirks", "u8"),  # QUIRKS bits
        ("without", "u8"),  # bit N: patch N of the series is left out
        ("switch", "i8"),  # how much a switch does: EAGER, ELIDE and their kin
        ("owns_pmu", "i8"),  # 1: KVM gives the hardware counters to guests that have a PMU
        ("pmi_vector", "i8"),  # PMI_VECTOR_*: how PMIs of a guest that owns the PMU come
        ("few_caps", "i8"),  # 1: its guests have neither branch records nor PEBS
        ("other_vpmu", "i8"),  # VPMU_* of VMs that programs beside the VMM make, -1: as KVM was loaded
        ("event_reuse", "i8"),  # 1: a paused event of the emulated vPMU is used again (since 5.6)
        ("count_emulated", "i8"),  # 1: instructions that KVM emulates count (since 5.17)
        ("mixed", "i8"),  # 1: to perf's rule for such VMs KVM's own events are none that count in guests
        ("all_passthrough", "i8"),  # selectors are not intercepted (no filter possible)
        ("apicv", "i8"),  # 1: APICv, interrupts reach the guest without exits
        ("force_emulation_prefix", "i8"),  # `ud2; "kvm"` reaches the emulator; bit 1: without RFLAGS.RF
        ("load_global_ctrl", "i8"),  # VM entry and exit can load GLOBAL_CTRL; else MSR lists do
        ("events", "i8"),  # the CPU's list of events and their constraints, a row of tables.events.LISTS
        ("pebs_pdist", "i8"),  # vmx_pebs_pdist_cpu: PEBS is most precise on counter 0
        ("pebs_pdir", "i8"),  # vmx_icl_pebs_cpu: and this one's PEBS on fixed counter 0
        ("save_global_ctrl", "i8"),  # VM exit can save it; else the MSR-store list does
        ("hz", "i8"),  # CONFIG_HZ: ticks a second
        ("no_hz_idle", "i8"),  # 1: only an idle CPU has no tick; 0: nohz_full, nor one with a single task
        ("mux_interval", "i8"),  # PERF_CPU_HRTIMER in 1/16 cycle
        ("tick_interval", "i8"),  # 1/HZ in 1/16 cycle
        ("max_sample_rate", "i8"),  # sysctl_perf_event_sample_rate, samples a second
        ("max_samples_per_tick", "i8"),  # of one event: max_sample_rate / HZ
        ("cpu_time_max_percent", "i8"),  # sysctl_perf_cpu_time_max_percent
        ("sample_allowed", "i8"),  # perf_sample_allowed_ns in 1/16 cycle, 0 without a limit
        ("memory", "u8"),  # bytes of physical memory
        ("fixed_cap", "i8"),  # KVM_MAX_NR_INTEL_FIXED_COUNTERS
        ("tsc_khz", "i8"),  # rate of the TSC
        ("core_khz", "i8"),  # rate of the cores
        ("cyc2ns_mul", "u8"),  # nanoseconds of a cycle, times 2**31
        ("n_cores", "i8"),  # cores that the host uses
        ("sched_slice", "i8"),  # sysctl_sched_base_slice in 1/16 cycle
        ("quantum", "i8"),  # how far one core may be ahead of another, in 1/16 cycle
        ("watchdog", "i8"),  # WATCHDOG_*: which hard-lockup detector is on
        ("watchdog_period", "i8"),  # watchdog_thresh in 1/16 cycle
        ("costs", "i8", (N_COSTS, 3)),  # by row of COST_NAMES: cycles, instructions, branches
    ]
)

# --- tasks ----------------------------------------------------------------------------------------------
TASK_RUNNING = 0
TASK_INTERRUPTIBLE = 1  # sleeps until `wake_at`, or until somebody wakes it
TASK_DEAD = 2

ENTERED_NOT = 0  # it is at CPL 3 or in KVM_RUN
ENTERED_SYSCALL = 1  # a system call that Python finishes
ENTERED_FAULT = 2  # an exception: a signal
ENTERED_KVM_RUN = 3  # KVM_RUN comes back: vcpu.user_exit

TASK = np.dtype(
    [
        ("used", "i8"),  # 1: this row is a task
        ("pid", "i8"),  # thread id; the first task is 1
        ("tgid", "i8"),  # process id
        ("mm", "i8"),  # its address space
        ("program", "i8"),  # which host program it runs, 0 the VMM
        ("state", "i8"),  # TASK_*
        ("on_cpu", "i8"),  # core that it runs on, -1 none
        ("cpu", "i8"),  # core that it belongs to while it waits
        ("allowed", "u8"),  # sched_setaffinity(): bit per core
        ("vruntime", "i8"),  # time that it ran, for fairness
        ("exec_start", "i8"),  # time at which it was switched to
        ("last_t", "i8"),  # time at which it last left a core: the next one is not behind it
        ("wake_at", "i8"),  # end of its sleep, NEVER
        ("entered", "i8"),  # why it is in the kernel: ENTERED_*
        ("fault", "i8"),  # vector of the exception then
        ("vcpu", "i8"),  # vCPU that it is in KVM_RUN with, -1 none
        ("mutex", "i8"),  # 1 + the vCPU whose mutex it sleeps for, 0 none
        ("blocked", "u8"),  # its signal mask: bit n - 1 for signal n
        ("pending", "u8"),  # signals that it has been sent and not taken
        ("sigwait", "u8"),  # those that rt_sigtimedwait() sleeps for
        ("clear_child_tid", "u8"),  # where its number is cleared when it exits, 0 nowhere
        ("exit_code", "i8"),  # what exit() gave; -signal when it was killed
        ("switches", "u8"),  # times it was switched to
        ("migrations", "u8"),  # times that it changed cores
        ("sum_exec", "i8"),  # time that it ran in all
        # at CPL 3, while it does not run
        ("regs", "u8", (machine.N_REGS,)),  # general registers and segment bases
        ("rip", "u8"),  # next instruction
        ("rflags", "u8"),  # status and interrupt flags
    ]
)

# what a mapping shows
VMA_ANON, VMA_PERF, VMA_KVM_RUN = range(3)

VMA = np.dtype(
    [
        ("start", "u8"),  # first virtual address
        ("length", "u8"),  # bytes, whole pages; 0: unused
        ("hpa", "i8"),  # where it lies in the array of physical memory
        ("prot", "i8"),  # PROT_*
        ("kind", "i8"),  # VMA_*
        ("obj", "i8"),  # perf event or vCPU that it shows
    ]
)

MM = np.dtype(
    [
        ("users", "i8"),  # threads that use it, 0: free
        ("cr3", "u8"),  # its page tables
        ("perf_rdpmc_allowed", "i8"),  # mapped perf pages: RDPMC at CPL 3 works while there are any
        ("vmas", VMA, (N_VMAS,)),  # its mappings
    ]
)

FILE_NONE, FILE_STDOUT, FILE_PERF, FILE_KVM, FILE_VM, FILE_VCPU = range(6)
FILE_TEXT, FILE_LKDTM, FILE_GUEST = range(6, 9)

FILE = np.dtype(
    [
        ("kind", "i8"),  # FILE_*; 0: free
        ("mm", "i8"),  # process that has it open
        ("fd", "i8"),  # under this number
        ("obj", "i8"),  # perf event, VM, vCPU, or row of the texts
        ("pos", "i8"),  # next byte to read
        ("mode", "i8"),  # O_*
    ]
)

CONTEXT = np.dtype(
    [
        ("rotate_necessary", "i8"),  # a flexible event waits
        ("last_cpu", "i8"),  # 1 + the CPU that it was scheduled in on last, 0 never
        # struct x86_perf_task_context: the branch records of its task while that is away
        ("lbr_users", "i8"),  # lbr_callstack_users: events of the task that have the records
        ("lbr_valid", "i8"),  # 1: they are here (LBR_VALID)
        ("lbr_sel", "u8"),  # MSR_LBR_SELECT
        ("lbr_tos", "u8"),  # MSR_LASTBRANCH_TOS
        ("lbr_from", "u8", (machine.N_LBR,)),  # the records, by register
        ("lbr_to", "u8", (machine.N_LBR,)),  # their targets
        ("lbr_info", "u8", (machine.N_LBR,)),  # and what else is known
    ]
)

KLOG = np.dtype(
    [
        ("what", "i8"),  # which message: LOG_* of printk.py
        ("cpu", "i8"),  # who said it
        ("time", "i8"),  # when, in 1/16 cycle
        ("a", "u8"),  # the number in it
    ]
)

SYSTEM = np.dtype(
    [
        ("config", CONFIG),  # settings
        ("this_cpu", "i8"),  # core that compiled code works for: index of cores and percpu
        ("this_vcpu", "i8"),  # vCPU that it works for: index of vcpus
        ("msr_value", "u8"),  # what CALL_GET_MSR read
        ("cores", machine.CORE, (N_CORES,)),  # the silicon
        ("percpu", PERCPU, (N_CORES,)),  # perf, scheduler and interrupts of each core
        ("list_end", "i8"),  # next value of an event's `order`
        ("perf_rows", "i8"),  # 1 + the highest row of `perf_events` that is in use
        ("perf_events", PERF_EVENT, (N_EVENTS,)),  # every perf event
        ("perf_ids", "u8"),  # events that there have been
        ("perf_error_n", "i8"),  # transitions to ERROR that there have been
        ("perf_errors", PERF_ERROR, (N_ERRORS,)),  # the last of them: number n is in row n % N_ERRORS
        ("perf_closed_n", "i8"),  # events of the host that were closed
        ("perf_closed", PERF_EVENT, (N_CLOSED,)),  # the last of them: number n is in row n % N_CLOSED
        ("contexts", CONTEXT, (N_CONTEXTS,)),  # every perf context
        ("klog_n", "i8"),  # lines of the kernel's log that there have been
        ("klog", KLOG, (N_KLOG,)),  # the last of them: number n is in row n % N_KLOG
        ("klog_once", "u8"),  # messages that come once and have come, by number
        ("next_pid", "i8"),  # number of the next task
        ("free_page", "i8"),  # physical memory from here on is for pages: index into the array
        ("mem_map", "i8"),  # a byte per page of it, 1 in use; what lies below is the pool of MAP_HUGETLB
        ("tasks", TASK, (N_TASKS,)),  # threads of the host programs
        ("mms", MM, (N_MMS,)),  # their address spaces
        ("files", FILE, (N_FILES,)),  # what they have open
        ("vms", VM, (N_VMS,)),  # virtual machines
        ("vcpus", VCPU, (N_VCPUS,)),  # their virtual CPUs
    ]
)

PMI_VECTOR_DEDICATED, PMI_VECTOR_NMI = range(2)
PMI_VECTOR_NAMES = ("dedicated", "nmi")
HOSTS = U64(1)  # of core.pmu.whose: the host's counters; bit 1 + n: those of vCPU n

WATCHDOG_OFF, WATCHDOG_NMI, WATCHDOG_BUDDY, WATCHDOG_HPET = range(4)
WATCHDOG_NAMES = ("off", "nmi", "buddy", "hpet")

KVM_PMU_EVENT_ALLOW = 0
KVM_PMU_EVENT_DENY = 1

KVM_REQ_PMU = U64(1 << 10)
KVM_REQ_PMI = U64(1 << 11)
KVM_REQ_EVENT = U64(1 << 6)
KVM_REQ_NMI = U64(1 << 9)

# Known bugs, of the first version of the series (v1-) or of the vPMU as merged (7.0-); exact results need
# them off.
QUIRKS = {
    "v1-no-global-check": "emulated instructions count even while GLOBAL_CTRL has the counter off",
    "v1-fixed-no-pmi": "an emulated instruction that overflows a fixed counter never asks for a PMI",
    "v1-sibling-error": "perf_guest_enter() puts the leader instead of the sibling into ERROR",
    "v1-filter-update": "a new event filter leaves selectors alone that are already programmed",
    "v1-fixed3-leak": "a fourth fixed counter of the host is not cleared for the guest",
    "v1-exit-order": "perf_guest_exit() schedules the CPU's flexible events before the task's pinned ones",
    "v1-version-not-2": "the context of a guest's PMU of another version than 2 is not switched",
    "v1-wrap-at-zero": "software counts wrap a counter only if it comes out at 0",
    "v1-global-ctrl-reset": "GLOBAL_CTRL is 0 after reset",
    "v1-intercepts-once": "an MSR of the PMU that has once been passed through exits never again",
    "7.0-fixed-filter": "a denied fixed counter comes on when FIXED_CTR_CTRL changes another one",
}

V1 = "v1"  # all of its own: the series as it was posted


def quirk_names(names: Iterable[str]) -> tuple[str, ...]:
    """Names of QUIRKS, `v1` being all of that version's."""
    posted = tuple(name for name in QUIRKS if name.startswith(f"{V1}-"))
    return tuple(one for name in names for one in (posted if name == V1 else (name,)))


def bits(names: dict[str, str], *chosen: str) -> U64:
    """The bit set of some names of QUIRKS."""
    order = list(names)
    return U64(sum(1 << order.index(name) for name in chosen))


Q_NO_GLOBAL_CHECK = bits(QUIRKS, "v1-no-global-check")
Q_FIXED_NO_PMI = bits(QUIRKS, "v1-fixed-no-pmi")
Q_SIBLING_ERROR = bits(QUIRKS, "v1-sibling-error")
Q_FILTER_UPDATE = bits(QUIRKS, "v1-filter-update")
Q_FIXED3_LEAK = bits(QUIRKS, "v1-fixed3-leak")
Q_EXIT_ORDER = bits(QUIRKS, "v1-exit-order")
Q_VERSION_NOT_2 = bits(QUIRKS, "v1-version-not-2")
Q_WRAP_AT_ZERO = bits(QUIRKS, "v1-wrap-at-zero")
Q_GLOBAL_CTRL_RESET = bits(QUIRKS, "v1-global-ctrl-reset")
Q_INTERCEPTS_ONCE = bits(QUIRKS, "v1-intercepts-once")
Q_FIXED_FILTER = bits(QUIRKS, "7.0-fixed-filter")
