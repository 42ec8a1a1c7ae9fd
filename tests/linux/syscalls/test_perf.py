"""perf_event_open() and its files: the errno that Linux gives, and counts that are exact."""

from __future__ import annotations

import struct

import pytest

from tests.linux.syscalls.kernel import IDLE, Kernel
from vpmu_emu.linux.calls import (
    CALL_PERF_DISABLE,
    CALL_PERF_ENABLE,
    CALL_PERF_PERIOD,
    CALL_PERF_READ,
    CALL_PERF_RELEASE,
)
from vpmu_emu.linux.state import N_EVENTS, PERF_EVENT_STATE_ERROR
from vpmu_emu.linux.syscalls.pagetables import PAGE
from vpmu_emu.linux.syscalls.tasks import do_exit
from vpmu_emu.tables.linux import ERRNO, STRUCTS, constant
from vpmu_emu.views.perf import closed_report, perf_report

pytestmark = pytest.mark.uncompiled

ATTR = STRUCTS["perf_event_attr"]
HARDWARE, SOFTWARE, CACHE, RAW, UNCORE = 0, 1, 3, 4, 8
INSTRUCTIONS = 1
SIZE = 144
SHARED = 1


def c(name):
    return constant(f"PERF_{name}")


TIMES = c("FORMAT_TOTAL_TIME_ENABLED") | c("FORMAT_TOTAL_TIME_RUNNING")
FORMAT_ALL = TIMES | c("FORMAT_ID") | c("FORMAT_LOST")
GROUP = c("FORMAT_GROUP")
USER = c("ATTR_EXCLUDE_KERNEL")
DISABLED = c("ATTR_DISABLED")


def attr(size=136, tail=b"", **values):
    values = {"config": INSTRUCTIONS, **values}
    return ATTR.new(size=size, **values).tobytes() + tail


def event(kernel, *, pid=0, cpu=-1, group=-1, open_flags=0, data=None, **values):
    at = kernel.page(attr(**values) if data is None else data)
    fd = kernel.call("perf_event_open", at, pid, cpu, group, open_flags)
    kernel.call("munmap", at, PAGE)
    return fd


def words(kernel, fd, n=16):
    at = kernel.page()
    size = kernel.call("read", fd, at, 8 * n)
    assert size >= 0, size
    data = kernel.host.copy_from_user(at, size)
    kernel.call("munmap", at, PAGE)
    return struct.unpack(f"<{size // 8}Q", data)


# --- attributes -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [64, 72, 80, 96, 104, 112, 120, 128, 136])
def test_every_published_size(size):
    kernel = Kernel().start()
    data = attr(size=size)[:size]
    at = kernel.page(size=2 * PAGE) + PAGE - size  # what follows is not the attributes'
    kernel.host.copy_to_user(at, data + b"\xff" * 64)
    assert kernel.call("perf_event_open", at, 0, -1, -1, 0) == 3


def test_size_0_is_the_first():
    assert event(Kernel().start(), size=0) == 3


@pytest.mark.parametrize("size", [1, 63, PAGE + 1, 1 << 31])
def test_wrong_sizes_are_told_the_right_one(size):
    kernel = Kernel().start()
    at = kernel.page(attr(size=size), 2 * PAGE)
    assert kernel.call("perf_event_open", at, 0, -1, -1, 0) == -ERRNO["E2BIG"]
    assert kernel.host.get_user(at + 4, 4) == SIZE


def test_a_newer_program():
    kernel = Kernel().start()
    assert event(kernel, data=attr(size=200, tail=bytes(64))) == 3
    assert event(kernel, data=attr(size=200, tail=bytes(63) + b"\1")) == -ERRNO["E2BIG"]
    old = Kernel(mode="passthrough").start()
    at = old.page(attr(size=144, tail=b"\1" + bytes(7)))
    assert old.call("perf_event_open", at, 0, -1, -1, 0) == -ERRNO["E2BIG"]
    assert old.host.get_user(at + 4, 4) == 136


@pytest.mark.parametrize("address", [0, 8, 0x6FFF_FFFF_0000, 1 << 47, (1 << 64) - 8])
def test_bad_pointer(address):
    assert Kernel().start().call("perf_event_open", address, 0, -1, -1, 0) == -ERRNO["EFAULT"]


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"flags": 1 << 63}, "EINVAL"),
        ({"__reserved_2": 1}, "EINVAL"),
        ({"__reserved_3": 1}, "EINVAL"),
        ({"sample_type": 1 << 25}, "EINVAL"),
        ({"read_format": 1 << 5}, "EINVAL"),
        ({"sample_period": 1 << 63}, "EINVAL"),
        ({"sample_freq": 100_001, "flags": c("ATTR_FREQ")}, "EINVAL"),
        ({"sample_type": c("SAMPLE_BRANCH_STACK"), "branch_sample_type": 1}, "EINVAL"),
        ({"sample_type": c("SAMPLE_REGS_USER")}, "EINVAL"),
        ({"sample_type": c("SAMPLE_REGS_INTR"), "sample_regs_intr": 1 << 40}, "EINVAL"),
        ({"sample_type": c("SAMPLE_STACK_USER"), "sample_stack_user": 12}, "EINVAL"),
        ({"flags": c("ATTR_INHERIT_THREAD")}, "EINVAL"),
        ({"flags": c("ATTR_SIGTRAP")}, "EINVAL"),
        ({"flags": c("ATTR_INHERIT"), "sample_type": c("SAMPLE_READ")}, "EINVAL"),
        ({"flags": c("ATTR_USE_CLOCKID"), "clockid": 3}, "EINVAL"),
        ({"flags": 2 << 15}, "EINVAL"),  # precise without sampling
        ({"flags": 3 << 15, "sample_period": 100}, "EINVAL"),  # PDist needs 128
        ({"type": 2}, "ENOENT"),  # no tracepoints
        ({"type": 5}, "ENOENT"),  # no breakpoints
        ({"type": 77}, "ENOENT"),
        ({"config": 10}, "EINVAL"),
        ({"config": 7}, "ENOENT"),  # stalled-cycles-frontend
        ({"config": 99 << 32}, "ENOENT"),  # no such PMU
        ({"type": SOFTWARE, "config": 12}, "ENOENT"),
        ({"type": SOFTWARE, "config": 1 << 40}, "ENOENT"),
        ({"type": CACHE, "config": 0x7}, "EINVAL"),
        ({"type": CACHE, "config": 0x300}, "EINVAL"),
        ({"type": CACHE, "config": 0x20000}, "EINVAL"),
        ({"type": CACHE, "config": 0x00002}, "ENOENT"),
        ({"type": UNCORE, "config": 1}, "EINVAL"),  # not of a thread
        ({"sample_type": c("SAMPLE_CALLCHAIN"), "sample_max_stack": 128}, "EOVERFLOW"),
        ({"type": SOFTWARE, "sample_type": 0x800, "branch_sample_type": 8}, "EOPNOTSUPP"),
    ],
)
def test_attribute_errnos(values, name):
    kernel = Kernel().start()
    assert event(kernel, **values) == -ERRNO[name]
    assert not any(e.used for e in kernel.S.perf_events)


