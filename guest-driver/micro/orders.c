/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * orders.c - the desk: wait for an order, carry it out, report
 */
#include "cpu.h"
#include "guest.h"

/* Some 40 s to 2 min: a guest whose host was killed must not spin for ever. */
#define IDLE_CYCLES (1ull << 37)

static const struct driver *const drivers[] = {
	[MICRO_DEV_RING] = &ring_driver,
	[MICRO_DEV_VIRTIO_PCI] = &virtio_pci_driver,
	[MICRO_DEV_VIRTIO_MMIO] = &virtio_mmio_driver,
};

static const struct driver *opened;
static struct micro_order order;        /* the guest's copy of what is on the desk */

static bool is_unset(const uint8_t *mac)
{
	static const uint8_t unset[6];

	return !memcmp(mac, unset, sizeof(unset));
}

static int do_open(void)
{
	uint32_t first = order.device, last = order.device, i;
	int err = -ENODEV;

	if (order.device >= ARRAY_SIZE(drivers))
		return fail(-EINVAL, "no such kind of device");
	if (order.device == MICRO_DEV_ANY) {
		first = 1;
		last = ARRAY_SIZE(drivers) - 1;
	}
	opened = NULL;
	memset(&DESK->found, 0, sizeof(DESK->found));
	for (i = first; i <= last && err == -ENODEV; i++)
		err = drivers[i]->open(order.features, &DESK->found);
	if (err == -ENODEV)
		return fail(err, "no such device: neither a passthrough port nor a virtio-net");
	if (err)
		return err;
	opened = drivers[i - 1];
	/* A switch takes nothing from address zero. */
	if (is_unset(DESK->found.mac))
		memcpy(DESK->found.mac, "\x02micro", 6);
	return 0;
}

static int do_run(void)
{
	if (!opened)
		return fail(-ENODEV, "no device is open");
	if (is_unset(order.src))
		memcpy(order.src, DESK->found.mac, 6);
	memset(&DESK->result, 0, sizeof(DESK->result));
	hist_reset();
	return run_role(opened, &order);
}

static int (*const commands[])(void) = {
	[MICRO_CMD_OPEN] = do_open,
	[MICRO_CMD_RUN] = do_run,
};

static int obey(void)
{
	DESK->message[0] = 0;
	if (order.cmd < 1 || order.cmd >= ARRAY_SIZE(commands))
		return fail(-EINVAL, "no such order");
	return commands[order.cmd]();
}

static void await_order(uint32_t done)
{
	uint64_t limit = rdtsc() + IDLE_CYCLES, now;

	while (load_acquire(&DESK->order_seq) == done) {
		now = rdtsc();
		store_release(&DESK->tsc, now);
		if (now > limit) {
			fail(-ETIMEDOUT, "no order came");
			power_off();
		}
		cpu_relax();
	}
}

void serve_orders(void)
{
	struct micro_desk *desk = DESK;
	uint32_t seq = 0;

	for (;;) {
		await_order(seq);
		seq = load_acquire(&desk->order_seq); /* pairs with the host's release behind the order */
		order = desk->order;
		store_release(&desk->state, (uint32_t)MICRO_S_BUSY);
		desk->error = obey();
		store_release(&desk->state, (uint32_t)MICRO_S_READY);
		store_release(&desk->done_seq, seq); /* pairs with the host's acquire before it reads the result */
	}
}
