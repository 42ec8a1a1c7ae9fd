"""Bytes back to statements, by the table that assembled them; what is not in it has no statement."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator

import attrs

from vpmu_emu.asm.nodes import REGISTERS
from vpmu_emu.tables.instructions import (
    BY_OPCODE,
    IMMEDIATES,
    NO_PREFIX,
    NO_REPEAT,
    Form,
    operand_width,
)

_SIZES = {
    8: "byte ptr ", 16: "word ptr ", 32: "dword ptr ", 48: "fword ptr ", 64: "qword ptr ", 80: "tbyte ptr ",
    128: "xmmword ptr ",
}  # fmt: skip
_SEGMENTS = {0x26: "es", 0x2E: "cs", 0x36: "ss", 0x3E: "ds", 0x64: "fs", 0x65: "gs"}
_SREGS = ("es", "cs", "ss", "ds", "fs", "gs")
_MAX_LENGTH = 15
_NAMES = {
    (register.width, register.number, register.high): name
    for name, register in REGISTERS.items()
    if register.kind == "r"
}


@attrs.frozen
class Instruction:
    """One instruction as it stands in memory.

    Attributes:
        addr, size: its bytes.
        text: the statement.
        form: its row of the table.
        target: where a direct branch goes, or what a rip-relative operand is; None otherwise.
    """

    addr: int
    size: int
    text: str
    form: Form = attrs.field(repr=False)
    target: int | None = None


class _EndError(Exception):
    """The bytes end within the instruction."""


class _Bytes:
    def __init__(self, code: bytes) -> None:
        self.code = code[:_MAX_LENGTH]
        self.at = 0

    def take(self, size: int, signed: bool = False) -> int:
        if self.at + size > len(self.code):
            raise _EndError
        value = int.from_bytes(self.code[self.at : self.at + size], "little", signed=signed)
        self.at += size
        return value


@attrs.define
class _Prefixes:
    opsize16: bool = False
    addr32: bool = False
    rep: int = 0
    lock: bool = False
    segment: int = 0
    rex: int = 0
    vex: bool = False
    third: int = 0  # register of VEX.vvvv

    @property
    def named(self) -> bool:
        """Whether one of them stands before the opcode."""
        return self.opsize16 or self.rep != 0 or self.lock or self.rex != 0


def _prefixes(code: _Bytes) -> _Prefixes:
    found = _Prefixes()
    while True:
        byte = code.take(1)
        if byte & 0xF0 == 0x40:
            found.rex = byte
            continue
        if byte == 0x66:
            found.opsize16 = True
        elif byte == 0x67:
            found.addr32 = True
        elif byte in (0xF2, 0xF3):
            found.rep = byte
        elif byte == 0xF0:
            found.lock = True
        elif byte in _SEGMENTS:
            found.segment = byte
        else:
            code.at -= 1
            return found
        found.rex = 0  # a legacy prefix after REX takes it away


def _opcode(code: _Bytes, prefixes: _Prefixes) -> tuple[int, int] | None:
    """(map, opcode byte); what VEX says goes into `prefixes`."""
    byte = code.take(1)
    if byte == 0xC4:
        first, second = code.take(1), code.take(1)
        if prefixes.named or first & 31 > 3 or second & 4:
            return None
        prefixes.vex = True
        prefixes.rex = 0x40 | 7 - (first >> 5) | second >> 4 & 8
        prefixes.third = 15 - (second >> 3 & 15)
        prefixes.opsize16 = second & 3 == 1
        prefixes.rep = (0, 0, 0xF3, 0xF2)[second & 3]
        return 4 + (first & 31), code.take(1)
    if byte != 0x0F:
        return 0, byte
    byte = code.take(1)
    if byte in (0x38, 0x3A):
        return (2 if byte == 0x38 else 3), code.take(1)
    return 1, byte


def disassemble_one(code: bytes, addr: int) -> Instruction | None:
    """The instruction at the start of `code`, which lies at `addr`; None if it is not in the table."""
    stream = _Bytes(code)
    try:
        return _one(stream, addr)
    except _EndError:
        return None


def disassemble(code: bytes, addr: int, places: Iterable[int] = ()) -> Iterator[Instruction]:
    """Instructions one behind the other.

    Args:
        code: the bytes.
        addr: where they lie.
        places: addresses where instructions are known to begin: the length of an instruction that is not
            in the table is unknown, the next of these is where it goes on.
    """
    known = sorted(place - addr for place in set(places))
    at = 0
    while at < len(code):
        found = disassemble_one(code[at : at + _MAX_LENGTH], addr + at)
        if found is not None:
            yield found
            at += found.size
        else:
            following = bisect_right(known, at)
            at = known[following] if following < len(known) else len(code)


def _one(code: _Bytes, addr: int) -> Instruction | None:
    prefixes = _prefixes(code)
    opcode = _opcode(code, prefixes)
    if opcode is None:
        return None
    rex = prefixes.rex
    size = 64 if rex & 8 else 16 if prefixes.opsize16 and not prefixes.vex else 32
    modrm = code.code[code.at] if code.at < len(code.code) else None
    candidates = BY_OPCODE.get(opcode, ())
    if opcode == (0, 0x90):  # with itself, which is NOP, unless REX.B makes it R8
        candidates = tuple(f for f in candidates if (f.instruction.sem == "xchg") == bool(rex & 1))
    form = next((f for f in candidates if _takes(f, prefixes, size, modrm)), None)
    if form is None:
        return None
    reg = rm = 0
    memory, place = "", None
    encoding = form.encoding
    if encoding.has_modrm:
        byte = code.take(1)
        reg, rm = byte >> 3 & 7 | (rex & 4) << 1, byte & 7 | (rex & 1) << 3
        if byte < 0xC0 and encoding.modrm_fixed is None and form.mod != "any":
            memory, place = _memory(code, byte, prefixes)
    sizes = {**IMMEDIATES, "moffs": 4} if prefixes.addr32 else IMMEDIATES
    values = [code.take(sizes[kind], kind in ("cb", "cd")) for kind in encoding.imm]
    end = addr + code.at
    target = None if place is None else end + place
    if place is not None:
        memory = f"{'e' if prefixes.addr32 else 'r'}ip{place:+#x}"
    if form.encoding.vex and not _names_third(form) and prefixes.third:
        return None
    words: list[str] = []
    plain = [word for word in form.operands if word.startswith("r") and word[1:].isdigit()]
    for word in form.operands:
        width = operand_width(word)
        if word.startswith("moffs"):
            words.append(_address(f"{values.pop(0):#x}", width, prefixes))
        elif word.startswith("imm"):
            value = values.pop(0)
            words.append(_immediate(value, word, form))
        elif word.startswith("rel"):
            target = end + values.pop(0) & (1 << 64) - 1
            words.append(f"{target:#x}")
        elif memory and (word.startswith("r/m") or word[0] == "m"):
            words.append(_address(memory, width, prefixes))
        elif word.startswith("r/m"):
            words.append(_register(width, rm, rex))
        elif word in plain:
            number = reg
            if encoding.vex and (words or encoding.digit is not None):
                number = prefixes.third
            elif encoding.plus_r:
                number = opcode[1] & 7 | (rex & 1) << 3
            elif not any(w.startswith(("r/m", "m")) for w in form.operands):
                # No memory may stand there: the general register beside cr or sreg, or alone with a digit.
                number = rm if len(form.operands) == 2 or encoding.digit is not None else reg
            words.append(_register(width, number, rex))
        elif word == "cr":
            words.append(f"cr{reg}")
        elif word == "dr":
            if reg > 7:
                return None
            words.append(f"dr{reg}")
        elif word == "sreg":
            if reg > 5:
                return None
            words.append(_SREGS[reg])
        else:
            words.append(word)
    name = _prefix_words(prefixes, form, bool(memory)) + form.instruction.mnemonic
    text = f"{name} {', '.join(words)}".rstrip()
    return Instruction(addr, code.at, text, form, target)


def _takes(form: Form, prefixes: _Prefixes, size: int, modrm: int | None) -> bool:
    encoding = form.encoding
    if form.requires in (NO_PREFIX, 0x66):
        if prefixes.rep or prefixes.opsize16 != (form.requires == 0x66):
            return False
    elif form.requires == NO_REPEAT:
        if prefixes.rep:
            return False
    elif form.requires == 0x67:
        if not prefixes.addr32:
            return False
    elif form.requires and form.requires != prefixes.rep:
        return False
    if size not in form.opsizes:
        return False
    if not encoding.has_modrm:
        return True
    if modrm is None:
        raise _EndError
    if encoding.modrm_fixed is not None:
        return modrm == encoding.modrm_fixed
    if encoding.digit is not None and encoding.digit != modrm >> 3 & 7:
        return False
    return form.mod in ("rm", "any") or (modrm >= 0xC0) == (form.mod == "r")


def _names_third(form: Form) -> bool:
    """Whether an operand is the register that VEX.vvvv names."""
    return form.encoding.digit is not None or "imm8" not in form.operands


def _memory(code: _Bytes, modrm: int, prefixes: _Prefixes) -> tuple[str, int | None]:
    """(what stands in the brackets, None), or ("", distance from the end) relative to rip."""
    rex = prefixes.rex
    width = 32 if prefixes.addr32 else 64
    mod = modrm >> 6
    parts = []
    size = {0: 0, 1: 1, 2: 4}[mod]
    low = modrm & 7
    if low == 4:
        sib = code.take(1)
        index = sib >> 3 & 7 | (rex & 2) << 2
        if sib & 7 == 5 and mod == 0:
            size = 4
        else:
            parts.append(_NAMES[width, sib & 7 | (rex & 1) << 3, False])
        if index != 4:
            parts.append(f"{_NAMES[width, index, False]}*{1 << (sib >> 6)}")
    elif low == 5 and mod == 0:
        return "", code.take(4, signed=True)
    else:
        parts.append(_NAMES[width, low | (rex & 1) << 3, False])
    disp = code.take(size, signed=True)
    text = "+".join(parts)
    if not parts:
        return f"{disp:#x}", None
    return text + (f"{disp:+#x}" if disp else ""), None


def _address(memory: str, width: int, prefixes: _Prefixes) -> str:
    segment = f"{_SEGMENTS[prefixes.segment]}:" if prefixes.segment else ""
    return f"{_SIZES.get(width, '')}{segment}[{memory}]"


def _register(width: int, number: int, rex: int) -> str:
    high = width == 8 and not rex and 4 <= number < 8
    return _NAMES[width, number, high]


def _immediate(value: int, word: str, form: Form) -> str:
    size = 8 * IMMEDIATES[form.encoding.imm[0]]
    if word.endswith("s") and value >> (size - 1):
        value -= 1 << size  # sign-extended
    return f"{value:#x}"


def _prefix_words(prefixes: _Prefixes, form: Form, memory: bool) -> str:
    words = []
    if prefixes.addr32 and not memory and form.requires != 0x67:
        words.append("addr32")
    if prefixes.lock:
        words.append("lock")
    if prefixes.segment == 0x3E and not memory and "indirect" in form.retires():
        words.append("notrack")
    if prefixes.rep and not form.encoding.mandatory and not prefixes.vex:
        repeats = form.instruction.rep == "repz"
        words.append("repnz" if prefixes.rep == 0xF2 else "repz" if repeats else "rep")
    return "".join(f"{word} " for word in words)
