"""SPEC.toml to points: every combination, the same draws for a seed, and a sentence for what is wrong."""

from __future__ import annotations

import pytest

from tests.conftest import ROOT
from vpmu_emu.data import guests_dir
from vpmu_emu.errors import ConfigError, VpmuError
from vpmu_emu.lab.spec import read_spec
from vpmu_emu.lab.sweep import Lab

GUEST = """
        .ifndef ROUNDS
        .equ ROUNDS, 10
        .endif
_start: mov ecx, ROUNDS
work:   dec ecx
        jnz work
        hlt
        .data
total:  .quad 7
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "guest.s").write_text(GUEST)
    (tmp_path / "deny.toml").write_text('action = "deny"\nevents = ["instructions"]\n')
    (tmp_path / "bad.toml").write_text('action = "deny"\nevents = ["nothing"]\n')
    return tmp_path


def spec_of(folder, text, program='program = "guest.s"'):
    path = folder / "spec.toml"
    path.write_text(f"{program}\n{text}")
    return read_spec(path)


def values(spec, column):
    return list(dict.fromkeys(point.parameters[column] for point in spec.points()))


# --- axes -------------------------------------------------------------------------------------------------


def test_a_grid_is_every_combination_in_order(folder):
    spec = spec_of(folder, """
        [options]
        cpu = "icx"
        set.pmu.gp = 4
        [grid]
        vpmu = ["bare", "emulated"]
        guest.gp = [1, 2]
        pmi_skid = ["0:0", "10:0"]
    """)  # fmt: skip
    assert len(spec) == 8
    assert spec.columns == ("vpmu", "guest.gp", "pmi_skid")
    assert spec.modes == ("bare", "emulated")
    points = list(spec.points())
    assert points[1].parameters == {"vpmu": "bare", "guest.gp": 1, "pmi_skid": "10:0"}
    assert points[5].asked == {
        "cpu": "icx", "settings": {"pmu.gp": 4}, "vpmu": "emulated", "guest": {"gp": 1}, "pmi_skid": "10:0",
    }  # fmt: skip


def test_the_id_of_a_point_is_of_what_it_asks_and_not_of_how_it_is_written(folder):
    one = spec_of(folder, '[options]\ncpu = "icx"\n[grid]\nmax-insns = [10, 20]\nset.pmu.gp = [2]')
    other = spec_of(folder, '[zip]\n"set.pmu.gp" = [2, 2]\nmax_insns = [20, 0x0a]\n[options]\ncpu = "icx"')
    assert {p.id for p in one.points()} == {p.id for p in other.points()}
    assert len({p.id for p in one.points()}) == 2
    assert [len(p.id) for p in one.points()] == [16, 16]


@pytest.mark.parametrize(("text", "expected"), [
    ("{ from = 1, to = 9, step = 4 }", [1, 5, 9]),
    ("{ from = 9, to = 1, step = -4 }", [9, 5, 1]),
    ("{ from = 1, to = 10, step = 4 }", [1, 5, 9]),
    ("{ from = 1, to = 9, points = 3 }", [1, 5, 9]),
    ("{ from = 1, to = 1, points = 1 }", [1]),
    ("{ from = 10, to = 1000, points = 5, scale = \"log\" }", [10, 32, 100, 316, 1000]),
    ("[3, 1, 2]", [3, 1, 2]),
    ("[\"0x10\"]", [16]),
])  # fmt: skip
def test_numbers_of_an_axis(folder, text, expected):
    assert values(spec_of(folder, f"[grid]\ndefsym.ROUNDS = {text}"), "defsym.ROUNDS") == expected


def test_steps_are_decimal(folder):
    spec = spec_of(folder, '[grid]\nwatchdog_thresh = { from = 0.1, to = 0.5, step = 0.1 }')
    assert values(spec, "watchdog_thresh") == [0.1, 0.2, 0.3, 0.4, 0.5]


def test_a_zip_goes_place_by_place_and_is_combined_with_the_rest(folder):
    spec = spec_of(folder, '[zip]\nvpmu = ["bare", "none"]\nram = [2, 4]\n[grid]\ndefsym.ROUNDS = [1, 2]')
    names = ("vpmu", "ram", "defsym.ROUNDS")
    found = [tuple(point.parameters[c] for c in names) for point in spec.points()]
    assert found == [("bare", 2, 1), ("none", 4, 1), ("bare", 2, 2), ("none", 4, 2)]


RANDOM = """
[random]
points = 50
seed = 7
defsym.ROUNDS = { low = 1, high = 1000 }
ram = { low = 2, high = 64, distribution = "log" }
watchdog_thresh = { low = 0.5, high = 2.0 }
vpmu = ["bare", "none"]
"""


def test_a_random_design_is_the_same_for_the_same_seed(folder):
    one, same = spec_of(folder, RANDOM), spec_of(folder, RANDOM)
    assert [p.id for p in one.points()] == [p.id for p in same.points()]
    other = spec_of(folder, RANDOM.replace("seed = 7", "seed = 8"))
    assert not {p.id for p in one.points()} & {p.id for p in other.points()}
    assert len({p.id for p in one.points()}) == len(one) == 50
    # By the formula: what was drawn yesterday is drawn tomorrow.
    assert [p.parameters["defsym.ROUNDS"] for p in one.points()][:4] == [833, 805, 439, 851]
    for point in one.points():
        assert 1 <= point.parameters["defsym.ROUNDS"] <= 1000
        assert 2 <= point.parameters["ram"] <= 64
        assert 0.5 <= point.parameters["watchdog_thresh"] <= 2.0
        assert point.parameters["vpmu"] in ("bare", "none")
    small = sum(point.parameters["ram"] <= 11 for point in one.points())
    assert 15 <= small <= 35, "half of the numbers below the geometric mean"


def test_draws_of_a_key_do_not_depend_on_another_key(folder):
    one = spec_of(folder, "[random]\npoints = 9\ndefsym.ROUNDS = { low = 1, high = 100000 }")
    two = spec_of(folder, "[random]\npoints = 9\nram = { low = 2, high = 9 }\n"
                          "defsym.ROUNDS = { low = 1, high = 100000 }")  # fmt: skip
    assert values(one, "defsym.ROUNDS") == values(two, "defsym.ROUNDS")


def test_every_point_of_a_small_range_can_be_drawn(folder):
    spec = spec_of(folder, "[random]\npoints = 20\ndefsym.ROUNDS = { low = 1, high = 20 }")
    assert sorted(values(spec, "defsym.ROUNDS")) == list(range(1, 21))


def test_plain_data_is_a_spec_too():
    spec = read_spec({"program": str(ROOT / "guests/lessons/01_count.s"), "grid": {"vpmu": ["bare"]}})
    assert [point.parameters for point in spec.points()] == [{"vpmu": "bare"}]


def test_an_empty_word_is_as_if_nothing_were_said(folder):
    spec = spec_of(folder, '[options]\nvpmu = "emulated"\n[grid]\nfilter = ["", "deny.toml"]\n'
                           'host-event = [[], ["instructions:D"]]')  # fmt: skip
    assert values(spec, "filter") == [None, "deny.toml"]
    assert values(spec, "host-event") == ["", "instructions:D"]
    asked = [point.asked["filter"] for point in spec.points()]
    assert asked == [None, None, *[str(folder / "deny.toml")] * 2]
    tasks = [Lab(spec).task(point) for point in spec.points()]
    assert [task.options.filter is not None for task in tasks] == [False, False, True, True]


def test_a_guest_of_the_package_goes_by_its_name(folder):
    for name in ("06_sampling", "06_sampling.s", "lessons/06_sampling.s"):
        spec = spec_of(folder, '[grid]\nvpmu = ["bare"]', f'program = "{name}"')
        assert spec.program == guests_dir() / "lessons" / "06_sampling.s"


def test_measures_are_a_list_or_have_names(folder):
    text = '{}\n[grid]\nvpmu = ["bare"]'
    listed = spec_of(folder, text.format('measure = ["cycles", "mem64(total) + 1"]'))
    assert [(m.name, m.text) for m in listed.measures] == [
        ("cycles", "cycles"), ("mem64(total) + 1", "mem64(total) + 1"),
    ]  # fmt: skip
    named = spec_of(folder, '[measure]\nhalf = "cycles / 2"\n[grid]\nvpmu = ["bare"]')
    assert [(m.name, m.text) for m in named.measures] == [("half", "cycles / 2")]
    assert spec_of(folder, '[grid]\nvpmu = ["bare"]').measures == ()


@pytest.mark.parametrize("path", sorted((guests_dir() / "sweeps").glob("*.toml")), ids=lambda p: p.name)
def test_a_sweep_that_is_shipped_can_be_begun(path):
    spec = read_spec(path.name)
    assert len(spec) <= 200
    assert spec.measures
    Lab(spec).check()
    assert read_spec(path.stem).facts == spec.facts
    first = path.read_text().splitlines()[0]
    assert first.startswith("# ")
    assert "?" in path.read_text().partition("\n\n")[0], "a recipe begins with its question"


# --- what is wrong ----------------------------------------------------------------------------------------

GRID = '[grid]\nvpmu = ["bare"]\n'
ROUNDS = "[grid]\ndefsym.ROUNDS = "
DRAWN = "[random]\npoints = 3\n"
LARGE = {"ram": 61, "max_insns": 401, "max_cycles": 51}
WRONG = [
    ("", "has no axis, and so nothing to sweep"),
    ("[grid]", "has no axis"),
    ("grid = 3", "grid: 3 is not a table"),
    ("[gird]\nvpmu = []", r"gird: unknown key; did you mean grid\?"),
    ("cpu = 'spr'\n" + GRID, "cpu: options of a run stand in tables"),
    ("[grid]\nvpmu = []", r"\[grid\] vpmu: has no values, so there would be no points"),
    ("[grid]\nvpmu = 'bare'", r"\[grid\] vpmu: 'bare' is no axis"),
    ("[grid]\nvpmu = {}", "an empty table is no axis"),
    ("[grid]\nvmpu = ['bare']", r"\[grid\] vmpu: no such option; did you mean vpmu\?"),
    ("[grid]\nvpmu = ['bear']", r"\[grid\] vpmu: no mode is named 'bear'; did you mean bare\?"),
    ("[grid]\nvpmu = ['bare', 'bare']", "'bare' is there twice"),
    ("[grid]\nvpmu.mode = ['bare']", "--vpmu has no entries, such as 'mode'"),
    ("[grid]\nset.pmu.gq = [1]", r"unknown key; did you mean pmu.gp\?"),
    ("[grid]\nset.pmu.gp = [99]", "99 is out of range"),
    ("[grid]\nset.pmu.gp = ['many']", r"is not NAME=NUMBER"),
    ("[grid]\nram = [2.5]", r"\[grid\] ram: 2.5 is not a valid integer"),
    ("[grid]\nram = [1]", "1 is not in the range"),
    ("[grid]\nram = [true]", "True is not a valid integer"),
    ("[grid]\nram = [nan]", "nan is not a number"),
    ("[grid]\napicv = ['yes']", "'yes' is neither true nor false"),
    ("[grid]\ncpu = ['sprr']", r"did you mean spr\?"),
    (ROUNDS + "{ from = 1 }", "to is missing"),
    (ROUNDS + "{ to = 1 }", "from is missing"),
    (ROUNDS + "{ from = 1, to = 9 }", "takes either step or points"),
    (ROUNDS + "{ from = 1, to = 9, step = 1, points = 3 }", "takes either step or points"),
    (ROUNDS + "{ from = 1, to = 9, stepp = 1 }", r"unknown key; did you mean step\?"),
    (ROUNDS + "{ from = 1, to = 9, step = 0 }", "0 does not lead from 1 to 9"),
    (ROUNDS + "{ from = 1, to = 9, step = -1 }", "-1 does not lead from 1 to 9"),
    (ROUNDS + "{ from = 1, to = 1e30, step = 1 }", "is too large"),
    (ROUNDS + "{ from = 1, to = 10000000000, step = 1 }", "makes more than 1,000,000 points"),
    (ROUNDS + "{ from = 1, to = 9, points = 0 }", "0 is no number of points"),
    (ROUNDS + "{ from = 1, to = 9, points = 99 }", "there are no 99 whole numbers from 1 to 9"),
    (ROUNDS + "{ from = 0, to = 9, points = 3, scale = 'log' }", "no logarithm goes from 0"),
    (ROUNDS + "{ from = 1, to = 9, points = 3, scale = 'lin' }", "'lin' is no scale"),
    (ROUNDS + "{ from = 1, to = 9, step = 3, scale = 'log' }", "goes with points"),
    (ROUNDS + "{ from = 'a', to = 9, step = 3 }", "'a' is not a number"),
    ("[zip]\nvpmu = ['bare', 'none']\nram = [2]", "go together one by one, but vpmu has 2, ram has 1"),
    ("[random]\npoints = 3", r"\[random\]: draws nothing"),
    ("[random]\nram = { low = 2, high = 9 }", "points: is missing"),
    ("[random]\npoints = 0\nram = { low = 2, high = 9 }", "0 is no number of points"),
    (DRAWN + "seed = 'x'\nram = { low = 2, high = 9 }", "'x' is not a whole number"),
    ("[random]\npoints = 30\nram = { low = 2, high = 9 }", "only 8 different ones exist"),
    (DRAWN + "ram = { low = 9, high = 2 }", "low is 9, and high is 2"),
    (DRAWN + "ram = { low = 2 }", "draws nothing"),
    (DRAWN + "ram = 4", "4 draws nothing"),
    (DRAWN + "ram = { low = 0, high = 9 }", "0 is not in the range"),
    (DRAWN + "ram = { low = 2, high = 9, distribution = 'unform' }", r"did you mean uniform\?"),
    (DRAWN + "defsym.ROUNDS = { low = 0, high = 9, distribution = 'log' }", "no logarithm begins"),
    (DRAWN + "ram = { low = 2, high = 9, step = 1 }", "unknown key"),
    ("[options]\nram = 4\n[grid]\nram = [2, 8]", "is asked twice"),
    ("[grid]\nmax-insns = [2]\n[zip]\nmax_insns = [8]", "is asked twice, as max-insns too"),
    ("[options]\nram = 'big'\n" + GRID, r"\[options\] ram: 'big' is not a valid integer"),
    ("[options]\nsave = 'x.vm'\n" + GRID, "save: is not a sweep's to say"),
    ("[options]\ntrace = 'x.txt'\n" + GRID, "trace: is not a sweep's to say"),
    ("[options]\nhorizon = 1\n" + GRID, "horizon: is not a sweep's to say"),
    ("[options]\nfilter = 'no.toml'\n" + GRID, "no.toml: no such file in"),
    ("measure = ['cycels']\n" + GRID, r"measure cycels: nothing is called 'cycels'"),
    ("measure = ['exits.MSR_WRTE']\n" + GRID, r"did you mean MSR_WRITE\?"),
    ("measure = ['kvm.entres']\n" + GRID, r"did you mean entries\?"),
    ("measure = ['cycles_by.gest']\n" + GRID, r"did you mean guest\?"),
    ("measure = ['mem64(totl)']\n" + GRID, r"did you mean total\?"),
    ("measure = ['1 + 2']\n" + GRID, "does not depend on the run"),
    ("measure = ['cycles +']\n" + GRID, "cannot read this"),
    ("measure = ['cycles', 'cycles']\n" + GRID, "is there already"),
    ("measure = ['wall_s']\n" + GRID, "rows are the same on every one"),
    ("measure = []\n" + GRID, "is empty; leave it out to record everything"),
    ("measure = 3\n" + GRID, "3 is neither a list nor a table"),
    ("measure = [3]\n" + GRID, "3 is not an expression"),
    ("[measure]\nstatus = 'cycles'\n" + GRID, "is a column of every sweep"),
    ("[measure]\nvpmu = 'cycles'\n" + GRID, "is there already"),
    ("[grid\n", "not TOML"),
    ("[grid]" + "".join(f"\n{key} = {{ from = 2, to = {to}, step = 1 }}" for key, to in LARGE.items()),
     "has 1,200,000 points"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), WRONG, ids=[f"{n}" for n in range(len(WRONG))])
def test_what_is_wrong_is_told_in_one_sentence(folder, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        spec_of(folder, text)
    assert str(caught.value).startswith(str(folder / "spec.toml")) or "spec.toml" in str(caught.value)
    assert "Error" not in str(caught.value)


@pytest.mark.parametrize(("program", "message"), [
    ("", "program: is missing"),
    ("program = 3", "program: 3 is not a file"),
    ("program = ''", "program: '' is not a file"),
    ("program = 'gest.s'", "program: gest.s is no file beside it, and no guest"),
    ("program = '06_samplin.s'", r"did you mean 06_sampling.s\?"),
    ("program = '.'", "is a folder"),
])  # fmt: skip
def test_a_program_that_is_none(folder, program, message):
    with pytest.raises(VpmuError, match=message):
        spec_of(folder, GRID, program)


@pytest.mark.parametrize("name", ["no.toml", "."])
def test_a_spec_that_cannot_be_read(folder, name):
    with pytest.raises(ConfigError, match="cannot read"):
        read_spec(folder / name)


def test_a_program_with_errors_is_told_before_anything_runs(folder):
    (folder / "guest.s").write_text("_start: mvo eax, 1\n")
    with pytest.raises(VpmuError, match="mvo"):
        spec_of(folder, GRID)


@pytest.mark.parametrize(("text", "message"), [
    ("[options]\nall-passthrough = true\n[grid]\nvpmu = ['bare', 'none']", "no point can be run; the"),
    ("[options]\nfilter = 'deny.toml'\n[grid]\nvpmu = ['bare', 'none']", "no point can be run"),
    ("[options]\nfilter = 'bad.toml'\n[grid]\nvpmu = ['emulated']", "no event is named 'nothing'"),
    ("[grid]\ndefsym.RUONDS = [1, 2]", "RUONDS"),
])  # fmt: skip
def test_a_sweep_of_which_every_point_contradicts_itself_is_refused(folder, text, message):
    with pytest.raises(VpmuError, match=message):
        Lab(spec_of(folder, text)).check()


def test_a_sweep_of_which_some_points_contradict_themselves_is_not(folder):
    Lab(spec_of(folder, "[options]\nguest.gp = 1\n[grid]\nvpmu = ['bare', 'emulated']")).check()
