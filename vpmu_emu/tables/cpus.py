"""`isa/cpus/*.toml` and `costs.toml` as frozen models: what a CPU is, what takes how long, its CPUID."""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import attrs

from vpmu_emu.data import isa_dir
from vpmu_emu.errors import ConfigError
from vpmu_emu.tables.events import EVENTS, LISTS, other_names
from vpmu_emu.tables.msrs import Shape


@attrs.frozen
class Cost:
    """What one piece of host work costs, and what retires with it.

    Attributes:
        name: its row, a function of the kernel.
        cycles: (low, typical, high).
        instructions, branches: what retires.
        source: what the work is.
        figures: rows of isa/figures.toml that the cycles come from.
        estimate: the reasoning that leads to low and high.
        part: one of `PARTS`, what the report books it under. An MSR access has none: it belongs to the
            work that it is part of.
        typical: the figure whose value is typical; "": the geometric mean of low and high is.
        guest: guest kernels spend it, too.
    """

    name: str
    cycles: tuple[int, int, int]
    instructions: int
    branches: int
    source: str
    figures: tuple[str, ...] = attrs.field(converter=tuple)
    estimate: str
    part: str = ""
    typical: str = ""
    guest: bool = False


@attrs.frozen
class Latency:
    """What one latency is: a sentence, where its value comes from, rows of isa/figures.toml."""

    doc: str
    source: str
    figures: tuple[str, ...] = attrs.field(default=(), converter=tuple)


@attrs.frozen(kw_only=True)
class CpuModel:
    """One CPU model; times are in 1/16 cycle of its core, at `core_khz`.

    Attributes:
        name: of the file, such as "spr".
        family, model, stepping, vendor, brand, maxphyaddr: what CPUID tells.
        version, gp, gp_width, fixed, fixed_width, perf_capabilities, anythread_deprecated: the PMU.
        masks_lvtpc: delivering a PMI masks its LVT entry.
        events: name of its event list (`tables.events.LISTS`).
        arch_events_length, arch_events_absent: CPUID.0AH:EAX[31:24] and EBX.
        features: names of the CPUID features it has, and of VMX controls that not every model has.
        base_khz, turbo_khz: the marked and the highest frequency, which CPUID tells.
        core_khz: what the core runs at while it is not halted.
        tsc_khz: rate of the TSC and of reference cycles.
        crystal_khz: rate of the crystal, from which the TSC is multiplied.
        predictor, l1_lines, l2_lines, llc_lines: sizes of the predictor and cache model.
        prefetch_l2, prefetch_llc: lines that the stream prefetcher runs ahead, 0 without one.
        latency: one element per name in `LATENCIES`: typical, or what `at_level` and `changed` give.
        latencies: (low, typical, high) of each.
        costs: one element per name in `COST_NAMES`.
    """

    name: str
    family: int
    model: int
    stepping: int
    vendor: str
    brand: str
    maxphyaddr: int
    version: int
    gp: int
    gp_width: int
    fixed: int
    fixed_width: int
    arch_events_length: int
    arch_events_absent: int
    perf_capabilities: int
    anythread_deprecated: bool
    masks_lvtpc: bool
    events: str = attrs.field(validator=attrs.validators.in_(LISTS))
    features: frozenset[str]
    base_khz: int
    core_khz: int
    turbo_khz: int
    tsc_khz: int
    crystal_khz: int
    predictor: int
    l1_lines: int
    l2_lines: int
    llc_lines: int
    prefetch_l2: int
    prefetch_llc: int
    latency: tuple[int, ...]
    latencies: tuple[tuple[int, int, int], ...]
    costs: tuple[Cost, ...]

    def shape(self) -> Shape:
        """What the formulas of the MSR table are over."""
        flags = {
            field.name: field.name in self.features
            for field in attrs.fields(Shape)
            if field.type in ("bool", bool) and field.name not in ("anythread_deprecated", "rdtscp")
        }
        return Shape(
            version=self.version,
            gp=self.gp,
            gp_width=self.gp_width,
            fixed=self.fixed,
            fixed_width=self.fixed_width,
            perf_capabilities=self.perf_capabilities,
            # CPUID.0AH:EDX[15] came with version 5; an older PMU has AnyThread, or never had it.
            anythread_deprecated=self.anythread_deprecated and self.version >= 5,
            maxphyaddr=self.maxphyaddr,
            **flags,
        )

    def per_core_cycle(self, khz: int) -> tuple[int, int]:
        """Ticks of a clock of `khz` in one cycle of the core, as a fraction in lowest terms."""
        common = math.gcd(khz, self.core_khz)
        return khz // common, self.core_khz // common

    def cost(self, name: str) -> Cost:
        """The cost row of this name.

        Raises:
            ConfigError: no such row.
        """
        if name not in COST_NAMES:
            raise _unknown("cost", name, COST_NAMES)
        return self.costs[COST_NAMES.index(name)]

    def latency_of(self, name: str) -> int:
        """The latency of this name, in 1/16 cycle."""
        return self.latency[LATENCIES.index(name)]


