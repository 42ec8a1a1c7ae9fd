"""What is timed side by side is the same work."""

from __future__ import annotations

import platform

import pytest

from vpmu_emu import bench
from vpmu_emu.errors import VpmuError
from vpmu_emu.system import run

SMALL = {"mixed": {"ROUNDS": 64}, "kut_loop": {"ROUNDS": 50, "PASSES": 3}}


@pytest.mark.uncompiled
@pytest.mark.parametrize("workload", bench.WORKLOADS)
def test_unicorn_runs_the_same_instructions(workload, require_oracle):
    require_oracle("import:unicorn")
    program = bench.program(workload, **SMALL[workload], COUNTERS=0)
    ours, _ = bench._ours(program)
    theirs, _ = bench._unicorn(program, hook=True)
    around = program.insns("_start", "work_end") - program.insns("work", "work_end")
    # Before `work` only _start runs (the helper of `mixed` stands there too); behind it the exit.
    before = {"mixed": 1, "kut_loop": 0}[workload]
    assert before <= around
    after = sum(line.kind == "insn" and line.addr >= program.symbols["work_end"] for line in program.lines)
    assert ours == theirs + before + after


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="needs an x86 processor")
@pytest.mark.parametrize("workload", bench.WORKLOADS)
def test_the_processor_runs_it_and_comes_back(workload):
    program = bench.program(workload, **SMALL[workload], COUNTERS=0)
    assert bench._native(program)[1] > 0


@pytest.mark.uncompiled
@pytest.mark.parametrize("workload", bench.WORKLOADS)
def test_counters_do_not_change_the_work(workload):
    results = [
        run(bench.program(workload, **SMALL[workload], COUNTERS=counters)).to_json()
        for counters in (0, 1)
    ]
    kept = ("rbx", "rsi", "rbp", "r8", "r9", "r11", "r12", "r14")
    assert len({tuple(r["registers"][name] for name in kept) for r in results}) == 1
    assert results[0]["counters"]["pmc0"] == 0
    assert results[1]["counters"]["pmc0"] > 0


@pytest.mark.uncompiled
def test_a_size_that_is_not_there_is_named():
    with pytest.raises(VpmuError, match="ROWNDS"):
        bench.program("mixed", ROWNDS=1)


@pytest.mark.slow
def test_compare_names_every_runner(require_oracle):
    require_oracle("import:unicorn")
    timings = bench.compare("mixed", {"ROUNDS": 2000}, times=1)
    runners = [t.runner for t in timings]
    assert runners[:5] == [
        "vpmu, all counters", "vpmu, all counters, page tables", "vpmu, no counter", "unicorn",
        "unicorn, Python hook",
    ]  # fmt: skip
    assert all(t.mips > 0 for t in timings)
