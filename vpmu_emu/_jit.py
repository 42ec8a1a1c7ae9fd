"""The only importer of numba: how every compiled function of the package is declared.

numba's own cache looks at one source file only and at none of its settings, so it would serve code
compiled from an older constant of another file, or without the bounds checks that were asked for.
Here every module gets a cache folder whose name is a hash of all that its machine code depends on.
"""

from __future__ import annotations

import contextlib
import ctypes
import dis
import hashlib
import importlib
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import llvmlite.binding
import numba
import numpy as np
from numba import extending
from numba.core import bytecode, codegen, compiler, compiler_machinery, typed_passes, types
from numba.core import event as numba_event

from vpmu_emu.data import isa_dir

F = TypeVar("F", bound=Callable[..., Any])

PACKAGE = "vpmu_emu"
UNUSED_DAYS = 14
COMPILES = not numba.config.DISABLE_JIT  # False under NUMBA_DISABLE_JIT=1: plain Python functions
BOUNDS_CHECKED = bool(numba.config.BOUNDSCHECK)

# Every declared function: "module:name" -> dispatcher (or, uncompiled, the Python function).
functions: dict[str, Any] = {}
inlined: set[str] = set()  # the names of those whose machine code is put into every caller
entries: set[str] = set()  # the names that Python may call


def jit(*, entry: bool = False, inline: bool = False) -> Callable[[F], F]:
    """Declare a compiled function.

    Args:
        entry: Python calls it; only such functions get the wrapper that this takes.
        inline: LLVM puts its body into every caller.
    """

    def decorate(function: F) -> F:
        name = f"{function.__module__}:{function.__qualname__}"
        compiled: F = function
        if COMPILES:
            with _cache_dir(function.__module__):
                compiled = numba.njit(
                    cache=True,
                    nogil=True,
                    error_model="numpy",
                    no_cpython_wrapper=not entry,
                    no_cfunc_wrapper=True,
                    forceinline=inline,
                )(function)
                _one_signature(compiled)
                if not inline:
                    _compile_once(compiled, name)
        functions[name] = compiled
        if inline:
            inlined.add(name)
        if entry:
            entries.add(name)
        return compiled

    return decorate


def _plain(kind: Any) -> Any:
    return getattr(kind, "literal_type", kind)


def _one_signature(dispatcher: Any) -> None:
    # A literal argument has a type of its own in numba, and every callee would be compiled anew for
    # each constant that some caller passes.
    resolve = dispatcher.get_call_template

    def without_literals(args: tuple[Any, ...], kws: dict[str, Any]) -> Any:
        plain = tuple(_plain(kind) for kind in args)
        return resolve(plain, {key: _plain(kind) for key, kind in kws.items()})

    dispatcher.get_call_template = without_literals


# --- every function once --------------------------------------------------------------------------
#
# numba links the code of all callees into each caller and has LLVM optimise and generate it again there,
# so a tree of calls is compiled once for every level above it. Here a caller only names its larger
# callees: their own libraries are in the process before its own is, whether compiled or loaded. Small
# ones are still linked in: compiling them again costs less than loading each at every start.

SMALL = 12  # lines


@cache
def stands_alone(name: str) -> bool:
    """Whether callers name this function instead of containing it."""
    return name not in inlined and source_lines(name) > SMALL


def _needs(name: str) -> Iterator[str]:
    for callee in callees(name):
        if stands_alone(callee):
            yield callee
        else:
            yield from _needs(callee)


def _compile_once(dispatcher: Any, name: str) -> None:
    add = dispatcher.add_overload
    load = dispatcher._cache.load_overload

    def add_overload(result: Any) -> None:
        result.library.vpmu_stands_alone = stands_alone(name)
        add(result)

    def load_overload(sig: Any, target: Any) -> Any:
        for callee in _needs(name):
            if not functions[callee].overloads:
                known = cached_signatures(callee)
                if not known:
                    return None  # not all of it is on the disk: compile
                functions[callee].compile(known[0])
        return load(sig, target)

    dispatcher.add_overload = add_overload
    dispatcher._cache.load_overload = load_overload


