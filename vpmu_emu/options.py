"""What a run can be asked, declared once: for the command line, `#: args` lines, Python and plain data.

A field of `Options` says how its option is spelled, what it takes, and what a mode must have for it to
have an effect. Everything else follows: words on the command line, keywords of Python, help,
docs/options.md, and every refusal, which comes before a file is read or anything is compiled.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import attrs
import click
from click.core import ParameterSource

from vpmu_emu.data import isa_dir
from vpmu_emu.errors import ConfigError
from vpmu_emu.numerals import shown, whole
from vpmu_emu.tables.modes import MODES, SWITCH_POLICIES, Mode
from vpmu_emu.tables.ram import LOW_RAM_MIB, MAX_RAM_MIB

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T", bound=type[Any])
RUN_LOOP = SWITCH_POLICIES[-1]
COST_LEVELS = ("low", "typical", "high")
HERTZ = (100, 250, 300, 1000)  # what CONFIG_HZ of a kernel can be
NOHZ = ("full", "idle")  # nohz_full for every CPU, or NO_HZ_IDLE alone
MOST = (1 << 63) - 1
MOST_SKID = 1_000_000  # cycles: far more than any switch of a PMU takes
DECIMAL = re.compile(r"[+-]?[1-9][0-9]*")  # as long as it likes


# --- words of refusals ----------------------------------------------------------------------------------


def did_you_mean(name: object, names: Iterable[str]) -> str:
    """"; did you mean X?" with the nearest of `names`, "" if none is near."""
    near = difflib.get_close_matches(name, list(names), 1) if isinstance(name, str) else []
    return f"; did you mean {near[0]}?" if near else ""


def known(key: str, what: str, name: object, names: Iterable[str], allowed: str = "") -> None:
    """Raises ConfigError unless `name` is one of `names`; `what` is the kind of thing they name."""
    names = list(names)
    if name not in names:
        message = f"no {what} is named {shown(name)}{did_you_mean(name, names)}"
        raise ConfigError(key, message, allowed or " ".join(names))


# --- what an option takes: text or a value of Python to what the field holds ------------------------------


def _word(option: Option, value: Any) -> Any:
    if not isinstance(value, str):
        raise ConfigError(option.name, f"{shown(value)} is not a word")
    return value


def _number(option: Option, value: Any) -> Any:
    if value is None and option.usual is None:
        return None
    low, high = option.bounds()
    allowed = f"{low} to {'2**63 - 1' if high == MOST else high}"
    number = _whole(value)
    if number is None and not (isinstance(value, str) and DECIMAL.fullmatch(value)):
        raise ConfigError(option.name, f"{shown(value)} is not a valid integer", allowed)
    if number is None or not low <= number <= high:
        text = shown(value if number is None else number).strip("'")
        raise ConfigError(option.name, f"{text} is not in the range", allowed)
    return number


def _whole(value: Any) -> int | None:
    if isinstance(value, str):
        return whole(value)
    return int(value) if hasattr(value, "__index__") and not isinstance(value, bool) else None


def _seconds(option: Option, value: Any) -> Any:
    if value is None:
        return None
    try:
        if isinstance(value, bool) or (isinstance(value, str) and not value.isascii()):
            raise ValueError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(option.name, f"{shown(value)} is not a number of seconds") from None


def _flag(option: Option, value: Any) -> Any:
    if not isinstance(value, int) or value not in (0, 1):
        raise ConfigError(option.name, f"{shown(value)} is neither true nor false", "True False")
    return bool(value)


def _things(_: Option, value: Any) -> Any:
    if value is None or isinstance(value, str | Path) or not isinstance(value, Iterable):
        # One word is what Python's callers mean by a string, not its letters.
        return () if value is None else (value,)
    return tuple(value)


def _word_or_none(option: Option, value: Any) -> Any:
    return None if value is None else _word(option, value)


def _words(option: Option, value: Any) -> Any:
    return tuple(_word(option, word) for word in _things(option, value))


def _patches(option: Option, value: Any) -> Any:
    return tuple(_patch(option, word) for word in _things(option, value))


def _patch(option: Option, word: Any) -> int:
    # As the series numbers them, and mails too: 7, 07, 0007.
    digits = word.strip() if isinstance(word, str) else ""
    number = int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 5 else _whole(word)
    if number is None:
        raise ConfigError(option.name, f"{shown(word)} is not the number of a patch", "docs/patches.md")
    return number


def _skid(option: Option, value: Any) -> Any:
    # Two numbers of cycles, as text or as a pair; the field holds them as text.
    parts = value.split(":") if isinstance(value, str) else value
    asked = [_whole(part) for part in parts] if isinstance(parts, list | tuple) else []
    numbers = [number for number in asked if number is not None]
    if len(asked) != 2 or numbers != asked:
        raise ConfigError(option.name, f"{shown(value)} is not OVERFLOW:RECOGNITION", "such as 100:0")
    for number in numbers:
        if not 0 <= number <= MOST_SKID:
            raise ConfigError(option.name, f"{shown(number)} cycles", f"0 to {MOST_SKID}")
    return ":".join(map(str, numbers))


def _pairs(option: Option, value: Any) -> Any:
    return pairs(option.name, value)


def pairs(key: str, items: Any) -> dict[str, int]:
    """`KEY=VALUE` words, or a mapping, as numbers.

    Raises:
        ConfigError: a word that is no pair, a value that is no number.
    """
    found: dict[str, int] = {}
    given = items.items() if isinstance(items, Mapping) else [(w,) for w in _things(FORM, items)]
    for item in given:
        name, text = item if len(item) == 2 else _halves(item[0])
        value = _whole(text) if isinstance(name, str) else None
        if value is None or (value < 0 and len(item) == 1):
            raise ConfigError(key, f"{shown(item[0])} is not NAME=NUMBER", "such as pmu.gp=4")
        found[name.strip()] = value
    return found


def _definitions(option: Option, value: Any) -> Any:
    found: dict[str, int] = {}
    given = value.items() if isinstance(value, Mapping) else _things(option, value)
    for item in given:
        name, text = item if isinstance(item, tuple | list) and len(item) == 2 else _halves(item)
        number = _whole(text) if isinstance(name, str) else None
        if number is None:
            raise ConfigError(option.name, f"{shown(item)} is not NAME=NUMBER", "such as HZ=250")
        found[name] = number
    return found


def _halves(word: Any) -> tuple[str, str]:
    name, _, text = word.partition("=") if isinstance(word, str) else ("", "", "")
    return name, text


def _having(what: str, field: str, words: Any = str | Path) -> Callable[[Option, Any], Any]:
    # Text or a path, or an object of a part of the package that knows options: it has this field.
    def takes(option: Option, value: Any) -> Any:
        for each in _things(option, value):
            if not (isinstance(each, words) or hasattr(each, field)):
                raise ConfigError(option.name, f"{shown(each)} is not {what}")
        return _things(option, value) if option.many else value

    return takes


def _place(option: Option, value: Any) -> Any:
    if value is not None and (isinstance(value, bool) or not isinstance(value, str | int)):
        raise ConfigError(option.name, f"{shown(value)} is not a symbol or an address")
    return value


def _output(_: Option, value: Any) -> Any:
    return value if isinstance(value, str | Path) else bool(value) or None


# --- what a value must be, once there is a machine for it -------------------------------------------------


def _mode(key: str, name: str) -> None:
    known(key, "mode", name, MODES)


def _other_mode(key: str, name: str | None) -> None:
    if name is not None:
        _mode(key, name)


def _cpu(_: str, name: str) -> None:
    from vpmu_emu.tables.cpus import cpu

    cpu(name)


def _level(key: str, name: str) -> None:
    known(key, "level", name, COST_LEVELS)


def _symbols(_: str, values: Mapping[str, int]) -> None:
    from vpmu_emu.asm.core import check_defsym

    check_defsym(values)


def _hertz(key: str, hz: int) -> None:
    if hz not in HERTZ:
        raise ConfigError(key, f"no kernel has {hz} ticks a second", _listed(HERTZ))


def _nohz(key: str, when: str) -> None:
    known(key, "way to stop the tick", when, NOHZ)


def _policy(key: str, name: str | None) -> None:
    if name is not None:
        known(key, "policy", name, SWITCH_POLICIES)


def _detector(key: str, name: str) -> None:
    from vpmu_emu.linux.state import WATCHDOG_NAMES

    known(key, "detector", name, WATCHDOG_NAMES)


def _thresh(_: str, seconds: float | None) -> None:
    from vpmu_emu.linux.watchdog import check_settings

    if seconds is not None:
        check_settings("off", seconds, 0)


ENGINES = ("auto", "interpreter", "translator")
HOT = 1000  # a region costs what the interpreter does in a few million instructions


def _engine(key: str, name: str) -> None:
    known(key, "engine", name, ENGINES)


def _vector(key: str, name: str) -> None:
    from vpmu_emu.linux.state import PMI_VECTOR_NAMES

    known(key, "vector", name, PMI_VECTOR_NAMES)


def _quirks(key: str, names: Sequence[str]) -> None:
    from vpmu_emu.linux.state import QUIRKS, V1

    for name in names:
        known(key, key, name, (V1, *QUIRKS))


def _without(key: str, numbers: Sequence[int]) -> None:
    from vpmu_emu.tables.patches import PATCHES

    may = f"1 to {max(row.number for row in PATCHES.values() if not row.outside)}"
    for number in numbers:
        if number not in PATCHES:
            raise ConfigError(key, f"the series has no patch {shown(number)}", may)
        row = PATCHES[number]
        if row.outside:
            raise ConfigError(key, f"patch {number} ({row.title}) is not emulated: {row.outside}", may)


def _bugs(key: str, names: Sequence[str]) -> None:
    from vpmu_emu.tables.mutants import MUTANTS

    for name in names:
        known(key, "bug", name.strip().lower(), [m.name for m in MUTANTS], "`vpmu info --json` lists them")


def check_host_keys(key: str, values: Mapping[str, int]) -> None:
    """Whether every key is one of `--set`, and its value by itself allowed.

    Raises:
        ConfigError: it is not.
    """
    from vpmu_emu.tables.cpus import settable

    pmu = {name: value for name, value in values.items() if not name.startswith(("cost.", "model."))}
    others = {name: value for name, value in values.items() if name not in pmu}
    if others or not {f"pmu.{name.removeprefix('pmu.')}" for name in pmu} <= set(HOST_KEYS):
        may = f"{_listed(HOST_KEYS)}, cost.ROW, model.NAME as `vpmu info --cpu` lists them"
        for name in values:
            if name not in settable() and f"pmu.{name.removeprefix('pmu.')}" not in HOST_KEYS:
                hint = _near_key(name, [*HOST_KEYS, *settable()])
                raise ConfigError(f"{key} {shown(name)[1:-1]}", f"unknown key{hint}", may)
        check_keys(key, others, settable())
    check_keys(key, pmu, HOST_KEYS)


def _near_key(name: str, keys: Sequence[str]) -> str:
    # What is behind the dot counts: `llc_mis` and `modl.llc_miss` mean the same.
    short = {key.partition(".")[2]: key for key in keys}
    found = difflib.get_close_matches(name, keys, 1) or [
        short[near] for near in difflib.get_close_matches(name.rpartition(".")[2], list(short), 1)
    ]
    return f"; did you mean {found[0]}?" if found else ""


def _guest_keys(key: str, values: Mapping[str, int]) -> None:
    from vpmu_emu.linux.kvm.cpuid import GUEST_KEYS

    check_keys(key, values, {f"pmu.{name}": range(high + 1) for name, high in GUEST_KEYS.items()})


def _kvm_keys(key: str, values: Mapping[str, int]) -> None:
    check_keys(key, values, KVM_KEYS)


HOST_KEYS: dict[str, range] = {
    "pmu.version": range(6), "pmu.gp": range(9), "pmu.fixed": range(5), "pmu.width": range(32, 49),
    "pmu.perf_caps": range(1 << 18),
}  # fmt: skip
"""Of `--set`: what a host CPU's PMU can be."""
KVM_KEYS: dict[str, Sequence[int]] = {
    "fixed_cap": (3, 4), "force_emulation_prefix": (0, 1, 3), "mixed": (0, 1), "event_reuse": (1, 0),
    "count_emulated": (1, 0),
}  # fmt: skip
"""Of `--kvm`: what KVM has had as KVM_MAX_NR_INTEL_FIXED_COUNTERS, and takes as a parameter; and what-ifs:
KVM's own events do not keep another VM's guest from owning the PMU, nor the reverse; and what older KVMs
did not do: use the perf event of a paused counter again (5.6), count what they emulate (5.17)."""


