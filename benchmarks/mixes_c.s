# Made from benchmarks/mixes.c by gcc 12.2.0: python -m tests.tools.compile_guests
	.intel_syntax noprefix
	.text
	.p2align 4
	.type	sorted, @function
sorted:
	cmp	esi, 1
	jle	.L25
	push	r12
	mov	rdx, rdi
	mov	r12, rdi
	push	rbp
	mov	ebp, esi
	push	rbx
	sar	ebp
	sub	rsp, 32
	cmp	ebp, 1
	je	.L3
	mov	eax, 1
	.p2align 4,,10
	.p2align 3
.L4:
	add	eax, 1
	mov	rdx, QWORD PTR [rdx]
	cmp	eax, ebp
	jne	.L4
.L3:
	mov	rdi, QWORD PTR [rdx]
	mov	QWORD PTR [rdx], 0
	sub	esi, ebp
	call	sorted
	mov	esi, ebp
	mov	rdi, r12
	mov	rbx, rax
	call	sorted
	mov	QWORD PTR [rsp+8], rbx
	mov	QWORD PTR [rsp], rax
	test	rax, rax
	je	.L12
	test	rbx, rbx
	je	.L12
	lea	rcx, [rsp+16]
	jmp	.L7
	.p2align 4,,10
	.p2align 3
.L31:
	mov	rdx, rax
	mov	rax, rsp
.L6:
	mov	QWORD PTR [rcx], rdx
	mov	rcx, QWORD PTR [rdx]
	mov	QWORD PTR [rax], rcx
	mov	rax, QWORD PTR [rsp]
	mov	rbx, QWORD PTR [rsp+8]
	test	rax, rax
	je	.L5
	test	rbx, rbx
	je	.L5
	mov	rcx, rdx
.L7:
	movzx	edi, WORD PTR [rax+8]
	cmp	WORD PTR [rbx+8], di
	jnb	.L31
	mov	rdx, rbx
	lea	rax, [rsp+8]
	jmp	.L6
	.p2align 4,,10
	.p2align 3
.L12:
	lea	rdx, [rsp+16]
.L5:
	test	rax, rax
	cmove	rax, rbx
	mov	QWORD PTR [rdx], rax
	mov	rax, QWORD PTR [rsp+16]
	add	rsp, 32
	pop	rbx
	pop	rbp
	pop	r12
	ret
	.p2align 4,,10
	.p2align 3
.L25:
	mov	rax, rdi
	ret
	.size	sorted, .-sorted
	.p2align 4
	.globl	work
	.type	work, @function
work:
	test	rdi, rdi
	je	.L68
	push	r13
	lea	r11, [rdi-1]
	mov	r9d, 1
	mov	r10d, 4042322161
	push	r12
	push	rbp
	push	rbx
	sub	rsp, 40
	mov	r8d, DWORD PTR seed[rip]
.L34:
	mov	eax, OFFSET FLAT:nodes
	xor	esi, esi
	xor	edx, edx
	.p2align 4,,10
	.p2align 3
.L35:
	imul	r8d, r8d, 1664525
	mov	WORD PTR [rax+10], dx
	mov	rdi, rsi
	add	edx, 1
	mov	QWORD PTR [rax], rdi
	mov	rsi, rax
	add	rax, 16
	add	r8d, 1013904223
	mov	ecx, r8d
	shr	ecx, 8
	and	cx, 4095
	mov	WORD PTR [rax-8], cx
	cmp	edx, 128
	jne	.L35
	mov	esi, 128
	mov	edi, OFFSET FLAT:nodes+2032
	call	sorted
	mov	ecx, 8
	mov	rsi, rax
.L39:
	imul	r8d, r8d, 1664525
	add	r8d, 1013904223
	mov	edx, r8d
	shr	edx, 8
	and	dx, 4095
	test	rsi, rsi
	je	.L36
	mov	rax, rsi
	jmp	.L38
	.p2align 4,,10
	.p2align 3
.L37:
	mov	rax, QWORD PTR [rax]
	test	rax, rax
	je	.L36
.L38:
	cmp	WORD PTR [rax+8], dx
	jb	.L37
	movzx	eax, WORD PTR [rax+10]
	add	r9d, eax
.L36:
	sub	ecx, 1
	jne	.L39
	movzx	edx, WORD PTR [rsi+8]
	mov	eax, 32
	.p2align 4,,10
	.p2align 3
.L41:
	mov	esi, edx
	shr	edx
	xor	esi, r9d
	shr	r9d
	mov	ecx, r9d
	xor	ecx, -306674912
	and	esi, 1
	cmovne	r9d, ecx
	sub	eax, 1
	jne	.L41
	xor	eax, eax
.L42:
	lea	rdx, [rax+48]
	.p2align 4,,10
	.p2align 3
.L43:
	imul	ecx, r8d, 1664525
	add	rax, 4
	add	ecx, 1013904223
	movzx	esi, ch
	imul	ecx, ecx, 1664525
	add	esi, -128
	mov	DWORD PTR left[rax-4], esi
	lea	r8d, [rcx+1013904223]
	mov	ecx, r8d
	shr	ecx, 8
	movsx	ecx, cx
	mov	DWORD PTR right[rax-4], ecx
	cmp	rdx, rax
	jne	.L43
	cmp	rdx, 576
	je	.L118
	mov	rax, rdx
	jmp	.L42
.L118:
	mov	eax, OFFSET FLAT:left
	mov	edx, OFFSET FLAT:product
.L44:
	mov	ecx, OFFSET FLAT:right
	mov	rsi, rdx
	.p2align 4,,10
	.p2align 3
