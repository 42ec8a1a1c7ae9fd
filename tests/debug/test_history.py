"""Whatever was is had again, byte for byte: a step back, the last stop, a checkpoint, the start."""

from __future__ import annotations

import random

import pytest

from benchmarks import reverse
from tests.conftest import ROOT
from tests.tools.profiles import cases
from vpmu_emu.asm import assemble, assemble_file
from vpmu_emu.debug.history import History
from vpmu_emu.debug.session import Session
from vpmu_emu.errors import VpmuError
from vpmu_emu.system import System

pytestmark = pytest.mark.uncompiled

MODES = ("bare", "none", "emulated", "passthrough", "mediated")
TEXT = """\
        .intel_syntax noprefix
_start: mov ebx, 40
        lea rsi, [rip + place]
loop:   mov [rsi], rbx
        add rsi, 512
        mov ecx, 0x186
        xor edx, edx
        lea eax, [rbx + 0x430000]
        wrmsr
        rdtsc
        mov [rsi + 8], eax
        mov ecx, 0
        rdpmc
        dec ebx
        jnz loop
        mov al, 0
        out 0xf4, al
        .bss
place:  .zero 32768
"""


def made(mode="bare", text=TEXT, **more):
    return Session(assemble(text, "t.s"), vpmu=mode, ram=2, **more)


def state(session):
    return session.system.record(), bytes(session.system.M)


@pytest.fixture(autouse=True)
def _dense(monkeypatch):
    """States are kept at every slice, and are few."""
    monkeypatch.setattr("vpmu_emu.debug.history.SPACING", 0.0)
    monkeypatch.setattr("vpmu_emu.debug.history.MOST_MARKS", 5)


@pytest.mark.parametrize("mode", MODES)
def test_a_step_back_undoes_a_step(mode):
    session = made(mode)
    seen = []
    for _ in range(cases(day=16, laws=300, night=600, uncompiled=30)):
        seen.append((state(session), session.rip))
        if session.step().ended:
            break
    for record, rip in reversed(seen):
        hold = session.reverse_step()
        assert hold.rip == rip
        assert state(session) == record
    assert session.reverse_step().reason == "start"
    assert state(session) == seen[0][0]


@pytest.mark.parametrize("mode", ["bare", "emulated", "passthrough"])
def test_many_steps_back_and_forth(mode):
    plain = System(assemble(TEXT, "t.s"), vpmu=mode, ram=2)
    plain.run()
    session = made(mode)
    rng = random.Random(mode)
    seen = {}
    for _ in range(cases(day=3, laws=40, night=100)):
        number = rng.randrange(session.system.instructions, 440)
        session.until(f"#{number}")
        session.step()
        before = state(session)
        count = rng.randrange(1, 30)
        session.step(count)
        seen[session.checkpoint()] = state(session)
        session.reverse_step(count)
        assert state(session) == before
        number = rng.choice(list(seen))
        session.goto_checkpoint(number)
        assert state(session) == seen[number]
        session.restart()
    while not session.cont().ended:
        pass
    assert state(session)[0] == plain.record()


@pytest.mark.parametrize("mode", ["bare", "emulated", "passthrough", "mediated"])
def test_reverse_continue_stops_where_continue_did(mode):
    session = made(mode)
    session.break_at("loop", condition="rbx % 7 == 3")
    session.watch_msr("0x186", condition="value % 5 == 0")
    seen = []
    while not (hold := session.cont()).ended:
        seen.append((hold.rip, hold.why.points, state(session)))
    assert len(seen) > 10
    for rip, points, record in reversed(seen):
        hold = session.reverse_cont()
        assert (hold.rip, hold.why.points) == (rip, points)
        assert state(session) == record
    assert session.reverse_cont().reason == "start"
    assert session.cont().rip == seen[0][0]


def test_reverse_to():
    session = made()
    session.until("#100")
    at_100 = state(session)
    session.until("#300")
    session.reverse_to("#100")
    assert state(session) == at_100
    session.until("#300")
    hold = session.reverse_to("rbx == 30")
    assert session.registers()["rbx"] == 30
    session.step()
    assert session.registers()["rbx"] == 29 or hold.rip != 0
    session.until("#300")
    session.reverse_to("loop")
    assert session.rip == session.program.symbols["loop"]
    now = session.tsc()
    session.reverse_to(f"tsc {now - 50}")
    assert now - 60 < session.tsc() < now
    for text in ("#400", f"tsc {now * 2}"):
        with pytest.raises(VpmuError, match="only"):
            session.reverse_to(text)
    with pytest.raises(VpmuError, match="no checkpoint 7"):
        session.goto_checkpoint(7)


