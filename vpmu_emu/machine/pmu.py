"""The hardware PMU counts by running totals: a counter's value is computed when somebody looks.

While a counter is armed its value is `base + (total of its event - snap)`. `base` and `snap` change only on
architectural events: a write to the counter, its selector or an enable, and an overflow. How far the
interpreter may run without looking is the horizon; `pmu_horizon` gives it as a time, because every
instruction takes at least one issue slot, so `n` slots of time hold at most `n` instructions.
SDM volume 3, chapter 20.
"""

from __future__ import annotations

import numpy as np

from vpmu_emu._jit import jit
from vpmu_emu.machine import msr_index, mutants
from vpmu_emu.machine.clock import later, ticks, time_of_tick
from vpmu_emu.machine.lapic import LVT_DROPPED, LVT_NMI, LVT_PMI, lapic_lvt_message, lapic_set_irr
from vpmu_emu.machine.metrics import metrics_start, metrics_stop
from vpmu_emu.machine.pmu_rules import distance, raises_pmi, sets_status
from vpmu_emu.machine.ring import TR_OVERFLOW, TR_PMI_RAISE, emit
from vpmu_emu.machine.state import CLASS, N_CTR, N_FIXED, N_GP, N_PMI, NEVER, PMI_FIXED, PMI_NMI
from vpmu_emu.machine.u64 import BYTE, ONE, U3, U4, U32, U64, ZERO
from vpmu_emu.tables.cpus import LATENCIES
from vpmu_emu.tables.events import EVENTS

# --- the events table as arrays -------------------------------------------------------------------------
N_EVENTS = len(EVENTS)
N_TERMS = 4
SCALE_PLAIN, SCALE_CYCLES, SCALE_REF, SCALE_XCLK, SCALE_SLOTS = range(5)
_TIME_SOURCES = {
    "cycles": SCALE_CYCLES, "ref": SCALE_REF, "xclk": SCALE_XCLK, "slots": SCALE_SLOTS,
}  # fmt: skip


def _terms(plus: tuple[str, ...], minus: tuple[str, ...]) -> list[tuple[int, int]]:
    terms = [(CLASS[name], 1) for name in plus] + [(CLASS[name], -1) for name in minus]
    if len(terms) > N_TERMS:
        raise ValueError(f"an event has more than {N_TERMS} terms")
    return terms + [(-1, 0)] * (N_TERMS - len(terms))


EV_CODE = np.array([e.select | e.umask << 8 for e in EVENTS], dtype=np.uint64)
EV_SCALE = np.array(
    [_TIME_SOURCES.get(e.plus[0], SCALE_PLAIN) if e.plus else SCALE_PLAIN for e in EVENTS],
    dtype=np.int64,
)
_TERMS = [
    _terms(("cycles",), ()) if e.plus and e.plus[0] in _TIME_SOURCES else _terms(e.plus, e.minus)
    for e in EVENTS
]
EV_CLASS = np.array([[c for c, _ in row] for row in _TERMS], dtype=np.int64)
EV_SIGN = np.array([[s for _, s in row] for row in _TERMS], dtype=np.int64)
EV_GROWTH = np.array(
    [0 if isinstance(e.growth, str) else e.growth for e in EVENTS], dtype=np.uint64
)
EV_COUNTERS = np.array([e.counters for e in EVENTS], dtype=np.uint64)
EV_FIXED = np.array([-1 if e.fixed is None else e.fixed for e in EVENTS], dtype=np.int64)
FIXED_EVENT = np.array(
    [next((k for k, e in enumerate(EVENTS) if e.fixed == j and e.fixed_source), -1) for j in range(4)],
    dtype=np.int64,
)

