"""The PMU goes to a guest and comes back: what overflows on the way belongs to who counted."""

from __future__ import annotations

import pytest

from tests.linux.guests import run

CPUIDS = """
    mov ebp, 12
1:  xor eax, eax
    cpuid
    dec ebp
    jnz 1b
    EXIT 0
"""


@pytest.mark.uncompiled
@pytest.mark.parametrize("period", [2460, 2552, 2621, 2966, 3150])
@pytest.mark.parametrize("mode", ["passthrough", "mediated"])
def test_an_overflow_while_the_host_stops_its_counters_is_the_hosts(mode, period):
    """Also in the very WRMSR that turns them off: each NMI is a sample, and none is unknown."""
    result = run(CPUIDS, mode, host_events=[f"cycles/period={period}/:H"])[1]
    (event,) = result["perf"]["events"]
    assert result["perf"]["nmis"] == event["samples"] > 0
    assert result["log"] == []
