"""Instructions that see more than registers and memory, each in the order silicon decides.

Privilege first, then the intercept, then the instruction's own faults, then its effect. These instructions
retire themselves by `retire`: what is read is read before the instruction counts, what is written takes
effect after, so that an instruction retires with the enables that it found.
"""

from __future__ import annotations

import numpy as np

from vpmu_emu._jit import jit
from vpmu_emu.machine import msr_index, state, vmcs
from vpmu_emu.machine.alu import (
    address,
    fold_flags,
    linear,
    push,
    put,
    put_address,
    put_register,
    spread_flags,
)
from vpmu_emu.machine.breakpoints import DR6_BD, DR7_GD, get_dr, note_port, set_dr
from vpmu_emu.machine.decode import LOAD_LANE, STORE_LANE, note_outside
from vpmu_emu.machine.interrupts import (
    KIND_SOFTWARE,
    RFLAGS_IOPL_SHIFT,
    interrupt_return,
    load_cs,
    outer_stack,
    read_descriptor,
    set_rflags,
    through_gate,
)
from vpmu_emu.machine.memory import drop_decoded, fault, read, tlb_flush, write
from vpmu_emu.machine.msr import (
    is_canonical,
)
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
from vpmu_emu.machine.ops import K_IMM, K_MEM, SYSTEM_OP
from vpmu_emu.machine.platform import port_in, port_out
from vpmu_emu.machine.processor_flags import (
    X86_CR0_ALL,
    X86_CR0_CD,
    X86_CR0_EM,
    X86_CR0_ET,
    X86_CR0_MP,
    X86_CR0_NW,
    X86_CR0_PE,
    X86_CR0_PG,
    X86_CR0_TS,
    X86_CR0_WP,
    X86_CR4_ALL,
    X86_CR4_DE,
    X86_CR4_FSGSBASE,
    X86_CR4_OSXSAVE,
    X86_CR4_PAE,
    X86_CR4_PGE,
    X86_CR4_PSE,
    X86_EFLAGS_DF,
    X86_EFLAGS_FIXED,
    X86_EFLAGS_IF,
)
from vpmu_emu.machine.retire import (
    C_CYCLES,
    at_edge,
    leave_guest,
    put_edx_eax,
    raise_gp,
    retire,
    spend,
)
from vpmu_emu.machine.ring import TR_EXCEPTION, emit
from vpmu_emu.machine.u64 import (
    ALL,
    BYTE,
    LOW32,
    ONE,
    PAGE_MASK,
    U3,
    U8,
    U15,
    U16,
    U32,
    U48,
    U64,
    WORD,
    ZERO,
)
from vpmu_emu.machine.vectors import (
    VECTOR_BP,
    VECTOR_DB,
    VECTOR_GP,
    VECTOR_NP,
    VECTOR_SS,
    VECTOR_UD,
)
from vpmu_emu.machine.vmcs import vmread
from vpmu_emu.machine.vmx import note_exit
from vpmu_emu.tables.cpus import LATENCIES
from vpmu_emu.tables.instructions import EMULATOR, FEATURES

