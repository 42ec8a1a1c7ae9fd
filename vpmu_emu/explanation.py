"""What becomes of one RDMSR, WRMSR or RDPMC: a guest does it, and the trace of that run is told.

Nothing is decided here, so an explanation cannot disagree with a run: it is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs

from vpmu_emu.asm import Program, assemble
from vpmu_emu.debug.session import Session
from vpmu_emu.errors import ConfigError
from vpmu_emu.machine.processor_flags import X86_CR4_PCE
from vpmu_emu.numerals import shown, whole
from vpmu_emu.options import OWNED, Options
from vpmu_emu.report import Table, html, plain
from vpmu_emu.tables.modes import MODES
from vpmu_emu.tables.msrs import by_name, decode_value, msr_name, row_of, value_words
from vpmu_emu.tables.passed import Met
from vpmu_emu.views.access import Asked, Step, intercept_state, told
from vpmu_emu.views.switch import sequence, switch_report
from vpmu_emu.views.words import rdpmc_name

ACTIONS = ("rdmsr", "wrmsr", "rdpmc")
SWITCH = "switch"  # no access: an exit that has nothing to do with the PMU
PATIENCE = 200_000  # instructions: what a guest may do before its access
CR4_PCE = int(X86_CR4_PCE).bit_length() - 1  # for BTS and BTR
RAM_MIB = 2

# An IDT, so that #GP ends the run by the debug port; what was before; the ring; the access.
_GUEST = """
        .include "msr.inc"
        .include "macros.inc"
        .text
        .globl _start
_start:
        load_idt
        set_gate 13, refused
        set_gate 2, interrupted
        mov rax, cr4
        {pce} rax, {bit}
        mov cr4, rax
{before}
{ring}
ready:
{access}
done:
        debug_exit 0
refused:
        debug_exit 1
interrupted:
        iretq
        idt_storage
        ring3_storage
"""
_TO_RING_3 = """
        load_tss
        push_user_frame ready
        iretq
"""


@attrs.frozen(repr=False)
class Explanation:
    """An access that was done.

    Attributes:
        steps: what happened, in order.
        fault: whether it raised #GP.
        value: EDX:EAX after a read; for a write what RDMSR gives afterwards. None if there is none.
    """

    steps: tuple[Step, ...]
    fault: bool
    value: int | None

    def __repr__(self) -> str:
        decided = [f"decided by {step.what}" for step in self.steps if step.decides][-1:]
        end = ["#GP"] if self.fault else [] if self.value is None else [f"value {self.value:#x}"]
        return f"<Explanation: {', '.join([f'{len(self.steps)} steps', *decided, *end])}>"

    def __str__(self) -> str:
        return plain(self._table())

    def _repr_html_(self) -> str:
        return html([self._table()])

    def _table(self) -> Table:
        return Table("", ("", ""), tuple((step.what, step.verdict) for step in self.steps))

    @property
    def decides(self) -> str:
        """The subject of the last step that decided."""
        return [step.what for step in self.steps if step.decides][-1]


def parse_number(text: str, key: str) -> int:
    """An integer as written in assembler, `0x` and `_` allowed.

    Raises:
        ConfigError: anything else, or a value that 64 bits cannot hold.
    """
    value = whole(text)
    if value is None and text.strip().isdigit():
        raise ConfigError(key, f"{shown(text)} does not fit 64 bits")
    if value is None:
        raise ConfigError(key, f"{shown(text)} is not a number", "42, 0x2a, 0b101010; at most 64 bits")
    if not -(1 << 63) <= value < 1 << 64:
        raise ConfigError(key, f"{shown(text)} does not fit 64 bits")
    return value & (1 << 64) - 1


def parse_index(text: str, key: str) -> int:
    """What ECX can hold, as a number.

    Raises:
        ConfigError: something else.
    """
    value = whole(text)
    if value is None or not 0 <= value < 1 << 32:
        raise ConfigError(key, f"{shown(text)} is not what ECX can hold", "0 to 0xffffffff")
    return value


def parse_msr(text: str, key: str = "MSR") -> int:
    """An MSR by name or number.

    Raises:
        ConfigError: no number of an MSR; UnknownNameError: no such name, with the nearest.
    """
    return parse_index(text, key) if text.strip()[:1] in ("-", "+", *"0123456789") else by_name(text)


def parse_settings(words: Iterable[str]) -> list[tuple[int, int]]:
    """`NAME=VALUE` words as (MSR, value).

    Raises:
        ConfigError, UnknownNameError: as for WHAT and VALUE.
    """
    found = []
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise ConfigError("msr", f"{shown(word)} is not NAME=VALUE", "IA32_PMC0=5, 0xc1=5")
        found.append((parse_msr(name, "msr"), parse_number(text, "msr")))
    return found


def _load(index: int, value: int) -> str:
    return (
        f"        mov ecx, {index:#x}\n        mov eax, {value & 0xFFFF_FFFF:#x}\n"
        f"        mov edx, {value >> 32:#x}\n"
    )


def guest(
    action: str, index: int, value: int, before: Iterable[tuple[int, int]], cpl: int, pce: bool
) -> Program:
    """The program that does one access at `access`, then is at `after`, or at `refused` if it is #GP."""
    first = "".join(f"{_load(*pair)}before{k}:\n        wrmsr\n" for k, pair in enumerate(before))
    access = f"{_load(index, value)}access:\n        {action}\nafter:\n"
    if action == "wrmsr":
        access += "        rdmsr\n"  # what a guest reads there now
    text = _GUEST.format(
        pce="bts" if pce else "btr", bit=CR4_PCE, before=first, access=access,
        ring=_TO_RING_3 if cpl else "",
    )  # fmt: skip
    return assemble(text, "<explain>")


