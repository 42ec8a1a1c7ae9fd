# A hash table with open addressing: keys inserted, found, missed and deleted at random places of 512 KiB.
#
# A unit is forty-eight operations: three of eight insert, three look up, two delete. The table stays about
# half full, because half of the keys that can be asked for are in it.
#
# Made from guests/c/workloads/hash.c by gcc 12.2.0: python -m tests.tools.compile_guests
	.include "perf_kernel.inc"
	.intel_syntax noprefix
	.text
	.p2align 4
	.globl	workload_setup
	.type	workload_setup, @function
workload_setup:
	push	rbp
	mov	eax, OFFSET FLAT:slots
	mov	rbp, rdi
	mov	edx, OFFSET FLAT:slots+524288
	push	rbx
	.p2align 4,,10
	.p2align 3
.L2:
	mov	QWORD PTR [rax], 0
	add	rax, 16
	cmp	rdx, rax
	jne	.L2
	movabs	r9, -7046029254386353131
	xor	edi, edi
	movabs	rbx, -4658895280553007687
	movabs	r11, -7723592293110705685
	movabs	r10, -2960836687051489901
	lea	r8, [rbp+0+r9]
	.p2align 4,,10
	.p2align 3
.L6:
	mov	rdx, r8
	shr	rdx, 30
	xor	rdx, r8
	imul	rdx, rbx
	mov	rax, rdx
	shr	rax, 27
	xor	rax, rdx
	imul	rax, r11
	mov	rsi, rax
	shr	rsi, 31
	xor	rsi, rax
	and	esi, 32767
	imul	rsi, r10
	or	rsi, 1
	mov	rdx, rsi
	imul	rdx, r9
	shr	rdx, 49
	mov	ecx, edx
	sal	rdx, 4
	mov	rdx, QWORD PTR slots[rdx]
	mov	rax, rcx
	cmp	rdx, rsi
	jne	.L20
	jmp	.L3
	.p2align 4,,10
	.p2align 3
.L22:
	add	eax, 1
	and	eax, 32767
	mov	ecx, eax
	mov	rdx, rcx
	sal	rdx, 4
	mov	rdx, QWORD PTR slots[rdx]
	cmp	rsi, rdx
	je	.L3
.L20:
	test	rdx, rdx
	jne	.L22
.L3:
	sal	rcx, 4
	add	r8, r9
	mov	QWORD PTR slots[rcx+8], rdi
	add	rdi, 1
	mov	QWORD PTR slots[rcx], rsi
	cmp	rdi, 16384
	jne	.L6
	movabs	rax, -2418890591635685376
	pop	rbx
	add	rbp, rax
	mov	QWORD PTR random_state[rip], rbp
	pop	rbp
	ret
	.size	workload_setup, .-workload_setup
	.p2align 4
	.globl	workload_unit
	.type	workload_unit, @function
workload_unit:
	movabs	rdi, -7046029254386353131
	push	r14
	movabs	r10, 5232703935550177285
	movabs	r11, -2960836687051489901
	push	r13
	xor	r13d, r13d
	push	r12
	mov	r12, QWORD PTR random_state[rip]
	push	rbp
	movabs	rbp, -4658895280553007687
	push	rbx
	lea	rsi, [r12+rdi]
	add	r10, r12
	movabs	rbx, -7723592293110705685
	.p2align 4,,10
	.p2align 3
.L41:
	mov	rdx, rsi
	shr	rdx, 30
	xor	rdx, rsi
	imul	rdx, rbp
	mov	rax, rdx
	shr	rax, 27
	xor	rax, rdx
	imul	rax, rbx
	mov	r9, rax
	shr	r9, 31
	xor	r9, rax
	mov	rcx, r9
	mov	r14, r9
	and	ecx, 32767
	shr	r14, 61
	imul	rcx, r11
	or	rcx, 1
	mov	rdx, rcx
	imul	rdx, rdi
	shr	rdx, 49
	mov	r8, rdx
	mov	eax, edx
	sal	r8, 4
	mov	r8, QWORD PTR slots[r8]
	cmp	r14, 2
	ja	.L75
	mov	edx, eax
	test	r8, r8
	je	.L27
	cmp	rcx, r8
	jne	.L28
	jmp	.L27
	.p2align 4,,10
	.p2align 3
