/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * port_tap.c - a tap device of the host as a port
 *
 * The kernel copies on both sides (read(2) and writev(2)); these are system calls per packet, which is what a tap costs. The device is in
 * IFF_VNET_HDR mode, so offloads travel through it as through any other port.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/uio.h>
#include <unistd.h>

#include "engine.h"
#include "fd.h"
#include "take.h"

#define BUF_SIZE (sizeof(struct vpt_vnet_hdr) + VPT_MAX_FRAME)
#define MAX_IOV 256

struct tap_txq {
	struct vpti_txq q;
	int fd;
	struct vpti_watch *watch;
	uint8_t *buf;              /* VPTI_BURST of BUF_SIZE */
	ssize_t len[VPTI_BURST];   /* of what was read into each */
	uint32_t first, end;       /* those read and not released: the next burst starts with them */
};

struct tap_rxq {
	struct vpti_rxq q;
	int fd;
};

static struct tap_txq *tap_txq(struct vpti_txq *q)
{
	return vpti_container_of(q, struct tap_txq, q);
}

/* One packet from the kernel into the next free buffer, if there is one. */
static bool read_packet(struct tap_txq *t)
{
	ssize_t n = read(t->fd, t->buf + t->end * BUF_SIZE, BUF_SIZE);

	if (n < (ssize_t)sizeof(struct vpt_vnet_hdr)) {
		t->q.ready = false; /* until epoll says otherwise */
		if (n < 0 && errno != EAGAIN && errno != EIO && errno != EINTR) /* EIO: the interface is down */
			vpti_txq_break(&t->q, VPT_REASON_IO, (uint64_t)errno);
		return false;
	}
	t->len[t->end++] = n;
	return true;
}

static void tap_take(struct vpti_txq *q, struct vpti_burst *b)
{
	struct tap_txq *t = tap_txq(q);
	uint32_t i;

	for (i = t->first; i < t->end || (i < VPTI_BURST && q->ready && read_packet(t)); i++) {
		const uint8_t *buf = t->buf + i * BUF_SIZE;
		struct vpti_pkt *p = &b->pkt[b->n++];

		memcpy(&p->hdr, buf, sizeof(p->hdr));
		p->len = (uint32_t)((size_t)t->len[i] - sizeof(p->hdr));
		p->first = (struct vpti_frag){ buf + sizeof(p->hdr), p->len };
		p->more = NULL;
		p->nmore = 0;
		vpti_take_check(q, p);
	}
}

static void tap_release(struct vpti_txq *q, const struct vpti_burst *b, uint32_t n)
{
	struct tap_txq *t = tap_txq(q);

	(void)b;
	t->first += n;
	if (t->first == t->end)
		t->first = t->end = 0;
}

static void tap_nothing(struct vpti_txq *q)
{
	(void)q;
}

static bool tap_pending(struct vpti_txq *q)
{
	return q->ready || tap_txq(q)->end;
}

static const struct vpti_txq_ops tap_txq_ops = {
	.take = tap_take,
	.release = tap_release,
	.arm = tap_nothing,
	.pending = tap_pending,
	.disarm = tap_nothing,
	.notify = tap_nothing,
};

/* One packet by one writev(). 0, or the errno. */
static int write_packet(int fd, const struct vpti_pkt *p)
{
	struct iovec iov[MAX_IOV];
	uint32_t skip = VPTI_ETH_HLEN, i;
	uint8_t head[VPTI_VLAN_HEAD];
	int n = 2;

	iov[0] = (struct iovec){ (void *)(uintptr_t)&p->hdr, sizeof(p->hdr) };
	iov[1] = (struct iovec){ (void *)(uintptr_t)p->eth, VPTI_ETH_HLEN };
	if (vpti_unlikely(p->tag))
		iov[1] = (struct iovec){ head, vpti_vlan_head(p, head) };
	for (i = 0; i <= p->nmore; i++) {
		const struct vpti_frag *f = i ? &p->more[i - 1] : &p->first;
		uint32_t cut = VPTI_MIN(skip, f->len);

		skip -= cut;
		if (f->len == cut)
			continue;
		if (n == MAX_IOV)
			return EMSGSIZE;
		iov[n++] = (struct iovec){ (void *)(uintptr_t)(f->p + cut), f->len - cut };
	}
	return writev(fd, iov, n) < 0 ? errno : 0;
}

