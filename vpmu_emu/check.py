"""Guests say in comments what must hold after a run; here it is read, and the run is judged by it.

Lines `#: key value` of a guest (GNU as sees comments):

    #: cpu spr
    #: args --filter deny-c0.toml
    #: modes bare emulated passthrough
    #: expect all: pmc0 == insns(first, last) + 1
    #: expect emulated passthrough: exits.CPUID >= 3

A guest of a conformance row also says which one, whose kernels it holds for (left out: what its modes
stand for), and the test that it re-expresses:

    #: row P6 P7
    #: kernels silicon linux-7.0
    #: upstream x86/pmu.c check_gp_counters

A program of the host names the guest that it runs beside:

    #: guest ../lessons/01_count.s

An expectation compares two expressions with `== != < <= > >=`. They are made of integers,
`+ - * / % & | ^ << >> ~ ( )` and names: pmcN, fixedN, global_status, registers, exits.NAME,
msr.NAME.reads|writes|exits, perf.NAME, pmis, pmis_hw, exit_code, serial, stop, instructions, cycles,
mem8(a) … mem64(a), insns(a, b), printed("text"), the number behind that text on the last line of the
serial port that begins with it, and the symbols of the program.

A run that ends otherwise than by debug-exit is a failure, unless a line expects that: `stop == "halted"`.
"""

from __future__ import annotations

import ast
import difflib
import keyword
import operator
import re
import shlex
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import attrs

from vpmu_emu.errors import AssemblyError, ConfigError, VpmuError
from vpmu_emu.tables.modes import KERNELS, MODES

MOST_CYCLES = 10_000_000_000  # of a guest that has no `--max-cycles` in its `args`
KEYS = ("cpu", "args", "modes", "expect", "guest", "row", "kernels", "upstream")
ROW = re.compile(r"[A-Z]\d+|X-[a-z0-9-]+")

Value = int | str | None


class ProgramLike(Protocol):
    """What an expectation needs of an assembled program."""

    @property
    def symbols(self) -> Mapping[str, int]:
        """Labels and absolute names."""
        ...

    def insns(self, a: int | str, b: int | str) -> int:
        """Instructions assembled in [a, b)."""
        ...


class Outcome(Protocol):
    """What an expectation needs of a finished run."""

    @property
    def values(self) -> dict[str, Any]:
        """The result as in `docs/schema.json`, with `registers`."""
        ...

    def read(self, address: int, size: int) -> bytes:
        """Guest memory at the end of the run."""
        ...


Runner = Callable[[Any, str, str | None, Sequence[str]], Outcome]


class CheckError(VpmuError):
    """An expectation that cannot be understood; says where, with a caret."""

    def __init__(
        self, file: str, line: int, message: str, source: str = "", column: int = 0, hint: str = ""
    ) -> None:
        self.file, self.line, self.column = file, line, column
        text = f"{file}:{line}: {message}"
        if source:
            text += f"\n    {source}\n    {' ' * column}^"
        if hint:
            text += f"\n  hint: {hint}"
        super().__init__(text)


@attrs.frozen
class Expectation:
    """One comparison, and the modes in which it must hold."""

    file: str
    line: int
    modes: tuple[str, ...]
    text: str
    left: ast.expr
    op: str
    right: ast.expr
    source: str  # the whole line, for carets
    column: int  # of `text` in it


@attrs.frozen
class Plan:
    """All that the comments of one guest ask for."""

    file: str
    modes: tuple[str, ...]
    cpu: str | None
    args: tuple[str, ...]
    expectations: tuple[Expectation, ...]
    rows: tuple[str, ...] = ()  # conformance rows that this guest stands for
    kernels: tuple[str, ...] = ()  # of KERNELS, in its order
    upstream: str = ""
    guest: str = ""  # this is a program of the host; the guest beside it
    lines: tuple[tuple[int, str], ...] = ()  # where `cpu` and `args` come from


