"""VMCS encodings say their width and group, and every field has a place of its own."""

from __future__ import annotations

import pytest

from vpmu_emu.tables.names import UnknownNameError
from vpmu_emu.tables.vmcs import (
    ACTIVITY,
    BITS,
    DATA_OFFSET,
    FIELDS,
    INTR_TYPES,
    control_bit,
    vmcs_field,
)

pytestmark = pytest.mark.uncompiled


def test_each_field_has_its_own_encoding_and_place():
    assert len({f.encoding for f in FIELDS}) == len(FIELDS) == len({f.name for f in FIELDS})
    assert [f.offset for f in FIELDS] == [DATA_OFFSET + 8 * i for i in range(len(FIELDS))]
    assert FIELDS[-1].offset + 8 <= 4096


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_the_encoding_fits_the_name(field):
    # SDM 3C 24.11.2: bit 0 is the access to the high half, bits 12 and 31:15 are 0.
    assert field.encoding & ~0x6FFE == 0
    for prefix, group in (("GUEST_", "guest"), ("HOST_", "host"), ("VM_EXIT_", None)):
        if field.name.startswith(prefix) and group:
            assert field.group == group or field.name in (
                "GUEST_PHYSICAL_ADDRESS", "GUEST_LINEAR_ADDRESS",
            ), field.group  # fmt: skip
    if field.name.endswith("_SELECTOR"):
        assert field.width == 16
    if field.name.endswith(("_ADDR", "_PERF_GLOBAL_CTRL", "_EFER", "_BASE", "_RIP", "_CR0")):
        assert field.width == 64
    if field.name.endswith(("_CONTROL", "_CONTROLS", "_COUNT", "_LIMIT", "_REASON", "_ERROR_CODE")):
        assert field.width == 32


@pytest.mark.parametrize(
    ("name", "encoding", "width", "group"),
    [
        ("MSR_BITMAP", 0x2004, 64, "control"), ("VM_EXIT_MSR_STORE_ADDR", 0x2006, 64, "control"),
        ("VM_EXIT_MSR_STORE_COUNT", 0x400E, 32, "control"), ("TSC_OFFSET", 0x2010, 64, "control"),
        ("VM_EXIT_MSR_LOAD_ADDR", 0x2008, 64, "control"),
        ("VM_EXIT_MSR_LOAD_COUNT", 0x4010, 32, "control"),
        ("VM_ENTRY_MSR_LOAD_ADDR", 0x200A, 64, "control"),
        ("VM_ENTRY_MSR_LOAD_COUNT", 0x4014, 32, "control"),
        ("PIN_BASED_VM_EXEC_CONTROL", 0x4000, 32, "control"),
        ("CPU_BASED_VM_EXEC_CONTROL", 0x4002, 32, "control"),
        ("VM_EXIT_CONTROLS", 0x400C, 32, "control"), ("VM_ENTRY_CONTROLS", 0x4012, 32, "control"),
        ("VM_ENTRY_INTR_INFO_FIELD", 0x4016, 32, "control"),
        ("VM_ENTRY_EXCEPTION_ERROR_CODE", 0x4018, 32, "control"),
        ("VM_ENTRY_INSTRUCTION_LEN", 0x401A, 32, "control"),
        ("VMCS_LINK_POINTER", 0x2800, 64, "guest"), ("GUEST_IA32_DEBUGCTL", 0x2802, 64, "guest"),
        ("GUEST_IA32_PERF_GLOBAL_CTRL", 0x2808, 64, "guest"),
        ("HOST_IA32_PERF_GLOBAL_CTRL", 0x2C04, 64, "host"),
        ("VM_INSTRUCTION_ERROR", 0x4400, 32, "exit"), ("VM_EXIT_REASON", 0x4402, 32, "exit"),
        ("VM_EXIT_INTR_INFO", 0x4404, 32, "exit"), ("VM_EXIT_INTR_ERROR_CODE", 0x4406, 32, "exit"),
        ("IDT_VECTORING_INFO_FIELD", 0x4408, 32, "exit"),
        ("VM_EXIT_INSTRUCTION_LEN", 0x440C, 32, "exit"),
        ("GUEST_INTERRUPTIBILITY_INFO", 0x4824, 32, "guest"),
        ("GUEST_ACTIVITY_STATE", 0x4826, 32, "guest"), ("EXIT_QUALIFICATION", 0x6400, 64, "exit"),
        ("GUEST_CR0", 0x6800, 64, "guest"), ("GUEST_CR3", 0x6802, 64, "guest"),
        ("GUEST_CR4", 0x6804, 64, "guest"), ("GUEST_RSP", 0x681C, 64, "guest"),
        ("GUEST_RIP", 0x681E, 64, "guest"), ("GUEST_RFLAGS", 0x6820, 64, "guest"),
        ("HOST_RSP", 0x6C14, 64, "host"), ("HOST_RIP", 0x6C16, 64, "host"),
    ],
)  # fmt: skip
def test_encodings_are_the_sdms(name, encoding, width, group):
    field = vmcs_field(name)
    assert (field.encoding, field.width, field.group) == (encoding, width, group)


