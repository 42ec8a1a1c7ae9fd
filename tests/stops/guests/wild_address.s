# An address that is not canonical.
#~ modes bare emulated
        .intel_syntax noprefix
_start: mov rbx, 0x4000000000000000
        mov rax, [rbx + 8*rcx]
#= triple fault, first exception vector 13 at rip 0x10000a (wild_address.s:5)
#= why: `mov rax, [rbx + 8*rcx]`: rbx 0x4000000000000000 is no canonical address: #GP(0)
#= why: #GP is not delivered: no IDT is loaded: #DF(0)
#= why: #DF is not delivered: no IDT is loaded: a triple fault
