"""Exceptions and interrupts reach a program through the IDT in its memory, or end it.

SDM volume 3, chapter 6. Delivery either happens as a whole or raises the next fault: a fault while a
contributory exception is delivered becomes #DF, one more is a triple fault.
"""

from __future__ import annotations

import numpy as np

from vpmu_emu._jit import jit
from vpmu_emu.machine import ring, state
from vpmu_emu.machine.alu import spread_flags
from vpmu_emu.machine.bus import FAULT_EPT, note_ept_violation
from vpmu_emu.machine.decode import rep_over
from vpmu_emu.machine.memory import fault, read, write
from vpmu_emu.machine.processor_flags import (
    X86_EFLAGS_AC,
    X86_EFLAGS_DF,
    X86_EFLAGS_FIXED,
    X86_EFLAGS_ID,
    X86_EFLAGS_IF,
    X86_EFLAGS_IOPL,
    X86_EFLAGS_NT,
    X86_EFLAGS_RF,
    X86_EFLAGS_STATUS,
    X86_EFLAGS_TF,
)
from vpmu_emu.machine.ring import TR_EXCEPTION, TR_IRQ, TR_NMI, TR_UNDELIVERED, emit, emit_fault
from vpmu_emu.machine.u64 import ONE, U2, U3, U4, U7, U8, U15, U16, U24, U32, U48, U64, WORD, ZERO
from vpmu_emu.machine.vectors import (
    VECTOR_DF,
    VECTOR_GP,
    VECTOR_NP,
    VECTOR_PF,
    VECTOR_SS,
    VECTOR_TS,
)

C_CYCLES = state.CLASS["cycles"]
C_INST = state.CLASS["inst"]
RFLAGS_IOPL_SHIFT = U64(12)
_CLEARED = ~(X86_EFLAGS_TF | X86_EFLAGS_NT | X86_EFLAGS_RF)
_LOADABLE = (  # IRETQ and POPFQ at CPL 0
    X86_EFLAGS_ID | X86_EFLAGS_AC | X86_EFLAGS_NT | X86_EFLAGS_IOPL | X86_EFLAGS_DF | X86_EFLAGS_IF
    | X86_EFLAGS_TF | X86_EFLAGS_STATUS
)  # fmt: skip
_ALIGN16 = U64((1 << 64) - 16)
_GATE_TYPE = U64(0x1F)
_INTERRUPT_GATE = U64(0xE)
_TRAP_GATE = U64(0xF)
_SELECTOR = U64(0xFFF8)
_EXT = ONE
_IDT = U2
_DESC_P = U64(1 << 47)
_DESC_S_CODE = U64(0x18 << 40)  # S and code
_DESC_L = U64(1 << 53)
_DESC_CONFORMING = U64(1 << 42)
_LOW32 = U64(0xFFFF_FFFF)

# A fault's frame has RF set, so that the instruction is not stopped at twice; any other has what there is,
# a #DB before an instruction too: its handler has to set RF (SDM 3B 18.3.1.1).
KIND_FAULT, KIND_SOFTWARE, KIND_EXTERNAL, KIND_NMI, KIND_TRAP = range(5)


@jit()
def guest_instructions(core):
    """Instructions that the guest retired, as uint64: all that retired less the host's own."""
    return core.total[0, C_INST] + core.total[1, C_INST] - core.stats.host_insns - core.stats.task_insns


@jit()
def guest_done(core):
    """Instructions that the guest did by whatever hand: those that a hypervisor did for it, too."""
    return guest_instructions(core) + core.stats.emulated


@jit()
def read_descriptor(core, M, E, selector):
    """(code, low 8 bytes) of the GDT entry that a selector names; a limit violation is #GP(selector).

    So is a selector of the LDT: there is none (LLDT loads the null selector only).
    """
    offset = selector & _SELECTOR
    local = selector & U4
    if offset == ZERO or local != ZERO or offset + U7 > core.gdt_limit:
        fault(E, VECTOR_GP, 1, offset | local)
        return state.CODE_FAULT, ZERO
    cpl = core.cpl
    core.cpl = 0  # descriptor tables are read with supervisor rights
    code, low = read(core, M, E, core.gdt_base + offset, U8)
    core.cpl = cpl
    return code, low


