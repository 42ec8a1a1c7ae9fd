"""PEBS records against a walk in single steps that counts events itself and knows when one must be written.

The walk decides from the bytes at rip whether an instruction is an event of a counter, counts it while
GLOBAL_CTRL is on, arms at 2**48, records at the next event and starts again from the reset value.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.machine.test_lbr import branch_at
from tests.machine.test_lbr import records as lbr_records
from tests.machine.test_pmu import HEAD, RING3, RING_TAIL, RINGS, TAIL, write
from tests.reference import generator
from tests.tools.whole import assert_same, machine, state
from vpmu_emu._jit import COMPILES
from vpmu_emu.asm import assemble
from vpmu_emu.machine.clock import tsc_value

pytestmark = pytest.mark.uncompiled

WIDTH = 1 << 48
DS, BUFFER = 0x180000, 0x181000
GP, FIXED = 0, 32  # first bit of a kind of counter in PEBS_ENABLE and GLOBAL_CTRL
COUNTING = 0x43 << 16
INSTRUCTIONS, BRANCHES = 0xC0, 0xC4
MEMORY, GPRS, XMMS, LBRS = 1, 2, 4, 8
OVF_BUFFER = 1 << 62
STATUS, RESET, CTRL, FIXED_CTRL, ENABLE, CFG, AREA = 0x38E, 0x390, 0x38F, 0x38D, 0x3F1, 0x3F2, 0x600


class Counter(NamedTuple):
    """One that PEBS is enabled for."""

    bit: int
    branches: bool  # counts branches; otherwise instructions
    start: int
    again: int  # reset value in the debug store
    adaptive: bool = False


class Record(NamedTuple):
    """As memory holds it."""

    size: int
    format: int
    ip: int
    counters: int
    tsc: int
    words: list[int]  # of the groups after the basic one


def setup(counters: list[Counter], cfg: int = 0, ctl: int = 0) -> str:
    """Program the counters, open the window; `ctl` for IA32_LBR_CTL."""
    text = write(CTRL, 0) + (write(0x14CE, ctl) if ctl else "")
    fixed = 0
    for c in counters:
        if c.bit < FIXED:
            event = BRANCHES if c.branches else INSTRUCTIONS
            text += write(0x186 + c.bit, event | COUNTING | c.adaptive << 34)
            text += write(0x4C1 + c.bit, c.start)
        else:
            assert not c.branches
            assert c.bit == FIXED
            fixed |= 3 | c.adaptive << 32
            text += write(0x309, c.start)
    text += write(FIXED_CTRL, fixed) + write(AREA, DS) + write(CFG, cfg)
    mask = sum(1 << c.bit for c in counters)
    return text + write(ENABLE, mask) + write(CTRL, mask)


def poke(system, at: int, *words: int) -> None:
    for k, word in enumerate(words):
        system.M[at + 8 * k : at + 8 * k + 8] = list((word % (1 << 64)).to_bytes(8, "little"))


def store(system, counters: list[Counter], records: int = 60, threshold: int | None = None) -> None:
    """The debug store's management area: room for `records` of the largest size."""
    most = BUFFER + records * 1224
    poke(system, DS + 0x20, BUFFER, BUFFER, most, most if threshold is None else threshold)
    for c in counters:
        poke(system, DS + 0x40 + 8 * (c.bit if c.bit < FIXED else c.bit - FIXED + 8), c.again)


def word(system, at: int) -> int:
    return int.from_bytes(system.read(at, 8), "little")


def records(system) -> list[Record]:
    at, end = BUFFER, word(system, DS + 0x28)
    found = []
    while at < end:
        head, ip, counters, tsc = (word(system, at + 8 * k) for k in range(4))
        size = head >> 48
        words = [word(system, at + k) for k in range(32, size, 8)]
        found.append(Record(size, head & ((1 << 48) - 1), ip, counters, tsc, words))
        at += size
    assert at == end
    return found


class Written(NamedTuple):
    """A record that must be there."""

    ip: int
    counters: int
    adaptive: bool
    registers: list[int]
    lbr: list[tuple[int, int, int]]
    earliest: int  # cycles
    latest: int


