/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * frame.c - the packets: UDP over IPv4 over Ethernet, with a stamp in the payload
 */
#include "guest.h"

#define ETHERTYPE_IPV4_BE 0x0008u
#define IPPROTO_UDP 17
#define PORT_BASE 1024u
#define PORT_DISCARD 9u
#define MARK_HOST 0x7670u       /* a stamp whose time is of the host's clock, */
#define MARK_GUEST 0x7671u      /* and of a guest's */

struct frame {
	uint8_t dst[6];
	uint8_t src[6];
	uint16_t ethertype;
	uint8_t version_ihl;
	uint8_t tos;
	uint16_t total_len;
	uint16_t id;
	uint16_t frag_ofs;
	uint8_t ttl;
	uint8_t protocol;
	uint16_t ip_csum;
	uint8_t ip_src[4];
	uint8_t ip_dst[4];
	uint16_t sport;
	uint16_t dport;
	uint16_t udp_len;
	uint16_t udp_csum;              /* 0: none */
	struct {                        /* that of backend_c/src/gen.c, so that each counts what the other sends */
		uint16_t mark;
		uint64_t seq;           /* and the run's upper half */
		uint64_t tsc;           /* and its lower half */
	} __attribute__((packed)) stamp;
} __attribute__((packed));

_Static_assert(offsetof(struct frame, stamp) == 42, "the host looks for it there");
_Static_assert(sizeof(struct frame) <= MICRO_MIN_FRAME, "the shortest packet has room for a stamp");

static uint16_t be16(uint32_t v)
{
	return (uint16_t)(v << 8 | (v >> 8 & 0xff));
}

/* Sum of the ten 16-bit words of a header whose own field is 0. */
static uint16_t ip_checksum(const uint8_t *header)
{
	uint32_t sum = 0, i;

	for (i = 0; i < 20; i += 2)
		sum += (uint32_t)header[i] << 8 | header[i + 1];
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return be16(~sum & 0xffff);
}

static void add_to_address(uint8_t *mac, uint32_t flow)
{
	uint32_t low = ((uint32_t)mac[4] << 8 | mac[5]) + flow;

	mac[4] = (uint8_t)(low >> 8);
	mac[5] = (uint8_t)low;
}

void frame_build(uint8_t *frame, const struct micro_order *order, uint32_t flow)
{
	struct frame *f = (struct frame *)frame;
	uint32_t fields = order->flow_fields;
	uint32_t i;

	memset(f, 0, sizeof(*f));
	memcpy(f->dst, order->dst, 6);
	memcpy(f->src, order->src, 6);
	if (fields & MICRO_FLOW_DMAC)
		add_to_address(f->dst, flow);
	if (fields & MICRO_FLOW_SMAC)
		add_to_address(f->src, flow);
	f->ethertype = ETHERTYPE_IPV4_BE;
	f->version_ihl = 0x45;
	f->total_len = be16(order->frame_len - 14);
	f->ttl = 64;
	f->protocol = IPPROTO_UDP;
	/* 198.18.0.0/15 is set aside for benchmarks (RFC 2544). */
	memcpy(f->ip_src, (const uint8_t[]){ 198, 18, 0, 1 }, 4);
	memcpy(f->ip_dst, (const uint8_t[]){ 198, 19, 0, 1 }, 4);
	f->ip_csum = ip_checksum(&f->version_ihl);
	f->sport = be16(PORT_BASE + (fields & MICRO_FLOW_PORT ? flow : 0));
	f->dport = be16(PORT_DISCARD);
	f->udp_len = be16(order->frame_len - 34);
	for (i = sizeof(*f); i < order->frame_len; i++)
		frame[i] = (uint8_t)i;
}

void frame_stamp(uint8_t *frame, const struct stamp *s)
{
	struct frame *f = (struct frame *)frame;

	f->stamp.mark = MARK_GUEST;
	f->stamp.seq = (s->seq & MASK48) | (uint64_t)(s->run >> 16) << 48;
	f->stamp.tsc = (s->tsc & MASK48) | (uint64_t)s->run << 48;
}

bool frame_stamped(const struct pkt *p, struct stamp *s)
{
	const struct frame *f = (const struct frame *)p->data;

	if (p->len < sizeof(*f) || (f->stamp.mark != MARK_GUEST && f->stamp.mark != MARK_HOST))
		return false;
	s->run = (uint32_t)(f->stamp.seq >> 48) << 16 | (uint32_t)(f->stamp.tsc >> 48);
	s->seq = f->stamp.seq & MASK48;
	s->tsc = f->stamp.tsc & MASK48;
	return true;
}

/* Copy a packet and send it back where it came from. */
void frame_turn(uint8_t *dst, const struct pkt *p)
{
	memcpy(dst, p->data, p->len);
	if (p->len >= 12) {
		memcpy(dst, p->data + 6, 6);
		memcpy(dst + 6, p->data, 6);
	}
}

uint64_t frame_sum(const struct pkt *p)
{
	uint64_t sum = 0, word;
	uint32_t i;

	for (i = 0; i + 8 <= p->len; i += 8) {
		__builtin_memcpy(&word, p->data + i, 8);
		sum += word;
	}
	for (; i < p->len; i++)
		sum += p->data[i];
	return sum;
}
