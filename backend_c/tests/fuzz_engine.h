/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * fuzz_engine.h - an engine whose only worker is the fuzz target's own thread
 *
 * Engine, switch and ports are the real ones; only the worker's thread is ended and its loop done here, so that one
 * input gives one run.
 */
#ifndef VPT_FUZZ_ENGINE_H
#define VPT_FUZZ_ENGINE_H

#include <pthread.h>

#include "engine.h"
#include "fd.h"
#include "fuzz.h"
#include "notify.h"
#include "switch.h"

static inline vpt_engine *fuzz_engine(void)
{
	struct vpt_engine_opts opts = {.workers = 1, .cpus = {-1}, .stats_fd = -1};
	struct vpti_worker *w;
	vpt_engine *e;

	MUST(!vpt_engine_open(&opts, &e));
	w = e->worker[0];
	VPTI_WRITE(w->stop, true);
	vpti_eventfd_signal(w->wake_fd);
	MUST(!pthread_join(w->thread, NULL));
	w->started = false;
	return e;
}

/* Called for each burst after it went through the switch, while burst and room are as it left them. */
typedef void (*fuzz_burst_fn)(struct vpti_worker *w, struct vpti_txq *q);

/* One round of a worker's loop, as in worker.c. */
static inline void fuzz_serve(struct vpti_worker *w, fuzz_burst_fn check)
{
	const struct vpti_plan *plan = w->plan;
	uint32_t i;

	for (i = 0; i < plan->n; i++) {
		struct vpti_txq *q = plan->e[i].q;
		uint32_t n;

		if (!vpti_port_runs(q->port))
			continue;
		n = vpti_switch_forward(w, q);
		MUST(n <= w->burst.n && w->burst.n <= VPTI_BURST);
		check(w, q);
		if (n && q->armed) {
			q->armed = false;
			q->ops->disarm(q);
		}
	}
	vpti_published();
	for (i = 0; i < w->ndirty; i++)
		w->dirty[i]->ops->notify(w->dirty[i]);
	w->ndirty = 0;
	for (i = 0; i < plan->n; i++) {
		if (plan->e[i].q->dirty) {
			plan->e[i].q->dirty = false;
			plan->e[i].q->ops->notify(plan->e[i].q);
		}
	}
}

/* Before it would sleep. */
static inline void fuzz_arm(struct vpti_worker *w)
{
	const struct vpti_plan *plan = w->plan;
	uint32_t i;

	for (i = 0; i < plan->n; i++) {
		struct vpti_txq *q = plan->e[i].q;

		if (!q->armed && vpti_port_runs(q->port)) {
			q->armed = true;
			q->ops->arm(q);
		}
	}
	vpti_wished();
	for (i = 0; i < plan->n; i++) {
		if (vpti_port_runs(plan->e[i].q->port))
			plan->e[i].q->ops->pending(plan->e[i].q);
	}
}

/* What the daemon does when the event fd is readable. */
static inline void fuzz_drain_events(vpt_engine *e)
{
	struct vpt_event ev;

	while (vpt_engine_next_event(e, &ev))
		MUST(ev.type == VPT_EVENT_BROKEN || ev.type == VPT_EVENT_STATUS);
}

/* Every fragment of a burst must lie in what `where` says is its port's packet memory. */
typedef bool (*fuzz_inside_fn)(const struct vpt_port *p, const uint8_t *at, uint32_t len);

static inline void fuzz_check_burst(const struct vpti_burst *b, const struct vpt_port *p, fuzz_inside_fn inside)
{
	uint32_t i, k, len;

	MUST(b->nfrag <= VPTI_BURST_FRAGS);
	for (i = 0; i < b->n; i++) {
		const struct vpti_pkt *pkt = &b->pkt[i];

		len = pkt->first.len;
		MUST(inside(p, pkt->first.p, pkt->first.len));
		for (k = 0; k < pkt->nmore; k++) {
			MUST(pkt->more + k >= b->frag && pkt->more + k < b->frag + b->nfrag);
			MUST(inside(p, pkt->more[k].p, pkt->more[k].len));
			len += pkt->more[k].len;
		}
		if (pkt->dst == VPTI_DST_DROP)
			continue; /* too long, say: nobody looks at the rest */
		MUST(len == pkt->len);
		MUST(pkt->len >= VPTI_ETH_HLEN && pkt->len <= VPT_MAX_FRAME);
		if (pkt->hdr.flags & VPT_VNET_NEEDS_CSUM)
			MUST((uint32_t)pkt->hdr.csum_start + pkt->hdr.csum_offset + 2 <= pkt->len);
		else
			MUST(pkt->hdr.gso_type == VPT_GSO_NONE && !pkt->hdr.csum_start && !pkt->hdr.csum_offset);
	}
}

#endif /* VPT_FUZZ_ENGINE_H */