def check_keys(key: str, values: Mapping[str, int], keys: Mapping[str, Sequence[int]]) -> None:
    """Whether every key is one of `keys`, which may be written without `pmu.`, and its value allowed.

    Raises:
        ConfigError: it is not.
    """
    short = {name.removeprefix("pmu."): name for name in keys}
    for name, value in values.items():
        found = short.get(name.removeprefix("pmu."), name)
        if found not in keys:
            hint = did_you_mean(name, [*keys, *short])
            raise ConfigError(f"{key} {shown(name)[1:-1]}", f"unknown key{hint}", " ".join(keys))
        allowed = keys[found]
        if value not in allowed:
            which = f"{allowed[0]} to {allowed[-1]}" if isinstance(allowed, range) else _listed(allowed)
            raise ConfigError(f"{key} {name}", f"{shown(value)} is out of range", which)


def _listed(values: Iterable[object]) -> str:
    return " ".join(map(str, values))


# --- what a mode must have for an option to have an effect ------------------------------------------------


@attrs.frozen
class Need:
    """Something that not every mode has.

    Attributes:
        why: what a mode lacks that does not fit.
        fits: whether a mode has it.
    """

    why: str
    fits: Callable[[Mode], bool]


HYPERVISOR = Need("there is no hypervisor", lambda mode: mode.hypervisor)
GUEST_PMU = Need("guests have no PMU", lambda mode: mode.enable_pmu)
SERIES = Need(
    "the kernel is without the passthrough series", lambda mode: mode.owns_pmu and mode.kernel.series
)


