"""Any guest timed on this machine: in each mode, by access, beside what else can run it, with the spread.

All times are the host's. Rounds are interleaved: what is compared shares the good and bad moments of the
machine, and what remains of those is said as the spread.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from vpmu_emu import bench
from vpmu_emu.asm import Program, assemble
from vpmu_emu.asm.disassemble import disassemble_one
from vpmu_emu.data import guests_dir
from vpmu_emu.options import Options
from vpmu_emu.report import Table
from vpmu_emu.system import REGISTERS, check_left_out, run

PATIENCE = 60.0  # seconds: no round begins after that, but the second one
LOOPS = 20_000  # accesses of one kind in a run
UNICORN_SECONDS = 3  # that it has at least; and twenty times as long as we took
UNICORN_SLICE = 250_000  # microseconds: Ctrl-C is heard in between
PORT_DEBUG_EXIT = 0xF4
# What is timed by itself; with a hypervisor CPUID is an exit and little else.
ACCESSES = {
    "CPUID": "xor eax, eax\n cpuid",
    "RDPMC": "xor ecx, ecx\n rdpmc",
    "RDMSR IA32_PMC0": "mov ecx, 0xc1\n rdmsr",
    "WRMSR IA32_PMC0": "mov ecx, 0xc1\n wrmsr",
    "WRMSR IA32_PERFEVTSEL0": "mov ecx, 0x186\n mov eax, 0x4300c0\n wrmsr",
    "WRMSR IA32_PERF_GLOBAL_CTRL": "mov ecx, 0x38f\n mov eax, 1\n wrmsr",
}
_LOOP = """
_start: xor eax, eax
        xor edx, edx
        mov esi, {loops}
1:      {access}
        xor eax, eax
        xor edx, edx
        dec esi
        jnz 1b
        out 0xf4, al
