"""No guest sees memory that is not its own, whatever its VMM does with slots and mappings meanwhile."""

from __future__ import annotations

import random

import pytest

from tests.tools.profiles import cases
from vpmu_emu._jit import COMPILES
from vpmu_emu.asm import assemble
from vpmu_emu.system import System

PAGES = 8  # of the VMM's arena, and of the guest's window on it
ARENA, FOREIGN, WINDOW = 0x2000_0000, 0x2800_0000, 0x20_0000
GUEST_MARK, ARENA_MARK, FOREIGN_MARK, SECRET = 0x11111111, 0x22222222, 0x5EC2E7, 0x53535353

# The first guest of the host: all of its memory is secret, and it sleeps.
OTHER = f"""
_start: cld
        mov edi, 0x40000
        mov eax, {SECRET:#x}
        mov ecx, 0x8000
        rep stosd
        hlt
"""

# A VMM whose guest reads and writes its window on and on, in two vCPUs; the main thread changes what is
# there.
VMM = f"""
        .intel_syntax noprefix
        .include "linux.inc"
        .include "host.inc"
        .equ RAM_SIZE, 0x8000

        .macro MAP address, size, prot
        mov edi, \\address
        mov esi, \\size
        mov edx, \\prot
        mov r10d, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
        mov r8, -1
        xor r9d, r9d
        linux mmap
        exit_if_error 30
        .endm
        .macro UNMAP address, size
        mov edi, \\address
        mov esi, \\size
        linux munmap
        .endm
        .macro PROTECT address, size, prot
        mov edi, \\address
        mov esi, \\size
        mov edx, \\prot
        linux mprotect
        .endm
        .macro FILL address, mark
        mov edi, \\address
        mov eax, \\mark
        mov ecx, 1024
        rep stosd
        .endm
        .macro SLOT number, gpa, size, address
        lea rdx, [rip + region]
        mov dword ptr [rdx], \\number
        mov qword ptr [rdx + 8], \\gpa
        mov qword ptr [rdx + 16], \\size
        mov rax, \\address
        mov [rdx + 24], rax
        mov edi, r13d
        mov esi, KVM_SET_USER_MEMORY_REGION
        linux ioctl
        .endm
        .macro CHECK address, mark
        mov eax, [\\address]
        lea rcx, [rip + seen]
        mov [rcx], rax
        cmp eax, \\mark
        je 8f
        test eax, eax
        jz 8f
        cmp eax, {GUEST_MARK:#x}
        jne wrong
8:
        .endm
        .macro VCPU number
        do_ioctl r13d, KVM_CREATE_VCPU, \\number
        exit_if_error 6
        mov r14d, eax
        xor edi, edi
        mov esi, 0x3000
        mov edx, PROT_READ | PROT_WRITE
        mov r10d, MAP_SHARED
        mov r8d, r14d
        xor r9d, r9d
        linux mmap
        exit_if_error 8
        mov rbx, rax
        must_ioctl r14d, KVM_GET_SREGS, sregs, 11
        long_mode sregs
        mov qword ptr [rsi + kvm_sregs_cr3], 0x3000
        must_ioctl r14d, KVM_SET_SREGS, sregs, 12
        must_ioctl r14d, KVM_SET_REGS, regs, 13
        mov edi, CLONE_VM | CLONE_SIGHAND | CLONE_THREAD
        lea rsi, [rip + stacks + 4096 * \\number + 4096]
        xor edx, edx
        xor r10d, r10d
        xor r8d, r8d
        linux clone
        exit_if_error 9
        test eax, eax
        jz child
        .endm

        .globl _start
_start: lea rdi, [rip + ram + 0x1000]
        lea rsi, [rip + guest]
        mov ecx, guest_end - guest
        rep movsb
        lea rdi, [rip + ram]
        mov qword ptr [rdi + 0x3000], 0x4007
        mov qword ptr [rdi + 0x4000], 0x5007
        mov qword ptr [rdi + 0x5000], 0x87
        mov qword ptr [rdi + 0x5008], {WINDOW:#x} | 0x87
        mov edi, AT_FDCWD
        lea rsi, [rip + dev_kvm]
        mov edx, O_RDWR
        linux openat
        exit_if_error 1
        mov r12d, eax
        do_ioctl r12d, KVM_CREATE_VM
        exit_if_error 2
        mov r13d, eax
        lea rax, [rip + ram]
        SLOT 0, 0, RAM_SIZE, rax
        exit_if_error 5
        MAP {ARENA:#x}, {PAGES * 4096}, 3
        SLOT 1, {WINDOW:#x}, {PAGES * 4096}, {ARENA:#x}
        VCPU 0
        VCPU 1
        {{operations}}
        {{checks}}
        exit_program 0
wrong:  lea rax, [rip + seen]
        mov rax, [rax]
        print_value "wrong:"
        exit_program 98

child:
1:      do_ioctl r14d, KVM_RUN
        cmp rax, -EFAULT
        je skip
        cmp rax, -EINTR
        je 1b
        test rax, rax
        jns 2f
        exit_program 96
2:      mov eax, [rbx + kvm_run_exit_reason]
        cmp eax, KVM_EXIT_MMIO          # no slot is there
        jne 4f
        mov qword ptr [rbx + kvm_run_mmio_data], -1
        jmp 1b
4:      cmp eax, KVM_EXIT_IO
        jne 3f
        mov rsi, [rbx + kvm_run_io_data_offset]
        mov eax, [rbx + rsi]
        print_value "a guest sees"
        exit_program 99
skip:   lea r15, [rsp - 1024]           # the guest goes on with the next page
        mov rdx, r15
        mov edi, r14d
        mov esi, KVM_GET_REGS
        linux ioctl
        mov qword ptr [r15 + kvm_regs_rip], 0x1000 + next - guest
        mov rdx, r15
        mov edi, r14d
        mov esi, KVM_SET_REGS
        linux ioctl
        jmp 1b
3:      print_value "exit reason"
        exit_program 97

guest:  mov ebx, {WINDOW:#x}
1:      mov ebp, 500                    # long enough for the page to change under it
2:      mov eax, [rbx]
        call 3f
        mov eax, [rbx + 4]
        call 3f
        mov eax, {GUEST_MARK:#x}
        mov [rbx + 4], eax
        dec ebp
        jnz 2b
next:   mov esp, 0x8000
        add ebx, 4096
        cmp ebx, {WINDOW + PAGES * 4096:#x}
        jb 1b
        jmp guest
3:      test eax, eax
        jz 4f
        cmp eax, -1                     # no slot is there
        je next
        cmp eax, {GUEST_MARK:#x}
        je 4f
        cmp eax, {ARENA_MARK:#x}
        je 4f
        out 0x10, eax
4:      ret
guest_end:
        .data
dev_kvm:
        .asciz "/dev/kvm"
        .balign 8
region: .zero sizeof_kvm_userspace_memory_region
regs:   .zero kvm_regs_rsp
        .quad 0x8000
        .zero kvm_regs_rip - kvm_regs_rsp - 8
        .quad 0x1000, 2
        .zero sizeof_kvm_regs - kvm_regs_rflags - 8
sregs:  .zero sizeof_kvm_sregs
seen:   .quad 0
        .bss
        .balign 4096
ram:    .zero RAM_SIZE
stacks: .zero 2 * 4096 + 8
        host_storage
"""


