/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * exits_payload.S - a guest that makes a known number of exits, for the tests of `vpt exits`
 *
 * Orders come through a mailbox in guest memory, so that waiting for one costs no exit:
 *   +0  u64  order: 0 none, else how often; the guest sets it to 0 when done
 *   +8  u64  what: 0 write port 0x80, 1 count natively
 *   +16 u64  read once at the start. 0: go to CPL 3 (native even where KVM is a software one)
 *            1: count in ring 0 for ever   2: an instruction that a software KVM can't emulate there
 */
	.set	MAILBOX, 0x300000
	.set	PML4, 0x200000
	.set	TSS, 0x210000

	.section .note.pvh, "a", @note
	.long	4, 4, 18
	.asciz	"Xen"
	.long	start

	.text
	.code32
	.globl	start
start:	cli
	mov	$stack_end, %esp
	/* 4 GiB mapped to themselves in 2 MiB pages that user mode may use */
	movl	$PML4 + 0x1007, PML4
	mov	$PML4 + 0x2007, %eax
	mov	$PML4 + 0x1000, %edi
	mov	$4, %ecx
1:	mov	%eax, (%edi)
	add	$0x1000, %eax
	add	$8, %edi
	loop	1b
	mov	$0x87, %eax
	mov	$PML4 + 0x2000, %edi
	mov	$2048, %ecx
2:	mov	%eax, (%edi)
	add	$0x200000, %eax
	add	$8, %edi
	loop	2b

	mov	%cr4, %eax
	or	$0x20, %eax		/* PAE */
	mov	%eax, %cr4
	mov	$PML4, %eax
	mov	%eax, %cr3
	mov	$0xc0000080, %ecx	/* EFER: LME, SCE */
	rdmsr
	or	$0x101, %eax
	wrmsr
	mov	%cr0, %eax
	or	$0x80000001, %eax
	mov	%eax, %cr0
	lgdt	gdt_ptr
	ljmp	$0x08, $long_mode

	.code64
long_mode:
	mov	$0x10, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %ss
	cmpq	$1, MAILBOX + 16
	je	ring0_loop
	ja	ring0_unknown
	/* A TSS whose I/O bitmap, all zero, lets user mode use every port */
	movw	$0x68, TSS + 0x66
	movb	$0xff, TSS + 0x2068
	movl	$TSS + 0x8000, TSS + 4
	mov	$0x18, %eax
	ltr	%ax
	pushq	$0x2b
	pushq	$stack_end
	pushq	$0x2
	pushq	$0x33
	pushq	$user
	iretq

ring0_loop:
	inc	%rax
	jmp	ring0_loop
ring0_unknown:
	rdtscp
	vpaddd	%ymm0, %ymm0, %ymm0
	jmp	ring0_unknown

user:	mov	MAILBOX, %rcx
	test	%rcx, %rcx
	jz	user
	cmpq	$0, MAILBOX + 8
	jne	4f
	mov	$0x80, %edx
3:	out	%al, %dx
	dec	%rcx
	jnz	3b
	jmp	5f
4:	dec	%rcx
	jnz	4b
5:	movq	$0, MAILBOX
	jmp	user

	.data
	.align	8
gdt:	.quad	0
	.quad	0x00af9b000000ffff	/* 08: ring 0 code */
	.quad	0x00cf93000000ffff	/* 10: ring 0 data */
	.quad	0x0000890000000000 | 0x2068 | ((TSS & 0xffffff) << 16), 0
	.quad	0x00cff3000000ffff	/* 2b: ring 3 data */
	.quad	0x00affb000000ffff	/* 33: ring 3 code */
gdt_ptr:
	.word	gdt_ptr - gdt - 1
	.long	gdt

	.bss
	.align	16
	.skip	4096
stack_end:
