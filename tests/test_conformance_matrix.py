"""Rows C11, E5, E6, E8, M2 to M4: guests of the selftests' rows over PMU shapes and event filters.

What must come out is computed here from the rules of the rows, not from the tables: the version that
counts is the smaller of CPUID's and the vPMU's, which is 2. The nightly profile runs every configuration,
the others a sample, in one process that compiles once.
"""

from __future__ import annotations

import itertools
import random
from functools import cache

import numpy as np
import pytest
from hypothesis import settings

from tests.tools.conformance import FOLDER, guest
from tests.tools.profiles import cases
from vpmu_emu.asm import Program
from vpmu_emu.errors import ConfigError
from vpmu_emu.linux.kvm.cpuid import guest_shape
from vpmu_emu.setup.filterfile import parse_filter
from vpmu_emu.system import run
from vpmu_emu.tables.cpus import cpu

MODES = ("bare", "emulated", "passthrough")
ALL = "all-passthrough"  # passthrough with the selectors let through, too
VERSIONS = range(6)
FULL_WRITES = 0x2000
CAPABILITIES = (0, FULL_WRITES)
LENGTHS = range(15)
ABSENT = (0, 0x01, 0x02, 0x20, 0x55, 0xAA, 0xF0, 0xFF, 0x1FFF)
HOST_GP, HOST_FIXED = 8, 4
UNTOUCHED = 0x5555
EVENTS = 8

modes = pytest.mark.parametrize("mode", MODES)


class Run:
    """What a guest left, by the names in its source."""

    def __init__(self, stem: str, mode: str, **shape: int) -> None:
        self.program: Program = guest(FOLDER / f"{stem}.s")[0]
        key = "settings" if mode == "bare" else "guest"
        words = [f"pmu.{name}={value}" for name, value in shape.items()]
        with np.errstate(over="ignore"):
            self.result = run(
                self.program, vpmu="passthrough" if mode == ALL else mode, cpu="spr", ram=4,
                all_passthrough=mode == ALL, **{key: words},
            )  # fmt: skip
        self.exit_code = self.result.values["exit_code"]

    def __getitem__(self, name: str) -> int:
        label, _, index = name.partition("+")
        at = self.program.symbols[label] + 8 * int(index or 0)
        return int.from_bytes(self.result.read(at, 8), "little")


def sample(*axes) -> list:
    """All combinations under the nightly profile; else the corners and a few from in between."""
    every = list(itertools.product(*axes))
    budget = cases(day=12, laws=100, night=10_000, uncompiled=4)
    corners = list(itertools.product(*((axis[0], axis[-1]) for axis in axes)))
    if budget >= len(every):
        return every
    few = random.Random(len(every)).sample(every, budget)  # the same ones each time
    return list(dict.fromkeys((corners if budget > 4 else []) + few))


def low(n: int) -> int:
    return (1 << n) - 1


def effective(mode: str, version: int) -> int:
    """The version that the PMU behaves as."""
    return version if mode == "bare" else min(version, 2)


def mismatches(found: Run, wanted: dict[str, int]) -> dict[str, tuple[int, int]]:
    """Name: (found, wanted) of what differs."""
    return {name: (found[name], value) for name, value in wanted.items() if found[name] != value}


GP_AXES, FIXED_AXES = ("version", "perf_caps", "gp"), ("version", "perf_caps", "fixed")


def hold(stem: str, mode: str, axes: tuple[str, ...], shapes: list, judge, **more) -> None:
    """The guest ends well in every shape, and what `judge(found, *shape)` gives is empty."""
    wrong = {}
    for shape in shapes:
        found = Run(stem, mode, **dict(zip(axes, shape, strict=True)), **more)
        bad = judge(found, *shape)
        if found.exit_code != 0 or bad:
            wrong[shape] = found.exit_code, bad
    assert wrong == {}


def on_and_off(found: Run, nr: int) -> dict[str, tuple[int, int]]:
    """Of the fixed counters behind the first: which count that should not, or do not and should."""
    return {
        f"counts+{i}": (found[f"counts+{i}"], i < nr)
        for i in range(1, HOST_FIXED)
        if (found[f"counts+{i}"] > 0) != (i < nr)
    }


