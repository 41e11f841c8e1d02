/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * fuzz_virtq.c - two vhost-user guests with split or packed rings, both hostile, on one switch
 *
 * Input: features and ring configuration of both, then a sequence of actions (enum action) with arguments: what the
 * guests write to their memory, rings included, what their front-ends do, and when the host looks.
 *
 * A guest's memory is one file, of which two regions are shared, contiguous for the guest and apart for us, so that
 * buffers and indirect tables may span them. Between and around them lie bytes that no guest address leads to: they
 * must not change, and what the host takes for packet memory must be in the regions. A guest may have a dirty log, in a
 * file of its own, and what lies around that must not change either.
 */
#define _GNU_SOURCE
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fuzz_engine.h"
#include "virtq.h"

#define GUESTS 2u
#define RINGS 2u              /* 0: receive, 1: transmit */
#define MAX_NUM 64u
#define FILE_SIZE 0x10000u
#define GUARD 0xa5

/* The regions: in the file, and where guest and front-end see them. */
#define LOW_OFS 0x1010u
#define LOW_SIZE 0x6000u
#define HIGH_OFS 0x9010u
#define HIGH_SIZE 0x4000u
#define EXTRA_OFS 0xd800u     /* a third one, that comes and goes */
#define EXTRA_SIZE 0x800u
#define GPA 0x40000000u
#define UVA 0x7f0000000000u

/* Where the front-end puts the rings, unless the input says otherwise; behind them is room for buffers. */
#define DESC_AT(ring) ((ring) * 0x1000u)
#define AVAIL_AT(ring) ((ring) * 0x1000u + 0x400u)
#define USED_AT(ring) ((ring) * 0x1000u + 0x600u)
#define BUF_AT 0x2000u

/* The dirty log, in its file: it reaches to the end of memory, and a little further. */
#define LOG_OFS 0x210u
#define LOG_SIZE ((GPA + 0x200000u) / VPTI_LOG_PAGE / 8)
#define LOG_FILE_SIZE 0x9000u

enum action {
	SEND,          /* header and frame as one chain, made available */
	OFFER,         /* a receive buffer, made available */
	SET_DESC,
	SET_AVAIL,
	PUBLISH,       /* move avail->idx; make the next descriptors of a packed ring available */
	POKE,
	SERVE,
	ARM,
	STOP_START,
	ENABLE,
	MEMORY,
	RESET,
	EVENTS,
	LOG,
	IMAGE,         /* a piece of guest memory as it comes, as long as the input likes: rings and all */
	ACTIONS
};

struct guest {
	vpt_port *port;
	int fd;
	uint8_t *file;
	int log_fd;
	uint8_t *log;
	uint64_t features;
	uint32_t num[RINGS];
	uint32_t avail[RINGS];     /* avail->idx, or place in a packed ring, as a well-behaved driver would count */
	uint32_t next_buf;
};

static struct guest guests[GUESTS];
static vpt_engine *engine;
static vpt_switch *sw;
static int event_fd;

/* ---- setting up, once ---- */

static void make_guest(struct guest *g)
{
	struct vpt_port_opts port = {.kind = VPT_KIND_VHOST_USER, .pairs = 1, .worker = 0, .mtu = 65535};

	g->fd = memfd_create("guest", MFD_CLOEXEC);
	MUST(g->fd >= 0 && !ftruncate(g->fd, FILE_SIZE));
	g->file = mmap(NULL, FILE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, g->fd, 0);
	MUST(g->file != MAP_FAILED);
	g->log_fd = memfd_create("log", MFD_CLOEXEC);
	MUST(g->log_fd >= 0 && !ftruncate(g->log_fd, LOG_FILE_SIZE));
	g->log = mmap(NULL, LOG_FILE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, g->log_fd, 0);
	MUST(g->log != MAP_FAILED);
	port.policy.kind = VPT_POLICY_NOTIFY;
	MUST(!vpt_port_add(sw, &port, &g->port));
}

