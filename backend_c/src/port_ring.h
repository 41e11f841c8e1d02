/* SPDX-License-Identifier: BSD-2-Clause */
/* port_ring.h - netmap-style rings in a region, host side */
#ifndef VPTI_PORT_RING_H
#define VPTI_PORT_RING_H

#include "engine.h"
#include "region.h"

/* One ring, as the host keeps it. All fields are the host's own; only atok and what slot and bufs point to is the peer's. */
struct vpti_ring {
	const struct vpt_csb_atok *atok;
	struct vpt_csb_ktoa *ktoa;
	struct vpt_nm_slot *slot;
	uint8_t *bufs;
	uint32_t n;
	uint32_t buf_size;
	uint32_t num_bufs;
	uint32_t hdr_len;          /* 0 or 12 */
	bool event_idx;
	uint32_t cur;              /* tx: next slot to take (hwcur) */
	uint32_t seen;             /* tx: head up to which there is nothing (more) to take */
	uint32_t tail;             /* rx: next slot to reserve */
	uint32_t published;        /* hwtail as the peer sees it */
	uint32_t told;             /* hwtail when the peer's wish was looked at last */
	int intr_fd;
};

struct vpti_ring_txq {
	struct vpti_txq q;
	struct vpti_ring r;
};

struct vpti_ring_rxq {
	struct vpti_rxq q;
	struct vpti_ring r;
};

static inline struct vpti_ring_txq *vpti_ring_txq(struct vpti_txq *q)
{
	return vpti_container_of(q, struct vpti_ring_txq, q);
}

static inline struct vpti_ring_rxq *vpti_ring_rxq(struct vpti_rxq *q)
{
	return vpti_container_of(q, struct vpti_ring_rxq, q);
}

/* What a ring port has besides its queues; control thread only. */
struct vpti_ring_port {
	void *base;                /* the mapped region; NULL: none attached */
	struct vpt_region_opts opts;
	struct vpti_layout layout;
	uint32_t host_status;
	uint32_t generation;
	char driver[32];
	int intr_fd[VPT_VEC_COUNT(VPT_MAX_PAIRS)];
	struct vpti_watch *watch[VPT_MAX_PAIRS + 1];
};

extern const struct vpti_txq_ops vpti_ring_txq_ops;
extern const struct vpti_rxq_ops vpti_ring_rxq_ops;

#endif /* VPTI_PORT_RING_H */
