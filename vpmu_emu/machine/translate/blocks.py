"""Which decoded micro-ops become one region of native code: what a hot branch leads to, block by block.

A region follows direct branches both ways, calls into their function, and a return to the call that it
followed. It ends before what native code does not do, and where nothing is decoded.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import attrs
import numpy as np

from vpmu_emu.machine import decode, ops, state
from vpmu_emu.machine.u64 import U64

MOST_INSTRUCTIONS = 256
MOST_BLOCKS = 64
MOST_CALLS = 4  # calls that a region is inside of
_HOT = ops.HOT_OP
JUMP, CALL, RETURN = _HOT["jmp"], _HOT["call"], _HOT["ret"]
INDIRECT = frozenset(_HOT[name] for name in ("jmp_rr", "jmp_rm", "call_rr", "call_rm"))
CONDITIONAL = frozenset(_HOT[name] for name in ("jz", "jnz", "jcc", "loop"))
# General arms that set rip.
_GENERAL_JUMPS = frozenset(
    ops.COLD_OP[name] for name in ("jmp", "call", "ret", "loop", "loope", "loopne", "jrcxz")
)
STRINGS = frozenset(ops.COLD_OP[name] for name in ("movs", "stos", "lods", "scas", "cmps"))
# What is often met in a loop, and mostly goes on with the next instruction.
_SYSTEM = frozenset(
    ops.SYSTEM_OP[name] for name in ("rdtsc", "rdtscp", "rdpmc", "rdmsr", "wrmsr", "pushfq")
)
_TARGET = state.UOP.fields["target"][1]  # type: ignore[index]
_LANE = (1 << state.LANE_BITS) - 1


@attrs.frozen
class Instruction:
    """A micro-op as a region has it.

    Attributes:
        data: its bytes, without what is different in another process.
        op: its arm; rip, size: where it lies; cost: in 1/16 cycle.
        lanes: the event classes that it retires, in the order of state.LANES1 and LANES2.
        target: of a direct branch.
        number: of the micro-op in decoded code.
    """

    data: bytes
    op: int
    rip: int
    size: int
    cost: int
    lanes: tuple[int, ...]
    target: int
    number: int

    @property
    def end(self) -> int:
        """Where the next one in memory lies."""
        return (self.rip + self.size) & ((1 << 64) - 1)


Place = tuple[int, tuple[int, ...]]  # an address, and where the calls return to that led there


@attrs.define
class Block:
    """Instructions without a way in or out between them.

    Attributes:
        place: its address and calls.
        goes_on: where memory goes on, if not with an exit.
        taken: where its branch leads to, or its return, if that is in the region.
        leaves: the last instruction sets rip.
    """

    place: Place
    instructions: list[Instruction] = attrs.field(factory=list)
    goes_on: Place | None = None
    taken: Place | None = None
    leaves: bool = False

    @property
    def rip(self) -> int:
        """Its address."""
        return self.place[0]

    @property
    def span(self) -> int:
        """Time from its begin to that of its last instruction, without misses."""
        return sum(one.cost for one in self.instructions[:-1])


def _instruction(n: int, u: Any) -> Instruction:
    data = bytearray(u.tobytes())
    data[_TARGET : _TARGET + 4] = bytes(4)
    words = int(u["lanes1"]), int(u["lanes2"])
    lanes = [words[0] >> state.LANE_BITS * k & _LANE for k in range(len(state.LANES1))]
    lanes += [words[1] >> state.LANE_BITS * k & _LANE for k in range(len(state.LANES2))]
    op, rip, size, cost, target = (int(u[name]) for name in ("op", "rip", "len", "cost", "imm"))
    return Instruction(bytes(data), op, rip, size, cost, tuple(lanes), target, n)


class _Collector:
    def __init__(self, E: Any, bank: int) -> None:
        self.E = E
        self.uops = E.uops
        self.seldom = max(1, int(E.hot_after) // 16)
        E.bank = bank
        self.blocks: dict[Place, Block] = {}
        self.todo: deque[tuple[Place, int]] = deque()
        self.size = 0

    def _decoded(self, rip: int) -> int:
        with np.errstate(over="ignore"):
            key = U64(rip)
            slot = int(decode.map_slot.py_func(key))
            if int(self.E.map_key[slot]) != int(decode.map_key.py_func(self.E, key)):
                return -1
        return self._plain(int(self.E.map_uop[slot]))

    def _plain(self, n: int) -> int:
        return int(self.uops[n]["target"]) if self.uops[n]["op"] == ops.OP_REGION else n

    def place(self, rip: int, calls: tuple[int, ...], n: int) -> Place | None:
        """The block at `rip`, micro-op n, if the region has room for it."""
        where = rip, calls
        if where not in self.blocks:
            if n < 0 or len(self.blocks) >= MOST_BLOCKS or self.size >= MOST_INSTRUCTIONS:
                return None
            if not self._is_native(self.uops[n]):
                return None
            self.blocks[where] = Block(where)
            self.todo.append((where, n))
        return where

    @staticmethod
    def _is_native(u: Any) -> bool:
        op = int(u["op"])
        if op < len(ops.HOT) or op == ops.OP_LINK:
            return True
        if op < ops.COLD_BASE:
            return False
        if op < ops.SYSTEM_BASE:
            return True
        return op in _SYSTEM

    def _branch(self, u: Any) -> int:
        """The micro-op that direct branch u leads to, -1 if it was hardly ever taken."""
        target = int(u["target"])
        if target >= 0:
            return self._plain(target)
        return self._decoded(int(u["imm"])) if -1 - target >= self.seldom else -1

    def fill(self, block: Block, n: int) -> None:
        """Take instructions from micro-op n on, until the block ends."""
        calls = block.place[1]
        while True:
            u = self.uops[n]
            op = int(u["op"])
            rip = int(u["rip"])
            if op == ops.OP_LINK:
                n = self._plain(int(u["target"])) if u["target"] >= 0 else self._decoded(rip)
                if n < 0:
                    return
                continue
            if block.instructions and (rip, calls) in self.blocks:
                block.goes_on = rip, calls
                return
            if not self._is_native(u) or self.size >= MOST_INSTRUCTIONS + state.LANE_BITS:
                return
            one = _instruction(n, u)
            block.instructions.append(one)
            self.size += 1
            if op == JUMP:
                block.taken = self.place(one.target, calls, self._branch(u))
                return
            if op == CALL:
                if len(calls) < MOST_CALLS and one.end not in calls:
                    block.taken = self.place(one.target, (*calls, one.end), self._branch(u))
                return
            if op == RETURN:
                if calls:
                    block.taken = self.place(calls[-1], calls[:-1], self._decoded(calls[-1]))
                return
            if op in INDIRECT or op in _GENERAL_JUMPS:
                block.leaves = op in _GENERAL_JUMPS
                return
            if op in CONDITIONAL:
                block.taken = self.place(one.target, calls, self._branch(u))
                block.goes_on = self.place(one.end, calls, self._after(n))
                return
            n += 1

    def _after(self, n: int) -> int:
        n += 1
        if self.uops[n]["op"] == ops.OP_LINK:
            u = self.uops[n]
            return self._plain(int(u["target"])) if u["target"] >= 0 else self._decoded(int(u["rip"]))
        return n


def collect(E: Any, first: int, bank: int) -> list[Block]:
    """The blocks of a region that begins at micro-op `first` of address space and ring `bank`.

    The first one is where it begins. Empty if that is nothing for native code.
    """
    found = _Collector(E, bank)
    n = found._plain(first)
    if found.place(int(E.uops[n]["rip"]), (), n) is None:
        return []
    while found.todo:
        where, n = found.todo.popleft()
        found.fill(found.blocks[where], n)
    blocks = list(found.blocks.values())
    return blocks if blocks[0].instructions else []
