"""The final record and memory are the same bytes for any horizon, slicing, tracing or snapshot.

How far the interpreter runs without looking, how often it returns to Python and whether somebody listens
are policies; nothing of them may be seen in the machine.
"""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import generator, generator_system
from tests.tools.profiles import cases
from tests.tools.whole import (
    LESSONS,
    MODES,
    assert_same,
    lesson,
    lesson_options,
    machine,
    seeded,
    state,
)
from vpmu_emu._jit import COMPILES
from vpmu_emu.asm import assemble
from vpmu_emu.machine.state import RUN_SLICE

modes = pytest.mark.parametrize("mode", MODES)
lessons = pytest.mark.parametrize("name", LESSONS)
SYSTEM_KINDS = ("events", "paging")  # of tests/reference/generator_system.py, the others of generator.py
KINDS = ("agreement", "anything", "integer", "running", *SYSTEM_KINDS)
kinds = pytest.mark.parametrize("kind", KINDS)
POLICIES = ({"horizon": 1}, {"horizon": 3, "horizon_seed": 11}, {"horizon": 40, "horizon_seed": 7})
SEEDS = cases(day=5, laws=16, night=40)
EXAMPLES = settings(deadline=None) if COMPILES else settings(deadline=None, max_examples=8)


def finish(program, mode, **options):
    system = machine(program, mode, **options)
    system.run()
    return state(system)


def in_slices(program, mode, times, **options):
    """Run with a return to Python after each of `times` (in 1/16 cycle, from now)."""
    system = machine(program, mode, **options)
    code = RUN_SLICE
    turns = 0
    while code == RUN_SLICE:
        code = system._turn(times(turns))
        turns += 1
    return state(system), turns


def all_policies(program, mode, **options):
    plain = finish(program, mode, **options)
    assert_same(plain, finish(program, mode, **options), f"{mode}: a second run")
    for policy in POLICIES:
        assert_same(plain, finish(program, mode, **policy, **options), f"{mode}: {policy}")
    assert_same(plain, finish(program, mode, trace=True, **options), f"{mode}: traced")
    chance = random.Random(5)
    sliced, turns = in_slices(program, mode, lambda _: chance.randint(1, 3000), **options)
    assert turns > 1
    assert_same(plain, sliced, f"{mode}: in slices")


@pytest.mark.uncompiled
@lessons
@modes
def test_lessons(name, mode):
    # without the compiler the longest lesson would take minutes
    most = 60_000 if COMPILES else 1_500
    all_policies(lesson(name), mode, max_insns=most, **lesson_options(name, mode))


DELIVERY = """
.intel_syntax noprefix
.include "msr.inc"
.include "macros.inc"
.globl _start
_start:
    load_idt
    set_gate 0x40, handler
    lapic_enable_x2apic
    wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
    wrmsr_const IA32_A_PMC0, 0x1000000000000-{left}
    wrmsr_const IA32_PERFEVTSEL0, 0x43003c
    sti
    wrmsr_const IA32_PERF_GLOBAL_CTRL, 1
    wrmsr_const IA32_X2APIC_SELF_IPI, 0x40
    mov ecx, 300
1:  loop 1b
    debug_exit 0
handler:
    rdmsr_rax IA32_PERF_GLOBAL_STATUS
    mov r8, rax
    iretq
    idt_storage
"""


@pytest.mark.uncompiled
def test_cycles_that_overflow_while_an_interrupt_is_delivered():
    """Delivery takes time: the overflow belongs to it, whenever the interpreter looks next."""
    seen = set()
    for left in range(200, 5000, 160):
        program = assemble(DELIVERY.format(left=left), "delivery")
        plain = finish(program, "bare")
        for policy in POLICIES:
            assert_same(plain, finish(program, "bare", **policy), f"{left}: {policy}")
        system = machine(program, "bare")
        system.run()
        seen.add(system.registers()["r8"])
    assert seen == {0, 1}  # the handler met both


