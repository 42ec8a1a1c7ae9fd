"""The local APIC, the same for silicon and for a guest's virtual-APIC page: functions on one record.

SDM volume 3, chapter 11. Registers are named by their x2APIC MSR index, which is 0x800 + offset / 16 of
the xAPIC page. The timer counts cycles of its own clock (the crystal's; in a guest 1 GHz, as KVM has it),
divided by the divide configuration; deadlines of the TSC are absolute times, so nothing ticks. There is one
core: messages to others go nowhere, which no sender can see.
"""

from __future__ import annotations

import numpy as np

from vpmu_emu._jit import jit
from vpmu_emu.machine import msr_index
from vpmu_emu.machine.bits import highest_bit
from vpmu_emu.machine.clock import later, ticks, time_of_tick, time_of_tsc, tsc_at
from vpmu_emu.machine.state import BEYOND, NEVER
from vpmu_emu.machine.u64 import (
    ALL,
    BYTE,
    LOW32,
    ONE,
    U3,
    U4,
    U7,
    U8,
    U16,
    U24,
    U32,
    U56,
    U64,
    U64_BITS,
    WORD,
    ZERO,
)
from vpmu_emu.tables.msrs import ACCESS_RO, ACCESS_WO, MSRS, reset_of

LVT_CMCI, LVT_TIMER, LVT_THERMAL, LVT_PMI, LVT_LINT0, LVT_LINT1, LVT_ERROR = range(7)

BASE_RESET = U64(reset_of("IA32_APIC_BASE"))  # enabled, bootstrap processor, xAPIC
VERSION = np.array([reset_of("IA32_X2APIC_VERSION", side) for side in ("hw", "kvm")], dtype=np.uint64)
"""7 LVT entries, version 0x15; of KVM's 6 (no CMCI), version 0x14."""
_SPIV_RESET = U64(reset_of("IA32_X2APIC_SIVR"))
_HIGH32 = U64(0xFFFF_FFFF_0000_0000)
_LDR = U64(0xFF00_0000)
_DFR_FLAT = U64(0xF000_0000)
_DFR_ONES = U64(0x0FFF_FFFF)
_NIBBLE = U64(15)
_SLOT = U64(15)  # a register of the page has 16 bytes, of which 4 are used
_INDEX = U64(63)
_CLASS = U64(0xF0)
_FIRST_LVT = U64(0x831)  # LVT_TIMER is entry 1
# row of the MSR table by index - 0x800: reserved bits and direction hold for the page too
APIC_BASE_MSR = U64(0x800)
APIC_LAST_MSR = U64(0x8FF)
_ROWS = np.full(64, -1, dtype=np.int64)
for _k, _row in enumerate(MSRS):
    for _n in range(_row.count):
        if 0 <= _row.index + _n * _row.stride - int(APIC_BASE_MSR) < len(_ROWS):
            _ROWS[_row.index + _n * _row.stride - int(APIC_BASE_MSR)] = _k
_DFR = U64(0x80E)
_ICR2 = U64(0x831)

# What a register keeps of a write, by index - 0x800. Reserved bits of silicon are #GP before.
_KEPT = np.full((2, 64), (1 << 64) - 1, dtype=np.uint64)
_LVT = range(0x32, 0x38)
# delivery status and remote IRR are read-only
_KEPT[0, [0x2F, *_LVT]] ^= msr_index.APIC_SEND_PENDING | msr_index.APIC_LVT_REMOTE_IRR
# kvm_lapic_reg_write(), apic_lvt_mask[]: pending bit and all, as written
_KEPT[1, 0x0F] = 0x3FF
_KEPT[1, 0x3E] = 0xB
_KEPT[1, _LVT] = [0x110FF, 0x117FF, 0x117FF, 0x1F7FF, 0x1F7FF, 0x110FF]

# results of a write
WRITTEN = 0
WRITE_FAULT = 1  # #GP
NMI_TO_SELF = 2
INIT_TO_SELF = 3

# results of delivering an LVT entry
LVT_DROPPED = 0
LVT_FIXED = 1
LVT_NMI = 2


@jit()
def is_x2apic_msr(index):
    """Whether an MSR number is one of the 256 that are the local APIC's."""
    return index >= APIC_BASE_MSR and index <= APIC_LAST_MSR


