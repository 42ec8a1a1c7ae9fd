# The VMM behind runs that save their guest or go on from a saved one: vmm.s that can be migrated.
#
#     vmm MEBIBYTES MEBIBYTES msr_filter|none save|restore
#
# The second number is of memory from 4 GiB on. SIGUSR1 has it save the guest to /tmp/vm and end; with
# `restore` it begins with what is there instead of /guest.
#
# The signal is blocked but in KVM_RUN (KVM_SET_SIGNAL_MASK): so it waits until it is taken, and KVM_RUN comes
# back with EINTR as often as it is called. That is used: what the last exit has left as a request only, a PMI
# above all, no ioctl shows. One more KVM_RUN does the requests and enters no guest; one with immediate_exit
# would not even do them.
#
# A program for Linux, for this assembler and for GNU as (-I guests/include).

        .intel_syntax noprefix
        .include "linux.inc"
        .include "vmm.inc"
        .include "migrate.inc"

        .equ SIGSET, 8

        .text
        .globl _start
_start:
        cmp qword ptr [rsp], 5
        jne usage
        mov rsi, [rsp + 16]
        call number
        test rax, rax
        jz usage
        shl rax, 20
        mov r15, rax
        mov [rip + sizes], rax
        mov [rip + regions + 16], rax
        mov rsi, [rsp + 24]
        call number
        shl rax, 20
        mov r14, rax
        mov [rip + sizes + 8], rax
        mov [rip + regions + REGION + 16], rax
        mov rax, [rsp + 32]
        mov al, [rax]
        mov [rip + filters], al
        mov rax, [rsp + 40]
        mov al, [rax]
        mov [rip + restores], al

        open_kvm
        lea rbx, [r14 + r15]
        map_memory rbx
        mov [rip + regions], rbp
        lea rax, [rbp + r15]
        mov [rip + regions + REGION], rax
        set_region
        test r14, r14
        jz 1f
        set_high_region
1:      cmp byte ptr [rip + filters], 'm'
        jne 1f
        call set_msr_filter
1:      make_irqchip
        set_filter
        make_vcpu

        mov edi, SIG_BLOCK
        lea rsi, [rip + migrate_signal]
        xor edx, edx
        mov r10d, SIGSET
        must SYS_rt_sigprocmask, m_signal
        lea rdx, [rip + run_mask]
        control r14d, KVM_SET_SIGNAL_MASK, m_signal

        cmp byte ptr [rip + restores], 'r'
        je from_file
        put_gdt
        put_guest
        jmp ports
from_file:
        lea rdi, [rip + saved_vm]
        call restore_vm
ports:  open_ports
        serve_guest interrupted

interrupted:
        xor byte ptr [rip + again], 1
        jnz run                         # for the requests
        lea rdi, [rip + migrate_signal]
        xor esi, esi
        lea rdx, [rip + no_time]
        mov r10d, SIGSET
        must SYS_rt_sigtimedwait, m_signal
        lea rdi, [rip + saved_vm]
        call save_vm
        xor edi, edi
        jmp quit

        vmm_routines
        msr_filter_routine
        migrate_routines
        vmm_data
        migrate_data
        .data
        .balign 8
migrate_signal:
        .quad 1 << (SIGUSR1 - 1)
run_mask:
        .long SIGSET
        .quad 0
no_time:
        .zero sizeof_timespec
again:  .byte 0
filters:
        .byte 0
restores:
        .byte 0
m_signal:
        .asciz "signals"