@attrs.frozen
class Verdict:
    """One expectation in one mode."""

    expectation: Expectation
    mode: str
    ok: bool
    left: Value
    right: Value
    message: str = ""

    def __str__(self) -> str:
        e = self.expectation
        head = f"{e.file}:{e.line}: [{self.mode}] {e.text}"
        if self.ok:
            return head
        if self.message:
            return f"{head}\n    {self.message}"
        return f"{head}\n    left is {show(self.left)}, right is {show(self.right)}"

    def to_json(self) -> dict[str, Any]:
        """The verdict as plain data."""
        e = self.expectation
        return {
            "file": e.file, "line": e.line, "mode": self.mode, "expect": e.text, "ok": self.ok,
            "left": self.left, "right": self.right, "message": self.message,
        }  # fmt: skip


def show(value: Value) -> str:
    """A value as a reader compares it: text quoted, large numbers in hex too."""
    if value is None:
        return "null"
    if isinstance(value, str):
        return repr(value)
    return str(value) if -10 < value < 4096 else f"{value} ({value:#x})"


# --- reading ------------------------------------------------------------------------------------

OPERATORS: dict[type[ast.AST], tuple[str, Callable[[Any, Any], bool]]] = {
    ast.Eq: ("==", operator.eq),
    ast.NotEq: ("!=", operator.ne),
    ast.Lt: ("<", operator.lt),
    ast.LtE: ("<=", operator.le),
    ast.Gt: (">", operator.gt),
    ast.GtE: (">=", operator.ge),
}
COMPARE = dict(OPERATORS.values())

ARITHMETIC: dict[type[ast.AST], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.floordiv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
    ast.LShift: lambda a, b: a << min(b, 64),
    ast.RShift: operator.rshift,
}
UNARY: dict[type[ast.AST], Callable[[int], int]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Invert: operator.invert,
}
MEMORY = {"mem8": 1, "mem16": 2, "mem32": 4, "mem64": 8}
PLAIN = (
    "global_status", "pmis", "pmis_hw", "exit_code", "serial", "stop", "instructions", "cycles",
)  # fmt: skip
REGISTERS = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags",
)  # fmt: skip
COUNTER = re.compile(r"pmc\d|fixed\d")
TEXTS = ("serial", "stop")
NORMAL_STOP = "debug-exit"
LONGEST = 2000  # characters of an expression
DEEPEST = 100  # operators within operators
MOST_BITS = 128  # of what comes out on the way
PERF = ("nmis", "timer_irqs", "vpmi_irqs", "rotations", "throttles", "too_long", "max_sample_rate")


def read_plan(
    file: str, lines: Iterable[tuple[int, str]], program: ProgramLike, modes: Sequence[str]
) -> Plan:
    """Understand the `#:` lines of one guest.

    Args:
        file: name for messages.
        lines: (line number, text after `#:`), in order.
        program: the assembled guest, whose symbols may be used.
        modes: every mode that exists.

    Raises:
        CheckError: an unknown key, mode or name, or a broken expression; with its place.
    """
    lines = list(lines)
    found: dict[str, tuple[str, ...]] = {}
    cpu: str | None = None
    upstream = guest = ""
    expectations = []
    for number, text in lines:
        key, _, value = text.strip().partition(" ")
        where = (file, number)
        if key not in KEYS:
            raise CheckError(*where, f"unknown key {key!r}", hint=_nearest(key, KEYS))
        if key == "cpu":
            cpu = value.strip()
        elif key == "args":
            found["args"] = found.get("args", ()) + _args(value, where)
        elif key == "modes":
            found["modes"] = _modes(value, modes, where)
        elif key in ("row", "kernels"):
            found[key] = found.get(key, ()) + _words(key, value, where)
        elif key == "upstream":
            upstream = value.strip()
        elif key == "guest":
            guest = str(Path(file).parent / value.strip())
            if not Path(guest).is_file():
                raise CheckError(*where, f"no such guest: {guest}")
    named = found.get("modes", tuple(m for m in modes if MODES[m].default))
    for number, text in lines:
        key, _, value = text.strip().partition(" ")
        if key == "expect":
            expectations.append(_expectation(file, number, value.strip(), program, named))
    kernels = found.get("kernels", [MODES[mode].kernel.name for mode in named])
    return Plan(
        file, named, cpu, found.get("args", ()), tuple(expectations), found.get("row", ()),
        tuple(kernel for kernel in KERNELS if kernel in kernels), upstream,
        guest, tuple((n, text) for n, text in lines if text.split(" ", 1)[0] in ("cpu", "args")),
    )  # fmt: skip


