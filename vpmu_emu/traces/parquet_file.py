"""A trace as a table, Parquet: a row for each event, with its number, its words and who ran."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import islice
from typing import Any

from vpmu_emu.linux.trace_kinds import LINUX_KINDS
from vpmu_emu.machine.ring import MACHINE_KINDS
from vpmu_emu.traces.recorder import BATCH, Recording
from vpmu_emu.traces.text import Words

FORMAT = 1
_PIECE = 1 << 20
_KINDS = {**MACHINE_KINDS, **LINUX_KINDS}


def parquet(recording: Recording) -> Iterator[bytes]:
    """The file in pieces; needs pyarrow.

    Columns: ns, t (1/16 cycle), cpu, comm, pid, vm and vcpu (of the task, null without KVM), kind, rip,
    place, a, b, c, text, lost (events missing right before it). The schema's metadata has `vpmu_trace`, the
    version of the format, `khz` and `lost`.
    """
    import pyarrow as pa
    from pyarrow import parquet as pq

    u64, text = pa.uint64(), pa.string()
    columns = {
        "ns": pa.int64(), "t": pa.int64(), "cpu": pa.int32(), "comm": text, "pid": pa.int32(),
        "vm": pa.int32(), "vcpu": pa.int32(), "kind": text, "rip": u64, "place": text,
        "a": u64, "b": u64, "c": u64, "text": text, "lost": pa.int64(),
    }  # fmt: skip
    about = {"vpmu_trace": str(FORMAT), "khz": str(recording.khz), "lost": str(recording.lost)}
    schema = pa.schema(list(columns.items()), metadata=about)
    rows = _rows(recording)
    with tempfile.TemporaryFile() as file:
        with pq.ParquetWriter(file, schema) as writer:
            while batch := list(islice(rows, BATCH)):
                arrays = [
                    pa.array(column, kind)
                    for column, kind in zip(zip(*batch, strict=True), columns.values(), strict=True)
                ]
                writer.write_batch(pa.record_batch(arrays, schema=schema))
        file.seek(0)
        while piece := file.read(_PIECE):
            yield piece


def _rows(recording: Recording) -> Iterator[tuple[Any, ...]]:
    words = Words(recording.place, recording.names)
    for moment in recording.moments():
        ns, t, cpu, kind, rip, a, b, c, task, lost, _, _ = moment
        vm, vcpu = task.vcpu if recording.has_host and task.pid else (None, None)
        name = _KINDS.get(kind, f"event_{kind}")
        text, place = words.of(cpu, kind, rip, a, b, c).partition("  # ")[0], recording.place(rip)
        yield ns, t, cpu, task.comm, task.pid, vm, vcpu, name, rip, place, a, b, c, text, lost
