"""What of the series a kernel lacks: `config.without`, bit N for patch N of isa/patches.toml."""

from __future__ import annotations

from vpmu_emu._jit import jit
from vpmu_emu.machine.u64 import U64, ZERO

(
    CAPABILITY, GUEST_ENTER, WATCHDOG, VECTOR, HANDLER, LVTPC, MIRROR_MASK, GUEST_MASK, NMI_HANDLER,
    HOST_CAPABILITY, PARAMETER, VCPU, PREDICATE, RDPMC, LOAD_GLOBAL_CTRL, PASS_MSRS, INTEL_PASS_MSRS,
    FULL_WIDTH, WHITELIST, OPERATIONS, INTEL_OPERATIONS, STATUS_SET, SAVE_RESTORE, UNEXPOSED, METRICS_BIT,
    HOST_PERF_CAP, METRICS, GLOBAL_CTRL, VLBR, KVM_LVTPC, KVM_GUEST_ENTER, RUN_LOOP, FILTER, SELECTORS,
    EVENTSEL_HW, CONTROL, FIXED_HW, WRAP, EMULATED, NO_EVENT,
) = (U64(1 << n) for n in range(1, 41))  # fmt: skip


@jit()
def lacks(S, patches):
    """Whether any of these patches is left out."""
    return S.config.without & patches != ZERO
