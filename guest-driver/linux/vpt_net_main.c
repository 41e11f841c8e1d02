// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0
/*
 * vpt_net_main.c - network driver for vpt's passthrough ports: PCI device, net device, opening and closing
 *
 * The device is QEMU's ivshmem-doorbell: BAR 0 has the doorbell register, BAR 2 is the region (abi.h). Other people's
 * ivshmem devices have the same PCI id, so what makes it ours is the magic at the start of BAR 2.
 */
#include <linux/etherdevice.h>
#include <linux/if_vlan.h>
#include <linux/interrupt.h>
#include <linux/module.h>
#include <linux/rtnetlink.h>

#include "vpt_net.h"

#define VPT_NET_BAR_REGS 0
#define VPT_NET_BAR_REGION 2

static irqreturn_t vpt_net_cfg_interrupt(int irq, void *data)
{
	struct vpt_net *vn = data;

	WRITE_ONCE(vn->cfg_interrupts, vn->cfg_interrupts + 1);
	vpt_net_ctl_wake(vn);
	return IRQ_HANDLED;
}

/* ---- net device ---- */

static const struct {
	const char *name;
	irq_handler_t handler;
} vpt_net_irqs[] = {
	{ "tx", vpt_net_tx_interrupt },
	{ "rx", vpt_net_rx_interrupt },
	{ "cfg", vpt_net_cfg_interrupt },
};

static int vpt_net_irq(const struct vpt_net *vn, int i)
{
	const u32 vector[] = { vn->tx.vector, vn->rx.vector, VPT_VEC_CFG(vn->hdr.pairs) };

	return pci_irq_vector(vn->pdev, vector[i]);
}

static void vpt_net_free_irqs(struct vpt_net *vn, int n)
{
	while (n--)
		free_irq(vpt_net_irq(vn, n), vn);
}

static int vpt_net_request_irqs(struct vpt_net *vn)
{
	int err;

	for (int i = 0; i < ARRAY_SIZE(vpt_net_irqs); i++) {
		snprintf(vn->irq_name[i], sizeof(vn->irq_name[i]), "%s-%s", vn->dev->name, vpt_net_irqs[i].name);
		err = request_irq(vpt_net_irq(vn, i), vpt_net_irqs[i].handler, 0, vn->irq_name[i], vn);
		if (err) {
			vpt_net_free_irqs(vn, i);
			return err;
		}
	}
	return 0;
}

static int vpt_net_open(struct net_device *dev)
{
	struct vpt_net *vn = netdev_priv(dev);
	int err;

	netif_carrier_off(dev);
	vn->state = VPT_NET_STARTING;
	vn->flags = 0;
	err = vpt_net_request_irqs(vn);
	if (err) {
		vn->state = VPT_NET_CLOSED;
		return err;
	}
	vpt_net_ctl_wake(vn);
	return 0;
}

static int vpt_net_stop(struct net_device *dev)
{
	struct vpt_net *vn = netdev_priv(dev);

	set_bit(VPT_NET_F_CLOSING, &vn->flags);
	vpt_net_free_irqs(vn, ARRAY_SIZE(vpt_net_irqs));
	cancel_delayed_work_sync(&vn->ctl_work);
	vpt_net_ctl_close(vn);
	/* The last poll may have found a broken ring just before it ended. */
	cancel_delayed_work_sync(&vn->ctl_work);
	return 0;
}

static void vpt_net_tx_timeout(struct net_device *dev, unsigned int queue)
{
	vpt_net_tx_rekick(netdev_priv(dev));
}

static void vpt_net_get_stats64(struct net_device *dev, struct rtnl_link_stats64 *to)
{
	const struct vpt_net *vn = netdev_priv(dev);
	unsigned int seq;

	do {
		seq = u64_stats_fetch_begin(&vn->tx_stats.syncp);
		to->tx_packets = u64_stats_read(&vn->tx_stats.packets);
		to->tx_bytes = u64_stats_read(&vn->tx_stats.bytes);
		to->tx_dropped = u64_stats_read(&vn->tx_stats.drops);
	} while (u64_stats_fetch_retry(&vn->tx_stats.syncp, seq));
	do {
		seq = u64_stats_fetch_begin(&vn->rx_stats.syncp);
		to->rx_packets = u64_stats_read(&vn->rx_stats.packets);
		to->rx_bytes = u64_stats_read(&vn->rx_stats.bytes);
		to->rx_dropped = u64_stats_read(&vn->rx_stats.drops);
	} while (u64_stats_fetch_retry(&vn->rx_stats.syncp, seq));
}

