"""Several cores on one board: the one that is behind in time runs, and messages pass between turns.

A turn lasts until the core is a quantum ahead of the next one, or has sent a message. The quantum is a
parameter of the model, and whose turn it is until when is in the record: no policy of the engine moves it.
SDM volume 3, 11.6 for messages, 9.4 for how the other cores are started.
"""

from __future__ import annotations

from vpmu_emu._jit import jit
from vpmu_emu.machine import msr_index, state
from vpmu_emu.machine.breakpoints import debug_reset
from vpmu_emu.machine.decode import rep_over
from vpmu_emu.machine.engine import CR0_RESET, CR4_RESET, goes_on_at, run_core
from vpmu_emu.machine.lapic import (
    is_deassert,
    is_destination,
    lapic_accept,
    lapic_pending,
    lapic_reset,
)
from vpmu_emu.machine.memory import TLB_NONE, drop_decoded, tlb_flush
from vpmu_emu.machine.physical import PAGE_CODE
from vpmu_emu.machine.pmu import pmi_reset
from vpmu_emu.machine.processor_flags import X86_EFLAGS_FIXED, X86_EFLAGS_IF
from vpmu_emu.machine.u64 import BYTE, U12, U64, ZERO

ACTIVE, HALTED, WAIT_FOR_SIPI = 0, 1, 2


@jit()
def wait_for_sipi(core):
    """INIT of a core that is not the first: it waits, nothing but a startup message moves it on."""
    for i in range(len(core.regs)):
        core.regs[i] = ZERO
    core.rip = ZERO
    core.rflags = X86_EFLAGS_FIXED
    core.cr0 = CR0_RESET
    core.cr2 = ZERO
    core.cr3 = ZERO
    core.cr4 = CR4_RESET
    core.cpl = 0
    core.idt_limit = ZERO
    core.shadow = 0
    core.nmi_pending = 0
    pmi_reset(core)
    core.nmi_blocked = 0
    base = core.lapic.apic_base
    lapic_reset(core.lapic, core.lapic.id)
    core.lapic.apic_base = base
    tlb_flush(core, 1)
    debug_reset(core)
    core.activity = WAIT_FOR_SIPI


@jit()
def _accept(core, E, icr):
    mode = icr & msr_index.APIC_MODE_MASK
    if mode == msr_index.APIC_DM_INIT:
        if not is_deassert(icr):
            rep_over(core, E)
            wait_for_sipi(core)
            drop_decoded(E)
    elif mode == msr_index.APIC_DM_STARTUP:
        # Real mode is outside of the subset: the core starts in 64-bit mode, at the page of the vector.
        if core.activity == WAIT_FOR_SIPI:
            core.rip = (icr & BYTE) << U12
            core.activity = ACTIVE
    elif core.activity != WAIT_FOR_SIPI:
        if mode == msr_index.APIC_DM_NMI:
            core.nmi_pending = 1
        elif mode == msr_index.APIC_DM_FIXED or mode == msr_index.APIC_DM_LOWEST:
            lapic_accept(core.lapic, icr & BYTE)


@jit()
def _same_board(mine, other):
    mine.ier = other.ier
    mine.lcr = other.lcr
    mine.mcr = other.mcr
    mine.divisor = other.divisor
    mine.scratch = other.scratch
    mine.fifo = other.fifo
    mine.received = other.received
    mine.ready = other.ready
    mine.port_b = other.port_b
    mine.rtc_index = other.rtc_index
    for k in range(2):
        mine.pic_mask[k] = other.pic_mask[k]
        mine.pic_words[k] = other.pic_words[k]


@jit()
def _due(core):
    """When the core can go on: now, at its next timer, or NEVER."""
    if core.activity == ACTIVE:
        return core.t
    if core.activity == WAIT_FOR_SIPI:
        return state.NEVER
    if core.nmi_pending != 0 and core.nmi_blocked == 0:
        return core.t
    if core.rflags & X86_EFLAGS_IF != ZERO and lapic_pending(core.lapic) >= 0:
        return core.t
    return goes_on_at(core)


