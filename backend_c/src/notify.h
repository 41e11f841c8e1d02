/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * notify.h - the two fence halves: the only way to decide on a notification, the only way to go to sleep
 *
 *        producer                                    consumer
 *        --------                                    --------
 *   P1   store index           (publish)        C1   store at; store need = 1     (wish)
 *   P2   FULL FENCE    vpti_published()         C2   FULL FENCE   vpti_wished()
 *   P3   load need, at         (look)           C3   load index                   (look again)
 *        notify if wanted                            sleep only if nothing came
 *
 * A store followed by a load of something else may be reordered, on x86 too. With both fences at least one of P3 and C3 sees
 * the other side's store; without P2 both may miss it, and the consumer sleeps on a full ring until its time limit.
 * vpt_bench_litmus() runs these very functions and, for control, the same without P2.
 *
 * The fences are per pass, not per queue: a worker publishes on all queues, fences once, looks at all; and arms all,
 * fences once, looks again at all.
 */
#ifndef VPTI_NOTIFY_H
#define VPTI_NOTIFY_H

#include <stdbool.h>

#include "util.h"
#include "vpt/abi.h"

static inline void vpti_full_fence(void)
{
#ifdef __SANITIZE_THREAD__
	/* TSan does not model fences; an RMW it does. Every shared index is accessed atomically, so nothing else is lost. */
	static uint32_t tsan_fence;

	__atomic_fetch_add(&tsan_fence, 1, __ATOMIC_SEQ_CST);
#else
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
}

/* P2. Between publishing (any number of queues) and the vpti_*_due() looks. Pairs with vpti_wished() of the peer. */
static inline void vpti_published(void)
{
	vpti_full_fence();
}

/* C2. Between the vpti_*_wish()es (any number of queues) and looking for work again. Pairs with vpti_published() of the peer. */
static inline void vpti_wished(void)
{
	vpti_full_fence();
}

/**
 * vpti_csb_due() - P3 for a CSB: does the peer want to hear that an index moved from old to now?
 * @need:	peer's need_kick word
 * @at:		peer's event index
 * @n:		slots of the ring
 * @event_idx:	VPT_F_EVENT_IDX was accepted
 *
 * Whatever the peer wrote, the answer is only about notifying that peer; an index outside the ring means "always".
 */
static inline bool vpti_csb_due(const uint32_t *need, const uint32_t *at, uint32_t old, uint32_t now, uint32_t n,
				bool event_idx)
{
	uint32_t where;

	if (!VPTI_LOAD_ACQUIRE(*need)) /* pairs with the release in vpti_csb_wish(): `at` is as new as `need` */
		return false;
	if (!event_idx)
		return now != old;
	where = VPTI_READ(*at);
	return where >= n || vpt_event_passed(where, old, now, n);
}

/* C1 for a CSB: ask to be told when the index moves past slot `where`. */
static inline void vpti_csb_wish(uint32_t *need, uint32_t *at, uint32_t where)
{
	VPTI_WRITE(*at, where);
	VPTI_STORE_RELEASE(*need, 1);
}

/* P3 for a virtqueue with EVENT_IDX (virtio 1.2, 2.7.7.2: vring_need_event). */
static inline bool vpti_virtq_due(const uint16_t *event, uint16_t old, uint16_t now)
{
	return (uint16_t)(now - VPTI_READ(*event) - 1) < (uint16_t)(now - old);
}

#endif /* VPTI_NOTIFY_H */
