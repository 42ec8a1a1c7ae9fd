# The VMM denies the access by its MSR filter.
#~ modes emulated passthrough
#~ args --msr-filter deny.toml
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
_start: mov ecx, IA32_PERFEVTSEL0
        rdmsr
        debug_exit 0
#= triple fault, first exception vector 13 at rip 0x100005 (filtered.s:8)
#= why: rdmsr IA32_PERFEVTSEL0 (0x186): denied by the MSR filter: #GP(0)
#= why: #GP is not delivered: no IDT is loaded: #DF(0)
#= why: #DF is not delivered: no IDT is loaded: a triple fault
