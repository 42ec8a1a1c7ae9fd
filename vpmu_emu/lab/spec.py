"""What a sweep is asked: SPEC.toml to points, all of it looked at before the first one runs.

    program = "sampling.s"                  # beside the spec, or a guest that comes with the package
    measure = ["cycles", "exits.MSR_WRITE"] # or a table: name = expression

    [options]                               # the same in every run
    cpu = "spr"

    [grid]                                  # every combination
    vpmu = ["emulated", "passthrough"]
    set.pmu.gp = { from = 2, to = 8, step = 2 }

    [zip]                                   # these go together, place by place
    [random]                                # so many draws, the same for the same seed
    points = 200
    seed = 1
    defsym.PERIOD = { low = 1_000, high = 100_000, distribution = "log" }

A key is an option of a run, or one entry of an option that has several: `set.pmu.gp`, `defsym.PERIOD`.
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import product
from pathlib import Path
from typing import Any

import attrs

from vpmu_emu.checks.language import CheckError, has_observed, read_value
from vpmu_emu.data import guests_dir
from vpmu_emu.errors import ConfigError, VpmuError
from vpmu_emu.load import load
from vpmu_emu.numerals import shown
from vpmu_emu.options import OPTIONS, Option, Options, did_you_mean
from vpmu_emu.setup.keys import only, parsed, text_of

TABLES = ("program", "measure", "options", "grid", "zip", "random")
AXES = ("grid", "zip", "random")
STEPS = ("from", "to", "step", "points", "scale")
SCALES = ("linear", "log")
DRAWS = ("low", "high", "distribution")
DISTRIBUTIONS = ("uniform", "log")
OWN = ("point", "status", "error")
"""Columns of every sweep, beside its parameters and what it measures."""
FILES = ("filter", "msr_filter", "host", "restore")
MOST_POINTS = 1_000_000
DIGITS = 12  # that count of a number which was computed and not written
TRIES = 100  # draws for a point that is not there yet
NO_FILES = "a sweep writes rows, and its runs no files"
NOT_ASKED = {
    "save": NO_FILES, "at": NO_FILES, "trace": NO_FILES,
    "horizon": "results do not depend on it", "horizon_seed": "results do not depend on it",
}  # fmt: skip


@attrs.frozen
class Key:
    """One thing that a run can be asked.

    Attributes:
        text: as the spec writes it; the column of the results.
        field: of Options.
        part: which entry of an option that has several, "" for the option as a whole.
    """

    text: str
    field: str
    part: str = ""

    @property
    def name(self) -> str:
        """The same, however it was written."""
        return f"{self.field}.{self.part}" if self.part else self.field

    @property
    def option(self) -> Option:
        """What is known of the option."""
        return OPTIONS[self.field]


@attrs.frozen
class Axis:
    """Keys that go together, and the values that they take, in order."""

    keys: tuple[Key, ...]
    rows: tuple[tuple[Any, ...], ...]


@attrs.frozen
class Measure:
    """A column that is measured: an expression of docs/expectations.md."""

    name: str
    text: str


@attrs.frozen
class Point:
    """One run.

    Attributes:
        id: 16 hex digits, the same for the same options however they are written.
        parameters: what differs from point to point, by column.
        asked: fields of Options.
    """

    id: str
    parameters: Mapping[str, Any]
    asked: Mapping[str, Any]


@attrs.frozen
class Spec:
    """A sweep that can be begun.

    Attributes:
        name: of the file, for messages.
        folder: what files are relative to.
        program: the file of the guest, None if one that was saved goes on.
        fixed: what is the same in every run.
        axes: what is not; the points are all combinations of their rows.
        measures: what is recorded; empty: every number and word of the result.
        facts: what the results depend on beside the package, as plain data.
    """

    name: str
    folder: Path
    program: Path | None
    fixed: tuple[tuple[Key, Any], ...]
    axes: tuple[Axis, ...]
    measures: tuple[Measure, ...]
    facts: Mapping[str, Any]

    def __len__(self) -> int:
        return math.prod(len(axis.rows) for axis in self.axes)

    @property
    def columns(self) -> tuple[str, ...]:
        """The parameters, in the order of the spec."""
        return tuple(key.text for axis in self.axes for key in axis.keys)

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes that its points have."""
        given = [v for k, v in self.fixed if k.field == "vpmu"] or [OPTIONS["vpmu"].usual]
        for axis in self.axes:
            for place, key in enumerate(axis.keys):
                if key.field == "vpmu":
                    given = [row[place] for row in axis.rows]
        return tuple(dict.fromkeys(given))

    def points(self) -> Iterator[Point]:
        """All points, in the order of the spec: the last axis moves fastest."""
        keys = [key for axis in self.axes for key in axis.keys]
        for rows in product(*(axis.rows for axis in self.axes)):
            values = [value for row in rows for value in row]
            yield self._point(list(zip(keys, values, strict=True)))

    def _point(self, swept: list[tuple[Key, Any]]) -> Point:
        asked: dict[str, Any] = {}
        named: dict[str, Any] = {}
        for key, value in [*self.fixed, *swept]:
            named[key.name] = _plain(value)
            if key.part:
                asked[key.field] = {**asked.get(key.field, {}), key.part: value}
            elif isinstance(value, Mapping):
                asked[key.field] = {**asked.get(key.field, {}), **value}
            else:
                asked[key.field] = self._found(key, value)
        text = json.dumps(named, sort_keys=True, separators=(",", ":"))
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8)
        return Point(digest.hexdigest(), {key.text: _cell(value) for key, value in swept}, asked)

    def _found(self, key: Key, value: Any) -> Any:
        # A file is named from where the spec lies, and a word without a file there is left as it is.
        if key.field not in FILES or value is None:
            return value
        if isinstance(value, tuple):
            return tuple(self._found(key, each) for each in value)
        return str(self.folder / value)

    def options(self, point: Point) -> Options:
        """The options of a point.

        Raises:
            ConfigError: they contradict each other.
        """
        options = Options.of(point.asked)
        options.check()
        return options


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else list(value) if isinstance(value, tuple) else value