static const struct net_device_ops vpt_net_ops = {
	.ndo_open = vpt_net_open,
	.ndo_stop = vpt_net_stop,
	.ndo_start_xmit = vpt_net_start_xmit,
	.ndo_tx_timeout = vpt_net_tx_timeout,
	.ndo_get_stats64 = vpt_net_get_stats64,
	.ndo_set_mac_address = eth_mac_addr,
	.ndo_validate_addr = eth_validate_addr,
};

/* Tell the stack what the accepted features allow. -EINVAL: the MTU does not fit the rings. */
static int vpt_net_setup(struct vpt_net *vn)
{
	static const struct {
		u64 feature;
		netdev_features_t netdev;
	} map[] = {
		{ VPT_F_CSUM, NETIF_F_HW_CSUM },
		{ VPT_F_HOST_TSO4, NETIF_F_TSO },
		{ VPT_F_HOST_TSO6, NETIF_F_TSO6 },
		{ VPT_F_HOST_ECN, NETIF_F_TSO_ECN },
		{ VPT_F_HOST_USO, NETIF_F_GSO_UDP_L4 },
	};
	struct net_device *dev = vn->dev;
	const struct vpt_hdr *h = &vn->hdr;
	u32 slots = vn->vnet_len ? min(VPT_MAX_FRAGS, h->num_slots - 1) : 1;
	u32 frame = min(slots * h->buf_size - vn->vnet_len, VPT_MAX_FRAME);

	/* Frames are copied, so it does not matter where they lie. */
	dev->hw_features = NETIF_F_SG | NETIF_F_FRAGLIST;
	for (int i = 0; i < ARRAY_SIZE(map); i++)
		if (vn->features & map[i].feature)
			dev->hw_features |= map[i].netdev;
	dev->features = dev->hw_features | NETIF_F_HIGHDMA;
	if (vn->features & VPT_F_GUEST_CSUM)
		dev->features |= NETIF_F_RXCSUM;
	dev->vlan_features = dev->features;

	dev->min_mtu = ETH_MIN_MTU;
	dev->max_mtu = frame - ETH_HLEN;
	dev->mtu = min_t(u32, ETH_DATA_LEN, dev->max_mtu);
	if (vn->features & VPT_F_MTU) {
		if (h->mtu > dev->max_mtu) {
			dev_err(&vn->pdev->dev, "MTU of %u does not fit slots of %u bytes\n", h->mtu, h->buf_size);
			return -EINVAL;
		}
		dev->max_mtu = h->mtu;
		dev->mtu = h->mtu;
	}
	if (dev->features & NETIF_F_GSO_MASK)
		netif_set_tso_max_size(dev, min_t(u32, frame, GSO_LEGACY_MAX_SIZE));
	else
		frame = min(frame, dev->max_mtu + VLAN_ETH_HLEN);
	vn->max_slots = DIV_ROUND_UP(vn->vnet_len + frame, h->buf_size);

	if ((vn->features & VPT_F_MAC) && is_valid_ether_addr(h->mac))
		eth_hw_addr_set(dev, h->mac);
	else
		eth_hw_addr_random(dev);
	return 0;
}

static void vpt_net_init(struct vpt_net *vn)
{
	struct net_device *dev = vn->dev;

	SET_NETDEV_DEV(dev, &vn->pdev->dev);
	dev->netdev_ops = &vpt_net_ops;
	dev->ethtool_ops = &vpt_net_ethtool_ops;
	dev->watchdog_timeo = 5 * HZ;
	u64_stats_init(&vn->tx_stats.syncp);
	u64_stats_init(&vn->rx_stats.syncp);
	INIT_DELAYED_WORK(&vn->ctl_work, vpt_net_ctl_work);
	netif_napi_add(dev, &vn->napi, vpt_net_poll);
	netif_carrier_off(dev);
}

/* ---- PCI device ---- */

/* Map BAR 2 if it is one of our regions. -ENODEV: somebody else's. */
static int vpt_net_map_region(struct vpt_net *vn, u64 size)
{
	resource_size_t start = pci_resource_start(vn->pdev, VPT_NET_BAR_REGION);
	void *head;
	bool ours;

	if (size < VPT_HDR_SIZE)
		return -ENODEV;
	head = memremap(start, VPT_HDR_SIZE, MEMREMAP_WB);
	if (!head)
		return -ENOMEM;
	ours = vpt_net_is_ours(head);
	memunmap(head);
	if (!ours)
		return -ENODEV;
	/* Ordinary memory behind a BAR: cached, or each byte would be a bus access. */
	vn->base = memremap(start, size, MEMREMAP_WB);
	vn->shared = (struct vpt_hdr *)vn->base;
	return vn->base ? 0 : -ENOMEM;
}

