/* SPDX-License-Identifier: BSD-2-Clause */
/* port.c - life of a port: adding, starting and stopping its queues, taking it down, deleting it */
#define _GNU_SOURCE
#include "port.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "capture.h"
#include "engine.h"
#include "rcu.h"
#include "rules.h"
#include "switch.h"
#include "take.h"

#define DEFAULT_MTU 1500u
#define DEFAULT_MAX_MACS 1024u
#define DEFAULT_SPIN_US 50u
#define MAX_POLICY_US 1000000u
#define L2_OVERHEAD (VPTI_ETH_HLEN + 8u) /* two VLAN tags */

static const struct {
	const struct vpti_kind_ops *ops;
	uint32_t max_pairs;
} kinds[] = {
	[VPT_KIND_PASSTHROUGH] = { &vpti_kind_ring, VPT_MAX_PAIRS },
	[VPT_KIND_APP] = { &vpti_kind_ring, VPT_MAX_PAIRS },
	[VPT_KIND_VHOST_USER] = { &vpti_kind_vhost, 128 },
	[VPT_KIND_TAP] = { &vpti_kind_tap, 1 },
	[VPT_KIND_NULL] = { &vpti_kind_null, 1 },
};

static bool mtu_ok(uint32_t mtu)
{
	return mtu >= 68 && mtu <= 65535;
}

/* Workers read it while it changes: one frame is measured by either. */
static void set_max_len(struct vpt_port *p)
{
	VPTI_WRITE(p->max_len, VPTI_MIN(p->opts.mtu + L2_OVERHEAD, VPT_MAX_FRAME));
}

static int policy_check(struct vpt_policy *policy)
{
	switch (policy->kind) {
	case 0:
		*policy = (struct vpt_policy){ .kind = VPT_POLICY_ADAPTIVE, .spin_us = DEFAULT_SPIN_US };
		return 0;
	case VPT_POLICY_POLL:
	case VPT_POLICY_NOTIFY:
		return 0;
	case VPT_POLICY_SLEEP:
		return policy->sleep_us >= 1 && policy->sleep_us <= MAX_POLICY_US ? 0 : -EINVAL;
	case VPT_POLICY_ADAPTIVE:
		return policy->spin_us <= MAX_POLICY_US ? 0 : -EINVAL;
	default:
		return -EINVAL;
	}
}

static int opts_check(struct vpt_engine *e, struct vpt_port_opts *o)
{
	if (o->kind >= VPTI_ARRAY_SIZE(kinds) || !kinds[o->kind].ops)
		return -EINVAL;
	if (!o->pairs || o->pairs > kinds[o->kind].max_pairs)
		return -EINVAL;
	if (o->worker >= (int32_t)e->nworkers || o->worker < -1)
		return -EINVAL;
	if (o->mac[0] & 1)
		return -EINVAL;
	if (!o->mtu)
		o->mtu = DEFAULT_MTU;
	if (!mtu_ok(o->mtu))
		return -EINVAL;
	if (!o->max_macs)
		o->max_macs = DEFAULT_MAX_MACS;
	o->name[sizeof(o->name) - 1] = '\0';
	return policy_check(&o->policy);
}

static struct vpti_worker *least_loaded(struct vpt_engine *e)
{
	struct vpti_worker *best = e->worker[0];
	uint32_t i;

	for (i = 1; i < e->nworkers; i++) {
		if (e->worker[i]->nqueues < best->nqueues)
			best = e->worker[i];
	}
	return best;
}

/* ---- queues ---- */

static void *zalloc_lines(size_t size)
{
	void *p = aligned_alloc(VPTI_CACHELINE, VPTI_ALIGN(size, VPTI_CACHELINE));

	return p ? memset(p, 0, size) : NULL;
}

/**
 * vpti_queue_new() - Allocate queue pair `index` of a port, with its counters
 * @txq_size:	size of the kind's structure, which starts with a struct vpti_txq; @rxq_size likewise
 *
 * Return: 0, -ENOMEM, -ENOSPC if no counters are left
 */
int vpti_queue_new(struct vpt_port *p, uint32_t index, size_t txq_size, size_t rxq_size)
{
	/* The queues of a port are spread, unless it was given to one worker. */
	struct vpti_worker *w = index && p->opts.worker < 0 ? least_loaded(p->engine) : p->worker;
	struct vpti_txq *t = zalloc_lines(txq_size);
	struct vpti_rxq *r = zalloc_lines(rxq_size);
	struct vpt_stats_block *block;
	int rc = -ENOMEM;

	if (!t || !r || vpti_worker_reserve(w))
		goto err;
	rc = -ENOSPC;
	block = vpti_stats_block_new(p->engine);
	if (!block)
		goto err;
	block->port_id = p->id;
	block->kind = p->opts.kind;
	block->queue = index;
	memcpy(block->port, p->opts.name, sizeof(block->port));
	memcpy(block->sw, p->sw->name, sizeof(block->sw));
	VPTI_STORE_RELEASE(block->in_use, 1);
	t->port = r->port = p;
	t->index = r->index = index;
	t->c = r->c = block->c;
	r->shared = p->engine->nworkers > 1;
	t->last_src = UINT64_MAX;
	p->txq[index] = t;
	p->rxq[index] = r;
	t->worker = w;
	t->next = w->txqs;
	w->txqs = t;
	w->nqueues++;
	p->workers |= 1u << w->index;
	return 0;
err:
	free(t);
	free(r);
	return rc;
}