.L76:
	test	r8, r8
	je	.L27
.L28:
	add	eax, 1
	and	eax, 32767
	mov	edx, eax
	mov	r8, rdx
	sal	r8, 4
	mov	r8, QWORD PTR slots[r8]
	cmp	rcx, r8
	jne	.L76
.L27:
	sal	rdx, 4
	mov	QWORD PTR slots[rdx], rcx
	mov	QWORD PTR slots[rdx+8], r9
.L37:
	add	rsi, rdi
	cmp	rsi, r10
	jne	.L41
	movabs	rax, -6168010883773021200
	pop	rbx
	pop	rbp
	add	r12, rax
	mov	rax, r13
	mov	QWORD PTR random_state[rip], r12
	pop	r12
	pop	r13
	pop	r14
	ret
	.p2align 4,,10
	.p2align 3
.L75:
	sub	r14, 3
	cmp	r14, 1
	jbe	.L73
	jmp	.L77
	.p2align 4,,10
	.p2align 3
.L78:
	test	r8, r8
	je	.L31
	add	eax, 1
	and	eax, 32767
	mov	edx, eax
	mov	r8, rdx
	sal	r8, 4
	mov	r8, QWORD PTR slots[r8]
.L73:
	cmp	rcx, r8
	jne	.L78
.L31:
	sal	rdx, 4
	sar	rdx, 4
	mov	eax, edx
	mov	ecx, edx
	sal	rax, 4
	cmp	QWORD PTR slots[rax], 0
	je	.L37
	lea	eax, [rdx+1]
	jmp	.L74
	.p2align 4,,10
	.p2align 3
.L79:
	imul	rdx, rdi
	mov	r9d, eax
	shr	rdx, 49
	sub	r9d, edx
	mov	edx, eax
	sub	edx, ecx
	and	r9d, 32767
	and	edx, 32767
	cmp	r9d, edx
	jb	.L35
	sal	r8, 4
	sal	rcx, 4
	mov	r9, QWORD PTR slots[r8+8]
	mov	r8, QWORD PTR slots[r8]
	mov	QWORD PTR slots[rcx+8], r9
	mov	QWORD PTR slots[rcx], r8
	mov	ecx, eax
.L35:
	add	eax, 1
.L74:
	and	eax, 32767
	mov	r8d, eax
	mov	rdx, r8
	sal	rdx, 4
	mov	rdx, QWORD PTR slots[rdx]
	test	rdx, rdx
	jne	.L79
	sal	rcx, 4
	mov	QWORD PTR slots[rcx], 0
	jmp	.L37
	.p2align 4,,10
	.p2align 3
.L77:
	lea	r9, [0+r13*8]
	sub	r9, r13
	test	r8, r8
	jne	.L38
	jmp	.L42
	.p2align 4,,10
	.p2align 3
.L40:
	add	eax, 1
	and	eax, 32767
	mov	edx, eax
	sal	rdx, 4
	mov	r8, QWORD PTR slots[rdx]
	test	r8, r8
	je	.L42
.L38:
	cmp	rcx, r8
	jne	.L40
	sal	rax, 4
	mov	r13, QWORD PTR slots[rax+8]
.L39:
	add	r13, r9
	jmp	.L37
	.p2align 4,,10
	.p2align 3
.L42:
	mov	r13d, 1
	jmp	.L39
	.size	workload_unit, .-workload_unit
	.local	slots
	.comm	slots,524288,32
	.globl	workload_name
	.section	.rodata
	.type	workload_name, @object
	.size	workload_name, 5
workload_name:
	.string	"hash"
	.local	random_state
	.comm	random_state,8,8
