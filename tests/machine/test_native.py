"""The engine against the host CPU at CPL 3: random bytes behind random prefixes, one step at a time."""

from __future__ import annotations

import os
import random
from collections import Counter

import attrs
import numpy as np
import pytest

from tests.conftest import oracle_missing

MISSING = oracle_missing("import:iced_x86") or oracle_missing("gcc")
if MISSING and os.environ.get("VPMU_REQUIRE_ORACLES") == "1":
    raise RuntimeError(f"{MISSING}, and VPMU_REQUIRE_ORACLES=1")
if MISSING:
    pytest.skip(MISSING, allow_module_level=True)

import iced_x86 as iced  # noqa: E402

from tests.machine.board import Board  # noqa: E402
from tests.reference import native  # noqa: E402
from tests.reference.alu import DF, STATUS  # noqa: E402
from tests.reference.forms import CODE, DATA, EDGES, STACK  # noqa: E402
from tests.reference.instructions import REGISTERS, mnemonic, undefined_flags  # noqa: E402
from tests.tools.profiles import cases as number_of_cases  # noqa: E402
from vpmu_emu.tables.instructions import BY_NAME  # noqa: E402

pytestmark = pytest.mark.oracle
if native.available():
    pytest.skip(native.available() or "", allow_module_level=True)

GP, PF = 13, 14
MIDDLE = DATA + 0x2000
TABLES = 0x180000  # page tables of the engine's side
IF, TF, RF = 1 << 9, 1 << 8, 1 << 16
PREFIXES = [0x66, 0x67, 0xF2, 0xF3, 0xF0, 0x2E, 0x36, 0x3E, 0x26, 0x65]
# What Linux does itself for a program, what would leave the helper, and what is different by design.
NOT_ASKED = {
    "syscall", "sysenter", "sysexit", "sysexitq", "sysret", "sysretq", "int", "int1", "int3", "vmcall",
    "vmmcall",
    "iret", "iretd", "iretq", "retf", "les", "lds", "lss", "lfs", "lgs", "popf", "popfq", "popfd",
    "sgdt", "sidt", "sldt", "str", "smsw",  # UMIP: Linux answers
    "cpuid", "rdtsc", "rdtscp", "rdpmc", "lar", "lsl", "verr", "verw",  # other answers
    "wrfsbase", "wrgsbase", "rdfsbase", "rdgsbase", "xgetbv", "xsetbv",
    "loadall", "monitor", "mwait", "clzero",
}  # fmt: skip
WORDS = {r for r, (_, width, _) in REGISTERS.items() if width == 16}
HOST = native.cpu_flags()
AMD = native.is_amd()


@attrs.frozen
class Outcome:
    """As `native.Step`, of the engine; `outside`: an instruction that it says it does not have."""

    regs: tuple[int, ...]
    rflags: int
    rip: int
    trap: int
    address: int
    memory: dict[int, int]
    outside: bool


class User:
    """The engine at CPL 3 with the same memory as the helper, and nothing else."""

    def __init__(self, image: bytes) -> None:
        self.board = Board()
        self.image = np.frombuffer(image, np.uint8)
        tables = np.zeros(4 * 512, np.uint64)
        for level in range(3):
            tables[512 * level] = TABLES + 0x1000 * (level + 1) | 7
        for page in range(native.LOW >> 12, native.HIGH >> 12):
            tables[512 * 3 + page] = page << 12 | 0x67
        self.tables = tables.view(np.uint8)

    def step(self, code: bytes, regs: list[int], rflags: int) -> Outcome:
        board, core = self.board, self.board.core
        board.M[native.LOW : native.HIGH] = self.image
        board.M[TABLES : TABLES + 0x4000] = self.tables
        board.lay(code, CODE, regs, rflags)
        before = board.M[native.LOW : native.HIGH].copy()
        core.cr3 = TABLES
        core.cpl = 3
        core.selectors[1], core.selectors[2] = 0x33, 0x2B
        core.selectors[[0, 3, 4, 5]] = 0
        core.gdt_limit = 0
        board.E.outside_n = 0
        stop = board.system.step()
        changed = np.nonzero(board.M[native.LOW : native.HIGH] != before)[0]
        return Outcome(
            tuple(int(v) for v in core.regs[:16]),
            int(core.rflags),
            int(core.rip),
            int(stop.info) if stop.reason == "triple-fault" else 1,
            int(core.cr2),
            {native.LOW + int(k): int(board.M[native.LOW + k]) for k in changed},
            bool(board.E.outside_n),
        )


