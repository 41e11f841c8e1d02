/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_virtq_path.c - two well-behaved guests through the switch, in this thread: every frame arrives whole, copied once
 *
 * test_virtq_path ROUNDS runs so many more rounds of 64 packets in each direction and prints what was moved, for a profiler:
 *   valgrind --tool=callgrind --toggle-collect=vpti_switch_forward test_virtq_path 200 split
 */
#define _GNU_SOURCE
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fuzz_engine.h"
#include "test.h"
#include "virtq.h"

#define NUM 256u
#define BURST 64u
#define SIZE (4u << 20)
#define GPA 0x40000000u
#define RX 0u
#define TX 1u
#define FRAME 64u
#define HDR 12u

/* Where things are in a guest's memory. Frames begin on a cache line, headers before it, as DPDK's drivers have them. */
#define DESC_AT(ring) ((ring) * 0x10000u)
#define AVAIL_AT(ring) (DESC_AT(ring) + 0x4000u)
#define USED_AT(ring) (DESC_AT(ring) + 0x8000u)
#define BUF_SIZE 2304u
#define BUF_AT(ring, i) (0x20000u + ((ring) * NUM + (i)) * BUF_SIZE + 116u)

struct guest {
	vpt_port *port;
	uint8_t *mem;
	uint64_t features;
	uint32_t made[2];          /* descriptors made available, by ring */
	uint32_t seen;             /* packets received */
};

static const struct {
	const char *name;
	uint64_t features;
} kinds[] = {
	{ "split", VPTI_F_MRG_RXBUF },
	{ "split, one buffer", 0 },
	{ "split in order", VPTI_F_MRG_RXBUF | VPTI_F_IN_ORDER },
	{ "packed", VPTI_F_MRG_RXBUF | VPTI_F_RING_PACKED },
	{ "packed, one buffer", VPTI_F_RING_PACKED },
	{ "packed in order", VPTI_F_MRG_RXBUF | VPTI_F_RING_PACKED | VPTI_F_IN_ORDER },
};

static vpt_engine *engine;
static vpt_switch *sw;

static bool packed(const struct guest *g)
{
	return g->features & VPTI_F_RING_PACKED;
}

/* ---- what a driver does ---- */

static void make_available(struct guest *g, uint32_t ring, uint32_t len)
{
	uint32_t n = g->made[ring]++, i = n % NUM;
	uint16_t flags = ring == RX ? VPTI_DESC_WRITE : 0;

	if (packed(g)) {
		struct vpti_packed_desc *d = (void *)(g->mem + DESC_AT(ring));

		d[i] = (struct vpti_packed_desc){ .addr = GPA + BUF_AT(ring, i), .len = len, .id = (uint16_t)i };
		VPTI_STORE_RELEASE(d[i].flags, (uint16_t)(flags | (n / NUM % 2 ? VPTI_PACKED_USED : VPTI_PACKED_AVAIL)));
	} else {
		struct vpti_desc *d = (void *)(g->mem + DESC_AT(ring));
		struct vpti_avail *a = (void *)(g->mem + AVAIL_AT(ring));

		d[i] = (struct vpti_desc){ .addr = GPA + BUF_AT(ring, i), .len = len, .flags = flags };
		a->ring[i] = (uint16_t)i;
		VPTI_STORE_RELEASE(a->idx, (uint16_t)(n + 1));
	}
}

/* Packet n of a guest's receive ring has come; how long it says it is. */
static uint32_t came(const struct guest *g, uint32_t n)
{
	uint32_t i = n % NUM;

	if (packed(g)) {
		const struct vpti_packed_desc *d = (const void *)(g->mem + DESC_AT(RX));
		uint16_t turn = VPTI_PACKED_AVAIL | VPTI_PACKED_USED;

		return (d[i].flags & turn) == (n / NUM % 2 ? 0 : turn) ? d[i].len : 0;
	} else {
		const struct vpti_used *u = (const void *)(g->mem + USED_AT(RX));

		return (uint16_t)(u->idx - n) && (uint16_t)(u->idx - n) <= NUM ? u->ring[i].len : 0;
	}
}

/* Frame n from guest k to the other. */
static void write_frame(uint8_t *f, uint32_t k, uint32_t n)
{
	memset(f, (int)(n * 7 + k), FRAME);
	memcpy(f, "\x02\0\0\0\0", 5);
	f[5] = (uint8_t)!k;
	memcpy(f + 6, "\x02\0\0\0\0", 5);
	f[11] = (uint8_t)k;
}