@jit()
def lapic_reset(lapic, ident):
    """Power-up state (SDM 3A 11.4.7.1): xAPIC mode, software-disabled, every LVT entry masked."""
    lapic.apic_base = BASE_RESET
    lapic.id = ident
    lapic.tpr = ZERO
    lapic.spiv = _SPIV_RESET
    lapic.esr = ZERO
    lapic.icr = ZERO
    lapic.ldr = ZERO
    lapic.dfr = LOW32
    for i in range(4):
        lapic.irr[i] = ZERO
        lapic.isr[i] = ZERO
    for i in range(7):
        lapic.lvt[i] = msr_index.APIC_LVT_MASKED
    lapic.divide = ZERO
    lapic.init_count = ZERO
    lapic.tsc_deadline = ZERO
    lapic.timer_start = 0
    lapic.timer_at = NEVER


@jit()
def lapic_set_irr(lapic, vector):
    """Request `vector` (int64, 16 to 255)."""
    lapic.irr[vector >> 6] |= ONE << U64(vector & 63)


@jit()
def _highest(bits):
    for k in range(4):
        word = bits[3 - k]
        if word != ZERO:
            return highest_bit(word) + 64 * (3 - k)
    return -1


@jit()
def lapic_ppr(lapic):
    """Processor priority (SDM 3A 11.8.3.1)."""
    serving = _highest(lapic.isr)
    if serving < 0:
        return lapic.tpr
    in_service = U64(serving) & _CLASS
    if lapic.tpr & _CLASS >= in_service:
        return lapic.tpr
    return in_service


@jit()
def lapic_pending(lapic):
    """The vector that the core would take now, -1 if none is above the processor priority.

    What was requested before a software disable is still taken (SDM 3A 11.4.7.2).
    """
    vector = _highest(lapic.irr)
    if vector < 0:
        return -1
    if U64(vector) & _CLASS > lapic_ppr(lapic) & _CLASS:
        return vector
    return -1


@jit()
def lapic_ack(lapic, vector):
    """The core takes `vector`: from requested to in service."""
    mask = ONE << U64(vector & 63)
    lapic.irr[vector >> 6] &= ~mask
    lapic.isr[vector >> 6] |= mask


@jit()
def lapic_put_back(lapic, vector):
    """`vector` was taken and could not be delivered: it is requested again."""
    mask = ONE << U64(vector & 63)
    lapic.isr[vector >> 6] &= ~mask
    lapic.irr[vector >> 6] |= mask


@jit()
def lapic_eoi(lapic):
    """End the highest interrupt in service."""
    vector = _highest(lapic.isr)
    if vector >= 0:
        lapic.isr[vector >> 6] &= ~(ONE << U64(vector & 63))


@jit()
def lapic_lvt_message(lapic, which):
    """What entry `which` makes of its interrupt: LVT_DROPPED, LVT_FIXED, LVT_NMI; the caller pends it."""
    entry = lapic.lvt[which]
    if (
        entry & msr_index.APIC_LVT_MASKED != ZERO
        or lapic.apic_base & msr_index.MSR_IA32_APICBASE_ENABLE == ZERO
    ):
        return LVT_DROPPED
    mode = entry & msr_index.APIC_MODE_MASK
    if which == LVT_PMI:
        # SDM 3B 20.2.4: handling a performance-monitoring interrupt sets the entry's mask.
        lapic.lvt[which] = entry | msr_index.APIC_LVT_MASKED
    if mode == msr_index.APIC_DM_NMI:
        return LVT_NMI
    if mode == msr_index.APIC_DM_FIXED:
        return LVT_FIXED if entry & BYTE >= U16 else LVT_DROPPED
    return LVT_DROPPED


@jit()
def lapic_deliver_lvt(lapic, which):
    """Deliver local interrupt `which` at once: the same, and only LVT_NMI is left to the caller to pend."""
    vector = np.int64(lapic.lvt[which] & BYTE)
    sent = lapic_lvt_message(lapic, which)
    if sent == LVT_FIXED:
        lapic_set_irr(lapic, vector)
    return sent


@jit()
def _divisor_shift(lapic):
    # bits 3,1,0 of the register: 0 by 2, 1 by 4 ... 6 by 128, 7 by 1
    code = (lapic.divide & U3) | ((lapic.divide & U8) >> ONE)
    return np.int64((code + ONE) & U7)


@jit()
def _count_time(lapic):
    # How long the timer takes for its initial count, in 1/16 cycle.
    counts = lapic.init_count << U64(_divisor_shift(lapic))
    return time_of_tick(counts, lapic.clock_num, lapic.clock_den)


@jit()
def _start_count(core, lapic):
    lapic.timer_start = core.t
    if lapic.init_count == ZERO:
        lapic.timer_at = NEVER
    else:
        lapic.timer_at = later(core.t, _count_time(lapic))


