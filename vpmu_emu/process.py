"""A process of this very package: imported from where it lies, and gone when the one that began it is."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any, TypeVar

T = TypeVar("T")

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
