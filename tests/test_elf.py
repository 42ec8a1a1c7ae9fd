"""Executables: what a linker made runs as if it had been assembled, and no file brings the loader down."""

from __future__ import annotations

import builtins
import struct
import subprocess
import sys
import time
from pathlib import Path

import attrs
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from tests.asm.gnu import require
from vpmu_emu.asm import assemble, write_elf
from vpmu_emu.cli import main
from vpmu_emu.debug.session import Session
from vpmu_emu.errors import ConfigError, LoadError
from vpmu_emu.load import load, load_bytes
from vpmu_emu.system import System
from vpmu_emu.tables.ram import LOW_RAM_MIB

pytestmark = pytest.mark.uncompiled

CODE = bytes.fromhex("b007 e6f4 f4")  # mov al, 7; out 0xf4, al; hlt
LOAD, DYNAMIC, INTERP = 1, 2, 3


def header(kind, offset, vaddr, size, *, paddr=None, memory=None, flags=7):
    paddr = vaddr if paddr is None else paddr
    memory = size if memory is None else memory
    return struct.pack("<IIQQQQQQ", kind, flags, offset, vaddr, paddr, size, memory, 0x1000)


def elf(segments=None, body=CODE, *, entry=0x100000, at=0x1000, **changes):
    """A small executable; `changes` overwrite fields of its header."""
    segments = segments or [header(LOAD, at, 0x100000, len(body))]
    fields = {
        "ident": b"\x7fELF\2\1\1" + bytes(9), "type": 2, "machine": 62, "version": 1, "entry": entry,
        "phoff": 64, "shoff": 0, "flags": 0, "ehsize": 64, "phentsize": 56, "phnum": len(segments),
        "shentsize": 64, "shnum": 0, "shstrndx": 0,
    } | changes  # fmt: skip
    head = struct.pack("<16sHHIQQQIHHHHHH", *fields.values())
    return (head + b"".join(segments)).ljust(at, b"\0") + body


def stop_of(data, **options):
    return System(load_bytes(data, "a.elf"), ram=4, max_insns=100, **options).run()


# --- good ones ----------------------------------------------------------------------------------


def test_the_smallest_executable_runs():
    stop = stop_of(elf())
    assert (stop.reason, stop.info) == ("debug-exit", 7)


def test_what_the_assembler_wrote_is_read_back():
    source = assemble(
        ".equ N, 5\n.data\nd: .byte 1, 2\n.bss\nb: .skip 5000\n.text\nnop\n_start: out 0xf4, al\nhlt\n"
    )
    found = load_bytes(write_elf(source), "a.elf")
    assert [(s.addr, s.data, s.name, s.exec, s.write) for s in found.segments] == [
        (s.addr, s.data, s.name, s.exec, s.write) for s in source.segments
    ]
    assert (found.entry, found.symbols, found.equates) == (source.entry, source.symbols, source.equates)
    assert stop_of(write_elf(source)).reason == "debug-exit"


def test_memory_beyond_the_file_is_zero():
    program = load_bytes(elf([header(LOAD, 0x1000, 0x100000, 5, memory=9000)]), "a.elf")
    assert program.segments[0].data == CODE + bytes(8995)


def test_segments_lie_at_their_physical_addresses_and_the_entry_goes_along():
    high = 0xFFFF_FFFF_8010_0000
    data = elf([header(LOAD, 0x1000, high, 5, paddr=0x200000)], entry=high + 2)
    program = load_bytes(data, "a.elf")
    assert (program.segments[0].addr, program.segments[0].vaddr) == (0x200000, high)
    assert program.entry == 0x200002
    assert stop_of(data).reason == "debug-exit"


def test_physical_addresses_that_nobody_set_are_the_virtual_ones():
    both = [header(LOAD, 0x1000, 0x100000, 5, paddr=0), header(LOAD, 0x1000, 0x102000, 5, paddr=0)]
    assert [s.addr for s in load_bytes(elf(both), "a.elf").segments] == [0x100000, 0x102000]