OP = SYSTEM_OP
S_UD2, S_INT3, S_INT, S_IRETQ, S_SYSCALL, S_SYSRETQ, S_SWAPGS = (
    OP[n] for n in ("ud2", "int3", "int", "iretq", "syscall", "sysretq", "swapgs")
)
S_PUSHFQ, S_POPFQ, S_CLI, S_STI, S_HLT, S_IN, S_OUT = (
    OP[n] for n in ("pushfq", "popfq", "cli", "sti", "hlt", "in", "out")
)
S_FROM_CR, S_TO_CR, S_FROM_SREG, S_TO_SREG = (
    OP[n] for n in ("mov_from_cr", "mov_to_cr", "mov_from_sreg", "mov_to_sreg")
)
S_LGDT, S_LIDT, S_LTR, S_SGDT, S_SIDT, S_STR, S_SLDT, S_LLDT = (
    OP[n] for n in ("lgdt", "lidt", "ltr", "sgdt", "sidt", "str", "sldt", "lldt")
)
S_INVLPG, S_WBINVD, S_INVD, S_VMCALL = OP["invlpg"], OP["wbinvd"], OP["invd"], OP["vmcall"]
S_LMSW, S_CLTS, S_XGETBV, S_XSETBV, S_RETF = (
    OP[n] for n in ("lmsw", "clts", "xgetbv", "xsetbv", "retf")
)
S_LSS, S_LFS, S_LGS, S_POP_SREG = (OP[n] for n in ("lss", "lfs", "lgs", "pop_sreg"))
S_LAR, S_LSL, S_VERR, S_VERW, S_SMSW, S_INS, S_OUTS = (
    OP[n] for n in ("lar", "lsl", "verr", "verw", "smsw", "ins", "outs")
)
S_RDFSBASE, S_RDGSBASE, S_WRFSBASE, S_WRGSBASE = (
    OP[n] for n in ("rdfsbase", "rdgsbase", "wrfsbase", "wrgsbase")
)
S_FROM_DR, S_TO_DR = OP["mov_from_dr"], OP["mov_to_dr"]

C_LOAD = state.CLASS["load"]
C_STORE = state.CLASS["store"]
LAT_INTERRUPT = LATENCIES.index("interrupt")
CR0_NEEDED = X86_CR0_PG | X86_CR0_PE
CR0_CACHE = X86_CR0_CD | X86_CR0_NW
CR0_RESERVED = ~X86_CR0_ALL
# What CPUID does not announce is reserved: UMIP LA57 VMXE SMXE PCIDE SMEP SMAP PKE.
CR4_KNOWN = X86_CR4_ALL & ~(X86_CR4_FSGSBASE | X86_CR4_OSXSAVE)
HAS_FSGSBASE = 1 << FEATURES.index("fsgsbase")
HAS_XSAVE = 1 << FEATURES.index("xsave")
FAILS = EMULATOR.index("fails")
XCR0_KNOWN = U3  # x87 and SSE: CPUID.0DH:EAX
_LMSW_CLEARS = X86_CR0_MP | X86_CR0_EM | X86_CR0_TS  # PE it can only set
_LMSW_BITS = _LMSW_CLEARS | X86_CR0_PE
_ACCESS_CLTS = U64(2 << 4)
_ACCESS_LMSW = U64(3 << 4)
_LMSW_MEMORY = U64(1 << 6)
CR4_PAGING = X86_CR4_PGE | X86_CR4_PAE | X86_CR4_PSE  # SDM 3A 5.10.4.1: changing one of these flushes all
U52 = U64(52)
CR8_MAX = U64(15)
_U4 = U64(4)
_TSS_BUSY = U64(1 << 41)
_DESC_SEGMENT = U64(1 << 44)  # S: code or data
_DESC_PRESENT = U64(1 << 47)
_TSS_TYPES = U64(0xD)
_IO_IN = U64(8)
IO_STRING = U64(1 << 4)
_IO_REP = U64(1 << 5)
BP_BIT = U64(1 << VECTOR_BP)
_FROM_DR = U64(1 << 4)
_SS_SELECTOR_8 = U64(8)
_USER = U64(3)
_PAGE = U64(4096)
_PIO_READ_AHEAD = U64(1024)  # bytes of struct read_cache


@jit()
def iopl_allows(core):
    """Whether the CPL may use CLI, STI and ports."""
    return core.cpl <= np.int64((core.rflags >> RFLAGS_IOPL_SHIFT) & U3)


@jit()
def _ports(core, E, u, op):
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
def _string_ports(core, M, E, u, op):
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
    va = regs[n] & kept if incoming else linear(core, u, regs[n])
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
def cr0_is_valid(v):
    """Whether 64-bit mode may load CR0 with `v`: it cannot be left by clearing PG or PE."""
    if v & CR0_RESERVED != ZERO or v & CR0_NEEDED != CR0_NEEDED:
        return False
    return v & CR0_CACHE != X86_CR0_NW  # not write-through without caches off


