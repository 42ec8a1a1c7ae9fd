"""Every line gets an answer and the session goes on; what is shown fits, and steers nothing."""

from __future__ import annotations

import io
import itertools
import re
import subprocess
import sys

import pytest
from click.testing import CliRunner

from tests.asm.gnu import require
from tests.conftest import ROOT
from tests.debug.test_session import LESSON, TEXT
from tests.test_elf import FLAGS
from tests.tools import debugger_page
from vpmu_emu.asm import assemble, assemble_file
from vpmu_emu.cli import main
from vpmu_emu.debug.complete import candidates
from vpmu_emu.debug.repl import Repl
from vpmu_emu.debug.screen import STYLES, Screen, text, wants_colour, wrapped
from vpmu_emu.debug.session import Session
from vpmu_emu.debug.terminal import HINT, history_file, typed_lines
from vpmu_emu.debug.verbs import VERBS, verb_of
from vpmu_emu.system import System

pytestmark = pytest.mark.uncompiled

GUESTS = ROOT / "guests"
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
def session():
    return Session(assemble(TEXT, "t.s"), vpmu="bare")


def conversation(session, *lines, width=80, colour=False):
    out = io.StringIO()
    repl = Repl(session, Screen(out.write, width, colour))
    repl.run(lines)
    return out.getvalue(), repl


def talk(session, *lines):
    said, repl = conversation(session, *lines)
    return said, repl.failures


def test_repl_speaks_gdb(session):
    text, failures = talk(
        session, "b loop", "c", "p rbx", "p/x rbx + COUNT", "x/2xg value",
        "x/s text", "x/4xb value", "x/2i rip", "info regs", "info pmu", "info msr", "info break", "l", "",
        "d 1", "tb 11", "c", "q", "p 1",
    )  # fmt: skip
    assert failures == 0, text
    assert "breakpoint 1: at 0x" in text
    assert "stopped: breakpoint 1" in text
    assert "3 (0x3)" in text
    assert "0x0000000000000006" in text
    assert ": 0x1122334455667788" in text
    assert "'hello'" in text
    assert ": 0x88 0x77 0x66 0x55" in text
    assert "90" in text
    assert "INST_RETIRED.ANY_P usr os en" in text
    assert "=>    8  loop:   nop" in text
    assert "=> 0x100013  90 " in text
    assert not text.endswith("1 (0x1)\n")


def test_empty_line_repeats_a_step(session):
    talk(session, "s", "", "")
    assert session.program.line_at(session.rip).line == 6
    talk(session, "p 1", "")
    assert session.program.line_at(session.rip).line == 6  # looking does not repeat


MISTAKES = [
    ("stpe", "did you mean step?"),
    ("watch msr IA32_PERF_GLOBAL_CTR", "IA32_PERF_GLOBAL_CTRL"),
    ("watch IA32_PMC0", "write `watch msr IA32_PMC0`"),
    ("watch", "write `watch msr NAME"),
    ("watch msr IA32_PMC0 x", "did you mean|nothing is called 'x'"),
    ("b lop", "did you mean loop?"),
    ("info rgs", "did you mean regs?"),
    ("info", "unknown topic"),
    ("con", "may be continue, condition, context"),
    ("b loop if", "if what?"),
    ("b loop if rxx == 1", "did you mean"),
    ("continue 5", "takes nothing"),
    ("finish now", "takes nothing"),
    ("s/x", "takes no format"),
    ("info registers foo", "nothing is called 'foo'"),
    ("advance", "which place?"),
    ("advance -1", "not an address"),
    ("disassemble 1<<70", "not an address"),
    ("why nothing", "I know wrmsr"),
    ("why wrmsr twice", "more than it takes"),
    ("why rdpmc", "has done none yet"),
    ("why pmc9", "no counter"),
    ("set", "write `set REGISTER VALUE`"),
    ("set rxx 5", "nothing is called 'rxx'"),
    ("set colour blue", "neither on nor off"),
    ("set width 3", "40 to 1000"),
    ("set {3}value = 1", "is not a size"),
    ("set rax 1<<64", "64 bits"),
    ("undisplay 4", "no display 4"),
    ("display rxx", "did you mean"),
    ("context rgs", "is none of"),
    ("events nothing", "no kind of event"),
    ("source /nowhere/at/all", "No such file"),
    ("source /dev/null", "is a device"),
    ("condition", "of which point?"),
    ("condition 9 rax", "there is no point 9"),
    ("ignore 1", "ignore N COUNT"),
    ("commands", "there is no point"),
    ("info vmcs", "no hypervisor"),
    ("info filter", "no hypervisor"),
    ("thread 7", "no thread 7"),
    ("disassemble loop,_start", "is not behind"),
    ("help frobnicate", "unknown command"),
    ("delete 7", "there is no point 7"),
    ("s 0", "not a number of instructions"),
    ("s -1", "not a number of instructions"),
    ("x/zz 0", "a count, a format"),
    ("x 0xffffffffff", "outside memory"),
    ("p rxx", "did you mean"),
    ("p 1 +", "cannot read this"),
    ("p/q 1", "unknown format"),
    ("p", "what?"),
    ("l 0x10", "no source"),
    ("123", "cannot read"),
]


