/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * virtq_packed.c - the packed virtqueue, device side (virtio 1.2, section 2.8)
 *
 * One ring of descriptors serves both ways: the driver makes one available by setting its flags to the driver's wrap counter, the
 * device marks it used by setting them to its own. A chain is a run of descriptors; its id is in the last; marking the
 * first of the run used gives back all of it.
 *
 * Each descriptor is read once into a local, flags first: they say that the rest is there.
 */
#include <errno.h>

#include "notify.h"
#include "virtq_packed.h"

/* ---- the dirty log ---- */

/* Descriptors [from, published) have been marked used; those of a chain behind its first are marked along with it. */
VPTI_COLD void log_published(const struct vpti_virtq *v, const struct vpti_log *log, uint32_t from)
{
	uint32_t n = advance(v, v->published, 2u * v->num - from), at = index_of(v, from);
	uint32_t first = VPTI_MIN(n, v->num - at), hint = 0;
	uint64_t gpa;

	if (VPTI_READ(v->log_used) == VPTI_LOG_NEVER)
		return;
	/* The log address of SET_VRING_ADDR is that of the event structure; where the descriptors are is known. */
	gpa = vpti_mem_gpa_of(v->mem, (const uint8_t *)v->packed, &hint);
	vpti_log_mark(log, gpa + at * sizeof(*v->packed), first * sizeof(*v->packed));
	vpti_log_mark(log, gpa, (n - first) * sizeof(*v->packed));
	vpti_log_signal(log);
}

static inline void log_if_wanted(const struct vpti_virtq *v, uint32_t from)
{
	const struct vpti_log *log = vpti_rcu_get(v->log);

	if (vpti_unlikely(log != NULL))
		log_published(v, log, from);
}

/* The device's event structure has been written. */
static void log_wish(const struct vpti_virtq *v)
{
	const struct vpti_log *log = vpti_rcu_get(v->log);

	if (vpti_unlikely(log != NULL))
		vpti_log_used(v, log, 0, sizeof(*v->device_event));
}

/* ---- notifications ---- */

/* Publishing goes on from `told`: a small ring may go round more than once between two looks at the driver's wish. */
static inline void count_untold(struct vpti_virtq *v)
{
	v->untold += advance(v, v->published, 2u * v->num - v->told);
	v->told = v->published;
}

/* P3 of notify.h; the fence is the caller's. */
static bool call_driver(struct vpti_virtq *v)
{
	uint32_t lap = 2u * v->num, untold = v->untold, old, at;
	uint16_t flags;

	v->untold = 0;
	if (!untold)
		return false;
	flags = VPTI_LOAD_ACQUIRE(v->driver_event->flags) & 3; /* pairs with the driver's barrier: off_wrap is as new */
	if (flags == VPTI_PACKED_EVENT_DISABLE)
		return false;
	if (flags == VPTI_PACKED_EVENT_DESC && v->event_idx && untold < lap) {
		at = from_wire(v, VPTI_READ(v->driver_event->off_wrap));
		old = advance(v, v->told, lap - untold);
		/* All in positions, so one cyclic range of 2 * num decides whether `at` has been passed. */
		if (!vpt_event_passed(at, old, v->told, lap))
			return false;
	}
	return vpti_virtq_call(v);
}

static void packed_quiet(struct vpti_virtq *v)
{
	VPTI_WRITE(v->device_event->flags, VPTI_PACKED_EVENT_DISABLE);
	log_wish(v);
}

/* For each: where what is there ends is not known without a walk of the ring. */
static void packed_want_next(struct vpti_virtq *v)
{
	VPTI_WRITE(v->device_event->flags, VPTI_PACKED_EVENT_ENABLE);
	log_wish(v);
}

/* ---- tx: the driver's buffers are read ---- */

/* cookie: descriptors of the chain above 16 bits of its id */
#define COOKIE(count, id) ((uint32_t)(count) << 16 | (id))
#define COOKIE_ID(cookie) ((uint16_t)(cookie))
#define COOKIE_COUNT(cookie) ((cookie) >> 16)

/* The descriptors from a position on, all of one lap, as far as they are available, n at most; how many. */
static inline uint32_t read_available(const struct vpti_virtq *v, uint32_t at, struct vpti_packed_desc *d, uint32_t n)
{
	struct vpti_packed_desc *from = &v->packed[index_of(v, at)];
	uint16_t available = available_at(v, at);
	uint32_t i;

	for (i = 0; i < n; i++) {
		read_desc(&from[i], &d[i]);
		if ((d[i].flags & TURN) != available)
			break;
	}
	return i;
}

