/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * virtio_net.c - virtio-net with one split ring each way, as a stock driver without offloads would drive it
 *
 * Each descriptor has its own buffer for good. The descriptor that the device returned as the k-th is offered again as
 * the k+num-th, so the available ring is its own free list, and as long as the device keeps the order its entries need
 * no writing at all.
 */
#include "cpu.h"
#include "virtio.h"

#define STATUS_ACKNOWLEDGE 1u
#define STATUS_DRIVER 2u
#define STATUS_DRIVER_OK 4u
#define STATUS_FEATURES_OK 8u

#define FEATURES_ALWAYS (VIRTIO_F_VERSION_1 | VIRTIO_NET_F_MAC)
#define FEATURES_IF_WANTED VIRTIO_F_EVENT_IDX

#define NET_HDR_SIZE 12u        /* struct virtio_net_hdr_v1, in front of the frame */
#define BUF_SIZE 2048u

/* Memory that the device sees: a page-aligned area per queue, then its buffers. */
#define QUEUE_AREA 0x10000u
#define QUEUE_BYTES (QUEUE_AREA + VIRTQ_MAX * BUF_SIZE)
#define AVAIL_OFS 0x4000u       /* behind 1024 descriptors */
#define USED_OFS 0x8000u

enum { RX_QUEUE, TX_QUEUE };

static struct {
	const struct virtio_transport *transport;
	uint64_t features;
	struct virtq rx, tx;
} net;

/* ---- the ring ---- */

static uint8_t *buffer(const struct virtq *q, uint32_t id)
{
	return (uint8_t *)(uintptr_t)q->desc[id].addr;
}

static uint16_t *used_event(const struct virtq *q)
{
	return &q->avail->ring[q->num];
}

static const uint16_t *avail_event(const struct virtq *q)
{
	return (const uint16_t *)&q->used->ring[q->num];
}

static uint32_t slot(const struct virtq *q, uint16_t idx)
{
	return idx & (q->num - 1u);
}

static void refresh(struct virtq *q)
{
	uint16_t idx = load_acquire(&q->used->idx); /* pairs with the device's release; elements are valid up to it */

	if ((uint16_t)(idx - q->seen) <= q->num)
		q->used_idx = idx;
}

/* Let the next element's descriptor be offered again, in its turn. */
static void recycle(struct virtq *q, uint32_t id)
{
	uint16_t *entry = &q->avail->ring[slot(q, q->seen)];

	if (*entry != id && id < q->num)
		*entry = (uint16_t)id;
	q->seen++;
}

static void publish(struct virtq *q, uint32_t n)
{
	q->idx = (uint16_t)(q->idx + n);
	store_release(&q->avail->idx, q->idx); /* pairs with the device's acquire of avail->idx */
}

/* virtio 1.2, 2.7.10: without event index a flag, else: has idx moved past avail_event? */
static bool wants_kick(const struct virtq *q, uint32_t n)
{
	/* Pairs with the device's fence between asking for a notification and looking at avail->idx again. */
	full_fence();
	if (!(net.features & VIRTIO_F_EVENT_IDX))
		return !(load_acquire(&q->used->flags) & VIRTQ_USED_NO_NOTIFY);
	return (uint16_t)(q->idx - load_acquire(avail_event(q)) - 1u) < n;
}

/* Ask for an interrupt once the device has used `more` elements beyond those seen. */
static void arm(struct virtq *q, uint32_t more)
{
	if (net.features & VIRTIO_F_EVENT_IDX)
		store_release(used_event(q), (uint16_t)(q->seen + more - 1));
	else
		store_release(&q->avail->flags, (uint16_t)0);
	/* Pairs with the device's fence between storing used->idx and deciding whether to interrupt. */
	full_fence();
	refresh(q);
}

/* An event index that lies just behind will not be passed for 65535 elements. */
static void disarm(struct virtq *q)
{
	if (net.features & VIRTIO_F_EVENT_IDX)
		store_release(used_event(q), (uint16_t)(q->seen - 1));
	else
		store_release(&q->avail->flags, (uint16_t)VIRTQ_AVAIL_NO_INTERRUPT);
}

static cold bool queue_init(struct virtq *q, uint32_t index, uint16_t flags, enum irq_kind kind)
{
	uint8_t *base = (uint8_t *)(uintptr_t)MICRO_DMA_ADDR + index * QUEUE_BYTES;
	uint32_t i;

	memset(base, 0, QUEUE_AREA);
	q->desc = (struct virtq_desc *)base;
	q->avail = (struct virtq_avail *)(base + AVAIL_OFS);
	q->used = (struct virtq_used *)(base + USED_OFS);
	q->index = (uint16_t)index;
	q->idx = 0;
	q->seen = 0;
	q->used_idx = 0;
	for (i = 0; i < q->num; i++) {
		q->desc[i].addr = (uintptr_t)base + QUEUE_AREA + i * BUF_SIZE;
		q->desc[i].len = BUF_SIZE;
		q->desc[i].flags = flags;
		q->avail->ring[i] = (uint16_t)i;
	}
	disarm(q);
	return net.transport->queue_start(q, kind);
}

/* ---- device ---- */

/* The largest power of two that both sides take. */
static uint16_t queue_size(uint32_t index)
{
	uint32_t max = net.transport->queue_max(index), num = VIRTQ_MAX;

	while (num > max)
		num /= 2;
	return (uint16_t)num;
}

