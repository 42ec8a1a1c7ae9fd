"""The PMU of SDM volume 3 chapter 20, counting by a loop over all counters after every instruction.

Only events that a functional model knows exactly are counted. A selector of any other event, or one
with CMASK, INV or EDGE (which need cycles), leaves its counter alone; `Pmu.is_modelled` tells.
"""

from __future__ import annotations

from dataclasses import dataclass

INST, NOP, LOAD, STORE = "inst", "nop", "load", "store"
BRANCH, COND, TAKEN, CALL, RET, FAR, INDIRECT = (
    "branch",
    "cond",
    "taken",
    "call",
    "ret",
    "far",
    "indirect",
)

EN_USR, EN_OS, EN_EDGE, EN_INT, EN_ANY, EN_EN, EN_INV = (
    1 << 16,
    1 << 17,
    1 << 18,
    1 << 20,
    1 << 21,
    1 << 22,
    1 << 23,
)
CTR_FRZ = 1 << 59
FREEZE_PERFMON_ON_PMI = 1 << 12


def _is(*wanted: str):  # type: ignore[no-untyped-def]
    """One if the instruction has every wanted class (a name with '-' must be absent)."""

    def rule(classes: frozenset[str]) -> int:
        return int(
            all((w[1:] not in classes) if w.startswith("-") else (w in classes) for w in wanted)
        )

    return rule


# (event, umask) -> rule; the names are those of Intel's Sapphire Rapids event list.
EVENTS = {
    (0xC0, 0x00): ("INST_RETIRED.ANY_P", _is(INST)),
    (0xC0, 0x02): ("INST_RETIRED.NOP", _is(NOP)),
    (0xC4, 0x00): ("BR_INST_RETIRED.ALL_BRANCHES", _is(BRANCH)),
    (0xC4, 0x01): ("BR_INST_RETIRED.COND_TAKEN", _is(COND, TAKEN)),
    (0xC4, 0x02): ("BR_INST_RETIRED.NEAR_CALL", _is(CALL)),
    (0xC4, 0x08): ("BR_INST_RETIRED.NEAR_RETURN", _is(RET)),
    (0xC4, 0x10): ("BR_INST_RETIRED.COND_NTAKEN", _is(COND, "-" + TAKEN)),
    (0xC4, 0x11): ("BR_INST_RETIRED.COND", _is(COND)),
    (0xC4, 0x20): ("BR_INST_RETIRED.NEAR_TAKEN", _is(TAKEN, "-" + FAR)),
    (0xC4, 0x40): ("BR_INST_RETIRED.FAR_BRANCH", _is(FAR)),
    (0xC4, 0x80): ("BR_INST_RETIRED.INDIRECT", _is(INDIRECT)),
    (0xD0, 0x81): ("MEM_INST_RETIRED.ALL_LOADS", _is(LOAD)),
    (0xD0, 0x82): ("MEM_INST_RETIRED.ALL_STORES", _is(STORE)),
    # Loads and stores: an instruction that does both counts twice.
    (0xD0, 0x83): ("MEM_INST_RETIRED.ANY", lambda c: int(LOAD in c) + int(STORE in c)),
}
# Intel's event list lets only the first four counters count these.
FIRST_FOUR = 0xD0
MODELLED_EVENTS = frozenset(EVENTS)
# Fixed counters 1, 2 and 3 count cycles, reference cycles and slots.
MODELLED_FIXED = frozenset({0})


@dataclass(frozen=True)
class Shape:
    """What CPUID 0AH and IA32_PERF_CAPABILITIES say; the default is a Sapphire Rapids core."""

    version: int = 5
    gp: int = 8
    fixed: int = 4
    width: int = 48
    fixed_width: int = 48
    perf_caps: int = 0xE4FF
    rtm: bool = False


class Gp(Exception):
    """#GP(0) of an MSR access or RDPMC."""


