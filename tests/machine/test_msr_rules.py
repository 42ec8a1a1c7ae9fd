"""Every MSR and every bit of it does what the table says: silicon's rule on `bare`, KVM's in a guest."""

from __future__ import annotations

from functools import cache

import pytest

from tests.machine.board import Board
from tests.tools.whole import machine
from vpmu_emu._jit import COMPILES
from vpmu_emu.asm import assemble
from vpmu_emu.linux.kvm.cpuid import guest_shape
from vpmu_emu.tables.cpus import cpu
from vpmu_emu.tables.msrs import ACCESS, MSRS, rules

ALL = (1 << 64) - 1
# without the compiler only bits at which some rule changes
BITS = range(64) if COMPILES else (0, 2, 8, 10, 11, 21, 31, 32, 34, 35, 46, 47, 48, 58, 62, 63)
VALUES = (0, ALL, *(1 << bit for bit in BITS))
AT = 0x100000
FLAGS = 0x2
WRMSR, RDMSR = b"\x0f\x30", b"\x0f\x32"
HW = rules("hw", cpu("spr").shape())
X2APIC = range(0x800, 0x900)
BASES = ("IA32_FS_BASE", "IA32_GS_BASE", "IA32_KERNEL_GS_BASE", "IA32_DS_AREA")
RECORDS = ("IA32_LBR_{}_FROM_IP", "IA32_LBR_{}_TO_IP")
CANONICAL = ("IA32_LSTAR", "IA32_CSTAR", "IA32_SYSENTER_ESP", "IA32_SYSENTER_EIP", *BASES, *RECORDS)
# Reading back gives something else than what was written; `read_back` knows the first three.
OWN_VALUE = ("IA32_TIME_STAMP_COUNTER", "IA32_APIC_BASE", "IA32_TSC_DEADLINE", "IA32_PRED_CMD")


def instances(row):
    """First, second and last instance, and the index after the family, which is another's or nobody's."""
    return sorted({0, min(1, row.count - 1), row.count - 1})


@cache
def board() -> Board:
    return Board()


def execute(code: bytes, index: int, value: int = 0, x2apic: bool = False):
    """(faults, rdx:rax) of one RDMSR or WRMSR on a fresh machine."""
    b = board()
    # a value in every register, so that a change shows
    regs = [0x1111_1111_0000_0000 * k & ALL for k in range(16)]
    regs[0], regs[1], regs[2] = value & 0xFFFFFFFF, index, value >> 32
    b.lay(code, AT, regs, FLAGS)
    if x2apic:
        b.core.lapic.apic_base = int(b.core.lapic.apic_base) | 1 << 10
    return b, regs


def silicon_faults(row, n: int, value: int | None, x2apic: bool) -> bool:
    """What the table says of a read (value None) or a write."""
    k = row.number
    if n >= HW.exists_count[k] or (row.index in X2APIC and not x2apic):
        return True
    access = ACCESS[HW.access[k]]
    if value is None:
        return access == "wo"
    if access == "ro" or value & HW.reserved[k]:
        return True
    if row.name in CANONICAL and value >> 47 not in (0, 0x1FFFF):
        return True
    if row.name == "IA32_APIC_BASE":
        # reset state: enabled, xAPIC mode; x2APIC without the enable bit is no mode
        return value & 0xC00 == 0x400 or (x2apic and value & 0xC00 == 0x800)
    if row.name == "IA32_LBR_DEPTH":
        return value not in (8, 16, 32)
    if row.name == "IA32_PAT":  # UC WC WT WP WB UC- (SDM 3A table 12-10)
        return any(byte not in (0, 1, 4, 5, 6, 7) for byte in value.to_bytes(8, "little"))
    if row.name == "IA32_EFER":
        return not value & 1 << 8  # LME cannot change while paging is on
    return False


