// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0
/* vpt_net_ethtool.c - what ethtool shows: who we are, how long the rings are, how often the sides woke each other */
#include <linux/ethtool.h>

#include "vpt_net.h"

enum vpt_net_where {
	VPT_NET_AT_DEV,		/* u64 in struct vpt_net */
	VPT_NET_AT_TX,		/* u64_stats_t in struct vpt_net_stats */
	VPT_NET_AT_RX,
};

struct vpt_net_counter {
	char name[ETH_GSTRING_LEN];
	enum vpt_net_where where;
	size_t ofs;
};

#define VPT_NET_DEV(field) { #field, VPT_NET_AT_DEV, offsetof(struct vpt_net, field) }
#define VPT_NET_TX(field) { "tx_" #field, VPT_NET_AT_TX, offsetof(struct vpt_net_stats, field) }
#define VPT_NET_RX(field) { "rx_" #field, VPT_NET_AT_RX, offsetof(struct vpt_net_stats, field) }

static const struct vpt_net_counter vpt_net_counters[] = {
	VPT_NET_TX(packets), VPT_NET_TX(bytes), VPT_NET_TX(drops),
	VPT_NET_TX(publishes), VPT_NET_TX(kicks), VPT_NET_TX(kicks_suppressed), VPT_NET_TX(stops),
	VPT_NET_DEV(tx_interrupts), VPT_NET_DEV(tx_timeouts),
	VPT_NET_RX(packets), VPT_NET_RX(bytes), VPT_NET_RX(drops),
	VPT_NET_RX(publishes), VPT_NET_RX(kicks), VPT_NET_RX(kicks_suppressed), VPT_NET_RX(busy_polls),
	VPT_NET_DEV(rx_interrupts), VPT_NET_DEV(cfg_interrupts), VPT_NET_DEV(restarts),
};

static u64 vpt_net_counter_read(const struct vpt_net *vn, const struct vpt_net_counter *c)
{
	const struct vpt_net_stats *s = c->where == VPT_NET_AT_TX ? &vn->tx_stats : &vn->rx_stats;
	unsigned int seq;
	u64 v;

	if (c->where == VPT_NET_AT_DEV)
		return READ_ONCE(*(const u64 *)((const char *)vn + c->ofs));
	do {
		seq = u64_stats_fetch_begin(&s->syncp);
		v = u64_stats_read((const u64_stats_t *)((const char *)s + c->ofs));
	} while (u64_stats_fetch_retry(&s->syncp, seq));
	return v;
}

static int vpt_net_get_sset_count(struct net_device *dev, int sset)
{
	return sset == ETH_SS_STATS ? ARRAY_SIZE(vpt_net_counters) : -EOPNOTSUPP;
}

static void vpt_net_get_strings(struct net_device *dev, u32 sset, u8 *data)
{
	for (size_t i = 0; sset == ETH_SS_STATS && i < ARRAY_SIZE(vpt_net_counters); i++)
		memcpy(data + i * ETH_GSTRING_LEN, vpt_net_counters[i].name, ETH_GSTRING_LEN);
}

static void vpt_net_get_ethtool_stats(struct net_device *dev, struct ethtool_stats *stats, u64 *data)
{
	const struct vpt_net *vn = netdev_priv(dev);

	for (size_t i = 0; i < ARRAY_SIZE(vpt_net_counters); i++)
		data[i] = vpt_net_counter_read(vn, &vpt_net_counters[i]);
}

static void vpt_net_get_drvinfo(struct net_device *dev, struct ethtool_drvinfo *info)
{
	const struct vpt_net *vn = netdev_priv(dev);

	strscpy(info->driver, VPT_NET_DRIVER, sizeof(info->driver));
	strscpy(info->version, VPT_NET_VERSION, sizeof(info->version));
	strscpy(info->bus_info, pci_name(vn->pdev), sizeof(info->bus_info));
}

static void vpt_net_get_ringparam(struct net_device *dev, struct ethtool_ringparam *ring,
				  struct kernel_ethtool_ringparam *kernel_ring, struct netlink_ext_ack *extack)
{
	const struct vpt_net *vn = netdev_priv(dev);

	ring->rx_max_pending = vn->rx.n;
	ring->tx_max_pending = vn->tx.n;
	ring->rx_pending = vn->rx.n;
	ring->tx_pending = vn->tx.n;
}

const struct ethtool_ops vpt_net_ethtool_ops = {
	.get_drvinfo = vpt_net_get_drvinfo,
	.get_link = ethtool_op_get_link,
	.get_ringparam = vpt_net_get_ringparam,
	.get_sset_count = vpt_net_get_sset_count,
	.get_strings = vpt_net_get_strings,
	.get_ethtool_stats = vpt_net_get_ethtool_stats,
	.get_ts_info = ethtool_op_get_ts_info,
};
