"""Bad sources: every error at its place, with a hint, all of them in one go, never a traceback."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lark.exceptions import UnexpectedInput

from vpmu_emu.asm import assemble, assemble_file, parser
from vpmu_emu.asm import core as module
from vpmu_emu.asm.errors import Diagnostic, Fault, did_you_mean
from vpmu_emu.errors import AssemblyError
from vpmu_emu.tables.instructions import BY_NAME


def errors(source: str, name: str = "t.s") -> tuple[Diagnostic, ...]:
    with pytest.raises(AssemblyError) as caught:
        assemble(source, name)
    return caught.value.diagnostics


def outcome(source: str) -> tuple[Diagnostic, ...]:
    """The errors, none if it assembles; any other exception is a failure."""
    try:
        assemble(source)
    except AssemblyError as error:
        return error.diagnostics
    return ()


# (source, line, the text under the caret, words of the message, words of the hint)
CASES = [
    ("mvo eax, 5", 1, "mvo", "no such instruction", "did you mean 'mov'"),
    ("addl eax, 5", 1, "addl", "no such instruction", "write 'add'"),
    ("mov %rax, 5", 1, "%", "AT&T", "Intel syntax"),
    ("mov eax, $1", 1, "$1", "AT&T", "Intel syntax"),
    ("mov eax, -8(%rbp)", 1, "%", "AT&T", "Intel syntax"),
    ("mov eaxx, 5", 1, "eaxx", "not a register", "did you mean 'eax'"),
    ("mov eax, [cx]", 1, "cx", "cannot address memory", "64-bit name"),
    ("mov eax, [rax + ecx]", 1, "ecx", "cannot address memory", "64-bit name"),
    ("mov eax, rbx", 1, "m", "does not take eax, rbx", "differ in size"),
    ("lea rax, 5", 1, "l", "does not take rax, number", "r64, m"),
    ("wrmsr eax", 1, "w", "does not take eax", "takes nothing"),
    ("out dx, bl", 1, "o", "does not take dx, bl", "imm8, al"),
    ("add [rax], 5", 1, "a", "ambiguous", "dword ptr"),
    ("movzx eax, [rax]", 1, "m", "ambiguous", "byte ptr"),
    ("mov r8b, ah", 1, "m", "REX", "use al"),
    ("shl eax, 300", 1, "300", "0x12c does not fit", ""),
    ("mov al, 256", 1, "256", "0x100 does not fit", ""),
    ("mov qword ptr [0x1000], 0x123456789a", 1, "0x123456789a", "does not fit", "sign-extended"),
    ("mov byte ptr [0x123456789a], 5", 1, "byte ptr [0x123456789a]", "outside of the signed", "register"),
    ("add rax, 0x80000000", 1, "0x80000000", "does not fit", "sign-extended"),
    ("mov ebx, ds:0x80000000", 1, "ds:0x80000000", "outside of the signed", "register first"),
    ("mov eax, [rax + 0x80000000]", 1, "m", "outside of the signed", "register first"),
    (".byte 1, 300", 1, "300", "0x12c does not fit in 1 byte", ""),
    (".word -65536", 1, "-65536", "does not fit in 2 bytes", ""),
    ("mov eax, 0x10000000000000000", 1, "0x10000000000000000", "64 bits", ""),
    ("mov eax, 09", 1, "09", "not a number", "octal"),
    ("mov eax, 0ffh", 1, "0ffh", "not a number", "0x0ff"),
    ("mov eax, dword [rax]", 1, "dword", "needs 'ptr'", "dword ptr"),
    ("mov eax, dword rax", 1, "dword", "needs 'ptr'", "dword ptr"),
    ("mov eax, dword ptr 4", 1, "dword ptr 4", "immediate to GNU as", "ds:4"),
    ("mov eax, [OFFSET x]\nx:", 1, "[OFFSET x]", "immediate to GNU as", "OFFSET x"),
    ("mov eax, [rax*3]", 1, "rax", "scale of 3", "1, 2, 4 or 8"),
    ("mov eax, [rax + rsp*2]", 1, "rsp", "cannot be an index", ""),
    ("mov eax, [rip + rax]", 1, "rip", "rip goes with", ""),
    ("mov eax, [rax+rbx+rcx]", 1, "rcx", "too many registers", "base + index"),
    ("mov eax, [rax - rbx]", 1, "rbx", "cannot be subtracted", "base + index"),
    ("mov eax, rax + 5", 1, "rax", "needs brackets", "lea"),
    ("mov eax, [rax", 1, "", "ends too early", "']' is missing"),
    ("mov eax, (1 + 2", 1, "", "ends too early", "')' is missing"),
    ("mov eax, 5 5", 1, "5", "not expected", "comma is missing"),
    ("mov eax ebx", 1, "ebx", "not expected", "comma is missing"),
    ("mov eax,", 1, "", "operand is missing", ""),
    ("jmp short x\nx:", 1, "short", "not needed", "short as they can be"),
    ("call puts@plt", 1, "puts", "'puts' is not defined", ""),
    ("mov rax, x@gotpcrel[rip]", 1, "x", "'x' is not defined", ""),
    ("mov rax, x@tpoff[rip]", 1, "@", "not expected", "no dynamic linker"),
    ("mov rax, x@gotpcrel\nx:", 1, "x@gotpcrel", "goes with rip", "x@GOTPCREL[rip]"),
    (".long x@gotpcrel\nx:", 1, "x@gotpcrel", "goes with rip", "x@GOTPCREL[rip]"),
    ("x = 5\nmov rax, x@gotpcrel[rip]", 2, "x", "is a number and has no address", ""),
    ('"rax": nop', 1, '"ra', "is a register", "another name"),
    ("stos dword ptr [rdi], ax", 1, "s", "differ in size", "stosw"),
    ("stos [rdi]", 1, "s", "have no size", "stosb"),
    ("stos dword ptr [rdx], eax", 1, "dword ptr [rdx]", "[rdi] here and nothing else", ""),
    ("movsb [rdi], fs:[rsi]", 1, "fs:[rsi]", "[rsi] here and nothing else", ""),
    ("lods ecx, [rsi]", 1, "ecx", "al, ax, eax or rax here", ""),
    ("stosb [rdi], al, al", 1, "s", "takes 2 operands or none", ""),
    ("gs add eax, ebx", 1, "g", "does not go with 'add'", "memory"),
    (".uleb128 x\nx:", 1, "x", "", ""),
    ("x: mov eax, x*2", 1, "*", "does not go with an address", "distance"),
    ("x: mov eax, -x", 1, "-", "from a number", "from an address"),
    ("x: y: .quad x + y", 1, "+", "cannot be added", "subtract"),
    (".data\na:\n.text\nb: .quad b - a", 4, "b", "cannot be resolved", "from here"),
    (".data\na:\n.text\nb: .quad a > b", 4, "b", "different sections", ""),
    ("x: y: mov eax, [rax + y - x]", 1, "x", "cannot be subtracted beside", "parentheses"),
    ("mov ecx, byte", 1, "byte", "is a word of Intel syntax", ""),
    ("word = 6", 1, "word", "is a word of Intel syntax", "another name"),
    ("xmm0 = 6", 1, "xmm0", "is a register", "another name"),
    ("mov ecx, eq", 1, "eq", "is a word of Intel syntax", ""),
    ("mov eax, gs:rax", 1, "gs", "before brackets", "gs:[rax]"),
    ("mov eax, 1 == 1", 1, "=", "cannot stand in an operand", ".equ"),
    ("lea rax, [rip + 0x80000000]", 1, "l", "outside of the signed", "register"),
    ("int 3, 4, 5", 1, "i", "does not take number, number, number", ""),
    ("int", 1, "i", "does not take no operands", ""),
    ("lock /* c */ nop", 1, " ", "comment between two words", "before or behind"),
    (".byte 'é'", 1, "'é'", "is one byte", "UTF-8"),
    (".align 4,", 1, "4,", "a fill is missing", ""),
    (".skip 4, 1, 2", 1, "4, 1, 2", "at most 2", ""),
    (".org x\nx:", 1, ".", "a label above", "takes 0"),
    (".bss\nx: .quad x", 2, "x", "only zeros", ".data"),
    (".equiv a, 1\na = 2", 2, "a", "already defined", "first at t.s:1"),
    ("x: nop\n.comm x, 4", 2, "x", "already defined", "first at t.s:1"),
    (".globl x y", 1, "x y", "a name is expected", ""),
    (".type x", 1, "x", "something else", "@function"),
    (".size x, y\nx:", 1, "y", "not defined", ""),
    (".loc 5 5 5", 1, "5", "not assigned", ".file"),
    (".cfi_endproc", 1, ".cfi_endproc", "without .cfi_startproc", ""),
    (".if 1\n.endif x", 2, "x", "follows .endif", "#"),
    (".ifc a\n.endif", 1, "a", "two texts", ""),
    (".ifeqs a, a\n.endif", 1, "a", "double quotes", ""),
    (".macro m a\n.endm\nm b=5", 3, "m", "has no parameter 'b'", "quote"),
    (".macro m value\n.endm\nm vaule=5", 3, "m", "has no parameter 'vaule'", "did you mean 'value'"),
    (".macro m a:vararg b\n.endm", 1, "m a:vararg b", "nothing can follow", ""),
    (".macro .byte a\n.endm", 1, ".byte", "is a directive", "another name"),
    ("in al, 0x3f8", 1, "0x3f8", "does not fit", "mov dx, 0x3f8"),
    ("out 0x3f8, eax", 1, "0x3f8", "does not fit", "mov dx, 0x3f8"),
    ("lidt [rip + idt_pointer]", 1, "idt_pointer", "not defined", "write idt_storage once in .data"),
    ("mov eax, 'ab'", 1, "b", "not expected", ""),
    ("mov eax, 1/0", 1, "/", "division by zero", ""),
    ("mov eax, 1 << 64", 1, "<", "shift count", ""),
    ("lock mov [rax], ecx", 1, "l", "'lock' does not go", "read-modify-write"),
    ("lock add eax, ecx", 1, "l", "'lock' does not go", "memory"),
    ("rep add eax, ecx", 1, "r", "'rep' does not go", "string"),
    ("lock lock add [rax], ecx", 1, "lock", "twice", ""),
    ("jmp nowhre\nnowhere:", 1, "nowhre", "not defined", "did you mean 'nowhere'"),
    ("mov eax, nothing_like_it", 1, "nothing_like_it", "not defined", "OFFSET"),
    ("nop\nmov ecx, MSR\n.equ MSR, 5", 2, "MSR", "only from t.s:3 on", "move the .equ"),
    ("mov eax, dword ptr N\n.equ N, 5", 1, "N", "only from t.s:2 on", "move the .equ"),
    ("x: nop\n  x: nop", 2, "x", "already defined", "first at t.s:1"),
    ("x: nop\nx = 5", 2, "x", "already defined", "first at t.s:1"),
    (".equiv a, 1\n.equiv a, 1", 2, "a", "already defined", "first at t.s:1"),
    ("a = a + 1", 1, "a", "through itself", "first value"),
    (".equ a, b\n.equ b, a", 2, "b", "through itself", ""),
    ("rax: nop", 1, "rax", "is a register", "another name"),
    (". = 5", 1, ".", "cannot be set", ".org"),
    ("nop\n1b:", 2, "1b:", "no such instruction", ""),
    ("1: nop\njmp 1f", 2, "1f", "no label '1:' follows", ""),
    ("jmp 1b\n1: nop", 1, "1b", "no label '1:' above", "1f"),
    ("loop x\n.skip 300\nx:", 1, "l", "300 bytes away", "jump over"),
    ("jmp 0x1000000000", 1, "j", "out of range", ""),
    (".bite 5", 1, ".bite", "no such directive", "did you mean '.byte'"),
    (".align 3", 1, "3", "power of two", ""),
    (".align 1 << 40", 1, "1 << 40", "at most 64 MiB", ""),
    (".p2align 99", 1, "99", "exponent", ""),
    (".org 100\nnop\n.org 50", 3, ".", "behind the current offset", "start of the section"),
    (".org -5", 1, "-5", "negative", ""),
    (".skip -1", 1, "-1", "negative", ""),
    (".skip 100000000000", 1, ".", "larger than 64 MiB", ".rept"),
    (".org 0x10000000", 1, ".", "larger than 64 MiB", ".rept"),
    (".fill -1", 1, "-1", "count", ""),
    (".ascii \"abc", 1, '"abc', "never closed", ""),
    (".ascii abc", 1, "abc", "double quotes", ""),
    (".asciz \"a\",", 1, "", "a string is missing", ""),
    (".quad rax", 1, "rax", "is a register", ""),
    (".quad [x]\nx:", 1, "x", "not a number", ""),
    (".equ x", 1, "x", "a name, a comma", ".equ NAME, 5"),
    (".equ x, [rax]", 1, "r", "not a number", ""),
    (".if x\n.endif", 1, "x", "known here", "define 'x' above"),
    (".rept y\n.endr", 1, "y", "known here", "define 'y' above"),
    ("a: jmp a\nb: .if b - a\n.endif", 2, "b - a", "known here", "branches or alignments"),
    (".if 1", 1, ".", "never closed", ".endif"),
    (".else", 1, ".else", "without .if", ""),
    (".if 1\n.else\n.else\n.endif", 3, ".else", "after .else", ""),
    (".rept 5\nnop", 1, ".rept", "never closed", ".endr"),
    (".macro m a\nnop", 1, ".macro", "never closed", ".endm"),
    (".endm", 1, ".endm", "without its beginning", ""),
    (".exitm", 1, ".exitm", "outside of a macro", ""),
    (".macro m\n.endm\nm 1", 3, "m", "too many arguments", "quote"),
    (".macro m a\n.endm\nm dword ptr [rax]", 3, "m", "too many arguments", "quote"),
    (".macro m a:req\n.endm\nm", 3, "m", "needs a value for 'a'", ".macro m a:req"),
    (".macro m a, a\n.endm", 1, "m a, a", "there twice", ""),
    (".macro m a:odd\n.endm", 1, "m a:odd", "cannot be ':odd'", ":req"),
    (".macro m\n.endm\n.macro m\n.endm", 3, "m", "already defined", ".purgem"),
    (".macro m a b\n.endm\nm a=1, 2", 3, "m", "after a named one", ""),
    (".purgem nope", 1, "nope", "no macro", ""),
    (".include \"nowhere.inc\"", 1, '"nowhere.inc"', "not found", "include path"),
    (".att_syntax", 1, ".att_syntax", "AT&T", ".intel_syntax"),
    (".code32", 1, ".code32", "64-bit mode only", ""),
    (".intel_syntax prefix", 1, "prefix", "noprefix", ""),
    (".data 1", 1, "1", "subsections", ".section"),
    (".popsection", 1, ".popsection", "without .pushsection", ""),
    (".bss\n.byte 1", 2, "1", "only zeros", ".data"),
    (".bss\nlock", 2, "l", "only zeros", "in .text"),
    (".bss\n.fill 1, 1, 256", 2, "1, 1, 256", "only zeros", ""),
    (".byte :: 5", 1, ":", "':' is not expected", "label"),
    (".bss\nnop", 2, "n", "only zeros", ""),
    (".error \"do not\"", 1, '"', "do not", ""),
    ("/* open\nnop", 1, "/", "never closed", "*/"),
    ("mov eax, [rip + (y - x)]\n.skip z - x\nx: jmp x\nz:\ny:", 1, "m", "distance", ""),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=[f"{i}: {case[0][:40]!r}" for i, case in enumerate(CASES)])
def test_error(case):
    source, line, under, message, hint = case
    found = errors(source)[0]
    assert message in found.message
    assert hint in found.hint
    assert (found.file, found.line) == ("t.s", line)
    shown = found.source_line[found.column - 1 : found.column - 1 + found.length]
    assert shown.startswith(under) if under else shown == ""
    assert found.source_line == source.split("\n")[line - 1]


def test_a_diagnostic_is_file_line_source_caret_and_hint():
    (found,) = errors("nop\n\tmov eax, IA32_PMC00 # odd\nIA32_PMC0 = 1\n")
    assert str(found) == (
        "t.s:2:11: error: symbol 'IA32_PMC00' is not defined\n"
        "    \tmov eax, IA32_PMC00 # odd\n"
        "    \t         ^~~~~~~~~~\n"
        "    hint: did you mean 'IA32_PMC0'?"
    )


def test_all_errors_come_in_one_go_in_order():
    source = "mvo eax, 5\nmov eax, undefined_1\n.byte 300\nlabel: nop; bogus; nop\n.if 1\n"
    assert [(e.line, e.column) for e in errors(source)] == [(1, 1), (2, 10), (3, 7), (4, 13), (5, 1)]


def test_text_of_the_exception_holds_every_error():
    with pytest.raises(AssemblyError) as caught:
        assemble("bogus\nbogus 2\n", "two.s")
    assert "two.s:1:1" in str(caught.value)
    assert "two.s:2:1" in str(caught.value)


def test_an_error_in_a_repeat_is_said_once():
    assert len(errors(".rept 50\nbogus\n.endr\n")) == 1


def test_errors_in_macros_show_where_they_were_called():
    source = ".macro inner a\nmov eax, \\a\n.endm\n.macro outer b\ninner \\b\n.endm\nouter rbx\n"
    (found,) = errors(source)
    assert (found.line, found.source_line) == (2, "mov eax, rbx")
    assert found.chain == (
        "in macro 'inner', called at t.s:5",
        "in macro 'outer', called at t.s:7",
    )
    assert str(found).endswith("\n    ".join(found.chain))


@pytest.mark.parametrize("body", ["mov eax, \\a", "lea rax, [\\a]", "add [rax + \\a], 5"])
def test_a_parameter_without_a_value_is_told(body):
    (found,) = errors(f".macro m a b\n{body}\n.endm\nm , 5\n")
    assert found.hint == "macro 'm' was called without 'a'"


@pytest.mark.parametrize("ci", [False, True])
def test_other_files_are_not_quoted_where_others_read_the_output(ci, tmp_path, monkeypatch):
    monkeypatch.setenv("CI", "true") if ci else monkeypatch.delenv("CI", raising=False)
    (tmp_path / "guest").mkdir()
    (tmp_path / "secret").write_text("nop\npassword 12345\n.error \"67890\"\n")
    (tmp_path / "guest" / "own.inc").write_text("bad 54321\n")
    (tmp_path / "guest" / "a.s").write_text('.include "../secret"\n.include "own.inc"\n')
    with pytest.raises(AssemblyError) as caught:
        assemble_file(tmp_path / "guest" / "a.s")
    text = str(caught.value)
    assert "secret:2:1: error: " in text
    assert "54321" in text
    assert ("password" in text) == ("12345" in text) == ("67890" in text) == (not ci)


def test_a_macro_that_calls_itself_stops():
    (found,) = errors(".macro m\nm\n.endm\nm\n")
    assert "more than 100 times" in found.message
    assert len(found.chain) <= 8


def test_macro_arguments_cannot_grow_without_end():
    (found,) = errors(".macro d a\nd \\a\\a\n.endm\nd 1234567890\n")
    assert "characters" in found.message


def test_endless_repeats_stop(monkeypatch):
    monkeypatch.setattr(module, "MAX_STATEMENTS", 2000)
    for source in (
        ".rept 1000000000\nnop\n.endr\n",
        ".rept 1000000000\n.rept 1000000000\n.endr\n.endr\n",
        ".macro m\n.rept 1000\nnop\n.endr\n.endm\n.rept 1000\nm\n.endr\n",
    ):
        (found,) = errors(source)
        assert "expands to more than 2000 statements" in found.message


def test_the_image_cannot_grow_without_end():
    for source in (
        ".rept 100\n.skip 1 << 20\n.endr\n",
        ".rept 100\n.align 1 << 20\n.byte 1\n.endr\n",
        ".section .comment\n.rept 100\n.align 1 << 20\n.skip 1\n.endr\n",
        ".data\nx: .skip 1 << 26\n.text\npush x@GOTPCREL[rip]\n",
        ".data\n.skip 1 << 25\n.bss\n.skip (1 << 25) + 1\n",
    ):
        (found,) = errors(source)
        assert "larger than 64 MiB" in found.message


def test_include_loops_are_found(tmp_path):
    (tmp_path / "a.s").write_text('nop\n.include "b.s"\n')
    (tmp_path / "b.s").write_text('.include "a.s"\n')
    with pytest.raises(AssemblyError) as caught:
        assemble_file(tmp_path / "a.s")
    (found,) = caught.value.diagnostics
    assert "'a.s' includes itself" in found.message
    assert found.file == str(tmp_path / "b.s")


def test_include_names_are_suggested(tmp_path):
    (tmp_path / "macros.inc").write_text("nop\n")
    (tmp_path / "a.s").write_text('.include "marcos.inc"\n')
    with pytest.raises(AssemblyError) as caught:
        assemble_file(tmp_path / "a.s")
    assert caught.value.diagnostics[0].hint == "did you mean 'macros.inc'?"


def test_an_undefined_name_that_an_include_defines_is_told(tmp_path):
    (tmp_path / "names.inc").write_text(".equ ONLY_THERE, 5\n")
    with pytest.raises(AssemblyError) as caught:
        assemble("mov ecx, ONLY_THERE\n", "t.s", include=[tmp_path])
    assert caught.value.diagnostics[0].hint == '.include "names.inc" defines it'


@pytest.mark.parametrize(
    "source",
    [
        "mov eax, " + "(" * 3000 + "1" + ")" * 3000,
        "mov eax, " + "-~" * 1500 + "x",
        "mov eax, " + "+".join(["x"] * 1200),
        "mov eax, " + "[" * 1000,
        ".quad " + "1|x|" * 900 + "1",
        ".equ a0, x\n" + "".join(f".equ a{i + 1}, a{i} | 1\n" for i in range(2000)) + ".quad a2000",
        ".if 1\n" * 1000,
        '.ascii "' + "\\" * 999,
        ".macro m\n" * 1000,
        "\0\ud800\n\x0b\x1c",
        "x" * 100_000,
    ],
    ids=range(11),
)
def test_monsters_are_errors_and_not_tracebacks(source):
    assert all(str(found) for found in outcome(source))


_PARTS = r"""
1 0x10 1f x y . ( ) [ ] + - * / << >> == <> ~ ! ' 'a' rax rcx fs: dword ptr offset flat: " "a
b" $ @ , _a.b$ 09 1fh x@gotpcrel -~ 8[rbp]
"""
_PART = st.sampled_from(_PARTS.split())


@settings(max_examples=500, deadline=None)
@given(st.lists(_PART, min_size=1, max_size=9), st.sampled_from(["", " "]))
def test_what_lark_takes_is_taken_and_nothing_else(words, between):
    """The assembler walks the tables of its grammar itself, and agrees with Lark on what an operand is."""
    text = between.join(words)
    try:
        parser._lark().parse(text)
        expected = True
    except UnexpectedInput:
        expected = False
    try:
        found = parser._tables().parse(text) is not None
    except Fault:
        return  # what a word means is not the grammar's
    assert found == expected


def test_a_long_chain_of_names_has_its_value():
    rows = "".join(f".equ x{i}, x{i + 1} + 1\n" for i in range(5000))
    data = assemble(rows + ".equ x5000, 7\n.data\n.quad x0\n").segments[-1].data
    assert data == (5007).to_bytes(8, "little")


def test_nearest_word():
    assert did_you_mean("wmrsr", BY_NAME) == "did you mean 'wrmsr'?"
    assert did_you_mean("ia32_pmc0", ["IA32_PMC0", "x"]) == "did you mean 'IA32_PMC0'?"
    assert did_you_mean("zzzzzz", BY_NAME) == ""


_VOCABULARY = r"""
mov add jmp jne call lea rax eax al ah [ ] ( ) , + - * / % << >> ~ ! 1 0x10 1f 1b 1: x: x
y . $ % @ ' " ; # /* */ // \ = == .byte .quad .equ .if .else .endif .rept .endr .macro
.endm .irp .align .org .skip .ascii .include .section .text .data .bss m m: \a \@ \() 'a'
"s" dword ptr offset flat: gs: rip rsp lock rep -1 255 256 99999999999 .exitm .fill .comm
.set .p2align .ifdef .ifb .irpc .purgem .previous .pushsection .popsection .err .end loop
xchg imul shl [rax+rcx*8] [rip+x] x-y 1f-1b
"""
_WORDS = st.sampled_from(_VOCABULARY.split())
_SOUP = st.lists(
    st.lists(_WORDS, max_size=6).map(" ".join) | st.text(max_size=20), max_size=12
).map("\n".join)


@settings(max_examples=400, deadline=None)
@given(st.text(max_size=80) | _SOUP)
def test_no_text_raises_anything_but_assembly_error(text):
    limit = module.MAX_STATEMENTS
    module.MAX_STATEMENTS = 3000
    try:
        found = outcome(text)
    finally:
        module.MAX_STATEMENTS = limit
    lines = text.split("\n")
    for diagnostic in found:
        assert 1 <= diagnostic.line <= len(lines)
        assert diagnostic.column >= 1
        assert diagnostic.message
        assert str(diagnostic).startswith("<stdin>:")


def _chain(first: str, step: str, count: int) -> str:
    rows = [f".equ x{i}, {step.replace('@', f'x{i - 1}')}\n" for i in range(1, count + 1)]
    return f".equ x0, {first}\n{''.join(rows)}.quad x{count}\n"


LONG = {
    "an error repeated": ".rept 250000\nbad\n.endr\n",
    "undefined names": "".join(f"mov eax, UNDEFINED_{i}\n" for i in range(1600)),
    "unknown instructions": "".join(f"q{i}w eax\n" for i in range(20_000)),
    "a sum of addresses": ".set a, 0\ns:\n.rept 100000\n.p2align 4\n.set a, a + (. - s)\n.endr\n.quad a\n",
    "squares": _chain("q", "@*@", 89) + "q = 3\n",
    "powers": "a: jmp a\nb:\n" + _chain("b-a", "@*3", 5000),
    "differences": _chain("b-a", "@^@", 94) + "a: jmp a\nb:\n",
    "macros": "".join(f".macro m{i}\n.endm\n" for i in range(10_000)),
    "parameters": ".macro m " + " ".join(f"a{i}" for i in range(2000)) + "\n.endm\n" + "m 1\n" * 1000,
    "comments": ".byte 1" + "/**/" * 100_000 + "\n",
    "quotes": "m " + "'a" * 100_000 + "\n",
    "brackets": ".macro m a\n.endm\nm " + "(" * 500_000 + "\n",
    "a long string": '.ascii "' + "a" * (17 << 20) + '"\n',
    "text without end": ".macro m a\n.ascii \"\\a\"\n.endm\n.rept 1000\nm " + "x" * 60_000 + "\n.endr\n",
    "names defined below": "".join(f".quad {'|'.join(['x'] * 90)}+{i}\n" for i in range(2000)) + "x = 1\n",
    "lengths in a circle": "x: .skip q - x\n.skip 5\nq:\n",
    "expressions": "".join(f".quad {i} - . + {'+'.join(str(k) for k in range(30))}\n" for i in range(6000)),
    "parentheses": "".join(f".quad {'(' * 40}{i}{')' * 40}\n" for i in range(10_000)),
    "names defined by the next": "".join(f".equ x{i}, x{i + 1} + 1\n" for i in range(40_000)) + ".quad 1\n",
    "lengths of the next": "".join(f".skip l{i + 1} - l{i}\nl{i}: nop\n" for i in range(33_000)),
}  # fmt: skip


# These need seconds: too much for every change.
LONGEST = {
    "names defined below", "expressions", "parentheses", "names defined by the next", "lengths of the next",
}  # fmt: skip


@pytest.mark.few(6)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.laws) if name in LONGEST else name for name in LONG]
)
def test_no_source_takes_long(name):
    begin = time.process_time()
    found = outcome(LONG[name])
    assert time.process_time() - begin < 5
    assert len(found) <= module.MAX_SHOWN


def test_errors_beyond_a_hundred_are_counted():
    with pytest.raises(AssemblyError) as caught:
        assemble("".join(f"bad{i}\n" for i in range(150)))
    assert len(caught.value.diagnostics) == 100
    assert str(caught.value).endswith("\nand 50 more errors")
    with pytest.raises(AssemblyError) as caught:
        assemble(".rept 100000\nbad\n.endr\n")
    assert len(caught.value.diagnostics) == 1
    assert caught.value.more == module.MAX_FAULTS
    assert str(caught.value).endswith("\nand 2000 more errors\nthe rest of the source was not read")


def test_a_misspelt_name_of_an_include_file_is_told():
    (found,) = errors("mov ecx, IA32_PERF_GLOBL_CTRL\n")
    assert found.hint == "did you mean 'IA32_PERF_GLOBAL_CTRL'? .include \"msr.inc\" defines it"


def _speed(source: str) -> float:
    begin = time.process_time()
    assemble(source)
    return source.count("\n") / (time.process_time() - begin)


def test_reading_is_fast_enough_to_be_interactive():
    # A tenth of the design's number: the machine that tests may be busy.
    body = "mov rax, [rbx+rcx*8+16]\nadd rax, 5\n1: dec rcx\njnz 1b\nlea rdi, [rip+1b]\n"
    assert _speed(body * 1000) > 2000
    assert _speed("".join(f"mov rax, [rbx+rcx*8+{i}]\n" for i in range(1000))) > 500
