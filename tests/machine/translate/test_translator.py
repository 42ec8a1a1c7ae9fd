"""Native code changes no result: record and memory are the interpreter's bytes."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import generator_system
from tests.tools.profiles import cases
from tests.tools.whole import LESSONS, assert_same, lesson, lesson_options, machine, seeded, state
from vpmu_emu._jit import COMPILES
from vpmu_emu.asm import assemble
from vpmu_emu.debug.session import Session
from vpmu_emu.errors import ConfigError
from vpmu_emu.machine import ops
from vpmu_emu.machine.translate import translator
from vpmu_emu.machine.translate.translator import Translator

pytestmark = pytest.mark.skipif(not COMPILES, reason="without a compiler there is no native code")

MODES = ("bare", "none", "emulated", "passthrough", "mediated")
KINDS = ("agreement", "anything", "integer", "running")
SYSTEM_KINDS = ("events", "paging")
modes = pytest.mark.parametrize("mode", MODES)
SEEDS = cases(day=1, laws=8, night=1200)  # by night for a share of kinds and modes: 3,000 programs
HOT = {"engine": "translator", "hot": 1}


def finish(program, mode, **options):
    system = machine(program, mode, **options)
    stop = system.run()
    return system, stop


def both(program, mode, what="", **options):
    """The interpreter and native code end in the same bytes; the machine that ran native code."""
    plain, stop = finish(program, mode, engine="interpreter", **options)
    native, again = finish(program, mode, **HOT, **options)
    assert_same(state(plain), state(native), f"{mode} {what}")
    assert (stop.reason, stop.rip) == (again.reason, again.rip)
    return native


def loop(body, rounds=300, data=""):
    return assemble(
        f""".intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .globl _start
        _start:
            mov ebx, {rounds}
            lea rdi, [rip + area]
        again:
            {body}
            dec ebx
            jnz again
            debug_exit 0
        {data}
            .balign 4096
        area: .skip 8192
        """,
        "loop",
    )


@pytest.mark.few(8)
@pytest.mark.parametrize("name", LESSONS)
@modes
def test_lessons(name, mode):
    both(lesson(name), mode, name, max_insns=60_000, **lesson_options(name, mode))


@pytest.mark.few(3)
@pytest.mark.parametrize("kind", KINDS)
@modes
def test_random_programs(kind, mode):
    for seed in range(SEEDS):
        program = seeded(kind, 1000 + seed)
        native = both(program, mode, f"{kind} {seed}")
        for policy in ({"horizon": 3, "horizon_seed": 11}, {"horizon": 40, "horizon_seed": 7}):
            again, _ = finish(program, mode, **HOT, **policy)
            assert_same(state(native), state(again), f"{mode} {kind} {seed} {policy}")


@settings(deadline=None, max_examples=cases(day=3, laws=40, night=1000))
@given(kind=st.sampled_from(SYSTEM_KINDS), data=st.data(), mode=st.sampled_from(MODES))
def test_random_systems(kind, data, mode):
    both(assemble(data.draw(getattr(generator_system, kind)())), mode, kind)


BODIES = {
    "alu": "add rax, rbx\n imul rcx, rax\n xor rdx, rcx\n sar rdx, 3\n lea rsi, [rax + rdx * 4 + 5]",
    "memory": "mov [rdi + rbx * 8], rax\n add rax, [rdi + rbx * 8 - 8]\n cmp qword ptr [rdi], 7",
    "parts": "mov al, bh\n add ah, bl\n not al\n setc cl\n movzx edx, ah\n cmovc rsi, rdx",
    "modify": "inc dword ptr [rdi]\n xor [rdi + 8], rbx\n"
    " shl word ptr [rdi + 16], 1\n neg byte ptr [rdi + 3]",
    "calls": "call inner\n call inner\n call rbp_is",
    "returns": "push rbx\n lea rax, [rip + 7f]\n push rax\n ret\n 7: pop rbx",
    "strings": "mov ecx, 5\n mov rsi, rdi\n lea rdi, [rsi + 64]\n"
    " rep movsb\n mov rdi, rsi\n and rdi, -4096",
    "jumps": "lea rax, [rip + 8f]\n test bl, 3\n jz 7f\n"
    " lea rax, [rip + 9f]\n 7: jmp rax\n 8: inc rdx\n 9: inc rcx",
    "indirect": "enter 16, 0\n mov [rbp - 8], r12\n lea rax, [rip + inner]\n call rax\n"
    " mov [rdi], rax\n call qword ptr [rdi]\n leave\n lea rax, [rip + 8f]\n mov [rdi + 8], rax\n"
    " jmp qword ptr [rdi + 8]\n 8:",
    "divide": "xor edx, edx\n lea rax, [rbx + 100]\n mov ecx, 7\n div rcx\n mul rbx",
    "clock": "mov r8d, 1\n rdtsc\n shl rdx, 32\n or rax, rdx\n mov [rdi], rax",
    "counter": "mov ecx, 0\n rdpmc\n add r9, rax",
    "own": "mov ecx, 0xc1\n rdmsr\n add eax, 3\n wrmsr",
    "across": "mov rax, [rdi + 4092]\n mov [rdi + 4093], rax",
    "misses": "imul eax, ebx, 1664525\n and eax, 8191\n add r10, [rdi + rax - 8]",
    "loops": "mov ecx, 3\n 5: add r11, rcx\n loop 5b\n jrcxz 6f\n inc r11\n 6:",
}
INNER = "inner: push rax\n pop rax\n test bl, 1\n jz 1f\n inc r12\n1: ret\nrbp_is: inc r13\n jmp inner\n"


@pytest.mark.parametrize("name", BODIES)
def test_each_kind_of_instruction_becomes_native(name):
    program = loop(BODIES[name], data=INNER)
    for mode in ("bare", "mediated"):
        native = both(program, mode, name, max_insns=None)
        assert native._translator.regions > 0
        assert int(native.E.n_region) > 0


LATE = (
    "add rax, rbx", "sub rax, rbx", "inc rax", "dec rax",
    "add eax, ebx", "sub eax, ebx", "inc eax", "dec eax",
)  # fmt: skip
SETS = (
    *LATE, "cmp rax, rcx", "cmp byte ptr [rdi], 0x80", "adc rax, rdx", "sbb eax, ecx", "and rax, rsi",
    "shl rax, 1", "rol eax, 3", "imul rax, rdx", "neg eax", "cmc", "add al, dl", "mov r9, r8",
)  # fmt: skip
EDGES = [(1 << n) + k & (1 << 64) - 1 for n in (4, 31, 32, 63, 64) for k in (-1, 0)]
SEEN = "jmp 1f\n1: pushfq\n pop r10\n xor r11, r10\n rol r11, 1"


@pytest.mark.parametrize("steps", [LATE[:4], LATE[4:]])
def test_late_flags_are_those_of_now(steps):
    lines = [f"movabs rax, {edge}\n {step}\n {SEEN}" for step in steps for edge in EDGES if edge >> 1]
    both(loop("\n".join(lines), rounds=40), "bare", max_insns=None)


def test_flags_are_known_wherever_native_code_is_left():
    rng = random.Random(5)
    for _ in range(cases(day=1, laws=12, night=200)):
        lines = [f"movabs {name}, {rng.choice(EDGES)}" for name in ("rcx", "rdx", "rsi")]
        for step in rng.choices(SETS, k=24):
            branch = rng.choice(("jmp", "jc", "jg"))
            lines.append(f"movabs rax, {rng.choice(EDGES)}\n {step}\n {branch} 1f\n1:")
        program = loop("\n".join(lines), rounds=8)
        for last in range(240, 320):
            both(program, "bare", f"{lines} until {last}", max_insns=last)


COUNTS = """
            wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
            wrmsr_const IA32_A_PMC0, 0x1000000000000-{period}
            wrmsr_const IA32_PERFEVTSEL0, 0x5300c0
            wrmsr_const IA32_PERF_GLOBAL_CTRL, 1
