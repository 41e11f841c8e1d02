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
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>

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
	int cpu;
	bool fence;
};

static int pin(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET((size_t)cpu, &set);
	return -pthread_setaffinity_np(pthread_self(), sizeof(set), &set);
}

static void shift(uint64_t n)
{
	while (n--)
		__asm__ __volatile__("" ::: "memory");
}

static void *producer(void *arg)
{
	struct litmus *l = arg;
	uint64_t i;

	pin(l->cpu);
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
	return NULL;
}

int64_t vpt_bench_litmus(uint64_t rounds, int fence, int cpu_a, int cpu_b)
{
	struct litmus l = { .rounds = rounds, .cpu = cpu_b, .fence = fence != 0 };
	cpu_set_t before;
	pthread_t thread;
	int64_t lost = 0;
	uint64_t i;
	int rc;

	if (pthread_getaffinity_np(pthread_self(), sizeof(before), &before))
		return -EINVAL;
	rc = pin(cpu_a);
	if (rc)
		return rc;
	rc = -pthread_create(&thread, NULL, producer, &l);
	if (rc)
		goto out;
	for (i = 1; i <= rounds; i++) {
		uint32_t old = (uint32_t)((i - 1) % SLOTS);
		bool saw;

		VPTI_WRITE(l.ktoa.kern_need_kick, 0);
		vpti_full_fence();
		VPTI_STORE_RELEASE(l.round, i);
		shift(i % 16);
		vpti_csb_wish(&l.ktoa.kern_need_kick, &l.ktoa.kick_at, old);
		vpti_wished();
		saw = VPTI_LOAD_ACQUIRE(l.atok.head) != old;
		while (VPTI_LOAD_ACQUIRE(l.done) != i)
			vpti_cpu_relax();
		lost += !saw && !l.kicked;
	}
	pthread_join(thread, NULL);
	rc = 0;
out:
	pthread_setaffinity_np(pthread_self(), sizeof(before), &before);
	return rc ? rc : lost;
}