"""


@attrs.frozen
class Spread:
    """Several measurements of the same: the one in the middle, the least and the greatest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one."""
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{_short(self.median)} ({_short(self.low)} to {_short(self.high)})"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def bench_guest(
    program: Program,
    options: Options,
    modes: Sequence[str],
    times: int = 5,
    ready: Callable[[Sequence[str]], None] | None = None,
) -> dict[str, Any]:
    """Time a guest in each of `modes`, and whatever else can run it, round after round.

    Args:
        program: the guest; options: of all modes; what a mode has no use for is left out there.
        modes: by name; times: rounds, fewer if they take longer than `PATIENCE` seconds.
        ready: called with the modes before their compiled code is needed.

    Returns:
        Plain data: `rounds`, `modes` (times, what the guest did, ns of each access), `others`.

    Raises:
        ConfigError: an option that no mode takes.
    """
    asked = {mode: _of_mode(options, mode) for mode in modes}
    if ready is not None:
        ready(list(modes))
    loops = {name: _loop(access) for name, access in {"": "", **ACCESSES}.items()}
    results: dict[str, list[Any]] = {mode: [] for mode in modes}
    nanoseconds: dict[str, dict[str, list[float]]] = {m: {name: [] for name in loops} for m in modes}
    refused: dict[str, set[str]] = {mode: set() for mode in modes}
    beside = _unicorn_of(program, options.ram)
    others: list[float] = []
    began = time.monotonic()
    rounds = 0
    while rounds < times and (rounds < 2 or time.monotonic() - began < PATIENCE):
        rounds += 1
        for mode in modes:
            results[mode].append(run(program, asked[mode]))
            for name, loop in loops.items():
                if name not in refused[mode]:
                    found = run(loop, attrs.evolve(asked[mode], **_FOR_LOOPS, max_insns=100 * LOOPS))
                    if found.exit_code is None:
                        refused[mode].add(name)
                    nanoseconds[mode][name].append(found.to_json()["wall_s"] * 1e9)
        if beside.can:
            first = results[modes[0]][0]
            beside.end = first.exit_code, first.registers
            beside.seconds = UNICORN_SECONDS + 20 * first.to_json()["wall_s"]
            others.append(beside.run())
            beside.can = not beside.note
    told = {
        mode: _told(results[mode], _by_access(nanoseconds[mode], refused[mode])) for mode in modes
    }
    work = results[modes[0]][0].instructions
    return {
        "schema": 1, "program": program.name, "cpu": options.cpu, "rounds": rounds, "modes": told,
        "others": [_other("unicorn", beside.note, work, others), _native(program, work, rounds)],
    }  # fmt: skip


_FOR_LOOPS: dict[str, Any] = {"ram": 2, "host": (), "host_events": (), "filter": None,
                              "entry": None, "defsym": {}, "restore": None}  # fmt: skip


def _of_mode(options: Options, mode: str) -> Options:
    asked = attrs.evolve(options, vpmu=mode)
    heeded = asked.heeded()
    if heeded != asked:
        check_left_out(asked)
    heeded.check()
    return heeded


def _loop(access: str) -> Program:
    return assemble(_LOOP.format(loops=LOOPS, access=access or "nop"), "<bench>")


def _by_access(found: Mapping[str, list[float]], refused: set[str]) -> dict[str, list[float]]:
    # Without the loop around it, whose least time is the one that nothing has disturbed.
    loop = min(found[""])
    return {
        name: [(whole - loop) / LOOPS for whole in values]
        for name, values in found.items()
        if name and name not in refused
    }


def _told(results: Sequence[Any], accesses: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    first = results[0]
    seconds = [max(result.to_json()["wall_s"], 1e-9) for result in results]
    return {
        "stop": first.stop, "exit_code": first.exit_code, "why": list(first.why),
        "instructions": first.instructions, "cycles": first.cycles,
        "exits": sum(first.exits.values()), "rdpmc": first.to_json()["rdpmc"]["reads"],
        "wrmsr": sum(row["writes"] for row in first.msr.values()),
        "seconds": attrs.asdict(Spread.of(seconds)),
        "mips": attrs.asdict(Spread.of([first.instructions / s / 1e6 for s in seconds])),
        "access_ns": {name: attrs.asdict(Spread.of(values)) for name, values in accesses.items()},
    }  # fmt: skip


# --- Unicorn -------------------------------------------------------------------------------------------


@attrs.define
class _Unicorn:
    """Unicorn with the guest in its memory; `note` says why it is no comparison.

    Attributes:
        program, ram: what runs, in how much memory (MiB).
        end: exit code and registers of a guest that has done the same work.
        seconds: what it may take.
    """

    program: Program
    ram: int
    end: tuple[int | None, Mapping[str, int]] = (None, {})
    seconds: float = UNICORN_SECONDS
    can: bool = True
    note: str = ""

    def run(self) -> float:
        """Seconds of the whole guest; what goes wrong stands in `note` then."""
        import unicorn
        from unicorn import x86_const as reg

        machine = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        machine.mem_map(0, self.ram << 20)
        for segment in self.program.segments:
            machine.mem_write(segment.addr, bytes(segment.data))
        machine.reg_write(reg.UC_X86_REG_RSP, (self.ram << 20) - 8)
        ended: list[int] = []

        def out(uc: Any, port: int, _size: int, value: int, _data: Any) -> None:
            if port == PORT_DEBUG_EXIT:
                ended.append(value)
                uc.emu_stop()

        machine.hook_add(unicorn.UC_HOOK_INSN, out, None, 1, 0, reg.UC_X86_INS_OUT)
        began = time.perf_counter()
        at, late = self.program.entry, True
        try:
            while late and not ended and time.perf_counter() - began < self.seconds:
                machine.emu_start(at, 0, timeout=UNICORN_SLICE)
                late = bool(machine.query(unicorn.UC_QUERY_TIMEOUT))
                at = machine.reg_read(reg.UC_X86_REG_RIP)
        except unicorn.UcError as error:
            rip = machine.reg_read(reg.UC_X86_REG_RIP)
            line = self.program.line_at(rip)
            what = f" (`{' '.join(line.text.split())}`)" if line and line.text else ""
            self.note = f"stops at {rip:#x}{what}: {error}"
        seconds = time.perf_counter() - began
        if not self.note:
            numbers = {name: getattr(reg, f"UC_X86_REG_{name.upper()}") for name in REGISTERS}
            found = {name: machine.reg_read(number) for name, number in numbers.items()}
            self.note = self._other_work(ended, found, seconds)
        return seconds

    def _other_work(self, ended: Sequence[int], found: Mapping[str, int], seconds: float) -> str:
        if not ended:
            slow = seconds >= self.seconds
            return f"not done after {seconds:.0f} s" if slow else "ends otherwise than by port 0xf4"
        code, registers = self.end
        if ended[0] != code:
            return f"does other work: ends with exit code {ended[0]}"
        others = [name for name in REGISTERS if found[name] != registers[name]]
        return f"does other work: ends with another {', '.join(others[:3])}" if others else ""


def _unicorn_of(program: Program, ram: int) -> _Unicorn:
    try:
        import unicorn  # noqa: F401
    except ImportError:
        return _Unicorn(program, ram, can=False, note="not installed (extra `oracle`)")
    return _Unicorn(program, ram)


def _other(name: str, note: str, work: int, seconds: Sequence[float]) -> dict[str, Any]:
    if note or not seconds:
        return {"runner": name, "note": note, "part": "", "seconds": None, "mips": None}
    told = {"seconds": seconds, "mips": [work / each / 1e6 for each in seconds]}
    spreads = {key: attrs.asdict(Spread.of(values)) for key, values in told.items()}
    return {"runner": name, "note": "", "part": "", **spreads}


# --- the processor itself -------------------------------------------------------------------------------


def not_native(program: Program) -> str:
    """Why the processor itself does not run a guest, "" if it may."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return "this is no x86 processor"
    ours = guests_dir() / "workloads" / Path(program.name).name
    known = {"work", "work_end"} <= set(program.symbols)
    if known and ours.is_file() and program.text == ours.read_text(encoding="utf-8"):
        return ""
    for line in program.lines:
        if line.kind != "insn":
            continue
        found = disassemble_one(program.read(line.addr, line.size), line.addr)
        row = found.form.instruction if found else None
        if row is not None and (row.privilege == 0 or row.iopl):
            place = f"{Path(line.file).name}:{line.line}"
            return f"not run: `{found.text if found else ''}` ({place}) is for the kernel's ring"
    return "not run: nobody knows what a stranger's machine code does to this process"


