"""RDMSR, WRMSR, RDPMC, RDTSC and CPUID: privilege, what the guest exits for, then the register."""

from __future__ import annotations

from vpmu_emu._jit import jit
from vpmu_emu.machine import msr_index, ring, state, vmcs
from vpmu_emu.machine.msr import (
    DROPPED,
    PMC_INVALID,
    READ,
    WRITE,
    WRITE_BLIND,
    check_read,
    check_write,
    is_program,
    msr_apply,
    msr_of_rdpmc,
    msr_value,
    note_msr,
    note_msr_fault,
    note_rdpmc,
    note_rdpmc_fault,
    note_watch,
    rdpmc_counter,
    rdpmc_value,
    read_tsc,
    statistics_slot,
    stops_before,
)
from vpmu_emu.machine.mutants import I_BOTH_WRMSRS, I_NO_WRMSR
from vpmu_emu.machine.ops import SYSTEM_OP
from vpmu_emu.machine.pmu import pmu_check
from vpmu_emu.machine.pmu_rules import rdpmc_result
from vpmu_emu.machine.processor_flags import X86_CR4_OSXSAVE, X86_CR4_PCE, X86_CR4_TSD
from vpmu_emu.machine.retire import (
    C_INST,
    at_edge,
    leave_guest,
    put_edx_eax,
    raise_gp,
    retire,
    spend,
)
from vpmu_emu.machine.ring import emit, emit_fault
from vpmu_emu.machine.u64 import ALL, LOW32, ONE, U32, U64, ZERO
from vpmu_emu.machine.vmx import msr_intercepted
from vpmu_emu.tables.cpus import LATENCIES

S_CPUID, S_RDTSC, S_RDTSCP, S_RDMSR, S_WRMSR, S_RDPMC = (
    SYSTEM_OP[n] for n in ("cpuid", "rdtsc", "rdtscp", "rdmsr", "wrmsr", "rdpmc")
)
LAT_WRMSR = LATENCIES.index("wrmsr")
LAT_MSR = LATENCIES.index("msr")
CPUID_APIC = U64(1 << 9)
CPUID_OSXSAVE = U64(1 << 27)


@jit()
def _refuse(core, E, u, access):
    # Before anything else is looked at: no exit, and no #GP of another reason.
    told = core.regs[state.RCX] & LOW32
    emit_fault(E, core.t, ring.TR_PRIVILEGE, u.rip, U64(access), U64(core.cpl) | told << U32, core.cr4)
    if E.n_watch > 0 and is_program(core):
        index = msr_of_rdpmc(told) if access == ring.ACCESS_RDPMC else told
        note_watch(E, index, ZERO, ZERO, WRITE_BLIND if access == ring.ACCESS_WRMSR else READ)
    return raise_gp(E)


@jit()
def execute_rdmsr(core, M, E, u):
    """RDMSR of micro-op u: a CODE_*."""
    if E.n_watch > 0 and stops_before(core, E, core.regs[state.RCX] & LOW32, ZERO, 1):
        return state.CODE_BREAK
    if core.cpl > 0:
        return _refuse(core, E, u, ring.ACCESS_RDMSR)
    index = core.regs[state.RCX] & LOW32
    if core.vmx.nonroot != 0 and msr_intercepted(core, M, E, index, 0):
        slot = statistics_slot(index)
        if slot >= 0:
            core.stats.msr_exits[slot] += ONE
        return leave_guest(core, u, vmcs.EXIT_MSR_READ, ZERO)
    rn = check_read(core, index)
    if rn < DROPPED:
        note_msr_fault(core, E, index, ZERO, 0, -rn)
        return raise_gp(E)
    if rn == DROPPED:
        emit(E, core.t, ring.TR_MSR_DROPPED, u.rip, index, ZERO, ZERO)
    v = msr_value(core, rn, index) if rn >= 0 else ZERO
    put_edx_eax(core, v)
    retire(core, u)
    note_msr(core, E, index, v, v, READ, 0)
    if E.stop_request != 0:
        return at_edge(core, u)
    return state.CODE_NEXT


@jit()
def execute_wrmsr(core, M, E, u):
    """WRMSR of micro-op u: a CODE_*."""
    index = core.regs[state.RCX] & LOW32
    value = (core.regs[state.RAX] & LOW32) | (core.regs[state.RDX] << U32)
    if E.n_watch > 0 and stops_before(core, E, index, value, 2):
        return state.CODE_BREAK
    if core.cpl > 0:
        return _refuse(core, E, u, ring.ACCESS_WRMSR)
    if core.vmx.nonroot != 0 and msr_intercepted(core, M, E, index, 1):
        slot = statistics_slot(index)
        if slot >= 0:
            core.stats.msr_exits[slot] += ONE
        return leave_guest(core, u, vmcs.EXIT_MSR_WRITE, ZERO)
    rn = check_write(core, index, value)
    if rn < DROPPED:
        note_msr_fault(core, E, index, value, 1, -rn)
        return raise_gp(E)
    old, kind = ZERO, WRITE
    if E.trace_on != 0 or E.n_watch > 0:
        found = check_read(core, index)
        if found < DROPPED:
            kind = WRITE_BLIND
        elif found >= 0:
            old = msr_value(core, found, index)
    retire(core, u)
    if core.inject & I_NO_WRMSR != ZERO:
        core.total[0, C_INST] -= ONE
    spend(core, core.latency[LAT_WRMSR] - core.latency[LAT_MSR])
    pmu_check(core, E)  # if it overflows a counter by retiring, that comes before its effect
    if rn == DROPPED:
        emit(E, core.t, ring.TR_MSR_DROPPED, u.rip, index, value, ONE)
    else:
        msr_apply(core, E, rn, index, value)
    if core.inject & I_BOTH_WRMSRS != ZERO:
        core.total[0, C_INST] += ONE
    core.rip = u.rip
    note_msr(core, E, index, value, old, kind, 0)
    return at_edge(core, u)


