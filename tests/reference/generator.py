"""Random guest programs as text that GNU as and the project's assembler both accept.

`integer`, `agreement` and `anything` are hypothesis strategies; `from_seed` makes the same programs
from a plain seed, faster and without shrinking.  Every program stores what it saw in `results` and
`scratch` and ends with `out 0xF4, al`.  No program reads time, or flags and registers that the
manuals leave undefined (short of what `Reference.tainted` reports).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from hypothesis import strategies as st

T = TypeVar("T")
SCRATCH_SIZE, RESULTS_SIZE, LOG_SIZE = 1024, 1024, 1024


class Source(Protocol):
    """Where choices come from."""

    def pick(self, options: Sequence[T]) -> T: ...
    def number(self, low: int, high: int) -> int: ...


class _Seeded:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def pick(self, options: Sequence[T]) -> T:
        return self.random.choice(options)

    def number(self, low: int, high: int) -> int:
        return self.random.randint(low, high)


class _Drawn:
    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw

    def pick(self, options: Sequence[T]) -> T:
        return self.draw(st.sampled_from(options))

    def number(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))


_ROWS = [
    ("rax", "eax", "ax", "al"),
    ("rcx", "ecx", "cx", "cl"),
    ("rdx", "edx", "dx", "dl"),
    ("rbx", "ebx", "bx", "bl"),
    ("rsi", "esi", "si", "sil"),
    ("rdi", "edi", "di", "dil"),
    ("rbp", "ebp", "bp", "bpl"),
    *((f"r{n}", f"r{n}d", f"r{n}w", f"r{n}b") for n in range(8, 13)),
]
_COLUMN = {64: 0, 32: 1, 16: 2, 8: 3}
_SIZE = {64: "qword ptr", 32: "dword ptr", 16: "word ptr", 8: "byte ptr"}
_WIDTHS = (64, 32, 64, 32, 16, 8)
_CC = ("o", "no", "b", "ae", "e", "ne", "be", "a", "s", "ns", "p", "np", "l", "ge", "le", "g")
_IMMEDIATES = (0, 1, -1, 2, 7, 0x7F, -0x80, 0xFF, 0x7FFF, 0x12345678, 0x7FFFFFFF, -0x80000000)


class Writer:
    """Collects text.  r15 is the scratch base, r14 the loop counter, r13 the resume address."""

    def __init__(self, source: Source) -> None:
        self.s = source
        self.lines: list[str] = []
        self.functions: list[list[str]] = []
        self.labels = 0
        self.stored = 0
        self.dirty = True  # some flag besides AF may be undefined here

    def emit(self, *lines: str) -> None:
        self.lines += lines

    def label(self) -> str:
        self.labels += 1
        return f"L{self.labels}"

    # --- operands ---------------------------------------------------------------------------

    def reg(self, width: int = 64) -> str:
        if width == 8 and self.s.number(0, 7) == 0:
            return self.s.pick(("ah", "bh", "ch", "dh"))
        return self.s.pick(_ROWS)[_COLUMN[width]]

    def imm(self, width: int) -> str:
        value = self.s.pick(_IMMEDIATES) if self.s.number(0, 1) else self.s.number(-128, 127)
        if width == 8:
            value = (value + 128) % 256 - 128
        if width == 16:
            value = (value + 0x8000) % 0x10000 - 0x8000
        return str(value)

    def mem(self, width: int, sized: bool = True) -> str:
        size = _SIZE[width] + " " if sized else ""
        disp = self.s.number(0, SCRATCH_SIZE // 2)
        kind = self.s.number(0, 4)
        if kind == 0:
            index = self.s.pick(_ROWS)
            self.emit(f"and {index[1]}, 31")
            self.dirty = False
            return f"{size}[r15 + {index[0]}*{self.s.pick((1, 2, 4, 8))} + {disp}]"
        if kind == 1:
            return f"{size}[rip + scratch + {disp}]"
        return f"{size}[r15 + {disp}]"

    # --- one random instruction -------------------------------------------------------------

    def clean(self) -> None:
        """Give every flag a defined value before something reads it."""
        if self.dirty:
            self.emit(f"cmp {self.reg(32)}, {self.imm(32)}")
            self.dirty = False

    def instruction(self) -> None:
        self.s.pick(_KINDS)(self)

    def binary(self) -> None:
        width = self.s.pick(_WIDTHS)
        name = self.s.pick(("add", "sub", "adc", "sbb", "and", "or", "xor", "cmp", "test", "mov"))
        if name in ("adc", "sbb"):
            self.clean()
        shape = self.s.number(0, 4)
        # ah..dh cannot meet a register that needs REX: byte operands stay apart from r8b and sil.
        if width == 8:
            a, b = self.s.pick(("al", "bl", "ch", "dh")), self.s.pick(("cl", "dl", "ah", "bh"))
        else:
            a, b = self.reg(width), self.reg(width)
        if shape == 0:
            self.emit(f"{name} {self.mem(width).replace('r9', 'r9')}, {self.imm(width)}")
        elif shape == 1:
            self.emit(f"{name} {self._plain(width)}, {b}")
        elif shape == 2:
            self.emit(f"{name} {a}, {self._plain(width)}")
        elif shape == 3:
            self.emit(f"{name} {a}, {self.imm(width)}")
        else:
            self.emit(f"{name} {a}, {b}")
        if name not in ("mov",):
            self.dirty = False

    def _plain(self, width: int) -> str:
        """A memory operand whose encoding needs no REX for a byte register to be legal."""
        if width != 8:
            return self.mem(width)
        return f"byte ptr [scratch + {self.s.number(0, SCRATCH_SIZE // 2)}]"

    def unary(self) -> None:
        width = self.s.pick(_WIDTHS)
        name = self.s.pick(("inc", "dec", "neg", "not"))
        if name in ("inc", "dec"):
            self.clean()
        self.emit(f"{name} {self.mem(width) if self.s.number(0, 2) == 0 else self.reg(width)}")
        if name != "not":
            self.dirty = False

    def shift(self) -> None:
        width = self.s.pick(_WIDTHS)
        name = self.s.pick(("shl", "shr", "sar", "rol", "ror"))
        where = self.mem(width) if self.s.number(0, 2) == 0 else self.reg(width)
        count = self.s.pick(("1", "cl", str(self.s.number(0, 70))))
        self.emit(f"{name} {where}, {count}")
        self.dirty = True

    def double_shift(self) -> None:
        width = self.s.pick((32, 64))
        count = self.s.pick(("cl", str(self.s.number(0, 70))))
        name = self.s.pick(("shld", "shrd"))
        self.emit(f"{name} {self.reg(width)}, {self.reg(width)}, {count}")
        self.dirty = True

    def multiply(self) -> None:
        width = self.s.pick((64, 32, 16))
        shape = self.s.number(0, 2)
        if shape == 0:
            self.emit(f"{self.s.pick(('mul', 'imul'))} {self.reg(self.s.pick(_WIDTHS))}")
        elif shape == 1:
            self.emit(f"imul {self.reg(width)}, {self.reg(width)}")
        else:
            self.emit(f"imul {self.reg(width)}, {self.reg(width)}, {self.imm(width)}")
        self.dirty = True

    def divide(self) -> None:
        width = self.s.pick((64, 32))
        divisor = self.s.pick(("rbx", "rsi", "rdi", "r8", "r9"))
        names = next(row for row in _ROWS if row[0] == divisor)
        self.emit(f"and {names[1]}, 0x7FFFFFFF", f"or {names[1]}, 1")
        if self.s.number(0, 1):
            self.emit("xor edx, edx", f"div {names[_COLUMN[width]]}")
        else:
            self.emit("cqo" if width == 64 else "cdq", f"idiv {names[_COLUMN[width]]}")
        self.dirty = True

    def bits(self) -> None:
        width = self.s.pick((64, 32, 16))
        name = self.s.pick(("bt", "bts", "btr", "btc"))
        if self.s.number(0, 1):
            where = self.mem(width) if self.s.number(0, 1) else self.reg(width)
            self.emit(f"{name} {where}, {self.s.number(0, 80)}")
        else:
            self.emit(f"{name} {self.reg(width)}, {self.reg(width)}")
        self.dirty = True

    def scan(self) -> None:
        width = self.s.pick((64, 32, 16))
        name = self.s.pick(("bsf", "bsr", "tzcnt", "lzcnt", "popcnt"))
        a, b = self.reg(width), self.reg(width)
        if name in ("bsf", "bsr"):
            self.emit(f"or {b}, 1")
        self.emit(f"{name} {a}, {b}")
        self.dirty = name != "popcnt"

    def move(self) -> None:
        kind = self.s.number(0, 6)
        if kind == 0:
            self.emit(f"movabs {self.reg()}, {self.s.number(0, (1 << 64) - 1):#x}")
        elif kind == 1:
            name = self.s.pick(("movzx", "movsx"))
            wide, narrow = self.s.pick(((64, 8), (32, 8), (16, 8), (64, 16), (32, 16)))
            self.emit(f"{name} {self.reg(wide)}, {self._source(narrow)}")
        elif kind == 2:
            self.emit(f"movsxd {self.reg(64)}, {self.reg(32)}")
        elif kind == 3:
            address = self.mem(64, sized=False)
            self.emit(f"lea {self.reg(self.s.pick((64, 32)))}, {address}")
        elif kind == 4:
            width = self.s.pick((64, 32, 16))
            self.emit(f"xchg {self.mem(width)}, {self.reg(width)}")
        elif kind == 5:
            self.emit(self.s.pick(("cdqe", "cqo", "cdq")))
        else:
            self.emit(f"bswap {self.reg(self.s.pick((64, 32)))}")

    def _source(self, width: int) -> str:
        if self.s.number(0, 1):
            return self.mem(width)
        return self.s.pick(_ROWS)[_COLUMN[width]]

    def conditional(self) -> None:
        self.clean()
        cc = self.s.pick(_CC)
        if self.s.number(0, 1):
            self.emit(f"set{cc} {self.mem(8) if self.s.number(0, 1) else self.reg(8)}")
        else:
            width = self.s.pick((64, 32, 16))
            other = self.mem(width) if self.s.number(0, 1) else self.reg(width)
            if "[" in other:
                self.clean()
            self.emit(f"cmov{cc} {self.reg(width)}, {other}")

    def atomic(self) -> None:
        width = self.s.pick((64, 32, 16, 8))
        lock = self.s.pick(("", "lock "))
        where = self.mem(width)
        register = self.s.pick(("rbx", "rdx", "r8"))
        names = next(row for row in _ROWS if row[0] == register)
        name = self.s.pick(("xadd", "cmpxchg", "add", "or", "bts"))
        if name == "bts" and width == 8:
            name = "add"
        if name == "bts":
            self.emit(f"{lock}bts {where}, {self.s.number(0, 63)}")
            self.dirty = True
        else:
            self.emit(f"{lock}{name} {where}, {names[_COLUMN[width]]}")
            self.dirty = False

    def stack(self) -> None:
        kind = self.s.number(0, 4)
        if kind == 0:
            self.emit(f"push {self.reg()}", f"pop {self.reg()}")
        elif kind == 1:
            self.emit(f"push {self.imm(32)}", f"pop {self.mem(64)}")
        elif kind == 2:
            self.emit(f"push {self.mem(64)}", f"pop {self.reg()}")
        elif kind == 3:
            # A comparison defines AF too.
            self.emit(f"cmp {self.reg(64)}, {self.imm(32)}", "pushfq", f"pop {self.reg()}")
            self.dirty = False
        else:
            self.emit("enter 32, 0", f"mov qword ptr [rsp + 8], {self.reg()}", "leave")

    def string(self) -> None:
        size = self.s.pick("bwdq")
        name = self.s.pick(("movs", "stos", "lods", "rep movs", "rep stos", "repe cmps", "repne scas"))
        self.emit(
            f"lea rsi, [r15 + {self.s.number(128, 256)}]",
            f"lea rdi, [r15 + {self.s.number(256, 384)}]",
            f"mov ecx, {self.s.number(0, 9)}",
        )
        backwards = self.s.number(0, 3) == 0
        if name[:3] == "rep" and name[3] != " ":
            self.emit("cmp eax, ebx")
            self.dirty = False
        if backwards:
            self.emit("std")
        self.emit(f"{name}{size}")
        if backwards:
            self.emit("cld")

    def branch(self) -> None:
        self.clean()
        end = self.label()
        self.emit(f"j{self.s.pick(_CC)} {end}")
        for _ in range(self.s.number(0, 3)):
            self.simple()
        self.emit(f"{end}:")
        self.dirty = True

    def simple(self) -> None:
        self.s.pick((Writer.binary, Writer.move, Writer.unary, Writer.shift))(self)

    def loop(self) -> None:
        start = self.label()
        count = self.s.number(1, 5)
        if self.s.number(0, 2) == 0:
            self.emit(f"mov ecx, {count}", f"{start}:", "nop", "add rbx, rcx", f"loop {start}")
        else:
            self.emit("push r14", f"mov r14d, {count}", f"{start}:")
            self.dirty = True
            for _ in range(self.s.number(1, 4)):
                self.simple()
            self.emit("dec r14", f"jnz {start}", "pop r14")
        self.dirty = True

    def call(self) -> None:
        name = f"function{len(self.functions)}"
        self.functions.append([])
        slot = len(self.functions) - 1
        kept, self.lines = self.lines, []
        for _ in range(self.s.number(0, 3)):
            self.simple()
        pops = self.s.number(0, 1) * 8
        body = [f"{name}:", *self.lines, f"ret {pops}" if pops else "ret"]
        self.lines = kept
        self.functions[slot] = body
        if pops:
            self.emit("push 5")
        if self.s.number(0, 1):
            self.emit(f"call {name}")
        else:
            register = self.s.pick(("rax", "rbx", "r8"))
            self.emit(f"lea {register}, [rip + {name}]", f"call {register}")
        self.dirty = True

    def nops(self) -> None:
        self.emit(self.s.pick(("nop", "endbr64", "pause", "mfence", "lfence", "clc", "stc", "cld")))

    # --- results ----------------------------------------------------------------------------

    def save(self, register: str) -> None:
        """Store a 64-bit register in the next free result."""
        if self.stored < RESULTS_SIZE // 8:
            self.emit(f"mov qword ptr [results + {8 * self.stored}], {register}")
            self.stored += 1

    def wrmsr(self, msr: int, value: int) -> None:
        self.emit(
            f"mov ecx, {msr:#x}",
            f"mov eax, {value & 0xFFFFFFFF:#x}",
            f"mov edx, {value >> 32 & 0xFFFFFFFF:#x}",
            "wrmsr",
        )

    def read_counter(self, counter: int) -> None:
        """Read GP `counter`, or fixed `counter` - 32, by RDPMC or RDMSR, and store it."""
        fixed = counter >= 32
        if self.s.number(0, 1):
            index = 0x40000000 | counter - 32 if fixed else counter
            self.emit(f"mov ecx, {index:#x}", "rdpmc")
        else:
            base = 0x309 + counter - 32 if fixed else self.s.pick((0xC1, 0x4C1)) + counter
            self.emit(f"mov ecx, {base:#x}", "rdmsr")
        self.emit("shl rdx, 32", "or rax, rdx")
        self.dirty = True
        self.save("rax")

    def work(self, most: int = 6) -> None:
        for _ in range(self.s.number(0, most)):
            self.instruction()

    def text(self, prologue: Sequence[str] = (), data: Sequence[str] = ()) -> str:
        lines = [".intel_syntax noprefix", ".text", ".globl _start", "_start:"]
        lines += ["lea r15, [rip + scratch]", "lea r13, [rip + finish]", *prologue, *self.lines]
        lines += ["finish:", "xor eax, eax", "out 0xF4, al"]
        for body in self.functions:
            lines += body
        lines += [*data, ".bss", ".balign 64"]
        lines += ["scratch:", f".zero {SCRATCH_SIZE}", "results:", f".zero {RESULTS_SIZE}"]
        lines += ["log:", f".zero {LOG_SIZE}", "logged:", ".zero 8", ""]
        return "\n".join(lines)


_KINDS: tuple[Callable[[Writer], None], ...] = (
    Writer.binary,
    Writer.binary,
    Writer.binary,
    Writer.unary,
    Writer.shift,
    Writer.double_shift,
    Writer.multiply,
    Writer.divide,
    Writer.bits,
    Writer.scan,
    Writer.move,
    Writer.move,
    Writer.conditional,
    Writer.atomic,
    Writer.stack,
    Writer.string,
    Writer.branch,
    Writer.loop,
    Writer.call,
    Writer.nops,
)


def _fill(w: Writer) -> None:
    """Give registers values that are not all zero."""
    for row in _ROWS:
        w.emit(f"movabs {row[0]}, {w.s.number(0, (1 << 64) - 1):#x}")


# --- (a) integer programs -----------------------------------------------------------------------


def integer_program(s: Source, most: int = 25) -> str:
    """Straight line, bounded loops, calls, memory in `scratch`, all widths."""
    w = Writer(s)
    _fill(w)
    for _ in range(s.number(1, most)):
        w.instruction()
    w.emit("cmp rax, rbx", "pushfq", "pop r14")
    return w.text()


# --- (b) PMU programs of the agreement class ----------------------------------------------------

EN, OS, USR, INT = 1 << 22, 1 << 17, 1 << 16, 1 << 20
INSTRUCTIONS, BRANCHES = 0x00C0, 0x00C4
PRECISE = (0x02C0, 0x01C4, 0x02C4, 0x08C4, 0x10C4, 0x11C4, 0x20C4, 0x40C4, 0x80C4)
MEMORY_EVENTS = (0x81D0, 0x82D0, 0x83D0)
USER_CODE, USER_DATA = 0x2B, 0x23

# Selectors as at start, a TSS at 0x30; vectors 0x40 (kernel service) and 0x41 (leave ring 3).
RINGS = """
lea rax, [rip + tss]
lea rbx, [rip + gdt]
mov word ptr [rbx + 0x32], ax
shr rax, 16
mov byte ptr [rbx + 0x34], al
mov byte ptr [rbx + 0x37], ah
lgdt [rip + gdtr]
lea rax, [rip + ring0_stack]
mov qword ptr [rip + tss + 4], rax
mov ax, 0x30
ltr ax
lea rdi, [rip + idt]
lea rsi, [rip + gates]
mov ecx, 9
build:
movzx ebx, word ptr [rsi]
shl ebx, 4
mov rax, qword ptr [rsi + 8]
mov word ptr [rdi + rbx], ax
mov word ptr [rdi + rbx + 2], 8
mov dx, word ptr [rsi + 2]
mov word ptr [rdi + rbx + 4], dx
shr rax, 16
mov word ptr [rdi + rbx + 6], ax
shr rax, 16
mov dword ptr [rdi + rbx + 8], eax
add rsi, 16
loop build
lidt [rip + idtr]
""".splitlines()

HANDLERS = """
plain_fault:
push 0
code_fault:
push rax
push rbx
mov rbx, qword ptr [logged]
and ebx, 31
mov rax, qword ptr [rsp + 24]
mov qword ptr [log + rbx*8], rax
mov rax, qword ptr [rsp + 16]
mov qword ptr [log + rbx*8 + 8], rax
add qword ptr [logged], 2
pop rbx
mov qword ptr [rsp + 16], r13
pop rax
add rsp, 8
iretq
service:
add rbx, 1
jc service_done
nop
service_done:
iretq
leave_ring3:
mov rsp, qword ptr [kernel_rsp]
jmp qword ptr [kernel_back]
pmi_fixed:
push rax
push rcx
push rdx
call note_pmi
mov ecx, 0x80B
xor eax, eax
xor edx, edx
wrmsr
pop rdx
pop rcx
pop rax
iretq
pmi_nmi:
push rax
push rcx
push rdx
call note_pmi
pop rdx
pop rcx
pop rax
iretq
note_pmi:
push rbx
mov ecx, 0x38E
rdmsr
mov rbx, qword ptr [logged]
and ebx, 31
mov dword ptr [log + rbx*8], eax
mov dword ptr [log + rbx*8 + 4], edx
inc qword ptr [logged]
mov ecx, 0x390
wrmsr
mov rbx, qword ptr [logged]
and ebx, 31
mov rax, qword ptr [rsp + 40]
mov qword ptr [log + rbx*8], rax
inc qword ptr [logged]
mov ecx, 0x834
rdmsr
and eax, 0xFFFEFFFF
wrmsr
pop rbx
ret
""".splitlines()

TABLES = """
.data
.balign 16
gdt:
.quad 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0, 0x00CFF3000000FFFF, 0x00AFFB000000FFFF
.quad 0x0000890000000067, 0
gdtr:
.word 63
.quad gdt
.balign 16
idtr:
.word 4095
.quad idt
.balign 16
gates:
.word 0, 0x8E00, 0, 0
.quad plain_fault
.word 2, 0x8E00, 0, 0
.quad pmi_nmi
.word 6, 0x8E00, 0, 0
.quad plain_fault
.word 13, 0x8E00, 0, 0
.quad code_fault
.word 14, 0x8E00, 0, 0
.quad code_fault
.word 0x40, 0xEE00, 0, 0
.quad service
.word 0x41, 0xEE00, 0, 0
.quad leave_ring3
.word 0x50, 0x8E00, 0, 0
.quad pmi_fixed
.word 3, 0xEE00, 0, 0
.quad service
.bss
.balign 16
idt:
.zero 4096
tss:
.zero 128
.zero 1024
ring0_stack:
.zero 64
.zero 1024
user_stack:
.zero 64
kernel_rsp:
.zero 8
kernel_back:
.zero 8
""".splitlines()


def _ring3(w: Writer, body: Callable[[], None]) -> None:
    """Run `body` at CPL 3, between an IRETQ and an INT 0x41."""
    user, back = w.label(), w.label()
    w.emit(
        f"lea rax, [rip + {back}]",
        "mov qword ptr [kernel_back], rax",
        "mov qword ptr [kernel_rsp], rsp",
        f"push {USER_DATA:#x}",
        "lea rax, [rip + user_stack]",
        "push rax",
        "push 2",
        f"push {USER_CODE:#x}",
        f"lea rax, [rip + {user}]",
        "push rax",
        "iretq",
        f"{user}:",
    )
    w.dirty = True
    body()
    w.emit("int 0x41", f"{back}:")
    w.dirty = True


def _user_work(w: Writer, faults: bool) -> None:
    for _ in range(w.s.number(0, 4)):
        if faults and w.s.number(0, 7) == 0:
            _faulting(w, w.s.number(0, 7))
        elif w.s.number(0, 3) == 0:
            w.emit("int 0x40")
            w.dirty = True
        else:
            w.s.pick((Writer.string, Writer.loop, Writer.multiply, Writer.nops, Writer.scan))(w)


def _body(w: Writer, rings: bool, most: int = 5, faults: bool = False) -> None:
    w.work(most)
    if rings and w.s.number(0, 1):
        if w.s.number(0, 2) == 0:
            w.emit("int 0x40")
            w.dirty = True
        else:
            _ring3(w, lambda: _user_work(w, faults))
        w.work(2)


def agreement_program(s: Source, rings: bool = True) -> str:
    """Counts of C0 and C4, opened and closed by the same MSR, read only when stopped."""
    w = Writer(s)
    for _ in range(s.number(1, 4)):
        opener = s.pick(("evtsel", "global", "fixed"))
        filters = s.pick((OS, USR, OS | USR))
        event = s.pick((INSTRUCTIONS, BRANCHES))
        start = s.pick((0, 1, 5, 0x7FFFFFFF, (1 << 48) - 100, (1 << 48) - 2))
        if opener == "evtsel":
            n = s.number(0, 7)
            w.wrmsr(0x186 + n, 0)
            w.wrmsr(0x38F, 0xFF)
            w.wrmsr(0x4C1 + n, start)
            w.wrmsr(0x186 + n, EN | filters | event)
            _body(w, rings)
            w.wrmsr(0x186 + n, 0)
            w.read_counter(n)
        elif opener == "fixed":
            w.wrmsr(0x38D, 0)
            w.wrmsr(0x38F, 1 << 32)
            w.wrmsr(0x309, start)
            w.wrmsr(0x38D, (1 if filters & OS else 0) | (2 if filters & USR else 0))
            _body(w, rings)
            w.wrmsr(0x38D, 0)
            w.read_counter(32)
        else:
            counters = [s.number(0, 7)]
            if s.number(0, 1):
                counters.append((counters[0] + s.number(1, 7)) % 8)
            w.wrmsr(0x38F, 0)
            enable = 0
            for n in counters:
                w.wrmsr(0x4C1 + n, start)
                w.wrmsr(0x186 + n, EN | filters | event)
                enable |= 1 << n
                event = s.pick((INSTRUCTIONS, BRANCHES))
            if s.number(0, 1):
                w.wrmsr(0x309, start)
                w.wrmsr(0x38D, 3)
                enable |= 1 << 32
            w.wrmsr(0x38F, enable)
            _body(w, rings)
            w.wrmsr(0x38F, 0)
            for n in counters:
                w.wrmsr(0x186 + n, 0)
                w.read_counter(n)
            if enable >> 32:
                w.wrmsr(0x38D, 0)
                w.read_counter(32)
        w.emit("mov ecx, 0x38E", "rdmsr", "shl rdx, 32", "or rax, rdx")
        w.save("rax")
        w.wrmsr(0x390, 0xFF | 1 << 32)
    return w.text(RINGS, [*HANDLERS, *TABLES])


# --- (c) PMU programs outside of the class ------------------------------------------------------


def anything_program(s: Source) -> str:
    """Running reads, other closing MSRs, overflows near the edge, PMIs, freezing, faults."""
    w = Writer(s)
    delivery = s.pick(("none", "fixed", "nmi"))
    w.emit("mov ecx, 0x1B", "rdmsr", "or eax, 0x400", "wrmsr")
    if delivery != "none":
        w.wrmsr(0x80F, 0x1FF)
        w.wrmsr(0x834, 0x50 if delivery == "fixed" else 0x400)
    if s.number(0, 3) == 0:
        w.wrmsr(0x1D9, 1 << 12)
    if delivery == "fixed" or s.number(0, 1):
        w.emit("sti")
    enabled = [s.number(0, 7) for _ in range(s.number(1, 3))]
    events = (INSTRUCTIONS, BRANCHES, *PRECISE, *MEMORY_EVENTS)
    for _ in range(s.number(3, 12)):
        _anything_step(w, s.pick(enabled), events, delivery)
    w.wrmsr(0x38F, 0)
    for n in sorted(set(enabled)):
        w.read_counter(n)
    w.read_counter(32)
    for msr in (0x38E, 0x38D, 0x392):
        w.emit(f"mov ecx, {msr:#x}", "rdmsr", "shl rdx, 32", "or rax, rdx")
        w.save("rax")
    return w.text(RINGS, [*HANDLERS, *TABLES])


def _anything_step(w: Writer, n: int, events: Sequence[int], delivery: str) -> None:
    s = w.s
    kind = s.number(0, 16)
    near = (1 << 48) - s.number(1, 30)
    if kind <= 1:
        selector = s.pick(events) | s.pick((OS, USR, OS | USR))
        selector |= EN if s.number(0, 7) else 0
        if delivery != "none" and s.number(0, 1):
            selector |= INT
        w.wrmsr(0x186 + n, selector)
    elif kind == 2:
        w.wrmsr(0x186 + n, 0)
    elif kind == 3:
        w.wrmsr(0x38F, s.pick((0xFF, 0, 1 << n, 1 << 32 | 0xFF, 1 << 32)))
    elif kind == 4:
        w.wrmsr(0x38D, s.pick((0, 1, 2, 3)) | (8 if delivery != "none" and s.number(0, 1) else 0))
    elif kind in (5, 6):
        w.wrmsr(0x4C1 + n, s.pick((0, near, near)))
    elif kind == 7:
        w.wrmsr(0xC1 + n, s.pick((0, 0xFFFFFFFF, 0xFFFFFFF0, 0x80000000, 0x7FFFFFFF)))
    elif kind == 8:
        w.wrmsr(0x309, s.pick((0, near)))
    elif kind == 9:
        w.read_counter(s.pick((n, n, 32)))
    elif kind == 10:
        msr = s.pick((0x38E, 0x38F, 0x392, 0x38D, 0x186 + n, 0x390))
        w.emit(f"mov ecx, {msr:#x}", "rdmsr", "shl rdx, 32", "or rax, rdx")
        w.dirty = True
        w.save("rax")
    elif kind == 11:
        w.wrmsr(s.pick((0x390, 0x390, 0x391)), s.pick((1 << n, 0xFF, 1 << 32, 1 << 59, 0)))
    elif kind == 12:
        _faulting(w, n)
    else:
        # Armed: the overflow comes in the work that follows.
        w.wrmsr(0x38F, 0xFF | 1 << 32)
        w.wrmsr(0x390, 0xFF | 1 << 32 | 1 << 59)
        if s.number(0, 3) == 0:
            w.wrmsr(0x309, near)
            w.wrmsr(0x38D, 0xB)
        else:
            w.wrmsr(0x4C1 + n, near)
            selector = s.pick((*events, INSTRUCTIONS, BRANCHES)) | s.pick((OS, USR, OS | USR))
            w.wrmsr(0x186 + n, selector | EN | INT)
    if kind != 12:
        _body(w, rings=s.number(0, 1) == 1, most=4, faults=True)


def _faulting(w: Writer, n: int) -> None:
    """One faulting instruction; the handler logs it and resumes at r13."""
    s = w.s
    after = w.label()
    w.emit(f"lea r13, [rip + {after}]")
    kind = s.number(0, 6)
    if kind == 0:
        w.emit("ud2")
    elif kind == 1:
        w.emit("xor ebx, ebx", "div ebx")
    elif kind == 2:
        w.emit("mov ecx, 0x40000009", "rdpmc")
    elif kind == 3:
        # Reserved bits, a read-only register, an absent counter, a value beyond the width.
        msr, value = s.pick(
            (
                (0x186 + n, 1 << 40),
                (0x38E, 0),
                (0xC9, 0),
                (0x4C1 + n, 1 << 48),
                (0x309, 1 << 60),
                (0x38F, 1 << 20),
                (0x38D, 1 << 2),
                (0x345, 0),
                (0x392, 0),
                (0x1234, 0),
            )
        )
        w.wrmsr(msr, value)
    elif kind == 4:
        w.emit("movabs rbx, 0x7000000000", "mov eax, dword ptr [rbx]")
    elif kind == 5:
        w.emit("movabs rbx, 0x8000000000000000", "add dword ptr [rbx], 1")
    else:
        w.emit("int 0x60")
    w.emit(f"{after}:", "lea r13, [rip + finish]")
    w.dirty = True


# --- (d) outside of the class, but without a PMI ------------------------------------------------


def running_program(s: Source) -> str:
    """Counters read while they run, windows closed by another MSR, exits inside of windows."""
    w = Writer(s)
    counters = [s.number(0, 7) for _ in range(s.number(1, 3))]
    for n in counters:
        w.wrmsr(0x186 + n, EN | s.pick((OS, OS | USR)) | s.pick((INSTRUCTIONS, BRANCHES)))
    for _ in range(s.number(3, 14)):
        n = s.pick(counters)
        kind = s.number(0, 9)
        if kind <= 1:
            event = s.pick((INSTRUCTIONS, BRANCHES, INSTRUCTIONS, *PRECISE))
            w.wrmsr(0x186 + n, s.pick((EN, EN, EN, EN, 0)) | s.pick((OS, USR, OS | USR)) | event)
        elif kind == 2 and s.number(0, 2) == 0:
            w.wrmsr(0x186 + n, 0)
        elif kind in (2, 3):
            w.wrmsr(0x38F, s.pick((0xFF, 0, 1 << n, 1 << 32 | 0xFF, 1 << 32 | 0xFF, 1 << 32)))
        elif kind == 4:
            w.wrmsr(0x38D, s.pick((0, 1, 2, 3)))
        elif kind == 5:
            w.wrmsr(s.pick((0x4C1, 0xC1)) + n, s.pick((0, 5, 0x12345)))
        elif kind == 6:
            w.wrmsr(0x309, s.pick((0, 7)))
        elif kind == 7:
            w.read_counter(s.pick((n, n, 32)))
        elif kind == 8:
            msr = s.pick((0x38F, 0x38D, 0x186 + n, 0x390))
            w.emit(f"mov ecx, {msr:#x}", "rdmsr", "shl rdx, 32", "or rax, rdx")
            w.dirty = True
            w.save("rax")
        else:
            w.emit("xor eax, eax", "cpuid", "xor eax, eax", "xor ebx, ebx", "xor ecx, ecx")
            w.emit("xor edx, edx")
            w.dirty = False
        _body(w, rings=s.number(0, 2) == 0, most=3)
    for n in sorted(set(counters)):
        w.read_counter(n)
    w.read_counter(32)
    return w.text(RINGS, [*HANDLERS, *TABLES])


MAKERS: dict[str, Callable[[Source], str]] = {
    "integer": integer_program,
    "agreement": agreement_program,
    "anything": anything_program,
    "running": running_program,
}


def from_seed(kind: str, seed: int) -> str:
    """The program of `kind` (a key of `MAKERS`) that `seed` stands for."""
    return MAKERS[kind](_Seeded(seed))


def _strategy(maker: Callable[[Source], str]) -> Any:
    @st.composite
    def programs(draw: st.DrawFn) -> str:
        return maker(_Drawn(draw))

    return programs


integer = _strategy(integer_program)
agreement = _strategy(agreement_program)
anything = _strategy(anything_program)
running = _strategy(running_program)
