"""`isa/instructions.toml` as frozen rows: what the encoder writes, the decoder must read back."""

from __future__ import annotations

import re
import tomllib
from collections import defaultdict
from typing import Any

import attrs

from vpmu_emu.data import isa_dir

FLAGS = "oszapcdi"
EVENT_CLASSES = (
    "inst", "branch", "cond", "taken", "call", "ret", "indirect", "far", "load", "store", "nop",
)  # fmt: skip
COSTS = (
    "nop", "alu", "mul", "div", "branch", "string", "system", "msr", "fence", "io", "cpuid",
    "tsc", "pmc",
)  # fmt: skip
EMULATOR = ("", "unknown", "fails")
#: Features by which bytes are an instruction on one processor and nothing on another.
FEATURES = ("movbe", "cx16", "fsgsbase", "bmi1", "bmi2", "adx", "xsave")

# SDM Vol. 1 Appendix B: (suffix, synonyms, flags read), index = the low four opcode bits.
CONDITIONS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("o", (), "o"),
    ("no", (), "o"),
    ("b", ("c", "nae"), "c"),
    ("ae", ("nb", "nc"), "c"),
    ("e", ("z",), "z"),
    ("ne", ("nz",), "z"),
    ("be", ("na",), "zc"),
    ("a", ("nbe",), "zc"),
    ("s", (), "s"),
    ("ns", (), "s"),
    ("p", ("pe",), "p"),
    ("np", ("po",), "p"),
    ("l", ("nge",), "os"),
    ("ge", ("nl",), "os"),
    ("le", ("ng",), "osz"),
    ("g", ("nle",), "osz"),
)

IMMEDIATES = {"ib": 1, "iw": 2, "id": 4, "iq": 8, "cb": 1, "cd": 4, "moffs": 8}
# Prefixes that an encoding asks for, beside the byte 66, F2 or F3 itself (`Form.requires`).
ANY_PREFIX, NO_PREFIX, NO_REPEAT = 0, 1, 2  # none of 66 F2 F3 (NP); neither F2 nor F3 (NFx)
_ABSENT = {"NP": NO_PREFIX, "NFx": NO_REPEAT}
MAPS = 8  # of opcodes: one byte, 0F, 0F 38, 0F 3A, and from 4 on the same behind VEX
_VEX = re.compile(r"VEX\.LZ(?:\.(66|F2|F3))?\.(0F38|0F3A)\.(W[01])")
_OPERAND = re.compile(
    r"r(?:/m)?(?:8|16|32|64)|m(?:8|16|32|48|64|80|128)?|imm(?:8|16|32|64)|imm(?:8|32)s|rel(?:8|32)"
    r"|moffs(?:8|16|32|64)|al|ax|eax|rax|cl|dx|1|cr|dr|sreg|fs|gs"
)
_ACCUMULATORS = {"al": 8, "ax": 16, "eax": 32, "rax": 64}


