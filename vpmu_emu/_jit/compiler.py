"""The only importer of numba: compiles what `jit` declared, and tells about types.

Imported when something is not on the disk, or when somebody asks about types.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from vpmu_emu._jit import (
    Compiled,
    callees,
    clocks,
    functions,
    memory_at,
    mul_high,
    native,
    region,
    run_region,
    shipped,
    stands_alone,
)
from vpmu_emu._jit.folders import KEEPS_BITCODE, PACKAGE, folder, safe_imports

with safe_imports():
    import llvmlite.binding
    import numba
    from llvmlite import ir
    from numba.core import (
        bytecode,
        cgutils,
        codegen,
        compiler,
        compiler_machinery,
        typed_passes,
        types,
    )
    from numba.core import event as numba_event
    from numba.core.typing import templates
    from numba.np import arrayobj

numba.config.DISABLE_JIT = 0  # who asked for no compiler through the environment is not here


# Passes for what compiled code here does not have: `with`, closures, inlined overloads, `literally` and
# `literal_unroll`, raised values, arrays as operands, parallel loops. After each of them numba looks at the
# life of every variable anew; together they are a tenth of a build.
NEEDLESS = frozenset(
    ["WithLifting", "InlineClosureLikes", "RewriteSemanticConstants", "DeadBranchPrune"]
    + ["RewriteDynamicRaises", "MakeFunctionToJitFunction", "InlineInlinables", "FindLiterallyCalls"]
    + ["LiteralUnroll", "LiteralPropagationSubPipelinePass", "InlineOverloads", "NopythonRewrites"]
    + ["NoPythonSupportedFeatureValidation", "DumpParforDiagnostics"]
)


class _FewPasses(compiler.CompilerBase):  # type: ignore[misc]
    """numba's own passes but the needless."""

    def define_pipelines(self) -> list[Any]:
        """Called by numba."""
        manager = compiler_machinery.PassManager(PACKAGE)
        for made, text in compiler.DefaultPassBuilder.define_nopython_pipeline(self.state).passes:
            if made.__name__ not in NEEDLESS:
                manager.add_pass(made, text)
        manager.finalize()
        return [manager]


def dispatcher(function: Compiled) -> Any:
    """numba's own object for a declared function."""
    with _cache_dir(function.__module__):
        made = numba.njit(
            cache=True,
            nogil=True,
            error_model="numpy",
            no_cpython_wrapper=True,
            no_cfunc_wrapper=True,
            forceinline=function.inline,
            pipeline_class=_FewPasses,
            _nrt=False,  # every array is its caller's: nobody counts references
        )(function.py_func)
    _one_signature(made)
    _compile_once(made, function.name)
    return made


@contextlib.contextmanager
def _cache_dir(module: str) -> Iterator[None]:
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(folder(module))
    try:
        yield
    finally:
        numba.config.CACHE_DIR = before


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


def needs(name: str) -> Iterator[str]:
    """The functions that the code of function `name` calls and does not contain."""
    for callee in callees(name):
        if stands_alone(callee):
            yield callee
        else:
            yield from needs(callee)


_signature: dict[str, tuple[Any, ...]] = {}  # of functions that are on the disk: read once


def _first_signature(name: str) -> tuple[Any, ...] | None:
    if name not in _signature:
        found = cached_signatures(name)
        if not found:
            return None
        _signature[name] = found[0]
    return _signature[name]


def _compile_once(dispatcher: Any, name: str) -> None:
    add = dispatcher.add_overload
    load = dispatcher._cache.load_overload

    def add_overload(result: Any) -> None:
        result.library.vpmu_stands_alone = stands_alone(name)
        add(result)

    def load_overload(sig: Any, target: Any) -> Any:
        for callee in needs(name):
            if not functions[callee].overloads:
                kinds = _first_signature(callee)
                if kinds is None:
                    return None  # not all of it is on the disk: compile
                functions[callee].dispatcher.compile(kinds)
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


def _keep_objects() -> None:
    library: Any = codegen.CPUCodeLibrary
    serialize = library.serialize_using_object_code
    load = library._set_compiled_object
    nothing = llvmlite.binding.parse_assembly("").as_bitcode()

    def serialize_using_object_code(self: Any) -> Any:
        if getattr(self, "vpmu_stands_alone", False):
            # Bitcode is for callers that contain the function, and for wheels.
            self._ensure_finalized()
            bitcode = self._final_module.as_bitcode() if KEEPS_BITCODE in os.environ else nothing
            state = self.name, "object", (self._get_compiled_object(), bitcode)
        else:
            state = serialize(self)
        # numba forgets object code once it is linked; the files of entries are made of it.
        self.vpmu_object = state[2][0]
        return state

    def set_compiled_object(self: Any, code: bytes) -> None:
        self.vpmu_object = code
        load(self, code)

    library.serialize_using_object_code = serialize_using_object_code
    library._set_compiled_object = set_compiled_object