@pytest.mark.parametrize(
    "values",
    [
        {"type": RAW, "config": 0x00C0},
        {"type": RAW, "config": 0x00C0 | 1 << 22},  # bits outside of the mask are dropped
        {"config": RAW << 32 | 1},
        {"type": CACHE, "config": 0x00000},
        {"type": CACHE, "config": 0x10005},
        {"type": SOFTWARE, "config": 3},
        {"config": 9},
        {"sample_period": 1000, "flags": 2 << 15},
        {"sample_freq": 100_000, "flags": c("ATTR_FREQ")},
    ],
)
def test_attributes_that_will_do(values):
    assert event(Kernel().start(), **values) == 3


@pytest.mark.parametrize(
    ("kwargs", "name"),
    [
        ({"pid": -1, "cpu": -1}, "EINVAL"),
        ({"pid": -1, "cpu": 2}, "EINVAL"),
        ({"pid": 0, "cpu": 7}, "EINVAL"),
        ({"pid": 0, "cpu": -2}, "EINVAL"),
        ({"pid": 1234}, "ESRCH"),
        ({"pid": -3}, "ESRCH"),
        ({"group": 1}, "EBADF"),
        ({"group": 50}, "EBADF"),
        ({"open_flags": 16}, "EINVAL"),
        ({"open_flags": 4, "cpu": 0}, "EBADF"),
        ({"open_flags": 4}, "EINVAL"),
    ],
)
def test_whom_to_count(kwargs, name):
    assert event(Kernel(cores=2).start(), **kwargs) == -ERRNO[name]


def test_of_which_cpu_and_task():
    kernel = Kernel(IDLE, cores=2).start()
    for pid, cpu in ((0, -1), (1, -1), (0, 1), (-1, 0), (-1, 1)):
        assert event(kernel, pid=pid, cpu=cpu) >= 3
    assert event(kernel, pid=-1, cpu=0, type=UNCORE, config=1) >= 3


# --- groups ---------------------------------------------------------------------------------------------
def test_group_errnos():
    kernel = Kernel(cores=2).start()
    leader = event(kernel)
    member = event(kernel, group=leader)
    assert event(kernel, group=member) == -ERRNO["EINVAL"]
    assert event(kernel, group=leader, cpu=0) == -ERRNO["EINVAL"]
    assert event(kernel, group=leader, pid=-1, cpu=0) == -ERRNO["EINVAL"]
    assert event(kernel, group=leader, flags=c("ATTR_PINNED")) == -ERRNO["EINVAL"]
    assert event(kernel, group=leader, flags=c("ATTR_EXCLUSIVE")) == -ERRNO["EINVAL"]
    assert event(kernel, group=leader, flags=c("ATTR_INHERIT")) == -ERRNO["EINVAL"]
    assert event(kernel, group=member, open_flags=c("FLAG_FD_NO_GROUP")) > 0


def test_a_group_that_never_fits():
    kernel = Kernel().start()
    leader = event(kernel, type=RAW, config=0x00C4)
    got = [event(kernel, type=RAW, config=0x00C4, group=leader) for _ in range(8)]
    assert got == [*range(4, 11), -ERRNO["EINVAL"]]


@pytest.mark.slow
def test_events_run_out():
    kernel = Kernel().start()
    at = kernel.page(attr())
    got = [kernel.call("perf_event_open", at, 0, -1, -1, 0) for _ in range(N_EVENTS + 1)]
    assert got[:N_EVENTS] == [*range(3, 3 + N_EVENTS)]
    assert got[-1] == -ERRNO["ENOMEM"]
    for fd in got[:N_EVENTS]:
        assert kernel.call("close", fd) == 0
    assert not any(e.used for e in kernel.S.perf_events)


# --- counting -------------------------------------------------------------------------------------------
COUNTER = """
.text
_start:
    lea rdi, attr[rip]
    xor esi, esi
    mov edx, -1
    mov r10d, -1
    xor r8d, r8d
    CALL_LINUX perf_event_open
    mov ebx, eax
    mov edi, ebx
    mov esi, PERF_EVENT_IOC_ENABLE
    xor edx, edx
    CALL_LINUX ioctl
    mov ecx, 1000
1:  dec ecx
    jnz 1b
    mov edi, ebx
    mov esi, PERF_EVENT_IOC_DISABLE
    xor edx, edx
    CALL_LINUX ioctl
    mov edi, ebx
    lea rsi, counts[rip]
    mov edx, 24
    CALL_LINUX read
    cmp eax, 24
    jne 9f
    mov rdi, counts[rip]
    sub rdi, {expect}
    SYSCALL_EXIT
9:  EXIT 99
.data
.balign 8
attr:
    .long {type}, 136
    .quad {config}
    .quad 0, 0, 3
    .quad PERF_ATTR_DISABLED | PERF_ATTR_EXCLUDE_KERNEL
    .skip 136 - 48
counts: .skip 24
""".replace("SYSCALL_EXIT", "CALL_LINUX exit")


