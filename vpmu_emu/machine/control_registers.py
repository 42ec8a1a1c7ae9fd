"""Control and debug registers: what may be written to them, and what a guest must ask for.

SDM 3A 2.5 to 2.6, 3B 18.2.
"""

from __future__ import annotations

import numpy as np

from vpmu_emu._jit import jit
from vpmu_emu.machine import state, vmcs
from vpmu_emu.machine.alu import put
from vpmu_emu.machine.breakpoints import DR6_BD, DR7_GD, get_dr, set_dr
from vpmu_emu.machine.memory import drop_decoded, fault, tlb_flush
from vpmu_emu.machine.ops import K_MEM, SYSTEM_OP
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
)
from vpmu_emu.machine.retire import at_edge, leave_guest, put_edx_eax, raise_gp, retire
from vpmu_emu.machine.segments import selector_operand
from vpmu_emu.machine.u64 import LOW32, ONE, U3, U8, U16, U32, U64, ZERO
from vpmu_emu.machine.vectors import VECTOR_DB, VECTOR_UD
from vpmu_emu.machine.vmcs import vmread
from vpmu_emu.tables.instructions import FEATURES

S_FROM_CR, S_TO_CR = SYSTEM_OP["mov_from_cr"], SYSTEM_OP["mov_to_cr"]
S_LMSW, S_CLTS, S_XGETBV, S_XSETBV, S_SMSW = (
    SYSTEM_OP[n] for n in ("lmsw", "clts", "xgetbv", "xsetbv", "smsw")
)
S_FROM_DR, S_TO_DR = SYSTEM_OP["mov_from_dr"], SYSTEM_OP["mov_to_dr"]
CR0_NEEDED = X86_CR0_PG | X86_CR0_PE
CR0_CACHE = X86_CR0_CD | X86_CR0_NW
CR0_RESERVED = ~X86_CR0_ALL
# What CPUID does not announce is reserved: UMIP LA57 VMXE SMXE PCIDE SMEP SMAP PKE.
CR4_KNOWN = X86_CR4_ALL & ~(X86_CR4_FSGSBASE | X86_CR4_OSXSAVE)
HAS_FSGSBASE = 1 << FEATURES.index("fsgsbase")
HAS_XSAVE = 1 << FEATURES.index("xsave")
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
_FROM_DR = U64(1 << 4)


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
def execute_control_registers(core, M, E, u, op):
    """MOV to and from CR0, CR2, CR3, CR4 and CR8."""
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
def execute_debug_registers(core, E, u, op):
    """MOV to and from debug registers."""
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
def execute_smsw(core, M, E, u):
    """SMSW: the low bits of CR0, at any privilege."""
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
def execute_machine_status(core, M, E, u, op):
    """LMSW and CLTS."""
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
    code, source = selector_operand(core, M, E, u, np.int64(u.dst), np.int64(u.a))
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
def execute_extended_control(core, E, u, op):
    """XGETBV and XSETBV."""
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
