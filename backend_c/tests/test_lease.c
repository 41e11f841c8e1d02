/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_lease.c - several workers fill one receive queue: each packet arrives once, whole, in its sender's order
 *
 * Every sender has a worker of its own and waits for room (VPT_PORT_LOSSLESS), so nothing may be missing. The receiver is
 * an application on a ring, then a driver of a split and of a packed virtqueue, which differ in how they publish what
 * workers finish out of turn.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "lease.h"
#include "test.h"
#include "util.h"
#include "virtq.h"
#include "vpt/vpt.h"

#define MAX_SENDERS 3u
#define PACKETS 12000u        /* of each sender */
#define MAX_LEN 6000u         /* up to three slots or buffers */
#define VECTORS VPT_VEC_COUNT(1)

static const uint8_t sink_mac[6] = {2, 0, 0, 0, 1, 0};

/* ---- frames: who, which, and bytes that follow from both ---- */

struct tag {
	uint32_t from, seq;
};

static uint32_t len_of(struct tag t)
{
	return 64 + (t.seq * 2654435761u + t.from * 97u) % (t.seq % 8 ? 200u : MAX_LEN - 64);
}

static uint8_t byte_of(struct tag t, uint32_t i)
{
	return (uint8_t)(t.from * 31 + t.seq + i);
}

static void fill(uint8_t *frame, struct tag t)
{
	uint32_t i;

	memset(frame, 0, 22);
	memcpy(frame, sink_mac, sizeof(sink_mac));
	frame[6] = 2;
	frame[11] = (uint8_t)(1 + t.from);
	frame[12] = 0x88;
	frame[13] = 0xb5;
	memcpy(frame + 14, &t, sizeof(t));
	for (i = 22; i < len_of(t); i++)
		frame[i] = byte_of(t, i);
}

/* What has arrived, by sender. */
struct tally {
	uint32_t senders;
	uint32_t next[MAX_SENDERS];
	uint32_t total;
};

static void check(struct tally *tally, const uint8_t *frame, uint32_t len)
{
	struct tag t;
	uint32_t i;

	CHECK(len >= 64);
	memcpy(&t, frame + 14, sizeof(t));
	CHECK(t.from < tally->senders);
	CHECK_EQ(t.seq, tally->next[t.from]);
	CHECK_EQ(len, len_of(t));
	for (i = 22; i < len; i++)
		CHECK_EQ(frame[i], byte_of(t, i));
	tally->next[t.from]++;
	tally->total++;
}

/* ---- the table of leases, without threads ---- */

/* However much the others finish meanwhile, nothing is shown that comes after what a worker is still copying. */
static void stalled_worker_holds_back_what_follows(void)
{
	struct vpti_leases leases = {.first = UINT32_MAX - 10, .next = UINT32_MAX - 10};
	uint32_t published = 0, stalled, end = 1;

	stalled = vpti_lease_take(&leases, end);
	while (!vpti_leases_full(&leases))
		CHECK(!vpti_lease_finish(&leases, vpti_lease_take(&leases, ++end), &published));
	CHECK_EQ(published, 0);
	CHECK_EQ(end, VPTI_MAX_LEASES);
	CHECK(vpti_lease_finish(&leases, stalled, &published));
	CHECK_EQ(published, end);
	CHECK(!vpti_leases_full(&leases));
}

/* ---- application ports ---- */

struct peer {
	vpt_port *port;
	vpt_app *app;
	pthread_t thread;
	uint32_t id;
};

static void handshake(vpt_engine *e, struct peer *p)
{
	struct vpt_event ev;
	int rc;

	while ((rc = vpt_app_step(p->app)) == 0) {
		while (vpt_engine_next_event(e, &ev))
			CHECK(ev.type == VPT_EVENT_STATUS && !vpt_port_ring_status(p->port));
		usleep(100);
	}
	CHECK_EQ(rc, 1);
}

