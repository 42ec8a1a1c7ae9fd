"""CMASK, INV and EDGE count cycles: every counter is recomputed from a trace of single instructions."""

from __future__ import annotations

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.machine.test_pmu import CYCLES, EDGE, EN, HEAD, INST, INV, OS, SLOTS, USR, cmask, write
from tests.tools.whole import machine
from vpmu_emu._jit import COMPILES
from vpmu_emu.asm import assemble
from vpmu_emu.machine.state import CLASS, RUN_SLICE
from vpmu_emu.tables.cpus import cpu
from vpmu_emu.tables.events import event_by_code

pytestmark = pytest.mark.uncompiled
# Without the compiler, looking for a smaller failing example takes too long.
PHASES = settings(phases=tuple(Phase) if COMPILES else (Phase.explicit, Phase.generate))

BRANCH, LOADS, ANY = 0xC4, 0x81D0, 0x83D0

SETUP = """
    load_idt
    set_gate 0x40, service, 3
    set_gate 0x41, leave, 3
    set_gate 0x50, tick
    load_tss
    lapic_enable_x2apic
    wrmsr_const IA32_X2APIC_LVT_TIMER, 0x40050
    wrmsr_const IA32_STAR, (0x18 << 48) | (0x08 << 32)
    lea rax, [kernel]
    wrmsr_rax IA32_LSTAR
    wrmsr_const IA32_EFER, 0x501
    mov [kernel_rsp], rsp
    mov ebx, 7
    mov r9d, 0x180000
"""
TAIL = """
    debug_exit 0
service:
    nop
    imul rbx, rbx
    iretq
leave:
    mov rsp, [kernel_rsp]
    jmp r15
kernel:
    nop
    nop
    sysretq
tick:
    lapic_eoi
    iretq
.macro ring3 code:vararg
.endm
    idt_storage
    ring3_storage
.bss
kernel_rsp: .zero 8
"""
TAIL = TAIL.replace(".macro ring3 code:vararg\n.endm\n", "")
PIECES = {
    "nops": "nop\n" * 7,
    "long": "imul rbx, rbx\nnop\nxor edx, edx\nmov eax, 9\ndiv ebx\n",
    "loop": "mov r8d, 6\n1: nop\ndec r8d\njnz 1b\n",
    "string": "lea rdi, [0x80000]\nmov ecx, 9\nrep stosb\n",
    "loads": "mov rax, [r9]\nadd qword ptr [r9 + 4096], 1\nadd r9, 128\n",
    "slow": "lfence\npause\nrdtsc\n",
    "user": "lea r15, [2f]\npush_user_frame 1f\niretq\n1: nop\nnop\nint 0x40\nnop\nint 0x41\n2:\n",
    "syscall": "lea r15, [2f]\npush_user_frame 1f\niretq\n1: nop\nsyscall\nimul rbx, rbx\nint 0x41\n2:\n",
    "halt": "rdtsc\nadd eax, 2000\nadc edx, 0\nmov ecx, 0x6e0\nwrmsr\nsti\nhlt\ncli\n",
}


def program(pieces, selectors):
    """The pieces in a window of these selectors, opened and closed by GLOBAL_CTRL."""
    text = HEAD + SETUP + write(0x38F, 0)
    for n, selector in enumerate(selectors):
        text += write(0x186 + n, selector | EN)
    text += write(0x38F, 0xFF) + "".join(PIECES[piece] for piece in pieces) + write(0x38F, 0)
    return assemble(text + TAIL, "cycles")


def finished(system):
    stop = system.run()
    assert (stop.reason, stop.info) == ("debug-exit", 0), str(stop)
    return system.guest_pmu()["pmc"]


def steps(system):
    """Totals when counters went on, then step by step: (all time, growth of the totals by ring)."""
    core = system.core
    classes = {name: CLASS[name] for name in ("inst", "branch", "load", "store", "cycles")}

    def now():
        totals = [{name: int(core.total[r, k]) for name, k in classes.items()} for r in (0, 1)]
        return int(core.t), totals

    trace, start = [], None
    while True:
        on = int(core.pmu.armed) != 0
        before = now()
        if on and start is None:
            start = before[1]
        # a step of HLT would be one with the time until it ends
        idle = int(core.lapic.timer_at) - int(core.t) if int(core.activity) else 1
        if system._turn(max(idle, 1)) != RUN_SLICE:
            return start, trace
        t, totals = now()
        if on:
            grown = [{k: totals[r][k] - before[1][r][k] for k in classes} for r in (0, 1)]
            trace.append((t - before[0], grown))


