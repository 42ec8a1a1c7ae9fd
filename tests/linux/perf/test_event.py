"""perf_event_open's core: what is refused, what groups do, frequencies, rings, pages, tasks that end."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.linux.guests import system, window
from tests.linux.perf.test_laws import (
    BRANCHES,
    CYCLES,
    GUEST_USER,
    INSTRUCTIONS,
    REF,
    USER,
    Machine,
)
from vpmu_emu.asm import assemble
from vpmu_emu.linux.calls import CALL_PERF_PERIOD, CALL_PERF_RESET, kernel_call
from vpmu_emu.linux.charge import charge
from vpmu_emu.linux.perf.event import (
    EBUSY,
    EINVAL,
    ENOENT,
    EOPNOTSUPP,
    perf_event_create_kernel_counter,
    perf_event_disable,
    perf_event_enable,
    perf_event_exit_task,
    perf_event_read_value,
    perf_event_release_kernel,
    perf_install_in_context,
)
from vpmu_emu.linux.perf.guest import perf_guest_enter, perf_guest_exit
from vpmu_emu.linux.perf.inherit import perf_event_init_task
from vpmu_emu.linux.perf.output import KERNEL_TEXT
from vpmu_emu.linux.perf.overflow import perf_calculate_period
from vpmu_emu.linux.perf.sched import perf_event_task_sched, perf_rotate_context
from vpmu_emu.linux.perf.swevent import perf_sw_event, perf_swevent_hrtimer
from vpmu_emu.linux.perf.tick import perf_event_task_tick
from vpmu_emu.linux.perf.times import ATTR_EXCLUDE_HOST, ATTR_PINNED, sched_clock
from vpmu_emu.linux.perf.userpage import perf_event_update_userpage
from vpmu_emu.linux.space import SPACES_OF_A_CORE, x86_pmu_event_mapped
from vpmu_emu.linux.state import (
    CTX_TASK,
    FROM_USER,
    KVM_REQ_PMU,
    OWNER_KVM,
    PERF_EVENT_STATE_ACTIVE,
    PERF_EVENT_STATE_ERROR,
    PERF_EVENT_STATE_EXIT,
    PERF_EVENT_STATE_INACTIVE,
    PERF_EVENT_STATE_OFF,
    PERF_TYPE_SOFTWARE,
    PERF_TYPE_UNCORE,
    PMU_CORE,
    PMU_SOFTWARE,
    PMU_UNCORE,
)
from vpmu_emu.linux.syscalls.perf import remember
from vpmu_emu.machine.clock import tsc_value
from vpmu_emu.machine.pmu import counter_value
from vpmu_emu.machine.processor_flags import X86_CR4_PCE
from vpmu_emu.machine.state import CLASS, NEVER
from vpmu_emu.machine.u64 import U64
from vpmu_emu.setup.hostevents import HostEvent
from vpmu_emu.tables.cpus import COST_NAMES
from vpmu_emu.tables.modes import MODES
from vpmu_emu.views.perf import closed_report, error_report, perf_report

pytestmark = [pytest.mark.uncompiled, pytest.mark.inner]

OFF, INACTIVE, ACTIVE = PERF_EVENT_STATE_OFF, PERF_EVENT_STATE_INACTIVE, PERF_EVENT_STATE_ACTIVE
ERROR, EXIT = PERF_EVENT_STATE_ERROR, PERF_EVENT_STATE_EXIT
SOFTWARE = {"pmu_type": PERF_TYPE_SOFTWARE}
UNCORE = {"pmu_type": PERF_TYPE_UNCORE, "cpu": 0}
DUMMY, CONTEXT_SWITCHES, CPU_MIGRATIONS, PAGE_FAULTS = 9, 3, 4, 2
CLOCKTICKS, CAS_COUNT_RD = 1, 0xCF05
RING = (2 << 20) - 2 * 4096  # control page, one page of data, in the guest's RAM, which is not used


@pytest.fixture
def machine():
    with Machine() as made:
        yield made


def states(machine, *rows):
    return [int(machine.S.perf_events[i].state) for i in rows]


# --- what is refused ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("attributes", "errno"),
    [
        ({"pmu_type": 77}, ENOENT),
        ({**SOFTWARE, "config": 12}, ENOENT),
        ({"config": 0x1234}, 0),  # what the CPU does not know counts nothing
        ({**UNCORE, "config": CLOCKTICKS}, 0),
        ({"config": INSTRUCTIONS, "sample_type": 1 << 5}, EINVAL),  # call chains
        ({"config": INSTRUCTIONS, "sample_type": 1 << 11}, EOPNOTSUPP),  # branch stacks
        ({**UNCORE, "config": 0x99}, EINVAL),
        ({**UNCORE, "config": CLOCKTICKS, "sample_period": 100}, EINVAL),
        ({**UNCORE, "config": CLOCKTICKS, "exclude_user": 1}, EINVAL),
        ({**UNCORE, "config": CLOCKTICKS, "ctx": CTX_TASK}, EINVAL),
    ],
)
def test_event_init(machine, attributes, errno):
    before = machine.events()
    made = machine.open(**attributes)
    assert made == errno if errno else made >= 0
    assert (machine.events() == before) == (errno != 0)


def test_groups_that_are_refused(machine):
    leader = machine.open(config=INSTRUCTIONS)
    member = machine.open(config=BRANCHES, leader=leader)
    assert member >= 0
    assert machine.open(config=BRANCHES, leader=member) == EINVAL  # leads nothing
    assert machine.open(config=BRANCHES, leader=leader, pinned=1) == EINVAL
    assert machine.open(config=BRANCHES, leader=leader, ctx=CTX_TASK) == EINVAL
    assert machine.open(config=BRANCHES, leader=leader, cpu=1) == EINVAL
    assert machine.open(**UNCORE, config=CLOCKTICKS, leader=leader) == EINVAL
    assert machine.open(**SOFTWARE, config=DUMMY, leader=leader) >= 0


def test_a_group_that_never_fits_is_refused(machine):
    """validate_group(): branches on eight counters, and a ninth member."""
    leader = machine.open(config=BRANCHES)
    for _ in range(7):
        assert machine.open(config=BRANCHES, leader=leader) >= 0
    assert machine.open(config=BRANCHES, leader=leader) == EINVAL
    assert machine.open(config=REF, leader=leader) >= 0  # a fixed counter of its own
    assert states(machine, *machine.events()) == [ACTIVE] * 9


def test_a_guest_that_owns_the_pmu_makes_creation_busy(machine):
    S, E = machine.S, machine.E
    clock, ticks = machine.open(**SOFTWARE, config=0), machine.open(**UNCORE, config=CLOCKTICKS)
    host = machine.open(config=INSTRUCTIONS, exclude_guest=1)
    perf_guest_enter(S, E)
    assert states(machine, clock, ticks, host) == [ACTIVE, ACTIVE, INACTIVE]
    assert machine.open(config=INSTRUCTIONS) == EBUSY
    assert machine.open(**SOFTWARE, config=0) >= 0
    later = machine.open(config=INSTRUCTIONS, exclude_guest=1)
    assert states(machine, later) == [INACTIVE]
    perf_guest_exit(S, E)
    assert states(machine, clock, ticks, host, later) == [ACTIVE] * 4


# --- groups and states ----------------------------------------------------------------------------------
def test_a_software_leader_moves_to_the_pmu_of_its_members(machine):
    leader = machine.open(**SOFTWARE, config=0)
    member = machine.open(config=REF, leader=leader)
    assert int(machine.S.perf_events[leader].pmu_ctx) == PMU_CORE
    other = machine.open(config=REF, pinned=1)
    assert states(machine, leader, member, other) == [INACTIVE, INACTIVE, ACTIVE]
    perf_event_release_kernel(machine.S, machine.E, other)
    perf_event_disable(machine.S, machine.E, leader)
    perf_event_enable(machine.S, machine.E, leader)
    assert states(machine, leader, member) == [ACTIVE, ACTIVE]


def test_a_group_that_moves_begins_anew(machine):
    """move_group installs a software group a second time, each event on or off as it was opened."""
    S, E = machine.S, machine.E
    on = machine.open(**SOFTWARE, config=DUMMY)
    off = machine.open(**SOFTWARE, config=DUMMY, leader=on, state=OFF, disabled=1)
    perf_event_enable(S, E, off)
    assert states(machine, on, off) == [ACTIVE, ACTIVE]
    member = machine.open(config=BRANCHES, leader=on, state=OFF, disabled=1)
    assert states(machine, on, off, member) == [ACTIVE, OFF, OFF]
    perf_event_release_kernel(S, E, on)
    assert int(S.perf_events[off].pmu_ctx) == PMU_CORE


def test_enabling_a_leader_starts_its_group(machine):
    S, E = machine.S, machine.E
    leader = machine.open(config=INSTRUCTIONS, state=OFF)
    member = machine.open(config=BRANCHES, leader=leader)
    off = machine.open(config=BRANCHES, leader=leader, state=OFF)
    assert states(machine, leader, member, off) == [OFF, INACTIVE, OFF]
    machine.work(USER, 10, 1, 1000)
    perf_event_enable(S, E, leader)
    assert states(machine, leader, member, off) == [ACTIVE, ACTIVE, OFF]
    perf_event_disable(S, E, leader)
    perf_event_enable(S, E, off)  # waits for its leader
    assert states(machine, leader, member, off) == [OFF, INACTIVE, INACTIVE]
    perf_event_enable(S, E, leader)
    assert states(machine, leader, member, off) == [ACTIVE, ACTIVE, ACTIVE]
    for i in (leader, member, off):
        machine.check(i)


def test_members_outlive_their_leader(machine):
    S, E = machine.S, machine.E
    leader = machine.open(config=INSTRUCTIONS, exclude_kernel=1)
    member = machine.open(config=BRANCHES, leader=leader, exclude_kernel=1)
    machine.work(USER, 10, 3, 100)
    perf_event_release_kernel(S, E, leader)
    assert states(machine, member) == [ACTIVE]
    machine.work(USER, 10, 4, 100)
    assert int(perf_event_read_value(S, E, member)) == 7


def test_members_of_a_pinned_leader_that_is_closed_are_flexible(machine):
    """Only a leader is pinned: what it led waits behind everybody else, and never is in ERROR."""
    S, E = machine.S, machine.E
    leader = machine.open(config=INSTRUCTIONS, pinned=1)
    member = machine.open(config=REF, leader=leader)
    other = machine.open(config=REF)
    assert states(machine, leader, member, other) == [ACTIVE, ACTIVE, INACTIVE]
    perf_event_release_kernel(S, E, leader)
    assert states(machine, member, other) == [ACTIVE, INACTIVE]
    taker = machine.open(config=REF, pinned=1)
    assert states(machine, member, other, taker) == [INACTIVE, INACTIVE, ACTIVE]
    perf_event_release_kernel(S, E, taker)
    machine.open(config=BRANCHES)  # all flexible ones go out and in
    assert states(machine, member, other) == [INACTIVE, ACTIVE]


# --- who is scheduled when ------------------------------------------------------------------------------
def test_what_was_not_taken_out_is_not_looked_at(machine):
    """ctx->is_active: a task's event gets what is free although one of the CPU waits for it."""
    S, E = machine.S, machine.E
    perf_event_task_sched(S, E, CTX_TASK)
    first = machine.open(config=REF)
    waits = machine.open(config=REF)
    assert states(machine, first, waits) == [ACTIVE, INACTIVE]
    perf_event_release_kernel(S, E, first)
    assert states(machine, waits) == [INACTIVE]  # until the next rotation
    task = machine.open(config=REF, ctx=CTX_TASK)
    assert states(machine, waits, task) == [INACTIVE, ACTIVE]
    perf_event_task_sched(S, E, -1)
    perf_event_task_sched(S, E, CTX_TASK)
    assert states(machine, waits, task) == [INACTIVE, ACTIVE]
    perf_rotate_context(S, E)
    assert states(machine, waits, task) == [ACTIVE, INACTIVE]
    pinned = machine.open(config=BRANCHES, ctx=CTX_TASK, pinned=1)  # all flexible ones go out and in
    assert states(machine, waits, task, pinned) == [ACTIVE, INACTIVE, ACTIVE]


