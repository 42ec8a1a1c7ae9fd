# An exception whose frame goes to a device.
#~ modes none
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
_start: load_idt
        set_gate 6, there
        mov esp, 0xfee00100
there:  ud2
        idt_storage
#= shutdown at rip 0x100043 (shutdown_delivery.s:9)
#= why: an exception or interrupt was being delivered to where only the VMM may have something, and KVM cannot emulate that (exit reason APIC_ACCESS, KVM_EXIT_INTERNAL_ERROR 3)
