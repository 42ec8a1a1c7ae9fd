"""RDMSR and WRMSR as silicon does them: existence and reserved bits come from the table, effects from here.

The rules of the table are evaluated for the CPU's shape when a system is made and lie in the record
(`msr_n`, `msr_reserved`, `msr_access`). A faulting access changes nothing.
"""

from __future__ import annotations

import numpy as np

from vpmu_emu._jit import jit
from vpmu_emu.machine import msr_index, ring
from vpmu_emu.machine.bus import note_ipi
from vpmu_emu.machine.clock import tsc_at
from vpmu_emu.machine.conditions import event_holds
from vpmu_emu.machine.lapic import (
    is_x2apic_msr,
    lapic_read,
    lapic_reset,
    lapic_set_deadline,
    lapic_write,
)
from vpmu_emu.machine.lbr import (
    LBR_ARCHITECTURAL,
    R_LBR_DEPTH,
    R_LBR_FIRST,
    R_LBR_LAST,
    lbr_depth_exists,
    lbr_started,
    lbr_value,
    lbr_write,
)
from vpmu_emu.machine.memory import drop_decoded, tlb_flush
from vpmu_emu.machine.metrics import metrics_value, metrics_write
from vpmu_emu.machine.msr_fields import field_value, field_write
from vpmu_emu.machine.mutants import I_FIXED_32, I_RDMSR_32
from vpmu_emu.machine.pmu import (
    SLOTS_COUNTER,
    counter_value,
    pmu_set_global_ctrl,
    pmu_update,
    pmu_write_counter,
    pmu_write_eventsel,
    pmu_write_fixed_ctr_ctrl,
)
from vpmu_emu.machine.pmu_rules import perfctr_value, rdpmc_ecx, status_after_reset
from vpmu_emu.machine.ring import emit, emit_fault
from vpmu_emu.machine.state import N_FIXED, N_GP
from vpmu_emu.machine.u64 import ONE, TOP, U64, ZERO
from vpmu_emu.tables.msrs import ACCESS_DROP, ACCESS_RO, ACCESS_WO, MSRS, ROW

R_PMC = ROW["IA32_PMC"]
R_PERFEVTSEL = ROW["IA32_PERFEVTSEL"]
R_A_PMC = ROW["IA32_A_PMC"]
R_FIXED_CTR = ROW["IA32_FIXED_CTR"]
R_PERF_METRICS = ROW["MSR_PERF_METRICS"]
R_PERF_CAPABILITIES = ROW["IA32_PERF_CAPABILITIES"]
R_FIXED_CTR_CTRL = ROW["IA32_FIXED_CTR_CTRL"]
R_GLOBAL_CTRL = ROW["IA32_PERF_GLOBAL_CTRL"]
R_STATUS_RESET = ROW["IA32_PERF_GLOBAL_STATUS_RESET"]
R_STATUS_SET = ROW["IA32_PERF_GLOBAL_STATUS_SET"]
R_INUSE = ROW["IA32_PERF_GLOBAL_INUSE"]
R_PEBS_ENABLE = ROW["IA32_PEBS_ENABLE"]
R_DEBUGCTL = ROW["IA32_DEBUGCTL"]
R_TSC = ROW["IA32_TIME_STAMP_COUNTER"]
R_TSC_DEADLINE = ROW["IA32_TSC_DEADLINE"]
R_MISC_ENABLE = ROW["IA32_MISC_ENABLE"]
R_EFER = ROW["IA32_EFER"]
R_SYSENTER_CS = ROW["IA32_SYSENTER_CS"]
R_SYSENTER_ESP = ROW["IA32_SYSENTER_ESP"]
R_SYSENTER_EIP = ROW["IA32_SYSENTER_EIP"]
R_PAT = ROW["IA32_PAT"]
R_APIC_BASE = ROW["IA32_APIC_BASE"]

READ, WRITE, WRITE_BLIND = range(3)  # kinds of accesses; blind: RDMSR would not have read that register
DROPPED = -1  # exists as something that does nothing
NO_MSR = -ring.GP_ABSENT  # and whatever else is below DROPPED: #GP, for the reason -GP_*

# Where the MSR bitmap's two halves begin and how many each has.
MSR_RANGE = U64(0x2000)
MSR_HIGH = U64(0xC000_0000)
_PAGE_BITS = U64(5)
_IN_PAGE = U64(31)


