/* SPDX-License-Identifier: BSD-2-Clause */
/* bucket.c - setting token buckets, and waiting for tokens */
#include "bucket.h"

#define NS_PER_S 1000000000u
#define MAX_DEPTH_S 3600u
#define MIN_WAIT_NS 1000000u /* waking for each packet would cost more than the packet */

void vpti_bucket_set(struct vpti_bucket *b, uint64_t per_s, uint64_t burst)
{
	const uint64_t most = (uint64_t)MAX_DEPTH_S * NS_PER_S * VPTI_BUCKET_UNIT;
	uint64_t cost = per_s ? ((uint64_t)NS_PER_S * VPTI_BUCKET_UNIT << VPTI_BUCKET_SHIFT) / per_s : 0;
	unsigned __int128 depth = ((unsigned __int128)burst * cost) >> VPTI_BUCKET_SHIFT;

	VPTI_WRITE(b->depth, depth > most ? most : (uint64_t)depth);
	VPTI_WRITE(b->cost, cost);
	VPTI_WRITE(b->spent, vpti_bucket_now() - (cost ? (uint64_t)b->depth : most));
}

static uint64_t wait_for(const struct vpti_bucket *b, uint64_t now)
{
	uint64_t spent = vpti_bucket_look(b, now), depth = VPTI_READ(b->depth) / VPTI_BUCKET_UNIT;
	uint64_t debt = vpti_bucket_after(spent, now) ? (spent - now) / VPTI_BUCKET_UNIT + 1 : 0;

	/* Not beyond half of the bucket: a full one loses tokens. */
	return debt ? VPTI_MAX(debt, VPTI_MIN(MIN_WAIT_NS, depth / 2)) : 0;
}

uint64_t vpti_rate_wait(const struct vpti_rate *r, uint64_t now)
{
	uint64_t bytes = wait_for(&r->bytes, now), packets = wait_for(&r->packets, now);

	return VPTI_MAX(bytes, packets);
}
