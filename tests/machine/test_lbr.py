"""Last branch records against a walk in single steps: where did rip go, and which branch took it there.

The walk decides from the bytes at rip and the flags whether an instruction is a branch that is taken, keeps
2-bit predictors of its own, and knows nothing of running totals.
"""

from __future__ import annotations

import random
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import generator
from tests.tools.whole import assert_same, machine, reg, state
from vpmu_emu._jit import COMPILES
from vpmu_emu.asm import assemble

pytestmark = pytest.mark.uncompiled

COND, IND_JMP, REL_JMP, IND_CALL, REL_CALL, RET, OTHER = 0, 1, 2, 3, 4, 5, 8
CTL = {COND: 16, REL_JMP: 17, IND_JMP: 18, REL_CALL: 19, IND_CALL: 20, RET: 21, OTHER: 22}
SELECT = {COND: 2, REL_CALL: 3, IND_CALL: 4, RET: 5, IND_JMP: 6, REL_JMP: 7, OTHER: 8}
EVERYTHING = 0x7F0007
CALL_STACK = {"spr": 1 << 3, "icx": 1 << 9}
MODELS = ("spr", "icx", "skx")
models = pytest.mark.parametrize("cpu", MODELS)
HEAD = '.intel_syntax noprefix\n.include "msr.inc"\n.include "macros.inc"\n.text\n.globl _start\n_start:\n'
TR_IRQ, TR_NMI = 12, 13  # machine/ring.py


class Branch(NamedTuple):
    """One that was taken."""

    source: int
    target: int
    kind: int
    missed: bool
    cpl: int  # of its end
    cycles: int | None  # unhalted ones up to its end; None if they cannot be told
    end: int  # of the instruction


def condition(code: int, flags: int) -> bool:
    """SDM 1, appendix B."""
    cf, pf, zf, sf, of = (flags >> bit & 1 for bit in (0, 2, 6, 7, 11))
    met = (of, cf, zf, cf | zf, sf, pf, sf != of, zf | (sf != of))[code >> 1]
    return bool(met) != bool(code & 1)


def branch_at(code: bytes, flags: int, rcx: int) -> tuple[int, int, bool] | None:
    """(kind, length, taken) of the branch whose bytes these are, None for another instruction."""
    at = 0
    while code[at] in (0x66, 0x67, 0xF2, 0xF3, 0x2E, 0x3E) or code[at] >> 4 == 4:
        at += 1
    op = code[at]
    if op >> 4 == 7:
        return COND, at + 2, condition(op & 15, flags)
    if op == 0x0F and code[at + 1] >> 4 == 8:
        return COND, at + 6, condition(code[at + 1] & 15, flags)
    if 0xE0 <= op <= 0xE2:
        zf = flags >> 6 & 1
        return COND, at + 2, rcx != 1 and (op == 0xE2 or bool(zf) == (op == 0xE1))
    if op == 0xE3:
        return COND, at + 2, rcx == 0
    if op == 0xFF and code[at + 1] >> 3 & 7 in (2, 4):
        return (IND_CALL if code[at + 1] >> 3 & 7 == 2 else IND_JMP), at + 2, True  # register forms
    plain = {
        0xE8: (REL_CALL, 5), 0xE9: (REL_JMP, 5), 0xEB: (REL_JMP, 2), 0xC3: (RET, 1), 0xC2: (RET, 3),
        0xCC: (OTHER, 1), 0xCD: (OTHER, 2), 0xCF: (OTHER, 1),
    }  # fmt: skip
    if op in plain:
        return plain[op][0], at + plain[op][1], True
    if op == 0x0F and code[at + 1] in (0x05, 0x07):
        return OTHER, at + 2, True
    return None


def cycles(system) -> int:
    return sum(int(system.core.total[ring, -1]) for ring in (0, 1)) >> 4


