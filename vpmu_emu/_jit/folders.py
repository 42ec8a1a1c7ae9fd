"""Where compiled code lies on the disk: folders whose names are hashes of all that it depends on.

numba's own cache looks at one source file only and at none of its settings, so it would serve code
compiled from an older constant of another file, or without the bounds checks that were asked for.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import re
import shutil
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

from vpmu_emu.data import isa_dir

PACKAGE = "vpmu_emu"
UNUSED_DAYS = 14
# What numba reads from the environment and what changes machine code (but not its caches' places).
SETTINGS = ("BOUNDSCHECK", "OPT", "CPU_NAME", "CPU_FEATURES", "DEBUGINFO", "ENABLE_PROFILING")
SETTINGS_FILE = Path(".numba_config.yaml")  # numba reads it too


def cache_base() -> Path:
    """The folder of all compiled code: VPMU_CACHE_DIR, else `vpmu_emu` in the user's cache."""
    chosen = os.environ.get("VPMU_CACHE_DIR")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        user = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        user = "~/Library/Caches"
    else:
        user = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(user).expanduser() / PACKAGE


@cache
def _usable_base() -> Path:
    base = cache_base()
    try:
        base.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=base).close()
    except OSError:
        # numba would fall back to __pycache__, whose key is too weak: compile into a folder of
        # this process instead.
        return Path(tempfile.mkdtemp(prefix=f"{PACKAGE}-"))
    _prune(base)
    return base


@cache
def folder(module: str) -> Path:
    """The cache folder of `module`, made if need be and marked as used today."""
    path = _usable_base() / module / fingerprint(module)
    path.mkdir(parents=True, exist_ok=True)
    os.utime(path)
    return path


def _prune(base: Path) -> None:
    # At most once a day: looking costs a few milliseconds at every start otherwise.
    mark = base / ".pruned"
    now = time.time()
    with contextlib.suppress(OSError):
        if mark.exists() and now - mark.stat().st_mtime < 86_400:
            return
        mark.touch()
        for folder in base.glob("*/*"):
            if folder.is_dir() and now - folder.stat().st_mtime > UNUSED_DAYS * 86_400:
                shutil.rmtree(folder, ignore_errors=True)


@cache
def fingerprint(module: str) -> str:
    """Hash of everything that the machine code of `module` depends on, 20 hex digits."""
    digest = hashlib.sha256(_environment())
    for name in sorted(closure(module)):
        digest.update(f"\0{name}\0".encode())
        digest.update(_text(name))
    return digest.hexdigest()[:20]


def numba_version() -> str:
    """The version of numba, without the third of a second that importing it takes."""
    found = importlib.util.find_spec("numba")
    assert found is not None, "numba is not installed"
    try:
        return Path(found.origin or "").with_name("_version.py").read_text(encoding="utf-8")
    except OSError:
        from importlib.metadata import version

        return version("numba")


@cache
def _environment() -> bytes:
    import llvmlite.binding
    import numpy as np

    digest = hashlib.sha256()
    parts = (
        sys.version,
        numba_version(),
        np.__version__,
        llvmlite.__version__,
        llvmlite.binding.get_host_cpu_name(),
        [os.environ.get(f"NUMBA_{name}") for name in SETTINGS],
        SETTINGS_FILE.read_bytes() if SETTINGS_FILE.is_file() else None,
    )
    digest.update(repr(parts).encode())
    isa = isa_dir()
    for path in sorted(isa.rglob("*")):
        if path.is_file():
            digest.update(f"\0{path.relative_to(isa).as_posix()}\0".encode())
            digest.update(path.read_bytes())
    return digest.digest()


@cache
def _text(module: str) -> bytes:
    path = _source(module)
    return b"" if path is None else path.read_bytes()


_IMPORT = re.compile(
    rf"^[ \t]*(?:from[ \t]+({PACKAGE}[\w.]*)[ \t]+import[ \t]+(\([^)]*\)|[^\n]*)"
    rf"|import[ \t]+({PACKAGE}[^\n]*))",
    re.MULTILINE,
)


@cache
def imports(module: str) -> frozenset[str]:
    """The modules of the package that the source of `module` imports by name."""
    found: set[str] = set()
    for source, names, plain in _IMPORT.findall(_text(module).decode()):
        if plain:
            found.update(part.split(" as ")[0].strip() for part in plain.split(","))
            continue
        found.add(source)
        for name in re.findall(r"\w+", re.sub(r"#[^\n]*|\bas\s+\w+", "", names)):
            if _source(f"{source}.{name}") is not None:
                found.add(f"{source}.{name}")
    return frozenset(name for name in found if _source(name) is not None)


def closure(module: str) -> frozenset[str]:
    """`module` and every module of the package that it imports, directly or not."""
    seen = {module}
    todo = [module]
    while todo:
        for name in imports(todo.pop()):
            if name not in seen:
                seen.add(name)
                todo.append(name)
    return frozenset(seen)


@cache
def _sources() -> dict[str, Path]:
    root = Path(__file__).resolve().parents[1]
    found = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _source(module: str) -> Path | None:
    if module.split(".")[0] == PACKAGE:
        return _sources().get(module)
    loaded = getattr(sys.modules.get(module), "__file__", None)
    return Path(loaded) if loaded else None
