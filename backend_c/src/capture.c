/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * capture.c - the side of the workers: from a packet in place to a block of pcapng in a ring
 *
 * Format: draft-ietf-opsawg-pcapng, section 4.3, enhanced packet block. A packet is copied when it is decided what becomes of
 * it. Its sender could have changed the copy's source since; lookups and delivery go by other copies (pkt.h), and what is
 * shown of the first 14 bytes is the one that they went by.
 */
#define _GNU_SOURCE
#include "capture.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bpf.h"
#include "copy.h"
#include "engine.h"
#include "rcu.h"
#include "switch.h"

#define MAX_INSNS 4096u
#define MIN_RING (256u << 10)  /* several times the longest block */
#define MAX_RING (1u << 30)
#define MIN_SNAPLEN 14u

enum { BLOCK_PACKET = 6 };
enum { OPT_END = 0, OPT_COMMENT = 1, OPT_FLAGS = 2, OPT_DROPCOUNT = 4 };
enum { FLAG_IN = 1, FLAG_OUT = 2, FLAG_UNICAST = 1 << 2, FLAG_MULTICAST = 2 << 2, FLAG_BROADCAST = 3 << 2 };

/* What stands before a packet's bytes in an enhanced packet block. */
struct block_head {
	uint32_t type;
	uint32_t bytes;
	uint32_t interface;
	uint32_t ns_high, ns_low;
	uint32_t captured;
	uint32_t len;
};

struct options {
	uint8_t bytes[192];
	uint32_t n;
};

struct vpt_capture {
	struct vpt_engine *engine;
	struct vpt_capture *next;
	struct vpti_capture_shm *shm;
	uint8_t *data;             /* of the first ring */
	uint64_t size;
	int fd;
	uint32_t ring_bytes;
	uint32_t snaplen;
	uint32_t directions;
	uint32_t ninsns;
	struct vpt_bpf_insn *insn;
	/* The worker's own head, and packets lost since the last block that says how many. */
	struct own {
		uint64_t head;
		uint64_t lost;
		uint8_t pad[48];
	} own[VPT_MAX_WORKERS];
};

/* ---- worker ---- */

static uint64_t real_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void add_option(struct options *o, uint16_t code, const void *value, uint16_t len)
{
	uint16_t head[2] = { code, len };

	memcpy(o->bytes + o->n, head, sizeof(head));
	memcpy(o->bytes + o->n + sizeof(head), value, len);
	memset(o->bytes + o->n + sizeof(head) + len, 0, -len & 3u);
	o->n += (uint32_t)VPTI_ALIGN(sizeof(head) + len, 4);
}

/* What there is to say about a packet that its bytes do not show. */
static int comment(char *text, size_t size, const struct vpti_pkt *p, uint32_t cause)
{
	static const char *const gso[] = { [VPT_GSO_TCPV4] = "TCP over IPv4", [VPT_GSO_TCPV6] = "TCP over IPv6",
					   [VPT_GSO_UDP_L4] = "UDP" };
	uint8_t type = p->hdr.gso_type & (uint8_t)~VPT_GSO_ECN;
	int n = 0;

	text[0] = '\0';
	if (cause)
		n = snprintf(text, size, "dropped: %s", vpt_counter_name(cause));
	if (p->hdr.flags & VPT_VNET_NEEDS_CSUM)
		n += snprintf(text + n, size - (size_t)n, "%schecksum offloaded", n ? "; " : "");
	if (type < VPTI_ARRAY_SIZE(gso) && gso[type])
		n += snprintf(text + n, size - (size_t)n, "%ssegmentation offloaded: %s, %u bytes each", n ? "; " : "", gso[type],
			      p->hdr.gso_size);
	return n;
}

static void make_options(struct options *o, const struct vpti_pkt *p, uint32_t direction, uint32_t cause, uint64_t lost)
{
	static const uint8_t broadcast[6] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff };
	uint32_t flags = direction == VPT_CAPTURE_IN ? FLAG_IN : FLAG_OUT;
	char text[128];
	int n = comment(text, sizeof(text), p, cause);

	if (!(p->eth[0] & 1))
		flags |= FLAG_UNICAST;
	else
		flags |= memcmp(p->eth, broadcast, sizeof(broadcast)) ? FLAG_MULTICAST : FLAG_BROADCAST;
	o->n = 0;
	add_option(o, OPT_FLAGS, &flags, sizeof(flags));
	if (lost)
		add_option(o, OPT_DROPCOUNT, &lost, sizeof(lost));
	if (n > 0)
		add_option(o, OPT_COMMENT, text, (uint16_t)n);
	add_option(o, OPT_END, "", 0);
}

