"""System instructions a kernel lives on: SYSCALL and SYSRET, SWAPGS, EFER, the trap flag, prefixes."""

from __future__ import annotations

from functools import cache

import pytest

from vpmu_emu.asm import assemble
from vpmu_emu.system import System

pytestmark = pytest.mark.uncompiled

MODES = ("bare", "none", "emulated", "passthrough")
KVM = MODES[1:]

# #DB notes RIP at `seen`, counted in r12, and the RFLAGS image of the last one in r13; others end the run.
GUEST = """
.intel_syntax noprefix
.include "msr.inc"
.include "macros.inc"
        idt_storage
        ring3_storage
        .bss
seen:   .zero 512
cells:  .zero 64
        .text
_start: load_idt
        load_tss
        .irp vector, 0, 6, 13
        set_gate \\vector, fault\\vector
        .endr
        set_gate 1, debug, 3
        set_gate 0x30, handler, 3
        wrmsr_const IA32_EFER, 0x501
        wrmsr_const IA32_STAR, 0x0018000800000000
        lea rax, [rip + entry]
        wrmsr_rax IA32_LSTAR
        wrmsr_const IA32_FMASK, {fmask}
        xor r12d, r12d
        {body}
end:    debug_exit 0
fault0: debug_exit 1
fault6: mov r13, [rsp + 16]
        debug_exit 6
fault13:
        mov r13, [rsp + 24]
        debug_exit 13
debug:  push rax
        mov rax, [rsp + 8]
        mov [seen + r12 * 8], rax
        inc r12
        mov r13, [rsp + 24]
        pop rax
        iretq
handler:
        nop
        iretq
entry:  {entry}
"""
FMASK = 0x47700
TF_ON = "pushfq\n or qword ptr [rsp], 0x100\n popfq\n"
TF_OFF = "pushfq\n and qword ptr [rsp], ~0x100\n popfq\n"
USER = "push_user_frame user\n iretq\nuser:\n"


@cache
def guest(body: str, entry: str, fmask: int):
    return assemble(GUEST.format(body=body, entry=entry, fmask=fmask), "system.s")


def go(body: str, mode: str, entry: str = "debug_exit 0", fmask: int = FMASK, **options):
    machine = System(guest(body, entry, fmask), vpmu=mode, ram=2, max_insns=3000, **options)
    stop = machine.run()
    return machine, machine.result(stop).to_json()


def traps(machine, result) -> list[str]:
    """The labels that #DB found as return addresses."""
    names = {v: k for k, v in machine.program.symbols.items()}
    at = int(machine.program.symbols["seen"])
    count = result["registers"]["r12"]
    found = [int.from_bytes(machine.read(at + 8 * k, 8), "little") for k in range(count)]
    return [names.get(rip, hex(rip)) for rip in found]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("body", "expected"), [
    (TF_ON + "a: nop\nb: mov eax, 5\nc: nop\nd: " + TF_OFF + "e: nop", ["b", "c", "d", 3, "e"]),
    # an exit, a branch, a fault-free string instruction: once an iteration
    (TF_ON + "a: cpuid\nb: jmp c\n nop\nc: " + TF_OFF + "e: nop", ["b", "c", 3, "e"]),
    ("lea rdi, [rip + cells]\n mov ecx, 3\n" + TF_ON + "a: rep stosb\nb: " + TF_OFF + "e: nop",
     ["a", "a", "b", 3, "e"]),
    # the trap after MOV SS waits
    ("mov ax, ss\n" + TF_ON + "a: mov ss, ax\nb: nop\nc: " + TF_OFF + "e: nop", ["c", 3, "e"]),
    # INT n takes the flag away before anything is trapped, and IRETQ brings it back for the next
    (TF_ON + "a: int 0x30\nb: nop\nc: " + TF_OFF + "e: nop", ["c", 3, "e"]),
])  # fmt: skip
def test_single_steps(mode, body, expected):
    """A number stands for so many traps of the code that clears the flag."""
    machine, result = go(body, mode)
    assert result["exit_code"] == 0, result["stop"]
    found = traps(machine, result)
    for want in expected:
        if isinstance(want, int):
            del found[: want - 1]
        else:
            assert found.pop(0) == want
    assert found == []
    assert result["registers"]["r13"] & 0x10000 == 0  # a trap's frame has RF clear


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("fmask", "expected"), [(FMASK, []), (FMASK & ~0x100, ["entry"])])
def test_syscall_with_the_trap_flag(mode, fmask, expected):
    """Whether the trap comes depends on what FMASK left of the flag."""
    machine, result = go(USER + TF_ON + "syscall", mode, entry=TF_OFF + "debug_exit 0", fmask=fmask)
    assert result["exit_code"] == 0, result["stop"]
    assert traps(machine, result)[:1] == expected


