"""Every statement that is taken has the bytes of GNU as: random directives, macros, names, expressions."""

from __future__ import annotations

import random
import re

import pytest

from tests.asm.gnu import gnu, require
from tests.tools.profiles import cases
from vpmu_emu.asm import assemble
from vpmu_emu.errors import AssemblyError

UNITS = 400  # of one file, a few lines each


class Writer:
    """Random small sources; `n` keeps the names of one apart from those of the others."""

    def __init__(self, seed: int, n: int) -> None:
        self.random = random.Random(f"{seed}.{n}")
        self.n = n
        self.names = [f"x{n}", f"y{n}.a", f"_z{n}", f".q{n}", f"w{n}$"]

    def pick(self, *choices):
        return self.random.choice(choices)

    def some(self, make, most=3, between=", "):
        return between.join(make() for _ in range(self.random.randint(1, most)))

    def number(self):
        odd = self.pick(0, 1, 2, 5, 127, 128, 255, 256, 32768, 65535, 0x7FFFFFFF, 0x80000000,
                        0xFFFFFFFF, 0x100000000, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)  # fmt: skip
        value = self.pick(odd, odd, self.random.randrange(300), self.random.getrandbits(64))
        text = self.pick(str, hex, bin, lambda v: f"0{v:o}")(value)
        return self.pick("", "", "", "-", "~", "!", "- ", "-~") + text

    def small(self):
        return self.pick("", "", "-") + str(self.random.randrange(0, 12))

    def character(self):
        body = self.pick(*"azn0 ,;#/'\"([=&.", "\\n", "\\t", "\\\\", "\\'", "\\b", "\\q", "\\v", "\\0")
        return "'" + body + self.pick("'", "'", "'", "")

    def expression(self, depth=2):
        if depth == 0:
            return self.pick(self.small, self.small, self.number, self.character)()
        op = self.pick(*"+-*/%&|^+-", "<<", ">>", "==", "!=", "<>", "<", ">", "<=", ">=", "&&", "||")
        left, right = self.expression(depth - 1), self.expression(depth - 1)
        text = left + self.pick("", " ", "  ") + op + self.pick("", " ") + right
        return f"({text})" if self.random.random() < 0.4 else text

    def place(self):
        name = self.pick(*self.names)
        return self.pick(name, name, f"{name}+{self.small()}", f"{name} - {self.small()}", ".", "$")

    def distance(self):
        first, second = self.pick(*self.names), self.pick(*self.names)
        return self.pick(
            f"{first}-{second}", f"({first} - {second})*2", f".-{first}", f"-({first}-{second})",
            f"{first}=={second}", f"{first}>{second}", f"({first}-{second})&1", f"{first}-{second}+3",
            f"5 - {second} + {first}",
        )  # fmt: skip

    def string(self):
        pieces = [
            *"azAZ 09;#/,'&()[].$%", "\\n", "\\t", "\\\\", '\\"', "\\0", "\\12", "\\377", "\\8", "\\x41",
            "\\x",
            "\\X7f0", "\\v", "\\b", "\\q", "\\e", "é", "//", "/*", "\\f", "\\r", "\\9a", "\\xg",
        ]  # fmt: skip
        return '"' + "".join(self.pick(*pieces) for _ in range(self.random.randrange(8))) + '"'

    def word(self):
        return "".join(self.pick(*"abxyn019_.$+-*/~!@&|<>=?%:\\") for _ in range(self.random.randint(1, 3)))

    def argument(self):
        return self.pick(
            self.word, self.word, self.small, self.character, self.string,
            lambda: f"({self.word()}{self.pick(' ', ',', '')}{self.word()})",
            lambda: f"[{self.word()} + {self.small()}]",
            lambda: f"a{self.pick('=', '==', ' = ')}{self.word()}",
            lambda: f"b={self.pick(self.word, self.string, self.character)()}",
            lambda: "", lambda: '"x""y"', lambda: "dword ptr [rax]", lambda: "1 + 2", lambda: "gs:[rax]",
        )()  # fmt: skip

    def arguments(self):
        count = self.random.randrange(4)
        return "".join(self.argument() + self.pick(" ", ",", ", ", " , ",
        "\t") for _ in range(count)).rstrip()

    def body(self, names):
        name = self.pick(*names)
        return self.pick(
            f'.ascii "[\\{name}]"', f'.ascii "\\{name}\\()x&{name}"', f".byte \\{name}",
            f".byte '\\{name}'",
            f".ifc \\{name},{self.word()}\n.byte 1\n.else\n.byte 2\n.endif",
            f".ifb \\{name}\n.byte 3\n.endif",
            f".ifnb \\{name}\n.byte 4\n.endif", f".irp r, \\{name}\n.ascii \"<\\r>\"\n.endr",
            f".irpc r, \\{name}\n.ascii \"<\\r>\"\n.endr", f"mov eax, \\{name}", f"lea rcx, \\{name}",
            f".byte 7&{name}", f'.ascii "\\{name}.\\{name}$\\{name}"', ".byte 1\n.exitm\n.byte 2",
            f'.ifeqs "\\{name}", {self.string()}\n.byte 5\n.endif', ".ascii \"\\(a b)\\q\\\\a\"",
            f"inner{self.n} \\{name} \\{name}", f"inner{self.n} (\\{name}) x\\{name}",
            ".rept 2\n.byte 6\n.endr",
        )  # fmt: skip

    def macro(self):
        kinds = ["", "", "", "=5", "='n'", '="p q"', ":req", ":vararg", "=(1 + 2)", ":vararg=7"]
        a, b = self.pick(*kinds), self.pick(*kinds)
        parameters = self.pick(f"a{a}", f"a{a}, b{b}", f"a{a} b{b}", f"a{a},b{b}")
        names = ["a", "b"] if "b" in parameters else ["a"]
        body = "\n".join(self.body(names) for _ in range(self.random.randint(1, 2)))
        inner = f'.macro inner{self.n} p q\n.ascii "{{\\p|\\q}}"\n.endm\n' if "inner" in body else ""
        calls = "\n".join(f"m{self.n} {self.arguments()}" for _ in range(self.random.randint(1, 2)))
        return f"{inner}.macro m{self.n} {parameters}\n{body}\n.endm\n{calls}"

    def repeat(self):
        body = self.body(["r"])
        if "inner" in body:
            body = ".byte 1"
        return self.pick(
            f".irp r, {self.arguments()}\n{body}\n.endr", f".irp r {self.arguments()}\n{body}\n.endr",
            f".irpc r, {self.pick(self.word, self.string, self.character)()}\n{body}\n.endr",
            f".rept {self.small()}\n.byte 1, \\@\n.endr",
            f".rept 2\n.irp r, {self.arguments()}\n{body}\n.endr\n.endr",
            f".rept 3\n.if {self.expression(1)}\n.byte 1\n.endif\n.endr",
            f".rept 2\nt{self.n}\\@: .endr\n.byte 1\n.endr", ".rept 2\n.byte 1\n.exitm\n.endr",
        )  # fmt: skip

    def condition(self):
        test = self.pick(
            f".if {self.expression()}", f".ifeq {self.expression()}", f".ifgt {self.expression(1)}",
            f".ifge {self.expression(1)}", f".iflt {self.expression(1)}", f".ifle {self.small()}",
            f".ifc {self.argument()},{self.argument()}", f".ifnc {self.word()} , {self.word()}",
            f".ifeqs {self.string()}, {self.string()}", f".ifdef {self.pick(*self.names)}",
            f".ifndef {self.pick(*self.names)}", f".ifb {self.pick('', self.argument())}",
            f".ifc {self.string()},{self.string()}", f".ifc [rax + {self.small()}],[rax+1]",
        )  # fmt: skip
        middle = self.pick("", f".elseif {self.expression(1)}\n.byte 2\n", ".macro zz\n.else\n.endm\n")
        otherwise = self.pick("", ".else\n.byte 3\n", "x: .else\n", ".else ; .byte 4\n", '.ascii "x\n')
        return f"{test}\n.byte 1\n{middle}{otherwise}.endif{self.pick('', '', ' # x', ' x')}"

    def data(self):
        directive = self.pick(".byte", ".word", ".short", ".value", ".long", ".int", ".quad", ".2byte",
                              ".4byte", ".8byte", ".hword", ".uleb128", ".sleb128")  # fmt: skip
        make = self.pick(self.expression, self.expression, self.number, self.small, self.character,
                         self.place, self.distance)  # fmt: skip
        return f"{directive} {self.some(make)}"

    def sizes(self):
        e = self.small
        return self.pick(
            f".skip {e()}", f".skip {e()}, {e()}", f".zero {e()}", f".space {e()},{e()}", f".fill {e()}",
            f".fill {e()}, {e()}, {self.number()}", f".fill {e()},{e()}", f".fill {e()},,{e()}",
            f".align {self.pick(1, 2, 4, 8, 16, 3, 0)}", f".p2align {self.pick(0, 1, 2, 3, 4)}",
            f".balign {self.pick(4, 8, 16)}, {e()}", f".p2align 4,,{e()}", f".p2align 3, {e()}, {e()}",
            f".align 8,{self.pick('', ',', ',,', e())}", f".org .+{e()}", f".org .+{e()}, {e()}",
            f".skip {self.distance()}", f".org {self.place()}", f".fill {self.distance()}, 1, 7",
        )  # fmt: skip

    def strings(self):
        name = self.pick(".ascii", ".asciz", ".string", ".string8")
        return f"{name} {self.some(self.string, 3, self.pick(', ', ' ', ',,'))}"

    def symbol(self):
        n, e = self.n, self.expression
        name = self.pick(f"s{n}", f"S{n}", f"s.{n}", "byte", "near", "eq", "xmm1", "k1", "st", "flat",
        "mod",
                         "ptr", "r8l", "lock", "mov", f"$s{n}", f"é{n}", f"\"s{n}\"", f"\"s {n}\"",
                         "offset")  # fmt: skip
        first = self.pick(f"{name} = {e()}", f".equ {name}, {e()}", f".set {name},{e()}", f"{name}: nop",
                          f".equiv {name}, {e()}", f"{name} == {e()}", f"{name} : .byte 1",
                          f"{name}:.byte 1")  # fmt: skip
        if name in ("ptr", "r8l", "lock", "mov"):  # no name of this unit alone
            first = f"{name} = {e()}"
        use = self.pick(f".quad {name}", f"mov ecx, {name}", f"jmp {name}", f"lea rax, {name}[rip]",
                        f".quad {name}+1", f"add eax, {name}", f"mov eax, [{name}]")  # fmt: skip
        again = self.pick("", "", f"{name} = {e(1)}\n{use}", f".equ {name}, {name} + 1\n{use}")
        text = f"{first}\n{use}\n{again}"
        return self.pick(text, f"{use}\n{text}")

    def address(self):
        register = self.pick("rax", "rbp", "rsp", "r12", "r13", "rdi", "rip", "eax", "r9d")
        index = self.pick("rcx", "rbp", "r12", "rsp", "rax", "ecx")
        scale = self.pick("", "*1", "*2", "*4", "*8", "*(1+1)", "*3")
        far = self.pick(0, 5, 127, -128, 128, -129, 0x7FFFFFFF, -0x80000000, 0x80000000, -0x80000001,
                        0xFFFFFFFF, 0x100000000, 0xFFFFFFFFFFFFFFFF, 0xFFFFFFFF80000000)  # fmt: skip
        sign = f"{far:+d}" if self.pick(0, 1) else f"+{far & (1 << 64) - 1:#x}"
        inside = self.pick(register, f"{register}{sign}", f"{register}+{index}{scale}",
                           f"{register} + {index}{scale} {sign}", f"{index}{scale}{sign}", f"{far:#x}",
                           f"{register}+{self.place()}", f"{register} + {self.distance()}",
                           f"{register} + ({self.distance()})", f"{self.place()}",
                           f"{self.distance()}")  # fmt: skip
        segment = self.pick("", "", "", "", "gs:", "ds:", "ss:", "fs: ")
        name = self.pick(*self.names)
        return self.pick(
            f"{segment}[{inside}]", f"{segment}[{inside}]", f"{segment}[{inside}]", f"[{segment}{inside}]",
            f"{segment}{self.small()}[{register}]", f"{segment}{name}[{register}]", f"{name}",
            f"{segment}{far:#x}",
            f"[{register}][{index}{scale}]", f"{name}[{self.small()}]", f"{self.distance()}[{register}]",
            f"{segment}{self.place()}", f"OFFSET {self.place()}", f"OFFSET FLAT:{name}",
            f"{segment}{register}",
        )  # fmt: skip

    def instruction(self):
        register = self.pick("al", "ah", "cx", "eax", "ebx", "rax", "r9", "r10d", "spl")
        size = self.pick("", "", "byte ptr ", "word ptr ", "dword ptr ", "qword ptr ", "DWORD PTR ",
        "dword ")
        memory = size + self.address()
        make = [self.expression, self.number, self.number, self.small, self.character, self.distance]
        value = self.pick(*make)()
        op = self.pick("mov", "add", "cmp", "test", "and", "xor", "lea", "xchg", "imul", "movzx", "movsx")
        one = self.pick("inc", "neg", "push", "pop", "shl", "mul", "call", "jmp", "not", "setne",
        "bswap", "int")
        prefix = self.pick("", "", "", "", "", "lock ", "rep ", "notrack ", "repne ", "gs ", "lock; ",
        "addr32 ")
        return prefix + self.pick(
            f"{op} {register}, {memory}", f"{op} {memory}, {register}", f"{op} {memory}, {value}",
            f"{op} {register}, {value}", f"{one} {memory}", f"{one} {register}", f"{one} {value}",
            f"imul {register}, {memory}, {value}", f"shl {register}, {value}", f"int 3, {value}",
            f"push {value}", f"ret {value}", f"in al, {value}", f"out {value}, al",
            f"bt {register}, {value}",
            f"{self.pick('jne', 'jmp', 'call', 'loop', 'jecxz')} {self.place()}",
            f"{op} {register}, {value}, {value}",
            f"movabs rax, {value}", f"mov {self.pick('dr0', 'dr7', 'cr4', 'dr8')}, {register}",
            f"enter {value}, 0", self.pick("movsb", "stosd", "nop", "pause",
            "rdpmc"),
            f"{one} {value}, {value}", f"{op}\t{register} ,\t{memory} # c",
            f"{op.upper()} {register}, {memory}",
        )  # fmt: skip

    def section(self):
        name = self.pick(".data", ".section .data", ".rodata", '.section .rodata, "a"', ".section .text.x",
                         ".section .data.x, \"aw\"", ".bss", ".pushsection .data", '.section .data, "ax"',
                         '.section .text, "ax", @progbits', '.section .bss.y, "aw", @nobits',
                         '.section .text.z')  # fmt: skip
        if name == ".rodata":
            name = ".section .rodata"
        inside = self.pick(self.sizes, self.strings, self.data)()
        if ".align" in inside or "align" in inside:
            inside = ".byte 0"
        back = ".popsection" if "push" in name else self.pick(".text", ".previous")
        return f"{name}\n{inside}\n{back}\n.byte 1"

    def other(self):
        name = self.pick(*self.names)
        return self.pick(
            f".globl {name}", f".globl {name}, zz{self.n}", f".globl {name} x", f".type {name}, @function",
            f".type {name}", f".size {name}, .-{name}", f".size {name}, nothing{self.n}", '.ident "x"',
            ".ident x",
            f".local l{self.n}", f".hidden {name}", ".cfi_startproc\nnop\n.cfi_endproc", ".cfi_endproc",
            ".cfi_nothing", '.file "a.c"', ".file", f".comm c{self.n}, 4", f".comm c{self.n}, 4, 8, 16",
            f".lcomm d{self.n}, 4, 8", f".weak {name}", f".comm {name}, 4", ".loc 77 1 1", "/* x */ nop",
            "nop /* x */", "nop /* x\n y */ nop", "mov/**/eax, 5", "mov eax, /**/ 5",
            "lock /**/ inc dword ptr [rax]",
            ".byte 1 /**/ + 2", "nop ; ; nop", f"{self.n}: jmp {self.n}b", "1: jmp 1b\njmp 1f\n1:", "# x",
            "nop # \"x", "a b c", ".byte \"a\"", ".ascii 5", "\"unclosed", ".print \"x\"", ".print x",
            ".err",
            ".error \"x\"", ".code64", ".intel_syntax noprefix", ".att_syntax", ".if", ".endif", ".endm",
            ".endr",
            ".exitm", ".previous", ".popsection", ".purgem nothing", ".macro .byte\n.endm", ".text 0",
            ".text 1",
        )  # fmt: skip

    def source(self):
        kind = self.pick(
            self.instruction, self.instruction, self.instruction, self.data, self.data, self.strings,
            self.macro, self.macro, self.repeat, self.condition, self.symbol, self.sizes, self.section,
            self.other,
        )  # fmt: skip
        text = kind()
        for name in self.names:
            if name in text and f"{name}:" not in text:
                line = f"{name}: .byte {self.random.randrange(9)}"
                text = self.pick(f"{line}\n{text}", f"{text}\n{line}")
        return text