def _pages() -> tuple[np.ndarray, np.ndarray]:
    """Pages of 32 MSRs, row * 64 + instance or NO_MSR for each, and for every 32 of the three ranges of
    0x2000 MSRs its page. Whole tables would be 200 KB, and each function that looks there has its own copy.
    """
    found = np.full((3, int(MSR_RANGE)), NO_MSR, dtype=np.int64)
    for k, row in enumerate(MSRS):
        for n in range(row.count):
            for part, base in enumerate((0, int(MSR_HIGH), int(msr_index.MSR_K7_EVNTSEL0))):
                offset = row.index + n * row.stride - base
                if 0 <= offset < int(MSR_RANGE):
                    found[part, offset] = k * 64 + n
    rows, page = np.unique(found.reshape(-1, 32), axis=0, return_inverse=True)
    return rows, page.reshape(-1)


_ROWS, _PAGE = _pages()
MSR_SLOT = np.array([row.slot for row in MSRS], dtype=np.int64)
_LOW32 = U64(0xFFFF_FFFF)
_MISC_READ_ONLY = msr_index.MSR_IA32_MISC_ENABLE_EMON | msr_index.MSR_IA32_MISC_ENABLE_PMU_RO_MASK
_FAULTS_UNLESS_CANONICAL = np.array([row.hw.canonical == "fault" for row in MSRS])
_CANONICAL = U64(0x1FFFF)
PAT_BIT_1 = U64(0x0202_0202_0202_0202)
_U47 = U64(47)
_INDEX16 = U64(0xFFFF)
_ANY_PMI = U64(sum(int(msr_index.INTEL_FIXED_0_ENABLE_PMI) << 4 * i for i in range(N_FIXED)))


@jit()
def find_msr(index):
    """row * 64 + instance in the MSR table, NO_MSR if it has no such index."""
    if index < MSR_RANGE:
        at = index
    elif index >= MSR_HIGH and index < MSR_HIGH + MSR_RANGE:
        at = index - MSR_HIGH + MSR_RANGE
    elif index >= msr_index.MSR_K7_EVNTSEL0 and index < msr_index.MSR_K7_EVNTSEL0 + MSR_RANGE:
        at = index - msr_index.MSR_K7_EVNTSEL0 + MSR_RANGE + MSR_RANGE
    else:
        return NO_MSR
    return _ROWS[_PAGE[at >> _PAGE_BITS], at & _IN_PAGE]


@jit()
def statistics_slot(index):
    """Where the access statistics of an MSR are kept, -1 for an unknown one."""
    rn = find_msr(index)
    if rn < 0:
        return -1
    return MSR_SLOT[rn >> 6] + (rn & 63)


@jit()
def is_program(core):
    """Whether this core runs the program that is debugged, and not the host or a program of it."""
    return core.vmx.nonroot != 0 or core.kernel == 0


@jit()
def _asks(E, k, index, mode):
    return index >= E.watch_msr[k] and index <= E.watch_last[k] and E.watch_mode[k] & mode != 0


@jit()
def _wants(E, k, index, value, old):
    if (value ^ E.watch_value[k]) & E.watch_mask[k] != ZERO:
        return False
    return E.watch_condition[k] == 0 or event_holds(E, E.watch_condition[k] - 1, index, value, old)


@jit()
def note_watch(E, index, value, old, kind):
    """A guest's access (`kind`) was done, or was #GP: a watchpoint may ask for a stop. Modifies E."""
    mode = 1 if kind == READ else 2
    for k in range(E.n_watch):
        if E.watch_stage[k] == 0 and _asks(E, k, index, mode):
            same = value == old and kind == WRITE
            if kind == READ:
                same = E.watch_known[k] != 0 and E.watch_seen[k] == value
            E.watch_known[k] = 1
            E.watch_seen[k] = value
            if _wants(E, k, index, value, old) and not (same and E.watch_changes[k] != 0):
                E.stop_request = 1


@jit()
def stops_before(core, E, index, value, mode):
    """Whether a watchpoint asks to stop before this access (`mode` 1 read, 2 write). Modifies E."""
    if E.passing != 0 or E.emulating != 0 or not is_program(core):
        return False
    for k in range(E.n_watch):
        if E.watch_stage[k] != 0 and _asks(E, k, index, mode) and _wants(E, k, index, value, ZERO):
            E.stopped_before = k + 1
            return True
    return False


