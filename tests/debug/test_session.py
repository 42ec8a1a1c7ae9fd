"""The debugger stops where it was told, says why, and leaves the run as it would have been."""

from __future__ import annotations

import pytest

from tests.conftest import ROOT
from vpmu_emu.asm import assemble, assemble_file
from vpmu_emu.debug.session import Session
from vpmu_emu.errors import VpmuError
from vpmu_emu.system import System

pytestmark = pytest.mark.uncompiled

LESSON = ROOT / "guests" / "lessons" / "01_count.s"
MODES = ("bare", "emulated", "passthrough")
TEXT = """\
        .intel_syntax noprefix
        .equ COUNT, 3
_start: mov ecx, 0x186
        mov eax, 0x4300c0
        xor edx, edx
        wrmsr
        mov ebx, COUNT
loop:   nop
        dec ebx
        jnz loop
        lea rsi, [rip + value]
        mov rdi, [rsi]
        rdmsr
        hlt
        .data
value:  .quad 0x1122334455667788
text:   .asciz "hello"
"""


@pytest.fixture
def session():
    return Session(assemble(TEXT, "t.s"), vpmu="bare")


def test_step_goes_one_instruction(session):
    start = session.rip
    assert session.step().rip == start + 5
    assert session.registers()["rcx"] == 0x186
    stop = session.step(3)
    assert stop.reason == "step"
    assert [a.describe().split("  at")[0] for a in stop.recent] == [
        "wrmsr IA32_PERFEVTSEL0 (0x186): old 0x0 new 0x4300c0"
    ]
    assert dict(stop.changed_registers)["rax"] == 0x4300C0


def test_breakpoint_stops_before_its_instruction_every_time(session):
    point = session.break_at("loop")
    seen = []
    for _ in range(3):
        stop = session.cont()
        assert (stop.reason, stop.rip) == ("break", point.address)
        seen.append(session.registers()["rbx"])
    assert seen == [3, 2, 1]
    session.delete(point.number)
    assert session.cont().reason == "halted"
    assert session.cont().ended  # and stays there


def test_step_onto_a_breakpoint_does_not_run_it(session):
    session.break_at("loop")
    session.step(5)
    assert session.rip == session.program.symbols["loop"]
    assert session.registers()["rbx"] == 3
    session.step()
    assert session.rip == session.program.symbols["loop"] + 1
    session.step(3)
    assert session.registers()["rbx"] == 2


def test_once_is_once(session):
    session.break_at("loop", once=True)
    assert session.cont().reason == "break"
    assert session.cont().reason == "halted"


@pytest.mark.parametrize(
    ("place", "line"),
    [("loop", 8), ("loop+1", 9), ("9", 9), ("t.s:10", 10), ("0x100000", 3), ("*_start", 3), ("2", 3)],
)
def test_places(session, place, line):
    assert session.program.line_at(session.locate(place)).line == line


@pytest.mark.parametrize(
    ("place", "message"),
    [("lop", "did you mean loop?"), ("99", "no code at or after line 99"), ("u.s:3", "'u.s'"), ("(", "(")],
)
def test_wrong_places(session, place, message):
    with pytest.raises(VpmuError, match=message.replace("?", r"\?").replace("(", r"\(")):
        session.break_at(place)


@pytest.mark.parametrize("mode", MODES)
def test_watch_stops_after_the_write_with_both_values(mode):
    session = Session(LESSON, vpmu=mode)
    session.watch_msr("IA32_PERF_GLOBAL_CTRL")
    values = []
    while not (stop := session.cont()).ended:
        assert stop.reason == "watch"
        (access,) = stop.accesses
        values.append((access.old, access.value))
        assert "01_count.s:" in access.place
        assert access.place.endswith("wrmsr")
    assert values[1:] == [(0, 0x1_0000_0007), (0x1_0000_0007, 0)]
    assert values[0][1] == 0
    assert stop.reason == "debug-exit"


@pytest.mark.parametrize("mode", MODES)
def test_reads_are_watched_apart_from_writes(mode):
    session = Session(assemble(TEXT, "t.s"), vpmu=mode)
    session.watch_msr("0x186", read=True, write=False)
    stop = session.cont()
    assert [(a.kind, a.value) for a in stop.accesses] == [("rdmsr", 0x4300C0)]
    assert session.cont().reason == "halted"


@pytest.mark.parametrize("mode", MODES)
def test_looking_changes_nothing(mode):
    program = assemble_file(LESSON)
    plain = System(program, vpmu=mode)
    plain.run()
    session = Session(program, vpmu=mode)
    session.watch_msr("IA32_PERF_GLOBAL_CTRL", read=True)
    session.break_at("again")
    for _ in range(10):
        session.step(7)
        session.pmu(), session.registers(), session.msr_traffic(), session.read(0x100000, 8)
    while not session.cont().ended:
        pass
    assert session.system.record() == plain.record()
    assert bytes(session.system.M) == bytes(plain.M)


@pytest.mark.parametrize("go", ["step", "cont"])
def test_ctrl_c_in_a_step_is_a_stop_and_keeps_breakpoints(session, monkeypatch, go):
    second = session.step().rip
    session.break_at(second)
    with monkeypatch.context() as patched:

        def interrupted(ticks):
            raise KeyboardInterrupt

        patched.setattr(session.system, "_turn", interrupted)
        assert getattr(session, go)().reason == "interrupted"
    assert session.rip == second
    assert int(session.system.E.n_break) == 1


