"""Exit reasons have the SDM's numbers and the kernel's names, and controls that exist."""

from __future__ import annotations

import pytest

from vpmu_emu.tables.exits import EXITS, exit_name, exit_number
from vpmu_emu.tables.instructions import INSTRUCTIONS
from vpmu_emu.tables.names import UnknownNameError
from vpmu_emu.tables.vmcs import control_bit

pytestmark = pytest.mark.uncompiled

# The kernel's uapi/asm/vmx.h.
KERNEL = {
    "EXCEPTION_NMI": 0, "EXTERNAL_INTERRUPT": 1, "TRIPLE_FAULT": 2, "INIT_SIGNAL": 3,
    "SIPI_SIGNAL": 4, "INTERRUPT_WINDOW": 7, "NMI_WINDOW": 8, "TASK_SWITCH": 9, "CPUID": 10,
    "HLT": 12, "INVD": 13, "INVLPG": 14, "RDPMC": 15, "RDTSC": 16, "VMCALL": 18, "VMCLEAR": 19,
    "VMLAUNCH": 20, "VMPTRLD": 21, "VMPTRST": 22, "VMREAD": 23, "VMRESUME": 24, "VMWRITE": 25,
    "VMOFF": 26, "VMON": 27, "CR_ACCESS": 28, "DR_ACCESS": 29, "IO_INSTRUCTION": 30,
    "MSR_READ": 31, "MSR_WRITE": 32, "INVALID_STATE": 33, "MSR_LOAD_FAIL": 34,
    "MWAIT_INSTRUCTION": 36, "MONITOR_TRAP_FLAG": 37, "MONITOR_INSTRUCTION": 39,
    "PAUSE_INSTRUCTION": 40, "MCE_DURING_VMENTRY": 41, "TPR_BELOW_THRESHOLD": 43,
    "APIC_ACCESS": 44, "EOI_INDUCED": 45, "GDTR_IDTR": 46, "LDTR_TR": 47, "EPT_VIOLATION": 48,
    "EPT_MISCONFIG": 49, "INVEPT": 50, "RDTSCP": 51, "PREEMPTION_TIMER": 52, "INVVPID": 53,
    "WBINVD": 54, "XSETBV": 55, "APIC_WRITE": 56,
}  # fmt: skip


def test_names_and_numbers_are_the_kernels():
    assert {row.name: row.number for row in EXITS} == KERNEL
    numbers = [row.number for row in EXITS]
    assert numbers == sorted(set(numbers))


@pytest.mark.parametrize("row", EXITS, ids=lambda row: row.name)
def test_every_control_exists(row):
    if row.control != "always":
        assert 0 <= control_bit(row.control) < 32
    assert row.doc.endswith(".")


def test_every_exit_of_the_instruction_table_is_one():
    used = {row.vmexit for row in INSTRUCTIONS} - {""}
    assert {"MSR_READ", "MSR_WRITE", "RDPMC"} <= used
    for name in used:
        assert exit_name(exit_number(name)) == name


def test_names_go_both_ways():
    assert exit_number("rdpmc") == 15
    assert exit_number("VMXOFF") == exit_number("VMOFF")
    assert exit_name(32) == "MSR_WRITE"
    assert exit_name(5) == "EXIT_5"
    with pytest.raises(UnknownNameError, match="MSR_WRITE"):
        exit_number("MSR_WRITES")
