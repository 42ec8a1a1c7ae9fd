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
    rounds = cases(day=40, laws=40, night=40, uncompiled=10)
    session = made(mode, TEXT.replace("mov ebx, 40", f"mov ebx, {rounds}"))
    session.break_at("loop", condition="rbx % 7 == 3")
    session.watch_msr("0x186", condition="value % 5 == 0")
    seen = []
    while not (hold := session.cont()).ended:
        seen.append((hold.rip, hold.why.points, state(session)))
    assert len(seen) > rounds // 4
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


TWO = """\
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .text
_start: lapic_enable_x2apic
        mov ecx, IA32_X2APIC_ICR
        mov eax, 3 << 18 | 0x4500
        xor edx, edx
        wrmsr
        lea rax, [rip + second]
        mov word ptr [0x8000], 0xb848  # mov rax, imm64
        mov [0x8002], rax
        mov word ptr [0x800a], 0xe0ff  # jmp rax
        mov eax, 3 << 18 | 0x4608
        wrmsr
        mov ebx, 4000
first:  lock inc dword ptr [rip + both]
        dec ebx
        jnz first
        debug_exit 0
        .balign 4096
second: mov ebx, 20
again:  lock inc dword ptr [rip + both]
        mov ecx, 0x186
        lea eax, [rbx + 0x430000]
        xor edx, edx
        wrmsr
        dec ebx
        jnz again
halt:   hlt
        jmp halt
        .bss
both:   .zero 8
"""


def test_a_breakpoint_of_the_second_core():
    session = Session(assemble(TWO, "two.s"), cores=2, ram=2)
    session.break_at("again", condition="rbx <= 10 and rbx > 7")
    session.watch_msr("0x186", condition="value == 0x43000c")
    seen = []
    while not (hold := session.cont()).ended:
        assert session.threads()[1].current
        seen.append((hold.rip, session.registers()["rbx"], state(session)))
    assert [rbx for _, rbx, _ in seen] == [12, 10, 9, 8]
    for rip, rbx, record in reversed(seen):
        hold = session.reverse_cont()
        assert (hold.rip, session.registers()["rbx"]) == (rip, rbx)
        assert state(session) == record
    session.write_register("rbx", 3)
    session.until("halt")
    assert session.threads()[1].current
    assert session.registers()["rbx"] == 0
    session.select(0)
    assert session.registers()["rbx"] > 0


@pytest.mark.laws
def test_beside_threads_of_another_vmm():
    program = assemble_file(ROOT / "guests" / "lessons" / "07_contention.s")
    host = ROOT / "guests" / "host" / "vcpu_threads.s"
    session = Session(program, vpmu="emulated", cores=2, host=[host])
    session.until("#200")
    seen = []
    for _ in range(cases(day=20, laws=60, night=200)):
        seen.append(state(session))
        session.step()
    for record in reversed(seen):
        session.reverse_step()
        assert state(session) == record
    assert [t.kind for t in session.threads()].count("vcpu") == 2


def test_ctrl_c_on_the_way_back_is_where_it_was(monkeypatch):
    session = made()
    session.until("#200")
    here, rip = state(session), session.rip
    session.break_at("loop")

    def interrupted(self, *_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(History, "before", interrupted)
        patched.setattr(History, "beginnings", interrupted)
        for back in (session.reverse_step, session.reverse_cont):
            hold = back()
            assert (hold.reason, hold.rip) == ("interrupted", rip)
            assert state(session) == here
    assert session.reverse_cont().reason == "break"


def test_a_breakpoint_behind_a_watch_that_does_not_hold_is_met():
    session = made()
    session.watch_msr("0x186", condition="exits.HLT == 1")  # asked at the stop
    session.break_at("t.s:9")  # behind the WRMSR
    assert session.cont().rip == session.locate("t.s:9")
    session.until("#100")
    assert session.reverse_cont().rip == session.locate("t.s:9")


def command(rng, session):
    """One thing that a user may do: its words, and how it is done."""
    labels = [name for name in session.program.symbols if name not in session.program.equates]
    place, number = rng.choice(labels), rng.choice((1, 1, 2, 20, 200))
    done = session.system.instructions
    msr = rng.choice(("IA32_PERF_GLOBAL_CTRL", "0x186", "0xc1", "0x12345"))
    when = rng.choice(("", "", "rax > 3", "cpl == 0"))
    return rng.choice(
        [
            ("step", lambda: session.step(number)),
            ("step_over", session.step_over),
            ("step_exit", session.step_exit),
            ("cont", session.cont),
            ("finish", session.finish),
            ("until", lambda: session.until(rng.choice((f"#{done + 500}", place, "rax == 0", "tsc +99")))),
            ("reverse_step", lambda: session.reverse_step(number)),
            ("reverse_step", session.reverse_step),
            ("reverse_cont", session.reverse_cont),
            ("reverse_to", lambda: session.reverse_to(rng.choice((f"#{done // 2}", place, "rbx == 1")))),
            ("restart", session.restart),
            ("checkpoint", session.checkpoint),
            ("goto_checkpoint", lambda: session.goto_checkpoint(rng.randrange(1, 4))),
            ("break", lambda: session.break_at(place, rng.random() < 0.3, when, rng.choice((0, 0, 2)))),
            ("watch", lambda: session.watch_msr("all", read=True, condition="value > 3")),
            ("before", lambda: session.watch_msr("all", stage="before")),
            ("memory", lambda: session.watch_memory(place, 8, read=rng.random() < 0.5)),
            ("catch", lambda: session.catch(rng.choice(("exception", "interrupt", "exit", "switch")))),
            ("delete", session.delete),
            ("read_msr", lambda: session.read_msr(msr)),
            ("write_msr", lambda: session.write_msr(msr, rng.choice((0, 0x4300C0)))),
            ("write_register", lambda: session.write_register("rbx", number)),
        ]
    )


@pytest.mark.parametrize("mode", MODES)
def test_whatever_is_done_the_run_is_as_it_was(mode):
    rng = random.Random(mode)
    lessons = sorted((ROOT / "guests" / "lessons").glob("0[1-7]*.s"))
    for _ in range(cases(day=1, laws=15, night=300, uncompiled=0)):
        program = assemble_file(rng.choice(lessons))
        plain = System(program, vpmu=mode, max_insns=100_000)
        plain.run()
        session = Session(program, vpmu=mode, max_insns=100_000)
        log = []
        for _ in range(rng.randrange(5, 30)):
            words, do = command(rng, session)
            try:
                do()
            except VpmuError as error:
                words += f": {error}"
            log.append(words)
            assert session._here.order == sum(int(core.t) for core in session.system.cores), log
        session.delete()
        session.restart()
        while not session.cont().ended:
            pass
        assert session.system.record() == plain.record(), log
