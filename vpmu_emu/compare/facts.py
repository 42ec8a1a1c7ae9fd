"""What a first difference is made of, as numbers: the names that `when` of a row of the table may use.

The run that is looked at is the one that a row speaks of, `against.NAME` is the other; whether it is the
first or the second of the command does not matter. docs/divergences.md, guests/divergences/rows.toml.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import attrs

from vpmu_emu.asm.disassemble import disassemble_one
from vpmu_emu.compare.diff import Difference
from vpmu_emu.compare.lane import FIXED, GP, Lane, Look
from vpmu_emu.linux import trace_kinds as lk
from vpmu_emu.linux.state import QUIRKS, V1
from vpmu_emu.machine import msr_index as mi
from vpmu_emu.machine import ring as mk
from vpmu_emu.machine.lapic import LVT_TIMER
from vpmu_emu.tables.divergences import DIVERGENCES, Divergence
from vpmu_emu.tables.events import constraint
from vpmu_emu.tables.exits import exit_name
from vpmu_emu.tables.expressions import evaluate
from vpmu_emu.tables.modes import MODES
from vpmu_emu.tables.msrs import row_of
from vpmu_emu.views.words import RDPMC_FIXED

FORCED = b"\x0f\x0bkvm"  # the forced emulation prefix
_STOPS = ("halted", "triple-fault", "shutdown", "debug-exit")
_MADE = (lk.REPROGRAM_CREATE, lk.REPROGRAM_RESUME, lk.REPROGRAM_FAILED)
_M64 = (1 << 64) - 1
_PER_CYCLE = sum(
    map(int, (mi.ARCH_PERFMON_EVENTSEL_CMASK, mi.ARCH_PERFMON_EVENTSEL_INV, mi.ARCH_PERFMON_EVENTSEL_EDGE))
)
_COUNTERS = (1 << 48) - 1  # of GLOBAL_STATUS
_HANDLERS = {
    "MSR_READ": "kvm_emulate_rdmsr", "MSR_WRITE": "kvm_emulate_wrmsr", "RDPMC": "kvm_emulate_rdpmc",
    "CPUID": "kvm_emulate_cpuid", "HLT": "kvm_emulate_halt", "VMCALL": "kvm_emulate_hypercall",
    "IO_INSTRUCTION": "handle_io", "EXCEPTION_NMI": "handle_exception_nmi", "INVD": "kvm_emulate_invd",
    "EXTERNAL_INTERRUPT": "handle_external_interrupt", "EPT_VIOLATION": "handle_ept_violation",
    "EPT_MISCONFIG": "handle_ept_misconfig", "XSETBV": "kvm_emulate_xsetbv", "DR_ACCESS": "handle_dr",
    "NMI_WINDOW": "handle_nmi_window", "PREEMPTION_TIMER": "handle_preemption_timer",
}  # fmt: skip
_EVENTS = (0xC0, 0x3C, 0x13C, 0x1A4)  # of the fixed counters


@attrs.frozen
class Step:
    """The instruction at which two runs part."""

    rip: int
    text: str
    place: str
    forced: bool
    size: int


def step_of(found: Difference) -> Step | None:
    """The instruction, None where the runs are at different ones already."""
    a, b = found.before
    if a.rip != b.rip:
        return None
    lane = found.lanes[0]
    code = lane.system.read(a.rip, 24)
    forced = code.startswith(FORCED)
    at = len(FORCED) if forced else 0
    statement = disassemble_one(code[at:], a.rip + at)
    text = statement.text if statement is not None else code[at : at + 1].hex()
    size = at + (statement.size if statement is not None else 1)
    return Step(a.rip, text, lane.system.program.place(a.rip), forced, size)


@attrs.define
class Window:
    """How a counter of one run came to be on or off, from the trace: -1 where nothing of it is there."""

    opened: int = -1  # the MSR whose write opened it, and whether that write left the guest
    opened_exits: int = 0
    closed: int = -1
    closed_exits: int = 0
    window_exits: int = 0  # between the two
    software: int = 0  # instructions that KVM counted in it, the opener among them
    writes: int = 0  # to the counter, in the window
    preset: int = -1  # events from overflow, as it was written last
    per_cycle: int = 0  # CMASK, INV and EDGE of the selectors that it had on since it was written last
    timed: int = 0  # one of them counted cycles or the like
    shift: int = 0  # instructions that it has more than silicon, because of who counts its own WRMSRs


def _is_time(event: int) -> bool:
    return event & 0xFF in (0x3C, 0xA4) or event == 0x300


def registers_of(name: str) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """(MSRs that turn a counter on and off, MSRs that load it, its bit in GLOBAL_CTRL)."""
    if name.startswith(FIXED):
        i = int(name.removeprefix(FIXED))
        on = (int(mi.MSR_CORE_PERF_FIXED_CTR_CTRL), int(mi.MSR_CORE_PERF_GLOBAL_CTRL))
        return on, (int(mi.MSR_CORE_PERF_FIXED_CTR0) + i,), 32 + i
    i = int(name.removeprefix(GP))
    on = (int(mi.MSR_P6_EVNTSEL0) + i, int(mi.MSR_CORE_PERF_GLOBAL_CTRL))
    return on, (int(mi.MSR_IA32_PERFCTR0) + i, int(mi.MSR_IA32_PMC0) + i), i


def window_of(lane: Lane, first: Look, name: str, steps: int = 0) -> Window:
    """The last window of a counter, from the accesses in the trace but its last `steps` events."""
    switches, loads, bit = registers_of(name)
    value = {
        switches[0]: first.controls.get(
            "IA32_FIXED_CTR_CTRL" if name.startswith(FIXED) else f"IA32_PERFEVTSEL{bit}", 0
        ),
        switches[1]: first.controls.get("IA32_PERF_GLOBAL_CTRL", 0),
    }

    def on() -> bool:
        chosen = value[switches[0]]
        enabled = chosen >> 4 * (bit - 32) & 3 if bit >= 32 else chosen >> 22 & 1
        return bool(enabled and value[switches[1]] >> bit & 1)

    def instructions() -> int:
        # Whether it counts a WRMSR now, which is an instruction of CPL 0.
        chosen = value[switches[0]]
        if not on() or bit > 32:
            return 0
        if bit == 32:
            return chosen & 1
        return int(chosen & 0xFFFF == 0xC0 and chosen >> 17 & 1 and not chosen & _PER_CYCLE)

    def note() -> None:
        # What kinds of events are in the counter's value.
        if on():
            event = value[switches[0]] & 0xFFFF if bit < 32 else _EVENTS[bit - 32 & 3]
            found.timed |= int(_is_time(event))
            found.per_cycle |= value[switches[0]] & _PER_CYCLE if bit < 32 else 0

    found = Window()
    outside = False
    kept = own = 0  # of the shift: what is in the counter, and the last write that counted itself
    events = lane.events()
    for event in events[: len(events) - steps]:
        kind, a, b = int(event["kind"]), int(event["a"]), int(event["b"])
        if kind == mk.TR_VM_EXIT:
            outside = True
            found.window_exits += on()
        elif kind == mk.TR_VM_ENTRY:
            outside = False
        elif kind == lk.TR_EMULATED and a >> bit & 1:
            found.software += 1
        elif kind in (mk.TR_GUEST_WRMSR, mk.TR_GUEST_WRMSR_BLIND):
            if a in loads:
                wide = a != int(mi.MSR_IA32_PERFCTR0) + bit or bit >= 32
                whole = b if wide else b | (0xFFFF_FFFF_0000_0000 if b >> 31 & 1 else 0)
                found.preset = -whole & (1 << 48) - 1
                found.writes += on()
                kept, own = 0, int(outside) * instructions()
                found.timed = found.per_cycle = 0
                note()
            if a in switches:
                was, counted, before = on(), instructions(), value[a]
                value[a] = b
                # One that exits counts with the enables that it leaves, one that passes with those before.
                if before != b and (was or on()):
                    kept += own - counted * int(outside)
                    own = instructions() * int(outside)
                if on() and not was:
                    kinds = found.timed, found.per_cycle
                    found = Window(opened=a, opened_exits=int(outside), preset=found.preset)
                    found.timed, found.per_cycle = kinds
                elif was and not on():
                    found.closed, found.closed_exits = a, int(outside)
                note()
    found.shift = kept + own
    return found


@attrs.frozen
class Side:
    """One run at the difference."""

    lane: Lane
    before: Look
    after: Look
    since: int
    first: Look


def _vector(side: Side) -> int:
    """The exception that the instruction raised, -1 if none."""
    for event in side.lane.events(side.since):
        if int(event["kind"]) == mk.TR_EXCEPTION:
            return int(event["a"])
    stop = side.after.stop
    return stop.info if stop is not None and stop.reason == "triple-fault" else -1


def _interrupted(side: Side) -> bool:
    return any(int(e["kind"]) in (mk.TR_IRQ, mk.TR_NMI) for e in side.lane.events(side.since))


def _gp_why(side: Side) -> int:
    """GP_* of the access that raised #GP, 0 without one."""
    for event in side.lane.events(side.since):
        if int(event["kind"]) == mk.TR_MSR_FAULT:
            return int(event["c"]) >> 1
    return 0


