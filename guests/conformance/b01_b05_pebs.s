# PEBS, every configuration of a single counter and of all together, with and without adaptive groups.
#
# For each of four start values and each of 33 configurations (no groups; the 16 sets of groups, asked for by
# the counters' ADAPTIVE bits and not asked for), and for each of eleven counters and all of them: reset
# everything (B1), enable (B2), work (B3), disable, for odd ones by IA32_PEBS_ENABLE first (B4), and look at
# what is in the buffer (B5). The threshold is behind the first record, so one record already interrupts.
#
# Cases, as `case` names them: 1 nothing overflowed and nothing was written; 2 the index has moved by whole
# records; 3 a record's size; 4 its counters; 5 its groups; 6 branch records, which are off, are zero; 7 the
# interrupt. Public tests pass with a PEBS that never writes anything: the last two expectations do not.
#
# KVM gives a guest no PEBS_BASELINE: there are general-purpose counters and records without groups then.
#
#: row B1 B2 B3 B4 B5
#: upstream x86/pmu_pebs.c check_pebs_counters
#: cpu spr
#: args --guest pmu.perf_caps=0x24c0
#: modes bare emulated
#: expect all: exit_code == 0
#: expect bare: mem64(configurations) == STARTS * CONFIGURATIONS * (GP + FIXED + 1)
#: expect emulated: mem64(configurations) == STARTS * (GP + 1)
#: expect all: mem64(first_bad) == 0
#: expect all: mem64(failures) == 0
# The work has more than 16 instructions: counter 4, fixed counter 0 and all together overflow, unless
# they start at 0.
#: expect bare: mem64(certain) == (STARTS - 1) * CONFIGURATIONS * 3
#: expect bare: mem64(missing) == 0
# perf counts precise instructions on the lowest of 1 to 7, so counter 4 gets no record. Counter 0, the most
# precise one of this CPU, takes no period below 128; without it the others of all together are one number off.
#: expect emulated: mem64(certain) == 0
#: expect emulated: mem64(missing) == (STARTS - 1) * 2

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"

        .equ STARTS, 4
        .equ GP, 8
        .equ FIXED, 3
        .equ ALL_GP, 0xff
        .equ MULTIPLE, GP + FIXED
        .equ ALL_COUNTERS, ALL_GP | 7 << 32
        .equ CERTAIN, 1 << 4 | 1 << GP | 1 << MULTIPLE
        .equ CONFIGURATIONS, 33
        .equ PAGE, 4096
        .equ LBR_ENTRIES, 31 << 24      # 32 of them
        .equ BASIC, 32                  # sizes of the groups
        .equ MEMORY, 32
        .equ GPRS, 144
        .equ XMMS, 256
        .equ LBRS, 32 * 24
        .equ GROUP_LBRS, 8
        .equ DS_BASE, 0x20              # in the debug store, all of 8 bytes
        .equ DS_INDEX, 0x28
        .equ DS_MAXIMUM, 0x30
        .equ DS_THRESHOLD, 0x38
        .equ OVF_BUFFER, 62

        .text
        .globl _start
_start:
        safe_setup
        pmi_setup
        pmu_setup
        mov r15d, IA32_A_PMC0
        rdmsr_at IA32_PERF_CAPABILITIES
        and eax, PERF_CAP_PEBS_BASELINE
        mov [rip + baseline], rax
        mov eax, CONFIGURATIONS
        mov ecx, 1
        cmovz eax, ecx
        mov [rip + configuration_count], eax
        xor ebx, ebx
start:
        xor ebp, ebp
configuration:
        call choose_groups
        xor r12d, r12d
counter:
        call choose_counters
        call pebs_reset
        call pebs_enable
        call workload
        call pebs_disable
        call check
        inc qword ptr [rip + configurations]
        inc r12d
        cmp r12d, GP
        jne 1f
        cmp qword ptr [rip + baseline], 0
        jne 1f
        mov r12d, MULTIPLE              # no fixed counters
1:      cmp r12d, MULTIPLE
        jbe counter
        inc ebp
        cmp ebp, [rip + configuration_count]
        jb configuration
        inc ebx
        cmp ebx, STARTS
        jb start
        debug_exit 0

