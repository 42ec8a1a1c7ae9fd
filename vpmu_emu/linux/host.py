"""What a core of the host does next: the core that is behind in time gets a turn, its current task runs.

A turn ends when the core is a quantum ahead of the next one, or has given another one something to do.
It is in the record, `core.turn` and `turn_end`; no policy of the engine moves turns.
kernel/sched/core.c, arch/x86/entry.
"""

from __future__ import annotations

from vpmu_emu._jit import jit
from vpmu_emu.linux import state
from vpmu_emu.linux.charge import charge
from vpmu_emu.linux.hrtimer import host_timer_program
from vpmu_emu.linux.kvm.emulate import complete_emulated_io, is_emulated_io
from vpmu_emu.linux.kvm.ioctl import kvm_run_begins, kvm_run_ends
from vpmu_emu.linux.kvm.run import KVM_EXIT_INTR, immediate_exit
from vpmu_emu.linux.kvm.vcpu import (
    COST_IOCTL,
    host_irqs_enable,
    kvm_sched_in,
    vcpu_load,
    vcpu_put,
)
from vpmu_emu.linux.kvm.vmx.exits import complete_userspace_io
from vpmu_emu.linux.lkdtm import lockup_spin, nothing_can_happen
from vpmu_emu.linux.native import cost
from vpmu_emu.linux.percpu import this_core, this_cpu
from vpmu_emu.linux.perf.clocks import PERF_COUNT_SW_PAGE_FAULTS
from vpmu_emu.linux.perf.event import perf_init
from vpmu_emu.linux.perf.pmi import handle_nmis
from vpmu_emu.linux.perf.sched import perf_event_task_sched
from vpmu_emu.linux.perf.swevent import perf_sw_event
from vpmu_emu.linux.sched import (
    nr_running,
    pick_next_task,
    pull_task,
    tick_nohz_idle,
    tick_start,
    update_curr,
)
from vpmu_emu.linux.space import task_space
from vpmu_emu.linux.trace_kinds import TR_SCHED_SWITCH
from vpmu_emu.machine import state as machine
from vpmu_emu.machine.engine import guest_work, run_core
from vpmu_emu.machine.lapic import lapic_pending
from vpmu_emu.machine.pmu import C_CYCLES, C_INST, pmi_arrives
from vpmu_emu.machine.ring import emit
from vpmu_emu.machine.smp import first_due, see_new_code
from vpmu_emu.machine.u64 import ALL, ONE, U64, ZERO
from vpmu_emu.machine.vectors import VECTOR_PF

COST_CONTEXT_SWITCH = cost("context_switch")
COST_SYSCALL = cost("syscall")
COST_EXCEPTION = cost("exc_page_fault")

VMM = 0  # its index among the programs
HOST_GUEST = 120  # the current task is in KVM_RUN: its vCPU's turn
_VECTOR = 0xFF


@jit()
def save_user(S):
    """What the core holds of the current task at CPL 3 goes to its record."""
    core = this_core(S)
    task = S.tasks[this_cpu(S).curr]
    for i in range(machine.N_REGS):
        task.regs[i] = core.regs[i]
    task.rip = core.rip
    task.rflags = core.rflags


@jit()
def load_user(S):
    """The reverse, with its address space."""
    core = this_core(S)
    task = S.tasks[this_cpu(S).curr]
    task_space(S, task.mm)
    for i in range(machine.N_REGS):
        core.regs[i] = task.regs[i]
    core.rip = task.rip
    core.rflags = task.rflags


@jit()
def schedule(S, M, E):
    """Give the core to the task that has run least, or to nobody."""
    host = this_cpu(S)
    core = this_core(S)
    host.need_resched = 0
    update_curr(S)
    left = host.curr
    follows = pick_next_task(S, S.this_cpu)
    if follows < 0 and pull_task(S):
        follows = pick_next_task(S, S.this_cpu)
    if nr_running(S, S.this_cpu) > 1:
        tick_start(S)
        host_timer_program(S, E)
    if follows == left:
        return
    if left >= 0:
        task = S.tasks[left]
        if host.vcpu >= 0:
            vcpu_put(S)
        else:
            save_user(S)
        task.on_cpu = -1
    if follows >= 0:
        core.t = max(core.t, S.tasks[follows].last_t)
    perf_event_task_sched(S, E, state.CTX_TASK + follows if follows >= 0 else state.CTX_NONE)
    host.curr = follows
    if S.config.no_hz_idle != 0:
        tick_nohz_idle(S)
        host_timer_program(S, E)
    charge(S, E, COST_CONTEXT_SWITCH)
    emit(E, core.t, TR_SCHED_SWITCH, ZERO, U64(left + 1), U64(follows + 1), ZERO)
    if left >= 0:
        S.tasks[left].last_t = core.t
    if follows < 0:
        return
    task = S.tasks[follows]
    host.context_switches += ONE
    task.switches += ONE
    task.on_cpu = S.this_cpu
    task.exec_start = core.t
    host.slice_end = core.t + S.config.sched_slice
    host.min_vruntime = max(host.min_vruntime, task.vruntime)
    if task.vcpu >= 0:
        vcpu = S.vcpus[task.vcpu]
        vcpu.stolen_t += core.t - task.last_t  # whoever slept is there since it was woken
        vcpu_load(S, M, E, vcpu)
        kvm_sched_in(S, E, vcpu)
    else:
        load_user(S)