def test_rotation_turns_only_events_that_may_run_here(machine):
    """One bound to another CPU is in the list of its task, but not in this CPU's part of it."""
    S, E = machine.S, machine.E
    pinned = machine.open(config=REF, pinned=1)
    perf_event_task_sched(S, E, CTX_TASK)
    there = machine.open(config=REF, ctx=CTX_TASK, cpu=1)
    blocks = machine.open(config=REF, ctx=CTX_TASK)
    behind = machine.open(config=BRANCHES, ctx=CTX_TASK)
    perf_event_disable(S, E, behind)
    perf_event_enable(S, E, behind)
    assert states(machine, pinned, there, blocks, behind) == [ACTIVE, INACTIVE, INACTIVE, INACTIVE]
    perf_rotate_context(S, E)
    assert states(machine, there, blocks, behind) == [INACTIVE, INACTIVE, ACTIVE]


def test_an_event_that_reaches_its_limit_as_its_task_leaves_is_off(machine):
    """event_sched_out() sees pending_disable: the switch itself is what was counted."""
    S, E = machine.S, machine.E
    i = machine.open(**SOFTWARE, config=CONTEXT_SWITCHES, ctx=CTX_TASK, sample_period=1)
    S.perf_events[i].event_limit = 2  # PERF_EVENT_IOC_REFRESH
    perf_event_task_sched(S, E, CTX_TASK)
    for _ in range(3):
        for ctx in (-1, CTX_TASK):
            perf_event_task_sched(S, E, ctx)
            charge(S, E, 0)
    assert (states(machine, i), int(S.perf_events[i].samples)) == ([OFF], 2)