EV_INSTRUCTIONS = next(k for k, e in enumerate(EVENTS) if "instructions" in e.perf)
EV_BRANCHES = next(k for k, e in enumerate(EVENTS) if "branches" in e.perf)
LAT_SLOT = LATENCIES.index("slot")
C_INST = CLASS["inst"]
C_BRANCH = CLASS["branch"]
C_CALL = CLASS["call"]
C_TAKEN = CLASS["taken"]
C_CYCLES = CLASS["cycles"]

# --- bits -----------------------------------------------------------------------------------------------
EVENTSEL_RINGS_SHIFT = U64(16)  # USR, OS
EVENTSEL_CMASK_SHIFT = U64(24)
BYTE_ = U64(0xFF)
FIXED_SHIFT = U64(32)
GP_COUNT = U64(N_GP)
GP_BITS = U64((1 << N_GP) - 1)
FIXED_BITS = U64((1 << N_FIXED) - 1)
_LIMIT = U64(1 << 40)
_U50 = U64(50)
SLOTS_COUNTER = N_GP + 3
_BOTH = 3  # rings
_DOUBLED = 4  # of `rings`: the injected bug of fixed counter 0


@jit(inline=True)
def class_total(core, c, rings):
    """Running total of class `c` over the CPL classes in `rings` (1 CPL 0, 2 CPL > 0, 3 both)."""
    s = ZERO
    if rings & 1 != 0:
        s += core.total[0, c]
    if rings & 2 != 0:
        s += core.total[1, c]
    return s


@jit()
def _miscounted(core, event, rings, s):
    # What injected bugs make of an event's total.
    if event == EV_BRANCHES:
        if core.inject & mutants.I_CALL != ZERO:
            return s - class_total(core, C_CALL, rings)
        if core.inject & mutants.I_UNTAKEN != ZERO:
            return class_total(core, C_TAKEN, rings)
    if event == EV_INSTRUCTIONS and core.inject & mutants.I_MORE_INSTRUCTIONS != ZERO:
        return s + s // _U50
    return s + s if rings & _DOUBLED != 0 else s


@jit()
def _scaled(core, scale, time):
    """Unhalted time (uint64, 1/16 cycle) in the unit of a time event."""
    if scale == SCALE_REF:
        return ticks(time, core.tsc_num, core.tsc_den)
    if scale == SCALE_XCLK:
        return ticks(time, core.xclk_num, core.xclk_den)
    if scale == SCALE_SLOTS:
        return time // U64(core.latency[LAT_SLOT])
    return time >> U4


@jit()
def event_total(core, event, rings):
    """Running total of an event, in its own unit, uint64 modulo 2**64."""
    if event < 0:
        return ZERO
    scale = EV_SCALE[event]
    if scale != SCALE_PLAIN:
        time = class_total(core, C_CYCLES, rings)
        return _scaled(core, scale, time)
    s = ZERO
    for k in range(N_TERMS):
        c = EV_CLASS[event, k]
        if c < 0:
            break
        v = class_total(core, c, rings)
        if EV_SIGN[event, k] > 0:
            s += v
        else:
            s -= v
    if core.inject != ZERO:
        s = _miscounted(core, event, rings, s)
    return s


@jit(inline=True)
def counter_mask(core, i):
    """All ones over the width of counter i."""
    return core.pmu.gp_mask if i < N_GP else core.pmu.fixed_mask


@jit(inline=True)
def is_armed(core, i):
    """Whether counter i counts now."""
    return (core.pmu.armed >> U64(i)) & ONE != ZERO


@jit()
def counter_value(core, i):
    """What RDPMC of counter i (fixed j is N_GP + j) gives now."""
    pmu = core.pmu
    v = pmu.ctr_base[i]
    if is_armed(core, i) and pmu.cmask[i] == 0:
        v = v + (event_total(core, pmu.event[i], pmu.rings[i]) - pmu.snap[i])
    return v & counter_mask(core, i)


