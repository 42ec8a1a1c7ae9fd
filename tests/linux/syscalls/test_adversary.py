"""Whatever a program asks, it gets an errno or what it asked for; nobody else's memory changes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.linux.syscalls.kernel import IDLE, MEMORY, Kernel
from vpmu_emu.linux.state import FILE_PERF, TASK_DEAD, TASK_RUNNING, VMA_PERF
from vpmu_emu.linux.syscalls import FUNCTIONS
from vpmu_emu.linux.syscalls.pagetables import PAGE, TASK_SIZE
from vpmu_emu.machine.state import RAX, RDI, RDX, RSI
from vpmu_emu.tables.linux import ERRNO, IOCTLS, STRUCTS, SYSCALLS

pytestmark = pytest.mark.uncompiled

ARGUMENTS = (RDI, RSI, RDX, 10, 8, 9)
ERRNOS = {-number for number in ERRNO.values()}
NUMBERS = {row.name: row.number for row in SYSCALLS.values()}
KNOWN = sorted(number for number in FUNCTIONS if SYSCALLS[number].name not in ("exit", "exit_group"))
AREA = 0x2000_0000  # a page of the program's own, full of attributes and numbers
TOP = (1 << 64) - 1

pointers = st.one_of(
    st.sampled_from(
        (0, 1, AREA, AREA + 4, AREA + 512, AREA + PAGE - 1, AREA + PAGE, 0x7FFF_EFF0, 0x10_0000)
    ),
    st.sampled_from((TASK_SIZE - 1, TASK_SIZE, 1 << 47, 1 << 63, TOP, TOP - 4095, MEMORY)),
    st.integers(0, TOP),
)
lengths = st.sampled_from(
    (0, 1, 7, 8, 16, 64, PAGE, 2 * PAGE, 3 * PAGE, 1 << 20, 1 << 31, 1 << 46, 1 << 63, TOP)
)
small = st.one_of(st.integers(0, 9), st.sampled_from((TOP, TOP - 1, 1 << 31, (1 << 32) - 1, 3, 4, 5)))
requests = st.one_of(
    st.sampled_from([row.number for row in IOCTLS if row.on == "perf"]), st.integers(0, TOP)
)
flags = st.sampled_from((0x22, 0x32, 0x40022, 0x40032, 1, 2, 0x11, 0x10F00, 0, 8, TOP))
anything = st.one_of(small, pointers, lengths, requests, flags)

attributes = st.builds(
    lambda bits, **values: STRUCTS["perf_event_attr"].new(flags=bits, **values).tobytes() + bytes(64),
    st.one_of(st.just(0), st.integers(0, (1 << 21) - 1), st.integers(0, TOP)),
    type=st.sampled_from((0, 0, 1, 3, 4, 4, 8, 2, 99)),
    size=st.sampled_from((0, 64, 136, 144, 200, 1, 4097)),
    config=st.one_of(st.integers(0, 12), st.sampled_from((0xC0, 0xC4, 0x3C, 0x4F2E, 0x10000))),
    sample_period=st.one_of(st.just(0), st.sampled_from((1, 2, 50, 1000, 100_000, 1 << 63, TOP))),
    sample_type=st.one_of(st.just(0), st.integers(0, 0x3FF), st.integers(0, 1 << 26)),
    read_format=st.one_of(st.integers(0, 31), st.integers(0, TOP)),
)
calls = st.tuples(st.one_of(st.sampled_from(KNOWN), st.integers(0, TOP)), st.tuples(*[anything] * 6))
likely = st.one_of(
    st.tuples(
        st.just(NUMBERS["perf_event_open"]),
        st.tuples(st.just(AREA), small, small, small, st.sampled_from((0, 0, 1, 2, 8)), small),
    ),
    st.tuples(st.just(NUMBERS["ioctl"]), st.tuples(small, requests, anything, small, small, small)),
    st.tuples(st.just(NUMBERS["read"]), st.tuples(small, pointers, lengths, small, small, small)),
    st.tuples(
        st.just(NUMBERS["mmap"]), st.tuples(pointers, lengths, small, flags, small, lengths)
    ),
    st.tuples(st.just(NUMBERS["munmap"]), st.tuples(pointers, lengths, small, small, small, small)),
    st.tuples(st.just(NUMBERS["close"]), st.tuples(*[small] * 6)),
)


def others_memory(kernel):
    """All bytes of the second process, its tables apart, whose accessed bits are the hardware's."""
    return [
        bytes(kernel.M[int(v.hpa) : int(v.hpa) + int(v.length)])
        for v in kernel.S.mms[1].vmas
        if v.length
    ]