@pytest.mark.parametrize(
    ("kind", "config", "expect"),
    # after ENABLE: mov, 1000 times two, mov mov xor mov, and SYSCALL itself
    [(0, 1, 1 + 2000 + 5), (4, 0xC0, 1 + 2000 + 5), (0, 4, 1000), (4, 0xC4, 1000)],
)
def test_a_program_counts_its_own_instructions(kind, config, expect):
    """SYSCALL is a branch for silicon too; which far branches count is the model's matter."""
    body = COUNTER.format(type=kind, config=config, expect=expect)
    (code,) = Kernel(body).run().exit_codes()
    assert code in ((0,) if expect > 1500 else (0, 1))


def test_read_formats():
    kernel = Kernel().start()
    fd = event(kernel, read_format=FORMAT_ALL, flags=USER)
    kernel.run(2000)
    value, enabled, running, number, lost = words(kernel, fd)
    assert value > 0
    # being scheduled in takes time, in which the event is enabled and does not run
    assert 0 < running <= enabled < running + 1000
    assert lost == 0
    at = kernel.page()
    assert kernel.call("ioctl", fd, constant("PERF_EVENT_IOC_ID"), at) == 0
    assert kernel.host.get_user(at, 8) == number
    assert kernel.call("read", fd, at, 39) == -ERRNO["ENOSPC"]
    assert kernel.call("read", fd, 8, 40) == -ERRNO["EFAULT"]
    assert kernel.call("write", fd, at, 8) == -ERRNO["EINVAL"]
    assert kernel.call("lseek", fd, 0, 0) == -ERRNO["ESPIPE"]


def test_group_read():
    kernel = Kernel().start()
    form = FORMAT_ALL | GROUP
    leader = event(kernel, read_format=form, flags=USER)
    members = [leader, *(event(kernel, read_format=form, group=leader, flags=USER) for _ in range(2))]
    kernel.run(2000)
    found = words(kernel, leader, 32)
    assert found[0] == 3
    assert 0 < found[2] <= found[1] < found[2] + 1000
    values = [found[3 + 3 * k : 6 + 3 * k] for k in range(3)]
    assert values[1][0] == values[2][0] > 0
    assert [v[1] for v in values] == [words(kernel, fd, 32)[4 + 3 * k] for k, fd in enumerate(members)]
    # each reads the whole group, whoever is asked; the size is what the whole needs
    assert kernel.call("read", members[1], kernel.page(), 8 * 11) == -ERRNO["ENOSPC"]


def test_enable_disable_reset():
    kernel = Kernel().start()
    fd = event(kernel, flags=USER | DISABLED, read_format=3)
    io = lambda name, arg=0: kernel.call("ioctl", fd, constant(f"PERF_EVENT_IOC_{name}"), arg)  # noqa: E731
    kernel.run(1000)
    assert words(kernel, fd) == (0, 0, 0)
    assert io("ENABLE") == 0
    kernel.run(1000)
    value, enabled, running = words(kernel, fd)
    assert value > 900
    assert 0 < running <= enabled < running + 1000
    assert io("DISABLE") == 0
    stopped = words(kernel, fd)
    kernel.run(1000)
    assert words(kernel, fd) == stopped
    assert io("RESET") == 0
    assert words(kernel, fd) == (0, *stopped[1:])  # times stay


def test_group_flag():
    kernel = Kernel().start()
    leader = event(kernel, flags=USER | DISABLED)
    member = event(kernel, flags=USER | DISABLED, group=leader)
    io = lambda fd, name, arg: kernel.call("ioctl", fd, constant(f"PERF_EVENT_IOC_{name}"), arg)  # noqa: E731
    io(leader, "ENABLE", 0)
    kernel.run(500)
    assert words(kernel, leader)[0] > 0
    assert words(kernel, member)[0] == 0
    io(member, "ENABLE", 1)
    kernel.run(500)
    assert words(kernel, member)[0] > 0
    io(member, "RESET", 1)
    assert words(kernel, leader)[0] < 100


@pytest.mark.parametrize(
    ("name", "arg", "errno"),
    [
        ("PERIOD", None, "EINVAL"),  # does not sample
        ("PERIOD", 8, "EFAULT"),
        ("REFRESH", 1, "EINVAL"),
        ("ID", 8, "EFAULT"),
        ("SET_OUTPUT", 1, "EBADF"),
        ("SET_OUTPUT", 3, "EINVAL"),  # itself
        ("PAUSE_OUTPUT", 1, "EINVAL"),  # nothing is mapped
        ("SET_FILTER", 0, "EINVAL"),
        ("SET_BPF", 0, "EINVAL"),
    ],
)
def test_ioctl_errnos(name, arg, errno):
    kernel = Kernel().start()
    fd = event(kernel)
    arg = kernel.page(b"\1") if arg is None else arg
    assert kernel.call("ioctl", fd, constant(f"PERF_EVENT_IOC_{name}"), arg) == -ERRNO[errno]
    assert kernel.call("ioctl", fd, 0x2499, 0) == -ERRNO["ENOTTY"]


