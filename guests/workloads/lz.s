# LZ77: a block compressed by matches with what came before in it, decompressed, and compared.
#
# A unit is one block of 256 bytes of a text in which phrases come back. A byte that is not what it was
# makes the unit's value all ones.
#
# Made from guests/c/workloads/lz.c by gcc 12.2.0: python -m tests.tools.compile_guests
	.include "perf_kernel.inc"
	.intel_syntax noprefix
	.text
	.p2align 4
	.globl	workload_setup
	.type	workload_setup, @function
workload_setup:
	push	r14
	mov	r11d, OFFSET FLAT:phrases.0
	movabs	r10, -7046029254386353131
	movabs	r9, -4658895280553007687
	movabs	r8, -7723592293110705685
	push	r13
	mov	r13, rdi
	push	r12
	mov	r12d, OFFSET FLAT:phrases.0+768
	push	rbp
	movabs	rbp, -7681369315911520508
	push	rbx
	movabs	rbx, 7681369315911520508
	add	rdi, rbx
	.p2align 4,,10
	.p2align 3
.L2:
	lea	rcx, [rdi+rbp]
	mov	rsi, r11
	.p2align 4,,10
	.p2align 3
.L3:
	add	rcx, r10
	add	rsi, 1
	mov	rax, rcx
	shr	rax, 30
	xor	rax, rcx
	imul	rax, r9
	mov	rdx, rax
	shr	rdx, 27
	xor	rdx, rax
	imul	rdx, r8
	mov	rax, rdx
	shr	rax, 31
	xor	rax, rdx
	shr	rax, 32
	lea	rax, [rax+rax*2]
	shr	rax, 29
	add	eax, 97
	mov	BYTE PTR [rsi-1], al
	cmp	rcx, rdi
	jne	.L3
	add	r11, 12
	lea	rdi, [rcx+rbx]
	cmp	r12, r11
	jne	.L2
	movabs	rdi, -6454453771820581120
	xor	edx, edx
	movabs	rbx, -7046029254386353131
	movabs	r10, -4658895280553007687
	movabs	r9, -7723592293110705685
	add	rdi, r13
	movabs	r12, 4354685564936845354
	movabs	r13, -2691343689449507777
.L8:
	lea	rcx, [rdi+rbx]
	mov	rax, rcx
	shr	rax, 30
	xor	rax, rcx
	imul	rax, r10
	mov	rcx, rax
	shr	rcx, 27
	xor	rcx, rax
	imul	rcx, r9
	mov	rax, rcx
	shr	rax, 31
	xor	rax, rcx
	shr	rax, 32
	lea	r11, [rax+rax*4]
	lea	rax, [rdi+r12]
	add	rdi, r13
	mov	rcx, rax
	mov	rsi, rdi
	shr	r11, 31
	shr	rcx, 30
	shr	rsi, 30
	add	r11d, 3
	xor	rcx, rax
	xor	rsi, rdi
	imul	rcx, r10
	imul	rsi, r10
	mov	rax, rcx
	shr	rax, 27
	xor	rax, rcx
	mov	rcx, rsi
	imul	rax, r9
	shr	rcx, 27
	xor	rcx, rsi
	imul	rcx, r9
	mov	rsi, rax
	shr	rsi, 31
	xor	rax, rsi
	mov	rsi, rcx
	shr	rsi, 31
	shr	rax, 58
	xor	rcx, rsi
	add	rax, 1
	mov	esi, 1
	shr	rcx, 32
	imul	rax, rcx
	mov	ecx, edx
	shr	rax, 32
	lea	rax, [rax+rax*2]
	lea	rbp, phrases.0[0+rax*4]
	jmp	.L7
	.p2align 4,,10
	.p2align 3
.L17:
	movzx	eax, BYTE PTR [rbp-1+rsi]
	mov	rdi, r8
.L6:
	add	edx, 1
	cmp	esi, r11d
	mov	BYTE PTR text[rcx], al
	setb	cl
	cmp	edx, 65535
	setbe	al
	add	rsi, 1
	test	cl, al
	je	.L16
	mov	ecx, edx
