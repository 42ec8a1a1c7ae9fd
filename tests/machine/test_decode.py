"""The decoder against iced-x86: which bytes are which instruction, how long, and that nothing else is."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

iced = pytest.importorskip("iced_x86")

from tests.conftest import ROOT  # noqa: E402
from tests.machine.board import Board  # noqa: E402
from tests.reference.forms import CODE, cases, judged  # noqa: E402
from tests.tools import profiles  # noqa: E402
from vpmu_emu.asm import assemble  # noqa: E402
from vpmu_emu.machine.ops import OP_UD, OPS  # noqa: E402
from vpmu_emu.system import System  # noqa: E402

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


COUNT = CODE + 0x20  # data right behind the code that uses it


def test_data_beside_code_leaves_decoded_code_alone(board):
    # again: inc dword ptr [rip+COUNT] ; nop ; jmp again
    code = bytes.fromhex("ff05") + (COUNT - CODE - 6).to_bytes(4, "little") + b"\x90\xeb\xf7"
    board.lay(code.ljust(0x20, b"\xcc") + bytes(4), CODE, [0] * 16, 2)
    board.system.step(3)

    def decoded() -> tuple[int, int]:
        made = board.system._translator
        return int(board.E.generation), int(board.E.n_uops) - (made.regions if made is not None else 0)

    before = decoded()
    board.system.step(300)
    assert decoded() == before
    assert int.from_bytes(board.system.read(COUNT, 4), "little") == 101


def test_data_that_decoding_has_met_is_met_once(board):
    """Nothing ends the block before the data: the first store throws code away, the next ones do not."""
    # again: inc dword ptr [rip+2+...] ; loop again ; nop ; and the data, which is read as instructions
    code = bytes.fromhex("ff0503000000e2f890") + bytes(4)
    board.lay(code, CODE, [0] * 16, 2)
    board.core.regs[1] = 1000
    board.system.step(20)
    generation = int(board.E.generation)
    board.system.step(500)
    assert int(board.E.generation) == generation
    assert int.from_bytes(board.system.read(CODE + 9, 4), "little") == 260


PATCH = {"al": 1, "ax": 2, "eax": 4}


def changing(draw: random.Random) -> str:
    """A program that adds immediates and stores into some of them, and right beside them."""
    lines = ["_start: mov ecx, 12", "again:"]
    n = draw.randint(3, 40)
    for k in range(n):
        lines.append(f"i{k}: add rax, 0x{draw.getrandbits(31) | 1 << 28:x}")
        if draw.random() < 0.5:
            register = draw.choice(list(PATCH))
            offset = 2 + draw.randint(0, 4 - PATCH[register])  # within the immediate
            lines.append(f"mov [rip + i{draw.randrange(n)} + {offset}], {register}")
        if draw.random() < 0.2:
            lines.append(f"jmp 1f\n .byte {draw.getrandbits(8)}\n d{k}: .long 0\n 1:")
            lines.append(f"add [rip + d{k}], eax")
    return "\n".join([*lines, "dec ecx", "jnz again", "xor eax, eax", "out 0xf4, al"])


@pytest.mark.parametrize("seed", range(profiles.cases(day=12, laws=200, night=5000)))
def test_code_that_changes_itself_runs_as_memory_says(seed):
    """As when every instruction is decoded afresh."""
    program = assemble(changing(random.Random(seed)), "changing.s")
    whole, afresh = (System(program, ram=2, horizon=h) for h in (0, 1))
    stop = whole.run()
    while afresh.step().reason == "step":
        afresh.E.n_uops = 1
        afresh.E.generation += 1
        afresh.E.map_key[:] = 0
    assert stop.reason == "debug-exit"
    assert whole.record() == afresh.record()
    assert bytes(whole.M) == bytes(afresh.M)
    # what the first ones are for; another may by chance store into nothing that is decoded
    assert np.any(whole.E.stored) or seed >= 12


def test_a_store_into_code_throws_away_what_is_made_of_those_bytes(board):
    """A loop that changes an immediate of its own decodes that instruction again each time, no other."""
    # again: inc dword ptr [rip+1] (the immediate of) add eax, 0 ; 40 times inc rbx ; loop again
    code = bytes.fromhex("ff0501000000" + "0500000000" + "48ffc3" * 40 + "48ffc9" + "0f8574ffffff")
    board.lay(code, CODE, [0] * 16, 2)
    board.core.regs[1] = 1000
    board.system.step(90)
    generation, uops = int(board.E.generation), int(board.E.n_uops)
    board.system.step(44 * 100)
    assert int(board.E.generation) == generation
    assert int(board.E.n_uops) <= uops + 3 * 101
    assert int(board.core.regs[1]) == 1000 - (4490 // 44)
    done = 4490 // 44 + 1  # times that it was changed, for 4490 = 102 * 44 + 2
    assert int(board.core.regs[0]) == done * (done + 1) // 2


def test_code_that_reaches_into_a_page_is_thrown_away_by_a_store_there(board):
    """The immediate of an instruction lies in the next page, and is stored to."""
    at = CODE + 4096 - 2
    # add eax, imm32 over the edge ; inc dword ptr [rip-10] ; jmp back
    code = bytes.fromhex("81c000000000" + "ff05f6ffffff" + "ebf2")
    board.lay(code, at, [0] * 16, 2)
    board.system.step(3 * 50)
    assert int(board.core.regs[0]) == 49 * 50 // 2


STATE = ("SSE", "AVX", "MMX", "FPU", "SSSE", "AES", "SHA", "GFNI", "PCLMUL", "D3NOW", "FXSR", "CET_IBT")
NAMES = {v: k for k, v in vars(iced.Mnemonic).items() if isinstance(v, int)}
FEATURES = {v: k for k, v in vars(iced.CpuidFeature).items() if isinstance(v, int)}
ALONE = bytes((0x66, 0xF2, 0xF3, 0x67, 0xF0, 0x2E, 0x36, 0x3E, 0x26, 0x64, 0x65, 0x0F, 0xC4, 0xC5, 0x62))


def test_what_is_outside_stands_in_the_docs(board):
    """Every opcode of the four maps with every ModRM byte: an instruction, none, or in docs/programs.md."""
    found = set()
    for prefix in (b"", b"\x66", b"\xf2", b"\xf3", b"\x48"):
        for escape in (b"", b"\x0f", b"\x0f\x38", b"\x0f\x3a"):
            for opcode in range(256):
                if not escape and (opcode in ALONE or opcode & 0xF0 == 0x40):
                    continue
                if escape == b"\x0f" and opcode in (0x38, 0x3A):
                    continue
                found |= _outside(board, prefix + escape + bytes((opcode,)))
    text = (ROOT / "docs" / "programs.md").read_text().split("## Instructions that are not there")[1]
    rows = [line.split("|")[2] for line in text.splitlines() if line.startswith("| ")]
    assert found == set(re.findall(r"`(\w+)`", " ".join(rows[1:])))


def _outside(board, head):
    found, seen = set(), set()
    for modrm in (*range(0, 64, 8), *range(0xC0, 0x100)):  # each reg with memory, and every register
        code = head + bytes((modrm,)) + bytes(15)
        theirs = iced.Decoder(64, code[:15], ip=CODE).decode()
        kind = theirs.mnemonic, theirs.op_count > 0 and theirs.op0_kind == iced.OpKind.MEMORY
        if theirs.is_invalid or kind in seen or theirs.mnemonic in (iced.Mnemonic.UD0, iced.Mnemonic.UD1):
            continue
        seen.add(kind)
        far = theirs.is_jmp_far_indirect or theirs.is_call_far_indirect
        if far or theirs.mnemonic == iced.Mnemonic.UD2:
            continue
        if any(FEATURES[f].startswith(STATE) for f in theirs.cpuid_features()):
            continue
        if int(first_uop(board, code).op) == OP_UD:
            found.add(NAMES[theirs.mnemonic].lower())
    return found
