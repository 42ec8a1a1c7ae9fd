"""A VMM of several threads: vCPUs of one VM on their own cores, and what one thread does to another's."""

from __future__ import annotations

import pytest

from tests.linux.syscalls.kernel import Kernel
from vpmu_emu.linux.state import MP_STATE_INIT_RECEIVED, TASK_DEAD
from vpmu_emu.machine.state import STOP_HALTED
from vpmu_emu.tables.linux import constant

pytestmark = pytest.mark.uncompiled

# Main thread: {main}, after the VM is there. SPAWN n: a thread that has vCPU n run until it says over.
VMM = """
.equ RAM, 0x10000
.macro IOCTL fd, request
    mov edi, \\fd
    mov esi, \\request
    CALL_LINUX ioctl
.endm
.macro MUST code
    test rax, rax
    jns 9f
    EXIT \\code
9:
.endm
.macro NAP
    lea rdi, nap[rip]
    xor esi, esi
    CALL_LINUX nanosleep
.endm
.macro SPAWN n
    mov edi, CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM
    or edi, CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID
    lea rsi, stacks[rip + 1024 * (spawned + 1)]
    lea rdx, tids[rip + 4 * spawned]
    mov r10, rdx
    xor r8d, r8d
    mov ebp, \\n
    CALL_LINUX clone
    MUST 60
    jz thread
    .set spawned, spawned + 1
.endm
.macro JOIN k
1:  NAP
    cmp dword ptr tids[rip + 4 * \\k], 0
    jne 1b
.endm
.macro PIN k, cores
    mov edi, tids[rip + 4 * \\k]
    mov qword ptr mask[rip], \\cores
    lea rdx, mask[rip]
    mov esi, 8
    CALL_LINUX sched_setaffinity
    MUST 61
.endm
.macro SEND msg
    mov ecx, 0x830
    mov eax, (\\msg) & 0xffffffff
    mov edx, (\\msg) >> 32
    wrmsr
.endm
.macro X2APIC
    mov ecx, 0x1b
    rdmsr
    or eax, 0xc00
    wrmsr
    mov ecx, 0x80f
    mov eax, 0x1ff
    xor edx, edx
    wrmsr
.endm
.macro OVER
    mov eax, 0
    out 0x11, eax
    hlt
.endm
.equ INIT, 0x4500
.equ SIPI, 0x4602
.equ TO_1, 1 << 32
.set spawned, 0
.text
_start:
    mov edi, -100
    lea rsi, path[rip]
    mov edx, O_RDWR
    CALL_LINUX openat
    MUST 40
    mov r12d, eax
    xor edx, edx
    IOCTL r12d, KVM_CREATE_VM
    MUST 41
    mov r13d, eax
    mov vm[rip], eax
    IOCTL r13d, KVM_CREATE_IRQCHIP
    MUST 42
    lea rdi, ram[rip + 0x1000]
    lea rsi, guest0[rip]
    mov ecx, guest1 - guest0
    rep movsb
    lea rdi, ram[rip + 0x2000]
    mov ecx, guest_end - guest1
    rep movsb
    lea rdx, ram[rip]
    mov region[rip + 24], rdx
    lea rdx, region[rip]
    IOCTL r13d, KVM_SET_USER_MEMORY_REGION
    MUST 43
    lea rdx, cpuid[rip]
    IOCTL r12d, KVM_GET_SUPPORTED_CPUID
    MUST 44
    xor ebx, ebx
1:  mov edx, ebx
    IOCTL r13d, KVM_CREATE_VCPU
    MUST 45
    mov r14d, eax
    lea rcx, fds[rip]
    mov [rcx + 4 * rbx], eax
    mov esi, 3 * 4096
    xor edi, edi
    mov edx, 3
    mov r10d, MAP_SHARED
    mov r8d, r14d
    xor r9d, r9d
    CALL_LINUX mmap
    MUST 46
    lea rcx, runs[rip]
    mov [rcx + 8 * rbx], rax
    lea rdx, cpuid[rip]
    IOCTL r14d, KVM_SET_CPUID2
    MUST 47
    lea rdx, sregs[rip]
    IOCTL r14d, KVM_GET_SREGS
    lea rsi, sregs[rip]
    mov word ptr [rsi + kvm_sregs_cs + kvm_segment_selector], 8
    mov byte ptr [rsi + kvm_sregs_cs + kvm_segment_l], 1
    mov eax, 0x80000033
    mov [rsi + kvm_sregs_cr0], rax
    mov qword ptr [rsi + kvm_sregs_cr4], 0x20
    mov qword ptr [rsi + kvm_sregs_efer], 0x500
    cmp ebx, {direct}
    jg 2f
    lea rdx, sregs[rip]
    IOCTL r14d, KVM_SET_SREGS
    MUST 48
    mov eax, ebx
    inc eax
    shl eax, 12
    mov regs[rip + kvm_regs_rip], rax
    add eax, 0x8000
    mov regs[rip + kvm_regs_rsp], rax
    mov qword ptr regs[rip + kvm_regs_rflags], 2
    lea rdx, regs[rip]
    IOCTL r14d, KVM_SET_REGS
    MUST 49
    mov dword ptr number[rip], KVM_MP_STATE_RUNNABLE
    lea rdx, number[rip]
    IOCTL r14d, KVM_SET_MP_STATE
    MUST 50
2:  inc ebx
    cmp ebx, 2
    jb 1b
    {main}
    EXIT 0
thread:
    lea rcx, fds[rip]
    mov r14d, [rcx + 4 * rbp]
    lea rcx, runs[rip]
    mov rbx, [rcx + 8 * rbp]
1:  xor edx, edx
    IOCTL r14d, KVM_RUN
    lea rcx, results[rip]
    mov [rcx + 8 * rbp], rax
    cmp rax, -EINTR
    je 1b
    lea rcx, agains[rip]
    cmp rax, -EAGAIN
    jne 2f
    inc dword ptr [rcx + 4 * rbp]
    jmp 1b
2:  mov edi, 30
    test rax, rax
    js 3f
    mov edi, [rbx + kvm_run_exit_reason]
    cmp edi, KVM_EXIT_IO
    jne 3f
    cmp word ptr [rbx + kvm_run_io_port], 0x11
    jne 1b
    xor edi, edi
3:  CALL_LINUX exit
guest0: {guest0}
guest1: {guest1}
guest_end:
.data
path: .asciz "/dev/kvm"
.balign 8
nap: .quad 0, 2000
mask: .quad 0
region: .long 0, 0
    .quad 0, RAM, 0
cpuid: .long 64, 0
    .zero 64 * sizeof_kvm_cpuid_entry2
regs: .zero sizeof_kvm_regs
sregs: .zero sizeof_kvm_sregs
number: .quad 0
vm: .quad 0
fds: .long 0, 0
tids: .long 0, 0, 0, 0
agains: .long 0, 0
runs: .quad 0, 0
results: .quad 0, 0
{data}
.bss
.balign 16
stacks: .zero 4096
.balign 4096
ram: .zero RAM
"""
# Divisions make time pass in few instructions.
SLOWLY = "    mov ecx, 3\n    .rept 6\n    div rcx\n    .endr\n"
SPIN = f"1: {SLOWLY} jmp 1b"
COUNT = """
    mov esi, {n}
1:  lock inc qword ptr [0x4000]
    dec esi
    jnz 1b
    OVER
"""