OWNED = Need("no guest owns the PMU", lambda mode: mode.owns_pmu)
MERGED = Need(
    "the vPMU is not the one that was merged", lambda mode: mode.owns_pmu and not mode.kernel.series
)


ALWAYS = Need("", lambda _: True)


def _whose_key(name: str) -> Need:
    return HYPERVISOR if name.startswith("cost.") else ALWAYS


def _whose_bug(name: str) -> Need:
    return MERGED if name.startswith("7.0-") else SERIES


@attrs.frozen(kw_only=True)
class Option:
    """All about one option but its value.

    Attributes:
        name: as the command line and messages spell it; Python's keyword is the field's name.
        help: what it does, in a sentence.
        takes: makes of text, or of a value of Python, what the field holds.
        metavar: what its value is called in the help; "" for a switch.
        low, high: bounds of a number; `high` may be a function, where the number is of a large module.
        usual: its value if it is not given.
        many: it may be given again, and all of them hold.
        check: raises ConfigError for a value that nothing can have; called once the mode is known.
        need: what a mode must have for it to have an effect; None: it has one everywhere.
        of_every_vm: a mode of `--other-vpmu` will do for that, too.
        need_of: of an option with `many` values: what a mode must have for one of them.
        not_of_a_guest: why no `#: args` line has it, "" if one may.
        not_of_a_user: why the command line does not have it, "" if it has.
    """

    name: str
    help: str
    takes: Callable[[Option, Any], Any] = _word
    metavar: str = ""
    low: int = 0
    high: int | Callable[[], int] = MOST
    usual: Any = None
    many: bool = False
    check: Callable[[str, Any], None] | None = None
    need: Need | None = None
    of_every_vm: bool = False
    need_of: Callable[[str], Need] | None = None
    not_of_a_guest: str = ""
    not_of_a_user: str = ""

    def bounds(self) -> tuple[int, int]:
        """The least and the largest number that it takes."""
        return self.low, self.high if isinstance(self.high, int) else self.high()

    def click_option(self, field: str) -> Callable[[F], F]:
        """Its place on the command line, as the parameter `field`."""
        if self.takes is _flag:
            name = f"--{self.name}/--no-{self.name}" if self.usual else f"--{self.name}"
            return click.option(name, field, is_flag=True, default=self.usual, help=self.help)
        return click.option(
            f"--{self.name}", field, multiple=self.many, metavar=self.metavar, help=self.help,
            default=None if self.many or self.usual is None else str(self.usual), show_default=True,
        )  # fmt: skip