def test_mistakes_are_answered_in_a_line_and_the_session_goes_on(session):
    for line, message in MISTAKES:
        said, failures = talk(session, "set width 1000", line)
        assert failures == 1, line
        assert any(part in said for part in message.split("|")), said
        assert said.count("\n") == 1, said
    assert "stopped: step" in talk(session, "s")[0]


def test_scripted_from_standard_input():
    script = "watch msr IA32_PERF_GLOBAL_CTRL\nc\nc\nq\n"
    result = CliRunner().invoke(main, ["debug", str(LESSON), "--vpmu", "passthrough"], input=script)
    assert result.exit_code == 0, result.output
    assert "wrmsr IA32_PERF_GLOBAL_CTRL 0x0 -> 0x100000007 (pmc0 pmc1 pmc2 fixed0)" in result.output
    assert "01_count.s:" in result.output
    assert "\x1b" not in result.output
    wrong = CliRunner().invoke(main, ["debug", str(LESSON)], input="frob\nq\n")
    assert wrong.exit_code == 2


NUMBERS = [
    ("b 1<<70", "not an address"),
    ("b -1", "not an address"),
    ("b ²", "nothing is called"),
    ("b " + "9" * 5000, "no code at or after such a line"),
    ("b t.s:" + "9" * 5000, "no code at or after such a line"),
    ("p " + "~" * 1000 + "1", "nested too deeply"),
    ("p " + "~" * 5000 + "1", "longer than"),
    ("p " + "9" * 1900, "more than 64 bits"),
    ("p 1<<64<<64<<64", "more than 128 bits"),
    ("x/99999999999xb 0", "at most 4096"),
    ("x/²xb 0", "a count, a format"),
    ("watch msr 0x1000000c1", "not what ECX can hold"),
    ("delete " + "9" * 40, "not a number|more than 64 bits"),
]


def test_numbers_that_cannot_be(session):
    for line, message in NUMBERS:
        said, failures = talk(session, line, "p 1")
        assert failures == 1, line
        assert any(part in " ".join(said.split()) for part in message.split("|")), said[:300]
        assert "1 (0x1)" in said


def test_numbers_of_any_size_are_shown_in_the_size_of_a_register(session):
    text, failures = talk(session, "p/c 0x110041", "p/x -1", "p/d 0xffffffffffffffff", "p 1 << 64")
    assert failures == 0, text
    assert text.split("\n")[:4] == ["'A'", "0xffffffffffffffff", "-1", f"{1 << 64} ({1 << 64:#x})"]


def test_names_that_gdb_has_for_any_processor(session):
    lines = ("s", "p/x $pc", "set $sp = 0x2000", "p $sp - 1", "info r rip rsp", "p/x $fp")
    said, failures = talk(session, *lines)
    assert failures == 0, said
    assert "0x0000000000100005" in said
    assert "8191 (0x1fff)" in said
    assert " rip    0x0000000000100005  1048581" in said
    assert " rsp    0x0000000000002000  8192" in said


# --- the screen -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("mode", "width"),
    [
        ("emulated", 80), pytest.param("emulated", 40, marks=pytest.mark.laws),
        *(pytest.param(mode, width, marks=pytest.mark.laws) for mode in ("bare", "passthrough", "mediated")
          for width in (40, 80, 200)),
    ],
)  # fmt: skip
def test_no_line_is_longer_than_the_screen_and_colour_changes_no_word(mode, width):
    lines = (
        "b spin", "c", "s 5", "context regs code msr pmu lvt exits perf trace watch", "info lapic",
        "info idt", "info gdt", "info control", "why pmi", "why wrmsr last", "display pmc0",
        "b pmi if rbx == 2", "c", "bt",
        "info break", "info symbols", "help", "help watch", "help info", "events", "events count all",
        "x/20xb samples", "disas", "l", "info threads", "c",
    )  # fmt: skip
    guest = assemble_file(GUESTS / "lessons" / "03_overflow_pmi.s")
    plain, repl = conversation(Session(guest, vpmu=mode), *lines, width=width)
    assert repl.failures == 0, plain
    assert max(map(len, plain.splitlines())) <= width
    coloured, _ = conversation(Session(guest, vpmu=mode), *lines, width=width, colour=True)
    assert "\x1b" not in plain
    # a space at the end of a piece may stay before the escape that ends its colour
    assert [row.rstrip() for row in ESCAPE.sub("", coloured).splitlines()] == plain.splitlines()
    assert coloured != plain


