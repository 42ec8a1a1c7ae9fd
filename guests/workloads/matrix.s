# The product of two matrices of integers: multiplications in a row, hardly a branch that is not foreseen.
#
# The matrices have 40 rows and columns. A unit is one row of the product; when all rows are there the product is
# the next left factor.
#
# Made from guests/c/workloads/matrix.c by gcc 12.2.0: python -m tests.tools.compile_guests
	.include "perf_kernel.inc"
	.intel_syntax noprefix
	.text
	.p2align 4
	.globl	workload_setup
	.type	workload_setup, @function
workload_setup:
	movabs	r8, -5925332574684856646
	push	r14
	xor	r11d, r11d
	movabs	r10, 7046029254386353131
	movabs	rsi, -7723592293110705685
	push	r13
	add	r8, rdi
	mov	r13, rdi
	movabs	r9, 4354685564936845354
	push	r12
	movabs	r12, -8166725934087849616
	push	rbp
	movabs	rbp, 8166725934087849616
	push	rbx
	movabs	rbx, 7149055535766750522
	add	rbx, rdi
	movabs	rdi, -4658895280553007687
	.p2align 4,,10
	.p2align 3
.L2:
	lea	rdx, [r8+r12]
	mov	rcx, r11
	.p2align 4,,10
	.p2align 3
.L3:
	lea	rax, [rdx+r10]
	add	rcx, 4
	mov	r14, rax
	shr	r14, 30
	xor	r14, rax
	imul	r14, rdi
	mov	rax, r14
	shr	rax, 27
	xor	rax, r14
	imul	rax, rsi
	mov	r14, rax
	shr	r14, 31
	xor	rax, r14
	mov	r14, rdx
	shr	r14, 30
	mov	DWORD PTR left[rcx-4], eax
	xor	r14, rdx
	add	rdx, r9
	imul	r14, rdi
	mov	rax, r14
	shr	rax, 27
	xor	rax, r14
	imul	rax, rsi
	mov	r14, rax
	shr	r14, 31
	xor	rax, r14
	or	eax, 1
	mov	DWORD PTR right[rcx-4], eax
	cmp	rdx, r8
	jne	.L3
	lea	r8, [rdx+rbp]
	add	r11, 160
	cmp	r8, rbx
	jne	.L2
	movabs	rax, -5372355963257944448
	pop	rbx
	pop	rbp
	mov	DWORD PTR row[rip], 0
	add	r13, rax
	pop	r12
	mov	QWORD PTR random_state[rip], r13
	pop	r13
	pop	r14
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
	mov	eax, DWORD PTR row[rip]
	lea	rsi, [rax+rax*4]
	mov	r15, rax
	sal	rsi, 5
	lea	rax, left[rsi]
	mov	r14d, DWORD PTR left[rsi]
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
	xor	ecx, ecx
	mov	DWORD PTR [rsp+120], eax
	xor	eax, eax
	.p2align 4,,10
	.p2align 3
.L9:
	mov	r15d, DWORD PTR right[rcx]
	mov	edx, DWORD PTR right[rcx+160]
	lea	rax, [rax+rax*2]
	imul	r15d, r14d
	imul	edx, r13d
	add	edx, r15d
	mov	r15d, DWORD PTR right[rcx+320]
	imul	r15d, r12d
	add	edx, r15d
	mov	r15d, DWORD PTR right[rcx+480]
	imul	r15d, ebp
	add	edx, r15d
	mov	r15d, DWORD PTR right[rcx+640]
	imul	r15d, ebx
	add	edx, r15d
	mov	r15d, DWORD PTR right[rcx+800]
	imul	r15d, r11d
	add	edx, r15d
	mov	r15d, DWORD PTR right[rcx+960]
	imul	r15d, r10d
	add	edx, r15d
	mov	r15d, DWORD PTR right[rcx+1120]
	imul	r15d, r9d
	add	edx, r15d
	mov	r15d, DWORD PTR right[rcx+1280]
	imul	r15d, r8d
	add	edx, r15d
	mov	r15d, DWORD PTR right[rcx+1440]
	imul	r15d, edi
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+4]
	imul	r15d, DWORD PTR right[rcx+1600]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+8]
	imul	r15d, DWORD PTR right[rcx+1760]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+12]
	imul	r15d, DWORD PTR right[rcx+1920]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+16]
	imul	r15d, DWORD PTR right[rcx+2080]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+20]
	imul	r15d, DWORD PTR right[rcx+2240]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+24]
	imul	r15d, DWORD PTR right[rcx+2400]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+28]
	imul	r15d, DWORD PTR right[rcx+2560]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+32]
	imul	r15d, DWORD PTR right[rcx+2720]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+36]
	imul	r15d, DWORD PTR right[rcx+2880]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+40]
	imul	r15d, DWORD PTR right[rcx+3040]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+44]
	imul	r15d, DWORD PTR right[rcx+3200]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+48]
	imul	r15d, DWORD PTR right[rcx+3360]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+52]
	imul	r15d, DWORD PTR right[rcx+3520]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+56]
	imul	r15d, DWORD PTR right[rcx+3680]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+60]
	imul	r15d, DWORD PTR right[rcx+3840]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+64]
	imul	r15d, DWORD PTR right[rcx+4000]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+68]
	imul	r15d, DWORD PTR right[rcx+4160]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+72]
	imul	r15d, DWORD PTR right[rcx+4320]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+76]
	imul	r15d, DWORD PTR right[rcx+4480]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+80]
	imul	r15d, DWORD PTR right[rcx+4640]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+84]
	imul	r15d, DWORD PTR right[rcx+4800]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+88]
	imul	r15d, DWORD PTR right[rcx+4960]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+92]
	imul	r15d, DWORD PTR right[rcx+5120]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+96]
	imul	r15d, DWORD PTR right[rcx+5280]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+100]
	imul	r15d, DWORD PTR right[rcx+5440]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+104]
	imul	r15d, DWORD PTR right[rcx+5600]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+108]
	imul	r15d, DWORD PTR right[rcx+5760]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+112]
	imul	r15d, DWORD PTR right[rcx+5920]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+116]
	imul	r15d, DWORD PTR right[rcx+6080]
	add	edx, r15d
	mov	r15d, DWORD PTR [rsp+120]
	imul	r15d, DWORD PTR right[rcx+6240]
	add	edx, r15d
	mov	DWORD PTR product[rsi+rcx], edx
	add	rcx, 4
	add	rax, rdx
	cmp	rcx, 160
	jne	.L9
	mov	r15d, DWORD PTR [rsp+124]
	lea	edx, [r15+1]
	cmp	r15d, 39
	je	.L21
	mov	DWORD PTR row[rip], edx
	sub	rsp, -128
	pop	rbx
	pop	rbp
	pop	r12
	pop	r13
	pop	r14
	pop	r15
	ret
.L21:
	mov	DWORD PTR row[rip], 0
	mov	esi, OFFSET FLAT:product
	mov	edi, OFFSET FLAT:left
.L11:
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
	add	rdi, 160
	cmp	rsi, OFFSET FLAT:product+6400
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
	.local	row
	.comm	row,4,4
	.local	product
	.comm	product,6400,32
	.local	right
	.comm	right,6400,32
	.local	left
	.comm	left,6400,32
	.globl	workload_name
	.section	.rodata
	.type	workload_name, @object
	.size	workload_name, 7
workload_name:
	.string	"matrix"
	.local	random_state
	.comm	random_state,8,8
