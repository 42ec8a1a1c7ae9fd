# A program that waits for a disk, as fio with one request at a time: all exits and no work.
#
# A unit submits a request by a write to a port, sleeps by HLT until the interrupt that says that it is done, reads
# the status port and sums up the block that it got. The disk takes 1 / IO_HZ of a second, by a timer of the
# kernel's; so what the exits and the kernel around it take makes units slower, one for one.
#
#: args --defsym EVENTS=6 --defsym UNITS=40
#: expect all: exit_code == 0
#: expect all: mem64(checksum) == 0x0a1cf47c0b7de9aa
#: expect all: pmis == mem64(perf_nmis)
#: expect all: mem64(perf_samples) > 20
#
# Made from guests/c/workloads/fio.c by gcc 12.2.0: python -m tests.tools.compile_guests
	.include "perf_kernel.inc"
	.intel_syntax noprefix
	.text
	.ifndef IO_HZ # fio: requests a second, if nothing but the disk took time
	.equ IO_HZ, 20000
	.endif
	.if IO_HZ < 1 || IO_HZ > 10000000
	.error "IO_HZ must be 1 to 10000000"
	.endif
	.p2align 4
	.globl	workload_setup
	.type	workload_setup, @function
workload_setup:
	push	r13
	mov	r13, rdi
	movabs	rdi, 3176700307625836885
	mov	r11d, OFFSET FLAT:blocks
	movabs	r10, -4658895280553007687
	push	r12
	add	rdi, r13
	mov	r12d, OFFSET FLAT:blocks+32768
	movabs	r9, -7723592293110705685
	push	rbp
	movabs	r8, -7046029254386353131
	movabs	rbp, 8224014511697361600
	push	rbx
	movabs	rbx, -8224014511697361600
	.p2align 4,,10
	.p2align 3
.L2:
	lea	rcx, [rdi+rbp]
	mov	rsi, r11
	.p2align 4,,10
	.p2align 3
.L3:
	mov	rdx, rcx
	add	rsi, 8
	shr	rdx, 30
	xor	rdx, rcx
	add	rcx, r8
	imul	rdx, r10
	mov	rax, rdx
	shr	rax, 27
	xor	rax, rdx
	imul	rax, r9
	mov	rdx, rax
	shr	rdx, 31
	xor	rax, rdx
	mov	QWORD PTR [rsi-8], rax
	cmp	rdi, rcx
	jne	.L3
	add	r11, 512
	add	rdi, rbx
	cmp	r12, r11
	jne	.L2
	movabs	rax, 8618649388945854464
	xor	edx, edx
	pop	rbx
	pop	rbp
	add	r13, rax
	pop	r12
	imul	rax, QWORD PTR tsc_khz[rip], 1000
	mov	QWORD PTR random_state[rip], r13
	mov ecx, IO_HZ
	pop	r13
	div	rcx
	mov	QWORD PTR latency[rip], rax
	ret
	.size	workload_setup, .-workload_setup
	.p2align 4
	.globl	workload_unit
	.type	workload_unit, @function
workload_unit:
	movabs	rax, -7046029254386353131
	push	rbp
	push	rbx
	sub	rsp, 8
	add	rax, QWORD PTR random_state[rip]
	mov	rbp, QWORD PTR io_done[rip]
	mov	rdx, rax
	mov	QWORD PTR random_state[rip], rax
	shr	rdx, 30
	xor	rdx, rax
	movabs	rax, -4658895280553007687
	imul	rdx, rax
	mov	rax, rdx
	shr	rax, 27
	xor	rax, rdx
	movabs	rdx, -7723592293110705685
	imul	rax, rdx
	mov	edx, 503
	mov	rbx, rax
	shr	rbx, 31
	xor	rbx, rax
	mov	eax, 32
	shr	rbx, 58
	sal	rbx, 9
	add	rbx, OFFSET FLAT:blocks
	out dx, al
	call	clock_tsc
	add	rax, QWORD PTR latency[rip]
	mov	edi, 2
	mov	rsi, rax
	call	hrtimer_start
	cli
	mov	rax, QWORD PTR io_done[rip]
	cmp	rbp, rax
	jne	.L11
	.p2align 4,,10
	.p2align 3
.L9:
	call	idle
	mov	rax, QWORD PTR io_done[rip]
	cmp	rax, rbp
	je	.L9
.L11:
	sti
	mov	edx, 503
	in al, dx
	movzx	eax, al
	mov	rdx, rbx
	lea	rcx, [rbx+512]
	.p2align 4,,10
	.p2align 3
.L10:
	lea	rax, [rax+rax*2]
	add	rdx, 8
	add	rax, QWORD PTR [rdx-8]
	cmp	rcx, rdx
	jne	.L10
	mov	rdx, rax
	and	edx, 63
	add	QWORD PTR [rbx+rdx*8], rax
	add	rsp, 8
	pop	rbx
	pop	rbp
	ret
	.size	workload_unit, .-workload_unit
	.local	latency
	.comm	latency,8,8
	.local	blocks
	.comm	blocks,32768,32
	.globl	workload_name
	.section	.rodata
	.type	workload_name, @object
	.size	workload_name, 4
workload_name:
	.string	"fio"
	.local	random_state
	.comm	random_state,8,8
