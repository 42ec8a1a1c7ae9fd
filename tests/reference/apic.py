"""The local APIC of SDM volume 3 chapter 11, one processor: registers, priorities, timer, LVTPC."""

from __future__ import annotations

from .pmu import Gp

MASKED = 1 << 16
FIXED, LOWEST, NMI = 0, 1, 4
LVT_TIMER, LVT_THERMAL, LVT_PC, LVT_LINT0, LVT_LINT1, LVT_ERROR, LVT_CMCI = (
    0x32,
    0x33,
    0x34,
    0x35,
    0x36,
    0x37,
    0x2F,
)
LVTS = (LVT_TIMER, LVT_THERMAL, LVT_PC, LVT_LINT0, LVT_LINT1, LVT_ERROR, LVT_CMCI)
PAGE_MASKS = {
    0x08: 0xFF,
    0x0B: 0,
    0x0F: 0x1FF,
    0x28: 0,
    0x38: 0xFFFFFFFF,
    0x3E: 0xB,
    **dict.fromkeys(LVTS, 0x117FF),
    LVT_TIMER: 0x710FF,
    LVT_ERROR: 0x110FF,
    LVT_LINT0: 0x1F7FF,
    LVT_LINT1: 0x1F7FF,
}
ONE_SHOT, PERIODIC, TSC_DEADLINE = 0, 1, 2
_DIVIDE = {0: 2, 1: 4, 2: 8, 3: 16, 8: 32, 9: 64, 10: 128, 11: 1}


