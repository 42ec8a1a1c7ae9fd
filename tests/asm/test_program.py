"""Whole programs: the linked image of GNU as and ld, and what a Program says about itself."""

from __future__ import annotations

import random
import re
import subprocess
from pathlib import Path

import pytest

from tests.asm.gnu import gnu, require, sections
from tests.conftest import ROOT
from vpmu_emu.asm import assemble, assemble_file, listing, write_elf
from vpmu_emu.errors import ConfigError, LoadError

SOURCE = Path(__file__).with_name("program.s")


def _image(program):
    return {segment.name: (segment.addr, segment.data) for segment in program.segments}


def test_a_whole_program_is_the_image_of_gnu_as_and_ld(tmp_path):
    # `//` is a comment here and not in GNU as.
    text = SOURCE.read_text().replace("// two statements", "")
    ours, theirs = _image(assemble(text)), gnu(text, tmp_path)
    for name in (".text", ".data", ".bss"):
        assert ours[name][0] == theirs[name][0]
        mine, other = ours[name][1], theirs[name][1]
        differ = [i for i, (a, b) in enumerate(zip(mine, other, strict=False)) if a != b]
        assert differ == []
        assert len(mine) == len(other)


def _compiled(source, folder, *flags):
    require("gcc")
    always = ["-masm=intel", "-mgeneral-regs-only", "-ffreestanding", "-mno-red-zone"]
    command = ["gcc", "-S", *always, *flags, "-o", "c.s", str(source)]
    subprocess.run(command, cwd=folder, check=True)
    return (folder / "c.s").read_text()


BODIES = [SOURCE.with_name("compiled.c"), SOURCE.with_name("body.c"), ROOT / "guests" / "c" / "report.c"]


@pytest.mark.parametrize("level", ["-O0", "-O1", "-O2", "-O3", "-Os"])
@pytest.mark.parametrize("endbr", ["none", "full"])
@pytest.mark.parametrize("source", BODIES, ids=lambda path: path.stem)
def test_compiler_output_is_the_image_of_gnu_as_and_ld(source, level, endbr, tmp_path):
    flags = ["-fno-pic", "-fno-asynchronous-unwind-tables", f"-fcf-protection={endbr}", level]
    text = _compiled(source, tmp_path, *flags)
    assert _image(assemble(text)) == gnu(text, tmp_path)


STYLES = {
    "defaults": ["-fno-stack-protector"],  # position-independent and with .cfi where gcc says so
    "pie": ["-fpie"],
    "debugging": ["-fno-pic", "-g3"],
    "debugging 4": ["-fno-pic", "-gdwarf-4"],
    "comments": ["-fno-pic", "-fverbose-asm"],
    "kernel": ["-mcmodel=kernel", "-fno-pic"],
    "large": ["-mcmodel=large", "-fno-pic"],
    "position-independent": ["-fpic"],
    "no procedure linkage table": ["-fPIC", "-fno-plt"],
    "no jump tables": ["-fno-pic", "-fno-jump-tables"],
    "frames": ["-fno-pic", "-fno-omit-frame-pointer", "-fno-plt"],
}


@pytest.mark.few(8)
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("level", ["-O0", "-O2"])
def test_every_style_of_compiler_output_assembles_to_the_same(style, level, tmp_path):
    for source in BODIES[1:]:
        text = _compiled(source, tmp_path, level, *STYLES[style])
        assert _image(assemble(text)) == gnu(text, tmp_path)


def test_the_style_of_another_compiler_assembles_too(tmp_path):
    text = SOURCE.with_name("clang.s").read_text()
    assert _image(assemble(text)) == gnu(text, tmp_path)


