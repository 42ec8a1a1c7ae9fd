"""The committed dispatch loop is what the tables say, and every form has an arm."""

from __future__ import annotations

from vpmu_emu.machine import generate, ops
from vpmu_emu.tables.instructions import FORMS


def test_the_committed_file_is_up_to_date(capsys):
    assert generate.main(["--check"]) == 0, capsys.readouterr().err


def test_check_notices_a_stale_file(tmp_path, monkeypatch, capsys):
    stale = tmp_path / "dispatch.py"
    stale.write_text(generate.source() + "# edited\n")
    monkeypatch.setattr(generate, "TARGET", stale)
    assert generate.main(["--check"]) == 1
    assert "generate" in capsys.readouterr().err


def test_every_form_has_an_arm():
    for row in ops.FORM_TABLE:
        assert 0 <= row[ops.FC_OP_REG] < len(ops.OPS)
        assert 0 <= row[ops.FC_OP_MEM] < len(ops.OPS)


def test_every_meaning_in_the_table_is_executed_and_the_reverse():
    meanings = {form.instruction.sem for form in FORMS}
    known = {*ops.COLD, *ops.SYSTEM, *ops._NOP_LIKE, "jcc", "loop"}
    assert meanings == known


def test_lanes_of_a_form_hold_what_it_retires():
    for form in FORMS:
        for memory in (False, True):
            classes = form.retires(memory=memory)
            word = int(ops.FORM_LANES1[form.index, int(memory)])
            assert word & 1 == classes.count("inst"), form
