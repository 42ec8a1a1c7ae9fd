"""Every error a user can meet, as data first and words second; imports nothing of the package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class VpmuError(Exception):
    """Base of all errors that the package raises on purpose."""


class AssemblyError(VpmuError):
    """Source text that does not assemble.

    Attributes:
        diagnostics: the errors in order, at most a hundred.
        more: how many there are beyond those, as far as the source was read.
        unread: reading stopped at the last one, and some of the source may be unread.
    """

    def __init__(self, diagnostics: Sequence[Any], more: int = 0, unread: bool = False) -> None:
        self.diagnostics = tuple(diagnostics)
        self.more = more
        self.unread = unread
        rest = [f"and {more} more error{'s' * (more > 1)}"] if more else []
        rest += ["the rest of the source was not read"] if unread else []
        super().__init__("\n".join([*(str(d) for d in self.diagnostics), *rest]))


class LoadError(VpmuError):
    """A program or saved file that cannot be read."""


class ConfigError(VpmuError):
    """A setting with a wrong value; `key` names it, `allowed` says what would do."""

    def __init__(self, key: str, message: str, allowed: str = "") -> None:
        self.key = key
        self.allowed = allowed
        super().__init__(f"{key}: {message}" + (f" (allowed: {allowed})" if allowed else ""))


class HostError(VpmuError):
    """A request that the emulated host kernel refused; `errno` is Linux's."""

    def __init__(self, errno: int, message: str) -> None:
        self.errno = errno
        super().__init__(f"{message} (errno {errno})")
