"""PERF_METRICS against fractions worked out from what a program is: exact, and 255 together."""

from __future__ import annotations

import pytest

from tests.machine.test_pmu import HEAD, LATENCY, TAIL, run, write
from tests.tools.whole import assert_same, machine, state
from vpmu_emu.asm import assemble
from vpmu_emu.tables.cpus import LATENCIES, cpu

pytestmark = pytest.mark.uncompiled

CTRL, FIXED_CTRL, FIXED3, METRICS, STATUS, RESET = 0x38F, 0x38D, 0x30C, 0x329, 0x38E, 0x390
SLOTS, ENABLE = 1 << 35, 1 << 48
SLOT = LATENCY["slot"]
READ = "mov ecx, 0x329\nrdmsr\nshl rdx, 32\nor rax, rdx\nmov r15, rax\n"
READ_SLOTS = "mov ecx, 0x30c\nrdmsr\nshl rdx, 32\nor rax, rdx\nmov r14, rax\n"
OPEN = write(CTRL, 0) + write(FIXED_CTRL, 0x3000) + write(FIXED3, 0) + write(METRICS, 0)
OPEN += write(CTRL, SLOTS | ENABLE)
CLOSE = write(CTRL, 0)


def fields(system) -> list[int]:
    return list(int(system.core.regs[15]).to_bytes(8, "little"))


def slots(system) -> int:
    return int(system.core.regs[14])


def measured(body: str, **options):
    """(the eight fractions, slots) of a window around `body` and the WRMSR that closes it."""
    system = run(OPEN + "first:\n" + body + CLOSE + "last:\n" + READ + READ_SLOTS, **options)
    return fields(system), slots(system), system


def near(found: int, slots_: float, of: int) -> bool:
    return abs(found - 255 * slots_ / of) < 1


def test_nops_retire_and_the_rest_is_the_closing_write():
    found, total, system = measured("nop\n" * 4000)
    inst = system.program.insns("first", "last")
    assert inst == 4004
    assert total == inst + (LATENCY["wrmsr"] - SLOT) // SLOT
    assert near(found[0], inst, total)
    assert near(found[3], total - inst, total)
    assert found[1] == found[2] == 0
    assert sum(found[:4]) == 255
    assert found[4:] == [0, 0, 0, 0]


def test_a_chain_of_products_is_bound_by_the_back_end():
    found, total, _ = measured("imul rax, rbx\n" * 3000)
    assert near(found[0], 3004, total)
    assert found[3] == 255 - found[0] > 200
    assert found[7] == 0  # not by memory


def test_mispredictions_are_bad_speculation():
    # A 2-bit counter that has learnt "taken" is wrong each time the branch goes straight on: every fourth.
    body = "mov r8d, 2000\n1: test r8d, 3\njnz 2f\nnop\n2: dec r8d\njnz 1b\n"
    found, total, system = measured(body)
    misses = sum(int(v) for v in system.core.total[:, 11])
    assert misses > 400
    lost = misses * LATENCY["mispredict"] // SLOT
    assert near(found[1], lost, total)
    assert found[5] in (found[1], found[1] - 1)
    assert sum(found[:4]) == 255


def test_misses_are_memory_bound():
    body = "mov r9d, 0x100000\nmov r8d, 200\n1: mov rax, [r9]\nadd r9, 64\ndec r8d\njnz 1b\n"
    found, total, _ = measured(body)
    # 200 lines of one stream: two misses train the prefetcher, the other lines are in L2 by then
    time = 2 * LATENCY["llc_miss"] + 198 * LATENCY["l2_hit"]
    assert near(found[7], time / SLOT, total)
    assert found[3] >= found[7] > 150


def test_read_while_it_counts_by_rdmsr_and_rdpmc():
    body = "nop\n" * 1000 + READ + "mov ecx, 0x20000000\nrdpmc\nshl rdx, 32\nor rax, rdx\nmov r13, rax\n"
    system = run(OPEN + body + READ_SLOTS + CLOSE)
    # four instructions of READ counted before RDMSR read; nothing has stalled yet
    assert fields(system)[:4] == [255, 0, 0, 0]
    assert near(int(system.core.regs[13]) & 0xFF, 1010, 1010 + LATENCY["msr"] / SLOT)


def test_two_windows_are_one():
    whole = measured("imul rax, rbx\n" * 500 + "nop\n" * 500)[0]
    both = run(OPEN + "imul rax, rbx\n" * 500 + CLOSE + "nop\n" * 400
               + write(CTRL, SLOTS | ENABLE) + "nop\n" * 500 + CLOSE + READ)  # fmt: skip
    assert abs(fields(both)[0] - whole[0]) <= 9  # the second closing write dilutes it