def explain(
    action: str,
    what: str,
    value: int | None = None,
    *,
    cpl: int = 0,
    pce: bool = False,
    msrs: Iterable[tuple[int, int]] = (),
    ready: Callable[[], None] | None = None,
    **options: Any,
) -> Explanation:
    """Do one access in the given state, and tell what became of it.

    Args:
        action: one of `ACTIONS`.
        what: an MSR's name or number; for rdpmc the value of ECX.
        value: what is written, 0 if None; for rdmsr what the guest writes there before.
        cpl: 0 or 3; pce: CR4.PCE.
        msrs: (MSR, value) that the guest writes before, in order.
        ready, options: as for `System`: the mode and the rest of the state.

    Raises:
        ConfigError, UnknownNameError: an access or a state that cannot be.
    """
    chosen = Options.of({"ram": RAM_MIB, "max_insns": PATIENCE, **options})
    chosen.check()
    if action == SWITCH:
        raise ConfigError("ACTION", "a switch is no access; see explain_switch()", " ".join(ACTIONS))
    before = list(msrs)
    if action == "rdpmc":
        if value is not None:
            raise ConfigError("VALUE", "RDPMC takes none: its counter is in ECX")
        index = parse_index(what, "ECX")
    else:
        index = parse_msr(what)
        if action == "rdmsr" and value is not None:
            before.append((index, value))
    written = (value or 0) if action == "wrmsr" else 0
    program = guest(action, index, written, before, cpl, pce)
    session = Session(program, chosen, ready=ready)
    system = session.system
    labels = program.symbols
    _run_to(session, labels, ("access",), before)
    at = int(system.E.ring_head)
    core = system.core
    met = int(core.cpl), int(core.cr4) >> CR4_PCE & 1
    decides = intercept_state(system.S, system.model) if system.has_host else Met()
    asked = Asked(action, index, written, *met, system.has_host, system.model.events, decides)
    seen = session.pmu()
    session.delete()
    _run_to(session, labels, ("after", "refused"), before)
    events = _since(system, at)
    fault = session.rip == labels["refused"]
    steps = [*_introduced(asked, value), *told(asked, events, system.S)]
    found: int | None = None
    if fault:
        steps.append(Step("effect", "none: the program goes on in its handler of #GP, at CPL 0"))
    else:
        changed = _changes(seen, session.pmu())
        if action == "wrmsr":
            found = _read_back(session, labels)
            reads = f"reads {found:#x}" if found is not None else "cannot be read"
            steps.append(Step("effect", f"{msr_name(index)} {reads}"))
        else:
            registers = session.registers()
            found = registers["rdx"] << 32 | registers["rax"]
            steps.append(Step("effect", f"EDX:EAX = {found:#x}"))
        if changed:
            steps.append(Step("PMU of the guest", changed))
    return Explanation(tuple(steps), fault, found)