# --- per-cycle counting: CMASK, INV, EDGE ---------------------------------------------------------------
# A counter's clock is the unhalted time of the rings that it counts, in whole cycles: so a condition and
# its inverse always add up to the unhalted cycles of the same rings. Time that does not match (another
# ring, HLT) is no cycle, and for EDGE the condition is not met in it: CPU_CLK_UNHALTED.RING0_TRANS is
# cycles with OS, CMASK = 1 and EDGE.
@jit()
def _cycles_end(pmu, i, cycles, events):
    # `cycles` whole cycles end, each with `events` events in it.
    if cycles <= 0:
        return
    met = 1 if events >= U64(pmu.cmask[i]) else 0
    if pmu.invert[i] != 0:
        met = 1 - met
    if pmu.edge[i] != 0:
        if met == 1 and pmu.cyc_last[i] == 0:
            pmu.ctr_base[i] += ONE
    elif met == 1:
        pmu.ctr_base[i] += U64(cycles)
    pmu.cyc_last[i] = met


@jit()
def _time_cycles(core, i, scale, first, end):
    # Time events happen in every cycle: cycles `first` to `end` - 1.
    pmu = core.pmu
    if scale == SCALE_CYCLES or scale == SCALE_SLOTS:
        per_cycle = _scaled(core, scale, U64(16))
        _cycles_end(pmu, i, end - first, per_cycle)
        return
    for k in range(first, end):
        before = _scaled(core, scale, U64(k) << U4)
        _cycles_end(pmu, i, 1, _scaled(core, scale, U64(k + 1) << U4) - before)


@jit()
def _step_cycles(core, i):
    """Evaluate counter i cycle by cycle up to now. Modifies core.pmu."""
    pmu = core.pmu
    rings = pmu.rings[i]
    now = np.int64(class_total(core, C_CYCLES, rings))
    if core.t - pmu.cyc_at[i] != now - pmu.cyc_time[i]:
        pmu.cyc_last[i] = 0
    pmu.cyc_at[i] = core.t
    if now == pmu.cyc_time[i]:
        return
    cycle = pmu.cyc_time[i] >> 4
    pmu.cyc_time[i] = now
    event = pmu.event[i]
    if EV_SCALE[event] != SCALE_PLAIN:
        _time_cycles(core, i, EV_SCALE[event], cycle, now >> 4)
        return
    total = event_total(core, event, rings)
    grown = total - pmu.cyc_snap[i]
    # What retires at the very end of a cycle belongs to it.
    retire = (now - 1) >> 4
    if retire > cycle:
        _cycles_end(pmu, i, 1, pmu.cyc_sum[i])
        _cycles_end(pmu, i, retire - cycle - 1, ZERO)
        pmu.cyc_sum[i] = ZERO
    pmu.cyc_sum[i] += grown
    if now >> 4 > retire:
        _cycles_end(pmu, i, 1, pmu.cyc_sum[i])
        pmu.cyc_sum[i] = ZERO
    pmu.cyc_snap[i] = total


# --- overflow -------------------------------------------------------------------------------------------
# A PMI's way has two parts, each with a time of its own: from the overflow to its message to the LVT entry,
# which decides then, by what it holds then; and from there to the core. On each part one is under way at a
# time: what comes after it on the same part is the same interrupt, for GLOBAL_STATUS says of how many
# overflows. NMIs and vectors have different latches in the core, so neither waits for the other.
@jit()
def _pmi_next(core):
    pmu = core.pmu
    pmu.pmi_at = min(pmu.message_at, min(pmu.flight_at[PMI_NMI], pmu.flight_at[PMI_FIXED]))


@jit()
def _pmi_latch(core, way):
    # The core gets it: from now on it is taken as soon as it can be.
    pmu = core.pmu
    pmu.latched_whose[way] |= pmu.flight_whose[way]
    pmu.flight_at[way] = NEVER
    pmu.flight_whose[way] = ZERO
    if way == PMI_NMI:
        core.nmi_pending = 1
    else:
        lapic_set_irr(core.lapic, pmu.flight_vector)


