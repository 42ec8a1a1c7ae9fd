"""Caches are tags that decide time and LLC events; what hits L1 changes nothing, so the loop asks L1 only.

L1, L2 and the core's part of the LLC are direct-mapped and filled together. The misses of L1 train the
stream prefetcher: two of them at most `REACH` lines apart make a stream, each further one at the same
distance continues it, across pages too (the streamer and the next-page prefetcher together). A stream asks
for `prefetch_l2` lines ahead in L2 and `prefetch_llc` in the LLC, at most `DEGREE` of each at a time. What
it asks of L2 is a request to the LLC and counts as one; what it asks of the LLC counts at the memory
controller only (LONGEST_LAT_CACHE leaves prefetches to the L3 out). Lines are there as soon as asked for.
"""

from __future__ import annotations

import numpy as np

from vpmu_emu._jit import jit
from vpmu_emu.machine.state import CLASS, N_L1, N_STREAMS
from vpmu_emu.machine.u64 import ONE, U4, U8, U12, U64
from vpmu_emu.tables.cpus import LATENCIES

_U6 = U64(6)
L1_INDEX = U64(N_L1 - 1)
_STREAM_INDEX = U64(N_STREAMS - 1)
C_LLCREF = CLASS["llcref"]
C_LLCMISS = CLASS["llcmiss"]
C_FETCHED = CLASS["fetched"]
C_MEMORY = CLASS["memory"]
LAT_L2_HIT = LATENCIES.index("l2_hit")
LAT_LLC_REF = LATENCIES.index("llc_ref")
LAT_LLC_MISS = LATENCIES.index("llc_miss")
REACH = 4
DEGREE = 2
_NO_TAG = np.uint16(0)
_SPREAD = U64(0x9E3779B1)


@jit()
def _l2_tag(core, line):
    return np.uint16((line >> core.l2_bits) + ONE)


@jit()
def _llc_tag(core, line):
    return np.uint16((line >> core.llc_bits) + ONE)


@jit()
def _slot(line, bits):
    # In place of the ways of silicon: buffers that lie a multiple of the cache's size apart, and streams
    # through them, do not meet in it.
    return (line + (line >> bits) * _SPREAD) & ((ONE << bits) - ONE)


@jit()
def _fill_llc(core, line, row):
    """`line` is in the LLC afterwards; True if it was before. Modifies core.llc, core.total."""
    slot = _slot(line, core.llc_bits)
    tag = _llc_tag(core, line)
    if core.llc[slot] == tag:
        return True
    core.llc[slot] = tag
    core.total[row, C_FETCHED] += ONE
    return False


@jit()
def _fill_l2(core, line, row):
    """`line` is in L2 afterwards; the latency row of where it came from. Modifies L2, LLC, core.total."""
    slot = _slot(line, core.l2_bits)
    tag = _l2_tag(core, line)
    if core.l2[slot] == tag:
        return LAT_L2_HIT
    core.l2[slot] = tag
    core.total[row, C_LLCREF] += ONE
    if _fill_llc(core, line, row):
        return LAT_LLC_REF
    core.total[row, C_LLCMISS] += ONE
    return LAT_LLC_MISS


@jit(inline=True)
def _stream_of(line):
    # pages that are far apart, as source and destination of a copy, rarely share a stream
    page = line >> _U6
    return (page ^ page >> U4 ^ page >> U8 ^ page >> U12) & _STREAM_INDEX


@jit()
def _train(core, line, row):
    """L1 misses `line`: find its stream, run ahead of it. Modifies the streams, L2, LLC, core.total."""
    slot = _stream_of(line)
    here = np.int64(line)
    step = here - core.stream_line[slot]
    near = 0
    far = 0
    if step == 0 or step > REACH or step < -REACH:
        step = 0
    elif step == core.stream_step[slot]:
        near = max(core.stream_near[slot] - 1, 0)
        far = max(core.stream_far[slot] - 1, 0)
    if step != 0:
        for _ in range(DEGREE):
            ahead = here + step * (far + 1)
            if far < core.prefetch_llc and ahead >= 0:
                far += 1
                _fill_llc(core, U64(ahead), row)
        for _ in range(DEGREE):
            ahead = here + step * (near + 1)
            if near < core.prefetch_l2 and ahead >= 0:
                near += 1
                _fill_l2(core, U64(ahead), row)
        # the next miss looks for the stream in its own page
        slot = _stream_of(U64(max(here + step, 0)))
    core.stream_line[slot] = here
    core.stream_step[slot] = step
    core.stream_near[slot] = near
    core.stream_far[slot] = far


@jit(apart=True)
def cache_miss(core, line):
    """L1 does not hold `line`: fill it from where it is, return the delay in 1/16 cycle."""
    row = 0 if core.cpl == 0 else 1
    core.l1[line & L1_INDEX] = np.uint32(line + ONE)
    delay = core.latency[_fill_l2(core, line, row)]
    core.total[row, C_MEMORY] += U64(delay)
    if core.prefetch_llc != 0:
        _train(core, line, row)
    return delay


@jit()
def cache_flush_line(core, line):
    """CLFLUSH: drop `line` from every level."""
    if core.l1[line & L1_INDEX] == np.uint32(line + ONE):
        core.l1[line & L1_INDEX] = np.uint32(0)
    slot = _slot(line, core.l2_bits)
    if core.l2[slot] == _l2_tag(core, line):
        core.l2[slot] = _NO_TAG
    slot = _slot(line, core.llc_bits)
    if core.llc[slot] == _llc_tag(core, line):
        core.llc[slot] = _NO_TAG


@jit()
def touch(core, p):
    """One data access at host offset p. Modifies the caches, core.t and the totals of misses."""
    line = p >> _U6
    if core.l1[line & L1_INDEX] != np.uint32(line + ONE):
        core.t += cache_miss(core, line)
