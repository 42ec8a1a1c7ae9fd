"""The local APIC through its page and through its MSRs: the same registers, on silicon and under KVM."""

from __future__ import annotations

from functools import cache

import pytest

from vpmu_emu.asm import assemble
from vpmu_emu.system import System

pytestmark = pytest.mark.uncompiled

MODES = ("bare", "none", "emulated", "passthrough")
KVM = MODES[1:]
SETTINGS = [("bare", {}), *((mode, {"apicv": apicv}) for mode in KVM for apicv in (True, False))]

GUEST = """
.intel_syntax noprefix
.include "msr.inc"
.include "macros.inc"
        idt_storage
        .equ APIC, 0xfee00000
        .macro store register, value
        mov dword ptr [rbp + \\register], \\value
        .endm
        .text
_start: load_idt
        .irp vector, 13, 14
        set_gate \\vector, fault
        .endr
        set_gate 2, nmi
        set_gate 0x21, irq
        set_gate 0x41, irq41
        mov ebp, APIC
        xor r12d, r12d
        xor r13d, r13d
        {body}
        debug_exit 0
fault:  debug_exit 13
nmi:    inc r13
        iretq
irq41:  add r12, 0x100
irq:    inc r12
        {eoi}
        iretq
"""
PAGE_EOI = "mov dword ptr [rbp + 0xb0], 0"
ON = "store 0xf0, 0x1ff\n"
X2APIC = "lapic_enable_x2apic\n"


@cache
def guest(body: str, eoi: str):
    return assemble(GUEST.format(body=body, eoi=eoi), "apic.s")


def go(body: str, mode: str, eoi: str = PAGE_EOI, **options):
    machine = System(guest(body, eoi), vpmu=mode, ram=2, max_insns=20_000, **options)
    stop = machine.run()
    return machine, machine.result(stop).to_json()


ONES = 0xFFFFFFFF
VERSION = 0x60015, 0x50014  # silicon's, KVM's


def of(pair, mode: str) -> int:
    """Of silicon's and KVM's value the one that holds in this mode."""
    return pair if isinstance(pair, int) else pair[mode != "bare"]


def value(body: str, mode: str, **options) -> int:
    """eax after the body."""
    result = go(body + "\n mov ebx, eax", mode, **options)[1]
    assert result["exit_code"] == 0, result["stop"]
    found: int = result["registers"]["rbx"]
    return found


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("register", "reset"), [
    (0x20, 0), (0x30, VERSION), (0x80, 0), (0x90, 0), (0xA0, 0), (0xB0, 0), (0xD0, 0), (0xE0, 0xFFFFFFFF),
    (0xF0, 0xFF), (0x100, 0), (0x180, 0), (0x200, 0), (0x280, 0), (0x300, 0), (0x310, 0), (0x320, 0x10000),
    (0x330, 0x10000), (0x340, 0x10000), (0x350, 0x10000), (0x360, 0x10000), (0x370, 0x10000), (0x380, 0),
    (0x390, 0), (0x3E0, 0), (0x3F0, 0), (0xFFC, 0),
])  # fmt: skip
def test_the_page_after_reset(mode, register, reset):
    assert value(f"mov eax, [rbp + {register:#x}]", mode) == of(reset, mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("register", "written", "reads"), [
    (0x80, 0x135, 0x35),
    (0xD0, 0xFF00FFFF, 0xFF000000),
    (0xE0, 0x12345678, 0x1FFFFFFF),
    (0xF0, 0xFFFFFFFF, (0x1FF, 0x3FF)),
    (0x310, 0xFFFFFFFF, 0xFF000000),
    (0x2F0, 0xFFFFFFFF, (0x107FF, 0)),  # KVM's APIC has no entry for CMCI
    (0x300, 0x1000, 0),
    (0x320, 0xFFFFFFFF, (0x700FF, 0x710FF)),
    (0x330, 0xFFFFFFFF, (0x107FF, 0x117FF)),
    (0x340, 0x400, 0x400),
    (0x350, 0xFFFFFFFF, (0x1A7FF, 0x1F7FF)),
    (0x370, 0xFFFFFFFF, (0x100FF, 0x110FF)),
    (0x3E0, 0xFFFFFFFF, 0xB),
    (0x30, 0xFFFFFFFF, VERSION),  # read-only
    (0xA0, 0xFFFFFFFF, 0),
    (0x280, 0xFFFFFFFF, 0),
])  # fmt: skip
def test_reserved_bits_of_the_page_are_dropped(mode, register, written, reads):
    body = ON + f"mov eax, {written:#x}\n mov [rbp + {register:#x}], eax\n mov eax, [rbp + {register:#x}]"
    assert value(body, mode) == of(reads, mode)


