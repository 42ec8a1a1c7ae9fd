# Pointers chased through a permutation that no cache holds: a wait for memory at almost every step.
#
# The nodes form one ring in random order, a cache line each, 1.5 MiB: L2 and LLC of a core hold a part of them.
# A unit is a walk of forty nodes; each gives what it holds, and a little work on it.
#
# Made from guests/c/workloads/chase.c by gcc 12.2.0: python -m tests.tools.compile_guests
	.include "perf_kernel.inc"
	.intel_syntax noprefix
	.text
	.p2align 4
	.globl	workload_setup
	.type	workload_setup, @function
workload_setup:
	mov	esi, OFFSET FLAT:nodes
	push	r12
	mov	r8, rdi
	movabs	r10, -4658895280553007687
	movabs	r9, -7723592293110705685
	push	rbp
	mov	rax, rsi
	mov	ebp, OFFSET FLAT:nodes+1572864
	movabs	r11, 4354685564936845354
	push	rbx
	movabs	rbx, -7046029254386353131
	.p2align 4,,10
	.p2align 3
.L2:
	lea	rdx, [r8+rbx]
	add	r8, r11
	mov	QWORD PTR [rax], rax
	add	rax, 64
	mov	rcx, rdx
	mov	r12, r8
	mov	DWORD PTR [rax-48], 0
	shr	rcx, 30
	shr	r12, 30
	mov	QWORD PTR [rax-40], 0
	xor	rcx, rdx
	xor	r12, r8
	imul	rcx, r10
	imul	r12, r10
	mov	rdx, rcx
	shr	rdx, 27
	xor	rdx, rcx
	mov	rcx, r12
	imul	rdx, r9
	shr	rcx, 27
	xor	rcx, r12
	imul	rcx, r9
	mov	r12, rdx
	shr	r12, 31
	xor	rdx, r12
	shr	rdx, 40
	mov	QWORD PTR [rax-56], rdx
	mov	rdx, rcx
	shr	rdx, 31
	xor	rdx, rcx
	shr	rdx, 60
	add	edx, 16
	mov	DWORD PTR [rax-44], edx
	cmp	rbp, rax
	jne	.L2
	movabs	r8, 4144043044416142357
	mov	ecx, OFFSET FLAT:nodes+1572800
	mov	r9d, 24575
	movabs	rbx, -4658895280553007687
	movabs	r11, -7723592293110705685
	add	r8, rdi
	movabs	r10, -7046029254386353131
	.p2align 4,,10
	.p2align 3
.L3:
	mov	rax, r8
	sub	rcx, 64
	shr	rax, 30
	xor	rax, r8
	add	r8, r10
	imul	rax, rbx
	mov	rdx, rax
	shr	rdx, 27
	xor	rdx, rax
	imul	rdx, r11
	mov	rax, rdx
	shr	rax, 31
	xor	rax, rdx
	mov	rdx, QWORD PTR [rcx+64]
	shr	rax, 32
	imul	rax, r9
	sub	r9, 1
	shr	rax, 32
	sal	rax, 6
	mov	rbp, QWORD PTR nodes[rax]
	mov	QWORD PTR [rcx+64], rbp
	mov	QWORD PTR nodes[rax], rdx
	cmp	rsi, rcx
	jne	.L3
	movabs	rcx, -3838978407974231061
	pop	rbx
	mov	QWORD PTR nodes[rip+64], rbp
	add	rdi, rcx
	pop	rbp
	mov	QWORD PTR nodes[rax], rdx
	mov	QWORD PTR random_state[rip], rdi
	pop	r12
	mov	QWORD PTR walker[rip], OFFSET FLAT:nodes
	ret
	.size	workload_setup, .-workload_setup
	.p2align 4
	.globl	workload_unit
	.type	workload_unit, @function
workload_unit:
	mov	rdx, QWORD PTR walker[rip]
	mov	edi, 40
	xor	eax, eax
	.p2align 4,,10
	.p2align 3
.L10:
	mov	esi, DWORD PTR [rdx+16]
	lea	ecx, [rsi+1]
	mov	esi, ecx
	cmp	ecx, DWORD PTR [rdx+20]
	jne	.L9
	xor	esi, esi
	xor	ecx, ecx
.L9:
	xor	rsi, QWORD PTR [rdx+8]
	lea	rax, [rax+rax*4]
	mov	DWORD PTR [rdx+16], ecx
	add	rax, rsi
	mov	QWORD PTR [rdx+24], rax
	mov	rdx, QWORD PTR [rdx]
	sub	edi, 1
	jne	.L10
	mov	QWORD PTR walker[rip], rdx
	ret
	.size	workload_unit, .-workload_unit
	.local	walker
	.comm	walker,8,8
	.local	nodes
	.comm	nodes,1572864,64
	.globl	workload_name
	.section	.rodata
	.type	workload_name, @object
	.size	workload_name, 6
workload_name:
	.string	"chase"
	.local	random_state
	.comm	random_state,8,8
