/* SPDX-License-Identifier: BSD-2-Clause */
/* virtq.h - a virtqueue as the device side keeps it; one table of operations per ring layout */
#ifndef VPTI_VIRTQ_H
#define VPTI_VIRTQ_H

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

#define VPTI_AVAIL_NO_INTERRUPT 1u
#define VPTI_USED_NO_NOTIFY 1u

#define VPTI_F_MRG_RXBUF (1ull << 15)
#define VPTI_F_INDIRECT_DESC (1ull << 28)
#define VPTI_F_EVENT_IDX (1ull << 29)
#define VPTI_F_VERSION_1 (1ull << 32)

/* All but desc, avail, used and what they point to is the device's own; the indices are free-running. */
struct vpti_virtq {
	const struct vpti_mem *mem;
	const struct vpti_desc *desc;
	const struct vpti_avail *avail;
	struct vpti_used *used;
	uint32_t hint;             /* memory range found last */
	uint16_t num;
	uint16_t mask;
	uint16_t next_avail;       /* tx: next to take; rx: next to reserve */
	uint16_t next_used;        /* next used entry to fill */
	uint16_t published;        /* used->idx as the driver sees it */
	uint16_t told;             /* used->idx when the driver's wish was looked at last */
	uint8_t hdr_len;           /* 12, or 10 for a legacy driver without mergeable buffers */
	bool event_idx;
	bool indirect;
	bool mergeable;
	int call_fd;
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

extern const struct vpti_txq_ops vpti_split_txq_ops;
extern const struct vpti_rxq_ops vpti_split_rxq_ops;

/* Before the first kick: whether the driver is to kick at all (its rx queue never has to). */
void vpti_split_quiet(struct vpti_virtq *v);

#endif /* VPTI_VIRTQ_H */
