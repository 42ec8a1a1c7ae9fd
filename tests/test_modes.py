"""The modes agree inside of the agreement class, and differ outside of it as docs/divergences.md says.

Three steps: generated programs of the class end the same everywhere; random windows that leave it are
predicted exactly by the rule of interception; every row of the document is shown by a program.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import ROOT
from tests.reference import generator
from tests.tools.profiles import cases
from tests.tools.whole import machine
from vpmu_emu._jit import COMPILES
from vpmu_emu.asm import Program, assemble
from vpmu_emu.tables.divergences import PARTS
from vpmu_emu.tables.modes import SWITCH_POLICIES

SHAPE = {"pmu.version": 2, "pmu.fixed": 3}
FOUR = {
    "bare": {"vpmu": "bare", "settings": SHAPE},
    "emulated": {"vpmu": "emulated"},
    "passthrough": {"vpmu": "passthrough"},
    "all-passthrough": {"vpmu": "passthrough", "all_passthrough": True},
}
SWITCHED = {
    f"{mode}, {policy}": {"vpmu": mode, "switch": policy}
    for mode in ("passthrough", "mediated")
    for policy in SWITCH_POLICIES
    if (mode, policy) != ("passthrough", "eager")
}
GUESTS = ("emulated", "passthrough")
EVTSEL0, PMC0, A_PMC0, CTRL, STATUS = 0x186, 0xC1, 0x4C1, 0x38F, 0x38E
INST, BRANCH = 0x4300C0, 0x4300C4
TOP = 1 << 48


def start(program: Program, mode: str, **options):
    """A machine of one of the four modes."""
    chosen = dict((FOUR | SWITCHED)[mode])
    return machine(program, chosen.pop("vpmu"), **{**chosen, **options})


# --- the agreement class --------------------------------------------------------------------------------
def rest(program: Program, mode: str) -> dict[str, object]:
    """Everything that a guest can know at the end."""
    system = start(program, mode)
    stop = system.run()
    return {
        "stop": str(stop),
        "instructions": system.instructions,
        **system.registers(),
        **dict(system.guest_pmu().items()),
        "memory": system.read(0, system.ram_size),
        "serial": system.serial,
    }


def assert_agreement(text: str) -> None:
    program = assemble(text)
    wanted = rest(program, "bare")
    assert "exit" in str(wanted["stop"])
    for mode in ("emulated", "passthrough", "all-passthrough", *SWITCHED):
        found = rest(program, mode)
        differs = {
            k: (wanted[k], found[k]) if k != "memory" else "differs"
            for k in wanted
            if wanted[k] != found[k]
        }
        assert not differs, f"{mode} against bare: {differs}\n{text}"


@(settings(deadline=None) if COMPILES else settings(deadline=None, max_examples=5))
@given(generator.agreement())
def test_programs_of_the_agreement_class(text):
    assert_agreement(text)


@pytest.mark.uncompiled
def test_fixed_seeds_of_the_agreement_class():
    for seed in range(100, 100 + cases(day=20, laws=60, night=60, uncompiled=8)):
        assert_agreement(generator.from_seed("agreement", seed))


# --- windows outside of the class: what counts where ----------------------------------------------------
# A step of a window with counter 0 on C0 or C4, and what it is for the model below.
INTERCEPTED = {
    "bare": set(),
    "emulated": {EVTSEL0, A_PMC0, CTRL, "rdpmc"},
    "passthrough": {EVTSEL0},
    "all-passthrough": set(),
}
STEPS = st.one_of(
    st.tuples(st.just("nop"), st.integers(1, 4)),
    st.tuples(st.just("jump"), st.integers(1, 3)),
    st.tuples(st.just("cpuid"), st.integers(1, 2)),
    st.tuples(st.just("select"), st.sampled_from([0, INST, BRANCH, 0x4100C0])),
    st.tuples(st.just("global"), st.integers(0, 1)),
    st.tuples(st.just("load"), st.sampled_from([0, 7, 1 << 40])),
    st.tuples(st.just("read"), st.just(0)),
)
REGISTER = {"select": EVTSEL0, "global": CTRL, "load": A_PMC0}


def write_text(index: int, value: int) -> str:
    """Four instructions, the last of them WRMSR."""
    return f"mov ecx, {index}\nmov eax, {value & 0xFFFFFFFF:#x}\nmov edx, {value >> 32:#x}\nwrmsr\n"


def window_text(steps) -> str:
    """The steps as a guest that leaves what it read in `found`."""
    body = write_text(CTRL, 0) + write_text(EVTSEL0, 0) + write_text(A_PMC0, 0)
    reads = jumps = 0
    for what, value in steps:
        if what == "nop":
            body += "nop\n" * value
        elif what == "cpuid":
            body += "xor eax, eax\ncpuid\n" * value
        elif what == "jump":
            for _ in range(value):
                body += f"jmp j{jumps}\nj{jumps}:\n"
                jumps += 1
        elif what == "read":
            body += f"xor ecx, ecx\nrdpmc\nmov dword ptr [found + {8 * reads}], eax\n"
            body += f"mov dword ptr [found + {8 * reads + 4}], edx\n"
            reads += 1
        else:
            body += write_text(REGISTER[what], value)
    head = ".intel_syntax noprefix\n.text\n_start:\n"
    return head + body + f"xor eax, eax\nout 0xF4, al\n.bss\nfound: .zero {8 * reads + 8}\n"


def predicted(steps, mode: str) -> tuple[list[int], int]:
    """(values read, value at the end): one rule decides, whether an access is intercepted.

    What is intercepted takes effect and then counts, in software, for C0; what is not retires with the
    enables that it found and then takes effect.
    """
    caught = INTERCEPTED[mode]
    selector, enable, count = 0, 0, 0
    reads: list[int] = []

    def retire(instructions: int, branches: int = 0) -> None:
        nonlocal count
        if enable and selector & 0x420000 == 0x420000:
            event = selector & 0xFFFF
            count += instructions if event == 0xC0 else branches
        count %= TOP

    for what, value in steps:
        if what == "nop":
            retire(value)
        elif what == "cpuid":
            retire(2 * value)
        elif what == "jump":
            retire(value, value)
        elif what == "read":
            retire(1)
            reads.append(count)
            retire(3)
        else:
            retire(3)
            if REGISTER[what] not in caught:
                retire(1)
            if what == "select":
                selector = value
            elif what == "global":
                enable = value
            else:
                count = value
            if REGISTER[what] in caught:
                retire(1)
    retire(2)  # XOR, and OUT: it exits, so KVM counts it; without a hypervisor it retires
    return reads, count


def assert_window(steps) -> None:
    text = window_text(steps)
    program = assemble(text)
    for mode in FOUR:
        system = start(program, mode)
        assert system.run().reason == "debug-exit", text
        at = program.symbols["found"]
        reads, last = predicted(steps, mode)
        found = [int.from_bytes(system.read(at + 8 * k, 8), "little") for k in range(len(reads))]
        assert found == reads, f"{mode}, values read\n{text}"
        assert system.guest_pmu()["pmc"][0] == last, f"{mode}, value at the end\n{text}"


@(settings(deadline=None) if COMPILES else settings(deadline=None, max_examples=40))
@pytest.mark.uncompiled
@given(st.lists(STEPS, min_size=1, max_size=9))
def test_random_windows_differ_by_the_interception_alone(steps):
    assert_window(steps)


def test_the_model_is_not_blind():
    """It tells the modes apart: opened by one register and closed by the other."""
    steps = [("global", 0), ("select", INST), ("global", 1), ("nop", 3), ("select", 0)]
    values = {mode: predicted(steps, mode)[1] for mode in FOUR}
    assert values == {"bare": 7, "emulated": 7, "passthrough": 6, "all-passthrough": 7}


# --- every row of the document --------------------------------------------------------------------------
HEAD = """
.intel_syntax noprefix
.include "msr.inc"
.include "macros.inc"
.text
.globl _start
_start:
"""
TAIL = """
    xor eax, eax
    out 0xf4, al
