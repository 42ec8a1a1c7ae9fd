"""KVM_SET_PMU_EVENT_FILTER: which events a guest may count.

The kernel's side works on masked entries: [7:0] select, [15:8] umask match, [55] exclude, [63:56] umask
mask; an entry without the masked-events flag has mask 0xFF. arch/x86/kvm/pmu.c, uapi/asm/kvm.h.
"""

from __future__ import annotations

from vpmu_emu._jit import jit
from vpmu_emu.linux.percpu import this_core
from vpmu_emu.linux.state import KVM_PMU_EVENT_ALLOW, N_GP_PMC
from vpmu_emu.linux.trace_kinds import (
    FILTER_EXCLUDED,
    FILTER_FIXED,
    FILTER_LISTED,
    FILTER_UNLISTED,
    TR_FILTER,
)
from vpmu_emu.machine.mutants import I_FILTER_IGNORED
from vpmu_emu.machine.ring import emit
from vpmu_emu.machine.u64 import BYTE, ONE, U8, U56, U64, ZERO


@jit()
def _filter_entry(vm, first, last, eventsel):
    # The first entry of these that has the event, -1 if none has.
    select = eventsel & BYTE
    umask = (eventsel >> U8) & BYTE
    for k in range(first, last):
        entry = vm.events[k]
        if entry & BYTE == select and umask & (entry >> U56) == (entry >> U8) & BYTE:
            return k
    return -1


@jit()
def check_pmu_event_filter(S, E, vcpu, i):
    """May pmc i count what its selector says? True if there is no filter."""
    vm = S.vms[vcpu.vm]
    if vm.filter_on == 0 or this_core(S).inject & I_FILTER_IGNORED != ZERO:
        return True
    entry, told = -1, FILTER_FIXED
    if i >= N_GP_PMC:
        listed = (vm.fixed_counter_bitmap >> U64(i - N_GP_PMC)) & ONE != ZERO
    else:
        eventsel = vcpu.pmu.pmcs[i].eventsel
        n = vm.nr_includes
        entry = _filter_entry(vm, 0, n, eventsel)
        listed = entry >= 0
        told = FILTER_LISTED if listed else FILTER_UNLISTED
        if listed:
            excluded = _filter_entry(vm, n, n + vm.nr_excludes, eventsel)
            if excluded >= 0:
                listed, entry, told = False, excluded, FILTER_EXCLUDED
    allowed = listed == (vm.action == KVM_PMU_EVENT_ALLOW)
    told |= max(entry, 0) << 8
    emit(E, this_core(S).t, TR_FILTER, ZERO, U64(i), ONE if allowed else ZERO, U64(told))
    return allowed
