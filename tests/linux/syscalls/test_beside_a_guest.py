"""Host programs beside a running guest: they reach into its core and task, and the guest sees nothing."""

from __future__ import annotations

import pytest

from tests.linux.guests import program as guest_program
from tests.linux.syscalls.kernel import program
from vpmu_emu.linux.state import TASK_DEAD
from vpmu_emu.linux.syscalls.tasks import spawn
from vpmu_emu.system import System

pytestmark = pytest.mark.uncompiled

TURNS = 12_000
GUEST = f"""
    mov ebx, {TURNS}
1:  xor edx, edx
    mov eax, 1
    mov ecx, 1
    div rcx
    lfence
    dec ebx
    jnz 1b
    EXIT 0
"""

# Opens an event, lets the guest run, reads it, closes it; its exit code says what went wrong.
OBSERVER = """
.text
_start:
    xor edi, edi
    mov esi, 8
    lea rdx, mask[rip]
    CALL_LINUX sched_setaffinity
    lea rdi, attr[rip]
    mov esi, {pid}
    mov edx, {cpu}
    mov r10d, -1
    xor r8d, r8d
    CALL_LINUX perf_event_open
    mov edi, 50
    test eax, eax
    js 9f
    mov ebx, eax
    mov ebp, 3
1:  lea rdi, nap[rip]
    xor esi, esi
    CALL_LINUX nanosleep
    mov edi, ebx
    lea rsi, counts[rip]
    mov edx, 24
    CALL_LINUX read
    mov edi, 51
    cmp eax, 24
    jne 9f
    mov rax, counts[rip]
    mov edi, 52
    cmp rax, last[rip]
    jbe 9f
    mov last[rip], rax
    dec ebp
    jnz 1b
    mov edi, ebx
    mov esi, PERF_EVENT_IOC_DISABLE
    xor edx, edx
    CALL_LINUX ioctl
    mov edi, 53
    test eax, eax
    jnz 9f
    mov edi, ebx
    CALL_LINUX close
    mov edi, eax
9:  CALL_LINUX exit
.data
.balign 8
mask: .quad {mask}
nap: .quad 0, 5000
last: .quad 0
attr:
    .long 0, 136
    .quad 1, 0, 0, 3, PERF_ATTR_EXCLUDE_HOST
    .skip 136 - 48
counts: .skip 24
"""


def beside(body, mode, cores):
    """(System, its result) of the guest with a host program beside it."""
    machine = System(guest_program(GUEST), vpmu=mode, ram=2, cores=cores, max_insns=2_000_000)
    machine.S.config.tick_interval = machine.S.config.sched_slice = 10_000 * 16
    machine.S.percpu[0].slice_end = 0
    host = machine._host
    host.programs += (program(body),)
    row = spawn(host, len(host.programs) - 1, ["observer"], [], cpu=cores - 1)
    stop = machine.run()
    assert stop.reason == "debug-exit", str(stop)
    return machine, machine.result(stop).to_json(), machine.S.tasks[row]


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize(("pid", "cpu"), [(1, -1), (-1, 0), (1, 0)])
@pytest.mark.parametrize("mode", ["emulated"])
def test_an_observer_counts_the_guest(mode, pid, cpu, cores):
    body = OBSERVER.format(pid=pid, cpu=cpu, mask=1 << cores - 1)
    machine, result, task = beside(body, mode, cores)
    assert int(task.state) == TASK_DEAD
    assert int(task.exit_code) == 0
    assert result["instructions"] == 7 * TURNS + 3  # MOV, the loop, MOV and what exits
    assert not any(e.used and int(e.owner) == 0 for e in machine.S.perf_events)
    assert all(int(p.call) == 0 for p in machine.S.percpu)
