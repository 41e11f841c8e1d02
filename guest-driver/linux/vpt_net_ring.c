// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0
/*
 * vpt_net_ring.c - the datapath: frames into tx slots, rx slots into skbs, and who wakes whom when
 *
 * Frames are copied into and out of the region: an skb is free as soon as its bytes are in the ring, so sending needs
 * no completion, and the tx interrupt serves one purpose only: to restart a queue that was stopped for want of slots.
 * For the same reason there are no byte queue limits, which would need a completion interrupt all the time.
 */
#include <linux/etherdevice.h>
#include <linux/interrupt.h>
#include <linux/virtio_net.h>

#include "vpt_net.h"

/* Frames up to here go into one linear skb; longer ones get their headers linear and the rest in pages. */
#define VPT_NET_RX_LINEAR 2048u
#define VPT_NET_RX_HEAD 256u

static_assert(sizeof(struct vpt_vnet_hdr) == sizeof(struct virtio_net_hdr_mrg_rxbuf));

/**
 * vpt_net_refresh() - Take over the host's index, if it can be true
 * @vn:	device
 * @r:	ring
 *
 * The host may hand over no more than what it has: the slots from @r->tail to the index that was published, less the
 * one that stays empty. The same bound holds for both directions.
 *
 * Return: true, or false after the device was declared broken
 */
static bool vpt_net_refresh(struct vpt_net *vn, struct vpt_net_ring *r)
{
	/* Pairs with the host's release of hwtail: slots and buffers before it are ours. */
	u32 tail = virt_load_acquire(&r->ktoa->hwtail);
	u32 most = vpt_net_dist(r->tail, vpt_net_add(r->published, r->n - 1, r->n), r->n);

	if (likely(tail < r->n && vpt_net_dist(r->tail, tail, r->n) <= most)) {
		r->tail = tail;
		return true;
	}
	vpt_net_broken(vn, "ring %u of %u slots: hwtail %u after %u, with head %u", r->vector, r->n, tail, r->tail,
		       r->published);
	return false;
}

/* Where a slot's buffer lies; NULL after the device was declared broken. */
static u8 *vpt_net_buf(struct vpt_net *vn, const struct vpt_net_ring *r, u32 i)
{
	u32 buf = READ_ONCE(r->slot[i].buf_idx);

	if (likely(buf >= 2 && buf < vn->hdr.num_bufs))
		return vn->base + vn->hdr.buf_pool_ofs + (u64)buf * vn->hdr.buf_size;
	vpt_net_broken(vn, "ring %u slot %u: buffer %u of %u", r->vector, i, buf, vn->hdr.num_bufs);
	return NULL;
}

/**
 * vpt_net_publish() - Show the host what has been done to a ring, and kick it if it wants that
 * @vn:	device
 * @r:	ring
 * @s:	its statistics
 */
static void vpt_net_publish(struct vpt_net *vn, struct vpt_net_ring *r, struct vpt_net_stats *s)
{
	u32 old = r->published;
	bool kick;

	if (r->head == old)
		return;
	r->published = r->head;
	WRITE_ONCE(r->atok->cur, r->head);
	/* Pairs with the host's acquire of head: it sees the slots. */
	virt_store_release(&r->atok->head, r->head);
	/*
	 * Pairs with the host's fence between asking for a kick and looking at head once more. mb() and not virt_mb():
	 * an emulated machine may run "lock; add" non-atomically, but keeps mfence.
	 */
	mb();
	kick = READ_ONCE(r->ktoa->kern_need_kick);
	if (kick && (vn->features & VPT_F_EVENT_IDX))
		kick = vpt_event_passed(READ_ONCE(r->ktoa->kick_at), old, r->head, r->n);
	if (kick)
		vpt_net_doorbell(vn, r->vector);

	u64_stats_update_begin(&s->syncp);
	u64_stats_inc(&s->publishes);
	if (kick)
		u64_stats_inc(&s->kicks);
	else
		u64_stats_inc(&s->kicks_suppressed);
	u64_stats_update_end(&s->syncp);
}

/* Ask for an interrupt when hwtail moves past slot @at. Before relying on it, the caller looks at hwtail once more. */
static void vpt_net_arm(struct vpt_net_ring *r, u32 at)
{
	r->armed = true;
	WRITE_ONCE(r->atok->intr_at, at);
	WRITE_ONCE(r->atok->appl_need_kick, 1);
	/* Pairs with the host's fence between publishing hwtail and looking at need_kick; mb() as when publishing. */
	mb();
}

static void vpt_net_disarm(struct vpt_net_ring *r)
{
	r->armed = false;
	WRITE_ONCE(r->atok->appl_need_kick, 0);
}

/* ---- tx ---- */

