"""Workloads: what runs is what gcc makes of the C, and computes in every mode what the C does natively."""

from __future__ import annotations

import random
import re
import subprocess
from functools import cache
from itertools import pairwise

import pytest

from tests.asm.gnu import gnu, require
from tests.tools import compile_guests, workloads
from tests.tools.compile_guests import GUESTS, TABLE, WORKLOADS
from tests.tools.profiles import cases
from tests.tools.workloads import KERNELS, measured
from vpmu_emu import run
from vpmu_emu._jit import COMPILES
from vpmu_emu.asm import assemble, assemble_file
from vpmu_emu.errors import AssemblyError
from vpmu_emu.setup.saved import unpack
from vpmu_emu.system import System
from vpmu_emu.tables.modes import MODES

# What C leaves open ends the program.
TRAPS = ("-fsanitize=undefined", "-fsanitize-undefined-trap-on-error")
WARM, UNITS = 3, 25
SEEDS = (0, 1, 2**63 + 5)


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


@cache
def program(name, seed, events=0):
    defsym = {"SEED": seed, "WARM_UNITS": WARM, "UNITS": UNITS, "EVENTS": events}
    return assemble_file(GUESTS / "workloads" / f"{name}.s", defsym=defsym)


@cache
def checksum(name, seed, mode="bare", events=0):
    """What the guest says that its units have computed."""
    result = run(program(name, seed, events), vpmu=mode)
    assert result.to_json()["exit_code"] == 0, result.serial
    (line,) = [line for line in result.serial.splitlines() if line.startswith(f"{name}: ")]
    return int(line.split()[-1], 16)


@pytest.mark.oracle
@pytest.mark.parametrize("guest", TABLE, ids=lambda guest: guest.output)
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


@pytest.mark.oracle
@pytest.mark.parametrize("name", WORKLOADS)
def test_a_guest_computes_what_the_c_computes(name, native):
    for seed in SEEDS:
        assert checksum(name, seed) == native(name, seed, WARM, UNITS)


@pytest.mark.oracle
@pytest.mark.parametrize("name", WORKLOADS)
def test_a_guest_expects_of_itself_what_the_c_computes(name, native):
    lines = (GUESTS / "workloads" / f"{name}.s").read_text(encoding="utf-8")
    (units,) = re.findall(r"^#: args .*--defsym UNITS=(\d+)$", lines, re.MULTILINE)
    (expected,) = re.findall(r"^#: expect all: mem64\(checksum\) == (\w+)$", lines, re.MULTILINE)
    assert int(expected, 0) == native(name, 1, 10, units)  # SEED and WARM_UNITS of perf_kernel.inc


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", WORKLOADS)
def test_every_mode_computes_the_same(name, mode):
    assert checksum(name, 1, mode, events=10 if mode != "none" else 0) == checksum(name, 1)


@pytest.mark.few(3)
@pytest.mark.parametrize("name", KERNELS)
def test_units_are_short_and_alike(name):
    mix = measured(name)
    assert 3000 <= mix.unit <= 10_000
    assert mix.spread <= 0.2
    # Time does not change what a unit is: no caches are filled, no table grows. (Games have their phases.)
    half = len(mix.cycles) // 2
    first, last = sum(mix.cycles[:half]), sum(mix.cycles[half:])
    assert abs(first - last) <= (0.03 + 0.3 * mix.spread) * first


def test_a_request_takes_what_the_disk_takes():
    cycles = measured("fio", 100).cycles
    assert min(cycles) >= 150_000 * (1 - 1e-3)  # 50 microseconds at 3 GHz, a tick of the TSC less
    assert max(cycles) <= 165_000


def test_every_workload_is_another_one():
    mixes = {name: measured(name) for name in KERNELS}

    def by(key):
        return sorted(mixes, key=lambda name: key(mixes[name]))

    assert by(lambda mix: mix.ipc)[0] == "chase"
    assert by(lambda mix: mix.per_1000("llcmiss"))[-1] == "chase"
    assert by(lambda mix: mix.per_1000("llcref"))[-2:] == ["hash", "chase"]
    assert by(lambda mix: mix.per_1000("brmiss"))[-2:] == ["hash", "sort"]
    assert set(by(lambda mix: mix.per_1000("brmiss"))[:2]) == {"interp", "matrix"}
    assert by(lambda mix: mix.per_1000("branch"))[:2] == ["matrix", "bitboard"]
    ipc = [mixes[name].ipc for name in by(lambda mix: mix.ipc)]
    assert all(b > 1.1 * a for a, b in pairwise(ipc))


