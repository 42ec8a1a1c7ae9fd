"""The kernel's log: what was said, when and on which CPU; the record has numbers, the words are here."""

from __future__ import annotations

from typing import Any

from vpmu_emu._jit import jit
from vpmu_emu.linux.percpu import this_core
from vpmu_emu.linux.state import N_KLOG
from vpmu_emu.machine.clock import tsc_value
from vpmu_emu.machine.u64 import ONE, U64, ZERO

MESSAGES = (
    "watchdog: CPU{cpu}: Watchdog detected hard LOCKUP on cpu {a}",
    "Uhhuh. NMI received for unknown reason 00 on CPU {cpu}.",
    "Spurious interrupt (vector {a:#x}) on CPU#{cpu}, should never happen.",
    "kvm: PMI of a guest on CPU {cpu}, which runs none",
    "kvm_intel: Invalid MSR {a:x}, please adapt vmx_possible_passthrough_msrs[]",
    "kvm_intel: vcpu-{a}: fail to passthrough LBR.",
    "kvm: the host's PMU, version {a}, cannot be passed through: guests have the emulated vPMU",
    "kvm_intel: a PMU of version {a} is not switched",
    "kvm_intel: IA32_PMC{a} of a passthrough PMU was written with an exit",
    "kvm: a mediated vPMU cannot be: events of the host, nmi_watchdog's among them, count in guests",
)
(
    LOG_HARD_LOCKUP, LOG_UNKNOWN_NMI, LOG_SPURIOUS_VECTOR, LOG_STRAY_PMI, LOG_INVALID_MSR, LOG_NO_LBR,
    LOG_NO_PASSTHROUGH, LOG_VERSION, LOG_PERFCTR, LOG_MEDIATED,
) = range(len(MESSAGES))  # fmt: skip


@jit()
def printk(S, what, a):
    """Say MESSAGES[what] with the number `a` (U64)."""
    line = S.klog[S.klog_n % N_KLOG]
    line.what = what
    line.time = this_core(S).t
    line.cpu = S.this_cpu
    line.a = a
    S.klog_n += 1


@jit()
def printk_once(S, what, a):
    """The same, once since boot (pr_warn_once)."""
    bit = ONE << U64(what)
    if S.klog_once & bit == ZERO:
        S.klog_once |= bit
        printk(S, what, a)


def say(S: Any, what: int, a: int) -> None:
    """The same from plain Python."""
    line = S.klog[int(S.klog_n) % N_KLOG]
    line.what, line.cpu, line.a = what, int(S.this_cpu), a
    line.time = int(S.cores[int(S.this_cpu)].t)
    S.klog_n += 1


def log_report(S: Any) -> list[dict[str, Any]]:
    """The last lines, oldest first: TSC, CPU and text. Only looks."""
    n = int(S.klog_n)
    lines = [S.klog[k % N_KLOG] for k in range(max(n - N_KLOG, 0), n)]
    return [
        {
            "tsc": int(tsc_value(S.cores[int(line.cpu)], int(line.time))),
            "cpu": int(line.cpu),
            "text": MESSAGES[int(line.what)].format(a=int(line.a), cpu=int(line.cpu)),
        }
        for line in lines
    ]
