"""The record: no holes, no names that NumPy takes for itself, small enough to copy, all in one place."""

from __future__ import annotations

import numpy as np
import pytest

from vpmu_emu.linux import state as linux_state
from vpmu_emu.machine import state

RECORDS = {
    f"{module.__name__}.{name}": value
    for module in (state, linux_state)
    for name, value in vars(module).items()
    if isinstance(value, np.dtype) and value.fields
}


@pytest.mark.parametrize("name", RECORDS)
def test_no_padding_holes(name):
    dtype = RECORDS[name]
    at = 0
    for field in dtype.names:
        kind, offset = dtype.fields[field][:2]
        assert offset == at, f"{name}.{field} begins at {offset}, not {at}"
        at += kind.itemsize
    assert at == dtype.itemsize


@pytest.mark.parametrize("name", RECORDS)
def test_no_field_hides_behind_an_attribute_of_numpy(name):
    # Uncompiled, `record.base` would be NumPy's own attribute and not the field.
    taken = {n for n in dir(np.void) if not n.startswith("_")}
    assert taken.isdisjoint(RECORDS[name].names)


def test_a_core_is_small_enough_to_copy():
    assert linux_state.SYSTEM.itemsize <= 256 * 1024


def test_lanes_cover_the_static_classes_in_order():
    assert state.CLASSES[: len(state.LANES1 + state.LANES2)] == state.LANES1 + state.LANES2
    assert state.LANE_BITS * max(len(state.LANES1), len(state.LANES2)) <= 64


def test_words_of_64_bits_lie_on_8_bytes():
    def walk(dtype, base):
        for field in dtype.names or ():
            kind, offset = dtype.fields[field][:2]
            inner = kind.base
            if inner.fields:
                walk(inner, base + offset)
            elif inner.itemsize == 8:
                assert (base + offset) % 8 == 0, field

    walk(linux_state.SYSTEM, 0)
