/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * ring.c - passthrough port: vpt rings in BAR2 of an ivshmem-doorbell device
 *
 * Layout, index protocol and handshake are abi.h's. Only pair 0 is used. Indices are kept here and never read back; the
 * host's are read when the known ones say that there is nothing to do, because each look at them takes the cache line
 * away from the host.
 */
#include "cpu.h"
#include "guest.h"
#include "vpt/abi.h"

#define IVSHMEM_VENDOR 0x1af4
#define IVSHMEM_DEVICE 0x1110
#define IVSHMEM_BAR_REGS 0
#define IVSHMEM_BAR_SHM 2
#define IVSHMEM_DOORBELL 12

#define FEATURES (VPT_F_EVENT_IDX | VPT_F_VNET_HDR)

struct side {
	struct vpt_csb_atok *atok;
	const struct vpt_csb_ktoa *ktoa;
	struct vpt_nm_ring *nm;
	uint32_t head;                  /* what atok->head says, or will at the next publication */
	uint32_t tail;                  /* last known ktoa->hwtail */
	uint32_t bell;                  /* what to write to the doorbell */
};

static struct {
	struct vpt_hdr *hdr;
	uint64_t doorbell;
	uint64_t features;
	uint32_t slots;
	uint32_t headroom;              /* bytes of vnet header before each frame */
	struct side tx, rx;
} ring;

static uint32_t distance(uint32_t from, uint32_t to)
{
	return to >= from ? to - from : to + ring.slots - from;
}

static uint32_t forward(uint32_t index, uint32_t n)
{
	index += n;
	return index >= ring.slots ? index - ring.slots : index;
}

static uint8_t *buffer(const struct side *s, const struct vpt_nm_slot *slot)
{
	return (uint8_t *)s->nm + s->nm->buf_ofs + (uint64_t)slot->buf_idx * s->nm->nr_buf_size + ring.headroom;
}

/* An index that can't be is taken for no news: the guest goes on waiting, and the host's time-out tells. */
static void refresh(struct side *s)
{
	uint32_t tail = load_acquire(&s->ktoa->hwtail); /* pairs with the host's release; slots are valid up to it */

	if (tail < ring.slots)
		s->tail = tail;
}

/* ---- handshake ---- */

static void ring_bell(uint32_t vector)
{
	mmio_write32(ring.doorbell, ring.hdr->host_peer_id << 16 | vector);
}

static cold int set_status(uint32_t status, uint64_t deadline)
{
	store_release(&ring.hdr->peer_status, status);
	ring_bell(VPT_VEC_CFG(ring.hdr->pairs));
	for (;;) {
		uint32_t host = load_acquire(&ring.hdr->host_status);

		if (host == status)
			return 0;
		if (host == VPT_S_FAILED)
			return fail(-EIO, "the host refused the passthrough port (host_status FAILED)");
		if (rdtsc() > deadline)
			return fail(-ETIMEDOUT, "the host did not mirror the passthrough port's status");
		cpu_relax();
	}
}

static bool in_region(uint64_t ofs, uint64_t len)
{
	return ofs <= ring.hdr->region_size && len <= ring.hdr->region_size - ofs;
}

static int check_header(uint64_t bar_size)
{
	const struct vpt_hdr *h = ring.hdr;

	if (h->abi_version != VPT_ABI_VERSION)
		return fail(-EINVAL, "the region speaks another ABI version");
	if (h->region_size > bar_size || h->pairs - 1 >= VPT_MAX_PAIRS || h->num_slots < VPT_MIN_SLOTS ||
	    h->num_slots > VPT_MAX_SLOTS || h->buf_size < VPT_MIN_BUF_SIZE || h->buf_size > VPT_MAX_BUF_SIZE)
		return fail(-EINVAL, "sizes in the region's header are out of range");
	if (!in_region(h->csb_atok_ofs, 128ull * h->pairs) || !in_region(h->csb_ktoa_ofs, 128ull * h->pairs) ||
	    !in_region(h->netmap_if_ofs, sizeof(struct vpt_nm_if) + 16ull * h->pairs) ||
	    !in_region(h->buf_pool_ofs, (uint64_t)h->num_bufs * h->buf_size))
		return fail(-EINVAL, "offsets in the region's header are out of range");
	return 0;
}

