"""How every compiled function of the package is declared; alone imports numba, and only to compile.

Python calls few of them, the entries. The machine code of an entry and of all that it calls lies in one
file (`native`), in a folder whose name says what it depends on (`folders`). What is not there yet,
`compiler` makes.
"""

from __future__ import annotations

import contextlib
import ctypes
import dis
import functools
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from vpmu_emu._jit import native
from vpmu_emu._jit.folders import cache_base, closure, fingerprint, folder, safe_path

F = TypeVar("F", bound=Callable[..., Any])


def _number(setting: str) -> int:
    try:
        return int(os.environ.get(setting, ""))
    except ValueError:
        return 0


COMPILES = not _number("NUMBA_DISABLE_JIT")  # without: plain Python functions
BOUNDS_CHECKED = bool(_number("NUMBA_BOUNDSCHECK"))

# Every declared function: "module:name" -> Compiled (or, uncompiled, the Python function).
functions: dict[str, Any] = {}
inlined: set[str] = set()  # the names of those whose machine code is put into every caller
alone: set[str] = set()  # and of those that every caller names, however small
entries: set[str] = set()  # the names that Python may call

# What needs numba, imported when it is asked for.
_COMPILER = ("cached_signatures", "compile_for", "decode_type", "encode_type", "typed_ir")

__all__ = [
    "BOUNDS_CHECKED",
    "COMPILES",
    "Compiled",
    "cache_base",
    "closure",
    "compile_clock",
    "fingerprint",
    "folder",
    "functions",
    "jit",
    "memory_at",
    "mul_high",
    "safe_path",
]


def __getattr__(name: str) -> Any:
    if name not in _COMPILER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vpmu_emu._jit import compiler

    return getattr(compiler, name)


class Compiled:
    """A declared function: compiled code calls it by name, Python calls it if it is an entry.

    Attributes:
        name: "module:name".
        py_func: the Python function.
        inline: whether its machine code is put into every caller.
    """

    def __init__(self, function: Callable[..., Any], name: str, *, entry: bool, inline: bool) -> None:
        functools.update_wrapper(self, function)
        self.name = name
        self.py_func = function
        self.entry = entry
        self.inline = inline
        self._dispatcher: Any = None
        self._native: Callable[..., Any] | None = None

    def __call__(self, *args: Any) -> Any:
        """Call the machine code, which is loaded, or compiled, if this is the first time.

        Raises:
            TypeError: arguments of other types than the first call's, or no entry.
        """
        if self._native is None:
            self._native = self._ready(args)
        return self._native(*args)

    def _ready(self, args: tuple[Any, ...]) -> Callable[..., Any]:
        if not self.entry:
            raise TypeError(f"{self.name} is called by compiled code only")
        if self.finish():
            assert self._native is not None
            return self._native
        from vpmu_emu._jit import compiler

        made: Callable[..., Any] = compiler.entry(self, args, self._file)
        return made

    @property
    def _file(self) -> Path:
        return folder(self.__module__) / f"{self.py_func.__name__}.code"

    def finish(self) -> bool:
        """Have it ready to be called without the compiler; False if only that can make it so."""
        if self._native is None:
            self._native = native.load(self._file)
        if self._native is None:
            from vpmu_emu._jit import shipped

            if shipped.has([self.name]):
                with _counted(self.name):
                    self._native = shipped.load(self.name, self._file)
        return self._native is not None

    @property
    def is_ready(self) -> bool:
        """Whether this process has called it."""
        return self._native is not None

    @property
    def dispatcher(self) -> Any:
        """numba's object for it, made when somebody asks."""
        if self._dispatcher is None:
            from vpmu_emu._jit import compiler

            self._dispatcher = compiler.dispatcher(self)
        return self._dispatcher

    @property
    def _numba_type_(self) -> Any:
        # Asked for by numba where compiled code names this function.
        return self.dispatcher._numba_type_

    @property
    def overloads(self) -> dict[Any, Any]:
        """What numba compiled or loaded in this process, by argument types."""
        return {} if self._dispatcher is None else dict(self._dispatcher.overloads)


def jit(*, entry: bool = False, inline: bool = False, apart: bool = False) -> Callable[[F], F]:
    """Declare a compiled function.

    Args:
        entry: Python calls it.
        inline: LLVM puts its body into every caller.
        apart: none of them contains it, though it is small: it is called seldom, from many places.
    """

    def decorate(function: F) -> F:
        name = f"{function.__module__}:{function.__qualname__}"
        declared: Any = function
        if COMPILES:
            declared = Compiled(function, name, entry=entry, inline=inline)
        functions[name] = declared
        if inline:
            inlined.add(name)
        if apart:
            alone.add(name)
        if entry:
            entries.add(name)
        made: F = declared
        return made

    return decorate


