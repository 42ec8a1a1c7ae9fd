"""Time runs in sixteenths of a core cycle; every other clock is an exact fraction of it, rounded down.

A clock of num/den ticks per core cycle has ticked floor(time * num / (16 * den)) times. So no clock drifts,
and each of its ticks has a first moment: a deadline is met at the first time at which the clock shows it.
Both directions divide first, so that nothing overflows. All clocks run through halts; what counts unhalted
cycles only is for the PMU to know.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vpmu_emu._jit import jit
from vpmu_emu.machine.state import BEYOND
from vpmu_emu.machine.u64 import ONE, U4, U64, ZERO

_LAST = U64(BEYOND)


@jit()
def ticks(time, num, den):
    """How often a clock of num/den (uint64) per core cycle has ticked at `time` (uint64, 1/16 cycle)."""
    unit = den << U4
    return time // unit * num + time % unit * num // unit


@jit()
def time_of_tick(n, num, den):
    """The first time (int64) at which it has ticked `n` (uint64) times; BEYOND if that is too far."""
    unit = den << U4
    whole = n // num
    if whole >= _LAST // unit:
        return BEYOND
    return np.int64(whole * unit + (n % num * unit + num - ONE) // num)


@jit()
def later(t, span):
    """`span` after `t` (both int64, not negative); BEYOND if that is too far."""
    return t + span if span < BEYOND - t else BEYOND


@jit()
def tsc_at(core, t):
    """The TSC (uint64) of this core at time `t` (int64), before anything is added to it."""
    return ticks(U64(t), core.tsc_num, core.tsc_den)


@jit()
def time_of_tsc(core, tsc):
    """The first time (int64) at which the TSC shows `tsc` (uint64) or more; BEYOND if that is too far."""
    return time_of_tick(tsc, core.tsc_num, core.tsc_den)


@jit()
def tsc_reaching(core, t):
    """The smallest TSC that is not there before `t`: armed for it, a timer fires at `t` or just after."""
    if t <= 0:
        return ZERO
    return tsc_at(core, t - 1) + ONE


# --- plain Python -----------------------------------------------------------------------------------------
def tsc_value(core: Any, t: int) -> int:
    """tsc_at() for callers that are not compiled."""
    return t * int(core.tsc_num) // (16 * int(core.tsc_den))


def tsc_time(core: Any, tsc: int) -> int:
    """time_of_tsc() for callers that are not compiled."""
    at = -(-tsc * 16 * int(core.tsc_den) // int(core.tsc_num))
    return min(at, int(BEYOND))
