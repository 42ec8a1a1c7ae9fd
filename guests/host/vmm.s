# The VMM behind every run with a hypervisor: a virtual machine monitor in a page of assembly.
#
#     vmm MEBIBYTES [MEBIBYTES [msr_filter]]
#
# The second number is of memory from 4 GiB on, for a guest with more than 3 GiB: below are a PC's devices.
# A third word says that there is an MSR filter; then the second number may be 0.
# It does what QEMU or Firecracker do before the first KVM_RUN: makes a VM with its memory, loads the guest
# (the ELF image "/guest"), gives the vCPU its CPUID and its registers, and then serves its exits. What the
# user asked for comes as files, each the structure that its ioctl takes; without one nothing changes:
#
#     /cpuid   struct kvm_cpuid2            entries that replace those of KVM_GET_SUPPORTED_CPUID
#     /msrs    struct kvm_msrs              for KVM_SET_MSRS: IA32_PERF_CAPABILITIES
#     /filter  struct kvm_pmu_event_filter  for KVM_SET_PMU_EVENT_FILTER
#     /msr_filter      struct kvm_msr_filter  for KVM_X86_SET_MSR_FILTER; bitmaps are at offsets of the file
#     /user_space_msr  struct kvm_enable_cap  for KVM_ENABLE_CAP
#
# There is no device model: the guest's ports are the host's. iopl(3) lets this program execute the guest's
# IN and OUT itself, on the serial port and the debug-exit port of the machine.
#
# A program for Linux, for this assembler and for GNU as (-I guests/include).

        .intel_syntax noprefix
        .include "linux.inc"

        .equ GDT_AT, 0x500              # where the firmware of `bare` has its table
        .equ GDT_SIZE, 6 * 8
        .equ CODE, 0x08
        .equ DATA, 0x10
        .equ CR0_START, 0x80000033      # PG NE ET MP PE
        .equ CR4_START, 0x20            # PAE
        .equ EFER_START, 0x500          # LMA LME
        .equ RFLAGS_START, 2
        .equ DEBUG_EXIT, 0xf4
        .equ KEYBOARD, 0x64             # these two reset the machine
        .equ RESET_CONTROL, 0xcf9
        .equ FILE_ROOM, 8192
        .equ CPUID_ROOM, 64
        .equ MSR_FILTER_ROOM, sizeof_kvm_msr_filter + KVM_MSR_FILTER_MAX_RANGES * KVM_MSR_FILTER_MAX_BITMAP_SIZE

# A system call that must succeed; `what` names it in the message. Destroys rcx, r11.
        .macro must number, what
        mov eax, \number
        syscall
        lea rcx, [rip + \what]
        test rax, rax
        js failed
        .endm

# ioctl(fd, request, argument in rdx)
        .macro control fd, request, what
        mov edi, \fd
        mov esi, \request
        must SYS_ioctl, \what
        .endm

# r12 /dev/kvm and r13, a new VM
        .macro open_kvm
        mov edi, AT_FDCWD
        lea rsi, [rip + dev_kvm]
        mov edx, O_RDWR | O_CLOEXEC
        must SYS_openat, dev_kvm
        mov r12d, eax
        xor edx, edx
        control r12d, KVM_GET_API_VERSION, m_version
        cmp eax, KVM_API_VERSION
        lea rcx, [rip + m_version]
        jne failed
        xor edx, edx
        control r12d, KVM_CREATE_VM, m_create_vm
        mov r13d, eax
        .endm

# rbp, so many bytes
        .macro map_memory size
        xor edi, edi
        mov rsi, \size
        mov edx, PROT_READ | PROT_WRITE
        mov r10d, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_HUGETLB
        mov r8, -1
        xor r9d, r9d
        must SYS_mmap, m_memory
        mov rbp, rax
        .endm

