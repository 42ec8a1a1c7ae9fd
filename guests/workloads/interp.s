# An interpreter: a program of byte codes on a stack machine, each of which ends with a jump through a table.
#
# The program takes a random number, counts how many steps it is from 1 by Collatz' rule, counts that in a table,
# and begins again. A unit is a thousand byte codes of it, wherever that leaves off.
#
#: args --defsym EVENTS=6 --defsym UNITS=300
#: expect all: exit_code == 0
#: expect all: mem64(checksum) == 0x6c6e939affde061a
#: expect all: pmis == mem64(perf_nmis)
#: expect all: mem64(perf_samples) > 20
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
	mov	esi, DWORD PTR at[rip]
	push	r13
	xor	r8d, r8d
	movabs	r11, -4658895280553007687
	mov	rax, QWORD PTR top[rip]
	push	r12
	movabs	r10, -7723592293110705685
	mov	rcx, rsi
	mov	edx, DWORD PTR program[4+rsi*8]
	push	rbp
	xor	ebp, ebp
	mov	esi, DWORD PTR program[0+rsi*8]
	mov	r9, QWORD PTR random_state[rip]
	push	rbx
	add	ecx, 1
	movabs	rbx, -7046029254386353131
	mov	rdi, QWORD PTR labels.0[0+rsi*8]
	mov	esi, 999
	jmp	rdi
	.p2align 4,,10
	.p2align 3
.L7:
	mov	QWORD PTR [rax+8], rdx
	lea	r12, [rax+8]
	lea	r13d, [rsi-1]
	test	esi, esi
	je	.L110
	.p2align 4,,10
	.p2align 3
.L97:
	mov	eax, ecx
	mov	esi, r13d
	add	ecx, 1
	mov	edx, DWORD PTR program[4+rax*8]
	mov	eax, DWORD PTR program[0+rax*8]
	mov	rdi, QWORD PTR labels.0[0+rax*8]
	mov	rax, r12
	jmp	rdi
	.p2align 4,,10
	.p2align 3
.L50:
	cmp	QWORD PTR [rax], 0
	lea	r12, [rax-8]
	lea	r13d, [rsi-1]
	cmove	ecx, edx
	test	esi, esi
	jne	.L97
.L52:
	test	bpl, bpl
	je	.L53
	mov	QWORD PTR random_state[rip], r9
.L53:
	mov	rdx, QWORD PTR [rax-8]
	jmp	.L98
	.p2align 4,,10
	.p2align 3
.L41:
	mov	rdx, QWORD PTR [rax]
	lea	r12d, [rsi-1]
	and	edx, 511
	mov	rdx, QWORD PTR cells[0+rdx*8]
	mov	QWORD PTR [rax], rdx
	test	esi, esi
	je	.L100
.L42:
	mov	esi, ecx
	add	ecx, 1
	mov	edx, DWORD PTR program[4+rsi*8]
	mov	esi, DWORD PTR program[0+rsi*8]
	mov	rdi, QWORD PTR labels.0[0+rsi*8]
	mov	esi, r12d
	jmp	rdi
	.p2align 4,,10
	.p2align 3
.L38:
	lea	r12, [rax-8]
	lea	r13d, [rsi-1]
	test	esi, esi
	jne	.L97
	jmp	.L52
	.p2align 4,,10
	.p2align 3
.L35:
	mov	rdi, QWORD PTR [rax]
	mov	rdx, QWORD PTR [rax-8]
	lea	r12d, [rsi-1]
	mov	QWORD PTR [rax], rdx
	mov	QWORD PTR [rax-8], rdi
	test	esi, esi
	jne	.L42
.L100:
	test	bpl, bpl
	je	.L10
	mov	QWORD PTR random_state[rip], r9
	jmp	.L10
	.p2align 4,,10
	.p2align 3
.L32:
	mov	rdx, QWORD PTR [rax-8]
	lea	r12, [rax+8]
	lea	r13d, [rsi-1]
	mov	QWORD PTR [rax+8], rdx
	test	esi, esi
	jne	.L97
.L110:
	test	bpl, bpl
	je	.L98
	mov	QWORD PTR random_state[rip], r9
.L98:
	mov	rax, r12
.L10:
	mov	QWORD PTR top[rip], rax
	mov	rax, r8
	pop	rbx
	sal	rax, 5
	mov	DWORD PTR at[rip], ecx
	mov	ecx, ecx
	pop	rbp
	sub	rax, r8
	pop	r12
	pop	r13
	add	rax, rcx
	add	rax, rdx
	ret
	.p2align 4,,10
	.p2align 3
.L29:
	mov	rdx, QWORD PTR [rax]
	lea	r12, [rax+8]
	lea	r13d, [rsi-1]
	mov	QWORD PTR [rax+8], rdx
	test	esi, esi
	jne	.L97
	jmp	.L110
	.p2align 4,,10
	.p2align 3
.L23:
	mov	rdx, QWORD PTR [rax-8]
	and	rdx, QWORD PTR [rax]
	lea	r12, [rax-8]
	lea	r13d, [rsi-1]
	mov	QWORD PTR [rax-8], rdx
	test	esi, esi
	jne	.L97
	jmp	.L110
	.p2align 4,,10
	.p2align 3
