"""Old beside new in one run: what a change of structure may not cost, against any revision of git.

    python benchmarks/old_and_new.py [REVISION] [--builds N] [--rounds N] [--new REVISION]

Both trees are copied side by side, each with its own cache of compiled code, and take turns, so that
whatever else the machine does meets both. Everything is CPU time, the best of some turns: of `vpmu build`,
of `vpmu run` with compiled code and a guest that ends at once, and per VM exit of a guest that does nothing
else. Status 1 if a limit does not hold.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# The tree before this file came is the old one, if none is named.
FIRST = "vpmu_emu/linux/kvm/x86.py"

SMALL = """
        .intel_syntax noprefix
_start: xor eax, eax
        out 0xf4, al
"""
EXITS = """
        .intel_syntax noprefix
_start: mov r8d, {count}
loop:   {body}
        dec r8d
        jnz loop
        xor eax, eax
        out 0xf4, al
"""
COUNT = 2_000_000
# Exits that both vPMUs have: one that no vPMU hears of, and a selector.
KINDS = {
    "CPUID": "xor eax, eax; cpuid",
    "WRMSR selector": "mov ecx, 0x186; xor eax, eax; xor edx, edx; wrmsr",
}
MODES = ("emulated", "passthrough")
# (what is measured, the most or the least that new / old may be)
BUILD, START, RATE = ("build", 1.05), ("start", 1.0), ("exits", 0.97)
NOISE = 0.02  # of the start: mostly imports and page faults


class Tree:
    """A copy of the sources that runs by itself."""

    def __init__(self, name: str, folder: Path, revision: str):
        self.name, self.folder = name, folder / name
        self.cache = folder / f"{name}.cache"
        self.folder.mkdir()
        archive = ["git", "archive", "--format=tar", revision, "vpmu_emu", "isa", "guests"]
        with subprocess.Popen(archive, cwd=ROOT, stdout=subprocess.PIPE) as made:
            subprocess.run(["tar", "x", "-C", self.folder], stdin=made.stdout, check=True)
        assert made.returncode == 0, f"git archive {revision}"
        where = "import vpmu_emu; print(vpmu_emu.__file__)"
        assert Path(self("-c", where).strip()).is_relative_to(self.folder), "another vpmu_emu is imported"

    def __call__(self, *words: str) -> str:
        """Standard output of its Python, with its own code."""
        env = {**os.environ, "VPMU_CACHE_DIR": str(self.cache), "PYTHONPATH": str(self.folder)}
        env.pop("PYTHONDONTWRITEBYTECODE", None)  # else every start compiles every module
        return subprocess.run(
            [sys.executable, *words], cwd=self.folder, env=env, check=True, text=True,
            capture_output=True,
        ).stdout  # fmt: skip

    def build(self) -> float:
        """CPU seconds to compile all modes."""
        shutil.rmtree(self.cache, ignore_errors=True)
        return self.cpu("build")

    def cpu(self, *words: str) -> float:
        """CPU seconds of one command, its children included."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        self("-m", "vpmu_emu", *words)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def before_the_loop() -> str:
    """The revision before FIRST came."""
    found = subprocess.run(
        ["git", "log", "--diff-filter=A", "--format=%H", "--", FIRST],
        cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE,
    ).stdout.split()  # fmt: skip
    return f"{found[-1]}^"



def compare(old: Tree, new: Tree, folder: Path, builds: int, rounds: int) -> list[tuple[str, float, float]]:
    """(what, old, new) of everything that is measured."""
    rows = []
    times: dict[Tree, list[float]] = {old: [], new: []}
    for k in range(builds):
        for tree in (old, new) if k % 2 == 0 else (new, old):
            times[tree].append(tree.build())
            print(f"{tree.name}: built in {times[tree][-1]:.1f} CPU s", file=sys.stderr)
    rows.append(("build", min(times[old]), min(times[new])))

    def turns(text: str, mode: str) -> tuple[float, float]:
        """The least CPU seconds of a guest in both trees."""
        guest = folder / "guest.s"
        guest.write_text(text)
        found: dict[Tree, list[float]] = {old: [], new: []}
        for tree in (old, new):
            tree.cpu("run", str(guest), "--vpmu", mode)  # links what it needs
        for k in range(rounds):
            for tree in (old, new) if k % 2 == 0 else (new, old):
                found[tree].append(tree.cpu("run", str(guest), "--vpmu", mode))
        return min(found[old]), min(found[new])

    for mode in MODES:
        start = turns(SMALL, mode)
        rows.append((f"start {mode}", *start))
        for kind, body in KINDS.items():
            took = turns(EXITS.format(body=body, count=COUNT), mode)
            before, after = (COUNT / (whole - empty) for whole, empty in zip(took, start, strict=True))
            rows.append((f"exits {mode} {kind}", before, after))
    return rows


def verdict(what: str, old: float, new: float) -> tuple[float, str, bool]:
    """new / old, the limit in words, and whether it holds."""
    ratio = new / old
    if what == BUILD[0]:
        return ratio, f"<= {BUILD[1]}", ratio <= BUILD[1]
    if what.startswith(START[0]):
        return ratio, f"<= {START[1]} within {NOISE:.0%}", ratio <= START[1] + NOISE
    return ratio, f">= {RATE[1]}", ratio >= RATE[1]


def main() -> int:
    """Status 0 if all limits hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("revision", nargs="?", help=f"the old tree; default: before {FIRST} came")
    parser.add_argument("--new", default="HEAD", help="the new one; default: %(default)s")
    parser.add_argument("--builds", type=int, default=2, help="builds of each; the best counts")
    parser.add_argument("--rounds", type=int, default=9, help="runs of each; the best counts")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="old_and_new.") as name:
        folder = Path(name)
        old = Tree("old", folder, asked.revision or before_the_loop())
        new = Tree("new", folder, asked.new)
        rows = compare(old, new, folder, asked.builds, asked.rounds)
    held = True
    print(f"{'':34}{'old':>12}{'new':>12}{'new/old':>9}  limit")
    for what, before, after in rows:
        ratio, limit, holds = verdict(what, before, after)
        held &= holds
        one, other = (f"{v:,.0f}/s" if "exits" in what else f"{v:.3f} s" for v in (before, after))
        print(f"{what:34}{one:>12}{other:>12}{ratio:9.3f}  {limit}{'' if holds else '  DOES NOT HOLD'}")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
