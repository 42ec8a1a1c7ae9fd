"""Looking a name up: case does not matter, and a wrong one is answered with the nearest."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from vpmu_emu.errors import VpmuError

T = TypeVar("T")


class UnknownNameError(VpmuError, KeyError):
    """A name that a table does not have; `nearest` holds up to three that it has."""

    def __init__(self, kind: str, name: str, nearest: tuple[str, ...]) -> None:
        self.kind = kind
        self.name = name
        self.nearest = nearest
        hint = f"; did you mean {' or '.join(nearest)}?" if nearest else ""
        self.message = f"unknown {kind} {name!r}{hint}"
        super().__init__(self.message)

    def __str__(self) -> str:
        return self.message  # KeyError would show its repr


class Names(Generic[T]):
    """Every name of one kind of thing, aliases included."""

    def __init__(self, kind: str, pairs: Iterable[tuple[str, T]]) -> None:
        self._kind = kind
        self._things: dict[str, T] = {}
        self._spelled: dict[str, str] = {}
        for name, thing in pairs:
            key = name.lower()
            if key in self._things:
                raise ValueError(f"two {kind}s are named {name}")
            self._things[key] = thing
            self._spelled[key] = name

    def __getitem__(self, name: str) -> T:
        key = name.strip().lower()
        if key in self._things:
            return self._things[key]
        nearest = difflib.get_close_matches(key, self._things, n=3)
        raise UnknownNameError(self._kind, name, tuple(self._spelled[k] for k in nearest))

    def __iter__(self) -> Iterator[str]:
        return iter(self._spelled.values())

    def items(self) -> Iterator[tuple[str, T]]:
        """Every name as the table spells it, with what it names, in table order."""
        return ((self._spelled[key], thing) for key, thing in self._things.items())
