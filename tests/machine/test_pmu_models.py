"""CPU models count what their processors count: the same code may be another event, on other counters."""

from __future__ import annotations

import pytest

from tests.machine.test_pmu import CYCLES, INST, OS, counting, per_instruction, write
from tests.machine.test_pmu_versions import run
from tests.test_lessons import plan_of
from tests.tools.whole import lesson, reg
from vpmu_emu.checks import check_program
from vpmu_emu.errors import ConfigError
from vpmu_emu.linux.state import VPMU_PASSTHROUGH
from vpmu_emu.setup.filterfile import parse_filter
from vpmu_emu.setup.hostevents import parse_host_event
from vpmu_emu.system import run as run_program
from vpmu_emu.tables.cpus import CPU_NAMES, cpu
from vpmu_emu.tables.events import EVENTS, event_by_name

pytestmark = pytest.mark.uncompiled

models = pytest.mark.parametrize("name", CPU_NAMES)


@models
@pytest.mark.parametrize("which", ["01_count", "03_overflow_pmi"])
def test_a_lesson_on_every_model(name, which):
    program = lesson(which)
    plan = plan_of(lesson_path(which), program)

    def on_model(program, mode, _cpu, _args):
        return run_program(program, vpmu=mode, cpu=name, ram=2, max_insns=100_000)

    report = check_program(program, plan, on_model)
    assert [str(verdict) for verdict in report.verdicts if not verdict.ok] == []
    assert len(report.verdicts) >= 25


def lesson_path(which):
    from tests.conftest import ROOT

    return ROOT / "guests" / "lessons" / f"{which}.s"


# One of each kind of branch and memory access, and what Intel's names for them count of it.
MIX = """
    mov r9d, 0x180000
    xor eax, eax
    jz 1f              # conditional, taken
    nop
1:  jnz 2f             # conditional, not taken
    jz 2f              # conditional, taken
2:  call 3f            # near call, stores
    jmp 4f             # direct jump
3:  ret                # near return, loads
4:  lea rbx, [5f]
    jmp rbx            # indirect jump
5:  lea rbx, [3b]
    call rbx           # indirect call, stores; returns, loads
    mov rax, [r9]      # loads
    mov [r9], rax      # stores
    add [r9], rax      # loads and stores
    nop
"""
COUNTS = {
    "BR_INST_RETIRED.ALL_BRANCHES": 9, "BR_INST_RETIRED.COND": 3, "BR_INST_RETIRED.COND_TAKEN": 2,
    "BR_INST_RETIRED.COND_NTAKEN": 1, "BR_INST_RETIRED.NEAR_CALL": 2, "BR_INST_RETIRED.NEAR_RETURN": 2,
    "BR_INST_RETIRED.NEAR_TAKEN": 8, "BR_INST_RETIRED.INDIRECT": 2, "BR_INST_RETIRED.FAR_BRANCH": 0,
    "MEM_INST_RETIRED.ALL_LOADS": 4, "MEM_INST_RETIRED.ALL_STORES": 4, "MEM_INST_RETIRED.ANY": 8,
    "INST_RETIRED.NOP": 1, "INST_RETIRED.ANY_P": 17 + 4, "INST_RETIRED.PREC_DIST": 17 + 4,
}  # fmt: skip


@models
def test_exact_events_have_their_counts(name):
    model = cpu(name)
    known = [e for e in EVENTS if model.events in e.lists and e.name in COUNTS]
    assert len(known) >= 11
    for event in known:
        if not event.counters:
            continue
        n = 1 if event.counters == 2 else 0
        selectors = [0] * n + [event.code]
        found = counting(MIX, *selectors, cpu=name)["pmc"][n]
        assert found == COUNTS[event.name], (name, event.name)


def test_one_code_is_two_events():
    """UMASK 01H of C4H: conditional branches on Skylake, taken ones since Ice Lake."""
    assert counting(MIX, 0x01C4, cpu="skx")["pmc"][0] == 3
    assert counting(MIX, 0x01C4, cpu="icx")["pmc"][0] == 2
    assert event_by_name("BR_INST_RETIRED.COND", "skx").code == 0x01C4
    for code in (0x11C4, 0x80C4, 0x01A4):  # Skylake's list does not have them
        assert counting(MIX, code, cpu="skx")["pmc"][0] == 0
        assert counting(MIX, code, cpu="icx")["pmc"][0] > 0


@models
def test_an_event_counts_only_on_its_counters(name):
    model = cpu(name)
    for code, allowed in ((0x81D0, 0x0F), (0xC0, 0xFF), (0x01C0, 0x02 if model.events == "skx" else 0)):
        found = counting(MIX, *[code] * model.gp, cpu=name)["pmc"]
        assert [bool(v) for v in found] == [bool(allowed >> n & 1) for n in range(model.gp)], hex(code)


@models
def test_reference_cycles_have_the_clock_of_the_model(name):
    """On a general-purpose counter: the crystal's until Ice Lake; fixed counter 2: always the TSC's."""
    model = cpu(name)
    loop = "mov r8d, 400\n1: imul rax, rbx\nimul rax, rbx\ndec r8d\njnz 1b\n"
    pmu = counting(loop, 0x013C, CYCLES, fixed=0x330, cpu=name)
    reference, cycles = pmu["pmc"][:2]
    _, fixed_cycles, fixed_reference = pmu["fixed"][:3]
    assert fixed_cycles == cycles > 2000
    assert fixed_reference == pytest.approx(cycles * model.tsc_khz / model.core_khz, abs=1)
    clock = model.crystal_khz if name in ("skx", "icx") else model.tsc_khz
    assert reference == pytest.approx(cycles * clock / model.core_khz, abs=1)


