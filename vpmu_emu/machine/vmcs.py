"""The VMCS: where its fields lie in its page, the bits of its controls, exit reasons, VMREAD and VMWRITE.

SDM 3C chapter 25."""

from __future__ import annotations

import numpy as np

from vpmu_emu._jit import jit
from vpmu_emu.machine.physical import ld64, st64
from vpmu_emu.machine.u64 import U8, U64
from vpmu_emu.machine.vectors import VECTOR_NMI
from vpmu_emu.tables.exits import exit_number
from vpmu_emu.tables.vmcs import INTR_TYPES, control_bit, vmcs_field


def offset(name: str) -> int:
    """Where a VMCS field lies in its page."""
    return vmcs_field(name).offset


def control(name: str) -> np.uint64:
    """A control's bit as a mask."""
    return U64(1 << control_bit(name))


V_PIN = offset("PIN_BASED_VM_EXEC_CONTROL")
V_PROC = offset("CPU_BASED_VM_EXEC_CONTROL")
V_EXCEPTIONS = offset("EXCEPTION_BITMAP")
V_EXIT_CTL = offset("VM_EXIT_CONTROLS")
V_ENTRY_CTL = offset("VM_ENTRY_CONTROLS")
V_MSR_BITMAP = offset("MSR_BITMAP")
V_TSC_OFFSET = offset("TSC_OFFSET")
V_STORE_ADDR = offset("VM_EXIT_MSR_STORE_ADDR")
V_STORE_COUNT = offset("VM_EXIT_MSR_STORE_COUNT")
V_EXIT_LOAD_ADDR = offset("VM_EXIT_MSR_LOAD_ADDR")
V_EXIT_LOAD_COUNT = offset("VM_EXIT_MSR_LOAD_COUNT")
V_ENTRY_LOAD_ADDR = offset("VM_ENTRY_MSR_LOAD_ADDR")
V_ENTRY_LOAD_COUNT = offset("VM_ENTRY_MSR_LOAD_COUNT")
V_ENTRY_INTR = offset("VM_ENTRY_INTR_INFO_FIELD")
V_ENTRY_ERROR = offset("VM_ENTRY_EXCEPTION_ERROR_CODE")
V_ENTRY_LEN = offset("VM_ENTRY_INSTRUCTION_LEN")
V_EXIT_REASON = offset("VM_EXIT_REASON")
V_EXIT_INTR = offset("VM_EXIT_INTR_INFO")
V_EXIT_ERROR = offset("VM_EXIT_INTR_ERROR_CODE")
V_EXIT_LEN = offset("VM_EXIT_INSTRUCTION_LEN")
V_EXIT_QUAL = offset("EXIT_QUALIFICATION")
V_IDT_VECTORING = offset("IDT_VECTORING_INFO_FIELD")
V_IDT_VECTORING_ERROR = offset("IDT_VECTORING_ERROR_CODE")
V_GUEST_PHYSICAL = offset("GUEST_PHYSICAL_ADDRESS")
V_GUEST_GLOBAL_CTRL = offset("GUEST_IA32_PERF_GLOBAL_CTRL")
V_HOST_GLOBAL_CTRL = offset("HOST_IA32_PERF_GLOBAL_CTRL")
V_RIP = offset("GUEST_RIP")
V_RSP = offset("GUEST_RSP")
V_RFLAGS = offset("GUEST_RFLAGS")
V_CR0 = offset("GUEST_CR0")
V_CR3 = offset("GUEST_CR3")
V_CR4 = offset("GUEST_CR4")
V_CR0_MASK = offset("CR0_GUEST_HOST_MASK")
V_CR4_MASK = offset("CR4_GUEST_HOST_MASK")
V_CR0_SHADOW = offset("CR0_READ_SHADOW")
V_CR4_SHADOW = offset("CR4_READ_SHADOW")
V_EFER = offset("GUEST_IA32_EFER")
V_DEBUGCTL = offset("GUEST_IA32_DEBUGCTL")
V_DR7 = offset("GUEST_DR7")
V_PENDING_DEBUG = offset("GUEST_PENDING_DBG_EXCEPTIONS")
V_ES = offset("GUEST_ES_SELECTOR")  # es cs ss ds fs gs follow one another
V_LDTR = offset("GUEST_LDTR_SELECTOR")
V_TR = offset("GUEST_TR_SELECTOR")
V_TR_BASE = offset("GUEST_TR_BASE")
V_TR_LIMIT = offset("GUEST_TR_LIMIT")
V_GDTR_BASE = offset("GUEST_GDTR_BASE")
V_GDTR_LIMIT = offset("GUEST_GDTR_LIMIT")
V_IDTR_BASE = offset("GUEST_IDTR_BASE")
V_IDTR_LIMIT = offset("GUEST_IDTR_LIMIT")
V_FS_BASE = offset("GUEST_FS_BASE")
V_GS_BASE = offset("GUEST_GS_BASE")
V_SS_AR = offset("GUEST_SS_AR_BYTES")
V_INTERRUPTIBILITY = offset("GUEST_INTERRUPTIBILITY_INFO")
V_ACTIVITY = offset("GUEST_ACTIVITY_STATE")
V_PREEMPTION = offset("VMX_PREEMPTION_TIMER_VALUE")
PIN_EXT_INTR = control("PIN_BASED_EXT_INTR_MASK")
PIN_NMI = control("PIN_BASED_NMI_EXITING")
PIN_PREEMPTION = control("PIN_BASED_VMX_PREEMPTION_TIMER")
PROC_INTR_WINDOW = control("CPU_BASED_INTR_WINDOW_EXITING")
PROC_TSC_OFFSET = control("CPU_BASED_USE_TSC_OFFSETTING")
PROC_HLT = control("CPU_BASED_HLT_EXITING")
PROC_INVLPG = control("CPU_BASED_INVLPG_EXITING")
PROC_RDPMC = control("CPU_BASED_RDPMC_EXITING")
PROC_RDTSC = control("CPU_BASED_RDTSC_EXITING")
PROC_CR3_LOAD = control("CPU_BASED_CR3_LOAD_EXITING")
PROC_CR3_STORE = control("CPU_BASED_CR3_STORE_EXITING")
PROC_NMI_WINDOW = control("CPU_BASED_NMI_WINDOW_EXITING")
PROC_IO = control("CPU_BASED_UNCOND_IO_EXITING")
PROC_MSR_BITMAPS = control("CPU_BASED_USE_MSR_BITMAPS")
PROC_MOV_DR = control("CPU_BASED_MOV_DR_EXITING")
PROC_PAUSE = control("CPU_BASED_PAUSE_EXITING")
EXIT_LOAD_GLOBAL_CTRL = control("VM_EXIT_LOAD_IA32_PERF_GLOBAL_CTRL")
EXIT_ACK_INTR = control("VM_EXIT_ACK_INTR_ON_EXIT")
EXIT_SAVE_GLOBAL_CTRL = control("VM_EXIT_SAVE_IA32_PERF_GLOBAL_CTRL")
ENTRY_LOAD_GLOBAL_CTRL = control("VM_ENTRY_LOAD_IA32_PERF_GLOBAL_CTRL")
EXIT_SAVE_DEBUG = control("VM_EXIT_SAVE_DEBUG_CONTROLS")
ENTRY_LOAD_DEBUG = control("VM_ENTRY_LOAD_DEBUG_CONTROLS")
INTR_VALID = control("INTR_INFO_VALID_MASK")
INTR_HAS_ERROR = control("INTR_INFO_DELIVER_CODE_MASK")
STI_BLOCKING = control("GUEST_INTR_STATE_STI")
MOV_SS_BLOCKING = control("GUEST_INTR_STATE_MOV_SS")
NMI_BLOCKING = control("GUEST_INTR_STATE_NMI")
EXIT_EXCEPTION_NMI = U64(exit_number("EXCEPTION_NMI"))
EXIT_EXTERNAL_INTERRUPT = U64(exit_number("EXTERNAL_INTERRUPT"))
EXIT_TRIPLE_FAULT = U64(exit_number("TRIPLE_FAULT"))
EXIT_INTERRUPT_WINDOW = U64(exit_number("INTERRUPT_WINDOW"))
EXIT_NMI_WINDOW = U64(exit_number("NMI_WINDOW"))
EXIT_CPUID = U64(exit_number("CPUID"))
EXIT_HLT = U64(exit_number("HLT"))
EXIT_INVLPG = U64(exit_number("INVLPG"))
EXIT_RDPMC = U64(exit_number("RDPMC"))
EXIT_RDTSC = U64(exit_number("RDTSC"))
EXIT_VMCALL = U64(exit_number("VMCALL"))
EXIT_CR_ACCESS = U64(exit_number("CR_ACCESS"))
EXIT_DR_ACCESS = U64(exit_number("DR_ACCESS"))
EXIT_IO_INSTRUCTION = U64(exit_number("IO_INSTRUCTION"))
EXIT_MSR_READ = U64(exit_number("MSR_READ"))
EXIT_MSR_WRITE = U64(exit_number("MSR_WRITE"))
EXIT_PREEMPTION_TIMER = U64(exit_number("PREEMPTION_TIMER"))
EXIT_WBINVD = U64(exit_number("WBINVD"))
EXIT_INVD = U64(exit_number("INVD"))
EXIT_XSETBV = U64(exit_number("XSETBV"))
EXIT_INVALID_STATE = U64(exit_number("INVALID_STATE"))
PENDING_BREAKPOINT = U64(1 << 12)  # of the pending debug exceptions: one of B0-B3 was enabled
ENTRY_FAILURE = U64(1 << 31)
TYPE_EXTERNAL = U64(INTR_TYPES["INTR_TYPE_EXT_INTR"])
TYPE_NMI = U64(INTR_TYPES["INTR_TYPE_NMI_INTR"])
TYPE_HARD_EXCEPTION = U64(INTR_TYPES["INTR_TYPE_HARD_EXCEPTION"])
TYPE_SOFT_INTR = U64(INTR_TYPES["INTR_TYPE_SOFT_INTR"])
TYPE_SOFT_EXCEPTION = U64(INTR_TYPES["INTR_TYPE_SOFT_EXCEPTION"])
NMI_INFO = INTR_VALID | U64(VECTOR_NMI) | (TYPE_NMI << U8)


@jit(inline=True)
def vmread(core, M, field):
    """The field at `field` (offset in the page) of the current VMCS."""
    return ld64(M, U64(core.vmx.vmcs + field))


@jit(inline=True)
def vmwrite(core, M, field, value):
    """Set the field at `field` of the current VMCS. Modifies memory."""
    st64(M, U64(core.vmx.vmcs + field), value)


@jit()
def vmptrld(core, address):
    """Make the VMCS at host offset `address` current."""
    core.vmx.vmcs = address
    core.vmx.root = 1
