/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_threads.c - packets fly between applications while the control thread changes everything it can
 *
 * Run under ThreadSanitizer it looks for races between workers, and between a worker and the control thread. Without, it
 * checks what must hold whatever happens meanwhile: frames arrive whole, in order per sender, and never twice.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "test.h"
#include "vpt/vpt.h"

#define PEERS 3
#define ROUNDS 300
#define FRAME 128

/**
 * struct peer - an app port and the application behind it
 * @id:		sender's number, in each frame it sends
 * @seen:	last sequence number received from each sender
 */
struct peer {
	uint32_t id;
	vpt_port *port;
	vpt_app *app;
	pthread_t thread;
	uint32_t sent;
	uint32_t received;
	uint32_t seen[PEERS];
};

static atomic_bool stop;

static void frame_fill(uint8_t *frame, uint32_t from, uint32_t to, uint32_t seq)
{
	static const uint8_t oui[3] = { 0x52, 0x54, 0 };

	memset(frame, 0, FRAME);
	memcpy(frame, oui, 3);
	frame[5] = (uint8_t)to;
	memcpy(frame + 6, oui, 3);
	frame[11] = (uint8_t)from;
	frame[12] = 0x88;
	frame[13] = 0xb5;
	for (uint32_t i = 16; i + 4 <= FRAME; i += 4)
		memcpy(frame + i, &seq, 4);
}

static void frame_check(struct peer *p, uint8_t *frame, int len)
{
	uint32_t from = frame[11], seq, word;

	if (frame[12] == 0x81) { /* from a port with a VLAN to one without */
		len -= 4;
		memmove(frame + 12, frame + 16, (size_t)len - 12);
	}
	CHECK(len == FRAME);
	CHECK(from < PEERS && from != p->id);
	memcpy(&seq, frame + 16, 4);
	for (uint32_t i = 20; i + 4 <= FRAME; i += 4) {
		memcpy(&word, frame + i, 4);
		CHECK(word == seq);
	}
	CHECK(seq > p->seen[from]);
	p->seen[from] = seq;
	p->received++;
}

/* The application: sends to the others in turn, receives what comes. */
static void *peer_run(void *arg)
{
	struct peer *p = arg;
	uint8_t frame[2048];
	int len;

	while (!atomic_load(&stop)) {
		for (uint32_t i = 0; i < 16; i++) {
			frame_fill(frame, p->id, (p->id + 1 + p->sent % (PEERS - 1)) % PEERS, p->sent + 1);
			if (vpt_app_send(p->app, 0, NULL, frame, FRAME, i % 4 != 3))
				break;
			p->sent++;
		}
		while ((len = vpt_app_recv(p->app, 0, NULL, frame, sizeof(frame))) >= 0)
			frame_check(p, frame, len);
		CHECK(len == -EAGAIN);
		vpt_app_wait(p->app, 0, 1, 1);
	}
	return NULL;
}

static void handshake(vpt_engine *e, struct peer *p)
{
	struct vpt_event ev;
	int rc;

	while ((rc = vpt_app_step(p->app)) == 0) {
		while (vpt_engine_next_event(e, &ev))
			if (ev.type == VPT_EVENT_STATUS)
				CHECK(vpt_port_ring_status(p->port) == 0);
		usleep(100);
	}
	CHECK(rc == 1);
}

static void peer_start(vpt_engine *e, vpt_switch *sw, struct peer *p, uint32_t id)
{
	struct vpt_region_opts region = { .pairs = 1, .num_slots = 256 };
	struct vpt_port_opts port = { .kind = VPT_KIND_APP, .pairs = 1, .worker = -1 };
	int32_t kick[VPT_VEC_COUNT(1)], intr[VPT_VEC_COUNT(1)];
	int fd;

	memset(p, 0, sizeof(*p));
	p->id = id;
	snprintf(region.name, sizeof(region.name), "peer%u", id);
	memcpy(port.name, region.name, sizeof(port.name));
	fd = vpt_region_create(&region);
	CHECK(fd >= 0);
	for (uint32_t i = 0; i < VPT_VEC_COUNT(1); i++) {
		kick[i] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
		intr[i] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	}
	CHECK(vpt_port_add(sw, &port, &p->port) == 0);
	CHECK(vpt_port_ring_attach(p->port, fd, &region, kick, intr) == 0);
	CHECK(vpt_app_open(fd, kick, intr, 0, &p->app) == 0);
	close(fd);
	for (uint32_t i = 0; i < VPT_VEC_COUNT(1); i++) {
		close(kick[i]);
		close(intr[i]);
	}
	handshake(e, p);
	CHECK(pthread_create(&p->thread, NULL, peer_run, p) == 0);
}

