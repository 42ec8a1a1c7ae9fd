"""A linear address means what the page tables in memory say, four levels down from CR3.

SDM volume 3, 5.5: rights are the AND over the levels, execute-disable the OR; accessed bits are set on the
way of a translation that succeeds, the dirty bit by a write. CR3 = 0 stands for the identity map that the
firmware of this machine starts a program with, as if by large pages.
"""

from __future__ import annotations

import numpy as np

from vpmu_emu._jit import jit
from vpmu_emu.machine import msr_index
from vpmu_emu.machine.bus import ept_violation
from vpmu_emu.machine.physical import (
    ACCESS_FETCH,
    ACCESS_WRITE,
    NOWHERE,
    PAGE_DIRTY,
    PTE_FRAME,
    PTE_P,
    PTE_U,
    PTE_W,
    UNBACKED,
    ld64,
    physical,
    st64,
)
from vpmu_emu.machine.processor_flags import X86_CR0_WP, X86_CR4_PGE
from vpmu_emu.machine.u64 import ALL, ONE, PAGE_BASE, U2, U3, U4, U8, U12, U64, ZERO

PTE_A = U64(1 << 5)
PTE_D = U64(1 << 6)
PTE_PS = U64(1 << 7)
PTE_G = U64(1 << 8)
PTE_NX = U64(1 << 63)
PTE_PAT_LARGE = U64(1 << 12)  # the only bit below the frame of a large page that is not reserved

PF_PRESENT = ONE
PF_WRITE = U2
PF_USER = U4
PF_RESERVED = U8
PF_FETCH = U64(16)


NO_ERROR = ALL
LEFT = ALL - ONE  # as an error code: the walk left the guest
_INDEX = U64(0x1FF)


@jit(inline=True)
def identity(core):
    """Whether the firmware's identity map is in force: no program has loaded page tables yet."""
    return core.cr3 & PTE_FRAME == ZERO


@jit()
def access_error(core, access):
    """The bits of a page fault's error code that tell what kind of access it was."""
    error = PF_USER if core.cpl > 0 else ZERO
    if access == ACCESS_WRITE:
        error |= PF_WRITE
    elif access == ACCESS_FETCH and core.efer & msr_index.EFER_NX != ZERO:
        error |= PF_FETCH  # SDM 3A 5.7: reported only if execute-disable can forbid a fetch
    return error


@jit()
def _mark(M, E, at, bits):
    # The walker's own write. It does not throw decoded code away: nobody executes a page table.
    entry = ld64(M, at)
    if entry & bits != bits:
        st64(M, at, entry | bits)
        E.page_flags[at >> U12] = np.uint8(U64(E.page_flags[at >> U12]) | PAGE_DIRTY)


@jit()
def walk(core, M, E, va, access):
    """(physical address, NO_ERROR, PTE_G if global) of a canonical `va`, or (0, error code of #PF, 0).

    The error code is LEFT, and an EPT violation noted in E, if a guest's table is where its VMM has no
    memory. Sets accessed and dirty bits in the tables. Modifies memory.
    """
    error = access_error(core, access)
    table = core.cr3 & PTE_FRAME
    rights = ALL
    execute_disable = ZERO
    entry = ZERO
    offset = ZERO
    levels = 0
    for level in range(3, -1, -1):
        shift = U64(12 + 9 * level)
        gpa = table + (((va >> shift) & _INDEX) << U3)
        # With accessed and dirty flags for EPT, which KVM turns on, this is a write (SDM 3C 29.3.3.2).
        at = physical(core, M, gpa, ACCESS_WRITE)
        if at == UNBACKED and E.emulating == 0:
            ept_violation(E, gpa, ACCESS_WRITE)
            return ZERO, LEFT, ZERO
        if at == NOWHERE or at == UNBACKED:
            return ZERO, error | PF_PRESENT | PF_RESERVED, ZERO  # an open bus reads all ones
        entry = ld64(M, at)
        if entry & PTE_P == ZERO:
            return ZERO, error, ZERO
        offset = (ONE << shift) - ONE
        large = (level == 1 or level == 2) and entry & PTE_PS != ZERO
        reserved = core.pa_reserved
        if core.efer & msr_index.EFER_NX == ZERO:
            reserved |= PTE_NX
        if level == 3:
            reserved |= PTE_PS
        if large:
            reserved |= offset & PAGE_BASE & ~PTE_PAT_LARGE
        if entry & reserved != ZERO:
            return ZERO, error | PF_PRESENT | PF_RESERVED, ZERO
        E.walk[levels] = at
        levels += 1
        rights &= entry
        execute_disable |= entry & PTE_NX
        if large:
            break
        table = entry & PTE_FRAME
    denied = core.cpl > 0 and rights & PTE_U == ZERO
    if access == ACCESS_WRITE and rights & PTE_W == ZERO:
        denied = denied or core.cpl > 0 or core.cr0 & X86_CR0_WP != ZERO
    if access == ACCESS_FETCH and execute_disable != ZERO:
        denied = True
    if denied:
        return ZERO, error | PF_PRESENT, ZERO
    for k in range(levels):
        _mark(M, E, E.walk[k], PTE_A)
    if access == ACCESS_WRITE:
        _mark(M, E, E.walk[levels - 1], PTE_D)
    shared = entry & PTE_G if core.cr4 & X86_CR4_PGE != ZERO else ZERO
    return (entry & PTE_FRAME & ~offset) | (va & offset), NO_ERROR, shared