# The first r15 of them from the guest's address 0 on
        .macro set_region
        lea rdx, [rip + region]
        mov [rdx + kvm_userspace_memory_region_memory_size], r15
        mov [rdx + kvm_userspace_memory_region_userspace_addr], rbp
        control r13d, KVM_SET_USER_MEMORY_REGION, m_region
        .endm

# r12 /dev/kvm, r13 the VM, r14 the vCPU, rbx its kvm_run, rbp the guest's memory here, r15 its size
        .text
        .globl _start
_start:
        cmp qword ptr [rsp], 2
        jne with_more
        mov rsi, [rsp + 16]
        call number
        test rax, rax
        jz usage
        shl rax, 20
        mov r15, rax

        open_kvm
        map_memory r15
        set_region
have_memory:
        xor edx, edx
        control r13d, KVM_CREATE_IRQCHIP, m_irqchip
        lea rsi, [rip + gdt]
        lea rdi, [rbp + GDT_AT]
        mov ecx, GDT_SIZE / 8
        rep movsq

        lea rdi, [rip + f_filter]
        call read_file
        test rax, rax
        jz no_filter
        lea rdx, [rip + file]
        control r13d, KVM_SET_PMU_EVENT_FILTER, f_filter
no_filter:

        # --- the vCPU ---
        xor edx, edx
        control r13d, KVM_CREATE_VCPU, m_create_vcpu
        mov r14d, eax
        xor edx, edx
        control r12d, KVM_GET_VCPU_MMAP_SIZE, m_mmap_size
        xor edi, edi
        mov esi, eax
        mov edx, PROT_READ | PROT_WRITE
        mov r10d, MAP_SHARED
        mov r8d, r14d
        xor r9d, r9d
        must SYS_mmap, m_kvm_run
        mov rbx, rax

        call set_cpuid
        lea rdi, [rip + f_msrs]
        call read_file
        test rax, rax
        jz no_msrs
        lea rdx, [rip + file]
        control r14d, KVM_SET_MSRS, f_msrs
        cmp eax, [rip + file + kvm_msrs_nmsrs]
        lea rcx, [rip + f_msrs]
        jne failed                      # it stops at the first one that is refused
no_msrs:
        call set_sregs
        call load_guest
        lea rdx, [rip + regs]
        mov rax, [rip + header + E_ENTRY]
        mov [rdx + kvm_regs_rip], rax
        lea rax, [r15 - 8]
        mov [rdx + kvm_regs_rsp], rax
        control r14d, KVM_SET_REGS, m_set_regs
        mov edi, 3
        must SYS_iopl, m_iopl

        # --- serve it ---
run:
        mov edi, r14d
        mov esi, KVM_RUN
        xor edx, edx
        mov eax, SYS_ioctl
        syscall
        cmp rax, -EINTR
        je run
        lea rcx, [rip + m_run]
        test rax, rax
        js failed
        mov eax, [rbx + kvm_run_exit_reason]
        cmp eax, KVM_EXIT_IO
        je port
        cmp eax, KVM_EXIT_X86_RDMSR
        je refuse
        cmp eax, KVM_EXIT_X86_WRMSR
        je refuse
        xor edi, edi
        cmp eax, KVM_EXIT_HLT
        je quit                         # for ever: there is no interrupt controller
        mov edi, 1
        cmp eax, KVM_EXIT_SHUTDOWN
        je quit
        cmp eax, KVM_EXIT_MMIO
        je device
        lea rcx, [rip + m_exit]
        neg eax
        jmp failed

refuse: # nobody asked for these MSRs: the guest gets #GP
        mov byte ptr [rbx + kvm_run_msr_error], 1
        jmp run

device: # there is none: reads give all ones, writes are lost
        cmp byte ptr [rbx + kvm_run_mmio_is_write], 0
        jne run
        mov qword ptr [rbx + kvm_run_mmio_data], -1
        jmp run

