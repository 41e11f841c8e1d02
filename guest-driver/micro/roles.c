/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * roles.c - generator, sink, echo, ping
 *
 * The loops work in bursts: one look at the clock, one publication, at most one fence and one kick each.
 */
#include "cpu.h"
#include "guest.h"

#define TICK_MS 100u            /* nobody sleeps longer; rare, for on KVM a tick is an exit */
#define LATE_BURSTS 16u         /* a paced sender catches up so many bursts, and skips the rest */

/* What a run carries along. Counters are in the desk, where the host sees them move. */
static struct run {
	const struct driver *drv;
	const struct micro_order *order;
	struct micro_result *r;
	uint64_t deadline;              /* TSC */
	uint64_t left;                  /* packets to go */
	uint64_t due;                   /* TSC << 16 of the next paced burst */
	uint32_t unkicked;              /* published since the last kick, with MICRO_KICK_EVERY */
	uint32_t id;                    /* in the stamps: no other run's */
	uint64_t seq;                   /* next stamp */
	uint64_t seq_in;                /* next stamp expected */
	uint64_t in_flight;             /* ping */
	struct pkt in[MICRO_MAX_BURST], out[MICRO_MAX_BURST];
} run;

static bool time_is_up(uint64_t now)
{
	return now > run.deadline || load_acquire(&DESK->stop);
}

/* ---- waiting ---- */

static void sleep_counted(void)
{
	uint64_t ticks = irq_taken(IRQ_TIMER);
	uint64_t device = irq_taken(IRQ_RX) + irq_taken(IRQ_TX);

	run.r->sleeps++;
	cpu_sleep();
	run.r->ticks += irq_taken(IRQ_TIMER) - ticks;
	run.r->interrupts += irq_taken(IRQ_RX) + irq_taken(IRQ_TX) - device;
}

static bool sleeps(void)
{
	return run.order->wait == MICRO_WAIT_IRQ;
}

/* Wait until n packets may be put. False: time is up. */
static bool wait_for_room(uint32_t n)
{
	const struct driver *d = run.drv;

	if (d->tx_room(n) >= n)
		return true;
	run.r->tx_full++;
	while (d->tx_room(n) < n) {
		if (time_is_up(rdtsc()))
			return false;
		if (sleeps() && d->tx_arm(n))
			sleep_counted();
		else
			cpu_relax();
	}
	if (sleeps())
		d->tx_disarm();
	return true;
}

/* Wait for packets; 0: time is up. */
static uint32_t wait_for_packets(uint32_t max)
{
	const struct driver *d = run.drv;
	uint32_t n = d->rx_take(run.in, max);

	if (n)
		return n;
	run.r->rx_empty++;
	while (!(n = d->rx_take(run.in, max))) {
		if (time_is_up(rdtsc()))
			return 0;
		if (sleeps() && d->rx_arm())
			sleep_counted();
		else
			cpu_relax();
	}
	if (sleeps())
		d->rx_disarm();
	return n;
}

/*
 * Wait for the next paced burst's time. A sender that was held up catches up a little, so that jitter does not lower
 * the rate, but not much: the burst after a long hold-up would be no paced traffic any more.
 * Return: the time now.
 */
static uint64_t pace(void)
{
	uint64_t interval = run.order->interval;
	uint64_t now = rdtsc();

	if (!interval)
		return now;
	while (now < run.due >> 16 && now <= run.deadline) {
		cpu_relax();
		now = rdtsc();
	}
	run.due += interval;
	while ((run.due >> 16) + (LATE_BURSTS * interval >> 16) < now) {
		run.due += interval;
		run.r->late++;
	}
	return now;
}

/* ---- moving packets ---- */

static void kick_tx(void)
{
	run.drv->tx_kick();
	run.r->kicks++;
}

/* Publish n packets and kick as the order says. */
static void publish(uint32_t n, uint64_t bytes)
{
	const struct micro_order *o = run.order;

	run.drv->tx_publish(n);
	run.r->tx_packets += n;
	run.r->tx_bytes += bytes;
	run.r->tx_bursts++;
	if (o->kick == MICRO_KICK_WANTED) {
		if (run.drv->tx_wants_kick(n))
			kick_tx();
		else
			run.r->kicks_suppressed++;
	} else if (o->kick == MICRO_KICK_EVERY) {
		run.unkicked += n;
		if (run.unkicked >= o->kick_every) {
			run.unkicked -= o->kick_every;
			kick_tx();
		} else {
			run.r->kicks_suppressed++;
		}
	}
}

