"""One function over many arguments in processes of this machine; what becomes of one costs no other.

A process has one argument at a time, so that it is known whose it was when it is killed: that one is given
to another process, once, and then has the answer `KILLED`. Processes end with the one that began them.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import struct
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, TypeVar

import attrs

from vpmu_emu import process
from vpmu_emu.errors import ConfigError, VpmuError

T = TypeVar("T")
MOST_JOBS = 1024
LONGEST = 200  # characters of an error that is ours
LIVES = 2  # processes that an argument may end
KILLED = "the process that ran it was killed, more than once"


@attrs.frozen
class Answer:
    """What became of one argument.

    Attributes:
        index: its place among the arguments.
        value: what the function returned, None if it did not.
        error: why it did not, in words; "" if it did.
        refused: it raised a VpmuError, which is the user's to mend, and not another error, which is ours.
    """

    index: int
    value: Any = None
    error: str = ""
    refused: bool = False


def cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_jobs(jobs: int | None) -> int:
    """A number of processes; None: one for each processor.

    Raises:
        ConfigError: it is none.
    """
    if jobs is None:
        return cores()
    if isinstance(jobs, bool) or not isinstance(jobs, int) or not 1 <= jobs <= MOST_JOBS:
        raise ConfigError("jobs", f"{jobs!r} is no number of processes", f"1 to {MOST_JOBS}")
    return jobs


def run_all(
    function: Callable[[Any], T],
    arguments: Sequence[Any],
    jobs: int | None = None,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> list[T]:
    """`[function(each) for each in arguments]`, over all processors.

    Args:
        function: can be imported by its name (or is a `functools.partial` of such a one), and depends on
            its argument alone. Compiled code that it needs is built before: processes do not share that.
        arguments: anything that can be pickled.
        jobs: processes; None: one for each processor.
        progress: called with (done, of how many), with 0 first.

    Raises:
        VpmuError: what the function raised for the first argument for which it did, or that the process
            which ran one was killed; all processes are ended then, as by Ctrl-C.
    """
    results: list[Any] = [None] * len(arguments)
    progress(0, len(arguments))
    for done, answer in enumerate(run_each(function, arguments, jobs), 1):
        if answer.error:
            text = answer.error if answer.refused else f"run {answer.index}: {answer.error}"
            raise VpmuError(text)
        results[answer.index] = answer.value
        progress(done, len(arguments))
    return results


def run_each(
    function: Callable[[Any], Any], arguments: Iterable[Any], jobs: int | None = None
) -> Iterator[Answer]:
    """The answers for all arguments in the order in which they come; arguments are taken as needed.

    `function` and `arguments` are as for `run_all`. To close the iterator ends all processes.
    """
    wanted = check_jobs(jobs)
    inbox: SimpleQueue[tuple[_Worker, Answer | None]] = SimpleQueue()
    todo = enumerate(arguments)
    again: list[tuple[int, Any]] = []
    lives: dict[int, int] = {}
    workers: set[_Worker] = set()
    idle: list[_Worker] = []

    def next_one() -> tuple[int, Any] | None:
        return again.pop() if again else next(todo, None)

    try:
        while True:
            while (len(idle) or len(workers) < wanted) and (given := next_one()) is not None:
                if not idle:
                    idle.append(_Worker(function, inbox))
                    workers.add(idle[-1])
                idle.pop().give(given)
            if len(idle) == len(workers):
                return
            worker, answer = _get(inbox)
            if answer is not None:
                worker.given = None
                idle.append(worker)
                yield answer
                continue
            workers.discard(worker)
            worker.close()
            if worker in idle:  # killed while it had nothing to do
                idle.remove(worker)
            elif worker.given is not None:
                index, argument = worker.given
                lives[index] = lives.get(index, LIVES) - 1
                if lives[index]:
                    again.append((index, argument))
                else:
                    yield Answer(index, error=KILLED)
    finally:
        for worker in workers:
            worker.close()


def _get(inbox: SimpleQueue[Any]) -> Any:
    # A wait without an end would not hear Ctrl-C on every system.
    while True:
        try:
            return inbox.get(timeout=1)
        except Empty:
            continue


class _Worker:
    """A process that has at most one argument."""

    def __init__(self, function: Any, inbox: SimpleQueue[Any]) -> None:
        self.given: tuple[int, Any] | None = None
        self.process = process.start("vpmu_emu.lab.pool:work")
        self.inlet: Any = self.process.stdin
        self.outlet: Any = self.process.stdout
        self._inbox = inbox
        self._send(pickle.dumps(function))
        Thread(target=self._read, daemon=True).start()

    def give(self, given: tuple[int, Any]) -> None:
        """Send an argument, with its index."""
        self.given = given
        self._send(pickle.dumps(given))

    def _send(self, data: bytes) -> None:
        with contextlib.suppress(BrokenPipeError, ValueError):  # it is gone, and its reader says so
            self.inlet.write(struct.pack("<Q", len(data)) + data)
            self.inlet.flush()

    def _read(self) -> None:
        for frame in _frames(self.outlet):
            answer = Answer(*pickle.loads(frame))  # noqa: S301  (of a process of ours, over our own pipe)
            self._inbox.put((self, answer))
        self._inbox.put((self, None))

    def close(self) -> None:
        """End the process, whatever it does."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.inlet, self.outlet):
            with contextlib.suppress(BrokenPipeError, ValueError):
                pipe.close()


def _frames(stream: Any) -> Iterator[bytes]:
    """What the other end of a pipe has sent as a whole, until it is gone."""
    while len(head := stream.read(8)) == 8:
        (size,) = struct.unpack("<Q", head)
        data = stream.read(size)
        if len(data) < size:
            return
        yield data


def work() -> None:
    """What such a process does until it is ended."""
    outlet = process.answers()
    # What is sent is unpickled where it is needed: a name that cannot be imported is an answer like others.
    orders = process.orders(lambda: _frames(sys.stdin.buffer))
    function: Any = None
    packed = next(orders)
    for order in orders:
        index, argument = pickle.loads(order)  # noqa: S301  (from the process that began this one)
        try:
            function = function or pickle.loads(packed)  # noqa: S301
            data = pickle.dumps((index, *answered(function, argument)))
        except Exception as error:
            data = pickle.dumps((index, None, told(error), False))
        outlet.write(struct.pack("<Q", len(data)) + data)
        outlet.flush()


def answered(function: Callable[[Any], T], argument: Any) -> tuple[T | None, str, bool]:
    """What a function returns, or why it does not: (value, error, refused) as of an `Answer`."""
    try:
        return function(argument), "", False
    except VpmuError as error:
        return None, str(error), True
    except Exception as error:
        return None, told(error), False


def told(error: Exception) -> str:
    """An error that is no user's in a line, with the place in the source where it arose."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""  # noqa: PTH119
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text if len(text) < LONGEST else text[:LONGEST] + '…'}{place}"
