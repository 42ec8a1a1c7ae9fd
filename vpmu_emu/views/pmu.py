"""The PMU of a guest as it is seen: by the guest, and in silicon right after the last put. Only looks."""

from __future__ import annotations

from typing import Any

from vpmu_emu.linux.state import N_GP_PMC
from vpmu_emu.views.perf import event_count, hardware_counters


# --- reports --------------------------------------------------------------------------------------------
def guest_pmu(S: Any) -> dict[str, Any]:
    """The PMU as the guest sees it: what host-initiated reads would give. Changes nothing."""
    pmu = S.vcpus[0].pmu
    hardware = hardware_counters(S)
    silicon = S.cores[0].pmu
    mask = int(pmu.counter_bitmask)
    loaded = bool(pmu.guest_ctx_loaded)
    values = []
    for i, pmc in enumerate(pmu.pmcs):
        value = hardware[i] if loaded else int(pmc.counter)
        value += int(pmc.emulated_counter)
        if int(pmc.perf_event) >= 0 and not int(pmc.is_paused):
            value += event_count(S, S.perf_events[int(pmc.perf_event)], hardware)
        values.append(value & mask)
    gp, fixed = int(pmu.nr_arch_gp_counters), int(pmu.nr_arch_fixed_counters)
    through = loaded and bool(S.config.all_passthrough)
    selectors = silicon.eventsel if through else [pmc.eventsel for pmc in pmu.pmcs]
    inside = loaded and bool(S.cores[0].vmx.nonroot)
    return {
        "eventsel": [int(v) for v in selectors[:gp]],
        "pmc": values[:gp],
        "fixed_ctr_ctrl": int(silicon.fixed_ctr_ctrl if through else pmu.fixed_ctr_ctrl),
        "fixed": values[N_GP_PMC : N_GP_PMC + fixed],
        "global_ctrl": int(silicon.global_ctrl if inside else pmu.global_ctrl),
        "global_status": int(silicon.global_status if loaded else pmu.global_status),
    }


def _after_put(S: Any) -> dict[str, Any]:
    """The hardware PMU right after the last put, before host events were scheduled in again."""
    pmu, silicon = S.vcpus[0].pmu, S.cores[0].pmu
    counters = [int(v) for v in pmu.put_counters]
    return {
        "eventsel": [int(v) for v in pmu.put_eventsel[: int(silicon.gp)]],
        "pmc": counters[: int(silicon.gp)],
        "fixed_ctr_ctrl": int(pmu.put_fixed_ctr_ctrl),
        "fixed": counters[N_GP_PMC : N_GP_PMC + int(silicon.fixed)],
        "global_ctrl": int(pmu.put_global_ctrl),
        "global_status": int(pmu.put_global_status),
        "lvtpc": int(pmu.loaded_lvtpc),
    }
