/* SPDX-License-Identifier: BSD-2-Clause */
/* test_offload.c - offload on scattered memory: what Python, which hands over one run of bytes, does not reach */

#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#include "checksum.h"
#include "offload.h"
#include "test.h"
#include "vpt/vpt.h"

#define PAYLOAD 3001u
#define HDR_LEN (14u + 20u + 20u)
#define FRAME_LEN (HDR_LEN + PAYLOAD)
#define MSS 1000u
#define SEGS 4

static struct vpti_offload_scratch scratch;

/* A TCP packet over IPv4 of FRAME_LEN bytes, and the vnet header that asks for MSS. */
static void make_tso(uint8_t *frame, struct vpt_vnet_hdr *hdr)
{
	static const uint8_t head[HDR_LEN] = {
		2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00,
		0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2,
		0x10, 0, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x18, 1, 0, 0x12, 0x34, 0, 0,
	};
	uint32_t i;

	memcpy(frame, head, sizeof(head));
	for (i = 0; i < PAYLOAD; i++)
		frame[HDR_LEN + i] = (uint8_t)(i * 7 + i / 251);
	*hdr = (struct vpt_vnet_hdr){.flags = VPT_VNET_NEEDS_CSUM, .gso_type = VPT_GSO_TCPV4, .gso_size = MSS,
				     .csum_start = 34, .csum_offset = 16};
}

static struct vpti_pkt linear(const uint8_t *frame, uint32_t len, const struct vpt_vnet_hdr *hdr)
{
	struct vpti_pkt p = {.first = {frame, len}, .len = len, .hdr = *hdr};

	memcpy(p.eth, frame, sizeof(p.eth));
	return p;
}

/* Cut a packet's memory every `step` bytes into allocations of their own, so that ASan sees each end. */
static uint32_t scatter(const uint8_t *frame, uint32_t len, uint32_t step, struct vpti_frag *frag, uint32_t max)
{
	uint32_t n, take;
	uint8_t *own;

	for (n = 0; len; n++, frame += take, len -= take) {
		CHECK(n < max);
		take = step < len ? step : len;
		own = malloc(take);
		CHECK(own);
		memcpy(own, frame, take);
		frag[n] = (struct vpti_frag){own, take};
	}
	return n;
}

static void free_frags(struct vpti_frag *frag, uint32_t n)
{
	while (n--)
		free((void *)frag[n].p);
}

/* The bytes of a packet as a receiver gets them. */
static uint32_t gather(const struct vpti_pkt *p, uint8_t *out)
{
	uint32_t len = p->first.len, i;

	memcpy(out, p->first.p, len);
	for (i = 0; i < p->nmore; len += p->more[i++].len)
		memcpy(out + len, p->more[i].p, p->more[i].len);
	memcpy(out, p->eth, sizeof(p->eth));
	CHECK_EQ(len, p->len);
	return len;
}

static uint16_t naive(const uint8_t *p, uint32_t len)
{
	uint32_t sum = 0, i;

	for (i = 0; i < len; i++)
		sum += i & 1 ? (uint32_t)p[i] : (uint32_t)p[i] << 8;
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)sum;
}

/* Every length up to a few vectors, at every alignment, whole and in two parts. */
static void checksum_is_that_of_a_simple_loop(void)
{
	uint8_t buf[160];
	uint32_t at, len, cut, want;
	uint64_t sum;

	for (at = 0; at < sizeof(buf); at++)
		buf[at] = (uint8_t)(255 - at * 13);
	for (at = 0; at < 16; at++) {
		for (len = 0; len <= 140; len++) {
			want = naive(buf + at, len);
			CHECK_EQ(__builtin_bswap16(vpti_csum_fold(vpti_csum_run(buf + at, len))), want);
			for (cut = 0; cut <= len; cut++) {
				sum = vpti_csum_add(0, 0, buf + at, cut);
				sum = vpti_csum_add(sum, cut, buf + at + cut, len - cut);
				CHECK_EQ(__builtin_bswap16(vpti_csum_fold(sum)), want);
			}
		}
	}
}

