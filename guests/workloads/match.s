# String search: Boyer, Moore and Horspool's skips through a text of words, and a comparison where they land.
#
# A unit takes four patterns from anywhere in the text, and sums up where they are in the next KiB each.
#
#: args --defsym EVENTS=6 --defsym UNITS=300
#: expect all: exit_code == 0
#: expect all: mem64(checksum) == 0x2001cfb01c1f750d
#: expect all: pmis == mem64(perf_nmis)
#: expect all: mem64(perf_samples) > 20
#
# Made from guests/c/workloads/match.c by gcc 12.2.0: python -m tests.tools.compile_guests
	.include "perf_kernel.inc"
	.intel_syntax noprefix
	.text
	.p2align 4
	.globl	workload_setup
	.type	workload_setup, @function
workload_setup:
	movabs	r9, -7046029254386353131
	push	r13
	mov	rdx, rdi
	movabs	r8, -4658895280553007687
	movabs	rdi, -7723592293110705685
	push	r12
	movabs	r11, 4354685564936845354
	movabs	r10, -2691343689449507777
	push	rbp
	xor	ebp, ebp
	push	rbx
	movabs	rbx, 8709371129873690708
	.p2align 4,,10
	.p2align 3
.L4:
	add	rdx, r9
	mov	rax, rdx
	shr	rax, 30
	xor	rax, rdx
	imul	rax, r8
	mov	rcx, rax
	shr	rcx, 27
	xor	rcx, rax
	imul	rcx, rdi
	mov	rax, rcx
	shr	rax, 31
	xor	rax, rcx
	mov	ecx, ebp
	shr	rax, 32
	lea	rsi, [rax+rax*2]
	shr	rsi, 32
	add	esi, 1
	jmp	.L3
	.p2align 4,,10
	.p2align 3
.L8:
	mov	rdx, r12
	mov	ecx, r13d
	sub	esi, 1
	je	.L15
.L3:
	lea	rax, [rdx+r9]
	mov	r12d, ecx
	lea	r13d, [rcx+2]
	mov	rbp, rax
	shr	rbp, 30
	xor	rbp, rax
	imul	rbp, r8
	mov	rax, rbp
	shr	rax, 27
	xor	rax, rbp
	imul	rax, rdi
	mov	rbp, rax
	shr	rbp, 31
	xor	rbp, rax
	shr	rbp, 32
	lea	rax, [0+rbp*8]
	sub	rax, rbp
	lea	rbp, [rdx+r11]
	add	rax, rax
	shr	rax, 32
	movzx	eax, BYTE PTR consonants.1[rax]
	mov	BYTE PTR text[r12], al
	mov	rax, rbp
	lea	r12d, [rcx+1]
	shr	rax, 30
	xor	rax, rbp
	imul	rax, r8
	mov	rbp, rax
	shr	rbp, 27
	xor	rbp, rax
	imul	rbp, rdi
	mov	rax, rbp
	shr	rax, 31
	xor	rax, rbp
	shr	rax, 32
	lea	rbp, [0+rax*8]
	sub	rbp, rax
	mov	rax, rbp
	shr	rax, 32
	movzx	eax, BYTE PTR vowels.0[rax]
	mov	BYTE PTR text[r12], al
	lea	r12, [rdx+r10]
	mov	rax, r12
	shr	rax, 30
	xor	rax, r12
	imul	rax, r8
	mov	rbp, rax
	shr	rbp, 27
	xor	rbp, rax
	imul	rbp, rdi
	mov	rax, rbp
	shr	rax, 31
	xor	rax, rbp
	shr	rax, 32
	lea	rax, [rax+rax*2]
	shr	rax, 32
	jne	.L8
	add	rdx, rbx
	add	ecx, 3
	mov	rbp, rdx
	shr	rbp, 30
	xor	rbp, rdx
	imul	rbp, r8
	mov	rax, rbp
	shr	rax, 27
	xor	rax, rbp
	imul	rax, rdi
	mov	rbp, rax
	shr	rbp, 31
	xor	rbp, rax
	shr	rbp, 32
	lea	rax, [0+rbp*8]
	sub	rax, rbp
	add	rax, rax
	shr	rax, 32
	movzx	eax, BYTE PTR consonants.1[rax]
	mov	BYTE PTR text[r13], al
	sub	esi, 1
	jne	.L3
.L15:
	lea	ebp, [rcx+1]
	mov	BYTE PTR text[rcx], 32
	cmp	ebp, 65519
	jbe	.L4
	mov	QWORD PTR random_state[rip], rdx
	cmp	ebp, 65535
	ja	.L7
	mov	edx, 65535
	mov	ecx, ebp
	sub	edx, ebp
	lea	rax, text[rcx]
	lea	rdx, text[rcx+1+rdx]
	.p2align 4,,10
	.p2align 3
.L6:
	mov	BYTE PTR [rax], 32
	add	rax, 1
	cmp	rdx, rax
	jne	.L6
.L7:
	mov	DWORD PTR window[rip], 0
	pop	rbx
	pop	rbp
	pop	r12
	pop	r13
	ret
	.size	workload_setup, .-workload_setup
	.p2align 4
	.globl	workload_unit
	.type	workload_unit, @function
workload_unit:
	push	r15
	mov	edi, OFFSET FLAT:skip+256
	movabs	rax, -1028001813962170200
	push	r14
	push	r13
	push	r12
	push	rbp
	push	rbx
	sub	rsp, 8
	mov	r10, QWORD PTR random_state[rip]
	mov	r11d, DWORD PTR window[rip]
	add	rax, r10
	mov	QWORD PTR [rsp], rax
	xor	eax, eax
