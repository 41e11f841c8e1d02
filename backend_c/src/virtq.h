/* SPDX-License-Identifier: BSD-2-Clause */
/* virtq.h - a virtqueue as the device side keeps it; one table of operations per ring layout */
#ifndef VPTI_VIRTQ_H
#define VPTI_VIRTQ_H

#include "inflight.h"
#include "log.h"
#include "memmap.h"
#include "port.h"

/* virtio 1.2, 2.7.5: struct virtq_desc */
struct vpti_desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags;
	uint16_t next;
};

#define VPTI_DESC_NEXT 1u
#define VPTI_DESC_WRITE 2u
#define VPTI_DESC_INDIRECT 4u

/* virtio 1.2, 2.7.6 and 2.7.8 */
struct vpti_avail {
	uint16_t flags;
	uint16_t idx;
	uint16_t ring[];
};

struct vpti_used_elem {
	uint32_t id;
	uint32_t len;
};

struct vpti_used {
	uint16_t flags;
	uint16_t idx;
	struct vpti_used_elem ring[];
};

/* Descriptors that one packet may take, which bounds the work on it; QEMU's own devices allow a chain no more. */
#define VPTI_MAX_CHAIN 1024u

#define VPTI_AVAIL_NO_INTERRUPT 1u
#define VPTI_USED_NO_NOTIFY 1u

#define VPTI_F_MRG_RXBUF (1ull << 15)
#define VPTI_F_INDIRECT_DESC (1ull << 28)
#define VPTI_F_EVENT_IDX (1ull << 29)
#define VPTI_F_VERSION_1 (1ull << 32)

#define VPTI_F_RING_PACKED (1ull << 34)
#define VPTI_F_IN_ORDER (1ull << 35)

/* virtio 1.2, 2.8.13 */
struct vpti_packed_desc {
	uint64_t addr;
	uint32_t len;
	uint16_t id;
	uint16_t flags;
};

#define VPTI_PACKED_AVAIL (1u << 7)
#define VPTI_PACKED_USED (1u << 15)

/* virtio 1.2, 2.8.14: the driver's and the device's event suppression structures */
struct vpti_packed_event {
	uint16_t off_wrap;
	uint16_t flags;
};

#define VPTI_PACKED_EVENT_ENABLE 0u
#define VPTI_PACKED_EVENT_DISABLE 1u
#define VPTI_PACKED_EVENT_DESC 2u

/**
 * struct vpti_virtq - a virtqueue; all but what the pointers point to is the device's own
 * @next_avail:	where to look for the next chain (tx: to take; rx: to reserve)
 * @next_used:	where the next chain is marked used
 * @published:	next_used as the driver sees it
 * @told:	split: published when the driver's wish was looked at last; packed: counted in untold up to here
 * @untold:	packed: descriptors published since the driver's wish was looked at last
 * @log:	dirty log, NULL: nobody wants to know what is written (RCU)
 * @log_used:	where the log has the used ring (packed: the device's event structure), or VPTI_LOG_NEVER
 *
 * Positions. Split: free-running, 16 bits count. Packed: in [0, 2 * num); below num the wrap counter is 1, so a position is
 * an index and a wrap counter in one number (see vpti_packed_*()).
 */
struct vpti_virtq {
	const struct vpti_mem *mem;
	union {
		struct {
			const struct vpti_desc *desc;
			const struct vpti_avail *avail;
			struct vpti_used *used;
		};
		struct {
			struct vpti_packed_desc *packed;
			const struct vpti_packed_event *driver_event;
			struct vpti_packed_event *device_event;
		};
	};
	struct vpti_mem_near near;
	uint16_t num;
	uint16_t mask;             /* split */
	uint32_t next_avail;
	uint32_t next_used;
	uint32_t published;
	uint32_t told;
	uint32_t untold;
	uint8_t hdr_len;           /* 12, or 10 for a legacy driver without mergeable buffers */
	bool event_idx;
	bool indirect;
	bool mergeable;
	bool in_order;
	int call_fd;
	struct vpti_inflight inflight;
	struct vpti_log *log;
	uint64_t log_used;
};

struct vpti_virtq_txq {
	struct vpti_txq q;
	struct vpti_virtq v;
};

struct vpti_virtq_rxq {
	struct vpti_rxq q;
	struct vpti_virtq v;
};

static inline struct vpti_virtq_txq *vpti_virtq_txq(struct vpti_txq *q)
{
	return vpti_container_of(q, struct vpti_virtq_txq, q);
}

static inline struct vpti_virtq_rxq *vpti_virtq_rxq(struct vpti_rxq *q)
{
	return vpti_container_of(q, struct vpti_virtq_rxq, q);
}

/* A ring layout: what a started ring of it can do. */
struct vpti_virtq_layout {
	const struct vpti_txq_ops *tx;
	const struct vpti_rxq_ops *rx;
	/* The same for queues with a record of what is in flight; and how they go on from it (inflight.h). */
	const struct vpti_txq_ops *recorded_tx;
	const struct vpti_rxq_ops *recorded_rx;
	int (*resume)(struct vpti_virtq *v, void *region, uint32_t desc_num);
	/* Point v at ring memory that has been found; -EFAULT not all there, -EINVAL size or alignment. */
	int (*bind)(struct vpti_virtq *v, const struct vpti_mem *mem, const struct vpt_vring *ring);
	/* Begin at a base of SET_VRING_BASE; and the base to go on from. */
	void (*set_base)(struct vpti_virtq *v, uint32_t base);
	uint32_t (*base)(const struct vpti_virtq *v);
	/* Bytes of what the device writes to besides buffers, from the address on that the log has for it. */
	uint64_t (*used_size)(uint32_t num);
	/* No kicks, please: before a worker arms the queue for the first time, and for ever on receive queues. */
	void (*quiet)(struct vpti_virtq *v);
	/* A kick, please, for whatever comes next, and never mind what is there already: of a queue that is left aside. */
	void (*want_next)(struct vpti_virtq *v);
};

extern const struct vpti_virtq_layout vpti_virtq_split, vpti_virtq_packed;

/* Interrupt the driver, if it has a way to be. Returns whether it was. */
bool vpti_virtq_call(const struct vpti_virtq *v);

#endif /* VPTI_VIRTQ_H */