static cold int find_side(struct side *s, uint32_t index, uint32_t vector)
{
	uint8_t *base = (uint8_t *)ring.hdr;
	const struct vpt_nm_if *nifp = (const struct vpt_nm_if *)(base + ring.hdr->netmap_if_ofs);
	uint64_t ofs = ring.hdr->netmap_if_ofs + (uint64_t)nifp->ring_ofs[index];

	if (!in_region(ofs, sizeof(struct vpt_nm_ring) + sizeof(struct vpt_nm_slot) * ring.hdr->num_slots))
		return fail(-EINVAL, "a ring lies outside the region");
	s->atok = (struct vpt_csb_atok *)(base + ring.hdr->csb_atok_ofs) + index;
	s->ktoa = (const struct vpt_csb_ktoa *)(base + ring.hdr->csb_ktoa_ofs) + index;
	s->nm = (struct vpt_nm_ring *)(base + ofs);
	s->bell = ring.hdr->host_peer_id << 16 | vector;
	s->head = 0;
	memset(s->atok, 0, sizeof(*s->atok));
	return 0;
}

static cold int handshake(uint64_t bar_size, uint64_t features)
{
	uint64_t deadline = rdtsc() + DESK->order.duration;
	struct vpt_hdr *h = ring.hdr;
	uint32_t pairs = h->pairs;
	int err;

	err = check_header(bar_size);
	if (!err)
		err = set_status(VPT_S_RESET, deadline);
	if (err)
		return err;
	ring.slots = h->num_slots;
	ring.features = h->host_features & features & FEATURES;
	ring.headroom = ring.features & VPT_F_VNET_HDR ? sizeof(struct vpt_vnet_hdr) : 0;
	err = find_side(&ring.tx, 0, VPT_VEC_TX(pairs, 0));
	if (!err)
		err = find_side(&ring.rx, pairs, VPT_VEC_RX(pairs, 0));
	if (err)
		return err;
	h->peer_features = ring.features;
	h->peer_generation = h->generation;
	memcpy(h->driver, "micro", 6);
	err = set_status(VPT_S_DRIVER_OK, deadline);
	if (err)
		return err;
	refresh(&ring.tx);
	ring.rx.tail = 0;
	return 0;
}

/* Any other ivshmem device is left alone. */
static bool find_device(struct pci_dev *dev, uint64_t *size)
{
	uint64_t regs_size;

	for (dev->bdf = PCI_FIRST; pci_next(dev);) {
		uint64_t shm, regs;

		if (dev->vendor != IVSHMEM_VENDOR || dev->device != IVSHMEM_DEVICE)
			continue;
		regs = pci_bar(dev, IVSHMEM_BAR_REGS, &regs_size);
		shm = pci_bar(dev, IVSHMEM_BAR_SHM, size);
		if (!regs || !shm || *size < VPT_NETMAP_IF_OFS)
			continue;
		pci_enable(dev);
		ring.hdr = (struct vpt_hdr *)shm;
		ring.doorbell = regs + IVSHMEM_DOORBELL;
		if (ring.hdr->magic == VPT_MAGIC)
			return true;
	}
	return false;
}

static cold int ring_open(uint64_t features, struct micro_found *found)
{
	struct pci_dev dev;
	uint64_t size;
	uint32_t pairs;
	int err;

	if (!find_device(&dev, &size))
		return -ENODEV;
	err = handshake(size, features);
	if (err)
		return err;
	pairs = ring.hdr->pairs;
	found->device = MICRO_DEV_RING;
	found->slots = ring.slots;
	found->features = ring.features;
	found->max_frame = ring.hdr->buf_size - ring.headroom;
	found->irq = pci_msix_route(&dev, VPT_VEC_TX(pairs, 0), IRQ_TX) &&
		     pci_msix_route(&dev, VPT_VEC_RX(pairs, 0), IRQ_RX) &&
		     pci_msix_route(&dev, VPT_VEC_CFG(pairs), IRQ_CFG);
	memcpy(found->mac, ring.hdr->mac, sizeof(found->mac));
	memcpy(found->name, ring.hdr->name, sizeof(found->name));
	return 0;
}

/* ---- notification ---- */

/* Did moving the index by the last n slots pass what the host wants to hear of? */
static bool wants_kick(const struct side *s, uint32_t n)
{
	uint32_t old = forward(s->head, ring.slots - n);

	/* Pairs with the host's fence between storing kern_need_kick and loading head again. */
	full_fence();
	if (!load_acquire(&s->ktoa->kern_need_kick))
		return false;
	return !(ring.features & VPT_F_EVENT_IDX) ||
	       vpt_event_passed(load_acquire(&s->ktoa->kick_at), old, s->head, ring.slots);
}

