"""Runs a core from edge to edge: between two edges nothing can happen that somebody has to see.

At an edge: counters that overflowed, timers that ran out, interrupts that can be taken, limits. Then the
horizon says how long the interpreter may go on unwatched. The final record is the same for every horizon.
"""

from __future__ import annotations

import numpy as np

from vpmu_emu._jit import jit
from vpmu_emu.machine import msr_index, state, vmcs
from vpmu_emu.machine.alu import fold_flags, spread_flags
from vpmu_emu.machine.breakpoints import DR6_BS, code_hits, debug_delivered, debug_on, debug_reset
from vpmu_emu.machine.bus import FAULT_EPT, note_ept_violation
from vpmu_emu.machine.decode import instruction_at, rep_over
from vpmu_emu.machine.dispatch import run_slice
from vpmu_emu.machine.interrupts import (
    KIND_EXTERNAL,
    KIND_FAULT,
    KIND_NMI,
    KIND_TRAP,
    deliver,
    guest_done,
)
from vpmu_emu.machine.lapic import (
    LVT_NMI,
    LVT_TIMER,
    lapic_ack,
    lapic_pending,
    lapic_reset,
    lapic_timer_expire,
)
from vpmu_emu.machine.lbr import BR_OTHER, lbr_on, lbr_record, lbr_reset, lbr_retired, step_begins
from vpmu_emu.machine.memory import fault, tlb_flush
from vpmu_emu.machine.metrics import metrics_value
from vpmu_emu.machine.msr import is_program
from vpmu_emu.machine.msr_access import execute_rdmsr, execute_wrmsr
from vpmu_emu.machine.ops import K_MEM, OPS
from vpmu_emu.machine.pebs import pebs_begins, pebs_counting, pebs_retired
from vpmu_emu.machine.pmu import (
    LAT_SLOT,
    class_total,
    counter_value,
    pmu_check,
    pmu_horizon,
    pmu_reset,
)
from vpmu_emu.machine.privileged import LAT_INTERRUPT, S_INT, S_INT3, S_SYSCALL
from vpmu_emu.machine.processor_flags import (
    X86_CR0_ET,
    X86_CR0_MP,
    X86_CR0_NE,
    X86_CR0_PE,
    X86_CR0_PG,
    X86_CR4_PAE,
    X86_EFLAGS_FIXED,
    X86_EFLAGS_IF,
    X86_EFLAGS_RF,
    X86_EFLAGS_TF,
)
from vpmu_emu.machine.retire import spend
from vpmu_emu.machine.u64 import ALL, ONE, U8, U64, ZERO
from vpmu_emu.machine.vectors import VECTOR_DB, VECTOR_NMI, VECTOR_SS
from vpmu_emu.machine.vmx import (
    note_exception_exit,
    note_exit,
    note_interrupt_exit,
    vm_exit,
    vm_exit_undelivered,
)
from vpmu_emu.machine.watching import (
    PASSED,
    break_holds,
    pass_begins,
    pass_ends,
    until_holds,
    watch_pages,
)
from vpmu_emu.tables.msrs import reset_of

MOST_ITERATIONS = U64(1 << 30)
CR0_RESET = X86_CR0_PG | X86_CR0_NE | X86_CR0_ET | X86_CR0_MP | X86_CR0_PE
CR4_RESET = X86_CR4_PAE
XCR0_RESET = ONE  # x87
EFER_RESET = U64(reset_of("IA32_EFER"))
_S7 = U64(7)
_S13 = U64(13)
NO_VECTOR = -1
C_TAKEN = state.CLASS["taken"]
STACK_OPS = tuple(
    k for k, op in enumerate(OPS)
    if op in (
        "push", "pop", "call", "ret", "enter", "leave", "pushfq", "popfq", "iretq", "retf", "pop_sreg",
    )
)  # fmt: skip


