# The product of two matrices of integers: multiplications in a row, hardly a branch that is not foreseen.
#
# The matrices have 40 rows and columns. A unit is one row of the product; when all rows are there the product is
# the next left factor.
#
#: args --defsym EVENTS=6 --defsym UNITS=300
#: expect all: exit_code == 0
#: expect all: mem64(checksum) == 0x6fd97a9053ebde40
#: expect all: pmis == mem64(perf_nmis)
#: expect all: mem64(perf_samples) > 20
#
# Made from guests/c/workloads/matrix.c by gcc 12.2.0: python -m tests.tools.compile_guests
	.include "perf_kernel.inc"
	.intel_syntax noprefix
	.text
	.p2align 4
	.globl	workload_setup
	.type	workload_setup, @function
workload_setup:
	movabs	r9, -5925332574684856646
	push	r13
	mov	r13, rdi
	movabs	r11, 7046029254386353131
	movabs	r8, -4658895280553007687
	push	r12
	add	r9, rdi
	movabs	r12, -8166725934087849616
	movabs	rdi, -7723592293110705685
	push	rbp
	movabs	r10, 4354685564936845354
	movabs	rbp, 8166725934087849616
	push	rbx
	mov	ebx, OFFSET FLAT:matrix
	.p2align 4,,10
	.p2align 3
.L2:
	lea	rcx, [r9+r12]
	mov	rsi, rbx
	.p2align 4,,10
	.p2align 3
.L3:
	lea	rax, [rcx+r11]
	add	rsi, 4
	mov	rdx, rax
	shr	rdx, 30
	xor	rdx, rax
	imul	rdx, r8
	mov	rax, rdx
	shr	rax, 27
	xor	rax, rdx
	imul	rax, rdi
	mov	rdx, rax
	shr	rdx, 31
	xor	rax, rdx
	mov	rdx, rcx
	shr	rdx, 30
	mov	DWORD PTR [rsi-4], eax
	xor	rdx, rcx
	add	rcx, r10
	imul	rdx, r8
	mov	rax, rdx
	shr	rax, 27
	xor	rax, rdx
	imul	rax, rdi
	mov	rdx, rax
	shr	rdx, 31
	xor	rax, rdx
	or	eax, 1
	mov	DWORD PTR [rsi+6396], eax
	cmp	rcx, r9
	jne	.L3
	add	rbx, 160
	lea	r9, [rcx+rbp]
	cmp	rbx, OFFSET FLAT:matrix+6400
	jne	.L2
	movabs	rax, -5372355963257944448
	pop	rbx
	pop	rbp
	mov	DWORD PTR matrix[rip+19200], 0
	add	r13, rax
	pop	r12
	mov	QWORD PTR random_state[rip], r13
	pop	r13
	ret
	.size	workload_setup, .-workload_setup
	.p2align 4
	.globl	workload_unit
	.type	workload_unit, @function
