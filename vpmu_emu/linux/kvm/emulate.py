"""x86_emulate_instruction(): KVM does one instruction of the guest, by the machine's own semantics.

It retires nowhere: the running totals and the time of the core are put back, KVM counts the instruction in
software, and the work is a cost row of the host. What has an exit handler of its own (MSRs, RDPMC, CPUID,
HLT, ports) is left to it in `core.vmx.exit_*`. arch/x86/kvm/x86.c, emulate.c.
"""

from __future__ import annotations

import numpy as np

from vpmu_emu._jit import jit
from vpmu_emu.linux.charge import charge
from vpmu_emu.linux.kvm.debugregs import (
    KVM_GUESTDBG_SINGLESTEP,
    kvm_vcpu_check_code_breakpoint,
    kvm_vcpu_do_singlestep,
)
from vpmu_emu.linux.kvm.lapic import kvm_apic_note_ipi
from vpmu_emu.linux.kvm.run import (
    EMULATION_FAILED,
    PIO_PAGE,
    exit_for_mmio_read,
    exit_for_mmio_write,
    mmio_data,
)
from vpmu_emu.linux.kvm.trigger import kvm_pmu_trigger_event
from vpmu_emu.linux.kvm.vmx.debugregs import handle_bp, handle_db
from vpmu_emu.linux.kvm.vmx.exits import (
    end_guest,
    handle_io,
    handle_undelivered,
    kvm_queue_exception,
)
from vpmu_emu.linux.kvm.vmx.registers import (
    kvm_get_rflags,
    kvm_rip_read,
    kvm_rip_write,
    kvm_set_rflags,
)
from vpmu_emu.linux.native import cost
from vpmu_emu.linux.percpu import this_core
from vpmu_emu.linux.state import (
    USER_IO_MMIO_READ,
    USER_IO_MMIO_WRITE,
    USER_IO_NONE,
    USER_IO_STRING,
)
from vpmu_emu.linux.trace_kinds import TR_EMULATE_INSN
from vpmu_emu.machine import state as machine
from vpmu_emu.machine import vmcs
from vpmu_emu.machine.alu import execute_general, fold_flags, spread_flags
from vpmu_emu.machine.bus import EXIT_APIC_ACCESS, EXIT_EPT_MISCONFIG
from vpmu_emu.machine.decode import DECODED, decode, fetch_code
from vpmu_emu.machine.engine import uses_stack
from vpmu_emu.machine.lapic import WRITTEN
from vpmu_emu.machine.memory import fault
from vpmu_emu.machine.mutants import I_FEP
from vpmu_emu.machine.ops import COLD_OP, GENERAL_OP, HOT_OP, SYSTEM_BASE
from vpmu_emu.machine.physical import ld32
from vpmu_emu.machine.ports import IO_STRING
from vpmu_emu.machine.privileged import execute_system
from vpmu_emu.machine.processor_flags import X86_EFLAGS_DF, X86_EFLAGS_RF, X86_EFLAGS_TF
from vpmu_emu.machine.ring import emit
from vpmu_emu.machine.semantics import condition
from vpmu_emu.machine.u64 import ONE, U3, U8, U64, ZERO
from vpmu_emu.machine.vectors import VECTOR_BP, VECTOR_DB, VECTOR_PF, VECTOR_SS, VECTOR_UD
from vpmu_emu.machine.vmx import load_guest, save_guest
from vpmu_emu.tables.instructions import EMULATOR

COST_EMULATE = cost("kvm_emulate_instruction")

KVM_EMULATE_PREFIX = np.frombuffer(b"\x0f\x0bkvm", dtype=np.uint8)
UD_INFO = vmcs.INTR_VALID | vmcs.TYPE_HARD_EXCEPTION << U8 | U64(VECTOR_UD)
DB_INFO = vmcs.INTR_VALID | vmcs.TYPE_HARD_EXCEPTION << U8 | U64(VECTOR_DB)
BP_INFO = vmcs.INTR_VALID | vmcs.TYPE_SOFT_EXCEPTION << U8 | U64(VECTOR_BP)
REP_MASK = U64(0x3FF)
KVM_FEP_CLEAR_RFLAGS_RF = 2
PREFIX_LENGTH = len(KVM_EMULATE_PREFIX)
UNKNOWN, FAILS = EMULATOR.index("unknown"), EMULATOR.index("fails")
# With no MSR bitmap every RDMSR and WRMSR goes to KVM's handlers.
EMULATOR_PROC = vmcs.PROC_HLT | vmcs.PROC_IO | vmcs.PROC_RDPMC | vmcs.PROC_MOV_DR
SCRATCH = machine.N_UOPS - 1  # the block builder never gets so far
N_HOT = len(GENERAL_OP)
OP_NOP = HOT_OP["nop"]
OP_JZ, OP_JNZ, OP_JCC = HOT_OP["jz"], HOT_OP["jnz"], HOT_OP["jcc"]
BRANCH_LANE = U64(machine.LANE_BITS * machine.LANES1.index("branch"))
O_BSF, O_BSR, O_TZCNT, O_LZCNT = (COLD_OP[n] for n in ("bsf", "bsr", "tzcnt", "lzcnt"))