static int vpt_net_alloc_vectors(struct vpt_net *vn)
{
	int need = VPT_VEC_COUNT(vn->hdr.pairs);
	int err = pci_alloc_irq_vectors(vn->pdev, need, need, PCI_IRQ_MSIX);

	if (err < 0)
		dev_err(&vn->pdev->dev, "needs %d MSI-X vectors (vectors=%d), device has %d\n", need, need,
			pci_msix_vec_count(vn->pdev));
	return err < 0 ? err : 0;
}

static int vpt_net_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	u64 size = pci_resource_len(pdev, VPT_NET_BAR_REGION);
	struct net_device *dev;
	struct vpt_net *vn;
	int err;

	dev = alloc_etherdev(sizeof(*vn));
	if (!dev)
		return -ENOMEM;
	vn = netdev_priv(dev);
	vn->dev = dev;
	vn->pdev = pdev;
	vpt_net_init(vn);

	err = pci_enable_device_mem(pdev);
	if (err)
		goto err_free;
	err = vpt_net_map_region(vn, size);
	if (err)
		goto err_disable;
	err = pci_request_mem_regions(pdev, VPT_NET_DRIVER);
	if (err)
		goto err_unmap;
	err = vpt_net_region_check(vn, size);
	if (err)
		goto err_release;
	err = vpt_net_setup(vn);
	if (err)
		goto err_release;
	vn->regs = pci_iomap(pdev, VPT_NET_BAR_REGS, 0);
	if (!vn->regs) {
		err = -ENOMEM;
		goto err_release;
	}
	pci_set_master(pdev);
	err = vpt_net_alloc_vectors(vn);
	if (err)
		goto err_iounmap;
	pci_set_drvdata(pdev, vn);
	err = register_netdev(dev);
	if (err)
		goto err_vectors;
	netdev_info(dev, "vpt port \"%.*s\", %u slots of %u bytes, features %#llx\n",
		    (int)strnlen(vn->hdr.name, sizeof(vn->hdr.name)), vn->hdr.name, vn->hdr.num_slots,
		    vn->hdr.buf_size, vn->features);
	return 0;

err_vectors:
	pci_free_irq_vectors(pdev);
err_iounmap:
	pci_clear_master(pdev);
	pci_iounmap(pdev, vn->regs);
err_release:
	pci_release_mem_regions(pdev);
err_unmap:
	memunmap(vn->base);
err_disable:
	pci_disable_device(pdev);
err_free:
	free_netdev(dev);
	return err;
}

static void vpt_net_remove(struct pci_dev *pdev)
{
	struct vpt_net *vn = pci_get_drvdata(pdev);

	unregister_netdev(vn->dev);
	pci_free_irq_vectors(pdev);
	pci_clear_master(pdev);
	pci_iounmap(pdev, vn->regs);
	pci_release_mem_regions(pdev);
	memunmap(vn->base);
	pci_disable_device(pdev);
	free_netdev(vn->dev);
}

/* Reboot and kexec: the next kernel's memory is none of the host's business, nor are its packets this one's. */
static void vpt_net_shutdown(struct pci_dev *pdev)
{
	struct vpt_net *vn = pci_get_drvdata(pdev);

	rtnl_lock();
	netif_device_detach(vn->dev);
	dev_close(vn->dev);
	rtnl_unlock();
}

static int vpt_net_suspend(struct device *d)
{
	struct vpt_net *vn = dev_get_drvdata(d);

	rtnl_lock();
	netif_device_detach(vn->dev);
	if (netif_running(vn->dev))
		vpt_net_stop(vn->dev);
	rtnl_unlock();
	return 0;
}

static int vpt_net_resume(struct device *d)
{
	struct vpt_net *vn = dev_get_drvdata(d);
	int err = 0;

	rtnl_lock();
	if (netif_running(vn->dev))
		err = vpt_net_open(vn->dev);
	if (!err)
		netif_device_attach(vn->dev);
	rtnl_unlock();
	return err;
}

static DEFINE_SIMPLE_DEV_PM_OPS(vpt_net_pm_ops, vpt_net_suspend, vpt_net_resume);

static const struct pci_device_id vpt_net_ids[] = {
	{ PCI_DEVICE(PCI_VENDOR_ID_REDHAT_QUMRANET, 0x1110) },
	{}
};
MODULE_DEVICE_TABLE(pci, vpt_net_ids);

static struct pci_driver vpt_net_driver = {
	.name = VPT_NET_DRIVER,
	.id_table = vpt_net_ids,
	.probe = vpt_net_probe,
	.remove = vpt_net_remove,
	.shutdown = vpt_net_shutdown,
	.driver.pm = pm_sleep_ptr(&vpt_net_pm_ops),
};
module_pci_driver(vpt_net_driver);

MODULE_DESCRIPTION("Network driver for vpt passthrough ports on ivshmem-doorbell");
MODULE_VERSION(VPT_NET_VERSION);
MODULE_LICENSE("Dual BSD/GPL");
