# A stack that is at no canonical address.
#~ modes bare emulated
        .intel_syntax noprefix
_start: mov rsp, 0x4000000000000000
        push rax
#= triple fault, first exception vector 12 at rip 0x10000a (wild_stack.s:5)
#= why: `push rax`: rsp 0x4000000000000000 is no canonical address: #SS(0)
#= why: #SS is not delivered: no IDT is loaded: #DF(0)
#= why: #DF is not delivered: no IDT is loaded: a triple fault