/* All that the control thread may do under traffic. */
static void disturb(vpt_engine *e, vpt_switch *sw, struct peer *peers, uint32_t round)
{
	static const struct vpt_policy policies[] = {
		{ .kind = VPT_POLICY_POLL },
		{ .kind = VPT_POLICY_SLEEP, .sleep_us = 20 },
		{ .kind = VPT_POLICY_NOTIFY },
		{ .kind = VPT_POLICY_ADAPTIVE, .spin_us = 5 },
	};
	static const struct vpt_rules rules[] = {
		{ .flags = VPT_RULE_ISOLATED, .broadcast = 1000 },
		{ .vlan_mode = VPT_VLAN_ACCESS, .native = 5 },
		{ .vlan_mode = VPT_VLAN_TRUNK, .native = 5, .vlans = { 1u << 7 } },
		{ .tx = { .packets_per_s = 100000 }, .rx = { .bits_per_s = 100000000 } },
		{ .flags = 0 },
	};
	struct vpt_port_opts opts = { .name = "extra", .kind = VPT_KIND_NULL, .pairs = 1, .worker = -1 };
	struct vpt_mac_entry macs[16];
	struct vpt_port_state state;
	vpt_port *extra;
	vpt_switch *other;
	struct vpt_switch_opts other_opts = { .name = "other" };
	struct peer *p = &peers[round % PEERS];
	struct vpt_event ev;

	CHECK(vpt_port_add(sw, &opts, &extra) == 0);
	CHECK(vpt_port_set_policy(p->port, &policies[round % 4]) == 0);
	CHECK(vpt_port_set_rules(p->port, &rules[round % ARRAY_LEN(rules)]) == 0);
	CHECK(vpt_switch_set_mac_age(sw, 1 + round % 300) == 0);
	CHECK(vpt_switch_macs(sw, macs, 16) >= 0);
	CHECK(vpt_port_set_link(p->port, 0) == 0);
	CHECK(vpt_port_set_link(p->port, 1) == 0);
	CHECK(vpt_switch_add(e, &other_opts, &other) == 0);
	CHECK(vpt_port_state(p->port, &state) == 0);
	CHECK(state.up && state.reason == VPT_REASON_NONE);
	vpt_switch_del(other);
	usleep(200);
	vpt_port_del(extra);
	while (vpt_engine_next_event(e, &ev))
		CHECK(ev.type == VPT_EVENT_STATUS);
}

int main(void)
{
	struct vpt_engine_opts opts = { .workers = 2, .stats_fd = -1 };
	struct vpt_switch_opts sw_opts = { .name = "sw" };
	struct peer peers[PEERS];
	vpt_engine *e;
	vpt_switch *sw;

	memset(opts.cpus, 0xff, sizeof(opts.cpus));
	CHECK(vpt_engine_open(&opts, &e) == 0);
	CHECK(vpt_switch_add(e, &sw_opts, &sw) == 0);
	for (uint32_t i = 0; i < PEERS; i++)
		peer_start(e, sw, &peers[i], i);
	for (uint32_t i = 0; i < ROUNDS; i++)
		disturb(e, sw, peers, i);

	/* The last one is deleted while its application still sends. */
	vpt_port_del(peers[PEERS - 1].port);
	atomic_store(&stop, true);
	for (uint32_t i = 0; i < PEERS; i++) {
		pthread_join(peers[i].thread, NULL);
		printf("peer %u: %u sent, %u received\n", i, peers[i].sent, peers[i].received);
		CHECK(peers[i].received > 0);
		vpt_app_close(peers[i].app);
	}
	vpt_engine_close(e);
	return 0;
}
