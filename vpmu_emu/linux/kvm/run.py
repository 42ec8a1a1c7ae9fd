"""struct kvm_run, the page that KVM and the VMM share: why KVM_RUN returns is written here.

The layout is that of the table; port data lie in the page behind it. uapi/linux/kvm.h.
"""

from __future__ import annotations

import numpy as np

from vpmu_emu._jit import jit
from vpmu_emu.linux.kvm.vmx.registers import kvm_get_rflags, vmx_interrupt_blocked
from vpmu_emu.linux.percpu import this_core
from vpmu_emu.linux.state import USER_IO_IN, USER_IO_MMIO_READ, USER_IO_MMIO_WRITE, USER_IO_OUT
from vpmu_emu.machine.physical import ld8, ld32, ld64, st8, st16, st32, st64
from vpmu_emu.machine.u64 import ONE, U4, U64, ZERO
from vpmu_emu.tables.linux import STRUCTS, constant

KVM_EXIT_IO = constant("KVM_EXIT_IO")
KVM_EXIT_MMIO = constant("KVM_EXIT_MMIO")
KVM_EXIT_INTR = constant("KVM_EXIT_INTR")
KVM_EXIT_SHUTDOWN = constant("KVM_EXIT_SHUTDOWN")
KVM_EXIT_FAIL_ENTRY = constant("KVM_EXIT_FAIL_ENTRY")
KVM_EXIT_INTERNAL_ERROR = constant("KVM_EXIT_INTERNAL_ERROR")
KVM_EXIT_DEBUG = constant("KVM_EXIT_DEBUG")
KVM_EXIT_HLT = constant("KVM_EXIT_HLT")
KVM_EXIT_IRQ_WINDOW_OPEN = constant("KVM_EXIT_IRQ_WINDOW_OPEN")
KVM_EXIT_X86_RDMSR = constant("KVM_EXIT_X86_RDMSR")
KVM_EXIT_X86_WRMSR = constant("KVM_EXIT_X86_WRMSR")
_RUN = STRUCTS["kvm_run"]
_IMMEDIATE_EXIT = U64(_RUN.offset("immediate_exit"))
_EXIT_REASON = U64(_RUN.offset("exit_reason"))
_DIRECTION = U64(_RUN.offset("io.direction"))
_SIZE = U64(_RUN.offset("io.size"))
_PORT = U64(_RUN.offset("io.port"))
_COUNT = U64(_RUN.offset("io.count"))
_DATA_OFFSET = U64(_RUN.offset("io.data_offset"))
_MMIO_ADDRESS = U64(_RUN.offset("mmio.phys_addr"))
_MMIO_DATA = U64(_RUN.offset("mmio.data"))
_MMIO_LEN = U64(_RUN.offset("mmio.len"))
_MMIO_IS_WRITE = U64(_RUN.offset("mmio.is_write"))
_SUBERROR = U64(_RUN.offset("internal.suberror"))
_NDATA = U64(_RUN.offset("internal.ndata"))
_DATA = U64(_RUN.offset("internal.data"))
_ENTRY_FAILURE = U64(_RUN.offset("fail_entry.hardware_entry_failure_reason"))
_FAILED_CPU = U64(_RUN.offset("fail_entry.cpu"))
_MSR_ERROR = U64(_RUN.offset("msr.error"))
_MSR_REASON = U64(_RUN.offset("msr.reason"))
_MSR_INDEX = U64(_RUN.offset("msr.index"))
_MSR_DATA = U64(_RUN.offset("msr.data"))
_REQUEST_WINDOW = U64(_RUN.offset("request_interrupt_window"))
_READY = U64(_RUN.offset("ready_for_interrupt_injection"))
_DEBUG_EXCEPTION = U64(_RUN.offset("debug.arch.exception"))
_DEBUG_PC = U64(_RUN.offset("debug.arch.pc"))
_DEBUG_DR6 = U64(_RUN.offset("debug.arch.dr6"))
_DEBUG_DR7 = U64(_RUN.offset("debug.arch.dr7"))
_CR8 = U64(_RUN.offset("cr8"))
_APIC_BASE = U64(_RUN.offset("apic_base"))
_IF_FLAG = U64(_RUN.offset("if_flag"))
_RFLAGS_IF_BIT = U64(9)
EMULATION_FAILED = constant("KVM_INTERNAL_ERROR_EMULATION")
DELIVERY_EV = constant("KVM_INTERNAL_ERROR_DELIVERY_EV")
UNEXPECTED_EXIT_REASON = constant("KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON")
PIO_PAGE = U64(4096)
INVALID_GUEST_STATE = U64(0x8000_0021)


