"""PEBS of a guest in `emulated`: hardware writes the records, perf and KVM set it up and pass PMIs on."""

from __future__ import annotations

import pytest

from tests.linux.guests import run, system
from tests.linux.kvm.test_divergences import FAULTS, rdmsr, wrmsr
from tests.linux.kvm.test_pmu_emulated import PMI_GUEST, reprograms
from vpmu_emu.errors import ConfigError
from vpmu_emu.linux.trace_kinds import TR_PMI_INJECT

pytestmark = [pytest.mark.uncompiled, pytest.mark.inner]

GIVEN = {"cpu": "icx", "guest": {"pmu.perf_caps": 0x24C0}}
DS, BUFFER = 0x180000, 0x181000
ENABLE, CFG, AREA, STATUS, RESET, CTRL = 0x3F1, 0x3F2, 0x600, 0x38E, 0x390, 0x38F
BRANCHES, TAKEN, INSTRUCTIONS, LOADS = 0xC4, 0x20C4, 0xC0, 0x81D0
COUNTING = 0x43 << 16
WIDTH = 1 << 48
OVF_BUFFER = 1 << 62
WORK = """
    mov esi, 20
1:  test sil, 1
    jz 2f
    nop
2:  mov rax, [0x90000]
    dec esi
    jnz 1b
"""


def store(records: int = 60, threshold: int = 60, again: int = -4) -> str:
    """The debug store's management area, written by the guest."""
    words = {0x20: BUFFER, 0x28: BUFFER, 0x30: BUFFER + 32 * records, 0x38: BUFFER + 32 * threshold}
    words |= {0x40 + 8 * i: again % (1 << 64) for i in range(12)}
    return "".join(f"mov rax, {value:#x}\n mov [{DS + at:#x}], rax\n" for at, value in words.items())


def counter(i: int, event: int, start: int = -4, extra: int = 0) -> str:
    text = wrmsr(0x186 + i, event | COUNTING | extra)
    return text + wrmsr(0x4C1 + i, start % WIDTH)


def guest(*counters: str, enable: int = 1, on: int | None = None, work: str = WORK, **options) -> str:
    text = wrmsr(CTRL, 0) + store(**options) + "".join(counters) + wrmsr(AREA, DS) + wrmsr(ENABLE, enable)
    return text + wrmsr(CTRL, enable if on is None else on) + work + wrmsr(CTRL, 0) + "EXIT 0\n"


def word(machine, at: int) -> int:
    return int.from_bytes(machine.read(at, 8), "little")


def records(machine) -> list[tuple[int, int, int]]:
    """(size and format, IP, counters) of each."""
    found, at = [], BUFFER
    while at < word(machine, DS + 0x28):
        found.append(tuple(word(machine, at + 8 * k) for k in range(3)))
        at += found[-1][0] >> 48
    return found


# --- where hardware's counter is the guest's own --------------------------------------------------------
@pytest.mark.parametrize("period", [2, 3, 4, 11])
@pytest.mark.parametrize("event", [BRANCHES, LOADS])
def test_records_are_those_of_silicon(event, period):
    body = guest(counter(0, event, -period), again=-period)
    bare, _ = run(body, "bare", cpu="icx")
    machine, result = run(body, "emulated", **GIVEN)
    assert records(machine) == records(bare)
    assert records(bare)
    assert {head for head, _, _ in records(machine)} == {32 << 48}
    # the counter was loaded from the guest's debug store, and the guest reads just that
    assert result["counters"]["pmc0"] == run(body, "bare", cpu="icx")[1]["counters"]["pmc0"]
    assert result["pmis"] == result["global_status"] == 0


def test_two_counters_in_their_own_places():
    body = guest(counter(0, BRANCHES, -3), counter(1, TAKEN, -5), enable=3, again=-6)
    bare, _ = run(body, "bare", cpu="icx")
    machine, _ = run(body, "emulated", **GIVEN)
    assert records(machine) == records(bare)
    assert {c for _, _, c in records(bare)} >= {1, 2}


def test_the_least_flexible_event_goes_first_and_both_are_cross_mapped():
    """Loads need one of counters 0 to 3: they get 0, the branches 1, and neither counts."""
    body = guest(counter(0, BRANCHES), counter(1, LOADS), enable=3)
    machine, result = run(body, "emulated", **GIVEN)
    assert records(machine) == []
    assert {e["pmc"]: e["hw_idx"] for e in result["perf"]["events"]} == {"pmc0": None, "pmc1": None}
    assert [int(e.idx) for e in machine.S.perf_events[:2]] == [1, 0]
    assert result["counters"]["pmc0"] == result["counters"]["pmc1"] == WIDTH - 4


