"""Each trace point's format, as Python and as C say it."""

from __future__ import annotations

import pytest

from vpmu_emu.traces.points import POINTS, Symbols

EXIT = (
    "vcpu 3 reason MSR_WRITE rip 0xffff info1 0x0000000000000002 info2 0x0000000000000000 "
    "intr_info 0x80000b0e error_code 0x00000005"
)


@pytest.mark.parametrize(
    ("name", "values", "text"),
    [
        ("kvm_msr", (1, 0x38F, 3, 1), "msr_write 38f = 0x3 (#GP)"),
        ("kvm_msr", (0, 0x186, 0x4300C0, 0), "msr_read 186 = 0x4300c0"),
        ("write_msr", (0x38F, 0x70000000F, 0), "38f, value 70000000f"),
        ("rdpmc", (0x40000000, 7, 0), "40000000, value 7"),
        ("kvm_entry", (1, 0x100000), "vcpu 1, rip 0x100000"),
        ("kvm_inj_virq", (0xEC, 0), "IRQ 0xec"),
        ("kvm_inj_virq", (0x80, 1), "Soft/INTn 0x80"),
        ("kvm_inj_exception", (13,), "#GP"),
        ("kvm_inj_exception", (15,), "0xf"),
        (
            "kvm_exit",
            (32, 0xFFFF, 1, 2, 0, 0x80000B0E, 5, 3, 0),
            EXIT,
        ),
    ],
)
def test_lines_of_the_kernel(name, values, text):
    assert POINTS[name].show(values) == text


@pytest.mark.parametrize("name", POINTS)
def test_a_description_has_every_argument(name):
    point = POINTS[name]
    fields = {field.name for field in point.fields}
    described = point.print_fmt()
    assert described.startswith(f'"{point.form}", ')
    assert point.form.count("%") == len(point.args)
    for arg in point.args:
        field = arg.field if isinstance(arg, Symbols) else arg
        assert field in fields
        assert f"REC->{field}" in described