static int negotiate(uint64_t mask)
{
	const struct virtio_transport *t = net.transport;
	uint64_t offered;

	t->set_status(0);
	while (t->status())
		cpu_relax();
	t->set_status(STATUS_ACKNOWLEDGE);
	t->set_status(STATUS_ACKNOWLEDGE | STATUS_DRIVER);
	offered = t->features();
	if (!(offered & VIRTIO_F_VERSION_1))
		return fail(-ENOTSUP, "the virtio-net device is a legacy one (disable-modern=on?)");
	net.features = offered & (FEATURES_ALWAYS | (FEATURES_IF_WANTED & mask));
	t->accept(net.features);
	t->set_status(STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK);
	if (!(t->status() & STATUS_FEATURES_OK))
		return fail(-ENOTSUP, "the virtio-net device refused our features");
	return 0;
}

cold int virtio_net_open(const struct virtio_transport *transport, uint64_t features, struct micro_found *found)
{
	bool rx_irq, tx_irq;
	uint32_t i;
	int err;

	net.transport = transport;
	err = negotiate(features);
	if (err)
		return err;
	net.rx.num = queue_size(RX_QUEUE);
	net.tx.num = queue_size(TX_QUEUE);
	if (!net.rx.num || !net.tx.num)
		return fail(-EIO, "the virtio-net device has no queues");
	rx_irq = queue_init(&net.rx, RX_QUEUE, VIRTQ_DESC_WRITE, IRQ_RX);
	tx_irq = queue_init(&net.tx, TX_QUEUE, 0, IRQ_TX);
	transport->set_status(STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK | STATUS_DRIVER_OK);
	publish(&net.rx, net.rx.num);
	transport->notify(RX_QUEUE);

	found->slots = net.tx.num;
	found->features = net.features;
	found->irq = rx_irq && tx_irq;
	found->max_frame = BUF_SIZE - NET_HDR_SIZE;
	for (i = 0; i < sizeof(found->mac) && net.features & VIRTIO_NET_F_MAC; i++)
		found->mac[i] = transport->config8(i);
	memcpy(found->name, "virtio-net", 11);
	return 0;
}

/* ---- tx ---- */

static uint32_t room(const struct virtq *q)
{
	return q->num - (uint16_t)(q->idx - q->seen);
}

uint32_t virtio_tx_room(uint32_t want)
{
	struct virtq *q = &net.tx;

	if (room(q) >= want)
		return room(q);
	refresh(q);
	while (q->seen != q->used_idx)
		recycle(q, q->used->ring[slot(q, q->seen)].id);
	return room(q);
}

static uint8_t *fill_desc(uint32_t id, uint32_t len)
{
	net.tx.desc[id].len = len + NET_HDR_SIZE;
	return buffer(&net.tx, id) + NET_HDR_SIZE;
}

uint8_t *virtio_tx_prepare(uint32_t i, uint32_t len)
{
	uint8_t *data = fill_desc(i, len);

	memset(data - NET_HDR_SIZE, 0, NET_HDR_SIZE);
	return data;
}

void virtio_tx_next(struct pkt *v, uint32_t n)
{
	const struct virtq *q = &net.tx;
	uint32_t i;

	for (i = 0; i < n; i++)
		v[i].data = fill_desc(q->avail->ring[slot(q, (uint16_t)(q->idx + i))], v[i].len);
}

void virtio_tx_publish(uint32_t n)
{
	publish(&net.tx, n);
}

bool virtio_tx_wants_kick(uint32_t n)
{
	return wants_kick(&net.tx, n);
}

void virtio_tx_kick(void)
{
	net.transport->notify(TX_QUEUE);
}

bool virtio_tx_idle(void)
{
	return virtio_tx_room(net.tx.num) == net.tx.num;
}

bool virtio_tx_arm(uint32_t want)
{
	struct virtq *q = &net.tx;
	uint32_t half = q->num / 2;

	arm(q, (want > half ? want : half) - room(q));
	return virtio_tx_room(want) < want;
}

void virtio_tx_disarm(void)
{
	disarm(&net.tx);
}

/* ---- rx ---- */

uint32_t virtio_rx_take(struct pkt *v, uint32_t max)
{
	struct virtq *q = &net.rx;
	uint32_t i, n;

	if (q->seen == q->used_idx)
		refresh(q);
	n = (uint16_t)(q->used_idx - q->seen);
	if (n > max)
		n = max;
	for (i = 0; i < n; i++) {
		const struct virtq_used_elem *e = &q->used->ring[slot(q, (uint16_t)(q->seen + i))];

		v[i].data = buffer(q, slot(q, (uint16_t)e->id)) + NET_HDR_SIZE;
		v[i].len = e->len - NET_HDR_SIZE;
	}
	return n;
}

void virtio_rx_release(uint32_t n)
{
	struct virtq *q = &net.rx;
	uint32_t i;

	for (i = 0; i < n; i++)
		recycle(q, q->used->ring[slot(q, q->seen)].id);
	publish(q, n);
}

bool virtio_rx_wants_kick(uint32_t n)
{
	return wants_kick(&net.rx, n);
}

void virtio_rx_kick(void)
{
	net.transport->notify(RX_QUEUE);
}

bool virtio_rx_arm(void)
{
	arm(&net.rx, 1);
	return net.rx.seen == net.rx.used_idx;
}

void virtio_rx_disarm(void)
{
	disarm(&net.rx);
}
