"""Compiled and plain Python leave the same bytes: machine code is a speed, not a meaning.

Where numba and NumPy scalars differ (wrapping, signedness, shifts beyond the width, mixed types) the two
would part; a subprocess without the compiler runs what this process runs with it.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.tools.whole import LESSONS, MODES, digest, lesson, lesson_options, machine, seeded
from vpmu_emu._jit import COMPILES

MOST = 1_500  # a second or two without the compiler
SEEDS = range(300, 304)
KINDS = ("agreement", "anything", "integer", "running")  # of tests/reference/generator.py


def digests(mode: str) -> dict[str, str]:
    """A hash of record and memory for each lesson and for some generated programs."""
    found = {}
    for name in LESSONS:
        system = machine(lesson(name), mode, max_insns=MOST, **lesson_options(name, mode))
        system.run()
        found[name] = digest(system)
    for seed in SEEDS:
        system = machine(seeded(KINDS[seed % len(KINDS)], seed), mode, max_insns=MOST)
        system.run()
        found[f"seed-{seed}"] = digest(system)
    return found


@pytest.mark.slow
@pytest.mark.skipif(not COMPILES, reason="this process does not compile")
@pytest.mark.parametrize("mode", MODES)
def test_compiled_against_uncompiled(mode):
    program = f"from tests.test_uncompiled import *\nfor k, v in digests({mode!r}).items(): print(k, v)"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=ROOT,
        env={**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    plain = dict(line.split() for line in done.stdout.splitlines())
    assert len(plain) == len(LESSONS) + len(SEEDS)
    compiled = digests(mode)
    assert [name for name in compiled if compiled[name] != plain[name]] == []


@pytest.mark.uncompiled
def test_the_digest_tells_runs_apart():
    found = digests("bare")
    assert len(set(found.values())) == len(found)
