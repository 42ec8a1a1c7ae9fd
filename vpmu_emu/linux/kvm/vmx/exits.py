"""The exit handlers of VMX; those of RDMSR, WRMSR and RDPMC, which ask the vPMU, are in kvm/x86.py.

A handler does its work, then skips the instruction, which counts it in software: an instruction that
exits does not retire in hardware. arch/x86/kvm/vmx/vmx.c, x86.c.
"""

from __future__ import annotations

import numpy as np

from vpmu_emu._jit import jit
from vpmu_emu.linux import state
from vpmu_emu.linux.charge import charge
from vpmu_emu.linux.kvm.debugregs import kvm_vcpu_do_singlestep
from vpmu_emu.linux.kvm.hypercall import kvm_emulate_hypercall
from vpmu_emu.linux.kvm.lapic import (
    kvm_set_apic_base,
    kvm_set_lapic_tscdeadline_msr,
    kvm_x2apic_msr_read,
    kvm_x2apic_msr_write,
)
from vpmu_emu.linux.kvm.msrfilter import msr_fault_to_vmm
from vpmu_emu.linux.kvm.pmu import intel_pmu_lbr_is_enabled
from vpmu_emu.linux.kvm.run import (
    DELIVERY_EV,
    KVM_EXIT_HLT,
    KVM_EXIT_IRQ_WINDOW_OPEN,
    KVM_EXIT_SHUTDOWN,
    UNEXPECTED_EXIT_REASON,
    dm_request_for_irq_injection,
    exit_for_bug,
    exit_for_port,
    exit_to_user,
    msr_answer,
    port_data,
)
from vpmu_emu.linux.kvm.trigger import kvm_pmu_trigger_event
from vpmu_emu.linux.kvm.vcpu import kvm_vcpu_has_events
from vpmu_emu.linux.kvm.vmx.debugregs import handle_dr
from vpmu_emu.linux.native import cost
from vpmu_emu.linux.percpu import this_core
from vpmu_emu.machine import msr as msrs
from vpmu_emu.machine import msr_index, ring, vmcs
from vpmu_emu.machine import state as machine
from vpmu_emu.machine.bus import EXIT_APIC_ACCESS, EXIT_EPT_MISCONFIG, EXIT_EPT_VIOLATION
from vpmu_emu.machine.clock import tsc_at
from vpmu_emu.machine.control_registers import (
    cr0_is_valid,
    cr4_is_valid,
    set_cr0,
    set_cr4,
    xcr0_is_valid,
)
from vpmu_emu.machine.lapic import is_x2apic_msr, lapic_read
from vpmu_emu.machine.msr import (
    check_read,
    check_write,
    find_msr,
    msr_apply,
    msr_value,
    note_msr,
    note_msr_fault,
    note_rdpmc,
)
from vpmu_emu.machine.msr_access import cpuid_answer, cpuid_entry
from vpmu_emu.machine.mutants import I_CPUID, I_NO_WRMSR
from vpmu_emu.machine.pmu_rules import rdpmc_result
from vpmu_emu.machine.ports import IO_STRING
from vpmu_emu.machine.processor_flags import X86_CR4_OSXSAVE, X86_EFLAGS_TF
from vpmu_emu.machine.ring import emit
from vpmu_emu.machine.u64 import ALL, LOW32, ONE, U8, U16, U32, U64, WORD, ZERO
from vpmu_emu.machine.vectors import VECTOR_GP
from vpmu_emu.machine.vmcs import vmread, vmwrite
from vpmu_emu.tables.modes import kernel_version
from vpmu_emu.tables.msrs import ACCESS_DROP, ACCESS_RO, ACCESS_WO

V6_12 = kernel_version(6, 12)
COST_CR = cost("handle_cr")
COST_CPUID = cost("kvm_emulate_cpuid")
COST_HYPERCALL = cost("kvm_emulate_hypercall")
COST_PIO = cost("kvm_fast_pio")
COST_WINDOW = cost("handle_interrupt_window")

