/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * vlan.h - IEEE 802.1Q tags: which VLAN a frame belongs to, taking its tag off, putting one on
 *
 * Inside the switch frames have no tag; tci says which VLAN they belong to, and with which priority they came. A tag is taken off by
 * moving the start of the first fragment, for the private copy of the Ethernet header is what the receiver gets; and put on by
 * the copy itself (copy.h). So neither costs a second copy.
 *
 * Only the C-tag (0x8100) is the switch's. An S-tag (0x88a8) is payload, as for any C-VLAN bridge (802.1Q, 5.5).
 */
#ifndef VPTI_VLAN_H
#define VPTI_VLAN_H

#include <stdbool.h>
#include <string.h>

#include "pkt.h"
#include "util.h"
#include "vpt/vpt.h"

#define VPTI_VLAN_HLEN 4u
#define VPTI_VLAN_HEAD (VPTI_ETH_HLEN + VPTI_VLAN_HLEN)
#define VPTI_VLAN_TYPE 0x8100u
#define VPTI_VLAN_NONE 0xfffu
#define VPTI_VLAN_WORDS 64u

/**
 * struct vpti_vlans - what a port carries; immutable, replaced as a whole (RCU)
 * @native:	VLAN of frames without tag, both ways; VPTI_VLAN_NONE, which no port carries, if it takes none
 * @tags:	frames with tag are taken
 * @carries:	bit VID % 64 of word VID / 64
 */
struct vpti_vlans {
	uint16_t native;
	bool tags;
	uint64_t carries[VPTI_VLAN_WORDS];
};

/* A port without VLANs of its own: all of them, and frames without tag are a network of their own, VLAN 0. */
extern const struct vpti_vlans vpti_vlans_all;

/* Nobody's: toward it every frame has its tag. */
extern const struct vpti_vlans vpti_vlans_none;

static inline bool vpti_vlan_carries(const struct vpti_vlans *v, uint16_t vid)
{
	return v->carries[vid / 64] >> vid % 64 & 1;
}

static inline uint16_t vpti_ethertype(const struct vpti_pkt *p)
{
	return (uint16_t)(p->eth[VPTI_ETH_TYPE] << 8 | p->eth[VPTI_ETH_TYPE + 1]);
}

/**
 * vpti_vlan_leaves() - May a frame leave through a port that carries v?
 *
 * Not if its tag would be off and what follows is another one: who receives that would take the sender's tag for the switch's, and
 * the sender would have chosen a VLAN that it is not in.
 */
static inline bool vpti_vlan_leaves(const struct vpti_vlans *v, const struct vpti_pkt *p)
{
	uint16_t vid = vpti_vid(p);

	return vpti_vlan_carries(v, vid) && !(vid == v->native && vpti_ethertype(p) == VPTI_VLAN_TYPE);
}

/*
 * Its tag, before it is copied to a port where its VLAN is not the native one. Undone by vpti_vlan_untag().
 *
 * A frame of VLAN 0 has none anywhere. One is on its way to a port with a native VLAN if the port has just got that.
 */
static inline void vpti_vlan_tag(const struct vpti_vlans *v, struct vpti_pkt *p)
{
	if (vpti_vid(p) == v->native || !vpti_vid(p))
		return;
	p->tag = p->tci;
	p->len += VPTI_VLAN_HLEN;
	if (p->hdr.flags & VPT_VNET_NEEDS_CSUM)
		p->hdr.csum_start = (uint16_t)(p->hdr.csum_start + VPTI_VLAN_HLEN);
	if (p->hdr.hdr_len)
		p->hdr.hdr_len = (uint16_t)(p->hdr.hdr_len + VPTI_VLAN_HLEN);
}

static inline void vpti_vlan_untag(struct vpti_pkt *p)
{
	if (!p->tag)
		return;
	p->tag = 0;
	p->len -= VPTI_VLAN_HLEN;
	if (p->hdr.flags & VPT_VNET_NEEDS_CSUM)
		p->hdr.csum_start = (uint16_t)(p->hdr.csum_start - VPTI_VLAN_HLEN);
	if (p->hdr.hdr_len)
		p->hdr.hdr_len = (uint16_t)(p->hdr.hdr_len - VPTI_VLAN_HLEN);
}

/* The frame's first bytes, where it is to have a tag: the private copy of its Ethernet header with the tag in it. */
static inline uint32_t vpti_vlan_head(const struct vpti_pkt *p, uint8_t *to)
{
	const uint8_t tag[VPTI_VLAN_HLEN] = { VPTI_VLAN_TYPE >> 8, VPTI_VLAN_TYPE & 0xff, (uint8_t)(p->tag >> 8),
					      (uint8_t)p->tag };

	memcpy(to, p->eth, VPTI_ETH_TYPE);
	memcpy(to + VPTI_ETH_TYPE, tag, VPTI_VLAN_HLEN);
	memcpy(to + VPTI_ETH_TYPE + VPTI_VLAN_HLEN, p->eth + VPTI_ETH_TYPE, VPTI_ETH_HLEN - VPTI_ETH_TYPE);
	return VPTI_VLAN_HEAD;
}

/**
 * vpti_vlan_classify() - Which VLAN a frame from a port belongs to; its tag comes off
 * @v:		what the port carries
 * @p:		packet that vpti_take_check() has passed
 *
 * Return: 0, or the counter that says why it is to be dropped
 */
enum vpt_counter vpti_vlan_classify(const struct vpti_vlans *v, struct vpti_pkt *p);

#endif /* VPTI_VLAN_H */