/* Free what vpti_queue_new() made, for as many as there are. Nothing is live. */
void vpti_queues_free(struct vpt_port *p)
{
	struct vpti_txq **at;
	uint32_t i;

	for (i = 0; i < p->opts.pairs; i++) {
		struct vpti_txq *t = p->txq[i];

		if (!t)
			continue;
		for (at = &t->worker->txqs; *at != t; at = &(*at)->next)
			;
		*at = t->next;
		t->worker->nqueues--;
		vpti_stats_block_free(vpti_container_of(t->c, struct vpt_stats_block, c));
		free(t);
		free(p->rxq[i]);
		p->txq[i] = NULL;
		p->rxq[i] = NULL;
	}
}

void vpti_synchronize(void)
{
	vpti_rcu_wait();
}

void vpti_txq_start(struct vpti_txq *q)
{
	q->armed = false;
	q->dirty = false;
	q->resume = 0;
	q->last_src = UINT64_MAX;
	q->live = true;
	vpti_worker_replan(q->worker);
}

void vpti_txq_stop(struct vpti_txq *q)
{
	if (!q->live)
		return;
	q->live = false;
	vpti_worker_replan(q->worker);
}

void vpti_rxq_start(struct vpti_rxq *q)
{
	memset(&q->leases, 0, sizeof(q->leases));
	VPTI_STORE_RELEASE(q->live, true); /* a worker that sees it live sees its fields */
}

void vpti_rxq_stop(struct vpti_rxq *q)
{
	if (!q->live)
		return;
	VPTI_WRITE(q->live, false);
	vpti_synchronize();
}

void vpti_port_replan(struct vpt_port *p)
{
	uint32_t i;

	for (i = 0; i < p->engine->nworkers; i++) {
		if (p->workers & 1u << i)
			vpti_worker_replan(p->engine->worker[i]);
	}
}

void vpti_port_stop(struct vpt_port *p)
{
	uint32_t i;

	for (i = 0; i < p->opts.pairs; i++) {
		if (p->txq[i])
			p->txq[i]->live = false;
		if (p->rxq[i])
			VPTI_WRITE(p->rxq[i]->live, false);
	}
	p->up = false;
	vpti_port_replan(p);
	vpti_synchronize();
}

/* ---- breakdown ---- */