def walk(system, most: int = 4000):
    """Every branch that the program takes, by single steps, and the system at its end."""
    core = system.core
    predictor = [1] * 1024
    found: list[Branch] = []
    for _ in range(most):
        rip, flags, rcx = int(core.rip), int(core.rflags), int(core.regs[1])
        code = system.read(rip, 16)
        before = int(core.total[0, 0]) + int(core.total[1, 0])
        events = int(system.E.ring_head)
        stop = system.step()
        retired = int(core.total[0, 0]) + int(core.total[1, 0]) - before
        ring = system.E.ring[events : int(system.E.ring_head)]
        interrupted = [int(e.rip) for e in ring if int(e.kind) in (TR_IRQ, TR_NMI)]
        after = interrupted[0] if interrupted else int(core.rip)
        time = None if interrupted else cycles(system)
        branch = branch_at(code, flags, rcx) if retired else None
        if branch is not None:
            kind, length, taken = branch
            missed = False
            if kind == COND:
                slot = (rip ^ rip >> 10) & 1023
                missed = (predictor[slot] >= 2) != taken
                predictor[slot] = min(predictor[slot] + 1, 3) if taken else max(predictor[slot] - 1, 0)
            if taken:
                found.append(Branch(rip, after, kind, missed, int(core.cpl), time, rip + length))
        elif not retired and after != rip:
            found.append(Branch(rip, after, OTHER, False, int(core.cpl), time, 0))
        if interrupted:
            found.append(Branch(after, int(core.rip), OTHER, False, int(core.cpl), cycles(system), 0))
        if stop.reason != "step":
            return found
    raise AssertionError("the program does not end")


def start(cpu: str, ctl: int = EVERYTHING) -> str:
    """Begin to record; `ctl` as in IA32_LBR_CTL."""
    if cpu == "spr":
        return f"mov ecx, 0x14ce\nmov eax, {ctl:#x}\nxor edx, edx\nwrmsr\n"
    select = sum(1 << SELECT[kind] for kind, bit in CTL.items() if not ctl >> bit & 1)
    select |= (not ctl & 2) << 0 | (not ctl & 4) << 1 | bool(ctl & 8) << 9
    return (
        f"mov ecx, 0x1c8\nmov eax, {select:#x}\nxor edx, edx\nwrmsr\n"
        "mov ecx, 0x1d9\nmov eax, 1\nwrmsr\n"
    )


def stop_recording(cpu: str) -> str:
    return f"mov ecx, {0x14CE if cpu == 'spr' else 0x1D9:#x}\nxor eax, eax\nxor edx, edx\nwrmsr\n"


def records(system):
    """(source, target, info) of the records, newest first, as the MSRs give them."""
    lbr = system.core.lbr
    depth, tos = int(lbr.depth), int(lbr.tos)
    order = [(tos - k) % depth for k in range(depth)] if int(lbr.kind) == 1 else range(depth)
    return [(int(lbr.source[k]), int(lbr.target[k]), int(lbr.info[k])) for k in order]


def wanted(branches, ctl: int, began: int, architectural: bool):
    """What the records must be: (source, target, info), newest first; info None if it cannot be told."""
    out = []
    last: int | None = began
    for b in branches:
        if not ctl >> (1 if b.cpl == 0 else 2) & 1 or not ctl >> CTL[b.kind] & 1:
            continue
        info = None
        if b.cycles is not None and last is not None:
            info = min(b.cycles - last, 0xFFFF) | b.missed << 63
            if architectural:
                info |= b.kind << 56 | 1 << 60
        out.append((b.source, b.target, info))
        last = b.cycles
    return (out[::-1] + [(0, 0, 0)] * 32)[:32]


def compare(system, branches, ctl: int, began: int):
    found = records(system)
    expected = wanted(branches, ctl, began, int(system.core.lbr.kind) == 2)
    for k, (have, want) in enumerate(zip(found, expected, strict=True)):
        assert have[:2] == want[:2], f"record {k}: {have} against {want}"
        assert want[2] is None or have[2] == want[2], f"record {k}: {have[2]:#x} against {want[2]:#x}"


def recorded(text: str, cpu: str, ctl: int = EVERYTHING, **options):
    """Walk a program that records from its first instruction on, and compare the records at its end."""
    prologue = start(cpu, ctl)
    program = assemble(text.replace("_start:", "_start:\n" + prologue, 1), "lbr")
    system = machine(program, "bare", cpu=cpu, trace=True, **options)
    system.step(prologue.count("\n"))
    assert program.insns(program.entry, int(system.core.rip)) == prologue.count("\n")
    began = cycles(system)
    branches = walk(system)
    compare(system, branches, ctl, began)
    return system, branches