.L25:
	movabs	rbx, -7046029254386353131
	mov	r9, rax
	mov	r8d, 1024
	movabs	rsi, -4658895280553007687
	lea	rcx, [r10+rbx]
	sal	r9, 5
	movabs	rbx, -7723592293110705685
	mov	rdx, rcx
	sub	r9, rax
	movabs	rax, 4354685564936845354
	shr	rdx, 30
	add	r10, rax
	xor	rdx, rcx
	imul	rdx, rsi
	mov	rcx, rdx
	shr	rcx, 27
	xor	rcx, rdx
	imul	rcx, rbx
	mov	rdx, rcx
	shr	rdx, 31
	xor	rdx, rcx
	mov	rcx, r10
	shr	rcx, 30
	shr	rdx, 62
	xor	rcx, r10
	lea	r12d, [rdx+6]
	mov	rbp, rdx
	mov	r13d, edx
	imul	rcx, rsi
	movzx	r14d, r12b
	mov	rdx, r12
	mov	r15, r14
	sal	r15, 16
	mov	rax, rcx
	shr	rax, 27
	xor	rax, rcx
	mov	ecx, r11d
	imul	rax, rbx
	mov	ebx, r12d
	add	rcx, OFFSET FLAT:text
	sub	r8, rbx
	add	r8, rcx
	mov	rsi, rax
	shr	rsi, 31
	xor	rsi, rax
	movzx	eax, r12b
	shr	rsi, 32
	mov	ah, dl
	movabs	rdx, -4278190081
	imul	rsi, rsi, 65527
	and	rax, -16711681
	or	rax, r15
	mov	r15, r14
	sal	r15, 24
	and	rax, rdx
	movabs	rdx, -1095216660481
	shr	rsi, 32
	add	rsi, OFFSET FLAT:text
	or	rax, r15
	mov	r15, r14
	sal	r15, 32
	and	rax, rdx
	movabs	rdx, -280375465082881
	or	rax, r15
	mov	r15, r14
	sal	r15, 40
	and	rax, rdx
	movabs	rdx, -71776119061217281
	or	rax, r15
	mov	r15, r14
	sal	r14, 56
	sal	r15, 48
	and	rax, rdx
	movabs	rdx, 72057594037927935
	or	rax, r15
	mov	r15d, OFFSET FLAT:skip
	and	rax, rdx
	mov	rdx, rbp
	or	rax, r14
	mov	r14, rax
	.p2align 4,,10
	.p2align 3
.L17:
	mov	QWORD PTR [r15], r14
	add	r15, 8
	cmp	rdi, r15
	jne	.L17
	lea	edx, [rdx+5]
	sub	r12d, 1
	xor	eax, eax
	.p2align 4,,10
	.p2align 3
.L18:
	movzx	r14d, BYTE PTR [rsi+rax]
	mov	r15d, r12d
	sub	r15d, eax
	add	rax, 1
	mov	BYTE PTR skip[r14], r15b
	cmp	eax, edx
	jb	.L18
	cmp	r8, rcx
	jb	.L26
	add	r13d, 5
	mov	r14d, edx
	xor	r12d, r12d
	mov	r15, r13
	.p2align 4,,10
	.p2align 3
.L24:
	movzx	edx, BYTE PTR [rsi+r13]
	mov	eax, r15d
	cmp	BYTE PTR [rcx+r13], dl
	jne	.L21
	.p2align 4,,10
	.p2align 3
.L20:
	lea	edx, [rax-1]
	movzx	ebp, BYTE PTR [rsi+rdx]
	mov	rax, rdx
	cmp	BYTE PTR [rcx+rdx], bpl
	jne	.L21
	test	eax, eax
	jne	.L20
	lea	rax, [r12+r12*4]
	mov	r12, rcx
	sub	r12, OFFSET FLAT:text
	add	r12, rax
.L21:
	movzx	eax, BYTE PTR [rcx+r14]
	movzx	eax, BYTE PTR skip[rax]
	add	rcx, rax
	cmp	r8, rcx
	jnb	.L24
.L19:
	add	r9, rbx
	mov	rbx, QWORD PTR [rsp]
	add	r11d, 1024
	lea	rax, [r9+r12]
	movzx	r11d, r11w
	cmp	r10, rbx
	jne	.L25
	mov	DWORD PTR window[rip], r11d
	mov	QWORD PTR random_state[rip], r10
	add	rsp, 8
	pop	rbx
	pop	rbp
	pop	r12
	pop	r13
	pop	r14
	pop	r15
	ret
.L26:
	xor	r12d, r12d
	jmp	.L19
	.size	workload_unit, .-workload_unit
	.section	.rodata
	.align 8
	.type	vowels.0, @object
	.size	vowels.0, 8
vowels.0:
	.string	"eeaaiou"
	.align 8
	.type	consonants.1, @object
	.size	consonants.1, 15
consonants.1:
	.string	"ttnnssrrhldcmw"
	.local	window
	.comm	window,4,4
	.local	skip
	.comm	skip,256,32
	.local	text
	.comm	text,65536,32
	.globl	workload_name
	.type	workload_name, @object
	.size	workload_name, 6
workload_name:
	.string	"match"
	.local	random_state
	.comm	random_state,8,8
