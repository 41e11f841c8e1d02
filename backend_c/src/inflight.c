/* SPDX-License-Identifier: BSD-2-Clause */
/* inflight.c - the record of what is in flight: mapping it, and going on from one that somebody left, who may be lying */
#include "inflight.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "memmap.h"
#include "virtq.h"

/* ---- the memory ---- */

static uint64_t region_size(bool packed, uint32_t queue_size)
{
	uint64_t head = packed ? sizeof(struct vpti_inflight_packed) : sizeof(struct vpti_inflight_split);
	uint64_t state = packed ? sizeof(struct vpti_packed_state) : sizeof(struct vpti_split_state);

	return VPTI_ALIGN(head + queue_size * state, VPTI_INFLIGHT_ALIGN);
}

uint64_t vpti_inflight_size(bool packed, uint32_t queues, uint32_t queue_size)
{
	return queues * region_size(packed, queue_size);
}

int vpti_inflight_map(const struct vpt_inflight *from, uint32_t *flag, struct vpti_inflight_area **out)
{
	struct vpti_inflight_area *area;
	struct stat st;
	uint64_t end;
	int rc;

	if (!from->queues || from->queues > VPT_MAX_VRINGS || !from->queue_size || from->queue_size > VPT_MAX_RING ||
	    __builtin_add_overflow(from->mmap_offset, from->mmap_size, &end) || end > INT64_MAX ||
	    from->mmap_offset % VPTI_INFLIGHT_ALIGN || from->mmap_size < vpti_inflight_size(false, from->queues, from->queue_size))
		return -EINVAL;
	area = malloc(sizeof(*area));
	if (!area)
		return -ENOMEM;
	*area = (struct vpti_inflight_area){ .queues = from->queues, .queue_size = from->queue_size };
	/* No more than can be needed, however much there is. */
	area->size = VPTI_MIN(from->mmap_size, vpti_inflight_size(true, from->queues, from->queue_size));
	rc = vpti_mapping_new(from->fd, from->mmap_offset, area->size, flag, &area->mapping, &area->start);
	if (rc) {
		free(area);
		return rc;
	}
	/* Of the rest nothing is used, but who says that it is there is wrong about the file. */
	if (fstat(from->fd, &st) || (uint64_t)st.st_size < end) {
		vpti_inflight_unmap(area);
		return -EBADF;
	}
	*out = area;
	return 0;
}

void vpti_inflight_unmap(struct vpti_inflight_area *area)
{
	if (!area)
		return;
	vpti_mapping_put(area->mapping);
	free(area);
}

int vpti_inflight_region(const struct vpti_inflight_area *area, bool packed, uint32_t index, uint32_t num, void **out)
{
	uint64_t size;

	*out = NULL;
	if (!area || index >= area->queues)
		return 0;
	size = region_size(packed, area->queue_size);
	if (num > area->queue_size || area->size < (index + 1) * size)
		return -EINVAL;
	*out = area->start + index * size;
	return 0;
}

void vpti_inflight_end(struct vpti_inflight *f)
{
	if (f->region)
		VPTI_WRITE(f->split->version, 0); /* at the same place in both layouts */
	f->region = NULL;
}

/* ---- what is in flight, oldest first: private copies, checked ---- */

struct chain {
	uint64_t counter;
	uint16_t entry;
};

static int by_counter(const void *a, const void *b)
{
	const struct chain *x = a, *y = b;

	return x->counter < y->counter ? -1 : x->counter > y->counter;
}

/* ---- split ---- */

/*
 * The driver has seen more of the used ring than the record knows: the last batch was published, and its chains, a list, are not
 * in flight whatever they say. -EINVAL: more of them than there can be, or no such chain.
 */
static int split_settle(struct vpti_inflight_split *r, uint32_t num, uint16_t used_idx)
{
	uint16_t batch = (uint16_t)(used_idx - VPTI_READ(r->used_idx));
	uint16_t at = VPTI_READ(r->last_batch_head);

	if (batch > num)
		return -EINVAL;
	for (; batch; batch--) { /* of a list that goes in circles, no more than the batch has */
		if (at >= num)
			return -EINVAL;
		VPTI_WRITE(r->desc[at].inflight, 0);
		at = VPTI_READ(r->desc[at].next);
	}
	VPTI_WRITE(r->used_idx, used_idx);
	return 0;
}