def _link_by_name() -> None:
    link = codegen.CPUCodeLibrary.add_linking_library
    identify = bytecode.FunctionIdentity.from_function.__func__

    def add_linking_library(library: Any, other: Any) -> None:
        if getattr(other, "vpmu_stands_alone", False):
            other._ensure_finalized()
        else:
            link(library, other)

    def from_function(cls: Any, function: Any) -> Any:
        # Names that another process finds again: numba's own hold a counter of this one.
        identity = identify(cls, function)
        if function.__module__.split(".")[0] == PACKAGE:
            text = f"{function.__module__}:{function.__qualname__}"
            stable = int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "little")
            identity.unique_id = stable
            identity.unique_name = f"{identity.func_qualname}${stable}"
        return identity

    @cache
    def number(record: Any) -> int:
        return int.from_bytes(hashlib.sha256(repr(record).encode()).digest()[:6], "little")

    def mangling_args(record: Any) -> Any:
        # So does what a function's symbol says of its arguments.
        return type(record).__name__, (number(record),)

    codegen.CPUCodeLibrary.add_linking_library = add_linking_library
    record_type: Any = types.Record
    record_type.mangling_args = property(mangling_args)
    bytecode.FunctionIdentity.from_function = classmethod(from_function)


def _borrowed(array: Any) -> Any:
    return array


def _memory_at(address: Any, size: Any) -> Any:
    there: Any = (ctypes.c_uint8 * int(size)).from_address(int(address))
    return np.frombuffer(there, dtype=np.uint8)


if COMPILES:
    _link_by_name()

    @extending.intrinsic  # type: ignore[untyped-decorator]
    def _borrowed(typingctx: Any, array: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            view = context.make_array(signature.args[0])(context, builder, args[0])
            view.meminfo = view.meminfo.type(None)
            view.parent = view.parent.type(None)
            return view._getvalue()

        return array(array), generate

    @extending.intrinsic  # type: ignore[untyped-decorator]
    def _pointer(typingctx: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(types.voidptr))

        return types.voidptr(address), generate

    @extending.register_jitable  # type: ignore[untyped-decorator]
    def _memory_at(address: Any, size: Any) -> Any:
        return numba.carray(_pointer(address), size, np.uint8)


# An array that its caller keeps alive: without an owner, compiled callees need not count references to
# it, which costs more (an atomic increment and decrement in every call) than most instructions do.
borrowed = _borrowed

# The array of bytes at an address of this process, which its owner keeps alive.
memory_at = _memory_at


def without_overflow_warnings(function: F) -> F:
    """Make NumPy scalars wrap silently where the code runs uncompiled, as machine integers do."""
    if COMPILES:
        return function
    silent: F = np.errstate(over="ignore")(function)
    return silent


# --- the cache ----------------------------------------------------------------------------------


@contextlib.contextmanager
def _cache_dir(module: str) -> Iterator[None]:
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(folder(module))
    try:
        yield
    finally:
        numba.config.CACHE_DIR = before


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
        path = _source(name)
        if path is not None:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:20]


@cache
def _environment() -> bytes:
    digest = hashlib.sha256()
    config = numba.config
    parts = (
        sys.version,
        numba.__version__,
        np.__version__,
        llvmlite.__version__,
        config.BOUNDSCHECK,
        config.OPT,
        config.CPU_NAME or llvmlite.binding.get_host_cpu_name(),
        config.CPU_FEATURES,
        config.DEBUGINFO_DEFAULT,
    )
    digest.update(repr(parts).encode())
    isa = isa_dir()
    for path in sorted(isa.rglob("*")):
        if path.is_file():
            digest.update(f"\0{path.relative_to(isa).as_posix()}\0".encode())
            digest.update(path.read_bytes())
    return digest.digest()


_IMPORT = re.compile(
    rf"^[ \t]*(?:from[ \t]+({PACKAGE}[\w.]*)[ \t]+import[ \t]+(\([^)]*\)|[^\n]*)"
    rf"|import[ \t]+({PACKAGE}[^\n]*))",
    re.MULTILINE,
)


