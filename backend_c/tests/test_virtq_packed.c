/* SPDX-License-Identifier: BSD-2-Clause */
/* test_virtq_packed.c - notifications of a packed ring that goes round between two looks at the driver's wish */
#include <sys/eventfd.h>
#include <unistd.h>

#include "test.h"
#include "virtq.h"

#define NUM 3u

static struct vpti_packed_desc desc[NUM];
static struct vpti_packed_event driver, device;
static uint64_t counters[VPT_C_COUNT];

static struct vpti_virtq_txq *make(bool event_idx)
{
	static struct vpti_virtq_txq t;

	t = (struct vpti_virtq_txq){ .q = { .ops = vpti_virtq_packed.tx, .c = counters } };
	t.v.packed = desc;
	t.v.driver_event = &driver;
	t.v.device_event = &device;
	t.v.num = NUM;
	t.v.event_idx = event_idx;
	t.v.call_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	CHECK(t.v.call_fd >= 0);
	vpti_virtq_packed.set_base(&t.v, 0x8000);
	return &t;
}

/* Give back n chains of one descriptor each, as after so many take(); the driver polls and offers them again. */
static void give_back(struct vpti_virtq_txq *t, uint32_t n)
{
	struct vpti_burst b = { .n = 1 };

	while (n--) {
		b.cookie[0] = 1u << 16;
		t->q.ops->release(&t->q, &b, 1);
	}
}

static uint64_t interrupts(struct vpti_virtq_txq *t)
{
	uint64_t n = 0;

	t->q.ops->notify(&t->q);
	if (read(t->v.call_fd, &n, sizeof(n)) != sizeof(n))
		n = 0;
	return n;
}

/* As many as bring the position back to where it was: the driver that went to sleep meanwhile must be told. */
static void two_laps_are_not_nothing(void)
{
	struct vpti_virtq_txq *t = make(false);

	driver.flags = VPTI_PACKED_EVENT_ENABLE;
	give_back(t, 2 * NUM);
	CHECK_EQ(interrupts(t), 1);
	CHECK_EQ(interrupts(t), 0);
	close(t->v.call_fd);
}

static void two_laps_pass_every_event(void)
{
	struct vpti_virtq_txq *t = make(true);

	driver = (struct vpti_packed_event){ .off_wrap = 1 | 0x8000, .flags = VPTI_PACKED_EVENT_DESC };
	give_back(t, 2 * NUM + 1);
	CHECK_EQ(interrupts(t), 1);
	close(t->v.call_fd);
}

static void an_event_is_passed_once(void)
{
	struct vpti_virtq_txq *t = make(true);

	driver = (struct vpti_packed_event){ .off_wrap = 1 | 0x8000, .flags = VPTI_PACKED_EVENT_DESC };
	give_back(t, 1);
	CHECK_EQ(interrupts(t), 0);
	give_back(t, 1);
	CHECK_EQ(interrupts(t), 1);
	give_back(t, NUM);
	CHECK_EQ(interrupts(t), 0);
	close(t->v.call_fd);
}

int main(void)
{
	static const struct test_case cases[] = {
		TEST(two_laps_are_not_nothing),
		TEST(two_laps_pass_every_event),
		TEST(an_event_is_passed_once),
	};

	return test_run(cases, ARRAY_LEN(cases));
}
