/* SPDX-License-Identifier: BSD-2-Clause */
/* test_memmap.c - finding guest addresses: first and last byte of each range, and the gaps between */

#include "memmap.h"
#include "test.h"

#define RANGES 7u
#define SIZE 0x1000u
#define STRIDE 0x1800u

static uint64_t start_of(uint32_t i)
{
	/* Ranges 3 and 4 touch each other; the last ends where addresses do. */
	return i == RANGES - 1 ? 0 - (uint64_t)SIZE : i * STRIDE + (i == 3 ? STRIDE - SIZE : 0);
}

static struct vpti_mem *make(uint32_t n)
{
	struct vpti_mem *m = calloc(1, sizeof(*m) + n * sizeof(m->r[0]));
	uint32_t i;

	CHECK(m);
	m->n = n;
	for (i = 0; i < n; i++)
		m->r[i] = (struct vpti_mem_range){.gpa = start_of(i), .size = SIZE};
	return m;
}

static void every_byte_is_found_and_no_other(void)
{
	uint32_t n, i;

	for (n = 0; n <= RANGES; n++) {
		struct vpti_mem *m = make(n);

		for (i = 0; i < n; i++) {
			CHECK_EQ(vpti_mem_find(m, start_of(i)), i);
			CHECK_EQ(vpti_mem_find(m, start_of(i) + SIZE - 1), i);
			if (i && i != 4)
				CHECK_EQ(vpti_mem_find(m, start_of(i) - 1), n);
			if (i != 3 && i != RANGES - 1)
				CHECK_EQ(vpti_mem_find(m, start_of(i) + SIZE), n);
		}
		CHECK_EQ(vpti_mem_find(m, 1ull << 40), n);
		free(m);
	}
}

static void range_found_last_only_saves_the_search(void)
{
	struct vpti_mem *m = make(RANGES);
	uint64_t contig;
	uint32_t last, i;

	for (i = 0; i < RANGES; i++)
		m->r[i].hva = (uint8_t *)m + i;
	for (last = 0; last <= RANGES; last++) {
		struct vpti_mem_near near = { 0 };

		if (last < RANGES)
			CHECK(vpti_mem_gpa(m, start_of(last), &contig, &near));
		CHECK(!vpti_mem_gpa(m, start_of(2) + SIZE, &contig, &near));
		CHECK(vpti_mem_gpa(m, start_of(2) + 5, &contig, &near) == (uint8_t *)m + 2 + 5);
		CHECK_EQ(contig, SIZE - 5);
		CHECK_EQ(near.gpa, start_of(2));
		CHECK(vpti_mem_span(m, start_of(2) + 5, SIZE - 5, &near));
		CHECK(!vpti_mem_span(m, start_of(2) + 5, SIZE - 4, &near));
		CHECK(!vpti_mem_span(m, start_of(3) + 5, SIZE, &near)); /* the next one touches it, and is not it */
	}
	free(m);
}

int main(void)
{
	static const struct test_case cases[] = {
		TEST(every_byte_is_found_and_no_other),
		TEST(range_found_last_only_saves_the_search),
	};

	return test_run(cases, ARRAY_LEN(cases));
}