# Configuration ebp: 0 none; 1 and on: the groups (ebp - 1) / 2, adaptive if ebp is odd.
choose_groups:
        xor eax, eax
        mov ecx, ebp
        and ecx, 1
        mov [rip + adaptive], rcx
        test ebp, ebp
        jz 1f
        lea eax, [rbp - 1]
        shr eax, 1
1:      mov edx, BASIC
        test ecx, ecx
        jz 5f
        test eax, 1
        jz 2f
        add edx, MEMORY
2:      test eax, 2
        jz 3f
        add edx, GPRS
3:      test eax, 4
        jz 4f
        add edx, XMMS
4:      test eax, GROUP_LBRS
        jz 5f
        add edx, LBRS
5:      mov [rip + size], rdx
        test eax, GROUP_LBRS
        jz 6f
        or eax, LBR_ENTRIES
6:      mov [rip + groups], rax
        ret

# The bits of counter r12: 0 to 7 general-purpose, then three fixed ones, then all.
choose_counters:
        mov rax, ALL_COUNTERS
        mov ecx, ALL_GP
        cmp qword ptr [rip + baseline], 0
        cmove rax, rcx
        cmp r12d, MULTIPLE
        je 2f
        mov ecx, r12d
        cmp ecx, GP
        jb 1f
        add ecx, 32 - GP
1:      mov eax, 1
        shl rax, cl
2:      mov [rip + mask], rax
        ret

pebs_reset:
        lea rdi, [rip + debug_store]
        mov ecx, 2 * PAGE / 8
        xor eax, eax
        rep stosq
        wrmsr_at IA32_PEBS_ENABLE
        wrmsr_at IA32_DS_AREA
        call set_groups
        xor eax, eax
        wrmsr_at IA32_PERF_GLOBAL_CTRL
        rdmsr_at IA32_PERF_GLOBAL_STATUS
        wrmsr_at IA32_PERF_GLOBAL_STATUS_RESET
        xor esi, esi
1:      xor eax, eax
        wrmsr_at rsi + IA32_PERFEVTSEL0
        wrmsr_at rsi + IA32_A_PMC0
        inc esi
        cmp esi, GP
        jb 1b
        xor esi, esi
2:      wrmsr_at rsi + IA32_FIXED_CTR0
        inc esi
        cmp esi, FIXED
        jb 2b
        wrmsr_at IA32_FIXED_CTR_CTRL
        mov qword ptr [rip + irqs], 0
        ret

# MSR_PEBS_DATA_CFG = rax, if there is one.
set_groups:
        cmp qword ptr [rip + baseline], 0
        je 1f
        wrmsr_at MSR_PEBS_DATA_CFG
1:      ret

pebs_enable:
        mov rax, [rip + groups]
        call set_groups
        lea rdi, [rip + debug_store]
        lea rax, [rip + buffer]
        mov [rdi + DS_BASE], rax
        mov [rdi + DS_INDEX], rax
        lea rcx, [rax + PAGE]
        mov [rdi + DS_MAXIMUM], rcx
        add rax, [rip + size]
        mov [rdi + DS_THRESHOLD], rax

        lea r8, [rip + starts]
        mov r8, [r8 + rbx * 8]
        lea r9, [rip + events]
        mov r10, [rip + mask]
        xor esi, esi
1:      bt r10, rsi
        jnc 2f
        mov eax, [r9 + rsi * 4]
        or eax, COUNTING
        mov rdx, [rip + adaptive]
        shl rdx, 34
        or rax, rdx
        wrmsr_at rsi + IA32_PERFEVTSEL0
        mov rax, r8
        wrmsr_at rsi + IA32_A_PMC0
2:      inc esi
        cmp esi, GP
        jb 1b
        xor esi, esi
        xor r11d, r11d                  # FIXED_CTR_CTRL
3:      lea ecx, [rsi + 32]
        bt r10, rcx
        jnc 4f
        lea ecx, [rsi * 4]
        mov edx, 0xb                    # OS, USR, PMI
        shl rdx, cl
        or r11, rdx
        lea ecx, [rsi * 4 + 32]
        mov rdx, [rip + adaptive]
        shl rdx, cl
        or r11, rdx
        mov rax, r8
        wrmsr_at rsi + IA32_FIXED_CTR0
