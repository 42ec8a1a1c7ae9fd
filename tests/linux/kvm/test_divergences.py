"""Rows of docs/divergences.md that one small guest can show: what each mode does, and by how much."""

from __future__ import annotations

import pytest

from tests.linux.guests import run, window
from tests.tools.whole import machine
from vpmu_emu.asm import assemble

pytestmark = [pytest.mark.uncompiled, pytest.mark.inner]

MODES = ("bare", "emulated", "passthrough")
GP, UD = 13, 6

# exits with the vector of the first exception, or with `EXIT n`
FAULTS = """
    jmp begin
.align 16
idt:  .zero 16 * 64
idtr: .word 16 * 64 - 1
      .quad idt
ud:   EXIT 6
gp:   EXIT 13
.macro GATE vector, handler
    lea rax, [\\handler]
    lea rbx, [idt + 16 * \\vector]
    mov [rbx], ax
    mov word ptr [rbx + 2], 8
    mov word ptr [rbx + 4], 0x8e00
    shr rax, 16
    mov [rbx + 6], ax
.endm
begin:
    GATE 6, ud
    GATE 13, gp
    lidt [idtr]
    {body}
    EXIT 0
"""


def wrmsr(index: int, value: int) -> str:
    low, high = value & 0xFFFF_FFFF, value >> 32
    return f"mov ecx, {index:#x}\n mov eax, {low:#x}\n mov edx, {high:#x}\n wrmsr\n"


def rdmsr(index: int) -> str:
    return f"mov ecx, {index:#x}\n rdmsr\n"


@pytest.mark.parametrize(("body", "codes"), [
    (wrmsr(0x38F, 1 << 35), (0, GP, 0)),  # GLOBAL_CTRL of the fourth fixed counter
    (wrmsr(0x38F, 1 << 36), (GP, GP, GP)),
    (wrmsr(0x390, 1 << 58), (0, GP, 0)),
    (wrmsr(0x390, 1 << 63), (0, 0, 0)),
    (wrmsr(0x38E, 0), (GP, GP, GP)),
    (wrmsr(0x309, 1 << 48), (GP, 0, GP)),
    (wrmsr(0x4C1, 1 << 48), (GP, GP, GP)),
    (wrmsr(0x186, 1 << 21), (0, GP, GP)),
    (wrmsr(0x38D, 1 << 2), (0, GP, GP)),
    (wrmsr(0x391, 1), (0, GP, GP)),
    (rdmsr(0x392), (0, GP, GP)),
    (rdmsr(0x30C), (0, GP, GP)),
    (wrmsr(0xC0010004, 1), (GP, 0, 0)),
    (wrmsr(0x345, 0), (GP, GP, GP)),
    (wrmsr(0x1D9, 1 << 12), (0, GP, GP)),
    (rdmsr(0x834), (GP, GP, GP)),  # xAPIC mode
    ("mov ecx, 0x40000003\n rdpmc\n", (0, GP, 0)),
    ("mov ecx, 0x20000000\n rdpmc\n", (0, GP, 0)),  # PERF_METRICS
    ("mov ecx, 0x20000001\n rdpmc\n", (GP, GP, GP)),
    ("mov ecx, 8\n rdpmc\n", (GP, GP, GP)),
    ("vmcall\n", (UD, 0, 0)),
])  # fmt: skip
def test_faults(body, codes):
    found = tuple(run(FAULTS.format(body=body), mode)[1]["exit_code"] for mode in MODES)
    assert found == codes


def pmc0(body: str, mode: str, **options) -> int:
    return run(body, mode, **options)[1]["counters"]["pmc0"]


def deltas(body: str) -> tuple[int, int]:
    """PMC0 in emulated and in passthrough, less bare's."""
    bare = pmc0(body, "bare")
    return pmc0(body, "emulated") - bare, pmc0(body, "passthrough") - bare


SELECT = "WRMSR32 0x186, 0x4300c0\n"
OPEN, CLOSE = "WRMSR32 0x38f, 1\n", "WRMSR32 0x38f, 0\n"


