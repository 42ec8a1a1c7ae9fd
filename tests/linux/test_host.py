"""linux/host.py and linux/sched.py: who runs, for how long; and no policy of the engine is seen."""

from __future__ import annotations

import pytest

from vpmu_emu.asm import assemble
from vpmu_emu.linux.state import N_MMS, TASK_RUNNING
from vpmu_emu.system import System

pytestmark = [pytest.mark.uncompiled, pytest.mark.inner]

RAM = 2
TICK = 30_000 * 16  # of these tests, in 1/16 cycle: shorter than 4 ms
SLICE = 25_000 * 16
# A guest that counts to `turns` and ends the run; programs of the host that count for ever. Divisions make
# time pass in few instructions.
TEXT = """
_start:
    mov ebx, {turns}
    mov esi, 3
1:  inc qword ptr [guest_count]
    .rept 4
    div rsi
    .endr
    dec ebx
    jnz 1b
    {then}
    mov al, 0
    out 0xF4, al
task1:
    mov esi, 3
1:  inc qword ptr [count1]
    .rept 4
    div rsi
    .endr
    jmp 1b
task2:
    mov esi, 3
2:  inc qword ptr [count2]
    .rept 4
    div rsi
    .endr
    jmp 2b
    .data
guest_count: .quad 0
count1: .quad 0
count2: .quad 0
"""


def machine(turns=1_000, then="", cores=1, tasks=(("task1", 1),), mode="emulated", quantum=1, **options):
    """A run with tasks of the host beside the vCPU's: (symbol, affinity); `quantum` in cycles."""
    program = assemble(TEXT.format(turns=turns, then=then), "host")
    system = System(program, vpmu=mode, cores=cores, ram=RAM, **options)
    S = system.S
    S.config.tick_interval = TICK
    S.config.sched_slice = SLICE
    S.config.quantum = quantum * 16
    for k, (symbol, allowed) in enumerate(tasks, 1):
        task = S.tasks[k]
        task.used = 1
        task.program = 1  # not the VMM's
        task.pid = task.tgid = k + 1
        task.mm = N_MMS - k  # no page tables: memory as the machine has it
        task.vruntime = S.tasks[0].vruntime
        task.state = TASK_RUNNING
        task.on_cpu = task.vcpu = -1
        task.allowed = allowed
        task.cpu = 0 if allowed & 1 else 1
        task.rip = program.symbols[symbol]
        task.rflags = 0x202
    if tasks:
        S.percpu[0].tick_at = S.cores[0].t + TICK
        S.percpu[0].slice_end = 0
    # what the VMM did before its guest
    system.before = (int(S.tasks[0].sum_exec), int(S.cores[0].stats.task_insns))
    return system


def user_insns(system, cpu):
    """Instructions that programs of the host, the VMM apart, retired on a core."""
    return int(system.S.percpu[cpu].user_insns)


def memory(system, name):
    return int.from_bytes(system.read(system.program.symbols[name], 8), "little")


@pytest.mark.parametrize("mode", ["none", "emulated", "passthrough", "mediated"])
def test_two_tasks_share_a_core_fairly(mode):
    system = machine(mode=mode)
    assert system.run().reason == "debug-exit"
    vmm, other = (int(system.S.tasks[k].sum_exec) for k in (0, 1))
    vmm -= system.before[0]
    assert memory(system, "guest_count") == 1_000
    assert memory(system, "count1") > 500
    assert abs(vmm - other) <= 2 * (SLICE + TICK)
    assert int(system.S.tasks[1].switches) >= 2


def test_what_tasks_retire_is_theirs():
    system = machine()
    system.run()
    S = system.S
    loops = memory(system, "count1")
    assert loops
    assert 6 * loops - 6 < user_insns(system, 0) < 6 * loops + 6
    # the rest is the VMM's, which ends the run
    assert 0 < int(S.cores[0].stats.task_insns) - system.before[1] - user_insns(system, 0) < 600
    # turns of seven instructions, and four more before and after
    assert system.instructions == 7 * 1_000 + 4
    parts = system.cycles_by()
    assert parts["guest"] < 1_000 * 70 < parts["guest"] + parts["tasks"]
    assert sum(parts.values()) == int(S.cores[0].t) >> 4


def test_an_idle_core_takes_a_waiting_task():
    system = machine(cores=2, quantum=2_000, tasks=(("task1", 3),))
    system.run()
    S = system.S
    assert int(S.tasks[1].cpu) == 1
    assert int(S.tasks[1].migrations) == 1
    assert user_insns(system, 0) < 300 < user_insns(system, 1)
    # the cores keep together, but for one piece of the kernel's work
    assert abs(int(S.cores[0].t) - int(S.cores[1].t)) < 16 * 20_000


@pytest.mark.laws
def test_affinity_holds():
    system = machine(cores=2, quantum=2_000, tasks=(("task1", 1), ("task2", 2)))
    system.run()
    S = system.S
    assert [int(S.tasks[k].cpu) for k in (1, 2)] == [0, 1]
    assert memory(system, "count1")
    assert memory(system, "count2")
    assert [int(S.tasks[k].migrations) for k in (1, 2)] == [0, 0]
    # alone on its core, it has as much as the two others together
    assert memory(system, "count2") > memory(system, "count1")


@pytest.mark.parametrize("cores", [1, 2])
def test_slices_are_not_seen(cores):
    whole = machine(turns=300, cores=cores)
    whole.run()
    sliced = machine(turns=300, cores=cores)
    while sliced._turn(7_777) == 100:
        pass
    assert whole.record() == sliced.record()


@pytest.mark.parametrize("policy", [{"horizon": 1}, {"horizon": 50, "horizon_seed": 7}])
def test_horizons_are_not_seen(policy):
    plain = machine(turns=200, cores=2, tasks=(("task1", 1), ("task2", 3)))
    plain.run()
    other = machine(turns=200, cores=2, tasks=(("task1", 1), ("task2", 3)), **policy)
    other.run()
    assert plain.record() == other.record()


def test_all_asleep_is_the_end():
    system = machine(turns=10, then="hlt", tasks=())
    assert system.run().reason == "halted"


def test_a_sleeping_guest_leaves_the_core_to_others():
    # HLT with nothing that could wake it: the other task goes on for ever, until Python stops asking
    system = machine(turns=10, then="hlt")
    while memory(system, "count1") < 300:
        assert system._turn(1 << 14) == 100
    assert int(system.S.tasks[0].on_cpu) == -1
    assert system.instructions == 7 * 10 + 3


def test_a_step_is_the_guests():
    system = machine(turns=200)
    before = memory(system, "guest_count")
    for _ in range(10):
        system.step()
    assert system.instructions == 10
    assert memory(system, "guest_count") - before == 2
