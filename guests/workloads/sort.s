# Quicksort of fresh random numbers, insertion sort of the short pieces: branches that cannot be predicted.
#
# A unit fills an array of 80 numbers and sorts it.
#
#: args --defsym EVENTS=6 --defsym UNITS=300
#: expect all: exit_code == 0
#: expect all: mem64(checksum) == 0xfa673ace0d3d3225
#: expect all: pmis == mem64(perf_nmis)
#: expect all: mem64(perf_samples) > 20
#
# Made from guests/c/workloads/sort.c by gcc 12.2.0: python -m tests.tools.compile_guests
	.include "perf_kernel.inc"
	.intel_syntax noprefix
	.text
	.p2align 4
	.type	quicksort, @function
quicksort:
	mov	rax, rsi
	push	r12
	mov	r12, rsi
	sub	rax, rdi
	push	rbp
	push	rbx
	mov	rbx, rdi
	cmp	rax, 44
	jle	.L2
	mov	r8, rdi
	lea	rbp, [rsi+4]
.L9:
	sar	rax, 3
	mov	edx, DWORD PTR [r8]
	mov	ecx, DWORD PTR [r12]
	mov	eax, DWORD PTR [r8+rax*4]
	cmp	edx, eax
	jb	.L26
	cmp	ecx, eax
	cmovnb	eax, ecx
	cmp	edx, ecx
	cmovnb	edx, eax
.L4:
	lea	rcx, [r8-4]
	mov	rsi, rbp
	.p2align 4,,10
	.p2align 3
.L5:
	mov	edi, DWORD PTR [rcx+4]
	add	rcx, 4
	cmp	edi, edx
	jb	.L5
	.p2align 4,,10
	.p2align 3
.L7:
	mov	rbx, rsi
	mov	eax, DWORD PTR [rsi-4]
	sub	rsi, 4
	cmp	edx, eax
	jb	.L7
	cmp	rcx, rsi
	jnb	.L8
	mov	DWORD PTR [rcx], eax
	mov	DWORD PTR [rsi], edi
	jmp	.L5
	.p2align 4,,10
	.p2align 3
.L8:
	mov	rdi, r8
	call	quicksort
	mov	rax, r12
	sub	rax, rbx
	cmp	rax, 44
	jle	.L2
	mov	r8, rbx
	jmp	.L9
.L26:
	cmp	edx, ecx
	cmovb	edx, ecx
	cmp	eax, ecx
	cmovb	edx, eax
	jmp	.L4
.L2:
	lea	rsi, [rbx+4]
	cmp	r12, rsi
	jb	.L1
	.p2align 4,,10
	.p2align 3
.L10:
	mov	ecx, DWORD PTR [rsi]
	mov	rax, rsi
	cmp	rbx, rsi
	jb	.L11
	jmp	.L12
	.p2align 4,,10
	.p2align 3
.L13:
	mov	DWORD PTR [rax], edx
	sub	rax, 4
	cmp	rbx, rax
	jnb	.L12
.L11:
	mov	edx, DWORD PTR [rax-4]
	cmp	ecx, edx
	jb	.L13
.L12:
	add	rsi, 4
	mov	DWORD PTR [rax], ecx
	cmp	r12, rsi
	jnb	.L10
.L1:
	pop	rbx
	pop	rbp
	pop	r12
	ret
	.size	quicksort, .-quicksort
	.p2align 4
	.globl	workload_setup
	.type	workload_setup, @function
workload_setup:
	mov	QWORD PTR random_state[rip], rdi
	ret
	.size	workload_setup, .-workload_setup
	.p2align 4
	.globl	workload_unit
	.type	workload_unit, @function
workload_unit:
	push	rbx
	mov	rbx, QWORD PTR random_state[rip]
	movabs	rdi, -7046029254386353131
	mov	r9d, OFFSET FLAT:numbers+4
	mov	r11d, OFFSET FLAT:numbers+324
	mov	rcx, r9
	movabs	r10, -4658895280553007687
	movabs	r8, -7723592293110705685
	lea	rsi, [rbx+rdi]
	.p2align 4,,10
	.p2align 3
.L29:
	mov	rdx, rsi
	add	rcx, 8
	shr	rdx, 30
	xor	rdx, rsi
	add	rsi, rdi
	imul	rdx, r10
	mov	rax, rdx
	shr	rax, 27
	xor	rax, rdx
	imul	rax, r8
	mov	rdx, rax
	shr	rdx, 31
	xor	rax, rdx
	mov	rdx, rax
	mov	DWORD PTR [rcx-12], eax
	shr	rdx, 32
	mov	DWORD PTR [rcx-8], edx
	cmp	r11, rcx
	jne	.L29
	movabs	rdx, -5140009069810851000
	mov	edi, OFFSET FLAT:numbers
	mov	esi, OFFSET FLAT:numbers+316
	mov	QWORD PTR numbers[rip+312], rax
	add	rbx, rdx
	mov	QWORD PTR random_state[rip], rbx
	call	quicksort
	mov	edx, DWORD PTR numbers[rip]
	xor	ecx, ecx
	xor	eax, eax
	mov	edi, OFFSET FLAT:numbers+320
	.p2align 4,,10
	.p2align 3
.L30:
	mov	esi, edx
	mov	edx, DWORD PTR [r9]
	cmp	edx, esi
	lea	rsi, [rax+rax*2]
	mov	eax, edx
	adc	rcx, 0
	add	r9, 4
	add	rax, rsi
	cmp	rdi, r9
	jne	.L30
	test	rcx, rcx
	mov	rdx, -1
	pop	rbx
	cmovne	rax, rdx
	ret
	.size	workload_unit, .-workload_unit
	.local	numbers
	.comm	numbers,320,32
	.globl	workload_name
	.section	.rodata
	.type	workload_name, @object
	.size	workload_name, 5
workload_name:
	.string	"sort"
	.local	random_state
	.comm	random_state,8,8
