"""The one door by which plain Python calls the compiled kernel: an operation and its numbers.

Each compiled function that Python may call needs a wrapper, which takes long to compile; this is the only
one besides the run loops. Works for `S.this_cpu`.
"""

from __future__ import annotations

import numpy as np

from vpmu_emu._jit import jit
from vpmu_emu.linux.charge import charge
from vpmu_emu.linux.hrtimer import host_timer_program
from vpmu_emu.linux.irq_vectors import CALL_FUNCTION_SINGLE_VECTOR
from vpmu_emu.linux.kvm import pmu_ops
from vpmu_emu.linux.kvm.debugregs import kvm_update_dr0123, kvm_update_dr7
from vpmu_emu.linux.kvm.ioctl import kvm_run_result
from vpmu_emu.linux.kvm.irq import kvm_apic_accept_events, kvm_apic_set_irq
from vpmu_emu.linux.kvm.nmi import kvm_inject_nmi, process_nmi
from vpmu_emu.linux.kvm.vcpu import vcpu_put
from vpmu_emu.linux.kvm.vmx.debugregs import vmx_update_exception_bitmap
from vpmu_emu.linux.percpu import this_core
from vpmu_emu.linux.perf.event import (
    perf_event_disable,
    perf_event_enable,
    perf_event_exit_task,
    perf_event_period,
    perf_event_read_value,
    perf_event_release_kernel,
    perf_install_in_context,
    x86_reserve_hardware,
)
from vpmu_emu.linux.perf.mediated import perf_create_mediated_pmu
from vpmu_emu.linux.perf.userpage import perf_event_update_userpage
from vpmu_emu.linux.sched import end_turn, resched_cpu, wake_up_task
from vpmu_emu.linux.space import x86_pmu_event_mapped
from vpmu_emu.machine.lapic import lapic_accept
from vpmu_emu.machine.memory import drop_decoded, tlb_flush
from vpmu_emu.machine.pmu import pmu_charge
from vpmu_emu.machine.u64 import U64, ZERO

CALL_CHARGE = 0  # a: row of the costs
CALL_PERF_ENABLE = 1  # a: event
CALL_PERF_DISABLE = 2  # a: event
CALL_PERF_READ = 3  # a: event; answers its count
CALL_PERF_PERIOD = 4  # a: event, b: the new period
CALL_PERF_RELEASE = 5  # a: event
CALL_PERF_INSTALL = 6  # a: event whose row is filled, see perf_install_in_context()
CALL_PERF_USERPAGE = 7  # a: event whose page was mapped, or is about to go; b: row of S.mms
CALL_PERF_EXIT_TASK = 8  # a: task
CALL_FLUSH = 9  # a: core; its translations, and everybody's decoded code
CALL_WAKE_UP = 10  # a: task
CALL_RESCHED = 11  # a: core
CALL_KICK = 12  # a: core that has to come out of its guest
CALL_TIMER = 13  # a timer of this core has changed
CALL_WAIT = 14  # a: core that this one waits for (csd_lock_wait)
CALL_VCPU_PUT = 15  # the vCPU on this core leaves it
CALL_PERF_RESET = 16  # a: event
CALL_PERF_REFRESH = 17  # a: event, b: overflows until it is disabled
CALL_APIC_EVENTS = 18  # a: vCPU that no core has loaded
CALL_INJECT_NMI = 19  # a: vCPU
CALL_PROCESS_NMI = 20  # a: vCPU
CALL_KVM_RUN_RESULT = 21  # KVM_RUN of the current task is over; answers its result
CALL_GET_MSR = 22  # a: register of this_vcpu's PMU, into S.msr_value; answers 1 if it is refused
CALL_SET_MSR = 23  # a: register, b: its new value; answers 1 if it is refused
CALL_APIC_SET_IRQ = 24  # a: vCPU, b: a message as in an ICR; answers 1 if it takes it
CALL_GUEST_DEBUG = 25  # a: vCPU that no core has loaded, whose debug registers have been set
CALL_CREATE_MEDIATED_PMU = 26  # a: VM whose first vCPU is about to be made
CALL_PERF_RESERVE = 27  # a: row of an event of the core PMU that is about to be made