port:
        mov r8, [rbx + kvm_run_io_data_offset]
        add r8, rbx
        movzx edx, word ptr [rbx + kvm_run_io_port]
        movzx ecx, byte ptr [rbx + kvm_run_io_size]
        cmp byte ptr [rbx + kvm_run_io_direction], KVM_EXIT_IO_IN
        je port_in
        cmp edx, DEBUG_EXIT
        je last
        cmp edx, KEYBOARD
        je last
        cmp edx, RESET_CONTROL
        jne port_out
last:   # This may end the machine. The guest's instruction is not over before the next KVM_RUN: have that first.
        mov r9d, [r8]
        push rdx
        push rcx
        mov byte ptr [rbx + kvm_run_immediate_exit], 1
        mov edi, r14d
        mov esi, KVM_RUN
        xor edx, edx
        mov eax, SYS_ioctl
        syscall
        mov byte ptr [rbx + kvm_run_immediate_exit], 0
        pop rcx
        pop rdx
        mov eax, r9d
        jmp out_eax
port_out:
        mov eax, [r8]
out_eax:
        cmp ecx, 2
        ja out_4
        je out_2
        out dx, al
        jmp run
out_2:  out dx, ax
        jmp run
out_4:  out dx, eax
        jmp run
port_in:
        mov edi, [rbx + kvm_run_io_count]
next_in:
        cmp ecx, 2
        ja in_4
        je in_2
        in al, dx
        jmp answer
in_2:   in ax, dx
        jmp answer
in_4:   in eax, dx
answer: mov [r8], eax                   # room behind the last one is of no matter
        add r8, rcx
        dec edi
        jnz next_in
        jmp run

# --- parts -----------------------------------------------------------------------------------------------

        .equ E_ENTRY, 24
        .equ E_PHOFF, 32
        .equ E_PHENTSIZE, 54
        .equ E_PHNUM, 56
        .equ EHDR_SIZE, 64
        .equ PHDR_SIZE, 56
        .equ P_OFFSET, 8
        .equ P_PADDR, 24
        .equ P_FILESZ, 32

# The same for a guest with memory above 4 GiB too.
with_more:
        cmp qword ptr [rsp], 3
        jne with_msr_filter
        mov rsi, [rsp + 16]
        call number
        test rax, rax
        jz usage
        shl rax, 20
        mov r15, rax
        mov rsi, [rsp + 24]
        call number
        test rax, rax
        jz usage
        shl rax, 20
        mov r14, rax
        open_kvm
        lea rbx, [r14 + r15]
        map_memory rbx
        set_region
high_region:
        lea rdx, [rip + region]
        mov dword ptr [rdx + kvm_userspace_memory_region_slot], 1
        mov rax, 0x100000000
        mov [rdx + kvm_userspace_memory_region_guest_phys_addr], rax
        mov [rdx + kvm_userspace_memory_region_memory_size], r14
        lea rax, [rbp + r15]
        mov [rdx + kvm_userspace_memory_region_userspace_addr], rax
        control r13d, KVM_SET_USER_MEMORY_REGION, m_region
        jmp have_memory

# Put every PT_LOAD segment of /guest where the guest wants it. Keeps rbx, rbp, r12 to r15.
load_guest:
        push rbx
        push r12
        push r13
        mov edi, AT_FDCWD
        lea rsi, [rip + f_guest]
        xor edx, edx
        must SYS_openat, f_guest
        mov r12d, eax
        lea rsi, [rip + header]
        mov edx, EHDR_SIZE
        xor r10d, r10d
        call read_at
        movzx ebx, word ptr [rip + header + E_PHNUM]
        mov r13, [rip + header + E_PHOFF]
