/* SPDX-License-Identifier: BSD-2-Clause */
/* ring.c - netmap-style rings, host side, data path: taking from tx rings, delivering into rx rings */
#include "copy.h"
#include "fd.h"
#include "notify.h"
#include "port_ring.h"
#include "take.h"

static uint32_t next_slot(const struct vpti_ring *r, uint32_t i)
{
	return i + 1 == r->n ? 0 : i + 1;
}

static uint32_t distance(const struct vpti_ring *r, uint32_t from, uint32_t to)
{
	return to >= from ? to - from : to + r->n - from;
}

/* The one place where a slot's content is believed. Returns its buffer or NULL. */
static uint8_t *slot_buf(const struct vpti_ring *r, uint32_t i, uint16_t *len, uint16_t *flags)
{
	const struct vpt_nm_slot *s = &r->slot[i];
	uint32_t idx = VPTI_READ(s->buf_idx);

	*len = VPTI_READ(s->len);
	*flags = VPTI_READ(s->flags);
	if (vpti_unlikely(idx >= r->num_bufs || idx < 2 || *len > r->buf_size))
		return NULL;
	return r->bufs + (size_t)idx * r->buf_size;
}

/* ---- tx: the peer's head moves, we follow ---- */

/**
 * take_one() - One packet of one or more slots into the burst
 * @at:		first slot; @avail: slots up to the peer's head
 *
 * Return: slots used; 0 if the packet's end is not there yet or the burst has no room for it; -reason
 */
static int take_one(struct vpti_ring_txq *t, struct vpti_burst *b, uint32_t at, uint32_t avail)
{
	struct vpti_ring *r = &t->r;
	struct vpti_pkt *p = &b->pkt[b->n];
	uint32_t nfrag = b->nfrag;
	uint32_t used = 0, skip = r->hdr_len;
	uint16_t len, flags;

	memset(&p->hdr, 0, sizeof(p->hdr));
	p->first = (struct vpti_frag){ NULL, 0 };
	p->more = &b->frag[nfrag];
	p->nmore = 0;
	p->len = 0;
	do {
		uint8_t *buf;

		if (vpti_unlikely(used == VPT_MAX_FRAGS))
			return -VPT_REASON_LOOP;
		if (vpti_unlikely(used == avail || nfrag == VPTI_BURST_FRAGS))
			return 0;
		buf = slot_buf(r, at, &len, &flags);
		if (vpti_unlikely(!buf))
			return -VPT_REASON_BAD_SLOT;
		if (skip) { /* the vnet header is at the start of the first slot, whole */
			if (vpti_unlikely(len < skip))
				return -VPT_REASON_BAD_SLOT;
			memcpy(&p->hdr, buf, sizeof(p->hdr));
			buf += skip;
			len = (uint16_t)(len - skip);
			skip = 0;
		}
		if (used == 0)
			p->first = (struct vpti_frag){ buf, len };
		else
			b->frag[nfrag++] = (struct vpti_frag){ buf, len };
		p->len += len;
		used++;
		at = next_slot(r, at);
	} while (vpti_unlikely(flags & VPT_NS_MOREFRAG));
	p->nmore = (uint16_t)(used - 1);
	b->nfrag = nfrag;
	return (int)used;
}

static void ring_take(struct vpti_txq *q, struct vpti_burst *b)
{
	struct vpti_ring_txq *t = vpti_ring_txq(q);
	struct vpti_ring *r = &t->r;
	uint32_t head = VPTI_LOAD_ACQUIRE(r->atok->head); /* pairs with the peer's release after it filled the slots */
	uint32_t at = r->cur, avail, i;

	if (head == r->seen && head == r->cur)
		return;
	if (vpti_unlikely(head >= r->n)) {
		vpti_txq_break(q, VPT_REASON_BAD_INDEX, head);
		return;
	}
	avail = distance(r, at, head);
	while (b->n < VPTI_BURST && avail) {
		int used = take_one(t, b, at, avail);

		if (vpti_unlikely(used < 0)) {
			vpti_txq_break(q, (uint32_t)-used, at);
			break;
		}
		if (vpti_unlikely(!used))
			break;
		__builtin_prefetch(b->pkt[b->n].first.p);
		at = at + (uint32_t)used >= r->n ? at + (uint32_t)used - r->n : at + (uint32_t)used;
		avail -= (uint32_t)used;
		b->cookie[b->n++] = at;
	}
	if (!b->n)
		r->seen = head; /* at most the beginning of a packet: nothing to do until head moves again */
	/* By now the first cache lines are on their way: look into the packets. */
	for (i = 0; i < b->n; i++)
		vpti_take_check(q, &b->pkt[i]);
}

