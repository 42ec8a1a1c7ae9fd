"""A hard lockup is found by the detector that can, when the kernel's arithmetic says, and by no other."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.linux.guests import run, system, window
from vpmu_emu.asm import assemble, assemble_file
from vpmu_emu.errors import ConfigError
from vpmu_emu.linux.hrtimer import host_timer_program
from vpmu_emu.linux.lkdtm import lockup_spin
from vpmu_emu.linux.perf.event import perf_event_read_value
from vpmu_emu.linux.run import run_host
from vpmu_emu.linux.state import TASK_INTERRUPTIBLE
from vpmu_emu.linux.watchdog import lockup_detector_init, lockup_report
from vpmu_emu.machine.clock import tsc_value
from vpmu_emu.machine.state import RUN_SLICE, RUN_STOPPED, STOP_HARD_LOCKUP
from vpmu_emu.views.perf import perf_report

pytestmark = [pytest.mark.uncompiled, pytest.mark.inner]

THRESH = 0.001
CYCLES = 3_000_000  # of THRESH, at turbo
TSC = 2_000_000  # of THRESH; and the cycles of a period of the event, which is early at turbo
TURN = 140  # cycles of PAUSE and a jump
# An NMI is taken within a turn of the loop; its handler up to the check costs some 800 cycles.
LATE = 2 * TURN + 1000


class Host:
    """A host whose one task sleeps: CPUs that idle from timer to timer, or spin once they are locked up."""

    def __init__(self, detector: str, cpus: int = 1, **options):
        self.machine = system("    EXIT 0\n", "emulated", cores=cpus, **options)
        S = self.S = self.machine.S
        lockup_detector_init(S, detector, THRESH)
        S.tasks[0].state = TASK_INTERRUPTIBLE
        S.tasks[0].wake_at = 1 << 60
        S.percpu[0].curr = -1
        S.cores[0].turn = 0
        S.percpu[0].task_ctx = -1
        with np.errstate(over="ignore"):
            host_timer_program(S, self.machine.E)
        self.run(0)

    def lock(self, cpu: int) -> None:
        self.S.percpu[cpu].lockup = 1  # what a write to the file of lkdtm does

    def run(self, until: float) -> bool:
        """All CPUs up to a time in thresholds; False if the run is over because of a lockup."""
        self.machine.E.t_slice = int(until * CYCLES) * 16
        with np.errstate(over="ignore"):
            code = run_host(self.S, self.machine.M, self.machine.E)
        if code == RUN_SLICE:
            return True
        assert code == RUN_STOPPED
        assert self.S.cores[0].stop == STOP_HARD_LOCKUP
        return False

    def count(self, i: int) -> int:
        with np.errstate(over="ignore"):
            return int(perf_event_read_value(self.S, self.machine.E, i))

    def report(self):
        return lockup_report(self.S)


def test_nmi_finds_its_own_cpu_after_three_periods_of_cycles():
    host = Host("nmi")
    assert host.run(0.5)
    host.lock(0)
    counted = host.count(0)
    core = host.S.cores[0]
    began = tsc_value(core, int(core.t))
    assert not host.run(4)
    (lockup,) = host.report()["lockups"]
    assert (lockup["cpu"], lockup["seen_by"], lockup["since"]) == (0, 0, began)
    assert lockup["message"] == "CPU0: Watchdog detected hard LOCKUP on cpu 0"
    # The first NMI still finds that a timer had come since boot, the second one comes after two thirds of
    # the threshold and looks at nothing, the third one finds no timer. An idle CPU's cycles do not count,
    # so that the first is a whole period after what was counted so far.
    waited = (lockup["tsc"] - began) * CYCLES / TSC
    assert 3 * TSC - counted < waited + 2 < 3 * TSC - counted + 3 * LATE + 8000
    assert perf_report(host.S)[0]["samples"] == 3


def test_buddy_is_found_by_its_neighbour_within_the_second_check():
    host = Host("buddy", cpus=2)
    assert host.run(1.0)
    host.lock(1)
    assert not host.run(4)
    (lockup,) = host.report()["lockups"]
    assert (lockup["cpu"], lockup["seen_by"]) == (1, 0)
    # Timers of CPU 0 come every 2/5 of the threshold. Its third call skips the check (touched at boot),
    # the sixth sees the two calls from before the lockup, the ninth sees no more.
    due = 9 * TSC * 2 // 5
    assert due < lockup["tsc"] < due + 10_000
    assert host.S.percpu[0].hrtimer_interrupts == 9
    assert host.S.percpu[1].hrtimer_interrupts == 2


@pytest.mark.parametrize("cpu", [0, 1])
def test_hpet_visits_every_cpu_once_a_threshold(cpu):
    host = Host("hpet", cpus=2)
    assert host.run(1.1)
    host.lock(cpu)
    assert not host.run(6)
    (lockup,) = host.report()["lockups"]
    assert (lockup["cpu"], lockup["seen_by"]) == (cpu, cpu)
    # The channel visits CPU 0 at 1, 2 … thresholds and CPU 1 half a threshold later. CPU 0 had no timer
    # after its visit at 1, before the lockup; CPU 1 had two before that at 1.5, none before the next.
    due = (2 if cpu == 0 else 2.5) * TSC
    assert due <= lockup["tsc"] < due + LATE


@pytest.mark.parametrize(("detector", "cpus", "seen"), [
    ("off", 1, None), ("buddy", 1, None), ("nmi", 1, 0), ("hpet", 1, 0),
])  # fmt: skip
def test_a_cpu_that_nobody_watches_ends_the_run_unseen(detector, cpus, seen):
    host = Host(detector, cpus)
    assert host.run(0.5)
    host.lock(0)
    began = host.S.cores[0].t
    # Without a detector the idle CPU has jumped to its only timer, which is far away.
    assert not host.run(5 if seen is not None else 1e11)
    (lockup,) = host.report()["lockups"]
    assert lockup["seen_by"] == seen
    if seen is None:
        assert lockup["tsc"] is None
        assert lockup["message"] is None
        assert host.S.cores[0].t == began


def test_the_others_do_not_see_it():
    # CPU 1 is locked up; with the detector off CPU 0 lives on for ever.
    host = Host("off", cpus=2)
    assert host.run(0.1)
    host.lock(1)
    assert host.run(8)
    (lockup,) = host.report()["lockups"]
    assert lockup["seen_by"] is None


def test_nmi_cannot_see_without_its_counter():
    host = Host("nmi")
    assert host.run(0.1)
    host.S.perf_events[0].state = -2
    host.lock(0)
    assert not host.run(1)
    assert host.report()["lockups"][0]["seen_by"] is None


@pytest.mark.parametrize("detector", ["nmi", "buddy", "hpet"])
def test_a_live_host_is_never_accused(detector):
    host = Host(detector, cpus=2)
    assert host.run(8)
    assert host.report()["lockups"] == []
    for cpu in range(2):
        assert host.S.percpu[cpu].hrtimer_interrupts in (19, 20)


def test_the_spin_retires_what_it_costs():
    host = Host("hpet")
    assert host.run(0.1)
    host.lock(0)
    core = host.S.cores[0]
    before = core.total[0].copy(), int(core.t)
    spent = host.machine.cycles_by()
    with np.errstate(over="ignore"):
        lockup_spin(host.S, host.machine.E, before[1] + 16 * 140_000)
    assert core.t - before[1] == 16 * 140_000
    inst, branch = (int(core.total[0, k] - before[0][k]) for k in (0, 1))
    assert (inst, branch) == (2000, 1000)
    # Where the cycles went: it all adds up, and nothing of it was a guest's.
    after = host.machine.cycles_by()
    assert after["tasks"] - spent["tasks"] == 140_000
    assert after["guest"] == 0
    assert sum(after.values()) == core.t >> 4


def test_a_counter_overflows_in_the_turn_that_it_should():
    # 1000 branches from overflow, in the locked CPU's own loop; the NMI comes when the 1000th has retired.
    host = Host("hpet", host_events=["{branches/period=1000/}"])
    assert host.run(0.05)  # the host has booted in that time
    host.lock(0)
    before = host.count(0)
    t = int(host.S.cores[0].t)
    nmis = int(host.S.percpu[0].nmis)
    with np.errstate(over="ignore"):
        left = 1000 - before % 1000
        lockup_spin(host.S, host.machine.E, t + 16 * 140 * (left - 1))
        assert host.S.percpu[0].nmis == nmis
        lockup_spin(host.S, host.machine.E, t + 16 * 140 * left)
    assert host.S.percpu[0].nmis == nmis + 1


# --- whole runs -----------------------------------------------------------------------------------------
LEAST = 0.0001
# WRMSR to FS_BASE takes 110 cycles and does not exit.
SPIN = """
    cli
    mov ecx, 0xc0000100
    xor eax, eax
    xor edx, edx
    mov ebx, {rounds}
