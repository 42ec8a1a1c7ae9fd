"""Runs user-mode instructions on the host CPU, registers and flags in and out.

A stub in executable memory loads every register from a state block, runs the bytes and stores
every register back; all addresses lie below 2 GiB, so the stub needs no register of its own.
For bytes that may fault, jump or be no instruction there is a process that is stepped by the trap flag.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs

from .forms import BOTTOM, CODE, DATA, TOP

STUB, STATE = TOP, TOP + 0x1000
SAVED_RSP, FLAGS = STATE + 0x100, STATE + 0x80
_MAP_FIXED_NOREPLACE = 0x100000
# by instruction: the flag of /proc/cpuinfo without which the host has none of it
NEEDS = {
    "movbe": "movbe", "cmpxchg16b": "cx16", "adcx": "adx", "adox": "adx", "crc32": "sse4_2",
    "popcnt": "popcnt", "lzcnt": "abm", "clflushopt": "clflushopt", "tzcnt": "bmi1", "andn": "bmi1",
    "bextr": "bmi1", "blsi": "bmi1", "blsmsk": "bmi1", "blsr": "bmi1", "bzhi": "bmi2", "mulx": "bmi2",
    "pdep": "bmi2", "pext": "bmi2", "rorx": "bmi2", "sarx": "bmi2", "shlx": "bmi2", "shrx": "bmi2",
}  # fmt: skip


def available() -> str | None:
    """None, or why the host cannot judge."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "the host is not x86-64 Linux"
    return None


def cpu_flags() -> set[str]:
    for line in Path("/proc/cpuinfo").read_text(encoding="ascii").splitlines():
        if line.startswith("flags"):
            return set(line.split(":")[1].split())
    return set()


def is_amd() -> bool:
    """Whether the host differs as AMD's processors do."""
    return "sse4a" in cpu_flags()


def _absolute(opcode: bytes, reg: int, address: int) -> bytes:
    """REX.W opcode with reg and [disp32]."""
    rex = 0x48 | (4 if reg > 7 else 0)
    return bytes([rex]) + opcode + bytes([(reg & 7) << 3 | 4, 0x25]) + address.to_bytes(4, "little")


def _load(reg: int, address: int) -> bytes:
    return _absolute(b"\x8b", reg, address)


def _store(reg: int, address: int) -> bytes:
    return _absolute(b"\x89", reg, address)


def _push_abs(address: int) -> bytes:
    return b"\xff\x34\x25" + address.to_bytes(4, "little")


def _jump(source: int, target: int) -> bytes:
    return b"\xe9" + ((target - source - 5) & 0xFFFFFFFF).to_bytes(4, "little")


class Host:
    """The mapped memory and the stub.  Raises: OSError when the range cannot be mapped."""

    def __init__(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [
            ctypes.c_void_p,
            ctypes.c_size_t,
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_long,
        ]
        self.size = STATE + 0x1000 - BOTTOM
        got = libc.mmap(
            BOTTOM,
            self.size,
            mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC,
            mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED_NOREPLACE,
            -1,
            0,
        )
        if got != BOTTOM:
            raise OSError(ctypes.get_errno(), f"cannot map {BOTTOM:#x}")
        enter = b"".join(
            bytes(p) for p in (b"\x53", b"\x55", b"\x41\x54", b"\x41\x55", b"\x41\x56", b"\x41\x57")
        )
        enter += _store(4, SAVED_RSP) + _push_abs(FLAGS) + b"\x9d"
        for reg in range(16):
            enter += _load(reg, STATE + 8 * reg)
        enter += _jump(STUB + len(enter), CODE)
        self.leave_at = STUB + len(enter)
        leave = b"".join(_store(reg, STATE + 8 * reg) for reg in range(16))
        leave += _load(4, SAVED_RSP) + b"\x9c\x58" + _store(0, FLAGS) + b"\xfc"
        leave += b"\x41\x5f\x41\x5e\x41\x5d\x41\x5c\x5d\x5b\xc3"
        self._write(STUB, enter + leave)
        self._call = ctypes.CFUNCTYPE(None)(STUB)

    @staticmethod
    def _write(address: int, data: bytes) -> None:
        ctypes.memmove(address, data, len(data))

    def run(
        self, code: bytes, regs: list[int], rflags: int, data: bytes
    ) -> tuple[list[int], int, bytes]:
        """Returns: registers, flags and the memory from DATA to TOP after `code`."""
        self._write(CODE, code + _jump(CODE + len(code), self.leave_at))
        self._write(DATA, data)
        self._write(STATE, b"".join(r.to_bytes(8, "little") for r in (*regs, rflags)))
        self._call()
        state = ctypes.string_at(STATE, 17 * 8)
        words = [int.from_bytes(state[i : i + 8], "little") for i in range(0, 17 * 8, 8)]
        return words[:16], words[16], ctypes.string_at(DATA, TOP - DATA)


LOW, HIGH = BOTTOM, TOP
_REQUEST = struct.Struct("<17Q16s")
_CHANGES = 600
_RESULT = struct.Struct(f"<22Q{8 * _CHANGES}s")


@attrs.frozen
class Step:
    """What one instruction did: `trap` is the vector that ended it, 1 behind one that retired.

    `memory` are the bytes that changed, by address; `address` is CR2 of a page fault.
    """

    regs: tuple[int, ...]
    rflags: int
    rip: int
    trap: int
    error: int
    address: int
    memory: dict[int, int]


class Stepper:
    """A process that executes single instructions at CPL 3 by the trap flag.

    Args:
        folder: where the helper is compiled.
        image: bytes of LOW to HIGH before each of them; nothing else is there.

    Raises:
        OSError: the helper cannot be compiled or begun.
    """

    def __init__(self, folder: Path, image: bytes) -> None:
        source, self.program = Path(__file__).with_name("stepper.c"), folder / "stepper"
        command = ["gcc", "-O1", "-fno-stack-protector", "-o", str(self.program), str(source)]
        subprocess.run(command, check=True, capture_output=True)
        self.image = image

    def run(self, cases: list[tuple[bytes, list[int], int]]) -> list[Step]:
        """One step per (code, registers, flags); each finds the image as it was."""
        asked = b"".join(_REQUEST.pack(*regs, flags, code[:16]) for code, regs, flags in cases)
        done = subprocess.run(
            [self.program], input=self.image + asked, capture_output=True, timeout=120, check=False
        )
        if len(done.stdout) != _RESULT.size * len(cases):
            n = len(done.stdout) // _RESULT.size
            raise OSError(f"the helper ended ({done.returncode}) in {cases[n][0].hex(' ')}")
        return [self._step(words) for words in _RESULT.iter_unpack(done.stdout)]

    @staticmethod
    def _step(words: tuple[Any, ...]) -> Step:
        pairs = struct.iter_unpack("<II", words[22][: 8 * words[21]])
        return Step(words[:16], *words[16:21], dict(pairs))
