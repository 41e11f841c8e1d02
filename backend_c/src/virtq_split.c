/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * virtq_split.c - the split virtqueue, device side (virtio 1.2, section 2.7)
 *
 * The driver may change any byte at any time. Each avail entry, descriptor and header is read once into a local; what is
 * checked is what is used. A queue that breaks a rule takes its port down and stays down until the driver starts over.
 */
#include <errno.h>

#include "notify.h"
#include "virtq_chain.h"

/* In two aligned words, of which each is read once. */
VPTI_INLINE struct vpti_desc read_desc(const struct vpti_desc *from)
{
	const uint64_t *word = (const uint64_t *)(const void *)from;
	uint64_t copy[] = { VPTI_READ(word[0]), VPTI_READ(word[1]) };
	struct vpti_desc d;

	memcpy(&d, copy, sizeof(d));
	return d;
}

#define DESC_MEANING (VPTI_DESC_NEXT | VPTI_DESC_WRITE | VPTI_DESC_INDIRECT)

/**
 * walk() - Follow a chain, each descriptor once
 * @d:		its first descriptor, as it was read
 * @write:	VPTI_DESC_WRITE for buffers that the device writes, 0 for those it reads
 * @emit:	called for each piece; non-zero ends the walk with that value
 * @steps:	increased by the number of descriptors looked at
 *
 * A chain has at most as many descriptors as the queue (2.7.5.2), those of an indirect table included, and no more than
 * VPTI_MAX_CHAIN: more is a loop.
 *
 * Return: 0, -reason (enum vpt_reason), or what emit said
 */
VPTI_INLINE int walk(struct vpti_virtq *v, struct vpti_desc d, uint16_t write, vpti_piece_fn emit, void *ctx,
		     uint32_t *steps)
{
	uint32_t limit = *steps + VPTI_MIN(v->num, VPTI_MAX_CHAIN), entries = 0;
	uint64_t table = 0;
	int rc;

	if (vpti_unlikely(d.flags & VPTI_DESC_INDIRECT)) {
		if (!v->indirect || d.flags & VPTI_DESC_NEXT || !d.len || d.len % sizeof(d))
			return -VPT_REASON_BAD_DESC;
		table = d.addr;
		entries = (uint32_t)(d.len / sizeof(d));
		if (!vpti_read_indirect(v, table, 0, &d))
			return -VPT_REASON_BAD_ADDR;
	}
	for (;;) {
		if (vpti_unlikely(++*steps > limit))
			return -VPT_REASON_LOOP;
		if (vpti_unlikely((d.flags & (VPTI_DESC_WRITE | VPTI_DESC_INDIRECT)) != write))
			return -VPT_REASON_BAD_DESC; /* wrong direction, or a table within a table */
		rc = vpti_emit(v, d.addr, d.len, emit, ctx);
		if (vpti_unlikely(rc) || !(d.flags & VPTI_DESC_NEXT))
			return rc;
		if (entries) {
			if (d.next >= entries)
				return -VPT_REASON_BAD_DESC;
			if (!vpti_read_indirect(v, table, d.next, &d))
				return -VPT_REASON_BAD_ADDR;
		} else {
			if (vpti_unlikely(d.next >= v->num))
				return -VPT_REASON_BAD_DESC;
			d = read_desc(&v->desc[d.next]);
		}
	}
}

/* How many chains the driver has made available; ~index if it claims more than the queue holds. */
static int available(const struct vpti_virtq *v)
{
	uint16_t idx = VPTI_LOAD_ACQUIRE(v->avail->idx); /* pairs with the driver's barrier before it moves idx (2.7.13.3) */
	uint16_t n = (uint16_t)(idx - v->next_avail);

	return n > v->num ? ~(int)idx : n;
}

static void put_used(struct vpti_virtq *v, uint16_t at, uint32_t id, uint32_t len)
{
	v->used->ring[at & v->mask] = (struct vpti_used_elem){ id, len }; /* nobody looks before the index moves */
}

static const uint16_t *used_event(const struct vpti_virtq *v)
{
	return &v->avail->ring[v->num];
}

