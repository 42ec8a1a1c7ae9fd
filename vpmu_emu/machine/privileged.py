"""Instructions that see more than registers and memory, each in the order silicon decides.

Privilege first, then the intercept, then the instruction's own faults, then its effect. These instructions
retire themselves by `retire`: what is read is read before the instruction counts, what is written takes
effect after, so that an instruction retires with the enables that it found.
"""

from __future__ import annotations

import numpy as np

from vpmu_emu._jit import jit
from vpmu_emu.machine import msr_index, state, vmcs
from vpmu_emu.machine.alu import address, fold_flags, push, spread_flags
from vpmu_emu.machine.control_registers import (
    S_CLTS,
    S_FROM_CR,
    S_FROM_DR,
    S_LMSW,
    S_SMSW,
    S_TO_CR,
    S_TO_DR,
    S_XGETBV,
    S_XSETBV,
    execute_control_registers,
    execute_debug_registers,
    execute_extended_control,
    execute_machine_status,
    execute_smsw,
)
from vpmu_emu.machine.decode import note_outside
from vpmu_emu.machine.interrupts import (
    KIND_SOFTWARE,
    interrupt_return,
    note_undelivered,
    set_rflags,
    through_gate,
)
from vpmu_emu.machine.memory import drop_decoded, fault, read, tlb_flush
from vpmu_emu.machine.msr import is_canonical
from vpmu_emu.machine.msr_access import (
    S_CPUID,
    S_RDMSR,
    S_RDPMC,
    S_RDTSC,
    S_RDTSCP,
    S_WRMSR,
    execute_cpuid,
    execute_rdmsr,
    execute_rdpmc,
    execute_rdtsc,
    execute_wrmsr,
)
from vpmu_emu.machine.ops import SYSTEM_OP
from vpmu_emu.machine.ports import (
    S_IN,
    S_INS,
    S_OUT,
    S_OUTS,
    execute_ports,
    execute_string_ports,
    iopl_allows,
)
from vpmu_emu.machine.processor_flags import X86_EFLAGS_FIXED, X86_EFLAGS_IF
from vpmu_emu.machine.retire import C_CYCLES, at_edge, leave_guest, raise_gp, retire, spend
from vpmu_emu.machine.ring import TR_EXCEPTION, emit
from vpmu_emu.machine.segments import (
    S_FROM_SREG,
    S_LAR,
    S_LGDT,
    S_LIDT,
    S_LLDT,
    S_LSS,
    S_LTR,
    S_POP_SREG,
    S_RDFSBASE,
    S_SGDT,
    S_SIDT,
    S_SLDT,
    S_STR,
    S_TO_SREG,
    S_VERW,
    S_WRGSBASE,
    execute_descriptor_queries,
    execute_far_return,
    execute_segment_bases,
    execute_segment_from_memory,
    execute_segments,
    execute_tables,
    execute_task_register,
)
from vpmu_emu.machine.u64 import BYTE, ONE, U3, U8, U16, U32, U48, U64, WORD, ZERO
from vpmu_emu.machine.vectors import VECTOR_BP, VECTOR_UD
from vpmu_emu.tables.cpus import LATENCIES

S_UD2, S_INT3, S_INT, S_IRETQ, S_SYSCALL, S_SYSRETQ, S_SWAPGS = (
    SYSTEM_OP[n] for n in ("ud2", "int3", "int", "iretq", "syscall", "sysretq", "swapgs")
)
S_PUSHFQ, S_POPFQ, S_CLI, S_STI, S_HLT = (SYSTEM_OP[n] for n in ("pushfq", "popfq", "cli", "sti", "hlt"))
S_INVLPG, S_WBINVD, S_INVD, S_VMCALL = (
    SYSTEM_OP[n] for n in ("invlpg", "wbinvd", "invd", "vmcall")
)
S_RETF = SYSTEM_OP["retf"]
LAT_INTERRUPT = LATENCIES.index("interrupt")
BP_BIT = U64(1 << VECTOR_BP)
_USER = U64(3)