@jit(inline=True)
def must_boot(host):
    """Whether this CPU has a watchdog to start (the events of others start with the first guest)."""
    return host.booted == 0 and host.watchdog_at != machine.NEVER


@jit()
def _due(S, cpu):
    """When core `cpu` can go on: now, at its next timer, or NEVER."""
    host = S.percpu[cpu]
    core = S.cores[cpu]
    if host.call == 2:
        return machine.NEVER
    if host.curr >= 0 or host.lockup != 0 or core.nmi_pending != 0 or must_boot(host):
        return core.t
    if lapic_pending(core.lapic) >= 0:
        return core.t
    k = pick_next_task(S, cpu)
    if k >= 0:
        return max(core.t, S.tasks[k].last_t)
    return max(core.t, min(core.lapic.timer_at, min(core.nmi_at, core.pmu.pmi_at)))


@jit()
def _next_turn(S, E):
    """Give the turn to the core that is behind: CODE_NEXT, RUN_STOPPED if all sleep, RUN_TIME."""
    for cpu in range(S.config.n_cores):
        E.due[cpu] = _due(S, cpu)
    turn, first, end = first_due(S.config.n_cores, S.config.quantum, E)
    if turn < 0:
        S.cores[0].stop = machine.STOP_HALTED
        return machine.RUN_STOPPED
    host = S.percpu[turn]
    if (host.curr < 0 or host.lockup != 0) and nothing_can_happen(S):
        return machine.RUN_STOPPED
    if first > E.t_limit:
        return machine.RUN_TIME
    core = S.cores[turn]
    if turn != S.this_cpu:
        see_new_code(core, E)
    S.this_cpu = turn
    core.turn = 1
    core.turn_end = end
    core.t = max(core.t, first)  # an idle core jumps to its next timer, or to a PMI on its way
    if core.pmu.pmi_at <= core.t:
        pmi_arrives(core, E)
    if host.vcpu >= 0:
        S.this_vcpu = host.vcpu
    return machine.CODE_NEXT


@jit()
def _came_back(S, code, inside):
    """After a program or a guest came back with `code`, of no concern to the kernel: it goes on later."""
    this_cpu(S).inside = inside
    if code == machine.RUN_TURN:
        this_core(S).turn = 0
        return machine.CODE_NEXT
    return code


@jit()
def _stopped(S):
    # The stop of any core is reported in the first one.
    for cpu in range(S.config.n_cores):
        core = S.cores[cpu]
        if core.stop != 0:
            S.cores[0].stop = core.stop
            S.cores[0].stop_info = core.stop_info
            return True
    return False


@jit()
def _user_trap(S, M, E):
    """Why a program at CPL 3 came to its kernel."""
    core = this_core(S)
    task = S.tasks[this_cpu(S).curr]
    trap = core.trap
    core.trap = 0
    host = this_cpu(S)
    host.interrupted = state.FROM_USER
    if trap == machine.TRAP_INTERRUPT:
        handle_nmis(S, E)
        host.interrupted = state.FROM_USER
        host_irqs_enable(S, E)
        host.interrupted = state.FROM_KERNEL
        return machine.CODE_NEXT
    if trap == machine.TRAP_EXCEPTION | VECTOR_PF:
        perf_sw_event(S, E, PERF_COUNT_SW_PAGE_FAULTS, ONE)
    host.interrupted = state.FROM_KERNEL
    if trap == machine.TRAP_SYSCALL:
        task.entered = state.ENTERED_SYSCALL
        charge(S, E, COST_SYSCALL)
        if kvm_run_begins(S, M, E):
            return machine.CODE_NEXT
    else:
        task.entered = state.ENTERED_FAULT
        task.fault = trap & _VECTOR
        charge(S, E, COST_EXCEPTION)
    return machine.RUN_SYSCALL