4:      inc esi
        cmp esi, FIXED
        jb 3b
        mov rax, r11
        wrmsr_at IA32_FIXED_CTR_CTRL
        mov rax, rdi
        wrmsr_at IA32_DS_AREA
        mov rax, r10
        wrmsr_at IA32_PEBS_ENABLE
        mov rax, r10
        wrmsr_at IA32_PERF_GLOBAL_CTRL
        ret

workload:
        push rbx
        sti
        .rept 2
        mov eax, 1
        cmp eax, 1
        jne 9f
        jne 9f
        jne 9f
        jne 9f
        .endr
        .rept 6
        mov eax, CPUID_PMU
        cpuid
        .endr
9:      pop rbx
        ret

pebs_disable:
        xor eax, eax
        test r12d, 1
        jz 1f
        wrmsr_at IA32_PEBS_ENABLE
1:      wrmsr_at IA32_PERF_GLOBAL_CTRL
        cli
        ret

check:
        rdmsr_at IA32_PERF_GLOBAL_STATUS
        mov r13, [rip + debug_store + DS_INDEX]
        lea rcx, [rip + buffer]
        sub r13, rcx                    # bytes of records
        bt rax, OVF_BUFFER
        jc written
        call note_missing
        mov rax, r13
        or rax, [rip + buffer]
        case 1
        judge 0
        mov rax, [rip + irqs]
        case 7
        judge 0
        ret
written:
        call note_certain
        mov rax, [rip + irqs]
        case 7
        judge 1
        mov rax, r13
        xor edx, edx
        div qword ptr [rip + size]
        mov rax, rdx
        case 2
        judge 0
        mov rax, r13
        case 2
        judge_range BASIC, PAGE
        xor r13d, r13d
record:
        lea rsi, [rip + buffer]
        mov rax, [rsi + r13]
        shr rax, 48
        mov rdx, [rip + size]
        case 3
        judge rdx
        mov rax, [rsi + r13 + 16]
        mov rdx, [rip + mask]
        not rdx
        and rdx, rax                    # a counter that is not enabled for PEBS
        test rax, rax
        sete al                         # or none at all
        movzx eax, al
        or rax, rdx
        case 4
        judge 0
        mov rax, [rsi + r13]
        shl rax, 16
        shr rax, 16
        xor edx, edx
        cmp qword ptr [rip + adaptive], 0
        cmovne rdx, [rip + groups]
        case 5
        judge rdx
        cmp qword ptr [rip + adaptive], 0
        je 2f
        test byte ptr [rip + groups], GROUP_LBRS
        jz 2f
        lea rdi, [rsi + r13]
        add rdi, [rip + size]
        xor eax, eax
        mov ecx, LBRS / 8
1:      sub rdi, 8
        or rax, [rdi]
        loop 1b
        case 6
        judge 0
2:      add r13, [rip + size]
        mov rax, [rip + debug_store + DS_INDEX]
        lea rcx, [rip + buffer]
        sub rax, rcx
        cmp r13, rax
        jb record
        ret

# Is this one of the counters that must have overflowed?
note_certain:
        mov ecx, CERTAIN
        bt ecx, r12d
        jnc 1f
        inc qword ptr [rip + certain]
1:      ret
note_missing:
        mov ecx, CERTAIN
        bt ecx, r12d
        jnc 1b
        test ebx, ebx                   # the start value 0 overflows nothing
        jz 1b
        inc qword ptr [rip + missing]
        ret

        .data
        .balign 8
starts: .quad 0, 0xfffffffffff0, 0xfffffffffffe, 0xffffffffffff
# Branches, branch misses, nothing (it is fixed counter 2's), cycles, instructions, reference cycles, and
# references and misses of the last-level cache.
events: .long 0x00c4, 0x00c5, 0x0300, 0x003c, 0x00c0, 0x013c, 0x4f2e, 0x412e

        .bss
        .balign PAGE
debug_store:
        .zero PAGE
buffer: .zero PAGE
groups: .zero 8                         # MSR_PEBS_DATA_CFG
adaptive:
        .zero 8                         # 1 if the counters ask for the groups
size:   .zero 8                         # of a record
mask:   .zero 8                         # IA32_PEBS_ENABLE
configurations:
        .zero 8
baseline:
        .zero 8
configuration_count:
        .zero 8
certain:
        .zero 8
missing:
        .zero 8
        conformance_kit
