"""The end of an assembly: addresses, open values, segments."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

from vpmu_emu.asm.core import MAX_FAULTS, MAX_SHOWN, Core, TooBigError
from vpmu_emu.asm.encode import Fixup
from vpmu_emu.asm.errors import Fault, did_you_mean
from vpmu_emu.asm.nodes import SLOT
from vpmu_emu.asm.program import Line, Program, Segment
from vpmu_emu.asm.reader import Statement
from vpmu_emu.asm.sections import (
    IMAGE_BASE,
    MAX_IMAGE,
    PAGE,
    Amount,
    Fragment,
    Linear,
    Section,
    Symbol,
    Tail,
    UndefinedFault,
    is_address,
    nets,
    nops,
    number,
    relax,
    settle,
    symbols_of,
)
from vpmu_emu.errors import AssemblyError, ConfigError


def _code_gap(size: int) -> bytes:
    """What GNU ld puts between sections of code: no-operations of at most ten bytes."""
    full, rest = divmod(size, 10)
    return b"".join([*nops(10)] * full + [*nops(rest)])


def _known(amount: Amount) -> bool:
    return isinstance(amount, int) or all(isinstance(atom, Fragment) for atom, _ in amount.terms)


class Image(Core):
    """From everything read to the Program."""

    def finish(self) -> Program:
        """Addresses, fixups and the program.

        Raises:
            AssemblyError: everything that went wrong since the start.
        """
        if self.stopped:
            raise AssemblyError(self.shown(), self.faults - min(len(self.diagnostics), MAX_SHOWN), True)
        try:
            self._link()
        except TooBigError as error:
            assert self.statement is not None
            self.report(self.statement, Fault(error.message, error.hint))
        self._settle()
        self._layout()
        self._check_unused()
        if not self.diagnostics:
            self._check_bare()
            self._fix()
        else:
            self._check_bare()
            self._check_undefined()
        if self.diagnostics:
            raise AssemblyError(self.shown(), max(0, len(self.diagnostics) - MAX_SHOWN))
        self._check_given()
        return self._program()

    def _check_given(self) -> None:
        """Whether the source asks for every symbol that it was given: a name that it has not is a slip."""
        for name, symbol in self.given.items():
            if symbol.asked:
                continue
            if self.symbols[name] is not symbol:
                what = f"{self.name} sets {name} without asking whether it is set"
                raise ConfigError("defsym", what, f".ifndef {name} around its .equ")
            others = {s.name for s in self.symbols.values() if s.value is not None}
            kinds = (sorted(names - {*self.given}) for names in (self.conditional, others))
            near = next(filter(None, (did_you_mean(name, names) for names in kinds)), "")
            hint = f"; {near.replace(chr(39), '')}" if near else ""
            raise ConfigError("defsym", f"no symbol {name} is asked for in {self.name}{hint}")

    def _link(self) -> None:
        """What a linker adds: zero for weak symbols that nobody defines, and places of addresses."""
        for name in self.weak:
            symbol = self.symbols.get(name)
            if symbol is not None and symbol.value is None:
                symbol.value, symbol.absent = 0, True
        wanted: dict[Symbol, Statement] = {}
        for _, _, _, fixup, statement in self.fixups:
            for symbol in symbols_of(fixup.amount):
                if symbol.name.endswith(SLOT):
                    wanted.setdefault(symbol, statement)
        if not wanted:
            return
        self._change(self._section(".got", "data"))
        self.section.alignment = 8
        for slot, statement in wanted.items():
            symbol = self.symbols[slot.name[: -len(SLOT)]]
            slot.value, slot.label = self.here(), True
            where = self._emit(bytes(8), "data", statement)
            address = Fixup(0, 8, Linear(0, ((symbol, 1),)), False, "either")
            self.fixups.append((self.fragment, where, where + 8, address, statement))

    def _settle(self) -> None:
        """What every name comes to, the last one first: a chain of names is walked once, however long."""
        for symbol in reversed(self.symbols.values()):
            with suppress(Fault):  # reported where it is used
                settle(Linear(0, ((symbol, 1),)))

    def _layout(self) -> None:
        faults: list[tuple[Any, Fault]] = []
        for section in self.sections.values():
            for fragment in section.fragments:
                tail = fragment.tail
                if tail is None:
                    continue
                # Another file might define a weak symbol, a linker bend a PLT: GNU as leaves room.
                tail.far = tail.symbol in self.weak or (tail.plt and tail.symbol in self.globals)
                try:
                    if tail.kind == "org" and not _known(tail.target):
                        raise Fault(".org needs a label above", "GNU as takes 0 for one below")
                    tail.target = settle(tail.target)
                    if tail.kind == "org":
                        self._check_org(tail, section)
                    elif tail.kind == "skip" and nets(tail.target):
                        raise Fault("a length is a number or a distance")
                except Fault as fault:
                    if len(faults) <= MAX_FAULTS:
                        faults.append((tail.where, fault))
                    tail.target = 0
            relax(section, faults)
        for statement, late in faults:
            self.report(statement, late)
        address = IMAGE_BASE
        for role in ("text", "data", "bss", "none"):
            address = -(-address // PAGE) * PAGE
            for section in self._of(role):
                address = -(-address // section.alignment) * section.alignment
                size = section.size
                section.address = address
                for fragment in section.fragments:
                    fragment.address += address
                address += size
        if address - IMAGE_BASE > MAX_IMAGE and not faults:
            assert self.statement is not None
            error = self._too_big()
            self.report(self.statement, Fault(error.message, error.hint))

    def _check_org(self, tail: Tail, section: Section) -> None:
        if isinstance(tail.target, Linear):
            atoms = tail.target.terms
            atom = atoms[0][0]
            inside = isinstance(atom, Fragment) and atom.section is section
            if len(atoms) != 1 or atoms[0][1] != 1 or not inside:
                raise Fault(".org needs a number or a label of this section plus a number")

    def _of(self, role: str) -> list[Section]:
        found = [section for section in self.sections.values() if section.role == role]
        order = [f".{role}", ".rodata"]

        def rank(section: Section) -> int:
            name = section.name
            return order.index(name) if name in order else 2 + (not name.startswith(".rodata."))

        return sorted(found, key=rank)

    def _check_unused(self) -> None:
        """What no byte depends on must have a value, too."""
        for amount, statement in (*self.sizes, *self.computed):
            if self.faults > MAX_FAULTS:
                break
            try:
                settle(amount)
            except Fault as fault:
                self.report(statement, fault)
        for amount, statement in self.sizes:
            with suppress(Fault):
                if nets(settle(amount)):
                    self.report(statement, Fault("a size is a number or a distance"))

    def _check_bare(self) -> None:
        for amount, statement in self.bare:
            try:
                value = settle(amount)
            except Fault:
                continue  # reported where the value is used
            if isinstance(value, int) and isinstance(amount, Linear):
                symbol = next((a for a, _ in amount.terms if isinstance(a, Symbol)), None)
                if symbol is None or symbol.absent:
                    continue
                file, line = symbol.place
                found = re.search(
                    rf"(?<![\w.$]){re.escape(symbol.name)}(?![\w.$])", statement.text
                )
                msg = f"'{symbol.name}' is a number only from {file}:{line} on; here it is memory"
                hint = f"move the .equ above, or write [{symbol.name}] for memory"
                at = found.start() if found else 0
                self.report(statement, Fault(msg, hint, at, len(symbol.name)))

    def _check_undefined(self) -> None:
        for _, _, _, fixup, statement in self.fixups:
            if self.faults > MAX_FAULTS:
                break
            try:
                settle(fixup.amount)
            except Fault as fault:
                self.report(statement, fault)

    def _fix(self) -> None:
        bare = {id(statement) for _, statement in self.bare}
        for fragment, where, end, fixup, statement in self.fixups:
            if self.faults > MAX_FAULTS:
                break
            try:
                value = number(settle(fixup.amount))
                self._check_relative(fixup)
                self._check_computable(fixup, fragment.section)
            except UndefinedFault as fault:
                if id(statement) in bare:
                    name = fault.symbol.name
                    fault.hint = (
                        f"memory is [{name}], an address OFFSET {name}; a number needs its .equ above"
                    )
                self.report(statement, fault)
                continue
            except Fault as fault:
                self.report(statement, fault)
                continue
            if fixup.pc_relative:
                value -= fragment.address + end
            size = fixup.size
            low = -(1 << 8 * size - 1)
            high = -low if fixup.kind == "signed" else -2 * low
            if size < 8 and not low <= value < high:
                if fixup.pc_relative:
                    msg = f"the target is {value} bytes away, this reaches {low} to {high - 1}"
                    hint = "jump over a jmp" if size == 1 else ""
                else:
                    msg, hint = f"the value {value:#x} does not fit in {size} bytes", ""
                self.report(statement, Fault(msg, hint))
                continue
            at = where + fixup.offset
            code = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
            fragment.data[at : at + size] = code
        for section in self.sections.values():
            for fragment in section.fragments:
                self._fill_tail(fragment)

    @staticmethod
    def _check_computable(fixup: Fixup, here: Section) -> None:
        """A number, an address, or a distance from this section to another: what a linker can do."""
        found = nets(settle(fixup.amount))
        other = [net for section, net in found.items() if section is not here]
        if found.get(here, 0) + sum(other) not in (0, 1) or other not in ([], [1]):
            hint = "a number, an address, or the distance to one from here"
            raise Fault("the expression cannot be resolved", hint)

    def _check_relative(self, fixup: Fixup) -> None:
        if fixup.pc_relative:
            amount = settle(fixup.amount)
            if not isinstance(amount, int) and not is_address(amount):
                raise Fault("a place is expected, this is a distance")

    def _fill_tail(self, fragment: Fragment) -> None:
        tail = fragment.tail
        if tail is None:
            return
        if tail.kind == "jump":
            code = tail.long if tail.grown else tail.short
            width = 4 if tail.grown else 1
            end = fragment.address + len(fragment.data) + len(code) + width
            try:
                distance = number(tail.target) - end
            except Fault as fault:
                self.report(tail.where, fault)
                return
            if not -(1 << 8 * width - 1) <= distance < 1 << 8 * width - 1:
                self.report(tail.where, Fault("the branch target is out of range"))
                return
            fragment.data += code + (distance & ((1 << 8 * width) - 1)).to_bytes(width, "little")
        elif tail.fill is None:
            fragment.data += b"".join(nops(tail.size))
        else:
            fragment.data += bytes((tail.fill,)) * tail.size

    def _program(self) -> Program:
        segments: list[Segment] = []
        for role in ("text", "data", "bss"):
            sections = self._of(role)
            total = sum(section.size for section in sections)
            if not sections or (not total and role != "text"):
                continue
            base = sections[0].address
            data = bytearray()
            for section in sections:
                gap = section.address - base - len(data)
                data += _code_gap(gap) if role == "text" else bytes(gap)
                for fragment in section.fragments:
                    data += fragment.data
            segments.append(
                Segment(base, bytes(data), f".{role}", exec=role == "text", write=role != "text")
            )
        symbols: dict[str, int] = {}
        equates: dict[str, int] = {}
        for name, symbol in self.symbols.items():
            if symbol.value is None or symbol.absent:
                continue
            try:
                settled = settle(symbol.value)
                value = number(settled)
            except Fault:
                continue  # an unused .equ of something undefined
            symbols[name] = value
            if isinstance(settled, int) or not is_address(settled):
                equates[name] = value
        text = self.sections[".text"]
        return Program(
            name=self.name,
            entry=symbols.get("_start", text.address),
            segments=tuple(segments),
            symbols=symbols,
            equates=equates,
            lines=self._lines(),
            source=self.source,
            expectations=tuple(self.expectations),
            defsym={name: int(symbol.value) for name, symbol in self.given.items()},  # type: ignore[arg-type]
        )

    def _lines(self) -> tuple[Line, ...]:
        lines: list[Line] = []
        for fragment, where, size, kind, statement in self.records:
            if fragment.section.role == "none":
                continue
            origin = statement.origin
            place = statement
            while origin is not None:
                place = origin.call
                origin = place.origin
            file, line, text = place.file, place.line, statement.text
            if where >= 0:
                if size:
                    lines.append(Line(fragment.address + where, size, file, line, text, kind))
                continue
            tail = fragment.tail
            assert tail is not None
            at = fragment.address + len(fragment.data) - tail.size
            if not tail.size:
                continue
            if tail.kind == "align" and tail.fill is None:
                for piece in nops(tail.size):
                    lines.append(Line(at, len(piece), file, line, text, kind))
                    at += len(piece)
            else:
                lines.append(Line(at, tail.size, file, line, text, kind))
        lines.sort(key=lambda line: line.addr)
        return tuple(lines)