static void checksum_does_not_overflow(void)
{
	static uint8_t ones[65550];

	memset(ones, 0xff, sizeof(ones));
	CHECK_EQ(vpti_csum_fold(vpti_csum_run(ones, sizeof(ones))), 0xffff);
	CHECK_EQ(vpti_csum_fold(UINT64_MAX), 0xffff);
	CHECK_EQ(vpti_csum_finish(vpti_csum_run(ones, sizeof(ones))), 0xffff);
}

static void scattered_packet_gives_the_same_segments(void)
{
	static const uint32_t steps[] = {1, 2, 3, 13, 14, 15, 53, 55, 257, 999, 1000, 1001, 1499};
	static uint8_t frame[FRAME_LEN], want[SEGS][FRAME_LEN], got[FRAME_LEN];
	static struct vpti_frag frag[FRAME_LEN];
	struct vpt_vnet_hdr hdr;
	struct vpti_pkt p;
	uint32_t want_len[SEGS], nfrag;
	size_t i;
	int seg;

	make_tso(frame, &hdr);
	p = linear(frame, FRAME_LEN, &hdr);
	CHECK_EQ(vpti_offload(&p, 0, &scratch), SEGS);
	for (seg = 0; seg < SEGS; seg++)
		want_len[seg] = gather(&scratch.pkt[seg], want[seg]);
	for (i = 0; i < ARRAY_LEN(steps); i++) {
		nfrag = scatter(frame, FRAME_LEN, steps[i], frag, FRAME_LEN);
		p.first = frag[0];
		p.more = frag + 1;
		p.nmore = (uint16_t)(nfrag - 1);
		CHECK_EQ(vpti_offload(&p, 0, &scratch), SEGS);
		for (seg = 0; seg < SEGS; seg++) {
			CHECK_EQ(gather(&scratch.pkt[seg], got), want_len[seg]);
			CHECK(!memcmp(got, want[seg], want_len[seg]));
		}
		free_frags(frag, nfrag);
	}
}

static void scattered_packet_gets_the_same_checksum(void)
{
	static uint8_t frame[FRAME_LEN], want[FRAME_LEN], got[FRAME_LEN];
	static struct vpti_frag frag[FRAME_LEN];
	struct vpt_vnet_hdr hdr;
	struct vpti_pkt p;
	uint32_t step, nfrag;

	make_tso(frame, &hdr);
	hdr.gso_type = VPT_GSO_NONE;
	p = linear(frame, FRAME_LEN, &hdr);
	CHECK_EQ(vpti_offload(&p, 0, &scratch), 1);
	gather(&scratch.pkt[0], want);
	for (step = 1; step < 70; step++) {
		nfrag = scatter(frame, FRAME_LEN, step, frag, FRAME_LEN);
		p.first = frag[0];
		p.more = frag + 1;
		p.nmore = (uint16_t)(nfrag - 1);
		CHECK_EQ(vpti_offload(&p, 0, &scratch), 1);
		CHECK_EQ(gather(&scratch.pkt[0], got), FRAME_LEN);
		CHECK(!memcmp(got, want, FRAME_LEN));
		free_frags(frag, nfrag);
	}
}

/* Fragments without bytes are legal (a descriptor of length 0 among others) and change nothing. */
static void empty_fragments_are_passed_over(void)
{
	static uint8_t frame[FRAME_LEN], got[FRAME_LEN];
	struct vpti_frag more[] = {{NULL, 0}, {frame, 20}, {NULL, 0}, {frame + 20, FRAME_LEN - 20}, {NULL, 0}};
	struct vpt_vnet_hdr hdr;
	struct vpti_pkt p;

	make_tso(frame, &hdr);
	p = linear(frame, FRAME_LEN, &hdr);
	p.first = (struct vpti_frag){NULL, 0};
	p.more = more;
	p.nmore = ARRAY_LEN(more);
	CHECK_EQ(vpti_offload(&p, 0, &scratch), SEGS);
	CHECK_EQ(gather(&scratch.pkt[SEGS - 1], got), HDR_LEN + PAYLOAD % MSS);
	CHECK(!memcmp(got + HDR_LEN, frame + FRAME_LEN - PAYLOAD % MSS, PAYLOAD % MSS));
}