def test_vm_entry_and_exit_switch_the_registers():
    machine, _ = run(guest(counter(0, BRANCHES)), "emulated", **GIVEN)
    assert (int(machine.core.pmu.pebs_enable), int(machine.core.pmu.ds_area)) == (0, 0)
    machine = system(guest(counter(0, BRANCHES), work="here: " + WORK), "emulated", **GIVEN)
    while int(machine.core.rip) != machine.program.symbols["here"]:
        machine.step()
    pmu = machine.core.pmu
    assert (int(pmu.pebs_enable), int(pmu.ds_area), int(pmu.global_ctrl) & 1) == (1, DS, 1)
    # the host's selector: no interrupt of its own, and ADAPTIVE, which with no groups means nothing
    assert int(pmu.eventsel[0]) == BRANCHES | COUNTING | 1 << 34
    assert int(pmu.pebs_data_cfg) == 0


def test_guests_without_it_switch_nothing_more():
    machine, result = run(guest(counter(0, BRANCHES)).replace(wrmsr(AREA, DS) + wrmsr(ENABLE, 1), ""),
                          "emulated", cpu="icx")  # fmt: skip
    lists = int(machine.S.vcpus[0].msr_lists)
    assert not machine.M[lists : lists + 4096].view("<u8")[1::2].any()
    assert result["counters"]["pmc0"]


PEBS_HANDLER = """
    RDMSR32 0x38e
    shl rdx, 32
    or rax, rdx
    mov [status], rax
    mov qword ptr [{ds} + 0x28], {buffer}
    mov ecx, 0x390
    xor eax, eax
    mov edx, 0x40000000
    wrmsr
    WRMSR32 0x834, 0x20
    WRMSR32 0x80b, 0
"""


@pytest.mark.parametrize("interrupt", [0, 1 << 20])
def test_a_full_store_is_one_pmi_with_bit_62(interrupt):
    """Hardware's PMI is the host's NMI; KVM sets the guest's bit, whatever EVTSEL.INT says."""
    handler = PEBS_HANDLER.format(ds=DS, buffer=BUFFER)
    text = wrmsr(CTRL, 0) + store(threshold=2) + counter(0, BRANCHES, extra=interrupt) + wrmsr(AREA, DS)
    text += wrmsr(ENABLE, 1) + "sti\n" + wrmsr(CTRL, 1) + WORK + wrmsr(CTRL, 0)
    body = PMI_GUEST.format(vector=0x20, lvtpc=0x20, handler=handler, body=text)
    machine, result = run(body, "emulated", trace=True, **GIVEN)
    handled = word(machine, machine.program.symbols["handled"])
    assert word(machine, machine.program.symbols["status"]) == OVF_BUFFER
    assert handled == result["pmis"] == result["pmis_hw"] == result["exits"]["EXCEPTION_NMI"] > 1
    assert [int(e["kind"]) for e in machine.events()].count(TR_PMI_INJECT) == handled
    # every one of them brings a reprogram of that counter: pause and resume, never another event
    assert result["kvm"]["created"] == 1
    assert reprograms(machine).count((0, "resume")) >= handled


def test_while_bit_62_is_set_there_is_no_second_pmi():
    text = wrmsr(CTRL, 0) + store(threshold=1) + counter(0, BRANCHES) + wrmsr(AREA, DS) + wrmsr(ENABLE, 1)
    text += "sti\n" + wrmsr(CTRL, 1) + WORK + wrmsr(CTRL, 0)
    body = PMI_GUEST.format(vector=0x20, lvtpc=0x20, handler="WRMSR32 0x834, 0x20", body=text)
    machine, result = run(body, "emulated", **GIVEN)
    assert len(records(machine)) > 2
    assert (result["pmis"], result["global_status"]) == (1, OVF_BUFFER)