@jit()
def _pmi_message(core, E, at, whose):
    # The message is there at the time `at`: LVTPC says what becomes of it.
    pmu = core.pmu
    lvt = core.lapic.lvt[LVT_PMI]
    sent = lapic_lvt_message(core.lapic, LVT_PMI)
    emit(E, core.t, TR_PMI_RAISE, core.rip, lvt, pmu.global_status, U64(sent))
    if sent == LVT_DROPPED:
        if whose >> U32 != ZERO:
            core.stats.pmis_lost += ONE
        return
    if core.inject & mutants.I_NO_LVTPC_MASK != ZERO or pmu.masks_lvtpc == 0:
        core.lapic.lvt[LVT_PMI] &= ~msr_index.APIC_LVT_MASKED
    core.stats.pmis_hw += ONE
    if core.vmx.root == 0:
        core.stats.pmis += ONE
    way = PMI_NMI if sent == LVT_NMI else PMI_FIXED
    vector = np.int64(lvt & BYTE)
    if way == PMI_FIXED and pmu.flight_at[way] != NEVER and pmu.flight_vector != vector:
        _pmi_latch(core, way)  # another vector is another interrupt
    pmu.flight_whose[way] |= whose
    if way == PMI_FIXED:
        pmu.flight_vector = vector
    if pmu.flight_at[way] == NEVER:
        pmu.flight_at[way] = later(at, pmu.skid_recognition)
    if pmu.flight_at[way] <= core.t:
        _pmi_latch(core, way)


@jit()
def pmi_arrives(core, E):
    """Let a PMI that is due by now go on: to the LVT entry, to the core. Modifies core."""
    pmu = core.pmu
    if pmu.message_at <= core.t:
        at, whose = pmu.message_at, pmu.message_whose
        pmu.message_at = NEVER
        pmu.message_whose = ZERO
        _pmi_message(core, E, at, whose)
    for way in range(N_PMI):
        if pmu.flight_at[way] <= core.t:
            _pmi_latch(core, way)
    _pmi_next(core)


@jit()
def pmi_reset(core):
    """No PMI is under way, nor waits. Modifies core.pmu."""
    pmu = core.pmu
    pmu.pmi_at = NEVER
    pmu.message_at = NEVER
    pmu.message_whose = ZERO
    for way in range(N_PMI):
        pmu.flight_at[way] = NEVER
        pmu.flight_whose[way] = ZERO
        pmu.latched_whose[way] = ZERO


@jit()
def pmi_taken(core, way):
    """The core takes what it has got on this way (PMI_*): whose it was. Modifies core.pmu."""
    whose = core.pmu.latched_whose[way]
    core.pmu.latched_whose[way] = ZERO
    return whose


@jit()
def pmi_served(core, whose):
    """These owners have looked after every overflow so far: what is under way is no news to them."""
    pmu = core.pmu
    keep = ~(whose | whose << U32)
    pmu.message_whose &= keep
    for way in range(N_PMI):
        pmu.flight_whose[way] &= keep
        pmu.latched_whose[way] &= keep


@jit()
def raise_pmi(core, E):
    """Ask for a PMI: what DEBUGCTL freezes stops, and the local APIC will raise what LVTPC says then."""
    pmu = core.pmu
    if pmu.debugctl & msr_index.DEBUGCTLMSR_FREEZE_LBRS_ON_PMI != ZERO and core.lbr.kind != 0:
        if pmu.version >= 4:
            pmu.global_status |= msr_index.GLOBAL_STATUS_LBRS_FROZEN  # SDM 3B 20.2.4.1
        else:
            pmu.debugctl &= ~msr_index.DEBUGCTLMSR_LBR  # SDM 3B 17.4.7
    if pmu.debugctl & msr_index.DEBUGCTLMSR_FREEZE_PERFMON_ON_PMI != ZERO:
        if pmu.version >= 4:
            # SDM 3B 20.2.4.1: streamlined freeze
            pmu.global_status |= msr_index.GLOBAL_STATUS_COUNTERS_FROZEN
        else:
            pmu.global_ctrl = ZERO
    whose = pmu.whose
    if core.lapic.lvt[LVT_PMI] & msr_index.APIC_LVT_MASKED == ZERO:
        whose |= whose << U32
    if pmu.skid_message == 0:
        _pmi_message(core, E, core.t, whose)
    else:
        pmu.message_whose |= whose
        if pmu.message_at == NEVER:
            pmu.message_at = later(core.t, pmu.skid_message)
    _pmi_next(core)


