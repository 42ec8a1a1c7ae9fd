"""One function over many arguments: in order, over processes, whatever becomes of one of them."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import ROOT
from vpmu_emu.errors import ConfigError, VpmuError
from vpmu_emu.lab.pool import KILLED, Answer, check_jobs, run_all, run_each

pytestmark = pytest.mark.uncompiled


def square(number):
    print("what is printed is no answer")
    return number * number, os.getpid()


def refuse(number):
    if number == 2:
        raise ConfigError("number", "is two", "one")
    return number


def stumble(number):
    return 1 // number


def stumble_long(_number):
    raise KeyError("a\n" * 10_000)


def die(folder, number):
    """Process `number` 1 dies once, 2 always."""
    with (folder / str(number)).open("a") as file:
        file.write(f"{os.getpid()}\n")
    lives = len((folder / str(number)).read_text().splitlines())
    if number == 2 or (number == 1 and lives == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def wait(path, _number):
    with path.open("a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(60)


def unpicklable(_number):
    return lambda: None


def test_results_are_in_order_and_each_process_has_several():
    seen = []
    found = run_all(square, list(range(20)), 2, lambda *told: seen.append(told))
    assert [value for value, _ in found] == [n * n for n in range(20)]
    assert len({number for _, number in found}) <= 2
    assert os.getpid() not in {number for _, number in found}
    assert seen == [(n, 20) for n in range(21)]


def test_nothing_to_do_begins_no_process():
    assert run_all(square, [], 3) == []


def test_arguments_are_taken_as_needed():
    taken = []

    def arguments():
        for n in range(50):
            taken.append(n)
            yield n

    answers = run_each(square, arguments(), 2)
    next(answers)
    assert len(taken) <= 4
    answers.close()


def test_what_the_user_has_to_mend_is_raised_as_it_was():
    with pytest.raises(VpmuError, match=r"number: is two \(allowed: one\)"):
        run_all(refuse, [1, 2, 3], 1)


def test_an_error_of_ours_says_where():
    with pytest.raises(VpmuError, match=r"run 1: ZeroDivisionError: .*\(test_pool.py:\d+\)"):
        run_all(stumble, [1, 0], 1)


def test_an_error_of_ours_is_a_line_and_no_page():
    (answer,) = run_each(stumble_long, [0], 1)
    assert len(answer.error) < 300
    assert len(answer.error.splitlines()) == 1


def test_a_result_that_cannot_be_sent_is_an_answer():
    (answer,) = run_each(unpicklable, [0], 1)
    assert answer.index == 0
    assert "pickle" in answer.error


def test_a_killed_process_costs_only_its_argument_and_that_after_a_second_one(tmp_path):
    answers = sorted(run_each(partial(die, tmp_path), range(5), 2), key=lambda a: a.index)
    assert answers == [
        Answer(0, 0), Answer(1, 1), Answer(2, error=KILLED), Answer(3, 3), Answer(4, 4),
    ]  # fmt: skip
    assert len((tmp_path / "1").read_text().splitlines()) == 2
    assert len((tmp_path / "2").read_text().splitlines()) == 2


PARENT = """
import sys
from functools import partial
from pathlib import Path
from tests.lab.test_pool import wait
from vpmu_emu.lab.pool import run_all
run_all(partial(wait, Path(sys.argv[1])), [0, 1], 2)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_processes_end_with_their_parent(tmp_path, number):
    path = tmp_path / "numbers"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, path], cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not path.exists() or len(path.read_text().splitlines()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    parent.send_signal(number)
    parent.wait(30)
    numbers = [int(line) for line in path.read_text().splitlines()]
    while any(map(_runs, numbers)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _runs(number):
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("jobs", [0, -1, 1.5, True, "2", 100_000])
def test_a_number_of_processes_that_is_none(jobs):
    with pytest.raises(ConfigError, match="is no number of processes"):
        check_jobs(jobs)


def test_all_processors_are_usual():
    assert check_jobs(None) == len(os.sched_getaffinity(0))
