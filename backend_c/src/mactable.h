/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * mactable.h - who was last heard where
 *
 * A hash table of buckets, each one cache line: four 64-bit words (48 bits of address, 16 of port slot), four times of last
 * hearing, four VLANs. Workers read and write it without locks: address and port are one word, so a reader sees them whole or not
 * at all, and a lost race between two learners costs a few flooded packets.
 *
 * Each VLAN has addresses of its own (independent learning, 802.1Q 8.8.8), so they are looked up by a key of VLAN and address. Only
 * what is configured holds for all VLANs: it stands in VLAN 0, where the switch does not look at VLANs also all that is learned.
 */
#ifndef VPTI_MACTABLE_H
#define VPTI_MACTABLE_H

#include <endian.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "util.h"
#include "vpt/vpt.h"

#define VPTI_MAC_WAYS 4u
#define VPTI_MAC_NONE 0xffffu
#define VPTI_MAC_BITS 0xffffffffffffull
#define VPTI_MAC_STATIC 0xffffffffu /* in seen[]: configured, never ages, cannot be taken over */

struct vpti_mac_bucket {
	uint64_t e[VPTI_MAC_WAYS];
	uint32_t seen[VPTI_MAC_WAYS]; /* tick, VPTI_MAC_STATIC */
	uint16_t vid[VPTI_MAC_WAYS];
	uint8_t pad[8];
} __attribute__((aligned(64)));

struct vpti_mactable {
	struct vpti_mac_bucket *b;
	uint32_t shift;               /* 64 - log2(buckets) */
	uint32_t nbuckets;
	uint32_t age;                 /* ticks (seconds); the control thread may change it */
	uint32_t sweep;               /* next bucket to clean */
	uint32_t swept_tick;
	uint32_t *count;              /* entries by port slot */
	uint32_t *limit;              /* allowed, by port slot */
};

enum vpti_learn { VPTI_LEARNED, VPTI_LEARN_FULL, VPTI_LEARN_SPOOFED };

int vpti_mactable_init(struct vpti_mactable *t, uint32_t entries, uint32_t age, uint32_t ports);
void vpti_mactable_fini(struct vpti_mactable *t);

static inline uint64_t vpti_mac48(const uint8_t *a)
{
	uint32_t high;
	uint16_t low;

	memcpy(&high, a, sizeof(high));
	memcpy(&low, a + sizeof(high), sizeof(low));
	return (uint64_t)be32toh(high) << 16 | be16toh(low);
}

static inline struct vpti_mac_bucket *vpti_mac_bucket(const struct vpti_mactable *t, uint64_t key)
{
	return &t->b[(key * 0x9e3779b97f4a7c15ull) >> t->shift]; /* Fibonacci hashing: the high bits are the mixed ones */
}

/* Is this entry of a bucket the one of that key? */
static inline bool vpti_mac_is(const struct vpti_mac_bucket *b, uint32_t i, uint64_t e, uint64_t key)
{
	return e && e >> 16 == (key & VPTI_MAC_BITS) && VPTI_READ(b->vid[i]) == key >> 48;
}

/* Slot of the port whose own, configured, this address is in all VLANs, or VPTI_MAC_NONE. */
uint16_t vpti_mac_configured(const struct vpti_mactable *t, uint64_t mac);

/* Slot of the port where an address was heard within the ageing time, or VPTI_MAC_NONE. Any worker. */
static inline uint16_t vpti_mac_lookup(const struct vpti_mactable *t, uint64_t key, uint32_t tick)
{
	const struct vpti_mac_bucket *b = vpti_mac_bucket(t, key);
	uint32_t i;

	for (i = 0; i < VPTI_MAC_WAYS; i++) {
		uint64_t e = VPTI_READ(b->e[i]);
		uint32_t seen = VPTI_READ(b->seen[i]);

		if (vpti_mac_is(b, i, e, key)) {
			if (seen != VPTI_MAC_STATIC && (int32_t)(tick - seen) > (int32_t)VPTI_READ(t->age))
				return VPTI_MAC_NONE;
			return (uint16_t)e;
		}
	}
	return vpti_unlikely(key >> 48) ? vpti_mac_configured(t, key & VPTI_MAC_BITS) : VPTI_MAC_NONE;
}

/* An address was heard on a port. Any worker. */
enum vpti_learn vpti_mac_learn(struct vpti_mactable *t, uint64_t key, uint16_t slot, uint32_t tick);

/* A configured address, in all VLANs. -EEXIST if another port's, -ENOSPC if its bucket is full of such. Control thread. */
int vpti_mac_set_static(struct vpti_mactable *t, uint64_t mac, uint16_t slot);

/* Forget what a port had; all: also what is configured. Control thread, and if all, no worker learns for it any more. */
void vpti_mac_purge(struct vpti_mactable *t, uint16_t slot, bool all);

/* Free a few entries whose time is over; called by workers once per tick. */
void vpti_mac_sweep(struct vpti_mactable *t, uint32_t tick);

#endif /* VPTI_MACTABLE_H */
