"""One instruction with known operands to bytes, by the forms of the table; the first that fits."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain

import attrs

from vpmu_emu.asm.errors import Fault
from vpmu_emu.asm.nodes import Expression, Memory, Register
from vpmu_emu.asm.sections import Amount
from vpmu_emu.tables.instructions import BY_NAME, Form

_SEGMENT_BYTES = (0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65)
_SIZE_NAMES = {8: "byte", 16: "word", 32: "dword", 48: "fword", 64: "qword", 80: "tbyte", 128: "xmmword"}

#: Prefixes that stand before a mnemonic, with their byte.
PREFIXES = {
    "lock": 0xF0,
    "rep": 0xF3,
    "repe": 0xF3,
    "repz": 0xF3,
    "repne": 0xF2,
    "repnz": 0xF2,
    "notrack": 0x3E,
    "es": 0x26,
    "cs": 0x2E,
    "ss": 0x36,
    "ds": 0x3E,
    "fs": 0x64,
    "gs": 0x65,
    "addr32": 0x67,
}
_SEGMENT_WORDS = ("es", "cs", "ss", "ds", "fs", "gs")

#: String instructions with their operands spelt out: which of them are [rdi], [rsi], the accumulator.
STRINGS = {
    "movs": ("rdi", "rsi"),
    "cmps": ("rsi", "rdi"),
    "stos": ("rdi", "a"),
    "lods": ("a", "rsi"),
    "scas": ("a", "rdi"),
}
_STRING_SIZES = {"b": 8, "w": 16, "d": 32, "q": 64}
_STRING_NAMES = {stem + size for stem in STRINGS for size in ("", *_STRING_SIZES)}


@attrs.frozen(eq=False)
class Immediate:
    """A resolved immediate or branch target."""

    value: Amount
    text: str
    key: str = "i"


@attrs.frozen(eq=False)
class Address:
    """A resolved memory operand; fields as in `nodes.Memory`."""

    memory: Memory
    disp: Amount
    scale: int
    key: str


Resolved = Register | Immediate | Address


@attrs.frozen(eq=False)
class Fixup:
    """Bytes that wait for addresses.

    Attributes:
        offset: in the instruction.
        size: bytes.
        amount: what goes there.
        pc_relative: minus the address after the instruction.
        kind: "signed", "unsigned" or "either", for the range check.
    """

    offset: int
    size: int
    amount: Amount
    pc_relative: bool
    kind: str


@attrs.frozen(eq=False)
class Encoded:
    """Bytes of an instruction and what is still open in them."""

    data: bytes
    fixups: tuple[Fixup, ...]
    form: Form


@attrs.frozen(eq=False)
class Branch:
    """A branch whose length depends on the distance: opcode bytes of both lengths."""

    short: bytes
    long: bytes
    target: Amount


_MEMORY = ("m", "m8", "m16", "m32", "m48", "m64", "m80", "m128")
_RM = ("r/m8", "r/m16", "r/m32", "r/m64")
_MOFFS = ("moffs8", "moffs16", "moffs32", "moffs64")


def _accepted() -> dict[str, frozenset[str]]:
    table: dict[str, frozenset[str]] = {}
    for width in (8, 16, 32, 64):
        table[f"r{width}"] = frozenset((f"r{width}", f"r/m{width}"))
    for name, width in (("al", 8), ("cl", 8), ("ax", 16), ("dx", 16), ("eax", 32), ("rax", 64)):
        table[name] = table[f"r{width}"] | {name}
    table["sreg"] = frozenset(("sreg",))
    table["fs"], table["gs"] = frozenset(("sreg", "fs")), frozenset(("sreg", "gs"))
    table["cr"], table["dr"] = frozenset(("cr",)), frozenset(("dr",))
    immediates = {"imm8", "imm16", "imm32", "imm64", "imm8s", "imm32s", "1"}
    branches = {"rel8", "rel32"}
    table["i"] = frozenset(immediates | branches)
    for size in (0, 8, 16, 32, 48, 64, 80, 128):
        words = {w for w in (*_MEMORY, *_RM) if not size or w in ("m", f"m{size}", f"r/m{size}")}
        offsets = {w for w in _MOFFS if not size or w == f"moffs{size}"}
        table[f"m{size}"] = frozenset(words)
        table[f"a{size}"] = frozenset(words | offsets)
        # A symbol without brackets: memory, but a target where a branch wants one.
        table[f"b{size}"] = frozenset(words | offsets | (branches if not size else set()))
    return table


_ACCEPTED = _accepted()
_WIDER = {
    "r32": ("r64", "rax"),
    "r/m16": ("r32", "r64", "eax", "rax"),
}


def _accepts(form: Form, word: str, key: str) -> bool:
    if word in _ACCEPTED[key]:
        return True
    return form.instruction.widen and key in _WIDER.get(word, ())


# The size of what they extend is never clear by itself, not even for a 16-bit destination.
_EXTENDS = ("movzx", "movsx")


@lru_cache(maxsize=16384)
def candidates(name: str, keys: tuple[str, ...]) -> tuple[tuple[Form, bool], ...]:
    """Forms of a mnemonic that operands of these keys may match, with "operands swapped"."""
    found: list[tuple[Form, bool]] = []
    widened: list[tuple[Form, bool]] = []
    for form in BY_NAME[name]:
        if len(form.operands) != len(keys):
            continue
        if all(w in _ACCEPTED[k] for w, k in zip(form.operands, keys, strict=True)):
            found.append((form, False))
        elif all(_accepts(form, w, k) for w, k in zip(form.operands, keys, strict=True)):
            widened.append((form, False))
        elif form.instruction.commutes and "i" not in keys and all(
            _accepts(form, w, k) for w, k in zip(form.operands, reversed(keys), strict=True)
        ):
            found.append((form, True))
    found += widened
    sizes = [i for i, key in enumerate(keys) if key[0] in "mab" and key[1:] == "0"]
    if sizes and (len(found) > 1 or name in _EXTENDS):
        index = sizes[0]
        words = {f.operands[len(keys) - 1 - index if swapped else index] for f, swapped in found}
        widths = {word.removeprefix("r/").removeprefix("moffs").removeprefix("m") for word in words}
        widths -= {"rel8", "rel32", ""}
        if len(widths) > 1 or (found and name in _EXTENDS):
            default = [
                (f, s) for f, s in found if f.width == 64 and 32 in f.opsizes and not s
            ]
            if not default:
                raise Fault(
                    f"the operand size of '{name}' is ambiguous",
                    "write byte ptr, word ptr, dword ptr or qword ptr before the address",
                )
            return tuple(default)
    return tuple(found)


def _wrapped(value: int, width: int) -> int:
    value &= (1 << width) - 1
    return value - (1 << width) if value >> (width - 1) else value


def _fits(word: str, width: int, value: Amount) -> bool:
    """Whether an immediate goes into the operand word of a form `width` bits wide."""
    if not isinstance(value, int):
        return word not in ("imm8s", "1")
    if word == "1":
        return value == 1
    if word == "imm8s":
        # GNU as takes a positive value modulo the operand size first: add eax, 0xffffffff is 83 /0 ff.
        taken = _wrapped(value, width or 64) if value > 0 else value
        return _in_width(value, width) and -128 <= taken <= 127
    if word == "imm8":
        return _in_width(value, 8) if width == 8 else -128 <= value <= 255
    if word == "imm16":
        return _in_width(value, 16) if width == 16 else -32768 <= value <= 65535
    if word == "imm32":
        return _in_width(value, 32)
    if word == "imm32s":
        return -(1 << 31) <= value < 1 << 31
    return True


def _in_width(value: int, width: int) -> bool:
    if width >= 64 or width == 0:
        return True
    return -(1 << width) < value < 1 << width


_IMM_SIZE = {"imm8": 1, "imm8s": 1, "imm16": 2, "imm32": 4, "imm32s": 4, "imm64": 8}
_REL = ("rel8", "rel32")


def _special(name: str, operands: Sequence[Resolved]) -> tuple[str, tuple[Resolved, ...]]:
    """Spellings GNU as takes for another: implied operands and the shorter twin."""
    if len(operands) == 1 and name in ("shl", "sal", "shr", "sar", "rol", "ror", "rcl", "rcr"):
        return name, (*operands, Immediate(1, "1"))
    if len(operands) == 2:
        first, second = operands
        if name == "imul" and isinstance(second, Immediate) and isinstance(first, Register):
            return name, (first, first, second)
        if name in ("shld", "shrd"):
            from_cl = Register("cl", "r", 1, 8, "cl")
            return name, (first, second, from_cl)
        if name == "xchg" and isinstance(first, Register) and isinstance(second, Register):
            if first.name == second.name == "rax":
                return "nop", ()
    elif name == "int" and len(operands) == 1:
        if isinstance(operands[0], Immediate) and operands[0].value == 3:
            return "int3", ()
    return name, tuple(operands)


def _string(name: str, operands: Sequence[Resolved]) -> str:
    """The mnemonic without operands of a string instruction that has them, `stos dword ptr [rdi], eax`."""
    stem = name if name in STRINGS else name[:-1]
    roles: tuple[str, ...] = STRINGS[stem]
    widths = {_STRING_SIZES[name[-1]]} if stem != name else set()
    if len(operands) == 1:
        roles = tuple(role for role in roles if role != "a")
    if len(roles) != len(operands):
        raise Fault(f"'{stem}' takes {len(STRINGS[stem])} operands or none")
    for position, (role, operand) in enumerate(zip(roles, operands, strict=True), 1):
        if isinstance(operand, Address) and role != "a":
            memory = operand.memory
            based = memory.base is not None and memory.base.name == role and memory.index is None
            # rdi is always in ES; another segment for rsi would be a prefix.
            segment = 0 if role == "rdi" else 3
            if based and operand.disp == 0 and memory.segment in (-1, segment):
                widths |= {memory.size} - {0}
                continue
        elif role == "a" and isinstance(operand, Register) and operand.number == 0 and not operand.high:
            if operand.kind == "r":
                widths.add(operand.width)
                continue
        what = "al, ax, eax or rax" if role == "a" else f"[{role}]"
        raise Fault(f"'{stem}' has {what} here and nothing else", "", -position)
    if len(widths) != 1:
        what = "differ in size" if widths else "have no size"
        raise Fault(f"the operands of '{name}' {what}", f"write {stem}b, {stem}w, {stem}d or {stem}q")
    size = widths.pop()
    return stem + next(letter for letter, width in _STRING_SIZES.items() if width == size)


def encode(
    name: str, prefixes: Sequence[str], operands: Sequence[Resolved]
) -> Encoded | Branch:
    """Bytes of one instruction.

    Args:
        name: mnemonic, lower case, known to the table.
        prefixes: names from `PREFIXES`.
        operands: resolved operands, destination first.

    Raises:
        Fault: no form takes these operands, or a value does not fit; `at` is the index of the
            operand at fault plus one, negated, or 0 for the mnemonic.
    """
    if operands and name in _STRING_NAMES:
        name, operands = _string(name, operands), ()
    name, operands = _special(name, operands)
    choices = candidates(name, tuple(operand.key for operand in operands))
    for form, swapped in choices:
        ordered = tuple(reversed(operands)) if swapped else operands
        if _usable(form, ordered):
            break
    else:
        raise _no_form(name, operands, choices)
    row = form.instruction
    head = bytearray()
    address_size = b""
    locked = 0
    for prefix in prefixes:
        byte = PREFIXES[prefix]
        if prefix == "lock":
            if not (row.lock and isinstance(ordered[0], Address)):
                raise Fault(f"'lock' does not go with '{name}' here", _LOCK_HINT)
            locked = byte
        elif prefix == "notrack":
            if not ("branch" in row.retires and form.mod == "rm"):
                raise Fault(f"'notrack' does not go with '{name}'")
            head.append(byte)
        elif prefix in _SEGMENT_WORDS:
            named = next((o for o in operands if isinstance(o, Address)), None)
            hint = row.sem == "jcc" and prefix in ("cs", "ds")
            branch = any(word in _REL for word in form.operands)
            memory = named and named.memory.segment < 0 and not branch
            if not (row.sem == "nop" or hint or memory):
                raise Fault(f"'{prefix}' does not go with '{name}' here", "it is for memory operands")
            head.append(byte)
        elif prefix == "addr32":
            if any(isinstance(o, Address) for o in operands) or _has_long(choices):
                raise Fault(f"'addr32' does not go with '{name}' here", "write 32-bit registers: [edi]")
            address_size = bytes((byte,))
        elif not (row.rep or row.sem in ("ret", "nop", "bsf")):
            raise Fault(f"'{prefix}' does not go with '{name}'", "it repeats string instructions")
    head += address_size  # behind a segment, wherever it was written
    repeat = next((PREFIXES[p] for p in prefixes if PREFIXES[p] in (0xF2, 0xF3)), 0)
    if form.operands and form.operands[0] == "rel8":
        long = next((f for f, _ in choices if f.operands == ("rel32",)), None)
        if long is not None:
            target = ordered[0]
            assert isinstance(target, (Immediate, Address))
            amount = target.value if isinstance(target, Immediate) else target.disp
            start = bytes(head)
            return Branch(start + form.encoding.opcode, start + long.encoding.opcode, amount)
    return _bytes(form, ordered, bytes(head), repeat, locked)


def _has_long(choices: tuple[tuple[Form, bool], ...]) -> bool:
    return any("rel32" in form.operands for form, _ in choices)


_LOCK_HINT = "it goes with read-modify-write instructions whose destination is memory"


_NAMED = ("r8", "r16", "r32", "r64", "sreg", "cr", "dr")


def _usable(form: Form, operands: Sequence[Resolved]) -> bool:
    for word, operand in zip(form.operands, operands, strict=True):
        if isinstance(operand, Immediate):
            if word not in _REL and not _fits(word, form.width, operand.value):
                return False
        elif isinstance(operand, Address):
            memory = operand.memory
            if word.startswith("moffs"):
                continue
            if word not in _REL and not memory.base and not memory.index:
                if not _in_reach(operand.disp):
                    return False
    if form.instruction.sem == "xchg" and form.encoding.plus_r and form.width == 32:
        # 90 is NOP and would not clear the upper half.
        second = operands[1]
        if isinstance(second, Register) and second.number == 0:
            return False
    return True


def _in_reach(disp: object) -> bool:
    # what is not a number yet is checked when it is
    return not isinstance(disp, int) or -(1 << 31) <= disp < 1 << 31


def _describe(operand: Resolved) -> str:
    if isinstance(operand, Register):
        return operand.name
    if isinstance(operand, Immediate):
        return "number"
    size = operand.memory.size
    return f"{_SIZE_NAMES.get(size, str(size))} ptr memory" if size else "memory"


def _no_form(
    name: str, operands: Sequence[Resolved], choices: tuple[tuple[Form, bool], ...]
) -> Fault:
    if choices:
        # An address that fits is not what was wrong.
        suspects = [
            (position, operand)
            for position, operand in enumerate(operands)
            if not (isinstance(operand, Address) and _in_reach(operand.disp))
        ]
        for position, operand in suspects:
            if isinstance(operand, Immediate) and isinstance(operand.value, int):
                words = sorted({form.operands[position] for form, _ in choices})
                widths = {form.width for form, _ in choices}
                hint = ""
                if _names_port(choices):
                    hint = f"ports above 255 are in dx: mov dx, {operand.text.strip()}"
                elif widths == {64} and "imm32s" in words:
                    hint = "only a sign-extended 32-bit number fits; mov it to a register first"
                msg = f"{operand.value:#x} does not fit in the immediate of '{name}'"
                return Fault(msg, hint, -(position + 1))
            if isinstance(operand, Address):
                msg = "the address is outside of the signed 32-bit range"
                return Fault(msg, "load it into a register first", -(position + 1))
    given = ", ".join(_describe(operand) for operand in operands) or "no operands"
    widths = {o.width for o in operands if isinstance(o, Register) and o.kind == "r"}
    sizes = "the registers differ in size; " if len(widths) > 1 else ""
    return Fault(f"'{name}' does not take {given}", f"{sizes}it takes {_accepted_forms(name)}")


def _names_port(choices: tuple[tuple[Form, bool], ...]) -> bool:
    """Whether the instruction names a port."""
    return all(form.instruction.mnemonic in ("in", "out") for form, _ in choices)


def _accepted_forms(name: str) -> str:
    forms = BY_NAME[name]
    shown = list(dict.fromkeys(", ".join(form.operands) or "nothing" for form in forms))
    if len(shown) <= 8:
        return "; ".join(shown)
    # Too many to read: leave out the widths and the accumulator's short forms.
    general = [
        ", ".join(re.sub(r"\d+s?$", "", word) for word in form.operands)
        for form in forms
        if not set(form.operands) & {"al", "ax", "eax", "rax"}
    ]
    return "; ".join(dict.fromkeys(general)) + " (r, m of one size)"


def _bytes(
    form: Form, operands: Sequence[Resolved], head: bytes, repeat: int, locked: int
) -> Encoded:
    encoding = form.encoding
    rex = 0x48 if encoding.rex_w else 0
    high = ""
    needs_rex = False
    reg_field = encoding.digit if encoding.digit is not None else 0
    opcode = encoding.opcode
    third = 0  # register of VEX.vvvv
    rm: Register | Address | None = None
    immediates: list[tuple[str, Amount]] = []
    moffs: Address | None = None
    for position, (word, operand) in enumerate(zip(form.operands, operands, strict=True)):
        if isinstance(operand, Register):
            needs_rex |= operand.needs_rex and operand.width == 8
            if operand.high:
                high = operand.name
            if word in _NAMED:
                if encoding.vex and (encoding.digit is not None or position > 0):
                    third = operand.number
                elif encoding.plus_r:
                    opcode = opcode[:-1] + bytes((opcode[-1] | operand.number & 7,))
                    rex |= 0x41 if operand.number & 8 else 0
                elif encoding.digit is not None or _rm_slot(form, word):
                    rm = operand
                else:
                    reg_field = operand.number & 7
                    rex |= 0x44 if operand.number & 8 else 0
            elif word.startswith("r/m"):
                rm = operand
        elif isinstance(operand, Address):
            if word.startswith("moffs"):
                moffs = operand
            elif word in _REL:
                immediates.append((word, operand.disp))
            else:
                rm = operand
        elif word != "1":
            immediates.append((word, operand.value))
    tail = b""
    displacement: tuple[int, Amount, bool] | None = None
    segment = b""
    if encoding.modrm_fixed is not None:
        tail = bytes((encoding.modrm_fixed,))
    elif isinstance(rm, Register):
        rex |= 0x41 if rm.number & 8 else 0
        tail = bytes((0xC0 | reg_field << 3 | rm.number & 7,))
    elif isinstance(rm, Address):
        bits, tail, displacement = _modrm(rm, reg_field)
        rex |= bits
        segment = _segment(rm.memory)
    elif moffs is not None:
        segment = _segment(moffs.memory)
    elif encoding.has_modrm:
        tail = bytes((0xC0 | reg_field << 3,))
    if encoding.vex:
        pp = (0, 0x66, 0xF3, 0xF2).index(encoding.prefix)
        marks = 0xE0 ^ (rex & 7) << 5 | encoding.map - 4, (rex & 8) << 4 | (15 - third) << 3 | pp
        opcode, rex = bytes((0xC4, *marks, opcode[-1])), 0
    if needs_rex:
        rex |= 0x40
    if high and rex:
        raise Fault(f"'{high}' cannot go with a register or width that needs a REX prefix",
                    "use al, cl, dl or bl")
    prefix = head + segment
    if isinstance(rm, Address) and _is_narrow(rm.memory):
        prefix += b"\x67"
    if encoding.osize:
        prefix += b"\x66"
    if encoding.mandatory and not encoding.vex:
        prefix += bytes((encoding.mandatory,))
    elif repeat:
        prefix += bytes((repeat,))
    if locked:
        prefix += bytes((locked,))
    if rex:
        prefix += bytes((rex | 0x40,))
    out = bytearray(prefix + opcode + tail)
    fixups: list[Fixup] = []
    if displacement is not None:
        size, amount, pc_relative = displacement
        # The displacement is the end of `tail`, already there as zeros.
        where = len(out) - size
        if isinstance(amount, int) and not pc_relative:
            out[where:] = (amount & ((1 << 8 * size) - 1)).to_bytes(size, "little")
        else:
            fixups.append(Fixup(where, size, amount, pc_relative, "signed"))
    if moffs is not None:
        _put(out, fixups, 8, moffs.disp, "either")
    for word, amount in immediates:
        if word in _REL:
            size = 1 if word == "rel8" else 4
            fixups.append(Fixup(len(out), size, amount, True, "signed"))
            out += bytes(size)
        else:
            signed = word in ("imm32s", "imm8s")
            _put(out, fixups, _IMM_SIZE[word], amount, "signed" if signed else "either")
    return Encoded(bytes(out), tuple(fixups), form)


def _put(out: bytearray, fixups: list[Fixup], size: int, amount: Amount, kind: str) -> None:
    if isinstance(amount, int):
        out += (amount & ((1 << 8 * size) - 1)).to_bytes(size, "little")
    else:
        fixups.append(Fixup(len(out), size, amount, False, kind))
        out += bytes(size)


@lru_cache(maxsize=4096)
def _rm_slot(form: Form, word: str) -> bool:
    # mov r64, cr0: the general register is ModRM.rm although no memory may stand there, and
    # mov r32, sreg likewise.
    special = ("cr", "dr", "sreg")
    return any(w in special for w in form.operands) and word not in special


def _is_narrow(memory: Memory) -> bool:
    """Whether an address is made of 32-bit registers."""
    return any(r is not None and r.width == 32 for r in (memory.base, memory.index))


def _segment(memory: Memory) -> bytes:
    if memory.segment < 0:
        return b""
    stack = memory.base is not None and memory.base.name in ("rsp", "rbp", "esp", "ebp")
    # An override that names the default segment is dropped, as GNU as does.
    if memory.segment == (2 if stack else 3):
        return b""
    return bytes((_SEGMENT_BYTES[memory.segment],))


_SCALE = {1: 0, 2: 0x40, 4: 0x80, 8: 0xC0}


def _modrm(
    operand: Address, reg: int
) -> tuple[int, bytes, tuple[int, Amount, bool] | None]:
    """REX bits, ModRM with SIB and room for the displacement, and the displacement."""
    memory, disp = operand.memory, operand.disp
    base, index = memory.base, memory.index
    reg <<= 3
    if isinstance(disp, int) and not -(1 << 31) <= disp < 1 << 31:
        raise Fault(f"displacement {disp:#x} is outside of the signed 32-bit range",
                    "load it into a register first")
    if base is not None and base.kind == "ip":
        # A plain number after rip is a displacement, a symbol is a place (GNU as).
        relative = not isinstance(disp, int)
        return 0, bytes((reg | 5, 0, 0, 0, 0)), (4, disp, relative)
    rex = 0
    if index is not None:
        rex |= 0x42 if index.number & 8 else 0
    if base is None:
        number = 4 if index is None else index.number & 7
        scaled = _SCALE[operand.scale] | number << 3 | 5
        return rex, bytes((reg | 4, scaled, 0, 0, 0, 0)), (4, disp, False)
    rex |= 0x41 if base.number & 8 else 0
    low = base.number & 7
    if not isinstance(disp, int):
        mod, size = 0x80, 4
    elif disp == 0 and low != 5:
        mod, size = 0, 0
    elif -128 <= disp <= 127:
        mod, size = 0x40, 1
    else:
        mod, size = 0x80, 4
    if index is not None:
        sib = bytes((_SCALE[operand.scale] | (index.number & 7) << 3 | low,))
    elif low == 4:
        sib = b"\x24"
    else:
        out = bytes((mod | reg | low,)) + bytes(size)
        return rex, out, (size, disp, False) if size else None
    out = bytes((mod | reg | 4,)) + sib + bytes(size)
    return rex, out, (size, disp, False) if size else None


def unknown_mnemonic(name: str, more: Sequence[str] = ()) -> Fault:
    """The error for a word that is no instruction, prefix, directive or macro."""
    suffixed = name[:-1] if name[-1:] in "bwlq" and name[:-1] in BY_NAME else ""
    hint = f"size suffixes are AT&T syntax: write '{suffixed}'" if suffixed else ""
    fault = Fault(f"no such instruction: '{name}'", hint, 0, len(name))
    fault.near = name, chain(BY_NAME, PREFIXES, more)
    return fault


__all__ = [
    "Address",
    "Branch",
    "Encoded",
    "Expression",
    "Fixup",
    "Immediate",
    "candidates",
    "encode",
    "unknown_mnemonic",
]
