"""A guest that is saved at any point and goes on elsewhere does what it would have done."""

from __future__ import annotations

import random
from functools import cache

import attrs
import numpy as np
import pytest
from click.testing import CliRunner

import vpmu_emu
from tests.conftest import ROOT
from tests.linux.syscalls.test_kvm import Vmm
from tests.tools.profiles import cases
from tests.tools.whole import lesson
from vpmu_emu import system as system_module
from vpmu_emu._jit import COMPILES
from vpmu_emu.asm import assemble
from vpmu_emu.cli import main
from vpmu_emu.errors import ConfigError, HostError
from vpmu_emu.setup.saved import STATES, SavedVm, check_fit, pack, unpack
from vpmu_emu.system import System
from vpmu_emu.tables.cpus import cpu
from vpmu_emu.tables.linux import STRUCTS
from vpmu_emu.tables.modes import MODES, SWITCH_POLICIES, kernel_version
from vpmu_emu.tables.msrs import by_name

pytestmark = pytest.mark.skipif(not COMPILES, reason="the VMM looks at every page of memory")

WITH_PMU = tuple(mode.name for mode in MODES.values() if mode.hypervisor and mode.enable_pmu)
RAM = 2
# A kernel that samples itself: each PMI, an NMI, writes where it came upon the work and what a counter of
# branches says then; it reads no time. The work is loops, a call, CPUID (which exits) and a REP.
SAMPLER = """
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .equ NMI, 2
        .equ BOTH, EVTSEL_OS | EVTSEL_USR
        .text
        .globl _start
_start:
        lapic_enable_x2apic
        load_idt
        set_gate NMI, pmi
        wrmsr_const IA32_X2APIC_LVT_PMI, LVT_NMI
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERFEVTSEL0, EVT_INST_RETIRED_ANY_P | BOTH | EVTSEL_INT | EVTSEL_EN
        wrmsr_const IA32_PERFEVTSEL1, EVT_BR_INST_RETIRED_ALL_BRANCHES | BOTH | EVTSEL_EN
        wrmsr_const IA32_FIXED_CTR_CTRL, 3
        wrmsr_const IA32_PMC0, -{period} & 0xffffffff
        lea r14, [rip + samples]
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0 | GLOBAL_PMC1 | GLOBAL_FIXED0
work:   mov r12d, {rounds}
round:  mov ebx, 9
1:      imul rax, rbx, 7
        test al, 4
        jz 2f
        add r13, rax
2:      dec ebx
        jnz 1b
        xor eax, eax
        cpuid
        call leaf
        dec r12d
        jnz round
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        rdmsr_rax IA32_PMC0
        mov [rip + counts], rax
        rdmsr_rax IA32_PMC1
        mov [rip + counts + 8], rax
        rdmsr_rax IA32_FIXED_CTR0
        mov [rip + counts + 16], rax
        rdmsr_rax IA32_PERF_GLOBAL_STATUS
        mov [rip + counts + 24], rax
        mov [rip + counts + 32], r14
        debug_exit 0
leaf:   lea rdi, [rip + scratch]
        mov ecx, 12
        rep stosb
        ret

pmi:    push rax
        push rcx
        push rdx
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        mov rax, [rsp + 24]
        mov [r14], rax
        rdmsr_rax IA32_PMC1
        mov [r14 + 8], rax
        add r14, 16
        wrmsr_const IA32_PERF_GLOBAL_STATUS_RESET, GLOBAL_PMC0
        wrmsr_const IA32_PMC0, -{period} & 0xffffffff
        wrmsr_const IA32_X2APIC_LVT_PMI, LVT_NMI
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0 | GLOBAL_PMC1 | GLOBAL_FIXED0
        pop rdx
        pop rcx
        pop rax
        iretq
        .data
counts: .quad 0, 0, 0, 0, 0
scratch:
        .zero 16
        .bss
samples:
        .zero 4096
        idt_storage
"""


@cache
def sampler(period: int = 97, rounds: int = 40):
    return assemble(SAMPLER.format(period=period, rounds=rounds), "sampler.s")


def done(system) -> tuple:
    """What the guest has counted and sampled in the end."""
    stop = system.run()
    assert (stop.reason, stop.info) == ("debug-exit", 0), str(stop)
    at = system.program.symbols
    return system.read(at["counts"], 40), system.read(at["samples"], 4096)