@pytest.mark.parametrize("mode", MODES)
def test_hlt_with_the_trap_flag_wakes_at_once(mode):
    machine, result = go(TF_ON + "a: hlt\nb: " + TF_OFF, mode)
    assert result["exit_code"] == 0, result["stop"]
    assert traps(machine, result)[0] == "b"


@pytest.mark.parametrize("mode", KVM)
def test_single_step_of_a_forced_instruction(mode):
    machine, result = go(TF_ON + "a: FEP\n nop\nb: " + TF_OFF, mode)
    assert traps(machine, result)[0] == "b"


@pytest.mark.parametrize("horizon", [1, 7])
def test_no_engine_policy_is_seen(horizon):
    body = TF_ON + "mov ecx, 3\n1: loop 1b\n" + TF_OFF
    records = {go(body, "bare", **options)[0].record() for options in ({}, {"horizon": horizon})}
    assert len(records) == 1


@pytest.mark.parametrize("mode", MODES)
def test_a_fault_s_frame_has_rf_set(mode):
    assert go("ud2", mode)[1]["registers"]["r13"] & 0x10000
    assert go("mov ecx, 0x9999\n rdmsr", mode)[1]["registers"]["r13"] & 0x10000


@pytest.mark.parametrize("mode", MODES)
def test_syscall_and_sysret(mode):
    body = USER + "mov rbx, rsp\n syscall\nback: mov r9, cs\n mov r10, ss\n mov r8d, 1\n syscall"
    entry = """test r8d, r8d
        jnz 1f
        mov r14, rcx
        mov r15, r11
        mov rsi, cs
        mov rdi, ss
        sysretq
1:      debug_exit 0"""
    machine, result = go("xor r8d, r8d\n" + body, mode, entry=entry)
    assert result["exit_code"] == 0, result["stop"]
    found = result["registers"]
    assert found["r14"] == int(machine.program.symbols["back"])
    assert (found["r15"] & 0x200, found["rsi"], found["rdi"]) == (0, 8, 16)
    assert (found["r9"], found["r10"]) == (0x2B, 0x23)
    assert found["rsp"] == found["rbx"]  # SYSCALL leaves the stack alone


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("body", "code"), [
    ("wrmsr_const IA32_EFER, 0x500\n syscall", 6),
    ("wrmsr_const IA32_EFER, 0x500\n sysretq", 6),
    (USER + "sysretq", 13),
    (USER + "swapgs", 13),
    (USER + "wrmsr", 13),
    ("mov rcx, 0x800000000000\n sysretq", 13),
    ("wrmsr_const IA32_EFER, 0xd01", 0),
    ("wrmsr_const IA32_EFER, 0x101", 0),  # LMA is read-only: ignored
    ("wrmsr_const IA32_EFER, 0x401", 13),  # LME cannot change while paging is on
    ("wrmsr_const IA32_EFER, 0x1501", 13),  # SVME
    ("wrmsr_const IA32_LSTAR, 0x800000000000", 13),
    ("wrmsr_const IA32_GS_BASE, 0x800000000000", 13),
    ("wrmsr_const IA32_KERNEL_GS_BASE, 0x800000000000", 13),
    ("mov rax, cr4\n or eax, 0x800\n mov cr4, rax", 13),  # CPUID does not show UMIP
    (USER + "sgdt [rsp - 16]\n sidt [rsp - 16]\n str eax\n sldt ax\n syscall", 0),
])  # fmt: skip
def test_faults(mode, body, code):
    assert go(body, mode)[1]["exit_code"] == code


@pytest.mark.parametrize("mode", MODES)
def test_efer_reads_back(mode):
    body = "wrmsr_const IA32_EFER, 0x901\n mov ecx, IA32_EFER\n rdmsr\n mov ebx, eax"
    assert go(body, mode)[1]["registers"]["rbx"] == 0xD01


