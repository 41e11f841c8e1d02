/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * bucket.h - token buckets, kept as the time up to which tokens have been spent
 *
 * A single rate and one burst, as the committed bucket of RFC 2697, in the form of ITU-T I.371's virtual scheduling: one word of
 * state, nothing to refill. A bucket with any token lets a packet pass, whatever its size, and goes into debt; so the rate is exact,
 * bursts exceed theirs by less than a packet (of each worker that sends at that moment), and no packet is too large to ever pass.
 *
 * Times are in units of 1/64 ns and wrap around; they are compared by their difference.
 */
#ifndef VPTI_BUCKET_H
#define VPTI_BUCKET_H

#include <stdbool.h>

#include "util.h"

#define VPTI_BUCKET_UNIT 64u /* per ns */
#define VPTI_BUCKET_SHIFT 16u

/**
 * struct vpti_bucket - one limit
 * @spent:	until when tokens have been spent; written by whoever takes some
 * @cost:	time that one token takes to come, shifted by VPTI_BUCKET_SHIFT; 0: no limit
 * @depth:	how much time's tokens are kept at most
 */
struct vpti_bucket {
	uint64_t spent;
	uint64_t cost;
	uint64_t depth;
};

/**
 * struct vpti_rate - what may pass in one direction of a port: bytes and packets
 * @on:		there is a limit
 */
struct vpti_rate {
	bool on;
	struct vpti_bucket bytes;
	struct vpti_bucket packets;
};

/* A look at both buckets at one moment, for a run of packets. Changes nothing. */
struct vpti_meter {
	uint64_t now;
	uint64_t bytes;
	uint64_t packets;
};

static inline uint64_t vpti_bucket_now(void)
{
	return vpti_now_ns() * VPTI_BUCKET_UNIT;
}

/* Has time a come later than time b? */
static inline bool vpti_bucket_after(uint64_t a, uint64_t b)
{
	return (int64_t)(a - b) > 0;
}

/* Until when tokens have been spent, seen from now: what came beyond the depth was lost. */
static inline uint64_t vpti_bucket_look(const struct vpti_bucket *b, uint64_t now)
{
	uint64_t spent = VPTI_READ(b->spent), least = now - VPTI_READ(b->depth);

	return vpti_bucket_after(least, spent) ? least : spent;
}

static inline uint64_t vpti_bucket_price(const struct vpti_bucket *b, uint64_t tokens)
{
	return (tokens * VPTI_READ(b->cost)) >> VPTI_BUCKET_SHIFT;
}

/* Take tokens, more than there are if need be. Any thread. */
static inline void vpti_bucket_take(struct vpti_bucket *b, uint64_t tokens, uint64_t now)
{
	uint64_t old = VPTI_READ(b->spent), next;

	do {
		uint64_t least = now - VPTI_READ(b->depth);

		next = (vpti_bucket_after(least, old) ? least : old) + vpti_bucket_price(b, tokens);
	} while (!__atomic_compare_exchange_n(&b->spent, &old, next, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
}

/* A packet of one token, if the bucket has any. */
static inline bool vpti_bucket_pass(struct vpti_bucket *b, uint64_t now)
{
	if (vpti_bucket_after(vpti_bucket_look(b, now), now))
		return false;
	vpti_bucket_take(b, 1, now);
	return true;
}

static inline void vpti_meter_look(struct vpti_meter *m, const struct vpti_rate *r, uint64_t now)
{
	m->now = now;
	m->bytes = vpti_bucket_look(&r->bytes, now);
	m->packets = vpti_bucket_look(&r->packets, now);
}

/* Would one more packet pass? If so it is counted. */
static inline bool vpti_meter_pass(struct vpti_meter *m, const struct vpti_rate *r, uint32_t len)
{
	if (vpti_bucket_after(m->bytes, m->now) || vpti_bucket_after(m->packets, m->now))
		return false;
	m->bytes += vpti_bucket_price(&r->bytes, len);
	m->packets += vpti_bucket_price(&r->packets, 1);
	return true;
}

static inline void vpti_rate_take(struct vpti_rate *r, uint64_t bytes, uint32_t packets, uint64_t now)
{
	vpti_bucket_take(&r->bytes, bytes, now);
	vpti_bucket_take(&r->packets, packets, now);
}

/* Control thread: limits from now on, starting with a full bucket. per_s 0: none. */
void vpti_bucket_set(struct vpti_bucket *b, uint64_t per_s, uint64_t burst);

/* How long somebody who waits should sleep, in ns: until a few packets can go at once. */
uint64_t vpti_rate_wait(const struct vpti_rate *r, uint64_t now);

#endif /* VPTI_BUCKET_H */