def test_a_program_lies_anywhere_in_the_memory_below_4_gib():
    at = 1 << 29
    program = load_bytes(elf([header(LOAD, 0x1000, at, 5)], entry=at), "a.elf")
    assert System(program, ram=1024).run().reason == "debug-exit"
    with pytest.raises(LoadError, match="give more with --ram"):
        System(program, ram=256)


@pytest.mark.parametrize("where", ["0x100002", 0x100002, "1048578", "second"], ids=repr)
def test_another_entry(where):
    source = assemble("_start: hlt\nnop\nsecond: out 0xf4, al\n")
    program = load_bytes(write_elf(source), "a.elf")
    assert System(program, ram=4, entry=where).run().reason == "debug-exit"
    assert System(program, ram=4).run().reason == "halted"
    assert System(source, ram=4, entry=where).run().reason == "debug-exit"


def test_expectations_ride_in_a_section(tmp_path):
    require("as", "ld")
    (tmp_path / "a.s").write_text(
        ".intel_syntax noprefix\n.globl _start\n_start: mov al, 0\nout 0xf4, al\n"
        '.section .vpmu\n.asciz "#: modes bare"\n.asciz "expect all: exit_code == 0"\n'
        '.asciz "expect all: instructions == 2"\n'
    )
    subprocess.run(["as", "-o", "a.o", "a.s"], cwd=tmp_path, check=True)
    subprocess.run(["ld", "-Ttext=0x100000", "-o", "a.elf", "a.o"], cwd=tmp_path, check=True)
    found = load(tmp_path / "a.elf").expectations
    assert [e.text for e in found] == [
        "modes bare", "expect all: exit_code == 0", "expect all: instructions == 2",
    ]  # fmt: skip
    result = CliRunner().invoke(main, ["check", str(tmp_path / "a.elf")])
    assert "2 of 2 hold (bare)" in result.output
    assert result.exit_code == 0


# --- bad ones -----------------------------------------------------------------------------------

