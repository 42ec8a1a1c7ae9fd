"""VMCALL asks KVM for something: the number in RAX, arguments in RBX, RCX, RDX and RSI, the answer in RAX.

arch/x86/kvm/x86.c: ____kvm_emulate_hypercall(); lapic.c: kvm_pv_send_ipi().
"""

from __future__ import annotations

from vpmu_emu._jit import jit
from vpmu_emu.linux.kvm.irq import kvm_apic_set_irq, kvm_vcpu_kick, vapic_of
from vpmu_emu.linux.percpu import this_core
from vpmu_emu.linux.state import N_VCPUS
from vpmu_emu.machine import msr_index
from vpmu_emu.machine.state import RAX, RBX, RCX, RDX, RSI
from vpmu_emu.machine.u64 import LOW32, ONE, U64, ZERO
from vpmu_emu.tables.linux import constant

KVM_HC_VAPIC_POLL_IRQ = U64(constant("KVM_HC_VAPIC_POLL_IRQ"))
KVM_HC_KICK_CPU = U64(constant("KVM_HC_KICK_CPU"))
KVM_HC_CLOCK_PAIRING = U64(constant("KVM_HC_CLOCK_PAIRING"))
KVM_HC_SEND_IPI = U64(constant("KVM_HC_SEND_IPI"))
KVM_HC_SCHED_YIELD = U64(constant("KVM_HC_SCHED_YIELD"))
PV_UNHALT, PV_SEND_IPI, PV_SCHED_YIELD = 7, 11, 13  # bits of CPUID.40000001H:EAX
KVM_CPUID_FEATURES = U64(0x4000_0001)
KVM_EPERM, KVM_EINVAL, KVM_EOPNOTSUPP, KVM_ENOSYS = (U64((1 << 64) - n) for n in (1, 22, 95, 1000))
_DESTINATION = msr_index.APIC_DEST_LOGICAL | msr_index.APIC_SHORT_MASK
_CLUSTER = U64(64)


@jit()
def guest_pv_has(vcpu, feature):
    """Whether the guest may use a hypercall: any, until its VMM holds it to its CPUID."""
    if vcpu.pv_enforce == 0:
        return True
    for n in range(vcpu.n_cpuid):
        if vcpu.cpuid[n].leaf == KVM_CPUID_FEATURES:
            return (vcpu.cpuid[n].eax >> U64(feature)) & ONE != ZERO
    return False


@jit()
def _pv_send_ipi(S, E, vcpu, bitmap, first, icr):
    # __pv_send_ipi(): to the APICs that a bitmap names from `first` on; how many took it
    count = 0
    for k in range(N_VCPUS):
        other = S.vcpus[k]
        if other.used == 0 or other.vm != vcpu.vm:
            continue
        vapic = vapic_of(S, other)
        ident = vapic.id
        named = (
            vapic.apic_base & msr_index.MSR_IA32_APICBASE_ENABLE != ZERO
            and ident >= first
            and ident - first < _CLUSTER
        )
        if named and (bitmap >> (ident - first)) & ONE != ZERO:
            count += kvm_apic_set_irq(S, E, other, icr)
    return count


@jit()
def kvm_pv_send_ipi(S, E, vcpu, low, high, first, icr):
    """KVM_HC_SEND_IPI: send a message to the APICs of a bitmap of 128 from `first` on: how many took it."""
    if icr & _DESTINATION != ZERO:
        return KVM_EINVAL
    if S.vms[vcpu.vm].irqchip == 0:
        return KVM_EOPNOTSUPP
    count = _pv_send_ipi(S, E, vcpu, low, first, icr)
    count += _pv_send_ipi(S, E, vcpu, high, (first + _CLUSTER) & LOW32, icr)
    return U64(count)


@jit()
def kvm_pv_kick_cpu_op(S, E, vcpu, apicid):
    """KVM_HC_KICK_CPU: the vCPU of this APIC no longer halts."""
    for k in range(N_VCPUS):
        other = S.vcpus[k]
        if other.used != 0 and other.vm == vcpu.vm and vapic_of(S, other).id == apicid:
            other.pv_unhalted = 1
            kvm_vcpu_kick(S, E, other)


@jit()
def kvm_emulate_hypercall(S, E, vcpu):
    """Do what the guest asks for: the answer is in RAX. Modifies S."""
    core = this_core(S)
    nr = core.regs[RAX]
    vcpu.hypercall_nr = nr
    answer = KVM_ENOSYS
    if vcpu.cpl != 0:
        answer = KVM_EPERM
    elif nr == KVM_HC_VAPIC_POLL_IRQ:
        answer = ZERO
    elif nr == KVM_HC_KICK_CPU and guest_pv_has(vcpu, PV_UNHALT):
        kvm_pv_kick_cpu_op(S, E, vcpu, core.regs[RCX] & LOW32)
        answer = ZERO
    elif nr == KVM_HC_CLOCK_PAIRING:
        answer = KVM_EOPNOTSUPP  # a host without a clock to pair with
    elif nr == KVM_HC_SEND_IPI and guest_pv_has(vcpu, PV_SEND_IPI):
        first = core.regs[RDX] & LOW32
        answer = kvm_pv_send_ipi(S, E, vcpu, core.regs[RBX], core.regs[RCX], first, core.regs[RSI])
    elif nr == KVM_HC_SCHED_YIELD and guest_pv_has(vcpu, PV_SCHED_YIELD):
        answer = ZERO
    core.regs[RAX] = answer
