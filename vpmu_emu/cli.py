"""Words on a screen: the `vpmu` command; every decision is made below."""

from __future__ import annotations

import contextlib
import difflib
import errno
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from vpmu_emu.errors import VpmuError

if TYPE_CHECKING:
    from vpmu_emu.asm.program import Program
    from vpmu_emu.system import System

FINE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
ENDED = 128  # and the number of the signal
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EBADF, errno.EIO)


def say(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print text of which a program may have made a part: nothing in it steers the terminal."""
    from vpmu_emu.report import visible

    with contextlib.suppress(OSError) if err else contextlib.nullcontext():  # nobody is left to be told
        click.echo(visible(text), err=err, nl=nl)


class _Message(click.ClickException):
    """A VpmuError on its way to the screen."""

    exit_code = BAD_INPUT

    def show(self, file: Any = None) -> None:  # noqa: ARG002  (as click calls it)
        say(f"vpmu: {self.message}", err=True)


class _Group(click.Group):
    """Sub-commands with did-you-mean, and errors of ours as one message each."""

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """As click's, but whatever ends the command ends it with one message and a status of ours."""
        click_main: Any = super().main
        if not standalone_mode:
            return click_main(*args, standalone_mode=False, **extra)
        from vpmu_emu.report import visible

        _open_streams()
        status: Any
        with _ending_signals():
            try:
                status = click_main(*args, standalone_mode=False, **extra)
            except click.ClickException as error:
                error.message = visible(error.message)  # type: ignore[misc]
                error.show()
                status = error.exit_code
            except (click.Abort, KeyboardInterrupt) as interrupt:
                began = interrupt.__cause__ or interrupt  # click makes an Abort of it
                say("\n".join(["vpmu: interrupted", *getattr(began, "__notes__", ())]), err=True)
                status = INTERRUPTED
            except BrokenPipeError:
                status = FAILED
            sys.exit(_flushed(status if isinstance(status, int) else FINE))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), 1)
            if near and "Did you mean" not in error.message:
                message = f"{error.message} Did you mean {near[0]!r}?"
                raise click.UsageError(message, ctx) from None
            raise

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except VpmuError as error:
            raise _Message(str(error)) from error
        except RecursionError:
            raise _Message("the input is nested too deeply") from None
        except UnicodeDecodeError as error:
            raise _Message(f"not a text file ({error.reason} at byte {error.start})") from error
        except IsADirectoryError as error:
            raise _Message(f"{error.filename}: is a folder") from error
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                raise
            place = error.filename or ("standard output" if error.errno in NO_ROOM else "")
            raise _Message(f"{place}{place and ': '}{error.strerror or error}") from error
        except MemoryError:
            raise _Message("there is not enough memory") from None


# --- what a command stands in: streams and signals -------------------------------------------------


def _open_streams() -> None:
    # A file that is opened must not get the number of a closed stream; writing to that is still an error.
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            try:
                os.fstat(number)
            except OSError:
                os.open(os.devnull, os.O_RDONLY if name == "stdout" else os.O_RDWR)
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        # Names of files may have bytes that are no text, and not every terminal shows every character.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _flushed(status: int) -> int:
    """The status, once everything is written; what cannot be is told here, not as the interpreter ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if stream is sys.stdout and not isinstance(error, BrokenPipeError):
                with contextlib.suppress(OSError):
                    say(f"vpmu: standard output: {error.strerror}", err=True)
                status = BAD_INPUT
            elif stream is sys.stdout:
                status = status or FAILED
    return status


@contextlib.contextmanager
def _ending_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP unwind as Ctrl-C does, so that nothing is left behind."""
    names = [s for n in ("SIGTERM", "SIGHUP") if (s := getattr(signal, n, None)) is not None]
    if threading.current_thread() is not threading.main_thread():
        names = []

    def end(number: int, _frame: Any) -> None:
        raise SystemExit(ENDED + number)

    before = {name: signal.getsignal(name) for name in names}
    for name in names:
        if before[name] is signal.SIG_DFL:
            signal.signal(name, end)
    try:
        yield
    finally:
        for name in names:
            signal.signal(name, before[name])


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vpmu-emu", prog_name="vpmu")
def main() -> None:
    """Run x86 guests that read and write MSRs and performance counters, with and without KVM."""


def _json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1))


# --- run ------------------------------------------------------------------------------------------

from click.core import ParameterSource  # noqa: E402

from vpmu_emu.options import OPTIONS, Options, click_options, did_you_mean, run_options  # noqa: E402
from vpmu_emu.tables.modes import default_modes  # noqa: E402


@main.command()
@partial(run_options, needs_program=False)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON (docs/schema.json).")
@click.pass_context
def run(ctx: click.Context, /, prog: str | None, as_json: bool, **options: Any) -> None:
    """Run PROG (a .s file, an ELF executable, or - for standard input) and report what it did.

    With --restore PROG may be left out: it is in the file.
    """
    from vpmu_emu.report import run_tables, show, speed, summary
    from vpmu_emu.system import write_saved

    if prog is None and options["restore"] is None:
        raise click.UsageError("Missing argument 'PROG' (or --restore FILE).", ctx)

    if as_json and options["trace"] == "-":
        raise VpmuError("--trace - and --json both write to standard output")
    program, system = machine(prog, Options.of(options))
    recorder = record(system, options["trace"])
    try:
        stop = system.run()
    except KeyboardInterrupt:
        stop = system.stop(0, "interrupted")
    result = system.result(stop)
    write_saved(system)
    save_trace(recorder, options["trace"])
    values = result.to_json()
    if as_json:
        _json(values)
    else:
        if values["serial"]:
            say(values["serial"], nl=not values["serial"].endswith("\n"))
        say(summary(values, program.name))
        show(run_tables(values))
        # Not with what a run did, which is the same every time and everywhere.
        say(f"vpmu: {speed(values)}", err=True)
    if options["save"] is not None and stop.reason != "saved" and stop.reason != "interrupted":
        say(f"vpmu: nothing was saved: the guest ended before {options['at']}", err=True)
        ctx.exit(FAILED)
    ctx.exit(exit_status(values))


