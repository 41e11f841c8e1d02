/* SPDX-License-Identifier: BSD-2-Clause */
/* port_vhost.c - vhost-user ports, control side: memory table, features, starting and stopping rings */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine.h"
#include "fd.h"
#include "port_vhost.h"
#include "rcu.h"
#include "region.h"
#include "take.h"
#include "virtq.h"

#define F_PROTOCOL_FEATURES (1ull << 30) /* between the front-end and whoever speaks the socket protocol */

#define FEATURES                                                                                                       \
	(VPTI_F_VERSION_1 | VPTI_F_MRG_RXBUF | VPTI_F_INDIRECT_DESC | VPTI_F_EVENT_IDX | VPTI_F_RING_PACKED |          \
	 VPTI_F_IN_ORDER | VPT_F_CSUM | VPT_F_GUEST_CSUM | VPT_F_GUEST_TSO4 | VPT_F_GUEST_TSO6 | VPT_F_GUEST_ECN |     \
	 VPT_F_HOST_TSO4 | VPT_F_HOST_TSO6 | VPT_F_HOST_ECN | VPT_F_GUEST_USO4 | VPT_F_GUEST_USO6 | VPT_F_HOST_USO |   \
	 VPT_F_MTU | VPT_F_MAC | VPT_F_STATUS | F_CTRL | F_MQ | VPTI_F_LOG_ALL)

/* The front-end handles the control queue; the back-end's bits only permit it (QEMU, hw/net/vhost_net.c). */
#define F_CTRL ((1ull << 17) | (1ull << 18) | (1ull << 19) | (1ull << 21) | (1ull << 23))
#define F_MQ (1ull << 22)
/*
 * A legacy driver has no feature bits beyond the 31st. That MQ, GUEST_ANNOUNCE and CTRL_* come without CTRL_VQ is no fault here:
 * DPDK's virtio-user and QEMU keep that bit, whose queue they serve, to themselves.
 */
#define NEEDS_VERSION_1 (VPTI_F_RING_PACKED | VPTI_F_IN_ORDER)

uint64_t vpt_vhost_features(void)
{
	return FEATURES;
}

uint32_t vpt_vhost_max_mem_regions(void)
{
	return VPT_MAX_MEM_REGIONS;
}

/* Features and what follows from them; the layout of the rings, above all. No ring runs. */
static void take_features(struct vpt_port *p, uint64_t features)
{
	uint32_t i;

	p->features = p->accepts = p->sends = features;
	for (i = 0; i < p->opts.pairs; i++) {
		p->txq[i]->ops = vpti_vhost_layout(p)->tx;
		p->rxq[i]->ops = vpti_vhost_layout(p)->rx;
	}
}

/* ---- features ---- */

int vpt_vhost_set_features(vpt_port *p, uint64_t features)
{
	/* QEMU with csum=off offers segmentation all the same, and Linux' driver accepts it: to be used as if it had not. */
	uint64_t f = vpti_features_usable(features & ~F_PROTOCOL_FEATURES);
	bool over;

	if (vpti_vhost_check(p, 0) || f & ~FEATURES)
		return -EINVAL;
	if (f & NEEDS_VERSION_1 && !(f & VPTI_F_VERSION_1))
		return -EINVAL;
	if (vpti_vhost_runs(p) && (f ^ p->features) & ~VPTI_F_LOG_ALL)
		return -EBUSY;
	if (vpti_vhost_log(p, f) && !vpti_vhost_log_covers(p, vpti_vhost_log(p, f), ((struct vpti_vhost *)p->priv)->mem))
		return -ERANGE;
	over = p->features & ~f & VPTI_F_LOG_ALL;
	if (vpti_vhost_runs(p))
		p->features = f;
	else
		take_features(p, f);
	vpti_vhost_log_apply(p);
	if (over) /* the next migration brings its own; this one may be too small by then */
		vpti_vhost_log_drop(p->priv);
	return 0;
}

/* ---- rings ---- */