def vmm(main: str, guest0: str, guest1: str = "hlt", *, cores: int = 2, direct: int = 1, data: str = "",
        cycles: int = 3_000_000, mode: str = "emulated") -> Kernel:  # fmt: skip
    """A host on which that VMM has run; the first `direct` + 1 vCPUs begin in 64-bit mode at once."""
    text = VMM.format(main=main, guest0=guest0, guest1=guest1, direct=direct, data=data)
    kernel = Kernel(text, cores=cores)
    kernel.S.config.fixed_cap = 3
    return kernel.run(cycles)


def all_gone(kernel: Kernel) -> None:
    """Nothing is left of a process, and nobody waits for anybody."""
    S = kernel.S
    assert not any(int(vcpu.used) for vcpu in S.vcpus)
    assert not any(int(vm.used) for vm in S.vms)
    assert not any(int(file.kind) for file in S.files)
    assert not any(int(event.used) for event in S.perf_events)
    assert all(int(task.state) == TASK_DEAD for task in S.tasks if task.used)
    assert [(int(p.call), int(p.vcpu)) for p in S.percpu] == [(0, -1)] * len(S.percpu)


@pytest.mark.parametrize("cores", [1, 2])
def test_locked_increments_of_two_vcpus_are_all_there(cores):
    main = """
    SPAWN 0
    SPAWN 1
    JOIN 0
    JOIN 1
    cmp qword ptr ram[rip + 0x4000], 1500
    je 3f
    EXIT 9
3:
    """
    kernel = vmm(main, COUNT.format(n=700), COUNT.format(n=800), cores=cores)
    assert kernel.exit_codes() == [0, 0, 0]
    all_gone(kernel)


