"""NMIs for a guest: whoever sends one queues it, and what waits then is decided before the next entry.

arch/x86/kvm/x86.c: kvm_inject_nmi(), process_nmi().
"""

from __future__ import annotations

from vpmu_emu._jit import jit
from vpmu_emu.linux.kvm.vmx.registers import vmx_get_nmi_mask
from vpmu_emu.linux.state import KVM_REQ_NMI


@jit()
def kvm_inject_nmi(vcpu):
    """Queue an NMI. Modifies vcpu."""
    vcpu.nmi_queued += 1
    vcpu.requests |= KVM_REQ_NMI


@jit()
def process_nmi(M, vcpu):
    """KVM_REQ_NMI: one NMI may wait, and a second beside it that is injected at once.

    While the guest has NMIs masked none is injected at once, and the second would be one too many.
    """
    vcpu.requests &= ~KVM_REQ_NMI
    masked = vmx_get_nmi_mask(M, vcpu) or vcpu.nmi_injected != 0
    vcpu.nmi_pending = min(vcpu.nmi_pending + vcpu.nmi_queued, 1 if masked else 2)
    vcpu.nmi_queued = 0
