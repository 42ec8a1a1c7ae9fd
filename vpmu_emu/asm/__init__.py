"""Text to Program; never runs anything."""

from vpmu_emu.asm.assembler import assemble, assemble_file, with_defsym
from vpmu_emu.asm.elf import write_elf
from vpmu_emu.asm.errors import Diagnostic
from vpmu_emu.asm.listing import listing
from vpmu_emu.asm.program import Expectation, Line, Program, Segment

__all__ = [
    "Diagnostic",
    "Expectation",
    "Line",
    "Program",
    "Segment",
    "assemble",
    "assemble_file",
    "listing",
    "with_defsym",
    "write_elf",
]
