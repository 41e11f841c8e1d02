// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0
/*
 * vpt_net_ctl.c - the region's header: checking it, the status handshake, link and generation changes
 *
 * All of it runs in one work item, so that it may sleep and never races with itself. Whoever has news for it (CFG
 * interrupt, a broken ring, ndo_open) queues it; it looks at the shared header and the flags and acts on what it finds.
 */
#include <linux/iopoll.h>

#include "vpt_net.h"

#define VPT_NET_HANDSHAKE_US (1 * USEC_PER_SEC)
#define VPT_NET_RETRY (1 * HZ)

/* How much of the header stays as it is while the region lives. */
#define VPT_NET_HDR_CONST offsetof(struct vpt_hdr, link)
/* How much of it the host writes at all. */
#define VPT_NET_HDR_HOST offsetof(struct vpt_hdr, host_pad)

static_assert(sizeof(struct vpt_hdr) == VPT_HDR_SIZE);
static_assert(offsetof(struct vpt_hdr, peer_features) == VPT_HDR_PEER_OFS);
static_assert(sizeof(struct vpt_csb_atok) == 64 && sizeof(struct vpt_csb_ktoa) == 64);
static_assert(offsetof(struct vpt_nm_ring, slot) == 256);

bool vpt_net_is_ours(const void *hdr)
{
	return READ_ONCE(((const struct vpt_hdr *)hdr)->magic) == VPT_MAGIC;
}

/* Do @len bytes at @ofs, aligned to @align, lie inside the region? 64-bit sums of 32-bit terms cannot wrap. */
static bool vpt_net_inside(const struct vpt_hdr *h, u64 ofs, u64 len, u32 align)
{
	return IS_ALIGNED(ofs, align) && ofs >= VPT_HDR_SIZE && ofs <= h->region_size && len <= h->region_size - ofs;
}

/**
 * vpt_net_header_check() - Can a header be worked with?
 * @vn:		device, for the log
 * @h:		private copy of the header
 * @bar_size:	bytes of BAR 2
 *
 * Return: 0, or -EINVAL after one log line that names the field
 */
static int vpt_net_header_check(struct vpt_net *vn, const struct vpt_hdr *h, u64 bar_size)
{
	u64 csb = 2ull * h->pairs * sizeof(struct vpt_csb_atok);
	const char *what;

	if (h->magic != VPT_MAGIC)
		what = "magic";
	else if (h->abi_version != VPT_ABI_VERSION)
		what = "abi_version";
	else if (h->hdr_size != VPT_HDR_SIZE)
		what = "hdr_size";
	else if (!is_power_of_2(h->region_size) || h->region_size > bar_size)
		what = "region_size";
	else if (!h->pairs || h->pairs > VPT_MAX_PAIRS)
		what = "pairs";
	else if (h->num_slots < VPT_MIN_SLOTS || h->num_slots > VPT_MAX_SLOTS)
		what = "num_slots";
	else if (h->buf_size < VPT_MIN_BUF_SIZE || h->buf_size > VPT_MAX_BUF_SIZE || h->buf_size % 64)
		what = "buf_size";
	else if (!vpt_net_inside(h, h->csb_atok_ofs, csb, 64))
		what = "csb_atok_ofs";
	else if (!vpt_net_inside(h, h->csb_ktoa_ofs, csb, 64))
		what = "csb_ktoa_ofs";
	else if (!vpt_net_inside(h, h->netmap_if_ofs, sizeof(struct vpt_nm_if) + 2ull * h->pairs * sizeof(s64), 8))
		what = "netmap_if_ofs";
	else if (!vpt_net_inside(h, h->buf_pool_ofs, 0, 64))
		what = "buf_pool_ofs";
	else if (!vpt_net_inside(h, h->buf_pool_ofs, (u64)h->num_bufs * h->buf_size, 64))
		what = "num_bufs";
	else if (h->host_peer_id > U16_MAX)
		what = "host_peer_id";
	else if ((h->host_features & VPT_F_MTU) && h->mtu < ETH_MIN_MTU)
		what = "mtu";
	else
		return 0;

	dev_err(&vn->pdev->dev, "region header not usable: %s\n", what);
	return -EINVAL;
}

