/* SPDX-License-Identifier: BSD-2-Clause */
/* virtq_packed.h - positions and descriptors of a packed virtqueue: finding what is available, walking a chain, marking it used */
#ifndef VPTI_VIRTQ_PACKED_H
#define VPTI_VIRTQ_PACKED_H

#include "virtq_chain.h"

/* ---- positions: index and wrap counter in one number, in [0, 2 * num) ---- */

static inline uint32_t advance(const struct vpti_virtq *v, uint32_t position, uint32_t by)
{
	uint32_t lap = 2u * v->num;

	position += by;
	return position >= lap ? position - lap : position;
}

static inline uint32_t index_of(const struct vpti_virtq *v, uint32_t position)
{
	return position >= v->num ? position - v->num : position;
}

/* Descriptors from a position up to the end of the ring, where the wrap counter changes. */
static inline uint32_t left_in_lap(const struct vpti_virtq *v, uint32_t position)
{
	return v->num - index_of(v, position);
}

static inline bool wrap_of(const struct vpti_virtq *v, uint32_t position)
{
	return position < v->num;
}

/* In the form in which SET_VRING_BASE and the event structures carry them: 15 bits of index, one of wrap counter. */
static uint32_t to_wire(const struct vpti_virtq *v, uint32_t position)
{
	return index_of(v, position) | (uint32_t)wrap_of(v, position) << 15;
}

static uint32_t from_wire(const struct vpti_virtq *v, uint32_t wire)
{
	uint32_t index = (wire & 0x7fff) % v->num;

	return wire & 0x8000 ? index : index + v->num;
}

/* ---- descriptors ---- */

#define PER_LINE (VPTI_CACHELINE / (uint32_t)sizeof(struct vpti_packed_desc))
#define TURN (VPTI_PACKED_AVAIL | VPTI_PACKED_USED) /* the flags that say whose a descriptor is */
#define KIND (VPTI_DESC_NEXT | VPTI_DESC_WRITE | VPTI_DESC_INDIRECT)

/* The turn of a descriptor that is available. */
static inline uint16_t available_at(const struct vpti_virtq *v, uint32_t position)
{
	return wrap_of(v, position) ? VPTI_PACKED_AVAIL : VPTI_PACKED_USED;
}

static inline bool is_available(const struct vpti_virtq *v, uint32_t position, uint16_t flags)
{
	return (flags & TURN) == available_at(v, position);
}

static inline uint16_t flags_at(const struct vpti_virtq *v, uint32_t position)
{
	/* Pairs with the driver's barrier between a descriptor's fields and its flags (2.8.21.1). */
	return VPTI_LOAD_ACQUIRE(v->packed[index_of(v, position)].flags);
}

/* The second half of a descriptor is one aligned word: one access has all of it. */
union half {
	struct {
		uint32_t len;
		uint16_t id;
		uint16_t flags;
	};
	uint64_t word;
};

_Static_assert(offsetof(struct vpti_packed_desc, len) == 8 && sizeof(union half) == 8, "the second half");

static inline uint64_t *half_of(struct vpti_packed_desc *d)
{
	return (uint64_t *)(void *)&d->len;
}

static inline void read_desc(struct vpti_packed_desc *from, struct vpti_packed_desc *d)
{
	union half h = { .word = VPTI_LOAD_ACQUIRE(*half_of(from)) }; /* as in flags_at() */

	d->addr = VPTI_READ(from->addr);
	*half_of(d) = h.word;
}

