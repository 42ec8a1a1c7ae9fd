"""Every piece of the host's work is counted under its row, and the counts make up its time."""

from __future__ import annotations

import pytest

from tests.conftest import ROOT
from vpmu_emu.asm import assemble
from vpmu_emu.linux.state import ACCESS_NAMES
from vpmu_emu.load import load
from vpmu_emu.system import System, run
from vpmu_emu.tables.cpus import PARTS, cpu
from vpmu_emu.tables.modes import MODES

LESSONS = ROOT / "guests" / "lessons"
HOST = ROOT / "guests" / "host"
HOSTED = [mode for mode in MODES if mode != "bare"]
READS = """
_start: xor ecx, ecx
        mov ebx, {n}
1:      rdpmc
        dec ebx
        jnz 1b
        xor eax, eax
        out 0xf4, al
"""


@pytest.mark.parametrize("mode", HOSTED)
@pytest.mark.parametrize("level", ["low", "typical", "high"])
def test_the_counts_of_all_rows_make_up_the_host_s_time(mode, level):
    guest = "06_sampling" if mode != "none" else "01_count"
    beside = [HOST / "perf_stat.s"]
    system = System(load(LESSONS / f"{guest}.s"), vpmu=mode, costs=level, max_insns=60_000, host=beside)
    values = system.result(system.run()).to_json()
    rows = {c.name: c for c in cpu("spr").costs}
    column = ("low", "typical", "high").index(level)
    for name, row in values["work"].items():
        assert row["cycles"] == row["count"] * rows[name].cycles[column] > 0
    spent = sum(int(host.spent.sum()) for host in system.S.percpu)
    assert sum(row["cycles"] for row in values["work"].values()) == spent
    # Programs of the host are booked under tasks, too, and are no work of its kernel.
    users = sum(int(host.user_cycles) >> 4 for host in system.S.percpu)
    assert sum(values["cycles_by"][part] for part in PARTS) == spent + users


@pytest.mark.parametrize("mode", HOSTED)
def test_rows_that_other_numbers_of_the_result_count_too(mode):
    values = run(LESSONS / "01_count.s", vpmu=mode).to_json()
    work = {name: row["count"] for name, row in values["work"].items()}
    assert work["vm_exit"] == sum(values["exits"].values())
    assert work["vm_entry"] == values["kvm"]["entries"]
    if "switch" in values["kvm"]:
        parts = [values["kvm"]["switch"][part] for part in ("load", "put", "entry", "exit")]
        for name in ACCESS_NAMES:
            assert work.get(name, 0) >= sum(part[name]["count"] for part in parts)
    assert "work" not in run(LESSONS / "01_count.s").to_json()


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "none"])
@pytest.mark.parametrize("n", [3, 11])
def test_rdpmc_is_counted_whether_it_passes_or_not(mode, n):
    found = run(assemble(READS.format(n=n)), vpmu=mode, guest={"pmu.gp": 2} if mode == "mediated" else {})
    passes = mode in ("bare", "passthrough")  # a guest with fewer counters exits as merged
    assert found.to_json()["rdpmc"] == {"reads": n, "exits": 0 if passes else n}


@pytest.mark.parametrize("hz", [100, 250, 300, 1000])
def test_the_tick_and_what_follows_it(hz):
    asked = {"vpmu": "emulated", "host_events": [f"instructions*{12}"], "max_cycles": 60_000_000}
    forever = assemble("_start: jmp _start")
    values = run(forever, hz=hz, **asked).to_json()
    assert values["perf"]["hz"] == hz
    # 20 ms, and a turn of multiplexed events takes 1000 / HZ ms
    assert abs(values["perf"]["rotations"] - 20 // (1000 // hz)) <= 1