@jit()
def load_cs(core, M, E, selector, outer):
    """Check a code selector for IRETQ (outer 1) or a gate: (code, DPL)."""
    code, desc = read_descriptor(core, M, E, selector)
    if code != state.CODE_NEXT:
        return code, 0
    dpl = np.int64((desc >> U64(45)) & U3)
    if desc & _DESC_S_CODE != _DESC_S_CODE or desc & _DESC_L == ZERO:
        fault(E, VECTOR_GP, 1, selector & _SELECTOR)
        return state.CODE_FAULT, 0
    if desc & _DESC_P == ZERO:
        fault(E, VECTOR_NP, 1, selector & _SELECTOR)
        return state.CODE_FAULT, 0
    if outer == 0 and dpl > core.cpl:
        fault(E, VECTOR_GP, 1, selector & _SELECTOR)
        return state.CODE_FAULT, 0
    if desc & _DESC_CONFORMING != ZERO and outer == 0:
        dpl = core.cpl
    return state.CODE_NEXT, dpl


@jit()
def _tss_stack(core, M, E, offset):
    if offset + U7 > core.tr_limit:
        fault(E, VECTOR_TS, 1, core.tr & _SELECTOR)
        return state.CODE_FAULT, ZERO
    return read(core, M, E, core.tr_base + offset, U8)


@jit()
def through_gate(core, M, E, vector, kind, has_error, error, return_rip):
    """One attempt at delivery. CODE_NEXT, or CODE_FAULT with the next exception noted in E."""
    E.gate = ZERO
    ext = ZERO if kind == KIND_SOFTWARE else _EXT
    number = U64(vector)
    bad = (number << U3) | _IDT | ext
    if (number << U4) + U15 > core.idt_limit:
        E.undelivered = ring.GATE_LIMIT
        fault(E, VECTOR_GP, 1, bad)
        return state.CODE_FAULT
    old_cpl = core.cpl
    core.cpl = 0
    code, low = read(core, M, E, core.idt_base + (number << U4), U8)
    high = ZERO
    if code == state.CODE_NEXT:
        code, high = read(core, M, E, core.idt_base + (number << U4) + U8, U8)
    core.cpl = old_cpl
    if code != state.CODE_NEXT:
        E.undelivered = ring.GATE_READ
        return code
    E.gate = low
    gate_type = (low >> U64(40)) & _GATE_TYPE
    if gate_type != _INTERRUPT_GATE and gate_type != _TRAP_GATE:
        E.undelivered = ring.GATE_TYPE
        fault(E, VECTOR_GP, 1, bad)
        return state.CODE_FAULT
    if kind == KIND_SOFTWARE and np.int64((low >> U64(45)) & U3) < core.cpl:
        E.undelivered = ring.GATE_DPL
        fault(E, VECTOR_GP, 1, bad)
        return state.CODE_FAULT
    if low & _DESC_P == ZERO:
        E.undelivered = ring.GATE_ABSENT
        fault(E, VECTOR_NP, 1, bad)
        return state.CODE_FAULT
    selector = (low >> U16) & WORD
    code, dpl = load_cs(core, M, E, selector, 0)
    if code != state.CODE_NEXT:
        E.undelivered = ring.GATE_CODE
        return code
    target = (low & WORD) | (((low >> U48) & WORD) << U16) | ((high & _LOW32) << U32)
    ist = (low >> U32) & U7
    core.cpl = 0
    sp = core.regs[state.RSP]
    code = state.CODE_NEXT
    if ist != ZERO:
        code, sp = _tss_stack(core, M, E, U64(0x1C) + (ist << U3))
    elif dpl < old_cpl:
        code, sp = _tss_stack(core, M, E, U4 + (U64(dpl) << U3))
    if code != state.CODE_NEXT:
        E.undelivered = ring.GATE_STACK
        core.cpl = old_cpl
        return code
    sp = sp & _ALIGN16
    flags = core.rflags
    if kind == KIND_FAULT and vector != VECTOR_DF:  # which is an abort
        flags = flags | X86_EFLAGS_RF
    words = 6 if has_error != 0 else 5
    base = sp - U64(8 * words)
    # Both ends first: either all words of the frame are written or none.
    code = write(core, M, E, sp - U8, U8, core.selectors[2])
    if code < state.CODE_NOT_RETIRED:
        code = write(core, M, E, base, U8, error if has_error != 0 else return_rip)
    if code >= state.CODE_NOT_RETIRED:
        E.undelivered = ring.GATE_FRAME
        core.cpl = old_cpl
        return code
    write(core, M, E, sp - U16, U8, core.regs[state.RSP])
    write(core, M, E, sp - U64(24), U8, flags)
    write(core, M, E, sp - U32, U8, core.selectors[1])
    if has_error != 0:
        write(core, M, E, sp - U64(40), U8, return_rip)
    core.regs[state.RSP] = base
    core.rip = target
    core.cpl = dpl
    core.selectors[1] = (selector & ~U3) | U64(dpl)
    if dpl < old_cpl:
        core.selectors[2] = U64(dpl)
    core.rflags &= _CLEARED
    if gate_type == _INTERRUPT_GATE:
        core.rflags &= ~X86_EFLAGS_IF
    core.shadow = 0
    return state.CODE_NEXT


