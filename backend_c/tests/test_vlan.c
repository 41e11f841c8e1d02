/* SPDX-License-Identifier: BSD-2-Clause */
/* test_vlan.c - tags taken off and put on, for frames cut anywhere; token buckets over a clock of the test's own */
#include "bucket.h"
#include "copy.h"
#include "take.h"
#include "test.h"

#define LEN 26u
#define SECOND (1000000000ull * VPTI_BUCKET_UNIT)

static const uint8_t frame[LEN] = {
	0x52, 0x54, 0, 0, 0, 1, 0x52, 0x54, 0, 0, 0, 2, 0x81, 0x00, 0xa0, 0x0a, 0x88, 0xb5, 1, 2, 3, 4, 5, 6, 7, 8,
};

/* A frame's bytes in allocations of exactly their size each, so that AddressSanitizer sees a step beyond one. */
struct cut {
	uint8_t *piece[4];
	struct vpti_frag frag[4];
	struct vpti_pkt pkt;
};

static void cut_make(struct cut *c, uint32_t len, const uint32_t at[3])
{
	uint32_t from = 0, i;

	memset(c, 0, sizeof(*c));
	for (i = 0; i < 4; i++) {
		uint32_t to = i < 3 ? at[i] : len;

		c->piece[i] = malloc(to - from ? to - from : 1);
		CHECK(c->piece[i]);
		memcpy(c->piece[i], frame + from, to - from);
		c->frag[i] = (struct vpti_frag){ c->piece[i], to - from };
		from = to;
	}
	c->pkt.first = c->frag[0];
	c->pkt.more = &c->frag[1];
	c->pkt.nmore = 3;
	c->pkt.len = len;
	vpti_read_eth(&c->pkt);
}

static void cut_free(struct cut *c)
{
	uint32_t i;

	for (i = 0; i < 4; i++)
		free(c->piece[i]);
}

static void check_copy(const struct vpti_pkt *p, const uint8_t *want, uint32_t len)
{
	uint8_t *out = malloc(len);
	struct vpti_run run = { out, len };

	CHECK(out);
	CHECK_EQ(p->len, len);
	vpti_copy(&run, 1, NULL, 0, p);
	CHECK(!memcmp(out, want, len));
	free(out);
}

/* Wherever the frame is cut: the tag comes off, and goes on again as it was. */
static void tags_go_off_and_on(void)
{
	uint8_t plain[LEN - VPTI_VLAN_HLEN];
	uint32_t at[3];

	memcpy(plain, frame, 12);
	memcpy(plain + 12, frame + 16, LEN - 16);
	for (at[0] = 0; at[0] <= LEN; at[0]++) {
		for (at[1] = at[0]; at[1] <= LEN; at[1]++) {
			for (at[2] = at[1]; at[2] <= LEN; at[2]++) {
				struct cut c;

				cut_make(&c, LEN, at);
				CHECK_EQ(vpti_vlan_classify(&vpti_vlans_all, &c.pkt), 0);
				CHECK_EQ(c.pkt.tci, 0xa00a);
				check_copy(&c.pkt, plain, sizeof(plain));
				vpti_vlan_tag(&vpti_vlans_none, &c.pkt);
				check_copy(&c.pkt, frame, LEN);
				vpti_vlan_untag(&c.pkt);
				check_copy(&c.pkt, plain, sizeof(plain));
				cut_free(&c);
			}
		}
	}
}

/* One piece, the usual case, has a way through the copy of its own. */
static void one_piece_too(void)
{
	struct cut c;

	cut_make(&c, LEN, (uint32_t[3]){ LEN, LEN, LEN });
	c.pkt.nmore = 0;
	CHECK_EQ(vpti_vlan_classify(&vpti_vlans_all, &c.pkt), 0);
	vpti_vlan_tag(&vpti_vlans_none, &c.pkt);
	check_copy(&c.pkt, frame, LEN);
	cut_free(&c);
}

/* It was looked up by the rules that its receiver had; they change while it is on its way. Its priority is no tag, either. */
static void a_frame_of_no_vlan_gets_no_tag_whatever_its_receiver_carries(void)
{
	const struct vpti_vlans access = { .native = 5 };
	uint32_t priority;

	for (priority = 0; priority < 8; priority++) {
		struct cut c;

		cut_make(&c, LEN, (uint32_t[3]){ LEN, LEN, LEN });
		c.pkt.tci = (uint16_t)(priority << 13);
		vpti_vlan_tag(&access, &c.pkt);
		check_copy(&c.pkt, frame, LEN);
		vpti_vlan_untag(&c.pkt);
		check_copy(&c.pkt, frame, LEN);
		cut_free(&c);
	}
}

