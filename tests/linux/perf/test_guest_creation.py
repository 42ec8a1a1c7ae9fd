"""Events that are made on one core while another gives its PMU to a guest and takes it back."""

from __future__ import annotations

import pytest

from tests.conftest import ROOT
from tests.tools.profiles import cases
from vpmu_emu.asm import assemble
from vpmu_emu.linux.syscalls import perf
from vpmu_emu.linux.syscalls.host import Errno
from vpmu_emu.linux.trace_kinds import TR_PMU_LOAD, TR_PMU_PUT
from vpmu_emu.system import System

GUEST = """
_start: mov ebp, {rounds}
1:      xor eax, eax
        mov dx, 0x3f8
        out dx, al              # the VMM's to do: it has the core, and perf the PMU
        mov ecx, {spin}
2:      dec ecx
        jnz 2b
        dec ebp
        jnz 1b
        xor eax, eax
        out 0xf4, al
"""
MAKER = """
        .include "linux.inc"
        .include "host.inc"
        .globl _start
_start: set_affinity 0, second_core
1:      perf_open attr, ANY, 0
        test rax, rax
        js 2f
        mov edi, eax
        linux close
        jmp 1b
2:      cmp rax, -EBUSY
        je 1b
        exit_program 1
        .data
        .balign 8
second_core: .quad 2
attr:   perf_attr PERF_TYPE_HARDWARE, PERF_COUNT_HW_BRANCH_INSTRUCTIONS, 0
        host_storage
"""


class _Enough(Exception):
    pass


def switched(E) -> int:
    """The last switch of core 0's PMU in the trace."""
    for k in range(int(E.ring_head) - 1, -1, -1):
        event = E.ring[k % len(E.ring)]
        if not int(event.cpu) and int(event.kind) in (TR_PMU_LOAD, TR_PMU_PUT):
            return int(event.kind)
    return TR_PMU_PUT


def creations(times: int, spin: int, monkeypatch) -> list[tuple[bool, int]]:
    """Of each whether it was EBUSY, and the last of core 0's PMU switches in the trace then."""
    maker = assemble(MAKER, str(ROOT / "guests/host/maker.s"))
    guest = assemble(GUEST.format(rounds=1 << 30, spin=spin), "guest.s")
    seen: list[tuple[bool, int]] = []
    machine = System(guest, vpmu="passthrough", cores=2, ram=2, host=[maker], trace=True)
    check = perf._check_guest

    def watched(*asked) -> None:
        if len(seen) == times:
            raise _Enough
        last = switched(machine.E)
        try:
            check(*asked)
        except Errno:
            seen.append((True, last))
            raise
        seen.append((False, last))

    monkeypatch.setattr(perf, "_check_guest", watched)
    with pytest.raises(_Enough):
        machine.run()
    return seen


@pytest.mark.uncompiled
def test_busy_where_the_trace_says_that_the_guest_has_the_pmu(monkeypatch):
    seen = creations(cases(day=200, laws=10_000, night=10_000, uncompiled=60), 3000, monkeypatch)
    assert {busy for busy, _ in seen} == {True, False}
    assert [(busy, last) for busy, last in seen if busy != (last == TR_PMU_LOAD)] == []


REFUSED = """
        .include "linux.inc"
        .include "host.inc"
        .globl _start
_start: set_affinity 0, second_core
        mov ebx, {times}
1:      perf_open attr, ANY, 0
        cmp rax, -EOPNOTSUPP
        jne 3f
        perf_open attr, ANY, 1
        cmp rax, -EOPNOTSUPP
        jne 3f
        perf_open without_guests, ANY, 0
        test rax, rax
        js 3f
        mov edi, eax
        linux close
        dec ebx
        jnz 1b
        exit_program 7
3:      exit_program 1
        .data
        .balign 8
second_core: .quad 2
attr:   perf_attr PERF_TYPE_HARDWARE, PERF_COUNT_HW_BRANCH_INSTRUCTIONS, 0
without_guests:
        perf_attr PERF_TYPE_HARDWARE, PERF_COUNT_HW_BRANCH_INSTRUCTIONS, PERF_ATTR_EXCLUDE_GUEST
        host_storage
"""


@pytest.mark.uncompiled
def test_as_merged_it_is_refused_wherever_the_guest_is():
    """EOPNOTSUPP for every CPU as long as the VM is there, in the guest or out of it."""
    times = cases(day=60, laws=3000, night=3000, uncompiled=3)
    maker = assemble(REFUSED.format(times=times), str(ROOT / "guests/host/refused.s"))
    guest = assemble(GUEST.format(rounds=48 * times, spin=300), "guest.s")
    machine = System(guest, vpmu="mediated", cores=2, ram=2, host=[maker])
    result = machine.result(machine.run()).to_json()
    assert result["exit_code"] == 0
    assert [task["exit_code"] for task in result["tasks"][1:]] == [7]