# What is written with every bit that is no #GP, and what reads back. KVM checks bits 63:32 and keeps what
# kvm_lapic_reg_write() lets through; TPR, EOI and SELF_IPI of a guest with APICv are hardware's.
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("register", "written", "reads"), [
    (0x80F, (0x1FF, ONES), (0x1FF, 0x3FF)),
    (0x830, (0xC1200, 0xC1200), (0xC0200, 0xC0200)),  # SMI to others, with the busy bit
    (0x832, (0x710FF, ONES), (0x700FF, 0x710FF)),
    (0x833, (0x117FF, ONES), (0x107FF, 0x117FF)),
    (0x834, (0x117FF, ONES), (0x107FF, 0x117FF)),
    (0x835, (0x1F7FF, ONES), (0x1A7FF, 0x1F7FF)),
    (0x836, (0x1F7FF, ONES), (0x1A7FF, 0x1F7FF)),
    (0x837, (0x110FF, ONES), (0x100FF, 0x110FF)),
    (0x838, (ONES, ONES), (ONES, ONES)),
    (0x83E, (0xB, ONES), (0xB, 0xB)),
])  # fmt: skip
def test_what_x2apic_registers_keep(mode, register, written, reads):
    body = f"{X2APIC} mov ecx, {register:#x}\n mov eax, {of(written, mode):#x}"
    body += "\n xor edx, edx\n wrmsr\n rdmsr"
    assert value(body, mode) == of(reads, mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("before", [0, 0x20000, 0x40000])
@pytest.mark.parametrize("after", [0, 0x20000, 0x40000])
def test_another_mode_of_the_timer(mode, before, after):
    """To or from the deadline mode the timer is disarmed and forgets its count; else it goes on."""
    body = X2APIC + f"""
        wrmsr_const IA32_X2APIC_LVT_TIMER, {before | 0x41:#x}
        wrmsr_const IA32_X2APIC_INIT_COUNT, 0x1000000
        wrmsr_const IA32_TSC_DEADLINE, 0x7fffffff
        wrmsr_const IA32_X2APIC_LVT_TIMER, {after | 0x41:#x}
        rdmsr_rax IA32_X2APIC_INIT_COUNT
        mov r8, rax
        rdmsr_rax IA32_TSC_DEADLINE
        or eax, r8d"""
    armed = before == after == 0x40000
    kept = 0x7FFFFFFF if armed else 0x1000000 if before != 0x40000 != after else 0
    assert value(body, mode) == kept


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("access", "reads"), [
    ("movzx eax, byte ptr [rbp + 0x30]", (0x15, 0x14)),
    ("movzx eax, word ptr [rbp + 0x32]", (0x6, 0x5)),
    ("mov rax, [rbp + 0x30]", 0),
    ("mov eax, [rbp + 0x34]", 0),
    ("movzx eax, word ptr [rbp + 0x33]", 0),
    ("mov byte ptr [rbp + 0x80], 0x20\n mov eax, [rbp + 0x80]", 0),
    ("mov qword ptr [rbp + 0x80], 0x20\n mov eax, [rbp + 0x80]", 0),
    ("or dword ptr [rbp + 0x80], 0x20\n or dword ptr [rbp + 0x80], 1\n mov eax, [rbp + 0x80]", 0x21),
    ("mov eax, 0x30\n xchg [rbp + 0x80], eax\n xchg [rbp + 0x80], eax", 0x30),
    ("push 0x20\n pop rax\n lea rdi, [rbp + 0x80]\n stosd\n mov eax, [rbp + 0x80]", 0x20),
])  # fmt: skip
def test_sizes_and_kinds_of_access(mode, access, reads):
    assert value(access, mode) == of(reads, mode)


