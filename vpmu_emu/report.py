"""Results as tables on a screen; nothing is computed here that a result does not say."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import IO, Any

import attrs

from vpmu_emu.tables.modes import MODES

Cell = str | int | float | None
PARTS = {
    "guest": "guest",
    "exits": "VM-exits and their handlers",
    "perf": "perf: API and scheduling",
    "pmu_switch": "PMU context switches",
    "interrupts": "NMIs and interrupts",
    "tasks": "tasks and system calls",
    "idle": "halted",
}
LOST = {
    "serial": "characters more than are kept were written to the serial port",
    "trace": "events are lost, and the trace says where",
}


@attrs.frozen
class Table:
    """A title, column heads and rows; numbers go to the right."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


# What steers a terminal instead of being shown: controls but tab and newline, and what turns the direction
# of text. C1 controls are escape sequences too.
_STEERS = {
    **{code: f"\\x{code:02x}" for code in (*range(32), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"},
    **{code: f"\\u{code:04x}" for code in (0x61C, *range(0x200E, 0x2010), *range(0x2028, 0x202F),
                                           *range(0x2066, 0x206A))},
}  # fmt: skip


def visible(text: str) -> str:
    """`text`, part of which a program may have made, as something that can only be read."""
    return text.replace("\r\n", "\n").translate(_STEERS)


def cell(value: Cell) -> str:
    """A value as shown: thousands apart, absent as a dash."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) < 1 << 40 else f"{value:#x}"
    if isinstance(value, float):
        return f"{value:,.2f}" if abs(value) >= 0.1 else f"{value:.3g}"
    return visible(value)


def show(tables: Iterable[Table], out: IO[str] | None = None) -> None:
    """Print tables: drawn by rich on a terminal, aligned plain text elsewhere."""
    stream = out or sys.stdout
    if stream.isatty() and os.environ.get("TERM") != "dumb":
        _show_rich(tables, stream)
        return
    for table in tables:
        stream.write(plain(table) + "\n")
    stream.flush()


def plain(table: Table) -> str:
    """A table as aligned text."""
    texts = [[cell(value) for value in row] for row in table.rows]
    right = [_numeric(table, i) for i in range(len(table.columns))]
    widths = [
        max([len(head), *(len(row[i]) for row in texts)]) for i, head in enumerate(table.columns)
    ]

    def line(parts: Sequence[str]) -> str:
        cells = (p.rjust(w) if r else p.ljust(w) for p, w, r in zip(parts, widths, right))
        return ("  " + "  ".join(cells)).rstrip()

    lines = [table.title] if table.title else []
    if any(table.columns):
        lines.append(line(table.columns))
    return "\n".join([*lines, *map(line, texts)]) + "\n"


def html(tables: Iterable[Table]) -> str:
    """Tables as HTML, for notebooks; nothing in them is taken for markup."""
    parts = []
    for table in tables:
        right = [_numeric(table, i) for i in range(len(table.columns))]
        head = "".join(f"<th>{escape(visible(name))}</th>" for name in table.columns)
        parts.append("<table>")
        if table.title:
            parts.append(f"<caption style='text-align:left'>{escape(visible(table.title))}</caption>")
        if any(table.columns):
            parts.append(f"<thead><tr>{head}</tr></thead>")
        for row in table.rows:
            cells = (
                f"<td style='text-align:{'right' if r else 'left'}'>{escape(cell(value))}</td>"
                for value, r in zip(row, right, strict=True)
            )
            parts.append(f"<tr>{''.join(cells)}</tr>")
        parts.append("</table>")
    return "\n".join(parts)


def _numeric(table: Table, column: int) -> bool:
    values = [row[column] for row in table.rows if row[column] is not None]
    return bool(values) and all(isinstance(v, int | float) for v in values)


def _show_rich(tables: Iterable[Table], stream: IO[str]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable

    console = Console(file=stream, highlight=False)
    for table in tables:
        drawn = RichTable(
            title=table.title or None, title_justify="left", title_style="bold",
            box=box.SIMPLE_HEAD, pad_edge=False, show_header=any(table.columns),
        )  # fmt: skip
        for i, head in enumerate(table.columns):
            drawn.add_column(head, justify="right" if _numeric(table, i) else "left")
        for row in table.rows:
            drawn.add_row(*(cell(value).replace("[", "\\[") for value in row))
        console.print(drawn)


# --- one run ------------------------------------------------------------------------------------


def summary(result: Mapping[str, Any], program: str) -> str:
    """The first line about a run."""
    mode, cpu, stop = result["vpmu"], result["cpu"], result["stop"]
    note = "".join(f"\nwhy: {sentence}" for sentence in result["why"])
    note += "".join(f"\nnote: {sentence}" for sentence in result["notes"])
    perf = result.get("perf", {})
    for what, count in result.get("lost", {}).items():
        if count:
            note += f"\nnote: {count:,} {LOST[what]}"
    if perf.get("too_long"):
        rate = f"kernel.perf_event_max_sample_rate is {perf['max_sample_rate']:,} now"
        note += f"\nnote: perf: interrupt took too long, {rate}"
    if result["exit_code"] is not None:
        return f"{program}: {mode} on {cpu}, stopped by {stop}, exit code {result['exit_code']}{note}"
    first = f" that began with exception {result['stop_info']}" if stop == "triple-fault" else ""
    line = f" ({result['stop_line']})" if result["stop_line"] else ""
    at = f"at rip {result['stop_rip']:#x}{line}"
    return f"{program}: {mode} on {cpu}, stopped by {stop}{first} {at}{note}"


def speed(result: Mapping[str, Any]) -> str:
    """How fast this machine was at it: instructions a second of its time in compiled code."""
    count, seconds = result["instructions"], max(result["wall_s"], 1e-6)
    return f"{count:,} instructions in {seconds:,.3g} s: {count / seconds / 1e6:,.3g} million a second"


def run_tables(result: Mapping[str, Any]) -> list[Table]:
    """Everything that a reader wants of one run; empty parts are left out."""
    return comparison({str(result["vpmu"]): result}, head="")


def comparison(results: Mapping[str, Mapping[str, Any]], head: str = "") -> list[Table]:
    """Several runs side by side, a column for each: time, counters, exits, MSR traffic."""
    names = list(results)
    runs = list(results.values())

    def rows(pick: str) -> list[tuple[Cell, ...]]:
        keys = _ordered(key for run in runs for key in run[pick])
        shown = [(key, *(run[pick].get(key) for run in runs)) for key in keys]
        return [row for row in shown if any(row[1:])]

    tables = [
        Table(
            head,
            ("", *names),
            tuple(
                (label, *(run.get(key) for run in runs))
                for key, label in (
                    ("instructions", "instructions"),
                    ("cycles", "cycles"),
                    ("pmis", "PMIs taken by the guest"),
                    ("pmis_hw", "PMIs raised by the hardware"),
                )
            )
            + _strayed(runs)
            + (("VM-exits", *(sum(run["exits"].values()) for run in runs)),),
        )
    ]
    if any(MODES[run["vpmu"]].hypervisor for run in runs):
        shown = tuple((PARTS[str(key)], *cells) for key, *cells in rows("cycles_by"))
        tables.append(Table("Where the cycles went", ("", *names), shown))
    if counters := _counters(runs):
        status = ("global_status", *(run["global_status"] for run in runs))
        tables.append(Table("Counters, as the guest sees them", ("", *names), (*counters, status)))
    for name, run in results.items():
        if switch := run.get("kvm", {}).get("switch"):
            tables.append(_switches(switch, f", {name}" if len(runs) > 1 else ""))
    if exits := rows("exits"):
        exits.sort(key=lambda row: -sum(v for v in row[1:] if isinstance(v, int)))
        tables.append(Table("VM-exits by reason", ("", *names), tuple(exits)))
    if traffic := _traffic(runs):
        title = "MSR traffic of the guest: reads/writes/exits"
        tables.append(Table(title, ("", *names), tuple(traffic)))
    for name, run in results.items():
        if len(vms := run.get("vms", ())) > 1:
            title = "VMs: whose the counters are, and what the host sees of their guests"
            tables.append(_events(title + (f", {name}" if len(runs) > 1 else ""), vms))
        if programs := _programs(run.get("tasks", ())):
            title = "Programs of the host" + (f", {name}" if len(runs) > 1 else "")
            tables.append(Table(title, ("pid", "program", "state", "exit code", "cycles"), programs))
        if events := run.get("perf", {}).get("events"):
            title = "perf events of the host" + (f", {name}" if len(runs) > 1 else "")
            tables.append(_events(title, events))
        if errors := run.get("perf", {}).get("errors"):
            title = "perf events that went to ERROR: when, why, and when they counted again"
            tables.append(_events(title + (f", {name}" if len(runs) > 1 else ""), errors))
        if log := run.get("log"):
            lines = tuple((line["tsc"], line["cpu"], line["text"]) for line in log)
            tables.append(Table("The kernel's log", ("TSC", "CPU", "what it says"), lines))
        if lockups := run.get("watchdog", {}).get("lockups"):
            title = "Hard lockups of the host, detector " + run["watchdog"]["detector"]
            tables.append(_events(title, lockups))
    return tables


def _strayed(runs: Sequence[Mapping[str, Any]]) -> tuple[tuple[Cell, ...], ...]:
    """What went wrong with interrupts of counters, if anything did: a row each."""
    labels = {
        "pmis_misattributed": "PMIs taken for somebody else's",
        "pmis_lost": "PMIs of which their owner never heard",
        "nmis_unclaimed": "NMIs without a cause",
    }
    counts = {key: [run.get("perf", {}).get(key) for run in runs] for key in labels}
    return tuple((labels[key], *cells) for key, cells in counts.items() if any(cells))


def _counters(runs: Sequence[Mapping[str, Any]]) -> list[tuple[Cell, ...]]:
    """Counters that hold something, or were asked for an event that they do not count."""
    found: list[tuple[Cell, ...]] = []
    for key in _ordered(key for run in runs for key in run["counters"]):
        values = [run["counters"].get(key) for run in runs]
        notes = [run["uncounted"].get(key) for run in runs]
        if not any(values) and not any(notes):
            continue
        cells = (f"{cell(v)} ({note})" if note else v for v, note in zip(values, notes, strict=True))
        found.append((key, *cells))
    return found


_PARTS_OF_A_SWITCH = {
    "load": "context in", "put": "context out",
    "entry": "GLOBAL_CTRL at VM entry", "exit": "GLOBAL_CTRL at VM exit",
}  # fmt: skip


def _switches(switch: Mapping[str, Any], of: str) -> Table:
    """Parts of a PMU context switch by row: how many, accesses each with their cycles, cycles each."""
    parts = {name: switch[name] for name in _PARTS_OF_A_SWITCH if switch[name]["count"]}
    kinds = [key for key in ("rdmsr", "wrmsr", "rdpmc", "vmread", "vmwrite")
             if any(part[key]["count"] for part in parts.values())]  # fmt: skip
    rows: list[tuple[Cell, ...]] = []
    for name, part in parts.items():
        n = part["count"]
        each = [
            f"{part[key]['count'] / n:.1f} ({part[key]['cycles'] / n:,.0f})" if part[key]["count"] else None
            for key in kinds
        ]
        rows.append((_PARTS_OF_A_SWITCH[name], n, *each, round(part["cycles"] / n)))
    share = switch["host_blind"]["share"]
    title = f"Switches of the PMU context, {switch['policy']}{of}: each (cycles); host blind {share:.1%}"
    return Table(title, ("", "count", *(key.upper() for key in kinds), "cycles each"), tuple(rows))


def _programs(tasks: Sequence[Mapping[str, Any]]) -> tuple[tuple[Cell, ...], ...]:
    """The tasks of a run that has more than the VMM, or whose VMM has been killed."""
    if len(tasks) < 2 and not any(task["killed"] for task in tasks):
        return ()
    rows = []
    for task in tasks:
        state = task["state"]
        if dead := task["killed"]:
            state = f"killed by {dead['signal']} at {dead['rip']:#x}" + (
                f" ({dead['line']})" if dead["line"] else ""
            )
        code = task["exit_code"] if not dead else None
        rows.append((task["pid"], task["program"], state, code, task["cycles"]))
    return tuple(rows)


def _traffic(runs: Sequence[Mapping[str, Any]]) -> list[tuple[Cell, ...]]:
    found: list[tuple[Cell, ...]] = []
    for key in _ordered(key for run in runs for key in run["msr"]):
        cells: list[Cell] = []
        for run in runs:
            row = run["msr"].get(key)
            counts = row and "/".join(f"{row[k]:,}" for k in ("reads", "writes", "exits"))
            cells.append(counts and counts.rjust(11))
        found.append((key, *cells))
    return found


# columns that are left out where they say nothing
_RARE = ("cpu", "task", "freq", "lost", "throttles", "uncounted")


def _events(title: str, events: Sequence[Mapping[str, Any]]) -> Table:
    columns = [
        key
        for key in _ordered(key for event in events for key in event)
        if key not in _RARE or any(event.get(key) for event in events)
    ]
    return Table(
        title,
        tuple(columns),
        tuple(tuple(_flat(event.get(key)) for key in columns) for event in events),
    )


def _flat(value: Any) -> Cell:
    if value is None or isinstance(value, str | int | float):
        return value
    return str(value)


def _ordered(keys: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(keys))