@jit()
def first_due(n, quantum, E):
    """Whose turn it is, by E.due of the first `n` cores: (its number, since when, until when).

    That is the one that is behind, until it is `quantum` ahead of the next; -1 if none ever goes on.
    """
    turn = -1
    first = state.NEVER
    second = state.NEVER
    for i in range(n):
        due = E.due[i]
        if due < first:
            second = first
            first = due
            turn = i
        elif due < second:
            second = due
    end = state.NEVER
    if second < state.NEVER - quantum:
        end = second + quantum
    return turn, first, end


@jit()
def _next_turn(cores, n, quantum, E):
    """Give the turn to a core: CODE_NEXT, RUN_STOPPED if all sleep for good, RUN_TIME."""
    for i in range(n):
        E.due[i] = _due(cores[i])
    turn, first, end = first_due(n, quantum, E)
    if turn < 0:
        cores[0].stop = state.STOP_HALTED
        return state.RUN_STOPPED
    if first > E.t_limit:
        return state.RUN_TIME
    core = cores[turn]
    core.turn = 1
    core.turn_end = end
    core.t = max(core.t, first)  # who idles jumps to its next timer
    see_new_code(core, E)
    return state.CODE_NEXT


@jit()
def _whose_turn(cores, n):
    for i in range(n):
        if cores[i].turn != 0:
            return i
    return -1


@jit()
def _route(cores, n, sender, E):
    """Deliver the message that core `sender` has in its ICR to the others. Modifies them."""
    source = cores[sender].lapic
    source.ipi_out = 0
    icr = source.icr
    shorthand = icr & msr_index.APIC_SHORT_MASK
    lowest = icr & msr_index.APIC_MODE_MASK == msr_index.APIC_DM_LOWEST
    if lowest and shorthand == msr_index.APIC_DEST_NOSHORT and is_destination(source, source, icr):
        return  # one processor takes it, and the sender already has
    for i in range(n):
        if i == sender:
            continue
        if shorthand != msr_index.APIC_DEST_NOSHORT or is_destination(source, cores[i].lapic, icr):
            core = cores[i]
            asleep = _due(core) > core.t
            _accept(core, E, icr)
            if asleep and _due(core) == core.t:
                core.t = max(core.t, cores[sender].t)  # it slept until the message came
            if lowest:
                return


@jit()
def see_new_code(core, E):
    """Another core has decoded pages: this one no longer writes to them without being asked."""
    for ring in range(2):
        for i in range(state.N_TLB):
            tag = core.tlb_write[ring, i]
            if tag != TLB_NONE:
                page = (tag + core.add_write[ring, i]) >> U12
                if U64(E.page_flags[page]) & PAGE_CODE != ZERO:
                    core.tlb_write[ring, i] = TLB_NONE


@jit(entry=True)
def run_cores(cores, n, quantum, M, E):
    """Run the first `n` cores until a stop or Python's turn: a RUN_* code.

    `quantum` is in 1/16 cycle. The stop of any core is reported in the first one. Whoever has the turn
    keeps it when Python has one in between. Modifies everything.
    """
    while True:
        turn = _whose_turn(cores, n)
        if turn < 0:
            code = _next_turn(cores, n, quantum, E)
            if code != state.CODE_NEXT:
                return code
            turn = _whose_turn(cores, n)
        core = cores[turn]
        E.cpu = turn
        code = run_core(core, M, E)
        for i in range(n):  # there is one board
            if i != turn:
                cores[i].serial_len = core.serial_len
                _same_board(cores[i].board, core.board)
        if code == state.RUN_STOPPED and core.stop == state.STOP_HALTED:
            core.stop = 0
            code = state.RUN_TURN
        if code == state.RUN_TURN:
            core.turn = 0
            if core.lapic.ipi_out != 0:
                _route(cores, n, turn, E)
        elif code == state.RUN_STOPPED:
            cores[0].stop = core.stop
            cores[0].stop_info = core.stop_info
            return code
        else:
            return code
