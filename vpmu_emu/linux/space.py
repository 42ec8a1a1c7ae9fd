"""Whose memory a core sees: an address space of the host, or a guest; TLB and decoded code follow it.

arch/x86/mm/tlb.c switch_mm(), and what VMX calls VPID.
"""

from __future__ import annotations

from vpmu_emu._jit import jit
from vpmu_emu.linux.percpu import this_core, this_cpu
from vpmu_emu.linux.state import N_CORES, N_MMS, N_VCPUS
from vpmu_emu.machine import msr_index
from vpmu_emu.machine.control_registers import HAS_XSAVE, XCR0_KNOWN
from vpmu_emu.machine.engine import CR0_RESET, CR4_RESET, EFER_RESET
from vpmu_emu.machine.memory import tlb_flush
from vpmu_emu.machine.processor_flags import X86_CR4_OSXSAVE, X86_CR4_PCE
from vpmu_emu.machine.state import N_SLOTS, N_SPACES
from vpmu_emu.machine.u64 import U64, ZERO

SPACES_OF_A_CORE = 1 + N_MMS + N_VCPUS  # none, host address spaces, guests
assert N_CORES * SPACES_OF_A_CORE <= N_SPACES
USER_CS = U64(0x33)
USER_SS = U64(0x2B)


@jit()
def _enter(S, space):
    host = this_cpu(S)
    core = this_core(S)
    space += S.this_cpu * SPACES_OF_A_CORE
    if host.space == space:
        return False
    host.space = space
    core.space = space
    tlb_flush(core, 1)
    return True


@jit()
def cr4_update_pce(S, cpu, mm):
    """CR4.PCE of a core that runs address space `mm`: RDPMC works at CPL 3 while a counter is mapped."""
    core = S.cores[cpu]
    core.cr4 &= ~X86_CR4_PCE
    if S.mms[mm].perf_rdpmc_allowed > 0:
        core.cr4 |= X86_CR4_PCE


@jit()
def x86_pmu_event_mapped(S, mm):
    """A perf page was mapped or unmapped in `mm`: on every core that is in it CR4.PCE follows."""
    for cpu in range(N_CORES):
        if S.percpu[cpu].space == 1 + mm + cpu * SPACES_OF_A_CORE:
            cr4_update_pce(S, cpu, mm)


@jit()
def task_space(S, mm):
    """The core sees address space `mm` of the host, as a program at CPL 3 does."""
    core = this_core(S)
    if not _enter(S, 1 + mm):
        return
    core.cr3 = S.mms[mm].cr3
    core.cr0 = CR0_RESET
    core.cr4 = CR4_RESET
    if core.features & HAS_XSAVE != 0:  # fpu__init_cpu_xstate()
        core.cr4 |= X86_CR4_OSXSAVE
        core.xcr0 = XCR0_KNOWN
    cr4_update_pce(S, S.this_cpu, mm)
    core.efer = EFER_RESET | msr_index.EFER_SCE
    core.idt_limit = ZERO
    core.shadow = 0
    core.nmi_blocked = 0
    core.activity = 0
    for i in range(6):
        core.selectors[i] = USER_SS
    core.selectors[1] = USER_CS
    for i in range(N_SLOTS):
        core.slot_size[i] = ZERO
    core.slot_gpa[0] = ZERO
    core.slot_at[0] = ZERO
    core.slot_size[0] = S.config.memory
    core.slot_tables = ZERO


@jit()
def guest_space(S, vcpu, cr3):
    """The core sees the memory of a vCPU's guest; `cr3` is what VM entry will load."""
    core = this_core(S)
    if not _enter(S, 1 + N_MMS + vcpu.vcpu_idx):
        return
    core.cr3 = cr3
    vm = S.vms[vcpu.vm]
    for i in range(N_SLOTS):
        core.slot_gpa[i] = vm.slot_gpa[i]
        core.slot_size[i] = vm.slot_size[i]
        core.slot_at[i] = vm.slot_hva[i]
    core.slot_tables = S.mms[vm.mm].cr3