_DEBUGCTL_DROPPED = msr_index.DEBUGCTLMSR_BTF | msr_index.DEBUGCTLMSR_LBR
_SHADOWS = vmcs.STI_BLOCKING | vmcs.MOV_SS_BLOCKING
_SIZE = U64(7)
_IN = U64(8)
_SIZE_4 = U64(4)
_PORT_7E = U64(0x7E)
_LOW48 = U64((1 << 48) - 1)
_BIT47 = U64(1 << 47)
_XSAVE = U64(1 << 26)  # CPUID.1:ECX
_LEAF_XSTATE = U64(0xD)
_ACCESS_TYPE = U64(3 << 4)  # of the exit qualification; all ones is LMSW


@jit()
def kvm_queue_exception(vcpu, vector, has_error, error):
    """Inject an exception at the next entry; the instruction is not skipped."""
    vcpu.exception = vector
    vcpu.exception_pending = 1
    vcpu.exception_has_error = has_error
    vcpu.exception_error = error
    vcpu.exception_has_payload = 0
    vcpu.exception_payload = ZERO


@jit()
def kvm_inject_gp(vcpu):
    """#GP(0)."""
    kvm_queue_exception(vcpu, VECTOR_GP, 1, ZERO)


@jit()
def _uncounted(core):
    reason = core.vmx.exit_reason
    if core.inject & I_CPUID != ZERO and reason == vmcs.EXIT_CPUID:
        return True
    return core.inject & I_NO_WRMSR != ZERO and reason == vmcs.EXIT_MSR_WRITE


@jit()
def kvm_skip_emulated_instruction(S, M, E, vcpu):
    """Go past the instruction that was emulated, and count it."""
    stepping = vmread(this_core(S), M, vmcs.V_RFLAGS) & X86_EFLAGS_TF != ZERO
    _skip(S, M, E, vcpu)
    if stepping:
        kvm_vcpu_do_singlestep(S, M, vcpu)


@jit()
def _skip(S, M, E, vcpu):
    core = this_core(S)
    core.rip = vmread(core, M, vmcs.V_RIP) + core.vmx.exit_insn_len
    vmwrite(core, M, vmcs.V_RIP, core.rip)
    vcpu.emulated_insns += ONE
    this_core(S).stats.emulated += ONE
    vmwrite(core, M, vmcs.V_INTERRUPTIBILITY, vmread(core, M, vmcs.V_INTERRUPTIBILITY) & ~_SHADOWS)
    if core.inject == ZERO or not _uncounted(core):
        kvm_pmu_trigger_event(S, E, vcpu, vcpu.pmu.pmc_counting_instructions)


@jit()
def _absent(core, E, index, value, writes, hidden):
    # No such register: GP_ABSENT, or 0 if KVM hides that (`hidden`, or its parameter ignore_msrs).
    # `writes` 1: WRMSR, 0: RDMSR, -1: nobody asks, it is only for the trace.
    if hidden == 0 and core.ignore_msrs == 0:
        return ring.GP_ABSENT
    if writes >= 0:
        emit(E, core.t, ring.TR_MSR_DROPPED, core.rip, index, value, U64(writes))
    return 0