/* Give packets back. The host wants to hear of it only when it had no room, whatever the order says of sending. */
static void release(uint32_t n)
{
	const struct driver *d = run.drv;

	d->rx_release(n);
	if (run.order->kick != MICRO_KICK_NEVER && d->rx_wants_kick(n)) {
		d->rx_kick();
		run.r->kicks++;
	}
}

/* Let go of the last packets, and wait for the host to take them all. */
static void drain(void)
{
	uint64_t limit = rdtsc() + run.order->linger;

	if (run.order->kick == MICRO_KICK_EVERY && run.unkicked) {
		run.unkicked = 0;
		kick_tx();
	}
	while (!run.drv->tx_idle()) {
		if (rdtsc() > limit)
			return;
		cpu_relax();
	}
	run.r->drained = rdtsc();
}

/* Fill the next n slots as the order's touch says. */
static void fill(uint32_t n, uint64_t now)
{
	const struct micro_order *o = run.order;
	uint32_t i;

	if (o->touch == MICRO_TOUCH_NONE)
		return;
	run.drv->tx_next(run.out, n);
	if (o->touch == MICRO_TOUCH_SLOT)
		return;
	for (i = 0; i < n; i++) {
		if (o->touch == MICRO_TOUCH_ALL)
			frame_build(run.out[i].data, o, (uint32_t)run.seq % o->flows);
		frame_stamp(run.out[i].data, &(struct stamp){ run.id, run.seq++, now });
	}
}

static void prepare_all(void)
{
	uint32_t i;

	for (i = 0; i < DESK->found.slots; i++)
		frame_build(run.drv->tx_prepare(i, run.order->frame_len), run.order, i % run.order->flows);
	for (i = 0; i < run.order->burst; i++)
		run.out[i].len = run.order->frame_len;
}

/* Sequence numbers are a circle of 48 bits: what is less than half of it ahead is ahead. */
static void check_seq(uint64_t seq)
{
	uint64_t ahead = (seq - run.seq_in) & MASK48;

	if (ahead < 1ull << 47) {
		run.r->seq_lost += ahead;
		run.seq_in = seq + 1;
	} else {
		run.r->seq_late++;
	}
}

static void count_rx(uint32_t n)
{
	uint64_t bytes = 0;
	uint32_t i;

	for (i = 0; i < n; i++)
		bytes += run.in[i].len;
	run.r->rx_packets += n;
	run.r->rx_bytes += bytes;
	run.r->rx_bursts++;
}

static uint32_t at_most(uint32_t n, uint64_t limit)
{
	return n < limit ? n : (uint32_t)limit;
}

/* ---- roles ---- */

static void role_gen(void)
{
	const struct micro_order *o = run.order;

	while (run.left) {
		uint32_t n = at_most(o->burst, run.left);
		uint64_t now = pace();

		if (time_is_up(now) || !wait_for_room(n))
			break;
		fill(n, now);
		publish(n, (uint64_t)n * o->frame_len);
		run.left -= n;
	}
	run.r->end = rdtsc();
	drain();
}

static void read_packet(const struct pkt *p)
{
	struct stamp stamp;

	if (frame_stamped(p, &stamp))
		check_seq(stamp.seq);
	else
		run.r->foreign++;
	if (run.order->touch == MICRO_TOUCH_ALL)
		run.r->sum += frame_sum(p);
}

static void role_sink(void)
{
	const struct micro_order *o = run.order;
	uint32_t i, n;

	while (run.left && !time_is_up(rdtsc())) {
		n = wait_for_packets(at_most(o->burst, run.left));
		if (!n)
			break;
		for (i = 0; o->touch >= MICRO_TOUCH_STAMP && i < n; i++)
			read_packet(&run.in[i]);
		count_rx(n);
		release(n);
		run.left -= n;
		run.r->end = rdtsc();
	}
}

static void role_echo(void)
{
	uint32_t i, n;
	uint64_t bytes;

	while (run.left && !time_is_up(rdtsc())) {
		n = wait_for_packets(at_most(run.order->burst, run.left));
		if (!n || !wait_for_room(n))
			break;
		for (i = 0, bytes = 0; i < n; i++) {
			run.out[i].len = at_most(run.in[i].len, DESK->found.max_frame);
			bytes += run.out[i].len;
		}
		run.drv->tx_next(run.out, n);
		for (i = 0; i < n; i++)
			frame_turn(run.out[i].data, &(struct pkt){ run.in[i].data, run.out[i].len });
		count_rx(n);
		release(n);
		publish(n, bytes);
		run.left -= n;
		run.r->end = rdtsc();
	}
	drain();
}

