"""A file that is written is there as a whole or not at all; `-` is standard output and never a file."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from vpmu_emu.errors import LoadError
from vpmu_emu.numerals import shown


def check_output(path: str, sources: Iterable[str | Path] = ()) -> None:
    """Whether a file can be written to `path`, before anything runs.

    Args:
        path: the file.
        sources: what is read, and therefore not overwritten.

    Raises:
        LoadError: a folder, no folder to be in, one of the sources.
    """
    if path == "-":
        return
    target = Path(path)
    try:
        fits = bool(path) and not target.is_dir() and target.parent.is_dir()
        same = fits and target.exists() and any(Path(s).exists() and target.samefile(s) for s in sources)
    except (OSError, ValueError):
        fits = same = False
    if not fits:
        raise LoadError(f"cannot write {shown(path)}: no such folder, or a folder itself")
    if same:
        raise LoadError(f"{path}: is a source of this program, and would be overwritten")


def write_output(path: str | Path, data: bytes | Iterable[bytes]) -> None:
    """Put a file in its place at once; pipes and devices, which have no such thing, get the bytes.

    Args:
        path: the file.
        data: all of it, or its pieces in order.

    Raises:
        LoadError: it cannot be written, or is a pipe that nobody reads; OSError: standard output cannot be.
    """
    pieces = (data,) if isinstance(data, bytes) else data
    if str(path) == "-":
        sys.stdout.flush()
        for piece in pieces:
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
        return
    target = Path(path)
    try:
        if target.exists() and not target.is_file():
            _pour(target, pieces)
        else:
            _replace(target.resolve(), pieces)
    except BrokenPipeError:
        raise
    except OSError as error:
        unread = target.is_fifo() and not isinstance(error, PermissionError)
        why = "is a pipe that nobody reads" if unread else error.strerror or str(error)
        raise LoadError(f"cannot write {path}: {why}") from None


def _pour(target: Path, pieces: Iterable[bytes]) -> None:
    # without O_NONBLOCK a pipe would have to wait for somebody who reads it
    number = os.open(target, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    os.set_blocking(number, True)
    with os.fdopen(number, "wb") as file:
        file.writelines(pieces)


def _replace(target: Path, pieces: Iterable[bytes]) -> None:
    part = target.with_name(f".{os.getpid()}.part")
    try:
        file = part.open("xb")
    except OSError:  # a file that can be written in a folder that cannot
        with target.open("wb") as file:
            file.writelines(pieces)
        return
    try:
        with file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())  # before the name says that it is there
        if target.exists():
            part.chmod(target.stat().st_mode & 0o7777)
        part.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