workload_unit:
	push	r15
	push	r14
	push	r13
	push	r12
	push	rbp
	push	rbx
	add	rsp, -128
	mov	eax, DWORD PTR matrix[rip+19200]
	lea	rsi, [rax+rax*4]
	mov	r15, rax
	sal	rsi, 5
	lea	rax, matrix[rsi]
	mov	r14d, DWORD PTR matrix[rsi]
	mov	ecx, DWORD PTR [rax+40]
	mov	r13d, DWORD PTR [rax+4]
	mov	r12d, DWORD PTR [rax+8]
	mov	ebp, DWORD PTR [rax+12]
	mov	ebx, DWORD PTR [rax+16]
	mov	r11d, DWORD PTR [rax+20]
	mov	DWORD PTR [rsp+4], ecx
	mov	ecx, DWORD PTR [rax+44]
	mov	r10d, DWORD PTR [rax+24]
	mov	r9d, DWORD PTR [rax+28]
	mov	r8d, DWORD PTR [rax+32]
	mov	DWORD PTR [rsp+8], ecx
	mov	ecx, DWORD PTR [rax+48]
	mov	edi, DWORD PTR [rax+36]
	mov	DWORD PTR [rsp+12], ecx
	mov	ecx, DWORD PTR [rax+52]
	mov	DWORD PTR [rsp+16], ecx
	mov	ecx, DWORD PTR [rax+56]
	mov	DWORD PTR [rsp+20], ecx
	mov	ecx, DWORD PTR [rax+60]
	mov	DWORD PTR [rsp+24], ecx
	mov	ecx, DWORD PTR [rax+64]
	mov	DWORD PTR [rsp+28], ecx
	mov	ecx, DWORD PTR [rax+68]
	mov	DWORD PTR [rsp+32], ecx
	mov	ecx, DWORD PTR [rax+72]
	mov	DWORD PTR [rsp+36], ecx
	mov	ecx, DWORD PTR [rax+76]
	mov	DWORD PTR [rsp+40], ecx
	mov	ecx, DWORD PTR [rax+80]
	mov	DWORD PTR [rsp+44], ecx
	mov	ecx, DWORD PTR [rax+84]
	mov	DWORD PTR [rsp+48], ecx
	mov	ecx, DWORD PTR [rax+88]
	mov	DWORD PTR [rsp+52], ecx
	mov	ecx, DWORD PTR [rax+92]
	mov	DWORD PTR [rsp+56], ecx
	mov	ecx, DWORD PTR [rax+96]
	mov	DWORD PTR [rsp+60], ecx
	mov	ecx, DWORD PTR [rax+100]
	mov	DWORD PTR [rsp+64], ecx
	mov	ecx, DWORD PTR [rax+104]
	mov	DWORD PTR [rsp+68], ecx
	mov	ecx, DWORD PTR [rax+108]
	mov	DWORD PTR [rsp+72], ecx
	mov	ecx, DWORD PTR [rax+112]
	mov	DWORD PTR [rsp+76], ecx
	mov	ecx, DWORD PTR [rax+116]
	mov	DWORD PTR [rsp+80], ecx
	mov	ecx, DWORD PTR [rax+120]
	mov	DWORD PTR [rsp+84], ecx
	mov	ecx, DWORD PTR [rax+124]
	mov	DWORD PTR [rsp+88], ecx
	mov	ecx, DWORD PTR [rax+128]
	mov	DWORD PTR [rsp+92], ecx
	mov	ecx, DWORD PTR [rax+132]
	mov	DWORD PTR [rsp+124], r15d
	mov	DWORD PTR [rsp+96], ecx
	mov	ecx, DWORD PTR [rax+136]
	mov	DWORD PTR [rsp+100], ecx
	mov	ecx, DWORD PTR [rax+140]
	mov	DWORD PTR [rsp+104], ecx
	mov	ecx, DWORD PTR [rax+144]
	mov	DWORD PTR [rsp+108], ecx
	mov	ecx, DWORD PTR [rax+148]
	mov	DWORD PTR [rsp+112], ecx
	mov	ecx, DWORD PTR [rax+152]
	mov	eax, DWORD PTR [rax+156]
	mov	DWORD PTR [rsp+116], ecx
	mov	ecx, OFFSET FLAT:matrix+6400
	mov	DWORD PTR [rsp+120], eax
	xor	eax, eax
	.p2align 4,,10
	.p2align 3
