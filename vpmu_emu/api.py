"""What `import vpmu_emu` does beside the classes: run, check, diff, explain, trace, each one call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from vpmu_emu import build, system
from vpmu_emu.asm.program import Program
from vpmu_emu.errors import ConfigError
from vpmu_emu.numerals import shown
from vpmu_emu.options import Options, known
from vpmu_emu.system import Result

if TYPE_CHECKING:  # each is imported by who is called
    from vpmu_emu.checks import CheckReport
    from vpmu_emu.compare.told import DiffReport
    from vpmu_emu.explanation import Explanation
    from vpmu_emu.traces.events import Trace


def run(program: Program | str | Path | None, *, vpmu: str = "bare", **options: Any) -> Result:
    """Run a guest to its end and say what it did.

    The first run in a mode compiles it, in two processes, for up to a minute, or of an installed wheel
    generates its code, for some seconds; later ones load it.

    Args:
        program: a program, or the path of a source file or an ELF executable.
        vpmu: bare, none, emulated, passthrough or mediated.
        options: as for `System`, told in docs/options.md: cpu, ram (MiB), max_insns, filter, guest, …

    Raises:
        AssemblyError: the source has errors, all of them listed.
        ConfigError: an option with a wrong value; says what would do.
        LoadError: a file that cannot be read, or a program that does not fit.
        KeyboardInterrupt: Ctrl-C; its notes say where the guest was, and what it may have waited for. A
            `Session` stops there instead.
    """
    return system.run(program, vpmu=vpmu, ready=partial(build.prepare, [vpmu]), **options)


def check(
    *paths: str | Path, perturb: bool = False, inject: Sequence[str] = (), without: Sequence[Any] = ()
) -> CheckReport:
    """Run guests against the `#: expect` lines in them, as `vpmu check` does; true if all of them hold.

    Args:
        paths: files, or folders with guests.
        perturb: also alter every expected constant: each must turn red.
        inject: deliberate bugs to put in, by name; without: patches of the series to leave out.

    Raises:
        VpmuError: no such file, bug or patch; what is wrong with a guest is in its report.
        KeyboardInterrupt: Ctrl-C, which is never green.
    """
    from vpmu_emu.checks import CheckReport, check_files

    if not paths:
        raise ConfigError("paths", "there is nothing to check", "files or folders with guests")
    found = list(check_files(paths, perturb=perturb, inject=inject, without=without, ready=build.prepare))
    return CheckReport(tuple(report for report, _ in found), any(broken for _, broken in found))


def diff(
    program: Program | str | Path,
    *,
    vpmu: str | Sequence[str] = ("bare", "emulated"),
    with_a: str = "",
    with_b: str = "",
    **options: Any,
) -> DiffReport:
    """Run a guest twice, and find the first instruction after which they differ, as `vpmu diff` does.

    Args:
        program: as for `run`.
        vpmu: two modes, or both in one text with a comma.
        with_a, with_b: further options of one run, in the command's words: "--quirk v1".
        options: of both runs, as for `run`; what has no effect in one of the modes is left out there.

    Raises:
        ConfigError: what cannot be asked, the same run twice included; else as `run`.
    """
    from vpmu_emu.compare.asked import FIELDS, two
    from vpmu_emu.compare.diff import Comparison
    from vpmu_emu.compare.told import DiffReport
    from vpmu_emu.load import load

    for key in options:
        known("diff", "option", key, FIELDS)
    a, b = two(options, vpmu if isinstance(vpmu, str) else ",".join(vpmu), with_a, with_b)
    found = program if isinstance(program, Program) else load(program, a[1].defsym)
    modes = list(dict.fromkeys((a[1].vpmu, b[1].vpmu)))
    return DiffReport.of(Comparison(found, a, b, ready=partial(build.prepare, modes)))


def explain(
    action: str,
    what: str | int | None = None,
    value: int | None = None,
    *,
    vpmu: str = "passthrough",
    cpl: int = 0,
    pce: bool = False,
    msrs: Mapping[str | int, int] | Iterable[tuple[str | int, int]] = (),
    **options: Any,
) -> Explanation:
    """Have a guest do one access, and tell step by step what became of it, as `vpmu explain` does.

    Args:
        action: rdmsr, wrmsr or rdpmc; switch: no access, but what an exit costs the guest's PMU context.
        what: an MSR's name or number; for rdpmc the value of ECX.
        value: what WRMSR writes, or what RDMSR finds.
        vpmu: the mode.
        cpl: 0 or 3; pce: CR4.PCE.
        msrs: registers, counters too, that the guest writes before, in order: {"IA32_PMC0": 5}.
        options: as for `run`.

    Raises:
        ConfigError: an action, an access, a state or an option that cannot be; UnknownNameError: no such
            register, with the nearest.
    """
    from vpmu_emu import explanation

    known("action", "access", action, (*explanation.ACTIONS, explanation.SWITCH))
    pairs = msrs.items() if isinstance(msrs, Mapping) else msrs
    before = [
        (explanation.parse_msr(_name(name, "msrs")), _number(number, "msrs")) for name, number in pairs
    ]
    ready = partial(build.prepare, [vpmu])
    if action == explanation.SWITCH:
        if what is not None or value is not None or cpl or pce:
            raise ConfigError("action", "a switch is no access: it has no what, value, cpl or pce")
        return explanation.explain_switch(msrs=before, vpmu=vpmu, ready=ready, **options)
    if what is None:
        raise ConfigError("what", f"{action} of which register?", "a name or a number")
    if cpl not in (0, 3):
        raise ConfigError("cpl", f"{shown(cpl)} is no ring of a guest", "0 3")
    number = None if value is None else _number(value, "value")
    state: dict[str, Any] = {"cpl": cpl, "pce": bool(pce), "msrs": before}
    return explanation.explain(
        action, _name(what, "what"), number, **state, vpmu=vpmu, ready=ready, **options
    )


def _name(what: object, key: str) -> str:
    if isinstance(what, str):
        return what
    if isinstance(what, bool) or not hasattr(what, "__index__"):
        raise ConfigError(key, f"{shown(what)} is neither a name nor a number")
    return hex(what.__index__())


def _number(value: object, key: str) -> int:
    from vpmu_emu.explanation import parse_number

    if isinstance(value, str):
        return parse_number(value, key)
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ConfigError(key, f"{shown(value)} is not a number")
    return parse_number(hex(value.__index__()), key)


def trace(program: Program | str | Path | None, *, vpmu: str = "bare", **options: Any) -> Trace:
    """Run a guest with the event trace on: what guest, hypervisor and host did, in order.

    Args:
        program, vpmu, options: as for `run`; a path as `trace` is written, too.

    Raises:
        As `run`.
    """
    from vpmu_emu.traces.events import Trace
    from vpmu_emu.traces.files import check_trace, recorder

    asked = Options.of({**options, "vpmu": vpmu})
    path = asked.trace if isinstance(asked.trace, str | Path) else None
    if path is not None:
        check_trace(str(path), [program] if isinstance(program, str | Path) else [])
    recorders: list[Any] = []
    result = system.run(
        program, attrs.evolve(asked, trace=True), ready=partial(build.prepare, [vpmu]),
        begin=lambda machine: recorders.append(recorder(machine, path or "")),
    )  # fmt: skip
    trace = Trace.of(result, recorders[0].recording())
    if path is not None:
        trace.save(path)
    return trace