@jit()
def set_cr0(core, v):
    """Load CR0. Modifies core."""
    if (v ^ core.cr0) & X86_CR0_WP != ZERO:
        tlb_flush(core, 1)
    core.cr0 = v | X86_CR0_ET


@jit()
def cr4_is_valid(core, v):
    """Whether 64-bit mode may load CR4 with `v`."""
    known = CR4_KNOWN
    if core.features & HAS_FSGSBASE != 0:
        known |= X86_CR4_FSGSBASE
    if core.features & HAS_XSAVE != 0:
        known |= X86_CR4_OSXSAVE
    return v & ~known == ZERO and v & X86_CR4_PAE != ZERO


@jit()
def set_cr4(core, v):
    """Load CR4. Modifies core."""
    if (v ^ core.cr4) & CR4_PAGING != ZERO:
        tlb_flush(core, 1)
    core.cr4 = v


@jit()
def host_owns(core, M, v, mask, shadow):
    """SDM 3C 26.1.3: a guest's write exits if it would change a bit that the host owns."""
    return (v ^ vmread(core, M, shadow)) & vmread(core, M, mask) != ZERO


@jit()
def shadowed(core, M, v, mask, shadow):
    """What a guest reads: of the host's bits the read shadow."""
    owned = vmread(core, M, mask)
    return (v & ~owned) | (vmread(core, M, shadow) & owned)


@jit()
def _control_registers(core, M, E, u, op):
    if core.cpl > 0:
        return raise_gp(E)
    if op == S_FROM_CR:
        which = np.int64(u.r)
        if core.vmx.nonroot != 0 and which == 3 and core.vmx.proc & vmcs.PROC_CR3_STORE != ZERO:
            return leave_guest(core, u, vmcs.EXIT_CR_ACCESS, U64(0x13) | (U64(u.a) << U8))
        v = ZERO
        if which == 0:
            v = core.cr0
            if core.vmx.nonroot != 0:
                v = shadowed(core, M, v, vmcs.V_CR0_MASK, vmcs.V_CR0_SHADOW)
        elif which == 2:
            v = core.cr2
        elif which == 3:
            v = core.cr3
        elif which == 4:
            v = core.cr4
            if core.vmx.nonroot != 0:
                v = shadowed(core, M, v, vmcs.V_CR4_MASK, vmcs.V_CR4_SHADOW)
        elif which == 8:
            v = (core.vapic.tpr if core.vmx.nonroot != 0 else core.lapic.tpr) >> _U4
        else:
            fault(E, VECTOR_UD, 0, ZERO)
            return state.CODE_FAULT
        core.regs[u.a] = v
        retire(core, u)
        return state.CODE_NEXT
    which = np.int64(u.a)
    v = core.regs[u.r]
    if which == 0:
        if core.vmx.nonroot != 0 and host_owns(core, M, v, vmcs.V_CR0_MASK, vmcs.V_CR0_SHADOW):
            return leave_guest(core, u, vmcs.EXIT_CR_ACCESS, U64(u.r) << U8)
        if not cr0_is_valid(v):
            return raise_gp(E)
        retire(core, u)
        set_cr0(core, v)
    elif which == 2:
        retire(core, u)
        core.cr2 = v
    elif which == 3:
        if core.vmx.nonroot != 0 and core.vmx.proc & vmcs.PROC_CR3_LOAD != ZERO:
            return leave_guest(core, u, vmcs.EXIT_CR_ACCESS, U64(3) | (U64(u.r) << U8))
        if v & core.pa_reserved != ZERO or v >> U52 != ZERO:
            return raise_gp(E)
        retire(core, u)
        core.cr3 = v
        tlb_flush(core, 0)
        drop_decoded(E)
    elif which == 4:
        if core.vmx.nonroot != 0 and host_owns(core, M, v, vmcs.V_CR4_MASK, vmcs.V_CR4_SHADOW):
            return leave_guest(core, u, vmcs.EXIT_CR_ACCESS, _U4 | (U64(u.r) << U8))
        if not cr4_is_valid(core, v):
            return raise_gp(E)
        retire(core, u)
        set_cr4(core, v)
    elif which == 8:
        if v > CR8_MAX:
            return raise_gp(E)
        retire(core, u)
        if core.vmx.nonroot != 0:
            core.vapic.tpr = v << _U4
        else:
            core.lapic.tpr = v << _U4
    else:
        fault(E, VECTOR_UD, 0, ZERO)
        return state.CODE_FAULT
    return at_edge(core, u)