/**
 * vpt_net_ring_locate() - Find a ring and check what netmap's structures say about it
 * @vn:		device; header checked
 * @r:		ring to fill in
 * @index:	its number among all rings, tx rings first
 * @dir:	0 tx, 1 rx
 *
 * Return: 0, or -EINVAL after one log line
 */
static int vpt_net_ring_locate(struct vpt_net *vn, struct vpt_net_ring *r, u32 index, u16 dir)
{
	const struct vpt_hdr *h = &vn->hdr;
	const struct vpt_nm_if *nif = (void *)(vn->base + h->netmap_if_ofs);
	s64 rel = READ_ONCE(nif->ring_ofs[index]);
	struct vpt_nm_ring *ring;
	u64 ofs;

	if (rel < 0 || rel > h->region_size)
		goto bad;
	ofs = h->netmap_if_ofs + (u64)rel;
	if (!vpt_net_inside(h, ofs, sizeof(*ring) + (u64)h->num_slots * sizeof(ring->slot[0]), 64))
		goto bad;
	ring = (void *)(vn->base + ofs);
	if (READ_ONCE(ring->num_slots) != h->num_slots || READ_ONCE(ring->nr_buf_size) != h->buf_size ||
	    READ_ONCE(ring->dir) != dir || READ_ONCE(ring->buf_ofs) != (s64)h->buf_pool_ofs - (s64)ofs)
		goto bad;

	r->atok = (struct vpt_csb_atok *)(vn->base + h->csb_atok_ofs) + index;
	r->ktoa = (struct vpt_csb_ktoa *)(vn->base + h->csb_ktoa_ofs) + index;
	r->slot = ring->slot;
	r->n = h->num_slots;
	r->vector = index;
	return 0;

bad:
	dev_err(&vn->pdev->dev, "region's %s ring is not where the header says\n", dir ? "rx" : "tx");
	return -EINVAL;
}

/**
 * vpt_net_region_check() - Copy the header, check it, find the rings, choose the features
 * @vn:		device with the region mapped
 * @bar_size:	bytes of BAR 2
 *
 * Return: 0, or -EINVAL after one log line
 */
int vpt_net_region_check(struct vpt_net *vn, u64 bar_size)
{
	struct vpt_hdr *h = &vn->hdr;
	int err;

	memcpy(h, vn->shared, VPT_NET_HDR_HOST);
	err = vpt_net_header_check(vn, h, bar_size);
	if (err)
		return err;

	err = vpt_net_ring_locate(vn, &vn->tx, VPT_VEC_TX(h->pairs, 0), 0);
	if (!err)
		err = vpt_net_ring_locate(vn, &vn->rx, VPT_VEC_RX(h->pairs, 0), 1);
	if (err)
		return err;

	vn->features = h->host_features & VPT_NET_FEATURES;
	if (!(vn->features & VPT_F_VNET_HDR))
		vn->features &= ~VPT_NET_OFFLOADS;
	/* Segmentation implies a checksum left to the other side (virtio 1.2, 5.1.3.1). */
	if (!(vn->features & VPT_F_CSUM))
		vn->features &= ~(VPT_F_HOST_TSO4 | VPT_F_HOST_TSO6 | VPT_F_HOST_ECN | VPT_F_HOST_USO);
	if (!(vn->features & VPT_F_GUEST_CSUM))
		vn->features &= ~(VPT_F_GUEST_TSO4 | VPT_F_GUEST_TSO6 | VPT_F_GUEST_ECN | VPT_F_GUEST_USO4 |
				  VPT_F_GUEST_USO6);
	vn->vnet_len = vn->features & VPT_F_VNET_HDR ? sizeof(struct vpt_vnet_hdr) : 0;
	return 0;
}

void vpt_net_doorbell(struct vpt_net *vn, u32 vector)
{
	iowrite32(vn->hdr.host_peer_id << 16 | vector, vn->regs + 12);
}

