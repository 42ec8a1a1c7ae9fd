"""Laws of the hardware PMU on `bare`: per-cycle conditions, rings, PMIs, and what the time model costs."""

from __future__ import annotations

import numpy as np
import pytest

from tests.tools.whole import machine
from vpmu_emu.asm import assemble
from vpmu_emu.machine.clock import tsc_value
from vpmu_emu.tables.cpus import LATENCIES, cpu

pytestmark = pytest.mark.uncompiled

EN, INT, EDGE, INV = 1 << 22, 1 << 20, 1 << 18, 1 << 23
OS, USR = 1 << 17, 1 << 16
INST, BRANCH, CYCLES, SLOTS, MISPREDICT = 0xC0, 0xC4, 0x3C, 0x1A4, 0xC5
LLC_REFERENCE, LLC_MISS = 0x4F2E, 0x412E
WIDTH = 1 << 48
LATENCY = dict(zip(LATENCIES, cpu("spr").latency, strict=True))

HEAD = """
.intel_syntax noprefix
.include "msr.inc"
.include "macros.inc"
.text
.globl _start
_start:
"""
TAIL = "\n    debug_exit 0\n"


def write(index: int, value: int) -> str:
    value %= 1 << 64
    return f"mov ecx, {index}\nmov eax, {value & 0xFFFFFFFF}\nmov edx, {value >> 32}\nwrmsr\n"


def run(body: str, tail: str = "", **options):
    """The machine after `body`, stopped at the exit."""
    options.setdefault("max_insns", 200_000)
    system = machine(assemble(HEAD + body + TAIL + tail, "pmu"), "bare", **options)
    stop = system.run()
    assert (stop.reason, stop.info) == ("debug-exit", 0), str(stop)
    return system


def counting(body: str, *selectors: int, presets=(), fixed: int = 0, tail: str = "", **options):
    """Counters after `body` ran with these selectors, all opened and closed by one write."""
    text = write(0x38F, 0)
    for n, selector in enumerate(selectors):
        rings = 0 if selector & (OS | USR) else OS | USR
        text += write(0x186 + n, selector | EN | rings)
    for n, preset in enumerate(presets):
        text += write(0x4C1 + n, preset % WIDTH)
    model = cpu(options.get("cpu", "spr"))
    everything = (1 << model.gp) - 1 | ((1 << model.fixed) - 1) << 32
    text += write(0x38D, fixed) + write(0x38F, everything) + body + write(0x38F, 0)
    system = run(text, tail, **options)
    return system.guest_pmu()


def cmask(n: int) -> int:
    return n << 24


# --- per-cycle conditions -------------------------------------------------------------------------------
BODIES = {
    "nops": "nop\n" * 37,
    "slow": "imul rax, rbx\n" * 9 + "nop\n" * 3 + "mov rcx, 7\nxor edx, edx\ndiv rcx\n",
    "loop": "mov r8d, 25\nl: nop\ndec r8d\njnz l\n",
    "string": "lea rdi, [0x80000]\nmov ecx, 30\nrep stosb\n",
    "memory": "mov r9d, 0x100000\n" + "".join(f"mov rax, [r9 + {k * 64}]\n" for k in range(8)),
    "system": "cpuid\nrdtsc\nlfence\npause\n",
}
bodies = pytest.mark.parametrize("name", BODIES)


@bodies
def test_cycles_that_retire_and_cycles_that_do_not_add_up(name):
    found = counting(BODIES[name], INST | cmask(1), INST | cmask(1) | INV, CYCLES, INST)["pmc"]
    retiring, idle, cycles, instructions = found[:4]
    # a window does not begin and end on whole cycles: the two of its ends are one cycle together
    assert retiring + idle == cycles
    assert 0 < retiring <= instructions


@bodies
def test_higher_thresholds_are_met_less_often(name):
    found = counting(BODIES[name], *(INST | cmask(n) for n in range(1, 7)))["pmc"]
    assert found[:6] == sorted(found[:6], reverse=True)
    width = 16 // LATENCY["slot"]
    assert found[width] == 0  # no cycle retires more than the issue width
    plain = counting(BODIES[name], INST)["pmc"][0]
    assert sum(found[:width]) >= plain - width  # every instruction is in some cycle of the window


@bodies
def test_edges_are_transitions(name):
    """EDGE counts how often the condition begins, which INV begins just as often, give or take one."""
    found = counting(
        BODIES[name],
        INST | cmask(1) | EDGE,
        INST | cmask(1) | INV | EDGE,
        INST | cmask(1),
        INST | cmask(1) | INV,
        INST | EDGE,
    )["pmc"]
    begins, ends, retiring, idle, alone = found[:5]
    assert abs(begins - ends) <= 1
    assert begins <= retiring
    assert ends <= idle
    assert alone == begins  # EDGE alone has a threshold of 1


