"""The engine against Unicorn: every integer form, operands and flags of every width, one at a time."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given, settings

from tests.machine.board import Board
from tests.reference import alu
from tests.reference.forms import CODE, DATA, TOP, Case, cases, differing
from tests.reference.interpreter import Reference
from tests.tools.differential import compared, count_case
from tests.tools.profiles import cases as number_of_cases

if os.environ.get("VPMU_REQUIRE_ORACLES") == "1":
    import unicorn
else:
    unicorn = pytest.importorskip("unicorn")

from unicorn import x86_const as x86

from tests.reference.test_reference_unicorn import (
    _REGS,
    FORMS,
    UNLIKE_SILICON,
    build,
)

pytestmark = pytest.mark.oracle
FLAGS = alu.STATUS | alu.DF
ORACLE = "engine against Unicorn"
EXAMPLES = number_of_cases(day=5, laws=25, night=100, uncompiled=4)


@pytest.fixture(scope="module")
def board():
    return Board()


@pytest.fixture(scope="module")
def shared():
    return build()


def undefined(case: Case) -> tuple[int, bool]:
    """(flags that the manual leaves undefined, whether the destination is)."""
    ref = Reference([(CODE, case.code), (DATA, case.data)], CODE, TOP)
    ref.regs[:] = case.regs
    ref.rflags = case.rflags
    ref.run_one()
    return ref.undefined, any(where == CODE and not flags for where, flags in ref.tainted)


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f"{f.index}-{f.text}")
def test_form_against_unicorn(form, board, shared) -> None:
    @settings(deadline=None, max_examples=EXAMPLES)
    @given(cases(form))
    def check(case: Case) -> None:
        count_case(ORACLE, form.text, form.width)
        board.lay(case.code, CODE, case.regs, case.rflags)
        board.M[CODE + len(case.code) : CODE + len(case.code) + 16] = 0x90
        board.M[DATA:TOP] = 0
        board.M[DATA : DATA + len(case.data)] = np.frombuffer(case.data, np.uint8)
        stop = board.one()
        uc = build() if form.instruction.cost == "div" else shared
        uc.ctl_remove_cache(CODE, CODE + 0x1000)
        uc.mem_write(CODE, case.code + b"\x90" * 16)
        uc.mem_write(DATA, bytes(TOP - DATA))
        uc.mem_write(DATA, case.data)
        for reg, value in zip(_REGS, case.regs, strict=True):
            uc.reg_write(reg, value)
        uc.reg_write(x86.UC_X86_REG_EFLAGS, case.rflags)
        repeats = form.instruction.rep and case.code[0] in (0xF2, 0xF3)
        uc.raised.clear()
        uc.emu_start(CODE, CODE + len(case.code), count=0 if repeats else 1)
        faults = [stop.info] if stop.reason == "triple-fault" else []
        assert faults == uc.raised, case
        if faults:
            assert [int(v) for v in board.core.regs[:16]] == case.regs, "a fault changed a register"
            return
        assert int(board.core.rip) == uc.reg_read(x86.UC_X86_REG_RIP), case
        loose, no_result = undefined(case)
        defined = FLAGS & ~loose
        if form.instruction.mnemonic == "neg" and case.code[0] == 0xF0:
            defined = 0  # the oracle's known difference from silicon
        want = uc.reg_read(x86.UC_X86_REG_EFLAGS)
        assert f"{int(board.core.rflags) & defined:#x}" == f"{want & defined:#x}", case
        if no_result:
            return
        mask = (1 << 64) - 1
        if form.instruction.mnemonic in UNLIKE_SILICON and form.width == 32 and not case.memory:
            mask = (1 << 32) - 1
        ours = [hex(int(v) & mask) for v in board.core.regs[:16]]
        assert ours == [hex(uc.reg_read(reg) & mask) for reg in _REGS], case
        assert differing(uc.mem_read(DATA, TOP - DATA), bytes(board.M[DATA:TOP])) == [], case

    check()
    assert compared(ORACLE, form.text, form.width), "a row without a case"
