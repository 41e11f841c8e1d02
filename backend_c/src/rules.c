/* SPDX-License-Identifier: BSD-2-Clause */
/* rules.c - what a port may send: checking bursts, and changing the rules while packets flow */
#define _GNU_SOURCE
#include "rules.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine.h"
#include "rcu.h"
#include "switch.h"
#include "take.h"

#define MIN_BITS 8000u
#define MAX_BITS 1000000000000u
#define MAX_PACKETS 1000000000u
#define MAX_BURST_BYTES (1u << 30)
#define MAX_BURST_PACKETS (1u << 20)
#define MIN_BURST_BYTES (128u << 10)
#define MIN_BURST_PACKETS 64u
#define BURSTS_PER_S 100u /* a burst that nobody chose is what comes in 10 ms */
#define MAX_VID 4094u

void vpti_admit_vlans(struct vpti_txq *q, struct vpti_burst *b)
{
	const struct vpti_vlans *vlans = vpti_rcu_get(q->port->vlans);
	uint32_t i;

	for (i = 0; i < b->n; i++) {
		enum vpt_counter cause;

		if (b->pkt[i].dst == VPTI_DST_DROP)
			continue;
		cause = vpti_vlan_classify(vlans, &b->pkt[i]);
		if (vpti_unlikely(cause))
			vpti_drop(&b->pkt[i], cause);
	}
}

uint32_t vpti_admit_rate(struct vpti_worker *w, struct vpti_txq *q, struct vpti_burst *b)
{
	struct vpti_rate *rate = &q->port->tx;
	struct vpti_meter m;
	uint32_t i;

	vpti_meter_look(&m, rate, vpti_bucket_now());
	for (i = 0; i < b->n; i++) {
		struct vpti_pkt *p = &b->pkt[i];

		if (p->dst == VPTI_DST_DROP || vpti_meter_pass(&m, rate, p->len))
			continue;
		if (q->port->lossless) {
			vpti_count(q->c, VPT_C_TX_BLOCKED, 1);
			vpti_worker_wait(w, q, vpti_rate_wait(rate, m.now));
			return i;
		}
		vpti_drop(p, VPT_C_TX_DROP_RATE);
	}
	return b->n;
}

void vpti_charge_rate(struct vpti_txq *q, const struct vpti_burst *b, uint32_t n)
{
	uint32_t packets = 0, i;
	uint64_t bytes = 0;

	for (i = 0; i < n; i++) {
		if (b->pkt[i].cause == VPT_C_TX_DROP_RATE)
			continue;
		packets++;
		bytes += b->pkt[i].len;
	}
	vpti_rate_take(&q->port->tx, bytes, packets, vpti_bucket_now());
}

/* ---- control thread ---- */

static bool rate_ok(const struct vpt_rate *r)
{
	return (!r->bits_per_s || (r->bits_per_s >= MIN_BITS && r->bits_per_s <= MAX_BITS)) &&
	       r->packets_per_s <= MAX_PACKETS && r->burst_bytes <= MAX_BURST_BYTES &&
	       r->burst_packets <= MAX_BURST_PACKETS;
}

static bool rules_ok(const struct vpt_port *p, const struct vpt_rules *r)
{
	if (r->flags & ~(uint32_t)(VPT_RULE_ISOLATED | VPT_RULE_ANTI_SPOOFING) || r->vlan_mode > VPT_VLAN_TRUNK)
		return false;
	if (r->flags & VPT_RULE_ANTI_SPOOFING && !vpti_mac48(p->opts.mac))
		return false;
	if (r->native > MAX_VID || (r->vlan_mode == VPT_VLAN_ACCESS && !r->native))
		return false;
	return rate_ok(&r->tx) && rate_ok(&r->rx);
}

/* Also the answer for a port without VLANs of its own: one that is never freed. */
static const struct vpti_vlans *vlans_new(const struct vpt_rules *r)
{
	struct vpti_vlans *v;

	if (r->vlan_mode == VPT_VLAN_ALL)
		return &vpti_vlans_all;
	v = calloc(1, sizeof(*v));
	if (!v)
		return NULL;
	if (r->vlan_mode == VPT_VLAN_TRUNK) {
		memcpy(v->carries, r->vlans, sizeof(v->carries));
		v->carries[0] &= ~1ull;
		v->carries[VPTI_VLAN_NONE / 64] &= ~(1ull << VPTI_VLAN_NONE % 64);
	}
	v->tags = r->vlan_mode == VPT_VLAN_TRUNK;
	v->native = r->native ? (uint16_t)r->native : VPTI_VLAN_NONE;
	if (r->native)
		v->carries[r->native / 64] |= 1ull << r->native % 64;
	return v;
}

static void vlans_free(const struct vpti_vlans *v)
{
	if (v != &vpti_vlans_all)
		free((void *)(uintptr_t)v);
}

static void rate_set(struct vpti_rate *rate, const struct vpt_rate *r)
{
	uint64_t bytes = r->bits_per_s / 8;
	uint64_t burst_bytes = r->burst_bytes, burst_packets = r->burst_packets;

	if (!burst_bytes)
		burst_bytes = VPTI_MAX(bytes / BURSTS_PER_S, MIN_BURST_BYTES);
	if (!burst_packets)
		burst_packets = VPTI_MAX(r->packets_per_s / BURSTS_PER_S, MIN_BURST_PACKETS);
	vpti_bucket_set(&rate->bytes, bytes, burst_bytes);
	vpti_bucket_set(&rate->packets, r->packets_per_s, burst_packets);
	VPTI_WRITE(rate->on, bytes || r->packets_per_s);
}

static void storm_set(struct vpti_bucket *b, uint32_t per_s)
{
	vpti_bucket_set(b, per_s, per_s); /* a second's worth at once: what starts up is no storm */
}

void vpti_rules_init(struct vpt_port *p)
{
	p->vlans = &vpti_vlans_all;
	storm_set(&p->storm[VPTI_STORM_BROADCAST], VPT_BROADCAST_PER_S);
}

void vpti_rules_fini(struct vpt_port *p)
{
	vlans_free(p->vlans);
}

int vpt_port_set_rules(vpt_port *p, const struct vpt_rules *r)
{
	uint64_t only_mac = r->flags & VPT_RULE_ANTI_SPOOFING ? vpti_mac48(p->opts.mac) : 0;
	const struct vpti_vlans *old = p->vlans, *vlans;
	bool other_sources;

	if (!rules_ok(p, r))
		return -EINVAL;
	vlans = vlans_new(r);
	if (!vlans)
		return -ENOMEM;
	other_sources = only_mac != p->only_mac || memcmp(vlans, old, sizeof(*old));
	vpti_rcu_publish(p->vlans, vlans);
	VPTI_WRITE(p->sw->vlans, p->sw->vlans + (vlans != &vpti_vlans_all) - (old != &vpti_vlans_all));
	VPTI_WRITE(p->isolated, (r->flags & VPT_RULE_ISOLATED) != 0);
	VPTI_WRITE(p->only_mac, only_mac);
	rate_set(&p->tx, &r->tx);
	rate_set(&p->rx, &r->rx);
	storm_set(&p->storm[VPTI_STORM_BROADCAST], r->broadcast);
	storm_set(&p->storm[VPTI_STORM_MULTICAST], r->multicast);
	storm_set(&p->storm[VPTI_STORM_UNKNOWN], r->unknown);
	vpti_synchronize();
	vlans_free(old);
	if (other_sources)
		vpt_port_forget(p); /* after the last packet that was learned from by the old rules */
	vpti_port_replan(p); /* wakes them: what waited for tokens may go */
	return 0;
}
