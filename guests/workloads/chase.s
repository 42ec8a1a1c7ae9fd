# Pointers chased through a permutation that no cache holds: a wait for memory at almost every step.
#
# The nodes form one ring in random order, a cache line each, 1.5 MiB: L2 and LLC of a core hold a part of them.
# A unit is a walk of thirty nodes; each gives what it holds, and a little work on it.
#
#: args --defsym EVENTS=6 --defsym UNITS=300
#: expect all: exit_code == 0
#: expect all: mem64(checksum) == 0x27034bc07575904e
#: expect all: pmis == mem64(perf_nmis)
#: expect all: mem64(perf_samples) > 20
#
# Made from guests/c/workloads/chase.c by gcc 12.2.0: python -m tests.tools.compile_guests
	.include "perf_kernel.inc"
	.intel_syntax noprefix
	.text
	.p2align 4
	.globl	workload_unit
	.type	workload_unit, @function
workload_unit:
	mov	rdx, QWORD PTR walker[rip]
	mov	edi, 30
	xor	eax, eax
	.p2align 4,,10
	.p2align 3
.L3:
	mov	ecx, DWORD PTR [rdx+16]
	add	ecx, 1
	mov	esi, ecx
	cmp	ecx, DWORD PTR [rdx+20]
	jne	.L2
	xor	esi, esi
	xor	ecx, ecx
.L2:
	xor	rsi, QWORD PTR [rdx+8]
	lea	rax, [rax+rax*4]
	mov	DWORD PTR [rdx+16], ecx
	add	rax, rsi
	mov	QWORD PTR [rdx+24], rax
	mov	rdx, QWORD PTR [rdx]
	sub	edi, 1
	jne	.L3
	mov	QWORD PTR walker[rip], rdx
	ret
	.size	workload_unit, .-workload_unit
	.p2align 4
	.globl	workload_setup
	.type	workload_setup, @function
workload_setup:
	movabs	r11, -7046029254386353131
	mov	esi, OFFSET FLAT:nodes
	push	r12
	movabs	r10, -4658895280553007687
	push	rbp
	lea	r8, [rdi+r11]
	mov	ebp, OFFSET FLAT:nodes+1572864
	mov	rax, rsi
	movabs	r9, -7723592293110705685
	push	rbx
	movabs	rbx, 4354685564936845354
	.p2align 4,,10
	.p2align 3
.L8:
	mov	rcx, r8
	mov	QWORD PTR [rax], rax
	add	rax, 64
	shr	rcx, 30
	mov	DWORD PTR [rax-48], 0
	xor	rcx, r8
	mov	QWORD PTR [rax-40], 0
	imul	rcx, r10
	mov	rdx, rcx
	shr	rdx, 27
	xor	rdx, rcx
	lea	rcx, [r8+r11]
	add	r8, rbx
	mov	r12, rcx
	imul	rdx, r9
	shr	r12, 30
	xor	r12, rcx
	imul	r12, r10
	mov	rcx, r12
	shr	rcx, 27
	xor	rcx, r12
	mov	r12, rdx
	imul	rcx, r9
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
	jne	.L8
	movabs	r8, -7256671774907056128
	mov	ecx, OFFSET FLAT:nodes+1572800
	mov	r9d, 24575
	movabs	rbx, -7046029254386353131
	movabs	r11, -4658895280553007687
	add	r8, rdi
	movabs	r10, -7723592293110705685
	.p2align 4,,10
	.p2align 3
.L9:
	add	r8, rbx
	sub	rcx, 64
	mov	rax, r8
	shr	rax, 30
	xor	rax, r8
	imul	rax, r11
	mov	rdx, rax
	shr	rdx, 27
	xor	rdx, rax
	imul	rdx, r10
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
	jne	.L9
	movabs	rcx, -3838978407974231061
	mov	QWORD PTR nodes[rip+64], rbp
	mov	r8d, 819
	add	rdi, rcx
	mov	QWORD PTR nodes[rax], rdx
	mov	QWORD PTR random_state[rip], rdi
	mov	QWORD PTR walker[rip], OFFSET FLAT:nodes
	.p2align 4,,10
	.p2align 3
.L10:
	call	workload_unit
	sub	r8d, 1
	jne	.L10
	pop	rbx
	pop	rbp
	pop	r12
	ret
	.size	workload_setup, .-workload_setup
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
