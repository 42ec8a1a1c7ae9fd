"""ioctl(KVM_RUN) from a VMM's program to its guest and back: what every exit to a VMM does stays compiled.

What is rare (errors, other threads that wait, a VM whose last file is gone) is left to the system call in
`linux/syscalls`, which does the same. virt/kvm/kvm_main.c kvm_vcpu_ioctl(), arch/x86/kvm/x86.c
kvm_arch_vcpu_ioctl_run().
"""

from __future__ import annotations

import numpy as np

from vpmu_emu._jit import jit
from vpmu_emu.linux import state
from vpmu_emu.linux.charge import charge
from vpmu_emu.linux.kvm.run import KVM_EXIT_INTR, post_kvm_run_save
from vpmu_emu.linux.kvm.vmx.registers import vmx_get_efer
from vpmu_emu.linux.native import cost
from vpmu_emu.linux.percpu import this_core, this_cpu
from vpmu_emu.machine import msr_index
from vpmu_emu.machine.state import RAX, RDI, RDX, RSI
from vpmu_emu.machine.u64 import LOW32, U64, ZERO
from vpmu_emu.tables.linux import ERRNO, constant

COST_IOCTL = cost("kvm_vcpu_ioctl")
SYS_IOCTL = U64(constant("SYS_ioctl"))
KVM_RUN = U64(constant("KVM_RUN"))
EINTR, EAGAIN, EFAULT = (ERRNO[name] for name in ("EINTR", "EAGAIN", "EFAULT"))


@jit()
def _vcpu_of(S, mm, fd):
    # The vCPU behind a descriptor of process `mm`, -1 if it is none of its own.
    for i in range(state.N_FILES):
        file = S.files[i]
        if file.kind == state.FILE_VCPU and file.mm == mm and U64(file.fd) == fd:
            return file.obj if S.vms[S.vcpus[file.obj].vm].mm == mm else -1
    return -1


@jit()
def kvm_run_begins(S, M, E):
    """Whether the system call of the current task is a KVM_RUN after which its guest has the core."""
    core = this_core(S)
    row = this_cpu(S).curr
    task = S.tasks[row]
    if core.regs[RAX] & LOW32 != SYS_IOCTL or core.regs[RSI] & LOW32 != KVM_RUN or core.regs[RDX] != ZERO:
        return False
    k = _vcpu_of(S, task.mm, core.regs[RDI] & LOW32)
    if k < 0 or S.vcpus[k].task >= 0 or S.vcpus[k].launched == 0:
        return False  # the first one ends the boot of a run
    vcpu = S.vcpus[k]
    waits = vcpu.mp_state == state.MP_STATE_UNINITIALIZED or vcpu.mp_state == state.MP_STATE_INIT_RECEIVED
    if not waits and vmx_get_efer(M, vcpu) & msr_index.EFER_LMA == ZERO:
        return False
    task.mutex = 0
    charge(S, E, COST_IOCTL)
    vcpu.user_exit = -1
    vcpu.task = row
    task.vcpu = k
    core.regs[RAX] = ZERO
    task.entered = state.ENTERED_NOT
    return True


@jit()
def kvm_run_result(S, M):
    """KVM_RUN of the current task is over: what it answers, the rest of struct kvm_run filled in."""
    vcpu = S.vcpus[S.tasks[this_cpu(S).curr].vcpu]
    post_kvm_run_save(S, M, vcpu)
    if vcpu.user_exit == KVM_EXIT_INTR:
        return -EINTR
    if vcpu.user_exit == state.USER_AGAIN:
        return -EAGAIN
    if vcpu.user_exit == state.USER_FAULT:
        return -EFAULT
    return 0


@jit()
def kvm_run_ends(S, M):
    """Whether the current task is back from KVM_RUN; if not, its VM may have to go or others wait."""
    task = S.tasks[this_cpu(S).curr]
    k = task.vcpu
    for i in range(state.N_TASKS):
        if S.tasks[i].used != 0 and S.tasks[i].mutex == k + 1:
            return False
    vm = S.vcpus[k].vm
    is_open = False
    for i in range(state.N_FILES):
        file = S.files[i]
        if file.kind == state.FILE_VM and file.obj == vm:
            is_open = True
        elif file.kind == state.FILE_VCPU and S.vcpus[file.obj].vm == vm:
            is_open = True
    if not is_open:
        return False
    this_core(S).regs[RAX] = U64(np.int64(kvm_run_result(S, M)))
    S.vcpus[k].task = -1
    task.vcpu = -1
    task.entered = state.ENTERED_NOT
    return True