def explain_switch(
    *,
    msrs: Iterable[tuple[int, int]] = (),
    ready: Callable[[], None] | None = None,
    **options: Any,
) -> Explanation:
    """Have a guest in the given state exit by CPUID, and tell what its PMU context costs until it goes on.

    Args:
        msrs, ready, options: as for `explain`.

    Raises:
        ConfigError, UnknownNameError: a state that cannot be, or a mode in which no guest owns the PMU.
    """
    chosen = Options.of({"ram": RAM_MIB, "max_insns": PATIENCE, **options})
    chosen.check()
    if not OWNED.fits(chosen.mode):
        may = " ".join(mode.name for mode in MODES.values() if OWNED.fits(mode))
        raise ConfigError("vpmu", f"nothing is switched: {OWNED.why} in mode {chosen.mode.name}", may)
    before = list(msrs)
    session = Session(guest("cpuid", 0, 0, before, 0, False), chosen, ready=ready)
    system = session.system
    labels = system.program.symbols
    _run_to(session, labels, ("access",), before)
    at, found = int(system.E.ring_head), switch_report(system.S)
    if not found:
        raise ConfigError("vpmu", f"nothing is switched: {OWNED.why} on this host", "see the kernel's log")
    session.delete()
    _run_to(session, labels, ("after",), before)
    steps = sequence(_since(system, at), system.S, found, switch_report(system.S))
    return Explanation(tuple(steps), False, None)


def _run_to(
    session: Session, labels: Mapping[str, int], names: Iterable[str], before: list[tuple[int, int]]
) -> None:
    stops = {labels[name] for name in (*names, "refused")}
    for address in sorted(stops):
        session.break_at(address)
    stop = session.cont()
    wanted = {labels[name] for name in names}
    if stop.reason == "break" and stop.rip in wanted:
        return
    for k, (index, value) in enumerate(before):
        if stop.rip == labels["refused"] and _interrupted_at(session) == labels[f"before{k}"]:
            raise ConfigError("msr", f"{msr_name(index)}={value:#x} raises #GP: it cannot be there before")
    raise ConfigError("msr", f"with that the guest does not get to its access: {stop.text}")


def _interrupted_at(session: Session) -> int:
    # RIP that #GP has pushed, above its error code.
    return int.from_bytes(session.read(session.registers()["rsp"] + 8, 8), "little")


def _since(system: Any, head: int) -> Any:
    fresh = int(system.E.ring_head) - head
    return system.events()[-fresh:] if fresh else []


def _introduced(asked: Asked, value: int | None) -> list[Step]:
    if asked.action == "rdpmc":
        return [Step("ECX", f"{asked.index:#x}: {rdpmc_name(asked.index)}")]
    found = row_of(asked.index)
    doc = f": {found[0].doc}" if found else ""
    steps = [Step("MSR", f"{asked.index:#x} {msr_name(asked.index)}{doc}")]
    if found and (found[0].aliases or found[0].kernel):
        names = [found[0].instance_name(found[1], n) for n in (*found[0].aliases, *found[0].kernel)]
        steps.append(Step("also called", ", ".join(names)))
    if value is not None or asked.action == "wrmsr":
        value = value or 0
        steps.append(Step("value", f"{value:#x} = {value_words(asked.index, value, asked.events)}"))
        for name, bits, words in decode_value(asked.index, value, asked.events):
            if bits:
                steps.append(Step(f"  {name}", f"{bits:#x}" + (f" {words}" if words else "")))
    return steps


def _changes(before: Mapping[str, int], after: Mapping[str, int]) -> str:
    pieces = [
        f"{name} {before.get(name, 0):#x} -> {value:#x}"
        for name, value in after.items()
        if value != before.get(name, 0)
    ]
    return ", ".join(pieces)


def _read_back(session: Session, labels: Mapping[str, int]) -> int | None:
    session.delete()
    _run_to(session, labels, ("done", "refused"), [])
    if session.rip == labels["refused"]:
        return None
    registers = session.registers()
    return registers["rdx"] << 32 | registers["rax"]
