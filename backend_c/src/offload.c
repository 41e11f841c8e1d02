/* SPDX-License-Identifier: BSD-2-Clause */
/* offload.c - checksum completion and segmentation in software, for receivers that refused what a sender used */

#include <errno.h>
#include <stdlib.h>

#include "checksum.h"
#include "offload.h"
#include "vpt/vpt.h"

#define ETH_TYPE_OFS 12u
#define ETH_IPV4 0x0800u
#define ETH_IPV6 0x86ddu
#define ETH_VLAN 0x8100u
#define ETH_QINQ 0x88a8u
#define VLAN_LEN 4u
#define MAX_OFS (UINT16_MAX - VLAN_LEN) /* of what a vnet header points to: a tag may go in before it (vlan.h) */

#define IPV4_MIN_LEN 20u
#define IPV4_TOT_LEN 2u
#define IPV4_ID 4u
#define IPV4_FRAG 6u
#define IPV4_FRAG_ANY 0x3fffu /* more fragments, or an offset */
#define IPV4_PROTO 9u
#define IPV4_CSUM 10u

#define IPV6_LEN 40u
#define IPV6_PAYLOAD_LEN 4u
#define IPV6_NEXT 6u
#define IPV6_HOP_BY_HOP 0u
#define IPV6_ROUTING 43u
#define IPV6_DEST_OPTS 60u

#define IP_TCP 6u
#define IP_UDP 17u
#define IP_MAX_LEN 65535u

#define TCP_MIN_LEN 20u
#define TCP_SEQ 4u
#define TCP_DATA_OFS 12u
#define TCP_FLAGS 13u
#define TCP_CSUM 16u
#define TCP_CWR 0x80u
#define TCP_FIN_PSH 0x09u

#define UDP_LEN 8u
#define UDP_LEN_OFS 4u
#define UDP_CSUM 6u

/* What each gso_type stands for. */
struct gso_kind {
	uint64_t host_feature; /* 0: no such type */
	uint16_t csum_offset;
	uint8_t proto;
	uint8_t min_len;       /* of the transport header */
	bool ipv4, ipv6;       /* may run over it */
};

static const struct gso_kind gso_kinds[] = {
	[VPT_GSO_TCPV4] = {VPT_F_HOST_TSO4, TCP_CSUM, IP_TCP, TCP_MIN_LEN, .ipv4 = true},
	[VPT_GSO_TCPV6] = {VPT_F_HOST_TSO6, TCP_CSUM, IP_TCP, TCP_MIN_LEN, .ipv6 = true},
	[VPT_GSO_UDP_L4] = {VPT_F_HOST_USO, UDP_CSUM, IP_UDP, UDP_LEN, .ipv4 = true, .ipv6 = true},
};

/* A packet being segmented: what its headers, copied and checked, say. */
struct gso {
	const struct gso_kind *kind;
	const uint8_t *hdr;    /* the copy; csum field still holds the sender's partial sum */
	uint32_t l3;           /* where the IP header starts */
	uint32_t l4;           /* where the transport header starts */
	uint32_t len;          /* of all headers */
	bool ipv4;
	uint64_t pseudo;       /* partial sum without the length */
	struct vpt_vnet_hdr vnet; /* of each segment */
};

/* A place in a packet's fragments. */
struct cursor {
	struct vpti_frag here;
	const struct vpti_frag *next;
	uint32_t left;
};

static uint16_t get16(const uint8_t *p)
{
	return (uint16_t)(p[0] << 8 | p[1]);
}

static void put16(uint8_t *p, uint32_t v)
{
	p[0] = (uint8_t)(v >> 8);
	p[1] = (uint8_t)v;
}

/* A 16-bit value as it adds to a sum of words in memory order. */
static uint64_t sum16(uint32_t v)
{
	uint8_t be[2];

	put16(be, v);
	return vpti_csum_run(be, sizeof(be));
}

static void put_csum(uint8_t *p, uint16_t csum)
{
	memcpy(p, &csum, sizeof(csum));
}

static uint32_t min_u32(uint32_t a, uint32_t b)
{
	return a < b ? a : b;
}

static struct cursor cursor_at_start(const struct vpti_pkt *p)
{
	return (struct cursor){.here = p->first, .next = p->more, .left = p->nmore};
}

/**
 * cursor_step() - The next bytes that lie together
 * @c:		cursor, moved past them
 * @max:	as many at most
 *
 * Return: the run, of length 0 only at the packet's end (or if max is 0)
 */