void vpt_net_ctl_wake(struct vpt_net *vn)
{
	if (!test_bit(VPT_NET_F_CLOSING, &vn->flags))
		mod_delayed_work(system_wq, &vn->ctl_work, 0);
}

/**
 * vpt_net_broken() - The host wrote something that cannot be: give up on it
 * @vn:		device
 * @fmt:	what and where, for the one log line
 *
 * Callable from the datapath. Nothing is sent or received from here on; ctl_work does what has to sleep.
 */
void vpt_net_broken(struct vpt_net *vn, const char *fmt, ...)
{
	struct va_format vaf;
	va_list args;

	if (test_and_set_bit(VPT_NET_F_BROKEN, &vn->flags))
		return;
	clear_bit(VPT_NET_F_DATA, &vn->flags);
	va_start(args, fmt);
	vaf.fmt = fmt;
	vaf.va = &args;
	netdev_err(vn->dev, "host broke the ring protocol, taking the link down: %pV\n", &vaf);
	va_end(args);
	vpt_net_ctl_wake(vn);
}

/* Write a status and wait until the host has mirrored it. 0, -ETIMEDOUT, or -EIO: the host gave up instead. */
static int vpt_net_status(struct vpt_net *vn, u32 status)
{
	u32 seen;
	int err;

	/* Pairs with the host's acquire of peer_status: it sees features, generation and the zeroed CSB. */
	virt_store_release(&vn->shared->peer_status, status);
	vpt_net_doorbell(vn, VPT_VEC_CFG(vn->hdr.pairs));
	err = read_poll_timeout(READ_ONCE, seen, seen == status || (status && seen == VPT_S_FAILED), 500,
				VPT_NET_HANDSHAKE_US, false, vn->shared->host_status);
	if (err)
		return err;
	/* Pairs with the host's release of host_status: its CSB entries are set up. */
	virt_rmb();
	return seen == status ? 0 : -EIO;
}

/* Nothing of the datapath runs when this returns. State must be RUNNING. */
static void vpt_net_quiesce(struct vpt_net *vn)
{
	clear_bit(VPT_NET_F_DATA, &vn->flags);
	netif_carrier_off(vn->dev);
	netif_tx_disable(vn->dev);
	napi_disable(&vn->napi);
}

static void vpt_net_ring_reset(struct vpt_net_ring *r, u32 tail)
{
	r->head = 0;
	r->published = 0;
	r->tail = tail;
}

/**
 * vpt_net_start() - The handshake of abi.h, from reset to DRIVER_OK
 * @vn:		device; datapath stopped
 *
 * Return: 0, -ETIMEDOUT host does not answer, -EIO host refuses, -EINVAL header changed
 */
static int vpt_net_start(struct vpt_net *vn)
{
	struct vpt_hdr *shared = vn->shared;
	int err;

	err = vpt_net_status(vn, VPT_S_RESET);
	if (err)
		return err;
	if (memcmp(shared, &vn->hdr, VPT_NET_HDR_CONST))
		return -EINVAL;

	memset(vn->base + vn->hdr.csb_atok_ofs, 0, 2 * vn->hdr.pairs * sizeof(struct vpt_csb_atok));
	vpt_net_ring_reset(&vn->tx, vn->tx.n - 1);
	vpt_net_ring_reset(&vn->rx, 0);
	clear_bit(VPT_NET_F_BROKEN, &vn->flags);

	vn->generation = READ_ONCE(shared->generation);
	shared->peer_generation = vn->generation;
	shared->peer_features = vn->features;
	strscpy(shared->driver, VPT_NET_DRIVER " " VPT_NET_VERSION, sizeof(shared->driver));
	return vpt_net_status(vn, VPT_S_DRIVER_OK);
}

/* Have both rings looked at, whatever the host has told us or not. Looking in vain arms the rx interrupt. */
static void vpt_net_look(struct vpt_net *vn)
{
	netif_tx_wake_all_queues(vn->dev);
	local_bh_disable();
	napi_schedule(&vn->napi);
	local_bh_enable();
}

