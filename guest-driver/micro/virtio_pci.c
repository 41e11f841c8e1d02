/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * virtio_pci.c - modern virtio over PCI (virtio 1.2, 4.1)
 */
#include "cpu.h"
#include "virtio.h"

#define VIRTIO_VENDOR 0x1af4
#define NET_TRANSITIONAL 0x1000
#define NET_MODERN 0x1041

#define CAP_VENDOR 0x09
#define CAP_COMMON 1u
#define CAP_NOTIFY 2u
#define CAP_DEVICE 4u

/* struct virtio_pci_common_cfg */
#define DEVICE_FEATURE_SELECT 0x00
#define DEVICE_FEATURE 0x04
#define DRIVER_FEATURE_SELECT 0x08
#define DRIVER_FEATURE 0x0c
#define DEVICE_STATUS 0x14
#define QUEUE_SELECT 0x16
#define QUEUE_SIZE 0x18
#define QUEUE_MSIX_VECTOR 0x1a
#define QUEUE_ENABLE 0x1c
#define QUEUE_NOTIFY_OFF 0x1e
#define QUEUE_DESC 0x20
#define QUEUE_DRIVER 0x28
#define QUEUE_DEVICE 0x30

#define NO_VECTOR 0xffffu

static struct {
	struct pci_dev dev;
	uint64_t common;
	uint64_t config;
	uint64_t notify;
	uint32_t notify_step;
	uint64_t bell[2];       /* of each queue */
} vpci;

static uint64_t features(void)
{
	uint64_t low, high;

	mmio_write32(vpci.common + DEVICE_FEATURE_SELECT, 0);
	low = mmio_read32(vpci.common + DEVICE_FEATURE);
	mmio_write32(vpci.common + DEVICE_FEATURE_SELECT, 1);
	high = mmio_read32(vpci.common + DEVICE_FEATURE);
	return high << 32 | low;
}

static void accept(uint64_t v)
{
	mmio_write32(vpci.common + DRIVER_FEATURE_SELECT, 0);
	mmio_write32(vpci.common + DRIVER_FEATURE, (uint32_t)v);
	mmio_write32(vpci.common + DRIVER_FEATURE_SELECT, 1);
	mmio_write32(vpci.common + DRIVER_FEATURE, (uint32_t)(v >> 32));
}

static uint32_t status(void)
{
	return mmio_read8(vpci.common + DEVICE_STATUS);
}

static void set_status(uint32_t v)
{
	mmio_write8(vpci.common + DEVICE_STATUS, (uint8_t)v);
}

static uint8_t config8(uint32_t ofs)
{
	return mmio_read8(vpci.config + ofs);
}

static uint32_t queue_max(uint32_t i)
{
	mmio_write16(vpci.common + QUEUE_SELECT, (uint16_t)i);
	return mmio_read16(vpci.common + QUEUE_SIZE);
}

static void write64(uint64_t addr, uint64_t v)
{
	mmio_write32(addr, (uint32_t)v);
	mmio_write32(addr + 4, (uint32_t)(v >> 32));
}

static bool queue_start(const struct virtq *q, enum irq_kind kind)
{
	uint64_t c = vpci.common;
	bool routed = pci_msix_route(&vpci.dev, q->index, kind);

	mmio_write16(c + QUEUE_SELECT, q->index);
	mmio_write16(c + QUEUE_SIZE, q->num);
	mmio_write16(c + QUEUE_MSIX_VECTOR, routed ? q->index : NO_VECTOR);
	routed = mmio_read16(c + QUEUE_MSIX_VECTOR) != NO_VECTOR;
	write64(c + QUEUE_DESC, (uintptr_t)q->desc);
	write64(c + QUEUE_DRIVER, (uintptr_t)q->avail);
	write64(c + QUEUE_DEVICE, (uintptr_t)q->used);
	vpci.bell[q->index] = vpci.notify + mmio_read16(c + QUEUE_NOTIFY_OFF) * vpci.notify_step;
	mmio_write16(c + QUEUE_ENABLE, 1);
	return routed;
}

static void notify(uint32_t i)
{
	mmio_write16(vpci.bell[i], (uint16_t)i);
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

/* Where the structures are: vendor capabilities name a BAR and an offset each. */
static bool find_structures(void)
{
	uint32_t cap = 0;

	vpci.common = vpci.notify = vpci.config = 0;
	while ((cap = pci_capability(&vpci.dev, CAP_VENDOR, cap))) {
		uint32_t kind = pci_read(&vpci.dev, cap) >> 24;
		uint32_t bar = pci_read(&vpci.dev, cap + 4) & 0xff;
		uint64_t size, addr;

		if (bar > 5 || (kind != CAP_COMMON && kind != CAP_NOTIFY && kind != CAP_DEVICE))
			continue;
		addr = pci_bar(&vpci.dev, bar, &size);
		if (!addr)
			continue;
		addr += pci_read(&vpci.dev, cap + 8);
		if (kind == CAP_COMMON)
			vpci.common = addr;
		else if (kind == CAP_DEVICE)
			vpci.config = addr;
		else
			vpci.notify = addr;
		if (kind == CAP_NOTIFY)
			vpci.notify_step = pci_read(&vpci.dev, cap + 16);
	}
	return vpci.common && vpci.notify && vpci.config;
}

static int virtio_pci_open(uint64_t mask, struct micro_found *found)
{
	struct pci_dev *dev = &vpci.dev;

	found->device = MICRO_DEV_VIRTIO_PCI;
	for (dev->bdf = PCI_FIRST; pci_next(dev);) {
		if (dev->vendor != VIRTIO_VENDOR || (dev->device != NET_MODERN && dev->device != NET_TRANSITIONAL))
			continue;
		if (!find_structures())
			continue;
		pci_enable(dev);
		return virtio_net_open(&transport, mask, found);
	}
	return -ENODEV;
}

const struct driver virtio_pci_driver = {
	.open = virtio_pci_open,
	VIRTIO_NET_CALLS,
};
