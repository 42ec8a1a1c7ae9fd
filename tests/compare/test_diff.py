"""`vpmu diff` names the first difference and its row, for every row that a guest can show."""

from __future__ import annotations

import json
import random
import re

import pytest
from click.testing import CliRunner

from tests.conftest import ROOT
from tests.test_modes import BRANCH, INST, window_text
from tests.tools.profiles import cases
from vpmu_emu.asm import Program, assemble, assemble_file
from vpmu_emu.cli import main
from vpmu_emu.compare import told
from vpmu_emu.compare.asked import FIELDS, two
from vpmu_emu.compare.diff import FIRST, Comparison, Difference
from vpmu_emu.compare.facts import Facts, explained
from vpmu_emu.options import Options, parse
from vpmu_emu.system import System
from vpmu_emu.tables.divergences import DIVERGENCES, PARTS, Divergence, divergences_md
from vpmu_emu.tables.expressions import check_formula

FOLDER = ROOT / "guests" / "divergences"
SHOWN = [row for row in DIVERGENCES.values() if not row.alone]
DAY = SHOWN[::7]
SMALL = {"ram": 2, "max_insns": 100_000}


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)


def compared(program: Program, vpmu: str, a: str = "", b: str = "", **asked: object) -> Comparison:
    return Comparison(program, *two({**SMALL, **asked}, vpmu, a, b))


def difference_of(row: Divergence) -> Difference:
    common = parse(row.args, **SMALL)
    asked = {key: getattr(common, key) for key in FIELDS}
    sides = (" ".join(own) for own in (row.args_a, row.args_b))
    found = compared(assemble_file(FOLDER / f"{row.name}.s"), row.pair, *sides, **asked).first()
    assert found is not None, row.name
    return found


def names(found: Difference) -> list[str]:
    return [row.name for row, _ in explained(found)]


# --- the table ------------------------------------------------------------------------------------------


@pytest.mark.uncompiled
def test_every_row_has_a_guest_or_says_why_none_can_show_it():
    assert sum(len(part.rows) for part in PARTS) == len(DIVERGENCES)
    for row in DIVERGENCES.values():
        assert bool(row.alone) != bool(row.when), row.name
        assert bool(row.alone) != (FOLDER / f"{row.name}.s").is_file(), row.name
    assert {path.stem for path in FOLDER.glob("*.s")} == {row.name for row in SHOWN}
    assert not any(row.decided.startswith("the same") for row in DIVERGENCES.values())
    assert DIVERGENCES["host-constraint"].functions == ("x86_get_event_constraints", "merge_sched_in")
    assert divergences_md() == (ROOT / "docs" / "divergences.md").read_text(encoding="utf-8")


@pytest.mark.uncompiled
def test_formulas_name_what_there_is():
    found = difference_of(DIVERGENCES["any-thread"])
    for row in SHOWN:
        check_formula(row.when, Facts(found, 1))


# --- rows -----------------------------------------------------------------------------------------------


def assert_row(row: Divergence) -> None:
    found = difference_of(row)
    assert names(found) == [row.name]
    (_, which), = explained(found)
    assert found.lanes[which].system.mode in row.pair
    if row.functions:
        assert set(row.functions) <= set(told.deciders(found))
    text = "\n".join(told.lines(found))
    assert f"row {row.name} of docs/divergences.md" in text
    assert f"{row.name}.s:" in text or found.at == 0


@pytest.mark.parametrize("row", DAY, ids=lambda row: row.name)
def test_a_guest_of_a_row(row):
    assert_row(row)


@pytest.mark.laws
@pytest.mark.parametrize("row", [row for row in SHOWN if row not in DAY], ids=lambda row: row.name)
def test_a_guest_of_each_other_row(row):
    assert_row(row)


@pytest.mark.laws
def test_the_guests_hold_what_they_say_in_each_mode():
    found = CliRunner().invoke(main, ["check", str(FOLDER)])
    assert found.exit_code == 0, found.output


def test_a_write_of_a_small_value_to_a_running_counter_brings_an_overflow_that_is_none():
    """pmc_write_counter() takes perf's count off KVM's part, and what is left to 0 becomes the period."""
    steps = [("global", 0), ("select", BRANCH), ("load", TOP - 6), ("global", 1), ("load", 7), ("jump", 8),
             ("load", 7), ("jump", 12), ("global", 0)]  # fmt: skip
    found = compared(assemble(window_text(steps), "again.s"), "bare,emulated").first()
    assert found is not None
    assert names(found) == ["write-while-running"]
    assert [look.status for look in found.after] == [0, 1]