@jit()
def x86_emulate_insn(core, M, E, u):
    """Execute micro-op u once: a CODE_*. If it is done core.rip is the next instruction."""
    if u.op < N_HOT:
        u.op = GENERAL_OP[u.op]
    op = np.int64(u.op)
    if op == O_TZCNT:
        u.op = O_BSF  # the emulator's table has no F3 0F BC and BD: it takes them for BSF and BSR
    elif op == O_LZCNT:
        u.op = O_BSR
    after = u.rip + U64(u.len)
    code = machine.CODE_NEXT
    if op == OP_JZ or op == OP_JNZ or op == OP_JCC:
        if condition(np.int64(u.cc), core.fz, core.fs, core.cv) != 0:
            after = u.imm
    elif op >= SYSTEM_BASE:
        code = execute_system(core, M, E, u)
    elif op != OP_NOP:
        code = execute_general(core, M, E, u, 0)
    if code == machine.CODE_NEXT:
        core.rip = after
    return code


@jit()
def _keep_totals(core, E, back):
    # Hardware sees the host at work, not the guest's instruction.
    for row in range(2):
        for k in range(machine.N_CLASSES):
            if back != 0:
                core.total[row, k] = E.kept_total[row, k]
                E.kept_total[row, k] = ZERO
            else:
                E.kept_total[row, k] = core.total[row, k]


@jit()
def _decode_and_execute(core, M, E, u):
    if decode(core, M, E, core.rip, u) != DECODED:
        return machine.CODE_FAULT
    if u.emulator != 0:
        fault(E, VECTOR_UD, 0, ZERO)
        return machine.CODE_FAULT
    code = machine.CODE_REPEAT
    core.rflags &= ~X86_EFLAGS_RF
    spread_flags(core)
    rcx, rdi = core.regs[machine.RCX], core.regs[machine.RDI]
    while E.mmio_writes == 0 and (
        code == machine.CODE_REPEAT
        or (E.port_left != ZERO and code == machine.CODE_EDGE and core.rip == u.rip)
    ):
        if E.port_left != ZERO:
            E.port_ready = 1
            E.port_value = ld32(M, E.port_at)
            E.port_at += U64(u.width) >> U3
            E.port_left -= ONE
        code = x86_emulate_insn(core, M, E, u)
        if code >= machine.CODE_NOT_RETIRED and E.port_at != ZERO and core.rflags & X86_EFLAGS_DF == ZERO:
            core.regs[machine.RCX] = rcx  # upwards they are written at once
            core.regs[machine.RDI] = rdi
        if code < machine.CODE_NOT_RETIRED:
            E.mmio_reads = 0  # the next iteration has reads of its own
            E.mmio_next = 0
        batch_over = core.regs[machine.RCX] & REP_MASK == ZERO or E.mmio_writes != 0
        if code == machine.CODE_REPEAT and batch_over:
            # "Re-enter guest after each 1024 iterations": it is done here, and the rest is hardware's.
            # So it is when the VMM has to be told of a write.
            core.rip = u.rip
            core.rflags |= X86_EFLAGS_RF
            code = machine.CODE_NEXT
    fold_flags(core)
    core.fz = ZERO
    core.fs = ZERO
    core.cv = ZERO
    return code


@jit()
def _begin_mmio(E, vcpu):
    # What the VMM has answered is not asked again (ctxt->mem_read).
    E.mmio_reads = vcpu.mmio_reads
    for k in range(machine.N_MMIO):
        E.mmio_read[k] = vcpu.mmio_read[k]
    E.mmio_next = 0
    E.mmio_asks = 0
    E.mmio_writes = 0


@jit()
def _keep_writes(E, vcpu):
    vcpu.mmio_writes = E.mmio_writes
    vcpu.mmio_cur = 0
    for k in range(machine.N_MMIO):
        vcpu.mmio_gpa[k] = E.mmio_gpa[k]
        vcpu.mmio_len[k] = E.mmio_len[k]
        vcpu.mmio_data[k] = E.mmio_data[k]