def test_modify_attributes_is_for_breakpoints():
    kernel = Kernel().start()
    fd = event(kernel)
    request = constant("PERF_EVENT_IOC_MODIFY_ATTRIBUTES")
    assert kernel.call("ioctl", fd, request, kernel.page(attr())) == -ERRNO["EOPNOTSUPP"]
    assert kernel.call("ioctl", fd, request, kernel.page(attr(type=1))) == -ERRNO["EINVAL"]


def test_period_of_a_sampling_event():
    kernel = Kernel().start()
    fd = event(kernel, sample_period=1 << 40, flags=USER)
    request = constant("PERF_EVENT_IOC_PERIOD")
    assert kernel.call("ioctl", fd, request, kernel.page((500).to_bytes(8, "little"))) == 0
    kernel.run(30_000)  # most of it for NMIs
    row = next(e for e in kernel.S.perf_events if e.used)
    assert int(row.samples) >= 3
    for value in (0, 1 << 63):
        at = kernel.page(value.to_bytes(8, "little"))
        assert kernel.call("ioctl", fd, request, at) == -ERRNO["EINVAL"]


@pytest.mark.parametrize("precise", [0, 1, 2, 3])
def test_a_precise_event_of_the_host_is_sampled_by_its_own_interrupt(precise):
    """Only a guest has a debug store here: IA32_PEBS_ENABLE stays clear."""
    kernel = Kernel().start()
    fd = event(kernel, sample_period=500, flags=USER | precise << 15)
    kernel.run(30_000)
    row = next(e for e in kernel.S.perf_events if e.used)
    assert (int(row.samples) >= 3, int(row.precise_ip)) == (True, precise)
    assert int(kernel.S.cores[0].pmu.pebs_enable) == int(kernel.S.percpu[0].pebs_enabled) == 0
    if precise == 3:  # PDIR or PDist: one counter alone
        assert int(row.idx) in (0, 8)
        at = kernel.page((127).to_bytes(8, "little"))
        assert kernel.call("ioctl", fd, constant("PERF_EVENT_IOC_PERIOD"), at) == -ERRNO["EINVAL"]


def test_refresh_stops_by_itself():
    kernel = Kernel().start()
    fd = event(kernel, sample_period=200, flags=USER | DISABLED)
    assert kernel.call("ioctl", fd, constant("PERF_EVENT_IOC_REFRESH"), 3) == 0
    kernel.run(40_000)
    row = next(e for e in kernel.S.perf_events if e.used)
    assert (int(row.samples), int(row.state)) == (3, -1)
    assert kernel.call("ioctl", fd, constant("PERF_EVENT_IOC_REFRESH"), 1) == 0
    kernel.run(20_000)
    assert (int(row.samples), int(row.state)) == (4, -1)


# --- what needs a clock, a store, or slots --------------------------------------------------------------
CLOCKED = c("ATTR_USE_CLOCKID")


@pytest.mark.parametrize(
    ("values", "errno"),
    [
        *(({"clockid": clock}, "EINVAL") for clock in (0, 7, 11, 2, 5)),
        *(({"clockid": clock}, None) for clock in (1, 4)),
        *(({"type": SOFTWARE, "config": 0, "clockid": clock}, None) for clock in (0, 1, 4, 7, 11)),
        ({"type": SOFTWARE, "config": 0, "clockid": 5}, "EINVAL"),
        ({"type": UNCORE, "config": 1, "clockid": 0}, "EINVAL"),
        ({"type": RAW, "config": 0xC4, "clockid": 11}, "EINVAL"),
    ],
)
def test_what_samples_in_an_nmi_has_a_clock_for_it(values, errno):
    """perf_event_set_clock(): only software events may have a clock that is not safe in an NMI."""
    kernel = Kernel().start()
    whom = {"pid": -1, "cpu": 0} if values.get("type") == UNCORE else {}
    fd = event(kernel, flags=CLOCKED, **whom, **values)
    assert fd == (-ERRNO[errno] if errno else 3)


def test_events_of_different_clocks_share_nothing():
    """perf_event_open() of a member, perf_event_set_output(): the clocks must be the same one."""
    kernel = Kernel().start()
    leader = event(kernel, flags=CLOCKED, clockid=1)
    plain = event(kernel)
    ring = {fd: kernel.call("mmap", 0, 2 * PAGE, 3, SHARED, fd, 0) for fd in (leader, plain)}
    assert all(at > 0 for at in ring.values())
    for group, values, errno in (
        (leader, {}, "EINVAL"),
        (leader, {"flags": CLOCKED, "clockid": 4}, "EINVAL"),
        (plain, {"flags": CLOCKED, "clockid": 1}, "EINVAL"),
        (leader, {"flags": CLOCKED, "clockid": 1}, None),
        (plain, {}, None),
    ):
        for flags in (0, constant("PERF_FLAG_FD_OUTPUT") | constant("PERF_FLAG_FD_NO_GROUP")):
            fd = event(kernel, group=group, open_flags=flags, **values)
            assert fd == -ERRNO[errno] if errno else fd > 0
    alone = event(kernel, flags=CLOCKED, clockid=4)
    set_output = c("EVENT_IOC_SET_OUTPUT")
    assert kernel.call("ioctl", alone, set_output, leader) == -ERRNO["EINVAL"]
    assert kernel.call("ioctl", alone, set_output, plain) == -ERRNO["EINVAL"]


