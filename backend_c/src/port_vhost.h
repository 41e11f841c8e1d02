/* SPDX-License-Identifier: BSD-2-Clause */
/* port_vhost.h - what the files of a vhost-user port share; for the control thread */
#ifndef VPTI_PORT_VHOST_H
#define VPTI_PORT_VHOST_H

#include <errno.h>

#include "engine.h"
#include "log.h"
#include "virtq.h"

#define VPTI_F_LOG_ALL (1ull << 26)

struct vpti_vring {
	struct vpt_vring cfg;
	bool running;
	bool enabled;
	bool unheard;              /* its kicks may go where nobody hears them */
	uint64_t log_used;         /* as SET_VRING_ADDR says; VPTI_LOG_NEVER: its writes are not to be logged */
	struct vpti_watch *watch;
};

struct vpti_vhost {
	struct vpti_mem *mem;
	struct vpti_log *log;      /* in use while VPTI_F_LOG_ALL is on */
	int log_fd;                /* who is told that something was logged, -1: nobody */
	struct vpti_inflight_area *inflight;
	struct vpti_vring ring[VPT_MAX_VRINGS];
};

static inline bool vpti_vring_is_tx(uint32_t index)
{
	return index & 1;
}

static inline struct vpti_virtq *vpti_vring_virtq(struct vpt_port *p, uint32_t index)
{
	return vpti_vring_is_tx(index) ? &vpti_virtq_txq(p->txq[index / 2])->v : &vpti_virtq_rxq(p->rxq[index / 2])->v;
}

static inline const struct vpti_virtq_layout *vpti_vhost_layout(const struct vpt_port *p)
{
	return p->features & VPTI_F_RING_PACKED ? &vpti_virtq_packed : &vpti_virtq_split;
}

static inline int vpti_vhost_check(const vpt_port *p, uint32_t index)
{
	return p->kind == &vpti_kind_vhost && index < 2 * p->opts.pairs ? 0 : -EINVAL;
}

/* Not suspended: some ring runs. */
static inline bool vpti_vhost_runs(const vpt_port *p)
{
	const struct vpti_vhost *vh = p->priv;
	uint32_t i;

	for (i = 0; i < 2 * p->opts.pairs; i++) {
		if (vh->ring[i].running)
			return true;
	}
	return false;
}

/* ---- port_vhost_log.c: the dirty log, and which rings write to it ---- */

/* The log that is in use with these features, or NULL. */
struct vpti_log *vpti_vhost_log(const struct vpt_port *p, uint64_t features);
/* Does the log reach to the end of memory, and of the rings that run? */
bool vpti_vhost_log_covers(const struct vpt_port *p, const struct vpti_log *log, const struct vpti_mem *mem);
/* Would it reach to the end of this ring, if it had that size? True without a log. */
bool vpti_vhost_log_covers_ring(const struct vpt_port *p, uint32_t index, uint32_t num);
/* Tell a ring that nobody uses, or whose worker may take it up later. */
void vpti_vhost_log_to_ring(struct vpt_port *p, uint32_t index);
/* Tell all rings, and wait until no worker writes anything that goes unlogged, or to a log that was. */
void vpti_vhost_log_apply(struct vpt_port *p);
/* No ring uses it any more. */
void vpti_vhost_log_drop(struct vpti_vhost *vh);

#endif /* VPTI_PORT_VHOST_H */