def _args(value: str, where: tuple[str, int]) -> tuple[str, ...]:
    from vpmu_emu.options import parse

    try:
        words = tuple(shlex.split(value))
        parse(words)
    except ValueError as error:
        raise CheckError(*where, f"args: {error}") from None
    except ConfigError as error:
        raise CheckError(*where, str(error)) from None
    return words


def _words(key: str, value: str, where: tuple[str, int]) -> tuple[str, ...]:
    words = tuple(value.replace(",", " ").split())
    if not words:
        raise CheckError(*where, f"{key}: nothing named")
    for word in words:
        if key == "row" and not ROW.fullmatch(word):
            raise CheckError(
                *where, f"no row can be called {word!r}", hint="P6, or X-os-bit for a row of our own"
            )
        if key == "kernels" and word not in KERNELS:
            raise CheckError(
                *where, f"unknown kernel {word!r}", hint=_nearest(word, KERNELS)
            )
    return words


def _modes(text: str, known: Sequence[str], where: tuple[str, int]) -> tuple[str, ...]:
    names = tuple(text.replace(",", " ").split())
    for name in names:
        if name not in known:
            raise CheckError(*where, f"unknown mode {name!r}", hint=_nearest(name, known))
    if not names:
        raise CheckError(*where, "no mode named", hint=f"modes are {', '.join(known)}")
    return names


def _expectation(
    file: str, line: int, value: str, program: ProgramLike, modes: tuple[str, ...]
) -> Expectation:
    source = f"#: expect {value}"
    head, colon, text = value.partition(":")
    if not colon:
        raise CheckError(
            file, line, "no modes before the comparison", source, len("#: expect "),
            "write `expect all: A == B`",
        )  # fmt: skip
    chosen = modes if head.strip() == "all" else _modes(head, ("all", *modes), (file, line))
    column = len(source) - len(text) + (len(text) - len(text.lstrip()))
    text = text.strip()

    def fail(message: str, at: int, hint: str = "") -> CheckError:
        # Python counts columns in bytes.
        data = _no_keywords(text).encode(errors="surrogatepass")[:at]
        return CheckError(file, line, message, source, column + len(data.decode(errors="ignore")), hint)

    tree = _parsed(text, fail)
    if not isinstance(tree, ast.Compare):
        raise fail("not a comparison", 0, "write `A == B`; operators are == != < <= > >=")
    if len(tree.ops) != 1:
        raise fail("one comparison a line", tree.comparators[0].end_col_offset or 0)
    if type(tree.ops[0]) not in OPERATORS:
        raise fail("unknown comparison", tree.left.end_col_offset or 0, "use == != < <= > >=")
    left, right = tree.left, tree.comparators[0]
    texts = _is_text(left) or _is_text(right)
    if texts:
        left, right = _as_text(left, fail), _as_text(right, fail)
    _validate(left, program, fail, texts)
    _validate(right, program, fail, texts)
    if ast.dump(left) == ast.dump(right):
        raise fail("both sides are the same", right.col_offset)
    if not (_has_observed(left) or _has_observed(right)):
        raise fail("nothing here depends on the run", 0)
    op = OPERATORS[type(tree.ops[0])][0]
    if texts and op not in ("==", "!="):
        raise fail("text can only be equal or not", tree.left.end_col_offset or 0)
    return Expectation(file, line, chosen, text, left, op, right, source, column)


