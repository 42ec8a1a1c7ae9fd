"""Where compiled code lies on the disk: folders whose names are hashes of all that it depends on.

numba's own cache looks at one source file only and at none of its settings, so it would serve code
compiled from an older constant of another file, or without the bounds checks that were asked for.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import importlib.util
import os
import re
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from vpmu_emu.data import isa_dir
from vpmu_emu.errors import ConfigError

PACKAGE = "vpmu_emu"
KEY = "VPMU_CACHE_DIR"
UNUSED_DAYS = 14
# What numba reads from the environment and what changes machine code (but not its caches' places): what is
# compiled, and for which processor it is generated.
SETTINGS = ("BOUNDSCHECK", "OPT", "DEBUGINFO", "ENABLE_PROFILING")
PROCESSOR = ("CPU_NAME", "CPU_FEATURES")
KEEPS_BITCODE = "VPMU_KEEP_BITCODE"  # set where code for a wheel is made (`vpmu_emu.ship`)
# The mark of a folder of ours, as the Cache Directory Tagging Specification has it: backups leave it out.
TAG = "CACHEDIR.TAG"
TAG_TEXT = (
    "Signature: 8a477f597d28d172789f06886806bc55\n"
    f"# Compiled code of {PACKAGE}; it can be deleted at any time.\n"
)
PRUNED = ".pruned"
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_FINGERPRINT = re.compile(r"[0-9a-f]{20}")
_MADE_HERE = re.compile(r".*\.(nbi|nbc)(\.tmp\.[0-9a-f]+)?|\w+\.code(\.\d+)?")


# --- whose folder it is ---------------------------------------------------------------------------
#
# Machine code found here is run, and numba's index is a pickle: who can write into the folder can do all
# that the user can. And what is deleted here must have been made here.


def _wanted() -> Path:
    """The folder that the user names, else `vpmu_emu` in the user's cache.

    Raises:
        RuntimeError: a home folder is needed, and there is none.
    """
    chosen = os.environ.get(KEY)
    if chosen:
        return Path(chosen).expanduser().absolute()
    if sys.platform == "win32":
        user = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        user = "~/Library/Caches"
    else:
        user = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        if not user.startswith(("/", "~")):  # the XDG specification: relative paths are ignored
            user = "~/.cache"
    return Path(user).expanduser().absolute() / PACKAGE


def _private(path: Path, *, sticky_is_fine: bool = False) -> None:
    """Refuse a folder that is not the user's alone."""
    if not hasattr(os, "geteuid"):
        return
    found = path.stat()
    if sticky_is_fine and found.st_mode & stat.S_ISVTX:
        return
    why = ""
    if found.st_uid != os.geteuid():
        why = "belongs to another user"
    elif found.st_mode & OTHERS_WRITE:
        why = "can be written by other users"
    if why:
        raise ConfigError(
            "cache", f"{path} {why}, and compiled code from there would run as you; remove it, or set {KEY}"
        )


def _make(path: Path) -> None:
    """Make a folder that nobody else can look into, and those above it."""
    for each in (*reversed(path.parents), path):
        if not each.is_dir():
            with contextlib.suppress(FileExistsError):
                each.mkdir(mode=0o700)


def _is_ours(base: Path) -> bool:
    """Whether a folder has our mark, or nothing in it that is not ours by name."""
    try:
        return (base / TAG).read_bytes() == TAG_TEXT.encode()
    except FileNotFoundError:
        names = (entry.name for entry in base.iterdir())
        return all(name.startswith((f"{PACKAGE}.", f"{TAG}.")) or name == PRUNED for name in names)


def _prepared(wanted: Path) -> Path:
    """The folder of ours at `wanted`, or in it if other things are there.

    Raises:
        OSError: it cannot be used; ConfigError: it must not be.
    """
    base = wanted
    _make(wanted)
    _private(wanted, sticky_is_fine=True)
    if wanted.stat().st_mode & stat.S_ISVTX or not _is_ours(wanted):
        base = wanted / PACKAGE
        _make(base)
        _private(base)
    if not _is_ours(base):
        raise ConfigError("cache", f"{wanted} and {base} hold other things; set {KEY} to an empty folder")
    if base.stat().st_mode & 0o077:
        base.chmod(0o700)
    tempfile.TemporaryFile(dir=base).close()
    if not (base / TAG).exists():
        part = base / f"{TAG}.{os.getpid()}"
        part.write_text(TAG_TEXT, encoding="ascii")
        part.replace(base / TAG)
    return base