@jit()
def msr_of_rdpmc(ecx):
    """The MSR that RDPMC reads: as a watchpoint sees it."""
    number = ecx & _INDEX16
    kind = ecx & ~_INDEX16 & _LOW32
    if kind == msr_index.INTEL_PMC_FIXED_RDPMC_BASE:
        return msr_index.MSR_CORE_PERF_FIXED_CTR0 + number
    if kind == msr_index.INTEL_PMC_FIXED_RDPMC_METRICS:
        return msr_index.MSR_PERF_METRICS
    return msr_index.MSR_IA32_PERFCTR0 + number


@jit()
def note_rdpmc(core, E, rip, ecx, value, exits):
    """A guest's RDPMC was done, in hardware or by a hypervisor (exits 1)."""
    emit(E, core.t, ring.TR_GUEST_RDPMC, rip, ecx, value, U64(exits))
    if E.n_watch > 0 and (exits != 0 or is_program(core)):
        note_watch(E, msr_of_rdpmc(ecx), value, value, READ)


@jit()
def note_rdpmc_fault(core, E, rip, ecx, gp, fixed, exits):
    """A guest's RDPMC raised #GP, by hardware or a hypervisor (exits 1): it has so many counters."""
    emit_fault(E, core.t, ring.TR_RDPMC_FAULT, rip, ecx, gp, fixed)
    if E.n_watch > 0 and (exits != 0 or is_program(core)):
        note_watch(E, msr_of_rdpmc(ecx), ZERO, ZERO, READ)


@jit()
def note_msr(core, E, index, value, old, kind, exits):
    """A guest's RDMSR or WRMSR (`kind`) was done, in hardware or by a hypervisor (exits 1)."""
    slot = statistics_slot(index)
    if kind != READ:
        if slot >= 0:
            core.stats.msr_writes[slot] += ONE
        told = ring.TR_GUEST_WRMSR if kind == WRITE else ring.TR_GUEST_WRMSR_BLIND
        emit(E, core.t, told, core.rip, index, value, old)
    else:
        if slot >= 0:
            core.stats.msr_reads[slot] += ONE
        emit(E, core.t, ring.TR_GUEST_RDMSR, core.rip, index, value, U64(exits))
    if E.n_watch > 0:
        note_watch(E, index, value, old, kind)


@jit()
def note_msr_fault(core, E, index, value, writes, why):
    """A guest's MSR access raised #GP for the reason `why`, one of GP_*."""
    emit_fault(E, core.t, ring.TR_MSR_FAULT, core.rip, index, value, U64(writes | why << 1))
    if E.n_watch > 0:
        note_watch(E, index, value, ZERO, WRITE_BLIND if writes != 0 else READ)


@jit()
def is_canonical(va):
    """Whether bits 63:47 of an address are all equal."""
    high = va >> _U47
    return high == ZERO or high == _CANONICAL


@jit()
def pat_is_valid(value):
    """Whether each byte of IA32_PAT names a memory type: 0, 1 and 4 to 7 (SDM 3A table 12-10)."""
    return value & PAT_BIT_1 & ~(value >> ONE) == ZERO


@jit()
def _exists(core, index):
    rn = find_msr(index)
    if rn < 0 or (rn & 63) >= core.msr_n[rn >> 6]:
        return DROPPED if core.ignore_msrs != 0 else NO_MSR
    if is_x2apic_msr(index):
        base = core.vapic.apic_base if core.vmx.nonroot != 0 else core.lapic.apic_base
        if base & msr_index.X2APIC_ENABLE == ZERO:
            return -ring.GP_NOT_X2APIC
    if core.msr_access[rn >> 6] == ACCESS_DROP:
        return DROPPED
    return rn


@jit()
def check_read(core, index):
    """row * 64 + instance if RDMSR may read it, DROPPED for a 0, below that -GP_*."""
    rn = _exists(core, index)
    if rn >= 0 and core.msr_access[rn >> 6] == ACCESS_WO:
        return -ring.GP_WRITE_ONLY
    return rn