@cache
def whole(mode: str, *shape: int) -> tuple[tuple, int]:
    """The same without migration, and how many instructions it takes."""
    system = System(sampler(*shape), vpmu=mode, ram=RAM)
    return done(system), system.instructions


def saving(mode: str, at: int | str, program=None, **options) -> System:
    """The machine in which the guest has been saved."""
    system = System(program or sampler(), vpmu=mode, save="unused", at=at, **{"ram": RAM, **options})
    stop = system.run()
    assert stop.reason == "saved", str(stop)
    return system


def saved(mode: str, at: int | str, program=None, **options) -> SavedVm:
    """The guest as a saved VM."""
    return unpack(saving(mode, at, program, **options).saved_vm(), "x.vm")


def msr(vm: SavedVm, name: str) -> int:
    """What the guest has in an MSR."""
    rows = STRUCTS["kvm_msrs"].tails(vm.sections["msrs"])
    return next(int(row["data"]) for row in rows if int(row["index"]) == by_name(name))




def goes_on_alike(mode: str, at: int, **options) -> None:
    want, _ = whole(mode)
    vm = saved(mode, at, **options)
    got = done(System(None, vpmu=mode, restore=vm, **options))
    one_off = MODES[mode].owner == "perf" and msr(vm, "IA32_PMC0") == (1 << 48) - 1
    if got == want or not one_off:
        assert got == want, f"{mode} saved after {at} instructions"
        return
    # Perf programs a period of 2 at least: the overflow that was one event away comes one late, and so does
    # every later one.
    counts, samples = (np.frombuffer(part, dtype="<u8") for part in want)
    late, others = (np.frombuffer(part, dtype="<u8") for part in got)
    assert late.tolist() == [counts[0] - 1, *counts[1:]]
    assert np.count_nonzero(others) == np.count_nonzero(samples)


@pytest.mark.parametrize("mode", WITH_PMU)
def test_samples_and_counts_are_those_of_the_run_without_it(mode):
    rng = random.Random(mode)
    last = whole(mode)[1] - 1
    for _ in range(cases(day=6, laws=1_000, night=1_000)):
        goes_on_alike(mode, rng.randrange(1, last))


@pytest.mark.parametrize("policy", SWITCH_POLICIES)
@pytest.mark.parametrize("mode", [mode for mode in WITH_PMU if MODES[mode].owns_pmu])
def test_whatever_a_switch_does(mode, policy):
    rng = random.Random(f"{mode} {policy}")
    last = whole(mode)[1] - 1
    for _ in range(cases(day=1, laws=60, night=300)):
        goes_on_alike(mode, rng.randrange(1, last), switch=policy)


def test_an_overflow_that_was_one_event_away_comes_one_late_in_emulated():
    """Row of docs/divergences.md; where the guest owns the PMU it comes when it would have."""
    for mode in WITH_PMU:
        want, _ = whole(mode)
        vms = (saved(mode, at) for at in range(first_pmi(mode) - 4, first_pmi(mode)))
        vm = next(vm for vm in vms if msr(vm, "IA32_PMC0") == (1 << 48) - 1)
        got = done(System(None, vpmu=mode, restore=vm))
        before, after = (int.from_bytes(part[0][:8], "little") for part in (want, got))
        assert after - before == (-1 if MODES[mode].owner == "perf" else 0), mode


@cache
def first_pmi(mode: str) -> int:
    """After so many instructions the guest has begun the handler of its first PMI."""
    for at in range(100, 300):
        system = System(sampler(), vpmu=mode, ram=RAM, max_insns=at)
        system.run()
        if system.rip > sampler().symbols["pmi"]:
            return at
    raise AssertionError


# --- what waits only as a request ------------------------------------------------------------------------
IMMEDIATE = """
interrupted:
        xor byte ptr [rip + again], 1
        mov byte ptr [rbx + kvm_run_immediate_exit], 1
"""


