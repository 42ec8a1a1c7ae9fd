"""Physical addresses where no memory lies: the page of the local APIC, and a bus that nobody drives.

SDM volume 3, section 11.4.1. These pages are never in the TLB. In a guest every access to them leaves it:
an emulator, which sets `E.emulating`, makes the access to the guest's own APIC, or notes it for the VMM.
"""

from __future__ import annotations

from vpmu_emu._jit import jit
from vpmu_emu.machine import msr_index
from vpmu_emu.machine.lapic import (
    BASE_RESET,
    INIT_TO_SELF,
    NMI_TO_SELF,
    lapic_mmio_read,
    lapic_mmio_write,
)
from vpmu_emu.machine.physical import ACCESS_FETCH, ACCESS_WRITE, NOWHERE, UNBACKED, physical
from vpmu_emu.machine.pmu import pmi_arrives
from vpmu_emu.machine.state import CODE_EDGE, CODE_EXIT, CODE_NEXT, N_MMIO, STOP_RESET
from vpmu_emu.machine.u64 import ALL, ONE, PAGE_BASE, PAGE_MASK, U2, U3, U4, U12, U64, ZERO
from vpmu_emu.tables.cpus import LATENCIES
from vpmu_emu.tables.exits import exit_number

OFF_RAM = U64((1 << 64) - 2)  # translated, but no memory lies there
LAT_MSR = LATENCIES.index("msr")
EXIT_APIC_ACCESS = U64(exit_number("APIC_ACCESS"))
EXIT_EPT_VIOLATION = U64(exit_number("EPT_VIOLATION"))
EXIT_EPT_MISCONFIG = U64(exit_number("EPT_MISCONFIG"))
FAULT_EPT = 256  # E.fault_vector: no exception, the guest is left with an EPT violation
_DEFAULT_PAGE = BASE_RESET & msr_index.MSR_IA32_APICBASE_BASE
_BITS = U64(64)


@jit()
def is_apic_page(core, gpa):
    """Whether the running program's local APIC answers at a physical address: xAPIC mode, its page."""
    base = core.vapic.apic_base if core.vmx.nonroot != 0 else core.lapic.apic_base
    return (
        base & (msr_index.MSR_IA32_APICBASE_ENABLE | msr_index.X2APIC_ENABLE)
        == msr_index.MSR_IA32_APICBASE_ENABLE
        and gpa & PAGE_BASE == base & msr_index.MSR_IA32_APICBASE_BASE
    )


@jit()
def is_mapped(core, gpa):
    """Whether the identity map without page tables has this page, though no memory lies there."""
    return gpa & PAGE_BASE == _DEFAULT_PAGE or is_apic_page(core, gpa)


@jit()
def ept_violation(E, gpa, access):
    """Note that a guest's access to a slot meets nothing of its VMM; the instruction at hand is undone.

    E.fault_error is the exit qualification (SDM 3C table 28-7).
    """
    E.fault_vector = FAULT_EPT
    E.fault_has_error = 0
    E.fault_canonical = 1
    E.fault_address = gpa
    E.fault_error = ONE
    if access == ACCESS_WRITE:
        E.fault_error = U2
    elif access == ACCESS_FETCH:
        E.fault_error = U4


@jit()
def note_ept_violation(core, E):
    """The guest is about to be left for the EPT violation that is noted in E."""
    vmx = core.vmx
    vmx.exit_reason = EXIT_EPT_VIOLATION
    vmx.exit_qual = E.fault_error
    vmx.exit_intr_info = ZERO
    vmx.exit_intr_err = ZERO
    vmx.exit_insn_len = ZERO


@jit()
def locate(core, M, E, gpa, access):
    """Host offset of a physical address; OFF_RAM with E.bus_address set where no memory answers.

    NOWHERE with an EPT violation noted in E where a guest's VMM has nothing. An emulator takes that for
    a device of the VMM (KVM's emulator_read_write_onepage()).
    """
    if not is_apic_page(core, gpa):
        p = physical(core, M, gpa, access)
        if p == UNBACKED and E.emulating == 0:
            ept_violation(E, gpa, access)
            return NOWHERE
        if p != NOWHERE and p != UNBACKED:
            return p
    E.bus_address = gpa
    return OFF_RAM