def machine(prog: str | None, options: Options) -> tuple[Program, System]:
    """The program PROG and a machine with it; compiled once nothing is wrong with what was asked."""
    from vpmu_emu.system import System, with_saved

    options.check()  # before a file is read
    program = load(prog, options.defsym) if prog is not None else None
    if options.restore is not None:
        options = with_saved(options, program)
        program = program or options.restore.program
    assert program is not None
    ready = partial(prepare, [options.vpmu])
    return program, System(program, with_files(program, prog or "", options), ready=ready)


def sources(program: Program, prog: str) -> list[Path]:
    """Every file that a program came from."""
    return [Path(name) for name in (prog, *program.source)]


def with_files(program: Program, prog: str, options: Options) -> Options:
    """The options with their programs loaded; a trace can be written, and over none of what was read."""
    from vpmu_emu.output import check_output

    host = [load(path) for path in options.host]
    read = [*sources(program, prog), *options.host, *filter(None, [options.filter, options.msr_filter])]
    read += [path for one in host for path in one.source]
    read += [options.restore.name] if options.restore is not None else []
    if options.trace is not None:
        from vpmu_emu.traces.files import check_trace  # not by those who want none

        check_trace(options.trace, read)
    if options.save is not None:
        check_output(options.save, read)
    return attrs.evolve(options, host=tuple(host))


def record(system: System, path: str | None) -> Any:
    """Have the trace of a run go to disk from now on, if that was asked for."""
    if path is None:
        return None
    from vpmu_emu.traces.files import recorder

    return recorder(system, path)


def save_trace(run: Any, path: str | None) -> None:
    """Write the trace of a run, if that was asked for."""
    if path is not None:
        from vpmu_emu.traces.files import write_trace

        write_trace(run, path)


def exit_status(values: dict[str, Any]) -> int:
    """What the shell hears about a run."""
    if values["stop"] == "interrupted":
        return INTERRUPTED
    if values["exit_code"] is not None:
        return FINE if values["exit_code"] == 0 else FAILED
    return FINE if values["stop"] in ("halted", "saved") else FAILED


def load(prog: str, defsym: Mapping[str, int] | None = None) -> Program:
    """The program called PROG on the command line, with `defsym` defined."""
    from vpmu_emu.load import load as load_file
    from vpmu_emu.load import load_bytes

    if prog == "-":
        return load_bytes(sys.stdin.buffer.read(), "<stdin>", defsym)
    path = Path(prog)
    if not prog or not path.exists():
        near = _similar_guest(prog)
        name = prog or "''"
        raise VpmuError(f"{name}: no such file" + (f"; did you mean {near}?" if near else ""))
    program = load_file(path, defsym)
    for note in program.notes:
        say(f"vpmu: {prog}: {note}", err=True)
    return program


def _similar_guest(prog: str) -> str:
    from vpmu_emu.data import guests_dir

    known = {path.name: path for path in guests_dir().rglob("*.s")}
    near = difflib.get_close_matches(Path(prog).name, known, 1)
    return str(known[near[0]]) if near else ""


ONCE = "once per version and machine"
NEVER = float("inf")


def prepare(modes: Sequence[str]) -> None:
    """Make ready what is missing for `modes`, and say so while it goes on."""
    from vpmu_emu import build

    _make_ready([mode for mode in modes if not build.is_built(mode)], build.WORKERS)


def _make_ready(modes: Sequence[str], workers: int) -> None:
    from vpmu_emu import build

    left = [mode for mode in modes if not build.comes_with_package(mode)]
    todo = [mode for mode in modes if mode not in left and not build.is_built(mode)]
    if todo:
        title = "generating code of " + ", ".join(todo)
        with _progress(title, f" (for this processor; {ONCE})", pause=NEVER) as tell:
            left += build.finish(todo, tell)
    if left:
        why = f" ({build.why_compiled()}; {ONCE})"
        with _progress("compiling " + ", ".join(left), why, pause=NEVER) as tell:
            build.build(left, tell, workers)


class _progress:  # noqa: N801  (reads as a statement)
    """`37 of 104 kvm_pmu_set_msr` on stderr: one moving line on a terminal, plain lines elsewhere.

    Plain ones come at most every `pause` seconds, but the first and the last always do.
    If that is NEVER, no plain one does.
    """

    def __init__(self, title: str, note: str = "", pause: float = 0.0) -> None:
        self.title, self.note, self.pause = title, note, pause
        self.moving = sys.stderr.isatty()
        self.bar: Any = None
        self.told = float("-inf")

    def __enter__(self) -> Callable[[int, int, str], None]:
        if not self.moving or self.note:
            say(f"vpmu: {self.title}{self.note}", err=True)
        return self._tell

    def _begin(self) -> Any:
        # With the first number: there is room for one bar, and what goes before may have one of its own.
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        words = "{task.completed} of {task.total} {task.fields[name]}"
        bar = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(), TextColumn(words, markup=False),
            TimeRemainingColumn(), console=Console(stderr=True), transient=True,
        )  # fmt: skip
        bar.start()
        bar.add_task(self.title, total=1, name="")
        return bar

    def _tell(self, done: int, total: int, name: str) -> None:
        if self.moving:
            self.bar = self.bar or self._begin()
            self.bar.update(self.bar.task_ids[0], completed=done, total=total, name=name)
        elif self.pause != NEVER and (done == total or time.monotonic() - self.told >= self.pause):
            self.told = time.monotonic()
            say(f"{done} of {total} {name}".rstrip(), err=True)

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()