/* Which queues are live follows from the rings' state; the port is quiescent or the change is one that starts only. */
static void apply(vpt_port *p)
{
	const struct vpti_vhost *vh = p->priv;
	uint32_t i;

	p->up = false;
	for (i = 0; i < 2 * p->opts.pairs; i++) {
		const struct vpti_vring *r = &vh->ring[i];
		bool live = r->running && (vpti_vring_is_tx(i) || r->enabled);

		if (vpti_vring_is_tx(i)) {
			struct vpti_txq *q = p->txq[i / 2];

			VPTI_WRITE(q->discard, !r->enabled);
			q->polled = r->cfg.kick_fd < 0 || r->unheard;
			if (r->enabled || q->polled)
				VPTI_WRITE(q->aside, false);
			if (live && !q->live) {
				q->dirty = false;
				q->kicked = true;
				q->last_src = UINT64_MAX;
			}
			q->live = live;
		} else if (live && !p->rxq[i / 2]->live) {
			vpti_rxq_start(p->rxq[i / 2]);
		}
		p->up |= live && r->enabled;
	}
	vpti_port_replan(p);
}

static int bind_ring(const struct vpt_port *p, struct vpti_virtq *v, const struct vpti_mem *mem,
		     const struct vpt_vring *cfg)
{
	int rc = vpti_vhost_layout(p)->bind(v, mem, cfg);

	if (rc)
		return rc;
	v->mem = mem;
	v->near = (struct vpti_mem_near){ 0 };
	v->num = (uint16_t)cfg->num;
	v->event_idx = p->features & VPTI_F_EVENT_IDX;
	v->indirect = p->features & VPTI_F_INDIRECT_DESC;
	v->mergeable = p->features & VPTI_F_MRG_RXBUF;
	v->in_order = p->features & VPTI_F_IN_ORDER;
	v->hdr_len = p->features & (VPTI_F_VERSION_1 | VPTI_F_MRG_RXBUF) ? 12 : 10;
	return 0;
}

bool vpti_virtq_call(const struct vpti_virtq *v)
{
	int fd = VPTI_READ(v->call_fd);

	if (fd < 0)
		return false;
	vpti_eventfd_signal_peer(fd);
	return true;
}

static int set_kick(struct vpt_port *p, uint32_t index, int32_t fd)
{
	struct vpti_vring *r = &((struct vpti_vhost *)p->priv)->ring[index];
	struct vpti_watch *watch = NULL;
	int copy, rc;

	rc = vpti_eventfd_dup(fd, &copy); /* also for a receive queue, whose kicks nobody waits for: it must be one all the same */
	if (rc)
		return rc;
	if (copy >= 0 && vpti_vring_is_tx(index))
		rc = vpti_watch_add(p->txq[index / 2]->worker, VPTI_WATCH_KICK, copy, p, p->txq[index / 2], &watch);
	vpti_fd_close(&copy);
	if (rc)
		return rc;
	vpti_watch_del(r->watch);
	r->watch = watch;
	r->cfg.kick_fd = fd < 0 ? -1 : 0; /* whether there is one is all that matters from here on */
	return 0;
}

/* Go on from the record of what is in flight, if the front-end keeps one for this ring, and keep it up to date. */
static int take_up_record(struct vpt_port *p, uint32_t index)
{
	const struct vpti_inflight_area *area = ((struct vpti_vhost *)p->priv)->inflight;
	const struct vpti_virtq_layout *layout = vpti_vhost_layout(p);
	struct vpti_virtq *v = vpti_vring_virtq(p, index);
	void *region;

	if (vpti_inflight_region(area, layout == &vpti_virtq_packed, index, v->num, &region))
		return -EILSEQ;
	if (region && layout->resume(v, region, area->queue_size))
		return -EILSEQ;
	v->inflight.region = region;
	if (vpti_vring_is_tx(index)) {
		p->txq[index / 2]->ops = region ? layout->recorded_tx : layout->tx;
		vpti_txq_check_memory(p->txq[index / 2]); /* the file may have been cut while we read it */
	} else {
		p->rxq[index / 2]->ops = region ? layout->recorded_rx : layout->rx;
		vpti_rxq_check_memory(p->rxq[index / 2]);
	}
	return 0;
}

