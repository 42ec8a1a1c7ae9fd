"""Files: descriptors, the texts, the console, the guest's image, and a lockup asked for."""

from __future__ import annotations

import errno

import pytest

from tests.linux.syscalls.kernel import Kernel
from vpmu_emu.linux.state import N_FILES
from vpmu_emu.linux.syscalls.files import SYSCTLS, TEXTS
from vpmu_emu.tables.linux import ERRNO, constant

pytestmark = pytest.mark.uncompiled

AT_FDCWD, O_RDWR = constant("AT_FDCWD"), constant("O_RDWR")
IMAGE = b"\x7fELF" + bytes(range(256)) * 40


def openat(kernel, path, flags=0):
    return kernel.call("openat", AT_FDCWD, kernel.page(path.encode() + b"\0"), flags, 0)


def content(kernel, fd):
    at, found = kernel.page(size=8192), b""
    while n := kernel.call("read", fd, at, 5000):
        assert n > 0
        found += kernel.host.copy_from_user(at, n)
    return found


@pytest.mark.parametrize("path", sorted(TEXTS))
def test_texts_end_in_one_newline(path):
    kernel = Kernel().start()
    found = content(kernel, openat(kernel, path))
    assert found.endswith(b"\n")
    assert found.count(b"\n") == 1


def test_types_of_pmus():
    kernel = Kernel(cores=2).start()
    base = "/sys/bus/event_source/devices/"
    assert content(kernel, openat(kernel, base + "cpu/type")) == b"4\n"
    assert content(kernel, openat(kernel, base + "software/type")) == b"1\n"
    assert content(kernel, openat(kernel, "/sys/devices/system/cpu/online")) == b"0-1\n"
    assert content(kernel, openat(kernel, base + "cpu/events/branches")) == b"event=0xc4,umask=0x00\n"


RATE = "/proc/sys/kernel/perf_event_max_sample_rate"
PERCENT = "/proc/sys/kernel/perf_cpu_time_max_percent"


def store(kernel, path, text):
    fd = openat(kernel, path, O_RDWR)
    done = kernel.call("write", fd, kernel.page(text), len(text))
    assert kernel.call("close", fd) == 0
    return done


def test_numbers_of_the_kernel_can_be_set():
    kernel = Kernel().start()
    config = kernel.S.config
    assert (int(config.max_samples_per_tick), int(config.sample_allowed)) == (400, 7500 * 16)
    assert store(kernel, RATE, b" 20001\n\0") == 8
    assert content(kernel, openat(kernel, RATE)) == b"20001\n"
    assert int(config.max_samples_per_tick) == 81
    assert abs(int(config.sample_allowed) - 37_500 * 16) < 100  # a quarter of 50 µs at 3 GHz
    assert store(kernel, PERCENT, b"50") == 2
    assert abs(int(config.sample_allowed) - 75_000 * 16) < 100
    assert store(kernel, PERCENT, b"100") == 3
    assert int(config.sample_allowed) == 0
    assert store(kernel, RATE, b"1000") == -ERRNO["EINVAL"]  # there is no limit to set
    assert content(kernel, openat(kernel, RATE)) == b"20001\n"


@pytest.mark.parametrize("text", [b"0", b"-5", b"x", b"12x", b"\n", b"0x10", b"2147483648", b"1" * 5000])
def test_what_is_no_number_sets_nothing(text):
    kernel = Kernel().start()
    assert store(kernel, RATE, text) == -ERRNO["EINVAL"]
    assert content(kernel, openat(kernel, RATE)) == b"100000\n"


def test_other_texts_are_read_only():
    kernel = Kernel().start()
    at = kernel.page()
    for path in sorted(set(TEXTS) - set(SYSCTLS)):
        kernel.host.copy_to_user(at, path.encode() + b"\0")
        assert kernel.call("openat", AT_FDCWD, at, O_RDWR, 0) == -ERRNO["EACCES"]
    fd = openat(kernel, RATE, O_RDWR)
    assert kernel.call("write", fd, 1 << 40, 5) == -ERRNO["EFAULT"]
    assert kernel.call("write", openat(kernel, RATE), kernel.page(b"7"), 1) == -ERRNO["EBADF"]


