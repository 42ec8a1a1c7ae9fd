"""Random programs read in every mode, with every policy of the switch, what the reference predicts."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.reference.counts import Rules, all_of_it, controls, predict, program, selectors, steps
from tests.tools.profiles import cases
from tests.tools.whole import machine
from vpmu_emu.asm import assemble
from vpmu_emu.linux.kvm.eventfilter import make_filter
from vpmu_emu.tables.modes import SWITCH_POLICIES

DENY = 1
GP, FIXED = 8, 3  # what a guest of spr gets; the host has a fourth fixed counter
SMALL = {"gp": 3, "fixed": 2}


def rules_of(mode: str, gp: int, fixed: int, whole: bool, through: bool) -> set[int | str]:
    """What exits; `whole`: the guest has every counter of its host, `through`: selectors pass."""
    if mode == "emulated":
        return all_of_it(gp, fixed)
    exits = set() if mode == "bare" or through else selectors(gp)
    if mode == "mediated" and not whole:
        exits |= controls() | {"rdpmc"}
    return exits


SETUPS: dict[str, dict[str, Any]] = {
    "bare": {"vpmu": "bare", "settings": {"pmu.version": 2, "pmu.gp": GP, "pmu.fixed": FIXED}},
    "emulated": {"vpmu": "emulated"},
    "emulated, small": {"vpmu": "emulated", "guest": SMALL},
    "passthrough, all": {"vpmu": "passthrough", "all_passthrough": True},
    "passthrough, all, lazy": {"vpmu": "passthrough", "all_passthrough": True, "switch": "lazy"},
    "mediated, whole": {"vpmu": "mediated", "cpu": "skx"},
    "mediated, whole, lazy": {"vpmu": "mediated", "cpu": "skx", "switch": "lazy"},
    "mediated, whole, run-loop": {"vpmu": "mediated", "cpu": "skx", "switch": "run-loop"},
}
for _policy in SWITCH_POLICIES:
    SETUPS[f"passthrough, {_policy}"] = {"vpmu": "passthrough", "switch": _policy}
    SETUPS[f"mediated, {_policy}"] = {"vpmu": "mediated", "switch": _policy}
    SETUPS[f"mediated, small, {_policy}"] = {"vpmu": "mediated", "switch": _policy, "guest": SMALL}


@pytest.mark.uncompiled
@pytest.mark.parametrize("setup", SETUPS)
def test_a_guest_reads_what_the_reference_predicts(setup):
    options = dict(SETUPS[setup])
    mode, whole = options.pop("vpmu"), options.get("cpu") == "skx"
    shape = options.get("guest", {})
    gp, fixed = shape.get("gp", 4 if whole else GP), shape.get("fixed", FIXED)
    exits = frozenset(rules_of(mode, gp, fixed, whole, "all_passthrough" in options))
    for seed in range(cases(day=6, laws=200, night=10_000)):
        r = random.Random(f"{seed} {setup}")
        denied: frozenset[int] = frozenset()
        chosen = dict(options)
        if mode != "bare" and "all_passthrough" not in options and r.random() < 0.3:
            denied = frozenset(r.sample((0xC0, 0xC4, 0), r.randint(1, 2)))
            events = [event for event in denied if event]
            chosen["filter"] = make_filter(DENY, events, fixed_counter_bitmap=int(0 in denied))
        rules = Rules(exits, options.get("switch") == "lazy", denied, clears=mode == "passthrough")
        todo = steps(r, gp, fixed, wraps=mode != "emulated")
        system = machine(assemble(program(todo)), mode, **chosen)
        stop = system.run()
        assert stop.reason == "debug-exit", f"seed {seed}: {stop}"
        wanted = predict(todo, gp, fixed, rules)
        at = system.program.symbols["found"]
        found = [int.from_bytes(system.read(at + 8 * k, 8), "little") for k in range(len(wanted))]
        assert found == wanted, f"seed {seed}: {todo}"


def test_the_reference_tells_modes_apart():
    """By random programs: no two modes always read the same, nor does a filter go unnoticed."""
    modes = ("bare", "emulated", "passthrough, eager", "passthrough, all, lazy", "mediated, elide")
    told = {mode: Rules(frozenset(
        rules_of(SETUPS[mode]["vpmu"], GP, FIXED, False, "all_passthrough" in SETUPS[mode])
    ), lazy="lazy" in mode) for mode in modes}  # fmt: skip
    told["filter"] = Rules(told["emulated"].exits, denied=frozenset({0xC0}))
    programs = [steps(random.Random(seed), GP, FIXED, wraps=False) for seed in range(60)]
    reads = {mode: [predict(todo, GP, FIXED, rules) for todo in programs] for mode, rules in told.items()}
    for one in reads:
        for other in reads:
            assert one == other or reads[one] != reads[other], f"{one} and {other}"