/* The first `most` bytes of a frame, of which a runt or an overlong one may have less than it says; how many. */
static uint32_t copy_frame(uint8_t *to, const struct vpti_pkt *p, uint32_t most)
{
	const struct vpti_frag *f = &p->first;
	const struct vpti_run run = { to, most };
	uint32_t n = 0, i;

	if (p->tag) {
		vpti_copy_runs(&run, 1, NULL, 0, p);
		return VPTI_MIN(p->len, most);
	}
	for (i = 0; n < most; f = &p->more[i++]) {
		uint32_t k = VPTI_MIN(f->len, most - n);

		memcpy(to + n, f->p, k);
		n += k;
		if (i == p->nmore)
			break;
	}
	if (n >= VPTI_ETH_HLEN && p->cause != VPT_C_TX_DROP_RUNT && p->cause != VPT_C_TX_DROP_OVERSIZE)
		memcpy(to, p->eth, VPTI_ETH_HLEN);
	return n;
}

static void lose(struct vpt_capture *c, struct own *own, uint32_t interface)
{
	own->lost++;
	__atomic_fetch_add(&c->shm->interface[interface].lost, 1, __ATOMIC_RELAXED);
}

static void record(const struct vpti_tap *tap, uint32_t worker, const struct vpti_pkt *p, uint64_t ns, uint32_t direction,
		   uint32_t cause)
{
	struct vpt_capture *c = tap->capture;
	struct vpti_capture_ring *ring = &c->shm->ring[worker];
	struct own *own = &c->own[worker];
	uint32_t size = c->ring_bytes, at = own->head & (size - 1), skip, longest, n;
	uint64_t used = own->head - VPTI_LOAD_ACQUIRE(ring->tail); /* pairs with the observer's release when it has read */
	uint8_t *data = c->data + (uint64_t)worker * size, *block;
	struct block_head head;
	struct options o;

	n = VPTI_MIN(p->len, c->snaplen);
	longest = (uint32_t)(sizeof(head) + VPTI_ALIGN(n, 4) + sizeof(o.bytes) + sizeof(head.bytes));
	skip = at + longest > size ? size - at : 0;
	if (vpti_unlikely(used > size || skip + longest > size - used)) {
		lose(c, own, tap->interface);
		return;
	}
	block = skip ? data : data + at;
	n = copy_frame(block + sizeof(head), p, n);
	if (c->ninsns && !vpti_bpf_run(c->insn, block + sizeof(head), p->len, n))
		return;
	make_options(&o, p, direction, cause, own->lost);
	own->lost = 0;
	head = (struct block_head){
		.type = BLOCK_PACKET,
		.interface = tap->interface,
		.ns_high = (uint32_t)(ns >> 32),
		.ns_low = (uint32_t)ns,
		.captured = n,
		.len = p->len,
	};
	head.bytes = (uint32_t)(sizeof(head) + VPTI_ALIGN(n, 4) + o.n + sizeof(head.bytes));
	memcpy(block, &head, sizeof(head));
	memset(block + sizeof(head) + n, 0, -n & 3u);
	memcpy(block + sizeof(head) + VPTI_ALIGN(n, 4), o.bytes, o.n);
	memcpy(block + head.bytes - sizeof(head.bytes), &head.bytes, sizeof(head.bytes));
	if (skip)
		memset(data + at, VPTI_CAPTURE_SKIP, sizeof(head.type)); /* there is room: all lengths are multiples of 4 */
	own->head += skip + head.bytes;
	VPTI_STORE_RELEASE(ring->head, own->head); /* pairs with the observer's acquire: it sees whole blocks */
}

void vpti_capture_sent(struct vpti_worker *w, const struct vpt_port *p, struct vpti_burst *b, uint32_t n)
{
	const struct vpti_vlans *vlans = vpti_rcu_get(p->vlans);
	uint64_t ns = real_ns();
	const struct vpti_tap *tap;
	uint32_t i;

	for (i = 0; i < n; i++)
		vpti_vlan_tag(vlans, &b->pkt[i]); /* that it came with */
	for (tap = vpti_rcu_get(p->taps); tap; tap = tap->next) {
		for (i = 0; tap->capture->directions & VPT_CAPTURE_IN && i < n; i++)
			record(tap, w->index, &b->pkt[i], ns, VPT_CAPTURE_IN,
			       b->pkt[i].dst == VPTI_DST_DROP ? b->pkt[i].cause : 0);
	}
	for (i = 0; i < n; i++)
		vpti_vlan_untag(&b->pkt[i]);
}

void vpti_capture_deliver(struct vpti_pkt *const *pkt, uint32_t n)
{
	uint32_t i;

	for (i = 0; i < n; i++)
		pkt[i]->cause = 0;
}

void vpti_capture_delivered(struct vpti_worker *w, const struct vpt_port *p, struct vpti_pkt *const *pkt, uint32_t n,
			    uint32_t lost, enum vpt_counter cause)
{
	uint64_t ns = real_ns();
	const struct vpti_tap *tap;
	uint32_t i;

	for (tap = vpti_rcu_get(p->taps); tap; tap = tap->next) {
		for (i = 0; tap->capture->directions & VPT_CAPTURE_OUT && i < n; i++)
			record(tap, w->index, pkt[i], ns, VPT_CAPTURE_OUT, i < n - lost ? pkt[i]->cause : cause);
	}
}