@attrs.frozen(kw_only=True)
class Encoding:
    """One encoding, taken apart.

    Attributes:
        prefix: mandatory prefix byte (67 for JECXZ), 0 if none. 0x66 also when it selects 16-bit operands.
        osize: a 0x66 byte belongs to the encoding (with F2/F3 as `prefix` it comes besides).
        absent: NO_PREFIX or NO_REPEAT if prefixes would make another instruction, else ANY_PREFIX.
        rex_w: REX.W, or VEX.W, is set.
        vex: a VEX prefix holds prefix, map and W (VEX.L is 0), and names one more register.
        opcode: opcode bytes, escapes 0F, 0F 38, 0F 3A included; without the register of `plus_r`.
        digit: the opcode extension in ModRM.reg, or None.
        has_modrm: a ModRM byte follows the opcode.
        modrm_fixed: the value of that byte if the encoding fixes it, or None.
        plus_r: the low three opcode bits name a register (REX.B the fourth).
        imm: what follows, of ib iw id iq cb cd moffs, in order.
        text: the notation in the table.
    """

    prefix: int
    osize: bool
    absent: int
    rex_w: bool
    vex: bool
    opcode: bytes
    digit: int | None
    has_modrm: bool
    modrm_fixed: int | None
    plus_r: bool
    imm: tuple[str, ...]
    text: str

    @property
    def imm_size(self) -> int:
        """Bytes after ModRM, SIB and displacement."""
        return sum(IMMEDIATES[i] for i in self.imm)

    @property
    def mandatory(self) -> int:
        """0xF2, 0xF3 or 0x67 if the encoding needs it, else 0."""
        return self.prefix if self.prefix != 0x66 else 0

    @property
    def map(self) -> int:
        """Which table of `MAPS` opcode tables it stands in."""
        number = 0 if len(self.opcode) == 1 else 1
        if len(self.opcode) == 3:
            number = 2 if self.opcode[1] == 0x38 else 3
        return number + 4 * self.vex

    @classmethod
    def parse(cls, text: str, cc: int | None = None) -> Encoding:
        """Read the notation; `cc` replaces `+cc`.

        Raises:
            ValueError: a word that the notation does not have.
        """
        prefix, osize, rex_w, plus_r, has_modrm = 0, False, False, False, False
        absent, vex = ANY_PREFIX, False
        digit: int | None = None
        opcode: list[int] = []
        imm: list[str] = []
        words = text.split()
        for word in words:
            if word == "REX.W":
                rex_w = True
            elif word in _ABSENT:
                absent = _ABSENT[word]
            elif match := _VEX.fullmatch(word):
                vex, rex_w = True, match[3] == "W1"
                prefix = int(match[1] or "0", 16)
                absent = ANY_PREFIX if prefix else NO_PREFIX
                opcode += bytes.fromhex(match[2])
            elif word in IMMEDIATES:
                imm.append(word)
            elif word == "/r":
                has_modrm = True
            elif re.fullmatch("/[0-7]", word):
                has_modrm, digit = True, int(word[1])
            elif match := re.fullmatch(r"([0-9A-F]{2})(\+r|\+cc)?", word):
                byte = int(match[1], 16)
                if not opcode and byte in (0x66, 0x67, 0xF2, 0xF3) and len(words) > 1:
                    osize |= byte == 0x66
                    prefix = byte if byte != 0x66 or not prefix else prefix
                    continue
                if match[2] == "+r":
                    plus_r = True
                elif match[2] == "+cc":
                    if cc is None:
                        msg = f"{text!r}: +cc outside of a {{cc}} row"
                        raise ValueError(msg)
                    byte += cc
                opcode.append(byte)
            else:
                msg = f"{text!r}: what is {word!r}?"
                raise ValueError(msg)
        # Bytes beyond the opcode map's length are a fixed ModRM (SDM Vol. 2 A.2).
        size = 1 if opcode[:1] != [0x0F] else 3 if opcode[1] in (0x38, 0x3A) else 2
        fixed = opcode[size] if len(opcode) > size else None
        return cls(
            prefix=prefix,
            osize=osize,
            absent=absent,
            rex_w=rex_w,
            vex=vex,
            opcode=bytes(opcode[:size]),
            digit=digit,
            has_modrm=has_modrm or fixed is not None,
            modrm_fixed=fixed,
            plus_r=plus_r,
            imm=tuple(imm),
            text=text if cc is None else text.replace("+cc", f"+{cc:X}"),
        )


def operand_width(word: str) -> int:
    """Bits of a register or memory operand word; 0 for immediates, ports, cr, sreg and plain m."""
    if word in _ACCUMULATORS:
        return _ACCUMULATORS[word]
    match = re.fullmatch(r"(?:r/m|r|m|moffs)(\d+)", word)
    return int(match[1]) if match else 0


def is_memory(word: str) -> bool:
    """Whether the operand word can be memory."""
    return word.startswith(("r/m", "m"))


