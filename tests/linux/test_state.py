"""The kernel's part of the record, and the settings that fill it."""

from __future__ import annotations

import inspect
import re

import numpy as np
import pytest

from vpmu_emu.errors import ConfigError, HostError
from vpmu_emu.linux import state
from vpmu_emu.linux.kvm.cpuid import fixed_counter_cap, guest_shape
from vpmu_emu.linux.trace_kinds import LINUX_KINDS
from vpmu_emu.machine.ring import MACHINE_KINDS
from vpmu_emu.setup.hostevents import parse_host_event, parse_host_events
from vpmu_emu.setup.vm import add_host_events, chosen_bits, new_record
from vpmu_emu.tables.cpus import cpu
from vpmu_emu.tables.modes import MODES

pytestmark = pytest.mark.uncompiled


def fields(dtype, path="SYSTEM"):
    """(path, offset, dtype) of every record inside a dtype."""
    yield path, dtype
    for name in dtype.names:
        inner = dtype[name].base
        if inner.names:
            yield from fields(inner, f"{path}.{name}")


RECORDS = list(fields(state.SYSTEM))
each_record = pytest.mark.parametrize(
    ("path", "dtype"), RECORDS, ids=[path for path, _ in RECORDS]
)


@each_record
def test_no_padding_holes(path, dtype):
    assert dtype.itemsize == sum(dtype[name].itemsize for name in dtype.names), path


@each_record
def test_no_field_hides_behind_an_attribute_of_numpy(path, dtype):
    assert not set(dtype.names) & set(dir(np.record)), path


def test_size():
    # 192 KiB for one core, so that a copy stays cheap
    assert state.SYSTEM.itemsize - (state.N_CORES - 1) * state.machine.CORE.itemsize <= 192 * 1024


def test_every_field_says_what_it_is():
    text = inspect.getsource(state)
    lines = [line for line in text.splitlines() if re.match(r'        \("\w+", ', line)]
    assert len(lines) > 100
    assert [line for line in lines if "  # " not in line] == []


def test_names_are_distinct_bits():
    assert len({int(state.bits(state.QUIRKS, name)) for name in state.QUIRKS}) == len(state.QUIRKS)
    assert int(chosen_bits("quirk", state.QUIRKS, state.QUIRKS)) == (1 << len(state.QUIRKS)) - 1
    with pytest.raises(ConfigError, match="v1-fixed-no-pmi"):
        chosen_bits("quirk", state.QUIRKS, ["v1"])


def test_trace_kinds_do_not_overlap():
    assert min(LINUX_KINDS) >= 64 > max(MACHINE_KINDS)


@pytest.mark.parametrize(("settings", "wanted"), [
    ({}, (2, 8, 3, 48, 0x2000)),
    ({"pmu.gp": 4}, (2, 4, 3, 48, 0x2000)),
    ({"version": 5, "fixed": 4}, (2, 8, 3, 48, 0x2000)),
    ({"version": 1}, (1, 8, 0, 48, 0x2000)),
    ({"version": 0}, (0, 0, 0, 48, 0)),
    ({"width": 40, "perf_caps": 0}, (2, 8, 3, 40, 0)),
])  # fmt: skip
def test_guest_shape(settings, wanted):
    shape = guest_shape(cpu("spr").shape(), settings)
    found = (shape.version, shape.gp, shape.fixed, shape.gp_width, shape.perf_capabilities)
    assert found == wanted


def test_fixed_cap():
    """Kernels that let a guest have the fourth fixed counter let only one have it that owns the PMU."""
    assert guest_shape(cpu("spr").shape(), {}, fixed_cap=4).fixed == 4
    assert guest_shape(cpu("skx").shape(), {}, fixed_cap=4).fixed == 3
    modes = (MODES["mediated"], MODES["emulated"], MODES["passthrough"])
    assert [fixed_counter_cap(mode, 4) for mode in modes] == [4, 3, 3]
    with pytest.raises(ConfigError):
        fixed_counter_cap(MODES["mediated"], 5)


@pytest.mark.parametrize(
    "settings",
    [{"gpp": 1}, {"gp": 9}, {"gp": -1}, {"perf_caps": 1}, {"events_length": 256}, {"events_absent": -1}],
)
def test_guest_shape_errors(settings):
    with pytest.raises(ConfigError):
        guest_shape(cpu("spr").shape(), settings)


# --- host events ----------------------------------------------------------------------------------------
def flags(event) -> str:
    """The attributes as letters."""
    names = ("pinned", "exclude_user", "exclude_kernel", "exclude_host", "exclude_guest", "task")
    return "".join(letter for letter, name in zip("DukHGt", names, strict=True) if getattr(event, name))


@pytest.mark.parametrize(("spec", "config", "wanted", "count"), [
    ("instructions", 0xC0, "", 1),
    ("instructions:D", 0xC0, "D", 1),
    ("cycles:H", 0x3C, "G", 1),
    ("cycles:G", 0x3C, "H", 1),
    ("cpu-cycles:GH", 0x3C, "", 1),
    ("branches:u", 0xC4, "k", 1),
    ("branch-instructions:k", 0xC4, "u", 1),
    ("branches:uk", 0xC4, "", 1),
    ("ref-cycles", 0x013C, "", 1),
    ("slots", 0x0400, "", 1),
    ("INST_RETIRED.ANY_P:D", 0xC0, "D", 1),
    ("r20c4", 0x20C4, "", 1),
    ("cpu/event=0xc4,umask=0x20,cmask=2,inv,edge/uH", None, None, 0),
    ("cpu/event=0xc4,umask=0x20,cmask=2,inv,edge/:uH", 0x02_84_20C4, "kG", 1),
    ("instructions@task", 0xC0, "t", 1),
    ("instructions:D*12", 0xC0, "D", 12),
])  # fmt: skip
def test_host_event_specs(spec, config, wanted, count):
    if config is None:
        with pytest.raises(ConfigError):
            parse_host_event(spec)
        return
    events = parse_host_event(spec)
    assert len(events) == count
    assert {(e.config, flags(e)) for e in events} == {(config, wanted)}


def test_groups_and_periods():
    events = parse_host_events(["cycles", "{instructions/period=1000/,cpu/event=1,umask=2/}:DH*2"])
    assert [e.leader for e in events] == [-1, -1, 1, -1, 3]
    assert [e.period for e in events] == [0, 1000, 0, 1000, 0]
    assert all(e.pinned and e.exclude_guest for e in events[1:])


@pytest.mark.parametrize(("spec", "word"), [
    ("", "no event"), ("instrctions", "did you mean instructions"), ("instructions:Q", "modifier"),
    ("instructions*0", "repeat"), ("instructions*x", "not a number"), ("cpu/event=0x1c4/", "event"),
    ("cpu/evnt=1/", "term"), ("cpu/event=1", "closing"), ("{cycles", "closing"), ("r1ffffffff", "no event"),
    ("r100000", "raw event mask"), ("cycles/period=1/", "period"), ("cycles@gpu", "context"),
])  # fmt: skip
def test_host_event_errors(spec, word):
    with pytest.raises(ConfigError, match=word) as error:
        parse_host_event(spec)
    assert error.value.key == "host-event"


def test_too_many_host_events():
    with pytest.raises(HostError) as error:
        add_host_events(new_record()[0], parse_host_events(["instructions*30"] * 2))
    assert error.value.errno == 28