@pytest.mark.parametrize("flags", [["-fpic", "-fno-plt"], ["-fno-pic"]])
def test_symbols_in_quotes_are_symbols(flags, tmp_path):
    text = _compiled(BODIES[1], tmp_path, "-O2", *flags)
    names = set(re.findall(r"^([\w.]+):", text, re.MULTILINE))
    quoted = re.sub(
        r"^(?!\s*\.(?:section|file|ident|string|ascii)).*$",
        lambda line: re.sub(r"(?<![\w.$@])[A-Za-z_.][\w.]*",
                            lambda m: f'"{m[0]}"' if m[0] in names else m[0], line[0]),
        text, flags=re.MULTILINE,
    )  # fmt: skip
    assert '"[rip' in quoted or '"@GOTPCREL[rip' in quoted
    assert _image(assemble(quoted)) == _image(assemble(text)) == gnu(quoted, tmp_path)


def test_places_of_addresses_are_left_out_where_ld_does_without(tmp_path):
    slot = "value@GOTPCREL[rip]"
    lines = [
        f"mov rax, QWORD PTR {slot}", f"mov r9d, {slot}", "mov rax, [rip + value@GOTPCREL]",
        "mov rax, value@GOTPCREL[rip+4]", f"cmp QWORD PTR {slot}, 5", f"push QWORD PTR {slot}",
        f"imul rax, {slot}", f"lea rax, {slot}", f"xchg rax, {slot}", f"cmovne rax, {slot}",
        f"cmp {slot}, rax", f"mov {slot}, rax", f"mov ax, {slot}", f"movzx eax, BYTE PTR {slot}",
        f"test QWORD PTR {slot}, rcx", f"test r11d, {slot}", "call [QWORD PTR func@GOTPCREL[rip]]",
        "jmp QWORD PTR func@gotpcrel[rip]", "call hook@GOTPCREL[rip]", "jmp hook@GOTPCREL[rip]",
        "mov rdi, hook@GOTPCREL[rip]", "mov r13, other@GOTPCREL[rip]",
        *(f"{op} {register}, {slot}" for op in ("add", "or", "adc", "sbb", "and", "sub", "xor", "cmp")
          for register in ("rax", "r15", "ebx", "r8d")),
    ]  # fmt: skip
    source = "\n".join(lines) + "\nfunc: ret\n.weak hook\n.data\nvalue: .long 7\nother: .byte 1\n"
    theirs = gnu(source, tmp_path)
    theirs.pop(".got.plt", None)  # of the dynamic linker, which ld writes for anything with @GOTPCREL
    assert _image(assemble(source)) == theirs


def test_a_weak_symbol_that_nobody_defines_is_zero(tmp_path):
    source = """
        .weak hook
        mov eax, OFFSET FLAT:hook
        lea rax, hook[rip]
        mov ecx, hook
        mov ecx, [rax + hook]
        call hook
        je hook
        jmp hook@PLT
        .quad hook
        .byte hook
    """
    assert assemble(source).segments[0].data.hex() == gnu(source, tmp_path)[".text"][1].hex()
    assert "hook" not in assemble(source).symbols


def test_sections_of_their_own_lie_as_ld_lays_them(tmp_path):
    flags = ["-fno-pic", "-ffunction-sections", "-fdata-sections", "-O2"]
    text = _compiled(BODIES[1], tmp_path, *flags)
    ours, theirs = _image(assemble(text)), gnu(text, tmp_path)
    bss = {name: theirs.pop(name) for name in list(theirs) if name.startswith(".bss")}
    assert ours.pop(".bss")[0] == min(at for at, _ in bss.values())
    assert ours == theirs


def test_numbers_of_varying_length_are_those_of_gnu_as(tmp_path):
    numbers = "0, 1, 63, 64, 127, 128, 300, 0x7fffffff, 0x7fffffffffffffff"
    source = f".data\n.uleb128 {numbers}\n.sleb128 {numbers}, -1, -64, -65, -300, -1 << 62\n"
    assert assemble(source).segments[-1].data.hex() == gnu(source, tmp_path)[".data"][1].hex()


