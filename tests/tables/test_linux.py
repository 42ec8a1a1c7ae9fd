"""The interface of Linux has the numbers and layouts of this machine's own headers."""

from __future__ import annotations

import re
import subprocess

import numpy as np
import pytest

from vpmu_emu.asm import assemble
from vpmu_emu.tables.generate import linux_inc
from vpmu_emu.tables.linux import (
    ERRNO,
    HEADERS,
    IOCTLS,
    STRUCTS,
    SYSCALLS,
    constant,
    constants,
    errno_name,
    size_of,
)
from vpmu_emu.tables.names import UnknownNameError

pytestmark = pytest.mark.uncompiled

# What headers of Linux 6.1 do not have yet.
NEWER = {"config3", "inherit_thread", "PERF_ATTR_SIZE_VER8", "KVM_CAP_PMU_EVENT_MASKED_EVENTS",
         "KVM_PMU_EVENT_FLAG_MASKED_EVENTS", "KVM_CAP_USER_MEMORY2", "KVM_SET_USER_MEMORY_REGION2",
         "kvm_userspace_memory_region2", "KVM_CAP_VM_TYPES"}  # fmt: skip
HAS_VER8 = "#ifdef PERF_ATTR_SIZE_VER8\n{}\n#endif"
KERNEL_HEADERS = (
    "linux/perf_event.h", "linux/kvm.h", "asm/kvm.h", "linux/kvm_para.h", "linux/time_types.h",
    "linux/sched.h", "linux/futex.h", "linux/auxvec.h", "linux/elf.h", "asm/mman.h", "asm/poll.h",
)  # fmt: skip