def test_an_event_bound_to_another_cpu_only_waits(machine):
    S, E = machine.S, machine.E
    here = machine.open(config=INSTRUCTIONS, ctx=CTX_TASK, cpu=0, pinned=1)
    there = machine.open(config=INSTRUCTIONS, ctx=CTX_TASK, cpu=1, pinned=1)
    perf_event_task_sched(S, E, CTX_TASK)
    machine.work(USER, 10, 0, 100)
    assert states(machine, here, there) == [ACTIVE, INACTIVE]
    assert int(S.perf_events[there].total_time_running) == 0
    machine.check(there)


def test_the_log_of_errors(machine):
    """Which event went to ERROR, when and why, how often it tried again, and when it counted again."""
    S, E = machine.S, machine.E
    first = machine.open(config=REF, pinned=1)
    second = machine.open(config=REF, pinned=1, exclude_user=1)
    assert states(machine, first, second) == [ACTIVE, ERROR]
    (log,) = error_report(S)
    assert log["id"] == int(S.perf_events[second].id)
    assert (log["name"], log["cause"], log["owner"]) == ("ref-cycles:kD", "no free counter", "host")
    assert 0 < log["tsc"] <= int(machine.core.t) >> 4
    assert (log["retries"], log["revived"], log["released"]) == (0, None, None)
    perf_event_enable(S, E, second)
    perf_event_enable(S, E, second)
    remember(S, first)
    perf_event_release_kernel(S, E, first)
    assert error_report(S)[0]["retries"] == 2
    perf_event_enable(S, E, second)
    assert error_report(S)[0]["revived"] >= log["tsc"]
    perf_event_release_kernel(S, E, second)
    assert error_report(S)[0]["released"] >= error_report(S)[0]["revived"]
    assert [e["name"] for e in closed_report(S)] == ["ref-cycles:D"]
    assert perf_report(S) == []


# --- frequency ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("count", [1, 1000, (1 << 34) - 1, 1 << 40, (1 << 47) - 1])
@pytest.mark.parametrize("nsec", [1, 999, 4_000_000, 8_000_000])
@pytest.mark.parametrize("freq", [1, 1000, 99_999])
def test_calculate_period_is_the_quotient(machine, count, nsec, freq):
    event = machine.S.perf_events[0]
    event.sample_freq = freq
    exact = count * 10**9 // (nsec * freq)
    found = int(perf_calculate_period(event, U64(nsec), U64(count)))
    if count < 1 << 34:
        assert found == exact
    else:  # as many bits of the divisor are lost as of the dividend
        lost = max(nsec * freq >> (count.bit_length() - 34), 1)
        assert abs(found - exact) <= exact // lost + 1


