# LZ77: a block compressed by matches with what came before in it, decompressed, and compared.
#
# A unit is one block of 256 bytes of a text in which phrases come back. A byte that is not what it was
# makes the unit's value all ones.
#
#: args --defsym EVENTS=6 --defsym UNITS=300
#: expect all: exit_code == 0
#: expect all: mem64(checksum) == 0x40b1145576da3461
#: expect all: pmis == mem64(perf_nmis)
#: expect all: mem64(perf_samples) > 20
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
	mov	BYTE PTR lz[rcx], al
	setb	cl
	cmp	edx, 24575
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
	cmp	edx, 24576
	jne	.L8
	mov	QWORD PTR random_state[rip], rdi
	mov	eax, OFFSET FLAT:lz+25344
	mov	edx, OFFSET FLAT:lz+27392
	.p2align 4,,10
	.p2align 3
.L9:
	mov	QWORD PTR [rax], 0
	add	rax, 8
	cmp	rdx, rax
	jne	.L9
	mov	DWORD PTR lz[rip+27392], 0
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
	mov	edi, DWORD PTR lz[rip+27392]
	mov	r11d, OFFSET FLAT:lz+24576
	xor	esi, esi
	push	r14
	mov	r8, r11
	xor	r10d, r10d
	push	r13
	add	rdi, OFFSET FLAT:lz
	push	r12
	push	rbp
	push	rbx
	.p2align 4,,10
	.p2align 3
.L38:
	mov	ecx, r10d
	mov	edx, esi
	lea	r9d, [rsi+4]
	and	ecx, 7
	add	rdx, rdi
	cmp	r9d, 256
	ja	.L57
	imul	eax, DWORD PTR [rdx], -1640531535
	shr	eax, 22
	add	rax, 12672
	movzx	r12d, WORD PTR lz[rax+rax]
	mov	WORD PTR lz[rax+rax], si
	mov	ebp, r12d
	cmp	r12d, esi
	jnb	.L25
	movzx	r13d, r12w
	mov	eax, DWORD PTR [rdx]
	cmp	DWORD PTR [rdi+r13], eax
	jne	.L25
	mov	ebx, 256
	mov	r14d, r9d
	mov	eax, 4
	sub	ebx, esi
	lea	rdx, [rdi+r14]
	mov	r15d, ebx
	cmp	r9d, 256
	jne	.L31
	jmp	.L58
	.p2align 4,,10
	.p2align 3
.L32:
	add	eax, 1
	cmp	eax, r15d
	je	.L59
	add	rdx, 1
	cmp	eax, 66
	je	.L60
.L31:
	mov	r9, rdx
	movzx	ebx, BYTE PTR [rdx]
	sub	r9, r14
	cmp	BYTE PTR [r13+4+r9], bl
	je	.L32
	lea	r13d, [rax-4]
	lea	r9d, [rsi+rax]
.L27:
	test	ecx, ecx
	je	.L33
	mov	edx, 1
	mov	rax, r8
	sal	edx, cl
	or	dl, BYTE PTR [r11]
.L34:
	mov	BYTE PTR [r11], dl
	mov	edx, esi
	sub	esi, r12d
	lea	r8, [rax+3]
	sub	edx, ebp
	mov	BYTE PTR [rax], r13b
	mov	BYTE PTR [rax+1], dl
	mov	edx, esi
	mov	esi, r9d
	mov	BYTE PTR [rax+2], dh
.L36:
	add	r10d, 1
	cmp	esi, 255
	jbe	.L38
	xor	r10d, r10d
	xor	eax, eax
	mov	ecx, OFFSET FLAT:lz+24576
	xor	r11d, r11d
	jmp	.L37
	.p2align 4,,10
	.p2align 3
.L40:
	mov	edx, eax
	add	eax, 1
	add	rcx, 1
	add	r11d, 1
	mov	BYTE PTR lz[rdx+25088], sil
	shr	r10d
	cmp	eax, 255
	ja	.L61