def walk(system, counters: list[Counter], most: int = 4000) -> list[Written]:
    """Step to the end of the program; what must have been recorded."""
    core = system.core
    value = {c.bit: c.start for c in counters}
    armed: set[int] = set()
    found = []
    for _ in range(most):
        rip, early = int(core.rip), tsc_value(core, int(core.t))
        on = int(core.pmu.global_ctrl) & int(core.pmu.pebs_enable)  # the window opens last
        branch = branch_at(system.read(rip, 16), int(core.rflags), int(core.regs[1]))
        before = int(core.total[0, 0]) + int(core.total[1, 0])
        stop = system.step()
        if int(core.total[0, 0]) + int(core.total[1, 0]) > before:
            hit = []
            for c in counters:
                if not on >> c.bit & 1 or (c.branches and branch is None):
                    continue
                if c.bit in armed:
                    hit.append(c)
                    armed.remove(c.bit)
                    value[c.bit] = c.again % WIDTH
                    continue
                value[c.bit] += 1
                if value[c.bit] == WIDTH:
                    value[c.bit] = 0
                    armed.add(c.bit)
            if hit:
                left = [int(core.rflags), int(core.rip), *(int(r) for r in core.regs[:16])]
                found.append(
                    Written(rip, sum(1 << c.bit for c in hit), any(c.adaptive for c in hit), left,
                            lbr_records(system), early, tsc_value(core, int(core.t)))
                )  # fmt: skip
        if stop.reason != "step":
            return found
    raise AssertionError("the program does not end")


def compare(system, wanted: list[Written], cfg: int) -> list[Record]:
    found = records(system)
    assert [(r.ip, r.counters) for r in found] == [(w.ip, w.counters) for w in wanted]
    for r, w in zip(found, wanted, strict=True):
        assert w.earliest <= r.tsc <= w.latest
        groups = cfg if w.adaptive else 0
        assert r.format == groups
        entries = (cfg >> 24) + 1 if groups & LBRS else 0
        sizes = {MEMORY: 32, GPRS: 144, XMMS: 256, LBRS: 24 * entries}
        assert r.size == 32 + sum(size for bit, size in sizes.items() if groups & bit)
        rest = list(r.words)
        if groups & MEMORY:
            assert rest[1:4] == [0, 0, 0]
            del rest[:4]
        if groups & GPRS:
            assert rest[:18] == w.registers
            del rest[:18]
        if groups & XMMS:
            assert rest[:32] == [0] * 32
            del rest[:32]
        if groups & LBRS:
            assert rest == [v for entry in w.lbr[:entries] for v in entry]
    return found


def checked(body: str, counters: list[Counter], cfg: int = 0, ctl: int = 0, **options):
    """Run a body of `bare` with these counters; its records, proved by the walk."""
    program = assemble(HEAD + setup(counters, cfg, ctl) + body + write(CTRL, 0) + TAIL, "pebs")
    system = machine(program, "bare", **options)
    store(system, counters)
    return compare(system, walk(system, counters), cfg), system


WORK = "mov ebx, 12\n1: nop\ntest bl, 1\njz 2f\nadd rsi, rbx\n2: mov rax, [0x90000 + rbx * 8]\n"
WORK += "dec ebx\njnz 1b\n"
EVERYTHING = MEMORY | GPRS | XMMS | LBRS | 31 << 24


# --- the rule -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("period", [1, 2, 3, 10])
@pytest.mark.parametrize("cpu", ["spr", "icx", "emr"])
def test_basic_records(period, cpu):
    found, system = checked(WORK, [Counter(0, False, WIDTH - period, -period)], cpu=cpu)
    assert len(found) == (12 * 6 + 6 + 1 + 4) // (period + 1)  # one event arms, the next is recorded
    assert word(system, DS + 0x28) == BUFFER + 32 * len(found)


@pytest.mark.parametrize("bit", [0, 3, 7, FIXED])
def test_every_kind_of_counter(bit):
    assert checked(WORK, [Counter(bit, False, WIDTH - 7, -5)])[0]