static void port_break(struct vpt_port *p, uint32_t reason, struct vpt_event ev)
{
	uint32_t none = VPT_REASON_NONE;

	/* Zeros in place of memory that vanished look like other faults: an index that went back, a descriptor of nothing. */
	if (VPTI_READ(p->sigbus))
		reason = VPT_REASON_SIGBUS;
	ev.type = VPT_EVENT_BROKEN;
	ev.port_id = p->id;
	ev.reason = reason;
	if (__atomic_compare_exchange_n(&p->broken, &none, reason, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
		vpti_events_post(&p->engine->events, &ev);
}

void vpti_txq_break(struct vpti_txq *q, uint32_t reason, uint64_t detail)
{
	port_break(q->port, reason, (struct vpt_event){ .queue = q->index, .detail = detail });
}

void vpti_rxq_break(struct vpti_rxq *q, uint32_t reason, uint64_t detail)
{
	port_break(q->port, reason, (struct vpt_event){ .queue = q->index, .rx = 1, .detail = detail });
}

void vpti_port_taken_down(struct vpt_port *p)
{
	uint32_t reason = VPTI_READ(p->broken);

	if (p->broken_told || reason == VPT_REASON_NONE)
		return;
	p->broken_told = true;
	vpti_port_stop(p);
	vpti_count(p->txq[0]->c, VPT_C_BROKEN + reason, 1);
	if (p->kind->broken)
		p->kind->broken(p);
}

/* The queues are stopped and the peer starts over: let it. */
void vpti_port_revive(struct vpt_port *p)
{
	vpti_events_forget(&p->engine->events, p->id, VPT_EVENT_BROKEN);
	VPTI_WRITE(p->sigbus, 0);
	p->broken_told = false;
	VPTI_WRITE(p->broken, VPT_REASON_NONE);
}

/* ---- the port itself ---- */

/* Publish the list of ports to flood to; the caller waits for workers before it frees anything. */
static int publish_list(struct vpt_switch *sw)
{
	struct vpti_port_list *list, *old = sw->list;
	struct vpt_port *p;
	uint32_t n = 0;

	for (p = sw->ports; p; p = p->next)
		n++;
	list = malloc(sizeof(*list) + n * sizeof(list->slot[0]));
	if (!list)
		return -ENOMEM;
	list->n = 0;
	for (p = sw->ports; p; p = p->next)
		list->slot[list->n++] = p->slot;
	vpti_rcu_publish(sw->list, list);
	vpti_synchronize();
	free(old);
	return 0;
}

static int find_slot(const struct vpt_switch *sw, uint16_t *slot)
{
	uint32_t i;

	for (i = 0; i < VPTI_MAX_PORTS; i++) {
		if (!sw->port[i]) {
			*slot = (uint16_t)i;
			return 0;
		}
	}
	return -ENOSPC;
}

static bool has_mac(const struct vpt_port_opts *o)
{
	return vpti_mac48(o->mac) != 0;
}

static void port_free(struct vpt_port *p)
{
	free(p->txq);
	free(p->rxq);
	vpti_rules_fini(p);
	free(p);
}

int vpt_port_add(vpt_switch *sw, const struct vpt_port_opts *opts, vpt_port **out)
{
	struct vpt_engine *e = sw->engine;
	struct vpt_port *p = zalloc_lines(sizeof(*p));
	int rc;

	if (!p)
		return -ENOMEM;
	p->opts = *opts;
	p->sw = sw;
	p->engine = e;
	rc = opts_check(e, &p->opts);
	if (rc)
		goto err_port;
	p->kind = kinds[p->opts.kind].ops;
	p->worker = p->opts.worker < 0 ? least_loaded(e) : e->worker[p->opts.worker];
	p->link = true;
	vpti_rules_init(p);
	p->lossless = p->opts.flags & VPT_PORT_LOSSLESS;
	set_max_len(p);
	p->txq = calloc(p->opts.pairs, sizeof(*p->txq));
	p->rxq = calloc(p->opts.pairs, sizeof(*p->rxq));
	rc = -ENOMEM;
	if (!p->txq || !p->rxq)
		goto err_port;
	rc = find_slot(sw, &p->slot);
	if (rc)
		goto err_port;
	p->id = ++e->next_port_id;
	rc = p->kind->init(p);
	if (rc)
		goto err_init;
	sw->macs.limit[p->slot] = p->opts.max_macs;
	if (has_mac(&p->opts)) {
		rc = vpti_mac_set_static(&sw->macs, vpti_mac48(p->opts.mac), p->slot);
		if (rc)
			goto err_init;
	}
	p->next = sw->ports;
	sw->ports = p;
	vpti_rcu_publish(sw->port[p->slot], p);
	rc = publish_list(sw);
	if (rc) {
		vpt_port_del(p);
		return rc;
	}
	*out = p;
	return 0;
err_init:
	vpti_port_stop(p);
	p->kind->fini(p);
err_port:
	port_free(p);
	return rc;
}

void vpt_port_del(vpt_port *p)
{
	struct vpt_switch *sw = p->sw;
	struct vpt_port **at;

	vpti_port_stop(p); /* from here on nobody learns for it */
	for (at = &sw->ports; *at != p; at = &(*at)->next)
		;
	*at = p->next;
	VPTI_WRITE(sw->vlans, sw->vlans - (p->vlans != &vpti_vlans_all));
	vpti_rcu_publish(sw->port[p->slot], NULL);
	vpti_mac_purge(&sw->macs, p->slot, true);
	if (publish_list(sw)) /* no memory: the old list names an empty slot, which workers skip */
		vpti_synchronize();
	vpti_port_untap(p);
	vpti_events_forget(&p->engine->events, p->id, VPT_EVENT_BROKEN);
	vpti_events_forget(&p->engine->events, p->id, VPT_EVENT_STATUS);
	p->kind->fini(p);
	port_free(p);
}

uint32_t vpt_port_id(const vpt_port *p)
{
	return p->id;
}

int vpt_port_set_policy(vpt_port *p, const struct vpt_policy *policy)
{
	struct vpt_policy want = *policy;
	int rc = policy_check(&want);

	if (rc)
		return rc;
	p->opts.policy = want;
	vpti_port_replan(p);
	return 0;
}

int vpt_port_set_mtu(vpt_port *p, uint32_t mtu)
{
	if (p->opts.kind == VPT_KIND_PASSTHROUGH || p->opts.kind == VPT_KIND_APP)
		return -ENOTSUP;
	if (!mtu_ok(mtu))
		return -EINVAL;
	p->opts.mtu = mtu;
	if (p->opts.kind != VPT_KIND_NULL) /* which takes all there is */
		set_max_len(p);
	return 0;
}

int vpt_port_set_link(vpt_port *p, int up)
{
	VPTI_WRITE(p->link, up != 0);
	if (p->kind->link)
		p->kind->link(p);
	vpti_port_replan(p); /* wakes the worker: what came while the link was down is waiting */
	return 0;
}

int vpt_port_state(const vpt_port *p, struct vpt_port_state *out)
{
	memset(out, 0, sizeof(*out));
	out->up = p->up && VPTI_READ(p->link) && !VPTI_READ(p->broken);
	out->reason = VPTI_READ(p->broken);
	out->features = p->features;
	out->workers = p->workers;
	if (p->kind->state)
		p->kind->state(p, out);
	return 0;
}
