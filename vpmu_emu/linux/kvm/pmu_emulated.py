"""The emulated vPMU: every guest counter that is on is a pinned perf event of the host.

All accesses exit. A change is noted at once and carried out at KVM_REQ_PMU before the next entry.
arch/x86/kvm/pmu.c, vmx/pmu_intel.c; the words are theirs.
"""

from __future__ import annotations

from vpmu_emu._jit import jit
from vpmu_emu.linux import trace_kinds
from vpmu_emu.linux.charge import charge
from vpmu_emu.linux.kvm import pmu as kvm_pmu
from vpmu_emu.linux.kvm.filter import check_pmu_event_filter
from vpmu_emu.linux.kvm.pmu import (
    fixed_ctrl_field,
    kvm_pmu_recalc_pmc_emulation,
    kvm_pmu_request_counter_reprogram,
    pmc_is_globally_enabled,
    pmc_is_locally_enabled,
)
from vpmu_emu.linux.kvm.vmx.lbr import intel_pmu_cleanup
from vpmu_emu.linux.native import cost
from vpmu_emu.linux.overflow_handler import __kvm_perf_overflow as kvm_perf_overflow_noted
from vpmu_emu.linux.overflow_handler import pmc_bit
from vpmu_emu.linux.percpu import this_core
from vpmu_emu.linux.perf.event import (
    ATTR_PRECISE_SHIFT,
    perf_event_count_now,
    perf_event_create_kernel_counter,
    perf_event_enable,
    perf_event_pause,
    perf_event_period,
    perf_event_read_value,
    perf_event_release_kernel,
)
from vpmu_emu.linux.perf.times import (
    ATTR_EXCLUDE_HOST,
    ATTR_EXCLUDE_KERNEL,
    ATTR_EXCLUDE_USER,
    ATTR_PINNED,
)
from vpmu_emu.linux.state import CTX_TASK, N_GP_PMC, N_PMC, OWNER_KVM
from vpmu_emu.machine import msr_index, mutants
from vpmu_emu.machine.msr import is_canonical
from vpmu_emu.machine.pmu import event_row
from vpmu_emu.machine.pmu_rules import perfctr_value, status_after_reset
from vpmu_emu.machine.ring import GP_ADDRESS, GP_READ_ONLY, GP_RESERVED, emit
from vpmu_emu.machine.u64 import LOW32, ONE, U2, U64, ZERO

COST_HANDLE_EVENT = cost("kvm_pmu_handle_event")
COST_REPROGRAM = cost("reprogram_counter")
COST_CREATE = cost("perf_event_create_kernel_counter")
COST_RELEASE = cost("perf_event_release_kernel")
COST_ENABLE = cost("perf_event_enable")
COST_PAUSE = cost("perf_event_pause")
COST_PERIOD = cost("perf_event_period")
COST_READ = cost("perf_event_read_value")

_KIND = ~15


@jit()
def pmc_read_counter(S, E, vcpu, i):
    """The counter's value now: what KVM holds, what it counted in software, what perf counted."""
    pmu = vcpu.pmu
    pmc = pmu.pmcs[i]
    counter = pmc.counter + pmc.emulated_counter
    if pmc.perf_event >= 0 and pmc.is_paused == 0:
        counter += perf_event_read_value(S, E, pmc.perf_event)
        charge(S, E, COST_READ)
    return counter & pmu.counter_bitmask


@jit()
def pmc_counter_now(S, vcpu, i):
    """What pmc_read_counter() would give; it takes no time and changes nothing."""
    pmu = vcpu.pmu
    pmc = pmu.pmcs[i]
    counter = pmc.counter + pmc.emulated_counter
    if pmc.perf_event >= 0 and pmc.is_paused == 0:
        counter += perf_event_count_now(S, pmc.perf_event)
    return counter & pmu.counter_bitmask


@jit()
def get_sample_period(pmu, counter):
    """Events until `counter` overflows; a whole round if it is 0."""
    period = (ZERO - counter) & pmu.counter_bitmask
    if period == ZERO:
        period = pmu.counter_bitmask + ONE
    return period


@jit()
def pmc_write_counter(S, E, vcpu, i, value):
    """Make the counter read `value` from now on."""
    pmu = vcpu.pmu
    pmc = pmu.pmcs[i]
    if this_core(S).inject & mutants.I_RUNNING_WRITE != ZERO and pmc.is_paused == 0 and pmc.perf_event >= 0:
        return
    # A write drops software counts. The value becomes relative to perf's count, which goes on.
    pmc.emulated_counter = ZERO
    pmc.counter += value - pmc_read_counter(S, E, vcpu, i)
    pmc.counter &= pmu.counter_bitmask
    if pmc.perf_event >= 0 and pmc.is_paused == 0:
        # pmc_update_sample_period() uses the relative value too
        perf_event_period(S, E, pmc.perf_event, get_sample_period(pmu, pmc.counter))
        charge(S, E, COST_PERIOD)