@main.command()
@click.argument("prog", required=False)
@click.option("--modes", default=",".join(default_modes()), show_default=True)
@click.option("--json", "as_json", is_flag=True)
def demo(prog: str | None, modes: str, as_json: bool) -> None:
    """Run one guest under several PMUs and put the numbers side by side (default: lesson 06)."""
    from vpmu_emu.data import guests_dir
    from vpmu_emu.report import comparison, show
    from vpmu_emu.system import run as run_system

    names = named_modes(modes)
    program = load(prog or str(guests_dir() / "lessons" / "06_sampling.s"))
    results = {
        mode: run_system(program, vpmu=mode, ready=partial(prepare, [mode])).to_json() for mode in names
    }
    if as_json:
        _json(results)
        return
    for mode, values in results.items():
        if values["serial"]:
            say(f"{mode} says:")
            say("  " + values["serial"].rstrip("\n").replace("\n", "\n  "))
    click.echo()
    show(comparison(results))


# --- check ----------------------------------------------------------------------------------------


@main.command()
@click.argument("paths", nargs=-1, required=True)
@click.option("--perturb", is_flag=True, help="Alter every expected constant: each must turn red.")
@click_options("without", "inject")
@click.option("--json", "as_json", is_flag=True)
@click.option("-v", "--verbose", is_flag=True, help="Show the expectations that hold, too.")
@click.pass_context
def check(
    ctx: click.Context,
    paths: tuple[str, ...],
    perturb: bool,
    without: tuple[str, ...],
    inject: tuple[str, ...],
    as_json: bool,
    verbose: bool,
) -> None:
    """Run guests against the `#: expect` lines in them, in every mode they name."""
    from vpmu_emu.checks import CheckReport, check_files

    reports, broken = [], False
    asked: dict[str, Any] = {"perturb": perturb, "inject": inject, "without": without}
    for report, is_broken in check_files(paths, **asked, ready=prepare, loader=load):
        reports.append(report)
        broken |= is_broken
        if not as_json:
            _show_report(report, verbose)
    found = CheckReport(tuple(reports), broken)
    if as_json:
        _json(found.to_json())
    else:
        say(
            f"{len(reports)} guests, {found.expectations} expectations, {found.failed} failed"
            + (f", {sum(len(r.blind) for r in reports)} blind" if perturb else "")
        )
    ctx.exit(BAD_INPUT if broken else FINE if found.ok else FAILED)


def _show_report(report: Any, verbose: bool) -> None:
    held = sum(v.ok for v in report.verdicts)
    modes = " ".join(dict.fromkeys(v.mode for v in report.verdicts))
    state = "ok    " if report.ok else "FAILED"
    say(f"{state} {report.file}: {held} of {len(report.verdicts)} hold ({modes})")
    for verdict in report.verdicts:
        if verbose or not verdict.ok:
            say(f"  {'  ' if verdict.ok else '! '}{verdict}")
    for stop in report.stops:
        say(f"  ! {stop}")
    for note in report.notes:
        say(f"  note: {note}")
    for line in report.blind:
        say(f"  blind: {line}")
    if report.error:
        say(report.error)


# --- runs beside each other -------------------------------------------------------------------------

from vpmu_emu.compare.asked import FIELDS  # noqa: E402  (a table of options, as above)


@main.command("diff")
@click.argument("prog")
@click.option("--vpmu", default="bare,emulated", show_default=True, metavar="A,B", help="The two modes.")
@click_options(*FIELDS)
@click.option("--with-a", default="", metavar="OPTIONS", help="Further options of the first run, quoted.")
@click.option("--with-b", default="", metavar="OPTIONS", help="Of the second: --with-b '--quirk v1'.")
@click.option("--json", "as_json", is_flag=True, help="As in docs/diff.md.")
@click.pass_context
def diff_command(
    ctx: click.Context, /, prog: str, vpmu: str, with_a: str, with_b: str, as_json: bool, **options: Any
) -> None:
    """Run PROG twice, and name the first instruction after which the two runs differ.

    Anything that the guest could know is compared, instruction by instruction: registers, memory, counters
    that stand still, PMIs. The row of docs/divergences.md that explains it is named, and the kernel's
    function that decided it. Exit status 1 if they differ.
    """
    from vpmu_emu.compare.asked import two
    from vpmu_emu.compare.diff import Comparison
    from vpmu_emu.compare.told import DiffReport

    a, b = two(options, vpmu, with_a, with_b)  # before a file is read
    program = load(prog, a[1].defsym)
    a, b = ((name, with_files(program, prog, asked)) for name, asked in (a, b))
    modes = list(dict.fromkeys((a[1].vpmu, b[1].vpmu)))
    found = DiffReport.of(Comparison(program, a, b, ready=partial(prepare, modes)))
    if as_json:
        _json(found.to_json())
    else:
        say(found.text)
    ctx.exit(FAILED if found.differs else FINE)


@main.command("sweep-overflow")
@click.argument("prog")
@click.option("--vpmu", default="bare,emulated,passthrough,mediated", show_default=True, metavar="MODES",
              help="With commas.")
