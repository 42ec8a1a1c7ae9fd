"""A region as LLVM IR: calls of `step` with constant micro-ops, and the horizon between the blocks.

Registers, flags and time are words of one local array, which LLVM takes apart. A block is entered if all of
it ends before the horizon as long as nothing misses; after an access that took longer the rest of the block
is asked about once more. What retires is added to three words of 16-bit lanes, and to the totals at the way
out. So an instruction here begins at the time at which it would begin in the interpreter, or is left to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs

from vpmu_emu._jit.region import arm_symbol
from vpmu_emu.machine import ops, state
from vpmu_emu.machine.alu import O_COMPUTE
from vpmu_emu.machine.state import (
    CODE_JUMP,
    CODE_NEXT,
    CODE_NOT_RETIRED,
    CODE_REPEAT,
    CORE,
    ENGINE,
    N_CLASSES,
    N_REGS,
    N_WIDE,
    N_WORDS,
    RBP,
    RCX,
    REG_FS,
    REG_GS,
    REG_ZERO,
    RSP,
    W_LIMIT,
    W_MARK,
    W_WIDE,
    WORDS,
)
from vpmu_emu.machine.translate.blocks import (
    CONDITIONAL,
    INDIRECT,
    RETURN,
    STRINGS,
    Block,
    Instruction,
    Place,
)
from vpmu_emu.machine.translate.step import SETTLE, TAKEN_BRANCH

W_T, W_FZ, W_FS, W_CV, W_TAKEN, W_TARGET, W_PC, W_LATE, W_BY_ONE = (
    WORDS.fields[name][1] // 8  # type: ignore[index]
    for name in ("t", "fz", "fs", "cv", "taken", "target", "pc", "late", "by_one")
)
CLASSES = (*state.LANES1, *state.LANES2)
LANES = 4  # of 16 bits in a word
MOST = (1 << 16) - 1  # instructions before the lanes are added to the totals
_COUNTS = range(N_WORDS, N_WORDS + N_WIDE)
_KEPT = (*_COUNTS, W_TAKEN)  # from region to region, in E.region
_TAKEN_SHIFT = state.LANE_BITS * state.LANES2.index("taken")
_CYCLES = state.CLASS["cycles"]
_SAVED = {W_FZ: "fz", W_FS: "fs", W_CV: "cv", W_T: "t"}
# Of a hot arm: what it writes beside its first operand.
_IMPLICIT = {
    **{ops.HOT_OP[name]: {RSP} for name in ("push", "pop", "call", "call_rr", "call_rm", "ret")},
    ops.HOT_OP["leave"]: {RSP, RBP},
    ops.HOT_OP["loop"]: {RCX},
}

# General arms that write registers which their operands do not name: these are among the first eight.
_FIXED = frozenset(
    ops.COLD_OP[name]
    for name in (
        "imul1", "mul", "div", "idiv", "cmpxchg", "cdqe", "cqo", "push", "pop", "call", "ret", "loop",
        "loope", "loopne", "enter", "leave", "movs", "stos", "lods", "scas", "cmps", "lahf", "xlat",
        "cmpxchg8b",
    )
)  # fmt: skip


def _offset(dtype: object, name: str) -> int:
    fields = dtype.fields  # type: ignore[attr-defined]
    return int(fields[name][1])


@attrs.frozen
class Callee:
    """A compiled function that regions call, by its symbol."""

    step: str
    general: str
    system: str
    onward: str


class _Writer:
    def __init__(self, callee: Callee, blocks: Sequence[Block]) -> None:
        self.callee = callee
        self.blocks = blocks
        self.number = {block.place: k for k, block in enumerate(blocks)}
        self.lines: list[str] = []
        self.cold: list[str] = []
        self.constants: list[str] = []
        self.arms: set[int] = set()
        self.names = 0
        written = {n for block in blocks for one in block.instructions for n in _written(one)}
        self.registers = sorted(written & set(range(REG_ZERO)))  # that are ever written here
        self.dirty = set(self.registers)  # those of which the record may have an older value

    # --- one line ---
    def put(self, line: str) -> None:
        self.lines.append(f"  {line}")

    def new(self, value: str) -> str:
        self.names += 1
        self.put(f"%v{self.names} = {value}")
        return f"%v{self.names}"

    def label(self, name: str) -> None:
        self.lines.append(f"{name}:")

    def fresh(self, name: str) -> str:
        self.names += 1
        return f"{name}{self.names}"

    def word(self, index: int) -> str:
        return self.new(f"load i64, ptr %w{index}")

    def put_word(self, index: int, value: object) -> None:
        self.put(f"store i64 {value}, ptr %w{index}")

    def add_word(self, index: int, value: object) -> None:
        if value != 0:
            self.put_word(index, self.new(f"add i64 {self.word(index)}, {value}"))

    def field(self, name: str, index: int = 0, base: str = "%core") -> str:
        dtype = CORE if base == "%core" else ENGINE
        return self.new(f"getelementptr i8, ptr {base}, i64 {_offset(dtype, name) + 8 * index}")

    def load(self, name: str, index: int = 0, base: str = "%core") -> str:
        return self.new(f"load i64, ptr {self.field(name, index, base)}")

    def store(self, value: object, name: str, index: int = 0, base: str = "%core") -> None:
        self.put(f"store i64 {value}, ptr {self.field(name, index, base)}")

    def apart(self) -> _Apart:
        return _Apart(self)

    # --- what several places do ---
    def leave(self, rip: object, code: object) -> None:
        """Go out: `rip` is the next instruction, or None where it is in the record."""
        if rip is not None:
            self.store(rip, "rip")
        self.put(f"store i64 {code}, ptr %code")
        self.put("br label %out")

    def count(self, one: Instruction) -> None:
        for word in _COUNTS:
            first = (word - N_WORDS) * LANES
            part = one.lanes[first : first + LANES]
            self.add_word(word, sum(n << 16 * k for k, n in enumerate(part)))

    def add_total(self, k: int, value: str) -> None:
        place = self.new(f"getelementptr i64, ptr %total, i64 {k}")
        total = self.new(f"load i64, ptr {place}")
        self.put(f"store i64 {self.new(f'add i64 {total}, {value}')}, ptr {place}")

    def lane(self, word: str, shift: int, mask: int) -> str:
        return self.new(f"and i64 {self.new(f'lshr i64 {word}, {shift}')}, {mask}")

    def fold(self) -> None:
        """Add what was counted to the totals."""
        for k in range(len(CLASSES)):
            self.add_total(k, self.lane(self.word(N_WORDS + k // LANES), 16 * (k % LANES), MOST))
        self.add_total(CLASSES.index("taken"), self.new(f"lshr i64 {self.word(W_TAKEN)}, {_TAKEN_SHIFT}"))
        for k, word in enumerate(_KEPT):
            self.put_word(word, 0)
            self.store(0, "region", W_WIDE + k, "%E")

    def spill(self, registers: Iterable[int]) -> None:
        self.call_arm(SETTLE, "@none")
        for n in registers:
            self.store(self.word(n), "regs", n)
        for n, name in _SAVED.items():
            self.store(self.word(n), name)

    def fill(self, registers: Iterable[int]) -> None:
        for n in registers:
            self.put_word(n, self.load("regs", n))
        for n, name in _SAVED.items():
            self.put_word(n, self.load(name))
        for n in (W_LATE, W_BY_ONE):
            self.put_word(n, 0)

    def goes_in(self, span: int) -> str:
        end = self.new(f"add i64 {self.word(W_T)}, {span}")
        return self.new(f"icmp slt i64 {end}, {self.new('load i64, ptr %limit')}")

    def call(self, function: str, more: str, to: str = "%outer") -> str:
        memory = "ptr null, ptr null, i64 %size, i64 1, ptr %M, i64 %size, i64 1"
        self.put(f'call i32 @"{function}"(ptr {to}, ptr %exc, ptr %core, {memory}, ptr %E, {more})')
        return self.new(f"load i64, ptr {to}")

    def call_arm(self, arm: int, constant: str) -> str:
        # Its answer has a place that no other function is given: LLVM need not have it in memory.
        self.arms.add(arm)
        symbol = arm_symbol(self.callee.step, arm)
        return self.call(symbol, f"ptr %words, ptr {constant}, i64 %row", to="%ret")

    # --- blocks and instructions ---
    def to(self, place: Place | None, rip: int, code: int) -> str:
        """A label to branch to: a block of the region, or a way out."""
        if place is not None and place in self.number:
            return f"block{self.number[place]}"
        name = self.fresh("exit")
        with self.apart():
            self.label(name)
            self.leave(_signed(rip), code)
        return name

    def block(self, block: Block) -> None:
        self.label(f"block{self.number[block.place]}")
        if not block.instructions:
            self.leave(_signed(block.rip), CODE_NEXT)
            return
        self.dirty = set(self.registers)
        inside = self.fresh("in")
        out = self.to(None, block.rip, CODE_NEXT)
        self.put(f"br i1 {self.goes_in(block.span)}, label %{inside}, label %{out}, !prof !0")
        self.label(inside)
        for k, one in enumerate(block.instructions):
            rest = block.instructions[k + 1 :]
            self.instruction(one, sum(each.cost for each in rest[:-1]) if rest else None)
        last = block.instructions[-1]
        if block.leaves:
            self.leave(None, CODE_JUMP)
        elif last.op in CONDITIONAL:
            taken = self.new(f"icmp eq i64 {self.word(W_PC)}, {TAKEN_BRANCH}")
            there = self.to(block.taken, last.target, CODE_JUMP)
            here = self.to(block.goes_on, last.end, CODE_NEXT)
            self.put(f"br i1 {taken}, label %{there}, label %{here}")
        elif last.op == RETURN or last.op in INDIRECT:
            name = self.fresh("exit")
            with self.apart():
                self.label(name)
                self.leave(self.word(W_TARGET), CODE_JUMP)
            if block.taken is None:
                self.put(f"br label %{name}")
            else:
                same = self.new(f"icmp eq i64 {self.word(W_TARGET)}, {_signed(block.taken[0])}")
                there = self.to(block.taken, 0, CODE_JUMP)
                self.put(f"br i1 {same}, label %{there}, label %{name}, !prof !0")
        elif last.op in (ops.HOT_OP["jmp"], ops.HOT_OP["call"]):
            self.put(f"br label %{self.to(block.taken, last.target, CODE_JUMP)}")
        else:
            self.put(f"br label %{self.to(block.goes_on, last.end, CODE_NEXT)}")

    def instruction(self, one: Instruction, rest: int | None) -> None:
        """One instruction; `rest`: time of those behind it in the block, None if it is the last."""
        constant = f"@u{len(self.constants)}"
        text = "".join(f"\\{byte:02X}" for byte in one.data)
        self.constants.append(f'{constant} = private constant [{len(one.data)} x i8] c"{text}", align 8')
        if one.op > O_COMPUTE:
            self.called(one, constant, rest)
            return
        self.dirty |= _written(one) & set(self.registers)
        time = self.word(W_T)
        expected = self.new(f"add i64 {time}, {one.cost}")
        self.put_word(W_T, expected)
        code = self.call_arm(one.op, constant)
        done, undone = self.fresh("done"), self.fresh("undone")
        self.put(f"br i1 {self.new(f'icmp eq i64 {code}, 0')}, label %{done}, label %{undone}, !prof !0")
        with self.apart():
            self.label(undone)
            self.put(f"store i64 {code}, ptr %code")
            back, edge = self.fresh("back"), self.fresh("edge")
            retired = self.new(f"icmp slt i64 {code}, {CODE_NOT_RETIRED}")
            self.put(f"br i1 {retired}, label %{edge}, label %{back}")
            self.label(back)
            self.add_word(W_T, -one.cost)
            self.leave(_signed(one.rip), code)
            self.label(edge)  # rip is set
            self.count(one)
            self.leave(None, code)
        self.label(done)
        self.count(one)
        if rest is not None and any(one.lanes[CLASSES.index(name)] for name in ("load", "store")):
            late, on = self.fresh("late"), self.fresh("on")
            same = self.new(f"icmp eq i64 {self.word(W_T)}, {expected}")
            self.put(f"br i1 {same}, label %{on}, label %{late}, !prof !0")
            with self.apart():
                self.again(late, on, one, rest)
            self.label(on)

    def again(self, late: str, on: str, one: Instruction, rest: int) -> None:
        """It took longer than its cost: does the rest of the block still go in?"""
        self.label(late)
        out = self.to(None, one.end, CODE_NEXT)
        self.put(f"br i1 {self.goes_in(rest)}, label %{on}, label %{out}")

    def called(self, one: Instruction, constant: str, rest: int | None) -> None:
        """An instruction without an arm of its own: all of the machine is in the record meanwhile."""
        system = one.op >= ops.SYSTEM_BASE
        if system:
            self.fold()
            # What the loop had counted, and the time since it looked last.
            for k, names in enumerate((state.LANES1, state.LANES2)):
                held = self.load("region", k, "%E")
                for lane, name in enumerate(names):
                    self.add_total(CLASSES.index(name), self.lane(held, state.LANE_BITS * lane, 1023))
                self.store(0, "region", k, "%E")
            since = self.load("region", W_MARK, "%E")
            self.add_total(_CYCLES, self.new(f"sub i64 {self.word(W_T)}, {since}"))
        self.spill(sorted(self.dirty))
        self.dirty = set()
        if system:
            code = self.call(self.callee.system, f"ptr {constant}")
        else:
            limit = self.new("load i64, ptr %limit")
            code = self.call(self.callee.general, f"ptr {constant}, i64 {limit}")
        self.fill((*range(REG_ZERO), REG_FS, REG_GS) if system else sorted(_written(one)))
        if system:
            self.store(self.word(W_T), "region", W_MARK, "%E")
        done, undone = self.fresh("done"), self.fresh("undone")
        if not system:
            retired = self.new(f"icmp slt i64 {code}, {CODE_NOT_RETIRED}")
            did, back = self.fresh("did"), self.fresh("back")
            self.put(f"br i1 {retired}, label %{did}, label %{back}, !prof !0")
            with self.apart():
                self.label(back)
                if one.op in STRINGS:
                    self.store(0, "iterations")
                self.leave(_signed(one.rip), code)
            self.label(did)
            self.add_word(W_T, one.cost)
            if one.op in STRINGS:
                over, again = self.fresh("over"), self.fresh("again")
                repeats = self.new(f"icmp eq i64 {code}, {CODE_REPEAT}")
                self.put(f"br i1 {repeats}, label %{again}, label %{over}")
                with self.apart():  # the loop counts iterations
                    self.label(again)
                    self.leave(_signed(one.rip), CODE_REPEAT)
                self.label(over)
                self.store(0, "iterations")
            self.count(one)
        if rest is None and not system and one.op in _SETS_RIP:
            # the block leaves with what the record has, whether an edge or not
            jump = self.fresh("jump")
            same = self.new(f"icmp eq i64 {code}, {CODE_JUMP}")
            self.put(f"br i1 {same}, label %{jump}, label %{undone}")
            with self.apart():
                self.label(undone)
                self.leave(None, code)
            self.label(jump)
            return
        self.put(f"br i1 {self.new(f'icmp eq i64 {code}, 0')}, label %{done}, label %{undone}, !prof !0")
        with self.apart():
            self.label(undone)
            if system:
                back, edge = self.fresh("back"), self.fresh("edge")
                retired = self.new(f"icmp slt i64 {code}, {CODE_NOT_RETIRED}")
                self.put(f"br i1 {retired}, label %{edge}, label %{back}")
                self.label(back)
                self.leave(_signed(one.rip), code)
                self.label(edge)
            self.leave(None, code)
        self.label(done)
        if rest is not None:
            on, late = self.fresh("on"), self.fresh("late")
            self.put(f"br label %{late}")
            self.again(late, on, one, rest)
            self.label(on)

    def function(self, name: str) -> str:
        for block in self.blocks:
            self.block(block)
        body, self.lines = self.lines + self.cold, []
        self.cold = []
        words = N_WORDS + len(_COUNTS)
        self.put(f"%words = alloca [{words} x i64], align 16")
        for n in range(words):
            self.put(f"%w{n} = getelementptr i64, ptr %words, i64 {n}")
        for place in ("ret", "outer", "exc", "code", "limit"):
            self.put(f"%{place} = alloca i64")
        for n in (REG_ZERO, W_TARGET, W_PC, W_LATE + 1, W_LATE + 2, *range(REG_GS + 1, N_REGS)):
            self.put_word(n, 0)
        self.fill((*range(REG_ZERO), REG_FS, REG_GS))
        ring = self.load("cpl")
        self.put(f"%row = zext i1 {self.new(f'icmp ne i64 {ring}, 0')} to i64")
        offset = self.new(f"mul i64 %row, {8 * N_CLASSES}")
        totals = self.field("total")
        self.put(f"%total = getelementptr i8, ptr {totals}, i64 {offset}")
        for k, word in enumerate(_KEPT):
            self.put_word(word, self.load("region", W_WIDE + k, "%E"))
        self.put(f"store i64 {self.load('region', W_LIMIT, '%E')}, ptr %limit")
        self.put("br label %block0")
        self.lines += body
        self.label("out")
        self.spill(self.registers)
        code = self.new("load i64, ptr %code")
        self.put(f"br i1 {self.new(f'icmp ule i64 {code}, {CODE_JUMP}')}, label %onward, label %leave")
        self.label("onward")
        self.put(f'call i32 @"{self.callee.onward}"(ptr %outer, ptr %exc, ptr %core, ptr %E)')
        there = self.new("load i64, ptr %outer")
        self.put(f"br i1 {self.new(f'icmp eq i64 {there}, 0')}, label %leave, label %chain")
        self.label("chain")
        for k, word in enumerate(_KEPT):
            self.store(self.word(word), "region", W_WIDE + k, "%E")
        place = self.new(f"inttoptr i64 {there} to ptr")
        given = "ptr noalias %core, ptr noalias %M, i64 %size, ptr noalias %E"
        self.put(f"ret i64 {self.new(f'musttail call i64 {place}({given})')}")
        self.label("leave")
        self.fold()
        self.put(f"ret i64 {code}")
        self.constants.append(
            f"@none = private constant [{state.UOP.itemsize} x i8] zeroinitializer, align 8"
        )
        first = "ptr, ptr, ptr, ptr, ptr, i64, i64, ptr, i64, i64, ptr"
        arms = [arm_symbol(self.callee.step, arm) for arm in sorted(self.arms)]
        declare = [f'declare i32 @"{each}"({first}, ptr, ptr, i64)' for each in arms]
        declare.append(f'declare i32 @"{self.callee.general}"({first}, ptr, i64)')
        declare.append(f'declare i32 @"{self.callee.system}"({first}, ptr)')
        declare.append(f'declare i32 @"{self.callee.onward}"(ptr, ptr, ptr, ptr)')
        head = f"define i64 @{name}(ptr noalias %core, ptr noalias %M, i64 %size, ptr noalias %E) {{"
        weights = '!0 = !{!"branch_weights", i32 2000, i32 1}'
        return "\n".join([*declare, *self.constants, head, *self.lines, "}", weights, ""])


_SETS_RIP = frozenset(
    ops.COLD_OP[name] for name in ("jmp", "call", "ret", "loop", "loope", "loopne", "jrcxz")
)


def _written(one: Instruction) -> set[int]:
    """Registers that an instruction may write, more rather than fewer."""
    if one.op >= ops.SYSTEM_BASE:
        return set(range(REG_ZERO))
    named = {one.data[_offset(state.UOP, "a")]}
    if one.op < ops.COLD_BASE:
        return (named | _IMPLICIT.get(one.op, set())) & set(range(REG_ZERO))
    named |= {one.data[_offset(state.UOP, "r")], one.data[_offset(state.UOP, "cc")] & 15}
    return (named | set(range(8) if one.op in _FIXED else ())) & set(range(REG_ZERO))


class _Apart:
    """Lines for the end of the function."""

    def __init__(self, writer: _Writer) -> None:
        self.writer = writer

    def __enter__(self) -> None:
        self.kept, self.writer.lines = self.writer.lines, []

    def __exit__(self, *_: object) -> None:
        self.writer.cold += self.writer.lines
        self.writer.lines = self.kept


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def function(name: str, callee: Callee, blocks: Sequence[Block]) -> str:
    """The text of the function `name` of a region."""
    return _Writer(callee, blocks).function(name)