_BIG = 1 << 63
BAD = {
    "empty": (b"\x7fELF", "the file ends after 4 of 64 bytes"),
    "half a header": (elf()[:40], "the file ends after 40 of 64 bytes"),
    "cut in the headers": (elf()[:100], "program header table: reaches to offset 0x78"),
    "cut in a segment": (elf()[:-1], "reaches to offset 0x1005, the file ends at 0x1004 (truncated?)"),
    "32-bit": (b"\x7fELF\1\1\1" + bytes(9) + b"\2\0\3\0" + bytes(40), "a 32-bit file (32-bit x86)"),
    "x32": (b"\x7fELF\1\1\1" + bytes(9) + b"\2\0\x3e\0" + bytes(40), "x86-64 with 32-bit pointers"),
    "big-endian": (elf(ident=b"\x7fELF\2\2\1" + bytes(9)), "big-endian"),
    "class 9": (elf(ident=b"\x7fELF\x09\1\1" + bytes(9)), "class 9 is not ELF64"),
    "order 7": (elf(ident=b"\x7fELF\2\7\1" + bytes(9)), "byte order 7"),
    "arm": (elf(machine=183), "made for AArch64, not for x86-64"),
    "unknown machine": (elf(machine=9999), "made for machine 9999"),
    "object": (elf(type=1), "is an object file; link it"),
    "pie": (elf(type=3), "position-independent or a shared library; link it with -static -no-pie"),
    "core": (elf(type=4), "is a core dump"),
    "type 77": (elf(type=77), "has type 0x4d"),
    "version": (elf(version=2), "version 2"),
    "no program headers": (elf(phnum=0), "nothing to load"),
    "header size": (elf(phentsize=32), "a program header of 32 bytes, not 56"),
    "65535 headers": (elf(phnum=0xFFFF), "more than 65534"),
    "headers beyond": (elf(phoff=_BIG), "program header table: reaches"),
    "headers wrap": (elf(phoff=(1 << 64) - 56), "program header table: reaches"),
    "sections beyond": (elf(shoff=0x1000, shnum=9), "section header table: reaches"),
    "section size": (elf(shoff=64, shnum=1, shentsize=1), "a section header of 1 bytes"),
    "name section": (elf(shoff=64, shnum=1, shstrndx=1), "section names are in section 1 of 1"),
    "interpreter": (elf([header(INTERP, 0x1000, 0, 4), header(LOAD, 0x1000, 0x100000, 5)]),
                    "program header 0: needs a dynamic linker"),
    "dynamic": (elf([header(LOAD, 0x1000, 0x100000, 5), header(DYNAMIC, 0x1000, 0, 4)]),
                "program header 1: needs a dynamic linker"),
    "nothing loaded": (elf([header(4, 0, 0, 0)]), "none of them loads anything"),
    "file over memory": (elf([header(LOAD, 0x1000, 0x100000, 5, memory=4)]), "0x5 bytes of the file for"),
    "offset wraps": (elf([header(LOAD, (1 << 64) - 1, 0x100000, 5)]), "(truncated?)"),
    "huge": (elf([header(LOAD, 0x1000, 0x100000, 5, memory=_BIG)]), "reach over the top of memory"),
    "above": (elf([header(LOAD, 0x1000, LOW_RAM_MIB << 20, 5)]), "the top of memory, 0xc0000000"),
    "high": (elf([header(LOAD, 0x1000, 1 << 40, 5)]), "reach over the top of memory"),
    "virtual wraps": (elf([header(LOAD, 0x1000, (1 << 64) - 4, 5, paddr=0x100000)]), "wrap around"),
    "overlap": (elf([header(LOAD, 0x1000, 0x100000, 5), header(LOAD, 0x1000, 0x100004, 5)]),
                "ends at 0x100005, LOAD 1 begins at 0x100004: they overlap"),
    "many": (elf([header(LOAD, 0, 0x100000 + 16 * i, 1) for i in range(300)], at=0x8000),
             "257 segments"),
    "much": (elf([header(LOAD, 0x1000, 0x100000, 5, memory=200 << 20),
                  header(LOAD, 0x1000, 0x100000, 5, memory=200 << 20)]), "are more than fit"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_sentence_with_file_and_place(name):
    data, message = BAD[name]
    with pytest.raises(LoadError) as caught:
        load_bytes(data, "a.elf")
    text = str(caught.value)
    assert text.startswith("a.elf: ")
    assert message in text
    assert "\n" not in text


def symbols(table, names=b"\0start\0", link=2, size=None, kind=2):
    """An executable with a symbol table."""
    rows = [(0, 0, 0, 0), (0, kind, 0x2000, size or len(table)), (0, 3, 0x3000, len(names))]
    head = b"".join(
        struct.pack("<IIQQQQIIQQ", name, kind, 0, 0, at, length, link, 0, 1, 0)
        for name, kind, at, length in rows
    )
    body = (CODE.ljust(0x1000, b"\0") + table).ljust(0x2000, b"\0") + names
    return elf([header(LOAD, 0x1000, 0x100000, 5)], body.ljust(0x3000, b"\0") + head,
               shoff=0x4000, shnum=3, shstrndx=2)  # fmt: skip


def symbol(name, value, info=0x12, where=1):
    return struct.pack("<IBBHQQ", name, info, 0, where, value, 0)


def test_symbols_are_those_with_names_and_globals_win():
    names = b"\0twice\0file.c\0tls\0there\0number\0"
    at = {n: names.index(n) for n in (b"twice", b"file.c", b"tls", b"there", b"number")}
    table = (
        symbol(0, 0, 0, 0) + symbol(at[b"twice"], 1, 0x02) + symbol(at[b"twice"], 2, 0x02)
        + symbol(at[b"file.c"], 3, 0x04, 0xFFF1) + symbol(at[b"tls"], 4, 0x16)
        + symbol(at[b"there"], 0, 0x10, 0) + symbol(at[b"number"], 9, 0x10, 0xFFF1)
    )  # fmt: skip
    program = load_bytes(symbols(table, names), "a.elf")
    assert program.symbols == {"twice": 1, "number": 9}
    assert program.equates == {"number": 9}
    program = load_bytes(symbols(table + symbol(at[b"twice"], 7, 0x12), names), "a.elf")
    assert program.symbols["twice"] == 7


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (symbols(symbol(1, 0)[:-1]), "symbol table (section 1): 23 bytes are not whole symbols"),
        (symbols(symbol(1, 0), link=7), "its names are in section 7 of 3"),
        (symbols(symbol(99, 0)), "symbol table (section 1), symbol 0: its name at 0x63"),
        (symbols(symbol(1, 0), b"\0start"), "its name at 0x1 of the string table has no end"),
        (symbols(symbol(1, 0), size=1 << 40), "section header 1: reaches to offset"),
        (symbols(symbol(1, 0), size=0x3001), "reaches to offset"),
    ],
    ids=["size", "link", "name", "end", "huge", "long"],
)
def test_a_bad_symbol_table_is_one_sentence(data, message):
    with pytest.raises(LoadError) as caught:
        load_bytes(data, "a.elf")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"entry": "strat"}, "a.elf: --entry: no symbol 'strat'; did you mean 'start'?"),
        ({"entry": 0x500000}, "a.elf: the entry 0x500000 lies in no section; give one with --entry"),
        ({"entry": "0x100005"}, "the entry 0x100005 lies in no section"),
    ],
)
def test_a_bad_entry_is_one_sentence(options, message):
    data = symbols(symbol(0, 0, 0, 0) + symbol(1, 0x100000))
    with pytest.raises(LoadError, match=r"^a\.elf") as caught:
        stop_of(data, **options)
    assert message in str(caught.value)


