"""Where bytes go: fragments of sections, their addresses, and values that wait for them.

A fragment is a run of bytes of fixed length with at most one tail whose length is not known yet
(a branch, an alignment, `.org`, `.skip`). Two labels in one fragment have a known distance at
once, as in GNU as; others only after relaxation.
"""

from __future__ import annotations

from typing import Any

import attrs

from vpmu_emu.asm.errors import Fault
from vpmu_emu.asm.nodes import wrap
from vpmu_emu.asm.parser import constant_binary, constant_unary

IMAGE_BASE = 0x100000
PAGE = 4096
MAX_IMAGE = 64 << 20


@attrs.define(eq=False)
class Symbol:
    """A name: undefined, a label, or an absolute or relocatable expression.

    Attributes:
        value: None while undefined.
        label: defined by `name:`.
        once: defined by `.equiv`, so not to be defined again.
        absent: weak and defined nowhere, so 0.
        asked: something of the source depends on it.
        place: (file, line) of the definition, or of the first use while undefined.
        settled: what it comes to at the end of the source, or what is undefined, once that was asked.
    """

    name: str
    value: Amount | None = None
    label: bool = False
    once: bool = False
    absent: bool = False
    asked: bool = False
    place: tuple[str, int] = ("", 0)
    settled: Amount | UndefinedFault | None = None


@attrs.define(eq=False)
class Deferred:
    """An operation whose operands are not known yet.

    Attributes:
        depth: how many are inside each other.
        settled: what it comes to at the end of the source, once that was asked.
    """

    op: str
    left: Amount
    right: Amount | None
    depth: int = 0
    settled: Amount | None = None


_MAX_DEPTH = 100
_MAX_TERMS = 256
_MAX_STEPS = 4_000_000  # of relaxation; a pass over 100 000 branches is 100 000


def _defer(op: str, left: Amount, right: Amount | None) -> Linear:
    inner = [
        atom.depth
        for amount in (left, right)
        if isinstance(amount, Linear)
        for atom, _ in amount.terms
        if isinstance(atom, Deferred)
    ]
    depth = 1 + max(inner, default=0)
    if depth > _MAX_DEPTH:
        raise Fault("the expression is nested too deeply", "define its symbols above")
    return Linear(0, ((Deferred(op, left, right, depth), 1),))


@attrs.frozen(eq=False)
class Linear:
    """`constant + sum of coefficient * atom`; a Fragment as an atom is its address."""

    constant: int
    terms: tuple[tuple[Atom, int], ...]


@attrs.define(eq=False)
class Tail:
    """The variable end of a fragment.

    Attributes:
        kind: "jump", "align", "org" or "skip".
        size: bytes now.
        target: branch target, .org address or .skip length.
        short, long: opcode bytes of a branch.
        grown: the branch uses `long`.
        symbol: what the branch names, if it is a symbol alone; plt: with `@PLT` behind it.
        far: it must use `long`.
        alignment, limit: of an alignment; limit 0 is none.
        fill: byte, or None for no-operations.
        where: the statement, for errors.
    """

    kind: str
    size: int = 0
    target: Amount = 0
    short: bytes = b""
    long: bytes = b""
    grown: bool = False
    symbol: str = ""
    plt: bool = False
    far: bool = False
    alignment: int = 1
    limit: int = 0
    fill: int | None = 0
    where: Any = None


@attrs.define(eq=False)
class Fragment:
    """A run of bytes; see the module docstring."""

    section: Section
    data: bytearray
    tail: Tail | None = None
    address: int = 0
    region: int = 0
    marker: bool = False


@attrs.define(eq=False)
class Section:
    """A named section; `role` is "text", "data" or "bss"."""

    name: str
    role: str
    fragments: list[Fragment] = attrs.Factory(list)
    alignment: int = 1
    address: int = 0

    def __attrs_post_init__(self) -> None:
        self.fragments.append(Fragment(self, bytearray()))

    @property
    def size(self) -> int:
        """Bytes, with the current sizes of tails."""
        last = self.fragments[-1]
        return last.address + len(last.data) + (last.tail.size if last.tail else 0) - self.address

    def append(self, tail: Tail) -> None:
        """Close the current fragment with `tail` and open the next."""
        self.fragments[-1].tail = tail
        self.fragments.append(Fragment(self, bytearray()))


Atom = Fragment | Symbol | Deferred
Amount = int | Linear


def symbol_amount(symbol: Symbol) -> Amount:
    """What the name is worth now; itself while undefined."""
    return Linear(0, ((symbol, 1),)) if symbol.value is None else symbol.value