def _beyond(registers: Mapping[str, int], gp: int, fixed: int, caps: int) -> int:
    """Whether ECX, or what would be written there, is of something that the guest is not shown."""
    found = row_of(registers["rcx"] & 0xFFFF_FFFF)
    if found is None:
        return 0
    row, n = found[0].name, found[1]
    if row in ("IA32_PMC", "IA32_PERFEVTSEL"):
        return int(n >= gp)
    if row == "IA32_A_PMC":
        return int(n >= gp or not caps >> 13 & 1)
    if row == "IA32_FIXED_CTR":
        return int(n >= fixed)
    if row == "IA32_FIXED_CTR_CTRL":
        return int((registers["rax"] & 0xFFFF_FFFF) >> 4 * fixed != 0)
    return int(row == "MSR_PERF_METRICS")


def _irq_vector(side: Side) -> int:
    found = [int(e["a"]) for e in side.lane.events(side.since) if int(e["kind"]) == mk.TR_IRQ]
    return found[-1] if found else -1


def _timer_vector(side: Side) -> int:
    system = side.lane.system
    lapic = system.core.vapic if system.has_host else system.core.lapic
    return int(lapic.lvt[LVT_TIMER]) & 0xFF


def _is_lbr(index: int) -> bool:
    found = row_of(index)
    return found is not None and ("LBR" in found[0].name or "LASTBRANCH" in found[0].name)


