"""`isa/linux.toml` as frozen rows: the system call interface between host programs and their kernel."""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np

from vpmu_emu.data import isa_dir
from vpmu_emu.tables.names import Names

_TABLE = tomllib.loads((isa_dir() / "linux.toml").read_text())

_NUMBERS = {
    f"{letter}{8 * size}": f"<{kind}{size}"
    for letter, kind in (("u", "u"), ("s", "i"))
    for size in (1, 2, 4, 8)
}
_FIELD = re.compile(r"(\d+) (\w+)(?: x (\d+))?\Z")
_DIRECTIONS = {"": 0, "w": 1, "r": 2, "rw": 3}  # _IOC_NONE, _IOC_WRITE, _IOC_READ


@attrs.frozen
class Syscall:
    """One system call: its number in RAX and the names of its arguments (RDI RSI RDX R10 R8 R9)."""

    name: str
    number: int
    args: tuple[str, ...] = attrs.field(converter=tuple)


@attrs.frozen
class Field:
    """One member of a structure.

    Attributes:
        name: as in C; of a nested member with its dots ("io.port").
        offset: bytes from the start of the structure.
        type: u8 to u64, s8 to s64 or another structure.
        count: elements, 1 of a plain member.
    """

    name: str
    offset: int
    type: str
    count: int = 1

    @property
    def size(self) -> int:
        """Bytes of all its elements."""
        return self.count * size_of(self.type)


