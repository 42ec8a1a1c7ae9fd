"""Instructions that came with later processors, and rare ones, from SDM volume 2; nothing here is fast."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import iced_x86 as iced

from . import alu
from .alu import AF, CF, DF, OF, PF, SF, STATUS, ZF, Out, mask, signed
from .instructions import M64, RAX, RBX, RCX, RDI, RDX, RSI, mnemonic
from .memory import GP, UD, Fault, canonical
from .pmu import LOAD, NOP, STORE

if TYPE_CHECKING:
    from .interpreter import Reference

CR4_FSGSBASE = 1 << 16
_REMAINDER = 0x11EDC6F41 ^ 1 << 32  # CRC32C's polynomial without its highest bit


def _reversed(value: int, width: int) -> int:
    return int(f"{value:0{width}b}"[::-1], 2)


def crc32c(crc: int, data: bytes) -> int:
    """SDM, CRC32: division of polynomials over the bit-reflected operands."""
    state = _reversed(crc, 32)
    for byte in data:
        state ^= _reversed(byte, 8) << 24
        for _ in range(8):
            state = (state << 1 & mask(32)) ^ (_REMAINDER if state >> 31 else 0)
    return _reversed(state, 32)


class Later:
    """Mixed into Reference: one `op_*` method per mnemonic."""

    def op_xlatb(self: Reference, ins: Any) -> None:
        narrow = ins.memory_base == iced.Register.EBX
        address = (self.regs[RBX] + self.get(RAX, 8)) & (mask(32) if narrow else M64)
        self.put(RAX, 8, 0, self.load((address + self._base(ins.memory_segment)) & M64, 1))

    def op_movnti(self: Reference, ins: Any) -> None:
        self.write(ins, 0, self.read(ins, 1))

    def op_movbe(self: Reference, ins: Any) -> None:
        width = self.width(ins)
        self.write(ins, 0, alu.bswap(self.read(ins, 1, width), width))

    def _exchange_pair(self: Reference, ins: Any, width: int) -> None:
        address, stack = self.linear(ins)
        size = 2 * width // 8
        if width == 64 and address % 16:
            raise Fault(GP, 0)
        found = self.load(address, size, stack=stack, intent=True)
        if found == self.get(RDX, width) << width | self.get(RAX, width):
            self.store(address, size, self.get(RCX, width) << width | self.get(RBX, width), stack=stack)
            self.flags(Out(0, ZF, ZF))
        else:
            self.store(address, size, found, stack=stack)
            self.put(RAX, width, 0, found)
            self.put(RDX, width, 0, found >> width)
            self.flags(Out(0, 0, ZF))

    def op_cmpxchg8b(self: Reference, ins: Any) -> None:
        self._exchange_pair(ins, 32)

    def op_cmpxchg16b(self: Reference, ins: Any) -> None:
        self._exchange_pair(ins, 64)

    def op_crc32(self: Reference, ins: Any) -> None:
        width = self.width(ins, 1)
        data = self.read(ins, 1).to_bytes(width // 8, "little")
        self.write(ins, 0, crc32c(self.read(ins, 0) & mask(32), data))

    def _with_carry(self: Reference, ins: Any, flag: int) -> None:
        self.reads(flag)
        width = self.width(ins)
        total = self.read(ins, 0) + self.read(ins, 1) + bool(self.rflags & flag)
        self.write(ins, 0, total)
        self.flags(Out(total, flag if total >> width else 0, flag))

    def op_adcx(self: Reference, ins: Any) -> None:
        self._with_carry(ins, CF)

    def op_adox(self: Reference, ins: Any) -> None:
        self._with_carry(ins, OF)

    # --- BMI1 and BMI2 ----------------------------------------------------------------------

    def _bits(self: Reference, ins: Any, value: int, carry: bool, loose: int = AF | PF) -> None:
        width = self.width(ins)
        value &= mask(width)
        bits = (ZF if value == 0 else 0) | (SF if value >> (width - 1) else 0) | (CF if carry else 0)
        self.write(ins, 0, value)
        self.flags(Out(value, bits, STATUS, loose))

    def op_andn(self: Reference, ins: Any) -> None:
        self._bits(ins, ~self.read(ins, 1) & self.read(ins, 2), False)

    def op_bextr(self: Reference, ins: Any) -> None:
        control = self.read(ins, 2)
        value = self.read(ins, 1) >> (control & 0xFF) & mask(control >> 8 & 0xFF)
        self._bits(ins, value, False, AF | PF | SF)

    def op_blsi(self: Reference, ins: Any) -> None:
        x = self.read(ins, 1)
        self._bits(ins, x & -x, x != 0)

    def op_blsmsk(self: Reference, ins: Any) -> None:
        x = self.read(ins, 1)
        self._bits(ins, x ^ (x - 1), x == 0)

    def op_blsr(self: Reference, ins: Any) -> None:
        x = self.read(ins, 1)
        self._bits(ins, x & (x - 1), x == 0)

    def op_bzhi(self: Reference, ins: Any) -> None:
        n = self.read(ins, 2) & 0xFF
        self._bits(ins, self.read(ins, 1) & mask(n), n >= self.width(ins))

    def op_mulx(self: Reference, ins: Any) -> None:
        width = self.width(ins)
        product = self.get(RDX, width) * self.read(ins, 2)
        self.write(ins, 1, product)
        self.write(ins, 0, product >> width)

    def op_pdep(self: Reference, ins: Any) -> None:
        source, places, value = self.read(ins, 1), self.read(ins, 2), 0
        for bit in range(64):
            if places >> bit & 1:
                value |= (source & 1) << bit
                source >>= 1
        self.write(ins, 0, value)

    def op_pext(self: Reference, ins: Any) -> None:
        source, places = self.read(ins, 1), self.read(ins, 2)
        chosen = [source >> bit & 1 for bit in range(64) if places >> bit & 1]
        self.write(ins, 0, sum(bit << k for k, bit in enumerate(chosen)))

    def op_rorx(self: Reference, ins: Any) -> None:
        width = self.width(ins)
        self.write(ins, 0, alu.ror(self.read(ins, 1), self.read(ins, 2), width).value)

    def _plain_shift(self: Reference, ins: Any, operation: Any) -> None:
        n = self.read(ins, 2) % self.width(ins)
        self.write(ins, 0, operation(self.read(ins, 1), n))

    def op_sarx(self: Reference, ins: Any) -> None:
        width = self.width(ins)
        self._plain_shift(ins, lambda x, n: signed(x, width) >> n)

    def op_shlx(self: Reference, ins: Any) -> None:
        self._plain_shift(ins, lambda x, n: x << n)

    def op_shrx(self: Reference, ins: Any) -> None:
        self._plain_shift(ins, lambda x, n: x >> n)

    # --- no-operations ----------------------------------------------------------------------

    def op_reservednop(self: Reference, ins: Any) -> None:
        self.classes.add(NOP)

    op_endbr32 = op_reservednop

    # --- descriptors ------------------------------------------------------------------------

    def _seen(self: Reference, selector: int, kinds: set[int]) -> int | None:
        """The descriptor if this selector may see it, of system segments only those `kinds`."""
        base, limit = self.gdt
        if selector & ~3 == 0 or selector & 4 or (selector & ~7) + 7 > limit:
            return None
        found = self.load((base + (selector & ~7)) & M64, 8, system=True)
        kind, dpl = found >> 40 & 15, found >> 45 & 3
        code = found >> 44 & 1
        if not code and kind not in kinds:
            return None
        conforming = code and kind & 12 == 12
        return found if conforming or dpl >= max(self.cpl, selector & 3) else None

    def op_lar(self: Reference, ins: Any) -> None:
        found = self._seen(self.read(ins, 1, 16) & 0xFFFF, {2, 9, 11, 12})
        if found is not None:
            self.write(ins, 0, found >> 32 & 0xFFFF00)
        self.flags(Out(0, ZF if found is not None else 0, ZF))

    def op_lsl(self: Reference, ins: Any) -> None:
        found = self._seen(self.read(ins, 1, 16) & 0xFFFF, {2, 9, 11})
        if found is not None:
            limit = found & 0xFFFF | found >> 32 & 0xF0000
            self.write(ins, 0, limit << 12 | 0xFFF if found >> 55 & 1 else limit)
        self.flags(Out(0, ZF if found is not None else 0, ZF))

    def _verify(self: Reference, ins: Any, write: bool) -> None:
        found = self._seen(self.read(ins, 0, 16) & 0xFFFF, set())
        good = found is not None
        if found is not None:
            code, flag = found >> 43 & 1, found >> 41 & 1  # writable data, readable code
            good = bool(flag and not code) if write else bool(flag or not code)
        self.flags(Out(0, ZF if good else 0, ZF))

    def op_verr(self: Reference, ins: Any) -> None:
        self._verify(ins, False)

    def op_verw(self: Reference, ins: Any) -> None:
        self._verify(ins, True)

    def op_smsw(self: Reference, ins: Any) -> None:
        memory = ins.op_kind(0) == iced.OpKind.MEMORY
        self.write(ins, 0, self.cr0, 16 if memory else 0)

    # --- segment bases ----------------------------------------------------------------------

    def _base_register(self: Reference, ins: Any, write: bool, which: str) -> None:
        if not self.cr4 & CR4_FSGSBASE:
            raise Fault(UD)
        if write:
            value = self.read(ins, 0)
            if not canonical(value):
                raise Fault(GP, 0)
            setattr(self, which, value)
        else:
            self.write(ins, 0, getattr(self, which))

    def op_rdfsbase(self: Reference, ins: Any) -> None:
        self._base_register(ins, False, "fs_base")

    def op_rdgsbase(self: Reference, ins: Any) -> None:
        self._base_register(ins, False, "gs_base")

    def op_wrfsbase(self: Reference, ins: Any) -> None:
        self._base_register(ins, True, "fs_base")

    def op_wrgsbase(self: Reference, ins: Any) -> None:
        self._base_register(ins, True, "gs_base")

    # --- ports ------------------------------------------------------------------------------

    def port_string(self: Reference, ins: Any) -> None:
        """One iteration of INS or OUTS; `repeat` is left set while the instruction is not finished."""
        self.need_iopl()
        name = mnemonic(ins)
        size = {"b": 1, "w": 2, "d": 4}[name[-1]]
        width = 32 if self._string_narrow(ins) else 64
        if ins.has_rep_prefix or ins.has_repne_prefix:
            if self.get(RCX, width) == 0:
                self.classes -= {LOAD, STORE}
                return
        step = -size if self.rflags & DF else size
        port = self.get(RDX, 16)
        self.watch_port(port, 8 * size)
        if name.startswith("ins"):
            address = self.get(RDI, width)
            self._check(address, size, False)
            self.memory.locate(address, size, True, self.cpl == 3)
            self.store(address, size, self.port_in(port, 8 * size))
            self.put(RDI, width, 0, self.get(RDI, width) + step)
        else:
            address = (self.get(RSI, width) + self._base(ins.memory_segment)) & M64
            self.port_out(port, 8 * size, self.load(address, size))
            self.put(RSI, width, 0, self.get(RSI, width) + step)
        if ins.has_rep_prefix or ins.has_repne_prefix:
            self.put(RCX, width, 0, self.get(RCX, width) - 1)
            self.repeat = self.get(RCX, width) != 0


for _name in ("insb", "insw", "insd", "outsb", "outsw", "outsd"):
    setattr(Later, f"op_{_name}", Later.port_string)