@click_options(*(key for key in FIELDS if key != "pmi_skid"))
@click.option("--pmi-skid", "skids", multiple=True, default=("0:0",), show_default=True,
              metavar="OVERFLOW:RECOGNITION", help="As for `vpmu run`; again for another one.")
@click.option("--counter", default="", metavar="NAME", help="pmc0 …, fixed0 …; the first that is on, else.")
@click.option("--most", default=100, show_default=True, type=click.IntRange(1, 10_000), metavar="N",
              help="Of the window's events, the first N.")
@click.option("--json", "as_json", is_flag=True, help="As in docs/sweep_overflow.md.")
def sweep_overflow(
    prog: str, vpmu: str, skids: tuple[str, ...], counter: str, most: int, as_json: bool, **options: Any
) -> None:
    """Force an overflow at every event of PROG's first counted window.

    The counter is set right in front of the instruction that opens it, once for each place. What the
    guest hears of it is told: GLOBAL_STATUS, how many PMIs, where the first one found it.
    """
    from vpmu_emu.compare import overflow
    from vpmu_emu.compare.asked import several
    from vpmu_emu.report import show

    skids = tuple(dict.fromkeys(Options.of({"pmi_skid": skid}).pmi_skid for skid in skids))
    each = several(options, vpmu)  # before a file is read
    program = load(prog, each[0].defsym)
    each = [with_files(program, prog, asked) for asked in each]
    ready = partial(prepare, [asked.vpmu for asked in each])
    with _progress("forcing overflows", pause=5.0) as tell:
        found = overflow.sweep(
            program, each, skids, counter, most, ready=ready,
            progress=lambda done, of: tell(done, of, "overflows"),
        )  # fmt: skip
    if as_json:
        _json(found.to_json())
        return
    show(overflow.tables(found))
    for note in overflow.notes(found):
        say(note)


# --- asm, guests, info, build -----------------------------------------------------------------------


@main.command()
@click.argument("prog")
@click.option("--listing", is_flag=True, help="Address, bytes and source of every line.")
@click.option("-o", "--output", metavar="FILE", help="Write an ELF executable.")
@click_options("defsym")
@click.option("--json", "as_json", is_flag=True)
def asm(prog: str, listing: bool, output: str | None, defsym: Sequence[str], as_json: bool) -> None:
    """Assemble PROG; without options, say what became of it."""
    from vpmu_emu.asm.elf import write_elf
    from vpmu_emu.asm.listing import instructions
    from vpmu_emu.asm.listing import listing as listing_of
    from vpmu_emu.output import check_output, write_output

    asked = Options.of({"defsym": defsym})
    asked.check_values()
    program = load(prog, asked.defsym)
    if output is not None:
        check_output(output, sources(program, prog))
        write_output(output, write_elf(program))
        if output == "-":
            return
    if as_json:
        _json({
            "schema": 1, "name": program.name, "entry": program.entry,
            "segments": [
                {"name": s.name, "addr": s.addr, "size": len(s.data), "data": s.data.hex()}
                for s in program.segments
            ],
            "symbols": dict(program.symbols),
        })  # fmt: skip
    elif listing:
        say(listing_of(program), nl=False)
    else:
        count = sum(1 for _ in instructions(program))
        parts = ", ".join(f"{s.name} {s.addr:#x}+{len(s.data):#x}" for s in program.segments)
        say(f"{program.name}: {count} instructions, entry {program.entry:#x}; {parts}")


@main.command()
@click.argument("names", nargs=-1, metavar="[BUG]...")
@click.option("--bugs", is_flag=True, help="The gallery of real bugs (docs/bugs.md); those named are run, "
              "without their switch and with it.")
@click.option("--json", "as_json", is_flag=True)
@click.pass_context
def guests(ctx: click.Context, names: tuple[str, ...], bugs: bool, as_json: bool) -> None:
    """List the guest programs that come with the package."""
    from vpmu_emu.data import guests_dir
    from vpmu_emu.report import Table, show

    if bugs:
        _guests_bugs(ctx, names, as_json)
        return
    if names:
        raise click.UsageError(f"Got unexpected argument ({names[0]}): bugs are named after --bugs.", ctx)
    folder = guests_dir()
    rows = []
    for path in sorted(folder.rglob("*.s")):
        text = path.read_text(encoding="utf-8")
        first = next(
            (line.lstrip("# ") for line in text.splitlines() if line.startswith("# ")), ""
        )
        rows.append((str(path), first.strip(), text.count("\n#: expect")))
    if as_json:
        _json([{"path": p, "title": t, "expectations": n} for p, t, n in rows])
    else:
        show([Table("", ("guest", "what it shows", "expectations"), tuple(rows))])


def _guests_bugs(ctx: click.Context, names: Sequence[str], as_json: bool) -> None:
    from vpmu_emu.compare.gallery import look
    from vpmu_emu.report import Table, show
    from vpmu_emu.tables.bugs import BUGS, bug

    if not names:
        if as_json:
            _json({"schema": 1, "bugs": [attrs.asdict(row) for row in BUGS]})
            return
        rows = tuple(
            (row.name, row.title, " ".join(row.switch), f"{row.guest}, {row.mode}") for row in BUGS
        )
        show([Table("", ("bug", "what is wrong", "switch", "guest that finds it"), rows)])
        return
    found = [look(row, prepare) for row in [bug(name) for name in dict.fromkeys(names)]]
    if as_json:
        _json({"schema": 1, "bugs": [one.to_json() for one in found]})
    for one in [] if as_json else found:
        say(f"{one.bug.name}: {one.bug.title}\n\n{one.bug.text}\n")
        say(f"without {' '.join(one.bug.switch)}:")
        _show_report(one.without, verbose=True)
        say(f"with {' '.join(one.bug.switch)}:")
        _show_report(one.with_it, verbose=True)
    ctx.exit(FINE if all(one.ok for one in found) else FAILED)


