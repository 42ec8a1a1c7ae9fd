"""The language of `#: expect`: two expressions over a finished run, valued as whole numbers or text.

An expectation compares with `== != < <= > >=`. Expressions are made of integers,
`+ - * / % & | ^ << >> ~ ( )` and names: pmcN, fixedN, global_status, registers, exits.NAME,
msr.NAME.reads|writes|exits, perf.NAME, kvm.NAME, work.ROW.count|cycles, hw.NAME, cycles_by.NAME, pmis,
pmis_hw, exit_code, serial, stop, instructions, cycles, mem8(a) … mem64(a), insns(a, b), printed("text"),
the number behind that text on the last line of the serial port that begins with it, counted("event"), the
count of an event of the host, log("text"), the lines of the kernel's log with that text, and the symbols
of the program.
"""

from __future__ import annotations

import ast
import difflib
import keyword
import operator
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import attrs

from vpmu_emu.errors import VpmuError

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


def show(value: Value) -> str:
    """A value as a reader compares it: text quoted, large numbers in hex too."""
    if value is None:
        return "null"
    if isinstance(value, str):
        return repr(value)
    return str(value) if -10 < value < 4096 else f"{value} ({value:#x})"


# --- reading ------------------------------------------------------------------------------------

QUOTING = ("printed", "counted", "log")  # functions of one text
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
HARDWARE = re.compile(r"pmc\d|fixed\d|eventsel\d|fixed_ctr_ctrl|global_ctrl|global_status|lvtpc")
TEXTS = ("serial", "stop")
LONGEST = 2000  # characters of an expression
DEEPEST = 100  # operators within operators
MOST_BITS = 128  # of what comes out on the way
PERF = (
    "nmis", "timer_irqs", "vpmi_irqs", "pmis_misattributed", "pmis_lost", "nmis_unclaimed", "rotations",
    "throttles", "too_long", "max_sample_rate", "hz",
)  # fmt: skip
KVM = (
    "entries", "fastpaths", "emulated_instructions", "created", "released", "resumed", "paused", "loads",
    "puts", "dirty_puts", "loaded_insns",
)  # fmt: skip


def named_modes(text: str, known: Sequence[str], where: tuple[str, int]) -> tuple[str, ...]:
    """The modes of a list, of those that are `known`; `where` is (file, line).

    Raises:
        CheckError: none, or an unknown one.
    """
    names = tuple(text.replace(",", " ").split())
    for name in names:
        if name not in known:
            raise CheckError(*where, f"unknown mode {name!r}", hint=nearest(name, known))
    if not names:
        raise CheckError(*where, "no mode named", hint=f"modes are {', '.join(known)}")
    return names


def expectation_of(
    file: str, line: int, value: str, program: ProgramLike, modes: tuple[str, ...]
) -> Expectation:
    """What stands behind `#: expect`; `all` are `modes`.

    Raises:
        CheckError: what cannot be read, with a caret.
    """
    source = f"#: expect {value}"
    head, colon, text = value.partition(":")
    if not colon:
        raise CheckError(
            file, line, "no modes before the comparison", source, len("#: expect "),
            "write `expect all: A == B`",
        )  # fmt: skip
    chosen = modes if head.strip() == "all" else named_modes(head, ("all", *modes), (file, line))
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
    texts = is_text(left) or is_text(right)
    if texts:
        left, right = _as_text(left, fail), _as_text(right, fail)
    _validate(left, program, fail, texts)
    _validate(right, program, fail, texts)
    if ast.dump(left) == ast.dump(right):
        raise fail("both sides are the same", right.col_offset)
    if not (has_observed(left) or has_observed(right)):
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


