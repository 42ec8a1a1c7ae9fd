"""Programs as processes: loaded, started, sleeping, threads, ended, and nothing of them left."""

from __future__ import annotations

import pytest

from tests.linux.syscalls.kernel import IDLE, MEMORY, TICK, Kernel
from vpmu_emu.linux.state import N_TASKS, TASK_DEAD
from vpmu_emu.machine.state import RSP
from vpmu_emu.tables.linux import ERRNO, STRUCTS

pytestmark = pytest.mark.uncompiled

HELLO = """
.text
_start:
    mov edi, 1
    lea rsi, text[rip]
    mov edx, 6
    CALL_LINUX write
    mov edi, eax
    CALL_LINUX exit
.data
text: .ascii "hello\\n"
"""


SLEEPER = """
.text
_start:
    lea rdi, wanted[rip]
    xor esi, esi
    CALL_LINUX nanosleep
    jmp _start
.data
wanted: .quad 1000, 0
"""


def test_a_program_writes_and_exits():
    kernel = Kernel(HELLO).run()
    assert (kernel.text, kernel.exit_codes()) == ("hello\n", [6])


def test_what_the_console_has_no_room_for_is_counted():
    kernel = Kernel(HELLO)
    room = len(kernel.E.serial)
    for core in kernel.S.cores:
        core.serial_len = room - 2
    kernel.run()
    assert bytes(kernel.E.serial[room - 2 :]) == b"he"
    assert {int(core.serial_len) for core in kernel.S.cores} == {room + 4}
    assert kernel.exit_codes() == [6]


def test_two_processes_of_one_image_do_not_share():
    body = """
    .text
    _start:
        mov ecx, 3000
    1:  inc qword ptr counter[rip]
        dec ecx
        jnz 1b
        CALL_LINUX sched_yield
        mov rdi, counter[rip]
        shr rdi, 4
        CALL_LINUX exit
    .data
    counter: .quad 0
    """
    assert Kernel(body, body).run().exit_codes() == [3000 >> 4, 3000 >> 4]


def test_stack_as_the_abi_has_it():
    kernel = Kernel(IDLE).start()
    host = kernel.host
    rsp = int(kernel.S.tasks[0].regs[RSP])
    assert rsp % 16 == 0
    assert host.get_user(rsp, 8) == 1
    argv0 = host.get_user(rsp + 8, 8)
    assert host.copy_from_user(argv0, 9) == b"program0\0"
    assert host.get_user(rsp + 16, 8) == 0  # argv ends
    assert host.get_user(rsp + 24, 8) == 0  # envp is empty
    assert [host.get_user(rsp + 32 + 8 * k, 8) for k in range(6)] == [
        6, 4096, 9, host.programs[0].entry, 0, 0,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "signal"),
    [
        ("mov rax, [0]", 11),
        ("mov [rip + _start], eax", 11),  # .text is read-only
        ("mov rax, [0x400000000000]", 11),
        ("ud2", 4),
        ("xor ecx, ecx\n    div ecx", 8),
        ("int3", 5),
        ("int 0x21", 11),
        ("hlt", 11),
        ("rdmsr", 11),
        ("in al, 0x80", 11),
    ],
)
def test_exceptions_are_signals(body, signal):
    kernel = Kernel(f".text\n_start:\n    {body}\n    EXIT 0\n").run()
    assert kernel.exit_codes() == [-signal]


def test_iopl_opens_the_ports():
    body = """
    .text
    _start:
        mov edi, 3
        CALL_LINUX iopl
        test eax, eax
        jnz 1f
        in al, 0x80
        EXIT 7
    1:  EXIT 1
    """
    assert Kernel(body).run().exit_codes() == [7]


THREAD = """
.text
_start:
    mov edi, CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM
    lea rsi, stack_top[rip]
    xor edx, edx
    xor r10d, r10d
    xor r8d, r8d
    CALL_LINUX clone
    test eax, eax
    js 9f
    jz child
    mov child_pid[rip], eax
1:  CALL_LINUX sched_yield
    cmp qword ptr done[rip], 0
    je 1b
    mov edi, child_pid[rip]
    cmp edi, done[rip]
    jne 9f
    CALL_LINUX getpid
    mov edi, eax
    CALL_LINUX exit_group
9:  EXIT 99
child:
    push rax
    CALL_LINUX gettid
    mov done[rip], eax
    mov edi, 5
    CALL_LINUX exit
.data
done: .quad 0
child_pid: .quad 0
.balign 16
    .skip 256
stack_top: .quad 0
"""


@pytest.mark.parametrize("cores", [1, 2])
def test_a_thread_shares_memory(cores):
    kernel = Kernel(THREAD, cores=cores).run()
    assert kernel.exit_codes() == [1, 5]
    assert [int(t.tgid) for t in kernel.S.tasks[:2]] == [1, 1]
    assert [int(t.pid) for t in kernel.S.tasks[:2]] == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("cores", [1, 2])
def test_exit_group_ends_a_thread_that_spins(cores):
    body = THREAD.replace("push rax", "1: mov byte ptr done[rip], 2\n    jmp 1b")
    kernel = Kernel(body, cores=cores).run()
    assert kernel.exit_codes() == [1, 1]