@jit()
def pmc_pause_counter(S, E, vcpu, i):
    """Stop the event and take its count in; 1 if software counts made the counter wrap."""
    pmu = vcpu.pmu
    pmc = pmu.pmcs[i]
    counter = pmc.counter
    if pmc.perf_event >= 0 and pmc.is_paused == 0:
        counter += perf_event_pause(S, E, pmc.perf_event, 1)
        charge(S, E, COST_PAUSE)
        pmu.paused += ONE
    # An overflow within perf's part is the hardware's to report.
    before = counter & pmu.counter_bitmask
    pmc.counter = (counter + pmc.emulated_counter) & pmu.counter_bitmask
    pmc.emulated_counter = ZERO
    pmc.is_paused = 1
    if this_core(S).inject & mutants.I_EARLY != ZERO and pmc.counter == pmu.counter_bitmask:
        pmu.global_status |= pmc_bit(i)
    emit(E, this_core(S).t, trace_kinds.TR_PAUSE, ZERO, U64(i), pmc.counter, ZERO)
    return 1 if pmc.counter < before else 0


@jit()
def pmc_resume_counter(S, E, vcpu, i):
    """Let the paused event go on with a new period; False if there is none to reuse."""
    pmu = vcpu.pmu
    pmc = pmu.pmcs[i]
    if pmc.perf_event < 0:
        return False
    if perf_event_period(S, E, pmc.perf_event, get_sample_period(pmu, pmc.counter)) != 0:
        return False
    charge(S, E, COST_PERIOD)
    precise = S.perf_events[pmc.perf_event].precise_ip != 0
    if precise != (pmu.pebs_enable & pmc_bit(i) != ZERO):
        return False
    perf_event_enable(S, E, pmc.perf_event)
    charge(S, E, COST_ENABLE)
    pmc.is_paused = 0
    pmu.resumed += ONE
    return True


@jit()
def pmc_release_perf_event(S, E, vcpu, i):
    """Give the event back."""
    pmu = vcpu.pmu
    pmc = pmu.pmcs[i]
    if pmc.perf_event >= 0:
        perf_event_release_kernel(S, E, pmc.perf_event)
        charge(S, E, COST_RELEASE)
        pmc.perf_event = -1
        pmc.current_config = ZERO
        pmu.event_count -= 1
        pmu.released += ONE


@jit()
def pmc_get_pebs_precise_level(S, i):
    """3 where the CPU has one counter that is more precise than the others, and this is its number."""
    pdist = i == 0 and S.config.pebs_pdist != 0
    return 3 if pdist or (i == N_GP_PMC and S.config.pebs_pdir != 0) else 1


@jit()
def pmc_reprogram_counter(S, E, vcpu, i, eventsel):
    """Make a new event for pmc i from a selector; 0 or a negative errno."""
    pmu = vcpu.pmu
    pmc = pmu.pmcs[i]
    flags = ATTR_PINNED | ATTR_EXCLUDE_HOST
    if eventsel & msr_index.ARCH_PERFMON_EVENTSEL_USR == ZERO:
        flags |= ATTR_EXCLUDE_USER
    if eventsel & msr_index.ARCH_PERFMON_EVENTSEL_OS == ZERO:
        flags |= ATTR_EXCLUDE_KERNEL
    pebs = pmu.pebs_enable & pmc_bit(i) != ZERO
    if pebs:
        flags |= pmc_get_pebs_precise_level(S, i) << ATTR_PRECISE_SHIFT
    event = perf_event_create_kernel_counter(
        S,
        E,
        CTX_TASK + vcpu.task,
        flags,
        eventsel & msr_index.X86_RAW_EVENT_MASK,
        get_sample_period(pmu, pmc.counter),
        OWNER_KVM,
        vcpu.vcpu_idx,
        i,
    )
    charge(S, E, COST_CREATE)
    if event < 0:
        return event
    pmc.perf_event = event
    pmc.is_paused = 0
    pmc.intr = 1 if pebs or eventsel & msr_index.ARCH_PERFMON_EVENTSEL_INT != ZERO else 0
    pmu.event_count += 1
    pmu.created += ONE
    return 0