/*
 * A burst's worth of descriptors, as far as they are available; how many. Few instructions per descriptor let the processor run
 * ahead to the next lines while it waits for the first.
 *
 * A line that is not full of them is likely being written by the driver right now. To mark its descriptors used would take it
 * away from there; so they are left for the next round, unless they are all there is.
 */
static uint32_t read_burst(const struct vpti_virtq *v, struct vpti_packed_desc *d)
{
	uint32_t at = v->next_avail, left = left_in_lap(v, at), n, behind;

	n = read_available(v, at, d, VPTI_MIN(left, VPTI_BURST));
	if (vpti_unlikely(n == left)) /* on into the next lap */
		n += read_available(v, advance(v, at, n), d + n, VPTI_MIN(v->num, VPTI_BURST - n));
	behind = index_of(v, advance(v, at, n)) % PER_LINE;
	return n > behind ? n - behind : n;
}

/**
 * gather() - One chain into the burst
 * @count:	out: its descriptors in the ring
 *
 * Return: 1 taken; 0 no room left in this burst, take it with the next; -reason
 */
VPTI_OUTLINE int gather(struct vpti_virtq *v, struct vpti_burst *b, uint32_t at, uint16_t first, uint32_t *count)
{
	struct vpti_gather g;
	uint32_t steps = 0;
	uint16_t id = 0;
	int rc;

	vpti_gather_begin(&g, v, b);
	rc = walk(v, at, first, 0, vpti_gather_piece, &g, &id, count, &steps);
	return vpti_unlikely(rc < 0) ? rc : vpti_gather_end(&g, rc, COOKIE(*count, id));
}

static void packed_take(struct vpti_txq *q, struct vpti_burst *b)
{
	struct vpti_virtq *v = &vpti_virtq_txq(q)->v;
	struct vpti_packed_desc d[VPTI_BURST];
	const uint8_t *header[VPTI_BURST];
	struct vpti_mem_near near = v->near;
	uint32_t ndesc = read_burst(v, d), i, n, count;
	int rc = 1;

	for (i = n = 0; i < ndesc; i += count, n++) {
		bool odd = d[i].flags & KIND || d[i].id >= v->num;

		count = 1;
		header[n] = vpti_gather_one(v, &b->pkt[n], d[i].addr, d[i].len, odd, &near);
		b->cookie[n] = COOKIE(1, d[i].id);
		if (vpti_likely(header[n] != NULL))
			continue;
		b->n = n;
		rc = gather(v, b, advance(v, v->next_avail, i), d[i].flags, &count);
		if (vpti_unlikely(rc <= 0))
			break;
	}
	b->n = n;
	v->near = near;
	if (vpti_unlikely(rc < 0))
		vpti_txq_break(q, (uint32_t)-rc, index_of(v, advance(v, v->next_avail, i)));
	vpti_gather_end_all(q, b, header);
}

/* In order, one used descriptor stands for all up to its id (2.8.9). */
static void packed_release(struct vpti_txq *q, const struct vpti_burst *b, uint32_t n)
{
	struct vpti_virtq *v = &vpti_virtq_txq(q)->v;
	uint32_t at = v->next_used, from = v->published, i;

	if (v->in_order) {
		for (i = 0; i < n; i++)
			at = advance(v, at, COOKIE_COUNT(b->cookie[i]));
		mark_read(v, v->next_used, COOKIE_ID(b->cookie[n - 1]));
	} else {
		for (i = 0; i < n; i++) {
			mark_read(v, at, COOKIE_ID(b->cookie[i]));
			at = advance(v, at, COOKIE_COUNT(b->cookie[i]));
		}
	}
	v->next_used = v->next_avail = v->published = at;
	log_if_wanted(v, from);
	count_untold(v);
}

static void packed_arm(struct vpti_txq *q)
{
	struct vpti_virtq *v = &vpti_virtq_txq(q)->v;

	if (v->event_idx) {
		VPTI_WRITE(v->device_event->off_wrap, (uint16_t)to_wire(v, v->next_avail));
		/* The driver reads flags, then off_wrap (2.8.21.3). */
		VPTI_STORE_RELEASE(v->device_event->flags, VPTI_PACKED_EVENT_DESC);
	} else {
		VPTI_WRITE(v->device_event->flags, VPTI_PACKED_EVENT_ENABLE);
	}
	log_wish(v);
}

