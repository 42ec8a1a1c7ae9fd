"""Operand forms and encodings that random cases meet too rarely, with their right values by the manual."""

from __future__ import annotations

import pytest

from tests.machine.board import Board
from tests.reference.forms import CODE, DATA
from vpmu_emu.asm import assemble
from vpmu_emu.machine import ops
from vpmu_emu.machine.state import RAX, RBX, RCX, RDI, RDX, RSP
from vpmu_emu.system import run

pytestmark = pytest.mark.uncompiled
ONES = (1 << 64) - 1


@pytest.fixture(scope="module")
def board():
    return Board()


def after(board, code: str, flags: int = 2, **regs: int):
    """(stop, registers) when the bytes have run once."""
    values = [0] * 16
    values[RSP] = 0x108800
    for name, value in regs.items():
        values[{"rax": RAX, "rcx": RCX, "rdx": RDX, "rbx": RBX, "rdi": RDI}[name]] = value
    board.lay(bytes.fromhex(code) + b"\x90" * 16, CODE, values, flags)
    stop = board.one()
    return stop, [int(v) for v in board.core.regs[:16]]


def undefined(board, code: str) -> bool:
    stop, _ = after(board, code)
    return (stop.reason, stop.info) == ("triple-fault", 6)


@pytest.mark.parametrize("code", ["66 0f b7 c1", "66 0f bf c1", "66 0f b6 c1", "66 0f be c1", "66 63 c1"])
def test_a_16_bit_destination_keeps_the_rest(board, code):
    _, regs = after(board, code, rax=ONES, rcx=0x12)
    assert hex(regs[RAX]) == hex(ONES & ~0xFFFF | 0x12)


@pytest.mark.parametrize("reg", range(8))
def test_setcc_and_hint_nops_ignore_the_reg_field(board, reg):
    _, regs = after(board, f"0f 94 {0xC0 | reg << 3:02x}", flags=0x42)
    assert regs[RAX] == 1
    for opcode in (0x19, 0x1A, 0x1B, 0x1C, 0x1D, 0x1E, 0x1F, 0x18, 0x0D):
        stop, regs = after(board, f"0f {opcode:02x} {0xC0 | reg << 3:02x}")
        assert (stop.reason, regs[RAX]) == ("step", 0), hex(opcode)


@pytest.mark.parametrize("mod", range(4))
def test_mov_cr_ignores_mod(board, mod):
    stop, regs = after(board, f"0f 20 {mod << 6 | 0x20:02x}")
    assert (stop.reason, int(board.core.rip) - CODE, regs[RAX]) == ("step", 3, 1 << 5)


def test_fences_ignore_the_rm_field(board):
    for byte in range(0xE8, 0x100):
        assert after(board, f"0f ae {byte:02x}")[0].reason == "step", hex(byte)


@pytest.mark.parametrize(
    "code",
    [
        "66 0f ae f0",  # TPAUSE
        "f2 0f ae f0",  # UMWAIT
        "f3 0f ae f0",  # UMONITOR
        "66 0f ae f8", "f3 0f ae e8", "66 0f ae e8", "f3 0f ae 38", "f2 0f ae 38",
        "f3 0f 38 f0 00",  # no MOVBE
        "66 0f 01 c1", "f3 0f 01 c1",
        "c4 c3 73 f0 c0 01",  # RORX with a register in vvvv
        "66 c4 e2 78 f2 c0", "48 c4 e2 78 f2 c0",  # prefixes that VEX stands for
        "c4 e2 7c f2 c0",  # VEX.L
        "0f 20 c8", "0f 22 e8",  # CR1, CR5
    ],
)  # fmt: skip
def test_the_space_of_another_prefix_is_no_instruction(board, code):
    assert undefined(board, code)


def test_aliases_that_no_assembler_writes(board):
    assert after(board, "d0 f0", rax=0x41)[1][RAX] == 0x82  # SHL /6
    assert after(board, "48 c1 f0 04", rax=0x41)[1][RAX] == 0x410
    after(board, "f6 c8 01", rax=1)  # TEST /1
    assert int(board.core.rflags) & 0x40 == 0
    after(board, "f7 c8 00 00 00 80", rax=1)
    assert int(board.core.rflags) & 0x40


@pytest.mark.parametrize("code", ["ff e0", "ff d0", "50 c3"])
def test_a_near_branch_to_no_address_faults_itself(board, code):
    board.lay(bytes.fromhex(code), CODE, [1 << 63] + [0] * 3 + [0x108800] + [0] * 11, 2)
    if code.startswith("50"):  # push rax, ret
        board.system.step()
    at = int(board.core.rip)
    stop = board.one()
    assert (stop.reason, stop.info, int(board.core.rip)) == ("triple-fault", 13, at)


@pytest.mark.parametrize(
    ("code", "rax"),
    [
        ("67 8d 04 0f", 0x0000_0007),  # lea eax, [edi + ecx]
        ("67 48 8d 04 0f", 0x0000_0007),  # the address is cut, not the register
    ],
)
def test_an_address_of_32_bits_is_cut(board, code, rax):
    _, regs = after(board, code, rax=ONES, rdi=0xFFFF_FFFF, rcx=8)
    assert regs[RAX] == rax


def test_counts_of_32_bits(board):
    after(board, "67 e3 10", rcx=1 << 32)  # jecxz
    assert int(board.core.rip) == CODE + 3 + 0x10
    after(board, "e3 10", rcx=1 << 32)
    assert int(board.core.rip) == CODE + 2
    _, regs = after(board, "67 f3 aa", rcx=1 << 32 | 3, rdi=DATA, rax=7)  # rep stosb
    assert regs[RCX] == 0
    assert bytes(board.M[DATA : DATA + 3]) == b"\7\7\7"


def test_pairs_are_exchanged_whole(board):
    board.M[DATA : DATA + 16] = 0
    _, regs = after(board, "48 0f c7 0f", rdi=DATA, rbx=5, rcx=6)  # cmpxchg16b [rdi]
    assert int(board.core.rflags) & 0x40
    assert bytes(board.M[DATA : DATA + 16]) == b"\5" + bytes(7) + b"\6" + bytes(7)
    _, regs = after(board, "0f c7 0f", rdi=DATA, rax=1)  # cmpxchg8b: not equal
    assert (regs[RAX], regs[RDX]) == (5, 0)
    stop, _ = after(board, "48 0f c7 0f", rdi=DATA + 8)
    assert (stop.reason, stop.info) == ("triple-fault", 13)


def test_string_output_and_segment_bases():
    program = assemble("""
    _start: mov edx, 0x3f8
            lea rsi, [rip + text]
            mov ecx, 5
            rep outsb
            mov rax, cr4
            bts eax, 16
            mov cr4, rax
            mov rax, 0x1234567890
            wrgsbase rax
            rdgsbase ebx
            cmp ebx, 0x34567890
            setne al
            out 0xf4, al
    text:   .ascii "hello"
    """)
    result = run(program).to_json()
    assert (result["serial"], result["exit_code"]) == ("hello", 0)


def test_every_hot_arm_is_reached_by_a_form():
    reached = {int(op) for column in (ops.FC_OP_REG, ops.FC_OP_MEM) for op in ops.FORM_TABLE[:, column]}
    assert [name for name, op in ops.HOT_OP.items() if op not in reached] == []


def test_a_form_without_a_size_of_its_own_does_not_write_a_wider_one():
    # 16 bits would be written as 32: what `movzx r16, r/m16` did.
    wide = [
        form
        for form in ops.FORMS
        if form.width == 32 and 16 in form.opsizes and form.instruction.sem != "nop" and not form.requires
    ]
    assert wide == []
