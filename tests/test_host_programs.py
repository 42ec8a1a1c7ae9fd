"""Programs of the host: they assemble everywhere, and what they print is what the laws of perf say."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from tests.asm.gnu import assert_gnu_makes
from tests.conftest import ROOT
from tests.linux.guests import run, system
from tests.linux.syscalls.kernel import Kernel, program
from vpmu_emu._jit import COMPILES
from vpmu_emu.asm import assemble
from vpmu_emu.cli import main
from vpmu_emu.errors import LoadError
from vpmu_emu.linux.watchdog import lockup_detector_init, lockup_report
from vpmu_emu.load import load
from vpmu_emu.machine.state import CLASS, STOP_HARD_LOCKUP
from vpmu_emu.report import plain, run_tables
from vpmu_emu.setup.hostevents import HostEvent
from vpmu_emu.system import System

PROGRAMS = sorted((ROOT / "guests" / "host").glob("*.s"))


@pytest.mark.uncompiled
@pytest.mark.parametrize("path", PROGRAMS, ids=lambda p: p.stem)
def test_assembles_as_gnu_as_does(path, tmp_path):
    assert_gnu_makes(load(path), path, tmp_path)


# --- programs that need no guest -----------------------------------------------------------------------
def source(name: str) -> str:
    return (ROOT / "guests" / "host" / f"{name}.s").read_text()


@pytest.mark.uncompiled
@pytest.mark.parametrize(("detector", "cores", "seen"), [
    ("off", 1, None), ("nmi", 1, 0), ("hpet", 1, 0), ("buddy", 1, None),
    ("nmi", 2, 1), ("hpet", 2, 1), ("buddy", 2, 0), ("off", 2, None),
])  # fmt: skip
def test_lockup(detector, cores, seen):
    """The second core if there is one; found by whom the detector says, or by nobody for ever."""
    kernel = Kernel(source("lockup"), cores=cores)
    lockup_detector_init(kernel.S, detector, 0.0002)
    kernel.run(10 * 400_000)
    (lockup,) = lockup_report(kernel.S)["lockups"]
    assert (lockup["cpu"], lockup["seen_by"]) == (cores - 1, seen)
    assert lockup["task"] == 1
    assert kernel.exit_codes() == [None]
    assert STOP_HARD_LOCKUP in [int(core.stop) for core in kernel.S.cores]
    if seen is not None:
        # The lockup comes before the first timer: a first look may be enough, but for the buddy.
        assert lockup["since"] < 100_000
        least, most = (12, 24) if detector == "buddy" else (10, 20)
        assert least * 40_000 <= lockup["tsc"] <= most * 40_000 + lockup["since"] + 20_000


ELSEWHERE = """
_start:
    mov edi, 0
    mov esi, 8
    lea rdx, [rip + second]
    CALL_LINUX sched_setaffinity
    mov edi, 3
    CALL_LINUX iopl
    mov al, {value}
    out {port}, al
    .data
second: .quad 2
"""


@pytest.mark.uncompiled
@pytest.mark.parametrize(("port", "value", "reason"), [(0xF4, 7, "debug-exit"), (0x64, 0xFE, "reset")])
def test_a_run_may_end_on_the_second_core(port, value, reason):
    """As it does when the VMM has been moved there."""
    other = program(ELSEWHERE.format(port=port, value=value))
    machine = system("1: jmp 1b\n", "emulated", cores=2, host=[other], max_insns=3_000_000)
    stop = machine.run()
    assert stop.reason == reason
    if reason == "debug-exit":
        assert machine.result(stop).to_json()["exit_code"] == value


# --- laws of perf that the programs show, on the events of the first task -------------------------------
INSTRUCTIONS, BRANCHES = 0xC0, 0xC4
SPLIT = (
    {}, {"exclude_kernel": True}, {"exclude_user": True}, {"exclude_host": True}, {"exclude_guest": True},
)  # fmt: skip
# nine instructions that retire in hardware, the last of them before the one that opens the window
BEFORE, AFTER = 9, 1
COUNTED = """
    WRMSR32 0x38f, 0
    WRMSR32 0x38d, 3
    mov ecx, 0x38f
    mov eax, 0
    mov edx, 1
    wrmsr
    mov ebx, {rounds}
1:  dec ebx
    jnz 1b
    {exits}
    mov ecx, 0x38f
    xor eax, eax
    xor edx, edx
    wrmsr
    EXIT 0