/* Describe an skb's offloads. -EINVAL: one that we did not offer to the stack. */
static int vpt_net_tx_hdr(const struct sk_buff *skb, struct vpt_vnet_hdr *h)
{
	const struct skb_shared_info *si = skb_shinfo(skb);

	memset(h, 0, sizeof(*h));
	if (skb->ip_summed == CHECKSUM_PARTIAL) {
		h->flags = VPT_VNET_NEEDS_CSUM;
		h->csum_start = skb_checksum_start_offset(skb);
		h->csum_offset = skb->csum_offset;
	}
	if (!skb_is_gso(skb))
		return 0;
	h->gso_size = si->gso_size;
	if (si->gso_type & (SKB_GSO_TCPV4 | SKB_GSO_TCPV6)) {
		h->gso_type = si->gso_type & SKB_GSO_TCPV4 ? VPT_GSO_TCPV4 : VPT_GSO_TCPV6;
		h->hdr_len = skb_tcp_all_headers(skb);
		if (si->gso_type & SKB_GSO_TCP_ECN)
			h->gso_type |= VPT_GSO_ECN;
	} else if (si->gso_type & SKB_GSO_UDP_L4) {
		h->gso_type = VPT_GSO_UDP_L4;
		h->hdr_len = skb_transport_offset(skb) + sizeof(struct udphdr);
	} else {
		return -EINVAL;
	}
	return 0;
}

/**
 * vpt_net_tx_fill() - Copy one frame into the slots at head
 * @vn:		device; enough slots are free
 * @skb:	frame
 *
 * Return: true and head moved, or false and nothing done
 */
static bool vpt_net_tx_fill(struct vpt_net *vn, const struct sk_buff *skb)
{
	struct vpt_net_ring *r = &vn->tx;
	u32 i = r->head, ofs = 0, used = vn->vnet_len;
	struct vpt_vnet_hdr h;

	if (used && vpt_net_tx_hdr(skb, &h))
		return false;
	do {
		u32 len = min(vn->hdr.buf_size - used, skb->len - ofs);
		u8 *p = vpt_net_buf(vn, r, i);

		if (!p || skb_copy_bits(skb, ofs, p + used, len))
			return false;
		if (used)
			memcpy(p, &h, used);
		ofs += len;
		r->slot[i].len = used + len;
		r->slot[i].flags = ofs < skb->len ? VPT_NS_MOREFRAG : 0;
		used = 0;
		i = vpt_net_add(i, 1, r->n);
	} while (ofs < skb->len);
	r->head = i;
	return true;
}

/**
 * vpt_net_tx_park() - Stop the queue until the host has given back a good part of the ring
 * @vn:	device; tx lock held
 *
 * Return: true if the queue is stopped, false if there is room after all
 */
static bool vpt_net_tx_park(struct vpt_net *vn)
{
	struct vpt_net_ring *r = &vn->tx;
	u32 back;

	if (!vpt_net_refresh(vn, r))
		return true;
	if (vpt_net_avail(r) >= vn->max_slots)
		return false;

	netif_stop_queue(vn->dev);
	vpt_net_publish(vn, r, &vn->tx_stats);
	/*
	 * Woken for one slot, we would fill it and stop again. Half of what the host holds keeps it busy while we wake
	 * up; less than the longest packet would be of no use.
	 */
	back = max((r->n - 1 - vpt_net_avail(r)) / 2, vn->max_slots - vpt_net_avail(r));
	vpt_net_arm(r, vpt_net_add(r->tail, back - 1, r->n));
	if (!vpt_net_refresh(vn, r) || vpt_net_avail(r) < vn->max_slots) {
		vpt_net_count(&vn->tx_stats, &vn->tx_stats.stops, 1);
		return true;
	}
	vpt_net_disarm(r);
	netif_start_queue(vn->dev);
	return false;
}

netdev_tx_t vpt_net_start_xmit(struct sk_buff *skb, struct net_device *dev)
{
	struct vpt_net *vn = netdev_priv(dev);
	struct vpt_net_ring *r = &vn->tx;
	struct vpt_net_stats *s = &vn->tx_stats;
	u32 need = DIV_ROUND_UP(vn->vnet_len + skb->len, vn->hdr.buf_size);
	bool more = netdev_xmit_more();

	if (unlikely(!test_bit(VPT_NET_F_DATA, &vn->flags))) {
		vpt_net_count(s, &s->drops, 1);
		dev_kfree_skb_any(skb);
		return NETDEV_TX_OK;
	}
	if (unlikely(need > vn->max_slots || !skb->len))
		goto drop;
	/* Woken early by a host that knows no event index. */
	if (unlikely(vpt_net_avail(r) < need) && vpt_net_tx_park(vn))
		return NETDEV_TX_BUSY;
	if (unlikely(!vpt_net_tx_fill(vn, skb)))
		goto drop;

	u64_stats_update_begin(&s->syncp);
	u64_stats_inc(&s->packets);
	u64_stats_add(&s->bytes, skb->len);
	u64_stats_update_end(&s->syncp);
	skb_tx_timestamp(skb);
	dev_consume_skb_any(skb);
	goto out;

drop:
	vpt_net_count(s, &s->drops, 1);
	dev_kfree_skb_any(skb);
out:
	/* Part of a burst: its last packet publishes for all. */
	if (vpt_net_avail(r) < vn->max_slots)
		vpt_net_tx_park(vn);
	else if (r->armed)
		vpt_net_disarm(r);
	if (!more || netif_queue_stopped(dev))
		vpt_net_publish(vn, r, s);
	return NETDEV_TX_OK;
}

