/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * virtq_chain.h - what split and packed queues have in common: buffers of a chain into a packet, a packet into buffers
 *
 * Inline, because a ring layout's inner loop is made of these; each file that includes it gets its own copy, specialised.
 */
#ifndef VPTI_VIRTQ_CHAIN_H
#define VPTI_VIRTQ_CHAIN_H

#include <string.h>

#include "copy.h"
#include "rcu.h"
#include "take.h"
#include "virtq.h"

#define VPTI_INLINE static inline __attribute__((always_inline))

/* Called for each piece of a chain's memory; non-zero ends the walk with that value. */
typedef int (*vpti_piece_fn)(void *ctx, uint8_t *p, uint32_t len);

/* One descriptor's buffer, in as many pieces as its address range has regions. 0, -reason, or what emit said. */
VPTI_INLINE int vpti_emit(struct vpti_virtq *v, uint64_t addr, uint32_t left, vpti_piece_fn emit, void *ctx)
{
	while (left) {
		uint64_t contig;
		uint8_t *p = vpti_mem_gpa(v->mem, addr, &contig, &v->near);
		uint32_t k;
		int rc;

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

/* The n-th 16-byte entry of an indirect table, which may lie across regions. */
static inline bool vpti_read_indirect(struct vpti_virtq *v, uint64_t table, uint32_t n, void *out)
{
	uint64_t addr = table + n * sizeof(struct vpti_desc);
	uint32_t done = 0;

	while (done < sizeof(struct vpti_desc)) {
		uint64_t contig;
		const uint8_t *p = vpti_mem_gpa(v->mem, addr + done, &contig, &v->near);
		uint32_t k;

		if (!p)
			return false;
		k = (uint32_t)VPTI_MIN(contig, sizeof(struct vpti_desc) - done);
		memcpy((uint8_t *)out + done, p, k);
		done += k;
	}
	return true;
}

/* ---- tx: the driver's buffers into a packet of a burst ---- */

/*
 * A burst is taken in steps, each one tight loop over all of it: descriptors, buffers, headers. Every step only asks for the cache
 * lines of the next, so that the misses, each as long as the work on ten packets, are under way together.
 */

/**
 * vpti_gather_one() - The packet that is one buffer in one piece of memory, as nearly every one is
 * @odd:	its descriptor says otherwise
 *
 * Return: where its header is, for vpti_gather_end_all(); NULL if it is no such packet
 */
VPTI_INLINE const uint8_t *vpti_gather_one(const struct vpti_virtq *v, struct vpti_pkt *p, uint64_t addr, uint32_t len,
					   bool odd, struct vpti_mem_near *near)
{
	const uint8_t *at;

	if (vpti_unlikely(odd || len <= v->hdr_len))
		return NULL;
	at = vpti_mem_span(v->mem, addr, len, near);
	if (vpti_unlikely(!at))
		return NULL;
	__builtin_prefetch(at);
	__builtin_prefetch(at + v->hdr_len); /* often on a line of its own: drivers align the frame, not the header */
	p->first = (struct vpti_frag){ at + v->hdr_len, len - v->hdr_len };
	p->nmore = 0;
	p->len = len - v->hdr_len;
	return at;
}

/* Does a header that is still the driver's ask for nothing? It is not looked at again if so. */
VPTI_INLINE bool vpti_header_is_plain(const uint8_t *header)
{
	uint8_t kind[2];

	_Static_assert(offsetof(struct vpt_vnet_hdr, flags) == 0 && offsetof(struct vpt_vnet_hdr, gso_type) == 1, "its first bytes");
	memcpy(kind, header, sizeof(kind));
	return vpti_vnet_is_plain(kind[0], kind[1]);
}

/* The last step: headers, those that no walk has copied yet (NULL), and checks. */
VPTI_INLINE void vpti_gather_end_all(struct vpti_txq *q, struct vpti_burst *b, const uint8_t *const *header)
{
	uint32_t max_len = VPTI_READ(q->port->max_len), n = b->n, i;

	for (i = 0; i < n; i++) {
		struct vpti_pkt *p = &b->pkt[i];

		if (vpti_likely(header[i] && vpti_header_is_plain(header[i]))) {
			vpti_take_plain(p, max_len);
			continue;
		}
		if (header[i])
			memcpy(&p->hdr, header[i], VPTI_HDR_COMMON); /* a sender's num_buffers means nothing */
		vpti_take_check(q, p);
	}
}

struct vpti_gather {
	struct vpti_burst *b;
	struct vpti_pkt *p;
	uint32_t nfrag;
	uint32_t hdr_left;
	uint64_t len;
	uint8_t *hdr;
};

#define VPTI_TOO_LONG 1 /* more than a burst holds, or than any frame has */

VPTI_INLINE int vpti_gather_piece(void *ctx, uint8_t *p, uint32_t len)
{
	struct vpti_gather *g = ctx;

	if (g->hdr_left) { /* may be cut anywhere (virtio 1.2, 2.7.4.2) */
		uint32_t k = VPTI_MIN(g->hdr_left, len);

		if (vpti_likely(k == sizeof(g->p->hdr))) /* a length that the compiler knows saves a call */
			memcpy(g->hdr, p, sizeof(g->p->hdr));
		else
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
		return g->len > VPT_MAX_FRAME ? VPTI_TOO_LONG : 0;
	}
	if (vpti_unlikely(g->nfrag == VPTI_BURST_FRAGS || g->len > VPT_MAX_FRAME))
		return VPTI_TOO_LONG;
	g->b->frag[g->nfrag++] = (struct vpti_frag){ p, len };
	return 0;
}

VPTI_INLINE void vpti_gather_begin(struct vpti_gather *g, const struct vpti_virtq *v, struct vpti_burst *b)
{
	struct vpti_pkt *p = &b->pkt[b->n];

	memset(&p->hdr, 0, sizeof(p->hdr));
	p->first = (struct vpti_frag){ NULL, 0 };
	p->more = &b->frag[b->nfrag];
	*g = (struct vpti_gather){ .b = b, .p = p, .nfrag = b->nfrag, .hdr_left = v->hdr_len, .hdr = (uint8_t *)&p->hdr };
}

/**
 * vpti_gather_end() - Finish the packet that a walk has gathered
 * @rc:		what the walk returned, not negative
 * @cookie:	the queue's note for release()
 *
 * Return: 1 the packet is in the burst; 0 it has no room there, take it again with the next
 */
VPTI_INLINE int vpti_gather_end(struct vpti_gather *g, int rc, uint32_t cookie)
{
	struct vpti_burst *b = g->b;
	struct vpti_pkt *p = g->p;

	if (vpti_unlikely(rc == VPTI_TOO_LONG)) {
		if (b->n && g->len <= VPT_MAX_FRAME)
			return 0;
		g->nfrag = b->nfrag;
		g->len = VPT_MAX_FRAME + 1; /* counted and dropped by vpti_take_check() */
	}
	p->nmore = (uint16_t)(g->nfrag - b->nfrag);
	p->len = g->hdr_left ? 0 : (uint32_t)g->len; /* shorter than its header: a runt */
	b->nfrag = g->nfrag;
	b->cookie[b->n++] = cookie;
	return 1;
}

/* ---- the dirty log; all of it out of the way of queues that have none ---- */

#define VPTI_COLD static __attribute__((noinline, cold))

/* A piece of the used ring, or of the device's event structure, has been written. */
static inline void vpti_log_used(const struct vpti_virtq *v, const struct vpti_log *log, uint64_t ofs, uint64_t len)
{
	uint64_t base = VPTI_READ(v->log_used);

	if (base != VPTI_LOG_NEVER)
		vpti_log_mark(log, base + ofs, len);
}

/* Buffers have been written. */
VPTI_COLD void vpti_log_room(const struct vpti_virtq *v, const struct vpti_log *log, const struct vpti_room *room)
{
	uint32_t hint = 0, i;

	for (i = 0; i < room->nrun; i++) {
		const struct vpti_run *run = &room->run[i];

		vpti_log_mark(log, vpti_mem_gpa_of(v->mem, run->p, &hint), run->len);
	}
}

/* ---- rx: a packet into the driver's buffers ---- */

struct vpti_scatter {
	struct vpti_room *room;
	uint32_t left;             /* bytes of the packet that have no place yet */
	uint32_t got;              /* of this chain */
};

#define VPTI_ENOUGH 1
#define VPTI_ROOM_FULL 2

VPTI_INLINE int vpti_scatter_piece(void *ctx, uint8_t *p, uint32_t len)
{
	struct vpti_scatter *s = ctx;
	uint32_t k = VPTI_MIN(len, s->left);

	if (vpti_unlikely(s->room->nrun == VPTI_ROOM_FRAGS))
		return VPTI_ROOM_FULL;
	s->room->run[s->room->nrun++] = (struct vpti_run){ p, k };
	s->left -= k;
	s->got += k;
	return s->left ? 0 : VPTI_ENOUGH;
}

/*
 * May a packet that has taken so many descriptors go on to another chain? Without an end to it a driver that offers
 * buffers of one byte, or of none, would have every sender walk its whole queue for each packet.
 */
VPTI_INLINE bool vpti_may_merge(const struct vpti_virtq *v, uint32_t steps)
{
	return v->mergeable && steps < VPTI_MAX_CHAIN;
}

/*
 * Are chains that a packet has used up, and found too small, such as no driver makes: many descriptors, with less room in each than a
 * header takes? A buffer holds a header at least (5.1.6.3.1). They would stay, and every sender walk them for each packet: 45 us.
 */
VPTI_INLINE bool vpti_is_crumbs(const struct vpti_virtq *v, uint32_t room, uint32_t steps)
{
	return steps > 16 && room < steps * v->hdr_len;
}

/* What ended a reservation. */
enum vpti_fit { VPTI_FIT, VPTI_FIT_NO_CHAINS, VPTI_FIT_NO_ROOM, VPTI_FIT_TOO_BIG, VPTI_FIT_BROKEN };

/**
 * struct vpti_virtq_rx - what a ring layout adds to delivering
 * @begin:	look how many chains there are: a budget for fit(), ~index if the driver's index is impossible. Asks for the
 *		descriptors that n packets take
 * @fit_ones:	of the packets from i on, as many as fit one buffer in one piece each; 0 is no verdict on the first
 * @fit:	chains for packet i of the room, with the queue's lock held; next_avail and next_used move only if it fits
 * @finish:	the packets are copied, outside the lock: mark the chains used where that is not yet visible
 * @publish:	everything from `from` up to v->published is finished, with the lock held: show it to the driver, and log it
 */
struct vpti_virtq_rx {
	int (*begin)(const struct vpti_virtq *v, uint32_t n);
	uint32_t (*fit_ones)(struct vpti_virtq *v, struct vpti_room *room, uint32_t i, struct vpti_pkt *const *pkt, uint32_t n,
			     int *budget);
	enum vpti_fit (*fit)(struct vpti_virtq_rxq *x, struct vpti_room *room, uint32_t i, uint32_t len, int *budget);
	void (*finish)(struct vpti_virtq *v, const struct vpti_room *room);
	void (*publish)(struct vpti_virtq *v, uint32_t from);
};

/*
 * Ask for the lines that a packet's beginning is written to. To own a line at once saves the second trip that a store to a shared
 * one takes; but a header alone on its line is often there already (vpti_put_header()), and then stays the driver's, too.
 */
VPTI_INLINE void vpti_expect_write(const struct vpti_virtq *v, const uint8_t *p)
{
	const uint8_t *frame = p + v->hdr_len;

	if ((uintptr_t)frame % VPTI_CACHELINE)
		vpti_prefetch_write(p);
	else
		__builtin_prefetch(p);
	vpti_prefetch_write(frame + VPTI_ETH_HLEN);
}

/**
 * vpti_fit_one() - Is this buffer room for packet i of the room, in one piece? Note it as a run if so
 * @run:	number of the run; the caller knows that there is room for it
 * @need:	bytes, header included
 */
VPTI_INLINE bool vpti_fit_one(const struct vpti_virtq *v, struct vpti_room *room, uint32_t i, uint32_t run, uint32_t need,
			      uint64_t addr, uint32_t len, struct vpti_mem_near *near)
{
	uint8_t *p = vpti_mem_span(v->mem, addr, len, near);

	if (vpti_unlikely(!p || len < need))
		return false;
	vpti_expect_write(v, p);
	room->first[i] = run;
	room->run[run] = (struct vpti_run){ p, need };
	room->nbuf[i] = 1;
	return true;
}

/* Room for packets from pkt[0] on; how many, and in *why what ended it. */
VPTI_INLINE uint32_t vpti_virtq_reserve(struct vpti_virtq_rxq *x, struct vpti_room *room, struct vpti_pkt *const *pkt,
					uint32_t n, enum vpti_fit *why, const struct vpti_virtq_rx *layout)
{
	int budget = layout->begin(&x->v, n);
	uint32_t i = 0;

	*why = VPTI_FIT;
	room->nrun = room->nused = 0;
	if (vpti_leases_full(&x->q.leases)) {
		*why = VPTI_FIT_NO_CHAINS;
		return 0;
	}
	if (vpti_unlikely(budget < 0)) {
		vpti_rxq_break(&x->q, VPT_REASON_BAD_INDEX, (uint64_t)~budget);
		*why = VPTI_FIT_BROKEN;
		return 0;
	}
	for (;;) {
		i += layout->fit_ones(&x->v, room, i, pkt, n, &budget);
		if (vpti_likely(i == n))
			break;
		room->first[i] = room->nrun;
		*why = layout->fit(x, room, i, pkt[i]->len, &budget);
		if (*why != VPTI_FIT) {
			room->nrun = room->first[i];
			break;
		}
		vpti_expect_write(&x->v, room->run[room->first[i]].p);
		if (++i == n)
			break;
	}
	room->first[i] = room->nrun;
	return i;
}

/* Copy what has been reserved, with the number of buffers each packet got in its header. Returns bytes of frames. */
VPTI_INLINE uint64_t vpti_virtq_copy(const struct vpti_virtq *v, const struct vpti_room *room,
				     struct vpti_pkt *const *pkt, uint32_t n)
{
	uint64_t bytes = 0;
	uint32_t i;

	for (i = 0; i < n; i++) {
		struct vpt_vnet_hdr hdr = pkt[i]->hdr;

		hdr.num_buffers = room->nbuf[i];
		vpti_copy(&room->run[room->first[i]], room->first[i + 1] - room->first[i], &hdr, v->hdr_len, pkt[i]);
		bytes += pkt[i]->len;
	}
	return bytes;
}

/* One reservation, copy and publication. Returns packets delivered, and in *why what ended it. */
VPTI_INLINE uint32_t vpti_virtq_deliver_run(struct vpti_virtq_rxq *x, struct vpti_room *room,
					    struct vpti_pkt *const *pkt, uint32_t n, enum vpti_fit *why,
					    const struct vpti_virtq_rx *layout)
{
	struct vpti_rxq *q = &x->q;
	const struct vpti_log *log;
	uint32_t ticket, done, from;
	uint64_t bytes;

	vpti_rxq_lock(q);
	done = vpti_virtq_reserve(x, room, pkt, n, why, layout);
	if (vpti_unlikely(*why == VPTI_FIT_TOO_BIG))
		vpti_count(q->c, VPT_C_RX_DROP_TOO_BIG, 1);
	if (!done) {
		vpti_rxq_unlock(q);
		return 0;
	}
	ticket = vpti_lease_take(&q->leases, x->v.next_used);
	vpti_rxq_unlock(q);

	bytes = vpti_virtq_copy(&x->v, room, pkt, done);
	log = vpti_rcu_get(x->v.log);
	if (vpti_unlikely(log != NULL))
		vpti_log_room(&x->v, log, room);
	layout->finish(&x->v, room);

	vpti_rxq_lock(q);
	from = x->v.published;
	if (vpti_lease_finish(&q->leases, ticket, &x->v.published))
		layout->publish(&x->v, from);
	vpti_count(q->c, VPT_C_RX_PACKETS, done);
	vpti_count(q->c, VPT_C_RX_BYTES, bytes);
	vpti_count(q->c, VPT_C_RX_COPIES, done);
	vpti_count(q->c, VPT_C_RX_BATCHES, 1);
	vpti_rxq_unlock(q);
	return done;
}

/* A layout's deliver(). */
VPTI_INLINE uint32_t vpti_virtq_deliver(struct vpti_rxq *q, struct vpti_room *room, struct vpti_pkt *const *pkt,
					uint32_t n, const struct vpti_virtq_rx *layout)
{
	struct vpti_virtq_rxq *x = vpti_virtq_rxq(q);
	uint32_t i = 0;

	while (i < n) {
		enum vpti_fit why;

		i += vpti_virtq_deliver_run(x, room, pkt + i, n - i, &why, layout);
		if (why == VPTI_FIT_TOO_BIG)
			pkt[i++]->cause = VPT_C_RX_DROP_TOO_BIG;
		else if (why == VPTI_FIT_NO_CHAINS || why == VPTI_FIT_BROKEN)
			break;
	}
	return i;
}

#endif /* VPTI_VIRTQ_CHAIN_H */