def _native(program: Program, work: int, rounds: int) -> dict[str, Any]:
    why = not_native(program)
    seconds = [bench._native(program)[1] for _ in range(rounds)] if not why else []
    return {**_other("native", why, work, seconds), "part": "work to work_end"}


# --- words ----------------------------------------------------------------------------------------------


def tables(found: Mapping[str, Any]) -> list[Table]:
    """What `bench_guest` gave, as tables."""
    rows: list[tuple[Any, ...]] = []
    for mode, told in found["modes"].items():
        end = ": ".join([told["stop"], *told["why"][:1]])
        end = end if told["exit_code"] is None else f"exit code {told['exit_code']}"
        counts = (told["instructions"], told["exits"], told["rdpmc"], told["wrmsr"])
        rows.append((mode, *counts, str(Spread(**told["mips"])), str(Spread(**told["seconds"])), end))
    for other in found["others"]:
        speed = (str(Spread(**other[key])) if other[key] else None for key in ("mips", "seconds"))
        rows.append((other["runner"], None, None, None, None, *speed, other["note"] or other["part"]))
    heads = ("", "instructions", "exits", "RDPMC", "WRMSR", "M instr/s", "seconds", "ended by")
    title = f"{found['program']} on {found['cpu']}: median of {found['rounds']} rounds (least to greatest)"
    whole = Table(title, heads, tuple(rows))
    modes = list(found["modes"])
    costs = []
    for name in ACCESSES:
        each = [found["modes"][mode]["access_ns"].get(name) for mode in modes]
        costs.append((name, *(str(Spread(**spread)) if spread else None for spread in each)))
    title = "Nanoseconds of this machine for one access of a guest"
    return [whole, Table(title, ("", *modes), tuple(costs))]