static bool packed_pending(struct vpti_txq *q)
{
	struct vpti_virtq *v = &vpti_virtq_txq(q)->v;

	return is_available(v, v->next_avail, flags_at(v, v->next_avail));
}

static void packed_disarm(struct vpti_txq *q)
{
	packed_quiet(&vpti_virtq_txq(q)->v);
}

static void packed_tx_notify(struct vpti_txq *q)
{
	bool sent = call_driver(&vpti_virtq_txq(q)->v);

	vpti_count(q->c, sent ? VPT_C_TX_INTERRUPTS : VPT_C_TX_INTERRUPTS_SUPPRESSED, 1);
}

static const struct vpti_txq_ops packed_txq_ops = {
	.take = packed_take,
	.release = packed_release,
	.arm = packed_arm,
	.pending = packed_pending,
	.disarm = packed_disarm,
	.notify = packed_tx_notify,
};

/* ---- rx: the driver's buffers are written ---- */

/*
 * vpti_virtq_rx.begin: a packed ring has no count to look at; each chain shows for itself. The driver has posted its buffers
 * long ago, and their descriptors will be marked used: all lines are asked for at once, to be owned.
 */
static int packed_begin(const struct vpti_virtq *v, uint32_t n)
{
	uint32_t at = index_of(v, v->next_avail), i;

	for (i = 0; i < VPTI_MIN(n, v->num); i += PER_LINE) {
		vpti_prefetch_write(&v->packed[at]);
		at += PER_LINE;
		at = at < v->num ? at : 0;
	}
	return 0;
}

/* vpti_virtq_rx.fit_ones */
static uint32_t packed_fit_ones(struct vpti_virtq *v, struct vpti_room *room, uint32_t i, struct vpti_pkt *const *pkt,
				uint32_t n, int *budget)
{
	/* next_used is there, too: a chain is marked used where it was available. */
	struct vpti_packed_desc *from = &v->packed[index_of(v, v->next_avail)];
	uint16_t available = available_at(v, v->next_avail) | VPTI_DESC_WRITE, used = used_at(v, v->next_avail);
	uint32_t run = room->nrun, mark = room->nused, most = VPTI_ROOM_FRAGS - VPTI_MAX(run, mark), k;
	struct vpti_mem_near near = v->near;

	(void)budget;
	most = VPTI_MIN(VPTI_MIN(n - i, most), left_in_lap(v, v->next_avail));
	for (k = 0; k < most; k++) {
		uint32_t need = pkt[i + k]->len + v->hdr_len;
		struct vpti_packed_desc d;

		read_desc(&from[k], &d);
		if (vpti_unlikely((d.flags & (TURN | KIND)) != available || d.id >= v->num) ||
		    vpti_unlikely(!vpti_fit_one(v, room, i + k, run + k, need, d.addr, d.len, &near)))
			break;
		room->used[mark + k] = (struct vpti_used_mark){ written(used, d.id, need), v->next_avail + k };
	}
	room->nrun = run + k;
	room->nused = mark + k;
	v->near = near;
	v->next_avail = advance(v, v->next_avail, k);
	v->next_used = advance(v, v->next_used, k);
	return k;
}