def test_the_guests_image():
    kernel = Kernel(guest=IMAGE).start()
    fd = openat(kernel, "/guest")
    assert content(kernel, fd) == IMAGE
    assert kernel.call("read", fd, kernel.page(), 10) == 0
    at = kernel.page()
    assert kernel.call("pread64", fd, at, 4, 1) == 4
    assert kernel.host.copy_from_user(at, 4) == IMAGE[1:5]
    assert kernel.call("lseek", fd, -3, 2) == len(IMAGE) - 3
    assert content(kernel, fd) == IMAGE[-3:]
    assert kernel.call("lseek", fd, -1, 0) == -ERRNO["EINVAL"]
    assert kernel.call("lseek", fd, 0, 9) == -ERRNO["EINVAL"]
    assert kernel.call("lseek", 1, 0, 0) == -ERRNO["ESPIPE"]
    assert openat(Kernel().start(), "/guest") == -ERRNO["ENOENT"]


def test_the_lowest_free_number():
    kernel = Kernel().start()
    path = "/proc/sys/kernel/watchdog"
    assert [openat(kernel, path) for _ in range(3)] == [3, 4, 5]
    assert kernel.call("close", 4) == 0
    assert kernel.call("close", 4) == -ERRNO["EBADF"]
    assert openat(kernel, path) == 4
    assert kernel.call("close", 0) == 0
    assert openat(kernel, path) == 0


def test_files_run_out():
    kernel = Kernel().start()
    path = kernel.page(b"/proc/sys/kernel/watchdog\0")
    got = [kernel.call("openat", AT_FDCWD, path, 0, 0) for _ in range(N_FILES)]
    assert got == [*range(3, N_FILES), *[-ERRNO["ENFILE"]] * 3]


@pytest.mark.parametrize(
    ("path", "flags", "name"),
    [
        ("", 0, "ENOENT"),
        ("/nowhere", 0, "ENOENT"),
        ("/proc/sys/kernel/watchdog/", 0, "ENOTDIR"),
        ("/new", constant("O_CREAT") | 1, "EROFS"),
        ("/proc/sys/kernel/watchdog", 1, "EACCES"),
        ("/" + "x" * 4096, 0, "ENAMETOOLONG"),
    ],
)
def test_open_errnos(path, flags, name):
    assert openat(Kernel().start(), path, flags) == -ERRNO[name]


def test_odd_spellings_of_a_path():
    kernel = Kernel().start()
    assert openat(kernel, "//proc/./sys///kernel/watchdog") == 3
    assert openat(kernel, "proc/sys/kernel/watchdog") == 4  # the working directory is /
    relative = kernel.page(b"watchdog\0")
    assert kernel.call("openat", 77, relative, 0, 0) == -ERRNO["EBADF"]
    assert kernel.call("openat", 1, relative, 0, 0) == -ERRNO["ENOTDIR"]
    assert kernel.call("openat", AT_FDCWD, 0, 0, 0) == -ERRNO["EFAULT"]


def test_a_path_may_end_where_memory_does():
    kernel = Kernel().start()
    path = b"/proc/sys/kernel/watchdog\0"
    at = kernel.page() + 4096 - len(path)
    kernel.host.copy_to_user(at, path)
    assert kernel.call("openat", AT_FDCWD, at, 0, 0) == 3
    kernel.host.copy_to_user(at, path[:-1] + b"x")
    assert kernel.call("openat", AT_FDCWD, at, 0, 0) == -ERRNO["EFAULT"]