static void setup(void)
{
	struct vpt_switch_opts opts = {.name = "fuzz", .mac_entries = 64};
	uint32_t i;

	engine = fuzz_engine();
	event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	MUST(event_fd >= 0 && !vpt_switch_add(engine, &opts, &sw));
	for (i = 0; i < GUESTS; i++)
		make_guest(&guests[i]);
}

/* ---- what front-ends do ---- */

/* The byte at a guest address, seen as one run of both regions. */
static uint8_t *guest_byte(const struct guest *g, uint32_t ofs)
{
	ofs %= LOW_SIZE + HIGH_SIZE;
	return g->file + (ofs < LOW_SIZE ? LOW_OFS + ofs : HIGH_OFS + ofs - LOW_SIZE);
}

static void guest_write(const struct guest *g, uint32_t ofs, const void *from, uint32_t len)
{
	uint32_t i;

	for (i = 0; i < len; i++)
		*guest_byte(g, ofs + i) = ((const uint8_t *)from)[i];
}

static void share_memory(struct guest *g)
{
	struct vpt_mem_region regions[] = {
		{.gpa = GPA, .size = LOW_SIZE, .uva = UVA, .mmap_offset = LOW_OFS, .fd = g->fd},
		{.gpa = GPA + LOW_SIZE, .size = HIGH_SIZE, .uva = UVA + (1u << 30), .mmap_offset = HIGH_OFS},
	};

	regions[1].fd = g->fd;

	vpt_vhost_mem_set(g->port, regions, 2);
}

static bool packed(const struct guest *g)
{
	return g->port->features & VPTI_F_RING_PACKED;
}

static void start_ring(struct guest *g, uint32_t ring, uint16_t base)
{
	struct vpt_vring cfg = {
		.num = g->num[ring], .base = base, .kick_fd = event_fd, .call_fd = event_fd,
		.desc_uva = UVA + DESC_AT(ring), .avail_uva = UVA + AVAIL_AT(ring), .used_uva = UVA + USED_AT(ring),
	};

	g->avail[ring] = base;
	if (packed(g)) {
		g->avail[ring] = base % g->num[ring];
		cfg.base = g->avail[ring] | 0x8000; /* wrap counter of the first lap */
	}
	vpt_vhost_vring_start(g->port, ring, &cfg);
	vpt_vhost_vring_enable(g->port, ring, 1);
}

static void start_guest(struct guest *g, struct fuzz_in *in)
{
	static const uint64_t choice[] = {
		VPTI_F_MRG_RXBUF, VPTI_F_INDIRECT_DESC, VPTI_F_EVENT_IDX, VPT_F_GUEST_CSUM, VPT_F_GUEST_TSO4,
		VPT_F_GUEST_TSO6, VPT_F_GUEST_ECN, VPTI_F_VERSION_1, VPTI_F_RING_PACKED, VPTI_F_IN_ORDER,
	};
	uint16_t bits = fuzz_u16(in);
	uint32_t i;

	vpt_vhost_reset(g->port);
	vpti_mac_purge(&sw->macs, g->port->slot, true);
	memset(g->file, GUARD, FILE_SIZE);
	memset(g->log, GUARD, LOG_FILE_SIZE);
	memset(g->log + LOG_OFS, 0, LOG_SIZE);
	memset(g->file + LOW_OFS, 0, LOW_SIZE);
	memset(g->file + HIGH_OFS, 0, HIGH_SIZE);
	share_memory(g);
	g->features = VPT_F_CSUM | VPT_F_HOST_TSO4 | VPT_F_HOST_TSO6 | VPT_F_HOST_USO;
	for (i = 0; i < VPTI_ARRAY_SIZE(choice); i++)
		g->features |= bits >> i & 1 ? choice[i] : 0;
	vpt_vhost_set_features(g->port, g->features); /* if it is refused, none are */
	g->next_buf = 0;
	for (i = 0; i < RINGS; i++) {
		uint8_t how = fuzz_u8(in);

		g->num[i] = packed(g) ? 1 + how % MAX_NUM : 1u << how % 7; /* 1 to MAX_NUM */
		start_ring(g, i, how & 0x80 ? (uint16_t)(0xffe0 + how) : 0);
	}
}