@jit()
def kvm_set_msr_common(S, M, E, vcpu, index, value):
    """WRMSR of the guest to anything but its PMU; not 0 means #GP: GP_*."""
    core = this_core(S)
    rn = find_msr(index)
    if rn < 0:
        return _absent(core, E, index, value, 1, 0)
    row = rn >> 6
    n = rn & 63
    if n >= vcpu.msr_n[row]:
        # The selectors and counters of the P6 and K7 are accepted silently even if absent.
        return _absent(core, E, index, value, 1, 1 if n < vcpu.msr_dropped[row] else 0)
    if vcpu.msr_access[row] == ACCESS_DROP:
        return _absent(core, E, index, value, 1, 1)
    if vcpu.msr_access[row] == ACCESS_RO:
        return ring.GP_READ_ONLY
    if value & vcpu.msr_reserved[row] != ZERO:
        return ring.GP_RESERVED
    if is_x2apic_msr(index):
        return kvm_x2apic_msr_write(S, E, vcpu, index, value)
    if row == msrs.R_APIC_BASE:
        return kvm_set_apic_base(S, M, vcpu, value)
    if row == msrs.R_TSC:
        now = tsc_at(core, core.t) + core.tsc_adjust
        vmwrite(core, M, vmcs.V_TSC_OFFSET, value - now)
        return 0
    if row == msrs.R_TSC_DEADLINE:
        kvm_set_lapic_tscdeadline_msr(S, M, vcpu, value)
        return 0
    if row == msrs.R_MISC_ENABLE:
        old = vcpu.ia32_misc_enable_msr
        if (old ^ value) & msr_index.MSR_IA32_MISC_ENABLE_PMU_RO_MASK != ZERO:
            return ring.GP_VALUE
        vcpu.ia32_misc_enable_msr = (value & ~msr_index.MSR_IA32_MISC_ENABLE_EMON) | (
            old & msr_index.MSR_IA32_MISC_ENABLE_EMON
        )
        return 0
    if row == msrs.R_DEBUGCTL:
        # vmx_set_msr: what is not supported goes with a message and without a fault
        value &= ~(msr_index.DEBUGCTLMSR_BTF if intel_pmu_lbr_is_enabled(vcpu) else _DEBUGCTL_DROPPED)
        vmwrite(core, M, vmcs.V_DEBUGCTL, value)
        return 0
    if row == msrs.R_SYSENTER_ESP or row == msrs.R_SYSENTER_EIP:
        # __kvm_set_msr(): where hardware would fault, KVM's write makes the address canonical
        value = (value & _LOW48 ^ _BIT47) - _BIT47
    rn = check_write(core, index, value)
    if rn < 0:
        return -rn if rn < msrs.DROPPED else 0
    msr_apply(core, E, rn, index, value)
    # what the VMCS holds for the guest comes from there at entry
    vmwrite(core, M, vmcs.V_EFER, core.efer)
    vmwrite(core, M, vmcs.V_FS_BASE, core.regs[machine.REG_FS])
    vmwrite(core, M, vmcs.V_GS_BASE, core.regs[machine.REG_GS])
    return 0


@jit()
def kvm_get_msr_common(S, M, E, vcpu, index, look):
    """RDMSR of the guest of anything but its PMU: (0, or GP_* for #GP; value).

    `look` 1: what it would have been where the guest was left; it takes no time.
    """
    core = this_core(S)
    rn = find_msr(index)
    if rn < 0:
        return _absent(core, E, index, ZERO, -look, 0), ZERO
    row = rn >> 6
    n = rn & 63
    if n >= vcpu.msr_n[row]:
        return _absent(core, E, index, ZERO, -look, 1 if n < vcpu.msr_dropped[row] else 0), ZERO
    if vcpu.msr_access[row] == ACCESS_DROP:
        return _absent(core, E, index, ZERO, -look, 1), ZERO
    if vcpu.msr_access[row] == ACCESS_WO:
        return ring.GP_WRITE_ONLY, ZERO
    if is_x2apic_msr(index):
        if core.vapic.apic_base & msr_index.X2APIC_ENABLE == ZERO:
            return ring.GP_NOT_X2APIC, ZERO
        if look != 0:
            return 0, lapic_read(core, core.vapic, index)
        return 0, kvm_x2apic_msr_read(S, E, index)
    if row == msrs.R_APIC_BASE:
        return 0, core.vapic.apic_base
    if row == msrs.R_TSC:
        t = core.vmx.exit_t if look != 0 else core.t
        return 0, tsc_at(core, t) + core.tsc_adjust + vmread(core, M, vmcs.V_TSC_OFFSET)
    if row == msrs.R_TSC_DEADLINE:
        return 0, core.vapic.tsc_deadline
    if row == msrs.R_MISC_ENABLE:
        return 0, vcpu.ia32_misc_enable_msr
    if row == msrs.R_PERF_CAPABILITIES:
        return 0, vcpu.perf_capabilities
    if row == msrs.R_DEBUGCTL:
        return 0, vmread(core, M, vmcs.V_DEBUGCTL)
    rn = check_read(core, index)
    if rn < 0:
        return -rn if rn < msrs.DROPPED else 0, ZERO
    return 0, msr_value(core, rn, index)


@jit()
def finish_wrmsr(S, M, E, vcpu, index, value, fault):
    """The end of every WRMSR exit: #GP, or note it and skip it; vcpu.wrmsr_old is what was there before."""
    core = this_core(S)
    if fault != 0 and msr_fault_to_vmm(S, M, E, vcpu, index, value, 1):
        return
    if fault != 0:
        note_msr_fault(core, E, index, value, 1, fault)
        kvm_inject_gp(vcpu)
    else:
        note_msr(core, E, index, value, vcpu.wrmsr_old, vcpu.wrmsr_kind, 1)
        kvm_skip_emulated_instruction(S, M, E, vcpu)