.L20:
	mov	rdx, QWORD PTR [rax-8]
	imul	rdx, QWORD PTR [rax]
	lea	r12, [rax-8]
	lea	r13d, [rsi-1]
	mov	QWORD PTR [rax-8], rdx
	test	esi, esi
	jne	.L97
	jmp	.L110
	.p2align 4,,10
	.p2align 3
.L17:
	mov	rdx, QWORD PTR [rax-8]
	sub	rdx, QWORD PTR [rax]
	lea	r12, [rax-8]
	lea	r13d, [rsi-1]
	mov	QWORD PTR [rax-8], rdx
	test	esi, esi
	jne	.L97
	jmp	.L110
	.p2align 4,,10
	.p2align 3
.L14:
	mov	rdx, QWORD PTR [rax]
	add	rdx, QWORD PTR [rax-8]
	lea	r12, [rax-8]
	lea	r13d, [rsi-1]
	mov	QWORD PTR [rax-8], rdx
	test	esi, esi
	jne	.L97
	jmp	.L110
	.p2align 4,,10
	.p2align 3
.L12:
	add	r9, rbx
	lea	rbp, [rax+8]
	lea	r12d, [rsi-1]
	mov	rdi, r9
	shr	rdi, 30
	xor	rdi, r9
	imul	rdi, r11
	mov	rdx, rdi
	shr	rdx, 27
	xor	rdx, rdi
	imul	rdx, r10
	mov	rdi, rdx
	shr	rdi, 31
	xor	rdx, rdi
	shr	rdx, 48
	add	rdx, 1
	mov	QWORD PTR [rax+8], rdx
	test	esi, esi
	je	.L119
	mov	eax, ecx
	mov	esi, r12d
	add	ecx, 1
	mov	edx, DWORD PTR program[4+rax*8]
	mov	eax, DWORD PTR program[0+rax*8]
	mov	rdi, QWORD PTR labels.0[0+rax*8]
	mov	rax, rbp
	mov	ebp, 1
	jmp	rdi
	.p2align 4,,10
	.p2align 3
.L26:
	mov	rdx, QWORD PTR [rax]
	lea	r12d, [rsi-1]
	shr	rdx
	mov	QWORD PTR [rax], rdx
	test	esi, esi
	jne	.L42
	jmp	.L100
	.p2align 4,,10
	.p2align 3
.L44:
	mov	rdx, QWORD PTR [rax]
	mov	rdi, QWORD PTR [rax-8]
	lea	r8, [r8+r8*4]
	lea	r12, [rax-16]
	lea	r13d, [rsi-1]
	and	edx, 511
	mov	QWORD PTR cells[0+rdx*8], rdi
	add	r8, QWORD PTR [rax]
	test	esi, esi
	jne	.L97
	test	bpl, bpl
	je	.L46
	mov	QWORD PTR random_state[rip], r9
.L46:
	mov	rdx, QWORD PTR [rax-16]
	mov	rax, r12
	jmp	.L10
	.p2align 4,,10
	.p2align 3
.L47:
	mov	ecx, edx
	lea	r12d, [rsi-1]
	test	esi, esi
	je	.L120
	mov	esi, edx
	add	ecx, 1
	mov	edx, DWORD PTR program[4+rsi*8]
	mov	esi, DWORD PTR program[0+rsi*8]
	mov	rdi, QWORD PTR labels.0[0+rsi*8]
	mov	esi, r12d
	jmp	rdi
.L119:
	mov	QWORD PTR random_state[rip], r9
	mov	rax, rbp
	jmp	.L10
.L120:
	test	bpl, bpl
	je	.L49
	mov	QWORD PTR random_state[rip], r9
.L49:
	mov	rdx, QWORD PTR [rax]
	jmp	.L10
	.size	workload_unit, .-workload_unit
	.section	.rodata
	.align 32
	.type	labels.0, @object
	.size	labels.0, 120
labels.0:
	.quad	.L7
	.quad	.L12
	.quad	.L14
	.quad	.L17
	.quad	.L20
	.quad	.L23
	.quad	.L26
	.quad	.L29
	.quad	.L32
	.quad	.L35
	.quad	.L38
	.quad	.L41
	.quad	.L44
	.quad	.L47
	.quad	.L50
	.local	at
	.comm	at,4,4
	.local	cells
	.comm	cells,4096,32
	.local	top
	.comm	top,8,8
	.local	stack
	.comm	stack,64,32
	.align 32
	.type	program, @object
	.size	program, 232
program:
	.long	1
	.zero	4
	.long	0
	.long	0
	.long	8
	.zero	4
	.long	0
	.long	1
	.long	3
	.zero	4
	.long	14
	.long	21
	.long	0
	.long	1
	.long	2
	.zero	4
	.long	9
	.zero	4
	.long	7
	.zero	4
	.long	0
	.long	1
	.long	5
	.zero	4
	.long	14
	.long	18
	.long	0
	.long	3
	.long	4
	.zero	4
	.long	0
	.long	1
	.long	2
	.zero	4
	.long	13
	.long	19
	.long	6
	.zero	4
	.long	9
	.zero	4
	.long	13
	.long	2
	.long	7
	.zero	4
	.long	11
	.zero	4
	.long	0
	.long	1
	.long	2
	.zero	4
	.long	9
	.zero	4
	.long	12
	.zero	4
	.long	10
	.zero	4
	.long	13
	.long	0
	.globl	workload_name
	.type	workload_name, @object
	.size	workload_name, 7
workload_name:
	.string	"interp"
	.local	random_state
	.comm	random_state,8,8
