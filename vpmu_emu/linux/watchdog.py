"""A CPU that no longer serves its timer is locked up; who finds out depends on the detector.

kernel/watchdog.c, watchdog_perf.c, watchdog_buddy.c; the HPET detector is the series of 2021 that was never
merged (one channel, an NMI to each CPU in turn). On every CPU `watchdog_timer_fn` counts its own calls; a
detector looks whether that number has grown. hardlockup_panic is 1: the run ends.
"""

from __future__ import annotations

import math
from typing import Any

from vpmu_emu._jit import jit
from vpmu_emu.errors import ConfigError
from vpmu_emu.linux import patches, state
from vpmu_emu.linux.native import cost, retire_work
from vpmu_emu.linux.percpu import this_core, this_cpu
from vpmu_emu.linux.printk import LOG_HARD_LOCKUP, printk
from vpmu_emu.linux.trace_kinds import TR_LOCKUP
from vpmu_emu.machine.clock import tsc_value
from vpmu_emu.machine.ring import emit
from vpmu_emu.machine.state import STOP_HARD_LOCKUP
from vpmu_emu.machine.u64 import U64, ZERO

COST_CHECK = cost("watchdog_overflow_callback")
COST_TIMER_FN = cost("watchdog_timer_fn")

CPU_CYCLES = 0x3C
MOST_REARMED = 10
# The kernel takes whole seconds up to 60. Simulated time costs real time, so that parts of one are allowed;
# the least is what still leaves time for anything but the watchdog.
LEAST_THRESH, MOST_THRESH, DEFAULT_THRESH = 0.0001, 60.0, 10.0


# --- the detectors --------------------------------------------------------------------------------------
@jit()
def is_hardlockup(S, cpu):
    """Whether a CPU has had no watchdog timer since somebody last looked. Modifies percpu."""
    host = S.percpu[cpu]
    if host.hrtimer_saved == host.hrtimer_interrupts:
        return True
    host.hrtimer_saved = host.hrtimer_interrupts
    return False


@jit()
def watchdog_hardlockup_check(S, E, cpu):
    """This CPU looks at `cpu`, which may be itself; a hard lockup stops the run (nmi_panic)."""
    host = S.percpu[cpu]
    core = this_core(S)
    if host.watchdog_touched != 0:
        host.watchdog_touched = 0
        return
    if is_hardlockup(S, cpu) and host.watchdog_reported == 0:
        host.watchdog_reported = core.t
        host.watchdog_by = S.this_cpu
        emit(E, core.t, TR_LOCKUP, ZERO, U64(cpu), ZERO, ZERO)
        printk(S, LOG_HARD_LOCKUP, U64(cpu))
        core.stop = STOP_HARD_LOCKUP
        core.stop_info = U64(cpu)


@jit()
def watchdog_next_cpu(S, cpu):
    """The CPU that `cpu` watches, -1 if it is alone."""
    other = (cpu + 1) % S.config.n_cores
    return other if other != cpu else -1