@jit()
def finish_rdmsr(S, M, E, vcpu, index, value, fault):
    """The end of every RDMSR exit: #GP, or give the value and skip it."""
    core = this_core(S)
    if fault != 0 and msr_fault_to_vmm(S, M, E, vcpu, index, ZERO, 0):
        return
    if fault != 0:
        note_msr_fault(core, E, index, ZERO, 0, fault)
        kvm_inject_gp(vcpu)
    else:
        core.regs[machine.RAX] = value & LOW32
        core.regs[machine.RDX] = value >> U32
        note_msr(core, E, index, value, value, msrs.READ, 1)
        kvm_skip_emulated_instruction(S, M, E, vcpu)


@jit()
def finish_rdpmc(S, M, E, vcpu, ecx, value):
    """The end of an RDPMC exit that did not fault."""
    core = this_core(S)
    value = rdpmc_result(core, ecx, value)
    core.regs[machine.RAX] = value & LOW32
    core.regs[machine.RDX] = value >> U32
    core.stats.rdpmcs += ONE
    note_rdpmc(core, E, core.rip, ecx, value, 1)
    kvm_skip_emulated_instruction(S, M, E, vcpu)


@jit()
def kvm_emulate_cpuid(S, M, E, vcpu):
    """CPUID from the table that the VMM gave (KVM_SET_CPUID2)."""
    core = this_core(S)
    charge(S, E, COST_CPUID)
    cpuid_answer(core, vcpu.cpuid, core.vapic.apic_base)  # kvm_update_cpuid_runtime()
    kvm_skip_emulated_instruction(S, M, E, vcpu)


@jit()
def handle_io(S, M, E, vcpu):
    """IN and OUT: out to the VMM, which is the machine's platform."""
    core = this_core(S)
    charge(S, E, COST_PIO)
    qualification = core.vmx.exit_qual
    port = (qualification >> U16) & WORD
    size = (qualification & _SIZE) + ONE
    mask = ALL >> (U64(64) - size * U8)
    incoming = qualification & _IN != ZERO
    if qualification & IO_STRING != ZERO:
        vcpu.pio_count = E.port_count if incoming else ONE
        exit_for_port(S, M, vcpu, 1 if incoming else 0, port, size, E.port_value & mask, vcpu.pio_count)
        if incoming:  # the emulator goes on with what the VMM gives
            vcpu.complete = state.USER_IO_STRING
        else:
            vcpu.complete = state.USER_IO_NONE
            _skip(S, M, E, vcpu)
        return
    emulated = vmread(core, M, vmcs.V_EXIT_REASON) != vmcs.EXIT_IO_INSTRUCTION
    vcpu.pio_size = size
    vcpu.cui_linear_rip = ALL if emulated else vmread(core, M, vmcs.V_RIP)
    exit_for_port(S, M, vcpu, 1 if incoming else 0, port, size, core.regs[machine.RAX] & mask, ONE)
    if incoming:
        return
    if emulated:
        # x86_emulate_instruction(): it is over before the VMM hears of it, and without a single step
        vcpu.complete = state.USER_IO_NONE
        _skip(S, M, E, vcpu)
    elif port == _PORT_7E:  # KVM_X86_QUIRK_OUT_7E_INC_RIP
        vcpu.complete = state.USER_IO_NONE
        kvm_skip_emulated_instruction(S, M, E, vcpu)


@jit()
def _set_accumulator(core, size, value):
    if size == _SIZE_4:
        core.regs[machine.RAX] = value & LOW32
    else:
        mask = ALL >> (U64(64) - size * U8)
        core.regs[machine.RAX] = (core.regs[machine.RAX] & ~mask) | (value & mask)


