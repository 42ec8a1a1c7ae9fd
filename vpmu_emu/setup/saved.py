"""A saved VM says what it is and is whole, or it is refused before anything is made of it.

    magic 8 | format u32 | crc32 of all that follows u32 | version of the package 32 | length of head u32
    | head (JSON) | what the VMM wrote | the program as an ELF executable

Numbers are little-endian. What the VMM wrote is described in guests/include/migrate.inc: states that ioctls
of KVM gave, so that no byte of a perf event, of the hardware's PMU or of a KVM_REQ is in it. It is not
bound to a record as a snapshot is (`vpmu_emu/snapshot.py`): another mode, kernel or CPU may go on from it.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from vpmu_emu.asm.files import MAX_FILE, read_bytes
from vpmu_emu.asm.program import Program
from vpmu_emu.errors import ConfigError, LoadError
from vpmu_emu.linux.kvm.cpuid import (
    Leaf,
    capabilities_fit,
    fixed_counter_cap,
    refreshed,
    supported_leaves,
    told_by,
)
from vpmu_emu.linux.kvm.module import as_loaded
from vpmu_emu.linux.syscalls.host import TMP
from vpmu_emu.linux.syscalls.kvm_vcpu import msrs_supported
from vpmu_emu.load.elf import load_elf
from vpmu_emu.machine.state import N_CPUID
from vpmu_emu.tables.cpus import CpuModel
from vpmu_emu.tables.linux import STRUCTS
from vpmu_emu.tables.modes import Mode
from vpmu_emu.tables.msrs import msr_name
from vpmu_emu.tables.patches import without_bits
from vpmu_emu.tables.ram import MAX_RAM_MIB

MAGIC = b"vpmu_vm\0"
FORMAT = 1
VERSION_ROOM = 32
_FIXED = len(MAGIC) + 4 + 4 + VERSION_ROOM + 4
PATH = f"{TMP}vm"  # where the VMM writes and reads it
PAGE, HIGH = 4096, 1 << 32
SECTION = struct.Struct("<8sQ")
# Tags in their order, and the bytes of those that have always as many.
STATES = {
    "sizes": 16, "cpuid2": None, "caps": STRUCTS["kvm_msrs"].size + STRUCTS["kvm_msr_entry"].size,
    "mpstate": STRUCTS["kvm_mp_state"].size, "sregs": STRUCTS["kvm_sregs"].size,
    "xcrs": STRUCTS["kvm_xcrs"].size, "debug": STRUCTS["kvm_debugregs"].size,
    "lapic": STRUCTS["kvm_lapic_state"].size, "regs": STRUCTS["kvm_regs"].size, "tsc": 8, "msrs": None,
    "events": STRUCTS["kvm_vcpu_events"].size,
}  # fmt: skip
MOST_MSRS = 250
MOST = (MAX_RAM_MIB << 20) + MAX_FILE  # bytes of a file: memory, and a program
PMU_FACTS = ("version", "gp", "fixed", "width", "perf_capabilities")
# Where CPUID has features: (leaf, register of EAX to EDX, mask). OSXSAVE and APIC follow CR4 and
# IA32_APIC_BASE.
FEATURES = (
    (0x1, 2, ~(1 << 27)), (0x1, 3, ~(1 << 9)), (0x7, 1, ~0), (0x7, 2, ~0), (0x7, 3, ~0),
    (0x8000_0001, 2, ~0), (0x8000_0001, 3, ~0), (0x4000_0001, 0, ~0),
)  # fmt: skip
REGISTERS = ("EAX", "EBX", "ECX", "EDX")


@attrs.frozen(kw_only=True)
class SavedVm:
    """A VM as its VMM saved it.

    Attributes:
        name: of the file.
        facts: where it comes from: mode, kernel, cpu, ram (MiB), instructions, program, and `pmu`, the vPMU
            that the guest had (PMU_FACTS).
        sections: what the VMM wrote, by tag; memory is not among them.
        payload: all of it.
        program: the program that it runs, with its symbols.
    """

    name: str
    facts: Mapping[str, Any] = attrs.field(repr=False)
    sections: Mapping[str, bytes] = attrs.field(repr=False)
    payload: bytes = attrs.field(repr=False)
    program: Program = attrs.field(repr=False)


def pack(facts: Mapping[str, Any], payload: bytes, image: bytes) -> bytes:
    """The bytes of a file."""
    from vpmu_emu import __version__

    head = json.dumps({"facts": facts, "parts": [len(payload), len(image)]}).encode()
    version = __version__.encode()[:VERSION_ROOM].ljust(VERSION_ROOM, b"\0")
    body = version + len(head).to_bytes(4, "little") + head + payload + image
    return MAGIC + FORMAT.to_bytes(4, "little") + zlib.crc32(body).to_bytes(4, "little") + body


def load_saved(path: str | Path) -> SavedVm:
    """The saved VM in a file.

    Raises:
        ConfigError: it is none, damaged, of another format, or says what cannot be.
        OSError, LoadError: it cannot be read.
    """
    return unpack(read_bytes(Path(path), MOST), str(path))


def unpack(data: bytes, name: str) -> SavedVm:
    """The saved VM in `data`; errors call it `name` (raises as `load_saved`)."""
    from vpmu_emu import __version__

    def refuse(message: str) -> ConfigError:
        return ConfigError("restore", f"{name} {message}")

    if data[: len(MAGIC)] != MAGIC:
        from vpmu_emu.snapshot import MAGIC as SNAPSHOT

        other = "is a snapshot of a run (System.snapshot)" if data.startswith(SNAPSHOT) else ""
        raise refuse(other or "is no saved VM of vpmu_emu")
    if len(data) < _FIXED:
        raise refuse("is cut off")
    version = data[16 : 16 + VERSION_ROOM].rstrip(b"\0").decode("ascii", "replace")
    if (number := int.from_bytes(data[8:12], "little")) != FORMAT:
        raise refuse(
            f"has format {number}, of vpmu_emu {version}; this is {__version__}, which reads {FORMAT}"
        )
    if zlib.crc32(data[16:]) != int.from_bytes(data[12:16], "little"):
        raise refuse("is damaged or cut off: its checksum is wrong")
    end = _FIXED + int.from_bytes(data[_FIXED - 4 : _FIXED], "little")
    try:
        head = json.loads(data[_FIXED:end])
        facts, (size, rest) = head["facts"], map(int, head["parts"])
        wanted = {"mode": str, "kernel": str, "cpu": str, "program": str, "ram": int, "instructions": int}
        sound = all(isinstance(facts[key], kind) for key, kind in wanted.items())
        sound = sound and all(isinstance(facts["pmu"][key], int) for key in PMU_FACTS)
        if not sound or size < 0 or end + size + rest != len(data):
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise refuse("has a head that makes no sense") from None
    payload = data[end : end + size]
    try:
        program = load_elf(data[end + size :], facts["program"])
    except LoadError as error:
        raise refuse(f"has no program in it: {error}") from None
    try:
        sections = _sections(payload, facts["ram"])
    except ValueError as error:
        raise refuse(f"is no VM that could run: {error}") from None
    return SavedVm(name=name, facts=facts, sections=sections, payload=payload, program=program)


def _sections(payload: bytes, ram: int) -> dict[str, bytes]:
    """Raises ValueError with what is wrong."""
    found: dict[str, bytes] = {}
    at, wanted = 0, [*STATES, "end"]
    sizes = (0, 0)
    while wanted:
        if at + SECTION.size > len(payload):
            raise ValueError("it has no end")
        word, length = SECTION.unpack_from(payload, at)
        tag = word.rstrip(b"\0").decode("ascii", "replace")
        at += SECTION.size
        data = payload[at : at + length]
        if len(data) != length:
            raise ValueError(f"section {tag} is cut off")
        at += length
        if tag == "ram" and wanted == ["end"]:
            address = int.from_bytes(data[:8], "little")
            low, most = (HIGH, sizes[1]) if address >= HIGH else (0, sizes[0])
            if length <= 8 or address % PAGE or length % PAGE != 8 or address - low + length - 8 > most:
                raise ValueError(f"memory at {address:#x} lies where the guest has none")
            continue
        if tag != wanted[0]:
            raise ValueError(f"section {tag!r} stands where {wanted[0]} should")
        size = STATES.get(tag, 0)
        if size is not None and length != size:
            raise ValueError(f"section {tag} has {length} bytes, not {size}")
        wanted.pop(0)
        if tag != "end":
            found[tag] = data
        if tag == "sizes":
            sizes = struct.unpack("<QQ", data)
            if sum(sizes) != ram << 20 or sizes[0] > 3 << 30:
                raise ValueError(f"it has {sum(sizes)} bytes of memory and says {ram} MiB")
    if at != len(payload):
        raise ValueError("something follows its end")
    _check_rows("cpuid2", found["cpuid2"], "kvm_cpuid2", "nent", N_CPUID)
    _check_rows("msrs", found["msrs"], "kvm_msrs", "nmsrs", MOST_MSRS)
    return found


def _check_rows(tag: str, data: bytes, kind: str, count: str, most: int) -> None:
    row = STRUCTS[kind]
    n = int(row.read(data)[count])
    if n > most or len(data) != row.size + n * STRUCTS[row.tail].size:
        raise ValueError(f"section {tag} says {n} entries and has {len(data)} bytes")


def _leaves(saved: SavedVm) -> list[Leaf]:
    return [
        (int(e["function"]), int(e["eax"]), int(e["ebx"]), int(e["ecx"]), int(e["edx"]))
        for e in STRUCTS["kvm_cpuid2"].tails(saved.sections["cpuid2"])
    ]


def _told(pmu: Mapping[str, int]) -> str:
    if not pmu["version"]:
        return "no PMU"
    counters = f"{pmu['gp']} counters and {pmu['fixed']} fixed ones of {pmu['width']} bits"
    return f"version {pmu['version']}, {counters}, IA32_PERF_CAPABILITIES {pmu['perf_capabilities']:#x}"


def check_fit(
    saved: SavedVm, model: CpuModel, mode: Mode, asked_cap: int, without: tuple[int, ...]
) -> None:
    """Whether this host gives the guest the vPMU and the features that it had.

    Args:
        saved: the VM.
        model, mode: of this host.
        asked_cap: KVM_MAX_NR_INTEL_FIXED_COUNTERS as asked for.
        without: patches that are left out.

    Raises:
        ConfigError: it does not; says what both have.
    """
    was = f"{saved.facts['mode']} on {saved.facts['cpu']} ({saved.facts['kernel']})"
    here = f"{mode.name} on {model.name} ({mode.kernel.name})"
    loaded = as_loaded(mode, model.version, without_bits(without))
    cap = fixed_counter_cap(mode, asked_cap)
    for why in _misfits(saved, model, loaded, cap):
        raise ConfigError("restore", f"{saved.name}, from {was}, does not fit {here}: {why}")


def _misfits(saved: SavedVm, model: CpuModel, mode: Mode, cap: int) -> Iterator[str]:
    host, leaves = model.shape(), _leaves(saved)
    caps = int(STRUCTS["kvm_msrs"].tails(saved.sections["caps"])[0]["data"])
    told = told_by(host, leaves, caps)
    shape = refreshed(host, told if mode.enable_pmu else attrs.evolve(told, version=0), cap)
    found = {
        "version": shape.version, "gp": shape.gp, "fixed": shape.fixed, "width": shape.gp_width,
        "perf_capabilities": shape.perf_capabilities,
    }  # fmt: skip
    had = {key: saved.facts["pmu"][key] for key in PMU_FACTS}
    if had["version"] and found != had:
        yield f"the guest's vPMU is {_told(had)}; here it would be {_told(found)}"
    if not capabilities_fit(host, caps, mode.few_caps):
        yield f"IA32_PERF_CAPABILITIES {caps:#x} has branch records or PEBS that guests do not get here"
    supported = {leaf: rest for leaf, *rest in supported_leaves(model, mode, cap)}
    for leaf, *rest in leaves:
        for number, register, mask in FEATURES:
            missing = rest[register] & ~supported.get(leaf, [0] * 4)[register] & mask
            if leaf == number and missing:
                yield f"the guest has CPUID.{leaf:X}H:{REGISTERS[register]} bits {missing:#x}"
    there = set(msrs_supported(model, mode.enable_pmu, cap))
    for each in STRUCTS["kvm_msrs"].tails(saved.sections["msrs"]):
        index, value = int(each["index"]), int(each["data"])
        if value and index not in there:
            yield f"{msr_name(index)} is {value:#x}, and there is no such MSR"
