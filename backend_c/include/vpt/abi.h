/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * abi.h - what the host and its peer agree on: the bytes of a region
 *
 * Single owner of the layout. The host, the Linux driver, the micro guest and the QEMU device all take it from
 * here; nothing else defines an offset. It includes nothing but fixed-width types. All fields are little-endian,
 * which is also the native order of every machine vpt runs on.
 *
 * A region is one memfd, shared with exactly one peer:
 *
 *      0 +------------------------------+
 *        | vpt_hdr   host's half        |  written by the host only
 *   2048 |           peer's half        |  written by the peer only
 *   4096 +------------------------------+
 *        | vpt_csb_atok[2 * pairs]      |  peer -> host: one cache line per ring, tx rings first
 *   8192 +------------------------------+
 *        | vpt_csb_ktoa[2 * pairs]      |  host -> peer: one cache line per ring, tx rings first
 *  12288 +------------------------------+
 *        | vpt_nm_if, ring offsets      |  netmap API 14, as netmap's own macros expect it
 *        | vpt_nm_ring tx 0, its slots  |
 *        | ...                          |
 *        | vpt_nm_ring rx n-1, its slots|
 *        +------------------------------+
 *        | buffers                      |
 *        +------------------------------+  region_size: a power of two, so that it can be a PCI BAR
 *
 * tx and rx are named from the peer's (guest's, application's) side, everywhere.
 *
 * Index protocol (sys/net/netmap.h of netmap, "barrier protocol" of its sync_kloop). Indices are slot numbers in
 * [0, num_slots); one slot always stays empty.
 *
 *   tx ring:  the peer owns [head, hwtail), the host owns [hwtail, head). Publishing moves head.
 *   rx ring:  the peer owns [head, hwtail) (packets to read), the host owns [hwtail, head) (slots to fill, less one).
 *
 *   peer:  slots; release; store atok.head          host:  load atok.head; acquire; slots
 *   host:  slots; release; store ktoa.hwtail        peer:  load ktoa.hwtail; acquire; slots
 *
 * Notification. Each side says in its own CSB entry whether it wants to hear from the other (need_kick != 0) and, with
 * VPT_F_EVENT_IDX, from which index on (kick_at, intr_at): a notification is due when a publication moves the index
 * from `old` past that slot, i.e. when at is in the cyclic range [old, new). The order that makes it safe:
 *
 *   producer:  publish index                        consumer:  store at; store need_kick = 1
 *              FULL FENCE  <------ pairs with ------>           FULL FENCE
 *              load need_kick, at                               load index again; sleep only if nothing came
 *
 * An index that is no slot of the ring is never written by an honest side; the host takes one to mean "always".
 * Without the first fence wake-ups are lost (tests/unit/test_litmus.py shows it).
 */
#ifndef VPT_ABI_H
#define VPT_ABI_H

#ifdef __KERNEL__
#include <linux/types.h>
#else
#include <stdint.h>
#endif

#define VPT_MAGIC 0x474e49522d545056ull /* "VPT-RING" in memory order */
#define VPT_ABI_VERSION 1u

#define VPT_HDR_SIZE 4096u
#define VPT_HDR_PEER_OFS 2048u
#define VPT_CSB_ATOK_OFS 4096u
#define VPT_CSB_KTOA_OFS 8192u
#define VPT_NETMAP_IF_OFS 12288u

#define VPT_MAX_PAIRS 32u       /* 2 * 32 CSB entries of 64 bytes fill a page */
#define VPT_MIN_SLOTS 64u
#define VPT_MAX_SLOTS 32768u
#define VPT_MIN_BUF_SIZE 256u
#define VPT_MAX_BUF_SIZE 65472u /* a slot's len is 16 bits wide */
#define VPT_MAX_FRAGS 64u       /* slots of one packet chained by VPT_NS_MOREFRAG, as in netmap */
#define VPT_MAX_FRAME 65550u    /* longest frame: 64 KiB of IP and an Ethernet header */

/*
 * Feature bits. Those that virtio-net has keep virtio-net's numbers (virtio 1.2, 5.1.3), from the same point of view:
 * CSUM and HOST_* are what the host accepts from the peer, GUEST_* what the peer accepts from the host.
 */
