"""Control registers of a guest: KVM owns some bits of CR0 and CR4, and only their change exits."""

from __future__ import annotations

import pytest

from tests.tools.whole import machine
from vpmu_emu.asm import assemble
from vpmu_emu.linux.kvm.vmx.vmcs import vmcs_read
from vpmu_emu.tables.modes import MODES

pytestmark = pytest.mark.uncompiled
KVM_MODES = [m for m in MODES if m != "bare"]
CR_ACCESS = 28
AM, TS, WP = 1 << 18, 1 << 3, 1 << 16
PSE, PGE, PCE, VME = 1 << 4, 1 << 7, 1 << 8, 1


def run(body: str, mode: str, **options):
    text = f".intel_syntax noprefix\n_start:\n{body}\nmov al, 0\nout 0xf4, al"
    system = machine(assemble(text), mode, **options)
    return system, system.run()


def toggle(register: str, bits: int) -> str:
    return f"mov rsi, {register}\nxor rsi, {bits}\nmov {register}, rsi\nmov rbx, {register}\n"


@pytest.mark.parametrize("mode", KVM_MODES)
@pytest.mark.parametrize(
    ("register", "bits", "exits"),
    [("cr0", AM, 1), ("cr0", TS, 0), ("cr0", WP, 0), ("cr0", TS | AM, 1), ("cr0", 0, 0),
     ("cr4", PSE, 1), ("cr4", VME, 1), ("cr4", PGE, 0), ("cr4", PCE, 0), ("cr4", PGE | PSE, 1)],
)  # fmt: skip
def test_a_write_exits_if_it_changes_a_bit_of_the_host(register, bits, exits, mode):
    bare, _ = run(toggle(register, bits), "bare")
    system, stop = run(toggle(register, bits), mode)
    assert stop.reason == "debug-exit"
    assert int(system.core.stats.exits[CR_ACCESS]) == exits
    assert system.registers()["rbx"] == bare.registers()["rbx"] == bare.registers()["rsi"]


@pytest.mark.parametrize("mode", KVM_MODES)
def test_a_second_toggle_exits_again(mode):
    """The read shadow follows what the guest wrote."""
    system, _ = run(toggle("cr0", AM) + toggle("cr0", AM) + toggle("cr0", 0), mode)
    assert int(system.core.stats.exits[CR_ACCESS]) == 2


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("write", ["mov eax, 1\nmov cr0, rax", "mov eax, 0x10\nmov cr4, rax"])
def test_a_bad_value_is_gp_and_changes_nothing(write, mode):
    # no IDT: #GP becomes a triple fault
    system, stop = run("mov r8, cr0\nmov r9, cr4\n" + write, mode)
    assert stop.reason == "triple-fault"
    if mode == "bare":
        found = int(system.core.cr0), int(system.core.cr4)
    else:
        vcpu = system.S.vcpus[0]
        found = tuple(vmcs_read(system.M, vcpu, f"GUEST_CR{n}") for n in (0, 4))
    assert found == (system.registers()["r8"], system.registers()["r9"])


@pytest.mark.parametrize("mode", ["emulated", "passthrough", "mediated"])
def test_one_that_exits_counts_once(mode):
    body = """
    mov ecx, 0x38f; xor eax, eax; xor edx, edx; wrmsr
    mov ecx, 0x186; mov eax, 0x4300c0; wrmsr
    mov ecx, 0x38f; mov eax, 1; wrmsr
    mov rbx, cr0; xor rbx, 0x40000; mov cr0, rbx
    xor eax, eax; wrmsr
    mov ecx, 0xc1; rdmsr; mov r8, rax
    """
    counts = {m: run(body, m)[0].registers()["r8"] for m in ("bare", mode)}
    assert counts["bare"] == counts[mode] == 5