@jit()
def guest_work(core):
    """What the guest did, as a limit counts it: instructions, and what an endless guest does instead.

    That is an exception whose handler does not get to do one, and a REP that has gone over more than any
    memory: then all there can be.
    """
    if core.iterations >= MOST_ITERATIONS:
        return ALL
    return guest_done(core) + core.stats.fruitless


@jit()
def _horizon(core, E):
    """Until when nothing can happen; int64 time after now."""
    t = core.t
    slot = core.latency[LAT_SLOT]
    limit = pmu_horizon(core)
    limit = min(limit, core.lapic.timer_at)
    limit = min(limit, core.vmx.preempt_at)
    limit = min(limit, min(core.nmi_at, core.pmu.pmi_at))
    limit = min(limit, min(E.t_slice, min(E.t_limit, E.stop_t)))
    limit = min(limit, core.turn_end)
    if E.insn_limit != ALL:
        left = min(E.insn_limit - guest_work(core), MOST_ITERATIONS - core.iterations)
        limit = min(limit, t + np.int64(left) * slot)
    single = core.shadow != 0 or core.rflags & (X86_EFLAGS_TF | X86_EFLAGS_RF) != ZERO
    single = single or debug_on(core) or lbr_on(core) or pebs_counting(core) != ZERO
    single = single or E.until != 0 or E.n_data != 0
    if single or E.stop_request != 0:
        limit = t + 1
    if E.horizon > 0:
        steps = E.horizon
        if E.horizon_seed != ZERO:  # xorshift64
            x = E.horizon_seed
            x ^= x << _S13
            x ^= x >> _S7
            x ^= x << U64(17)
            E.horizon_seed = x
            steps = 1 + np.int64(x % (U64(E.horizon)))
        limit = min(limit, t + (steps - 1) * slot + 1)
    return max(limit, t + 1)


@jit()
def _timers(core):
    if core.lapic.timer_at <= core.t and lapic_timer_expire(core, core.lapic) == LVT_NMI:
        core.nmi_pending = 1
    if core.nmi_at <= core.t:
        core.nmi_pending = 1


@jit()
def _guest_event(core, M, E):
    """In a guest: CODE_EXIT after a VM exit that is due now, else CODE_NEXT."""
    vmx = core.vmx
    if core.nmi_pending != 0 and vmx.pin & vmcs.PIN_NMI != ZERO:
        note_interrupt_exit(core)
        vm_exit(core, M, E, NO_VECTOR)
        return state.CODE_EXIT
    vector = lapic_pending(core.lapic)
    if vector >= 0 and vmx.pin & vmcs.PIN_EXT_INTR != ZERO:
        note_interrupt_exit(core)
        vm_exit(core, M, E, vector)
        return state.CODE_EXIT
    if vmx.preempt_at <= core.t:
        note_exit(core, vmcs.EXIT_PREEMPTION_TIMER, ZERO, ZERO)
        vm_exit(core, M, E, NO_VECTOR)
        return state.CODE_EXIT
    if core.shadow == 0:
        if vmx.proc & vmcs.PROC_NMI_WINDOW != ZERO and core.nmi_blocked == 0:
            note_exit(core, vmcs.EXIT_NMI_WINDOW, ZERO, ZERO)
            vm_exit(core, M, E, NO_VECTOR)
            return state.CODE_EXIT
        if vmx.proc & vmcs.PROC_INTR_WINDOW != ZERO and core.rflags & X86_EFLAGS_IF != ZERO:
            note_exit(core, vmcs.EXIT_INTERRUPT_WINDOW, ZERO, ZERO)
            vm_exit(core, M, E, NO_VECTOR)
            return state.CODE_EXIT
    return state.CODE_NEXT