@attrs.frozen
class Struct:
    """One structure as it lies in memory.

    Attributes:
        name: as in C; `kernel` is the name in the kernel's headers when another one.
        size: bytes, without `tail`.
        header: where a C program gets it from.
        fields: its members; those of a union share their place.
        tail: type of the elements that follow it, "" if none do.
        bits: (name, lowest bit, highest bit) of the single bits of member `bits_field`.
    """

    name: str
    kernel: str
    size: int
    header: str
    fields: tuple[Field, ...] = attrs.field(repr=False)
    tail: str = ""
    bits_field: str = ""
    bits_prefix: str = ""
    bits: tuple[tuple[str, int, int], ...] = attrs.field(default=(), repr=False)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The same layout for NumPy, so that a structure in memory can be worked on in place."""
        return _dtype(self.name)

    def offset(self, field: str) -> int:
        """Offset of a member.

        Raises:
            KeyError: no such member.
        """
        return int(self.dtype.fields[field][1])  # type: ignore[index]

    def new(self, **values: Any) -> np.ndarray[Any, Any]:
        """A zeroed structure (a 0-dimensional array: `tobytes()` packs it) with some members set."""
        made = np.zeros((), dtype=self.dtype)
        for name, value in values.items():
            made[name] = value
        return made

    def read(self, data: bytes) -> Any:
        """The structure in the first `size` bytes of `data`, read-only; shorter data ends in zeros."""
        return np.frombuffer(data[: self.size].ljust(self.size, b"\0"), dtype=self.dtype)[0]

    def tails(self, data: bytes) -> Any:
        """What follows it in `data`: an array of as many whole elements as there are."""
        kind = np.dtype(_NUMBERS[self.tail]) if self.tail in _NUMBERS else STRUCTS[self.tail].dtype
        rest = data[self.size :]
        return np.frombuffer(rest[: len(rest) // kind.itemsize * kind.itemsize], dtype=kind)

    def view(self, M: np.ndarray[Any, Any], at: int) -> Any:
        """The structure at an index of a byte array, to read and to write."""
        return M[at : at + self.size].view(self.dtype)[0]


@attrs.frozen
class Ioctl:
    """One ioctl request.

    Attributes:
        name: as in C.
        on: what kind of file takes it: perf, kvm, vm, vcpu.
        number: the request as a program passes it (_IO, _IOR, _IOW, _IOWR).
        dir: "" the argument is a number, "w" the program gives, "r" it gets, "rw" both.
        arg: what the argument points to, a structure or a number type; "" if it does not.
    """

    name: str
    on: str
    number: int
    dir: str
    arg: str

    @property
    def size(self) -> int:
        """Bytes at the argument, bits 29:16 of the number."""
        return self.number >> 16 & 0x3FFF


def _field(name: str, text: str) -> Field:
    found = _FIELD.match(text)
    if found is None:
        raise ValueError(f"linux.toml: field {name} = {text!r} is not OFFSET TYPE or OFFSET TYPE x COUNT")
    return Field(name, int(found[1]), found[2], int(found[3] or 1))


def _struct(name: str, row: Mapping[str, Any]) -> Struct:
    bits = row.get("bits", {"field": "", "prefix": "", "names": {}})
    ranges = [(key, *map(int, (text + ":" + text).split(":")[:2])) for key, text in bits["names"].items()]
    return Struct(
        name,
        row.get("kernel", name),
        row["size"],
        row["header"],
        tuple(_field(key, text) for key, text in row["fields"].items()),
        row.get("tail", ""),
        bits["field"],
        bits["prefix"],
        tuple(ranges),
    )


STRUCTS: dict[str, Struct] = {name: _struct(name, row) for name, row in _TABLE["struct"].items()}
"""Every structure by name."""


def size_of(kind: str) -> int:
    """Bytes of a number type or a structure.

    Raises:
        KeyError: neither.
    """
    return int(kind[1:]) // 8 if kind in _NUMBERS else STRUCTS[kind].size


@functools.cache
def _dtype(name: str) -> np.dtype[Any]:
    row = STRUCTS[name]
    kinds: list[Any] = [_NUMBERS.get(f.type) or STRUCTS[f.type].dtype for f in row.fields]
    return np.dtype(
        {
            "names": [f.name for f in row.fields],
            "formats": [
                kind if field.count == 1 else (kind, field.count)
                for field, kind in zip(row.fields, kinds, strict=True)
            ],
            "offsets": [f.offset for f in row.fields],
            "itemsize": row.size,
        }
    )


def _ioctl(name: str, row: Mapping[str, Any]) -> Ioctl:
    arg = row.get("arg", "")
    size = size_of(arg) if arg else 0
    number = _DIRECTIONS[row["dir"]] << 30 | size << 16 | row["type"] << 8 | row["nr"]
    return Ioctl(name, row["on"], number, row["dir"], arg)


SYSCALLS: dict[int, Syscall] = {
    row["number"]: Syscall(name, **row) for name, row in _TABLE["syscall"].items()
}
"""Every system call by number."""

IOCTLS: tuple[Ioctl, ...] = tuple(_ioctl(name, row) for name, row in _TABLE["ioctl"].items())
"""Every ioctl."""

ERRNO: dict[str, int] = _TABLE["errno"]
"""Error numbers by name."""

HEADERS: dict[str, dict[str, int]] = {row["header"]: row["values"] for row in _TABLE["constants"]}
"""The constants by the header that a C program includes for them."""


def _bit_names(row: Struct) -> list[tuple[str, int]]:
    found = []
    for name, low, high in row.bits:
        if not name.startswith("__"):
            symbol = f"{row.bits_prefix}_{name.upper()}"
            found.append((symbol, 1 << low) if low == high else (f"{symbol}_SHIFT", low))
    return found


_CONSTANTS = Names(
    "name of linux.toml",
    [
        *((f"SYS_{row.name}", row.number) for row in SYSCALLS.values()),
        *((row.name, row.number) for row in IOCTLS),
        *ERRNO.items(),
        *(pair for values in HEADERS.values() for pair in values.items()),
        *(pair for row in STRUCTS.values() for pair in _bit_names(row)),
    ],
)

_ERRNO_NAMES = {number: name for name, number in ERRNO.items()}
if len(_ERRNO_NAMES) != len(ERRNO):
    raise ValueError("linux.toml: two errnos have one number")


def constant(name: str) -> int:
    """The value of a name: SYS_read, KVM_RUN, EINVAL, PROT_READ, PERF_ATTR_PINNED, …

    Raises:
        UnknownNameError: no such name; the message names the nearest.
    """
    return _CONSTANTS[name]


def constants() -> dict[str, int]:
    """Every name of the table with its value, in table order."""
    return dict(_CONSTANTS.items())


def errno_name(number: int) -> str:
    """"EINVAL" for 22; "errno N" for a number that the table does not have."""
    return _ERRNO_NAMES.get(number, f"errno {number}")