# --- against the walk -----------------------------------------------------------------------------------
EVERY_KIND = """
    load_idt
    set_gate 6, undefined
    set_gate 0x40, service
    lea rbx, [rip + callee]
    call callee
    call rbx
    lea rbx, [rip + on]
    jmp rbx
on: jmp over
over:
    mov ecx, 3
1:  loop 1b
    jrcxz 2f
2:  cmp rcx, 1
    je 3f
    jne 3f
3:  call 4f
4:  pop rax
    int 0x40
    ud2
    nop
    debug_exit 0
callee:
    ret
service:
    iretq
undefined:
    add qword ptr [rsp], 2
    iretq
    idt_storage
"""


@models
def test_every_kind_of_branch(cpu):
    _system, branches = recorded(HEAD + EVERY_KIND, cpu)
    assert {b.kind for b in branches} == set(CTL)
    assert {b.missed for b in branches} == {True, False}
    assert any(b.target == b.end for b in branches)  # a jump to what follows is a taken branch


@models
@pytest.mark.parametrize("kind", CTL)
def test_filters_leave_one_kind(cpu, kind):
    system, branches = recorded(HEAD + EVERY_KIND, cpu, 6 | 1 | 1 << CTL[kind])
    kept = [b for b in branches if b.kind == kind]
    assert sum(source != 0 for source, _, _ in records(system)) == len(kept) > 0


RINGS = """
    load_idt
    set_gate 0x40, service, 3
    set_gate 0x41, leave, 3
    load_tss
    mov [kernel_rsp], rsp
    jmp 1f
1:  push_user_frame user
    iretq
user:
    jmp 2f
2:  int 0x40
    jmp 3f
3:  int 0x41
service:
    jmp 4f
4:  iretq
leave:
    mov rsp, [kernel_rsp]
    debug_exit 0
    idt_storage
    ring3_storage
.bss
kernel_rsp: .zero 8
"""


@models
@pytest.mark.parametrize("rings", [2, 4, 6, 0])
def test_a_record_belongs_to_the_ring_in_which_it_ends(cpu, rings):
    system, branches = recorded(HEAD + RINGS, cpu, EVERYTHING & ~6 | rings)
    assert {b.cpl for b in branches} == {0, 3}
    kept = [b for b in branches if rings >> (1 if b.cpl == 0 else 2) & 1]
    assert sum(source != 0 for source, _, _ in records(system)) == len(kept)


INTERRUPTS = """
    load_idt
    set_gate 0x50, timer
    lapic_enable_x2apic
    wrmsr_const 0x832, 0x50 | 0x40000
    sti
    rdtsc
    add eax, 200
    xor edx, edx
    mov ecx, 0x6e0
    wrmsr
    xor ebx, ebx
1:  nop
    test ebx, ebx
    jz 1b
    debug_exit 0
timer:
    inc ebx
    lapic_eoi
    iretq
    idt_storage
"""


@models
def test_interrupts_are_far_branches(cpu):
    system, branches = recorded(HEAD + INTERRUPTS, cpu)
    symbols = system.program.symbols
    entries = [b for b in branches if b.target == symbols["timer"]]
    assert len(entries) == 1
    assert entries[0].kind == OTHER
    returns = [b for b in branches if b.source > symbols["timer"] and b.kind == OTHER]
    assert [b.target for b in returns] == [entries[0].source]


def random_program(kind: str, seed: int, cpu: str, ctl: int) -> None:
    _system, branches = recorded(generator.from_seed(kind, seed), cpu, ctl)
    if kind == "integer":
        assert all(b.cpl == 0 for b in branches)


@pytest.mark.few(24)
@pytest.mark.parametrize("kind", ["integer", "agreement"])
@pytest.mark.parametrize("seed", range(40 if COMPILES else 6))
def test_fixed_seeds(kind, seed):
    chance = random.Random(seed)
    ctl = chance.choice((EVERYTHING, EVERYTHING, chance.getrandbits(7) << 16 | 7))
    random_program(kind, seed, MODELS[seed % 2], ctl)


@settings(deadline=None, max_examples=60 if COMPILES else 5)
@given(st.data(), st.sampled_from(MODELS), st.integers(0, 127))
def test_random_programs(data, cpu, kinds):
    text = data.draw(generator.integer())
    recorded(text, cpu, kinds << 16 | 7)