@pytest.mark.parametrize(
    ("mode", "values", "errno"),
    [
        ("emulated", {"config": 4}, "EOPNOTSUPP"),
        ("emulated", {"type": RAW, "config": 0xC4}, "EOPNOTSUPP"),
        ("emulated", {"type": RAW, "config": 0x10000C4}, "EOPNOTSUPP"),
        ("emulated", {"type": RAW, "config": 0xC4, "flags": USER}, "EOPNOTSUPP"),
        ("emulated", {"type": RAW, "config": 0x20C4}, None),
        ("emulated", {"config": 4, "flags": c("ATTR_FREQ")}, None),
        ("emulated", {"config": 4, "flags": c("ATTR_EXCLUDE_HOST")}, None),
        ("passthrough", {"config": 4, "flags": c("ATTR_EXCLUDE_HOST")}, "EOPNOTSUPP"),
        ("emulated", {"config": 1}, None),
    ],
)
def test_every_single_branch_would_be_the_branch_trace_stores(mode, values, errno):
    """intel_pmu_has_bts_period(): no CPU here has the store; since 6.19 guests' events are none of it."""
    kernel = Kernel(mode=mode).start()
    values = {"flags": DISABLED, **values}
    values["flags"] |= DISABLED
    fd = event(kernel, sample_period=1, **values)
    assert fd == (-ERRNO[errno] if errno else 3)
    many = event(kernel, **{**values, "sample_period": 1000})
    one = kernel.page(struct.pack("<Q", 1))
    expect = -ERRNO["EINVAL"] if errno else 0
    assert kernel.call("ioctl", many, c("EVENT_IOC_PERIOD"), one) == expect


def test_members_that_are_off_need_no_counter():
    """validate_group() leaves them out: a group may have more of them than there are counters."""
    kernel = Kernel().start()
    leader = event(kernel, flags=DISABLED)
    for _ in range(20):
        assert event(kernel, group=leader, flags=DISABLED) > 0
    on = [event(kernel, group=leader, config=4) for _ in range(9)]
    assert all(fd > 0 for fd in on[:8])
    assert on[8] == -ERRNO["EINVAL"]


SLOTS, RETIRING = 0x0400, 0x8000


@pytest.mark.parametrize(
    ("leader", "values", "errno"),
    [
        (None, {"config": RETIRING}, "EINVAL"),
        (None, {"config": RETIRING + 0x700}, "EINVAL"),
        (None, {"config": SLOTS | 1 << 18}, "EINVAL"),
        (None, {"config": SLOTS | 1 << 23}, "EINVAL"),
        (None, {"config": SLOTS | 1 << 24}, "EINVAL"),
        ({"config": SLOTS}, {"config": RETIRING, "sample_period": 1000}, "EINVAL"),
        ({"config": SLOTS}, {"config": RETIRING | 1 << 24}, "EINVAL"),
        ({"config": SLOTS, "sample_period": 100_000}, {"config": RETIRING}, "EINVAL"),
        ({"config": 0xC0}, {"config": RETIRING}, "EINVAL"),
        ({"config": SLOTS}, {"config": RETIRING}, None),
        ({"config": SLOTS}, {"config": RETIRING + 0x700}, None),
        ({"config": SLOTS}, {"config": RETIRING + 0x800}, None),  # not theirs: an event like others
        (None, {"config": SLOTS, "sample_period": 100_000}, None),
    ],
)
def test_who_may_read_perf_metrics(leader, values, errno):
    """intel_pmu_hw_config(): a fraction needs a slots event that leads its group, and nobody samples."""
    kernel = Kernel().start()
    group = event(kernel, type=RAW, flags=DISABLED, **leader) if leader else -1
    fd = event(kernel, type=RAW, group=group, **{"flags": 0 if leader else DISABLED, **values})
    assert fd == (-ERRNO[errno] if errno else group + 1 if leader else 3)


WORK = """
    .text
_start: xor ecx, ecx
1:  imul rax, rax
    inc ecx
    test ecx, 7
    jnz 1b
    jmp 1b
"""


@pytest.mark.parametrize("form", [0, GROUP | FORMAT_ALL])
def test_fractions_of_the_slots_add_up(form):
    kernel = Kernel(WORK).start()
    fds = [event(kernel, type=RAW, config=SLOTS, flags=DISABLED | USER, read_format=form)]
    for k in range(8):
        fds.append(event(kernel, type=RAW, config=RETIRING + k * 0x100, group=fds[0], flags=USER))
    inst = event(kernel, group=fds[0], flags=USER)
    assert min(*fds, inst) > 0
    kernel.call("ioctl", fds[0], c("EVENT_IOC_ENABLE"), 0)
    for _ in range(3):
        kernel.run(5000).start()
    live = [e["count"] for e in perf_report(kernel.S)]
    kernel.call("ioctl", fds[0], c("EVENT_IOC_DISABLE"), 0)
    assert [e["count"] for e in perf_report(kernel.S)] == live
    if form:
        n, _, _, *found = words(kernel, fds[0], 64)
        counts = found[::3][:n]
    else:
        counts = [words(kernel, fd)[0] for fd in (*fds, inst)]
    assert counts == live
    slots, *metrics, instructions = counts
    unit = slots / 255
    assert slots > 8000
    assert abs(sum(metrics[:4]) - slots) < 8 * unit
    assert metrics[0] == pytest.approx(instructions, abs=3 * unit + 40)
    assert metrics[2] == 0
    assert metrics[3] > metrics[0]


def test_a_fraction_without_its_slots_event_is_in_error():
    """PERF_EV_CAP_SIBLING: it cannot be alone, and nothing brings it back."""
    kernel = Kernel().start()
    slots = event(kernel, type=RAW, config=SLOTS, flags=USER)
    metric = event(kernel, type=RAW, config=RETIRING, group=slots, flags=USER)
    kernel.call("close", slots)
    (left,) = perf_report(kernel.S)
    assert (left["state"], left["cause"]) == ("ERROR", "its slots event is gone")
    kernel.call("ioctl", metric, c("EVENT_IOC_ENABLE"), 0)
    assert words(kernel, metric) == ()


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"flags": c("ATTR_PINNED")},
        {"config": 9, "flags": c("ATTR_PINNED")},  # ref-cycles
        {"type": SOFTWARE, "config": 0},
        {"type": UNCORE, "config": 1},
        {"flags": c("ATTR_INHERIT")},
    ],
)
def test_a_closed_event_counts_no_more_in_the_log(values):
    """perf.closed[] has count, times and state of the close, whatever the CPU does afterwards."""
    kernel = Kernel().start()
    whom = {"pid": -1, "cpu": 0} if values.get("type") == UNCORE else {}
    fd = event(kernel, **whom, **values)
    kernel.run(1000).start()
    kernel.call("ioctl", fd, c("EVENT_IOC_DISABLE"), 0)
    last, *_ = words(kernel, fd)
    kernel.call("ioctl", fd, c("EVENT_IOC_ENABLE"), 0)
    kernel.call("close", fd)
    (log,) = closed_report(kernel.S)
    assert 0 < last <= log["count"] < last + 100_000
    assert log["state"] == "ACTIVE"
    assert 0 < log["running"] <= log["enabled"]
    kernel.run(50_000)
    assert closed_report(kernel.S) == [log]


