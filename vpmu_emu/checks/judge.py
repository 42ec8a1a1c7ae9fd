"""A guest runs in every mode of its plan, and each expectation holds or not; how a run ended counts too.

A run that ends otherwise than by debug-exit is a failure, unless a line expects that: `stop == "halted"`.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from vpmu_emu.checks.language import (
    COMPARE,
    CheckError,
    Expectation,
    Outcome,
    ProgramLike,
    UnknownValue,
    Value,
    evaluate,
    show,
)
from vpmu_emu.checks.perturb import perturbed
from vpmu_emu.checks.plan import Plan
from vpmu_emu.errors import AssemblyError, ConfigError, VpmuError

MOST_CYCLES = 10_000_000_000  # of a guest that has no `--max-cycles` in its `args`
MOST_INSNS = 1_000_000_000  # of one that has no `--max-insns` there: some five seconds
NORMAL_STOP = "debug-exit"

Runner = Callable[[Any, str, str | None, Sequence[str]], Outcome]


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
            raise UnknownValue(f"left is {show(left)}, right is {show(right)}")
        ok = COMPARE[expectation.op](left, right)
        return Verdict(expectation, mode, ok, left, right)
    except (UnknownValue, VpmuError) as error:
        return Verdict(expectation, mode, False, left, right, str(error))


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


def run_as_asked(
    program: Any, mode: str, cpu: str | None, args: Sequence[str], inject: Sequence[str] = (),
    ready: Callable[[Sequence[str]], None] | None = None, without: Sequence[int] = (),
) -> Outcome:
    """A `Runner` for real: the options of `vpmu run`, filters beside the guest found by name.

    `inject` names deliberate bugs and `without` patches, beside those that `args` may name; `ready` is
    called with the mode once nothing is wrong with what was asked, and before compiled code is needed.

    Raises:
        VpmuError: whatever is wrong with the options.
    """
    from vpmu_emu.options import parse
    from vpmu_emu.system import check_left_out, run

    def beside(path: str) -> str:
        found = Path(program.name).parent / path
        return str(found) if found.exists() else path

    asked = parse(args, max_cycles=MOST_CYCLES, max_insns=MOST_INSNS, vpmu=mode)
    options = attrs.evolve(
        asked,
        cpu=asked.cpu if cpu is None else cpu,
        filter=beside(asked.filter) if asked.filter else asked.filter,
        msr_filter=beside(asked.msr_filter) if asked.msr_filter else asked.msr_filter,
        host=tuple(beside(path) for path in asked.host),
        inject=(*asked.inject, *inject),
        without=(*asked.without, *without),
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
    from vpmu_emu.asm import with_defsym
    from vpmu_emu.options import parse

    subject, args = program, plan.args
    if plan.guest:
        from vpmu_emu.load import load

        subject, args = load(plan.guest), (*args, "--host", plan.file)
    else:
        program = subject = with_defsym(program, parse(args).defsym)
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
        except KeyboardInterrupt as interrupt:
            interrupt.add_note(f"{plan.file}: [{mode}] was running")
            raise
        notes += [f"[{mode}] {note}" for note in outcome.values.get("notes", ())]
        if lost := outcome.values.get("lost", {}).get("serial"):
            notes.append(f"[{mode}] {lost:,} characters more than are kept were written to the serial port")
        stop_expected = outcome.values["stop"] == NORMAL_STOP
        for expectation in asked:
            verdict = judge(expectation, mode, program, outcome)
            verdicts.append(verdict)
            stop_expected |= verdict.ok and _names_stop(expectation)
            if not perturb or not verdict.ok:
                continue
            for what, candidates in perturbed(expectation, verdict.left, verdict.right):
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
    why = "".join(f"\n    why: {sentence}" for sentence in values.get("why", ()))
    return (
        f"{file}: [{mode}] ended by {stop}{at}{line}, not by {NORMAL_STOP}{why}\n"
        f'  hint: if that is meant, write `#: expect {mode}: stop == "{stop}"`{_limit_text(stop)}'
    )


def _limit_text(stop: str) -> str:
    limit = {"max-insns": MOST_INSNS, "max-cycles": MOST_CYCLES}.get(stop)
    return f"; with no `#: args --{stop} N` a guest has {limit:,}" if limit else ""


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