/*
 * Before it is live: no kicks until a worker asks for some. But a disabled transmit ring is left aside until its first kick, when
 * it starts by the letter of the specification and what is in it is dropped. A front-end that comes back to us with
 * packets on their way and enables its rings last (DPDK's virtio-user, Cloud Hypervisor) would lose them all otherwise.
 * A kick from before counts for nothing: it may be one that the back-end before us did not live to hear.
 */
static void begin(struct vpt_port *p, uint32_t index, int32_t kick_fd)
{
	const struct vpti_virtq_layout *layout = vpti_vhost_layout(p);
	struct vpti_virtq *v = vpti_vring_virtq(p, index);
	bool aside = vpti_vring_is_tx(index) && kick_fd >= 0 && !((struct vpti_vhost *)p->priv)->ring[index].enabled;

	vpti_vhost_log_to_ring(p, index);
	if (vpti_vring_is_tx(index)) {
		p->txq[index / 2]->armed = aside;
		VPTI_WRITE(p->txq[index / 2]->aside, aside);
	}
	if (aside) {
		vpti_eventfd_take(kick_fd);
		layout->want_next(v);
	} else {
		layout->quiet(v);
	}
}

int vpt_vhost_vring_start(vpt_port *p, uint32_t index, const struct vpt_vring *ring)
{
	struct vpti_vhost *vh = p->priv;
	struct vpti_virtq *v;
	struct vpti_vring *r;
	int call, rc;

	if (vpti_vhost_check(p, index) || !ring->num || ring->num > VPT_MAX_RING)
		return -EINVAL;
	r = &vh->ring[index];
	if (r->running)
		return -EBUSY;
	if (!vpti_vhost_log_covers_ring(p, index, ring->num))
		return -ERANGE;
	v = vpti_vring_virtq(p, index);
	rc = bind_ring(p, v, vh->mem, ring);
	if (rc)
		return rc;
	vpti_vhost_layout(p)->set_base(v, ring->base);
	rc = take_up_record(p, index);
	if (rc)
		return rc;
	rc = vpti_eventfd_dup(ring->call_fd, &call);
	if (rc)
		return rc;
	begin(p, index, ring->kick_fd);
	rc = set_kick(p, index, ring->kick_fd);
	if (rc) {
		vpti_fd_close(&call);
		return rc;
	}
	r->cfg.num = ring->num;
	r->cfg.desc_uva = ring->desc_uva;
	r->cfg.avail_uva = ring->avail_uva;
	r->cfg.used_uva = ring->used_uva;
	v->call_fd = call;
	r->running = true;
	apply(p);
	/* What a back-end that died has published last may be known to nobody. */
	if (v->published)
		vpti_virtq_call(v);
	return 0;
}

/* Nothing is live: give up what a ring holds. */
static void close_ring(struct vpt_port *p, uint32_t index)
{
	struct vpti_vring *r = &((struct vpti_vhost *)p->priv)->ring[index];

	vpti_watch_del(r->watch);
	r->watch = NULL;
	vpti_fd_close(&vpti_vring_virtq(p, index)->call_fd);
	vpti_vring_virtq(p, index)->inflight.region = NULL;
	r->running = false;
}

/* Take one ring out of service, wait until nobody uses it. */
static void quiesce(struct vpt_port *p, uint32_t index)
{
	if (vpti_vring_is_tx(index))
		vpti_txq_stop(p->txq[index / 2]);
	else
		vpti_rxq_stop(p->rxq[index / 2]);
}

int vpt_vhost_vring_stop(vpt_port *p, uint32_t index, uint32_t *base)
{
	struct vpti_vhost *vh = p->priv;

	if (vpti_vhost_check(p, index))
		return -EINVAL;
	if (!vh->ring[index].running)
		return -ENOENT;
	quiesce(p, index);
	*base = vpti_vhost_layout(p)->base(vpti_vring_virtq(p, index));
	vpti_inflight_end(&vpti_vring_virtq(p, index)->inflight);
	close_ring(p, index);
	apply(p);
	return 0;
}

int vpt_vhost_vring_enable(vpt_port *p, uint32_t index, int enable)
{
	struct vpti_vhost *vh = p->priv;

	if (vpti_vhost_check(p, index))
		return -EINVAL;
	if (vh->ring[index].enabled == (enable != 0))
		return 0;
	vh->ring[index].enabled = enable != 0;
	if (!enable && !vpti_vring_is_tx(index))
		quiesce(p, index);
	apply(p);
	return 0;
}

