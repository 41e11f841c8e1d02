/* SPDX-License-Identifier: BSD-2-Clause */
/* test.h - what C tests share: checks that name their line, a table of cases, exit status 0, 1 or 77 (skipped) */
#ifndef VPT_TEST_H
#define VPT_TEST_H

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TEST_SKIPPED 77

struct test_case {
	const char *name;
	void (*run)(void);
};

#define TEST(fn) {#fn, fn}
#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))

/* A failed check ends the process: what follows would only be a consequence. */
#define CHECK(cond)                                                                                                    \
	do {                                                                                                           \
		if (!(cond)) {                                                                                         \
			fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #cond);                           \
			exit(EXIT_FAILURE);                                                                            \
		}                                                                                                      \
	} while (0)

#define CHECK_EQ(got, want)                                                                                            \
	do {                                                                                                           \
		int64_t got_ = (int64_t)(got), want_ = (int64_t)(want);                                                \
		if (got_ != want_) {                                                                                   \
			fprintf(stderr, "%s:%d: %s is %" PRId64 ", not %" PRId64 "\n", __FILE__, __LINE__, #got, got_, \
				want_);                                                                                \
			exit(EXIT_FAILURE);                                                                            \
		}                                                                                                      \
	} while (0)

/* This machine lacks something: say what. */
#define SKIP(why)                                                                                                      \
	do {                                                                                                           \
		fprintf(stderr, "skipped: %s\n", why);                                                                 \
		exit(TEST_SKIPPED);                                                                                    \
	} while (0)

static inline int test_run(const struct test_case *cases, size_t n)
{
	size_t i;

	for (i = 0; i < n; i++) {
		fprintf(stderr, "%s\n", cases[i].name);
		cases[i].run();
	}
	return EXIT_SUCCESS;
}

#endif /* VPT_TEST_H */