@pytest.mark.parametrize("cores", [1, 2])
def test_exit_group_ends_guests_that_run(cores):
    kernel = vmm("SPAWN 0\n SPAWN 1\n NAP\n NAP\n EXIT 3\n", SPIN, SPIN, cores=cores)
    assert kernel.exit_codes() == [3, 3, 3]
    all_gone(kernel)


def test_exit_of_the_main_thread_leaves_the_others():
    kernel = vmm("SPAWN 0\n mov edi, 4\n CALL_LINUX exit\n", COUNT.format(n=50))
    assert kernel.exit_codes() == [4, 0]
    all_gone(kernel)


@pytest.mark.parametrize("cores", [1, 2])
def test_a_vcpu_whose_files_are_closed_runs_on(cores):
    """ioctl() holds the file; the VM goes when KVM_RUN is over."""
    main = """
    SPAWN 0
    NAP
    mov edi, fds[rip]
    CALL_LINUX close
    MUST 20
    mov edi, fds[rip + 4]
    CALL_LINUX close
    MUST 21
    mov edi, vm[rip]
    CALL_LINUX close
    MUST 22
    mov rdi, runs[rip]
    mov esi, 3 * 4096
    CALL_LINUX munmap
    MUST 23
    mov rdi, runs[rip + 8]
    mov esi, 3 * 4096
    CALL_LINUX munmap
    MUST 24
    NAP
    NAP
    cmp qword ptr ram[rip + 0x4000], 0
    je 3f
    mov rax, ram[rip + 0x4000]
    NAP
    cmp rax, ram[rip + 0x4000]
    jne 4f
3:  EXIT 9
4:
    """
    kernel = vmm(main, f"1: lock inc qword ptr [0x4000]\n {SLOWLY} jmp 1b\n", cores=cores)
    assert kernel.exit_codes() == [0, 0]
    all_gone(kernel)


ASK = "SPAWN 0\n NAP\n mov r14d, fds[rip]\n lea rdx, regs[rip]\n IOCTL r14d, KVM_GET_REGS\n MUST 20\n"


@pytest.mark.parametrize("cores", [1, 2])
def test_who_waits_for_a_vcpu_sleeps_until_it_is_free(cores):
    """vcpu->mutex: no look at it in between, however long the other thread is in KVM_RUN."""
    guest = f"mov esi, 700\n2: {SLOWLY} dec esi\n jnz 2b\n OVER"
    main = ASK + "cmp qword ptr regs[rip + kvm_regs_rsi], 0\n je 3f\n EXIT 9\n3:\n"
    kernel = vmm(main, guest, cores=cores)
    assert kernel.exit_codes() == [0, 0]
    assert int(kernel.S.tasks[0].switches) <= 5
    all_gone(kernel)


@pytest.mark.parametrize("cores", [1, 2])
def test_a_wait_that_nothing_ends_is_the_end_of_the_run(cores):
    kernel = vmm(ASK, "cli\n hlt", cores=cores, cycles=1 << 50)
    assert int(kernel.S.cores[0].stop) == STOP_HALTED
    assert int(kernel.S.cores[0].t) >> 4 < 1_000_000


@pytest.mark.parametrize("cores", [1, 2])
def test_a_second_kvm_run_of_a_vcpu_waits_for_the_first(cores):
    guest = "mov esi, 400\n1: inc qword ptr [0x4000]\n dec esi\n jnz 1b\n OVER"
    main = """
    SPAWN 0
    NAP
    SPAWN 0
    JOIN 0
    NAP
    NAP
    cmp qword ptr ram[rip + 0x4000], 400
    je 3f
    EXIT 9
3:
    """
    # The second one goes on where the first has left, at HLT for ever, and ends with its process.
    kernel = vmm(main, guest, cores=cores)
    assert kernel.exit_codes() == [0, 0, 0]
    all_gone(kernel)


# --- INIT and startup messages --------------------------------------------------------------------------
START_1 = "SEND INIT + TO_1\n SEND SIPI + TO_1\n"
UNTIL = "1: {slowly} cmp qword ptr [{what}], {value}\n jne 1b\n"


def until(what: int, value: int) -> str:
    """Code of a guest that waits for a word of its memory."""
    return UNTIL.format(slowly=SLOWLY, what=what, value=value)


