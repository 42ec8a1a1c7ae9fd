"""Points wait, are passed over, and hold where their condition does; commands stop where they say."""

from __future__ import annotations

import random

import pytest

from tests.tools.profiles import cases
from vpmu_emu.asm import assemble
from vpmu_emu.debug.session import Session
from vpmu_emu.errors import VpmuError
from vpmu_emu.system import System

pytestmark = pytest.mark.uncompiled

MODES = ("bare", "emulated", "passthrough")
TEXT = """\
        .intel_syntax noprefix
_start: mov ebx, 10
loop:   call twice
        dec ebx
        jnz loop
        mov ecx, 0x186
        xor edx, edx
        mov eax, 0x1111
        wrmsr
        mov eax, 0x2222
        wrmsr
        cpuid
        hlt
twice:  push rbx
        add rsi, rbx
        cmp ebx, 7
        jne out
        call inner
out:    pop rbx
        ret
inner:  nop
        ret
        .data
five:   .quad 5
"""


@pytest.fixture
def session():
    return Session(assemble(TEXT, "t.s"), ram=2)


def at(session, name):
    return session.program.symbols[name]


def test_a_condition_is_asked_at_every_hit(session):
    point = session.break_at("twice", condition="rbx == 4")
    hold = session.cont()
    assert (hold.reason, hold.why.points) == ("break", (point.number,))
    assert session.registers()["rbx"] == 4
    assert point.hits == 1
    session.set_condition(point.number, "rbx < 3 && mem64(five) == 5")
    assert session.cont().reason == "break"
    assert session.registers()["rbx"] == 2
    session.set_condition(point.number, "not rbx")
    assert session.cont().reason == "halted"


def test_ignore_disable_once(session):
    point = session.break_at("loop", ignore=3)
    session.cont()
    assert session.registers()["rbx"] == 7
    assert point.hits == 4
    session.disable(point.number)
    other = session.break_at("inner", once=True)
    assert session.cont().why.points == (other.number,)
    assert [p.number for p in session.points()] == [point.number]
    session.enable(point.number)
    session.set_ignore(point.number, 1)
    session.cont()
    assert session.registers()["rbx"] == 5


def test_step_over_and_finish(session):
    session.step()
    inside = at(session, "loop")
    session.step_over()
    assert session.rip == inside + 5  # the call has five bytes
    session.break_at("inner")
    session.cont()
    session.finish()
    assert session.rip == at(session, "out")
    session.finish()
    assert session.rip == inside + 5
    assert session.registers()["rbx"] == 7


def test_a_breakpoint_inside_of_what_is_stepped_over_holds(session):
    session.step()
    point = session.break_at("out")
    assert session.step_over().why.points == (point.number,)


@pytest.mark.parametrize("mode", MODES)
def test_until(mode):
    session = Session(assemble(TEXT, "t.s"), vpmu=mode, ram=2)
    assert session.until("#17").reason == "until"
    assert session.system.instructions == 17
    session.until("out")
    assert session.rip == at(session, "out")
    session.until("rbx == 3 and rip == twice")
    assert session.registers()["rbx"] == 3
    now = session.tsc()
    session.until("tsc +20")
    assert session.tsc() >= now + 20
    for text, message in (("#1", "done already"), ("tsc 1", "already"), ("#x", "no number")):
        with pytest.raises(VpmuError, match=message):
            session.until(text)


def test_a_watch_with_a_condition(session):
    session.watch_msr("0x186", condition="value == 0x2222 && old == 0x1111")
    hold = session.cont()
    assert [a.value for a in hold.accesses] == [0x2222]


@pytest.mark.parametrize("mode", MODES[1:])
def test_step_exit(mode):
    session = Session(assemble(TEXT, "t.s"), vpmu=mode, ram=2)
    session.until("t.s:8")
    hold = session.step_exit()
    assert hold.why.exit == "MSR_WRITE"
    assert hold.accesses == ()
    assert [a.exited for a in hold.recent] == [True]


def test_why_an_interrupt_handler_begins():
    source = """
    _start: lidt [rip + idtr]
            nop
            ud2
    gp:     nop
            hlt
            .data
            .balign 16
    idt:    .zero 96
            .quad 0x108e0000080000 + 0x1b
            .quad 0
    idtr:   .word 0xfff
            .quad idt
    """
    program = assemble(source)
    gate = program.symbols["gp"]
    low = (gate & 0xFFFF) | 0x08 << 16 | 0x8E << 40 | (gate >> 16 & 0xFFFF) << 48
    session = Session(program, ram=2)
    session.write_memory(program.symbols["idt"] + 6 * 16, low.to_bytes(8, "little"))
    session.step(2)
    hold = session.step()
    assert (hold.why.vector, hold.why.kind, hold.why.error) == (6, "exception", None)
    assert hold.why.interrupted == gate - 2
    assert (hold.why.cpl_before, hold.why.cpl_after) == (0, 0)
    assert session.step().why.vector is None