pmi:
    push rax
    mov rax, [rsp + 8]
    mov [where], rax
    pop rax
    iretq
.bss
.balign 16
where: .zero 8
    idt_storage
"""
PMIS = """
    load_idt
    set_gate 2, pmi
    lapic_enable_x2apic
    mov ecx, 0x834
    mov eax, 0x400
    xor edx, edx
    wrmsr
"""


def guest(body: str) -> Program:
    return assemble(HEAD + body + TAIL)


def end(body: str, mode: str, **options):
    """(machine, result) after a run to the exit."""
    options.setdefault("settings", {})
    program = guest(body)
    system = machine(program, mode, **options)
    stop = system.run()
    assert stop.reason == "debug-exit", str(stop)
    return system, system.result(stop).to_json()


def count(body: str, mode: str, **options) -> int:
    return end(body, mode, **options)[1]["counters"]["pmc0"]


def counts(body: str, **options) -> list[int]:
    """PMC0 in bare, emulated, passthrough."""
    return [count(body, "bare"), *(count(body, mode, **options) for mode in GUESTS)]


def faults(body: str, mode: str, **options) -> bool:
    """Whether it meets #GP or #UD: without an IDT that is a triple fault with this vector first."""
    system = machine(guest(body), mode, **options)
    stop = system.run()
    assert stop.reason == "debug-exit" or (stop.reason == "triple-fault" and stop.info in (6, 13)), stop
    return stop.reason == "triple-fault"


def faulting(body: str, **options) -> list[bool]:
    return [faults(body, "bare"), *(faults(body, mode, **options) for mode in GUESTS)]


def opened(by: int, selector: int, preset: int = 0, before: str = "") -> str:
    """Program counter 0 and open it with its selector or with GLOBAL_CTRL as the last write."""
    first, second = ((CTRL, 1), (EVTSEL0, selector)) if by == EVTSEL0 else ((EVTSEL0, selector), (CTRL, 1))
    off = write_text(CTRL, 0) + write_text(EVTSEL0, 0)
    return off + write_text(A_PMC0, preset % TOP) + write_text(*first) + before + write_text(*second)


CLOSE = write_text(CTRL, 0)
CPUID = "xor eax, eax\ncpuid\n"
INT = 1 << 20


def cpuid_of_kvm():
    found = [end("mov eax, 0xa\ncpuid\nmov esi, eax\n", mode)[1]["registers"]["rsi"] & 0xFF
             for mode in ("bare", *GUESTS, "mediated")]  # fmt: skip
    assert found == [5, 2, 2, 2]


