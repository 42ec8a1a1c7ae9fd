"""One instruction at a time, from the manuals: the oracle the compiled engine is compared with.

`Reference` is the `bare` platform (no hypervisor).  Time is not modelled: the TSC advances by one
per step, so programs that read time, or count cycles, are outside what it can judge.
"""

from __future__ import annotations

from collections.abc import Callable

import iced_x86 as iced

from .alu import AC, DF, ID, IF, IOPL, NT, RF, STATUS, TF, VM
from .apic import Apic
from .debug import BD, DB, Debug
from .instructions import M64, RCX, RSP, Instructions, mnemonic, undefined_flags
from .later import Later
from .memory import APIC_PAGE, GP, NP, PF, SS, TS, UD, Fault, Memory, canonical
from .memory import DF as DOUBLE_FAULT
from .pmu import INST, MODELLED_EVENTS, MODELLED_FIXED, Gp, Pmu, Shape

__all__ = [
    "MODELLED_EVENTS",
    "MODELLED_FIXED",
    "Reference",
    "Shape",
    "undefined_flags",
]

NMI_VECTOR = 2
CONTRIBUTORY = {0, TS, NP, SS, GP}
WITH_ERROR = {DOUBLE_FAULT, TS, NP, SS, GP, PF, 17}
GDT_ADDRESS = 0x500
# Null, kernel code and data (0x08, 0x10), a null, user data and code (0x20, 0x28).
START_GDT = (
    0,
    0x00AF9B000000FFFF,
    0x00CF93000000FFFF,
    0,
    0x00CFF3000000FFFF,
    0x00AFFB000000FFFF,
)
COM1, DEBUG_EXIT = 0x3F8, 0xF4
_PLAIN_MSRS = {
    0x48: 0,  # SPEC_CTRL
    0x1A0: 1 | 1 << 7 | 1 << 11 | 1 << 12,  # MISC_ENABLE: PMU available, no BTS, no PEBS
    0x277: 0x0007040600070406,  # PAT
    0xC0000081: 0,
    0xC0000082: 0,
    0xC0000083: 0,
    0xC0000084: 0,
    0xC0000102: 0,
    0xC0000103: 0,
}