@jit()
def _deliver(core, M, E, vector, kind, has_error, error):
    """deliver() with the latency that it has besides memory's, and its branch record."""
    cpl = core.cpl
    rip = core.rip
    if vector == VECTOR_DB:
        debug_delivered(core, E.debug_bits)
    code = deliver(core, M, E, vector, kind, has_error, error, rip)
    if code == state.CODE_EXIT:
        info = vmcs.INTR_VALID | U64(vector)
        if kind != KIND_EXTERNAL:
            info |= vmcs.TYPE_HARD_EXCEPTION << U8
        if has_error != 0:
            info |= vmcs.INTR_HAS_ERROR
        pmu_check(core, E)
        vm_exit_undelivered(core, M, E, info, error)
        return code
    if vector == VECTOR_DB:  # SDM 3B 17.4.4: before the handler's first instruction
        core.pmu.debugctl &= ~(msr_index.DEBUGCTLMSR_LBR | msr_index.DEBUGCTLMSR_BTF)
    after = core.cpl
    core.cpl = cpl
    spend(core, core.latency[LAT_INTERRUPT])
    core.cpl = after
    if lbr_on(core):
        lbr_record(core, rip, BR_OTHER, ZERO, ZERO)
    return code


@jit()
def _take(core, M, E, vector, kind):
    """Deliver an interrupt: CODE_JUMP; a triple fault on the way ends the run or the guest's turn."""
    core.activity = 0
    code = _deliver(core, M, E, vector, kind, 0, ZERO)
    if code == state.CODE_EXIT:
        return code
    pmu_check(core, E)  # time has passed: a counter of cycles may have overflowed
    return _shutdown(core, M, E, vector) if code == state.CODE_FAULT else state.CODE_JUMP


@jit()
def _shutdown(core, M, E, vector):
    core.stop_info = U64(vector)
    if core.vmx.nonroot != 0:
        note_exit(core, vmcs.EXIT_TRIPLE_FAULT, ZERO, ZERO)
        vm_exit(core, M, E, NO_VECTOR)
        return state.CODE_EXIT
    core.stop = state.STOP_TRIPLE_FAULT
    return state.RUN_STOPPED


@jit()
def _raise(core, M, E, kind):
    vector = E.fault_vector
    exits = core.vmx.nonroot != 0
    exits = exits and (vector == FAULT_EPT or (core.vmx.exceptions >> U64(vector)) & ONE != ZERO)
    if exits:
        core.pending_debug = ZERO
        if kind == KIND_FAULT:
            core.rflags |= X86_EFLAGS_RF  # SDM 3C 28.3.3: as the frame would have had it
    if vector == FAULT_EPT:
        pmu_check(core, E)
        note_ept_violation(core, E)
        vm_exit(core, M, E, NO_VECTOR)
        return state.CODE_EXIT
    if exits:
        pmu_check(core, E)
        note_exception_exit(core, E, vector)
        vm_exit(core, M, E, NO_VECTOR)
        return state.CODE_EXIT
    core.shadow = 0
    if core.kernel != 0 and core.vmx.nonroot == 0:
        core.trap = state.TRAP_EXCEPTION | vector
        core.trap_error = E.fault_error
        core.cr2 = E.fault_address
        return state.RUN_TRAP
    code = _deliver(core, M, E, vector, kind, E.fault_has_error, E.fault_error)
    return _shutdown(core, M, E, vector) if code == state.CODE_FAULT else code


@jit()
def _debug_trap(core, M, E):
    """#DB for what is pending, between instructions: CODE_JUMP to look once more, else what to return."""
    E.debug_bits = core.pending_debug
    core.pending_debug = ZERO
    core.activity = 0
    fault(E, VECTOR_DB, 0, ZERO)
    code = _raise(core, M, E, KIND_TRAP)
    return state.CODE_JUMP if code == state.CODE_NEXT else code


