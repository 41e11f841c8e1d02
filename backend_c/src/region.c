/* SPDX-License-Identifier: BSD-2-Clause */
/* region.c - laying out a region and creating the memfd that holds it */
#define _GNU_SOURCE
#include "region.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include "util.h"

#define DEFAULT_SLOTS 1024u
/*
 * 33 cache lines. With netmap's 2048 all buffers would start in the same few sets of each cache: a ring of 1024
 * short packets then evicts itself from L1 and L2. An odd number of lines spreads them over all sets.
 */
#define DEFAULT_BUF_SIZE 2112u
#define DEFAULT_MTU 1500u
#define FIRST_BUF 2u /* netmap never uses buffers 0 and 1 */

_Static_assert(sizeof(struct vpt_hdr) == VPT_HDR_SIZE, "header page");
_Static_assert(offsetof(struct vpt_hdr, peer_features) == VPT_HDR_PEER_OFS, "peer's half");
_Static_assert(sizeof(struct vpt_csb_atok) == 64 && sizeof(struct vpt_csb_ktoa) == 64, "one cache line per CSB entry");
_Static_assert(sizeof(struct vpt_nm_slot) == 16, "netmap_slot");
_Static_assert(offsetof(struct vpt_nm_ring, head) == 20 && offsetof(struct vpt_nm_ring, ts) == 40 &&
	       offsetof(struct vpt_nm_ring, offset_mask) == 56 && offsetof(struct vpt_nm_ring, slot) == 256, "netmap_ring");
_Static_assert(offsetof(struct vpt_nm_if, ring_ofs) == 56, "netmap_if");

int vpti_layout(const struct vpt_region_opts *opts, struct vpti_layout *l)
{
	uint64_t ofs, end;
	uint32_t i;

	memset(l, 0, sizeof(*l));
	l->pairs = opts->pairs;
	l->num_slots = opts->num_slots ? opts->num_slots : DEFAULT_SLOTS;
	l->buf_size = opts->buf_size ? opts->buf_size : DEFAULT_BUF_SIZE;
	if (!l->pairs || l->pairs > VPT_MAX_PAIRS || l->num_slots < VPT_MIN_SLOTS || l->num_slots > VPT_MAX_SLOTS ||
	    l->buf_size < VPT_MIN_BUF_SIZE || l->buf_size > VPT_MAX_BUF_SIZE || l->buf_size % 64 ||
	    (opts->mtu && (opts->mtu < 68 || opts->mtu > 65535)))
		return -EINVAL;
	l->num_bufs = FIRST_BUF + 2 * l->pairs * l->num_slots;
	ofs = VPTI_ALIGN(VPT_NETMAP_IF_OFS + sizeof(struct vpt_nm_if) + 2 * l->pairs * sizeof(int64_t), 256);
	for (i = 0; i < 2 * l->pairs; i++) {
		l->ring_ofs[i] = (uint32_t)ofs;
		ofs = VPTI_ALIGN(ofs + sizeof(struct vpt_nm_ring) + (uint64_t)l->num_slots * sizeof(struct vpt_nm_slot), 256);
	}
	ofs = VPTI_ALIGN(ofs, 4096);
	end = ofs + (uint64_t)l->num_bufs * l->buf_size;
	if (end > UINT32_MAX) /* offsets in the header are 32 bits wide */
		return -EINVAL;
	l->buf_pool_ofs = (uint32_t)ofs;
	l->size = 1u << 20;
	while (l->size < end)
		l->size <<= 1;
	return 0;
}

uint64_t vpti_region_features(const struct vpt_region_opts *opts)
{
	return opts->features ? opts->features & VPTI_RING_FEATURES : VPTI_RING_FEATURES;
}

uint64_t vpti_features_usable(uint64_t f)
{
	const uint64_t guest_tso = VPT_F_GUEST_TSO4 | VPT_F_GUEST_TSO6, host_tso = VPT_F_HOST_TSO4 | VPT_F_HOST_TSO6;

	if (!(f & VPT_F_GUEST_CSUM))
		f &= ~(guest_tso | VPT_F_GUEST_USO4 | VPT_F_GUEST_USO6);
	if (!(f & VPT_F_CSUM))
		f &= ~(host_tso | VPT_F_HOST_USO);
	if (!(f & guest_tso))
		f &= ~VPT_F_GUEST_ECN;
	if (!(f & host_tso))
		f &= ~VPT_F_HOST_ECN;
	return f;
}

