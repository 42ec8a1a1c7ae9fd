"""A PMI takes its time: LVTPC decides when its message comes, the core takes it when that is recognised."""

from __future__ import annotations

import pytest

from tests.tools.whole import assert_same, machine, state
from vpmu_emu.asm import assemble

pytestmark = pytest.mark.uncompiled

# On `generic` every NOP is a cycle. r15 and r14: how many PMIs by vector 0x40 and 0x41, and rbx where the
# first of them came; the counter wraps with the NOP before `over`.
GUEST = """
.intel_syntax noprefix
.include "msr.inc"
.include "macros.inc"
.globl _start
_start:
    load_idt
    set_gate 0x40, first
    set_gate 0x41, second
    set_gate 2, nmi
    lapic_enable_x2apic
    wrmsr_const IA32_X2APIC_LVT_PMI, {lvt}
    wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
    wrmsr_const IA32_A_PMC0, 0x1000000000000-11
    wrmsr_const IA32_PERFEVTSEL0, 0x5300c0
    {more}
    sti
    mov ecx, IA32_PERF_GLOBAL_CTRL
    mov eax, {enables}
    xor edx, edx
    wrmsr
    .rept 11
    nop
    .endr
over:
    {body}
    .rept 60
    nop
    .endr
    debug_exit 0
first:
    inc r15d
    jmp 1f
second:
    inc r14d
    jmp 1f
nmi:
    inc r13d
1:  test rbx, rbx
    jnz 2f
    mov rbx, [rsp]
    sub rbx, offset over
2:  {handler}
    iretq
    idt_storage
"""
EOI = "push rax\npush rcx\npush rdx\nlapic_eoi\npop rdx\npop rcx\npop rax"


def ran(skid, lvt="0x40", body="", enables=1, more="", handler="", **options):
    guest = GUEST.format(lvt=lvt, body=body, enables=enables, more=more, handler=handler)
    options.setdefault("max_insns", 20_000)
    system = machine(assemble(guest, "guest.s"), "bare", cpu="generic", pmi_skid=skid, **options)
    assert system.run().reason == "debug-exit"
    return system


def seen(system) -> dict[str, int]:
    """How many came by which way, and how many NOPs after the overflow the first one did."""
    registers = system.registers()
    names = {"r15": "first", "r14": "second", "r13": "nmi"}
    found = {name: registers[register] for register, name in names.items() if registers[register]}
    return {**found, "after": registers["rbx"]} if found else {}


@pytest.mark.parametrize(
    ("skid", "after"), [("0:0", 0), ("5:0", 5), ("0:5", 5), ("3:4", 7), ("1:0", 1), ("40:2", 42)]
)
@pytest.mark.parametrize(("lvt", "way"), [("0x40", "first"), ("0x400", "nmi")])
def test_it_comes_so_many_cycles_late(skid, after, lvt, way):
    assert seen(ran(skid, lvt)) == {way: 1, "after": after}


# WRMSR to the x2APIC takes its time, and has its effect at the end of it.
REWRITE = "mov ecx, IA32_X2APIC_LVT_PMI\nmov eax, {:#x}\nxor edx, edx\nwrmsr\n"


@pytest.mark.parametrize(("skid", "way"), [
    ("0:0", "first"), ("500:0", "second"), ("0:500", "first"), ("500:500", "second"),
])  # fmt: skip
def test_the_vector_is_what_lvtpc_holds_when_the_message_comes(skid, way):
    system = ran(skid, body=REWRITE.format(0x41) + ".rept 1200\nnop\n.endr")
    assert [name for name in seen(system) if name != "after"] == [way]


def test_a_write_that_is_not_over_yet_comes_too_late():
    """The message of 5 cycles falls into the WRMSR, which then unmasks what it has masked."""
    system = ran("5:0", body=REWRITE.format(0x41))
    assert "first" in seen(system)
    assert int(system.core.lapic.lvt[3]) == 0x41


@pytest.mark.parametrize(("skid", "found"), [("0:0", 1), ("500:0", 0), ("0:500", 1)])
def test_an_entry_that_is_masked_in_time_drops_it(skid, found):
    system = ran(skid, body=REWRITE.format(0x10040) + ".rept 1200\nnop\n.endr")
    assert seen(system).get("first", 0) == found
    assert int(system.core.stats.pmis_lost) == 1 - found  # as it was open at the overflow


@pytest.mark.parametrize(("skid", "found"), [("0:0", 0), ("500:0", 1), ("0:500", 0)])
def test_an_entry_that_is_unmasked_in_time_lets_it_through(skid, found):
    system = ran(skid, "0x10040", body=REWRITE.format(0x40) + ".rept 1200\nnop\n.endr")
    assert seen(system).get("first", 0) == found
    assert int(system.core.stats.pmis_lost) == 0


TWO = """
    wrmsr_const IA32_A_PMC1, 0x1000000000000-{second}
    wrmsr_const IA32_PERFEVTSEL1, 0x5300c0
"""


@pytest.mark.parametrize("skid", ["0:0", "8:0", "0:8", "4:4"])
@pytest.mark.parametrize("second", [11, 13, 18])
def test_two_overflows_on_the_way_are_one_interrupt(skid, second):
    """One request at a time is under way, and the entry masks itself at the first message."""
    system = ran(skid, enables=3, more=TWO.format(second=second))
    assert seen(system)["first"] == 1
    assert int(system.core.pmu.global_status) == 3
    assert int(system.core.stats.pmis_hw) == 1
    assert int(system.core.stats.pmis_lost) == 0


@pytest.mark.parametrize("skid", ["30:0", "0:30", "700:800"])
def test_a_halted_core_wakes_when_it_comes(skid):
    """The counter of cycles stands still in HLT, and the message does not."""
    system = ran(skid, body="hlt")
    assert seen(system)["first"] == 1
    assert system.registers()["rbx"] == 1  # HLT has one byte


def test_nmi_and_vector_are_on_their_way_together():
    """A second PMI, as NMI, while the first is not recognised yet: their latches in the core are two."""
    body = REWRITE.format(0x400) + ".rept 1200\nnop\n.endr"
    system = ran("0:900", enables=3, more=TWO.format(second=400), body=body)
    assert {k: v for k, v in seen(system).items() if k != "after"} == {"first": 1, "nmi": 1}


def test_another_vector_does_not_swallow_the_first():
    body = REWRITE.format(0x41) + ".rept 1200\nnop\n.endr"
    system = ran("0:900", enables=3, more=TWO.format(second=400), body=body, handler=EOI)
    assert {k: v for k, v in seen(system).items() if k != "after"} == {"first": 1, "second": 1}


@pytest.mark.parametrize("skid", ["3:0", "0:3", "17:250", "900:40"])
def test_no_horizon_moves_it(skid):
    options = {"enables": 3, "more": TWO.format(second=300), "handler": EOI}
    body = "hlt\n" + REWRITE.format(0x41) + ".rept 400\nnop\n.endr"
    plain = state(ran(skid, body=body, **options))
    for policy in ({"horizon": 1}, {"horizon": 7, "horizon_seed": 5}, {"trace": True}):
        assert_same(plain, state(ran(skid, body=body, **options, **policy)), str(policy))


@pytest.mark.inner
def test_init_takes_what_is_under_way_away():
    from vpmu_emu.machine.smp import wait_for_sipi
    from vpmu_emu.machine.state import NEVER

    system = ran("0:100000")
    assert int(system.core.pmu.pmi_at) != NEVER
    wait_for_sipi(system.core)
    assert int(system.core.pmu.pmi_at) == NEVER
