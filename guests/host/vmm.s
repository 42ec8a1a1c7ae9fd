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
        .include "vmm.inc"

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
        make_irqchip
        put_gdt
        set_filter
        make_vcpu
        put_guest
        open_ports
        serve_guest run

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
        set_high_region
        jmp have_memory

        vmm_routines

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

        msr_filter_routine
        vmm_data
