"""Branch records of a guest in `emulated`: whose they are, when they pass, and what takes them away."""

from __future__ import annotations

import numpy as np
import pytest

from tests.linux.guests import run, system
from tests.linux.kvm.test_divergences import FAULTS, rdmsr, wrmsr
from tests.linux.kvm.test_pmu_emulated import PMI_GUEST, SLEEP, START
from tests.reference import generator
from vpmu_emu.asm import assemble
from vpmu_emu.errors import ConfigError
from vpmu_emu.linux.kvm.refresh import refresh_intercepts
from vpmu_emu.linux.kvm.vmx.intercepts import MSR_FILTER_PAGES, set_msr_filter
from vpmu_emu.linux.kvm.vmx.vmcs import PAGE
from vpmu_emu.linux.perf.sched import perf_event_task_sched
from vpmu_emu.linux.state import CTX_NONE, CTX_TASK
from vpmu_emu.system import System, host_model

pytestmark = [pytest.mark.uncompiled, pytest.mark.inner]

GIVEN = {"cpu": "icx", "guest": {"pmu.perf_caps": 0x2005}}
SELECT, TOS, FROM, TO, INFO, DEBUGCTL = 0x1C8, 0x1C9, 0x680, 0x6C0, 0xDC0, 0x1D9
START_LBR, STOP_LBR = wrmsr(DEBUGCTL, 1), wrmsr(DEBUGCTL, 0)
BRANCHES = """
    mov esi, 9
1:  call 2f
    test sil, 1
    jz 3f
    nop
3:  dec esi
    jnz 1b
    jmp 4f
2:  ret
4:
"""
TAKER = {"host_events": ["r1b00:D"], **GIVEN}  # a pinned event of the host on the very index


def records(machine):
    """(from, to) of the hardware's registers, and the newest."""
    lbr = machine.core.lbr
    return [(int(a), int(b)) for a, b in zip(lbr.source, lbr.target, strict=True)], int(lbr.tos)


def lbr_event(result):
    found = [e for e in result["perf"]["events"] if e["name"].startswith("r1b00:G")]
    return found[0] if found else None


@pytest.mark.parametrize("between", ["nop\n", "xor eax, eax\n cpuid\n", "in al, 0x61\n"])
@pytest.mark.parametrize("cpu", ["icx", "skx"])
def test_a_guest_records_what_silicon_would(cpu, between):
    body = wrmsr(SELECT, 0) + START_LBR + BRANCHES.replace("nop\n", between) + STOP_LBR + "EXIT 0\n"
    bare, _ = run(body, "bare", cpu=cpu)
    guest, result = run(body, "emulated", cpu=cpu, guest={"pmu.perf_caps": 0x2005})
    assert records(guest) == records(bare)
    assert sum(1 for pair in records(bare)[0] if any(pair)) == 31  # the first record is the second's
    assert (lbr_event(result)["state"], lbr_event(result)["hw_idx"]) == ("ACTIVE", "lbr")


@pytest.mark.parametrize("seed", range(3))
def test_random_programs_record_the_same(seed):
    text = generator.from_seed("integer", 970 + seed)
    text = text.replace("_start:", "_start:\n" + START_LBR, 1)
    program = assemble(text, "random")
    found = []
    for mode, options in (("bare", {"cpu": "icx"}), ("emulated", GIVEN)):
        machine = System(program, vpmu=mode, ram=2, max_insns=60_000, **options)
        machine.run()
        found.append(records(machine))
    assert found[0] == found[1]
    assert sum(1 for pair in found[0][0] if any(pair)) > 1


def test_the_host_and_the_exits_leave_no_record():
    """Between the branches of the guest lie thousands of instructions of the host."""
    body = START_LBR + "jmp 1f\n" + "1: xor eax, eax\n cpuid\n" + "jmp 2f\n 2:\n" + STOP_LBR + "EXIT 0\n"
    machine, _ = run(body, "emulated", **GIVEN)
    assert sum(1 for pair in records(machine)[0] if any(pair)) == 2
    assert int(machine.core.pmu.debugctl) == 0