@cache
def gp_shapes() -> list:
    return sample(VERSIONS, CAPABILITIES, range(HOST_GP + 1))


@cache
def fixed_shapes() -> list:
    return sample(VERSIONS, CAPABILITIES, range(4))


@pytest.mark.uncompiled
@modes
def test_general_purpose_counters(mode):
    def judge(found, version, caps, gp):
        nr = gp if version else 0
        # KVM drops what is written to 0xC1 and 0xC2 where they are absent.
        dropped = low(2) & ~low(nr) if mode != "bare" else 0
        full = low(nr) if caps else 0
        # Silicon answers a passed-through RDPMC, and it has every counter; KVM put 0 in.
        hidden = low(HOST_GP) & ~low(nr) if mode == "passthrough" and version else 0
        wanted = {
            "legacy_written": low(nr) | dropped,
            "legacy_read_back": low(nr),
            "legacy_read_zero": dropped,
            "full_written": full,
            "full_read_back": full,
            "rdpmc_gave": low(nr),
            "rdpmc_zero": hidden,
            "fast_gave": 0,
            "faults": sum(
                3 * (not (low(nr) | dropped) >> i & 1)
                + 3 * (not full >> i & 1)
                + (not (low(nr) | hidden) >> i & 1)
                + 1
                for i in range(HOST_GP)
            ),
        }
        return mismatches(found, wanted)

    hold("c07_gp_rd_wr", mode, GP_AXES, gp_shapes(), judge)


@pytest.mark.uncompiled
@modes
def test_reset_value_of_global_ctrl(mode):
    def judge(found, version, _, gp):
        there = effective(mode, version) >= 2
        window = found.program.insns("opened", "closed") if there and gp else 0
        # Version 1 has counters: counter 0 can be read. A passed-through RDPMC finds silicon's.
        readable = version > 0 and (gp > 0 or mode == "passthrough")
        wanted = {
            "at_reset": low(gp) if there else UNTOUCHED,
            "faults": 0 if there else 3 - readable,
            "counted": window,
        }
        return mismatches(found, wanted)

    hold("c06_global_ctrl_reset", mode, GP_AXES, gp_shapes(), judge)


@pytest.mark.uncompiled
@modes
def test_fixed_counters(mode):
    def judge(found, version, _, fixed):
        nr = fixed if effective(mode, version) >= 2 else 0
        hidden = low(HOST_FIXED) & ~low(nr) if mode == "passthrough" and version else 0
        wanted = {
            "written": low(nr),
            "read_back": low(nr),
            "rdpmc_gave": low(nr),
            "rdpmc_zero": hidden,
            "fast_gave": 0,
            "faults": sum(
                3 * (i >= nr) + (not (low(nr) | hidden) >> i & 1) + 1 for i in range(HOST_FIXED)
            ),
        }
        return mismatches(found, wanted)

    hold("c08_fixed_rd_wr", mode, FIXED_AXES, fixed_shapes(), judge)


@pytest.mark.uncompiled
@modes
def test_controls_of_fixed_counters(mode):
    def judge(found, version, _, fixed):
        there = effective(mode, version) >= 2
        nr = fixed if there else 0
        insns, rounds = found.program.insns, found.program.symbols["ROUNDS"]
        window = insns("opened", "again") + rounds * insns("again", "done") + insns("done", "closed")
        wanted = {
            "local_set": low(nr),
            # Passed through, silicon checks its own counters.
            "global_set": low(HOST_FIXED) if mode == "passthrough" and there else low(nr),
            "counts": window if nr else 0,
        }
        return mismatches(found, wanted) | on_and_off(found, nr)

    hold("c09_c10_fixed_control", mode, FIXED_AXES, fixed_shapes(), judge)


def exact(found: Run, gp: int) -> dict[str, tuple[int, int]]:
    """What C3 and C4 say of the general-purpose counters that is not so."""
    wanted = {"measured": EVENTS * gp, "still": EVENTS * gp, "writable": EVENTS * gp}
    if gp:
        wanted |= {"least+1": 65, "most+1": 65, "least+5": 10, "most+5": 10}
    bad = mismatches(found, wanted)
    if gp:
        for i, floor in ((0, 1), (2, 1), (3, 1), (4, 1), (7, 65)):
            if found[f"least+{i}"] < floor:
                bad[f"least+{i}"] = found[f"least+{i}"], floor
    return bad


