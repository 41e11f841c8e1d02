/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * inflight.h - the record of what is in flight, in memory that outlives this process (vhost-user, "Inflight I/O tracking")
 *
 * A front-end keeps a memfd with one region per queue, and gives it back after a back-end died, so that the next one knows
 * where to go on. A net device takes a chain and marks it used in one step, in the ring's order; so there is never anything to
 * record but the place that has been reached, and a queue without a record has functions of its own that know nothing of it.
 *
 * Split: used->idx itself says what the driver has seen. Packed: no index lies in memory, so the place is recorded: where it is
 * going to be (used), then the one store that shows the driver the change, then that it is there (old). Whoever comes
 * after a crash between the two looks at the ring: was it shown? What takes more than one store, a packet in several
 * buffers, has its descriptors saved beforehand, to be put back if it was not.
 *
 * All of this is for a process that dies between two instructions of a thread: what it has stored by then is in memory, and
 * only the compiler must keep the order.
 */
#ifndef VPTI_INFLIGHT_H
#define VPTI_INFLIGHT_H

#include "lease.h"
#include "memmap.h"
#include "util.h"

struct vpti_virtq;

#define VPTI_INFLIGHT_VERSION 1u
#define VPTI_INFLIGHT_ALIGN 64u    /* of each queue's region: what other back-ends have (libvhost-user, DPDK) */

struct vpti_inflight_split {
	uint64_t features;
	uint16_t version;          /* 0: not in use yet */
	uint16_t desc_num;
	uint16_t last_batch_head;
	uint16_t used_idx;
	struct vpti_split_state {
		uint8_t inflight;
		uint8_t padding[5];
		uint16_t next;
		uint64_t counter;
	} desc[];
};

struct vpti_inflight_packed {
	uint64_t features;
	uint16_t version;
	uint16_t desc_num;
	uint16_t free_head;
	uint16_t old_free_head;
	uint16_t used_idx;
	uint16_t old_used_idx;
	uint8_t used_wrap_counter;
	uint8_t old_used_wrap_counter;
	uint8_t padding[7];
	struct vpti_packed_state {
		uint8_t inflight;
		uint8_t padding;
		uint16_t next;     /* of the free list or of the chain */
		uint16_t last;
		uint16_t num;
		uint64_t counter;
		uint16_t id;
		uint16_t flags;
		uint32_t len;
		uint64_t addr;
	} desc[];
};

_Static_assert(sizeof(struct vpti_inflight_split) == 16 && sizeof(struct vpti_split_state) == 16, "as specified");
_Static_assert(sizeof(struct vpti_inflight_packed) == 32 && sizeof(struct vpti_packed_state) == 32, "as specified");

/* A queue's part of it. region NULL: the front-end keeps no record for this queue. */
struct vpti_inflight {
	union {
		void *region;
		struct vpti_inflight_split *split;
		struct vpti_inflight_packed *packed;
	};
	struct vpti_lock lock;     /* a receive queue with a record is filled by one worker at a time, so in order */
	uint64_t counter;          /* packed: order of what was saved */
};

/* The memory that the front-end gave, mapped and guarded. */
struct vpti_inflight_area {
	uint32_t queues;
	uint32_t queue_size;
	uint64_t size;
	uint8_t *start;
	struct vpti_mapping *mapping;
};

/* What a record for so many queues of so many descriptors takes. */
uint64_t vpti_inflight_size(bool packed, uint32_t queues, uint32_t queue_size);

/* Map what a front-end gives. flag: what the SIGBUS guard sets. 0, -EINVAL numbers, -EBADF file, others from mmap(). */
int vpti_inflight_map(const struct vpt_inflight *from, uint32_t *flag, struct vpti_inflight_area **out);
void vpti_inflight_unmap(struct vpti_inflight_area *area);

/* A queue's region, NULL if there is none for it; -EINVAL if it does not hold what a ring of that layout and size needs. */
int vpti_inflight_region(const struct vpti_inflight_area *area, bool packed, uint32_t index, uint32_t num, void **out);

/*
 * Take up a record: one that is in use says where the ring goes on, and its place becomes v's; one that is not is begun
 * at v's place. What another back-end left in flight is put back into the ring, in order. -EINVAL: it contradicts itself or
 * the ring.
 */
int vpti_inflight_resume_split(struct vpti_virtq *v, void *region, uint32_t desc_num);
int vpti_inflight_resume_packed(struct vpti_virtq *v, void *region, uint32_t desc_num);

/* The front-end has been told where the ring stopped: from now on that counts. */
void vpti_inflight_end(struct vpti_inflight *f);

#define vpti_compiler_barrier() __atomic_signal_fence(__ATOMIC_SEQ_CST)

/* The driver sees up to used->idx. */
static inline void vpti_inflight_split_reached(struct vpti_inflight *f, uint16_t used_idx)
{
	VPTI_WRITE(f->split->used_idx, used_idx);
}

/* Packed: the next store of a descriptor's flags shows the driver that everything before (index, wrap) is used. */
static inline void vpti_inflight_packed_begin(struct vpti_inflight *f, uint16_t index, bool wrap)
{
	VPTI_WRITE(f->packed->free_head, 0); /* what was saved is free again, if that store happens */
	VPTI_WRITE(f->packed->used_idx, index);
	VPTI_WRITE(f->packed->used_wrap_counter, wrap);
	vpti_compiler_barrier();
}

/* Packed: it has been stored. The index first: with the old wrap counter it is a place that is not available either. */
static inline void vpti_inflight_packed_commit(struct vpti_inflight *f, uint16_t index, bool wrap)
{
	vpti_compiler_barrier();
	VPTI_WRITE(f->packed->old_free_head, 0);
	VPTI_WRITE(f->packed->old_used_idx, index);
	VPTI_WRITE(f->packed->old_used_wrap_counter, wrap);
}

/*
 * Packed: save a chain of n descriptors, read from the ring, before it is marked used together with others; chains in their
 * order, from entry `at` on. Returns where the next may begin. forget() when all are marked, before the commit.
 */
uint32_t vpti_inflight_packed_save(struct vpti_inflight *f, const struct vpti_virtq *v, uint32_t at, uint32_t index, uint32_t n);
void vpti_inflight_packed_forget(struct vpti_inflight *f, uint32_t n);

#endif /* VPTI_INFLIGHT_H */