"""


def task_events(*settings, config=INSTRUCTIONS, leader=-1):
    return [
        HostEvent(name="", config=config, task=True, leader=leader if k else -1, **extra)
        for k, extra in enumerate(settings)
    ]


@pytest.mark.uncompiled
@pytest.mark.parametrize("exits", [0, 3, 11])
def test_instructions_of_the_vmm_are_split_exactly(exits):
    text = COUNTED.format(rounds=200 + exits, exits="xor eax, eax\n cpuid\n" * exits)
    _, result = run(text, "emulated", host_events=task_events(*SPLIT, leader=0))
    total, user, kernel, guest, host = (e["count"] for e in result["perf"]["events"][:5])
    assert total == user + kernel == guest + host
    # every instruction of the guest is a :G one, or KVM did it in software
    software = result["kvm"]["emulated_instructions"]
    assert guest == result["instructions"] - software
    # What the guest counts itself: those of its window, and the opener and each exit in software.
    window = guest - BEFORE - AFTER
    assert result["counters"]["fixed0"] == window + 1 + exits


def test_twelve_branch_events_on_eight_counters():
    rounds = 9000  # of 110 cycles
    loop = f"    mov ecx, 0xc0000100\n    mov ebx, {rounds}\n1:  wrmsr\n    dec ebx\n    jnz 1b\n"
    machine = system(loop + "    EXIT 0\n", "emulated",
                     host_events=task_events(*[{"exclude_host": True}] * 12, config=BRANCHES))  # fmt: skip
    machine.S.config.mux_interval = 40_000 * 16
    result = machine.result(machine.run()).to_json()
    events = result["perf"]["events"]
    turns = result["perf"]["rotations"]
    assert turns >= 20
    (enabled,) = {event["enabled"] for event in events}
    # The times add up to those of eight counters, but for the moments in which the list is turned.
    running = sum(event["running"] for event in events)
    assert 0.9 * 8 * enabled < running <= 8 * enabled
    truth = int(machine.core.total[0, CLASS["branch"]]) - int(machine.core.stats.host_branches)
    assert truth == rounds
    for event in events:
        scaled = event["count"] * event["enabled"] / event["running"]
        # Nobody is off for more than four turns together: that much of the whole may be misjudged.
        assert abs(scaled - truth) <= truth * 4 / turns
        assert event["running"] < event["enabled"]


SAMPLED = """
    .include "msr.inc"
    .include "macros.inc"
    load_idt
    set_gate 0x40, pmi
    lapic_enable_x2apic
    wrmsr_const IA32_X2APIC_LVT_PMI, 0x40
    wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
    wrmsr_const IA32_PMC0, 0xffffd8f0
    wrmsr_const IA32_PERFEVTSEL0, 0x53003c
    wrmsr_const IA32_PERF_GLOBAL_CTRL, 1
    sti
    mov ebx, {rounds}
1:  mov ecx, 0xc0000100
    xor eax, eax
    xor edx, edx
    wrmsr
    dec ebx
    jnz 1b
    EXIT 0
pmi:
    push rax
    push rcx
    push rdx
    wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
    wrmsr_const IA32_PMC0, 0xffffd8f0
    wrmsr_const IA32_PERF_GLOBAL_STATUS_RESET, 1
    wrmsr_const IA32_X2APIC_LVT_PMI, 0x40
    wrmsr_const IA32_PERF_GLOBAL_CTRL, 1
    lapic_eoi
    pop rdx
    pop rcx
    pop rax
    iretq
    idt_storage