def test_a_burst_is_one_edge():
    # A chain of DIVs retires every 14 cycles: each is a burst of its own.
    burst = counting("mov ecx, 3\n" + "xor edx, edx\ndiv rcx\n" * 10, INST | cmask(1) | EDGE)["pmc"][0]
    nops = counting("nop\n" * 40, INST | cmask(1) | EDGE)["pmc"][0]
    assert burst == nops + 10


# --- rings ----------------------------------------------------------------------------------------------
RINGS = """
    load_idt
    set_gate 0x40, service, 3
    set_gate 0x41, leave, 3
    load_tss
    mov [kernel_rsp], rsp
"""
RING3 = """
    push_user_frame user
    iretq
user:
    nop
    nop
    int 0x40
    nop
    int 0x41
back:
"""
RING_TAIL = """
service:
    nop
    iretq
leave:
    mov rsp, [kernel_rsp]
    jmp back
    idt_storage
    ring3_storage
.bss
kernel_rsp: .zero 8
"""


def test_os_and_usr_split_what_both_count():
    text = write(0x38F, 0)
    for n, rings in enumerate((OS, USR, OS | USR)):
        text += write(0x186 + n, INST | EN | rings) + write(0x189 + n, BRANCH | EN | rings)
    text = RINGS + text + write(0x38F, 0x3F) + RING3 + write(0x38F, 0)
    pmc = run(text, RING_TAIL).guest_pmu()["pmc"]
    assert pmc[0] + pmc[1] == pmc[2]
    assert pmc[1] == 5  # nop nop int nop int: an INT retires in the ring that it leaves
    assert pmc[3] + pmc[4] == pmc[5]
    assert pmc[4] == 2


# --- overflow and PMI -----------------------------------------------------------------------------------
PMI = """
    load_idt
    set_gate 2, nmi
    set_gate 0x50, maskable
    lapic_enable_x2apic
"""
HANDLERS = """
nmi:
    push rax
    mov rax, [rsp + 8]
    mov r10, [taken]
    mov [places + r10 * 8], rax
    inc qword ptr [taken]
    pop rax
    iretq
maskable:
    push rax
    push rcx
    push rdx
    mov rax, [rsp + 24]
    mov r10, [taken]
    mov [places + r10 * 8], rax
    inc qword ptr [taken]
    lapic_eoi
    pop rdx
    pop rcx
    pop rax
    iretq
.bss
taken: .zero 8
places: .zero 256
    idt_storage
"""
FIXED_VECTOR, NMI = 0x50, 0x400


def armed(preset: int, selector: int = INST | OS | EN | INT, count: int = 1, lvt: int = NMI) -> str:
    text = PMI + write(0x834, lvt) + write(0x38F, 0)
    for n in range(count):
        text += write(0x186 + n, selector) + write(0x4C1 + n, preset % WIDTH)
    return text + write(0x38F, 0xFF) + "work:\n"


def taken(system) -> list[int]:
    """Offsets from `work` of the places at which a PMI was recognised."""
    symbols = system.program.symbols
    n = int.from_bytes(system.read(symbols["taken"], 8), "little")
    raw = np.frombuffer(system.read(symbols["places"], 8 * n), dtype="<u8")
    return [int(v) - symbols["work"] for v in raw]