@jit()
def is_ready_for_interrupt(M, vcpu):
    """kvm_vcpu_ready_for_interrupt_injection() of a vCPU that no core has loaded."""
    if vmx_interrupt_blocked(M, vcpu):
        return False
    return vcpu.exception < 0 and vcpu.interrupt < 0 and vcpu.nmi_injected == 0


@jit()
def dm_request_for_irq_injection(S, M, vcpu):
    """Whether the VMM has the interrupt controller and waits to inject from it."""
    page = U64(vcpu.run_page)
    return S.vms[vcpu.vm].irqchip == 0 and ld8(M, page + _REQUEST_WINDOW) != ZERO


@jit()
def post_kvm_run_save(S, M, vcpu):
    """What KVM_RUN always tells, of a vCPU that no core has loaded. Modifies the page."""
    page = U64(vcpu.run_page)
    ready = S.vms[vcpu.vm].irqchip != 0 or is_ready_for_interrupt(M, vcpu)
    st8(M, page + _READY, ONE if ready else ZERO)
    st64(M, page + _CR8, vcpu.vapic.tpr >> U4)
    st64(M, page + _APIC_BASE, vcpu.vapic.apic_base)
    st8(M, page + _IF_FLAG, kvm_get_rflags(M, vcpu) >> _RFLAGS_IF_BIT & ONE)


@jit()
def exit_to_user(S, M, vcpu, reason):
    """Have KVM_RUN return with KVM_EXIT_* `reason`. Modifies the page."""
    vcpu.user_exit = reason
    vcpu.io_len = this_core(S).vmx.exit_insn_len
    st32(M, U64(vcpu.run_page) + _EXIT_REASON, U64(reason))


@jit()
def signal_pending(S, vcpu):
    """Whether the thread in KVM_RUN has a signal to take (kvm_sigset_activate)."""
    task = S.tasks[vcpu.task]
    blocked = vcpu.sigset if vcpu.sigset_active != 0 else task.blocked
    return task.pending & ~blocked != ZERO


@jit()
def exit_for_signal(M, vcpu):
    """kvm_handle_signal_exit(): KVM_RUN fails with EINTR. Modifies the page."""
    vcpu.user_exit = KVM_EXIT_INTR
    st32(M, U64(vcpu.run_page) + _EXIT_REASON, U64(KVM_EXIT_INTR))


@jit()
def exit_for_port(S, M, vcpu, incoming, port, size, value, count):
    """KVM_EXIT_IO; `incoming` 1 is IN, of `count` elements. `port`, `size`, `value`, `count` are uint64."""
    page = U64(vcpu.run_page)
    vcpu.complete = USER_IO_IN if incoming != 0 else USER_IO_OUT
    st8(M, page + _DIRECTION, ZERO if incoming != 0 else ONE)
    st8(M, page + _SIZE, size)
    st16(M, page + _PORT, port)
    st32(M, page + _COUNT, count)
    st64(M, page + _DATA_OFFSET, PIO_PAGE)
    if incoming != 0:
        for k in range(np.int64(size * count)):
            st8(M, page + PIO_PAGE + U64(k), ZERO)
    else:
        st32(M, page + PIO_PAGE, value)
    exit_to_user(S, M, vcpu, KVM_EXIT_IO)


@jit()
def port_data(M, vcpu):
    """What the VMM answered to an IN, as uint64."""
    return ld32(M, U64(vcpu.run_page) + PIO_PAGE)


@jit()
def exit_for_mmio_read(S, M, vcpu, gpa, size):
    """KVM_EXIT_MMIO: the emulator waits for `size` bytes at `gpa`."""
    page = U64(vcpu.run_page)
    vcpu.complete = USER_IO_MMIO_READ
    st64(M, page + _MMIO_ADDRESS, gpa)
    st32(M, page + _MMIO_LEN, size)
    st8(M, page + _MMIO_IS_WRITE, ZERO)
    exit_to_user(S, M, vcpu, KVM_EXIT_MMIO)


