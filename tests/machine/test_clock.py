"""Clocks against exact fractions: no drift, and a deadline is met at the first time that shows it."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.machine.test_pmu import run
from vpmu_emu.machine.clock import later, ticks, time_of_tick, tsc_time, tsc_value
from vpmu_emu.machine.state import BEYOND, CORE
from vpmu_emu.machine.u64 import U64
from vpmu_emu.tables.cpus import CPU_NAMES, cpu

pytestmark = pytest.mark.uncompiled
inner = pytest.mark.inner

RATIOS = sorted({cpu(n).per_core_cycle(khz) for n in CPU_NAMES for khz in (cpu(n).tsc_khz, 25_000)})
ratios = st.sampled_from([*RATIOS, (1, 3_999_999), (3_999_998, 3_999_999)])
times = st.integers(0, 1 << 62) | st.integers(0, 5000)


@inner
@given(ratios, times)
def test_a_clock_is_the_exact_fraction_rounded_down(ratio, t):
    num, den = ratio
    shown = int(ticks(U64(t), U64(num), U64(den)))
    assert shown == floor(Fraction(t * num, 16 * den))
    core = np.zeros(1, CORE).view(np.recarray)[0]
    core.tsc_num, core.tsc_den = ratio
    assert tsc_value(core, t) == shown


@inner
@given(ratios, st.integers(0, 1 << 63) | st.integers(0, 500))
def test_a_deadline_is_the_first_time_that_shows_it(ratio, n):
    num, den = (U64(v) for v in ratio)
    exact = ceil(Fraction(n * 16 * ratio[1], ratio[0]))
    at = int(time_of_tick(U64(n), num, den))
    if at == BEYOND:
        assert exact >= (1 << 63) - 16 * ratio[1] - 1
        return
    assert at == exact
    assert int(ticks(U64(at), num, den)) >= n
    assert at == 0 or int(ticks(U64(at - 1), num, den)) < n
    core = np.zeros(1, CORE).view(np.recarray)[0]
    core.tsc_num, core.tsc_den = ratio
    assert tsc_time(core, n) == at


@inner
def test_what_is_too_far_is_beyond_the_end_of_time():
    t = np.int64(1 << 62)
    assert later(t, BEYOND) == later(t, t) == BEYOND
    assert later(np.int64(5), np.int64(7)) == 12


@pytest.mark.parametrize("name", CPU_NAMES)
def test_a_program_sees_its_deadline_as_soon_as_it_is_there(name):
    """In TSC-deadline mode HLT ends when RDTSC shows the deadline, and not a cycle of the TSC before."""
    text = """
    load_idt
    set_gate 0x50, tick
    lapic_enable_x2apic
    mov ecx, 0x832
    mov eax, 0x40050
    xor edx, edx
    wrmsr
    mov r12d, 7
again:
    rdtsc
    shl rdx, 32
    or rax, rdx
    lea rax, [rax + r12 * 4 + 3000]
    mov rbx, rax
    mov rdx, rax
    shr rdx, 32
    mov ecx, 0x6e0
    wrmsr
    sti
    hlt
    cli
    test r14, r14
    jz wrong
    dec r12
    jnz again
    debug_exit 0
wrong: debug_exit 1
"""
    handlers = """
tick:
    rdtsc
    shl rdx, 32
    or rax, rdx
    sub rax, rbx                # late by what delivering an interrupt takes
    mov r13, rax
    xor r14d, r14d
    cmp rax, 2000
    setb r14b
    lapic_eoi
    iretq
idt_storage
"""
    system = run(text, handlers, cpu=name)
    assert int(system.core.regs[12]) == 0
    model = cpu(name)
    took = (model.latency_of("interrupt") + model.latency_of("tsc")) / 16 * model.tsc_khz / model.core_khz
    assert 0 <= int(system.core.regs[13]) <= took + 500


@pytest.mark.parametrize("name", CPU_NAMES)
def test_the_tsc_and_reference_cycles_are_the_same_share_of_core_cycles(name):
    text = "mov ecx, 20000\n1: loop 1b\nrdtsc\nshl rdx, 32\nor rax, rdx\nmov r15, rax\n"
    system = run(text, cpu=name)
    model, core = cpu(name), system.core
    assert int(core.regs[15]) == pytest.approx(
        (int(core.t) / 16 - model.latency_of("io") / 16) * model.tsc_khz / model.core_khz, abs=20
    )
