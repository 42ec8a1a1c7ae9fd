# Reversi on bit-boards: moves of a side found by shifts of 64-bit words, tried, and the best one made.
#
# A unit tries sixteen moves: each is made, and what the other side could answer is counted. A game that is
# over begins anew.
#
#: args --defsym EVENTS=6 --defsym UNITS=300
#: expect all: exit_code == 0
#: expect all: mem64(checksum) == 0x659f085b6445527e
#: expect all: pmis == mem64(perf_nmis)
#: expect all: mem64(perf_samples) > 20
#
# Made from guests/c/workloads/bitboard.c by gcc 12.2.0: python -m tests.tools.compile_guests
	.include "perf_kernel.inc"
	.intel_syntax noprefix
	.text
	.p2align 4
	.type	moves_of, @function
moves_of:
	mov	rdx, rsi
	lea	rsi, [rdi+rdi]
	push	r13
	movabs	r13, -144680345676153348
	mov	rax, rdx
	push	r12
	mov	r12, rdx
	mov	r11, rdx
	and	rax, rsi
	push	rbp
	mov	r9, rdx
	mov	rcx, rdi
	add	rax, rax
	push	rbx
	mov	rbp, rdx
	movabs	rbx, 4593600975217868735
	movabs	r10, -4629771061636907136
	and	rax, r13
	movabs	r8, 560742306545149
	or	rax, rsi
	mov	rsi, rdx
	and	rsi, rax
	add	rsi, rsi
	and	rsi, r13
	or	rsi, rax
	mov	rax, rdx
	and	rax, rsi
	add	rax, rax
	and	rax, r13
	or	rax, rsi
	mov	rsi, rdi
	and	r12, rax
	shr	rsi
	add	r12, r12
	and	r12, r13
	or	r12, rax
	mov	rax, rdx
	and	rax, rsi
	shr	rax
	and	rax, rbx
	or	rax, rsi
	mov	rsi, rdx
	and	rsi, rax
	shr	rsi
	and	rsi, rbx
	or	rsi, rax
	mov	rax, rdx
	and	rax, rsi
	shr	rax
	and	rax, rbx
	or	rax, rsi
	mov	rsi, rdi
	and	r11, rax
	shr	r11
	and	r11, rbx
	or	r11, rax
	sal	rsi, 7
	mov	rax, rdx
	and	rax, rsi
	sal	rax, 7
	and	rax, r10
	or	rax, rsi
	mov	rsi, rdx
	and	rsi, rax
	sal	rsi, 7
	and	rsi, r10
	or	rsi, rax
	mov	rax, rdx
	and	rax, rsi
	sal	rax, 7
	and	rax, r10
	or	rax, rsi
	mov	rsi, rdi
	mov	rdi, rdx
	and	r9, rax
	shr	rsi, 7
	sal	r9, 7
	and	r9, r10
	or	r9, rax
	mov	rax, rdx
	and	rax, rsi
	shr	rax, 7
	and	rax, r8
	or	rax, rsi
	mov	rsi, rdx
	and	rsi, rax
	shr	rsi, 7
	and	rsi, r8
	or	rsi, rax
	mov	rax, rdx
	and	rax, rsi
	shr	rax, 7
	and	rax, r8
	or	rax, rsi
	mov	rsi, rdx
	and	rdi, rax
	shr	rdi, 7
	and	rdi, r8
	or	rdi, rax
	mov	rax, rcx
	sal	rax, 8
	and	rsi, rax
	sal	rsi, 8
	or	rsi, rax
	mov	rax, rdx
	and	rax, rsi
	sal	rax, 8
	or	rax, rsi
	mov	rsi, rdx
	and	rsi, rax
	sal	rsi, 8
	or	rsi, rax
	mov	rax, rdx
	and	rax, rsi
	sal	rax, 8
	or	rax, rsi
	mov	rsi, rdx
	and	rsi, rax
	sal	rsi, 8
	or	rsi, rax
	mov	rax, rcx
	shr	rax, 8
	and	rbp, rax
	shr	rbp, 8
	or	rbp, rax
	mov	rax, rdx
	and	rax, rbp
	shr	rax, 8
	or	rax, rbp
	mov	rbp, rdx
	and	rbp, rax
	shr	rbp, 8
	or	rbp, rax
	mov	rax, rdx
	and	rax, rbp
	shr	rax, 8
	or	rax, rbp
	mov	rbp, rdx
	and	rbp, rax
	and	rsi, rdx
	shr	rbp, 8
	sal	rsi, 8
	or	rbp, rax
	mov	rax, rdx
	and	rax, r12
	and	rbp, rdx
	add	rax, rax
	shr	rbp, 8
	and	rax, r13
	or	rsi, rbp
	or	rax, r12
	movabs	r12, -217020518514230020
	and	rax, rdx
	add	rax, rax
	and	rax, r12
	or	rax, rsi
	mov	rsi, rdx
	and	rsi, r11
	shr	rsi
	and	rsi, rbx
	pop	rbx
	pop	rbp
	or	rsi, r11
	pop	r12
	pop	r13
	movabs	r11, 4557430888798830399
	and	rsi, rdx
	shr	rsi
	and	rsi, r11
	or	rax, rsi
	mov	rsi, rdx
	and	rsi, r9
	sal	rsi, 7
	and	rsi, r10
	or	rsi, r9
	movabs	r9, 4557430888798830336
	and	rsi, rdx
	sal	rsi, 7
	and	rsi, r9
	or	rax, rsi
	mov	rsi, rdx
	and	rsi, rdi
	shr	rsi, 7
	and	rsi, r8
	movabs	r8, -144680345676153856
	or	rsi, rdi
	movabs	rdi, 278163506396412
	and	rsi, rdx
	shr	rsi, 7
	and	rsi, rdi
	mov	rdi, rcx
	sal	rdi, 9
	or	rax, rsi
	mov	rsi, rdx
	and	rsi, rdi
	sal	rsi, 9
	and	rsi, r8
	or	rsi, rdi
	mov	rdi, rdx
	and	rdi, rsi
	sal	rdi, 9
	and	rdi, r8
	or	rdi, rsi
	mov	rsi, rdx
	and	rsi, rdi
	sal	rsi, 9
	and	rsi, r8
	or	rsi, rdi
	mov	rdi, rdx
	and	rdi, rsi
	sal	rdi, 9
	and	rdi, r8
	or	rdi, rsi
	mov	rsi, rdx
	and	rsi, rdi
	sal	rsi, 9
	and	rsi, r8
	movabs	r8, 70092788318143
	or	rsi, rdi
	movabs	rdi, -217020518514230272
	and	rsi, rdx
	sal	rsi, 9
	and	rsi, rdi
	mov	rdi, rcx
	or	rsi, rax
	shr	rdi, 9
	mov	rax, rdx
	or	rcx, rdx
	and	rax, rdi
	not	rcx
	shr	rax, 9
	and	rax, r8
	or	rax, rdi
	mov	rdi, rdx
	and	rdi, rax
	shr	rdi, 9
	and	rdi, r8
	or	rdi, rax
	mov	rax, rdx
	and	rax, rdi
	shr	rax, 9
	and	rax, r8
	or	rax, rdi
	mov	rdi, rdx
	and	rdi, rax
	shr	rdi, 9
	and	rdi, r8
	or	rdi, rax
	mov	rax, rdx
	and	rax, rdi
	shr	rax, 9
	and	rax, r8
	or	rax, rdi
	movabs	rdi, 69540876599103
	and	rax, rdx
	shr	rax, 9
	and	rax, rdi
	or	rax, rsi
	and	rax, rcx
	ret
	.size	moves_of, .-moves_of
	.p2align 4
	.globl	workload_setup
	.type	workload_setup, @function