"""
SAMPLING = """
.intel_syntax noprefix
.include "msr.inc"
.include "macros.inc"
.globl _start
_start:
    load_idt
    set_gate 0x40, handler
    lapic_enable_x2apic
    wrmsr_const IA32_X2APIC_LVT_PMI, 0x40
    sti
    lea rdi, [rip + samples]
    {counts}
    mov ebx, 20000
1:  lea rax, [rbx + rbx * 2]
    xor rdx, rax
    test bl, 5
    jnz 2f
    add rsi, [rsp - 8]
2:  dec ebx
    jnz 1b
    debug_exit 0
handler:
    push rax
    push rcx
    push rdx
    mov rax, [rsp + 24]
    mov [rdi], rax
    add rdi, 8
    {counts}
    wrmsr_const IA32_PERF_GLOBAL_OVF_CTRL, 1
    wrmsr_const IA32_X2APIC_LVT_PMI, 0x40
    wrmsr_const IA32_X2APIC_EOI, 0
    pop rdx
    pop rcx
    pop rax
    iretq
    idt_storage
    .balign 8
samples: .skip 8192
"""


@modes
def test_a_pmi_every_thousand_instructions_finds_the_same_ones(mode):
    program = assemble(SAMPLING.format(counts=COUNTS.format(period=1000)), "sampling")
    native = both(program, mode, "sampling", max_insns=None)
    samples = native.M[program.symbols["samples"] :][:640].view("<u8")
    if mode in ("bare", "passthrough", "mediated"):
        assert len(set(samples[:60].tolist())) > 3  # at different places of the native loop


# --- code that changes ----------------------------------------------------------------------------


WRITES = """
            mov eax, ebx
            and eax, {often}
            jnz 3f
            add byte ptr [rip + patched + 3], 1
        3:  nop
        patched:
            add rdx, 5