@jit()
def execute_rdpmc(core, E, u):
    """RDPMC of micro-op u: a CODE_*."""
    if E.n_watch > 0 and stops_before(core, E, msr_of_rdpmc(core.regs[state.RCX] & LOW32), ZERO, 1):
        return state.CODE_BREAK
    # VMX checks CR4.PCE before the intercept and the index after it (SDM 3C 26.1.1).
    if core.cpl > 0 and core.cr4 & X86_CR4_PCE == ZERO:
        return _refuse(core, E, u, ring.ACCESS_RDPMC)
    ecx = core.regs[state.RCX] & LOW32
    if core.vmx.nonroot != 0:
        exits = core.vmx.proc & vmcs.PROC_RDPMC != ZERO
        told = ring.ACCESS_RDPMC | ring.ACCESS_EXITS if exits else ring.ACCESS_RDPMC
        emit(E, core.t, ring.TR_INTERCEPT, u.rip, ecx, U64(ring.BY_RDPMC_EXITING), U64(told))
        if exits:
            return leave_guest(core, u, vmcs.EXIT_RDPMC, ZERO)
    which = rdpmc_counter(core, ecx)
    if which == PMC_INVALID:
        note_rdpmc_fault(core, E, u.rip, ecx, U64(core.pmu.gp), U64(core.pmu.fixed), 0)
        return raise_gp(E)
    v = rdpmc_result(core, ecx, rdpmc_value(core, which))
    put_edx_eax(core, v)
    retire(core, u)
    if core.vmx.nonroot != 0 or core.vmx.root == 0:  # not a program of the host
        core.stats.rdpmcs += ONE
    note_rdpmc(core, E, u.rip, ecx, v, 0)
    if E.stop_request != 0:
        return at_edge(core, u)
    return state.CODE_NEXT


@jit()
def execute_rdtsc(core, E, u, op):
    """RDTSC and RDTSCP of micro-op u: a CODE_*."""
    if core.cpl > 0 and core.cr4 & X86_CR4_TSD != ZERO:
        return raise_gp(E)
    if core.vmx.nonroot != 0 and core.vmx.proc & vmcs.PROC_RDTSC != ZERO:
        return leave_guest(core, u, vmcs.EXIT_RDTSC, ZERO)
    put_edx_eax(core, read_tsc(core))
    if op == S_RDTSCP:
        core.regs[state.RCX] = core.tsc_aux & LOW32
    retire(core, u)
    return state.CODE_NEXT


@jit()
def cpuid_entry(table, leaf, subleaf):
    """Index of the entry that answers CPUID, -1 if the table has none."""
    for k in range(state.N_CPUID):
        if table[k].leaf == leaf and (table[k].subleaf == ALL or table[k].subleaf == subleaf):
            return k
    return -1


@jit()
def cpuid_answer(core, table, apic_base):
    """CPUID from a table: EAX to EDX.

    CPUID.1:EDX[9] is whether the local APIC is on (SDM 3A 11.4.3), ECX[27] is CR4.OSXSAVE.
    """
    leaf = core.regs[state.RAX] & LOW32
    k = cpuid_entry(table, leaf, core.regs[state.RCX] & LOW32)
    core.regs[state.RAX] = table[k].eax if k >= 0 else ZERO
    core.regs[state.RBX] = table[k].ebx if k >= 0 else ZERO
    ecx = table[k].ecx if k >= 0 else ZERO
    edx = table[k].edx if k >= 0 else ZERO
    if k >= 0 and leaf == ONE:
        edx = (edx & ~CPUID_APIC) | (
            CPUID_APIC if apic_base & msr_index.MSR_IA32_APICBASE_ENABLE != ZERO else ZERO
        )
        ecx = (ecx & ~CPUID_OSXSAVE) | (CPUID_OSXSAVE if core.cr4 & X86_CR4_OSXSAVE != ZERO else ZERO)
    core.regs[state.RCX] = ecx
    core.regs[state.RDX] = edx


@jit()
def execute_cpuid(core, u):
    """CPUID of micro-op u: a CODE_*."""
    if core.vmx.nonroot != 0:
        return leave_guest(core, u, vmcs.EXIT_CPUID, ZERO)
    cpuid_answer(core, core.cpuid, core.lapic.apic_base)
    retire(core, u)
    return state.CODE_NEXT