@jit()
def _debug_registers(core, E, u, op):
    if core.cpl > 0:
        return raise_gp(E)
    n, reg = (np.int64(u.r), np.int64(u.a)) if op == S_FROM_DR else (np.int64(u.a), np.int64(u.r))
    if n == 4 or n == 5:
        if core.cr4 & X86_CR4_DE != ZERO:
            fault(E, VECTOR_UD, 0, ZERO)
            return state.CODE_FAULT
        n += 2  # SDM 3B 18.2.2: names of DR6 and DR7
    if core.vmx.nonroot != 0 and core.vmx.proc & vmcs.PROC_MOV_DR != ZERO:
        # SDM 3C table 28-4
        qual = U64(np.int64(u.r) if op == S_FROM_DR else np.int64(u.a)) | (U64(reg) << U8)
        return leave_guest(core, u, vmcs.EXIT_DR_ACCESS, qual | (_FROM_DR if op == S_FROM_DR else ZERO))
    if core.dr7 & DR7_GD != ZERO:
        fault(E, VECTOR_DB, 0, ZERO)
        E.debug_bits = DR6_BD
        return state.CODE_FAULT
    if op == S_FROM_DR:
        core.regs[reg] = get_dr(core, n)
        retire(core, u)
        return state.CODE_NEXT
    v = core.regs[reg]
    if n >= 6 and v > LOW32:
        return raise_gp(E)
    retire(core, u)
    set_dr(core, n, v)
    return at_edge(core, u)


@jit()
def _load_segment(core, M, E, n, selector):
    """Load segment register n (not CS), and of FS and GS the base: CODE_NEXT, or the fault is in E."""
    if selector & ~U3 != ZERO:
        code, desc = read_descriptor(core, M, E, selector)
        if code != state.CODE_NEXT:
            return code
        kind = np.int64((desc >> U64(40)) & U15)
        dpl = np.int64((desc >> U64(45)) & U3)
        rpl = np.int64(selector & U3)
        bad = desc & _DESC_SEGMENT == ZERO
        if n == 2:  # data that may be written, of this ring
            bad = bad or kind & 10 != 2 or dpl != core.cpl or rpl != core.cpl
        else:  # data, or code that may be read
            bad = bad or kind & 10 == 8
            if kind & 12 != 12:
                bad = bad or dpl < core.cpl or dpl < rpl
        if bad:
            fault(E, VECTOR_GP, 1, selector & ~U3)
            return state.CODE_FAULT
        if desc & _DESC_PRESENT == ZERO:
            fault(E, VECTOR_SS if n == 2 else VECTOR_NP, 1, selector & ~U3)
            return state.CODE_FAULT
        base = ((desc >> U16) & U64(0xFF_FFFF)) | ((desc >> U32) & U64(0xFF00_0000))
    else:
        if n == 2 and (core.cpl == 3 or np.int64(selector) != core.cpl):
            return raise_gp(E)
        base = ZERO  # as Intel does it; AMD keeps the base
    core.selectors[n] = selector
    if n >= 4:
        core.regs[state.REG_GS + n - 5] = base
    return state.CODE_NEXT