def read_back(row, value: int) -> int | None:
    """What RDMSR gives after a write of `value`; None if that is the test of another module."""
    if row.name in OWN_VALUE or row.index in X2APIC:
        return None
    if row.name == "IA32_PMC":
        low = value & 0xFFFFFFFF
        return low | (0xFFFF_0000_0000 if low >> 31 else 0)
    if row.name.startswith("IA32_PERF_GLOBAL_STATUS_"):
        return 0
    if row.name == "IA32_SYSENTER_CS":
        return value & 0xFFFF_FFFF  # a selector
    if row.name == "IA32_DEBUGCTL":
        return value & ~1  # architectural LBRs: bit 0 means nothing
    if row.name == "IA32_EFER":
        return value & ~(1 << 10) | 1 << 10
    if row.name == "IA32_MISC_ENABLE":
        fixed = 1 << 7 | 1 << 11 | 1 << 12
        return value & ~fixed | HW.reset[row.number] & fixed
    return value


@pytest.mark.uncompiled
@pytest.mark.parametrize("row", MSRS, ids=lambda row: row.name)
def test_silicon(row):
    for n in instances(row):
        index = row.index + n * row.stride
        for x2apic in {row.index in X2APIC, False}:
            b, regs = execute(RDMSR, index, x2apic=x2apic)
            stop = b.system.step()
            faulted = stop.reason == "triple-fault"
            where = f"{row.instance_name(n)}, x2apic {x2apic}"
            assert faulted == silicon_faults(row, n, None, x2apic), f"RDMSR {where}"
            if faulted:
                assert stop.info == 13
                assert [int(v) for v in b.core.regs[:16]] == regs, "RDMSR that faults changes nothing"
                before = None
            else:
                before = int(b.core.regs[2]) << 32 | int(b.core.regs[0])
                assert int(b.core.regs[2]) >> 32 == int(b.core.regs[0]) >> 32 == 0
            for value in VALUES if COMPILES or n == 0 else (0, ALL):
                one_write(row, n, index, value, x2apic, before)


def one_write(row, n, index, value, x2apic, before):
    b, regs = execute(WRMSR + RDMSR, index, value, x2apic)
    was = b.core.pmu.tobytes(), b.core.lapic.tobytes()
    stop = b.system.step()
    # (an NMI that the ICR sends to its own core ends the run as vector 2)
    faulted = stop.reason == "triple-fault" and stop.info == 13
    what = f"WRMSR {row.instance_name(n)} <- {value:#x}"
    assert faulted == silicon_faults(row, n, value, x2apic), what
    assert [int(v) for v in b.core.regs[:16]] == regs, what
    if faulted:
        assert (b.core.pmu.tobytes(), b.core.lapic.tobytes()) == was, f"{what} changes the machine"
        return
    wanted = read_back(row, value)
    if before is None or wanted is None:
        return
    assert b.system.step().reason == "step", what
    found = int(b.core.regs[2]) << 32 | int(b.core.regs[0])
    assert found == wanted, f"{what} reads back {found:#x}, expected {wanted:#x}"


@pytest.mark.uncompiled
def test_indices_outside_of_the_table():
    known = {row.index + n * row.stride for row in MSRS for n in range(row.count)}
    around = {0, 0xC0, 0x1FFF, 0x2000, 0xBFFFFFFF, 0xC0002000, 0xFFFFFFFF}
    if COMPILES:
        around |= {index + d for index in known for d in (-1, 1)}
    for index in sorted(i for i in around - known if 0 <= i < 1 << 32):
        for code in (RDMSR, WRMSR):
            b, regs = execute(code, index)
            stop = b.system.step()
            assert (stop.reason, stop.info) == ("triple-fault", 13), hex(index)
            assert [int(v) for v in b.core.regs[:16]] == regs


