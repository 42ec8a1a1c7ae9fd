"""Owns the record and the memory of a run; the only place that calls compiled code.

A run is a pure function of (record, memory): this module makes them from a program and settings, turns the
crank in slices short enough for signals to be seen, and says what happened. Guest faults are stops.
"""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from vpmu_emu.asm import Program, assemble_file, with_defsym, write_elf
from vpmu_emu.data import guests_dir
from vpmu_emu.errors import ConfigError, LoadError
from vpmu_emu.load import load
from vpmu_emu.numerals import shown, whole
from vpmu_emu.options import (
    COST_LEVELS,
    ENGINES,
    OPTIONS,
    Options,
    check_host_keys,
    did_you_mean,
    explained,
    known,
    pairs,
)
from vpmu_emu.output import check_output, write_output
from vpmu_emu.report import Table, html, plain, run_tables, summary
from vpmu_emu.snapshot import pack, unpack
from vpmu_emu.tables.cpus import INDEXED, PARTS, CpuModel, at_level, changed, cpu, cpuid_leaves
from vpmu_emu.tables.events import event_mask, event_text, why_uncounted
from vpmu_emu.tables.exits import exit_name
from vpmu_emu.tables.instructions import FEATURES
from vpmu_emu.tables.modes import MODES
from vpmu_emu.tables.msrs import MSRS, msr_name, rules
from vpmu_emu.tables.mutants import inject_bits, unchecked_msrs
from vpmu_emu.tables.ram import LOW_RAM_MIB

REGISTERS = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip
QUANTUM = 16  # a cycle: how far, in 1/16 of it, one core may be ahead of another
WAIT_FOR_SIPI = 2
GDT_BASE = 0x500
# null, kernel code, kernel data, null, user data, user code: what SYSCALL and SYSRET expect around STAR
GDT = (
    0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0, 0x00CF_F300_0000_FFFF, 0x00AF_FB00_0000_FFFF,
)  # fmt: skip
MIB = 1 << 20
PAGE, PAGE_DIRTY = 4096, 2  # a page of memory, and its flag in E.page_flags
# What of the engine's scratch a saved state has: counts of the trace and of what was not executed.
_KEPT = ("ring_head", "cpu", "outside_n", "outside_rip", "outside_size", "faults_n")
SLICE_SECONDS = 0.03
PATIENCE = 1_000  # timers that a step waits for one that wakes the processor up


@cache
def vmm(name: str = "vmm") -> Program:
    """The VMM behind every run with a hypervisor; `live_vmm` where its guest is saved or was."""
    return assemble_file(guests_dir() / "host" / f"{name}.s")


def untouched(size: int) -> np.ndarray[Any, Any]:
    """Zero bytes whose pages are there once they are touched, and are given back with the last reference.

    What malloc() gives back it keeps and clears by hand at the next run, pages that nobody touches too.
    """
    try:
        pages = mmap(-1, size, MAP_PRIVATE | MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"no {size >> 20} MiB for a machine") from error
    return np.frombuffer(pages, dtype=np.uint8)


def ram_pieces(size: int) -> list[tuple[int, int, int]]:
    """(physical address, index in the host array, bytes) of each piece of `size` bytes of RAM.

    As on a PC: from 3 to 4 GiB are devices, the local APIC among them, and what is more begins at 4 GiB.
    """
    low = min(size, LOW_RAM_MIB * MIB)
    high = [(1 << 32, low, size - low)] if size > low else []
    return [(0, 0, low), *high]


def read_ram(memory: np.ndarray[Any, Any], address: int, size: int) -> bytes:
    """`size` bytes at a physical address; where no RAM is they are zero."""
    found = bytearray(size)
    for base, at, length in ram_pieces(len(memory)):
        low, high = max(address, base), min(address + size, base + length)
        if low < high:
            found[low - address : high - address] = memory[at + low - base : at + high - base].tobytes()
    return bytes(found)


@attrs.frozen
class Moment:
    """A state of a run in this process: all that `snapshot` has, cheaply, and of memory only what changed.

    Attributes:
        record: the bytes of SYSTEM.
        pages: page of the host array -> its bytes, of those that are not as they were at the start.
        flags, files, outside, faults: as in a snapshot.
        scratch: the counts of E that belong to it.
        size: bytes of pages that no moment before it has.
    """

    record: bytes = attrs.field(repr=False)
    pages: dict[int, bytes] = attrs.field(repr=False)
    flags: bytes = attrs.field(repr=False)
    files: bytes = attrs.field(repr=False)
    outside: bytes = attrs.field(repr=False)
    faults: bytes = attrs.field(repr=False)
    scratch: tuple[int, ...]
    size: int


@attrs.frozen
class Stop:
    """Why a run came back.

    Attributes:
        reason: debug-exit, halted, triple-fault, shutdown, reset, hard-lockup, max-insns, max-cycles,
            end-of-time, break, watch, step or interrupted.
        rip: address of the next instruction, or of the one that faulted.
        line: source line of the instruction that ended the run, if one did, else of that at `rip`; None
            outside the program.
        file: its source file.
        info: exit value of debug-exit, vector that began a triple fault, CPU of a hard lockup.
        note: what the machine could not do for the program so far, a sentence a line; else "".
        why: how it came to that, in sentences; none where there is nothing to say.
    """

    reason: str
    rip: int
    file: str | None = None
    line: int | None = None
    info: int = 0
    note: str = ""
    why: tuple[str, ...] = ()

    def __str__(self) -> str:
        place = f" ({self.file}:{self.line})" if self.line is not None else ""
        words = {
            "triple-fault": f"triple fault, first exception vector {self.info}",
            "debug-exit": f"exit with code {self.info}",
            "hard-lockup": f"hard lockup of CPU {self.info}",
        }.get(self.reason, self.reason)
        more = [f"why: {sentence}" for sentence in self.why]
        more += [f"note: {sentence}" for sentence in self.note.splitlines()]
        return "\n".join([f"{words} at rip {self.rip:#x}{place}", *more])


NOT_OF_THE_RUN = ("engine", "jit_s", "wall_s")  # of the machine that it ran on