static void payload_is_referred_to_and_not_copied(void)
{
	static uint8_t frame[FRAME_LEN];
	struct vpt_vnet_hdr hdr;
	struct vpti_pkt p;
	int seg;

	make_tso(frame, &hdr);
	p = linear(frame, FRAME_LEN, &hdr);
	CHECK_EQ(vpti_offload(&p, 0, &scratch), SEGS);
	for (seg = 0; seg < SEGS; seg++) {
		CHECK_EQ(scratch.pkt[seg].nmore, 1);
		CHECK(scratch.pkt[seg].more[0].p == frame + HDR_LEN + (uint32_t)seg * MSS);
	}
}

/* The sender has changed addresses and EtherType since they were copied: it is the copy that counts. */
static void ethernet_header_that_was_looked_up_goes_out(void)
{
	static uint8_t frame[FRAME_LEN], got[FRAME_LEN];
	struct vpt_vnet_hdr hdr;
	struct vpti_pkt p;
	int seg;

	make_tso(frame, &hdr);
	p = linear(frame, FRAME_LEN, &hdr);
	memset(frame, 0xee, VPTI_ETH_HLEN);
	CHECK_EQ(vpti_offload(&p, 0, &scratch), SEGS);
	for (seg = 0; seg < SEGS; seg++) {
		CHECK(!memcmp(scratch.pkt[seg].eth, p.eth, sizeof(p.eth)));
		CHECK(!memcmp(scratch.pkt[seg].first.p, p.eth, sizeof(p.eth)));
	}
	p.hdr.gso_type = VPT_GSO_NONE;
	CHECK_EQ(vpti_offload(&p, 0, &scratch), 1);
	gather(&scratch.pkt[0], got);
	CHECK(!memcmp(got, p.eth, sizeof(p.eth)));
}

static void packet_shorter_than_it_says_is_refused(void)
{
	static uint8_t frame[FRAME_LEN];
	static const uint32_t there[] = {0, 1, 14, 53, HDR_LEN, HDR_LEN + 1, HDR_LEN + MSS, FRAME_LEN - 1};
	struct vpt_vnet_hdr hdr;
	struct vpti_pkt p;
	size_t i;

	make_tso(frame, &hdr);
	p = linear(frame, FRAME_LEN, &hdr);
	for (i = 0; i < ARRAY_LEN(there); i++) {
		p.first.len = there[i];
		p.hdr.gso_type = VPT_GSO_TCPV4;
		CHECK_EQ(vpti_offload(&p, 0, &scratch), -EINVAL);
		p.hdr.gso_type = VPT_GSO_NONE;
		CHECK_EQ(vpti_offload(&p, 0, &scratch), -EINVAL);
	}
}

static void more_fragments_than_there_is_room_for_are_refused(void)
{
	static uint8_t frame[FRAME_LEN + VPTI_GSO_MAX_FRAGS];
	static struct vpti_frag frag[sizeof(frame)];
	struct vpt_vnet_hdr hdr;
	struct vpti_pkt p;
	uint32_t i, room = HDR_LEN + VPTI_GSO_MAX_FRAGS;

	make_tso(frame, &hdr);
	for (i = 0; i < sizeof(frame); i++)
		frag[i] = (struct vpti_frag){frame + i, 1};
	for (i = 0; i < 2; i++) {
		p = linear(frame, room + i, &hdr);
		p.first = frag[0];
		p.more = frag + 1;
		p.nmore = (uint16_t)(room + i - 1);
		CHECK_EQ(vpti_offload(&p, 0, &scratch), i ? -EINVAL : (int)(VPTI_GSO_MAX_FRAGS + MSS - 1) / (int)MSS);
	}
}

static void as_many_segments_as_promised_and_not_one_more(void)
{
	static uint8_t frame[FRAME_LEN];
	struct vpt_vnet_hdr hdr;
	struct vpti_pkt p;

	make_tso(frame, &hdr);
	hdr.gso_size = 1;
	p = linear(frame, HDR_LEN + VPTI_GSO_MAX_SEGS, &hdr);
	CHECK(vpti_vnet_check(&p, UINT64_MAX));
	CHECK_EQ(vpti_offload(&p, 0, &scratch), VPTI_GSO_MAX_SEGS);
	p = linear(frame, HDR_LEN + VPTI_GSO_MAX_SEGS + 1, &hdr);
	CHECK(!vpti_vnet_check(&p, UINT64_MAX));
	CHECK_EQ(vpti_offload(&p, 0, &scratch), -EINVAL);
}

