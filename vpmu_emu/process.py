"""Processes of this very package: imported from where it lies, and gone when the one that began them is."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any, TypeVar

from vpmu_emu.data import guests_dir, isa_dir

T = TypeVar("T")
# What only shows, and changes no result.
_SHOWS = (
    "__main__.py", "cli.py", "report.py", "bench.py", "bench_guest.py", "api.py", "explanation.py", "debug",
    "traces",
)  # fmt: skip

# No module is found by the folder that the process is started in.
_START = """\
import importlib, importlib.util, pathlib, sys
root, call, *sys.path[:] = sys.argv[1:]
init = pathlib.Path(root, "__init__.py")
spec = importlib.util.spec_from_file_location("vpmu_emu", init, submodule_search_locations=[root])
package = sys.modules["vpmu_emu"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
module, name = call.split(":")
getattr(importlib.import_module(module), name)()
"""


@cache
def sources() -> str:
    """Hash of all that the result of a run depends on beside its program and its options, 16 hex digits."""
    package = Path(__file__).resolve().parent
    files = {path.relative_to(package).as_posix(): path for path in package.rglob("*.py")}
    files = {name: path for name, path in files.items() if name.split("/")[0] not in _SHOWS}
    for folder in (isa_dir(), guests_dir() / "host", guests_dir() / "include"):
        files |= {f"{folder.name}/{p.relative_to(folder).as_posix()}": p for p in folder.rglob("*.*")}
    digest = hashlib.blake2b(digest_size=8)
    for name, path in sorted(files.items()):
        if path.is_file():
            digest.update(f"\0{name}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def start(call: str, *, text: bool = False) -> subprocess.Popen[Any]:
    """Begin a process that calls `module:function`, with pipes to its input and from its output."""
    from vpmu_emu import _jit

    base = _jit.cache_base()
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    root = str(Path(__file__).resolve().parent)
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _START, root, call, *_jit.safe_path()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=text,
        env={"OPENBLAS_NUM_THREADS": "1", **env, "VPMU_CACHE_DIR": str(base)},
        cwd=base,
        process_group=0,  # Ctrl-C is the parent's
    )


def answers() -> IO[bytes]:
    """In such a process: where answers go. Whatever is printed does not mix with them."""
    found = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return found


def orders(messages: Callable[[], Iterator[T]]) -> Iterator[T]:
    """In such a process: what its parent sends, read while the last order is still being carried out."""
    queue: SimpleQueue[T] = SimpleQueue()

    def listen() -> None:
        for message in messages():
            queue.put(message)
        os._exit(0)  # the parent is gone: nobody waits for what is being done

    threading.Thread(target=listen, daemon=True).start()
    while True:
        yield queue.get()