@pytest.mark.parametrize("mode", KVM)
@pytest.mark.parametrize(("apicv", "reason"), [(True, "APIC_ACCESS"), (False, "EPT_MISCONFIG")])
def test_accesses_of_a_guest_leave_it(mode, apicv, reason):
    body = "mov eax, [rbp + 0x30]\n store 0x80, 0x10\n mov rcx, cr8\n mov ebx, ecx"
    result = go(body, mode, apicv=apicv)[1]
    assert result["exits"][reason] == 2
    assert result["registers"]["rbx"] == 1


@pytest.mark.parametrize("mode", ["emulated", "passthrough", "mediated"])
def test_such_an_access_is_counted_in_software(mode):
    body = """wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERFEVTSEL0, 0x4300c0
        wrmsr_const IA32_PERFEVTSEL1, 0x4381d0
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 3
        mov eax, [rbp + 0x30]
        nop
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0"""
    counters = go(body, mode)[1]["counters"]
    silicon = go(body, "bare")[1]["counters"]
    assert counters["pmc0"] == silicon["pmc0"] == 6
    assert (counters["pmc1"], silicon["pmc1"]) == (0, 1)


@pytest.mark.parametrize("mode", MODES)
def test_the_page_and_the_msrs_are_the_same_registers(mode):
    body = ON + "store 0x80, 0x31\n store 0x340, 0x4ff\n" + """mov ecx, IA32_APIC_BASE
        rdmsr
        or eax, 0x400
        wrmsr
        mov ecx, IA32_X2APIC_LVT_PMI
        rdmsr
        mov ebx, eax
        mov ecx, IA32_X2APIC_TPR
        rdmsr
        shl eax, 16
        or eax, ebx"""
    assert value(body, mode) == 0x3104FF


@pytest.mark.parametrize("mode", MODES)
def test_in_x2apic_mode_the_page_is_an_open_bus(mode):
    assert value(X2APIC + "store 0x80, 0x10\n mov eax, [rbp + 0x80]", mode) == 0xFFFFFFFF
    assert value(X2APIC + "store 0x80, 0x10\n mov rax, cr8", mode) == 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("values", "faults"), [
    ((0xFEE00D00,), False),
    ((0xFEE00D00, 0xFEE00900), True),  # x2APIC to xAPIC
    ((0xFEE00D00, 0xFEE00100, 0xFEE00900, 0xFEE00D00), False),
    ((0xFEE00100, 0xFEE00D00), True),  # disabled to x2APIC
    ((0xFEE00500,), True),  # x2APIC without the enable bit
    ((0xFEE00D00, 0xFEE00500), True),
    ((0xFEE00901,), True),
])  # fmt: skip
def test_mode_transitions(mode, values, faults):
    body = "".join(f"wrmsr_const IA32_APIC_BASE, {v:#x}\n" for v in values)
    assert go(body, mode)[1]["exit_code"] == (13 if faults else 0)


@pytest.mark.parametrize("mode", MODES)
def test_disabling_resets(mode):
    body = ON + "store 0x80, 0x10\n store 0x340, 0x400\n wrmsr_const IA32_APIC_BASE, 0xfee00100\n"
    assert value(body + "mov eax, [rbp + 0x80]", mode) == 0xFFFFFFFF
    body += "wrmsr_const IA32_APIC_BASE, 0xfee00900\n"
    assert value(body + "mov eax, [rbp + 0x340]\n or eax, [rbp + 0x80]", mode) == 0x10000