# --- where it is not ------------------------------------------------------------------------------------
def test_instructions_are_on_the_fixed_counter_and_get_no_record():
    """perf prefers fixed counter 0 for them: cross-mapped, so the counter does not even count."""
    body = guest(counter(0, INSTRUCTIONS))
    machine, result = run(body, "emulated", **GIVEN)
    assert records(machine) == []
    assert int(machine.S.vcpus[0].pmu.host_cross_mapped_mask) == 0  # of the last entry, with all off
    kvm = [e for e in result["perf"]["events"] if e["owner"] == "kvm"]
    assert [(e["pmc"], e["samples"]) for e in kvm] == [("pmc0", 0)]
    # it stands still but for what KVM counts: the WRMSR that opened
    assert result["counters"]["pmc0"] == WIDTH - 4 + 1
    assert records(run(body, "bare", cpu="icx")[0])


def test_while_one_counter_has_pebs_others_behind_foreign_numbers_stand_still():
    """intel_pmu_cross_mapped_check() looks at all counters, and GLOBAL_CTRL loses them."""
    plain = counter(1, INSTRUCTIONS, 0)
    body = guest(counter(0, BRANCHES), plain, enable=1, on=3)
    machine, result = run(body, "emulated", **GIVEN)
    assert result["counters"]["pmc1"] == 1
    assert records(machine) == records(run(body, "bare", cpu="icx")[0])
    without = body.replace(wrmsr(ENABLE, 1), wrmsr(ENABLE, 0))
    assert run(without, "emulated", **GIVEN)[1]["counters"]["pmc1"] == (
        run(without, "bare", cpu="icx")[1]["counters"]["pmc1"]
    )


def test_a_neighbour_moves_a_guest_counter_to_another_number():
    """A pinned event of the host has counter 0: the guest's PMC0 is on 1 and gets no records."""
    body = guest(counter(0, BRANCHES))
    machine, result = run(body, "emulated", host_events=["branches:DH"], **GIVEN)
    kvm = [e for e in result["perf"]["events"] if e["owner"] == "kvm"]
    assert (kvm[0]["cause"], records(machine)) == ("", [])
    assert result["counters"]["pmc0"] == WIDTH - 4


@pytest.mark.parametrize(
    ("i", "event", "written"), [(0, BRANCHES, True), (0, INSTRUCTIONS, False), (1, BRANCHES, False)]
)
def test_spr_asks_for_the_most_precise_counter(i, event, written):
    """PDist: precise_ip 3 for PMC0, which keeps it on counter 0; instructions are on fixed counter 0."""
    work = "mov esi, 200\n1: dec esi\njnz 1b\n"
    body = guest(counter(i, event, -150), enable=1 << i, work=work, again=-150)
    machine, result = run(body, "emulated", cpu="spr", guest={"pmu.perf_caps": 0x24C0})
    assert bool(records(machine)) == written
    assert [int(e.precise_ip) for e in machine.S.perf_events[:1]] == [3 if i == 0 else 1]
    assert result["kvm"]["created"] == 1


@pytest.mark.parametrize(("period", "made"), [(127, 0), (128, 1)])
def test_pdist_takes_no_short_period(period, made):
    """glc_limit_period(): the event cannot be made, the counter is dead and nothing tells the guest."""
    machine, result = run(guest(counter(0, BRANCHES, -period)), "emulated", trace=True, cpu="spr",
                          guest={"pmu.perf_caps": 0x24C0})  # fmt: skip
    assert result["kvm"]["created"] == made
    assert ((0, "failed") in reprograms(machine)) == (made == 0)
    assert (result["counters"]["pmc0"] == WIDTH - period) == (made == 0)


# --- what KVM counts itself -----------------------------------------------------------------------------
def test_an_overflow_in_software_writes_no_record_and_raises_nothing():
    """The forced prefix makes KVM count a branch: past 2**48 the counter goes on from 0, unseen."""
    jump = ".byte 0x0f, 0x0b, 0x6b, 0x76, 0x6d\n jmp 5f\n 5:\n"
    body = guest(counter(0, BRANCHES, -1), work=jump + "mov ebx, eax\n" + rdmsr(0xC1) + "nop\n")
    machine, result = run(body, "emulated", **GIVEN)
    assert records(machine) == []
    assert (result["counters"]["pmc0"], result["global_status"], result["pmis"]) == (0, 0, 0)


