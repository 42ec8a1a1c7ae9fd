"""MSR accesses that the VMM wants to hear of: those that its filter denies, those that would be #GP.

kvm_msr_allowed(), kvm_msr_user_space() of arch/x86/kvm/x86.c; kvm/vmx/intercepts.py writes the pages
of the filter.
"""

from __future__ import annotations

from vpmu_emu._jit import jit
from vpmu_emu.linux.kvm.run import exit_for_msr
from vpmu_emu.linux.percpu import this_core
from vpmu_emu.linux.state import USER_IO_RDMSR, USER_IO_WRMSR
from vpmu_emu.linux.trace_kinds import TR_MSR_USER_SPACE
from vpmu_emu.machine.lapic import is_x2apic_msr
from vpmu_emu.machine.msr import find_msr
from vpmu_emu.machine.physical import ld32
from vpmu_emu.machine.ring import emit
from vpmu_emu.machine.u64 import ONE, U2, U3, U4, U7, U8, U64, ZERO
from vpmu_emu.tables.linux import constant

REASON_INVAL = constant("KVM_MSR_EXIT_REASON_INVAL")
REASON_UNKNOWN = constant("KVM_MSR_EXIT_REASON_UNKNOWN")
REASON_FILTER = constant("KVM_MSR_EXIT_REASON_FILTER")
FILTER_ENTRY = 16  # flags, number of MSRs, first MSR
FILTER_BITMAPS = 4096  # where the bitmaps begin
FILTER_BITMAP = constant("KVM_MSR_FILTER_MAX_BITMAP_SIZE")
_READ, _WRITE = ONE, U2


@jit()
def kvm_msr_allowed(S, M, vcpu, index, writes):
    """Whether the VM's filter lets the guest read (`writes` 0) or write MSR `index`."""
    vm = S.vms[vcpu.vm]
    if vm.msr_filter == 0 or is_x2apic_msr(index):
        return True
    kind = _WRITE if writes != 0 else _READ
    for k in range(vm.msr_filter_n):
        at = U64(vm.msr_filter + FILTER_ENTRY * k)
        first = ld32(M, at + U8)
        if ld32(M, at) & kind != ZERO and index >= first and index - first < ld32(M, at + U4):
            n = index - first
            bitmap = U64(vm.msr_filter + FILTER_BITMAPS + FILTER_BITMAP * k)
            return (U64(M[bitmap + (n >> U3)]) >> (n & U7)) & ONE != ZERO
    return vm.msr_filter_allow != 0


@jit()
def _to_vmm(S, M, E, vcpu, index, value, writes, reason):
    vm = S.vms[vcpu.vm]
    if vcpu.run_page == 0 or vm.user_space_msr_mask & reason == 0:
        return False
    vcpu.complete = USER_IO_WRMSR if writes != 0 else USER_IO_RDMSR
    exit_for_msr(S, M, vcpu, index, value, writes, reason)
    core = this_core(S)
    emit(E, core.t, TR_MSR_USER_SPACE, core.rip, index, U64(reason), U64(writes))
    return True


@jit()
def msr_denied_to_vmm(S, M, E, vcpu, index, value, writes):
    """An access that the filter denies: True if the VMM will do it, else it is #GP."""
    return _to_vmm(S, M, E, vcpu, index, value, writes, REASON_FILTER)


@jit()
def msr_fault_to_vmm(S, M, E, vcpu, index, value, writes):
    """An access that would be #GP: True if the VMM wants to do it itself (KVM_CAP_X86_USER_SPACE_MSR)."""
    if S.vms[vcpu.vm].user_space_msr_mask == 0:
        return False
    rn = find_msr(index)
    known = rn >= 0 and (rn & 63) < vcpu.msr_n[rn >> 6]
    reason = REASON_INVAL if known else REASON_UNKNOWN
    return _to_vmm(S, M, E, vcpu, index, value, writes, reason)
