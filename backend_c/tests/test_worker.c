/* SPDX-License-Identifier: BSD-2-Clause */
/* test_worker.c - what a worker must see to though it finds packets in each round */
#define _GNU_SOURCE
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "engine.h"
#include "fd.h"
#include "switch.h"
#include "take.h"
#include "test.h"

#define PATIENCE_MS 20000
#define VECS VPT_VEC_COUNT(1)

/* A transmit queue that is never empty: a guest that sends as fast as its packets are dropped. */
static void endless_take(struct vpti_txq *q, struct vpti_burst *b)
{
	(void)q;
	vpti_drop(&b->pkt[0], VPT_C_TX_DROP_RUNT);
	b->n = 1;
}

static void endless_release(struct vpti_txq *q, const struct vpti_burst *b, uint32_t n)
{
	(void)q;
	(void)b;
	(void)n;
}

static void endless_notify(struct vpti_txq *q)
{
	(void)q;
}

static const struct vpti_txq_ops endless_ops = {
	.take = endless_take, .release = endless_release, .notify = endless_notify,
};

/* The status of a driver that comes up is told by a doorbell of its own, which the worker of its port hears. */
static void test_a_driver_comes_up_beside_a_port_that_always_has_packets(void)
{
	struct vpt_engine_opts opts = { .workers = 1, .cpus = { -1 }, .stats_fd = -1 };
	struct vpt_switch_opts sw_opts = { .name = "sw" };
	struct vpt_port_opts busy_opts = { .kind = VPT_KIND_NULL, .pairs = 1, .policy = { .kind = VPT_POLICY_POLL } };
	struct vpt_port_opts app_opts = { .kind = VPT_KIND_APP, .pairs = 1, .policy = { .kind = VPT_POLICY_POLL } };
	struct vpt_region_opts region = { .pairs = 1, .num_slots = 256 };
	int32_t kick[VECS], intr[VECS];
	vpt_port *busy, *app;
	struct pollfd heard;
	struct vpti_txq *q;
	vpt_engine *e;
	vpt_switch *sw;
	int fd, i;

	CHECK(!vpt_engine_open(&opts, &e));
	CHECK(!vpt_switch_add(e, &sw_opts, &sw));
	CHECK(!vpt_port_add(sw, &busy_opts, &busy));
	q = busy->txq[0];
	q->ops = &endless_ops;
	q->live = true;
	vpti_port_replan(busy);
	CHECK(!vpt_port_add(sw, &app_opts, &app));
	fd = vpt_region_create(&region);
	CHECK(fd >= 0);
	for (i = 0; i < (int)VECS; i++) {
		kick[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		intr[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	}
	CHECK(!vpt_port_ring_attach(app, fd, &region, kick, intr));
	vpti_eventfd_signal(kick[VPT_VEC_CFG(1)]);
	heard = (struct pollfd){ .fd = vpt_engine_event_fd(e), .events = POLLIN };
	CHECK(poll(&heard, 1, PATIENCE_MS) == 1);
	vpt_engine_close(e);
	for (i = 0; i < (int)VECS; i++) {
		close(kick[i]);
		close(intr[i]);
	}
	close(fd);
}

#define QUEUES 8u
#define ROUNDS 1000u

struct bursts {
	uint64_t of_many[QUEUES], of_one;
};

static struct bursts taken, noted;

/* A whole burst each time; whose it is. */
static void greedy_take(struct vpti_txq *q, struct vpti_burst *b)
{
	for (b->n = 0; b->n < VPTI_BURST; b->n++)
		vpti_drop(&b->pkt[b->n], VPT_C_TX_DROP_RUNT);
	++*(q->port->opts.pairs == 1 ? &taken.of_one : &taken.of_many[q->index]);
}

/* Between two rounds: each port has had its share of both. */
static void note(struct vpti_worker *w, struct vpti_chore *chore)
{
	(void)w;
	(void)chore;
	noted = taken;
}

static const struct vpti_txq_ops greedy_ops = {
	.take = greedy_take, .release = endless_release, .notify = endless_notify,
};

/* Not served before vpti_port_replan(). */
static vpt_port *greedy(vpt_switch *sw, uint32_t pairs)
{
	struct vpt_port_opts opts = {
		.kind = VPT_KIND_VHOST_USER, .pairs = pairs, .worker = -1, .policy = { .kind = VPT_POLICY_POLL },
	};
	vpt_port *p;
	uint32_t i;

	CHECK(!vpt_port_add(sw, &opts, &p));
	for (i = 0; i < pairs; i++) {
		p->txq[i]->ops = &greedy_ops;
		p->txq[i]->live = true;
	}
	return p;
}

/* Whose queues are all full gets no more of a worker than who has one, and each of them as much as the others. */
static void test_a_port_with_many_queues_leaves_its_neighbour_its_share(void)
{
	struct vpt_engine_opts opts = { .workers = 1, .cpus = { -1 }, .stats_fd = -1 };
	struct vpt_switch_opts sw_opts = { .name = "sw" };
	struct vpti_chore chore = { .run = note };
	uint64_t many = 0;
	vpt_engine *e;
	vpt_switch *sw;
	uint32_t i;

	CHECK(!vpt_engine_open(&opts, &e));
	CHECK(!vpt_switch_add(e, &sw_opts, &sw));
	greedy(sw, QUEUES);
	vpti_port_replan(greedy(sw, 1));
	vpti_worker_rounds(e->worker[0], ROUNDS);
	vpti_worker_do(e->worker[0], &chore);
	vpt_engine_close(e);
	for (i = 0; i < QUEUES; i++)
		many += noted.of_many[i];
	CHECK(noted.of_one >= ROUNDS);
	CHECK_EQ(many, noted.of_one);
	for (i = 0; i < QUEUES; i++)
		CHECK(noted.of_many[i] - many / QUEUES <= 1);
}

int main(void)
{
	static const struct test_case cases[] = {
		TEST(test_a_port_with_many_queues_leaves_its_neighbour_its_share),
		TEST(test_a_driver_comes_up_beside_a_port_that_always_has_packets),
	};

	return test_run(cases, ARRAY_LEN(cases));
}