@attrs.frozen(eq=False, kw_only=True, repr=False)
class Form:
    """One operand form.

    Attributes:
        index: stable place in `FORMS`.
        instruction: its row.
        operands: operand words, destination first.
        encoding: see `Encoding`.
        width: operand size in bits, 0 if the instruction has none.
        opsizes: effective operand sizes (16 by a 66 prefix, 64 by REX.W, else 32) under which a
            decoder takes this form among those of equal opcode, digit and ModRM.mod class.
        requires: 0x66, 0xF2 or 0xF3: the prefix that makes these bytes this form; or ANY_PREFIX,
            NO_PREFIX, NO_REPEAT.
        written: the assembler writes it; else it is another encoding that processors know besides.
        mod: ModRM.mod class: "r" only 3, "m" never 3, "rm" both, "any" ignored, "" no free ModRM.
    """

    index: int
    instruction: Instruction
    operands: tuple[str, ...]
    encoding: Encoding
    width: int
    opsizes: tuple[int, ...]
    requires: int
    written: bool
    mod: str

    @property
    def text(self) -> str:
        """`add r/m8, r8`."""
        return f"{self.instruction.mnemonic} {', '.join(self.operands)}".rstrip()

    def __repr__(self) -> str:
        return f"<Form {self.index} {self.text}: {self.encoding.text}>"

    @property
    def memory_operand(self) -> int | None:
        """Index of the operand that is or may be memory."""
        return next((i for i, word in enumerate(self.operands) if is_memory(word)), None)

    def retires(self, *, memory: bool = False) -> tuple[str, ...]:
        """Event classes one execution retires; `memory`: the r/m operand is memory."""
        row = self.instruction
        classes = list(row.retires)
        where = self.memory_operand
        if where is not None and "branch" in classes:
            classes.append("indirect")
        if where is not None and (memory or not self.operands[where].startswith("r/m")):
            access = row.access if where == 0 else "-" if row.sem == "lea" else "r"
            classes += [c for a, c in (("r", "load"), ("w", "store")) if a in access]
        return tuple(c for c in EVENT_CLASSES if c in classes)


@attrs.frozen(eq=False, kw_only=True, repr=False)
class Instruction:
    """One mnemonic with one meaning; fields as in the head of `isa/instructions.toml`.

    Attributes:
        mnemonic: as GNU objdump prints it.
        aliases: further names.
        sem: name of the semantic function.
        cc: condition code 0..15 of jcc, setcc, cmovcc, else None.
        written: flags with a defined new value.
        undefined: flags left undefined (in `written` too: defined for a shift by one only).
        read: flags the result depends on.
        cpuid: the feature without which its bytes are not this instruction, or "".
    """

    mnemonic: str
    aliases: tuple[str, ...]
    sem: str
    cc: int | None
    written: str
    undefined: str
    read: str
    retires: tuple[str, ...]
    access: str
    cost: str
    privilege: int
    iopl: bool
    vmexit: str
    emulator: str
    lock: bool
    rep: str
    commutes: bool
    widen: bool
    hot: bool
    cpuid: str
    forms: tuple[Form, ...] = attrs.field(init=False, default=())

    def __repr__(self) -> str:
        return f"<Instruction {self.mnemonic} ({self.sem})>"

    @property
    def names(self) -> tuple[str, ...]:
        """The mnemonic and its aliases."""
        return (self.mnemonic, *self.aliases)


_KEYS = {
    "mnemonic", "aliases", "sem", "forms", "written", "undefined", "read", "retires", "access",
    "cost", "privilege", "iopl", "vmexit", "emulator", "lock", "rep", "commutes", "widen", "width",
    "hot", "cpuid", "also",
}  # fmt: skip