static struct vpti_frag cursor_step(struct cursor *c, uint32_t max)
{
	struct vpti_frag run;

	while (!c->here.len && c->left) {
		c->here = *c->next++;
		c->left--;
	}
	run.p = c->here.p;
	run.len = min_u32(c->here.len, max);
	if (run.len) {
		c->here.p += run.len;
		c->here.len -= run.len;
	}
	return run;
}

/* Copy the next len bytes; false if there are fewer. */
static bool cursor_copy(struct cursor *c, uint8_t *to, uint32_t len)
{
	struct vpti_frag run;

	for (; len; to += run.len, len -= run.len) {
		run = cursor_step(c, len);
		if (!run.len)
			return false;
		memcpy(to, run.p, run.len);
	}
	return true;
}

/* Pass over the next len bytes; false if there are fewer. */
static bool cursor_skip(struct cursor *c, uint32_t len)
{
	struct vpti_frag run;

	for (; len; len -= run.len) {
		run = cursor_step(c, len);
		if (!run.len)
			return false;
	}
	return true;
}

/* Copy the frame's head; its first bytes are those that were looked up, whatever the sender made of them since. */
static bool copy_head(const struct vpti_pkt *p, struct cursor *c, uint8_t *to, uint32_t len)
{
	if (!cursor_copy(c, to, len))
		return false;
	memcpy(to, p->eth, min_u32(len, VPTI_ETH_HLEN));
	return true;
}

/**
 * refer() - Refer to a packet's next bytes in a list of fragments, and sum them up
 * @c:		cursor, moved past them
 * @len:	how many
 * @ofs:	at which offset from the start of the sum they are
 * @frag:	list
 * @max:	its room
 * @sum:	added to; NULL: nobody needs it
 *
 * Return: number of fragments written, or -EINVAL if the packet ends too early or has too many
 */
static int refer(struct cursor *c, uint32_t len, uint32_t ofs, struct vpti_frag *frag, uint32_t max, uint64_t *sum)
{
	struct vpti_frag run;
	uint32_t n;

	for (n = 0; len; n++) {
		run = cursor_step(c, len);
		if (!run.len || n == max)
			return -EINVAL;
		if (sum)
			*sum = vpti_csum_add(*sum, ofs, run.p, run.len);
		frag[n] = run;
		len -= run.len;
		ofs += run.len;
	}
	return (int)n;
}

static const struct gso_kind *gso_kind_of(uint8_t gso_type)
{
	uint8_t type = gso_type & (uint8_t)~VPT_GSO_ECN;

	if (type >= sizeof(gso_kinds) / sizeof(gso_kinds[0]) || !gso_kinds[type].host_feature)
		return NULL;
	if ((gso_type & VPT_GSO_ECN) && gso_kinds[type].proto != IP_TCP)
		return NULL;
	return &gso_kinds[type];
}

static uint32_t segments(uint32_t payload, uint32_t gso_size)
{
	return payload ? (payload - 1) / gso_size + 1 : 1;
}

static bool gso_claims_ok(const struct vpti_pkt *p, uint64_t accepted)
{
	const struct gso_kind *kind = gso_kind_of(p->hdr.gso_type);
	uint32_t hdr_min;

	if (!kind || !(accepted & kind->host_feature) || p->len > VPT_MAX_FRAME)
		return false;
	if ((p->hdr.gso_type & VPT_GSO_ECN) && !(accepted & VPT_F_HOST_ECN))
		return false;
	if (!(p->hdr.flags & VPT_VNET_NEEDS_CSUM) || p->hdr.csum_offset != kind->csum_offset || !p->hdr.gso_size)
		return false;
	hdr_min = p->hdr.csum_start + kind->min_len;
	return p->len >= hdr_min && segments(p->len - hdr_min, p->hdr.gso_size) <= VPTI_GSO_MAX_SEGS;
}

/* The part of vpti_vnet_check() for packets that claim something. */
bool vpti_vnet_check_offloads(struct vpti_pkt *p, uint64_t accepted)
{
	struct vpt_vnet_hdr *h = &p->hdr;

	h->flags &= VPT_VNET_NEEDS_CSUM;
	h->num_buffers = 0;
	h->hdr_len = (uint16_t)min_u32(h->hdr_len, min_u32(p->len, MAX_OFS));
	if (h->flags) {
		if (!(accepted & VPT_F_CSUM) || h->csum_start < VPTI_ETH_HLEN || h->csum_start > MAX_OFS ||
		    (uint32_t)h->csum_start + h->csum_offset + sizeof(uint16_t) > p->len)
			return false;
	}
	if (h->gso_type != VPT_GSO_NONE)
		return gso_claims_ok(p, accepted);
	h->gso_size = 0;
	return true;
}

