/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * virtq_split.c - the split virtqueue, device side (virtio 1.2, section 2.7)
 *
 * The driver may change any byte at any time. Each avail entry, descriptor and header is read once into a local; what is
 * checked is what is used. A queue that breaks a rule takes its port down and stays down until the driver starts over.
 */
#include <string.h>

#include "copy.h"
#include "fd.h"
#include "notify.h"
#include "take.h"
#include "virtq.h"

static struct vpti_desc read_desc(const struct vpti_desc *d)
{
	return (struct vpti_desc){
		.addr = VPTI_READ(d->addr), .len = VPTI_READ(d->len), .flags = VPTI_READ(d->flags), .next = VPTI_READ(d->next),
	};
}

/* The n-th entry of an indirect table, which may lie across regions. */
static bool read_indirect(struct vpti_virtq *v, uint64_t table, uint32_t n, struct vpti_desc *out)
{
	uint64_t addr = table + n * sizeof(*out);
	uint32_t done = 0;

	while (done < sizeof(*out)) {
		uint64_t contig;
		const uint8_t *p = vpti_mem_gpa(v->mem, addr + done, &contig, &v->hint);
		uint32_t k;

		if (!p)
			return false;
		k = (uint32_t)VPTI_MIN(contig, sizeof(*out) - done);
		memcpy((uint8_t *)out + done, p, k);
		done += k;
	}
	return true;
}

/* One descriptor's buffer, in as many pieces as its address range has regions. */
typedef int (*emit_fn)(void *ctx, uint8_t *p, uint32_t len);

static inline __attribute__((always_inline)) int emit_desc(struct vpti_virtq *v, const struct vpti_desc *d, emit_fn emit,
							   void *ctx)
{
	uint64_t addr = d->addr;
	uint32_t left = d->len;
	int rc;

	while (left) {
		uint64_t contig;
		uint8_t *p = vpti_mem_gpa(v->mem, addr, &contig, &v->hint);
		uint32_t k;

		if (vpti_unlikely(!p))
			return -VPT_REASON_BAD_ADDR;
		k = (uint32_t)VPTI_MIN(contig, left);
		rc = emit(ctx, p, k);
		if (vpti_unlikely(rc))
			return rc;
		addr += k;
		left -= k;
	}
	return 0;
}

/**
 * walk() - Follow a chain, each descriptor once
 * @head:	index of its first descriptor, checked
 * @write:	VPTI_DESC_WRITE for buffers that the device writes, 0 for those it reads
 * @emit:	called for each piece; non-zero ends the walk with that value
 *
 * A chain has at most as many descriptors as the queue (2.7.5.2), those of an indirect table included: more is a loop.
 *
 * Return: 0, -reason (enum vpt_reason), or what emit said
 */
static inline __attribute__((always_inline)) int walk(struct vpti_virtq *v, uint16_t head, uint16_t write, emit_fn emit,
						      void *ctx)
{
	struct vpti_desc d = read_desc(&v->desc[head]);
	uint32_t steps = 0, entries = 0;
	uint64_t table = 0;
	int rc;

	if (vpti_unlikely(d.flags & VPTI_DESC_INDIRECT)) {
		if (!v->indirect || d.flags & VPTI_DESC_NEXT || !d.len || d.len % sizeof(d))
			return -VPT_REASON_BAD_DESC;
		table = d.addr;
		entries = (uint32_t)(d.len / sizeof(d));
		if (!read_indirect(v, table, 0, &d))
			return -VPT_REASON_BAD_ADDR;
	}
	for (;;) {
		if (vpti_unlikely(++steps > v->num))
			return -VPT_REASON_LOOP;
		if (vpti_unlikely((d.flags & (VPTI_DESC_WRITE | VPTI_DESC_INDIRECT)) != write))
			return -VPT_REASON_BAD_DESC; /* wrong direction, or a table within a table */
		rc = emit_desc(v, &d, emit, ctx);
		if (vpti_unlikely(rc) || !(d.flags & VPTI_DESC_NEXT))
			return rc;
		if (entries) {
			if (d.next >= entries)
				return -VPT_REASON_BAD_DESC;
			if (!read_indirect(v, table, d.next, &d))
				return -VPT_REASON_BAD_ADDR;
		} else {
			if (vpti_unlikely(d.next >= v->num))
				return -VPT_REASON_BAD_DESC;
			d = read_desc(&v->desc[d.next]);
		}
	}
}

/* How many chains the driver has made available; -1 if it claims more than the queue holds. */
static int available(const struct vpti_virtq *v)
{
	uint16_t idx = VPTI_LOAD_ACQUIRE(v->avail->idx); /* pairs with the driver's barrier before it moves idx (2.7.13.3) */
	uint16_t n = (uint16_t)(idx - v->next_avail);

	return n > v->num ? -1 : n;
}