def test_without_its_enable_it_stands_still():
    text = OPEN.replace(write(CTRL, SLOTS | ENABLE), write(CTRL, SLOTS)) + "nop\n" * 50 + CLOSE
    system = run(text + READ + READ_SLOTS)
    assert slots(system) > 50
    assert fields(system) == [0] * 8


def test_rings_are_those_of_the_counter():
    user = OPEN.replace(write(FIXED_CTRL, 0x3000), write(FIXED_CTRL, 0x2000))
    system = run(user + "nop\n" * 50 + CLOSE + READ + READ_SLOTS)
    assert slots(system) == 0
    assert fields(system) == [0] * 8


WRITTEN = 0x10_20_30_40_19_0A_4B_91


def test_what_is_written_holds_for_the_slots_of_the_counter():
    """Context switch: FIXED_CTR3 first, PERF_METRICS last, and both read back."""
    text = write(CTRL, 0) + write(FIXED3, 123_456) + write(METRICS, WRITTEN) + READ + READ_SLOTS
    system = run(text)
    assert int(system.core.regs[15]) == WRITTEN
    assert slots(system) == 123_456
    # 4000 more slots that all retire: a weighted mean
    more = write(CTRL, 0) + write(FIXED_CTRL, 0x3000) + write(FIXED3, 4000)
    more += write(METRICS, 0x33_33_33_66) + write(CTRL, SLOTS | ENABLE) + "nop\n" * 3996 + READ
    found = fields(run(more))
    assert found[:4] == [(0x66 + 255) // 2, *found[1:4]]
    assert sum(found[:4]) == 255
    assert all(abs(f - 0x33 / 2) <= 1 for f in found[1:4])


def test_a_write_to_the_counter_clears_it():
    text = write(CTRL, 0) + write(FIXED3, 5) + write(METRICS, WRITTEN) + write(FIXED3, 7) + READ
    assert fields(run(text)) == [0] * 8


def test_overflow_of_the_counter_is_its_overflow_too():
    text = OPEN + write(FIXED3, -200 % (1 << 48)) + "nop\n" * 300 + CLOSE
    system = run(text + f"mov ecx, {STATUS:#x}\nrdmsr\nshl rdx, 32\nor rax, rdx\nmov r15, rax\n")
    assert int(system.core.regs[15]) == SLOTS | ENABLE
    system = run(text + write(RESET, ENABLE) + f"mov ecx, {STATUS:#x}\nrdmsr\nshl rdx, 32\nmov r15, rdx\n")
    assert int(system.core.regs[15]) == SLOTS


@pytest.mark.parametrize("name", ["spr", "icx", "skx", "generic"])
def test_which_silicon_has_it(name):
    text = HEAD + write(METRICS, 1 << 40) + READ + TAIL
    system = machine(assemble(text, "metrics"), "bare", cpu=name)
    stop = system.run()
    # four fractions on Ice Lake: the upper ones came with Sapphire Rapids
    assert stop.reason == ("debug-exit" if name in ("spr", "generic") else "triple-fault")
    text = HEAD + "mov ecx, 0x20000000\nrdpmc\n" + TAIL
    stop = machine(assemble(text, "metrics"), "bare", cpu=name).run()
    assert stop.reason == ("triple-fault" if name == "skx" else "debug-exit")


def test_level_2_is_absent_on_ice_lake():
    body = "mov r9d, 0x100000\nmov r8d, 50\n1: mov rax, [r9]\nadd r9, 64\ndec r8d\njnz 1b\n"
    found, _, _ = measured(body, cpu="icx")
    assert found[3] > 150
    assert found[4:] == [0, 0, 0, 0]
    assert cpu("icx").latency[LATENCIES.index("slot")] == SLOT


@pytest.mark.parametrize("policy", [{"horizon": 1}, {"horizon": 40, "horizon_seed": 7}, {"trace": True}])
def test_the_same_for_every_horizon(policy):
    body = OPEN + "mov r8d, 60\n1: imul rax, rbx\nmov [0x90000 + r8 * 8], rax\ndec r8d\njnz 1b\n"
    program = assemble(HEAD + body + READ + CLOSE + TAIL, "metrics")

    def finish(**options):
        system = machine(program, "bare", **options)
        system.run()
        return state(system)

    assert_same(finish(), finish(**policy), str(policy))
