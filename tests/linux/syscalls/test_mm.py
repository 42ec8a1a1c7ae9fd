"""Address spaces: what is mapped is what tables say, and nobody reaches anybody else's pages."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.linux.syscalls.kernel import IDLE, POOL, Kernel
from vpmu_emu.linux.syscalls.pagetables import PAGE, TASK_SIZE, pieces
from vpmu_emu.tables.linux import ERRNO, constant

pytestmark = pytest.mark.uncompiled

RW = constant("PROT_READ") | constant("PROT_WRITE")
ANON = constant("MAP_ANONYMOUS") | constant("MAP_PRIVATE")
FIXED, HUGE = constant("MAP_FIXED"), constant("MAP_HUGETLB")
TOP = (1 << 64) - 1


def readable(kernel, at):
    return pieces(kernel.host.words, int(kernel.host.mm.cr3), at, 1, False) is not None


def writable(kernel, at):
    return pieces(kernel.host.words, int(kernel.host.mm.cr3), at, 1, True) is not None


@pytest.mark.parametrize(
    ("args", "errno"),
    [
        ((0, 0, RW, ANON, -1, 0), "EINVAL"),
        ((0, PAGE, RW, ANON, -1, 1), "EINVAL"),
        ((0, PAGE, RW, constant("MAP_ANONYMOUS"), -1, 0), "EINVAL"),  # neither shared nor private
        ((0, TOP, RW, ANON, -1, 0), "ENOMEM"),
        ((0, 1 << 46, RW, ANON, -1, 0), "ENOMEM"),
        ((1, PAGE, RW, ANON | FIXED, -1, 0), "EINVAL"),
        ((TASK_SIZE, PAGE, RW, ANON | FIXED, -1, 0), "ENOMEM"),
        ((0, POOL + PAGE, RW, ANON | HUGE, -1, 0), "ENOMEM"),
        ((0, PAGE, RW, constant("MAP_PRIVATE"), 77, 0), "EBADF"),
        ((0, PAGE, RW, constant("MAP_PRIVATE"), 1, 0), "ENODEV"),
    ],
)
def test_mmap_errnos(args, errno):
    assert Kernel().start().call("mmap", *args) == -ERRNO[errno]


def test_the_first_huge_mapping_is_at_the_bottom_of_memory():
    kernel = Kernel().start()
    at = kernel.call("mmap", 0, POOL, RW, ANON | HUGE, -1, 0)
    kernel.host.copy_to_user(at, b"abc")
    assert bytes(kernel.M[:3]) == b"abc"
    assert kernel.call("mmap", 0, PAGE, RW, ANON | HUGE, -1, 0) == -ERRNO["ENOMEM"]
    assert kernel.call("munmap", at, POOL) == 0
    again = kernel.call("mmap", 0, POOL, RW, ANON | HUGE, -1, 0)
    assert kernel.host.copy_from_user(again, 3) == b"\0\0\0"


def test_protection_is_what_copies_obey():
    kernel = Kernel().start()
    at = kernel.call("mmap", 0, 3 * PAGE, RW, ANON, -1, 0)
    kernel.host.copy_to_user(at, b"x" * 3 * PAGE)
    assert kernel.call("mprotect", at + PAGE, PAGE, constant("PROT_READ")) == 0
    assert kernel.call("mprotect", at + 2 * PAGE, PAGE, 0) == 0
    assert [readable(kernel, at + k * PAGE) for k in range(3)] == [True, True, False]
    assert [writable(kernel, at + k * PAGE) for k in range(3)] == [True, False, False]
    # all of it or nothing
    assert kernel.call("read", 0, at, 0) == 0
    before = kernel.host.copy_from_user(at, 2 * PAGE)
    fd = kernel.call("openat", -100, kernel.page(b"/proc/sys/kernel/watchdog\0"), 0, 0)
    assert kernel.call("read", fd, at + PAGE - 1, 100) == -ERRNO["EFAULT"]
    assert kernel.host.copy_from_user(at, 2 * PAGE) == before
    assert kernel.call("mprotect", at, 3 * PAGE, RW) == 0
    assert kernel.host.copy_from_user(at, 3 * PAGE) == b"x" * 3 * PAGE
    assert kernel.call("mprotect", 0x2000_0000, PAGE, RW) == -ERRNO["ENOMEM"]
    assert kernel.call("mprotect", at + 1, PAGE, RW) == -ERRNO["EINVAL"]


def test_a_hole_in_the_middle():
    kernel = Kernel().start()
    free = int((kernel.host.mem_map != 1).sum())
    at = kernel.call("mmap", 0, 5 * PAGE, RW, ANON, -1, 0)
    for k in range(5):
        kernel.host.copy_to_user(at + k * PAGE, bytes([k]))
    assert kernel.call("munmap", at + 2 * PAGE, PAGE) == 0
    assert [readable(kernel, at + k * PAGE) for k in range(5)] == [True, True, False, True, True]
    assert [kernel.host.get_user(at + k * PAGE, 1) for k in (0, 1, 3, 4)] == [0, 1, 3, 4]
    assert kernel.call("mmap", 0, PAGE, RW, ANON, -1, 0) == at + 2 * PAGE
    assert kernel.host.get_user(at + 2 * PAGE, 1) == 0  # never what somebody left there
    assert kernel.call("munmap", at, 5 * PAGE) == 0
    assert free - int((kernel.host.mem_map != 1).sum()) <= 2  # tables stay until the process ends


def test_mappings_run_out():
    kernel = Kernel().start()
    at = [kernel.call("mmap", 0, PAGE, RW, ANON, -1, 0) for _ in range(20)]
    assert at[-1] == -ERRNO["ENOMEM"]
    good = [a for a in at if a > 0]
    # a hole needs one more mapping
    big = good[0]
    assert kernel.call("munmap", good[-1], PAGE) == 0
    assert kernel.call("mmap", big, 3 * PAGE, RW, ANON | FIXED, -1, 0) == big
    while kernel.call("mmap", 0, PAGE, RW, ANON, -1, 0) > 0:
        pass
    assert kernel.call("munmap", big + PAGE, PAGE) == -ERRNO["ENOMEM"]
    assert readable(kernel, big + PAGE)


@pytest.mark.parametrize(
    ("address", "length"), [(1, PAGE), (0, 0), (TASK_SIZE, PAGE), (TOP & ~4095, PAGE), (PAGE, TOP)]
)
def test_munmap_errnos(address, length):
    assert Kernel().start().call("munmap", address, length) == -ERRNO["EINVAL"]


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_pages_belong_to_one_mapping(data):
    """After any mmaps, munmaps and mprotects no physical page is mapped twice and all are accounted for."""
    kernel = Kernel(IDLE, IDLE).start()
    other = [int(v.hpa) for v in kernel.S.mms[1].vmas if v.length]
    secret = bytes(kernel.M[other[0] : other[0] + 64])
    page = st.integers(0, 12).map(lambda k: 0x1000_0000 + k * PAGE)
    for _ in range(data.draw(st.integers(1, 12))):
        at, n = data.draw(page), data.draw(st.integers(1, 5)) * PAGE
        what = data.draw(st.sampled_from(("mmap", "munmap", "mprotect")))
        if what == "mmap":
            flags = ANON | data.draw(st.sampled_from((0, FIXED, HUGE, FIXED | HUGE)))
            result = kernel.call("mmap", at, n, data.draw(st.sampled_from((0, 1, RW))), flags, -1, 0)
        elif what == "munmap":
            result = kernel.call("munmap", at, n)
        else:
            result = kernel.call("mprotect", at, n, data.draw(st.sampled_from((0, 1, RW))))
        assert result >= 0 or -result in (ERRNO["ENOMEM"], ERRNO["EINVAL"])
        owners: dict[int, int] = {}
        for row, mm in enumerate(kernel.S.mms):
            for vma in mm.vmas if mm.users else ():
                for k in range(int(vma.length) // PAGE):
                    physical = int(vma.hpa) // PAGE + k
                    assert physical not in owners
                    owners[physical] = row
                    assert kernel.host.mem_map[physical] == 1
                    found = pieces(
                        kernel.host.words, int(mm.cr3), int(vma.start) + k * PAGE, 1, False
                    )
                    assert (found is not None) == (int(vma.prot) != 0)
                    if found is not None:
                        assert next(found)[0] == physical * PAGE
    assert bytes(kernel.M[other[0] : other[0] + 64]) == secret
