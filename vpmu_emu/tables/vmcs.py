"""`isa/vmcs.toml` as frozen rows: the fields of a VMCS, where they lie, and its control bits."""

from __future__ import annotations

import tomllib

import attrs

from vpmu_emu.data import isa_dir
from vpmu_emu.tables.names import Names

_TABLE = tomllib.loads((isa_dir() / "vmcs.toml").read_text())

DATA_OFFSET = 64
"""Where the fields begin in the page, behind the revision and the abort indicator."""

WIDTHS = (16, 64, 32, 64)  # bits 14:13 of an encoding; "natural" is 64 bits here
GROUPS = ("control", "exit", "guest", "host")  # bits 11:10


@attrs.frozen
class VmcsField:
    """One field.

    Attributes:
        name: as in the kernel's asm/vmx.h.
        encoding: operand of VMREAD and VMWRITE (SDM 3C appendix B).
        offset: bytes from the start of the VMCS page; every field has eight.
    """

    name: str
    encoding: int
    offset: int

    @property
    def width(self) -> int:
        """Its bits, 16, 32 or 64."""
        return WIDTHS[self.encoding >> 13 & 3]

    @property
    def group(self) -> str:
        """One of `GROUPS`; fields of "exit" cannot be written."""
        return GROUPS[self.encoding >> 10 & 3]


FIELDS: tuple[VmcsField, ...] = tuple(
    VmcsField(row["name"], row["encoding"], DATA_OFFSET + 8 * i)
    for i, row in enumerate(_TABLE["field"])
)

_FIELDS = Names("VMCS field", ((field.name, field) for field in FIELDS))

BITS: dict[str, dict[str, int]] = _TABLE["bits"]
"""Bit numbers of the control fields: field name -> name as in the kernel -> bit."""

INTR_TYPES: dict[str, int] = _TABLE["types"]
"""Bits 10:8 of the interruption information."""

ACTIVITY: dict[str, int] = _TABLE["activity"]
"""Values of GUEST_ACTIVITY_STATE."""

_BITS = Names(
    "VMX control bit", ((name, bit) for bits in BITS.values() for name, bit in bits.items())
)


def vmcs_field(name: str) -> VmcsField:
    """The field of this name.

    Raises:
        UnknownNameError: no such field; the message names the nearest.
    """
    return _FIELDS[name]


def control_bit(name: str) -> int:
    """The bit number of a control, such as "CPU_BASED_RDPMC_EXITING" -> 11.

    Raises:
        UnknownNameError: no such bit; the message names the nearest.
    """
    return _BITS[name]
