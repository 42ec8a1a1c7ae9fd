"""What all tests share: hypothesis profiles, oracles that must exist where they are required."""

from __future__ import annotations

import importlib.util
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.tools.differential import CASES
from tests.tools.profiles import PROFILE, PROFILES
from vpmu_emu._jit import COMPILES

ROOT = Path(__file__).resolve().parent.parent
# A thread that translates would run beside everything; `make laws` has a line for the translator.
os.environ.setdefault("VPMU_ENGINE", "interpreter")

# Deadlines measure the machine, not the code; the first example of a test may compile.
for name, examples in PROFILES.items():
    settings.register_profile(
        name,
        max_examples=examples,
        deadline=None,
        print_blob=True,
        # A change is judged by its own faults: what is new is for the nights to find.
        derandomize=name != "nightly",
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
settings.load_profile(PROFILE)


def oracle_missing(name: str) -> str | None:
    """Why oracle `name` cannot be used, or None. Programs by name, Python packages as `import:x`."""
    if name.startswith("import:"):
        package = name.removeprefix("import:")
        found = importlib.util.find_spec(package) is not None
    else:
        found = shutil.which(name) is not None
    return None if found else f"oracle {name} is not installed"


@pytest.fixture(scope="session")
def require_oracle() -> Callable[[str], str]:
    """`require_oracle("as")` gives its path; skips by name, fails where VPMU_REQUIRE_ORACLES=1."""

    def require(name: str) -> str:
        reason = oracle_missing(name)
        if reason is None:
            return shutil.which(name) or name
        if os.environ.get("VPMU_REQUIRE_ORACLES") == "1":
            pytest.fail(f"{reason}, and VPMU_REQUIRE_ORACLES=1")
        pytest.skip(reason)

    return require


@pytest.fixture(scope="session")
def trace_cmd() -> str:
    """The real trace-cmd. `.ci/run` fetches it where it can; not every CI may, so its tests are skipped."""
    reason = oracle_missing("trace-cmd")
    if reason is not None:
        pytest.skip(reason)
    return "trace-cmd"


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of the checkout."""
    return ROOT


def pytest_collection_modifyitems(config, items):
    """VPMU_THIN, VPMU_SHARE and days leave some tests out, and so does the compiler of `inner` ones."""
    keep = {id(item) for item in items if not COMPILES or item.get_closest_marker("inner") is None}
    keep &= thin(items, int(os.environ.get("VPMU_THIN", "0")))
    share = os.environ.get("VPMU_SHARE")
    if share:
        part, _, parts = share.partition("/")
        keep &= {id(item) for item in items if _part(item, int(parts)) == int(part) % int(parts)}
    gone = [item for item in items if id(item) not in keep]
    items[:] = [item for item in items if id(item) in keep]
    config.hook.pytest_deselected(items=gone)


def thin(items, most):
    """At most N parametrisations of each test, spread evenly over all of them.

    N is VPMU_THIN, 0 for all; twice as many of tests that no compiled run has (they call inner functions).
    By day it is what the test's mark `few` says.
    """
    families: dict[str, list[pytest.Item]] = {}
    for item in items:
        families.setdefault(item.nodeid.partition("[")[0], []).append(item)
    kept = set()
    for family in families.values():
        stay = len(family)
        few = family[0].get_closest_marker("few")
        if few is not None and PROFILE == "dev":
            stay = min(stay, few.args[0])
        if most:
            alone = family[0].get_closest_marker("inner") is not None
            stay = min(stay, 2 * most if alone else most)
        kept |= {id(family[k * len(family) // stay]) for k in range(stay)}
    return kept


def _part(item, parts):
    """With VPMU_SHARE=K/N every test is in one of N shares: the same one in every process."""
    return zlib.crc32(item.nodeid.encode()) % parts


# Differential tests are spread over several processes; their counts come together here.
def pytest_sessionfinish(session):
    """Hand the counts of a worker to the process that started it."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["cases"] = {k: dict(v) for k, v in CASES.items()}


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    """Take over the counts of a worker."""
    for oracle, rows in getattr(node, "workeroutput", {}).get("cases", {}).items():
        CASES[oracle].update(rows)


def pytest_terminal_summary(terminalreporter):
    """Say how much was compared; with -v, row by row."""
    for oracle, rows in sorted(CASES.items()):
        terminalreporter.write_line(
            f"{oracle}: {len(rows)} rows (mnemonic, form, width), {sum(rows.values())} cases, "
            f"at least {min(rows.values())} a row"
        )
        if terminalreporter.verbosity > 0:
            for row, cases in sorted(rows.items()):
                terminalreporter.write_line(f"  {row}: {cases}")