next_segment:
        test ebx, ebx
        jz loaded
        dec ebx
        lea rsi, [rip + segment]
        mov edx, PHDR_SIZE
        mov r10, r13
        call read_at
        movzx eax, word ptr [rip + header + E_PHENTSIZE]
        add r13, rax
        cmp dword ptr [rip + segment], PT_LOAD
        jne next_segment
        mov rsi, [rip + segment + P_PADDR]
        mov rdx, [rip + segment + P_FILESZ]
        mov rax, r15                    # it has to fit
        lea rcx, [rip + m_fit]
        sub rax, rdx
        jb failed
        cmp rsi, rax
        ja failed
        add rsi, rbp
        mov r10, [rip + segment + P_OFFSET]
        call read_at
        jmp next_segment
loaded: mov edi, r12d
        must SYS_close, f_guest
        pop r13
        pop r12
        pop rbx
        ret

# rdx bytes at position r10 of file r12 to rsi.
read_at:
        test rdx, rdx
        jz read_all
        mov edi, r12d
        must SYS_pread64, f_guest
        jz short_file
        add rsi, rax
        add r10, rax
        sub rdx, rax
        jmp read_at
short_file:
        lea rcx, [rip + m_short]
        jmp failed
read_all:
        ret

# The file at path rdi to `file`: its size, 0 if there is none. Keeps rbx, rbp, r12 to r15.
read_file:
        push rbx
        push rdi
        mov rsi, rdi
        mov edi, AT_FDCWD
        xor edx, edx
        mov eax, SYS_openat
        syscall
        pop rcx
        cmp rax, -ENOENT
        je no_file
        test rax, rax
        js failed
        mov ebx, eax
        mov edi, eax
        lea rsi, [rip + file]
        mov edx, FILE_ROOM
        must SYS_read, m_read
        push rax
        mov edi, ebx
        must SYS_close, m_read
        pop rax
        pop rbx
        ret
no_file:
        xor eax, eax
        pop rbx
        ret

# KVM_SET_CPUID2 with what KVM supports, changed by /cpuid.
set_cpuid:
        lea rdx, [rip + cpuid]
        mov dword ptr [rdx], CPUID_ROOM
        control r12d, KVM_GET_SUPPORTED_CPUID, m_supported
        lea rdi, [rip + f_cpuid]
        call read_file
        test rax, rax
        jz cpuid_done
        mov r8d, [rip + file]
        lea rsi, [rip + file + sizeof_kvm_cpuid2]
next_entry:
        test r8d, r8d
        jz cpuid_done
        dec r8d
        mov r9d, [rip + cpuid]
        lea rdi, [rip + cpuid + sizeof_kvm_cpuid2]
        mov eax, [rsi + kvm_cpuid_entry2_function]
find_leaf:
        test r9d, r9d
        jz skip_entry                   # a leaf that KVM does not have is not added
        cmp eax, [rdi + kvm_cpuid_entry2_function]
        je replace
        add rdi, sizeof_kvm_cpuid_entry2
        dec r9d
        jmp find_leaf
replace:
        mov ecx, sizeof_kvm_cpuid_entry2 / 8
        rep movsq
        jmp next_entry
skip_entry:
        add rsi, sizeof_kvm_cpuid_entry2
        jmp next_entry
cpuid_done:
        lea rdx, [rip + cpuid]
        control r14d, KVM_SET_CPUID2, m_set_cpuid
        ret

# Let rax be at segment rdi: selector eax, type edx, 64-bit code or flat data, present, ring 0.
set_segment:
        mov word ptr [rdi + kvm_segment_selector], ax
        mov byte ptr [rdi + kvm_segment_type], dl
        mov qword ptr [rdi + kvm_segment_base], 0
        mov dword ptr [rdi + kvm_segment_limit], 0xffffffff
        mov byte ptr [rdi + kvm_segment_present], 1
        mov byte ptr [rdi + kvm_segment_dpl], 0
        mov byte ptr [rdi + kvm_segment_s], 1
        mov byte ptr [rdi + kvm_segment_g], 1
        mov byte ptr [rdi + kvm_segment_unusable], 0
        cmp eax, CODE
        sete byte ptr [rdi + kvm_segment_l]
        setne byte ptr [rdi + kvm_segment_db]
        ret