def test_an_event_in_error_is_at_its_end():
    kernel = Kernel().start()
    fds = [event(kernel, type=RAW, config=0xC4, flags=c("ATTR_PINNED") | USER) for _ in range(9)]
    states = [int(e.state) for e in kernel.S.perf_events if e.used]
    assert states.count(PERF_EVENT_STATE_ERROR) == 1
    assert words(kernel, fds[-1]) == ()
    kernel.run(500)
    assert words(kernel, fds[0])[0] > 0
    kernel.call("close", fds[0])
    assert kernel.call("ioctl", fds[-1], constant("PERF_EVENT_IOC_ENABLE"), 0) == 0
    kernel.run(500)
    assert words(kernel, fds[-1])[0] > 0


# --- mapping --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("pages", "flags", "offset", "name"),
    [
        (1, 2, 0, "EINVAL"),  # private
        (4, SHARED, 0, "EINVAL"),  # 3 pages of data
        (1, SHARED, PAGE, "EINVAL"),  # no AUX area
        (1 << 20, SHARED, 0, "EINVAL"),
        ((1 << 12) + 1, SHARED, 0, "ENOMEM"),
    ],
)
def test_mmap_errnos(pages, flags, offset, name):
    kernel = Kernel().start()
    fd = event(kernel)
    assert kernel.call("mmap", 0, pages * PAGE, 3, flags, fd, offset) == -ERRNO[name]


def test_control_page():
    kernel = Kernel().start()
    fd = event(kernel, flags=USER, read_format=3)
    at = kernel.call("mmap", 0, 3 * PAGE, 3, SHARED, fd, 0)
    assert at > 0
    page = lambda: STRUCTS["perf_event_mmap_page"].read(kernel.host.copy_from_user(at, 1088))  # noqa: E731
    found = page()
    assert (int(found["version"]), int(found["compat_version"])) == (0, 0)
    assert (int(found["data_offset"]), int(found["data_size"])) == (PAGE, 2 * PAGE)
    assert int(found["pmc_width"]) == 48
    assert int(found["capabilities"]) == 0b11110
    kernel.run(1000)
    assert kernel.call("ioctl", fd, constant("PERF_EVENT_IOC_DISABLE"), 0) == 0
    found = page()
    assert int(found["lock"]) % 2 == 0
    assert int(found["index"]) == 0
    value, enabled, running = words(kernel, fd)
    assert (int(found["offset"]), int(found["time_enabled"]), int(found["time_running"])) == (
        value, enabled, running,
    )  # fmt: skip


def test_a_mapping_keeps_its_event():
    kernel = Kernel().start()
    before = kernel.pages_in_use()
    fd = event(kernel)
    assert kernel.call("mmap", 0x2000_0000, 2 * PAGE, 3, SHARED | 0x10, fd, 0) == 0x2000_0000
    assert kernel.call("mmap", 0, 2 * PAGE, 3, SHARED, fd, 0) > 0
    assert kernel.call("mmap", 0, 3 * PAGE, 3, SHARED, fd, 0) == -ERRNO["EINVAL"]
    assert int(kernel.S.mms[0].perf_rdpmc_allowed) == 2
    assert kernel.call("close", fd) == 0
    assert sum(int(e.used) for e in kernel.S.perf_events) == 1
    assert kernel.call("munmap", 0x2000_0000, PAGE) == -ERRNO["EINVAL"]  # a part of it
    assert kernel.call("munmap", 0x2000_0000, 2 * PAGE) == 0
    assert sum(int(e.used) for e in kernel.S.perf_events) == 1
    second = next(int(v.start) for v in kernel.S.mms[0].vmas if v.length and int(v.kind) == 1)
    assert kernel.call("munmap", second, 2 * PAGE) == 0
    assert not any(e.used for e in kernel.S.perf_events)
    assert int(kernel.S.mms[0].perf_rdpmc_allowed) == 0
    assert kernel.pages_in_use() - before <= 4  # the page of attributes, tables


RDPMC = """
.text
_start:
    lea rdi, attr[rip]
    xor esi, esi
    mov edx, -1
    mov r10d, -1
    xor r8d, r8d
    CALL_LINUX perf_event_open
    mov ebx, eax
    xor edi, edi
    mov esi, 4096
    mov edx, 1
    mov r10d, 1
    mov r8d, ebx
    xor r9d, r9d
    CALL_LINUX mmap
    mov rbp, rax
    call read_counter
    mov r12, rax
    mov ecx, 500
1:  dec ecx
    jnz 1b
    call read_counter
    sub rax, r12
    # two calls apart: loop, and what stands between two RDPMCs
    mov edi, 99
    sub rax, 1000
    js 2f
    mov rdi, rax
2:  CALL_LINUX exit

read_counter:
3:  mov r8d, [rbp + 8]
    mov ecx, [rbp + 12]
    mov rsi, [rbp + 16]
    test ecx, ecx
    jz 4f
    dec ecx
    rdpmc
    shl rdx, 32
    or rax, rdx
    shl rax, 16
    sar rax, 16
    add rax, rsi
    cmp r8d, [rbp + 8]
    jne 3b
    ret
4:  EXIT 98

.data
.balign 8
attr:
    .long 0, 136
    .quad 1, 0, 0, 0, PERF_ATTR_EXCLUDE_KERNEL
    .skip 136 - 48
"""


