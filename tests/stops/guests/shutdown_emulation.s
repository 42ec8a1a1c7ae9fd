# KVM cannot emulate it.
#~ modes none
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
_start: FEP
        iretq
#= shutdown at rip 0x100005 (shutdown_emulation.s:7)
#= why: KVM has to emulate this instruction, and its emulator cannot (exit reason EXCEPTION_NMI, KVM_EXIT_INTERNAL_ERROR 1)
