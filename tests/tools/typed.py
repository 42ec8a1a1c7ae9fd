"""The walk over the typed IR of compiled code; `python -m tests.tools.typed` records the clean modules.

To type every function again takes a minute. By day only modules that differ from those recorded are
walked; `make laws` walks all of them, and so does the record.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import sys
from pathlib import Path

import numba
from numba.core import ir

from tests.tools.profiles import PROFILE
from vpmu_emu import _jit, build

CLEAN = Path(__file__).with_suffix(".json")
WIDE = {"int64": "signed", "uint64": "unsigned"}
BANNED = {int, float, round, divmod, pow, complex}
HINTS = build.load_signatures()


def faults(typed) -> list[str]:
    """Everything in the typed IR of one function that the rules forbid."""
    found = []

    def side(variable):
        kind = numba.types.unliteral(typed.typemap[variable.name])
        return WIDE.get(str(kind))

    for block in typed.blocks.values():
        for statement in block.body:
            where = f"{Path(statement.loc.filename).name}:{statement.loc.line}"
            if not isinstance(statement, ir.Assign):
                continue
            value = statement.value
            kind = str(typed.typemap.get(statement.target.name, ""))
            if re.search(r"float\d|complex\d", kind) and "Record" not in kind:
                found.append(f"float: {where}: {value} :: {kind}")
            if isinstance(value, (ir.Global, ir.FreeVar)) and value.value in BANNED_IDS:
                found.append(f"banned: {where}: {value.name}()")
            if not isinstance(value, ir.Expr):
                continue
            if value.op in ("binop", "inplace_binop"):
                operands = [value.lhs, value.rhs]
            elif value.op == "call":
                called = typed.typemap[value.func.name]
                if getattr(called, "typing_key", None) not in (min, max):
                    continue
                operands = list(value.args)
            else:
                continue
            kinds = {side(operand) for operand in operands} - {None}
            if len(kinds) == 2:
                found.append(f"mixed: {where}: {value}")
    return found


class _Banned:
    """Membership by identity: a global may be an array, which has no truth value when compared."""

    def __contains__(self, value):
        return any(value is banned for banned in BANNED)


BANNED_IDS = _Banned()


def reachable() -> list[str]:
    build._import(name for names in HINTS["roots"].values() for name in names)
    roots = {name for names in HINTS["roots"].values() for name in names}
    return sorted(build._reachable(name for name in roots if name in _jit.functions))


def module_of(name: str) -> str:
    """The module of a function `module:function`."""
    return name.partition(":")[0]


def digest(module: str) -> str:
    """What a module's text is now."""
    text = Path(str(importlib.import_module(module).__file__)).read_bytes()
    return hashlib.sha256(text).hexdigest()[:16]


def to_walk() -> list[str]:
    """The functions whose types this run looks at."""
    names = reachable()
    if PROFILE in ("ci", "nightly"):
        return names
    clean = json.loads(CLEAN.read_text(encoding="utf-8"))
    return [name for name in names if clean.get(module_of(name)) != digest(module_of(name))]


def main() -> int:
    """Walk everything; record the modules if they are clean."""
    build.build(build.modes())
    names = reachable()
    typed = (_jit.typed_ir(name, one) for name in names for one in _jit.cached_signatures(name))
    walked = [faults(one) for one in typed]
    wrong = [line for found in walked for line in found]
    print(*wrong, f"{len(walked)} functions, {len(wrong)} faults", sep="\n")
    if not wrong:
        clean = {module: digest(module) for module in sorted({module_of(name) for name in names})}
        CLEAN.write_text(json.dumps(clean, indent=0) + "\n", encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
