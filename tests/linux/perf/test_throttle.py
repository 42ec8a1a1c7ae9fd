"""Throttling: a group that fires too often rests until the tick, and slow interrupts lower the limit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.linux.perf.test_event import records, ring
from tests.linux.perf.test_laws import INSTRUCTIONS, USER, Machine
from vpmu_emu.linux.perf.event import perf_event_period, perf_event_read_value
from vpmu_emu.linux.perf.throttle import perf_sample_event_took
from vpmu_emu.linux.perf.tick import perf_event_task_tick
from vpmu_emu.linux.sysctl import set_cpu_time_max_percent, set_sample_rate
from vpmu_emu.machine.u64 import U64
from vpmu_emu.tables.cpus import COST_NAMES
from vpmu_emu.tables.modes import kernel_version

pytestmark = [pytest.mark.uncompiled, pytest.mark.inner]


@pytest.fixture
def machine():
    with Machine() as made:
        yield made


def test_a_group_is_throttled_as_one(machine):
    """perf_event_throttle_group(): who belongs together rests together, and the leader's ring says so."""
    S, E = machine.S, machine.E
    S.config.max_samples_per_tick = 3
    leader = machine.open(config=INSTRUCTIONS, exclude_kernel=1, sample_type=0x40)
    member = machine.open(
        config=INSTRUCTIONS, sample_period=100, exclude_kernel=1, leader=leader, sample_type=0x40
    )
    event = ring(machine, leader)
    other = machine.open(config=INSTRUCTIONS, exclude_kernel=1)
    for _ in range(6):
        machine.work(USER, 100, 0, 100)
    assert [int(S.perf_events[i].throttles) for i in (leader, member, other)] == [1, 1, 0]
    assert int(machine.host.throttles) == 1
    assert [int(perf_event_read_value(S, E, i)) for i in (leader, member, other)] == [300, 300, 600]
    perf_event_task_tick(S, E)
    machine.work(USER, 100, 0, 100)
    assert [int(perf_event_read_value(S, E, i)) for i in (leader, member, other)] == [400, 400, 700]
    found = records(machine, event)
    assert [(kind, words[1]) for kind, _, words in found] == [(5, int(event.id)), (6, int(event.id))]


def test_before_6_16_only_the_event_that_was_too_fast_rested(machine):
    """Mode passthrough is Linux 6.7: its group goes on, and the event's own ring is told."""
    S, E = machine.S, machine.E
    S.config.max_samples_per_tick = 3
    leader = machine.open(config=INSTRUCTIONS, exclude_kernel=1)
    member = machine.open(
        config=INSTRUCTIONS, sample_period=100, exclude_kernel=1, leader=leader, sample_type=0x40
    )
    event = ring(machine, member)
    S.config.kernel = kernel_version(6, 15)
    for _ in range(6):
        machine.work(USER, 100, 0, 100)
    assert [int(S.perf_events[i].throttles) for i in (leader, member)] == [0, 1]
    assert [int(perf_event_read_value(S, E, i)) for i in (leader, member)] == [600, 300]
    perf_event_task_tick(S, E)
    machine.work(USER, 100, 0, 100)
    assert [int(perf_event_read_value(S, E, i)) for i in (leader, member)] == [700, 400]
    found = [(kind, words[1]) for kind, _, words in records(machine, event) if kind != 9]
    assert found == [(5, int(event.id)), (6, int(event.id))]


def test_members_that_overflow_together_go_on_sampling(machine):
    S, E = machine.S, machine.E
    S.config.max_samples_per_tick = 3
    rows = [machine.open(config=INSTRUCTIONS, sample_period=100, exclude_kernel=1)]
    rows.append(
        machine.open(config=INSTRUCTIONS, sample_period=100, exclude_kernel=1, leader=rows[0])
    )
    for tick in range(1, 4):
        for _ in range(6):
            machine.work(USER, 100, 0, 100)
        assert [int(S.perf_events[i].throttles) for i in rows] == [tick, tick]
        perf_event_task_tick(S, E)
    assert sorted(int(S.perf_events[i].samples) for i in rows) == [3 * 2, 3 * 3]


def test_a_new_period_ends_throttling(machine):
    S, E = machine.S, machine.E
    S.config.max_samples_per_tick = 3
    leader = machine.open(config=INSTRUCTIONS, exclude_kernel=1)
    member = machine.open(config=INSTRUCTIONS, sample_period=100, exclude_kernel=1, leader=leader)
    for _ in range(6):
        machine.work(USER, 100, 0, 100)
    assert perf_event_period(S, E, member, U64(1000)) == 0
    machine.work(USER, 100, 0, 100)
    assert [int(perf_event_read_value(S, E, i)) for i in (leader, member)] == [400, 400]


@pytest.mark.parametrize("percent", [0, 1, 25, 99, 100])
@given(st.lists(st.integers(1, 200_000 << 4), min_size=1, max_size=400), st.integers(1, 200_000))
def test_samples_that_take_long_get_rarer(percent, lengths, rate):
    """perf_sample_event_took(), in whole numbers of another kind: seconds, as fractions."""
    with Machine() as machine:
        follow(machine.S, percent, lengths, rate)


def follow(S, percent, lengths, rate):
    second = int(S.config.tick_interval) * 250
    set_cpu_time_max_percent(S.config, percent)
    set_sample_rate(S.config, rate)
    host = S.percpu[0]
    host.running_sample_length = host.too_long = 0
    average = 0
    for length in lengths:
        average = average - average // 128 + length
        before = (int(S.config.max_samples_per_tick), int(S.config.sample_allowed), int(host.too_long))
        perf_sample_event_took(S, length)
        after = (int(S.config.max_samples_per_tick), int(S.config.sample_allowed), int(host.too_long))
        if percent in (0, 100) or average // 128 <= before[1]:
            assert after == before
            continue
        assert after[2] == before[2] + 1
        assert after[1] > average // 128  # not again for the same length
        assert int(S.config.max_sample_rate) == after[0] * 250
        # all samples of a tick together, each as long as is allowed now, keep within the share
        assert after[0] == 1 or after[0] * after[1] <= second // 250 * percent // 100
    if percent == 0:
        assert not int(host.too_long)


def test_a_slow_handler_lowers_the_rate(machine):
    """Above 2.5 µs a sample, for as long as it takes 128 of them to make an average."""
    S = machine.S
    machine.open(config=INSTRUCTIONS, sample_period=100, exclude_kernel=1)
    row = COST_NAMES.index("perf_event_nmi_handler")
    S.config.tick_interval = 8_000_000 << 4
    S.config.costs[row][0] = 13_500  # 4.5 µs
    samples = 0
    while not int(machine.host.too_long):
        machine.work(USER, 100, 0, 100)
        samples += 1
    assert 60 < samples < 128
    assert int(S.config.max_sample_rate) < 100_000
    assert int(S.config.max_sample_rate) % 250 == 0