@pytest.mark.parametrize("mode", WITH_PMU)
def test_a_pmi_that_is_only_a_request_needs_a_signal(mode, monkeypatch):
    """KVM_RUN with a signal pending delivers it to the local APIC; with immediate_exit it does not."""
    source = (ROOT / "guests" / "host" / "live_vmm.s").read_text()
    words = "interrupted:\n        xor byte ptr [rip + again], 1\n"
    assert words in source
    vmm = assemble(source.replace(words, IMMEDIATE), "immediate_vmm.s")
    want, _ = whole(mode)
    usual = system_module.vmm()

    def samples(at: int) -> int:
        found = done(System(None, vpmu=mode, restore=saved(mode, at)))[1]
        return np.count_nonzero(np.frombuffer(found, dtype="<u8"))

    every = np.count_nonzero(np.frombuffer(want[1], dtype="<u8"))
    first = first_pmi(mode)
    around = range(first - 4, first + 1)
    assert {samples(at) for at in around} == {every}
    monkeypatch.setattr(system_module, "vmm", lambda name="vmm": vmm if name == "live_vmm" else usual)
    lost = [at for at in around if samples(at) < every]
    assert len(lost) == 1, (lost, first)


# --- other states of a guest ------------------------------------------------------------------------------
CLOCK = """
        .intel_syntax noprefix
        .text
        .globl _start
_start: xor r13d, r13d
        xor r14d, r14d
        mov r12d, 400
1:      rdtsc
        shl rdx, 32
        or rax, rdx
        cmp rax, r13
        jae 2f
        inc r14d
2:      mov r13, rax
        dec r12d
        jnz 1b
        mov eax, r14d
        out 0xf4, al
"""


@pytest.mark.parametrize("mode", WITH_PMU)
def test_the_tsc_never_goes_back(mode):
    """Nor is it set aside because the new VM's own is less than a second away, as before Linux 6.8."""
    program = assemble(CLOCK, "clock.s")
    rng = random.Random(mode)
    for _ in range(cases(day=2, laws=50, night=50)):
        vm = saved(mode, rng.randrange(5, 3000), program)
        system = System(None, vpmu=mode, restore=vm)
        stop = system.run()
        assert (stop.reason, stop.info) == ("debug-exit", 0)
        assert system.registers()["r13"] > int.from_bytes(vm.sections["tsc"], "little")


@pytest.mark.parametrize("mode", WITH_PMU)
def test_kvm_set_msrs_would_set_it_aside(mode):
    """Row of docs/divergences.md: why the VMM sets KVM_VCPU_TSC_OFFSET."""
    vmm = Vmm(mode)
    (own,) = vmm.read(0x10)
    far = own + 20_000_000  # of a guest that has run for some milliseconds, less than a second
    assert vmm.set((0x10, far)) == 1
    (first,) = vmm.read(0x10)
    assert vmm.set((0x10, far + 20_000_000)) == 1
    (second,) = vmm.read(0x10)
    since_6_8 = MODES[mode].kernel.version >= kernel_version(6, 8)
    assert (first >= far) == since_6_8
    assert second < far + 20_000_000


@pytest.mark.parametrize("mode", WITH_PMU)
def test_timers_go_on(mode):
    """Lesson 6 with a tick by TSC deadline: samples and ticks are all there."""
    program = lesson("06_sampling")
    rng = random.Random(mode)
    last = System(program, vpmu=mode)
    last.run()
    for _ in range(cases(day=1, laws=30, night=30)):
        vm = saved(mode, rng.randrange(1, last.instructions - 500), program, ram=64)
        system = System(None, vpmu=mode, restore=vm)
        stop = system.run()
        at = system.program.symbols
        assert (stop.reason, stop.info) == ("debug-exit", 0)
        words = np.frombuffer(system.read(at["histogram"], 32), dtype="<u8")
        assert int(words.sum()) == system.program.symbols["SAMPLES"]
        assert not any(system.read(at["backwards"], 8))
        assert int.from_bytes(system.read(at["ticks"], 8), "little") >= 1


DEADLINE = """
        wrmsr_const IA32_X2APIC_LVT_TIMER, 0x41 | LVT_TIMER_TSC_DEADLINE
        rdtsc
        shl rdx, 32
        or rax, rdx
        add rax, 4000000
        wrmsr_rax IA32_TSC_DEADLINE
"""
ONE_SHOT = """
        wrmsr_const IA32_X2APIC_DIV_CONF, 11
        wrmsr_const IA32_X2APIC_LVT_TIMER, 0x41
        wrmsr_const IA32_X2APIC_INIT_COUNT, 2000000
"""
HALTED = """
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .text
        .globl _start
_start: lapic_enable_x2apic
        load_idt
        set_gate 0x41, tick
        {timer}
        sti
        hlt
        debug_exit 0
tick:   lapic_eoi
        iretq
        idt_storage
"""


