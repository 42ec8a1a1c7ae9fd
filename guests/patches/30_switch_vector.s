# What hardware's LVTPC holds while the guest runs: the vector of its own, unmasked as the guest has it.
#
#: modes passthrough
#: expect all: hw.lvtpc == 0xf5

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        lapic_enable_x2apic
        wrmsr_const IA32_X2APIC_LVT_PMI, 0x40
        debug_exit 0