@attrs.frozen(eq=False, repr=False)
class Result:
    """What a run did; `to_json()` is the documented schema, and properties are its keys.

    Two are equal if the runs were: record, memory, program, and all that is said of them but times of the
    machine on which they ran. Tracing changes nothing of that.
    """

    values: dict[str, Any]
    memory: Any = attrs.field(repr=False)
    record: bytes = attrs.field(repr=False)
    ring: Any = attrs.field(repr=False)
    model: CpuModel = attrs.field(repr=False)
    program: Program = attrs.field(repr=False)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Result):
            return NotImplemented
        return (
            self.record == other.record
            and self._said() == other._said()
            and self.model == other.model
            and _image(self.program) == _image(other.program)
            and bool(np.array_equal(self.memory, other.memory))
        )

    def __hash__(self) -> int:
        return hash(self.record)

    def _said(self) -> dict[str, Any]:
        return {key: value for key, value in self.values.items() if key not in NOT_OF_THE_RUN + ("lost",)}

    def __repr__(self) -> str:
        end = f"exit code {self.exit_code}" if self.exit_code is not None else self.stop
        counts = f"{self.instructions:,} instructions, {self.cycles:,} cycles, {self.pmis:,} PMIs"
        name = Path(self.program.name).name
        return f"<Result {name}: {self.values['vpmu']} on {self.model.name}, {end}, {counts}>"

    def __str__(self) -> str:
        return "\n".join([summary(self.values, self.program.name), *map(plain, run_tables(self.values))])

    def _repr_html_(self) -> str:
        said = summary(self.values, self.program.name).splitlines()
        first = html([Table("", ("",), tuple((line,) for line in said))])
        return "\n".join([first, html(run_tables(self.values))])

    def to_json(self) -> dict[str, Any]:
        """The result as plain data (docs/schema.json)."""
        return self.values

    def events(self) -> Any:
        """The trace ring, oldest event first; empty if tracing was off."""
        return self.ring

    def lost(self) -> dict[str, int]:
        """Of what there was no room for more: characters of the serial port, events of the trace."""
        found: dict[str, int] = self.values["lost"]
        return found

    def read(self, address: int, size: int) -> bytes:
        """Guest memory at the end of the run; bytes outside it read as zero."""
        return read_ram(self.memory, address, size)

    @property
    def stop(self) -> str:
        """Why it ended, as in `#: expect`: debug-exit, halted, triple-fault, …; `why` says more."""
        return str(self.values["stop"])

    @property
    def why(self) -> tuple[str, ...]:
        """How it came to that stop, in sentences (docs/stops.md); none where there is nothing to say."""
        return tuple(self.values["why"])

    @property
    def notes(self) -> tuple[str, ...]:
        """What the machine could not do for the program, in sentences."""
        return tuple(self.values["notes"])

    @property
    def exit_code(self) -> int | None:
        """What the program wrote to the debug-exit port; None if it ended otherwise."""
        code: int | None = self.values["exit_code"]
        return code

    @property
    def instructions(self) -> int:
        """What the program retired, and what KVM did for it."""
        return int(self.values["instructions"])

    @property
    def cycles(self) -> int:
        """Of the first core, the host's work and idle ones included."""
        return int(self.values["cycles"])

    @property
    def pmis(self) -> int:
        """Interrupts of counters that the program was given."""
        return int(self.values["pmis"])

    @property
    def registers(self) -> dict[str, int]:
        """rax … r15, rip, rflags at the end."""
        found: dict[str, int] = self.values["registers"]
        return found

    @property
    def msr(self) -> dict[str, dict[str, int]]:
        """Reads, writes and exits of each MSR that the program touched."""
        found: dict[str, dict[str, int]] = self.values["msr"]
        return found

    @property
    def counters(self) -> dict[str, int]:
        """pmc0…, fixed0… as the guest sees them."""
        found: dict[str, int] = self.values["counters"]
        return found

    @property
    def exits(self) -> dict[str, int]:
        """VM exits by reason."""
        found: dict[str, int] = self.values["exits"]
        return found

    @property
    def serial(self) -> str:
        """What the guest wrote to COM1."""
        found: str = self.values["serial"]
        return found


def host_model(
    name: str, settings: Iterable[str] | Mapping[str, int] = (), level: str = COST_LEVELS[1]
) -> CpuModel:
    """A CPU model with the latencies of a level, and some numbers of its PMU and its time replaced.

    Raises:
        ConfigError: unknown model or key, or a number that the record has no room for.
    """
    model = at_level(cpu(name), COST_LEVELS.index(level))
    changes: dict[str, int] = {}
    asked = pairs("set", settings)
    check_host_keys("set", asked)
    model = changed(model, asked)
    for key, value in asked.items():
        if key.startswith(("cost.", "model.")):
            continue
        short = key.removeprefix("pmu.")
        if short == "width":
            changes["gp_width"] = changes["fixed_width"] = value
        else:
            changes["perf_capabilities" if short == "perf_caps" else short] = value
    values: dict[str, Any] = dict(changes)
    return attrs.evolve(model, **values)


def fill_core(core: Any, model: CpuModel) -> None:
    """Write a CPU model's shape, rules and latencies into a CORE record that has its `inject` already."""
    pmu = core.pmu
    pmu.version = model.version
    pmu.gp = model.gp if model.version else 0
    pmu.fixed = model.fixed if model.version > 1 else 0
    pmu.gp_mask = (1 << model.gp_width) - 1
    pmu.fixed_mask = (1 << model.fixed_width) - 1
    pmu.perf_capabilities = model.perf_capabilities
    pmu.masks_lvtpc = int(model.masks_lvtpc)
    pmu.event_mask = event_mask(model.events)
    names = model.shape().names()
    # LBR_NONE, LBR_LEGACY, LBR_ARCHITECTURAL
    core.metrics.count = 8 if names["metrics_level2"] else 4
    core.lbr.kind = 2 if names["arch_lbr"] else names["lbr_legacy"]
    pmu.events_absent = model.arch_events_absent
    pmu.events_length = model.arch_events_length
    table = rules("hw", model.shape(), unchecked_msrs(int(core.inject)))
    core.msr_n[:] = table.exists_count
    core.msr_reserved[:] = table.reserved
    core.msr_access[:] = table.access
    reset = {row.name: value for row, value in zip(MSRS, table.reset, strict=True)}
    core.misc_enable, core.pat = reset["IA32_MISC_ENABLE"], reset["IA32_PAT"]
    core.features = sum(1 << k for k, name in enumerate(FEATURES) if name in model.features)
    core.latency[:] = model.latency
    core.pa_reserved = (1 << 52) - (1 << model.maxphyaddr)
    core.tsc_num, core.tsc_den = model.per_core_cycle(model.tsc_khz)
    core.xclk_num, core.xclk_den = model.per_core_cycle(model.crystal_khz)
    core.lapic.clock_num, core.lapic.clock_den = core.xclk_num, core.xclk_den  # SDM 3A 11.5.4
    core.l2_bits, core.llc_bits = model.l2_lines.bit_length() - 1, model.llc_lines.bit_length() - 1
    core.prefetch_l2, core.prefetch_llc = model.prefetch_l2, model.prefetch_llc
    fill_cpuid(core.cpuid, cpuid_leaves(model))


