"""The rows of a sweep on the disk: whatever ends the process, each one that was told to be there is.

A row that comes is a line of a journal, FILE.journal, with its checksum; when the sweep ends, in whatever
way, rows go to FILE, Parquet, sorted by point, and the journal is removed. The journal is locked while
somebody writes, so it is nobody else's. Both begin with what the rows are of: the package, the record and
the spec; what says otherwise is refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from vpmu_emu.errors import ConfigError, VpmuError
from vpmu_emu.numerals import shown
from vpmu_emu.output import check_output, write_output

FORMAT = 1
KEY = b"vpmu_emu"  # of the metadata of the Parquet file
SUFFIX = ".parquet"
NAME = "points"  # of the file, where the user names a folder
INT64, UINT64 = (-(1 << 63), (1 << 63) - 1), (0, (1 << 64) - 1)

Row = dict[str, Any]


def check_pyarrow() -> None:
    """Raises VpmuError if Parquet cannot be written."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise VpmuError(
            "a sweep writes Parquet, and pyarrow is not installed: pip install 'vpmu-emu[sweep]'"
        ) from None


def place_of(out: str | Path) -> Path:
    """The file of results that a user means by a file or a folder, which is made."""
    path = Path(out)
    try:
        if path.suffix == SUFFIX and not path.is_dir():
            check_output(str(path))
            return path
        if path.is_file():
            raise ConfigError("out", f"{path} is a file", f"a name that ends with {SUFFIX}, or a folder")
        path.mkdir(exist_ok=True)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError("out", f"cannot write {shown(str(path))}: {why}") from None
    return path / f"{NAME}{SUFFIX}"


@attrs.frozen
class Head:
    """What rows are of.

    Attributes:
        version: of the package.
        code: hash of its sources and tables.
        record: hash of the record's dtype.
        spec: what was asked, as plain data.
        columns: the parameters, in order.
        measures: what is measured, in order; None: all that there is, by name.
    """

    version: str
    code: str
    record: str
    spec: Mapping[str, Any]
    columns: Sequence[str]
    measures: Sequence[str] | None

    def to_json(self) -> str:
        """As text, in one line."""
        return json.dumps({"format": FORMAT, **attrs.asdict(self)}, sort_keys=True)

    @property
    def package(self) -> str:
        """The package in words."""
        return f"vpmu_emu {self.version} (sources {self.code[:8]}, record {self.record[:8]})"


def _head_of(text: str | bytes, name: str) -> Head:
    try:
        given = json.loads(text)
        number = given.pop("format")
        if number != FORMAT:
            raise ConfigError(name, f"has format {shown(number)}, this version reads {FORMAT}")
        return Head(**given)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ConfigError(name, "is no result of a sweep") from None


def check_same(found: Head, own: Head, name: str) -> None:
    """Raises ConfigError, with both, if rows are of something else."""
    if found.package != own.package:
        what = f"is of {found.package}, this is {own.package}"
        raise ConfigError(name, what, "another --out, or that version")
    for key in sorted({*found.spec, *own.spec}):
        before, now = found.spec.get(key), own.spec.get(key)
        if before != now:
            inner = _first_difference(before, now)
            what = f"is of another sweep: {key}{inner[0]} was {shown(inner[1])}, and is {shown(inner[2])}"
            raise ConfigError(name, what, "another --out, or that spec")


def _first_difference(before: Any, now: Any) -> tuple[str, Any, Any]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in (*before, *now):
            if before.get(key) != now.get(key):
                path, old, new = _first_difference(before.get(key), now.get(key))
                return f" {key}{path}", old, new
    return "", before, now


class Results:
    """The rows of one sweep, with the right to write; a context, at whose end they are in the file.

    Attributes:
        rows: by point.

    Raises:
        ConfigError: somebody else writes there, what is there is of something else or damaged, or it
            cannot be written; nothing has changed then.
    """

    def __init__(self, path: Path, head: Head) -> None:
        self.path, self.head = path, head
        self.journal = path.with_name(path.name + ".journal")
        self._file = _locked(self.journal)
        try:
            self.rows = {row["point"]: row for row in _in_file(path, head)}
            data = _whole(self._file)
            rows, self._end = _in_journal(data, str(self.journal), head)
            self.rows |= {row["point"]: row for row in rows}
            os.ftruncate(self._file, self._end)  # half a line, if the process was killed as it wrote
            if self._end == 0:
                self._append(head.to_json())
        except BaseException:
            self._leave()
            raise

    def __enter__(self) -> Results:
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        try:
            if self.rows:
                write_output(self.path, packed(self.rows.values(), self.head))
            os.ftruncate(self._file, 0)  # in the file, or never a row
        except VpmuError as error:
            if failed is None:
                raise VpmuError(f"{error}{self._kept()}") from None
        finally:
            self._leave()

    def _kept(self) -> str:
        there = len(self.rows)
        return f"; {there:,} points are kept, and the same command goes on" if there else ""

    def add(self, row: Row) -> None:
        """Keep a row: it is on the disk when this comes back.

        Raises:
            VpmuError: it cannot be written; those before it are kept.
        """
        before = self.rows.get(row["point"])
        # Before it is written: Ctrl-C may come at any time, and what is in the journal is in the file then.
        self.rows[row["point"]] = row
        try:
            self._append(json.dumps(row))
        except VpmuError as error:
            if before is None:
                del self.rows[row["point"]]
            raise VpmuError(f"{error}{self._kept()}") from None

    def _append(self, text: str) -> None:
        line = f"{zlib.crc32(text.encode()):08x} {text}\n".encode()
        try:
            if os.write(self._file, line) < len(line):
                raise OSError(28, "No space left on device")
            os.fsync(self._file)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._end)
            raise VpmuError(f"cannot write {self.journal}: {error.strerror}") from None
        self._end += len(line)

    def _leave(self) -> None:
        if os.fstat(self._file).st_size == 0:
            self.journal.unlink(missing_ok=True)
        os.close(self._file)


