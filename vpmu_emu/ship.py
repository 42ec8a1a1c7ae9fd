"""Makes the compiled code that a wheel brings: `python -m vpmu_emu.ship FILE [MODE,…]`, by hatch_build.py.

Compiled for no particular processor, in cache folders of its own; from there each function's bitcode is
taken. A second time it compiles what has changed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from vpmu_emu import _jit, build
from vpmu_emu._jit import folders, shipped

CORES = 2  # more than one: the entry that runs several cores is shipped, too


def settings() -> dict[str, str]:
    """The environment for it: this one without what would change the code."""
    ours = {f"NUMBA_{name}" for name in (*folders.SETTINGS, *folders.PROCESSOR, "DISABLE_JIT")}
    kept = {key: value for key, value in os.environ.items() if key not in ours}
    return {**kept, "NUMBA_CPU_NAME": "generic", folders.KEEPS_BITCODE: "1"}


def made(modes: Sequence[str]) -> dict[str, shipped.Function]:
    """Every function that Python may call in these modes, and every one that those name."""
    from vpmu_emu._jit import compiler
    from vpmu_emu.machine.translate.translator import CALLED, STEP, make_parts
    from vpmu_emu.tables.modes import MODES

    def tell(done: int, total: int, name: str) -> None:
        if done == total or done % 50 == 0:
            sys.stderr.write(f"vpmu: compiling for a wheel: {done} of {total} {name}\n")

    build.build(modes, tell)
    for mode in modes:
        build.warm(mode)
        if not MODES[mode].hypervisor:
            build.warm(mode, CORES)
    make_parts(compiles=True)
    return {name: compiler.portable(name) for name in _closed([*_jit.called_entries(), STEP, *CALLED])}


def _closed(entries: Iterable[str]) -> list[str]:
    from vpmu_emu._jit import compiler

    seen = set(entries)
    todo = list(seen)
    while todo:
        for callee in compiler.needs(todo.pop()):
            if callee not in seen:
                seen.add(callee)
                todo.append(callee)
    return sorted(seen)


def main() -> None:
    """Write FILE; status 1 for a mode that there is not."""
    wanted = settings()
    if wanted != dict(os.environ):
        os.execve(sys.executable, [sys.executable, "-m", "vpmu_emu.ship", *sys.argv[1:]], wanted)  # noqa: S606
    path, text = (*sys.argv[1:], ",".join(build.modes()))[:2]
    modes = [mode.strip() for mode in text.split(",")]
    for mode in modes:
        if mode not in build.modes():
            sys.exit(f"vpmu: no mode is named {mode!r} (allowed: {', '.join(build.modes())})")
    Path(path).write_bytes(shipped.pack(made(modes)))


if __name__ == "__main__":
    main()