static void a_tag_cut_off_is_read_by_nobody(void)
{
	uint32_t len;

	for (len = VPTI_ETH_HLEN; len < VPTI_ETH_HLEN + VPTI_VLAN_HLEN; len++) {
		struct cut c;

		cut_make(&c, len, (uint32_t[3]){ 5, 13, len });
		CHECK_EQ(vpti_vlan_classify(&vpti_vlans_all, &c.pkt), VPT_C_TX_DROP_RUNT);
		cut_free(&c);
	}
}

static void offsets_follow_the_tag(void)
{
	struct cut c;

	cut_make(&c, LEN, (uint32_t[3]){ LEN, LEN, LEN });
	c.pkt.hdr = (struct vpt_vnet_hdr){ .flags = VPT_VNET_NEEDS_CSUM, .csum_start = 18, .hdr_len = 22 };
	CHECK_EQ(vpti_vlan_classify(&vpti_vlans_all, &c.pkt), 0);
	CHECK_EQ(c.pkt.hdr.csum_start, 14);
	CHECK_EQ(c.pkt.hdr.hdr_len, 18);
	vpti_vlan_tag(&vpti_vlans_none, &c.pkt);
	CHECK_EQ(c.pkt.hdr.csum_start, 18);
	CHECK_EQ(c.pkt.hdr.hdr_len, 22);
	cut_free(&c);

	cut_make(&c, LEN, (uint32_t[3]){ LEN, LEN, LEN });
	c.pkt.hdr = (struct vpt_vnet_hdr){ .flags = VPT_VNET_NEEDS_CSUM, .csum_start = 17 };
	CHECK_EQ(vpti_vlan_classify(&vpti_vlans_all, &c.pkt), VPT_C_TX_DROP_BAD_HEADER);
	cut_free(&c);
}

/* ---- buckets ---- */

static uint32_t passed(struct vpti_bucket *b, uint64_t now)
{
	uint32_t n = 0;

	while (vpti_bucket_pass(b, now))
		n++;
	return n;
}

static void a_bucket_gives_its_burst_then_its_rate(void)
{
	struct vpti_bucket b;
	uint64_t now, i, n = 0;

	vpti_bucket_set(&b, 1000, 50);
	now = b.spent + b.depth; /* when it was set: it is full */
	CHECK_EQ(passed(&b, now), 51); /* the last one goes into debt */
	CHECK_EQ(passed(&b, now), 0);
	for (i = 1; i <= 100; i++)
		n += passed(&b, now + i * SECOND / 100);
	CHECK_EQ(n, 1000);
	CHECK_EQ(passed(&b, now + 1000 * SECOND), 51); /* what came beyond its depth was lost */
}

static void a_packet_larger_than_the_burst_passes_and_is_paid_for(void)
{
	struct vpti_rate r = { .on = true };
	struct vpti_meter m;
	uint64_t now;

	vpti_bucket_set(&r.bytes, 1000, 10);
	vpti_bucket_set(&r.packets, 0, 64);
	now = r.bytes.spent + r.bytes.depth;
	vpti_meter_look(&m, &r, now);
	CHECK(vpti_meter_pass(&m, &r, 3010));
	CHECK(!vpti_meter_pass(&m, &r, 1));
	vpti_rate_take(&r, 3010, 1, now);
	CHECK(vpti_rate_wait(&r, now) > 2900000000u && vpti_rate_wait(&r, now) <= 3000000001u);
	vpti_meter_look(&m, &r, now + 3 * SECOND + SECOND / 1000);
	CHECK(vpti_meter_pass(&m, &r, 1));
}

static void time_may_wrap_around(void)
{
	struct vpti_bucket b;

	vpti_bucket_set(&b, 1000, 10);
	b.spent = (uint64_t)0 - SECOND;
	CHECK_EQ(passed(&b, (uint64_t)0 - 10), 11);
	CHECK_EQ(passed(&b, SECOND / 100), 10);
}

static void no_limit_is_no_limit(void)
{
	struct vpti_rate r = { .on = true };
	struct vpti_meter m;
	uint32_t i;

	vpti_bucket_set(&r.bytes, 0, 1);
	vpti_bucket_set(&r.packets, 0, 1);
	vpti_meter_look(&m, &r, vpti_bucket_now());
	for (i = 0; i < 1000; i++)
		CHECK(vpti_meter_pass(&m, &r, VPT_MAX_FRAME));
	CHECK_EQ(vpti_rate_wait(&r, m.now), 0);
}

int main(void)
{
	static const struct test_case cases[] = {
		TEST(tags_go_off_and_on),
		TEST(one_piece_too),
		TEST(a_frame_of_no_vlan_gets_no_tag_whatever_its_receiver_carries),
		TEST(a_tag_cut_off_is_read_by_nobody),
		TEST(offsets_follow_the_tag),
		TEST(a_bucket_gives_its_burst_then_its_rate),
		TEST(a_packet_larger_than_the_burst_passes_and_is_paid_for),
		TEST(time_may_wrap_around),
		TEST(no_limit_is_no_limit),
	};

	return test_run(cases, ARRAY_LEN(cases));
}
