/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * bench_line.c - what a cache line takes from one CPU to another
 *
 * Two rings that talk to each other are bound by it: a hypervisor may put two virtual CPUs on one core complex or on two,
 * anew each minute, and the line takes five times as long.
 */
#include <errno.h>

#include "bench_two.h"
#include "util.h"
#include "vpt/vpt_bench.h"

#define BLOCK 256u /* rounds: short, so that some are not interrupted */

struct line {
	uint64_t ball __attribute__((aligned(2 * VPTI_CACHELINE))); /* odd: to be returned. Alone, also to the prefetcher */
	uint64_t blocks __attribute__((aligned(2 * VPTI_CACHELINE)));
	uint64_t best_ns;                                           /* of a block */
};

static void serve(void *arg)
{
	struct line *l = arg;
	uint64_t began = 0, i;

	/* The first block is not timed: during it the other thread comes up. */
	for (i = 0; i <= l->blocks * BLOCK; i++) {
		if (i % BLOCK == 0) {
			uint64_t now = vpti_now_ns();

			if (i > BLOCK)
				l->best_ns = VPTI_MIN(l->best_ns, now - began);
			began = now;
		}
		VPTI_STORE_RELEASE(l->ball, 2 * i + 1);
		while (VPTI_LOAD_ACQUIRE(l->ball) != 2 * i + 2)
			;
	}
}

static void answer(void *arg)
{
	struct line *l = arg;
	uint64_t i;

	for (i = 0; i <= l->blocks * BLOCK; i++) {
		while (VPTI_LOAD_ACQUIRE(l->ball) != 2 * i + 1)
			;
		VPTI_STORE_RELEASE(l->ball, 2 * i + 2);
	}
}

int64_t vpt_bench_line(uint32_t blocks, int cpu_a, int cpu_b)
{
	struct line l = { .blocks = blocks, .best_ns = UINT64_MAX };
	int rc;

	if (blocks < 2 || cpu_a == cpu_b)
		return -EINVAL;
	rc = vpti_on_two_cpus(cpu_a, serve, cpu_b, answer, &l);
	return rc ? rc : (int64_t)(l.best_ns * 1000 / (2 * BLOCK));
}