.L37:
	movzx	edx, BYTE PTR [rcx]
	test	r11b, 7
	jne	.L39
	add	rcx, 1
	movzx	r10d, dl
.L39:
	movzx	esi, BYTE PTR [rcx]
	test	r10b, 1
	je	.L40
	movzx	r9d, WORD PTR [rcx+1]
	mov	edx, eax
	add	rcx, 3
	lea	ebx, [rax+4+rsi]
	sub	edx, r9d
	.p2align 4,,10
	.p2align 3
.L41:
	mov	esi, edx
	add	edx, 1
	movzx	r9d, BYTE PTR lz[rsi+25088]
	mov	esi, eax
	add	eax, 1
	mov	BYTE PTR lz[rsi+25088], r9b
	cmp	eax, ebx
	jne	.L41
	add	r11d, 1
	shr	r10d
	cmp	eax, 255
	jbe	.L37
.L61:
	xor	eax, eax
	jmp	.L44
	.p2align 4,,10
	.p2align 3
.L63:
	add	rax, 1
	cmp	rax, 256
	je	.L62
.L44:
	movzx	ebx, BYTE PTR [rdi+rax]
	cmp	BYTE PTR lz[rax+25088], bl
	je	.L63
	pop	rbx
	mov	rax, -1
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
	movzx	eax, BYTE PTR [rdx]
	add	esi, 1
	add	r10d, 1
	add	r8, 1
	mov	BYTE PTR [r8-1], al
	jmp	.L38
	.p2align 4,,10
	.p2align 3
.L57:
	test	ecx, ecx
	jne	.L21
	mov	BYTE PTR [r8], 0
	mov	r11, r8
	add	r8, 1
.L21:
	movzx	eax, BYTE PTR [rdx]
	add	esi, 1
	add	r8, 1
	mov	BYTE PTR [r8-1], al
	jmp	.L36
	.p2align 4,,10
	.p2align 3
.L23:
	mov	BYTE PTR [r8], 0
	movzx	eax, BYTE PTR [rdx]
	mov	r11, r8
	add	esi, 1
	add	r10d, 1
	add	r8, 2
	mov	BYTE PTR [r8-1], al
	jmp	.L38
	.p2align 4,,10
	.p2align 3
.L33:
	mov	BYTE PTR [r8], 0
	lea	rax, [r8+1]
	mov	r11, r8
	mov	edx, 1
	jmp	.L34
	.p2align 4,,10
	.p2align 3
.L59:
	lea	r9d, [rax+rsi]
	lea	r13d, [rax-4]
	jmp	.L27
	.p2align 4,,10
	.p2align 3
.L60:
	lea	r9d, [rsi+66]
	mov	r13d, 62
	jmp	.L27
.L62:
	mov	rax, r8
	sub	rax, OFFSET FLAT:lz+24576
	cmp	r8, OFFSET FLAT:lz+24576
	jbe	.L45
	mov	edx, OFFSET FLAT:lz+24576
	.p2align 4,,10
	.p2align 3
.L46:
	lea	rcx, [rax+rax*2]
	movzx	eax, BYTE PTR [rdx]
	add	rdx, 1
	add	rax, rcx
	cmp	rdx, r8
	jne	.L46
.L45:
	mov	edi, DWORD PTR lz[rip+27392]
	pop	rbx
	pop	rbp
	pop	r12
	lea	ecx, [rdi+256]
	pop	r13
	pop	r14
	mov	edx, ecx
	pop	r15
	shr	edx, 8
	imul	rdx, rdx, 45210184
	shr	rdx, 32
	imul	edx, edx, 24320
	sub	ecx, edx
	mov	DWORD PTR lz[rip+27392], ecx
	ret
.L58:
	xor	r13d, r13d
	jmp	.L27
	.size	workload_unit, .-workload_unit
	.local	phrases.0
	.comm	phrases.0,768,32
	.local	lz
	.comm	lz,27396,32768
	.globl	workload_name
	.section	.rodata
	.type	workload_name, @object
	.size	workload_name, 3
workload_name:
	.string	"lz"
	.local	random_state
	.comm	random_state,8,8