def test_the_recorded_instruction_is_the_event():
    found, system = checked(WORK, [Counter(1, True, WIDTH - 2, -3)])
    assert len(found) > 4
    for record in found:
        assert branch_at(system.read(record.ip, 16), 0, 0) is not None


def test_several_counters_share_a_record():
    counters = [Counter(0, False, WIDTH - 4, -4), Counter(1, False, WIDTH - 4, -9)]
    counters.append(Counter(2, True, WIDTH - 1, -2))
    found, _ = checked(WORK, counters)
    assert found[0].counters & 3 == 3
    assert {r.counters for r in found} > {1}


@pytest.mark.parametrize(
    "cfg", [0, MEMORY, GPRS, XMMS, LBRS, LBRS | 7 << 24, GPRS | LBRS | 31 << 24, EVERYTHING]
)
def test_adaptive_groups(cfg):
    found, _ = checked(WORK, [Counter(0, False, WIDTH - 5, -5, adaptive=True)], cfg, ctl=0x7F0007)
    assert found
    if cfg & LBRS:
        assert any(any(r.words) for r in found)


def test_without_its_adaptive_bit_a_counter_gets_basic_records():
    found, _ = checked(WORK, [Counter(0, False, WIDTH - 5, -5)], EVERYTHING)
    assert {r.size for r in found} == {32}
    mixed = [Counter(0, False, WIDTH - 5, -5), Counter(FIXED, False, WIDTH - 7, -7, adaptive=True)]
    assert {r.size for r in checked(WORK, mixed, GPRS)[0]} == {32, 176}


def test_the_memory_group_has_the_address_of_loads_and_stores():
    body = "mov rbx, 0x90000\nnop\nmov rax, [rbx + 24]\nnop\nmov [rbx + 40], rax\nnop\nlea rcx, [rbx + 8]\n"
    found, _ = checked(body, [Counter(0, False, WIDTH - 1, -1, adaptive=True)], MEMORY)
    assert [r.words[0] for r in found[:4]] == [0, 0, 0, 0]
    found, _ = checked("nop\n" + body, [Counter(0, False, WIDTH - 1, -1, adaptive=True)], MEMORY)
    assert [r.words[0] for r in found[:4]] == [0, 0x90018, 0x90028, 0]


def test_a_ring_of_legacy_records_is_read_from_its_newest():
    body = write(0x1D9, 1) + WORK * 3
    counters = [Counter(0, False, WIDTH - 5, -7, adaptive=True)]
    found, _ = checked(body, counters, LBRS | 31 << 24, cpu="icx")
    assert all(found[-1].words)  # more branches than records: the ring has turned


def test_instructions_of_ring_3_are_recorded():
    counters = [Counter(0, False, WIDTH - 3, -1, adaptive=True)]
    text = HEAD + RINGS + setup(counters, GPRS) + RING3 + write(CTRL, 0) + TAIL + RING_TAIL
    system = machine(assemble(text, "pebs"), "bare")
    store(system, counters)
    found = compare(system, walk(system, counters), GPRS)
    user, back = (system.program.symbols[name] for name in ("user", "back"))
    assert sum(user <= r.ip < back for r in found) == 2  # of nop nop int nop int


def test_fixed_seeds_of_random_programs():
    for seed in range(20 if COMPILES else 3):
        one_program(generator.from_seed("integer", 900 + seed), 3 + seed, 3 + seed, EVERYTHING)


@settings(deadline=None, max_examples=40 if COMPILES else 4)
@given(st.data(), st.integers(1, 40), st.integers(2, 40), st.sampled_from([0, GPRS | LBRS, EVERYTHING]))
def test_random_programs(data, start, again, cfg):
    one_program(data.draw(generator.integer()), start, again, cfg)


def one_program(text: str, start: int, again: int, cfg: int) -> None:
    counters = [Counter(0, False, WIDTH - start, -again, adaptive=True), Counter(1, True, WIDTH - 1, -2)]
    text = text.replace("_start:", "_start:\n" + setup(counters, cfg, 0x7F0007), 1)
    system = machine(assemble(text, "pebs"), "bare")
    store(system, counters)
    compare(system, walk(system, counters), cfg)