@pytest.mark.parametrize(("body", "differ"), [
    (CLOSE + SELECT + OPEN + "nop\n" + CLOSE + "EXIT 0\n", (0, 0)),
    # opened by the selector (intercepted in both), closed by GLOBAL_CTRL
    (OPEN + SELECT + "nop\n" + CLOSE + "EXIT 0\n", (0, 1)),
    # the reverse
    (CLOSE + SELECT + OPEN + "nop\n WRMSR32 0x186, 0\n EXIT 0\n", (0, -1)),
    (OPEN + SELECT + "nop\n WRMSR32 0x186, 0\n EXIT 0\n", (0, 0)),
    # a write to a counter that runs counts itself where it is emulated, the close where it is not
    (CLOSE + SELECT + OPEN + "WRMSR32 0xc1, 100\n" + CLOSE + "EXIT 0\n", (0, 0)),
    # CPUID retires nowhere: instructions are counted in software, with CMASK ignored; cycles are not
    (window("xor eax, eax\n cpuid\n"), (0, 0)),
    (window("xor eax, eax\n cpuid\n", 0xFF4300C0), (2, 1)),
])  # fmt: skip
def test_windows(body, differ):
    assert deltas(body) == differ


def test_a_read_while_it_runs_sees_the_opener():
    body = CLOSE + SELECT + OPEN + "mov ecx, 0\n rdpmc\n mov esi, eax\n" + CLOSE + "EXIT 0\n"
    seen = [run(body, mode)[1]["registers"]["rsi"] for mode in MODES]
    assert seen == [1, 2, 1]


def test_software_counts_can_hide_an_overflow_from_perf():
    """At -1 perf waits for two events; one comes, then KVM counts on from 0."""
    preset = wrmsr(0x4C1, (1 << 48) - 2)
    body = CLOSE + SELECT + preset + OPEN + "nop\n cpuid\n nop\n nop\n" + CLOSE + "EXIT 0\n"
    results = [run(body, mode)[1] for mode in MODES]
    assert [r["global_status"] for r in results] == [1, 0, 1]
    assert len({r["counters"]["pmc0"] for r in results}) == 1


@pytest.mark.parametrize("mode", ["emulated", "passthrough", "mediated"])
def test_other_events_lose_what_is_emulated(mode):
    """MEM_INST_RETIRED.ALL_LOADS is not counted in software."""
    body = window("push rax\n pop rax\n cpuid\n", 0x4381D0)
    assert pmc0(body, "bare") == pmc0(body, mode) == 1


def test_emulated_cycles_leave_out_the_host():
    """Both count the guest's own cycles: the host's exits cost thousands."""
    body = window("xor eax, eax\n cpuid\n", 0x43003C)
    bare = pmc0(body, "bare")
    for mode in ("emulated", "passthrough"):
        assert pmc0(body, mode) < bare


HALT = """
    .intel_syntax noprefix
    .include "msr.inc"
    .include "macros.inc"
    .globl _start
_start: lapic_enable_x2apic
    load_idt
    set_gate 0x40, pmi
    set_gate 0x41, timer
    wrmsr_const IA32_X2APIC_LVT_PMI, 0x40
    wrmsr_const IA32_X2APIC_LVT_TIMER, 0x41
    wrmsr_const IA32_X2APIC_DIV_CONF, 0xb
    wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
    wrmsr_const IA32_PERFEVTSEL0, EVT_INST_RETIRED_ANY_P | EVTSEL_OS | EVTSEL_INT | EVTSEL_EN
    wrmsr_const IA32_PMC0, -{left} & 0xffffffff
    {timer}
    wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0
    nop
    nop
    nop
    sti
    hlt
    cli
    debug_exit 0
pmi: mov esi, 1
    jmp served
timer: mov edi, 1
served:
    wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
    wrmsr_const IA32_PERF_GLOBAL_STATUS_RESET, GLOBAL_PMC0
    lapic_eoi
    iretq
    idt_storage
"""


@pytest.mark.parametrize(("mode", "left"), [("bare", 5), ("emulated", 6), ("passthrough", 5)])
def test_a_halt_that_wraps_the_counter_itself(mode, left):
    """Hardware takes the PMI of its HLT; KVM finds the wrap at KVM_REQ_PMU, which does not wake a vCPU."""
    stop, seen = {}, {}
    timer = "wrmsr_const IA32_X2APIC_INIT_COUNT, 200000\n"
    for left_over, wakes in ((left, ""), (left - 1, ""), (left, timer)):
        system = machine(assemble(HALT.format(left=left_over, timer=wakes), "halt"), mode)
        key = (left_over == left, bool(wakes))
        stop[key] = system.run().reason
        seen[key] = system.registers()["rsi"]
    bare = mode == "bare"
    assert stop == {(True, False): "debug-exit" if bare else "halted", (False, False): "debug-exit",
                    (True, True): "debug-exit"}  # fmt: skip
    # what wakes it brings the PMI along, at the entry
    assert seen == {(True, False): int(bare), (False, False): 1, (True, True): 1}
