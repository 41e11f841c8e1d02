/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * virtio_mmio.c - modern virtio over memory-mapped registers (virtio 1.2, 4.2), where QEMU's microvm has them
 *
 * Its interrupt is a line of the I/O APIC, which nobody here drives: polling only.
 */
#include "cpu.h"
#include "virtio.h"

#define MICROVM_FIRST 0xfeb00000u
#define MICROVM_STEP 0x200u
#define MICROVM_COUNT 24u

#define MAGIC_VALUE 0x000
#define VERSION 0x004
#define DEVICE_ID 0x008
#define DEVICE_FEATURES 0x010
#define DEVICE_FEATURES_SEL 0x014
#define DRIVER_FEATURES 0x020
#define DRIVER_FEATURES_SEL 0x024
#define QUEUE_SEL 0x030
#define QUEUE_NUM_MAX 0x034
#define QUEUE_NUM 0x038
#define QUEUE_READY 0x044
#define QUEUE_NOTIFY 0x050
#define STATUS 0x070
#define QUEUE_DESC 0x080
#define QUEUE_DRIVER 0x090
#define QUEUE_DEVICE 0x0a0
#define CONFIG 0x100

#define MAGIC 0x74726976u       /* "virt" */
#define VERSION_MODERN 2u

static uint64_t regs;

static uint64_t features(void)
{
	uint64_t low, high;

	mmio_write32(regs + DEVICE_FEATURES_SEL, 0);
	low = mmio_read32(regs + DEVICE_FEATURES);
	mmio_write32(regs + DEVICE_FEATURES_SEL, 1);
	high = mmio_read32(regs + DEVICE_FEATURES);
	return high << 32 | low;
}

static void accept(uint64_t v)
{
	mmio_write32(regs + DRIVER_FEATURES_SEL, 0);
	mmio_write32(regs + DRIVER_FEATURES, (uint32_t)v);
	mmio_write32(regs + DRIVER_FEATURES_SEL, 1);
	mmio_write32(regs + DRIVER_FEATURES, (uint32_t)(v >> 32));
}

static uint32_t status(void)
{
	return mmio_read32(regs + STATUS);
}

static void set_status(uint32_t v)
{
	mmio_write32(regs + STATUS, v);
}

static uint8_t config8(uint32_t ofs)
{
	return mmio_read8(regs + CONFIG + ofs);
}

static uint32_t queue_max(uint32_t i)
{
	mmio_write32(regs + QUEUE_SEL, i);
	return mmio_read32(regs + QUEUE_NUM_MAX);
}

static void write64(uint64_t addr, uint64_t v)
{
	mmio_write32(addr, (uint32_t)v);
	mmio_write32(addr + 4, (uint32_t)(v >> 32));
}

static bool queue_start(const struct virtq *q, enum irq_kind kind)
{
	(void)kind;
	mmio_write32(regs + QUEUE_SEL, q->index);
	mmio_write32(regs + QUEUE_NUM, q->num);
	write64(regs + QUEUE_DESC, (uintptr_t)q->desc);
	write64(regs + QUEUE_DRIVER, (uintptr_t)q->avail);
	write64(regs + QUEUE_DEVICE, (uintptr_t)q->used);
	mmio_write32(regs + QUEUE_READY, 1);
	return false;
}

static void notify(uint32_t i)
{
	mmio_write32(regs + QUEUE_NOTIFY, i);
}

static const struct virtio_transport transport = {
	.features = features,
	.accept = accept,
	.status = status,
	.set_status = set_status,
	.config8 = config8,
	.queue_max = queue_max,
	.queue_start = queue_start,
	.notify = notify,
};

static int virtio_mmio_open(uint64_t mask, struct micro_found *found)
{
	uint32_t i;

	found->device = MICRO_DEV_VIRTIO_MMIO;
	for (i = 0; i < MICROVM_COUNT; i++) {
		regs = MICROVM_FIRST + i * MICROVM_STEP;
		if (mmio_read32(regs + MAGIC_VALUE) != MAGIC || mmio_read32(regs + DEVICE_ID) != VIRTIO_ID_NET)
			continue;
		if (mmio_read32(regs + VERSION) != VERSION_MODERN)
			return fail(-ENOTSUP, "legacy virtio-mmio: QEMU needs -global virtio-mmio.force-legacy=off");
		return virtio_net_open(&transport, mask, found);
	}
	return -ENODEV;
}

const struct driver virtio_mmio_driver = {
	.open = virtio_mmio_open,
	VIRTIO_NET_CALLS,
};
