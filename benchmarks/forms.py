"""Nanoseconds of host CPU time per instruction, by form: every (mnemonic, form, width), the worst first.

    python benchmarks/forms.py [WORD…] [--rounds N] [--above NS] [--json FILE] [--beside FILE]

WORD keeps the forms whose text holds it. One guest per form: a block of it in a loop, `bare`. A figure is
the least of some rounds, less what a guest without a loop takes; beside it the most, and with `--beside`
what an earlier `--json` says and their ratio. What is no single form has a line too: REP by the element,
branches with what they need before them (ns per instruction). Status 1 if a form is above 15 ns.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import attrs

from vpmu_emu.asm import assemble
from vpmu_emu.asm.program import Program
from vpmu_emu.machine.ops import COLD, HOT_SHAPES
from vpmu_emu.system import run
from vpmu_emu.tables.instructions import FORMS, Form, operand_width

LIMIT = 15.0  # ns
BLOCK = 32  # of a form in the loop
WORK = 600_000  # instructions of one round
CONDITIONS = (4, 12, 10)  # e l p: one flag, two, parity
REGISTERS = {8: ("bl", "dl"), 16: ("bx", "dx"), 32: ("ebx", "edx"), 64: ("rbx", "rdx")}
POINTERS = {8: "byte", 16: "word", 32: "dword", 64: "qword", 128: "xmmword"}
# lines of their own have these
SKIPPED = {"jcc", "jmp", "call", "ret", "loop", "loope", "loopne", "jrcxz", "enter", "leave", "push", "pop"}
SKIPPED |= {"movs", "stos", "lods", "scas", "cmps", "std"}
PURE = {*COLD, *HOT_SHAPES} - SKIPPED

GUEST = """
        .intel_syntax noprefix
_start: lea r15, [rip + data]
        mov ebx, 3; mov edx, 1; mov eax, 7; mov ecx, 3
        mov r8d, {rounds}
loop:   {before}
        .rept {block}
        {body}
        .endr
        dec r8d
        jnz loop
        xor eax, eax
        out 0xf4, al
        .balign 4096
data:   .fill 8192, 1, 0x15
        .balign 4096
