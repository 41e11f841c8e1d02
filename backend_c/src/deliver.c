/* SPDX-License-Identifier: BSD-2-Clause */
/* deliver.c - packets of a burst to one destination: whether it is there, its rate, tags, offloads in software, what was dropped */
#include "deliver.h"

#include "capture.h"
#include "engine.h"
#include "rcu.h"
#include "rules.h"
#include "take.h"

void vpti_count_rx(struct vpti_rxq *q, enum vpt_counter which, uint32_t n)
{
	vpti_rxq_lock(q);
	vpti_count(q->c, which, n);
	vpti_rxq_unlock(q);
}

static struct vpti_rxq *pick_queue(struct vpt_port *to, uint32_t from_index)
{
	struct vpti_rxq *q = to->rxq[from_index % to->opts.pairs];

	return VPTI_LOAD_ACQUIRE(q->live) ? q : to->rxq[0];
}

/* Can this destination take the frame as it is (after software offload)? */
static bool too_big(const struct vpt_port *to, const struct vpti_pkt *p)
{
	return p->len > (p->hdr.gso_type == VPT_GSO_NONE ? VPTI_READ(to->max_len) : VPT_MAX_FRAME);
}

/* What vpti_offload() made, from number `at` on, as many at a time as a delivery takes. Where it ended for want of room, or n. */
static uint32_t deliver_segments(struct vpti_worker *w, struct vpti_rxq *q, uint32_t at, uint32_t n)
{
	struct vpti_pkt *seg[VPTI_DELIVER];
	uint32_t k, done, i;

	for (; at < n; at += k) {
		k = VPTI_MIN(n - at, VPTI_DELIVER);
		for (i = 0; i < k; i++)
			seg[i] = &w->offload.pkt[at + i];
		done = q->ops->deliver(q, &w->room, seg, k);
		if (done < k)
			return at + done;
	}
	return n;
}

/* Where packets of a burst come from, as far as their delivery asks. */
struct source {
	struct vpti_txq *from;
	bool may_wait;
	uint32_t resume;           /* segments of the list's first packet that were delivered when it had to wait */
};

static uint32_t drop_too_big(struct vpti_rxq *q, struct vpti_pkt *p)
{
	vpti_count_rx(q, VPT_C_RX_DROP_TOO_BIG, 1);
	p->cause = VPT_C_RX_DROP_TOO_BIG;
	return 1;
}

/*
 * One packet that carries an offload its receiver refused. A tag that it is to have, each frame made of it gets. Returns 0 if it
 * has to wait, else 1.
 */
static uint32_t deliver_in_software(struct vpti_worker *w, struct vpti_rxq *q, const struct source *src, struct vpti_pkt *p,
				    uint32_t resume)
{
	struct vpti_pkt plain = *p;
	uint32_t done;
	int n, i;

	vpti_vlan_untag(&plain);
	n = vpti_offload(&plain, q->port->accepts, &w->offload);
	for (i = 0; vpti_unlikely(p->tag) && i < n; i++) {
		w->offload.pkt[i].tci = p->tci;
		vpti_vlan_tag(&vpti_vlans_none, &w->offload.pkt[i]);
	}
	/* The first segment is the longest. */
	if (n < 0 || too_big(q->port, &w->offload.pkt[0]))
		return drop_too_big(q, p);
	done = deliver_segments(w, q, VPTI_MIN(resume, (uint32_t)n), (uint32_t)n);
	if (done < (uint32_t)n && src->may_wait) {
		src->from->resume = done;
		return 0;
	}
	vpti_count_rx(q, n > 1 ? VPT_C_RX_SW_GSO : VPT_C_RX_SW_CSUM, 1);
	/* Segments that found no room are gone: a receiver of TCP asks again for just those. */
	if (done < (uint32_t)n)
		vpti_count_rx(q, VPT_C_RX_DROP_FULL, (uint32_t)n - done);
	return 1;
}