/* Take what came back and note how long it took. */
static uint32_t take_replies(void)
{
	uint32_t i, n = run.drv->rx_take(run.in, MICRO_MAX_BURST);
	uint64_t now = rdtsc();

	if (!n)
		return 0;
	for (i = 0; i < n; i++) {
		struct stamp stamp;

		if (!frame_stamped(&run.in[i], &stamp) || stamp.run != run.id) {
			run.r->foreign++;
			continue;
		}
		check_seq(stamp.seq);
		hist_add((now - stamp.tsc) & MASK48);
		if (run.in_flight)
			run.in_flight--;
	}
	count_rx(n);
	release(n);
	return n;
}

static void await_replies(void)
{
	if (sleeps() && run.drv->rx_arm())
		sleep_counted();
	else
		cpu_relax();
	if (sleeps())
		run.drv->rx_disarm();
}

static void role_ping(void)
{
	const struct micro_order *o = run.order;
	uint64_t window = o->window ? o->window : UINT64_MAX;
	uint64_t limit = run.deadline + o->linger;
	uint64_t now = rdtsc();
	bool waiting = false;

	while ((run.left || run.in_flight) && now < limit) {
		uint32_t n = at_most(o->burst, run.left);
		bool may_send = n && run.in_flight + n <= window && run.drv->tx_room(n) >= n;

		now = rdtsc();
		if (run.left && time_is_up(now)) {
			run.left = 0;
			limit = now + o->linger;
			continue;
		}
		if (may_send && (!o->interval || now >= run.due >> 16)) {
			now = pace();
			fill(n, now);
			publish(n, (uint64_t)n * o->frame_len);
			run.left -= n;
			run.in_flight += n;
		}
		if (take_replies()) {
			waiting = false;
			continue;
		}
		run.r->rx_empty += !waiting;
		waiting = true;
		/* While the next packet's time comes nearer nobody sleeps. */
		if (!may_send)
			await_replies();
	}
	run.r->end = rdtsc();
	drain();
}

static void (*const roles[])(void) = {
	[MICRO_ROLE_GEN] = role_gen,
	[MICRO_ROLE_SINK] = role_sink,
	[MICRO_ROLE_ECHO] = role_echo,
	[MICRO_ROLE_PING] = role_ping,
};

/* The host's side checks more, and says it better; here it only must not go wrong. */
static int check_order(const struct micro_order *o)
{
	if (o->role < 1 || o->role >= ARRAY_SIZE(roles) || !o->burst || o->burst > MICRO_MAX_BURST ||
	    o->burst > DESK->found.slots / 2 || o->frame_len < MICRO_MIN_FRAME ||
	    o->frame_len > DESK->found.max_frame || !o->flows || !o->duration)
		return fail(-EINVAL, "a field of the order is out of range");
	if (o->kick == MICRO_KICK_EVERY && o->kick_every < o->burst)
		return fail(-EINVAL, "a burst is published at once: kick_every must not be less");
	if (o->wait == MICRO_WAIT_IRQ && !DESK->found.irq)
		return fail(-ENOTSUP, "the device has no interrupt that the guest can route");
	return 0;
}

/**
 * run_role() - play an order's role until its count, its time or the host ends it
 *
 * Return: 0, or a negative errno and a message on the desk.
 */
int run_role(const struct driver *drv, const struct micro_order *order)
{
	int err = check_order(order);

	if (err)
		return err;
	memset(&run, 0, offsetof(struct run, in));
	run.drv = drv;
	run.order = order;
	run.r = &DESK->result;
	run.left = order->count ? order->count : UINT64_MAX;
	if (order->role == MICRO_ROLE_GEN || order->role == MICRO_ROLE_PING)
		prepare_all();
	if (order->wait == MICRO_WAIT_IRQ)
		irq_timer(TICK_MS);
	run.r->start = rdtsc();
	run.id = (uint32_t)run.r->start;
	run.r->end = run.r->start;
	run.deadline = run.r->start + order->duration;
	run.due = run.r->start << 16;
	roles[order->role]();
	if (order->wait == MICRO_WAIT_IRQ)
		irq_timer(0);
	return 0;
}