# --- call-stack mode ------------------------------------------------------------------------------------
@models
def test_call_stack_mode_keeps_open_calls_only(cpu):
    body = """
    call outer
    debug_exit 0
outer:
    call leaf
    jmp 1f
1:  call 2f                     # asks for its own address: no frame
2:  pop rax
    lea rbx, [rip + middle]
    call rbx
    ret
middle:
    call leaf
    debug_exit 0
leaf:
    ret
"""
    system, _ = machine_and_stop(HEAD + start(cpu, EVERYTHING | 8) + body, cpu)
    symbols = system.program.symbols
    open_calls = [r[1] for r in records(system) if r[0]]
    assert open_calls == [symbols["middle"], symbols["outer"]]


def machine_and_stop(text: str, cpu: str, **options):
    system = machine(assemble(text, "lbr"), "bare", cpu=cpu, **options)
    stop = system.run()
    assert (stop.reason, stop.info) == ("debug-exit", 0), str(stop)
    return system, stop


# --- freezing -------------------------------------------------------------------------------------------
PMI_SETUP = """
    load_idt
    set_gate 2, nmi
    lapic_enable_x2apic
    wrmsr_const 0x834, 0x400
    wrmsr_const 0x38f, 0
    wrmsr_const 0x186, 0x5300c4
    wrmsr_const 0x4c1, -10 & 0xffffffffffff
"""


@pytest.mark.parametrize(
    ("cpu", "version"), [("spr", 5), ("icx", 5), ("skx", 4), ("skx", 2)], ids=lambda v: str(v)
)
def test_a_pmi_freezes_the_records(cpu, version):
    """With DEBUGCTL bit 11 the newest record is the branch that overflowed, not the way to the handler."""
    debugctl = 0x800 if cpu == "spr" else 0x801
    body = PMI_SETUP + start(cpu)
    body += f"wrmsr_const 0x1d9, {debugctl}\nwrmsr_const 0x38f, 1\n"
    body += "mov ebx, 30\n1: dec ebx\nlast: jnz 1b\n    debug_exit 1\n"
    body += "nmi: jmp 2f\n2: mov ecx, 0x1d9\nrdmsr\nmov r14, rax\n"
    if version >= 4:
        body += "rdmsr_rax 0x38e\nmov r15, rax\nwrmsr_rax 0x390\n" + "jmp 3f\n3: nop\n"
    body += "debug_exit 0\nidt_storage\n"
    system, _ = machine_and_stop(HEAD + body, cpu, settings={"pmu.version": version})
    symbols, found = system.program.symbols, records(system)
    core = system.core
    if version >= 4:
        assert int(core.regs[15]) >> 58 & 1  # LBR_FRZ
        assert found[0][0] > symbols["nmi"]  # recording went on once it was cleared
        found = found[1:]
        assert int(core.regs[14]) == debugctl
    else:
        assert int(core.regs[14]) == debugctl & ~1  # the manual's first versions clear the enable
    assert [r[0] for r in found[:10]] == [symbols["last"]] * 10


def test_without_the_freeze_the_way_to_the_handler_is_recorded():
    body = PMI_SETUP + start("spr") + "wrmsr_const 0x38f, 1\nmov ebx, 30\n1: dec ebx\nlast: jnz 1b\n"
    body += "debug_exit 1\nnmi: debug_exit 0\nidt_storage\n"
    system, _ = machine_and_stop(HEAD + body, "spr")
    symbols, found = system.program.symbols, records(system)
    assert found[0][1] == symbols["nmi"]
    assert found[1][0] == symbols["last"]


# --- registers ------------------------------------------------------------------------------------------
def test_the_ring_of_legacy_records_turns():
    """33 branches: the newest overwrites the oldest, under TOS + 1."""
    body = start("icx") + "jmp 0f\n0: mov ebx, 33\n1: dec ebx\nlast: jnz 1b\n" + stop_recording("icx")
    system, _ = machine_and_stop(HEAD + body + "debug_exit 0\n", "icx")
    lbr, last = system.core.lbr, system.program.symbols["last"]
    assert int(lbr.tos) == 1
    assert [int(v) for v in lbr.source] == [last] * 32


