"""The decoder against iced-x86: which bytes are which instruction, how long, and that nothing else is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

iced = pytest.importorskip("iced_x86")

from tests.machine.board import Board  # noqa: E402
from tests.reference.forms import CODE, cases, judged  # noqa: E402
from vpmu_emu.machine.ops import OP_UD, OPS  # noqa: E402

pytestmark = pytest.mark.oracle


@pytest.fixture(scope="module")
def board():
    return Board()


def first_uop(board, code):
    """The micro-op for `code`; found by running the instruction, whatever it does."""
    board.lay(code + b"\x90" * 16, CODE, [0] * 16, 2)
    board.system.step()
    return board.E.uops[1]


def test_length_of_every_form(board):
    @given(st.data())
    def check(data):
        form = data.draw(st.sampled_from(judged()))
        case = data.draw(cases(form))
        uop = first_uop(board, case.code)
        assert int(uop.len) == len(case.code), case
        name = OPS[int(uop.op)]
        assert name != "ud2", case

    check()


@given(st.binary(min_size=15, max_size=15))
def test_random_bytes_are_an_instruction_of_that_length_or_undefined(board, code):
    uop = first_uop(board, code)
    if int(uop.rip) != CODE or int(board.E.n_uops) < 2:
        return
    theirs = iced.Decoder(64, code, ip=CODE).decode()
    if int(uop.op) == OP_UD:
        return  # outside the subset, or undefined for both
    assert theirs.code != iced.Code.INVALID, code.hex()
    assert int(uop.len) == theirs.len, (code.hex(), str(theirs))


def test_a_lock_prefix_needs_a_memory_destination(board):
    for code in (b"\xf0\x48\x01\xd8", b"\xf0\x90", b"\xf0\x48\x8b\x03"):  # reg, nop, load
        assert int(first_uop(board, code).op) == OP_UD, code.hex()
    assert int(first_uop(board, b"\xf0\x48\x01\x03").op) != OP_UD


def test_too_many_prefixes_are_a_general_protection_fault(board):
    board.lay(b"\x66" * 15 + b"\x90", CODE, [0] * 16, 2)
    stop = board.system.step()
    assert (stop.reason, stop.info) == ("triple-fault", 13)


def test_code_that_is_overwritten_is_decoded_anew(board):
    # mov byte ptr [rip+1], 0x2a ; mov eax, 1 : the store changes the 1 before it is executed
    code = bytes.fromhex("c605010000002a") + bytes.fromhex("b801000000")
    board.lay(code, CODE, [0] * 16, 2)
    board.system.step(2)
    assert int(board.core.regs[0]) == 0x2A


def test_instructions_across_a_page_end(board):
    at = 0x102000 - 2
    board.lay(bytes.fromhex("b878563412"), at, [0] * 16, 2)
    board.system.step()
    assert int(board.core.regs[0]) == 0x12345678
    assert np.count_nonzero(board.E.page_flags & 1) >= 2
