"""KVM_SET_PMU_EVENT_FILTER: which events a guest may count.

The kernel's side works on masked entries: [7:0] select, [15:8] umask match, [55] exclude, [63:56] umask
mask; an entry without the masked-events flag has mask 0xFF. arch/x86/kvm/pmu.c, uapi/asm/kvm.h.
"""

from __future__ import annotations

from vpmu_emu._jit import jit
from vpmu_emu.linux.state import KVM_PMU_EVENT_ALLOW, N_GP_PMC
from vpmu_emu.machine.mutants import I_FILTER_IGNORED
from vpmu_emu.machine.u64 import BYTE, ONE, U8, U56, U64, ZERO


@jit()
def _filter_contains(vm, first, last, eventsel):
    select = eventsel & BYTE
    umask = (eventsel >> U8) & BYTE
    for k in range(first, last):
        entry = vm.events[k]
        if entry & BYTE == select and umask & (entry >> U56) == (entry >> U8) & BYTE:
            return True
    return False


@jit()
def check_pmu_event_filter(S, i):
    """May pmc i count what its selector says? True if there is no filter."""
    vm = S.vms[S.this_vm]
    if vm.filter_on == 0 or S.cores[S.this_cpu].inject & I_FILTER_IGNORED != ZERO:
        return True
    allow = vm.action == KVM_PMU_EVENT_ALLOW
    if i >= N_GP_PMC:
        listed = (vm.fixed_counter_bitmap >> U64(i - N_GP_PMC)) & ONE != ZERO
    else:
        eventsel = S.vcpus[S.this_vcpu].pmu.pmcs[i].eventsel
        n = vm.nr_includes
        listed = _filter_contains(vm, 0, n, eventsel)
        if listed and _filter_contains(vm, n, n + vm.nr_excludes, eventsel):
            listed = False
    return listed == allow