@jit()
def note_undelivered(core, E, vector, kind):
    """An event was not delivered: E.undelivered says why, E.fault_* what comes of it."""
    second = U64(E.fault_vector)
    why = U64(vector) | U64(kind) << U8 | U64(E.undelivered) << U16 | second << U24
    at = E.fault_error
    if E.undelivered == ring.GATE_LIMIT:
        at = core.idt_limit
    elif E.fault_vector == VECTOR_PF:
        at = E.fault_address
    emit_fault(E, core.t, TR_UNDELIVERED, core.rip, why, E.gate, at)


@jit()
def _contributory(vector):
    return vector == 0 or (vector >= 10 and vector <= 13)


@jit()
def deliver(core, M, E, vector, kind, has_error, error, return_rip):
    """Deliver an event whatever it takes: CODE_NEXT, or CODE_FAULT for a triple fault.

    CODE_EXIT: a guest has to be left for what lies behind an address, core.vmx.exit_* says so, and nothing
    has been delivered.

    `return_rip` is what the handler returns to. Status flags must be folded. The time of the memory
    accesses is of the ring that was interrupted. A breakpoint on the tables or the frame traps before the
    handler's first instruction; what waited before is forgotten. Modifies core and memory.
    """
    rep_over(core, E)
    E.debug_hits = ZERO
    done = guest_done(core)
    if done == core.stats.delivered_at:
        core.stats.fruitless += ONE
    core.stats.delivered_at = done
    row = 0 if core.cpl == 0 else 1
    t = core.t
    code = _deliver(core, M, E, vector, kind, has_error, error, return_rip)
    core.pending_debug = E.debug_hits if code == state.CODE_NEXT else ZERO
    core.total[row, C_CYCLES] += U64(core.t - t)
    return code


@jit()
def _deliver(core, M, E, vector, kind, has_error, error, return_rip):
    if kind == KIND_NMI:
        emit(E, core.t, TR_NMI, core.rip, U64(vector), ZERO, ZERO)
    elif kind == KIND_EXTERNAL:
        emit(E, core.t, TR_IRQ, core.rip, U64(vector), ZERO, ZERO)
    for _ in range(4):
        if kind == KIND_FAULT or kind == KIND_SOFTWARE or kind == KIND_TRAP:
            if vector == VECTOR_PF and kind == KIND_FAULT:
                core.cr2 = E.fault_address
            if vector < 32:
                core.stats.exceptions[vector] += ONE
            emit_fault(E, core.t, TR_EXCEPTION, core.rip, U64(vector), error, core.cr2)
        code = through_gate(core, M, E, vector, kind, has_error, error, return_rip)
        if code == state.CODE_NEXT or code == state.CODE_EXIT:
            return code
        if E.fault_vector == FAULT_EPT:
            note_ept_violation(core, E)
            return state.CODE_EXIT
        note_undelivered(core, E, vector, kind)
        if kind == KIND_FAULT and vector == VECTOR_DF:
            break
        second = E.fault_vector
        serious = _contributory(second) or (second == VECTOR_PF and vector == VECTOR_PF)
        if kind == KIND_FAULT and serious and (_contributory(vector) or vector == VECTOR_PF):
            vector = VECTOR_DF
            has_error = 1
            error = ZERO
        else:
            vector = second
            has_error = E.fault_has_error
            error = E.fault_error
        if kind == KIND_SOFTWARE:
            # INT n itself faults: the handler returns to the instruction
            return_rip = core.rip
        kind = KIND_FAULT
    return state.CODE_FAULT