def random_code(draw: random.Random) -> bytes:
    """Up to three prefixes, an opcode of any map, and what follows; sixteen bytes."""
    head = bytes(draw.choice(PREFIXES) for _ in range(draw.choice((0, 0, 0, 1, 1, 2, 3))))
    kind = draw.random()
    if kind < 0.10:  # VEX
        pp, third = draw.randrange(4), draw.choice((15, draw.randrange(16)))
        first = draw.randrange(8) << 5 | draw.choice((2, 2, 3, draw.randrange(32)))
        second = draw.randrange(2) << 7 | third << 3 | (draw.random() < 0.05) << 2 | pp
        middle = bytes((0xC4, first, second))
        middle += bytes((draw.choice((0xF0, 0xF2, 0xF3, 0xF5, 0xF6, 0xF7, draw.randrange(256))),))
        head = head if draw.random() < 0.1 else b""
    else:
        middle = bytes((0x40 | draw.randrange(16),)) if draw.random() < 0.4 else b""
        if kind < 0.45:
            middle += b"\x0f"
        elif kind < 0.50:
            middle += b"\x0f\x38" + bytes((draw.choice((0xF0, 0xF1, 0xF6, 0xF6)),))
        if kind >= 0.50 or kind < 0.45:
            middle += bytes((draw.randrange(256),))
    return (head + middle + draw.randbytes(16))[:16]


def random_registers(draw: random.Random) -> list[int]:
    """Most point into memory that is there, the others are edges or anything."""
    regs = []
    for _ in range(16):
        kind = draw.random()
        if kind < 0.55:
            regs.append(MIDDLE + draw.randrange(-64, 65))
        elif kind < 0.8:
            regs.append(draw.choice(EDGES) if draw.random() < 0.7 else draw.randrange(64))
        else:
            regs.append(draw.getrandbits(64))
    regs[4] = STACK + 0x800 + draw.randrange(0, 64)
    return regs


def name_of(code: bytes) -> tuple[str, object]:
    """(mnemonic or "" if the bytes are none, the instruction) by iced-x86."""
    found = iced.Decoder(64, code[:15], ip=CODE).decode()
    return ("" if found.is_invalid else mnemonic(found)), found


def reads_memory(found: object) -> bool:
    return iced.OpKind.MEMORY in {found.op_kind(k) for k in range(found.op_count)}


def locked_on_amd(code: bytes) -> bool:
    """#UD by the manual; there LOCK VERR and VERW run, and MOV CR0 with LOCK is CR8."""
    runs = (b"\x0f\x00", b"\x0f\x20", b"\x0f\x22")
    return AMD and 0xF0 in code[:5] and any(op in code[:8] for op in runs)


def unlike(name: str, found: object, code: bytes) -> str:
    """Why the host may do otherwise than the manual, or ""."""
    if native.NEEDS.get(name, "fpu") not in HOST:
        return "the host lacks it"
    segments = {iced.Register.FS, iced.Register.GS}
    if found.memory_segment == iced.Register.FS:
        return "the helper's own segments"
    hint = name in ("nop", "reservednop") and not reads_memory(found)
    if AMD and hint and b"\x0f\x0d" in code[: found.len]:
        return "AMD: 0F 0D has memory operands only"
    if AMD and name in ("loope", "loopne") and {0xF2, 0xF3} & set(code[: found.len - 2]):
        return "AMD: a repeat prefix chooses between LOOPE and LOOPNE"
    if found.op_count and found.op0_kind == iced.OpKind.REGISTER and found.op0_register in segments:
        return "the helper's own segments"
    if AMD and found.flow_control != iced.FlowControl.NEXT and 0x66 in code[: found.len]:
        return "AMD: near branches heed the operand size"
    return ""