@pytest.mark.parametrize("period", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("lvt", [NMI, FIXED_VECTOR])
def test_overflow_status_pmi_mask(period, lvt):
    sti = "" if lvt == NMI else "sti\n"
    system = run(sti + armed(-period, lvt=lvt) + "nop\n" * 24 + write(0x38F, 0), HANDLERS)
    assert taken(system) == [period]
    assert int(system.core.lapic.lvt[3]) == lvt | 1 << 16  # masked by its own PMI
    assert system.guest_pmu()["global_status"] == 1
    assert int(system.core.stats.pmis_hw) == int(system.core.stats.overflows) == 1


def test_a_masked_lvtpc_gets_no_second_pmi():
    text = armed(-3) + "nop\n" * 5 + write(0x4C1, -3 % WIDTH) + "nop\n" * 9 + write(0x38F, 0)
    system = run(text, HANDLERS)
    assert taken(system) == [3]
    assert int(system.core.stats.overflows) == 2


def test_several_counters_overflow_at_one_instruction():
    """All their bits are set, and the LVT entry that the first one masks sends one message."""
    system = run(armed(-5, count=4) + "nop\n" * 9 + write(0x38F, 0), HANDLERS)
    assert system.guest_pmu()["global_status"] == 0xF
    assert taken(system) == [5]
    assert int(system.core.stats.overflows) == 4


def test_a_maskable_pmi_waits_for_if():
    text = armed(-3, lvt=FIXED_VECTOR) + "nop\n" * 6 + "sti\nnop\nnop\n" + write(0x38F, 0)
    assert taken(run(text, HANDLERS)) == [8]  # after the instruction in the shadow of STI


def test_the_sti_shadow_delays_a_pmi_by_one_instruction():
    text = armed(-2, lvt=FIXED_VECTOR) + "nop\nsti\nnop\nnop\n" + write(0x38F, 0)
    assert taken(run(text, HANDLERS)) == [3]


@pytest.mark.parametrize(("version", "settings"), [(2, {"pmu.version": 2}), (5, {})])
def test_freeze_on_pmi(version, settings):
    text = write(0x1D9, 1 << 12) + armed(-4, count=2) + "nop\n" * 20
    system = run(text, HANDLERS, settings=settings)
    pmu = system.guest_pmu()
    assert pmu["pmc"][:2] == [0, 0]  # the others stop with the one that overflowed
    frozen = 1 << 59 if version >= 4 else 0
    assert pmu["global_status"] == frozen | 3
    assert pmu["global_ctrl"] == (0xFF if version >= 4 else 0)


def test_a_second_overflow_in_an_nmi_handler_waits_for_iret():
    handler = """
nmi:
    push rax
    push rcx
    push rdx
    mov rax, [rsp + 24]
    mov r10, [taken]
    mov [places + r10 * 8], rax
    inc qword ptr [taken]
    cmp r10, 0
    jne over
"""
    handler += write(0x834, NMI) + write(0x4C1, -2 % WIDTH) + "nop\nnop\nnop\nmov r11, [taken]\n"
    handler += "over:\npop rdx\npop rcx\npop rax\niretq\nmaskable:\niretq\n.bss\ntaken: .zero 8\n"
    handler += "places: .zero 256\nidt_storage\n"
    system = run(armed(-3) + "nop\n" * 9 + write(0x38F, 0), handler)
    assert taken(system) == [3, 3]  # the second comes where the first one's IRET led
    assert int(system.core.regs[11]) == 1  # and not inside of the handler


def test_halt_wakes_by_a_pending_pmi_and_counts_nothing_meanwhile():
    # HLT retires and overflows: the PMI that it raises wakes it
    text = "sti\n" + armed(-1, lvt=FIXED_VECTOR) + "hlt\nnop\nnop\n" + write(0x38F, 0)
    assert taken(run(text, HANDLERS)) == [1]
    timer = """
    sti
    mov ecx, 0x832
    mov eax, 0x40050
    xor edx, edx
    wrmsr
"""
    text = PMI + timer + write(0x38D, 0x333) + write(0x38F, 7 << 32)
    text += "rdtsc\nshl rdx, 32\nor rax, rdx\nadd rax, 1000000\nmov rdx, rax\nshr rdx, 32\n"
    text += "mov ecx, 0x6e0\nwrmsr\nwork:\nhlt\n" + write(0x38F, 0)
    system = run(text, HANDLERS)
    assert taken(system) == [1]
    assert tsc_value(system.core, int(system.core.t)) > 1_000_000
    _instructions, cycles, reference = system.guest_pmu()["fixed"][:3]
    assert 0 < cycles < 10_000
    assert reference in (cycles * 2 // 3, cycles * 2 // 3 + 1)  # 2.0 of 3.0 GHz


# --- counters as registers ------------------------------------------------------------------------------
@pytest.mark.parametrize("n", [0, 7])
@pytest.mark.parametrize("value", [0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x1_0000_0001])
def test_the_legacy_address_takes_32_bits_and_extends_them(n, value):
    text = write(0x4C1 + n, 0x1234_5678_9ABC) + write(0xC1 + n, value)
    text += f"mov ecx, {0x4C1 + n}\nrdmsr\nmov esi, eax\nmov edi, edx\nmov ecx, {n}\nrdpmc\n"
    text += "mov r8d, eax\nmov r9d, edx\n"
    core = run(text).core
    low = value & 0xFFFFFFFF
    wanted = low | (0xFFFF_0000_0000 if low >> 31 else 0)
    assert int(core.regs[7]) << 32 | int(core.regs[6]) == wanted
    assert int(core.regs[9]) << 32 | int(core.regs[8]) == wanted


INDICES = {
    0: "pmc", 7: "pmc", 8: "none", 0xFFFF: "none", 0x10000: "none", 0x8000_0000: "none",
    0x4000_0000: "fixed", 0x4000_0003: "fixed", 0x4000_0004: "none", 0x2000_0000: "metrics",
    0x2000_0001: "none", 0x4001_0000: "none",
}  # fmt: skip


@pytest.mark.parametrize("index", INDICES)
@pytest.mark.parametrize("cpl", [0, 3])
@pytest.mark.parametrize("pce", [0, 1])
def test_rdpmc(index, cpl, pce):
    """#GP unless CPL is 0 or CR4.PCE is set, and unless ECX names a counter that exists."""
    text = RINGS + "set_gate 13, fault\n"
    text += f"mov rax, cr4\nor eax, {pce << 8}\nmov cr4, rax\nxor esi, esi\n"
    if cpl:
        text += "push_user_frame user\niretq\nuser:\n"
    text += f"mov ecx, {index}\nrdpmc\n"
    text += "int 0x41\nback:\n" if cpl else "back:\n"
    tail = "fault:\nmov esi, 1\nmov rsp, [kernel_rsp]\njmp back\n" + RING_TAIL
    faulted = int(run(text, tail).core.regs[6])
    allowed = INDICES[index] != "none" and (cpl == 0 or pce == 1)
    assert faulted == (0 if allowed else 1)


# --- the time model -------------------------------------------------------------------------------------
def per_instruction(text: str, n: int, setup: str = "", **options) -> float:
    """Cycles of one of `n` equal instructions, the window's own taken off."""
    def cycles(body):
        return counting(setup + body, CYCLES, **options)["pmc"][0]

    return (cycles(text * n) - cycles(text * (n // 2))) / (n - n // 2)


def test_latencies_are_the_tables():
    found = {
        "nop": per_instruction("nop\n", 160),
        "mul": per_instruction("imul rax, rbx\n", 40),
        "div": per_instruction("xor edx, edx\ndiv rsi\n", 40, "mov esi, 5\n") - LATENCY["alu"] / 16,
    }
    for name, cycles in found.items():
        assert cycles == pytest.approx(LATENCY[name] / 16, abs=0.1), name
    assert found["nop"] < found["mul"] < found["div"]  # so instructions per cycle fall in this order


def strided(stride: int, n: int) -> list[int]:
    """Cycles, LLC references and misses of `n` loads, the first pass of the memory included."""
    loop = f"mov r9d, 0x200000\nmov r8d, {n}\nl: mov rax, [r9]\nadd r9, {stride}\ndec r8d\njnz l\n"
    return counting(loop, CYCLES, LLC_REFERENCE, LLC_MISS, ram=64)["pmc"][:3]


def test_a_stride_through_16_mib_misses_every_time():
    n = 256
    cycles, references, misses = strided((16 << 20) // n, n)
    hot = strided(0, n)
    assert misses >= n
    assert references >= misses
    assert hot[2] <= 2
    walks = cycles - hot[0] - (n - 1) * LATENCY["llc_miss"] / 16
    # every stride is a page of its own: the rest of the time is the page walks
    assert walks == pytest.approx((n - 1) * LATENCY["tlb_walk"] / 16, rel=0.1)


def branches(advance: str) -> tuple[int, int]:
    """Cycles and mispredictions of 400 branches on bit 0 of a generator."""
    loop = f"mov r8d, 400\nmov rax, 0x9E3779B97F4A7C15\nl: {advance}\ntest al, 1\njz skip\nnop\n"
    loop += "skip: dec r8d\njnz l\n"
    pmc = counting(loop, CYCLES, MISPREDICT)["pmc"]
    return pmc[0], pmc[1]


def test_random_branches_cost_their_mispredictions():
    xorshift = "mov rbx, rax\nshl rbx, 13\nxor rax, rbx\nmov rbx, rax\nshr rbx, 7\nxor rax, rbx\n"
    xorshift += "mov rbx, rax\nshl rbx, 17\nxor rax, rbx"
    # the same work, but the bit that is tested stays as it is
    steady = xorshift + "\nor al, 1"
    random_cycles, random_misses = branches(xorshift + "\nor al, 0")
    steady_cycles, steady_misses = branches(steady)
    assert steady_misses < 10
    assert 120 < random_misses < 280  # about half of 400
    extra = (random_misses - steady_misses) * LATENCY["mispredict"] / 16
    # the NOP is skipped in half of the cases, a quarter of a cycle each
    assert random_cycles - steady_cycles == pytest.approx(extra, abs=120)


def test_without_hlt_all_time_is_unhalted():
    """Interrupts, IRETQ and what else reads memory on its own take cycles like everything."""
    text = "load_idt\nset_gate 0x40, service\nmov r12d, 50\nagain: int 0x40\npush 2\npopfq\n"
    text += "sidt [rsp - 32]\ndec r12\njnz again\n"
    system = run(text, "service: iretq\nidt_storage\n")
    where = system.cycles_by()
    assert where["idle"] == 0
    assert where["guest"] == int(system.core.t) >> 4