"""


def test_a_guest_that_asks_for_200_khz_is_throttled():
    """10 000 cycles a period at 2 GHz; perf allows eight samples in a tick of 0.2 ms."""
    machine = system(SAMPLED.format(rounds=9000), "emulated", max_insns=None)
    machine.S.config.max_samples_per_tick = 8
    machine.S.config.tick_interval = 400_000 * 16
    result = machine.result(machine.run()).to_json()
    perf = result["perf"]
    kvm = next(event for event in perf["events"] if event["owner"] == "kvm")
    ticks = result["cycles"] // 400_000 + 2  # it begins and ends between two
    assert perf["throttles"] >= 2
    assert kvm["samples"] <= 9 * ticks
    assert 0 < result["pmis"] <= kvm["samples"]


@pytest.mark.skipif(not COMPILES, reason="three million cycles")
@pytest.mark.parametrize("mode", ["emulated", "passthrough"])
def test_threads_of_a_vmm_share_one_core(mode):
    """What the program says of two cores holds on one, but for who it shares them with."""
    path = ROOT / "guests" / "host" / "vcpu_threads.s"
    machine = System(load(ROOT / "guests/lessons/07_contention.s"), vpmu=mode, host=[path])
    assert machine.run().reason == "debug-exit"
    symbols = load(path).symbols
    for line in (
        f"exact counts of vCPU 0: {symbols['ROUNDS']}",
        f"exact counts of vCPU 1: {symbols['ROUNDS']}",
        f"sum of both: {2 * symbols['ROUNDS'] * symbols['TURNS']}",
    ):
        assert line in machine.serial.splitlines()


@pytest.mark.skipif(not COMPILES, reason="three million cycles")
def test_in_version_1_a_late_filter_waits_for_a_selector():
    """guests/host/late_filter.s with the bug of the series: exact wrong values, one loop more each."""
    path = ROOT / "guests" / "host" / "late_filter.s"
    machine = System(
        load(ROOT / "guests/lessons/07_contention.s"), vpmu="passthrough", host=[path], cores=2,
        quirks=["v1-filter-update"],
    )  # fmt: skip
    assert machine.run().reason == "debug-exit"
    counted = load(path).symbols["COUNTED"]
    lines = [line for line in machine.serial.splitlines() if line.startswith(("PMC0 ", "fixed 0 "))]
    said = dict(line.rsplit(": ", 1) for line in lines)
    assert {name: int(value) for name, value in said.items()} == {
        "PMC0 first": counted, "fixed 0 first": counted,
        "PMC0 under the filter": 2 * counted, "fixed 0 under the filter": 2 * counted,
        "PMC0 behind its selector": 2 * counted, "fixed 0 behind its selector": 3 * counted,
        "PMC0 behind FIXED_CTR_CTRL": 2 * counted, "fixed 0 behind FIXED_CTR_CTRL": 0,
    }  # fmt: skip


@pytest.mark.skipif(not COMPILES, reason="two million cycles")
def test_the_report_says_which_event_lost_its_counter_and_when_it_came_back():
    other = load(ROOT / "guests/host/noisy_neighbour.s")
    machine = System(load(ROOT / "guests/lessons/07_contention.s"), vpmu="emulated", host=[other])
    result = machine.result(machine.run()).to_json()
    (error,) = result["perf"]["errors"]
    assert error["cause"] == "no free counter"
    assert error["tsc"] < error["revived"] < result["cycles"]
    (table,) = [t for t in run_tables(result) if "went to ERROR" in t.title]
    shown = plain(table)
    for value in (error["tsc"], error["revived"]):
        assert f"{value:,}" in shown


@pytest.mark.skipif(not COMPILES, reason="a hundred million cycles")
def test_what_the_programs_say_holds():
    """Every program of guests/host that has expectations, beside its guest."""
    found = CliRunner().invoke(main, ["check", str(ROOT / "guests" / "host")])
    assert found.exit_code == 0, found.output
    for path in (ROOT / "guests" / "host").glob("*.s"):
        if "#: expect" in path.read_text():
            assert f"{path.name}: " in found.output


# --- programs that go wrong ------------------------------------------------------------------------------
BRIEF = "    mov ecx, 300\n1:  dec ecx\n    jnz 1b\n    hlt\n"  # a guest that ends by itself


@pytest.mark.uncompiled
@pytest.mark.parametrize(
    ("code", "signal"),
    [("xor eax, eax\n mov [rax], eax", "SIGSEGV"), (".byte 0x0f, 0x28, 0xc1", "SIGILL"),
     ("hlt", "SIGSEGV"), ("int3", "SIGTRAP")],
)  # fmt: skip
def test_the_report_says_who_was_killed_and_where(code, signal):
    other = program(f"_start:\n nop\n {code}\n nop\n", "other.s")
    machine = system(BRIEF, "emulated", host=[other])
    result = machine.result(machine.run()).to_json()
    assert result["stop"] == "halted"
    killed = result["tasks"][1]["killed"]
    assert killed["signal"] == signal
    assert killed["line"] == other.place(killed["rip"])
    assert result["tasks"][0]["killed"] is None
    (table,) = [t for t in run_tables(result) if t.title == "Programs of the host"]
    assert f"killed by {signal} at" in plain(table)
    # An instruction that the emulator lacks was not the guest's.
    missing = result["unsupported"]
    assert (missing is not None) == (signal == "SIGILL")
    if missing:
        assert missing["line"] == killed["line"]
        assert "other.s of the host got #UD" in missing["text"]


@pytest.mark.uncompiled
@pytest.mark.parametrize("end", ["hlt", "ud2"])
def test_a_limit_holds_for_programs_that_spin_after_the_guest(end):
    machine = system(end + "\n", "emulated", host=[program("_start: jmp _start\n")], max_insns=2000)
    assert machine.run().reason == "max-insns"
    assert int(machine.S.percpu[0].user_insns) == 2000


@pytest.mark.uncompiled
def test_a_program_of_nothing_is_refused():
    with pytest.raises(LoadError, match=r"host\.s: no program"):
        system(BRIEF, "emulated", host=[program("")])


@pytest.mark.uncompiled
def test_the_first_program_of_the_docs():
    text = (ROOT / "docs" / "host.md").read_text().split("```asm\n")[1].split("```")[0]
    guest = "    mov ecx, 9000\n1:  dec ecx\n    jnz 1b\n    hlt\n"
    machine = system(guest, "emulated", host=[assemble(text, "first.s")])
    result = machine.result(machine.run()).to_json()
    assert result["tasks"][1]["exit_code"] == 0
    said, _, count = result["serial"].partition(": ")
    assert said == "instructions in 10 us"
    assert int(count) >= 9000  # the guest all the time, and what the kernel does for it