@pytest.mark.parametrize("name", ["skx", "icx"])
def test_a_slow_clock_overflows_on_its_tick(name):
    """Its counter steps once in 104 or 108 cycles: the horizon has to find the step."""
    text = write(0x38F, 0) + write(0x186, 0x43013C) + write(0x4C1, (1 << 48) - 3)
    text += write(0x187, CYCLES | OS | 1 << 22) + write(0x38F, 3)
    text += "mov ecx, 0x38e\n1: rdmsr\ntest eax, eax\njz 1b\n" + write(0x38F, 0)
    pmu = run(text, cpu=name).guest_pmu()
    assert pmu["global_status"] == 1
    period = cpu(name).core_khz / cpu(name).crystal_khz
    assert 2 * period < pmu["pmc"][1] < 3 * period + 300


def test_the_generic_model_is_counted_by_hand():
    assert per_instruction("nop\n", 20, cpu="generic") == 1
    assert per_instruction("mov rax, [r9]\n", 20, "mov r9d, 0x180000\n", cpu="generic") == 1
    assert per_instruction("imul rax, rbx\n", 20, cpu="generic") == 4
    assert counting("nop\n" * 9, CYCLES, INST, 0x01A4, cpu="generic")["pmc"][:3] == [112, 13, 112]


@pytest.mark.parametrize("name", ["skx", "icx", "spr"])
def test_division_takes_what_the_model_says(name):
    pair = per_instruction("xor edx, edx\ndiv rsi\n", 20, "mov esi, 5\n", cpu=name)
    model = cpu(name)
    assert pair == pytest.approx((model.latency_of("div") + model.latency_of("alu")) / 16, abs=0.1)


def test_names_of_host_events_and_filters_are_the_models():
    assert parse_host_event("BR_INST_RETIRED.COND", "skx")[0].config == 0x01C4
    assert parse_host_event("BR_INST_RETIRED.COND", "icx")[0].config == 0x11C4
    with pytest.raises(ConfigError, match="COND_TAKEN"):
        parse_host_event("BR_INST_RETIRED.COND_TAKEN", "skx")
    for name in ("slots", "topdown-slots"):  # no fixed counter 3, no such event
        assert parse_host_event(name, "icx")[0].config == 0x0400
        with pytest.raises(ConfigError, match="no event is named"):
            parse_host_event(name, "skx")
    text = 'action = "deny"\nevents = ["BR_INST_RETIRED.COND"]\n'
    assert parse_filter(text, names="skx").includes != parse_filter(text, names="icx").includes


def clocks(name):
    """Counters of every clock of the model and of instructions, all near their overflows."""
    slow = cpu(name).events in ("skx", "icx")  # a crystal's tick is eighty cycles
    text = write(0x38F, 0)
    for n, code in enumerate((0x13C, 0x3C, 0xC0, 0xC4)):
        left = 4 if slow and n == 0 else 40
        text += write(0x186 + n, code | 0x430000) + write(0x4C1 + n, (1 << 48) - left)
    text += write(0x38D, 0x333) + write(0x30B, (1 << 48) - 900) + write(0x38F, 0xF | 7 << 32)
    text += "mov r8d, 90\n1: imul rax, rbx\nmov ecx, 0x38e\nrdmsr\nor r10, rax\nadd r11, r10\n"
    return text + "dec r8d\njnz 1b\n" + write(0x38F, 0)


@models
def test_no_horizon_shows_on_any_model(name):
    plain = run(clocks(name), cpu=name)
    assert plain.guest_pmu()["global_status"] & 0x4_0000_000F == 0x4_0000_000F
    for options in ({"horizon": 1}, {"horizon": 9, "horizon_seed": 3}):
        assert run(clocks(name), cpu=name, **options).record() == plain.record()


LOST = """
    wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
    wrmsr_const IA32_PERFEVTSEL0, EVT_INST_RETIRED_ANY_P | EVTSEL_OS | EVTSEL_EN
    wrmsr_const IA32_A_PMC0, 0xfffffffffffb
    wrmsr_const IA32_PERF_GLOBAL_CTRL, 1
    nop
    nop
    nop
    wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
    xor eax, eax
    cpuid
    mov ecx, 0x38e
    rdmsr
    mov r8d, eax
"""


@pytest.mark.parametrize("version", [3, 4, 5])
def test_an_exit_keeps_a_guests_status(version):
    """Only GLOBAL_STATUS_SET restores it: on a host below version 4 the guest has the emulated vPMU."""
    system = run(LOST, mode="passthrough", settings={"pmu.version": version})
    assert (int(system.S.vms[0].vpmu) == VPMU_PASSTHROUGH) == (version >= 4)
    assert reg(system, 8) == 1
    assert reg(run(LOST, mode="emulated", settings={"pmu.version": version}), 8) == 1


@pytest.mark.parametrize(("mode", "status"), [("emulated", 1), ("passthrough", 0)])
def test_silicon_knows_its_own_width(mode, status):
    """A guest with narrower counters than the host: passed through, they wrap where the hardware's do."""
    text = LOST.replace("0xfffffffffffb", "0xfffffffffb")
    assert reg(run(text, mode=mode, guest={"width": 40}), 8) == status
