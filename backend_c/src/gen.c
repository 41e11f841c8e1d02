/* SPDX-License-Identifier: BSD-2-Clause */
/* gen.c - packet generator and receiver on an application's side of a region, at full speed and in slices */
#define _GNU_SOURCE
#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <time.h>

#include "app.h"
#include "util.h"

#define MIN_FRAME 60u
#define MAX_FRAME 1514u
#define MAX_FLOWS 50000u
#define MAX_BURST 256u
#define ETH_IP_UDP 42u
#define MARK 0x7670u
#define MARK_GUEST 0x7671u  /* the micro guest's (guest-driver/micro/frame.c): its time is not of our clock */
#define MASK48 (~0ull >> 16)
#define FIRST_PORT 7000u
#define SPIN_NS 20000u      /* receiver: how long to look before sleeping */
#define SLEEP_GAP_NS 60000u /* sender: gaps longer than this are slept, not spun: a sleep takes some 20 us more than asked */
#define CATCH_UP_NS 100000000u
#define MIN_PPS 0.001
#define MAX_PPS 1e9
#define WINDOW 1024u        /* numbers back from the highest that are told apart when they come late */

/*
 * What follows the UDP header; unaligned in the frame. There is room for 18 bytes: numbers of 48 bits last 160 days at
 * 20 Mpps, and times of 48 bits are of use for latencies below 39 hours. Above each lies a half of the run. Whole words and
 * no bit fields: those are put together in memory, and read back from there before the stores have left the processor.
 */
struct stamp {
	uint16_t mark;
	uint64_t seq;           /* and the run's upper half */
	uint64_t sent_ns;       /* and its lower half */
} __attribute__((packed));

static uint64_t with_half(uint64_t value, uint32_t half)
{
	return (value & MASK48) | (uint64_t)(half & 0xffff) << 48;
}

_Static_assert(ETH_IP_UDP + sizeof(struct stamp) == MIN_FRAME, "the shortest frame holds a stamp");
_Static_assert(sizeof(((struct vpt_gen_run *)0)->seen) * 8 == WINDOW, "a bit for each number of the window");

static void put16(uint8_t *p, uint32_t v)
{
	p[0] = (uint8_t)(v >> 8);
	p[1] = (uint8_t)v;
}

static void ip_checksum(uint8_t *ip)
{
	uint32_t sum = 0, i;

	for (i = 0; i < 20; i += 2)
		sum += (uint32_t)ip[i] << 8 | ip[i + 1];
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	put16(ip + 10, ~sum & 0xffff);
}

/* Everything but UDP source port and stamp. A UDP checksum of 0 means none (RFC 768). */
static void build_headers(uint8_t *f, const struct vpt_gen_tx *g, uint32_t size)
{
	uint8_t *ip = f + 14, *udp = f + 34;

	memset(f, 0, ETH_IP_UDP);
	memcpy(f, g->dst, 6);
	memcpy(f + 6, g->src, 6);
	put16(f + 12, 0x0800);
	ip[0] = 0x45;
	put16(ip + 2, size - 14);
	ip[8] = 64;
	ip[9] = 17;
	memcpy(ip + 12, "\x0a\x76\x00\x01", 4);
	memcpy(ip + 16, "\x0a\x76\x00\x02", 4);
	ip_checksum(ip);
	put16(udp + 2, FIRST_PORT);
	put16(udp + 4, size - 34);
}

static int check(const vpt_app *a, uint32_t ring, const struct vpt_gen_tx *g)
{
	uint32_t i;

	if (ring >= a->pairs || !g->nsizes || g->nsizes > VPTI_ARRAY_SIZE(g->sizes) || !g->flows ||
	    g->flows > MAX_FLOWS || !g->burst || g->burst > MAX_BURST)
		return -EINVAL;
	if (g->pps != 0 && !(g->pps >= MIN_PPS && g->pps <= MAX_PPS)) /* nan, too */
		return -EINVAL;
	for (i = 0; i < g->nsizes; i++) {
		if (g->sizes[i] < MIN_FRAME || g->sizes[i] > MAX_FRAME || g->sizes[i] + a->hdr_len > a->buf_size)
			return -EINVAL;
	}
	return 0;
}