@pytest.mark.parametrize("mode", MODES)
def test_swapgs(mode):
    body = """lea rax, [rip + cells]
        wrmsr_rax IA32_GS_BASE
        add rax, 8
        wrmsr_rax IA32_KERNEL_GS_BASE
        mov qword ptr gs:[0], 0x11
        swapgs
        mov qword ptr gs:[0], 0x22
        mov ecx, IA32_GS_BASE
        rdmsr
        mov ebx, eax
        lea rax, [rip + cells]
        sub ebx, eax
        swapgs
        mov r8, gs:[0]
        mov r9, [rip + cells + 8]"""
    found = go(body, mode)[1]["registers"]
    assert (found["rbx"], found["r8"], found["r9"]) == (8, 0x11, 0x22)


@pytest.mark.parametrize(("mode", "value", "outcome"), [
    # silicon ignores the read-only bits 7, 11 and 12; KVM wants the last two unchanged and takes the rest
    ("bare", 0, 0x880), ("bare", 0x1881, 0x881), ("bare", 1 << 1, None),
    ("emulated", 0, None), ("emulated", 0x1800, 0x1800), ("emulated", 0x1882, 0x1802),
    ("emulated", 0x880, None), ("emulated", 0x1080, None), ("passthrough", 0x1801, 0x1801),
    ("none", 0x1880, 0x1800), ("none", 0x1000, None),
])  # fmt: skip
def test_misc_enable(mode, value, outcome):
    body = f"wrmsr_const IA32_MISC_ENABLE, {value:#x}\n mov ecx, IA32_MISC_ENABLE\n rdmsr\n mov ebx, eax"
    result = go(body, mode)[1]
    if outcome is None:
        assert result["exit_code"] == 13
    else:
        assert (result["exit_code"], result["registers"]["rbx"]) == (0, outcome)


@pytest.mark.parametrize(("code", "ud"), [
    ("f0 89 c3", True),  # lock mov
    ("f0 01 c3", True),  # lock add of a register
    ("f0 8b 04 24", True),  # lock mov eax, [rsp]
    ("f0 03 04 24", True),  # lock add eax, [rsp]: the destination is no memory
    ("f0 39 04 24", True),  # lock cmp
    ("f0 0f a3 04 24", True),  # lock bt
    ("f0 90", True),
    ("f0 0f a2", True),
    ("f0 01 04 24", False),
    ("f0 87 04 24", False),
    ("f0 0f c7 04 24", True),  # outside of the table
    ("f3 89 c3", False),  # rep mov: ignored
    ("f2 89 c3", False),
    ("f3 01 c3", False),
    ("f2 0f a2", False),
    ("f3 0f 1f 00", False),
    ("3e 89 c3", False),
])  # fmt: skip
@pytest.mark.parametrize("mode", ["bare", "emulated"])
def test_prefixes(mode, code, ud):
    body = "xor ecx, ecx\n .byte " + ", ".join(f"0x{b}" for b in code.split())
    assert go(body, mode)[1]["exit_code"] == (6 if ud else 0)


OSXSAVE = "mov rax, cr4\n bts rax, 18\n mov cr4, rax\n xor ecx, ecx\n xor edx, edx\n"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("body", "code"), [
    ("xor ecx, ecx\n xgetbv", 6),  # CR4.OSXSAVE is clear
    ("xor ecx, ecx\n xsetbv", 6),
    (OSXSAVE + "mov eax, 1\n xsetbv\n mov eax, 3\n xsetbv", 0),
    (OSXSAVE + "mov eax, 2\n xsetbv", 13),  # x87 is always in it
    (OSXSAVE + "mov eax, 0\n xsetbv", 13),
    (OSXSAVE + "mov eax, 7\n xsetbv", 13),  # AVX: not in CPUID.0DH
    (OSXSAVE + "mov eax, 3\n mov edx, 1\n xsetbv", 13),
    (OSXSAVE + "mov eax, 3\n inc ecx\n xsetbv", 13),
    (OSXSAVE + "inc ecx\n xgetbv", 13),  # XGETBV1 is not claimed
    (OSXSAVE + USER + "xgetbv\n syscall", 0),
    (OSXSAVE + USER + "mov eax, 3\n xsetbv", 13),
    (USER + "mov eax, 3\n xsetbv", 6),
    (OSXSAVE + ".byte 0x66, 0x0f, 0x01, 0xd0", 6),
    (OSXSAVE + ".byte 0xf3, 0x0f, 0x01, 0xd1", 6),
    (USER + "clts", 13), (USER + "lmsw ax", 13), (USER + "invd", 13), (USER + "lldt ax", 13),
    ("xor eax, eax\n lldt ax\n sldt ebx\n test ebx, ebx\n jnz fault0\n invd", 0),
    ("mov eax, 8\n lldt ax", 13),  # no LDT descriptor
    ("mov eax, 12\n mov fs, eax", 13),  # a selector of the LDT, which there is not
    ("mov eax, 8\n mov ss, eax", 13),  # code cannot be a stack
    (USER + "mov eax, 0x10\n mov fs, eax", 13),  # data of ring 0
    ("mov eax, 1\n mov ss, eax", 13),
])  # fmt: skip
def test_system_instructions_fault_where_silicon_does(mode, body, code):
    assert go(body, mode)[1]["exit_code"] == code