def exits_of(side: Side) -> list[int]:
    """The reasons of the exits of the step."""
    return [int(e["a"]) & 0xFFFF for e in side.lane.events(side.since) if int(e["kind"]) == mk.TR_VM_EXIT]


def handlers_of(side: Side) -> list[str]:
    """The kernel's functions that had the step in hand, in order."""
    found = []
    for event in side.lane.events(side.since):
        kind, a, b, c = (int(event[key]) for key in ("kind", "a", "b", "c"))
        if kind == mk.TR_VM_EXIT:
            name = exit_name(a & 0xFFFF)
            found.append(_HANDLERS.get(name, f"exit {name}"))
        elif kind == lk.TR_KVM_MSR and b == lk.MSR_OF_PMU:
            found.append("kvm_pmu_set_msr" if c else "kvm_pmu_get_msr")
        elif kind == lk.TR_KVM_MSR:
            found.append("kvm_set_msr_common" if c else "kvm_get_msr_common")
        elif kind in lk.LINUX_KINDS and kind in _NAMED:
            found.append(lk.LINUX_KINDS[kind])
        elif kind == lk.TR_EMULATE_INSN:
            found.append("x86_emulate_instruction")
    return list(dict.fromkeys(found))


_NAMED = (lk.TR_EMULATED, lk.TR_PMI_INJECT, lk.TR_REPROGRAM, lk.TR_PAUSE, lk.TR_FILTER)


def counter_of(found: Difference) -> str:
    """The counter that the difference is about, "" if it is about none."""
    for thing in found.things:
        if thing.kind == "counter":
            return thing.name
    for thing in found.things:
        if thing.kind == "status":
            bits = thing.a ^ thing.b
            low = (bits & -bits).bit_length() - 1
            name = f"{FIXED}{low - 32}" if 32 <= low < 36 else f"{GP}{low}"
            if name in found.after[0].counters:
                return name
    # An interrupt: whose counter has its bit; else the first that runs or ran.
    for look in (*found.after, *found.before):
        for name in look.counters:
            if look.status >> registers_of(name)[2] & 1:
                return name
    for look in (*found.after, *found.before):
        for name in look.counters:
            if name in look.running:
                return name
    return ""


def _event(look: Look, name: str) -> tuple[int, int]:
    """(UMASK and EVENT of a counter, its CMASK, INV and EDGE)."""
    if name.startswith(FIXED):
        return _EVENTS[int(name.removeprefix(FIXED)) & 3], 0
    selector = look.controls.get(f"IA32_PERFEVTSEL{name.removeprefix(GP)}", 0)
    return selector & 0xFFFF, selector & _PER_CYCLE