def fill_cpuid(entries: Any, leaves: Sequence[tuple[int, int, int, int, int]]) -> None:
    """Write CPUID leaves into a table of the record; unused entries get leaf ~0."""
    for k, entry in enumerate(entries):
        entry.subleaf = (1 << 64) - 1
        if k < len(leaves):
            entry.leaf, entry.eax, entry.ebx, entry.ecx, entry.edx = leaves[k]
            if leaves[k][0] in INDEXED:
                entry.subleaf = 0
        else:
            entry.leaf = (1 << 64) - 1


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until what Python does here is done as a whole."""
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield  # nothing will be raised here
        return
    came: list[Any] = []
    signal.signal(signal.SIGINT, lambda _number, frame: came.append(frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if came:
            handler(signal.SIGINT, came[0])


@explained
class System:
    """One machine with one program in it.

    Args:
        program: what to run; None with `restore`: what was saved.
        options: what is asked, if it is there as a whole already.
        ready: called when all that can be wrong has been looked at, and before compiled code is needed.
        asked: the same by keywords: the fields of `vpmu_emu.options.Options`, each of which docs/options.md
            explains, beside or instead of `options`. What the command line takes as text may be text;
            a filter may be an EventFilter, a program of the host a Program, `KEY=VALUE` words a mapping.

    Raises:
        ConfigError, LoadError: settings or programs that cannot be.
    """

    def __init__(
        self,
        program: Program | None,
        options: Options | None = None,
        /,
        *,
        ready: Callable[[], None] | None = None,
        **asked: Any,
    ) -> None:
        from vpmu_emu.linux.state import SYSTEM
        from vpmu_emu.machine import engine as compiled
        from vpmu_emu.machine.state import END_OF_TIME, ENGINE, NEVER

        engine: Any = compiled

        self.options = options = Options.of(asked, options)
        options.check()
        mode = options.mode
        cores = options.cores
        self.has_host = mode.hypervisor
        if options.defsym:
            if program is None:
                raise ConfigError("defsym", "the program is the one that was saved", "with PROG")
            program = with_defsym(program, options.defsym)
        if options.restore is not None:
            self.options = options = with_saved(options, program)
            program = program or options.restore.program
        if program is None:
            raise ConfigError("program", "there is none", "with restore=FILE")
        if options.entry is not None:
            program = program.entered_at(options.entry)
        self.program = program
        self.mode = mode.name
        self.model = host_model(options.cpu, options.settings, options.costs)
        injected = inject_bits(options.inject)
        if self.has_host:
            from vpmu_emu.setup.vm import vm_settings

            wanted = vm_settings(self.model, mode, options)
            programs = [p if isinstance(p, Program) else load(p) for p in options.host]
        self.ram_size = options.ram * MIB
        if options.restore is None:
            self._check(program)
        self._moment = None
        if options.save is not None:
            self._moment = self._when(program)
            check_output(str(options.save), [options.restore.name] if options.restore is not None else [])
        if ready is not None:
            ready()
        self.max_insns = options.max_insns
        self.max_cycles = options.max_cycles
        self.wall_s = 0.0
        self.jit_s = 0.0
        self._loaded = False
        self._slice = 1 << 24
        self.between: Callable[[], None] | None = None  # called between two slices of a run
        # Takes the trace: `drain()` whenever compiled code comes back, after `ticks` at most.
        self.recorder: Any = None
        self._array = np.zeros(1, dtype=SYSTEM).view(np.recarray)
        self._engine = untouched(ENGINE.itemsize).view(ENGINE).view(np.recarray)
        self.S: Any = self._array[0]
        self.E: Any = self._engine[0]
        self.core: Any = self.S.cores[0]
        above = 0
        if self.has_host:
            from vpmu_emu.setup.boot import host_memory

            above = host_memory(self.ram_size)
        self.M = untouched(self.ram_size + above)
        self.E.memory, self.E.memory_size = self.M.ctypes.data, self.M.size

        self.cores: list[Any] = [self.S.cores[k] for k in range(cores)]
        E = self.E
        for k, core in enumerate(self.cores):
            core.inject = injected
            fill_core(core, self.model)
            core.pmu.skid_message, core.pmu.skid_recognition = (16 * cycles for cycles in options.skid)
            core.cores, core.number, core.space = cores, k, k
            engine.reset_core(core, np.uint64(k))
            for n, (base, at, length) in enumerate(ram_pieces(self.ram_size)):
                core.slot_gpa[n], core.slot_at[n], core.slot_size[n] = base, at, length
        if not self.has_host:  # else the VMM does it
            self._load(program)
        E.n_uops = 1
        E.task_limit = (1 << 64) - 1 if options.max_insns is None else options.max_insns
        E.insn_limit = E.task_limit
        E.t_slice = NEVER
        E.t_limit = END_OF_TIME
        E.stop_t = NEVER
        E.program_memory = ram_pieces(self.ram_size)[0][2]
        E.horizon = options.horizon
        E.horizon_seed = options.horizon_seed
        E.trace_on = int(bool(options.trace))
        if self.has_host:
            from vpmu_emu.setup.vm import make_vm

            image = write_elf(program, symbols=False)
            live = options.save is not None or options.restore is not None
            where = (self.S, self.M, E, self.model, vmm("live_vmm" if live else "vmm"), image)
            self._run, self._host = make_vm(*where, options, wanted, programs)
        elif cores == 1:
            core, M = self.core, self.M  # without a cycle: memory goes with the last reference to the run
            self._run = lambda: int(engine.run_core(core, M, E))
        else:
            from vpmu_emu.machine import smp as compiled_smp

            smp: Any = compiled_smp
            together, M = self.S.cores, self.M
            self._run = lambda: int(smp.run_cores(together, cores, QUANTUM, M, E))
        self._translator = translator_of(E, options)
        if self._moment is not None:
            self._arm(self._moment)
        if options.max_cycles is not None:
            self._limit(options.max_cycles)

    def _limit(self, cycles: int) -> None:
        from vpmu_emu.machine.state import END_OF_TIME

        self.max_cycles = cycles
        self.E.t_limit = min(16 * cycles, int(END_OF_TIME))

    def _check(self, program: Program) -> None:
        """Whether the image fits."""
        for segment in program.segments:
            end = segment.addr + len(segment.data)
            what = f"{program.name}: section {segment.name} at {segment.addr:#x}..{end:#x}"
            if segment.addr < GDT_BASE + 8 * len(GDT):
                raise LoadError(f"{what} is where the machine's own tables are; link it at 0x1000 or above")
            if end > ram_pieces(self.ram_size)[0][2]:
                raise LoadError(
                    f"{what} is outside the memory of {self.ram_size // MIB} MiB; "
                    f"give more with --ram, {LOW_RAM_MIB} at the most for a program, or link it lower"
                )
        inside = (s.addr <= program.entry < s.addr + len(s.data) for s in program.segments)
        if program.segments and not any(inside):
            raise LoadError(
                f"{program.name}: the entry {program.entry:#x} lies in no section; give one with --entry"
            )

    def _load(self, program: Program) -> None:
        """Put the image and the GDT into memory, the registers where a program finds them."""
        for segment in program.segments:
            end = segment.addr + len(segment.data)
            self.M[segment.addr : end] = np.frombuffer(segment.data, dtype=np.uint8)
        table = np.array(GDT, dtype="<u8").view(np.uint8)
        self.M[GDT_BASE : GDT_BASE + len(table)] = table
        for core in self.cores:
            core.gdt_base = GDT_BASE
            core.gdt_limit = len(table) - 1
            core.selectors[:] = (0x10, 0x08, 0x10, 0x10, 0x10, 0x10)
            core.activity = WAIT_FOR_SIPI
        self.core.activity = 0
        self.core.rip = program.entry
        self.core.regs[4] = ram_pieces(self.ram_size)[0][2] - 8

    # --- running ----------------------------------------------------------------------------------------
    def _turn(self, ticks: int, until: int | None = None) -> int:
        """Call compiled code once, for so many 1/16 cycles, or up to a time before that; a RUN_* code."""
        if not self._loaded:
            # An empty slice first: loading the code, or compiling it, is no part of the run's time.
            self._loaded = True
            from vpmu_emu.machine.state import RUN_SLICE

            code = self._turn(0)
            self.jit_s, self.wall_s = self.wall_s, 0.0
            if self.instructions or code != RUN_SLICE:
                return code
        if self.recorder is not None:
            ticks = min(ticks, self.recorder.ticks)
        end = self.furthest + ticks
        end = end if until is None else min(end, until)
        start = time.perf_counter()
        with np.errstate(over="ignore"):
            code = self._run_until(end, start)
        took = time.perf_counter() - start
        self.wall_s += took
        if self.E.n_data:
            self._unwatch_pages()
        # Slices follow the speed of the machine, so that Ctrl-C is heard; results do not depend on them.
        if took < SLICE_SECONDS / 2:
            self._slice = min(self._slice * 2, 1 << 40)
        elif took > SLICE_SECONDS * 1.5:
            self._slice = max(self._slice // 2, 1 << 10)
        return code

    def _run_until(self, end: int, start: float) -> int:
        """Compiled code until `end`; native code is put in where it asks for it. A RUN_* code."""
        from vpmu_emu.machine.state import RUN_SLICE

        while True:
            self.E.t_slice = end
            code = self._run_host(end) if self.has_host else int(self._run())
            self._record()
            if self._translator is None:
                return code
            self._translator.look(self.wall_s + time.perf_counter() - start)
            if code != RUN_SLICE or self.furthest >= end:
                return code

    @property
    def _regions(self) -> int:
        return 0 if self._translator is None else int(self._translator.regions)

    def _run_host(self, end: int) -> int:
        """Compiled code until `end`, and the system calls that host programs make on the way."""
        from vpmu_emu.linux import syscalls
        from vpmu_emu.machine.state import RUN_STOPPED, RUN_SYSCALL

        while True:
            self.E.t_slice = end
            code = int(self._run())
            if code != RUN_SYSCALL:
                return code
            self._record()
            with _uninterrupted():
                syscalls.handle(self._host)
            self._record()
            if self._is_saved():  # whatever other programs of the host would still do
                return RUN_STOPPED

    def _record(self) -> None:
        if self.recorder is not None:
            with _uninterrupted():
                self.recorder.drain()

    def run(self, until: int | None = None) -> Stop:
        """Run until the program ends, a breakpoint, a watchpoint, or the limit of instructions or cycles.

        Args:
            until: stop when so many cycles of a core are over, whatever `max_cycles` was; a stop
                `max-cycles`, and another run goes on from there.

        Raises:
            KeyboardInterrupt: after the slice in which Ctrl-C came; the state is whole.
        """
        from vpmu_emu.machine.state import RUN_SLICE

        if until is not None:
            self._limit(until)
        while True:
            code = self._turn(self._slice)
            if self._moment is not None and self._is_moment(code):
                self._ask_to_save()
            elif code != RUN_SLICE:
                return self.stop(code)
            elif self.between is not None:
                self.between()

    def _unwatch_pages(self) -> None:
        # watch_pages() of the machine marks the TLB for a debugger; the record has no part of it.
        for core in self.cores:
            pages = [int(v) & ~(PAGE - 1) for v in core.dr] if int(core.dr7) & 0xFF else []
            for tags in (core.tlb_read, core.tlb_write):
                marked = (tags & np.uint64(3)) == np.uint64(2)
                own = np.isin(tags & ~np.uint64(PAGE - 1), np.array(pages, dtype=np.uint64))
                tags[marked & ~own] &= ~np.uint64(2)

    def go_on(self, until: int | None = None) -> int:
        """Run a slice, or until a core looks around at time `until` or later; a RUN_* code."""
        return self._turn(self._slice, until)

    def run_to(self, t: int) -> int:
        """Run until a core looks around at time `t` or later, in 1/16 cycle; a RUN_* code."""
        from vpmu_emu.machine.state import RUN_SLICE

        code = RUN_SLICE
        while code == RUN_SLICE and self.time < t:
            code = self._turn(self._slice, t)
        return code

    def settle_at(self, cpu: int, t: int) -> int:
        """Run until core `cpu` looks around at time `t` or later, as before a breakpoint; a RUN_* code."""
        from vpmu_emu.machine.state import NEVER, RUN_SLICE

        E = self.E
        code = RUN_SLICE
        E.stop_cpu, E.stop_t = cpu, t
        try:
            while code == RUN_SLICE:
                code = self._turn(self._slice)
        finally:
            E.stop_t = NEVER
        return code

    @property
    def time(self) -> int:
        """The time of the core that ran last, in 1/16 cycle."""
        return int(self.cores[int(self.E.cpu)].t)

    @property
    def furthest(self) -> int:
        """The time of the core that is furthest, in 1/16 cycle."""
        return max(int(core.t) for core in self.cores)

    def go_to(self, instructions: int) -> Stop | None:
        """Run until so many instructions are done, or KVM has done more at once: None; else why it ended.

        Raises:
            KeyboardInterrupt: as `run`.
        """
        from vpmu_emu.machine.state import RUN_LIMIT, RUN_SLICE

        self.E.insn_limit = instructions
        code = RUN_SLICE
        while code == RUN_SLICE:
            code = self._turn(self._slice)
        return None if code == RUN_LIMIT else self.stop(code)

    def step(self, count: int = 1) -> Stop:
        """Run `count` instructions (one iteration of REP, or one delivered exception, is one).

        HLT is one with all the time until something wakes the processor up, unless `PATIENCE` timers
        come and none does.
        """
        from vpmu_emu.machine.state import RUN_SLICE

        for _ in range(count):
            code = self._turn(1)
            timers = PATIENCE
            while code == RUN_SLICE and timers and (ticks := self._until_the_guest()):
                code = self._turn(ticks)
                timers -= ticks > 1
            if code != RUN_SLICE:
                return self.stop(code)
        return self.stop(RUN_SLICE)

    def _until_the_guest(self) -> int:
        # A step is the guest's. How long to go on if it is not its turn: while the VMM or another program
        # works, a tick at a time; while all wait, up to the next timer. 0: it is.
        if not self.has_host:
            if any(int(core.activity) == 0 for core in self.cores):
                return 0
        else:
            from vpmu_emu.linux.state import TASK_RUNNING

            if any(int(core.vmx.nonroot) for core in self.cores):
                return 0
            if int(self.S.tasks[0].state) == TASK_RUNNING:
                return 1
        timers = (min(int(c.lapic.timer_at), int(c.nmi_at), int(c.pmu.pmi_at)) for c in self.cores)
        wait = min(timers) + 1 - max(int(core.t) for core in self.cores)
        return max(1, min(wait, self._slice))

    # --- saving the guest as its VMM does ---------------------------------------------------------------
    def _when(self, program: Program) -> tuple[int, int | None]:
        """The moment of --at: (instructions, None) or (0, address)."""
        at = self.options.at
        number = whole(at) if isinstance(at, str) else at
        if number is not None:
            if not 0 < number < 1 << 63:
                raise ConfigError("at", f"{shown(at)} is not a number of instructions", "1 to 2**63 - 1")
            return number, None
        if at not in program.symbols:
            hint = did_you_mean(at, program.symbols)
            raise ConfigError("at", f"{program.name} has no symbol {shown(at)}{hint}", "a number, a symbol")
        return 0, program.symbols[str(at)]

    def _arm(self, moment: tuple[int, int | None]) -> None:
        count, address = moment
        if address is None:
            self.E.insn_limit = min(count, int(self.E.insn_limit))
        else:
            self.E.breaks[0], self.E.n_break = address, 1

    def _is_moment(self, code: int) -> bool:
        from vpmu_emu.machine.state import RUN_BREAK, RUN_LIMIT

        assert self._moment is not None
        count, address = self._moment
        if address is not None:
            return code == RUN_BREAK
        # A program of the host may have come to a limit, too; that one is the user's. The guest's own goes
        # by what guest_work() of the engine counts.
        return code == RUN_LIMIT and self.work() >= count != self.max_insns

    def _ask_to_save(self) -> None:
        """SIGUSR1 to the VMM, as from outside; decoded code forgets its breakpoint."""
        from vpmu_emu.linux.syscalls.signals import send_signal
        from vpmu_emu.tables.linux import constant

        E = self.E
        self._moment = None
        E.insn_limit = E.task_limit
        E.n_break = 0
        self.forget_decoded()
        send_signal(self._host, 0, constant("SIGUSR1"))

    def forget_decoded(self) -> None:
        """As drop_decoded() does: breakpoints are a part of decoded code, and so is memory."""
        from vpmu_emu.machine.state import GENERATIONS

        E = self.E
        E.n_uops, E.n_code, E.generation = 1, 0, int(E.generation) + 1
        if int(E.generation) & (GENERATIONS - 1) == 0:  # keys hold that much of it
            E.map_key[:] = 0

    def _is_saved(self) -> bool:
        """Whether the VMM has written all of the guest, and has ended."""
        if not self.has_host or self.options.save is None:
            return False
        from vpmu_emu.linux.state import TASK_DEAD
        from vpmu_emu.setup import saved

        whole = self._host.images.get(saved.PATH, b"").endswith(saved.SECTION.pack(b"end", 0))
        return whole and int(self.S.tasks[0].state) == TASK_DEAD

    def saved_vm(self) -> bytes | None:
        """The file of --save, once there is one."""
        if not self._is_saved():
            return None
        from vpmu_emu.setup import saved

        data = bytes(self._host.images[saved.PATH])
        pmu = self.S.vcpus[0].pmu
        facts = {
            "mode": self.mode, "kernel": self.options.mode.kernel.name, "cpu": self.model.name,
            "ram": self.ram_size // MIB, "instructions": self.instructions, "program": self.program.name,
            "pmu": {
                "version": int(pmu.version), "gp": int(pmu.nr_arch_gp_counters),
                "fixed": int(pmu.nr_arch_fixed_counters), "width": int(pmu.width),
                "perf_capabilities": int(pmu.perf_capabilities),
            },
        }  # fmt: skip
        return saved.pack(facts, data, write_elf(self.program))

    # --- saved states -----------------------------------------------------------------------------------
    def _facts(self) -> dict[str, Any]:
        image = hashlib.blake2b(digest_size=8)
        for segment in self.program.segments:
            image.update(segment.addr.to_bytes(8, "little") + bytes(segment.data))
        return {
            "mode": self.mode, "CPU": self.model.name, "RAM of": self.ram_size,
            "cores": len(self.cores), "program": image.hexdigest(),
        }  # fmt: skip

    def _written(self) -> np.ndarray[Any, Any]:
        # Whether each page of memory may be other than zero.
        flags = self.E.page_flags[: len(self.M) // PAGE]
        written = flags & PAGE_DIRTY != 0
        if self.has_host:
            # What the host's kernel keeps for itself lies here, and Python writes it without a flag.
            written[int(self.S.mem_map) // PAGE :] = True
        else:
            written[GDT_BASE // PAGE] = True
            for segment in self.program.segments:
                end = segment.addr + len(segment.data)
                written[segment.addr // PAGE : -(-end // PAGE)] = True
        return np.asarray(written)

    def _made_files(self) -> bytes:
        from vpmu_emu.linux.syscalls.host import TMP

        images = self._host.images.items() if self.has_host else ()
        return b"".join(
            len(part).to_bytes(8, "little") + bytes(part)
            for path, data in images
            if path.startswith(TMP)
            for part in (path.encode("utf-8", "surrogateescape"), data)
        )

    def _remake_files(self, data: bytes) -> None:
        from vpmu_emu.linux.syscalls.host import TMP

        parts = []
        while data:
            size = int.from_bytes(data[:8], "little")
            parts.append(data[8 : 8 + size])
            data = data[8 + size :]
        if self.has_host:
            images = {path: each for path, each in self._host.images.items() if not path.startswith(TMP)}
            made = zip(parts[::2], parts[1::2], strict=True)
            images |= {path.decode("utf-8", "surrogateescape"): bytearray(each) for path, each in made}
            self._host.images = images

    def snapshot(self) -> bytes:
        """All that the rest of the run depends on: record, pages that are not zero, what was said."""
        from vpmu_emu.linux.state import SYSTEM

        E = self.E
        pages = self.M[: len(self.M) // PAGE * PAGE].reshape(-1, PAGE)
        used = np.flatnonzero(self._written())
        used = used[pages[used].any(axis=1)]
        serial = min(int(self.core.serial_len), len(E.serial))
        scratch = [int(E[name]) for name in _KEPT]
        parts = {
            "record": self.record(),
            "used": used.astype("<u4").tobytes(),
            "pages": pages[used].tobytes(),
            "flags": zlib.compress(E.page_flags[: len(pages)].tobytes(), 1),
            "serial": bytes(E.serial[:serial]),
            "files": self._made_files(),
            "outside": bytes(E.outside),
            "faults": E.faults.tobytes(),
            "scratch": np.array(scratch, dtype="<u8").tobytes(),
        }
        return pack("snapshot", SYSTEM, self._facts(), parts)

    def restore(self, data: bytes, name: str = "snapshot") -> None:
        """Go on from a `snapshot` of a run of the same program with the same machine.

        Breakpoints and watchpoints stay; the trace ends where it was.

        Raises:
            ConfigError: `data` is none, or of something else; this run is as it was.
        """
        from vpmu_emu.linux.state import SYSTEM

        parts = unpack(data, "snapshot", SYSTEM, self._facts(), name)
        E = self.E
        pages = self.M[: len(self.M) // PAGE * PAGE].reshape(-1, PAGE)
        used = np.frombuffer(parts["used"], dtype="<u4")
        stale = self._written()
        stale[used] = False
        pages[np.flatnonzero(stale)] = 0
        pages[used] = np.frombuffer(parts["pages"], dtype=np.uint8).reshape(-1, PAGE)
        saved = np.frombuffer(parts["record"], dtype=SYSTEM)[0]
        for field in SYSTEM.names or ():
            self.S[field] = saved[field]
        E.page_flags[: len(pages)] = np.frombuffer(zlib.decompress(parts["flags"]), dtype=np.uint8)
        E.serial[: len(parts["serial"])] = np.frombuffer(parts["serial"], dtype=np.uint8)
        E.outside[:] = np.frombuffer(parts["outside"], dtype=np.uint8)
        E.faults[:] = np.frombuffer(parts["faults"], dtype=E.faults.dtype)
        self._remake_files(parts["files"])
        for key, value in zip(_KEPT, np.frombuffer(parts["scratch"], dtype="<u8"), strict=True):
            E[key] = value
        E.stop_request = 0
        self.forget_decoded()
        E.map_key[:] = 0  # keys of what was decoded here may be of that generation

    def base(self) -> np.ndarray[Any, Any]:
        """A copy of memory as it is, for the moments that come after it."""
        found = untouched(self.M.size)
        own, copy = (m[: m.size // PAGE * PAGE].reshape(-1, PAGE) for m in (self.M, found))
        used = np.flatnonzero(self._written())
        copy[used] = own[used]
        return found

    def _changed(self, base: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        # Pages that are not as they were; eight bytes at a time.
        words = self.M.size // PAGE * (PAGE // 8)
        now, then = (m.view(np.uint64)[:words].reshape(-1, PAGE // 8) for m in (self.M, base))
        used = np.flatnonzero(self._written())
        return np.asarray(used[(now[used] != then[used]).any(axis=1)])

    def moment(self, base: np.ndarray[Any, Any], before: Moment | None = None) -> Moment:
        """This state; pages that are as in the moment `before` are shared with it."""
        E, known = self.E, before.pages if before is not None else {}
        pages, size = {}, 0
        for page in self._changed(base).tolist():
            data = self.M[page * PAGE : (page + 1) * PAGE].tobytes()
            if (own := known.get(page)) == data:
                data = own
            else:
                size += PAGE
            pages[page] = data
        flags = E.page_flags[: self.M.size // PAGE].tobytes()
        if before is not None and before.flags == flags:
            flags = before.flags
        scratch = tuple(int(E[name]) for name in _KEPT)
        seen = bytes(E.outside), E.faults.tobytes()
        return Moment(self.record(), pages, flags, self._made_files(), *seen, scratch, size)

    def put_back(self, moment: Moment, base: np.ndarray[Any, Any]) -> None:
        """Be in that state again. Breakpoints and what else is asked for stay, with no stop under way."""
        E = self.E
        own, copy = (m[: m.size // PAGE * PAGE].reshape(-1, PAGE) for m in (self.M, base))
        stale = [page for page in self._changed(base).tolist() if page not in moment.pages]
        own[stale] = copy[stale]
        for page, data in moment.pages.items():
            own[page] = np.frombuffer(data, dtype=np.uint8)
        self._array.view(np.uint8).reshape(-1)[:] = np.frombuffer(moment.record, dtype=np.uint8)
        E.page_flags[: len(own)] = np.frombuffer(moment.flags, dtype=np.uint8)
        E.outside[:] = np.frombuffer(moment.outside, dtype=np.uint8)
        E.faults[:] = np.frombuffer(moment.faults, dtype=E.faults.dtype)
        self._remake_files(moment.files)
        for key, value in zip(_KEPT, moment.scratch, strict=True):
            E[key] = value
        E.stop_request = 0
        self.forget_decoded()

    def stop(self, code: int, reason: str = "") -> Stop:
        """A RUN_* code as words."""
        from vpmu_emu.machine.state import (
            RUN_BREAK,
            RUN_LIMIT,
            RUN_SLICE,
            RUN_STOPPED,
            RUN_TIME,
            RUN_WATCH,
            STOP_DEBUG_EXIT,
            STOP_HALTED,
            STOP_NAMES,
            STOP_RESET,
        )

        core = next((each for each in self.cores if int(each.stop)), self.core)
        ended, info = (int(core.stop), int(core.stop_info)) if code == RUN_STOPPED else (0, 0)
        if self.has_host and ended == STOP_HALTED and int(self.S.vcpus[0].ended):
            # Its VMM has left because the guest could not go on.
            ended, info = int(self.S.vcpus[0].ended), int(self.S.vcpus[0].ended_info)
        names = {RUN_BREAK: "break", RUN_WATCH: "watch", RUN_SLICE: "step", RUN_LIMIT: "max-insns"}
        # No time of a guest's timer or a sleep is beyond what 63 bits of 1/16 cycle hold.
        names[RUN_TIME] = "end-of-time" if self.max_cycles is None else "max-cycles"
        if not reason and self._is_saved():
            reason = "saved"
        if not reason:
            reason = STOP_NAMES[ended] if code == RUN_STOPPED else names[code]
        rip = int(self.cores[int(self.E.cpu)].rip) if not self.has_host else self.rip
        # OUT and HLT have retired: what is next is not what ended the run.
        done = ended in (STOP_DEBUG_EXIT, STOP_HALTED, STOP_RESET)
        line = self.program.line_at(rip - 1 if done else rip)
        file, number = (line.file, line.line) if line else (None, None)
        from vpmu_emu.views.why_stopped import why_stopped

        why = why_stopped(self, reason, info)
        return Stop(reason, rip, file, number, info, "\n".join(self.notes()), why)

    # --- looking ----------------------------------------------------------------------------------------
    @property
    def instructions(self) -> int:
        """Instructions that the program retired, and those that KVM did for it."""
        return sum(map(_done, self.cores))

    def work_done(self, core: Any) -> int:
        """Instructions that the program did on a core by whatever hand: guest_done() of the engine."""
        return _done(core)

    def work(self) -> int:
        """What limits of instructions count, of the core that has done most: guest_work() of the engine."""
        return max(_done(core) + int(core.stats.fruitless) for core in self.cores)

    def host_programs(self) -> Sequence[Program]:
        """The programs of the host, by their number; none without a hypervisor."""
        return self._host.programs if self.has_host else ()

    @property
    def serial(self) -> str:
        """What was written to COM1."""
        length = min(int(self.core.serial_len), len(self.E.serial))
        return bytes(self.E.serial[:length]).decode("utf-8", "replace")

    def lost(self) -> dict[str, int]:
        """Of what there was no room for more: characters of the serial port, events of the trace."""
        return {
            "serial": max(0, int(self.core.serial_len) - len(self.E.serial)),
            "trace": self.recorder.lost if self.recorder is not None else self._overwritten(),
        }

    def _overwritten(self) -> int:
        return max(0, int(self.E.ring_head) - len(self.E.ring))

    def registers(self) -> dict[str, int]:
        """The sixteen registers, rip and rflags."""
        if not self.has_host:
            core = self.core
            values = [*map(int, core.regs[:16]), int(core.rip), int(core.rflags)]
        else:
            from vpmu_emu.views.registers import registers

            values = registers(self.S, self.M)
        return dict(zip((*REGISTERS, "rip", "rflags"), values, strict=True))

    @property
    def rip(self) -> int:
        """Address of the program's next instruction."""
        return self.registers()["rip"]

    def hardware_pmu(self, core: int = 0) -> dict[str, Any]:
        """What the PMU of one core's silicon holds now."""
        pmu = self.cores[core].pmu
        values = _counters(self.cores[core])
        return {
            "eventsel": [int(v) for v in pmu.eventsel[: int(pmu.gp)]],
            "pmc": values[: int(pmu.gp)],
            "fixed_ctr_ctrl": int(pmu.fixed_ctr_ctrl),
            "fixed": values[8 : 8 + int(pmu.fixed)],
            "global_ctrl": int(pmu.global_ctrl),
            "global_status": int(pmu.global_status),
        }

    def guest_pmu(self) -> dict[str, Any]:
        """The PMU as the guest sees it, in the same form."""
        if not self.has_host:
            return self.hardware_pmu()
        from vpmu_emu.views.pmu import guest_pmu

        found: dict[str, Any] = guest_pmu(self.S)
        return found

    def cycles_by(self) -> dict[str, int]:
        """Where the time of all cores went, in cycles: guest, each part of the host's work, idle."""
        from vpmu_emu.machine.state import CLASS

        cycles = CLASS["cycles"]
        found = dict.fromkeys(PARTS, 0)
        unhalted = whole = 0
        for core, host in zip(self.cores, self.S.percpu, strict=False):
            for part, spent in zip(PARTS, host.spent, strict=True):
                found[part] += int(spent)
            found["tasks"] += int(host.user_cycles) >> 4
            unhalted += (int(core.total[0, cycles]) + int(core.total[1, cycles])) >> 4
            whole += int(core.t) >> 4
        guest = unhalted - sum(found.values())
        return {"guest": guest, **found, "idle": whole - unhalted}

    def msr_statistics(self) -> dict[str, dict[str, int]]:
        """Reads, writes and exits of every MSR that the guest touched."""
        counts = {
            key: np.sum([core.stats[f"msr_{key}"] for core in self.cores], axis=0).tolist()
            for key in ("reads", "writes", "exits")
        }
        found: dict[str, dict[str, int]] = {}
        for row in MSRS:
            for n in range(row.count):
                here = {key: values[row.slot + n] for key, values in counts.items()}
                if any(here.values()):
                    found[msr_name(row.index + n * row.stride)] = here
        return found

    def rdpmc_statistics(self) -> dict[str, int]:
        """RDPMCs of the program that did not fault, and those that exited."""
        reads = sum(int(core.stats.rdpmcs) for core in self.cores)
        return {"reads": reads, "exits": self.exits().get("RDPMC", 0)}

    def unsupported(self) -> dict[str, Any] | None:
        """The first instruction outside of `isa/instructions.toml` that was executed: it got #UD.

        UD2 and opcodes that no processor has are not meant.
        """
        E = self.E
        count, rip = int(E.outside_n), int(E.outside_rip)
        if not count:
            return None
        place, who = self.program.place(rip), "the program"
        for task in self._host_killed() if self.has_host else ():
            if task["killed"]["signal"] == "SIGILL" and task["killed"]["rip"] == rip:
                place, who = task["killed"]["line"] or "", f"{task['program']} of the host"
        code = bytes(E.outside[: min(8, int(E.outside_size))])
        kind = _kind_of(code)
        text = (
            f"the instruction at {rip:#x}{f' ({place})' if place else ''}, bytes {code.hex(' ')} …, "
            f"is outside of the emulated instruction set{kind and f' ({kind})'}; {who} got #UD"
            f"{f', {count} times in all' if count > 1 else ''}"
        )
        return {"rip": rip, "line": place or None, "bytes": code.hex(), "count": count, "text": text}

    def uncounted(self) -> dict[str, str]:
        """Counters with which the program asked for an event that they do not count, and why not."""
        selectors = [int(v) for v in self.core.pmu.uncounted]
        if self.has_host:
            pmcs = self.S.vcpus[0].pmu.pmcs
            selectors = [v or int(pmcs[i].uncounted) for i, v in enumerate(selectors)]
        return {
            f"pmc{i}": f"{event_text(v)}: {why_uncounted(v, self.model.events)}"
            for i, v in enumerate(selectors)
            if v
        }

    def notes(self) -> list[str]:
        """What the machine could not do for the program so far, in sentences."""
        missing = self.unsupported()
        found = [missing["text"]] if missing else []
        return found + [f"{name} counts nothing for {why}" for name, why in self.uncounted().items()]

    def _host_killed(self) -> list[dict[str, Any]]:
        """The tasks of the host that a signal has killed."""
        from vpmu_emu.views.tasks import tasks_report

        return [task for task in tasks_report(self.S, self._host.programs) if task["killed"]]

    def exits(self) -> dict[str, int]:
        """VM exits by reason, only those that happened."""
        counts = np.sum([core.stats.exits for core in self.cores], axis=0)
        return {exit_name(k): int(n) for k, n in enumerate(counts) if n}

    def record(self) -> bytes:
        """The whole record; equal bytes mean equal runs."""
        return bytes(self._array.tobytes())

    def read(self, address: int, size: int) -> bytes:
        """Memory of the program; bytes outside it read as zero."""
        return read_ram(self.M[: self.ram_size], address, size)

    def events(self) -> np.ndarray[Any, Any]:
        """The trace ring in order, oldest first (fields t kind cpu rip a b c)."""
        return self.events_since(0)

    def events_since(self, head: int) -> np.ndarray[Any, Any]:
        """A copy of the events from number `head` on that are not lost."""
        ring, now = self.E.ring, int(self.E.ring_head)
        first = max(min(head, now), now - len(ring), 0)
        low, high = first % len(ring), first % len(ring) + now - first
        return np.concatenate((ring[low:high], ring[: max(0, high - len(ring))]))

    def result(self, stop: Stop) -> Result:
        """Everything that a run did, as the documented schema."""
        core = self.core
        guest = self.guest_pmu()
        counters = {f"pmc{i}": v for i, v in enumerate(guest["pmc"])}
        counters |= {f"fixed{i}": v for i, v in enumerate(guest["fixed"])}
        values: dict[str, Any] = {
            "schema": 1,
            "vpmu": self.mode,
            "cpu": self.model.name,
            "instructions": self.instructions,
            "cycles": int(core.t) >> 4,
            "cycles_by": self.cycles_by(),
            "exits": self.exits(),
            "msr": self.msr_statistics(),
            "rdpmc": self.rdpmc_statistics(),
            "pmis": int(core.stats.pmis),
            "pmis_hw": int(core.stats.pmis_hw),
            "counters": counters,
            "uncounted": self.uncounted(),
            "global_status": guest["global_status"],
            "hw": self.hardware_pmu(),
            "registers": self.registers(),
            "serial": self.serial,
            "exit_code": stop.info if stop.reason == "debug-exit" else None,
            "stop": stop.reason,
            "stop_info": stop.info,
            "stop_rip": stop.rip,
            "stop_line": f"{stop.file}:{stop.line}" if stop.line is not None else None,
            "why": list(stop.why),
            "notes": self.notes(),
            "unsupported": self.unsupported(),
            "lost": self.lost(),
            "engine": "translator" if self._regions else "interpreter",
            "jit_s": round(self.jit_s, 6),
            "wall_s": round(self.wall_s, 6),
        }
        if len(self.cores) > 1:
            values["cores"] = [
                {
                    "instructions": _done(each),
                    "cycles": int(each.t) >> 4,
                    "rip": int(each.rip),
                    "hw": self.hardware_pmu(k),
                }
                for k, each in enumerate(self.cores)
            ]
        if self.has_host:
            from vpmu_emu.views.host import report

            values |= report(self.S, self._host.programs)
        memory = self.M[: self.ram_size]
        return Result(values, memory, self.record(), self.events(), self.model, self.program)