/* vpti_virtq_rx.fit: one chain, or with mergeable buffers as many as it takes; they are marked used after the copy. */
VPTI_OUTLINE enum vpti_fit packed_fit(struct vpti_virtq_rxq *x, struct vpti_room *room, uint32_t i, uint32_t len, int *budget)
{
	struct vpti_virtq *v = &x->v;
	struct vpti_scatter s = { .room = room, .left = len + v->hdr_len };
	uint32_t at = v->next_avail, used = v->next_used, nused = room->nused, steps = 0, taken = 0;

	(void)budget;
	do {
		uint16_t flags = flags_at(v, at), id = 0;
		uint32_t count = 0;
		int rc;

		/* As many as there are descriptors are out already: what looks available is the lap before. */
		if (!is_available(v, at, flags))
			return VPTI_FIT_NO_CHAINS;
		if (vpti_unlikely(nused == VPTI_ROOM_FRAGS))
			return i ? VPTI_FIT_NO_ROOM : VPTI_FIT_TOO_BIG;
		s.got = 0;
		rc = walk(v, at, flags, VPTI_DESC_WRITE, vpti_scatter_piece, &s, &id, &count, &steps);
		if (vpti_unlikely(rc < 0)) {
			vpti_rxq_break(&x->q, (uint32_t)-rc, index_of(v, at));
			return VPTI_FIT_BROKEN;
		}
		if (vpti_unlikely(rc & VPTI_ROOM_FULL))
			return i ? VPTI_FIT_NO_ROOM : VPTI_FIT_TOO_BIG;
		taken += count;
		if (vpti_unlikely(taken > v->num)) { /* made available again under our eyes; the record has no room for more */
			vpti_rxq_break(&x->q, VPT_REASON_BAD_INDEX, index_of(v, at));
			return VPTI_FIT_BROKEN;
		}
		if (vpti_unlikely(s.left && vpti_is_crumbs(v, len + v->hdr_len - s.left, steps))) {
			vpti_rxq_break(&x->q, VPT_REASON_BAD_DESC, index_of(v, at));
			return VPTI_FIT_BROKEN;
		}
		if (vpti_unlikely(s.left && !vpti_may_merge(v, steps)))
			return VPTI_FIT_TOO_BIG;
		room->used[nused++] = (struct vpti_used_mark){ written(used_at(v, used), id, s.got), used };
		at = advance(v, at, count);
		used = advance(v, used, count);
	} while (s.left);
	room->nbuf[i] = (uint16_t)(nused - room->nused);
	room->nused = nused;
	v->next_avail = at;
	v->next_used = used;
	return VPTI_FIT;
}

/*
 * vpti_virtq_rx.finish: the driver goes through the ring in order, so a chain marked used before its predecessor stays unseen
 * until that is marked, too, by the worker that fills it. Hence the first comes last: a driver that sees the first
 * buffer of a packet takes the others for granted (5.1.6.4).
 */
static void packed_finish(struct vpti_virtq *v, const struct vpti_room *room)
{
	uint32_t i = room->nused;

	while (i--)
		mark_used(v, room->used[i].position, room->used[i].half);
}

/* vpti_virtq_rx.publish: the marks are what the driver sees */
static void packed_publish(struct vpti_virtq *v, uint32_t from)
{
	log_if_wanted(v, from);
	count_untold(v);
}

static uint32_t packed_deliver(struct vpti_rxq *q, struct vpti_room *room, struct vpti_pkt *const *pkt, uint32_t n)
{
	static const struct vpti_virtq_rx layout = {
		.begin = packed_begin, .fit_ones = packed_fit_ones, .fit = packed_fit, .finish = packed_finish,
		.publish = packed_publish,
	};

	return vpti_virtq_deliver(q, room, pkt, n, &layout);
}

static void packed_rx_notify(struct vpti_rxq *q)
{
	bool sent;

	vpti_rxq_lock(q);
	sent = call_driver(&vpti_virtq_rxq(q)->v);
	vpti_count(q->c, sent ? VPT_C_RX_INTERRUPTS : VPT_C_RX_INTERRUPTS_SUPPRESSED, 1);
	vpti_rxq_unlock(q);
}

static const struct vpti_rxq_ops packed_rxq_ops = { .deliver = packed_deliver, .notify = packed_rx_notify };

/* ---- with a record of what is in flight ---- */

static void packed_recorded_begin(struct vpti_virtq *v, uint32_t to)
{
	vpti_inflight_packed_begin(&v->inflight, (uint16_t)index_of(v, to), wrap_of(v, to));
}

static void packed_recorded_commit(struct vpti_virtq *v, uint32_t to)
{
	vpti_inflight_packed_commit(&v->inflight, (uint16_t)index_of(v, to), wrap_of(v, to));
}

/* Chain by chain, or all by the one descriptor that stands for them: the driver sees each step by a single store. */
static void packed_release_recorded(struct vpti_txq *q, const struct vpti_burst *b, uint32_t n)
{
	struct vpti_virtq *v = &vpti_virtq_txq(q)->v;
	uint32_t first = v->next_used, at = first, from = v->published, i;

	for (i = 0; i < n; i++) {
		at = advance(v, at, COOKIE_COUNT(b->cookie[i]));
		if (v->in_order && i + 1 < n)
			continue;
		packed_recorded_begin(v, at);
		mark_read(v, first, COOKIE_ID(b->cookie[i]));
		packed_recorded_commit(v, at);
		first = at;
	}
	v->next_used = v->next_avail = v->published = at;
	log_if_wanted(v, from);
	count_untold(v);
}

/*
 * One packet of n chains, which end at a place. A driver that sees the first takes the others for granted, so that one is
 * marked last; until then the others, marked already, must not be lost.
 */
