# Written in the manner of clang -S -masm=intel: operands, comments and directives as it has them.
	.text
	.intel_syntax noprefix
	.file	"x.c"
	.globl	f                               # -- Begin function f
	.p2align	4, 0x90
	.type	f,@function
f:                                      # @f
	.cfi_startproc
# %bb.0:
	push	rbp
	.cfi_def_cfa_offset 16
	.cfi_offset rbp, -16
	mov	rbp, rsp
	cmp	edi, 5
	ja	.LBB0_2
# %bb.1:
	mov	eax, edi
	jmp	qword ptr [8*rax + .LJTI0_0]
.LBB0_2:
	movabs	rax, offset .L.str
	mov	edi, offset .L.str
	lea	rsi, [rip + .L.str+2]
	mov	eax, dword ptr [4*rcx + g]
	mov	dword ptr [rip + g], 1
	movsxd	rcx, dword ptr [rdi + 4*rcx]
	add	rcx, rdi
	notrack jmp	rcx
	rep		stosq	qword ptr es:[rdi], rax
	rep		movsb	byte ptr es:[rdi], byte ptr [rsi]
	lock		cmpxchg	dword ptr [rdi], ecx
	mov	byte ptr [rax], 0
	test	byte ptr [rip + g], 1
	call	f
	movzx	eax, word ptr [rbp - 2]         # 2-byte Folded Reload
	imul	eax, dword ptr [rbp - 8], 12
	shl	eax, 3
	sete	al
	bt	eax, 3
	ud2
	nop	dword ptr [rax]
	pop	rbp
	.cfi_def_cfa rsp, 8
	ret
.Lfunc_end0:
	.size	f, .Lfunc_end0-f
	.cfi_endproc
	.section	.rodata,"a",@progbits
	.p2align	3, 0x0
.LJTI0_0:
	.quad	.LBB0_2
	.quad	f
                                        # -- End function
	.type	.L.str,@object                  # @.str
	.section	.rodata.str1.1,"aMS",@progbits,1
.L.str:
	.asciz	"hello %d\n"
	.size	.L.str, 10

	.type	g,@object                       # @g
	.bss
	.globl	g
	.p2align	2, 0x0
g:
	.long	0                               # 0x0
	.size	g, 4
	.type	h,@object
	.local	h
	.comm	h,400,16
	.section	".note.GNU-stack","",@progbits