@jit()
def _interrupts(core, M, E):
    """Take at most one interrupt: CODE_JUMP if so, CODE_NEXT, CODE_EXIT, RUN_STOPPED or RUN_TRAP."""
    virtual = core.vmx.nonroot != 0
    if core.kernel != 0 and not virtual:
        # The kernel of this program is compiled code: it takes what is due itself.
        if core.trap == 0 and (core.nmi_pending != 0 or lapic_pending(core.lapic) >= 0):
            core.trap = state.TRAP_INTERRUPT
            rep_over(core, E)
        return state.RUN_TRAP if core.trap != 0 else state.CODE_NEXT
    if not virtual and core.nmi_pending != 0 and core.nmi_blocked == 0 and core.shadow != 2:
        core.nmi_pending = 0
        core.nmi_blocked = 1
        return _take(core, M, E, VECTOR_NMI, KIND_NMI)
    if core.rflags & X86_EFLAGS_IF == ZERO or core.shadow != 0:
        return state.CODE_NEXT
    if virtual:
        if core.vmx.apicv == 0:
            return state.CODE_NEXT
        vector = lapic_pending(core.vapic)
    else:
        vector = lapic_pending(core.lapic)
    if vector >= 0:
        if virtual:
            lapic_ack(core.vapic, vector)
        else:
            lapic_ack(core.lapic, vector)
        return _take(core, M, E, vector, KIND_EXTERNAL)
    return state.CODE_NEXT


@jit()
def _edge(core, M, E):
    """Everything that is looked at between instructions, where nothing changes if somebody looks again.

    CODE_NEXT to go on, CODE_JUMP to look once more, else what to return.
    """
    pmu_check(core, E)
    _timers(core)
    if core.stop != 0:
        return state.RUN_STOPPED
    if E.stop_request != 0 or until_holds(core, M, E):
        return state.RUN_WATCH
    if guest_work(core) >= E.insn_limit:
        return state.RUN_LIMIT
    if core.t >= E.t_limit:
        return state.RUN_TIME
    if core.pending_debug != ZERO and core.shadow != 2:
        return _debug_trap(core, M, E)
    if core.vmx.nonroot != 0:
        code = _guest_event(core, M, E)
        if code != state.CODE_NEXT:
            return code
    code = _interrupts(core, M, E)
    if code != state.CODE_NEXT:
        return code
    if core.t >= core.turn_end or core.lapic.ipi_out != 0:
        return state.RUN_TURN
    return state.CODE_NEXT


@jit()
def goes_on_at(core):
    """When a halted core has something to look at: a PMI on its way, a timer that may wake it, or NEVER."""
    at = core.nmi_at if core.nmi_blocked == 0 else state.NEVER
    at = min(at, core.pmu.pmi_at)
    if core.vmx.nonroot != 0:
        return min(at, min(core.lapic.timer_at, core.vmx.preempt_at))
    entry = core.lapic.lvt[LVT_TIMER]
    if (
        core.rflags & X86_EFLAGS_IF != ZERO
        or entry & (msr_index.APIC_MODE_MASK | msr_index.APIC_LVT_MASKED) == msr_index.APIC_DM_NMI
    ):
        at = min(at, core.lapic.timer_at)
    return at


@jit()
def _idle(core, E):
    """Halted: time jumps to the next timer, the TSC goes on, nothing unhalted counts.

    However far that is, it takes no time of ours: a slice does not cut it.
    """
    if core.turn_end != state.NEVER:
        return state.RUN_TURN  # how far it may jump depends on the others
    wake = goes_on_at(core)
    if wake == state.NEVER:
        core.stop = state.STOP_HALTED
        return state.RUN_STOPPED
    if wake > E.t_limit:
        return state.RUN_TIME
    core.t = max(core.t, wake)
    return state.CODE_NEXT


@jit()
def _slice_is_over(core, E):
    """Whether it is Python's turn; what ends a run altogether is left to the edge that reports it."""
    if core.t < E.t_slice or core.stop != 0 or E.stop_request != 0:
        return False
    return guest_work(core) < E.insn_limit