def test_without_symbols_an_entry_is_an_address():
    with pytest.raises(LoadError, match="no symbol 'main'; it has no symbol table; give an address"):
        stop_of(elf(), entry="main")


@pytest.mark.parametrize(
    ("addr", "message"),
    [
        (0, "is where the machine's own tables are; link it at 0x1000 or above"),
        (0x3FFFFC, "is outside the memory of 4 MiB; give more with --ram"),
    ],
)
def test_segments_must_lie_in_free_memory(addr, message):
    data = elf([header(LOAD, 0x1000, addr, 5, paddr=addr)], entry=addr)
    with pytest.raises(LoadError) as caught:
        stop_of(data)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["run", "FILE"], "a 32-bit file"),
        (["asm", "FILE"], "a 32-bit file"),
        (["check", "FILE"], "a 32-bit file"),
        (["debug", "FILE"], "a 32-bit file"),
    ],
)
def test_every_command_says_what_is_wrong(args, text, tmp_path):
    path = tmp_path / "a.elf"
    path.write_bytes(BAD["32-bit"][0])
    result = CliRunner().invoke(main, [str(path) if a == "FILE" else a for a in args])
    assert result.exit_code == 2
    assert text in result.output
    assert "Traceback" not in result.output


def test_an_executable_may_come_through_a_pipe():
    result = CliRunner().invoke(main, ["asm", "-"], input=elf())
    assert "entry 0x100000" in result.output


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.c", "int x;\n", "a.c: C has to be compiled; docs/programs.md"),
        ("a.S", "#include <x>\n", "a.S: it has to go through the C preprocessor"),
        ("a.bin", "MZ\0\0", "a.bin: neither source text nor an ELF executable"),
    ],
)
def test_other_files_are_turned_away(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    result = CliRunner().invoke(main, ["run", str(tmp_path / name)])
    assert result.exit_code == 2
    assert message in result.output.replace(str(tmp_path) + "/", "")


# --- compiled ones ------------------------------------------------------------------------------

SOURCE = """\
static int factorial(int n)
{
	if (n > 1)
		return n * factorial(n - 1);
	return 1;
}
int table[100];
void _start(void)
{
	table[3] = factorial(5);
	__asm__ volatile("out %%al, $0xf4" ::"a"(table[3] != 120));
}
void unsupported(void)
{
	__asm__ volatile("ud2");
	__asm__ volatile("pxor %%xmm0, %%xmm0" ::: "memory");
}
"""
FLAGS = ["-O1", "-mgeneral-regs-only", "-ffreestanding", "-nostdlib", "-static", "-no-pie",
         "-fno-pic", "-Wl,-Ttext-segment=0x100000", "-Wl,--build-id=none"]  # fmt: skip


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A function that compiles SOURCE with further flags."""
    require("gcc", "as", "ld")
    folder = tmp_path_factory.mktemp("elf")
    (folder / "a.c").write_text(SOURCE)

    def build(*flags) -> Path:
        name = f"a{len(list(folder.iterdir()))}.elf"
        command = ["gcc", *FLAGS, *flags, "-o", name, "a.c"]
        subprocess.run(command, cwd=folder, check=True)
        return folder / name

    return build


@pytest.mark.parametrize("flags", [("-g",), ("-gdwarf-4",), ("-gdwarf-3",), ("-gdwarf-5", "-gz"), ()])
def test_a_compiled_program_runs(compiled, flags):
    stop = System(load(compiled(*flags)), ram=4).run()
    assert (stop.reason, stop.info) == ("debug-exit", 0)


@pytest.mark.parametrize("flag", ["-gdwarf-2", "-gdwarf-3", "-gdwarf-4", "-gdwarf-5"])
def test_addresses_have_the_lines_of_objdump(compiled, flag):
    path = compiled(flag)
    program = load(path)
    out = subprocess.run(
        ["objdump", "-d", "-l", "--no-show-raw-insn", path], capture_output=True, text=True, check=True
    ).stdout
    line, seen = 0, 0
    for row in out.splitlines():
        if (place := row.rpartition(":")) and place[0].endswith("a.c"):
            line = int(place[2].split()[0])
        elif ":\t" in row:
            found = program.line_at(int(row.split(":")[0], 16))
            assert found is not None
            assert (found.file, found.line) == ("a.c", line)
            assert found.text == SOURCE.splitlines()[line - 1].strip()
            seen += 1
    assert seen > 20
    assert program.source == {"a.c": SOURCE.splitlines()}
    for low, high in zip(program.lines, program.lines[1:]):
        assert low.addr + low.size <= high.addr


WRAPPERS = """\
static inline void raw(unsigned index, unsigned value)
{
	__asm__ volatile("wrmsr" ::"c"(index), "a"(value), "d"(0) : "memory");
}
static inline void wrmsr(unsigned index, unsigned value)
{
	raw(index, value);
}
"""
CALLER = """\
#include "w.h"
static inline void both(unsigned value)
{
	wrmsr(0xc1, value);
	wrmsr(0xc2, value);
}
void _start(void)
{
	wrmsr(0x38f, 0);
	both(1);
	both(2);
	__asm__ volatile("out %%al, $0xf4" ::"a"(0));
}
"""


@pytest.mark.parametrize("level", ["-O1", "-O2"])
@pytest.mark.parametrize("flag", ["-gdwarf-3", "-gdwarf-4", "-gdwarf-5"])
def test_code_of_a_wrapper_has_the_line_that_calls_it(tmp_path, level, flag):
    require("gcc", "as", "ld")
    (tmp_path / "w.h").write_text(WRAPPERS)
    (tmp_path / "a.c").write_text(CALLER)
    command = ["gcc", *FLAGS, level, flag, "-o", "a.elf", "a.c"]
    subprocess.run(command, cwd=tmp_path, check=True)
    program = load(tmp_path / "a.elf")
    (code,) = (s for s in program.segments if s.exec and program.entry >= s.addr)
    wrmsrs = [at for at in range(len(code.data)) if code.data[at : at + 2] == b"\x0f\x30"]
    places = [program.place(code.addr + at) for at in wrmsrs]
    # An inline function of the same file is its own author.
    assert places == ["a.c:9", "a.c:4", "a.c:5", "a.c:4", "a.c:5"]
    assert {line.file for line in program.lines} == {"a.c"}
    for low, high in zip(program.lines, program.lines[1:]):
        assert low.addr + low.size <= high.addr
        assert (low.file, low.line, low.addr + low.size) != (high.file, high.line, high.addr)


def test_a_debugger_breaks_at_lines_and_functions(compiled):
    session = Session(load(compiled("-g")), ram=4)
    session.break_at("a.c:10")
    assert session.cont().reason == "break"
    assert "a.c:10: table[3] = factorial(5);" in session.describe_place(session.rip)
    assert any(line.startswith("=>   10") for line in session.source_around(session.rip))
    session.break_at("factorial")
    assert session.cont().rip == session.program.symbols["factorial"]


def test_without_debugging_information_there_are_symbols_but_no_lines(compiled):
    program = load(compiled())
    assert program.lines == ()
    assert program.notes == ()
    session = Session(program, ram=4)
    assert session.describe_place(program.symbols["factorial"]).endswith("<factorial>")
    with pytest.raises(ConfigError, match="no source at"):
        session.source_around(program.entry)


def test_a_stripped_program_runs(compiled):
    program = load(compiled("-s"))
    assert program.symbols == {}
    assert System(program, ram=4).run().info == 0


def test_a_missing_source_is_a_note(compiled, tmp_path):
    moved = tmp_path / "b.elf"
    moved.write_bytes(compiled("-g", "-fdebug-prefix-map=/=/nowhere/").read_bytes())
    program = load(moved)
    assert program.notes == ("sources not found: a.c",)
    line = program.line_at(program.symbols["factorial"])
    assert (line.file, line.text) == ("a.c", "")
    session = Session(program, ram=4)
    with pytest.raises(ConfigError, match=r"a\.c:\d+: the source file is not here"):
        session.source_around(program.entry)


def test_a_source_that_is_no_file_is_not_read(compiled, tmp_path):
    path = tmp_path / "c.elf"
    path.write_bytes(compiled("-g").read_bytes().replace(b"a.c\0", b"pip\0"))
    import os

    os.mkfifo(tmp_path / "pip")
    assert load(path).notes == ("sources not found: pip",)


def test_without_the_extra_a_sentence_names_it(compiled, monkeypatch):
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name.split(".")[0] == "elftools":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    path = compiled("-g")
    monkeypatch.setattr(builtins, "__import__", absent)
    program = load(path)
    assert program.lines == ()
    assert len(program.notes) == 1
    assert "pip install 'vpmu-emu[elf]'" in program.notes[0]
    result = CliRunner().invoke(main, ["asm", str(path)])
    assert "install the extra `elf`" in result.output
    assert result.exit_code == 0


def test_without_debugging_information_the_extra_is_not_imported(compiled):
    code = "import sys; from vpmu_emu.load import load; load(sys.argv[1]); print('elftools' in sys.modules)"
    command = [sys.executable, "-c", code, str(compiled())]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


HIGH = """
.intel_syntax noprefix
.globl _start
_start: mov qword ptr ds:0x10000, 0x11003
        mov qword ptr ds:0x10000 + 511 * 8, 0x12003
        mov qword ptr ds:0x11000, 0x83
        mov qword ptr ds:0x12000 + 510 * 8, 0x83
        mov eax, 0x10000
        mov cr3, rax
        movabs rax, OFFSET high
        jmp rax
high:   mov al, value[rip]
        out 0xf4, al
        hlt
.data
value:  .byte 9
"""
HIGH_SCRIPT = """
ENTRY(_start)
SECTIONS {
  . = 0xffffffff80200000;
  .text : AT(ADDR(.text) - 0xffffffff80000000) { *(.text) }
  . = ALIGN(4096);
  .data : AT(ADDR(.data) - 0xffffffff80000000) { *(.data) }
}
"""


def test_a_program_of_the_higher_half_maps_itself_and_keeps_its_lines(tmp_path):
    require("as", "ld")
    (tmp_path / "h.s").write_text(HIGH)
    (tmp_path / "h.ld").write_text(HIGH_SCRIPT)
    subprocess.run(["as", "-g", "-o", "h.o", "h.s"], cwd=tmp_path, check=True)
    command = ["ld", "-z", "max-page-size=4096", "-T", "h.ld", "-o", "h.elf", "h.o"]
    subprocess.run(command, cwd=tmp_path, check=True)
    program = load(tmp_path / "h.elf")
    assert program.entry == 0x200000
    high = program.symbols["high"]
    assert high > 1 << 63
    session = Session(program, ram=4)
    assert "h.s:4: _start:" in session.describe_place(session.rip)
    session.break_at("high")
    assert (session.cont().reason, session.rip) == ("break", high)
    assert session.describe_place(high).endswith("<high> h.s:12: high: mov al, value[rip]")
    value = program.symbols["value"]
    assert session.instructions(high, 2)[0].endswith(f"]  # {value:#x} <value>")
    stop = System(program, ram=4).run()
    assert (stop.reason, stop.info, stop.line) == ("debug-exit", 9, 13)


# --- what the machine cannot do ------------------------------------------------------------------


def test_an_instruction_outside_of_the_table_is_named(compiled):
    program = load(compiled("-g", "-Wl,--defsym=here=unsupported+2"))
    system = System(program, ram=4, entry="here")
    stop = system.run()
    assert (stop.reason, stop.info) == ("triple-fault", 6)
    values = system.result(stop).to_json()["unsupported"]
    assert values["line"] == "a.c:16"
    assert values["rip"] == program.symbols["unsupported"] + 2
    assert values["bytes"].startswith("660fefc0")
    assert values["count"] == 1
    for part in ("a.c:16", "66 0f ef c0", "outside of the emulated instruction set", "SSE",
                 "-mgeneral-regs-only"):  # fmt: skip
        assert part in str(stop)


@pytest.mark.parametrize(
    "code", ["ud2", ".byte 0x0f, 0xb9, 0xc0", ".byte 0x0f, 0xff, 0xc0", ".byte 6", "lock; nop",
             ".byte 0xf0, 0x90", "ud2; .byte 0x6b, 0x76, 0x6d; hlt"]
)  # fmt: skip
def test_what_no_processor_has_is_not_missing(code):
    code = code.replace("lock; nop", ".byte 0xf0, 0x01, 0xc0")
    system = System(assemble(f"_start: {code}\nhlt\n"), ram=2)
    system.run()
    assert system.unsupported() is None


def test_only_bytes_of_the_page_of_an_instruction_are_looked_at():
    source = ".org 4093\n_start: .byte 0x0f, 0x58, 0xc1\n"
    system = System(assemble(source), ram=2)
    system.run()
    found = system.unsupported()
    assert (found["rip"], found["bytes"]) == (0x100FFD, "0f58c1")


def test_check_names_what_is_missing(tmp_path):
    path = tmp_path / "x.s"
    path.write_text("#: modes bare\n#: expect all: stop == halted\n_start: .byte 0xd9, 0xee\nhlt\n")
    result = CliRunner().invoke(main, ["check", str(path)])
    assert result.exit_code == 1
    assert "note: [bare] the instruction at 0x100000" in result.output
    assert "x.s:3), bytes d9 ee f4" in result.output
    assert "x87" in result.output


def test_instructions_are_missed_only_if_they_are_executed():
    source = """
    _start: lea rax, [rip + idt]; lidt [rip + idtr]
            mov ebx, 3
    again:  .byte 0x0f, 0x58, 0xc1
            dec ebx
            jnz again
            jmp end
            .byte 0xd9, 0xee
    end:    hlt
    handler: add qword ptr [rsp], 3
            iretq
    .data
    idtr:   .word 6 * 16 + 15
            .quad idt
    .balign 16
    idt:    .zero 6 * 16
            .word handler - 0x100000, 8, 0x8e00, 0x10
            .quad 0
    """
    system = System(assemble(source, "x.s"), ram=2, max_insns=100)
    assert system.run().reason == "halted"
    found = system.unsupported()
    assert (found["count"], found["line"], found["bytes"][:6]) == (3, "x.s:4", "0f58c1")
    assert "3 times in all" in found["text"]


# --- anything at all ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good(compiled):
    return [
        elf(), symbols(symbol(0, 0, 0, 0) + symbol(1, 0x100000)),
        compiled("-gdwarf-5").read_bytes(), compiled("-gdwarf-4").read_bytes(),
    ]  # fmt: skip


_VALUES = st.one_of(
    st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0xFFFFFFFF, 1 << 31, 1 << 32, _BIG, (1 << 64) - 1]),
    st.integers(0, (1 << 64) - 1),
)


@given(
    which=st.integers(0, 3),
    changes=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from([1, 1, 2, 4, 8]), _VALUES), max_size=6
    ),
    tables=st.booleans(),
    cut=st.one_of(st.none(), st.floats(0, 1)),
)
def test_a_mutated_file_is_a_program_or_a_load_error(good, which, changes, tables, cut):
    data = bytearray(good[which])
    # Headers, symbols and debugging tables are what is parsed; the code in between is not.
    spots = [*range(64 + 5 * 56), *range(0x1000 if which < 2 else 0x2000, len(data))]
    for where, size, value in changes:
        at = spots[int(where * (len(spots) if tables else 64 + 5 * 56))]
        data[at : at + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
    if cut is not None:
        data = data[: int(cut * len(data))]
    began = time.perf_counter()
    if not data.startswith(b"\x7fELF"):
        return
    try:
        program, words = load_bytes(bytes(data), "a.elf"), ""
    except LoadError as error:
        program, words = None, str(error)
    if program is None:
        assert words.startswith("a.elf: ")
    else:
        assert all(s.addr + len(s.data) <= 1 << 28 for s in program.segments)
        low = [s.addr for s in program.segments]
        assert low == sorted(low)
    assert time.perf_counter() - began < 20


def _line_table(version, tables):
    """A unit of .debug_info whose line table has these file tables."""
    rest = struct.pack("<BBBbBBB", 1, 1, 1, -5, 14, 1, *()) if version < 5 else b""
    body = bytes((1, 1, 1, 0xFB, 14, 1)) + tables
    line = struct.pack("<HBBI", version, 8, 0, len(body)) + body
    assert not rest
    return struct.pack("<I", len(line)) + line


def test_a_file_table_cannot_run_away(compiled):
    from vpmu_emu.load import dwarf

    abbrev = bytes((1, 0x11, 0, 0x10, 0x17, 0, 0, 0))
    info = struct.pack("<HBBI", 5, 1, 8, 0) + bytes((1,)) + struct.pack("<I", 0)
    info = struct.pack("<I", len(info)) + info
    runaway = bytes((0xFF,) * 8 + (0x7F,))
    segments = load_bytes(elf(), "a").segments
    for tables in (
        b"\0" + runaway + b"\0\0",  # folders of no values
        bytes((1, 1, 8)) + runaway + b"\0\0",  # more folders than bytes
        bytes((1, 1, 0x19)) + runaway + b"\0\0",  # values of no size
        b"\0\0\0" + runaway,
    ):
        sections = {".debug_info": info, ".debug_abbrev": abbrev, ".debug_line": _line_table(5, tables)}
        began = time.perf_counter()
        with pytest.raises(LoadError, match=r"^a: DWARF: the line table is damaged"):
            dwarf.read_lines(sections, segments, "a")
        assert time.perf_counter() - began < 5


def test_a_stream_that_is_read_too_often_ends():
    from vpmu_emu.load import dwarf

    stream = dwarf._Stream(b"ab")
    for _ in range(stream.left):
        stream.seek(0)
        assert stream.read(1) == b"a"
    with pytest.raises(dwarf._Damaged, match="never ends"):
        stream.read(1)


def test_lines_are_where_segments_lie_before_paging_too(compiled):
    from vpmu_emu.load.elf import _placed

    program = load(compiled("-g"))
    text = next(s for s in program.segments if s.exec)
    moved = attrs.evolve(text, addr=0x300000)
    lines = _placed(list(program.lines), [moved])
    again = attrs.evolve(program, lines=lines, segments=(moved,))
    high = program.symbols["factorial"]
    assert again.physical(high) == 0x300000
    assert again.line_at(high).line == again.line_at(0x300000).line in (2, 3, 5)
    assert len(lines) == 2 * len(program.lines)


def test_damaged_frame_information_costs_a_backtrace_no_more_than_itself(compiled):
    from vpmu_emu.load.frames import read_rules

    whole = load(compiled("-O2")).frames
    assert read_rules(whole).rules
    name, (addr, data) = next(iter(whole.items()))
    for at in range(0, len(data), 3):
        broken = bytearray(data)
        broken[at] ^= 0xFF
        for rule in read_rules({name: (addr, bytes(broken))}).rules:
            assert rule.low <= rule.high or rule.low > 0
    assert read_rules({".eh_frame": (0, b"\x01" * 100)}).rules == ()
    assert read_rules({}).at(0) is None
