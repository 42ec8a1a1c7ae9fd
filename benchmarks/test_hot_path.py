"""The hot paths, best of five each: `make bench`. Numbers of one machine compare only with themselves."""

from __future__ import annotations

import pytest

from vpmu_emu import bench
from vpmu_emu.asm import assemble
from vpmu_emu.system import run

ROUNDS = 100_000

LOOP = """
        .intel_syntax noprefix
_start: {setup}
        mov r8d, {rounds}
loop:   {body}
        dec r8d
        jnz loop
        xor eax, eax
        out 0xf4, al
"""
WRMSR = {"setup": "xor eax, eax; xor edx, edx", "body": "mov ecx, {msr}; wrmsr"}
RDPMC = {"setup": "xor ecx, ecx", "body": "rdpmc"}


def loop(parts, rounds=ROUNDS, **names):
    body = parts["body"].format(**names)
    return assemble(LOOP.format(setup=parts["setup"], body=body, rounds=rounds), "loop.s")


def measure(benchmark, program, per=None, **options):
    """Run `program` five times; `per` operations get their own time in the report."""
    results = []

    def once():
        result = run(program, **options).to_json()
        assert result["exit_code"] == 0
        results.append(result)

    benchmark.pedantic(once, rounds=5, warmup_rounds=1)
    best = min(result["wall_s"] for result in results)
    benchmark.extra_info["mips"] = round(results[0]["instructions"] / best / 1e6, 1)
    if per:
        benchmark.extra_info["ns_each"] = round(best / per * 1e9, 1)


@pytest.mark.parametrize("counters", [0, 1], ids=["no counter", "all counters"])
@pytest.mark.parametrize("workload", bench.WORKLOADS)
def test_interpreter(benchmark, workload, counters):
    benchmark.group = workload
    program = bench.program(workload, **bench.WORKLOADS[workload], COUNTERS=counters)
    measure(benchmark, program, vpmu="bare")


@pytest.mark.parametrize("workload", bench.WORKLOADS)
def test_unicorn(benchmark, workload):
    pytest.importorskip("unicorn")
    benchmark.group = workload
    program = bench.program(workload, **bench.WORKLOADS[workload], COUNTERS=0)
    benchmark.pedantic(lambda: bench._unicorn(program), rounds=5)


@pytest.mark.parametrize("msr", ["0x186", "0xc1"], ids=["selector", "counter"])
@pytest.mark.parametrize("mode", ["bare", "emulated", "passthrough"])
def test_wrmsr(benchmark, mode, msr):
    benchmark.group = f"WRMSR {msr}, {ROUNDS} of them"
    measure(benchmark, loop(WRMSR, msr=msr), ROUNDS, vpmu=mode)


@pytest.mark.parametrize("mode", ["bare", "emulated", "passthrough"])
def test_rdpmc(benchmark, mode):
    benchmark.group = f"RDPMC, {ROUNDS} of them"
    measure(benchmark, loop(RDPMC), ROUNDS, vpmu=mode)


BESIDE_CODE = """
_start: mov r15d, {rounds}
again:  inc dword ptr [rip + count]
        .rept 1000
        add rax, 5
        .endr
        dec r15d
        jnz again
        mov al, 0
        out 0xf4, al
        .balign {align}
count:  .long 0
"""


@pytest.mark.parametrize("align", [1, 4096], ids=["beside code", "in a page of its own"])
def test_store(benchmark, align):
    benchmark.group = "a store in 1000 instructions"
    measure(benchmark, assemble(BESIDE_CODE.format(rounds=20_000, align=align), "beside.s"), vpmu="bare")


@pytest.mark.parametrize("mode", ["none", "emulated", "passthrough"])
def test_exit_to_the_vmm(benchmark, mode):
    benchmark.group = "OUT to the VMM, 5 000 of them"
    port = {"setup": "mov dx, 0x3ff", "body": "out dx, al"}
    measure(benchmark, loop(port, 5_000), 5_000, vpmu=mode)


@pytest.mark.parametrize("distinct", [True, False], ids=["distinct lines", "repeated lines"])
def test_assembler(benchmark, distinct):
    benchmark.group = "assembling 10 000 lines"
    lines = (f" mov rax, [rbx + {8 * i if distinct else 64}]; add rcx, {i if distinct else 1}"
             for i in range(5_000))  # fmt: skip
    text = "_start:\n" + "\n".join(lines) + "\n hlt\n"
    benchmark.pedantic(lambda: assemble(text, "lines.s"), rounds=3)