@pytest.mark.uncompiled
@pytest.mark.parametrize("mode", ["emulated", "passthrough"])
def test_events_count_whatever_cpuid_lists(mode):
    # Without the compiler eight counters take long; which of them count is another test's.
    gp = HOST_GP if settings.default.max_examples > 4 else 1
    axes = ("version", "perf_caps", "events_length", "events_absent")
    shapes = sample(VERSIONS, CAPABILITIES, LENGTHS, ABSENT)

    def judge(found, version, *_):
        return exact(found, gp if version else 0)

    hold("c01_c04_arch_events", mode, axes, shapes, judge, gp=gp)


@pytest.mark.parametrize("mode", [*MODES, ALL])
def test_events_on_every_counter(mode):
    def judge(found, version, _, gp):
        return exact(found, gp if version else 0)

    hold("c01_c04_arch_events", mode, GP_AXES, gp_shapes(), judge)


@pytest.mark.uncompiled
@pytest.mark.parametrize("mode", [*MODES, ALL])
def test_events_on_fixed_counters(mode):
    def judge(found, version, _, fixed):
        nr = fixed if effective(mode, version) >= 2 else 0
        told = fixed if version >= 2 else 0
        wanted = {"measured": told, "still": told, "writable": told, "counts": 65 if nr else 0}
        return mismatches(found, wanted) | on_and_off(found, nr)

    hold("c02_fixed_arch_events", mode, FIXED_AXES, fixed_shapes(), judge)


@pytest.mark.uncompiled
def test_the_sample_has_the_corners_and_nightly_has_all():
    shapes = sample(VERSIONS, CAPABILITIES, LENGTHS, ABSENT)
    assert len(set(shapes)) == len(shapes) >= 4
    assert set(shapes) <= set(itertools.product(VERSIONS, CAPABILITIES, LENGTHS, ABSENT))
    if settings.default.max_examples > 4:
        assert {(0, 0, 0, 0), (5, FULL_WRITES, 14, 0x1FFF)} <= set(shapes)


# --- filters: rows E5, E6 and E8 ------------------------------------------------------------------------
LOADS, STORES, ANY = 0x81, 0x82, 0x83


def filtered(stem: str, mode: str, path, text: str) -> dict[str, int]:
    """The counters of a guest whose host has the filter `text`."""
    path.write_text(text, encoding="utf-8")
    program = guest(FOLDER / f"{stem}.s")[0]
    with np.errstate(over="ignore"):
        result = run(program, vpmu=mode, cpu="spr", ram=4, filter=str(path))
    assert result.values["exit_code"] == 0
    return result.counters


# (includes, excludes) as (mask, match) of unit masks, and the unit masks that they stand for
MASKED = {
    "one": ([(0xFF, LOADS)], [], {LOADS}),
    "another": ([(0xFF, STORES)], [], {STORES}),
    "two entries": ([(0xFF, LOADS), (0xFF, ANY)], [], {LOADS, ANY}),
    "a mask for two": ([(0xFD, LOADS)], [], {LOADS, ANY}),
    "a mask for two others": ([(0xFE, STORES)], [], {STORES, ANY}),
    "a mask for all": ([(0xFC, 0x80)], [], {LOADS, STORES, ANY}),
    "all but one": ([(0xFC, 0x80)], [(0xFF, ANY)], {LOADS, STORES}),
    "all but two": ([(0xFC, 0x80)], [(0xFE, STORES)], {LOADS}),
    "all but all": ([(0xFC, 0x80)], [(0xFC, 0x80)], set()),
}
OTHERS = ", ".join(f"{{ select = {k % 0xD0}, umask = {k // 0xD0 + 1} }}" for k in range(290))