static void ring_release(struct vpti_txq *q, const struct vpti_burst *b, uint32_t n)
{
	struct vpti_ring *r = &vpti_ring_txq(q)->r;

	r->cur = r->seen = b->cookie[n - 1];
	r->published = r->cur ? r->cur - 1 : r->n - 1;
	VPTI_STORE_RELEASE(r->ktoa->hwcur, r->cur);
	/* The packets have been read: pairs with the peer's acquire of hwtail before it fills the slots again. */
	VPTI_STORE_RELEASE(r->ktoa->hwtail, r->published);
}

static void ring_arm(struct vpti_txq *q)
{
	struct vpti_ring *r = &vpti_ring_txq(q)->r;

	vpti_csb_wish(&r->ktoa->kern_need_kick, &r->ktoa->kick_at, r->seen);
}

static bool ring_pending(struct vpti_txq *q)
{
	struct vpti_ring *r = &vpti_ring_txq(q)->r;

	return VPTI_LOAD_ACQUIRE(r->atok->head) != r->seen;
}

static void ring_disarm(struct vpti_txq *q)
{
	VPTI_WRITE(vpti_ring_txq(q)->r.ktoa->kern_need_kick, 0);
}

/* Has the peer asked to hear that hwtail moved from told to published? Interrupt it if so. */
static bool ring_interrupt(struct vpti_ring *r)
{
	uint32_t old = r->told;

	r->told = r->published;
	if (!vpti_csb_due(&r->atok->appl_need_kick, &r->atok->intr_at, old, r->published, r->n, r->event_idx))
		return false;
	vpti_eventfd_signal_peer(r->intr_fd);
	return true;
}

static void ring_tx_notify(struct vpti_txq *q)
{
	bool sent = ring_interrupt(&vpti_ring_txq(q)->r);

	vpti_count(q->c, sent ? VPT_C_TX_INTERRUPTS : VPT_C_TX_INTERRUPTS_SUPPRESSED, 1);
}

const struct vpti_txq_ops vpti_ring_txq_ops = {
	.take = ring_take,
	.release = ring_release,
	.arm = ring_arm,
	.pending = ring_pending,
	.disarm = ring_disarm,
	.notify = ring_tx_notify,
};

/* ---- rx: we fill up to one slot before the peer's head ---- */

/**
 * reserve() - Room for as many of the packets as there is, with the queue's lock held
 *
 * Writes the slots (nobody looks at them before hwtail moves) and notes the runs to copy into.
 *
 * Return: packets that fit
 */
static uint32_t reserve(struct vpti_ring_rxq *x, struct vpti_room *room, struct vpti_pkt *const *pkt, uint32_t n)
{
	struct vpti_ring *r = &x->r;
	uint32_t head = VPTI_LOAD_ACQUIRE(r->atok->head); /* pairs with the peer's release after it read the slots */
	uint32_t at = r->tail, free_slots, i;

	if (vpti_unlikely(head >= r->n)) {
		vpti_rxq_break(&x->q, VPT_REASON_BAD_INDEX, head);
		return 0;
	}
	free_slots = distance(r, at, head ? head - 1 : r->n - 1);
	room->nrun = 0;
	for (i = 0; i < n; i++) {
		uint32_t left = pkt[i]->len + r->hdr_len;
		uint32_t need = left <= r->buf_size ? 1 : (left + r->buf_size - 1) / r->buf_size;

		if (need > free_slots || room->nrun + need > VPTI_ROOM_FRAGS)
			break;
		room->first[i] = room->nrun;
		free_slots -= need;
		while (need--) {
			uint32_t k = VPTI_MIN(left, r->buf_size);
			uint32_t idx = VPTI_READ(r->slot[at].buf_idx);

			if (vpti_unlikely(idx >= r->num_bufs || idx < 2)) {
				vpti_rxq_break(&x->q, VPT_REASON_BAD_SLOT, at);
				return i;
			}
			room->run[room->nrun++] = (struct vpti_run){ r->bufs + (size_t)idx * r->buf_size, k };
			VPTI_WRITE(r->slot[at].len, (uint16_t)k);
			VPTI_WRITE(r->slot[at].flags, (uint16_t)(need ? VPT_NS_MOREFRAG : 0));
			left -= k;
			at = next_slot(r, at);
		}
		r->tail = at;
	}
	room->first[i] = room->nrun;
	return i;
}

