"""A system that can be stopped anywhere; only looks, so a debugged run ends in the same record.

Until its user writes: registers, memory and MSRs are then what the user says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from vpmu_emu.asm.program import Program
from vpmu_emu.checks import CheckError, evaluate
from vpmu_emu.checks.language import UnknownValue
from vpmu_emu.debug import operations
from vpmu_emu.debug.conditions import FIELD, Test, test_of
from vpmu_emu.debug.conditions import REGISTERS as GENERAL
from vpmu_emu.debug.looking import Looking
from vpmu_emu.debug.points import (
    AFTER,
    READS,
    VECTOR_PF,
    WITH_ERROR,
    WRITES,
    Access,
    Hold,
    Point,
    Why,
    counted,
)
from vpmu_emu.errors import ConfigError, VpmuError
from vpmu_emu.load import load
from vpmu_emu.machine.ring import TR_EXCEPTION, TR_IRQ, TR_NMI, TR_VM_EXIT
from vpmu_emu.machine.state import N_BREAK, N_WATCH
from vpmu_emu.numerals import shown, whole
from vpmu_emu.options import Options, explained
from vpmu_emu.system import PAGE, PAGE_DIRTY, System, ram_pieces
from vpmu_emu.tables.exits import exit_name
from vpmu_emu.tables.msrs import by_name
from vpmu_emu.tables.vmcs import vmcs_field

RECENT = 5
ACCESS_FIELDS = ("value", "old", "index")
DELIVERIES = {TR_EXCEPTION: "exception", TR_IRQ: "interrupt", TR_NMI: "nmi"}
RETURNS = ("ret", "iretq", "sysretq")
STEPPED_OVER = ("call", "int", "rep")
FIXED_FLAGS = 2  # RFLAGS bit 1 reads as 1 (SDM 1, 3.4.3)


@attrs.frozen
class _Temporary:
    """Where a command itself wants to stop: there, with the stack at least as far up."""

    address: int
    rsp: int


@explained
class Session(Looking):
    """One program under a debugger.

    Args:
        program: a program, or the path of a source file or an ELF executable.
        options, ready, asked: as for `System`.

    Raises:
        VpmuError: whatever is wrong with program or options.
    """

    def __init__(
        self,
        program: Program | str | Path,
        options: Options | None = None,
        /,
        *,
        ready: Callable[[], None] | None = None,
        **asked: Any,
    ) -> None:
        options = Options.of(asked, options)
        options.check()  # before a file is read
        if options.save is not None:
            raise ConfigError("save", "a debugger stops where it is told, and saves nothing", "vpmu run")
        options = attrs.evolve(options, trace=options.trace or True)
        if not isinstance(program, Program):
            program = load(program, options.defsym)
        self.system = System(program, options, ready=ready)
        self.program = self.system.program
        self._points: list[Point] = []
        self._temporary: list[_Temporary] = []
        self._number = 0
        self._ended: Hold | None = None
        self._before = self.system.registers()
        self._cpl_before = self.cpl
        self._judged = 0  # events of the trace that points have been asked about
        self._fields: dict[str, int] = {}
        self._found: list[Point] = []  # that a part of a command has asked already
        self._note = ""

    # --- going on -------------------------------------------------------------------------------

    def step(self, count: int = 1) -> Hold:
        """Run `count` instructions, breakpoints and watchpoints heeded; Ctrl-C is a stop as in cont()."""
        left = count

        def go() -> Any:
            nonlocal left
            stop = self._one()
            left -= 1
            while left > 0 and stop.reason == "step":
                stop = self.system.step()
                if stop.reason == "break":  # met, not passed
                    break
                left -= 1
            return stop

        return self._go(go, lambda: left > 0)

    def step_over(self, count: int = 1) -> Hold:
        """As `step`, calls, INT n and repeated string instructions as one, with all that they run."""
        found = self._go(self._over)
        for _ in range(count - 1):
            if found.reason != "step":
                break
            found = self._go(self._over)
        return found

    def step_exit(self) -> Hold:
        """Run until the next VM-exit of the guest has been handled, and the guest goes on.

        Raises:
            ConfigError: there is no hypervisor, and no exit.
        """
        if not self.system.has_host:
            raise ConfigError("step_exit", f"--vpmu {self.system.mode} has no VM-exits", "another --vpmu")
        before = sum(self.exits().values())

        def go() -> Any:
            stop = self._one()
            while stop.reason == "step" and sum(self.exits().values()) == before:
                stop = self.system.step()
            return stop

        return self._go(go, lambda: sum(self.exits().values()) == before)

    def finish(self) -> Hold:
        """Run until the function or handler at hand has returned."""
        bottom = self.registers()["rsp"]
        over = False

        def go() -> Any:
            nonlocal over
            while True:
                here = self.instruction(self.rip)
                word = here.text.split()[-1 if here.text.startswith("rep") else 0] if here else ""
                if word in RETURNS and self.registers()["rsp"] >= bottom:
                    over = True
                    return self._one()
                stop = self._over()
                if stop.reason != "step":
                    return stop

        return self._go(go, lambda: not over)

    def until(self, where: str) -> Hold:
        """Run until a place, or until something holds.

        Args:
            where: an address, symbol, line or file:line; `#N`, when N instructions are done; `tsc N` or
                `tsc +N`, when the guest's TSC shows so much; else a condition.

        Raises:
            ConfigError: `#N` or the TSC is behind; CheckError: a condition that cannot be read.
        """
        text = where.strip()
        if text.startswith("#"):
            return self._until_instruction(text)
        if text == "tsc" or text.startswith("tsc "):
            return self._until_tsc(text.removeprefix("tsc").strip())
        try:
            address = self.locate(text)
        except (ConfigError, CheckError):
            return self._until_holds(text)
        self._temporary.append(_Temporary(address, 0))
        return self._go(self._along)

    def _until_instruction(self, text: str) -> Hold:
        number = whole(text[1:])
        done = self.system.instructions
        if number is None or not 0 <= number < 1 << 62:
            raise ConfigError("until", f"{shown(text)} is no number of an instruction", "#0 to #2**62 - 1")
        if number < done:
            raise ConfigError("until", f"{done} instructions are done already", f"reverse-to {text}")
        E = self.system.E

        def go() -> Any:
            limit = int(E.insn_limit)
            missing = number - self.system.instructions
            if missing <= 0:
                return self.system.stop(0, "until")
            E.insn_limit = min(limit, self.system.work() + missing)
            try:
                self._pass()
                stop = self.system.run()
            finally:
                E.insn_limit = limit
            over = stop.reason == "max-insns" and self.system.work() < limit
            return self.system.stop(0, "until") if over else stop

        return self._go(go, lambda: self.system.instructions < number)

    def _until_tsc(self, text: str) -> Hold:
        relative = text.startswith("+")
        number = whole(text.removeprefix("+"))
        if number is None or number < 0:
            raise ConfigError("until", f"{shown(text)} is no value of the TSC", "tsc N or tsc +N")
        target = self.tsc() + number if relative else number
        if target < self.tsc():
            raise ConfigError("until", f"the TSC is at {self.tsc()} already", f"reverse-to tsc {number}")

        def go() -> Any:
            stop = self._one()
            while stop.reason == "step" and self.tsc() < target:
                stop = self.system.step()
            return attrs.evolve(stop, reason="until") if stop.reason == "step" else stop

        return self._go(go, lambda: self.tsc() < target)

    def _until_holds(self, text: str) -> Hold:
        test = self._test(text, {}, {})

        def go() -> Any:
            stop = self._one()
            while stop.reason == "step" and not test.value(self._ask):
                stop = self.system.step()
            return attrs.evolve(stop, reason="until") if stop.reason == "step" else stop

        return self._go(go, lambda: not test.value(self._ask))

    def cont(self) -> Hold:
        """Run to the next breakpoint, watched access, or the end.

        Raises:
            KeyboardInterrupt: never; Ctrl-C is a stop with reason `interrupted`.
        """
        return self._go(self._along)

    def _along(self) -> Any:
        stop = self._one()
        return self.system.run() if stop.reason == "step" else stop

    def _over(self) -> Any:
        here = self.instruction(self.rip)
        if here is None or not here.text.startswith(STEPPED_OVER):
            return self._one()
        rsp = 0 if here.text.startswith("rep") else self.registers()["rsp"]
        there = _Temporary(here.addr + here.size, rsp)
        self._temporary.append(there)
        try:
            while True:
                stop = self._along()
                points = self._asked(stop)
                if points:
                    self._found = points
                    return stop
                if stop.reason == "break" and self._is_there(there, stop):
                    return attrs.evolve(stop, reason="step")
                if stop.reason not in ("break", "watch"):
                    return stop
        finally:
            self._temporary.remove(there)

    def _is_there(self, there: _Temporary, stop: Any) -> bool:
        return there.address == stop.rip and self.registers()["rsp"] >= there.rsp

    def _go(self, go: Callable[[], Any], more: Callable[[], bool] = lambda: True) -> Hold:
        # Goes on until a point holds or something else stops; `more`: whether it has to if none does.
        if self._ended:
            return self._ended
        self._before = self.system.registers()
        self._cpl_before = self.cpl
        self._seen = self._judged = int(self.system.E.ring_head)
        self.system.E.stop_request = 0
        self._found = []
        points: list[Point] = []
        try:
            while True:
                stop = go()
                points = self._found or self._asked(stop)
                arrived = stop.reason == "break" and any(self._is_there(t, stop) for t in self._temporary)
                passed_over = stop.reason in ("break", "watch") and not points and not arrived
                if not passed_over or not more():
                    break
                self.system.E.stop_request = 0
        except KeyboardInterrupt:
            stop = self.system.stop(0, "interrupted")
        finally:
            self._temporary.clear()
        return self._stopped(stop, points)

    def _one(self) -> Any:
        # A breakpoint is heeded before its instruction: the one at rip is not there for one step.
        here = self._is_break(self.system.rip)
        if here:
            self._arm(without=self.system.rip)
        elif self._temporary:
            self._arm()
        try:
            return self.system.step()
        finally:
            if here:
                self._arm()

    def _pass(self) -> Any:
        return self._one() if self._is_break(self.system.rip) else None

    def _is_break(self, rip: int) -> bool:
        return any(p.address == rip for p in self._points) or any(t.address == rip for t in self._temporary)

    def _asked(self, stop: Any) -> list[Point]:
        """The points that ask for this stop, their conditions and counts heeded."""
        found: list[tuple[Point, dict[str, int]]] = []
        if stop.reason == "break":
            here = [p for p in self._points if p.kind == "break" and p.enabled]
            found = [(p, {}) for p in here if p.address == stop.rip]
        elif stop.reason == "watch":
            for access in self._accesses(self._judged)[-1:]:
                fields = {"value": access.value, "index": access.index, "old": access.old or 0}
                found += [(p, fields) for p in self._asked_by(access)]
        self._judged = int(self.system.E.ring_head)
        held = []
        for point, fields in found:
            self._fields = fields
            if point.test is not None and not point.test.value(self._ask):
                continue
            point.hits += 1
            if point.ignore:
                point.ignore -= 1
                continue
            held.append(point)
        return held

    def _asked_by(self, access: Access) -> list[Point]:
        kind = {"rdmsr": READS, "wrmsr": WRITES}.get(access.kind, 0)
        return [p for p in self._points if p.enabled and p.msr == access.index and p.mode & kind]

    def _stopped(self, stop: Any, points: Sequence[Point]) -> Hold:
        new = self._accesses(self._seen)
        registers = self.system.registers()
        changed = {
            name: value
            for name, value in registers.items()
            if value != self._before[name] and name != "rip"
        }
        hits: tuple[Access, ...] = ()
        text = str(attrs.evolve(stop, note=""))
        reason = stop.reason
        numbers = ", ".join(str(p.number) for p in points)
        if reason == "watch":
            hits = tuple(a for a in new[-1:] if self._asked_by(a))
            text = f"watchpoint {numbers or '?'}"
        elif reason == "break" and points:
            text = f"breakpoint {numbers}"
        elif reason == "break":
            reason, text = "until", f"until {self.describe_place(stop.rip)}"
        elif reason in ("step", "until"):
            text = reason
        for point in points:
            if point.once:
                self._points.remove(point)
        self._arm()
        if stop.note != self._note:
            self._note = stop.note
            text += f"\nnote: {stop.note}"
        why = attrs.evolve(self._why(), points=tuple(p.number for p in points))
        found = Hold(reason, stop.rip, text, hits, tuple(new[-RECENT:]), changed, why)
        if found.ended:
            self._ended = found
        return found

    def _why(self) -> Why:
        # The ring says what was delivered; nothing done since then says that its handler begins here.
        exit_ = None
        delivery = None
        for event in self._events(self._seen):
            kind = int(event["kind"])
            if kind == TR_VM_EXIT:
                exit_ = exit_name(int(event["a"]) & 0xFFFF)
            elif kind in DELIVERIES:
                delivery = event
        core = self._guest_core()
        fresh = core is not None and int(core.stats.delivered_at) == self.system.work_done(core)
        if delivery is None or not fresh:
            return Why(exit=exit_, cpl_before=self._cpl_before, cpl_after=self.cpl)
        vector, what = int(delivery["a"]), DELIVERIES[int(delivery["kind"])]
        raised = what == "exception"
        # Behind an error code, if there is one, the frame has rip, then CS (SDM 3A 6.14.2).
        has_error = raised and vector in WITH_ERROR
        frame = self.linear(self.registers()["rsp"] + (16 if has_error else 8))
        before = self._cpl_before if frame is None else self.system.read(frame, 1)[0] & 3
        return Why(
            vector,
            int(delivery["b"]) if has_error else None,
            int(delivery["c"]) if raised and vector == VECTOR_PF else None,
            what,
            before,
            self.cpl,
            int(delivery["rip"]),
            exit_,
        )

    # --- points ---------------------------------------------------------------------------------

    def break_at(
        self, where: str | int, once: bool = False, condition: str = "", ignore: int = 0
    ) -> Point:
        """Stop before the instruction at an address, symbol, symbol+N, line or file:line.

        Raises:
            ConfigError: no such place, or no room for more; CheckError: a condition that cannot be read.
        """
        address = where if isinstance(where, int) else self.locate(where)
        if not 0 <= address < 1 << 64:
            raise ConfigError("break", f"{shown(address)} is not an address", "0 to 2**64 - 1")
        if sum(p.kind == "break" for p in self._points) >= N_BREAK - 1:  # a command may want one, too
            raise ConfigError("break", f"there are {N_BREAK - 1} breakpoints already")
        point = Point(0, "break", address, once=once, place=self.describe_place(address))
        return self._added(point, condition, ignore)

    def watch_msr(
        self, name: str | int, *, read: bool = False, write: bool = True, condition: str = ""
    ) -> Point:
        """Stop after the guest's accesses to an MSR.

        Args:
            name: the SDM's or the kernel's name, or the index.
            read, write: which accesses.
            condition: what must hold; `value`, `old` and `index` are those of the access.

        Raises:
            UnknownNameError: no such MSR; ConfigError: neither reads nor writes, or no room.
        """
        if isinstance(name, str):
            value = whole(name)
            index = by_name(name) if value is None else value
        else:
            index = name
        if not 0 <= index < 1 << 32:
            raise ConfigError("watch", f"{shown(index)} is not what ECX can hold", "0 to 0xffffffff")
        mode = (READS if read else 0) | (WRITES if write else 0)
        if not mode:
            raise ConfigError("watch", "neither reads nor writes", "r w rw")
        if sum(p.kind == "msr" for p in self._points) >= N_WATCH:
            raise ConfigError("watch", f"there are {N_WATCH} watchpoints already")
        return self._added(Point(0, "msr", msr=index, last=index, mode=mode, stage=AFTER), condition)

    def _added(self, point: Point, condition: str = "", ignore: int = 0) -> Point:
        point.ignore = counted(ignore, "ignore")
        if condition:
            point.condition, point.test = condition, self._test_for(point, condition)
        self._number += 1
        point.number = self._number
        self._points.append(point)
        self._arm()
        return point

    def delete(self, number: int | None = None) -> None:
        """Forget one point, or all.

        Raises:
            ConfigError: no point has this number.
        """
        if number is None:
            self._points.clear()
        else:
            self._points.remove(self._point(number, "delete"))
        self._arm()

    def _point(self, number: int, verb: str) -> Point:
        for point in self._points:
            if point.number == number:
                return point
        numbers = " ".join(str(p.number) for p in self._points) or "none"
        raise ConfigError(verb, f"there is no point {shown(number)}", numbers)

    def enable(self, number: int | None = None) -> None:
        """Have a point, or all, wait again. Raises ConfigError: no point has this number."""
        self._turn(number, True, "enable")

    def disable(self, number: int | None = None) -> None:
        """Have a point, or all, wait no longer, and keep it. Raises ConfigError: no such point."""
        self._turn(number, False, "disable")

    def _turn(self, number: int | None, enabled: bool, verb: str) -> None:
        for point in self._points if number is None else [self._point(number, verb)]:
            point.enabled = enabled
        self._arm()

    def set_condition(self, number: int, text: str) -> None:
        """Have a point hold only where an expression does; "" takes the condition away.

        Raises:
            ConfigError: no such point; CheckError: what cannot be read.
        """
        point = self._point(number, "condition")
        test = self._test_for(point, text) if text.strip() else None
        point.condition, point.test = text.strip(), test
        self._arm()

    def set_ignore(self, number: int, count: int) -> None:
        """Have a point be passed over `count` times before it holds. Raises ConfigError: no such point."""
        self._point(number, "ignore").ignore = counted(count, "ignore")

    def points(self) -> list[Point]:
        """All points, oldest first."""
        return list(self._points)

    def _arm(self, without: int | None = None) -> None:
        E = self.system.E
        waiting = [p for p in self._points if p.enabled]
        addresses = {p.address for p in waiting if p.kind == "break"}
        addresses = (addresses | {t.address for t in self._temporary}) - {without}
        for i, address in enumerate(sorted(addresses)):
            E.breaks[i] = address
        E.n_break = len(addresses)
        watched = [p for p in waiting if p.kind == "msr"]
        for i, point in enumerate(watched):
            E.watch_msr[i] = point.msr
            E.watch_mode[i] = point.mode
        E.n_watch = len(watched)
        self.system.forget_decoded()

    # --- conditions -----------------------------------------------------------------------------

    def _test_for(self, point: Point, text: str) -> Test:
        fields = dict.fromkeys(ACCESS_FIELDS, "") if point.kind == "msr" else {}
        return self._test(text, fields, {})

    def _test(self, text: str, fields: dict[str, Any], constants: dict[str, int]) -> Test:
        bare, alone = not self.system.has_host, len(self.system.cores) == 1
        test = test_of(text, self.program, fields, constants, bare, alone)
        self._fields = dict.fromkeys(fields, 0)
        test.value(self._ask)  # what this run does not have is said now
        return test

    def _ask(self, op: int, word: Any) -> int:
        if op == operations.REG:
            return self.system.registers()[GENERAL[word]]
        if op == operations.RIP:
            return self.system.rip
        if op == operations.RFLAGS:
            return self.system.registers()["rflags"]
        if op == operations.CPL:
            return self.cpl
        if op == operations.TIME:
            return int(self.system.core.t) >> 4
        if op == operations.DONE:
            return self.system.instructions
        if op == operations.COUNTER:
            values = self.pmu()
            return values.get(f"pmc{word}" if word < 8 else f"fixed{word - 8}", 0)
        if op == operations.MEM:
            return int.from_bytes(self.system.read(*word), "little")
        if op == FIELD:
            return self._fields[word]
        return self._value_of(word)

    def _value_of(self, tree: Any) -> int:
        try:
            found = evaluate(tree, self.program, self)
        except UnknownValue as error:
            raise VpmuError(str(error)) from None
        if not isinstance(found, int):
            raise VpmuError(f"{shown(found)} is not a number")
        return found

    # --- writing --------------------------------------------------------------------------------

    def write_register(self, name: str, value: int) -> None:
        """Set a register of the guest: rax to r15, rip or rflags.

        Raises:
            ConfigError: no such register, or a value that it does not hold.
        """
        names = (*GENERAL, "rip", "rflags")
        name = name.lstrip("$").lower()
        if name not in names:
            raise ConfigError("register", f"nothing is called {shown(name)}", " ".join(names))
        if not isinstance(value, int) or not -(1 << 63) <= value < 1 << 64:
            raise ConfigError(name, f"{shown(value)} has more than 64 bits")
        value &= (1 << 64) - 1
        if name == "rflags":
            value |= FIXED_FLAGS
        core, system = self._guest_core(), self.system
        if core is not None and name in ("rip", "rflags"):
            core[name] = value
            core.iterations = 0  # what was under way is begun again
            core.rep[0] = np.zeros(1, dtype=core.rep.dtype)[0]
        elif core is not None:
            core.regs[GENERAL.index(name)] = value
        elif name in ("rip", "rflags", "rsp"):
            at = int(system.S.vcpus[0].vmcs) + vmcs_field(f"GUEST_{name.upper()}").offset
            system.M[at : at + 8] = np.frombuffer(value.to_bytes(8, "little"), dtype=np.uint8)
        else:
            from vpmu_emu.views.registers import core_of

            cpu = core_of(system.S)
            holder = system.S.cores[cpu] if cpu >= 0 else system.S.vcpus[0]
            holder.regs[GENERAL.index(name)] = value
        self._ended = None if name == "rip" else self._ended

    def write_memory(self, address: int, data: bytes) -> None:
        """Overwrite physical memory of the guest.

        Raises:
            ConfigError: outside it.
        """
        self.read(address, len(data))
        system = self.system
        for base, at, length in ram_pieces(system.ram_size):
            if base <= address < base + length:
                first = address - base + at
                system.M[first : first + len(data)] = np.frombuffer(bytes(data), dtype=np.uint8)
                for page in range(first // PAGE, (first + len(data) - 1) // PAGE + 1):
                    system.E.page_flags[page] |= PAGE_DIRTY
        system.forget_decoded()
