"""The trace of a run in the kernel's words."""

from __future__ import annotations

import re

import pytest

from tests.linux.guests import run, window
from vpmu_emu.errors import ConfigError
from vpmu_emu.trace.files import write_trace
from vpmu_emu.trace.text import lines

pytestmark = [pytest.mark.uncompiled, pytest.mark.inner]


def words(mode, body, **options):
    machine, _ = run(body, mode, trace=True, **options)
    return [line.split(": ", 1)[1] for line in lines(machine.events(), 2_000_000)], machine


def test_passthrough():
    found, _ = words("passthrough", window("xor eax, eax\n cpuid"))
    at = next(k for k, line in enumerate(found) if line.startswith("kvm_exit: reason MSR_WRITE"))
    put = found[at + 1 : found.index("pmu_put: global_ctrl 0 global_status 0")]
    assert put[0] == "read_msr: 38e, value 0"
    assert put[1] == "rdpmc: 0, value 0"
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
    assert "guest_wrmsr: 38f = 0x1" in (tmp_path / "a.txt").read_text()
    with pytest.raises(ConfigError, match=r"\.txt"):
        write_trace(machine, tmp_path / "a.xyz")
