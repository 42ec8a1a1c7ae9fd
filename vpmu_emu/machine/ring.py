"""The trace ring only records: with it on or off the record of a run is the same."""

from __future__ import annotations

from vpmu_emu._jit import jit
from vpmu_emu.machine.conditions import event_holds
from vpmu_emu.machine.state import N_FAULTS, N_RING

TR_GUEST_RDMSR = 1  # a index, b value, c 1 if it left the guest
TR_GUEST_WRMSR = 2  # a index, b new value, c old value
TR_GUEST_RDPMC = 3  # a ECX, b value
TR_VM_EXIT = 4  # a reason, b qualification, c interruption information
TR_VM_ENTRY = 5  # a event that is injected
TR_HOST_WRMSR = 6  # a index, b value
TR_HOST_RDMSR = 7  # a index, b value
TR_HOST_RDPMC = 8  # a ECX, b value
TR_OVERFLOW = 9  # a counter (fixed ones are 32 + i)
TR_PMI_RAISE = 10  # a LVT entry, b GLOBAL_STATUS
TR_EXCEPTION = 11  # a vector, b error code, c CR2
TR_IRQ = 12  # a vector
TR_NMI = 13
TR_MSR_FAULT = 14  # a index, b value, c bit 0 a write, the bits above it why (GP_*)
TR_GUEST_WRMSR_BLIND = 15  # a index, b new value; the guest could not have read what was there
TR_PRIVILEGE = 16  # the instruction is #GP where it stands: a ACCESS_*, b CPL, ECX from bit 32 on, c CR4
TR_INTERCEPT = 17  # a index or ECX, b bit of the MSR bitmap or BY_*, c ACCESS_*, and 4 if it exits
TR_MSR_DROPPED = 18  # does nothing, and no #GP: a index, b value, c 1 for a write
TR_RDPMC_FAULT = 19  # no such counter: a ECX, b general-purpose and c fixed counters that there are
# An event is not delivered: a its vector, KIND_* << 8, GATE_* << 16, vector of what comes of it << 24;
# b low half of its gate; c limit of the IDT with GATE_LIMIT, else address of a page fault, else error code.
TR_UNDELIVERED = 20

ACCESS_RDMSR, ACCESS_WRMSR, ACCESS_RDPMC = range(3)
ACCESS_NAMES = ("rdmsr", "wrmsr", "rdpmc")
ACCESS_EXITS = 4
# What else than a bit of the MSR bitmap (byte * 8 + bit) decides whether an access exits.
BY_RANGE, BY_NO_BITMAP, BY_RDPMC_EXITING = 1 << 16, 1 << 17, 1 << 18

# Why RDMSR or WRMSR raises #GP.
GP_ABSENT = 2  # there is no such register
GP_READ_ONLY = 3
GP_WRITE_ONLY = 4
GP_RESERVED = 5  # the value has reserved bits
GP_ADDRESS = 6  # the value is an address, and not canonical
GP_VALUE = 7  # the register does not take this value now
GP_NOT_X2APIC = 8  # its APIC is not in x2APIC mode
GP_FILTER = 9  # the MSR filter of its VMM denies it
GP_USER_SPACE = 10  # the VMM was asked, and refuses it
GP_PASSED = 11  # KVM lets the guest do this by itself, and yet it came here
GP_NAMES = (
    "", "", "does not exist", "is read-only", "is write-only", "reserved bits", "address not canonical",
    "value not taken", "not in x2APIC mode", "denied by the MSR filter", "refused by the VMM",
    "passes by itself, and yet it exited",
)  # fmt: skip

MACHINE_KINDS = {
    TR_GUEST_RDMSR: "guest_rdmsr",
    TR_GUEST_WRMSR: "guest_wrmsr",
    TR_GUEST_RDPMC: "guest_rdpmc",
    TR_VM_EXIT: "vm_exit",
    TR_VM_ENTRY: "vm_entry",
    TR_HOST_WRMSR: "host_wrmsr",
    TR_HOST_RDMSR: "host_rdmsr",
    TR_HOST_RDPMC: "host_rdpmc",
    TR_OVERFLOW: "overflow",
    TR_PMI_RAISE: "pmi_raise",
    TR_EXCEPTION: "exception",
    TR_IRQ: "irq",
    TR_NMI: "nmi",
    TR_MSR_FAULT: "msr_fault",
    TR_GUEST_WRMSR_BLIND: "guest_wrmsr",
    TR_PRIVILEGE: "privilege",
    TR_INTERCEPT: "intercept",
    TR_MSR_DROPPED: "msr_dropped",
    TR_RDPMC_FAULT: "rdpmc_fault",
    TR_UNDELIVERED: "undelivered",
}

# Why an event does not get through its gate (SDM 3A 6.12.1).
GATE_LIMIT = 1  # beyond the limit of the IDT
GATE_READ = 2  # the gate cannot be read
GATE_TYPE = 3  # neither an interrupt gate nor a trap gate
GATE_DPL = 4  # INT n of a ring for which it is not
GATE_ABSENT = 5  # not present
GATE_CODE = 6  # its code segment
GATE_STACK = 7  # the stack that the TSS names
GATE_FRAME = 8  # the stack cannot be written

_MASK = N_RING - 1
_FAULTS_MASK = N_FAULTS - 1


@jit()
def _note_catch(E, kind, a, b, c):
    for k in range(E.n_catch):
        if E.catch_kind[k] == kind:
            if E.catch_condition[k] == 0 or event_holds(E, E.catch_condition[k] - 1, a, b, c):
                E.stop_request = 1


@jit()
def emit(E, t, kind, rip, a, b, c):
    """Append one event if tracing is on. Modifies E.ring."""
    if E.trace_on != 0:
        slot = E.ring[E.ring_head & _MASK]
        slot.t = t
        slot.kind = kind
        slot.cpu = E.cpu
        slot.rip = rip
        slot.a = a
        slot.b = b
        slot.c = c
        E.ring_head += 1
        if E.n_catch != 0:
            _note_catch(E, kind, a, b, c)


@jit()
def emit_fault(E, t, kind, rip, a, b, c):
    """The same for an event that a run may end with: it is kept in E.faults if tracing is off, too."""
    note = E.faults[E.faults_n & _FAULTS_MASK]
    note.t = t
    note.kind = kind
    note.cpu = E.cpu
    note.rip = rip
    note.a = a
    note.b = b
    note.c = c
    E.faults_n += 1
    emit(E, t, kind, rip, a, b, c)