static void stop_start(struct guest *g, struct fuzz_in *in)
{
	uint8_t how = fuzz_u8(in);
	uint32_t ring = how & 1, base = 0;

	vpt_vhost_vring_stop(g->port, ring, &base);
	if (how & 2)
		start_ring(g, ring, how & 4 ? fuzz_u16(in) : (uint16_t)base);
}

static void enable(struct guest *g, struct fuzz_in *in)
{
	uint8_t how = fuzz_u8(in);

	vpt_vhost_vring_enable(g->port, how & 1, how & 2);
}

static void change_memory(struct guest *g, struct fuzz_in *in)
{
	struct vpt_mem_region extra = {.gpa = GPA + 0x100000, .size = EXTRA_SIZE, .uva = UVA + (2u << 30)};

	extra.mmap_offset = EXTRA_OFS;
	extra.fd = g->fd;
	switch (fuzz_u8(in) % 4) {
	case 0: vpt_vhost_mem_add(g->port, &extra); break;
	case 1: vpt_vhost_mem_del(g->port, &extra); break;
	default: share_memory(g); break;
	}
}

/* What a migration asks for, in any order; log addresses that are far off now and then. */
static void change_log(struct guest *g, struct fuzz_in *in)
{
	uint8_t how = fuzz_u8(in);
	uint64_t at = GPA + USED_AT(how >> 2 & 1);

	switch (how % 4) {
	case 0:
		vpt_vhost_log_set(g->port, g->log_fd, LOG_OFS, how & 0x80 ? fuzz_u16(in) : LOG_SIZE);
		break;
	case 1:
	case 2:
		vpt_vhost_set_features(g->port, g->features | (how % 4 == 1 ? 1ull << 26 : 0));
		break;
	default:
		if (how & 0x80)
			at = (uint64_t)fuzz_u32(in) << (how >> 3 & 15);
		vpt_vhost_vring_log(g->port, how >> 2 & 1, how & 0x40, at);
	}
}

static void reset(struct guest *g, struct fuzz_in *in)
{
	(void)in;
	vpt_vhost_reset(g->port);
}

/* ---- what guests do ---- */

static void set_avail(struct guest *g, uint32_t ring, uint16_t at, uint16_t head)
{
	guest_write(g, AVAIL_AT(ring) + 4 + at % g->num[ring] * 2u, &head, sizeof(head));
}

static void set_idx(struct guest *g, uint32_t ring, uint16_t idx)
{
	guest_write(g, AVAIL_AT(ring) + 2, &idx, sizeof(idx));
	g->avail[ring] = idx;
}

/* In a packed ring the id takes the place of next, and stands before the flags. */
static void write_desc(struct guest *g, uint32_t ofs, const struct vpti_desc *d)
{
	struct vpti_packed_desc p = {.addr = d->addr, .len = d->len, .id = d->next, .flags = d->flags};

	guest_write(g, ofs, packed(g) ? (const void *)&p : d, sizeof(*d));
}

static void set_desc(struct guest *g, uint32_t ring, uint32_t at, const struct vpti_desc *d)
{
	write_desc(g, DESC_AT(ring) + at % MAX_NUM * (uint32_t)sizeof(*d), d);
}

/* Make the next n descriptors of a packed ring available, as they are. */
static void publish_packed(struct guest *g, uint32_t ring, uint32_t n)
{
	uint32_t ofs;
	uint8_t *high;

	for (; n; n--, g->avail[ring]++) {
		ofs = DESC_AT(ring) + g->avail[ring] % g->num[ring] * (uint32_t)sizeof(struct vpti_packed_desc);
		high = guest_byte(g, ofs + offsetof(struct vpti_packed_desc, flags));
		/* AVAIL is bit 7 of the low byte, USED bit 7 of the high one. */
		high[0] = (uint8_t)((high[0] & 0x7f) | (g->avail[ring] / g->num[ring] % 2 ? 0 : 0x80));
		high[1] = (uint8_t)((high[1] & 0x7f) | (g->avail[ring] / g->num[ring] % 2 ? 0x80 : 0));
	}
}

