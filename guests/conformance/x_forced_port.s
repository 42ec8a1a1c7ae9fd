# Ports behind the forced emulation prefix: each access is done once and is one instruction, though the
# emulator leaves it to the VMM.
#
# The emulator is through with an OUT before the VMM hears of it; an IN waits for the VMM's answer. Both count
# in software as all that KVM emulates.
#
#: row X-forced-port
#: modes emulated passthrough mediated
#: expect all: exit_code == 0
#: expect all: serial == "abcd"
# UD2 of the prefixes counts nowhere.
#: expect all: mem64(counted) == insns(first, last) - 4
#: expect all: rbx & 0x20 == 0x20
#: expect all: exits.EXCEPTION_NMI == 4

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"

        .equ COM1, 0x3f8
        .equ LINE_STATUS, COM1 + 5

        .text
        .globl _start
_start:
        safe_setup
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERFEVTSEL0, EVT_INST_RETIRED_ANY_P | EVTSEL_OS | EVTSEL_EN
        wrmsr_const IA32_PMC0, 0
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0
first:  mov edx, COM1
        mov eax, 'a'
        FEP
        out dx, al
        mov eax, 'b'
        out dx, al
        mov eax, 'c'
        FEP
        out dx, al
        mov edx, LINE_STATUS
        xor eax, eax
        FEP
        in al, dx
        mov ebx, eax
        mov edx, COM1
        mov eax, 'd'
        FEP
        out dx, al
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
last:   rdmsr_rax IA32_PMC0
        mov [rip + counted], rax
        debug_exit 0

        .bss
        .balign 8
counted: .zero 8
        conformance_kit