static void put_used(struct vpti_virtq *v, uint16_t at, uint32_t id, uint32_t len)
{
	struct vpti_used_elem *e = &v->used->ring[at & v->mask];

	VPTI_WRITE(e->id, id);
	VPTI_WRITE(e->len, len);
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

void vpti_split_quiet(struct vpti_virtq *v)
{
	if (v->event_idx)
		set_avail_event(v, (uint16_t)(v->next_avail - 1)); /* just passed: next met after 65535 chains */
	else
		VPTI_WRITE(v->used->flags, VPTI_USED_NO_NOTIFY);
}

/* P3 of notify.h for used->idx; the fence is the caller's. */
static bool call_driver(struct vpti_virtq *v)
{
	uint16_t old = v->told;

	v->told = v->published;
	if (old == v->published)
		return false;
	if (v->event_idx ? !vpti_virtq_due(used_event(v), old, v->published)
			 : VPTI_READ(v->avail->flags) & VPTI_AVAIL_NO_INTERRUPT)
		return false;
	if (v->call_fd < 0)
		return false;
	vpti_eventfd_signal(v->call_fd);
	return true;
}

/* ---- tx: the driver's buffers are read ---- */

struct gather {
	struct vpti_burst *b;
	struct vpti_pkt *p;
	uint32_t nfrag;
	uint32_t hdr_left;
	uint64_t len;
	uint8_t *hdr;
};

#define TOO_LONG 1 /* gather_piece(): more than a burst holds, or than any frame has */

static inline int gather_piece(void *ctx, uint8_t *p, uint32_t len)
{
	struct gather *g = ctx;

	if (g->hdr_left) { /* may be cut anywhere (2.7.4.2) */
		uint32_t k = VPTI_MIN(g->hdr_left, len);

		memcpy(g->hdr, p, k);
		g->hdr += k;
		g->hdr_left -= k;
		p += k;
		len -= k;
		if (!len)
			return 0;
	}
	g->len += len;
	if (!g->p->first.p) {
		g->p->first = (struct vpti_frag){ p, len };
		return g->len > VPT_MAX_FRAME ? TOO_LONG : 0;
	}
	if (vpti_unlikely(g->nfrag == VPTI_BURST_FRAGS || g->len > VPT_MAX_FRAME))
		return TOO_LONG;
	g->b->frag[g->nfrag++] = (struct vpti_frag){ p, len };
	return 0;
}

/**
 * gather() - One chain into the burst
 *
 * Return: 1 taken; 0 no room left in this burst, take it with the next; -reason
 */
static int gather(struct vpti_virtq_txq *t, struct vpti_burst *b, uint16_t head)
{
	struct vpti_pkt *p = &b->pkt[b->n];
	struct gather g = {
		.b = b, .p = p, .nfrag = b->nfrag, .hdr_left = t->v.hdr_len, .hdr = (uint8_t *)&p->hdr,
	};
	int rc;

	memset(&p->hdr, 0, sizeof(p->hdr));
	p->first = (struct vpti_frag){ NULL, 0 };
	p->more = &b->frag[b->nfrag];
	rc = walk(&t->v, head, 0, gather_piece, &g);
	if (vpti_unlikely(rc < 0))
		return rc;
	if (vpti_unlikely(rc == TOO_LONG)) {
		if (b->n && g.len <= VPT_MAX_FRAME)
			return 0;
		g.nfrag = b->nfrag;
		g.len = VPT_MAX_FRAME + 1; /* counted and dropped by vpti_take_check() */
		p->hdr.gso_type = VPT_GSO_NONE;
	}
	p->nmore = (uint16_t)(g.nfrag - b->nfrag);
	p->len = g.hdr_left ? 0 : (uint32_t)g.len; /* shorter than its header: a runt */
	b->nfrag = g.nfrag;
	b->cookie[b->n++] = head;
	return 1;
}

static void split_take(struct vpti_txq *q, struct vpti_burst *b)
{
	struct vpti_virtq_txq *t = vpti_virtq_txq(q);
	struct vpti_virtq *v = &t->v;
	uint16_t head[VPTI_BURST];
	int n = available(v);
	int i, rc = 0;

	if (n == 0)
		return;
	if (vpti_unlikely(n < 0)) {
		vpti_port_break(q->port, VPT_REASON_BAD_INDEX, q->index, VPTI_READ(v->avail->idx));
		return;
	}
	n = VPTI_MIN(n, (int)VPTI_BURST);
	for (i = 0; i < n; i++) {
		head[i] = VPTI_READ(v->avail->ring[(uint16_t)(v->next_avail + i) & v->mask]);
		if (vpti_unlikely(head[i] >= v->num)) {
			vpti_port_break(q->port, VPT_REASON_BAD_DESC, q->index, head[i]);
			n = i;
			break;
		}
		__builtin_prefetch(&v->desc[head[i]]);
	}
	for (i = 0; i < n; i++) {
		rc = gather(t, b, head[i]);
		if (vpti_unlikely(rc <= 0))
			break;
		__builtin_prefetch(b->pkt[i].first.p);
	}
	if (vpti_unlikely(rc < 0))
		vpti_port_break(q->port, (uint32_t)-rc, q->index, head[i]);
	for (i = 0; i < (int)b->n; i++)
		vpti_take_check(q, &b->pkt[i]);
}

static void split_release(struct vpti_txq *q, const struct vpti_burst *b, uint32_t n)
{
	struct vpti_virtq *v = &vpti_virtq_txq(q)->v;
	uint32_t i;

	for (i = 0; i < n; i++)
		put_used(v, (uint16_t)(v->next_used + i), b->cookie[i], 0);
	v->next_avail = (uint16_t)(v->next_avail + n);
	v->next_used = (uint16_t)(v->next_used + n);
	v->published = v->next_used;
	VPTI_STORE_RELEASE(v->used->idx, v->published); /* pairs with the driver's barrier after it reads idx (2.7.14) */
}

static void split_arm(struct vpti_txq *q)
{
	struct vpti_virtq *v = &vpti_virtq_txq(q)->v;

	if (v->event_idx)
		set_avail_event(v, v->next_avail);
	else
		VPTI_WRITE(v->used->flags, 0);
}

static bool split_pending(struct vpti_txq *q)
{
	struct vpti_virtq *v = &vpti_virtq_txq(q)->v;

	return VPTI_LOAD_ACQUIRE(v->avail->idx) != v->next_avail;
}

static void split_disarm(struct vpti_txq *q)
{
	struct vpti_virtq *v = &vpti_virtq_txq(q)->v;

	if (!v->event_idx) /* a stale event index is quiet by itself */
		VPTI_WRITE(v->used->flags, VPTI_USED_NO_NOTIFY);
}

static void split_tx_notify(struct vpti_txq *q)
{
	bool sent = call_driver(&vpti_virtq_txq(q)->v);

	vpti_count(q->c, sent ? VPT_C_TX_INTERRUPTS : VPT_C_TX_INTERRUPTS_SUPPRESSED, 1);
}

const struct vpti_txq_ops vpti_split_txq_ops = {
	.take = split_take,
	.release = split_release,
	.arm = split_arm,
	.pending = split_pending,
	.disarm = split_disarm,
	.notify = split_tx_notify,
};

/* ---- rx: the driver's buffers are written ---- */

struct scatter {
	struct vpti_room *room;
	uint32_t left;             /* bytes of the packet that have no place yet */
	uint32_t got;              /* of this chain */
};

#define ENOUGH 1
#define ROOM_FULL 2

static inline int scatter_piece(void *ctx, uint8_t *p, uint32_t len)
{
	struct scatter *s = ctx;
	uint32_t k = VPTI_MIN(len, s->left);

	if (vpti_unlikely(s->room->nrun == VPTI_ROOM_FRAGS))
		return ROOM_FULL;
	s->room->run[s->room->nrun++] = (struct vpti_run){ p, k };
	s->left -= k;
	s->got += k;
	return s->left ? 0 : ENOUGH;
}

enum fit { FIT, FIT_NO_CHAINS, FIT_NO_ROOM, FIT_TOO_BIG, FIT_BROKEN };

/**
 * fit_packet() - Chains for one packet, with the queue's lock held
 * @avail:	chains that may be used; reduced by those that were
 *
 * One chain, or with mergeable buffers as many as it takes. Fills the used entries beyond the published ones.
 */
static enum fit fit_packet(struct vpti_virtq_rxq *x, struct vpti_room *room, uint32_t i, uint32_t len, int *avail)
{
	struct vpti_virtq *v = &x->v;
	struct scatter s = { .room = room, .left = len + v->hdr_len };
	uint16_t next_avail = v->next_avail, next_used = v->next_used;
	int left = *avail;

	room->first[i] = room->nrun;
	do {
		uint16_t head;
		int rc;

		if (!left)
			goto undo_no_chains;
		head = VPTI_READ(v->avail->ring[next_avail & v->mask]);
		s.got = 0;
		rc = head < v->num ? walk(v, head, VPTI_DESC_WRITE, scatter_piece, &s) : -VPT_REASON_BAD_DESC;
		if (vpti_unlikely(rc < 0)) {
			vpti_port_break(x->q.port, (uint32_t)-rc, x->q.index, head);
			room->nrun = room->first[i];
			return FIT_BROKEN;
		}
		if (vpti_unlikely(rc == ROOM_FULL)) {
			room->nrun = room->first[i];
			return i ? FIT_NO_ROOM : FIT_TOO_BIG;
		}
		if (vpti_unlikely(s.left && !v->mergeable)) {
			room->nrun = room->first[i];
			return FIT_TOO_BIG;
		}
		put_used(v, next_used, head, s.got);
		next_avail++;
		next_used++;
		left--;
	} while (s.left);
	room->nbuf[i] = (uint16_t)(next_used - v->next_used);
	v->next_avail = next_avail;
	v->next_used = next_used;
	*avail = left;
	return FIT;
undo_no_chains:
	room->nrun = room->first[i];
	return FIT_NO_CHAINS;
}

/* As fit_packet() for packets from pkt[0] on; how many, and in *why what ended it. */
static uint32_t reserve(struct vpti_virtq_rxq *x, struct vpti_room *room, struct vpti_pkt *const *pkt, uint32_t n,
			enum fit *why)
{
	int avail = available(&x->v);
	uint32_t i;

	*why = FIT;
	room->nrun = 0;
	if (vpti_unlikely(avail < 0)) {
		vpti_port_break(x->q.port, VPT_REASON_BAD_INDEX, x->q.index, VPTI_READ(x->v.avail->idx));
		*why = FIT_BROKEN;
		return 0;
	}
	for (i = 0; i < n; i++) {
		*why = fit_packet(x, room, i, pkt[i]->len, &avail);
		if (*why != FIT)
			break;
		__builtin_prefetch(room->run[room->first[i]].p, 1);
	}
	room->first[i] = room->nrun;
	return i;
}

static void copy_all(const struct vpti_virtq *v, const struct vpti_room *room, struct vpti_pkt *const *pkt, uint32_t n)
{
	uint32_t i;

	for (i = 0; i < n; i++) {
		struct vpt_vnet_hdr hdr = pkt[i]->hdr;

		hdr.num_buffers = room->nbuf[i];
		vpti_copy(&room->run[room->first[i]], room->first[i + 1] - room->first[i], &hdr, v->hdr_len, pkt[i]);
	}
}

/* One reservation, copy and publication. Returns packets dealt with, and in *why what ended it. */
static uint32_t deliver_run(struct vpti_virtq_rxq *x, struct vpti_room *room, struct vpti_pkt *const *pkt, uint32_t n,
			    enum fit *why)
{
	struct vpti_rxq *q = &x->q;
	struct vpti_virtq *v = &x->v;
	uint32_t ticket, done, i, published;
	uint64_t bytes = 0;

	vpti_lock(&q->lock);
	done = reserve(x, room, pkt, n, why);
	if (*why == FIT_TOO_BIG)
		vpti_count(q->c, VPT_C_RX_DROP_TOO_BIG, 1);
	if (!done) {
		vpti_unlock(&q->lock);
		return 0;
	}
	ticket = vpti_lease_take(&q->leases, v->next_used);
	vpti_unlock(&q->lock);

	copy_all(v, room, pkt, done);
	for (i = 0; i < done; i++)
		bytes += pkt[i]->len;

	vpti_lock(&q->lock);
	if (vpti_lease_finish(&q->leases, ticket, &published)) {
		v->published = (uint16_t)published;
		VPTI_STORE_RELEASE(v->used->idx, v->published); /* pairs with the driver's barrier after it reads idx (2.7.14) */
	}
	vpti_count(q->c, VPT_C_RX_PACKETS, done);
	vpti_count(q->c, VPT_C_RX_BYTES, bytes);
	vpti_count(q->c, VPT_C_RX_COPIES, done);
	vpti_count(q->c, VPT_C_RX_BATCHES, 1);
	vpti_unlock(&q->lock);
	return done;
}

static uint32_t split_deliver(struct vpti_rxq *q, struct vpti_room *room, struct vpti_pkt *const *pkt, uint32_t n)
{
	struct vpti_virtq_rxq *x = vpti_virtq_rxq(q);
	uint32_t i = 0;

	while (i < n) {
		enum fit why;

		i += deliver_run(x, room, pkt + i, n - i, &why);
		if (why == FIT_TOO_BIG)
			i++;
		else if (why == FIT_NO_CHAINS || why == FIT_BROKEN)
			break;
	}
	return i;
}

static void split_rx_notify(struct vpti_rxq *q)
{
	bool sent;

	vpti_lock(&q->lock);
	sent = call_driver(&vpti_virtq_rxq(q)->v);
	vpti_count(q->c, sent ? VPT_C_RX_INTERRUPTS : VPT_C_RX_INTERRUPTS_SUPPRESSED, 1);
	vpti_unlock(&q->lock);
}

const struct vpti_rxq_ops vpti_split_rxq_ops = { .deliver = split_deliver, .notify = split_rx_notify };