/* A descriptor's fields: sane unless the input says otherwise. */
static struct vpti_desc read_desc(struct fuzz_in *in)
{
	uint8_t how = fuzz_u8(in);
	struct vpti_desc d = {.addr = GPA + BUF_AT + fuzz_u16(in), .flags = how & 7, .next = how >> 4};

	d.len = fuzz_u16(in);
	if (how & 8) {
		d.addr = GPA + (int32_t)fuzz_u32(in) % 0x20000;
		d.len = fuzz_u32(in);
		d.next = fuzz_u16(in);
	}
	return d;
}

static void act_desc(struct guest *g, struct fuzz_in *in)
{
	uint8_t where = fuzz_u8(in);
	struct vpti_desc d = read_desc(in);

	if (where & 0x80) /* not in the table: an indirect one */
		write_desc(g, BUF_AT + (where & 0x7fu) * (uint32_t)sizeof(d), &d);
	else
		set_desc(g, where >> 6 & 1, where, &d);
}

static void act_avail(struct guest *g, struct fuzz_in *in)
{
	uint8_t where = fuzz_u8(in);

	set_avail(g, where >> 7, where, fuzz_u8(in));
}

static void publish(struct guest *g, struct fuzz_in *in)
{
	uint8_t how = fuzz_u8(in);

	if (packed(g))
		publish_packed(g, how >> 7, how % 0x40u);
	else
		set_idx(g, how >> 7, how & 0x40 ? fuzz_u16(in) : (uint16_t)(g->avail[how >> 7] + how % 0x40u));
}

static void make_available(struct guest *g, uint32_t ring, struct vpti_desc d)
{
	uint16_t at = (uint16_t)g->avail[ring], slot = (uint16_t)(g->avail[ring] % g->num[ring]);

	d.next = slot;
	set_desc(g, ring, slot, &d);
	if (packed(g)) {
		publish_packed(g, ring, 1);
		return;
	}
	set_avail(g, ring, at, slot);
	set_idx(g, ring, at + 1);
}

static void send_frame(struct guest *g, struct fuzz_in *in)
{
	uint8_t frame[12 + 14 + 255] = {0}, to = fuzz_u8(in), body = fuzz_u8(in), *eth;
	struct vpti_desc d = {.addr = GPA + BUF_AT + g->next_buf % 0x7000u};

	eth = frame + vpti_virtq_txq(g->port->txq[0])->v.hdr_len;
	fuzz_bytes(in, frame, (size_t)(eth - frame));
	memset(eth, to & 0x80 ? 0xff : 0, 6);
	eth[5] = to & 3;
	eth[11] = (uint8_t)(g - guests + 1);
	fuzz_bytes(in, eth + 12, body);
	d.len = (uint32_t)(eth + 12 + body - frame);
	guest_write(g, BUF_AT + g->next_buf % 0x7000u, frame, d.len);
	if (to & 0x40)
		d.len += fuzz_u16(in);
	make_available(g, 1, d);
	g->next_buf += 300;
}

static void offer(struct guest *g, struct fuzz_in *in)
{
	struct vpti_desc d = {.addr = GPA + BUF_AT + fuzz_u16(in), .len = fuzz_u16(in), .flags = VPTI_DESC_WRITE};

	make_available(g, 0, d);
}

static void poke(struct guest *g, struct fuzz_in *in)
{
	uint8_t bytes[16];
	uint32_t ofs = fuzz_u16(in), len = 1 + fuzz_u8(in) % sizeof(bytes);

	fuzz_bytes(in, bytes, len);
	guest_write(g, ofs, bytes, len);
}

static void image(struct guest *g, struct fuzz_in *in)
{
	uint8_t bytes[LOW_SIZE + HIGH_SIZE];
	uint32_t ofs = fuzz_u16(in), len = fuzz_u16(in) % sizeof(bytes);

	fuzz_bytes(in, bytes, len);
	guest_write(g, ofs, bytes, len);
}

