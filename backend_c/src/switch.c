/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * switch.c - one burst through the switch: look up, group by destination, deliver, release
 *
 * The shape is VALE's (CoNEXT'12): a first walk over the burst decides each packet's destination, a second one delivers to each
 * destination all it gets in one go, in the order sent.
 */
#define _GNU_SOURCE
#include "switch.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "capture.h"
#include "deliver.h"
#include "engine.h"
#include "rcu.h"
#include "rules.h"
#include "take.h"

#define NONE 0xffu

/* Packets that follow each other in the burst and have one destination. */
struct run {
	uint8_t first, n;
	uint8_t next;              /* run of the same destination; they are numbered in the order of their packets */
};

/* Per destination, its runs. */
struct chain {
	uint8_t first, last;
};

_Static_assert(VPTI_BURST < NONE && VPTI_BURST <= 64, "numbers of packets and runs, and a bit for each, fit");

/* A worker's notes during one burst. Chains are empty between bursts. */
struct vpti_pass {
	struct chain to[VPTI_MAX_PORTS];
	struct run run[VPTI_BURST];
	uint32_t nrun;
	uint16_t touched[VPTI_BURST];
	uint32_t ntouched;
	uint64_t unlearned;        /* packets from addresses for which there was no room, a bit each */
	bool vlans;                /* the switch looks at VLANs; read once, so that a tag taken off is put on */
	uint64_t now;              /* for the storm limits, once somebody floods; 0: not looked at yet */
	struct chain flood;
	struct vpti_pkt *list[VPTI_DELIVER];
};

struct vpti_pass *vpti_pass_new(void)
{
	struct vpti_pass *pass = malloc(sizeof(*pass));

	if (pass)
		memset(pass, NONE, sizeof(*pass));
	return pass;
}

void vpti_pass_free(struct vpti_pass *pass)
{
	free(pass);
}

/* A new run, of packet i for now, at the end of a chain. */
static struct run *chain_add(struct vpti_pass *pass, struct chain *c, uint32_t i)
{
	uint8_t number = (uint8_t)pass->nrun++;
	struct run *run = &pass->run[number];

	*run = (struct run){ .first = (uint8_t)i, .n = 1, .next = NONE };
	if (c->first == NONE)
		c->first = number;
	else
		pass->run[c->last].next = number;
	c->last = number;
	return run;
}

/* Learn where packet i came from; false if it must not be forwarded. */
static bool learn(struct vpti_pass *pass, struct vpt_switch *sw, struct vpti_txq *q, struct vpti_pkt *p, uint32_t i, uint32_t tick)
{
	uint64_t src = vpti_pkt_src(p);
	uint64_t mac = src & VPTI_MAC_BITS, only;

	if (vpti_likely(src == VPTI_READ(q->last_src) && tick == q->last_tick))
		return true;
	only = VPTI_READ(q->port->only_mac);
	if (mac == 0 || p->eth[6] & 1 || (only && mac != only)) {
		vpti_drop(p, VPT_C_TX_DROP_SPOOFED);
		return false;
	}
	switch (vpti_mac_learn(&sw->macs, src, q->port->slot, tick)) {
	case VPTI_LEARN_SPOOFED:
		vpti_drop(p, VPT_C_TX_DROP_SPOOFED);
		return false;
	case VPTI_LEARN_FULL:
		pass->unlearned |= 1ull << i;
		return true;
	case VPTI_LEARNED:
		VPTI_WRITE(q->last_src, src);
		q->last_tick = tick;
	}
	return true;
}

/* Is this packet, to the port in that slot or to everybody (VPTI_MAC_NONE), for others than the pass so far? */
static bool destination_changes(const struct vpti_pass *pass, uint16_t slot)
{
	if (slot == VPTI_MAC_NONE)
		return pass->ntouched > 0;
	return pass->flood.first != NONE || (pass->ntouched && pass->touched[0] != slot);
}