def _cell(value: Any) -> Any:
    """A value as a column has it: a number, a word, true or false."""
    if isinstance(value, Mapping):
        return " ".join(f"{key}={each}" for key, each in value.items())
    return " ".join(map(str, value)) if isinstance(value, tuple) else value


# --- reading ----------------------------------------------------------------------------------------------


def read_spec(given: str | Path | Mapping[str, Any]) -> Spec:
    """The sweep that a file of TOML asks for, or the same as plain data; nothing has run.

    Raises:
        ConfigError: whatever is wrong with it, with its place; LoadError, AssemblyError: with its program.
    """
    if isinstance(given, Mapping):
        name, folder, table = "spec", Path.cwd(), dict(given)
    else:
        path = _shipped(Path(given))
        name, folder, table = str(given), path.parent.absolute(), parsed(text_of(path, "spec"), str(given))
    for key in table:
        if key not in TABLES and _key_or_none(str(key).partition(".")[0]) is not None:
            raise ConfigError(f"{name}: {key}", "options of a run stand in tables", "[options] [grid] …")
    only(table, TABLES, name)
    fixed = [(key, _value(key, leaf, place)) for place, key, leaf in _leaves(table, "options", name, ())]
    axes = [*_grid(table, name), *_zip(table, name), *_random(table, name)]
    _once([key for key, _ in fixed], [key for axis in axes for key in axis.keys], name)
    size = math.prod(len(axis.rows) for axis in axes)
    if size > MOST_POINTS:
        raise ConfigError(name, f"has {size:,} points", f"at most {MOST_POINTS:,}")
    if not axes:
        raise ConfigError(name, "has no axis, and so nothing to sweep", "[grid] [zip] [random]")
    program = _program(table, folder, name, any(key.field == "restore" for key, _ in fixed))
    spec = Spec(name, folder, program, tuple(fixed), tuple(axes), (), {})
    _files_are_there(spec, name)
    _all_differ(spec, name)
    loaded = load(program, next(spec.points()).asked.get("defsym")) if program is not None else None
    spec = attrs.evolve(spec, measures=_measures(table, name, spec, loaded))
    return attrs.evolve(spec, facts=_facts(table, spec, loaded))


def _shipped(path: Path) -> Path:
    """The file, or the sweep of that name that comes with the package."""
    known = {each.name: each for each in (guests_dir() / "sweeps").glob("*.toml")}
    if path.exists() or str(path) != path.name:
        return path
    return known.get(path.name) or known.get(f"{path.name}.toml") or path