@pytest.mark.parametrize("mode", MODES)
def test_registers_and_memory_can_be_written(mode):
    session = Session(assemble(TEXT, "t.s"), vpmu=mode, ram=2)
    session.step()
    session.write_register("rbx", 1)
    session.write_register("$rsi", 100)
    session.write_memory(at(session, "twice"), b"\x90")  # no push: the pop takes the return address
    session.write_memory(at(session, "out"), b"\x90")
    session.until("rip == out")
    assert session.registers()["rsi"] == 101
    session.write_register("rip", at(session, "inner"))
    session.write_register("rsp", session.registers()["rsp"])
    assert session.step().rip == at(session, "inner") + 1
    for name, value in (("rbq", 1), ("rax", 1 << 64)):
        with pytest.raises(VpmuError):
            session.write_register(name, value)
    with pytest.raises(VpmuError, match="outside memory"):
        session.write_memory(1 << 40, b"1")


@pytest.mark.parametrize("mode", ["bare", "passthrough"])
def test_commands_change_nothing(mode):
    program = assemble(TEXT, "t.s")
    plain = System(program, vpmu=mode, ram=2)
    plain.run()
    session = Session(program, vpmu=mode, ram=2)
    session.break_at("twice", condition="rbx == 5")
    session.step_over(3)
    session.cont()
    session.finish()
    session.until("#90")
    session.threads(), session.events_since_stop(), session.event_counts()
    while not session.cont().ended:
        pass
    assert session.system.record() == plain.record()
    assert bytes(session.system.M) == bytes(plain.M)


def test_threads():
    session = Session(assemble(TEXT, "t.s"), cores=2, ram=2)
    assert [t.state for t in session.threads()] == ["running", "waits for a startup message"]
    session.select(1)
    assert session.rip == 0
    with pytest.raises(VpmuError, match="no thread 2"):
        session.select(2)
    guest = Session(assemble(TEXT, "t.s"), vpmu="emulated", ram=2)
    assert [t.kind for t in guest.threads()] == ["vcpu", "task"]


@pytest.mark.parametrize("text", ["rbx ==", "1 < rbx < 3", "nosuch == 1", "kvm.entries == 1", "'a'"])
def test_conditions_that_make_no_sense(session, text):
    with pytest.raises(VpmuError):
        session.break_at("loop", condition=text)
    assert session.points() == []


def test_arithmetic_of_conditions_is_that_of_registers(session):
    truths = {"0 - 1 > 5": 1, "7 / 0": 0, "1 << 64": 0, "!(rbx == 0) || 0": 0, "~0 == -1": 1}
    for text, found in truths.items():
        assert session._test(text, {}, {}).value(session._ask) == found, text


def expression(rng, depth=0):
    if depth == 3 or rng.random() < 0.3:
        names = ["rbx", "rsi", "rsp", "rip", "cpl", "rflags & 64", "mem64(five)", str(rng.randrange(60))]
        return rng.choice(names)
    if rng.random() < 0.15:
        return f"{rng.choice('-~')}({expression(rng, depth + 1)})"
    operator = rng.choice(["+", "-", "*", "/", "%", "&", "|", "^", "<<", ">>"])
    return f"({expression(rng, depth + 1)} {operator} {expression(rng, depth + 1)})"


def condition(rng):
    one = (
        f"{'not ' if rng.random() < 0.2 else ''}"
        f"{expression(rng)} {rng.choice(['==', '!=', '<', '<=', '>', '>='])} {expression(rng)}"
    )
    return one if rng.random() < 0.6 else f"{one} {rng.choice(['and', 'or'])} {condition(rng)}"


def test_the_machine_and_the_session_agree_on_conditions():
    rng = random.Random(3)
    program = assemble(TEXT, "t.s")
    for _ in range(cases(day=8, laws=100, night=1000)):
        text = condition(rng)
        session = Session(program, ram=2)
        test = session._test(text, {}, {})
        if not test.compiled:
            continue
        session.break_at("twice")
        holds = []
        while not session.cont().ended:
            if test.value(session._ask):
                holds.append(session.registers()["rbx"])
        session = Session(program, ram=2)
        session.break_at("twice", condition=text)
        found = []
        while not session.cont().ended:
            found.append(session.registers()["rbx"])
        assert found == holds, text