@jit()
def _leaves(core, E, writes):
    """Whether this access is one of a guest, which a hypervisor has to make: then the exit is noted."""
    if core.vmx.nonroot == 0 or E.emulating != 0:
        return False
    vmx = core.vmx
    vmx.exit_reason = EXIT_EPT_MISCONFIG
    vmx.exit_qual = ZERO
    if vmx.apicv != 0 and is_apic_page(core, E.bus_address):
        # SDM 3C table 28-6: offset, and a linear access that reads or writes
        vmx.exit_reason = EXIT_APIC_ACCESS
        vmx.exit_qual = (E.bus_address & PAGE_MASK) | (writes << U12)
    vmx.exit_intr_info = ZERO
    vmx.exit_intr_err = ZERO
    vmx.exit_insn_len = ZERO
    return True


@jit()
def _mmio_read(E, gpa, size):
    # (code, value) of a read that only the VMM can answer: until it has, the instruction cannot go on.
    k = E.mmio_next
    if k < E.mmio_reads:
        E.mmio_next += 1
        return CODE_NEXT, E.mmio_read[k] & (ALL >> (_BITS - (size << U3)))
    if k >= N_MMIO:
        return CODE_NEXT, ALL >> (_BITS - (size << U3))
    E.mmio_gpa[0] = gpa
    E.mmio_len[0] = size
    E.mmio_asks = 1
    return CODE_EXIT, ZERO


@jit()
def _mmio_write(E, gpa, size, value):
    # The instruction goes on; its VMM is told when it is over.
    k = E.mmio_writes
    if k < N_MMIO:
        E.mmio_gpa[k] = gpa
        E.mmio_len[k] = size
        E.mmio_data[k] = value & (ALL >> (_BITS - (size << U3)))
        E.mmio_writes += 1


@jit()
def _is_device(core, E, gpa):
    """Whether an emulator meets something there that only its VMM may have."""
    return E.emulating != 0 and (E.emulating == 2 or not is_apic_page(core, gpa))


@jit()
def bus_read(core, E, size):
    """(code, value) of `size` bytes at E.bus_address; where nobody drives the bus all bits are 1."""
    if _leaves(core, E, ZERO):
        return CODE_EXIT, ZERO
    if _is_device(core, E, E.bus_address):
        return _mmio_read(E, E.bus_address, size)
    if is_apic_page(core, E.bus_address):
        core.t += core.latency[LAT_MSR]
        offset = E.bus_address & PAGE_MASK
        if core.vmx.nonroot != 0:
            return CODE_NEXT, lapic_mmio_read(core, core.vapic, offset, size)
        return CODE_NEXT, lapic_mmio_read(core, core.lapic, offset, size)
    return CODE_NEXT, ALL >> (_BITS - (size << U3))


@jit()
def bus_read_part(core, E, gpa, size):
    """(code, value) of a read that goes on in another page: no local APIC answers a part."""
    E.bus_address = gpa
    if _leaves(core, E, ZERO):
        return CODE_EXIT, ZERO
    if _is_device(core, E, gpa):
        return _mmio_read(E, gpa, size)
    return CODE_NEXT, ALL >> (_BITS - (size << U3))


@jit()
def bus_write_part(core, E, gpa, size, value):
    """code of a write that goes on in another page."""
    E.bus_address = gpa
    if _leaves(core, E, ONE):
        return CODE_EXIT
    if _is_device(core, E, gpa):
        _mmio_write(E, gpa, size, value)
    return CODE_NEXT


@jit()
def bus_write(core, E, size, value):
    """code of storing `size` bytes at E.bus_address: what an APIC is told may change what comes next."""
    if _leaves(core, E, ONE):
        return CODE_EXIT
    if _is_device(core, E, E.bus_address):
        _mmio_write(E, E.bus_address, size, value)
        return CODE_NEXT
    if is_apic_page(core, E.bus_address):
        core.t += core.latency[LAT_MSR]
        if core.pmu.pmi_at <= core.t:
            pmi_arrives(core, E)  # before what is written has an effect
        offset = E.bus_address & PAGE_MASK
        if core.vmx.nonroot != 0:
            E.apic_effect = lapic_mmio_write(core, core.vapic, offset, size, value)
        else:
            note_ipi(core, lapic_mmio_write(core, core.lapic, offset, size, value))
        return CODE_EDGE
    return CODE_NEXT


@jit()
def note_ipi(core, effect):
    """What a write to the core's own APIC did to the core itself. Modifies core."""
    if effect == NMI_TO_SELF:
        core.nmi_pending = 1
    elif effect == INIT_TO_SELF:
        # INIT starts the firmware, and there is none.
        core.stop = STOP_RESET