@jit()
def x86_emulate_instruction(S, M, E, vcpu, fetched):
    """Emulate the instruction at the guest's RIP; modifies the guest, or queues its exception.

    `fetched` 1: hardware has fetched it already, and met no breakpoint on it.
    `core.vmx.exit_*` may then name another exit, whose handler has to finish the instruction. With
    KVM_EXIT_MMIO the VMM has to answer a read first, or is told of a write of the instruction that is over.
    """
    core = this_core(S)
    charge(S, E, COST_EMULATE)
    if fetched == 0 and kvm_vcpu_check_code_breakpoint(S, M, vcpu):
        return
    now = core.t
    _keep_totals(core, E, 0)
    load_guest(core, M, E)
    core.shadow = 0
    core.vmx.proc = EMULATOR_PROC
    core.vmx.nonroot = 1
    rip = core.rip
    stepping = core.rflags & X86_EFLAGS_TF
    if vcpu.guest_debug & KVM_GUESTDBG_SINGLESTEP != ZERO:
        core.rflags &= ~X86_EFLAGS_TF  # kvm_get_rflags(): that is the VMM's
    u = E.uops[SCRATCH]
    u.emulator = 0
    E.emulating = 1 if S.vms[vcpu.vm].irqchip != 0 else 2
    _begin_mmio(E, vcpu)
    E.apic_effect = WRITTEN
    code = _decode_and_execute(core, M, E, u)
    if code >= machine.CODE_NOT_RETIRED:
        core.rip = rip
    elif code == machine.CODE_EDGE and core.rip == rip:
        core.rflags |= X86_EFLAGS_RF  # between two iterations of REP
    if vcpu.guest_debug & KVM_GUESTDBG_SINGLESTEP != ZERO:
        core.rflags |= stepping
    save_guest(core, M)
    vcpu.cpl = core.cpl  # SYSCALL counts at the privilege level where it arrives
    E.emulating = 0
    core.vmx.nonroot = 0
    core.cpl = 0
    core.shadow = 0
    core.nmi_blocked = 0
    core.activity = 0
    core.pmu.debugctl = ZERO
    core.pending_debug = ZERO
    core.t = now
    _keep_totals(core, E, 1)
    failed = code == machine.CODE_FAULT and u.emulator == FAILS and vcpu.cpl == 0
    _trace(core, E, rip, U64(u.len), failed)
    vcpu.mmio_reads = E.mmio_reads
    if code == machine.CODE_EXIT and E.mmio_asks != 0:
        exit_for_mmio_read(S, M, vcpu, E.mmio_gpa[0], E.mmio_len[0])
        return
    vcpu.mmio_reads = 0
    if code == machine.CODE_EXIT:
        return
    if failed:  # handle_emulation_failure(): KVM_EXIT_INTERNAL_ERROR
        end_guest(S, M, vcpu, machine.STOP_SHUTDOWN, core.vmx.exit_reason, EMULATION_FAILED)
    elif code == machine.CODE_FAULT:
        vector = E.fault_vector
        if E.fault_canonical == 0 and uses_stack(u):
            vector = VECTOR_SS
        E.fault_canonical = 1
        if vector == VECTOR_PF:
            core.cr2 = E.fault_address
        kvm_queue_exception(vcpu, vector, E.fault_has_error, E.fault_error)
    else:
        if E.mmio_writes != 0:  # and then there is no single step
            _keep_writes(E, vcpu)
            exit_for_mmio_write(S, M, vcpu)
        elif stepping != ZERO:
            kvm_vcpu_do_singlestep(S, M, vcpu)
        kvm_apic_note_ipi(S, vcpu, E.apic_effect)
        vcpu.emulated_insns += ONE
        core.stats.emulated += ONE
        if core.inject & I_FEP != ZERO:
            return
        kvm_pmu_trigger_event(S, E, vcpu, vcpu.pmu.pmc_counting_instructions)
        if (u.lanes1 >> BRANCH_LANE) & ONE != ZERO:
            kvm_pmu_trigger_event(S, E, vcpu, vcpu.pmu.pmc_counting_branches)


@jit()
def _trace(core, E, rip, length, failed):
    if E.trace_on == 0:
        return
    text = ZERO
    for k in range(8):
        if U64(k) < length:
            text |= U64(E.fetch[k]) << U64(8 * k)
    emit(E, core.t, TR_EMULATE_INSN, rip, text, length, ONE if failed else ZERO)