def _check(row: dict[str, Any]) -> None:
    name = row.get("mnemonic", "?")
    problems = [f"unknown key {key!r}" for key in row.keys() - _KEYS]
    problems += [f"key {key!r} missing" for key in ("mnemonic", "sem", "forms") if key not in row]
    for key in ("written", "undefined", "read"):
        problems += [f"{key}: no flag {f!r}" for f in row.get(key, "") if f not in FLAGS]
    problems += [
        f"retires: no class {c!r}" for c in row.get("retires", ()) if c not in EVENT_CLASSES
    ]
    for key, allowed in (
        ("access", ("-", "r", "w", "rw")),
        ("cost", COSTS),
        ("privilege", (0, 3)),
        ("emulator", EMULATOR),
        ("rep", ("", "rep", "repz")),
        ("width", (0, 8, 16, 32, 64)),
        ("cpuid", ("", *FEATURES)),
    ):
        if key in row and row[key] not in allowed:
            problems.append(f"{key}: {row[key]!r} is not one of {allowed}")
    for operands, _ in row.get("forms", ()):
        problems += [
            f"no operand word {word!r}"
            for word in operands.split(", ")
            if operands and not _OPERAND.fullmatch(word)
        ]
    if problems:
        msg = f"instructions.toml: {name}: {'; '.join(problems)}"
        raise ValueError(msg)


def _rows(row: dict[str, Any]) -> list[Instruction]:
    def build(mnemonic: str, aliases: tuple[str, ...], cc: int | None, read: str) -> Instruction:
        return Instruction(
            mnemonic=mnemonic,
            aliases=aliases,
            sem=row["sem"],
            cc=cc,
            written=row.get("written", ""),
            undefined=row.get("undefined", ""),
            read=read,
            retires=tuple(row.get("retires", ("inst",))),
            access=row.get("access", "-"),
            cost=row.get("cost", "alu"),
            privilege=row.get("privilege", 3),
            iopl=row.get("iopl", False),
            vmexit=row.get("vmexit", ""),
            emulator=row.get("emulator", ""),
            lock=row.get("lock", False),
            rep=row.get("rep", ""),
            commutes=row.get("commutes", False),
            widen=row.get("widen", False),
            hot=row.get("hot", False),
            cpuid=row.get("cpuid", ""),
        )

    name, read = row["mnemonic"], row.get("read", "")
    if "{cc}" not in name:
        return [build(name, tuple(row.get("aliases", ())), None, read)]
    return [
        build(
            name.format(cc=suffix),
            tuple(name.format(cc=s) for s in synonyms),
            cc,
            "".join(f for f in FLAGS if f in read + flags),
        )
        for cc, (suffix, synonyms, flags) in enumerate(CONDITIONS)
    ]


def _mod(operands: tuple[str, ...], encoding: Encoding) -> str:
    if not encoding.has_modrm or encoding.modrm_fixed is not None:
        return ""
    if "cr" in operands or "dr" in operands:
        return "any"  # MOV CR and DR take ModRM.rm for a register whatever mod says
    words = [word for word in operands if is_memory(word)]
    if not words:
        return "r"
    return "rm" if words[0].startswith("r/m") else "m"


def _width(operands: tuple[str, ...], row: dict[str, Any]) -> int:
    widths = [operand_width(word) for word in operands]
    return next((w for w in widths if w), row.get("width", 0))


