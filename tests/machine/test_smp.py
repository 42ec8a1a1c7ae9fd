"""Several cores on bare silicon: startup, messages, who runs when, one memory and one board."""

from __future__ import annotations

import pytest

from tests.tools.whole import machine
from vpmu_emu.asm import assemble
from vpmu_emu.errors import ConfigError
from vpmu_emu.system import QUANTUM, System
from vpmu_emu.tables.cpus import cpu

pytestmark = pytest.mark.uncompiled

FRAME = """
.intel_syntax noprefix
.include "msr.inc"
.include "macros.inc"
.equ SELF, 1 << 18
.equ ALL, 2 << 18
.equ OTHERS, 3 << 18
.equ INIT, 0x4500
.equ SIPI, 0x4600
.equ NMI, 0x4400
# To core `dest`, or by a shorthand in `what`.
.macro icr what, dest=0
    mov ecx, IA32_X2APIC_ICR
    mov eax, \\what
    mov edx, \\dest
    wrmsr
.endm
.text
.globl _start
_start:
    load_idt
    set_gate 2, nmi
    set_gate 0x40, ping
    lapic_enable_x2apic
{first}
    debug_exit 0
nmi:
    lock inc dword ptr [nmis]
    iretq
ping:
    lock inc dword ptr [pings]
    push rax
    push rcx
    push rdx
    lapic_eoi
    pop rdx
    pop rcx
    pop rax
    iretq
.balign 4096
second_core:
    lea rsp, [rip + stack_end]
    load_idt
    lapic_enable_x2apic
    lock inc dword ptr [started]
{second}
9:  sti
    hlt
    jmp 9b
    idt_storage
.bss
.balign 16
    .zero 1024
stack_end:
started: .zero 4
pings:   .zero 4
nmis:    .zero 4
shared:  .zero 8
"""
# A startup message names a page of the first megabyte: from there the core jumps on.
START = """
    lea rax, [rip + second_core]
    mov word ptr [0x8000], 0xb848       # mov rax, imm64
    mov [0x8002], rax
    mov word ptr [0x800a], 0xe0ff       # jmp rax
    icr INIT, 1
    icr "SIPI | 8", 1
1:  pause
    cmp dword ptr [started], 1
    jne 1b
"""


def wait(cell: str, value: int) -> str:
    return f"1:  pause\n    cmp dword ptr [{cell}], {value}\n    jne 1b\n"


def run(first: str, second: str = "", **options):
    options.setdefault("cores", 2)
    program = assemble(FRAME.format(first=first, second=second), "smp")
    system = machine(program, "bare", max_insns=20_000, **options)
    stop = system.run()
    cells = {k: int.from_bytes(system.read(program.symbols[k], 4), "little")
             for k in ("started", "pings", "nmis", "shared")}  # fmt: skip
    return system, stop, cells


def test_the_second_core_waits_for_a_startup_message():
    system, stop, cells = run("mov ecx, 100\n1: loop 1b")
    assert (stop.reason, cells["started"]) == ("debug-exit", 0)
    assert int(system.cores[1].total[0, 0]) == 0
    _, stop, cells = run(START)
    assert (stop.reason, cells["started"]) == ("debug-exit", 1)


def test_a_startup_message_without_init_does_nothing_to_a_running_core():
    body = START + 'icr "SIPI | 8", 1\nmov ecx, 200\n1: loop 1b\n'
    assert run(body)[2]["started"] == 1


@pytest.mark.parametrize(
    ("message", "pings"),
    [('icr 0x40, 1', 1), ('icr "0x40 | OTHERS"', 1), ('icr "0x40 | ALL"', 2), ('icr "0x40 | SELF"', 1),
     ('icr 0x40, 0xffffffff', 2), ('icr 0x40, 0', 1), ('icr 0x40, 7', 0),
     ('icr "0x40 | 0x800", 2', 1), ('icr "0x40 | 0x800", 3', 2), ('icr "0x140 | 0x800", 3', 1)],
)  # fmt: skip
def test_who_gets_a_message(message, pings):
    """Shorthands, physical and logical destinations, lowest priority."""
    settle = "sti\nmov ecx, 8000\n1: loop 1b\n"
    assert run(START + message + "\n" + settle)[2]["pings"] == pings


def test_an_nmi_reaches_a_halted_core():
    assert run(START + "icr NMI, 1\n" + wait("nmis", 1))[2]["nmis"] == 1