@jit()
def uses_stack(u):
    """Whether the memory access of micro-op u goes through the stack segment.

    RSP or RBP as base, and what pushes and pops: a non-canonical address is #SS then (SDM 3A 6.15).
    """
    if u.dst == K_MEM or u.src == K_MEM:
        return (u.b == state.RSP or u.b == state.RBP) and u.seg == state.REG_ZERO
    for op in STACK_OPS:
        if u.op == op:
            return True
    return False


@jit()
def _fault(core, M, E):
    """Deliver the exception noted in E to the program at core.rip."""
    if E.fault_canonical == 0:
        # It may have thrown decoded code away before it faulted, its own too.
        if uses_stack(E.uops[instruction_at(core, M, E, core.rip)]):
            E.fault_vector = VECTOR_SS
    E.fault_canonical = 1
    # What a debug register's owner is to see does not set RF, though it is a fault.
    return _raise(core, M, E, KIND_TRAP if E.fault_vector == VECTOR_DB else KIND_FAULT)


@jit()
def _steps(core, op, taken):
    """Whether an instruction, arm `op`, which began with TF set, is one to trap after (SDM 3B 18.3.1.4).

    `taken` is how many branches had been taken before: with DEBUGCTL.BTF only such a one traps.
    """
    if core.pmu.debugctl & msr_index.DEBUGCTLMSR_BTF != ZERO and class_total(core, C_TAKEN, 3) == taken:
        return False
    if core.shadow == 2:
        return False  # the trap after MOV SS waits for the next instruction
    # Entering a handler took the flag away, and the trap with it.
    return core.rflags & X86_EFLAGS_TF != ZERO or (op != S_INT and op != S_INT3 and op != S_SYSCALL)


@jit()
def _probe(core, M, E):
    """The guest does RDMSR or WRMSR with the registers that it has, at any privilege level: a RUN_* code.

    It is no instruction of the program: none retires, and rip stays. An exit is handled before the stop.
    """
    u = E.uops[PASSED]
    u.rip = core.rip
    u.len = 0
    u.cost = 0
    u.lanes1 = ZERO
    u.lanes2 = ZERO
    reads = E.probe == state.PROBE_RDMSR
    E.probe = 0
    E.stop_request = 1
    cpl = core.cpl
    core.cpl = 0
    code = execute_rdmsr(core, M, E, u) if reads else execute_wrmsr(core, M, E, u)
    core.cpl = cpl
    E.probe_done = state.PROBE_FAULT if code == state.CODE_FAULT else state.PROBE_DONE
    if code == state.CODE_EXIT:
        pmu_check(core, E)
        vm_exit(core, M, E, NO_VECTOR)
        return code
    return state.RUN_WATCH