@pytest.mark.parametrize("cores", [1, 2])
def test_a_vcpu_begins_by_init_and_startup(cores):
    """KVM_RUN of a vCPU that has never begun comes back with EAGAIN when INIT comes."""
    main = "SPAWN 0\n SPAWN 1\n JOIN 0\n JOIN 1\n cmp dword ptr agains[rip + 4], 1\n je 3f\n EXIT 9\n 3:"
    guest0 = "X2APIC\n" + START_1 + until(0x4000, 1) + "OVER"
    kernel = vmm(main, guest0, "mov dword ptr [0x4000], 1\n OVER", cores=cores, direct=0)
    assert kernel.exit_codes() == [0, 0, 0]


def test_a_startup_message_without_init_does_nothing():
    main = "SPAWN 0\n SPAWN 1\n JOIN 0\n NAP\n mov edi, ram[rip + 0x4000]\n CALL_LINUX exit_group\n"
    kernel = vmm(main, "X2APIC\n SEND SIPI + TO_1\n OVER", "mov dword ptr [0x4000], 1\n OVER", direct=0)
    assert kernel.exit_codes() == [0, 0, 0]


@pytest.mark.parametrize("cores", [1, 2])
def test_init_of_a_vcpu_at_work(cores):
    """It stops and waits; at the next startup message its registers are zero, its PMU is as it was."""
    guest1 = """
        lock inc qword ptr [0x4000]
        add [0x4008], rbx
        mov ebx, 5
        mov ecx, 0x186
        rdmsr
        mov [0x4010], rax
        mov eax, 0x4300c0
        wrmsr
        mov qword ptr [0x4018], 1
    1:  lock inc qword ptr [0x4020]
        {slowly}
        jmp 1b
    """
    guest0 = "X2APIC\n" + START_1 + until(0x4018, 1) + """
        SEND INIT + TO_1
        mov qword ptr [0x4018], 0
        mov rsi, [0x4020]
    """ + SLOWLY * 20 + """
        sub rsi, [0x4020]               # at most what was under way
        mov [0x4028], rsi
        SEND SIPI + TO_1
    """ + until(0x4018, 1) + "OVER"  # fmt: skip
    main = """
    SPAWN 0
    SPAWN 1
    JOIN 0
    mov edi, 9
    cmp qword ptr ram[rip + 0x4000], 2
    jne 3f
    cmp qword ptr ram[rip + 0x4008], 0
    jne 3f
    mov edi, 10
    cmp qword ptr ram[rip + 0x4010], 0x4300c0
    jne 3f
    mov edi, 11
    cmp qword ptr ram[rip + 0x4028], -1
    jl 3f
    xor edi, edi
3:  CALL_LINUX exit_group
    """
    kernel = vmm(main, guest0, guest1.format(slowly=SLOWLY), cores=cores, direct=0)
    assert kernel.exit_codes() == [0, 0, 0]


def test_mp_state_between_init_and_startup():
    main = """
    SPAWN 0
    JOIN 0
    mov r14d, fds[rip + 4]
    lea rdx, number[rip]
    IOCTL r14d, KVM_GET_MP_STATE
    MUST 20
    mov edi, number[rip]
    CALL_LINUX exit_group
    """
    kernel = vmm(main, "X2APIC\n SEND INIT + TO_1\n OVER", direct=0)
    assert kernel.exit_codes() == [constant("KVM_MP_STATE_INIT_RECEIVED"), 0]
    assert int(kernel.S.vcpus[1].mp_state) == MP_STATE_INIT_RECEIVED


def test_init_to_itself_makes_a_vcpu_wait():
    guest0 = "X2APIC\n" + until(0x4000, 1) + f"mov esi, 400\n 3: {SLOWLY} dec esi\n jnz 3b\n"
    guest0 += "SEND SIPI + TO_1\n OVER"
    guest1 = "lock inc qword ptr [0x4000]\n cmp qword ptr [0x4000], 2\n je 2f\n X2APIC\n SEND INIT + TO_1\n"
    kernel = vmm("SPAWN 0\n SPAWN 1\n JOIN 0\n JOIN 1\n", guest0, guest1 + "EXIT 1\n 2: OVER")
    assert kernel.exit_codes() == [0, 0, 0]


def test_init_of_the_first_vcpu_ends_in_real_mode():
    main = "SPAWN 0\n SPAWN 1\n JOIN 0\n JOIN 1\n"
    kernel = vmm(main, SPIN, "X2APIC\n SEND INIT\n OVER")
    assert kernel.exit_codes() == [0, constant("KVM_EXIT_FAIL_ENTRY"), 0]