def test_both_cores_see_one_memory_and_answer_each_other():
    first = """
    mov ecx, 50
    2: lock inc dword ptr [shared]
    3: pause
    test dword ptr [shared], 1
    jnz 3b
    loop 2b
    """
    second = "2: pause\ntest dword ptr [shared], 1\njz 2b\nlock inc dword ptr [shared]\njmp 2b\n"
    _, stop, cells = run(START + first, second)
    assert (stop.reason, cells["shared"]) == ("debug-exit", 100)


def test_cores_stay_within_a_quantum_of_each_other():
    second = "2: inc rbx\njmp 2b\n"
    system, _, _ = run(START + "mov ecx, 3000\n1: loop 1b\n", second)
    a, b = (int(core.t) for core in system.cores)
    # the last instruction, OUT, is the longest there is
    assert abs(a - b) <= cpu("spr").latency_of("io") + 2 * QUANTUM
    assert int(system.cores[1].regs[3]) > 300


def test_a_store_of_one_core_reaches_code_that_the_other_has_decoded():
    second = """
    call 5f
    mov dword ptr [shared], eax
    2: pause
    cmp dword ptr [shared + 4], 0
    je 2b
    call 5f
    mov dword ptr [shared], eax
    jmp 9f
    5: mov eax, 1
    ret
    """
    first = START + """
    mov byte ptr [second_core + 0xfff], 0   # the page is this core's to write to already
    2: pause
    cmp dword ptr [shared], 1
    jne 2b
    lea rdi, [rip + second_core]
    mov eax, 0xb8
    mov ecx, 200
    repne scasb
    3: cmp dword ptr [rdi], 1
    je 4f
    repne scasb
    jmp 3b
    4: mov dword ptr [rdi], 2
    mov dword ptr [shared + 4], 1
    5: pause
    cmp dword ptr [shared], 2
    jne 5b
    """
    assert run(first, second)[2]["shared"] == 2


def test_the_run_ends_when_every_core_sleeps_for_good():
    _, stop, cells = run(START + "cli\nhlt\n")
    assert (stop.reason, cells["started"]) == ("halted", 1)


def test_a_timer_wakes_one_core_while_the_other_works():
    second = """
    wrmsr_const IA32_X2APIC_LVT_TIMER, 0x40
    wrmsr_const IA32_X2APIC_DIV_CONF, 0xb
    wrmsr_const IA32_X2APIC_INIT_COUNT, 40
    """
    _, stop, cells = run(START + wait("pings", 1), second)
    assert stop.reason == "debug-exit"
    assert cells["pings"] == 1


def test_each_core_has_a_pmu_of_its_own():
    count = """
    wrmsr_const IA32_PERFEVTSEL0, 0x4300c0
    wrmsr_const IA32_PERF_GLOBAL_CTRL, 1
    {}
    wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
    """
    off = "wrmsr_const IA32_PERF_GLOBAL_CTRL, 0\n"
    second = off + count.format("nop\n" * 7) + "lock inc dword ptr [shared]\n"
    system, _, _ = run(START + off + count.format("nop\n" * 3) + wait("shared", 1), second)
    assert [system.hardware_pmu(k)["pmc"][0] for k in (0, 1)] == [3 + 4, 7 + 4]
    found = system.result(system.stop(0, "running")).to_json()
    assert [core["hw"]["pmc"][0] for core in found["cores"]] == [7, 11]


@pytest.mark.parametrize("policy", [{"horizon": 1}, {"horizon": 5, "horizon_seed": 3}])
def test_policies_of_the_engine_are_not_seen(policy):
    body, second = START + "icr 0x40, 1\n" + wait("pings", 1), "mov ecx, 90\n2: loop 2b\n"
    assert run(body, second)[0].record() == run(body, second, **policy)[0].record()


def test_slices_are_not_seen():
    program = assemble(FRAME.format(first=START + "icr 0x40, 1\n" + wait("pings", 1), second=""), "smp")
    whole = machine(program, "bare", cores=2)
    whole.run()
    sliced = machine(program, "bare", cores=2)
    while sliced._turn(777) == 100:
        pass
    assert whole.record() == sliced.record()


@pytest.mark.parametrize(("cores", "mode"), [(0, "bare"), (9, "bare"), (9, "emulated")])
def test_what_cannot_be_had_is_said(cores, mode):
    with pytest.raises(ConfigError, match="cores"):
        System(assemble("hlt"), vpmu=mode, cores=cores)