@jit(entry=True)
def run_core(core, M, E):
    """Run the core until a VM exit (CODE_EXIT), its turn's end (RUN_TURN), or another RUN_* for Python.

    With no hypervisor this is the whole of mode `bare`; in non-root mode it is a guest's turn. At every
    return core.rflags is exact and the scratch words are zero. Modifies everything.
    """
    while True:
        if E.probe != 0 and is_program(core):
            return _probe(core, M, E)
        if _slice_is_over(core, E):
            return state.RUN_SLICE  # before anything of the edge: the next slice begins with it
        code = _edge(core, M, E)
        if code == state.CODE_JUMP:
            continue
        if code != state.CODE_NEXT:
            return code
        if core.activity != 0:
            code = _idle(core, E)
            if code != state.CODE_NEXT:
                return code
            continue
        shadow = core.shadow
        tlim = _horizon(core, E)
        if shadow != 0:
            core.shadow = 0
        E.bank = (0 if core.cpl == 0 else 1) | core.space << 1  # for those who look the instruction up
        recording = lbr_on(core)
        counting = pebs_counting(core)
        if recording or counting != ZERO:
            step_begins(core, M, E)
            pebs_begins(core, E, counting)
        rip = core.rip
        watching = debug_on(core)
        resume = core.rflags & X86_EFLAGS_RF
        if watching:
            E.debug_hits = ZERO
            if resume == ZERO and core.iterations == ZERO and shadow != 2:
                hits = code_hits(core, rip)
                if hits != ZERO:
                    E.debug_bits = hits
                    core.shadow = shadow
                    fault(E, VECTOR_DB, 0, ZERO)
                    code = _raise(core, M, E, KIND_TRAP)
                    if code != state.CODE_NEXT:
                        return code
                    continue
        core.rflags &= ~X86_EFLAGS_RF  # when an instruction begins
        stepping = core.rflags & X86_EFLAGS_TF != ZERO
        taken = ZERO
        op = np.int64(0)
        if stepping:
            taken = class_total(core, C_TAKEN, 3)
            op = np.int64(E.uops[instruction_at(core, M, E, rip)].op)
        passed = -1
        generation = E.generation
        if E.pass_cpu == E.cpu + 1 and is_program(core):
            passed = pass_begins(core, M, E)
            generation = E.generation
            if passed >= 0:
                tlim = core.t + 1
        if E.n_data != 0:
            watch_pages(core, E)
        spread_flags(core)
        code = run_slice(core, M, E, tlim)
        fold_flags(core)
        if passed >= 0:
            pass_ends(E, passed, generation)
        core.fz = ZERO
        core.fs = ZERO
        core.cv = ZERO
        if recording and code < state.CODE_NOT_RETIRED:
            lbr_retired(core, E)
        if counting != ZERO and code < state.CODE_NOT_RETIRED:
            pebs_retired(core, M, E)
        if code >= state.CODE_NOT_RETIRED:
            core.shadow = shadow  # the instruction in the shadow is still to come
            if code == state.CODE_FAULT:
                code = _fault(core, M, E)
                if code != state.CODE_NEXT:
                    return code
            elif code == state.CODE_EXIT:
                # What happened up to here belongs to the guest: an overflow is raised before the exit.
                pmu_check(core, E)
                vm_exit(core, M, E, NO_VECTOR)
                return state.CODE_EXIT
            elif code == state.CODE_BREAK:
                core.rflags |= resume
                if break_holds(core, M, E):
                    return state.RUN_BREAK
        elif watching or stepping:
            if watching:
                core.pending_debug |= E.debug_hits
            if stepping and _steps(core, op, taken):
                core.pending_debug |= DR6_BS
            if core.pending_debug != ZERO and core.shadow != 2 and core.stop == 0:
                code = _debug_trap(core, M, E)
                if code != state.CODE_JUMP:
                    return code


@jit(entry=True)
def reset_core(core, ident):
    """RESET: the state in which a program finds the processor, its number being `ident` (uint64).

    The shape of the CPU is in the record already. 64-bit mode at CPL 0, identity-mapped.
    """
    core.rflags = X86_EFLAGS_FIXED
    core.cr0 = CR0_RESET
    core.cr4 = CR4_RESET
    core.xcr0 = XCR0_RESET
    core.efer = EFER_RESET
    core.vmx.vmcs = -1
    core.vmx.preempt_at = state.NEVER
    core.nmi_at = state.NEVER
    core.turn_end = state.NEVER
    lapic_reset(core.lapic, ident)
    lapic_reset(core.vapic, ident)
    pmu_reset(core)
    lbr_reset(core)
    tlb_flush(core, 1)
    debug_reset(core)
    for i in range(state.N_PREDICTOR):
        core.predictor[i] = np.uint8(1)  # weakly not taken


@jit(entry=True)
def read_counters(core, out):
    """Values of the N_CTR counters as RDPMC would give them, into `out` (uint64).

    With room for one more, PERF_METRICS too, which brings `core.metrics` up to date.
    """
    for i in range(state.N_CTR):
        out[i] = counter_value(core, i)
    if len(out) > state.N_CTR:
        out[state.N_CTR] = metrics_value(core)