def _leaves(
    table: Mapping[str, Any], part: str, name: str, words: Sequence[str]
) -> list[tuple[str, Key, Any]]:
    """(place, key, what it is given) of a table of keys, which may be nested as dotted keys are.

    Where there are `words`, a table of plain values is what its key is given, in those words.
    """
    found: list[tuple[str, Key, Any]] = []

    def walk(value: Any, path: str) -> None:
        place = f"{name}: [{part}] {path}"
        described = path and words and isinstance(value, Mapping) and value and not any(
            isinstance(each, list | Mapping) for each in value.values()
        )  # fmt: skip
        if described:
            only(dict(value), words, place)
        if path and (described or not isinstance(value, Mapping) or not value):
            found.append((place, _key(path, place), value))
            return
        for key, each in value.items():
            walk(each, f"{path}.{key}" if path else key)

    whole = table.get(part, {})
    if not isinstance(whole, Mapping):
        raise ConfigError(f"{name}: {part}", f"{shown(whole)} is not a table", f"[{part}]")
    walk(whole, "")
    return found


def _key_or_none(text: str) -> Key | None:
    names = {option.name: field for field, option in OPTIONS.items()}
    names |= {field: field for field in OPTIONS} | {field.replace("_", "-"): field for field in OPTIONS}
    names |= {option.name.replace("-", "_"): field for field, option in OPTIONS.items()}
    if text in names:
        return Key(text, names[text])
    head, _, part = text.partition(".")
    if part and head in names and _keyed(OPTIONS[names[head]]):
        return Key(text, names[head], part)
    return None


def _keyed(option: Option) -> bool:
    """Whether an option has entries with names of their own."""
    return isinstance(option.usual, Mapping)


def _key(text: str, place: str) -> Key:
    key = _key_or_none(text)
    if key is None:
        keyed = [option.name for option in OPTIONS.values() if _keyed(option)]
        names = [option.name for key, option in OPTIONS.items() if key not in NOT_ASKED]
        head, _, part = text.partition(".")
        hint = did_you_mean(head, [*names, *OPTIONS])
        if head in (*names, *OPTIONS):
            raise ConfigError(place, f"--{head} has no entries, such as {shown(part)}", " ".join(keyed))
        raise ConfigError(place, f"no such option{hint}", f"{' '.join(names)}; {'.… '.join(keyed)}.…")
    if key.field in NOT_ASKED:
        raise ConfigError(place, f"is not a sweep's to say: {NOT_ASKED[key.field]}")
    if key.option.not_of_a_user:
        raise ConfigError(place, f"is not a sweep's to say: {key.option.not_of_a_user}")
    return key


def _value(key: Key, given: Any, place: str) -> Any:
    """What an option holds for a value of the spec; it makes sense by itself.

    Raises:
        ConfigError: it has not the form, or nothing can have it.
    """
    option = key.option
    if given == "" and option.usual is None:
        return None  # as if it were not said: TOML has no word for that
    if isinstance(given, Mapping) and not _keyed(option):
        raise ConfigError(place, f"{shown(dict(given))} is not a value")
    if isinstance(given, float) and not math.isfinite(given):
        raise ConfigError(place, f"{given} is not a number")
    try:
        if key.part:
            value = option.takes(option, {key.part: given})
        else:
            value = option.takes(option, tuple(given) if isinstance(given, list) and option.many else given)
        if option.check is not None:
            option.check(option.name, value)
    except ConfigError as error:
        raise ConfigError(place, str(error).removeprefix(f"{option.name}: ")) from None
    return value[key.part] if key.part else value


def _once(fixed: Sequence[Key], swept: Sequence[Key], name: str) -> None:
    """Whether nothing is asked twice."""
    seen: dict[str, Key] = {}
    for key in [*fixed, *swept]:
        if key.name in seen:
            raise ConfigError(f"{name}: {key.text}", f"is asked twice, as {seen[key.name].text} too")
        seen[key.name] = key
        if key.text in OWN:
            raise ConfigError(f"{name}: {key.text}", "is a column of every sweep")
    wholes = {key.field: key for key in seen.values() if not key.part}
    for key in seen.values():
        if key.part and key.field in wholes and key in swept and wholes[key.field] in swept:
            raise ConfigError(f"{name}: {key.text}", f"is asked twice, as {wholes[key.field].text} too")


# --- axes -------------------------------------------------------------------------------------------------


