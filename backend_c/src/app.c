/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * app.c - the application's side of a region: what vpt_net is to a guest, this is to a host process
 *
 * The host is trusted here (it is our own daemon), but its indices are checked all the same: a region may be older than
 * the library.
 */
#define _GNU_SOURCE
#include "app.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "fd.h"
#include "notify.h"
#include "region.h"

static uint32_t ring_next(const struct vpti_app_ring *r, uint32_t i)
{
	return i + 1 == r->n ? 0 : i + 1;
}

static void kick(vpt_app *a, uint32_t vector)
{
	vpti_eventfd_signal(a->kick_fd[vector]);
}

static void set_status(vpt_app *a, uint32_t status)
{
	a->status = status;
	VPTI_STORE_RELEASE(a->hdr->peer_status, status);
	kick(a, VPT_VEC_CFG(a->pairs));
}

/* Where everything is, from the header, each value checked against the size of the mapping. */
static int read_header(vpt_app *a)
{
	struct vpt_region_opts opts = { 0 };
	struct vpti_layout l;
	uint32_t i;

	if (VPTI_READ(a->hdr->magic) != VPT_MAGIC || VPTI_READ(a->hdr->abi_version) != VPT_ABI_VERSION)
		return -EPROTO;
	opts.pairs = VPTI_READ(a->hdr->pairs);
	opts.num_slots = VPTI_READ(a->hdr->num_slots);
	opts.buf_size = VPTI_READ(a->hdr->buf_size);
	if (vpti_layout(&opts, &l) || l.size > a->size || VPTI_READ(a->hdr->buf_pool_ofs) != l.buf_pool_ofs)
		return -EPROTO;
	a->pairs = l.pairs;
	a->num_bufs = l.num_bufs;
	a->buf_size = l.buf_size;
	for (i = 0; i < 2 * l.pairs; i++) {
		struct vpti_app_ring *r = &a->ring[i];

		r->nm = (void *)((char *)a->hdr + l.ring_ofs[i]);
		r->atok = (struct vpt_csb_atok *)(void *)((char *)a->hdr + VPT_CSB_ATOK_OFS) + i;
		r->ktoa = (struct vpt_csb_ktoa *)(void *)((char *)a->hdr + VPT_CSB_KTOA_OFS) + i;
		r->bufs = (uint8_t *)a->hdr + l.buf_pool_ofs;
		r->n = l.num_slots;
	}
	return 0;
}

static int dup_all(const int32_t *in, int *out, uint32_t n)
{
	uint32_t i;

	for (i = 0; i < n; i++) {
		int rc = vpti_eventfd_dup(in[i], &out[i]);

		if (rc)
			return rc;
	}
	return 0;
}

int vpt_app_open(int region_fd, const int32_t *kick_fds, const int32_t *intr_fds, uint64_t features, vpt_app **out)
{
	vpt_app *a = calloc(1, sizeof(*a));
	struct stat st;
	int rc = -ENOMEM;
	uint32_t i;

	if (!a)
		return rc;
	for (i = 0; i < VPTI_ARRAY_SIZE(a->kick_fd); i++)
		a->kick_fd[i] = a->intr_fd[i] = -1;
	rc = -EBADF;
	if (fstat(region_fd, &st) || (uint64_t)st.st_size < VPT_HDR_SIZE)
		goto err;
	a->size = (size_t)st.st_size;
	a->hdr = mmap(NULL, a->size, PROT_READ | PROT_WRITE, MAP_SHARED, region_fd, 0);
	if (a->hdr == MAP_FAILED) {
		a->hdr = NULL;
		rc = -errno;
		goto err;
	}
	rc = read_header(a);
	if (rc)
		goto err;
	rc = dup_all(kick_fds, a->kick_fd, VPT_VEC_COUNT(a->pairs));
	if (!rc)
		rc = dup_all(intr_fds, a->intr_fd, VPT_VEC_COUNT(a->pairs));
	if (rc)
		goto err;
	a->want = features;
	set_status(a, VPT_S_RESET);
	*out = a;
	return 0;
err:
	vpt_app_close(a);
	return rc;
}

void vpt_app_close(vpt_app *a)
{
	uint32_t i;

	if (a->hdr) {
		if (a->status != VPT_S_RESET)
			set_status(a, VPT_S_RESET);
		munmap(a->hdr, a->size);
	}
	for (i = 0; i < VPTI_ARRAY_SIZE(a->kick_fd); i++) {
		vpti_fd_close(&a->kick_fd[i]);
		vpti_fd_close(&a->intr_fd[i]);
	}
	free(a);
}