static void open_app(vpt_engine *e, vpt_switch *sw, struct peer *p, const struct vpt_port_opts *opts)
{
	struct vpt_region_opts region = {.pairs = 1, .num_slots = 128, .features = VPT_F_VNET_HDR | VPT_F_EVENT_IDX};
	int32_t kick[VECTORS], intr[VECTORS];
	uint32_t i;
	int fd;

	fd = vpt_region_create(&region);
	CHECK(fd >= 0);
	for (i = 0; i < VECTORS; i++) {
		kick[i] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
		intr[i] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
		CHECK(kick[i] >= 0 && intr[i] >= 0);
	}
	CHECK_EQ(vpt_port_add(sw, opts, &p->port), 0);
	CHECK_EQ(vpt_port_ring_attach(p->port, fd, &region, kick, intr), 0);
	CHECK_EQ(vpt_app_open(fd, kick, intr, region.features, &p->app), 0);
	for (i = 0; i < VECTORS; i++) {
		close(kick[i]);
		close(intr[i]);
	}
	close(fd);
	handshake(e, p);
}

static void *send_all(void *arg)
{
	struct peer *p = arg;
	uint8_t frame[MAX_LEN];
	struct tag t = {.from = p->id};
	int rc;

	while (t.seq < PACKETS) {
		fill(frame, t);
		rc = vpt_app_send(p->app, 0, NULL, frame, len_of(t), t.seq % 16 != 15 && t.seq + 1 < PACKETS);
		if (!rc) {
			t.seq++;
			continue;
		}
		CHECK_EQ(rc, -EAGAIN);
		CHECK(vpt_app_wait(p->app, 0, 0, 1000) >= 0);
	}
	return NULL;
}

static void start_senders(vpt_engine *e, vpt_switch *sw, struct peer *peers, uint32_t n)
{
	struct vpt_port_opts opts = {.kind = VPT_KIND_APP, .pairs = 1, .mtu = MAX_LEN, .flags = VPT_PORT_LOSSLESS};
	uint32_t i;

	for (i = 0; i < n; i++) {
		opts.worker = (int32_t)i;
		snprintf(opts.name, sizeof(opts.name), "sender%u", i);
		peers[i].id = i;
		open_app(e, sw, &peers[i], &opts);
	}
	for (i = 0; i < n; i++)
		CHECK_EQ(pthread_create(&peers[i].thread, NULL, send_all, &peers[i]), 0);
}

static void stop_senders(struct peer *peers, uint32_t n)
{
	uint32_t i;

	for (i = 0; i < n; i++) {
		pthread_join(peers[i].thread, NULL);
		vpt_app_close(peers[i].app);
	}
}

/* ---- receivers ---- */

static const struct vpt_port_opts sink_opts = {
	.name = "sink", .kind = VPT_KIND_APP, .pairs = 1, .worker = 0, .mtu = MAX_LEN, .mac = {2, 0, 0, 0, 1, 0},
};

static void ring_sink(vpt_engine *e, vpt_switch *sw, struct tally *tally, struct peer *peers)
{
	struct peer sink;
	uint8_t frame[MAX_LEN];
	int len;

	open_app(e, sw, &sink, &sink_opts);
	start_senders(e, sw, peers, tally->senders);
	while (tally->total < tally->senders * PACKETS) {
		len = vpt_app_recv(sink.app, 0, NULL, frame, sizeof(frame));
		if (len == -EAGAIN) {
			CHECK(vpt_app_wait(sink.app, 0, 1, 1000) >= 0);
			continue;
		}
		CHECK(len > 0 && len <= (int)MAX_LEN);
		check(tally, frame, (uint32_t)len);
	}
	stop_senders(peers, tally->senders);
	CHECK_EQ(vpt_app_recv(sink.app, 0, NULL, frame, sizeof(frame)), -EAGAIN);
	vpt_app_close(sink.app);
}

#define NUM 128u
#define BUF_LEN 2112u
#define MEM_SIZE (1u << 20)
#define AVAIL_OFS 0x4000u
#define USED_OFS 0x5000u
#define BUF_OFS 0x8000u
#define GPA 0x100000u
#define UVA 0x7f0000000000u
#define HDR_LEN sizeof(struct vpt_vnet_hdr)

