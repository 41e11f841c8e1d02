/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * boot.S - from the loader's 32-bit entry to C at CPL 3, and the ring-0 stubs that stay behind
 *
 * Everything that takes time runs at CPL 3: there, even a software KVM runs code natively. Ring 0 is left only for
 * traps, and keeps to instructions that any KVM's emulator knows. User pages cover 4 GiB one to one, devices included;
 * a zeroed I/O bitmap lets CPL 3 use ports.
 *
 * CPL 3 runs with interrupts off. HLT there raises #GP, whose handler does the real "sti; hlt"; the interrupt that ends
 * it drops its own frame and returns behind the HLT at CPL 3. So an interrupt is taken inside cpu_sleep() or stays
 * pending, and no IRET within ring 0 is needed, which KVM's emulator does not have.
 */
#define SEL_CODE0 0x08
#define SEL_DATA0 0x10
#define SEL_TSS 0x18
#define SEL_DATA3 0x2b
#define SEL_CODE3 0x33

#define LAPIC_EOI 0xfee000b0

#define MULTIBOOT_MAGIC 0x1badb002
#define MULTIBOOT_ADDRESSES 0x00010000
#define PVH_ENTRY_NOTE 18

	.section .boot, "ax"
	.code32
	.balign 4
multiboot:
	.long MULTIBOOT_MAGIC, MULTIBOOT_ADDRESSES, -(MULTIBOOT_MAGIC + MULTIBOOT_ADDRESSES)
	.long multiboot, 0x100000, _edata, _end, start

	.globl start
start:
	cli
	cld
	mov $stack_top, %esp

	/* one PML4 entry, four PDPT entries, 2048 pages of 2 MiB: present, writable, user */
	movl $pdpt + 7, pml4
	mov $pds + 7, %eax
	mov $pdpt, %edi
	mov $4, %ecx
1:	mov %eax, (%edi)
	add $0x1000, %eax
	add $8, %edi
	dec %ecx
	jnz 1b
	mov $0x87, %eax
	mov $pds, %edi
	mov $2048, %ecx
2:	mov %eax, (%edi)
	add $0x200000, %eax
	add $8, %edi
	dec %ecx
	jnz 2b

	/* the TSS descriptor wants its address in pieces */
	mov $tss, %eax
	mov %ax, gdt + SEL_TSS + 2
	shr $16, %eax
	mov %al, gdt + SEL_TSS + 4
	mov %ah, gdt + SEL_TSS + 7

	mov %cr4, %eax
	or $0x20, %eax			/* PAE */
	mov %eax, %cr4
	mov $pml4, %eax
	mov %eax, %cr3
	mov $0xc0000080, %ecx		/* EFER */
	rdmsr
	or $0x100, %eax			/* LME */
	wrmsr
	mov %cr0, %eax
	and $~0x60000000, %eax		/* caches on */
	or $0x80010001, %eax		/* PG, WP, PE */
	mov %eax, %cr0
	lgdt gdtr
	ljmp $SEL_CODE0, $long_mode

	.code64
long_mode:
	mov $SEL_DATA0, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	movl $trap_stack_top, tss + 4	/* RSP0 */
	movw $0x68, tss + 0x66		/* the I/O bitmap follows at once */
	movb $0xff, tss + 0x68 + 8192	/* and ends with a byte of ones */
	mov $SEL_TSS, %eax
	ltr %ax
	lidt idtr
	pushq $SEL_DATA3
	pushq $stack_top - 8		/* aligned as after a call */
	pushq $0x2			/* flags: interrupts off */
	pushq $SEL_CODE3
	pushq $main
	iretq

	.text
/* void cpu_sleep(void): see the top. Clobbers rax, as a call may. */
	.globl cpu_sleep
cpu_sleep:
sleep_hlt:
	hlt
	ret

/* 32 exception stubs, 16 bytes each: error code (0 where the CPU pushes none), number */
	.globl trap_stubs
	.balign 16
trap_stubs:
	.set i, 0
	.rept 32
	.balign 16
	.if !(i == 8 || (i >= 10 && i <= 14) || i == 17 || i == 21 || i == 29 || i == 30)
	pushq $0
	.endif
	pushq $i
	jmp trap
	.set i, i + 1
	.endr

/* #GP: HLT of cpu_sleep(), or a real fault */
	.globl trap_gp
	.balign 16
trap_gp:
	cmpq $sleep_hlt, 8(%rsp)
	jne trap_stubs + 16 * 13
1:	sti
	hlt
	jmp 1b				/* only an NMI comes back here */

/* One stub per enum irq_kind, 16 bytes each, then the spurious one, which must not be acknowledged. */
	.globl irq_stubs
	.balign 16
irq_stubs:
	.set i, 0
	.rept 4
	.balign 16
	incq irq_counts + 8 * i
	jmp irq_done
	.set i, i + 1
	.endr
	.balign 16
	jmp irq_return

irq_done:
	mov $LAPIC_EOI, %eax
	movl $0, (%rax)
irq_return:
	/* #GP's frame without its error code is where it always is: at the top of the trap stack. */
	mov $trap_stack_top - 40, %esp
	incq (%rsp)
	iretq

/* A fault: keep what it was and let C tell, at CPL 3. */
trap:
	pop %rax
	mov %rax, trap_number
	pop %rax
	mov %rax, trap_error
	pop %rax
	mov %rax, trap_rip
	mov %cr2, %rax
	mov %rax, trap_address
	mov $trap_stack_top, %esp
	pushq $SEL_DATA3
	pushq $stack_top - 8
	pushq $0x2
	pushq $SEL_CODE3
	pushq $trap_report
	iretq

	.section .note.pvh, "a", @note
	.balign 4
	.long 4, 4, PVH_ENTRY_NOTE
	.asciz "Xen"
	.long start

	.data
	.balign 16
gdt:
	.quad 0
	.quad 0x00af9b000000ffff	/* SEL_CODE0: 64-bit, ring 0 */
	.quad 0x00cf93000000ffff	/* SEL_DATA0 */
	.quad 0x0000890000002068, 0	/* SEL_TSS: 64-bit TSS with the whole I/O bitmap */
	.quad 0x00cff3000000ffff	/* SEL_DATA3 */
	.quad 0x00affb000000ffff	/* SEL_CODE3: 64-bit, ring 3 */
gdtr:
	.word . - gdt - 1
	.long gdt
idtr:
	.word 256 * 16 - 1
	.quad idt

	.bss
	.balign 4096
pml4:	.skip 4096
pdpt:	.skip 4096
pds:	.skip 4 * 4096
	.globl idt
idt:	.skip 256 * 16
tss:	.skip 0x68 + 8192 + 1
	.balign 16
	.skip 4096
trap_stack_top:
	.skip 16384
stack_top:
	.globl irq_counts, trap_number, trap_error, trap_rip, trap_address
irq_counts:	.skip 8 * 4
trap_number:	.skip 8
trap_error:	.skip 8
trap_rip:	.skip 8
trap_address:	.skip 8