@jit(entry=True)
def kernel_call(S, M, E, op, a, b):
    """Do operation `op` (CALL_*) with numbers a and b, int64; what it answers, or a negative errno."""
    answer = 0
    if op == CALL_CHARGE:
        charge(S, E, a)
    elif op == CALL_PERF_ENABLE:
        perf_event_enable(S, E, a)
    elif op == CALL_PERF_DISABLE:
        perf_event_disable(S, E, a)
    elif op == CALL_PERF_READ:
        answer = np.int64(perf_event_read_value(S, E, a))
    elif op == CALL_PERF_PERIOD:
        answer = perf_event_period(S, E, a, U64(b))
    elif op == CALL_PERF_RELEASE:
        perf_event_release_kernel(S, E, a)
    elif op == CALL_PERF_INSTALL:
        answer = perf_install_in_context(S, E, a)
    elif op == CALL_PERF_RESERVE:
        x86_reserve_hardware(S, E, a)
    elif op == CALL_PERF_USERPAGE:
        perf_event_update_userpage(S, E, a)
        x86_pmu_event_mapped(S, b)
    elif op == CALL_PERF_EXIT_TASK:
        perf_event_exit_task(S, E, a)
    elif op == CALL_FLUSH:
        tlb_flush(S.cores[a], 1)
        drop_decoded(E)
    elif op == CALL_WAKE_UP:
        wake_up_task(S, a)
        host_timer_program(S, E)
    elif op == CALL_RESCHED:
        resched_cpu(S, a)
    elif op == CALL_KICK:
        lapic_accept(S.cores[a].lapic, U64(CALL_FUNCTION_SINGLE_VECTOR))
    elif op == CALL_TIMER:
        host_timer_program(S, E)
    elif op == CALL_WAIT:
        core = this_core(S)
        behind = S.cores[a].t - core.t
        if behind >= 0:
            pmu_charge(core, E, (behind >> 4) + 1, ZERO, ZERO)
        end_turn(S)
    elif op == CALL_VCPU_PUT:
        vcpu_put(S)
    elif op == CALL_PERF_RESET:
        perf_event_read_value(S, E, a)
        S.perf_events[a].count = ZERO
        perf_event_update_userpage(S, E, a)
    elif op == CALL_PERF_REFRESH:
        S.perf_events[a].event_limit = max(S.perf_events[a].event_limit + b, 0)
        perf_event_enable(S, E, a)
    elif op == CALL_APIC_EVENTS:
        kvm_apic_accept_events(S, M, S.vcpus[a])
    elif op == CALL_INJECT_NMI:
        kvm_inject_nmi(S.vcpus[a])
    elif op == CALL_PROCESS_NMI:
        process_nmi(M, S.vcpus[a])
    elif op == CALL_GUEST_DEBUG:
        vcpu = S.vcpus[a]
        kvm_update_dr0123(vcpu)
        kvm_update_dr7(M, vcpu)
        vmx_update_exception_bitmap(M, vcpu)
    elif op == CALL_CREATE_MEDIATED_PMU:
        answer = perf_create_mediated_pmu(S, a)
    elif op == CALL_KVM_RUN_RESULT:
        answer = kvm_run_result(S, M)
    elif op == CALL_GET_MSR:
        answer, S.msr_value = pmu_ops.host_get_msr(S, E, U64(a))
    elif op == CALL_SET_MSR:
        answer = pmu_ops.host_set_msr(S, M, E, U64(a), U64(np.int64(b)))
    elif op == CALL_APIC_SET_IRQ:
        answer = kvm_apic_set_irq(S, E, S.vcpus[a], U64(b))
    return answer