def intercepted_to_passed():
    assert counts(opened(EVTSEL0, INST) + "nop\n" * 3 + CLOSE) == [7, 7, 8]


def passed_to_intercepted():
    assert counts(opened(CTRL, INST) + "nop\n" * 3 + write_text(EVTSEL0, 0)) == [7, 7, 6]


def pmi_address(by: int, preset: int, mode: str, selector: int = INST | INT, body: str = "") -> int:
    """How many bytes of the body (one-byte NOPs) had run when the PMI came."""
    text = PMIS + opened(by, selector, preset) + "work:\n" + (body or "nop\n" * 12) + CLOSE
    program = guest(text)
    system = machine(program, mode)
    assert system.run().reason == "debug-exit"
    assert int(system.core.stats.pmis if mode != "bare" else system.core.stats.pmis_hw) == 1
    return int.from_bytes(system.read(program.symbols["where"], 8), "little") - program.symbols["work"]


def period_ends_earlier():
    for period in range(3, 10):
        by_global = [pmi_address(CTRL, -period, mode) for mode in ("bare", *GUESTS)]
        assert by_global == [period, period - 1, period]
        # the selector is intercepted when passed through, too
        by_selector = [pmi_address(EVTSEL0, -period, mode) for mode in ("bare", *GUESTS)]
        assert by_selector == [period, period - 1, period - 1]


def one_event_late():
    jumps = "".join(f"jmp to_{i}\nto_{i}:\n" for i in range(3))
    found = [pmi_address(CTRL, -1, mode, BRANCH | INT, jumps) for mode in ("bare", *GUESTS)]
    assert found == [2, 4, 2]  # a short JMP has two bytes


def overflow_lost():
    text = opened(EVTSEL0, INST, -2) + "xor eax, eax\nwrmsr\n"
    status = [end(text, mode)[1]["global_status"] for mode in ("bare", *GUESTS)]
    assert status == [1, 0, 1]
    assert counts(text) == [0, 0, 0]


def first_count_wraps():
    text = PMIS + opened(EVTSEL0, INST | INT, -1) + "nop\nnop\n" + CLOSE
    found = []
    for mode in ("bare", "emulated"):
        _system, result = end(text, mode)
        found.append((result["global_status"], result["pmis" if mode != "bare" else "pmis_hw"]))
    assert found == [(1, 1), (1, 0)]


def read_while_it_runs():
    text = opened(CTRL, INST) + "nop\n" * 5 + "xor ecx, ecx\nrdpmc\nmov esi, eax\n" + CLOSE
    reads = [end(text, mode)[1]["registers"]["rsi"] for mode in ("bare", *GUESTS)]
    assert reads == [6, 7, 6]
    assert len(set(counts(text))) == 1