int vpti_features_check(uint64_t f)
{
	return vpti_features_usable(f) == f ? 0 : -EINVAL;
}

void vpti_region_write_header(void *base, const struct vpt_region_opts *opts, const struct vpti_layout *l)
{
	struct vpt_hdr *h = base;

	h->magic = VPT_MAGIC;
	h->abi_version = VPT_ABI_VERSION;
	h->hdr_size = VPT_HDR_SIZE;
	h->region_size = l->size;
	h->host_features = vpti_region_features(opts);
	h->netmap_if_ofs = VPT_NETMAP_IF_OFS;
	h->csb_atok_ofs = VPT_CSB_ATOK_OFS;
	h->csb_ktoa_ofs = VPT_CSB_KTOA_OFS;
	h->pairs = l->pairs;
	h->num_slots = l->num_slots;
	h->buf_size = l->buf_size;
	h->buf_pool_ofs = l->buf_pool_ofs;
	h->num_bufs = l->num_bufs;
	h->host_peer_id = VPT_IVSHMEM_HOST_ID;
	h->mtu = (uint16_t)(opts->mtu ? opts->mtu : DEFAULT_MTU);
	memcpy(h->mac, opts->mac, sizeof(h->mac));
	memcpy(h->name, opts->name, sizeof(h->name));
	h->name[sizeof(h->name) - 1] = '\0';
}

void vpti_region_write_rings(void *base, const struct vpt_region_opts *opts, const struct vpti_layout *l)
{
	struct vpt_nm_if *nif = (void *)((char *)base + VPT_NETMAP_IF_OFS);
	uint32_t buf = FIRST_BUF;
	uint32_t i, s;

	/* Field by field: a peer that looks while this is written again finds the old value or the same new one. */
	memcpy(nif->ni_name, opts->name, sizeof(nif->ni_name) - 1);
	nif->ni_version = VPT_NETMAP_API;
	nif->ni_tx_rings = l->pairs;
	nif->ni_rx_rings = l->pairs;
	for (i = 0; i < 2 * l->pairs; i++) {
		struct vpt_nm_ring *r = (void *)((char *)base + l->ring_ofs[i]);

		nif->ring_ofs[i] = (int64_t)l->ring_ofs[i] - VPT_NETMAP_IF_OFS;
		r->buf_ofs = (int64_t)l->buf_pool_ofs - l->ring_ofs[i];
		r->num_slots = l->num_slots;
		r->nr_buf_size = l->buf_size;
		r->ringid = (uint16_t)(i % l->pairs);
		r->dir = i >= l->pairs;
		r->head = r->cur = 0;
		r->tail = r->dir ? 0 : l->num_slots - 1;
		for (s = 0; s < l->num_slots; s++) {
			r->slot[s].buf_idx = buf++;
			r->slot[s].len = r->slot[s].flags = 0;
		}
	}
}

int64_t vpt_region_size(const struct vpt_region_opts *opts)
{
	struct vpti_layout l;
	int rc = vpti_layout(opts, &l);

	return rc ? rc : (int64_t)l.size;
}

int vpt_region_create(const struct vpt_region_opts *opts)
{
	struct vpti_layout l;
	uint32_t generation = 0;
	struct vpt_hdr *h;
	int fd, rc;

	rc = vpti_layout(opts, &l);
	if (rc)
		return rc;
	if (vpti_features_check(vpti_region_features(opts)))
		return -EINVAL;
	fd = memfd_create("vpt-region", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0)
		return -errno;
	if (ftruncate(fd, (off_t)l.size) || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)) {
		rc = -errno;
		goto err;
	}
	h = mmap(NULL, l.size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (h == MAP_FAILED) {
		rc = -errno;
		goto err;
	}
	vpti_region_write_header(h, opts, &l);
	vpti_region_write_rings(h, opts, &l);
	h->link = 1;
	while (!generation) {
		if (getrandom(&generation, sizeof(generation), 0) != sizeof(generation))
			generation = (uint32_t)vpti_now_ns();
	}
	h->generation = generation;
	munmap(h, l.size);
	return fd;
err:
	close(fd);
	return rc;
}
