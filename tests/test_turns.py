"""Several cores, tasks, VMs: a run is a pure function of its record, however Python cuts it into pieces.

Whose turn it is and until when stands in the record. Slices follow wall time; steps, horizons and stops are
policies; none of them chooses anything.
"""

from __future__ import annotations

import os
import random
import signal
from functools import cache

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.tools.profiles import cases
from tests.tools.whole import assert_same, lesson, machine, state
from vpmu_emu._jit import COMPILES
from vpmu_emu.asm import assemble, assemble_file
from vpmu_emu.machine.state import RUN_SLICE, RUN_SYSCALL
from vpmu_emu.system import System, _uninterrupted

PROGRAMS = cases(day=2_000, laws=20_000, night=200_000, uncompiled=1)
AT_ONCE = 2_000  # programs that one run does, one after another
CALLS = 12  # of pieces, by each core, in one program
TABLE = 0x200000
WORDS = 8  # memory that all programs share

# The pieces that random programs are made of. r12 is a random number of each core, r13 the core; a piece
# may do to rax, rcx, rdx, rdi, rbx what it wants.
PIECES = (
    # one word, read and written by both, locked and not
    "random\nlock inc qword ptr [shared + rax*8]",
    "random\nmov rbx, [shared + rax*8]\nadd rbx, r12\nmov [shared + rax*8], rbx",
    "random\nmov rbx, r12\nlock xadd [shared + rax*8], rbx\nxor r12, rbx",
    "random\nxchg rbx, [shared + rax*8]\nadd r12, rbx",
    "random\nxchg rcx, rax\nmov rax, [shared]\nmov rbx, r12\nlock cmpxchg [shared + rcx*8], rbx",
    "random\nlock bts qword ptr [shared], rax\nadc r12, 3",
    "random\nmov bx, [shared + rax*2 + 1]\nadd [shared + rax], bl",
    # time: what an instruction takes, what the other has done meanwhile
    "mov ebx, 7\nmov rax, r12\nxor edx, edx\ndiv rbx\nadd [shared], rdx",
    "random\nlea ecx, [rax + 1]\n1: pause\nadd rbx, [shared + 8]\nloop 1b\nadd r12, rbx",
    "rdtsc\nxor r12, rax",
    "cpuid\nadd r12, rcx",
    "random\nclflush [shared + rax*8]\nmfence",
    # strings over what the other writes
    "random\nlea rdi, [shared + rax]\nmov ecx, 40\nmov al, bl\nrep stosb",
    "random\npush rsi\nlea rsi, [shared + rax]\nlea rdi, [shared + 24]\nmov ecx, 5\nrep movsq\npop rsi",
    "random\nlea rdi, [shared]\nmov ecx, 64\nrepne scasb\nadd r12, rcx",
    # messages; a core that sleeps is woken by one, or by its timer
    "icr 0x40, r13d, 1",
    "icr 0x40, r13d, 0",
    "icr 0x4400, r13d, 1",
    "icr 0xc0040, r13d, 0",
    "cli\nwrmsr_reg IA32_X2APIC_INIT_COUNT, r12d, 0x0f\nsti\nhlt",
    "cli\nwrmsr_reg IA32_X2APIC_INIT_COUNT, r12d, 1\nnop\nsti\nhlt",
    "cli\nrandom\nadd r12, [shared + rax*8]\nsti",
    "pushfq\ncli\nlock inc qword ptr [shared + 16]\npopfq",
    # counters that overflow soon: on instructions, on cycles
    "count 0x5300c0",
    "count 0x53003c",
    # code that the other core changes, code in the very page that runs, REP over itself
    "mov [patch + 1], r12d\ncall patch\nadd r12, rax",
    "random\nmov [patch + 1], al\nadd [shared + 40], rax",
    "call patch\nxor [shared + 48], rax",
    "call near_patch\nlock add [near_patch + 1], r12d\ncall near_patch\nadd r12, rax",
    "lea rdi, [2f]\nmov al, 0x90\nmov ecx, 6\n2: rep stosb\n.fill 6, 1, 0x90\nmov word ptr [2b], 0xaaf3",
)