def memory_at(address: Any, size: Any) -> Any:
    """The array of `size` bytes at an address of this process, which its owner keeps alive."""
    there: Any = (ctypes.c_uint8 * int(size)).from_address(int(address))
    return np.frombuffer(there, dtype=np.uint8)


def mul_high(x: Any, y: Any) -> Any:
    """High 64 bits of the unsigned product of two uint64."""
    return np.uint64(int(x) * int(y) >> 64)


def run_region(address: Any, core: Any, M: Any, E: Any) -> Any:
    """Call the native code of a region, which machine/translate made, at an address of this process."""
    raise NotImplementedError("there is native code only where there is a compiler")


def without_overflow_warnings(function: F) -> F:
    """Make NumPy scalars wrap silently where the code runs uncompiled, as machine integers do."""
    if COMPILES:
        return function
    silent: F = np.errstate(over="ignore")(function)
    return silent


# --- looking at what was declared and compiled ----------------------------------------------------

SMALL = 12  # lines


@cache
def stands_alone(name: str) -> bool:
    """Whether callers name this function instead of containing it."""
    return name in alone or (name not in inlined and source_lines(name) > SMALL)


@cache
def callees(name: str) -> frozenset[str]:
    """The declared functions that function `name` calls by a global name or `module.name`."""
    called: set[str] = set()
    function = python_function(functions[name])
    owner: Any = None  # the module that was loaded last: only its attributes can be functions,
    for step in dis.get_instructions(function):  # a record's field may have the name of one
        loaded = None
        if step.opname == "LOAD_GLOBAL":
            loaded = function.__globals__.get(step.argval)
        elif owner is not None and step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            loaded = vars(owner).get(step.argval)
        owner = loaded if isinstance(loaded, type(sys)) else None
        declared = f"{getattr(loaded, '__module__', '')}:{getattr(loaded, '__qualname__', '')}"
        if loaded is not None and functions.get(declared) is loaded:
            called.add(declared)
    return frozenset(called)


def python_function(function: Any) -> Any:
    """The Python function below a dispatcher (itself where nothing is compiled)."""
    return getattr(function, "py_func", function)


def source_lines(name: str) -> int:
    """Lines of source in the body of one declared function."""
    code = python_function(functions[name]).__code__
    return len({line for _, _, line in code.co_lines() if line is not None})


def signatures(name: str) -> list[tuple[Any, ...]]:
    """The argument types for which numba has function `name` in this process."""
    return list(functions[name].overloads) if COMPILES else []


def called_entries() -> list[str]:
    """The entries that this process has called."""
    return [name for name in sorted(entries) if COMPILES and functions[name].is_ready]


def is_cached(name: str) -> bool:
    """Whether compiled code of function `name` waits on the disk."""
    if not COMPILES:
        return True
    from vpmu_emu._jit import compiler

    return bool(compiler.cached_signatures(name))


# --- watching compilation -------------------------------------------------------------------------

clocks: list[CompileClock] = []


class CompileClock:
    """Seconds that this process spent in the compiler, and who is being compiled now.

    Args:
        watch: called with the name of every function whose compilation or loading begins.
    """

    def __init__(self, watch: Callable[[str], None] | None = None) -> None:
        self.seconds = 0.0
        self.watch = watch
        self._depth = 0
        self._started = 0.0

    def begin(self, name: str) -> None:
        """Told by the compiler; nested compilations count once."""
        if self._depth == 0:
            self._started = time.perf_counter()
        self._depth += 1
        if self.watch is not None and name:
            self.watch(name)

    def end(self) -> None:
        """Told by the compiler."""
        self._depth -= 1
        if self._depth == 0:
            self.seconds += time.perf_counter() - self._started


@contextlib.contextmanager
def _counted(name: str) -> Iterator[None]:
    for clock in clocks:
        clock.begin(name)
    try:
        yield
    finally:
        for clock in clocks:
            clock.end()


@contextlib.contextmanager
def compile_clock(watch: Callable[[str], None] | None = None) -> Iterator[CompileClock]:
    """Measure what the compiler does inside the block."""
    clock = CompileClock(watch)
    clocks.append(clock)
    try:
        yield clock
    finally:
        clocks.remove(clock)