static void reset_rings(vpt_app *a)
{
	uint32_t i;

	for (i = 0; i < 2 * a->pairs; i++) {
		struct vpti_app_ring *r = &a->ring[i];

		r->head = r->sent = r->told = 0;
		r->tail = i < a->pairs ? r->n - 1 : 0;
		memset(r->atok, 0, sizeof(*r->atok));
		r->nm->head = r->nm->cur = 0;
		r->nm->tail = r->tail;
	}
}

int vpt_app_step(vpt_app *a)
{
	uint32_t host = VPTI_LOAD_ACQUIRE(a->hdr->host_status);

	vpti_eventfd_take(a->intr_fd[VPT_VEC_CFG(a->pairs)]);
	if (a->status == VPT_S_DRIVER_OK && VPTI_READ(a->hdr->generation) != a->generation)
		set_status(a, VPT_S_RESET);
	if (host & VPT_S_FAILED && a->status != VPT_S_RESET)
		return -(int)VPTI_READ(a->hdr->host_error);
	if (host != a->status)
		return 0;
	if (a->status == VPT_S_DRIVER_OK)
		return 1;
	reset_rings(a);
	a->features = a->want & VPTI_READ(a->hdr->host_features);
	a->hdr_len = a->features & VPT_F_VNET_HDR ? sizeof(struct vpt_vnet_hdr) : 0;
	a->event_idx = a->features & VPT_F_EVENT_IDX;
	a->generation = VPTI_READ(a->hdr->generation);
	a->hdr->peer_features = a->features;
	a->hdr->peer_generation = a->generation;
	snprintf(a->hdr->driver, sizeof(a->hdr->driver), "libvpt app");
	set_status(a, VPT_S_DRIVER_OK);
	return 0;
}

uint32_t vpt_app_pairs(const vpt_app *a)
{
	return a->pairs;
}

uint64_t vpt_app_features(const vpt_app *a)
{
	return a->features;
}

int vpt_app_intr_fd(const vpt_app *a, uint32_t vector)
{
	return vector < VPT_VEC_COUNT(a->pairs) ? a->intr_fd[vector] : -EINVAL;
}

/* ---- rings ---- */

int vpti_app_sync(vpt_app *a, struct vpti_app_ring *r)
{
	uint32_t tail = VPTI_LOAD_ACQUIRE(r->ktoa->hwtail); /* pairs with the host's release in ring.c */

	if (vpti_unlikely(VPTI_READ(a->hdr->generation) != a->generation || a->status != VPT_S_DRIVER_OK))
		return -ENOLINK;
	if (vpti_unlikely(tail >= r->n))
		return -EPROTO;
	r->tail = tail;
	return 0;
}

void vpti_app_publish(vpt_app *a, struct vpti_app_ring *r, uint32_t vector)
{
	uint32_t old = r->told;

	VPTI_WRITE(r->atok->cur, r->head);
	VPTI_STORE_RELEASE(r->atok->head, r->head); /* pairs with the host's acquire of head in ring.c */
	r->sent = r->told = r->head;
	vpti_published();
	if (vpti_csb_due(&r->ktoa->kern_need_kick, &r->ktoa->kick_at, old, r->head, r->n, a->event_idx))
		kick(a, vector);
}

static uint32_t room(const struct vpti_app_ring *r)
{
	return r->tail >= r->head ? r->tail - r->head : r->tail + r->n - r->head;
}

