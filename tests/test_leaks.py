"""The law of leaks: what a guest sees does not depend on the host's counters, nor the reverse.

Random guests with random host events, programs that take the core at random instructions, and a second VM,
in every mode and with every policy of the switch. Nothing is compared with a model: the same guest runs
beside another host, and must have read the same; the same host runs beside a guest with other values in its
counters, and must have counted the same; a host program counts its own instructions, to which nobody adds.
"""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.tools.profiles import cases
from tests.tools.whole import machine
from vpmu_emu._jit import COMPILES
from vpmu_emu.asm import Program, assemble
from vpmu_emu.system import System
from vpmu_emu.tables.modes import MODES, SWITCH_POLICIES

pytestmark = pytest.mark.skipif(not COMPILES, reason="runs of a million instructions")

GP, FIXED = 8, 4  # of spr
MOST = 20_000_000
CYCLES_US = 2000
SPIN = 1_200_000
EVENTS = ("instructions", "branches", "cycles", "r81d0", "r82d0", "cpu/event=0xc0,period=77777/",
          "cpu/event=0xc4,period=50111/")  # fmt: skip
SETUPS: dict[str, dict[str, Any]] = {"emulated": {"vpmu": "emulated"}}
SETUPS |= {
    f"{mode.name}, {policy}": {"vpmu": mode.name, "switch": policy}
    for mode in MODES.values() if mode.owns_pmu for policy in SWITCH_POLICIES
}  # fmt: skip
SETUPS["passthrough, all"] = {"vpmu": "passthrough", "all_passthrough": True}

GUEST = """
        .intel_syntax noprefix
        .globl _start
_start: lea r15, [rip + log]
{first}
{body}
        mov eax, {spin}
1:      dec eax
        jnz 1b
        mov eax, 0; out 0xf4, al
        .data
        .balign 8
log:    .zero {size}
"""
HOST = """
        .intel_syntax noprefix
        .include "linux.inc"
        .include "host.inc"
        .globl _start
_start: perf_open insns, 0, ANY
        exit_if_error 1
        mov ebx, eax
        perf_open branches, 0, ANY
        exit_if_error 1
        mov ebp, eax
{body}
        read_into value, ebx, 8
        read_into value, ebp, 8
        exit_program 0
        .data
        .balign 8
        .equ OWN, PERF_ATTR_EXCLUDE_KERNEL | PERF_ATTR_EXCLUDE_GUEST
insns:  perf_attr PERF_TYPE_HARDWARE, PERF_COUNT_HW_INSTRUCTIONS, OWN
branches: perf_attr PERF_TYPE_HARDWARE, PERF_COUNT_HW_BRANCH_INSTRUCTIONS, OWN
        .balign 8
value:  .zero 8
        host_storage
"""
SECOND = (ROOT / "guests" / "host" / "second_vm.s").read_text(encoding="utf-8")


def wrmsr(index: int, value: int | str) -> str:
    low, high = (value, 0) if isinstance(value, str) else (value & 0xFFFFFFFF, value >> 32)
    return f"        mov ecx, {index:#x}; mov eax, {low}; mov edx, {high}; wrmsr\n"


FIRST = "        mov ecx, 0x38f; rdmsr\n" + wrmsr(0x38F, 0)


def guest(body: str, logged: int, first: str = FIRST) -> str:
    """A guest that does `body`, then runs on until the host's programs are over."""
    return GUEST.format(first=first, body=body, spin=SPIN, size=16 * logged + 16)