@jit()
def check_write(core, index, value):
    """row * 64 + instance if WRMSR may write this value, DROPPED for no effect, below -GP_*."""
    rn = _exists(core, index)
    if rn < 0:
        return rn
    row = rn >> 6
    if core.msr_access[row] == ACCESS_RO:
        return -ring.GP_READ_ONLY
    if value & core.msr_reserved[row] != ZERO:
        return -ring.GP_RESERVED
    if row == R_APIC_BASE:
        old = core.lapic.apic_base
        mode = value & (msr_index.MSR_IA32_APICBASE_ENABLE | msr_index.X2APIC_ENABLE)
        # SDM 3A 11.12.5: x2APIC is left only by disabling, and never entered from disabled
        if mode == msr_index.X2APIC_ENABLE:
            return -ring.GP_VALUE
        if mode == msr_index.MSR_IA32_APICBASE_ENABLE and old & msr_index.X2APIC_ENABLE != ZERO:
            return -ring.GP_VALUE
        if (
            mode == msr_index.MSR_IA32_APICBASE_ENABLE | msr_index.X2APIC_ENABLE
            and old & msr_index.MSR_IA32_APICBASE_ENABLE == ZERO
        ):
            return -ring.GP_VALUE
    elif row == R_EFER:
        # SDM 3A 4.1.1: LME cannot change while paging is on, and here it always is
        if (value ^ core.efer) & msr_index.EFER_LME != ZERO:
            return -ring.GP_VALUE
    elif row == R_LBR_DEPTH:
        if not lbr_depth_exists(value):
            return -ring.GP_VALUE
    elif row == R_PAT:
        if not pat_is_valid(value):
            return -ring.GP_VALUE
    elif _FAULTS_UNLESS_CANONICAL[row] and not is_canonical(value):
        return -ring.GP_ADDRESS
    return rn


@jit()
def _in_use(core):
    # SDM 3B 20.2.4.3: a counter is in use while its selector names an event or a ring
    pmu = core.pmu
    v = ZERO
    pmi = pmu.fixed_ctr_ctrl & _ANY_PMI | pmu.pebs_enable
    for i in range(N_GP):
        if pmu.eventsel[i] & msr_index.ARCH_PERFMON_EVENTSEL_EVENT != ZERO:
            v |= ONE << U64(i)
        pmi |= pmu.eventsel[i] & msr_index.ARCH_PERFMON_EVENTSEL_INT
    for i in range(N_FIXED):
        if (pmu.fixed_ctr_ctrl >> U64(4 * i)) & U64(3) != ZERO:
            v |= ONE << U64(32 + i)
    if pmi != ZERO:
        v |= TOP
    return v


@jit()
def msr_value(core, rn, index):
    """What RDMSR gives for a register that check_read allowed."""
    row = rn >> 6
    n = rn & 63
    if row == R_PMC and core.inject & I_RDMSR_32 != ZERO:
        return counter_value(core, n) & _LOW32
    if row == R_PMC or row == R_A_PMC:
        return counter_value(core, n)
    if row == R_FIXED_CTR:
        return counter_value(core, N_GP + n)
    if row == R_INUSE:
        return _in_use(core)
    if row == R_PERF_METRICS:
        return metrics_value(core)
    if row == R_TSC:
        return read_tsc(core)
    if row >= R_LBR_FIRST and row <= R_LBR_LAST:
        return lbr_value(core, row, n)
    if is_x2apic_msr(index):
        if core.vmx.nonroot != 0:
            return lapic_read(core, core.vapic, index)
        return lapic_read(core, core.lapic, index)
    return field_value(core, row, n)  # 0 for what can only be written


@jit()
def read_tsc(core):
    """RDTSC: the TSC plus what was written to it and, in a guest, the VMCS's TSC offset."""
    v = tsc_at(core, core.t) + core.tsc_adjust
    if core.vmx.nonroot != 0:
        v += core.vmx.tsc_offset
    return v