1:  wrmsr
    dec ebx
    jnz 1b
    EXIT 0
"""


@pytest.mark.laws
@pytest.mark.parametrize("detector", ["nmi", "buddy", "hpet"])
@pytest.mark.parametrize("mode", ["emulated", "passthrough"])
def test_a_guest_that_spins_with_interrupts_off_triggers_none(mode, detector):
    # Three thresholds and more: the host's timers and NMIs end the guest's turns.
    _, result = run(SPIN.format(rounds=8700), mode, watchdog=detector, watchdog_thresh=LEAST)
    assert result["watchdog"] == {"detector": detector, "thresh": LEAST, "lockups": []}
    # the run may end in the midst of the last one
    assert result["cycles"] // 120_000 - result["perf"]["timer_irqs"] in (0, 1)
    # The event of the series does not count in the guest; the board's timer goes on. The event's period is
    # the threshold in cycles of the marked frequency.
    thresholds, periods = result["cycles"] // 300_000, result["cycles"] // 200_000
    nmis = {"nmi": periods if mode == "emulated" else 0, "buddy": 0, "hpet": thresholds}
    assert thresholds >= 3
    assert result["perf"]["nmis"] == nmis[detector]


SLEEPER = """
        .include "linux.inc"
        .include "host.inc"
        .globl _start
