/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/*
 * vpt_net.h - what the files of the driver share
 *
 * Who may touch what:
 *
 *   ctl_work (and ndo_open, ndo_stop, which never overlap it)  state, header, all rings while the datapath is stopped
 *   whoever holds the tx queue's lock                          tx ring, tx statistics
 *   NAPI                                                       rx ring, rx statistics
 *   interrupt handlers                                         need_kick of rx when they own NAPI; nothing else
 *
 * The host is not trusted with the guest's memory: each value that it can write is read once, checked, then used.
 * What fails a check takes the device down until the host starts over or the interface is set up again.
 */
#ifndef VPT_NET_H
#define VPT_NET_H

#include <linux/netdevice.h>
#include <linux/pci.h>
#include <linux/u64_stats_sync.h>
#include <linux/workqueue.h>

#include <vpt/abi.h>

#define VPT_NET_DRIVER "vpt_net"
#define VPT_NET_VERSION "0.1"

/* From abi.h's table; what the driver does not know it does not accept. */
#define VPT_NET_OFFLOADS (VPT_F_CSUM | VPT_F_GUEST_CSUM | VPT_F_GUEST_TSO4 | VPT_F_GUEST_TSO6 | VPT_F_GUEST_ECN | \
			  VPT_F_GUEST_USO4 | VPT_F_GUEST_USO6 | VPT_F_HOST_TSO4 | VPT_F_HOST_TSO6 | VPT_F_HOST_ECN | \
			  VPT_F_HOST_USO)
#define VPT_NET_FEATURES (VPT_NET_OFFLOADS | VPT_F_MTU | VPT_F_MAC | VPT_F_STATUS | VPT_F_EVENT_IDX | VPT_F_VNET_HDR)

/**
 * struct vpt_net_ring - one ring, as this side sees it
 * @atok:	our half of its CSB
 * @ktoa:	the host's half
 * @slot:	the slots
 * @n:		how many
 * @head:	first slot of ours that is not used up; private
 * @published:	what atok->head says; between it and @head lies what the host has not been told of
 * @tail:	first slot that is not ours; the last value of ktoa->hwtail that passed the check
 * @vector:	doorbell and interrupt number
 * @armed:	we asked for an interrupt
 */
struct vpt_net_ring {
	struct vpt_csb_atok *atok;
	const struct vpt_csb_ktoa *ktoa;
	struct vpt_nm_slot *slot;
	u32 n;
	u32 head;
	u32 published;
	u32 tail;
	u32 vector;
	bool armed;
};

struct vpt_net_stats {
	u64_stats_t packets;
	u64_stats_t bytes;
	u64_stats_t drops;		/* malformed, no memory */
	u64_stats_t publishes;		/* times the host was shown a new index */
	u64_stats_t kicks;
	u64_stats_t kicks_suppressed;	/* publications that the host did not want to hear of */
	u64_stats_t stops;		/* tx: ring full */
	u64_stats_t busy_polls;		/* rx: polls that used their budget up */
	struct u64_stats_sync syncp;
};

/* Tells of which slots a received packet consists. */
struct vpt_net_frag {
	const u8 *p;
	u32 len;
};

enum vpt_net_state {
	VPT_NET_CLOSED,		/* interface is down */
	VPT_NET_STARTING,	/* handshake to do, or to try again */
	VPT_NET_RUNNING,
	VPT_NET_FAILED,		/* one side gave up; a new generation or ifup starts over */
};

enum vpt_net_flag {
	VPT_NET_F_DATA,		/* the datapath may touch the rings */
	VPT_NET_F_CLOSING,	/* ndo_stop is at work: ctl_work must do nothing more */
	VPT_NET_F_BROKEN,	/* the datapath met a value that cannot be; ctl_work takes the device down */
	VPT_NET_F_WAITING,	/* said that the host does not answer; say it once */
};

struct vpt_net {
	struct net_device *dev;
	struct pci_dev *pdev;
	void __iomem *regs;		/* BAR 0 */
	u8 *base;			/* BAR 2: the region */
	struct vpt_hdr *shared;		/* its header, where the host may write at any time */
	struct vpt_hdr hdr;		/* copy that passed the checks; geometry comes from here only */
	u64 features;			/* accepted */
	u32 vnet_len;			/* bytes in front of each frame */
	u32 max_slots;			/* longest chain we send */

	struct napi_struct napi;
	struct vpt_net_ring rx ____cacheline_aligned_in_smp;
	struct vpt_net_stats rx_stats;
	struct vpt_net_frag chain[VPT_MAX_FRAGS];
	struct vpt_net_ring tx ____cacheline_aligned_in_smp;
	struct vpt_net_stats tx_stats;

	unsigned long flags;		/* enum vpt_net_flag */
	enum vpt_net_state state;
	u32 generation;			/* that we started with */
	struct delayed_work ctl_work;
	u64 restarts;			/* handshakes completed */
	u64 tx_timeouts;
	u64 tx_interrupts;		/* each written by its own handler only */
	u64 rx_interrupts;
	u64 cfg_interrupts;
	char irq_name[3][IFNAMSIZ + 8];
};

static inline u32 vpt_net_dist(u32 from, u32 to, u32 n)
{
	return to >= from ? to - from : to + n - from;
}

static inline u32 vpt_net_add(u32 i, u32 by, u32 n)
{
	return i + by >= n ? i + by - n : i + by;
}

/* Slots that are ours to use: free ones of a tx ring, filled ones of an rx ring. */
static inline u32 vpt_net_avail(const struct vpt_net_ring *r)
{
	return vpt_net_dist(r->head, r->tail, r->n);
}

static inline void vpt_net_count(struct vpt_net_stats *s, u64_stats_t *counter, u64 by)
{
	u64_stats_update_begin(&s->syncp);
	u64_stats_add(counter, by);
	u64_stats_update_end(&s->syncp);
}

void vpt_net_doorbell(struct vpt_net *vn, u32 vector);

/* vpt_net_ctl.c */
bool vpt_net_is_ours(const void *hdr);
int vpt_net_region_check(struct vpt_net *vn, u64 bar_size);
void vpt_net_ctl_work(struct work_struct *work);
void vpt_net_ctl_wake(struct vpt_net *vn);
void vpt_net_ctl_close(struct vpt_net *vn);
__printf(2, 3) void vpt_net_broken(struct vpt_net *vn, const char *fmt, ...);

/* vpt_net_ring.c */
netdev_tx_t vpt_net_start_xmit(struct sk_buff *skb, struct net_device *dev);
int vpt_net_poll(struct napi_struct *napi, int budget);
irqreturn_t vpt_net_tx_interrupt(int irq, void *data);
irqreturn_t vpt_net_rx_interrupt(int irq, void *data);
void vpt_net_tx_rekick(struct vpt_net *vn);

/* vpt_net_ethtool.c */
extern const struct ethtool_ops vpt_net_ethtool_ops;

#endif /* VPT_NET_H */
