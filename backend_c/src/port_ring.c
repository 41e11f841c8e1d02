/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * port_ring.c - passthrough and app ports, control side: attaching a region, the peer's status handshake
 *
 * What the header says is for the peer. The host keeps its own copy of everything it relies on; of the peer's half it copies each
 * word once.
 */
#define _GNU_SOURCE
#include "port_ring.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine.h"
#include "fd.h"

static struct vpt_hdr *hdr_of(const struct vpti_ring_port *rp)
{
	return rp->base;
}

static void set_host_status(struct vpti_ring_port *rp, uint32_t status, int error)
{
	VPTI_WRITE(hdr_of(rp)->host_error, (uint32_t)error);
	VPTI_STORE_RELEASE(hdr_of(rp)->host_status, status);
	rp->host_status = status;
	vpti_eventfd_signal_peer(rp->intr_fd[VPT_VEC_CFG(rp->layout.pairs)]);
}

/* Point queue i at its ring. Nothing is live. */
static void bind_ring(struct vpti_ring_port *rp, struct vpti_ring *r, uint32_t index)
{
	struct vpt_nm_ring *nm = (void *)((char *)rp->base + rp->layout.ring_ofs[index]);

	r->atok = (struct vpt_csb_atok *)(void *)((char *)rp->base + VPT_CSB_ATOK_OFS) + index;
	r->ktoa = (struct vpt_csb_ktoa *)(void *)((char *)rp->base + VPT_CSB_KTOA_OFS) + index;
	r->slot = nm->slot;
	r->bufs = (uint8_t *)rp->base + rp->layout.buf_pool_ofs;
	r->n = rp->layout.num_slots;
	r->buf_size = rp->layout.buf_size;
	r->num_bufs = rp->layout.num_bufs;
	r->intr_fd = rp->intr_fd[index];
}

static void set_features(struct vpt_port *p, uint64_t features)
{
	bool vnet = features & VPT_F_VNET_HDR;
	uint32_t i;

	p->features = features;
	p->accepts = vnet ? features : 0;
	p->sends = vnet ? features : 0;
	for (i = 0; i < p->opts.pairs; i++) {
		struct vpti_ring *r[2] = { &vpti_ring_txq(p->txq[i])->r, &vpti_ring_rxq(p->rxq[i])->r };
		uint32_t k;

		for (k = 0; k < 2; k++) {
			r[k]->hdr_len = vnet ? sizeof(struct vpt_vnet_hdr) : 0;
			r[k]->event_idx = features & VPT_F_EVENT_IDX;
		}
	}
}

/* Indices of ring i when the peer starts from scratch. */
static void reset_ring(struct vpti_ring *r, bool tx)
{
	r->cur = 0;
	r->tail = r->published = r->told = tx ? r->n - 1 : 0;
	r->seen = 0;
	VPTI_WRITE(r->ktoa->kern_need_kick, 0);
	VPTI_WRITE(r->ktoa->kick_at, 0);
	VPTI_WRITE(r->ktoa->hwcur, 0);
	VPTI_WRITE(r->ktoa->hwtail, r->tail);
}

/*
 * Go on where an earlier daemon stopped. The indices come from memory that the peer can write: a wrong one makes the peer lose or repeat its
 * own packets, and one outside the ring makes us start it afresh.
 */
static int resume_ring(struct vpti_ring *r, bool tx)
{
	uint32_t hwcur = VPTI_READ(r->ktoa->hwcur), hwtail = VPTI_READ(r->ktoa->hwtail);

	if (hwcur >= r->n || hwtail >= r->n)
		return -EINVAL;
	r->cur = hwcur;
	r->tail = r->published = r->told = tx ? (hwcur ? hwcur - 1 : r->n - 1) : hwtail;
	r->seen = hwcur;
	VPTI_WRITE(r->ktoa->kern_need_kick, 0);
	VPTI_WRITE(r->ktoa->hwtail, r->tail);
	return 0;
}

static void start_queues(struct vpt_port *p)
{
	uint32_t i;

	for (i = 0; i < p->opts.pairs; i++) {
		p->txq[i]->armed = p->txq[i]->dirty = false;
		p->txq[i]->kicked = true;
		p->txq[i]->last_src = UINT64_MAX;
		vpti_rxq_start(p->rxq[i]);
		p->txq[i]->live = true;
	}
	p->up = true;
	vpti_port_replan(p);
}

/* What the peer accepted, checked. */
static int peer_features(struct vpti_ring_port *rp, uint64_t *features)
{
	*features = VPTI_READ(hdr_of(rp)->peer_features);
	if (*features & ~vpti_region_features(&rp->opts))
		return -EINVAL;
	return vpti_features_check(*features);
}

static void copy_driver_name(struct vpti_ring_port *rp)
{
	uint32_t i;

	memcpy(rp->driver, hdr_of(rp)->driver, sizeof(rp->driver));
	rp->driver[sizeof(rp->driver) - 1] = '\0';
	for (i = 0; rp->driver[i]; i++) {
		if (rp->driver[i] < ' ' || rp->driver[i] > '~')
			rp->driver[i] = '?';
	}
}

