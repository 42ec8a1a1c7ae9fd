"""A stop explains itself: one sentence for each thing that had to come together. Only looks.

The debugger, `vpmu run`, `vpmu check` and Python all have their words from here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from vpmu_emu.linux.kvm import run as kvm_run
from vpmu_emu.linux.state import MP_STATE_ASLEEP, MP_STATE_HALTED, WATCHDOG_NAMES
from vpmu_emu.machine import ring
from vpmu_emu.machine.lapic import LVT_TIMER
from vpmu_emu.machine.msr_index import APIC_LVT_MASKED
from vpmu_emu.tables.exits import exit_name
from vpmu_emu.tables.linux import STRUCTS
from vpmu_emu.tables.msrs import row_of
from vpmu_emu.views.fault_chain import Fault, Where, noted, told
from vpmu_emu.views.pmi_links import broken_links, seen
from vpmu_emu.views.tasks import tasks_report

_WAIT_FOR_SIPI = 2
_FAR = 1 << 20  # bytes: nobody runs so far over what is not his
_LABELS = re.compile(r"^([\w.$]+: *)+")
_MASKED = int(APIC_LVT_MASKED)


def why_stopped(system: Any, reason: str, info: int = 0) -> tuple[str, ...]:
    """Sentences that say why a run has ended or does not end; none if there is nothing to say.

    Args:
        system: a System, as it has stopped.
        reason, info: of its Stop.
    """
    tell = REASONS[reason][1]
    found = tuple(tell(system, info)) if tell else ()
    return (*found, *_outside(system)) if tell in (_triple_fault, _endless) else found


def _outside(system: Any) -> Iterator[str]:
    """Of a program that ran on behind its last instruction, or jumped to where nothing of it is."""
    rip = system.rip if system.has_host else int(system.cores[int(system.E.cpu)].rip)
    sections = [(s.addr, s.addr + len(s.data)) for s in system.program.segments if s.data]
    if not sections or any(low <= rip < high for low, high in sections):
        return
    behind = min((rip - high for _, high in sections if high <= rip), default=_FAR)
    if behind < _FAR:
        yield f"{rip:#x} is {behind:,} bytes behind the end of a section: nothing ended the program there"
    else:
        yield f"{rip:#x} is in no section of the program: it has jumped there"


def _triple_fault(system: Any, _: int) -> Iterator[str]:
    faults = noted(system.E)
    # What is not delivered leaves the processor as it was.
    cpl = seen(system, faults[-1].cpu).cpl if faults else 0
    words = (lambda at: _statement(system, at)), (lambda fault: _reserved(system, fault))
    registers = system.registers()
    if faults and not system.has_host:
        own = map(int, system.cores[faults[-1].cpu].regs[:16])
        registers |= dict(zip(registers, own, strict=False))
    yield from told(faults, Where(*words, cpl, registers))


def _statement(system: Any, address: int) -> str:
    line = system.program.line_at(address)
    return _LABELS.sub("", " ".join(line.text.split())) if line and line.kind == "insn" else ""


def _reserved(system: Any, fault: Fault) -> int:
    found = row_of(fault.a) if fault.kind == ring.TR_MSR_FAULT and fault.c & 1 else None
    if found is None:
        return 0
    core = system.cores[fault.cpu]
    if not system.has_host:
        return int(core.msr_reserved[found[0].number])
    vcpu = system.S.vcpus[0]
    # What KVM refuses it injects at the next entry; hardware refuses after the last one.
    by_kvm = fault.t < int(vcpu.entered_t)
    return int((vcpu if by_kvm else core).msr_reserved[found[0].number])


def _halted(system: Any, _: int) -> Iterator[str]:
    if system.has_host and not _waits(system):
        yield from _asleep(system)
        return
    for k in range(1 if system.has_host else len(system.cores)):
        of = f"CPU {k}: " if len(system.cores) > 1 and not system.has_host else ""
        for sentence in _halted_core(system, k):
            yield of + sentence


def _waits(system: Any) -> bool:
    """Whether the guest of a run with a host is in HLT."""
    return int(system.S.vcpus[0].mp_state) in (MP_STATE_HALTED, MP_STATE_ASLEEP)


def _halted_core(system: Any, k: int) -> Iterator[str]:
    if not system.has_host and int(system.cores[k].activity) == _WAIT_FOR_SIPI:
        yield "nobody has started it: it waits for a SIPI"
        return
    cpu = seen(system, k)
    links = list(broken_links(cpu, halted=True))
    if not cpu.rflags_if:
        yield "HLT with interrupts off (IF = 0): only an NMI would go on from here"
    elif not links:
        yield "HLT, and no interrupt is on its way"
    yield from links
    timer = int(cpu.lapic.lvt[LVT_TIMER])
    if cpu.rflags_if and timer != _MASKED:
        if timer & _MASKED:
            yield f"the APIC timer is masked (LVT_TIMER {timer:#x})"
        else:
            yield f"the APIC timer (LVT_TIMER {timer:#x}) is not armed, or its interrupt came before"


def _asleep(system: Any) -> Iterator[str]:
    tasks = tasks_report(system.S, system._host.programs)
    for task in tasks:
        who = f"{task['program']} (pid {task['pid']})"
        if dead := task["killed"]:
            at = f" ({dead['line']})" if dead["line"] else ""
            yield f"{who} was killed by {dead['signal']} at {dead['rip']:#x}{at}"
        elif task["state"] == "dead":
            yield f"{who} has ended with exit code {task['exit_code']}"
        else:
            yield f"{who} sleeps, and nothing that is left will wake it up"


def _endless(system: Any, _: int) -> Iterator[str]:
    """Of a run that was ended from outside: what it may have been waiting for."""
    for k in range(1 if system.has_host else len(system.cores)):
        if not system.has_host and int(system.cores[k].activity) == _WAIT_FOR_SIPI:
            continue
        halted = _waits(system) if system.has_host else bool(int(system.cores[k].activity))
        of = f"CPU {k}: " if k else ""
        for sentence in broken_links(seen(system, k), halted):
            yield of + sentence


def _shutdown(system: Any, info: int) -> Iterator[str]:
    S = system.S
    vcpu = S.vcpus[0]
    if not int(vcpu.ended):
        yield f"VM entry is refused: the state of the guest is not what VMX takes ({info:#x})"
        return
    page = int(vcpu.run_page)
    at = page + STRUCTS["kvm_run"].offset("internal.suberror")
    suberror = int.from_bytes(system.M[at : at + 4].tobytes(), "little")
    exits = exit_name(info & 0xFFFF)
    sentences = {
        kvm_run.EMULATION_FAILED: "KVM has to emulate this instruction, and its emulator cannot",
        kvm_run.DELIVERY_EV: "an exception or interrupt was being delivered to where only the VMM may have "
        "something, and KVM cannot emulate that",
        kvm_run.UNEXPECTED_EXIT_REASON: "KVM does not know what to do about this exit",
    }
    # Its VMM may have written into that page since.
    what = sentences.get(suberror, sentences[kvm_run.UNEXPECTED_EXIT_REASON])
    yield f"{what} (exit reason {exits}, KVM_EXIT_INTERNAL_ERROR {suberror})"


def _reset(_: Any, __: int) -> Iterator[str]:
    yield "port 0x64, port 0xcf9 or an INIT to itself resets the machine, and there is no firmware to start"


def _hard_lockup(system: Any, info: int) -> Iterator[str]:
    detector = WATCHDOG_NAMES[int(system.S.config.watchdog)]
    yield f"CPU {info} of the host does not serve its interrupts"
    if detector == "off":
        yield "nobody looks for that (--watchdog off), and nothing else can happen"
    else:
        yield f"the watchdog ({detector}) has seen it, and hardlockup_panic is set"


def _end_of_time(system: Any, info: int) -> Iterator[str]:
    yield "nothing happens before 2**63 sixteenths of a cycle are over"
    yield from _endless(system, info)


Tell = Callable[[Any, int], Iterator[str]]
REASONS: dict[str, tuple[str, Tell | None]] = {
    "debug-exit": ("the program wrote its exit code to port 0xf4", None),
    "halted": ("nothing will ever happen again", _halted),
    "triple-fault": ("an exception on the way to the handler of #DF", _triple_fault),
    "shutdown": ("KVM cannot go on with the guest", _shutdown),
    "reset": ("the program reset the machine", _reset),
    "hard-lockup": ("a CPU of the host is locked up", _hard_lockup),
    "max-insns": ("the limit of instructions is reached", _endless),
    "max-cycles": ("the limit of cycles is reached", _endless),
    "end-of-time": ("nothing happens in the time that there is", _end_of_time),
    "saved": ("the VMM has saved the guest", None),
    "interrupted": ("Ctrl-C", _endless),
    "break": ("a breakpoint", None),
    "watch": ("an access that somebody watches", None),
    "until": ("the debugger is where it was told to go", None),
    "step": ("so many instructions were asked for", None),
    "running": ("it goes on", None),
}
"""Every reason of a Stop: what it means, and who tells more of it."""