workload_setup:
	movabs	rax, 34628173824
	mov	QWORD PTR random_state[rip], rdi
	mov	QWORD PTR own[rip], rax
	movabs	rax, 68853694464
	mov	QWORD PTR other[rip], rax
	ret
	.size	workload_setup, .-workload_setup
	.p2align 4
	.globl	workload_unit
	.type	workload_unit, @function
workload_unit:
	push	r15
	xor	edx, edx
	xor	ecx, ecx
	movabs	r15, 35887507618889599
	push	r14
	push	r13
	push	r12
	movabs	r12, 71775015237779198
	push	rbp
	movabs	rbp, 9187201950435737471
	push	rbx
	sub	rsp, 64
	mov	r13, QWORD PTR own[rip]
	mov	rbx, QWORD PTR random_state[rip]
	mov	BYTE PTR [rsp+16], 0
	mov	r14, QWORD PTR other[rip]
	mov	DWORD PTR [rsp+36], 0
	mov	r9, r13
	mov	r13d, edx
	mov	QWORD PTR [rsp], rbx
	mov	rbx, rcx
.L36:
	mov	rdi, r9
	mov	rsi, r14
	mov	QWORD PTR [rsp+8], r9
	call	moves_of
	mov	r9, QWORD PTR [rsp+8]
	movabs	r8, -72340172838076674
	test	rax, rax
	mov	r10, rax
	jne	.L38
	cmp	r13d, 1
	je	.L93
	mov	rax, r9
	mov	r13d, 1
	mov	r9, r14
	mov	r14, rax
