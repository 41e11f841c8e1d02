/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * lease.h - several workers fill one queue: reserve under a short lock, copy outside it, publish in order
 *
 * The scheme is VALE's (CoNEXT'12, section 4.2). A lease is a range of the queue that ends at `end`; leases are finished
 * in any order and published in the order they were taken. A worker holds one lease of a queue at a time, but one that
 * the scheduler has put aside in the middle of a copy holds back all that others take and finish meanwhile: so only a
 * number of leases may wait, and a queue that has so many is as good as full.
 */
#ifndef VPTI_LEASE_H
#define VPTI_LEASE_H

#include <stdbool.h>

#include "util.h"
#include "vpt/vpt.h"

struct vpti_lock {
	uint32_t held;
};

static inline void vpti_lock(struct vpti_lock *l)
{
	while (__atomic_exchange_n(&l->held, 1, __ATOMIC_ACQUIRE)) {
		while (VPTI_READ(l->held))
			vpti_cpu_relax();
	}
}

static inline void vpti_unlock(struct vpti_lock *l)
{
	VPTI_STORE_RELEASE(l->held, 0);
}

#define VPTI_MAX_LEASES 256u

_Static_assert(VPTI_MAX_LEASES > VPT_MAX_WORKERS && !(VPTI_MAX_LEASES & (VPTI_MAX_LEASES - 1)),
	       "one for each worker at least, and tickets may wrap around");

struct vpti_leases {
	uint32_t first; /* oldest lease not yet published; counts up for ever */
	uint32_t next;
	struct {
		uint32_t end;
		bool done;
	} l[VPTI_MAX_LEASES];
};

/* With the queue's lock held: must a worker do without a lease? */
static inline bool vpti_leases_full(const struct vpti_leases *q)
{
	return vpti_unlikely(q->next - q->first == VPTI_MAX_LEASES);
}

/* With the queue's lock held, and not full. Returns the ticket for vpti_lease_finish(). */
static inline uint32_t vpti_lease_take(struct vpti_leases *q, uint32_t end)
{
	uint32_t ticket = q->next++;

	q->l[ticket % VPTI_MAX_LEASES].end = end;
	q->l[ticket % VPTI_MAX_LEASES].done = false;
	return ticket;
}

/* With the queue's lock held. Returns whether *published moved: all leases up to it are finished. */
static inline bool vpti_lease_finish(struct vpti_leases *q, uint32_t ticket, uint32_t *published)
{
	bool moved = false;

	q->l[ticket % VPTI_MAX_LEASES].done = true;
	while (q->first != q->next && q->l[q->first % VPTI_MAX_LEASES].done) {
		*published = q->l[q->first % VPTI_MAX_LEASES].end;
		q->first++;
		moved = true;
	}
	return moved;
}

#endif /* VPTI_LEASE_H */