/* The receive queue of a driver with mergeable buffers; descriptor i is buffer i. */
struct driver {
	uint8_t *mem;
	bool packed;
	uint32_t avail, used;      /* free-running */
	uint8_t frame[MAX_LEN + BUF_LEN];
	uint32_t len;              /* gathered of the packet that is arriving */
	uint32_t left;             /* its buffers still to come */
};

static void offer(struct driver *d, uint16_t id)
{
	struct vpti_desc *table = (void *)d->mem;
	struct vpti_packed_desc *ring = (void *)d->mem;
	struct vpti_avail *avail = (void *)(d->mem + AVAIL_OFS);
	uint64_t addr = GPA + BUF_OFS + id * BUF_LEN;

	if (d->packed) {
		struct vpti_packed_desc *slot = &ring[d->avail % NUM];
		bool wrap = d->avail / NUM % 2 == 0;

		slot->addr = addr;
		slot->len = BUF_LEN;
		slot->id = id;
		VPTI_STORE_RELEASE(slot->flags, VPTI_DESC_WRITE | (wrap ? VPTI_PACKED_AVAIL : VPTI_PACKED_USED));
	} else {
		table[id] = (struct vpti_desc){.addr = addr, .len = BUF_LEN, .flags = VPTI_DESC_WRITE};
		avail->ring[d->avail % NUM] = id;
		VPTI_STORE_RELEASE(avail->idx, (uint16_t)(d->avail + 1));
	}
	d->avail++;
}

/* The next used buffer, if there is one. */
static bool next_used(struct driver *d, uint16_t *id, uint32_t *len)
{
	const struct vpti_used *used = (void *)(d->mem + USED_OFS);
	const struct vpti_packed_desc *slot = &((const struct vpti_packed_desc *)(void *)d->mem)[d->used % NUM];
	bool wrap = d->used / NUM % 2 == 0;
	uint16_t flags;

	if (d->packed) {
		flags = VPTI_LOAD_ACQUIRE(slot->flags);
		if (!(flags & VPTI_PACKED_AVAIL) != !wrap || !(flags & VPTI_PACKED_USED) != !wrap)
			return false;
		*id = slot->id;
		*len = slot->len;
	} else {
		if (VPTI_LOAD_ACQUIRE(used->idx) == (uint16_t)d->used)
			return false;
		*id = (uint16_t)used->ring[d->used % NUM].id;
		*len = used->ring[d->used % NUM].len;
	}
	d->used++;
	return true;
}

/* One buffer into the packet that is arriving; true if that is complete. */
static bool gather(struct driver *d, uint16_t id, uint32_t len)
{
	const uint8_t *buf = d->mem + BUF_OFS + id * BUF_LEN;
	struct vpt_vnet_hdr hdr;
	uint32_t skip = 0;

	CHECK(id < NUM && len <= BUF_LEN);
	if (!d->left) {
		CHECK(len > HDR_LEN);
		memcpy(&hdr, buf, sizeof(hdr));
		CHECK(hdr.num_buffers >= 1 && hdr.num_buffers <= 3);
		d->left = hdr.num_buffers;
		d->len = 0;
		skip = HDR_LEN;
	}
	memcpy(d->frame + d->len, buf + skip, len - skip);
	d->len += len - skip;
	CHECK(d->len <= MAX_LEN);
	return !--d->left;
}

