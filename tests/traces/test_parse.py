"""Lines of real tools, whole, broken and in between, as values or as problems with their place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import ROOT
from vpmu_emu.errors import LoadError
from vpmu_emu.traces.parse import Access, Entry, Exit, Lost, Other, Problem, lines_of, parse

NS, HALF = 9_000_001_000, 9_500_000_000
REAL = ROOT / "tests" / "traces" / "real"


def one(line):
    (item,) = parse([line])
    return item


@pytest.mark.parametrize(
    ("line", "comm", "pid", "cpu", "ns"),
    [
        ("          <idle>-0     [001]  9.000001: read_msr: 38e, value 0", "<idle>", 0, 1, NS),
        ("   CPU 0/KVM-42 [012] d.h1. 9.000001: read_msr: 38e, value 0", "CPU 0/KVM", 42, 12, NS),
        ("   my-task-7-42 [000] 9.000000001: read_msr: 38e, value 0", "my-task-7", 42, 0, 9_000_000_001),
        ("   bash-42   (     41) [000] d..2  9.5000000: x", None, 0, 0, 0),
        ("   bash-42   (     41) [000] d..2  9.500000: read_msr: 38e, value 0", "bash", 42, 0, HALF),
        ("perf  41/42 [000] 9.500000: 7 msr:read_msr: 38e, value 0", "perf", 42, 0, HALF),
        (":-1    -1 [000] 9.500000: msr:read_msr: 38e, value 0", ":-1", -1, 0, HALF),
        ("   vmm-1      12d..1.     9.500000: read_msr:             38e, value 0", "vmm", 1, 12, HALF),
        ("   <...>-42 [000] 9.500000: read_msr: 38e, value 0", "<...>", 42, 0, HALF),
    ],
)  # fmt: skip
def test_what_a_line_begins_with(line, comm, pid, cpu, ns):
    item = one(line)
    if comm is None:
        assert isinstance(item, Problem)
        return
    assert item == Access(item.where, "rdmsr", 0x38E, 0, "host", False)
    assert (item.where.comm, item.where.pid, item.where.cpu, item.where.ns) == (comm, pid, cpu, ns)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kvm_msr: msr_read 38f = 0x3", ("rdmsr", 0x38F, 3, "kvm", False)),
        ("kvm_msr: msr_write 38f = 0x3 (#GP)", ("wrmsr", 0x38F, 3, "kvm", True)),
        ("kvm:kvm_msr: msr_write c0010200 = 0x3", ("wrmsr", 0xC0010200, 3, "kvm", False)),
        ("write_msr:  38f, value ffffffffffffffff", ("wrmsr", 0x38F, (1 << 64) - 1, "host", False)),
        ("rdpmc: 40000000, value 7 #GP", ("rdpmc", 0x40000000, 7, "host", True)),
        ("guest_wrmsr: 38f = 0x1 (IA32_PERF_GLOBAL_CTRL)  # a.s:3", ("wrmsr", 0x38F, 1, "guest", False)),
        ("guest_rdmsr: 999 = 0x0 (#GP: does not exist)  # a.s:3", ("rdmsr", 0x999, 0, "guest", True)),
        ("guest_rdpmc: 0, value 1c  # a.s:3", ("rdpmc", 0, 0x1C, "guest", False)),
        ("kvm_pmu_rdpmc: 1, value 1c", ("rdpmc", 1, 0x1C, "kvm", False)),
    ],
)
def test_accesses(text, expected):
    item = one(f" x-1 [000] 1.000000: {text}")
    assert (item.what, item.index, item.value, item.by, item.fault) == expected


@pytest.mark.parametrize(
    ("text", "reason", "vcpu"),
    [
        ("vcpu 3 reason EPT_VIOLATION rip 0x1f info1 0x0 info2 0x0 intr_info 0x0", "EPT_VIOLATION", 3),
        ("reason EPT_VIOLATION rip 0x1f info 182 0", "EPT_VIOLATION", None),
        ("reason EPT_VIOLATION rip 0x1f info 182 0 vcpu 2", "EPT_VIOLATION", 2),
        ("vcpu 0 reason EXIT_MSR rip 0x1f info1 0x1", "EXIT_MSR", 0),
        ("vcpu 0 reason HLT FAILED_VMENTRY rip 0x1f info1 0x1", "HLT", 0),
    ],
)  # fmt: skip
def test_exits_of_several_kernels(text, reason, vcpu):
    item = one(f" x-1 [000] 1.000000: kvm_exit: {text}")
    assert (type(item), item.reason, item.rip, item.vcpu) == (Exit, reason, 0x1F, vcpu)


def test_gaps_comments_and_others():
    lines = [
        "# tracer: nop", "", "cpus=2", "version = 6", "CPU 1 is empty", "CPU:3 [LOST 5 EVENTS]",
        "CPU:2 [7 EVENTS DROPPED]", "CPU:1 [EVENTS DROPPED]", "  PERF_RECORD_LOST lost 9",
        " x-1 [000] 1.000000: sched_switch: a:1 ==> b:2", " x-1 [000] 1.000000: kvm_entry: vcpu 1, rip 0x0",
    ]  # fmt: skip
    items = list(parse(lines))
    assert items[:4] == [Lost(6, 3, 5), Lost(7, 2, 7), Lost(8, 1, None), Lost(9, None, 9)]
    assert [type(item) for item in items[4:]] == [Other, Entry]


@pytest.mark.parametrize("line", [
    "x" * 1_000_000, "1" * 1_000_000, "[0] " * 250_000, "a-1 [000] " + "9" * 500 + ".000000: x: y",
    "a-1 [000] 1.000000: kvm_msr: msr_write " + "f" * 100_000 + " = 0x1", "\x00\x1b[31m",
    "a-1 [000] 1.0: kvm_msr:",
    "a-1 [000] 1.000000: kvm_exit: reason rip " * 1000,
])  # fmt: skip
def test_garbage_has_its_line(line):
    items = list(parse(["# x", line]))
    assert [type(item) for item in items] == [Problem]
    assert items[0].number == 2
    assert len(str(items[0])) < 300


@given(st.lists(st.text(max_size=80), max_size=5))
def test_any_text_is_read_to_its_end(lines):
    for item in parse(lines):
        assert 1 <= (item.number if isinstance(item, Problem | Lost) else item.where.number) <= len(lines)


@given(st.integers(0, 400), st.integers(0, 30))
def test_a_line_cut_anywhere_is_itself_or_a_problem(cut, number):
    whole = (REAL / "trace_cmd.txt").read_text().splitlines()
    line = whole[number % len(whole)]
    for item in parse([line[:cut]]):
        assert isinstance(item, Problem | Access | Exit | Entry | Lost)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x17\x08\x44tracing6\0", "trace-cmd report FILE"),
        (b"PERFILE2abc", "perf script -i FILE"),
        (b"PAR1abc", "a Parquet table"),
        (b"\x7fELF\0\0", "but binary"),
    ],
)
def test_other_files_are_told_apart(data, words, tmp_path):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(LoadError, match=words), lines_of(str(tmp_path / "x")) as lines:
        list(lines)
    with pytest.raises(LoadError, match="No such file"), lines_of(str(tmp_path / "y")):
        pass


def test_long_lines_are_one_line(tmp_path):
    (tmp_path / "x").write_bytes(b"a" * 1_000_000 + b"\n x-1 [000] 1.000000: rdpmc: 0, value 1\n")
    with lines_of(str(tmp_path / "x")) as lines:
        items = list(parse(lines))
    assert [type(item) for item in items] == [Problem, Access]
    assert items[1].where.number == 2