int vpt_app_send(vpt_app *a, uint32_t ring, const struct vpt_vnet_hdr *hdr, const void *frame, uint32_t len, int more)
{
	static const struct vpt_vnet_hdr plain;
	struct vpti_app_ring *r = &a->ring[ring];
	uint32_t total = len + a->hdr_len, need, at, done = 0;
	int rc;

	if (ring >= a->pairs)
		return -EINVAL;
	need = (total + a->buf_size - 1) / a->buf_size;
	if (!len || need > (a->hdr_len ? VPT_MAX_FRAGS : 1u))
		return -EMSGSIZE;
	if (room(r) < need || a->status != VPT_S_DRIVER_OK) {
		rc = vpti_app_sync(a, r);
		if (rc)
			return rc;
	}
	if (room(r) < need) {
		if (r->sent != r->head)
			vpti_app_publish(a, r, VPT_VEC_TX(a->pairs, ring));
		return -EAGAIN;
	}
	for (at = r->head; need--; at = ring_next(r, at)) {
		uint32_t ofs = done ? 0 : a->hdr_len;
		uint32_t k = VPTI_MIN(len - done, a->buf_size - ofs);
		uint8_t *buf = vpti_app_buf(a, r, at);

		if (!buf)
			return -EPROTO;
		memcpy(buf, hdr ? hdr : &plain, ofs);
		memcpy(buf + ofs, (const uint8_t *)frame + done, k);
		done += k;
		r->nm->slot[at].len = (uint16_t)(k + ofs);
		r->nm->slot[at].flags = need ? VPT_NS_MOREFRAG : 0;
	}
	r->head = at;
	if (!more)
		vpti_app_publish(a, r, VPT_VEC_TX(a->pairs, ring));
	return 0;
}

int vpt_app_recv(vpt_app *a, uint32_t ring, struct vpt_vnet_hdr *hdr, void *frame, uint32_t cap)
{
	struct vpti_app_ring *r = &a->ring[a->pairs + ring];
	uint32_t skip = a->hdr_len, total = 0;
	uint16_t flags;
	int rc;

	if (ring >= a->pairs)
		return -EINVAL;
	if (r->head == r->tail) {
		rc = vpti_app_sync(a, r);
		if (rc)
			return rc;
		if (r->head == r->tail)
			return -EAGAIN;
	}
	do {
		const uint8_t *buf = vpti_app_buf(a, r, r->head);
		uint32_t len = VPTI_READ(r->nm->slot[r->head].len);

		flags = VPTI_READ(r->nm->slot[r->head].flags);
		if (!buf || len > a->buf_size || len < skip)
			return -EPROTO;
		if (skip && hdr)
			memcpy(hdr, buf, sizeof(*hdr));
		if (total < cap)
			memcpy((uint8_t *)frame + total, buf + skip, VPTI_MIN(len - skip, cap - total));
		total += len - skip;
		skip = 0;
		r->head = ring_next(r, r->head);
	} while (flags & VPT_NS_MOREFRAG && r->head != r->tail);
	VPTI_WRITE(r->atok->cur, r->head);
	VPTI_STORE_RELEASE(r->atok->head, r->head); /* read: pairs with the host's acquire of head in reserve() */
	return (int)total;
}

/*
 * Sleep until the vector's interrupt, a change of status or link, or `end`. Slices, because whoever of several threads takes the CFG
 * interrupt takes it from all. Return: 1 look again, 0 time is up, -errno.
 */
static int app_sleep(vpt_app *a, uint32_t vector, uint64_t end)
{
	uint32_t cfg = VPT_VEC_CFG(a->pairs);
	struct pollfd pfd[2] = { { .fd = a->intr_fd[vector], .events = POLLIN }, { .fd = a->intr_fd[cfg], .events = POLLIN } };
	uint64_t now = vpti_now_ns(), left_ms;

	if (now >= end)
		return 0;
	left_ms = (end - now + 999999) / 1000000;
	if (poll(pfd, 2, (int)VPTI_MIN(left_ms, 100u)) < 0)
		return -errno;
	vpti_eventfd_take(a->intr_fd[vector]);
	vpti_eventfd_take(a->intr_fd[cfg]);
	return 1;
}

int vpt_app_wait(vpt_app *a, uint32_t ring, int dir, int timeout_ms)
{
	uint64_t end = timeout_ms < 0 ? UINT64_MAX : vpti_now_ns() + (uint64_t)timeout_ms * 1000000;
	struct vpti_app_ring *r;
	int rc;

	if (ring >= a->pairs)
		return -EINVAL;
	r = &a->ring[dir ? a->pairs + ring : ring];
	do {
		rc = vpti_app_sync(a, r);
		if (rc || r->tail != r->head)
			break;
		vpti_csb_wish(&r->atok->appl_need_kick, &r->atok->intr_at, r->tail);
		vpti_wished();
		rc = vpti_app_sync(a, r);
		if (rc || r->tail != r->head)
			break;
		rc = app_sleep(a, dir ? VPT_VEC_RX(a->pairs, ring) : VPT_VEC_TX(a->pairs, ring), end);
	} while (rc > 0);
	VPTI_WRITE(r->atok->appl_need_kick, 0);
	return rc < 0 ? rc : r->tail != r->head;
}
