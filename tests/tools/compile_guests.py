"""Compiles the guests that are written in C: `python -m tests.tools.compile_guests [NAME…]`.

What it writes is committed, so that nobody needs a compiler to run them. It is the same wherever it is
made: of what gcc says about itself and its place only its version stays, in a line of the head.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import attrs

from tests.conftest import ROOT

GUESTS = ROOT / "guests"
FLAGS = (
    "-O2", "-mgeneral-regs-only", "-mno-red-zone", "-ffreestanding", "-fno-stack-protector", "-fno-pic",
    "-fno-asynchronous-unwind-tables",
    "-fno-tree-loop-distribute-patterns",  # no calls of memset and memcpy, which would have to be there
    "-fcf-protection=none", "-march=x86-64", "-mtune=generic",  # whatever a distribution has chosen
    "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-S", "-masm=intel",
)  # fmt: skip
WORKLOADS = ("bitboard", "chase", "fio", "hash", "interp", "lz", "match", "matrix", "sort")
# What says where and by what a file was made, and nothing that is assembled.
_NOISE = re.compile(r"^(\t\.(file|ident|section\t\.note\.GNU-stack)\b.*|#.*)\n", re.MULTILINE)
_LOCAL = re.compile(r"(?<![\w.$])\.L(?=\w)")
_HEAD = re.compile(r"\A/\*(.*?)\*/", re.DOTALL)


@attrs.frozen
class Guest:
    """A source in C and the file that gcc makes of it, both as seen from guests/."""

    source: str
    output: str
    program: bool = True  # its head comment and the guest kernel come with it; else it is a part of another
    prefix: str = ""  # of local labels, where another compiled file is part of the same assembly


TABLE = (
    *(Guest(f"c/workloads/{name}.c", f"workloads/{name}.s") for name in WORKLOADS),
    Guest("c/perf_kernel.c", "include/perf_kernel_c.inc", program=False, prefix="k_"),
    Guest("../benchmarks/mixes.c", "../benchmarks/mixes_c.s", program=False),
)


def version() -> str:
    """Of the gcc that is installed: `12.2.0`."""
    command = ["gcc", "-dumpfullversion", "-dumpversion"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def made_by(text: str) -> str | None:
    """The version of gcc that a committed file was made by."""
    found = re.search(r"by gcc (\S+):", text)
    return found[1] if found else None


def head(source: str) -> str:
    """The comment that a C file begins with, as one of assembly; lines `#: …` in it are the guest's."""
    found = _HEAD.match(source)
    if found is None:
        raise ValueError("a guest begins with a comment: what it is, and what must hold")
    lines = [line.strip().removeprefix("*").strip() for line in found[1].strip().split("\n")]
    return "\n".join(line if line.startswith("#:") else f"# {line}".rstrip() for line in lines)


def compiled(guest: Guest) -> str:
    """The text of `guest.output`.

    Raises:
        subprocess.CalledProcessError: gcc does not like the source; it has said why.
    """
    path = GUESTS / guest.source
    command = ["gcc", *FLAGS, "-o", "-", path.name]
    made = subprocess.run(command, capture_output=True, text=True, check=True, cwd=path.parent).stdout
    body = _LOCAL.sub(f".L{guest.prefix}", _NOISE.sub("", made))
    source = (GUESTS / guest.source).resolve().relative_to(ROOT)
    how = f"# Made from {source} by gcc {version()}: python -m tests.tools.compile_guests\n"
    if not guest.program:
        return how + body
    return head(path.read_text(encoding="utf-8")) + f'\n#\n{how}\t.include "perf_kernel.inc"\n' + body


def main(names: list[str]) -> int:
    """Write the files whose names contain one of these words, or all."""
    for guest in TABLE:
        if names and not any(name in Path(guest.output).stem for name in names):
            continue
        try:
            text = compiled(guest)
        except subprocess.CalledProcessError as error:
            print(error.stderr, file=sys.stderr)
            return 1
        (GUESTS / guest.output).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