@cache
def imports(module: str) -> frozenset[str]:
    """The modules of the package that the source of `module` imports by name."""
    path = _source(module)
    if path is None:
        return frozenset()
    found: set[str] = set()
    for source, names, plain in _IMPORT.findall(path.read_text(encoding="utf-8")):
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
def _source(module: str) -> Path | None:
    if module.split(".")[0] != PACKAGE:
        loaded = getattr(sys.modules.get(module), "__file__", None)
        return Path(loaded) if loaded else None
    stem = Path(__file__).resolve().parent.joinpath(*module.split(".")[1:])
    for path in (stem.with_suffix(".py"), stem / "__init__.py"):
        if path.is_file():
            return path
    return None


# --- looking at what was declared and compiled ----------------------------------------------------


def callees(name: str) -> frozenset[str]:
    """The declared functions that function `name` calls by a global name or `module.name`."""
    called: set[str] = set()
    by_object = {id(function): other for other, function in functions.items()}
    function = python_function(functions[name])
    owner: Any = None  # the module that was loaded last: only its attributes can be functions,
    for step in dis.get_instructions(function):  # a record's field may have the name of one
        loaded = None
        if step.opname == "LOAD_GLOBAL":
            loaded = function.__globals__.get(step.argval)
        elif owner is not None and step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            loaded = vars(owner).get(step.argval)
        owner = loaded if isinstance(loaded, type(sys)) else None
        if id(loaded) in by_object:
            called.add(by_object[id(loaded)])
    return frozenset(called)


def python_function(function: Any) -> Any:
    """The Python function below a dispatcher (itself where nothing is compiled)."""
    return getattr(function, "py_func", function)


def source_lines(name: str) -> int:
    """Lines of source in the body of one declared function."""
    code = python_function(functions[name]).__code__
    return len({line for _, _, line in code.co_lines() if line is not None})


def signatures(name: str) -> list[tuple[Any, ...]]:
    """The argument types for which function `name` exists in this process."""
    return list(functions[name].overloads) if COMPILES else []


def cached_signatures(name: str) -> list[tuple[Any, ...]]:
    """The argument types for which compiled code of function `name` waits on the disk."""
    if not COMPILES:
        return []
    index = functions[name]._cache._cache_file._load_index()  # no public way to ask
    return sorted({key[0] for key in index}, key=str)


def is_cached(name: str) -> bool:
    """Whether compiled code of function `name` waits on the disk."""
    return not COMPILES or bool(cached_signatures(name))


def compile_for(name: str, spec: list[Any]) -> float:
    """Compile function `name`, or load it, for the argument types `spec`; seconds it took."""
    start = time.perf_counter()
    functions[name].compile(tuple(decode_type(item) for item in spec))
    return time.perf_counter() - start


class _TypingOnly(compiler.CompilerBase):  # type: ignore[misc]
    """Everything up to the types of every value, and no machine code."""

    def define_pipelines(self) -> list[Any]:
        """Called by numba."""
        manager = compiler_machinery.PassManager("typing only")
        builder = compiler.DefaultPassBuilder
        manager.passes.extend(builder.define_untyped_pipeline(self.state).passes)
        manager.passes.extend(builder.define_typed_pipeline(self.state).passes)
        manager.add_pass(typed_passes.AnnotateTypes, "annotate types")
        manager.add_pass(_KeepTypes, "keep the types")
        manager.finalize()
        return [manager]


@compiler_machinery.register_pass(mutates_CFG=False, analysis_only=True)
class _KeepTypes(compiler_machinery.AnalysisPass):  # type: ignore[misc]
    _name = "vpmu_emu_keep_types"

    def __init__(self) -> None:
        super().__init__()

    def run_pass(self, state: Any) -> bool:
        state.cr = state.type_annotation
        return False