# --- status, PMI, buffer --------------------------------------------------------------------------------
def finished(text: str, counters: list[Counter], poked=(), **store_options):
    system = machine(assemble(HEAD + text, "pebs"), "bare")
    store(system, counters, **store_options)
    for at, value in poked:
        poke(system, at, value)
    stop = system.run()
    assert (stop.reason, stop.info) == ("debug-exit", 0), str(stop)
    return system


ONE = [Counter(0, False, WIDTH - 3, -5)]
READ_STATUS = f"mov ecx, {STATUS:#x}\nrdmsr\nshl rdx, 32\nor rax, rdx\nmov r15, rax\n"
PMI = """
    load_idt
    set_gate 2, nmi
    lapic_enable_x2apic
    wrmsr_const 0x834, 0x400
    xor r14, r14
    xor r15, r15
"""
HANDLER = "nmi: inc r14\nmov r13, [rsp]\niretq\nidt_storage\n"


def test_overflow_sets_no_status_and_raises_no_pmi():
    text = PMI + setup(ONE).replace(f"{INSTRUCTIONS | COUNTING}", f"{INSTRUCTIONS | COUNTING | 1 << 20}")
    system = finished(text + "nop\n" * 40 + write(CTRL, 0) + READ_STATUS + TAIL + HANDLER, ONE)
    assert records(system)
    assert int(system.core.regs[15]) == int(system.core.regs[14]) == 0


@pytest.mark.parametrize("threshold", [1, 2, 3])
def test_the_threshold_raises_one_pmi(threshold):
    text = PMI + setup(ONE) + "work:\n" + "nop\n" * 40 + write(CTRL, 0) + READ_STATUS + TAIL + HANDLER
    system = finished(text, ONE, threshold=BUFFER + 32 * threshold)
    work = system.program.symbols["work"]
    core = system.core
    assert int(core.regs[15]) == OVF_BUFFER
    assert int(core.regs[14]) == 1  # while the bit is set there is no second one
    # the PMI is recognised behind the recorded instruction, a NOP
    recorded = records(system)[threshold - 1].ip
    assert recorded == work + 3 + 6 * (threshold - 1)
    assert int(core.regs[13]) == recorded + 1


def test_below_the_threshold_there_is_none():
    text = PMI + setup(ONE) + "nop\n" * 10 + write(CTRL, 0) + READ_STATUS + TAIL + HANDLER
    system = finished(text, ONE, threshold=BUFFER + 32 * 30)
    assert len(records(system)) == 2
    assert int(system.core.regs[15]) == int(system.core.regs[14]) == 0


def test_freezes_follow_that_pmi():
    text = PMI + write(0x1D9, 3 << 11) + setup(ONE) + "nop\n" * 40 + READ_STATUS + TAIL + HANDLER
    system = finished(text, ONE, threshold=BUFFER + 32)
    assert int(system.core.regs[15]) == OVF_BUFFER | 3 << 58
    assert len(records(system)) == 1


def test_a_full_buffer_takes_nothing():
    """No record, no reload: the counter goes on from 0 until software comes."""
    system = finished(setup(ONE) + "nop\n" * 60 + write(CTRL, 0) + TAIL, ONE,
                      poked=[(DS + 0x30, BUFFER + 32 * 2)])  # fmt: skip
    found = records(system)
    assert len(found) == 2
    last = found[-1].ip
    # five more events and the one that armed; then everything up to the closing WRMSR
    after = (system.program.symbols["_start"], last)
    assert after[0] < last
    assert system.guest_pmu()["pmc"][0] == 60 + 4 - 4 - 6 - 5


