/* SPDX-License-Identifier: BSD-2-Clause */
/* offload.h - checksum and segmentation: checking what a sender claims, doing in software what a receiver refused */
#ifndef VPTI_OFFLOAD_H
#define VPTI_OFFLOAD_H

#include <stdbool.h>

#include "pkt.h"

#define VPTI_GSO_MAX_SEGS 256u   /* of one packet; a gso_size that gives more is a lie or an attack */
#define VPTI_GSO_MAX_HDR 256u    /* Ethernet, VLANs, IP with options or extension headers, TCP with options */
#define VPTI_GSO_MAX_FRAGS 4096u

/* Where the segments of one packet live until they have been delivered. One per worker; never shared. */
struct vpti_offload_scratch {
	struct vpti_pkt pkt[VPTI_GSO_MAX_SEGS];
	uint8_t hdr[VPTI_GSO_MAX_SEGS][VPTI_GSO_MAX_HDR];
	struct vpti_frag frag[VPTI_GSO_MAX_FRAGS];
};

/**
 * vpti_vnet_check() - Is a sender's vnet header one that vpt can act on?
 * @p:		packet; hdr, len and fragments filled in
 * @accepted:	features that the sender negotiated (VPT_F_CSUM, VPT_F_HOST_*)
 *
 * Checks csum_start + csum_offset + 2 <= len, gso_type known and negotiated, gso_size sane for the length, NEEDS_CSUM where
 * segmentation demands it. Touches no packet memory. hdr_len is a hint and never trusted.
 *
 * Return: true if it may be forwarded
 */
bool vpti_vnet_check(const struct vpti_pkt *p, uint64_t accepted);

/* Does this packet carry an offload that a receiver with these VPT_F_GUEST_* features refused? */
static inline bool vpti_offload_needed(const struct vpti_pkt *p, uint64_t accepts)
{
	uint64_t need = 0;

	if (!(p->hdr.flags & VPT_VNET_NEEDS_CSUM) && p->hdr.gso_type == VPT_GSO_NONE)
		return false;
	if (p->hdr.flags & VPT_VNET_NEEDS_CSUM)
		need |= VPT_F_GUEST_CSUM;
	switch (p->hdr.gso_type & ~VPT_GSO_ECN) {
	case VPT_GSO_TCPV4: need |= VPT_F_GUEST_TSO4; break;
	case VPT_GSO_TCPV6: need |= VPT_F_GUEST_TSO6; break;
	case VPT_GSO_UDP_L4: need |= VPT_F_GUEST_USO4 | VPT_F_GUEST_USO6; break;
	}
	if (p->hdr.gso_type & VPT_GSO_ECN)
		need |= VPT_F_GUEST_ECN;
	return (need & ~accepts) != 0;
}

/**
 * vpti_offload() - Turn a packet into frames that a receiver with fewer offloads takes
 * @p:		packet, checked by vpti_vnet_check()
 * @accepts:	VPT_F_GUEST_* of the receiver
 * @s:		scratch; holds the result until the next call
 *
 * Headers are copied into the scratch once, parsed and rewritten there; payload is referred to, not copied, so that delivery
 * stays the only copy. A checksum left to the receiver (it accepts GUEST_CSUM but no segmentation) stays partial in
 * each segment. Memory that changes under it gives a wrong checksum in that packet, nothing else.
 *
 * Return: number of packets in s->pkt, or -EINVAL if headers and vnet header contradict each other
 */
int vpti_offload(const struct vpti_pkt *p, uint64_t accepts, struct vpti_offload_scratch *s);

#endif /* VPTI_OFFLOAD_H */
