/* SPDX-License-Identifier: BSD-2-Clause */
/* bench_vq.c - the driver side of two virtqueues: what `vpt bench run vhost-user-latency` holds against every back-end alike */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>

#include "fd.h"
#include "notify.h"
#include "virtq.h"
#include "vpt/vpt_bench.h"

#define HDR_LEN 12u
#define STAMP_AT (HDR_LEN + VPTI_ETH_HLEN) /* where a packet carries the time it was sent at */
#define DRAIN_NS 2000000000u
#define STALL_NS DRAIN_NS

/* The addresses, as what they are. */
struct ring {
	struct vpti_desc *desc;
	struct vpti_avail *avail;
	const struct vpti_used *used;
	struct vpt_bench_vq_ring *at;
};

static struct ring view(struct vpt_bench_vq_ring *at)
{
	return (struct ring){ .desc = (void *)(uintptr_t)at->desc, .avail = (void *)(uintptr_t)at->avail,
			      .used = (const void *)(uintptr_t)at->used, .at = at };
}

static uint8_t *buffer(const struct ring *r, uint32_t i)
{
	return (uint8_t *)(uintptr_t)r->at->buffers + (size_t)i * r->at->buffer_size;
}

/* Chains that the device has, or has finished unseen. */
static uint16_t in_flight(const struct ring *r)
{
	return (uint16_t)(r->avail->idx - r->at->seen);
}

/* The next descriptor, which is always free when fewer than num are in flight: both back-ends finish in order. */
static uint32_t next_slot(const struct ring *r)
{
	return r->avail->idx & (r->at->num - 1);
}

static void make_available(struct ring *r, uint32_t len, uint16_t flags)
{
	uint32_t i = next_slot(r);

	r->desc[i] = (struct vpti_desc){
		.addr = r->at->buffers_gpa + (uint64_t)i * r->at->buffer_size, .len = len, .flags = flags,
	};
	VPTI_WRITE(r->avail->ring[i], (uint16_t)i);
	/* Pairs with the device's acquire of avail->idx (2.7.13.3). */
	VPTI_STORE_RELEASE(r->avail->idx, (uint16_t)(r->avail->idx + 1));
}

static void post_all(struct ring *rx)
{
	while (in_flight(rx) < rx->at->num)
		make_available(rx, rx->at->buffer_size, VPTI_DESC_WRITE);
}

static uint64_t kick(const struct ring *r)
{
	vpti_published();
	if (VPTI_READ(r->used->flags) & VPTI_USED_NO_NOTIFY)
		return 0;
	vpti_eventfd_signal(r->at->kick_fd);
	return 1;
}

static void send(struct ring *tx, struct vpt_bench_vq *b)
{
	uint8_t *p = buffer(tx, next_slot(tx));
	uint64_t now;

	memset(p, 0, HDR_LEN);
	memcpy(p + HDR_LEN, b->dst, 6);
	memcpy(p + HDR_LEN + 6, b->src, 6);
	memcpy(p + HDR_LEN + 12, "\x88\xb5", 2);
	now = vpti_now_ns();
	memcpy(p + STAMP_AT, &now, sizeof(now));
	make_available(tx, HDR_LEN + b->frame_len, 0);
	b->kicks += kick(tx);
}

/* Pairs with the device's release of used->idx (2.7.14). */
static bool came(const struct ring *r)
{
	return (uint16_t)r->at->seen != VPTI_LOAD_ACQUIRE(r->used->idx);
}

static void receive(struct ring *rx, struct vpt_bench_vq *b)
{
	uint64_t *latency = (uint64_t *)(uintptr_t)b->latency_ns;

	while (came(rx)) {
		uint32_t id = VPTI_READ(rx->used->ring[rx->at->seen & (rx->at->num - 1)].id) & (rx->at->num - 1);
		uint64_t sent;

		memcpy(&sent, buffer(rx, id) + STAMP_AT, sizeof(sent));
		if (b->received < b->packets)
			latency[b->received++] = vpti_now_ns() - sent;
		rx->at->seen = (uint16_t)(rx->at->seen + 1);
	}
	post_all(rx);
}

int vpt_bench_vq(struct vpt_bench_vq *b)
{
	struct ring tx = view(&b->tx), rx = view(&b->rx);
	uint64_t sent = 0, now = vpti_now_ns(), due = now, last = now;

	if (b->frame_len < 60 || b->frame_len > 1514 || b->tx.num & (b->tx.num - 1) || b->rx.num & (b->rx.num - 1) ||
	    b->tx.buffer_size < HDR_LEN + b->frame_len || b->rx.buffer_size < HDR_LEN + b->frame_len)
		return -EINVAL;
	b->received = b->kicks = b->late = 0;
	/* It polls. One that asked for interrupts would have the back-end in a system call for every packet. */
	VPTI_WRITE(tx.avail->flags, VPTI_AVAIL_NO_INTERRUPT);
	VPTI_WRITE(rx.avail->flags, VPTI_AVAIL_NO_INTERRUPT);
	post_all(&rx);
	while (b->received < b->packets && (sent < b->packets || now - last < DRAIN_NS)) {
		now = vpti_now_ns();
		b->tx.seen = VPTI_LOAD_ACQUIRE(tx.used->idx);
		if (sent < b->packets && now >= due && in_flight(&tx) < b->tx.num) {
			send(&tx, b);
			b->late += now - due > b->gap_ns;
			sent++;
			last = now;
			due += b->gap_ns;
		} else if (sent < b->packets && now - last > STALL_NS + b->gap_ns) {
			return -ETIMEDOUT;
		}
		receive(&rx, b);
	}
	return 0;
}
