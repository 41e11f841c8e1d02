/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * worker.c - the loop of a worker: serve, spin a little, ask to be kicked, sleep
 *
 * A worker is online (a reader in liburcu's sense) except while it sleeps. Each round of the loop is a quiescent point, so the
 * control thread waits for one round at most.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "engine.h"
#include "fd.h"
#include "notify.h"
#include "rcu.h"
#include "spin.h"
#include "switch.h"
#include "take.h"

#define MAX_SLEEP_NS 1000000000u /* nobody sleeps longer, whatever the peer promised: a lost wake-up costs a second, not a VM */
#define BLOCKED_NS 20000u        /* lossless: how long until the destination is tried again */
#define POLLED_US 50u            /* how often to look at a peer that cannot kick */
#define TICK_ROUNDS 256u         /* busy rounds between two looks at the clock */
#define BUSY_ROUNDS 1024u        /* busy rounds between two looks at doorbells: of a driver that comes up, say */
#define DATA_ROUNDS 32u          /* rounds between two looks at descriptors that packets come from */
#define KICK_ROUNDS 8192u        /* ... at those of peers whose rings are looked at anyway: a system call is a packet's latency */
#define SLOW_LOOKS 16u           /* in vain, after work, with the clock and a pause each: see look_is_slow() */
#define FAST_LOOKS 16384u        /* in vain, with and without, until it is slow ones again: 0.3 ms */
#define CLOCK_LOOKS 8u           /* fast looks between two at the clock */
#define BREATHER 12u             /* pauses, 40 ns each where they are longest */
#define WATCH_WAKE UINT64_MAX

static void count(struct vpti_worker *w, enum vpt_wcounter which, uint64_t n)
{
	VPTI_WRITE(w->w[which], w->w[which] + n);
}

void vpti_worker_dirty(struct vpti_worker *w, struct vpti_rxq *q)
{
	uint32_t i;

	for (i = 0; i < w->ndirty; i++) {
		if (w->dirty[i] == q)
			return;
	}
	if (w->ndirty == VPTI_ARRAY_SIZE(w->dirty)) { /* more destinations than places: look at the peers of these now */
		vpti_published();
		for (i = 0; i < w->ndirty; i++)
			w->dirty[i]->ops->notify(w->dirty[i]);
		w->ndirty = 0;
	}
	w->dirty[w->ndirty++] = q;
}

void vpti_worker_wait(struct vpti_worker *w, struct vpti_txq *q, uint64_t ns)
{
	q->waiting = true;
	w->retry_ns = VPTI_MIN(w->retry_ns, ns);
}

/* A burst of one queue. Returns packets taken. */
static uint32_t serve_queue(struct vpti_worker *w, struct vpti_txq *q, bool *blocked)
{
	uint32_t n = vpti_switch_forward(w, q);

	if (n && q->armed) {
		q->armed = false;
		q->ops->disarm(q);
	}
	*blocked |= !n && w->burst.n && !q->waiting;
	return n;
}

/*
 * The queues of one port, in turn, until they have given a burst together: a port with many does not get more of the worker than one
 * with a single queue, and its neighbour's packets wait for one burst of it, not for one of each queue.
 */
static uint32_t serve_port(struct vpti_worker *w, const struct vpti_plan_entry *e, bool *blocked)
{
	struct vpti_txq *first = e->q;
	uint32_t taken = 0, k;

	if (!vpti_port_runs(first->port))
		return 0;
	for (k = 0; k < e->mates && taken < VPTI_BURST; k++) {
		uint32_t turn = first->turn < e->mates ? first->turn : 0;

		first->turn = turn + 1;
		taken += serve_queue(w, e[turn].q, blocked);
	}
	return taken;
}

/* One round over all ports, then one look at every peer that something was published to. Returns packets taken. */
static uint32_t serve(struct vpti_worker *w, const struct vpti_plan *plan, bool *blocked)
{
	uint32_t taken = 0, i;

	*blocked = false;
	w->retry_ns = VPTI_NO_RETRY;
	for (i = 0; i < plan->n; i += plan->e[i].mates)
		taken += serve_port(w, &plan->e[i], blocked);
	/* A lossless sender that has to wait leaves its destination noted though nothing was taken; no round leaves a note. */
	if (!taken && !w->ndirty)
		return 0;
	vpti_published();
	for (i = 0; i < w->ndirty; i++)
		w->dirty[i]->ops->notify(w->dirty[i]);
	w->ndirty = 0;
	for (i = 0; i < plan->n; i++) {
		struct vpti_txq *q = plan->e[i].q;

		if (q->dirty) {
			q->dirty = false;
			q->ops->notify(q);
		}
	}
	return taken;
}

/* Ask every peer for a kick, then look once more but at queues that are not to be taken from. True if it is safe to sleep. */
static bool arm_all(const struct vpti_plan *plan)
{
	uint32_t i;

	for (i = 0; i < plan->n; i++) {
		struct vpti_txq *q = plan->e[i].q;

		if (plan->e[i].arm && !q->armed && !q->waiting && vpti_port_runs(q->port)) {
			q->armed = true;
			q->ops->arm(q);
		}
	}
	vpti_wished();
	for (i = 0; i < plan->n; i++) {
		struct vpti_txq *q = plan->e[i].q;

		if (vpti_port_runs(q->port) && !q->waiting && !VPTI_READ(q->aside) && q->ops->pending(q))
			return false;
	}
	return true;
}

/* ---- what woke it ---- */

/* Edge-triggered, see vpti_watch_add(): what a semaphore (EFD_SEMAPHORE) has left is no kick of its own. */
static void on_kick(struct vpti_worker *w, struct vpti_watch *watch)
{
	uint64_t n = vpti_eventfd_take(watch->fd);

	count(w, VPT_W_SYSCALLS, 1);
	vpti_count(watch->q->c, VPT_C_TX_KICKS, n);
	if (!n)
		return;
	watch->q->kicked = true;
	VPTI_WRITE(watch->q->aside, false);
}

static void on_cfg(struct vpti_worker *w, struct vpti_watch *watch)
{
	struct vpt_port *p = watch->port;
	struct vpt_event ev = { .type = VPT_EVENT_STATUS, .port_id = p->id };

	count(w, VPT_W_SYSCALLS, 1);
	if (vpti_eventfd_take(watch->fd) && !__atomic_exchange_n(&p->status_event, 1, __ATOMIC_RELAXED))
		vpti_events_post(&p->engine->events, &ev);
}

static void on_data(struct vpti_worker *w, struct vpti_watch *watch)
{
	(void)w;
	watch->q->kicked = true;
	watch->q->ready = true;
}

static void (*const on_event[])(struct vpti_worker *, struct vpti_watch *) = {
	[VPTI_WATCH_KICK] = on_kick,
	[VPTI_WATCH_CFG] = on_cfg,
	[VPTI_WATCH_DATA] = on_data,
};

/* Online: the watches that the numbers stand for cannot be freed before the next quiescent point. */
static void handle_events(struct vpti_worker *w, const struct epoll_event *ev, int n)
{
	int i;

	for (i = 0; i < n; i++) {
		struct vpti_watch *watch;

		if (ev[i].data.u64 == WATCH_WAKE) {
			vpti_eventfd_take(w->wake_fd);
			continue;
		}
		watch = vpti_rcu_get(w->engine->watch[ev[i].data.u64 % VPTI_MAX_WATCHES]);
		if (watch && watch->id == ev[i].data.u64)
			on_event[watch->kind](w, watch);
	}
}

static int poll_events(struct vpti_worker *w, uint64_t timeout_ns)
{
	struct timespec ts = { (time_t)(timeout_ns / 1000000000u), (long)(timeout_ns % 1000000000u) };
	struct epoll_event ev[64];
	int n;

	if (timeout_ns)
		vpti_rcu_offline();
	n = epoll_pwait2(w->epoll_fd, ev, VPTI_ARRAY_SIZE(ev), &ts, NULL);
	if (timeout_ns)
		vpti_rcu_online();
	count(w, VPT_W_SYSCALLS, 1);
	handle_events(w, ev, n);
	return n;
}

/* Returns whether the safety time-out ended the sleep: work found now would be a lost wake-up. */
static bool sleep_until_work(struct vpti_worker *w, const struct vpti_plan *plan, bool blocked)
{
	uint64_t ns = plan->sleep_ns ? plan->sleep_ns : MAX_SLEEP_NS;
	int n;

	ns = VPTI_MIN(ns, w->retry_ns);
	if (blocked)
		ns = VPTI_MIN(ns, BLOCKED_NS);
	if (!blocked && !arm_all(plan))
		return false;
	count(w, VPT_W_SLEEPS, 1);
	n = poll_events(w, ns);
	if (n == 0)
		return ns == MAX_SLEEP_NS && w->retry_ns == VPTI_NO_RETRY;
	if (n > 0) /* not -EINTR: a process that was stopped and goes on has slept no longer than it was made to */
		count(w, VPT_W_WAKES, 1);
	return false;
}

/* ---- the loop ---- */

/*
 * After a round that found little, its peers are at work on the very cache lines that the next one would look at. Left alone for a
 * moment they get on, and there is more to take at once: guest to guest 50 packets in the place of 25, and 1.6 times
 * testpmd's rate in the place of 1.3. A lone packet is followed by the next one's latency, not by more to take: one every 0.2 us
 * took 0.48 us with all of the pause (median, against testpmd's 0.35), and 0.36 with a pause for each that was taken.
 */
static void take_breath(uint32_t taken)
{
	uint32_t i;

	for (i = 0; i < VPTI_MIN(taken, BREATHER); i++)
		vpti_cpu_relax();
}

static void sweep_tables(struct vpti_worker *w, const struct vpti_plan *plan)
{
	uint32_t i;

	for (i = 0; i < plan->n; i++)
		vpti_mac_sweep(&plan->e[i].q->port->sw->macs, w->tick);
}

static void look_at_clock(struct vpti_worker *w, const struct vpti_plan *plan, uint64_t now)
{
	uint32_t tick = (uint32_t)((now - w->engine->start_ns) / 1000000000u);

	if (tick == w->tick)
		return;
	w->tick = tick;
	sweep_tables(w, plan);
}

static void spun(struct vpti_worker *w, struct vpti_spin *spin, bool paid)
{
	vpti_spin_done(spin, paid);
	count(w, VPT_W_SPINS, 1);
	count(w, VPT_W_SPINS_VAIN, !paid);
}

/* What the loop keeps from one round to the next. */
struct loop {
	struct vpti_spin spin;
	uint64_t idle_since;       /* 0: there was something to do */
	uint64_t now;              /* as of the last look at the clock */
	uint32_t round;
	uint32_t looks;            /* in vain, since there was something to do */
	bool spins;
	bool slept;
	bool late;                 /* ... until the safety time-out */
};

static void after_work(struct vpti_worker *w, const struct vpti_plan *plan, struct loop *l, uint32_t taken)
{
	count(w, VPT_W_BUSY_LOOPS, 1);
	if (l->late)
		count(w, VPT_W_LATE, 1);
	if (l->spins)
		spun(w, &l->spin, true);
	l->late = false;
	l->spins = false;
	l->idle_since = 0;
	l->looks = 0;
	if (++l->round % TICK_ROUNDS == 0)
		look_at_clock(w, plan, vpti_now_ns());
	if (taken < VPTI_BURST)
		take_breath(taken);
	if (l->round % (plan->has_data_fds ? DATA_ROUNDS : BUSY_ROUNDS) == 0)
		poll_events(w, 0);
}

/*
 * A look costs 70 ns with the clock and a pause, and 20 without. At full rate the slow one is right: what it would look at is what
 * the peers are writing. After a microsecond it is a lone packet that is waited for, whose latency is that of a look. One
 * every 2 us, against testpmd, 99th percentile: 0.46 and 0.39 us with slow looks alone, 0.39 and 0.39 with these. Where none has
 * come for longer, 50 ns are nothing to it, and the other half of the core has the use of the pauses.
 */
static bool look_is_slow(const struct loop *l)
{
	return l->looks < SLOW_LOOKS || l->looks >= FAST_LOOKS;
}

/* There was nothing: look again, for the time of a spin, or sleep. The plan may be gone afterwards. */
static void without_work(struct vpti_worker *w, const struct vpti_plan *plan, struct loop *l, bool blocked)
{
	bool slow = look_is_slow(l);

	l->looks += l->looks < FAST_LOOKS;
	l->late = false;
	if (slow || l->looks % CLOCK_LOOKS == 0) {
		l->now = vpti_now_ns();
		look_at_clock(w, plan, l->now);
	}
	if (!l->idle_since) {
		l->idle_since = l->now;
		l->spins = plan->spin_ns && vpti_spin_wanted(&l->spin);
	}
	if (plan->poll || (l->spins && l->now - l->idle_since < plan->spin_ns)) {
		if (++l->round % (plan->has_data_fds ? DATA_ROUNDS : KICK_ROUNDS) == 0)
			poll_events(w, 0);
		if (slow)
			vpti_cpu_relax();
		return;
	}
	if (l->spins)
		spun(w, &l->spin, false);
	l->spins = false;
	/* A sleeper by the clock goes on sleeping; one that was notified may spin again. */
	if (!plan->sleep_ns && w->retry_ns == VPTI_NO_RETRY)
		l->idle_since = 0;
	l->looks = 0;
	l->late = sleep_until_work(w, plan, blocked);
	l->slept = true;
}

static void run(struct vpti_worker *w)
{
	struct loop l = { 0 };

	while (!VPTI_READ(w->stop)) {
		const struct vpti_plan *plan = vpti_rcu_get(w->plan);
		uint32_t taken;
		bool blocked;

		count(w, VPT_W_LOOPS, 1);
		if (vpti_unlikely(VPTI_LOAD_ACQUIRE(w->chore) != NULL)) { /* pairs with vpti_worker_do() */
			w->chore->run(w, w->chore);
			VPTI_STORE_RELEASE(w->chore, NULL);
		}
		if (l.slept) /* before a packet is switched by addresses that expired meanwhile */
			look_at_clock(w, plan, vpti_now_ns());
		l.slept = false;
		taken = serve(w, plan, &blocked);
		if (taken)
			after_work(w, plan, &l, taken);
		else
			without_work(w, plan, &l, blocked);
		vpti_rcu_quiescent();
	}
}

static void *worker_main(void *arg)
{
	struct vpti_worker *w = arg;
	sigset_t all;

	/* Signals are the process's business; SIGBUS is synchronous and comes here whatever the mask says. */
	sigfillset(&all);
	sigdelset(&all, SIGBUS);
	pthread_sigmask(SIG_SETMASK, &all, NULL);
	/* Default slack is 50 us: a sleep of 5 us would take 80. */
	prctl(PR_SET_TIMERSLACK, 1UL, 0, 0, 0);
	rcu_register_thread();
	run(w);
	rcu_unregister_thread();
	return NULL;
}

/* ---- control thread ---- */

/* Room is had when a queue is added: taking one out of service must not fail, for its memory is about to go. */
int vpti_worker_reserve(struct vpti_worker *w)
{
	uint32_t room = w->plan_room ? 2 * w->plan_room : 16;
	size_t size = sizeof(struct vpti_plan) + room * sizeof(struct vpti_plan_entry);
	struct vpti_plan *plan, *spare, *old = w->plan;

	if (w->nqueues < w->plan_room)
		return 0;
	plan = calloc(1, size);
	spare = calloc(1, size);
	if (!plan || !spare) {
		free(plan);
		free(spare);
		return -ENOMEM;
	}
	if (old)
		memcpy(plan, old, sizeof(*old) + old->n * sizeof(old->e[0]));
	vpti_rcu_publish(w->plan, plan);
	vpti_synchronize();
	free(old);
	free(w->spare);
	w->spare = spare;
	w->plan_room = room;
	return 0;
}

void vpti_worker_replan(struct vpti_worker *w)
{
	struct vpti_plan *plan = w->spare, *old = w->plan;
	uint64_t sleep_us = 0, spin_us = 0;
	struct vpti_txq *q;
	uint32_t first = 0;

	memset(plan, 0, sizeof(*plan));
	for (q = w->engine->held ? NULL : w->txqs; q; q = q->next) {
		const struct vpt_policy *policy = &q->port->opts.policy;

		if (!q->live)
			continue;
		plan->poll |= policy->kind == VPT_POLICY_POLL;
		plan->has_data_fds |= q->port->opts.kind == VPT_KIND_TAP;
		if (policy->kind == VPT_POLICY_ADAPTIVE)
			spin_us = VPTI_MAX(spin_us, policy->spin_us);
		if (policy->kind == VPT_POLICY_SLEEP && (!sleep_us || policy->sleep_us < sleep_us))
			sleep_us = policy->sleep_us;
		if (q->polled && (!sleep_us || sleep_us > POLLED_US))
			sleep_us = POLLED_US;
		plan->e[plan->n].q = q;
		plan->e[plan->n].arm = policy->kind == VPT_POLICY_NOTIFY || policy->kind == VPT_POLICY_ADAPTIVE;
		plan->e[plan->n].mates = 0;
		/* A port makes all of its queues at once, so they follow each other in the list. */
		if (!plan->n || plan->e[first].q->port != q->port)
			first = plan->n;
		plan->e[first].mates++;
		plan->n++;
	}
	plan->spin_ns = spin_us * 1000u;
	plan->sleep_ns = sleep_us * 1000u;
	vpti_rcu_publish(w->plan, plan);
	vpti_eventfd_signal(w->wake_fd);
	vpti_synchronize();
	w->spare = old;
}

static const struct timespec nap = { .tv_nsec = 20000 }; /* between two looks at a worker that the control thread waits for */

void vpti_worker_do(struct vpti_worker *w, struct vpti_chore *chore)
{
	VPTI_STORE_RELEASE(w->chore, chore);
	vpti_eventfd_signal(w->wake_fd);
	while (VPTI_LOAD_ACQUIRE(w->chore))
		nanosleep(&nap, NULL);
}

void vpti_worker_rounds(struct vpti_worker *w, uint32_t n)
{
	uint64_t seen = VPTI_READ(w->w[VPT_W_LOOPS]), now;

	/* The round that is on may have passed a queue already: one more. A worker that sleeps is woken for each. */
	for (n++; n; n -= (uint32_t)VPTI_MIN(now - seen, n), seen = now) {
		vpti_eventfd_signal(w->wake_fd);
		while ((now = VPTI_READ(w->w[VPT_W_LOOPS])) == seen)
			nanosleep(&nap, NULL);
	}
}

int vpti_watch_add(struct vpti_worker *w, enum vpti_watch_kind kind, int fd, struct vpt_port *port,
		   struct vpti_txq *q, struct vpti_watch **out)
{
	struct vpt_engine *e = w->engine;
	/*
	 * An event for each time that somebody adds to an eventfd, not as long as there is something in it: one made with
	 * EFD_SEMAPHORE gives up one at a time, and with a large count in it would never let the worker sleep.
	 */
	struct epoll_event ev = { .events = kind == VPTI_WATCH_DATA ? EPOLLIN : EPOLLIN | EPOLLET };
	struct vpti_watch *watch = calloc(1, sizeof(*watch));
	uint32_t tries;
	int rc;

	if (!watch)
		return -ENOMEM;
	*watch = (struct vpti_watch){ .kind = kind, .worker = w, .port = port, .q = q };
	watch->fd = dup(fd);
	if (watch->fd < 0) {
		rc = -errno;
		goto err;
	}
	/* Numbers are not used again soon: one that is still on its way finds somebody else's id in its place. */
	for (tries = 0; tries < VPTI_MAX_WATCHES; tries++) {
		watch->id = e->next_watch++;
		if (!e->watch[watch->id % VPTI_MAX_WATCHES])
			break;
	}
	rc = -ENOSPC;
	if (tries == VPTI_MAX_WATCHES)
		goto err;
	vpti_rcu_publish(e->watch[watch->id % VPTI_MAX_WATCHES], watch);
	ev.data.u64 = watch->id;
	if (epoll_ctl(w->epoll_fd, EPOLL_CTL_ADD, watch->fd, &ev)) {
		rc = -errno;
		vpti_rcu_publish(e->watch[watch->id % VPTI_MAX_WATCHES], NULL);
		vpti_synchronize();
		goto err;
	}
	*out = watch;
	return 0;
err:
	vpti_fd_close(&watch->fd);
	free(watch);
	return rc;
}

void vpti_watch_del(struct vpti_watch *watch)
{
	if (!watch)
		return;
	epoll_ctl(watch->worker->epoll_fd, EPOLL_CTL_DEL, watch->fd, NULL);
	vpti_rcu_publish(watch->worker->engine->watch[watch->id % VPTI_MAX_WATCHES], NULL);
	vpti_synchronize();
	close(watch->fd);
	free(watch);
}

int vpti_worker_start(struct vpt_engine *e, uint32_t index, int cpu)
{
	struct epoll_event ev = { .events = EPOLLIN, .data.u64 = WATCH_WAKE };
	struct vpti_worker *w = calloc(1, sizeof(*w));
	pthread_attr_t attr;
	cpu_set_t cpus;
	char name[16];
	int rc = -ENOMEM;

	if (!w)
		return -ENOMEM;
	e->worker[index] = w;
	w->engine = e;
	w->index = index;
	w->cpu = cpu;
	w->w = e->stats->worker[index].w;
	w->wake_fd = w->epoll_fd = -1;
	w->pass = vpti_pass_new();
	if (!w->pass || vpti_worker_reserve(w))
		return rc;
	w->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	w->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (w->wake_fd < 0 || w->epoll_fd < 0 || epoll_ctl(w->epoll_fd, EPOLL_CTL_ADD, w->wake_fd, &ev))
		return -errno;
	pthread_attr_init(&attr);
	if (cpu >= 0) {
		CPU_ZERO(&cpus);
		CPU_SET((size_t)cpu, &cpus);
		pthread_attr_setaffinity_np(&attr, sizeof(cpus), &cpus);
	}
	rc = -pthread_create(&w->thread, &attr, worker_main, w);
	pthread_attr_destroy(&attr);
	w->started = rc == 0;
	if (w->started) { /* by us: whoever looks for an engine's workers finds them before they have run for the first time */
		snprintf(name, sizeof(name), "vpt-worker%u", index);
		pthread_setname_np(w->thread, name);
	}
	return rc;
}

void vpti_worker_stop(struct vpti_worker *w)
{
	if (!w)
		return;
	if (w->started) {
		VPTI_WRITE(w->stop, true);
		vpti_eventfd_signal(w->wake_fd);
		pthread_join(w->thread, NULL);
	}
	vpti_fd_close(&w->wake_fd);
	vpti_fd_close(&w->epoll_fd);
	vpti_pass_free(w->pass);
	free(w->plan);
	free(w->spare);
	free(w);
}