static void set_avail_event(struct vpti_virtq *v, uint16_t at)
{
	/* A uint16 after the last used entry (2.7.8); the entries are 8 bytes, so it is aligned. */
	uint16_t *event = (uint16_t *)(void *)&v->used->ring[v->num];

	VPTI_WRITE(*event, at);
}

/* Used entries [from, published) and the index have been written. */
VPTI_COLD void log_published(const struct vpti_virtq *v, const struct vpti_log *log, uint16_t from)
{
	uint32_t n = (uint16_t)(v->published - from), at = from & v->mask, first = VPTI_MIN(n, v->num - at);

	vpti_log_used(v, log, offsetof(struct vpti_used, ring[0]) + at * sizeof(struct vpti_used_elem),
		      first * sizeof(struct vpti_used_elem));
	vpti_log_used(v, log, offsetof(struct vpti_used, ring[0]), (n - first) * sizeof(struct vpti_used_elem));
	vpti_log_used(v, log, 0, offsetof(struct vpti_used, ring[0]));
	vpti_log_signal(log);
}

/* Show the driver what is finished. */
static inline void publish_used(struct vpti_virtq *v, uint16_t from)
{
	const struct vpti_log *log = vpti_rcu_get(v->log);

	VPTI_STORE_RELEASE(v->used->idx, (uint16_t)v->published); /* pairs with the driver's barrier after it reads idx (2.7.14) */
	if (vpti_unlikely(log != NULL))
		log_published(v, log, from);
}

/* The flags or the available event have been written. */
static void log_wish(const struct vpti_virtq *v)
{
	const struct vpti_log *log = vpti_rcu_get(v->log);

	if (vpti_likely(log == NULL))
		return;
	vpti_log_used(v, log, 0, sizeof(v->used->flags));
	vpti_log_used(v, log, offsetof(struct vpti_used, ring[0]) + v->num * sizeof(struct vpti_used_elem), sizeof(uint16_t));
}

static void split_quiet(struct vpti_virtq *v)
{
	if (v->event_idx)
		set_avail_event(v, (uint16_t)(v->next_avail - 1)); /* just passed: next met after 65535 chains */
	else
		VPTI_WRITE(v->used->flags, VPTI_USED_NO_NOTIFY);
	log_wish(v);
}

static void split_want_next(struct vpti_virtq *v)
{
	if (v->event_idx)
		set_avail_event(v, VPTI_READ(v->avail->idx));
	else
		VPTI_WRITE(v->used->flags, 0);
	log_wish(v);
}

/* P3 of notify.h for used->idx; the fence is the caller's. */
static bool call_driver(struct vpti_virtq *v)
{
	uint32_t old = v->told;

	v->told = v->published;
	if (old == v->published)
		return false;
	if (v->event_idx ? !vpti_virtq_due(used_event(v), (uint16_t)old, (uint16_t)v->published)
			 : VPTI_READ(v->avail->flags) & VPTI_AVAIL_NO_INTERRUPT)
		return false;
	return vpti_virtq_call(v);
}

/* ---- tx: the driver's buffers are read ---- */

/**
 * gather() - One chain into the burst
 *
 * Return: 1 taken; 0 no room left in this burst, take it with the next; -reason
 */
VPTI_OUTLINE int gather(struct vpti_virtq *v, struct vpti_burst *b, uint16_t head, struct vpti_desc first)
{
	struct vpti_gather g;
	uint32_t steps = 0;
	int rc;

	vpti_gather_begin(&g, v, b);
	rc = walk(v, first, 0, vpti_gather_piece, &g, &steps);
	return vpti_unlikely(rc < 0) ? rc : vpti_gather_end(&g, rc, head);
}

/* The heads of the next n chains; how many of them are possible. */
static uint32_t read_heads(const struct vpti_virtq *v, uint16_t *head, uint32_t n)
{
	uint32_t i;

	for (i = 0; i < n; i++) {
		head[i] = VPTI_READ(v->avail->ring[(v->next_avail + i) & v->mask]);
		if (vpti_unlikely(head[i] >= v->num))
			break;
		__builtin_prefetch(&v->desc[head[i]]);
	}
	return i;
}