@jit(inline=True)
def status_index(i):
    """The bit of counter i in GLOBAL_STATUS, GLOBAL_CTRL and PEBS_ENABLE."""
    return U64(i) if i < N_GP else U64(i - N_GP) + FIXED_SHIFT


@jit()
def _overflow(core, E, i):
    pmu = core.pmu
    index = status_index(i)
    core.stats.overflows += ONE
    if (pmu.pebs_enable >> index) & ONE != ZERO:
        pmu.pebs_armed |= ONE << index
        emit(E, core.t, TR_OVERFLOW, core.rip, index, pmu.global_status, ZERO)
        return
    if pmu.version >= 2 and sets_status(core, i):
        pmu.global_status |= ONE << index
        if i == SLOTS_COUNTER and core.metrics.rings != 0:
            # Its own counters have overflowed too.
            pmu.global_status |= msr_index.GLOBAL_STATUS_PERF_METRICS_OVF
    emit(E, core.t, TR_OVERFLOW, core.rip, index, pmu.global_status, ZERO)
    if i < N_GP:
        wants = pmu.eventsel[i] & msr_index.ARCH_PERFMON_EVENTSEL_INT != ZERO
    else:
        wants = (pmu.fixed_ctr_ctrl >> U64(4 * (i - N_GP))) & msr_index.INTEL_FIXED_0_ENABLE_PMI != ZERO
    if raises_pmi(core, i, wants):
        raise_pmi(core, E)


@jit()
def _settle(core, i):
    """Bring base of an armed counter up to now; report an overflow. Modifies core.pmu."""
    pmu = core.pmu
    if pmu.cmask[i] != 0:
        _step_cycles(core, i)
        v = pmu.ctr_base[i]
    else:
        total = event_total(core, pmu.event[i], pmu.rings[i])
        v = pmu.ctr_base[i] + (total - pmu.snap[i])
        pmu.snap[i] = total
    mask = counter_mask(core, i)
    pmu.ctr_base[i] = v & mask
    return v > mask


@jit()
def pmu_check(core, E):
    """Report the overflow of every armed counter that has passed its width, and PMIs due. Modifies core."""
    pmu = core.pmu
    if pmu.pmi_at <= core.t:
        pmi_arrives(core, E)
    armed = pmu.armed
    if armed == ZERO:
        return
    frozen = pmu.global_status & msr_index.GLOBAL_STATUS_COUNTERS_FROZEN
    enables = pmu.global_ctrl
    for i in range(N_CTR):
        if (armed >> U64(i)) & ONE != ZERO:
            mask = counter_mask(core, i)
            if pmu.cmask[i] != 0:
                _step_cycles(core, i)
                v = pmu.ctr_base[i]
            else:
                v = pmu.ctr_base[i] + (event_total(core, pmu.event[i], pmu.rings[i]) - pmu.snap[i])
            if v > mask:
                _settle(core, i)
                _overflow(core, E, i)
            elif v == mask and core.inject & mutants.I_EARLY != ZERO:
                pmu.global_status |= ONE << status_index(i)
    if pmu.global_status & msr_index.GLOBAL_STATUS_COUNTERS_FROZEN != frozen or pmu.global_ctrl != enables:
        pmu_update(core, E)


