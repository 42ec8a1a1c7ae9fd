"""Event lists are whole and unambiguous, their codes Intel's, each event made of known totals."""

from __future__ import annotations

import pytest

from vpmu_emu.tables.cpus import CPU_NAMES, cpu
from vpmu_emu.tables.events import (
    EVENTS,
    LISTS,
    N_ARCH,
    SOURCES,
    TIME_SOURCES,
    constraint,
    event_by_code,
    event_by_name,
    event_mask,
    event_names,
    metric_names,
)
from vpmu_emu.tables.instructions import EVENT_CLASSES
from vpmu_emu.tables.names import UnknownNameError

pytestmark = pytest.mark.uncompiled

each_list = pytest.mark.parametrize("name", LISTS)


def of(name):
    return [event for event in EVENTS if name in event.lists]


@each_list
def test_codes_are_unique_and_fit(name):
    assert len({event.code for event in of(name)}) == len(of(name))
    for event in of(name):
        assert 0 <= event.select <= 0xFF
        assert 0 <= event.umask <= 0xFF
        assert event_by_code(event.code | 0xFFFF_0000, name) is event
    assert event_by_code(0xFFFF, name) is None


def test_every_event_is_in_a_list_and_every_list_in_a_cpu():
    for event in EVENTS:
        assert event.lists
        assert set(event.lists) <= set(LISTS)
    assert {cpu(name).events for name in CPU_NAMES} == set(LISTS)
    assert len(EVENTS) <= 64  # one bit each in the record
    for name in LISTS:
        assert [e for k, e in enumerate(EVENTS) if event_mask(name) >> k & 1] == of(name)


@pytest.mark.parametrize("name", CPU_NAMES)
def test_the_architectural_events_are_all_there(name):
    # SDM 3B table 20-1: UMASK and EVENT by bit of CPUID.0AH:EBX.
    model = cpu(name)
    arch = {event.arch: event.code for event in of(model.events) if event.arch is not None}
    codes = [0x003C, 0x00C0, 0x013C, 0x4F2E, 0x412E, 0x00C4, 0x00C5, 0x01A4]
    assert len(codes) == N_ARCH
    assert arch == dict(enumerate(codes[: model.arch_events_length]))


@pytest.mark.parametrize("name", CPU_NAMES)
def test_each_fixed_counter_counts_one_event(name):
    # SDM 3B 20.2.2; the pseudo-encodings 0x0300 and 0x0400 are the kernel's.
    model = cpu(name)
    fixed = {e.fixed: e for e in of(model.events) if e.fixed_source}
    assert len([e for e in of(model.events) if e.fixed_source]) == len(fixed) == model.fixed
    codes = {0: 0x00C0, 1: 0x003C, 2: 0x0300, 3: 0x0400}
    assert all(codes[i] == e.code for i, e in fixed.items())
    sources = (("inst",), ("cycles",), ("ref",), ("slots",))
    assert all(fixed[i].plus == sources[i] for i in range(model.fixed))


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: f"{event.name}-{event.code:04x}")
def test_every_event_is_made_of_known_totals(event):
    assert event.plus
    assert set(event.plus) | set(event.minus) <= set(SOURCES)
    timed = set(event.plus) & set(TIME_SOURCES)
    if timed:
        # Time is scaled, not summed.
        assert (event.plus, event.minus, event.growth) == ((*timed,), (), "time")
    else:
        assert isinstance(event.growth, int)
        assert event.growth >= 1
        assert not set(event.minus) & set(TIME_SOURCES)
    assert 0 <= event.counters <= 0xFF
    assert event.counters or event.fixed is not None, "no counter can count it"
    assert event.doc.endswith(".")


def test_every_class_of_the_instruction_table_is_a_source():
    assert set(EVENT_CLASSES) <= set(SOURCES)


@each_list
@pytest.mark.parametrize(
    ("perf", "code"),
    [
        # The kernel's intel_perfmon_event_map.
        ("cycles", 0x003C), ("instructions", 0x00C0), ("cache-references", 0x4F2E),
        ("cache-misses", 0x412E), ("branches", 0x00C4), ("branch-misses", 0x00C5),
        ("bus-cycles", 0x013C),
    ],
)  # fmt: skip
def test_perf_names_are_the_kernels(name, perf, code):
    assert event_by_name(perf, name).code == code
    assert event_names(name)[perf] == code