def test_the_page_has_what_is_measured():
    """But for the last digits, which every change of the guest kernel moves a little.

    `python -m tests.tools.workloads` writes it anew.
    """
    number = re.compile(r"\d[\d,]*(?:\.\d+)?")
    here, there = workloads.PAGE.read_text(encoding="utf-8"), workloads.text()
    assert number.sub("", here) == number.sub("", there)
    values = [[float(n.replace(",", "")) for n in number.findall(text)] for text in (here, there)]
    assert values[0] == pytest.approx(values[1], rel=0.03, abs=0.2)


def in_one(path):
    """The whole text of a guest; commons, which each linker places as it likes, as what they are."""
    text = re.sub(r'^\s*\.include "(.*)"$', lambda m: in_one(GUESTS / "include" / m[1]),
                  path.read_text(encoding="utf-8"), flags=re.MULTILINE)  # fmt: skip
    common = r"^\t\.local\t([\w.]+)\n\t\.comm\t\1,(\d+),(\d+)$"
    placed = r"\t.pushsection .bss\n\t.balign \3\n\1:\t.zero \2\n\t.popsection"
    return re.sub(common, placed, text, flags=re.MULTILINE)


@pytest.mark.oracle
@pytest.mark.parametrize("name", WORKLOADS)
def test_gnu_as_makes_the_same_of_it(name, tmp_path):
    text = in_one(GUESTS / "workloads" / f"{name}.s")
    assert "\t.comm\t" not in text
    ours = {segment.name: (segment.addr, segment.data) for segment in assemble(text).segments}
    assert ours == gnu(text, tmp_path)


@pytest.mark.parametrize("hz", [0, -5, 10**11])
def test_a_disk_of_no_rate_is_refused(hz):
    with pytest.raises(AssemblyError, match="IO_HZ must be 1 to 10000000"):
        assemble_file(GUESTS / "workloads" / "fio.s", defsym={"IO_HZ": hz})


OWNERS = tuple(mode for mode, row in MODES.items() if row.hypervisor and row.enable_pmu)


def profiled(pick, name, seed):
    """A run with parameters and options at random, some moved to another mode: what it said, and which."""
    mode = pick.choice(("bare", *OWNERS))
    to = pick.choice(OWNERS) if mode != "bare" and pick.randrange(2) else mode
    defsym = {
        "SEED": seed, "WARM_UNITS": WARM, "UNITS": UNITS, "EVENTS": pick.choice((0, 1, 6, 10, 15)),
        "EVENT": pick.choice((0xC0, 0xC0, 0x3C, 0xC4)), "FREQ": pick.choice((1, 1000, 1000, 3000)),
        "HZ": pick.choice((100, 250, 1000)), "KERNEL": pick.choice((515, 607, 700)),
        "WATCHDOG": pick.randrange(2),
    }  # fmt: skip
    if "emulated" in (mode, to):  # it leaves a guest no time to work if that samples much
        defsym |= {"EVENTS": min(defsym["EVENTS"], 6), "HZ": min(defsym["HZ"], 250), "FREQ": 1000}
    options = {"cpu": pick.choice(("spr", "emr", "icx"))}
    if mode != "bare":
        options["host_events"] = pick.choice(([], [], ["cycles/period=3001/:H"]))
    how = f"{name} {mode} {to} {defsym} {options}"
    guest = assemble_file(GUESTS / "workloads" / f"{name}.s", defsym=defsym)
    if to == mode:
        system = System(guest, vpmu=mode, **options)
    else:
        system = System(guest, vpmu=mode, save="unused", at=pick.randrange(1, 400_000), **options)
    if system.run().reason == "saved":
        how += f" moved after {system.instructions}"
        system = System(None, vpmu=to, restore=unpack(system.saved_vm(), "x.vm"), **options)
        system.run()
    return system.serial, how


@pytest.mark.skipif(not COMPILES, reason="some million instructions a run")
@pytest.mark.parametrize("part", range(2))
def test_nobody_who_samples_or_moves_a_guest_changes_what_it_computes(part):
    pick = random.Random(f"workloads {part}")
    for _ in range(cases(day=8, laws=150, night=2000)):
        name, seed = pick.choice(WORKLOADS), pick.choice(SEEDS)
        said, how = profiled(pick, name, seed)
        assert f"checksum {checksum(name, seed):016x}\n" in said, f"{how}: {said}"
        assert ", 0 unknown" in said or "'EVENTS': 0" in how, f"{how}: {said}"
