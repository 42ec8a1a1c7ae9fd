"""MSR watchpoints, memory watchpoints and catchpoints hold where they say, and cost the guest nothing."""

from __future__ import annotations

import random

import pytest

from tests.conftest import ROOT
from tests.tools.profiles import cases
from vpmu_emu.asm import assemble, assemble_file
from vpmu_emu.debug.session import CAUGHT, OF_HOST, Session
from vpmu_emu.errors import VpmuError
from vpmu_emu.system import System

pytestmark = pytest.mark.uncompiled

MODES = ("bare", "emulated", "passthrough", "mediated")
EVERY = {
    "bare": {"vpmu": "bare"}, "none": {"vpmu": "none"}, "emulated": {"vpmu": "emulated"},
    "passthrough": {"vpmu": "passthrough"}, "all": {"vpmu": "passthrough", "all_passthrough": True},
    "mediated": {"vpmu": "mediated"},
}  # fmt: skip
PMI = ROOT / "guests" / "lessons" / "03_overflow_pmi.s"
TEXT = """\
        .intel_syntax noprefix
_start: mov ecx, 0x186
        xor edx, edx
        mov eax, 0x4300c0
        wrmsr
        wrmsr
        rdmsr
        mov ecx, 0xc1
        mov eax, 5
        wrmsr
        rdmsr
        xor ecx, ecx
        rdpmc
        rdpmc
        lea rsi, [rip + place]
        mov dword ptr [rsi + 4], 7
        mov rax, [rsi]
        mov byte ptr [rsi + 8], 1
        push rax
        mov ecx, 0x38f
        xor eax, eax
        wrmsr
        hlt
        .bss
        .balign 64
place:  .zero 64
"""


def made(mode="bare", text=TEXT, **more):
    return Session(assemble(text, "t.s"), vpmu=mode, ram=2, **more)


def stops(session):
    found = []
    while not (hold := session.cont()).ended:
        found.append(hold)
    return found


def accesses(session):
    return [(a.kind, a.msr, a.value) for hold in stops(session) for a in hold.accesses]


@pytest.mark.parametrize("mode", MODES)
def test_ranges_values_changes(mode):
    session = made(mode)
    session.watch_msr("IA32_PERFEVTSEL0..0x187", value=0xC0, mask=0xFF, changes=True)
    assert accesses(session) == [("wrmsr", 0x186, 0x4300C0)]
    session = made(mode)
    session.watch_msr("all", read=True)
    found = accesses(session)
    assert [f[:2] for f in found] == [
        ("wrmsr", 0x186), ("wrmsr", 0x186), ("rdmsr", 0x186), ("wrmsr", 0xC1), ("rdmsr", 0xC1),
        ("rdpmc", 0xC1), ("rdpmc", 0xC1), ("wrmsr", 0x38F),
    ]  # fmt: skip
    session = made(mode)
    session.watch_msr("IA32_PMC0", read=True, write=False)
    assert [f[0] for f in accesses(session)] == ["rdmsr", "rdpmc", "rdpmc"]


@pytest.mark.parametrize("mode", MODES)
def test_before_and_after(mode):
    session = made(mode)
    point = session.watch_msr(0x186, stage="before", condition="value == 0x4300c0")
    hold = session.cont()
    assert hold.why.points == (point.number,)
    assert session.instruction(hold.rip).text == "wrmsr"
    assert session.read_msr(0x186) == 0
    (access,) = hold.accesses
    assert (access.pending, access.value) == (True, 0x4300C0)
    assert session.cont().rip == hold.rip + 2  # the second one
    assert session.read_msr("IA32_PERFEVTSEL0") == 0x4300C0
    assert session.cont().ended


@pytest.mark.parametrize("mode", ["bare", "emulated", "passthrough"])
def test_accesses_that_fault_are_watched(mode):
    for access, ecx in (("rdmsr", 0x12345), ("wrmsr", 0x12345), ("rdpmc", 30)):
        session = made(mode, f"_start: mov ecx, {ecx}\n {access}\n hlt\n")
        session.watch_msr("all", read=True)
        (session.cont(),)
        last = session.msr_traffic()[-1]
        assert (last.kind, last.index, last.fault) == (access, ecx, True)


