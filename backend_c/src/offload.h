/* SPDX-License-Identifier: BSD-2-Clause */
/* offload.h - checksum and segmentation: checking what a sender claims, doing in software what a receiver refused */
#ifndef VPTI_OFFLOAD_H
#define VPTI_OFFLOAD_H

#include <stdbool.h>
#include <string.h>

#include "pkt.h"
#include "util.h"

/*
 * Segments of one packet. Linux never goes below an MSS of 48, of which timestamps leave 36: 64 KiB then make 1821
 * segments. A gso_size that gives more than this is a lie or an attack.
 */
#define VPTI_GSO_MAX_SEGS 2048u
#define VPTI_GSO_MAX_HDR 256u    /* Ethernet, VLANs, IP with options or extension headers, TCP with options */
#define VPTI_GSO_MAX_FRAGS 4096u /* one for each segment, one more for each fragment of the packet */

/* Where the segments of one packet live until they have been delivered. One per worker, allocated; never shared. */
struct vpti_offload_scratch {
	struct vpti_pkt pkt[VPTI_GSO_MAX_SEGS];
	struct vpti_frag frag[VPTI_GSO_MAX_FRAGS];
	uint8_t hdr[VPTI_GSO_MAX_SEGS * VPTI_GSO_MAX_HDR];
};

/* Does a vnet header ask for nothing? */
static inline bool vpti_vnet_is_plain(uint8_t flags, uint8_t gso_type)
{
	return !((flags & VPT_VNET_NEEDS_CSUM) | gso_type);
}

bool vpti_vnet_check_offloads(struct vpti_pkt *p, uint64_t accepted);

/**
 * vpti_vnet_check() - Is a sender's vnet header one that vpt can act on?
 * @p:		packet; hdr, len and fragments filled in
 * @accepted:	features that the sender negotiated (VPT_F_CSUM, VPT_F_HOST_*)
 *
 * Checks that the checksum field lies in the packet behind the Ethernet header, that gso_type is known and negotiated,
 * gso_size sane for a length that IP allows, and that segmentation comes with NEEDS_CSUM for the right field. Then makes
 * p->hdr what a receiver may see: flags that are not the sender's to set (virtio 1.2, 5.1.6.2) and fields that mean nothing
 * become zero, hdr_len, which is a hint and never used here, at most the length. Touches no packet memory.
 *
 * Return: true if it may be forwarded
 */
static inline bool vpti_vnet_check(struct vpti_pkt *p, uint64_t accepted)
{
	if (!vpti_vnet_is_plain(p->hdr.flags, p->hdr.gso_type))
		return vpti_vnet_check_offloads(p, accepted);
	memset(&p->hdr, 0, sizeof(p->hdr));
	return true;
}

/* Does this packet carry an offload that a receiver with these VPT_F_GUEST_* features refused? */
static inline bool vpti_offload_needed(const struct vpti_pkt *p, uint64_t accepts)
{
	uint64_t need = 0;

	if (vpti_likely(vpti_vnet_is_plain(p->hdr.flags, p->hdr.gso_type)))
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
 * @p:		packet, passed by vpti_vnet_check()
 * @accepts:	VPT_F_GUEST_* of the receiver
 * @s:		scratch; holds the result until the next call
 *
 * Headers are copied into the scratch once, parsed and rewritten there; payload is referred to, not copied, so that
 * delivery stays the only copy. The first fragment of each result is such a private header; it starts with p->eth.
 * A checksum left to the receiver (it accepts GUEST_CSUM but no segmentation) stays partial in each segment. Memory
 * that changes under it gives a wrong checksum in that packet, nothing else.
 *
 * Work is bounded by the packet's length, its fragments and VPTI_GSO_MAX_SEGS.
 *
 * Return: number of packets in s->pkt, or -EINVAL if headers and vnet header contradict each other
 */
int vpti_offload(const struct vpti_pkt *p, uint64_t accepts, struct vpti_offload_scratch *s);

#endif /* VPTI_OFFLOAD_H */
