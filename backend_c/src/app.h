/* SPDX-License-Identifier: BSD-2-Clause */
/* app.h - the application's side of a region, for app.c and the benchmarks */
#ifndef VPTI_APP_H
#define VPTI_APP_H

#include <stdbool.h>
#include <stddef.h>

#include "vpt/vpt.h"
#include "util.h"

struct vpti_app_ring {
	struct vpt_nm_ring *nm;
	struct vpt_csb_atok *atok;
	const struct vpt_csb_ktoa *ktoa;
	uint8_t *bufs;
	uint32_t n;
	uint32_t head;             /* first slot that is not filled (tx) or not read (rx) */
	uint32_t tail;             /* hwtail when last looked at */
	uint32_t sent;             /* head as published */
	uint32_t told;             /* head when the host's wish was looked at last */
};

struct vpt_app {
	struct vpt_hdr *hdr;
	size_t size;
	uint32_t pairs;
	uint32_t num_bufs;
	uint32_t buf_size;
	uint32_t hdr_len;
	bool event_idx;
	uint64_t want;
	uint64_t features;
	uint32_t status;
	uint32_t generation;
	int kick_fd[VPT_VEC_COUNT(VPT_MAX_PAIRS)];
	int intr_fd[VPT_VEC_COUNT(VPT_MAX_PAIRS)];
	struct vpti_app_ring ring[2 * VPT_MAX_PAIRS]; /* tx rings, then rx rings */
};

/* Look at the host's hwtail. 0, -ENOLINK the host started over, -EPROTO it lies. */
int vpti_app_sync(vpt_app *a, struct vpti_app_ring *r);

/* Publish head and kick the host if it asked for it. */
void vpti_app_publish(vpt_app *a, struct vpti_app_ring *r, uint32_t vector);

/* Buffer of a slot, NULL if its index is no buffer's. */
static inline uint8_t *vpti_app_buf(const vpt_app *a, const struct vpti_app_ring *r, uint32_t slot)
{
	uint32_t idx = VPTI_READ(r->nm->slot[slot].buf_idx);

	return idx >= 2 && idx < a->num_bufs ? r->bufs + (size_t)idx * a->buf_size : NULL;
}

#endif /* VPTI_APP_H */