@jit()
def outer_stack(core, M, E, ss, rpl):
    """Whether a return to ring `rpl` may load SS with `ss`: CODE_NEXT, or CODE_FAULT."""
    if ss & ~U3 == ZERO:
        if rpl == 3:
            fault(E, VECTOR_GP, 1, ZERO)
            return state.CODE_FAULT
        return state.CODE_NEXT
    code, desc = read_descriptor(core, M, E, ss)
    if code != state.CODE_NEXT:
        return code
    if np.int64(ss & U3) != rpl or np.int64((desc >> U64(45)) & U3) != rpl:
        fault(E, VECTOR_GP, 1, ss & _SELECTOR)
        return state.CODE_FAULT
    if desc & _DESC_P == ZERO:
        fault(E, VECTOR_SS, 1, ss & _SELECTOR)
        return state.CODE_FAULT
    return state.CODE_NEXT


@jit()
def interrupt_return(core, M, E):
    """IRETQ: CODE_NEXT with the new context in core, or CODE_FAULT with nothing changed."""
    sp = core.regs[state.RSP]
    code, rip = read(core, M, E, sp, U8)
    cs = ZERO
    flags = ZERO
    new_sp = ZERO
    ss = ZERO
    if code == state.CODE_NEXT:
        code, cs = read(core, M, E, sp + U8, U8)
    if code == state.CODE_NEXT:
        code, flags = read(core, M, E, sp + U16, U8)
    if code == state.CODE_NEXT:
        code, new_sp = read(core, M, E, sp + U64(24), U8)
    if code == state.CODE_NEXT:
        code, ss = read(core, M, E, sp + U32, U8)
    if code != state.CODE_NEXT:
        return code
    rpl = np.int64(cs & U3)
    if rpl < core.cpl:
        fault(E, VECTOR_GP, 1, cs & _SELECTOR)
        return state.CODE_FAULT
    code, dpl = load_cs(core, M, E, cs & WORD, 1)
    if code != state.CODE_NEXT:
        return code
    if dpl > rpl:
        fault(E, VECTOR_GP, 1, cs & _SELECTOR)
        return state.CODE_FAULT
    code = outer_stack(core, M, E, ss & WORD, rpl)
    if code != state.CODE_NEXT:
        return code
    core.rip = rip
    core.regs[state.RSP] = new_sp
    set_rflags(core, flags)
    core.selectors[1] = cs & WORD
    core.selectors[2] = ss & WORD
    core.rflags |= flags & X86_EFLAGS_RF  # which POPFQ and SYSRET leave clear
    core.cpl = rpl
    core.nmi_blocked = 0
    core.shadow = 0
    return state.CODE_NEXT


@jit()
def set_rflags(core, flags):
    """Load RFLAGS at the present CPL, for IRETQ and POPFQ: IOPL needs CPL 0, IF needs CPL <= IOPL."""
    keep = ZERO
    if core.cpl > 0:
        keep = U3 << RFLAGS_IOPL_SHIFT
        if core.cpl > np.int64((core.rflags >> RFLAGS_IOPL_SHIFT) & U3):
            keep |= X86_EFLAGS_IF
    core.rflags = (flags & _LOADABLE & ~keep) | (core.rflags & keep) | X86_EFLAGS_FIXED
    spread_flags(core)