# 64-bit mode with CR3 = 0, which this machine's processors take as an identity map, and the GDT.
set_sregs:
        lea rdx, [rip + sregs]
        control r14d, KVM_GET_SREGS, m_get_sregs
        lea rsi, [rip + sregs]
        mov eax, DATA
        mov edx, 3
        lea rdi, [rsi + kvm_sregs_ds]
        call set_segment
        lea rdi, [rsi + kvm_sregs_es]
        call set_segment
        lea rdi, [rsi + kvm_sregs_fs]
        call set_segment
        lea rdi, [rsi + kvm_sregs_gs]
        call set_segment
        lea rdi, [rsi + kvm_sregs_ss]
        call set_segment
        mov eax, CODE
        mov edx, 11
        lea rdi, [rsi + kvm_sregs_cs]
        call set_segment
        mov qword ptr [rsi + kvm_sregs_gdt + kvm_dtable_base], GDT_AT
        mov word ptr [rsi + kvm_sregs_gdt + kvm_dtable_limit], GDT_SIZE - 1
        mov word ptr [rsi + kvm_sregs_idt + kvm_dtable_limit], 0
        mov dword ptr [rsi + kvm_sregs_tr + kvm_segment_limit], 0
        mov eax, CR0_START
        mov [rsi + kvm_sregs_cr0], rax
        mov qword ptr [rsi + kvm_sregs_cr3], 0
        mov qword ptr [rsi + kvm_sregs_cr4], CR4_START
        mov qword ptr [rsi + kvm_sregs_efer], EFER_START
        mov rdx, rsi
        control r14d, KVM_SET_SREGS, m_set_sregs
        ret

# The decimal number at rsi to rax, 0 if it is none.
number:
        xor eax, eax
digit:  movzx ecx, byte ptr [rsi]
        test ecx, ecx
        jz number_done
        sub ecx, '0'
        cmp ecx, 9
        ja no_number
        imul rax, rax, 10
        add rax, rcx
        inc rsi
        jmp digit
no_number:
        xor eax, eax
number_done:
        ret

usage:
        lea rcx, [rip + m_usage]
        mov rax, -EINVAL

# Say what failed (rcx) and why (rax, a negative errno), and end.
failed:
        mov rbx, rcx
        neg rax
        mov r12d, eax
        lea rsi, [rip + m_prefix]
        call say
        mov rsi, rbx
        call say
        lea rsi, [rip + m_errno]
        call say
        mov eax, r12d
        lea rsi, [rip + digits_end]
decimal:
        xor edx, edx
        mov ecx, 10
        div ecx
        add dl, '0'
        dec rsi
        mov [rsi], dl
        test eax, eax
        jnz decimal
        call say
        lea rsi, [rip + m_newline]
        call say
        mov edi, 1
quit:
        mov eax, SYS_exit_group
        syscall

# Write the text at rsi.
say:
        mov rdx, rsi
count:  cmp byte ptr [rdx], 0
        je counted
        inc rdx
        jmp count
counted:
        sub rdx, rsi
        mov edi, 2
        mov eax, SYS_write
        syscall
        ret

# The same with an MSR filter.
with_msr_filter:
        cmp qword ptr [rsp], 4
        jne usage
        mov rsi, [rsp + 16]
        call number
        test rax, rax
        jz usage
        shl rax, 20
        mov r15, rax
        mov rsi, [rsp + 24]
        call number
        shl rax, 20
        mov r14, rax
        open_kvm
        lea rbx, [r14 + r15]
        map_memory rbx
        set_region
        call set_msr_filter
        test r14, r14
        jz have_memory
        jmp high_region

