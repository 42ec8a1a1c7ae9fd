"""What the report says of counters: nothing that was asked for is missing."""

from __future__ import annotations

import pytest

from tests.linux.guests import run
from vpmu_emu.explanation import explain
from vpmu_emu.report import plain, run_tables
from vpmu_emu.traces.text import lines

pytestmark = pytest.mark.uncompiled

UNLISTED = """
    WRMSR32 0x38f, 0
    WRMSR32 0x186, 0x4301b7
    WRMSR32 0x187, 0x4300c0
    WRMSR32 0x18b, 0x4381d0
    WRMSR32 0x38f, 0x23
    pop rbx
    push rbx
    WRMSR32 0x38f, 0
    WRMSR32 0x186, {after}
    EXIT 0
"""
MODES = ("bare", "emulated", "passthrough")


@pytest.mark.parametrize("after", ["0x4301b7", "0"])
@pytest.mark.parametrize("mode", MODES)
def test_a_counter_without_a_count_is_shown(mode, after):
    """An event that the model does not list, or not on this counter, is in the table and says so."""
    _, result = run(UNLISTED.format(after=after), mode)
    text = "".join(plain(table) for table in run_tables(result))
    assert "pmc0           0 (r01b7: not counted by this model)" in text
    loads = "r81d0: MEM_INST_RETIRED.ALL_LOADS not on this counter"
    assert (f"pmc5           0 ({loads})" in text) == (mode != "emulated")  # perf has another one for it
    assert result["uncounted"].keys() == ({"pmc0"} if mode == "emulated" else {"pmc0", "pmc5"})
    assert "pmc1" not in result["uncounted"]


def test_a_counter_that_counts_is_not_in_the_way():
    _, result = run("    WRMSR32 0x187, 0x4300c0\n    WRMSR32 0x186, 0x1b7\n    EXIT 0\n", "bare")
    assert result["uncounted"] == {}  # off, it was asked for nothing


@pytest.mark.parametrize("mode", MODES)
def test_the_trace_says_it_too(mode):
    machine, _ = run(UNLISTED.format(after="0"), mode, trace=True)
    text = "\n".join(lines(machine.events(), names=machine.model.events))
    assert "186 = 0x4301b7 (IA32_PERFEVTSEL0 event=0xb7 umask=0x1 usr os en, not counted by" in text
    assert "IA32_PERFEVTSEL1 INST_RETIRED.ANY_P usr os en)" in text


@pytest.mark.parametrize(("name", "counted"), [("spr", True), ("skx", False)])
def test_explain_says_it_for_the_cpu_at_hand(name, counted):
    """BR_INST_RETIRED.INDIRECT is in the lists from Ice Lake on."""
    steps = explain("wrmsr", "IA32_PERFEVTSEL0", 0x4380C4, vpmu="bare", cpu=name).steps
    (value,) = (step.verdict for step in steps if step.what == "value")
    assert ("BR_INST_RETIRED.INDIRECT" in value) == counted
    assert value.endswith("not counted by this model") != counted


def test_a_host_event_that_counts_nothing_is_marked():
    hosts = ["r01b7", "instructions", "{slots,topdown-retiring}"]
    _, result = run("    EXIT 0\n", "emulated", host_events=hosts)
    notes = {e["name"]: e["uncounted"] for e in result["perf"]["events"]}
    assert notes == {
        "r1b7": "not counted by this model", "instructions": "", "slots": "", "topdown-retiring": "",
    }  # fmt: skip
    _, result = run("    EXIT 0\n", "emulated", host_events=["instructions"])
    text = "".join(plain(table) for table in run_tables(result))
    assert "uncounted" not in text
