/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * pci.c - bus 0: configuration space, BARs, capabilities, MSI-X
 *
 * Two ways into configuration space: the ports of a PC, or the memory window (ECAM) of QEMU's microvm, whose firmware
 * also leaves it to us to give the BARs addresses.
 */
#include "cpu.h"
#include "guest.h"

#define CONFIG_ADDRESS 0xcf8
#define CONFIG_DATA 0xcfc
#define CONFIG_ENABLE 0x80000000u

#define MICROVM_ECAM 0xe0000000u
#define MICROVM_HOST_BRIDGE 0x00081b36u         /* QEMU's gpex */
#define MICROVM_WINDOW 0xc0000000u              /* memory space that BARs may use */
#define MICROVM_WINDOW_END 0xe0000000u

#define PCI_COMMAND 0x04
#define PCI_COMMAND_MEMORY 0x2u
#define PCI_COMMAND_MASTER 0x4u
#define PCI_HEADER 0x0c
#define PCI_HEADER_MULTI 0x00800000u
#define PCI_BAR 0x10
#define PCI_BAR_IO 0x1u
#define PCI_BAR_64 0x4u
#define PCI_CAPS 0x34
#define PCI_CAP_MSIX 0x11

#define MSIX_ENABLE 0x80000000u
#define MSIX_ENTRY_SIZE 16u
#define MSI_ADDRESS 0xfee00000u

static uint64_t ecam;                           /* 0: ports */
static uint32_t next_bar = MICROVM_WINDOW;

uint32_t pci_read(const struct pci_dev *dev, uint32_t ofs)
{
	if (ecam)
		return mmio_read32(ecam + (dev->bdf << 12) + ofs);
	outl(CONFIG_ADDRESS, CONFIG_ENABLE | dev->bdf << 8 | (ofs & ~3u));
	return inl(CONFIG_DATA);
}

void pci_write(const struct pci_dev *dev, uint32_t ofs, uint32_t v)
{
	if (ecam) {
		mmio_write32(ecam + (dev->bdf << 12) + ofs, v);
		return;
	}
	outl(CONFIG_ADDRESS, CONFIG_ENABLE | dev->bdf << 8 | (ofs & ~3u));
	outl(CONFIG_DATA, v);
}

/* The window is looked for by its host bridge, so that a machine without it is left alone. */
static void choose_access(void)
{
	ecam = mmio_read32(MICROVM_ECAM) == MICROVM_HOST_BRIDGE ? MICROVM_ECAM : 0;
}

bool pci_next(struct pci_dev *dev)
{
	uint32_t bdf = dev->bdf == PCI_FIRST ? 0 : dev->bdf + 1;
	uint32_t id;

	if (dev->bdf == PCI_FIRST)
		choose_access();
	for (; bdf < 256; bdf++) {
		struct pci_dev fn0 = { .bdf = bdf & ~7u };

		if ((bdf & 7) && !(pci_read(&fn0, PCI_HEADER) & PCI_HEADER_MULTI)) {
			bdf |= 7;
			continue;
		}
		dev->bdf = bdf;
		id = pci_read(dev, 0);
		if ((id & 0xffff) == 0xffff || !id)
			continue;
		dev->vendor = (uint16_t)id;
		dev->device = (uint16_t)(id >> 16);
		return true;
	}
	return false;
}

/* Give a BAR the next free address of the window; 0: it does not fit. */
static uint64_t assign_bar(const struct pci_dev *dev, uint32_t ofs, bool is64, uint64_t size)
{
	uint64_t addr = ((uint64_t)next_bar + size - 1) & ~(size - 1);

	if (!ecam || addr + size > MICROVM_WINDOW_END)
		return 0;
	next_bar = (uint32_t)(addr + size);
	pci_write(dev, ofs, (uint32_t)addr);
	if (is64)
		pci_write(dev, ofs + 4, 0);
	return addr;
}

uint64_t pci_bar(const struct pci_dev *dev, uint32_t n, uint64_t *size)
{
	uint32_t ofs = PCI_BAR + 4 * n;
	uint32_t command = pci_read(dev, PCI_COMMAND) & 0xffff;
	uint32_t low = pci_read(dev, ofs), high = 0;
	bool is64 = (low & (PCI_BAR_IO | PCI_BAR_64)) == PCI_BAR_64;
	uint64_t addr, mask;

	if (low & PCI_BAR_IO)
		return 0;
	/* Its size is what stays 0 when ones are written, with decoding off meanwhile. */
	pci_write(dev, PCI_COMMAND, command & ~PCI_COMMAND_MEMORY);
	pci_write(dev, ofs, UINT32_MAX);
	mask = 0xffffffff00000000u | (pci_read(dev, ofs) & ~15u);
	pci_write(dev, ofs, low);
	if (is64) {
		high = pci_read(dev, ofs + 4);
		pci_write(dev, ofs + 4, UINT32_MAX);
		mask = (mask & UINT32_MAX) | (uint64_t)pci_read(dev, ofs + 4) << 32;
		pci_write(dev, ofs + 4, high);
	}
	addr = (uint64_t)high << 32 | (low & ~15u);
	*size = ~mask + 1;
	if (!addr && (uint32_t)mask)
		addr = assign_bar(dev, ofs, is64, *size);
	pci_write(dev, PCI_COMMAND, command);
	/* boot.S maps 4 GiB. */
	return addr + *size <= 1ull << 32 ? addr : 0;
}

void pci_enable(const struct pci_dev *dev)
{
	/* Status, the upper half, is cleared by writing ones: write zeroes. */
	pci_write(dev, PCI_COMMAND,
		  (pci_read(dev, PCI_COMMAND) & 0xffff) | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
}

uint32_t pci_capability(const struct pci_dev *dev, uint8_t id, uint32_t after)
{
	uint32_t ofs = after ? pci_read(dev, after) >> 8 & 0xfc : pci_read(dev, PCI_CAPS) & 0xfc;
	uint32_t hops;

	for (hops = 0; ofs && hops < 64; hops++) {
		uint32_t cap = pci_read(dev, ofs);

		if ((cap & 0xff) == id)
			return ofs;
		ofs = cap >> 8 & 0xfc;
	}
	return 0;
}

bool pci_msix_route(const struct pci_dev *dev, uint32_t entry, enum irq_kind kind)
{
	uint32_t cap = pci_capability(dev, PCI_CAP_MSIX, 0);
	uint32_t control, where;
	uint64_t table, size;

	if (!cap)
		return false;
	control = pci_read(dev, cap);
	if (entry > (control >> 16 & 0x7ff))
		return false;
	where = pci_read(dev, cap + 4);
	table = pci_bar(dev, where & 7, &size);
	if (!table)
		return false;
	pci_enable(dev);
	pci_write(dev, cap, control | MSIX_ENABLE);
	table += (where & ~7u) + entry * MSIX_ENTRY_SIZE;
	mmio_write32(table, MSI_ADDRESS);
	mmio_write32(table + 4, 0);
	mmio_write32(table + 8, irq_vector(kind));
	mmio_write32(table + 12, 0);
	return true;
}
