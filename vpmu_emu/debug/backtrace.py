"""Who called whom: by DWARF where there is some, else by frame pointers, else by what lies on the stack.

An assembly program keeps no frame pointer, and an interrupt leaves five words that no call has pushed: a
word on the stack is a return address if a CALL ends right before it, and the frame of an interrupt if the
words behind it are a code selector, flags, a stack and its selector (SDM 3A figure 6-9).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

import attrs

from vpmu_emu.asm.disassemble import disassemble_one
from vpmu_emu.debug.sections import Look
from vpmu_emu.load.frames import RSP, FrameRule, read_rules

MOST = 64  # frames
_DEPTH = 1024  # of the stack that are looked at for one frame
_LONGEST_CALL = 7  # bytes

EXACT, INTERRUPTED = "", "interrupted"
BY_DWARF, BY_POINTER, BY_STACK = "by DWARF", "by frame pointer", "by the stack"
CALLED = (BY_DWARF, BY_POINTER, BY_STACK)


@attrs.frozen
class Frame:
    """One function that has not returned.

    Attributes:
        rip: where it goes on.
        rsp: its stack there.
        how: how it was found: "" for the innermost, or one of the constants above.
        rbp: its frame pointer, if it keeps one.
    """

    rip: int
    rsp: int
    how: str = EXACT
    rbp: int = 0

    @property
    def call(self) -> int:
        """An address within the instruction that it is at: of a caller, its CALL."""
        return self.rip - 1 if self.how in CALLED else self.rip


def frames(look: Look) -> Iterator[Frame]:
    """The innermost frame first."""
    registers = look.session.registers()
    rip, rsp, rbp = registers["rip"], registers["rsp"], registers["rbp"]
    yield Frame(rip, rsp, EXACT, rbp)
    rules = read_rules(look.session.program.frames)
    at = rip
    for _ in range(MOST):
        found = _by_rule(look, rules.at(at), rsp, rbp) or _caller(look, rsp, rbp)
        if found is None:
            return
        frame, rbp = found
        yield attrs.evolve(frame, rbp=rbp)
        rsp, at = frame.rsp, frame.call


def frame_of(look: Look) -> Frame:
    """The frame that is looked at, the innermost if none was chosen."""
    return next(islice(frames(look), look.frame, None), None) or next(frames(look))


def of_frame(look: Look, words: str) -> str:
    """An expression with rip, rsp and rbp (and gdb's names of them) as numbers of the frame looked at."""
    if not look.frame:
        return words
    frame = frame_of(look)
    values = {"pc": frame.rip, "rip": frame.rip, "sp": frame.rsp, "rsp": frame.rsp, "fp": frame.rbp,
              "rbp": frame.rbp}  # fmt: skip
    return re.sub(r"\$?\b(pc|rip|sp|rsp|fp|rbp)\b", lambda found: f"{values[found[1]]:#x}", words)


def _by_rule(look: Look, rule: FrameRule | None, rsp: int, rbp: int) -> tuple[Frame, int] | None:
    if rule is None:
        return None
    frame = (rsp if rule.register == RSP else rbp) + rule.offset
    words = _words(look, frame + rule.rip, 5)
    if not words or not look.session.program.holds(words[0]):
        return None
    if rule.rbp is not None:
        saved = _words(look, frame + rule.rbp, 1)
        rbp = saved[0] if saved else rbp
    # A handler is not called: what it returns to was interrupted.
    if len(words) == 5 and _is_interrupt_frame(words[1:]):
        return Frame(words[0], words[3], INTERRUPTED), rbp
    return Frame(words[0], frame, BY_DWARF), rbp


def _words(look: Look, address: int, count: int) -> list[int]:
    data = look.memory(address & (1 << 64) - 1, 8 * count)
    return [int.from_bytes(data[n : n + 8], "little") for n in range(0, len(data) - 7, 8)]


def _caller(look: Look, rsp: int, rbp: int) -> tuple[Frame, int] | None:
    scanned = next(_scan(look, rsp), None)
    chained = _by_pointer(look, rsp, rbp)
    # An interrupt's frame that lies below the chain's comes first.
    if (
        scanned is not None
        and scanned.how == INTERRUPTED
        and (chained is None or scanned.rsp <= chained[0].rsp)
    ):
        return scanned, rbp
    if chained is not None:
        inner = scanned is not None and scanned.rsp < chained[0].rsp and _at_entry(look, rsp)
        if not inner:
            return chained
    return (scanned, rbp) if scanned is not None else None


def _at_entry(look: Look, rsp: int) -> bool:
    # Before a function has made its frame the return address is still on top.
    word = look.memory(rsp, 8)
    return len(word) == 8 and returns(look, int.from_bytes(word, "little"))


def _by_pointer(look: Look, rsp: int, rbp: int) -> tuple[Frame, int] | None:
    if rbp < rsp or rbp & 7:
        return None
    pair = look.memory(rbp, 16)
    if len(pair) < 16:
        return None
    before, rip = int.from_bytes(pair[:8], "little"), int.from_bytes(pair[8:], "little")
    return (Frame(rip, rbp + 16, BY_POINTER), before) if returns(look, rip) else None


def _scan(look: Look, rsp: int) -> Iterator[Frame]:
    words = _words(look, rsp, _DEPTH)
    for n, word in enumerate(words):
        if not look.session.program.holds(word):
            continue
        if n + 4 < len(words) and _is_interrupt_frame(words[n + 1 : n + 5]):
            yield Frame(word, words[n + 3], INTERRUPTED)
        elif returns(look, word):
            yield Frame(word, rsp + 8 * n + 8, BY_STACK)


def _is_interrupt_frame(words: list[int]) -> bool:
    cs, rflags, _, ss = words
    same_ring = cs & 3 == ss & 3 or ss == 0
    return (
        0 < cs < 0x10000
        and cs & 4 == 0
        and rflags >> 22 == 0
        and rflags & 0x802A == 2
        and ss < 0x10000
        and same_ring
    )


def returns(look: Look, address: int) -> bool:
    """Whether a CALL ends right before an address of the program."""
    if not look.session.program.holds(address - 1):
        return False
    code = look.memory(address - _LONGEST_CALL, _LONGEST_CALL)
    for size in range(2, len(code) + 1):
        insn = disassemble_one(code[len(code) - size :], address - size)
        if insn is not None and insn.size == size and insn.text.startswith("call"):
            return True
    return False