@pytest.mark.parametrize("mode", MODES)
def test_memory(mode):
    session = made(mode)
    place = session.program.symbols["place"]
    session.watch_memory("place", 8)
    (hold,) = stops(session)
    assert session.program.line_at(hold.rip).line == 17
    session = made(mode)
    session.watch_memory(place + 6, 3, read=True, condition="mem32(place + 4) == 7")
    assert [session.program.line_at(hold.rip).line for hold in stops(session)] == [17, 18, 19]
    session = made(mode)
    session.watch_memory((2 << 20) - 16, 8)
    (hold,) = stops(session)  # the push
    assert session.program.line_at(hold.rip).line == 20


@pytest.mark.parametrize("mode", MODES)
def test_catches(mode):
    there = [kind for kind in CAUGHT if mode != "bare" or kind not in OF_HOST]
    for kind in there:
        session = Session(PMI, vpmu=mode, ram=2)
        point = session.catch(kind)
        holds = stops(session)
        assert all(hold.why.points == (point.number,) for hold in holds)
        expected = {"pmi", "overflow", "interrupt", "exit", "entry", "switch"}
        if mode == "emulated":
            expected = (expected | {"perf-state"}) - {"switch"}
        assert not expected.intersection([kind]) or holds, kind
        if kind == "interrupt":
            assert session.event_counts() is not None
            assert {hold.why.kind for hold in holds} == {"interrupt"}
            assert all(hold.why.vector for hold in holds)


def test_catch_conditions():
    session = Session(PMI, vpmu="emulated", ram=2)
    session.catch("exit", "reason == MSR_WRITE and qualification == 0")
    session.catch("perf-state", "after == ERROR")
    holds = stops(session)
    assert {hold.why.exit for hold in holds} == {"MSR_WRITE"}
    with pytest.raises(VpmuError):
        session.catch("exits")
    with pytest.raises(VpmuError, match="has no exit"):
        made().catch("exit")


@pytest.mark.parametrize("name", EVERY)
def test_old_values_are_what_rdmsr_gives_right_before(name):
    registers = [
        ("IA32_PERFEVTSEL0", 0x4300C0), ("IA32_PERFEVTSEL1", 0x43003C), ("IA32_PMC0", 0xFFFF),
        ("IA32_PMC1", 0x7FFF), ("IA32_FIXED_CTR0", 0xFFFF), ("IA32_FIXED_CTR_CTRL", 0x33),
        ("IA32_PERF_GLOBAL_CTRL", 0x1_0000_0003), ("IA32_KERNEL_GS_BASE", 0xFFFF), ("IA32_TSC_AUX", 0xFF),
        ("IA32_MISC_ENABLE", 0), ("IA32_LSTAR", 0xFFFF), ("IA32_TSC_DEADLINE", 0),
        ("IA32_TIME_STAMP_COUNTER", 0xFFFFFF),
    ]  # fmt: skip
    if name == "none":
        registers = registers[7:]
    from vpmu_emu.tables.msrs import by_name

    rng = random.Random(name)
    count = cases(day=10, laws=200, night=1000)
    text = "_start: nop\n"
    for _ in range(count):
        msr, bits = rng.choice(registers)
        value = bits if msr == "IA32_MISC_ENABLE" else rng.randrange(bits + 1) if bits & 1 else bits
        value = 0x1801 if msr == "IA32_MISC_ENABLE" else value
        if msr.startswith(("IA32_PERFEVTSEL", "IA32_FIXED_CTR_CTRL", "IA32_PERF_GLOBAL_CTRL")):
            value = bits & rng.choice((0, (1 << 64) - 1))
        text += f"mov ecx, {by_name(msr)}\n mov eax, {value & 0xFFFFFFFF}\n"
        text += f"mov edx, {value >> 32}\n wrmsr\n" + "nop\n" * rng.randrange(3)
    program = assemble(text + "hlt\n")
    session = Session(program, ram=2, **EVERY[name])
    before, after = session.watch_msr("all", stage="before"), session.watch_msr("all")
    seen = 0
    while not (hold := session.cont()).ended:
        assert hold.why.points == (before.number,)
        expected = session.read_msr(hold.accesses[0].index)
        hold = session.cont()
        assert hold.why.points == (after.number,)
        (access,) = hold.accesses
        assert access.old == expected, access.describe()
        seen += 1
    assert seen == count
    plain = System(program, ram=2, **EVERY[name])
    plain.run()
    assert session.system.record() == plain.record()


