"""Symbols that are given from outside: as GNU as defines them, and never for nothing."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from tests.asm.gnu import accepts, gnu
from vpmu_emu import Session, run
from vpmu_emu.asm import assemble, assemble_file, with_defsym, write_elf
from vpmu_emu.cli import main
from vpmu_emu.errors import AssemblyError, ConfigError
from vpmu_emu.load import load

pytestmark = pytest.mark.uncompiled

WITH_DEFAULT = """
        .ifndef HZ
        .equ HZ, 250
        .endif
"""
USES = """
        .globl _start
_start: mov eax, HZ
        mov rbx, HZ
        add rcx, HZ
        mov edx, [HZ + rsi]
        .if HZ < 0
        nop
        .elseif HZ == 250
        hlt
        .endif
        lea rdi, [rip + after]
after:  .rept HZ & 3
        inc eax
        .endr
        ret
        .data
        .quad HZ, HZ * 3, -HZ, HZ >> 1
        .byte HZ & 0x7f
"""
GUEST = f"""
        .include "macros.inc"
        {WITH_DEFAULT}
        .globl _start
_start: mov ebx, HZ
        debug_exit 0
"""


def words(**defsym):
    return [word for name, text in defsym.items() for word in ("--defsym", f"{name}={text}")]


@pytest.mark.parametrize("text", ["100", "0x7f", "-5", "-0x80000000", "0xfffffffffffffffb", "250"])
def test_what_is_given_is_what_gnu_as_makes_of_it(text, tmp_path):
    theirs = gnu(WITH_DEFAULT + USES, tmp_path, flags=words(HZ=text))
    program = assemble(WITH_DEFAULT + USES, "a.s", defsym={"HZ": int(text, 0)})
    assert {s.name: bytes(s.data) for s in program.segments} == {
        name: data for name, (_, data) in theirs.items() if data
    }
    assert program.symbols["HZ"] % (1 << 64) == int(text, 0) % (1 << 64)


def test_what_the_source_sets_later_holds_as_in_gnu_as(tmp_path):
    source = ".data\n.quad HZ\n.equ HZ, 7\n.quad HZ\nHZ = 9\n.quad HZ\n"
    theirs = gnu(source, tmp_path, flags=words(HZ="5"))
    ours = {s.name: bytes(s.data) for s in assemble(source, "a.s", defsym={"HZ": 5}).segments}
    assert ours[".data"] == theirs[".data"][1] != b""


@pytest.mark.parametrize(("source", "place"), [
    ("nop\nHZ: .quad HZ\n", ":2:1:"), (".quad HZ\n.equiv HZ, 5\n", ":2:"), ("HZ: nop\n", ":1:1:"),
])  # fmt: skip
def test_a_name_that_is_also_a_label_is_refused(source, place, tmp_path):
    """GNU as forgets what it was given where a label has that name, which nobody can have meant."""
    assert accepts(source, tmp_path, words(HZ="5")) == (".equiv" not in source)
    with pytest.raises(AssemblyError, match="'HZ' is already defined") as caught:
        assemble(source, "a.s", defsym={"HZ": 5})
    assert place in str(caught.value)
    assert "by --defsym" in str(caught.value)


@pytest.mark.parametrize(("defsym", "source", "told"), [
    ({"HZZ": 1}, WITH_DEFAULT + USES, "defsym: no symbol HZZ is asked for in sort.s; did you mean HZ?"),
    ({"hz": 1}, WITH_DEFAULT + USES, "no symbol hz is asked for in sort.s; did you mean HZ?"),
    ({"Q": 1}, WITH_DEFAULT + USES, "no symbol Q is asked for in sort.s"),
    ({"SIZE": 1}, ".equ SIZE, 8\n.quad SIZE\n", "sets SIZE without asking whether it is set"),
    ({"DEEP": 1}, ".if 0\n.ifdef DEEP\n.endif\n.endif\n.quad 1\n", "no symbol DEEP is asked for"),
    ({"9Z": 1}, "nop", "'9Z' is no name of a symbol"),
    ({"": 1}, "nop", "'' is no name of a symbol"),
    ({"rax": 1}, "nop", "'rax' is a register"),
    ({".": 1}, "nop", "'.' is the place of the next byte"),
    ({"HZ": 1 << 64}, "nop", "does not fit 64 bits"),
    ({"HZ": -(1 << 63) - 1}, "nop", "does not fit 64 bits"),
])  # fmt: skip
def test_what_is_given_for_nothing_or_cannot_be_is_one_sentence(defsym, source, told):
    with pytest.raises(ConfigError) as caught:
        assemble(source, "sort.s", defsym=defsym)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", [
    ".ifdef X\n.endif\nnop", ".quad X", ".if X\n.endif\nnop", ".skip X", "mov eax, [rbx + X]",
    ".equ Y, X\nnop", ".macro m a\n.quad \\a\n.endm\nm X", ".rept X\nnop\n.endr\nnop",
    '.quad "X"', ".ifnotdef X\n.endif\nnop",
])  # fmt: skip
def test_whatever_asks_for_it_is_heard(source):
    assert assemble(source, "a.s", defsym={"X": 3}).defsym == {"X": 3}


def test_a_program_that_is_there_is_assembled_again(tmp_path):
    path = tmp_path / "g.s"
    path.write_text(GUEST)
    program = assemble_file(path)
    assert with_defsym(program, {}) is program
    again = with_defsym(program, {"HZ": 3})
    assert with_defsym(again, {"HZ": 3}) is again
    assert (program.symbols["HZ"], again.symbols["HZ"]) == (250, 3)
    assert again.segments == load(path, {"HZ": 3}).segments
    moved = with_defsym(program.entered_at("_start"), {"HZ": 3})
    assert (moved.entry, moved.entered) == (again.entry, "_start")
    # One that somebody keeps is not altered by a run of it with other symbols.
    for given in (7, 8):
        assert run(program, defsym={"HZ": given}).to_json()["registers"]["rbx"] == given
        assert run(path, defsym=[f"HZ={given}"]).to_json()["registers"]["rbx"] == given
        assert Session(program, defsym={"HZ": given}).program.symbols["HZ"] == given
    assert run(program).to_json()["registers"]["rbx"] == 250
    assert run(again).to_json()["registers"]["rbx"] == 3


def test_an_executable_has_its_values(tmp_path):
    path = tmp_path / "g.elf"
    path.write_bytes(write_elf(assemble(GUEST, "g.s")))
    with pytest.raises(ConfigError, match=r"g\.elf is an executable, whose symbols have their values"):
        run(path, defsym={"HZ": 5})
    done = CliRunner().invoke(main, ["run", str(path), "--defsym", "HZ=5"])
    assert (done.exit_code, done.output.count("\n")) == (2, 1)


def test_every_door_takes_them(tmp_path):
    path = tmp_path / "g.s"
    path.write_text(GUEST + "\n#: modes bare\n#: args --defsym HZ=77\n#: expect all: rbx == HZ\n"
                    "#: expect all: rbx == 77\n")  # fmt: skip
    runner = CliRunner()
    done = runner.invoke(main, ["run", str(path), "--defsym", "HZ=0x11", "--json"])
    assert json.loads(done.output)["registers"]["rbx"] == 0x11
    done = runner.invoke(main, ["run", "-", "--defsym", "HZ=18", "--json"], input=GUEST)
    assert json.loads(done.output)["registers"]["rbx"] == 18
    done = runner.invoke(main, ["asm", str(path), "--defsym", "HZ=-2", "--json"])
    assert json.loads(done.output)["symbols"]["HZ"] == -2
    done = runner.invoke(main, ["check", str(path)])
    assert (done.exit_code, "2 of 2 hold" in done.output) == (0, True), done.output
    done = runner.invoke(main, ["debug", str(path), "--defsym", "HZ=19"], input="cont\nprint rbx\n")
    assert "19" in done.output
    for bad, told in (("HZ", "'HZ' is not NAME=NUMBER"), ("HZ=x", "'HZ=x' is not NAME=NUMBER"),
                      ("HZZ=4", "did you mean HZ?")):  # fmt: skip
        for command in ("run", "asm", "debug"):
            done = runner.invoke(main, [command, str(path), "--defsym", bad])
            assert (done.exit_code, told in done.output) == (2, True), done.output
            assert done.output.count("\n") == 1
    path.write_text(GUEST + "\n#: modes bare\n#: args --defsym HZZ=77\n#: expect all: rbx == 77\n")
    done = runner.invoke(main, ["check", str(path)])
    assert (done.exit_code, "did you mean HZ?" in done.output) == (2, True)