@pytest.mark.parametrize(
    ("name", "bit"),
    [
        ("PIN_BASED_EXT_INTR_MASK", 0), ("PIN_BASED_NMI_EXITING", 3), ("PIN_BASED_VIRTUAL_NMIS", 5),
        ("PIN_BASED_VMX_PREEMPTION_TIMER", 6), ("CPU_BASED_INTR_WINDOW_EXITING", 2),
        ("CPU_BASED_USE_TSC_OFFSETTING", 3), ("CPU_BASED_HLT_EXITING", 7),
        ("CPU_BASED_RDPMC_EXITING", 11), ("CPU_BASED_RDTSC_EXITING", 12),
        ("CPU_BASED_TPR_SHADOW", 21), ("CPU_BASED_NMI_WINDOW_EXITING", 22),
        ("CPU_BASED_UNCOND_IO_EXITING", 24), ("CPU_BASED_MONITOR_TRAP_FLAG", 27),
        ("CPU_BASED_USE_MSR_BITMAPS", 28), ("CPU_BASED_PAUSE_EXITING", 30),
        ("VM_EXIT_SAVE_DEBUG_CONTROLS", 2), ("VM_EXIT_HOST_ADDR_SPACE_SIZE", 9),
        ("VM_EXIT_LOAD_IA32_PERF_GLOBAL_CTRL", 12), ("VM_EXIT_ACK_INTR_ON_EXIT", 15),
        ("VM_EXIT_SAVE_VMX_PREEMPTION_TIMER", 22), ("VM_EXIT_SAVE_IA32_PERF_GLOBAL_CTRL", 30),
        ("VM_ENTRY_LOAD_DEBUG_CONTROLS", 2), ("VM_ENTRY_IA32E_MODE", 9),
        ("VM_ENTRY_LOAD_IA32_PERF_GLOBAL_CTRL", 13), ("VM_ENTRY_LOAD_IA32_EFER", 15),
        ("INTR_INFO_DELIVER_CODE_MASK", 11), ("INTR_INFO_UNBLOCK_NMI", 12),
        ("INTR_INFO_VALID_MASK", 31), ("GUEST_INTR_STATE_STI", 0), ("GUEST_INTR_STATE_NMI", 3),
    ],
)  # fmt: skip
def test_bits_are_the_kernels(name, bit):
    assert control_bit(name) == bit


def test_bits_belong_to_fields_and_are_used_once():
    for name, bits in BITS.items():
        assert vmcs_field(name).width == 32
        assert len(set(bits.values())) == len(bits)
        assert all(0 <= bit < 32 for bit in bits.values())
    assert (INTR_TYPES["INTR_TYPE_NMI_INTR"], INTR_TYPES["INTR_TYPE_SOFT_EXCEPTION"]) == (2, 6)
    assert ACTIVITY["GUEST_ACTIVITY_HLT"] == 1


def test_a_wrong_name_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match="GUEST_RIP"):
        vmcs_field("GUEST_RIPP")
    with pytest.raises(UnknownNameError, match="CPU_BASED_RDPMC_EXITING"):
        control_bit("CPU_BASED_RDPMC_EXIT")