def _type_memory() -> None:
    def typed(typingctx: Any, address: Any, size: Any) -> Any:
        kind = types.Array(types.uint8, 1, "C")

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            view = context.make_array(kind)(context, builder)
            data = builder.inttoptr(args[0], context.get_data_type(types.uint8).as_pointer())
            one = context.get_constant(types.intp, 1)
            arrayobj.populate_array(view, data, [args[1]], [one], one, None)
            return view._getvalue()

        return kind(types.uint64, types.intp), generate

    template = templates.make_intrinsic_template(
        memory_at, typed, "memory_at", prefer_literal=False, kwargs={}
    )
    templates.infer(template)
    templates.infer_global(memory_at, types.Function(template))


def _type_regions() -> None:
    def typed(typingctx: Any, address: Any, core: Any, M: Any, E: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            place, core, memory, E = args
            view = context.make_array(M)(context, builder, memory)
            data = builder.bitcast(view.data, ir.IntType(8).as_pointer())
            core, E = (builder.bitcast(record, data.type) for record in (core, E))
            kind = ir.FunctionType(ir.IntType(64), [data.type, data.type, ir.IntType(64), data.type])
            function = builder.inttoptr(place, kind.as_pointer())
            return builder.call(function, [core, data, view.nitems, E])

        return types.int64(types.uint64, core, M, E), generate

    template = templates.make_intrinsic_template(
        run_region, typed, "run_region", prefer_literal=False, kwargs={}
    )
    templates.infer(template)
    templates.infer_global(run_region, types.Function(template))


def _type_products() -> None:
    def typed(typingctx: Any, x: Any, y: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            wide = ir.IntType(128)
            product = builder.mul(*(builder.zext(each, wide) for each in args))
            return builder.trunc(builder.lshr(product, wide(64)), ir.IntType(64))

        return types.uint64(types.uint64, types.uint64), generate

    template = templates.make_intrinsic_template(
        mul_high, typed, "mul_high", prefer_literal=False, kwargs={}
    )
    templates.infer(template)
    templates.infer_global(mul_high, types.Function(template))


def _drop_annotations() -> None:
    # numba renders the types of every variable as text for the disk, three fifths of what it writes: nobody
    # reads that.
    result: Any = compiler.CompileResult
    reduce = result._reduce

    def reduce_without(self: Any) -> Any:
        return reduce(self._replace(type_annotation=""))

    result._reduce = reduce_without


def _name_records_once() -> None:
    # numba writes down the types of a function's arguments before each of its passes, and looks types up by
    # their text. A record of hundreds of fields has a long one, which never changes: an eighth of a build.
    record_type: Any = types.Record
    spell = record_type.__repr__
    texts: dict[int, tuple[Any, str]] = {}  # by identity; the record stays, so that nothing else gets it

    def text(record: Any) -> str:
        known = texts.get(id(record))
        if known is None:
            known = texts[id(record)] = record, spell(record)
        return known[1]

    record_type.__repr__ = text


def _count_from_the_front() -> None:
    # Python's x[-1] is the last element, and four instructions of every access. No index here is negative:
    # a build with bounds checks refuses one.
    def fix_integer_index(context: Any, builder: Any, kind: Any, index: Any, size: Any) -> Any:
        return context.cast(builder, index, kind, types.intp if kind.signed else types.uintp)

    arrayobj.fix_integer_index = fix_integer_index


def _leave_slots_as_they_are() -> None:
    # numba writes zeros to every slot of a function's frame as it begins, those for results of calls that
    # it will not make among them: that is for reference counts, which there are none of.
    def alloca_once(
        builder: Any, kind: Any, size: Any = None, name: str = "", zfill: bool = False
    ) -> Any:
        if isinstance(size, int):
            size = cgutils.ir.Constant(cgutils.intp_t, size)
        with cgutils.debuginfo.suspend_emission(builder), builder.goto_entry_block():
            slot = builder.alloca(kind, size=size, name=name)
        if zfill:
            builder.store(slot.type.pointee(None), slot)
        return slot

    cgutils.alloca_once = alloca_once


def _resolve_scalars_once() -> None:
    # `a + b` of the same two types is looked for among the same templates each time it is met.
    function: Any = types.Function
    resolve = function.get_call_type
    known: dict[Any, Any] = {}

    def get_call_type(self: Any, context: Any, args: Any, kws: Any) -> Any:
        if kws or not all(isinstance(_plain(kind), types.Number | types.Boolean) for kind in args):
            return resolve(self, context, args, kws)
        key = self, context, args
        found = known.get(key)
        if found is None:
            found = known[key] = resolve(self, context, args, kws)
        return found

    function.get_call_type = get_call_type


_link_by_name()
_keep_objects()
_drop_annotations()
_name_records_once()
_count_from_the_front()
_leave_slots_as_they_are()
_resolve_scalars_once()
_type_memory()
_type_products()
_type_regions()


# --- entries --------------------------------------------------------------------------------------


def entry(function: Compiled, args: tuple[Any, ...], path: Path) -> Any:
    """Compile or load what Python calls, write the file of it, and give what can be called.

    Raises:
        ValueError: an argument or the result has a type without a name.
    """
    kinds = tuple(map(numba.typeof, args))
    function.dispatcher.compile(kinds)
    made = function.dispatcher.overloads[kinds]
    symbol = made.fndesc.llvm_func_name
    arguments = [encode_type(kind) for kind in kinds]
    result = encode_type(made.signature.return_type)
    try:
        data = native.pack(symbol, arguments, result, list(_objects(function.name)))
        ready = native.link(data)  # proves that nothing is missing
    except native.UnusableError:
        address = made.library.codegen._engine.get_function_address(symbol)
        return native.caller(address, arguments, result)
    native.write(path, data)
    return ready


def _objects(*names: str) -> Iterator[bytes]:
    seen = set(names)
    todo = list(names)
    while todo:
        at = todo.pop()
        for made in functions[at].overloads.values():
            code = getattr(made.library, "vpmu_object", None)
            if code is None:
                raise native.UnusableError(f"no object code of {at}")
            yield code
        for callee in needs(at):
            if callee not in seen:
                seen.add(callee)
                todo.append(callee)


def portable(name: str) -> shipped.Function:
    """A function on the disk as it is shipped; it was compiled where `KEEPS_BITCODE` is set."""
    (kinds,) = cached_signatures(name)
    dispatcher = functions[name].dispatcher
    dispatcher.compile(kinds)
    made = dispatcher.overloads[kinds]
    symbol = made.fndesc.llvm_func_name
    library = made.library
    module = (library._shared_module or library._final_module).clone()  # loaded, or compiled just now
    module.get_function(symbol).linkage = "external"  # small ones may be left out where nobody calls them
    arguments, result = [], None
    if functions[name].entry:
        arguments, result = [encode_type(kind) for kind in kinds], encode_type(made.signature.return_type)
    return shipped.Function(symbol, arguments, result, sorted(set(needs(name))), module.as_bitcode())


# --- parts of regions -----------------------------------------------------------------------------


def parts(
    inside: str,
    arms: Sequence[int],
    called: Mapping[str, Sequence[Any]],
    kinds: Sequence[Any],
    path: Path,
) -> bytes:
    """Compile or load what regions are made of, and write it to `path`.

    Args:
        inside: the function that is put into its callers, with argument types `kinds`. Its last argument
            but one is among `arms`: for each there is a function of its own.
        called: the argument types of the others, by name.
    """
    made = {}
    for name, spec in {**called, inside: kinds}.items():
        types_ = tuple(decode_type(item) for item in spec)
        functions[name].dispatcher.compile(types_)
        made[name] = functions[name].overloads[types_]
    symbols = {name: result.fndesc.llvm_func_name for name, result in made.items()}
    module = region.apart(str(made[inside].library._get_module_for_linking()), symbols[inside], arms)
    data = region.pieces(symbols, module, list(_objects(*made)))
    native.write(path, data)
    return data


# --- what was compiled ----------------------------------------------------------------------------


def cached_signatures(name: str) -> list[tuple[Any, ...]]:
    """The argument types for which compiled code of function `name` waits on the disk."""
    index = functions[name].dispatcher._cache._cache_file._load_index()  # no public way to ask
    return sorted({key[0] for key in index}, key=str)


def compile_for(name: str, spec: list[Any]) -> float:
    """Compile function `name`, or load it, for the argument types `spec`; seconds it took."""
    start = time.perf_counter()
    functions[name].dispatcher.compile(tuple(decode_type(item) for item in spec))
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
    function = getattr(function, "dispatcher", function)
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
    str(t): t
    for t in (types.int64, types.uint64, types.boolean, types.uint8, types.int32, types.none)
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


@cache
def _record_type(name: str) -> Any:
    return numba.from_dtype(native.named_dtype(name))


def decode_type(spec: Any) -> Any:
    """The argument type that `encode_type` wrote; ValueError if nothing has that name now."""
    if isinstance(spec, str):
        if spec in _SCALARS:
            return _SCALARS[spec]
        return _record_type(spec)
    what, inner, rest = spec
    if what == "nested":
        return types.NestedArray(decode_type(inner), tuple(rest))
    ndim, layout, readonly, aligned = rest
    return types.Array(decode_type(inner), ndim, layout, readonly=readonly, aligned=aligned)


# --- watching compilation -------------------------------------------------------------------------


class _Listener(numba_event.Listener):  # type: ignore[misc]
    def on_start(self, event: Any) -> None:
        made = event.data.get("dispatcher")
        function = getattr(made, "py_func", None)
        name = f"{function.__module__}:{function.__qualname__}" if function else ""
        for clock in clocks:
            clock.begin(name)

    def on_end(self, event: Any) -> None:
        for clock in clocks:
            clock.end()


numba_event.register("numba:compile", _Listener())
