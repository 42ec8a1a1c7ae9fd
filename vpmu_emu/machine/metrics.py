"""PERF_METRICS: where the slots of fixed counter 3 went, computed when somebody reads it.

Slots are issue slots of unhalted time. Every retired instruction fills one (retiring). A misprediction
loses what `mispredict` of the CPU model says (bad speculation). Fetching and decoding take no time in this
model, so nothing is bound by the front end. All other slots are back-end bound: execution latency, and
cache misses, which level 2 calls memory bound. All of it is in the running totals of instructions, time,
mispredictions and time of misses, so metrics cost the interpreter's loop nothing. SDM 3B 20.3.9.3.
"""

from __future__ import annotations

from vpmu_emu._jit import jit
from vpmu_emu.machine.state import CLASS, METRICS_TOTALS, N_METRICS
from vpmu_emu.machine.u64 import BYTE, U64, ZERO
from vpmu_emu.tables.cpus import LATENCIES

LAT_SLOT, LAT_MISPREDICT = (
    LATENCIES.index(name) for name in ("slot", "mispredict")
)
T_CYCLES, T_INST, T_BRMISS, T_MEMORY = range(len(METRICS_TOTALS))
CLASS_OF = tuple(CLASS[name] for name in METRICS_TOTALS)
RETIRING, BAD_SPECULATION, FRONTEND, BACKEND, HEAVY, MISPREDICTS, FETCH_LATENCY, MEMORY = range(N_METRICS)
LEVEL_1 = 4  # metrics of it
_UNIT = U64(0xFF)  # all of the slots


@jit()
def _total(core, c, rings):
    v = ZERO
    if rings & 1 != 0:
        v += core.total[0, c]
    if rings & 2 != 0:
        v += core.total[1, c]
    return v


@jit()
def _since(core, k):
    m = core.metrics
    return _total(core, CLASS_OF[k], m.rings) - m.snap[k]


@jit()
def _settle(core):
    """Add what was counted since the snapshot to the shares. Modifies core.metrics."""
    m = core.metrics
    if m.rings == 0:
        return
    time = _since(core, T_CYCLES)
    slot = U64(core.latency[LAT_SLOT])
    retiring = min(_since(core, T_INST) * slot, time)
    left = time - retiring
    bad = min(_since(core, T_BRMISS) * U64(core.latency[LAT_MISPREDICT]), left)
    left -= bad
    m.time += time
    m.share[RETIRING] += retiring * _UNIT
    m.share[BAD_SPECULATION] += bad * _UNIT
    m.share[BACKEND] += left * _UNIT
    m.share[MISPREDICTS] += bad * _UNIT
    m.share[MEMORY] += min(_since(core, T_MEMORY), left) * _UNIT
    _snapshot(core)


@jit()
def _snapshot(core):
    m = core.metrics
    for k in range(len(CLASS_OF)):
        m.snap[k] = _total(core, CLASS_OF[k], m.rings)


@jit()
def metrics_start(core, rings):
    """Fixed counter 3 counts in `rings` and EN_PERF_METRICS is set. Modifies core.metrics."""
    if core.metrics.rings == 0:
        core.metrics.rings = rings
        _snapshot(core)


@jit()
def metrics_stop(core):
    """One of the two is over. Modifies core.metrics."""
    m = core.metrics
    if m.rings == 0:
        return
    _settle(core)
    m.rings = 0
    for k in range(len(CLASS_OF)):
        m.snap[k] = ZERO


@jit()
def metrics_write(core, value, slots):
    """WRMSR to PERF_METRICS while fixed counter 3 stands at `slots`: the fractions hold for all of them.

    A write to the counter alone clears the metrics: value and slots 0. Modifies core.metrics.
    """
    m = core.metrics
    m.written = value
    m.time = slots * U64(core.latency[LAT_SLOT])
    for k in range(N_METRICS):
        m.share[k] = ((value >> U64(8 * k)) & BYTE) * m.time
    if m.rings != 0:
        _snapshot(core)


@jit()
def metrics_value(core):
    """RDMSR or RDPMC of PERF_METRICS. Modifies core.metrics, but not what it stands for."""
    m = core.metrics
    _settle(core)
    if m.time == ZERO:
        return m.written
    v = ZERO
    sum_before = ZERO
    below = ZERO
    for k in range(LEVEL_1):
        # Rounding what the metrics add up to, not each of them: so the four are 255 together.
        sum_before += m.share[k]
        upto = sum_before // m.time
        v |= ((upto - below) & BYTE) << U64(8 * k)
        below = upto
    for k in range(LEVEL_1, m.count):
        v |= ((m.share[k] // m.time) & BYTE) << U64(8 * k)
    return v