@jit()
def _software_interrupt(core, M, E, u, op, vector):
    # If the gate cannot be taken INT n faults, with the handler returning to it, and does not retire.
    if op == S_INT3 and core.vmx.nonroot != 0 and core.vmx.exceptions & BP_BIT != ZERO:
        code = leave_guest(core, u, vmcs.EXIT_EXCEPTION_NMI, ZERO)
        core.vmx.exit_intr_info = vmcs.INTR_VALID | vmcs.TYPE_SOFT_EXCEPTION << U8 | U64(VECTOR_BP)
        return code
    if vector == VECTOR_BP and core.kernel != 0 and core.vmx.nonroot == 0:
        # Of a kernel's gates this one is open to programs.
        retire(core, u)
        fold_flags(core)
        core.rip = u.rip + U64(u.len)
        core.trap = state.TRAP_EXCEPTION | vector
        spread_flags(core)
        return state.CODE_EDGE
    core.rip = u.rip
    cpl = core.cpl
    fold_flags(core)
    code = through_gate(core, M, E, vector, KIND_SOFTWARE, 0, ZERO, u.rip + U64(u.len))
    if code != state.CODE_NEXT:
        if code == state.CODE_FAULT:
            note_undelivered(core, E, vector, KIND_SOFTWARE)
        return code
    emit(E, core.t, TR_EXCEPTION, u.rip, U64(vector), ZERO, ZERO)
    if vector < 32:
        core.stats.exceptions[vector] += ONE
    new = core.cpl
    core.cpl = cpl
    retire(core, u)
    spend(core, core.latency[LAT_INTERRUPT])
    core.cpl = new
    return state.CODE_EDGE


@jit()
def _iretq(core, M, E, u):
    cpl = core.cpl
    fold_flags(core)
    code = interrupt_return(core, M, E)
    if code != state.CODE_NEXT:
        return code
    new = core.cpl
    core.cpl = cpl
    retire(core, u)
    core.cpl = new
    return state.CODE_EDGE


@jit()
def _syscall(core, E, u):
    if core.efer & msr_index.EFER_SCE == ZERO:
        fault(E, VECTOR_UD, 0, ZERO)
        return state.CODE_FAULT
    retire(core, u)
    fold_flags(core)
    core.regs[state.RCX] = u.rip + U64(u.len)
    core.regs[11] = core.rflags
    if core.kernel != 0 and core.vmx.nonroot == 0:
        core.rip = core.regs[state.RCX]
        core.trap = state.TRAP_SYSCALL
        spread_flags(core)
        return state.CODE_EDGE
    core.rip = core.lstar
    core.rflags = (core.rflags & ~core.fmask) | X86_EFLAGS_FIXED
    spread_flags(core)
    cs = (core.star >> U32) & U64(0xFFFC)
    core.selectors[1] = cs
    core.selectors[2] = cs + U8
    core.cpl = 0
    return state.CODE_EDGE


@jit()
def _sysretq(core, E, u):
    if core.efer & msr_index.EFER_SCE == ZERO:
        fault(E, VECTOR_UD, 0, ZERO)
        return state.CODE_FAULT
    if core.cpl > 0 or not is_canonical(core.regs[state.RCX]):
        return raise_gp(E)
    retire(core, u)
    set_rflags(core, core.regs[11])
    core.rip = core.regs[state.RCX]
    cs = core.star >> U48
    core.selectors[1] = (cs + U16) | _USER
    core.selectors[2] = (cs + U8) | _USER
    core.cpl = 3
    return state.CODE_EDGE


@jit()
def _flags_stack(core, M, E, u, op):
    size = U64(u.width) >> U3
    if op == S_PUSHFQ:
        fold_flags(core)
        code = push(core, M, E, size, core.rflags & ~U64(0x3_0000))
        if code >= state.CODE_NOT_RETIRED:
            return code
        retire(core, u)
        return at_edge(core, u) if code == state.CODE_EDGE else state.CODE_NEXT
    code, flags = read(core, M, E, core.regs[state.RSP], size)
    if code != state.CODE_NEXT:
        return code
    core.regs[state.RSP] += size
    retire(core, u)
    if size != U8:
        fold_flags(core)
        flags |= core.rflags & ~WORD
    set_rflags(core, flags)
    return at_edge(core, u)


@jit()
def _cli_sti(core, E, u, op):
    if not iopl_allows(core):
        return raise_gp(E)
    retire(core, u)
    if op == S_CLI:
        core.rflags &= ~X86_EFLAGS_IF
    else:
        if core.rflags & X86_EFLAGS_IF == ZERO:
            core.shadow = 1  # the next instruction runs before any interrupt
        core.rflags |= X86_EFLAGS_IF
    return at_edge(core, u)


@jit()
def _hlt(core, E, u):
    if core.cpl > 0:
        return raise_gp(E)
    if core.vmx.nonroot != 0 and core.vmx.proc & vmcs.PROC_HLT != ZERO:
        return leave_guest(core, u, vmcs.EXIT_HLT, ZERO)
    retire(core, u)
    core.activity = 1
    return at_edge(core, u)


@jit()
def execute_system(core, M, E, u):
    """Execute micro-op u of the SYSTEM group; the time of its memory accesses is of the ring it began in.

    core.total and core.t are up to date without this instruction when it is called. Returns a CODE_*; below
    CODE_NOT_RETIRED the instruction has retired itself. core.rip is set unless CODE_NEXT or CODE_FAULT.
    """
    row = 0 if core.cpl == 0 else 1
    t = core.t
    counted = core.total[0, C_CYCLES] + core.total[1, C_CYCLES]
    code = _execute(core, M, E, u)
    counted = core.total[0, C_CYCLES] + core.total[1, C_CYCLES] - counted
    core.total[row, C_CYCLES] += U64(core.t - t) - counted
    return code