@pytest.mark.parametrize("mode", ["bare", "emulated", "passthrough"])
def test_what_was_written_is_written_again(mode):
    session = made(mode)
    session.until("#50")
    session.step()
    session.write_register("rbx", 20)
    session.write_memory(0x1000, b"abc")
    session.step(30)
    session.write_msr("0x186", 0x4300C4)
    session.step(10)
    after = state(session)
    session.step(25)
    session.reverse_step(25)
    assert state(session) == after
    assert session.read(0x1000, 3) == b"abc"
    session.reverse_to("#51")
    assert session.registers()["rbx"] == 20
    session.reverse_step(10)
    assert session.read(0x1000, 3) == bytes(3)
    session.step(10)  # what was written later is not any more
    assert session.registers()["rbx"] != 20
    session.restart()
    while not session.cont().ended:
        pass
    plain = System(assemble(TEXT, "t.s"), vpmu=mode, ram=2)
    plain.run()
    assert session.system.record() == plain.record()


def test_the_end_can_be_left():
    session = made()
    while not session.cont().ended:
        pass
    end = state(session)
    session.reverse_step()
    assert session.instruction(session.rip).text.startswith("out")
    assert session.cont().ended
    assert state(session) == end


def test_events_that_a_later_past_has_overwritten_are_not_told(monkeypatch):
    session = made()
    monkeypatch.setattr("vpmu_emu.debug.history.N_RING", 64)
    while not session.cont().ended:
        pass
    head = int(session.system.E.ring_head)
    session.restart()
    assert session.recent_events() == []
    session.until("#200")
    assert 0 < int(session.system.E.ring_head) < head
    assert session.recent_events()


@pytest.mark.parametrize("cores", [2])
def test_cores(cores):
    program = assemble_file(ROOT / "guests" / "lessons" / "01_count.s")
    session = Session(program, cores=cores, ram=2)
    seen = []
    for _ in range(cases(day=10, laws=60, night=60)):
        seen.append(state(session))
        session.step()
    for record in reversed(seen):
        session.reverse_step()
        assert state(session) == record


def test_states_are_thinned_out():
    session = made()
    while not session.step(3).ended:
        pass
    history = session.history
    assert isinstance(history, History)
    assert len(history._marks) <= 6
    assert history._marks[0].position == history.start


@pytest.mark.parametrize("mode", ["bare", "emulated"])
def test_anywhere_in_a_long_run(mode, monkeypatch):
    monkeypatch.setattr("vpmu_emu.debug.history.SPACING", 0.001)
    monkeypatch.setattr("vpmu_emu.debug.history.MOST_MARKS", 128)
    length = cases(day=3_000_000, laws=5_000_000, night=100_000_000, uncompiled=2_000)
    found = reverse.measure(length, cases(day=3, laws=100, night=1000), mode)
    assert found["states"] > 1 or length < 1_000_000


@pytest.mark.laws
def test_until_is_as_fast_as_the_interpreter():
    found = reverse.measure(20_000_000, 2)
    assert found["until_mips"] > found["plain_mips"] / 2
    assert found["median"] < 0.5  # 50 ms where nothing else runs


@pytest.mark.laws
@pytest.mark.parametrize("mode", ["emulated", "passthrough", "mediated"])
@pytest.mark.parametrize("cores", [1, 2])
def test_beside_a_program_of_the_host(mode, cores):
    program = assemble_file(ROOT / "guests" / "lessons" / "03_overflow_pmi.s")
    host = ROOT / "guests" / "host" / "noisy_neighbour.s"
    session = Session(program, vpmu=mode, cores=cores, ram=2, host=[host])
    seen = []
    for _ in range(cases(day=20, laws=60, night=300)):
        seen.append(state(session))
        session.step()
    for record in reversed(seen):
        session.reverse_step()
        assert state(session) == record