@jit()
def _segments(core, M, E, u, op):
    if op == S_FROM_SREG:
        n = np.int64(u.r) & 7
        if n > 5:
            fault(E, VECTOR_UD, 0, ZERO)
            return state.CODE_FAULT
        size = U64(2) if u.dst == K_MEM else U64(u.width) >> U3
        code = put(core, M, E, u, np.int64(u.dst), np.int64(u.a), size, core.selectors[n])
        if code >= state.CODE_NOT_RETIRED:
            return code
        retire(core, u)
        return at_edge(core, u) if code == state.CODE_EDGE else state.CODE_NEXT
    n = np.int64(u.a) & 7
    if n > 5 or n == 1:
        fault(E, VECTOR_UD, 0, ZERO)
        return state.CODE_FAULT
    selector = core.regs[u.r] & WORD
    if u.src == K_MEM:
        code, selector = read(core, M, E, address(core, u), U64(2))
        if code != state.CODE_NEXT:
            return code
    code = _load_segment(core, M, E, n, selector)
    if code != state.CODE_NEXT:
        return code
    retire(core, u)
    if n == 2:
        core.shadow = 2  # MOV SS: the next instruction (MOV RSP) belongs to it
    return at_edge(core, u)


@jit()
def _selector(core, M, E, u, kind, n):
    """(code, the selector that an operand is)."""
    if kind == K_MEM:
        return read(core, M, E, address(core, u), U64(2))
    return state.CODE_NEXT, core.regs[n] & WORD


@jit()
def _visible(core, desc, selector, op):
    """SDM 2, LAR LSL VERR VERW: whether this descriptor may be seen from here."""
    kind = np.int64((desc >> U64(40)) & U15)
    dpl = np.int64((desc >> U64(45)) & U3)
    if desc & _DESC_SEGMENT == ZERO:
        # LDT, TSS, call gate; LSL: those that have a limit
        if op == S_VERR or op == S_VERW:
            return False
        if kind != 2 and kind != 9 and kind != 11 and (kind != 12 or op == S_LSL):
            return False
    elif (op == S_VERW and kind & 10 != 2) or (op == S_VERR and kind & 10 == 8):
        return False  # not data that may be written; code that may not be read
    elif kind & 12 == 12:
        return True  # conforming code, from everywhere
    return dpl >= core.cpl and dpl >= np.int64(selector & U3)


@jit()
def _descriptor_queries(core, M, E, u, op):
    # These tell by ZF and never fault for what the descriptor is.
    only = op == S_VERR or op == S_VERW
    kind = np.int64(u.dst) if only else np.int64(u.src)
    code, selector = _selector(core, M, E, u, kind, np.int64(u.a) if only else np.int64(u.r))
    if code != state.CODE_NEXT:
        return code
    offset = selector & U64(0xFFF8)
    seen = False
    desc = ZERO
    if offset != ZERO and selector & U64(4) == ZERO and offset + U64(7) <= core.gdt_limit:
        code, desc = read_descriptor(core, M, E, selector)
        if code != state.CODE_NEXT:
            return code
        seen = _visible(core, desc, selector, op)
    if seen and not only:
        if op == S_LAR:
            value = (desc >> U32) & U64(0x00FF_FF00)
        else:
            value = (desc & WORD) | ((desc >> U32) & U64(0xF_0000))
            if desc & U64(1 << 55) != ZERO:
                value = (value << U64(12)) | U64(0xFFF)
        put_register(core, np.int64(u.a), U64(u.width) >> U3, value)
    core.fz = ZERO if seen else ONE
    retire(core, u)
    return state.CODE_NEXT


@jit()
def _smsw(core, M, E, u):
    v = core.cr0
    if core.vmx.nonroot != 0:
        v = shadowed(core, M, v, vmcs.V_CR0_MASK, vmcs.V_CR0_SHADOW)
    size = U64(2) if u.dst == K_MEM else U64(u.width) >> U3
    code = put(core, M, E, u, np.int64(u.dst), np.int64(u.a), size, v)
    if code >= state.CODE_NOT_RETIRED:
        return code
    retire(core, u)
    return at_edge(core, u)