WRITES = (
    ("IA32_APIC_BASE", 0xFEE0_0D00), ("IA32_X2APIC_LVT_PMI", 0x50), ("IA32_X2APIC_SIVR", 0x1FF),
    ("IA32_EFER", 0x501), ("IA32_MISC_ENABLE", 0x1800), ("IA32_KERNEL_GS_BASE", 0x1234),
    ("IA32_KERNEL_GS_BASE", 0x99), ("IA32_FIXED_CTR_CTRL", 0xB), ("IA32_PERFEVTSEL0", 0x4300C0),
    ("IA32_PERF_GLOBAL_CTRL", 0x1_0000_0001), ("IA32_FIXED_CTR0", 50), ("IA32_FIXED_CTR0", 1000),
    ("IA32_PMC0", 7), ("IA32_PMC0", 9), ("IA32_A_PMC0", 1 << 40), ("IA32_X2APIC_TPR", 0x20),
    ("IA32_X2APIC_TPR", 0), ("IA32_X2APIC_DIV_CONF", 0xB), ("IA32_STAR", 1 << 40), ("IA32_LSTAR", 0x100000),
    ("IA32_TSC_AUX", 7), ("IA32_TSC_DEADLINE", 0), ("IA32_PERF_GLOBAL_CTRL", 0), ("IA32_PMC0", 3),
)  # fmt: skip
RUNNING = ("IA32_FIXED_CTR0", "IA32_PMC0", "IA32_A_PMC0")
BETWEEN = 3  # instructions from a read to the write of the same register


@pytest.mark.parametrize("mode", MODES)
def test_old_is_what_a_read_would_have_given(mode):
    from vpmu_emu.tables.msrs import by_name

    text = "_start: nop\n"
    for name, value in WRITES:
        text += f"mov ecx, {by_name(name)}\n rdmsr\n mov eax, {value & 0xFFFFFFFF}\n"
        text += f"mov edx, {value >> 32}\n wrmsr\n"
    program = assemble(text + "hlt\n")
    session = Session(program, vpmu=mode, ram=2)
    session.cont()
    found = session.msr_traffic(200)
    assert len(found) == 2 * len(WRITES)
    on = False
    for read, write in zip(found[::2], found[1::2], strict=True):
        assert (read.kind, write.kind, read.index) == ("rdmsr", "wrmsr", write.index)
        counted = BETWEEN if on and write.name in RUNNING else 0
        assert write.old == read.value + counted, write.describe()
        if write.name == "IA32_PERF_GLOBAL_CTRL":
            on = bool(write.value)
    # and looking has changed nothing
    plain = System(program, vpmu=mode, ram=2)
    plain.run()
    assert session.system.record() == plain.record()


@pytest.mark.parametrize("mode", MODES)
def test_the_old_value_of_time_is_that_of_a_read_there(mode):
    seen = []
    for access in ("rdmsr", "wrmsr"):
        text = f"_start: mov ecx, 0x10\n mov eax, 5\n xor edx, edx\n {access}\n hlt\n"
        session = Session(assemble(text), vpmu=mode, ram=2)
        session.cont()
        (found,) = session.msr_traffic()
        seen.append(found.value if access == "rdmsr" else found.old)
    assert seen[0] == seen[1]


def test_what_cannot_be_read_has_no_old_value():
    text = "_start: mov ecx, 0x1b\n rdmsr\n or eax, 0xc00\n wrmsr\n"
    text += "mov ecx, 0x80b\n xor eax, eax\n wrmsr\n hlt\n"
    session = Session(assemble(text), vpmu="bare", ram=2)
    session.cont()
    last = session.msr_traffic()[-1]
    assert (last.name, last.old) == ("IA32_X2APIC_EOI", None)
    assert "old" not in last.describe()


def test_a_stop_at_a_write_does_not_name_a_watch_for_reads(session):
    reads = session.watch_msr("0x186", read=True, write=False)
    writes = session.watch_msr("0x186")
    assert session.cont().text == f"watchpoint {writes.number}"
    assert session.cont().text == f"watchpoint {reads.number}"


def test_a_label_is_a_place_whatever_else_has_its_name():
    session = Session(assemble("_start: nop\ncycles: nop\nstop: hlt\n"), vpmu="bare", ram=2)
    at = session.program.symbols["cycles"]
    assert session.locate("cycles") == at
    assert session.evaluate("mem8(cycles)") == 0x90
    assert session.break_at("stop").address == session.program.symbols["stop"]
    with pytest.raises(VpmuError, match="a name of this program and a value of the run"):
        session.evaluate("cycles + 1")


def test_instructions_are_what_memory_holds():
    source = """
    _start: mov byte ptr [rip + patch], 0x48
            mov word ptr [rip + patch + 1], 0xc0ff
    patch:  nop
            nop
            nop
            hlt
    """
    session = Session(assemble(source), ram=2)
    patch = session.program.symbols["patch"]
    before = [row.split(maxsplit=1)[1] for row in session.instructions(patch, 4)]
    assert [row.split()[-1] for row in before] == ["nop", "nop", "nop", "hlt"]
    session.step(2)
    rows = [row.split(": ")[1] for row in session.instructions(patch, 2)]
    assert [" ".join(row.split()) for row in rows] == ["48 ff c0 inc rax", "f4 hlt"]
    assert len(session.instructions((2 << 20) - 1, 3)) == 1