# --- what one thread does to the vCPU of another ----------------------------------------------------------
@pytest.mark.parametrize("cores", [1, 2])
def test_a_memory_slot_goes_while_a_guest_uses_it(cores):
    main = """
    lea rdx, more[rip]
    mov slot[rip + 24], rdx
    lea rdx, slot[rip]
    IOCTL r13d, KVM_SET_USER_MEMORY_REGION
    MUST 20
    SPAWN 0
1:  NAP
    cmp qword ptr more[rip], 0
    je 1b
    mov qword ptr slot[rip + 16], 0
    lea rdx, slot[rip]
    IOCTL r13d, KVM_SET_USER_MEMORY_REGION
    MUST 21
    mov rbx, more[rip]
    JOIN 0
    cmp rbx, more[rip]
    je 3f
    EXIT 9
3:
    """
    data = "slot: .long 1, 0\n .quad 0x20000, 0x1000, 0\n .bss\n .balign 4096\nmore: .zero 0x2000\n .data\n"
    guest = f"1: inc qword ptr [0x20000]\n {SLOWLY} jmp 1b"
    kernel = vmm(main, guest, cores=cores, data=data)
    assert kernel.exit_codes() == [0, constant("KVM_EXIT_SHUTDOWN")]


def test_a_filter_reaches_a_guest_that_runs_on_another_core():
    """KVM_REQ_PMU and a kick: a guest that never exits counts no more."""
    guest = """
        mov ecx, 0x186
        mov eax, 0x4300c4
        xor edx, edx
        wrmsr
        mov qword ptr [0x4000], 1
    """ + SPIN  # fmt: skip
    main = """
    SPAWN 0
    PIN 0, 2
1:  NAP
    cmp qword ptr ram[rip + 0x4000], 0
    je 1b
    lea rdx, deny[rip]
    IOCTL r13d, KVM_SET_PMU_EVENT_FILTER
    MUST 20
1:  NAP
    jmp 1b
    """
    data = "deny: .long 1, 1, 0, 0, 0, 0, 0, 0\n .quad 0xc4\n"
    kernel = vmm(main, guest, data=data, cycles=350_000)
    vcpu = kernel.S.vcpus[0]
    assert kernel.exit_codes() == [None, None]
    assert (int(vcpu.requests), int(vcpu.pmu.pmcs[0].is_paused)) == (0, 1)


@pytest.mark.parametrize("cores", [1, 2])
def test_code_that_another_vcpu_changes(cores):
    guest0 = """
        mov dword ptr [0x5003], 0xb8    # mov eax, 0; out 0x11, eax; hlt
        mov dword ptr [0x5007], 0xf411e700
        mov dword ptr [0x5000], 0xb8fdeb90      # nop; jmp back
        mov qword ptr [0x4000], 1
    """ + until(0x4008, 1) + SLOWLY * 4 + "mov word ptr [0x5001], 0x9090\n OVER"  # fmt: skip
    guest1 = until(0x4000, 1) + "mov qword ptr [0x4008], 1\n mov eax, 0x5000\n jmp rax"
    kernel = vmm("SPAWN 0\n SPAWN 1\n JOIN 0\n JOIN 1\n", guest0, guest1, cores=cores)
    assert kernel.exit_codes() == [0, 0, 0]


@pytest.mark.parametrize(("selector", "counted"), [(0x4300C4, 0), (0x4200C4, 30)])
def test_a_vcpu_goes_on_in_another_thread(selector, counted):
    """Perf events end with the first thread: the same selector finds a dead one, another a new one."""
    count = """
        mov ecx, 0x186
        xor edx, edx
        xor eax, eax
        wrmsr
        mov ecx, 0xc1
        wrmsr
        mov ecx, 0x186
        mov eax, {selector}
        wrmsr
        mov esi, 30
    1:  dec esi
        jnz 1b
        mov ecx, 0xc1
        rdmsr
        mov [{at}], rax
        mov eax, 0
        out 0x11, eax
    """
    main = """
    SPAWN 0
    JOIN 0
    SPAWN 0
    JOIN 1
    mov edi, 9
    cmp qword ptr ram[rip + 0x4000], 30
    jne 3f
    mov edi, ram[rip + 0x4008]
3:  CALL_LINUX exit_group
    """
    guest = count.format(at=0x4000, selector=0x4300C4) + count.format(at=0x4008, selector=selector)
    kernel = vmm(main, guest)
    assert kernel.exit_codes() == [counted, 0, 0]
    all_gone(kernel)