.L7:
	lea	rax, [rbx+rbx*4]
	cmp	DWORD PTR [rsp+36], 15
	lea	rbx, [rax+r10]
	jle	.L36
	cmp	BYTE PTR [rsp+16], 0
	mov	rcx, rbx
	mov	r13, r9
	mov	QWORD PTR own[rip], r9
	mov	QWORD PTR other[rip], r14
	mov	rbx, QWORD PTR [rsp]
	je	.L37
	mov	QWORD PTR random_state[rip], rbx
.L37:
	add	rsp, 64
	mov	rax, rcx
	pop	rbx
	xor	rax, r13
	pop	rbp
	pop	r12
	pop	r13
	pop	r14
	pop	r15
	ret
.L93:
	mov	rax, r9
	mov	rdx, rbx
	xor	r13d, r13d
	movabs	rcx, 6148914691236517205
	shr	rax
	sal	rdx, 5
	movabs	r14, 68853694464
	and	rax, rcx
	sub	rdx, rbx
	sub	r9, rax
	movabs	rax, 3689348814741910323
	mov	rcx, r9
	shr	r9, 2
	and	rcx, rax
	and	rax, r9
	movabs	r9, 34628173824
	add	rcx, rax
	mov	rax, rcx
	shr	rax, 4
	add	rax, rcx
	movabs	rcx, 1085102592571150095
	and	rax, rcx
	movabs	rcx, 72340172838076673
	imul	rax, rcx
	shr	rax, 56
	lea	rbx, [rax+rdx]
	jmp	.L36
.L38:
	mov	DWORD PTR [rsp+32], -1000
	xor	r10d, r10d
	mov	r13, QWORD PTR [rsp]
	mov	QWORD PTR [rsp+40], 0
	mov	QWORD PTR [rsp+56], rbx
	mov	QWORD PTR [rsp+48], r10
	mov	r10, rax
	.p2align 4,,10
	.p2align 3
.L6:
	mov	rcx, r10
	neg	rcx
	and	rcx, r10
	lea	rax, [rcx+rcx]
	and	rax, r8
	mov	rdx, rax
	and	rdx, r14
	je	.L9
	xor	edx, edx
	.p2align 4,,10
	.p2align 3
.L10:
	or	rdx, rax
	add	rax, rax
	and	rax, r8
	test	rax, r14
	jne	.L10
.L9:
	test	rax, r9
	mov	eax, 0
	cmove	rdx, rax
	mov	rax, rcx
	shr	rax
	and	rax, rbp
	mov	rsi, rax
	and	rsi, r14
	je	.L12
	xor	esi, esi
	.p2align 4,,10
	.p2align 3
.L13:
	or	rsi, rax
	shr	rax
	and	rax, rbp
	test	rax, r14
	jne	.L13
.L12:
	or	rsi, rdx
	test	r9, rax
	mov	rax, rcx
	cmovne	rdx, rsi
	sal	rax, 7
	and	rax, rbp
	mov	rsi, rax
	and	rsi, r14
	je	.L15
	xor	esi, esi
	.p2align 4,,10
	.p2align 3
.L16:
	or	rsi, rax
	sal	rax, 7
	and	rax, rbp
	test	rax, r14
	jne	.L16
.L15:
	or	rsi, rdx
	test	r9, rax
	mov	rax, rcx
	cmovne	rdx, rsi
	shr	rax, 7
	and	rax, r12
	mov	rsi, rax
	and	rsi, r14
	je	.L18
	xor	esi, esi
	.p2align 4,,10
	.p2align 3
.L19:
	or	rsi, rax
	shr	rax, 7
	and	rax, r12
	test	rax, r14
	jne	.L19
.L18:
	or	rsi, rdx
	test	r9, rax
	mov	rax, rcx
	cmovne	rdx, rsi
	sal	rax, 8
	mov	rsi, r14
	and	rsi, rax
	je	.L21
	xor	esi, esi
	.p2align 4,,10
	.p2align 3
.L22:
	or	rsi, rax
	sal	rax, 8
	test	r14, rax
	jne	.L22
