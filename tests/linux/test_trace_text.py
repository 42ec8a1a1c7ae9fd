"""The trace of a run in the kernel's words."""

from __future__ import annotations

import re

import pytest

from tests.linux.guests import run, system, window
from vpmu_emu.asm import assemble
from vpmu_emu.errors import ConfigError
from vpmu_emu.linux.kvm.eventfilter import make_filter
from vpmu_emu.setup.msrfilter import parse_msr_filter
from vpmu_emu.system import System
from vpmu_emu.traces.files import write_trace
from vpmu_emu.traces.text import lines

pytestmark = [pytest.mark.uncompiled, pytest.mark.inner]


RDPMC_9 = "mov ecx, 9\n rdpmc"


def words(mode, body, **options):
    machine, _ = run(body, mode, trace=True, **options)
    return [line.split(": ", 1)[1] for line in lines(machine.events(), 2_000_000)], machine


def test_passthrough():
    found, _ = words("passthrough", window("xor eax, eax\n cpuid"))
    at = next(k for k, line in enumerate(found) if line.startswith("kvm_exit: reason MSR_WRITE"))
    put = found[at + 1 : found.index("pmu_put: global_ctrl 0 global_status 0")]
    assert put[:3] == ["vmcs_global_ctrl: vmread 0", "read_msr: 38e, value 0", "rdpmc: 0, value 0"]
    assert put[-1] == "write_msr: 834, value 400"
    assert "guest_wrmsr: 38f = 0x1 (IA32_PERF_GLOBAL_CTRL pmc0)" in found
    assert "kvm_msr: msr_write 186 = 0x4300c0 (IA32_PERFEVTSEL0 INST_RETIRED.ANY_P usr os en)" in found


def test_emulated():
    found, _ = words("emulated", window("nop"), host_events=["instructions:D*12"])
    assert "kvm_msr: msr_write 38f = 0x1 (IA32_PERF_GLOBAL_CTRL pmc0)" in found
    assert "kvm_make_request: KVM_REQ_PMU" in found
    assert "reprogram_counter: pmc0 config 4300c0 create" in found
    assert "perf_event_state: event 12 INACTIVE -> ERROR" in found
    assert not any(line.startswith("guest_") for line in found)


def test_what_decides_is_said():
    """Bitmap bit, whose register, filter entry, what the hardware gets, why a counter stays off."""
    denied = {"filter": make_filter(1, [0x00C0])}
    found, _ = words("passthrough", window("nop"), **denied)
    assert "intercept: wrmsr 38f passes, byte 0x871 bit 7" in found
    assert "intercept: wrmsr 186 exits, byte 0x830 bit 6" in found
    assert "kvm_msr_handler: write 186 pmu" in found
    assert "check_pmu_event_filter: pmc0 denied by entry 0" in found
    assert "eventsel_hw: pmc0 hardware 0 guest 4300c0" in found
    found, _ = words("emulated", window("WRMSR32 0x6e0, 1\n mov ecx, 0\n rdpmc"), **denied)
    assert "reprogram_counter: pmc0 config 0 off by GLOBAL_CTRL" in found
    assert "reprogram_counter: pmc0 config 0 off by the event filter" in found
    assert "vmx_exit_handlers_fastpath: MSR_WRITE REENTER_GUEST" in found
    assert "intercept: rdpmc 0 exits, RDPMC exiting" in found
    found, _ = words("none", "WRMSR32 0xc1, 1\n EXIT 0\n")
    assert "msr_dropped: write c1 = 0x1" in found


@pytest.mark.parametrize(
    ("mode", "body", "line"),
    [
        ("bare", "WRMSR32 0x38e, 1", "guest_wrmsr: 38e = 0x1 (#GP: is read-only)"),
        ("emulated", "WRMSR32 0x38e, 1", "kvm_msr: msr_write 38e = 0x1 (#GP: is read-only)"),
        ("emulated", "RDMSR32 0x391", "kvm_msr: msr_read 391 = 0x0 (#GP: does not exist)"),
        ("bare", RDPMC_9, "rdpmc_fault: 9 of 8 general-purpose and 4 fixed counters (#GP)"),
        ("emulated", RDPMC_9, "rdpmc_fault: 9 of 8 general-purpose and 3 fixed counters (#GP)"),
    ],
)
def test_why_it_is_refused(mode, body, line):
    machine = system(body, mode, trace=True)
    assert machine.run().reason == "triple-fault"  # there is no IDT
    assert line in [words.split(": ", 1)[1] for words in lines(machine.events())]


@pytest.mark.parametrize(
    ("user_space", "found"),
    [
        ("[]", ["kvm_msr: msr_write 186 = 0x1 (#GP: denied by the MSR filter)"]),
        ('["filter"]', ["kvm_msr_user_space: write 186 FILTER",
                        "kvm_msr: msr_write 186 = 0x1 (#GP: refused by the VMM)"]),
    ],
)  # fmt: skip
def test_what_an_msr_filter_denies(user_space, found):
    ranges = 'ranges = [{ first = 0x186, access = ["write"] }]'
    denied = parse_msr_filter(f"user_space = {user_space}\n{ranges}")
    program = assemble(".intel_syntax noprefix\n_start: mov ecx, 0x186; mov eax, 1; xor edx, edx; wrmsr")
    machine = System(program, ram=2, vpmu="emulated", msr_filter=denied, trace=True)
    assert machine.run().reason == "triple-fault"
    told = [words.split(": ", 1)[1] for words in lines(machine.events())]
    assert [words for words in told if words.startswith("kvm_msr")] == found


def test_times_are_monotonic_and_every_line_is_named():
    machine, _ = run(window("xor eax, eax\n cpuid"), "emulated", trace=True)
    text = list(lines(machine.events(), 2_000_000))
    times = [float(line.split(":")[0]) for line in text]
    assert times == sorted(times)
    assert all(re.match(r"\d+\.\d{9}: [a-z_]+: ?", line) for line in text)
    assert not any(re.search(r": event_\d", line) for line in text)


def test_files(tmp_path):
    machine, _ = run(window("nop"), "bare", trace=True)
    write_trace(machine, tmp_path / "a.txt")
    assert re.search(r"guest_wrmsr: +38f = 0x1 ", (tmp_path / "a.txt").read_text())
    with pytest.raises(ConfigError, match=r"\.txt"):
        write_trace(machine, tmp_path / "a.xyz")