/* Ask for an interrupt once hwtail has passed slot `at`; refreshes the known tail. */
static void arm(struct side *s, uint32_t at)
{
	store_release(&s->atok->intr_at, at);
	store_release(&s->atok->appl_need_kick, 1u);
	/* Pairs with the host's fence between storing hwtail and loading appl_need_kick. */
	full_fence();
	refresh(s);
}

/* ---- tx ---- */

static uint32_t tx_room(uint32_t want)
{
	uint32_t room = distance(ring.tx.head, ring.tx.tail);

	if (room < want) {
		refresh(&ring.tx);
		room = distance(ring.tx.head, ring.tx.tail);
	}
	return room;
}

static uint8_t *fill_slot(struct vpt_nm_slot *slot, uint32_t len)
{
	slot->len = (uint16_t)(len + ring.headroom);
	slot->flags = 0;
	return buffer(&ring.tx, slot);
}

static uint8_t *tx_prepare(uint32_t i, uint32_t len)
{
	uint8_t *data = fill_slot(&ring.tx.nm->slot[i], len);

	memset(data - ring.headroom, 0, ring.headroom);
	return data;
}

static void tx_next(struct pkt *v, uint32_t n)
{
	uint32_t i, at = ring.tx.head;

	for (i = 0; i < n; i++) {
		v[i].data = fill_slot(&ring.tx.nm->slot[at], v[i].len);
		at = forward(at, 1);
	}
}

static void tx_publish(uint32_t n)
{
	ring.tx.head = forward(ring.tx.head, n);
	store_release(&ring.tx.atok->head, ring.tx.head); /* pairs with the host's acquire of head */
}

static bool tx_wants_kick(uint32_t n)
{
	return wants_kick(&ring.tx, n);
}

static void tx_kick(void)
{
	mmio_write32(ring.doorbell, ring.tx.bell);
}

static bool tx_idle(void)
{
	return tx_room(ring.slots - 1) == ring.slots - 1;
}

/* Half a ring at least, so that a slow host wakes the guest for more than one slot. */
static bool tx_arm(uint32_t want)
{
	uint32_t half = ring.slots / 2;

	arm(&ring.tx, forward(ring.tx.head, (want > half ? want : half) - 1));
	return distance(ring.tx.head, ring.tx.tail) < want;
}

static void tx_disarm(void)
{
	store_release(&ring.tx.atok->appl_need_kick, 0u);
}

/* ---- rx ---- */

static uint32_t rx_take(struct pkt *v, uint32_t max)
{
	uint32_t i, n, at = ring.rx.head;

	if (at == ring.rx.tail)
		refresh(&ring.rx);
	n = distance(at, ring.rx.tail);
	if (n > max)
		n = max;
	for (i = 0; i < n; i++) {
		const struct vpt_nm_slot *slot = &ring.rx.nm->slot[at];

		v[i].data = buffer(&ring.rx, slot);
		v[i].len = slot->len - ring.headroom;
		at = forward(at, 1);
	}
	return n;
}

static void rx_release(uint32_t n)
{
	ring.rx.head = forward(ring.rx.head, n);
	store_release(&ring.rx.atok->head, ring.rx.head); /* pairs with the host's acquire of head */
}

static bool rx_wants_kick(uint32_t n)
{
	return wants_kick(&ring.rx, n);
}

static void rx_kick(void)
{
	mmio_write32(ring.doorbell, ring.rx.bell);
}

static bool rx_arm(void)
{
	arm(&ring.rx, ring.rx.tail);
	return ring.rx.head == ring.rx.tail;
}

static void rx_disarm(void)
{
	store_release(&ring.rx.atok->appl_need_kick, 0u);
}

const struct driver ring_driver = {
	.open = ring_open,
	.tx_room = tx_room,
	.tx_prepare = tx_prepare,
	.tx_next = tx_next,
	.tx_publish = tx_publish,
	.tx_wants_kick = tx_wants_kick,
	.tx_kick = tx_kick,
	.tx_idle = tx_idle,
	.tx_arm = tx_arm,
	.tx_disarm = tx_disarm,
	.rx_take = rx_take,
	.rx_release = rx_release,
	.rx_wants_kick = rx_wants_kick,
	.rx_kick = rx_kick,
	.rx_arm = rx_arm,
	.rx_disarm = rx_disarm,
};