def test_rdpmc_by_the_control_page():
    (code,) = Kernel(RDPMC).run().exit_codes()
    assert code == 18  # from RDPMC to RET nine, two MOVs, CALL, six to the next RDPMC


def test_rdpmc_without_a_page_faults():
    body = ".text\n_start:\n    xor ecx, ecx\n    rdpmc\n    EXIT 0\n"
    assert Kernel(body).run().exit_codes() == [-11]


def test_set_output_shares_a_ring():
    kernel = Kernel().start()
    sampled = {"sample_period": 300, "sample_type": 0x10041, "flags": USER}
    a, b = event(kernel, **sampled), event(kernel, **sampled)
    request = constant("PERF_EVENT_IOC_SET_OUTPUT")
    assert kernel.call("ioctl", b, request, a) == -ERRNO["EINVAL"]  # a has no ring
    at = kernel.call("mmap", 0, 3 * PAGE, 3, SHARED, a, 0)
    assert kernel.call("ioctl", b, request, a) == 0
    assert kernel.call("mmap", 0, 3 * PAGE, 3, SHARED, b, 0) == -ERRNO["EBUSY"]
    assert kernel.call("mmap", 0, 2 * PAGE, 3, SHARED, b, 0) == -ERRNO["EINVAL"]
    assert kernel.call("ioctl", a, request, (1 << 64) - 1) == -ERRNO["EINVAL"]  # it is mapped
    kernel.run(60_000)
    records, ids = kernel.host.get_user(at + 1024, 8) // 32, set()
    assert records >= 8
    for k in range(records):
        ids.add(kernel.host.get_user(at + PAGE + 32 * k + 8, 8))  # PERF_SAMPLE_IDENTIFIER is first
    assert ids == {1, 2}
    assert kernel.call("ioctl", a, constant("PERF_EVENT_IOC_PAUSE_OUTPUT"), 1) == 0
    kernel.run(20_000)
    assert kernel.host.get_user(at + 1024, 8) // 32 == records
    assert kernel.call("ioctl", b, request, (1 << 64) - 1) == 0
    assert kernel.call("ioctl", a, constant("PERF_EVENT_IOC_PAUSE_OUTPUT"), 0) == 0
    kernel.run(30_000)
    more = (kernel.host.get_user(at + 1024, 8) - 24) // 32
    after = at + PAGE + 24  # PERF_RECORD_LOST: what came while it was paused
    assert kernel.host.get_user(at + PAGE + 32 * records, 4) == 2
    assert {kernel.host.get_user(after + 32 * k + 8, 8) for k in range(records, more)} == {1}


def test_the_output_of_an_output_is_one_ring():
    """PERF_FLAG_FD_OUTPUT with an event that writes elsewhere itself."""
    kernel = Kernel().start()
    sampled = {"sample_period": 300, "sample_type": 0x10041, "flags": USER}
    a, b = event(kernel, **sampled), event(kernel, **sampled)
    at = kernel.call("mmap", 0, 3 * PAGE, 3, SHARED, a, 0)
    assert kernel.call("ioctl", b, constant("PERF_EVENT_IOC_SET_OUTPUT"), a) == 0
    both = c("FLAG_FD_OUTPUT") | c("FLAG_FD_NO_GROUP")
    assert event(kernel, group=b, open_flags=both, **sampled) > 0
    kernel.run(60_000)
    records = kernel.host.get_user(at + 1024, 8) // 32
    ids = {kernel.host.get_user(at + PAGE + 32 * k + 8, 8) for k in range(records)}
    assert ids == {1, 2, 3}


@pytest.mark.parametrize(("kind", "allowed"), [(HARDWARE, 1), (SOFTWARE, 0)])
def test_only_a_page_of_the_core_pmu_allows_rdpmc(kind, allowed):
    kernel = Kernel().start()
    fd = event(kernel, type=kind)
    at = kernel.call("mmap", 0, PAGE, 3, SHARED, fd, 0)
    found = STRUCTS["perf_event_mmap_page"].read(kernel.host.copy_from_user(at, 1088))
    assert int(found["capabilities"]) == 0b11010 | allowed << 2
    assert int(kernel.S.mms[0].perf_rdpmc_allowed) == allowed


def test_an_uncore_event_counts_whichever_core_it_was_asked_of():
    kernel = Kernel(IDLE, cores=2).start()
    fds = [event(kernel, pid=-1, cpu=k, type=UNCORE, config=1) for k in (0, 1)]
    assert event(kernel, pid=-1, cpu=1, type=UNCORE, config=1, group=fds[0]) > 0
    kernel.run(2000)
    kernel.S.this_cpu = 0
    values = [words(kernel, fd)[0] for fd in fds]
    assert min(values) >= 2000


# --- what becomes of events -----------------------------------------------------------------------------
@pytest.mark.slow
def test_events_of_a_dead_thread_can_be_read():
    kernel = Kernel(IDLE, IDLE).start()
    fd = event(kernel, pid=2, flags=USER)
    kernel.run(60_000)
    value = words(kernel, fd)[0]
    assert value > 0
    do_exit(kernel.host, 1, 0)
    last = words(kernel, fd)[0]
    assert last >= value
    assert kernel.call("ioctl", fd, constant("PERF_EVENT_IOC_ENABLE"), 0) == 0
    assert words(kernel, fd)[0] == last
    assert event(kernel, pid=2) == -ERRNO["ESRCH"]
    assert kernel.call("close", fd) == 0