/* The queue stands still for seconds. This makes up for a notification that was lost, and does a busy host no harm. */
void vpt_net_tx_rekick(struct vpt_net *vn)
{
	vn->tx_timeouts++;
	vpt_net_doorbell(vn, vn->tx.vector);
	netif_trans_update(vn->dev);
	netif_wake_queue(vn->dev);
}

irqreturn_t vpt_net_tx_interrupt(int irq, void *data)
{
	struct vpt_net *vn = data;
	struct vpt_net_ring *r = &vn->tx;
	u32 tail = READ_ONCE(r->ktoa->hwtail);

	WRITE_ONCE(vn->tx_interrupts, vn->tx_interrupts + 1);
	/*
	 * Still armed: too early, there will be another one. A hint only: the queue's next packet looks at the index
	 * for good, under the lock.
	 */
	if (tail >= r->n || vpt_net_dist(READ_ONCE(r->head), tail, r->n) >= vn->max_slots)
		netif_wake_queue(vn->dev);
	return IRQ_HANDLED;
}

/* ---- rx ---- */

/**
 * vpt_net_rx_gather() - Find the slots of the packet at head
 * @vn:		device; the ring is not empty
 * @total:	out: bytes, vnet header included
 *
 * Return: number of slots, 0 after the device was declared broken
 */
static u32 vpt_net_rx_gather(struct vpt_net *vn, u32 *total)
{
	struct vpt_net_ring *r = &vn->rx;
	u32 avail = vpt_net_avail(r), i = r->head, count = 0;
	u16 flags;

	*total = 0;
	do {
		struct vpt_net_frag *f = &vn->chain[count];

		if (count == VPT_MAX_FRAGS || count == avail || (count && !vn->vnet_len)) {
			vpt_net_broken(vn, "ring %u: packet at slot %u does not end", r->vector, r->head);
			return 0;
		}
		f->len = READ_ONCE(r->slot[i].len);
		flags = READ_ONCE(r->slot[i].flags);
		f->p = vpt_net_buf(vn, r, i);
		if (!f->p)
			return 0;
		if (!f->len || f->len > vn->hdr.buf_size) {
			vpt_net_broken(vn, "ring %u slot %u: length %u", r->vector, i, f->len);
			return 0;
		}
		*total += f->len;
		i = vpt_net_add(i, 1, r->n);
		count++;
	} while (flags & VPT_NS_MOREFRAG);
	return count;
}

/* An skb of @len bytes to be filled in, headers in its linear part. */
static struct sk_buff *vpt_net_rx_alloc(struct vpt_net *vn, u32 len)
{
	struct sk_buff *skb;
	int err;

	if (len <= VPT_NET_RX_LINEAR) {
		skb = napi_alloc_skb(&vn->napi, len);
		if (skb)
			__skb_put(skb, len);
		return skb;
	}
	skb = alloc_skb_with_frags(NET_SKB_PAD + NET_IP_ALIGN + VPT_NET_RX_HEAD, len - VPT_NET_RX_HEAD,
				   PAGE_ALLOC_COSTLY_ORDER, &err, GFP_ATOMIC | __GFP_NOWARN);
	if (!skb)
		return NULL;
	skb->dev = vn->dev;
	skb_reserve(skb, NET_SKB_PAD + NET_IP_ALIGN);
	__skb_put(skb, VPT_NET_RX_HEAD);
	skb->data_len = len - VPT_NET_RX_HEAD;
	skb->len += skb->data_len;
	return skb;
}

