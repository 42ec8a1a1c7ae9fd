"""Each counter of a PMU as its program has it: what it counts, what enables it, how far overflow is."""

from __future__ import annotations

from typing import Any

import attrs

from vpmu_emu.linux.state import N_GP_PMC
from vpmu_emu.machine import msr_index
from vpmu_emu.tables.events import EVENTS, event_by_code, why_uncounted
from vpmu_emu.tables.msrs import by_name, value_words
from vpmu_emu.views.pmi_links import held

_OS, _USR = 1, 2


@attrs.frozen
class Counter:
    """One counter.

    Attributes:
        name, index: pmc0 and 0; fixed0 and 32, its bit in the GLOBAL_* registers.
        value, mask: what it holds, and all that it can hold.
        control: the register that enables it, with `control_value`.
        event: what it counts, in words.
        uncounted: why the model counts nothing for it, "".
        on: its own enable bit.
        rings: 1 counts at CPL 0, 2 above, 3 both.
        global_on: its bit in GLOBAL_CTRL, True where there is no such register.
        asks_pmi: its PMI enable bit.
        overflowed: its bit in GLOBAL_STATUS.
        held: why nothing counts although it is enabled, "" if something does.
    """

    name: str
    index: int
    value: int
    mask: int
    control: str
    control_value: int
    event: str
    uncounted: str
    on: bool
    rings: int
    global_on: bool
    asks_pmi: bool
    overflowed: bool
    held: str = ""

    @property
    def counts(self) -> bool:
        """Whether it is enabled and something counts."""
        return self.on and self.global_on and not self.held and not self.uncounted

    @property
    def left(self) -> int:
        """Events until it overflows."""
        return self.mask + 1 - self.value

    @property
    def row(self) -> int:
        """Its index in the record."""
        return self.index if self.index < 32 else self.index - 32 + N_GP_PMC

    @property
    def idle(self) -> bool:
        """Whether nobody has touched it."""
        return not (self.value or self.control_value or self.overflowed)


def pmu_version(system: Any, k: int = 0) -> int:
    """The version of the program's PMU."""
    return int(system.S.vcpus[k].pmu.version) if system.has_host else int(system.core.pmu.version)


def counters(system: Any, view: dict[str, Any] | None = None) -> list[Counter]:
    """Every counter that the program has.

    Args:
        system: a System.
        view: what `System.guest_pmu` gives, if it is at hand.
    """
    view = view or system.guest_pmu()
    names = system.model.events
    ctrl, status = int(view["global_ctrl"]), int(view["global_status"])
    if pmu_version(system) < 2:
        ctrl = (1 << 64) - 1
    if system.has_host:
        gp_mask = fixed_mask = int(system.S.vcpus[0].pmu.counter_bitmask)
    else:
        gp_mask, fixed_mask = int(system.core.pmu.gp_mask), int(system.core.pmu.fixed_mask)
    found = []
    for i, (value, selector) in enumerate(zip(view["pmc"], view["eventsel"], strict=False)):
        selector = int(selector)
        known = event_by_code(selector, names)
        code = selector & int(msr_index.INTEL_ARCH_EVENT_MASK)
        missing = bool(code) and known is None
        found.append(
            Counter(
                f"pmc{i}", i, int(value), gp_mask, f"IA32_PERFEVTSEL{i}", selector,
                value_words(by_name(f"IA32_PERFEVTSEL{i}"), selector, names) if selector else "",
                why_uncounted(selector, names) if missing else "",
                bool(selector & int(msr_index.ARCH_PERFMON_EVENTSEL_ENABLE)),
                _OS * bool(selector & int(msr_index.ARCH_PERFMON_EVENTSEL_OS))
                | _USR * bool(selector & int(msr_index.ARCH_PERFMON_EVENTSEL_USR)),
                bool(ctrl >> i & 1), bool(selector & int(msr_index.ARCH_PERFMON_EVENTSEL_INT)),
                bool(status >> i & 1),
            )
        )  # fmt: skip
    control = int(view["fixed_ctr_ctrl"])
    for j, value in enumerate(view["fixed"]):
        field = control >> 4 * j & 0xF
        rings = field & (_OS | _USR)
        event = next((e.name for e in EVENTS if e.fixed == j and e.fixed_source), "")
        on = " ".join(word for word, bit in (("os", _OS), ("usr", _USR), ("pmi", 8)) if field & bit)
        found.append(
            Counter(
                f"fixed{j}", 32 + j, int(value), fixed_mask, "IA32_FIXED_CTR_CTRL", field,
                f"{event} {on}" if field else "", "", bool(rings), rings,
                bool(ctrl >> 32 + j & 1), bool(field & int(msr_index.INTEL_FIXED_0_ENABLE_PMI)),
                bool(status >> 32 + j & 1),
            )
        )  # fmt: skip
    reasons = held(system.S, view) if system.has_host else {}
    return [attrs.evolve(it, held=reasons.get(it.name, "")) for it in found]