@pytest.mark.parametrize("mode", MODES)
def test_the_page_can_move(mode):
    body = "wrmsr_const IA32_APIC_BASE, 0xfed00900\n mov ecx, 0xfed00000\n mov eax, [rcx + 0x30]"
    assert value(body, mode) == of(VERSION, mode)


SELF = ON + "sti\n"


@pytest.mark.parametrize(("mode", "options"), SETTINGS)
@pytest.mark.parametrize(("body", "irqs", "nmis"), [
    ("store 0x300, 0x40021", 1, 0),  # shorthand self
    ("store 0x300, 0x80021", 1, 0),  # all
    ("store 0x300, 0xc0021", 0, 0),  # all but self
    ("store 0x310, 0\n store 0x300, 0x21", 1, 0),
    ("store 0x310, 0x01000000\n store 0x300, 0x21", 0, 0),  # somebody else
    ("store 0x310, 0xff000000\n store 0x300, 0x21", 1, 0),  # everybody
    ("store 0x310, 0\n store 0x300, 0x121", 1, 0),  # lowest priority
    ("store 0x310, 0\n store 0x300, 0x400", 0, 1),
    ("store 0x310, 0x01000000\n store 0x300, 0x400", 0, 0),
    ("store 0x310, 0\n store 0x300, 0x600", 0, 0),  # SIPI to one that runs
    ("store 0x310, 0\n store 0x300, 0x8500", 0, 0),  # INIT level de-assert
    ("store 0x310, 0x01000000\n store 0x300, 0x4500", 0, 0),  # INIT to somebody else
    ("store 0x310, 0\n store 0x300, 0xf", 0, 0),  # an illegal vector
    ("store 0xd0, 0x04000000\n store 0x310, 0x06000000\n store 0x300, 0x821", 1, 0),  # flat
    ("store 0xd0, 0x04000000\n store 0x310, 0x02000000\n store 0x300, 0x821", 0, 0),
    ("store 0xd0, 0\n store 0x310, 0xff000000\n store 0x300, 0x821", 1, 0),  # logical broadcast
    ("store 0xe0, 0\n store 0xd0, 0x24000000\n store 0x310, 0x26000000\n store 0x300, 0x821", 1, 0),
    ("store 0xe0, 0\n store 0xd0, 0x24000000\n store 0x310, 0x36000000\n store 0x300, 0x821", 0, 0),
    ("store 0x80, 0x20\n store 0x300, 0x40021", 0, 0),  # its class is not above TPR
    ("store 0x80, 0x20\n store 0x300, 0x40041", 0x101, 0),
    ("store 0xf0, 0xff\n store 0x300, 0x40021\n store 0xf0, 0x1ff", 0, 0),  # software-disabled
])  # fmt: skip
def test_interrupts_to_itself(mode, options, body, irqs, nmis):
    found = go(SELF + body + "\n nop\n nop", mode, **options)[1]["registers"]
    assert (found["r12"], found["r13"]) == (irqs, nmis)


X2_EOI = "lapic_eoi"