def test_a_record_never_ends_beyond_the_maximum():
    for room in (0, 8, 31, 32, 63, 64, 65):
        system = finished(setup(ONE) + "nop\n" * 60 + write(CTRL, 0) + TAIL, ONE,
                          poked=[(DS + 0x30, BUFFER + room)])  # fmt: skip
        assert len(records(system)) == room // 32
        assert not any(system.read(BUFFER + room // 32 * 32, 64))


@pytest.mark.parametrize(
    ("at", "value"), [(DS + 0x28, 0x10_0000_0000), (DS + 0x28, 1 << 63), (DS + 0x28, (1 << 64) - 8)]
)
def test_a_buffer_that_is_not_there_is_skipped(at, value):
    system = finished(setup(ONE) + "nop\n" * 60 + write(CTRL, 0) + TAIL, ONE,
                      poked=[(at, value), (DS + 0x30, (1 << 64) - 1)])  # fmt: skip
    assert word(system, DS + 0x28) == value
    assert not int(system.core.stats.exceptions.sum())


@pytest.mark.parametrize("area", [0x7000_0000, 0x7FFF_FFFF_FFE0, 0xFFFF_8000_0000_0000])
def test_a_debug_store_that_is_not_there_is_skipped(area):
    text = setup(ONE).replace(write(AREA, DS), write(AREA, area))
    system = finished(text + "nop\n" * 60 + write(CTRL, 0) + TAIL, ONE)
    assert records(system) == []
    assert not int(system.core.stats.exceptions.sum())


def test_disabling_disarms():
    """Three NOPs and three MOVs: the WRMSR that disables would be the event that is recorded."""
    one = [Counter(0, False, WIDTH - 6, -5)]
    text = setup(one) + "nop\n" * 3 + write(ENABLE, 0) + write(ENABLE, 1) + "nop\n" * 9 + write(CTRL, 0)
    assert records(finished(text + TAIL, one)) == []


# --- what there is --------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["spr", "emr", "icx", "skx", "generic"])
def test_what_a_program_finds(name):
    text = "mov eax, 1\ncpuid\nmov r12d, edx\nmov r13d, ecx\nmov ecx, 0x1a0\nrdmsr\nmov r14d, eax\n"
    text += "mov ecx, 0x345\nrdmsr\nmov r15d, eax\n"
    system = machine(assemble(HEAD + text + TAIL, "pebs"), "bare", cpu=name)
    system.run()
    core = system.core
    has = name != "skx"
    assert int(core.regs[15]) >> 8 & 15 == (4 if has else 0)
    assert int(core.regs[15]) >> 14 & 1 == has
    assert int(core.regs[14]) >> 12 & 1 == (not has)  # PEBS_UNAVAILABLE
    assert int(core.regs[14]) >> 11 & 1  # and BTS always
    assert int(core.regs[12]) >> 21 & 1 == int(core.regs[13]) >> 2 & 1 == has  # DS, DTES64


@pytest.mark.parametrize("mode", ["none", "emulated", "passthrough", "mediated"])
@pytest.mark.parametrize("index", [ENABLE, CFG, AREA])
def test_guests_of_kvm_have_none(mode, index):
    body = f"load_idt\nset_gate 13, gp\nmov eax, 1\ncpuid\nmov r14d, edx\nmov ecx, {index}\n"
    body += "rdmsr\ndebug_exit 1\ngp: debug_exit 0\nidt_storage\n"
    system = machine(assemble(HEAD + body, "gp"), mode)
    stop = system.run()
    assert (stop.reason, stop.info) == ("debug-exit", 0)
    assert not int(system.core.regs[14]) >> 21 & 1


@pytest.mark.parametrize("policy", [{"horizon": 1}, {"horizon": 40, "horizon_seed": 7}, {"trace": True}])
@pytest.mark.parametrize("seed", range(6 if COMPILES else 1))
def test_the_same_for_every_horizon(policy, seed):
    counters = [Counter(0, False, WIDTH - 9, -11, adaptive=True), Counter(1, True, WIDTH - 1, -2)]
    text = generator.from_seed("integer", 950 + seed)
    program = assemble(text.replace("_start:", "_start:\n" + setup(counters, EVERYTHING), 1), "pebs")

    def finish(**options):
        system = machine(program, "bare", **options)
        store(system, counters)
        system.run()
        assert records(system)
        return state(system)

    assert_same(finish(), finish(**policy), str(policy))