def _load() -> tuple[tuple[Instruction, ...], tuple[Form, ...]]:
    path = isa_dir() / "instructions.toml"
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    drafts: list[tuple[Instruction, tuple[str, ...], Encoding, int, str, int, bool]] = []
    instructions: list[Instruction] = []
    for row in table["instruction"]:
        _check(row)
        for instruction in _rows(row):
            instructions.append(instruction)
            for key in ("forms", "also"):
                for text, notation in row.get(key, ()):
                    operands = tuple(text.split(", ")) if text else ()
                    encoding = Encoding.parse(notation, instruction.cc)
                    width = _width(operands, row)
                    # 66 selects the operand size of a 16-bit form and is part of the opcode elsewhere.
                    requires = encoding.mandatory or encoding.absent
                    if encoding.prefix == 0x66 and (width != 16 or encoding.vex):
                        requires = 0x66
                    mod = _mod(operands, encoding)
                    drafts.append(
                        (instruction, operands, encoding, width, mod, requires, key == "forms")
                    )

    # A form without a size prefix also takes the sizes that no sibling claims: byte operations,
    # default-64 branches and stack operations, and system instructions ignore 66 and REX.W.
    claimed: dict[tuple[object, ...], set[int]] = defaultdict(set)

    def sibling_keys(encoding: Encoding, mod: str, requires: int) -> list[tuple[object, ...]]:
        rest = (encoding.map, encoding.opcode, encoding.digit, encoding.modrm_fixed, encoding.plus_r)
        return [(requires, *rest, m) for m in (mod if mod in ("r", "m") else "rm")]

    for _, _, encoding, _, mod, requires, _ in drafts:
        size = 64 if encoding.rex_w else 16 if encoding.osize else 32
        for sibling in sibling_keys(encoding, mod, requires):
            claimed[sibling].add(size)
    forms: list[Form] = []
    members: dict[Instruction, list[Form]] = defaultdict(list)
    for index, (instruction, operands, encoding, width, mod, requires, written) in enumerate(drafts):
        size = 64 if encoding.rex_w else 16 if encoding.osize else 32
        taken = set.union(*(claimed[k] for k in sibling_keys(encoding, mod, requires)))
        if encoding.vex:
            sizes: tuple[int, ...] = (size,)
        elif size == 32:
            # 66 on a default-64 stack operation would make it 16 bits wide, which is another form;
            # near branches ignore it in 64-bit mode (SDM Vol. 2 "CALL", 66H with REX.W clear), and so do
            # MOV CR and MOV DR.
            narrow = width != 64 or "branch" in instruction.retires or mod == "any"
            sizes = tuple(
                s for s in (16, 32, 64) if s == 32 or (s not in taken and (s == 64 or narrow))
            )
        elif requires == 0x66 and size == 16:
            sizes = (16,) if 64 in taken else (16, 64)
        else:
            sizes = (size,)
        form = Form(
            index=index,
            instruction=instruction,
            operands=operands,
            encoding=encoding,
            width=width,
            opsizes=sizes,
            requires=requires,
            written=written,
            mod=mod,
        )
        forms.append(form)
        members[instruction].append(form)
    for instruction in instructions:
        # The two classes point at each other; this is the only write after construction.
        object.__setattr__(instruction, "forms", tuple(members[instruction]))
    return tuple(instructions), tuple(forms)


INSTRUCTIONS: tuple[Instruction, ...]
FORMS: tuple[Form, ...]
INSTRUCTIONS, FORMS = _load()


def _by_name() -> dict[str, tuple[Form, ...]]:
    names: dict[str, list[Form]] = defaultdict(list)
    for instruction in INSTRUCTIONS:
        for name in instruction.names:
            names[name] += [form for form in instruction.forms if form.written]
    return {name: tuple(forms) for name, forms in names.items()}


#: Every name the assembler accepts, with the forms it stands for in order of preference.
BY_NAME: dict[str, tuple[Form, ...]] = _by_name()


def _by_opcode() -> dict[tuple[int, int], tuple[Form, ...]]:
    buckets: dict[tuple[int, int], list[Form]] = defaultdict(list)
    for form in FORMS:
        encoding = form.encoding
        for low in range(8 if encoding.plus_r else 1):
            buckets[encoding.map, encoding.opcode[-1] + low].append(form)
    for members in buckets.values():
        # A form that demands a prefix or a fixed ModRM is tried before those that do not care.
        members.sort(key=lambda f: (f.requires < 0x66, not f.requires, f.encoding.modrm_fixed is None))
    return {key: tuple(members) for key, members in sorted(buckets.items())}


#: What a decoder tries for (map, opcode byte), in this order.
BY_OPCODE: dict[tuple[int, int], tuple[Form, ...]] = _by_opcode()
