/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_bench_pc.c - the notification protocol between two threads, under each policy and by each means
 *
 * Under ThreadSanitizer: does everything that one side reads of the other's come through an index that was published?
 * Without: does each item pass once and in order, and does no wake-up get lost?
 */
#define _GNU_SOURCE
#include "test.h"
#include "vpt/vpt_bench.h"

#define SAMPLES 100

static void check_run(uint32_t policy, uint32_t notify_by, uint64_t work_p, uint64_t work_c)
{
	static uint64_t latency[SAMPLES], starts[2 * SAMPLES], batches[2 * SAMPLES];
	struct vpt_bench_pc b = {
		.policy = policy,
		.notify_by = notify_by,
		.length = 16,
		.notify_after = 12,
		.cpu_producer = -1,
		.cpu_consumer = -1,
		.samples = SAMPLES,
		.start_samples = SAMPLES,
		.batch_samples = SAMPLES,
		.sample_every = 1,
		.warmup = 10,
		.items = 500,
		.work_p_ns = work_p,
		.work_c_ns = work_c,
		.notify_p_ns = 300,
		.notify_c_ns = 300,
		.start_p_ns = 300,
		.start_c_ns = 300,
		.spin_ns = 1000,
		.sleep_ns = 10000,
	};

	CHECK_EQ(vpt_bench_pc(&b, latency, starts, batches), 0);
	CHECK_EQ(b.bad, 0);
	CHECK(b.producer.late == 0 && b.consumer.late == 0);
	CHECK(b.producer.notifications <= b.consumer.wishes + 1);
	CHECK(b.consumer.notifications <= b.producer.wishes + 1);
}

int main(void)
{
	uint32_t policy, by;

	for (policy = VPT_POLICY_POLL; policy <= VPT_POLICY_ADAPTIVE; policy++) {
		for (by = VPT_PC_EVENTFD; by <= VPT_PC_EMULATED; by++) {
			check_run(policy, by, 0, 1000);
			check_run(policy, by, 1000, 0);
			check_run(policy, by, 500, 500);
		}
	}
	return EXIT_SUCCESS;
}