/* ---- control thread ---- */

static void capture_free(struct vpt_capture *c)
{
	if (c->shm)
		munmap(c->shm, c->size);
	if (c->fd >= 0)
		close(c->fd);
	free(c->insn);
	free(c);
}

static int map_rings(struct vpt_capture *c)
{
	const int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
	void *map;

	c->fd = memfd_create("vpt-capture", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (c->fd < 0 || ftruncate(c->fd, (off_t)c->size) || fcntl(c->fd, F_ADD_SEALS, seals))
		return -errno;
	map = mmap(NULL, c->size, PROT_READ | PROT_WRITE, MAP_SHARED, c->fd, 0);
	if (map == MAP_FAILED)
		return -errno;
	c->shm = map;
	c->data = (uint8_t *)map + sizeof(*c->shm);
	c->shm->size = sizeof(*c->shm);
	c->shm->rings = c->engine->nworkers;
	c->shm->ring_bytes = c->ring_bytes;
	VPTI_STORE_RELEASE(c->shm->magic, VPTI_CAPTURE_MAGIC); /* last: an observer that sees it sees the rest */
	return 0;
}

int vpt_capture_add(vpt_engine *e, const struct vpt_capture_opts *opts, const struct vpt_bpf_insn *filter, uint32_t n,
		    vpt_capture **out)
{
	uint32_t both = VPT_CAPTURE_IN | VPT_CAPTURE_OUT, ring = opts->ring_bytes;
	struct vpt_capture *c;
	int rc;

	if (ring < MIN_RING || ring > MAX_RING || ring & (ring - 1) || opts->snaplen < MIN_SNAPLEN)
		return -EINVAL;
	if (opts->directions & ~both || n > MAX_INSNS || (n && !vpti_bpf_ok(filter, n)))
		return -EINVAL;
	c = calloc(1, sizeof(*c));
	if (!c)
		return -ENOMEM;
	c->engine = e;
	c->fd = -1;
	c->snaplen = VPTI_MIN(opts->snaplen, VPT_MAX_FRAME);
	c->directions = opts->directions ? opts->directions : both;
	c->ring_bytes = ring;
	c->size = sizeof(*c->shm) + (uint64_t)e->nworkers * ring;
	c->ninsns = n;
	c->insn = calloc(n ? n : 1, sizeof(*c->insn));
	rc = c->insn ? map_rings(c) : -ENOMEM;
	if (rc) {
		capture_free(c);
		return rc;
	}
	memcpy(c->insn, filter, n * sizeof(*filter));
	c->next = e->captures;
	e->captures = c;
	*out = c;
	return 0;
}

int vpt_capture_fd(const vpt_capture *c)
{
	return c->fd;
}

int vpt_capture_port(vpt_capture *c, vpt_port *p)
{
	uint32_t interface = c->shm->interfaces;
	struct vpti_tap *tap;

	if (p->engine != c->engine)
		return -EINVAL;
	if (interface == VPTI_CAPTURE_INTERFACES)
		return -ENOSPC;
	tap = malloc(sizeof(*tap));
	if (!tap)
		return -ENOMEM;
	memcpy(c->shm->interface[interface].name, p->opts.name, sizeof(p->opts.name));
	VPTI_STORE_RELEASE(c->shm->interfaces, interface + 1); /* before a worker can name it in a block */
	*tap = (struct vpti_tap){ .next = p->taps, .capture = c, .interface = interface };
	vpti_rcu_publish(p->taps, tap);
	return (int)interface;
}

/* Take those taps from a port that are of one capture, or of any (NULL). */
static void untap(struct vpt_port *p, const struct vpt_capture *c)
{
	struct vpti_tap **at = &p->taps;

	while (*at) {
		struct vpti_tap *tap = *at;

		if (c && tap->capture != c) {
			at = &tap->next;
			continue;
		}
		vpti_rcu_publish(*at, tap->next);
		vpti_synchronize();
		free(tap);
	}
}

void vpti_port_untap(struct vpt_port *p)
{
	untap(p, NULL);
}

void vpt_capture_del(vpt_capture *c)
{
	struct vpt_capture **at;
	struct vpt_switch *sw;
	struct vpt_port *p;

	for (sw = c->engine->switches; sw; sw = sw->next) {
		for (p = sw->ports; p; p = p->next)
			untap(p, c);
	}
	for (at = &c->engine->captures; *at != c; at = &(*at)->next)
		;
	*at = c->next;
	capture_free(c);
}

void vpti_captures_free(struct vpt_engine *e)
{
	while (e->captures)
		vpt_capture_del(e->captures);
}