FRAME = """
.intel_syntax noprefix
.include "msr.inc"
.include "macros.inc"
.macro random
    imul r12, r12, 0x5851f42d
    add r12, 0x14057b7e
    mov rax, r12
    shr rax, 29
    and eax, 7
.endm
.macro icr what, dest, other
    mov ecx, IA32_X2APIC_ICR
    mov eax, \\what
    mov edx, \\dest
    xor edx, \\other
    wrmsr
.endm
.macro wrmsr_reg msr, value, mask
    mov ecx, \\msr
    mov eax, \\value
    and eax, \\mask
    inc eax
    xor edx, edx
    wrmsr
.endm
.macro count event
    wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
    wrmsr_const IA32_X2APIC_LVT_PMI, 0x42
    wrmsr_const IA32_PERFEVTSEL0, \\event
    mov ecx, IA32_PMC0
    mov eax, r12d
    or eax, 0xffffff00
    mov edx, -1
    wrmsr
    wrmsr_const IA32_PERF_GLOBAL_CTRL, 1
.endm
.macro handler name, cell, counts=0, again=0
\\name:
    push rax
    push rcx
    push rdx
    lock inc qword ptr [\\cell]
    .if \\counts
    wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
    wrmsr_const IA32_PERF_GLOBAL_STATUS_RESET, 1
    .endif
    .if \\again                         # an NMI between STI and HLT may have cost a wake-up
    wrmsr_const IA32_X2APIC_INIT_COUNT, 0x3f
    .endif
    lapic_eoi
    pop rdx
    pop rcx
    pop rax
    iretq
.endm
.text
.globl _start
_start:
    load_idt
    set_gate 2, nmi
    set_gate 0x40, ping
    set_gate 0x41, timer
    set_gate 0x42, pmi
    lea rax, [rip + second]
    mov word ptr [0x8000], 0xb848       # mov rax, imm64; jmp rax
    mov [0x8002], rax
    mov word ptr [0x800a], 0xe0ff
    lapic_enable_x2apic
    xor r13d, r13d
    icr 0x4500, r13d, 1
    icr 0x4608, r13d, 1
    mov rsi, TABLE
    jmp both
second:
    lea rsp, [rip + stack_end]
    load_idt
    lapic_enable_x2apic
    mov r13d, 1
    mov rsi, TABLE + 8
both:
    wrmsr_const IA32_X2APIC_LVT_TIMER, 0x41
    wrmsr_const IA32_X2APIC_DIV_CONF, 0xb
    lea r12, [r13 + 1]
    sti
next:
    lodsq
    add rsi, 8                          # the two cores' programs lie interleaved
    call rax
    jmp next
# The end of a program: both have to be there; the first writes down what it has come to.
meet:
    lock inc qword ptr [here]
    add r14, 2
1:  pause
    cmp [here], r14
    jb 1b
    test r13d, r13d
    jnz 3f
    xor eax, eax
    mov ecx, WORDS
2:  imul rax, rax, 31
    add rax, [shared + rcx*8 - 8]
    loop 2b
    add rax, [pings]
    mov rdx, [rip + log_at]
    mov [rdx], rax
    add qword ptr [rip + log_at], 8
3:  ret
finish:
    debug_exit 0
nmi:
    lock inc qword ptr [nmis]
    iretq
handler:
handler ping, pings
handler timer, timers, 0, 1
handler pmi, pmis, 1
near_patch:
    mov eax, 0x12345678
    ret
{pieces}
    idt_storage
.balign 4096
patch:
    mov eax, 0x12345678
    ret
.bss
.balign 4096
    .zero 4096
stack_end:
shared: .zero 128
here:   .zero 8
pings:  .zero 8
timers: .zero 8
pmis:   .zero 8
nmis:   .zero 8
log_at: .zero 8
"""


@cache
def frame():
    pieces = "".join(f"piece{k}:\n{text}\nret\n" for k, text in enumerate(PIECES))
    return assemble(f".equ TABLE, {TABLE}\n.equ WORDS, {WORDS}\n" + FRAME.format(pieces=pieces), "turns")


def two_cores(seed: int, programs: int, **options) -> System:
    """A machine in which two cores do so many random programs, and LOG of each."""
    program = frame()
    at = program.symbols
    system = machine(program, "bare", cores=2, ram=8, max_insns=None, max_cycles=1 << 32, **options)
    chance = np.random.default_rng(seed)
    pieces = np.array([at[f"piece{k}"] for k in range(len(PIECES))], dtype=np.uint64)
    calls = np.full((programs, CALLS + 1, 2), at["meet"], dtype=np.uint64)
    calls[:, :CALLS] = pieces[chance.integers(0, len(pieces), (programs, CALLS, 2))]
    table = np.append(calls.reshape(-1), np.array([at["finish"]] * 2, dtype=np.uint64))
    log = TABLE + len(table) * 8
    system.M[TABLE:log] = table.view(np.uint8)
    system.M[at["log_at"] : at["log_at"] + 8] = np.array([log], dtype=np.uint64).view(np.uint8)
    system.log = slice(log, log + 8 * programs)
    return system


def to_the_end(system: System, times) -> int:
    """Run with a return to Python after each of `times`, in 1/16 cycle from now."""
    code, turns = RUN_SLICE, 0
    while code == RUN_SLICE:
        code = system._turn(times())
        turns += 1
    system.stop(code)
    return turns


def slices(size: int):
    return lambda: size


def anyhow(seed: int):
    chance = random.Random(seed)
    return lambda: 1 << chance.randint(4, 20)


