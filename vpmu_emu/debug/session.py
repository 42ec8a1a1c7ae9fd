"""A system that can be stopped anywhere; only looks, so a debugged run ends in the same record.

Until its user writes: registers, memory and MSRs are then what the user says.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from vpmu_emu.asm.program import Program
from vpmu_emu.checks import CheckError, evaluate
from vpmu_emu.checks.language import UnknownValue
from vpmu_emu.debug.conditions import MSR, Field, Test, test_of
from vpmu_emu.debug.conditions import REGISTERS as GENERAL
from vpmu_emu.debug.history import History, Position
from vpmu_emu.debug.looking import Looking
from vpmu_emu.debug.points import (
    AFTER,
    BEFORE,
    READS,
    WITH_ERROR,
    WRITES,
    Access,
    Hold,
    Point,
    Why,
    counted,
)
from vpmu_emu.errors import ConfigError, VpmuError
from vpmu_emu.linux.trace_kinds import (
    TR_PERF_STATE,
    TR_PMI_INJECT,
    TR_PMU_LOAD,
    TR_PMU_PUT,
    TR_SCHED_SWITCH,
)
from vpmu_emu.load import load
from vpmu_emu.machine import conditions
from vpmu_emu.machine.clock import tsc_time
from vpmu_emu.machine.ring import (
    TR_EXCEPTION,
    TR_GUEST_RDMSR,
    TR_IRQ,
    TR_MSR_FAULT,
    TR_NMI,
    TR_OVERFLOW,
    TR_PMI_RAISE,
    TR_VM_ENTRY,
    TR_VM_EXIT,
)
from vpmu_emu.machine.state import (
    CLASS,
    N_BREAK,
    N_CATCH,
    N_CONDITIONS,
    N_DATA,
    N_WATCH,
    NEVER,
    PROBE_FAULT,
    PROBE_RDMSR,
    PROBE_WRMSR,
    RUN_SLICE,
)
from vpmu_emu.machine.vectors import VECTOR_PF
from vpmu_emu.numerals import shown, whole
from vpmu_emu.options import Options, did_you_mean, explained
from vpmu_emu.system import PAGE, PAGE_DIRTY, Moment, System, ram_pieces
from vpmu_emu.tables.exits import EXITS, exit_name
from vpmu_emu.tables.msrs import by_name
from vpmu_emu.tables.vmcs import vmcs_field

RECENT = 5
ALL = (1 << 64) - 1
LOW32 = (1 << 32) - 1
ACCESS_FIELDS: dict[str, Field] = {"index": (0, ALL, 0), "value": (1, ALL, 0), "old": (2, ALL, 0)}
# What can be caught: the kinds of events, and what their words are called. Two of perf's are numbers + 2.
CAUGHT: dict[str, tuple[tuple[int, ...], dict[str, Field]]] = {
    "exit": ((TR_VM_EXIT,), {"reason": (0, 0xFFFF, 0), "qualification": (1, ALL, 0), "info": (2, ALL, 0)}),
    "entry": ((TR_VM_ENTRY,), {"injected": (0, ALL, 0), "vector": (0, 0xFF, 0)}),
    "pmi": ((TR_PMI_RAISE,), {"lvt": (0, ALL, 0), "vector": (0, 0xFF, 0)}),
    "overflow": ((TR_OVERFLOW,), {"counter": (0, ALL, 0), "status": (1, ALL, 0)}),
    "exception": (
        (TR_EXCEPTION,), {"vector": (0, ALL, 0), "error": (1, ALL, 0), "address": (2, ALL, 0)},
    ),
    "interrupt": ((TR_IRQ,), {"vector": (0, ALL, 0)}),
    "nmi": ((TR_NMI,), {}),
    "perf-state": (
        (TR_PERF_STATE,), {"event": (0, ALL, 0), "before": (1, ALL, 2), "after": (2, ALL, 2)},
    ),
    "switch": (
        (TR_PMU_LOAD, TR_PMU_PUT, TR_SCHED_SWITCH), {"leaves": (0, ALL, 0), "comes": (1, ALL, 0)},
    ),
}  # fmt: skip
PERF_STATES = {"EXIT": -3, "ERROR": -2, "OFF": -1, "INACTIVE": 0, "ACTIVE": 1}
OF_HOST = ("exit", "entry", "perf-state", "switch")
UNTIL = N_CONDITIONS - 1  # the condition of a command itself
C_RET, C_FAR = CLASS["ret"], CLASS["far"]
MANY = 1000  # stops that are passed over before it is told how slow that is
PATIENCE = 8  # slices that an access of the guest may take
PROBED = 4096  # events that reading an MSR may write into the trace
DELIVERIES = {TR_EXCEPTION: "exception", TR_IRQ: "interrupt", TR_NMI: "nmi"}
STEPPED_OVER = ("call", "int", "rep")
FIXED_FLAGS = 2  # RFLAGS bit 1 reads as 1 (SDM 1, 3.4.3)


@attrs.frozen
class _Temporary:
    """Where a command itself wants to stop: there, if the test holds."""

    address: int
    test: Test | None = None


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
        self.history = History(self.system)
        self.system.between = self.history.keep
        self._points: list[Point] = []
        self._temporary: list[_Temporary] = []
        self._rows: dict[str, list[Point]] = {"msr": [], "memory": []}  # as they stand in E
        self._armed: list[int] = []
        self._number = 0
        self._ended: Hold | None = None
        self._select_stopped()
        self._before = self.registers()
        self._cpl_before = self.cpl
        self._skip = False  # what waits before the next instruction has been told
        self._judged = 0  # events of the trace that points have been asked about
        self._words = (0, 0, 0)  # of the event that a condition is asked about
        self._found: list[Point] = []  # that a part of a command has asked already
        self._pending: Access | None = None  # before which it holds
        self._here = self.history.here(False)
        self.history.visit(self._here)
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
        entry = Point(0, "catch", caught="entry")

        def go() -> Any:
            self._points.append(entry)
            self._arm()
            try:
                stop = self._along()
                over = sum(self.exits().values()) > before and stop.reason == "watch"
                self._found = [p for p in self._asked(stop) if p is not entry]
            finally:
                self._points.remove(entry)
                self._arm()
            return attrs.evolve(stop, reason="exit") if over and not self._found else stop

        return self._go(go)

    def finish(self) -> Hold:
        """Run until the function or handler at hand has returned."""
        rsp, m = self.registers()["rsp"], conditions
        above = [(m.REG, GENERAL.index("rsp")), (m.CONST, rsp), (m.GT, 0)]
        near = [(m.REG, GENERAL.index("rsp")), (m.CONST, rsp), (m.SUB, 0), (m.CONST, 1 << 16), (m.LT, 0)]
        test = Test("", ((m.RETURNED, 0), *above, (m.BOTH, 0), *near, (m.BOTH, 0)))
        core = self._guest_core() or self.system.core
        now = sum(int(core.total[ring, c]) for ring in (0, 1) for c in (C_RET, C_FAR))

        def go() -> Any:
            self.system.E.returns = now
            return self._run_until(test)

        found = self._go(go)
        return attrs.evolve(found, reason="step", text="step") if found.reason == "until" else found

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
            number = self._instruction_number(text)
            done = self.system.instructions
            if number < done:
                raise ConfigError("until", f"{done} instructions are done already", f"reverse-to {text}")
            return self._go(lambda: self._run_to_instruction(number))
        if text == "tsc" or text.startswith("tsc "):
            t = self._time_of_tsc(text)
            if t < self.system.time:
                raise ConfigError("until", f"the TSC is at {self.tsc()} already", f"reverse-to {text}")
            return self._go(lambda: self._run_to_time(t))
        place = self._place(text)
        if place is not None:
            self._temporary.append(_Temporary(place))
            return self._go(self._along)
        test = self._test(text, {}, {})
        return self._go(lambda: self._until_holds(test))

    def _place(self, text: str) -> int | None:
        # A comparison is none, whatever its text may look like.
        if re.search(r"[<>=!&|]|\b(and|or|not)\b", text):
            return None
        try:
            return self.locate(text)
        except (ConfigError, CheckError):
            return None

    def _instruction_number(self, text: str) -> int:
        number = whole(text[1:])
        if number is None or not 0 <= number < 1 << 62:
            raise ConfigError("until", f"{shown(text)} is no number of an instruction", "#0 to #2**62 - 1")
        return number

    def _time_of_tsc(self, text: str) -> int:
        text = text.removeprefix("tsc").strip()
        number = whole(text.removeprefix("+"))
        if number is None or number < 0:
            raise ConfigError("until", f"{shown(text)} is no value of the TSC", "tsc N or tsc +N")
        core, now = self.system.core, self.tsc()
        target = number + now if text.startswith("+") else number
        own = int(core.t) * int(core.tsc_num) // (16 * int(core.tsc_den))
        return max(0, tsc_time(core, own + target - now))

    def _run_to_instruction(self, number: int) -> Any:
        E = self.system.E
        limit = int(E.insn_limit)
        missing = number - self.system.instructions
        if missing <= 0:
            return attrs.evolve(self.system.stop(RUN_SLICE), reason="until-time")
        E.insn_limit = min(limit, self.system.work() + missing)
        try:
            stop = self._along()
        finally:
            E.insn_limit = limit
        if stop.reason == "max-insns" and self.system.work() < limit:
            return attrs.evolve(stop, reason="until")
        return stop

    def _run_to_time(self, t: int) -> Any:
        if self.system.time >= t:
            return attrs.evolve(self.system.stop(RUN_SLICE), reason="until-time")
        self._pass()
        code = RUN_SLICE
        while code == RUN_SLICE and self.system.time < t:
            code = self.system.go_on(t)
            if code == RUN_SLICE:
                self.history.keep()
        stop = self.system.stop(code)
        return attrs.evolve(stop, reason="until-time") if code == RUN_SLICE else stop

    def _until_holds(self, test: Test) -> Any:
        stop = self._one()
        if stop.reason != "step":
            return stop
        if test.compiled:
            return self._run_until(test)
        while stop.reason == "step" and not test.value(self._ask):
            stop = self.system.step()
        return attrs.evolve(stop, reason="until-time") if stop.reason == "step" else stop

    def _run_until(self, test: Test) -> Any:
        E = self.system.E
        test.write(E, UNTIL)
        E.until, E.until_met = UNTIL + 1, 0
        try:
            stop = self._along()
        finally:
            E.until = 0
        met = stop.reason == "watch" and int(E.until_met)
        return attrs.evolve(stop, reason="until") if met and not int(E.stop_request) else stop

    def cont(self) -> Hold:
        """Run to the next breakpoint, watched access, or the end.

        Raises:
            KeyboardInterrupt: never; Ctrl-C is a stop with reason `interrupted`.
        """
        return self._go(self._along)

    def _along(self) -> Any:
        self._pass()
        return self.system.run()

    def _one(self) -> Any:
        self._pass()
        return self.system.step()

    def _pass(self) -> None:
        # What holds before its instruction has been told: the one at rip runs.
        E = self.system.E
        E.stop_request = E.until_met = E.stopped_before = E.data_hit = 0
        E.pass_rip, E.pass_cpu = self.rip, int(E.cpu) + 1 if self._skip else 0

    def _over(self) -> Any:
        here = self.instruction(self.rip)
        if here is None or not here.text.startswith(STEPPED_OVER):
            return self._one()
        m = conditions
        rsp = 0 if here.text.startswith("rep") else self.registers()["rsp"]
        test = Test("", ((m.REG, GENERAL.index("rsp")), (m.CONST, rsp), (m.GE, 0)))
        there = _Temporary(here.addr + here.size, test)
        self._temporary.append(there)
        self._arm()
        try:
            while True:
                stop = self._along()
                self._found = self._asked(stop)
                self._skip = stop.reason == "break"
                if self._found or stop.reason not in ("break", "watch"):
                    return stop
                if stop.reason == "break" and self.rip == there.address:
                    return attrs.evolve(stop, reason="over")
        finally:
            self._temporary.remove(there)
            self._arm()

    def _go(self, go: Callable[[], Any], more: Callable[[], bool] = lambda: True) -> Hold:
        # Goes on until a point holds or something else stops; `more`: whether it has to if none does.
        if self._ended:
            self._temporary.clear()
            return self._ended
        self.history.forget_later()
        self._select_stopped()
        self._before = self.registers()
        self._cpl_before = self.cpl
        self._seen = self._judged = int(self.system.E.ring_head)
        points: list[Point] = []
        self._skip = True
        passed, began = 0, time.monotonic()
        if self._temporary:
            self._arm()
        try:
            while True:
                self._found = []
                stop = go()
                points = self._found or self._asked(stop)
                self._skip = stop.reason == "break"
                passed_over = stop.reason in ("break", "watch") and not points
                if passed_over and stop.reason == "break":
                    passed_over = not any(t.address == self.rip for t in self._temporary)
                if not passed_over or not more():
                    break
                passed += 1
        except KeyboardInterrupt:
            stop = self.system.stop(0, "interrupted")
        finally:
            self._temporary.clear()
        found = self._stopped(stop, points)
        if passed < MANY:
            return found
        rate = int(passed / max(1e-3, time.monotonic() - began))
        told = f"note: {passed:,} stops did not hold, {rate:,} a second: each was asked about apart"
        return attrs.evolve(found, text=f"{found.text}\n{told}")

    def _asked(self, stop: Any, count: bool = True) -> list[Point]:
        """The points that ask for this stop, their conditions and counts heeded."""
        E = self.system.E
        found: list[tuple[Point, tuple[int, int, int]]] = []
        nothing = (0, 0, 0)
        self._pending = None
        self._select_stopped()
        if stop.reason == "break" and int(E.stopped_before):
            self._pending = self._next_access()
            words = (self._pending.index, self._pending.value, 0)
            found = [(p, words) for p in self._asked_by(self._pending, BEFORE)]
        elif stop.reason == "break":
            here = [p for p in self._points if p.kind == "break" and p.enabled]
            found = [(p, nothing) for p in here if p.address == self.rip]
        elif stop.reason == "watch":
            hit = int(E.data_hit)
            found = [(p, nothing) for k, p in enumerate(self._rows["memory"]) if hit >> k & 1]
            for access in self._accesses(self._judged):
                words = (access.msr, access.value, access.old or 0)
                found += [(p, words) for p in self._asked_by(access, AFTER)]
            found += self._caught()
        self._judged = int(E.ring_head)
        held: list[Point] = []
        for point, words in found:
            self._words = words
            if point in held or (point.test is not None and not point.test.value(self._ask)):
                continue
            if count:
                point.hits += 1
                if point.ignore:
                    point.ignore -= 1
                    continue
            held.append(point)
        return held

    def _asked_by(self, access: Access, stage: str) -> list[Point]:
        kind = WRITES if access.kind == "wrmsr" else READS
        found = []
        for p in self._rows["msr"]:
            if p.stage != stage or not p.mode & kind or not p.msr <= access.msr <= p.last:
                continue
            if p.value is not None and (access.value ^ p.value) & p.mask:
                continue
            if not (p.changes and access.old == access.value):
                found.append(p)
        return found

    def _caught(self) -> list[tuple[Point, tuple[int, int, int]]]:
        waiting = [(p, self._kinds(p.caught)) for p in self._points if p.kind == "catch" and p.enabled]
        if not waiting:
            return []
        return [
            (p, (int(event["a"]), int(event["b"]), int(event["c"])))
            for event in self._events(self._judged)
            for p, kinds in waiting
            if int(event["kind"]) in kinds
        ]

    def _kinds(self, caught: str) -> tuple[int, ...]:
        if caught == "pmi" and self.system.has_host:
            return (TR_PMI_INJECT,)
        return CAUGHT[caught][0]

    def _next_access(self) -> Access:
        # The one that the instruction at rip is about to make.
        registers = self.registers()
        rip = registers["rip"]
        here = self.instruction(rip)
        word = here.text.split()[0] if here is not None else "rdmsr"
        value = registers["rax"] & LOW32 | (registers["rdx"] & LOW32) << 32 if word == "wrmsr" else 0
        place = self.describe_place(rip)
        return Access(word, registers["rcx"] & LOW32, value, None, rip, place, pending=True)

    def _stopped(self, stop: Any, points: Sequence[Point]) -> Hold:
        self._select_stopped()
        here = self.history.here(stop.reason not in ("step", "interrupted", "until-time"))
        if here.order != self._here.order:  # else it has not moved
            self._here = here
        self.history.visit(self._here)
        if not self._here.settled:
            self.history.keep()
        new = self._accesses(self._seen)
        hits: tuple[Access, ...] = ()
        reason, text = stop.reason, str(attrs.evolve(stop, note=""))
        if points:
            reason, text = self._told(points)
            asked = [self._pending] if self._pending is not None else new
            stage = BEFORE if self._pending is not None else AFTER
            hits = tuple(a for a in asked if any(p in points for p in self._asked_by(a, stage)))[-1:]
        elif reason == "break":
            reason, text = "until", f"until {self.describe_place(self.rip)}"
        elif reason in ("until", "until-time"):
            reason = text = "until"
        elif reason in ("step", "over", "exit"):
            reason = text = "step"
        for point in points:
            if point.once:
                self._points.remove(point)
        self._arm()
        if stop.note != self._note:
            self._note = stop.note
            text += f"\nnote: {stop.note}"
        found = self._hold(reason, text, hits, tuple(new[-RECENT:]), points)
        if found.ended:
            self._ended = found
        return found

    def _told(self, points: Sequence[Point]) -> tuple[str, str]:
        words = {"break": "breakpoint", "msr": "watchpoint", "memory": "watchpoint", "catch": "catchpoint"}
        kinds: dict[str, list[str]] = {}
        for point in points:
            kinds.setdefault(words[point.kind], []).append(str(point.number))
        reason = {"breakpoint": "break", "watchpoint": "watch", "catchpoint": "catch"}[next(iter(kinds))]
        text = "; ".join(f"{word} {', '.join(numbers)}" for word, numbers in kinds.items())
        return reason, text + (", before the access" if self._pending is not None else "")

    def _hold(
        self,
        reason: str,
        text: str,
        hits: tuple[Access, ...] = (),
        recent: tuple[Access, ...] = (),
        points: Sequence[Point] = (),
    ) -> Hold:
        registers = self.registers()
        changed = {
            name: value
            for name, value in registers.items()
            if value != self._before[name] and name != "rip"
        }
        why = attrs.evolve(self._why(), points=tuple(p.number for p in points))
        return Hold(reason, registers["rip"], text, hits, recent, changed, why)

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

    # --- going back -----------------------------------------------------------------------------

    def reverse_step(self, count: int = 1) -> Hold:
        """Be where the program was `count` instructions ago, or at the start of the run."""

        here, last = self._here, self.history.visited_before(self._here)

        def find() -> Position | None:
            found = self.history.before(here, counted(count, "reverse-step"), self.system.step)
            if count == 1 and last is not None and (found is None or last.order >= found.order):
                return last  # from there the last step was made
            return found

        return self._back(find, "step", "step back")

    def reverse_cont(self) -> Hold:
        """Be where the last breakpoint, watchpoint or catchpoint before here held, or at the start."""
        return self._back(lambda: self._last_stop(True), "reverse", "")

    def reverse_to(self, where: str) -> Hold:
        """Be where the program was last at a place, or where something held.

        Args:
            where: as for `until`.

        Raises:
            ConfigError: what lies ahead, or asks for what only a stop can tell; CheckError: what cannot be
                read.
        """
        text = where.strip()
        if text.startswith("#"):
            number = self._instruction_number(text)
            if number > self.system.instructions:
                done = self.system.instructions
                raise ConfigError("reverse-to", f"only {done} instructions are done", f"until {text}")
            return self._back(lambda: self._at_instruction(number), "reverse", f"instruction {number}")
        if text == "tsc" or text.startswith("tsc "):
            t = self._time_of_tsc(text)
            if t > self.system.time:
                raise ConfigError("reverse-to", f"the TSC is at {self.tsc()} only", f"until {text}")
            return self._back(lambda: self.history.at_time(t), "reverse", text)
        place = self._place(text)
        if place is not None:
            here = _Temporary(place)
            self._temporary.append(here)
            try:
                told = f"back at {self.describe_place(place)}"
                return self._back(lambda: self._last_stop(False), "reverse", told)
            finally:
                self._temporary.clear()
                self._arm()
        test = self._test(text, {}, {})
        if not test.compiled:
            raise ConfigError("reverse-to", f"{shown(text)} is known at a stop only", "reverse_cont")
        return self._back(lambda: self._last_stop(False, test), "reverse", text)

    def restart(self) -> Hold:
        """Be at the start, with all points and without what was written."""
        self._leave()
        self.history.restart()
        return self._arrived("restart", "at the start")

    def checkpoint(self) -> int:
        """Give this point of the run a number, for `goto_checkpoint`."""
        return self.history.checkpoint(self._here)

    def goto_checkpoint(self, number: int) -> Hold:
        """Be at a checkpoint again. Raises ConfigError: there is none of this number."""
        where = self.history.checkpoint_at(number)
        return self._back(lambda: where, "checkpoint", f"checkpoint {number}")

    def _leave(self) -> None:
        self._before = self.registers()
        self._cpl_before = self.cpl
        self._disarm()

    def _back(self, find: Callable[[], Position | None], reason: str, text: str) -> Hold:
        here, ended = self._here, self._ended
        self._leave()
        self._found = []
        try:
            where = find()
            at_start = where is None
            where = self.history.go(self.history.start if where is None else where)
        except KeyboardInterrupt:
            self._disarm()
            here = self.history.go(here)
            self._ended = ended
            return self._arrived("interrupted", "interrupted", here)
        if at_start:
            return self._arrived("start", "the run begins here", where)
        points = self._found
        if points:
            reason, text = self._told(points)
        return self._arrived(reason, text, where, points)

    def _arrived(
        self, reason: str, text: str, where: Position | None = None, points: Sequence[Point] = ()
    ) -> Hold:
        self._here = where or self.history.here(False)
        self.history.visit(self._here)
        self._select_stopped()
        if reason != "interrupted":
            self._ended = None
        self._ring_from = self.history.ring_from
        self._seen = self._judged = int(self.system.E.ring_head)
        self.system.E.stop_request = 0
        self._arm()
        return self._hold(reason, text, points=points)

    def _at_instruction(self, number: int) -> Position:
        E, history = self.system.E, self.history
        history.before_instruction(number)
        while (write := history.next_write()) is not None and write.instructions <= number:
            history.write_again()
        limit = int(E.insn_limit)
        missing = number - self.system.instructions
        if missing <= 0:
            return history.here(False)
        E.insn_limit = min(limit, self.system.work() + missing)
        try:
            self.system.run()
        finally:
            E.insn_limit = limit
        return history.here(True)

    def _last_stop(self, points: bool, test: Test | None = None) -> Position | None:
        """The last position before here at which a point, or what the command wants, holds; else None."""
        end = limit = self._here
        for begin in self.history.beginnings(end):
            self._judged = int(self.system.E.ring_head)
            self._arm(points)
            if test is not None:
                test.write(self.system.E, UNTIL)
            last: tuple[Position, list[Point]] | None = None
            told = self._skip = False
            while True:
                write = self.history.next_write()
                target = limit if write is None or write.order >= limit.order else write
                found = self._next_stop(target, test, told)
                told = found is not None
                if found is not None:
                    last = found
                elif target is limit:
                    break
                else:
                    self._disarm()
                    self.history.write_again()
                    self._arm(points)
            self._disarm()
            if last is not None:
                self._found = last[1]
                return last[0]
            limit = begin
        return None

    def _next_stop(
        self, target: Position, test: Test | None, told: bool
    ) -> tuple[Position, list[Point]] | None:
        # The next stop before `target`, None once it is reached; `told`: what waits here has been told.
        E, system = self.system.E, self.system
        if told:
            self._pass()
            if test is not None:
                system.step()
        E.stop_request = E.until_met = E.stopped_before = E.data_hit = 0
        if test is not None:
            E.until = UNTIL + 1
        if target.settled:
            E.stop_cpu, E.stop_t = target.cpu, target.t
        try:
            while True:
                if not target.settled and system.time >= target.t:
                    return None
                code = system.go_on(None if target.settled else target.t)
                here = self.history.here(True)
                if code == RUN_SLICE and (here.order < target.order or target.settled):
                    continue
                stop = system.stop(code)
                if stop.reason not in ("break", "watch") or here.order >= target.order:
                    return None
                if int(E.until_met):
                    return here, []
                points = self._asked(stop, count=False)
                arrived = any(t.address == self.rip for t in self._temporary)
                self._skip = stop.reason == "break"
                if points or (stop.reason == "break" and arrived):
                    return here, points
                self._pass()
        finally:
            E.until, E.stop_t = 0, NEVER

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
        self._room("break", N_BREAK - 2)  # a command may want one, too
        point = Point(0, "break", address, once=once, place=self.describe_place(address))
        return self._added(point, condition, ignore)

    def watch_msr(
        self,
        name: str | int,
        *,
        read: bool = False,
        write: bool = True,
        value: int | None = None,
        mask: int | None = None,
        changes: bool = False,
        stage: str = AFTER,
        condition: str = "",
    ) -> Point:
        """Stop at the guest's accesses to MSRs, those that raise #GP and RDPMC of a counter included.

        Args:
            name: the SDM's or the kernel's name, an index, a range FIRST..LAST, or "all".
            read, write: which accesses.
            value, mask: only those whose value is this one, under the mask.
            changes: only writes that change the register, and reads that find another value than before.
            stage: "after" the access and the handler of its VM-exit, or "before" it.
            condition: what must hold; `value`, `old` and `index` are those of the access.

        Raises:
            UnknownNameError: no such MSR; ConfigError: what cannot be, or no room.
        """
        first, last = self._msrs(name)
        mode = (READS if read else 0) | (WRITES if write else 0)
        if not mode:
            raise ConfigError("watch", "neither reads nor writes", "r w rw")
        if stage not in (AFTER, BEFORE):
            raise ConfigError("watch", f"there is no stage {shown(stage)}", f"{AFTER} {BEFORE}")
        if stage == BEFORE and (changes or (read and value is not None)):
            raise ConfigError("watch", "what an access will find is not known before it", AFTER)
        for number in (value, mask):
            if number is not None and not 0 <= number < 1 << 64:
                raise ConfigError("watch", f"{shown(number)} has more than 64 bits")
        if mask is not None and value is None:
            raise ConfigError("watch", "a mask is for a value", "value=… mask=…")
        self._room("msr", N_WATCH)
        return self._added(
            Point(
                0, "msr", msr=first, last=last, mode=mode, value=value, mask=ALL if mask is None else mask,
                changes=changes, stage=stage,
            ),
            condition,
        )  # fmt: skip

    def _msrs(self, name: str | int) -> tuple[int, int]:
        def index(text: str | int) -> int:
            number = whole(text) if isinstance(text, str) else text
            found = by_name(str(text)) if number is None else number
            if not 0 <= found <= LOW32:
                raise ConfigError("watch", f"{shown(found)} is not what ECX can hold", "0 to 0xffffffff")
            return found

        if name == "all":
            return 0, LOW32
        ends = str(name).split("..") if isinstance(name, str) else [name]
        if len(ends) > 2:
            raise ConfigError("watch", f"{shown(name)} is no range", "FIRST..LAST")
        first, last = index(ends[0]), index(ends[-1])
        if first > last:
            raise ConfigError("watch", f"{shown(name)} is empty", "FIRST..LAST")
        return first, last

    def watch_memory(
        self,
        where: str | int,
        size: int = 8,
        *,
        read: bool = False,
        write: bool = True,
        condition: str = "",
    ) -> Point:
        """Stop after the instruction that accesses memory, the processor's own accesses included.

        Args:
            where: a linear address, a symbol or a place; size: bytes from there, 1 to 4096.
            read, write: which accesses; condition: what must hold.

        Raises:
            ConfigError: no such place, what cannot be, or no room.
        """
        address = where if isinstance(where, int) else self._address(where)
        if not 0 < size <= PAGE or not 0 <= address <= (1 << 64) - size:
            what = f"{shown(size)} bytes at {shown(address)} cannot be watched"
            raise ConfigError("watch", what, f"1 to {PAGE} bytes")
        mode = (READS if read else 0) | (WRITES if write else 0)
        if not mode:
            raise ConfigError("watch", "neither reads nor writes", "r w rw")
        self._room("memory", N_DATA)
        place = self._named(address)
        return self._added(Point(0, "memory", address, size, mode=mode, place=place), condition)

    def _address(self, text: str) -> int:
        found = self.evaluate(text, place=True)
        if not isinstance(found, int):
            raise ConfigError("watch", f"{shown(text)} is not an address")
        return found

    def catch(self, kind: str, condition: str = "") -> Point:
        """Stop when something happens.

        Args:
            kind: exit, entry (VM-exit and entry), pmi, overflow (of a counter), exception, interrupt, nmi
                (delivered to the program), perf-state (of an event of the host), switch (the PMU's context,
                tasks of the host).
            condition: what must hold; a word of the event has a name, see `CAUGHT`.

        Raises:
            ConfigError: nothing of that kind happens in this mode; CheckError: what cannot be read.
        """
        if kind not in CAUGHT:
            hint = did_you_mean(kind, CAUGHT)
            raise ConfigError("catch", f"{shown(kind)} cannot be caught{hint}", " ".join(CAUGHT))
        if kind in OF_HOST and not self.system.has_host:
            allowed = " ".join(k for k in CAUGHT if k not in OF_HOST)
            raise ConfigError("catch", f"--vpmu {self.system.mode} has no {kind}", allowed)
        kinds = sum(len(self._kinds(p.caught)) for p in self._points if p.kind == "catch")
        if kinds + len(self._kinds(kind)) > N_CATCH - 1:
            raise ConfigError("catch", "there is no room for more catchpoints")
        return self._added(Point(0, "catch", caught=kind), condition)

    def _room(self, kind: str, most: int) -> None:
        if sum(p.kind == kind for p in self._points) >= most:
            words = {"break": "breakpoints", "msr": "watchpoints", "memory": "watchpoints on memory"}
            verb = "break" if kind == "break" else "watch"
            raise ConfigError(verb, f"there are {most} {words[kind]} already")

    def _added(self, point: Point, condition: str = "", ignore: int = 0) -> Point:
        point.ignore = counted(ignore, "ignore")
        if condition.strip():
            point.condition, point.test = condition.strip(), self._test_for(point, condition)
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

    @property
    def ended(self) -> Hold | None:
        """The stop after which the program cannot go on, if this is there; going back is possible."""
        return self._ended

    def points(self) -> list[Point]:
        """All points, oldest first."""
        return list(self._points)

    def _disarm(self) -> None:
        E = self.system.E
        E.n_break = E.n_watch = E.n_catch = E.n_data = E.until = 0
        if self._armed:
            self._armed = []
            self.system.forget_decoded()

    def _arm(self, points: bool = True) -> None:
        """Tell the machine what waits: with `points` False only what the command itself wants."""
        E = self.system.E
        waiting = [p for p in self._points if p.enabled] if points else []
        tests: list[Test] = []

        def number(test: Test | None, known: bool) -> int:
            # A condition that the machine does not know is asked when it has stopped.
            if test is None or not known:
                return 0
            test.write(E, len(tests))
            tests.append(test)
            return len(tests)

        breaks: list[tuple[int, Test | None]] = [(t.address, t.test) for t in self._temporary]
        breaks += [(p.address, p.test) for p in waiting if p.kind == "break"]
        for i, (address, test) in enumerate(breaks):
            E.breaks[i] = address
            E.break_condition[i] = number(test, test is not None and test.compiled)
        E.n_break = len(breaks)
        addresses = sorted({address for address, _ in breaks})
        if addresses != self._armed:
            self._armed = addresses
            self.system.forget_decoded()
        self._rows["msr"] = [p for p in waiting if p.kind == "msr"]
        for i, p in enumerate(self._rows["msr"]):
            E.watch_msr[i], E.watch_last[i], E.watch_mode[i] = p.msr, p.last, p.mode
            E.watch_stage[i], E.watch_changes[i] = int(p.stage == BEFORE), int(p.changes)
            E.watch_value[i] = p.value or 0
            E.watch_mask[i] = 0 if p.value is None else p.mask
            E.watch_condition[i] = number(p.test, p.test is not None and p.test.of_event)
        E.n_watch = len(self._rows["msr"])
        self._rows["memory"] = [p for p in waiting if p.kind == "memory"]
        for i, p in enumerate(self._rows["memory"]):
            E.data_first[i], E.data_size[i], E.data_mode[i] = p.address, p.size, p.mode
        E.n_data = len(self._rows["memory"])
        caught = [(kind, p) for p in waiting if p.kind == "catch" for kind in self._kinds(p.caught)]
        for i, (kind, p) in enumerate(caught):
            E.catch_kind[i] = kind
            E.catch_condition[i] = number(p.test, p.test is not None and p.test.of_event)
        E.n_catch = len(caught)

    # --- conditions -----------------------------------------------------------------------------

    def _test_for(self, point: Point, text: str) -> Test:
        fields: dict[str, Field] = {}
        constants: dict[str, int] = {}
        if point.kind == "msr":
            fields = ACCESS_FIELDS
        elif point.kind == "catch":
            fields = CAUGHT[point.caught][1]
            if point.caught == "exit":
                constants = {name: row.number for row in EXITS for name in (row.name, *row.aliases)}
            elif point.caught == "perf-state":
                constants = PERF_STATES
        return self._test(text, fields, constants)

    def _test(self, text: str, fields: dict[str, Field], constants: dict[str, int]) -> Test:
        bare, alone = not self.system.has_host, len(self.system.cores) == 1
        test = test_of(text, self.program, fields, constants, bare, alone)
        self._words = (0, 0, 0)
        test.value(self._ask)  # what this run does not have is said now
        return test

    def _ask(self, op: int, word: Any) -> int:
        m = conditions
        if op == m.REG:
            return self.registers()[GENERAL[word]]
        if op == m.RIP:
            return self.rip
        if op == m.RFLAGS:
            return self.registers()["rflags"]
        if op == m.CPL:
            return self.cpl
        if op == m.TIME:
            return int(self.system.core.t) >> 4
        if op == m.DONE:
            return self.system.instructions
        if op == m.COUNTER:
            values = self.pmu()
            return values.get(f"pmc{word}" if word < 8 else f"fixed{word - 8}", 0)
        if op == m.MEM:
            return int.from_bytes(self.system.read(*word), "little")
        if op == m.EVENT:
            return self._words[word]
        if op == MSR:
            return self.read_msr(word) or 0
        return self._value_of(word)

    def _value_of(self, tree: Any) -> int:
        try:
            found = evaluate(tree, self.program, self)
        except UnknownValue as error:
            raise VpmuError(str(error)) from None
        if not isinstance(found, int):
            raise VpmuError(f"{shown(found)} is not a number")
        return found

    def rehearse(self) -> Any:
        """The events of the program's next instruction, as `System.events` has them; it is undone then."""
        system, E = self.system, self.system.E
        kept, ring, head = system.moment(self.history.base), np.array(E.ring), int(E.ring_head)
        keep, system.between = system.between, None
        self._disarm()
        try:
            system.step()
            return self._events(head)
        finally:
            system.put_back(kept, self.history.base)
            E.ring[:] = ring
            system.between = keep
            self._arm()

    # --- MSRs -----------------------------------------------------------------------------------

    def read_msr(self, name: str | int) -> int | None:
        """What RDMSR would give the guest if it were its next instruction; None if that raised #GP.

        The guest does it, and all that comes of it is then undone.

        Raises:
            UnknownNameError: no such MSR.
        """
        index = self._msrs(name)[0]
        system, E, thread = self.system, self.system.E, self._thread
        self._select_stopped()
        kept = system.moment(self.history.base)
        head, size = int(E.ring_head), len(E.ring)
        rows = (np.arange(PROBED) + head) % size
        ring = E.ring[rows]
        found = None
        try:
            self.write_register("rcx", index, _again=True)
            for event in self._probe(PROBE_RDMSR):
                if int(event["a"]) == index and int(event["kind"]) in (TR_GUEST_RDMSR, TR_MSR_FAULT):
                    found = int(event["b"]) if int(event["kind"]) == TR_GUEST_RDMSR else None
        finally:  # Ctrl-C too
            self._undo(kept)
            E.ring[rows] = ring
            self._thread = thread
        return found

    def _undo(self, kept: Moment) -> None:
        E = self.system.E
        E.probe = 0
        self.system.put_back(kept, self.history.base)
        self._arm()

    def write_msr(self, name: str | int, value: int) -> None:
        """Have the guest do a WRMSR, which is no instruction of its program, and takes the time of one.

        Raises:
            UnknownNameError: no such MSR; ConfigError: #GP, or the guest cannot do it now; nothing is
                changed then.
        """
        index = self._msrs(name)[0]
        if not 0 <= value < 1 << 64:
            raise ConfigError("write", f"{shown(value)} has more than 64 bits")
        where, kept = self._here, self.system.moment(self.history.base)
        self._select_stopped()
        try:
            fine = self._write_msr(index, value)
        except KeyboardInterrupt:
            self._undo(kept)
            raise
        if not fine:
            self._undo(kept)
            raise ConfigError("write", f"WRMSR of {value:#x} to {index:#x} raises #GP")
        self.history.write(where, self._on_thread(self._write_msr, index, value))
        self._here = self.history.here(True)

    def _write_msr(self, index: int, value: int) -> bool:
        registers = self.registers()
        for name, word in (("rcx", index), ("rax", value & LOW32), ("rdx", value >> 32)):
            self.write_register(name, word, _again=True)
        events = self._probe(PROBE_WRMSR)
        fine = int(self.system.E.probe_done) not in (0, PROBE_FAULT)
        fine = fine and all(int(event["kind"]) != TR_MSR_FAULT for event in events)
        for name in ("rcx", "rax", "rdx"):
            self.write_register(name, registers[name], _again=True)
        self._arm()
        return fine

    def _probe(self, kind: int) -> Any:
        # The events of an access that the guest makes here with the registers that it has.
        E, head = self.system.E, int(self.system.E.ring_head)
        self._disarm()
        E.probe, E.probe_done, E.stop_request, E.pass_cpu = kind, 0, 0, 0
        code = RUN_SLICE
        for _ in range(PATIENCE):
            if code == RUN_SLICE:
                code = self.system.go_on()
        E.probe = E.stop_request = 0
        return self._events(head)

    # --- writing --------------------------------------------------------------------------------

    def write_register(self, name: str, value: int, *, _again: bool = False) -> None:
        """Set a register of the guest: rax to r15, rip or rflags.

        Raises:
            ConfigError: no such register, or a value that it does not hold.
        """
        names = (*GENERAL, "rip", "rflags")
        name = name.lstrip("$").lower()
        if self._thread[0] == "task":
            raise ConfigError(name, "registers of a program of the host are looked at only", "a vCPU")
        if name not in names:
            raise ConfigError("register", f"nothing is called {shown(name)}", " ".join(names))
        if not isinstance(value, int) or not -(1 << 63) <= value < 1 << 64:
            raise ConfigError(name, f"{shown(value)} has more than 64 bits")
        value &= ALL
        if not _again:
            self.history.write(self._here, self._on_thread(self.write_register, name, value, _again=True))
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
            at = int(system.S.vcpus[self._vcpu].vmcs) + vmcs_field(f"GUEST_{name.upper()}").offset
            system.M[at : at + 8] = np.frombuffer(value.to_bytes(8, "little"), dtype=np.uint8)
        else:
            from vpmu_emu.views.registers import core_of

            cpu = core_of(system.S, self._vcpu)
            holder = system.S.cores[cpu] if cpu >= 0 else system.S.vcpus[self._vcpu]
            holder.regs[GENERAL.index(name)] = value

    def _on_thread(self, do: Callable[..., object], *what: Any, **how: Any) -> Callable[[], object]:
        # To be done once more for the thread that is selected now.
        thread = self._thread

        def again() -> object:
            self._thread = thread
            return do(*what, **how)

        return again

    def write_memory(self, address: int, data: bytes) -> None:
        """Overwrite physical memory of the guest.

        Raises:
            ConfigError: outside it.
        """
        self.read(address, len(data))
        copy = bytes(data)
        self._write_memory(address, copy)
        self.history.write(self._here, lambda: self._write_memory(address, copy))

    def _write_memory(self, address: int, data: bytes) -> None:
        system = self.system
        for base, at, length in ram_pieces(system.ram_size):
            if base <= address < base + length:
                first = address - base + at
                system.M[first : first + len(data)] = np.frombuffer(data, dtype=np.uint8)
                for page in range(first // PAGE, (first + len(data) - 1) // PAGE + 1):
                    system.E.page_flags[page] |= PAGE_DIRTY
        system.forget_decoded()