# --- in a guest -----------------------------------------------------------------------------------------
# Each entry: index, value, what happened (1 written, 2 read before, 4 read after), before, after.
PROBE = """
.intel_syntax noprefix
.include "msr.inc"
.include "macros.inc"
.text
.globl _start
_start:
    load_idt
    set_gate 13, fault
    lea rsi, [entries]
    mov r8d, COUNT
next:
    mov ecx, [rsi]
    lea r13, [write]
    rdmsr
    mov [rsi + 24], eax
    mov [rsi + 28], edx
    or byte ptr [rsi + 16], 2
write:
    mov ecx, [rsi]
    mov eax, [rsi + 8]
    mov edx, [rsi + 12]
    lea r13, [again]
    wrmsr
    or byte ptr [rsi + 16], 1
again:
    mov ecx, [rsi]
    lea r13, [restore]
    rdmsr
    mov [rsi + 32], eax
    mov [rsi + 36], edx
    or byte ptr [rsi + 16], 4
restore:
    mov ecx, [rsi]
    mov eax, [rsi + 24]
    mov edx, [rsi + 28]
    lea r13, [done]
    wrmsr
done:
    add rsi, 40
    dec r8d
    jnz next
    xor eax, eax
    out 0xf4, al
fault:
    add rsp, 8
    mov [rsp], r13
    iretq
    idt_storage
.data
.balign 8
entries:
"""
FAMILIES = ("IA32_PERF", "IA32_PMC", "IA32_A_PMC", "IA32_FIXED", "MSR_K7", "MSR_PERF", "MSR_L")
KVM_ROWS = [
    row
    for row in MSRS
    if row.name.startswith(FAMILIES)
    or row.name in ("IA32_PEBS_ENABLE", "MSR_PEBS_DATA_CFG", "IA32_DS_AREA", "IA32_DEBUGCTL")
]
KVM = rules("kvm", guest_shape(cpu("spr").shape(), {}))


def passes(mode: str, row, n: int) -> bool:
    """Whether the guest reaches silicon: docs/modes.md."""
    if mode == "emulated":
        return False
    if row.name in ("IA32_PMC", "IA32_A_PMC"):
        return True
    if row.name == "IA32_FIXED_CTR":
        return n < 3
    return mode == "passthrough" and row.index in (0x38E, 0x38F, 0x390)


def verdict(mode: str, row, n: int, value: int | None) -> str:
    """fault, drop or done."""
    k = row.number
    table = HW if passes(mode, row, n) else KVM
    if n >= table.exists_count[k]:
        return "drop" if n < row.kvm.drop_absent else "fault"
    access = ACCESS[table.access[k]]
    if access == "drop":
        return "drop"
    if value is None:
        return "fault" if access == "wo" else "done"
    if row.name == "IA32_DS_AREA" and value >> 47 not in (0, 0x1FFFF):
        return "fault"
    return "fault" if access == "ro" or value & table.reserved[k] else "done"


@pytest.mark.parametrize("mode", ["emulated", "passthrough", "mediated"])
def test_a_guest(mode):
    cases = [(row, n, value) for row in KVM_ROWS for n in instances(row) for value in VALUES]
    text = PROBE.replace("COUNT", str(len(cases)))
    text += "".join(f".quad {row.index + n * row.stride}, {v:#x}, 0, 0, 0\n" for row, n, v in cases)
    program = assemble(text, "probe")
    system = machine(program, mode, max_insns=1_000_000)
    stop = system.run()
    assert stop.reason == "debug-exit", str(stop)
    at = program.symbols["entries"]
    wrong = []
    for k, (row, n, value) in enumerate(cases):
        words = [int.from_bytes(system.read(at + 40 * k + 8 * j, 8), "little") for j in range(5)]
        happened, before, after = words[2], words[3], words[4]
        read, written = verdict(mode, row, n, None), verdict(mode, row, n, value)
        label = f"{row.instance_name(n)} <- {value:#x}"
        if bool(happened & 2) != (read != "fault") or bool(happened & 4) != (read != "fault"):
            wrong.append(f"{label}: read faults {not happened & 2}, the table says {read}")
        if bool(happened & 1) != (written != "fault"):
            wrong.append(f"{label}: write faults {not happened & 1}, the table says {written}")
        if written != "done" and read == "done" and after != before:
            wrong.append(f"{label}: no effect, yet {before:#x} becomes {after:#x}")
        if read == "drop" and (before or after):
            wrong.append(f"{label}: a dropped register reads {after:#x}")
    assert wrong[:20] == []
