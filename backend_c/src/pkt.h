/* SPDX-License-Identifier: BSD-2-Clause */
/* pkt.h - a packet in place: pointers into its owner's memory, and the private copy of what decisions are made on */
#ifndef VPTI_PKT_H
#define VPTI_PKT_H

#include <endian.h>
#include <stdint.h>
#include <string.h>

#include "vpt/abi.h"

#define VPTI_ETH_HLEN 14u
#define VPTI_ETH_TYPE 12u /* offset of the EtherType */
#define VPTI_VLAN_VID 0xfffu /* of a tag's TCI: 0 is a priority tag, which says no VLAN; 4095 is reserved */

/* A run of bytes in somebody else's memory. They may change at any time: read each once, decide nothing on them twice. */
struct vpti_frag {
	const uint8_t *p;
	uint32_t len;
};

/**
 * struct vpti_pkt - one packet of a burst
 * @hdr:	private copy of the vnet header, checked; all zero when its port has none
 * @eth:	private copy of the frame's first 14 bytes. Lookups are made on it and it is what the receiver gets, so a sender
 *		that rewrites its packet meanwhile cannot send to where it was not looked up
 * @len:	bytes of the frame (without vnet header), equal to the sum of the fragments unless there is a tag to put in
 * @first:	the frame's first fragment, starting with the Ethernet header
 * @more:	the following ones
 * @cause:	why it was dropped, by its sender's port or by the last receiver: the counter that says so (enum vpt_counter); 0: it
 *		was not
 * @tci:	VLAN it belongs to and the priority it came with (802.1Q, 9.6); 0 where the switch does not look at VLANs
 * @tag:	TCI of a tag that the copy is to put behind the addresses; 0: none. len counts it, the fragments do not
 */
struct vpti_pkt {
	struct vpti_frag first;
	const struct vpti_frag *more;
	uint32_t len;
	uint16_t nmore;
	uint16_t dst;
	uint16_t cause;
	uint16_t tci;
	uint16_t tag;
	struct vpt_vnet_hdr hdr;
	uint8_t eth[VPTI_ETH_HLEN];
};

/* 48 bits of address, in the order in which they are sent; of p->eth, where two bytes more can be read than an address has. */
static inline uint64_t vpti_pkt_mac(const uint8_t *at)
{
	uint64_t word;

	memcpy(&word, at, sizeof(word));
	return be64toh(word) >> 16;
}

/* The VLAN that a packet belongs to. */
static inline uint16_t vpti_vid(const struct vpti_pkt *p)
{
	return p->tci & VPTI_VLAN_VID;
}

/* Keys of the MAC table: VLAN and address. */
static inline uint64_t vpti_pkt_dst(const struct vpti_pkt *p)
{
	return (uint64_t)vpti_vid(p) << 48 | vpti_pkt_mac(p->eth);
}

static inline uint64_t vpti_pkt_src(const struct vpti_pkt *p)
{
	return (uint64_t)vpti_vid(p) << 48 | vpti_pkt_mac(p->eth + 6);
}

#endif /* VPTI_PKT_H */
