"""A trace for ui.perfetto.dev: tasks, guests and exits in slices, counters, arrows to handlers of PMIs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vpmu_emu.linux import trace_kinds as lk
from vpmu_emu.machine import ring as mk
from vpmu_emu.machine.msr_index import APIC_DM_NMI, APIC_MODE_MASK
from vpmu_emu.tables.exits import exit_name
from vpmu_emu.traces.points import Line, told
from vpmu_emu.traces.recorder import Moment, Recording, nanoseconds
from vpmu_emu.traces.waves import changes, guest_scope

SEQUENCE = 1
# What a guest does or KVM does for it is on the track of its vCPU; the rest is on that of the CPU.
_OF_GUEST = {
    mk.TR_GUEST_RDMSR, mk.TR_GUEST_WRMSR, mk.TR_GUEST_WRMSR_BLIND, mk.TR_GUEST_RDPMC, mk.TR_MSR_FAULT,
    mk.TR_PRIVILEGE, mk.TR_INTERCEPT, mk.TR_MSR_DROPPED, mk.TR_RDPMC_FAULT, mk.TR_EXCEPTION, mk.TR_IRQ,
    mk.TR_NMI, mk.TR_UNDELIVERED, mk.TR_VM_EXIT, mk.TR_VM_ENTRY, lk.TR_REPROGRAM, lk.TR_REQUEST,
    lk.TR_PMI_INJECT, lk.TR_PMU_LOAD, lk.TR_PMU_PUT, lk.TR_EMULATED, lk.TR_INJECT_NMI, lk.TR_PAUSE,
    lk.TR_EMULATE_INSN, lk.TR_FILTER, lk.TR_SELECTOR_HW, lk.TR_FASTPATH, lk.TR_KVM_MSR,
    lk.TR_MSR_USER_SPACE, lk.TR_VMCS_ACCESS,
}  # fmt: skip
PMU_AWAY = "the host has the PMU"


class _Flows:
    """Arrows of one CPU: overflow, the message to LVTPC, whoever handles it, the guest's own handler."""

    def __init__(self, first: int) -> None:
        self._next = first  # an id is of one CPU
        self._open = 0
        self._handled = False
        self._expects: tuple[int, int] | None = None  # kind of the event that ends it, its vector

    def at(self, moment: Moment) -> tuple[int, bool]:
        """Id of the flow that an event belongs to, 0 none; whether it ends there."""
        kind, a = moment.kind, moment.a
        if kind == mk.TR_OVERFLOW:
            if not self._open or self._handled:
                self._open, self._handled, self._expects = self._next, False, None
                self._next += 1
            return self._open, False
        if not self._open:
            return 0, False
        if kind in (mk.TR_PMI_RAISE, lk.TR_PMI_INJECT):
            nmi = a & int(APIC_MODE_MASK) == int(APIC_DM_NMI)
            self._expects = (mk.TR_NMI, 0) if nmi else (mk.TR_IRQ, a & 0xFF)
            self._handled |= kind == lk.TR_PMI_INJECT
            return self._open, False
        if kind == lk.TR_NMI_HANDLER or (kind == lk.TR_HOST_IRQ and self._expects == (mk.TR_IRQ, a)):
            self._handled = True
            return self._open, False
        if self._expects == (kind, a if kind == mk.TR_IRQ else 0):
            ended, self._open = self._open, 0
            return ended, True
        return 0, False