#define VPT_F_CSUM (1ull << 0)
#define VPT_F_GUEST_CSUM (1ull << 1)
#define VPT_F_MTU (1ull << 3)
#define VPT_F_MAC (1ull << 5)
#define VPT_F_GUEST_TSO4 (1ull << 7)
#define VPT_F_GUEST_TSO6 (1ull << 8)
#define VPT_F_GUEST_ECN (1ull << 9)
#define VPT_F_HOST_TSO4 (1ull << 11)
#define VPT_F_HOST_TSO6 (1ull << 12)
#define VPT_F_HOST_ECN (1ull << 13)
#define VPT_F_STATUS (1ull << 16)
#define VPT_F_EVENT_IDX (1ull << 29)
#define VPT_F_GUEST_USO4 (1ull << 54)
#define VPT_F_GUEST_USO6 (1ull << 55)
#define VPT_F_HOST_USO (1ull << 56)
/* A bit of our own: every packet starts with a vpt_vnet_hdr, and a packet may span slots (VPT_NS_MOREFRAG). */
#define VPT_F_VNET_HDR (1ull << 62)

/*
 * Device status, written by the peer to peer_status, mirrored by the host to host_status once it has acted. The peer
 * writes a value, rings the CFG doorbell and waits for the mirror; the values are virtio's (virtio 1.2, 2.1).
 *
 *   0            reset: the host forgets the rings, all indices are 0 again and all CSB entries are zeroed by their owner
 *   DRIVER_OK    peer_features is final and the rings are in use
 *   FAILED       written by either side: it gave up; host_status FAILED names its reason in host_error
 *
 * The peer acts as follows: status 0, wait; check magic, version and ranges; zero its atok entries; write peer_features
 * and peer_generation; status DRIVER_OK; wait. When generation later differs from peer_generation, the host has lost
 * the rings and the peer must start over.
 */
#define VPT_S_RESET 0u
#define VPT_S_ACKNOWLEDGE 1u
#define VPT_S_DRIVER 2u
#define VPT_S_DRIVER_OK 4u
#define VPT_S_FEATURES_OK 8u
#define VPT_S_FAILED 128u

/*
 * Doorbell and interrupt vectors, the same numbers in both directions, for n pairs: tx rings 0..n-1, rx rings
 * n..2n-1, then one for status, link and generation changes. On ivshmem-doorbell the peer rings
 * (host_peer_id << 16 | vector); the device needs `vectors` of at least VPT_VEC_COUNT(n).
 */
#define VPT_VEC_TX(n, i) (i)
#define VPT_VEC_RX(n, i) ((n) + (i))
#define VPT_VEC_CFG(n) (2u * (n))
#define VPT_VEC_COUNT(n) (2u * (n) + 1u)

#define VPT_IVSHMEM_HOST_ID 0u
#define VPT_IVSHMEM_GUEST_ID 1u

struct vpt_hdr {
	/* Host's half. Constant once the peer can see it, but for link, generation, host_status and host_error. */
	uint64_t magic;
	uint32_t abi_version;
	uint32_t hdr_size;
	uint64_t region_size;       /* bytes */
	uint64_t host_features;     /* offered */
	uint32_t netmap_if_ofs;     /* bytes from the region's start, as all _ofs */
	uint32_t csb_atok_ofs;
	uint32_t csb_ktoa_ofs;
	uint32_t pairs;             /* tx/rx ring pairs, 1..VPT_MAX_PAIRS */
	uint32_t num_slots;         /* of each ring; any number in VPT_MIN_SLOTS..VPT_MAX_SLOTS */
	uint32_t buf_size;          /* bytes, multiple of 64 */
	uint32_t buf_pool_ofs;      /* buffer 0; buffers 0 and 1 are never used, as in netmap */
	uint32_t num_bufs;
	uint32_t host_peer_id;      /* ivshmem: whom to ring */
	uint16_t mtu;               /* largest IP packet, without Ethernet header */
	uint8_t mac[6];
	uint32_t link;              /* 1: up */
	uint32_t generation;        /* changes when the host starts over; never 0 */
	uint32_t host_status;
	uint32_t host_error;        /* positive errno that goes with VPT_S_FAILED */
	char name[32];              /* port name, NUL-terminated */
	uint8_t host_pad[VPT_HDR_PEER_OFS - 124];