/* A packet of the scratch: a private header and n fragments that follow it. */
static void set_pkt(struct vpti_pkt *out, const struct vpti_pkt *in, const uint8_t *hdr, uint32_t hdr_len,
		    const struct vpti_frag *frag, int n, uint32_t payload)
{
	out->first = (struct vpti_frag){.p = hdr, .len = hdr_len};
	out->more = frag;
	out->nmore = (uint16_t)n;
	out->len = hdr_len + payload;
	out->dst = in->dst;
	memcpy(out->eth, in->eth, sizeof(out->eth));
	memset(&out->hdr, 0, sizeof(out->hdr));
}

/**
 * complete_csum() - Do what NEEDS_CSUM asks for
 * @p:		packet without segmentation
 * @s:		scratch
 *
 * All that precedes the end of the checksum field becomes private: headers, unless a sender put its checksum elsewhere
 * as it may.
 *
 * Return: 1, or -EINVAL
 */
static int complete_csum(const struct vpti_pkt *p, struct vpti_offload_scratch *s)
{
	uint32_t start = p->hdr.csum_start, field = start + p->hdr.csum_offset, head = field + sizeof(uint16_t);
	struct cursor c = cursor_at_start(p);
	uint64_t sum;
	int n;

	if (start < VPTI_ETH_HLEN || head > p->len || head > sizeof(s->hdr))
		return -EINVAL;
	if (!copy_head(p, &c, s->hdr, head))
		return -EINVAL;
	sum = vpti_csum_run(s->hdr + start, head - start);
	n = refer(&c, p->len - head, head - start, s->frag, VPTI_GSO_MAX_FRAGS, &sum);
	if (n < 0)
		return n;
	put_csum(s->hdr + field, vpti_csum_finish(sum));
	set_pkt(&s->pkt[0], p, s->hdr, head, s->frag, n, p->len - head);
	return 1;
}

/* Find the IP header behind any number of VLAN tags, as far as there are bytes; returns its EtherType, 0 if none. */
static uint16_t find_l3(const uint8_t *hdr, uint32_t avail, uint32_t *l3)
{
	uint32_t type_ofs = ETH_TYPE_OFS;
	uint16_t type;

	for (;; type_ofs += VLAN_LEN) {
		if (type_ofs + sizeof(type) > avail)
			return 0;
		type = get16(hdr + type_ofs);
		if (type != ETH_VLAN && type != ETH_QINQ)
			break;
	}
	*l3 = type_ofs + sizeof(type);
	return type;
}

/* Is there an IPv4 header, of a packet that is no fragment, from l3 to l4? */
static bool ipv4_ok(const struct gso *g)
{
	const uint8_t *ip = g->hdr + g->l3;

	if (g->l3 + IPV4_MIN_LEN > g->l4)
		return false;
	return ip[0] >> 4 == 4 && g->l3 + (ip[0] & 0xfu) * 4 == g->l4 && ip[IPV4_PROTO] == g->kind->proto &&
	       !(get16(ip + IPV4_FRAG) & IPV4_FRAG_ANY);
}

/* Is there an IPv6 header with extension headers that may stand in each segment from l3 to l4? */
static bool ipv6_ok(const struct gso *g)
{
	uint32_t at = g->l3 + IPV6_LEN;
	uint8_t next;

	if (at > g->l4 || g->hdr[g->l3] >> 4 != 6)
		return false;
	next = g->hdr[g->l3 + IPV6_NEXT];
	while (at < g->l4) {
		if (next != IPV6_HOP_BY_HOP && next != IPV6_ROUTING && next != IPV6_DEST_OPTS)
			return false;
		next = g->hdr[at];
		at += (g->hdr[at + 1] + 1u) * 8; /* at + 1 may be l4, which is in the copy */
	}
	return at == g->l4 && next == g->kind->proto;
}

/* Length of the transport header, 0 if it is not one; its shortest form is known to be there. */
static uint32_t l4_len(const struct gso *g)
{
	uint32_t len;

	if (g->kind->proto == IP_UDP)
		return UDP_LEN;
	len = (g->hdr[g->l4 + TCP_DATA_OFS] >> 4) * 4u;
	return len >= TCP_MIN_LEN ? len : 0;
}