/* Heads in flight into the available ring where the device looks next. What the driver put there has been used. */
static int split_put_back(struct vpti_virtq *v, struct vpti_inflight_split *r, uint32_t desc_num, struct chain *chain)
{
	uint16_t *ring = (uint16_t *)(uintptr_t)v->avail->ring;
	uint16_t available = (uint16_t)(VPTI_LOAD_ACQUIRE(v->avail->idx) - v->next_used);
	uint32_t n = 0, i;

	for (i = 0; i < desc_num; i++) {
		if (!VPTI_READ(r->desc[i].inflight))
			continue;
		if (i >= v->num)
			return -EINVAL;
		chain[n++] = (struct chain){ VPTI_READ(r->desc[i].counter), (uint16_t)i };
	}
	if (n > available || available > v->num)
		return n ? -EINVAL : 0;
	qsort(chain, n, sizeof(*chain), by_counter);
	for (i = 0; i < n; i++) {
		uint16_t *slot = &ring[(uint16_t)(v->next_used + i) & v->mask];

		if (VPTI_READ(*slot) != chain[i].entry)
			VPTI_WRITE(*slot, chain[i].entry);
	}
	/* The ring says it now. From the last to the first: whoever is interrupted here finds the beginning, which is right. */
	for (i = n; i--;) {
		vpti_compiler_barrier();
		VPTI_WRITE(r->desc[chain[i].entry].inflight, 0);
	}
	return 0;
}

int vpti_inflight_resume_split(struct vpti_virtq *v, void *region, uint32_t desc_num)
{
	struct vpti_inflight_split *r = region;
	uint16_t version = VPTI_READ(r->version);
	struct chain *chain;
	uint32_t i;
	int rc;

	if (!version) {
		for (i = 0; i < desc_num; i++)
			VPTI_WRITE(r->desc[i].inflight, 0);
		VPTI_WRITE(r->features, 0);
		VPTI_WRITE(r->desc_num, (uint16_t)desc_num);
		VPTI_WRITE(r->last_batch_head, 0);
		VPTI_WRITE(r->used_idx, (uint16_t)v->next_used);
		vpti_compiler_barrier();
		VPTI_WRITE(r->version, VPTI_INFLIGHT_VERSION);
		return 0;
	}
	if (version != VPTI_INFLIGHT_VERSION || VPTI_READ(r->features) || VPTI_READ(r->desc_num) != desc_num)
		return -EINVAL;
	rc = split_settle(r, v->num, (uint16_t)v->next_used);
	if (rc)
		return rc;
	chain = calloc(desc_num, sizeof(*chain));
	if (!chain)
		return -ENOMEM;
	rc = split_put_back(v, r, desc_num, chain);
	free(chain);
	if (!rc)
		v->next_avail = v->next_used;
	return rc;
}

/* ---- packed ---- */

/* A place as one number: an index, and num more in the laps with wrap counter 0. */
static uint32_t place(const struct vpti_virtq *v, uint16_t index, bool wrap)
{
	return wrap ? index : index + v->num;
}

static struct vpti_packed_desc *slot_at(const struct vpti_virtq *v, uint32_t at)
{
	return &v->packed[at % v->num];
}

static uint16_t available_flags(const struct vpti_virtq *v, uint32_t at)
{
	return at % (2u * v->num) < v->num ? VPTI_PACKED_AVAIL : VPTI_PACKED_USED;
}

/* Has the device not yet marked the chain at this place used? */
static bool still_available(const struct vpti_virtq *v, uint32_t at)
{
	uint16_t both = VPTI_PACKED_AVAIL | VPTI_PACKED_USED;

	return (VPTI_LOAD_ACQUIRE(slot_at(v, at)->flags) & both) == available_flags(v, at);
}

/* An entry's number in the record, or -1. */
static int next_of(const struct vpti_inflight_packed *r, uint32_t desc_num, uint32_t i)
{
	uint16_t next = VPTI_READ(r->desc[i].next);

	return next < desc_num ? next : -1;
}

