# A hash table with open addressing: keys inserted, found, missed and deleted at random places of 512 KiB.
#
# A unit is forty-eight operations: a quarter insert, a quarter delete, the others look up. The table begins as it
# stays: half full, with half of the keys that can be asked for.
#
#: args --defsym EVENTS=6 --defsym UNITS=300
#: expect all: exit_code == 0
#: expect all: mem64(checksum) == 0xd395cc47a7c5e805
#: expect all: pmis == mem64(perf_nmis)
#: expect all: mem64(perf_samples) > 20
#
# Made from guests/c/workloads/hash.c by gcc 12.2.0: python -m tests.tools.compile_guests
	.include "perf_kernel.inc"
	.intel_syntax noprefix
	.text
	.p2align 4
	.globl	workload_setup
	.type	workload_setup, @function
workload_setup:
	push	r13
	mov	eax, OFFSET FLAT:slots
	mov	edx, OFFSET FLAT:slots+524288
	push	r12
	push	rbp
	mov	rbp, rdi
	push	rbx
	.p2align 4,,10
	.p2align 3
.L2:
	mov	QWORD PTR [rax], 0
	add	rax, 16
	cmp	rdx, rax
	jne	.L2
	movabs	r8, -7046029254386353131
	xor	esi, esi
	xor	edi, edi
	movabs	rbx, -4658895280553007687
	movabs	r11, -7723592293110705685
	lea	rcx, [rbp+0+r8]
	movabs	r10, -2960836687051489901
	movabs	r9, 9177266409020424192
	jmp	.L7
	.p2align 4,,10
	.p2align 3
.L3:
	add	rsi, r10
	add	rdi, 1
	add	rcx, r8
	cmp	rsi, r9
	je	.L23
.L7:
	mov	rdx, rcx
	shr	rdx, 30
	xor	rdx, rcx
	imul	rdx, rbx
	mov	rax, rdx
	shr	rax, 27
	xor	rax, rdx
	imul	rax, r11
	mov	rdx, rax
	shr	rdx, 31
	xor	rdx, rax
	jns	.L3
	mov	r13, rsi
	or	r13, 1
	mov	rdx, r13
	imul	rdx, r8
	shr	rdx, 49
	mov	r12d, edx
	sal	rdx, 4
	mov	rdx, QWORD PTR slots[rdx]
	mov	rax, r12
	cmp	r13, rdx
	jne	.L21
	jmp	.L4
	.p2align 4,,10
	.p2align 3
.L24:
	add	eax, 1
	and	eax, 32767
	mov	r12d, eax
	mov	rdx, r12
	sal	rdx, 4
	mov	rdx, QWORD PTR slots[rdx]
	cmp	r13, rdx
	je	.L4
.L21:
	test	rdx, rdx
	jne	.L24
.L4:
	sal	r12, 4
	add	rsi, r10
	add	rcx, r8
	mov	QWORD PTR slots[r12+8], rdi
	add	rdi, 1
	mov	QWORD PTR slots[r12], r13
	cmp	rsi, r9
	jne	.L7
.L23:
	movabs	rax, -4837781183271370752
	pop	rbx
	add	rbp, rax
	mov	QWORD PTR random_state[rip], rbp
	pop	rbp
	pop	r12
	pop	r13
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
.L43:
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
	cmp	r14, 1
	ja	.L77
	mov	edx, eax
	test	r8, r8
	je	.L29
	cmp	rcx, r8
	jne	.L30
	jmp	.L29
	.p2align 4,,10
	.p2align 3
.L78:
	test	r8, r8
	je	.L29
.L30:
	add	eax, 1
	and	eax, 32767
	mov	edx, eax
	mov	r8, rdx
	sal	r8, 4
	mov	r8, QWORD PTR slots[r8]
	cmp	rcx, r8
	jne	.L78
.L29:
	sal	rdx, 4
	mov	QWORD PTR slots[rdx], rcx
	mov	QWORD PTR slots[rdx+8], r9
.L39:
	add	rsi, rdi
	cmp	rsi, r10
	jne	.L43
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
.L77:
	sub	r14, 2
	cmp	r14, 1
	jbe	.L75
	jmp	.L79
	.p2align 4,,10
	.p2align 3
.L80:
	test	r8, r8
	je	.L33
	add	eax, 1
	and	eax, 32767
	mov	edx, eax
	mov	r8, rdx
	sal	r8, 4
	mov	r8, QWORD PTR slots[r8]
.L75:
	cmp	rcx, r8
	jne	.L80
.L33:
	sal	rdx, 4
	sar	rdx, 4
	mov	eax, edx
	mov	ecx, edx
	sal	rax, 4
	cmp	QWORD PTR slots[rax], 0
	je	.L39
	lea	eax, [rdx+1]
	jmp	.L76
	.p2align 4,,10
	.p2align 3
.L81:
	imul	rdx, rdi
	mov	r9d, eax
	shr	rdx, 49
	sub	r9d, edx
	mov	edx, eax
	sub	edx, ecx
	and	r9d, 32767
	and	edx, 32767
	cmp	r9d, edx
	jb	.L37
	sal	r8, 4
	sal	rcx, 4
	mov	r9, QWORD PTR slots[r8+8]
	mov	r8, QWORD PTR slots[r8]
	mov	QWORD PTR slots[rcx+8], r9
	mov	QWORD PTR slots[rcx], r8
	mov	ecx, eax
.L37:
	add	eax, 1
.L76:
	and	eax, 32767
	mov	r8d, eax
	mov	rdx, r8
	sal	rdx, 4
	mov	rdx, QWORD PTR slots[rdx]
	test	rdx, rdx
	jne	.L81
	sal	rcx, 4
	mov	QWORD PTR slots[rcx], 0
	jmp	.L39
	.p2align 4,,10
	.p2align 3
.L79:
	lea	r9, [0+r13*8]
	sub	r9, r13
	test	r8, r8
	jne	.L40
	jmp	.L44
	.p2align 4,,10
	.p2align 3
.L42:
	add	eax, 1
	and	eax, 32767
	mov	edx, eax
	sal	rdx, 4
	mov	r8, QWORD PTR slots[rdx]
	test	r8, r8
	je	.L44
.L40:
	cmp	rcx, r8
	jne	.L42
	sal	rax, 4
	mov	r13, QWORD PTR slots[rax+8]
.L41:
	add	r13, r9
	jmp	.L39
	.p2align 4,,10
	.p2align 3
.L44:
	mov	r13d, 1
	jmp	.L41
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
