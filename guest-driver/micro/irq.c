/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * irq.c - interrupt descriptor table, local APIC, counts
 *
 * The table and the APIC are filled in from CPL 3; boot.S has only pointed the CPU at them.
 */
#include "cpu.h"
#include "guest.h"

#define LAPIC 0xfee00000u
#define LAPIC_TPR (LAPIC + 0x080)
#define LAPIC_SPURIOUS (LAPIC + 0x0f0)
#define LAPIC_LVT_TIMER (LAPIC + 0x320)
#define LAPIC_LVT_LINT0 (LAPIC + 0x350)
#define LAPIC_TIMER_COUNT (LAPIC + 0x380)
#define LAPIC_TIMER_DIVIDE (LAPIC + 0x3e0)
#define LAPIC_ENABLE 0x100u
#define LAPIC_MASKED 0x10000u
#define LAPIC_PERIODIC 0x20000u
#define LAPIC_BY_1 0xbu
#define LAPIC_MHZ 1000u         /* of QEMU's and KVM's APIC timer; only the safety net depends on it */

#define PIC1_MASK 0x21
#define PIC2_MASK 0xa1

#define VECTOR_BASE 0x40u
#define VECTOR_SPURIOUS 0xffu   /* low four bits set, as old APICs need */
#define VECTOR_GP 13u
#define STUB_SIZE 16u

#define GATE_INTERRUPT_DPL0 0x8e00u
#define SEL_CODE0 0x08u

struct gate {
	uint16_t offset_low;
	uint16_t selector;
	uint16_t type;
	uint16_t offset_mid;
	uint32_t offset_high;
	uint32_t zero;
};

extern struct gate idt[256];
extern char trap_stubs[], trap_gp[], irq_stubs[];
extern uint64_t irq_counts[IRQ_KINDS];

static void set_gate(uint32_t vector, const char *handler)
{
	uint64_t addr = (uintptr_t)handler;

	idt[vector] = (struct gate){
		.offset_low = (uint16_t)addr,
		.selector = SEL_CODE0,
		.type = GATE_INTERRUPT_DPL0,
		.offset_mid = (uint16_t)(addr >> 16),
		.offset_high = (uint32_t)(addr >> 32),
	};
}

void irq_init(void)
{
	uint32_t i;

	for (i = 0; i < 32; i++)
		set_gate(i, trap_stubs + STUB_SIZE * i);
	set_gate(VECTOR_GP, trap_gp);
	for (i = 0; i < IRQ_KINDS; i++)
		set_gate(VECTOR_BASE + i, irq_stubs + STUB_SIZE * i);
	set_gate(VECTOR_SPURIOUS, irq_stubs + STUB_SIZE * IRQ_KINDS);

	/* Firmware may have left the old controllers open, with vectors that look like exceptions. */
	outb(PIC1_MASK, 0xff);
	outb(PIC2_MASK, 0xff);
	mmio_write32(LAPIC_LVT_LINT0, LAPIC_MASKED);
	mmio_write32(LAPIC_LVT_TIMER, LAPIC_MASKED);
	mmio_write32(LAPIC_TPR, 0);
	mmio_write32(LAPIC_SPURIOUS, LAPIC_ENABLE | VECTOR_SPURIOUS);
}

uint8_t irq_vector(enum irq_kind kind)
{
	return (uint8_t)(VECTOR_BASE + kind);
}

uint64_t irq_taken(enum irq_kind kind)
{
	return load_acquire(&irq_counts[kind]);
}

void irq_timer(uint32_t ms)
{
	mmio_write32(LAPIC_TIMER_DIVIDE, LAPIC_BY_1);
	mmio_write32(LAPIC_LVT_TIMER, ms ? LAPIC_PERIODIC | irq_vector(IRQ_TIMER) : LAPIC_MASKED);
	mmio_write32(LAPIC_TIMER_COUNT, ms * LAPIC_MHZ * 1000u);
}