@cache
def cache_base() -> Path:
    """The folder of all compiled code; where none can be, one of this process, which goes with it.

    Raises:
        ConfigError: other users could put code into it, or it holds what is not ours.
    """
    try:
        base = _prepared(_wanted())
    except (OSError, RuntimeError) as error:
        return _passing(error)
    _prune(base)
    return base


def _passing(error: Exception) -> Path:
    # numba would fall back to __pycache__, whose key is too weak.
    above = Path(tempfile.gettempdir())
    for left in above.glob(f"{PACKAGE}-*-*"):  # by processes that were killed
        with contextlib.suppress(OSError, ValueError, ConfigError):
            _private(left)
            number = int(left.name.split("-")[1])
            if _is_ours(left) and not _runs(number):
                shutil.rmtree(left, ignore_errors=True)
    base = Path(tempfile.mkdtemp(prefix=f"{PACKAGE}-{os.getpid()}-"))
    owner = os.getpid()
    (base / TAG).write_text(TAG_TEXT, encoding="ascii")

    def remove() -> None:
        if os.getpid() == owner:  # not in a child that was forked
            shutil.rmtree(base, ignore_errors=True)

    atexit.register(remove)
    why = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error).rstrip(".")
    if sys.stderr is not None:
        sys.stderr.write(f"vpmu: compiled code is not kept for the next run: {why}; set {KEY}\n")
    return base


def _runs(process: int) -> bool:
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


@cache
def folder(module: str) -> Path:
    """The cache folder of `module`, made if need be and marked as used today."""
    path = cache_base() / module / fingerprint(module)
    _make(path)
    _private(path.parent)
    _private(path)
    os.utime(path)
    return path


def _prune(base: Path) -> None:
    # At most once a day: looking costs a few milliseconds at every start otherwise.
    mark = base / PRUNED
    now = time.time()
    with contextlib.suppress(OSError):
        if mark.exists() and now - mark.stat().st_mtime < 86_400:
            return
        mark.touch()
        for folder in base.glob(f"{PACKAGE}.*/*"):
            if _FINGERPRINT.fullmatch(folder.name) and not folder.is_symlink() and folder.is_dir():
                if now - folder.stat().st_mtime > UNUSED_DAYS * 86_400 and _made_here(folder):
                    shutil.rmtree(folder, ignore_errors=True)


def _made_here(folder: Path) -> bool:
    """Whether a folder holds nothing but compiled code and the marks of modes, which are empty files."""
    for path in folder.rglob("*"):
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            return False
        if path.is_file() and not _MADE_HERE.fullmatch(path.name) and path.stat().st_size:
            return False
    return True


# --- what code of ours imports --------------------------------------------------------------------


def safe_path() -> list[str]:
    """`sys.path` with the current folder at its end: what lies there hides no library."""
    here = _here()
    found = [os.path.join(here, entry) for entry in sys.path if entry]  # noqa: PTH118  (no cwd, no Path)
    return [entry for entry in found if entry != here] + [here] * (here in found)


def _here() -> str:
    try:
        return str(Path.cwd())
    except OSError:  # it has been deleted
        return "/"


@contextlib.contextmanager
def safe_imports() -> Iterator[None]:
    """Import by `safe_path`, in our own folder: numba reads a file of settings in the current one."""
    before, here = list(sys.path), _here()
    sys.path[:] = safe_path()
    os.chdir(cache_base())
    try:
        yield
    finally:
        os.chdir(here)
        sys.path[:] = before


@cache
def fingerprint(module: str) -> str:
    """Hash of everything that the machine code of `module` depends on, 20 hex digits."""
    return hashlib.sha256(_environment() + sources([module])).hexdigest()[:20]