def symbols_of(amount: Amount) -> list[Symbol]:
    """The symbols without a value that an amount waits for."""
    return [atom for atom in _atoms(amount) if isinstance(atom, Symbol)]


def compares(amount: Amount) -> bool:
    """Whether labels are compared in it."""
    return any(isinstance(atom, Deferred) and atom.op in _COMPARES for atom in _atoms(amount))


def _atoms(amount: Amount) -> list[Atom]:
    """What an amount is made of, each once."""
    found: dict[Atom, None] = {}
    waiting = [amount]
    while waiting:
        for atom, _ in _terms(waiting.pop()):
            if atom not in found:
                found[atom] = None
                if isinstance(atom, Deferred):
                    waiting += [atom.left, atom.right or 0]
    return list(found)


def known(amount: Amount, done: dict[Deferred, Amount] | None = None) -> Amount:
    """The amount with comparisons of labels of one fragment made; `done` are those made on the way."""
    if isinstance(amount, int) or not compares(amount):
        return amount
    done = {} if done is None else done
    total: Amount = amount.constant
    for atom, coefficient in amount.terms:
        part: Amount = Linear(0, ((atom, 1),))
        if isinstance(atom, Deferred):
            if atom not in done:
                left = known(atom.left, done)
                if atom.right is None:
                    done[atom] = negate(atom.op, left)
                else:
                    right = known(atom.right, done)
                    if atom.op in _COMPARES and _placed(left) and _terms(left) == _terms(right):
                        left, right = _constant(left), _constant(right)
                    done[atom] = combine(atom.op, left, right)
            part = done[atom]
        total = _plus(total, part, coefficient)
    return total


def _terms(amount: Amount) -> tuple[tuple[Atom, int], ...]:
    return () if isinstance(amount, int) else amount.terms


def _constant(amount: Amount) -> int:
    return amount if isinstance(amount, int) else amount.constant


def combine(op: str, left: Amount, right: Amount) -> Amount:
    """`left op right`; stays open where addresses are needed.

    Raises:
        Fault: division by zero, or a shift count out of range.
    """
    if isinstance(left, int) and isinstance(right, int):
        value = constant_binary(op, left, right)
        if value is None:
            raise Fault("division by zero" if op in "/%" else "a shift count outside 0..63")
        return value
    same = op == "-" and _terms(left) == _terms(right)
    if op in "+-" and not same and (_net(right) > 0 or nets(right)):
        # A number has to come out of a difference, at most one address out of a sum: step by step.
        if not (_placed(left) and _placed(right)):
            return _defer(op, left, right) if op == "-" or _net(left) else _plus(left, right, 1)
        if op == "+" and _net(left) > 0:
            raise Fault("two addresses cannot be added", "subtract them for a distance")
        if op == "-" and not nets(left):
            raise Fault("an address cannot be subtracted from a number", "subtract it from an address")
    if op in "+-":
        return _plus(left, right, 1 if op == "+" else -1)
    if op == "*":
        scalar, other = (left, right) if isinstance(left, int) else (right, left)
        if isinstance(scalar, int):
            if scalar == 0:
                return 0
            if scalar == 1:
                return other
            if all(isinstance(atom, Fragment) for atom, _ in _terms(other)):
                _check_operand(op, other)
                terms = tuple((a, wrap(c * scalar)) for a, c in _terms(other))
                return Linear(wrap(_constant(other) * scalar), terms)
    return _defer(op, left, right)


def _plus(left: Amount, right: Amount, factor: int) -> Amount:
    total: dict[Atom, int] = dict(_terms(left))
    for atom, coefficient in _terms(right):
        total[atom] = total.get(atom, 0) + factor * coefficient
    constant = wrap(_constant(left) + factor * _constant(right))
    terms = tuple((a, c) for a, c in total.items() if c)
    if len(terms) > _MAX_TERMS:
        raise Fault(f"a sum of more than {_MAX_TERMS} addresses", "give a part of it a name known above")
    return Linear(constant, terms) if terms else constant


def _net(amount: Amount) -> int:
    """How many addresses the amount is the sum of."""
    return sum(coefficient for _, coefficient in _terms(amount))


def _placed(amount: Amount) -> bool:
    return all(type(atom) is Fragment for atom, _ in _terms(amount))


def nets(amount: Amount) -> dict[Section, int]:
    """For each section, how many of its addresses a settled amount is the sum of; zeros left out."""
    found: dict[Section, int] = {}
    for atom, coefficient in _terms(amount):
        if isinstance(atom, Fragment):
            found[atom.section] = found.get(atom.section, 0) + coefficient
    return {section: net for section, net in found.items() if net}


def _check_operand(op: str, amount: Amount) -> None:
    if nets(amount):
        raise Fault(f"'{op}' does not go with an address", "a distance of two labels is a number")


