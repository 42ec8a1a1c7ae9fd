"""Overflows are forced where they are asked for; the guest hears what it would hear of its own."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from tests.conftest import ROOT
from vpmu_emu.asm import assemble
from vpmu_emu.cli import main
from vpmu_emu.compare.asked import several
from vpmu_emu.compare.overflow import Sweep, notes, sweep, tables
from vpmu_emu.options import Options
from vpmu_emu.report import plain
from vpmu_emu.system import System

MODES = ("bare", "emulated", "passthrough", "mediated")
SMALL = {"ram": 2}

# Twelve instructions are counted: the NOPs, and four of the write that closes.
GUEST = """
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .text
        .globl _start
_start: load_idt
        set_gate 2, pmi
        lapic_enable_x2apic
        wrmsr_const IA32_X2APIC_LVT_PMI, LVT_NMI
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        {program}
        wrmsr_const IA32_PERF_GLOBAL_CTRL, {enable}
work:   .rept 8
        nop
        .endr
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        .rept 40
        nop
        .endr
        debug_exit 0
pmi:    mov r8, [rsp]
        iretq
        idt_storage
"""
GP = "wrmsr_const IA32_PERFEVTSEL0, EVT_INST_RETIRED_ANY_P | EVTSEL_OS | EVTSEL_INT | EVTSEL_EN\n"
FIXED = "wrmsr_const IA32_FIXED_CTR_CTRL, FIXED0_OS | FIXED0_PMI\n"


def guest(program: str = GP, enable: str = "GLOBAL_PMC0"):
    return assemble(GUEST.format(program=program, enable=enable), "guest.s")


def one(mode: str, program=None, **asked):
    return Sweep(program or guest(), Options.of({"vpmu": mode, **SMALL, **asked}))


def places(mode: str, events: range, **asked) -> list[int | None]:
    swept = one(mode, **asked)
    work = swept.lane.system.program.symbols["work"]
    found = [swept.point(event) for event in events]
    assert all(point.stop == "debug-exit" for point in found)
    return [None if point.rip is None else point.rip - work for point in found]


def test_where_the_pmi_finds_the_guest_follows_from_who_counts_the_opener():
    """Where the opening write exits it counts itself: each place is one instruction earlier."""
    events = range(1, 9)
    assert places("bare", events) == list(events)
    assert places("passthrough", events) == list(events)
    # place 1 is the write itself: pmc->intr is known once there is a perf event
    # place 2 is one event from overflow, of which perf makes two
    assert places("emulated", events) == [None, 2, *(n - 1 for n in range(3, 9))]
    assert places("mediated", events) == [n - 1 for n in events]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("kind", "load"), [
    ("GLOBAL_PMC0", "IA32_A_PMC0"), ("GLOBAL_FIXED0", "IA32_FIXED_CTR0"),
])  # fmt: skip
def test_it_is_what_a_guest_does_that_writes_the_value_itself(mode, kind, load):
    program = GP if kind == "GLOBAL_PMC0" else FIXED
    swept = one(mode, guest(program, kind))
    assert swept.window.counter == ("pmc0" if kind == "GLOBAL_PMC0" else "fixed0")
    assert swept.window.events == 12
    for event in (2, 7):
        own = f"{program}        wrmsr_const {load}, -{event} & 0xffffffffffff\n"
        system = System(guest(own, kind), vpmu=mode, **SMALL)
        result = system.result(system.run()).to_json()
        point = swept.point(event)
        moved = system.program.symbols["work"] - swept.lane.system.program.symbols["work"]
        assert point.rip == result["registers"]["r8"] - moved
        assert (point.pmis, point.stop) == (result["pmis"], result["stop"])


def test_a_place_leaves_nothing_behind():
    swept = one("emulated")
    first = [swept.point(event) for event in (5, 3, 5)]
    assert first[0] == first[2] != first[1]
    assert swept.lane.system.E.t_limit > 1 << 60


def test_late_interrupts():
    """The message comes behind the put: with the NMI's vector nobody knows whose it is."""
    assert places("bare", range(2, 5), pmi_skid="3:0") > places("bare", range(2, 5))
    lost = one("passthrough", pmi_skid="1500:0", pmi_vector="nmi").point(4)
    assert (lost.pmis, lost.rip, lost.status) == (0, None, 1)


def test_bounds_are_told():
    found = sweep(guest(), several(SMALL, "bare,emulated"), ["0:0"], most=3)
    assert [len(points) for points in found.points["0:0"].values()] == [3, 3]
    assert list(notes(found)) == [
        "the first 3 of 12 events (--most)", "--pmi-skid 0:0: emulated is not as bare at 2 of 3 places",
    ]  # fmt: skip
    assert "0x1 0 -" in plain(list(tables(found))[1])
    text = GUEST.format(program=GP, enable="GLOBAL_PMC0")
    endless = assemble(text.replace("work:", "work: jmp work\n"), "e.s")
    swept = one("bare", endless)
    assert (swept.window.closed, swept.window.events) == (False, 464)
    assert swept.point(7).stop == "limit"


def command(*words: str):
    return CliRunner().invoke(main, ["sweep-overflow", *words])


def test_the_command(tmp_path):
    path = tmp_path / "guest.s"
    path.write_text(GUEST.format(program=GP, enable="GLOBAL_PMC0"))
    words = (str(path), "--ram", "2", "--most", "2", "--vpmu", "bare,emulated", "--pmi-skid", "0:0")
    found = command(*words, "--pmi-skid", "0:900", "--json")
    assert found.exit_code == 0
    values = json.loads(found.stdout)
    assert list(values["points"]) == ["0:0", "0:900"]
    assert [p["event"] for p in values["points"]["0:0"]["bare"]] == [1, 2]
    assert values["windows"]["emulated"]["events"] == 12
    shown = command(*words)
    assert "--pmi-skid 0:0: GLOBAL_STATUS, PMIs" in shown.output


COUNT = str(ROOT / "guests" / "lessons" / "01_count.s")


@pytest.mark.parametrize(("words", "said"), [
    ([COUNT, "--vpmu", "bare,none"], "guests have no PMU in mode none"),
    ([COUNT, "--vpmu", "bear"], "did you mean bare"),
    ([COUNT, "--counter", "pmc9", "--vpmu", "bare"], "there is no pmc9 in mode bare"),
    ([COUNT, "--counter", "pmc5", "--vpmu", "bare"], "pmc5 is never on"),
    ([COUNT, "--pmi-skid", "1"], "is not OVERFLOW:RECOGNITION"),
    ([COUNT, "--most", "0"], "not in the range"),
    ([COUNT, "--vpmu", "bare", "--quirk", "v1"], "there is no hypervisor in mode bare"),
    (["nothing.s"], "no such file"),
    ([str(ROOT / "guests" / "workloads" / "bitboard.s"), "--vpmu", "bare", "--defsym", "UNITS=1"], ""),
])  # fmt: skip
def test_bad_input_is_one_sentence(words, said):
    found = command(*words)
    assert found.exit_code == 2
    assert said in found.output
    assert "Traceback" not in found.output