@jit()
def run_user(S, M, E):
    """The current task at CPL 3 until it traps or the turn is over."""
    core = this_core(S)
    host = this_cpu(S)
    # Breakpoints are the guest's. A limit is for the guest and for each core's programs beside the VMM.
    limit = E.insn_limit
    breaks = E.n_break
    program = S.tasks[host.curr].program
    E.insn_limit = ALL
    if program != VMM and E.task_limit != ALL:
        done = guest_work(core)
        left = E.task_limit - min(host.user_insns, E.task_limit)
        E.insn_limit = done + min(left, ALL - done)
    E.n_break = 0
    insns = core.total[1, C_INST]
    cycles = core.total[1, C_CYCLES]
    core.cpl = 3
    code = run_core(core, M, E)
    core.cpl = 0
    core.stats.task_insns += core.total[1, C_INST] - insns
    if program != VMM:
        host.user_insns += core.total[1, C_INST] - insns
    host.user_cycles += core.total[1, C_CYCLES] - cycles
    E.insn_limit = limit
    E.n_break = breaks
    if code == machine.RUN_TRAP:
        host.inside = state.INSIDE_KERNEL
        return _user_trap(S, M, E)
    return _came_back(S, code, state.INSIDE_USER)


@jit()
def _to_vmm(S, M):
    """KVM_RUN returns: the core is the VMM's again, Python finishes the system call if there is more."""
    vcpu_put(S)
    load_user(S)
    S.tasks[this_cpu(S).curr].entered = state.ENTERED_KVM_RUN
    return machine.CODE_NEXT if kvm_run_ends(S, M) else machine.RUN_SYSCALL


@jit()
def host_turn(S, M, E):
    """Do a piece of the host's work: CODE_NEXT, HOST_GUEST for the mode's own loop, or a RUN_* code.

    Whoever has the turn keeps it when Python has one in between, and goes on where it was.
    """
    if _stopped(S):
        return machine.RUN_STOPPED
    core = this_core(S)
    host = this_cpu(S)
    over = core.turn == 0
    if host.inside == state.INSIDE_KERNEL and not over:
        over = core.t >= core.turn_end or _due(S, S.this_cpu) > core.t
    if over:
        core.turn = 0
        code = _next_turn(S, E)
        if code != machine.CODE_NEXT:
            return code
        core = this_core(S)
        host = this_cpu(S)
    E.cpu = S.this_cpu
    if host.inside == state.INSIDE_USER:
        return run_user(S, M, E)
    if host.inside == state.INSIDE_KVM:
        return HOST_GUEST
    if host.inside == state.INSIDE_SYSCALL:
        return machine.RUN_SYSCALL
    if core.t >= E.t_slice:
        return machine.RUN_SLICE
    if core.t >= E.t_limit:
        return machine.RUN_TIME
    if must_boot(host):
        perf_init(S, E)
    handle_nmis(S, E)
    if host.lockup != 0:
        if nothing_can_happen(S):
            return machine.RUN_STOPPED
        lockup_spin(S, E, min(min(E.t_slice, E.t_limit), core.turn_end))
        return machine.CODE_NEXT
    host_irqs_enable(S, E)
    if host.call != 0:
        host.call = 2
        core.turn_end = 0
        return machine.CODE_NEXT
    if host.curr < 0 or host.need_resched != 0 or S.tasks[host.curr].state != state.TASK_RUNNING:
        schedule(S, M, E)
        if host.curr < 0:
            core.turn_end = 0
            return machine.CODE_NEXT
    task = S.tasks[host.curr]
    if task.entered != state.ENTERED_NOT:
        return machine.RUN_SYSCALL
    if task.vcpu < 0:
        return run_user(S, M, E)
    if host.vcpu < 0:  # ioctl(KVM_RUN)
        save_user(S)
        vcpu = S.vcpus[task.vcpu]
        vcpu_load(S, M, E, vcpu)
        charge(S, E, COST_IOCTL)
        if is_emulated_io(vcpu):
            complete_emulated_io(S, M, E, vcpu)
        elif vcpu.complete != state.USER_IO_NONE:
            complete_userspace_io(S, M, E, vcpu)
        if vcpu.user_exit >= 0:  # a single step over what was finished
            return _to_vmm(S, M)
        if immediate_exit(M, vcpu):
            vcpu.user_exit = KVM_EXIT_INTR  # struct kvm_run keeps what it says
            return _to_vmm(S, M)
    return HOST_GUEST


@jit(inline=True)
def before_return(S, code):
    """A run loop returns `code` to Python, which may ask again before it has done the system call."""
    if code == machine.RUN_SYSCALL:
        this_cpu(S).inside = state.INSIDE_SYSCALL
    return code


@jit()
def guest_turn_ended(S, M, code):
    """After the mode's own loop came back with `code`: what the host's loop goes on with."""
    this_cpu(S).inside = state.INSIDE_KERNEL
    if code == machine.RUN_RESCHED:
        return machine.CODE_NEXT
    if code == machine.RUN_USER:
        return _to_vmm(S, M)
    return _came_back(S, code, state.INSIDE_KVM)
