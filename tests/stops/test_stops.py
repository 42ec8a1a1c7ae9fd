"""The text of every stop, and that there is a guest for everything that a stop can say."""

from __future__ import annotations

import ast
import inspect
import random
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import vpmu_emu
from tests.conftest import ROOT
from tests.stops.golden import GUESTS, cases, shown, stopped
from tests.tools.profiles import cases as cases_of
from vpmu_emu import system
from vpmu_emu.cli import main
from vpmu_emu.debug.repl import Repl
from vpmu_emu.load import load
from vpmu_emu.machine import ring
from vpmu_emu.views import fault_chain, pmi_links, why_stopped
from vpmu_emu.views.why_stopped import REASONS

CASES = list(cases())
# Stops of a debugger, and Ctrl-C: with their own tests in tests/debug/ and below.
OTHERS = {"break", "watch", "step", "until", "running", "interrupted"}
LONG = 12  # characters of a constant that can be looked for
# What no guest can come to as things are: a processor that refuses the VMCS that this KVM makes.
UNSAID = {
    "VM entry is refused: the state of the guest is not what VMX takes (",
    "KVM does not know what to do about this exit",
}


def _runs():
    for case in CASES:
        for mode in case.modes:
            # By day a machine without a host and one with it.
            late = mode in ("passthrough", "mediated") and "emulated" in case.modes
            marks = [pytest.mark.laws] if late else []
            yield pytest.param(case, mode, id=f"{case.path.stem}-{mode}", marks=marks)


@pytest.mark.parametrize(("case", "mode"), [*_runs()])
def test_a_stop_says_why(case, mode, tmp_path):
    system, stop = stopped(case, mode, tmp_path)
    assert shown(str(stop)) == case.text(mode)
    values = system.result(stop).to_json()
    assert (values["why"], values["notes"]) == (list(stop.why), stop.note.splitlines())


def test_every_reason_has_a_guest():
    shown_reasons = {line.split(" at rip")[0].split(" with")[0].split(" of")[0].split(",")[0]
                     for case in CASES for _, line in case.golden[:1]}  # fmt: skip
    words = {"exit": "debug-exit", "triple fault": "triple-fault", "hard lockup": "hard-lockup"}
    assert {words.get(word, word) for word in shown_reasons} == set(REASONS) - OTHERS