@jit()
def watchdog_timer_fn(S, E):
    """This CPU's watchdog hrtimer: it lives; as a buddy it looks at its neighbour at every third call.

    Call it where percpu.watchdog_at <= now; sets the next one.
    """
    host = this_cpu(S)
    retire_work(S, E, COST_TIMER_FN)
    host.hrtimer_interrupts += 1
    # three sample periods are a fifth more than watchdog_thresh
    if S.config.watchdog == state.WATCHDOG_BUDDY and host.hrtimer_interrupts % 3 == 0:
        other = watchdog_next_cpu(S, S.this_cpu)
        if other >= 0:
            watchdog_hardlockup_check(S, E, other)
    # hrtimer_forward_now(): calls that were missed are not made up for
    period = S.config.watchdog_period * 2 // 5
    late = this_core(S).t - host.watchdog_at
    host.watchdog_at += period * (late // period + 1)


@jit()
def watchdog_overflow_callback(S, E):
    """In NMI context, the pinned cycles event of this CPU has ended a period.

    At turbo a period is shorter than the threshold, and its timer may not have been due yet: the kernel
    wants 4/5 of the threshold between two checks, ten NMIs at the most (watchdog_check_timestamp).
    """
    retire_work(S, E, COST_CHECK)
    host = this_cpu(S)
    now = this_core(S).t
    if now - host.last_timestamp < S.config.watchdog_period * 4 // 5:
        host.nmi_rearmed += 1
        if host.nmi_rearmed < MOST_REARMED:
            return
    host.nmi_rearmed = 0
    host.last_timestamp = now
    watchdog_hardlockup_check(S, E, S.this_cpu)


@jit()
def hardlockup_detector_nmi_handler(S, E):
    """In NMI context: whether it was the HPET's, which is told by the time, as nothing else says so."""
    core = this_core(S)
    if core.nmi_at > core.t:
        return False
    retire_work(S, E, COST_CHECK)
    period = S.config.watchdog_period
    core.nmi_at += period * ((core.t - core.nmi_at) // period + 1)
    watchdog_hardlockup_check(S, E, S.this_cpu)
    return True


@jit()
def lockup_will_be_seen(S, cpu):
    """Whether the detector can find the lockup of `cpu`."""
    if S.config.watchdog == state.WATCHDOG_HPET:
        return True
    if S.config.watchdog == state.WATCHDOG_NMI:
        for i in range(S.perf_rows):
            event = S.perf_events[i]
            if event.used != 0 and event.watchdog != 0 and event.ctx == cpu:
                return event.state == state.PERF_EVENT_STATE_ACTIVE
    if S.config.watchdog == state.WATCHDOG_BUDDY:
        for other in range(S.config.n_cores):
            if S.percpu[other].lockup == 0 and watchdog_next_cpu(S, other) == cpu:
                return True
    return False


# --- plain Python ---------------------------------------------------------------------------------------
def check_settings(detector: str, thresh: float, version: int) -> None:
    """What `--watchdog` and `--watchdog-thresh` may be on a CPU with this version of PMU.

    Raises:
        ConfigError: they are something else.
    """
    if detector not in state.WATCHDOG_NAMES:
        raise ConfigError("watchdog", f"no detector is named {detector!r}", " ".join(state.WATCHDOG_NAMES))
    if not (math.isfinite(thresh) and LEAST_THRESH <= thresh <= MOST_THRESH):
        raise ConfigError("watchdog-thresh", f"{thresh:g} seconds", f"{LEAST_THRESH:g} to {MOST_THRESH:g}")
    if detector == "nmi" and not version:
        raise ConfigError("watchdog", "detector nmi needs a PMU", "off buddy hpet")


def lockup_detector_init(S: Any, detector: str, thresh: float) -> None:
    """Arm the watchdog of every online CPU, at boot: the first events of all are its own.

    Raises:
        ConfigError: the detector nmi on a CPU without a PMU, or settings that cannot be.
    """
    check_settings(detector, thresh, int(S.cores[0].pmu.version))
    config = S.config
    config.watchdog = state.WATCHDOG_NAMES.index(detector)
    config.watchdog_period = round(thresh * int(config.core_khz) * 1000) * 16
    if detector == state.WATCHDOG_NAMES[state.WATCHDOG_OFF]:
        return
    period = int(config.watchdog_period)
    cpus = int(config.n_cores)
    for cpu in range(cpus):
        S.percpu[cpu].watchdog_at = period * 2 // 5
        if detector == "buddy":  # its first timer may be late
            S.percpu[cpu].watchdog_touched = 1
        elif detector == "hpet":
            S.cores[cpu].nmi_at = period + period * cpu // cpus
        elif detector == "nmi":
            _hardlockup_detector_event_create(S, cpu)


def _hardlockup_detector_event_create(S: Any, cpu: int) -> None:
    i = int(S.perf_rows)
    event = S.perf_events[i]
    event.used = event.watchdog = event.pinned = event.stopped = 1
    event.state = state.PERF_EVENT_STATE_INACTIVE
    event.pmu_type = state.PERF_TYPE_RAW
    event.ctx = event.cpu = cpu
    event.owner = state.OWNER_HOST
    event.pmc = event.spec = -1
    event.leader = i
    event.order = int(S.list_end)
    event.config = CPU_CYCLES
    # Mainline's event counts in guests too: it is one reason for which a mediated vPMU is refused while it
    # exists. In the series it has to exclude them, or the first VM entry puts it into ERROR (patch 03).
    event.exclude_guest = int(S.config.series and not int(S.config.without) & int(patches.WATCHDOG))
    # hw_nmi_get_sample_period(): cpu_khz is the marked frequency, the event counts at turbo
    cycles = int(S.config.watchdog_period) * int(S.config.tsc_khz) // (16 * int(S.config.core_khz))
    event.sample_period = event.period = cycles
    event.period_left = event.period
    S.list_end = S.perf_rows = i + 1


def lockup_report(S: Any) -> dict[str, Any]:
    """The watchdog's part of a result: detector, seconds, and every CPU that is locked up.

    A lockup that nobody has seen has `seen_by` and `tsc` null. Both times are the TSC's.
    """
    config = S.config
    found = []
    for cpu in range(int(config.n_cores)):
        host = S.percpu[cpu]
        if not host.lockup and not host.watchdog_reported:
            continue
        seen = int(host.watchdog_reported)
        by = int(host.watchdog_by) if seen else None
        found.append(
            {
                "cpu": cpu,
                "seen_by": by,
                "since": tsc_value(S.cores[cpu], int(host.lockup_at)) if host.lockup else None,
                "tsc": tsc_value(S.cores[cpu], seen) if seen else None,
                "task": int(S.tasks[int(host.curr)].pid) if int(host.curr) >= 0 else None,
                "message": None if by is None else f"CPU{by}: Watchdog detected hard LOCKUP on cpu {cpu}",
            }
        )
    return {
        "detector": state.WATCHDOG_NAMES[int(config.watchdog)],
        "thresh": int(config.watchdog_period) / (int(config.core_khz) * 16000),
        "lockups": found,
    }