@jit()
def event_row(pmu, code):
    """The row of the events table with this EVENT and UMASK (uint64) on this CPU, -1 if it has none."""
    for k in range(N_EVENTS):
        if EV_CODE[k] == code and (pmu.event_mask >> U64(k)) & ONE != ZERO:
            return k
    return -1


@jit()
def _configure(core, i):
    """Read what counter i is to count off its selector; it is not armed now. Modifies core.pmu."""
    pmu = core.pmu
    pmu.cmask[i] = 0
    pmu.invert[i] = 0
    pmu.edge[i] = 0
    if i < N_GP:
        sel = pmu.eventsel[i]
        rings = np.int64((sel >> EVENTSEL_RINGS_SHIFT) & U3)  # USR below OS
        pmu.rings[i] = (rings >> 1) | ((rings & 1) << 1)
        if core.inject & mutants.I_OS != ZERO:
            pmu.rings[i] |= 1
        pmu.event[i] = -1
        if i < pmu.gp and sel & msr_index.ARCH_PERFMON_EVENTSEL_ENABLE != ZERO:
            event = event_row(pmu, sel & msr_index.INTEL_ARCH_EVENT_MASK)
            if event >= 0 and (EV_COUNTERS[event] >> U64(i)) & ONE != ZERO:
                pmu.event[i] = event
            if core.inject & mutants.I_CMASK == ZERO:
                pmu.cmask[i] = np.int64((sel >> EVENTSEL_CMASK_SHIFT) & BYTE_)
            # SDM 3B 20.2.1.1: INV means something only beside a CMASK; EDGE alone counts 0 to 1
            if pmu.cmask[i] != 0 and sel & msr_index.ARCH_PERFMON_EVENTSEL_INV != ZERO:
                pmu.invert[i] = 1
            if sel & msr_index.ARCH_PERFMON_EVENTSEL_EDGE != ZERO:
                pmu.edge[i] = 1
                pmu.cmask[i] = max(pmu.cmask[i], 1)
    else:
        j = i - N_GP
        pmu.rings[i] = np.int64((pmu.fixed_ctr_ctrl >> U64(4 * j)) & U3)
        pmu.event[i] = FIXED_EVENT[j] if j < pmu.fixed else -1
        if j == 0 and pmu.rings[i] != 0 and core.inject & mutants.I_FIXED0_DOUBLE != ZERO:
            pmu.rings[i] |= _DOUBLED
    bit = ONE << U64(i)
    if pmu.event[i] >= 0 and pmu.rings[i] != 0:
        pmu.local |= bit
    else:
        pmu.local &= ~bit


@jit()
def _metrics_follow(core):
    # PERF_METRICS runs while fixed counter 3 and its own enable do.
    pmu = core.pmu
    if is_armed(core, SLOTS_COUNTER) and pmu.global_ctrl & msr_index.GLOBAL_CTRL_EN_PERF_METRICS != ZERO:
        metrics_start(core, pmu.rings[SLOTS_COUNTER] & _BOTH)
    else:
        metrics_stop(core)


@jit()
def _arm(core, i):
    pmu = core.pmu
    pmu.armed |= ONE << U64(i)
    total = event_total(core, pmu.event[i], pmu.rings[i])
    pmu.snap[i] = total
    if pmu.cmask[i] != 0:
        pmu.stepping += 1
        pmu.snap[i] = ZERO
        pmu.cyc_snap[i] = total
        pmu.cyc_time[i] = np.int64(class_total(core, C_CYCLES, pmu.rings[i]))
        pmu.cyc_at[i] = core.t
    if i == SLOTS_COUNTER:
        _metrics_follow(core)


@jit()
def _disarm(core, E, i):
    pmu = core.pmu
    passed = _settle(core, i)
    pmu.armed &= ~(ONE << U64(i))
    pmu.snap[i] = ZERO
    if pmu.cmask[i] != 0:
        pmu.stepping -= 1
        pmu.cyc_time[i] = 0
        pmu.cyc_at[i] = 0
        pmu.cyc_snap[i] = ZERO
        pmu.cyc_sum[i] = ZERO
        pmu.cyc_last[i] = 0
    if passed:
        _overflow(core, E, i)
    if i == SLOTS_COUNTER:
        _metrics_follow(core)