@jit()
def lapic_set_deadline(core, lapic, deadline, offset):
    """WRMSR to IA32_TSC_DEADLINE; `offset` is what this APIC's owner adds to the core's TSC.

    The timer fires at the first time at which that sum has reached the deadline.
    """
    if lapic.lvt[LVT_TIMER] & msr_index.APIC_LVT_TIMER_MASK != msr_index.APIC_LVT_TIMER_TSCDEADLINE:
        return  # SDM 3A 11.5.4.1: ignored in the other timer modes
    lapic.tsc_deadline = deadline
    if deadline == ZERO:
        lapic.timer_at = NEVER
        return
    now = tsc_at(core, core.t)
    if deadline <= now + offset:
        lapic.timer_at = core.t
    else:
        at = now + (deadline - (now + offset))
        lapic.timer_at = time_of_tsc(core, at) if at > now else BEYOND


@jit()
def lapic_timer_expire(core, lapic):
    """The timer has run out at or before now: request its interrupt, rearm it if periodic."""
    mode = lapic.lvt[LVT_TIMER] & msr_index.APIC_LVT_TIMER_MASK
    if mode == msr_index.APIC_LVT_TIMER_PERIODIC and lapic.init_count != ZERO:
        period = _count_time(lapic)
        lapic.timer_start = lapic.timer_at
        lapic.timer_at = lapic.timer_at + period
        if lapic.timer_at <= core.t:
            lapic.timer_at = core.t + period  # ticks that were missed merge into one request
    else:
        lapic.timer_at = NEVER
        lapic.tsc_deadline = ZERO
    return lapic_deliver_lvt(lapic, LVT_TIMER)


@jit()
def _x2apic_ldr(lapic):
    return ((lapic.id >> U4) << U16) | (ONE << (lapic.id & _NIBBLE))


@jit()
def is_destination(source, lapic, icr):
    """Whether a message without shorthand that `source` sends names `lapic` (SDM 3A 11.6.2, 11.12.10).

    The sender's mode says how wide the destination is, the receiver's what its logical name is.
    """
    wide = source.apic_base & msr_index.X2APIC_ENABLE != ZERO
    dest = icr >> U32 if wide else icr >> U56
    if dest == (LOW32 if wide else BYTE):
        return True
    if icr & msr_index.APIC_DEST_LOGICAL == ZERO:
        return dest == lapic.id
    if lapic.apic_base & msr_index.X2APIC_ENABLE != ZERO:
        ldr = _x2apic_ldr(lapic)
        return dest >> U16 == ldr >> U16 and dest & ldr & WORD != ZERO
    ldr = lapic.ldr >> U24
    if lapic.dfr & _DFR_FLAT == _DFR_FLAT:
        return dest & ldr != ZERO
    return dest >> U4 == ldr >> U4 and dest & ldr & _NIBBLE != ZERO


@jit()
def lapic_accept(lapic, vector):
    """A message asks for `vector`: a software-disabled APIC takes no fixed interrupt (SDM 3A 11.4.7.2).

    Vectors below 16 are illegal.
    """
    if vector >= U16 and lapic.spiv & msr_index.APIC_SPIV_APIC_ENABLED != ZERO:
        lapic_set_irr(lapic, np.int64(vector))


@jit()
def is_deassert(icr):
    """Whether an INIT message is the level de-assert of old buses, which does nothing."""
    return icr & (msr_index.APIC_INT_LEVELTRIG | msr_index.APIC_INT_ASSERT) == msr_index.APIC_INT_LEVELTRIG


@jit()
def _send(lapic, icr):
    """Send the message in ICR: WRITTEN, or what it does to this core."""
    shorthand = icr & msr_index.APIC_SHORT_MASK
    if shorthand == msr_index.APIC_DEST_ALLBUT or (
        shorthand == ZERO and not is_destination(lapic, lapic, icr)
    ):
        return WRITTEN
    mode = icr & msr_index.APIC_MODE_MASK
    if mode == msr_index.APIC_DM_NMI:
        return NMI_TO_SELF
    if mode == msr_index.APIC_DM_INIT and not is_deassert(icr):
        return INIT_TO_SELF
    if mode == msr_index.APIC_DM_FIXED or mode == msr_index.APIC_DM_LOWEST:
        lapic_accept(lapic, icr & BYTE)
    return WRITTEN  # SMI, and SIPI of a core that does not wait for it


