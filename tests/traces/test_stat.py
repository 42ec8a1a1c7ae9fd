"""perf kvm stat's columns, from traces whose times are known."""

from __future__ import annotations

import json
import math

from click.testing import CliRunner

from tests.conftest import ROOT
from vpmu_emu.asm import assemble_file
from vpmu_emu.cli import main
from vpmu_emu.machine import ring as mk
from vpmu_emu.system import System
from vpmu_emu.traces.kernel_text import report_text
from vpmu_emu.traces.parse import parse
from vpmu_emu.traces.points import told
from vpmu_emu.traces.recorder import Recorder
from vpmu_emu.traces.stat import HEADS, stat

PATH = ROOT / "tests" / "traces" / "real" / "trace_cmd.txt"


def test_times_of_each_reason():
    """By hand: MSR_WRITE 12, 6, 6, 4 and 9 us, one is lost in the gap; HLT 100 us, MSR_READ 5 us."""
    found = stat(parse(PATH.read_text().splitlines()))
    writes = found.reasons["MSR_WRITE"]
    assert (writes.samples, writes.time, writes.low, writes.high) == (5, 37_000, 4_000, 12_000)
    times = [12, 6, 6, 4, 9]
    mean = sum(times) / 5
    deviation = math.sqrt(sum((t - mean) ** 2 for t in times) / 4 / 5)
    assert math.isclose(writes.spread, deviation / mean)
    assert {name: one.time for name, one in found.reasons.items()} == {
        "MSR_WRITE": 37_000, "HLT": 100_000, "MSR_READ": 5_000,
    }  # fmt: skip
    assert found.open == 1
    assert found.table().columns == HEADS
    assert found.table().rows[0] == (
        "MSR_WRITE", "5", "71.43%", "26.06%", "4.00us", "12.00us",
        f"7.40us ( +- {100 * deviation / mean:6.2f}% )",
    )  # fmt: skip
    assert found.total() == "Total Samples:7, Total events handled time:142.00us."


def test_the_command():
    result = CliRunner().invoke(main, ["trace", "stat", str(PATH)])
    assert result.exit_code == 1  # lines could not be read
    heads = next(line for line in result.output.splitlines() if "VM-EXIT" in line)
    assert [word for word in HEADS if word not in heads] == []
    assert "exits without an entry behind them, not counted: 1" in result.output
    values = json.loads(CliRunner().invoke(main, ["trace", "stat", "--json", str(PATH)]).stdout)
    assert values["exits"]["HLT"] == {
        "samples": 1, "time": 100_000, "min": 100_000, "max": 100_000, "avg": 100_000.0, "spread": 0.0,
    }  # fmt: skip


def test_our_own_trace_has_the_exits_of_the_run():
    program = assemble_file(ROOT / "guests" / "lessons" / "06_sampling.s")
    machine = System(program, vpmu="emulated", trace=True)
    kept = Recorder(machine)
    machine.run()
    recording = kept.recording()
    found = stat(parse(report_text(told(recording), recording.cpus)))
    exits = sum(moment.kind == mk.TR_VM_EXIT for moment in recording.moments())
    assert found.open + sum(one.samples for one in found.reasons.values()) == exits
    times, left = 0, None
    for moment in recording.moments():
        if moment.kind == mk.TR_VM_EXIT:
            left = moment.ns
        elif moment.kind == mk.TR_VM_ENTRY and left is not None:
            times += moment.ns - left
            left = None
    measured = sum(one.time for one in found.reasons.values())
    assert abs(measured - times) <= 1_000 * exits  # the text has microseconds