/* ---- what the host does, and what must hold ---- */

static bool inside(const struct vpt_port *port, const uint8_t *at, uint32_t len)
{
	const struct vpti_mem *m = vpti_virtq_txq(port->txq[0])->v.mem;
	uint32_t i;

	for (i = 0; i < m->n; i++) {
		if (at >= m->r[i].hva && len <= m->r[i].size && (uint64_t)(at - m->r[i].hva) <= m->r[i].size - len)
			return true;
	}
	return !len;
}

static void check_burst(struct vpti_worker *w, struct vpti_txq *q)
{
	fuzz_check_burst(&w->burst, q->port, inside);
	MUST(w->room.nrun <= VPTI_ROOM_FRAGS);
}

/* memcmp(), because the fuzzer looks at each comparison of a loop. */
static void check_guards(const struct guest *g)
{
	static const uint32_t gap[][2] = {
		{0, LOW_OFS}, {LOW_OFS + LOW_SIZE, HIGH_OFS}, {HIGH_OFS + HIGH_SIZE, EXTRA_OFS},
	};
	static uint8_t guard[FILE_SIZE];
	uint32_t i;

	memset(guard, GUARD, sizeof(guard));
	for (i = 0; i < VPTI_ARRAY_SIZE(gap); i++)
		MUST(!memcmp(g->file + gap[i][0], guard, gap[i][1] - gap[i][0]));
	MUST(!memcmp(g->log, guard, LOG_OFS));
	MUST(!memcmp(g->log + LOG_OFS + LOG_SIZE, guard, LOG_FILE_SIZE - LOG_OFS - LOG_SIZE));
}

/* A place beyond the ring would be read without any sanitizer noticing: there is other memory behind it. */
static void check_place(const struct guest *g, const struct vpti_virtq *v)
{
	MUST(!packed(g) || (v->next_avail < 2u * v->num && v->next_used < 2u * v->num));
}

static void check_queues(const struct guest *g)
{
	const struct vpti_virtq_layout *layout = packed(g) ? &vpti_virtq_packed : &vpti_virtq_split;

	MUST(g->port->txq[0]->ops == layout->tx && g->port->rxq[0]->ops == layout->rx);
	if (g->port->txq[0]->live)
		check_place(g, &vpti_virtq_txq(g->port->txq[0])->v);
	if (g->port->rxq[0]->live)
		check_place(g, &vpti_virtq_rxq(g->port->rxq[0])->v);
}

static void serve(void)
{
	uint32_t i;

	for (i = 0; i < GUESTS; i++)
		check_queues(&guests[i]);
	fuzz_serve(engine->worker[0], check_burst);
	for (i = 0; i < GUESTS; i++)
		check_queues(&guests[i]);
}

static void act(struct fuzz_in *in)
{
	static void (*const guest_acts[ACTIONS])(struct guest *, struct fuzz_in *) = {
		[SEND] = send_frame, [OFFER] = offer, [SET_DESC] = act_desc, [SET_AVAIL] = act_avail,
		[PUBLISH] = publish, [POKE] = poke, [STOP_START] = stop_start, [ENABLE] = enable,
		[MEMORY] = change_memory, [RESET] = reset, [LOG] = change_log,
		[IMAGE] = image,
	};
	uint8_t what = fuzz_u8(in);
	enum action action = (what & 0x7f) % ACTIONS;

	if (action == SERVE)
		serve();
	else if (action == ARM)
		fuzz_arm(engine->worker[0]);
	else if (action == EVENTS)
		fuzz_drain_events(engine);
	else
		guest_acts[action](&guests[what >> 7], in);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuzz_in in = {data, size};
	uint32_t i;

	if (!engine)
		setup();
	fuzz_drain_events(engine);
	for (i = 0; i < GUESTS; i++)
		start_guest(&guests[i], &in);
	while (in.left)
		act(&in);
	serve();
	fuzz_drain_events(engine);
	for (i = 0; i < GUESTS; i++)
		check_guards(&guests[i]);
	return 0;
}