class Apic:
    """Register numbers are MMIO offset / 16 = x2APIC MSR - 0x800."""

    def __init__(self) -> None:
        self.base = 0xFEE00000 | 1 << 8 | 1 << 11
        self.spiv = 0xFF
        self.tpr = 0
        self.irr: set[int] = set()
        self.isr: set[int] = set()
        self.lvt = dict.fromkeys(LVTS, MASKED)
        self.icr = 0  # bits 63:32 are ICR2 in xAPIC mode
        self.ldr = 0  # of the page; an x2APIC derives its own
        self.dfr = 0xFFFFFFFF
        self.divide = 0
        self.initial = 0
        self.esr = 0
        self.expires: int | None = None  # TSC at which the timer fires next
        self.deadline = 0
        self.nmi = False  # an NMI message has arrived and was not yet taken

    @property
    def x2apic(self) -> bool:
        return bool(self.base & 1 << 10)

    @property
    def software_enabled(self) -> bool:
        return bool(self.spiv & 1 << 8)

    # --- messages ---------------------------------------------------------------------------

    def _accept(self, mode: int, vector: int) -> None:
        if mode == NMI:
            self.nmi = True
        elif mode == FIXED and vector >= 16 and self.software_enabled:
            self.irr.add(vector)

    def _signal(self, reg: int) -> bool:
        entry = self.lvt[reg]
        if entry & MASKED or not self.base & 1 << 11:
            return False
        self._accept((entry >> 8) & 7 if reg != LVT_TIMER else FIXED, entry & 0xFF)
        return True

    def pmi(self) -> bool:
        """A performance-monitoring message; the LVT entry masks itself when it sends one."""
        if not self._signal(LVT_PC):
            return False
        self.lvt[LVT_PC] |= MASKED
        return True

    # --- priorities -------------------------------------------------------------------------

    @property
    def ppr(self) -> int:
        in_service = max(self.isr, default=0)
        if self.tpr >> 4 >= in_service >> 4:
            return self.tpr
        return in_service & 0xF0

    def pending_vector(self) -> int | None:
        vector = max(self.irr, default=0)
        return vector if vector >> 4 > self.ppr >> 4 else None

    def acknowledge(self, vector: int) -> None:
        self.irr.discard(vector)
        self.isr.add(vector)

    # --- timer ------------------------------------------------------------------------------

    def _timer_mode(self) -> int:
        return (self.lvt[LVT_TIMER] >> 17) & 3

    def _ticks(self) -> int:
        return self.initial * _DIVIDE[self.divide]

    def advance(self, tsc: int) -> None:
        """Fire the timer if `tsc` has reached it."""
        while self.expires is not None and tsc >= self.expires:
            self._signal(LVT_TIMER)
            if self._timer_mode() == PERIODIC and self._ticks():
                self.expires += self._ticks()
            else:
                self.expires = None
                self.deadline = 0

    # --- MSRs -------------------------------------------------------------------------------

    def write_base(self, value: int) -> None:
        if value & ~((1 << 46) - 1 & ~0xFFF | 0xD00):
            raise Gp
        old, new = (self.base >> 10) & 3, (value >> 10) & 3
        # SDM 11.12.5: illegal mode transitions.
        if new == 1 or (old == 3 and new == 2) or (old == 0 and new == 3):
            raise Gp
        self.base = value

    def write_deadline(self, value: int, tsc: int) -> None:
        if self._timer_mode() != TSC_DEADLINE:
            return
        self.deadline = value
        self.expires = value or None
        self.advance(tsc)

    def read(self, reg: int, tsc: int) -> int:
        if not self.x2apic:
            raise Gp
        if reg == 0x02 or reg == 0x82:
            return 0
        if reg == 0x03:
            return 0x01060015
        if reg == 0x08:
            return self.tpr
        if reg == 0x0A:
            return self.ppr
        if reg == 0x0D:
            return 1
        if reg == 0x0F:
            return self.spiv
        if 0x10 <= reg < 0x18:
            return self._bits(self.isr, reg - 0x10)
        if 0x18 <= reg < 0x20:
            return 0
        if 0x20 <= reg < 0x28:
            return self._bits(self.irr, reg - 0x20)
        if reg == 0x28:
            return self.esr
        if reg == 0x30:
            return self.icr
        if reg in self.lvt:
            return self.lvt[reg]
        if reg == 0x38:
            return self.initial
        if reg == 0x39:
            if self.expires is None or self._timer_mode() == TSC_DEADLINE:
                return 0
            step = _DIVIDE[self.divide]
            return max(0, (self.expires - tsc + step - 1) // step)
        if reg == 0x3E:
            return self.divide
        raise Gp

    @staticmethod
    def _bits(vectors: set[int], word: int) -> int:
        return sum(1 << (v & 31) for v in vectors if v >> 5 == word)

    def write(self, reg: int, value: int, tsc: int) -> None:
        if not self.x2apic or (value >> 32 and reg != 0x30):
            raise Gp
        if reg == 0x08:
            if value & ~0xFF:
                raise Gp
            self.tpr = value
        elif reg == 0x0B:
            if value:
                raise Gp
            if self.isr:
                self.isr.discard(max(self.isr))
        elif reg == 0x0F:
            if value & ~0x13FF:
                raise Gp
            self.spiv = value
            if not self.software_enabled:
                for name in self.lvt:
                    self.lvt[name] |= MASKED
        elif reg == 0x28:
            if value:
                raise Gp
            self.esr = 0
        elif reg == 0x30:
            self._ipi(value)
        elif reg in self.lvt:
            self._write_lvt(reg, value)
        elif reg == 0x38:
            # SDM 11.5.4.1: ignored in TSC-deadline mode.
            if self._timer_mode() != TSC_DEADLINE:
                self.initial = value
                self.expires = tsc + self._ticks() if value else None
        elif reg == 0x3E:
            if value & ~0xB:
                raise Gp
            self.divide = value
        elif reg == 0x3F:
            if value & ~0xFF:
                raise Gp
            self._accept(FIXED, value)
        else:
            raise Gp

    def _write_lvt(self, reg: int, value: int) -> None:
        allowed = {
            LVT_TIMER: 0x710FF,
            LVT_ERROR: 0x110FF,
            LVT_LINT0: 0x1F7FF,
            LVT_LINT1: 0x1F7FF,
        }.get(reg, 0x117FF)
        if value & ~allowed:
            raise Gp
        value &= ~(1 << 12 | 1 << 14)  # delivery status and remote IRR are read-only
        if not self.software_enabled:
            value |= MASKED
        was = self._timer_mode()
        self.lvt[reg] = value
        if reg == LVT_TIMER and (was == TSC_DEADLINE) != (self._timer_mode() == TSC_DEADLINE):
            # SDM 11.5.4.1: entering or leaving TSC-deadline mode disarms the timer.
            self.expires = None
            self.deadline = 0

    def _ipi(self, value: int) -> None:
        if value & ~(0xFFFFFFFF << 32 | 0xCCFFF):
            raise Gp
        self.icr = value & ~(1 << 12)  # never busy
        shorthand, logical = (value >> 18) & 3, bool(value & 1 << 11)
        if self.x2apic:
            dest = value >> 32
            named = dest == 0xFFFFFFFF or (bool(dest & 1) and dest >> 16 == 0 if logical else dest == 0)
        else:
            dest = value >> 56
            named = dest == 0xFF or (self._is_member(dest) if logical else dest == 0)
        if shorthand in (1, 2) or (shorthand == 0 and named):
            mode = (value >> 8) & 7
            # The one processor there is has the lowest priority.
            self._accept(FIXED if mode == LOWEST else mode, value & 0xFF)

    def _is_member(self, dest: int) -> bool:
        """Whether a logical destination of xAPIC mode includes this processor."""
        mine = self.ldr >> 24
        if self.dfr >> 28 == 15:  # flat
            return bool(dest & mine)
        return dest >> 4 == mine >> 4 and bool(dest & mine & 15)

    # --- the page of xAPIC mode ---------------------------------------------------------------

    def page_read(self, reg: int, tsc: int) -> int:
        """A register as a 32-bit word; what is not there, or cannot be read, is 0."""
        own = {0x0B: 0, 0x0D: self.ldr, 0x0E: self.dfr, 0x30: self.icr & 0xFFFFFFFF, 0x31: self.icr >> 32}
        if reg in own:
            return own[reg]
        base, self.base = self.base, self.base | 1 << 10
        try:
            return self.read(reg, tsc) & 0xFFFFFFFF
        except Gp:
            return 0
        finally:
            self.base = base

    def page_write(self, reg: int, value: int, tsc: int) -> None:
        """Write a 32-bit word: bits that do not exist are dropped, and so is what cannot be written."""
        if reg == 0x0D:
            self.ldr = value & 0xFF000000
        elif reg == 0x0E:
            self.dfr = value | 0x0FFFFFFF
        elif reg == 0x31:
            self.icr = self.icr & 0xFFFFFFFF | (value & 0xFF000000) << 32
        elif reg == 0x30:
            self._ipi(value & 0xCCFFF | self.icr >> 32 << 32)
        elif reg in PAGE_MASKS:
            base, self.base = self.base, self.base | 1 << 10
            try:
                self.write(reg, value & PAGE_MASKS[reg], tsc)
            finally:
                self.base = base
