"""Native code of LLVM IR that calls compiled functions: one of them is put into it, the others are linked.

What that needs of the compiled functions (bitcode of the one, object code of all) is a file beside theirs,
so that numba is not imported. Optimising and generating code leave Python's lock.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import attrs

from vpmu_emu._jit import native


@attrs.frozen
class Parts:
    """What regions are made with.

    Attributes:
        symbols: of the functions that a region may call, by "module:name".
        bitcode: the function that is put into its callers.
        addresses: of all others in this process, by symbol.
    """

    symbols: dict[str, str]
    bitcode: bytes
    addresses: dict[str, int]


def pack(
    symbols: dict[str, str], externals: list[str], bitcode: bytes, objects: list[bytes]
) -> bytes:
    """The parts as bytes: `objects` together define the `externals` that the bitcode and regions call."""
    head = json.dumps([symbols, externals, len(bitcode), [len(code) for code in objects]])
    body = head.encode() + b"\n" + bitcode + b"".join(objects)
    return hashlib.sha256(body).digest() + body


def pieces(symbols: dict[str, str], module: Any, objects: list[bytes]) -> bytes:
    """The parts as bytes, of the functions' symbols by name and the module that `apart` made."""
    called = {each.name for each in module.functions if each.is_declaration}
    externals = {name for name in called if not name.startswith("llvm.")}
    externals |= {
        symbol for symbol in symbols.values() if not any(symbol in name for name in _arms(module))
    }
    return pack(symbols, sorted(externals), module.as_bitcode(), objects)


def _arms(module: Any) -> list[str]:
    return [each.name for each in module.functions if not each.is_declaration]


def link_parts(data: bytes) -> Parts:
    """What `pack` made into bytes, in this process.

    Raises:
        UnusableError: the bytes are damaged, or something is missing.
    """
    import llvmlite.binding as llvm

    if hashlib.sha256(memoryview(data)[32:]).digest() != data[:32]:
        raise native.UnusableError("damaged")
    at = data.index(b"\n", 32) + 1
    symbols, externals, size, sizes = json.loads(data[32:at])
    bitcode = data[at : at + size]
    at += size
    library = llvm.JITLibraryBuilder().add_current_process()
    for symbol in externals:
        library.export_symbol(symbol)
    for size in sizes:
        library.add_object_img(data[at : at + size])
        at += size
    linked = native.linked(library, "parts")
    return Parts(symbols, bitcode, {symbol: linked[symbol] for symbol in externals})


def apart(text: str, symbol: str, arms: Iterable[int]) -> Any:
    """The module with function `symbol` once for each of `arms` as its last argument but one.

    Each is named `arm_symbol`, has the others of its arguments, and is put into its callers. To find an arm
    among a hundred once is cheaper than whenever it is used.
    """
    import llvmlite.binding as llvm

    made = llvm.parse_assembly(text)
    kinds = [str(kind) for kind in made.get_function(symbol).global_value_type.elements][1:]
    wrappers = []
    for arm in arms:
        given = [f"{kind} %a{k}" for k, kind in enumerate(kinds)]
        passed = [*given[:-2], f"{kinds[-2]} {arm}", given[-1]]
        taken = ", ".join([*given[:-2], given[-1]])
        wrappers.append(f'define i32 @"{arm_symbol(symbol, arm)}"({taken}) alwaysinline {{')
        wrappers.append(f'  %r = call i32 @"{symbol}"({", ".join(passed)})\n  ret i32 %r\n}}')
    declared = f'declare i32 @"{symbol}"({", ".join(kinds)})'
    module = llvm.parse_assembly("\n".join([declared, *wrappers]))
    module.link_in(made)
    for each in module.functions:
        if each.is_declaration and not each.name.startswith("llvm."):
            each.add_function_attribute("cold")  # what is left of a common case: out of its way
    _run(module, native.target(), FIRST)
    return module


def arm_symbol(symbol: str, arm: int) -> str:
    """The name of an arm's own function."""
    return f"{symbol}.{arm}"


FIRST = (
    "always_inliner",
    "global_dead_code_eliminate",
    "sccp",
    "simplify_cfg",
    "sroa",
    "instruction_combine",
    "simplify_cfg",
)
# A tenth of the time of LLVM's own sequence, and no worse code.
PASSES = (
    "always_inliner", "global_dead_code_eliminate", "sroa", "instruction_combine", "simplify_cfg",
    "jump_threading", "instruction_combine", "simplify_cfg", "dead_store_elimination", "new_gvn",
    "instruction_combine", "simplify_cfg",
)  # fmt: skip


def _run(module: Any, machine: Any, passes: tuple[str, ...]) -> None:
    import llvmlite.binding as llvm

    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=2))
    manager = llvm.create_new_module_pass_manager()
    for name in passes:
        getattr(manager, f"add_{name}_pass")()
    manager.run(module, builder)


def compile_region(parts: Parts, text: str, name: str) -> bytes:
    """Object code of IR text, which defines function `name`."""
    import llvmlite.binding as llvm

    module = llvm.parse_assembly(text)
    module.link_in(llvm.parse_bitcode(parts.bitcode))
    for each in (*module.functions, *module.global_variables):
        if not each.is_declaration and each.name != name:
            each.linkage = "internal"
    machine = native.target()
    _run(module, machine, PASSES)
    return bytes(machine.emit_object(module))


def link_region(parts: Parts, code: bytes, name: str) -> int:
    """The address in this process of function `name` in object code.

    Raises:
        UnusableError: the code is damaged, or calls something that there is not.
    """
    import llvmlite.binding as llvm

    library = llvm.JITLibraryBuilder().add_current_process().export_symbol(name)
    for symbol, address in parts.addresses.items():
        library.import_symbol(symbol, address)
    library.add_object_img(code)
    return int(native.linked(library, name)[name])