@jit()
def _execute(core, M, E, u):
    op = np.int64(u.op)
    core.rip = u.rip
    if op == S_WRMSR:
        return execute_wrmsr(core, M, E, u)
    if op == S_RDMSR:
        return execute_rdmsr(core, M, E, u)
    if op == S_RDPMC:
        return execute_rdpmc(core, E, u)
    if op == S_RDTSC or op == S_RDTSCP:
        return execute_rdtsc(core, E, u, op)
    if op == S_UD2:
        if u.cc != 0:
            note_outside(core, M, E, u.rip)
        fault(E, VECTOR_UD, 0, ZERO)
        return state.CODE_FAULT
    if op == S_INT3:
        return _software_interrupt(core, M, E, u, op, VECTOR_BP)
    if op == S_INT:
        return _software_interrupt(core, M, E, u, op, np.int64(u.imm & BYTE))
    if op == S_IRETQ:
        return _iretq(core, M, E, u)
    if op == S_SYSCALL:
        return _syscall(core, E, u)
    if op == S_SYSRETQ:
        return _sysretq(core, E, u)
    if op == S_SWAPGS:
        if core.cpl > 0:
            return raise_gp(E)
        old = core.regs[state.REG_GS]
        core.regs[state.REG_GS] = core.kernel_gs_base
        core.kernel_gs_base = old
        retire(core, u)
        return state.CODE_NEXT
    if op == S_PUSHFQ or op == S_POPFQ:
        return _flags_stack(core, M, E, u, op)
    if op == S_CLI or op == S_STI:
        return _cli_sti(core, E, u, op)
    if op == S_HLT:
        return _hlt(core, E, u)
    if op == S_IN or op == S_OUT:
        return execute_ports(core, E, u, op)
    if op == S_CPUID:
        return execute_cpuid(core, u)
    if op == S_FROM_CR or op == S_TO_CR:
        return execute_control_registers(core, M, E, u, op)
    if op == S_FROM_DR or op == S_TO_DR:
        return execute_debug_registers(core, E, u, op)
    if op == S_FROM_SREG or op == S_TO_SREG:
        return execute_segments(core, M, E, u, op)
    if op == S_LTR or op == S_STR or op == S_SLDT or op == S_LLDT:
        return execute_task_register(core, M, E, u, op)
    if op == S_LGDT or op == S_LIDT or op == S_SGDT or op == S_SIDT:
        return execute_tables(core, M, E, u, op)
    if op == S_INVLPG:
        if core.cpl > 0:
            return raise_gp(E)
        if core.vmx.nonroot != 0 and core.vmx.proc & vmcs.PROC_INVLPG != ZERO:
            return leave_guest(core, u, vmcs.EXIT_INVLPG, address(core.regs, u))
        retire(core, u)
        # All of it: what part of a large page the address lies in need not be known, and more may go.
        tlb_flush(core, 1)
        drop_decoded(E)
        return at_edge(core, u)
    if op == S_WBINVD or op == S_INVD:  # caches are tags only: there is nothing to write back or to lose
        if core.cpl > 0:
            return raise_gp(E)
        if core.vmx.nonroot != 0:
            return leave_guest(core, u, vmcs.EXIT_WBINVD if op == S_WBINVD else vmcs.EXIT_INVD, ZERO)
        retire(core, u)
        return state.CODE_NEXT
    if op >= S_LAR and op <= S_VERW:
        return execute_descriptor_queries(core, M, E, u, op)
    if op == S_INS or op == S_OUTS:
        return execute_string_ports(core, M, E, u, op)
    if op == S_SMSW:
        return execute_smsw(core, M, E, u)
    if op == S_LMSW or op == S_CLTS:
        return execute_machine_status(core, M, E, u, op)
    if op == S_XGETBV or op == S_XSETBV:
        return execute_extended_control(core, E, u, op)
    if op == S_RETF:
        return execute_far_return(core, M, E, u)
    if op >= S_LSS and op <= S_POP_SREG:
        return execute_segment_from_memory(core, M, E, u, op)
    if op >= S_RDFSBASE and op <= S_WRGSBASE:
        return execute_segment_bases(core, E, u, op)
    # VMCALL: only a guest has somebody to call
    if core.vmx.nonroot != 0:
        return leave_guest(core, u, vmcs.EXIT_VMCALL, ZERO)
    fault(E, VECTOR_UD, 0, ZERO)
    return state.CODE_FAULT