/* Whoever is on the free list is not in flight. -EINVAL: the list has no end. */
static int packed_free_list(struct vpti_inflight_packed *r, uint32_t desc_num, uint16_t head)
{
	uint32_t steps = 0;
	int i;

	for (i = head < desc_num ? head : -1; i >= 0; i = next_of(r, desc_num, (uint32_t)i)) {
		if (steps++ == desc_num)
			return -EINVAL;
		VPTI_WRITE(r->desc[i].inflight, 0);
	}
	return 0;
}

/* One chain into the ring at a place, as it was available there; the place behind it, or -EINVAL. */
static int packed_put_chain(struct vpti_virtq *v, const struct vpti_inflight_packed *r, uint32_t desc_num, int entry,
			    uint32_t at, uint32_t limit)
{
	uint16_t num = VPTI_READ(r->desc[entry].num), keep = VPTI_DESC_WRITE | VPTI_DESC_INDIRECT, flags;
	uint32_t i;

	if (!num || at + num > limit)
		return -EINVAL;
	for (i = 0; i < num; i++) {
		struct vpti_packed_desc *d = slot_at(v, at + i);

		if (entry < 0)
			return -EINVAL;
		flags = (uint16_t)(VPTI_READ(r->desc[entry].flags) & keep);
		flags |= (uint16_t)(available_flags(v, at + i) | (i + 1u < num ? VPTI_DESC_NEXT : 0));
		VPTI_WRITE(d->addr, VPTI_READ(r->desc[entry].addr));
		VPTI_WRITE(d->len, VPTI_READ(r->desc[entry].len));
		VPTI_WRITE(d->id, VPTI_READ(r->desc[entry].id));
		VPTI_STORE_RELEASE(d->flags, flags);
		entry = next_of(r, desc_num, (uint32_t)entry);
	}
	return (int)(at + num);
}

static int packed_put_back(struct vpti_virtq *v, struct vpti_inflight_packed *r, uint32_t desc_num, uint32_t at,
			   struct chain *chain)
{
	uint32_t limit = at + v->num, n = 0, i;
	int behind = (int)at;

	for (i = 0; i < desc_num; i++) {
		if (VPTI_READ(r->desc[i].inflight))
			chain[n++] = (struct chain){ VPTI_READ(r->desc[i].counter), (uint16_t)i };
	}
	qsort(chain, n, sizeof(*chain), by_counter);
	for (i = 0; i < n && behind >= 0; i++)
		behind = packed_put_chain(v, r, desc_num, chain[i].entry, (uint32_t)behind, limit);
	if (behind < 0)
		return behind;
	for (i = n; i--;) { /* as in split_put_back() */
		vpti_compiler_barrier();
		VPTI_WRITE(r->desc[chain[i].entry].inflight, 0);
	}
	return 0;
}

/* Nothing in flight, the free list in order, and this place. */
static void packed_begin_at(struct vpti_inflight_packed *r, uint32_t desc_num, uint16_t index, bool wrap)
{
	uint32_t i;

	for (i = 0; i < desc_num; i++)
		VPTI_WRITE(r->desc[i].next, (uint16_t)(i + 1));
	VPTI_WRITE(r->free_head, 0);
	VPTI_WRITE(r->old_free_head, 0);
	VPTI_WRITE(r->used_idx, index);
	VPTI_WRITE(r->old_used_idx, index);
	VPTI_WRITE(r->used_wrap_counter, wrap);
	VPTI_WRITE(r->old_used_wrap_counter, wrap);
}

static bool anything_in_flight(const struct vpti_inflight_packed *r, uint32_t desc_num)
{
	uint32_t i;

	for (i = 0; i < desc_num; i++) {
		if (VPTI_READ(r->desc[i].inflight))
			return true;
	}
	return false;
}