def is_text(node: ast.expr) -> bool:
    """Whether it is a value of the run that is text."""
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
            raise fail(f"nothing is called {name!r}", at, nearest(name, known))
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
        case ast.Call(func=ast.Name(id=name), args=[ast.Constant(value=str())], keywords=[]) if (
            name in QUOTING
        ):
            return
        case ast.Call(func=ast.Name(id=name)) if name in QUOTING:
            raise fail(f"{name} takes one text", at, f'{name}("samples ")')
        case ast.Call(func=ast.Name(id=name)):
            raise fail(f"no function {name!r}", at, f"{' '.join(MEMORY)} insns {' '.join(QUOTING)}")
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
            raise fail(f"no exit reason is called {path[1]!r}", at, nearest(path[1], known))
    elif path[0] == "msr" and len(path) == 3:
        if path[2] not in ("reads", "writes", "exits"):
            raise fail(f"an MSR has reads, writes and exits, not {path[2]!r}", at)
        names = msr_names()
        if path[1] not in names:
            raise fail(f"no MSR is called {path[1]!r}", at, nearest(path[1], names))
    elif path[0] == "perf" and len(path) == 2:
        if path[1] not in PERF:
            raise fail(f"perf has no number {path[1]!r}", at, nearest(path[1], PERF))
    elif path[0] == "kvm" and len(path) == 2:
        if path[1] not in KVM:
            raise fail(f"KVM has no number {path[1]!r}", at, nearest(path[1], KVM))
    elif path[0] == "work" and len(path) == 3:
        if path[2] not in ("count", "cycles"):
            raise fail(f"work of the host has a count and cycles, not {path[2]!r}", at)
        if path[1] not in (rows := _rows_of_work()):
            raise fail(f"no row of isa/costs.toml is called {path[1]!r}", at, nearest(path[1], rows))
    elif path[0] == "cycles_by" and len(path) == 2:
        if path[1] not in (parts := _parts_of_time()):
            raise fail(f"no part of the time is called {path[1]!r}", at, nearest(path[1], parts))
    elif path[0] == "hw" and len(path) == 2:
        if not HARDWARE.fullmatch(path[1]):
            there = ("pmc0", "fixed0", "eventsel0", *HARDWARE.pattern.split("|")[3:])
            raise fail(f"no register of the PMU is called {path[1]!r}", at, nearest(path[1], there))
    else:
        raise fail(
            f"nothing is called {'.'.join(path)!r}", at,
            "exits.NAME, msr.NAME.reads|writes|exits, perf.NAME, kvm.NAME, work.ROW.count|cycles, hw.NAME "
            "or cycles_by.NAME",
        )  # fmt: skip


def _rows_of_work() -> tuple[str, ...]:
    from vpmu_emu.tables.cpus import COST_NAMES

    return COST_NAMES


def _parts_of_time() -> tuple[str, ...]:
    from vpmu_emu.tables.cpus import PARTS

    return ("guest", *PARTS, "idle")


def exit_names() -> dict[str, str]:
    """Every name of an exit reason, aliases included, with the name that results use."""
    from vpmu_emu.tables.exits import EXITS

    return {name: row.name for row in EXITS for name in (row.name, *row.aliases)}


