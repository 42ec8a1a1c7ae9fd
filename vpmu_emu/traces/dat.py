"""trace.dat, version 6, for `trace-cmd report`: descriptions of the events come from their table."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterable, Iterator
from typing import IO

from vpmu_emu.traces.points import TEXT, Field, Line, Point

PAGE = 4096
_HEADER = 16  # u64 timestamp, u64 commit
_ROOM = PAGE - _HEADER
_TIME_EXTEND = 30  # type_len of an entry that only moves the time
_DELTA_BITS = 27
_MISSED, _STORED = 1 << 31, 1 << 30  # of commit: events are missing before this page; their number ends it
_FIRST_ID = 300  # of an event; those below are ftrace's own
_TRACECLOCK = 4  # option: which clocks there are, the one in use in brackets

_COMMON = (
    Field("common_type", "unsigned short", 2),
    Field("common_flags", "unsigned char", 1),
    Field("common_preempt_count", "unsigned char", 1),
    Field("common_pid", "int", 4),
)
_HEADER_PAGE = "".join(
    f"\tfield: {declared};\toffset:{offset};\tsize:{size};\tsigned:{signed};\n"
    for declared, offset, size, signed in (
        ("u64 timestamp", 0, 8, 0),
        ("local_t commit", 8, 8, 1),
        ("int overwrite", 8, 1, 1),
        ("char data", _HEADER, _ROOM, 0),
    )
)
_HEADER_EVENT = (
    "# compressed entry header\n"
    "\ttype_len    :    5 bits\n\ttime_delta  :   27 bits\n\tarray       :   32 bits\n\n"
    f"\tpadding     : type == 29\n\ttime_extend : type == {_TIME_EXTEND}\n\ttime_stamp : type == 31\n"
    "\tdata max type_len  == 28\n"
)


def trace_dat(lines: Iterable[Line], cpus: int) -> Iterator[bytes]:
    """The file in pieces.

    Args:
        lines: in the order of time.
        cpus: how many there are.
    """
    with tempfile.TemporaryFile() as every:
        writers = [_Pages() for _ in range(cpus)]
        ids: dict[Point, int] = {}
        names: dict[int, str] = {}
        where: list[list[int]] = [[] for _ in range(cpus)]

        def put(cpu: int, page: bytes) -> None:
            where[cpu].append(every.tell() // PAGE)
            every.write(page)

        for line in lines:
            number = ids.setdefault(line.point, _FIRST_ID + len(ids))
            moment = line.moment
            names.setdefault(moment.task.pid, moment.task.comm)
            payload = _payload(line, number)
            for page in writers[moment.cpu].add(moment.ns, payload, moment.lost):
                put(moment.cpu, page)
        for cpu, writer in enumerate(writers):
            for page in writer.end():
                put(cpu, page)
        yield from _file(ids, names, where, every)


def _file(
    ids: dict[Point, int], names: dict[int, str], where: list[list[int]], every: IO[bytes]
) -> Iterator[bytes]:
    head = b"".join(_head(ids, names, len(where)))
    # behind it: offset and size of each CPU's data, which begins on a page
    at = -(-(len(head) + 16 * len(where)) // PAGE) * PAGE
    begin = at
    for pages in where:
        head += struct.pack("<QQ", at, len(pages) * PAGE)
        at += len(pages) * PAGE
    yield head.ljust(begin, b"\0")
    for pages in where:
        for number in pages:
            every.seek(number * PAGE)
            yield every.read(PAGE)


def _head(ids: dict[Point, int], names: dict[int, str], cpus: int) -> Iterator[bytes]:
    yield b"\x17\x08\x44tracing6\0" + struct.pack("<BBI", 0, 8, PAGE)
    for name, text in (("header_page", _HEADER_PAGE), ("header_event", _HEADER_EVENT)):
        yield name.encode() + b"\0" + _sized(text)
    yield struct.pack("<I", 0)  # ftrace's own events
    systems: dict[str, list[str]] = {}
    for point, number in ids.items():
        systems.setdefault(point.system, []).append(_description(point, number))
    yield struct.pack("<I", len(systems))
    for system, texts in systems.items():
        yield system.encode() + b"\0" + struct.pack("<I", len(texts))
        yield from map(_sized, texts)
    yield struct.pack("<II", 0, 0)  # kallsyms, formats of trace_printk()
    yield _sized("".join(f"{pid} {comm}\n" for pid, comm in names.items()))
    yield struct.pack("<I", cpus)
    clock = b"[local] global\0"
    yield b"options  \0" + struct.pack("<HI", _TRACECLOCK, len(clock)) + clock + struct.pack("<H", 0)
    yield b"flyrecord\0"


def _sized(text: str) -> bytes:
    data = text.encode("utf-8", "backslashreplace")
    return struct.pack("<Q", len(data)) + data


def _layout(fields: Iterable[Field], offset: int) -> Iterator[tuple[Field, int]]:
    for field in fields:
        align = 1 if field.array else field.size
        offset = -(-offset // align) * align
        yield field, offset
        offset += field.size


def _description(point: Point, number: int) -> str:
    rows = [f"name: {point.name}\nID: {number}\nformat:\n"]
    for group in (_layout(_COMMON, 0), _layout(point.fields, 8)):
        for field, offset in group:
            sizes = f"offset:{offset};\tsize:{field.size};\tsigned:{int(field.signed)};"
            rows.append(f"\tfield:{field.declared};\t{sizes}\n")
        rows.append("\n")
    return "".join(rows) + f"print fmt: {point.print_fmt()}\n"


def _payload(line: Line, number: int) -> bytes:
    data = bytearray(struct.pack("<HBBi", number, line.flags, line.preempt, line.moment.task.pid))
    texts = b""
    laid = list(_layout(line.point.fields, len(data)))
    size = max((offset + field.size for field, offset in laid), default=len(data))
    data = data.ljust(size, b"\0")
    for (field, offset), value in zip(laid, line.values, strict=True):
        if field.c_type == TEXT:
            text = str(value).encode("utf-8", "backslashreplace") + b"\0"
            value = len(text) << 16 | size + len(texts)  # __data_loc: where, and how long
            texts += text
        if isinstance(value, str):
            packed = value.encode("utf-8", "replace")[: field.size - 1].ljust(field.size, b"\0")
        else:
            packed = (value & (1 << 8 * field.size) - 1).to_bytes(field.size, "little")
        data[offset : offset + field.size] = packed
    return bytes(data) + texts


class _Pages:
    """The ring buffer of one CPU, page by page."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._time = self._began = 0
        self._lost = 0

    def add(self, ns: int, payload: bytes, lost: int) -> Iterator[bytes]:
        if lost:
            yield from self.end()  # what is missing is said at the head of a page
            self._lost = lost
        ns = max(ns, self._time)
        entry = self._entry(ns, payload)
        if len(self._data) + len(entry) + 8 * bool(self._lost) > _ROOM:
            yield from self.end()
        if not self._data:
            self._began = self._time = ns
            entry = self._entry(ns, payload)
        self._data += entry
        self._time = ns

    def _entry(self, ns: int, payload: bytes) -> bytes:
        delta, extend = ns - self._time, b""
        if delta >> _DELTA_BITS:
            low = delta & (1 << _DELTA_BITS) - 1
            extend, delta = struct.pack("<II", _TIME_EXTEND | low << 5, delta >> _DELTA_BITS), 0
        words = -(-len(payload) // 4)
        body = payload.ljust(4 * words, b"\0")
        if words <= 28:
            return extend + struct.pack("<I", words | delta << 5) + body
        return extend + struct.pack("<II", delta << 5, 4 * words + 4) + body

    def end(self) -> Iterator[bytes]:
        if self._data:
            commit, tail = len(self._data), b""
            if self._lost:
                commit |= _MISSED | _STORED
                tail = struct.pack("<Q", self._lost)
            yield (struct.pack("<QQ", self._began, commit) + self._data + tail).ljust(PAGE, b"\0")
            self._data, self._lost = bytearray(), 0