@pytest.mark.parametrize("timer", [DEADLINE, ONE_SHOT])
@pytest.mark.parametrize("mode", WITH_PMU)
def test_a_halted_guest_is_saved_halted(mode, timer):
    program = assemble(HALTED.format(timer=timer), "halted.s")
    system = System(program, vpmu=mode, ram=RAM, save="unused", at=10**9)
    while not int(system.S.vcpus[0].mp_state):
        system._turn(1 << 12)
    system._ask_to_save()
    assert system.run().reason == "saved"
    vm = unpack(system.saved_vm(), "x.vm")
    assert int.from_bytes(vm.sections["mpstate"], "little") == 3  # KVM_MP_STATE_HALTED
    stop = System(None, vpmu=mode, restore=vm).run()
    assert (stop.reason, stop.info) == ("debug-exit", 0)


def test_what_is_in_no_list_does_not_come_along():
    """IA32_DEBUGCTL, as in KVM: row of docs/divergences.md."""
    body = "mov ecx, 0x1d9\nmov eax, 1\nxor edx, edx\nwrmsr\nmov esi, 99\n1: dec esi\njnz 1b\nrdmsr\nhlt"
    asked = {"cpu": "icx", "guest": {"perf_caps": 0x2000 | cpu("icx").perf_capabilities & 0x3F}}
    program = assemble(body, "debugctl.s")
    for system in (
        System(program, vpmu="emulated", ram=RAM, **asked),
        System(None, vpmu="emulated", cpu="icx", restore=saved("emulated", 50, program, **asked)),
    ):
        system.run()
        moved = system.options.restore is not None
        assert system.registers()["rax"] == (0 if moved else 1)


def test_a_guest_can_move_on_and_on():
    want, _ = whole("emulated")
    vm = saved("emulated", 700)
    for _ in range(3):
        system = System(None, vpmu="emulated", restore=vm, save="unused", at=500)
        assert system.run().reason == "saved"
        vm = unpack(system.saved_vm(), "x.vm")
    assert done(System(None, vpmu="emulated", restore=vm)) == want


def test_it_ends_with_the_vmm_whoever_else_runs():
    forever = assemble("        .text\n        .globl _start\n_start: jmp _start\n", "forever.s")
    vm = saved("emulated", 700, host=[forever])
    assert vm.facts["instructions"] == 700  # of the guest
    assert done(System(None, vpmu="emulated", restore=vm)) == whole("emulated")[0]


def test_a_symbol_is_a_moment():
    vm = saved("mediated", "leaf")
    regs = STRUCTS["kvm_regs"].read(vm.sections["regs"])
    assert int(regs["rip"]) == sampler().symbols["leaf"]
    assert done(System(None, vpmu="mediated", restore=vm)) == whole("mediated")[0]


# --- somewhere else ---------------------------------------------------------------------------------------
COUNTER = """
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .text
        .globl _start
_start: wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERFEVTSEL0, EVT_INST_RETIRED_ANY_P | EVTSEL_OS | EVTSEL_USR | EVTSEL_EN
        wrmsr_const IA32_PERFEVTSEL2, EVT_BR_INST_RETIRED_ALL_BRANCHES | EVTSEL_OS | EVTSEL_USR | EVTSEL_EN
        wrmsr_const IA32_FIXED_CTR_CTRL, 3
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0 | GLOBAL_PMC2 | GLOBAL_FIXED0
        mov esi, 300
1:      dec esi
        jnz 1b
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        rdmsr_rax IA32_PMC0
        mov r8, rax
        rdmsr_rax IA32_PMC2
        mov r9, rax
        rdmsr_rax IA32_FIXED_CTR0
        mov r10, rax
        debug_exit 0
"""


def counted(system: System) -> list[int]:
    stop = system.run()
    assert (stop.reason, stop.info) == ("debug-exit", 0), str(stop)
    return [system.registers()[name] for name in ("r8", "r9", "r10")]


@pytest.mark.parametrize("to", WITH_PMU)
@pytest.mark.parametrize("mode", WITH_PMU)
def test_counts_are_exact_in_another_mode_and_kernel(mode, to):
    """But for the edges: a GLOBAL_CTRL that exits counts itself where it opens, one that passes where it
    closes."""
    program = assemble(COUNTER, "counter.s")
    exits = {name: int(MODES[name].owner == "perf" or not MODES[name].kernel.series) for name in WITH_PMU}
    edge = exits[mode] - exits[to]  # an opener that KVM emulates counts, a closer that exits does not
    want = counted(System(program, vpmu=to, ram=RAM))
    for at in (60, 123, 500):
        got = counted(System(None, vpmu=to, restore=saved(mode, at, program)))
        assert got == [want[0] + edge, want[1], want[2] + edge], (mode, to, at)


