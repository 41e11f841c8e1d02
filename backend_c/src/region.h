/* SPDX-License-Identifier: BSD-2-Clause */
/* region.h - where things are in a region (abi.h), computed from trusted options and never read back from it */
#ifndef VPTI_REGION_H
#define VPTI_REGION_H

#include "vpt/vpt.h"

struct vpti_layout {
	uint32_t pairs;
	uint32_t num_slots;
	uint32_t buf_size;
	uint32_t num_bufs;
	uint32_t ring_ofs[2 * VPT_MAX_PAIRS]; /* tx rings, then rx rings */
	uint32_t buf_pool_ofs;
	uint64_t size;                        /* power of two */
};

/* What vpt can offer on a passthrough ring. */
#define VPTI_RING_FEATURES                                                                                             \
	(VPT_F_VNET_HDR | VPT_F_EVENT_IDX | VPT_F_STATUS | VPT_F_MAC | VPT_F_MTU | VPT_F_CSUM | VPT_F_GUEST_CSUM |     \
	 VPT_F_GUEST_TSO4 | VPT_F_GUEST_TSO6 | VPT_F_GUEST_ECN | VPT_F_HOST_TSO4 | VPT_F_HOST_TSO6 | VPT_F_HOST_ECN |  \
	 VPT_F_GUEST_USO4 | VPT_F_GUEST_USO6 | VPT_F_HOST_USO)

/* -EINVAL if the options give no region. */
int vpti_layout(const struct vpt_region_opts *opts, struct vpti_layout *l);

/* The features that these options offer, vpt's own included. */
uint64_t vpti_region_features(const struct vpt_region_opts *opts);

/* Write the host's half of the header, but for link, generation and status. */
void vpti_region_write_header(void *base, const struct vpt_region_opts *opts, const struct vpti_layout *l);

/* Write netmap_if, ring headers and slots as they are after a reset. */
void vpti_region_write_rings(void *base, const struct vpt_region_opts *opts, const struct vpti_layout *l);

/* Offloads depend on each other (virtio 1.2, 5.1.3.1): those that have what they need, and all else. */
uint64_t vpti_features_usable(uint64_t features);

/* Are these all usable? 0 or -EINVAL. */
int vpti_features_check(uint64_t features);

#endif /* VPTI_REGION_H */