def _kind_of(code: bytes) -> str:
    """Which extension the bytes belong to, with the compiler's switch against it; "" if unknown."""
    code = code.lstrip(b"\x66\xf2\xf3\x2e\x36\x3e\x26\x64\x65\x67")
    if code[:1] and code[0] & 0xF0 == 0x40:
        code = code[1:]
    if code[:1] in (b"\xc4", b"\xc5", b"\x62"):
        kind = "AVX"
    elif code[:1] and 0xD8 <= code[0] <= 0xDF:
        kind = "x87"
    elif code[:1] == b"\x0f" and code[1:2] and (
        0x10 <= code[1] < 0x18 or 0x28 <= code[1] < 0x30 or 0x50 <= code[1] < 0x80 or code[1] >= 0xD0
    ):
        kind = "SSE"
    else:
        return ""
    return f"{kind}: compile with -mgeneral-regs-only"


def translator_of(E: Any, options: Options) -> Any:
    """What makes native code for a machine with engine record E; None where there is to be none.

    Raises:
        ConfigError: the environment asks for what there is not.
    """
    from vpmu_emu import _jit

    # What is not asked for is as the environment says: a suite of tests runs under either engine.
    said = {key: os.environ.get(f"VPMU_{key.upper()}", "") for key in ("engine", "hot")}
    free = {key for key in said if getattr(options, key) == OPTIONS[key].usual}
    options = Options.of({key: text for key, text in said.items() if text and key in free}, options)
    known("VPMU_ENGINE", "engine", options.engine, ENGINES)
    if options.engine == "interpreter" or not _jit.COMPILES:
        return None
    from vpmu_emu.machine.translate.translator import Translator

    return Translator(E, hot=options.hot, waits=options.engine == "translator")