@jit()
def _machine_status(core, M, E, u, op):
    # CLTS and LMSW write CR0[3:0] only; of these a guest leaves alone what the host owns (SDM 3C 26.3).
    if core.cpl > 0:
        return raise_gp(E)
    owned = ZERO
    shadow = ZERO
    if core.vmx.nonroot != 0:
        owned = vmread(core, M, vmcs.V_CR0_MASK)
        shadow = vmread(core, M, vmcs.V_CR0_SHADOW)
    if op == S_CLTS:
        if owned & shadow & X86_CR0_TS != ZERO:
            return leave_guest(core, u, vmcs.EXIT_CR_ACCESS, _ACCESS_CLTS)
        retire(core, u)
        set_cr0(core, core.cr0 & ~(X86_CR0_TS & ~owned))
        return at_edge(core, u)
    code, source = _selector(core, M, E, u, np.int64(u.dst), np.int64(u.a))
    if code != state.CODE_NEXT:
        return code
    change = (source ^ shadow) & _LMSW_CLEARS | (source & ~shadow & ONE)
    if owned & change != ZERO:
        memory = _LMSW_MEMORY if u.dst == K_MEM else ZERO
        return leave_guest(core, u, vmcs.EXIT_CR_ACCESS, _ACCESS_LMSW | memory | (source << U16))
    retire(core, u)
    set_cr0(core, (core.cr0 & ~(_LMSW_CLEARS & ~owned)) | (source & _LMSW_BITS & ~owned))
    return at_edge(core, u)


@jit()
def xcr0_is_valid(v):
    """Whether XSETBV may load XCR0 with `v`: x87 is always in it (SDM 1 13.3)."""
    return v & ONE != ZERO and v & ~XCR0_KNOWN == ZERO


@jit()
def _extended_control(core, E, u, op):
    # XGETBV and XSETBV. KVM's emulator looks at the privilege first (emulate.c: Priv, then em_xsetbv).
    if E.emulating != 0 and core.cpl > 0:
        return raise_gp(E)
    if core.cr4 & X86_CR4_OSXSAVE == ZERO:
        fault(E, VECTOR_UD, 0, ZERO)
        return state.CODE_FAULT
    if op == S_XSETBV:
        if core.cpl > 0:
            return raise_gp(E)
        if core.vmx.nonroot != 0:
            return leave_guest(core, u, vmcs.EXIT_XSETBV, ZERO)
    # XCR0 alone: XGETBV of 1 came with CPUID.(0DH,1):EAX[2], which no model claims.
    if core.regs[state.RCX] & LOW32 != ZERO:
        return raise_gp(E)
    if op == S_XGETBV:
        put_edx_eax(core, core.xcr0)
        retire(core, u)
        return state.CODE_NEXT
    value = (core.regs[state.RAX] & LOW32) | (core.regs[state.RDX] << U32)
    if not xcr0_is_valid(value):
        return raise_gp(E)
    retire(core, u)
    core.xcr0 = value
    return at_edge(core, u)


@jit()
def _far_return(core, M, E, u):
    """RETF to 64-bit code of the same ring or an outer one (SDM 2B, RET)."""
    size = U64(u.width) >> U3
    sp = core.regs[state.RSP]
    cpl = core.cpl
    code, rip = read(core, M, E, sp, size)
    cs = ZERO
    if code == state.CODE_NEXT:
        code, cs = read(core, M, E, sp + size, size)
    if code != state.CODE_NEXT:
        return code
    cs &= WORD
    rpl = np.int64(cs & U3)
    if rpl < cpl or cs & ~U3 == ZERO:
        fault(E, VECTOR_GP, 1, cs & ~U3)
        return state.CODE_FAULT
    code, dpl = load_cs(core, M, E, cs, 1)
    if code != state.CODE_NEXT:
        return code
    if dpl > rpl:
        fault(E, VECTOR_GP, 1, cs & ~U3)
        return state.CODE_FAULT
    if rpl > cpl and E.emulating != 0:
        u.emulator = FAILS  # __load_segment_descriptor(): "Outer-privilege level return is not implemented"
        fault(E, VECTOR_UD, 0, ZERO)
        return state.CODE_FAULT
    drop = u.imm & WORD
    new_sp = sp + size + size + drop
    ss = core.selectors[2]
    if rpl > cpl:
        code, outer_sp = read(core, M, E, new_sp, size)
        if code == state.CODE_NEXT:
            code, ss = read(core, M, E, new_sp + size, size)
        if code != state.CODE_NEXT:
            return code
        ss &= WORD
        code = outer_stack(core, M, E, ss, rpl)
        if code != state.CODE_NEXT:
            return code
        new_sp = outer_sp + drop
    if not is_canonical(rip):
        return raise_gp(E)
    retire(core, u)
    core.rip = rip
    core.regs[state.RSP] = new_sp
    core.selectors[1] = cs
    core.selectors[2] = ss
    core.cpl = rpl
    return state.CODE_EDGE


