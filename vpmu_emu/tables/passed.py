"""Which accesses of a guest reach hardware without an exit: the column `passed` of isa/msrs.toml.

The MSR bitmap, the control for RDPMC, docs/modes.md and `vpmu explain` have it from here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

import attrs

from vpmu_emu.errors import ConfigError
from vpmu_emu.tables.expressions import check_formula, evaluate
from vpmu_emu.tables.modes import VPMUS
from vpmu_emu.tables.msrs import MSRS, RDPMC_PASSED, Passed, Shape, row_of
from vpmu_emu.tables.patches import PATCHES, without_bits

NEVER = "false"
OPERATION = without_bits([16, 17])  # kvm_pmu_ops.passthrough_pmu_msrs, and Intel's


@attrs.frozen(kw_only=True)
class Met:
    """What the formulas are over.

    Attributes:
        guest, host: what the two have.
        all_passthrough: the option.
        without: bit N: patch N of the series is left out.
        x2apicv: APICv is on and the guest's APIC in x2APIC mode.
        lazy: the guest has not touched its PMU yet, and all of it exits until then (`--switch lazy`).
        lbr_active: KVM's event for the guest's branch records is ACTIVE.
    """

    guest: Shape = attrs.field(factory=Shape)
    host: Shape = attrs.field(factory=Shape)
    all_passthrough: bool = False
    without: int = 0
    x2apicv: bool = False
    lazy: bool = False
    lbr_active: bool = False

    def names(self) -> dict[str, int]:
        """Every name that a formula may use but `n`, with its value."""
        shapes = {"guest": self.guest, "host": self.host}
        found = {f"{who}.{key}": n for who, shape in shapes.items() for key, n in shape.names().items()}
        flags = ("all_passthrough", "x2apicv", "lbr_active")
        found |= {f"without{n}": self.without >> n & 1 for n in PATCHES}
        return found | {flag: int(getattr(self, flag)) for flag in flags}

    def column(self, vpmu: str) -> str:
        """The column for MSRs of a guest with this vPMU."""
        return VPMUS[0] if self.without & OPERATION or self.lazy else vpmu


def rule_for(passed: Passed, vpmu: str) -> tuple[str, str]:
    """The formulas of one register for reads and for writes."""
    return passed.rules.get(vpmu, passed.rules.get("every", (NEVER, NEVER)))


def rule_of(vpmu: str, index: int, writes: bool) -> str:
    """The formula for one kind of access of MSR `index`; `NEVER`: it always exits."""
    found = row_of(index)
    return rule_for(found[0].passed, vpmu)[writes] if found else NEVER


@cache
def passed_msrs(vpmu: str, met: Met) -> tuple[tuple[int, bool, bool], ...]:
    """(MSR, whether reads pass, whether writes pass) of every register of which something passes."""
    names = met.names()
    column = met.column(vpmu)
    found = []
    for row in MSRS:
        read, write = rule_for(row.passed, column)
        for n in range(row.count if (read, write) != (NEVER, NEVER) else 0):
            with_n = names | {"n": n}
            reads, writes = bool(evaluate(read, with_n)), bool(evaluate(write, with_n))
            if reads or writes:
                found.append((row.index + n * row.stride, reads, writes))
    return tuple(found)


@cache
def pmu_msrs() -> tuple[int, ...]:
    """Every register that only a guest with the PMU for itself may have in hardware."""
    return tuple(
        row.index + n * row.stride for row in MSRS if VPMUS[1] in row.passed.rules for n in range(row.count)
    )


def rdpmc_passes(vpmu: str, met: Met) -> bool:
    """Whether RDPMC does not exit."""
    return not met.lazy and bool(evaluate(rule_for(RDPMC_PASSED, vpmu)[0], met.names()))


def rule_words(rule: str, names: Mapping[str, int]) -> str:
    """When KVM passes an access, with the numbers that its formula has here."""
    if rule in (NEVER, "true"):
        return f"KVM {'never' if rule == NEVER else 'always'} passes it"
    numbers = re.sub(r"[a-z][\w.]*", lambda name: str(names.get(name[0], name[0])), rule)
    return f"KVM passes it if {rule}: {numbers}"


def check(name: str, passed: Passed, known: Mapping[str, int]) -> None:
    """Look at the columns of one row.

    Raises:
        ConfigError: an unknown column, or a formula that is none; with row and key.
    """
    for vpmu, rules in passed.rules.items():
        if vpmu not in ("every", *VPMUS):
            known_vpmus = " ".join(("every", *VPMUS))
            raise ConfigError(f"msrs.toml: {name}: passed.{vpmu}", "no such vPMU", known_vpmus)
        for rule in rules:
            try:
                check_formula(rule, known)
            except ConfigError as error:
                raise ConfigError(f"msrs.toml: {name}: passed.{vpmu}", str(error)) from None


_KNOWN = Met().names() | {"n": 0}
for _row in MSRS:
    check(_row.name, _row.passed, _KNOWN)
check("rdpmc", RDPMC_PASSED, _KNOWN)
