/* SPDX-License-Identifier: BSD-2-Clause */
/* test_spin.c - when policy adaptive spins: hardly ever in vain, and at once again where it pays */
#include "spin.h"
#include "test.h"

/* Idle periods in a row: does something come within the spin? Returns how many were spun. */
static unsigned int idle(struct vpti_spin *s, unsigned int periods, bool comes)
{
	unsigned int i, spun = 0;

	for (i = 0; i < periods; i++) {
		if (vpti_spin_wanted(s)) {
			vpti_spin_done(s, comes);
			spun++;
		}
	}
	return spun;
}

static void test_gaps_longer_than_the_spin(void)
{
	struct vpti_spin s = { 0 };

	/* 1 + 1, then one after 2, 4, 8, 16, 32 and 64 others. */
	CHECK_EQ(idle(&s, 8 + 126, false), 8);
	CHECK_EQ(idle(&s, 650, false), 10);
}

static void test_short_gaps_again(void)
{
	struct vpti_spin s = { 0 };

	idle(&s, 1000, false);
	CHECK(idle(&s, 65, true) >= 1); /* noticed after 64 idle periods at the latest */
	CHECK_EQ(idle(&s, 100, true), 100);
}

static void test_there_and_back(void)
{
	struct vpti_spin s = { 0 };
	unsigned int i;

	/* A request's answer comes soon, the next request does not: the first spin is worth the second. */
	for (i = 0; i < 100; i++)
		CHECK_EQ(idle(&s, 1, true) + idle(&s, 1, false), 2);
}

int main(void)
{
	test_gaps_longer_than_the_spin();
	test_short_gaps_again();
	test_there_and_back();
	return 0;
}