def _done(core: Any) -> int:
    """Instructions of the program, not the host's, that a core retired, and those that KVM did on it."""
    own = int(core.stats.host_insns) + int(core.stats.task_insns)
    return int(core.total[0, 0]) + int(core.total[1, 0]) - own + int(core.stats.emulated)


def _counters(core: Any) -> list[int]:
    """Values of all counters of the record, computed as the silicon does; armed ones up to now."""
    from vpmu_emu.machine.state import N_CTR

    found = np.zeros(N_CTR, dtype=np.uint64)
    from vpmu_emu.machine import engine

    compiled: Any = engine
    with np.errstate(over="ignore"):
        compiled.read_counters(core, found)
    return [int(v) for v in found]


def with_saved(options: Options, program: Program | None) -> Options:
    """The options of a run that goes on from a saved VM, which is loaded; its memory is as large as it was.

    Raises:
        ConfigError: the file is none, or contradicts `program` or the options.
    """
    from vpmu_emu.setup.saved import SavedVm, load_saved

    saved = options.restore
    if not isinstance(saved, SavedVm):
        saved = load_saved(saved)
    ram, usual = int(saved.facts["ram"]), OPTIONS["ram"].usual
    if options.ram not in (ram, usual):
        raise ConfigError("ram", f"the guest of {saved.name} has {ram} MiB, not {options.ram}", str(ram))
    if program is not None and _image(program) != _image(saved.program):
        other = saved.program.name
        raise ConfigError("restore", f"{saved.name} is of program {other}, not of this {program.name}")
    return attrs.evolve(options, restore=saved, ram=ram)