int vpt_vhost_vring_set_kick(vpt_port *p, uint32_t index, int32_t fd)
{
	struct vpti_vhost *vh = p->priv;
	int rc;

	if (vpti_vhost_check(p, index))
		return -EINVAL;
	if (!vh->ring[index].running)
		return -ENOENT;
	rc = set_kick(p, index, fd);
	if (!rc)
		apply(p);
	return rc;
}

int vpt_vhost_vring_unheard(vpt_port *p, uint32_t index, int unheard)
{
	struct vpti_vhost *vh = p->priv;

	if (vpti_vhost_check(p, index))
		return -EINVAL;
	vh->ring[index].unheard = unheard != 0;
	apply(p);
	return 0;
}

/* Chains that have been given back, delivered or not. */
static uint64_t served(const struct vpti_txq *q)
{
	return VPTI_READ(q->c[VPT_C_TX_PACKETS]) + VPTI_READ(q->c[VPT_C_TX_DROP_DISABLED]);
}

int vpt_vhost_vring_kick(vpt_port *p, uint32_t index)
{
	struct vpti_vhost *vh = p->priv;
	struct vpti_txq *q;
	uint64_t begun, before;

	if (vpti_vhost_check(p, index))
		return -EINVAL;
	if (!vh->ring[index].running)
		return -ENOENT;
	q = p->txq[index / 2];
	begun = served(q);
	if (vpti_vring_is_tx(index))
		VPTI_WRITE(q->aside, false);
	/* In so many rounds each queue of the port has had its turn. The ring held no more than num chains when this began. */
	do {
		before = served(q);
		vpti_worker_rounds(q->worker, p->opts.pairs);
	} while (served(q) != before && served(q) - begun < vh->ring[index].cfg.num);
	return 0;
}

int vpt_vhost_vring_set_call(vpt_port *p, uint32_t index, int32_t fd)
{
	struct vpti_vhost *vh = p->priv;
	int old, copy, rc;

	if (vpti_vhost_check(p, index))
		return -EINVAL;
	if (!vh->ring[index].running)
		return -ENOENT;
	rc = vpti_eventfd_dup(fd, &copy);
	if (rc)
		return rc;
	old = vpti_vring_virtq(p, index)->call_fd;
	VPTI_WRITE(vpti_vring_virtq(p, index)->call_fd, copy);
	vpti_synchronize(); /* a worker may be writing to the old one */
	/* What it was told by the old one may not have been heard. */
	if (copy >= 0)
		vpti_eventfd_signal_peer(copy);
	vpti_fd_close(&old);
	return 0;
}

/* ---- memory ---- */

/* Put a new table in the place of the old one under rings that may be running. */
static int replace_mem(struct vpt_port *p, struct vpti_mem *mem)
{
	struct vpti_vhost *vh = p->priv;
	struct vpti_mem *old = vh->mem;
	struct vpti_virtq probe;
	uint32_t i;

	if (vpti_vhost_log(p, p->features) && !vpti_vhost_log_covers(p, vh->log, mem)) {
		vpti_mem_free(mem);
		return -ERANGE;
	}
	for (i = 0; i < 2 * p->opts.pairs; i++) {
		if (vh->ring[i].running && bind_ring(p, &probe, mem, &vh->ring[i].cfg)) {
			vpti_mem_free(mem);
			return -EFAULT;
		}
	}
	vpti_port_stop(p);
	for (i = 0; i < 2 * p->opts.pairs; i++) {
		if (vh->ring[i].running)
			bind_ring(p, vpti_vring_virtq(p, i), mem, &vh->ring[i].cfg);
	}
	vh->mem = mem;
	apply(p);
	vpti_mem_free(old);
	return 0;
}

static int change_mem(vpt_port *p, const struct vpti_mem *old, const struct vpt_mem_region *add, uint32_t n,
		      const struct vpt_mem_region *without)
{
	struct vpti_mem *mem;
	int rc = vpti_mem_build(old, add, n, without, &p->sigbus, &mem);

	return rc ? rc : replace_mem(p, mem);
}