def test_ref_cycles_need_no_fixed_counter_on_the_newest():
    """intel_pmu_ref_cycles_ext(), Linux 6.6."""
    codes = {name: event_by_name("ref-cycles", name).code for name in LISTS}
    assert codes == {"spr": 0x013C, "icx": 0x0300, "skx": 0x0300}


# (list, EVENT and UMASK, general-purpose counters, fixed): intel_*_event_constraints[]
CONSTRAINED = [
    ("spr", 0x0180, 0x0F, None), ("spr", 0x0001, 0x0F, None), ("spr", 0x018F, 0x0F, None),
    ("spr", 0x0190, 0xFF, None), ("spr", 0x412E, 0xFF, None), ("spr", 0x003C, 0xFF, 1),
    ("spr", 0x023C, 0xFF, None), ("spr", 0x013C, 0xFF, 2), ("spr", 0x0300, 0, 2), ("spr", 0x0100, 0, 0),
    ("spr", 0x0400, 0, 3), ("spr", 0x04A4, 1, None), ("spr", 0x08A4, 1, None), ("spr", 0x01A4, 0xFF, None),
    ("spr", 0x01CE, 1, None), ("spr", 0x02CD, 1, None), ("spr", 0x01CD, 0xFF, None),
    ("spr", 0x81D0, 0x0F, None), ("spr", 0x01DF, 0x0F, None), ("spr", 0x01E0, 0xFF, None),
    ("spr", 0x01A3, 0x0F, None), ("spr", 0x04A3, 0xFF, None), ("spr", 0x00FF, 0xFF, None),
    ("icx", 0x00C0, 0xFF, 0), ("icx", 0x01C0, 0xFF, 0), ("icx", 0x0103, 0x0F, None),
    ("icx", 0x010B, 0xFF, None), ("icx", 0x0127, 0x0F, None), ("icx", 0x0129, 0xFF, None),
    ("icx", 0x0132, 0x0F, None), ("icx", 0x0160, 0x0F, None), ("icx", 0x018C, 0xFF, None),
    ("icx", 0x04A3, 0xFF, None), ("icx", 0x06A3, 0x0F, None), ("icx", 0x01B7, 0x0F, None),
    ("icx", 0x01E6, 0x0F, None), ("icx", 0x01E7, 0xFF, None), ("icx", 0x01F4, 0x0F, None),
    ("icx", 0x013C, 0xFF, None), ("skx", 0x0180, 0xFF, None), ("skx", 0x01C0, 0x02, None),
    ("skx", 0x81D0, 0x0F, None), ("skx", 0x01D3, 0xFF, None), ("skx", 0x01C6, 0x0F, None),
    ("skx", 0x0300, 0, 2), ("skx", 0x013C, 0xFF, None), ("skx", 0x0400, 0xFF, None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "code", "counters", "fixed"), CONSTRAINED)
def test_constraints_are_the_kernels(name, code, counters, fixed):
    row = constraint(code, name)
    assert (row.counters, row.fixed) == (counters, fixed)
    # EDGE, INV and CMASK need a general-purpose counter; other constraints do not look at them.
    assert constraint(code | 1 << 24, name).fixed is None


@pytest.mark.parametrize(
    ("name", "config", "counters", "fixed"),
    [
        ("spr", 0x00C0, 0xFE, None), ("spr", 0x010000C0, 0xFF, None), ("spr", 0x0100, 0, 0),
        ("spr", 0x01CD, 0xFE, None), ("spr", 0x81D0, 0x0F, None), ("spr", 0x0180, 0x0F, None),
        ("icx", 0x00C0, 0xFF, 0), ("icx", 0x01C0, 0, 0), ("icx", 0x01D4, 0x0F, None),
    ],
)  # fmt: skip
def test_precise_events_have_constraints_of_their_own(name, config, counters, fixed):
    row = constraint(config, name, pebs=True)
    assert (row.counters, row.fixed) == (counters, fixed)


def test_fractions_of_the_slots_have_the_kernels_names():
    assert metric_names("spr") == {**metric_names("icx"), "topdown-heavy-ops": 0x8400,
        "topdown-br-mispredict": 0x8500, "topdown-fetch-lat": 0x8600, "topdown-mem-bound": 0x8700,
    }  # fmt: skip
    assert list(metric_names("icx").values()) == [0x8000, 0x8100, 0x8200, 0x8300]
    assert not metric_names("skx")


