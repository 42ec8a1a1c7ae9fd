"""Compiled code has no floats, never mixes signed with unsigned, and one signature a function."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numba
import numpy as np
import pytest

from tests.conftest import ROOT
from tests.tools.typed import HINTS, faults, to_walk
from vpmu_emu import _jit, build
from vpmu_emu._jit import native

compiled = pytest.mark.skipif(not _jit.COMPILES, reason="nothing is compiled in this run")

WIDE = {"int64": "signed", "uint64": "unsigned"}
BANNED = {int, float, round, divmod, pow, complex}


@compiled
@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("return x + 1", "mixed"),
        ("return x > y", "mixed"),
        ("return min(x, y)", "mixed"),
        ("x += y\n    return x", "mixed"),
        ("return y / 2", "float"),
        ("return int(x)", "banned"),
        ("return y if y > 3 else x", "float"),
        ("return (x >> x) * x + x", None),
        ("return min((y + 1) * 3 // 2, 7)", None),
    ],
)
def test_the_walk_sees(body, fault):
    scope = {"__name__": "walked"}
    exec(f"def f(x, y):\n    {body}\n", scope)
    _jit.functions["walked:f"] = numba.njit(scope["f"])
    try:
        found = faults(_jit.typed_ir("walked:f", (numba.uint64, numba.int64)))
    finally:
        del _jit.functions["walked:f"]
    if fault is None:
        assert found == []
    else:
        assert any(line.startswith(fault) for line in found), found


# --- all of it ----------------------------------------------------------------------------------



@pytest.fixture(scope="session")
def built():
    """Every mode compiled on the disk."""
    build.build([mode for mode in build.modes() if not build.is_built(mode)])


@compiled
@pytest.mark.parametrize("mode", build.modes())
def test_the_memory_of_types_has_every_mode(mode):
    assert HINTS["roots"].get(mode), "run `vpmu build --record`"


@compiled
def test_what_is_left_out_of_a_compilation_are_passes_of_numba():
    from numba.core import compiler

    from vpmu_emu._jit.compiler import NEEDLESS

    state = SimpleNamespace(func_ir=None, flags=compiler.DEFAULT_FLAGS)
    passes = compiler.DefaultPassBuilder.define_nopython_pipeline(state).passes
    assert {made.__name__ for made, _ in passes} > NEEDLESS


@compiled
@pytest.mark.parametrize("name", to_walk() if _jit.COMPILES else [])
def test_clean_types(name, built):
    for one in _jit.cached_signatures(name):
        assert faults(_jit.typed_ir(name, one)) == []


@compiled
@pytest.mark.parametrize("mode", build.modes())
def test_a_warm_run_does_without_the_compiler(mode, built):
    # Each entry that the mode calls lies in one file, with everything that it calls.
    code = (
        "import sys, vpmu_emu\n"
        f"result = vpmu_emu.run({str(ROOT / 'guests/lessons/01_count.s')!r}, vpmu={mode!r})\n"
        "print(result.to_json()['stop'], 'numba' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split()[1] == "False", out.stdout


@compiled
def test_one_signature_and_it_is_remembered(built):
    """By day of modules that have changed, as the walk over types: to read all of them takes a while."""
    missing, several, wrong = [], [], []
    for name in to_walk():
        kinds = [[_jit.encode_type(kind) for kind in one] for one in _jit.cached_signatures(name)]
        if not kinds:
            missing.append(name)
        elif len(kinds) == 1:
            if HINTS["functions"].get(name) != kinds[0]:
                wrong.append(name)
        elif name not in _jit.inlined:
            several.append((name, kinds))
    assert not several
    # Callees behind branches that constants prune are never compiled; there are few.
    assert len(missing) <= 12, missing
    # A wrong memory costs two compilations instead of none.
    assert not wrong, "run `vpmu build --record`"


# --- the cache ----------------------------------------------------------------------------------

TOY = {
    "vpmu_emu/__init__.py": "",
    "vpmu_emu/consts.py": "import numpy as np\nK = np.uint64(31)\n",
    "vpmu_emu/helper.py": """
        from vpmu_emu._jit import jit
        from vpmu_emu.consts import (  # brackets, and a comment
            K as LIMIT,
        )

        @jit()
        def helper(a, i):
            value = a[i]
            # Long enough to be named by its caller instead of being a part of it.
            value += LIMIT
            value -= LIMIT
            value += LIMIT
            value -= LIMIT
            value += LIMIT
            value -= LIMIT
            value += LIMIT
            value -= LIMIT
            value += LIMIT
            value -= LIMIT
            value += LIMIT
            return value
        """,
    "vpmu_emu/engine.py": """
        import numpy as np
        from vpmu_emu import helper as below
        from vpmu_emu._jit import jit

        @jit(entry=True)
        def run(a, i):
            return below.helper(a, i)
        """,
    "isa/table.toml": "x = 1\n",
    "main.py": """
        import json, sys
        import numpy as np
        from vpmu_emu import _jit, engine
        with _jit.compile_clock() as clock:
            try:
                value = int(engine.run(np.arange(4, dtype=np.uint64), int(sys.argv[1])))
            except IndexError:
                value = "bounds"
        light = "numba" not in sys.modules
        graph = sorted(_jit.callees("vpmu_emu.engine:run"))
        print(json.dumps([value, light, clock.seconds > 0, graph]))
        """,
}


@pytest.fixture
def toy(tmp_path):
    """A package of the same name with four small modules; call it to run its entry on index `i`."""
    for name, text in TOY.items():
        path = tmp_path / "src" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    package = Path(_jit.__file__).parent
    below = tmp_path / "src" / "vpmu_emu"
    shutil.copytree(package, below / "_jit", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("data.py", "errors.py"):
        shutil.copy(package.parent / name, below)

    def run(index=0, **settings):
        env = {k: v for k, v in os.environ.items() if not k.startswith(("NUMBA_", "VPMU_"))}
        env |= {"VPMU_CACHE_DIR": str(tmp_path / "cache"), **settings}
        done = subprocess.run(
            [sys.executable, "main.py", str(index)],
            cwd=tmp_path / "src", env=env, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return json.loads(done.stdout)

    run.src = tmp_path / "src"
    run.cache = tmp_path / "cache"
    return run


@compiled
@pytest.mark.slow
def test_cache_follows_every_file_and_setting(toy):
    graph = ["vpmu_emu.helper:helper"]
    assert toy() == [31, False, True, graph]
    assert toy() == [31, True, False, graph]  # a second process compiles nothing
    (toy.src / "vpmu_emu/consts.py").write_text("import numpy as np\nK = np.uint64(92)\n")
    assert toy() == [92, False, True, graph]  # two imports away
    (toy.src / "isa/table.toml").write_text("x = 2\n")
    assert toy()[1:3] == [False, True]
    # A warm cache must not drop the checks that were asked for.
    assert toy(7, NUMBA_BOUNDSCHECK="1") == ["bounds", False, True, graph]
    assert toy(7, NUMBA_BOUNDSCHECK="1") == ["bounds", True, False, graph]
    assert toy(-1, NUMBA_BOUNDSCHECK="1")[0] == "bounds"  # not the last one
    assert toy(1, NUMBA_DISABLE_JIT="1") == [93, True, False, graph]


@compiled
@pytest.mark.slow
def test_memory_is_reached_by_its_address(toy):
    (toy.src / "vpmu_emu/engine.py").write_text(
        "import numpy as np\n"
        "from vpmu_emu._jit import jit, memory_at\n"
        "@jit(entry=True)\n"
        "def run(a, i):\n"
        "    memory_at(a[i], a[i + 1])[a[i + 1] - np.uint64(1)] += 7\n"
        "    return a[i + 1]\n"
    )
    (toy.src / "main.py").write_text(
        "import json, sys\n"
        "import numpy as np\n"
        "from vpmu_emu import _jit, engine\n"
        "there = np.arange(6, dtype=np.uint8)\n"
        "size = engine.run(np.array([0, there.ctypes.data, 6], dtype=np.uint64), 1)\n"
        "print(json.dumps([int(size), 'numba' in sys.modules, there.tolist()]))\n"
    )
    assert toy() == [6, True, [0, 1, 2, 3, 4, 12]]
    assert toy() == [6, False, [0, 1, 2, 3, 4, 12]]
    assert toy(NUMBA_DISABLE_JIT="1") == [6, False, [0, 1, 2, 3, 4, 12]]


@compiled
@pytest.mark.slow
@pytest.mark.laws
def test_a_bad_file_of_an_entry_is_written_anew(toy):
    fresh = [31, False, True, ["vpmu_emu.helper:helper"]]
    again = [31, False, False, fresh[3]]  # numba has the functions still: nothing is compiled
    assert toy() == fresh
    (path,) = toy.cache.glob("vpmu_emu.engine/*/run.code")
    good = path.read_bytes()
    symbol, arguments, result, objects = native.unpack(good)
    middle = len(good) // 2
    bad = {
        "empty": b"",
        "cut": good[:-1],
        "a bit": good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :],
        "a function is missing": native.pack(symbol, arguments, result, objects[:1]),
        "its own is missing": native.pack(symbol, arguments, result, objects[1:]),
        "no object code": native.pack(symbol, arguments, result, [b"text", *objects]),
    }
    for what, data in bad.items():
        path.write_bytes(data)
        assert toy() == again, what
        assert path.read_bytes() == good, what
        assert toy() == [31, True, False, fresh[3]], what
    main = toy.src / "main.py"
    unlinked = "def link(data): raise _jit.native.UnusableError\n_jit.native.link = link\n"
    main.write_text(main.read_text().replace("with _jit", f"{unlinked}with _jit"))
    assert toy() == again  # called where numba has put it
    path.unlink()
    path.mkdir()  # and where no file can be: the compiler, each time
    assert toy() == again
    assert toy() == again


@compiled
def test_entries_are_called_with_what_they_take(built):
    from vpmu_emu.linux.state import SYSTEM
    from vpmu_emu.machine import engine
    from vpmu_emu.machine.state import N_CTR

    found = np.zeros(N_CTR, dtype=np.uint64)
    core = np.zeros(1, dtype=SYSTEM).view(np.recarray)[0].cores[0]
    assert engine.read_counters(core, found) is None
    for wrong in ((found, found), (core, core), (core, found.astype(np.int64)), (core, [0] * N_CTR)):
        with pytest.raises(TypeError, match="compiled code takes"):
            engine.read_counters(*wrong)
    with pytest.raises(ValueError, match="zip"):
        engine.read_counters(core)
    with pytest.raises(TypeError, match="called by compiled code only"):
        _jit.functions[next(name for name in _jit.functions if name not in _jit.entries)]()


@compiled
@pytest.mark.slow
def test_unused_folders_are_pruned(toy):
    toy()
    (old,) = (toy.cache / "vpmu_emu.engine").iterdir()
    os.utime(old, (0, 0))
    (toy.cache / ".pruned").unlink()
    (toy.src / "isa/table.toml").write_text("x = 3\n")
    toy()
    assert not old.exists()
    assert len(list((toy.cache / "vpmu_emu.engine").iterdir())) == 1


@pytest.mark.uncompiled
def test_closure_reaches_what_a_module_uses():
    reached = _jit.closure("vpmu_emu.machine.state")
    assert {"vpmu_emu.machine.state", "vpmu_emu.tables.msrs", "vpmu_emu.data"} <= reached
    assert not any(name.startswith(("vpmu_emu.asm", "vpmu_emu.cli")) for name in reached)
