"""Runs under KVM are functions of the record: no engine policy, trace or slice can be seen in them."""

from __future__ import annotations

import pytest

from tests.linux.guests import system, window
from vpmu_emu.asm import assemble_file
from vpmu_emu.data import guests_dir
from vpmu_emu.system import System

LESSONS = ("03_overflow_pmi.s", "06_sampling.s")
HOST = ("instructions:HD", "cycles/period=50000/:H", "branches*3")


@pytest.mark.parametrize("mode", ["emulated", "passthrough", "mediated"])
@pytest.mark.parametrize("lesson", LESSONS)
@pytest.mark.parametrize("host_events", [(), HOST], ids=["quiet", "busy"])
def test_the_record_does_not_depend_on_the_engine(mode, lesson, host_events):
    program = assemble_file(guests_dir() / "lessons" / lesson)
    records = set()
    if mode == "mediated":  # of events that count in guests there is none
        host_events = tuple(spec for spec in host_events if "H" in spec)
    for options in (
        {},
        {"horizon": 1},
        {"horizon": 9, "horizon_seed": 0x1234567},
        {"trace": True},
    ):
        machine = System(program, vpmu=mode, ram=4, host_events=host_events, **options)
        assert machine.run().reason == "debug-exit"
        records.add(machine.record())
    assert len(records) == 1


@pytest.mark.parametrize("mode", ["none", "emulated", "passthrough", "mediated"])
def test_stepping_ends_where_running_does(mode):
    body = "xor eax, eax\n cpuid\n nop\n" * 3 + " EXIT 0\n"
    whole = system(body, mode)
    whole.run()
    stepped = system(body, mode)
    places = []
    while True:
        stop = stepped.step()
        if stop.reason != "step":
            break
        places.append(stop.rip)
    assert stepped.record() == whole.record()
    # one instruction a step, those that exit included
    addresses = [line.addr for line in stepped.program.lines if line.kind == "insn"]
    assert places == addresses[1:]


WAITS = """
    .include "msr.inc"
    .include "macros.inc"
    load_idt
    set_gate 0x50, tick
    lapic_enable_x2apic
    wrmsr_const IA32_X2APIC_LVT_TIMER, 0x40050
    rdtsc
    shl rdx, 32
    or rax, rdx
    add rax, 3000000
    mov rdx, rax
    shr rdx, 32
    mov ecx, IA32_TSC_DEADLINE
    wrmsr
    sti
waits:
    hlt
    EXIT 0
tick:
    lapic_eoi
    iretq
    idt_storage
"""


@pytest.mark.parametrize("mode", ["bare", "none", "emulated", "passthrough", "mediated"])
def test_hlt_is_one_step(mode):
    whole = system(WAITS, mode)
    whole.run()
    stepped = system(WAITS, mode)
    places = []
    while (stop := stepped.step()).reason == "step":
        places.append(stop.rip)
    assert stepped.record() == whole.record()
    assert len(places) == len(set(places))
    symbols = stepped.program.symbols
    assert places[places.index(symbols["waits"]) + 1] == symbols["tick"]
    assert int(whole.core.t) >> 4 > 3_000_000


@pytest.mark.parametrize("mode", ["emulated", "passthrough", "mediated"])
def test_watching_an_access_that_exits(mode):
    machine = system(window("nop"), mode, trace=True)
    E = machine.E
    E.watch_msr[0] = E.watch_last[0] = 0x186
    E.watch_mode[0], E.n_watch = 2, 1
    stop = machine.run()
    assert stop.reason == "watch"
    event = machine.events()[[int(k) for k in machine.events()["kind"]].index(2)]
    assert stop.rip > int(event["rip"])
    machine.E.stop_request = 0
    machine.E.n_watch = 0
    assert machine.run().reason == "debug-exit"
    assert machine.record() == finished(window("nop"), mode)


def finished(body, mode) -> bytes:
    machine = system(body, mode, trace=True)
    machine.run()
    return machine.record()


@pytest.mark.parametrize("mode", ["emulated", "passthrough", "mediated"])
def test_a_sleeping_guest_gives_python_its_turn(mode):
    """A periodic timer that is masked never wakes it; the run can still be interrupted."""
    body = """
    WRMSR32 0x1b, 0xfee00d00
    WRMSR32 0x80f, 0x1ff
    WRMSR32 0x832, 0x30020
    WRMSR32 0x838, 1000
    sti
    hlt
    """
    machine = system(body, mode)
    for _ in range(20):
        assert machine.step().reason == "step"
