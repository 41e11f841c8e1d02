/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * fuzz_offload.c - vnet headers and packets of any content through check, checksum and segmentation
 *
 * Input: vnet header (12 bytes), receiver's features (1 byte: a bit for each of six), where to cut the packet into
 * fragments (2 bytes: length of the first and of the others, 0: not at all), frame.
 *
 * Each fragment is an allocation of its own, so that ASan sees what is read outside. What comes out must refer only to
 * the packet's own bytes, each of them once and in order, and must not depend on where the packet was cut.
 */

#include <stdbool.h>

#include "fuzz.h"
#include "offload.h"
#include "vpt/vpt.h"

#define MAX_FRAGS 4096u

static const uint64_t accept_bits[] = {VPT_F_GUEST_CSUM, VPT_F_GUEST_TSO4, VPT_F_GUEST_TSO6,
				       VPT_F_GUEST_ECN,  VPT_F_GUEST_USO4, VPT_F_GUEST_USO6};

static struct vpti_offload_scratch whole, cut;
static struct vpti_frag frags[MAX_FRAGS];

static uint64_t accepts_of(uint8_t bits)
{
	uint64_t accepts = 0;
	size_t i;

	for (i = 0; i < sizeof(accept_bits) / sizeof(accept_bits[0]); i++)
		if (bits >> i & 1)
			accepts |= accept_bits[i];
	return accepts;
}

static struct vpti_frag own_copy(const uint8_t *p, uint32_t len)
{
	uint8_t *own = malloc(len ? len : 1);

	MUST(own);
	memcpy(own, p, len);
	return (struct vpti_frag){own, len};
}

/* Returns the number of fragments. The last one takes what is left. */
static uint32_t scatter(const uint8_t *frame, uint32_t len, uint32_t first, uint32_t others)
{
	uint32_t n, take;

	for (n = 0; len; n++, frame += take, len -= take) {
		take = n ? others : first;
		if (!take || take > len || n == MAX_FRAGS - 1)
			take = len;
		frags[n] = own_copy(frame, take);
	}
	return n;
}

/* A place in a packet's fragments. */
struct walk {
	struct vpti_frag at;
	const struct vpti_frag *more;
	uint32_t left;
};

static struct walk walk_from_start(const struct vpti_pkt *p)
{
	return (struct walk){p->first, p->more, p->nmore};
}

/* Go on by ofs bytes, which are there, and then to a fragment that has one more, if the packet has. */
static void walk_on(struct walk *w, uint32_t ofs)
{
	for (; ofs >= w->at.len && w->left; w->left--) {
		ofs -= w->at.len;
		w->at = *w->more++;
	}
	MUST(ofs <= w->at.len);
	w->at.p += ofs;
	w->at.len -= ofs;
}

static void check_packet(const struct vpti_pkt *p, const struct vpti_pkt *in, const struct vpti_offload_scratch *s)
{
	MUST(p->first.p >= s->hdr && p->first.p + p->first.len <= s->hdr + sizeof(s->hdr));
	MUST(p->first.len >= VPTI_ETH_HLEN && !memcmp(p->first.p, in->eth, VPTI_ETH_HLEN));
	MUST(!memcmp(p->eth, in->eth, sizeof(p->eth)));
	MUST(p->hdr.gso_type == VPT_GSO_NONE && p->dst == in->dst);
}

/* Behind the headers, which were copied, the results must hold the packet's own memory: all of it, in order. */
static void check_result(const struct vpti_pkt *in, const struct vpti_offload_scratch *s, int n)
{
	struct walk w = walk_from_start(in);
	uint32_t len, total = s->pkt[0].first.len, i;
	const struct vpti_pkt *p;

	walk_on(&w, total);
	for (p = s->pkt; p < s->pkt + n; p++) {
		check_packet(p, in, s);
		len = p->first.len;
		for (i = 0; i < p->nmore; i++) {
			MUST(p->more[i].len && p->more[i].p == w.at.p && p->more[i].len <= w.at.len);
			walk_on(&w, p->more[i].len);
			len += p->more[i].len;
		}
		MUST(len == p->len);
		total += len - p->first.len;
	}
	MUST(total == in->len);
}

/* Do two packets hold the same bytes, wherever they were cut? */
static bool same_bytes(const struct vpti_pkt *a, const struct vpti_pkt *b)
{
	struct walk wa = walk_from_start(a), wb = walk_from_start(b);
	uint32_t left = a->len, run;

	if (a->len != b->len || memcmp(&a->hdr, &b->hdr, sizeof(a->hdr)))
		return false;
	for (; left; left -= run) {
		run = wa.at.len < wb.at.len ? wa.at.len : wb.at.len;
		if (!run || memcmp(wa.at.p, wb.at.p, run))
			return false;
		walk_on(&wa, run);
		walk_on(&wb, run);
	}
	return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuzz_in in = {data, size};
	uint8_t bits, first, others;
	struct vpti_pkt p = {0}, q;
	uint32_t nfrag, i;
	uint64_t accepts;
	int n, m, seg;

	fuzz_bytes(&in, &p.hdr, sizeof(p.hdr));
	bits = fuzz_u8(&in);
	first = fuzz_u8(&in);
	others = fuzz_u8(&in);
	if (in.left < VPTI_ETH_HLEN || in.left > VPT_MAX_FRAME)
		return 0;
	accepts = accepts_of(bits);
	p.len = (uint32_t)in.left;
	p.dst = bits;
	memcpy(p.eth, in.p, sizeof(p.eth));
	if (!vpti_vnet_check(&p, UINT64_MAX) || !vpti_offload_needed(&p, accepts))
		return 0;

	q = p;
	p.first = own_copy(in.p, p.len);
	nfrag = scatter(in.p, p.len, first, others);
	q.first = frags[0];
	q.more = frags + 1;
	q.nmore = (uint16_t)(nfrag - 1);

	n = vpti_offload(&p, accepts, &whole);
	MUST(n != 0 && n <= (int)VPTI_GSO_MAX_SEGS);
	if (n > 0)
		check_result(&p, &whole, n);
	m = vpti_offload(&q, accepts, &cut);
	/* Only the number of fragments can make a difference. */
	MUST(m == n || (m < 0 && nfrag + VPTI_GSO_MAX_SEGS >= VPTI_GSO_MAX_FRAGS));
	if (m > 0)
		check_result(&q, &cut, m);
	for (seg = 0; seg < m; seg++)
		MUST(same_bytes(&whole.pkt[seg], &cut.pkt[seg]));

	free((void *)p.first.p);
	for (i = 0; i < nfrag; i++)
		free((void *)frags[i].p);
	return 0;
}
