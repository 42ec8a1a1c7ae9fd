"""What each instruction does, one method each, written from SDM volume 2; nothing here is fast."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import iced_x86 as iced

from . import alu
from .alu import AC, CF, DF, ID, IF, IOPL, NT, RF, STATUS, VIF, VIP, VM, ZF, Out, mask, signed
from .memory import GP, SS, UD, Fault, canonical
from .pmu import BRANCH, CALL, COND, FAR, INDIRECT, LOAD, NOP, RET, STORE, TAKEN, Gp

if TYPE_CHECKING:
    from .interpreter import Reference

RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)
M64 = mask(64)

_REGISTER = iced.Register
_KIND = iced.OpKind


def _registers() -> dict[int, tuple[int, int, int]]:
    """iced register -> (hardware number, width in bits, shift)."""
    rows: dict[int, tuple[int, int, int]] = {}
    low = ["AX", "CX", "DX", "BX", "SP", "BP", "SI", "DI"]
    for n, name in enumerate(low):
        rows[getattr(_REGISTER, "R" + name)] = (n, 64, 0)
        rows[getattr(_REGISTER, "E" + name)] = (n, 32, 0)
        rows[getattr(_REGISTER, name)] = (n, 16, 0)
        byte = name[0] + "L" if n < 4 else name + "L"
        rows[getattr(_REGISTER, byte)] = (n, 8, 0)
        if n < 4:
            rows[getattr(_REGISTER, name[0] + "H")] = (n, 8, 8)
    for n in range(8, 16):
        rows[getattr(_REGISTER, f"R{n}")] = (n, 64, 0)
        rows[getattr(_REGISTER, f"R{n}D")] = (n, 32, 0)
        rows[getattr(_REGISTER, f"R{n}W")] = (n, 16, 0)
        rows[getattr(_REGISTER, f"R{n}L")] = (n, 8, 0)
    return rows


REGISTERS = _registers()
SEGMENTS = {
    _REGISTER.ES: 0,
    _REGISTER.CS: 1,
    _REGISTER.SS: 2,
    _REGISTER.DS: 3,
    _REGISTER.FS: 4,
    _REGISTER.GS: 5,
}
CONTROL = {
    _REGISTER.CR0: 0,
    _REGISTER.CR2: 2,
    _REGISTER.CR3: 3,
    _REGISTER.CR4: 4,
    _REGISTER.CR8: 8,
}
DEBUG = {getattr(_REGISTER, f"DR{n}"): n for n in range(8)}
MNEMONICS = {
    value: name.lower()
    for name, value in vars(iced.Mnemonic).items()
    if isinstance(value, int) and not name.startswith("_")
}
CONDITIONS = ["o", "no", "b", "ae", "e", "ne", "be", "a", "s", "ns", "p", "np", "l", "ge", "le", "g"]


def mnemonic(ins: iced.Instruction) -> str:
    name = MNEMONICS[ins.mnemonic]
    if name in ("movsd", "cmpsd") and not ins.is_string_instruction:
        return "sse"
    return name


def undefined_flags(ins: iced.Instruction) -> int:
    """The flags SDM volume 2 leaves undefined for some execution of `ins` (static upper bound)."""
    name = mnemonic(ins)
    if name in ("and", "or", "xor", "test"):
        return alu.AF
    if name in ("mul", "imul"):
        return alu.SF | alu.ZF | alu.AF | alu.PF
    if name in ("div", "idiv"):
        return STATUS
    if name in ("shl", "shr", "sal"):
        return alu.AF | alu.OF | alu.CF
    if name == "sar":
        return alu.AF | alu.OF
    if name in ("rol", "ror", "rcl", "rcr"):
        return alu.OF
    if name in ("shld", "shrd"):
        return STATUS
    if name in ("bsf", "bsr"):
        return STATUS & ~ZF
    if name in ("bt", "bts", "btr", "btc"):
        return alu.OF | alu.SF | alu.AF | alu.PF
    if name in ("tzcnt", "lzcnt"):
        return alu.OF | alu.SF | alu.AF | alu.PF
    if name in ("andn", "blsi", "blsmsk", "blsr", "bzhi"):
        return alu.AF | alu.PF
    if name == "bextr":
        return alu.AF | alu.PF | alu.SF
    return 0


class Instructions:
    """Mixed into Reference: operands, and one `op_*` method per mnemonic."""

    # --- operands ---------------------------------------------------------------------------

    def get(self: Reference, number: int, width: int = 64, shift: int = 0) -> int:
        return (self.regs[number] >> shift) & mask(width)

    def put(self: Reference, number: int, width: int, shift: int, value: int) -> None:
        value &= mask(width)
        if width >= 32:
            self.regs[number] = value  # a 32-bit write clears the upper half
        else:
            hole = mask(width) << shift
            self.regs[number] = (self.regs[number] & ~hole & M64) | value << shift

    def _base(self: Reference, segment: int) -> int:
        if segment == _REGISTER.FS:
            return self.fs_base
        return self.gs_base if segment == _REGISTER.GS else 0

    def effective(self: Reference, ins: iced.Instruction, beyond: int = 0) -> int:
        """The effective address (no segment base) of the memory operand, `beyond` bytes further."""
        if ins.is_ip_rel_memory_operand:
            narrow = ins.memory_base == _REGISTER.EIP
            return (ins.ip_rel_memory_address + beyond) & (mask(32) if narrow else M64)
        address = ins.memory_displacement + beyond
        narrow = ins.memory_displ_size == 4
        for register, scale in ((ins.memory_base, 1), (ins.memory_index, ins.memory_index_scale)):
            if register != _REGISTER.NONE:
                number, width, _ = REGISTERS[register]
                narrow = width == 32
                address += self.get(number, width) * scale
        return address & (mask(32) if narrow else M64)

    def linear(self: Reference, ins: iced.Instruction, beyond: int = 0) -> tuple[int, bool]:
        """(linear address, is the stack segment)."""
        segment = ins.memory_segment
        address = (self.effective(ins, beyond) + self._base(segment)) & M64
        return address, segment == _REGISTER.SS

    def _check(self, address: int, size: int, stack: bool) -> None:
        last = (address + size - 1) & M64
        if not canonical(address) or not canonical(last):
            raise Fault(SS if stack else GP, 0)

    def load(
        self: Reference,
        address: int,
        size: int,
        *,
        stack: bool = False,
        intent: bool = False,
        system: bool = False,
    ) -> int:
        """Read `size` bytes; `intent` = the instruction will write them back."""
        self._check(address, size, stack)
        user = self.cpl == 3 and not system
        places = self.memory.locate(address, size, intent, user)
        self.watch_data(address, size, False)
        if not system:
            self.classes.add(LOAD)
        if self.is_apic_page(places[0]):
            return self.apic_page_read(places[0], size)
        return self.memory.read(places)

    def store(
        self: Reference,
        address: int,
        size: int,
        value: int,
        *,
        stack: bool = False,
        system: bool = False,
    ) -> None:
        self._check(address, size, stack)
        user = self.cpl == 3 and not system
        places = self.memory.locate(address, size, True, user)
        self.watch_data(address, size, True)
        if not system:
            self.classes.add(STORE)
        if self.is_apic_page(places[0]):
            self.apic_page_write(places[0], size, value & mask(8 * size))
            return
        self.memory.write(places, value & mask(8 * size))

    def width(self: Reference, ins: iced.Instruction, i: int = 0) -> int:
        kind = ins.op_kind(i)
        if kind == _KIND.REGISTER:
            register = ins.op_register(i)
            return REGISTERS[register][1] if register in REGISTERS else 64
        return 8 * iced.MemorySizeExt.size(ins.memory_size)

    def read(
        self: Reference, ins: iced.Instruction, i: int, width: int = 0, intent: bool = False
    ) -> int:
        kind = ins.op_kind(i)
        if kind == _KIND.REGISTER:
            return self.get(*REGISTERS[ins.op_register(i)])
        if kind == _KIND.MEMORY:
            address, stack = self.linear(ins)
            size = (width or self.width(ins, i)) // 8
            return self.load(address, size, stack=stack, intent=intent)
        value = ins.immediate(i)
        return value & mask(width) if width else value & M64

    def write(self: Reference, ins: iced.Instruction, i: int, value: int, width: int = 0) -> None:
        if ins.op_kind(i) == _KIND.REGISTER:
            self.put(*REGISTERS[ins.op_register(i)], value)
        else:
            address, stack = self.linear(ins)
            size = (width or self.width(ins, i)) // 8
            self.store(address, size, value, stack=stack)

    # --- flags ------------------------------------------------------------------------------

    def flags(self: Reference, out: Out) -> int:
        self.rflags = (self.rflags & ~out.affected) | (out.bits & out.affected)
        self.undefined = (self.undefined & ~out.affected) | out.undefined
        return out.value

    def reads(self: Reference, flags: int) -> None:
        """Remember that an instruction looked at a flag whose value no manual defines."""
        if self.undefined & flags:
            self.tainted.append((self.rip, self.undefined & flags))

    def need_cpl0(self: Reference) -> None:
        if self.cpl != 0:
            raise Fault(GP, 0)

    def need_iopl(self: Reference) -> None:
        if self.cpl > (self.rflags & IOPL) >> 12:
            raise Fault(GP, 0)

    # --- stack ------------------------------------------------------------------------------

    def push(self: Reference, value: int, size: int = 8) -> None:
        rsp = (self.regs[RSP] - size) & M64
        self.store(rsp, size, value, stack=True)
        self.regs[RSP] = rsp

    def pop(self: Reference, size: int = 8) -> int:
        value = self.load(self.regs[RSP], size, stack=True)
        self.regs[RSP] = (self.regs[RSP] + size) & M64
        return value

    def jump(self: Reference, target: int) -> None:
        if not canonical(target):
            raise Fault(GP, 0)
        self.next = target

    # --- moves ------------------------------------------------------------------------------

    def op_mov(self: Reference, ins: Any) -> None:
        for i in (0, 1):
            if ins.op_kind(i) != _KIND.REGISTER:
                continue
            register = ins.op_register(i)
            if register in CONTROL:
                self.need_cpl0()
                if i == 0:
                    self.write_cr(CONTROL[register], self.read(ins, 1))
                else:
                    self.write(ins, 0, self.read_cr(CONTROL[register]))
                return
            if register in DEBUG:
                if i == 0:
                    self.write_dr(DEBUG[register], self.read(ins, 1))
                else:
                    self.write(ins, 0, self.read_dr(DEBUG[register]))
                return
            if register in SEGMENTS:
                if i == 0:
                    self.load_segment(SEGMENTS[register], self.read(ins, 1, 16) & 0xFFFF)
                else:
                    self.write(ins, 0, self.selectors[SEGMENTS[register]], 16)
                return
            if register not in REGISTERS:
                raise Fault(UD)
        self.write(ins, 0, self.read(ins, 1, self.width(ins)))

    def op_movzx(self: Reference, ins: Any) -> None:
        self.write(ins, 0, self.read(ins, 1))

    def op_movsx(self: Reference, ins: Any) -> None:
        self.write(ins, 0, signed(self.read(ins, 1), self.width(ins, 1)))

    op_movsxd = op_movsx

    def op_lea(self: Reference, ins: Any) -> None:
        self.write(ins, 0, self.effective(ins))

    def op_push(self: Reference, ins: Any) -> None:
        kind = ins.op_kind(0)
        size = abs(ins.stack_pointer_increment)
        if kind == _KIND.REGISTER and ins.op_register(0) in SEGMENTS:
            value = self.selectors[SEGMENTS[ins.op_register(0)]]
        else:
            value = self.read(ins, 0, 8 * size)
        self.push(value, size)

    def op_pop(self: Reference, ins: Any) -> None:
        size = abs(ins.stack_pointer_increment)
        if ins.op_kind(0) == _KIND.REGISTER and ins.op_register(0) in SEGMENTS:
            self.load_segment(SEGMENTS[ins.op_register(0)], self.pop(size) & 0xFFFF)
            return
        # The address of a memory destination uses the incremented RSP.
        value = self.pop(size)
        self.write(ins, 0, value, 8 * size)

    def op_xchg(self: Reference, ins: Any) -> None:
        width = self.width(ins)
        a = self.read(ins, 0, width, intent=True)
        b = self.read(ins, 1, width, intent=True)
        self.write(ins, 0, b)
        self.write(ins, 1, a)

    def op_cmpxchg(self: Reference, ins: Any) -> None:
        width = self.width(ins)
        dest = self.read(ins, 0, width, intent=True)
        accumulator = self.get(RAX, width)
        out = alu.sub(accumulator, dest, width)
        if accumulator == dest:
            self.write(ins, 0, self.read(ins, 1))
        else:
            # A memory destination gets its write cycle, a register destination is not touched.
            if ins.op_kind(0) == _KIND.MEMORY:
                self.write(ins, 0, dest)
            self.put(RAX, width, 0, dest)
        self.flags(out)

    def op_xadd(self: Reference, ins: Any) -> None:
        width = self.width(ins)
        a = self.read(ins, 0, width, intent=True)
        b = self.read(ins, 1)
        out = alu.add(a, b, width)
        if ins.op_kind(0) == _KIND.MEMORY:
            self.write(ins, 0, out.value)
            self.write(ins, 1, a)
        else:
            self.write(ins, 1, a)
            self.write(ins, 0, out.value)
        self.flags(out)

    def op_bswap(self: Reference, ins: Any) -> None:
        width = self.width(ins)
        if width == 16:
            self.tainted.append((self.rip, 0))  # SDM: undefined; silicon writes 0
            self.write(ins, 0, 0)
            return
        self.write(ins, 0, alu.bswap(self.read(ins, 0), width))

    def op_cbw(self: Reference, ins: Any) -> None:
        self.put(RAX, 16, 0, signed(self.get(RAX, 8), 8))

    def op_cwde(self: Reference, ins: Any) -> None:
        self.put(RAX, 32, 0, signed(self.get(RAX, 16), 16))

    def op_cdqe(self: Reference, ins: Any) -> None:
        self.put(RAX, 64, 0, signed(self.get(RAX, 32), 32))

    def op_cwd(self: Reference, ins: Any) -> None:
        self.put(RDX, 16, 0, -(self.get(RAX, 16) >> 15))

    def op_cdq(self: Reference, ins: Any) -> None:
        self.put(RDX, 32, 0, -(self.get(RAX, 32) >> 31))

    def op_cqo(self: Reference, ins: Any) -> None:
        self.put(RDX, 64, 0, -(self.get(RAX, 64) >> 63))

    # --- arithmetic -------------------------------------------------------------------------

    def _binary(self: Reference, ins: Any, operation: Any, write: bool = True) -> None:
        width = self.width(ins)
        a = self.read(ins, 0, width, intent=write)
        b = self.read(ins, 1, width)
        out = operation(a, b, width)
        if write:
            self.write(ins, 0, out.value)
        self.flags(out)

    def op_add(self: Reference, ins: Any) -> None:
        self._binary(ins, alu.add)

    def op_sub(self: Reference, ins: Any) -> None:
        self._binary(ins, alu.sub)

    def op_adc(self: Reference, ins: Any) -> None:
        self.reads(CF)
        carry = self.rflags & CF
        self._binary(ins, lambda a, b, w: alu.add(a, b, w, carry))

    def op_sbb(self: Reference, ins: Any) -> None:
        self.reads(CF)
        borrow = self.rflags & CF
        self._binary(ins, lambda a, b, w: alu.sub(a, b, w, borrow))

    def op_cmp(self: Reference, ins: Any) -> None:
        self._binary(ins, alu.sub, write=False)

    def op_and(self: Reference, ins: Any) -> None:
        self._binary(ins, lambda a, b, w: alu.logic(a & b, w))

    def op_or(self: Reference, ins: Any) -> None:
        self._binary(ins, lambda a, b, w: alu.logic(a | b, w))

    def op_xor(self: Reference, ins: Any) -> None:
        self._binary(ins, lambda a, b, w: alu.logic(a ^ b, w))

    def op_test(self: Reference, ins: Any) -> None:
        self._binary(ins, lambda a, b, w: alu.logic(a & b, w), write=False)

    def _unary(self: Reference, ins: Any, operation: Any) -> None:
        width = self.width(ins)
        out = operation(self.read(ins, 0, width, intent=True), width)
        self.write(ins, 0, out.value)
        self.flags(out)

    def op_inc(self: Reference, ins: Any) -> None:
        self._unary(ins, alu.inc)

    def op_dec(self: Reference, ins: Any) -> None:
        self._unary(ins, alu.dec)

    def op_neg(self: Reference, ins: Any) -> None:
        self._unary(ins, alu.neg)

    def op_not(self: Reference, ins: Any) -> None:
        width = self.width(ins)
        self.write(ins, 0, ~self.read(ins, 0, width, intent=True))

    def _put_product(self: Reference, width: int, product: int) -> None:
        if width == 8:
            self.put(RAX, 16, 0, product)
        else:
            self.put(RAX, width, 0, product)
            self.put(RDX, width, 0, product >> width)

    def op_mul(self: Reference, ins: Any) -> None:
        width = self.width(ins)
        out = alu.mul(self.get(RAX, width), self.read(ins, 0, width), width)
        self._put_product(width, self.flags(out))

    def op_imul(self: Reference, ins: Any) -> None:
        width = self.width(ins)
        if ins.op_count == 1:
            out = alu.imul(self.get(RAX, width), self.read(ins, 0, width), width)
            self._put_product(width, self.flags(out))
            return
        first = 0 if ins.op_count == 2 else 1
        a, b = self.read(ins, first, width), self.read(ins, first + 1, width)
        self.write(ins, 0, self.flags(alu.imul(a, b, width)))

    def _divide(self: Reference, ins: Any, operation: Any) -> None:
        width = self.width(ins)
        divisor = self.read(ins, 0, width)
        if width == 8:
            dividend = self.get(RAX, 16)
        else:
            dividend = self.get(RDX, width) << width | self.get(RAX, width)
        try:
            quotient, remainder = operation(dividend, divisor, width)
        except alu.DivideError:
            raise Fault(0) from None
        if width == 8:
            self.put(RAX, 16, 0, remainder << 8 | quotient)
        else:
            self.put(RAX, width, 0, quotient)
            self.put(RDX, width, 0, remainder)
        self.undefined |= STATUS

    def op_div(self: Reference, ins: Any) -> None:
        self._divide(ins, alu.div)

    def op_idiv(self: Reference, ins: Any) -> None:
        self._divide(ins, alu.idiv)

    def _shift(self: Reference, ins: Any, operation: Any) -> None:
        width = self.width(ins)
        a = self.read(ins, 0, width, intent=True)
        out = operation(a, self.read(ins, 1) & 0xFF, width)
        self.write(ins, 0, out.value)
        self.flags(out)

    def op_shl(self: Reference, ins: Any) -> None:
        self._shift(ins, alu.shl)

    op_sal = op_shl

    def op_shr(self: Reference, ins: Any) -> None:
        self._shift(ins, alu.shr)

    def op_sar(self: Reference, ins: Any) -> None:
        self._shift(ins, alu.sar)

    def op_rol(self: Reference, ins: Any) -> None:
        self._shift(ins, alu.rol)

    def op_ror(self: Reference, ins: Any) -> None:
        self._shift(ins, alu.ror)

    def op_rcl(self: Reference, ins: Any) -> None:
        self._through_carry(ins, alu.rcl)

    def op_rcr(self: Reference, ins: Any) -> None:
        self._through_carry(ins, alu.rcr)

    def _through_carry(self: Reference, ins: Any, operation: Any) -> None:
        self.reads(CF)
        carry = int(bool(self.rflags & CF))
        self._shift(ins, lambda a, count, width: operation(a, carry, count, width))

    def _double_shift(self: Reference, ins: Any, operation: Any) -> None:
        width = self.width(ins)
        a = self.read(ins, 0, width, intent=True)
        count = self.read(ins, 2) & 0xFF
        if alu.double_shift_undefined(count, width):
            self.tainted.append((self.rip, 0))
        out = operation(a, self.read(ins, 1), count, width)
        self.write(ins, 0, out.value)
        self.flags(out)

    def op_shld(self: Reference, ins: Any) -> None:
        self._double_shift(ins, alu.shld)

    def op_shrd(self: Reference, ins: Any) -> None:
        self._double_shift(ins, alu.shrd)

    # --- bits -------------------------------------------------------------------------------

    def _bit(self: Reference, ins: Any, change: Any) -> None:
        width = self.width(ins)
        index = self.read(ins, 1)
        memory = ins.op_kind(0) == _KIND.MEMORY
        address = stack = None
        if memory:
            # A register bit offset is signed and reaches any bit string in memory.
            words = signed(index, width) // width if ins.op_kind(1) == _KIND.REGISTER else 0
            address, stack = self.linear(ins, words * (width // 8))
            a = self.load(address, width // 8, stack=stack, intent=change is not None)
        else:
            a = self.read(ins, 0)
        out = alu.bit_test(a, index % width)
        if change is not None:
            value = change(a, 1 << (index % width))
            if memory:
                self.store(address, width // 8, value, stack=stack)
            else:
                self.write(ins, 0, value)
        self.flags(out)

    def op_bt(self: Reference, ins: Any) -> None:
        self._bit(ins, None)

    def op_bts(self: Reference, ins: Any) -> None:
        self._bit(ins, lambda a, bit: a | bit)

    def op_btr(self: Reference, ins: Any) -> None:
        self._bit(ins, lambda a, bit: a & ~bit)

    def op_btc(self: Reference, ins: Any) -> None:
        self._bit(ins, lambda a, bit: a ^ bit)

    def _scan(self: Reference, ins: Any, operation: Any) -> None:
        width = self.width(ins)
        out = operation(self.read(ins, 1, width), width)
        if out is None:
            self.flags(Out(0, ZF, STATUS, STATUS & ~ZF))
            self.tainted.append((self.rip, 0))  # SDM: the destination is undefined
        else:
            self.write(ins, 0, self.flags(out))

    def op_bsf(self: Reference, ins: Any) -> None:
        self._scan(ins, alu.bsf)

    def op_bsr(self: Reference, ins: Any) -> None:
        self._scan(ins, alu.bsr)

    def op_tzcnt(self: Reference, ins: Any) -> None:
        width = self.width(ins)
        self.write(ins, 0, self.flags(alu.tzcnt(self.read(ins, 1, width), width)))

    def op_lzcnt(self: Reference, ins: Any) -> None:
        width = self.width(ins)
        self.write(ins, 0, self.flags(alu.lzcnt(self.read(ins, 1, width), width)))

    def op_popcnt(self: Reference, ins: Any) -> None:
        self.write(ins, 0, self.flags(alu.popcnt(self.read(ins, 1, self.width(ins)))))

    # --- control flow -----------------------------------------------------------------------

    def op_jmp(self: Reference, ins: Any) -> None:
        self.classes |= {BRANCH, TAKEN}
        if ins.op_kind(0) == _KIND.NEAR_BRANCH64:
            self.jump(ins.near_branch64)
        else:
            self._near(ins)
            self.classes.add(INDIRECT)
            self.jump(self.read(ins, 0, 64))

    def _near(self, ins: Any) -> None:
        if ins.is_jmp_far_indirect or ins.is_call_far_indirect:
            raise Fault(UD)  # outside the subset of design section 4

    def op_call(self: Reference, ins: Any) -> None:
        self.classes |= {BRANCH, TAKEN, CALL}
        if ins.op_kind(0) == _KIND.NEAR_BRANCH64:
            target = ins.near_branch64
        else:
            self._near(ins)
            self.classes.add(INDIRECT)
            target = self.read(ins, 0, 64)
        if not canonical(target):
            raise Fault(GP, 0)
        self.push(self.next)
        self.jump(target)

    def op_ret(self: Reference, ins: Any) -> None:
        self.classes |= {BRANCH, TAKEN, RET}
        self.jump(self.pop())
        if ins.op_count:
            self.regs[RSP] = (self.regs[RSP] + (ins.immediate(0) & 0xFFFF)) & M64

    def conditional(self: Reference, ins: Any, cc: int) -> None:
        self.reads(alu.CONDITION_READS[cc >> 1])
        self._branch_if(ins, alu.condition(cc, self.rflags))

    def _branch_if(self: Reference, ins: Any, taken: bool) -> None:
        self.classes |= {BRANCH, COND}
        if taken:
            self.classes.add(TAKEN)
            self.jump(ins.near_branch64)

    def _count_register(self: Reference, ins: Any) -> int:
        return 32 if "ECX" in _code_name(ins) else 64

    def _loop(self: Reference, ins: Any, also: bool) -> None:
        width = self._count_register(ins)
        count = (self.get(RCX, width) - 1) & mask(width)
        self.put(RCX, width, 0, count)
        self._branch_if(ins, count != 0 and also)

    def op_loop(self: Reference, ins: Any) -> None:
        self._loop(ins, True)

    def op_loope(self: Reference, ins: Any) -> None:
        self.reads(ZF)
        self._loop(ins, bool(self.rflags & ZF))

    def op_loopne(self: Reference, ins: Any) -> None:
        self.reads(ZF)
        self._loop(ins, not self.rflags & ZF)

    def op_jrcxz(self: Reference, ins: Any) -> None:
        self._branch_if(ins, self.regs[RCX] == 0)

    def op_jecxz(self: Reference, ins: Any) -> None:
        self._branch_if(ins, self.get(RCX, 32) == 0)

    def op_enter(self: Reference, ins: Any) -> None:
        bytes_, level = ins.immediate(0) & 0xFFFF, ins.immediate(1) & 31
        size = 2 if mnemonic(ins) == "enter" and "ENTERW" in _code_name(ins) else 8
        base = self.regs[RBP]
        self.push(base, size)
        frame = self.regs[RSP]
        if level:
            for _ in range(level - 1):
                base = (base - size) & M64
                self.push(self.load(base, size, stack=True), size)
            self.push(frame, size)
        final = (self.regs[RSP] - bytes_) & M64
        # "a page fault whenever a write using the final value of the stack pointer would do so"
        self._check(final, size, True)
        self.memory.locate(final, size, True, self.cpl == 3)
        self.put(RBP, 8 * size, 0, frame)
        self.regs[RSP] = final

    def op_leave(self: Reference, ins: Any) -> None:
        size = 2 if "LEAVEW" in _code_name(ins) else 8
        self.regs[RSP] = self.regs[RBP]
        self.put(RBP, 8 * size, 0, self.pop(size))

    def set_if(self: Reference, ins: Any, cc: int) -> None:
        self.reads(alu.CONDITION_READS[cc >> 1])
        self.write(ins, 0, int(alu.condition(cc, self.rflags)), 8)

    def move_if(self: Reference, ins: Any, cc: int) -> None:
        self.reads(alu.CONDITION_READS[cc >> 1])
        value = self.read(ins, 1, self.width(ins))
        holds = alu.condition(cc, self.rflags)
        # A 32-bit CMOV clears the upper half even when it does not move.
        self.write(ins, 0, value if holds else self.read(ins, 0))

    # --- strings ----------------------------------------------------------------------------

    def _string(self: Reference, ins: Any, compares: bool) -> None:
        """One iteration; `repeat` is left set while the instruction is not finished."""
        size = {"b": 1, "w": 2, "d": 4, "q": 8}[mnemonic(ins)[-1]]
        name = mnemonic(ins)[:-1]
        narrow = self._string_narrow(ins)
        width = 32 if narrow else 64
        rep = ins.has_rep_prefix or ins.has_repne_prefix
        if rep and self.get(RCX, width) == 0:
            return
        step = -size if self.rflags & DF else size
        source = self.get(RSI, width)
        dest = self.get(RDI, width)
        if name in ("movs", "lods", "cmps"):
            linear = (source + self._base(ins.memory_segment)) & M64
        if name == "movs":
            self.store(dest, size, self.load(linear, size))
        elif name == "stos":
            self.store(dest, size, self.get(RAX, 8 * size))
        elif name == "lods":
            self.put(RAX, 8 * size, 0, self.load(linear, size))
        elif name == "scas":
            self.flags(alu.sub(self.get(RAX, 8 * size), self.load(dest, size), 8 * size))
        elif name == "cmps":
            a = self.load(linear, size)
            self.flags(alu.sub(a, self.load(dest, size), 8 * size))
        if name in ("movs", "lods", "cmps"):
            self.put(RSI, width, 0, source + step)
        if name != "lods":
            self.put(RDI, width, 0, dest + step)
        if rep:
            self.put(RCX, width, 0, self.get(RCX, width) - 1)
            again = self.get(RCX, width) != 0
            if compares:
                again = again and bool(self.rflags & ZF) == (not ins.has_repne_prefix)
            self.repeat = again

    def _string_narrow(self: Reference, ins: Any) -> bool:
        return any(
            ins.op_kind(i) in (_KIND.MEMORY_ESEDI, _KIND.MEMORY_SEG_ESI)
            for i in range(ins.op_count)
        )

    def op_pushfq(self: Reference, ins: Any) -> None:
        self._push_flags(8)

    def op_pushf(self: Reference, ins: Any) -> None:
        self._push_flags(2)

    def _push_flags(self: Reference, size: int) -> None:
        self.reads(STATUS)
        self.push(self.rflags & ~(VM | RF), size)

    def op_popf(self: Reference, ins: Any) -> None:
        self._pop_flags(self.pop(2) | self.rflags & ~0xFFFF)

    def op_popfq(self: Reference, ins: Any) -> None:
        self._pop_flags(self.pop())

    def _pop_flags(self: Reference, value: int) -> None:
        change = STATUS | alu.TF | DF | NT | AC | ID
        if self.cpl == 0:
            change |= IOPL | IF
        elif self.cpl <= (self.rflags & IOPL) >> 12:
            change |= IF
        self.rflags = (self.rflags & ~change & ~(RF | VIF | VIP)) | (value & change) | 2
        self.undefined = 0

    def op_lahf(self: Reference, ins: Any) -> None:
        self.reads(STATUS & ~alu.OF)
        self.put(RAX, 8, 8, self.rflags & 0xFF)

    def op_sahf(self: Reference, ins: Any) -> None:
        self.flags(Out(0, self.get(RAX, 8, 8), STATUS & ~alu.OF))

    def op_cld(self: Reference, ins: Any) -> None:
        self.rflags &= ~DF

    def op_std(self: Reference, ins: Any) -> None:
        self.rflags |= DF

    def op_clc(self: Reference, ins: Any) -> None:
        self.flags(Out(0, 0, CF))

    def op_stc(self: Reference, ins: Any) -> None:
        self.flags(Out(0, CF, CF))

    def op_cmc(self: Reference, ins: Any) -> None:
        self.reads(CF)
        self.flags(Out(0, ~self.rflags & CF, CF))

    def op_nop(self: Reference, ins: Any) -> None:
        self.classes.add(NOP)

    op_endbr64 = op_nop  # INST_RETIRED.NOP counts ENDBR too

    def op_pause(self: Reference, ins: Any) -> None:
        pass

    def op_prefetcht0(self: Reference, ins: Any) -> None:
        self.classes.add(LOAD)  # no access and no fault

    op_prefetcht1 = op_prefetcht2 = op_prefetchnta = op_prefetch = op_prefetchw = op_prefetcht0

    op_lfence = op_mfence = op_sfence = op_pause

    def op_clflush(self: Reference, ins: Any) -> None:
        address, stack = self.linear(ins)
        self._check(address, 1, stack)
        self.memory.translate(address, False, self.cpl == 3)

    op_clflushopt = op_clflush

    # --- system -----------------------------------------------------------------------------

    def op_ud2(self: Reference, ins: Any) -> None:
        raise Fault(UD)

    op_vmcall = op_ud2  # no VMX operation here

    def op_int(self: Reference, ins: Any) -> None:
        self.software_interrupt(ins.immediate(0) & 0xFF)

    def op_int3(self: Reference, ins: Any) -> None:
        self.software_interrupt(3)

    def software_interrupt(self: Reference, vector: int) -> None:
        self.classes |= {BRANCH, FAR}
        self.interrupt(vector, None, software=True, return_to=self.next)
        self.next = self.rip

    def op_iretq(self: Reference, ins: Any) -> None:
        self.classes |= {BRANCH, FAR}
        self.iret()

    def op_syscall(self: Reference, ins: Any) -> None:
        if not self.efer & 1:
            raise Fault(UD)
        self.reads(STATUS)
        self.classes |= {BRANCH, FAR}
        self.regs[RCX] = self.next
        self.regs[11] = self.rflags
        self.rflags = (self.rflags & ~self.msrs[0xC0000084]) | 2
        self.rflags &= ~(RF)
        star = self.msrs[0xC0000081] >> 32
        self.selectors[1] = star & 0xFFFC
        self.selectors[2] = (star + 8) & 0xFFFF
        self.cpl = 0
        self.next = self.msrs[0xC0000082]

    def op_sysretq(self: Reference, ins: Any) -> None:
        if not self.efer & 1:
            raise Fault(UD)
        self.need_cpl0()
        if not canonical(self.regs[RCX]):
            raise Fault(GP, 0)
        self.classes |= {BRANCH, FAR}
        self.rflags = (self.regs[11] & 0x3C7FD7) | 2
        self.undefined = 0
        star = self.msrs[0xC0000081] >> 48
        self.selectors[1] = (star + 16) & 0xFFFF | 3
        self.selectors[2] = (star + 8) & 0xFFFF | 3
        self.cpl = 3
        self.next = self.regs[RCX]

    def op_swapgs(self: Reference, ins: Any) -> None:
        self.need_cpl0()
        self.gs_base, self.msrs[0xC0000102] = self.msrs[0xC0000102], self.gs_base

    def op_cli(self: Reference, ins: Any) -> None:
        self.need_iopl()
        self.rflags &= ~IF

    def op_sti(self: Reference, ins: Any) -> None:
        self.need_iopl()
        if not self.rflags & IF:
            self.shadow = "sti"
        self.rflags |= IF

    def op_hlt(self: Reference, ins: Any) -> None:
        self.need_cpl0()
        self.halted = True

    def op_in(self: Reference, ins: Any) -> None:
        self.need_iopl()
        port = self.read(ins, 1) & 0xFFFF
        self.watch_port(port, self.width(ins))
        self.write(ins, 0, self.port_in(port, self.width(ins)))

    def op_out(self: Reference, ins: Any) -> None:
        self.need_iopl()
        port = self.read(ins, 0) & 0xFFFF
        self.watch_port(port, self.width(ins, 1))
        self.port_out(port, self.width(ins, 1), self.read(ins, 1))

    def op_cpuid(self: Reference, ins: Any) -> None:
        for number, value in zip(
            (RAX, RBX, RCX, RDX),
            self.cpuid(self.get(RAX, 32), self.get(RCX, 32)),
            strict=True,
        ):
            self.put(number, 32, 0, value)

    def _time_allowed(self: Reference) -> None:
        if self.cpl and self.cr4 & 1 << 2:
            raise Fault(GP, 0)

    def op_rdtsc(self: Reference, ins: Any) -> None:
        self._time_allowed()
        self.put(RAX, 32, 0, self.tsc)
        self.put(RDX, 32, 0, self.tsc >> 32)

    def op_rdtscp(self: Reference, ins: Any) -> None:
        self.op_rdtsc(ins)
        self.put(RCX, 32, 0, self.msrs[0xC0000103])

    def op_rdmsr(self: Reference, ins: Any) -> None:
        self.need_cpl0()
        try:
            value = self.rdmsr(self.get(RCX, 32))
        except Gp:
            raise Fault(GP, 0) from None
        self.put(RAX, 32, 0, value)
        self.put(RDX, 32, 0, value >> 32)

    def op_wrmsr(self: Reference, ins: Any) -> None:
        """WRMSR retires first and takes effect then.

        So the write that closes a window counts, the one that opens it does not, and a write to a
        running counter does not count itself; a write that faults does neither.
        """
        self.need_cpl0()
        order = self.get(RCX, 32), self.get(RDX, 32) << 32 | self.get(RAX, 32)
        before = copy.deepcopy((self.pmu, self.apic))
        try:
            self.wrmsr(*order)
        except Gp:
            raise Fault(GP, 0) from None
        finally:
            self.pmu, self.apic = before
        self.write_after = order

    def op_rdpmc(self: Reference, ins: Any) -> None:
        if self.cpl and not self.cr4 & 1 << 8:
            raise Fault(GP, 0)
        try:
            value = self.pmu.rdpmc(self.get(RCX, 32))
        except Gp:
            raise Fault(GP, 0) from None
        self.put(RAX, 32, 0, value)
        self.put(RDX, 32, 0, value >> 32)

    def _load_table(self: Reference, ins: Any) -> tuple[int, int]:
        self.need_cpl0()
        address, stack = self.linear(ins)
        limit = self.load(address, 2, stack=stack)
        base = self.load((address + 2) & M64, 8, stack=stack)
        if not canonical(base):
            raise Fault(GP, 0)
        return base, limit

    def op_lgdt(self: Reference, ins: Any) -> None:
        self.gdt = self._load_table(ins)

    def op_lidt(self: Reference, ins: Any) -> None:
        self.idt = self._load_table(ins)

    def _store_table(self: Reference, ins: Any, table: tuple[int, int]) -> None:
        address, stack = self.linear(ins)
        self.store(address, 10, table[0] << 16 | table[1], stack=stack)

    def op_sgdt(self: Reference, ins: Any) -> None:
        self._store_table(ins, self.gdt)

    def op_sidt(self: Reference, ins: Any) -> None:
        self._store_table(ins, self.idt)

    def op_ltr(self: Reference, ins: Any) -> None:
        self.need_cpl0()
        self.load_task_register(self.read(ins, 0, 16) & 0xFFFF)

    def op_str(self: Reference, ins: Any) -> None:
        self.write(ins, 0, self.tr_selector, 16 if ins.op_kind(0) == _KIND.MEMORY else 0)

    def op_sldt(self: Reference, ins: Any) -> None:
        self.write(ins, 0, 0, 16 if ins.op_kind(0) == _KIND.MEMORY else 0)

    def op_invlpg(self: Reference, ins: Any) -> None:
        self.need_cpl0()

    def op_wbinvd(self: Reference, ins: Any) -> None:
        self.need_cpl0()


def _code_name(ins: iced.Instruction) -> str:
    return _CODES[ins.code]


_CODES = {
    value: name
    for name, value in vars(iced.Code).items()
    if isinstance(value, int) and not name.startswith("_")
}

for _cc, _name in enumerate(CONDITIONS):
    setattr(Instructions, f"op_j{_name}", lambda self, ins, cc=_cc: self.conditional(ins, cc))
    setattr(Instructions, f"op_set{_name}", lambda self, ins, cc=_cc: self.set_if(ins, cc))
    setattr(Instructions, f"op_cmov{_name}", lambda self, ins, cc=_cc: self.move_if(ins, cc))
for _name in ("movs", "stos", "lods", "scas", "cmps"):
    for _size in "bwdq":
        setattr(
            Instructions,
            f"op_{_name}{_size}",
            lambda self, ins, c=_name in ("scas", "cmps"): self._string(ins, c),
        )