static void peer_reset(struct vpt_port *p, struct vpti_ring_port *rp)
{
	uint32_t i;

	vpti_port_stop(p);
	vpti_port_revive(p);
	vpti_region_write_header(rp->base, &rp->opts, &rp->layout);
	vpti_region_write_rings(rp->base, &rp->opts, &rp->layout);
	set_features(p, 0);
	rp->driver[0] = '\0';
	for (i = 0; i < p->opts.pairs; i++) {
		reset_ring(&vpti_ring_txq(p->txq[i])->r, true);
		reset_ring(&vpti_ring_rxq(p->rxq[i])->r, false);
	}
	set_host_status(rp, VPT_S_RESET, 0);
}

int vpt_port_ring_status(vpt_port *p)
{
	struct vpti_ring_port *rp = p->priv;
	uint64_t features;
	uint32_t status;
	int rc;

	if (p->kind != &vpti_kind_ring)
		return -EINVAL;
	if (!rp->base)
		return -ENOTCONN;
	status = VPTI_LOAD_ACQUIRE(hdr_of(rp)->peer_status);
	if (status == VPT_S_RESET) {
		/* Told twice: the peer may be past it by now, so hands off what it is reading. */
		if (rp->host_status != VPT_S_RESET || p->up || VPTI_READ(p->broken))
			peer_reset(p, rp);
		return 0;
	}
	if (VPTI_READ(p->broken) || rp->host_status & VPT_S_FAILED)
		return 0; /* stays FAILED until the peer resets */
	if (status & VPT_S_FAILED) {
		vpti_port_stop(p);
	} else if (status & VPT_S_DRIVER_OK && !p->up) {
		if (VPTI_READ(hdr_of(rp)->peer_generation) != rp->generation)
			return 0; /* speaks of rings that are gone; it will notice and reset */
		rc = peer_features(rp, &features);
		if (rc) {
			set_host_status(rp, VPT_S_FAILED, -rc);
			return 0;
		}
		set_features(p, features);
		copy_driver_name(rp);
		start_queues(p);
	}
	set_host_status(rp, status, 0);
	return 0;
}

/* ---- attaching ---- */

static void close_fds(int *fd, uint32_t n)
{
	uint32_t i;

	for (i = 0; i < n; i++)
		vpti_fd_close(&fd[i]);
}

static int dup_fds(const int32_t *in, int *out, uint32_t n)
{
	uint32_t i;
	int rc;

	for (i = 0; i < n; i++)
		out[i] = -1;
	for (i = 0; i < n; i++) {
		rc = in[i] < 0 ? -EBADF : vpti_eventfd_dup(in[i], &out[i]);
		if (rc) {
			close_fds(out, n);
			return rc;
		}
	}
	return 0;
}

