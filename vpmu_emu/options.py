"""What a run can be asked, declared once for the command line and the `#: args` lines of guests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import attrs
import click
from click.core import ParameterSource

from vpmu_emu.errors import ConfigError
from vpmu_emu.tables.modes import MODES, Mode
from vpmu_emu.tables.ram import MAX_RAM_MIB

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--vpmu", default=next(iter(MODES)), show_default=True, metavar="MODE",
                 help="; ".join(f"{mode.name}: {mode.doc}" for mode in MODES.values()) + "."),
    click.option("--cpu", default="spr", show_default=True, metavar="MODEL",
                 help="spr, emr, icx, skx or generic (isa/cpus)."),
    click.option("--ram", type=click.IntRange(2, MAX_RAM_MIB), default=64, show_default=True,
                 metavar="MIB", help=f"Memory of the guest: 2 to {MAX_RAM_MIB}."),
    click.option("--cores", type=click.IntRange(1), default=1, show_default=True, metavar="N",
                 help="Processors of the machine: of the program with bare, else of the host."),
    click.option("--entry", metavar="SYMBOL|ADDRESS",
                 help="Begin there instead of at the program's own entry."),
    click.option("--max-insns", type=click.IntRange(1, (1 << 63) - 1), metavar="N",
                 help="Stop after so many instructions of a core's guest, or of its host programs "
                 "(exit status 1)."),
    click.option("--max-cycles", type=click.IntRange(1, (1 << 63) - 1), metavar="N",
                 help="Stop when so many cycles of a core are over, idle ones included (exit status 1)."),
    click.option("--filter", metavar="F.toml",
                 help="PMU event filter, as KVM_SET_PMU_EVENT_FILTER."),
    click.option("--host-event", "host_events", multiple=True, metavar="SPEC",
                 help="A perf event of the host: instructions:D (pinned), cycles:H, branches:u, "
                 "instructions*12; repeatable."),
    click.option("--host", multiple=True, metavar="PROG",
                 help="A program of the host, such as guests/host/noisy_neighbour.s; repeatable."),
    click.option("--watchdog", default="off", show_default=True, metavar="DETECTOR",
                 help="Who finds a hard lockup of the host: off, nmi, buddy, hpet."),
    click.option("--watchdog-thresh", type=float, metavar="SECONDS",
                 help="Its threshold, 10 if not said; parts of a second are allowed."),
    click.option("--all-passthrough", is_flag=True,
                 help="passthrough: let the selectors through too, with no filter."),
    click.option("--set", "settings", multiple=True, metavar="KEY=VALUE",
                 help="Shape of the host CPU (pmu.gp=4); repeatable."),
    click.option("--guest", multiple=True, metavar="KEY=VALUE",
                 help="What the VMM exposes: pmu.version= gp= fixed= width= perf_caps= events_length= "
                 "events_absent=; repeatable."),
    click.option("--kvm", multiple=True, metavar="KEY=VALUE",
                 help="KVM itself: fixed_cap=3, force_emulation_prefix=0; repeatable."),
    click.option("--costs", default="typical", show_default=True, metavar="LEVEL",
                 help="What the host's work costs: low, typical or high of isa/cpus."),
    click.option("--quirk", "quirks", multiple=True, metavar="NAME",
                 help="Bring back a known bug of the RFC; repeatable."),
    click.option("--inject", multiple=True, metavar="NAME",
                 help="Put a deliberate bug in (`vpmu info --json` lists them); repeatable."),
    click.option("--trace", metavar="OUT", help="Write the event trace to this file."),
)  # fmt: skip


@attrs.frozen
class Need:
    """An option that some modes have no use for.

    Attributes:
        name: as messages spell it.
        usual: its value when it is not given.
        fits: whether it can have an effect in a mode.
        why: what a mode without use for it lacks.
    """

    name: str
    usual: Any
    fits: Callable[[Mode], bool]
    why: str


def _hypervisor(mode: Mode) -> bool:
    return mode.hypervisor


def _pmu(mode: Mode) -> bool:
    return mode.enable_pmu


def _series(mode: Mode) -> bool:
    return mode.owns_pmu and mode.kernel.series


_NO_HYPERVISOR = "there is no hypervisor"
_NO_PMU = "guests have no PMU"
_NO_SERIES = "the kernel is without the passthrough series"
NEEDS: dict[str, Need] = {
    "filter": Need("filter", None, _pmu, _NO_PMU),
    "host_events": Need("host-event", (), _hypervisor, _NO_HYPERVISOR),
    "guest": Need("guest", (), _pmu, _NO_PMU),
    "host": Need("host", (), _hypervisor, _NO_HYPERVISOR),
    "watchdog": Need("watchdog", "off", _hypervisor, _NO_HYPERVISOR),
    "watchdog_thresh": Need("watchdog-thresh", None, _hypervisor, _NO_HYPERVISOR),
    "costs": Need("costs", "typical", _hypervisor, _NO_HYPERVISOR),
    "kvm": Need("kvm", (), _hypervisor, _NO_HYPERVISOR),
    "quirks": Need("quirk", (), _series, _NO_SERIES),
    "without": Need("without", (), _series, _NO_SERIES),
    "all_passthrough": Need("all-passthrough", False, _series, _NO_SERIES),
}
"""By the name of the parameter; what is not here has an effect everywhere."""


def unheeded(mode: Mode, options: Mapping[str, Any]) -> dict[str, Any]:
    """Of `options` what is asked and can have no effect in this mode, with the values of nothing asked."""
    found: dict[str, Any] = {}
    for key, need in NEEDS.items():
        value = options.get(key, need.usual)
        if value != need.usual and (value or need.usual is None) and not need.fits(mode):
            found[key] = need.usual
    return found


def check_mode(mode: Mode, options: Mapping[str, Any]) -> None:
    """Raises ConfigError if an option is asked that can have no effect in this mode."""
    for key in unheeded(mode, options):
        need = NEEDS[key]
        may = " ".join(row.name for row in MODES.values() if need.fits(row))
        why = need.why if mode.hypervisor else _NO_HYPERVISOR
        raise ConfigError(need.name, f"{why} in mode {mode.name}", may)


def run_options(function: F) -> F:
    """Decorate a click command with PROG and the options of a run."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return click.argument("prog")(function)


@run_options
def _collect(prog: str, **options: Any) -> dict[str, Any]:
    return options


_COMMAND = click.command(name="args", add_help_option=False)(_collect)


NOT_OF_A_GUEST = {"vpmu": "`#: modes` names modes", "trace": "a check writes no files"}


def parse(args: Sequence[str], **defaults: Any) -> dict[str, Any]:
    """Options from a list of words, as after `vpmu run PROG`.

    Raises:
        ConfigError: an unknown option or a wrong value.
    """
    try:
        with _COMMAND.make_context("args", ["-", *args], default_map=defaults) as context:
            found = dict(context.params)
            for name, why in NOT_OF_A_GUEST.items():
                if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
                    raise ConfigError("args", f"--{name} is not a guest's to say: {why}")
    except click.ClickException as error:
        raise ConfigError("args", error.format_message()) from None
    del found["prog"]
    return found
