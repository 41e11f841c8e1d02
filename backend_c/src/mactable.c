/* SPDX-License-Identifier: BSD-2-Clause */
/* mactable.c - learning, ageing and limiting */
#define _GNU_SOURCE
#include "mactable.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SWEEP_BUCKETS 256u /* per tick: 4096 entries are looked at every 4 s, a million every 17 min */

int vpti_mactable_init(struct vpti_mactable *t, uint32_t entries, uint32_t age, uint32_t ports)
{
	uint32_t log = 0;

	memset(t, 0, sizeof(*t));
	if (entries < 64 || entries > 1048576 || entries & (entries - 1))
		return -EINVAL;
	t->nbuckets = entries / VPTI_MAC_WAYS;
	while (1u << log < t->nbuckets)
		log++;
	t->shift = 64 - log;
	t->age = age;
	t->b = aligned_alloc(VPTI_CACHELINE, t->nbuckets * sizeof(*t->b));
	t->count = calloc(ports, sizeof(*t->count));
	t->limit = calloc(ports, sizeof(*t->limit));
	if (!t->b || !t->count || !t->limit) {
		vpti_mactable_fini(t);
		return -ENOMEM;
	}
	memset(t->b, 0, t->nbuckets * sizeof(*t->b));
	return 0;
}

void vpti_mactable_fini(struct vpti_mactable *t)
{
	free(t->b);
	free(t->count);
	free(t->limit);
	memset(t, 0, sizeof(*t));
}

static bool expired(const struct vpti_mactable *t, uint32_t seen, uint32_t tick)
{
	return seen != VPTI_MAC_STATIC && (int32_t)(tick - seen) > (int32_t)VPTI_READ(t->age);
}

static void count(struct vpti_mactable *t, uint16_t slot, int32_t by)
{
	__atomic_fetch_add(&t->count[slot], (uint32_t)by, __ATOMIC_RELAXED);
}

/* Replace an entry unless somebody else just did; keeps the per-port counts right either way. */
static bool replace(struct vpti_mactable *t, struct vpti_mac_bucket *b, uint32_t i, uint64_t old, uint64_t new,
		    uint16_t vid, uint32_t tick)
{
	if (!__atomic_compare_exchange_n(&b->e[i], &old, new, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
		return false;
	VPTI_WRITE(b->vid[i], vid);
	VPTI_WRITE(b->seen[i], tick);
	if (old)
		count(t, (uint16_t)old, -1);
	if (new)
		count(t, (uint16_t)new, 1);
	return true;
}

uint16_t vpti_mac_configured(const struct vpti_mactable *t, uint64_t mac)
{
	const struct vpti_mac_bucket *b = vpti_mac_bucket(t, mac);
	uint32_t i;

	for (i = 0; i < VPTI_MAC_WAYS; i++) {
		uint64_t e = VPTI_READ(b->e[i]);

		if (vpti_mac_is(b, i, e, mac) && VPTI_READ(b->seen[i]) == VPTI_MAC_STATIC)
			return (uint16_t)e;
	}
	return VPTI_MAC_NONE;
}

enum vpti_learn vpti_mac_learn(struct vpti_mactable *t, uint64_t key, uint16_t slot, uint32_t tick)
{
	struct vpti_mac_bucket *b = vpti_mac_bucket(t, key);
	uint64_t want = key << 16 | slot; /* the VLAN falls out */
	uint16_t vid = (uint16_t)(key >> 48);
	uint32_t free_way = VPTI_MAC_WAYS;
	uint32_t i;

	if (vid) {
		uint16_t owner = vpti_mac_configured(t, key & VPTI_MAC_BITS);

		if (owner != VPTI_MAC_NONE)
			return owner == slot ? VPTI_LEARNED : VPTI_LEARN_SPOOFED;
	}
	for (i = 0; i < VPTI_MAC_WAYS; i++) {
		uint64_t e = VPTI_READ(b->e[i]);
		uint32_t seen = VPTI_READ(b->seen[i]);

		if (vpti_mac_is(b, i, e, key)) {
			if (e == want) {
				if (seen != tick && seen != VPTI_MAC_STATIC)
					VPTI_WRITE(b->seen[i], tick);
				return VPTI_LEARNED;
			}
			if (seen == VPTI_MAC_STATIC)
				return VPTI_LEARN_SPOOFED;
			if (VPTI_READ(t->count[slot]) >= t->limit[slot])
				return VPTI_LEARN_FULL;
			replace(t, b, i, e, want, vid, tick);
			return VPTI_LEARNED;
		}
		if (free_way == VPTI_MAC_WAYS && (!e || expired(t, seen, tick)))
			free_way = i;
	}
	if (free_way == VPTI_MAC_WAYS || VPTI_READ(t->count[slot]) >= t->limit[slot])
		return VPTI_LEARN_FULL;
	replace(t, b, free_way, VPTI_READ(b->e[free_way]), want, vid, tick);
	return VPTI_LEARNED;
}

int vpti_mac_set_static(struct vpti_mactable *t, uint64_t mac, uint16_t slot)
{
	struct vpti_mac_bucket *b = vpti_mac_bucket(t, mac);
	uint32_t way = VPTI_MAC_WAYS;
	uint32_t i;

	for (i = 0; i < VPTI_MAC_WAYS; i++) {
		uint64_t e = VPTI_READ(b->e[i]);
		bool is_static = e && VPTI_READ(b->seen[i]) == VPTI_MAC_STATIC;

		if (vpti_mac_is(b, i, e, mac)) {
			if (is_static)
				return (uint16_t)e == slot ? 0 : -EEXIST;
			way = i;
			break;
		}
		if (!is_static && (way == VPTI_MAC_WAYS || !e))
			way = i;
	}
	if (way == VPTI_MAC_WAYS)
		return -ENOSPC;
	/* A learner may get in between; then its entry is the one replaced in the next round. */
	while (!replace(t, b, way, VPTI_READ(b->e[way]), mac << 16 | slot, 0, VPTI_MAC_STATIC))
		;
	return 0;
}

void vpti_mac_purge(struct vpti_mactable *t, uint16_t slot, bool all)
{
	uint32_t i, k;

	for (i = 0; i < t->nbuckets; i++) {
		for (k = 0; k < VPTI_MAC_WAYS; k++) {
			uint64_t e = VPTI_READ(t->b[i].e[k]);

			if (e && (uint16_t)e == slot && (all || VPTI_READ(t->b[i].seen[k]) != VPTI_MAC_STATIC))
				replace(t, &t->b[i], k, e, 0, 0, 0);
		}
	}
}

void vpti_mac_sweep(struct vpti_mactable *t, uint32_t tick)
{
	uint32_t last = VPTI_READ(t->swept_tick);
	uint32_t start, i, k;

	if (last == tick || !__atomic_compare_exchange_n(&t->swept_tick, &last, tick, false, __ATOMIC_RELAXED,
							 __ATOMIC_RELAXED))
		return;
	start = __atomic_fetch_add(&t->sweep, SWEEP_BUCKETS, __ATOMIC_RELAXED);
	for (i = 0; i < VPTI_MIN(SWEEP_BUCKETS, t->nbuckets); i++) {
		struct vpti_mac_bucket *b = &t->b[(start + i) & (t->nbuckets - 1)];

		for (k = 0; k < VPTI_MAC_WAYS; k++) {
			uint64_t e = VPTI_READ(b->e[k]);

			if (e && expired(t, VPTI_READ(b->seen[k]), tick))
				replace(t, b, k, e, 0, 0, 0);
		}
	}
}