/**
 * find() - Where a packet goes
 * @dst:	key of its destination
 * @cause:	why it goes nowhere, 0 if it goes
 *
 * Return: the port's slot, or VPTI_MAC_NONE for everybody
 */
static uint16_t find(const struct vpti_pass *pass, const struct vpt_switch *sw, const struct vpti_txq *q,
		     const struct vpti_pkt *p, uint64_t dst, uint32_t tick, enum vpt_counter *cause)
{
	uint16_t slot = p->eth[0] & 1 ? VPTI_MAC_NONE : vpti_mac_lookup(&sw->macs, dst, tick);
	const struct vpt_port *to;

	*cause = 0;
	if (slot == VPTI_MAC_NONE)
		return slot;
	if (vpti_unlikely(slot == q->port->slot)) {
		*cause = VPT_C_TX_DROP_NO_DEST;
	} else if (vpti_unlikely(pass->vlans | VPTI_READ(q->port->isolated))) {
		to = vpti_rcu_get(sw->port[slot]);
		if (!to || (pass->vlans && !vpti_vlan_carries(vpti_rcu_get(to->vlans), vpti_vid(p))))
			return VPTI_MAC_NONE;
		if (VPTI_READ(q->port->isolated) && VPTI_READ(to->isolated))
			*cause = VPT_C_TX_DROP_ISOLATED;
	}
	return slot;
}

/* What limits packets that go to as many as this one, if anything does. */
static struct vpti_bucket *flood_limit(struct vpti_txq *q, const struct vpti_pkt *p)
{
	enum vpti_storm kind = !(p->eth[0] & 1) ? VPTI_STORM_UNKNOWN :
			       vpti_pkt_mac(p->eth) == VPTI_MAC_BITS ? VPTI_STORM_BROADCAST : VPTI_STORM_MULTICAST;
	struct vpti_bucket *limit = &q->port->storm[kind];

	return VPTI_READ(limit->cost) ? limit : NULL;
}

static bool may_flood(struct vpti_pass *pass, struct vpti_bucket *limit)
{
	if (!pass->now)
		pass->now = vpti_bucket_now();
	return vpti_bucket_pass(limit, pass->now);
}

/* Have two packets the same addresses and VLAN? */
static bool same_way(const struct vpti_pkt *a, const struct vpti_pkt *b)
{
	uint64_t x, y;
	uint32_t x_end, y_end;

	memcpy(&x, a->eth, sizeof(x));
	memcpy(&y, b->eth, sizeof(y));
	memcpy(&x_end, a->eth + sizeof(x), sizeof(x_end));
	memcpy(&y_end, b->eth + sizeof(y), sizeof(y_end));
	return !((x ^ y) | (x_end ^ y_end) | (uint64_t)(vpti_vid(a) ^ vpti_vid(b)));
}

/**
 * classify() - First walk: learn, look up, group
 *
 * What a lossless sender's packets find no room for stays in its ring, and all behind it, so that order is kept. Had some of
 * those been delivered elsewhere, they would be so again in the next pass; had they gone along with a packet to everybody,
 * which waits for nobody, they would be lost. So its pass ends where the destination changes.
 *
 * Return: number of packets that the pass is about, of the first n of the burst
 */
