"""Calls machine code by its address; with what it needs it fits in one file, loaded without numba.

To load a function from numba's own cache one imports numba, rebuilds the types of every function below
it and reads each from files of its own: two seconds for four hundred of them. A file here is an entry
with the object code of everything that it calls, ready to link. A file that is missing, damaged or
incomplete is no error: the compiler is asked instead, and writes it anew.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib
import json
import os
import pickle
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from vpmu_emu._jit.folders import processor

# numba's calling convention: a status is returned; places for the result and for the description of an
# exception come first; an array is an owner (twice), two sizes, the address, shape and strides.
OK, NONE = 0, -2
SCALARS: dict[str, Any] = {
    "int64": ctypes.c_int64,
    "uint64": ctypes.c_uint64,
    "int32": ctypes.c_int32,
    "uint8": ctypes.c_uint8,
    "boolean": ctypes.c_uint8,
    "none": ctypes.c_void_p,
}


class UnusableError(Exception):
    """Object code that cannot be linked; the message says why."""


class _ExceptionInfo(ctypes.Structure):
    _fields_ = (("pickled", ctypes.c_void_p), ("size", ctypes.c_int32))


# --- the file -------------------------------------------------------------------------------------


def sealed(head: Any, parts: Sequence[bytes]) -> bytes:
    """A head that JSON can write, and bytes: as one file that shows whether it is whole."""
    body = b"".join((json.dumps(head).encode(), b"\n", *parts))
    return hashlib.sha256(body).digest() + body


def opened(data: bytes) -> tuple[Any, int]:
    """The head of what `sealed` made, and where its parts begin.

    Raises:
        UnusableError: the bytes are not all that were written.
    """
    if hashlib.sha256(memoryview(data)[32:]).digest() != data[:32]:
        raise UnusableError("damaged")
    at = data.index(b"\n", 32) + 1
    return json.loads(data[32:at]), at


def pack(symbol: str, arguments: Sequence[Any], result: Any, objects: Sequence[bytes]) -> bytes:
    """An entry as bytes.

    Args:
        symbol: its name in the object code.
        arguments, result: its types, as `encode_type` writes them.
        objects: the object code of the entry and of all that it calls.
    """
    return sealed([symbol, list(arguments), result, [len(code) for code in objects]], objects)


def unpack(data: bytes) -> tuple[str, list[Any], Any, list[bytes]]:
    """What `pack` was given.

    Raises:
        UnusableError: the bytes are not all that were written.
    """
    (symbol, arguments, result, sizes), at = opened(data)
    objects = []
    for size in sizes:
        objects.append(data[at : at + size])
        at += size
    return symbol, arguments, result, objects


def write(path: Path, data: bytes) -> None:
    """Put a file in its place at once; silently not, where nothing can be written."""
    part = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink()  # half a file, of a full disk


def load(path: Path) -> Callable[..., Any] | None:
    """The entry in a file, ready to be called; None if the file cannot be used."""
    try:
        return link(path.read_bytes())
    except (OSError, UnusableError):
        return None


# --- linking --------------------------------------------------------------------------------------

_linked: list[Any] = []  # never given back: callers hold addresses


@cache
def target() -> Any:
    """What generates code for the processor of this process, as numba sets it up."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    name, features = processor()
    triple = llvm.get_process_triple()
    reloc = "static" if triple.startswith(("x86", "i386", "i686")) else "default"
    return llvm.Target.from_triple(triple).create_target_machine(
        cpu=name, features=features, opt=3, reloc=reloc, codemodel="jitdefault", jit=True
    )