def sources(modules: Iterable[str]) -> bytes:
    """Hash of all that modules of the package are made of: their own text, and that of what they import."""
    digest = hashlib.sha256()
    for name in sorted(frozenset[str]().union(*map(closure, modules))):
        digest.update(f"\0{name}\0".encode())
        digest.update(_text(name))
    return digest.digest()


def numba_version() -> str:
    """What numba says of its version, without the third of a second that importing it takes."""
    before = list(sys.path)
    sys.path[:] = safe_path()
    try:
        found = importlib.util.find_spec("numba")
    finally:
        sys.path[:] = before
    assert found is not None, "numba is not installed"
    try:
        return Path(found.origin or "").with_name("_version.py").read_text(encoding="utf-8")
    except OSError:
        from importlib.metadata import version

        return version("numba")


@cache
def processor() -> tuple[str, str]:
    """Name and features of the processor that code is generated for, by numba's settings."""
    import llvmlite.binding as llvm

    name, features = (os.environ.get(f"NUMBA_{setting}") for setting in PROCESSOR)
    if features is None and (name or "").lower() != "generic":
        with contextlib.suppress(RuntimeError):  # LLVM knows none of this kind of processor
            features = llvm.get_host_cpu_features().flatten()
    return name or llvm.get_host_cpu_name(), features or ""


@cache
def portable() -> dict[str, str]:
    """What code depends on before it is generated for a processor, but the sources of its modules."""
    import llvmlite
    import llvmlite.binding as llvm

    said = numba_version()
    found = re.search(r'"version": *"([^"]+)"', said)
    tables = hashlib.sha256()
    isa = isa_dir()
    for path in sorted(isa.rglob("*")):
        if path.is_file():
            tables.update(f"\0{path.relative_to(isa).as_posix()}\0".encode())
            tables.update(path.read_bytes())
    return {
        "numba": found[1] if found else said,
        "llvmlite": f"{llvmlite.__version__} with LLVM {'.'.join(map(str, llvm.llvm_version_info))}",
        "platform": llvm.get_process_triple(),
        "settings": " ".join(f"NUMBA_{name}={os.environ[f'NUMBA_{name}']}" for name in SETTINGS
                             if f"NUMBA_{name}" in os.environ),
        "tables": tables.hexdigest()[:20],
    }  # fmt: skip


@cache
def _environment() -> bytes:
    import numpy as np

    here = sys.version, numba_version(), np.__version__, *processor(), os.environ.get(KEEPS_BITCODE)
    return repr((portable(), here)).encode()


@cache
def _text(module: str) -> bytes:
    path = _source(module)
    return b"" if path is None else path.read_bytes()


_IMPORT = re.compile(
    rf"[ \t]*(?:from[ \t]+({PACKAGE}[\w.]*)[ \t]+import[ \t]+(\([^)]*\)|[^\n]*)"
    rf"|import[ \t]+({PACKAGE}[^\n]*))"
)


def _import_lines(text: str) -> Iterator[re.Match[str]]:
    # From each place that names the package: to try every line is a tenth of a short run.
    end = 0
    while (at := text.find(PACKAGE, end)) >= 0:
        found = _IMPORT.match(text, text.rfind("\n", 0, at) + 1)
        end = found.end() if found else at + len(PACKAGE)
        if found:
            yield found


@cache
def imports(module: str) -> frozenset[str]:
    """The modules of the package that the source of `module` imports by name."""
    found: set[str] = set()
    for line in _import_lines(_text(module).decode()):
        source, names, plain = line.groups()
        if plain:
            found.update(part.split(" as ")[0].strip() for part in plain.split(","))
            continue
        found.add(source)
        for name in re.findall(r"\w+", re.sub(r"#[^\n]*|\bas\s+\w+", "", names)):
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
    if module in _sources() or module.startswith(f"{PACKAGE}."):
        return _sources().get(module)
    loaded = getattr(sys.modules.get(module), "__file__", None)
    return Path(loaded) if loaded else None