@main.command()
@click.option("--cpu", metavar="MODEL", help="One CPU model: its PMU and the events that it counts.")
@click.option("--jit", is_flag=True, help="Compiled functions and lines per mode.")
@click.option("--without", multiple=True, metavar="N",
              help="A patch of the series: what it does, and what breaks without it; repeatable.")
@click.option("--json", "as_json", is_flag=True)
def info(cpu: str | None, jit: bool, without: tuple[str, ...], as_json: bool) -> None:
    """Versions, CPU models, modes, folders.

    With --cpu, one model; with --without, patches of the series; with --jit, what each mode compiles.
    """
    if cpu is not None and without:
        raise VpmuError("--cpu and --without are two questions")
    if cpu is not None:
        _info_cpu(cpu, as_json)
        return
    if without:
        _info_patches(Options.of({"without": without}), as_json)
        return
    import platform
    from importlib.metadata import version

    from vpmu_emu import __version__, build
    from vpmu_emu.data import guests_dir, isa_dir
    from vpmu_emu.report import Table, show
    from vpmu_emu.tables.msrs import MSRS
    from vpmu_emu.tables.mutants import MUTANTS
    from vpmu_emu.tables.patches import PATCHES

    facts: dict[str, Any] = {
        "vpmu_emu": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in ("numba", "numpy", "lark")},
        "isa": str(isa_dir()),
        "guests": str(guests_dir()),
        "cpus": sorted(path.stem for path in (isa_dir() / "cpus").glob("*.toml")),
        "modes": list(build.modes()),
        "msrs": len(MSRS),
        "mutants": {row.name: row.doc for row in MUTANTS},
        "patches": {str(row.number): row.title for row in PATCHES.values()},
    }
    if jit:
        from vpmu_emu import _jit
        from vpmu_emu._jit import shipped

        facts["cache"] = str(_jit.cache_base())
        facts["shipped"] = shipped.why_not() or "compiled code came with this package"
        facts["jit"] = {mode: build.weigh(mode) for mode in build.modes()}
    if as_json:
        _json(facts)
        return
    weights = facts.pop("jit", None)
    facts["mutants"] = f"{len(MUTANTS)} deliberate bugs (--json names them)"
    facts["patches"] = f"{len(PATCHES)} of the passthrough series (--without N tells of one)"
    rows = [(k, ", ".join(v) if isinstance(v, list) else str(v)) for k, v in facts.items()]
    show([Table("", ("", ""), tuple(rows))])
    if weights:
        heads = ("mode", "functions", "inlined", "lines", "on disk", "ready")
        code = [(mode, *w.values(), "yes" if build.is_built(mode) else "no") for mode, w in weights.items()]
        show([Table("Compiled code", heads, tuple(code))])


def _info_patches(asked: Options, as_json: bool) -> None:
    from vpmu_emu.report import Table, show
    from vpmu_emu.tables.patches import PATCHES

    asked.check_values()
    rows = [attrs.asdict(PATCHES[number]) for number in dict.fromkeys(asked.without)]
    if as_json:
        _json({"schema": 1, "patches": rows})
        return
    for row in rows:
        told = {key: ", ".join(map(str, v)) if isinstance(v, tuple) else v for key, v in row.items()}
        show([Table("", ("", ""), tuple((key, value) for key, value in told.items() if value))])


def _info_cpu(name: str, as_json: bool) -> None:
    from vpmu_emu.report import Table, show
    from vpmu_emu.tables.cpus import cpu, describe

    facts = describe(cpu(name))
    if as_json:
        _json({"schema": 1, **facts})
        return
    events = facts.pop("events")
    for key in ("signature", "perf_capabilities"):
        facts[key] = f"{facts[key]:#x}"
    facts["leaf_0a"] = " ".join(f"{register:#x}" for register in facts["leaf_0a"])
    facts["features"] = " ".join(facts["features"])
    costs, latencies = facts.pop("costs"), facts.pop("latencies")
    facts["model"] = " ".join(f"{key}={value}" for key, value in facts["model"].items())
    show([Table("", ("", ""), tuple(facts.items()))])
    words: tuple[str, ...] = ("low", "typical", "high")
    each = tuple((key, *(row[word] / 16 for word in words), row["doc"]) for key, row in latencies.items())
    title = "Latencies, in cycles (--set model.NAME= takes sixteenths)"
    show([Table(title, ("", *words, "of"), each)])
    words = (*words, "instructions", "source")
    work = tuple((key, *(row[word] for word in words)) for key, row in costs.items())
    show([Table("Costs of the host's work, in cycles (--set cost.ROW=)", ("", *words), work)])
    rows = []
    for event in events:
        where = [str(n) for n in event["counters"]]
        if len(where) > 2:
            where = [f"{where[0]}-{where[-1]}"]
        where += [] if event["fixed"] is None else [f"fixed{event['fixed']}"]
        rows.append((event["name"], f"{event['code']:#06x}", " ".join(where), event["doc"]))
    heads = ("event", "UMASK EVENT", "counters", "what it counts")
    show([Table("Events", heads, tuple(rows))])