"""


@pytest.mark.parametrize("often", [0, 3, 31])
def test_a_loop_that_writes_its_own_code(often):
    both(loop(WRITES.format(often=often), rounds=500), "bare", f"every {often + 1}", max_insns=None)


WRITES_LATE = """
            cmp ebx, {when}
            je 3f
            cmp ebx, {then}
            jne 4f
        3:  {write}
        4:  nop
        patched:
            add rdx, 5
"""
STORES = {
    "inside": "add byte ptr [rip + patched + 3], 1",
    "called": "call writer",
    "by REP": "mov ecx, 1\n mov r8, rdi\n lea rdi, [rip + patched + 3]\n mov al, 9\n"
    " rep stosb\n mov rdi, r8",
}
WRITER = "writer: add byte ptr [rip + patched + 3], 1\n ret\n.balign 4096\n"


@pytest.mark.parametrize("write", STORES)
def test_native_code_goes_with_the_bytes_that_it_was_made_of(write):
    """The loop is native long before it is written to."""
    for when, then in ((300, 100), (300, 299), (1, 2)):
        body = WRITES_LATE.format(when=when, then=then, write=STORES[write])
        native = both(loop(body, rounds=500, data=WRITER), "bare", f"{write} {when} {then}", max_insns=None)
        assert int(native.E.native_drops) > 0


def test_code_that_changes_while_it_is_made_native_is_not_put():
    """A thread makes it; meanwhile the guest has written to it."""
    system = machine(loop("nop\npatched: add rdx, 5"), "bare", engine="translator", hot=1, max_insns=None)
    system.E.hot_after = 0
    system.run_to = None
    session = Session(loop("nop\npatched: add rdx, 5"), vpmu="bare", ram=2)
    session.step(40)
    E = session.system.E
    n = next(k for k in range(1, int(E.n_uops)) if int(E.uops[k]["op"]) == ops.HOT_OP["add_rr64"])
    found = translator.collect(E, n, 0)
    assert found
    at = Translator(E, hot=1, waits=True)
    key = translator.LIBRARY.key(found)
    translator.LIBRARY.make(key, found, compiles=True)
    E.uops[n]["op"] = ops.OP_STALE
    at._put(n, key, found, 0)
    assert at.regions == 0
    E.uops[n]["op"] = ops.HOT_OP["add_rr64"]
    at._put(n, key, found, 0)
    assert at.regions == 1


def test_code_written_next_to_native_code_and_executed():
    """The page holds both: what is native is not what was written."""
    body = """
            mov dword ptr [rip + made], 0xc3c2ff48
            call made
            mov byte ptr [rip + made + 2], 0xc3
            call made
            dec ebx
            inc rdx
"""
    both(loop(body, data="made: .skip 16"), "bare", "beside", max_insns=None)


def test_a_jump_into_the_middle_of_an_instruction():
    body = """
            test bl, 1
            jz 4f + 2
        4:  mov eax, 0x90909090
            inc rdx