static uint32_t classify(struct vpti_pass *pass, struct vpt_switch *sw, struct vpti_txq *q, struct vpti_burst *b,
			 uint32_t n, uint32_t tick)
{
	uint64_t last_dst = 0; /* a run to one destination is looked up once */
	uint16_t last_slot = VPTI_MAC_NONE;
	struct run *run = NULL;
	enum vpt_counter cause = 0;
	bool learned = false;
	uint32_t i;

	pass->ntouched = pass->nrun = 0;
	pass->unlearned = 0;
	pass->now = 0;
	for (i = 0; i < n; i++) {
		struct vpti_pkt *p = &b->pkt[i];
		uint64_t dst;

		/* Another one of the run: all that was found for the one before holds. What can't be learned is counted each time. */
		if (vpti_likely(run && learned && p->dst != VPTI_DST_DROP && same_way(p, p - 1))) {
			run->n++;
			continue;
		}
		if (vpti_unlikely(p->dst == VPTI_DST_DROP) || !learn(pass, sw, q, p, i, tick)) {
			run = NULL;
			continue;
		}
		learned = vpti_pkt_src(p) == VPTI_READ(q->last_src);
		dst = vpti_pkt_dst(p);
		if (run && dst == last_dst) {
			run->n++;
			continue;
		}
		run = NULL;
		if (dst != last_dst) {
			last_dst = dst;
			last_slot = find(pass, sw, q, p, dst, tick, &cause);
		}
		if (vpti_unlikely(cause)) {
			vpti_drop(p, cause);
			continue;
		}
		if (vpti_unlikely(q->port->lossless) && destination_changes(pass, last_slot))
			break;
		if (last_slot == VPTI_MAC_NONE) {
			struct vpti_bucket *limit = flood_limit(q, p);

			if (vpti_unlikely(limit) && !may_flood(pass, limit)) {
				vpti_drop(p, VPT_C_TX_DROP_STORM);
				continue;
			}
			run = chain_add(pass, &pass->flood, i);
			if (limit)
				run = NULL; /* the next one is asked about again */
		} else {
			if (pass->to[last_slot].first == NONE)
				pass->touched[pass->ntouched++] = last_slot;
			run = chain_add(pass, &pass->to[last_slot], i);
		}
	}
	return i;
}

/* Does the port get this packet, as far as VLANs go? One that is kept for its tags is counted, as nobody expects that. */
static bool leaves(struct vpt_port *to, const struct vpti_pkt *p)
{
	const struct vpti_vlans *vlans = vpti_rcu_get(to->vlans);

	if (vpti_vlan_leaves(vlans, p))
		return true;
	if (vpti_vlan_carries(vlans, vpti_vid(p)))
		vpti_count_rx(to->rxq[0], VPT_C_RX_DROP_VLAN, 1);
	return false;
}

/* The packets for one destination, in the order sent: those for it alone and those for everybody. */
static uint32_t merge(struct vpti_pass *pass, struct vpti_burst *b, struct vpt_port *to)
{
	uint16_t slot = to->slot;
	uint8_t u = pass->to[slot].first, f = pass->flood.first;
	uint32_t n = 0;

	while (u != NONE || f != NONE) {
		uint8_t *from = f == NONE || (u != NONE && u < f) ? &u : &f;
		const struct run *run = &pass->run[*from];
		struct vpti_pkt *p = &b->pkt[run->first], *end = p + run->n;

		for (; p != end; p++) {
			if (vpti_likely(!pass->vlans) || leaves(to, p))
				pass->list[n++] = p;
		}
		*from = run->next;
	}
	return n;
}

static void chain_clear(struct vpti_pass *pass, uint16_t slot)
{
	pass->to[slot] = (struct chain){ NONE, NONE };
}

/* Copies to everybody but the sender. */
static void flood(struct vpti_worker *w, struct vpti_txq *q, struct vpti_burst *b)
{
	struct vpti_port_list *list = vpti_rcu_get(q->port->sw->list);
	bool isolated = VPTI_READ(q->port->isolated);
	uint32_t i;

	for (i = 0; i < list->n; i++) {
		struct vpt_port *to = vpti_rcu_get(q->port->sw->port[list->slot[i]]);

		if (!to || to == q->port || (vpti_unlikely(isolated) && VPTI_READ(to->isolated)))
			continue;
		vpti_deliver(w, q, to, w->pass->list, merge(w->pass, b, to), w->pass->vlans, false);
		chain_clear(w->pass, to->slot);
	}
}