static void split_take(struct vpti_txq *q, struct vpti_burst *b)
{
	struct vpti_virtq *v = &vpti_virtq_txq(q)->v;
	const uint8_t *header[VPTI_BURST];
	uint16_t head[VPTI_BURST];
	int n = available(v), rc = 1;
	struct vpti_mem_near near = v->near;
	uint32_t good, i;

	if (n == 0)
		return;
	if (vpti_unlikely(n < 0)) {
		vpti_txq_break(q, VPT_REASON_BAD_INDEX, (uint64_t)~n);
		return;
	}
	n = VPTI_MIN(n, (int)VPTI_BURST);
	good = read_heads(v, head, (uint32_t)n);
	for (i = 0; i < good; i++) {
		struct vpti_desc d = read_desc(&v->desc[head[i]]);

		header[i] = vpti_gather_one(v, &b->pkt[i], d.addr, d.len, d.flags & DESC_MEANING, &near);
		b->cookie[i] = head[i];
		if (vpti_likely(header[i] != NULL))
			continue;
		b->n = i;
		rc = gather(v, b, head[i], d);
		if (vpti_unlikely(rc <= 0))
			break;
	}
	b->n = i;
	v->near = near;
	if (vpti_unlikely(rc < 0))
		vpti_txq_break(q, (uint32_t)-rc, head[i]);
	else if (vpti_unlikely(i < (uint32_t)n && rc))
		vpti_txq_break(q, VPT_REASON_BAD_DESC, head[good]);
	vpti_gather_end_all(q, b, header);
}

static void split_release(struct vpti_txq *q, const struct vpti_burst *b, uint32_t n)
{
	struct vpti_virtq *v = &vpti_virtq_txq(q)->v;
	uint16_t from;
	uint32_t i;

	for (i = 0; i < n; i++)
		put_used(v, (uint16_t)(v->next_used + i), b->cookie[i], 0);
	v->next_avail = (uint16_t)(v->next_avail + n);
	v->next_used = (uint16_t)(v->next_used + n);
	from = (uint16_t)v->published;
	v->published = v->next_used;
	publish_used(v, from);
}

static void split_arm(struct vpti_txq *q)
{
	struct vpti_virtq *v = &vpti_virtq_txq(q)->v;

	if (v->event_idx)
		set_avail_event(v, (uint16_t)v->next_avail);
	else
		VPTI_WRITE(v->used->flags, 0);
	log_wish(v);
}

static bool split_pending(struct vpti_txq *q)
{
	struct vpti_virtq *v = &vpti_virtq_txq(q)->v;

	return VPTI_LOAD_ACQUIRE(v->avail->idx) != v->next_avail;
}

static void split_disarm(struct vpti_txq *q)
{
	struct vpti_virtq *v = &vpti_virtq_txq(q)->v;

	if (v->event_idx) /* a stale event index is quiet by itself */
		return;
	VPTI_WRITE(v->used->flags, VPTI_USED_NO_NOTIFY);
	log_wish(v);
}

static void split_tx_notify(struct vpti_txq *q)
{
	bool sent = call_driver(&vpti_virtq_txq(q)->v);

	vpti_count(q->c, sent ? VPT_C_TX_INTERRUPTS : VPT_C_TX_INTERRUPTS_SUPPRESSED, 1);
}

static const struct vpti_txq_ops split_txq_ops = {
	.take = split_take,
	.release = split_release,
	.arm = split_arm,
	.pending = split_pending,
	.disarm = split_disarm,
	.notify = split_tx_notify,
};

/* ---- rx: the driver's buffers are written ---- */

/* vpti_virtq_rx.begin. The driver has posted its buffers long ago: all descriptors are asked for at once. */
static int split_begin(const struct vpti_virtq *v, uint32_t n)
{
	int left = available(v);
	uint32_t i;

	for (i = 0; i < n && (int)i < left; i++)
		__builtin_prefetch(&v->desc[VPTI_READ(v->avail->ring[(v->next_avail + i) & v->mask]) & v->mask]);
	return left;
}