static int map_region(struct vpti_ring_port *rp, int fd)
{
	struct stat st;
	int seals = fcntl(fd, F_GET_SEALS);

	if (seals < 0 || !(seals & F_SEAL_SHRINK) || fstat(fd, &st) || (uint64_t)st.st_size < rp->layout.size)
		return -EBADF;
	rp->base = mmap(NULL, rp->layout.size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (rp->base == MAP_FAILED) {
		rp->base = NULL;
		return -errno;
	}
	return 0;
}

/* tx rings by kick, rx rings need none: the host never waits for room. Plus the doorbell for status changes. */
static int watch_all(struct vpt_port *p, struct vpti_ring_port *rp, const int32_t *kick_fds)
{
	uint32_t pairs = rp->layout.pairs, i;
	int rc;

	for (i = 0; i <= pairs; i++) {
		bool cfg = i == pairs;
		int fd;

		rc = vpti_eventfd_dup(kick_fds[cfg ? VPT_VEC_CFG(pairs) : i], &fd);
		if (rc)
			return rc;
		if (fd < 0)
			return -EBADF;
		if (cfg)
			rc = vpti_watch_add(p->worker, VPTI_WATCH_CFG, fd, p, NULL, &rp->watch[i]);
		else
			rc = vpti_watch_add(p->txq[i]->worker, VPTI_WATCH_KICK, fd, p, p->txq[i], &rp->watch[i]);
		close(fd);
		if (rc)
			return rc;
	}
	return 0;
}

static void detach(struct vpt_port *p, struct vpti_ring_port *rp)
{
	uint32_t i;

	if (!rp->base)
		return;
	vpti_port_stop(p);
	for (i = 0; i <= rp->layout.pairs; i++) {
		vpti_watch_del(rp->watch[i]);
		rp->watch[i] = NULL;
	}
	close_fds(rp->intr_fd, VPT_VEC_COUNT(rp->layout.pairs));
	munmap(rp->base, rp->layout.size);
	rp->base = NULL;
}

static bool resume(struct vpt_port *p, struct vpti_ring_port *rp)
{
	struct vpt_hdr *h = hdr_of(rp);
	uint64_t features;
	uint32_t i;

	if (!(VPTI_READ(h->peer_status) & VPT_S_DRIVER_OK) || !(VPTI_READ(h->host_status) & VPT_S_DRIVER_OK))
		return false;
	if (VPTI_READ(h->peer_generation) != rp->generation || peer_features(rp, &features))
		return false;
	for (i = 0; i < p->opts.pairs; i++) {
		if (resume_ring(&vpti_ring_txq(p->txq[i])->r, true) || resume_ring(&vpti_ring_rxq(p->rxq[i])->r, false))
			return false;
	}
	set_features(p, features);
	copy_driver_name(rp);
	vpti_region_write_header(rp->base, &rp->opts, &rp->layout);
	rp->host_status = VPTI_READ(h->host_status);
	start_queues(p);
	/* Whoever was here before may have published and died before it interrupted. */
	for (i = 0; i < VPT_VEC_COUNT(p->opts.pairs); i++)
		vpti_eventfd_signal_peer(rp->intr_fd[i]);
	return true;
}

int vpt_port_ring_attach(vpt_port *p, int region_fd, const struct vpt_region_opts *opts, const int32_t *kick_fds,
			 const int32_t *intr_fds)
{
	struct vpti_ring_port *rp = p->priv;
	uint32_t i;
	int rc;

	if (p->kind != &vpti_kind_ring)
		return -EINVAL;
	if (rp->base)
		return -EBUSY;
	rc = vpti_layout(opts, &rp->layout);
	if (rc || opts->pairs != p->opts.pairs)
		return -EINVAL;
	rp->opts = *opts;
	rc = dup_fds(intr_fds, rp->intr_fd, VPT_VEC_COUNT(opts->pairs));
	if (rc)
		return rc;
	rc = map_region(rp, region_fd);
	if (rc) {
		close_fds(rp->intr_fd, VPT_VEC_COUNT(opts->pairs));
		return rc;
	}
	for (i = 0; i < opts->pairs; i++) {
		bind_ring(rp, &vpti_ring_txq(p->txq[i])->r, i);
		bind_ring(rp, &vpti_ring_rxq(p->rxq[i])->r, opts->pairs + i);
	}
	rc = watch_all(p, rp, kick_fds);
	if (rc) {
		detach(p, rp);
		return rc;
	}
	rp->generation = VPTI_READ(hdr_of(rp)->generation);
	if (!resume(p, rp)) {
		if (VPTI_READ(hdr_of(rp)->peer_status) != VPT_S_RESET && !++rp->generation)
			rp->generation = 1; /* a peer that was running finds its generation gone and starts over */
		VPTI_WRITE(hdr_of(rp)->generation, rp->generation);
		peer_reset(p, rp);
	}
	VPTI_WRITE(hdr_of(rp)->link, p->link);
	/* Whatever the peer rang for while nobody listened. */
	vpt_port_ring_status(p);
	vpti_eventfd_signal_peer(rp->intr_fd[VPT_VEC_CFG(rp->layout.pairs)]);
	return 0;
}

/* ---- the kind ---- */

static int ring_init(struct vpt_port *p)
{
	uint32_t i;
	int rc;

	p->priv = calloc(1, sizeof(struct vpti_ring_port));
	if (!p->priv)
		return -ENOMEM;
	for (i = 0; i < p->opts.pairs; i++) {
		rc = vpti_queue_new(p, i, sizeof(struct vpti_ring_txq), sizeof(struct vpti_ring_rxq));
		if (rc)
			return rc;
		p->txq[i]->ops = &vpti_ring_txq_ops;
		p->rxq[i]->ops = &vpti_ring_rxq_ops;
	}
	return 0;
}

static void ring_fini(struct vpt_port *p)
{
	if (p->priv)
		detach(p, p->priv);
	vpti_queues_free(p);
	free(p->priv);
	p->priv = NULL;
}

static void ring_broken(struct vpt_port *p)
{
	struct vpti_ring_port *rp = p->priv;

	if (rp->base)
		set_host_status(rp, VPT_S_FAILED, EIO);
}

static void ring_link(struct vpt_port *p)
{
	struct vpti_ring_port *rp = p->priv;

	if (!rp->base)
		return;
	VPTI_WRITE(hdr_of(rp)->link, p->link);
	vpti_eventfd_signal_peer(rp->intr_fd[VPT_VEC_CFG(rp->layout.pairs)]);
}

static void ring_state(const struct vpt_port *p, struct vpt_port_state *out)
{
	const struct vpti_ring_port *rp = p->priv;

	out->peer_status = rp->host_status;
	memcpy(out->driver, rp->driver, sizeof(out->driver));
}

const struct vpti_kind_ops vpti_kind_ring = {
	.init = ring_init, .fini = ring_fini, .broken = ring_broken, .link = ring_link, .state = ring_state,
};