class Pmu:
    """One logical processor's PMU.  MSR methods raise `Gp`; `retire` returns PMI requests."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.gp = [0] * shape.gp
        self.evtsel = [0] * shape.gp
        self.fixed = [0] * shape.fixed
        self.fixed_ctrl = 0
        # SDM 20.2.2: IA32_PERF_GLOBAL_CTRL resets with every general counter enabled.
        self.global_ctrl = (1 << shape.gp) - 1
        self.status = 0
        self.debugctl = 0

    # --- MSRs -------------------------------------------------------------------------------

    def _has_metrics(self) -> bool:
        # PERF_METRICS divides the slots of fixed counter 3.
        return bool(self.shape.perf_caps & (1 << 15)) and self.shape.fixed > 3

    def _global_bits(self) -> int:
        counters = ((1 << self.shape.gp) - 1) | (((1 << self.shape.fixed) - 1) << 32)
        return counters | self._has_metrics() << 48

    def _evtsel_allowed(self) -> int:
        allowed = 0xFFFFFFFF
        # AnyThread came with version 3; where it is deprecated the bit is kept and does nothing.
        if self.shape.version < 3:
            allowed &= ~EN_ANY
        if self.shape.perf_caps & (1 << 14):
            allowed |= 1 << 34
        if self.shape.rtm:
            allowed |= 3 << 32
        return allowed

    def _fixed_ctrl_allowed(self) -> int:
        nibble = 0xF if self.shape.version >= 3 else 0xB
        allowed = 0
        for i in range(self.shape.fixed):
            allowed |= nibble << (4 * i)
            if self.shape.perf_caps & (1 << 14):
                allowed |= 1 << (32 + 4 * i)
        return allowed

    def owns(self, msr: int) -> bool:
        s = self.shape
        if 0xC1 <= msr < 0xC1 + s.gp or 0x186 <= msr < 0x186 + s.gp:
            return s.version >= 1
        if 0x4C1 <= msr < 0x4C1 + s.gp:
            return s.version >= 1 and bool(s.perf_caps & (1 << 13))
        if 0x309 <= msr < 0x309 + s.fixed:
            return s.version >= 2
        if msr in (0x38D, 0x38E, 0x38F, 0x390):
            return s.version >= 2
        if msr in (0x391, 0x392):
            return s.version >= 4
        return msr in (0x345, 0x1D9)

    def rdmsr(self, msr: int) -> int:
        s = self.shape
        if not self.owns(msr):
            raise Gp
        if 0xC1 <= msr < 0xC1 + s.gp:
            return self.gp[msr - 0xC1]
        if 0x4C1 <= msr < 0x4C1 + s.gp:
            return self.gp[msr - 0x4C1]
        if 0x186 <= msr < 0x186 + s.gp:
            return self.evtsel[msr - 0x186]
        if 0x309 <= msr < 0x309 + s.fixed:
            return self.fixed[msr - 0x309]
        if msr == 0x38D:
            return self.fixed_ctrl
        if msr == 0x38E:
            return self.status
        if msr == 0x38F:
            return self.global_ctrl
        if msr == 0x392:
            return self._inuse()
        if msr == 0x345:
            return s.perf_caps
        if msr == 0x1D9:
            return self.debugctl
        return 0  # 0x390 and 0x391 read as zero

    def wrmsr(self, msr: int, value: int) -> None:
        s = self.shape
        if not self.owns(msr):
            raise Gp
        if 0xC1 <= msr < 0xC1 + s.gp:
            # SDM 20.2.8: a legacy write takes bits 31:0, sign-extended to the width.
            low = value & 0xFFFFFFFF
            if low >> 31:
                low |= 0xFFFFFFFF00000000
            self.gp[msr - 0xC1] = low & ((1 << s.width) - 1)
        elif 0x4C1 <= msr < 0x4C1 + s.gp:
            if value >> s.width:
                raise Gp
            self.gp[msr - 0x4C1] = value
        elif 0x186 <= msr < 0x186 + s.gp:
            if value & ~self._evtsel_allowed():
                raise Gp
            self.evtsel[msr - 0x186] = value
        elif 0x309 <= msr < 0x309 + s.fixed:
            if value >> s.fixed_width:
                raise Gp
            self.fixed[msr - 0x309] = value
        elif msr == 0x38D:
            if value & ~self._fixed_ctrl_allowed():
                raise Gp
            self.fixed_ctrl = value
        elif msr == 0x38F:
            if value & ~self._global_bits():
                raise Gp
            self.global_ctrl = value
        elif msr == 0x390:
            # SDM volume 4, table 2-2: uncore overflow since version 3; freezes and ASCI since 4.
            allowed = self._global_bits() | 0b11 << 62
            if s.version >= 3:
                allowed |= 1 << 61
            if s.version >= 4:
                allowed |= 0b111 << 58
            if value & ~allowed:
                raise Gp
            self.status &= ~value
        elif msr == 0x391:
            if value & ~(self._global_bits() | 0b11 << 61 | 0b111 << 58 | 1 << 55):
                raise Gp
            self.status |= value
        elif msr == 0x1D9:
            allowed = 0b11  # LBR, BTF; no branch trace (MISC_ENABLE[11]), no bus lock detection
            if s.version >= 2:
                allowed |= 0b11 << 11  # freeze the LBRs, freeze the counters
            if s.perf_caps & (1 << 12):
                allowed |= 1 << 14  # freeze in SMM
            if s.rtm:
                allowed |= 1 << 15
            if value & ~allowed:
                raise Gp
            self.debugctl = value
        else:
            raise Gp  # 0x345, 0x38E, 0x392 are read-only

    def _inuse(self) -> int:
        value = 0
        for i, evtsel in enumerate(self.evtsel):
            if evtsel & 0xFF:
                value |= 1 << i
            if evtsel & EN_INT:
                value |= 1 << 63
        for i in range(self.shape.fixed):
            nibble = self.fixed_ctrl >> (4 * i)
            if nibble & 3:
                value |= 1 << (32 + i)
            if nibble & 8:
                value |= 1 << 63
        return value

    def rdpmc(self, ecx: int) -> int:
        """The counter RDPMC selects by ECX (type in 31:16, index in 15:0).  Raises: Gp."""
        kind, index = (ecx >> 16) & 0xFFFF, ecx & 0xFFFF
        if self.shape.version >= 1 and kind == 0 and index < self.shape.gp:
            return self.gp[index]
        if self.shape.version >= 2 and kind == 0x4000 and index < self.shape.fixed:
            return self.fixed[index]
        if kind == 0x2000 and index == 0 and self._has_metrics():
            return 0  # nobody sets it in motion here
        raise Gp

    # --- counting ---------------------------------------------------------------------------

    def is_modelled(self, counter: int) -> bool:
        """False when what this counter (GP 0.., fixed 32..) is set to count is outside the model."""
        if counter >= 32:
            nibble = (self.fixed_ctrl >> (4 * (counter - 32))) & 3
            return nibble == 0 or counter - 32 in MODELLED_FIXED
        evtsel = self.evtsel[counter]
        if not evtsel & EN_EN:
            return True
        plain = not evtsel & (0xFF << 24 | EN_INV | EN_EDGE | 3 << 32)
        return plain and (evtsel & 0xFF, (evtsel >> 8) & 0xFF) in MODELLED_EVENTS

    def enables(self, cpl: int) -> list[tuple[int, tuple[int, int]]]:
        """The (counter, event) pairs that count at `cpl` right now."""
        found = []
        if self.shape.version >= 4 and self.status & CTR_FRZ:
            return []
        for i, evtsel in enumerate(self.evtsel):
            if self.shape.version >= 2 and not (self.global_ctrl >> i) & 1:
                continue
            if not evtsel & EN_EN or not evtsel & (EN_USR if cpl else EN_OS):
                continue
            if evtsel & 0xFF == FIRST_FOUR and i > 3:
                continue
            if self.is_modelled(i):
                found.append((i, (evtsel & 0xFF, (evtsel >> 8) & 0xFF)))
        for i in range(self.shape.fixed):
            if not (self.global_ctrl >> (32 + i)) & 1 or i not in MODELLED_FIXED:
                continue
            if (self.fixed_ctrl >> (4 * i)) & (2 if cpl else 1):
                found.append((32 + i, (0xC0, 0x00)))
        return found

    def retire(
        self, found: list[tuple[int, tuple[int, int]]], classes: frozenset[str]
    ) -> tuple[list[int], bool]:
        """Count one retired instruction under the enables that it found.

        Returns: the counters that overflowed, and whether one of them requests a PMI.
        """
        overflowed, pmi = [], False
        for counter, event in found:
            for _ in range(EVENTS[event][1](classes)):
                if counter < 32:
                    self.gp[counter] = (self.gp[counter] + 1) & ((1 << self.shape.width) - 1)
                    wrapped = self.gp[counter] == 0
                    wants = bool(self.evtsel[counter] & EN_INT)
                else:
                    i = counter - 32
                    self.fixed[i] = (self.fixed[i] + 1) & ((1 << self.shape.fixed_width) - 1)
                    wrapped = self.fixed[i] == 0
                    wants = bool((self.fixed_ctrl >> (4 * i)) & 8)
                if wrapped:
                    overflowed.append(counter)
                    if self.shape.version >= 2:
                        self.status |= 1 << counter
                    pmi = pmi or wants
        if pmi and self.debugctl & FREEZE_PERFMON_ON_PMI:
            if self.shape.version >= 4:
                self.status |= CTR_FRZ
            else:
                self.global_ctrl = 0
        return overflowed, pmi