static void vpt_net_run(struct vpt_net *vn)
{
	vn->state = VPT_NET_RUNNING;
	vn->restarts++;
	clear_bit(VPT_NET_F_WAITING, &vn->flags);
	set_bit(VPT_NET_F_DATA, &vn->flags);
	napi_enable(&vn->napi);
	vpt_net_look(vn);
}

static void vpt_net_fail(struct vpt_net *vn)
{
	vn->state = VPT_NET_FAILED;
	vn->generation = READ_ONCE(vn->shared->generation);
	WRITE_ONCE(vn->shared->peer_status, VPT_S_FAILED);
	vpt_net_doorbell(vn, VPT_VEC_CFG(vn->hdr.pairs));
}

static void vpt_net_ctl_start(struct vpt_net *vn)
{
	int err = vpt_net_start(vn);

	switch (err) {
	case 0:
		vpt_net_run(vn);
		break;
	case -ETIMEDOUT:
		if (!test_and_set_bit(VPT_NET_F_WAITING, &vn->flags))
			netdev_warn(vn->dev, "host does not answer, waiting for it\n");
		mod_delayed_work(system_wq, &vn->ctl_work, VPT_NET_RETRY);
		break;
	case -EIO:
		netdev_err(vn->dev, "host refuses to start: error %u\n", READ_ONCE(vn->shared->host_error));
		vpt_net_fail(vn);
		break;
	default:
		netdev_err(vn->dev, "region changed its layout\n");
		vpt_net_fail(vn);
		break;
	}
}

static void vpt_net_ctl_running(struct vpt_net *vn)
{
	if (test_bit(VPT_NET_F_BROKEN, &vn->flags)) {
		vpt_net_quiesce(vn);
		vpt_net_fail(vn);
	} else if (READ_ONCE(vn->shared->generation) != vn->generation) {
		netdev_info(vn->dev, "host started over\n");
		vpt_net_quiesce(vn);
		vn->state = VPT_NET_STARTING;
	} else if (READ_ONCE(vn->shared->host_status) == VPT_S_FAILED) {
		netdev_err(vn->dev, "host gave up: error %u\n", READ_ONCE(vn->shared->host_error));
		vpt_net_quiesce(vn);
		vpt_net_fail(vn);
	} else {
		/* A host that came back to the same rings may have died between publishing and notifying. */
		vpt_net_look(vn);
	}
}

static void vpt_net_ctl_link(struct vpt_net *vn)
{
	bool up = !(vn->features & VPT_F_STATUS) || READ_ONCE(vn->shared->link) == 1;

	if (up == netif_carrier_ok(vn->dev))
		return;
	if (up)
		netif_carrier_on(vn->dev);
	else
		netif_carrier_off(vn->dev);
}

/* Look at what there is to be seen and act on it; idempotent, so that any number of wake-ups may fall together. */
void vpt_net_ctl_work(struct work_struct *work)
{
	struct vpt_net *vn = container_of(work, struct vpt_net, ctl_work.work);

	if (test_bit(VPT_NET_F_CLOSING, &vn->flags))
		return;
	if (vn->state == VPT_NET_RUNNING)
		vpt_net_ctl_running(vn);
	else if (vn->state == VPT_NET_FAILED && READ_ONCE(vn->shared->generation) != vn->generation)
		vn->state = VPT_NET_STARTING;
	if (vn->state == VPT_NET_STARTING)
		vpt_net_ctl_start(vn);
	if (vn->state == VPT_NET_RUNNING)
		vpt_net_ctl_link(vn);
}

/* The interface goes down: stop the datapath, then let go of the rings. ctl_work and interrupts are gone already. */
void vpt_net_ctl_close(struct vpt_net *vn)
{
	if (vn->state == VPT_NET_RUNNING)
		vpt_net_quiesce(vn);
	vn->state = VPT_NET_CLOSED;
	/* A host that does not answer is told again at the next start; nothing here depends on it. */
	vpt_net_status(vn, VPT_S_RESET);
}