FORM = Option(name="", help="")


def _most_cores() -> int:
    from vpmu_emu.linux.state import N_CORES

    return N_CORES


def _field(name: str, usual: Any, help: str, **more: Any) -> Any:  # noqa: A002
    option = Option(name=name, help=help, usual=usual, **more)
    return attrs.field(
        default=usual, converter=lambda value: option.takes(option, value), metadata={"option": option}
    )


_CPUS = ", ".join(sorted(path.stem for path in (isa_dir() / "cpus").glob("*.toml")))


@attrs.frozen(kw_only=True)
class Options:
    """What one run is asked; every value has the right form, and `check` says whether it makes sense."""

    vpmu: str = _field(
        "vpmu", next(iter(MODES)), "; ".join(f"{mode.name}: {mode.doc}" for mode in MODES.values()) + ".",
        metavar="MODE", check=_mode, not_of_a_guest="`#: modes` names modes",
    )
    other_vpmu: str | None = _field(
        "other-vpmu", None, "The mode of the VMs that --host programs make; as --vpmu if not said. Both "
        "have the kernel of --vpmu.",
        metavar="MODE", takes=_word_or_none, check=_other_mode, need=GUEST_PMU,
    )
    cpu: str = _field("cpu", "spr", f"The processor, of isa/cpus: {_CPUS}.", metavar="MODEL", check=_cpu)
    ram: int = _field(
        "ram", 64,
        f"Memory of the guest: 2 to {MAX_RAM_MIB}; what is beyond {LOW_RAM_MIB} begins at 4 GiB.",
        metavar="MIB", takes=_number, low=2, high=MAX_RAM_MIB,
    )
    cores: int = _field(
        "cores", 1, "Processors of the machine: of the program with bare, else of the host.",
        metavar="N", takes=_number, low=1, high=_most_cores,
    )
    entry: str | int | None = _field(
        "entry", None, "Begin there instead of at the program's own entry.",
        metavar="SYMBOL|ADDRESS", takes=_place,
    )
    defsym: Mapping[str, int] = _field(
        "defsym", {}, "A symbol of PROG, defined before its first line, as by as --defsym; repeatable.",
        metavar="NAME=VALUE", takes=_definitions, many=True, check=_symbols,
    )
    max_insns: int | None = _field(
        "max-insns", None, "Stop after so many instructions of a core's guest, those that KVM does for it "
        "included, or of its host programs (exit status 1); an exception whose handler does not get to do "
        "one counts as one.",
        metavar="N", takes=_number, low=1,
    )
    max_cycles: int | None = _field(
        "max-cycles", None,
        "Stop when so many cycles of a core are over, idle ones included (exit status 1).",
        metavar="N", takes=_number, low=1,
    )
    filter: Any = _field(  # noqa: RUF009
        "filter", None, "PMU event filter, as KVM_SET_PMU_EVENT_FILTER.",
        metavar="F.toml", takes=_having("a file or an EventFilter", "fixed_counter_bitmap"), need=GUEST_PMU,
    )
    msr_filter: Any = _field(  # noqa: RUF009
        "msr-filter", None, "MSR filter, as KVM_X86_SET_MSR_FILTER and KVM_CAP_X86_USER_SPACE_MSR.",
        metavar="F.toml", takes=_having("a file or an MsrFilter", "user_space"), need=HYPERVISOR,
    )
    host_events: tuple[Any, ...] = _field(
        "host-event", (), "A perf event of the host: instructions:D (pinned), cycles:H, branches:u, "
        "instructions*12; repeatable.",
        metavar="SPEC", takes=_having("an event in words or a HostEvent", "config", str), many=True,
        need=HYPERVISOR,
    )
    host: tuple[Any, ...] = _field(
        "host", (), "A program of the host, such as guests/host/noisy_neighbour.s; repeatable.",
        metavar="PROG", takes=_having("a file or a Program", "segments"), many=True, need=HYPERVISOR,
    )
    save: Any = _field(  # noqa: RUF009
        "save", None, "Have the VMM save the guest to this file at the moment that --at names, and end.",
        metavar="FILE", takes=_having("a file", ""), need=HYPERVISOR,
        not_of_a_guest="a check writes no files",
    )
    at: str | int | None = _field(
        "at", None, "When to save: once the guest has done so many instructions (as --max-insns counts), "
        "or before the first one at a symbol.",
        metavar="N|SYMBOL", takes=_place, need=HYPERVISOR, not_of_a_guest="a check writes no files",
    )
    restore: Any = _field(  # noqa: RUF009
        "restore", None, "Go on from the guest in this file, which --save wrote in any mode.",
        metavar="FILE", takes=_having("a file or a SavedVm", "sections"), need=HYPERVISOR,
        not_of_a_guest="a guest begins where it begins",
    )
    watchdog: str = _field(
        "watchdog", "off", "Who finds a hard lockup of the host: off, nmi, buddy, hpet.",
        metavar="DETECTOR", check=_detector, need=HYPERVISOR,
    )
    watchdog_thresh: float | None = _field(
        "watchdog-thresh", None, "Its threshold, 10 if not said; parts of a second are allowed.",
        metavar="SECONDS", takes=_seconds, check=_thresh, need=HYPERVISOR,
    )
    all_passthrough: bool = _field(
        "all-passthrough", False, "Let the selectors through too, with no filter.",
        takes=_flag, need=SERIES,
    )
    switch: str | None = _field(
        "switch", None, "How much KVM does of a switch of the guest's PMU context: "
        f"{', '.join(SWITCH_POLICIES)}; as the mode's kernel does if not said.",
        metavar="POLICY", takes=_word_or_none, check=_policy, need=OWNED, of_every_vm=True,
    )
    settings: Mapping[str, int] = _field(
        "set", {}, f"Shape of the host CPU: {'= '.join(HOST_KEYS)}=; cost.ROW=, cycles of a row of "
        "isa/costs.toml, whatever --costs says; model.NAME=, a row of [latency] or [model] of isa/cpus, in "
        "its unit; repeatable.",
        metavar="KEY=VALUE", takes=_pairs, many=True, check=check_host_keys, need_of=_whose_key,
    )
    guest: Mapping[str, int] = _field(
        "guest", {}, "What the VMM exposes: pmu.version= gp= fixed= width= perf_caps= events_length= "
        "events_absent=; repeatable.",
        metavar="KEY=VALUE", takes=_pairs, many=True, check=_guest_keys, need=GUEST_PMU,
    )
    kvm: Mapping[str, int] = _field(
        "kvm", {}, "KVM itself: fixed_cap=3 (4), force_emulation_prefix=1 (0, 3), mixed=0 (1: emulated VMs "
        "may stand beside mediated ones), event_reuse=1 (0: as before 5.6), count_emulated=1 (0: as before "
        "5.17); repeatable.",
        metavar="KEY=VALUE", takes=_pairs, many=True, check=_kvm_keys, need=HYPERVISOR,
    )
    apicv: bool = _field(
        "apicv", True, "Whether interrupts reach the guest without exits.", takes=_flag, need=HYPERVISOR,
    )
    hz: int = _field(
        "hz", 250, "Ticks a second of the host kernel, CONFIG_HZ: 100, 250, 300 or 1000.",
        metavar="N", takes=_number, check=_hertz, need=HYPERVISOR,
    )
    nohz: str = _field(
        "nohz", "full",
        "When a CPU of the host has no tick: full: while it has one task, as with nohz_full, or none; "
        "idle: only while it has none.",
        metavar="WHEN", check=_nohz, need=HYPERVISOR,
    )
    costs: str = _field(
        "costs", "typical", "What the host's work costs, and the guest's own accesses to the PMU take: "
        "low, typical or high of isa/cpus.",
        metavar="LEVEL", check=_level,
    )
    quirks: tuple[str, ...] = _field(
        "quirk", (), "Bring back a known bug of the RFC (v1: all) or of what was merged; repeatable.",
        metavar="NAME", takes=_words, many=True, check=_quirks, need=OWNED, need_of=_whose_bug,
    )
    without: tuple[int, ...] = _field(
        "without", (), "Leave a patch of the series out, by its number (docs/patches.md); repeatable.",
        metavar="N", takes=_patches, many=True, check=_without, need=SERIES,
    )
    pmi_vector: str = _field(
        "pmi-vector", "dedicated",
        "How PMIs of a guest that owns the PMU come: dedicated: by a vector of their own; nmi: as NMIs, "
        "and the host's handler decides whose they are.",
        metavar="HOW", check=_vector, need=OWNED, of_every_vm=True,
    )
    pmi_skid: str = _field(
        "pmi-skid", "0:0",
        "Cycles from an overflow to its message to LVTPC, which decides by what it holds then, and from "
        "there to its recognition.",
        metavar="OVERFLOW:RECOGNITION", takes=_skid,
    )
    inject: tuple[str, ...] = _field(
        "inject", (), "Put a deliberate bug in (`vpmu info --json` lists them); repeatable.",
        metavar="NAME", takes=_words, many=True, check=_bugs,
    )
    trace: Any = _field(  # noqa: RUF009
        "trace", None, "Write the trace to this file, `-` for standard output; the ending says the format "
        "(docs/traces.md).",
        metavar="OUT", takes=_output, not_of_a_guest="a check writes no files",
    )
    engine: str = _field(
        "engine", "auto",
        "What runs the program; the result does not depend on it. auto: the interpreter, and native code "
        "for what is hot; interpreter: nothing else; translator: native code, which is waited for.",
        metavar="ENGINE", check=_engine, not_of_a_guest="the result of a run does not depend on it",
    )
    hot: int = _field(
        "hot", HOT, "Native code is made for what a branch was taken to so often.",
        metavar="TIMES", takes=_number, low=1, high=1_000_000_000,
        not_of_a_guest="the result of a run does not depend on it",
    )
    horizon: int = _field(
        "horizon", 0, "Look what is due after at most so many instructions, 0 for when it is.",
        takes=_number, not_of_a_user="a tool of tests: the result of a run does not depend on it",
        not_of_a_guest="the result of a run does not depend on it",
    )
    horizon_seed: int = _field(
        "horizon-seed", 0, "After a random number of them up to `horizon`, from this seed.",
        takes=_number, not_of_a_user="a tool of tests: the result of a run does not depend on it",
        not_of_a_guest="the result of a run does not depend on it",
    )

    @classmethod
    def of(cls, asked: Mapping[str, Any], usual: Options | None = None) -> Options:
        """Options from keywords of Python or plain data; what is not said is as in `usual`.

        Raises:
            ConfigError: an unknown keyword, or a value that has not the form.
        """
        spelled = {option.name: key for key, option in OPTIONS.items()}
        for key in asked:
            if key not in OPTIONS:
                meant = spelled.get(key.replace("_", "-")) if isinstance(key, str) else None
                hint = f"; did you mean {meant}?" if meant else did_you_mean(key, OPTIONS)
                raise ConfigError(shown(key).strip("'"), f"no such option{hint}", " ".join(OPTIONS))
        return attrs.evolve(usual, **asked) if usual is not None else cls(**asked)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Options:
        """What `to_dict` gave, or the part of it that is not as usual.

        Raises:
            ConfigError: as `of`.
        """
        return cls.of(data)

    def to_dict(self) -> dict[str, Any]:
        """All options as plain data, as JSON and TOML know it (None: not given).

        Raises:
            ConfigError: a program, a filter or an event that is an object of Python and has no words.
        """
        return {key: _plain(option.name, getattr(self, key)) for key, option in OPTIONS.items()}

    @property
    def mode(self) -> Mode:
        """The row of isa/modes.toml; raises ConfigError if there is none."""
        _mode("vpmu", self.vpmu)
        return MODES[self.vpmu]

    def heeded(self) -> Options:
        """The same without what can have no effect in this mode."""
        mode = self.mode
        return attrs.evolve(self, **{key: self._kept(key, mode) for key, _ in self._unheeded(mode)})

    def _unheeded(self, mode: Mode) -> Iterator[tuple[str, Need]]:
        """Fields of which something has no effect in this mode, each with what that needs."""
        others = [MODES[self.other_vpmu]] if self.other_vpmu in MODES else []
        for key, option in OPTIONS.items():
            value = getattr(self, key)
            if option.need_of is not None:
                needs = [option.need_of(each) for each in value]
            else:
                needs = [option.need] if option.need is not None and value != option.usual else []
            modes = [mode, *others] if option.of_every_vm else [mode]
            missing = next((need for need in needs if not any(map(need.fits, modes))), None)
            if missing is not None:
                yield key, missing

    def _kept(self, key: str, mode: Mode) -> Any:
        option = OPTIONS[key]
        if option.need_of is None:
            return option.usual
        value = getattr(self, key)
        kept = (each for each in value if option.need_of(each).fits(mode))
        return {each: value[each] for each in kept} if isinstance(value, Mapping) else tuple(kept)

    def check(self) -> None:
        """Whether all of it makes sense, as far as that can be told without a file.

        Raises:
            ConfigError: a name or key that does not exist, a value that cannot be, an option that can
                have no effect in this mode, two that contradict each other; says what would do.
        """
        mode = self.mode
        if not mode.hypervisor:
            self._check_mode(mode)  # whatever it is worth
        self.check_values()
        self._check_mode(mode)
        if self.all_passthrough and self.filter is not None:
            raise ConfigError("filter", "needs the selectors intercepted", "without --all-passthrough")
        if self.switch not in (None, mode.switch) and self.without:
            what = f"a kernel without patch {self.without[0]} has the switch of the series, {mode.switch}"
            raise ConfigError("switch", what, "no --without, or no --switch")
        if self.switch == RUN_LOOP and self.all_passthrough:
            what = "KVM needs the selectors while it emulates, and with --all-passthrough hardware has them"
            raise ConfigError("switch", what, " ".join(p for p in SWITCH_POLICIES if p != RUN_LOOP))
        self._check_migration()
        if self.other_vpmu is not None:
            from vpmu_emu.linux.kvm.module import carries

            if why := carries(mode, MODES[self.other_vpmu]):
                may = " ".join(row.name for row in MODES.values() if not carries(mode, row))
                raise ConfigError("other-vpmu", why, may)
        self._check_pmi()
        if self.settings:
            from vpmu_emu.tables.cpus import at_level, changed, cpu

            changed(at_level(cpu(self.cpu), COST_LEVELS.index(self.costs)), self.settings)
        if self.watchdog_thresh is not None and self.watchdog == OPTIONS["watchdog"].usual:
            raise ConfigError(
                "watchdog-thresh", "there is no watchdog without --watchdog", "nmi buddy hpet"
            )

    def _check_pmi(self) -> None:
        from vpmu_emu.tables.patches import PATCHES

        useless = sorted(n for n in self.without if PATCHES[n].vector) if self.pmi_vector == "nmi" else []
        if useless:
            what = "is of the vector that --pmi-vector nmi does without"
            raise ConfigError("without", f"patch {useless[0]} {what}", "--pmi-vector dedicated")
        version = self.settings.get("pmu.version", self.settings.get("version"))
        if self.pmi_skid != OPTIONS["pmi_skid"].usual and version == 0:
            raise ConfigError("pmi-skid", "there is no PMU, and so no PMI", "pmu.version 1 to 5")

    def _check_migration(self) -> None:
        if (self.save is None) != (self.at is None):
            key, other = ("save", "at") if self.at is None else ("at", "save")
            raise ConfigError(key, f"needs --{other}", "--save FILE --at N")
        if str(self.save) == "-":
            raise ConfigError("save", "a saved VM is no text for standard output", "a file")
        for key in ("guest", "entry") if self.restore is not None else ():
            if getattr(self, key) != OPTIONS[key].usual:
                raise ConfigError(key, "the guest is the one that was saved", "without --restore")

    @property
    def skid(self) -> tuple[int, int]:
        """Cycles from an overflow to the message, and from there to its recognition."""
        overflow, recognition = map(int, self.pmi_skid.split(":"))
        return overflow, recognition

    def check_values(self) -> None:
        """Whether each value by itself makes sense; raises ConfigError as `check` does."""
        for key, option in OPTIONS.items():
            if option.check is not None:
                option.check(option.name, getattr(self, key))

    def check_some_mode(self, modes: Iterable[str]) -> None:
        """Raises ConfigError for an option that has an effect in none of these modes."""
        refused = None
        for name in modes:
            try:
                return self._check_mode(MODES[name])
            except ConfigError as error:
                refused = refused or error
        if refused is not None:
            raise refused
        return None

    def _check_mode(self, mode: Mode) -> None:
        for key, need in self._unheeded(mode):
            why = need.why if mode.hypervisor else HYPERVISOR.why
            may = " ".join(row.name for row in MODES.values() if need.fits(row))
            raise ConfigError(OPTIONS[key].name, f"{why} in mode {mode.name}", may)