# KVM_X86_SET_MSR_FILTER, then KVM_CAP_X86_USER_SPACE_MSR. Keeps rbp, r12 to r15.
set_msr_filter:
        xor edi, edi
        mov esi, MSR_FILTER_ROOM
        mov edx, PROT_READ | PROT_WRITE
        mov r10d, MAP_PRIVATE | MAP_ANONYMOUS
        mov r8, -1
        xor r9d, r9d
        must SYS_mmap, f_msr_filter
        mov rbx, rax
        mov edi, AT_FDCWD
        lea rsi, [rip + f_msr_filter]
        xor edx, edx
        must SYS_openat, f_msr_filter
        push rax
        mov edi, eax
        mov rsi, rbx
        mov edx, MSR_FILTER_ROOM
        must SYS_read, f_msr_filter
        pop rdi
        must SYS_close, f_msr_filter
        lea rdi, [rbx + kvm_msr_filter_ranges]
        mov ecx, KVM_MSR_FILTER_MAX_RANGES
next_range:
        cmp dword ptr [rdi + kvm_msr_filter_range_nmsrs], 0
        je no_range
        add [rdi + kvm_msr_filter_range_bitmap], rbx
no_range:
        add rdi, sizeof_kvm_msr_filter_range
        dec ecx
        jnz next_range
        mov rdx, rbx
        control r13d, KVM_X86_SET_MSR_FILTER, f_msr_filter
        lea rdi, [rip + f_user_space_msr]
        call read_file
        test rax, rax
        jz no_cap
        lea rdx, [rip + file]
        control r13d, KVM_ENABLE_CAP, f_user_space_msr
no_cap: ret

        .data
        .balign 8
gdt:    # null, kernel code and data, null, user data and code: what SYSCALL and SYSRET expect around STAR
        .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0, 0x00cff3000000ffff, 0x00affb000000ffff

region: .zero sizeof_kvm_userspace_memory_region
regs:   .zero kvm_regs_rflags
        .quad RFLAGS_START
sregs:  .zero sizeof_kvm_sregs
header: .zero EHDR_SIZE
segment:
        .zero PHDR_SIZE
digits: .zero 20
digits_end:
        .byte 0
dev_kvm:        .asciz "/dev/kvm"
f_guest:        .asciz "/guest"
f_cpuid:        .asciz "/cpuid"
f_msrs:         .asciz "/msrs"
f_filter:       .asciz "/filter"
m_prefix:       .asciz "vmm: "
m_errno:        .asciz ": error "
m_newline:      .asciz "\n"
m_usage:        .asciz "usage: vmm MEBIBYTES [MEBIBYTES]"
m_version:      .asciz "KVM_GET_API_VERSION"
m_create_vm:    .asciz "KVM_CREATE_VM"
m_memory:       .asciz "mmap of the guest's memory"
m_region:       .asciz "KVM_SET_USER_MEMORY_REGION"
m_irqchip:      .asciz "KVM_CREATE_IRQCHIP"
m_create_vcpu:  .asciz "KVM_CREATE_VCPU"
m_mmap_size:    .asciz "KVM_GET_VCPU_MMAP_SIZE"
m_kvm_run:      .asciz "mmap of struct kvm_run"
m_supported:    .asciz "KVM_GET_SUPPORTED_CPUID"
m_set_cpuid:    .asciz "KVM_SET_CPUID2"
m_get_sregs:    .asciz "KVM_GET_SREGS"
m_set_sregs:    .asciz "KVM_SET_SREGS"
m_set_regs:     .asciz "KVM_SET_REGS"
m_iopl:         .asciz "iopl"
m_run:          .asciz "KVM_RUN"
m_exit:         .asciz "an exit that is none of its business"
m_read:         .asciz "read"
m_fit:          .asciz "/guest does not fit into the guest's memory"
m_short:        .asciz "/guest is too short"
f_msr_filter:   .asciz "/msr_filter"
f_user_space_msr:
                .asciz "/user_space_msr"

        .bss
        .balign 8
cpuid:  .zero sizeof_kvm_cpuid2 + CPUID_ROOM * sizeof_kvm_cpuid_entry2
file:   .zero FILE_ROOM
