/* SPDX-License-Identifier: BSD-2-Clause */
/* fuzz.h - what fuzz targets share: reading an input piece by piece, and dying where an invariant breaks */
#ifndef VPT_FUZZ_H
#define VPT_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MUST(cond)                                                                                                     \
	do {                                                                                                           \
		if (!(cond)) {                                                                                         \
			fprintf(stderr, "%s:%d: broken: %s\n", __FILE__, __LINE__, #cond);                             \
			abort();                                                                                       \
		}                                                                                                      \
	} while (0)

struct fuzz_in {
	const uint8_t *p;
	size_t left;
};

/* The next len bytes, zeroes once the input is used up. */
static inline void fuzz_bytes(struct fuzz_in *in, void *to, size_t len)
{
	size_t there = len < in->left ? len : in->left;

	memset(to, 0, len);
	if (there)
		memcpy(to, in->p, there);
	in->p += there;
	in->left -= there;
}

static inline uint8_t fuzz_u8(struct fuzz_in *in)
{
	uint8_t v;

	fuzz_bytes(in, &v, sizeof(v));
	return v;
}

static inline uint16_t fuzz_u16(struct fuzz_in *in)
{
	uint16_t v;

	fuzz_bytes(in, &v, sizeof(v));
	return v;
}

static inline uint32_t fuzz_u32(struct fuzz_in *in)
{
	uint32_t v;

	fuzz_bytes(in, &v, sizeof(v));
	return v;
}

#endif /* VPT_FUZZ_H */