def _image(program: Program) -> list[tuple[int, bytes]]:
    return [(s.addr, bytes(s.data)) for s in program.segments if s.data]


def run(
    program: Program | str | Path | None, options: Options | None = None, /, *,
    ready: Callable[[], None] | None = None, begin: Callable[[System], object] | None = None, **asked: Any,
) -> Result:
    """Run a program to its end and say what it did.

    Args:
        program: a program, or the path of a source file or an ELF executable; None with `restore`.
        options, ready, asked: as for `System`; with `trace` the result keeps the event ring.
        begin: called with the machine before its first instruction.

    Raises:
        VpmuError: whatever is wrong with program or options; KeyboardInterrupt: Ctrl-C.
    """
    options = Options.of(asked, options)
    options.check()  # before a file is read
    if program is not None and not isinstance(program, Program):
        program = load(program, options.defsym)
    system = System(program, options, ready=ready)
    if begin is not None:
        begin(system)
    try:
        stop = system.run()
    except KeyboardInterrupt as interrupt:
        interrupt.add_note(f"{system.program.name}: {system.stop(0, 'interrupted')}")
        raise
    write_saved(system)
    return system.result(stop)


def write_saved(system: System) -> None:
    """Write the file of --save, if the guest was saved."""
    data = system.saved_vm()
    if data is not None:
        write_output(system.options.save, data)


def check_left_out(options: Options) -> None:
    """Look at options of which this mode has no use for some, for a run without those.

    Raises:
        ConfigError, HostError: no mode takes them; LoadError, AssemblyError: a program of the host.
    """
    from vpmu_emu.setup.vm import vm_settings

    model = host_model(options.cpu, options.settings)
    refused = None
    for mode in MODES.values():
        if mode.enable_pmu:
            try:
                attrs.evolve(options, vpmu=mode.name).check()
                vm_settings(model, mode, options)
                break
            except ConfigError as error:
                refused = error
    else:
        assert refused is not None
        raise refused
    for program in options.host:
        if not isinstance(program, Program):
            load(program)