@pytest.mark.parametrize(("mode", "other"), [
    ("emulated", None), ("passthrough", None), ("mediated", None), ("passthrough", "emulated"),
])  # fmt: skip
def test_from_one_vmm_to_another_on_one_host(mode, other):
    """save.s and restore.s, beside the VMM and its guest."""
    host = [str(ROOT / "guests" / "host" / f"{name}.s") for name in ("save", "restore")]
    result = vpmu_emu.run(
        ROOT / "guests" / "lessons" / "07_contention.s", vpmu=mode, other_vpmu=other, host=host
    ).to_json()
    assert [task["exit_code"] for task in result["tasks"][1:3]] == [0, 0]
    assert "saved: 1\n" in result["serial"]
    assert "count of the guest that moved: 40004\n" in result["serial"]  # EXPECTED


def test_without_a_pmu():
    program = assemble(CLOCK, "clock.s")
    vm = saved("none", 700, program)
    for mode in ("none", "emulated", "mediated"):  # its CPUID still says that there is none
        stop = System(None, vpmu=mode, restore=vm).run()
        assert (stop.reason, stop.info) == ("debug-exit", 0)


def test_to_another_cpu_where_it_has_all_that_the_guest_has():
    vm = saved("emulated", 123, assemble(COUNTER, "counter.s"), cpu="icx")
    want = counted(System(vm.program, vpmu="emulated", ram=RAM, cpu="spr"))
    assert counted(System(None, vpmu="emulated", restore=vm, cpu="spr")) == want


def test_the_filter_is_the_destinations():
    from vpmu_emu.linux.kvm.eventfilter import make_filter
    from vpmu_emu.linux.state import KVM_PMU_EVENT_DENY

    deny = make_filter(KVM_PMU_EVENT_DENY, [0xC4], 0, False)
    program = assemble(COUNTER, "counter.s")
    for mode in WITH_PMU:
        vm = saved(mode, 300, program)
        system = System(None, vpmu=mode, restore=vm, filter=deny)
        counts = counted(system)
        assert counts[1] == msr(vm, "IA32_PMC2"), mode
        assert counts[0] == counted(System(program, vpmu=mode, ram=RAM))[0]


# --- the file ---------------------------------------------------------------------------------------------
def test_the_file_has_what_ioctls_gave_and_nothing_else():
    vm = saved("passthrough", 300)
    assert list(vm.sections) == list(STATES)
    system = saving("passthrough", 300)
    assert unpack(system.saved_vm(), "x.vm").payload == vm.payload


def resealed(data: bytes, change) -> bytes:
    """The file with another payload and a checksum that fits."""
    vm = unpack(data, "x.vm")
    from vpmu_emu.asm import write_elf

    return pack(vm.facts, change(vm.payload), write_elf(vm.program))


def test_what_is_no_saved_vm_is_refused():
    data = saving("emulated", 300).saved_vm()
    snapshot = System(sampler(), vpmu="bare", ram=RAM).snapshot()
    wrong = {
        "is no saved VM of vpmu_emu": b"\x7fELF" + data[4:],
        "is no saved VM": b"",
        "is a snapshot of a run": snapshot,
        "is cut off": data[:30],
        f"has format 9, of vpmu_emu {vpmu_emu.__version__}; this is {vpmu_emu.__version__}, which reads 1":
            data[:8] + (9).to_bytes(4, "little") + data[12:],
        "is damaged or cut off": data[:-1],
        "checksum is wrong": data[:400] + bytes([data[400] ^ 1]) + data[401:],
    }  # fmt: skip
    for words, each in wrong.items():
        with pytest.raises(ConfigError, match=words):
            unpack(each, "x.vm")
    changes = {
        "it has no end": lambda p: p[:-16],
        "something follows its end": lambda p: p + b"x",
        "section 'cpuid2' stands where sizes should": lambda p: p[32:],
        "section sizes is cut off": lambda p: p[:8] + (1 << 60).to_bytes(8, "little") + p[16:],
        "bytes of memory and says 2 MiB": lambda p: p[:16] + bytes(8) + p[24:],
    }
    for words, change in changes.items():
        with pytest.raises(ConfigError, match=words):
            unpack(resealed(data, change), "x.vm")