@jit()
def _is_forced(core, M, E):
    load_guest(core, M, E)
    have = fetch_code(core, M, E, core.rip, 0)
    if have < PREFIX_LENGTH:
        have = fetch_code(core, M, E, core.rip, have)
    core.cpl = 0
    core.shadow = 0
    core.nmi_blocked = 0
    core.activity = 0
    core.pmu.debugctl = ZERO
    core.pending_debug = ZERO
    if have < PREFIX_LENGTH:
        return False
    for k in range(PREFIX_LENGTH):
        if E.fetch[k] != KVM_EMULATE_PREFIX[k]:
            return False
    return True


@jit()
def handle_ud(S, M, E, vcpu):
    """#UD of the guest: behind the forced emulation prefix KVM does the next instruction."""
    core = this_core(S)
    if S.config.force_emulation_prefix != 0 and _is_forced(core, M, E):
        if S.config.force_emulation_prefix & KVM_FEP_CLEAR_RFLAGS_RF != 0:
            kvm_set_rflags(M, vcpu, kvm_get_rflags(M, vcpu) & ~X86_EFLAGS_RF)
        kvm_rip_write(M, vcpu, kvm_rip_read(M, vcpu) + U64(PREFIX_LENGTH))
        x86_emulate_instruction(S, M, E, vcpu, 0)  # of the prefix, not of what is behind it
    else:
        charge(S, E, COST_EMULATE)
        kvm_queue_exception(vcpu, VECTOR_UD, 0, ZERO)


@jit()
def handle_emulated_exit(S, M, E, vcpu):
    """The exits that are left to the emulator; core.vmx.exit_reason may then be that of another one.

    An NMI has been handled in the entry path. #DB is the guest's own and goes back to it.
    """
    vmx = this_core(S).vmx
    if vmx.exit_reason == vmcs.EXIT_EXCEPTION_NMI:
        if vmx.exit_intr_info == UD_INFO:
            handle_ud(S, M, E, vcpu)
        elif vmx.exit_intr_info == DB_INFO:
            handle_db(S, M, vcpu)
        elif vmx.exit_intr_info == BP_INFO:
            handle_bp(S, M, vcpu)
    elif vmx.exit_reason == EXIT_APIC_ACCESS or vmx.exit_reason == EXIT_EPT_MISCONFIG:
        # handle_apic_access(), handle_ept_misconfig()
        if not handle_undelivered(S, M, vcpu):
            # EMULTYPE_PF: a page fault comes after the fetch
            x86_emulate_instruction(S, M, E, vcpu, 1 if vmx.exit_reason == EXIT_EPT_MISCONFIG else 0)
    elif vmx.exit_reason == vmcs.EXIT_IO_INSTRUCTION and vmx.exit_qual & IO_STRING != ZERO:
        vmx.exit_reason = vmcs.EXIT_EXCEPTION_NMI  # done with, unless the emulator leaves for the port
        x86_emulate_instruction(S, M, E, vcpu, 0)


@jit()
def is_emulated_io(vcpu):
    """Whether the next KVM_RUN goes on with the emulator."""
    done = vcpu.complete
    return done == USER_IO_STRING or done == USER_IO_MMIO_READ or done == USER_IO_MMIO_WRITE


@jit()
def complete_emulated_io(S, M, E, vcpu):
    """KVM_RUN again after an exit of the emulator: it goes on with what it asked for."""
    done = vcpu.complete
    vcpu.complete = USER_IO_NONE
    vcpu.completed = 1
    if done == USER_IO_STRING:
        _complete_emulated_pio(S, M, E, vcpu)
    else:
        _complete_emulated_mmio(S, M, E, vcpu, done)


@jit()
def _complete_emulated_pio(S, M, E, vcpu):
    E.port_left = vcpu.pio_count
    E.port_at = U64(vcpu.run_page) + PIO_PAGE
    x86_emulate_instruction(S, M, E, vcpu, 1)
    E.port_ready = 0
    E.port_value = ZERO
    E.port_left = ZERO
    E.port_at = ZERO


@jit()
def _complete_emulated_mmio(S, M, E, vcpu, done):
    if done == USER_IO_MMIO_WRITE:
        vcpu.mmio_cur += 1
        if vcpu.mmio_cur < vcpu.mmio_writes:
            exit_for_mmio_write(S, M, vcpu)
        return
    if vcpu.mmio_reads < machine.N_MMIO:
        vcpu.mmio_read[vcpu.mmio_reads] = mmio_data(M, vcpu)
        vcpu.mmio_reads += 1
    vmx = this_core(S).vmx
    vmx.exit_reason = vmcs.EXIT_EXCEPTION_NMI  # done with, unless OUTS leaves for the port
    x86_emulate_instruction(S, M, E, vcpu, 1)
    if vmx.exit_reason == vmcs.EXIT_IO_INSTRUCTION:
        handle_io(S, M, E, vcpu)