.L9:
	mov	r15d, DWORD PTR [rcx]
	mov	edx, DWORD PTR [rcx+160]
	lea	rax, [rax+rax*2]
	imul	r15d, r14d
	imul	edx, r13d
	add	edx, r15d
	mov	r15d, DWORD PTR [rcx+320]
	imul	r15d, r12d
	add	edx, r15d
	mov	r15d, DWORD PTR [rcx+480]
	imul	r15d, ebp
	add	edx, r15d
	mov	r15d, DWORD PTR [rcx+640]
	imul	r15d, ebx
	add	edx, r15d
	mov	r15d, DWORD PTR [rcx+800]
	imul	r15d, r11d
	add	edx, r15d
	mov	r15d, DWORD PTR [rcx+960]
	imul	r15d, r10d
	add	edx, r15d
	mov	r15d, DWORD PTR [rcx+1120]
	imul	r15d, r9d
	add	edx, r15d
	mov	r15d, DWORD PTR [rcx+1280]
	imul	r15d, r8d
	add	edx, r15d
	mov	r15d, DWORD PTR [rcx+1440]
	imul	r15d, edi
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+4]
	imul	r15d, DWORD PTR [rcx+1600]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+8]
	imul	r15d, DWORD PTR [rcx+1760]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+12]
	imul	r15d, DWORD PTR [rcx+1920]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+16]
	imul	r15d, DWORD PTR [rcx+2080]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+20]
	imul	r15d, DWORD PTR [rcx+2240]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+24]
	imul	r15d, DWORD PTR [rcx+2400]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+28]
	imul	r15d, DWORD PTR [rcx+2560]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+32]
	imul	r15d, DWORD PTR [rcx+2720]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+36]
	imul	r15d, DWORD PTR [rcx+2880]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+40]
	imul	r15d, DWORD PTR [rcx+3040]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+44]
	imul	r15d, DWORD PTR [rcx+3200]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+48]
	imul	r15d, DWORD PTR [rcx+3360]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+52]
	imul	r15d, DWORD PTR [rcx+3520]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+56]
	imul	r15d, DWORD PTR [rcx+3680]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+60]
	imul	r15d, DWORD PTR [rcx+3840]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+64]
	imul	r15d, DWORD PTR [rcx+4000]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+68]
	imul	r15d, DWORD PTR [rcx+4160]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+72]
	imul	r15d, DWORD PTR [rcx+4320]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+76]
	imul	r15d, DWORD PTR [rcx+4480]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+80]
	imul	r15d, DWORD PTR [rcx+4640]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+84]
	imul	r15d, DWORD PTR [rcx+4800]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+88]
	imul	r15d, DWORD PTR [rcx+4960]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+92]
	imul	r15d, DWORD PTR [rcx+5120]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+96]
	imul	r15d, DWORD PTR [rcx+5280]
	add	rcx, 4
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+100]
	imul	r15d, DWORD PTR [rcx+5436]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+104]
	imul	r15d, DWORD PTR [rcx+5596]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+108]
	imul	r15d, DWORD PTR [rcx+5756]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+112]
	imul	r15d, DWORD PTR [rcx+5916]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+116]
	imul	r15d, DWORD PTR [rcx+6076]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+120]
	imul	r15d, DWORD PTR [rcx+6236]
	add	edx, r15d
	mov	DWORD PTR [rcx+6396+rsi], edx
	add	rax, rdx
	mov	edx, OFFSET FLAT:matrix+6560
	cmp	rdx, rcx
	jne	.L9
	mov	r15d, DWORD PTR [rsp+124]
	lea	edx, [r15+1]
	cmp	r15d, 39
	je	.L19
	mov	DWORD PTR matrix[rip+19200], edx
	sub	rsp, -128
	pop	rbx
	pop	rbp
	pop	r12
	pop	r13
	pop	r14
	pop	r15
	ret
.L19:
	mov	DWORD PTR matrix[rip+19200], 0
	mov	esi, OFFSET FLAT:matrix+12800
	mov	r8d, OFFSET FLAT:matrix+19200
.L11:
	lea	rdi, [rsi-12800]
	xor	edx, edx
	.p2align 4,,10
	.p2align 3
.L12:
	mov	rcx, QWORD PTR [rsi+rdx]
	mov	QWORD PTR [rdi+rdx], rcx
	add	rdx, 8
	cmp	rdx, 160
	jne	.L12
	add	rsi, 160
	cmp	r8, rsi
	jne	.L11
	sub	rsp, -128
	pop	rbx
	pop	rbp
	pop	r12
	pop	r13
	pop	r14
	pop	r15
	ret
	.size	workload_unit, .-workload_unit
	.local	matrix
	.comm	matrix,19204,32768
	.globl	workload_name
	.section	.rodata
	.type	workload_name, @object
	.size	workload_name, 7
workload_name:
	.string	"matrix"
	.local	random_state
	.comm	random_state,8,8
