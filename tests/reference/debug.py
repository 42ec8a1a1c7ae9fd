"""Debug registers, from SDM volume 3B chapter 18: what each of the four waits for, and when #DB comes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .alu import TF
from .memory import GP, UD, Fault

if TYPE_CHECKING:
    from .interpreter import Reference

DB = 1
BD, BS = 1 << 13, 1 << 14
GD = 1 << 13
CR4_DE = 1 << 3
CODE, WRITE, PORT, ACCESS = range(4)
LENGTHS = (1, 2, 8, 4)
DR6_ONES = 0xFFFF0FF0
DR7_ONE = 1 << 10


class Debug:
    """Mixed into Reference."""

    def debug_reset(self: Reference) -> None:
        self.dr = [0] * 4
        self.dr6 = DR6_ONES
        self.dr7 = DR7_ONE
        self.pending_debug = 0
        self.met = 0

    def _waiting(self: Reference) -> Iterator[tuple[int, int, int, int]]:
        for k, address in enumerate(self.dr):
            if self.dr7 >> 2 * k & 3:
                how = self.dr7 >> 16 + 4 * k & 15
                yield 1 << k, how & 3, LENGTHS[how >> 2], address

    def code_breakpoints(self: Reference) -> int:
        return sum(
            bit
            for bit, kind, length, address in self._waiting()
            if (kind, length, address) == (CODE, 1, self.rip)
        )

    def _watch(self: Reference, at: int, size: int, kinds: tuple[int, ...]) -> None:
        for bit, kind, length, address in self._waiting():
            first = address // length * length
            if kind in kinds and at < first + length and first < at + size:
                self.met |= bit

    def watch_data(self: Reference, address: int, size: int, write: bool) -> None:
        self._watch(address, size, (WRITE, ACCESS) if write else (ACCESS,))

    def watch_port(self: Reference, port: int, width: int) -> None:
        if self.cr4 & CR4_DE:
            self._watch(port, width // 8, (PORT,))

    def debug_exception(self: Reference, bits: int) -> None:
        """#DB that sets RF for nobody: a trap, a breakpoint on the next instruction, or general detect."""
        self.pending_debug = 0
        self.dr6 = self.dr6 & ~15 | bits
        self.dr7 &= ~GD
        self._deliver(DB, None)

    def after_instruction(self: Reference, name: str, stepping: int) -> None:
        """An instruction, or an iteration, is done; `stepping`: RFLAGS.TF when it began."""
        self.pending_debug |= self.met
        entered = name in ("int", "int3", "syscall") and not self.rflags & TF
        if stepping and not entered and self.shadow != "movss":
            self.pending_debug |= BS
        if self.pending_debug and self.shadow != "movss" and self.stop_reason is None:
            self.debug_exception(self.pending_debug)

    def _dr_number(self: Reference, number: int) -> int:
        self.need_cpl0()
        if number > 7 or (number in (4, 5) and self.cr4 & CR4_DE):
            raise Fault(UD)
        if self.dr7 & GD:
            raise Fault(DB)
        return number + 2 if number in (4, 5) else number

    def read_dr(self: Reference, number: int) -> int:
        return (*self.dr, 0, 0, self.dr6, self.dr7)[self._dr_number(number)]

    def write_dr(self: Reference, number: int, value: int) -> None:
        number = self._dr_number(number)
        if number < 4:
            self.dr[number] = value
        elif value >> 32:
            raise Fault(GP, 0)
        elif number == 6:
            self.dr6 = value & 0xE00F | DR6_ONES
        else:
            self.dr7 = value & 0xFFFF23FF | DR7_ONE