class Reference(Debug, Later, Instructions):
    """A processor, its APIC and PMU, RAM, COM1 and the debug-exit port.

    Args:
        image: (address, bytes) pieces to place in RAM.
        entry: the first instruction.
        ram_size: bytes of RAM, identity-mapped until the guest loads CR3.
        cpu_shape: the PMU of the CPU.
        exits: says of (mnemonic, ECX) whether the instruction is a VM exit; None: there is no
            hypervisor.  Such an instruction retires nowhere: KVM counts it after its handler.
    """

    def __init__(
        self,
        image: list[tuple[int, bytes]],
        entry: int,
        ram_size: int = 1 << 20,
        cpu_shape: Shape | None = None,
        *,
        exits: Callable[[str, int], bool] | None = None,
    ) -> None:
        self.memory = Memory(ram_size)
        self.mem = self.memory.ram
        for address, data in image:
            if address < 0 or address + len(data) > ram_size:
                raise ValueError(f"image piece at {address:#x} does not fit in {ram_size:#x} of RAM")
            self.mem[address : address + len(data)] = data
        gdt = b"".join(d.to_bytes(8, "little") for d in START_GDT)
        if len(self.mem) >= GDT_ADDRESS + len(gdt):
            self.mem[GDT_ADDRESS : GDT_ADDRESS + len(gdt)] = gdt
        self.shape = cpu_shape or Shape()
        self.pmu = Pmu(self.shape)
        self.apic = Apic()
        self.exits = exits

        self.regs = [0] * 16
        self.regs[RSP] = ram_size - 8
        self.rip = entry
        self.next = entry
        self.rflags = 2
        self.cpl = 0
        self.cr0 = self.memory.cr0 = 0x80000033
        self.cr2 = 0
        self.cr4 = 1 << 5
        self.efer = self.memory.efer = 0xD01
        self.fs_base = self.gs_base = 0
        self.selectors = [0x10, 0x08, 0x10, 0x10, 0, 0]
        self.gdt = (GDT_ADDRESS, len(gdt) - 1)
        self.idt = (0, 0)
        self.tr_selector, self.tr_base, self.tr_limit = 0, 0, 0
        self.msrs = dict(_PLAIN_MSRS)
        self.tsc = 0

        self.shadow: str | None = None
        self.nmi_blocked = False
        self.halted = False
        self.repeat = False
        self.debug_reset()
        self.classes: set[str] = set()
        self.undefined = 0
        self.tainted: list[tuple[int, int]] = []
        self._frames: dict[int, int] = {}

        self.running_writes = 0  # counters, as bits of GLOBAL_STATUS, written while they ran
        self.steps = 0
        self.retired = 0
        self.pmis = 0
        self.pmi_log: list[tuple[int, int]] = []
        self.delivered: list[tuple[int, int]] = []
        self.serial = bytearray()
        self.exit_code: int | None = None
        self.stop_reason: str | None = None
        self._decoded: dict[tuple[int, bytes], iced.Instruction] = {}

    # --- running ----------------------------------------------------------------------------

    def run(self, max_steps: int = 100_000, max_insns: int | None = None) -> str:
        """Step until a stop, or until `max_insns` have retired.

        Returns: the stop reason, "max_steps" if there was none.
        """
        for _ in range(max_steps):
            if not self.step():
                return str(self.stop_reason)
            if self.retired == max_insns:
                break
        self.stop_reason = "max_steps"
        return self.stop_reason

    def run_one(self) -> None:
        """Run until one instruction has retired or a fault was met."""
        while self.stop_reason is None and not self.retired and not self.delivered:
            self.step()

    def step(self) -> bool:
        """One instruction, one iteration of a repeated one, or one event.  False when stopped."""
        if self.stop_reason is not None:
            return False
        self.steps += 1
        self.tsc = (self.tsc + 1) & M64
        self.apic.advance(self.tsc)
        shadow, self.shadow = self.shadow, None
        if self._take_event(shadow):
            return self.stop_reason is None
        if self.halted:
            self._idle()
            return self.stop_reason is None
        self._instruction(shadow)
        return self.stop_reason is None

    def _take_event(self, shadow: str | None) -> bool:
        """Deliver the most urgent event that nothing blocks."""
        if self.pending_debug and shadow != "movss":
            self.debug_exception(self.pending_debug)
            return True
        # SDM volume 2: STI holds back maskable interrupts, MOV SS every interrupt.
        if self.apic.nmi and not self.nmi_blocked and shadow != "movss":
            self.apic.nmi = False
            self.nmi_blocked = True
            self._deliver(NMI_VECTOR, None)
            return True
        vector = self.apic.pending_vector()
        if vector is not None and self.rflags & IF and shadow is None:
            self.apic.acknowledge(vector)
            self._deliver(vector, None)
            return True
        return False

    def _idle(self) -> None:
        # Only the timer can make something happen on a halted processor with one core.
        if self.apic.expires is None or not self.rflags & IF:
            self.stop_reason = "halted"
            return
        before = self.apic.expires
        self.tsc = max(self.tsc, before)
        self.apic.advance(self.tsc)
        if self.apic.pending_vector() is None:
            self.stop_reason = "halted"

    def _instruction(self, shadow: str | None) -> None:
        if not self.rflags & RF and not self.repeat and shadow != "movss":
            found = self.code_breakpoints()
            if found:
                self.debug_exception(found)
                return
        self.rflags &= ~RF
        self.met = 0
        regs, rflags, rip = list(self.regs), self.rflags, self.rip
        undefined, taints = self.undefined, len(self.tainted)
        found = self.pmu.enables(self.cpl)
        self.classes = set()
        self.repeat = False
        self.write_after: tuple[int, int] | None = None
        try:
            ins = self.fetch()
            self.next = (rip + ins.len) & M64
            method = getattr(self, "op_" + mnemonic(ins), None)
            if method is None:
                raise Fault(UD)
            method(ins)
            if self.repeat:
                self.next = rip
        except Fault as fault:
            self.regs, self.rflags, self.rip = regs, rflags, rip
            self.undefined = undefined
            del self.tainted[taints:]
            self.shadow = None
            self._exception(fault)
            return
        self.rip = self.next
        if not self.repeat:
            self._retire(ins, found, regs)
        self.after_instruction(mnemonic(ins), rflags & TF)

    def _retire(self, ins: iced.Instruction, found: list, regs: list[int]) -> None:
        if self.write_after is not None:
            self._note_running_write(self.write_after[0])
        if self.exits is not None and self.exits(mnemonic(ins), regs[RCX] & 0xFFFFFFFF):
            # kvm_skip_emulated_instruction(): the counters that are on now, of C0 and C4 only.
            if self.write_after is not None:
                self.wrmsr(*self.write_after)
                self.write_after = None
            found = [row for row in self.pmu.enables(self.cpl) if row[1][1] == 0]
        self.retired += 1
        self.classes.add(INST)
        overflowed, request = self.pmu.retire(found, frozenset(self.classes))
        self.pmi_log += [(self.retired, counter) for counter in overflowed]
        if request and self.apic.pmi():
            self.pmis += 1
        if self.write_after is not None:
            self.wrmsr(*self.write_after)

    def _note_running_write(self, msr: int) -> None:
        for counter in range(32 + self.shape.fixed):
            names = (0xC1 + counter, 0x4C1 + counter) if counter < 32 else (0x309 + counter - 32,)
            ever = {n for cpl in (0, 3) for n, _ in self.pmu.enables(cpl)}
            if msr in names and counter in ever:
                self.running_writes |= 1 << counter

    def fetch(self) -> iced.Instruction:
        """Decode at RIP.  Raises: Fault (#PF of the missing byte, #UD, #GP beyond 15 bytes)."""
        if not canonical(self.rip):
            raise Fault(GP, 0)
        data = bytearray()
        fault: Fault | None = None
        at = self.rip
        while len(data) < 15:
            try:
                pa = self.memory.translate(at, False, self.cpl == 3, True)
            except Fault as missing:
                fault = missing
                break
            piece = min(15 - len(data), 0x1000 - (at & 0xFFF))
            data += self.mem[pa : pa + piece]
            at = (at + piece) & M64
        key = (self.rip, bytes(data))
        ins = self._decoded.get(key)
        if ins is None:
            decoder = iced.Decoder(64, bytes(data), ip=self.rip)
            ins = decoder.decode()
            if ins.is_invalid:
                if decoder.last_error == iced.DecoderError.NO_MORE_BYTES:
                    raise fault if fault is not None else Fault(GP, 0)
                raise Fault(UD)
            self._decoded[key] = ins
        return ins

    # --- exceptions and interrupts ----------------------------------------------------------

    def _exception(self, fault: Fault) -> None:
        if fault.cr2 is not None:
            self.cr2 = fault.cr2
        if fault.vector == DB:
            self.debug_exception(BD)
            return
        self._deliver(fault.vector, fault.error, fault=True)

    def _deliver(self, vector: int, error: int | None, fault: bool = False) -> None:
        """Deliver an exception, interrupt or NMI; nested faults as SDM table 6-5."""
        self.halted = False
        self.pending_debug = self.met = 0
        self.delivered.append((self.retired, vector))
        first = vector if fault else None
        while True:
            try:
                # EXT is set in error codes of faults met while an event is delivered.
                self.interrupt(vector, error, software=False, return_to=self.rip, fault=fault)
                self.repeat = False
                self.pending_debug = self.met
                return
            except Fault as second:
                if second.cr2 is not None:
                    self.cr2 = second.cr2
                if first == DOUBLE_FAULT:
                    self.stop_reason = "triple_fault"
                    return
                serious = second.vector in CONTRIBUTORY or second.vector == PF
                if (first in CONTRIBUTORY and second.vector in CONTRIBUTORY) or (
                    first == PF and serious
                ):
                    vector, error = DOUBLE_FAULT, 0
                else:
                    vector, error = second.vector, second.error
                first = vector
                fault = True

    def interrupt(
        self,
        vector: int,
        error: int | None,
        *,
        software: bool,
        return_to: int,
        fault: bool = False,
    ) -> None:
        """SDM volume 3, 6.14: through a 64-bit gate.  Changes nothing but memory on a Fault."""
        ext = 0 if software else 1
        bad_gate = vector * 8 + 2 + ext
        base, limit = self.idt
        if vector * 16 + 15 > limit:
            raise Fault(GP, bad_gate)
        gate = self.load((base + vector * 16) & M64, 8, system=True)
        high = self.load((base + vector * 16 + 8) & M64, 8, system=True)
        kind, dpl = (gate >> 40) & 0x1F, (gate >> 45) & 3
        if kind not in (14, 15):
            raise Fault(GP, bad_gate)
        if software and dpl < self.cpl:
            raise Fault(GP, bad_gate)
        if not gate >> 47 & 1:
            raise Fault(NP, bad_gate)
        selector, ist = (gate >> 16) & 0xFFFF, (gate >> 32) & 7
        target = (gate & 0xFFFF) | (gate >> 32 & 0xFFFF0000) | (high & 0xFFFFFFFF) << 32
        if selector & ~3 == 0:
            raise Fault(GP, ext)
        descriptor = self._descriptor(selector, ext)
        code_dpl = (descriptor >> 45) & 3
        if not (descriptor >> 44) & 1 or not (descriptor >> 43) & 1 or code_dpl > self.cpl:
            raise Fault(GP, selector & ~3 | ext)
        if not (descriptor >> 53) & 1:
            raise Fault(GP, selector & ~3 | ext)
        if not (descriptor >> 47) & 1:
            raise Fault(NP, selector & ~3 | ext)
        conforming = (descriptor >> 42) & 1
        new_cpl = self.cpl if conforming else code_dpl
        inner = new_cpl < self.cpl
        if ist:
            rsp = self._tss(0x24 + 8 * (ist - 1), ext)
        elif inner:
            rsp = self._tss(4 + 8 * new_cpl, ext)
        else:
            rsp = self.regs[RSP]
        if not canonical(rsp):
            raise Fault(SS, ext)
        if not canonical(target):
            raise Fault(GP, ext)
        rsp &= ~15
        saved = self.rflags
        # SDM volume 3, 18.3.1.1
        if (fault and vector not in (DOUBLE_FAULT, 1, 18)) or (self.repeat and not software):
            saved |= RF
        frame = [self.selectors[2], self.regs[RSP], saved, self.selectors[1], return_to]
        if error is not None and vector in WITH_ERROR:
            frame.append(error)
        for value in frame:
            rsp = (rsp - 8) & M64
            if not canonical(rsp):
                raise Fault(SS, ext)
            self.store(rsp, 8, value, stack=True, system=True)
        self._frames[rsp + 8 * (len(frame) - 3)] = self.undefined
        self.regs[RSP] = rsp
        if inner:
            self.selectors[2] = new_cpl
        self.selectors[1] = selector & ~3 | new_cpl
        self.cpl = new_cpl
        self.rflags &= ~(TF | NT | RF | VM)
        if kind == 14:
            self.rflags &= ~IF
        self.rip = target

    def _tss(self, offset: int, ext: int) -> int:
        if offset + 7 > self.tr_limit:
            raise Fault(TS, self.tr_selector & ~3 | ext)
        return self.load((self.tr_base + offset) & M64, 8, system=True)

    def _descriptor(self, selector: int, ext: int = 0) -> int:
        base, limit = self.gdt
        if selector & 4 or (selector & ~7) + 7 > limit:
            raise Fault(GP, selector & ~3 | ext)
        return self.load((base + (selector & ~7)) & M64, 8, system=True)

    def iret(self) -> None:
        """IRETQ (SDM volume 2): always five words in 64-bit mode; unblocks NMI."""
        if self.rflags & NT:
            raise Fault(GP, 0)
        rsp = self.regs[RSP]
        words = [self.load((rsp + 8 * i) & M64, 8, stack=True) for i in range(5)]
        rip, cs, flags, new_rsp, ss = words
        cs, ss = cs & 0xFFFF, ss & 0xFFFF
        rpl = cs & 3
        if cs & ~3 == 0:
            raise Fault(GP, 0)
        descriptor = self._descriptor(cs)
        if not (descriptor >> 44) & 1 or not (descriptor >> 43) & 1 or rpl < self.cpl:
            raise Fault(GP, cs & ~3)
        conforming = (descriptor >> 42) & 1
        dpl = (descriptor >> 45) & 3
        if (dpl > rpl) if conforming else (dpl != rpl):
            raise Fault(GP, cs & ~3)
        if not (descriptor >> 47) & 1:
            raise Fault(NP, cs & ~3)
        if not (descriptor >> 53) & 1:
            raise Fault(GP, cs & ~3)  # compatibility mode is outside the subset
        if ss & ~3 == 0:
            if rpl == 3 or ss & 3 != rpl:
                raise Fault(GP, ss & ~3)
        else:
            stack = self._descriptor(ss)
            writable = (stack >> 44) & 1 and not (stack >> 43) & 1 and (stack >> 41) & 1
            if ss & 3 != rpl or not writable or (stack >> 45) & 3 != rpl:
                raise Fault(GP, ss & ~3)
            if not (stack >> 47) & 1:
                raise Fault(SS, ss & ~3)
        if not canonical(rip):
            raise Fault(GP, 0)
        change = STATUS | TF | DF | NT | AC | ID | RF
        if self.cpl == 0:
            change |= IOPL | IF
        elif self.cpl <= (self.rflags & IOPL) >> 12:
            change |= IF
        self.rflags = (self.rflags & ~change) | (flags & change) | 2
        self.undefined = self._frames.pop(rsp + 16, 0)
        self.selectors[1], self.selectors[2] = cs, ss
        self.regs[RSP] = new_rsp
        self.cpl = rpl
        self.next = rip
        self.nmi_blocked = False

    def load_segment(self, which: int, selector: int) -> None:
        """MOV or POP to a segment register."""
        if which == 1:
            raise Fault(UD)
        if selector & ~3 == 0:
            if which == 2 and (self.cpl == 3 or selector & 3 != self.cpl):
                raise Fault(GP, 0)
            base = 0
        else:
            descriptor = self._descriptor(selector)
            system, code = not (descriptor >> 44) & 1, (descriptor >> 43) & 1
            dpl, rpl = (descriptor >> 45) & 3, selector & 3
            flag = (descriptor >> 41) & 1  # writable data, readable code
            bad = system or (code and not flag)
            if which == 2:
                bad = bad or code or not flag or rpl != self.cpl or dpl != self.cpl
            elif not (code and (descriptor >> 42) & 1):
                bad = bad or dpl < max(rpl, self.cpl)
            if bad:
                raise Fault(GP, selector & ~3)
            if not (descriptor >> 47) & 1:
                raise Fault(SS if which == 2 else NP, selector & ~3)
            base = (descriptor >> 16 & 0xFFFFFF) | (descriptor >> 32 & 0xFF000000)
        self.selectors[which] = selector
        if which == 2:
            self.shadow = "movss"
        elif which == 4:
            self.fs_base = base
        elif which == 5:
            self.gs_base = base

    def load_task_register(self, selector: int) -> None:
        if selector & ~3 == 0:
            raise Fault(GP, 0)
        low = self._descriptor(selector)
        base, limit = self.gdt
        if (selector & ~7) + 15 > limit or (low >> 40) & 0x1F != 9:
            raise Fault(GP, selector & ~3)
        if not (low >> 47) & 1:
            raise Fault(NP, selector & ~3)
        where = (base + (selector & ~7)) & M64
        high = self.load(where + 8, 8, system=True)
        size = (low & 0xFFFF) | (low >> 32 & 0xF0000)
        if (low >> 55) & 1:
            size = size << 12 | 0xFFF
        self.tr_base = (low >> 16 & 0xFFFFFF) | (low >> 32 & 0xFF000000) | (high & 0xFFFFFFFF) << 32
        self.tr_limit = size
        self.tr_selector = selector
        self.store(where, 8, low | 2 << 40, system=True)  # busy

    # --- control registers ------------------------------------------------------------------

    def read_cr(self, number: int) -> int:
        return {
            0: self.cr0,
            2: self.cr2,
            3: self.memory.cr3,
            4: self.cr4,
            8: self.apic.tpr >> 4,
        }[number]

    def write_cr(self, number: int, value: int) -> None:
        if number == 0:
            pg, pe = value >> 31 & 1, value & 1
            nw, cd = value >> 29 & 1, value >> 30 & 1
            if value >> 32 or not pg or not pe or (nw and not cd):
                raise Fault(GP, 0)  # leaving long mode is outside the subset
            self.cr0 = self.memory.cr0 = value | 1 << 4
        elif number == 2:
            self.cr2 = value
        elif number == 3:
            if value >> 52:
                raise Fault(GP, 0)
            self.memory.cr3 = value
            self.memory.paging = value & ~0xFFF != 0
        elif number == 4:
            if value & ~0x107FF or not value & 1 << 5:  # bit 16 FSGSBASE
                raise Fault(GP, 0)
            self.cr4 = value
        else:
            if value >> 4:
                raise Fault(GP, 0)
            self.apic.tpr = value << 4

    # --- MSRs -------------------------------------------------------------------------------

    def rdmsr(self, msr: int) -> int:
        """The value of an MSR.  Raises: Gp."""
        if self.pmu.owns(msr):
            return self.pmu.rdmsr(msr)
        if 0x800 <= msr <= 0x8FF:
            return self.apic.read(msr - 0x800, self.tsc)
        if msr == 0x10:
            return self.tsc
        if msr == 0x1B:
            return self.apic.base
        if msr == 0x6E0:
            return self.apic.deadline
        if msr == 0xC0000080:
            return self.efer
        if msr == 0xC0000100:
            return self.fs_base
        if msr == 0xC0000101:
            return self.gs_base
        if msr in self.msrs:
            return self.msrs[msr]
        raise Gp

    def wrmsr(self, msr: int, value: int) -> None:
        """Raises: Gp for an unknown MSR, a reserved bit or a read-only one."""
        if self.pmu.owns(msr):
            self.pmu.wrmsr(msr, value)
        elif 0x800 <= msr <= 0x8FF:
            self.apic.write(msr - 0x800, value, self.tsc)
        elif msr == 0x10:
            self.tsc = value
        elif msr == 0x1B:
            self.apic.write_base(value)
        elif msr == 0x49:
            if value & ~1:
                raise Gp
        elif msr == 0x6E0:
            self.apic.write_deadline(value, self.tsc)
        elif msr == 0xC0000080:
            if value & ~0xD01 or (value ^ self.efer) & 0x100:
                raise Gp
            self.efer = self.memory.efer = value & ~0x400 | self.efer & 0x400
        elif msr in (0xC0000082, 0xC0000083, 0xC0000102):
            if not canonical(value):
                raise Gp
            self.msrs[msr] = value
        elif msr in (0xC0000100, 0xC0000101):
            if not canonical(value):
                raise Gp
            if msr == 0xC0000100:
                self.fs_base = value
            else:
                self.gs_base = value
        elif msr in (0xC0000084, 0xC0000103):
            if value >> 32:
                raise Gp
            self.msrs[msr] = value
        elif msr == 0x277:
            if any(b not in (0, 1, 4, 5, 6, 7) for b in value.to_bytes(8, "little")):
                raise Gp
            self.msrs[msr] = value
        elif msr in self.msrs:
            self.msrs[msr] = value
        else:
            raise Gp

    def rdpmc(self, ecx: int) -> int:
        """A counter as RDPMC at CPL 0 returns it.  Raises: Gp."""
        return self.pmu.rdpmc(ecx)

    # --- platform ---------------------------------------------------------------------------

    def is_apic_page(self, pa: int) -> bool:
        return (
            pa & ~0xFFF == APIC_PAGE
            and pa >= len(self.mem)
            and self.apic.base & 0xC00 == 0x800
        )

    def apic_page_read(self, pa: int, size: int) -> int:
        if (pa & 15) + size > 4:
            return 0
        word = self.apic.page_read((pa & 0xFF0) >> 4, self.tsc)
        return word >> 8 * (pa & 15) & (1 << 8 * size) - 1

    def apic_page_write(self, pa: int, size: int, value: int) -> None:
        if pa & 15 == 0 and size == 4:
            self.apic.page_write((pa & 0xFF0) >> 4, value, self.tsc)

    def port_in(self, port: int, width: int) -> int:
        if port == COM1 + 5:
            return 0x60  # transmitter empty
        if COM1 <= port < COM1 + 8:
            return 0
        return (1 << width) - 1

    def port_out(self, port: int, width: int, value: int) -> None:
        value &= (1 << width) - 1
        if port == DEBUG_EXIT:
            self.exit_code = value
            self.stop_reason = "exit"
        elif port == COM1:
            self.serial.append(value & 0xFF)

    def cpuid(self, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        """EAX, EBX, ECX, EDX; only the leaves that PMU code needs are meaningful."""
        s = self.shape
        if leaf == 0:
            return 0xA, 0x756E6547, 0x6C65746E, 0x49656E69
        if leaf == 1:
            return 0x000806F8, 0, 1 << 15 | 1 << 21 | 1 << 24, 1 << 5 | 1 << 9 | 1 << 19
        if leaf == 0xA:
            eax = s.version | s.gp << 8 | s.width << 16 | 8 << 24
            bitmap = (1 << s.fixed) - 1 if s.version >= 5 else 0
            edx = s.fixed | s.fixed_width << 5 if s.version >= 2 else 0
            return eax, 0, bitmap, edx | (1 << 15 if s.version >= 5 else 0)
        return 0, 0, 0, 0

    @property
    def counters(self) -> dict[str, int]:
        """Every counter by the names of the result JSON."""
        rows = {f"pmc{i}": v for i, v in enumerate(self.pmu.gp)}
        rows.update({f"fixed{i}": v for i, v in enumerate(self.pmu.fixed)})
        return rows
