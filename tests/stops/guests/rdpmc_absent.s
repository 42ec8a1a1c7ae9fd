# RDPMC of a counter that there is not.
#~ modes bare emulated
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
_start: mov ecx, 99
        rdpmc
        debug_exit 0
#= triple fault, first exception vector 13 at rip 0x100005 (rdpmc_absent.s:7)
#= why: rdpmc with ECX 0x63: general-purpose counter 99 does not exist, there are 8: #GP(0)
#= why: #GP is not delivered: no IDT is loaded: #DF(0)
#= why: #DF is not delivered: no IDT is loaded: a triple fault
