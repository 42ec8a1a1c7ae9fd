"""A trace as a table, read back by pyarrow."""

from __future__ import annotations

import attrs
from pyarrow import parquet

from tests.conftest import ROOT
from vpmu_emu.asm import assemble_file
from vpmu_emu.system import System
from vpmu_emu.traces.files import recorder, write_trace
from vpmu_emu.traces.recorder import Recording, nanoseconds
from vpmu_emu.traces.text import decode

GUESTS = ROOT / "guests"


def test_every_event_is_a_row(tmp_path):
    path = tmp_path / "t.parquet"
    program = assemble_file(GUESTS / "lessons" / "06_sampling.s")
    machine = System(program, vpmu="emulated", trace=True)
    kept = recorder(machine, path)
    machine.run()
    recording = kept.recording()
    write_trace(recording, path)
    table = parquet.read_table(path)
    about = table.schema.metadata
    assert (about[b"vpmu_trace"], about[b"khz"]) == (b"1", str(recording.khz).encode())
    for name in ("t", "cpu", "rip", "a", "b", "c"):
        assert table[name].to_pylist() == recording.events[name].tolist()
    assert table["ns"].to_pylist() == nanoseconds(recording.events["t"], recording.khz).tolist()
    words = [text.partition("  # ")[0] for _, text in decode(recording.events, None, recording.names)]
    assert table["text"].to_pylist() == words
    rows = table.to_pylist()
    first = next(row for row in rows if row["kind"] == "vm_exit")
    assert (first["comm"], first["pid"], first["vm"], first["vcpu"]) == ("vmm", 1, 0, 0)
    assert first["place"] == program.place(first["rip"])
    exits = sum(row["kind"] == "vm_exit" for row in rows)
    assert exits == sum(machine.exits().values())


def test_without_kvm_and_with_a_gap(tmp_path):
    machine = System(assemble_file(GUESTS / "lessons" / "03_overflow_pmi.s"), trace=True)
    machine.run()
    recording = attrs.evolve(Recording.of(machine), gaps=((20, 12_345),))
    write_trace(recording, tmp_path / "t.parquet")
    rows = parquet.read_table(tmp_path / "t.parquet").to_pylist()
    assert {row["vcpu"] for row in rows} == {None}
    assert [row["lost"] for row in rows if row["lost"]] == [recording.lost]
