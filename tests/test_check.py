"""The expectation language: what it reads, what it refuses and where, and that nothing is blind."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpmu_emu import run
from vpmu_emu.asm import assemble
from vpmu_emu.checks import CheckError, check_program, judge, language, read_plan

pytestmark = pytest.mark.uncompiled

MODES = ("bare", "none", "emulated", "passthrough")


class Program:
    symbols = {"first": 0x1000, "last": 0x1010, "buffer": 0x2000, "COUNT": 40, "here": 7, "pass": 3}

    def insns(self, a, b):
        return (b - a) // 4


@attrs.frozen
class Run:
    values: dict
    memory: bytes = bytes(range(1, 17))

    def read(self, address, size):
        return self.memory[address - 0x2000 : address - 0x2000 + size]


RUN = Run(
    {
        "counters": {"pmc0": 4, "pmc1": (1 << 48) - 1, "fixed0": 9},
        "registers": {"rax": 42, "rip": 0x1010},
        "exits": {"CPUID": 3}, "msr": {}, "pmis": 2, "pmis_hw": 2, "global_status": 1,
        "exit_code": None, "serial": "ok\n", "stop": "debug-exit", "instructions": 100, "cycles": 50,
        "perf": {"throttles": 3},
    }
)  # fmt: skip


@pytest.fixture(autouse=True)
def names(monkeypatch):
    # The language, not the tables: two exits and one MSR will do.
    monkeypatch.setattr(language, "exit_names", lambda: {n: n for n in ("CPUID", "MSR_WRITE")})
    monkeypatch.setattr(
        language, "msr_names", lambda: dict.fromkeys(("IA32_PMC0", "MSR_IA32_PERFCTR0"), "IA32_PMC0")
    )


def plan(*lines):
    return read_plan("g.s", list(enumerate(lines, 1)), Program(), MODES)


def verdict(text, run=RUN):
    (expectation,) = plan(f"expect all: {text}").expectations
    return judge(expectation, "bare", Program(), run)


@pytest.mark.parametrize(
    "text",
    [
        "pmc0 == insns(first, last)",
        "pmc0 == 4",
        "pmc1 == 0xffff_ffff_ffff",
        "fixed0 > pmc0",
        "rax == COUNT + 2",
        "rax == (COUNT * 2 + 4) / 2",
        "rax % 5 == 2",
        "pass + pmc0 == insns(first, last) + 3",
        "rax & 0xf == 10",
        "rax >> 1 == 21",
        "1 << 3 == 8 + pmc0 * 0",
        "mem8(buffer) == 1",
        "mem16(buffer + 1) == 0x0302",
        "mem32(buffer) == 0x04030201",
        "mem64(buffer) == 0x0807060504030201",
        "~mem8(buffer) == -2",
        "exits.CPUID >= 3",
        "exits.MSR_WRITE == 0",
        "msr.IA32_PMC0.reads == 0",
        "msr.MSR_IA32_PERFCTR0.exits == 0",
        "perf.throttles > 2",
        "pmis == 2",
        "pmis_hw != 3",
        "global_status <= 1",
        'serial == "ok\\n"',
        'stop == "debug-exit"',
        'stop != "triple fault"',
        "exit_code != 0",
        "instructions < 101",
        "cycles >= 50",
    ],
)
def test_what_holds(text):
    found = verdict(text)
    assert found.ok, str(found)
    assert not verdict_of_opposite(text).ok


def verdict_of_opposite(text):
    opposite = {"==": "!=", "!=": "==", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}
    (expectation,) = plan(f"expect all: {text}").expectations
    return judge(
        attrs.evolve(expectation, op=opposite[expectation.op]), "bare", Program(), RUN
    )


def test_failure_names_place_and_both_values():
    (failed,) = plan("cpu spr", "expect all: pmc0 == insns(first, last) + 1").expectations
    text = str(judge(failed, "emulated", Program(), RUN))
    assert text == (
        "g.s:2: [emulated] pmc0 == insns(first, last) + 1\n    left is 4, right is 5"
    )


@pytest.mark.parametrize(
    "text", ["exit_code < 3", "pmc7 == 0", "rax / (pmc0 - 4) == 1", "exit_code + 1 == 1"]
)
def test_what_a_run_lacks_is_a_failure_not_a_crash(text):
    found = verdict(text)
    assert not found.ok
    assert found.message


@pytest.mark.parametrize(
    ("line", "message", "caret"),
    [
        ("expekt all: pmc0 == 1", "unknown key 'expekt'", None),
        ("modes bare emulatd", "did you mean emulated?", None),
        ("modes ", "no mode named", None),
        ("expect pmc0 == 1", "no modes before the comparison", "pmc0"),
        ("expect emulatd: pmc0 == 1", "did you mean emulated?", None),
        ("expect none: pmc0 == 1", "unknown mode 'none'", None),
        ("expect all: pmc0", "not a comparison", "pmc0"),
        ("expect all: pmc0 == == 1", "cannot read this", "== 1"),
        ("expect all: 1 < pmc0 < 3", "one comparison a line", None),
        ("expect all: pmc0 in 3", "unknown comparison", None),
        ("expect all: pmc0 == COUMT", "did you mean COUNT?", "COUMT"),
        ("expect all: pmc0 == 1.5", "not an integer", "1.5"),
        ("expect all: pmc0 == True", "not an integer", "True"),
        ("expect all: pmc0 == 'x'", "text compares with", "'x'"),
        ("expect all: pmc0 == 2 ** 3", "unknown operator", "2 **"),
        ("expect all: pmc0 == not 3", "cannot read this", None),
        ("expect all: exits.CPUIDD == 1", "did you mean CPUID?", "exits"),
        ("expect all: exits == 1", "nothing is called 'exits'", "exits"),
        ("expect all: msr.IA32_PMC0.frobs == 1", "reads, writes and exits", "msr"),
        ("expect all: msr.IA32_PMC1.reads == 1", "did you mean IA32_PMC0?", "msr"),
        ("expect all: perf.throttels == 1", "did you mean throttles?", "perf"),
        ("expect all: perf.throttles.x == 1", "nothing is called", "perf"),
        ("expect all: mem8(1, 2) == 1", "one address", "mem8"),
        ("expect all: insns(first) == 1", "two labels", "insns"),
        ("expect all: open('x') == 1", "no function 'open'", "open"),
        ("expect all: (lambda: 1)() == 1", "not allowed", None),
        ("expect all: [1][0] == 1", "not allowed", "[1]"),
        ("expect all: pmc0 == pmc0", "both sides are the same", None),
        ("expect all: COUNT == 40", "nothing here depends on the run", "COUNT"),
        ("expect all: serial < 'x'", "text can only be equal or not", None),
        ("args --filter 'x", "args: No closing quotation", None),
        ("row ", "row: nothing named", None),
        ("row 6P", "no row can be called '6P'", None),
        ("row P6 X-OS", "no row can be called 'X-OS'", None),
        ("kernels linux-7", "did you mean linux-7.0?", None),
    ],
)
def test_refusals_have_a_place(line, message, caret):
    with pytest.raises(CheckError) as caught:
        plan("modes bare emulated", line)
    text = str(caught.value)
    assert text.startswith("g.s:2: ")
    assert message in text
    if caret:
        _, source, mark, *_ = text.splitlines()
        assert source[mark.index("^") :].startswith(caret)


def test_plan_collects():
    found = plan(
        "cpu icx", "args --ram 32", "args --filter 'a b.toml'", "modes bare, passthrough",
        "expect all: pmis == 2", "expect passthrough: exits.CPUID == 3",
    )  # fmt: skip
    assert found.cpu == "icx"
    assert found.args == ("--ram", "32", "--filter", "a b.toml")
    assert found.modes == ("bare", "passthrough")
    assert [e.modes for e in found.expectations] == [("bare", "passthrough"), ("passthrough",)]
    assert plan().modes == ("bare", "emulated", "passthrough")


def test_plan_of_a_conformance_row():
    found = plan("row P6, P7", "row X-os-bit", "upstream x86/pmu.c: check_counters ")
    assert found.rows == ("P6", "P7", "X-os-bit")
    assert found.upstream == "x86/pmu.c: check_counters"
    assert found.kernels == ("silicon", "linux-7.0", "rfc-v1")
    assert plan("modes bare passthrough").kernels == ("silicon", "rfc-v1")
    assert plan("kernels rfc-v1", "modes passthrough bare").kernels == ("rfc-v1",)


def test_check_runs_each_mode_once_and_reports():
    asked = []

    def runner(program, mode, cpu, args):
        asked.append((mode, cpu, args))
        return RUN

    found = plan("args --ram 8", "modes bare emulated", "expect all: pmc0 == 4", "expect bare: rax == 1")
    report = check_program(Program(), found, runner)
    words = ("--ram", "8")
    assert asked == [("bare", None, words), ("emulated", None, words)]
    assert [(v.mode, v.expectation.line, v.ok) for v in report.verdicts] == [
        ("bare", 3, True), ("bare", 4, False), ("emulated", 3, True),
    ]  # fmt: skip
    assert not report.ok
    assert report.to_json()["expectations"][1]["left"] == 42


def test_a_host_program_is_run_beside_its_guest(tmp_path):
    (tmp_path / "guest.s").write_text(".text\n_start: hlt\n")
    asked = []

    def runner(program, mode, cpu, args):
        asked.append((program.name, args))
        return RUN

    file = str(tmp_path / "host.s")
    lines = [(1, "guest guest.s"), (2, "modes emulated"), (3, "args --ram 2"), (4, "expect all: pmc0 == 4")]
    report = check_program(Program(), read_plan(file, lines, Program(), MODES), runner)
    assert report.ok
    assert asked == [(str(tmp_path / "guest.s"), ("--ram", "2", "--host", file))]
    with pytest.raises(CheckError, match="no such guest"):
        read_plan(file, [(1, "guest gone.s")], Program(), MODES)


def test_printed_is_the_number_behind_a_text():
    run = attrs.evolve(RUN, values={**RUN.values, "serial": "a 1\nlong a 7\na: 2\na 3 4\na 5\n"})
    assert verdict('printed("a ") == 5', run).ok
    assert verdict('printed("a:") == 2', run).ok
    assert "no line" in verdict('printed("b") == 5', run).message
    with pytest.raises(CheckError, match="one text"):
        plan("expect all: printed(1) == 2")


def test_events_of_the_host_by_name_and_the_hardware_by_register():
    cycles = {"name": "cycles:HD", "owner": "host", "count": 7}
    events = [cycles, {"name": "cycles", "owner": "kvm", "count": 8}]
    closed = [{"name": "branches", "owner": "host", "count": 9}]
    hw = {"eventsel": [5, 6], "pmc": [1], "global_ctrl": 3}
    log = [{"text": "Invalid MSR c1"}, {"text": "Invalid MSR c2"}]
    perf = {"events": events, "closed": closed}
    run = attrs.evolve(RUN, values={**RUN.values, "perf": perf, "hw": hw, "log": log})
    assert verdict('log("MSR c") - log("c2") == 1', run).ok
    assert "no host whose kernel" in verdict('log("MSR") == 0', RUN).message
    assert verdict('counted("cycles:DH") == 7', run).ok
    assert verdict('counted("branches") == 9', run).ok
    assert "no event 'cycles'" in verdict('counted("cycles") == 8', run).message
    assert verdict("hw.eventsel1 + hw.pmc0 + hw.global_ctrl == 10", run).ok
    for name in ("eventsel2", "fixed0", "global_status"):
        assert f"no {name}" in verdict(f"hw.{name} == 0", run).message
    for text, said in (
        ("hw.global == 0", "did you mean global_ctrl"), ("counted(1) == 2", "one text"),
        ("kvm.entry == 0", "did you mean entries"), ("cycles_by.gest == 0", "did you mean guest"),
        ("work.vm_exti.count == 0", "did you mean vm_exit"), ("work.vm_exit.n == 0", "a count and cycles"),
        ("perf.nmi == 0", "did you mean nmis"), ("hw == 0", "nothing is called"),
    ):  # fmt: skip
        with pytest.raises(CheckError, match=said):
            plan(f"expect all: {text}")


def test_what_the_serial_port_lost_is_noted():
    run = attrs.evolve(RUN, values={**RUN.values, "lost": {"serial": 4464, "trace": 0}})
    report = check_program(Program(), plan("modes bare", "expect all: pmc0 == 4"), lambda *a: run)
    assert report.notes == ("[bare] 4,464 characters more than are kept were written to the serial port",)
    assert report.ok


def test_nothing_expected_is_not_green():
    assert not check_program(Program(), plan("modes bare"), lambda *a: RUN).ok


def blind(text):
    report = check_program(
        Program(), plan("modes bare", f"expect all: {text}"), lambda *a: RUN, perturb=True
    )
    assert report.verdicts[0].ok
    return report.blind


@pytest.mark.parametrize(
    "text",
    [
        "pmc0 == 4", "pmc0 >= 1", "pmc0 <= 1000", "4 == pmc0", "pmc0 != 5", "pmc0 > 0", "pmc0 < 99",
        "pmc0 == insns(first, last)", "rax == COUNT + 2", "rax - COUNT == 2", "serial == 'ok\\n'",
        'stop == "debug-exit"', "exit_code != 0", "fixed0 == pmc0 + 5", "pmis == pmis_hw", "rax & 15 == 10",
    ],
)  # fmt: skip
def test_perturbing_reddens_every_real_expectation(text):
    if text == "exit_code != 0":
        # No value: nothing that could be named would be equal to it.
        assert blind(text)
    else:
        assert not blind(text)


@pytest.mark.parametrize("text", ["pmc0 * 0 == 0 * COUNT", "rax & 0 == 0 * 7"])
def test_perturbing_finds_what_cannot_fail(text):
    assert blind(text)


@given(
    st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 64) - 1), st.sampled_from(sorted(language.COMPARE))
)
def test_perturbing_never_accepts_a_green_that_cannot_redden(actual, bound, op):
    run = attrs.evolve(RUN, values={**RUN.values, "pmis": actual})
    found = plan("modes bare", f"expect all: pmis {op} {bound}")
    report = check_program(Program(), found, lambda *a: run, perturb=True)
    assert report.verdicts[0].ok == language.COMPARE[op](actual, bound)
    assert not report.blind


def test_numbers_of_kvm_and_parts_of_the_time_are_those_of_a_run():
    result = run(assemble("hlt"), vpmu="none", ram=2).to_json()
    assert {name for name, value in result["kvm"].items() if isinstance(value, int)} == {
        *language.KVM, "fixed_ctr_ctrl_hw",
    }  # fmt: skip
    assert tuple(result["cycles_by"]) == language._parts_of_time()
    assert set(result["work"]) <= set(language._rows_of_work())
    values = {**RUN.values, "kvm": {"entries": 7}, "cycles_by": {"guest": 11, "idle": 2}}
    has = attrs.evolve(RUN, values={**values, "work": {"vm_exit": {"count": 3, "cycles": 900}}})
    for text in ("kvm.entries == 7", "cycles_by.guest + cycles_by.idle == 13", "work.vm_exit.cycles == 900",
                 "work.vm_entry.count == 0 * pmis"):
        (expectation,) = plan(f"expect all: {text}").expectations
        assert judge(expectation, "bare", Program(), has).ok
    (expectation,) = plan("expect all: kvm.entries == 0").expectations
    verdict = judge(expectation, "bare", Program(), RUN)
    assert not verdict.ok
    assert verdict.message == "there is no host whose kvm could say anything"
    (expectation,) = plan("expect all: work.vm_exit.count == 0").expectations
    assert "there is no host" in judge(expectation, "bare", Program(), RUN).message


def test_numbers_of_perf_are_those_of_a_run():
    result = run(assemble("    .text\n_start: hlt\n"), vpmu="emulated").to_json()
    assert {name for name, value in result["perf"].items() if isinstance(value, int)} == set(language.PERF)
    bare = attrs.evolve(RUN, values={k: v for k, v in RUN.values.items() if k != "perf"})
    (expectation,) = plan("expect all: perf.throttles == 0").expectations
    assert "no host" in judge(expectation, "bare", Program(), bare).message


def test_a_name_of_the_program_that_is_a_value_of_the_run_too():
    class Named(Program):
        symbols = {**Program.symbols, "cycles": 0x2000, "pmc0": 0x2001, "triple": 5}

    def judged(text):
        (expectation,) = read_plan("g.s", [(1, f"expect all: {text}")], Named(), MODES).expectations
        return judge(expectation, "bare", Named(), RUN)

    assert judged("mem8(cycles) == 1").ok
    assert judged("mem8(cycles + 1) == 2").ok
    assert judged("mem8(pmc0) == 2").ok
    assert judged("rax == insns(cycles, cycles + 168)").ok
    for text in ("cycles == 50", "rax == cycles", "pmc0 == 4", "mem8(buffer) + cycles == 1"):
        with pytest.raises(CheckError, match="is a name of this program and a value of the run"):
            judged(text)
    run = attrs.evolve(RUN, values={**RUN.values, "stop": "triple"})
    (expectation,) = read_plan("g.s", [(1, "expect all: stop == triple")], Named(), MODES).expectations
    assert judge(expectation, "bare", Named(), run).ok


@pytest.mark.parametrize("stop", ["halted", "triple-fault", "max-insns", "hard-lockup", "interrupted"])
def test_only_an_equality_that_holds_expects_a_stop(stop):
    run = attrs.evolve(RUN, values={**RUN.values, "stop": stop, "stop_rip": 16, "stop_line": "g.s:3"})

    def report(*lines):
        found = plan("modes bare emulated", "expect all: pmc0 == 4", *lines)
        return check_program(Program(), found, lambda *a: run)

    red = report()
    assert not red.ok
    assert red.failed == 2
    assert red.stops[0].startswith(f"g.s: [bare] ended by {stop} at rip 0x10 (g.s:3), not by debug-exit")
    assert report(f'expect all: stop == "{stop}"').ok
    assert report(f'expect bare: stop == "{stop}"').failed == 1
    assert not report('expect all: stop != "x"').ok
    assert not report('expect all: stop == "x"').ok


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pmc0 == " + "9" * 1900, "more than 64 bits"),
        ("pmc0 == " + "9" * 5000, "longer than"),
        ("pmc0 == " + "~" * 1000 + "1", "nested too deeply"),
        ("pmc0 == " + "(" * 500 + "1" + ")" * 500, "nested"),
        ("pmc0 == \udcff", "cannot read"),
        ("stop == max-insns", "in quotes"),
    ],
)
def test_expressions_beyond_measure(text, message):
    with pytest.raises(CheckError, match=message):
        plan(f"expect all: {text}")


def test_arithmetic_stays_within_bounds():
    assert "more than 128 bits" in verdict("pmc0 << 64 << 64 << 64 == 1").message