def test_registers_pass_from_the_entry_after_the_event_is_there():
    body = rdmsr(TOS) * 3 + wrmsr(FROM, 5) + wrmsr(INFO + 31, 7) + rdmsr(TO + 31) + rdmsr(FROM)
    body += "mov ebx, eax\n" + rdmsr(INFO + 31) + "mov esi, eax\n EXIT 0\n"
    machine, result = run(body, "emulated", **GIVEN)
    assert result["exits"]["MSR_READ"] == 1
    assert "MSR_WRITE" not in result["exits"]
    assert (result["registers"]["rbx"], result["registers"]["rsi"]) == (5, 7)
    bitmap = int(machine.S.vcpus[0].msr_bitmap)
    passing = {
        index for index in range(0x2000)
        if not machine.M[bitmap + index // 8] >> index % 8 & 1
        and not machine.M[bitmap + 0x800 + index // 8] >> index % 8 & 1
    }  # fmt: skip
    registers = {SELECT, TOS} | {first + k for first in (FROM, TO, INFO) for k in range(32)}
    assert passing & registers == registers
    before = system("EXIT 0\n", "emulated", **GIVEN)
    bitmap = int(before.S.vcpus[0].msr_bitmap)
    assert all(before.M[bitmap + index // 8] >> index % 8 & 1 for index in registers)


@pytest.mark.parametrize(("denied", "code"), [(None, 0), (1, 13), (2, 0), (3, 13)])
def test_what_an_msr_filter_denies_never_passes(denied, code):
    """A filter that comes later: the bitmap is made again, and at the next entry as the filter says."""
    body = rdmsr(TOS) * 2 + "here:\n" + rdmsr(TOS) + "in al, 0x61\n" + rdmsr(FROM + 1)
    machine = system(FAULTS.format(body=body), "emulated", **GIVEN)
    while int(machine.core.rip) != machine.program.symbols["here"]:
        machine.step()
    vm = machine.S.vms[0]
    vm.msr_filter = len(machine.M) - MSR_FILTER_PAGES * PAGE
    set_msr_filter(machine.M, vm, True, [] if denied is None else [(denied, 1, FROM + 1, b"\0")])
    refresh_intercepts(machine.S, machine.M, host_model("icx"), 0)
    result = machine.result(machine.run()).to_json()
    assert result["exit_code"] == code
    assert result["exits"]["MSR_READ"] == 2 + (code != 0)  # the first of all, the first after, the denied


def test_a_new_event_finds_nothing_of_what_was_there():
    machine = system(rdmsr(FROM + 3) + "mov ebx, eax\n" + rdmsr(SELECT) + "EXIT 0\n", "emulated", **GIVEN)
    machine.core.lbr.source[:] = 0xBAD
    machine.core.lbr.ctl = 0xBAD & 0x3FF
    result = machine.result(machine.run()).to_json()
    assert (result["registers"]["rbx"], result["registers"]["rax"]) == (0, 0)


@pytest.mark.parametrize("index", [SELECT, TOS, FROM, FROM + 31, TO, INFO + 31])
def test_without_the_records_every_register_reads_0_and_takes_nothing(index):
    """A pinned event of the CPU has index 58: the guest's goes to ERROR and nothing tells the guest."""
    body = wrmsr(index, 4) + rdmsr(index) + "mov ebx, eax\n" + wrmsr(index, 4) + rdmsr(index) + "EXIT 0\n"
    machine, result = run(body, "emulated", **TAKER)
    assert (result["registers"]["rbx"], result["registers"]["rax"]) == (0, 0)
    assert (result["exits"]["MSR_READ"], result["exits"]["MSR_WRITE"]) == (2, 2)
    event = lbr_event(result)
    assert (event["state"], event["cause"], event["owner"]) == ("ERROR", "no free counter", "kvm")
    assert int(machine.S.vcpus[0].pmu.lbr_warnings) == 4  # every entry since
    assert result["kvm"]["created"] == 1  # and it is not tried again


def test_a_reserved_bit_is_a_warning_of_the_host_at_first_and_a_fault_later():
    """Intercepted, KVM writes it and the host's #GP is caught; passed through, it is the guest's own."""
    bad = wrmsr(SELECT, 1 << 20)
    assert run(FAULTS.format(body=bad), "emulated", **GIVEN)[1]["exit_code"] == 0
    assert run(FAULTS.format(body=bad * 2), "emulated", **GIVEN)[1]["exit_code"] == 13
    assert run(FAULTS.format(body=bad * 2), "emulated", **TAKER)[1]["exit_code"] == 0
    assert run(FAULTS.format(body=bad), "bare", cpu="icx")[1]["exit_code"] == 13


@pytest.mark.parametrize(("value", "kept", "without"), [
    (0, 0, 0), (1, 1, 0), (2, 0, 0), (3, 1, 0), (0x800, 0x800, None), (0x801, 0x801, None),
    (0x1000, None, None), (1 << 14, None, None), (4, None, None),
])  # fmt: skip
def test_what_debugctl_takes(value, kept, without):
    body = FAULTS.format(body=wrmsr(DEBUGCTL, value) + rdmsr(DEBUGCTL) + "mov ebx, eax\n")
    for options, wanted in ((GIVEN, kept), ({"cpu": "icx"}, without)):
        result = run(body, "emulated", **options)[1]
        assert result["exit_code"] == (13 if wanted is None else 0)
        if wanted is not None:
            assert result["registers"]["rbx"] == wanted


def sleeper(body):
    handler = "WRMSR32 0x80b, 0"
    arm = "WRMSR32 0x832, 0x40020\n"
    return PMI_GUEST.format(vector=0x20, lvtpc=1 << 16, handler=handler, body=arm + body)


@pytest.mark.parametrize("apicv", [True, False])
def test_records_survive_the_threads_sleep(apicv):
    """HLT takes the thread off the core: its event goes, the registers are saved and come back."""
    body = sleeper(START_LBR + BRANCHES + SLEEP + "jmp 5f\n5:\n" + STOP_LBR)
    machine, result = run(body, "emulated", apicv=apicv, **GIVEN)
    bare = records(run(body, "bare", cpu="icx")[0])[0]
    if apicv:
        assert records(machine)[0] == bare
    kept = {int(v) for v in machine.S.contexts[CTX_TASK].lbr_from} - {0}
    assert len(kept) == 5  # the branches of BRANCHES
    assert kept <= {a for a, _ in records(machine)[0]}
    assert lbr_event(result)["state"] == "ACTIVE"


def test_somebody_elses_records_do_not_reach_the_guest():
    """The thread leaves the core, another one uses the registers, the thread comes back."""
    body = START_LBR + BRANCHES + "here:\n" + STOP_LBR + "EXIT 0\n"
    machine = system(body, "emulated", **GIVEN)
    while int(machine.core.rip) != machine.program.symbols["here"]:
        machine.step()
    mine = records(machine)
    with np.errstate(over="ignore"):
        perf_event_task_sched(machine.S, machine.E, CTX_NONE)
        machine.core.lbr.source[:] = machine.core.lbr.target[:] = 0xBAD
        machine.core.lbr.tos = 9
        perf_event_task_sched(machine.S, machine.E, CTX_TASK + 1)  # one without branch records
        perf_event_task_sched(machine.S, machine.E, CTX_TASK)
    assert records(machine) == mine


def test_the_event_goes_when_a_slice_ends_without_recording():
    on = START_LBR + BRANCHES + SLEEP * 3
    assert run(sleeper(on), "emulated", **GIVEN)[1]["kvm"]["released"] == 0
    off = START_LBR + BRANCHES + STOP_LBR + SLEEP * 2 + rdmsr(FROM) + "mov ebx, eax\n"
    machine, result = run(sleeper(off), "emulated", **GIVEN)
    # released at the first entry after a sleep; the read makes another, which finds nothing
    assert (result["kvm"]["created"], result["kvm"]["released"]) == (2, 1)
    assert result["registers"]["rbx"] == 0
    assert int(machine.S.percpu[0].lbr_users) == 1


FREEZING = """
    RDMSR32 0x1d9
    mov [status], rax
    WRMSR32 0x38f, 0
    WRMSR32 0x390, 1
"""


@pytest.mark.parametrize(("asked", "left"), [(0x801, 0x800), (1, 1)])
def test_a_pmi_freezes_the_records_as_version_2_does(asked, left):
    body = wrmsr(DEBUGCTL, asked) + START.format(left=10, sti="sti") + "jmp 1f\n 1:" + "nop\n" * 30
    body += "WRMSR32 0x38f, 0\n"
    guest = PMI_GUEST.format(vector=0x20, lvtpc=0x20, handler=FREEZING, body=body)
    machine, result = run(guest, "emulated", **GIVEN)
    assert result["pmis"] == 1
    symbols = machine.program.symbols
    seen = int.from_bytes(machine.read(symbols["status"], 8), "little")
    assert seen == left
    in_handler = [pair for pair in records(machine)[0] if symbols["handler"] <= pair[0] < symbols["begin"]]
    assert bool(in_handler) == bool(left & 1)  # its IRET


def test_lbrs_are_offered_where_silicon_has_legacy_ones():
    for cpu, mode in (("spr", "emulated"), ("generic", "emulated"), ("icx", "passthrough")):
        for caps in (0x2005, 0x203F):
            with pytest.raises(ConfigError, match="not supported"):
                system("EXIT 0\n", mode, cpu=cpu, guest={"pmu.perf_caps": caps})
    for caps in (0x2004, 0x2001, 0x203F):
        with pytest.raises(ConfigError, match="0x2000 \\+ 0x5"):
            system("EXIT 0\n", "emulated", cpu="skx", guest={"pmu.perf_caps": caps})