def _perf(lane: Lane, name: str) -> tuple[int, int]:
    """(whether the perf event of a guest's counter does not count, whether it is on another number)."""
    system = lane.system
    if not name or not system.has_host or MODES[system.mode].owns_pmu:
        return 0, 0
    from vpmu_emu.linux.state import N_GP_PMC, PERF_EVENT_STATE_ERROR

    i = registers_of(name)[2]
    k = i if i < 32 else N_GP_PMC + i - 32
    pmc = system.S.vcpus[0].pmu.pmcs[k]
    event = int(pmc.perf_event)
    refused = [
        int(e["c"]) & 0xFF == lk.REPROGRAM_FAILED
        for e in lane.events()
        if int(e["kind"]) == lk.TR_REPROGRAM and int(e["a"]) == k and int(e["c"]) & 0xFF in _MADE
    ]  # fmt: skip
    if event < 0:
        return int(bool(refused) and refused[-1]), 0
    row = system.S.perf_events[event]
    return int(int(row.state) == PERF_EVENT_STATE_ERROR), int(int(row.idx) != k)


def _denied(lane: Lane, name: str) -> int:
    """Whether the event filter denies a counter its event: what KVM found when it looked last."""
    if not name:
        return 0
    from vpmu_emu.linux.state import N_GP_PMC

    i = registers_of(name)[2]
    k = i if i < 32 else N_GP_PMC + i - 32
    verdict = 1
    for event in lane.events():
        if int(event["kind"]) == lk.TR_FILTER and int(event["a"]) == k:
            verdict = int(event["b"])
    return int(not verdict)


def _signed(value: int) -> int:
    value &= _M64
    return value - (1 << 64) if value >> 63 else value