def running_counter_overflows_late():
    text = opened(CTRL, INST) + "nop\n" * 5 + write_text(A_PMC0, TOP - 20) + "nop\n" * 40 + CLOSE
    values = counts(text)
    assert values == [24, 24, 24]
    first, second = ("".join(f"jmp {x}{i}\n{x}{i}:\n" for i in range(n)) for x, n in (("a", 5), ("b", 12)))
    late = PMIS + opened(CTRL, BRANCH | INT) + first
    late += write_text(A_PMC0, TOP - 4) + "work:\n" + second + CLOSE
    program = guest(late)
    places = []
    for mode in ("bare", *GUESTS):
        system = machine(program, mode)
        system.run()
        address = int.from_bytes(system.read(program.symbols["where"], 8), "little")
        places.append((address - program.symbols["work"]) // 2)
    assert places == [4, 9, 4]


def plain_software_counts():
    text = opened(CTRL, INST | 0xFF << 24) + CPUID * 3 + CLOSE
    # the opener counts in `emulated`, passed through only CPUID does
    assert counts(text) == [0, 4, 3]


def other_events_retire_nowhere():
    # SLOTS: those that CPUID takes on silicon are the host's in a guest
    def slots(body: str) -> list[int]:
        return counts(opened(CTRL, 0x4301A4) + body + CLOSE)

    grown = [b - a for a, b in zip(slots(CPUID), slots(CPUID * 4), strict=True)]
    assert grown[0] > 3 * grown[1] > 0
    assert grown[0] > 3 * grown[2] > 0


def far_branches_agree():
    text = "load_idt\nset_gate 0x40, pmi\n" + opened(CTRL, 0x4340C4) + "int 0x40\n" * 3 + CLOSE
    assert counts(text) == [6, 6, 6]


def cycles_of_the_guest_alone():
    text = opened(CTRL, 0x43003C) + CPUID + CLOSE
    for mode in GUESTS:
        system, result = end(text, mode)
        assert 0 < result["counters"]["pmc0"] < result["cycles"] - (int(system.core.stats.host_time) >> 4)


def time_goes_on_in_the_host():
    text = "rdtsc\nmov rsi, rax\n" + CPUID + "rdtsc\nsub rax, rsi\nmov rdi, rax\n"
    bare, *others = (end(text, mode)[1]["registers"]["rdi"] for mode in ("bare", *GUESTS))
    assert all(bare < other for other in others)


def pinned_events_hold_the_counters():
    text = opened(CTRL, INST) + "nop\n" * 5 + CPUID * 2 + CLOSE
    # 2 CPUID and the opening write, in software
    assert count(text, "emulated", host_events=["instructions:D*12"]) == 3
    assert count(text, "emulated") == count(text, "bare")


def masked_lvtpc():
    text = opened(CTRL, INST | INT, -4) + "nop\n" * 8 + CLOSE
    for mode in ("bare", *GUESTS):
        _, result = end(text, mode)
        assert (result["global_status"], result["pmis"]) == (1, 0)


def recognised_at_the_next_entry():
    for mode, reason in (("emulated", "EXCEPTION_NMI"), ("passthrough", "EXTERNAL_INTERRUPT")):
        text = PMIS + opened(CTRL, INST | INT, -5) + "nop\n" * 9 + CLOSE
        assert end(text, mode)[1]["exits"][reason] == 1


def filtered_events(tmp: Path):
    path = tmp / "filter.toml"
    path.write_text('action = "deny"\nevents = [0xC0]\n')
    text = opened(CTRL, INST) + CPUID + CLOSE + "mov ecx, 0x186\nrdmsr\nmov rsi, rax\n"
    for mode in GUESTS:
        _, result = end(text, mode, filter=path)
        assert result["counters"]["pmc0"] == 0
        assert result["registers"]["rsi"] == INST


def counter_that_cpuid_does_not_show():
    text = "mov ecx, 0x40000003\nrdpmc\nmov rsi, rax\n"
    assert faulting(text) == [False, True, False]
    assert end(text, "passthrough")[1]["registers"]["rsi"] == 0
    assert faults("mov ecx, 0x40000009\nrdpmc\n", "passthrough")


def rdpmc_of_metrics():
    text = "mov ecx, 0x20000000\nrdpmc\nmov rsi, rax\n"
    lacks_it = {"settings": {"pmu.perf_caps": 0x2000}}
    assert not faults(text, "bare")
    assert faults(text, "bare", **lacks_it)
    assert faults(text, "emulated")
    assert faults(text, "passthrough", **lacks_it)
    assert end(text, "passthrough")[1]["registers"]["rsi"] == 0


def enable_of_an_absent_counter():
    assert faulting(write_text(CTRL, 1 << 35)) == [False, True, False]


def reset_bits():
    for bit in range(58, 62):
        assert faults(write_text(0x390, 1 << bit), "emulated"), bit
        assert not faults(write_text(0x390, 1 << bit), "passthrough")


def fixed_counter_beyond_its_width():
    text = write_text(0x309, 1 << 60 | 5)
    assert faulting(text) == [True, False, True]
    assert end(text, "emulated")[1]["counters"]["fixed0"] == 5


def narrower_counters():
    # all ones of 40 bits, and one more
    wide = {"guest": {"width": 40}}
    text = write_text(A_PMC0, (1 << 40) - 1) + write_text(CTRL, 0) + write_text(EVTSEL0, INST)
    text += write_text(CTRL, 1) + write_text(CTRL, 0) + "xor ecx, ecx\nrdpmc\nmov rsi, rdx\n"
    for mode, wraps in (("emulated", True), ("passthrough", False)):
        assert end(text, mode, **wide)[1]["registers"]["rsi"] == (0 if wraps else 1 << 8)
        assert faults(write_text(A_PMC0, 1 << 40), mode, **wide) == wraps


def overflow_text():
    text = write_text(CTRL, 0) + write_text(EVTSEL0, INST) + write_text(A_PMC0, TOP - 5)
    return text + write_text(CTRL, 1) + "nop\n" * 8 + write_text(CTRL, 0)


def any_thread():
    assert faulting(write_text(EVTSEL0, 1 << 21)) == [False, True, True]
    assert faulting(write_text(0x38D, 1 << 2)) == [False, True, True]


def status_set_and_inuse():
    assert faulting(write_text(0x391, 0)) == [False, True, True]
    assert faulting("mov ecx, 0x392\nrdmsr\n") == [False, True, True]


def absence_that_kvm_hides():
    for index in (0xC1, 0xC2, 0x186, 0x187, *range(0xC0010000, 0xC0010008)):
        text = write_text(index, 5) + f"mov ecx, {index}\nrdmsr\nmov rsi, rax\n"
        assert faults(text, "bare", settings={"pmu.version": 0}), hex(index)
        assert end(text, "none")[1]["registers"]["rsi"] == 0
    for mode in GUESTS:
        assert end(write_text(0xC0010000, 5), mode)


def freeze_is_not_offered():
    assert faulting(write_text(0x1D9, 1 << 12)) == [False, True, True]


def hypercall():
    assert faulting("vmcall\nmov rsi, rax\n") == [True, False, False]
    for mode in GUESTS:
        for nr, answer in ((99, -1000), (10, 0)):  # an IPI to nobody
            text = f"mov eax, {nr}\nvmcall\nmov rsi, rax\n"
            assert end(text, mode)[1]["registers"]["rsi"] == answer % (1 << 64)


def host_event(spec: str, mode: str = "passthrough", index: int = 0) -> dict:
    return end(CPUID * 3, mode, host_events=spec.split())[1]["perf"]["events"][index]


def host_event_that_includes_the_guest():
    event = host_event("instructions:D")
    assert (event["state"], event["cause"]) == ("ERROR", "guest owns the PMU")


def host_event_that_excludes_the_guest():
    event = host_event("instructions:H")
    assert event["state"] == "ACTIVE"
    assert event["running"] < event["enabled"]


def pinned_event_that_does_not_fit():
    events = end("nop\n", "emulated", host_events=["branches:D*9", "instructions:D"])[1]["perf"]["events"]
    assert [event["state"] for event in events] == ["ACTIVE"] * 8 + ["ERROR"] * 2


def not_there():
    text = write_text(CTRL, 0) + write_text(EVTSEL0 + 4, 0x4381D0) + write_text(CTRL, 16)
    text += "pop rbx\npush rbx\n" + write_text(CTRL, 0)
    found = [end(text, mode)[1]["counters"]["pmc4"] for mode in ("bare", *GUESTS)]
    assert found == [0, 1, 0]


def no_global_check():
    text = write_text(CTRL, 0) + write_text(EVTSEL0, INST) + CPUID * 2
    plain, quirky = (count(text, "passthrough", quirks=q) for q in ((), ("v1-no-global-check",)))
    # WRMSR to the selector, 2 CPUID, OUT
    assert (plain, quirky) == (0, 4)


LINUX = "tests/linux"
SYSCALLS = "tests/linux/syscalls"


# --- as merged ------------------------------------------------------------------------------------------
FOURTH = {"kvm": {"fixed_cap": 4}}  # the guest has all that spr has; on skx it has without


def merged_windows():
    opens = opened(EVTSEL0, INST) + "nop\n" * 3 + CLOSE
    closes = opened(CTRL, INST) + "nop\n" * 3 + write_text(EVTSEL0, 0)
    assert [count(text, "mediated") for text in (opens, closes)] == [7, 7]
    assert [count(text, "mediated", cpu="skx") for text in (opens, closes)] == [8, 6]


def merged_write_while_it_runs():
    text = opened(CTRL, INST) + write_text(A_PMC0, 0) + "nop\n" * 3 + CLOSE
    assert count(text, "bare") - count(text, "mediated") == 1
    assert count(text, "bare", cpu="skx") == count(text, "mediated", cpu="skx")


def merged_rdpmc_of_an_absent_counter():
    assert faults("mov ecx, 7\nrdpmc\n", "mediated", guest={"gp": 4})


def merged_rdpmc_of_metrics():
    text = "mov ecx, 0x20000000\nrdpmc\n"
    assert [faults(text, "mediated", **options) for options in ({}, FOURTH)] == [True, False]


def merged_rdpmc_of_a_clock():
    text = "mov ecx, 0x10000\nrdpmc\n"
    assert [faults(text, "mediated", **options) for options in ({}, {"cpu": "skx"})] == [False, True]


def merged_enable_of_an_absent_counter():
    assert faults(write_text(CTRL, 1 << 35), "mediated")


def merged_reset_bits():
    for bit in range(58, 62):
        text = write_text(0x390, 1 << bit)
        assert [faults(text, "mediated", **o) for o in ({}, {"cpu": "skx"})] == [True, False], bit


def merged_fixed_counter_beyond_its_width():
    assert faults(write_text(0x309, 1 << 60 | 5), "mediated")


def merged_narrower_counters():
    wide = {"guest": {"width": 40}}
    text = write_text(A_PMC0, (1 << 40) - 1) + write_text(CTRL, 0) + write_text(EVTSEL0, INST)
    text += write_text(CTRL, 1) + write_text(CTRL, 0) + "xor ecx, ecx\nrdpmc\nmov rsi, rdx\n"
    assert end(text, "mediated", **wide)[1]["registers"]["rsi"] == 0  # bit 40 is there, and not shown
    assert [faults(write_text(A_PMC0, 1 << bit), "mediated", **wide) for bit in (40, 48)] == [False, True]


ROWS: dict[str, Callable[..., None] | str] = {
    "CPUID": cpuid_of_kvm,
    "a register, a field or a bit of a counter or a feature that the VMM's CPUID and PERF_CAPABILITIES do"
    " not show": f"{LINUX}/kvm/test_divergences.py::test_faults",
    "an access that the VMM's MSR filter denies":
        "tests/test_conformance.py::test_the_guest_holds_and_is_not_blind",
    "window opened by an intercepted WRMSR, closed by a passed-through one": intercepted_to_passed,
    "window opened by a passed-through WRMSR, closed by an intercepted one": passed_to_intercepted,
    "a PMI is taken within the count": period_ends_earlier,
    "count starts at 1 from overflow (preset −1)": one_event_late,
    "software counts leave a running counter 1 from overflow, and one hardware event follows before the"
    " next exit that counts or closes": overflow_lost,
    "the first event counted after a new selector is one that KVM emulates, and it wraps the counter":
        first_count_wraps,
    "counter of instructions read while it runs": read_while_it_runs,
    "write to a counter that runs": running_counter_overflows_late,
    "CMASK, INV or EDGE on C0 or C4": plain_software_counts,
    "any other event on an instruction that exits (loads, cycles, slots, other branch events)":
        other_events_retire_nowhere,
    "far branches, calls, interrupts": far_branches_agree,
    "cycles, reference cycles, slots over a window with exits, its own WRMSRs among them":
        cycles_of_the_guest_alone,
    "time read by RDTSC, deadlines, number of ticks": time_goes_on_in_the_host,
    "an event on a counter that cannot count it (loads on 4 to 7, see `vpmu info --cpu`)": not_there,
    "host events of the same constraint hold the few counters that there are for it (`r0180:D` four times,"
    " on `spr`)":
        f"{LINUX}/perf/test_perf.py::test_a_guest_is_bound_by_the_constraints_of_its_host",
    "pinned host events hold the counters": pinned_events_hold_the_counters,
    "guest's toggle of GLOBAL_CTRL or a new selector while its event is in ERROR":
        f"{LINUX}/perf/test_perf.py::test_error_is_left_by_enabling_again",
    "100000/HZ overflows of one counter within a tick": f"{LINUX}/perf/test_perf.py::test_throttling",
    "second overflow before KVM_REQ_PMU of the first":
        f"{LINUX}/kvm/test_pmu_emulated.py::test_one_pmi_per_overflow",
    "overflow while the guest's LVTPC is masked": masked_lvtpc,
    "PMI with NMI delivery":
        f"{LINUX}/kvm/test_pmu_emulated.py::test_second_overflow_in_an_nmi_handler_comes_once_after_iret",
    "where a PMI is recognised": recognised_at_the_next_entry,
    "events that the filter denies": filtered_events,
    "RDPMC of a counter that CPUID does not show": counter_that_cpuid_does_not_show,
    "RDPMC type 0x2000 (PERF_METRICS)": rdpmc_of_metrics,
    "GLOBAL_CTRL bit of a counter that the guest does not have": enable_of_an_absent_counter,
    "GLOBAL_STATUS_RESET bits 58, 59, 60, 61": reset_bits,
    "FIXED_CTRn written with bits beyond the width": fixed_counter_beyond_its_width,
    "IA32_PERFEVTSELn.ANY (bit 21), FIXED_CTR_CTRL AnyThread bits": any_thread,
    "MSRs 0x391, 0x392": status_set_and_inuse,
    "counters narrower than the hardware's (`--guest pmu.width`)": narrower_counters,
    "CPUID leaf 0AH says more than KVM does": "tests/machine/test_pmu_versions.py::test_leaf_0a_of_guests",
    "an instruction behind the forced emulation prefix":
        f"{LINUX}/kvm/test_emulate.py::test_the_row_of_the_kernels_own_test",
    "POPCNT, CRC32, ADCX, ADOX, BMI1 and 2, XGETBV, LFENCE, MFENCE, SFENCE, SWAPGS, SYSRET, LAR, LSL, VERR,"
    " VERW, RDFSBASE and its kin behind it":
        f"{LINUX}/kvm/test_emulate.py::test_what_the_emulator_gives_up_on",
    "a REP instruction behind it that is not over when the rest of RCX is a multiple of 1024":
        f"{LINUX}/kvm/test_emulate.py::test_a_repeat_is_left_where_its_rest_is_a_multiple_of_1024",
    "MOVS and STOS with REP to an address without memory":
        f"{SYSCALLS}/test_mmio.py::test_each_iteration_of_rep_that_writes_is_an_instruction",
    "INS and OUTS, with REP too":
        f"{LINUX}/kvm/test_emulate.py::test_ins_asks_for_as_many_elements_as_the_emulator_holds",
    "a data breakpoint that an instruction met which KVM emulates (a device's memory, the forced"
    " prefix, INS, OUTS)":
        "tests/linux/test_debug_registers.py::test_the_emulator_looks_at_no_data",
    "a breakpoint on a port": "tests/linux/test_debug_registers.py::test_ports_leave_before_silicon_looks",
    "a breakpoint on INS or OUTS, whose handler goes on with RF set":
        "tests/linux/test_debug_registers.py::test_a_breakpoint_on_outs_comes_again_and_again",
    "HLT itself is the event that wraps a counter of instructions":
        f"{LINUX}/kvm/test_divergences.py::test_a_halt_that_wraps_the_counter_itself",
    "XSAVE, XRSTOR and their kin":
        "tests/machine/test_decode.py::test_what_is_outside_stands_in_the_docs",
    "XSETBV, INVD": "tests/machine/test_privileged.py::test_xcr0_and_what_cpuid_says_of_it",
    "DEBUGCTL.BTF":
        "tests/machine/test_debug.py::test_with_btf_only_a_branch_that_is_taken_traps_and_db_clears_it",
    "DEBUGCTL.TR, BTS, BTINT, BTS_OFF_OS, BTS_OFF_USR":
        "tests/machine/test_debug.py::test_branch_traces_are_refused",
    "the local APIC: version, and what its registers keep of a write":
        "tests/machine/test_lapic.py::test_what_x2apic_registers_keep",
    "RDPMC of 0x10000 to 0x10002": "tests/test_conformance.py::test_the_guest_holds_and_is_not_blind",
    "IA32_MISC_ENABLE after RESET": "tests/tables/test_msrs.py::test_misc_enable_says_what_the_pmu_lacks",
    "IA32_MISC_ENABLE with bit 11 or 12 changed": "tests/machine/test_privileged.py::test_misc_enable",
    "absent 0xC1, 0xC2, 0x186, 0x187, K7 0xC0010000–7": absence_that_kvm_hides,
    "freeze on PMI (DEBUGCTL bit 12)": freeze_is_not_offered,
    "last branch records": "tests/machine/test_lbr.py::test_guests_of_kvm_have_none",
    "PEBS": "tests/machine/test_pebs.py::test_guests_of_kvm_have_none",
    "branches that KVM emulates, the time in MSR_LBR_INFO of the first branch behind an exit":
        f"{LINUX}/kvm/test_lbr.py::test_the_host_and_the_exits_leave_no_record",
    "a pinned event of the host on the same index (`r1b00:D`, a second guest's is another thread's)":
        f"{LINUX}/kvm/test_lbr.py::test_somebody_elses_records_do_not_reach_the_guest",
    "DEBUGCTL.LBR clear at the end of a slice":
        f"{LINUX}/kvm/test_lbr.py::test_the_event_goes_when_a_slice_ends_without_recording",
    "FREEZE_LBRS_ON_PMI on silicon of version 4":
        f"{LINUX}/kvm/test_lbr.py::test_a_pmi_freezes_the_records_as_version_2_does",
    "reserved bits of an LBR register":
        f"{LINUX}/kvm/test_lbr.py::test_a_reserved_bit_is_a_warning_of_the_host_at_first_and_a_fault_later",
    "a PEBS counter whose perf event is on a hardware counter of another number (cycles always, and"
    " instructions but on `spr`: perf takes the fixed counters for them; there a precise one takes the"
    " lowest of 1 to 7; others if a neighbour or another of the guest's own is in the way)":
        f"{LINUX}/kvm/test_pebs.py::test_the_least_flexible_event_goes_first_and_both_are_cross_mapped",
    "a plain counter, while any counter of the guest has PEBS":
        f"{LINUX}/kvm/test_pebs.py::test_while_one_counter_has_pebs_others_behind_foreign_numbers_stand_still",
    "PEBS on counter 0 of `spr`, less than 128 from overflow":
        f"{LINUX}/kvm/test_pebs.py::test_pdist_takes_no_short_period",
    "an exit between the overflow of a PEBS counter and the event that would be recorded":
        f"{LINUX}/kvm/test_pebs.py::test_an_exit_between_an_overflow_and_its_record_costs_the_record",
    "a PEBS counter that wraps by a software count":
        f"{LINUX}/kvm/test_pebs.py::test_an_overflow_in_software_writes_no_record_and_raises_nothing",
    "VMCALL": hypercall,
    "IA32_SYSENTER_ESP and _EIP with an address that is not canonical":
        f"{SYSCALLS}/test_kvm_suites.py::test_sysenter_of_the_vmm_is_made_canonical",
    "host event without `exclude_guest`": host_event_that_includes_the_guest,
    "host event with `exclude_guest`": host_event_that_excludes_the_guest,
    "a pinned host event that does not fit": pinned_event_that_does_not_fit,
    "a PMI comes late (`--pmi-skid`), and KVM has stopped the event of its counter before":
        f"{LINUX}/perf/test_pmi.py::test_perf_owns_all_of_it",
    "a PMI comes late, and the guest has been left before":
        f"{LINUX}/perf/test_pmi.py::test_a_message_behind_the_put_is_an_nmi_with_either",
    "`v1-no-global-check`": no_global_check,
    "`v1-fixed-no-pmi`":
        f"{LINUX}/kvm/test_pmu_passthrough.py::test_emulated_instruction_overflows_a_fixed_counter",
    "`v1-sibling-error`": f"{LINUX}/kvm/test_pmu_passthrough.py::test_sibling_error",
    "`v1-filter-update`": f"{LINUX}/kvm/test_quirks.py::test_v1_goes_on_until_the_next_selector_write",
    "`v1-fixed3-leak`": f"{LINUX}/kvm/test_quirks.py::test_the_fourth_fixed_counter",
    "`v1-exit-order`": f"{LINUX}/kvm/test_quirks.py::test_who_comes_first_when_the_guest_leaves",
    "`v1-version-not-2`": f"{LINUX}/kvm/test_quirks.py::test_a_guest_with_version_1",
    "`v1-wrap-at-zero`": f"{LINUX}/kvm/test_quirks.py::test_software_counts_that_step_over_zero",
    "`v1-global-ctrl-reset`": f"{LINUX}/kvm/test_quirks.py::test_global_ctrl_after_reset",
    "`v1-intercepts-once`": f"{LINUX}/kvm/test_quirks.py::test_a_second_cpuid_with_fewer_counters",
    "IA32_PMCn written with an exit (the forced prefix)":
        f"{LINUX}/kvm/test_pmu_msrs.py::test_the_legacy_address_sign_extends",
    "a new host event that includes guests, for a CPU or a thread that is in a guest":
        f"{LINUX}/kvm/test_quirks.py::test_a_new_event_where_a_guest_has_the_pmu",
}  # fmt: skip

MERGED = "as merged: "
MEDIATED = f"{LINUX}/kvm/test_pmu_mediated.py"
CONTROL = f"{SYSCALLS}/test_mediated_pmu.py"
ROWS |= {
    f"{MERGED}{row}": shown
    for row, shown in {
        "a window opened by one kind of WRMSR and closed by the other": merged_windows,
        "a counter is written while it runs, in a window that GLOBAL_CTRL opens and closes":
            merged_write_while_it_runs,
        "the guest lacks a counter of the host (on `spr` and `icx` the fourth fixed one, unless"
        " `--kvm fixed_cap=4`)":
            f"{MEDIATED}::test_the_guests_shape_against_the_hosts_decides_what_exits",
        "RDPMC of a counter that CPUID does not show": merged_rdpmc_of_an_absent_counter,
        "RDPMC type 0x2000 (PERF_METRICS)": merged_rdpmc_of_metrics,
        "RDPMC of 0x10000 to 0x10002": merged_rdpmc_of_a_clock,
        "GLOBAL_CTRL bit of a counter that the guest does not have": merged_enable_of_an_absent_counter,
        "GLOBAL_STATUS_RESET bits 58, 59, 60, 61": merged_reset_bits,
        "FIXED_CTRn written with bits beyond the width": merged_fixed_counter_beyond_its_width,
        "counters narrower than the hardware's (`--guest pmu.width`)": merged_narrower_counters,
        "an emulated instruction wraps a counter":
            f"{MEDIATED}::test_an_emulated_instruction_that_wraps_a_counter_brings_its_pmi",
        "events that the filter denies": f"{MEDIATED}::test_a_denied_selector_loses_its_enable_bit_alone",
        "a filter installed while the guest runs":
            f"{MEDIATED}::test_a_filter_installed_later_holds_from_the_next_entry_and_keeps_what_was_counted",
        "a host PMU below version 4, or without FW_WRITES": f"{MEDIATED}::test_what_a_cpu_lacks_is_named",
        "no in-kernel local APIC":
            f"{CONTROL}::test_without_an_apic_in_the_kernel_the_vm_silently_has_no_pmu",
        "host event without `exclude_guest`, the NMI watchdog's too":
            f"{CONTROL}::test_an_event_that_counts_in_guests_keeps_the_first_vcpu_from_being_made",
        "host event with `exclude_guest`":
            f"{MEDIATED}::test_a_host_event_that_leaves_guests_out_stands_still_with_its_clock",
        "8 + 3 counters of which none is used":
            f"{MEDIATED}::test_an_idle_guest_costs_ten_writes_and_eleven_looks",
    }.items()
}  # fmt: skip
POLICIES = "Policies of the switch: "
SWITCH = f"{LINUX}/kvm/test_pmu_switch.py"
ROWS |= {
    f"{POLICIES}{row}": shown
    for row, shown in {
        "`lazy`: the first access of a guest with `--all-passthrough` is the write of a selector, under the"
        " GLOBAL_CTRL of RESET": f"{SWITCH}::test_a_first_touch_that_opens_a_window_counts_itself",
        "`lazy`: the first access is one that silicon and KVM do differently":
            f"{SWITCH}::test_a_first_touch_follows_the_rules_of_kvm",
        "`lazy`: host events until the first access":
            f"{SWITCH}::test_until_the_first_touch_the_host_can_profile_the_guest",
    }.items()
}  # fmt: skip
MOVED = "Guests that move: "
MIGRATION = "tests/test_migration.py"
ROWS |= {
    f"{MOVED}{row}": f"{MIGRATION}::{shown}"
    for row, shown in {
        "saved with a counter at −1, one event from its overflow":
            "test_an_overflow_that_was_one_event_away_comes_one_late_in_emulated",
        "saved after KVM_RUN with `immediate_exit`, at the exit that an overflow brought":
            "test_a_pmi_that_is_only_a_request_needs_a_signal",
        "saved between a window's opening and its end, the next mode has GLOBAL_CTRL exit or not otherwise"
        " than the last one": "test_counts_are_exact_in_another_mode_and_kernel",
        "IA32_DEBUGCTL, branch records": "test_what_is_in_no_list_does_not_come_along",
        "IA32_TIME_STAMP_COUNTER by KVM_SET_MSRS instead of KVM_VCPU_TSC_OFFSET":
            "test_kvm_set_msrs_would_set_it_aside",
    }.items()
}  # fmt: skip
DIFFER = "VMs that differ: "
ROWS |= {
    f"{DIFFER}{row}": f"tests/test_vms.py::{shown}"
    for row, shown in {
        "a mediated VM was there first": "test_emulated_beside_mediated_stands_still",
        "an emulated guest's counters were there first": "test_mediated_beside_emulated_is_refused",
        "`--kvm mixed=1`, the laboratory's what-if": "test_both_are_exact",
    }.items()
}  # fmt: skip
ROWS["`7.0-fixed-filter`"] = f"{MEDIATED}::test_a_denied_fixed_counter_stays_off_when_another_changes"


def document_rows() -> list[str]:
    """Conditions, those below a headline behind its name."""
    names = {"As merged": MERGED, **{part.removesuffix(": "): part for part in (POLICIES, MOVED, DIFFER)}}
    return [
        names.get(part.title, "") + (f"`{row.name}`" if part.heads[0] == "quirk" else row.condition)
        for part in PARTS for row in part.rows
    ]  # fmt: skip


def test_every_row_of_the_document_is_shown_and_no_other():
    rows = document_rows()
    assert len(rows) == len(set(rows))
    assert sorted(rows) == sorted(ROWS)


@pytest.mark.uncompiled
@pytest.mark.parametrize("row", ROWS)
def test_row(row, tmp_path):
    show = ROWS[row]
    if isinstance(show, str):
        # shown where the kernel function is tested: the test must be there
        file, name = show.split("::")
        assert re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.MULTILINE), show
    elif show is filtered_events:
        show(tmp_path)
    else:
        show()
