# A register of the PMU where there is none.
#~ modes none
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
_start: mov ecx, IA32_PERF_GLOBAL_CTRL
        rdmsr
        debug_exit 0
#= triple fault, first exception vector 13 at rip 0x100005 (no_pmu.s:7)
#= why: rdmsr IA32_PERF_GLOBAL_CTRL (0x38f): no such register with this CPUID: #GP(0)
#= why: #GP is not delivered: no IDT is loaded: #DF(0)
#= why: #DF is not delivered: no IDT is loaded: a triple fault