@pytest.mark.parametrize("depth", [8, 16, 32])
def test_a_depth_is_a_number_of_registers(depth):
    body = f"wrmsr_const 0x14cf, {depth}\n" + start("spr") + "mov ebx, 40\n1: dec ebx\nlast: jnz 1b\n"
    body += stop_recording("spr") + f"load_idt\nset_gate 13, gp\nmov ecx, {0x1500 + depth - 1}\nrdmsr\n"
    body += f"mov r14, rax\nmov ecx, {0x1500 + depth}\nrdmsr\nxor r14, r14\n"
    body += "gp: debug_exit 0\nidt_storage\n"
    system, _ = machine_and_stop(HEAD + body, "spr")
    assert reg(system, 14) == system.program.symbols["last"]
    assert [r[0] for r in records(system)] == [system.program.symbols["last"]] * depth


def test_writing_the_depth_clears_the_records():
    body = start("spr") + "jmp 1f\n1:\n" + stop_recording("spr") + "wrmsr_const 0x14cf, 32\n"
    system, _ = machine_and_stop(HEAD + body + "debug_exit 0\n", "spr")
    assert records(system) == [(0, 0, 0)] * 32


@pytest.mark.parametrize("settings_", [{"pmu.perf_caps": 0x2000}])
@pytest.mark.parametrize("index", [0x1C8, 0x1C9, 0x680, 0x6DF, 0xDC0])
def test_without_the_format_there_are_no_legacy_records(settings_, index):
    system = machine(assemble(HEAD + f"mov ecx, {index}\nrdmsr\n", "gp"), "bare", cpu="icx",
                     settings=settings_)  # fmt: skip
    stop = system.run()
    assert (stop.reason, stop.info) == ("triple-fault", 13)


@pytest.mark.parametrize("mode", ["none", "emulated", "passthrough", "mediated"])
@pytest.mark.parametrize(
    ("cpu", "index"), [("spr", 0x14CE), ("spr", 0x1500), ("icx", 0x1C8), ("icx", 0x680)]
)
def test_guests_of_kvm_have_none(mode, cpu, index):
    body = f"load_idt\nset_gate 13, gp\nmov eax, 7\nxor ecx, ecx\ncpuid\nmov r14d, edx\nmov ecx, {index}\n"
    body += "rdmsr\ndebug_exit 1\ngp: debug_exit 0\nidt_storage\n"
    system = machine(assemble(HEAD + body, "gp"), mode, cpu=cpu)
    stop = system.run()
    assert (stop.reason, stop.info) == ("debug-exit", 0)
    assert not reg(system, 14) >> 19 & 1


@pytest.mark.parametrize("mode", ["none", "emulated", "passthrough", "mediated"])
@pytest.mark.parametrize("cpu", ["icx", "skx"])
def test_a_guest_cannot_start_them(mode, cpu):
    """KVM drops DEBUGCTL.LBR with a message instead of a fault (vmx_set_msr)."""
    body = "wrmsr_const 0x1d9, 1\njmp 1f\n1: nop\nmov ecx, 0x1d9\nrdmsr\nmov r14d, eax\ndebug_exit 0\n"
    system = machine(assemble(HEAD + body, "lbr"), mode, cpu=cpu)
    stop = system.run()
    assert (stop.reason, stop.info) == ("debug-exit", 0)
    assert reg(system, 14) == 0
    assert records(system) == [(0, 0, 0)] * 32


# --- the law --------------------------------------------------------------------------------------------
POLICIES = ({"horizon": 1}, {"horizon": 3, "horizon_seed": 11}, {"horizon": 40, "horizon_seed": 7})


@pytest.mark.parametrize("seed", range(12 if COMPILES else 2))
@pytest.mark.parametrize("kind", ["anything", "running"])
def test_the_records_are_the_same_for_every_horizon(kind, seed):
    text = generator.from_seed(kind, 700 + seed)
    cpu = MODELS[seed % 2]
    program = assemble(text.replace("_start:", "_start:\n" + start(cpu), 1), "lbr")

    def finish(**options):
        system = machine(program, "bare", cpu=cpu, **options)
        system.run()
        return system

    plain = finish()
    assert any(source for source, _, _ in records(plain))
    for policy in (*POLICIES, {"trace": True}):
        assert_same(state(plain), state(finish(**policy)), f"{kind} {seed} {policy}")
    stepped = machine(program, "bare", cpu=cpu)
    while stepped.step().reason == "step":
        pass
    assert_same(state(plain), state(stepped), f"{kind} {seed} in steps")
