# The mask bit of the guest's LVTPC is in hardware's while the guest runs.
#
#: modes passthrough
#: expect all: hw.lvtpc & 1 << 16 == 1 << 16

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        lapic_enable_x2apic
        wrmsr_const IA32_X2APIC_LVT_PMI, 0x10040
        debug_exit 0