/* Field by field, for the same reason; so is get_stamp(). */
static void put_stamp(uint8_t *p, uint64_t seq, uint64_t sent_ns)
{
	const uint16_t mark = MARK;

	memcpy(p + offsetof(struct stamp, mark), &mark, sizeof(mark));
	memcpy(p + offsetof(struct stamp, seq), &seq, sizeof(seq));
	memcpy(p + offsetof(struct stamp, sent_ns), &sent_ns, sizeof(sent_ns));
}

static struct stamp get_stamp(const uint8_t *p)
{
	struct stamp s;

	memcpy(&s.mark, p + offsetof(struct stamp, mark), sizeof(s.mark));
	memcpy(&s.seq, p + offsetof(struct stamp, seq), sizeof(s.seq));
	memcpy(&s.sent_ns, p + offsetof(struct stamp, sent_ns), sizeof(s.sent_ns));
	return s;
}

/* Up to n packets into the ring, unpublished. Returns how many there was room for; -EPROTO. */
static int fill(vpt_app *a, struct vpti_app_ring *r, struct vpt_gen_tx *g, uint32_t n,
		uint8_t headers[][ETH_IP_UDP])
{
	uint64_t sent_ns = with_half(vpti_now_ns(), g->run), seq = g->sent;
	uint32_t which = (uint32_t)(seq % g->nsizes), flow = (uint32_t)(seq % g->flows), i;

	for (i = 0; i < n && r->head != r->tail; i++) {
		uint32_t size = g->sizes[which];
		uint8_t *buf = vpti_app_buf(a, r, r->head), *f = buf + a->hdr_len;

		if (!buf)
			return -EPROTO;
		if (a->hdr_len)
			memset(buf, 0, sizeof(struct vpt_vnet_hdr));
		memcpy(f, headers[which], ETH_IP_UDP);
		put16(f + 34, FIRST_PORT + flow);
		put_stamp(f + ETH_IP_UDP, with_half(seq++, g->run >> 16), sent_ns);
		r->nm->slot[r->head].len = (uint16_t)(size + a->hdr_len);
		r->nm->slot[r->head].flags = 0;
		r->head = r->head + 1 == r->n ? 0 : r->head + 1;
		which = which + 1 == g->nsizes ? 0 : which + 1;
		flow = flow + 1 == g->flows ? 0 : flow + 1;
		g->bytes += size;
	}
	g->sent = seq;
	return (int)i;
}

static void sleep_until(uint64_t ns)
{
	struct timespec ts = { (time_t)(ns / 1000000000u), (long)(ns % 1000000000u) };

	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL);
}

/* Until the next burst is due, or to the end of the slice: then it returns false. */
static bool wait_due(const struct vpt_gen_tx *g, uint64_t end)
{
	if (g->due_ns >= end) {
		sleep_until(end);
		return false;
	}
	if (g->due_ns > vpti_now_ns() + SLEEP_GAP_NS)
		sleep_until(g->due_ns - SLEEP_GAP_NS / 2);
	while (vpti_now_ns() < g->due_ns)
		vpti_cpu_relax();
	return true;
}

/* n packets came or went together. */
static void extend(struct vpt_gen_span *s, uint64_t n, uint64_t now)
{
	if (!n)
		return;
	if (!s->first_ns) {
		s->first_ns = now;
		s->first = n;
	}
	s->last_ns = now;
}

/* When the burst after this one is due. A sender that was held up catches up, but not for longer than CATCH_UP_NS. */
static void schedule(struct vpt_gen_tx *g, uint32_t sent, uint64_t now)
{
	if (g->pps == 0)
		return;
	if (!g->due_ns || now > g->due_ns + CATCH_UP_NS) {
		g->paced_ns = now;
		g->paced = 0;
	}
	g->paced += sent;
	/* Not a gap added to the one before: a fraction of a nanosecond, cut off each time, is a rate that is too high. */
	g->due_ns = g->paced_ns + (uint64_t)((double)g->paced * 1e9 / g->pps);
}