/* Each destination what is for it alone. Of the first n packets of the burst, how many are done. */
static uint32_t unicast(struct vpti_worker *w, struct vpti_txq *q, struct vpti_burst *b, uint32_t n)
{
	struct vpti_pass *pass = w->pass;
	uint32_t i, k, done = n;

	for (i = 0; i < pass->ntouched; i++) {
		uint16_t slot = pass->touched[i];
		struct vpt_port *to = vpti_rcu_get(q->port->sw->port[slot]);

		n = to ? merge(pass, b, to) : 0;
		chain_clear(pass, slot);
		k = to ? vpti_deliver(w, q, to, pass->list, n, pass->vlans, q->port->lossless) : n;
		if (k < n)
			done = (uint32_t)(pass->list[k] - b->pkt);
	}
	return done;
}

/* The first packets of a burst, which are done with, and why those went no further that did not. */
static void count_done(struct vpti_txq *q, const struct vpti_burst *b, const struct vpti_pass *pass, uint32_t done)
{
	uint64_t bytes = 0;
	uint32_t i;

	for (i = 0; i < done; i++) {
		bytes += b->pkt[i].len;
		if (vpti_unlikely(b->pkt[i].dst == VPTI_DST_DROP))
			vpti_count(q->c, b->pkt[i].cause, 1);
	}
	for (i = 0; vpti_unlikely(pass->unlearned) && i < done; i++)
		vpti_count(q->c, VPT_C_TX_MAC_LIMIT, pass->unlearned >> i & 1);
	vpti_count(q->c, VPT_C_TX_PACKETS, done);
	vpti_count(q->c, VPT_C_TX_BYTES, bytes);
}

static void give_back(struct vpti_txq *q, const struct vpti_burst *b, uint32_t n)
{
	vpti_count(q->c, VPT_C_TX_BATCHES, 1);
	if (!q->kicked)
		vpti_count(q->c, VPT_C_TX_KICKS_SUPPRESSED, 1);
	q->kicked = false;
	q->ops->release(q, b, n);
	q->dirty = true;
}

uint32_t vpti_switch_forward(struct vpti_worker *w, struct vpti_txq *q)
{
	struct vpti_burst *b = &w->burst;
	struct vpti_pass *pass = w->pass;
	uint32_t n, done, i;
	bool limited, watched;

	b->n = 0;
	b->nfrag = 0;
	q->waiting = false;
	if (vpti_unlikely(VPTI_READ(q->aside)))
		return 0;
	q->ops->take(q, b);
	vpti_txq_check_memory(q);
	if (!b->n)
		return 0;
	if (vpti_unlikely(q->discard)) {
		vpti_count(q->c, VPT_C_TX_DROP_DISABLED, b->n);
		if (vpti_unlikely(VPTI_READ(q->port->taps))) {
			for (i = 0; i < b->n; i++) {
				b->pkt[i].dst = VPTI_DST_DROP;
				b->pkt[i].cause = VPT_C_TX_DROP_DISABLED;
			}
			vpti_capture_sent(w, q->port, b, b->n);
		}
		give_back(q, b, b->n);
		return b->n;
	}
	n = b->n;
	pass->vlans = VPTI_READ(q->port->sw->vlans);
	if (vpti_unlikely(pass->vlans))
		vpti_admit_vlans(q, b);
	limited = VPTI_READ(q->port->tx.on);
	if (vpti_unlikely(limited))
		n = vpti_admit_rate(w, q, b);
	n = classify(pass, q->port->sw, q, b, n, w->tick);
	done = n;
	/* What waits in a lossless sender's ring comes again: it is captured when it has gone. */
	watched = VPTI_READ(q->port->taps);
	if (vpti_unlikely(watched) && !q->port->lossless)
		vpti_capture_sent(w, q->port, b, n);
	if (vpti_unlikely(pass->flood.first != NONE)) {
		flood(w, q, b);
		pass->flood = (struct chain){ NONE, NONE };
		for (i = 0; i < pass->ntouched; i++) /* a destination that left the list meanwhile */
			chain_clear(pass, pass->touched[i]);
	} else {
		done = unicast(w, q, b, n);
	}
	if (vpti_unlikely(limited))
		vpti_charge_rate(q, b, done);
	if (vpti_unlikely(done < n))
		vpti_count(q->c, VPT_C_TX_BLOCKED, 1);
	if (done) {
		count_done(q, b, pass, done);
		if (vpti_unlikely(watched) && q->port->lossless)
			vpti_capture_sent(w, q->port, b, done);
		give_back(q, b, done);
	}
	return done;
}

