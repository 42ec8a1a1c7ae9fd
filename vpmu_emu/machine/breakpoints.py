"""Debug registers: where an instruction, an access or a port is waited for, and which of the four waited.

SDM 3B chapter 18. While any is enabled the engine goes one instruction at a time; else nobody asks.
A page in which one waits keeps its translations, under a tag that no access matches: so every access of it
takes the slow way, where it is looked at, and costs the same time. What an instruction met is noted in
`E.debug_hits` and becomes `core.pending_debug` once it is done.
"""

from __future__ import annotations

from vpmu_emu._jit import jit
from vpmu_emu.machine.processor_flags import X86_CR4_DE
from vpmu_emu.machine.state import N_DR, N_TLB
from vpmu_emu.machine.u64 import ONE, PAGE_BASE, U2, U3, U8, U64, ZERO

DR6_RESET = U64(0xFFFF_0FF0)  # what reads as 1 whatever is written: no RTM, no bus lock detection
DR7_RESET = U64(0x400)
DR6_WRITABLE = U64(0xE00F)  # B0-B3 BD BS BT
DR7_WRITABLE = U64(0xFFFF_23FF)
DR6_TRAPS = U64(0xF)
DR6_BD = U64(1 << 13)
DR6_BS = U64(1 << 14)
DR7_ENABLED = U64(0xFF)  # L0 G0 to L3 G3
DR7_GD = U64(1 << 13)
WATCHED = U2  # in a TLB tag: a breakpoint waits somewhere in the page
_FIRST_TYPE = U64(16)  # R/W0 and LEN0; four bits for each
_EXECUTE, _WRITE, _IO, _ACCESS = ZERO, ONE, U2, U3


@jit()
def debug_on(core):
    """Whether any breakpoint is enabled."""
    return core.dr7 & DR7_ENABLED != ZERO


@jit()
def _enabled(core, k):
    return (core.dr7 >> U64(2 * k)) & U3 != ZERO


@jit()
def _type(core, k):
    return (core.dr7 >> (_FIRST_TYPE + U64(4 * k))) & U3


@jit()
def _length(core, k):
    # LEN: 1, 2, 8, 4 bytes
    n = (core.dr7 >> (_FIRST_TYPE + U64(4 * k + 2))) & U3
    return U8 if n == U2 else n + ONE


@jit()
def _meets(core, k, at, size):
    # Of DRk the bits below the length do not count (SDM 3B 18.2.5).
    length = _length(core, k)
    start = core.dr[k] & ~(length - ONE)
    return start - at < size or at - start < length


@jit()
def code_hits(core, rip):
    """B bits of the breakpoints on the instruction at `rip`: its first byte, and LEN says one."""
    hits = ZERO
    for k in range(N_DR):
        if _enabled(core, k) and core.dr[k] == rip and _type(core, k) == _EXECUTE:
            if _length(core, k) == ONE:
                hits |= ONE << U64(k)
    return hits


@jit()
def note_access(core, E, va, size, wrote):
    """Note breakpoints on data in `size` bytes at va, which are read, or with `wrote` 1 written."""
    for k in range(N_DR):
        kind = _type(core, k)
        if _enabled(core, k) and (kind == _ACCESS or (kind == _WRITE and wrote != 0)):
            if _meets(core, k, va, size):
                E.debug_hits |= ONE << U64(k)


@jit()
def note_port(core, E, port, size):
    """Note breakpoints on `size` ports from `port` on; without CR4.DE there are none."""
    if core.cr4 & X86_CR4_DE == ZERO:
        return
    for k in range(N_DR):
        if _enabled(core, k) and _type(core, k) == _IO and _meets(core, k, port, size):
            E.debug_hits |= ONE << U64(k)


@jit()
def page_tag(core, page):
    """What the TLB's tag of this page is (its linear address)."""
    if debug_on(core):
        for k in range(N_DR):
            if _enabled(core, k) and core.dr[k] & PAGE_BASE == page:
                return page | WATCHED
    return page


@jit()
def _retag(core):
    for ring in range(2):
        for i in range(N_TLB):
            tag = core.tlb_read[ring, i]
            if tag & ONE == ZERO:
                core.tlb_read[ring, i] = page_tag(core, tag & PAGE_BASE)
            tag = core.tlb_write[ring, i]
            if tag & ONE == ZERO:
                core.tlb_write[ring, i] = page_tag(core, tag & PAGE_BASE)


@jit()
def set_dr(core, n, value):
    """Load DRn, n 0 to 3, 6 or 7. Modifies core."""
    before = debug_on(core)
    if n == 6:
        core.dr6 = (value & DR6_WRITABLE) | DR6_RESET
    elif n == 7:
        core.dr7 = (value & DR7_WRITABLE) | DR7_RESET
    else:
        core.dr[n & 3] = value
    if n != 6 and (before or debug_on(core)):
        _retag(core)


@jit()
def get_dr(core, n):
    """DRn, n 0 to 3, 6 or 7."""
    if n == 6:
        return core.dr6
    if n == 7:
        return core.dr7
    return core.dr[n & 3]


@jit()
def debug_reset(core):
    """RESET and INIT. Modifies core."""
    for k in range(N_DR):
        core.dr[k] = ZERO
    core.dr6 = DR6_RESET
    core.pending_debug = ZERO
    set_dr(core, 7, DR7_RESET)


@jit()
def debug_delivered(core, bits):
    """#DB for `bits` (as in DR6) goes to its handler: DR6 says why, and debug registers can be had again.

    B0 to B3 are those of this exception, the others stay until software clears them (SDM 3B 18.2.3).
    """
    core.dr6 = (core.dr6 & ~DR6_TRAPS) | bits
    core.dr7 &= ~DR7_GD
