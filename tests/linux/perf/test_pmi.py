"""Whose PMI it is: what each vector and each skid make of an overflow that comes right before an exit."""

from __future__ import annotations

import importlib.util
import random

import pytest

from tests.conftest import ROOT
from tests.linux.guests import run
from tests.tools.profiles import cases
from tests.tools.whole import assert_same, machine, state
from vpmu_emu._jit import COMPILES
from vpmu_emu.asm import assemble, assemble_file
from vpmu_emu.machine.state import RUN_SLICE
from vpmu_emu.report import plain, run_tables
from vpmu_emu.tables.modes import SWITCH_POLICIES

pytestmark = pytest.mark.uncompiled

# The counter wraps with the last NOP before CPUID, which exits; then the guest is entered again and again.
GUEST = """
    WRMSR32 0x1b, 0xfee00d00
    WRMSR32 0x80f, 0x1ff
    WRMSR32 0x834, 0x20
    WRMSR32 0x38f, 0
    mov ecx, 0x4c1
    mov eax, -40
    mov edx, 0xffff
    wrmsr
    WRMSR32 0x186, 0x5300c0
    WRMSR32 0x38f, 1
    .rept {nops}
    nop
    .endr
    xor eax, eax
    cpuid
    xor eax, eax
    cpuid
    xor eax, eax
    cpuid
    EXIT 0
"""
CLEAN = {"misattributed": 0, "unclaimed": 0, "lost": 0, "pmis": 1}
GONE = {"misattributed": 1, "unclaimed": 1, "lost": 1, "pmis": 0}
UNKNOWN = "Uhhuh. NMI received for unknown reason 00 on CPU 0."


def one_overflow(mode: str, vector: str, skid: str, nops: int = 40, **options) -> dict[str, int]:
    asked = {"pmi_skid": skid, **({"pmi_vector": vector} if mode != "emulated" else {}), **options}
    result = run(GUEST.format(nops=nops), mode, **asked)[1]
    perf = result["perf"]
    assert [line["text"] for line in result["log"]] == [UNKNOWN] * perf["nmis_unclaimed"]
    return {
        "misattributed": perf["pmis_misattributed"], "unclaimed": perf["nmis_unclaimed"],
        "lost": perf["pmis_lost"], "pmis": result["pmis"],
    }  # fmt: skip


OWNED = ("passthrough", "mediated")
owned = pytest.mark.parametrize("mode", OWNED)
vectors = pytest.mark.parametrize("vector", ["dedicated", "nmi"])


@pytest.mark.parametrize("skid", ["0:0", "5:0", "0:5", "10:10"])
@vectors
@owned
def test_in_the_guest_both_know(mode, vector, skid):
    assert one_overflow(mode, vector, skid, nops=100) == CLEAN
    assert one_overflow(mode, vector, "0:0") == CLEAN


@pytest.mark.parametrize("skid", [1000, 1500])
@owned
def test_a_vector_fixed_at_the_message_is_the_guests_even_behind_the_put(mode, skid):
    assert one_overflow(mode, "dedicated", f"0:{skid}") == CLEAN


@pytest.mark.parametrize("skid", [1000, 1500])
@owned
def test_an_nmi_behind_the_put_is_taken_for_the_hosts(mode, skid):
    """GLOBAL_STATUS is the host's again and says nothing: nobody claims it, and the guest never hears."""
    assert one_overflow(mode, "nmi", f"0:{skid}") == GONE


@vectors
@owned
def test_a_message_behind_the_put_is_an_nmi_with_either(mode, vector):
    assert one_overflow(mode, vector, "1700:0") == GONE


def test_perf_owns_all_of_it():
    """The NMI finds the status bit wherever it comes, unless KVM has stopped its event before."""
    assert one_overflow("emulated", "", "0:0", nops=100) == CLEAN
    assert one_overflow("emulated", "", "300:300") == CLEAN
    assert one_overflow("emulated", "", "0:14000") == {**CLEAN, "lost": 1, "pmis": 0}


# --- of the host's events ---------------------------------------------------------------------------------

CPUIDS = "mov ebp, 12\n1: xor eax, eax\ncpuid\ndec ebp\njnz 1b\nEXIT 0\n"


def sampled(mode: str, **options):
    result = run(CPUIDS, mode, host_events=["cycles/period=2621/:H"], **options)[1]
    return result["perf"], result["perf"]["events"][0]["samples"]


@vectors
@owned
def test_the_hosts_pmi_that_comes_to_a_guest(mode, vector):
    """By NMI, so the message has left LVTPC in time: only one who looks at NMIs can mistake it."""
    perf, samples = sampled(mode, pmi_vector=vector, pmi_skid="0:900")
    assert perf["pmis_lost"] == perf["nmis"] - samples > 0
    assert perf["nmis_unclaimed"] == perf["pmis_lost"]  # no overflow of the guest that could claim it
    assert perf["pmis_misattributed"] == 0
    # A message that comes late finds LVTPC as the guest has it.
    perf, samples = sampled(mode, pmi_vector=vector, pmi_skid="900:0")
    assert perf["pmis_lost"] > 0


@pytest.mark.parametrize("vector", ["dedicated", "nmi"])
@pytest.mark.parametrize("mode", OWNED)
def test_without_a_skid_nobody_is_mistaken(mode, vector):
    for period in (733, 1621, 2460):
        result = run(CPUIDS, mode, pmi_vector=vector, host_events=[f"cycles/period={period}/:H"])[1]
        perf = result["perf"]
        assert perf["nmis"] == perf["events"][0]["samples"] > 0
        assert (perf["pmis_misattributed"], perf["pmis_lost"], perf["nmis_unclaimed"]) == (0, 0, 0)


