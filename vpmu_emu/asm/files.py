"""A source is a regular file of UTF-8 text; everything else is refused before it can block or surprise."""

from __future__ import annotations

import stat
from pathlib import Path

from vpmu_emu.errors import LoadError

MAX_FILE = 1 << 29
_KINDS = (
    (stat.S_ISDIR, "is a folder"),
    (stat.S_ISFIFO, "is a pipe; - reads standard input"),
    (stat.S_ISSOCK, "is a socket"),
    (stat.S_ISCHR, "is a device; - reads standard input"),
    (stat.S_ISBLK, "is a device"),
)


def read_bytes(path: Path, most: int = MAX_FILE) -> bytes:
    """The bytes of a regular file, `most` at the most.

    Raises:
        LoadError: there is none, or it is something else, unreadable or too large.
    """
    try:
        status = path.stat()
        for is_kind, what in _KINDS:
            if is_kind(status.st_mode):
                raise LoadError(f"{path}: {what}")
        with path.open("rb") as file:
            data = file.read(most + 1)
    except (OSError, ValueError) as error:
        raise LoadError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    if len(data) > most:
        raise LoadError(f"{path}: larger than {most >> 20} MiB")
    return data


def text_of(data: bytes, name: str) -> str:
    """The text of a source that errors call `name`.

    Raises:
        LoadError: no text, or not in UTF-8; says where.
    """
    if b"\0" in data[:4096]:
        raise LoadError(f"{name}: neither source text nor an ELF executable")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = data[error.start]
        msg = f"{name}:{line}: byte {byte:#04x} is not UTF-8; iconv -f latin1 -t utf-8 converts such a file"
        raise LoadError(msg) from None