def _random_program(seed: int) -> str:
    pick = random.Random(seed)
    count = pick.randrange(20, 120)
    lines = []
    for i in range(count):
        lines.append(f"l{i}:")
        for _ in range(pick.randrange(4)):
            kind = pick.randrange(9)
            target = f"l{pick.randrange(max(0, i - 25), min(count, i + 25))}"
            if kind < 4:
                lines.append(f"{pick.choice(['jmp', 'jne', 'jb', 'js'])} {target}")
            elif kind == 4:
                lines.append(f".skip {pick.randrange(40)}, 0x90")
            elif kind == 5:
                lines.append(pick.choice([".align 16", ".p2align 5", ".p2align 4,,10", ".align 8"]))
            elif kind == 6:
                lines.append(f"mov eax, {target} - l{pick.randrange(count)}")
            elif kind == 7:
                lines.append(f".long {target} - .")
            else:
                lines.append(f"lea rax, [rip + {target}]")
    lines.append("end_of_it: .skip l1 - l0 + 3")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("seed", range(24))
def test_branches_take_the_lengths_of_gnu_as(seed, tmp_path):
    source = _random_program(seed)
    assert assemble(source).segments[0].data.hex() == gnu(source, tmp_path)[".text"][1].hex()


@pytest.mark.parametrize("straight", [0, 5, 12, 13, 25, 60])
@pytest.mark.parametrize("between", ["nop", ".p2align 4", ".p2align 3\n.p2align 5,,7"])
def test_a_short_branch_behind_long_straight_code_stays_short(straight, between, tmp_path):
    """What has grown above must not make a target ahead look like one far behind."""
    grown = ["jne behind"] * 70
    ahead = ["movabs rax, 0x123456789"] * straight + ["jmp ahead", between, "nop", "ahead: ret"]
    source = "\n".join([*grown, *ahead, ".skip 300", "behind: ret"]) + "\n"
    assert assemble(source).segments[0].data.hex() == gnu(source, tmp_path)[".text"][1].hex()


_PADDING = [*range(1, 34), 77, 78, 87, 88, 89, 127, 128, 129, 130, 255, 256, 1000, 4095]


@pytest.mark.parametrize("count", _PADDING)
def test_padding_is_that_of_gnu_as(count, tmp_path):
    source = f".p2align 12\n.skip {4096 - count}, 0x90\n.p2align 12\nret\n"
    assert assemble(source).segments[0].data.hex() == gnu(source, tmp_path)[".text"][1].hex()


EXPRESSIONS = [
    "1+2*3-4/2%3", "2-1-1", "100/7/2", "1<<2+1", "1|1<<2", "12>>2-1", "1|2^3", "7&3+1", "-7/2",
    "-7%3", "~5", "!5", "!0", "- -1", "2--1", "1==1", "1!=1", "2<>1", "2>1", "2>=2", "2<1",
    "5-1==4-2", "1||0&&0", "2&&3==3", "(1+2)*3", "0x1F", "0b11", "010", "'A'-'@'", "-1>>4",
    "1<<63", "0xffffffffffffffff/2", "1<<2*2", "16*1<<2", "2*-3", "-2&3", "0x7fffffffffffffff+1",
    "'\\\\'", "'\\''", "'''", "'a", "b-a", "(b-a)*3", "c-a", "(c-a)*2+1", "-(b-a)", "a-a",
]  # fmt: skip


def test_expressions_are_worth_what_gnu_as_says(tmp_path):
    source = "".join(f".quad {text}\n" for text in EXPRESSIONS)
    source = f".data\n{source}a: .byte 1\nb: .text\na2: jmp a2\n.data\nc:\n"
    assert assemble(source).segments[-1].data.hex() == gnu(source, tmp_path)[".data"][1].hex()


STRINGS = r"""
.ascii "a\n\t\"\\\101\x41\0z\r\b\f"
.ascii "a\x414243z", "\1234"
.ascii "x" "y"
.asciz "a", "b"
.asciz ""
.string "a",,"b"
.ascii "\v\V\xg\x\8\9\89\779\q\e\'"
.byte '\v, '\0', '\q'
.string "#;/*,"
.byte ';', '#', ',', '"'
"""


def test_strings_are_the_bytes_of_gnu_as(tmp_path):
    source = ".data\n" + STRINGS
    assert assemble(source).segments[-1].data.hex() == gnu(source, tmp_path)[".data"][1].hex()