_start: lea rdi, [rip + nap]
        xor esi, esi
        linux nanosleep
        exit_program 0
        .data
        .balign 8
nap:    .quad 0, {nanoseconds}
        host_storage
"""


@pytest.mark.parametrize(("mode", "detector", "seen"), [
    ("passthrough", "nmi", None), ("passthrough", "buddy", 0), ("passthrough", "hpet", 1),
    ("mediated", "buddy", 0), ("mediated", "hpet", 1),
])  # fmt: skip
def test_a_spin_where_the_guest_has_the_pmu(mode, detector, seen):
    """Between perf_guest_enter() and perf_guest_exit() the detector's event is out, so its NMI never comes.

    The other CPU lives on for ten thresholds. (The detector nmi and mediated exclude each other.)
    """
    sleeper = assemble(SLEEPER.format(nanoseconds=10_000_000), str(ROOT / "guests/host/sleeper.s"))
    machine = system(
        "    EXIT 0\n", mode, cores=2, watchdog=detector, watchdog_thresh=THRESH, host=[sleeper],
        inject=["spin-in-the-switch"],
    )  # fmt: skip
    stop = machine.run()
    result = machine.result(stop).to_json()
    assert stop.reason == "hard-lockup"
    (lockup,) = result["watchdog"]["lockups"]
    assert lockup["seen_by"] == seen
    said = [line["text"] for line in result["log"]]
    if seen is None:
        assert said == []
        assert result["perf"]["nmis"] == 0
        assert max(int(core.t) for core in machine.cores) > 10 * CYCLES * 16
    else:
        cpu = lockup["cpu"]
        assert said == [f"watchdog: CPU{seen}: Watchdog detected hard LOCKUP on cpu {cpu}"]
        assert lockup["tsc"] - lockup["since"] < 3 * TSC
        assert int(machine.S.percpu[cpu].force_exclude_guest or machine.S.percpu[cpu].guest_lvtpc_loaded)


def test_the_same_spin_elsewhere_is_seen_by_the_nmi():
    """A program of the host has its core spin: no guest has the PMU there (guests/host/lockup.s)."""
    lockup = assemble_file(ROOT / "guests/host/lockup.s")
    machine = system(
        "sti\n1: hlt\njmp 1b\n", "passthrough", cores=2, watchdog="nmi", watchdog_thresh=LEAST,
        host=[lockup],
    )  # fmt: skip
    assert machine.run().reason == "hard-lockup"
    (found,) = lockup_report(machine.S)["lockups"]
    assert found["seen_by"] == found["cpu"]


def test_the_event_of_the_nmi_detector():
    _, emulated = run("    EXIT 0\n", "emulated", watchdog="nmi")
    _, series = run("    EXIT 0\n", "passthrough", watchdog="nmi")
    _, broken = run("    EXIT 0\n", "passthrough", watchdog="nmi", without=[3])
    events = [found["perf"]["events"][0] for found in (emulated, series, broken)]
    assert [event["name"] for event in events] == ["cycles:D", "cycles:HD", "cycles:D"]
    assert [event["state"] for event in events] == ["ACTIVE", "ACTIVE", "ERROR"]
    assert events[2]["cause"] == "guest owns the PMU"
    assert {event["period"] for event in events} == {10 * 2_000_000_000}


@pytest.mark.parametrize("detector", ["nmi", "buddy"])
def test_only_the_nmi_detector_takes_a_counter_from_the_guest(detector):
    # Branches have the eight general-purpose counters; the guest's cycles fit on fixed counter 1 only.
    guest = window("nop\n" * 5, selector=0x43003C)
    result = run(guest, "emulated", watchdog=detector, host_events=["branches:D*8"])[1]
    assert (result["counters"]["pmc0"] == 0) == (detector == "nmi")


@pytest.mark.parametrize(("options", "key"), [
    ({"watchdog": "hpett"}, "watchdog"),
    ({"watchdog": "nmi", "watchdog_thresh": 0.0}, "watchdog-thresh"),
    ({"watchdog": "nmi", "watchdog_thresh": float("nan")}, "watchdog-thresh"),
    ({"watchdog": "nmi", "watchdog_thresh": 61.0}, "watchdog-thresh"),
    ({"watchdog": "nmi", "settings": {"pmu.version": 0}}, "watchdog"),
])  # fmt: skip
def test_bad_settings(options, key):
    with pytest.raises(ConfigError) as error:
        system("    EXIT 0\n", "none", **options)
    assert error.value.key == key


def test_there_is_no_host_in_bare():
    with pytest.raises(ConfigError, match="hypervisor"):
        system("    EXIT 0\n", "bare", watchdog="buddy")