@jit()
def msr_apply(core, E, rn, index, value):
    """What WRMSR does to a register that check_write allowed. Modifies core."""
    row = rn >> 6
    n = rn & 63
    pmu = core.pmu
    if row == R_PMC:
        pmu_write_counter(core, n, perfctr_value(core, value))
    elif row == R_A_PMC:
        pmu_write_counter(core, n, value)
    elif row == R_FIXED_CTR:
        if core.inject & I_FIXED_32 != ZERO:
            value &= _LOW32
        pmu_write_counter(core, N_GP + n, value)
        if N_GP + n == SLOTS_COUNTER:
            metrics_write(core, ZERO, ZERO)
    elif row == R_PERFEVTSEL:
        pmu_write_eventsel(core, E, n, value)
    elif row == R_GLOBAL_CTRL:
        pmu_set_global_ctrl(core, E, value)
    elif row == R_FIXED_CTR_CTRL:
        pmu_write_fixed_ctr_ctrl(core, E, value)
    elif row == R_STATUS_RESET:
        pmu.global_status = status_after_reset(core, pmu.global_status, value)
        pmu_update(core, E)
    elif row == R_STATUS_SET:
        pmu.global_status |= value
        pmu_update(core, E)
    elif row == R_PERF_METRICS:
        metrics_write(core, value, counter_value(core, SLOTS_COUNTER))
    elif row == R_PEBS_ENABLE:
        pmu.pebs_enable = value
        pmu.pebs_armed &= value
    elif row == R_DEBUGCTL:
        if core.lbr.kind == LBR_ARCHITECTURAL:
            value &= ~msr_index.DEBUGCTLMSR_LBR  # means nothing beside IA32_LBR_CTL and reads 0
        if value & ~pmu.debugctl & msr_index.DEBUGCTLMSR_LBR != ZERO:
            lbr_started(core)
        pmu.debugctl = value
    elif row == R_TSC:
        core.tsc_adjust = value - tsc_at(core, core.t)
    elif row == R_TSC_DEADLINE:
        lapic_set_deadline(core, core.lapic, value, core.tsc_adjust)
    elif row == R_APIC_BASE:
        ident = core.lapic.id
        if value & msr_index.MSR_IA32_APICBASE_ENABLE == ZERO:
            lapic_reset(core.lapic, ident)
        core.lapic.apic_base = value
        tlb_flush(core, 1)  # its page may have moved
    elif row == R_MISC_ENABLE:
        core.misc_enable = (value & ~_MISC_READ_ONLY) | (core.misc_enable & _MISC_READ_ONLY)
    elif row == R_EFER:
        if (value ^ core.efer) & msr_index.EFER_NX != ZERO:
            tlb_flush(core, 1)
            drop_decoded(E)
        core.efer = (value & ~msr_index.EFER_LMA) | (core.efer & msr_index.EFER_LMA)
    elif row == R_SYSENTER_CS:
        core.sysenter_cs = value & _LOW32
    elif row >= R_LBR_FIRST and row <= R_LBR_LAST:
        lbr_write(core, row, n, value)
    elif is_x2apic_msr(index):
        if core.vmx.nonroot != 0:
            lapic_write(core, core.vapic, index, value)  # TPR, EOI and SELF_IPI: the others exit
        else:
            note_ipi(core, lapic_write(core, core.lapic, index, value))
    else:
        field_write(core, row, n, value)  # of GLOBAL_STATUS by a hypervisor's own model only


# --- RDPMC ----------------------------------------------------------------------------------------------
PMC_INVALID = -1
PMC_METRICS = -2


@jit()
def rdpmc_counter(core, ecx):
    """Which counter ECX names: 0.. general-purpose, N_GP.. fixed, PMC_METRICS, PMC_INVALID for #GP."""
    pmu = core.pmu
    ecx = rdpmc_ecx(core, ecx)
    index = ecx & _INDEX16
    kind = ecx & ~_INDEX16 & _LOW32
    if pmu.version == 0:
        return PMC_INVALID
    if kind == ZERO:
        return np.int64(index) if index < U64(pmu.gp) else PMC_INVALID
    if kind == msr_index.INTEL_PMC_FIXED_RDPMC_BASE and pmu.version >= 2:
        return N_GP + np.int64(index) if index < U64(pmu.fixed) else PMC_INVALID
    if (
        kind == msr_index.INTEL_PMC_FIXED_RDPMC_METRICS
        and core.msr_n[R_PERF_METRICS] != 0
        and index == ZERO
    ):
        return PMC_METRICS
    return PMC_INVALID


@jit()
def rdpmc_value(core, which):
    """The value of what rdpmc_counter named."""
    if which == PMC_METRICS:
        return metrics_value(core)
    return counter_value(core, which)


# --- the host kernel's own accesses ---------------------------------------------------------------------
@jit()
def host_rdmsr(core, E, index):
    """RDMSR by the host kernel; it knows what exists. Charges no time."""
    rn = find_msr(index)
    v = msr_value(core, rn, index) if rn >= 0 else ZERO
    emit(E, core.t, ring.TR_HOST_RDMSR, core.rip, index, v, ZERO)
    return v


@jit()
def host_wrmsr(core, E, index, value):
    """WRMSR by the host kernel; it knows what exists. Charges no time. Modifies core."""
    emit(E, core.t, ring.TR_HOST_WRMSR, core.rip, index, value, ZERO)
    rn = find_msr(index)
    if rn >= 0:
        msr_apply(core, E, rn, index, value)


@jit()
def host_rdpmc(core, E, ecx):
    """RDPMC by the host kernel."""
    which = rdpmc_counter(core, ecx)
    v = rdpmc_value(core, which) if which != PMC_INVALID else ZERO
    emit(E, core.t, ring.TR_HOST_RDPMC, core.rip, ecx, v, ZERO)
    return v

