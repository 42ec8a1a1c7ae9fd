"""The VMM in assembly: the same bytes from both assemblers, and words when it cannot go on."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest

from tests.linux.guests import system
from tests.linux.syscalls.kernel import Kernel
from vpmu_emu.asm import assemble, write_elf
from vpmu_emu.linux.syscalls import handle
from vpmu_emu.linux.syscalls.tasks import spawn
from vpmu_emu.machine.state import RUN_SYSCALL
from vpmu_emu.setup import boot
from vpmu_emu.system import vmm
from vpmu_emu.tables.linux import STRUCTS

pytestmark = pytest.mark.uncompiled

GUEST = write_elf(assemble("_start: hlt\n", "guest.s"), symbols=False)


def test_both_assemblers_make_the_same_code(root, require_oracle, tmp_path):
    segments = {s.name: s for s in vmm().segments}
    places = [f"-T{name[1:]}={segment.addr:#x}" for name, segment in segments.items()]
    include, source = str(root / "guests/include"), str(root / "guests/host/vmm.s")
    run = {"check": True, "cwd": tmp_path}
    subprocess.run([require_oracle("as"), "--64", "-I", include, "-o", "a.o", source], **run)
    subprocess.run([require_oracle("ld"), *places, "-o", "a.out", "a.o"], **run)
    for name in (".text", ".data"):
        command = [require_oracle("objcopy"), "-O", "binary", "-j", name, "a.out", "part"]
        subprocess.run(command, **run)
        assert (tmp_path / "part").read_bytes() == segments[name].data, name


def start(arguments: list[str], files: dict[str, bytes]) -> Kernel:
    """The VMM on a host with these files, run until it ends or its guest has begun."""
    from vpmu_emu.linux.run import run_host

    kernel = Kernel()
    kernel.S.config.fixed_cap = 3
    kernel.host.programs, kernel.host.images = (vmm(),), files
    kernel.S.tasks[0].used = 0
    row = spawn(kernel.host, 0, ["vmm", *arguments], [])
    task = kernel.S.tasks[row]
    with np.errstate(over="ignore"):
        while int(task.vcpu) < 0:
            kernel.E.t_slice = 1 << 60
            if int(run_host(kernel.S, kernel.M, kernel.E)) != RUN_SYSCALL:
                break
            handle(kernel.host)
    return kernel


@pytest.mark.parametrize(
    ("arguments", "files", "said"),
    [
        ([], {"/guest": GUEST}, "usage: vmm MEBIBYTES [MEBIBYTES]: error 22"),
        (["x"], {"/guest": GUEST}, "usage: vmm MEBIBYTES [MEBIBYTES]: error 22"),
        (["4000"], {"/guest": GUEST}, "mmap of the guest's memory: error 12"),
        (["1"], {}, "/guest: error 2"),
        (["1"], {"/guest": GUEST[:80]}, "/guest is too short: error 0"),
        (["1"], {"/guest": GUEST}, "/guest does not fit into the guest's memory"),
        (["2"], {"/guest": GUEST, "/filter": b"\7"}, "/filter: error 22"),
        (["2"], {"/guest": GUEST, "/msrs": b"\1"}, "/msrs: error 0"),
    ],
)
def test_it_says_what_failed(arguments, files, said):
    kernel = start(arguments, files)
    assert kernel.text.startswith(f"vmm: {said}")
    assert kernel.exit_codes() == [1]


def test_a_leaf_of_cpuid_is_replaced():
    entry = STRUCTS["kvm_cpuid_entry2"]
    data = STRUCTS["kvm_cpuid2"].new(nent=2).tobytes()
    data += entry.new(function=0x7777).tobytes()  # KVM has no such leaf
    data += entry.new(function=0xA, eax=0x0830_0301, edx=0).tobytes()
    kernel = start(["2"], {"/guest": GUEST, "/cpuid": data})
    pmu = kernel.S.vcpus[0].pmu
    assert (int(pmu.version), int(pmu.nr_arch_gp_counters)) == (1, 3)
    assert not any(int(e.leaf) == 0x7777 for e in kernel.S.vcpus[0].cpuid)


def test_what_a_guest_finds():
    """Memory, registers and tables are those of `bare`."""
    machine = system("nop\n EXIT 0\n", "emulated")
    bare = system("nop\n EXIT 0\n", "bare")
    assert machine.registers() == bare.registers()
    assert machine.read(0, 1 << 21) == bare.read(0, 1 << 21)
    assert int(machine.S.vcpus[0].launched) == 0
    assert machine.run().reason == "debug-exit"
    assert machine.serial == ""


def test_ports_of_every_size():
    body = """
        mov dx, 0x3f8
        mov eax, 0x41424344
        out dx, al
        mov dx, 0x80
        out dx, ax
        out dx, eax
        mov rax, -1
        mov dx, 0x3fd
        in al, dx
        mov rsi, rax
        mov rax, -1
        in ax, dx
        mov rdi, rax
        in eax, dx
        mov rbp, rax
        EXIT 3
    """
    machine, bare = system(body, "emulated"), system(body, "bare")
    assert machine.run().info == bare.run().info == 3
    assert machine.serial == bare.serial == "D"
    assert machine.registers() == bare.registers()
    assert machine.instructions == bare.instructions


def test_a_boot_that_is_known_is_the_same_boot():
    boot._BOOTED.clear()
    runs = [system("nop\n EXIT 0\n", "passthrough", trace=True) for _ in range(3)]
    assert len(boot._BOOTED) == 1
    begun = [machine.record() for machine in runs]
    assert begun[0] == begun[1] == begun[2]
    assert (runs[0].M == runs[2].M).all()
    ended = [machine.result(machine.run()) for machine in runs]
    assert ended[0].record == ended[1].record == ended[2].record
    assert (ended[0].events() == ended[2].events()).all()
