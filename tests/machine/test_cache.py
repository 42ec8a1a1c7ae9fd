"""Caches and prefetcher: what accesses cost and what LLC events count, by patterns with known answers."""

from __future__ import annotations

import pytest

from tests.machine.test_pmu import CYCLES, HEAD, TAIL, counting
from tests.tools.whole import machine
from vpmu_emu.asm import assemble
from vpmu_emu.machine.state import CLASS
from vpmu_emu.tables.cpus import cpu

pytestmark = pytest.mark.uncompiled

LLC_REFERENCE, LLC_MISS = 0x4F2E, 0x412E
REF = 0x013C
BASE = 0x200000
MODELS = ("spr", "icx", "skx", "emr")
models = pytest.mark.parametrize("name", MODELS)


def walk(n: int, stride: int, *, name: str = "spr", passes: int = 1, first: int = BASE, warm: str = ""):
    """(core cycles, LLC references, LLC misses) of `n` loads, `stride` bytes apart, `passes` times."""
    body = f"{warm}mov r10d, {passes}\n2: mov r9d, {first}\nmov r8d, {n}\n"
    body += f"1: mov rax, [r9]\nadd r9, {stride}\ndec r8d\njnz 1b\ndec r10d\njnz 2b\n"
    return counting(body, CYCLES, LLC_REFERENCE, LLC_MISS, ram=16, cpu=name, max_insns=100_000)["pmc"][:3]


@models
def test_a_stream_costs_what_silicon_pays(name):
    """kvm-unit-tests' loop at one line a round: at most 50 core and 30 reference cycles, a miss at most."""
    n, model = 1500, cpu(name)
    body = f"mov r9d, {BASE}\nmov ecx, {n}\n1: mov rax, [r9]\nadd r9, 64\n" + "nop\n" * 7 + "loop 1b\n"
    pmu = counting(body, CYCLES, LLC_REFERENCE, LLC_MISS, fixed=0x333, ram=16, cpu=name, max_insns=100_000)
    cycles, references, misses = pmu["pmc"][:3]
    reference_cycles = pmu["fixed"][2]
    assert n < cycles <= 30 * n  # fixed counter 1 has the narrower range
    assert n < reference_cycles <= 30 * n
    assert 1 <= misses <= n
    assert n <= references <= 2.5 * n
    assert cycles / n == pytest.approx(model.latency_of("l2_hit") / 16 + 3.2, abs=2)


@models
@pytest.mark.parametrize("stride", [64, 128, 256, -64, -192])
def test_streams_of_either_direction_are_followed_over_pages(name, stride):
    n = 500
    first = BASE + (1 << 20) + (4032 if stride < 0 else 0)
    cycles, references, misses = walk(n, stride, name=name, first=first)
    assert misses == 2  # those that made the stream
    assert n <= references <= n + 2 + cpu(name).prefetch_l2
    assert cycles < n * 30


def test_two_streams_at_once():
    n = 400
    body = f"mov r9d, {BASE}\nmov r10d, {BASE + (1 << 20)}\nmov ecx, {n}\n"
    body += "1: mov rax, [r9]\nmov [r10], rax\nadd r9, 64\nadd r10, 64\nloop 1b\n"
    _, references, misses = counting(body, CYCLES, LLC_REFERENCE, LLC_MISS, ram=16)["pmc"][:3]
    assert 4 <= misses <= 8  # lines of the two that meet in a cache of one way
    assert 2 * n <= references <= 2 * n + 12


@models
def test_no_stream_in_far_strides(name):
    n = 300
    cycles, references, misses = walk(n, 4096 + 64 * 5, name=name)
    assert references == misses == n
    assert cycles > n * cpu(name).latency_of("llc_miss") / 16


@models
def test_what_fits_a_level_costs_that_level(name):
    """Second passes over working sets of three sizes, in steps that the prefetcher does not follow."""
    model = cpu(name)

    def second(lines, stride):
        once, again = (walk(lines, stride, name=name, passes=k)[0] for k in (1, 2))
        return (again - once) / lines

    page = 64 * 16 * 5  # walks are the TLB's: 256 pages are in it
    l1 = second(100, 64 * 5)
    l2 = second(150, page)
    assert l1 < 4
    # 150 lines of 80 apart fall on 512 / 16 = 32 slots of L1 and on 2048 / 16 or more of L2
    assert model.latency_of("l2_hit") / 16 * 0.7 < l2 - l1 < model.latency_of("llc_ref") / 16 + 1


def test_a_line_that_hits_l1_changes_nothing():
    body = f"mov r9d, {BASE}\nmov rax, [r9]\n" + "mov rax, [r9]\n" * 50
    program = assemble(HEAD + body + "mark: nop\n" + TAIL, "hits")
    few = assemble(HEAD + f"mov r9d, {BASE}\nmov rax, [r9]\nmark: nop\n" + TAIL, "hit")
    found = []
    for one in (program, few):
        system = machine(one, "bare", ram=16)
        system.run()
        core = system.core
        names = ("l1", "l2", "llc", "stream_line", "stream_step", "stream_near", "stream_far")
        found.append([core[name].tobytes() for name in names])
        assert [int(core.total[0, CLASS[k]]) for k in ("llcref", "llcmiss", "fetched")] == [1, 1, 1]
    assert found[0] == found[1]


def test_clflush_takes_a_line_out_of_every_level():
    body = f"mov r9d, {BASE}\nmov rax, [r9]\n" + "clflush [r9]\nmov rax, [r9]\n" * 5
    assert counting(body, CYCLES, LLC_REFERENCE, LLC_MISS, ram=16)["pmc"][1:3] == [6, 6]


def test_memory_reads_are_all_lines_that_come_from_memory():
    n = 300
    body = f"mov r9d, {BASE}\nmov r8d, {n}\n1: mov rax, [r9]\nadd r9, 64\ndec r8d\njnz 1b\n"
    system = machine(assemble(HEAD + body + TAIL, "stream"), "bare", ram=16, max_insns=5000)
    system.run()
    fetched = sum(int(system.core.total[r, CLASS["fetched"]]) for r in (0, 1))
    assert n <= fetched <= n + 2 + cpu("spr").prefetch_llc


def test_generic_has_no_prefetcher():
    n = 200
    _, references, misses = walk(n, 64, name="generic")
    assert references == misses == n