def _grid(table: Mapping[str, Any], name: str) -> Iterator[Axis]:
    for place, key, given in _leaves(table, "grid", name, STEPS):
        yield Axis((key,), tuple((_value(key, each, place),) for each in _listed(given, place)))


def _zip(table: Mapping[str, Any], name: str) -> Iterator[Axis]:
    leaves = _leaves(table, "zip", name, STEPS)
    if not leaves:
        return
    columns = [[_value(key, each, p) for each in _listed(given, p, again=True)] for p, key, given in leaves]
    lengths = {key.text: len(column) for (_, key, _), column in zip(leaves, columns, strict=True)}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{text} has {length}" for text, length in lengths.items())
        raise ConfigError(f"{name}: [zip]", f"values go together one by one, but {told}")
    yield Axis(tuple(key for _, key, _ in leaves), tuple(zip(*columns, strict=True)))


def _listed(given: Any, place: str, *, again: bool = False) -> list[Any]:
    """The values of an axis, a list or numbers from here to there; `again`: one may be there twice."""
    if isinstance(given, Mapping) and given:
        return _stepped(given, place)
    if not isinstance(given, list):
        what = "[value, …] or { from = …, to = …, step = … }"
        raise ConfigError(place, f"{shown(given) if given != {} else 'an empty table'} is no axis", what)
    if not given:
        raise ConfigError(place, "has no values, so there would be no points")
    seen: set[str] = set()
    for value in given:
        if repr(value) in seen and not again:
            raise ConfigError(place, f"{shown(value)} is there twice")
        seen.add(repr(value))
    return given


def _stepped(given: Mapping[str, Any], place: str) -> list[Any]:
    for key in ("from", "to"):
        if key not in given:
            raise ConfigError(place, f"{key} is missing", "{ from = …, to = …, step = … }")
    low, high = (_real(given[key], f"{place}.{key}") for key in ("from", "to"))
    scale = given.get("scale", SCALES[0])
    if scale not in SCALES:
        raise ConfigError(f"{place}.scale", f"{shown(scale)} is no scale", " ".join(SCALES))
    if ("step" in given) == ("points" in given):
        raise ConfigError(place, "takes either step or points", "step = 10, or points = 5")
    whole = isinstance(low, int) and isinstance(high, int)
    if "points" in given:
        count = _count(given["points"], f"{place}.points")
        values = _spread(low, high, count, scale, whole, place)
        if len(set(values)) < count:
            raise ConfigError(f"{place}.points", f"there are no {count} whole numbers from {low} to {high}")
        return values
    if scale != SCALES[0]:
        raise ConfigError(f"{place}.scale", "goes with points, and not with step")
    step = _real(given["step"], f"{place}.step")
    if not step or (high - low) / step < 0:
        raise ConfigError(f"{place}.step", f"{step} does not lead from {low} to {high}")
    if (high - low) / step >= MOST_POINTS:
        raise ConfigError(f"{place}.step", f"{step} makes more than {MOST_POINTS:,} points")
    # In decimal: 0.1 + 0.2 is 0.3.
    first, last, by = (Decimal(str(number)) for number in (low, high, step))
    numbers = [first + by * n for n in range(int((last - first) / by) + 1)]
    return [int(n) if whole and isinstance(step, int) else float(n) for n in numbers]


def _spread(
    low: float, high: float, count: int, scale: str, whole: bool, place: str
) -> list[Any]:
    if scale == "log" and not (low > 0 and high > 0):
        raise ConfigError(f"{place}.scale", f"no logarithm goes from {low} to {high}", "numbers above 0")
    found: list[Any] = []
    for n in range(count):
        at = n / (count - 1) if count > 1 else 0.0
        value = low * (high / low) ** at if scale == "log" else low + (high - low) * at
        value = low if n == 0 else high if at == 1.0 else value
        found.append((low if n == 0 else high if at == 1.0 else round(value)) if whole else _rounded(value))
    return found


def _rounded(value: float) -> float:
    # The last digits of a logarithm differ from machine to machine.
    return float(f"{value:.{DIGITS}g}")


def _real(value: Any, place: str) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(place, f"{shown(value)} is not a number")
    if abs(value) >= 1 << 64:
        raise ConfigError(place, f"{shown(value)} is too large", "below 2**64")
    return value


