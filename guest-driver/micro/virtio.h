/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * virtio.h - virtio-net: what its two transports give to the driver that they share
 */
#ifndef MICRO_VIRTIO_H
#define MICRO_VIRTIO_H

#include "guest.h"

#define VIRTIO_ID_NET 1u

#define VIRTIO_F_EVENT_IDX (1ull << 29)
#define VIRTIO_F_VERSION_1 (1ull << 32)
#define VIRTIO_NET_F_MAC (1ull << 5)

#define VIRTQ_MAX 1024u

/* Split ring (virtio 1.2, 2.7). */
struct virtq_desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags;
	uint16_t next;
};

#define VIRTQ_DESC_WRITE 2u

struct virtq_avail {
	uint16_t flags;
	uint16_t idx;
	uint16_t ring[];        /* and behind it used_event */
};

#define VIRTQ_AVAIL_NO_INTERRUPT 1u

struct virtq_used_elem {
	uint32_t id;
	uint32_t len;
};

struct virtq_used {
	uint16_t flags;
	uint16_t idx;
	struct virtq_used_elem ring[]; /* and behind it avail_event */
};

#define VIRTQ_USED_NO_NOTIFY 1u

struct virtq {
	struct virtq_desc *desc;
	struct virtq_avail *avail;
	struct virtq_used *used;
	uint16_t num;
	uint16_t index;         /* of the queue in the device */
	uint16_t idx;           /* next to publish: avail->idx is it, or will be */
	uint16_t seen;          /* used elements dealt with */
	uint16_t used_idx;      /* last known used->idx */
};

struct virtio_transport {
	uint64_t (*features)(void);
	void (*accept)(uint64_t features);
	uint32_t (*status)(void);
	void (*set_status)(uint32_t status);
	uint8_t (*config8)(uint32_t ofs);
	/* Entries that the device offers for queue i, 0: no such queue. */
	uint32_t (*queue_max)(uint32_t i);
	/* Tell the device where the queue is and enable it. Return: whether its interrupt is routed. */
	bool (*queue_start)(const struct virtq *q, enum irq_kind kind);
	void (*notify)(uint32_t i);
};

/* The parts of struct driver that do not depend on the transport. */
int virtio_net_open(const struct virtio_transport *transport, uint64_t features, struct micro_found *found);

uint32_t virtio_tx_room(uint32_t want);
uint8_t *virtio_tx_prepare(uint32_t i, uint32_t len);
void virtio_tx_next(struct pkt *v, uint32_t n);
void virtio_tx_publish(uint32_t n);
bool virtio_tx_wants_kick(uint32_t n);
void virtio_tx_kick(void);
bool virtio_tx_idle(void);
bool virtio_tx_arm(uint32_t want);
void virtio_tx_disarm(void);
uint32_t virtio_rx_take(struct pkt *v, uint32_t max);
void virtio_rx_release(uint32_t n);
bool virtio_rx_wants_kick(uint32_t n);
void virtio_rx_kick(void);
bool virtio_rx_arm(void);
void virtio_rx_disarm(void);

#define VIRTIO_NET_CALLS \
	.tx_room = virtio_tx_room, \
	.tx_prepare = virtio_tx_prepare, \
	.tx_next = virtio_tx_next, \
	.tx_publish = virtio_tx_publish, \
	.tx_wants_kick = virtio_tx_wants_kick, \
	.tx_kick = virtio_tx_kick, \
	.tx_idle = virtio_tx_idle, \
	.tx_arm = virtio_tx_arm, \
	.tx_disarm = virtio_tx_disarm, \
	.rx_take = virtio_rx_take, \
	.rx_release = virtio_rx_release, \
	.rx_wants_kick = virtio_rx_wants_kick, \
	.rx_kick = virtio_rx_kick, \
	.rx_arm = virtio_rx_arm, \
	.rx_disarm = virtio_rx_disarm

#endif /* MICRO_VIRTIO_H */