@pytest.mark.parametrize("mode", MODES)
def test_an_msr_is_written(mode):
    session = made(mode)
    session.step(4)
    rip, registers = session.rip, session.registers()
    session.write_msr("IA32_PERFEVTSEL1", 0x43003C)
    assert (session.rip, session.registers()) == (rip, registers)
    assert session.read_msr("IA32_PERFEVTSEL1") == 0x43003C
    with pytest.raises(VpmuError, match="raises #GP"):
        session.write_msr("IA32_PERFEVTSEL1", 1 << 63)
    assert session.read_msr(0x12345) is None
    assert session.evaluate("rcx") == 0x186
    session.until("IA32_PMC0 == 5 and rip == place - 0 or IA32_PMC0 == 5")
    assert session.cont().ended


@pytest.mark.parametrize("mode", MODES)
def test_watching_changes_nothing(mode):
    program = assemble_file(PMI)
    plain = System(program, vpmu=mode, ram=2)
    plain.run()
    session = Session(program, vpmu=mode, ram=2)
    session.watch_msr("all", read=True, condition="value == 1")
    session.watch_msr("all", read=True, stage="before", condition="index == 1")
    session.watch_memory("rsp - 4096", 4096, read=True, condition="rbx == 1")
    session.break_at("_start", condition="rax == 1")
    for kind in CAUGHT:
        if mode != "bare" or kind not in OF_HOST:
            session.catch(kind, "cpl == 1")
    session.until("rip == 1")
    for _ in range(5):
        session.read_msr("IA32_PERF_GLOBAL_CTRL")
        session.step(3)
    while not session.cont().ended:
        pass
    assert session.system.record() == plain.record()
    assert bytes(session.system.M) == bytes(plain.M)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda s: s.watch_msr("1..2..3"), "no range"),
        (lambda s: s.watch_msr("2..1"), "empty"),
        (lambda s: s.watch_msr(1 << 32), "not what ECX can hold"),
        (lambda s: s.watch_msr(1, read=False, write=False), "neither"),
        (lambda s: s.watch_msr(1, stage="during"), "no stage"),
        (lambda s: s.watch_msr(1, stage="before", changes=True), "not known before"),
        (lambda s: s.watch_msr(1, mask=1), "a mask is for a value"),
        (lambda s: s.watch_msr(1, value=1 << 64), "more than 64 bits"),
        (lambda s: s.watch_memory(1, 0), "cannot be watched"),
        (lambda s: s.watch_memory("nosuch"), "nosuch"),
        (lambda s: s.write_msr(1, 1 << 64), "has more than 64"),
        (lambda s: [s.watch_memory(k * 8) for k in range(9)], "8 watchpoints on memory already"),
        (lambda s: [s.watch_msr(k) for k in range(17)], "16 watchpoints already"),
        (lambda s: [s.catch("nmi") for k in range(17)], "no room"),
    ],
)
def test_what_cannot_be_watched(ask, message):
    session = made()
    with pytest.raises(VpmuError, match=message):
        ask(session)
    assert not session.step().ended


@pytest.mark.parametrize("mode", ["bare", "emulated"])
def test_ctrl_c_while_an_msr_is_asked_for_leaves_nothing(mode, monkeypatch):
    session = made(mode)
    session.step(3)
    here = session.system.record(), bytes(session.system.M)

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(session.system, "go_on", interrupted)
        for ask in (lambda: session.read_msr(0x186), lambda: session.write_msr(0x186, 0)):
            with pytest.raises(KeyboardInterrupt):
                ask()
            assert (session.system.record(), bytes(session.system.M)) == here
    assert session.read_msr(0x186) == 0
    assert session.step().reason == "step"


def test_a_condition_that_is_asked_about_very_often_is_told_so(monkeypatch):
    monkeypatch.setattr("vpmu_emu.debug.session.MANY", 20)
    text = "_start: mov ebx, {}\nloop: mov ecx, 0xc1\n xor edx, edx\n wrmsr\n dec ebx\n jnz loop\n hlt\n"
    for rounds, told in ((10, False), (40, True)):
        session = made(text=text.format(rounds))
        session.watch_msr("IA32_PMC0", condition="exits.HLT == 1")
        assert (f"note: {rounds} stops did not hold, " in session.cont().text) == told
        session.delete()
        session.restart()
        session.watch_msr("IA32_PMC0", condition="value == 1 << 40")  # the machine knows by itself
        assert "did not hold" not in session.cont().text