@jit()
def reprogram_counter(S, E, vcpu, i):
    """Bring the event behind pmc i in line with the guest's registers; 0 or a negative errno."""
    pmu = vcpu.pmu
    pmc = pmu.pmcs[i]
    charge(S, E, COST_REPROGRAM)
    emulate_overflow = pmc_pause_counter(S, E, vcpu, i)
    if S.config.event_reuse == 0:
        pmc_release_perf_event(S, E, vcpu, i)  # pmc_stop_counter() before 5.6
    off = -1
    if not pmc_is_globally_enabled(S, vcpu, i):
        off = trace_kinds.REPROGRAM_GLOBALLY_OFF
    elif not pmc_is_locally_enabled(pmu, i):
        off = trace_kinds.REPROGRAM_OFF
    elif not check_pmu_event_filter(S, E, vcpu, i):
        off = trace_kinds.REPROGRAM_FILTERED
    if off >= 0:
        emit(E, this_core(S).t, trace_kinds.TR_REPROGRAM, ZERO, U64(i), ZERO, U64(off))
        return 0
    if emulate_overflow != 0:
        kvm_perf_overflow_noted(S, E, vcpu, i, 0)
    eventsel = pmc.eventsel
    new_config = eventsel
    if i >= N_GP_PMC:
        field = fixed_ctrl_field(pmu.fixed_ctr_ctrl, i)
        if field & ONE != ZERO:
            eventsel |= msr_index.ARCH_PERFMON_EVENTSEL_OS
        if field & U2 != ZERO:
            eventsel |= msr_index.ARCH_PERFMON_EVENTSEL_USR
        if field & msr_index.INTEL_FIXED_0_ENABLE_PMI != ZERO:
            eventsel |= msr_index.ARCH_PERFMON_EVENTSEL_INT
        new_config = field
    if pmc.current_config == new_config and pmc_resume_counter(S, E, vcpu, i):
        how = U64(trace_kinds.REPROGRAM_RESUME)
        emit(E, this_core(S).t, trace_kinds.TR_REPROGRAM, ZERO, U64(i), new_config, how)
        return 0
    pmc_release_perf_event(S, E, vcpu, i)
    pmc.current_config = new_config
    errno = pmc_reprogram_counter(S, E, vcpu, i, eventsel)
    how = trace_kinds.REPROGRAM_CREATE if errno == 0 else trace_kinds.REPROGRAM_FAILED | -errno << 8
    emit(E, this_core(S).t, trace_kinds.TR_REPROGRAM, ZERO, U64(i), new_config, U64(how))
    return errno


@jit()
def kvm_pmu_cleanup(S, M, E, vcpu):
    """Release events of counters that the guest left alone and off for a whole time slice."""
    pmu = vcpu.pmu
    pmu.need_cleanup = 0
    idle = pmu.all_valid_pmc & ~pmu.pmc_in_use
    for i in range(N_PMC):
        pmc = pmu.pmcs[i]
        if idle & pmc_bit(i) != ZERO and pmc.perf_event >= 0 and not pmc_is_locally_enabled(pmu, i):
            # pmc_stop_counter()
            pmc.counter = pmc_read_counter(S, E, vcpu, i)
            pmc_release_perf_event(S, E, vcpu, i)
    intel_pmu_cleanup(S, M, E, vcpu)
    pmu.pmc_in_use = ZERO


@jit()
def kvm_pmu_handle_event(S, M, E, vcpu):
    """KVM_REQ_PMU: reprogram what was asked for. What fails is retried with the next request."""
    pmu = vcpu.pmu
    charge(S, E, COST_HANDLE_EVENT)
    bitmap = pmu.reprogram_pmi
    pmu.reprogram_pmi &= ~bitmap
    for i in range(N_PMC):
        if bitmap & pmu.all_valid_pmc & pmc_bit(i) != ZERO and reprogram_counter(S, E, vcpu, i) != 0:
            pmu.reprogram_pmi |= pmc_bit(i)
    if pmu.need_cleanup != 0:
        kvm_pmu_cleanup(S, M, E, vcpu)
    for i in range(N_PMC):
        if bitmap & pmu.all_valid_pmc & pmc_bit(i) != ZERO:
            kvm_pmu_recalc_pmc_emulation(pmu, i)


@jit()
def reprogram_counters(S, E, vcpu, diff):
    """Request all counters of a bit set (a GLOBAL_CTRL write)."""
    valid = vcpu.pmu.all_valid_pmc
    for i in range(N_PMC):
        if diff & valid & pmc_bit(i) != ZERO:
            kvm_pmu_request_counter_reprogram(S, E, vcpu, i)
            if this_core(S).inject & mutants.I_LOSE_REPROGRAM != ZERO:
                return


