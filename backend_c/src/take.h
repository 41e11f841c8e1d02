/* SPDX-License-Identifier: BSD-2-Clause */
/* take.h - the last step of every take(): the private copy of the Ethernet header, and the checks that need no kind */
#ifndef VPTI_TAKE_H
#define VPTI_TAKE_H

#include <string.h>

#include "port.h"

static inline void vpti_count(uint64_t *c, enum vpt_counter which, uint64_t n)
{
	VPTI_WRITE(c[which], c[which] + n); /* one writer; readers in other processes see whole words */
}

/* A packet of a burst that goes no further. It is counted when it is given back: what a lossless sender waits with is taken again. */
static inline void vpti_drop(struct vpti_pkt *p, enum vpt_counter cause)
{
	p->dst = VPTI_DST_DROP;
	p->cause = (uint16_t)cause;
}

/* The first 14 bytes of a frame that may be cut anywhere. The caller knows that there are so many. */
static inline void vpti_read_eth(struct vpti_pkt *p)
{
	uint32_t have, i;

	if (vpti_likely(p->first.len >= VPTI_ETH_HLEN)) {
		memcpy(p->eth, p->first.p, VPTI_ETH_HLEN);
		return;
	}
	have = p->first.len;
	memcpy(p->eth, p->first.p, have);
	for (i = 0; i < p->nmore && have < VPTI_ETH_HLEN; i++) {
		uint32_t k = VPTI_MIN(p->more[i].len, VPTI_ETH_HLEN - have);

		memcpy(p->eth + have, p->more[i].p, k);
		have += k;
	}
}

/* Drops what cannot be a frame, of the rest reads the Ethernet header. Returns whether it goes on. */
static inline bool vpti_take_frame(struct vpti_pkt *p, uint32_t max_len)
{
	p->dst = VPTI_DST_FLOOD;
	p->cause = 0;
	p->tci = 0;
	p->tag = 0;
	if (vpti_unlikely(p->len - VPTI_ETH_HLEN > max_len - VPTI_ETH_HLEN)) { /* one comparison: what is too short wraps around */
		vpti_drop(p, p->len < VPTI_ETH_HLEN ? VPT_C_TX_DROP_RUNT : VPT_C_TX_DROP_OVERSIZE);
		return false;
	}
	vpti_read_eth(p);
	return true;
}

/* As vpti_take_check(), for a packet whose vnet header asks for nothing. max_len: its port's. */
static inline void vpti_take_plain(struct vpti_pkt *p, uint32_t max_len)
{
	memset(&p->hdr, 0, sizeof(p->hdr));
	vpti_take_frame(p, max_len);
}

/**
 * vpti_take_check() - Finish one packet of a burst
 * @q:		where it came from
 * @p:		packet with fragments, len and, if its port has one, the raw vnet header; else a zero one
 *
 * Drops what cannot be a frame (vpti_drop()). The header is reduced to what is meant: fields that
 * no flag announces are zeroed, so that no receiver sees a sender's leftovers.
 */
static inline void vpti_take_check(struct vpti_txq *q, struct vpti_pkt *p)
{
	const struct vpt_port *port = q->port;

	if (vpti_likely(vpti_vnet_is_plain(p->hdr.flags, p->hdr.gso_type))) {
		vpti_take_plain(p, VPTI_READ(port->max_len));
		return;
	}
	if (!vpti_take_frame(p, p->hdr.gso_type == VPT_GSO_NONE ? VPTI_READ(port->max_len) : VPT_MAX_FRAME))
		return;
	p->hdr.num_buffers = 0;
	p->hdr.flags &= VPT_VNET_NEEDS_CSUM;
	if (p->hdr.gso_type == VPT_GSO_NONE)
		p->hdr.gso_size = 0;
	if (!p->hdr.flags) {
		p->hdr.csum_start = 0;
		p->hdr.csum_offset = 0;
	}
	if (!vpti_vnet_check(p, port->sends))
		vpti_drop(p, VPT_C_TX_DROP_BAD_HEADER);
}

#endif /* VPTI_TAKE_H */