/* ---- the scene ---- */

static void start(struct guest *g, uint64_t features)
{
	struct vpt_port_opts opts = { .kind = VPT_KIND_VHOST_USER, .pairs = 1, .policy = { .kind = VPT_POLICY_NOTIFY } };
	struct vpt_mem_region region = { .gpa = GPA, .size = SIZE, .uva = GPA, .fd = memfd_create("guest", MFD_CLOEXEC) };
	int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	uint32_t ring, i;

	CHECK(fd >= 0 && region.fd >= 0 && !ftruncate(region.fd, SIZE));
	*g = (struct guest){ .features = features | VPTI_F_VERSION_1 };
	g->mem = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, region.fd, 0);
	CHECK(g->mem != MAP_FAILED);
	CHECK(!vpt_port_add(sw, &opts, &g->port));
	CHECK(!vpt_vhost_mem_set(g->port, &region, 1));
	CHECK(!vpt_vhost_set_features(g->port, g->features));
	for (ring = RX; ring <= TX; ring++) {
		struct vpt_vring cfg = {
			.num = NUM, .base = packed(g) ? 0x8000 : 0, .kick_fd = fd, .call_fd = fd,
			.desc_uva = GPA + DESC_AT(ring), .avail_uva = GPA + AVAIL_AT(ring), .used_uva = GPA + USED_AT(ring),
		};

		CHECK(!vpt_vhost_vring_start(g->port, ring, &cfg));
		CHECK(!vpt_vhost_vring_enable(g->port, ring, 1));
	}
	for (i = 0; i < NUM; i++)
		make_available(g, RX, BUF_SIZE - 128);
	close(region.fd);
	close(fd);
}

static void stop(struct guest *g)
{
	vpt_port_del(g->port);
	munmap(g->mem, SIZE);
}

static void nothing(struct vpti_worker *w, struct vpti_txq *q)
{
	(void)w;
	(void)q;
}

/* A burst in each direction. */
static void round_trip(struct guest *guests)
{
	uint8_t want[FRAME];
	uint32_t k, i;

	for (k = 0; k < 2; k++) {
		for (i = 0; i < BURST; i++) {
			write_frame(guests[k].mem + BUF_AT(TX, guests[k].made[TX] % NUM) + HDR, k, guests[k].made[TX]);
			make_available(&guests[k], TX, HDR + FRAME);
		}
	}
	fuzz_serve(engine->worker[0], nothing);
	for (k = 0; k < 2; k++) {
		struct guest *g = &guests[k];

		for (i = 0; i < BURST; i++, g->seen++) {
			CHECK_EQ(came(g, g->seen), HDR + FRAME);
			write_frame(want, !k, g->seen);
			CHECK(!memcmp(g->mem + BUF_AT(RX, g->seen % NUM) + HDR, want, FRAME));
			make_available(g, RX, BUF_SIZE - 128);
		}
	}
}

static void run(uint32_t kind, uint32_t rounds)
{
	struct guest guests[2];
	uint64_t *c;
	uint32_t k;

	for (k = 0; k < 2; k++)
		start(&guests[k], kinds[kind].features);
	/* The first burst of each is flooded, to the only other one. */
	while (rounds--)
		round_trip(guests);
	for (k = 0; k < 2; k++) {
		c = guests[k].port->rxq[0]->c;
		CHECK_EQ(c[VPT_C_RX_PACKETS], guests[k].seen);
		CHECK_EQ(c[VPT_C_RX_COPIES], guests[k].seen);
		CHECK_EQ(c[VPT_C_TX_PACKETS], guests[k].made[TX]);
	}
	for (k = 0; k < 2; k++)
		stop(&guests[k]);
}

int main(int argc, char **argv)
{
	struct vpt_switch_opts opts = { .name = "test" };
	uint32_t rounds = argc > 1 ? (uint32_t)atoi(argv[1]) : 9; /* more than two laps */
	uint32_t i;

	engine = fuzz_engine();
	CHECK(!vpt_switch_add(engine, &opts, &sw));
	for (i = 0; i < ARRAY_LEN(kinds); i++) {
		if (argc > 2 && strcmp(argv[2], kinds[i].name))
			continue;
		fprintf(stderr, "%s: %u packets\n", kinds[i].name, 2 * BURST * rounds);
		run(i, rounds);
	}
	vpt_engine_close(engine);
	return EXIT_SUCCESS;
}