def test_nothing_is_left_of_a_process():
    before = int(Kernel(SLEEPER).host.mem_map.tolist().count(1))
    kernel = Kernel(SLEEPER, HELLO).run()
    assert kernel.exit_codes() == [None, 6]
    assert int(kernel.host.mem_map.tolist().count(1)) == before
    assert sum(1 for f in kernel.S.files if f.kind) == 3
    assert [int(mm.users) for mm in kernel.S.mms] == [1, 0, 0, 0, 0, 0]


def test_tasks_run_out_and_rows_are_used_again():
    kernel = Kernel().start()
    thread = 0x10F00
    stack = kernel.page()
    results = [kernel.call("clone", thread, stack + 4096) for _ in range(N_TASKS)]
    assert results == [*range(2, N_TASKS + 1), -ERRNO["EAGAIN"]]
    kernel.S.tasks[3].state = TASK_DEAD
    assert kernel.call("clone", thread, stack + 4096) == N_TASKS + 1


@pytest.mark.parametrize(
    ("flags", "errno"),
    [(0x10000, "EINVAL"), (0x10800, "EINVAL"), (0x800, "EINVAL"), (17, "ENOSYS"), (0x100, "ENOSYS")],
)
def test_clone_wants_a_thread(flags, errno):
    assert Kernel().start().call("clone", flags) == -ERRNO[errno]


def test_nanosleep_takes_its_time():
    body = """
    .text
    _start:
        lea rdi, wanted[rip]
        xor esi, esi
        CALL_LINUX nanosleep
        mov edi, eax
        CALL_LINUX exit
    .data
    wanted: .quad 0, 250000
    """
    kernel = Kernel(body).run()
    assert kernel.exit_codes() == [0]
    took = kernel.host.ns(int(kernel.S.cores[0].t))
    assert 250_000 < took < 300_000


@pytest.mark.parametrize(("seconds", "ns"), [(-1, 0), (0, 10**9), (0, -1), (-5, 5)])
def test_nanosleep_wants_a_time(seconds, ns):
    kernel = Kernel().start()
    row = STRUCTS["timespec"]
    at = kernel.page(row.new(tv_sec=seconds, tv_nsec=ns).tobytes())
    assert kernel.call("nanosleep", at) == -ERRNO["EINVAL"]
    assert kernel.call("nanosleep", 8) == -ERRNO["EFAULT"]


def test_a_very_long_sleep_is_only_long():
    kernel = Kernel().start()
    at = kernel.page(STRUCTS["timespec"].new(tv_sec=2**62, tv_nsec=1).tobytes())
    assert kernel.call("nanosleep", at) == 0
    assert kernel.run(5_000_000).exit_codes() == [None]


def test_affinity_moves_a_task():
    body = """
    .text
    _start:
        xor edi, edi
        mov esi, 8
        lea rdx, mask[rip]
        CALL_LINUX sched_setaffinity
        test eax, eax
        jnz 9f
        lea rdi, cpu[rip]
        xor esi, esi
        CALL_LINUX getcpu
        mov edi, cpu[rip]
        add edi, 40
        CALL_LINUX exit
    9:  EXIT 99
    .data
    mask: .quad 2
    cpu: .quad 0
    """
    assert Kernel(body, cores=2).run().exit_codes() == [41]
    assert Kernel(body, cores=1).run().exit_codes() == [99]


def test_who_comes_to_a_busy_core_has_its_turn_there():
    """The other core's task needs no tick until then: nobody else wants to run."""
    busy = """
    .text
    _start: mov ecx, 3
    1:  div rcx
        jmp 1b
    """
    moves = """
    .text
    _start:
        xor edi, edi
        mov esi, 8
        lea rdx, mask[rip]
        CALL_LINUX sched_setaffinity
        mov esi, 2000
        mov ecx, 3
        xor edx, edx
    1:  div rcx
        dec esi
        jnz 1b
        mov byte ptr mask[rip], 1
        mov esi, 8
        lea rdx, mask[rip]
        CALL_LINUX sched_setaffinity
        EXIT 7
    .data
    mask: .quad 2
    """
    kernel = Kernel(busy, moves, cores=2).run(6 * TICK)
    assert kernel.exit_codes() == [None, 7]


def test_affinity_errnos():
    kernel = Kernel(cores=2).start()
    at = kernel.page(b"\1")
    assert kernel.call("sched_setaffinity", 77, 8, at) == -ERRNO["ESRCH"]
    assert kernel.call("sched_setaffinity", 0, 8, 1) == -ERRNO["EFAULT"]
    assert kernel.call("sched_setaffinity", 0, 0, 1) == -ERRNO["EINVAL"]
    assert kernel.call("sched_getaffinity", 0, 7, at) == -ERRNO["EINVAL"]
    assert kernel.call("sched_getaffinity", 0, 128, at) == 8
    assert kernel.host.get_user(at, 8) == 3


def test_clock_follows_the_tsc():
    kernel = Kernel().start()
    at = kernel.page()
    assert kernel.call("clock_gettime", 1, at) == 0
    ns = kernel.host.get_user(at, 8) * 10**9 + kernel.host.get_user(at + 8, 8)
    assert 0 <= kernel.host.ns(int(kernel.S.cores[0].t)) - ns < 5_000
    assert kernel.call("clock_gettime", 9, at) == -ERRNO["EINVAL"]


def test_memory_is_all_there_is():
    kernel = Kernel().start()
    assert kernel.call("mmap", 0, MEMORY, 3, 0x22, -1, 0) == -ERRNO["ENOMEM"]