def test_the_order_of_the_modes_does_not_matter():
    row = DIVERGENCES["window-intercepted-to-passed"]
    program = assemble_file(FOLDER / f"{row.name}.s")
    one, other = (compared(program, pair).first() for pair in ("bare,passthrough", "passthrough,emulated"))
    assert one is not None
    assert other is not None
    assert names(one) == names(other) == [row.name]
    assert [which for found in (one, other) for _, which in explained(found)] == [1, 0]


# --- windows of all kinds -------------------------------------------------------------------------------

TOP = 1 << 48
SELECTORS = (INST, BRANCH, INST | 1 << 20, 0x43003C, 0xFF4300C0, 0x4100C0, 0x4381D0)
PRESETS = (0, TOP - 1, TOP - 2, TOP - 3, TOP - 6)


def random_window(seed: int) -> Program:
    draw = random.Random(seed)
    kinds = {
        "nop": (1, 2, 3, 4), "jump": (1, 2, 3), "cpuid": (1, 2), "global": (0, 1),
        "select": (0, *SELECTORS), "load": (*PRESETS, 7, 1 << 40), "read": (0,),
    }  # fmt: skip
    steps = [
        ("global", 0), ("select", draw.choice(SELECTORS)),
        ("load", draw.choice(PRESETS)), ("global", 1),
        *((kind, draw.choice(kinds[kind])) for kind in draw.choices([*kinds], k=draw.randint(3, 12))),
    ]  # fmt: skip
    # CPUID answers otherwise in a guest; a port is another instruction that exits.
    text = window_text(steps).replace("xor eax, eax\ncpuid", "nop\nin al, 0x61")
    return assemble(text, f"window {seed}")


@pytest.mark.parametrize("seed", range(cases(day=3, laws=40, night=1000)))
def test_windows_that_differ_do_so_by_a_row(seed):
    """Opened and closed by anything, with any selector, preset, read, write and exit in them."""
    program = random_window(seed)
    for pair in ("bare,emulated", "bare,passthrough", "passthrough,mediated"):
        found = compared(program, pair).first()
        assert found is None or names(found), f"{pair}: {list(told.lines(found))}"


CONFORMANCE = sorted((ROOT / "guests" / "conformance").glob("*.s"))
# Those with options of their own need a second run that has them.
PLAIN = [path for path in CONFORMANCE if not re.search("^#: (args|cpu)", path.read_text(), re.MULTILINE)]


@pytest.mark.laws
@pytest.mark.parametrize("path", PLAIN, ids=lambda path: path.stem)
def test_guests_of_the_suites_differ_by_a_row(path):
    """Each in one pair of modes."""
    pair = ("bare,emulated", "bare,passthrough", "bare,mediated")[len(path.name) % 3]
    found = compared(assemble_file(path), pair, ram=64).first()
    assert found is None or names(found), list(told.lines(found))


# --- the search -----------------------------------------------------------------------------------------

LOOP = """
        .intel_syntax noprefix
_start: mov ecx, {count}
1:      dec ecx
        jnz 1b
        mov ecx, 0x40000003
at:     rdpmc
        xor eax, eax
        out 0xf4, al
"""


@pytest.mark.parametrize("count", [
    3, FIRST // 2 - 1, *(pytest.param(n, marks=pytest.mark.laws) for n in (FIRST // 2 - 2, 300_001)),
])  # fmt: skip
def test_the_instruction_is_found_wherever_it_is(count):
    program = assemble(LOOP.format(count=count), "loop.s")
    found = compared(program, "bare,emulated", max_insns=10**8).first()
    assert found is not None
    assert found.at == 1 + 2 * count + 1 + 1
    assert {look.rip for look in found.before} == {program.symbols["at"]}
    assert names(found) == ["rdpmc-absent"]


def test_a_difference_that_is_gone_later_is_seen_where_the_guest_was_told():
    """RDMSR gives something else far behind the stepped part; the register is overwritten at once."""
    text = LOOP.format(count=40_000).replace("at:     rdpmc", "mov ecx, 0x1a0\nat: rdmsr\nxor edx, edx")
    program = assemble(text, "later.s")
    found = compared(program, "bare,emulated").first()
    assert found is not None
    assert names(found) == ["misc-enable-reset"]
    assert found.before[0].rip == program.symbols["at"]