int vpt_vhost_mem_set(vpt_port *p, const struct vpt_mem_region *regions, uint32_t n)
{
	return vpti_vhost_check(p, 0) ? -EINVAL : change_mem(p, NULL, regions, n, NULL);
}

int vpt_vhost_mem_add(vpt_port *p, const struct vpt_mem_region *region)
{
	return vpti_vhost_check(p, 0) ? -EINVAL : change_mem(p, ((struct vpti_vhost *)p->priv)->mem, region, 1, NULL);
}

int vpt_vhost_mem_del(vpt_port *p, const struct vpt_mem_region *region)
{
	return vpti_vhost_check(p, 0) ? -EINVAL : change_mem(p, ((struct vpti_vhost *)p->priv)->mem, NULL, 0, region);
}

uint64_t vpt_vhost_inflight_size(int packed, uint32_t queues, uint32_t queue_size)
{
	return vpti_inflight_size(packed, queues, queue_size);
}

int vpt_vhost_inflight_set(vpt_port *p, const struct vpt_inflight *record)
{
	struct vpti_inflight_area *area = NULL;
	struct vpti_vhost *vh = p->priv;
	int rc;

	if (vpti_vhost_check(p, 0))
		return -EINVAL;
	if (vpti_vhost_runs(p))
		return -EBUSY;
	rc = record ? vpti_inflight_map(record, &p->sigbus, &area) : 0;
	if (rc)
		return rc;
	vpti_inflight_unmap(vh->inflight);
	vh->inflight = area;
	return 0;
}

int vpt_vhost_reset(vpt_port *p)
{
	struct vpti_vhost *vh = p->priv;
	uint32_t i;

	if (vpti_vhost_check(p, 0))
		return -EINVAL;
	vpti_port_stop(p);
	for (i = 0; i < 2 * p->opts.pairs; i++) {
		close_ring(p, i);
		vh->ring[i].enabled = vh->ring[i].unheard = false;
		vh->ring[i].log_used = VPTI_LOG_NEVER;
		memset(&vh->ring[i].cfg, 0, sizeof(vh->ring[i].cfg));
	}
	vpti_mem_free(vh->mem);
	vh->mem = NULL;
	vpti_inflight_unmap(vh->inflight);
	vh->inflight = NULL;
	take_features(p, 0);
	vpti_vhost_log_apply(p);
	vpti_vhost_log_drop(vh);
	vpti_fd_close(&vh->log_fd);
	vpti_port_revive(p);
	return 0;
}

/* ---- the kind ---- */

static int vhost_init(struct vpt_port *p)
{
	struct vpti_vhost *vh = calloc(1, sizeof(*vh));
	uint32_t i;
	int rc;

	p->priv = vh;
	if (!vh)
		return -ENOMEM;
	vh->log_fd = -1;
	for (i = 0; i < p->opts.pairs; i++) {
		rc = vpti_queue_new(p, i, sizeof(struct vpti_virtq_txq), sizeof(struct vpti_virtq_rxq));
		if (rc)
			return rc;
		vh->ring[2 * i].log_used = vh->ring[2 * i + 1].log_used = VPTI_LOG_NEVER;
		vpti_vring_virtq(p, 2 * i)->call_fd = -1;
		vpti_vring_virtq(p, 2 * i + 1)->call_fd = -1;
	}
	take_features(p, 0);
	return 0;
}

static void vhost_fini(struct vpt_port *p)
{
	struct vpti_vhost *vh = p->priv;
	uint32_t i;

	for (i = 0; vh && i < 2 * p->opts.pairs; i++) {
		if (p->txq[i / 2])
			close_ring(p, i);
	}
	vpti_queues_free(p);
	if (vh) {
		vpti_vhost_log_drop(vh);
		vpti_fd_close(&vh->log_fd);
		vpti_mem_free(vh->mem);
		vpti_inflight_unmap(vh->inflight);
	}
	free(vh);
	p->priv = NULL;
}

const struct vpti_kind_ops vpti_kind_vhost = { .init = vhost_init, .fini = vhost_fini };
