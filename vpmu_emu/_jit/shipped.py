"""Compiled code that came with the package, as LLVM's bitcode, is finished here for this processor.

Of what the compiler does, most is the same on every machine: finding types, writing LLVM's language,
optimising it. A wheel brings what comes out of that (`vpmu_emu.ship` makes it); machine code is generated
here, by LLVM alone. What was made for something else (another version of numba or LLVM, another platform,
other settings, sources, tables or records), or is damaged, is not used: numba compiles.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from vpmu_emu._jit import native
from vpmu_emu._jit.folders import portable, sources

FILE = Path(__file__).resolve().parents[1] / "_shipped.bitcode"
NONE_CAME = "no compiled code came with this package"
DAMAGED = "the compiled code that came with this package is damaged"


class Function(NamedTuple):
    """One compiled function as it is shipped.

    Attributes:
        symbol: its name in the bitcode.
        arguments, result: an entry's types, as `encode_type` writes them.
        needs: the functions that its bitcode calls and does not contain.
        bitcode: LLVM's, optimised, with no word about a processor.
    """

    symbol: str
    arguments: list[Any]
    result: Any
    needs: list[str]
    bitcode: bytes


def pack(functions: Mapping[str, Function]) -> bytes:
    """What `FILE` has in it: functions by name, and what they were made for."""
    rows = {name: [*made[:-1], len(made.bitcode)] for name, made in functions.items()}
    head = {"made": _circumstances(functions.items()), "functions": rows}
    return native.sealed(head, [made.bitcode for made in functions.values()])


def _circumstances(functions: Iterable[tuple[str, Any]]) -> dict[str, str]:
    """All that functions depend on, here and now; the values are read by people.

    Raises:
        ValueError: there is no record of a name that is among their arguments.
    """
    rows = dict(functions)
    records = {kind for row in rows.values() for kind in row[1] if isinstance(kind, str) and ":" in kind}
    layout = repr([(name, native.dtype_hash(native.named_dtype(name))) for name in sorted(records)])
    made = sources({name.split(":")[0] for name in rows})
    return {
        **portable(),
        "sources": made.hex()[:20],
        "records": hashlib.sha256(layout.encode()).hexdigest()[:20],
    }


# --- using it -------------------------------------------------------------------------------------


@cache
def _opened() -> tuple[dict[str, Function], str]:
    """What can be used, and if nothing can be, why."""
    try:
        data = FILE.read_bytes()
    except FileNotFoundError:
        return {}, NONE_CAME
    except OSError as error:
        return {}, f"{NONE_CAME} that can be read ({error.strerror})"
    try:
        head, at = native.opened(data)
    except (native.UnusableError, ValueError):
        return {}, DAMAGED
    try:
        here = _circumstances(head["functions"].items())
    except ValueError as error:
        return {}, f"the compiled code that came with this package is of other sources: {error}"
    for what, made in head["made"].items():
        if here.get(what) != made:
            return {}, _differs(what, made, here.get(what, ""))
    functions = {}
    for name, (*row, size) in head["functions"].items():
        symbol, arguments, result, needs = row
        functions[name] = Function(symbol, arguments, result, needs, data[at : at + size])
        at += size
    return functions, ""


def _differs(what: str, made: str, here: str) -> str:
    if what == "settings":
        return f"the compiled code that came with this package has other settings ({here or 'none'} here)"
    if what in ("sources", "tables", "records"):
        return f"the compiled code that came with this package is of other {what}"
    return f"the compiled code that came with this package was made with {what} {made}; here is {here}"


def why_not() -> str:
    """Why what came with the package is not used; nothing, if it is."""
    return _opened()[1]


def has(names: Collection[str]) -> bool:
    """Whether all these entries came with the package; not, if there are none."""
    return bool(names) and _opened()[0].keys() >= set(names)


def alone(name: str) -> Any:
    """LLVM's module of a function without those that it names.

    Raises:
        KeyError: it did not come with the package.
    """
    import llvmlite.binding as llvm

    return llvm.parse_bitcode(_opened()[0][name].bitcode)


def symbol(name: str) -> str:
    """The name of a function in bitcode.

    Raises:
        KeyError: it did not come with the package.
    """
    return _opened()[0][name].symbol


def module(*names: str) -> Any:
    """LLVM's module of functions and of all that they call.

    Raises:
        KeyError: not all of that came with the package.
    """
    import llvmlite.binding as llvm

    functions = _opened()[0]
    seen = dict.fromkeys(names)
    todo = list(names)
    while todo:
        for callee in functions[todo.pop()].needs:
            if callee not in seen:
                seen[callee] = None
                todo.append(callee)
    whole, *parts = (llvm.parse_bitcode(functions[each].bitcode) for each in seen)
    for part in parts:
        whole.link_in(part)
    return whole


def load(name: str, path: Path) -> Callable[..., Any] | None:
    """An entry ready to be called, whose file is written; None if it did not come with the package."""
    made = _opened()[0].get(name)
    if made is None:
        return None
    try:
        code = native.target().emit_object(module(name))
        data = native.pack(made.symbol, made.arguments, made.result, [code])
        ready = native.link(data)
    except (KeyError, RuntimeError, native.UnusableError):
        return None
    native.write(path, data)
    return ready