def test_runs_that_agree_end_as_they_do_alone():
    program = assemble_file(ROOT / "guests" / "lessons" / "01_count.s")
    comparison = compared(program, "emulated,mediated")
    assert comparison.first() is None
    for lane in comparison.lanes:
        alone = System(program, Options.of({"vpmu": lane.name, "trace": True, **SMALL}))
        alone.run()
        assert lane.system.record() == alone.record()
    said = told.end(comparison.lanes)
    assert said.startswith("no difference in 539 instructions: emulated and mediated end by exit")


@pytest.mark.parametrize("text", ["ud2", "mov ecx, 0x12345678\nrdmsr", "mov eax, [0x7fffffffffff]", "hlt"])
def test_a_fault_without_an_idt_is_the_same_everywhere(text):
    program = assemble(f".intel_syntax noprefix\n_start: {text}\n", "fault.s")
    for pair in ("bare,none", "none,emulated", "bare,passthrough"):
        comparison = compared(program, pair)
        assert comparison.first() is None, (pair, text)


def test_an_endless_guest_comes_to_its_limit():
    comparison = compared(assemble("_start: jmp _start"), "bare,emulated", max_insns=3_000)
    assert comparison.first() is None
    assert "that is the limit (--max-insns)" in told.end(comparison.lanes)


# --- the command ----------------------------------------------------------------------------------------


def vpmu_diff(*words: str):
    return CliRunner().invoke(main, ["diff", *words])


def test_exit_status_and_json():
    same = vpmu_diff("guests/lessons/01_count.s", "--json")
    assert same.exit_code == 0
    assert json.loads(same.stdout)["differs"] is False
    found = vpmu_diff("guests/divergences/rdpmc-absent.s", "--json")
    assert found.exit_code == 1
    values = json.loads(found.stdout)
    assert (values["at"], values["rows"]) == (2, ["rdpmc-absent"])
    assert values["handlers"][1][0] == "kvm_emulate_rdpmc"
    assert "kvm_pmu_rdpmc" in values["decided_by"]
    text = vpmu_diff("guests/divergences/rdpmc-absent.s")
    assert "first difference: instruction 2, rdpmc at 0x100005" in text.output
    assert "handled in emulated by: kvm_emulate_rdpmc" in text.output


COUNT = "guests/lessons/01_count.s"


@pytest.mark.uncompiled
@pytest.mark.parametrize(("words", "said"), [
    ([COUNT, "--vpmu", "bare"], "'bare' names 1 (allowed: 2 of bare none"),
    ([COUNT, "--vpmu", "bare,none,emulated"], "names 3"),
    ([COUNT, "--vpmu", "bare,emulatd"], "did you mean emulated?"),
    ([COUNT, "--vpmu", "bare,"], "no mode is named ''"),
    ([COUNT, "--vpmu", "bare,bare"], "both runs are the same"),
    ([COUNT, "--vpmu", "none,none", "--with-b", "--hz 250"], "both runs are the same"),
    ([COUNT, "--quirk", "v1"], "there is no hypervisor in mode bare"),
    ([COUNT, "--with-b", "--quirk v1"], "the kernel is without the passthrough series"),
    ([COUNT, "--with-b", "--quirk 'v1"], "cannot be read: no closing quotation"),
    ([COUNT, "--with-b", "--quirck v1"], "No such option '--quirck'"),
    ([COUNT, "--with-b", "--cores 2"], "--cores is not an option of one of the runs"),
    ([COUNT, "--with-b", "--max-insns x"], "'x' is not a valid integer"),
    ([COUNT, "--with-b", "--hz 17"], "no kernel has 17 ticks a second"),
    ([COUNT, "--cores", "2"], "No such option '--cores'"),
    ([COUNT, "--vpmu", "emulated,emulated", "--with-b", "--host guests/host/second_vm.s"],
     "a program of the host has a guest of its own"),
    (["nothing.s"], "nothing.s: no such file"),
    ([COUNT, "--vpmu", "emulated,passthrough", "--filter", "nothing.toml"], "nothing.toml"),
    ([], "Missing argument 'PROG'"),
])  # fmt: skip
def test_bad_input_is_one_sentence(words, said):
    found = vpmu_diff(*words)
    assert found.exit_code == 2
    assert said in found.output
    assert "Traceback" not in found.output
    assert len([line for line in found.output.splitlines() if line.startswith(("vpmu:", "Error:"))]) == 1