.L7:
	lea	r8, [rdi+rbx]
	mov	rax, r8
	shr	rax, 30
	xor	rax, r8
	imul	rax, r10
	mov	r14, rax
	shr	r14, 27
	xor	r14, rax
	imul	r14, r9
	mov	rax, r14
	shr	rax, 31
	xor	rax, r14
	shr	rax, 32
	lea	rax, [rax+rax*2]
	shr	rax, 29
	jne	.L17
	add	rdi, r12
	mov	rax, rdi
	shr	rax, 30
	xor	rax, rdi
	imul	rax, r10
	mov	r8, rax
	shr	r8, 27
	xor	r8, rax
	imul	r8, r9
	mov	rax, r8
	shr	rax, 31
	xor	rax, r8
	shr	rax, 32
	lea	rax, [rax+rax*2]
	shr	rax, 29
	add	eax, 65
	jmp	.L6
.L16:
	cmp	edx, 65536
	jne	.L8
	mov	QWORD PTR random_state[rip], rdi
	mov	eax, OFFSET FLAT:last
	mov	edx, OFFSET FLAT:last+2048
	.p2align 4,,10
	.p2align 3
.L9:
	mov	QWORD PTR [rax], 0
	add	rax, 8
	cmp	rdx, rax
	jne	.L9
	mov	DWORD PTR block[rip], 0
	pop	rbx
	pop	rbp
	pop	r12
	pop	r13
	pop	r14
	ret
	.size	workload_setup, .-workload_setup
	.p2align 4
	.globl	workload_unit
	.type	workload_unit, @function
workload_unit:
	push	r15
	xor	r11d, r11d
	xor	esi, esi
	push	r14
	mov	r14d, OFFSET FLAT:packed
	push	r13
	mov	r8, r14
	push	r12
	push	rbp
	push	rbx
	sub	rsp, 8
	mov	edi, DWORD PTR block[rip]
	mov	rdx, rdi
	add	rdi, OFFSET FLAT:text
	mov	DWORD PTR [rsp+4], edx
	.p2align 4,,10
	.p2align 3
.L38:
	mov	ecx, r11d
	mov	r9d, esi
	lea	r10d, [rsi+4]
	and	ecx, 7
	add	r9, rdi
	cmp	r10d, 256
	ja	.L58
	mov	ebp, DWORD PTR [r9]
	imul	eax, ebp, -1640531535
	shr	eax, 22
	movzx	edx, WORD PTR last[rax+rax]
	mov	WORD PTR last[rax+rax], si
	mov	r13d, edx
	cmp	edx, esi
	jnb	.L25
	movzx	ebx, dx
	cmp	ebp, DWORD PTR [rdi+rbx]
	jne	.L25
	mov	r15d, 256
	mov	ebp, r10d
	mov	eax, 4
	sub	r15d, esi
	lea	r9, [rdi+rbp]
	mov	r12d, r15d
	cmp	r10d, 256
	jne	.L31
	jmp	.L59
	.p2align 4,,10
	.p2align 3
.L32:
	add	eax, 1
	cmp	eax, r12d
	je	.L60
	add	r9, 1
	cmp	eax, 66
	je	.L61
.L31:
	mov	r10, r9
	movzx	r15d, BYTE PTR [r9]
	sub	r10, rbp
	cmp	BYTE PTR [rbx+4+r10], r15b
	je	.L32
	lea	r9d, [rax-4]
	lea	r10d, [rsi+rax]
.L27:
	test	ecx, ecx
	je	.L33
	mov	eax, 1
	sal	eax, cl
	mov	ecx, eax
	mov	rax, r8
	or	cl, BYTE PTR [r14]
.L34:
	mov	BYTE PTR [r14], cl
	mov	ecx, esi
	sub	esi, edx
	lea	r8, [rax+3]
	sub	ecx, r13d
	mov	BYTE PTR [rax], r9b
	mov	BYTE PTR [rax+1], cl
	mov	ecx, esi
	mov	esi, r10d
	mov	BYTE PTR [rax+2], ch
.L36:
	add	r11d, 1
	cmp	esi, 255
	jbe	.L38
	mov	edx, DWORD PTR [rsp+4]
	xor	r11d, r11d
	xor	eax, eax
	mov	esi, OFFSET FLAT:packed
	xor	ebx, ebx
	jmp	.L37
	.p2align 4,,10
	.p2align 3
.L40:
	mov	ecx, eax
	add	eax, 1
	add	rsi, 1
	add	ebx, 1
	mov	BYTE PTR unpacked[rcx], r9b
	shr	r11d
	cmp	eax, 255
	ja	.L62