@jit()
def pmu_update(core, E):
    """Arm and disarm counters as the enables now say. Call after GLOBAL_CTRL or CTR_FRZ changed.

    Counters whose enables stay the same are left alone. Modifies core.pmu.
    """
    pmu = core.pmu
    for _ in range(3):
        want = pmu.local
        if pmu.version >= 2 and core.inject & mutants.I_GLOBAL_CTRL == ZERO:
            enables = pmu.global_ctrl
            want &= (enables & GP_BITS) | ((enables >> FIXED_SHIFT) & FIXED_BITS) << GP_COUNT
        if pmu.version >= 4 and pmu.global_status & msr_index.GLOBAL_STATUS_COUNTERS_FROZEN != ZERO:
            want = ZERO
        change = pmu.armed ^ want
        if change == ZERO:
            return
        for i in range(N_CTR):
            if (change >> U64(i)) & ONE != ZERO:
                if (want >> U64(i)) & ONE != ZERO:
                    _arm(core, i)
                else:
                    _disarm(core, E, i)
        # closing a window may meet an overflow whose PMI freezes the rest: look again


@jit()
def counts_nothing(core, i, selector):
    """Whether a selector turns general-purpose counter i on for an event that it cannot count."""
    if selector & msr_index.ARCH_PERFMON_EVENTSEL_ENABLE == ZERO:
        return False
    row = event_row(core.pmu, selector & msr_index.INTEL_ARCH_EVENT_MASK)
    return row < 0 or (EV_COUNTERS[row] >> U64(i)) & ONE == ZERO


@jit()
def pmu_write_eventsel(core, E, i, value):
    """WRMSR to IA32_PERFEVTSELx. Modifies core.pmu."""
    pmu = core.pmu
    if (core.vmx.root == 0 or core.vmx.nonroot != 0) and counts_nothing(core, i, value):
        pmu.uncounted[i] = value  # for the report: the host's perf tells of its own events
    if pmu.eventsel[i] == value:
        return
    if is_armed(core, i):
        _disarm(core, E, i)
    pmu.eventsel[i] = value
    off = value & msr_index.ARCH_PERFMON_EVENTSEL_ENABLE == ZERO
    if off and core.inject & mutants.I_OFF_CLEARS != ZERO:
        pmu.ctr_base[i] = ZERO
    _configure(core, i)
    pmu_update(core, E)


@jit()
def pmu_write_fixed_ctr_ctrl(core, E, value):
    """WRMSR to IA32_FIXED_CTR_CTRL: counters whose four bits stay the same are left alone."""
    pmu = core.pmu
    change = pmu.fixed_ctr_ctrl ^ value
    if change == ZERO:
        return
    for j in range(N_FIXED):
        if (change >> U64(4 * j)) & msr_index.INTEL_FIXED_BITS_MASK != ZERO and is_armed(core, N_GP + j):
            _disarm(core, E, N_GP + j)
    pmu.fixed_ctr_ctrl = value
    for j in range(N_FIXED):
        if (change >> U64(4 * j)) & msr_index.INTEL_FIXED_BITS_MASK != ZERO:
            _configure(core, N_GP + j)
    pmu_update(core, E)


@jit()
def pmu_write_counter(core, i, value):
    """Load counter i, running or not, with a value of its width. Modifies core.pmu."""
    pmu = core.pmu
    if core.inject & mutants.I_RUNNING_WRITE != ZERO and is_armed(core, i):
        return
    pmu.ctr_base[i] = value & counter_mask(core, i)
    if is_armed(core, i) and pmu.cmask[i] == 0:
        pmu.snap[i] = event_total(core, pmu.event[i], pmu.rings[i])