static uint32_t tap_deliver(struct vpti_rxq *q, struct vpti_room *room, struct vpti_pkt *const *pkt, uint32_t n)
{
	struct tap_rxq *t = vpti_container_of(q, struct tap_rxq, q);
	uint64_t bytes = 0, sent = 0, refused = 0;
	uint32_t i;

	(void)room;
	for (i = 0; i < n; i++) {
		int err = write_packet(t->fd, pkt[i]);

		if (err == EAGAIN)
			break;
		if (err) {
			pkt[i]->cause = VPT_C_RX_DROP_DOWN;
			refused++;
		} else {
			bytes += pkt[i]->len;
			sent++;
		}
	}
	vpti_rxq_lock(q);
	vpti_count(q->c, VPT_C_RX_PACKETS, sent);
	vpti_count(q->c, VPT_C_RX_BYTES, bytes);
	vpti_count(q->c, VPT_C_RX_COPIES, sent);
	vpti_count(q->c, VPT_C_RX_BATCHES, 1);
	vpti_count(q->c, VPT_C_RX_DROP_DOWN, refused);
	vpti_rxq_unlock(q);
	return i;
}

static void tap_rx_notify(struct vpti_rxq *q)
{
	(void)q;
}

static const struct vpti_rxq_ops tap_rxq_ops = { .deliver = tap_deliver, .notify = tap_rx_notify };

int vpt_port_tap_attach(vpt_port *p, int fd, uint64_t features)
{
	struct tap_txq *t;
	int rc;

	if (p->kind != &vpti_kind_tap)
		return -EINVAL;
	t = tap_txq(p->txq[0]);
	if (t->fd >= 0)
		return -EBUSY;
	t->buf = malloc(VPTI_BURST * BUF_SIZE);
	if (!t->buf)
		return -ENOMEM;
	t->fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (t->fd < 0 || fcntl(t->fd, F_SETFL, O_NONBLOCK)) {
		rc = -errno;
		goto err;
	}
	rc = vpti_watch_add(t->q.worker, VPTI_WATCH_DATA, t->fd, p, &t->q, &t->watch);
	if (rc)
		goto err;
	vpti_container_of(p->rxq[0], struct tap_rxq, q)->fd = t->fd;
	p->features = features;
	p->accepts = features;
	p->sends = features;
	p->up = true;
	t->q.ready = true;
	vpti_rxq_start(p->rxq[0]);
	vpti_txq_start(&t->q);
	return 0;
err:
	vpti_fd_close(&t->fd);
	free(t->buf);
	t->buf = NULL;
	return rc;
}

static int tap_init(struct vpt_port *p)
{
	int rc = vpti_queue_new(p, 0, sizeof(struct tap_txq), sizeof(struct tap_rxq));

	if (rc)
		return rc;
	tap_txq(p->txq[0])->fd = -1;
	p->txq[0]->ops = &tap_txq_ops;
	p->rxq[0]->ops = &tap_rxq_ops;
	return 0;
}

static void tap_fini(struct vpt_port *p)
{
	struct tap_txq *t = p->txq[0] ? tap_txq(p->txq[0]) : NULL;

	if (t) {
		vpti_watch_del(t->watch);
		vpti_fd_close(&t->fd);
		free(t->buf);
	}
	vpti_queues_free(p);
}

const struct vpti_kind_ops vpti_kind_tap = { .init = tap_init, .fini = tap_fini };