int vpt_gen_send(vpt_app *a, uint32_t ring, struct vpt_gen_tx *g, uint64_t slice_ns)
{
	uint64_t end = vpti_now_ns() + slice_ns;
	uint8_t headers[VPTI_ARRAY_SIZE(g->sizes)][ETH_IP_UDP];
	struct vpti_app_ring *r = &a->ring[ring];
	int rc = check(a, ring, g);
	uint32_t i;

	if (rc)
		return rc;
	for (i = 0; i < g->nsizes; i++)
		build_headers(headers[i], g, g->sizes[i]);
	while (!g->packets || g->sent < g->packets) {
		uint32_t want = g->burst;
		uint64_t now;

		if (g->packets)
			want = (uint32_t)VPTI_MIN(want, g->packets - g->sent);
		if (g->pps != 0 ? !wait_due(g, end) : vpti_now_ns() >= end)
			return 0;
		rc = vpti_app_sync(a, r);
		if (rc)
			return rc;
		rc = fill(a, r, g, want, headers);
		if (rc < 0)
			return rc;
		if (rc)
			vpti_app_publish(a, r, VPT_VEC_TX(a->pairs, ring));
		now = vpti_now_ns();
		extend(&g->span, (uint32_t)rc, now);
		schedule(g, (uint32_t)rc, now);
		if ((uint32_t)rc < want) {
			g->full++;
			rc = vpt_app_wait(a, ring, 0, 1);
			if (rc < 0 && rc != -EINTR)
				return rc;
			if (vpti_now_ns() >= end)
				return 0;
		}
	}
	return 1;
}

/* ---- receiving ---- */

static uint32_t bucket_of(uint64_t ns)
{
	uint32_t log;

	if (ns < 16)
		return (uint32_t)ns;
	log = 63 - (uint32_t)__builtin_clzll(ns);
	return (log - 3) * 16 + (uint32_t)(ns >> (log - 4) & 15);
}

uint64_t vpt_gen_bucket_ns(uint32_t i)
{
	if (i < 16)
		return i;
	return (16ull + i % 16) << (i / 16 - 1);
}

/**
 * find_run() - the sender that a packet is of
 *
 * Packets of one sender follow each other mostly, so there is one comparison to do.
 *
 * Return: its numbers so far; NULL: a sender that is not counted.
 */
static struct vpt_gen_run *find_run(struct vpt_gen_rx *g, uint32_t id, uint64_t seq)
{
	uint32_t i;

	if (g->nruns && g->run[g->current] == id)
		return &g->runs[g->current];
	for (i = 0; i < g->nruns; i++) {
		if (g->run[i] == id)
			break;
	}
	if (i == g->nruns) {
		if (g->only ? id != g->only : i == VPTI_ARRAY_SIZE(g->runs))
			return NULL;
		g->run[i] = id;
		g->runs[i].first = g->only ? 0 : seq;
		g->runs[i].next = g->runs[i].first;
		g->nruns++;
	}
	g->current = i;
	return &g->runs[i];
}

/* A number higher than all before it: those in between are missing so far. */
static void step_ahead(struct vpt_gen_rx *g, struct vpt_gen_run *r, uint64_t seq)
{
	uint64_t i;

	if (seq - r->next >= WINDOW) {
		memset(r->seen, 0, sizeof(r->seen));
	} else {
		for (i = r->next; i < seq; i++)
			r->seen[i % WINDOW / 64] &= ~(1ull << i % 64);
	}
	g->lost += seq - r->next;
	r->next = seq + 1;
	r->seen[seq % WINDOW / 64] |= 1ull << seq % 64;
}

