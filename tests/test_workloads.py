"""Workloads: what runs is what gcc makes of the C, and computes in every mode what the C does natively."""

from __future__ import annotations

import subprocess

import pytest

from tests.asm.gnu import require
from tests.tools import compile_guests
from tests.tools.compile_guests import GUESTS, TABLE, WORKLOADS

# What C leaves open ends the program.
TRAPS = ("-fsanitize=undefined", "-fsanitize-undefined-trap-on-error")
SEEDS = (0, 1, 2**63 + 5)
MADE = [guest for guest in TABLE if (GUESTS / guest.output).exists()]


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    """The checksum that the same C gets on this machine: native(name, seed, warm units, units)."""
    require("gcc")
    folder = tmp_path_factory.mktemp("workloads")

    def checksum(name, *parameters):
        program = folder / name
        if not program.exists():
            source = GUESTS / "c" / "workloads" / f"{name}.c"
            subprocess.run(["gcc", "-O1", *TRAPS, "-DHOSTED", "-o", str(program), str(source)], check=True)
        words = [program, *map(str, parameters)]
        said = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
        assert said[0] == name
        return int(said[1], 0)

    return checksum


@pytest.mark.oracle
@pytest.mark.parametrize("guest", MADE, ids=lambda guest: guest.output)
def test_what_is_committed_is_what_gcc_makes(guest):
    require("gcc")
    committed = (GUESTS / guest.output).read_text(encoding="utf-8")
    made_by, here = compile_guests.made_by(committed), compile_guests.version()
    assert made_by is not None
    if made_by.partition(".")[0] != here.partition(".")[0]:
        pytest.skip(f"made by gcc {made_by}, and this is gcc {here}")
    assert compile_guests.compiled(guest).replace(f"gcc {here}:", f"gcc {made_by}:") == committed


@pytest.mark.oracle
@pytest.mark.parametrize("name", WORKLOADS)
def test_the_checksum_is_the_seeds(name, native):
    found = [native(name, seed, 3, 40) for seed in SEEDS]
    assert len(set(found)) == len(SEEDS)
    assert native(name, SEEDS[0], 3, 40) == found[0]
    assert native(name, SEEDS[0], 4, 40) != found[0]
    failed = (1 << 64) - 1  # what sort and lz say where a unit's own test fails
    assert failed not in [native(name, SEEDS[1], units, 1) for units in range(20)]
