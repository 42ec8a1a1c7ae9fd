"""One machine instruction of a given form with random operands, and the state to run it in.

Bytes are composed here from the notation of the table, so that the table, iced-x86 and the oracles
have to agree on what they mean.
"""

from __future__ import annotations

from hypothesis import strategies as st

from vpmu_emu.tables.instructions import FORMS, Form

from . import alu

# All oracles run with this layout; it lies below 2 GiB and above what Linux forbids to map.
BOTTOM = 0x100000
CODE, DATA, DATA_END, STACK, TOP = 0x101000, 0x104000, 0x108000, 0x108000, 0x10A000
RCX, RDX, RBX, RSP, RBP, RSI, RDI = 1, 2, 3, 4, 5, 6, 7

EDGES = [0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
EDGES += [0x100000000, (1 << 63) - 1, 1 << 63, (1 << 63) + 1, (1 << 64) - 2, (1 << 64) - 1]
values = st.one_of(st.sampled_from(EDGES), st.integers(0, 63), st.integers(0, (1 << 64) - 1))


def _spread(kind: int, a: int, b: int) -> int:
    """A register value from three bytes: mostly edges, some small, some of all bits."""
    if kind < 128:
        return EDGES[a % len(EDGES)]
    if kind < 176:
        return a & 63
    return (a << 8 | b) * 0x9E3779B97F4A7C15 + kind & (1 << 64) - 1


# One draw for all registers: sixty small draws an example would cost more than the oracles.
register_files = st.binary(min_size=48, max_size=48).map(
    lambda raw: [_spread(*raw[3 * i : 3 * i + 3]) for i in range(16)]
)
flag_values = st.integers(0, (1 << 6) - 1).map(
    lambda bits: sum(
        flag
        for i, flag in enumerate((alu.CF, alu.PF, alu.AF, alu.ZF, alu.SF, alu.OF))
        if bits >> i & 1
    )
    | 2
)
SYSTEM_COSTS = {"system", "msr", "io", "cpuid", "tsc", "pmc"}
# Integer and stack semantics that an instruction-set oracle without a kernel can judge.
STILL_JUDGED = {"pushfq", "popfq"}
NOT_JUDGED = {"mov_from_sreg", "mov_to_sreg", "sti", "cli", "push_sreg", "pop_sreg"}


def judged() -> list[Form]:
    """The forms whose meaning Unicorn or the host CPU can check in one step."""
    return [
        f
        for f in FORMS
        if (f.instruction.cost not in SYSTEM_COSTS or f.instruction.sem in STILL_JUDGED)
        and f.instruction.sem not in NOT_JUDGED
        and not {"fs", "gs", "sreg"} & set(f.operands)
    ]


class Case:
    """Registers in hardware order, flags, the bytes at CODE and of the data and stack areas."""

    def __init__(
        self, form: Form, code: bytes, regs: list[int], rflags: int, data: bytes, memory: bool
    ) -> None:
        self.form, self.code, self.regs, self.rflags = form, code, regs, rflags
        self.data, self.memory = data, memory

    def __repr__(self) -> str:
        regs = " ".join(f"{r:x}" for r in self.regs)
        return f"<{self.form.text}: {self.code.hex()} regs {regs} flags {self.rflags:x}>"


@st.composite
def cases(draw: st.DrawFn, form: Form) -> Case:
    enc, sem = form.encoding, form.instruction.sem
    regs = draw(register_files)
    rflags = draw(flag_values)
    seed = draw(st.integers(0, 255))
    data = bytes((seed * (i + 3) * 7 + (i >> 3)) & 0xFF for i in range(256))
    for k in range(2):
        edge = draw(values).to_bytes(8, "little")
        data = data[: 8 * k] + edge + data[8 * k + 8 :]
    # The middle of the data area is what every memory operand points to.
    # CMPXCHG16B off its boundary is #GP, which Unicorn does not know; tests/machine/test_forms.py has it.
    aligned = sem == "cmpxchg8b" and enc.rex_w
    target = DATA + 0x2000 + draw(st.sampled_from([0] if aligned else [0, 8, 3]))
    area = bytearray(DATA_END - DATA)
    area[0x2000 - 64 : 0x2000 - 64 + 256] = data

    regs[RSP] = STACK + 0x800
    if sem == "xlat":
        regs[RBX] = target - draw(st.integers(0, 255))
    if sem == "cmpxchg8b":
        for number, edge in zip((0, RDX), (data[:8], data[8:16]), strict=True):
            if draw(st.booleans()):
                regs[number] = int.from_bytes(edge, "little")
    if sem in ("leave", "enter"):
        regs[RBP] = STACK + 0x900 if sem == "leave" else STACK + 0x700
    rex = 8 if enc.rex_w else 0
    use_rex = enc.rex_w
    modrm = b""
    memory = False
    if enc.plus_r:
        number = draw(st.integers(0, 15))
        if number == RSP and "8" in form.operands[0]:
            use_rex = True
        rex |= 1 if number > 7 else 0
        low = number & 7
    if enc.modrm_fixed is not None:
        modrm = bytes([enc.modrm_fixed])
    elif enc.has_modrm:
        if enc.digit is not None:
            reg = enc.digit
        else:
            reg = draw(st.integers(0, 15))
            if reg == RSP and sem not in ("mov", "cmp", "test", "push"):
                reg = RDI  # an arbitrary stack pointer is allowed, an arbitrary write is not useful
            rex |= 4 if reg > 7 else 0
        memory = form.mod == "m" or (form.mod == "rm" and draw(st.booleans()))
        if memory:
            bit_string = sem in ("bt", "bts", "btr", "btc") and enc.digit is None
            if bit_string:
                regs[reg] = draw(st.integers(-2000, 2000)) & ((1 << 64) - 1)
            bases = [n for n in range(16) if n not in (RSP, reg)] if enc.digit is None else None
            bases = bases or [n for n in range(16) if n != RSP]
            if sem in ("cmpxchg", "div", "idiv", "mul", "imul", "lahf"):
                bases = [n for n in bases if n not in (0, 2)] or bases
            if form.operands[-1] == "cl":
                bases = [n for n in bases if n != RCX]
            if sem in ("push", "pop", "call", "jmp") and draw(st.booleans()):
                bases = [RSP]
            base = draw(st.sampled_from(bases))
            disp = draw(st.sampled_from([0, 8, -8, 0x1000, -0x1000]))
            if base == RSP:
                disp = abs(disp) & 0x3F8  # stay among the code addresses that the stack holds
            indexes = [n for n in range(16) if n not in (RSP, base)]
            if form.operands[-1] == "cl":
                indexes.remove(RCX) if RCX in indexes else None
            index = None
            if draw(st.booleans()) and not bit_string and base != RSP:
                index = draw(st.sampled_from(indexes))
            scale = draw(st.integers(0, 3))
            rex |= 1 if base > 7 else 0
            mod = 2 if not -128 <= disp < 128 else 1
            if index is not None:
                regs[index] = draw(st.integers(0, 64))
                rex |= 2 if index > 7 else 0
            if base != RSP:
                regs[base] = target - disp - (regs[index] << scale if index is not None else 0)
            tail = (disp & 0xFFFFFFFF).to_bytes(4, "little")[: 4 if mod == 2 else 1]
            if index is None and base & 7 != 4:
                modrm = bytes([mod << 6 | (reg & 7) << 3 | base & 7]) + tail
            else:
                sib = scale << 6 | ((index if index is not None else 4) & 7) << 3 | base & 7
                modrm = bytes([mod << 6 | (reg & 7) << 3 | 4, sib]) + tail
        else:
            rm = draw(st.integers(0, 15))
            if rm == RSP and sem not in ("mov", "cmp", "test", "push"):
                rm = RDI
            rex |= 1 if rm > 7 else 0
            modrm = bytes([0xC0 | (reg & 7) << 3 | rm & 7])
            if "8" in "".join(form.operands) and draw(st.booleans()):
                use_rex = True  # spl bpl sil dil instead of ah ch dh bh
    imm = b""
    for item in enc.imm:
        size = {"ib": 1, "iw": 2, "id": 4, "iq": 8, "cb": 1, "cd": 4, "moffs": 8}[item]
        if item == "moffs":
            number = target
        elif item == "cd":
            number = draw(st.integers(-0x800, 0x800))
        elif sem == "enter":
            number = draw(st.integers(0, 64)) if item == "iw" else draw(st.integers(0, 34))
        elif sem == "ret":
            number = draw(st.integers(0, 0x7FFF))  # QEMU sign-extends it, silicon does not
        else:
            number = draw(values)
        imm += (number & ((1 << 8 * size) - 1)).to_bytes(size, "little")
    if sem in ("jmp", "call") and enc.digit is not None:
        # The target is a register or a word of memory; keep it executable and canonical.
        if not memory:
            regs[rm] = CODE + draw(st.integers(0, 0xFFF)) if rm != RSP else regs[rm]
        area[target - DATA : target - DATA + 8] = (CODE + 0x77).to_bytes(8, "little")
    if sem == "loop" or sem.startswith("loop") or sem == "jrcxz":
        regs[RCX] = draw(st.sampled_from([0, 1, 2, (1 << 64) - 1, 1 << 32]))
    prefix = bytes([0x66]) if enc.osize else b""
    if enc.mandatory and not enc.vex:
        prefix += bytes([enc.mandatory])
    rep = form.instruction.rep
    if rep:
        regs[RSI] = target
        regs[RDI] = DATA + 0x2010 + draw(st.integers(0, 8))
        regs[RCX] = draw(st.integers(0, 5))
        kinds = [b"", b"\xf3"] + ([b"\xf2"] if rep == "repz" else [])
        prefix = draw(st.sampled_from(kinds)) + prefix
        if draw(st.booleans()):
            rflags |= alu.DF
    if form.instruction.lock and memory and form.memory_operand == 0 and draw(st.booleans()):
        prefix = b"\xf0" + prefix
    opcode = bytearray(enc.opcode)
    if enc.plus_r:
        opcode[-1] |= low
    code = prefix
    if enc.vex:
        pp = (0, 0x66, 0xF3, 0xF2).index(enc.prefix)
        names = enc.digit is not None or "imm8" not in form.operands
        third = draw(st.integers(0, 15)) if names else 0
        third = RDI if third == RSP else third
        first = (7 - (rex & 7)) << 5 | enc.map - 4
        code += bytes([0xC4, first, (rex & 8) << 4 | (15 - third) << 3 | pp, opcode[-1]])
    else:
        if rex or use_rex:
            code += bytes([0x40 | rex])
        code += bytes(opcode)
    code += modrm + imm
    stack = bytearray(TOP - STACK)
    for at in range(0x700, 0xE00, 8):
        stack[at : at + 8] = (CODE + at).to_bytes(8, "little")
    if sem == "popfq":
        word = draw(flag_values) | draw(st.sampled_from([0, alu.DF, alu.ID]))
        stack[0x800:0x808] = word.to_bytes(8, "little")
    return Case(form, code, regs, rflags, bytes(area) + bytes(stack), memory)


def differing(a: bytes | bytearray, b: bytes | bytearray) -> list[str]:
    """The first bytes of the memory from DATA on that differ, for a readable failure."""
    if a == b:
        return []
    rows = [i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]
    return [f"{DATA + i:#x}: {a[i]:#04x} against {b[i]:#04x}" for i in rows[:8]]