@jit()
def complete_userspace_io(S, M, E, vcpu):
    """KVM_RUN again after KVM_EXIT_IO: only now the instruction is skipped, and counted."""
    core = this_core(S)
    core.vmx.exit_insn_len = vcpu.io_len
    done = vcpu.complete
    vcpu.complete = state.USER_IO_NONE
    vcpu.completed = 1
    if done == state.USER_IO_IN or done == state.USER_IO_OUT:
        at = vcpu.cui_linear_rip
        if at != ALL and at != vmread(core, M, vmcs.V_RIP):
            return  # complete_fast_pio_out(): the VMM has taken the guest elsewhere
        if done == state.USER_IO_IN:
            _set_accumulator(core, vcpu.pio_size, port_data(M, vcpu))
    elif done == state.USER_IO_RDMSR or done == state.USER_IO_WRMSR:
        refused, value = msr_answer(M, vcpu)
        index = core.regs[machine.RCX] & LOW32
        if refused:
            writes = 1 if done == state.USER_IO_WRMSR else 0
            note_msr_fault(core, E, index, value, writes, ring.GP_USER_SPACE)
            kvm_inject_gp(vcpu)
        elif done == state.USER_IO_WRMSR:
            finish_wrmsr(S, M, E, vcpu, index, value, 0)
        else:
            finish_rdmsr(S, M, E, vcpu, index, value, 0)
        return
    kvm_skip_emulated_instruction(S, M, E, vcpu)


@jit()
def guest_has_xsave(vcpu):
    """guest_cpu_cap_has(X86_FEATURE_XSAVE); before KVM_SET_CPUID2 nothing is reserved for want of it."""
    if vcpu.n_cpuid == 0:
        return True
    k = cpuid_entry(vcpu.cpuid, ONE, ZERO)
    return k >= 0 and vcpu.cpuid[k].ecx & _XSAVE != ZERO


@jit()
def cpuid_get_supported_xcr0(vcpu):
    """What the VMM's leaf 0DH offers, whose absence offers nothing."""
    k = cpuid_entry(vcpu.cpuid, _LEAF_XSTATE, ZERO)
    return (vcpu.cpuid[k].eax | vcpu.cpuid[k].edx << U32) if k >= 0 else ZERO


@jit()
def kvm_set_xcr(core, vcpu, index, value):
    """__kvm_set_xcr(): 1 means #GP. x87 is always supported. Modifies core."""
    if index != ZERO or not xcr0_is_valid(value):
        return 1
    if value & ~(cpuid_get_supported_xcr0(vcpu) | ONE) != ZERO:
        return 1
    core.xcr0 = value
    return 0


@jit()
def kvm_emulate_xsetbv(S, M, E, vcpu):
    """XSETBV: silicon has looked at CR4.OSXSAVE and the CPL before it left the guest."""
    core = this_core(S)
    charge(S, E, COST_CR)
    value = (core.regs[machine.RAX] & LOW32) | (core.regs[machine.RDX] << U32)
    if kvm_set_xcr(core, vcpu, core.regs[machine.RCX] & LOW32, value) != 0:
        kvm_inject_gp(vcpu)
    else:
        kvm_skip_emulated_instruction(S, M, E, vcpu)


@jit()
def handle_cr(S, M, E, vcpu):
    """MOV to CR0 or CR4, and LMSW, that change a bit of the host's: kvm_set_cr0() and kvm_set_cr4()."""
    core = this_core(S)
    charge(S, E, COST_CR)
    qualification = core.vmx.exit_qual
    value = core.regs[np.int64((qualification >> U8) & U64(15))]
    lmsw = qualification & _ACCESS_TYPE == _ACCESS_TYPE
    if lmsw:  # kvm_lmsw(): PE stays
        value = (core.cr0 & ~U64(14)) | (qualification >> U16 & U64(15))
    if lmsw or qualification & U64(15) == ZERO:
        valid = cr0_is_valid(value)
        if valid:
            set_cr0(core, value)
            vmwrite(core, M, vmcs.V_CR0, core.cr0)
            vmwrite(core, M, vmcs.V_CR0_SHADOW, core.cr0)
    else:
        valid = cr4_is_valid(core, value)
        if value & X86_CR4_OSXSAVE != ZERO and not guest_has_xsave(vcpu):
            valid = False
        if valid:
            set_cr4(core, value)
            vmwrite(core, M, vmcs.V_CR4, core.cr4)
            vmwrite(core, M, vmcs.V_CR4_SHADOW, core.cr4)
    if valid:
        kvm_skip_emulated_instruction(S, M, E, vcpu)
    else:
        kvm_inject_gp(vcpu)