MACROS = {
    "defaults": ".macro m a b=5\n.byte \\a, \\b\n.endm\nm 1\nm 1,2\nm b=3 a=4\nm 1 2\nm 1 , 2\n",
    "blanks": ".macro m a b=5\n.byte \\a, \\b\n.endm\nm 2, (3 + 4)\nm 2 -1\nm (1 + 1)\nm 1+1\n",
    "vararg": ".macro m a:vararg\n.byte \\a\n.endm\nm 1,2,3\nm 1, 2 , 3\n",
    "count": ".macro m\n.byte \\@\n.endm\nm\nm\n",
    "quotes": '.macro m a\n.ascii "\\a[\\a]"\n.endm\nm "x y"\nm x\nm "a;b"\n',
    "recursion": ".macro m n\n.if \\n\n.byte \\n\nm \\n-1\n.endif\n.endm\nm 3\n",
    "exitm": ".macro m a\n.byte \\a\n.exitm\n.byte 3\n.endm\nm 1\n",
    "nested": ".macro m a\n.macro n b\n.byte \\a, \\b\n.endm\n.endm\nm 1\nn 2\n",
    "irp": ".irp r, 4 5 6\n.byte \\r\n.endr\n.irp r\n.byte 10\n.endr\n.irpc c,789\n.byte \\c\n.endr\n",
    "comments": ".macro m a\n.byte 1 # \\a\n/* .endm */\n.endm\nm 1\n",
    "prefixes": ".macro m a=1, a2=2\n.byte \\a2, \\a\n.endm\nm\n",
    "locals": ".macro m a\n1: mov eax, \\a\njmp 1b\n.endm\nm 5; m 6\nlab: m 7\n",
    "shadow": ".macro mov a b\nnop\n.endm\nmov eax, 5\n",
    "operands": '.macro m a\nmov eax, \\a\n.endm\nm [rax]\nm "dword ptr [rax + 5]"\nm [rax+rcx*4]\n',
    "blank tests": (
        ".macro m a\n.ifnb \\a\n.byte 1\n.else\n.byte 2\n.endif\n.ifb \\a\n.byte 3\n.endif\n"
        '.ifc \\a,x\n.byte 4\n.endif\n.ifnc \\a,x\n.byte 5\n.endif\n.ifeqs "\\a","x"\n'
        ".byte 6\n.endif\n.endm\nm\nm x\n"
    ),
    "upper case": ".MACRO M a\n.BYTE \\a\n.ENDM\nm 1\nM 2\n",
    "counting": "x = 3\n.rept x\n.byte x\nx = x - 1\n.endr\n",
}