@jit()
def kvm_pmu_set_msr(S, E, vcpu, which, data, host_initiated):
    """Write a PMU register of the guest; `which` is from kvm_pmu_is_valid_msr(). not 0 means #GP: GP_*."""
    pmu = vcpu.pmu
    kind = which & _KIND
    i = which & 15
    if kind == kvm_pmu.PMU_GLOBAL_STATUS:
        if host_initiated == 0:
            return GP_READ_ONLY
        if data & pmu.global_status_rsvd != ZERO:
            return GP_RESERVED
        pmu.global_status = data
    elif kind == kvm_pmu.PMU_GLOBAL_CTRL:
        if data & pmu.global_ctrl_rsvd != ZERO:
            return GP_RESERVED
        diff = pmu.global_ctrl ^ data
        if diff != ZERO:
            pmu.global_ctrl = data
            reprogram_counters(S, E, vcpu, diff)
    elif kind == kvm_pmu.PMU_OVF_CTRL:
        if data & pmu.global_status_rsvd != ZERO:
            return GP_RESERVED
        if host_initiated == 0:
            pmu.global_status = status_after_reset(this_core(S), pmu.global_status, data)
    elif kind == kvm_pmu.PMU_PEBS_ENABLE:
        if data & pmu.pebs_enable_rsvd != ZERO:
            return GP_RESERVED
        diff = pmu.pebs_enable ^ data
        pmu.pebs_enable = data
        reprogram_counters(S, E, vcpu, diff)
    elif kind == kvm_pmu.PMU_DS_AREA:
        if not is_canonical(data):
            return GP_ADDRESS
        pmu.ds_area = data
    elif kind == kvm_pmu.PMU_FIXED_CTR_CTRL:
        if data & pmu.fixed_ctr_ctrl_rsvd != ZERO:
            return GP_RESERVED
        old = pmu.fixed_ctr_ctrl
        pmu.fixed_ctr_ctrl = data
        for k in range(N_GP_PMC, N_GP_PMC + pmu.nr_arch_fixed_counters):
            if fixed_ctrl_field(old, k) != fixed_ctrl_field(data, k):
                pmu.pmc_in_use |= pmc_bit(k)
                kvm_pmu_recalc_pmc_emulation(pmu, k)
                kvm_pmu_request_counter_reprogram(S, E, vcpu, k)
    else:
        # kvm_pmu_mark_pmc_in_use(), before any check; intel_msr_idx_to_pmc() knows no full-width address
        if kind != kvm_pmu.PMU_PMC:
            pmu.pmc_in_use |= pmc_bit(i)
        pmc = pmu.pmcs[i]
        if kind == kvm_pmu.PMU_EVNTSEL:
            if data & pmu.eventsel_rsvd != ZERO:
                return GP_RESERVED
            if (
                this_core(S).inject & mutants.I_OFF_CLEARS != ZERO
                and data & msr_index.ARCH_PERFMON_EVENTSEL_ENABLE == ZERO
            ):
                pmc_write_counter(S, E, vcpu, i, ZERO)
            if data != pmc.eventsel:
                pmc.eventsel = data
                row = event_row(this_core(S).pmu, data & msr_index.INTEL_ARCH_EVENT_MASK)
                if data & msr_index.ARCH_PERFMON_EVENTSEL_ENABLE != ZERO and row < 0:
                    pmc.uncounted = data  # on whichever counter perf puts it
                kvm_pmu_recalc_pmc_emulation(pmu, i)
                kvm_pmu_request_counter_reprogram(S, E, vcpu, i)
        elif kind == kvm_pmu.PMU_PMC:
            wide = data & ~pmu.counter_bitmask
            if wide != ZERO and this_core(S).inject & mutants.I_PMC_WIDTH == ZERO:
                return GP_RESERVED
            pmc_write_counter(S, E, vcpu, i, data)
        elif kind == kvm_pmu.PMU_PERFCTR:
            if host_initiated == 0:
                data = perfctr_value(this_core(S), data)
            pmc_write_counter(S, E, vcpu, i, data)
        elif kind == kvm_pmu.PMU_FIXED_CTR:
            if this_core(S).inject & mutants.I_FIXED_32 != ZERO:
                data &= LOW32
            pmc_write_counter(S, E, vcpu, i, data)
    return 0


@jit()
def kvm_pmu_get_msr(S, E, vcpu, which):
    """Read a PMU register of the guest."""
    pmu = vcpu.pmu
    kind = which & _KIND
    i = which & 15
    if kind == kvm_pmu.PMU_GLOBAL_STATUS:
        return pmu.global_status
    if kind == kvm_pmu.PMU_GLOBAL_CTRL:
        return pmu.global_ctrl
    if kind == kvm_pmu.PMU_OVF_CTRL:
        return ZERO
    if kind == kvm_pmu.PMU_FIXED_CTR_CTRL:
        return pmu.fixed_ctr_ctrl
    if kind == kvm_pmu.PMU_EVNTSEL:
        return pmu.pmcs[i].eventsel
    if kind == kvm_pmu.PMU_PEBS_ENABLE:
        return pmu.pebs_enable
    if kind == kvm_pmu.PMU_DS_AREA:
        return pmu.ds_area
    value = pmc_read_counter(S, E, vcpu, i)
    if kind == kvm_pmu.PMU_PERFCTR and this_core(S).inject & mutants.I_RDMSR_32 != ZERO:
        value &= LOW32
    return value