/* vpti_virtq_rx.fit_ones */
static uint32_t split_fit_ones(struct vpti_virtq *v, struct vpti_room *room, uint32_t i, struct vpti_pkt *const *pkt,
			       uint32_t n, int *budget)
{
	uint32_t end = i + VPTI_MIN(VPTI_MIN(n - i, (uint32_t)*budget), VPTI_ROOM_FRAGS - room->nrun), run = room->nrun, at;
	struct vpti_mem_near near = v->near;

	for (at = i; at < end; at++) {
		uint32_t need = pkt[at]->len + v->hdr_len;
		uint16_t head = VPTI_READ(v->avail->ring[(v->next_avail + at - i) & v->mask]);
		struct vpti_desc d;

		if (vpti_unlikely(head >= v->num))
			break;
		d = read_desc(&v->desc[head]);
		if (vpti_unlikely((d.flags & DESC_MEANING) != VPTI_DESC_WRITE) ||
		    vpti_unlikely(!vpti_fit_one(v, room, at, run, need, d.addr, d.len, &near)))
			break;
		run++;
		put_used(v, (uint16_t)(v->next_used + at - i), head, need);
	}
	room->nrun = run;
	v->near = near;
	v->next_avail = (uint16_t)(v->next_avail + at - i);
	v->next_used = (uint16_t)(v->next_used + at - i);
	*budget -= (int)(at - i);
	return at - i;
}

/* vpti_virtq_rx.fit: one chain, or with mergeable buffers as many as it takes. The used entries lie beyond the published ones. */
VPTI_OUTLINE enum vpti_fit split_fit(struct vpti_virtq_rxq *x, struct vpti_room *room, uint32_t i, uint32_t len, int *budget)
{
	struct vpti_virtq *v = &x->v;
	struct vpti_scatter s = { .room = room, .left = len + v->hdr_len };
	uint16_t next_avail = (uint16_t)v->next_avail, next_used = (uint16_t)v->next_used;
	uint32_t steps = 0;
	int left = *budget;

	do {
		uint16_t head;
		int rc;

		if (!left)
			return VPTI_FIT_NO_CHAINS;
		head = VPTI_READ(v->avail->ring[next_avail & v->mask]);
		s.got = 0;
		rc = -VPT_REASON_BAD_DESC;
		if (vpti_likely(head < v->num))
			rc = walk(v, read_desc(&v->desc[head]), VPTI_DESC_WRITE, vpti_scatter_piece, &s, &steps);
		if (vpti_unlikely(rc < 0)) {
			vpti_rxq_break(&x->q, (uint32_t)-rc, head);
			return VPTI_FIT_BROKEN;
		}
		if (vpti_unlikely(rc == VPTI_ROOM_FULL))
			return i ? VPTI_FIT_NO_ROOM : VPTI_FIT_TOO_BIG;
		if (vpti_unlikely(s.left && vpti_is_crumbs(v, len + v->hdr_len - s.left, steps))) {
			vpti_rxq_break(&x->q, VPT_REASON_BAD_DESC, head);
			return VPTI_FIT_BROKEN;
		}
		if (vpti_unlikely(s.left && !vpti_may_merge(v, steps)))
			return VPTI_FIT_TOO_BIG;
		put_used(v, next_used, head, s.got);
		next_avail++;
		next_used++;
		left--;
	} while (s.left);
	room->nbuf[i] = (uint16_t)(next_used - v->next_used);
	v->next_avail = next_avail;
	v->next_used = next_used;
	*budget = left;
	return VPTI_FIT;
}

/* vpti_virtq_rx.finish: the used entries are written, and invisible until the index moves */
static void split_finish(struct vpti_virtq *v, const struct vpti_room *room)
{
	(void)v;
	(void)room;
}

/* vpti_virtq_rx.publish */
static void split_publish(struct vpti_virtq *v, uint32_t from)
{
	publish_used(v, (uint16_t)from);
}

static uint32_t split_deliver(struct vpti_rxq *q, struct vpti_room *room, struct vpti_pkt *const *pkt, uint32_t n)
{
	static const struct vpti_virtq_rx layout = {
		.begin = split_begin, .fit_ones = split_fit_ones, .fit = split_fit, .finish = split_finish,
		.publish = split_publish,
	};

	return vpti_virtq_deliver(q, room, pkt, n, &layout);
}