.L49:
	mov	rdi, rcx
	mov	r12, rax
	lea	r13, [rcx+576]
	xor	ebx, ebx
	.p2align 4,,10
	.p2align 3
.L45:
	mov	ebp, DWORD PTR [r12]
	imul	ebp, DWORD PTR [rdi]
	add	rdi, 48
	add	r12, 4
	add	ebx, ebp
	cmp	r13, rdi
	jne	.L45
	mov	edi, ebx
	mov	DWORD PTR [rsi], ebx
	shr	edi, 3
	add	edi, r9d
	test	ebx, ebx
	cmovg	r9d, edi
	add	rcx, 4
	add	rsi, 4
	cmp	rcx, OFFSET FLAT:right+48
	jne	.L49
	add	rax, 48
	add	rdx, 48
	cmp	rax, OFFSET FLAT:left+576
	jne	.L44
	mov	edx, DWORD PTR product[rip+572]
	mov	eax, 32
	.p2align 4,,10
	.p2align 3
.L51:
	mov	esi, edx
	shr	edx
	xor	esi, r9d
	shr	r9d
	mov	ecx, r9d
	xor	ecx, -306674912
	and	esi, 1
	cmovne	r9d, ecx
	sub	eax, 1
	jne	.L51
	mov	QWORD PTR [rsp+8], 0
	mov	ecx, OFFSET FLAT:text
	mov	QWORD PTR [rsp+16], 0
	mov	rsi, rcx
	mov	QWORD PTR [rsp+24], 0
	.p2align 4,,10
	.p2align 3
.L52:
	imul	r8d, r8d, 1664525
	add	rsi, 1
	add	r8d, 1013904223
	mov	edx, r8d
	shr	edx, 8
	mov	eax, edx
	imul	rax, r10
	shr	rax, 36
	mov	edi, eax
	sal	edi, 4
	add	eax, edi
	sub	edx, eax
	movzx	eax, BYTE PTR letters.0[rdx]
	mov	BYTE PTR [rsi-1], al
	cmp	rsi, OFFSET FLAT:text+256
	jne	.L52
	xor	eax, eax
	jmp	.L61
	.p2align 4,,10
	.p2align 3
.L121:
	test	eax, eax
	je	.L119
.L109:
	lea	esi, [rdx-48]
	mov	eax, 2
	cmp	sil, 9
	jbe	.L59
	xor	eax, eax
	cmp	dl, 46
	setne	al
	lea	eax, [rax+3+rax]
	.p2align 4,,10
	.p2align 3
.L59:
	mov	edx, eax
	add	rcx, 1
	add	DWORD PTR [rsp+8+rdx*4], 1
	cmp	rcx, OFFSET FLAT:text+256
	je	.L120
.L61:
	movzx	edx, BYTE PTR [rcx]
	cmp	eax, 2
	je	.L53
	jbe	.L121
	cmp	eax, 5
	je	.L122
	lea	esi, [rdx-48]
	mov	eax, 4
	cmp	sil, 9
	jbe	.L59
.L115:
	xor	eax, eax
	cmp	dl, 44
	setne	al
	lea	eax, [rax+rax*4]
	jmp	.L59
	.p2align 4,,10
	.p2align 3
.L119:
	lea	esi, [rdx-43]
	mov	eax, 1
	and	esi, 253
	je	.L59
	jmp	.L109
	.p2align 4,,10
	.p2align 3
.L122:
	cmp	dl, 44
	je	.L80
	cmp	dl, 32
	jne	.L59
.L80:
	xor	eax, eax
	jmp	.L59
	.p2align 4,,10
	.p2align 3
.L53:
	lea	esi, [rdx-48]
	cmp	sil, 9
	jbe	.L59
	mov	eax, 3
	cmp	dl, 46
	jne	.L115
	jmp	.L59
.L120:
	lea	rdi, [rsp+8]
	lea	rbx, [rsp+32]
.L64:
	mov	edx, DWORD PTR [rdi]
	mov	eax, 32
	.p2align 4,,10
	.p2align 3
.L63:
	mov	esi, edx
	shr	edx
	xor	esi, r9d
	shr	r9d
	mov	ecx, r9d
	xor	ecx, -306674912
	and	esi, 1
	cmovne	r9d, ecx
	sub	eax, 1
	jne	.L63
	add	rdi, 4
	cmp	rdi, rbx
	jne	.L64
	mov	esi, 64
	.p2align 4,,10
	.p2align 3
.L67:
	imul	r8d, r8d, 1664525
	add	r8d, 1013904223
	mov	edx, r8d
	shr	edx, 8
	mov	eax, edx
	xor	eax, r9d
	cmp	edx, r9d
	mov	edx, 0
	je	.L65
	.p2align 4,,10
	.p2align 3
.L66:
	lea	ecx, [rax-1]
	add	edx, 1
	and	eax, ecx
	jne	.L66
.L65:
	rol	r9d, 5
	add	r9d, edx
	sub	esi, 1
	jne	.L67
	mov	DWORD PTR seed[rip], r8d
	sub	r11, 1
	jnb	.L34
	add	rsp, 40
	mov	eax, r9d
	pop	rbx
	pop	rbp
	pop	r12
	pop	r13
	ret
.L68:
	mov	eax, 1
	ret
	.size	work, .-work
	.section	.rodata
	.align 16
	.type	letters.0, @object
	.size	letters.0, 18
letters.0:
	.string	"0123456789+-.,, x"
	.data
	.align 4
	.type	seed, @object
	.size	seed, 4
seed:
	.long	12345
	.local	text
	.comm	text,256,32
	.local	product
	.comm	product,576,32
	.local	right
	.comm	right,576,32
	.local	left
	.comm	left,576,32
	.local	nodes
	.comm	nodes,2048,32