/* ---- control thread ---- */

int vpt_switch_add(vpt_engine *e, const struct vpt_switch_opts *opts, vpt_switch **out)
{
	struct vpt_switch *sw = calloc(1, sizeof(*sw));
	int rc;

	if (!sw)
		return -ENOMEM;
	sw->engine = e;
	memcpy(sw->name, opts->name, sizeof(sw->name));
	sw->name[sizeof(sw->name) - 1] = '\0';
	rc = vpti_mactable_init(&sw->macs, opts->mac_entries ? opts->mac_entries : 4096,
				opts->mac_age_s ? opts->mac_age_s : 300, VPTI_MAX_PORTS);
	if (rc)
		goto err;
	rc = -ENOMEM;
	sw->list = calloc(1, sizeof(*sw->list));
	if (!sw->list)
		goto err_macs;
	sw->next = e->switches;
	e->switches = sw;
	*out = sw;
	return 0;
err_macs:
	vpti_mactable_fini(&sw->macs);
err:
	free(sw);
	return rc;
}

int vpt_switch_set_mac_age(vpt_switch *sw, uint32_t mac_age_s)
{
	VPTI_WRITE(sw->macs.age, mac_age_s ? mac_age_s : 300);
	return 0;
}

void vpt_switch_del(vpt_switch *sw)
{
	struct vpt_switch **at;

	while (sw->ports)
		vpt_port_del(sw->ports);
	for (at = &sw->engine->switches; *at != sw; at = &(*at)->next)
		;
	*at = sw->next;
	free(sw->list);
	vpti_mactable_fini(&sw->macs);
	free(sw);
}

/* Of one port, or if NULL, of all. */
static int macs(const struct vpt_switch *sw, const struct vpt_port *only, struct vpt_mac_entry *out, uint32_t max)
{
	uint32_t now = (uint32_t)((vpti_now_ns() - sw->engine->start_ns) / 1000000000u);
	uint32_t n = 0, i, k, b;

	for (i = 0; i < sw->macs.nbuckets; i++) {
		for (k = 0; k < VPTI_MAC_WAYS; k++) {
			uint64_t e = VPTI_READ(sw->macs.b[i].e[k]);
			uint32_t seen = VPTI_READ(sw->macs.b[i].seen[k]);
			uint32_t age = seen == VPTI_MAC_STATIC ? 0 : now - seen;

			if (!e || (int32_t)age > (int32_t)VPTI_READ(sw->macs.age) || !sw->port[(uint16_t)e] ||
			    (only && sw->port[(uint16_t)e] != only))
				continue;
			if (n < max) {
				out[n] = (struct vpt_mac_entry){ .port_id = sw->port[(uint16_t)e]->id };
				out[n].vlan = VPTI_READ(sw->macs.b[i].vid[k]);
				out[n].age_s = (int32_t)age < 0 ? 0 : age;
				for (b = 0; b < 6; b++)
					out[n].mac[b] = (uint8_t)(e >> (56 - 8 * b));
			}
			n++;
		}
	}
	return (int)n;
}

int vpt_switch_macs(const vpt_switch *sw, struct vpt_mac_entry *out, uint32_t max)
{
	return macs(sw, NULL, out, max);
}

int vpt_port_macs(const vpt_port *p, struct vpt_mac_entry *out, uint32_t max)
{
	return macs(p->sw, p, out, max);
}