static void split_rx_notify(struct vpti_rxq *q)
{
	bool sent;

	vpti_rxq_lock(q);
	sent = call_driver(&vpti_virtq_rxq(q)->v);
	vpti_count(q->c, sent ? VPT_C_RX_INTERRUPTS : VPT_C_RX_INTERRUPTS_SUPPRESSED, 1);
	vpti_rxq_unlock(q);
}

static const struct vpti_rxq_ops split_rxq_ops = { .deliver = split_deliver, .notify = split_rx_notify };

/* ---- with a record of what is in flight ---- */

/*
 * used->idx is what counts; the record follows, for another back-end to compare. One worker at a time fills a receive queue:
 * if several did, one could be killed while another's packets, which their senders have been told are done, wait behind its
 * own for being published.
 */
static void split_release_recorded(struct vpti_txq *q, const struct vpti_burst *b, uint32_t n)
{
	struct vpti_virtq *v = &vpti_virtq_txq(q)->v;

	split_release(q, b, n);
	vpti_inflight_split_reached(&v->inflight, (uint16_t)v->published);
}

static uint32_t split_deliver_recorded(struct vpti_rxq *q, struct vpti_room *room, struct vpti_pkt *const *pkt, uint32_t n)
{
	struct vpti_virtq *v = &vpti_virtq_rxq(q)->v;
	uint32_t done;

	vpti_lock(&v->inflight.lock);
	done = split_deliver(q, room, pkt, n);
	vpti_inflight_split_reached(&v->inflight, (uint16_t)v->published);
	vpti_unlock(&v->inflight.lock);
	return done;
}

static const struct vpti_txq_ops split_recorded_txq_ops = {
	.take = split_take,
	.release = split_release_recorded,
	.arm = split_arm,
	.pending = split_pending,
	.disarm = split_disarm,
	.notify = split_tx_notify,
};

static const struct vpti_rxq_ops split_recorded_rxq_ops = {
	.deliver = split_deliver_recorded, .notify = split_rx_notify,
};

/* ---- control thread ---- */

static uint64_t split_used_size(uint32_t num)
{
	return sizeof(struct vpti_used) + num * sizeof(struct vpti_used_elem) + sizeof(uint16_t);
}

static int split_bind(struct vpti_virtq *v, const struct vpti_mem *mem, const struct vpt_vring *ring)
{
	uint64_t num = ring->num;
	void *desc = vpti_mem_uva(mem, ring->desc_uva, num * sizeof(*v->desc));
	void *avail = vpti_mem_uva(mem, ring->avail_uva, sizeof(*v->avail) + (num + 1) * sizeof(uint16_t));
	void *used = vpti_mem_uva(mem, ring->used_uva, split_used_size(ring->num));

	if (num & (num - 1))
		return -EINVAL;
	if (!desc || !avail || !used)
		return -EFAULT;
	if ((uintptr_t)desc % 16 || (uintptr_t)avail % 2 || (uintptr_t)used % 4)
		return -EINVAL;
	v->desc = desc;
	v->avail = avail;
	v->used = used;
	v->mask = (uint16_t)(num - 1);
	return 0;
}

static void split_set_base(struct vpti_virtq *v, uint32_t base)
{
	v->next_avail = (uint16_t)base;
	/* After a back-end that died the driver has seen used->idx; a net device finishes in order, so that is where to go on. */
	v->next_used = v->published = v->told = VPTI_READ(v->used->idx);
}

static uint32_t split_base(const struct vpti_virtq *v)
{
	return v->next_avail;
}

const struct vpti_virtq_layout vpti_virtq_split = {
	.tx = &split_txq_ops,
	.rx = &split_rxq_ops,
	.recorded_tx = &split_recorded_txq_ops,
	.recorded_rx = &split_recorded_rxq_ops,
	.resume = vpti_inflight_resume_split,
	.bind = split_bind,
	.set_base = split_set_base,
	.base = split_base,
	.used_size = split_used_size,
	.quiet = split_quiet,
	.want_next = split_want_next,
};