@jit()
def _segment_from_memory(core, M, E, u, op):
    # LSS, LFS, LGS: the offset of a far pointer goes to a register; POP: a selector from the stack.
    size = U64(u.width) >> U3
    if op == S_POP_SREG:
        sp = core.regs[state.RSP]
        code, selector = read(core, M, E, sp, size)
        if code == state.CODE_NEXT:
            code = _load_segment(core, M, E, np.int64(u.a) - state.REG_FS + 4, selector & WORD)
        if code != state.CODE_NEXT:
            return code
        core.regs[state.RSP] = sp + size
        retire(core, u)
        return state.CODE_NEXT
    va = address(core, u)
    code, offset = read(core, M, E, va, size)
    selector = ZERO
    if code == state.CODE_NEXT:
        code, selector = read(core, M, E, va + size, U64(2))
    if code == state.CODE_NEXT:
        code = _load_segment(core, M, E, 2 if op == S_LSS else 4 if op == S_LFS else 5, selector)
    if code != state.CODE_NEXT:
        return code
    put_register(core, np.int64(u.a), size, offset)
    retire(core, u)
    return at_edge(core, u)


@jit()
def _segment_bases(core, E, u, op):
    if core.cr4 & X86_CR4_FSGSBASE == ZERO:
        fault(E, VECTOR_UD, 0, ZERO)
        return state.CODE_FAULT
    n = state.REG_FS if op == S_RDFSBASE or op == S_WRFSBASE else state.REG_GS
    kept = ALL if u.width == 64 else LOW32
    if op == S_RDFSBASE or op == S_RDGSBASE:
        core.regs[u.a] = core.regs[n] & kept
    else:
        v = core.regs[u.a] & kept
        if not is_canonical(v):
            return raise_gp(E)
        core.regs[n] = v
    retire(core, u)
    return state.CODE_NEXT


@jit()
def _tables(core, M, E, u, op):
    va = address(core, u)
    if op == S_LGDT or op == S_LIDT:
        if core.cpl > 0:
            return raise_gp(E)
        code, limit = read(core, M, E, va, U64(2))
        if code != state.CODE_NEXT:
            return code
        code, base = read(core, M, E, va + U64(2), U8)
        if code != state.CODE_NEXT:
            return code
        if not is_canonical(base):
            return raise_gp(E)
        retire(core, u)
        if op == S_LGDT:
            core.gdt_base = base
            core.gdt_limit = limit
        else:
            core.idt_base = base
            core.idt_limit = limit
        return at_edge(core, u)
    limit = core.gdt_limit if op == S_SGDT else core.idt_limit
    base = core.gdt_base if op == S_SGDT else core.idt_base
    code = write(core, M, E, va + U64(2), U8, base)
    if code < state.CODE_NOT_RETIRED:
        code = write(core, M, E, va, U64(2), limit)
    if code >= state.CODE_NOT_RETIRED:
        return code
    retire(core, u)
    return at_edge(core, u)


@jit()
def _no_local_table(core, M, E, u, selector):
    # LLDT: kernels load the null selector; a table of its own is outside of the subset.
    if selector & ~U3 == ZERO:
        retire(core, u)
        core.ldtr = selector
        return at_edge(core, u)
    code, desc = read_descriptor(core, M, E, selector)
    if code != state.CODE_NEXT:
        return code
    if (desc >> U64(40)) & U64(0x1F) != U64(2):
        fault(E, VECTOR_GP, 1, selector & ~U3)
        return state.CODE_FAULT
    note_outside(core, M, E, u.rip)
    fault(E, VECTOR_UD, 0, ZERO)
    return state.CODE_FAULT