"""
    both(loop(body), "bare", "middle", max_insns=None)


def test_many_tiny_blocks():
    chance = random.Random(3)
    lines = [
        f"x{k}: inc rdx\n test dl, {1 << chance.randrange(6)}\n jz x{k + 1}\n dec rcx\n" for k in range(150)
    ]
    body = "\n".join(lines) + "x150:"
    native = both(loop(body, rounds=40), "bare", "tiny", max_insns=None)
    assert native._translator.regions < 300


def test_a_fault_in_native_code_comes_from_its_instruction():
    text = """
    .intel_syntax noprefix
    .include "macros.inc"
    .globl _start
    _start:
        load_idt
        set_gate 13, handler
        mov ebx, 400
        mov r9, 0x8000000000000000
    1:  xor r8d, r8d
        cmp ebx, 5
        cmove r8, r9
        lea rax, [rip + there]
        add r8, rax
        push rbx
        add rdx, [r8]
        pop rbx
        dec ebx
        jnz 1b
        debug_exit 0
    handler:
        mov r10, [rsp + 8]
        mov r11d, ebx
        debug_exit 9
        idt_storage
    there: .quad 3
    """
    native = both(assemble(text, "fault"), "bare", "fault", max_insns=None)
    assert native.registers()["r11"] == 5


# --- debugging ------------------------------------------------------------------------------------


def test_breakpoints_and_steps_inside_of_native_code():
    program = loop(BODIES["calls"] + "\n" + BODIES["memory"], data=INNER)
    stops = []
    for options in ({"engine": "interpreter"}, HOT):
        session = Session(program, vpmu="bare", ram=2, **options)
        session.break_at("inner", ignore=300)
        seen = [session.cont().rip, session.step(7).rip]
        seen += [session.reverse_step(5).rip, session.until("#2900").rip, session.reverse_step(3).rip]
        stops.append((seen, session.system.record()))
    assert stops[0][0] == stops[1][0]
    assert stops[0][1] == stops[1][1]


# --- when -----------------------------------------------------------------------------------------


def test_the_thread_finishes_what_is_asked_for(monkeypatch):
    monkeypatch.delenv("VPMU_ENGINE")
    monkeypatch.setattr(translator, "PATIENCE", 0.0)
    monkeypatch.setattr(translator, "SHARE", 1.0)
    program = loop(BODIES["alu"], rounds=3_000_000)
    plain, _ = finish(program, "bare", engine="interpreter", max_insns=None)
    native = machine(program, "bare", engine="auto", hot=50, max_insns=None)
    native._slice = 1 << 14
    native._turn(1 << 14)
    deadline = time.monotonic() + 60
    while not native._translator.regions:
        assert time.monotonic() < deadline
        native._turn(1 << 8)
        time.sleep(0.01)
    native.run()
    assert_same(state(plain), state(native), "auto")


def test_a_short_run_is_left_to_the_interpreter(monkeypatch):
    monkeypatch.delenv("VPMU_ENGINE")
    native, _ = finish(loop(BODIES["alu"], rounds=20_000), "bare", engine="auto", hot=50, max_insns=None)
    assert native._translator.regions == 0


def test_without_room_on_the_disk_native_code_is_made_again(monkeypatch, tmp_path):
    program = loop(BODIES["alu"] + "\n add r8, 77")
    monkeypatch.setattr(translator, "LIBRARY", translator.Library())
    translator.LIBRARY.parts = translator.make_parts(compiles=True)
    monkeypatch.setattr(translator, "_folder", lambda: tmp_path / "nothing" / "here")
    assert both(program, "bare", max_insns=None)._translator.regions > 0


def test_damaged_native_code_is_made_again(monkeypatch, tmp_path):
    program = loop(BODIES["alu"] + "\n add r8, 78")
    parts = translator.make_parts(compiles=True)
    monkeypatch.setattr(translator, "_folder", lambda: tmp_path)
    for damage in (lambda data: data[:-9], lambda data: data[:40] + b"?" + data[41:], lambda _: b""):
        monkeypatch.setattr(translator, "LIBRARY", translator.Library())
        translator.LIBRARY.parts = parts
        assert both(program, "bare", max_insns=None)._translator.regions > 0
        for path in (tmp_path / "regions").iterdir():
            path.write_bytes(damage(path.read_bytes()))


def test_a_second_run_translates_nothing(monkeypatch):
    program = loop(BODIES["alu"] + "\n add r8, 79")
    both(program, "bare", max_insns=None)
    library = translator.Library()
    monkeypatch.setattr(translator, "LIBRARY", library)
    monkeypatch.setattr(translator.region, "compile_region", None)
    assert both(program, "bare", max_insns=None)._translator.regions > 0


def test_the_environment_says_what_is_not_asked_for(monkeypatch):
    program = loop(BODIES["alu"])
    monkeypatch.setenv("VPMU_ENGINE", "translator")
    monkeypatch.setenv("VPMU_HOT", "1")
    assert finish(program, "bare")[0]._translator.regions > 0
    assert finish(program, "bare", engine="interpreter")[0]._translator is None
    monkeypatch.setenv("VPMU_HOT", "often")
    with pytest.raises(ConfigError, match="hot: 'often' is not a valid integer"):
        machine(program, "bare")
    monkeypatch.setenv("VPMU_HOT", "")
    monkeypatch.setenv("VPMU_ENGINE", "translater")
    with pytest.raises(ConfigError, match="no engine is named 'translater'; did you mean translator"):
        machine(program, "bare")