static void finish_packet(struct vpti_virtq *v, const struct vpti_used_mark *used, uint32_t n, uint32_t end)
{
	uint32_t saved = 0, i;

	for (i = 0; n > 1 && i < n; i++) {
		uint32_t from = used[i].position, to = i + 1 < n ? used[i + 1].position : end;

		saved = vpti_inflight_packed_save(&v->inflight, v, saved, index_of(v, from), advance(v, to, 2u * v->num - from));
	}
	packed_recorded_begin(v, end);
	for (i = n; i--;)
		mark_used(v, used[i].position, used[i].half);
	vpti_inflight_packed_forget(&v->inflight, saved);
	packed_recorded_commit(v, end);
}

/* vpti_virtq_rx.finish, packet by packet. Nobody else has a lease, so what has been reserved ends at next_used. */
static void packed_finish_recorded(struct vpti_virtq *v, const struct vpti_room *room)
{
	uint32_t at, i = 0;

	for (at = 0; at < room->nused; at += room->nbuf[i++]) {
		uint32_t next = at + room->nbuf[i];

		finish_packet(v, &room->used[at], room->nbuf[i], next < room->nused ? room->used[next].position : v->next_used);
	}
}

static uint32_t packed_deliver_recorded(struct vpti_rxq *q, struct vpti_room *room, struct vpti_pkt *const *pkt, uint32_t n)
{
	static const struct vpti_virtq_rx layout = {
		.begin = packed_begin, .fit_ones = packed_fit_ones, .fit = packed_fit, .finish = packed_finish_recorded,
		.publish = packed_publish,
	};
	struct vpti_virtq *v = &vpti_virtq_rxq(q)->v;
	uint32_t done;

	vpti_lock(&v->inflight.lock); /* one worker at a time: see virtq_split.c */
	done = vpti_virtq_deliver(q, room, pkt, n, &layout);
	vpti_unlock(&v->inflight.lock);
	return done;
}

static const struct vpti_txq_ops packed_recorded_txq_ops = {
	.take = packed_take,
	.release = packed_release_recorded,
	.arm = packed_arm,
	.pending = packed_pending,
	.disarm = packed_disarm,
	.notify = packed_tx_notify,
};

static const struct vpti_rxq_ops packed_recorded_rxq_ops = {
	.deliver = packed_deliver_recorded, .notify = packed_rx_notify,
};

/* ---- control thread ---- */

static int packed_bind(struct vpti_virtq *v, const struct vpti_mem *mem, const struct vpt_vring *ring)
{
	void *desc = vpti_mem_uva(mem, ring->desc_uva, (uint64_t)ring->num * sizeof(*v->packed));
	void *driver = vpti_mem_uva(mem, ring->avail_uva, sizeof(*v->driver_event));
	void *device = vpti_mem_uva(mem, ring->used_uva, sizeof(*v->device_event));

	if (!desc || !driver || !device)
		return -EFAULT;
	if ((ring->base & 0x7fff) >= ring->num)
		return -EINVAL;
	if ((uintptr_t)desc % 16 || (uintptr_t)driver % 4 || (uintptr_t)device % 4)
		return -EINVAL;
	v->packed = desc;
	v->driver_event = driver;
	v->device_event = device;
	return 0;
}

/*
 * The upper half of the base is the used position. A net device that stops has finished all it took, so the two are equal;
 * front-ends that begin a ring leave the upper half zero (DPDK's virtio-user), so the lower one is what counts.
 */
static void packed_set_base(struct vpti_virtq *v, uint32_t base)
{
	v->next_avail = v->next_used = v->published = v->told = from_wire(v, base & 0xffff);
	v->untold = 0;
}

static uint32_t packed_base(const struct vpti_virtq *v)
{
	return to_wire(v, v->next_avail) | to_wire(v, v->next_used) << 16;
}

static uint64_t packed_used_size(uint32_t num)
{
	(void)num;
	return sizeof(struct vpti_packed_event);
}

const struct vpti_virtq_layout vpti_virtq_packed = {
	.tx = &packed_txq_ops,
	.rx = &packed_rxq_ops,
	.recorded_tx = &packed_recorded_txq_ops,
	.recorded_rx = &packed_recorded_rxq_ops,
	.resume = vpti_inflight_resume_packed,
	.bind = packed_bind,
	.set_base = packed_set_base,
	.base = packed_base,
	.used_size = packed_used_size,
	.quiet = packed_quiet,
	.want_next = packed_want_next,
};