def _parsed(text: str, fail: Callable[..., CheckError]) -> ast.expr:
    """The tree of an expression, which is no deeper than what follows can walk."""
    if len(text) > LONGEST:
        raise fail(f"longer than {LONGEST} characters", 0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Python about Python
            tree = ast.parse(_no_keywords(text), mode="eval").body
    except SyntaxError as error:
        raise fail(f"cannot read this ({error.msg})", (error.offset or 1) - 1) from None
    except ValueError as error:  # NUL bytes, bytes that are not UTF-8
        raise fail(f"cannot read this ({error})", 0) from None
    except (RecursionError, MemoryError):
        raise fail("nested too deeply", 0) from None
    level: list[ast.AST] = [tree]
    for _ in range(DEEPEST):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
        if not level:
            return tree
    raise fail("nested too deeply", 0)


def _as_text(node: ast.expr, fail: Callable[..., CheckError]) -> ast.expr:
    """A side of a comparison with text: a bare word is text, whatever else has that name."""
    if isinstance(node, ast.Name) and node.id not in TEXTS:
        return ast.copy_location(ast.Constant(node.id), node)
    if isinstance(node, ast.BinOp | ast.UnaryOp):
        raise fail("text is a word, or stands in quotes", node.col_offset, 'stop == "max-insns"')
    return node


def _no_keywords(text: str) -> str:
    # A label may be called `pass`. Written with a full-width first letter, Python takes a keyword for
    # a name, and gives that name its plain letters back (PEP 3131).
    def widen(match: re.Match[str]) -> str:
        word = match[0]
        if keyword.iskeyword(word) and word not in ("not", "and", "or", "in", "is", "lambda"):
            return chr(ord(word[0]) - 0x21 + 0xFF01) + word[1:]
        return word

    return re.sub(r"(?<![\w'\"])[a-z]+(?![\w'\"])", widen, text)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in TEXTS


def _validate(
    node: ast.expr,
    program: ProgramLike,
    fail: Callable[..., CheckError],
    texts: bool,
    place: bool = False,
) -> None:
    at = node.col_offset
    match node:
        case ast.Constant(value=bool() | None | float() | complex() | bytes()):
            raise fail("not an integer", at)
        case ast.Constant(value=str()) if not texts:
            raise fail("text compares with `serial` or `stop` only", at)
        case ast.Constant(value=int(value)) if value >= 1 << 64:
            raise fail("a number of more than 64 bits", at)
        case ast.Constant():
            return
        case ast.BinOp(left=left, op=op, right=right):
            if type(op) not in ARITHMETIC:
                raise fail("unknown operator", at, "use + - * / % & | ^ << >>")
            _validate(left, program, fail, False, place)
            _validate(right, program, fail, False, place)
        case ast.UnaryOp(op=op, operand=operand):
            if type(op) not in UNARY:
                raise fail("unknown operator", at, "use - ~")
            _validate(operand, program, fail, False, place)
        case ast.Name(id=name):
            if name in program.symbols and _of_run(name) and not place:
                raise fail(
                    f"{name!r} is a name of this program and a value of the run", at,
                    "give the program's another name; in mem8(…) and insns(…) it is the program's",
                )  # fmt: skip
            if name in program.symbols or name in PLAIN or name in REGISTERS:
                return
            if COUNTER.fullmatch(name) or texts:
                return
            known = [*PLAIN, *REGISTERS, "pmc0", "fixed0", *program.symbols]
            raise fail(f"nothing is called {name!r}", at, _nearest(name, known))
        case ast.Attribute():
            _validate_path(_path(node), fail, at)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in MEMORY:
            if len(args) != 1:
                raise fail(f"{name} takes one address", at)
            _validate(args[0], program, fail, False, place=True)
        case ast.Call(func=ast.Name(id="insns"), args=args, keywords=[]):
            if len(args) != 2:
                raise fail("insns takes two labels", at, "insns(first, end)")
            for arg in args:
                _validate(arg, program, fail, False, place=True)
        case ast.Call(func=ast.Name(id="printed"), args=[ast.Constant(value=str())], keywords=[]):
            return
        case ast.Call(func=ast.Name(id="printed")):
            raise fail("printed takes one text", at, 'printed("samples ")')
        case ast.Call(func=ast.Name(id=name)):
            raise fail(f"no function {name!r}", at, "mem8 mem16 mem32 mem64 insns printed")
        case _:
            raise fail("not allowed here", at)


def _of_run(name: str) -> bool:
    return name in PLAIN or name in REGISTERS or bool(COUNTER.fullmatch(name))


def _path(node: ast.expr) -> list[str]:
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    names.insert(0, node.id if isinstance(node, ast.Name) else "?")
    return names


def _validate_path(path: list[str], fail: Callable[..., CheckError], at: int) -> None:
    if path[0] == "exits" and len(path) == 2:
        known = exit_names()
        if path[1] not in known:
            raise fail(f"no exit reason is called {path[1]!r}", at, _nearest(path[1], known))
    elif path[0] == "msr" and len(path) == 3:
        if path[2] not in ("reads", "writes", "exits"):
            raise fail(f"an MSR has reads, writes and exits, not {path[2]!r}", at)
        names = msr_names()
        if path[1] not in names:
            raise fail(f"no MSR is called {path[1]!r}", at, _nearest(path[1], names))
    elif path[0] == "perf" and len(path) == 2:
        if path[1] not in PERF:
            raise fail(f"perf has no number {path[1]!r}", at, _nearest(path[1], PERF))
    else:
        raise fail(
            f"nothing is called {'.'.join(path)!r}", at,
            "exits.NAME, msr.NAME.reads|writes|exits or perf.NAME",
        )  # fmt: skip


def exit_names() -> dict[str, str]:
    """Every name of an exit reason, aliases included, with the name that results use."""
    from vpmu_emu.tables.exits import EXITS

    return {name: row.name for row in EXITS for name in (row.name, *row.aliases)}


def msr_names() -> dict[str, str]:
    """Every name of an MSR, the kernel's included, with the name that results use."""
    from vpmu_emu.tables.msrs import NAMES, msr_name

    return {name: msr_name(index) for name, index in NAMES.items()}


def _nearest(name: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(name, list(known), 1, 0.6)
    return f"did you mean {found[0]}?" if found else ""


def evaluate_text(
    text: str, program: ProgramLike, outcome: Outcome, *, place: bool = False
) -> Value:
    """The value of one expression over a run, as a debugger's user writes it.

    With `place` it is an address: names of the program come before values of the run.

    Raises:
        CheckError: what cannot be read, with a caret; VpmuError: what this run does not have.
    """

    def fail(message: str, at: int, hint: str = "") -> CheckError:
        return CheckError("expression", 1, message, text, at, hint)

    tree = _parsed(text.strip(), fail)
    _validate(tree, program, fail, False, place)
    try:
        return evaluate(tree, program, outcome, place)
    except _Unknown as error:
        raise VpmuError(str(error)) from None


# --- judging --------------------------------------------------------------------------------------


class _Unknown(Exception):
    """A value that this run does not have."""


def evaluate(
    node: ast.expr, program: ProgramLike, outcome: Outcome, place: bool = False
) -> Value:
    """The value of one side of an expectation after a run; of an address if `place`."""
    values = outcome.values

    def number(inner: ast.expr, place: bool = place) -> int:
        found = evaluate(inner, program, outcome, place)
        if not isinstance(found, int):
            raise _Unknown(f"{ast.unparse(inner)} is {show(found)}, not a number")
        return found

    match node:
        case ast.Constant(value=value):
            return value  # type: ignore[return-value]
        case ast.BinOp(left=left, op=op, right=right):
            try:
                result = ARITHMETIC[type(op)](number(left), number(right))
            except (ZeroDivisionError, ValueError) as error:
                raise _Unknown(f"{ast.unparse(node)}: {error}") from None
            if abs(result) >> MOST_BITS:
                raise _Unknown(f"{ast.unparse(node)}: more than {MOST_BITS} bits")
            return result
        case ast.UnaryOp(op=op, operand=operand):
            return UNARY[type(op)](number(operand))
        case ast.Call(func=ast.Name(id="insns"), args=[first, last]):
            return program.insns(number(first, True), number(last, True))
        case ast.Call(func=ast.Name(id="printed"), args=[ast.Constant(value=str(text))]):
            return _printed(text, values["serial"])
        case ast.Call(func=ast.Name(id=name), args=[address]):
            return int.from_bytes(outcome.read(number(address, True), MEMORY[name]), "little")
        case ast.Name(id=name):
            if place and name in program.symbols:
                return program.symbols[name]
            if COUNTER.fullmatch(name):
                if name not in values["counters"]:
                    raise _Unknown(f"this machine has no counter {name}")
                return int(values["counters"][name])
            if name in REGISTERS:
                return int(values["registers"][name])
            if name in PLAIN:
                found: Value = values[name]
                return found
            return program.symbols[name]
        case ast.Attribute():
            path = _path(node)
            if path[0] == "exits":
                return int(values["exits"].get(exit_names()[path[1]], 0))
            if path[0] == "perf":
                if "perf" not in values:
                    raise _Unknown("there is no host whose perf could say anything")
                return int(values["perf"][path[1]])
            row = values["msr"].get(msr_names()[path[1]], {})
            return int(row.get(path[2], 0))
    raise AssertionError(node)


def _printed(text: str, serial: str) -> int:
    found = re.findall(rf"^{re.escape(text)}\s*(-?\d+)", serial, re.MULTILINE)
    if not found:
        raise _Unknown(f"no line of the serial port is {text!r} and a number")
    return int(found[-1])


def judge(
    expectation: Expectation, mode: str, program: ProgramLike, outcome: Outcome
) -> Verdict:
    """Whether `expectation` holds after the run `outcome`."""
    left: Value = None
    right: Value = None
    try:
        left = evaluate(expectation.left, program, outcome)
        right = evaluate(expectation.right, program, outcome)
        # `pmc0 == -1` means the 64-bit pattern.
        left, right = (v & (1 << 64) - 1 if isinstance(v, int) and v < 0 else v for v in (left, right))
        if expectation.op not in ("==", "!=") and (left is None or right is None):
            raise _Unknown(f"left is {show(left)}, right is {show(right)}")
        ok = COMPARE[expectation.op](left, right)
        return Verdict(expectation, mode, ok, left, right)
    except (_Unknown, VpmuError) as error:
        return Verdict(expectation, mode, False, left, right, str(error))


def perturbed(expectation: Expectation, verdict: Verdict) -> Iterator[tuple[str, list[Expectation]]]:
    """Every constant of the expectation with the changes that it should notice.

    Gives (what was altered, candidates): at least one candidate must fail. An equality must notice
    the smallest change; a bound is moved to just beyond the value that the run gave.
    """
    sides = [side for side in (expectation.left, expectation.right) if _constants(side)]
    if not sides:  # two observed values: their difference is the constant, 0
        moved = ast.BinOp(expectation.right, ast.Add(), ast.Constant(1))
        back = ast.BinOp(expectation.right, ast.Sub(), ast.Constant(1))
        yield "+ 0", [attrs.evolve(expectation, right=moved), attrs.evolve(expectation, right=back)]
        return
    seen = verdict.left if isinstance(verdict.left, int) else 0
    other = verdict.right if isinstance(verdict.right, int) else 0
    for side in sides:
        for leaf in _constants(side):
            if (isinstance(leaf, ast.Constant) and isinstance(leaf.value, str)) or (
                isinstance(leaf, ast.Name) and _text_side(expectation)
            ):
                changes: list[ast.expr] = [ast.Constant("\0" + ast.unparse(leaf))]
            else:
                gap = seen - other
                steps = [1, 1024]  # the second for what a division rounds away
                if expectation.op != "==":
                    steps = [1, -1, gap, gap + 1, gap - 1, -gap, -gap + 1, -gap - 1, 1 << 62]
                changes = [ast.BinOp(leaf, ast.Add(), ast.Constant(step)) for step in steps]
            sides_with = [_swap(side, leaf, change) for change in changes]
            if side is expectation.left:
                found = [attrs.evolve(expectation, left=new) for new in sides_with]
            else:
                found = [attrs.evolve(expectation, right=new) for new in sides_with]
            if expectation.op in ("<=", ">="):
                # Values have no sign: nothing lies below 0, but the bound itself can be left out.
                found += [attrs.evolve(new, op=expectation.op[0]) for new in found]
            yield ast.unparse(leaf), found


def _text_side(expectation: Expectation) -> bool:
    return _is_text(expectation.left) or _is_text(expectation.right)


def _observed(node: ast.expr) -> bool:
    match node:
        case ast.Name(id=name):
            return name in PLAIN or name in REGISTERS or bool(COUNTER.fullmatch(name))
        case ast.Attribute():
            return True
        case ast.Call(func=ast.Name(id=name)):
            return name in MEMORY or name == "printed"
    return False


def _constants(node: ast.expr) -> list[ast.expr]:
    # Leaves that say what is expected: not what the run gives, nor masks and addresses beside it.
    if _observed(node):
        return []
    match node:
        case ast.BinOp(left=left, op=op, right=right):
            if isinstance(op, (ast.BitAnd, ast.LShift, ast.RShift, ast.Mod, ast.Div, ast.Mult)) and (
                _has_observed(left) or _has_observed(right)
            ):
                return []
            return _constants(left) + _constants(right)
        case ast.UnaryOp(operand=operand):
            return _constants(operand)
    return [node]


def _has_observed(node: ast.expr) -> bool:
    return any(_observed(inner) for inner in ast.walk(node) if isinstance(inner, ast.expr))


def _swap(tree: ast.expr, leaf: ast.expr, new: ast.expr) -> ast.expr:
    if tree is leaf:
        return new
    match tree:
        case ast.BinOp(left=left, op=op, right=right):
            return ast.BinOp(_swap(left, leaf, new), op, _swap(right, leaf, new))
        case ast.UnaryOp(op=op, operand=operand):
            return ast.UnaryOp(op, _swap(operand, leaf, new))
    return tree


# --- whole files ----------------------------------------------------------------------------------


@attrs.frozen
class FileReport:
    """What became of one guest."""

    file: str
    verdicts: tuple[Verdict, ...] = ()
    blind: tuple[str, ...] = ()  # under --perturb: expectations that noticed nothing
    error: str = ""  # why it could not be checked at all
    notes: tuple[str, ...] = ()  # what the machine could not do for the guest
    stops: tuple[str, ...] = ()  # runs that ended as nothing expects

    @property
    def failed(self) -> int:
        """How much does not hold."""
        return sum(not v.ok for v in self.verdicts) + len(self.stops)

    @property
    def ok(self) -> bool:
        """Nothing failed, and there was something to fail."""
        return not self.error and not self.blind and not self.failed

    def to_json(self) -> dict[str, Any]:
        """The report as plain data."""
        return {
            "file": self.file, "ok": self.ok, "error": self.error, "blind": list(self.blind),
            "notes": list(self.notes), "stops": list(self.stops),
            "expectations": [v.to_json() for v in self.verdicts],
        }  # fmt: skip


def find_guests(paths: Sequence[str | Path]) -> list[Path]:
    """Files as named, and every `.s` file with `#:` lines below each folder, in order.

    Raises:
        CheckError: a path that does not exist, or a folder with nothing to check.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = [p for p in sorted(path.rglob("*.s")) if _may_be_guest(p)]
            if not inside:
                raise VpmuError(f"{path}: no guest with `#: expect` lines in this folder")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise VpmuError(f"{path}: no such file or folder")
    return list(dict.fromkeys(found))


def _may_be_guest(path: Path) -> bool:
    # What cannot be read is one, so that its turn says why.
    if path.is_dir():
        return False
    try:
        return not path.is_file() or re.search(rb"^#:", path.read_bytes(), re.MULTILINE) is not None
    except OSError:
        return True


def run_as_asked(
    program: Any, mode: str, cpu: str | None, args: Sequence[str], inject: Sequence[str] = (),
    ready: Callable[[Sequence[str]], None] | None = None,
) -> Outcome:
    """A `Runner` for real: the options of `vpmu run`, a filter beside the guest found by name.

    `inject` names deliberate bugs, beside those that `args` may name; `ready` is called with the mode once
    nothing is wrong with what was asked, and before compiled code is needed.

    Raises:
        VpmuError: whatever is wrong with the options.
    """
    from vpmu_emu.options import parse
    from vpmu_emu.system import check_left_out, run

    def beside(path: str) -> str:
        found = Path(program.name).parent / path
        return str(found) if found.exists() else path

    asked = parse(args, max_cycles=MOST_CYCLES, vpmu=mode)
    options = attrs.evolve(
        asked,
        cpu=asked.cpu if cpu is None else cpu,
        filter=beside(asked.filter) if asked.filter else asked.filter,
        host=tuple(beside(path) for path in asked.host),
        inject=(*asked.inject, *inject),
    )
    heeded = options.heeded()
    if heeded != options:
        # Every mode takes the same line: what this one has no use for is looked at and left out.
        check_left_out(options)
    return run(program, heeded, ready=(lambda: ready([mode])) if ready is not None else None)


def check_program(
    program: Any, plan: Plan, runner: Runner, *, perturb: bool = False
) -> FileReport:
    """Run `program` in every mode of its plan and judge every expectation.

    Args:
        program: the assembled guest.
        plan: from `read_plan`.
        runner: called with (program, mode, cpu or None, args); gives an `Outcome`.
        perturb: also alter every expected constant; an expectation that stays green is `blind`.
    """
    if not plan.expectations:
        return FileReport(plan.file, error=f"{plan.file}: no `#: expect` line, so nothing can fail")
    subject, args = program, plan.args
    if plan.guest:
        from vpmu_emu.load import load

        subject, args = load(plan.guest), (*args, "--host", plan.file)
    verdicts = []
    blind = []
    notes = []
    stops = []
    for mode in plan.modes:
        asked = [e for e in plan.expectations if mode in e.modes]
        if not asked:
            continue
        try:
            outcome = runner(subject, mode, plan.cpu, args)
        except AssemblyError:
            raise
        except VpmuError as error:
            raise _placed(error, plan) from None
        if missing := outcome.values.get("unsupported"):
            notes.append(f"[{mode}] {missing['text']}")
        if lost := outcome.values.get("lost", {}).get("serial"):
            notes.append(f"[{mode}] {lost:,} characters more than are kept were written to the serial port")
        stop_expected = outcome.values["stop"] == NORMAL_STOP
        for expectation in asked:
            verdict = judge(expectation, mode, program, outcome)
            verdicts.append(verdict)
            stop_expected |= verdict.ok and _names_stop(expectation)
            if not perturb or not verdict.ok:
                continue
            for what, candidates in perturbed(expectation, verdict):
                if all(judge(c, mode, program, outcome).ok for c in candidates):
                    blind.append(
                        f"{expectation.file}:{expectation.line}: [{mode}] {expectation.text}\n"
                        f"    stays green whatever {what} is"
                    )
        if not stop_expected:
            stops.append(_stop_text(plan.file, mode, outcome.values))
    return FileReport(
        plan.file, tuple(verdicts), tuple(blind), notes=tuple(notes), stops=tuple(stops)
    )


def _names_stop(expectation: Expectation) -> bool:
    sides = (expectation.left, expectation.right)
    return expectation.op == "==" and any(isinstance(s, ast.Name) and s.id == "stop" for s in sides)


def _stop_text(file: str, mode: str, values: Mapping[str, Any]) -> str:
    stop = values["stop"]
    at = f" at rip {values['stop_rip']:#x}" if "stop_rip" in values else ""
    line = f" ({values['stop_line']})" if values.get("stop_line") else ""
    return (
        f"{file}: [{mode}] ended by {stop}{at}{line}, not by {NORMAL_STOP}\n"
        f'  hint: if that is meant, write `#: expect {mode}: stop == "{stop}"`'
    )


def _placed(error: VpmuError, plan: Plan) -> VpmuError:
    """An error of the settings with the line that they come from, as far as that can be told."""
    option = error.key.split(".")[0].split()[0] if isinstance(error, ConfigError) and error.key else ""
    for number, text in plan.lines:
        key, _, value = text.partition(" ")
        words = value.split()
        named = key == option or f"--{option}" in (word.split("=")[0] for word in words)
        if named or any(len(word) > 2 and word.strip("'\"") in str(error) for word in words):
            return CheckError(plan.file, number, str(error))
    return error
