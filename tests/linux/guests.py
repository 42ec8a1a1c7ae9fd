"""Small guests and what the tests ask of their runs."""

from __future__ import annotations

from functools import cache

from vpmu_emu.asm import assemble
from vpmu_emu.machine.ring import TR_HOST_RDMSR, TR_HOST_RDPMC, TR_HOST_WRMSR
from vpmu_emu.system import System

PROLOGUE = """
.intel_syntax noprefix
.macro WRMSR32 index, low
    mov ecx, \\index
    mov eax, \\low
    xor edx, edx
    wrmsr
.endm
.macro RDMSR32 index
    mov ecx, \\index
    rdmsr
.endm
.macro EXIT code
    mov eax, \\code
    out 0xf4, al
.endm
.text
_start:
"""
EVTSEL0, PMC0, A_PMC0 = 0x186, 0xC1, 0x4C1
FIXED_CTR_CTRL, GLOBAL_STATUS, GLOBAL_CTRL, OVF_CTRL = 0x38D, 0x38E, 0x38F, 0x390
INSTRUCTIONS = 0x4300C0  # EN OS USR
BRANCHES = 0x4300C4

# counts with GLOBAL_CTRL as the only switch; {body} runs inside the window
WINDOW = """
    WRMSR32 0x38f, 0
    WRMSR32 0x186, {selector:#x}
    WRMSR32 0x38f, 1
    {body}
    WRMSR32 0x38f, 0
    EXIT 0
"""


@cache
def program(body: str):
    """An assembled guest."""
    return assemble(PROLOGUE + body, "guest.s")


def system(body: str, mode: str, **options):
    """A System that has not run yet."""
    options.setdefault("ram", 2)
    options.setdefault("max_insns", 60_000)
    return System(program(body), vpmu=mode, **options)


def run(body: str, mode: str, **options):
    """(System, Result as JSON) after the run."""
    machine = system(body, mode, **options)
    stop = machine.run()
    assert stop.reason == "debug-exit", str(stop)
    return machine, machine.result(stop).to_json()


def window(body: str, selector: int = INSTRUCTIONS) -> str:
    """A guest that counts `body` on PMC0 between two writes of GLOBAL_CTRL."""
    return WINDOW.format(body=body, selector=selector)


def host_accesses(machine, first: int, last: int) -> list[tuple[str, int, int]]:
    """The host's own (wrmsr|rdmsr|rdpmc, index, value) among ring events first..last."""
    names = {TR_HOST_WRMSR: "wrmsr", TR_HOST_RDMSR: "rdmsr", TR_HOST_RDPMC: "rdpmc"}
    events = machine.events()[first:last]
    return [(names[int(e["kind"])], int(e["a"]), int(e["b"])) for e in events if int(e["kind"]) in names]


def positions(machine, kind: int) -> list[int]:
    """Where events of a kind are in the ring."""
    return [k for k, e in enumerate(machine.events()) if int(e["kind"]) == kind]