/* Checksum and segmentation as the header says. -EINVAL: it contradicts the packet. */
static int vpt_net_rx_offload(struct sk_buff *skb, const struct vpt_vnet_hdr *h)
{
	struct virtio_net_hdr v = {
		.flags = h->flags,
		.gso_type = h->gso_type,
		.hdr_len = (__force __virtio16)h->hdr_len,
		.gso_size = (__force __virtio16)h->gso_size,
		.csum_start = (__force __virtio16)h->csum_start,
		.csum_offset = (__force __virtio16)h->csum_offset,
	};
	struct skb_shared_info *si = skb_shinfo(skb);
	u32 payload_ofs;
	int err;

	if (h->flags & VPT_VNET_DATA_VALID)
		skb->ip_summed = CHECKSUM_UNNECESSARY;
	if (h->gso_type != VPT_GSO_UDP_L4)
		return virtio_net_hdr_to_skb(skb, &v, true);

	/* Kernels before 6.2 do not know this type; its checksum part is the same as everywhere. */
	v.gso_type = VIRTIO_NET_HDR_GSO_NONE;
	err = virtio_net_hdr_to_skb(skb, &v, true);
	if (err)
		return err;
	if (!(h->flags & VPT_VNET_NEEDS_CSUM) || h->csum_offset != offsetof(struct udphdr, check) ||
	    !h->gso_size || h->gso_size == GSO_BY_FRAGS)
		return -EINVAL;
	payload_ofs = h->csum_start + sizeof(struct udphdr);
	if (skb->len < payload_ofs || skb->len - payload_ofs > h->gso_size * UDP_MAX_SEGMENTS)
		return -EINVAL;
	if (skb->len - payload_ofs <= h->gso_size)
		return 0;
	si->gso_size = h->gso_size;
	si->gso_type = SKB_GSO_UDP_L4 | SKB_GSO_DODGY;
	si->gso_segs = 0;
	return 0;
}

/* Turn the gathered slots into an skb and pass it up; a packet that is no good is counted and dropped. */
static void vpt_net_rx_packet(struct vpt_net *vn, u32 count, u32 total)
{
	struct vpt_net_stats *s = &vn->rx_stats;
	struct vpt_vnet_hdr h = {};
	u32 len = total - vn->vnet_len, ofs = 0, skip = vn->vnet_len;
	struct sk_buff *skb;

	if (vn->chain[0].len < vn->vnet_len || total < vn->vnet_len + ETH_HLEN || len > VPT_MAX_FRAME)
		goto drop;
	memcpy(&h, vn->chain[0].p, vn->vnet_len);
	skb = vpt_net_rx_alloc(vn, len);
	if (!skb)
		goto drop;
	for (u32 i = 0; i < count; i++, skip = 0) {
		const struct vpt_net_frag *f = &vn->chain[i];

		skb_store_bits(skb, ofs, f->p + skip, f->len - skip);
		ofs += f->len - skip;
	}
	if (vn->vnet_len && vpt_net_rx_offload(skb, &h)) {
		kfree_skb(skb);
		goto drop;
	}
	skb->protocol = eth_type_trans(skb, vn->dev);
	u64_stats_update_begin(&s->syncp);
	u64_stats_inc(&s->packets);
	u64_stats_add(&s->bytes, len);
	u64_stats_update_end(&s->syncp);
	napi_gro_receive(&vn->napi, skb);
	return;
drop:
	vpt_net_count(s, &s->drops, 1);
}

/* Packets received, up to @budget; the slots are the host's again afterwards. */
static int vpt_net_rx(struct vpt_net *vn, int budget)
{
	struct vpt_net_ring *r = &vn->rx;
	int done = 0;

	while (done < budget) {
		u32 count, total;

		if (!vpt_net_avail(r) && (!vpt_net_refresh(vn, r) || !vpt_net_avail(r)))
			break;
		count = vpt_net_rx_gather(vn, &total);
		if (!count)
			break;
		vpt_net_rx_packet(vn, count, total);
		r->head = vpt_net_add(r->head, count, r->n);
		done++;
	}
	vpt_net_publish(vn, r, &vn->rx_stats);
	return done;
}

int vpt_net_poll(struct napi_struct *napi, int budget)
{
	struct vpt_net *vn = container_of(napi, struct vpt_net, napi);
	struct vpt_net_ring *r = &vn->rx;
	int done = 0;

	if (likely(test_bit(VPT_NET_F_DATA, &vn->flags)))
		done = vpt_net_rx(vn, budget);
	if (done == budget) {
		vpt_net_count(&vn->rx_stats, &vn->rx_stats.busy_polls, 1);
		return done;
	}
	if (!napi_complete_done(napi, done) || !test_bit(VPT_NET_F_DATA, &vn->flags))
		return done;
	vpt_net_arm(r, r->head);
	if (READ_ONCE(r->ktoa->hwtail) != r->head && napi_schedule_prep(napi)) {
		vpt_net_disarm(r);
		__napi_schedule(napi);
	}
	return done;
}

irqreturn_t vpt_net_rx_interrupt(int irq, void *data)
{
	struct vpt_net *vn = data;

	WRITE_ONCE(vn->rx_interrupts, vn->rx_interrupts + 1);
	if (napi_schedule_prep(&vn->napi)) {
		vpt_net_disarm(&vn->rx);
		__napi_schedule(&vn->napi);
	}
	return IRQ_HANDLED;
}