_COMPARES = ("==", "!=", "<>", "<", ">", "<=", ">=")


def _check_operands(op: str, left: Amount, right: Amount) -> None:
    """What a linker could not compute is an error, as in GNU as."""
    if op in _COMPARES:
        if nets(left) != nets(right):
            raise Fault("addresses of different sections cannot be compared")
    elif op not in "+-":
        _check_operand(op, left)
        _check_operand(op, right)


def negate(op: str, amount: Amount) -> Amount:
    """`op amount`."""
    if op == "+":
        return amount
    if isinstance(amount, int):
        return constant_unary(op, amount)
    if op == "-":
        return combine("-", 0, amount)
    return _defer(op, amount, None)


def settle(amount: Amount, trail: tuple[Symbol, ...] = ()) -> Amount:
    """Replace symbols by what they are worth at the end of the source.

    Raises:
        Fault: an undefined symbol (`at` is -1), or one defined through itself.
    """
    if isinstance(amount, int):
        return amount
    if all(type(atom) is Fragment for atom, _ in amount.terms):
        return amount
    total: Amount = amount.constant
    for atom, coefficient in amount.terms:
        part: Amount
        if isinstance(atom, Symbol):
            if atom.value is None:
                raise UndefinedFault(atom)
            if atom in trail:
                raise Fault(f"'{atom.name}' is defined through itself", "break the circle")
            if len(trail) > _MAX_DEPTH:
                raise Fault("too many symbols are defined through each other", "define them above")
            if atom.settled is None:
                try:
                    atom.settled = settle(atom.value, (*trail, atom))
                except UndefinedFault as fault:
                    atom.settled = fault
            if isinstance(atom.settled, UndefinedFault):
                raise atom.settled
            part = atom.settled
        elif isinstance(atom, Deferred):
            part = _settled(atom, trail)
        else:
            part = Linear(0, ((atom, 1),))
        total = _plus(total, part, coefficient)
    return total


def _settled(atom: Deferred, trail: tuple[Symbol, ...]) -> Amount:
    # Once each, however often a chain of .equ names it.
    if atom.settled is None:
        left = settle(atom.left, trail)
        if atom.right is None:
            _check_operand(atom.op, left)
            atom.settled = negate(atom.op, left)
        else:
            right = settle(atom.right, trail)
            _check_operands(atom.op, left, right)
            atom.settled = combine(atom.op, left, right)
    return atom.settled


class UndefinedFault(Fault):
    """A symbol that nothing defines."""

    def __init__(self, symbol: Symbol) -> None:
        super().__init__(f"symbol '{symbol.name}' is not defined", "", -1, len(symbol.name))
        self.symbol = symbol


def number(amount: Amount, known: dict[Deferred, int] | None = None) -> int:
    """The number a settled amount comes to, with the addresses of now.

    Args:
        amount: settled.
        known: operations that were computed on the way.
    """
    if isinstance(amount, int):
        return amount
    total = amount.constant
    for atom, coefficient in amount.terms:
        if isinstance(atom, Fragment):
            total += coefficient * atom.address
        elif isinstance(atom, Deferred):
            known = {} if known is None else known
            value: int | None = known.get(atom)
            if value is None:
                left = number(atom.left, known)
                if atom.right is None:
                    value = constant_unary(atom.op, left)
                else:
                    value = constant_binary(atom.op, left, number(atom.right, known))
                if value is None:
                    raise Fault("division by zero or a shift count outside 0..63")
                known[atom] = value
            total += coefficient * value
        else:
            raise UndefinedFault(atom)
    return wrap(total)


def is_address(amount: Amount) -> bool:
    """Whether a settled amount moves with the image: one address plus a constant."""
    return not isinstance(amount, int) and sum(c for _, c in amount.terms) == 1


# The no-operations GNU as pads with for a generic 64-bit CPU, by length.
NOPS = tuple(
    bytes.fromhex(code)
    for code in (
        "",
        "90",
        "6690",
        "0f1f00",
        "0f1f4000",
        "0f1f440000",
        "660f1f440000",
        "0f1f8000000000",
        "0f1f840000000000",
        "660f1f840000000000",
        "662e0f1f840000000000",
        "66662e0f1f840000000000",
    )
)
_MAX_NOPS = 7


def nops(count: int) -> list[bytes]:
    """`count` bytes of padding as GNU as writes them: at most seven long ones, else a jump."""
    longest = len(NOPS) - 1
    if count // longest <= _MAX_NOPS:
        whole, rest = divmod(count, longest)
        return [NOPS[longest]] * whole + ([NOPS[rest]] if rest else [])
    if count - 2 <= 127:
        head = bytes((0xEB, count - 2))
    else:
        head = b"\xe9" + (count - 5).to_bytes(4, "little")
    whole, rest = divmod(count - len(head), longest)
    return [head] + [NOPS[longest]] * whole + ([NOPS[rest]] if rest else [])


