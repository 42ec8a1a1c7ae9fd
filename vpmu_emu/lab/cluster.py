"""The same as lab/pool.py on a Dask cluster, whose workers are this very package (extra `dask`)."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from vpmu_emu import __version__, process
from vpmu_emu._jit.native import dtype_hash
from vpmu_emu.errors import ConfigError, VpmuError
from vpmu_emu.lab.pool import KILLED, Answer, answered
from vpmu_emu.numerals import shown

SECONDS = 5  # until somebody must have answered
_ONE = threading.Lock()  # a worker may have threads, and code is compiled, or loaded, once for a process
_ADDRESS = re.compile(r"((tcp|tls|ws|wss|ucx)://)?[^\s/]+:\d{1,5}")
_SUCH = "such as tcp://127.0.0.1:8786"
AHEAD = 3  # arguments that wait on the cluster, for each that runs


def package() -> tuple[str, str, str]:
    """What this package is: its version, the hash of its sources, the hash of the record's dtype."""
    from vpmu_emu.linux.state import SYSTEM

    return __version__, process.sources(), dtype_hash(SYSTEM)


def _answered(own: Sequence[str], function: Callable[[Any], Any], argument: Any) -> Any:
    # A worker that came later has not been asked who it is.
    if tuple(own) != package():
        return None, _other(package(), own), None
    with _ONE:
        return answered(function, argument)


def _other(found: Sequence[str], own: Sequence[str]) -> str:
    names = ("vpmu_emu", "sources", "record")
    had, have = (" ".join(f"{n} {text[:8]}" for n, text in zip(names, each)) for each in (found, own))
    return f"a worker has {had}, and this is {have}"


def _build(modes: Sequence[str]) -> None:
    from vpmu_emu import build

    build.prepare(modes)


class Cluster:
    """A connection to a Dask scheduler; a context.

    Raises:
        VpmuError: nobody answers at `address`, there is no worker, or one has another package.
    """

    def __init__(self, address: str) -> None:
        try:
            from distributed import Client
        except ImportError:
            raise VpmuError(
                "--dask needs Dask, which is not installed: pip install 'vpmu-emu[dask]'"
            ) from None
        self.address = address
        if not _ADDRESS.fullmatch(address):
            raise ConfigError("dask", f"{shown(address)} is no address of a scheduler", _SUCH)
        self._levels = _quiet()
        try:
            self._client = Client(address, timeout=SECONDS, set_as_default=False, name="vpmu-sweep")
        except (OSError, ValueError):
            self._loud()
            what = f"no scheduler answers at {address} within {SECONDS} seconds"
            raise ConfigError("dask", what, _SUCH) from None

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._client.close(timeout=SECONDS)
        except (OSError, RuntimeError):
            pass  # it had gone already
        finally:
            self._loud()

    def _loud(self) -> None:
        for logger, level in self._levels.items():
            logger.setLevel(level)

    def _gone(self) -> VpmuError:
        return VpmuError(f"dask: the scheduler at {self.address} has gone; what was made is kept")

    def prepare(self, modes: Sequence[str]) -> None:
        """Every worker is this very package, and has the compiled code of these modes.

        Raises:
            VpmuError: one is not, or there is none.
        """
        try:
            self._client.wait_for_workers(1, timeout=SECONDS)
        except OSError:
            raise VpmuError(f"dask: the scheduler at {self.address} has no worker") from None
        own = package()
        for worker, found in self._ask(package).items():
            if tuple(found) != own:
                raise VpmuError(f"dask: {worker}: {_other(found, own)}")
        # One of each machine: code is on the disk for all others.
        machines = {_machine(worker): worker for worker in self._workers()}
        self._ask(partial(_build, tuple(modes)), list(machines.values()))

    def _ask(self, function: Callable[[], Any], workers: list[str] | None = None) -> dict[str, Any]:
        try:
            found: dict[str, Any] = self._client.run(function, workers=workers, on_error="return")
        except OSError:
            raise self._gone() from None
        for worker, value in found.items():
            if isinstance(value, BaseException):
                told = f"{type(value).__name__}: {value}"
                raise VpmuError(f"dask: {worker} does not have this package of vpmu_emu ({told})")
        return found

    def _workers(self) -> list[str]:
        return list(self._client.nthreads())

    def run_each(
        self, function: Callable[[Any], Any], arguments: Iterable[Any]
    ) -> Iterator[Answer]:
        """As `pool.run_each`; a worker that goes takes nothing with it.

        Raises:
            VpmuError: the scheduler has gone, or a worker with another package has come.
        """
        from distributed import CancelledError

        try:
            yield from self._run_each(function, arguments)
        except (OSError, CancelledError):
            raise self._gone() from None

    def _run_each(
        self, function: Callable[[Any], Any], arguments: Iterable[Any]
    ) -> Iterator[Answer]:
        from distributed import KilledWorker, as_completed

        call = partial(_answered, package(), function)
        todo = enumerate(arguments)
        places: dict[Any, int] = {}
        coming = as_completed(loop=self._client.loop)

        def submit() -> None:
            wanted = AHEAD * max(1, sum(self._client.nthreads().values()))
            while len(places) < wanted and (given := next(todo, None)) is not None:
                future = self._client.submit(call, given[1], pure=False)
                places[future.key] = given[0]
                coming.add(future)

        submit()
        while places:
            future = next(coming)
            index = places.pop(future.key)
            if future.status in ("pending", "lost"):
                # It was done, and the worker that had the answer went before anybody fetched it.
                places[future.key] = index
                coming.add(future)
                continue
            if future.status == "error" and isinstance(future.exception(), KilledWorker):
                answer = Answer(index, error=KILLED)
            elif future.status == "error":
                raise VpmuError(f"dask: {future.exception()}")
            elif future.status == "finished":
                value, error, refused = future.result()
                if refused is None:
                    raise VpmuError(f"dask: {error}")
                answer = Answer(index, value, error, refused)
            else:
                raise self._gone()
            submit()
            yield answer


def _quiet() -> dict[logging.Logger, int]:
    """Silence what Dask says about connections, which what becomes of them tells; the levels before."""
    names = [n for n in logging.root.manager.loggerDict if n.split(".")[0] in ("distributed", "tornado")]
    loggers = [logging.getLogger(name) for name in (*names, "asyncio")]
    before = {logger: logger.level for logger in loggers}
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    return before


def _machine(worker: str) -> str:
    return worker.rpartition("/")[2].rpartition(":")[0]