static void start_driver(struct driver *d, vpt_switch *sw)
{
	struct vpt_mem_region region = {.gpa = GPA, .size = MEM_SIZE, .uva = UVA};
	struct vpt_vring ring = {
		.num = NUM, .desc_uva = UVA, .avail_uva = UVA + AVAIL_OFS, .used_uva = UVA + USED_OFS,
		.kick_fd = -1, .call_fd = -1,
	};
	uint64_t features = VPTI_F_VERSION_1 | VPTI_F_MRG_RXBUF | (d->packed ? VPTI_F_RING_PACKED : 0);
	struct vpt_port_opts opts = sink_opts;
	vpt_port *port;
	uint16_t i;

	region.fd = memfd_create("driver", MFD_CLOEXEC);
	CHECK(region.fd >= 0 && !ftruncate(region.fd, MEM_SIZE));
	d->mem = mmap(NULL, MEM_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, region.fd, 0);
	CHECK(d->mem != MAP_FAILED);
	for (i = 0; i < NUM; i++)
		offer(d, i);
	if (d->packed)
		ring.base = 0x8000; /* wrap counter 1 */
	opts.kind = VPT_KIND_VHOST_USER;
	CHECK_EQ(vpt_port_add(sw, &opts, &port), 0);
	CHECK_EQ(vpt_vhost_mem_set(port, &region, 1), 0);
	CHECK_EQ(vpt_vhost_set_features(port, features), 0);
	CHECK_EQ(vpt_vhost_vring_start(port, 0, &ring), 0);
	CHECK_EQ(vpt_vhost_vring_enable(port, 0, 1), 0);
	close(region.fd);
}

static void driver_sink(vpt_engine *e, vpt_switch *sw, struct tally *tally, struct peer *peers, bool packed)
{
	static struct driver d;
	uint32_t len;
	uint16_t id;

	d = (struct driver){.packed = packed};
	start_driver(&d, sw);
	start_senders(e, sw, peers, tally->senders);
	while (tally->total < tally->senders * PACKETS) {
		if (!next_used(&d, &id, &len)) {
			usleep(20);
			continue;
		}
		if (gather(&d, id, len))
			check(tally, d.frame, d.len);
		offer(&d, id);
	}
	stop_senders(peers, tally->senders);
	CHECK(!next_used(&d, &id, &len));
	munmap(d.mem, MEM_SIZE);
}

static void split_sink(vpt_engine *e, vpt_switch *sw, struct tally *tally, struct peer *peers)
{
	driver_sink(e, sw, tally, peers, false);
}

static void packed_sink(vpt_engine *e, vpt_switch *sw, struct tally *tally, struct peer *peers)
{
	driver_sink(e, sw, tally, peers, true);
}

/* ---- */

static void run(uint32_t workers, void (*sink)(vpt_engine *, vpt_switch *, struct tally *, struct peer *))
{
	struct vpt_engine_opts opts = {.workers = workers, .stats_fd = -1};
	struct vpt_switch_opts sw_opts = {.name = "sw"};
	struct tally tally = {.senders = workers};
	struct peer peers[MAX_SENDERS];
	vpt_engine *e;
	vpt_switch *sw;
	uint32_t i;

	memset(opts.cpus, 0xff, sizeof(opts.cpus));
	CHECK_EQ(vpt_engine_open(&opts, &e), 0);
	CHECK_EQ(vpt_switch_add(e, &sw_opts, &sw), 0);
	sink(e, sw, &tally, peers);
	for (i = 0; i < workers; i++)
		CHECK_EQ(tally.next[i], PACKETS);
	vpt_engine_close(e);
}

static void two_workers_into_a_ring(void) { run(2, ring_sink); }
static void three_workers_into_a_ring(void) { run(3, ring_sink); }
static void two_workers_into_a_split_queue(void) { run(2, split_sink); }
static void three_workers_into_a_split_queue(void) { run(3, split_sink); }
static void two_workers_into_a_packed_queue(void) { run(2, packed_sink); }
static void three_workers_into_a_packed_queue(void) { run(3, packed_sink); }

int main(void)
{
	static const struct test_case cases[] = {
		TEST(stalled_worker_holds_back_what_follows),
		TEST(two_workers_into_a_ring),
		TEST(three_workers_into_a_ring),
		TEST(two_workers_into_a_split_queue),
		TEST(three_workers_into_a_split_queue),
		TEST(two_workers_into_a_packed_queue),
		TEST(three_workers_into_a_packed_queue),
	};

	return test_run(cases, ARRAY_LEN(cases));
}