def test_any_byte_that_changes_is_noticed():
    data = saving("emulated", 300).saved_vm()
    rng = random.Random(1)
    for _ in range(cases(day=50, laws=2_000, night=2_000)):
        at = rng.randrange(len(data))
        with pytest.raises(ConfigError):
            unpack(data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :], "x.vm")
        with pytest.raises(ConfigError):
            unpack(data[:at], "x.vm")


def test_a_forged_file_is_refused_or_runs():
    """Whatever states it has, with a checksum that fits: no traceback, no hang."""
    data = saving("emulated", 300).saved_vm()
    rng = random.Random(2)
    for _ in range(cases(day=6, laws=300, night=300)):
        payload = bytearray(unpack(data, "x.vm").payload)
        for _ in range(rng.randrange(1, 5)):
            payload[rng.randrange(min(len(payload), 6000))] = rng.randrange(256)
        try:
            vm = unpack(resealed(data, lambda _, p=payload: bytes(p)), "x.vm")
            System(None, vpmu="emulated", restore=vm, max_insns=2_000, max_cycles=10_000_000).run()
        except (ConfigError, HostError):
            continue


@pytest.mark.parametrize(("mode", "how", "to", "there", "words"), [
    ("emulated", {}, "none", {}, "version 2, 8 counters and 3 fixed ones of 48 bits, .* would be no PMU"),
    ("emulated", {}, "emulated", {"settings": {"pmu.gp": 4}}, "here it would be version 2, 4 counters"),
    ("emulated", {}, "emulated", {"settings": {"pmu.width": 40}}, "of 40 bits"),
    ("mediated", {"kvm": {"fixed_cap": 4}}, "mediated", {}, "4 fixed ones .* here .* 3 fixed ones"),
    ("mediated", {"kvm": {"fixed_cap": 4}}, "passthrough", {"kvm": {}}, "4 fixed ones"),
    ("emulated", {"cpu": "icx"}, "emulated", {"cpu": "skx"}, "on icx .* on skx .* 4 counters"),
    ("emulated", {"cpu": "icx", "guest": {}}, "mediated", {"cpu": "icx"}, "branch records"),
    ("emulated", {}, "emulated", {"ram": 8}, "ram: the guest of x.vm has 2 MiB, not 8"),
])  # fmt: skip
def test_a_host_that_has_less_is_refused_with_both_shapes(mode, how, to, there, words):
    program = assemble(COUNTER, "counter.s")
    if "guest" in how:
        how = {**how, "guest": {"perf_caps": 0x2000 | cpu("icx").perf_capabilities & 0x3F}}
    vm = saved(mode, 50, program, **how)
    with pytest.raises(ConfigError, match=words):
        System(None, vpmu=to, restore=vm, **there)


def test_a_cpu_without_a_feature_is_refused():
    vm, spr = saved("emulated", 300), cpu("spr")
    check_fit(vm, spr, MODES["mediated"], 3, ())
    with pytest.raises(ConfigError, match=r"does not fit .*: the guest has CPUID.1H:ECX bits 0x4000000"):
        check_fit(vm, attrs.evolve(spr, features=spr.features - {"xsave"}), MODES["emulated"], 3, ())


def test_contradictions_are_refused():
    vm = saved("emulated", 300)
    for words, asked in {
        "restore: x.vm is of program sampler.s, not of this": {"program": sampler(31)},
        "guest: the guest is the one that was saved": {"guest": {"gp": 2}},
        "entry: the guest is the one": {"entry": "work"},
        "at: needs --save": {"at": 5},
        "save: needs --at": {"save": "x"},
        "at: '0' is not a number of instructions": {"save": "x", "at": "0"},
        "no symbol 'sampels'; did you mean samples": {"save": "x", "at": "sampels"},
    }.items():
        with pytest.raises(ConfigError, match=words):
            System(asked.pop("program", None), vpmu="emulated", restore=vm, **asked)
    for asked in ({"restore": vm}, {"save": "x", "at": 5}):
        with pytest.raises(ConfigError, match="there is no hypervisor in mode bare"):
            System(sampler(), vpmu="bare", **asked)


