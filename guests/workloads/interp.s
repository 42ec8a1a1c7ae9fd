# The loop of an interpreter: a program of byte codes on a stack machine, each a jump through a table.
#
# The program takes a random number, counts how many steps it is from 1 by Collatz' rule, counts that in a table,
# and begins again. A unit is a thousand byte codes of it, wherever that leaves off.
#
# Made from guests/c/workloads/interp.c by gcc 12.2.0: python -m tests.tools.compile_guests
	.include "perf_kernel.inc"
	.intel_syntax noprefix
	.text
	.p2align 4
	.globl	workload_setup
	.type	workload_setup, @function
workload_setup:
	mov	QWORD PTR random_state[rip], rdi
	mov	eax, OFFSET FLAT:cells
	.p2align 4,,10
	.p2align 3
.L2:
	mov	QWORD PTR [rax], 0
	add	rax, 8
	cmp	rax, OFFSET FLAT:cells+4096
	jne	.L2
	mov	QWORD PTR top[rip], OFFSET FLAT:stack
	mov	DWORD PTR at[rip], 0
	ret
	.size	workload_setup, .-workload_setup
	.p2align 4
	.globl	workload_unit
	.type	workload_unit, @function
workload_unit:
	mov	rcx, QWORD PTR top[rip]
	push	rbp
	mov	esi, 1000
	xor	ebp, ebp
	mov	eax, DWORD PTR at[rip]
	mov	r9, QWORD PTR random_state[rip]
	push	rbx
	xor	r8d, r8d
	movabs	rbx, -7046029254386353131
	movabs	r11, -4658895280553007687
	movabs	r10, -7723592293110705685
	.p2align 4,,10
	.p2align 3
.L24:
	mov	edx, eax
	add	eax, 1
	cmp	BYTE PTR program[rdx+rdx], 14
	movzx	edi, BYTE PTR program[rdx+1+rdx]
	ja	.L23
	movzx	edx, BYTE PTR program[rdx+rdx]
	jmp	[QWORD PTR .L8[0+rdx*8]]
	.section	.rodata
	.align 8
	.align 4
.L8:
	.quad	.L22
	.quad	.L21
	.quad	.L20
	.quad	.L19
	.quad	.L18
	.quad	.L17
	.quad	.L16
	.quad	.L15
	.quad	.L14
	.quad	.L13
	.quad	.L12
	.quad	.L11
	.quad	.L10
	.quad	.L9
	.quad	.L7
	.text
	.p2align 4,,10
	.p2align 3
.L9:
	movzx	eax, dil
	.p2align 4,,10
	.p2align 3
.L23:
	sub	esi, 1
	jne	.L24
	test	bpl, bpl
	je	.L25
	mov	QWORD PTR random_state[rip], r9
.L25:
	mov	rdx, r8
	mov	DWORD PTR at[rip], eax
	pop	rbx
	sal	rdx, 5
	mov	QWORD PTR top[rip], rcx
	pop	rbp
	sub	rdx, r8
	add	rax, rdx
	add	rax, QWORD PTR [rcx]
	ret
	.p2align 4,,10
	.p2align 3
.L10:
	mov	rdx, QWORD PTR [rcx]
	mov	rdi, QWORD PTR [rcx-8]
	lea	r8, [r8+r8*4]
	sub	rcx, 16
	and	edx, 511
	mov	QWORD PTR cells[0+rdx*8], rdi
	add	r8, QWORD PTR [rcx+16]
	jmp	.L23
	.p2align 4,,10
	.p2align 3
.L11:
	mov	rdx, QWORD PTR [rcx]
	and	edx, 511
	mov	rdx, QWORD PTR cells[0+rdx*8]
	mov	QWORD PTR [rcx], rdx
	jmp	.L23
	.p2align 4,,10
	.p2align 3
.L12:
	sub	rcx, 8
	jmp	.L23
	.p2align 4,,10
	.p2align 3
.L13:
	mov	rdx, QWORD PTR [rcx-8]
	mov	rdi, QWORD PTR [rcx]
	mov	QWORD PTR [rcx], rdx
	mov	QWORD PTR [rcx-8], rdi
	jmp	.L23
	.p2align 4,,10
	.p2align 3