/* All of an indirect table, in order (2.8.7: NEXT and id mean nothing in it). */
VPTI_INLINE int walk_table(struct vpti_virtq *v, const struct vpti_packed_desc *table, uint16_t write,
			   vpti_piece_fn emit, void *ctx, uint32_t *steps)
{
	uint32_t n = table->len / sizeof(*table), i;
	int rc;

	if (!v->indirect || !n || table->len % sizeof(*table))
		return -VPT_REASON_BAD_DESC;
	if (n > VPTI_MIN(v->num, VPTI_MAX_CHAIN))
		return -VPT_REASON_LOOP; /* no chain is longer than the queue (2.8.19) */
	*steps += n;
	for (i = 0; i < n; i++) {
		struct vpti_packed_desc d;

		if (!vpti_read_indirect(v, table->addr, i, &d))
			return -VPT_REASON_BAD_ADDR;
		if ((d.flags & (VPTI_DESC_WRITE | VPTI_DESC_INDIRECT)) != write)
			return -VPT_REASON_BAD_DESC;
		rc = vpti_emit(v, d.addr, d.len, emit, ctx);
		if (vpti_unlikely(rc))
			return rc;
	}
	return 0;
}

/**
 * walk() - Follow the chain at a position, each descriptor once
 * @first:	flags of its first descriptor, found to be available
 * @write:	VPTI_DESC_WRITE for buffers that the device writes, 0 for those it reads
 * @id:		out: buffer id of the chain
 * @count:	out: descriptors of the chain in the ring
 * @steps:	increased by the number of descriptors, those of a table included
 *
 * The whole chain is walked even when emit has had enough, for the id is at its end.
 *
 * Return: 0, -reason (enum vpt_reason), or the first non-zero that emit said
 */
VPTI_INLINE int walk(struct vpti_virtq *v, uint32_t position, uint16_t first, uint16_t write, vpti_piece_fn emit,
		     void *ctx, uint16_t *id, uint32_t *count, uint32_t *steps)
{
	uint32_t limit = VPTI_MIN(v->num, VPTI_MAX_CHAIN), n = 0;
	uint16_t flags = first;
	int said = 0;

	for (;;) {
		struct vpti_packed_desc d;
		int rc;

		read_desc(&v->packed[index_of(v, position)], &d);
		if (vpti_unlikely(flags & VPTI_DESC_INDIRECT)) {
			if (flags & VPTI_DESC_NEXT)
				return -VPT_REASON_BAD_DESC;
			rc = said ? 0 : walk_table(v, &d, write, emit, ctx, steps);
		} else if (vpti_unlikely((flags & VPTI_DESC_WRITE) != write)) {
			return -VPT_REASON_BAD_DESC;
		} else {
			rc = said ? 0 : vpti_emit(v, d.addr, d.len, emit, ctx);
		}
		if (vpti_unlikely(rc < 0))
			return rc;
		said |= rc;
		n++;
		++*steps;
		if (vpti_likely(!(flags & VPTI_DESC_NEXT))) {
			*id = d.id;
			*count = n;
			return vpti_unlikely(d.id >= v->num) ? -VPT_REASON_BAD_DESC : said;
		}
		if (vpti_unlikely(n == limit))
			return -VPT_REASON_LOOP;
		position = advance(v, position, 1);
		flags = flags_at(v, position);
		if (vpti_unlikely(!is_available(v, position, flags)))
			return -VPT_REASON_BAD_DESC; /* the first of a chain becomes available last (2.8.21.1) */
	}
}

/* The flags of a used descriptor. */
static inline uint16_t used_at(const struct vpti_virtq *v, uint32_t position)
{
	return wrap_of(v, position) ? TURN : 0;
}

static inline void mark_used(struct vpti_virtq *v, uint32_t position, uint64_t half)
{
	/* Pairs with the driver's barrier after it reads the flags. */
	VPTI_STORE_RELEASE(*half_of(&v->packed[index_of(v, position)]), half);
}

/* A chain that the device has read. */
static inline void mark_read(struct vpti_virtq *v, uint32_t position, uint16_t id)
{
	mark_used(v, position, (union half){ .id = id, .flags = used_at(v, position) }.word);
}

/* The mark of a chain that the device has written; its length means something (2.8.6). */
static inline uint64_t written(uint16_t used, uint16_t id, uint32_t len)
{
	return (union half){ .len = len, .id = id, .flags = used | VPTI_DESC_WRITE }.word;
}

#endif /* VPTI_VIRTQ_PACKED_H */
