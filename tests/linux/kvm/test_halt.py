"""HLT with something to wake it: since 6.12 the vCPU never leaves the inner run loop."""

from __future__ import annotations

from functools import cache

import pytest

from tests.linux.guests import system
from vpmu_emu.asm import assemble
from vpmu_emu.system import run as vpmu_run
from vpmu_emu.tables.modes import MODES

GUEST = """
    .include "msr.inc"
    .include "macros.inc"
    .text
    .globl _start
_start:
    load_idt
    set_gate 0x40, handler
    mov ecx, 0x1b; mov eax, 0xfee00d00; xor edx, edx; wrmsr
    mov ecx, 0x80f; mov eax, 0x1ff; wrmsr
    {before}
    xor ebx, ebx
    mov r12d, 5
again:
    mov ecx, 0x83f; mov eax, 0x40; xor edx, edx; wrmsr
    sti
    hlt
    nop
    cli
    dec r12d
    jnz again
    debug_exit 0
handler:
    inc ebx
    mov ecx, 0x80b; xor eax, eax; xor edx, edx; wrmsr
    iretq
    idt_storage
"""


@cache
def program(before: str = ""):
    return assemble(GUEST.replace("{before}", before), "halt.s")


def halted(mode: str, before: str = "", **options):
    """The result of five HLTs, each behind an STI and with an interrupt pending."""
    return vpmu_run(program(before), vpmu=mode, ram=2, max_insns=10_000, **options).to_json()


@pytest.mark.parametrize("mode", ["none", "emulated", "mediated"])
@pytest.mark.parametrize("apicv", [True, False])
def test_a_halt_with_an_interrupt_pending_stays_in_the_inner_loop(mode, apicv):
    """Under STI's shadow the interrupt waits for HLT, which finds it there."""
    result = halted(mode, apicv=apicv)
    assert (result["stop"], result["registers"]["rbx"]) == ("debug-exit", 5)
    assert result["exits"]["HLT"] == 5
    if mode == "mediated" and apicv:
        assert result["kvm"]["loads"] < result["kvm"]["entries"]
    if apicv:
        assert result["kvm"]["fastpaths"] >= 5


def test_version_6_7_goes_the_long_way():
    assert MODES["passthrough"].kernel.version < MODES["mediated"].kernel.version
    result = halted("passthrough")
    assert (result["exits"]["HLT"], result["registers"]["rbx"]) == (5, 5)
    assert result["kvm"]["loads"] == result["kvm"]["entries"] - result["kvm"]["fastpaths"]
    assert result["kvm"]["fastpaths"] == 0


@pytest.mark.parametrize("mode", ["none", "emulated", "mediated"])
def test_a_halt_that_nothing_can_wake_ends_the_run(mode):
    assert system("cli\nhlt\nEXIT 0\n", mode).run().reason == "halted"


def test_while_instructions_are_counted_mediated_takes_the_long_way():
    """kvm_pmu_is_fastpath_emulation_allowed(): the counters are in hardware within the inner loop."""
    for event, stays in ((0xC0, False), (0x3C, True)):
        result = halted("mediated", f"mov ecx, 0x186; mov eax, {0x430000 | event:#x}; xor edx, edx; wrmsr")
        assert (result["exits"]["HLT"], result["registers"]["rbx"]) == (5, 5)
        assert (result["kvm"]["fastpaths"] >= 5) == stays
