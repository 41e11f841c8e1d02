/* SPDX-License-Identifier: BSD-2-Clause */
/* checksum.h - the Internet checksum (RFC 1071) over scattered memory */
#ifndef VPTI_CHECKSUM_H
#define VPTI_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/*
 * A sum is an unfolded 64-bit sum of 32-bit and 16-bit words in memory order: it cannot overflow before 16 GiB have
 * been added, so nothing here deals with carries until vpti_csum_fold(). Byte order does not matter (RFC 1071, 2.B)
 * as long as words are loaded and the result is stored the same way.
 */

/* Sum of one run of bytes; an odd last byte counts as if a zero followed. */
static inline uint64_t vpti_csum_run(const void *data, size_t len)
{
	typedef uint64_t v2u64 __attribute__((vector_size(16)));
	const v2u64 low = {UINT32_MAX, UINT32_MAX};
	const uint8_t *p = data;
	v2u64 a = {0}, b = {0};
	uint64_t sum;
	uint32_t w32;
	uint16_t w16;

	for (; len >= 32; len -= 32, p += 32) {
		v2u64 x, y;

		memcpy(&x, p, sizeof(x));
		memcpy(&y, p + sizeof(x), sizeof(y));
		a += (x & low) + (x >> 32);
		b += (y & low) + (y >> 32);
	}
	a += b;
	sum = a[0] + a[1];
	for (; len >= sizeof(w32); len -= sizeof(w32), p += sizeof(w32)) {
		memcpy(&w32, p, sizeof(w32));
		sum += w32;
	}
	if (len & 2) {
		memcpy(&w16, p, sizeof(w16));
		sum += w16;
		p += 2;
	}
	if (len & 1) {
		w16 = 0;
		memcpy(&w16, p, 1);
		sum += w16;
	}
	return sum;
}

/* The sum as 16 bits, not inverted: what a checksum field that is left partial holds. */
static inline uint16_t vpti_csum_fold(uint64_t sum)
{
	sum = (sum & UINT32_MAX) + (sum >> 32);
	sum = (sum & UINT16_MAX) + (sum >> 16);
	sum = (sum & UINT16_MAX) + (sum >> 16);
	sum = (sum & UINT16_MAX) + (sum >> 16);
	return (uint16_t)sum;
}

/* Add a run that starts @ofs bytes into what is summed: at odd places its bytes are the other halves of their words. */
static inline uint64_t vpti_csum_add(uint64_t sum, uint32_t ofs, const void *data, size_t len)
{
	uint64_t run = vpti_csum_run(data, len);

	return sum + (ofs & 1 ? __builtin_bswap16(vpti_csum_fold(run)) : run);
}

/* The finished checksum. Zero is sent as its other representation, since in UDP it means "none". */
static inline uint16_t vpti_csum_finish(uint64_t sum)
{
	uint16_t csum = (uint16_t)~vpti_csum_fold(sum);

	return csum ? csum : UINT16_MAX;
}

#endif /* VPTI_CHECKSUM_H */
