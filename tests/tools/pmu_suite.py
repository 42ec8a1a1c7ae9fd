"""The rows of kvm-unit-tests' x86/pmu.c as a table, a guest made from it, and its judge.

`python -m tests.tools.pmu_suite [short]` prints the results of every mode. A row is a few
lines for the guest that leave values in a table, and a rule for them. The guest only measures; ranges and
exact counts are judged here, as the suite has them (intel_gp_events, fixed_events, adjust_events_range),
so that a failing row says its value. Written anew from what the suite asks; names are its own: a row is
found in both.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import attrs

from vpmu_emu.asm import Program, assemble
from vpmu_emu.system import System

SKIP = None  # what a rule gives for a row that the suite skips
GP = 13  # #GP
# name, selector, least and most per round; None: exact once GLOBAL_CTRL makes windows
EVENTS = (
    ("core cycles", 0x003C, 1, 50),
    ("instructions", 0x00C0, 10, 10.2),
    ("ref cycles", 0x013C, 1, 30),
    ("llc references", 0x4F2E, 0, 2.5),
    ("llc misses", 0x412E, 0, 1),
    ("branches", 0x00C4, 1, 1.1),
    ("branch misses", 0x00C5, 0, 0.1),
)
FIXED = ((10, 10.2), (1, 30), (0.1, 30))
EXACT = {"instructions": lambda n: 10 * n + 17, "branches": lambda n: n + 2}
WIDTH = 48
MASK = (1 << WIDTH) - 1
LEGACY, FULL_WIDTH = "", "full-width writes: "
RDPMC_VALUE = 0xFF01_2345_6789
VECTOR, NMI = 0x20, 0x400  # what LVTPC holds

Rule = Callable[[Sequence[int], "Facts"], bool | None]


@attrs.frozen
class Facts:
    """What a rule may look at besides its own values."""

    rounds: int
    version: int
    ref_cycles: int  # of the loop that calibrates reference cycles,
    tsc: int  # and what the TSC went on in it
    handler: int  # instructions of the handler that a PMI enters within the window: NMIs do

    def event(self, name: str, least: float, most: float, count: int) -> bool:
        """Whether the count of an event of the measured loop is in its range."""
        if name in EXACT and self.version > 1:
            return count == EXACT[name](self.rounds)
        low, high = max(1, int(least * self.rounds)), int(most * self.rounds)
        if name == "ref cycles" and self.tsc:
            low, high = (v * self.ref_cycles // self.tsc for v in (low, high))
        return low <= count <= high


@attrs.frozen
class Row:
    """One result of the suite: its name, what the guest does for it, how many values, what must hold."""

    name: str
    code: str
    values: int
    rule: Rule


@attrs.frozen
class Config:
    """One way to run the suite.

    `settings` shape the silicon's PMU on `bare`, `guest` what the VMM shows in the other modes.
    """

    name: str
    cpu: str = "spr"
    settings: tuple[str, ...] = ()
    guest: tuple[str, ...] = ()
    version: int = 2
    gp: int = 8
    fixed: int = 3
    full_width: bool = True
    lvtpc: int = VECTOR


CONFIGS = (
    Config("all of it"),
    Config("no full-width writes", settings=("pmu.perf_caps=0",), guest=("pmu.perf_caps=0",),
           full_width=False),
    Config("four counters", cpu="skx", gp=4),
    Config("MSR lists for GLOBAL_CTRL", cpu="icx"),
    Config("PMIs as NMIs", lvtpc=NMI),
    Config("version 1", settings=("pmu.version=1", "pmu.perf_caps=0"),
           guest=("pmu.version=1", "pmu.perf_caps=0"), version=1, fixed=0, full_width=False),
)  # fmt: skip
MODES = ("bare", "emulated", "passthrough")


# --- the guest ------------------------------------------------------------------------------------------
def _put(values: str = "rax") -> str:
    return "".join(f"mov [r13], {v}\nadd r13, 8\n" for v in values.split())


def _start(i: int, selector: int, preset: str = "0", also: int = 0) -> str:
    return f"mov r12d, {i}\nmov rdi, {preset}\nstart_gp {selector:#x}, {also:#x}\nlvtpc\n"


def _start_fixed(i: int, preset: str = "0", how: str = "FIXED_COUNTING") -> str:
    return f"mov r12d, {i}\nmov rdi, {preset}\nstart_fixed {how}\nlvtpc\n"


def _measure(mask: int) -> str:
    return f"mov rax, {mask:#x}\ncall measured\n"


def _stop(i: int) -> str:
    return f"mov r12d, {i}\nstop_gp\n"


def _stop_fixed(i: int) -> str:
    return f"mov r12d, {i}\nstop_fixed\n"


def _range(name: str, least: float, most: float) -> Rule:
    return lambda v, facts: facts.event(name, least, most, v[0])


def _equals(*want: int) -> Rule:
    return lambda v, _: tuple(v) == want


def _fast(v: Sequence[int], _: Facts) -> bool | None:
    vector, value = v  # no fast mode on an architectural PMU: skipped; if there is one, the low 32 bits
    return SKIP if vector == GP else vector == 0 and value == RDPMC_VALUE & 0xFFFF_FFFF


def _invalid_rdpmc() -> Iterator[Row]:
    yield Row("Expected #GP on RDPMC(64)", "rdpmc_safe 64\n" + _put("r9"), 1, _equals(GP))


def _emulated(prefix: str, base: str) -> Iterator[Row]:
    code = f"mov r15d, {base}\n" + _start(0, 0xC4, "-5 & 0xffffffffffff" if prefix else "0xfffffffb")
    code += _start(1, 0xC0, "-22 & 0xffffffffffff" if prefix else "0xffffffea")
    code += "mov eax, 3\nwrmsr_at IA32_PERF_GLOBAL_CTRL\n"
    code += "mov eax, 1\nmov edx, 1\ncmp eax, edx\n" + "FEP\njne 1f\n1:\n" * 5
    code += "mov eax, CPUID_PMU\ncpuid\n" * 5
    code += "mov ecx, IA32_PERF_GLOBAL_CTRL\nxor eax, eax\nxor edx, edx\nwrmsr\n"
    code += _stop(0) + _put() + _stop(1) + _put() + "rdmsr_at IA32_PERF_GLOBAL_STATUS\n" + _put()
    code += "rdmsr_at IA32_PERF_GLOBAL_STATUS\nwrmsr_at IA32_PERF_GLOBAL_STATUS_RESET\n"
    yield Row("emulated instruction: instruction count", code, 3, lambda v, _: v[1] == 0)
    for name, rule in (
        ("branch count", lambda v, _: v[0] == 0),
        ("branch counter overflow", lambda v, _: bool(v[2] & 1)),
        ("instruction counter overflow", lambda v, _: bool(v[2] & 2)),
    ):
        yield Row(f"emulated instruction: {name}", "", -3, rule)  # the same three values


def _counters(c: Config) -> Iterator[Row]:
    for name, selector, least, most in EVENTS:
        for i in range(c.gp):
            code = _start(i, selector) + _measure(1 << i) + _stop(i) + _put()
            yield Row(f"{name}-{i}", code, 1, _range(name, least, most))
    for i, (least, most) in enumerate(FIXED[: c.fixed]):
        code = _start_fixed(i) + _measure(1 << 32 + i) + _stop_fixed(i) + _put()
        yield Row(f"fixed-{i}", code, 1, _range(f"fixed-{i}", least, most))


def _rdpmc(c: Config, prefix: str) -> Iterator[Row]:
    want = RDPMC_VALUE & MASK if prefix else 0x2345_6789
    for i in range(c.gp):
        load = f"mov rax, {RDPMC_VALUE:#x}\nmov r12d, {i}\nwrmsr_at r15 + r12\n"
        code = load + "rdpmc_at r12\n" + _put()
        yield Row(f"rdpmc: cntr-{i}", code, 1, _equals(want))
        code = load + f"mov r8d, {i} | RDPMC_FAST\nrdpmc_safe r8\nmov eax, eax\n" + _put("r9 rax")
        yield Row(f"rdpmc: fast-{i}", code, 2, _fast)
    for i in range(c.fixed):
        load = f"mov rax, {RDPMC_VALUE:#x}\nmov r12d, {i}\nwrmsr_at r12 + IA32_FIXED_CTR0\n"
        code = load + "rdpmc_at r12 + RDPMC_FIXED\n" + _put()
        yield Row(f"rdpmc: fixed cntr-{i}", code, 1, _equals(RDPMC_VALUE & MASK))
        code = load + f"mov r8d, {i} | RDPMC_FIXED | RDPMC_FAST\nrdpmc_safe r8\nmov eax, eax\n"
        code += _put("r9 rax")
        yield Row(f"rdpmc: fixed fast-{i}", code, 2, _fast)


def _all_counters(c: Config) -> Iterator[Row]:
    chosen = [EVENTS[i % len(EVENTS)] for i in range(c.gp)]
    code = "".join(_start(i, event[1]) for i, event in enumerate(chosen))
    code += "".join(_start_fixed(i) for i in range(c.fixed))
    code += _measure((1 << c.gp) - 1 | ((1 << c.fixed) - 1) << 32)
    code += "".join(_stop(i) + _put() for i in range(c.gp))
    if c.fixed:  # all stop at once
        code += "".join(_stop_fixed(i) + _put() for i in range(c.fixed))

    def rule(v: Sequence[int], facts: Facts) -> bool:
        ranges = [(e[0], e[2], e[3]) for e in chosen]
        ranges += [(f"fixed-{i}", *FIXED[i]) for i in range(c.fixed)]
        return all(facts.event(*r, count) for r, count in zip(ranges, v, strict=True))

    yield Row("all counters", code, c.gp + c.fixed, rule)


def _overflowed(odd: int) -> Rule:
    # The counter that wrapped goes on, in a handler that does not wait for STI too.
    return lambda v, facts: v[0] == 1 + (facts.handler if odd else 0)


def _overflow(c: Config, prefix: str) -> Iterator[Row]:
    """Counter i of c.gp is fixed counter 0; odd ones ask for an interrupt."""
    code = _start(0, 0xC0) + _measure(1) + _stop(0) + "mov rbp, 1\nsub rbp, rax\n"
    for i in range(c.gp + 1):
        fixed, odd = i == c.gp, i % 2
        preset = "rbp"
        if fixed or prefix:
            code += f"mov rbx, {MASK:#x}\nand rbx, rbp\n"
            preset = "rbx"
        if fixed:
            code += _start_fixed(0, preset, "FIXED_COUNTING | FIXED0_PMI" if odd else "FIXED_COUNTING")
            code += _measure(1 << 32) + _stop_fixed(0) + _put()
        else:
            code += _start(i, 0xC0, preset, 0x100000 if odd else 0) + _measure(1 << i)
            code += _stop(i) + _put()
        bit = 1 << (32 if fixed else i)
        code += "rdmsr_at IA32_PERF_GLOBAL_STATUS\n" + _put()
        code += "wrmsr_at IA32_PERF_GLOBAL_STATUS_RESET\nrdmsr_at IA32_PERF_GLOBAL_STATUS\n" + _put()
        code += "call polled\n" + _put()
        yield Row(f"overflow: cntr-{i}", code, 4, _overflowed(odd))
        code = ""
        for name, rule in (
            ("status", lambda v, _, bit=bit: bool(v[1] & bit)),
            ("status clear", lambda v, _, bit=bit: not v[2] & bit),
            ("irq", lambda v, _, odd=odd: bool(v[3]) == bool(odd)),
        ):
            yield Row(f"overflow: {name}-{i}", "", -4, rule)


def _overflow_of_version_1() -> Iterator[Row]:
    code = "xor eax, eax\nwrmsr_safe IA32_FIXED_CTR0\n" + _put("r9")
    yield Row("overflow: the suite ends at fixed counter 0, which is not there", code, 1, _equals(GP))


def _cmask() -> Iterator[Row]:
    code = _start(0, 0xC0, also=2 << 24) + _measure(1) + _stop(0) + _put()
    yield Row("cmask", code, 1, lambda v, facts: v[0] < 10 * facts.rounds)


def _running(c: Config, prefix: str) -> Iterator[Row]:
    def on(value: int) -> str:
        return "" if c.version < 2 else f"mov eax, {value}\nwrmsr_at IA32_PERF_GLOBAL_CTRL\n"

    code = _start(0, 0xC0) + on(1) + "call running\nmov r12d, 0\nxor eax, eax\nwrmsr_at r15\n"
    code += on(0) + _stop(0) + _put()
    yield Row("running counter wrmsr: cntr", code, 1, lambda v, facts: v[0] < 10 * facts.rounds)
    code = "rdmsr_at IA32_PERF_GLOBAL_STATUS\nwrmsr_at IA32_PERF_GLOBAL_STATUS_RESET\n"
    code += _start(0, 0xC0) + on(1) + f"mov rax, {MASK if prefix else (1 << 64) - 1:#x}\nwrmsr_at r15\n"
    code += "call running\n" + on(0) + _stop(0) + "rdmsr_at IA32_PERF_GLOBAL_STATUS\n" + _put()
    yield Row("running counter wrmsr: status msr bit", code, 1, lambda v, _: bool(v[0] & 1))


def _width(c: Config) -> Iterator[Row]:
    for i in range(c.gp):
        code = f"mov r12d, {i}\nmov rax, 0xffffff0123456789\nwrmsr_safe r12 + IA32_A_PMC0\n" + _put("r9")
        yield Row(
            "full-width writes: writing unsupported width to MSR_IA32_PMCi raises #GP", code, 1, _equals(GP)
        )


def rows(c: Config, mode: str) -> list[Row]:
    """What the suite reports of one configuration, in its order."""
    found = list(_invalid_rdpmc())
    for prefix in (LEGACY, FULL_WIDTH)[: 1 + c.full_width]:
        base = "IA32_A_PMC0" if prefix else "IA32_PMC0"
        turn: list[Row] = []
        if mode != "bare" and c.version > 1:  # the forced emulation prefix is #UD without a hypervisor
            turn += _emulated(prefix, base)
        turn += _counters(c)
        turn += _rdpmc(c, prefix)
        turn += _all_counters(c)
        turn += _overflow(c, prefix) if c.version > 1 else _overflow_of_version_1()
        if c.version > 1:
            turn += _cmask()
            turn += _running(c, prefix)
        select = f"mov r15d, {base}\n"
        found += [
            attrs.evolve(r, name=f"Intel: {prefix}{r.name}", code=r.code and select + r.code)
            for r in turn
        ]
    return found + (list(_width(c)) if c.full_width else [])


FRAME = """
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .equ ROUNDS, {rounds}
        .equ POLLS, {polls}
        .include "conformance.inc"
        .macro lvtpc
        wrmsr_const IA32_X2APIC_LVT_PMI, {lvtpc:#x}
        .endm
        .text
        .globl _start
_start: safe_setup
        pmi_setup
        set_gate 2, nmi
        lea r13, [rip + values]
        {setup}
        # reference cycles over time
        mov r15d, IA32_PMC0
        mov r12d, 0
        xor edi, edi
        start_gp 0x13c
        {on}
        mfence; lfence; rdtsc; lfence
        shl rdx, 32
        or rax, rdx
        mov rbx, rax
        mov ecx, {calibration}
1:      loop 1b
        mfence; lfence; rdtsc; lfence
        shl rdx, 32
        or rax, rdx
        sub rax, rbx
        mov rbx, rax
        {off}
        stop_gp
        mov [r13], rax
        mov [r13 + 8], rbx
        add r13, 16
        mov ebp, 10                     # warm-up
1:      xor eax, eax
        call measured
        dec ebp
        jnz 1b
{code}
        debug_exit 0

measured:
        {measured}
running:
        jmp kit_work

# rax = interrupts that were waiting
polled: mov rax, [rip + irqs]
        sub rax, [rip + seen]
        mov r8, rax
        sti
        mov ecx, POLLS
1:      pause
        mov rax, [rip + irqs]
        sub rax, [rip + seen]
        jnz 2f
        loop 1b
2:      cli
        add [rip + seen], rax
        ret

nmi:    push rax
        push rcx
        push rdx
        inc qword ptr [rip + irqs]
        rdmsr_at IA32_X2APIC_LVT_PMI
        btr eax, 16
        wrmsr_at IA32_X2APIC_LVT_PMI
        pop rdx
        pop rcx
        pop rax
        iretq
nmi_end:

        .bss
        .balign 8
seen:   .zero 8
values: .zero 8 * {values}
        conformance_kit
"""
# Without GLOBAL_CTRL the same loop, a NOP for each WRMSR of it.
UNGATED = """
        nop
        lea rsi, [rip + kit_buffer]
        clflush [rsi]
        mfence
        mov ecx, ROUNDS
1:      mov rax, [rsi]
        add rsi, 64
        .rept 7
        nop
        .endr
        loop 1b
        mov eax, 1
        xor edx, edx
        mov ecx, IA32_PRED_CMD
        wrmsr
        nop
        ret
"""


@cache
def guest(c: Config, forced: bool, rounds: int, calibration: int, polls: int) -> Program:
    """The suite as a program; `forced`: with the rows of the forced emulation prefix."""
    found = rows(c, "emulated" if forced else "bare")
    gated = c.version > 1
    setup = "xor eax, eax\n" + ("wrmsr_at IA32_PERF_GLOBAL_CTRL\n" if gated else "")
    setup += "".join(f"wrmsr_at IA32_PERFEVTSEL0 + {i}\nwrmsr_at IA32_PMC0 + {i}\n" for i in range(c.gp))
    if gated:
        setup += "wrmsr_at IA32_FIXED_CTR_CTRL\n"
        setup += "rdmsr_at IA32_PERF_GLOBAL_STATUS\nwrmsr_at IA32_PERF_GLOBAL_STATUS_RESET\n"
    text = FRAME.format(
        rounds=rounds, polls=polls, calibration=calibration, lvtpc=c.lvtpc,
        setup=setup,
        on="wrmsr_const IA32_PERF_GLOBAL_CTRL, 1" if gated else "",
        off="wrmsr_const IA32_PERF_GLOBAL_CTRL, 0" if gated else "",
        measured="jmp kit_measure" if gated else UNGATED,
        code="".join(r.code for r in found),
        values=2 + sum(max(r.values, 0) for r in found),
    )  # fmt: skip
    return assemble(text, "pmu-suite")


# --- the judge --------------------------------------------------------------------------------------------
@attrs.frozen
class Outcome:
    """What became of a row: `ok` is None where the suite skips."""

    name: str
    ok: bool | None
    values: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name}: {' '.join(f'{v:,}' for v in self.values)}"


def run(c: Config, mode: str, *, rounds: int, calibration: int, polls: int) -> list[Outcome]:
    """The suite's results in one mode.

    Raises:
        AssertionError: the guest did not come to its end.
    """
    forced = mode != "bare"
    program = guest(c, forced, rounds, calibration, polls)
    ram = 3 + (64 * rounds >> 20)
    shape = {"guest": c.guest} if forced else {"settings": c.settings}
    system = System(program, vpmu=mode, cpu=c.cpu, ram=ram, max_insns=1 << 40, **shape)
    stop = system.run()
    assert (stop.reason, stop.info) == ("debug-exit", 0), f"{c.name}, {mode}: {stop}"
    found = rows(c, mode)
    count = 2 + sum(max(r.values, 0) for r in found)
    raw = system.read(program.symbols["values"], 8 * count)
    table = [int.from_bytes(raw[k : k + 8], "little") for k in range(0, len(raw), 8)]
    handler = program.insns("nmi", "nmi_end") if c.lvtpc == NMI else 0
    facts = Facts(rounds, c.version, *table[:2], handler)
    at, outcomes = 2, []
    for row in found:
        n = abs(row.values)
        values = table[at : at + n] if row.values > 0 else table[at - n : at]
        at += max(row.values, 0)
        outcomes.append(Outcome(row.name, row.rule(values, facts), tuple(values)))
    return outcomes


def summary(c: Config, mode: str, outcomes: Sequence[Outcome]) -> str:
    """One line as the suite's own."""
    failed = sum(o.ok is False for o in outcomes)
    skipped = sum(o.ok is None for o in outcomes)
    words = f"{len(outcomes)} tests, {failed} unexpected failures, {skipped} skipped"
    return f"{c.name:28} {mode:12} {words}"


OWN_LENGTHS = {"rounds": 1_000_000, "calibration": 1_000_000_000, "polls": 100_000}
SHORT = {"rounds": 5000, "calibration": 100_000, "polls": 100}


def main(words: Sequence[str]) -> None:
    """Print the results of every configuration and mode, and each row that fails."""
    lengths = SHORT if "short" in words else OWN_LENGTHS
    for c in CONFIGS:
        for mode in MODES:
            outcomes = run(c, mode, **lengths)
            print(summary(c, mode, outcomes))
            for o in outcomes:
                if o.ok is False:
                    print(f"    FAIL: {o}")


if __name__ == "__main__":
    main(sys.argv[1:])