def _aligned(address: int, alignment: int, limit: int) -> int:
    growth = -address % alignment
    return 0 if limit and growth > limit else growth


def relax(section: Section, faults: list[tuple[Any, Fault]]) -> None:
    """Give every fragment of the section its offset and every branch its length.

    As relax_segment() of GNU as: all branches begin short and only grow; a target further on is
    taken to move as far as the branch just did, unless an alignment lies between.
    Modifies the section; offsets are from its start. Targets must be settled.
    """
    address, region = 0, 0
    for fragment in section.fragments:
        fragment.address, fragment.region, fragment.marker = address, region, False
        address += len(fragment.data)
        tail = fragment.tail
        if tail is None:
            continue
        if tail.kind == "jump":
            target = tail.target
            near = (
                not tail.far
                and isinstance(target, Linear)
                and len(target.terms) == 1
                and target.terms[0][1] == 1
                and isinstance(target.terms[0][0], Fragment)
                and target.terms[0][0].section is section
            )
            tail.grown = not near
            tail.size = len(tail.short) + 1 if near else len(tail.long) + 4
        elif tail.kind == "align":
            tail.size = _aligned(address, tail.alignment, tail.limit)
            region += 1
        elif tail.kind == "org":
            tail.size = 0
            region += 1
        else:
            tail.size = tail.target if isinstance(tail.target, int) else 0
        address += tail.size

    # Growth is monotonic for branches; alignments and .org can only swing while they do.
    count = len(section.fragments)
    computed = sum(f.tail is not None and f.tail.kind == "skip" for f in section.fragments)
    steps = count + 3 * computed  # a length is an expression: that is much more work
    for _ in range(min(count + 10, max(10, _MAX_STEPS // steps))):
        stretch, changed = 0, False
        for position, fragment in enumerate(section.fragments):
            fragment.marker = not fragment.marker
            was = fragment.address
            fragment.address += stretch
            tail = fragment.tail
            if tail is None or (tail.kind == "jump" and tail.grown):
                continue
            end = fragment.address + len(fragment.data)
            growth = 0
            if tail.kind == "align":
                growth = _aligned(end, tail.alignment, tail.limit) - _aligned(
                    was + len(fragment.data), tail.alignment, tail.limit
                )
            elif tail.kind == "jump":
                growth = _jump_growth(section, position, fragment, tail, stretch)
            else:
                try:
                    wanted = number(tail.target)
                except Fault as fault:
                    faults.append((tail.where, fault))
                    wanted = 0
                if tail.kind == "org":
                    wanted -= end
                growth = max(wanted, 0) - tail.size
            if growth:
                tail.size += growth
                stretch += growth
                changed = True
                if tail.size > MAX_IMAGE:
                    return
        if not changed:
            break
    else:
        circle = Fault("the length depends on itself", "count from labels that do not move with it")
        lengths = [f.tail for f in section.fragments if f.tail and f.tail.kind in ("skip", "jump")]
        lengths.sort(key=lambda tail: tail.kind != "skip")
        faults += [(tail.where, circle) for tail in lengths[:1]]
        return
    for fragment in section.fragments:
        tail = fragment.tail
        if tail is not None and tail.kind == "org":
            end = fragment.address + len(fragment.data)
            target = number(tail.target)
            if target < end:
                behind = Fault(
                    f".org {target:#x} is behind the current offset {end:#x}",
                    "offsets count from the start of the section",
                )
                faults.append((tail.where, behind))
        elif tail is not None and tail.kind == "skip" and number(tail.target) < 0:
            faults.append((tail.where, Fault("a negative length")))


def _jump_growth(
    section: Section, position: int, fragment: Fragment, tail: Tail, stretch: int
) -> int:
    # relax_frag(): the displacement byte follows one opcode byte.
    target = tail.target
    assert isinstance(target, Linear)
    goal = target.terms[0][0]
    assert isinstance(goal, Fragment)
    aim = target.constant + goal.address
    if stretch and goal.marker != fragment.marker:
        if stretch < 0 or goal.region == fragment.region:
            aim += stretch
        elif aim < fragment.address + len(fragment.data):
            aim = section.fragments[position + 1].address + stretch
    distance = aim - (fragment.address + len(fragment.data) + len(tail.short))
    if -127 <= distance <= 128:
        return 0
    tail.grown = True
    return len(tail.long) + 4 - tail.size