def recounted(start, trace, selector):
    """The counter of this selector, from the trace alone: a list of cycles, each with its events."""
    rings = [r for r, bit in ((0, OS), (1, USR)) if selector & bit]
    event = event_by_code(selector)
    first = clock = sum(start[r]["cycles"] for r in rings)
    events: dict[int, int] = {}
    gaps = []
    for dt, grown in trace:
        matched = sum(grown[r]["cycles"] for r in rings)
        if matched != dt:
            gaps.append(clock)  # another ring; or HLT, whose end comes before what it woke up for
        clock += matched
        if event.plus[0] in ("cycles", "slots"):
            continue
        n = sum(grown[r][name] for r in rings for name in event.plus)
        events[(clock - 1) // 16] = events.get((clock - 1) // 16, 0) + n
    always = {"cycles": 1, "slots": 4}.get(event.plus[0], 0)
    threshold = max(selector >> 24 & 0xFF, 1)
    inverted = bool(selector & INV) and selector >> 24 & 0xFF != 0
    if not selector & (EDGE | 0xFF << 24):
        unit = {"cycles": 16, "slots": 4}.get(event.plus[0])
        return clock // unit - first // unit if unit else sum(events.values())
    met = {
        k: (events.get(k, always) >= threshold) != inverted
        for k in range(first // 16, clock // 16)
    }
    if not selector & EDGE:
        return sum(met.values())
    count, last = 0, False
    for k, now in met.items():
        while gaps and gaps[0] < 16 * k + 16:
            gaps.pop(0)
            last = False  # the counter does not see the time of another ring, nor of HLT
        count += now and not last
        last = now
    return count


rings = st.sampled_from([OS, USR, OS | USR])
selectors = st.tuples(
    st.sampled_from([INST, INST, BRANCH, CYCLES, SLOTS, LOADS, ANY]),
    rings,
    st.integers(0, 5).map(cmask),
    st.sampled_from([0, INV]),
    st.sampled_from([0, EDGE]),
).map(lambda parts: sum(parts))
bodies = st.lists(st.sampled_from(sorted(PIECES)), min_size=1, max_size=6)


@PHASES
@given(bodies, st.lists(selectors, min_size=8, max_size=8))
def test_every_counter_is_what_the_trace_says(pieces, chosen):
    # memory events have four counters
    chosen = [s if n < 4 else s & ~0xFFFF | INST for n, s in enumerate(chosen)]
    code = program(pieces, chosen)
    found = finished(machine(code, "bare", max_insns=20_000))
    start, trace = steps(machine(code, "bare", max_insns=20_000))
    assert found == [recounted(start, trace, selector) for selector in chosen]


@PHASES
@given(bodies, rings, st.integers(1, 5).map(cmask))
def test_a_condition_and_its_inverse_are_all_unhalted_cycles(pieces, ring, threshold):
    """INST_RETIRED with CMASK and with INV too add up to the unhalted cycles of the same rings, exactly."""
    kinds = (INST | threshold, INST | threshold | INV, CYCLES, CYCLES | cmask(1), CYCLES | cmask(1) | INV)
    code = program(pieces, [kind | ring for kind in kinds])
    met, other, cycles, always, never = finished(machine(code, "bare", max_insns=20_000))[:5]
    assert met + other == cycles == always
    assert never == 0


@pytest.mark.parametrize(("mode", "more"), [("passthrough", 0), ("emulated", 2)])
@pytest.mark.parametrize("pieces", [["nops", "long"], ["loop", "user", "string"]])
def test_the_law_holds_in_a_guest(mode, more, pieces):
    """Emulated, the WRMSR that opens the window counts once in either counter, by software."""
    kinds = (INST | cmask(1), INST | cmask(1) | INV, CYCLES)
    code = program(pieces, [kind | OS | USR for kind in kinds])
    met, other, cycles = finished(machine(code, mode, max_insns=20_000))[:3]
    assert met + other == cycles + more > 15


@PHASES
@given(bodies)
def test_time_is_unhalted_but_for_hlt(pieces):
    system = machine(program(pieces, [INST]), "bare", max_insns=20_000)
    finished(system)
    core = system.core
    halted = int(core.t) - sum(int(core.total[ring, CLASS["cycles"]]) for ring in (0, 1))
    waits = pieces.count("halt")
    num, den = int(core.tsc_num), int(core.tsc_den)
    assert 0 <= halted * num <= waits * 2000 * 16 * den
    assert (halted > 0) == (waits > 0)


@pytest.mark.parametrize("horizon", [1, 3])
def test_no_policy_shows(horizon):
    pieces = sorted(PIECES)
    chosen = [INST | OS | cmask(1) | EDGE, INST | USR | cmask(2), CYCLES | OS | USR | EDGE, BRANCH | OS]
    code = program(pieces, chosen)
    policy = {"horizon": horizon, "horizon_seed": 5}
    ones = [machine(code, "bare", max_insns=20_000, **options) for options in ({}, policy)]
    assert finished(ones[0]) == finished(ones[1])
    assert ones[0].record() == ones[1].record()


def test_entries_into_ring_0():
    """Intel's CPU_CLK_UNHALTED.RING0_TRANS: cycles, OS, CMASK 1, EDGE."""
    entries = CYCLES | OS | cmask(1) | EDGE
    stays = finished(machine(program(["nops", "long"], [entries]), "bare"))[0]
    one = finished(machine(program(["user"], [entries]), "bare"))[0]
    three = finished(machine(program(["user"] * 3, [entries]), "bare"))[0]
    assert stays == 1  # the ring that the window begins in
    assert one == stays + 2  # the service and the return
    assert three == stays + 3 * 2


def test_waking_up_is_an_edge():
    both = CYCLES | OS | USR | EDGE
    awake, once, twice = (
        finished(machine(program(["halt"] * n + ["nops"], [both]), "bare"))[0] for n in range(3)
    )
    assert (awake, once, twice) == (1, 2, 3)


def test_a_write_to_a_running_counter_of_cycles():
    """The value counts from the write on; the time of the WRMSR itself belongs to the old one."""
    idle = INST | OS | EN | cmask(1) | INV
    text = HEAD + write(0x38F, 0) + write(0x186, idle) + write(0x187, CYCLES | OS | EN)
    text += write(0x38F, 3) + "imul rbx, rbx\n" * 20
    text += write(0x4C1, 0) + write(0x4C2, 0) + write(0x38F, 0) + "\n    debug_exit 0\n"
    idle_cycles, cycles = finished(machine(assemble(text, "write"), "bare"))[:2]
    # what is left is the write of the other counter and of GLOBAL_CTRL, not the multiplications
    wrmsr = cpu("spr").latency_of("wrmsr") // 16
    assert 0 < idle_cycles < cycles + wrmsr + 10
    assert cycles < wrmsr + 10


def test_reading_a_counter_of_cycles_while_it_runs():
    """RDPMC and RDMSR give what has been counted up to the instruction itself."""
    busy = INST | OS | EN | cmask(1)
    text = HEAD + write(0x38F, 0) + write(0x186, busy) + write(0x38F, 1) + "imul rbx, rbx\n" * 10
    text += "xor ecx, ecx\nrdpmc\nmov r8d, eax\nrdpmc\nmov r9d, eax\nmov ecx, 0x4c1\nrdmsr\nmov r10d, eax\n"
    text += write(0x38F, 0) + "\n    debug_exit 0\n"
    system = machine(assemble(text, "read"), "bare")
    total = finished(system)[0]
    first, second, third = (int(system.core.regs[k]) for k in (8, 9, 10))
    assert 9 <= first < second < third < total


def test_overflow_of_a_counter_of_cycles():
    text = HEAD + write(0x38F, 0) + write(0x186, INST | OS | EN | cmask(1)) + write(0x4C1, (1 << 48) - 5)
    text += write(0x38F, 1) + "imul rbx, rbx\n" * 4 + "mov ecx, 0x38e\nrdmsr\nmov r8d, eax\n"
    text += "imul rbx, rbx\n" * 4 + "rdmsr\nmov r9d, eax\n" + write(0x38F, 0) + "\n    debug_exit 0\n"
    system = machine(assemble(text, "overflow"), "bare")
    finished(system)
    assert (int(system.core.regs[8]), int(system.core.regs[9])) == (0, 1)
