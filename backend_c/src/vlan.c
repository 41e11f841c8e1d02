/* SPDX-License-Identifier: BSD-2-Clause */
/* vlan.c - taking 802.1Q tags off */
#include "vlan.h"

const struct vpti_vlans vpti_vlans_all = {
	.native = 0,
	.tags = true,
	.carries = {
		[0 ... VPTI_VLAN_WORDS - 2] = UINT64_MAX,
		[VPTI_VLAN_WORDS - 1] = UINT64_MAX >> 1, /* not 4095 */
	},
};

const struct vpti_vlans vpti_vlans_none = { .native = VPTI_VLAN_NONE };

/* The four bytes behind the Ethernet header, read once; the sender may have cut its frame anywhere. */
static void read_tail(const struct vpti_pkt *p, uint8_t *to)
{
	uint32_t skip = VPTI_ETH_HLEN, done = 0, i;

	for (i = 0; i <= p->nmore && done < VPTI_VLAN_HLEN; i++) {
		const struct vpti_frag *f = i ? &p->more[i - 1] : &p->first;
		uint32_t cut = VPTI_MIN(skip, f->len), k = VPTI_MIN(f->len - cut, VPTI_VLAN_HLEN - done);

		skip -= cut;
		memcpy(to + done, f->p + cut, k);
		done += k;
	}
}

/* Let the frame start four bytes later: its first bytes come from p->eth, so which ones are left out there does not matter. */
static void cut_front(struct vpti_pkt *p)
{
	uint32_t left = VPTI_VLAN_HLEN;

	while (p->first.len < left) {
		left -= p->first.len;
		p->first = *p->more++;
		p->nmore--;
	}
	p->first.p += left;
	p->first.len -= left;
	p->len -= VPTI_VLAN_HLEN;
}

/* Offsets in the vnet header count from the start of the frame. False if they lie in the tag. */
static bool move_offsets(struct vpti_pkt *p)
{
	if (p->hdr.flags & VPT_VNET_NEEDS_CSUM) {
		if (p->hdr.csum_start < VPTI_ETH_HLEN + VPTI_VLAN_HLEN)
			return false;
		p->hdr.csum_start = (uint16_t)(p->hdr.csum_start - VPTI_VLAN_HLEN);
	}
	p->hdr.hdr_len = (uint16_t)(p->hdr.hdr_len > VPTI_VLAN_HLEN ? p->hdr.hdr_len - VPTI_VLAN_HLEN : 0);
	return true;
}

enum vpt_counter vpti_vlan_classify(const struct vpti_vlans *v, struct vpti_pkt *p)
{
	bool tagged = vpti_ethertype(p) == VPTI_VLAN_TYPE;
	uint8_t tail[VPTI_VLAN_HLEN] = { 0 };
	uint16_t tci;

	if (tagged) {
		if (p->len < VPTI_ETH_HLEN + VPTI_VLAN_HLEN)
			return VPT_C_TX_DROP_RUNT;
		read_tail(p, tail);
	}
	tci = (uint16_t)(tail[0] << 8 | tail[1]);
	if (!(tci & VPTI_VLAN_VID))
		tci |= v->native;
	else if (!v->tags)
		return VPT_C_TX_DROP_VLAN;
	if (!vpti_vlan_carries(v, tci & VPTI_VLAN_VID))
		return VPT_C_TX_DROP_VLAN;
	if (tagged) {
		if (!move_offsets(p))
			return VPT_C_TX_DROP_BAD_HEADER;
		cut_front(p);
		memcpy(p->eth + VPTI_ETH_TYPE, tail + 2, VPTI_ETH_HLEN - VPTI_ETH_TYPE);
	}
	p->tci = tci;
	return 0;
}
