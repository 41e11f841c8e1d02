/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * inject.c - what the control thread says in the place of a port's peer
 *
 * A frame goes through the switch as if the port's worker had taken it from a queue: its source is learned there, and whoever
 * it is for gets it. The worker does so itself, between two rounds, since what it writes to has no other writer.
 */
#include <errno.h>
#include <string.h>

#include "engine.h"
#include "switch.h"
#include "take.h"

/* A transmit queue with one frame. */
struct one_frame {
	struct vpti_txq q;
	const uint8_t *frame;
	uint32_t len;
	uint64_t c[VPT_C_COUNT];   /* a frame that went through is none of its peer's */
	bool dropped;
};

static void one_take(struct vpti_txq *q, struct vpti_burst *b)
{
	struct one_frame *one = vpti_container_of(q, struct one_frame, q);
	struct vpti_pkt *p = &b->pkt[0];

	memset(&p->hdr, 0, sizeof(p->hdr));
	p->first = (struct vpti_frag){ (uint8_t *)(uintptr_t)one->frame, one->len };
	p->more = b->frag;
	p->nmore = 0;
	p->len = one->len;
	b->n = 1;
	vpti_take_check(q, p);
}

static void one_release(struct vpti_txq *q, const struct vpti_burst *b, uint32_t n)
{
	(void)q;
	(void)b;
	(void)n;
}

static const struct vpti_txq_ops one_ops = { .take = one_take, .release = one_release };

struct injection {
	struct vpti_chore chore;
	struct one_frame one;
};

/*
 * Whom it went to is told at the end of the round that follows. Drops are the port's: this is the worker of its first queue, the one
 * writer of that one's counters.
 */
static void inject(struct vpti_worker *w, struct vpti_chore *chore)
{
	struct one_frame *one = &vpti_container_of(chore, struct injection, chore)->one;
	uint32_t i;

	vpti_switch_forward(w, &one->q);
	for (i = VPT_C_TX_DROP_RUNT; i <= VPT_C_TX_DROP_STORM; i++) {
		vpti_count(one->q.port->txq[0]->c, i, one->c[i]);
		one->dropped |= i != VPT_C_TX_MAC_LIMIT && one->c[i];
	}
}

int vpt_port_inject(vpt_port *p, const void *frame, uint32_t len)
{
	struct injection i = { .chore.run = inject, .one = { .frame = frame, .len = len } };

	if (len < VPTI_ETH_HLEN || len > p->max_len)
		return -EINVAL;
	if (!vpti_port_runs(p))
		return -ENETDOWN;
	i.one.q = (struct vpti_txq){ .ops = &one_ops, .port = p, .c = i.one.c, .last_src = UINT64_MAX };
	vpti_worker_do(p->txq[0]->worker, &i.chore);
	return i.one.dropped ? -EPERM : 0;
}

static bool may_be_heard(const struct vpt_port *p, const struct vpt_heard *h)
{
	uint64_t mac = vpti_mac48(h->mac);

	if (h->mac[0] & 1 || !mac || h->vlan >= VPTI_VLAN_NONE || (p->only_mac && mac != p->only_mac))
		return false;
	return p->sw->vlans ? vpti_vlan_carries(p->vlans, h->vlan) : !h->vlan;
}

int vpt_port_learn(vpt_port *p, const struct vpt_heard *heard, uint32_t n)
{
	uint32_t tick = (uint32_t)((vpti_now_ns() - p->engine->start_ns) / 1000000000u);
	int learned = 0;
	uint32_t i;

	for (i = 0; i < n; i++) {
		uint64_t key = (uint64_t)heard[i].vlan << 48 | vpti_mac48(heard[i].mac);

		if (may_be_heard(p, &heard[i]) && vpti_mac_learn(&p->sw->macs, key, p->slot, tick) == VPTI_LEARNED)
			learned++;
	}
	return learned;
}

void vpt_port_forget(vpt_port *p)
{
	uint32_t i;

	vpti_mac_purge(&p->sw->macs, p->slot, false);
	for (i = 0; i < p->opts.pairs; i++) /* what its queues remember of having learned */
		VPTI_WRITE(p->txq[i]->last_src, UINT64_MAX);
}