def msr_names() -> dict[str, str]:
    """Every name of an MSR, the kernel's included, with the name that results use."""
    from vpmu_emu.tables.msrs import NAMES, msr_name

    return {name: msr_name(index) for name, index in NAMES.items()}


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint with the nearest of some names, "" if none is near."""
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

    tree = read_value(text, program, place=place)
    try:
        return evaluate(tree, program, outcome, place)
    except UnknownValue as error:
        raise VpmuError(str(error)) from None


def read_value(text: str, program: ProgramLike, *, place: bool = False) -> ast.expr:
    """One expression, for `evaluate`.

    Raises:
        CheckError: what cannot be read, or a name of nothing, with a caret.
    """

    def fail(message: str, at: int, hint: str = "") -> CheckError:
        return CheckError("expression", 1, message, text, at, hint)

    tree = _parsed(text.strip(), fail)
    _validate(tree, program, fail, False, place)
    return tree


def read_condition(text: str, program: ProgramLike) -> ast.expr:
    """Comparisons and values joined by `and`, `or` and `not`, as a debugger's user writes them.

    Raises:
        CheckError: what cannot be read, or a name of nothing, with a caret.
    """

    def fail(message: str, at: int, hint: str = "") -> CheckError:
        return CheckError("condition", 1, message, text, at, hint)

    def check(node: ast.expr) -> None:
        match node:
            case ast.BoolOp(values=parts):
                for part in parts:
                    check(part)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                check(operand)
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in OPERATORS:
                _validate(left, program, fail, False)
                _validate(right, program, fail, False)
            case ast.Compare():
                raise fail("one of == != < <= > >= at a time", node.col_offset, "A < B and B < C")
            case _:
                _validate(node, program, fail, False)

    text = text.strip()
    tree = _parsed(text, fail)
    check(tree)
    return tree


# --- valuing ------------------------------------------------------------------------------------


class UnknownValue(Exception):
    """A value that this run does not have."""


def evaluate(
    node: ast.expr, program: ProgramLike, outcome: Outcome, place: bool = False
) -> Value:
    """The value of one side of an expectation after a run; of an address if `place`."""
    values = outcome.values

    def number(inner: ast.expr, place: bool = place) -> int:
        found = evaluate(inner, program, outcome, place)
        if not isinstance(found, int):
            raise UnknownValue(f"{ast.unparse(inner)} is {show(found)}, not a number")
        return found

    match node:
        case ast.Constant(value=value):
            return value  # type: ignore[return-value]
        case ast.BinOp(left=left, op=op, right=right):
            try:
                result = ARITHMETIC[type(op)](number(left), number(right))
            except (ZeroDivisionError, ValueError) as error:
                raise UnknownValue(f"{ast.unparse(node)}: {error}") from None
            if abs(result) >> MOST_BITS:
                raise UnknownValue(f"{ast.unparse(node)}: more than {MOST_BITS} bits")
            return result
        case ast.UnaryOp(op=op, operand=operand):
            return UNARY[type(op)](number(operand))
        case ast.Call(func=ast.Name(id="insns"), args=[first, last]):
            return program.insns(number(first, True), number(last, True))
        case ast.Call(func=ast.Name(id="printed"), args=[ast.Constant(value=str(text))]):
            return _printed(text, values["serial"])
        case ast.Call(func=ast.Name(id="counted"), args=[ast.Constant(value=str(text))]):
            return _counted(text, values)
        case ast.Call(func=ast.Name(id="log"), args=[ast.Constant(value=str(text))]):
            if "log" not in values:
                raise UnknownValue("there is no host whose kernel could log anything")
            return sum(text in line["text"] for line in values["log"])
        case ast.Call(func=ast.Name(id=name), args=[address]):
            return int.from_bytes(outcome.read(number(address, True), MEMORY[name]), "little")
        case ast.Name(id=name):
            if place and name in program.symbols:
                return program.symbols[name]
            if COUNTER.fullmatch(name):
                if name not in values["counters"]:
                    raise UnknownValue(f"this machine has no counter {name}")
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
            if path[0] in ("perf", "kvm"):
                if path[0] not in values:
                    raise UnknownValue(f"there is no host whose {path[0]} could say anything")
                return int(values[path[0]][path[1]])
            if path[0] == "work":
                if "work" not in values:
                    raise UnknownValue("there is no host that could do any work")
                return int(values["work"].get(path[1], {}).get(path[2], 0))
            if path[0] == "cycles_by":
                return int(values["cycles_by"][path[1]])
            if path[0] == "hw":
                return _hardware(path[1], values["hw"])
            row = values["msr"].get(msr_names()[path[1]], {})
            return int(row.get(path[2], 0))
    raise AssertionError(node)


def _printed(text: str, serial: str) -> int:
    found = re.findall(rf"^{re.escape(text)}\s*(-?\d+)", serial, re.MULTILINE)
    if not found:
        raise UnknownValue(f"no line of the serial port is {text!r} and a number")
    return int(found[-1])


def _counted(text: str, values: Mapping[str, Any]) -> int:
    name, _, modifiers = text.partition(":")
    for event in [*values.get("perf", {}).get("events", ()), *values.get("perf", {}).get("closed", ())]:
        own, _, letters = event["name"].partition(":")
        if event["owner"] == "host" and own == name and sorted(letters) == sorted(modifiers):
            return int(event["count"])
    raise UnknownValue(f"the host has no event {text!r}")


def _hardware(name: str, hw: Mapping[str, Any]) -> int:
    found = hw[name] if name in hw else hw.get(name.rstrip("0123456789"))
    if isinstance(found, list):
        n = int(name[len(name.rstrip("0123456789")) :])
        found = found[n] if n < len(found) else None
    if found is None:
        raise UnknownValue(f"this machine has no {name}")
    return int(found)


def observed(node: ast.expr) -> bool:
    """Whether it is a value that the run gives."""
    match node:
        case ast.Name(id=name):
            return name in PLAIN or name in REGISTERS or bool(COUNTER.fullmatch(name))
        case ast.Attribute():
            return True
        case ast.Call(func=ast.Name(id=name)):
            return name in MEMORY or name in QUOTING
    return False


def has_observed(node: ast.expr) -> bool:
    """Whether such a value is in it."""
    return any(observed(inner) for inner in ast.walk(node) if isinstance(inner, ast.expr))
