"""Linear memory: canonical checks, identity map or 4-level page walk, bytes; no TLB at all."""

from __future__ import annotations

APIC_PAGE = 0xFEE00000


class Fault(Exception):
    """An exception of the processor: vector, error code if it has one, CR2 for #PF."""

    def __init__(self, vector: int, error: int | None = None, cr2: int | None = None) -> None:
        super().__init__(vector, error, cr2)
        self.vector = vector
        self.error = error
        self.cr2 = cr2


DE, DB, BP, UD, DF, TS, NP, SS, GP, PF = 0, 1, 3, 6, 8, 10, 11, 12, 13, 14

_P, _W, _U, _A, _D, _PS, _NX = 1, 2, 4, 1 << 5, 1 << 6, 1 << 7, 1 << 63
_FRAME = ((1 << 52) - 1) & ~0xFFF
CR0_WP, EFER_NXE = 1 << 16, 1 << 11


def canonical(address: int) -> bool:
    return address >> 47 in (0, 0x1FFFF)


class Memory:
    """`ram` is a bytearray; `cr0 cr3 efer paging` are set by the interpreter."""

    def __init__(self, size: int) -> None:
        self.ram = bytearray(size)
        self.paging = False
        self.cr0 = 0
        self.cr3 = 0
        self.efer = 0

    def _word(self, pa: int) -> int:
        return int.from_bytes(self.ram[pa : pa + 8], "little")

    def _put(self, pa: int, value: int) -> None:
        self.ram[pa : pa + 8] = value.to_bytes(8, "little")

    def translate(self, va: int, write: bool, user: bool, fetch: bool = False) -> int:
        """Physical address of linear `va`.  Raises: Fault(#PF)."""
        code = (2 if write else 0) | (4 if user else 0)
        if not self.paging:
            if va < len(self.ram) or va & ~0xFFF == APIC_PAGE:
                return va
            raise Fault(PF, code, va)
        nxe = bool(self.efer & EFER_NXE)
        if fetch and nxe:
            code |= 0x10
        table = self.cr3 & _FRAME
        path = []
        may_write = may_user = True
        no_execute = False
        for shift in (39, 30, 21, 12):
            where = table + 8 * ((va >> shift) & 511)
            entry = self._word(where) if where + 8 <= len(self.ram) else 0
            if not entry & _P:
                raise Fault(PF, code, va)
            if (entry & _NX and not nxe) or (shift == 39 and entry & _PS):
                raise Fault(PF, code | 1 | 8, va)
            path.append(where)
            may_write = may_write and bool(entry & _W)
            may_user = may_user and bool(entry & _U)
            no_execute = no_execute or bool(entry & _NX)
            if shift == 12 or (shift in (30, 21) and entry & _PS):
                break
            table = entry & _FRAME
        denied = user and not may_user
        denied = denied or (write and not may_write and (user or bool(self.cr0 & CR0_WP)))
        denied = denied or (fetch and no_execute)
        if denied:
            raise Fault(PF, code | 1, va)
        for where in path:
            self._put(where, self._word(where) | _A)
        if write:
            self._put(path[-1], self._word(path[-1]) | _D)
        offset = va & ((1 << shift) - 1)
        return (entry & _FRAME & ~((1 << shift) - 1)) | offset

    def locate(self, va: int, size: int, write: bool, user: bool) -> list[int]:
        """The physical address of every byte; both pages of a crossing access are checked first."""
        first = self.translate(va, write, user)
        room = 0x1000 - (va & 0xFFF)
        if size <= room:
            return list(range(first, first + size))
        second = self.translate((va + room) & ((1 << 64) - 1), write, user)
        return list(range(first, first + room)) + list(range(second, second + size - room))

    def read(self, places: list[int]) -> int:
        """Bytes at `places`; where no memory is, ones."""
        have = len(self.ram)
        return int.from_bytes(bytes(self.ram[p] if p < have else 0xFF for p in places), "little")

    def write(self, places: list[int], value: int) -> None:
        for p, byte in zip(places, value.to_bytes(len(places), "little"), strict=True):
            if p < len(self.ram):
                self.ram[p] = byte
