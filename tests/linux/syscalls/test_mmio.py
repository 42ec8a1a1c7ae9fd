"""KVM_EXIT_MMIO: what a guest does where no memory slot lies is its VMM's, by pieces, and counts once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.linux.syscalls.test_kvm import EVTSEL0, GLOBAL_CTRL, INSTRUCTIONS, PMC0, RAM, Vmm
from tests.linux.syscalls.test_kvm_vcpu import FEP, MODES, code, registers
from vpmu_emu.tables.linux import constant

pytestmark = pytest.mark.uncompiled

DEVICE = 0x20_0000  # outside of the slot; the guest's tables map 4 GiB one to one
PML4, PDPT, PD = 0x1_0000, 0x1_1000, 0x1_2000
MMIO, IO = constant("KVM_EXIT_MMIO"), constant("KVM_EXIT_IO")


def start(text: str, mode: str = "emulated", **more: Any) -> Vmm:
    """A guest with page tables, at its first instruction."""
    vmm = Vmm(mode, **more)
    vmm.kernel.S.config.force_emulation_prefix = 1
    vmm.load(code(text.replace("; ", "\n") + "\nout 0x80, al"))
    tables = {PML4: [PDPT | 3], PDPT: [PD + 4096 * n | 3 for n in range(4)]}
    tables[PD] = [n << 21 | 0x83 for n in range(2048)]
    for at, entries in tables.items():
        vmm.host.copy_to_user(vmm.ram + at, np.array(entries, dtype="<u8").tobytes())
    sregs = vmm.get("KVM_GET_SREGS", "kvm_sregs")
    sregs["cr3"] = PML4
    assert vmm.give(vmm.vcpu, "KVM_SET_SREGS", sregs.tobytes()) == 0
    return vmm


def put(vmm: Vmm, **values: int) -> None:
    regs = registers(vmm)
    for name, value in values.items():
        regs[name] = value
    assert vmm.give(vmm.vcpu, "KVM_SET_REGS", regs.tobytes()) == 0


def serve(vmm: Vmm, *answers: int) -> list[tuple[int, int, int | None]]:
    """Run up to the OUT, `answers` for the reads: (address, bytes, value written or None) of each exit."""
    found, left = [], list(answers)
    while True:
        assert vmm.run() == 0
        run = vmm.kvm_run
        reason = int(run["exit_reason"])
        if reason == IO:
            assert not left
            return found
        assert reason == MMIO
        size = int(run["mmio.len"])
        data = bytes(run["mmio.data"])
        writes = bool(run["mmio.is_write"])
        found.append((int(run["mmio.phys_addr"]), size, int.from_bytes(data, "little") if writes else None))
        if not writes:
            run["mmio.data"] = list((left.pop(0)).to_bytes(8, "little"))


def emulated(vmm: Vmm) -> int:
    return int(vmm.kernel.S.vcpus[0].emulated_insns)


@MODES
@pytest.mark.parametrize("forced", ["", FEP], ids=["", "FEP"])
@pytest.mark.parametrize(("size", "register"), [(1, "al"), (2, "ax"), (4, "eax"), (8, "rax")])
def test_a_read_is_answered_before_the_instruction_is_done(mode, forced, size, register):
    vmm = start(f"{forced}mov {register}, [rbx]; nop", mode)
    put(vmm, rax=0x5555_5555_5555_5555, rbx=DEVICE + 0x18)
    assert vmm.run() == 0
    run = vmm.kvm_run
    assert int(run["exit_reason"]) == MMIO
    found = [int(run[f"mmio.{name}"]) for name in ("phys_addr", "len", "is_write")]
    assert found == [DEVICE + 0x18, size, 0]
    assert int(registers(vmm)["rip"]) == 0x1000 + 5 * bool(forced)
    assert emulated(vmm) == 0
    run["mmio.data"] = list(b"\x01\x02\x03\x04\x05\x06\x07\x88")
    run["immediate_exit"] = 1
    assert vmm.run() == -4  # EINTR
    value = 0x8807_0605_0403_0201 & (1 << 8 * size) - 1
    kept = 0x5555_5555_5555_5555 >> 8 * size << 8 * size if size < 4 else 0
    assert int(registers(vmm)["rax"]) == value | kept
    assert emulated(vmm) == 1
    run["immediate_exit"] = 0
    assert serve(vmm) == []


@MODES
@pytest.mark.parametrize("forced", ["", FEP], ids=["", "FEP"])
@pytest.mark.parametrize(("size", "register"), [(1, "al"), (2, "ax"), (4, "eax"), (8, "rax")])
def test_a_write_is_over_when_the_vmm_hears_of_it(mode, forced, size, register):
    text = code(f"{forced}mov [rbx], {register}".replace("; ", "\n"))
    vmm = start(f"{forced}mov [rbx], {register}", mode)
    put(vmm, rax=0x8877_6655_4433_2211, rbx=DEVICE + 7 * 8)
    assert vmm.run() == 0
    run = vmm.kvm_run
    found = [int(run[f"mmio.{name}"]) for name in ("phys_addr", "len", "is_write")]
    assert found == [DEVICE + 56, size, 1]
    assert bytes(run["mmio.data"])[:size] == bytes.fromhex("1122334455667788")[:size]
    assert int(registers(vmm)["rip"]) == 0x1000 + len(text)
    assert emulated(vmm) == 1
    assert serve(vmm) == []


READ = None
D = DEVICE


@pytest.mark.parametrize(
    ("text", "answers", "exits", "rax"),
    [
        ("mov eax, 5; add [rbx], eax", (7,), [(D, 4, READ), (D, 4, 12)], 5),
        ("mov eax, 5; lock xadd [rbx], eax", (7,), [(D, 4, READ), (D, 4, 12)], 7),
        ("mov eax, 5; xchg [rbx], rax", (7,), [(D, 8, READ), (D, 8, 5)], 7),
        ("mov eax, 5; add rax, [rbx]", (7,), [(D, 8, READ)], 12),
        ("mov al, 1; movzx eax, byte ptr [rbx]", (0x181,), [(D, 1, READ)], 0x81),
        ("push qword ptr [rbx]; pop rax", (77,), [(D, 8, READ)], 77),
        ("mov eax, 3; push rax; pop qword ptr [rbx + 8]", (), [(D + 8, 8, 3)], 3),
        ("xor eax, eax; cmpxchg [rbx], rcx", (9,), [(D, 8, READ), (D, 8, 9)], 9),
        ("mov eax, 9; cmpxchg [rbx], rcx", (9,), [(D, 8, READ), (D, 8, 0)], 9),
        ("mov eax, 6; mov rsi, rbx; lea rdi, [rbx + 64]; movsd", (8,), [(D, 4, READ), (D + 64, 4, 8)], 6),
        ("mov eax, 6; clflush [rbx]; prefetcht0 [rbx]", (), [], 6),
        ("mov eax, 6; test [rbx], eax; setz al", (1,), [(D, 4, READ)], 1),
        ("mov eax, 6; mov rsi, rbx; mov edi, 0x5000; mov edx, 0x90; lodsb; lodsb", (1, 2),
         [(D, 1, READ), (D + 1, 1, READ)], 2),
    ],
)  # fmt: skip
def test_instructions(text, answers, exits, rax):
    vmm = start(text)
    put(vmm, rbx=DEVICE)
    assert serve(vmm, *answers) == exits
    assert int(registers(vmm)["rax"]) == rax
    assert emulated(vmm) == 1 + text.count("; lodsb;")


def test_each_iteration_of_rep_that_writes_is_an_instruction():
    """x86_emulate_instruction() leaves, and counts, after each write; reads alone go on."""
    vmm = start("mov ecx, 3; mov rdi, rbx; rep stosw")
    put(vmm, rax=0x1234, rbx=DEVICE)
    assert serve(vmm) == [(D + 2 * n, 2, 0x1234) for n in range(3)]
    assert emulated(vmm) == 3
    vmm = start("mov ecx, 3; mov rsi, rbx; mov edi, 0x5000; rep movsd")
    put(vmm, rbx=DEVICE)
    assert serve(vmm, 1, 2, 3) == [(D + 4 * n, 4, None) for n in range(3)]
    assert emulated(vmm) == 1
    assert vmm.host.copy_from_user(vmm.ram + 0x5000, 12) == bytes.fromhex("010000000200000003000000")
    assert int(registers(vmm)["rcx"]) == 0


@pytest.mark.parametrize("size", [2, 4, 8])
def test_pieces_of_an_access_that_crosses_a_page(size):
    register = {2: "ax", 4: "eax", 8: "rax"}[size]
    value = 0x8877_6655_4433_2211 & (1 << 8 * size) - 1
    for first in range(1, size):
        at = DEVICE + 0x2000 - first
        low, high = value & (1 << 8 * first) - 1, value >> 8 * first
        vmm = start(f"mov {register}, [rbx]; mov [rbx], {register}")
        put(vmm, rbx=at)
        pieces = [(at, first), (DEVICE + 0x2000, size - first)]
        wanted = [(*piece, None) for piece in pieces]
        wanted += [(*piece, part) for piece, part in zip(pieces, (low, high), strict=True)]
        assert serve(vmm, low, high) == wanted
        assert int(registers(vmm)["rax"]) == value
        assert emulated(vmm) == 2


@pytest.mark.parametrize("first", range(1, 8))
def test_half_in_memory(first):
    at = RAM - first
    value = 0x8877_6655_4433_2211
    vmm = start("mov rax, [rbx]; not rax; mov [rbx], rax")
    put(vmm, rbx=at)
    vmm.host.copy_to_user(vmm.ram + at, value.to_bytes(8, "little")[:first])
    last = 8 - first
    other = ~value & (1 << 64) - 1
    assert serve(vmm, value >> 8 * first) == [(RAM, last, None), (RAM, last, other >> 8 * first)]
    assert vmm.host.copy_from_user(vmm.ram + at, first) == other.to_bytes(8, "little")[:first]


@MODES
def test_an_access_counts_once(mode):
    vmm = start("mov rcx, 0x38f; mov eax, 1; xor edx, edx; wrmsr; "
                "mov rsi, [rbx]; add [rbx], rsi; mov [rbx], rsi; xor eax, eax; wrmsr", mode)  # fmt: skip
    put(vmm, rbx=DEVICE)
    assert vmm.set((GLOBAL_CTRL, 0), (EVTSEL0, INSTRUCTIONS)) == 2
    assert len(serve(vmm, 1, 2)) == 4
    # three accesses in software, one XOR, and one of the two WRMSRs
    assert vmm.read(PMC0) == [5]


def test_where_the_vmm_has_unmapped_its_memory_an_emulated_access_is_a_device():
    """emulator_read_write_onepage(): what cannot be copied is MMIO."""
    vmm = start(f"{FEP}mov rax, [rbx]")
    put(vmm, rbx=0x8_0000)
    assert vmm.kernel.call("munmap", vmm.ram + 0x8_0000, 4096) == 0
    assert serve(vmm, 5) == [(0x8_0000, 8, None)]
    assert int(registers(vmm)["rax"]) == 5


def test_without_an_irqchip_the_apic_is_the_vmms():
    vmm = start("mov eax, [rbx]", irqchip=False)
    put(vmm, rbx=0xFEE0_0030)
    assert serve(vmm, 0x50014) == [(0xFEE0_0030, 4, None)]
    vmm = start("mov eax, [rbx]")
    put(vmm, rbx=0xFEE0_0030)
    assert serve(vmm) == []


def test_a_guest_that_steps_itself():
    """No #DB behind a write: the emulator has left for the VMM; behind a read there is one."""
    for text, steps in (("mov [rbx], eax", 0), ("mov eax, [rbx]", 1)):
        vmm = start(text)
        put(vmm, rbx=DEVICE, rflags=0x102)
        assert vmm.run() == 0
        assert int(vmm.kvm_run["exit_reason"]) == MMIO
        assert int(vmm.kvm_run["mmio.is_write"]) == 1 - steps
        vmm.kvm_run["immediate_exit"] = 1
        assert vmm.run() == -4
        events = vmm.get("KVM_GET_VCPU_EVENTS", "kvm_vcpu_events")
        assert int(events["exception.injected"]) == steps


def test_outs_of_a_device():
    vmm = start("mov rsi, rbx; mov edx, 0x90; outsb")
    put(vmm, rbx=DEVICE)
    assert vmm.run() == 0
    assert int(vmm.kvm_run["exit_reason"]) == MMIO
    vmm.kvm_run["mmio.data"] = list(b"x" * 8)
    assert vmm.run() == 0
    assert int(vmm.kvm_run["exit_reason"]) == IO
    assert (int(vmm.kvm_run["io.port"]), int(vmm.pio[0])) == (0x90, ord("x"))
    assert emulated(vmm) == 1
    assert serve(vmm) == []
