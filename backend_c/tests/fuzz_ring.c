/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * fuzz_ring.c - three passthrough peers, all of them hostile, on one switch
 *
 * Input: a sequence of actions (enum action), each with its arguments: what peers do to their rings, CSBs, buffers and
 * status, and when the host looks. One peer accepts all offloads, one only the vnet header, one nothing, so that
 * packets also go through software offload. Checked: what the host reads and writes lies in buffers of the region it
 * belongs to, and serving changes nothing of a region but what is the host's to write.
 */
#define _GNU_SOURCE
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fuzz_engine.h"
#include "port_ring.h"

#define PEERS 3u
#define VECTORS VPT_VEC_COUNT(1)

enum action {
	SEND,          /* a frame in the next slot, and head moves */
	SET_SLOT,
	SET_HEAD,
	SET_WISH,
	WRITE_BUF,
	POKE,          /* anywhere in the region */
	SERVE,
	ARM,
	STATUS,
	EVENTS,
	LINK,
	RULES,         /* VLANs, isolation, rates of its port */
	ACTIONS
};

struct peer {
	uint64_t features;
	uint32_t slots;
	uint32_t buf_size;
	uint8_t mac_byte;
	struct vpt_region_opts opts;
	struct vpti_layout layout;
	int fd;
	uint8_t *base;
	uint8_t *clean;            /* the region as it is created */
	uint8_t *before;           /* as it was before serving: all but the buffers */
	vpt_port *port;
	uint32_t head;             /* of its tx ring, as a well-behaved peer would count */
};

static struct peer peers[PEERS] = {
	{.features = 0, .slots = 64, .buf_size = 256, .mac_byte = 1}, /* 0: all that vpt has */
	{.features = VPT_F_VNET_HDR | VPT_F_CSUM | VPT_F_EVENT_IDX, .slots = 64, .buf_size = 512, .mac_byte = 2},
	{.features = VPT_F_EVENT_IDX, .slots = 512, .buf_size = 256, .mac_byte = 3}, /* room for more than a delivery */
};
static vpt_engine *engine;
static vpt_switch *sw;

/* ---- setting up, once ---- */