def typed_ir(name: str, kinds: tuple[Any, ...]) -> Any:
    """The typed IR (`blocks`, `typemap`, `calltypes`) of function `name`.

    What a compiled function remembers is not enough: loaded from the disk it is text only.
    """
    function = functions[name]
    target = function.targetdescr
    flags = compiler.Flags()
    target.options.parse_as_flags(flags, function.targetoptions)
    return compiler.compile_extra(
        target.typing_context,
        target.target_context,
        function.py_func,
        kinds,
        None,
        flags,
        {},
        pipeline_class=_TypingOnly,
    )


# --- argument types as JSON -----------------------------------------------------------------------

_SCALARS = {
    str(t): t for t in (types.int64, types.uint64, types.boolean, types.uint8, types.int32)
}


def _records() -> dict[Any, str]:
    # Record types are written by the name of the dtype that declares them, "module:NAME"; the machine's
    # own module before one that imports it.
    found: dict[Any, str] = {}
    modules = [name for name in sys.modules if re.fullmatch(rf"{PACKAGE}\..*\bstate", name)]
    for module in sorted(modules, key=lambda name: (".machine." not in name, name)):
        for name, value in vars(sys.modules[module]).items():
            if isinstance(value, np.dtype) and value.fields:
                found.setdefault(numba.from_dtype(value), f"{module}:{name}")
    return found


@cache
def _record(name: str) -> Any:
    module, _, dtype = name.partition(":")
    try:
        return numba.from_dtype(getattr(importlib.import_module(module), dtype))
    except (ImportError, AttributeError):
        raise ValueError(f"no type is called {name!r}") from None


def encode_type(kind: Any) -> Any:
    """JSON form of an argument type; ValueError if it has none."""
    if str(kind) in _SCALARS:
        return str(kind)
    if isinstance(kind, types.Record):
        name = _records().get(kind)
        if name is not None:
            return name
    elif isinstance(kind, types.NestedArray):
        return ["nested", encode_type(kind.dtype), list(kind.shape)]
    elif isinstance(kind, types.Array):
        flags = [kind.ndim, kind.layout, not kind.mutable, kind.aligned]
        return ["array", encode_type(kind.dtype), flags]
    raise ValueError(f"no name for type {kind}")


def decode_type(spec: Any) -> Any:
    """The argument type that `encode_type` wrote; ValueError if nothing has that name now."""
    if isinstance(spec, str):
        if spec in _SCALARS:
            return _SCALARS[spec]
        return _record(spec)
    what, inner, rest = spec
    if what == "nested":
        return types.NestedArray(decode_type(inner), tuple(rest))
    ndim, layout, readonly, aligned = rest
    return types.Array(decode_type(inner), ndim, layout, readonly=readonly, aligned=aligned)


# --- watching compilation -------------------------------------------------------------------------


class CompileClock(numba_event.Listener):  # type: ignore[misc]
    """Seconds that this process spent in the compiler, and who is being compiled now.

    Args:
        watch: called with the name of every function whose compilation or loading begins.
    """

    def __init__(self, watch: Callable[[str], None] | None = None) -> None:
        self.seconds = 0.0
        self.watch = watch
        self._depth = 0
        self._started = 0.0

    def on_start(self, event: Any) -> None:
        """Called by numba; nested compilations count once."""
        if self._depth == 0:
            self._started = time.perf_counter()
        self._depth += 1
        dispatcher = event.data.get("dispatcher")
        if self.watch is not None and dispatcher is not None:
            function = dispatcher.py_func
            self.watch(f"{function.__module__}:{function.__qualname__}")

    def on_end(self, event: Any) -> None:
        """Called by numba."""
        self._depth -= 1
        if self._depth == 0:
            self.seconds += time.perf_counter() - self._started


@contextlib.contextmanager
def compile_clock(watch: Callable[[str], None] | None = None) -> Iterator[CompileClock]:
    """Measure what the compiler does inside the block."""
    clock = CompileClock(watch)
    if not COMPILES:
        yield clock
        return
    numba_event.register("numba:compile", clock)
    try:
        yield clock
    finally:
        numba_event.unregister("numba:compile", clock)