@pytest.mark.uncompiled
@pytest.mark.parametrize("mode", ["emulated", "passthrough"])
def test_masked_events(mode, tmp_path):
    wrong = {}
    for name, action, others in sample(list(MASKED), ["allow", "deny"], ["", OTHERS]):
        includes, excludes, stands_for = MASKED[name]
        entries = [
            f"{{ select = 0xD0, mask = {mask}, umask = {match}, exclude = {'true' if out else 'false'} }}"
            for out, pairs in enumerate((includes, excludes))
            for mask, match in pairs
        ]
        listed = ", ".join([*entries, *([others] if others else [])])
        text = f'action = "{action}"\nmasked = true\nevents = [{listed}]\n'
        counters = filtered("e05_masked_events", mode, tmp_path / "f.toml", text)
        found = [counters[f"pmc{i}"] for i in range(3)]
        wanted = [
            count if (code in stands_for) == (action == "allow") else 0
            for code, count in ((LOADS, 2), (STORES, 2), (ANY, 4))
        ]
        if found != wanted:
            wrong[name, action, bool(others)] = found, wanted
    assert wrong == {}


@pytest.mark.uncompiled
@pytest.mark.parametrize("mode", ["emulated", "passthrough"])
def test_every_bitmap_of_fixed_counters(mode, tmp_path):
    lists = ["", 'events = ["instructions", "cycles", 0x0300]']
    wrong = {}
    for bitmap, action, events in sample(range(8), ["allow", "deny"], lists):
        text = f'action = "{action}"\nfixed_counter_bitmap = {bitmap}\n{events}\n'
        counters = filtered("e08_fixed_bitmap", mode, tmp_path / "f.toml", text)
        found = [counters[f"fixed{i}"] > 0 for i in range(3)]
        wanted = [(bitmap >> i & 1) == (action == "allow") for i in range(3)]
        # cycles and instructions in general-purpose counters: the list, and nothing else
        found += [counters[f"pmc{i}"] > 0 for i in range(2)]
        wanted += [bool(events) == (action == "allow")] * 2
        if found != wanted:
            wrong[bitmap, action, bool(events)] = found, wanted
    assert wrong == {}


@pytest.mark.uncompiled
@pytest.mark.parametrize(("text", "key"), [
    # Without the flag bits that no event has are no error: the entry matches nothing.
    ('action = "allow"\nevents = [0xffff_ffff_ffff_ffff]', None),
    ('action = "allow"\nmasked = true\nevents = [0xffff_ffff_ffff_ffff]', "f.events[0]"),
    ('action = "allow"\nmasked = true\nevents = [0xff80_0000_0000_ffff]', None),
    ('action = "perhaps"', "f.action"),
    ('action = "allow"\nflags = 2', "f.flags"),
    (f'action = "allow"\nevents = {list(range(300))}', None),
    (f'action = "allow"\nevents = {list(range(301))}', "f.events"),
    ('action = "allow"\nfixed_counter_bitmap = 0xffff_ffff', None),
    ('action = "allow"\nfixed_counter_bitmap = 0x1_0000_0000', "f.fixed_counter_bitmap"),
])  # fmt: skip
def test_what_a_filter_may_say(text, key):
    if key is None:
        parse_filter(text, "f")
        return
    with pytest.raises(ConfigError) as error:
        parse_filter(text, "f")
    assert error.value.key == key


# --- what the VMM may say of PERF_CAPABILITIES: rows M2, M3, M4 -----------------------------------------
@pytest.mark.uncompiled
@pytest.mark.parametrize("mode", ["emulated", "passthrough"])
@pytest.mark.parametrize("caps", CAPABILITIES)
def test_capabilities_that_the_vmm_may_set(mode, caps):
    found = Run("m01_perf_capabilities_ro", mode, perf_caps=caps)
    assert (found.exit_code, found["before"], found["after"], found["faults"]) == (0, caps, caps, 66)


@pytest.mark.uncompiled
def test_capabilities_that_the_vmm_may_not_set():
    # PEBS_TRAP and PEBS_ARCH_REG are looked at beside a PEBS_FORMAT only
    bits = [1 << b for b in range(64) if b not in (6, 7) and 1 << b != FULL_WRITES]
    lbr_formats, pebs_formats = range(1, 64), range(0x100, 0x1000, 0x100)
    for caps in (*bits, *lbr_formats, *pebs_formats, FULL_WRITES | 1, FULL_WRITES << 1 | FULL_WRITES):
        with pytest.raises(ConfigError) as error:
            guest_shape(cpu("spr").shape(), {"pmu.perf_caps": caps})
        assert error.value.key == "guest pmu.perf_caps", hex(caps)
