"""What the assembler wrote reads back as a statement that assembles to the same bytes."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.asm.cases import WRITTEN, all_cases
from tests.asm.gnu import require
from tests.conftest import ROOT
from vpmu_emu.asm import assemble, listing, write_elf
from vpmu_emu.asm.disassemble import disassemble, disassemble_one
from vpmu_emu.debug.session import Session
from vpmu_emu.errors import ConfigError
from vpmu_emu.load import load, load_bytes

pytestmark = pytest.mark.uncompiled


@pytest.mark.slow  # plain Python: the run with the compiler has it
def test_every_form_makes_the_round_trip():
    head = ".equ N, 5\n.org 0x1000\n_start: nop\nhere: nop\n"
    statements = [statement for _, statement in all_cases()]
    program = assemble(head + "".join(f"1: {s}\n2: nop\n" for s in statements))
    lines = [line for line in program.lines if line.line > 4 and line.text != "2: nop"]
    found, again = [], []
    for line in lines:
        code = program.read(line.addr, line.size)
        one = disassemble_one(code + b"\x90" * 8, line.addr)
        assert one is not None, f"{line.text}: {code.hex(' ')}"
        assert one.size == line.size, f"{line.text}: {code.hex(' ')} as {one.text}"
        found.append((line, code, one))
        text = one.text
        if one.form.encoding.imm and one.form.encoding.imm[0] in ("cb", "cd"):
            # A number is a place, and far from here.
            text = text.replace(f"{one.target:#x}", f".{one.target - one.addr:+}")
        again.append(f".org {line.addr - 0x100000:#x}\n{text}\n")
    written = assemble("".join(again))
    for line, code, one in found:
        # 66 90 is NOP with a prefix to a processor.
        if code != b"\x66\x90":
            mine = written.read(one.addr, one.size)
            assert mine == code, f"{line.text}: {code.hex(' ')} as {one.text}: {mine.hex(' ')}"
    assert {one.form.index for _, _, one in found} == {form.index for form in WRITTEN}


@given(st.binary(max_size=20))
def test_any_bytes_are_an_instruction_or_none(code):
    one = disassemble_one(code, 0x100000)
    if one is not None:
        assert 0 < one.size <= min(15, len(code))
        assert disassemble_one(code[: one.size], 0x100000) == one
        assert all(disassemble_one(code[:n], 0x100000) is None for n in range(one.size))


def test_targets_are_addresses():
    program = assemble("a: jmp a\nmov eax, [rip + b]\nb: call a\n")
    found = list(disassemble(program.segments[0].data, 0x100000))
    assert [(i.text, i.target) for i in found] == [
        ("jmp 0x100000", 0x100000),
        ("mov eax, dword ptr [rip+0x0]", 0x100008),
        ("call 0x100000", 0x100000),
    ]


def test_what_is_not_in_the_table_is_stepped_over():
    code = bytes.fromhex("90 0f58c1 90 f4")
    assert [i.addr for i in disassemble(code, 0)] == [0]
    assert [i.addr for i in disassemble(code, 16, [20, 16, 21])] == [16, 20, 21]


@pytest.fixture(scope="module")
def executable(tmp_path_factory):
    require("gcc", "objdump")
    path = tmp_path_factory.mktemp("dis") / "report.elf"
    flags = ["-O2", "-g", "-mgeneral-regs-only", "-mno-red-zone", "-ffreestanding", "-nostdlib",
             "-fno-stack-protector", "-fno-pic", "-static", "-no-pie",
             "-Wl,-Ttext-segment=0x100000"]  # fmt: skip
    source = ROOT / "guests" / "c" / "report.c"
    subprocess.run(["gcc", *flags, "-o", str(path), str(source)], check=True)
    return path


def test_instructions_begin_where_objdump_says(executable):
    out = subprocess.run(
        ["objdump", "-dw", "--no-show-raw-insn", executable], capture_output=True, text=True, check=True
    ).stdout
    theirs = [int(row.split(":")[0], 16) for row in out.splitlines() if ":\t" in row]
    text = next(s for s in load(executable).segments if s.exec)
    assert [i.addr for i in disassemble(text.data, text.addr)] == theirs


def test_instructions_of_an_executable_are_counted_and_listed(executable):
    program = load(executable)
    text = next(s for s in program.segments if s.exec)
    inside = list(disassemble(text.data, text.addr))
    assert program.insns(text.addr, text.addr + len(text.data)) == len(inside)
    assert program.insns(inside[3].addr, inside[7].addr) == 4
    shown = listing(program)
    assert "on_pmi:" in shown
    assert "iretq" in shown
    assert "report.c:" in shown
    session = Session(program)
    rows = session.instructions(program.symbols["on_pmi"], 3)
    assert len(rows) == 3
    assert all("(not in" not in row for row in rows)
    called = [row for row in session.instructions(program.entry, 400) if "call" in row]
    assert any("<exceptions" in row or "<print" in row for row in called)


def test_bytes_that_are_no_instruction_cannot_be_counted():
    elf = write_elf(assemble("_start: nop\n.byte 0x0f, 0x58, 0xc1\nend: nop\n"))
    program = load_bytes(elf, "a.elf")
    with pytest.raises(ConfigError, match=r"a\.elf: no instruction of the emulated set at 0x100001"):
        program.insns("_start", "end")
    assert program.insns("_start", "_start") == 0
    assert listing(program).count("nop") == 2
    assert "not in the emulated instruction set" in Session(program, ram=2).instructions(0x100000, 5)[1]
