"""The hot path timed side by side, on this machine, with what else can run the same bytes."""

from __future__ import annotations

import ctypes
import mmap
import platform
import re
import struct
import time
from collections.abc import Iterable, Mapping
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import attrs

from vpmu_emu.data import guests_dir
from vpmu_emu.errors import VpmuError

if TYPE_CHECKING:
    from vpmu_emu.asm.program import Program

# name of a workload -> the sizes of one measured run, and by how much a Python hook shrinks them
WORKLOADS: dict[str, dict[str, int]] = {
    "mixed": {"ROUNDS": 2_000_000},
    "kut_loop": {"ROUNDS": 100_000, "PASSES": 40},
}
HOOK_SHARE = 100
STACK_ROOM = 1 << 16


@attrs.frozen
class Timing:
    """Best of several runs of one workload by one runner."""

    runner: str
    instructions: int
    seconds: float
    note: str = ""

    @property
    def mips(self) -> float:
        """Million guest instructions a second."""
        return self.instructions / self.seconds / 1e6

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "runner": self.runner, "instructions": self.instructions,
            "seconds": self.seconds, "mips": self.mips, "note": self.note,
        }  # fmt: skip


def source(workload: str, **equates: int) -> str:
    """The text of a workload with some of its `.equ` lines given other values."""
    text = (guests_dir() / "workloads" / f"{workload}.s").read_text(encoding="utf-8")
    for name, value in equates.items():
        text, count = re.subn(rf"(?m)^(\s*\.equ {name},) \d+$", rf"\1 {value}", text)
        if count != 1:
            raise VpmuError(f"workload {workload} has no single line `.equ {name}, N`")
    return text


def program(workload: str, **equates: int) -> Program:
    """A workload assembled."""
    from vpmu_emu.asm import assemble

    return assemble(source(workload, **equates), f"{workload}.s")


def best(runs: Iterable[tuple[int, float]]) -> tuple[int, float]:
    """(instructions, seconds) of the fastest run."""
    return min(runs, key=itemgetter(1))


def compare(workload: str, sizes: Mapping[str, int], times: int = 5) -> list[Timing]:
    """Time one workload with everything that is here; what is missing says so in its note."""
    counted = program(workload, **sizes, COUNTERS=1)
    paged = program(workload, **sizes, COUNTERS=1, PAGING=1) if workload == "mixed" else None
    bare = program(workload, **sizes, COUNTERS=0)
    small = program(
        workload, COUNTERS=0, **{k: max(1, v // HOOK_SHARE) for k, v in _shrunk(sizes).items()},
        **{k: v for k, v in sizes.items() if k not in _shrunk(sizes)},
    )  # fmt: skip
    ours = {
        "vpmu, all counters": counted,
        "vpmu, all counters, page tables": paged,
        "vpmu, no counter": bare,
    }
    # In turns: what is compared shares the machine's good and bad moments.
    rounds = [{name: _ours(guest) for name, guest in ours.items() if guest} for _ in range(times)]
    found = [Timing(name, *best(map(itemgetter(name), rounds))) for name in rounds[0]]
    work = found[-1].instructions
    try:
        import unicorn  # noqa: F401
    except ImportError:
        found.append(Timing("unicorn", 0, float("inf"), "not installed (extra `oracle`)"))
    else:
        found.append(Timing("unicorn", work, best(_unicorn(bare) for _ in range(times))[1]))
        count, seconds = best(_unicorn(small, hook=True) for _ in range(min(times, 2)))
        found.append(Timing("unicorn, Python hook", count, seconds))
    if platform.machine() in ("x86_64", "AMD64"):
        found.append(Timing("native", work, best(_native(bare) for _ in range(times))[1]))
    return found


def _shrunk(sizes: Mapping[str, int]) -> dict[str, int]:
    # A buffer's size hangs on ROUNDS: where there are passes, have fewer of those.
    name = "PASSES" if "PASSES" in sizes else "ROUNDS"
    return {name: sizes[name]}


def _ours(guest: Program) -> tuple[int, float]:
    from vpmu_emu.system import run

    values = run(guest, vpmu="bare").to_json()
    if values["exit_code"] != 0:
        raise VpmuError(f"{guest.name} did not end well: {values['stop']}")
    return values["instructions"], values["wall_s"]


def _image(guest: Program) -> tuple[int, bytearray]:
    start = min(segment.addr for segment in guest.segments)
    end = max(segment.addr + len(segment.data) for segment in guest.segments)
    image = bytearray(end - start)
    for segment in guest.segments:
        image[segment.addr - start : segment.addr - start + len(segment.data)] = segment.data
    return start, image


def _unicorn(guest: Program, hook: bool = False) -> tuple[int, float]:
    import unicorn
    from unicorn import x86_const

    start, image = _image(guest)
    machine = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
    size = -(-(len(image) + STACK_ROOM) // 4096) * 4096
    machine.mem_map(start, size)
    machine.mem_write(start, bytes(image))
    machine.reg_write(x86_const.UC_X86_REG_RSP, start + size - 64)
    count = 0

    def on_instruction(*_: Any) -> None:
        nonlocal count
        count += 1

    if hook:
        machine.hook_add(unicorn.UC_HOOK_CODE, on_instruction)
    began = time.perf_counter()
    machine.emu_start(guest.symbols["work"], guest.symbols["work_end"])
    return count, time.perf_counter() - began


# push rbx; push rbp; push r12; push r13; push r14; push r15; call +0; the same back; ret
_ENTER = bytes.fromhex("53 55 4154 4155 4156 4157 e8")
_LEAVE = bytes.fromhex("415f 415e 415d 415c 5d 5b c3")


def _native(guest: Program) -> tuple[int, float]:
    start, image = _image(guest)
    image[guest.symbols["work_end"] - start] = 0xC3  # ret
    stub = len(image)
    call_end = stub + len(_ENTER) + 4
    image += _ENTER + struct.pack("<i", guest.symbols["work"] - start - call_end) + _LEAVE
    pages = mmap.mmap(-1, len(image), prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    pages.write(bytes(image))
    anchor = ctypes.c_char.from_buffer(pages)
    call = ctypes.CFUNCTYPE(None)(ctypes.addressof(anchor) + stub)
    began = time.perf_counter()
    call()
    seconds = time.perf_counter() - began
    del anchor, call
    pages.close()
    return 0, seconds


def report(times: int = 5) -> dict[str, Any]:
    """Every workload compared, with the ratios that matter; seconds, best of `times`."""
    found: dict[str, Any] = {"schema": 1, "best_of": times, "workloads": {}}
    for name, sizes in WORKLOADS.items():
        timings = compare(name, sizes, times)
        mips = {t.runner: t.mips for t in timings if not t.note}
        ours = mips["vpmu, all counters"]
        found["workloads"][name] = {
            "timings": [t.to_json() for t in timings],
            "against": {
                other: ours / value
                for other, value in mips.items()
                if other != "vpmu, all counters"
            },
        }
    return found
