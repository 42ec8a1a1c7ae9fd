"""Tracks, nesting, counters and flows of a Perfetto trace, from the protobuf itself."""

from __future__ import annotations

from collections import Counter, defaultdict

import attrs
import pytest

from tests.conftest import ROOT
from vpmu_emu.asm import assemble_file
from vpmu_emu.machine import ring as mk
from vpmu_emu.system import System
from vpmu_emu.traces.files import recorder, write_trace
from vpmu_emu.traces.perfetto_file import perfetto
from vpmu_emu.traces.recorder import Recording, nanoseconds

GUESTS = ROOT / "guests"
GUESTS_OWN = ["kvm_pmu_deliver_pmi", "nmi_handler"]


@pytest.fixture(autouse=True)
def installed(require_oracle):
    require_oracle("import:perfetto")


def schema():
    from perfetto.protos.perfetto.trace import perfetto_trace_pb2

    return perfetto_trace_pb2


def drawn(path, guest, **options):
    hosts = [assemble_file(GUESTS / "host" / f"{name}.s") for name in options.pop("host", ())]
    machine = System(assemble_file(GUESTS / guest), trace=True, host=hosts, **options)
    kept = recorder(machine, path)
    machine.run()
    recording = kept.recording()
    write_trace(recording, path)
    return machine, recording, parsed(path.read_bytes())


def parsed(data):
    trace = schema().Trace.FromString(data)
    tracks, events = {}, []
    for packet in trace.packet:
        if packet.HasField("track_descriptor"):
            tracks[packet.track_descriptor.uuid] = packet.track_descriptor
        else:
            assert packet.track_event.track_uuid in tracks, "a track is described before it is used"
            events.append((packet.timestamp, packet.track_event))
    assert trace.packet[0].sequence_flags == schema().TracePacket.SEQ_INCREMENTAL_STATE_CLEARED
    names = {}
    for uuid in tracks:
        parts, at = [], uuid
        while at:
            parts.append(tracks[at].name)
            at = tracks[at].parent_uuid
        names[uuid] = ".".join(reversed(parts))
    return [(ns, names[event.track_uuid], event) for ns, event in events]


def nested(events):
    """Every slice as (track, name, depth, begin, end); fails where they do not nest."""
    open_slices, found = defaultdict(list), []
    for ns, track, event in events:
        if event.type == schema().TrackEvent.TYPE_SLICE_BEGIN:
            open_slices[track].append((event.name, ns))
        elif event.type == schema().TrackEvent.TYPE_SLICE_END:
            name, begin = open_slices[track].pop()
            assert begin <= ns
            found.append((track, name, len(open_slices[track]), begin, ns))
    assert not any(open_slices.values())
    return found


def flows(events):
    found = defaultdict(list)
    for _, track, event in events:
        for number in event.flow_ids:
            found[number].append((track, event.name, False))
        for number in event.terminating_flow_ids:
            found[number].append((track, event.name, True))
    return list(found.values())


def test_tracks_of_cores_tasks_vms_and_vcpus(tmp_path):
    options = {"vpmu": "emulated", "host": ["vcpu_threads"], "cores": 2, "ram": 8}
    _, recording, events = drawn(tmp_path / "t.perfetto-trace", "lessons/06_sampling.s", **options)
    slices = nested(events)
    tracks = {track for _, track, _ in events}
    assert {"cpu0", "cpu1", "vm0.vcpu0", "vm1.vcpu0", "vm1.vcpu1", "cpu0.pmu.pmc0"} <= tracks
    tasks = {name for track, name, *_ in slices if track.startswith("cpu")}
    assert {"vmm", "vcpu_threads"} <= tasks
    inside = Counter(name for track, name, depth, *_ in slices if track.startswith("vm") and not depth)
    entries = sum(moment.kind == mk.TR_VM_ENTRY for moment in recording.moments())
    exits = sum(moment.kind == mk.TR_VM_EXIT for moment in recording.moments())
    assert inside["guest"] == entries
    assert sum(inside.values()) == entries + exits
    assert inside["MSR_WRITE"] > 10


def test_slices_within_an_exit(tmp_path):
    """A passthrough vPMU puts the context out within the exit, and in again before the entry."""
    _, _, events = drawn(tmp_path / "t.perfetto-trace", "lessons/06_sampling.s", vpmu="passthrough")
    slices = nested(events)
    inner = [one for one in slices if one[2] == 1]
    outer = [one for one in slices if one[2] == 0 and one[0] == "vm0.vcpu0" and one[1] != "guest"]
    assert len(inner) > 10
    assert {name for _, name, *_ in inner} == {"the host has the PMU"}
    for track, _, _, begin, end in inner:
        assert any(t == track and b <= begin <= end <= e for t, _, _, b, e in outer)


@pytest.mark.parametrize(
    ("mode", "chain"),
    [
        ("bare", ["pmu_overflow", "pmu_pmi", "nmi_handler"]),
        ("emulated", ["pmu_overflow", "pmu_pmi", "perf_event_nmi_handler", *GUESTS_OWN]),
        ("passthrough", ["pmu_overflow", "pmu_pmi", "host_irq", *GUESTS_OWN]),
    ],
)
def test_arrows_from_overflow_to_handler(mode, chain, tmp_path):
    machine, _, events = drawn(tmp_path / "t.perfetto-trace", "lessons/06_sampling.s", vpmu=mode)
    found = flows(events)
    whole = [[name for _, name, _ in flow] for flow in found]
    assert len(whole) == int(machine.core.stats.pmis) > 3
    assert whole == [chain] * len(whole)
    for flow in found:
        assert [ends for *_, ends in flow] == [False] * (len(flow) - 1) + [True]
        assert (flow[0][0], flow[-1][0]) == (("cpu0",) * 2 if mode == "bare" else ("cpu0", "vm0.vcpu0"))


def test_counters_are_those_of_the_samples(tmp_path):
    path = tmp_path / "t.perfetto-trace"
    _, recording, events = drawn(path, "lessons/03_overflow_pmi.s", vpmu="emulated")
    drawn_values = defaultdict(list)
    for ns, track, event in events:
        if event.type == schema().TrackEvent.TYPE_COUNTER:
            drawn_values[track].append((ns, event.counter_value))
    expected = [(int(nanoseconds(s.t, recording.khz)), s.guest["pmc0"]) for s in recording.samples]
    assert drawn_values["vm0.vcpu0.pmu.pmc0"] == expected
    assert len({value for _, value in expected}) > 3


def test_a_gap_closes_what_was_open():
    machine = System(assemble_file(GUESTS / "lessons/03_overflow_pmi.s"), vpmu="emulated", trace=True)
    machine.run()
    recording = attrs.evolve(Recording.of(machine), gaps=((20, 12_345),))
    events = parsed(b"".join(perfetto(recording)))
    nested(events)
    said = [event.name for _, _, event in events if "LOST" in event.name]
    assert said == [f"LOST {recording.lost} EVENTS"]