@cache
def linker() -> Any:
    """LLVM's own, one for the process."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    linker = llvm.create_lljit_compiler(suppress_errors=True)
    linker._owned = True  # by the process: it ends before its code does
    return linker


def link(data: bytes) -> Callable[..., Any]:
    """The entry that `pack` made into bytes, ready to be called.

    Raises:
        UnusableError: the bytes are damaged, or call something that is not among them.
    """
    import llvmlite.binding as llvm

    symbol, arguments, result, objects = unpack(data)
    library = llvm.JITLibraryBuilder().add_current_process().export_symbol(symbol)
    for code in objects:
        library.add_object_img(code)
    linked_ = linked(library, symbol)
    return caller(linked_[symbol], arguments, result)


def linked(library: Any, name: str) -> Any:
    """What a library builder has, in this process for good.

    Raises:
        UnusableError: it calls something that it has not.
    """
    try:
        made = library.link(linker(), f"{len(_linked)}:{name}")
    except RuntimeError as error:
        _linked.append(None)  # its name is taken
        raise UnusableError(str(error)) from None
    made.detach()
    _linked.append(made)
    return made


# --- calling --------------------------------------------------------------------------------------


@cache
def named_dtype(name: str) -> Any:
    """The dtype "module:NAME"; ValueError if there is none."""
    module, _, dtype = name.partition(":")
    try:
        return getattr(importlib.import_module(module), dtype)
    except (ImportError, AttributeError):
        raise ValueError(f"no type is called {name!r}") from None


def dtype_hash(dtype: np.dtype[Any]) -> str:
    """16 hex digits of a dtype: names, types, offsets of all its fields."""
    return hashlib.blake2b(_described(dtype).encode(), digest_size=8).hexdigest()


def _described(dtype: np.dtype[Any]) -> str:
    if dtype.subdtype is not None:
        return f"{dtype.subdtype[1]}x{_described(dtype.subdtype[0])}"
    if dtype.fields is None:
        return dtype.str
    fields = ((name, *dtype.fields[name][:2]) for name in dtype.names or ())
    return "(" + ",".join(f"{name}@{at}:{_described(kind)}" for name, kind, at in fields) + ")"


def _dtype(spec: Any) -> Any:
    if spec in SCALARS:
        return np.dtype("bool" if spec == "boolean" else spec)
    return named_dtype(spec)


def _passing(spec: Any) -> tuple[list[Any], Callable[[Any], tuple[Any, ...]]]:
    """C types of an argument, and the function from a Python value to values of these types."""
    if isinstance(spec, str) and spec in SCALARS:
        return [SCALARS[spec]], lambda value: (int(value),)
    array = not isinstance(spec, str)
    dtype = _dtype(spec[1] if array else spec)
    ndim = spec[2][0] if array else 0
    seen: Any = None

    def check(value: Any) -> Any:
        # Comparing large dtypes takes longer than a call; most calls pass what the last one passed.
        nonlocal seen
        if getattr(value, "dtype", None) is not seen or seen is None:
            if getattr(value, "dtype", None) != dtype:
                raise TypeError(f"compiled code takes {spec} here, not {type(value).__name__}")
            seen = value.dtype
        if value.ndim != ndim:
            raise TypeError(f"compiled code takes {spec} here, not {value.ndim} dimensions")
        return value

    def record(value: Any) -> tuple[Any, ...]:
        return (np.frombuffer(check(value), dtype=np.uint8).ctypes.data,)

    def view(value: Any) -> tuple[Any, ...]:
        owners = (None, None)
        sizes = (check(value).size, value.itemsize)
        return (*owners, *sizes, value.ctypes.data, *value.shape, *value.strides)

    if not array:
        return [ctypes.c_void_p], record
    pointer, word = ctypes.c_void_p, ctypes.c_int64
    return [pointer, pointer, word, word, pointer] + [word] * (2 * ndim), view


def caller(address: int, arguments: Sequence[Any], result: Any) -> Callable[..., Any]:
    """A Python function that calls machine code.

    Args:
        address: where it begins.
        arguments, result: its types, as `encode_type` writes them.
    """
    passing = [_passing(spec) for spec in arguments]
    types = [kind for kinds, _ in passing for kind in kinds]
    function = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *types)(address)
    give = [make for _, make in passing]
    storage = SCALARS[result]

    def call(*values: Any) -> Any:
        place = storage()
        problem = ctypes.POINTER(_ExceptionInfo)()
        flat = [word for make, value in zip(give, values, strict=True) for word in make(value)]
        status = function(ctypes.addressof(place), ctypes.addressof(problem), *flat)
        if status not in (OK, NONE):
            _raise(status, problem)
        return bool(place.value) if result == "boolean" else place.value

    return call


def _raise(status: int, problem: Any) -> None:
    # Only code with bounds checks knows exceptions.
    if status < 0 or not problem:
        raise SystemError(f"compiled code came back with status {status}")
    info = problem.contents
    pickled = ctypes.string_at(info.pickled, info.size)  # part of the machine code itself
    kind, arguments, *_ = pickle.loads(pickled)  # noqa: S301
    raise kind(*(arguments or ()))