/* A number that is not higher than all before it. */
static void look_back(struct vpt_gen_rx *g, struct vpt_gen_run *r, uint64_t seq)
{
	uint64_t bit = 1ull << seq % 64, *word = &r->seen[seq % WINDOW / 64];

	if (r->next - seq > WINDOW) { /* nobody knows whether it has come before */
		g->late++;
		return;
	}
	if (*word & bit) {
		g->duplicate++;
		return;
	}
	*word |= bit;
	g->late++;
	if (seq >= r->first) {
		g->lost--;
	} else {
		g->lost += r->first - seq - 1;
		r->first = seq;
	}
}

static void note_latency(struct vpt_gen_rx *g, uint64_t ns)
{
	if (ns > MASK48 / 2) /* sent after now: it came in while we were at those before it */
		ns = 0;
	if (g->received == g->untimed || ns < g->latency_min_ns)
		g->latency_min_ns = ns;
	if (ns > g->latency_max_ns)
		g->latency_max_ns = ns;
	g->latency[bucket_of(ns)]++;
}

/* Returns false if it is of a sender that is not counted. */
static bool note(struct vpt_gen_rx *g, const struct stamp *s, uint64_t now)
{
	uint64_t seq = s->seq & MASK48;
	struct vpt_gen_run *r = find_run(g, (uint32_t)(s->seq >> 48) << 16 | (uint32_t)(s->sent_ns >> 48), seq);

	if (!r)
		return false;
	if (seq >= r->next)
		step_ahead(g, r, seq);
	else
		look_back(g, r, seq);
	if (s->mark == MARK)
		note_latency(g, (now - s->sent_ns) & MASK48);
	else
		g->untimed++;
	g->received++;
	return true;
}

/* All that is there. Returns how many packets; -EPROTO. */
static int drain(vpt_app *a, struct vpti_app_ring *r, struct vpt_gen_rx *g)
{
	uint64_t now = vpti_now_ns(), received = g->received, other = g->other;
	int n = 0;

	while (r->head != r->tail) {
		uint32_t len = VPTI_READ(r->nm->slot[r->head].len);
		const uint8_t *buf = vpti_app_buf(a, r, r->head);
		struct stamp stamp;

		if (!buf || len > a->buf_size || len < a->hdr_len)
			return -EPROTO;
		len -= a->hdr_len;
		stamp = get_stamp(buf + a->hdr_len + ETH_IP_UDP); /* a buffer is longer than this, whatever len says */
		if (len >= MIN_FRAME && (stamp.mark == MARK || stamp.mark == MARK_GUEST) && note(g, &stamp, now))
			g->bytes += len;
		else
			g->other++;
		r->head = r->head + 1 == r->n ? 0 : r->head + 1;
		n++;
	}
	extend(&g->span, g->received - received, now);
	extend(&g->other_span, g->other - other, now);
	if (n) {
		VPTI_WRITE(r->atok->cur, r->head);
		VPTI_STORE_RELEASE(r->atok->head, r->head); /* read: pairs with the host's acquire of head in reserve() */
	}
	return n;
}

int vpt_gen_recv(vpt_app *a, uint32_t ring, struct vpt_gen_rx *g, uint64_t slice_ns, int poll)
{
	uint64_t now = vpti_now_ns(), end = now + slice_ns, idle_since = now;
	struct vpti_app_ring *r;
	int rc;

	if (ring >= a->pairs)
		return -EINVAL;
	r = &a->ring[a->pairs + ring];
	while ((now = vpti_now_ns()) < end) {
		rc = vpti_app_sync(a, r);
		if (rc)
			return rc;
		rc = drain(a, r, g);
		if (rc < 0)
			return rc;
		if (rc) {
			idle_since = now;
		} else if (poll || now - idle_since < SPIN_NS) {
			vpti_cpu_relax();
		} else {
			rc = vpt_app_wait(a, ring, 1, (int)((end - now) / 1000000u) + 1);
			if (rc < 0 && rc != -EINTR)
				return rc;
		}
	}
	return 0;
}
