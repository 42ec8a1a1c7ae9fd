# VMware's pseudo counters: RDPMC of 0x10000 to 0x10002 is a clock of the host in KVM, which asks whether there
# is a vPMU and not whether enable_vmware_backdoor is set. Silicon, and a guest without a vPMU, get #GP; so does
# one whose RDPMC does not exit, unless the emulator executes it. 0x10003 is #GP everywhere.
#
#: row V5
#: upstream x86/vmware_backdoors.c check_vmware_tests
#: modes bare none emulated passthrough mediated
#: expect all: exit_code == 0
#: expect bare none passthrough: mem64(faults) == 4
#: expect emulated: mem64(faults) == 1
#: expect emulated: mem64(forwards) == 3
# nanoseconds since the VM was made are fewer than since the host's boot
#: expect emulated: rbx == 1
#: expect bare none passthrough: mem64(forwards) == 0

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"

        .equ HOST_TSC, 0x10000
        .equ REAL_TIME, 0x10001
        .equ APPARENT_TIME, 0x10002
        .equ NOTHING, 0x10003

# Read the clock twice; `where` is the second value, 0 after #GP.
        .macro clock number, where
        rdpmc_safe \number
        test r9d, r9d
        jnz 8f
        shl rdx, 32
        lea r8, [rax + rdx]
        rdpmc_safe \number
        shl rdx, 32
        or rax, rdx
        mov [rip + \where], rax
        cmp rax, r8
        jbe 8f
        inc qword ptr [rip + forwards]
        jmp 7f
8:      inc qword ptr [rip + faults]
7:
        .endm

        .text
        .globl _start
_start:
        safe_setup
        clock HOST_TSC, host_tsc
        clock REAL_TIME, since_boot
        clock APPARENT_TIME, since_creation
        clock NOTHING, nothing
        xor ebx, ebx
        mov rax, [rip + since_boot]
        cmp [rip + since_creation], rax
        adc ebx, 0
        debug_exit 0

        .bss
        .balign 8
faults: .zero 8
forwards: .zero 8
host_tsc: .zero 8
since_boot: .zero 8
since_creation: .zero 8
nothing: .zero 8
        conformance_kit