NEW, OLD, BOTH = ("icx", "spr"), ("skx",), ("icx", "spr", "skx")


@pytest.mark.parametrize(
    ("lists", "event", "code"),
    [
        (NEW, "slots", 0x0400), (NEW, "TOPDOWN.SLOTS_P", 0x01A4),
        (NEW, "BR_INST_RETIRED.COND_TAKEN", 0x01C4), (NEW, "BR_INST_RETIRED.COND", 0x11C4),
        (OLD, "BR_INST_RETIRED.COND", 0x01C4), (OLD, "BR_INST_RETIRED.CONDITIONAL", 0x01C4),
        (NEW, "BR_INST_RETIRED.INDIRECT", 0x80C4), (BOTH, "BR_INST_RETIRED.COND_NTAKEN", 0x10C4),
        (OLD, "BR_INST_RETIRED.NOT_TAKEN", 0x10C4), (BOTH, "BR_INST_RETIRED.NEAR_CALL", 0x02C4),
        (BOTH, "BR_INST_RETIRED.NEAR_RETURN", 0x08C4), (BOTH, "BR_INST_RETIRED.NEAR_TAKEN", 0x20C4),
        (BOTH, "BR_INST_RETIRED.FAR_BRANCH", 0x40C4), (NEW, "BR_MISP_RETIRED.COND", 0x11C5),
        (OLD, "BR_MISP_RETIRED.CONDITIONAL", 0x01C5), (BOTH, "MEM_INST_RETIRED.ALL_LOADS", 0x81D0),
        (BOTH, "MEM_INST_RETIRED.ALL_STORES", 0x82D0), (BOTH, "MEM_INST_RETIRED.ANY", 0x83D0),
        (BOTH, "INST_RETIRED.NOP", 0x02C0), (NEW, "INST_RETIRED.PREC_DIST", 0x0100),
        (OLD, "INST_RETIRED.PREC_DIST", 0x01C0), (("skx", "icx"), "CPU_CLK_UNHALTED.REF_XCLK", 0x013C),
        (("spr",), "CPU_CLK_UNHALTED.REF_TSC_P", 0x013C),
    ],
)  # fmt: skip
def test_encodings_are_those_of_intels_lists(lists, event, code):
    for name in lists:
        assert event_by_name(event.lower(), name).code == code, name


@pytest.mark.parametrize(
    ("name", "event"),
    [
        ("skx", "BR_INST_RETIRED.COND_TAKEN"), ("skx", "BR_INST_RETIRED.INDIRECT"),
        ("skx", "TOPDOWN.SLOTS"), ("spr", "CPU_CLK_UNHALTED.REF_XCLK"),
        ("icx", "CPU_CLK_UNHALTED.REF_TSC_P"),
    ],
)  # fmt: skip
def test_what_a_cpu_does_not_have_has_no_name_there(name, event):
    with pytest.raises(UnknownNameError):
        event_by_name(event, name)


def test_where_an_event_can_be_counted():
    for event in EVENTS:
        if event.select == 0xD0:
            wanted = 0x0F
        elif event.code == 0x01C0:
            wanted = 0x02
        else:
            wanted = 0xFF if event.select else 0
        assert event.counters == wanted, event.name


@each_list
def test_kinds_of_branches_add_up(name):
    # Conditional branches are those that went elsewhere and those that went straight on; near and
    # far ones are all that were taken.
    totals = dict(zip(SOURCES, (97, 61, 40, 51, 7, 5, 3, 11)))

    def count(kind):
        event = event_by_name("BR_INST_RETIRED." + kind, name)
        return sum(totals[c] for c in event.plus) - sum(totals[c] for c in event.minus)

    assert count("COND") == 40
    assert count("NEAR_TAKEN") + count("FAR_BRANCH") + count("COND_NTAKEN") == count("ALL_BRANCHES")
    assert count("COND_NTAKEN") == 61 - 51
    if name != "skx":
        assert count("COND_TAKEN") + count("COND_NTAKEN") == count("COND")


def test_a_wrong_name_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match=r"INST_RETIRED\.ANY_P"):
        event_by_name("INST_RETIRED.ANY_")
