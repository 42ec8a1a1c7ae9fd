"""What a policy of `--switch` costs: cycles of a CPUID exit, and the time in which the host cannot profile.

    python benchmarks/switch.py        the table of docs/switch.md

The guest has 8 + 3 counters and does nothing but CPUID. Emerald Rapids took 4000 cycles of the TSC an exit
before WRMSRs of counters were left out, and 3000 after (commit b0b6a8d3be16). Cycles are virtual: the table
is the same on every machine.
"""

from __future__ import annotations

from typing import Any

from vpmu_emu.asm import assemble
from vpmu_emu.options import COST_LEVELS
from vpmu_emu.system import run
from vpmu_emu.tables.modes import MODES, SWITCH_POLICIES

CPU = "emr"
EXITS = 400
GUEST = """
        .intel_syntax noprefix
        .globl _start
_start: .if {on}
        mov ecx, 0x38f; xor eax, eax; xor edx, edx; wrmsr
        {selectors}
        mov ecx, 0x38d; mov eax, 0x333; xor edx, edx; wrmsr
        mov ecx, 0x38f; mov eax, 0xff; mov edx, 7; wrmsr
        .endif
        mov r12d, {exits}
again:  xor eax, eax
        cpuid
        dec r12d
        jnz again
        mov eax, 0; out 0xf4, al
"""
EVENTS = (0xC0, 0x3C, 0xC4, 0xC5, 0x4F2E, 0x412E, 0x13C, 0xC0)
SELECTORS = "\n".join(
    f"mov ecx, {0x186 + i:#x}; mov eax, {0x430000 | event:#x}; xor edx, edx; wrmsr"
    for i, event in enumerate(EVENTS)
)


def measured(mode: str, policy: str | None, on: bool, costs: str = "typical") -> tuple[float, float]:
    """(cycles of a CPUID exit, share of the time in which the host cannot profile)."""
    options: dict[str, Any] = {"switch": policy} if policy else {}
    cycles, blind = [], []
    for exits in (EXITS, 2 * EXITS):
        program = assemble(GUEST.format(on=int(on), selectors=SELECTORS, exits=exits))
        result = run(program, vpmu=mode, cpu=CPU, ram=2, costs=costs, **options).to_json()
        cycles.append(result["cycles"])
        blind.append(result["kvm"].get("switch", {"host_blind": {"cycles": 0}})["host_blind"]["cycles"])
    spent = cycles[1] - cycles[0]
    return spent / EXITS, (blind[1] - blind[0]) / spent


def table() -> str:
    """The table as Markdown."""
    interval = f"{COST_LEVELS[0]} to {COST_LEVELS[2]}"
    heads = ("mode", "policy", "idle: cycles an exit", interval, "host blind", "all 11 count", "host blind")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    rows = [(mode.name, policy) for mode in MODES.values() if mode.owns_pmu for policy in SWITCH_POLICIES]
    for mode, policy in [("none", None), ("emulated", None), *rows]:
        idle, blind = measured(mode, policy, False)
        low, high = (measured(mode, policy, False, level)[0] for level in (COST_LEVELS[0], COST_LEVELS[2]))
        cells = [mode, policy or "", f"{idle:.0f}", f"{low:.0f} to {high:.0f}", f"{blind:.0%}"]
        if MODES[mode].enable_pmu:
            busy, away = measured(mode, policy, True)
            cells += [f"{busy:.0f}", f"{away:.0%}"]
        else:
            cells += ["", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