def _unknown(key: str, name: str, allowed: tuple[str, ...]) -> ConfigError:
    nearest = difflib.get_close_matches(name, allowed, n=1)
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    return ConfigError(key, f"no {key} is named {name!r}{hint}", " ".join(allowed))


def _tables() -> dict[str, dict[str, Any]]:
    paths: list[Path] = sorted((isa_dir() / "cpus").glob("*.toml"))
    tables = {path.stem: tomllib.loads(path.read_text()) for path in paths}
    return {name: _on_its_base(table, tables) for name, table in tables.items()}


def _on_its_base(table: dict[str, Any], tables: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A model with what it does not say itself taken from the model that its `base` names."""
    if "base" not in table:
        return table
    base = _on_its_base(tables[table["base"]], tables)
    merged = {key: dict(part) for key, part in base.items()}
    for key, part in table.items():
        if key != "base":
            merged[key].update(part)
    return merged


_TABLES = _tables()
_FIRST = next(iter(_TABLES.values()))

CPU_NAMES: tuple[str, ...] = tuple(_TABLES)
"""The models there are."""

LATENCIES: tuple[str, ...] = tuple(_FIRST["latency"])
"""Names of the latency classes, the same in every model; `CpuModel.latency` is in this order."""

LATENCY_ROWS: dict[str, Latency] = {
    name: Latency(**row)
    for name, row in tomllib.loads((isa_dir() / "latencies.toml").read_text()).items()
}
"""What each of `LATENCIES` is."""

_COSTS: dict[str, dict[str, Any]] = tomllib.loads((isa_dir() / "costs.toml").read_text())

SIZES: tuple[str, ...] = tuple(_FIRST["model"])
"""Names of what else of the model is a number: sizes of the predictor and the caches, the prefetcher."""

COST_NAMES: tuple[str, ...] = tuple(sorted(_COSTS))
"""Names of the cost rows, the same in every model; `CpuModel.costs` is in this order."""

PARTS: tuple[str, ...] = ("exits", "perf", "pmu_switch", "interrupts", "tasks")
"""What host work is for: VM exits and their handlers, perf's API and scheduling, PMU context switches,
NMIs and interrupts, tasks and system calls."""


@cache
def cpu(name: str) -> CpuModel:
    """The CPU model of this name.

    Raises:
        ConfigError: no such model; the message names the nearest.
    """
    if name not in _TABLES:
        raise _unknown("cpu", name, CPU_NAMES)
    table = _TABLES[name]
    latencies = tuple(_three(table["latency"][key]) for key in LATENCIES)
    return CpuModel(
        name=name,
        **table["identity"],
        **table["pmu"],
        **table["time"],
        **table["model"],
        features=frozenset(key for key, on in table["features"].items() if on),
        latency=tuple(typical for _, typical, _ in latencies),
        latencies=latencies,
        costs=tuple(
            Cost(name=key, cycles=tuple(table["cycles"][key]), **_COSTS[key]) for key in COST_NAMES
        ),
    )


_LEVELS = ("low", "typical", "high")
MOST_CYCLES = 1_000_000_000  # of one piece of work: a third of a second
MOST_LATENCY = 1_600_000  # 100 000 cycles
_ADDED = ("load", "store", "l2_hit", "llc_ref", "llc_miss", "tlb_walk", "mispredict", "pebs", "interrupt")
_NEARER = ("load", "l2_hit", "llc_ref", "llc_miss")


def _three(value: int | list[int]) -> tuple[int, int, int]:
    low, typical, high = value if isinstance(value, list) else (value, value, value)
    return low, typical, high


def at_level(model: CpuModel, level: int) -> CpuModel:
    """The model with its low (0), typical (1) or high (2) latencies."""
    return attrs.evolve(model, latency=tuple(three[level] for three in model.latencies))


@cache
def settable() -> dict[str, Sequence[int]]:
    """What `changed` takes, with what each may be: `cost.ROW` in cycles, `model.NAME` as in the table."""
    first = cpu(CPU_NAMES[0])
    found: dict[str, Sequence[int]] = {f"cost.{name}": range(MOST_CYCLES + 1) for name in COST_NAMES}
    found["cost.lkdtm_HARDLOCKUP"] = range(1, MOST_CYCLES + 1)  # a turn of a loop
    found |= {f"model.{name}": range(MOST_LATENCY + 1) for name in LATENCIES}
    found["model.slot"] = (1, 2, 4, 8, 16)  # a cycle has a whole number of them
    found |= {
        # One record for all: these are the sizes of its arrays, whole or, of L2 and LLC, in part.
        "model.predictor": (first.predictor,),
        "model.l1_lines": (first.l1_lines,),
        "model.l2_lines": (2048, 4096),
        "model.llc_lines": (8192, 16384),
        "model.prefetch_l2": range(65),
        "model.prefetch_llc": range(65),
    }
    return found


def changed(model: CpuModel, values: Mapping[str, int]) -> CpuModel:
    """The model with some costs, whatever the level, latencies and sizes replaced; keys of `settable`.

    Raises:
        ConfigError: values that contradict each other.
    """
    latency = dict(zip(LATENCIES, model.latency, strict=True))
    costs = {cost.name: cost for cost in model.costs}
    sizes: dict[str, Any] = {}
    for key, value in values.items():
        kind, _, name = key.partition(".")
        if kind == "cost":
            costs[name] = attrs.evolve(costs[name], cycles=(value, value, value))
        elif kind == "model" and name in latency:
            latency[name] = value
        elif kind == "model":
            sizes[name] = value
    found = attrs.evolve(
        model, latency=tuple(latency.values()), costs=tuple(costs[name] for name in COST_NAMES), **sizes
    )
    if found != model:
        _check_latencies(latency)
        if found.prefetch_l2 > found.prefetch_llc:
            what = f"{found.prefetch_l2} lines in L2, and {found.prefetch_llc} in the LLC behind it"
            raise ConfigError("set model.prefetch_l2", what, f"0 to {found.prefetch_llc}")
    return found


def _check_latencies(latency: Mapping[str, int]) -> None:
    slot = latency["slot"]
    for name, value in latency.items():
        if value < slot and name not in _ADDED:
            what = f"{value} is less than an issue slot, model.slot={slot}"
            raise ConfigError(f"set model.{name}", what, f"{slot} to {MOST_LATENCY}")
    if latency["wrmsr"] < latency["msr"]:
        what = f"WRMSR takes {latency['wrmsr']}, less than RDMSR with model.msr={latency['msr']}"
        raise ConfigError("set model.wrmsr", what, f"{latency['msr']} to {MOST_LATENCY}")
    for near, far in pairwise(_NEARER):
        if latency[near] > latency[far] or (latency[near] == latency[far] and near != "load"):
            what = f"{latency[far]} is not more than nearer memory takes, model.{near}={latency[near]}"
            raise ConfigError(f"set model.{far}", what, f"{latency[near] + 1} to {MOST_LATENCY}")


def cpuid_pmu(
    shape: Shape, *, events_length: int = 8, events_absent: int = 0
) -> tuple[int, int, int, int]:
    """CPUID leaf 0AH (EAX, EBX, ECX, EDX) of a PMU of this shape; all 0 without a PMU.

    `events_length` and `events_absent` are EAX[31:24] and EBX. SDM 2A, CPUID; SDM 3B 20.2.
    """
    if shape.version == 0:
        return (0, 0, 0, 0)
    eax = shape.version | shape.gp << 8 | shape.gp_width << 16 | events_length << 24
    fixed_bitmap = (1 << shape.fixed) - 1 if shape.version >= 5 else 0
    edx = shape.fixed | shape.fixed_width << 5 if shape.version > 1 else 0
    edx |= int(shape.anythread_deprecated) << 15
    return (eax, events_absent, fixed_bitmap, edx)


def describe(model: CpuModel) -> dict[str, Any]:
    """A model as plain data: what CPUID says, its PMU, what takes how long, the events that it counts."""
    leaves = {leaf: registers for leaf, *registers in cpuid_leaves(model)}
    pmu = ("version", "gp", "gp_width", "fixed", "fixed_width", "perf_capabilities")
    return {
        "name": model.name,
        "brand": model.brand,
        "signature": leaves[1][0],
        "leaf_0a": leaves[0xA],
        "base_khz": model.base_khz,
        "core_khz": model.core_khz,
        "tsc_khz": model.tsc_khz,
        "features": sorted(model.features),
        **{key: getattr(model, key) for key in pmu},
        "model": {key: getattr(model, key) for key in SIZES},
        "latencies": {
            name: {**dict(zip(_LEVELS, three, strict=True)), **attrs.asdict(LATENCY_ROWS[name])}
            for name, three in zip(LATENCIES, model.latencies, strict=True)
        },
        "costs": {
            cost.name: {
                **dict(zip(_LEVELS, cost.cycles, strict=True)),
                "instructions": cost.instructions,
                "branches": cost.branches,
                "part": cost.part or None,
                "source": cost.source,
                "figures": cost.figures,
                "estimate": cost.estimate,
            }
            for cost in model.costs
        },
        "events": [
            {
                "name": event.name,
                "aliases": other_names(event, model.events),
                "code": event.code,
                "arch": event.arch,
                "counters": [n for n in range(model.gp) if event.counters >> n & 1],
                "fixed": event.fixed if (event.fixed or 0) < model.fixed else None,
                "doc": event.doc,
            }
            for event in EVENTS
            if model.events in event.lists
        ],
    }


#: Leaves that look at ECX.
INDEXED = (0x7, 0xD)


def _bits(*numbers: int) -> int:
    return sum(1 << n for n in numbers)


def cpuid_leaves(model: CpuModel) -> tuple[tuple[int, int, int, int, int], ...]:
    """What CPUID answers on this model: (leaf, EAX, EBX, ECX, EDX), ascending; other leaves give 0.

    Sub-leaf 0 only: no modelled leaf has others. `INDEXED` ones answer for it alone.
    """
    vendor = model.vendor.encode()
    ebx0, edx0, ecx0 = (int.from_bytes(vendor[i : i + 4], "little") for i in (0, 4, 8))
    family, extended = min(model.family, 15), max(model.family - 15, 0)
    version = (
        model.stepping
        | (model.model & 15) << 4
        | family << 8
        | (model.model >> 4) << 16
        | extended << 20
    )
    has = model.features.__contains__
    # PSE TSC MSR PAE CX8 APIC PGE CMOV CLFSH
    edx1 = _bits(3, 4, 5, 6, 8, 9, 13, 15, 19) | has("ds") << 21
    # POPCNT
    ecx1 = _bits(23) | has("pdcm") << 15 | has("x2apic") << 21 | has("tsc_deadline") << 24
    ecx1 |= has("ds") << 2  # DTES64: the 64-bit layout of the debug store
    ecx1 |= has("cx16") << 13 | has("movbe") << 22 | has("xsave") << 26
    leaf7_ebx = _bits(9, 23) | has("rtm") << 11  # ERMS CLFLUSHOPT
    leaf7_ebx |= has("fsgsbase") | has("bmi1") << 3 | has("bmi2") << 8 | has("adx") << 19
    pmu = cpuid_pmu(
        model.shape(),
        events_length=model.arch_events_length,
        events_absent=model.arch_events_absent,
    )
    brand = model.brand.encode().ljust(48, b"\0")[:48]
    words = [int.from_bytes(brand[i : i + 4], "little") for i in range(0, 48, 4)]
    # 1CH: depths 8, 16 and 32; filters by ring and type, call stack; misprediction, cycles, types
    arch_lbr = ((0x1C, _bits(0, 1, 3), _bits(0, 1, 2), _bits(0, 1, 2), 0),) if has("arch_lbr") else ()
    # 0DH: XCR0 may hold x87 and SSE, an area of 512 bytes and the header of 64
    xstate = ((0xD, 3, 576, 576, 0),) if has("xsave") else ()
    return (
        (0x0, 0x1C if arch_lbr else 0x16, ebx0, ecx0, edx0),
        (0x1, version, 8 << 8 | 1 << 16, ecx1, edx1),  # CLFLUSH line of 8 * 8 bytes, one thread
        (0x7, 0, leaf7_ebx, 0, has("ibpb") << 26 | has("arch_lbr") << 19),
        (0xA, *pmu),
        *xstate,
        # TSC = crystal * EBX / EAX
        (0x15, 1, model.tsc_khz // model.crystal_khz, model.crystal_khz * 1000, 0),
        # MHz: marked, highest, bus
        (0x16, model.base_khz // 1000, model.turbo_khz // 1000, 100, 0),
        *arch_lbr,
        (0x80000000, 0x80000008, 0, 0, 0),
        # LAHF LZCNT; SYSCALL NX 1G-pages RDTSCP long mode
        (0x80000001, 0, 0, _bits(0, 5), _bits(11, 20, 26, 27, 29)),
        (0x80000002, words[0], words[1], words[2], words[3]),
        (0x80000003, words[4], words[5], words[6], words[7]),
        (0x80000004, words[8], words[9], words[10], words[11]),
        (0x80000007, 0, 0, 0, 1 << 8),  # invariant TSC
        (0x80000008, model.maxphyaddr | 48 << 8, 0, 0, 0),
    )
