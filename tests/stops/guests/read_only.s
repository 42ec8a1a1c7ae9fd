# A write to a register that can only be read.
#~ modes bare emulated
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
_start: wrmsr_const IA32_PERF_GLOBAL_STATUS, 1
        debug_exit 0
#= triple fault, first exception vector 13 at rip 0x10000f (read_only.s:6)
#= why: wrmsr IA32_PERF_GLOBAL_STATUS (0x38e) = 0x1: is read-only: #GP(0)
#= why: #GP is not delivered: no IDT is loaded: #DF(0)
#= why: #DF is not delivered: no IDT is loaded: a triple fault