def test_colour_is_for_terminals_without_no_color(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert wants_colour(True)
    assert not wants_colour(False)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not wants_colour(True)
    monkeypatch.setenv("NO_COLOR", "")  # https://no-color.org: present and not empty
    assert wants_colour(True)
    monkeypatch.setenv("TERM", "dumb")
    assert not wants_colour(True)


def test_text_is_broken_at_spaces_and_long_words_where_they_end():
    rows = [str(row) for row in wrapped(text("one two three " + "x" * 30), 12, 2)]
    assert rows == ["one two", "  three", "  xxxxxxxxxx", "  xxxxxxxxxx", "  xxxxxxxxxx"]
    assert [str(row) for row in wrapped(text(""), 12, 2)] == [""]


def test_what_a_program_says_cannot_steer_the_terminal():
    source = (
        "_start: mov al, 27\n mov dx, 0x3f8\n out dx, al\n mov al, 65\n out dx, al\n hlt # \x1b[31m\n"
    )
    said, _ = conversation(
        Session(assemble(source), vpmu="bare", ram=2), "l", "c", "serial", colour=True
    )
    assert "\\x1bA" in said
    codes = ("0", *STYLES.values())
    assert set(ESCAPE.findall(said)) <= {f"\x1b[{code}m" for code in codes}
    assert "\x1b" not in ESCAPE.sub("", said)


def test_what_has_changed_is_marked(session):
    said, _ = conversation(session, "set sections regs", "s 3", "s")
    last = said.rpartition("stopped: step")[2]
    assert re.search(r"^ rax 0x00000000004300c0", last, re.MULTILINE)  # of the stop before
    said, _ = conversation(session, "set sections regs", "s")
    assert re.search(r"\*rbx 0x0000000000000003", said.rpartition("stopped: step")[2])


def test_code_is_shown_as_memory_has_it():
    source = "_start: mov byte ptr [rip + patch], 0xf4\npatch: nop\n hlt\n"
    said, _ = conversation(Session(assemble(source, "p.s"), vpmu="bare", ram=2), "s")
    assert re.search(r"=> 0x\w+  f4 +hlt  # memory is not what the source says", said)


# --- commands -------------------------------------------------------------------------------------------
def test_a_verb_has_one_meaning_and_every_abbreviation_is_its_own():
    names = [name for verb in VERBS for name in (verb.name, *verb.short)]
    assert len(names) == len(set(names))
    for verb in VERBS:
        assert hasattr(Repl, f"_do_{verb.name.replace('-', '_')}"), verb.name
        assert verb_of(verb.name) is verb
    assert verb_of("disas").name == "disassemble"
    assert verb_of("cont").name == "continue"


def test_a_comment_is_no_command_and_repeats_nothing(session):
    talk(session, "s # twice?", "# s", "  ")
    assert session.system.instructions == 2
    talk(session, "until #4")
    assert session.system.instructions == 4


def test_commands_of_a_point_run_at_its_stops(session):
    said, failures = talk(
        session, "b loop", "commands", "silent", "p rbx", "continue", "end", "c", "info break"
    )
    assert failures == 0, said
    assert said.count("stopped:") == 1  # the end
    assert [row for row in said.splitlines() if row[:1].isdigit() and "(0x" in row] == [
        "3 (0x3)", "2 (0x2)", "1 (0x1)",
    ]  # fmt: skip
    assert "    p rbx" in said


def test_commands_that_cannot_be_are_refused_as_a_whole(session):
    said, failures = talk(
        session, "b loop", "commands 1", "step", "end", "commands 1", "frob", "end", "c"
    )
    assert failures == 2
    assert "step cannot be one" in said
    assert "unknown command 'frob'" in said
    assert "stopped: breakpoint 1" in said


def test_a_point_that_holds_too_often_is_counted_instead_of_shown():
    source = "_start: mov ebx, 500\nloop: dec ebx\n jnz loop\n hlt\n"
    out = io.StringIO()
    repl = Repl(Session(assemble(source), vpmu="bare", ram=2), Screen(out.write), clock=lambda: 0.0)
    repl.run(["b loop", "commands", "continue", "end", "set rate 10", "c", "info break"])
    said = out.getvalue()
    assert said.count("stopped: breakpoint 1") == 10
    assert "point 1: 490 more stops, not shown (set rate)" in said
    assert "hit 500 times" in said
    assert repl.failures == 0


def test_a_flood_says_every_second_how_much_it_is():
    source = "_start: mov ebx, 100\nloop: dec ebx\n jnz loop\n hlt\n"
    clock = itertools.count()
    out = io.StringIO()
    repl = Repl(
        Session(assemble(source), vpmu="bare", ram=2), Screen(out.write), rate=0,
        clock=lambda: next(clock) / 10,
    )  # fmt: skip
    repl.run(["b loop", "commands", "continue", "end", "c"])
    told = re.findall(r"point 1: (\d+) more stops", out.getvalue())
    assert len(told) > 5
    assert sum(map(int, told)) == 100


@pytest.mark.parametrize("rate", [5, 10**6])
def test_ctrl_c_ends_a_flood_and_keeps_the_session(monkeypatch, rate):
    session = Session(assemble("_start: nop\nloop: jmp loop\n"), vpmu="bare", ram=2)
    held = session.cont
    calls = itertools.count()

    def cont():
        if next(calls) == 20:
            raise KeyboardInterrupt
        return held()

    monkeypatch.setattr(session, "cont", cont)
    said, repl = conversation(
        session,
        f"set rate {rate}",
        "set sections none",
        "b loop",
        "commands",
        "continue",
        "end",
        "c",
        "p 1",
    )
    assert "interrupted" in said
    assert said.endswith("1 (0x1)\n")
    assert repl.failures == 0


def test_scripts_read_scripts(tmp_path, session):
    inner, outer = tmp_path / "inner", tmp_path / "outer"
    inner.write_text("p 40 + 2\nfrob\np 43\n")
    outer.write_text(f"source {inner}\nq\np 44\n")
    said, failures = talk(session, f"source {outer}")
    assert "42 (0x2a)" in said
    assert "43 (0x2b)" in said
    assert "44" not in said
    assert failures == 1
    assert "inner:2:frob" in "".join(said.split())
    outer.write_text(f"source {outer}\n")
    said, failures = talk(session, f"source {outer}", "p 1")
    assert "10 deep" in said
    assert said.endswith("1 (0x1)\n")


def test_serial_output_is_shown_once_and_as_it_comes():
    program = assemble_file(GUESTS / "lessons" / "06_sampling.s")
    session = Session(program, vpmu="bare")
    said, _ = conversation(session, "c", "serial")
    live, _, whole = said.partition("stopped:")
    rows = [row.removeprefix("serial: ") for row in live.splitlines() if row.startswith("serial: ")]
    assert rows == session.system.serial.splitlines()
    assert all(row.rstrip() in whole for row in rows)


@pytest.mark.parametrize(
    "mode",
    ["passthrough", *(pytest.param(m, marks=pytest.mark.laws) for m in ("bare", "emulated", "mediated"))],
)
def test_looking_at_everything_changes_nothing(mode):
    program = assemble_file(GUESTS / "lessons" / "03_overflow_pmi.s")
    plain = System(program, vpmu=mode)
    plain.run()
    looks = (
        "context regs code msr pmu lvt exits perf trace watch", "info lapic", "info idt", "info gdt",
        "info control", "why pmi", "why pmc0", "bt", "events all", "l", "disas", "x/16xg samples",
        "info threads", "display pmc0 + mem64(samples)", "why wrmsr",
    )  # fmt: skip
    session = Session(program, vpmu=mode)
    said, repl = conversation(session, "s 8", *looks, "b pmi", "c", *looks, "s 7", *looks, "d", "c")
    assert repl.failures == 0, said
    assert session.system.record() == plain.record()
    assert bytes(session.system.M) == bytes(plain.M)


def test_points_are_told_what_they_wait_for(session):
    said, failures = talk(
        session, "watch msr 0x186 rw", "watch msr 0x180..0x190 w 0x4300c0/0xff if value != 0",
        "watch mem32(value) r",
        "rwatch value", "awatch msr all", "watch msr IA32_PERFEVTSEL0 before", "watch msr 0x186 w changes",
        "catch exception 13", "catch overflow pmc0 if rbx == 1", "info break", "disable 1 2", "ignore 3 5",
        "condition 4 rbx == 2", "enable 2", "info break", "delete 1 2", "d",
    )  # fmt: skip
    assert failures == 0, said
    for row in (
        "reads and writes of IA32_PERFEVTSEL0 (0x186)", "with 0x4300c0 under mask 0xff if value != 0",
        "reads of 4 bytes at", "reads of 8 bytes at", "reads and writes of all MSRs", ", before",
        ", changes only",
        "catch exception if vector == 13", "catch overflow if counter == 0 and (rbx == 1)", "disabled",
        "ignored 5 times more", "if rbx == 2",
    ):  # fmt: skip
        assert row in " ".join(said.split()), row
    assert session.points() == []


ABOUT_POINTS = [
    ("catch", "what? One of"),
    ("catch frobs", "is none of"),
    ("catch exit", "has no exit"),
    ("catch nmi 5", "is more than it takes"),
    ("catch overflow pmc", "is more than it takes"),
    ("watch msr 0x186 r 5 before", "not known before"),
    ("watch msr 0x190..0x180", "is empty"),
    ("watch nowhere", "nothing is called"),
    ("watch $rax", "`until $rax != VALUE`"),
    ("watch pmc0", "`until pmc0 != VALUE`"),
    ("watch value 5000", "cannot be watched"),
    ("reverse-to", "where to?"),
    ("reverse-to #99", "only 0 instructions are done"),
    ("restart 7", "checkpoint"),
    ("msr", "which one?"),
    ("msr IA32_PERFEVTSEL", "did you mean"),
    ("msr 0x100000000", "not what ECX can hold"),
    ("set msr 0x186 0xffffffffffffffff", "#GP"),
    ("until tsc x", "no value of the TSC"),
    ("until #x", "no number of an instruction"),
]


def test_mistakes_about_points_and_moments(session):
    for line, message in ABOUT_POINTS:
        said, failures = talk(session, line)
        assert failures == 1, line
        assert message in " ".join(said.split()), said
    assert "stopped: step" in talk(session, "s")[0]


def test_a_script_of_somebody_without_a_home(session):
    said, failures = talk(session, "source ~nobody-of-that-name/x")
    assert failures == 1
    assert "~nobody-of-that-name/x" in said


def test_what_has_ended_says_so_in_two_lines(session):
    talk(session, "c")
    said, failures = talk(session, "c", "s", "n")
    assert failures == 0
    assert said.count("it has ended: halted at rip") == 3
    assert "stopped" not in said
    assert "stopped: step back" in talk(session, "reverse-step")[0]


def test_time_goes_both_ways(session):
    said, failures = talk(
        session, "set sections none", "s 6", "checkpoint", "s 3", "when", "reverse-step 2", "when",
        "restart 1",
        "when", "b loop", "c", "c", "reverse-continue", "when", "reverse-to #2", "when", "info checkpoints",
        "restart", "when", "c",
    )  # fmt: skip
    assert failures == 0, said
    assert re.findall(r"^#(\d+)", said, re.MULTILINE) == ["9", "7", "6", "8", "2", "0"]
    assert said.count("stopped: breakpoint 1") == 4
    assert "checkpoint 1: #6" in said
    assert "1: #6" in said


def test_what_is_set_is_what_the_program_finds(session):
    said, failures = talk(
        session, "set sections none", "s 3", "set rax = 0x4300c4", "set msr IA32_PERFEVTSEL1 0x4300c0",
        "set mem value 7 4", "s", "msr IA32_PERFEVTSEL0", "p mem32(value)", "set $rbx 5", "p rbx + 1",
        "set {2}value = 0x1234", "x/1xh value",
    )  # fmt: skip
    assert failures == 0, said
    assert "value 0x4300c0 (INST_RETIRED.ANY_P usr os en)" in said
    assert "value 0x4300c4 (BR_INST_RETIRED.ALL_BRANCHES usr os en)" in said
    assert "[22]     en        0x1" in said
    assert re.search(r"^7 \(0x7\)$", said, re.MULTILINE)
    assert re.search(r"^6 \(0x6\)$", said, re.MULTILINE)
    assert said.endswith(": 0x1234\n")


@pytest.mark.parametrize("mode", ["bare", "emulated", "passthrough"])
def test_an_msr_is_what_rdmsr_would_give(mode):
    program = assemble_file(GUESTS / "lessons" / "01_count.s")
    session = Session(program, vpmu=mode)
    looks = ("msr IA32_PMC0", "msr 0x38f", "msr 0x1234")
    said, repl = conversation(session, "b closed", "c", *looks, width=200)
    assert repl.failures == 0
    count = session.pmu()["pmc0"]
    assert f"  value {count:#x}" in said
    assert "RDMSR would be #GP" in said[said.index("0x1234") :]
    path = {
        "bare": "does not exit: the program has no hypervisor", "emulated": "exits: MSR bitmap byte 0x871",
        "passthrough": "does not exit: MSR bitmap byte 0x871 bit 7 is 0",
    }[mode]  # fmt: skip
    assert f"WRMSR {path}" in said


# --- why ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("mode", "answer"),
    [
        ("bare", "it does not exit: there is no hypervisor below the program"),
        ("emulated", "it exits, MSR_WRITE: MSR bitmap byte 0x871, bit 7 is 1; KVM never passes it"),
        (
            "passthrough",
            "it does not exit: MSR bitmap byte 0x871, bit 7 is 0; KVM passes it if guest.version",
        ),
    ],
)
def test_why_an_access_exits_or_not(mode, answer):
    session = Session(LESSON, vpmu=mode)
    said, repl = conversation(session, "b 46", "s 3", "why wrmsr", "s", "why wrmsr", width=200)
    assert repl.failures == 0, said
    assert "the next wrmsr, IA32_PERF_GLOBAL_CTRL (0x38f) = 0x0 at 01_count.s:46" in said
    assert answer in said
    # what was foretold is what has happened
    foretold = said[said.index("the next wrmsr") : said.rindex("stopped:")].splitlines()[2:]
    happened = said[said.index("the last wrmsr") :].splitlines()[2:]
    assert foretold == happened