@jit()
def exit_for_mmio_write(S, M, vcpu):
    """KVM_EXIT_MMIO: the VMM is told of the next write of the instruction that is over."""
    page = U64(vcpu.run_page)
    k = vcpu.mmio_cur
    vcpu.complete = USER_IO_MMIO_WRITE
    st64(M, page + _MMIO_ADDRESS, vcpu.mmio_gpa[k])
    st64(M, page + _MMIO_DATA, vcpu.mmio_data[k])
    st32(M, page + _MMIO_LEN, vcpu.mmio_len[k])
    st8(M, page + _MMIO_IS_WRITE, ONE)
    exit_to_user(S, M, vcpu, KVM_EXIT_MMIO)


@jit()
def mmio_data(M, vcpu):
    """What the VMM answered to a read, as uint64."""
    return ld64(M, U64(vcpu.run_page) + _MMIO_DATA)


@jit()
def exit_for_msr(S, M, vcpu, index, value, writes, reason):
    """KVM_EXIT_X86_RDMSR or _WRMSR; `index` and `value` are uint64, `reason` is KVM_MSR_EXIT_REASON_*."""
    page = U64(vcpu.run_page)
    st8(M, page + _MSR_ERROR, ZERO)
    st32(M, page + _MSR_REASON, U64(reason))
    st32(M, page + _MSR_INDEX, index)
    st64(M, page + _MSR_DATA, value)
    exit_to_user(S, M, vcpu, KVM_EXIT_X86_WRMSR if writes != 0 else KVM_EXIT_X86_RDMSR)


@jit()
def msr_answer(M, vcpu):
    """What the VMM answered: (whether it wants #GP, the value of an RDMSR)."""
    page = U64(vcpu.run_page)
    return ld8(M, page + _MSR_ERROR) != ZERO, ld64(M, page + _MSR_DATA)


@jit()
def exit_for_debug(S, M, vcpu, vector, pc, dr6, dr7):
    """KVM_EXIT_DEBUG: exception `vector` (int64) at `pc`."""
    page = U64(vcpu.run_page)
    st32(M, page + _DEBUG_EXCEPTION, U64(vector))
    st64(M, page + _DEBUG_PC, pc)
    st64(M, page + _DEBUG_DR6, dr6)
    st64(M, page + _DEBUG_DR7, dr7)
    exit_to_user(S, M, vcpu, KVM_EXIT_DEBUG)


@jit()
def exit_for_bug(S, M, vcpu, reason, suberror):
    """KVM_EXIT_INTERNAL_ERROR at exit reason `reason`: KVM cannot emulate, deliver or handle it.

    The data are those of `suberror`: flags (0: no bytes of an instruction); vectoring information, reason,
    qualification, core; reason, core.
    """
    vmx = this_core(S).vmx
    page = U64(vcpu.run_page)
    at = page + _DATA
    n = 0
    if suberror == DELIVERY_EV:
        st64(M, at, vmx.idt_vectoring)
        st64(M, at + U64(8), reason)
        st64(M, at + U64(16), vmx.exit_qual)
        n = 3
    elif suberror == UNEXPECTED_EXIT_REASON:
        st64(M, at, reason)
        n = 1
    last = ZERO if suberror == EMULATION_FAILED else U64(S.this_cpu)
    st64(M, at + U64(8 * n), last)
    st32(M, page + _SUBERROR, U64(suberror))
    st32(M, page + _NDATA, U64(n + 1))
    exit_to_user(S, M, vcpu, KVM_EXIT_INTERNAL_ERROR)


@jit()
def exit_for_real_mode(S, M, vcpu):
    """KVM_EXIT_FAIL_ENTRY: a vCPU after RESET or INIT, and no unrestricted guest."""
    page = U64(vcpu.run_page)
    st64(M, page + _ENTRY_FAILURE, INVALID_GUEST_STATE)
    st32(M, page + _FAILED_CPU, U64(S.this_cpu))
    exit_to_user(S, M, vcpu, KVM_EXIT_FAIL_ENTRY)


@jit()
def immediate_exit(M, vcpu):
    """Whether the VMM wants nothing but the completion."""
    return ld8(M, U64(vcpu.run_page) + _IMMEDIATE_EXIT) != ZERO