class Facts(Mapping[str, int]):
    """The names of one run, with `against.NAME` for those that the other has too.

    A family of names has a value for each member there may be: `insn.MNEMONIC`, `quirk.NAME` (`_` for `-`)
    and `against_quirk.NAME`,
    `differs.NAME` (a register, counter, or kind of thing), `exit.REASON`.
    """

    def __init__(self, found: Difference, which: int) -> None:
        sides = [
            Side(found.lanes[k], found.before[k], found.after[k], found.since[k], found.start[k])
            for k in (which, 1 - which)
        ]
        self.me, self.other = sides
        self._step = step_of(found)
        self._things = found.things
        self._which = which
        name = counter_of(found)
        self.counter = name
        mine, theirs = (self._one(side, name) for side in sides)
        self._values = mine | {f"against.{key}": value for key, value in theirs.items()}
        values = [thing for thing in found.things if thing.kind == "counter"]
        pair = (values[0].a, values[0].b) if values else (0, 0)
        bits = [thing for thing in found.things if thing.kind == "status"]
        status = (bits[0].a, bits[0].b) if bits else (0, 0)
        me, you = which, 1 - which
        self._values |= {
            "at": found.at,
            "counter": int(bool(values)),
            "delta": _signed(pair[me] - pair[you]),
            "status": int(bool(bits)),
            "status_lost": status[you] & ~status[me],
            "status_extra": status[me] & ~status[you],
            "lost": int(bool(status[you] & ~status[me] & _COUNTERS) or theirs["irq"] > mine["irq"]),
            "extra": int(bool(status[me] & ~status[you] & _COUNTERS) or mine["irq"] > theirs["irq"]),
            "same_mode": int(self.me.lane.system.mode == self.other.lane.system.mode),
            "gained": _signed(mine["read"] - theirs["read"] << 16) >> 16,
            "parted": int(self._step is None),
            "forced": int(self._step is not None and self._step.forced),
        }

    def _one(self, side: Side, name: str) -> dict[str, int]:
        lane, before, after = side.lane, side.before, side.after
        system = lane.system
        options = lane.options
        registers = before.registers
        window = window_of(lane, side.first, name) if name else Window()
        event, per_cycle = _event(after, name) if name else (0, 0)
        if name and not event:
            event, per_cycle = _event(before, name)
        fails, moved = _perf(lane, name)
        stop = after.stop
        vector = _irq_vector(side)
        dr7 = int(system.core.dr7) if not system.has_host else int(system.S.vcpus[0].dr7)
        vcpu = system.S.vcpus[0] if system.has_host else None
        pmu = vcpu.pmu if vcpu is not None else system.core.pmu
        caps, enabled_pebs = int(pmu.perf_capabilities), int(pmu.pebs_enable)
        gp = int(pmu.nr_arch_gp_counters if vcpu is not None else pmu.gp)
        fixed = int(pmu.nr_arch_fixed_counters if vcpu is not None else pmu.fixed)
        bit = registers_of(name)[2] if name else 0
        kind, index = registers["rcx"] >> 16 & 0xFFFF, registers["rcx"] & 0xFFFF
        can = constraint(event | per_cycle, system.model.events).counters
        found = {mode: int(system.mode == mode) for mode in MODES}
        found |= {
            "guest": int(system.has_host),
            "owns": int(MODES[system.mode].owns_pmu),
            "fault": _vector(side),
            "irq": int(_interrupted(side)),
            "ended": int(stop is not None),
            "exits": len(exits_of(side)),
            "ecx": registers["rcx"] & 0xFFFF_FFFF,
            "edx_eax": (registers["rdx"] & 0xFFFF_FFFF) << 32 | registers["rax"] & 0xFFFF_FFFF,
            "rax": registers["rax"], "rcx": registers["rcx"],
            "read": (after.registers["rdx"] & 0xFFFF_FFFF) << 32 | after.registers["rax"] & 0xFFFF_FFFF,
            "event": event, "per_cycle": per_cycle,
            "wrapped": int(after.counters.get(name, 1 << 40) < 1 << 40 and 0 < window.preset < 1 << 40),
            "value": after.counters.get(name, 0) if name else 0,
            "status_now": after.status,
            "error": fails, "moved": moved, "denied": _denied(lane, name),
            "lbr_asked": caps & 0x3F if vcpu is not None else 0,
            "pebs": int(enabled_pebs != 0), "pebs_own": enabled_pebs >> bit & 1 if name else 0,
            "width": int(vcpu.pmu.width) if vcpu is not None else 48,
            "gp": gp, "fixed": fixed,
            "absent_index": int(index >= {0: gp, RDPMC_FIXED: fixed}.get(kind, 1 << 16)),
            "leaf_version": int(options.guest.get("pmu.version", options.guest.get("version", 2))),
            "time_event": int(_is_time(event) or window.timed),
            "constrained": int(can != 0xFF), "cannot": int(bool(name) and bit < 32 and not can >> bit & 1),
            "lbr_msr": int(_is_lbr(registers["rcx"] & 0xFFFF_FFFF)),
            "btf": int(system.core.pmu.debugctl) >> 1 & 1,
            "port_breakpoint": int(any(dr7 >> 2 * n & 3 and dr7 >> 16 + 4 * n & 3 == 2 for n in range(4))),
            "timer": int(_interrupted(side) and vector >= 0 and vector == _timer_vector(side)),
            "gp_why": _gp_why(side), "shape_msr": _beyond(registers, gp, fixed, caps),
            "mmio": int(any(exit_name(r) in ("APIC_ACCESS", "EPT_MISCONFIG") for r in exits_of(side))),
            "lazy": int(options.switch == "lazy"),
            "skid": sum(options.skid),
            "filter": int(options.filter is not None),
            "host_events": len(options.host_events),
            "host_programs": len(options.host),
            "all_passthrough": int(options.all_passthrough),
        }
        found |= {key: int(value) for key, value in attrs.asdict(window).items()}
        found["per_cycle"] |= per_cycle
        earlier = window_of(lane, side.first, name, lane.head - side.since) if name else Window()
        found["shift_before"] = earlier.shift
        for reason in _STOPS:
            found[reason.replace("-", "_")] = int(stop is not None and stop.reason == reason)
        return found

    def _family(self, name: str) -> int | None:
        family, _, member = name.rpartition(".")
        if family == "insn":
            text = self._step.text if self._step is not None else ""
            return int(member in text.split(None, 2)[:2])
        if family in ("quirk", "against_quirk"):
            side = self.me if family == "quirk" else self.other
            names = side.lane.options.quirks
            every = V1 in names and member.startswith("v1_")
            known = {each.replace("-", "_").replace(".", "_"): each for each in QUIRKS}
            key = member.removeprefix("of_")
            return int(every or known.get(key, "") in names) if key in known else None
        if family == "differs":
            return int(any(member in (thing.kind, thing.name) for thing in self._things))
        if family in ("exit", "against_exit"):
            side = self.me if family == "exit" else self.other
            return int(member in map(exit_name, exits_of(side)))
        return None

    def __getitem__(self, name: str) -> int:
        found = self._values.get(name)
        if found is None:
            found = self._family(name)
        if found is None:
            raise KeyError(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def explained(found: Difference) -> list[tuple[Divergence, int]]:
    """(row, which of the two runs it speaks of) of the rows that explain a difference.

    Where one speaks of what was asked for, a quirk or a policy, it is the reason.
    """
    sides = [Facts(found, which) for which in (0, 1)]
    rows = [
        (row, which)
        for row in DIVERGENCES.values()
        if row.when
        for which, facts in enumerate(sides)
        if evaluate(row.when, facts)
    ]
    return [pair for pair in rows if pair[0].asked_for] or rows