def test_every_link_of_the_chain_to_a_pmi_can_be_the_broken_one():
    program = assemble_file(GUESTS / "debug" / "one_pmi.s")
    session = Session(program, vpmu="bare")
    core = session.system.core
    session.break_at("wait")
    session.cont()
    said, _ = conversation(session, "why pmi")
    assert said.startswith("Nothing is in the way of the next PMI (none so far)")

    def broken(change, undo):
        change()
        said, _ = conversation(session, "why pmi", width=200)
        undo()
        return re.search(r"^=> NO  (\S+( \S+)?)  ", said, re.MULTILINE)[1]

    def bits(record, name, value, index=None):
        old = record[name] if index is None else record[name][index]

        def put(new):
            if index is None:
                record[name] = new
            else:
                record[name][index] = new

        return (lambda: put(type(old)(value(int(old))))), (lambda: put(old))

    lapic, pmu = core.lapic, core.pmu
    assert broken(*bits(pmu, "eventsel", lambda v: v & ~(1 << 22), 0)) == "selector"
    assert broken(*bits(pmu, "eventsel", lambda v: v & ~0xFF | 0xEE, 0)) == "event"
    assert broken(*bits(pmu, "eventsel", lambda v: v & ~(3 << 16) | 1 << 16, 0)) == "rings"
    assert broken(*bits(pmu, "global_ctrl", lambda v: 0)) == "GLOBAL_CTRL"
    assert broken(*bits(pmu, "global_status", lambda v: 1 << 59)) == "freeze"
    assert broken(*bits(pmu, "eventsel", lambda v: v & ~(1 << 20), 0)) == "PMI enable"
    assert broken(*bits(lapic, "spiv", lambda v: 0xFF)) == "local APIC"
    assert broken(*bits(lapic, "apic_base", lambda v: v & ~(1 << 11))) == "local APIC"
    assert broken(*bits(lapic, "lvt", lambda v: v | 1 << 16, 3)) == "LVTPC"
    assert broken(*bits(lapic, "lvt", lambda v: 8, 3)) == "vector"
    assert broken(*bits(lapic, "lvt", lambda v: v | 5 << 8, 3)) == "delivery mode"
    assert broken(*bits(lapic, "isr", lambda v: 1, 1)) == "in service"
    assert broken(*bits(lapic, "tpr", lambda v: 0x50)) == "TPR"
    assert broken(*bits(core, "rflags", lambda v: v & ~0x200)) == "interrupts"
    assert broken(*bits(core, "idt_limit", lambda v: 0)) == "IDT"
    lapic.lvt[3] = 0x400
    core.nmi_blocked = 1
    assert broken(lambda: None, lambda: None) == "NMI"