@EXAMPLES
@given(
    kind=st.sampled_from(KINDS),
    data=st.data(),
    mode=st.sampled_from(MODES),
    horizon=st.integers(1, 200),
    seed=st.integers(1, (1 << 63) - 1),
)
def test_random_programs(kind, data, mode, horizon, seed):
    text = data.draw(getattr(generator_system if kind in SYSTEM_KINDS else generator, kind)())
    program = assemble(text)
    plain = finish(program, mode)
    for policy in ({"horizon": 1}, {"horizon": horizon, "horizon_seed": seed}, {"horizon": horizon}):
        assert_same(plain, finish(program, mode, **policy), f"{mode} {policy}\n{text}")


@pytest.mark.few(6)
@pytest.mark.uncompiled
@kinds
@modes
def test_fixed_seeds(kind, mode):
    """A stable set besides the random one: it fails the same way for everybody."""
    for seed in range(SEEDS):
        all_policies(seeded(kind, seed), mode)


@pytest.mark.few(6)
@pytest.mark.uncompiled
@kinds
@modes
def test_one_instruction_at_a_time(kind, mode):
    for seed in range(20, 20 + SEEDS):
        program = seeded(kind, seed)
        plain = finish(program, mode)
        system = machine(program, mode)
        stop = system.step()
        count = 1
        while stop.reason == "step":
            stop = system.step()
            count += 1
        # a delivered exception takes a step, an iteration of REP too: never fewer than instructions
        assert count > 20
        assert_same(plain, state(system), f"{mode} {kind} {seed}: {count} steps")


@pytest.mark.few(6)
@pytest.mark.uncompiled
@kinds
@modes
def test_a_snapshot_is_a_copy_of_the_bytes(kind, mode):
    """Decoded code, ring and breakpoints stay behind: only record and memory are carried over."""
    for seed in range(40, 40 + max(1, SEEDS // 4)):
        program = seeded(kind, seed)
        counted = machine(program, mode)
        steps = 1
        while counted.step().reason == "step":
            steps += 1
        plain = finish(program, mode)
        first = machine(program, mode, horizon=5, horizon_seed=seed + 1)
        assert first.step(steps // 2).reason == "step"
        record, memory = state(first)
        second = machine(program, mode)
        second._array.view(np.uint8)[:] = np.frombuffer(record, np.uint8)
        second.M[:] = np.frombuffer(memory, np.uint8)
        second.run()
        assert_same(plain, state(second), f"{mode} {kind} {seed}: continued elsewhere")
        first.run()
        assert_same(plain, state(first), f"{mode} {kind} {seed}: continued where it was")


@pytest.mark.uncompiled
@modes
def test_watchpoints_leave_no_mark(mode):
    watched = 0
    for seed in range(3):
        program = seeded("anything", seed)
        plain = finish(program, mode)
        system = machine(program, mode)
        E = system.E
        E.watch_msr[0] = E.watch_last[0] = 0x38F
        E.watch_mode[0], E.n_watch = 3, 1
        while (stop := system.run()).reason == "watch":
            watched += 1
            system.E.stop_request = 0
        assert stop.reason in ("debug-exit", "max-insns", "triple-fault", "halted")
        assert_same(plain, state(system), f"{mode} anything {seed}: watched")
    assert watched > 0


@pytest.mark.uncompiled
@modes
def test_host_contention_under_any_horizon(mode):
    """Rotation timers, multiplexing and NMIs of the host's own events do not depend on the horizon."""
    if mode == "bare":
        pytest.skip("no host")
    specs = ["instructions:H*5", "branches:D" if mode == "emulated" else "branches:HD"]
    for seed in range(2):
        program = seeded("anything", seed)
        plain = finish(program, mode, host_events=specs)
        for policy in POLICIES:
            again = finish(program, mode, host_events=specs, **policy)
            assert_same(plain, again, f"{mode} anything {seed} {policy}")


@pytest.mark.uncompiled
def test_the_trace_is_the_same_for_every_horizon():
    """Not only the end: every event in between, at the same time."""
    program = seeded("anything", 3)
    for mode in MODES:
        texts = []
        for policy in ({}, *POLICIES):
            system = machine(program, mode, trace=True, **policy)
            system.run()
            texts.append(system.events().tobytes())
        assert len(texts[0]) > 0
        assert len(set(texts)) == 1, mode