@pytest.mark.parametrize("mode", MODES)
def test_xcr0_and_what_cpuid_says_of_it(mode):
    body = """mov eax, 1
        cpuid
        mov r8d, ecx
""" + OSXSAVE + """xgetbv
        mov r9, rax
        mov eax, 3
        xsetbv
        xgetbv
        mov r10, rax
        mov eax, 1
        cpuid
        mov r11d, ecx
        mov eax, 0xd
        xor ecx, ecx
        cpuid
        mov r14d, eax
        mov r15d, ebx
        add r15d, ecx
        mov eax, 0xd
        mov ecx, 1
        cpuid
        mov edi, eax"""
    machine, result = go(body, mode)
    found = result["registers"]
    assert (found["r8"] >> 26 & 3, found["r11"] >> 26 & 3) == (1, 3)  # OSXSAVE follows CR4
    assert (found["r9"], found["r10"]) == (1, 3)
    assert (found["r14"], found["r15"], found["rdi"]) == (3, 2 * 576, 0)
    if mode != "bare":
        exits = machine.result(machine.stop(0, "running")).to_json()["exits"]
        assert exits["XSETBV"] == 1


@pytest.mark.parametrize("mode", MODES)
def test_machine_status_word(mode):
    """LMSW writes four bits and clears no PE; a change of MP, which the host owns, exits."""
    body = """mov eax, 0xb
        lmsw ax
        smsw ebx
        lmsw [rip + zero]
        smsw r8d
        mov eax, 10
        lmsw ax
        lmsw ax
        clts
        smsw r9d
        .data
zero:   .word 0
        .text"""
    machine, result = go(body, mode)
    found = result["registers"]
    assert [found[r] & 15 for r in ("rbx", "r8", "r9")] == [0xB, 1, 3]
    if mode != "bare":
        exits = machine.result(machine.stop(0, "running")).to_json()["exits"]
        assert exits["CR_ACCESS"] == 2


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("prefix", ["", "FEP; "])
def test_far_returns_and_far_pointers(mode, prefix):
    if prefix and mode == "bare":
        pytest.skip("no emulator")
    body = f"""push 8
        lea rax, [rip + next]
        push rax
        {prefix}retfq
next:   mov rbx, rsp
        sub rsp, 16
        lea eax, [rip + last]
        mov [rsp], eax
        mov dword ptr [rsp + 4], 8
        {prefix}retf 8
last:   sub rbx, rsp
        mov qword ptr [rip + cells], 0x12345678
        mov word ptr [rip + cells + 4], 0x10
        {prefix}lfs r14d, [rip + cells]
        mov r15d, fs
        push 0x10
        {prefix}pop gs
        mov r8d, gs
        mov r9d, 0xffff
        mov word ptr [rip + cells + 2], 0x10
        {prefix}lgs r9w, [rip + cells]
        mov dword ptr [rip + cells], 0x10
        push word ptr [rip + cells]
        pop word ptr [rip + cells + 8]
        movzx r10d, word ptr [rip + cells + 8]"""
    _, result = go(body, mode)
    assert result["exit_code"] == 0, result["stop"]
    found = result["registers"]
    assert (found["rbx"], found["r14"], found["r15"]) == (0, 0x12345678, 0x10)
    assert (found["r8"], found["r9"], found["r10"]) == (0x10, 0x5678, 0x10)


@pytest.mark.parametrize("mode", MODES)
def test_a_far_return_to_the_outer_ring(mode):
    body = """mov rbx, rsp
        push 0x23
        push rbx
        push 0x2b
        lea rax, [rip + user]
        push rax
        retfq
user:   mov r8, cs
        mov r9, ss
        mov r10, rsp
        syscall"""
    found = go(body, mode)[1]["registers"]
    assert (found["r8"], found["r9"], found["r10"]) == (0x2B, 0x23, found["rbx"])
    assert go("push 0x28\n push 0\n retfq", mode)[1]["exit_code"] == 13  # code of ring 3 for ring 0