/* Too long for one slot and for a chain of them: with or without vnet header. */
static bool never_fits(const struct vpti_ring *r, const struct vpti_pkt *p)
{
	uint32_t len = p->len + r->hdr_len;

	return len > r->buf_size && (!r->hdr_len || len > r->buf_size * VPT_MAX_FRAGS);
}

static uint32_t deliver_run(struct vpti_ring_rxq *x, struct vpti_room *room, struct vpti_pkt *const *pkt, uint32_t n)
{
	struct vpti_rxq *q = &x->q;
	struct vpti_ring *r = &x->r;
	uint64_t bytes = 0;
	uint32_t ticket, i;

	vpti_rxq_lock(q);
	n = vpti_leases_full(&q->leases) ? 0 : reserve(x, room, pkt, n);
	if (!n) {
		vpti_rxq_unlock(q);
		return 0;
	}
	ticket = vpti_lease_take(&q->leases, r->tail);
	vpti_rxq_unlock(q);

	for (i = 0; i < n; i++) {
		const struct vpti_run *run = &room->run[room->first[i]];

		vpti_copy(run, room->first[i + 1] - room->first[i], &pkt[i]->hdr, r->hdr_len, pkt[i]);
		bytes += pkt[i]->len;
	}

	vpti_rxq_lock(q);
	if (vpti_lease_finish(&q->leases, ticket, &r->published)) {
		VPTI_WRITE(r->ktoa->hwcur, r->published);
		/* Slots and buffers are filled: pairs with the peer's acquire of hwtail before it reads them. */
		VPTI_STORE_RELEASE(r->ktoa->hwtail, r->published);
	}
	vpti_count(q->c, VPT_C_RX_PACKETS, n);
	vpti_count(q->c, VPT_C_RX_BYTES, bytes);
	vpti_count(q->c, VPT_C_RX_COPIES, n);
	vpti_count(q->c, VPT_C_RX_BATCHES, 1);
	vpti_rxq_unlock(q);
	return n;
}

static uint32_t ring_deliver(struct vpti_rxq *q, struct vpti_room *room, struct vpti_pkt *const *pkt, uint32_t n)
{
	struct vpti_ring_rxq *x = vpti_ring_rxq(q);
	uint32_t i = 0;

	while (i < n) {
		uint32_t run = i, done;

		while (run < n && !never_fits(&x->r, pkt[run]))
			run++;
		if (run == i) {
			vpti_rxq_lock(q);
			vpti_count(q->c, VPT_C_RX_DROP_TOO_BIG, 1);
			vpti_rxq_unlock(q);
			pkt[i++]->cause = VPT_C_RX_DROP_TOO_BIG;
			continue;
		}
		done = deliver_run(x, room, pkt + i, run - i);
		i += done;
		if (i < run)
			break;
	}
	return i;
}

static void ring_rx_notify(struct vpti_rxq *q)
{
	bool sent;

	vpti_rxq_lock(q);
	sent = ring_interrupt(&vpti_ring_rxq(q)->r);
	vpti_count(q->c, sent ? VPT_C_RX_INTERRUPTS : VPT_C_RX_INTERRUPTS_SUPPRESSED, 1);
	vpti_rxq_unlock(q);
}

const struct vpti_rxq_ops vpti_ring_rxq_ops = { .deliver = ring_deliver, .notify = ring_rx_notify };