def taken(source: str) -> bool:
    try:
        assemble(source)
    except AssemblyError:
        return False
    return True


# Accepted here only, by a row of docs/assembler.md; and what GNU as 2.40 itself dies of.
DEVIATIONS = re.compile(r"//")


def wrapped(n: int, source: str) -> str:
    """A unit at an address that does not move with the sizes of the others."""
    return f'.section .text.u{n}, "ax"\n.org 0x{n % 7:x}\n{source}\n'


def differences(units: list[str], folder) -> list[str]:
    """The units that GNU as refuses or gives other bytes."""
    if not units:
        return []
    if _same(units, folder):
        return []
    if len(units) == 1:
        return units
    half = len(units) // 2
    return differences(units[:half], folder) + differences(units[half:], folder)


def _same(units: list[str], folder) -> bool:
    text = "".join(wrapped(n, unit) for n, unit in enumerate(units))
    try:
        theirs = gnu(text, folder)
    except AssertionError:
        return False
    found = {segment.name: (segment.addr, segment.data) for segment in assemble(text).segments}
    return all(theirs.get(name, found[name]) == found[name] for name in found if found[name][1])


@pytest.mark.parametrize("part", range(4))
def test_every_statement_that_is_taken_has_the_bytes_of_gnu_as(part, tmp_path):
    require("as", "ld", "objcopy")
    lines, wanted, seed = 0, cases(day=1250, laws=6000, night=30_000), part
    while lines < wanted:
        written = [Writer(seed, n).source() for n in range(UNITS)]
        lines += sum(source.count("\n") + 1 for source in written)
        units = [s for s in written if not DEVIATIONS.search(s) and taken(wrapped(0, s))]
        assert len(units) > UNITS // 5
        assert differences(units, tmp_path) == []
        seed += 4