def _count(value: Any, place: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_POINTS:
        raise ConfigError(place, f"{shown(value)} is no number of points", f"1 to {MOST_POINTS:,}")
    return value


# --- random designs ---------------------------------------------------------------------------------------


@attrs.frozen
class _Draw:
    """How the values of one key are drawn."""

    key: Key
    of: Callable[[float], Any]
    values: float  # how many there are


def _random(table: Mapping[str, Any], name: str) -> Iterator[Axis]:
    given = table.get("random", {})
    if not isinstance(given, Mapping):
        raise ConfigError(f"{name}: random", f"{shown(given)} is not a table", "[random]")
    own = {key: value for key, value in given.items() if key not in ("points", "seed")}
    leaves = _leaves({"random": own}, "random", name, DRAWS)
    if "random" not in table:
        return
    place = f"{name}: [random]"
    if not leaves:
        raise ConfigError(place, "draws nothing", "KEY = { low = …, high = … }")
    if "points" not in given:
        raise ConfigError(f"{place} points", "is missing: how many are drawn", "points = 200")
    count = _count(given["points"], f"{place} points")
    seed = given.get("seed", 1)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ConfigError(f"{place} seed", f"{shown(seed)} is not a whole number")
    draws = [_draw(key, leaf, p) for p, key, leaf in leaves]
    there = math.prod(draw.values for draw in draws)
    if there < count:
        raise ConfigError(f"{place} points", f"only {there:.0f} different ones exist", f"1 to {there:.0f}")
    # Each key has numbers of its own, so that another key beside it changes none of them.
    numbers = [random.Random(f"{seed} {draw.key.name}") for draw in draws]
    rows: dict[str, tuple[Any, ...]] = {}
    tries = 0
    while len(rows) < count:
        row = tuple(draw.of(each.random()) for draw, each in zip(draws, numbers, strict=True))
        before = len(rows)
        rows.setdefault(repr(row), row)
        tries = 0 if len(rows) > before else tries + 1
        if tries > TRIES * count:
            what = f"too few are likely to differ: {len(rows)} of {count} were found"
            raise ConfigError(f"{place} points", what, "fewer points, or a wider range")
    yield Axis(tuple(draw.key for draw in draws), tuple(rows.values()))


def _draw(key: Key, given: Any, place: str) -> _Draw:
    if isinstance(given, list):
        values = [_value(key, each, place) for each in _listed(given, place)]
        return _Draw(key, lambda at: values[int(at * len(values))], len(values))
    if not isinstance(given, Mapping) or not {"low", "high"} <= set(given):
        raise ConfigError(place, f"{shown(given)} draws nothing", "[value, …] or { low = …, high = … }")
    low, high = (_real(given[each], f"{place}.{each}") for each in ("low", "high"))
    how = given.get("distribution", DISTRIBUTIONS[0])
    if how not in DISTRIBUTIONS:
        hint = did_you_mean(how, DISTRIBUTIONS)
        raise ConfigError(f"{place}.distribution", f"{shown(how)} is none{hint}", " ".join(DISTRIBUTIONS))
    if not low < high:
        raise ConfigError(place, f"low is {low}, and high is {high}", "low < high")
    if how == "log" and low <= 0:
        raise ConfigError(f"{place}.low", f"no logarithm begins at {low}", "numbers above 0")
    for end in (low, high):
        _value(key, end, place)
    if isinstance(low, int) and isinstance(high, int):
        first, last, span = low, high, high - low + 1
        if how == "log":
            ratio = math.log((high + 1) / low)
            return _Draw(key, lambda at: min(last, int(first * math.exp(at * ratio))), span)
        # random() has 53 bits.
        return _Draw(key, lambda at: first + (int(at * (1 << 53)) * span >> 53), span)
    if how == "log":
        ratio = math.log(high / low)
        return _Draw(key, lambda at: _rounded(low * math.exp(at * ratio)), math.inf)
    return _Draw(key, lambda at: _rounded(low + at * (high - low)), math.inf)


# --- what it is about -------------------------------------------------------------------------------------


def _program(table: Mapping[str, Any], folder: Path, name: str, saved: bool) -> Path | None:
    given = table.get("program")
    if given is None and saved:
        return None
    if not isinstance(given, str | Path) or not str(given):
        problem = "is missing" if given is None else f"{shown(given)} is not a file"
        raise ConfigError(f"{name}: program", problem, 'program = "guest.s"')
    if (folder / given).exists():
        return folder / given
    shipped = {path.relative_to(guests_dir()).as_posix(): path for path in guests_dir().rglob("*.s")}
    found = [path for text, path in shipped.items() if f"/{text}".endswith((f"/{given}", f"/{given}.s"))]
    if len(found) == 1:
        return found[0]
    if found:
        which = " ".join(path.relative_to(guests_dir()).as_posix() for path in found)
        raise ConfigError(f"{name}: program", f"{len(found)} guests are called {given}", which)
    near = did_you_mean(Path(given).name, [Path(text).name for text in shipped])
    raise ConfigError(f"{name}: program", f"{given} is no file beside it, and no guest{near}")


def _files_are_there(spec: Spec, name: str) -> None:
    given = [*spec.fixed, *((k, row[n]) for a in spec.axes for n, k in enumerate(a.keys) for row in a.rows)]
    for key, value in given:
        if key.field in FILES and value is not None:
            for each in value if isinstance(value, tuple) else (value,):
                if not (spec.folder / each).is_file():
                    raise ConfigError(f"{name}: {key.text}", f"{each}: no such file in {spec.folder}")


def _all_differ(spec: Spec, name: str) -> None:
    seen: set[str] = set()
    for point in spec.points():
        if point.id in seen:
            told = ", ".join(f"{key} {value}" for key, value in point.parameters.items())
            raise ConfigError(name, f"two points are the same: {told}")
        seen.add(point.id)


def _measures(
    table: Mapping[str, Any], name: str, spec: Spec, program: Any
) -> tuple[Measure, ...]:
    if "measure" not in table:
        return ()
    given = table["measure"]
    place = f"{name}: measure"
    if isinstance(given, list):
        pairs = [(text, text) for text in given]
    elif isinstance(given, Mapping):
        pairs = list(given.items())
    else:
        raise ConfigError(place, f"{shown(given)} is neither a list nor a table", '["cycles"]')
    if not pairs:
        raise ConfigError(place, "is empty; leave it out to record everything")
    found: dict[str, Measure] = {}
    for column, text in pairs:
        if not isinstance(text, str) or not text.strip():
            raise ConfigError(f"{place} {column}", f"{shown(text)} is not an expression", '"cycles"')
        if column in OWN or column in spec.columns or column in found:
            what = "a column of every sweep" if column in OWN else "there already"
            raise ConfigError(f"{place} {column}", f"is {what}; give it another name")
        if text.strip() in ("wall", "wall_s", "jit_s"):
            raise ConfigError(f"{place} {column}", "is of the machine: rows are the same on every one")
        try:
            tree = read_value(text, program or _Nothing())
        except CheckError as error:
            raise ConfigError(f"{place} {column}", str(error).partition(": ")[2]) from None
        if not has_observed(tree) and not any(isinstance(each, ast.Name) for each in ast.walk(tree)):
            raise ConfigError(f"{place} {column}", f"{text} does not depend on the run")
        found[column] = Measure(column, text)
    return tuple(found.values())


class _Nothing:
    """The symbols of a guest that was saved, whose program is in the file."""

    symbols: Mapping[str, int] = {}

    def insns(self, a: int | str, b: int | str) -> int:
        """As a program's."""
        raise VpmuError(f"there is no program that has {a} and {b}")


def _facts(table: Mapping[str, Any], spec: Spec, program: Any) -> dict[str, Any]:
    """What the rows depend on, with the contents of files."""
    files = [spec.folder / each for key, value in _given(spec) if key.field in FILES and value is not None
             for each in (value if isinstance(value, tuple) else (value,))]  # fmt: skip
    facts = {part: json.loads(json.dumps(table.get(part, {}), default=str)) for part in ("options", *AXES)}
    return {
        "program": f"{spec.program.name if spec.program else 'saved'} {_program_digest(program)}",
        "measure": {measure.name: measure.text for measure in spec.measures} or "all",
        **facts,
        "files": {path.name: _digest(path.read_bytes()) for path in sorted(set(files))},
    }


def _given(spec: Spec) -> list[tuple[Key, Any]]:
    axes = ((key, row[n]) for axis in spec.axes for n, key in enumerate(axis.keys) for row in axis.rows)
    return [*spec.fixed, *axes]


def _program_digest(program: Any) -> str:
    if program is None:
        return ""
    parts = [line for lines in program.source.values() for line in lines]
    image = b"".join(bytes(segment.data) for segment in program.segments)
    return _digest("\n".join(parts).encode("utf-8", "surrogatepass") + image)


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()