.L37:
	movzx	ecx, BYTE PTR [rsi]
	test	bl, 7
	jne	.L39
	add	rsi, 1
	movzx	r11d, cl
.L39:
	movzx	r9d, BYTE PTR [rsi]
	test	r11b, 1
	je	.L40
	movzx	r10d, WORD PTR [rsi+1]
	mov	ecx, eax
	add	rsi, 3
	lea	ebp, [rax+4+r9]
	sub	ecx, r10d
	.p2align 4,,10
	.p2align 3
.L41:
	mov	r9d, ecx
	add	ecx, 1
	movzx	r10d, BYTE PTR unpacked[r9]
	mov	r9d, eax
	add	eax, 1
	mov	BYTE PTR unpacked[r9], r10b
	cmp	eax, ebp
	jne	.L41
	add	ebx, 1
	shr	r11d
	cmp	eax, 255
	jbe	.L37
.L62:
	xor	eax, eax
	jmp	.L44
	.p2align 4,,10
	.p2align 3
.L64:
	add	rax, 1
	cmp	rax, 256
	je	.L63
.L44:
	movzx	ebx, BYTE PTR [rdi+rax]
	cmp	BYTE PTR unpacked[rax], bl
	je	.L64
	add	rsp, 8
	mov	rax, -1
	pop	rbx
	pop	rbp
	pop	r12
	pop	r13
	pop	r14
	pop	r15
	ret
	.p2align 4,,10
	.p2align 3
.L25:
	test	ecx, ecx
	je	.L23
	movzx	eax, BYTE PTR [r9]
	add	esi, 1
	add	r11d, 1
	add	r8, 1
	mov	BYTE PTR [r8-1], al
	jmp	.L38
	.p2align 4,,10
	.p2align 3
.L58:
	test	ecx, ecx
	jne	.L21
	mov	BYTE PTR [r8], 0
	mov	r14, r8
	add	r8, 1
.L21:
	movzx	eax, BYTE PTR [r9]
	add	esi, 1
	add	r8, 1
	mov	BYTE PTR [r8-1], al
	jmp	.L36
	.p2align 4,,10
	.p2align 3
.L23:
	movzx	eax, BYTE PTR [r9]
	mov	BYTE PTR [r8], 0
	mov	r14, r8
	add	esi, 1
	add	r11d, 1
	add	r8, 2
	mov	BYTE PTR [r8-1], al
	jmp	.L38
	.p2align 4,,10
	.p2align 3
.L33:
	mov	BYTE PTR [r8], 0
	lea	rax, [r8+1]
	mov	r14, r8
	mov	ecx, 1
	jmp	.L34
	.p2align 4,,10
	.p2align 3
.L60:
	lea	r10d, [rax+rsi]
	lea	r9d, [rax-4]
	jmp	.L27
	.p2align 4,,10
	.p2align 3
.L61:
	lea	r10d, [rsi+66]
	mov	r9d, 62
	jmp	.L27
.L63:
	mov	rax, r8
	sub	rax, OFFSET FLAT:packed
	cmp	r8, OFFSET FLAT:packed
	jbe	.L45
	mov	ecx, OFFSET FLAT:packed
	.p2align 4,,10
	.p2align 3
.L46:
	lea	rsi, [rax+rax*2]
	movzx	eax, BYTE PTR [rcx]
	add	rcx, 1
	add	rax, rsi
	cmp	rcx, r8
	jne	.L46
.L45:
	lea	ecx, [rdx+256]
	mov	esi, 2155905153
	mov	rdx, rcx
	imul	rcx, rsi
	shr	rcx, 47
	imul	ecx, ecx, 65280
	sub	edx, ecx
	mov	DWORD PTR block[rip], edx
	add	rsp, 8
	pop	rbx
	pop	rbp
	pop	r12
	pop	r13
	pop	r14
	pop	r15
	ret
.L59:
	xor	r9d, r9d
	jmp	.L27
	.size	workload_unit, .-workload_unit
	.local	phrases.0
	.comm	phrases.0,768,32
	.local	block
	.comm	block,4,4
	.local	last
	.comm	last,2048,32
	.local	unpacked
	.comm	unpacked,256,32
	.local	packed
	.comm	packed,512,32
	.local	text
	.comm	text,65536,32
	.globl	workload_name
	.section	.rodata
	.type	workload_name, @object
	.size	workload_name, 3
workload_name:
	.string	"lz"
	.local	random_state
	.comm	random_state,8,8