def _said(module):
    """Constant pieces of sentences that functions of a module make, docstrings apart."""
    tree = ast.parse(inspect.getsource(module))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    bodies = [f.body[1:] if isinstance(f.body[0], ast.Expr) else f.body for f in functions]
    for node in (node for body in bodies for statement in body for node in ast.walk(statement)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if len(node.value) >= LONG and " " in node.value.strip():
                yield node.value


@pytest.mark.parametrize("module", [fault_chain, pmi_links, why_stopped], ids=lambda m: m.__name__)
def test_everything_that_can_be_said_is_said(module):
    golden = "\n".join(line for case in CASES for _, line in case.golden)
    missing = [text for text in _said(module) if text not in golden and text not in UNSAID]
    assert not missing, missing


def test_every_kind_of_gate_and_refusal_is_shown():
    golden = "\n".join(line for case in CASES for _, line in case.golden)
    # KVM asked the VMM, or let the guest do it by itself: neither ends a guest of the VMM that we have.
    apart = (ring.GP_USER_SPACE, ring.GP_PASSED, ring.GP_WRITE_ONLY, ring.GP_ABSENT, ring.GP_RESERVED)
    for why, words in enumerate(ring.GP_NAMES):
        assert not words or why in apart or words in golden, words


def test_the_page_has_every_reason():
    page = (ROOT / "docs" / "stops.md").read_text(encoding="utf-8")
    table = page[page.index("| stop |") :].split("\n\n")[0]
    debugger = {"break", "watch", "step", "until", "running"}
    assert {reason for reason in REASONS if f"`{reason}`" in table} == set(REASONS) - debugger
    (no_idt,) = (case for case in CASES if case.path.stem == "no_idt")
    for line in no_idt.text("bare").splitlines()[1:]:
        assert line in page


def test_ctrl_c_names_what_was_running_and_what_it_waits_for(monkeypatch, tmp_path):
    """`vpmu check` too: 130, and the guest with the link that its PMI is missing."""
    guest = GUESTS / "pmi_masked.s"
    text = guest.read_text() + "#: modes bare\n#: expect all: pmis == 3\n"
    run = system.System.run

    def interrupted(self, until=None):
        run(self, until or 50_000)
        raise KeyboardInterrupt

    monkeypatch.setattr(system.System, "run", interrupted)
    monkeypatch.chdir(tmp_path)
    Path("g.s").write_text(text)
    done = CliRunner().invoke(main, ["check", "g.s"])
    assert done.exit_code == 130
    assert "ok     g.s" not in done.output
    said = done.output[done.output.index("vpmu: interrupted") :].splitlines()
    assert said[1].startswith("g.s: interrupted at rip 0x")
    assert said[2].startswith("why: pmc0 has overflowed (GLOBAL_STATUS 0x1), but LVTPC 0x10050 is mask")
    assert said[3] == "g.s: [bare] was running"
    with pytest.raises(KeyboardInterrupt) as caught:
        vpmu_emu.run("g.s", ram=2)
    assert "LVTPC 0x10050 is masked" in caught.value.__notes__[0]


def test_a_limit_of_check_is_red_with_its_reason(monkeypatch, tmp_path):
    monkeypatch.setattr(sys.modules["vpmu_emu.checks.judge"], "MOST_INSNS", 20_000)
    path = tmp_path / "g.s"
    text = (GUESTS / "pmi_masked.s").read_text() + "#: modes bare\n#: expect all: pmis == 1\n"
    path.write_text(text)
    done = CliRunner().invoke(main, ["check", str(path)])
    assert done.exit_code == 1
    assert "ended by max-insns" in done.output
    assert "why: pmc0 has overflowed" in done.output
    assert "with no `#: args --max-insns N` a guest has 20,000" in done.output
    path.write_text(text + "#: args --max-insns 300\n#: expect all: instructions < 301\n")
    found = CliRunner().invoke(main, ["check", str(path)])
    assert "ended by max-insns" in found.output
    assert found.exit_code == 1


@pytest.mark.parametrize("mode", ["bare", "emulated", "mediated"])
def test_whatever_state_it_is_there_are_words_for_it(mode):
    """Registers of counters and APIC at random: sentences, and no record changes."""
    rng = random.Random(8)
    (case,) = (case for case in CASES if case.path.stem == "pmi_masked")
    machine = system.System(load(case.path), vpmu=mode, ram=2, max_insns=5000)
    machine.run()
    apics = [machine.core.lapic, machine.core.vapic, machine.S.vcpus[0].vapic]
    pmus = [(machine.core.pmu.eventsel, machine.core.pmu)]
    for _ in range(cases_of(day=20, laws=2000, night=20_000)):
        for apic in apics:
            apic.lvt[4] = 0 if rng.random() < 0.3 else rng.getrandbits(17)
            apic.lvt[3] = rng.getrandbits(17)
            apic.spiv, apic.tpr = rng.getrandbits(9), rng.getrandbits(8)
            apic.apic_base = 0xFEE00000 | rng.choice((0, 0x800, 0xC00))
            for k in range(4):
                apic.irr[k], apic.isr[k] = (rng.getrandbits(64) & rng.getrandbits(64) for _ in range(2))
        for selectors, pmu in pmus:
            for k in range(8):
                selectors[k] = rng.getrandbits(24)
            pmu.global_ctrl, pmu.global_status = rng.getrandbits(64), rng.getrandbits(64)
            pmu.fixed_ctr_ctrl = rng.getrandbits(16)
        if mode != "bare":
            vpmu = machine.S.vcpus[0].pmu
            for k in range(8):
                vpmu.pmcs[k].eventsel = rng.getrandbits(24)
            vpmu.global_ctrl, vpmu.global_status = rng.getrandbits(63), rng.getrandbits(63)
            machine.S.vcpus[0].mp_state = rng.randrange(3)
        machine.core.rflags = rng.getrandbits(22) | 2
        before = machine.record()
        for reason in REASONS:
            if reason != "shutdown" or mode != "bare":
                said = why_stopped.why_stopped(machine, reason, rng.getrandbits(8))
                assert all(sentence and "\n" not in sentence for sentence in said)
        assert machine.record() == before


def test_an_event_that_is_not_counted_is_named_when_its_counter_is_turned_on():
    """In the debugger at the next stop, once."""
    text = "wrmsr_const IA32_PERFEVTSEL0, 0x4301b7\n nop\n debug_exit 0\n"
    head = '.include "msr.inc"\n .include "macros.inc"\n_start: '
    for mode in ("bare", "emulated"):
        session = vpmu_emu.Session(vpmu_emu.assemble(head + text, "u.s"), vpmu=mode, ram=2)
        said = [session.step().text for _ in range(6)]
        assert sum("pmc0 counts nothing for r01b7: not counted by this model" in each for each in said) == 1
        assert "pmc0 counts nothing" in said[3]


LINKS = [case for case in CASES if case.path.stem.startswith("pmi_") and case.modes[0] == "bare"]


@pytest.mark.parametrize("mode", ["bare", pytest.param("emulated", marks=pytest.mark.laws)])
@pytest.mark.parametrize("case", LINKS, ids=lambda case: case.path.stem)
def test_the_debugger_agrees_on_whether_a_link_is_broken(case, mode):
    """`why pmi` looks at every link by itself; a stop that names one has to find it named there, too."""
    if mode not in case.modes:
        pytest.skip("a guest of bare alone")
    session = vpmu_emu.Session(case.path, vpmu=mode, ram=2, max_insns=20_000)
    stop = session.cont()
    said: list[str] = []
    repl = Repl(session, said.append)
    repl.run(["why pmi\n"])
    only_far = all("events are left" in line or "why" not in line for line in stop.text.splitlines())
    assert ("Nothing is in the way" in "".join(said)) == only_far, "".join(said)