.L14:
	mov	rdx, QWORD PTR [rcx-8]
	add	rcx, 8
	mov	QWORD PTR [rcx], rdx
	jmp	.L23
	.p2align 4,,10
	.p2align 3
.L15:
	mov	rdx, QWORD PTR [rcx]
	add	rcx, 8
	mov	QWORD PTR [rcx], rdx
	jmp	.L23
	.p2align 4,,10
	.p2align 3
.L16:
	shr	QWORD PTR [rcx]
	jmp	.L23
	.p2align 4,,10
	.p2align 3
.L17:
	mov	rdx, QWORD PTR [rcx]
	and	QWORD PTR [rcx-8], rdx
	sub	rcx, 8
	jmp	.L23
	.p2align 4,,10
	.p2align 3
.L18:
	mov	rdx, QWORD PTR [rcx-8]
	imul	rdx, QWORD PTR [rcx]
	sub	rcx, 8
	mov	QWORD PTR [rcx], rdx
	jmp	.L23
	.p2align 4,,10
	.p2align 3
.L19:
	mov	rdx, QWORD PTR [rcx]
	sub	QWORD PTR [rcx-8], rdx
	sub	rcx, 8
	jmp	.L23
	.p2align 4,,10
	.p2align 3
.L20:
	mov	rdx, QWORD PTR [rcx]
	add	QWORD PTR [rcx-8], rdx
	sub	rcx, 8
	jmp	.L23
	.p2align 4,,10
	.p2align 3
.L21:
	add	r9, rbx
	add	rcx, 8
	mov	ebp, 1
	mov	rdx, r9
	shr	rdx, 30
	xor	rdx, r9
	imul	rdx, r11
	mov	rdi, rdx
	shr	rdi, 27
	xor	rdi, rdx
	imul	rdi, r10
	mov	rdx, rdi
	shr	rdx, 31
	xor	rdx, rdi
	shr	rdx, 48
	lea	edi, [rdx+1]
	mov	QWORD PTR [rcx], rdi
	jmp	.L23
	.p2align 4,,10
	.p2align 3
.L7:
	cmp	QWORD PTR [rcx], 0
	lea	rdx, [rcx-8]
	jne	.L26
	movzx	eax, dil
	mov	rcx, rdx
	jmp	.L23
	.p2align 4,,10
	.p2align 3
.L22:
	mov	QWORD PTR [rcx+8], rdi
	add	rcx, 8
	jmp	.L23
	.p2align 4,,10
	.p2align 3
.L26:
	mov	rcx, rdx
	jmp	.L23
	.size	workload_unit, .-workload_unit
	.local	at
	.comm	at,4,4
	.local	cells
	.comm	cells,4096,32
	.local	top
	.comm	top,8,8
	.local	stack
	.comm	stack,64,32
	.section	.rodata
	.align 32
	.type	program, @object
	.size	program, 58
program:
	.byte	1
	.zero	1
	.byte	0
	.byte	0
	.byte	8
	.zero	1
	.byte	0
	.byte	1
	.byte	3
	.zero	1
	.byte	14
	.byte	21
	.byte	0
	.byte	1
	.byte	2
	.zero	1
	.byte	9
	.zero	1
	.byte	7
	.zero	1
	.byte	0
	.byte	1
	.byte	5
	.zero	1
	.byte	14
	.byte	18
	.byte	0
	.byte	3
	.byte	4
	.zero	1
	.byte	0
	.byte	1
	.byte	2
	.zero	1
	.byte	13
	.byte	19
	.byte	6
	.zero	1
	.byte	9
	.zero	1
	.byte	13
	.byte	2
	.byte	7
	.zero	1
	.byte	11
	.zero	1
	.byte	0
	.byte	1
	.byte	2
	.zero	1
	.byte	9
	.zero	1
	.byte	12
	.zero	1
	.byte	10
	.zero	1
	.byte	13
	.byte	0
	.globl	workload_name
	.type	workload_name, @object
	.size	workload_name, 7
workload_name:
	.string	"interp"
	.local	random_state
	.comm	random_state,8,8