static void make_peer(struct peer *p)
{
	struct vpt_port_opts port = {.kind = VPT_KIND_PASSTHROUGH, .pairs = 1, .worker = 0, .mtu = 65535};
	int32_t fds[VECTORS];
	uint32_t i;

	p->opts.pairs = 1;
	p->opts.num_slots = p->slots;
	p->opts.buf_size = p->buf_size;
	p->opts.features = p->features;
	MUST(!vpti_layout(&p->opts, &p->layout));
	p->fd = vpt_region_create(&p->opts);
	MUST(p->fd >= 0);
	p->base = mmap(NULL, p->layout.size, PROT_READ | PROT_WRITE, MAP_SHARED, p->fd, 0);
	MUST(p->base != MAP_FAILED);
	p->clean = malloc(p->layout.size);
	p->before = malloc(p->layout.buf_pool_ofs);
	MUST(p->clean && p->before);
	memcpy(p->clean, p->base, p->layout.size);
	for (i = 0; i < VECTORS; i++) {
		fds[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		MUST(fds[i] >= 0);
	}
	port.policy.kind = VPT_POLICY_NOTIFY;
	MUST(!vpt_port_add(sw, &port, &p->port));
	MUST(!vpt_port_ring_attach(p->port, p->fd, &p->opts, fds, fds));
	for (i = 0; i < VECTORS; i++)
		close(fds[i]);
}

static void setup(void)
{
	struct vpt_switch_opts opts = {.name = "fuzz", .mac_entries = 64};
	uint32_t i;

	engine = fuzz_engine();
	MUST(!vpt_switch_add(engine, &opts, &sw));
	for (i = 0; i < PEERS; i++)
		make_peer(&peers[i]);
}

/* ---- before each input ---- */

static struct vpt_hdr *hdr_of(const struct peer *p)
{
	return (struct vpt_hdr *)(void *)p->base;
}

static const struct vpt_rules no_rules;

static void start_peer(struct peer *p)
{
	struct vpt_hdr *h = hdr_of(p);

	hdr_of(p)->peer_status = VPT_S_RESET;
	vpt_port_ring_status(p->port);
	memcpy(p->base, p->clean, p->layout.buf_pool_ofs + (size_t)p->layout.num_bufs * p->layout.buf_size);
	vpt_port_set_link(p->port, 1);
	vpt_port_ring_status(p->port);
	vpti_mac_purge(&sw->macs, p->port->slot, true);
	MUST(!vpt_port_set_rules(p->port, &no_rules));
	h->peer_features = h->host_features;
	h->peer_generation = h->generation;
	h->peer_status = VPT_S_DRIVER_OK;
	vpt_port_ring_status(p->port);
	MUST(p->port->up);
	p->head = 0;
}

/* ---- what peers do ---- */

static struct vpt_nm_slot *slots(const struct peer *p, bool rx)
{
	return ((struct vpt_nm_ring *)(void *)(p->base + p->layout.ring_ofs[rx]))->slot;
}

static struct vpt_csb_atok *atok(const struct peer *p, bool rx)
{
	return (struct vpt_csb_atok *)(void *)(p->base + VPT_CSB_ATOK_OFS) + rx;
}

/* A small number mostly, anything at times. */
static uint32_t number(struct fuzz_in *in)
{
	uint8_t v = fuzz_u8(in);

	return v < 0xf0 ? v : fuzz_u32(in);
}

static void send_frame(struct peer *p, struct fuzz_in *in)
{
	struct vpt_nm_slot *s = &slots(p, false)[p->head];
	uint8_t *buf = p->base + p->layout.buf_pool_ofs + (size_t)(2 + p->head) * p->buf_size;
	uint8_t to = fuzz_u8(in), *eth = buf + vpti_ring_txq(p->port->txq[0])->r.hdr_len;
	uint32_t body = fuzz_u8(in) % 100;

	if (eth != buf)
		fuzz_bytes(in, buf, sizeof(struct vpt_vnet_hdr));
	memset(eth, 0, 12);
	memset(eth, to & 0x80 ? 0xff : 0, 6);
	eth[5] = to & 0x80 ? 0xff : to & 3;
	eth[11] = p->mac_byte;
	fuzz_bytes(in, eth + 12, body);
	s->buf_idx = 2 + p->head;
	s->len = (uint16_t)(eth + 12 - buf) + (uint16_t)body;
	if (to & 0x40) /* the rest of the buffer, whatever it holds */
		s->len = (uint16_t)p->buf_size;
	s->flags = to & 0x20 ? VPT_NS_MOREFRAG : 0;
	p->head = (p->head + 1) % p->slots;
	atok(p, false)->head = p->head;
}

static void set_slot(struct peer *p, struct fuzz_in *in)
{
	bool rx = fuzz_u8(in) & 1;
	struct vpt_nm_slot *s = &slots(p, rx)[fuzz_u8(in) % p->slots];

	s->buf_idx = number(in);
	s->len = fuzz_u16(in);
	s->flags = fuzz_u8(in);
}

static void set_head(struct peer *p, struct fuzz_in *in)
{
	bool rx = fuzz_u8(in) & 1;
	uint32_t head = number(in);

	atok(p, rx)->head = head;
	if (!rx)
		p->head = head % p->slots;
}

static void set_wish(struct peer *p, struct fuzz_in *in)
{
	struct vpt_csb_atok *a = atok(p, fuzz_u8(in) & 1);

	a->appl_need_kick = fuzz_u8(in);
	a->intr_at = number(in);
}

static void write_buf(struct peer *p, struct fuzz_in *in)
{
	uint32_t idx = fuzz_u8(in) % p->layout.num_bufs, len = fuzz_u8(in);

	fuzz_bytes(in, p->base + p->layout.buf_pool_ofs + (size_t)idx * p->buf_size, len);
}

static void poke(struct peer *p, struct fuzz_in *in)
{
	uint32_t at = fuzz_u32(in) % (p->layout.buf_pool_ofs - 8);

	fuzz_bytes(in, p->base + at, 1 + fuzz_u8(in) % 8);
}

static void set_status(struct peer *p, struct fuzz_in *in)
{
	struct vpt_hdr *h = hdr_of(p);
	uint8_t how = fuzz_u8(in);

	if (how & 1)
		h->peer_features = h->host_features & fuzz_u32(in);
	if (how & 2)
		h->peer_generation = h->generation;
	h->peer_status = fuzz_u8(in);
	vpt_port_ring_status(p->port);
}

static void set_link(struct peer *p, struct fuzz_in *in)
{
	vpt_port_set_link(p->port, fuzz_u8(in) & 1);
}

/* The host's doing, in truth, but of one port. */
static void set_rules(struct peer *p, struct fuzz_in *in)
{
	struct vpt_rules r = {.flags = fuzz_u8(in) & VPT_RULE_ISOLATED, .vlan_mode = fuzz_u8(in) % 3u};

	r.native = fuzz_u8(in) % 4u + (r.vlan_mode == VPT_VLAN_ACCESS);
	r.vlans[0] = fuzz_u8(in);
	r.tx.packets_per_s = fuzz_u8(in) % 8u;
	r.rx.bits_per_s = (uint64_t)(fuzz_u8(in) % 2u) * 8000;
	r.tx.burst_packets = r.rx.burst_bytes = 1;
	r.broadcast = r.unknown = fuzz_u8(in);
	MUST(!vpt_port_set_rules(p->port, &r));
}

/* ---- what the host does, and what must hold ---- */

static struct peer *peer_of(const struct vpt_port *port)
{
	uint32_t i;

	for (i = 0; peers[i].port != port; i++)
		MUST(i + 1 < PEERS);
	return &peers[i];
}

/* In one of the port's buffers, from 2 on? Addresses are those of the port's own mapping of the region. */
static bool inside(const struct vpt_port *port, const uint8_t *at, uint32_t len)
{
	const struct peer *p = peer_of(port);
	const struct vpti_ring_port *rp = port->priv;
	const uint8_t *pool = (const uint8_t *)rp->base + p->layout.buf_pool_ofs;
	size_t ofs = (size_t)(at - pool);

	return at >= pool + 2 * (size_t)p->buf_size && ofs < (size_t)p->layout.num_bufs * p->buf_size &&
	       ofs % p->buf_size + len <= p->buf_size;
}

static bool inside_any(const uint8_t *at, uint32_t len)
{
	uint32_t i;

	for (i = 0; i < PEERS; i++) {
		if (inside(peers[i].port, at, len))
			return true;
	}
	return false;
}

static void check_burst(struct vpti_worker *w, struct vpti_txq *q)
{
	uint32_t i;

	fuzz_check_burst(&w->burst, q->port, inside);
	MUST(w->room.nrun <= VPTI_ROOM_FRAGS);
	for (i = 0; i < w->room.nrun; i++)
		MUST(inside_any(w->room.run[i].p, w->room.run[i].len));
}

/* Put aside what the host may write, so that a comparison shows the rest. */
static void mask_host_fields(struct peer *p, uint8_t *copy)
{
	struct vpt_nm_slot *s = ((struct vpt_nm_ring *)(void *)(copy + p->layout.ring_ofs[1]))->slot;
	uint32_t i;

	memset(copy + VPT_CSB_KTOA_OFS, 0, 2 * sizeof(struct vpt_csb_ktoa));
	for (i = 0; i < p->slots; i++)
		s[i].len = s[i].flags = 0;
}

static void serve(void)
{
	static uint8_t after[1 << 16];
	uint32_t i;

	for (i = 0; i < PEERS; i++)
		memcpy(peers[i].before, peers[i].base, peers[i].layout.buf_pool_ofs);
	fuzz_serve(engine->worker[0], check_burst);
	for (i = 0; i < PEERS; i++) {
		MUST(peers[i].layout.buf_pool_ofs <= sizeof(after));
		memcpy(after, peers[i].base, peers[i].layout.buf_pool_ofs);
		mask_host_fields(&peers[i], peers[i].before);
		mask_host_fields(&peers[i], after);
		MUST(!memcmp(after, peers[i].before, peers[i].layout.buf_pool_ofs));
	}
}

static void act(struct fuzz_in *in)
{
	static void (*const peer_acts[ACTIONS])(struct peer *, struct fuzz_in *) = {
		[SEND] = send_frame, [SET_SLOT] = set_slot, [SET_HEAD] = set_head, [SET_WISH] = set_wish,
		[WRITE_BUF] = write_buf, [POKE] = poke, [STATUS] = set_status, [LINK] = set_link,
		[RULES] = set_rules,
	};
	uint8_t what = fuzz_u8(in);
	enum action action = what % 16 % ACTIONS;

	if (action == SERVE)
		serve();
	else if (action == ARM)
		fuzz_arm(engine->worker[0]);
	else if (action == EVENTS)
		fuzz_drain_events(engine);
	else
		peer_acts[action](&peers[(what >> 4) % PEERS], in);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuzz_in in = {data, size};
	uint32_t i;

	if (!engine)
		setup();
	fuzz_drain_events(engine);
	for (i = 0; i < PEERS; i++)
		start_peer(&peers[i]);
	while (in.left)
		act(&in);
	serve();
	fuzz_drain_events(engine);
	return 0;
}