def test_an_event_of_another_core():
    kernel = Kernel(IDLE, IDLE, cores=2).start()
    kernel.run(2000)
    kernel.S.this_cpu = 0
    fd = event(kernel, pid=-1, cpu=1, flags=USER, read_format=3)
    first = words(kernel, fd)
    kernel.run(3000)
    kernel.S.this_cpu = 0
    second = words(kernel, fd)
    assert second[0] - first[0] > 1000
    assert second[1] - first[1] == second[2] - first[2] > 0


def test_the_kernel_stops_an_event_where_it_is():
    """event_function_call(): KVM has events of another thread when a second one runs their vCPU."""
    kernel = Kernel(IDLE, IDLE, cores=2).start()
    kernel.run(2000)
    S, here = kernel.S, 1 - int(kernel.S.tasks[1].on_cpu)
    S.this_cpu = here
    fd = event(kernel, pid=2, flags=USER | c("ATTR_PINNED"), sample_period=1 << 40)
    row = next(k for k, e in enumerate(S.perf_events) if e.used)
    there = S.percpu[1 - here]
    counting = 1 << int(S.perf_events[row].idx) - 8 + 32
    kernel.run(3000)
    S.this_cpu = here
    assert kernel.host.kernel_call(CALL_PERF_READ, row) > 1000
    calls = (CALL_PERF_DISABLE, 0), (CALL_PERF_PERIOD, 0), (CALL_PERF_ENABLE, 1), (CALL_PERF_PERIOD, 1)
    for call, on in calls:
        kernel.host.kernel_call(call, row, 1 << 41)
        assert int(S.this_cpu) == here
        assert (int(there.n_events), int(there.active_mask)) == (on, counting * on)
        assert int(S.perf_events[row].state) == (1 if on else -1)
    assert int(S.perf_events[row].period) == 1 << 41
    kernel.host.kernel_call(CALL_PERF_RELEASE, row)
    assert (int(there.n_events), int(there.active_mask), int(S.percpu[here].n_events)) == (0, 0, 0)
    assert fd > 0


@pytest.mark.slow
def test_inherited_events_count_threads():
    """A thread made later adds to the event, alive and gone; one without inherit does not see it."""
    kernel = Kernel().start()
    flags = USER | c("ATTR_INHERIT")
    leader = event(kernel, flags=flags, read_format=3)
    member = event(kernel, flags=flags, group=leader, read_format=3)
    alone = event(kernel, flags=USER, read_format=3)
    stack = kernel.page()
    child = kernel.call("clone", 0x10F00, stack + PAGE)
    assert child == 2
    assert sum(int(e.used) for e in kernel.S.perf_events) == 5
    kernel.run(100_000)
    kernel.S.this_cpu = 0
    counts = [words(kernel, fd)[0] for fd in (leader, member, alone)]
    own, both = counts[2], counts[0]
    assert abs(counts[0] - counts[1]) < 20
    assert own < both - 5_000
    row = next(k for k, t in enumerate(kernel.S.tasks) if int(t.pid) == child)
    do_exit(kernel.host, row, 0)
    after = [words(kernel, fd) for fd in (leader, member, alone)]
    assert after[0][0] >= both
    assert after[0][1] > after[2][1]  # times add up as well
    assert sum(int(e.used) for e in kernel.S.perf_events) == 3
    assert [kernel.call("close", fd) for fd in (leader, member, alone)] == [0, 0, 0]
    assert not any(e.used for e in kernel.S.perf_events)


def test_a_group_that_grew_after_a_task_inherited_it_is_not_read():
    """__perf_read_group_add(): ECHILD, for what the child counts belongs to other members."""
    kernel = Kernel().start()
    flags = USER | c("ATTR_INHERIT")
    leader = event(kernel, flags=flags, read_format=GROUP)
    member = event(kernel, flags=flags, group=leader, read_format=GROUP)
    stack = kernel.page()
    assert kernel.call("clone", 0x10F00, stack + PAGE) == 2
    assert words(kernel, leader)[0] == words(kernel, member)[0] == 2
    third = event(kernel, flags=flags, group=leader)
    at = kernel.page()
    for fd in (leader, member):
        assert kernel.call("read", fd, at, 4096) == -ERRNO["ECHILD"]
    kernel.call("close", third)
    assert kernel.call("read", leader, at, 4096) == -ERRNO["ECHILD"]  # as many as before, but changed
    row = next(k for k, t in enumerate(kernel.S.tasks) if int(t.pid) == 2)
    do_exit(kernel.host, row, 0)
    assert words(kernel, leader)[0] == 2


@pytest.mark.slow
def test_a_thread_that_cannot_inherit_is_not_made():
    kernel = Kernel().start()
    at = kernel.page(attr(flags=USER | c("ATTR_INHERIT")))
    for _ in range(N_EVENTS - 2):
        assert kernel.call("perf_event_open", at, 0, -1, -1, 0) > 0
    stack = kernel.page()
    assert kernel.call("clone", 0x10F00, stack + PAGE) == -ERRNO["ENOMEM"]
    assert sum(int(e.used) for e in kernel.S.perf_events) == N_EVENTS - 2
    assert [int(t.used) for t in kernel.S.tasks[:2]] == [1, 0]
    assert int(kernel.S.mms[0].users) == 1


def test_inherited_events_cannot_be_mapped_for_all_cores():
    kernel = Kernel().start()
    fd = event(kernel, flags=USER | c("ATTR_INHERIT"))
    assert kernel.call("mmap", 0, PAGE, 3, SHARED, fd, 0) == -ERRNO["EINVAL"]
    fd = event(kernel, flags=USER | c("ATTR_INHERIT"), cpu=0)
    assert kernel.call("mmap", 0, PAGE, 3, SHARED, fd, 0) > 0