def test_a_frequency_is_found(machine):
    """From a period of 1 to the rate that was asked for, by overflows and ticks alone."""
    S, E = machine.S, machine.E
    S.config.tick_interval = 12_000_000 << 4
    S.config.max_samples_per_tick = 400
    i = machine.open(config=INSTRUCTIONS, sample_freq=10_000, exclude_kernel=1)
    event = S.perf_events[i]
    assert int(event.period) == 1
    assert int(machine.host.tick_at) < NEVER
    for _ in range(90_000_000 // 30_000):
        machine.work(USER, 30_000, 0, 30_000)
        if int(machine.core.t) >= int(machine.host.tick_at):
            perf_event_task_tick(S, E)
    # 3 GHz and one instruction a cycle: 300,000 instructions a sample; the kernel takes its share
    assert 225_000 < int(event.period) < 315_000
    before, start = int(event.samples), int(machine.core.t)
    for _ in range(1000):
        machine.work(USER, 30_000, 0, 30_000)
    seconds = (int(machine.core.t) - start) / 16 / 3e9
    assert abs((int(event.samples) - before) / seconds - 10_000) < 1000


def test_a_frequency_survives_a_reset(machine):
    """PERF_EVENT_IOC_RESET: the count is behind that of the last tick, and tells nothing about the rate."""
    S, E = machine.S, machine.E
    i = machine.open(config=INSTRUCTIONS, sample_freq=1000, exclude_kernel=1)
    event = S.perf_events[i]
    event.period = event.period_left = 100_000
    machine.work(USER, 500_000, 0, 500_000)
    perf_event_task_tick(S, E)
    before = int(event.period)
    kernel_call(S, machine.M, E, CALL_PERF_RESET, i, 0)
    machine.work(USER, 10, 0, 10)
    perf_event_task_tick(S, E)
    assert int(event.count) == 10
    assert int(event.period) == before


# --- rings ----------------------------------------------------------------------------------------------
def ring(machine, i, pages=1):
    event = machine.S.perf_events[i]
    event.buffer, event.buffer_pages = RING, pages
    return event


def records(machine, event, begin=0):
    """(type, misc, payload words) of what is in the ring from `begin` to data_head."""
    size = int(event.buffer_pages) << 12
    area = bytes(machine.M[RING + 4096 : RING + 4096 + size]) * 2
    found, at = [], begin
    while at < int(event.head):
        kind, misc, length = struct.unpack_from("<IHH", area, at % size)
        words = struct.unpack_from(f"<{length // 8 - 1}Q", area, at % size + 8)
        found.append((kind, misc, words))
        at += length
    assert at == int(event.head)
    assert int.from_bytes(bytes(machine.M[RING + 1024 : RING + 1032]), "little") == at
    return found


@pytest.mark.parametrize("mode", ["emulated", "passthrough", "mediated"])
def test_the_tick_keeps_the_frequency_of_leaders(machine, mode):
    """perf_adjust_freq_unthr_events() walks the lists of groups since 6.9; 6.7 walked all events."""
    S, E = machine.S, machine.E
    rows = [machine.open(config=INSTRUCTIONS, sample_freq=1000, exclude_kernel=1)]
    rows.append(machine.open(config=BRANCHES, sample_freq=1000, exclude_kernel=1, leader=rows[0]))
    for i in rows:
        S.perf_events[i].period = S.perf_events[i].period_left = 1 << 40
    S.config.kernel = MODES[mode].kernel.version
    machine.work(USER, 500_000, 500_000, 500_000)
    perf_event_task_tick(S, E)
    changed = [int(S.perf_events[i].period) != 1 << 40 for i in rows]
    assert changed == [True, mode == "passthrough"]


@pytest.mark.parametrize("kind", [0, 0x101C6, 0x10002, 0x10084])
def test_records_end_with_who_when_and_where(machine, kind):
    """attr.sample_id_all: TID TIME ID STREAM_ID CPU IDENTIFIER, of what the event's samples have."""
    S = machine.S
    S.tasks[2].pid, S.tasks[2].tgid, machine.host.curr = 7, 5, 2
    S.config.max_samples_per_tick = 1
    attributes = {"sample_period": 100, "exclude_kernel": 1, "sample_type": kind, "sample_id_all": 1}
    i = machine.open(config=INSTRUCTIONS, **attributes)
    event = ring(machine, i)
    event.rb_lost = 3  # tell of lost records first
    machine.work(USER, 100, 0, 100)
    lost, throttle = (r for r in records(machine, event) if r[0] in (2, 5))
    assert lost[2][:2] == (int(event.id), 3)
    now = throttle[2][0]
    words = {1: 7 << 32 | 5, 2: now, 6: int(event.id), 9: int(event.id), 7: 0, 16: int(event.id)}
    expect = tuple(words[bit] for bit in words if kind >> bit & 1)
    assert throttle[2][3:] == expect
    assert len(lost[2][2:]) == len(expect)


def test_an_exclusive_group_bears_nobody_beside_it(machine):
    """group_can_go_on(): what comes behind it waits, and it waits for those of its list before it."""
    S, E = machine.S, machine.E
    alone = machine.open(config=INSTRUCTIONS, exclude_kernel=1, exclusive=1)
    member = machine.open(config=BRANCHES, exclude_kernel=1, leader=alone)
    other = machine.open(config=BRANCHES, exclude_kernel=1)
    clock = machine.open(pmu_type=PERF_TYPE_SOFTWARE, config=0)
    seen = set()
    for _ in range(4):
        states = [int(S.perf_events[i].state) for i in (alone, member, other)]
        assert states in ([1, 1, 0], [0, 0, 1])
        assert int(S.perf_events[clock].state) == PERF_EVENT_STATE_ACTIVE
        seen.add(tuple(states))
        machine.work(USER, 10, 1, 10)
        perf_rotate_context(S, E)
    assert len(seen) == 2
    perf_event_release_kernel(S, E, alone)
    perf_event_release_kernel(S, E, member)
    perf_event_disable(S, E, other)
    perf_event_enable(S, E, other)
    assert int(S.perf_events[other].state) == PERF_EVENT_STATE_ACTIVE
    pinned = machine.open(config=CYCLES, exclude_kernel=1, pinned=1)
    assert int(S.perf_events[pinned].state) == PERF_EVENT_STATE_ACTIVE
    late = machine.open(config=CYCLES, exclude_kernel=1, pinned=1, exclusive=1)
    assert int(S.perf_events[late].state) == PERF_EVENT_STATE_ERROR


def test_a_sample_has_what_was_asked_for(machine):
    S = machine.S
    S.tasks[2].pid, S.tasks[2].tgid, machine.host.curr = 7, 5, 2
    other = machine.open(config=BRANCHES, exclude_kernel=1)
    i = machine.open(
        config=INSTRUCTIONS, sample_period=1000, exclude_kernel=1, sample_type=0x103CF | 0x10, read_format=7
    )
    event = ring(machine, i)
    machine.core.rip = 0x40_1234
    machine.work(USER, 1000, 10, 5000)
    ((kind, misc, words),) = records(machine, event)
    assert (kind, misc) == (9, 2)
    id_ = int(event.id)
    assert words[0:3] == (id_, 0x40_1234, 5 | 7 << 32)
    assert words[4:9] == (0, id_, id_, 0, 1000)
    assert 0 < words[3] <= int(sched_clock(S, machine.core.t))
    value, enabled, running, last = words[9:]
    assert (value, last) == (1000, id_)
    assert 0 < running <= enabled
    assert id_ != int(S.perf_events[other].id)


def test_a_group_reads_all_its_members(machine):
    leader = machine.open(
        config=INSTRUCTIONS, sample_period=1000, exclude_kernel=1, sample_type=0x10, read_format=4 | 8
    )
    member = machine.open(config=BRANCHES, exclude_kernel=1, leader=leader)
    ids = [int(machine.S.perf_events[i].id) for i in (leader, member)]
    event = ring(machine, leader)
    machine.work(USER, 1000, 77, 5000)
    ((_, _, words),) = records(machine, event)
    assert words == (2, 1000, ids[0], 77, ids[1])


def test_the_order_of_a_group_is_that_of_joining(machine):
    """Rows of the record are used again; what read() and a sample tell is not in their order."""
    S, E = machine.S, machine.E
    gone = machine.open(config=REF)
    leader = machine.open(
        config=INSTRUCTIONS, sample_period=1000, exclude_kernel=1, sample_type=0x10, read_format=8
    )
    first = machine.open(config=BRANCHES, exclude_kernel=1, leader=leader)
    perf_event_release_kernel(S, E, gone)
    second = machine.open(config=INSTRUCTIONS, exclude_kernel=1, leader=leader)
    assert second < leader < first
    event = ring(machine, leader)
    machine.work(USER, 1000, 77, 5000)
    ((_, _, words),) = records(machine, event)
    assert words == (3, 1000, 77, 1000)


def test_a_sample_has_its_events_format_in_the_ring_of_another(machine):
    S = machine.S
    a = machine.open(config=BRANCHES, exclude_kernel=1, read_format=0)
    b = machine.open(
        config=INSTRUCTIONS, sample_period=1000, exclude_kernel=1, sample_type=0x10, read_format=7
    )
    event = ring(machine, a)
    S.perf_events[b].output = a
    machine.work(USER, 1000, 10, 5000)
    ((kind, _, words),) = records(machine, event)
    assert (kind, len(words), words[0], words[3]) == (9, 4, 1000, int(S.perf_events[b].id))


def test_a_sample_of_a_child_reads_the_child(machine):
    """inherit_and_sample_read(): counts of one task each, under the id that the program knows."""
    S, E = machine.S, machine.E
    i = machine.open(
        config=INSTRUCTIONS, ctx=CTX_TASK, inherit=1, exclude_kernel=1, sample_period=1000,
        sample_type=0x12, read_format=4,
    )  # fmt: skip
    event = ring(machine, i)
    assert fork(machine, 0, 1) == 0
    perf_event_task_sched(S, E, CTX_TASK + 1)
    machine.work(USER, 1000, 10, 5000)
    perf_event_exit_task(S, E, 1)
    perf_event_task_sched(S, E, CTX_TASK)
    machine.work(USER, 1000, 10, 5000)
    machine.work(USER, 1000, 10, 5000)
    assert [w[1:] for _, _, w in records(machine, event)] == [
        (1000, int(event.id)), (1000, int(event.id)), (2000, int(event.id)),
    ]  # fmt: skip


def test_what_a_paused_ring_misses_is_lost(machine):
    i = machine.open(config=INSTRUCTIONS, sample_period=100, exclude_kernel=1, sample_type=1)
    event = ring(machine, i)
    event.paused = 1
    for _ in range(3):
        machine.work(USER, 100, 0, 100)
    assert records(machine, event) == []
    assert int(event.lost) == 3
    event.paused = 0
    machine.work(USER, 100, 0, 100)
    kind, _, words = records(machine, event)[0]
    assert (kind, words[-1]) == (2, 3)


def test_the_kernel_has_a_symbolic_address(machine):
    i = machine.open(config=INSTRUCTIONS, sample_period=1000, sample_type=1)
    event = ring(machine, i)
    row = max(range(60), key=lambda k: int(machine.S.config.costs[k][1]))
    charge(machine.S, machine.E, row)
    (kind, misc, words), *_ = records(machine, event)
    assert (kind, misc, words) == (9, 1, (int(KERNEL_TEXT) + 64 * row,))


def test_a_full_ring_loses_and_says_so(machine):
    """Never beyond data_tail; the next record that has room is preceded by how many were lost."""
    i = machine.open(config=INSTRUCTIONS, sample_period=100, exclude_kernel=1, sample_type=0x1C7)
    event = ring(machine, i)
    for _ in range(80):
        machine.work(USER, 100, 0, 100)
    assert int(event.samples) == 80
    found = records(machine, event)
    assert len(found) == 4095 // 56
    assert int(event.lost) == 80 - len(found)
    head = int(event.head)
    machine.M[RING + 1032 : RING + 1040] = np.frombuffer(head.to_bytes(8, "little"), np.uint8)
    machine.work(USER, 100, 0, 100)
    (kind, misc, words), (next_, *_) = records(machine, event, head)
    assert (kind, misc, next_) == (2, 0, 9)
    assert words == (int(event.id), 80 - len(found))
    machine.M[RING + 1032 : RING + 1040] = 0xA5  # any tail: nothing is written outside of the ring
    before = bytes(machine.M[:RING]) + bytes(machine.M[RING + 8192 :])
    for _ in range(100):
        machine.work(USER, 100, 0, 100)
    assert bytes(machine.M[:RING]) + bytes(machine.M[RING + 8192 :]) == before


def test_a_ring_that_nobody_may_write_is_overwritten(machine):
    i = machine.open(config=INSTRUCTIONS, sample_period=100, exclude_kernel=1, sample_type=1)
    event = ring(machine, i)
    event.overwrite = 1
    for _ in range(300):
        machine.work(USER, 100, 0, 100)
    assert (int(event.head), int(event.lost)) == (300 * 16, 0)


def test_throttling_is_recorded(machine):
    S, E = machine.S, machine.E
    S.config.max_samples_per_tick = 3
    i = machine.open(config=INSTRUCTIONS, sample_period=100, exclude_kernel=1, sample_type=0x40)
    event = ring(machine, i)
    for _ in range(6):
        machine.work(USER, 100, 0, 100)
    assert int(event.throttles) == 1
    assert int(machine.host.tick_at) == int(S.config.tick_interval)
    perf_event_task_tick(S, E)
    machine.work(USER, 200, 0, 100)
    found = records(machine, event)
    assert [kind for kind, _, _ in found] == [9, 9, 5, 9, 6, 9][: len(found)]
    assert found[2][2][1:] == (int(event.id), int(event.id))
    # what happened while it was stopped is not counted
    assert int(perf_event_read_value(S, E, i)) == 300 + 200


def test_samples_of_a_guest():
    """perf_guest_state(): the guest's address, and that it is the guest's."""
    made = system(
        window("    mov ebx, 3000\n1:  dec ebx\n    jnz 1b\n"),
        "emulated",
        host_events=[HostEvent(name="", config=INSTRUCTIONS, period=1000, pinned=True, exclude_host=True)],
    )
    event = made.S.perf_events[0]
    event.sample_type = 1
    event.buffer, event.buffer_pages = made.ram_size - 8192, 1
    made.run()
    begin = made.ram_size - 4096
    assert int(event.head) >= 5 * 16
    rips = set()
    for at in range(begin, begin + int(event.head), 16):
        header, rip = struct.unpack("<QQ", bytes(made.M[at : at + 16]))
        assert header == 9 | 4 << 32 | 16 << 48
        rips.add(rip)
    code = made.program.segments[0]
    assert all(code.addr <= rip < code.addr + len(code.data) for rip in rips)


def test_an_overflow_is_of_the_vcpu_whose_event_it_is(machine):
    """A thread that runs two vCPUs has the events of both, whichever it runs now."""
    S, E = machine.S, machine.E
    i = perf_event_create_kernel_counter(
        S, E, 0, ATTR_PINNED | ATTR_EXCLUDE_HOST, U64(INSTRUCTIONS), U64(1000), OWNER_KVM, 1, 3
    )
    S.vcpus[1].pmu.pmcs[3].perf_event = i
    S.this_vcpu = 0
    machine.work(GUEST_USER, 1000, 0, 100)
    assert int(S.perf_events[i].samples) == 1
    assert [int(S.vcpus[k].pmu.global_status) for k in (0, 1)] == [0, 1 << 3]
    assert [int(S.vcpus[k].requests & KVM_REQ_PMU) for k in (0, 1)] == [0, int(KVM_REQ_PMU)]


# --- the mapped page ------------------------------------------------------------------------------------
def page(machine):
    """lock, index, offset, enabled, running"""
    return struct.unpack("<IIqQQ", bytes(machine.M[RING + 8 : RING + 40]))


def test_a_program_reads_its_counter_by_the_page(machine):
    S, E = machine.S, machine.E
    i = machine.open(config=BRANCHES, exclude_kernel=1)
    event = ring(machine, i, 0)
    perf_event_update_userpage(S, E, i)
    machine.work(USER, 100, 40, 100)
    lock, index, offset, _, _ = page(machine)
    assert lock % 2 == 0
    width = 48
    raw = int(counter_value(machine.core, index - 1))
    value = raw - (1 << width) if raw >> width - 1 else raw
    assert offset + value == 40
    perf_event_disable(S, E, i)
    assert page(machine)[1:3] == (0, 40)
    perf_event_enable(S, E, i)
    lock, index, offset, enabled, running = page(machine)
    assert (lock % 2, index) == (0, int(event.idx) + 1)
    assert 0 < running <= enabled
    perf_event_task_sched(S, E, CTX_TASK)
    assert page(machine)[1] == index  # it is the CPU's


def test_a_fixed_counter_has_its_own_index(machine):
    i = machine.open(config=INSTRUCTIONS)
    ring(machine, i, 0)
    perf_event_update_userpage(machine.S, machine.E, i)
    assert page(machine)[1] == (1 << 30) + 1


def test_user_rdpmc_is_allowed_while_a_page_is_mapped(machine):
    S = machine.S
    machine.host.space = 1 + 3
    S.percpu[1].space = SPACES_OF_A_CORE + 1 + 2
    S.mms[3].perf_rdpmc_allowed = 1
    x86_pmu_event_mapped(S, 3)
    assert [bool(core.cr4 & X86_CR4_PCE) for core in S.cores] == [True, False]
    S.mms[3].perf_rdpmc_allowed = 0
    x86_pmu_event_mapped(S, 3)
    assert not machine.core.cr4 & X86_CR4_PCE


# --- software and uncore --------------------------------------------------------------------------------
def test_software_events_count_what_they_are_told(machine):
    S, E = machine.S, machine.E
    faults = machine.open(**SOFTWARE, config=PAGE_FAULTS)
    kernel = machine.open(**SOFTWARE, config=PAGE_FAULTS, exclude_user=1)
    dummy = machine.open(**SOFTWARE, config=DUMMY)
    machine.host.interrupted = FROM_USER
    perf_sw_event(S, E, U64(PAGE_FAULTS), U64(3))
    machine.host.interrupted = 0
    perf_sw_event(S, E, U64(PAGE_FAULTS), U64(1))
    assert [int(perf_event_read_value(S, E, i)) for i in (faults, kernel, dummy)] == [4, 1, 0]


def test_software_events_sample(machine):
    S, E = machine.S, machine.E
    every = machine.open(**SOFTWARE, config=PAGE_FAULTS, sample_period=5, sample_type=0x100)
    third = machine.open(**SOFTWARE, config=PAGE_FAULTS, sample_period=3, sample_type=1)
    for _ in range(7):
        perf_sw_event(S, E, U64(PAGE_FAULTS), U64(1))
    # with PERF_SAMPLE_PERIOD each one tells what it stands for
    assert [int(S.perf_events[i].samples) for i in (every, third)] == [7, 2]


def test_migrations(machine):
    S, E = machine.S, machine.E
    moves = machine.open(**SOFTWARE, config=CPU_MIGRATIONS, ctx=CTX_TASK)
    perf_event_task_sched(S, E, CTX_TASK)
    perf_event_task_sched(S, E, -1)
    perf_event_task_sched(S, E, CTX_TASK)
    assert int(perf_event_read_value(S, E, moves)) == 0
    perf_event_task_sched(S, E, -1)
    S.contexts[CTX_TASK].last_cpu = 2
    perf_event_task_sched(S, E, CTX_TASK)
    assert int(perf_event_read_value(S, E, moves)) == 1


def test_a_clock_samples_by_a_timer(machine):
    S, E = machine.S, machine.E
    i = machine.open(**SOFTWARE, config=0, sample_freq=50_000, exclude_idle=1)
    assert int(S.perf_events[i].sample_period) == 20_000
    idle = machine.open(**SOFTWARE, config=0, sample_period=1)  # 10 microseconds at the least
    machine.host.curr = 0
    for _ in range(60):
        machine.core.t += 1500 << 4
        if int(machine.core.t) >= int(machine.host.clock_at):
            perf_swevent_hrtimer(S, E)
    # 90,000 cycles are 30 microseconds
    assert [int(S.perf_events[k].samples) for k in (i, idle)] == [1, 3]
    machine.host.curr = -1
    for _ in range(60):
        machine.core.t += 1500 << 4
        if int(machine.core.t) >= int(machine.host.clock_at):
            perf_swevent_hrtimer(S, E)
    assert int(S.perf_events[i].samples) == 1
    assert int(S.perf_events[idle].samples) == 6


def test_the_uncore_counts_for_the_socket(machine):
    S, E = machine.S, machine.E
    misses = machine.open(**UNCORE, config=CAS_COUNT_RD)
    ticks = machine.open(**UNCORE, config=CLOCKTICKS)
    start = tsc_value(machine.core, int(machine.core.t))
    for core in S.cores:
        for cpl in (0, 1):
            core.total[cpl, CLASS["fetched"]] += U64(10)
    machine.core.t += 5000 << 4
    assert int(perf_event_read_value(S, E, misses)) == 10 * 2 * len(S.cores)
    assert int(perf_event_read_value(S, E, ticks)) == tsc_value(machine.core, int(machine.core.t)) - start


# --- tasks ----------------------------------------------------------------------------------------------
def fork(machine, parent, child):
    def install(row):
        return int(perf_install_in_context(machine.S, machine.E, row))

    return perf_event_init_task(machine.S, install, parent, child)


def test_a_child_counts_for_the_event_of_its_parent(machine):
    S, E = machine.S, machine.E
    leader = machine.open(config=INSTRUCTIONS, ctx=CTX_TASK, inherit=1, exclude_kernel=1)
    member = machine.open(config=BRANCHES, ctx=CTX_TASK, inherit=1, exclude_kernel=1, leader=leader)
    machine.open(config=BRANCHES, ctx=CTX_TASK, exclude_kernel=1)  # not inherited
    perf_event_task_sched(S, E, CTX_TASK)
    machine.work(USER, 100, 10, 100)
    assert fork(machine, 0, 1) == 0
    copies = [i for i in machine.events() if int(S.perf_events[i].ctx) == CTX_TASK + 1]
    assert [int(S.perf_events[i].parent) for i in copies] == [leader, member]
    assert [int(S.perf_events[i].leader) for i in copies] == [copies[0]] * 2
    perf_event_task_sched(S, E, CTX_TASK + 1)
    machine.work(USER, 1000, 200, 100)
    assert int(perf_event_read_value(S, E, leader)) == 1100
    assert fork(machine, 1, 2) == 0  # a grandchild
    perf_event_exit_task(S, E, 1)
    perf_event_task_sched(S, E, CTX_TASK + 2)
    machine.work(USER, 5000, 700, 100)
    assert int(perf_event_read_value(S, E, leader)) == 6100
    perf_event_exit_task(S, E, 2)
    assert [int(perf_event_read_value(S, E, i)) for i in (leader, member)] == [6100, 910]
    assert int(S.perf_events[leader].child_running) > 0
    assert len(machine.events()) == 3


def test_a_thread_counts_on_when_the_first_one_has_ended(machine):
    """The state of a copy is that of the event of the task that clones, its period that of the origin."""
    S, E = machine.S, machine.E
    i = machine.open(config=INSTRUCTIONS, ctx=CTX_TASK, inherit=1, exclude_kernel=1, sample_period=1 << 20)
    assert fork(machine, 0, 1) == 0
    kernel_call(S, machine.M, E, CALL_PERF_PERIOD, i, 1 << 21)
    perf_event_exit_task(S, E, 0)
    assert fork(machine, 1, 2) == 0
    perf_event_task_sched(S, E, CTX_TASK + 2)
    machine.work(USER, 100, 10, 100)
    assert int(perf_event_read_value(S, E, i)) == 100
    (copy,) = (k for k in machine.events() if int(S.perf_events[k].ctx) == CTX_TASK + 2)
    assert int(S.perf_events[copy].period) == int(S.perf_events[copy].sample_period) == 1 << 21


def test_events_of_a_task_that_ends_keep_their_count(machine):
    S, E = machine.S, machine.E
    i = machine.open(config=INSTRUCTIONS, ctx=CTX_TASK, exclude_kernel=1)
    perf_event_task_sched(S, E, CTX_TASK)
    machine.work(USER, 100, 10, 100)
    perf_event_exit_task(S, E, 0)
    machine.work(USER, 100, 10, 100)
    assert states(machine, i) == [EXIT]
    assert int(perf_event_read_value(S, E, i)) == 100
    perf_event_enable(S, E, i)
    perf_event_disable(S, E, i)
    assert states(machine, i) == [EXIT]
    assert perf_report(S)[0]["state"] == "EXIT"
    machine.check(i)


def test_what_was_inherited_goes_with_its_origin(machine):
    S, E = machine.S, machine.E
    i = machine.open(config=INSTRUCTIONS, ctx=CTX_TASK, inherit=1)
    assert fork(machine, 0, 1) == 0
    S.percpu[1].task_ctx = CTX_TASK + 1  # runs on the other CPU
    perf_event_release_kernel(S, E, i)
    (left,) = machine.events()
    assert int(S.perf_events[left].parent) == -2
    assert fork(machine, 1, 2) == 0
    assert machine.events() == [left]  # it is nobody's any more
    S.percpu[1].task_ctx = -1
    perf_event_exit_task(S, E, 1)
    assert machine.events() == []


# --- the hardware is reserved by the first event, and again after the last has gone -----------------------

RESERVE = COST_NAMES.index("x86_reserve_hardware")


def reserved(machine):
    return int(machine.host.work[RESERVE])


def test_the_first_event_of_the_host_reserves_the_hardware(machine):
    S, E = machine.S, machine.E
    cpus = int(S.config.n_cores)
    machine.open(config=0, pmu_type=PERF_TYPE_SOFTWARE, pmu_ctx=PMU_SOFTWARE)
    machine.open(config=0, pmu_type=PERF_TYPE_UNCORE, pmu_ctx=PMU_UNCORE)
    assert reserved(machine) == 0
    first = machine.open(config=INSTRUCTIONS, state=PERF_EVENT_STATE_INACTIVE)
    assert reserved(machine) == cpus
    second = machine.open(config=BRANCHES, state=PERF_EVENT_STATE_OFF)  # whether it is on or not
    perf_event_release_kernel(S, E, first)
    third = machine.open(config=BRANCHES, ctx=CTX_TASK, cpu=-1)
    assert reserved(machine) == cpus
    perf_event_release_kernel(S, E, second)
    perf_event_release_kernel(S, E, third)
    machine.open(config=CYCLES)
    assert reserved(machine) == 2 * cpus


def test_so_does_the_first_event_of_kvm(machine):
    S, E = machine.S, machine.E
    asked = (0, ATTR_EXCLUDE_HOST | ATTR_PINNED, U64(INSTRUCTIONS), U64(1 << 20), OWNER_KVM, 0, 0)
    first = perf_event_create_kernel_counter(S, E, *asked)
    assert reserved(machine) == int(S.config.n_cores)
    perf_event_create_kernel_counter(S, E, *asked[:-1], 1)
    machine.open(config=CYCLES)
    perf_event_release_kernel(S, E, first)
    assert reserved(machine) == int(S.config.n_cores)


OPENS_ELSEWHERE = """
        .include "linux.inc"
        .include "host.inc"
        .globl _start
_start: set_affinity 0, second_core
        perf_open attr, ANY, 0
        exit_if_error 1
        exit_program 0
        .data
        .balign 8
second_core: .quad 2
attr:   perf_attr PERF_TYPE_HARDWARE, PERF_COUNT_HW_CPU_CYCLES, PERF_ATTR_EXCLUDE_GUEST
        host_storage
"""


def test_it_is_the_work_of_the_cpu_that_opens_the_event():
    host = [assemble(OPENS_ELSEWHERE, str(ROOT / "guests/host/elsewhere.s"))]
    body = "    mov ecx, 20000\n1:  dec ecx\n    jnz 1b\n    cpuid\n    EXIT 0\n"
    found = system(body, "none", cores=2, host=host)
    found.run()
    assert [int(found.S.percpu[cpu].work[RESERVE]) for cpu in (0, 1)] == [0, 2]


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize(("asked", "paid"), [
    ({}, True), ({"watchdog": "buddy"}, True), ({"watchdog": "nmi"}, False),
    ({"host_events": ["cycles:H"]}, False),
])  # fmt: skip
def test_nobody_pays_while_somebody_else_has_an_event(asked, paid, cores):
    """Every CPU has its buffers, and the watchdog's events are events of the core PMU, too."""
    found = system(window("    nop\n" * 5), "emulated", cores=cores, **asked)
    found.run()
    created = COST_NAMES.index("perf_event_create_kernel_counter")
    assert sum(int(host.work[created]) for host in found.S.percpu) >= 1
    assert sum(int(host.work[RESERVE]) for host in found.S.percpu) == (cores if paid else 0)


def test_a_sample_costs_once_a_sample_and_a_pmi_once_a_pmi(machine):
    """Two events whose counters overflow together: one interrupt, two samples."""
    for config in (INSTRUCTIONS, BRANCHES):
        machine.open(config=config, sample_period=100, exclude_kernel=1)
    work = machine.host.work
    for _ in range(5):
        machine.work(USER, 100, 100, 100)
    assert int(work[COST_NAMES.index("perf_event_nmi_handler")]) == 5
    assert int(work[COST_NAMES.index("perf_event_overflow")]) == 10


def test_an_event_with_a_frequency_is_looked_at_in_each_tick(machine):
    machine.open(config=INSTRUCTIONS, sample_freq=1000, exclude_kernel=1)
    machine.open(config=BRANCHES, sample_period=1 << 30, exclude_kernel=1)
    for _ in range(3):
        perf_event_task_tick(machine.S, machine.E)
    assert int(machine.host.work[COST_NAMES.index("perf_adjust_freq_unthr_context")]) == 3
