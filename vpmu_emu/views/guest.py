"""The processor as its program has it, on silicon or in a guest: where each part lies now. Only looks."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np

from vpmu_emu.machine.processor_flags import X86_EFLAGS_IF
from vpmu_emu.machine.vmcs import INTR_VALID, NMI_BLOCKING, PROC_MSR_BITMAPS, STI_BLOCKING
from vpmu_emu.tables.vmcs import ACTIVITY, BITS, FIELDS, VmcsField, vmcs_field
from vpmu_emu.views.registers import core_of

_SEGMENTS = ("ES", "CS", "SS", "DS", "FS", "GS")
_BITMAP_RANGES = (
    (0, 0x1FFF, 0),
    (0xC000_0000, 0xC000_1FFF, 0x400),
)  # SDM 3C 25.6.9: reads; writes + 0x800


@attrs.frozen
class Processor:
    """What decides what becomes of the next instruction and the next interrupt.

    Attributes:
        core: the core that it is on, -1 while its thread is on none.
        inside: whether its instructions run: never False without a hypervisor.
        cpl: privilege level.
        cr0, cr2, cr3, cr4, efer, rflags: the registers.
        selectors: es cs ss ds fs gs.
        idt, gdt: (base, limit).
        tr: selector of the task register.
        shadow: "STI" or "MOV SS" while interrupts wait for one more instruction, else "".
        nmi_blocked: whether NMIs wait for IRET.
        nmi_pending: NMIs that wait.
        halted: whether it waits for an interrupt.
        lapic: its local APIC, a record LAPIC.
    """

    core: int
    inside: bool
    cpl: int
    cr0: int
    cr2: int
    cr3: int
    cr4: int
    efer: int
    rflags: int
    selectors: tuple[int, ...]
    idt: tuple[int, int]
    gdt: tuple[int, int]
    tr: int
    shadow: str
    nmi_blocked: bool
    nmi_pending: int
    halted: bool
    lapic: Any

    @property
    def interrupts_on(self) -> bool:
        """RFLAGS.IF."""
        return bool(self.rflags & int(X86_EFLAGS_IF))


def _of_core(S: Any, k: int, core: int, inside: bool) -> Processor:
    it = S.cores[core]
    lapic = it.vapic if inside and int(it.vmx.nonroot) else it.lapic
    return Processor(
        core=core,
        inside=True,
        cpl=int(it.cpl),
        cr0=int(it.cr0),
        cr2=int(it.cr2),
        cr3=int(it.cr3),
        cr4=int(it.cr4),
        efer=int(it.efer),
        rflags=int(it.rflags),
        selectors=tuple(int(v) for v in it.selectors),
        idt=(int(it.idt_base), int(it.idt_limit)),
        gdt=(int(it.gdt_base), int(it.gdt_limit)),
        tr=int(it.tr),
        shadow=("", "STI", "MOV SS")[int(it.shadow)],
        nmi_blocked=bool(it.nmi_blocked),
        nmi_pending=int(S.vcpus[k].nmi_pending) if inside else int(it.nmi_pending),
        halted=int(it.activity) == 1,
        lapic=lapic,
    )


def processor(S: Any, M: np.ndarray[Any, Any], guest: bool, k: int = 0) -> Processor:
    """The processor of vCPU k if there is a hypervisor (`guest`), else core k."""
    if not guest:
        return _of_core(S, k, k, False)
    vcpu, core = S.vcpus[k], core_of(S, k)
    if core >= 0 and int(S.cores[core].vmx.nonroot):
        return _of_core(S, k, core, True)

    def field(name: str) -> int:
        return vmcs_value(M, int(vcpu.vmcs), vmcs_field(name))

    blocking = field("GUEST_INTERRUPTIBILITY_INFO")
    shadow = "STI" if blocking & int(STI_BLOCKING) else "MOV SS" if blocking & 2 else ""
    return Processor(
        core=core,
        inside=False,
        cpl=int(vcpu.cpl),
        cr0=field("GUEST_CR0"),
        cr2=int(S.cores[core].cr2 if core >= 0 else vcpu.cr2),
        cr3=field("GUEST_CR3"),
        cr4=field("GUEST_CR4"),
        efer=field("GUEST_IA32_EFER"),
        rflags=field("GUEST_RFLAGS"),
        selectors=tuple(field(f"GUEST_{name}_SELECTOR") for name in _SEGMENTS),
        idt=(field("GUEST_IDTR_BASE"), field("GUEST_IDTR_LIMIT")),
        gdt=(field("GUEST_GDTR_BASE"), field("GUEST_GDTR_LIMIT")),
        tr=field("GUEST_TR_SELECTOR"),
        shadow=shadow,
        nmi_blocked=bool(blocking & int(NMI_BLOCKING)),
        nmi_pending=int(vcpu.nmi_pending),
        halted=int(vcpu.mp_state) in (1, 2)
        or field("GUEST_ACTIVITY_STATE") == ACTIVITY["GUEST_ACTIVITY_HLT"],
        lapic=S.cores[core].vapic if core >= 0 else vcpu.vapic,
    )


# --- the VMCS -------------------------------------------------------------------------------------------
def vmcs_value(M: np.ndarray[Any, Any], page: int, field: VmcsField) -> int:
    """A field of the VMCS whose page lies at host offset `page`."""
    at = page + field.offset
    return int.from_bytes(M[at : at + 8].tobytes(), "little")


def vmcs_values(M: np.ndarray[Any, Any], page: int) -> list[tuple[VmcsField, int, str]]:
    """(field, value, names of the control bits that are set) of every field, by their numbers."""
    found = []
    for field in sorted(FIELDS, key=lambda f: f.encoding):
        value = vmcs_value(M, page, field)
        bits = BITS.get(field.name, {})
        words = " ".join(
            name for name, bit in sorted(bits.items(), key=lambda b: b[1]) if value >> bit & 1
        )
        found.append((field, value, words))
    return found


def is_valid(info: int) -> bool:
    """Whether interruption information says that there is an event."""
    return bool(info & int(INTR_VALID))


# --- the MSR bitmap -------------------------------------------------------------------------------------
def bitmap_place(index: int, writes: bool) -> tuple[int, int] | None:
    """(byte, bit) of an access in the MSR bitmap; None if it has none, and always exits."""
    for first, last, at in _BITMAP_RANGES:
        if first <= index <= last:
            return at + 0x800 * writes + (index - first >> 3), index - first & 7
    return None


def intercepted(S: Any, M: np.ndarray[Any, Any], k: int, index: int, writes: bool) -> bool:
    """Whether an access of vCPU k to an MSR exits now, by its own bitmap."""
    vcpu = S.vcpus[k]
    controls = vmcs_value(M, int(vcpu.vmcs), vmcs_field("CPU_BASED_VM_EXEC_CONTROL"))
    place = bitmap_place(index, writes)
    if place is None or not controls & int(PROC_MSR_BITMAPS):
        return True
    byte, bit = place
    return bool(int(M[int(vcpu.msr_bitmap) + byte]) >> bit & 1)