@pytest.mark.slow
@given(st.lists(st.tuples(attributes, st.one_of(likely, calls)), min_size=1, max_size=14))
@settings(max_examples=60, deadline=None)
def test_random_system_calls(wanted):
    kernel = Kernel(IDLE, IDLE, cores=2).start()
    area = (0x30_0000).to_bytes(8, "little")
    assert kernel.call("mmap", AREA, PAGE, 3, 0x32, -1, 0) == AREA
    before = others_memory(kernel)
    tables = [int(mm.cr3) for mm in kernel.S.mms[:2]]
    for attribute, (number, args) in wanted:
        # an earlier call may have taken the page away, or all mappings
        if kernel.call("mmap", AREA, PAGE, 3, 0x32, -1, 0) == AREA:
            kernel.host.copy_to_user(AREA, attribute + area)
        task = kernel.host.task
        regs = kernel.host.core.regs
        regs[RAX] = number
        for register, value in zip(ARGUMENTS, args, strict=True):
            regs[register] = value
        task.entered = 1
        kernel.handle()
        result = int(regs[RAX])
        assert int(task.entered) == 0
        if result > TOP - 4096:
            assert result - (1 << 64) in ERRNOS, (number, args, result)
        if int(task.state) != TASK_RUNNING:  # asleep or gone; a core of its own wakes it
            assert int(task.state) != TASK_DEAD
            task.state = TASK_RUNNING
        assert others_memory(kernel) == before
        for mm in kernel.S.mms[:2]:
            assert int(mm.cr3) in tables
    whole(kernel)


def whole(kernel):
    """What the record says of memory, files and events agrees."""
    S = kernel.S
    owners: set[int] = set()
    for mm in S.mms:
        for vma in mm.vmas if mm.users else ():
            if not vma.length:
                continue
            pages = set(range(int(vma.hpa) // PAGE, (int(vma.hpa) + int(vma.length)) // PAGE))
            if int(vma.kind) == VMA_PERF:
                event = S.perf_events[int(vma.obj)]
                assert event.used
                assert int(event.buffer) == int(vma.hpa)
            else:
                assert not pages & owners
            owners |= pages
    assert all(kernel.host.mem_map[page] == 1 for page in owners)
    open_events = {int(f.obj) for f in S.files if int(f.kind) == FILE_PERF}
    mapped = {int(v.obj) for mm in S.mms if mm.users for v in mm.vmas if v.length and v.kind == VMA_PERF}
    used = {i for i, e in enumerate(S.perf_events) if e.used and int(e.parent) == -1}
    assert used == open_events | mapped


@given(st.lists(st.tuples(attributes, likely), min_size=1, max_size=10))
@settings(max_examples=10, deadline=None)
def test_nothing_is_left_of_a_process_that_asked_anything(wanted):
    kernel = Kernel(IDLE).start()
    assert kernel.call("mmap", AREA, PAGE, 3, 0x32, -1, 0) == AREA
    for attribute, (number, args) in wanted:
        kernel.call("mmap", AREA, PAGE, 3, 0x32, -1, 0)
        kernel.host.copy_to_user(AREA, attribute)
        kernel.call(SYSCALLS[number].name, *args)
    kernel.call("exit_group", 0)
    assert not any(e.used for e in kernel.S.perf_events)
    assert not any(f.kind for f in kernel.S.files)
    # of memory only the map itself
    assert kernel.pages_in_use() == -(-MEMORY // PAGE // PAGE)