@jit()
def end_guest(S, M, vcpu, stop, info, suberror):
    """The guest cannot go on: its VMM hears of it, by KVM_INTERNAL_ERROR_* `suberror` or, 0, SHUTDOWN."""
    vcpu.ended = stop
    vcpu.ended_info = info
    if stop == machine.STOP_TRIPLE_FAULT:
        exit_to_user(S, M, vcpu, KVM_EXIT_SHUTDOWN)
    else:
        exit_for_bug(S, M, vcpu, info, suberror)


@jit()
def handle_undelivered(S, M, vcpu):
    """Whether the exit met a device while an event was delivered to it: KVM_INTERNAL_ERROR_DELIVERY_EV."""
    vmx = this_core(S).vmx
    if vmx.idt_vectoring & vmcs.INTR_VALID == ZERO:
        return False
    end_guest(S, M, vcpu, machine.STOP_SHUTDOWN, vmx.exit_reason, DELIVERY_EV)
    return True


@jit()
def kvm_emulate_halt(S, M, E, vcpu):
    """HLT: the vCPU waits, unless what would wake it is there; without KVM's local APIC its VMM waits."""
    kvm_skip_emulated_instruction(S, M, E, vcpu)
    if S.vms[vcpu.vm].irqchip == 0:
        exit_to_user(S, M, vcpu, KVM_EXIT_HLT)
    elif S.config.kernel >= V6_12 and (
        kvm_vcpu_has_events(S, M, vcpu) or vcpu.requests & state.KVM_REQ_PMI != ZERO
    ):
        vcpu.pv_unhalted = 0
    else:
        vcpu.mp_state = state.MP_STATE_HALTED


@jit()
def vmx_handle_exit(S, M, E, vcpu):
    """Every exit reason that needs no vPMU; an unknown one ends the run (KVM_EXIT_INTERNAL_ERROR)."""
    core = this_core(S)
    reason = core.vmx.exit_reason
    if reason == vmcs.EXIT_CPUID:
        kvm_emulate_cpuid(S, M, E, vcpu)
    elif reason == vmcs.EXIT_IO_INSTRUCTION:
        handle_io(S, M, E, vcpu)
    elif reason == vmcs.EXIT_CR_ACCESS:
        handle_cr(S, M, E, vcpu)
    elif reason == vmcs.EXIT_DR_ACCESS:
        done = handle_dr(S, M, E, vcpu)
        if done > 0:
            kvm_skip_emulated_instruction(S, M, E, vcpu)
        elif done < 0:
            kvm_inject_gp(vcpu)
    elif reason == vmcs.EXIT_HLT:
        kvm_emulate_halt(S, M, E, vcpu)
    elif reason == vmcs.EXIT_VMCALL:
        charge(S, E, COST_HYPERCALL)
        kvm_emulate_hypercall(S, E, vcpu)
        kvm_skip_emulated_instruction(S, M, E, vcpu)
    elif reason == vmcs.EXIT_XSETBV:
        kvm_emulate_xsetbv(S, M, E, vcpu)
    elif reason == vmcs.EXIT_WBINVD or reason == vmcs.EXIT_INVD or reason == vmcs.EXIT_INVLPG:
        kvm_skip_emulated_instruction(S, M, E, vcpu)
    elif reason == vmcs.EXIT_NMI_WINDOW or reason == vmcs.EXIT_INTERRUPT_WINDOW:
        charge(S, E, COST_WINDOW)
        if reason == vmcs.EXIT_INTERRUPT_WINDOW and dm_request_for_irq_injection(S, M, vcpu):
            exit_to_user(S, M, vcpu, KVM_EXIT_IRQ_WINDOW_OPEN)
    elif reason == EXIT_EPT_VIOLATION:
        # kvm_mmu_page_fault(): hva_to_pfn() found KVM_PFN_ERR_FAULT
        vcpu.user_exit = state.USER_FAULT
    elif reason == vmcs.EXIT_TRIPLE_FAULT:
        end_guest(S, M, vcpu, machine.STOP_TRIPLE_FAULT, core.stop_info, 0)
    elif (
        reason != vmcs.EXIT_EXCEPTION_NMI
        and reason != EXIT_APIC_ACCESS
        and reason != EXIT_EPT_MISCONFIG
        and reason != vmcs.EXIT_EXTERNAL_INTERRUPT
        and reason != vmcs.EXIT_PREEMPTION_TIMER
    ):  # those are done with before
        end_guest(S, M, vcpu, machine.STOP_SHUTDOWN, reason, UNEXPECTED_EXIT_REASON)

