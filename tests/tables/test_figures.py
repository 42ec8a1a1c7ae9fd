"""A published figure is used once: a cost comes from it, or it is predicted, or it is what is asked for."""

from __future__ import annotations

import math
import tomllib

import pytest

from vpmu_emu.data import guests_dir
from vpmu_emu.tables.cpus import CPU_NAMES, LATENCIES, LATENCY_ROWS, cpu
from vpmu_emu.tables.figures import COST, FIGURES, TARGET, VALIDATION

pytestmark = pytest.mark.uncompiled

MODELS = [cpu(name) for name in CPU_NAMES]
OF_COSTS = {figure for cost in cpu("spr").costs for figure in cost.figures}
OF_LATENCIES = {figure for row in LATENCY_ROWS.values() for figure in row.figures}


def two_digits(low, high):
    """The geometric mean of an interval, to two digits."""
    return float(f"{math.sqrt(low * high):.2g}")


def test_costs_come_from_figures_that_are_for_costs_and_from_no_other():
    assert {name for name, figure in FIGURES.items() if figure.use == COST} == OF_COSTS | OF_LATENCIES


def test_enough_is_kept_to_be_predicted():
    kept = [figure for figure in FIGURES.values() if figure.use == VALIDATION]
    assert sum(bool(figure.predicted_by) for figure in kept) >= 8
    assert not any(f.predicted_by for f in FIGURES.values() if f.use != VALIDATION)


def test_the_six_cells_are_what_is_asked_for():
    cells = {figure.value[0] for figure in FIGURES.values() if figure.use == TARGET}
    assert cells == {33.62, 4.24, 6.21, 79.32, 7.34, 10.45}


@pytest.mark.parametrize("figure", FIGURES.values(), ids=list(FIGURES))
def test_a_figure_says_of_what_and_where_it_stands(figure):
    low, high = figure.value
    assert low <= high
    assert len(figure.context) > 10
    assert len(figure.source) > 10


@pytest.mark.parametrize("model", MODELS, ids=CPU_NAMES)
def test_a_typical_cost_is_its_figure_s_or_the_geometric_mean_of_its_interval(model):
    for cost in model.costs:
        low, typical, high = cost.cycles
        if cost.typical:
            assert cost.typical in cost.figures
            figure = FIGURES[cost.typical]
            assert (figure.unit, figure.value) == ("cycles", (typical, typical)), cost.name
        else:
            assert typical == two_digits(low, high), cost.name
        assert len(cost.estimate) > 10, cost.name
        assert cost.estimate != cost.source


@pytest.mark.parametrize("model", MODELS, ids=CPU_NAMES)
def test_so_is_a_typical_latency(model):
    assert list(LATENCY_ROWS) == list(LATENCIES)
    for name, (low, typical, high) in zip(LATENCIES, model.latencies, strict=True):
        assert low <= typical <= high
        assert low == typical == high or typical == 16 * two_digits(low / 16, high / 16), name
        assert LATENCY_ROWS[name].doc
        assert len(LATENCY_ROWS[name].source) > 7


@pytest.mark.parametrize("name", [name for name in CPU_NAMES if name != "generic"])
def test_the_guest_s_accesses_take_what_the_host_s_take(name):
    model = cpu(name)
    for latency, cost in (("wrmsr", "wrmsr"), ("msr", "rdmsr"), ("pmc", "rdpmc")):
        three = model.latencies[LATENCIES.index(latency)]
        assert three == tuple(16 * cycles for cycles in model.cost(cost).cycles), latency
        assert LATENCY_ROWS[latency].figures == model.cost(cost).figures


def test_what_guest_kernels_spend_is_written_for_them():
    from vpmu_emu.tables.generate import costs_inc

    text = costs_inc()
    rows = {cost.name: cost for cost in cpu("spr").costs if cost.guest}
    assert {"nmi_entry", "irq_entry", "timer_interrupt", "perf_event_nmi_handler"} <= set(rows)
    for name, cost in rows.items():
        assert f".ifndef COST_{name}\n        .equ COST_{name}, {cost.cycles[1]}\n" in text
    assert text.count(".ifndef") == len(rows)


def test_the_recipe_that_draws_costs_draws_them_from_their_intervals():
    """guests/sweeps/uncertain.toml says so."""
    spec = tomllib.loads((guests_dir() / "sweeps" / "uncertain.toml").read_text())
    drawn = spec["random"]["set"]["cost"]
    assert drawn
    for name, ends in drawn.items():
        low, _, high = cpu("spr").cost(name).cycles
        assert (ends["low"], ends["high"]) == (low, high), name