def stepped(system: System, steps: int) -> System:
    """So many steps, one at a time, then the rest."""
    for _ in range(steps):
        system.step()
    system.run()
    return system


@pytest.mark.uncompiled
@pytest.mark.parametrize("seed", range(max(1, PROGRAMS // AT_ONCE)))
def test_random_programs_of_two_cores(seed):
    """Shared memory, messages, sleep, locked instructions, code that one core writes and the other runs."""
    programs = min(PROGRAMS, AT_ONCE)
    plain = two_cores(seed, programs)
    assert plain.run().reason == "debug-exit"
    if programs == AT_ONCE:
        at = plain.program.symbols
        for cell in ("pings", "timers", "pmis", "nmis"):
            assert int.from_bytes(plain.read(at[cell], 8), "little") > programs // 2, cell

    def same(other: System, what: str) -> None:
        a, b = (system.M[system.log].view(np.uint64) for system in (plain, other))
        differs = np.flatnonzero(a != b)
        assert not len(differs), f"{what}: program {differs[0]} of seed {seed} is the first that differs"
        assert_same(state(plain), state(other), what)

    for size in (1 << 10, 1 << 15, 1 << 20):
        other = two_cores(seed, programs)
        to_the_end(other, slices(size))
        same(other, f"slices of {size}")
    other = two_cores(seed, programs)
    to_the_end(other, anyhow(seed))
    same(other, "slices of any length")
    same(stepped(two_cores(seed, programs), 3_000 if COMPILES else 300), "steps")
    other = two_cores(seed, programs, trace=True)
    assert watched(other) > (99 if programs == AT_ONCE else 0)
    same(other, "watched, stopped and traced")
    for horizon in ({"horizon": 1}, {"horizon": 9, "horizon_seed": seed + 1}):
        other = two_cores(seed, programs, **horizon)
        other.run()
        same(other, f"{horizon}")


def watched(system: System) -> int:
    """Stop at each message that a core sends, and go on; stop at some breakpoints, step past them."""
    E = system.E
    E.watch_msr[0] = E.watch_last[0] = 0x830
    E.watch_mode[0], E.n_watch = 2, 1
    E.breaks[0] = system.program.symbols["handler"]
    came = {"watch": 0, "break": 0}

    def arm(n: int) -> None:
        E.n_break = n
        E.generation, E.n_uops = E.generation + 1, 1  # breakpoints are a part of decoded code

    arm(1)
    while (reason := system.run().reason) in came:
        came[reason] += 1
        E.stop_request = 0
        if reason == "break":
            arm(0)
            system.step()
            arm(came["break"] < 100)
    return min(came.values())


@cache
def host_program(name: str):
    return assemble_file(ROOT / "guests" / "host" / f"{name}.s")


HOSTS = {
    "vcpu_threads": {"cores": 2},
    "migrate": {"cores": 2},
    "noisy_neighbour": {"cores": 1},
    "second_vm": {"cores": 1},
}


@pytest.mark.few(4)
@pytest.mark.skipif(not COMPILES, reason="minutes without the compiler")
@pytest.mark.parametrize("mode", ["emulated", "passthrough", "mediated"])
@pytest.mark.parametrize("name", HOSTS)
def test_programs_of_the_host_and_vms(name, mode):
    def fresh() -> System:
        given = dict(HOSTS[name], max_insns=None, max_cycles=1 << 34)
        return machine(lesson("07_contention"), mode, host=[host_program(name)], **given)

    plain = fresh()
    plain.run()
    for size in (1 << 10, 1 << 14, 1 << 20):
        other = fresh()
        to_the_end(other, slices(size))
        assert_same(state(plain), state(other), f"{name}: slices of {size}")
    assert_same(state(plain), state(stepped(fresh(), 500)), f"{name}: steps")


@pytest.mark.skipif(not COMPILES, reason="minutes without the compiler")
@pytest.mark.parametrize("mode", ["emulated", "passthrough", "mediated"])
def test_a_system_call_that_python_has_not_begun_waits_for_it(mode):
    """Ctrl-C may come between the two: the next slice finds what the last one left."""

    def fresh() -> System:
        given = dict(HOSTS["migrate"], max_insns=None)
        return machine(lesson("07_contention"), mode, host=[host_program("migrate")], **given)

    plain, other = fresh(), fresh()
    plain.run()
    run = other._run

    def twice() -> int:
        code = run()
        return run() if code == RUN_SYSCALL else code

    other._run = twice
    other.run()
    assert_same(state(plain), state(other), "asked twice")


@pytest.mark.uncompiled
def test_ctrl_c_waits_for_the_end_of_a_system_call():
    done = []

    def call() -> None:
        with _uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            done.append(1)

    usual = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` has it ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            call()
    finally:
        signal.signal(signal.SIGINT, usual)
    assert done
