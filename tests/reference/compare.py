"""Runs one program on the engine and on the reference and lists what differs, in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vpmu_emu.asm import Program, assemble
from vpmu_emu.system import System

from .interpreter import Reference
from .modes import EXITS
from .pmu import MODELLED_FIXED, Shape

RAM_MIB = 2
STOPS = {
    "exit": "debug-exit",
    "triple_fault": "triple-fault",
    "halted": "halted",
    "max_steps": "max-insns",
}
NAMES = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip
# Frames on a stack hold flags that may be undefined; results are compared where programs put them.
STACKS = ("ring0_stack", "user_stack")
STACK_TOP = 0x2000


@dataclass
class Outcome:
    """What a guest can know at the end: the same in both machines."""

    stop: str
    registers: list[int]
    rip: int
    rflags: int
    memory: bytes
    gp: list[int]
    fixed: list[int]
    selectors: list[int]
    fixed_ctrl: int
    global_ctrl: int
    status: int
    retired: int
    serial: str


def reference_run(
    program: Program, shape: Shape, max_insns: int, **options: Any
) -> tuple[Outcome, Reference]:
    ref = Reference(
        [(s.addr, s.data) for s in program.segments],
        program.entry,
        RAM_MIB << 20,
        shape,
        **options,
    )
    ref.run(3 * max_insns, max_insns)
    outcome = Outcome(
        STOPS[str(ref.stop_reason)],
        list(ref.regs),
        ref.rip,
        ref.rflags,
        bytes(ref.mem),
        list(ref.pmu.gp),
        list(ref.pmu.fixed),
        list(ref.pmu.evtsel),
        ref.pmu.fixed_ctrl,
        ref.pmu.global_ctrl,
        ref.pmu.status,
        ref.retired,
        ref.serial.decode("latin-1"),
    )
    return outcome, ref


def engine_run(program: Program, max_insns: int, **options: Any) -> Outcome:
    system = System(program, ram=RAM_MIB, max_insns=max_insns, **options)
    stop = system.run()
    registers = system.registers()
    pmu = system.guest_pmu()
    return Outcome(
        stop.reason,
        [registers[name] for name in NAMES],
        registers["rip"],
        registers["rflags"],
        system.result(stop).read(0, RAM_MIB << 20),
        list(pmu["pmc"]),
        list(pmu["fixed"]),
        list(pmu["eventsel"]),
        pmu["fixed_ctr_ctrl"],
        pmu["global_ctrl"],
        pmu["global_status"],
        system.instructions,
        system.serial,
    )


def _place(program: Program, address: int) -> str:
    below = [(v, k) for k, v in program.symbols.items() if v <= address]
    if not below:
        return f"{address:#x}"
    value, name = max(below)
    return f"{name}+{address - value:#x}"


def memory_differences(program: Program, a: bytes, b: bytes) -> list[str]:
    """Words of memory that differ, stacks left out."""
    if a == b:
        return []
    rows = []
    for at in range(0, len(a), 8):
        if a[at : at + 8] == b[at : at + 8] or at >= len(a) - STACK_TOP:
            continue
        # A stack grows down from its label, so its words belong to the label above them.
        if any(
            0 < program.symbols.get(name, 0) - at <= 1024 for name in STACKS
        ):
            continue
        left, right = (int.from_bytes(m[at : at + 8], "little") for m in (a, b))
        rows.append(f"{_place(program, at)}: {left:#x} against {right:#x}")
    return rows[:8]


def outcome_differences(
    program: Program, a: Outcome, b: Outcome, *, undefined: int = 0, fixed: set[int] | None = None
) -> list[str]:
    rows = []
    for field in ("stop", "rip", "fixed_ctrl", "global_ctrl", "status", "serial", "retired"):
        left, right = getattr(a, field), getattr(b, field)
        if left != right:
            show = hex if isinstance(left, int) else repr
            rows.append(f"{field}: {show(left)} against {show(right)}")
    for name, left, right in zip(NAMES, a.registers, b.registers, strict=True):
        if left != right:
            rows.append(f"{name}: {left:#x} against {right:#x}")
    if (a.rflags ^ b.rflags) & ~undefined:
        rows.append(f"rflags: {a.rflags:#x} against {b.rflags:#x}, undefined {undefined:#x}")
    for i, (left, right) in enumerate(zip(a.gp, b.gp, strict=False)):
        if left != right:
            rows.append(f"pmc{i}: {left:#x} against {right:#x}")
    for i, (left, right) in enumerate(zip(a.selectors, b.selectors, strict=False)):
        if left != right:
            rows.append(f"eventsel{i}: {left:#x} against {right:#x}")
    for i, (left, right) in enumerate(zip(a.fixed, b.fixed, strict=False)):
        if left != right and (fixed is None or i in fixed):
            rows.append(f"fixed{i}: {left:#x} against {right:#x}")
    return rows + memory_differences(program, a.memory, b.memory)


def differences(
    text: str, *, shape: Shape | None = None, max_insns: int = 30_000, **options: Any
) -> list[str] | None:
    """Reference (left) against engine (right); None if the program reads what no manual defines."""
    program = assemble(text)
    left, ref = reference_run(program, shape or Shape(), max_insns)
    if ref.tainted:
        return None
    right = engine_run(program, max_insns, **options)
    return outcome_differences(
        program, left, right, undefined=ref.undefined, fixed=set(MODELLED_FIXED)
    )


def expected_in_mode(text: str, mode: str, *, max_insns: int = 30_000) -> list[str] | None:
    """As `differences`, for a program that leaves the agreement class without a PMI.

    The reference knows which instructions exit in `mode` and counts those as KVM does, so reads of
    running counters and windows closed by another MSR are predicted, not excused.
    """
    program = assemble(text)
    shape = Shape(version=2, fixed=3)
    left, ref = reference_run(program, shape, max_insns, exits=EXITS[mode])
    if ref.tainted:
        return None
    right = engine_run(program, max_insns, vpmu=mode)
    if mode == "emulated":
        # pmc_update_sample_period() forgets what perf has counted: an overflow late, or at once.
        left.status &= ~ref.running_writes
        right.status &= ~ref.running_writes
    return outcome_differences(
        program, left, right, undefined=ref.undefined, fixed=set(MODELLED_FIXED)
    )