SHOW = '.macro m a b\n.ascii "[\\a|\\b]"\n.endm\n'
MACROS |= {
    "characters": ".macro m n\n.byte '\\n', \\n\n.endm\nm 7\nm 'x'\nm '\\t'\nm ' '\n",
    "joined characters": SHOW + "m 'a' 2\nm 2 'a'\nm 'a',2\nm ' ' ' '\n",
    "characters of irpc": ".irpc n, 12\n.byte '\\n', '\\n, \\n\n.endr\n",
    "equals": SHOW + 'm a==b\nm b=1, a=2\nm a= x\nm "a=b"\nm a==\n',
    "brackets": SHOW + "m (x y) z\nm [x y] z\nm (x,y)\nm gs:[rax] y\n",
    "quotes in quotes": SHOW + 'm "a\\\\b" 1\nm x y\nm "it\'s"\n',
    "doubled quotes": '.macro m a\n.ifc "\\a",5\n.endif\n.byte 1\n.endm\nm 5\n',
    "a quote behind a name": ".macro m a\n.ascii \"\\a's \\q's\"\n.endm\nm x\n",
    "whole names": '.macro m a\n.ascii "\\a.\\a\\().x"\n.endm\nm x\n',
    "ampersands": '.macro m a\n.byte 7&a\n.ascii "&a&a &b& \\&a"\n.endm\nm 3\n',
    "literal text": '.macro m a b\n.ascii "\\a\\(x y)\\b\\\\a"\n.endm\nm 1 2\n',
    "empty arguments": '.macro m a=x b=y\n.ascii "[\\a|\\b]"\n.endm\nm ,\nm "" z\nm , ,\n',
    "empty values": '.irp r, 1,,2,\n.ascii "<\\r>"\n.endr\n.irp r,,\n.ascii "<\\r>"\n.endr\n',
    "blanks of irpc": '.irpc c, 1 2\n.ascii "[\\c]"\n.endr\n.irpc c, "1 2"\n.ascii "[\\c]"\n.endr\n',
    "nothing of irpc": '.irpc c, ""\n.byte 1\n.endr\n.irpc c\n.byte 2\n.endr\n',
    "inner calls": (
        '.macro n a b\n.ascii "[\\a|\\b]"\n.endm\n.macro m a b\nn (\\a) \\b\nn \\a\\() \\b\n'
        'n \\a \\b\nn "\\a" \\b\n.endm\nm 1 2\nm "(1)" 3\n'
    ),
    "exitm in a repeat": ".macro m\n.rept 3\n.byte 1\n.exitm\n.endr\n.byte 2\n.endm\nm\n",
    "labels before endr": ".rept 1\nx: .endr\n.byte x-x\n",
    "skipped macros": ".if 0\n.macro m\n.endif\n.byte 1\n",
    "texts": (
        ".ifc \"a\",a\n.byte 1\n.endif\n.ifc 'a',97\n.byte 2\n.endif\n.ifc [rax + 5],[rax+5]\n.byte 3\n"
        '.endif\n.ifc "a,b","a,b"\n.byte 4\n.endif\n.ifc (a,b),(a,b)\n.byte 6\n.endif\n'
    ),
    "strings": '.ifeqs "\\x41","A"\n.byte 5\n.endif\n',
    "symbols set twice": ".byte x\nx = 1\n.byte x\nx = 2\n.byte x\ny = z\nz = 1\n.byte y\nz = 2\n.byte y\n",
}


@pytest.mark.parametrize("name", MACROS)
def test_macros_expand_as_in_gnu_as(name, tmp_path):
    source = MACROS[name]
    assert assemble(source).segments[0].data.hex() == gnu(source, tmp_path)[".text"][1].hex()


def test_the_entry_is_start_or_the_first_byte():
    assert assemble("nop\n_start: nop\n").entry == 0x100001
    assert assemble(".data\n.byte 1\n.text\nnop\n").entry == 0x100000
    assert assemble("").entry == 0x100000


def test_sections_are_page_aligned_in_order():
    program = assemble(".bss\nb: .skip 5\n.data\nd: .byte 1\n.text\nt: nop\n")
    placed = [(s.name, s.addr, len(s.data), s.exec, s.write) for s in program.segments]
    assert placed == [
        (".text", 0x100000, 1, True, False),
        (".data", 0x101000, 1, False, True),
        (".bss", 0x102000, 5, False, True),
    ]
    assert program.symbols == {"b": 0x102000, "d": 0x101000, "t": 0x100000}


def test_symbols_and_equates():
    program = assemble(".equ A, 5\nB = A + 1\nx: nop\ny: nop\n.equ LEN, y - x\n.equ AT, y\n")
    assert program.symbols == {
        "A": 5, "B": 6, "x": 0x100000, "y": 0x100001, "LEN": 1, "AT": 0x100001,
    }  # fmt: skip
    assert program.equates == {"A": 5, "B": 6, "LEN": 1}


def test_instructions_are_counted_not_data():
    program = assemble(
        "a: nop; nop\n.byte 0x90\nb: .rept 5\ndec eax\n.endr\n.align 16\nc: jmp c\nd:\n"
    )
    assert program.insns("a", "b") == 2
    assert program.insns("b", "c") == 6  # five and one instruction of padding
    assert program.insns("c", "d") == 1
    assert program.insns("a", "d") == 9
    assert program.insns("d", "a") == 0
    assert program.insns(0x100000, 0x100001) == 1
    with pytest.raises(ConfigError, match="no label 'zz'"):
        program.insns("a", "zz")