def test_console_is_not_endless():
    kernel = Kernel().start()
    size = 64 << 10
    at = kernel.call("mmap", 0, size, 3, 0x22, -1, 0)
    for _ in range(40):
        assert kernel.call("write", 1, at, size) == size
    assert len(kernel.text) <= len(kernel.E.serial)
    assert kernel.call("write", 2, 8, 1) == -ERRNO["EFAULT"]
    assert kernel.call("write", 2, at, (1 << 64) - 1) == -ERRNO["EFAULT"]
    assert kernel.call("read", 0, at, 10) == 0


def test_lkdtm():
    kernel = Kernel().start()
    path = "/sys/kernel/debug/provoke-crash/DIRECT"
    fd = openat(kernel, path, 2)
    assert b"HARDLOCKUP" in content(kernel, fd)
    assert kernel.call("write", fd, kernel.page(b"NOTHING\n"), 8) == -ERRNO["EINVAL"]
    assert kernel.call("write", fd, kernel.page(), 5000) == -ERRNO["EINVAL"]
    assert int(kernel.S.percpu[0].lockup) == 0
    reader = openat(kernel, path, 0)
    word = kernel.page(b"HARDLOCKUP\n")
    assert kernel.call("write", reader, word, 11) == -ERRNO["EBADF"]
    assert kernel.call("write", fd, word, 11) == 11
    assert int(kernel.S.percpu[0].lockup) == 1


def test_ioctl_needs_a_device():
    kernel = Kernel().start()
    assert kernel.call("ioctl", 1, 0x2400, 0) == -ERRNO["ENOTTY"]
    assert kernel.call("ioctl", 9, 0x2400, 0) == -ERRNO["EBADF"]


def test_errnos_are_those_of_this_system():
    for name, number in ERRNO.items():
        assert getattr(errno, name) == number


# --- files that programs make ----------------------------------------------------------------------------
O_CREAT, O_TRUNC, O_WRONLY = constant("O_CREAT"), constant("O_TRUNC"), constant("O_WRONLY")


def test_a_file_of_tmp_is_what_was_written():
    kernel = Kernel().start()
    fd = openat(kernel, "/tmp/a", O_CREAT | O_WRONLY)
    at = kernel.page(b"0123456789")
    assert kernel.call("write", fd, at, 10) == kernel.call("write", fd, at, 10) == 10
    assert kernel.call("read", fd, at, 1) == -ERRNO["EBADF"]
    other = openat(kernel, "/tmp/a", O_RDWR)
    assert kernel.call("lseek", other, 25, 0) == 25
    assert kernel.call("write", other, at, 3) == 3
    assert content(kernel, openat(kernel, "/tmp/a")) == b"0123456789" * 2 + bytes(5) + b"012"
    assert kernel.call("lseek", other, 5, 0) == 5
    assert kernel.call("write", other, at, 3) == 3
    assert content(kernel, openat(kernel, "/tmp/a")).startswith(b"0123401289")
    openat(kernel, "/tmp/a", O_TRUNC)  # for reading: nothing goes
    assert content(kernel, openat(kernel, "/tmp/a")) != b""
    openat(kernel, "/tmp/a", O_TRUNC | O_RDWR)
    assert content(kernel, openat(kernel, "/tmp/a")) == b""


def test_the_room_of_tmp_is_that_of_memory():
    kernel = Kernel().start()
    fd = openat(kernel, "/tmp/a", O_CREAT | O_WRONLY)
    at = kernel.page(size=1 << 20)
    sizes = [kernel.call("write", fd, at, 1 << 20) for _ in range(len(kernel.M) // (1 << 20) + 1)]
    assert sizes == [1 << 20] * (len(sizes) - 1) + [-ERRNO["ENOSPC"]]
    assert kernel.call("lseek", fd, 1 << 40, 0) == 1 << 40
    assert kernel.call("write", fd, at, 1) == -ERRNO["ENOSPC"]
    assert kernel.call("write", fd, 8, 1) == -ERRNO["EFAULT"]
    assert openat(kernel, "/tmp/b") == -ERRNO["ENOENT"]
    assert openat(Kernel(guest=IMAGE).start(), "/guest", O_CREAT | O_WRONLY) == -ERRNO["EROFS"]