@pytest.mark.skipif(not COMPILES, reason="a million instructions each")
def test_without_a_skid_nobody_is_mistaken_whoever_counts_what():
    """Random periods of guest and host, whose events count in its kernel too, exits at random times."""
    chance = random.Random(11)
    source = (ROOT / "guests/workloads/pmi_skid.s").read_text(encoding="utf-8")
    for _ in range(cases(day=6, laws=120, night=3000)):
        mode = chance.choice(("emulated", *OWNED))
        period = chance.randint(900, 9000)
        text = source.replace(".equ ROUNDS, 1000", ".equ ROUNDS, 200")
        text = text.replace(".equ PERIOD, 5003", f".equ PERIOD, {period}")
        text = text.replace("add ecx, 600", f"add ecx, {chance.randint(1, 900)}")
        events = [f"{name}/period={chance.randint(600, 9000)}/:H" for name in ("cycles", "instructions")]
        options = {"host_events": events[: chance.randint(1, 2)]}
        if mode != "emulated":
            options["pmi_vector"] = chance.choice(("dedicated", "nmi"))
            options["switch"] = chance.choice(SWITCH_POLICIES)
        guest = assemble(text, str(ROOT / "guests/workloads/pmi_skid.s"))
        system = machine(guest, mode, max_insns=None, **options)
        result = system.result(system.run()).to_json()
        perf, where = result["perf"], f"{mode} {period} {options}"
        assert result["exit_code"] == 0, where
        found = (perf["pmis_misattributed"], perf["pmis_lost"], perf["nmis_unclaimed"], result["log"])
        assert found == (0, 0, 0, []), where
        assert result["registers"]["r14"] == 0, where
        assert result["registers"]["r15"] == result["pmis"], where


# --- NMIs with several causes -----------------------------------------------------------------------------


SPIN = """
    cli
    mov ecx, 0xc0000100
    xor eax, eax
    xor edx, edx
    mov ebx, 2900
1:  wrmsr
    dec ebx
    jnz 1b
    EXIT 0
"""


@pytest.mark.parametrize(("skid", "unclaimed"), [("0:0", 0), ("40000:0", 1)])
def test_what_another_nmi_has_served_already_is_unknown_when_it_comes(skid, unclaimed):
    """The HPET's NMI finds the overflow, whose own message is still on its way: nothing is lost by that."""
    options = {"watchdog": "hpet", "watchdog_thresh": 0.0001, "host_events": ["cycles/period=255000/"]}
    perf = run(SPIN, "none", pmi_skid=skid, **options)[1]["perf"]
    assert perf["events"][0]["samples"] == 1
    assert (perf["nmis_unclaimed"], perf["pmis_lost"], perf["pmis_misattributed"]) == (unclaimed, 0, 0)


def test_the_report_tells_of_it_and_only_then():
    body = GUEST.format(nops=40)
    for skid, told in (("0:0", False), ("1700:0", True)):
        result = run(body, "passthrough", pmi_skid=skid)[1]
        words = " ".join("".join(plain(table) for table in run_tables(result)).split())
        for line in ("PMIs taken for somebody else's", "PMIs of which their owner never heard"):
            assert (f"{line} 1" in words) == told
        assert ("NMIs without a cause 1" in words) == told


# --- an edge in time like any other -----------------------------------------------------------------------


@pytest.mark.parametrize("skid", ["700:0", "130:1400"])
@pytest.mark.parametrize(("mode", "vector"), [
    ("emulated", "dedicated"), ("passthrough", "dedicated"), ("passthrough", "nmi"), ("mediated", "nmi"),
])  # fmt: skip
def test_no_horizon_and_no_slice_moves_it(mode, vector, skid):
    options = {"pmi_skid": skid, "host_events": ["cycles/period=3001/:H"]}
    if mode != "emulated":
        options["pmi_vector"] = vector
    options["max_insns"] = 60_000 if COMPILES else 12_000
    guest = assemble_file(ROOT / "guests/workloads/pmi_skid.s")
    plain = machine(guest, mode, **options)
    plain.run()
    assert plain.result(plain.stop(0, "max-insns")).to_json()["pmis_hw"] > 0
    policies = [{"horizon": 1}, {"horizon": 40, "horizon_seed": 7}, {"trace": True}]
    for policy in policies if COMPILES else policies[1:2]:
        other = machine(guest, mode, **options, **policy)
        other.run()
        assert_same(state(plain), state(other), f"{mode} {vector} {skid} {policy}")
    sliced = machine(guest, mode, **options)
    while sliced._turn(50_001) == RUN_SLICE:
        pass
    assert_same(state(plain), state(sliced), f"{mode} {vector} {skid} in slices")


# --- the table --------------------------------------------------------------------------------------------


def pmi_skid():
    """The module that writes docs/pmi_skid.md."""
    spec = importlib.util.spec_from_file_location("pmi_skid", ROOT / "benchmarks/pmi_skid.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.laws
@pytest.mark.skipif(not COMPILES, reason="billions of instructions")
def test_what_the_page_says():
    page = pmi_skid()
    grids = page.measured()
    for (title, mode, vector), found in grids.items():
        late = [found[0, cycles] for cycles in page.CYCLES]  # from message to recognition
        moved = [found[cycles, 0] for cycles in page.CYCLES]  # from overflow to message
        where = f"{title} {mode} {vector}"
        assert str(found[0, 0]) == "-", where
        if mode == "emulated":
            assert not any(one.misattributed or one.unclaimed for one in found.values()), where
            assert found[2000, 2000].lost > 0, where
            continue
        assert any(one.misattributed for one in late) == (vector == "nmi"), where
        assert any(one.unclaimed for one in moved), where
    assert page.PAGE.read_text(encoding="utf-8") == page.text(grids), "run `python benchmarks/pmi_skid.py`"