@pytest.mark.parametrize("mode", ["emulated", "passthrough", "mediated"])
def test_what_the_filter_denies_is_what_does_not_count(mode):
    lesson = GUESTS / "lessons" / "04_filter.s"
    session = Session(lesson, vpmu=mode, filter=str(lesson.with_suffix(".toml")))
    session.break_at("again")
    session.cont()
    before = session.pmu()
    session.delete()
    session.until("done")
    counting = []
    for name in ("pmc0", "pmc1", "pmc2", "pmc3", "pmc4", "fixed0"):
        said, _ = conversation(session, f"why {name}", width=200)
        counts = session.pmu()[name] != before[name]
        assert ("the VM's filter lets it count" in said) == counts, said
        assert ("=> NO  event filter" in said) != counts, said
        counting += [name] if counts else []
    assert counting == ["pmc2", "pmc3"]


def test_a_counter_that_stands_still_names_who_has_its_place():
    session = Session(
        GUESTS / "lessons" / "07_contention.s",
        vpmu="emulated",
        host=[GUESTS / "host" / "noisy_neighbour.s"],
    )
    said, repl = conversation(session, "b stopped", "c", "why pmc0", width=200)
    assert repl.failures == 0
    assert (
        "pmc0 stands still: perf event: event 1 of the host, branches:kGD: ERROR, no free counter"
        in said
    )
    assert "branches:D of the host (on pmc0 pmc1 pmc2 pmc3 pmc4 pmc5 pmc6 pmc7)" in said