.L21:
	or	rsi, rdx
	test	r9, rax
	mov	rax, rcx
	cmovne	rdx, rsi
	shr	rax, 8
	mov	rsi, r14
	and	rsi, rax
	je	.L24
	xor	esi, esi
	.p2align 4,,10
	.p2align 3
.L25:
	or	rsi, rax
	shr	rax, 8
	test	r14, rax
	jne	.L25
.L24:
	or	rsi, rdx
	test	r9, rax
	mov	rax, rcx
	cmovne	rdx, rsi
	sal	rax, 9
	mov	rsi, r14
	and	rax, r8
	and	rsi, rax
	je	.L27
	xor	esi, esi
	.p2align 4,,10
	.p2align 3
.L28:
	or	rsi, rax
	sal	rax, 9
	and	rax, r8
	test	r14, rax
	jne	.L28
.L27:
	or	rsi, rdx
	test	r9, rax
	mov	rax, rcx
	cmovne	rdx, rsi
	shr	rax, 9
	mov	rsi, r14
	and	rax, r15
	and	rsi, rax
	je	.L30
	xor	esi, esi
	.p2align 4,,10
	.p2align 3
.L31:
	or	rsi, rax
	shr	rax, 9
	and	rax, r15
	test	r14, rax
	jne	.L31
.L30:
	or	rsi, rdx
	test	r9, rax
	mov	QWORD PTR [rsp+16], r10
	movabs	rax, -7046029254386353131
	cmovne	rdx, rsi
	add	r13, rax
	mov	QWORD PTR [rsp+8], r9
	movabs	rax, -4658895280553007687
	mov	rsi, r13
	mov	QWORD PTR [rsp], rcx
	movabs	rdi, -7723592293110705685
	shr	rsi, 30
	mov	QWORD PTR [rsp+24], rdx
	xor	rsi, r13
	imul	rsi, rax
	mov	rax, rsi
	shr	rax, 27
	xor	rax, rsi
	mov	rsi, r9
	imul	rax, rdi
	or	rsi, rcx
	mov	rdi, r14
	or	rsi, rdx
	xor	rdi, rdx
	mov	rbx, rax
	shr	rbx, 31
	xor	rbx, rax
	call	moves_of
	and	ebx, 7
	mov	rcx, QWORD PTR [rsp]
	movabs	rdi, 6148914691236517205
	mov	rsi, rax
	mov	r9, QWORD PTR [rsp+8]
	mov	r10, QWORD PTR [rsp+16]
	movabs	r8, -72340172838076674
	shr	rsi
	and	rsi, rdi
	movabs	rdi, 3689348814741910323
	sub	rax, rsi
	movabs	rsi, 3689348814741910323
	and	rsi, rax
	shr	rax, 2
	and	rax, rdi
	movabs	rdi, 1085102592571150095
	add	rsi, rax
	mov	rax, rsi
	shr	rax, 4
	add	rax, rsi
	movabs	rsi, 72340172838076673
	and	rax, rdi
	imul	rax, rsi
	movabs	rsi, -9151314442816847743
	shr	rax, 56
	sal	eax, 2
	sub	ebx, eax
	test	rcx, rsi
	lea	eax, [rbx+40]
	cmovne	ebx, eax
	mov	eax, DWORD PTR [rsp+32]
	cmp	ebx, eax
	jle	.L34
	mov	rdx, QWORD PTR [rsp+24]
	mov	DWORD PTR [rsp+32], ebx
	mov	QWORD PTR [rsp+48], rcx
	mov	QWORD PTR [rsp+40], rdx
.L34:
	lea	rax, [r10-1]
	add	DWORD PTR [rsp+36], 1
	and	r10, rax
	jne	.L6
	mov	rax, QWORD PTR [rsp+40]
	mov	r10, QWORD PTR [rsp+48]
	mov	QWORD PTR [rsp], r13
	xor	r13d, r13d
	mov	BYTE PTR [rsp+16], 1
	mov	rbx, QWORD PTR [rsp+56]
	mov	rdx, rax
	or	rax, r10
	xor	rdx, r14
	or	rax, r9
	mov	r14, rax
	mov	r9, rdx
	jmp	.L7
	.size	workload_unit, .-workload_unit
	.local	other
	.comm	other,8,8
	.local	own
	.comm	own,8,8
	.globl	workload_name
	.section	.rodata
	.align 8
	.type	workload_name, @object
	.size	workload_name, 9
workload_name:
	.string	"bitboard"
	.local	random_state
	.comm	random_state,8,8
