"""Where the table says that a register lives, RDMSR and WRMSR find it."""

from __future__ import annotations

import re

import pytest

from vpmu_emu.asm import assemble
from vpmu_emu.linux.state import VCPU
from vpmu_emu.machine.msr_fields import field_value, field_write
from vpmu_emu.machine.state import CORE, REG_FS, REG_GS
from vpmu_emu.machine.u64 import U64
from vpmu_emu.system import System
from vpmu_emu.tables.generate import msr_fields, msr_index
from vpmu_emu.tables.msrs import MSRS

pytestmark = [pytest.mark.uncompiled, pytest.mark.inner]

LIVING = [row for row in MSRS if row.lives.core]
NAMED = {"REG_FS": REG_FS, "REG_GS": REG_GS}


def place(record, path, n):
    """(array or record, key) of a field such as `pmu.eventsel[n]`."""
    *outer, last = re.findall(r"\w+|\[\w+\]", path)
    for name in outer:
        record = record[name]
    if last.startswith("["):
        key = last[1:-1]
        return record, n if key == "n" else NAMED[key]
    return record, last


@pytest.mark.parametrize("row", LIVING, ids=[row.name for row in LIVING])
def test_a_field_is_read_and_written_where_the_table_says(row):
    core = System(assemble("hlt", "x"), ram=2).core
    for n in range(row.count):
        record, key = place(core, row.lives.core, n)
        field_write(core, row.number, n, U64(0x1234_5678_9ABC + n))
        assert int(record[key]) == 0x1234_5678_9ABC + n
        record[key] = 0x77 + n
        assert int(field_value(core, row.number, n)) == 0x77 + n


def test_others_are_no_field():
    core = System(assemble("hlt", "x"), ram=2).core
    before = core.tobytes()
    for row in MSRS:
        if row not in LIVING:
            field_write(core, row.number, 0, U64(1))
            assert int(field_value(core, row.number, 0)) == 0
    assert core.tobytes() == before


def test_every_field_exists():
    def find(dtype, path):
        for name in re.findall(r"[a-z]\w+", path):
            dtype = dtype[name].base
        return dtype

    for row in MSRS:
        assert not row.lives.core or find(CORE, row.lives.core).kind in "ui", row.name
        assert not row.lives.vcpu or find(VCPU, row.lives.vcpu).kind in "ui", row.name


def test_the_generated_modules_are_those_of_the_table(root):
    machine = root / "vpmu_emu" / "machine"
    assert (machine / "msr_fields.py").read_text() == msr_fields()
    assert (machine / "msr_index.py").read_text() == msr_index()