class Case:
    """One guest in two versions, which differ in the values of its counters, and one host."""

    def __init__(self, seed: int, setup: str, **more: Any) -> None:
        self.r = random.Random(f"{seed} {setup}")
        self.options = SETUPS[setup] | more
        self.owner = MODES[self.options["vpmu"]].owns_pmu
        r = self.r
        self.gp = r.randint(1, GP if self.owner else 3)
        self.fixed = r.randint(0, 3)
        self.options["guest"] = {"gp": self.gp, "fixed": self.fixed}
        self.logged = 0
        self.secrets: list[tuple[int, int]] = []
        body = "".join(self._step() for _ in range(r.randint(6, 30)))
        body += self._looks()
        versions = list(zip(*self.secrets, strict=True)) or [()]
        self.texts = [guest(body.format(*values), self.logged) for values in versions]
        self.events = [self._event() for _ in range(r.randint(0, 4))]
        self.slices = r.choice((5, 20, 100)) * CYCLES_US * 16
        self.programs = [self._program()]
        if r.random() < 0.4:
            text = SECOND.replace(".equ TIMES, 20", ".equ TIMES, 3")
            self.programs.append(text.replace(".equ PAUSE, 50000", f".equ PAUSE, {r.randint(500, 9000)}"))

    # --- the guest
    def _secret(self) -> str:
        one, two = (self.r.randrange(1, 1 << 31) for _ in range(2))
        self.secrets.append((one, two))
        return f"{{{len(self.secrets) - 1}}}"

    def _counter(self) -> int:
        n = self.r.randrange(self.gp + self.fixed)
        return 0x4C1 + n if n < self.gp else 0x309 + n - self.gp

    def _log(self, access: str) -> str:
        self.logged += 1
        return f"        {access}\n        mov [r15], eax; mov [r15 + 8], edx; add r15, 16\n"

    def _looks(self) -> str:
        """Everything that RDPMC and RDMSR let a guest of this shape see."""
        text = wrmsr(0x38F, 0)
        there = self.options["vpmu"] == "passthrough"  # RDPMC passes, whatever the guest has
        for i in range(GP if there else self.gp):
            text += self._log(f"mov ecx, {i}; rdpmc")
        for j in range(FIXED if there else self.fixed):
            text += self._log(f"mov ecx, {1 << 30 | j:#x}; rdpmc")
        if there:
            text += self._log(f"mov ecx, {1 << 29:#x}; rdpmc")
        for index in (0x38D, 0x38E, 0x38F, *(0x186 + i for i in range(self.gp))):
            text += self._log(f"mov ecx, {index:#x}; rdmsr")
        return text

    def _step(self) -> str:
        r = self.r
        match r.randrange(9):
            case 0 | 1:
                return wrmsr(self._counter(), self._secret())
            case 2:
                event = r.choice((0xC0, 0xC4, 0x0))
                return wrmsr(0x186 + r.randrange(self.gp), event | r.choice((0x430000, 0x030000, 0x410000)))
            case 3 if self.fixed:
                return wrmsr(0x38D, r.choice((0x0, 0x3)))
            case 4:
                on = r.randrange(1 << self.gp) | (r.randrange(2) << 32 if self.fixed else 0)
                return wrmsr(0x38F, on)
            case 5:
                return self._looks()
            case 6:
                return "        xor eax, eax; cpuid\n" * r.randint(1, 4)
            case 7:
                return f"        mov eax, {r.randint(1, 3000)}\n1:      dec eax\n        jnz 1b\n"
            case _:
                return "        nop\n" * r.randint(1, 9)

    # --- the host
    def _event(self) -> str:
        pinned = "D" if self.owner and self.r.random() < 0.5 else ""
        name, rings = self.r.choice(EVENTS), self.r.choice(("", "u", "k"))
        return f"{name}:{rings}{pinned}H"

    def _program(self) -> str:
        body = ""
        for _ in range(self.r.randint(3, 12)):
            body += f"        sleep_ns {self.r.randint(300, 15_000)}\n"
            body += f"        mov ecx, {self.r.randint(1, 4000)}\n1:      dec ecx\n        jnz 1b\n"
        return HOST.format(body=body)

    # --- runs
    def run(self, which: int = 0, host: bool = True, **options: Any) -> System:
        """The guest in one of its versions, to its end; without `host` it has the machine to itself."""
        chosen = self.options | options
        if host:
            chosen |= {"host": [assembled(text) for text in self.programs], "host_events": self.events}
        system = machine(assembled(self.texts[which]), chosen.pop("vpmu"), max_insns=MOST, **chosen)
        config = system.S.config
        config.sched_slice = config.tick_interval = config.mux_interval = self.slices
        stop = system.run()
        assert stop.reason == "debug-exit", str(stop)
        self.stop = stop
        return system

    def read(self, system: System) -> bytes:
        """What the guest has read."""
        program = assembled(self.texts[0])
        return system.read(program.symbols["log"], 16 * self.logged)


@cache
def assembled(text: str) -> Program:
    return assemble(text, "leaks.s", include=[ROOT / "guests" / "include"])


def counted(case: Case, system: System) -> object:
    """What the host has counted, how long, and when its programs were over."""
    result = system.result(case.stop).to_json()
    keys = ("name", "state", "count", "enabled", "running", "samples")
    perf = result["perf"]
    events = [{key: e.get(key) for key in keys} for e in (*perf["events"], *perf["closed"])]
    return events, [(task["program"], task["exit_code"]) for task in result["tasks"]], perf["nmis"]


def own_counts(case: Case, system: System) -> list[int]:
    """Of the two events of the host program: its own instructions and branches in user mode."""
    result = system.result(case.stop).to_json()
    tasks = {task["program"]: task["exit_code"] for task in result["tasks"]}
    assert set(tasks.values()) <= {None, 0}, tasks
    return [event["count"] for event in result["perf"]["closed"]][:2]


@cache
def alone(programs: tuple[str, ...]) -> list[int]:
    """The same of a host whose guest has no PMU."""
    case = Case(0, "emulated")
    case.programs, case.events = list(programs), []
    case.options = {"vpmu": "none"}
    case.texts = [guest("", 0, "")]
    return own_counts(case, case.run())


@pytest.mark.few(5)
@pytest.mark.parametrize("setup", SETUPS)
def test_nothing_leaks(setup):
    for seed in range(cases(day=2, laws=25, night=10_000)):
        case = Case(seed, setup)
        one = case.run()
        two = case.run(which=len(case.texts) - 1)
        assert case.read(one) == case.read(case.run(host=False)), f"seed {seed}: the host's in the guest"
        assert counted(case, one) == counted(case, two), f"seed {seed}: the guest's in a host event"
        assert own_counts(case, one) == alone(tuple(case.programs[:1])), f"seed {seed}"
        assert int(one.S.vcpus[0].pmu.dirty_puts) == 0


def test_a_vcpu_is_preempted_within_its_windows():
    """Else the law would say nothing: its thread leaves the core while its counters are on."""
    switches = [Case(seed, "mediated, elide").run().S.tasks[0].switches for seed in range(2)]
    assert min(int(n) for n in switches) >= 3


def test_without_patch_24_a_leak_is_found():
    """It clears counters that the guest does not have and can read all the same."""
    for seed in range(100):
        case = Case(seed, "passthrough, eager", without=[24])
        if case.read(case.run()) != case.read(case.run(host=False)):
            return
    pytest.fail("none of 100 guests has seen anything of the host's")


@pytest.mark.parametrize("bug", ["keep-selectors"])
def test_a_deliberate_bug_of_the_switch_is_found(bug):
    for seed in range(100):
        case = Case(seed, "mediated, elide", inject=[bug])
        one, two = case.run(), case.run(which=len(case.texts) - 1)
        clean = int(one.S.vcpus[0].pmu.dirty_puts) == 0 and counted(case, one) == counted(case, two)
        if not clean or case.read(one) != case.read(case.run(host=False)):
            return
    pytest.fail(f"{bug}: none of 100 guests has seen it, and no host event")
