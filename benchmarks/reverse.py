"""How long a step back takes, anywhere in a long run, and that it is exact; how fast `until` is.

    python -m benchmarks.reverse [INSTRUCTIONS] [POINTS] [MODE]
"""

from __future__ import annotations

import random
import statistics
import sys
import time

from vpmu_emu.asm import Program, assemble
from vpmu_emu.debug.session import Session
from vpmu_emu.system import System

INSTRUCTIONS, POINTS = 100_000_000, 1000
TEXT = """
        .intel_syntax noprefix
_start: mov ecx, 0x186
        mov eax, 0x4300c4
        xor edx, edx
        wrmsr
        mov ecx, 0x38f
        mov eax, 1
        wrmsr
        mov rdi, 88172645463325252
        lea rsi, [rip + table]
        mov r8, {rounds}
loop:   mov rax, rdi
        shl rax, 13
        xor rdi, rax
        mov rax, rdi
        shr rax, 7
        xor rdi, rax
        mov rax, rdi
        shl rax, 17
        xor rdi, rax
        mov rbx, rdi
        and ebx, 0xffff
        add [rsi + rbx * 8], rdi
        test edi, 1
        jz even
        imul rdi, rdi, 3
even:   dec r8
        jnz loop
        xor eax, eax
        out 0xf4, al
        .bss
table:  .zero 524288
"""


def program(instructions: int) -> Program:
    """A run of about so many instructions: arithmetic, a table of 128 pages, branches that are missed."""
    return assemble(TEXT.format(rounds=instructions * 2 // 33), "long.s")


def measure(instructions: int, points: int, mode: str = "bare", seed: int = 1) -> dict[str, float]:
    """Step back at random points of a run; seconds and rates.

    Raises:
        AssertionError: a record or memory is not what it was.
    """
    rng = random.Random(seed)
    code = program(instructions)
    plain = System(code, vpmu=mode)
    plain.run()
    session = Session(code, vpmu=mode)
    while not session.cont().ended:
        pass
    assert session.system.record() == plain.record()
    done = session.system.instructions
    kept = len(session.history)
    times = []
    for _ in range(points):
        number = rng.randrange(10, done - 10)
        (session.until if number > session.system.instructions else session.reverse_to)(f"#{number}")
        session.step()  # a point between two steps
        before = session.system.record(), bytes(session.system.M)
        session.step()
        start = time.perf_counter()
        session.reverse_step()
        times.append(time.perf_counter() - start)
        assert (session.system.record(), bytes(session.system.M)) == before
    session.restart()
    start = time.perf_counter()
    session.until(f"#{done // 2}")
    took = time.perf_counter() - start
    return {
        "instructions": done,
        "states": kept,
        "points": points,
        "median": statistics.median(times),
        "ninth_decile": sorted(times)[points * 9 // 10],
        "most": max(times),
        "until_mips": done // 2 / took / 1e6,
        "plain_mips": done / plain.wall_s / 1e6,
    }


def main() -> None:
    """Print what was measured."""
    asked = sys.argv[1:]
    numbers = [int(word) for word in asked if word.isdecimal()]
    mode = next((word for word in asked if not word.isdecimal()), "bare")
    found = measure(*(numbers + [INSTRUCTIONS, POINTS][len(numbers) :]), mode)
    for name in ("median", "ninth_decile", "most"):
        print(f"{name:14}{found[name] * 1000:8.1f} ms")
    for name in ("until_mips", "plain_mips"):
        print(f"{name:14}{found[name]:8.1f}")
    print("{instructions:,} instructions, {states} states kept, {points} points".format(**found))


if __name__ == "__main__":
    main()
