"""The event table has every architectural event, and each is made of what the silicon keeps."""

from __future__ import annotations

import pytest

from vpmu_emu.tables.events import (
    EVENTS,
    N_ARCH,
    SOURCES,
    TIME_SOURCES,
    event_by_code,
    event_by_name,
)
from vpmu_emu.tables.instructions import EVENT_CLASSES
from vpmu_emu.tables.names import UnknownNameError

pytestmark = pytest.mark.uncompiled


def test_codes_are_unique_and_fit():
    assert len({event.code for event in EVENTS}) == len(EVENTS)
    for event in EVENTS:
        assert 0 <= event.select <= 0xFF
        assert 0 <= event.umask <= 0xFF
        assert event_by_code(event.code | 0xFFFF_0000) is event
    assert event_by_code(0xFFFF) is None


def test_the_architectural_events_are_all_there():
    # SDM 3B table 20-1: UMASK and EVENT by bit of CPUID.0AH:EBX.
    arch = {event.arch: event.code for event in EVENTS if event.arch is not None}
    assert arch == {
        0: 0x003C, 1: 0x00C0, 2: 0x013C, 3: 0x4F2E, 4: 0x412E, 5: 0x00C4, 6: 0x00C5, 7: 0x01A4,
    }  # fmt: skip
    assert len(arch) == N_ARCH


def test_each_fixed_counter_counts_one_event():
    # SDM 3B 20.2.2; the pseudo-encodings 0x0300 and 0x0400 are the kernel's.
    fixed = {e.fixed: e for e in EVENTS if e.fixed_source}
    assert len([e for e in EVENTS if e.fixed_source]) == len(fixed)
    assert {i: e.code for i, e in fixed.items()} == {0: 0x00C0, 1: 0x003C, 2: 0x0300, 3: 0x0400}
    assert [fixed[i].plus for i in range(4)] == [("inst",), ("cycles",), ("ref",), ("slots",)]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.name)
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


@pytest.mark.parametrize(
    ("perf", "code"),
    [
        # The kernel's intel_perfmon_event_map.
        ("cycles", 0x003C), ("instructions", 0x00C0), ("cache-references", 0x4F2E),
        ("cache-misses", 0x412E), ("branches", 0x00C4), ("branch-misses", 0x00C5),
        ("bus-cycles", 0x013C), ("ref-cycles", 0x0300), ("slots", 0x0400),
    ],
)  # fmt: skip
def test_perf_names_are_the_kernels(perf, code):
    assert event_by_name(perf).code == code


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("BR_INST_RETIRED.COND_TAKEN", 0x01C4), ("BR_INST_RETIRED.COND_NTAKEN", 0x10C4),
        ("BR_INST_RETIRED.COND", 0x11C4), ("BR_INST_RETIRED.NEAR_CALL", 0x02C4),
        ("BR_INST_RETIRED.NEAR_RETURN", 0x08C4), ("BR_INST_RETIRED.NEAR_TAKEN", 0x20C4),
        ("BR_INST_RETIRED.FAR_BRANCH", 0x40C4), ("BR_INST_RETIRED.INDIRECT", 0x80C4),
        ("MEM_INST_RETIRED.ALL_LOADS", 0x81D0), ("MEM_INST_RETIRED.ALL_STORES", 0x82D0),
        ("MEM_INST_RETIRED.ANY", 0x83D0), ("INST_RETIRED.NOP", 0x02C0),
    ],
)  # fmt: skip
def test_encodings_are_those_of_intels_list(name, code):
    assert event_by_name(name.lower()).code == code


def test_memory_events_have_four_counters():
    for event in EVENTS:
        assert event.counters == (0x0F if event.select == 0xD0 else 0 if not event.select else 0xFF)


def test_kinds_of_branches_add_up():
    # Conditional branches are those that went elsewhere and those that went straight on; near and
    # far ones are all that were taken.
    totals = dict(zip(SOURCES, (97, 61, 40, 51, 7, 5, 3, 11)))

    def count(name):
        event = event_by_name("BR_INST_RETIRED." + name)
        return sum(totals[c] for c in event.plus) - sum(totals[c] for c in event.minus)

    assert count("COND_TAKEN") + count("COND_NTAKEN") == count("COND") == 40
    assert count("NEAR_TAKEN") + count("FAR_BRANCH") + count("COND_NTAKEN") == count("ALL_BRANCHES")
    assert count("COND_NTAKEN") == 61 - 51


def test_a_wrong_name_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match=r"INST_RETIRED\.ANY_P"):
        event_by_name("INST_RETIRED.ANY_")
