"""Debug registers of a guest: they exit once, then are the guest's; KVM's emulator does otherwise."""

from __future__ import annotations

import pytest

from tests.machine.test_breakpoints import (
    CLEAR,
    DE,
    GUEST,
    PORT,
    Run,
    breaks_on_its_own_frame,
    enable,
    point,
)
from vpmu_emu.asm import assemble
from vpmu_emu.system import MODES, System

pytestmark = pytest.mark.uncompiled

KVM = pytest.mark.parametrize("mode", [m for m in MODES if m != "bare"])
DR_ACCESS = 29
STORE = "mov dword ptr [rip + cell], 1\nat:     nop\n"


@KVM
def test_only_the_first_access_after_an_exit_exits(mode):
    body = "cpuid\n mov rax, dr0\n mov rax, dr3\n mov dr3, rax\n cpuid\n mov rax, dr6\n"
    system = Run(body, "        nop\n", vpmu=mode).system
    assert (
        int(system.core.stats.exits[DR_ACCESS]) == 3
    )  # before `start` once, and once behind each CPUID


@KVM
def test_registers_survive_exits(mode):
    before = "mov eax, 0x77\n mov dr2, rax\n mov eax, 0x4002\n mov dr6, rax\n cpuid\n"
    run = Run(
        "        mov r8, dr2\n        mov r9, dr6\n        mov r10, dr7\n        cpuid\n",
        before,
        vpmu=mode,
    )
    assert [run.register(f"r{n}") for n in (8, 9, 10)] == [0x77, 0xFFFF4FF2, 0x400]


@KVM
def test_what_the_guest_is_told_is_what_silicon_tells(mode):
    body = "at:     nop\n        mov dword ptr [rip + cell], 1\nb:      cpuid\nc:      nop\n"
    before = point(0, "at") + point(1, "cell") + point(2, "b") + point(3, "c")
    dr7 = enable(0) | enable(1, 1, 4) | enable(2) | enable(3)
    bare, guest = (
        Run("        nop\n" + body, before, dr7),
        Run("        nop\n" + body, before, dr7, vpmu=mode),
    )
    assert guest.places == bare.places == ["at", "b", "c"]
    assert (guest.dr6, guest.dr7, guest.flags) == (bare.dr6, bare.dr7, bare.flags)


@KVM
def test_a_step_over_an_exit_says_so_in_dr6(mode):
    body = """
        pushfq
        or dword ptr [rsp], 0x100
        popfq
        cpuid
x:      push 2
at:     popfq
"""
    run = Run(body, vpmu=mode)
    assert (run.places[:2], run.dr6[:2]) == (["x", "at"], [0x4000, 0x4000])


@KVM
def test_a_breakpoint_behind_the_forced_prefix(mode):
    """#UD of the prefix leaves RF set; the module's parameter can have KVM clear it."""
    for prefix, found in ((1, []), (3, [1])):
        run = Run("        FEP\nat:     nop\n", point(0, "at"), enable(0), vpmu=mode,
                  kvm={"force_emulation_prefix": prefix})  # fmt: skip
        assert run.dr6 == found


@KVM
def test_the_emulator_looks_at_no_data(mode):
    assert Run(f"        {STORE}", point(0, "cell"), enable(0, 1), vpmu=mode).places == ["at"]
    assert (
        Run(f"        FEP\n        {STORE}", point(0, "cell"), enable(0, 1), vpmu=mode).places == []
    )


@KVM
def test_ports_leave_before_silicon_looks(mode):
    body = "        out 0x80, al\nat:     nop\n"
    assert Run(body, DE + PORT.format(0x80), enable(1, 2)).places == ["at"]
    assert Run(body, DE + PORT.format(0x80), enable(1, 2), vpmu=mode).places == []


@KVM
def test_a_breakpoint_on_outs_comes_again_and_again(mode):
    body = "        lea rsi, [rip + cell]\n        mov edx, 0x80\nat:     outsb\n"
    assert Run(body, point(0, "at"), enable(0)).places == ["at"]
    program = assemble(GUEST.format(body=body, before=point(0, "at"), dr7=enable(0), clear=CLEAR))
    stop = System(program, ram=2, vpmu=mode).run()
    assert (stop.reason, stop.info) == ("debug-exit", 1)  # the handler gives up


@KVM
def test_a_breakpoint_on_the_frame_of_db_is_no_hang(mode):
    assert System(breaks_on_its_own_frame(), ram=2, vpmu=mode, max_insns=500).run().reason == "max-insns"