/**
 * parse_gso() - Check that a packet's headers are what its vnet header claims
 * @p:		packet with a gso_type that vpti_vnet_check() has passed
 * @hdr:	copy of its first bytes
 * @avail:	how many
 * @g:		filled in, but for vnet
 *
 * The lengths in the IP and UDP headers are not looked at: segments get their own.
 *
 * Return: 0 or -EINVAL
 */
static int parse_gso(const struct vpti_pkt *p, const uint8_t *hdr, uint32_t avail, struct gso *g)
{
	uint32_t whole, l4;
	uint16_t type, partial;

	*g = (struct gso){.kind = gso_kind_of(p->hdr.gso_type), .hdr = hdr, .l4 = p->hdr.csum_start};
	if (!g->kind || !p->hdr.gso_size || g->l4 + g->kind->min_len > avail)
		return -EINVAL;
	type = find_l3(hdr, avail, &g->l3);
	g->ipv4 = type == ETH_IPV4;
	if (!(type == ETH_IPV4 && g->kind->ipv4 && ipv4_ok(g)) && !(type == ETH_IPV6 && g->kind->ipv6 && ipv6_ok(g)))
		return -EINVAL;
	l4 = l4_len(g);
	g->len = g->l4 + l4;
	if (!l4 || g->len > avail)
		return -EINVAL;
	if (g->len - g->l3 + min_u32(p->len - g->len, p->hdr.gso_size) > IP_MAX_LEN)
		return -EINVAL;
	/*
	 * The sender's sum over the pseudo header is right even where a routing header hides the final address, so each
	 * segment takes it over, less the length: adding the complement subtracts.
	 */
	memcpy(&partial, hdr + g->l4 + g->kind->csum_offset, sizeof(partial));
	whole = p->len - g->l4;
	g->pseudo = partial + sum16(whole >> 16 ^ UINT16_MAX) + sum16((whole & UINT16_MAX) ^ UINT16_MAX);
	return 0;
}

static void fix_ip(const struct gso *g, uint8_t *ip, uint32_t seg, uint32_t payload)
{
	uint32_t len = g->len - g->l3 + payload;

	if (!g->ipv4) {
		put16(ip + IPV6_PAYLOAD_LEN, len - IPV6_LEN);
		return;
	}
	put16(ip + IPV4_TOT_LEN, len);
	put16(ip + IPV4_ID, get16(ip + IPV4_ID) + seg);
	put_csum(ip + IPV4_CSUM, 0);
	put_csum(ip + IPV4_CSUM, (uint16_t)~vpti_csum_fold(vpti_csum_run(ip, g->l4 - g->l3)));
}

static void fix_tcp(uint8_t *tcp, uint32_t seg, uint32_t gso_size, bool last)
{
	uint32_t seq = (uint32_t)get16(tcp + TCP_SEQ) << 16 | get16(tcp + TCP_SEQ + 2);

	seq += seg * gso_size;
	put16(tcp + TCP_SEQ, seq >> 16);
	put16(tcp + TCP_SEQ + 2, seq & UINT16_MAX);
	if (seg)
		tcp[TCP_FLAGS] &= (uint8_t)~TCP_CWR; /* "I have slowed down" is said once */
	if (!last)
		tcp[TCP_FLAGS] &= (uint8_t)~TCP_FIN_PSH;
}

/**
 * make_segment() - Write the headers of one segment
 * @g:		the packet
 * @hdr:	where; g->len bytes
 * @seg:	number of the segment
 * @gso_size:	payload of the segments before it
 * @payload:	its own payload's length
 * @last:	no other follows
 * @sum:	of its payload; unused if the checksum is left to the receiver
 */
static void make_segment(const struct gso *g, uint8_t *hdr, uint32_t seg, uint32_t gso_size, uint32_t payload,
			 bool last, uint64_t sum)
{
	uint32_t l4_total = g->len - g->l4 + payload;
	uint8_t *l4 = hdr + g->l4, *field = l4 + g->kind->csum_offset;

	memcpy(hdr, g->hdr, g->len);
	fix_ip(g, hdr + g->l3, seg, payload);
	if (g->kind->proto == IP_TCP)
		fix_tcp(l4, seg, gso_size, last);
	else
		put16(l4 + UDP_LEN_OFS, l4_total);

	put_csum(field, vpti_csum_fold(g->pseudo + sum16(l4_total)));
	if (!(g->vnet.flags & VPT_VNET_NEEDS_CSUM))
		put_csum(field, vpti_csum_finish(sum + vpti_csum_run(l4, g->len - g->l4)));
}