# --- backtrace ------------------------------------------------------------------------------------------
def test_a_backtrace_goes_through_calls_and_interrupts():
    source = """
        .include "macros.inc"
_start: load_idt
        set_gate 0x40, handler
        lea rbp, [rip + _start]
        call outer
        hlt
outer:  push 5
        call inner
        pop rax
        ret
inner:  int 0x40
        ret
handler: push rax
        call deep
        pop rax
        iretq
deep:   nop
        ret
        idt_storage
    """
    session = Session(assemble(source, "b.s", include=[GUESTS / "include"]), vpmu="bare", ram=2)
    said, _ = conversation(session, "b deep", "c", "set sections none", "bt")
    frames = re.findall(r"^#(\d)  0x\w+ <([\w+]+)>.*?(?:\((.*)\))?$", said, re.MULTILINE)
    assert [(n, name.partition("+")[0], how) for n, name, how in frames] == [
        ("0", "deep", ""), ("1", "handler", "by the stack"), ("2", "inner", "interrupted"),
        ("3", "outer", "by the stack"), ("4", "_start", "by the stack"),
    ]  # fmt: skip


def test_a_backtrace_follows_frame_pointers():
    source = """
_start: xor ebp, ebp
        call f
        hlt
f:      push rbp
        mov rbp, rsp
        sub rsp, 64
        call g
        leave
        ret
g:      push rbp
        mov rbp, rsp
        nop
        pop rbp
        ret
    """
    session = Session(assemble(source, "f.s"), vpmu="bare", ram=2)
    said, _ = conversation(session, "b 13", "c", "set sections none", "bt")
    assert re.findall(r"\((by .*)\)", said) == ["by frame pointer", "by frame pointer"]
    assert "<_start+" in said.splitlines()[-1]