other:  .fill 8192, 1, 0x15
"""


@attrs.frozen
class Case:
    """One line: `each` of what is timed in one `body`."""

    name: str
    body: str
    before: str = ""
    each: int = 1
    block: int = BLOCK

    def guest(self, rounds: int) -> Program:
        """The loop around it; no instruction of it runs with 0 rounds but one."""
        return assemble(
            GUEST.format(rounds=rounds, before=self.before, body=self.body, block=self.block), "forms.s"
        )


def _word(word: str, place: int, memory: bool, width: int) -> str:
    bits = operand_width(word) or width
    if word in ("al", "ax", "eax", "rax", "cl", "1", "dx"):
        return word
    if word.startswith("imm"):
        return "5"
    if word.startswith("moffs"):
        return ""
    if word.startswith("m") or (word.startswith("r/m") and memory):
        pointer = f"{POINTERS[bits]} ptr " if bits in POINTERS and word != "m" else ""
        return f"{pointer}[r15 + 64]"
    return REGISTERS[bits][place != 0]


def of_form(form: Form, memory: bool) -> Case | None:
    """The form with its r/m operand in memory or not; None if it cannot stand in a plain loop."""
    words = [_word(w, k, memory, form.width) for k, w in enumerate(form.operands)]
    if "" in words:
        return None
    where = "m" if memory else "r"
    name = form.instruction.mnemonic + " " + ", ".join(w.replace("r/m", where) for w in form.operands)
    # what divides keeps its dividend small
    before = "mov eax, 7; xor edx, edx" if form.instruction.sem in ("div", "idiv", "cmpxchg8b") else ""
    body = f"{form.instruction.mnemonic} {', '.join(words)}"
    if form.instruction.sem == "idiv":  # or the remainder comes back as the dividend
        again = "mov eax, 7" if form.width == 8 else "xor edx, edx"
        return Case(f"{again[:3]} + {name}", f"{again}; {body}", before, each=2)
    return Case(name.strip(), body, before)


def cases() -> Iterator[Case]:
    """Every line, once."""
    seen = set()
    for form in FORMS:
        row = form.instruction
        if row.sem not in PURE or not form.written or (row.cc is not None and row.cc not in CONDITIONS):
            continue
        if row.rep or row.mnemonic.startswith(("nop", "std")):
            continue
        word = next((w for w in form.operands if w.startswith(("r/m", "m"))), "")
        for memory in (False, True) if word.startswith("r/m") else (bool(word),):
            case = of_form(form, memory)
            if case is not None and case.name not in seen:
                seen.add(case.name)
                yield case
    locked = "lock {} {} ptr [r15 + 64], {}"
    for name in ("add", "xadd", "cmpxchg"):
        for bits in (8, 32, 64):
            yield Case(f"lock {name} m{bits}", locked.format(name, POINTERS[bits], REGISTERS[bits][0]))
    yield Case("push r64 + pop r64", "push rbx; pop rdx", each=2)
    yield Case("push m64 + pop m64", "push [r15]; pop [r15 + 8]", each=2)
    yield Case("push r16 + pop r16", "push bx; pop dx", each=2)
    yield Case("enter + leave", "enter 16, 0; leave", each=2)
    for name, body, each in (
        ("jmp", "jmp 1f; 1:", 1),
        ("jcc", "jz 1f; 1:", 1),
        ("lea + jmp r64", "lea rbx, [rip + 1f]; jmp rbx; 1:", 2),
        ("lea + mov + jmp m64", "lea rbx, [rip + 1f]; mov [r15], rbx; jmp [r15]; 1:", 3),
        ("call + ret", "call 2f; jmp 1f; 2: ret; 1:", 3),
        ("lea + call r64 + jmp + ret", "lea rbx, [rip + 2f]; call rbx; jmp 1f; 2: ret; 1:", 4),
        ("lea + mov + call m64 + jmp + ret",
         "lea rbx, [rip + 2f]; mov [r15], rbx; call [r15]; jmp 1f; 2: ret; 1:", 5),
        ("call + ret imm", "push rbx; call 2f; jmp 1f; 2: ret 8; 1:", 4),
        ("mov + jrcxz", "mov ecx, 3; jrcxz 1f; 1:", 2),
        ("mov + loop", "mov ecx, 3; loop 1f; 1:", 2),
        ("mov + loope", "mov ecx, 3; loope 1f; 1:", 2),
    ):  # fmt: skip
        yield Case(name, body, each=each)
    ends = "lea rsi, [rip + data]; lea rdi, [rip + other]; cld"
    strings = {"movs": "rep", "stos": "rep", "lods": "rep", "cmps": "repe", "scas": "repe"}
    for name, rep in strings.items():
        for letter in "bwdq":
            yield Case(f"{name}{letter}", f"{name}{letter}", f"{ends}; mov eax, 0x15151515")
            size = "bwdq".index(letter)
            n = 4096 >> size
            equal = "movabs rax, 0x1515151515151515"
            yield Case(
                f"{rep} {name}{letter}, an element of {n}", f"{rep} {name}{letter}",
                f"{ends}; {equal}; mov ecx, {n}", each=n, block=1,
            )  # fmt: skip
    yield Case("code of 96 KiB", "add rax, 5", block=24 * 1024)
    yield Case("store beside code", "mov [rip + beside], ebx; jmp 1f; beside: .long 0; 1:", block=1, each=2)


def seconds(guest: Program, case: Case) -> float:
    """CPU time of one run in this thread."""
    began = time.thread_time()
    result = run(guest, vpmu="bare", engine="interpreter").to_json()
    took = time.thread_time() - began
    assert result["exit_code"] == 0, (result["stop"], case)
    return took


def main() -> int:
    """Status 1 if a form is above LIMIT."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="keep what holds one of them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--above", type=float, default=0.0, help="show what takes more ns (default: all)")
    parser.add_argument("--json", type=Path, help="write {name: [least, most]} there")
    parser.add_argument("--beside", type=Path, help="an earlier --json")
    asked = parser.parse_args()
    earlier = json.loads(asked.beside.read_text()) if asked.beside else {}
    empty = Case("", "nop", block=1).guest(1)
    found: dict[str, list[float]] = {}
    for case in cases():
        if asked.words and not any(word in case.name for word in asked.words):
            continue
        each = case.each * case.block
        rounds = max(2, WORK // each)
        guest = case.guest(rounds)
        took = []
        for _ in range(asked.rounds):
            start = min(seconds(empty, case) for _ in range(2))
            took.append((seconds(guest, case) - start) / (rounds * each) * 1e9)
        found[case.name] = [min(took), max(took)]
    above = 0
    for name, (least, most) in sorted(found.items(), key=lambda row: -row[1][0]):
        above += least > LIMIT
        if least < asked.above:
            continue
        then = earlier.get(name)
        ratio = f"{then[0]:8.1f} {then[0] / least:6.2f}x" if then else ""
        print(f"{least:7.1f} ns  to {most:7.1f}  {name:40} {ratio}")
    print(f"{len(found)} forms, {above} above {LIMIT:.0f} ns")
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1))
    return int(above > 0)


if __name__ == "__main__":
    sys.exit(main())