@jit()
def lapic_read(core, lapic, index):
    """RDMSR of an x2APIC register that exists and may be read."""
    if index == msr_index.IA32_X2APIC_APICID:
        return lapic.id
    if index == msr_index.IA32_X2APIC_VERSION:
        return VERSION[lapic.software]
    if index == msr_index.IA32_X2APIC_TPR:
        return lapic.tpr
    if index == msr_index.IA32_X2APIC_PPR:
        return lapic_ppr(lapic)
    if index == msr_index.IA32_X2APIC_LDR:
        return _x2apic_ldr(lapic)
    if index == msr_index.IA32_X2APIC_SIVR:
        return lapic.spiv
    if index >= msr_index.IA32_X2APIC_ISR0 and index < msr_index.IA32_X2APIC_ISR0 + U8:
        k = index - msr_index.IA32_X2APIC_ISR0
        return (lapic.isr[k >> ONE] >> ((k & ONE) * U32)) & LOW32
    if index >= msr_index.IA32_X2APIC_IRR0 and index < msr_index.IA32_X2APIC_IRR0 + U8:
        k = index - msr_index.IA32_X2APIC_IRR0
        return (lapic.irr[k >> ONE] >> ((k & ONE) * U32)) & LOW32
    if index == msr_index.IA32_X2APIC_ESR:
        return lapic.esr
    if index == msr_index.IA32_X2APIC_LVT_CMCI:
        return lapic.lvt[LVT_CMCI]
    if index == msr_index.IA32_X2APIC_ICR:
        return lapic.icr
    if index >= msr_index.IA32_X2APIC_LVT_TIMER and index <= msr_index.IA32_X2APIC_LVT_ERROR:
        return lapic.lvt[index - _FIRST_LVT]
    if index == msr_index.IA32_X2APIC_INIT_COUNT:
        return lapic.init_count
    if index == msr_index.IA32_X2APIC_CUR_COUNT:
        if (
            lapic.timer_at == NEVER
            or lapic.lvt[LVT_TIMER] & msr_index.APIC_LVT_TIMER_MASK
            == msr_index.APIC_LVT_TIMER_TSCDEADLINE
        ):
            return ZERO
        left = ticks(U64(max(lapic.timer_at - core.t, 0)), lapic.clock_num, lapic.clock_den)
        return left >> U64(_divisor_shift(lapic))
    if index == msr_index.IA32_X2APIC_DIV_CONF:
        return lapic.divide
    return ZERO


@jit()
def lapic_write(core, lapic, index, value):
    """WRMSR to an x2APIC register: WRITTEN, WRITE_FAULT, NMI_TO_SELF or INIT_TO_SELF."""
    kept = _KEPT[lapic.software, (index - APIC_BASE_MSR) & _INDEX]
    if index == msr_index.IA32_X2APIC_TPR:
        lapic.tpr = value & BYTE
    elif index == msr_index.IA32_X2APIC_EOI:
        if value != ZERO and lapic.software == 0:
            return WRITE_FAULT
        lapic_eoi(lapic)
    elif index == msr_index.IA32_X2APIC_SIVR:
        lapic.spiv = value & kept
        if value & msr_index.APIC_SPIV_APIC_ENABLED == ZERO:
            for i in range(7):  # SDM 3A 11.4.7.2: software-disabled forces every mask
                lapic.lvt[i] |= msr_index.APIC_LVT_MASKED
    elif index == msr_index.IA32_X2APIC_ESR:
        if value != ZERO:
            return WRITE_FAULT
        lapic.esr = ZERO
    elif index == msr_index.IA32_X2APIC_LVT_CMCI:
        value &= kept
        lapic.lvt[LVT_CMCI] = (
            value
            if lapic.spiv & msr_index.APIC_SPIV_APIC_ENABLED != ZERO
            else value | msr_index.APIC_LVT_MASKED
        )
    elif index == msr_index.IA32_X2APIC_ICR:
        value &= ~msr_index.APIC_SEND_PENDING
        lapic.icr = value
        # A hypervisor looks for the other vCPUs itself.
        if (
            core.cores > 1 or core.kernel != 0
        ) and value & msr_index.APIC_SHORT_MASK != msr_index.APIC_DEST_SELF:
            lapic.ipi_out = 1
        return _send(lapic, value)
    elif index >= msr_index.IA32_X2APIC_LVT_TIMER and index <= msr_index.IA32_X2APIC_LVT_ERROR:
        if index == msr_index.IA32_X2APIC_LVT_TIMER:
            kept |= lapic.timer_mode_mask
        value &= kept
        if lapic.spiv & msr_index.APIC_SPIV_APIC_ENABLED == ZERO:
            value = value | msr_index.APIC_LVT_MASKED
        if index == msr_index.IA32_X2APIC_LVT_TIMER:
            old = lapic.lvt[LVT_TIMER] & msr_index.APIC_LVT_TIMER_MASK
            new = value & msr_index.APIC_LVT_TIMER_MASK
            if old != new and (
                old == msr_index.APIC_LVT_TIMER_TSCDEADLINE or new == msr_index.APIC_LVT_TIMER_TSCDEADLINE
            ):
                # SDM 3A 11.5.4.1: changing to or from the mode disarms; apic_update_lvtt()
                lapic.timer_at = NEVER
                lapic.tsc_deadline = ZERO
                lapic.init_count = ZERO
        lapic.lvt[index - _FIRST_LVT] = value
    elif index == msr_index.IA32_X2APIC_INIT_COUNT:
        if lapic.lvt[LVT_TIMER] & msr_index.APIC_LVT_TIMER_MASK != msr_index.APIC_LVT_TIMER_TSCDEADLINE:
            lapic.init_count = value & LOW32
            _start_count(core, lapic)
    elif index == msr_index.IA32_X2APIC_DIV_CONF:
        lapic.divide = value & kept
        if (
            lapic.timer_at != NEVER
            and lapic.lvt[LVT_TIMER] & msr_index.APIC_LVT_TIMER_MASK
            != msr_index.APIC_LVT_TIMER_TSCDEADLINE
        ):
            _start_count(core, lapic)
    elif index == msr_index.IA32_X2APIC_SELF_IPI:
        lapic_accept(lapic, value & BYTE)
    else:
        return WRITE_FAULT
    return WRITTEN


