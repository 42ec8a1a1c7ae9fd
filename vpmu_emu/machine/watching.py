"""Where a debugger waits: conditions over the processor, breakpoints, memory; none of it in the record.

Between two instructions nothing here changes what the machine does: it reads, and asks for a stop.
"""

from __future__ import annotations

from vpmu_emu._jit import jit
from vpmu_emu.machine import ops, state
from vpmu_emu.machine.breakpoints import WATCHED
from vpmu_emu.machine.conditions import (
    COUNTER,
    CPL,
    DONE,
    END,
    FIRST_BINARY,
    FIRST_UNARY,
    MEM,
    REG,
    RETURNED,
    RFLAGS,
    RIP,
    TIME,
    binary,
    unary,
)
from vpmu_emu.machine.decode import DECODED, decode, instruction_at
from vpmu_emu.machine.interrupts import guest_done
from vpmu_emu.machine.memory import TLB_INDEX
from vpmu_emu.machine.msr import is_program
from vpmu_emu.machine.pmu import class_total, counter_value
from vpmu_emu.machine.u64 import ONE, PAGE_BASE, U3, U4, U12, U15, U64, ZERO

C_RET, C_FAR = state.CLASS["ret"], state.CLASS["far"]
PASSED = state.N_UOPS - 5  # the block builder never gets so far


@jit()
def _memory(M, E, address, size):
    # Physical memory of the program below the hole; elsewhere it reads as zero.
    v = ZERO
    for k in range(8):
        at = address + U64(k)
        if U64(k) < size and at >= address and at < U64(E.program_memory):
            v |= U64(M[at]) << (U64(k) << U3)
    return v


@jit()
def _operand(core, E, op, word):
    if op == REG:
        return core.regs[word & U15]
    if op == RIP:
        return core.rip
    if op == RFLAGS:
        return core.rflags
    if op == CPL:
        return U64(core.cpl)
    if op == TIME:
        return U64(core.t) >> U4
    if op == DONE:
        return guest_done(core)
    if op == RETURNED:
        now = class_total(core, C_RET, 3) + class_total(core, C_FAR, 3)
        before = E.returns
        E.returns = now
        return now - before
    if op == COUNTER:
        for i in range(state.N_CTR):
            if word == U64(i):
                return counter_value(core, i)
    return word  # CONST


@jit()
def holds(core, M, E, k):
    """Whether condition k holds on this core, between two instructions."""
    k = k & (state.N_CONDITIONS - 1)
    stack = E.condition_stack
    n = 0
    for i in range(state.CONDITION_WORDS):
        op = E.condition_op[k, i]
        if op == END:
            break
        word = E.condition_word[k, i]
        if op == MEM:
            stack[n - 1] = _memory(M, E, stack[n - 1], word)
        elif op < FIRST_BINARY:
            stack[n] = _operand(core, E, op, word)
            n += 1
        elif op < FIRST_UNARY:
            n -= 1
            stack[n - 1] = binary(op, stack[n - 1], stack[n])
        else:
            stack[n - 1] = unary(op, stack[n - 1])
    return stack[0] != ZERO


@jit()
def until_holds(core, M, E):
    """Whether what a debugger waits for between two instructions has come. Modifies E."""
    if E.cpu == E.stop_cpu and core.t >= E.stop_t:
        return True
    if E.until != 0 and is_program(core) and holds(core, M, E, E.until - 1):
        E.until_met = 1
        return True
    return False


@jit()
def break_holds(core, M, E):
    """Whether a breakpoint at rip holds, its condition heeded; if none does the instruction is to run."""
    if E.stopped_before != 0:
        return True
    for k in range(E.n_break):
        if E.breaks[k] == core.rip:
            if E.break_condition[k] == 0 or holds(core, M, E, E.break_condition[k] - 1):
                return True
    E.pass_rip = core.rip
    E.pass_cpu = E.cpu + 1
    return False


@jit()
def pass_begins(core, M, E):
    """The instruction at hand may be one that runs whatever waits before it: its micro-op if so, else -1.

    That of a breakpoint does what it did before there was one, until pass_ends(). Modifies E.
    """
    E.pass_cpu = 0
    if core.rip != E.pass_rip:
        return -1
    E.passing = 1
    at = instruction_at(core, M, E, core.rip)
    if E.uops[at].op == ops.OP_BREAK:
        u = E.uops[PASSED]
        if decode(core, M, E, core.rip, u) == DECODED:
            E.uops[at].op = u.op
            return at
    return 0


@jit()
def pass_ends(E, at, generation):
    """It has run: the breakpoint is there again."""
    E.passing = 0
    if at > 0 and E.generation == generation:
        E.uops[at].op = ops.OP_BREAK


@jit()
def watch_pages(core, E):
    """Have accesses to watched memory take the slow way, where they are seen; they cost the same there."""
    for k in range(E.n_data):
        first = E.data_first[k] & PAGE_BASE
        last = (E.data_first[k] + E.data_size[k] - ONE) & PAGE_BASE
        for n in range(2):
            page = first if n == 0 else last
            slot = (page >> U12) & TLB_INDEX
            for ring in range(2):
                if core.tlb_read[ring, slot] == page:
                    core.tlb_read[ring, slot] = page | WATCHED
                if core.tlb_write[ring, slot] == page:
                    core.tlb_write[ring, slot] = page | WATCHED
