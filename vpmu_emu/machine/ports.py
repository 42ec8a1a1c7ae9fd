"""IN, OUT, INS and OUTS: who may use a port, and the board or the hypervisor behind it.

SDM 1 chapter 19.
"""

from __future__ import annotations

import numpy as np

from vpmu_emu._jit import jit
from vpmu_emu.machine import state, vmcs
from vpmu_emu.machine.alu import linear, put_address, put_register
from vpmu_emu.machine.breakpoints import note_port
from vpmu_emu.machine.decode import LOAD_LANE, STORE_LANE
from vpmu_emu.machine.interrupts import RFLAGS_IOPL_SHIFT
from vpmu_emu.machine.memory import read, write
from vpmu_emu.machine.ops import K_IMM, SYSTEM_OP
from vpmu_emu.machine.platform import port_in, port_out
from vpmu_emu.machine.processor_flags import X86_EFLAGS_DF
from vpmu_emu.machine.retire import at_edge, leave_guest, raise_gp, retire, spend
from vpmu_emu.machine.u64 import ALL, BYTE, LOW32, ONE, PAGE_MASK, U3, U16, U64, WORD, ZERO
from vpmu_emu.machine.vmx import note_exit

S_IN, S_OUT = SYSTEM_OP["in"], SYSTEM_OP["out"]
S_INS, S_OUTS = SYSTEM_OP["ins"], SYSTEM_OP["outs"]
C_LOAD = state.CLASS["load"]
C_STORE = state.CLASS["store"]
_IO_IN = U64(8)
IO_STRING = U64(1 << 4)
_IO_REP = U64(1 << 5)
_PAGE = U64(4096)
_PIO_READ_AHEAD = U64(1024)  # bytes of struct read_cache


@jit()
def iopl_allows(core):
    """Whether the CPL may use CLI, STI and ports."""
    return core.cpl <= np.int64((core.rflags >> RFLAGS_IOPL_SHIFT) & U3)


@jit()
def execute_ports(core, E, u, op):
    """IN and OUT."""
    if not iopl_allows(core):
        return raise_gp(E)  # the TSS's I/O bitmap is outside the subset
    size = U64(u.width) >> U3
    incoming = op == S_IN
    kind = u.src if incoming else u.dst
    port = u.imm & BYTE if kind == K_IMM else core.regs[state.RDX] & WORD
    if core.vmx.nonroot != 0 and core.vmx.proc & vmcs.PROC_IO != ZERO:
        # SDM 3C table 28-5: size - 1, direction, immediate operand, port
        qual = (size - ONE) | (port << U16) | (_IO_IN if incoming else ZERO)
        if kind == K_IMM:
            qual |= U64(1 << 6)
        return leave_guest(core, u, vmcs.EXIT_IO_INSTRUCTION, qual)
    note_port(core, E, port, size)
    if incoming:
        put_register(core, state.RAX, size, port_in(core, port, size))
        retire(core, u)
        return state.CODE_NEXT
    retire(core, u)
    port_out(core, E, port, size, core.regs[state.RAX] & (ALL >> (U64(64) - U64(u.width))))
    return at_edge(core, u)


@jit()
def _read_ahead(core, u, size, left):
    """Elements of INS that KVM's emulator asks its VMM for at once (emulate.c, pio_in_emulated()).

    `left` are those of REP. The rest of the page is in bytes, whatever an element's size.
    """
    if u.cc == 0:
        return ONE
    offset = core.regs[state.RDI] & PAGE_MASK
    n = min(offset if core.rflags & X86_EFLAGS_DF != ZERO else _PAGE - offset, _PIO_READ_AHEAD // size)
    return max(min(n, left & LOW32), ONE)


@jit()
def execute_string_ports(core, M, E, u, op):
    """INS and OUTS."""
    # INS and OUTS: one iteration; only the last one of REP retires.
    if not iopl_allows(core):
        return raise_gp(E)
    regs = core.regs
    size = U64(u.width) >> U3
    incoming = op == S_INS
    port = regs[state.RDX] & WORD
    kept = LOW32 if u.addr32 != 0 else ALL
    if u.cc != 0 and regs[state.RCX] & kept == ZERO:
        # No iteration: it retires, but as no load and no store.
        row = 0 if core.cpl == 0 else 1
        core.total[row, C_LOAD] -= (u.lanes1 >> LOAD_LANE) & ONE
        core.total[row, C_STORE] -= (u.lanes1 >> STORE_LANE) & ONE
        retire(core, u)
        return state.CODE_NEXT
    again = u.cc != 0 and regs[state.RCX] & kept != ONE
    n = state.RDI if incoming else state.RSI
    va = regs[n] & kept if incoming else linear(core.regs, u, regs[n])
    leaves = core.vmx.nonroot != 0 and core.vmx.proc & vmcs.PROC_IO != ZERO
    answered = leaves and E.port_ready != 0  # a hypervisor that has left goes on with the same iteration
    value = E.port_value
    qual = (size - ONE) | (port << U16) | IO_STRING | (_IO_IN if incoming else ZERO)
    qual |= _IO_REP if u.cc != 0 else ZERO
    if leaves and not answered and (incoming or E.emulating == 0):
        E.port_count = _read_ahead(core, u, size, regs[state.RCX] & kept)
        return leave_guest(core, u, vmcs.EXIT_IO_INSTRUCTION, qual)
    if not answered:
        # A port is not read before it is sure that memory takes what it gives.
        E.intent = 1 if incoming else 0
        code, value = read(core, M, E, va, size)
        E.intent = 0
        if code != state.CODE_NEXT:
            return code
    E.port_ready = 0
    if not leaves:
        note_port(core, E, port, size)
    if incoming:
        code = write(core, M, E, va, size, value if answered else port_in(core, port, size))
        if code >= state.CODE_NOT_RETIRED:
            return code
    put_address(core, u, n, regs[n] + (size if core.rflags & X86_EFLAGS_DF == ZERO else ~size + ONE))
    if u.cc != 0:
        put_address(core, u, state.RCX, regs[state.RCX] - ONE)
    if again:
        if E.emulating == 0:  # the processor goes on with it as it was decoded
            core.iterations += ONE
        core.rip = u.rip
        spend(core, np.int64(u.cost))
    else:
        core.iterations = ZERO
        retire(core, u)
        core.rip = u.rip + U64(u.len)
    if not incoming and leaves:  # em_out(): the element is over before the VMM hears of it
        E.port_value = value
        note_exit(core, vmcs.EXIT_IO_INSTRUCTION, qual, ZERO if again else U64(u.len))
        return state.CODE_EXIT
    if not incoming:
        port_out(core, E, port, size, value)
    return state.CODE_EDGE
