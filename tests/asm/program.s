# A program that uses every directive; it never runs.
#: modes bare
.equ N, 1000
.set MASK, (1 << 3) | 1
.equ MSR_PERF_GLOBAL_CTRL, 0x38f
COUNT = 4
COUNT = COUNT + 1
.equ SIZE, N * 2 + 'a' - '0'
.globl _start
.type _start, @function

.macro wrmsr64 msr, value
    mov ecx, \msr
    mov rax, \value
    mov rdx, rax
    shr rdx, 32
    wrmsr
.endm
.macro repeat count:req, body:vararg
    mov ecx, \count
1:  \body
    loop 1b
.endm
.macro table name, first=0, step=1
\name\():
    .quad \first, \first + \step, \first + 2 * \step
\name\()_end:
    .byte \name\()_end - \name
.endm
.macro countdown n
    .if \n
        .byte \n
        countdown "(\n - 1)"
    .endif
.endm
.macro unique
label_\@: .long label_\@ - _start
.endm
.macro early a
    .ifb \a
        nop
        .exitm
    .endif
    mov eax, \a
.endm

_start:
    cld; cli          // two statements
    lea rsp, [rip + stack_top]
    xor eax, eax /* a comment
    over lines */ ; nop
    wrmsr64 MSR_PERF_GLOBAL_CTRL, 0
    wrmsr64 0x186, 0x4300c0
    wrmsr64 MSR_PERF_GLOBAL_CTRL, (1 << 32) | MASK
    repeat N, dec r8
    repeat 5, add rax, [rbx + rcx * 8]
    early
    early 5
    early [rax]
    mov ecx, COUNT
    mov edi, offset message
    mov rsi, offset message_end - 1
    mov edx, message_end - message
    add ecx, message_end - message
1:  cmp rdi, rsi
    jae 2f
    mov al, [rdi]
    test al, al
    jz 2f
    out 0xf4, al
    inc rdi
    jmp 1b
2:  call function
    call [table_of_calls]
    call table_of_calls[rcx * 8]
    jmp over
    .skip 200, 0x90
over:
    jne over
    je far_away
    .p2align 4,,10
function:
    push rbp
    mov rbp, rsp
    sub rsp, 0x20
    mov dword ptr [rbp - 4], 7
    mov eax, -4[rbp]
    cmp word ptr counter[rip], 5
    jb 1f
    jmp 3f
1:  .rept COUNT
    imul eax, eax, 3
    .endr
3:  leave
    ret
    .balign 64
    .align 4, 0xcc
    nop
    .p2align 5
    .irp reg, rax, rbx, r12
    push \reg
    .endr
    .irpc digit, 0123
    .byte \digit
    .endr
    .rept 3
    .rept 2
    pause
    .endr
    hlt
    .endr
    unique
    unique
    .align 128
    .if SIZE == N * 2 + 49
        mov eax, 1
    .elseif SIZE
        mov eax, 2
    .else
        mov eax, 3
    .endif
    .ifdef N
        mov ebx, 1
    .endif
    .ifndef nowhere
        mov ebx, 2
    .endif
    .if 0
        this is not assembled ; at all
        .macro broken
        .endm
    .endif
    .org 0x600
far_away:
    ret
    .org far_away + 16, 0xcc
after:
    lock cmpxchg [rdi], rsi
    rep movsq
    rep; stosd
    mov eax, dword ptr gs:4
    mov gs:[rax + 8], ecx
    mov rax, 0x123456789
    movabs rbx, offset after
    jmp after
    jmp .
    jmp .+100000
    call 0x1234
    js after
    .fill 3, 2, 0x1234
    .section .text.cold, "ax", @progbits
cold:
    jmp _start
    call cold
    jmp after
    .text
    jmp cold
    .data
    .align 16
counter: .long 0
    .byte 1, -1, 'x', '\n', 255, -128, 3 + 4 * 2, ~0 & 0xf
    .word 1, 0xffff, -32768
    .long message, message_end - message, . - counter, -1
    .quad message, _start, far_away - _start, . , 1f - .
1:  .ascii "plain", " and \"quoted\"\n\t\\ \101\x42;#/* not a comment */"
    .asciz "zero", "terminated"
    .string "and this"
message: .ascii "Hello"
message_end:
    .equ message_len, message_end - message
    .align 8
table_of_calls:
    .quad function, cold
    table squares, 1, 3
    table plain
    table name=named, step=5
    countdown 4
    .int after - far_away
    .long (after - far_away) * 2 + 1
    .short SIZE, COUNT
    .balign 32
    .p2align 3
    .byte 1
    .skip end_of_data - begin_of_data
begin_of_data:
    .quad 5
end_of_data:
    .section .rodata
constants: .quad 0x123456789abcdef0, 1 << 63, -1 >> 4
    .pushsection .data
    .byte 0x77
    .popsection
    .byte 0x88
    .previous
    .byte 0x99
    .bss
    .align 16
stack: .skip 4096
stack_top:
    .zero 8
    .space 16
    .comm common_block, 64, 32
    .text
    mov rax, common_block
    mov ebx, stack_top - stack