FRAMES = """
_start: mov ebx, 7
        call outer
        hlt
outer:  push rbp
        mov rbp, rsp
        push 0x55
        call inner
        leave
        ret
inner:  mov ebx, 8
        nop
        ret
"""


def test_a_frame_is_looked_at_until_the_next_move():
    session = Session(assemble(FRAMES, "frames.s"), vpmu="bare", ram=2)
    rsp = session.registers()["rsp"]
    said, repl = conversation(
        session, "b 12", "c", "set sections none", "frame", "up", "p/x $pc", "x/1xg $sp", "l", "up 5", "f",
        "p $rsp", "p rbx", "set rsp 0", "up", "down 9", "down", "f 3", "f 1", "s", "f", "display/i $pc",
        width=120,
    )  # fmt: skip
    lines = said.splitlines()
    assert repl.failures == 4
    shown = [line.split()[0] + line.split("<")[1].split(">")[0] for line in lines if line.startswith("#")]
    in_order = "#0inner+5 #1outer+11 #2_start+10 #2_start+10 #0inner+5 #1outer+11 #0inner+6"
    assert shown == in_order.split()
    program = session.program
    back = program.symbols["outer"] + 11
    assert f"{back:#018x}" in said
    assert "0x0000000000000055" in said  # on the stack of outer
    assert any(line.startswith("=>") and "call inner" in line for line in lines)
    assert f"{rsp} ({rsp:#x})" in said
    assert "8 (0x8)" in said
    assert "set: rsp of frame 2 is in no register; `frame 0` first" in said
    assert "up: #2 is the outermost frame that can be found" in said
    assert "down: #0 is the innermost frame" in said
    assert "frame: there is no frame 3; the outermost is #2" in said
    ret = program.symbols["inner"] + 6
    assert f"1: rip = {ret:#x} <inner+6>: ret" in said


DECOY = """\
void leaf(void) { __asm__ volatile("nop"); }
__attribute__((noinline)) void inner(unsigned long *kept)
{
	volatile unsigned long decoy[9];
	for (int i = 0; i < 9; i++)
		decoy[i] = *kept;       /* words that look as if they were return addresses */
	__asm__ volatile("mark_inner: nop" ::: "memory");
	decoy[0] = decoy[8];
}
__attribute__((noinline)) void outer(void)
{
	unsigned long kept = (unsigned long)__builtin_return_address(0);
	inner(&kept);
	__asm__ volatile("" ::: "memory");
}
void _start(void)
{
	leaf();
	outer();
	__asm__ volatile("out %%al, $0xf4" ::"a"(0));
}
"""