def test_lines_tell_where_bytes_come_from():
    program = assemble(".macro two\nnop\nret\n.endm\nfirst: cli\ntwo\n.data\n.word 1, 2\n", "f.s")
    found = [(ln.addr, ln.size, ln.file, ln.line, ln.text, ln.kind) for ln in program.lines]
    assert found == [
        (0x100000, 1, "f.s", 5, "first: cli", "insn"),
        (0x100001, 1, "f.s", 6, "nop", "insn"),
        (0x100002, 1, "f.s", 6, "ret", "insn"),
        (0x101000, 2, "f.s", 8, ".word 1, 2", "data"),
        (0x101002, 2, "f.s", 8, ".word 1, 2", "data"),
    ]
    assert program.line_at(0x101003) is program.lines[-1]
    assert program.line_at(0x100003) is None
    assert program.line_at(0) is None
    assert program.source["f.s"][4] == "first: cli"


def test_lines_cover_the_image_without_overlap():
    program = assemble_file(SOURCE)
    for segment in program.segments:
        lines = [ln for ln in program.lines if segment.addr <= ln.addr]
        lines = [ln for ln in lines if ln.addr < segment.addr + len(segment.data)]
        at = segment.addr
        for line in lines:
            gap = program.read(at, line.addr - at)
            assert at <= line.addr
            assert not any(gap)
            at = line.addr + line.size
        assert at == segment.addr + len(segment.data)


def test_expectations_are_collected_in_order(tmp_path):
    (tmp_path / "inc.inc").write_text("#: from include\n")
    text = '#: cpu spr\nnop\n  #:  expect all: pmc0 == 5\n.include "inc.inc"\n# no: this\n'
    (tmp_path / "a.s").write_text(text)
    found = assemble_file(tmp_path / "a.s").expectations
    assert [e.text for e in found] == ["cpu spr", "expect all: pmc0 == 5", "from include"]
    assert [e.line for e in found] == [1, 3, 1]


def test_includes_are_found_beside_the_file_and_on_the_path(tmp_path):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "x.inc").write_text(".equ X, 7\n")
    (tmp_path / "y.inc").write_text('.equ Y, 8\n.include "x.inc"\n')
    (tmp_path / "a.s").write_text('.include "y.inc"\nmov eax, X + Y\n')
    program = assemble_file(tmp_path / "a.s", include=[tmp_path / "lib"])
    assert program.segments[0].data == bytes.fromhex("b80f000000")
    assert set(program.source) == {str(tmp_path / n) for n in ("a.s", "y.inc", "lib/x.inc")}


def test_a_missing_file_is_a_load_error(tmp_path):
    with pytest.raises(LoadError, match=r"nowhere\.s"):
        assemble_file(tmp_path / "nowhere.s")


def test_a_program_is_the_same_every_time():
    first, second = assemble_file(SOURCE), assemble_file(SOURCE)
    assert _image(first) == _image(second)
    assert first.lines == second.lines
    assert first.symbols == second.symbols


def test_the_listing_shows_address_bytes_and_source():
    text = listing(assemble("x: mov eax, 5\n.equ N, 3\n.data\nd: .skip 100\n"))
    assert "00100000  x:\n" in text
    assert "00100000  b8 05 00 00 00" in text
    assert "mov eax, 5" in text
    assert "..  100" in text
    assert "0x3  N" in text


def test_the_elf_holds_the_segments(tmp_path):
    program = assemble_file(SOURCE)
    elf = write_elf(program)
    assert sections(elf) == _image(program)
    require("readelf")
    (tmp_path / "a.elf").write_bytes(elf)
    done = subprocess.run(
        ["readelf", "-aW", "a.elf"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert "EXEC (Executable file)" in done.stdout
    assert "0x100000" in done.stdout
    assert " far_away" in done.stdout
