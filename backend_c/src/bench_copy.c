/* SPDX-License-Identifier: BSD-2-Clause */
/* bench_copy.c - what `vpt bench run switch-copy` runs at full speed: app port to app port, and the same bytes by memcpy */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "app.h"
#include "notify.h"
#include "region.h"
#include "util.h"
#include "vpt/vpt_bench.h"

#define SEND_BURST 256u
#define STALL_NS 10000000000u
#define MARK 0x62656e6368766d70ull

static void fill_frame(uint8_t *f, uint32_t len, uint32_t flow)
{
	const uint64_t mark = MARK;

	memset(f, 0x5a, len);
	memcpy(f, "\x02\x76\x70\x74\xff\x00", 6);
	f[4] = (uint8_t)(flow >> 8);
	f[5] = (uint8_t)flow;
	memcpy(f + 6, "\x02\x76\x70\x74\x00\x01\x88\xb5", 8);
	memcpy(f + 14, &mark, sizeof(mark));
}

/* Every buffer holds a frame already: what is measured is the switch, not the source. */
static int prefill(vpt_app *a, const struct vpt_bench_copy *b)
{
	struct vpti_app_ring *r = &a->ring[0];
	uint32_t i;

	if (a->hdr_len || b->frame_len > a->buf_size)
		return -EINVAL;
	for (i = 0; i < r->n; i++) {
		uint8_t *buf = vpti_app_buf(a, r, i);

		if (!buf)
			return -EPROTO;
		fill_frame(buf, b->frame_len, i % b->flows);
		r->nm->slot[i].len = (uint16_t)b->frame_len;
		r->nm->slot[i].flags = 0;
	}
	return 0;
}

static uint32_t send_burst(vpt_app *a, struct vpti_app_ring *r, uint64_t limit)
{
	uint32_t n = r->tail >= r->head ? r->tail - r->head : r->tail + r->n - r->head;

	n = VPTI_MIN(n, SEND_BURST);
	n = (uint32_t)VPTI_MIN(n, limit);
	if (!n)
		return 0;
	r->head = r->head + n >= r->n ? r->head + n - r->n : r->head + n;
	vpti_app_publish(a, r, VPT_VEC_TX(a->pairs, 0));
	return n;
}

static uint32_t drain(vpt_app *a, struct vpti_app_ring *r, const struct vpt_bench_copy *b, uint64_t *bad)
{
	uint32_t n = 0;

	while (r->head != r->tail) {
		const uint8_t *buf = vpti_app_buf(a, r, r->head);
		uint64_t mark = 0;

		if (buf)
			memcpy(&mark, buf + 14, sizeof(mark));
		*bad += mark != MARK || VPTI_READ(r->nm->slot[r->head].len) != b->frame_len;
		r->head = r->head + 1 == r->n ? 0 : r->head + 1;
		n++;
	}
	if (n)
		VPTI_STORE_RELEASE(r->atok->head, r->head);
	return n;
}

int vpt_bench_copy(vpt_app *from, vpt_app *to, struct vpt_bench_copy *b)
{
	struct vpti_app_ring *tx = &from->ring[0], *rx = &to->ring[to->pairs];
	uint64_t start, last;
	int rc;

	if (b->frame_len < 60 || b->frame_len > 1514 || !b->flows || b->flows > 65535)
		return -EINVAL;
	rc = prefill(from, b);
	if (rc)
		return rc;
	b->sent = b->received = b->bad = 0;
	start = last = vpti_now_ns();
	while (b->received < b->packets) {
		uint32_t n;

		rc = vpti_app_sync(from, tx);
		if (!rc)
			rc = vpti_app_sync(to, rx);
		if (rc)
			return rc;
		/* Never more under way than the receiver's ring holds: what is measured is copying, not dropping. */
		b->sent += send_burst(from, tx, VPTI_MIN(rx->n - 1 - (b->sent - b->received), b->packets - b->sent));
		n = drain(to, rx, b, &b->bad);
		b->received += n;
		if (n) {
			last = vpti_now_ns();
		} else if (vpti_now_ns() - last > STALL_NS) {
			return -ETIMEDOUT;
		} else {
			vpti_cpu_relax();
		}
	}
	b->ns = last - start;
	return 0;
}

int vpt_bench_memcpy(struct vpt_bench_copy *b)
{
	struct vpt_region_opts opts = { .pairs = 1 };
	uint8_t *from, *to;
	struct vpti_layout l;
	uint64_t start, i;
	int rc = vpti_layout(&opts, &l);

	if (rc || b->frame_len < 60 || b->frame_len > l.buf_size)
		return -EINVAL;
	from = malloc((size_t)l.num_slots * l.buf_size);
	to = malloc((size_t)l.num_slots * l.buf_size);
	if (!from || !to) {
		free(from);
		free(to);
		return -ENOMEM;
	}
	memset(from, 1, (size_t)l.num_slots * l.buf_size);
	memset(to, 2, (size_t)l.num_slots * l.buf_size);
	start = vpti_now_ns();
	for (i = 0; i < b->packets; i++) {
		size_t ofs = (size_t)(i % l.num_slots) * l.buf_size;

		memcpy(to + ofs, from + ofs, b->frame_len);
		__asm__ __volatile__("" : : "r"(to) : "memory");
	}
	b->ns = vpti_now_ns() - start;
	b->sent = b->received = b->packets;
	b->bad = 0;
	free(from);
	free(to);
	return 0;
}