static void claim_needs_its_feature(void)
{
	static const struct {
		uint8_t flags, gso_type, csum_offset;
		uint64_t needs;
	} claims[] = {
		{VPT_VNET_NEEDS_CSUM, VPT_GSO_NONE, 16, VPT_F_CSUM},
		{VPT_VNET_NEEDS_CSUM, VPT_GSO_TCPV4, 16, VPT_F_CSUM | VPT_F_HOST_TSO4},
		{VPT_VNET_NEEDS_CSUM, VPT_GSO_TCPV6, 16, VPT_F_CSUM | VPT_F_HOST_TSO6},
		{VPT_VNET_NEEDS_CSUM, VPT_GSO_TCPV4 | VPT_GSO_ECN, 16, VPT_F_CSUM | VPT_F_HOST_TSO4 | VPT_F_HOST_ECN},
		{VPT_VNET_NEEDS_CSUM, VPT_GSO_UDP_L4, 6, VPT_F_CSUM | VPT_F_HOST_USO},
	};
	struct vpti_pkt p = {.len = 2000};
	uint64_t bit;
	size_t i;

	for (i = 0; i < ARRAY_LEN(claims); i++) {
		p.hdr = (struct vpt_vnet_hdr){.flags = claims[i].flags, .gso_type = claims[i].gso_type, .gso_size = 500,
					      .csum_start = 34, .csum_offset = claims[i].csum_offset};
		CHECK(vpti_vnet_check(&p, claims[i].needs));
		for (bit = 1; bit; bit <<= 1)
			if (claims[i].needs & bit)
				CHECK(!vpti_vnet_check(&p, ~bit));
	}
}

/* Slots and descriptors could chain megabytes; segmentation is no way around the longest frame. */
static void packet_over_64_kib_is_refused(void)
{
	struct vpti_pkt p = {.len = VPT_MAX_FRAME};

	p.hdr = (struct vpt_vnet_hdr){.flags = VPT_VNET_NEEDS_CSUM, .gso_type = VPT_GSO_TCPV4, .gso_size = 1000,
				      .csum_start = 34, .csum_offset = 16};
	CHECK(vpti_vnet_check(&p, UINT64_MAX));
	p.len++;
	CHECK(!vpti_vnet_check(&p, UINT64_MAX));
}

/* What a sender may not set, or what means nothing, is not passed on: it could be taken for the host's word. */
static void receiver_sees_a_clean_header(void)
{
	const struct vpt_vnet_hdr zero = {0};
	struct vpti_pkt p = {.len = 100};

	p.hdr = (struct vpt_vnet_hdr){VPT_VNET_DATA_VALID | 0xf8, VPT_GSO_NONE, 1, 2, 3, 4, 5};
	CHECK(vpti_vnet_check(&p, 0));
	CHECK(!memcmp(&p.hdr, &zero, sizeof(zero)));

	p.hdr = (struct vpt_vnet_hdr){0xff, VPT_GSO_NONE, 1000, 2, 34, 16, 5};
	CHECK(vpti_vnet_check(&p, VPT_F_CSUM));
	CHECK_EQ(p.hdr.flags, VPT_VNET_NEEDS_CSUM);
	CHECK_EQ(p.hdr.hdr_len, 100);
	CHECK_EQ(p.hdr.gso_size, 0);
	CHECK_EQ(p.hdr.csum_start, 34);
	CHECK_EQ(p.hdr.csum_offset, 16);
	CHECK_EQ(p.hdr.num_buffers, 0);
}

int main(void)
{
	static const struct test_case cases[] = {
		TEST(checksum_is_that_of_a_simple_loop),
		TEST(checksum_does_not_overflow),
		TEST(scattered_packet_gives_the_same_segments),
		TEST(scattered_packet_gets_the_same_checksum),
		TEST(empty_fragments_are_passed_over),
		TEST(payload_is_referred_to_and_not_copied),
		TEST(ethernet_header_that_was_looked_up_goes_out),
		TEST(packet_shorter_than_it_says_is_refused),
		TEST(more_fragments_than_there_is_room_for_are_refused),
		TEST(as_many_segments_as_promised_and_not_one_more),
		TEST(packet_over_64_kib_is_refused),
		TEST(claim_needs_its_feature),
		TEST(receiver_sees_a_clean_header),
	};

	return test_run(cases, ARRAY_LEN(cases));
}