@main.command()
@click.argument("action", type=click.Choice(["rdmsr", "wrmsr", "rdpmc", "switch"]))
@click.argument("what", required=False)
@click.argument("value", required=False)
@click_options("vpmu", "cpu", "settings", "guest", "filter", "msr_filter", "all_passthrough", "switch",
               "quirks", "without", "kvm", "inject", "host_events", "host", "costs", vpmu="passthrough")
@click.option("--cpl", type=click.Choice(["0", "3"]), default="0", show_default=True,
              help="Privilege level at the instruction.")
@click.option("--pce", type=click.Choice(["0", "1"]), default="0", show_default=True,
              help="CR4.PCE: RDPMC at CPL 3.")
@click.option("--msr", multiple=True, metavar="NAME=VALUE",
              help="A register, counters too, that the guest writes before; repeatable, in order.")
@click.option("--json", "as_json", is_flag=True)
def explain(
    action: str,
    what: str | None,
    value: str | None,
    cpl: str,
    pce: str,
    msr: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Do one access in a guest and say step by step what became of it.

    WHAT is an MSR's name or number, or ECX of RDPMC. VALUE is what WRMSR writes, or what RDMSR finds.
    `explain switch` has neither: a guest exits, and what its PMU context costs until it goes on is said
    access by access.
    """
    from vpmu_emu.explanation import SWITCH, explain_switch, parse_number, parse_settings
    from vpmu_emu.explanation import explain as explain_access
    from vpmu_emu.report import Table, show

    ready = partial(prepare, [options["vpmu"]])
    if action == SWITCH:
        if what is not None or cpl != "0" or pce != "0":
            raise click.UsageError("a switch is no access: it takes no WHAT, no VALUE, no --cpl, no --pce.")
        steps = explain_switch(msrs=parse_settings(msr), **options, ready=ready).steps
    elif what is None:
        raise click.UsageError("Missing argument 'WHAT'.")
    else:
        number = None if value is None else parse_number(value, "VALUE")
        state: dict[str, Any] = {"cpl": int(cpl), "pce": pce == "1", "msrs": parse_settings(msr)}
        steps = explain_access(action, what, number, **state, **options, ready=ready).steps
    if as_json:
        _json([{"what": s.what, "verdict": s.verdict, "decides": s.decides} for s in steps])
    else:
        show([Table("", ("", ""), tuple((s.what, s.verdict) for s in steps))])


@main.command()
@click.argument("prog", required=False)
@click.option("--times", default=5, show_default=True, type=click.IntRange(1), help="Best of N; rounds.")
@click.option("--modes", help=f"Of PROG: comma-separated; {','.join(default_modes())} if not said.")
@click_options(*(key for key in OPTIONS if key not in ("vpmu", "trace", "save", "at", "restore")))
@click.option("--json", "as_json", is_flag=True)
@click.pass_context
def bench(
    ctx: click.Context, /, prog: str | None, times: int, modes: str | None, as_json: bool, **options: Any
) -> None:
    """Time PROG in every mode, by access, beside what else can run it; without PROG, the hot path.

    Rounds are interleaved, and what is told is the median with the least and the greatest of them.
    """
    from vpmu_emu import bench as bench_module
    from vpmu_emu.report import Table, show

    if prog is not None:
        _bench_guest(prog, named_modes(modes or ",".join(default_modes())), times, as_json, options)
        return
    for key in (*options, "modes"):
        if ctx.get_parameter_source(key) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{key.replace('_', '-')} is of PROG, and there is none.", ctx)
    prepare(["bare"])
    found = bench_module.report(times)
    if as_json:
        _json(found)
        return
    for name, workload in found["workloads"].items():
        rows = [
            (t["runner"], t["note"] or t["mips"], None if t["note"] else t["seconds"])
            for t in workload["timings"]
        ]
        show([Table(f"{name}, best of {times}", ("runner", "M instr/s", "seconds"), tuple(rows))])
        ratios = tuple((other, ratio) for other, ratio in workload["against"].items())
        show([Table("", ("vpmu with all counters is x times", ""), ratios)])


def _bench_guest(
    prog: str, modes: list[str], times: int, as_json: bool, options: dict[str, Any]
) -> None:
    from vpmu_emu.bench_guest import bench_guest, tables
    from vpmu_emu.checks import MOST_INSNS
    from vpmu_emu.report import show

    asked = Options.of({"max_insns": MOST_INSNS, **{k: v for k, v in options.items() if v is not None}})
    asked.check_some_mode(modes)
    program = load(prog, asked.defsym)
    host = tuple(load(path) for path in asked.host)
    found = bench_guest(program, attrs.evolve(asked, host=host), modes, times, ready=prepare)
    if as_json:
        _json(found)
    else:
        show(tables(found))


@main.command()
@click.argument("spec", required=False)
@click.option("--out", metavar="FILE|DIR", help="Results: a name that ends with .parquet, or a folder; as "
              "SPEC in the current folder if not said. What is there already is not run again.")
@click.option("--jobs", type=int, metavar="N", help="Processes; one for each processor if not said.")
@click.option("--dask", metavar="ADDRESS", help="Run on the Dask cluster of this scheduler instead.")
@click.option("--dry-run", is_flag=True, help="Say how many points there are, and the first of them.")
@click.option("--retry-failed", is_flag=True, help="Run points again that failed before.")
@click.option("--show", "shown", metavar="OUT", help="Run nothing: say what is in the results there.")
@click.option("--csv", metavar="FILE", help="Write all rows as comma-separated values too, `-`: here.")
@click.option("--json", "as_json", is_flag=True, help="How it stands as JSON.")
@click.pass_context
def sweep(
    ctx: click.Context,
    spec: str | None,
    out: str | None,
    jobs: int | None,
    dask: str | None,
    dry_run: bool,
    retry_failed: bool,
    shown: str | None,
    csv: str | None,
    as_json: bool,
) -> None:
    """Run a guest at every point of SPEC (TOML, docs/sweep.md) and collect a row of each.

    Interrupted, the same command goes on with what is missing. A point that fails is a row too, and
    the exit status is 1 then.
    """
    from vpmu_emu.lab import sweep as lab
    from vpmu_emu.lab.spec import read_spec
    from vpmu_emu.output import check_output, write_output
    from vpmu_emu.report import show

    if (spec is None) == (shown is None):
        raise click.UsageError("either SPEC or --show OUT.", ctx)
    if csv == "-" and as_json:
        raise VpmuError("--csv and --json both write to standard output")
    if csv is not None:
        check_output(csv, [spec] if spec is not None else [])
    if shown is not None:
        found = lab.found(shown)
    else:
        assert spec is not None
        asked = read_spec(spec)
        if dry_run:
            lab.Lab(asked).check()
            show(lab.design(asked))
            return
        with _progress(f"{len(asked):,} points of {spec}", pause=5.0) as tell:

            def progress(done: int, total: int, bad: int) -> None:
                tell(done, total, f"points, {bad} failed" if bad else "points")

            found = lab.sweep(
                asked, out, jobs=jobs, dask=dask, retry_failed=retry_failed, ready=prepare,
                progress=progress,
            )  # fmt: skip
    if csv is not None:
        write_output(csv, lab.csv(found).encode("utf-8", "backslashreplace"))
    if as_json:
        _json(found.to_json())
    elif csv != "-":
        show(lab.summary(found))
    ctx.exit(FAILED if found.failed else FINE)


@main.command()
@click.option("--all", "every", is_flag=True, help="Mediated with each policy of the switch, too.")
@click.option("--workloads", metavar="NAMES", help="Of guests/workloads, with commas; else all eight.")
@click.option("--cpu", default="spr", show_default=True, metavar="MODEL", help="The host.")
@click.option("--guest-hz", default=250, show_default=True, metavar="N", help="HZ of the guest's kernel.")
@click.option("--hz", default=250, show_default=True, metavar="N", help="HZ of the host's kernel.")
@click.option("--warm", "warm_ms", type=float, metavar="MS", help="Virtual time for frequencies to settle.")
@click.option("--ms", type=float, metavar="MS", help="Virtual time that is measured after that.")
@click.option("--seeds", default="1", show_default=True, metavar="N,N", help="Of the workloads' data.")
@click.option("--draws", default=4000, show_default=True, type=click.IntRange(100, 1_000_000),
              help="Random sets of costs that make an interval.")
@click.option("--assumptions", is_flag=True, help="What else could be assumed, and what that changes.")
@click.option("--validation", is_flag=True, help="Other published figures, predicted.")
@click_options("settings", "defsym")
@click.option("--jobs", type=click.IntRange(1), metavar="N", help="Processes; one for each processor.")
@click.option("--plot", is_flag=False, flag_value="-", metavar="[FILE]",
              help="A picture: here, or a .png or .svg.")
@click.option("--json", "as_json", is_flag=True, help="As in docs/overhead.md.")
def overhead(**asked: Any) -> None:
    """Predict what perf costs in a guest, beside what was published for the passthrough series."""
    from vpmu_emu.lab import overhead_report
    from vpmu_emu.lab.overhead import question_of
    from vpmu_emu.report import show

    question = question_of(asked)
    picture = asked["plot"]
    if picture not in (None, "-"):
        overhead_report.check_picture(Path(picture))
    prepare([design.vpmu for design in question.designs])
    with _progress("running workloads", pause=5.0) as tell:
        found = overhead_report.table(
            question, asked["jobs"], lambda done, of: tell(done, of, "runs"),
            assumptions=asked["assumptions"], validation=asked["validation"],
        )  # fmt: skip
    if picture not in (None, "-"):
        overhead_report.plot(found, Path(picture))
    if asked["as_json"]:
        _json(found)
        return
    show(overhead_report.tables(found))
    if picture == "-":
        say(overhead_report.bars(found), nl=False)


@main.command()
@run_options
@click.option("-x", "--script", type=click.File(), help="Read commands from this file.")
@click.option("--tui", is_flag=True, help="The whole terminal: source, PMU, exits (docs/tui.md).")
@click.pass_context
def debug(ctx: click.Context, /, prog: str, script: Any, tui: bool, **options: Any) -> None:
    """Step through PROG; commands come from the terminal, standard input or a script."""
    from vpmu_emu.debug.repl import Repl
    from vpmu_emu.debug.screen import NARROWEST, WIDTH, Screen, wants_colour
    from vpmu_emu.debug.session import Session
    from vpmu_emu.debug.terminal import piped_lines, typed_lines
    from vpmu_emu.system import with_saved

    if tui:
        screen_of = _whole_screen(script)
    source = script or sys.stdin
    if prog == "-" and source is sys.stdin:
        raise VpmuError("the program comes from standard input, so the commands have to come from --script")
    asked = Options.of(options)
    asked.check()  # before a file is read
    program = load(prog, asked.defsym)
    if asked.restore is not None:
        asked = with_saved(asked, program)
    ready = partial(prepare, [asked.vpmu])
    session = Session(program, with_files(program, prog, asked), ready=ready)
    terminal = sys.stdout.isatty()
    if tui:
        screen_of(session, wants_colour(terminal))
        save_trace(session.system, options["trace"])
        ctx.exit(FINE)
    wide = shutil.get_terminal_size().columns if terminal or os.environ.get("COLUMNS") else WIDTH
    write = partial(click.echo, nl=False, color=True)
    screen = Screen(write, max(NARROWEST, wide), wants_colour(terminal))
    repl = Repl(session, screen)
    repl.start()
    typed = source is sys.stdin and source.isatty()
    failures = repl.run(typed_lines(repl) if typed else piped_lines(source))
    save_trace(session.system, options["trace"])
    ctx.exit(BAD_INPUT if failures and not source.isatty() else FINE)


def _whole_screen(script: Any) -> Callable[..., Any]:
    if script is not None:
        raise VpmuError("--tui takes commands from the keyboard; leave out --script, or --tui")
    try:
        from vpmu_emu.debug.tui import run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "textual":
            raise
        raise VpmuError("--tui needs the extra `tui`: pip install 'vpmu-emu[tui]'") from None
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise VpmuError("--tui needs a terminal; without one, `vpmu debug` reads commands line by line")
    return run


# --- trace ----------------------------------------------------------------------------------------


@main.group("trace")
def trace_group() -> None:
    """Read traces as text: ours, trace-cmd's, the kernel's own and perf script's (docs/traces.md)."""


@trace_group.command("decode")
@click.argument("file")
@click.option("--cpu", metavar="MODEL", help="The CPU whose names the events of selectors have.")
@click.option("--quiet", is_flag=True, help="Not each access, only what became of the PMUs.")
@click.option("--json", "as_json", is_flag=True)
@click.pass_context
def trace_decode(ctx: click.Context, file: str, cpu: str | None, quiet: bool, as_json: bool) -> None:
    """Each access of FILE by its fields, and the PMU of each CPU and vCPU as they left it (- is stdin)."""
    from vpmu_emu.report import show
    from vpmu_emu.tables.cpus import cpu as cpu_model
    from vpmu_emu.traces.parse import lines_of, parse
    from vpmu_emu.traces.rebuild import Rebuilt

    found = Rebuilt(cpu_model(cpu).events) if cpu is not None else Rebuilt()
    with lines_of(file) as lines:
        for item in parse(lines):
            words = found.add(item)
            if words is not None and not quiet and not as_json:
                say(words)
            _tell_of(item, file)
    if not as_json:
        show(found.tables())
    else:
        _json(found.to_json())
    _judge_trace(ctx, file, found.read, len(found.problems))


@trace_group.command("stat")
@click.argument("file")
@click.option("--json", "as_json", is_flag=True)
@click.pass_context
def trace_stat(ctx: click.Context, file: str, as_json: bool) -> None:
    """Exits of FILE by reason and what each took until the next entry, as `perf kvm stat` has it."""
    from vpmu_emu.report import show
    from vpmu_emu.traces.parse import lines_of, parse
    from vpmu_emu.traces.stat import stat

    with lines_of(file) as lines:
        found = stat(_told_of(parse(lines), file))
    if as_json:
        _json(found.to_json())
    elif found.reasons:
        show([found.table()])
        say(found.total())
    else:
        say("No exit with an entry behind it.")
    if found.open:
        say(f"vpmu: {file}: exits without an entry behind them, not counted: {found.open}", err=True)
    _judge_trace(ctx, file, found.read, len(found.problems))


def _told_of(items: Iterator[Any], file: str) -> Iterator[Any]:
    for item in items:
        _tell_of(item, file)
        yield item


def _tell_of(item: Any, file: str) -> None:
    """Say what is wrong with a line, or what a gap means."""
    from vpmu_emu.traces.parse import Lost, Problem

    if isinstance(item, Problem):
        say(f"vpmu: {file}: {item}", err=True)
    elif isinstance(item, Lost):
        count = "events" if item.count is None else f"{item.count} events"
        where = "" if item.cpu is None else f" on CPU {item.cpu}"
        say(f"vpmu: {file}: line {item.number}: {count}{where} are missing", err=True)


def _judge_trace(ctx: click.Context, file: str, read: int, problems: int) -> None:
    if not read:
        raise VpmuError(f"{file}: has no line of a trace")
    if problems:
        say(f"vpmu: {file}: lines that cannot be read: {problems}", err=True)
        ctx.exit(FAILED)


def named_modes(text: str) -> list[str]:
    """The modes of a comma-separated list.

    Raises:
        VpmuError: an unknown one, with the nearest.
    """
    from vpmu_emu.numerals import shown
    from vpmu_emu.tables.modes import MODES

    wanted = text.split(",")
    for mode in wanted:
        if mode not in MODES:
            hint = did_you_mean(mode, MODES) or f" (allowed: {', '.join(MODES)})"
            raise VpmuError(f"--modes: unknown mode {shown(mode)}{hint}")
    return list(dict.fromkeys(wanted))


@main.command("build")
@click.option("--modes", help="Comma-separated; default all.")
@click.option("--workers", type=click.IntRange(1, 64), default=2, show_default=True, help="Processes.")
@click.option("--record", is_flag=True, help="Compile here and write down the argument types.")
def build_command(modes: str | None, workers: int, record: bool) -> None:
    """Compile ahead what the modes need."""
    from vpmu_emu import build

    wanted = named_modes(modes) if modes is not None else list(build.modes())
    if record:
        found = build.record(wanted)
        click.echo(f"{len(found['functions'])} functions recorded", err=True)
        return
    _make_ready(wanted, workers)
    click.echo(f"ready: {', '.join(wanted)}", err=True)


if __name__ == "__main__":
    main()