OPERATIONS = (
    "slot", "slot", "delete", "move", "unmap", "unmap", "map", "map", "protect", "foreign", "foreign",
    "nap", "nap", "nap",
)  # fmt: skip


def operations(draw: random.Random, count: int) -> tuple[str, str]:
    """Macro calls: what the VMM does, and what it checks in the end."""
    lines = []
    arena = dict.fromkeys(range(PAGES), 3)  # what the VMM may do with each page that is there
    foreign: set[int] = set()
    for _ in range(count):
        page, n = draw.randrange(PAGES), draw.randint(1, 3)
        n = min(n, PAGES - page)
        at, size = ARENA + page * 4096, n * 4096
        what = draw.choice(OPERATIONS)
        number = draw.randint(1, 3)
        if what == "slot":
            gpa = WINDOW + draw.randrange(PAGES) * 4096
            where = draw.choice((at, at, at, 0x4000_0000, 0x7FFF_0000_0000, 0))
            lines.append(f"SLOT {number}, {gpa:#x}, {size:#x}, {where:#x}")
        elif what == "delete":
            lines.append(f"SLOT {number}, 0, 0, 0")
        elif what == "move":
            lines.append(f"SLOT {number}, {WINDOW + draw.randrange(PAGES) * 4096:#x}, {size:#x}, {at:#x}")
        elif what == "unmap":
            lines.append(f"UNMAP {at:#x}, {size:#x}")
            for k in range(page, page + n):
                arena.pop(k, None)
            if draw.random() < 0.5:  # what was free just now is somebody else's
                k = draw.randrange(4)
                here = FOREIGN + k * 4096
                lines.append(f"MAP {here:#x}, 4096, 3\n FILL {here:#x}, {FOREIGN_MARK:#x}")
                foreign.add(k)
                lines.append("sleep_ns 3000")
        elif what == "map":
            lines.append(f"MAP {at:#x}, {size:#x}, 3")
            arena |= dict.fromkeys(range(page, page + n), 3)
            if draw.random() < 0.5:
                lines.append(f"FILL {at:#x}, {ARENA_MARK:#x}")
        elif what == "protect" and all(k in arena for k in range(page, page + n)):
            prot = draw.choice((0, 1, 3))
            lines.append(f"PROTECT {at:#x}, {size:#x}, {prot}")
            arena |= dict.fromkeys(range(page, page + n), prot)
        elif what == "foreign":
            k = draw.randrange(4)
            here = FOREIGN + k * 4096
            if k in foreign and draw.random() < 0.4:
                lines.append(f"UNMAP {here:#x}, 4096")
                foreign.discard(k)
            else:  # on pages that have just become free
                lines.append(f"MAP {here:#x}, 4096, 3\n FILL {here:#x}, {FOREIGN_MARK:#x}")
                foreign.add(k)
        else:
            lines.append(f"sleep_ns {draw.choice((500, 3_000, 20_000))}")
    checks = [f"mov esi, {ARENA + k * 4096:#x}\n CHECK rsi, {ARENA_MARK:#x}" for k, p in arena.items() if p]
    for k in foreign:
        checks += [
            f"mov esi, {FOREIGN + k * 4096 + offset:#x}\n mov eax, [rsi]\n mov [rip + seen], rax\n"
            f"cmp eax, {FOREIGN_MARK:#x}\n jne wrong"
            for offset in (0, 4, 4092)
        ]
    return "\n".join(lines), "\n".join(checks)


@pytest.mark.skipif(not COMPILES, reason="uncompiled the two guests would take minutes")
@pytest.mark.parametrize("seed", range(cases(day=8, laws=60, night=2000)))
def test_a_guest_sees_its_own_memory_only(seed):
    """Slots set, moved, deleted, memory unmapped and mapped again under two vCPUs that use it."""
    draw = random.Random(seed)
    doing, checks = operations(draw, 60)
    text = VMM.replace("{operations}", doing).replace("{checks}", checks)
    program = assemble(text, "slots.s")
    mode, cores = draw.choice(("none", "emulated")), draw.choice((1, 2))
    system = System(
        assemble(OTHER, "other.s"), vpmu=mode, ram=2, cores=cores, host=[program], max_insns=300_000_000
    )
    stop = system.run()
    result = system.result(stop).to_json()
    mine = [task for task in result["tasks"] if task["program"] == "slots.s"]
    assert {task["exit_code"] for task in mine} == {0}, (result["serial"], stop)
    secret = system.read(0x40000, 0x20000)
    assert secret == SECRET.to_bytes(4, "little") * (len(secret) // 4)