class _Tracks:
    """Packets, and the tracks that they are on."""

    def __init__(self) -> None:
        from perfetto.protos.perfetto.trace import perfetto_trace_pb2

        self._pb: Any = perfetto_trace_pb2
        self._ids: dict[tuple[str, ...], int] = {}
        self._open: dict[tuple[str, ...], int] = {}
        self._fresh = True

    def _packet(self) -> Any:
        packet = self._pb.TracePacket()
        packet.trusted_packet_sequence_id = SEQUENCE
        if self._fresh:
            packet.sequence_flags = self._pb.TracePacket.SEQ_INCREMENTAL_STATE_CLEARED
            self._fresh = False
        return packet

    def _bytes(self, packet: Any) -> bytes:
        data: bytes = self._pb.Trace(packet=[packet]).SerializeToString()
        return data

    def track(self, path: tuple[str, ...], counter: bool = False) -> Iterator[bytes]:
        """Descriptions of a track and of what it is in, at its first use."""
        if path in self._ids:
            return
        if len(path) > 1:
            yield from self.track(path[:-1])
        packet = self._packet()
        found = packet.track_descriptor
        found.uuid = self._ids[path] = len(self._ids) + 1
        found.name = path[-1]
        if len(path) > 1:
            found.parent_uuid = self._ids[path[:-1]]
        if counter:
            found.counter.unit = self._pb.CounterDescriptor.UNIT_COUNT
        yield self._bytes(packet)

    def event(
        self, ns: int, path: tuple[str, ...], kind: str, name: str = "", **more: Any
    ) -> Iterator[bytes]:
        """A packet of TrackEvent; `more`: text, flow, ends, value."""
        yield from self.track(path, counter=kind == "TYPE_COUNTER")
        packet = self._packet()
        packet.timestamp = ns
        found = packet.track_event
        found.type, found.track_uuid = getattr(self._pb.TrackEvent, kind), self._ids[path]
        if name:
            found.name = name
            found.categories.append("vpmu")
        if more.get("text"):
            note = found.debug_annotations.add()
            note.name, note.string_value = "event", more["text"]
        if more.get("flow"):
            (found.terminating_flow_ids if more.get("ends") else found.flow_ids).append(more["flow"])
        if "value" in more:
            found.counter_value = more["value"]
        yield self._bytes(packet)

    def begin(self, ns: int, path: tuple[str, ...], name: str, **more: Any) -> Iterator[bytes]:
        """A slice within those that are open on its track."""
        self._open[path] = self._open.get(path, 0) + 1
        yield from self.event(ns, path, "TYPE_SLICE_BEGIN", name, **more)

    def end(self, ns: int, path: tuple[str, ...], left: int = 0) -> Iterator[bytes]:
        """Close slices of a track until so many are open."""
        while self._open.get(path, 0) > left:
            self._open[path] -= 1
            yield from self.event(ns, path, "TYPE_SLICE_END")

    def end_all(self, ns: int) -> Iterator[bytes]:
        """Close every slice."""
        for path in self._open:
            yield from self.end(ns, path)

    def depth(self, path: tuple[str, ...]) -> int:
        """How many slices are open."""
        return self._open.get(path, 0)


def perfetto(recording: Recording) -> Iterator[bytes]:
    """The file in pieces; needs the package perfetto."""
    tracks, ns = _Tracks(), 0
    flows = [_Flows(1 + (cpu << 32)) for cpu in range(recording.cpus)]
    who = recording.who[0]
    for cpu, row in enumerate(who.current or ()):
        if row >= 0:
            yield from tracks.begin(0, (f"cpu{cpu}",), who.tasks[row].comm)
    for line in told(recording):
        ns = line.moment.ns
        yield from _line(tracks, recording, line, flows[line.moment.cpu])
    yield from tracks.end_all(ns)
    for one in changes(recording):
        if one.scope[-1] == "pmu" and isinstance(one.value, int) and not one.name.startswith("global"):
            at = int(nanoseconds(one.t, recording.khz))
            yield from tracks.event(at, (*one.scope, one.name), "TYPE_COUNTER", value=one.value)


def _line(tracks: _Tracks, recording: Recording, line: Line, flows: _Flows) -> Iterator[bytes]:
    moment = line.moment
    ns, kind, cpu = moment.ns, moment.kind, (f"cpu{moment.cpu}",)
    guest = guest_scope(recording, moment)
    text = line.point.show(line.values)
    if moment.lost:
        # What was open may have ended in the gap.
        yield from tracks.end_all(ns)
        yield from tracks.event(ns, cpu, "TYPE_INSTANT", f"LOST {moment.lost} EVENTS")
    name = line.point.name
    if name == "kvm_entry":
        yield from tracks.end(ns, guest)
        yield from tracks.begin(ns, guest, "guest", text=text)
    elif name == "kvm_exit":
        yield from tracks.end(ns, guest)
        yield from tracks.begin(ns, guest, exit_name(moment.a & 0xFFFF), text=text)
    elif name == "sched_switch":
        yield from tracks.end(ns, cpu)
        if moment.comes.pid:
            yield from tracks.begin(ns, cpu, moment.comes.comm, text=text)
    else:
        flow, ends = flows.at(moment)
        path = guest if kind in _OF_GUEST else cpu
        if name == "pmu_load" and tracks.depth(guest) > 1:
            yield from tracks.end(ns, guest, left=1)
        yield from tracks.event(ns, path, "TYPE_INSTANT", name, text=text, flow=flow, ends=ends)
        if name == "pmu_put" and tracks.depth(guest) == 1:
            yield from tracks.begin(ns, guest, PMU_AWAY)
