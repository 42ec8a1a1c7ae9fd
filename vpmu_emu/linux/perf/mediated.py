"""Who may have an event that counts in guests, while there are VMs whose guests own the PMU.

kernel/events/core.c as merged: perf_create_mediated_pmu(), mediated_pmu_account_event().
"""

from __future__ import annotations

from vpmu_emu._jit import jit
from vpmu_emu.linux import state
from vpmu_emu.linux.perf.clocks import pmu_of
from vpmu_emu.tables.linux import ERRNO

EBUSY = -ERRNO["EBUSY"]


@jit()
def is_include_guest_event(S, event):
    """Whether an event of the PMU that guests may own counts in them, KVM's own events too.

    `config.mixed` is the laboratory's: KVM's are scheduled with the thread of their own vCPU, and out of no
    other one's guest.
    """
    if event.owner == state.OWNER_KVM and S.config.mixed != 0:
        return False
    return pmu_of(event.pmu_type) == state.PMU_CORE and event.exclude_guest == 0


@jit()
def nr_mediated_pmu_vms(S):
    """VMs whose guests own the PMU while they run: as long as there are any, no such event is made."""
    n = 0
    for k in range(state.N_VMS):
        n += S.vms[k].created_mediated_pmu
    return n


@jit()
def perf_create_mediated_pmu(S, vm):
    """The guests of VM `vm` will own the PMU: 0, or EBUSY while there are events that count in guests."""
    if nr_mediated_pmu_vms(S) == 0:
        for i in range(S.perf_rows):
            if S.perf_events[i].used != 0 and is_include_guest_event(S, S.perf_events[i]):
                return EBUSY
    S.vms[vm].created_mediated_pmu = 1
    return 0