def test_a_new_value_of_pebs_enable_reprograms_what_it_changes():
    work = wrmsr(ENABLE, 1) + WORK
    body = guest(counter(0, BRANCHES, 0), counter(1, LOADS, 0), enable=0, on=3, work=work)
    machine, result = run(body, "emulated", trace=True, **GIVEN)
    hows = [pair for pair in reprograms(machine) if pair[0] < 2]
    # a plain event cannot become one with precise_ip: it is made again
    assert hows[-4:] == [(1, "create"), (0, "create"), (0, "off"), (1, "off")]
    assert (result["kvm"]["created"], result["kvm"]["released"]) == (3, 1)
    again = body.replace(wrmsr(ENABLE, 1) + WORK, wrmsr(ENABLE, 0) + WORK)
    assert run(again, "emulated", **GIVEN)[1]["kvm"]["created"] == 2


def test_an_exit_between_an_overflow_and_its_record_costs_the_record():
    """Entry and exit switch IA32_PEBS_ENABLE; the counter goes on from 0 until it is programmed again."""
    jumps = "jmp 5f\n 5: jmp 6f\n 6:\n"
    body = guest(counter(0, BRANCHES, -2), work=jumps + "in al, 0x61\n" + jumps)
    assert len(records(run(body, "bare", cpu="icx")[0])) == 1
    machine, result = run(body, "emulated", **GIVEN)
    assert (records(machine), result["counters"]["pmc0"]) == ([], 2)


# --- registers ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("body", "code", "bare"), [
    (wrmsr(ENABLE, 0xFF) + rdmsr(ENABLE) + "mov ebx, eax\n", 0, 0),
    (wrmsr(ENABLE, 1 << 8), 13, 13),
    (wrmsr(ENABLE, 1 << 32), 13, 0),  # fixed counters need the baseline
    (wrmsr(AREA, 1 << 47), 13, 13),
    (wrmsr(AREA, 0xFFFF_8000_0000_00FF) + rdmsr(AREA) + "mov ebx, eax\n", 0, 0),
    (rdmsr(CFG), 13, 0),
    (wrmsr(0x186, 1 << 34), 13, 0),  # ADAPTIVE
    (wrmsr(RESET, OVF_BUFFER), 0, 0),
    (wrmsr(RESET, 1 << 61), 13, 0),
])  # fmt: skip
def test_what_is_there(body, code, bare):
    assert run(FAULTS.format(body=body), "emulated", **GIVEN)[1]["exit_code"] == code
    assert run(FAULTS.format(body=body), "bare", cpu="icx")[1]["exit_code"] == bare
    if "ebx" in body:
        assert run(FAULTS.format(body=body), "emulated", **GIVEN)[1]["registers"]["rbx"] == 0xFF


def test_cpuid_and_misc_enable_tell_of_it():
    body = "mov eax, 1\n cpuid\n mov esi, edx\n mov edi, ecx\n" + rdmsr(0x1A0) + "mov ebp, eax\n"
    body += rdmsr(0x345) + "mov ebx, eax\n EXIT 0\n"
    for options, has in ((GIVEN, 1), ({"cpu": "icx"}, 0)):
        registers = run(body, "emulated", **options)[1]["registers"]
        assert registers["rsi"] >> 21 & 1 == registers["rdi"] >> 2 & 1 == has
        assert registers["rbp"] >> 12 & 1 == 1 - has
        assert registers["rbx"] & 0xF00 == 0x400 * has


def test_what_a_vmm_may_ask_for():
    for caps in (0x24C0, 0x4C0, 0x24C5, 0x20C0, 0):  # TRAP and ARCH_REG alone are nobody's business
        system("EXIT 0\n", "emulated", cpu="icx", guest={"pmu.perf_caps": caps})
    for cpu, mode, caps in (
        ("icx", "emulated", 0x64C0),  # the baseline
        ("icx", "emulated", 0x2400),
        ("icx", "emulated", 0x23C0),
        ("icx", "passthrough", 0x24C0),
        ("skx", "emulated", 0x24C0),
    ):
        with pytest.raises(ConfigError, match="not supported"):
            system("EXIT 0\n", mode, cpu=cpu, guest={"pmu.perf_caps": caps})


@pytest.mark.parametrize("area", [0x7000_0000, 0x7FFF_FFFF_F000, 0xFFFF_8000_0000_0000, 0xFEE0_0000])
def test_a_debug_store_that_is_not_there_harms_nobody(area):
    body = guest(counter(0, BRANCHES)).replace(wrmsr(AREA, DS), wrmsr(AREA, area))
    machine, result = run(body, "emulated", **GIVEN)
    assert not int(machine.core.stats.exceptions.sum())
    assert result["pmis"] == result["global_status"] == 0
