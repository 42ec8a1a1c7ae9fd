"""`isa/modes.toml` as frozen rows: what a mode is, so that nobody has to compare its name."""

from __future__ import annotations

import tomllib

import attrs

from vpmu_emu.data import isa_dir

VPMUS = ("emulated", "passthrough", "mediated")
"""What KVM has had as a virtual PMU: made of perf events, of the series, as merged."""


SWITCH_POLICIES = ("eager", "elide", "enabled-only", "lazy", "run-loop")
"""How much KVM does of a switch of the PMU context of a guest that owns the PMU."""


def kernel_version(major: int, minor: int) -> int:
    """LINUX_VERSION_CODE of a release: what `config.kernel` is compared with."""
    return major << 16 | minor << 8


@attrs.frozen(kw_only=True)
class Kernel:
    """A kernel whose rules can hold.

    Attributes:
        name: as `#: kernels` lines and docs/divergences.md spell it.
        version: LINUX_VERSION_CODE, 0 for no kernel.
        series: the passthrough series is applied to it.
        doc: one line.
    """

    name: str
    version: int = 0
    series: bool = False
    doc: str


@attrs.frozen(kw_only=True)
class Mode:
    """A value of `--vpmu`.

    Attributes:
        name: as users write it.
        kernel: the host's.
        enable_pmu: KVM's module parameter: guests have a PMU.
        owner: who has the hardware counters while a guest runs, "perf" or "guest"; "" without a hypervisor.
        default: a guest that names no modes is checked in this one.
        doc: one line.
        switch: what its kernel does of SWITCH_POLICIES, where the guest owns the PMU.
        caps: guests have neither branch records nor PEBS; None: if they own the PMU.
    """

    name: str
    kernel: Kernel
    enable_pmu: bool = False
    owner: str = ""
    default: bool = False
    doc: str
    switch: str = SWITCH_POLICIES[0]
    caps: bool | None = None

    @property
    def hypervisor(self) -> bool:
        """Whether there is a host with KVM under the guest."""
        return self.kernel.version != 0

    @property
    def owns_pmu(self) -> bool:
        """Whether the guest has the hardware counters while it runs."""
        return self.enable_pmu and self.owner == "guest"

    @property
    def few_caps(self) -> bool:
        """Whether guests have neither branch records nor PEBS."""
        return self.owns_pmu if self.caps is None else self.caps

    @property
    def vpmu(self) -> str:
        """Which of VPMUS its guests have; where they have none, KVM does as with perf's."""
        if not self.owns_pmu:
            return VPMUS[0]
        return VPMUS[1] if self.kernel.series else VPMUS[2]


_TABLE = tomllib.loads((isa_dir() / "modes.toml").read_text())
KERNELS: dict[str, Kernel] = {
    row["name"]: Kernel(**row | {"version": kernel_version(*row.get("version", (0, 0)))})
    for row in _TABLE["kernel"]
}
"""By name, in the table's order."""
MODES: dict[str, Mode] = {
    row["name"]: Mode(**row | {"kernel": KERNELS[row["kernel"]]}) for row in _TABLE["mode"]
}
"""By name, in the table's order."""


def mode_names() -> tuple[str, ...]:
    """Every value of `--vpmu`."""
    return tuple(MODES)


def default_modes() -> tuple[str, ...]:
    """Those in which guests are checked and shown side by side."""
    return tuple(mode.name for mode in MODES.values() if mode.default)


def mode_of(config: object) -> Mode:
    """The mode of a run as KVM was loaded, from its `S.config`."""
    row = tuple(MODES.values())[int(config.mode)]  # type: ignore[attr-defined]
    if not row.hypervisor:
        return row
    owner = "guest" if int(config.owns_pmu) else "perf"  # type: ignore[attr-defined]
    return attrs.evolve(row, owner=owner, caps=bool(config.few_caps))  # type: ignore[attr-defined]