OPTIONS: dict[str, Option] = {field.name: field.metadata["option"] for field in attrs.fields(Options)}
"""Every option by its field, in the order of the help."""


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple):
        return [_plain(name, each) for each in value]
    if value is None or isinstance(value, str | int | float):
        return value
    raise ConfigError(name, f"{shown(value)} cannot be written down; give its file or its words")


def explained(thing: T) -> T:
    """Decorate what takes the options by keyword: its docstring ends with all of them."""
    told = "".join(f"        {key}: {option.help}\n" for key, option in OPTIONS.items())
    thing.__doc__ = f"{(thing.__doc__ or '').rstrip()}\n\n    Options:\n{told}    "
    return thing


# --- the command line and `#: args` -----------------------------------------------------------------------


def run_options(function: F, *, needs_program: bool = True) -> F:
    """Decorate a click command with PROG and the options of a run."""
    return click.argument("prog", required=needs_program)(click_options(*OPTIONS)(function))


def click_options(*fields: str, **usual: Any) -> Callable[[F], F]:
    """Decorate a click command with some of the options of a run, in this order; `usual` are defaults."""

    def decorate(function: F) -> F:
        for field in reversed(fields):
            if not OPTIONS[field].not_of_a_user:
                option = OPTIONS[field]
                option = attrs.evolve(option, usual=usual.get(field, option.usual))
                function = option.click_option(field)(function)
        return function

    return decorate


COMMAND = click.command(name="args", add_help_option=False)(run_options(lambda **said: said))


def parse(args: Sequence[str], **usual: Any) -> Options:
    """Options of a guest from a list of words, as after `vpmu run PROG`; what they leave out is `usual`.

    Raises:
        ConfigError: an unknown option, one that is not a guest's, or a value that has not the form.
    """
    try:
        with COMMAND.make_context("args", ["-", *args]) as context:
            said = {
                key: value for key, value in context.params.items()
                if context.get_parameter_source(key) is ParameterSource.COMMANDLINE and key in OPTIONS
            }  # fmt: skip
    except click.ClickException as error:
        raise ConfigError("args", error.format_message()) from None
    for key in said:
        if why := OPTIONS[key].not_of_a_guest:
            raise ConfigError("args", f"--{OPTIONS[key].name} is not a guest's to say: {why}")
    return Options.of({**usual, **said})