@pytest.mark.parametrize(
    ("flags", "how"),
    [
        (["-O2", "-g", "-fomit-frame-pointer"], "by DWARF"),
        (["-O2", "-g", "-fno-asynchronous-unwind-tables", "-fomit-frame-pointer"], "by DWARF"),
        (["-O1", "-fno-asynchronous-unwind-tables", "-fno-omit-frame-pointer"], "by frame pointer"),
    ],
)
def test_a_backtrace_of_compiled_code_is_not_fooled_by_what_lies_on_the_stack(tmp_path, flags, how):
    require("gcc", "as", "ld")
    (tmp_path / "a.c").write_text(DECOY)
    command = ["gcc", *FLAGS, "-mno-red-zone", "-fno-stack-protector", *flags, "-o", "a", "a.c"]
    subprocess.run(command, cwd=tmp_path, check=True)
    said, _ = conversation(Session(tmp_path / "a", ram=4), "b mark_inner", "c", "set sections none", "bt")
    frames = re.findall(r"^#(\d)  0x\w+ <(\w+).*?(?:\((.*)\))?$", said, re.MULTILINE)
    assert [(name, found) for _, name, found in frames[1:]] == [("outer", how), ("_start", how)], said


# --- completion -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("conti", "continue"),
        ("b lo", "loop"),
        ("b t.", "t.s:"),
        ("b loop if rb", "rbx"),
        ("watch m", "msr"),
        ("watch msr IA32_PERF_GLOBAL_C", "IA32_PERF_GLOBAL_CTRL"),
        ("watch msr global_ctrl", "IA32_PERF_GLOBAL_CTRL"),
        ("info la", "lapic"),
        ("p pm", "pmc0"),
        ("p/x $ra", "$rax"),
        ("why p", "pmi"),
        ("set sections co", "code"),
        ("ctx lv", "lvt"),
        ("events over", "overflow"),
        ("help wa", "watch"),
        ("source /et", "/etc/"),
    ],
)
def test_completion(session, line, expected):
    repl = Repl(session, lambda _: None)
    start, names = candidates(repl, line)
    assert expected in names
    assert start <= len(line)
    assert candidates(repl, "frob x") == (5, [])


# --- the terminal ---------------------------------------------------------------------------------------
def test_lines_are_typed_with_history_and_completion(tmp_path, monkeypatch, session):
    pytest.importorskip("prompt_toolkit")
    from prompt_toolkit.application import create_app_session
    from prompt_toolkit.input import create_pipe_input
    from prompt_toolkit.output import DummyOutput

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    said = io.StringIO()
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        repl = Repl(session, said.write)
        keys.send_text("p 40 + 2\r\x03p 7\r\x04")
        assert repl.run(typed_lines(repl)) == 0
    assert said.getvalue().split() == ["42", "(0x2a)", "7", "(0x7)"]
    kept = history_file().read_text()
    assert "+p 40 + 2" in kept
    assert "+p 7" in kept


def test_without_the_extra_readline_reads_and_says_what_is_missing(tmp_path, monkeypatch, session):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "prompt_toolkit", None)
    lines = iter(["p 1", "q"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    said = io.StringIO()
    repl = Repl(session, Screen(said.write, 200))
    assert repl.run(typed_lines(repl)) == 0
    assert said.getvalue().splitlines() == [HINT, "1 (0x1)"]


def test_a_folder_that_cannot_be_written_costs_the_history_only(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(blocked))
    assert history_file() is None


# --- what is written down -------------------------------------------------------------------------------
def test_the_sessions_of_the_page_are_what_the_debugger_says(monkeypatch):
    monkeypatch.chdir(ROOT)
    page = debugger_page.PAGE.read_text(encoding="utf-8")
    sessions = debugger_page.blocks(page)
    assert len(sessions) >= 3
    for words, body in sessions:
        assert body.count("\n(vpmu) ") <= 6, words
    assert debugger_page.renewed(page) == page, "python -m tests.tools.debugger_page"


def _late(name, width, colour):
    return [] if (width, colour) in DAY.get(name, ()) else [pytest.mark.laws]


DAY = {"bare": [(80, True)], "emulated": [(80, False)], "help": [(80, False), (200, True)]}


@pytest.mark.parametrize(
    ("name", "width", "colour"),
    [
        pytest.param(name, width, colour, marks=_late(name, width, colour))
        for name in debugger_page.TALKS
        for width in debugger_page.WIDTHS
        for colour in (False, True)
    ],
)
def test_screens(monkeypatch, name, width, colour):
    monkeypatch.chdir(ROOT)
    kept = debugger_page.screen_file(name, width, colour).read_text(encoding="utf-8")
    assert debugger_page.screen(name, width, colour) == kept, "python -m tests.tools.debugger_page"
