/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * main.c - C entry, at CPL 3
 */
#include "cpu.h"
#include "guest.h"

/* What the host relies on, and what keeps it from slowing the guest down. */
_Static_assert(sizeof(struct micro_order) == 128, "_desk.py has the same");
_Static_assert(offsetof(struct micro_desk, order_seq) % 64 == 0, "host's and guest's fields share no cache line");
_Static_assert(offsetof(struct micro_desk, found) % 64 == 0, "host's and guest's fields share no cache line");
_Static_assert(offsetof(struct micro_desk, result) % 64 == 0, "host's and guest's fields share no cache line");

void main(void);

void main(void)
{
	struct micro_desk *desk = DESK;

	memset(desk, 0, sizeof(*desk));
	irq_init();
	puts("micro: ready, desk at ");
	puthex(MICRO_DESK_ADDR);
	puts("\n");
	desk->version = MICRO_VERSION;
	desk->size = sizeof(*desk);
	desk->state = MICRO_S_READY;
	store_release(&desk->magic, MICRO_MAGIC); /* pairs with the host's acquire: the desk is in order */
	serve_orders();
}
