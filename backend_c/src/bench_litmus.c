/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * bench_litmus.c - do the two fence halves of notify.h lose a wake-up?
 *
 * Two pinned threads run the halves against each other, round by round, on a real CSB pair:
 *
 *   producer: store head; [fence]; need?            consumer: wish; fence; head?
 *
 * A wake-up is lost when the producer saw no wish and the consumer saw no new head: it would sleep on a packet. The
 * start of each half is shifted by a few cycles from round to round, so that all interleavings come up.
 */
#include "bench_two.h"
#include "notify.h"
#include "util.h"
#include "vpt/vpt_bench.h"

#define SLOTS 1024u

struct litmus {
	struct vpt_csb_atok atok __attribute__((aligned(64)));
	struct vpt_csb_ktoa ktoa __attribute__((aligned(64)));
	uint64_t round __attribute__((aligned(64)));   /* consumer opens a round */
	uint64_t done __attribute__((aligned(64)));    /* producer closes it */
	bool kicked;
	uint64_t rounds;
	int64_t lost;                                  /* the consumer's count */
	bool fence;
};

static void shift(uint64_t n)
{
	while (n--)
		__asm__ __volatile__("" ::: "memory");
}

static void producer(void *arg)
{
	struct litmus *l = arg;
	uint64_t i;

	for (i = 1; i <= l->rounds; i++) {
		uint32_t old = (uint32_t)((i - 1) % SLOTS), now = (uint32_t)(i % SLOTS);

		while (VPTI_LOAD_ACQUIRE(l->round) != i)
			vpti_cpu_relax();
		shift(i % 7);
		VPTI_STORE_RELEASE(l->atok.head, now);
		if (l->fence)
			vpti_published();
		l->kicked = vpti_csb_due(&l->ktoa.kern_need_kick, &l->ktoa.kick_at, old, now, SLOTS, true);
		VPTI_STORE_RELEASE(l->done, i);
	}
}

static void consumer(void *arg)
{
	struct litmus *l = arg;
	uint64_t i;

	for (i = 1; i <= l->rounds; i++) {
		uint32_t old = (uint32_t)((i - 1) % SLOTS);
		bool saw;

		VPTI_WRITE(l->ktoa.kern_need_kick, 0);
		vpti_full_fence();
		VPTI_STORE_RELEASE(l->round, i);
		shift(i % 16);
		vpti_csb_wish(&l->ktoa.kern_need_kick, &l->ktoa.kick_at, old);
		vpti_wished();
		saw = VPTI_LOAD_ACQUIRE(l->atok.head) != old;
		while (VPTI_LOAD_ACQUIRE(l->done) != i)
			vpti_cpu_relax();
		l->lost += !saw && !l->kicked;
	}
}

int64_t vpt_bench_litmus(uint64_t rounds, int fence, int cpu_a, int cpu_b)
{
	struct litmus l = { .rounds = rounds, .fence = fence != 0 };
	int rc = vpti_on_two_cpus(cpu_a, consumer, cpu_b, producer, &l);

	return rc ? rc : l.lost;
}