@pytest.mark.parametrize(("mode", "options"), SETTINGS)
@pytest.mark.parametrize(("body", "irqs", "nmis"), [
    ("wrmsr_const IA32_X2APIC_ICR, 0x21", 1, 0),
    ("wrmsr_const IA32_X2APIC_ICR, 0x100000021", 0, 0),
    ("wrmsr_const IA32_X2APIC_ICR, 0xffffffff00000021", 1, 0),
    ("wrmsr_const IA32_X2APIC_ICR, 0xff00000021", 0, 0),  # 0xFF is nobody's broadcast here
    ("wrmsr_const IA32_X2APIC_ICR, 0x100000821", 1, 0),  # logical: cluster 0, the first
    ("wrmsr_const IA32_X2APIC_ICR, 0x200000821", 0, 0),
    ("wrmsr_const IA32_X2APIC_ICR, 0x1000100000821", 0, 0),
    ("wrmsr_const IA32_X2APIC_ICR, 0x400", 0, 1),
    ("wrmsr_const IA32_X2APIC_ICR, 0x121", 1, 0),
    ("wrmsr_const IA32_X2APIC_ICR, 0x40021", 1, 0),
    ("wrmsr_const IA32_X2APIC_ICR, 0xc0021", 0, 0),
    ("wrmsr_const IA32_X2APIC_SELF_IPI, 0x41", 0x101, 0),
    ("wrmsr_const IA32_X2APIC_SELF_IPI, 0xf", 0, 0),
])  # fmt: skip
def test_interrupts_to_itself_by_msr(mode, options, body, irqs, nmis):
    found = go(X2APIC + "sti\n" + body + "\n nop\n nop", mode, eoi=X2_EOI, **options)[1]["registers"]
    assert (found["r12"], found["r13"]) == (irqs, nmis)


@pytest.mark.parametrize("mode", KVM)
@pytest.mark.parametrize(("body", "fast"), [
    ("wrmsr_const IA32_X2APIC_ICR, 0x100000021", 1),
    ("wrmsr_const IA32_X2APIC_ICR, 0xffffffff00000021", 0),
    ("wrmsr_const IA32_X2APIC_ICR, 0x40021", 0),
    ("wrmsr_const IA32_X2APIC_ICR, 0x821", 0),
    ("wrmsr_const IA32_X2APIC_ICR, 0x400", 0),
])  # fmt: skip
def test_plain_icr_writes_take_the_fast_path(mode, body, fast):
    """The kernel of the passthrough series handles them there too, but leaves the inner loop."""
    kvm = go(X2APIC + body, mode, eoi=X2_EOI)[1]["kvm"]
    assert kvm["fastpaths"] == (0 if mode == "passthrough" else fast)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("body", ["store 0x300, 0x4500", X2APIC + "wrmsr_const IA32_X2APIC_ICR, 0x4500"])
def test_init_resets(mode, body):
    assert go(body, mode)[1]["stop"] == "reset"


@pytest.mark.parametrize("mode", MODES)
def test_the_timer_of_the_page(mode):
    body = ON + """store 0x3e0, 0xb
        store 0x320, 0x21
        store 0x380, 3000
        mov ebx, [rbp + 0x390]
        sti
        hlt
        mov eax, [rbp + 0x390]
        cmp ebx, 3000
        adc eax, 0"""
    result = go(body + "\n mov ebx, eax", mode)[1]
    assert (result["registers"]["r12"], result["registers"]["rbx"]) == (1, 1)
    assert result["cycles"] > 3000


@pytest.mark.parametrize("horizon", [1, 5])
def test_no_engine_policy_is_seen(horizon):
    body = ON + "store 0x320, 0x20021\n store 0x380, 2\n sti\n mov ecx, 3000\n 1: loop 1b\n"
    body += "mov eax, [rbp + 0x390]"
    records = set()
    for options in ({}, {"horizon": horizon}):
        machine, result = go(body, "bare", **options)
        assert result["registers"]["r12"] > 0
        records.add(machine.record())
    assert len(records) == 1


@pytest.mark.parametrize("mode", MODES)
def test_no_instruction_comes_from_the_page(mode):
    body = "set_gate 6, fault\n jmp rbp"
    assert go(body, mode)[1]["exit_code"] == 13


@pytest.mark.parametrize("mode", MODES)
def test_a_stack_in_the_page_ends_the_run(mode):
    """Silicon drops the frame of an exception; KVM cannot emulate a delivery and gives up."""
    stops = ("triple-fault", "max-insns", "debug-exit") if mode == "bare" else ("shutdown",)
    assert go("lea rsp, [rbp + 0x100]\n ud2", mode)[1]["stop"] in stops