@jit()
def pmu_set_global_ctrl(core, E, value):
    """Load IA32_PERF_GLOBAL_CTRL, by WRMSR or by VM entry and exit."""
    if core.pmu.global_ctrl != value:
        core.pmu.global_ctrl = value
        pmu_update(core, E)
        _metrics_follow(core)


@jit()
def pmu_horizon(core):
    """The time up to which no armed counter can have overflowed unseen, given that the CPL stays.

    Returns int64 in 1/16 cycle; an overflow may fall exactly on the last instruction before it.
    """
    pmu = core.pmu
    if pmu.stepping != 0:
        return core.t + 1
    limit = NEVER
    if pmu.armed == ZERO:
        return limit
    ring = 1 if core.cpl == 0 else 2
    slot = core.latency[LAT_SLOT]
    for i in range(N_CTR):
        if (pmu.armed >> U64(i)) & ONE == ZERO or pmu.rings[i] & ring == 0:
            continue
        event = pmu.event[i]
        left = counter_mask(core, i) - counter_value(core, i) + ONE
        if core.inject != ZERO:
            left = distance(core, left)
        if left >= _LIMIT:
            continue
        scale = EV_SCALE[event]
        if scale == SCALE_PLAIN:
            growth = EV_GROWTH[event]
            at = core.t + np.int64((left + growth - ONE) // growth) * slot
        elif scale == SCALE_SLOTS:
            at = core.t + np.int64(left - ONE) * slot + 1
        elif scale == SCALE_REF or scale == SCALE_XCLK:
            time = class_total(core, C_CYCLES, pmu.rings[i])
            due = _scaled(core, scale, time) + left
            if scale == SCALE_REF:
                at = time_of_tick(due, core.tsc_num, core.tsc_den)
            else:
                at = time_of_tick(due, core.xclk_num, core.xclk_den)
            at = later(core.t, at - np.int64(time))
        else:
            time = class_total(core, C_CYCLES, pmu.rings[i])
            at = core.t + np.int64((left << U4) - (time & U64(15)))
        limit = min(limit, at)
    return limit


@jit()
def pmu_charge(core, E, cycles, insns, branches):
    """Host work: retire `insns` instructions with `branches` branches at CPL 0 in `cycles` cycles.

    Whatever GLOBAL_CTRL and the selectors enable counts them, overflows and raises its PMI.
    Modifies core.
    """
    time = cycles << 4
    core.t += time
    core.total[0, C_CYCLES] += U64(time)
    core.total[0, C_INST] += insns
    core.total[0, C_BRANCH] += branches
    core.stats.host_time += time
    core.stats.host_insns += insns
    core.stats.host_branches += branches
    # A switch of the PMU context comes here a hundred times, mostly with every counter off.
    if core.pmu.armed != ZERO or core.pmu.pmi_at <= core.t:
        pmu_check(core, E)


@jit()
def pmu_reset(core):
    """Power-up state: all 0 but GLOBAL_CTRL, which enables every GP counter (SDM 3A table 10-1)."""
    pmu = core.pmu
    for i in range(N_GP):
        pmu.eventsel[i] = ZERO
        pmu.uncounted[i] = ZERO
    for i in range(N_CTR):
        pmu.ctr_base[i] = ZERO
        pmu.snap[i] = ZERO
        pmu.event[i] = -1
        pmu.rings[i] = 0
    pmu.local = ZERO
    pmu.fixed_ctr_ctrl = ZERO
    pmu.global_status = ZERO
    pmu.global_ctrl = (ONE << U64(pmu.gp)) - ONE if pmu.version >= 2 else ZERO
    if core.inject & mutants.I_RESET_TO_0 != ZERO:
        pmu.global_ctrl = ZERO
    pmu.armed = ZERO
    pmu.stepping = 0
    pmu.whose = ONE
    pmi_reset(core)