def test_the_debugger_goes_on_from_it_and_saves_nothing():
    with pytest.raises(ConfigError, match=r"save: a debugger .* saves nothing"):
        vpmu_emu.Session(sampler(), vpmu="emulated", ram=RAM, save="x", at=5)
    session = vpmu_emu.Session(sampler(), vpmu="emulated", restore=saved("emulated", "leaf"))
    assert session.rip == sampler().symbols["leaf"]
    assert session.cont().reason == "debug-exit"


def test_the_command_line(tmp_path):
    source, file = tmp_path / "counter.s", tmp_path / "counter.vm"
    source.write_text(COUNTER)

    def vpmu(*args) -> tuple[int, str]:
        result = CliRunner().invoke(main, ["run", *map(str, args), "--ram", "2"])
        return result.exit_code, result.output + (result.stderr if result.stderr_bytes else "")

    status, text = vpmu(source, "--vpmu", "emulated", "--save", file, "--at", "300")
    assert status == 0
    assert "stopped by saved" in text
    assert vpmu("--vpmu", "mediated", "--restore", file)[0] == 0
    assert vpmu(source, "--vpmu", "passthrough", "--restore", file, "--json")[0] == 0
    status, text = vpmu("--restore", file)
    assert (status, "no hypervisor in mode bare (allowed: none emulated" in text) == (2, True), text
    before = file.read_bytes()
    status, text = vpmu(source, "--vpmu", "emulated", "--save", tmp_path / "late.vm", "--at", "99999")
    assert status == 1
    assert "nothing was saved: the guest ended before 99999" in text
    assert not (tmp_path / "late.vm").exists()
    assert vpmu("--vpmu", "none", "--restore", file)[0] == 2
    assert vpmu("--vpmu", "emulated", "--restore", file, "--save", file, "--at", "5")[0] == 2
    assert file.read_bytes() == before
    file.write_bytes(before[:-100])
    status, text = vpmu("--vpmu", "emulated", "--restore", file)
    assert (status, "checksum is wrong" in text) == (2, True)
    assert vpmu("--vpmu", "emulated", "--restore", tmp_path / "none.vm")[0] == 2
    status, text = vpmu("--vpmu", "emulated")
    assert (status, "Missing argument 'PROG'" in text) == (2, True)


def test_every_door_takes_a_saved_vm_and_is_told_its_mode(tmp_path):
    """`bare` has no VM to go on with, and no other mode is taken in silence."""
    file = tmp_path / "sampler.vm"
    file.write_bytes(saving("mediated", 300).saved_vm())
    assert vpmu_emu.run(None, restore=file, vpmu="emulated").to_json()["vpmu"] == "emulated"
    assert System(None, restore=str(file), vpmu="mediated").mode == "mediated"
    assert vpmu_emu.Session(sampler(), restore=file, vpmu="passthrough").system.mode == "passthrough"
    with pytest.raises(ConfigError, match=r"no hypervisor in mode bare.*emulated passthrough mediated"):
        vpmu_emu.run(None, restore=file)


def test_a_snapshot_keeps_the_files_that_programs_made():
    system = saving("emulated", 300)
    kept = system.snapshot()
    other = System(sampler(), vpmu="emulated", ram=RAM, save="unused", at=300)
    other.restore(kept)
    assert other.saved_vm() == system.saved_vm()


# Each round an exception whose handler begins with another: a delivery behind which no instruction is done.
FRUITLESS = """
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .text
        .globl _start
_start: load_idt
        set_gate 0, divided
        set_gate 6, invalid
        xor ecx, ecx
        mov ebx, 40
again:  ud2
        dec ebx
        jnz again
        debug_exit 0
invalid:
        div ecx
divided:
        inc r15
        mov rsp, [rsp + 24]             # the other frame
        add qword ptr [rsp], 2
        iretq
        idt_storage
"""


@pytest.mark.parametrize("mode", WITH_PMU)
def test_a_moment_may_lie_behind_deliveries_without_an_instruction(mode):
    program = assemble(FRUITLESS)
    system = System(program, vpmu=mode, ram=RAM)
    system.run()
    last = system.instructions
    assert system.registers()["r15"] == 40
    for at in (last // 4, last // 2, last - 1):
        system = System(None, vpmu=mode, restore=saved(mode, at, program))
        assert system.run().reason == "debug-exit"
        assert system.registers()["r15"] == 40