def headers_say(require_oracle, tmp_path, lines):
    """What a C program prints whose main() is `lines`; those that name something newer are left out."""
    compiler = require_oracle("gcc")
    source = tmp_path / "t.c"
    includes = "".join(f"#include <{h}>\n" for h in ("stdio.h", "stddef.h", "string.h", "errno.h",
                       "fcntl.h", "signal.h", "sys/mman.h", "time.h", "sys/syscall.h",
                       *KERNEL_HEADERS))  # fmt: skip
    missing: set[str] = set()
    for _ in range(2):
        kept = [text for text in lines if not missing & set(re.findall(r"\w+", text))]
        body = "\n".join(kept)
        source.write_text(f"#define _GNU_SOURCE\n{includes}int main(void) {{\n{body}\nreturn 0; }}\n")
        command = [compiler, "-o", str(tmp_path / "t"), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            output = subprocess.run([str(tmp_path / "t")], capture_output=True, text=True, check=True)
            return dict(line.split(" ") for line in output.stdout.splitlines())
        if "No such file" in done.stderr:
            pytest.skip(f"no kernel headers: {done.stderr.splitlines()[0]}")
        unknown = r"[‘'](\w+)[’'] undeclared|member named [‘'](\w+)[’']|undefined type [‘']struct (\w+)[’']"
        unknown += r"|incomplete type [‘']struct (\w+)[’']"
        found = re.findall(unknown, done.stderr)
        missing |= {name for names in found for name in names if name}
        assert missing <= NEWER, done.stderr
    raise AssertionError(done.stderr)


def test_every_constant_is_that_of_the_headers(require_oracle, tmp_path):
    bits = tuple(f"{row.bits_prefix}_" for row in STRUCTS.values() if row.bits)
    plain = {name for values in HEADERS.values() for name in values}
    names = {n: value for n, value in constants().items() if n in plain or not n.startswith(bits)}
    lines = [f'printf("{name} %lld\\n", (long long)({name}));' for name in names]
    said = headers_say(require_oracle, tmp_path, lines)
    assert {name: int(said[name]) for name in said} == {name: names[name] for name in said}
    assert set(names) - set(said) <= NEWER
    assert len(said) > 300


def test_every_member_is_where_the_headers_put_it(require_oracle, tmp_path):
    lines, wanted = [], {}
    for row in STRUCTS.values():
        c = row.kernel
        lines.append(f'printf("{row.name} %zu\\n", sizeof(struct {c}));')
        wanted[row.name] = row.size
        for field in row.fields:
            # The header of 6.1 gives a union of bits no name, and perf_branch_entry is bits alone.
            if field.name in (row.bits_field, "info") and row.bits_field != "capabilities":
                continue
            key = f"{row.name}.{field.name}"
            lines.append(f'printf("{key} %zu\\n", offsetof(struct {c}, {field.name}));')
            lines.append(f'printf("{key}:size %zu\\n", sizeof(((struct {c} *)0)->{field.name}));')
            wanted[key], wanted[f"{key}:size"] = field.offset, field.size
    said = {key: int(text) for key, text in headers_say(require_oracle, tmp_path, lines).items()}
    if "perf_event_attr.config3" not in said:
        said["perf_event_attr"] += 8
    assert said == {key: wanted[key] for key in said}
    left = [key for key in wanted.keys() - said.keys() if key.split(".")[0] not in NEWER]
    assert {key.split(".")[-1].removesuffix(":size") for key in left} <= NEWER


@pytest.mark.parametrize("row", [row for row in STRUCTS.values() if row.bits], ids=lambda row: row.name)
def test_every_bit_is_that_of_the_headers(row, require_oracle, tmp_path):
    at = row.offset(row.bits_field)
    lines = [f"struct {row.kernel} s; unsigned long long v;"]
    lines += [
        f"memset(&s, 0, sizeof s); s.{name} = ~0; memcpy(&v, (char *)&s + {at}, 8); "
        f'printf("{name} %llu\\n", v);'
        for name, _, _ in row.bits
        if not name.startswith("__")
    ]
    said = headers_say(require_oracle, tmp_path, lines)
    for name, low, high in row.bits:
        if name in said:
            assert int(said[name]) == (1 << high + 1) - (1 << low), name


def test_structures_hold_together():
    for row in STRUCTS.values():
        assert all(f.offset % min(8, size_of(f.type)) == 0 or f.type in STRUCTS for f in row.fields)
        assert all(f.offset + f.size <= row.size for f in row.fields), row
        assert row.dtype.itemsize == row.size
        places = [bit for _, low, high in row.bits for bit in range(low, high + 1)]
        assert len(places) == len(set(places))
    assert len(SYSCALLS) == len({row.name for row in SYSCALLS.values()})
    assert len(IOCTLS) == len({row.number for row in IOCTLS} - {constant("KVM_GET_TSC_KHZ")}) + 1
    assert {row.on for row in IOCTLS} == {"perf", "kvm", "vm", "vcpu"}
    for row in IOCTLS:
        assert bool(row.size) == bool(row.arg) == bool(row.dir)
        assert row.arg in STRUCTS or row.arg in ("", "u32", "u64")


def test_names_and_numbers():
    assert constant("SYS_perf_event_open") == 298
    assert constant("KVM_RUN") == 0xAE80
    assert constant("KVM_SET_REGS") == 0x4090AE82
    assert constant("PERF_ATTR_PRECISE_IP_SHIFT") == 15
    assert errno_name(ERRNO["ENXIO"]) == "ENXIO"
    assert errno_name(3000) == "errno 3000"
    with pytest.raises(UnknownNameError, match="KVM_SET_REGS"):
        constant("KVM_SET_REG")
    assert "fcntl.h" in HEADERS


def test_a_structure_can_be_packed_read_and_viewed():
    row = STRUCTS["kvm_msrs"]
    entry = STRUCTS["kvm_msr_entry"].new(index=0x38F, data=(1 << 64) - 1)
    packed = row.new(nmsrs=1).tobytes() + entry.tobytes()
    assert packed == b"\1" + bytes(7) + b"\x8f\3" + bytes(6) + b"\xff" * 8
    assert row.read(packed)["nmsrs"] == 1
    assert [int(e["index"]) for e in row.tails(packed)] == [0x38F]
    assert row.read(b"\2")["nmsrs"] == 2
    M = np.zeros(4096, dtype=np.uint8)
    STRUCTS["kvm_run"].view(M, 8)["io.port"] = 0x3F8
    assert M[42] == 0xF8
    assert STRUCTS["kvm_sregs"].new()["cs"]["base"] == 0


def test_linux_inc_is_up_to_date_and_assembles_with_both_assemblers(root, require_oracle, tmp_path):
    assert (root / "guests" / "include" / "linux.inc").read_text() == linux_inc()
    names = ["SYS_ioctl", "KVM_SET_CPUID2", "AT_FDCWD", "kvm_run_io_port", "sizeof_perf_event_attr",
             "kvm_sregs_cs + kvm_segment_type", "PERF_ATTR_PINNED"]  # fmt: skip
    text = '.intel_syntax noprefix\n.include "linux.inc"\n' + "".join(f".quad {n}\n" for n in names)
    words = (16, 0x4008AE90, -100, 34, 136, 14, 4)
    data = b"".join(w.to_bytes(8, "little", signed=True) for w in words)
    assert b"".join(s.data for s in assemble(text, "t.s").segments).startswith(data)
    (tmp_path / "t.s").write_text(text)
    include = str(root / "guests/include")
    out = str(tmp_path / "t.o")
    command = [require_oracle("as"), "--64", "-I", include, "-o", out, str(tmp_path / "t.s")]
    subprocess.run(command, check=True)
    assert data in (tmp_path / "t.o").read_bytes()