@jit()
def _task_register(core, M, E, u, op):
    size = U64(2) if u.dst == K_MEM else U64(u.width) >> U3
    if op == S_STR or op == S_SLDT:
        value = core.tr if op == S_STR else core.ldtr
        code = put(core, M, E, u, np.int64(u.dst), np.int64(u.a), size, value)
        if code >= state.CODE_NOT_RETIRED:
            return code
        retire(core, u)
        return at_edge(core, u)
    if core.cpl > 0:
        return raise_gp(E)
    selector = core.regs[u.a] & WORD
    if u.dst == K_MEM:
        code, selector = read(core, M, E, address(core, u), U64(2))
        if code != state.CODE_NEXT:
            return code
    if op == S_LLDT:
        return _no_local_table(core, M, E, u, selector)
    if selector & ~U3 == ZERO:
        return raise_gp(E)
    code, desc = read_descriptor(core, M, E, selector)
    if code != state.CODE_NEXT:
        return code
    offset = selector & U64(0xFFF8)
    if offset + U15 > core.gdt_limit or (desc >> U64(40)) & _TSS_TYPES != U64(9):
        fault(E, VECTOR_GP, 1, offset)
        return state.CODE_FAULT
    code, high = read(core, M, E, core.gdt_base + offset + U8, U8)
    if code != state.CODE_NEXT:
        return code
    if desc & _TSS_BUSY != ZERO:
        fault(E, VECTOR_GP, 1, offset)
        return state.CODE_FAULT
    code = write(core, M, E, core.gdt_base + offset, U8, desc | _TSS_BUSY)
    if code >= state.CODE_NOT_RETIRED:
        return code
    retire(core, u)
    core.tr = selector
    core.tr_limit = (desc & WORD) | ((desc >> U32) & U64(0xF_0000))
    core.tr_base = (
        ((desc >> U16) & U64(0xFF_FFFF)) | ((desc >> U32) & U64(0xFF00_0000)) | (high << U32)
    )
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
        return _ports(core, E, u, op)
    if op == S_CPUID:
        return execute_cpuid(core, u)
    if op == S_FROM_CR or op == S_TO_CR:
        return _control_registers(core, M, E, u, op)
    if op == S_FROM_DR or op == S_TO_DR:
        return _debug_registers(core, E, u, op)
    if op == S_FROM_SREG or op == S_TO_SREG:
        return _segments(core, M, E, u, op)
    if op == S_LTR or op == S_STR or op == S_SLDT or op == S_LLDT:
        return _task_register(core, M, E, u, op)
    if op == S_LGDT or op == S_LIDT or op == S_SGDT or op == S_SIDT:
        return _tables(core, M, E, u, op)
    if op == S_INVLPG:
        if core.cpl > 0:
            return raise_gp(E)
        if core.vmx.nonroot != 0 and core.vmx.proc & vmcs.PROC_INVLPG != ZERO:
            return leave_guest(core, u, vmcs.EXIT_INVLPG, address(core, u))
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
        return _descriptor_queries(core, M, E, u, op)
    if op == S_INS or op == S_OUTS:
        return _string_ports(core, M, E, u, op)
    if op == S_SMSW:
        return _smsw(core, M, E, u)
    if op == S_LMSW or op == S_CLTS:
        return _machine_status(core, M, E, u, op)
    if op == S_XGETBV or op == S_XSETBV:
        return _extended_control(core, E, u, op)
    if op == S_RETF:
        return _far_return(core, M, E, u)
    if op >= S_LSS and op <= S_POP_SREG:
        return _segment_from_memory(core, M, E, u, op)
    if op >= S_RDFSBASE and op <= S_WRGSBASE:
        return _segment_bases(core, E, u, op)
    # VMCALL: only a guest has somebody to call
    if core.vmx.nonroot != 0:
        return leave_guest(core, u, vmcs.EXIT_VMCALL, ZERO)
    fault(E, VECTOR_UD, 0, ZERO)
    return state.CODE_FAULT