def _locked(path: Path) -> int:
    """The journal, which nobody else has."""
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise ConfigError("out", f"cannot write {path}: {error.strerror}") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.fstat(file).st_ino == path.stat().st_ino:
                return file
        except BlockingIOError:
            os.close(file)
            raise ConfigError("out", f"another sweep is writing to {path.with_suffix('')}") from None
        except OSError as error:
            os.close(file)
            raise ConfigError("out", f"cannot lock {path}: {error.strerror}") from None
        os.close(file)  # the other one has just ended


def _whole(file: int) -> bytes:
    os.lseek(file, 0, os.SEEK_SET)
    with os.fdopen(os.dup(file), "rb") as opened:
        return opened.read()


def _in_journal(data: bytes, name: str, head: Head | None) -> tuple[list[Row], int]:
    """The rows of a journal, and how much of it is whole."""
    rows: list[Row] = []
    end = 0
    for number, line in enumerate(data.splitlines(keepends=True)):
        text = line[9:-1]
        if not line.endswith(b"\n") or line[:9] != f"{zlib.crc32(text):08x} ".encode():
            if end + len(line) < len(data):
                raise ConfigError(name, f"is damaged: the checksum of line {number + 1} is wrong")
            break
        if number:
            rows.append(json.loads(text))
        elif head is not None:
            check_same(_head_of(text, name), head, name)
        end += len(line)
    return rows, end


def _in_file(path: Path, head: Head | None) -> list[Row]:
    return read_table(path, head)[1] if path.exists() else []


# --- Parquet ----------------------------------------------------------------------------------------------


def read_table(path: Path, own: Head | None = None) -> tuple[Head, list[Row]]:
    """What a file of results is of, and its rows.

    Raises:
        ConfigError: it is none, or not of `own`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(str(path))
    except (OSError, pa.ArrowException) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(str(path), f"cannot be read: {why}") from None
    head = _head_of((table.schema.metadata or {}).get(KEY, b""), str(path))
    if own is not None:
        check_same(head, own, str(path))
    return head, table.to_pylist()


def read_results(out: str | Path) -> tuple[Path, Head, list[Row]]:
    """The rows that are there, sorted by point, while somebody may be writing more.

    Raises:
        ConfigError: there are none.
    """
    check_pyarrow()
    given = Path(out)
    path = given / f"{NAME}{SUFFIX}" if given.is_dir() else given
    journal = path.with_name(path.name + ".journal")
    rows: dict[str, Row] = {}
    head = None
    if path.exists():
        head, found = read_table(path)
        rows = {row["point"]: row for row in found}
    if journal.exists():
        data = journal.read_bytes()
        found, _ = _in_journal(data, str(journal), None)
        rows |= {row["point"]: row for row in found}
        first = data.partition(b"\n")[0][9:]
        head = head or (_head_of(first, str(journal)) if first else None)
    if head is None:
        raise ConfigError("show", f"{out}: no results of a sweep are there")
    return path, head, [rows[key] for key in sorted(rows)]


def table_of(rows: Iterable[Row], head: Head) -> Any:
    """Rows as a `pyarrow.Table`, sorted by point: the same in whatever order they came."""
    import pyarrow as pa

    ordered = sorted(rows, key=lambda row: str(row["point"]))
    measured = head.measures
    if measured is None:
        own = {"point", "status", "error", *head.columns}
        measured = sorted({key for row in ordered for key in row} - own)
    arrays, fields = [], []
    for name in ("point", *head.columns, "status", "error", *measured):
        values = [row.get(name) for row in ordered]
        kind = pa.string() if name in ("point", "status", "error") else _kind(values)
        arrays.append(pa.array([_as(kind, value) for value in values], kind))
        fields.append(pa.field(name, kind))
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata={KEY: head.to_json()}))


def _kind(values: Sequence[Any]) -> Any:
    """The narrowest type for all values; where none is exact, text."""
    import pyarrow as pa

    there = [value for value in values if value is not None]
    if there and all(isinstance(value, bool) for value in there):
        return pa.bool_()
    if any(not isinstance(value, int | float) or isinstance(value, bool) for value in there):
        return pa.string()
    if any(isinstance(value, float) for value in there):
        return pa.float64()
    low, high = min(there, default=0), max(there, default=0)
    for (least, most), kind in ((INT64, pa.int64()), (UINT64, pa.uint64())):
        if least <= low and high <= most:
            return kind
    return pa.string()


def _as(kind: Any, value: Any) -> Any:
    import pyarrow as pa

    if value is None:
        return None
    if kind == pa.string():
        # Half of a pair that stands for no character has no place in UTF-8.
        return str(value).encode("utf-8", "replace").decode()
    return float(value) if kind == pa.float64() else value


def packed(rows: Iterable[Row], head: Head) -> bytes:
    """Rows as the bytes of a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table_of(rows, head), sink)
    return bytes(sink.getvalue().to_pybytes())
