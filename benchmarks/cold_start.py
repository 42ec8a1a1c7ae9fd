"""What the first run of an installed wheel costs, and the next ones: CPU seconds by mode, all children in.

    python benchmarks/cold_start.py [--modes MODE,…] [--rounds N] [--without]

Builds the wheel (its time and size are shown), installs it into a folder of its own and runs a small guest
with an empty cache folder, then again: the first and the median of N. With --without the wheel brings no
compiled code, and a first run compiles.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VPMU = "import sys; from vpmu_emu.__main__ import start; sys.argv[0] = 'vpmu'; start()"


def cpu(command: list[str], **settings: str) -> float:
    """CPU seconds, user and system, of a command and its children."""
    unset = ("NUMBA_", "VPMU_", "PYTHON")
    env = {key: value for key, value in os.environ.items() if not key.startswith(unset)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, env=env | settings, cwd="/")
    if done.returncode:
        sys.exit(done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--modes", default="bare,emulated,passthrough,mediated")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--without", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        own = {"VPMU_CACHE_DIR": str(place / "made")} | ({"VPMU_WHEEL_MODES": ""} if asked.without else {})
        start = time.perf_counter()
        build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", scratch, str(ROOT)]
        spent = cpu(build, **own)
        (wheel,) = place.glob("*.whl")
        print(f"wheel: {wheel.stat().st_size / 1e6:.1f} MB, {spent:.1f} s of CPU to build, "
              f"{time.perf_counter() - start:.0f} s by the clock")  # fmt: skip
        site = f"{scratch}/site"
        cpu([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, str(wheel)])
        guest = f"{site}/vpmu_emu/_guests/lessons/01_count.s"
        print(f"{'mode':12} {'first':>7} {'warm':>7}  (s of CPU; warm: median of {asked.rounds})")
        for mode in asked.modes.split(","):
            settings = {"PYTHONPATH": site, "VPMU_CACHE_DIR": f"{scratch}/cache-{mode}"}
            run = [sys.executable, "-c", VPMU, "run", guest, "--vpmu", mode]
            first = cpu(run, **settings)
            warm = statistics.median(cpu(run, **settings) for _ in range(asked.rounds))
            print(f"{mode:12} {first:7.2f} {warm:7.2f}", flush=True)


if __name__ == "__main__":
    main()
