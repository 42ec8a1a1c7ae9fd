"""Every run can be bounded: by what the guest did, whoever did it, and by time; idle time jumps."""

from __future__ import annotations

import pytest

from tests.tools.whole import MODES, machine
from vpmu_emu.asm import assemble
from vpmu_emu.errors import ConfigError
from vpmu_emu.machine import engine
from vpmu_emu.machine.u64 import U64

KVM = ("none", "emulated", "passthrough")
modes = pytest.mark.parametrize("mode", MODES)

FRAME = """
.intel_syntax noprefix
.include "msr.inc"
.include "macros.inc"
.macro deadline high, low=0
    lapic_enable_x2apic
    wrmsr_const IA32_X2APIC_LVT_TIMER, 0x40040
    mov ecx, IA32_TSC_DEADLINE
    mov edx, \\high
    mov eax, \\low
    wrmsr
.endm
.text
.globl _start
_start:
"""


def stopped(text: str, mode: str = "bare", **options):
    options.setdefault("max_insns", None)
    system = machine(assemble(FRAME + text, "limits"), mode, **options)
    return system, system.run()


CPUIDS = "1: .rept 9\ncpuid\n.endr\njmp 1b\n"
PORTS = "mov dx, 0x80\n1: out dx, al\nin al, dx\njmp 1b\n"
FORCED = "1: .byte 0x0f, 0x0b\n.ascii \"kvm\"\nnop\nloop 1b\n"


@pytest.mark.uncompiled
@pytest.mark.parametrize("mode", KVM)
@pytest.mark.parametrize("text", [CPUIDS, PORTS, FORCED])
def test_what_kvm_does_for_the_guest_counts(text, mode):
    system, stop = stopped(text, mode, max_insns=40)
    assert (stop.reason, system.instructions) == ("max-insns", 40)


# #UD whose handler, on a stack of its own, is the instruction that raised it.
NOTHING = """
    load_idt
    set_gate 6, bad
    mov byte ptr [idt + 6 * 16 + 4], 1  # IST 1
    lea rax, [rip + stack]
    mov [rip + tss + 36], rax
    lgdt [rip + gdtr]
    lea rax, [rip + tss]
    mov [rip + gdt + 18], ax
    shr rax, 16
    mov [rip + gdt + 20], al
    mov [rip + gdt + 23], ah
    mov eax, 0x10
    ltr ax
bad: ud2
gdtr: .word 31
    .quad gdt
    .data
    .balign 8
gdt: .quad 0, 0x00af9b000000ffff
    .quad 0x0000890000000067, 0
    .skip 256
stack: .quad 0
tss: .skip 104
    idt_storage
"""


@modes
def test_a_guest_that_does_nothing_is_bounded(mode):
    system, stop = stopped(NOTHING, mode, max_insns=300)
    assert stop.reason == "max-insns"
    assert 10 < system.instructions < 40


@modes
def test_time_is_bounded(mode):
    for text in ("1: jmp 1b\n", NOTHING):
        began = int(stopped("nop\n", mode, max_insns=1)[0].core.t) >> 4
        system, stop = stopped(text, mode, max_cycles=began + 6_000)
        assert stop.reason == "max-cycles"
        # one exit and what the host does about it is the longest piece
        assert began + 6_000 <= int(system.core.t) >> 4 < began + 20_000


@pytest.mark.uncompiled
def test_a_repeat_that_has_gone_over_more_than_all_memory_is_bounded():
    text = "mov rcx, -1\nmov rdi, rsp\nlea rsi, [rip + _start]\n1: lodsb\nrep lodsb\n"
    system, stop = stopped(text, max_insns=1_000, max_cycles=2_000)
    assert stop.reason == "max-cycles"
    assert int(system.core.iterations) > 100
    before = int(system.core.t)
    system.core.iterations = engine.MOST_ITERATIONS - U64(3)
    system.E.t_limit = before + (1 << 40)
    assert system.run().reason == "max-insns"
    assert int(system.core.iterations) == int(engine.MOST_ITERATIONS)


@modes
@pytest.mark.parametrize("high", [1, 0x11, 1 << 20, 3 << 24])
def test_a_wait_takes_no_time_of_ours(mode, high):
    """Up to 2**63 sixteenths of a core cycle, which may be shorter than one of the TSC."""
    system, stop = stopped(f"deadline {high:#x}\ncli\nmov dx, 0xf4\nsti\nhlt\n", mode)
    assert stop.reason == "triple-fault"  # there is no IDT
    assert int(system.core.t) >> 4 >= high << 32


@modes
def test_a_bound_that_is_none_is_refused(mode):
    with pytest.raises(ConfigError, match="max-cycles"):
        stopped("nop\n", mode, max_cycles=0)


@pytest.mark.uncompiled
@modes
def test_nothing_happens_after_the_end_of_time(mode):
    for high in (1 << 27, 1 << 31):
        _, stop = stopped(f"deadline {high:#x}\nsti\nhlt\n", mode)
        assert stop.reason == "end-of-time"
    assert stopped("deadline 0x11\nsti\nhlt\n", mode, max_cycles=1 << 33)[1].reason == "max-cycles"
    assert stopped("deadline 0x11\ncli\nhlt\n", mode)[1].reason == "halted"


@modes
@pytest.mark.parametrize("how", ["run", "step"])
@pytest.mark.parametrize(
    ("end", "reason"),
    [("debug_exit 3\n", "debug-exit"), ("cli\nhlt\n", "halted"), ("ud2\n", "triple-fault")],
)
def test_a_stop_has_the_line_of_what_made_it(mode, how, end, reason):
    body = "nop\n" + end
    program = assemble(FRAME + body + "nop\nnop\n", "limits")
    system = machine(program, mode)
    stop = system.run() if how == "run" else system.step(50)
    assert stop.reason == reason
    assert stop.line == (FRAME + body).count("\n")


# REP over its own bytes: RCX is 0 if it went on as it was decoded.
OVER_ITSELF = """
    lea rdi, [rip + 1f]
    mov ecx, 30
    mov al, 0x90
1:  rep stosb
    .fill 40, 1, 0x90
    mov al, cl
    out 0xf4, al
"""


@pytest.mark.uncompiled
@pytest.mark.parametrize("horizon", [0, 1])
def test_a_repeat_from_a_port_over_itself_does_too(horizon):
    """INS and OUTS look at what is due after each element."""
    text = OVER_ITSELF.replace("rep stosb", "rep insb").replace("mov al, 0x90", "mov dx, 0x3fb")
    system, stop = stopped(text, horizon=horizon)
    assert (stop.reason, stop.info) == ("debug-exit", 0)
    assert int(system.core.iterations) == 0
    assert not bytes(system.core.rep.tobytes()).strip(bytes(1))
    system, stop = stopped("mov rcx, -1\nmov dx, 0x80\nrep outsb\n", max_cycles=3_000, horizon=horizon)
    assert stop.reason == "max-cycles"
    assert int(system.core.iterations) > 1


@pytest.mark.uncompiled
@modes
def test_a_repeat_over_itself_goes_on_as_it_was_decoded(mode):
    program = assemble(FRAME + OVER_ITSELF, "over itself")
    plain = machine(program, mode)
    assert plain.run().info == 0
    for policy in ({"horizon": 1}, {"horizon": 5, "horizon_seed": 3}):
        other = machine(program, mode, **policy)
        assert other.run().info == 0
        assert other.record() == plain.record()
    other = machine(program, mode)
    while other.step().reason == "step":
        pass
    assert other.record() == plain.record()