/* Runs of plain packets in one go, those for the software path one by one; stops where there is no room. */
static uint32_t deliver_all(struct vpti_worker *w, struct vpti_rxq *q, const struct source *src, struct vpti_pkt **list,
			    uint32_t n)
{
	const struct vpt_port *to = q->port;
	uint32_t i = 0, run, done;

	while (i < n) {
		run = i;
		while (run < n && !vpti_offload_needed(list[run], to->accepts) && !too_big(to, list[run]))
			run++;
		if (run > i) {
			done = q->ops->deliver(q, &w->room, list + i, run - i);
			i += done;
			if (i < run)
				return i;
		} else if (too_big(to, list[i])) {
			i += drop_too_big(q, list[i]);
		} else if (deliver_in_software(w, q, src, list[i], i ? 0 : src->resume)) {
			i++;
		} else {
			return i;
		}
	}
	return n;
}

/* As many of them as the destination's rate lets pass now. */
static uint32_t deliver_within_rate(struct vpti_worker *w, struct vpti_rxq *q, const struct source *src,
				    struct vpti_pkt **list, uint32_t n)
{
	struct vpti_rate *rate = &q->port->rx;
	uint64_t now = vpti_bucket_now(), bytes = 0;
	struct vpti_meter m;
	uint32_t fit = 0, done, i;

	vpti_meter_look(&m, rate, now);
	while (fit < n && vpti_meter_pass(&m, rate, list[fit]->len))
		fit++;
	done = deliver_all(w, q, src, list, fit);
	for (i = 0; i < done; i++)
		bytes += list[i]->len;
	vpti_rate_take(rate, bytes, done, now);
	if (done < fit || fit == n)
		return done;
	if (src->may_wait) {
		vpti_worker_wait(w, src->from, vpti_rate_wait(rate, now));
		return done;
	}
	vpti_count_rx(q, VPT_C_RX_DROP_RATE, n - fit);
	for (i = fit; i < n; i++)
		list[i]->cause = VPT_C_RX_DROP_RATE;
	return n;
}

uint32_t vpti_deliver(struct vpti_worker *w, struct vpti_txq *from, struct vpt_port *to, struct vpti_pkt **list, uint32_t n,
		      bool tagged, bool may_wait)
{
	const struct vpti_vlans *vlans = tagged ? vpti_rcu_get(to->vlans) : NULL;
	struct source src = { .from = from, .may_wait = may_wait };
	struct vpti_rxq *q;
	uint32_t done, i;
	bool watched;

	if (!n)
		return n;
	/* What waited was at the head of the sender's ring, and still is, unless it was dropped meanwhile. */
	if (vpti_unlikely(from->resume)) {
		src.resume = list[0] == &w->burst.pkt[0] ? from->resume : 0;
		from->resume = 0;
	}
	q = pick_queue(to, from->index);
	if (vpti_unlikely(!vpti_port_runs(to) || !VPTI_LOAD_ACQUIRE(q->live))) {
		vpti_count_rx(q, VPT_C_RX_DROP_DOWN, n);
		if (vpti_unlikely(VPTI_READ(to->taps)))
			vpti_capture_delivered(w, to, list, n, n, VPT_C_RX_DROP_DOWN);
		return n;
	}
	watched = VPTI_READ(to->taps);
	if (vpti_unlikely(watched))
		vpti_capture_deliver(list, n);
	for (i = 0; vpti_unlikely(vlans) && i < n; i++)
		vpti_vlan_tag(vlans, list[i]);
	if (vpti_unlikely(VPTI_READ(to->rx.on)))
		done = deliver_within_rate(w, q, &src, list, n);
	else
		done = deliver_all(w, q, &src, list, n);
	if (vpti_unlikely(watched))
		vpti_capture_delivered(w, to, list, may_wait ? done : n, may_wait ? 0 : n - done, VPT_C_RX_DROP_FULL);
	for (i = 0; vpti_unlikely(vlans) && i < n; i++)
		vpti_vlan_untag(list[i]);
	vpti_worker_dirty(w, q);
	vpti_rxq_check_memory(q);
	if (vpti_unlikely(done < n) && !may_wait) {
		vpti_count_rx(q, VPT_C_RX_DROP_FULL, n - done);
		done = n;
	}
	return done;
}
