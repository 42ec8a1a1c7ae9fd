"""Operand choices for every form of the table."""

from __future__ import annotations

from collections.abc import Iterator

from vpmu_emu.tables.instructions import FORMS, Form

WRITTEN = [form for form in FORMS if form.written]
_REGISTERS = {
    8: ["al", "cl", "bl", "ah", "ch", "dh", "bh", "spl", "bpl", "sil", "dil", "r8b", "r13b", "r15b"],
    16: ["ax", "cx", "dx", "sp", "bp", "di", "r8w", "r12w", "r15w"],
    32: ["eax", "ecx", "edx", "esp", "ebp", "esi", "r8d", "r13d", "r15d"],
    64: ["rax", "rcx", "rbx", "rsp", "rbp", "rdi", "r8", "r12", "r13", "r15"],
}
ADDRESSES = [
    "[rax]", "[rsp]", "[rbp]", "[r12]", "[r13]", "[rbx+rcx]", "[rax+rax*1+0]", "[rsp+rax]",
    "[rax+rsp]", "[rbp+rax*2+127]", "[rsp+rbp*8-128]", "[r12+r12*4+128]", "[r13+r15*8-129]",
    "[rdi*4]", "[r9*8+0x12345678]", "[rcx*1+rdx]", "[rsi-0x80000000]", "[rdi+0x7fffffff]",
    "[r13+r12]", "-8[rbp]", "8[rsp][rcx*2]", "[rip+0x10]", "[rip-4]", "here[rip]", "[rip+here+4]",
    "gs:[0x40]", "fs:[rax+8]", "es:[r8]", "ds:[rbp]", "ss:[rbp]", "cs:[rdi]", "ds:0x7fffffff",
    "[here]", "here[rax*8]", "[rax+2*rcx+1+2]", "[eax]", "[r13d+ecx*4-129]", "[esp+ebp]", "fs:[r8d*8+4]",
    "[eip+here]",
]  # fmt: skip
_IMMEDIATES = {
    "imm8": ["0", "2", "3", "127", "128", "255", "-1", "-128", "'a'"],
    "imm8s": ["0", "1", "-1", "127", "-128"],
    "imm16": ["128", "-129", "0x1234", "0x7fff", "-0x8000", "0xfffe"],
    "imm32": ["128", "-129", "0x12345678", "0x7fffffff", "-0x80000000", "0x80000000",
              "0xffffff00", "OFFSET here", "here-_start"],
    "imm32s": ["128", "-129", "0x12345678", "0x7fffffff", "-0x80000000", "OFFSET here+4"],
    "imm64": ["0x80000000", "0xffffffff", "0x123456789abcdef0", "-0x80000001", "1<<63"],
}  # fmt: skip
_PTR = {
    8: "byte ptr ", 16: "word ptr ", 32: "dword ptr ", 48: "fword ptr ", 64: "qword ptr ", 80: "",
    128: "xmmword ptr ",
}  # fmt: skip
_HIGH = {"ah", "ch", "dh", "bh"}


def _choices(word: str) -> list[str]:
    if word.startswith("r/m"):
        width = int(word[3:])
        return _REGISTERS[width] + [_PTR[width] + a for a in ADDRESSES]
    if word in ("r8", "r16", "r32", "r64"):
        return _REGISTERS[int(word[1:])]
    if word.startswith("moffs"):
        return ["ds:0x1122334455667788", "[0x80000000]", "fs:[0x8000000000]"]
    if word == "m":
        return list(ADDRESSES)
    if word[0] == "m":
        return [_PTR[int(word[1:])] + a for a in ADDRESSES]
    if word in _IMMEDIATES:
        return _IMMEDIATES[word]
    if word == "rel8":
        return [".", ".+2", ".+129", ".-125", "1b", "2f"]
    if word == "rel32":
        return [".+134", ".-123", "here", "_start", "0x1234", ".+100000"]
    if word == "sreg":
        return ["es", "ss", "ds", "fs", "gs"]
    if word == "cr":
        return ["cr0", "cr2", "cr3", "cr4", "cr8"]
    if word == "dr":
        return ["dr0", "dr3", "dr6", "dr7"]
    return [word]


def _valid(form: Form, operands: tuple[str, ...]) -> bool:
    # ah..dh and a REX prefix exclude each other (SDM Vol. 2 2.2.1.2).
    if not _HIGH & set(operands):
        return True
    if form.encoding.rex_w:
        return False
    for text in operands:
        if text in ("spl", "bpl", "sil", "dil") or any(f"r{n}" in text for n in range(8, 16)):
            return False
    return True


def cases(form: Form) -> Iterator[str]:
    """Statements that the table says this form is for."""
    name = form.instruction.mnemonic
    choices = [_choices(word) for word in form.operands]
    seen: set[tuple[str, ...]] = set()
    base = [c[1] if len(c) > 1 else c[0] for c in choices]
    for position, options in enumerate(choices):
        for option in options:
            operands = tuple(base[:position] + [option] + base[position + 1 :])
            if operands not in seen and _valid(form, operands):
                seen.add(operands)
                yield f"{name} {', '.join(operands)}"
    # Every pair of a high and a low register, REX bits in both slots.
    if len(choices) >= 2:
        for first, second in zip(choices[0], reversed(choices[1]), strict=False):
            operands = (first, second, *base[2:])
            if operands not in seen and _valid(form, operands):
                seen.add(operands)
                yield f"{name} {', '.join(operands)}"
    if not choices:
        yield name
    if form.instruction.lock and form.mod in ("m", "rm") and form.operands[0].startswith("r/m"):
        width = form.operands[0][3:]
        for address in ("[rax]", "gs:[r8+4]"):
            operands = (_PTR[int(width)] + address, *base[1:])
            yield f"lock {name} {', '.join(operands)}"
    if form.instruction.rep:
        for prefix in ("rep", "repz", "repne"):
            yield f"{prefix} {name}"


def all_cases() -> Iterator[tuple[Form, str]]:
    """Every form that an assembler writes, with every statement."""
    for form in WRITTEN:
        for statement in cases(form):
            yield form, statement