/**
 * segment() - Cut a packet into segments of gso_size
 * @p:		packet
 * @partial:	leave checksums to the receiver
 * @s:		scratch
 *
 * Return: number of segments, or -EINVAL
 */
static int segment(const struct vpti_pkt *p, bool partial, struct vpti_offload_scratch *s)
{
	uint32_t avail = min_u32(p->len, VPTI_GSO_MAX_HDR), nseg, i, left, size, nfrag = 0;
	struct cursor c = cursor_at_start(p);
	uint8_t copy[VPTI_GSO_MAX_HDR], *hdr;
	struct gso g;
	uint64_t sum;
	int n;

	if (!copy_head(p, &c, copy, avail) || parse_gso(p, copy, avail, &g) < 0)
		return -EINVAL;
	if (partial)
		g.vnet = (struct vpt_vnet_hdr){.flags = VPT_VNET_NEEDS_CSUM, .hdr_len = (uint16_t)g.len,
					       .csum_start = (uint16_t)g.l4, .csum_offset = g.kind->csum_offset};
	left = p->len - g.len;
	nseg = segments(left, p->hdr.gso_size);
	if (nseg > VPTI_GSO_MAX_SEGS)
		return -EINVAL;

	c = cursor_at_start(p);
	if (!cursor_skip(&c, g.len))
		return -EINVAL;
	for (i = 0; i < nseg; i++, left -= size, nfrag += (uint32_t)n) {
		size = min_u32(left, p->hdr.gso_size);
		hdr = s->hdr + i * VPTI_GSO_MAX_HDR;
		sum = 0;
		n = refer(&c, size, g.len - g.l4, s->frag + nfrag, VPTI_GSO_MAX_FRAGS - nfrag, partial ? NULL : &sum);
		if (n < 0)
			return n;
		make_segment(&g, hdr, i, p->hdr.gso_size, size, i == nseg - 1, sum);
		set_pkt(&s->pkt[i], p, hdr, g.len, s->frag + nfrag, n, size);
		s->pkt[i].hdr = g.vnet;
	}
	return (int)nseg;
}

int vpti_offload(const struct vpti_pkt *p, uint64_t accepts, struct vpti_offload_scratch *s)
{
	if (p->hdr.gso_type != VPT_GSO_NONE)
		return segment(p, accepts & VPT_F_GUEST_CSUM, s);
	return complete_csum(p, s);
}

/* Write a packet as u32 length and bytes; returns how many, or -errno. */
static int64_t write_frame(const struct vpti_pkt *p, uint8_t *out, uint64_t cap)
{
	struct cursor c = cursor_at_start(p);

	if (cap < sizeof(p->len) + p->len)
		return -ENOSPC;
	memcpy(out, &p->len, sizeof(p->len));
	if (!copy_head(p, &c, out + sizeof(p->len), p->len))
		return -EINVAL;
	return (int64_t)(sizeof(p->len) + p->len);
}

int64_t vpt_offload_frames(const struct vpt_vnet_hdr *hdr, const void *frame, uint32_t len, uint64_t accepts, void *out,
			   uint64_t cap)
{
	struct vpti_pkt p = {.first = {.p = frame, .len = len}, .len = len, .hdr = *hdr};
	struct vpti_offload_scratch *s = NULL;
	const struct vpti_pkt *frames = &p;
	int64_t done = 0, w;
	int n = 1, i;

	if (len < VPTI_ETH_HLEN || len > VPT_MAX_FRAME)
		return -EINVAL;
	memcpy(p.eth, frame, sizeof(p.eth));
	if (!vpti_vnet_check(&p, UINT64_MAX))
		return -EINVAL;
	if (vpti_offload_needed(&p, accepts)) {
		s = malloc(sizeof(*s));
		if (!s)
			return -ENOMEM;
		n = vpti_offload(&p, accepts, s);
		frames = s->pkt;
	}
	if (n < 0)
		done = n;
	for (i = 0; i < n; i++) {
		w = write_frame(&frames[i], (uint8_t *)out + done, cap - (uint64_t)done);
		if (w < 0) {
			done = w;
			break;
		}
		done += w;
	}
	free(s);
	return done;
}