# --- the xAPIC page ---------------------------------------------------------------------------------------
@jit()
def lapic_mmio_read(core, lapic, offset, size):
    """Read `size` bytes at `offset` of the page.

    The manual leaves open what other than an aligned 32-bit access does: parts of the four bytes of a
    register read as such, everything else as 0, which is what KVM does.
    """
    if (offset & _SLOT) + size > U4:
        return ZERO
    index = APIC_BASE_MSR + (offset >> U4)
    value = ZERO
    if index == msr_index.IA32_X2APIC_APICID:
        value = lapic.id << U24
    elif index == msr_index.IA32_X2APIC_LDR:
        value = lapic.ldr
    elif index == _DFR:
        value = lapic.dfr
    elif index == _ICR2:
        value = lapic.icr >> U32
    elif index <= msr_index.IA32_X2APIC_SELF_IPI:
        row = _ROWS[index - APIC_BASE_MSR]
        if index == msr_index.IA32_X2APIC_LVT_CMCI and lapic.software != 0:
            row = -1
        if row >= 0 and core.msr_access[row] != ACCESS_WO:
            value = lapic_read(core, lapic, index) & LOW32
    return (value >> ((offset & U3) << U3)) & (ALL >> (U64_BITS - (size << U3)))


@jit()
def lapic_mmio_write(core, lapic, offset, size, value):
    """Write to the page: as lapic_write, but nothing faults. Reserved bits are dropped.

    Anything but an aligned 32-bit access is dropped as KVM does; the manual leaves it open.
    """
    index = APIC_BASE_MSR + (offset >> U4)
    if size != U4 or offset & _SLOT != ZERO or index >= msr_index.IA32_X2APIC_SELF_IPI:
        return WRITTEN
    if index == msr_index.IA32_X2APIC_LDR:
        lapic.ldr = value & _LDR
    elif index == _DFR:
        lapic.dfr = (value & _DFR_FLAT) | _DFR_ONES
    elif index == _ICR2:
        lapic.icr = (lapic.icr & LOW32) | ((value & _LDR) << U32)
    elif index == msr_index.IA32_X2APIC_EOI or index == msr_index.IA32_X2APIC_ESR:
        return lapic_write(core, lapic, index, ZERO)
    else:
        row = _ROWS[index - APIC_BASE_MSR]
        if index == msr_index.IA32_X2APIC_LVT_CMCI and lapic.software != 0:
            row = -1
        if row >= 0 and core.msr_access[row] != ACCESS_RO:
            if lapic.software == 0:
                value &= ~core.msr_reserved[row]
            value &= LOW32
            if index == msr_index.IA32_X2APIC_ICR:
                value |= lapic.icr & _HIGH32
            return lapic_write(core, lapic, index, value)
    return WRITTEN