@pytest.fixture(scope="module")
def image():
    draw = random.Random(7)
    size = native.HIGH - native.LOW
    data = bytearray(draw.randbytes(size))
    for at in range(STACK - native.LOW, size, 8):  # return addresses, and flags without TF and AC
        data[at : at + 8] = (CODE + draw.randrange(0x800)).to_bytes(8, "little")
    return bytes(data)


def differences(mine: Outcome, theirs: native.Step, found: object, name: str) -> list[str]:
    rows = []
    if name.startswith("cmps") and {mine.trap, theirs.trap} <= {GP, PF}:
        return rows  # it may look at either operand first
    if mine.trap != theirs.trap:
        return [f"vector {mine.trap}, the host has {theirs.trap}"]
    loose = undefined_flags(found) if name else 0
    if mine.trap == PF and mine.address != theirs.address:
        rows.append(f"cr2 {mine.address:#x}, the host has {theirs.address:#x}")
    kept = (STATUS & ~loose) | DF
    if mine.rflags & kept != theirs.rflags & kept:
        rows.append(f"rflags {mine.rflags & kept:#x}, the host has {theirs.rflags & kept:#x}")
    if mine.rip != theirs.rip:
        rows.append(f"rip {mine.rip:#x}, the host has {theirs.rip:#x}")
    if name in ("shld", "shrd") and found.op1_register in WORDS:
        return rows  # a count above 16 leaves the destination undefined
    for k, (a, b) in enumerate(zip(mine.regs, theirs.regs, strict=True)):
        if a != b:
            rows.append(f"register {k} {a:#x}, the host has {b:#x}")
    if name in ("pushfq", "pushf"):
        return rows  # the host's image has TF
    if mine.memory != theirs.memory:
        rows.append(f"memory {mine.memory}, the host has {theirs.memory}")
    return rows


def test_random_bytes_do_what_the_host_does(image, tmp_path_factory):
    draw = random.Random(number_of_cases(day=1, laws=2, night=3))
    stepper = native.Stepper(tmp_path_factory.mktemp("stepper"), image)
    user = User(image)
    asked, outside = [], Counter()
    total = number_of_cases(day=4000, laws=100_000, night=1_000_000, uncompiled=150)
    while len(asked) < total:
        code, regs = random_code(draw), random_registers(draw)
        rflags = draw.getrandbits(12) & STATUS | 2 | IF | (DF if draw.random() < 0.1 else 0)
        name, found = name_of(code)
        if name in NOT_ASKED or (name and unlike(name, found, code)) or locked_on_amd(code):
            continue
        mine = user.step(code, regs, rflags)
        if mine.outside:
            outside["far" if found.is_jmp_far_indirect or found.is_call_far_indirect else name] += 1
            continue
        asked.append((code, regs, rflags, mine, name, found))
    wrong = []
    for (code, _regs, _flags, mine, name, found), theirs in zip(
        asked, stepper.run([row[:3] for row in asked]), strict=True
    ):
        rows = differences(mine, theirs, found, name)
        if rows:
            wrong.append(f"{code.hex(' ')} ({found if name else 'no instruction'}): {'; '.join(rows)}")
    print(f"{total} compared, outside the set: {dict(outside)}")
    assert wrong == [], "\n".join(wrong)
    # What the table has under this name is never outside of it.
    assert {name for name in outside if name in BY_NAME} == set()