	/* Peer's half. The host copies each field once and checks the copy. */
	uint64_t peer_features;     /* accepted: a subset of host_features */
	uint32_t peer_status;
	uint32_t peer_generation;
	char driver[32];            /* who drives it, for people: "vpt_net 0.1"; need not be terminated */
	uint8_t peer_pad[VPT_HDR_SIZE - VPT_HDR_PEER_OFS - 48];
};

/* Peer -> host, one per ring (netmap's struct nm_csb_atok; intr_at is ours). */
struct vpt_csb_atok {
	uint32_t head;
	uint32_t cur;               /* netmap's wake-up point; the host does not read it */
	uint32_t appl_need_kick;    /* the peer wants an interrupt */
	uint32_t sync_flags;
	uint32_t intr_at;           /* interrupt me when hwtail moves past this slot */
	uint32_t pad[11];
};

/* Host -> peer, one per ring (netmap's struct nm_csb_ktoa; kick_at is ours). */
struct vpt_csb_ktoa {
	uint32_t hwcur;
	uint32_t hwtail;
	uint32_t kern_need_kick;    /* the host wants a kick */
	uint32_t kick_at;           /* kick me when head moves past this slot */
	uint32_t pad[12];
};

/* struct netmap_slot */
struct vpt_nm_slot {
	uint32_t buf_idx;
	uint16_t len;
	uint16_t flags;
	uint64_t ptr;
};

#define VPT_NS_BUF_CHANGED 0x0001u
#define VPT_NS_MOREFRAG 0x0020u

/* struct netmap_ring; head, cur and tail here are the peer's own, the CSB is what travels. */
struct vpt_nm_ring {
	int64_t buf_ofs;            /* buffer i: (char *)ring + buf_ofs + i * nr_buf_size */
	uint32_t num_slots;
	uint32_t nr_buf_size;
	uint16_t ringid;
	uint16_t dir;               /* 0: tx, 1: rx */
	uint32_t head;
	uint32_t cur;
	uint32_t tail;
	uint32_t flags;
	uint32_t reserved;
	int64_t ts[2];              /* struct timeval */
	uint64_t offset_mask;
	uint64_t buf_align;
	uint8_t align_pad[56];
	uint8_t sem[128];
	struct vpt_nm_slot slot[];
};

/* struct netmap_if */
struct vpt_nm_if {
	char ni_name[16];
	uint32_t ni_version;
	uint32_t ni_flags;
	uint32_t ni_tx_rings;
	uint32_t ni_rx_rings;
	uint32_t ni_bufs_head;
	uint32_t ni_host_tx_rings;
	uint32_t ni_host_rx_rings;
	uint32_t ni_spare1[3];
	int64_t ring_ofs[];         /* from this structure: tx rings, then rx rings */
};

#define VPT_NETMAP_API 14u

/* struct virtio_net_hdr_v1 (virtio 1.2, 5.1.6); num_buffers is 0 on passthrough rings. */
struct vpt_vnet_hdr {
	uint8_t flags;
	uint8_t gso_type;
	uint16_t hdr_len;
	uint16_t gso_size;
	uint16_t csum_start;
	uint16_t csum_offset;
	uint16_t num_buffers;
};

#define VPT_VNET_NEEDS_CSUM 1u
#define VPT_VNET_DATA_VALID 2u

#define VPT_GSO_NONE 0u
#define VPT_GSO_TCPV4 1u
#define VPT_GSO_UDP 3u
#define VPT_GSO_TCPV6 4u
#define VPT_GSO_UDP_L4 5u
#define VPT_GSO_ECN 0x80u

/*
 * Is `at` in the cyclic range [old, new) of a ring of n slots? All three in [0, n). The question "has the index moved
 * past the slot that the other side named", whatever the ring size (virtio's vring_need_event needs a power of two).
 */
static inline int vpt_event_passed(uint32_t at, uint32_t old, uint32_t now, uint32_t n)
{
	uint32_t moved = now >= old ? now - old : now + n - old;
	uint32_t ahead = at >= old ? at - old : at + n - old;

	return ahead < moved;
}

#endif /* VPT_ABI_H */
