"""Deliberate bugs: bits of `core.inject`, looked at only where something rare happens.

`isa/mutants.toml` says what each bug is. The rules that silicon and KVM share ask for them in `pmu_rules`:
a bug is the same in every mode.
"""

from __future__ import annotations

from vpmu_emu.machine.u64 import U64
from vpmu_emu.tables.mutants import mutant

I_BOTH_WRMSRS = mutant("both-wrmsrs-count").bit
I_NO_WRMSR = mutant("no-wrmsr-counts").bit
I_CALL = mutant("call-not-a-branch").bit
I_UNTAKEN = mutant("untaken-jcc-not-a-branch").bit
I_MORE_INSTRUCTIONS = mutant("instructions-2-percent-more").bit
I_FIXED0_DOUBLE = mutant("fixed0-counts-double").bit
I_FEP = mutant("fep-not-counted").bit
I_CPUID = mutant("cpuid-exit-not-counted").bit
I_CMASK = mutant("cmask-ignored").bit
I_OS = mutant("os-bit-ignored").bit
I_GLOBAL_CTRL = mutant("global-ctrl-ignored").bit
I_NO_SIGN = mutant("perfctr-not-sign-extended").bit
I_STORE_64 = mutant("perfctr-stores-64-bits").bit
I_RDMSR_32 = mutant("rdmsr-perfctr-32-bits").bit
I_PMC_WIDTH = mutant("pmc-width-unchecked").bit
I_FIXED_32 = mutant("fixed-write-32-bits").bit
I_RUNNING_WRITE = mutant("running-write-ignored").bit
I_OFF_CLEARS = mutant("evtsel-off-clears").bit
I_RDPMC_64 = mutant("rdpmc-64-accepted").bit
I_RDPMC_32 = mutant("rdpmc-low-32-bits").bit
I_FAST_32 = mutant("fast-rdpmc-low-32-bits").bit
I_FAST_FULL = mutant("fast-rdpmc-full-width").bit
I_STATUS_NEVER = mutant("status-never-set").bit
I_FIXED_STATUS = mutant("fixed-status-never-set").bit
I_EARLY = mutant("overflow-flagged-early").bit
I_RESET_IGNORED = mutant("status-reset-ignored").bit
I_RESET_ALL = mutant("status-reset-clears-all").bit
I_RESET_DROPS_PMI = mutant("status-reset-drops-pmi").bit
I_PMI_NEVER = mutant("pmi-never-raised").bit
I_PMI_ALWAYS = mutant("pmi-always-raised").bit
I_FIXED_PMI = mutant("fixed-pmi-missing").bit
I_NO_LVTPC_MASK = mutant("no-lvtpc-mask").bit
I_ABSENT_PERFCTR = mutant("absent-perfctr-faults").bit
I_RESET_TO_0 = mutant("global-ctrl-resets-to-0").bit
I_PMI_BEFORE_PMU = mutant("pmi-before-pmu").bit
I_KEEP_SELECTORS = mutant("keep-selectors").bit
I_LOSE_REPROGRAM = mutant("lose-reprogram").bit
I_FILTER_IGNORED = mutant("filter-ignored").bit
I_SPIN = mutant("spin-in-the-switch").bit

_FASTER = I_MORE_INSTRUCTIONS | I_FIXED0_DOUBLE
_FAST = I_FAST_32 | I_FAST_FULL
_FAST_FLAG = U64(1 << 31)
_INDEX_64 = U64(64)
_HIGH32 = U64(0xFFFF_FFFF_0000_0000)