/* Finish or take back what was in progress; then *index and *wrap are where the driver is, and *head is the free list's. */
static int packed_settle(const struct vpti_virtq *v, struct vpti_inflight_packed *r, uint16_t *index, bool *wrap,
			 uint16_t *head)
{
	uint16_t used = VPTI_READ(r->used_idx), old = VPTI_READ(r->old_used_idx);
	uint8_t used_wrap = VPTI_READ(r->used_wrap_counter), old_wrap = VPTI_READ(r->old_used_wrap_counter);
	bool shown;

	if (used >= v->num || old >= v->num || used_wrap > 1 || old_wrap > 1)
		return -EINVAL;
	shown = (used != old || used_wrap != old_wrap) && !still_available(v, place(v, old, old_wrap));
	*index = shown ? used : old;
	*wrap = shown ? used_wrap : old_wrap;
	*head = shown ? VPTI_READ(r->free_head) : VPTI_READ(r->old_free_head);
	return 0;
}

static int packed_recover(struct vpti_virtq *v, struct vpti_inflight_packed *r, uint32_t desc_num)
{
	struct chain *chain;
	uint16_t index, head;
	bool wrap;
	int rc;

	rc = packed_settle(v, r, &index, &wrap, &head);
	if (rc)
		return rc;
	if (anything_in_flight(r, desc_num)) {
		rc = packed_free_list(r, desc_num, head);
		if (rc)
			return rc;
		chain = calloc(desc_num, sizeof(*chain));
		if (!chain)
			return -ENOMEM;
		rc = packed_put_back(v, r, desc_num, place(v, index, wrap), chain);
		free(chain);
		if (rc)
			return rc;
	}
	packed_begin_at(r, desc_num, index, wrap);
	vpti_virtq_packed.set_base(v, index | (uint32_t)wrap << 15);
	return 0;
}

int vpti_inflight_resume_packed(struct vpti_virtq *v, void *region, uint32_t desc_num)
{
	uint32_t base = vpti_virtq_packed.base(v);
	struct vpti_inflight_packed *r = region;
	uint16_t version = VPTI_READ(r->version);
	uint32_t i;

	v->inflight.counter = 0;
	if (version) {
		if (version != VPTI_INFLIGHT_VERSION || VPTI_READ(r->features) || VPTI_READ(r->desc_num) != desc_num)
			return -EINVAL;
		return packed_recover(v, r, desc_num);
	}
	for (i = 0; i < desc_num; i++)
		VPTI_WRITE(r->desc[i].inflight, 0);
	VPTI_WRITE(r->features, 0);
	VPTI_WRITE(r->desc_num, (uint16_t)desc_num);
	packed_begin_at(r, desc_num, base & 0x7fff, base & 0x8000);
	vpti_compiler_barrier();
	VPTI_WRITE(r->version, VPTI_INFLIGHT_VERSION);
	return 0;
}

uint32_t vpti_inflight_packed_save(struct vpti_inflight *f, const struct vpti_virtq *v, uint32_t at, uint32_t index, uint32_t n)
{
	struct vpti_inflight_packed *r = f->packed;
	uint32_t i;

	for (i = 0; i < n; i++) {
		const struct vpti_packed_desc *d = &v->packed[(index + i) % v->num];
		struct vpti_packed_state *s = &r->desc[at + i];

		VPTI_WRITE(s->addr, VPTI_READ(d->addr));
		VPTI_WRITE(s->len, VPTI_READ(d->len));
		VPTI_WRITE(s->id, VPTI_READ(d->id));
		VPTI_WRITE(s->flags, VPTI_READ(d->flags));
	}
	VPTI_WRITE(r->desc[at].num, (uint16_t)n);
	VPTI_WRITE(r->desc[at].last, (uint16_t)(at + n - 1));
	VPTI_WRITE(r->desc[at].counter, f->counter++);
	VPTI_WRITE(r->desc[at].inflight, 1);
	vpti_compiler_barrier();
	VPTI_WRITE(r->free_head, (uint16_t)(at + n));
	VPTI_WRITE(r->old_free_head, (uint16_t)(at + n)); /* from here on it is not on the free list */
	return at + n;
}

void vpti_inflight_packed_forget(struct vpti_inflight *f, uint32_t n)
{
	uint32_t i;

	vpti_compiler_barrier();
	for (i = 0; i < n; i++)
		VPTI_WRITE(f->packed->desc[i].inflight, 0);
}
