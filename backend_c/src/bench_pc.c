/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * bench_pc.c - a producer and a consumer on two CPUs, with work, queue and notification to choose
 *
 * What vpt/bench/model.py describes, made of threads: the wish, the look and the fences are those of notify.h, so that
 * what is measured is the protocol of the data plane. A notification goes by eventfd, by futex, or is emulated: then it takes
 * its sender notify_ns and its receiver start_ns, both spent looking at the clock, which reproduces a machine with those
 * costs whatever the present one's are, and keeps the kernel's scheduler out of the picture.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "notify.h"
#include "spin.h"
#include "util.h"
#include "vpt/vpt_bench.h"

#define PC_MAX_LENGTH 65536u
#define PC_MAX_TIME_NS 1000000000ull /* of one item, one spin, one sleep, one notification */
#define PC_LATE_MS 1000
#define PC_STALL_NS 1000ull /* looking at the clock takes a hundredth of it */

struct pc_entry {
	uint64_t begun;            /* ticks: production started */
	uint64_t seq;
};

struct pc_side;

/**
 * struct pc_ops - one way to notify
 * @signal:	tell the other side; any thread
 * @wait:	sleep until told, or at once if that has happened already; false: PC_LATE_MS went by
 */
struct pc_ops {
	void (*signal)(struct pc_side *to);
	bool (*wait)(struct pc_side *me);
};

struct pc_side {
	/* written by this side, read by the other */
	uint32_t index __attribute__((aligned(VPTI_CACHELINE)));
	uint32_t need __attribute__((aligned(VPTI_CACHELINE)));
	uint32_t at;

	/* written by the other side when it notifies this one */
	uint64_t told __attribute__((aligned(VPTI_CACHELINE)));        /* ticks at the end of the last notification */
	uint64_t landed;           /* emulated: the same, until it is noticed */
	uint32_t word;             /* futex */

	/* own */
	struct pc_run *run __attribute__((aligned(VPTI_CACHELINE)));
	int32_t cpu;
	int fd;
	uint64_t work, notify, start;                                  /* ticks */
	struct vpti_spin spin;
	uint64_t lap;              /* ticks: the present item's work began */
	uint64_t woke;             /* ticks: the last block ended; 0: accounted for */
	uint64_t slept;            /* ticks: it began */
	uint64_t notify_ticks, start_ticks, idle_ticks, stall_ticks, cpu_ns;
	uint64_t *starts;          /* samples of start_ticks, ns */
	uint64_t *batches;         /* samples of the items between two notifications */
	struct vpt_bench_pc_side out;
	int err;
};

struct pc_run {
	struct vpt_bench_pc *b;
	const struct pc_ops *ops;
	struct pc_entry *ring;
	uint32_t slots;            /* one more than the queue holds */
	uint64_t spin, sleep, stall;                                   /* ticks */
	double ticks_per_ns;
	uint64_t *latency;
	uint64_t begin, end;       /* ticks, consumer's */
	uint64_t latency_ticks, latency_max;
	pthread_barrier_t barrier;
	struct pc_side producer, consumer;
};

static inline uint64_t pc_ticks(void)
{
#if defined(__x86_64__) || defined(__i386__)
	return __builtin_ia32_rdtsc();
#else
	return vpti_now_ns();
#endif
}

/* Ticks in a nanosecond, measured once over 4 ms. A second caller at the same time measures the same. */
static double pc_ticks_per_ns(void)
{
	static uint64_t per_ms;
	uint64_t known = VPTI_READ(per_ms), ns, ticks;

	if (!known) {
		ns = vpti_now_ns();
		ticks = pc_ticks();
		while (vpti_now_ns() - ns < 4000000)
			vpti_cpu_relax();
		known = (uint64_t)((double)(pc_ticks() - ticks) * 1e6 / (double)(vpti_now_ns() - ns));
		VPTI_WRITE(per_ms, known);
	}
	return (double)known / 1e6;
}

/**
 * pc_pass() - look at the clock until a time has come, and do nothing else
 * @me:		whose time it is
 * @begin:	ticks at which it began
 * @ticks:	how long it is
 *
 * Between two looks nothing is to be waited for, no cache line either: a long one means that the CPU was taken away.
 */
static void pc_pass(struct pc_side *me, uint64_t begin, uint64_t ticks)
{
	uint64_t before = pc_ticks(), now;

	for (now = before; (int64_t)(now - begin) < (int64_t)ticks; before = now) {
		now = pc_ticks();
		if (now - before < me->run->stall)
			continue;
		me->out.stalls++;
		me->stall_ticks += now - before;
	}
}

/**
 * pc_work() - one item's work, what the queue itself costs included
 *
 * The work began when the previous item's ended, or after the last wait or notification, whichever came later; so
 * an item takes `work` ticks whatever part of them publishing and looking took. A thread that was off its CPU for
 * longer does not catch up.
 *
 * Return: ticks at which the work began
 */
static uint64_t pc_work(struct pc_side *me)
{
	uint64_t begin = me->lap, now = pc_ticks();

	if (now - begin > me->work)
		begin = now;
	pc_pass(me, begin, me->work);
	me->lap = begin + me->work;
	return begin;
}

static inline uint32_t pc_add(const struct pc_run *r, uint32_t index, uint32_t n)
{
	index += n;
	return index >= r->slots ? index - r->slots : index;
}

static void pc_signal_eventfd(struct pc_side *to)
{
	uint64_t one = 1;

	if (write(to->fd, &one, sizeof(one)) != sizeof(one))
		to->run->producer.err = -errno;
}

static bool pc_wait_eventfd(struct pc_side *me)
{
	struct pollfd p = { .fd = me->fd, .events = POLLIN };
	uint64_t count;

	return poll(&p, 1, PC_LATE_MS) == 1 && read(me->fd, &count, sizeof(count)) == sizeof(count);
}

static void pc_signal_futex(struct pc_side *to)
{
	VPTI_STORE_RELEASE(to->word, 1);
	syscall(SYS_futex, &to->word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

static bool pc_wait_futex(struct pc_side *me)
{
	const struct timespec limit = { .tv_sec = PC_LATE_MS / 1000 };
	bool told = true;

	while (told && !VPTI_LOAD_ACQUIRE(me->word))
		told = !syscall(SYS_futex, &me->word, FUTEX_WAIT_PRIVATE, 0, &limit, NULL, 0) || errno != ETIMEDOUT;
	VPTI_WRITE(me->word, 0);
	return told;
}

static void pc_signal_emulated(struct pc_side *to)
{
	struct pc_side *me = to == &to->run->producer ? &to->run->consumer : &to->run->producer;

	pc_pass(me, pc_ticks(), me->notify);
	VPTI_STORE_RELEASE(to->landed, pc_ticks());
}

static bool pc_wait_emulated(struct pc_side *me)
{
	uint64_t begin = pc_ticks(), landed;
	uint64_t limit = (uint64_t)(PC_LATE_MS * 1e6 * me->run->ticks_per_ns);

	while (!(landed = VPTI_LOAD_ACQUIRE(me->landed))) {
		if (pc_ticks() - begin > limit)
			return false;
		vpti_cpu_relax();
	}
	VPTI_WRITE(me->landed, 0);
	pc_pass(me, landed, me->start);
	return true;
}

static const struct pc_ops pc_ops[] = {
	[VPT_PC_EVENTFD] = { pc_signal_eventfd, pc_wait_eventfd },
	[VPT_PC_FUTEX] = { pc_signal_futex, pc_wait_futex },
	[VPT_PC_EMULATED] = { pc_signal_emulated, pc_wait_emulated },
};

static void pc_account_batch(struct pc_side *me, uint64_t item)
{
	uint64_t n = me->out.notifications++;

	if (!n)
		me->out.first_notified = item;
	else if (n <= me->run->b->batch_samples)
		me->batches[n - 1] = item - me->out.last_notified;
	me->out.last_notified = item;
}

/**
 * pc_publish() - move the own index and notify the other side if that is what it waits for
 * @me:		the side whose index moves by one
 * @other:	the other
 * @item:	number of the item that made it move
 */
static void pc_publish(struct pc_side *me, struct pc_side *other, uint64_t item)
{
	struct pc_run *r = me->run;
	uint32_t old = me->index, now = pc_add(r, old, 1);
	uint64_t begin;

	VPTI_STORE_RELEASE(me->index, now); /* pairs with the acquire in pc_moved() */
	vpti_published();
	if (!vpti_csb_due(&other->need, &other->at, old, now, r->slots, true))
		return;
	begin = pc_ticks();
	r->ops->signal(other);
	me->lap = pc_ticks();
	VPTI_WRITE(other->told, me->lap);
	me->notify_ticks += me->lap - begin;
	pc_account_batch(me, item);
}

/* Has the other side left the index that stops this one? Pairs with the release in pc_publish(). */
static inline bool pc_moved(const struct pc_side *other, uint32_t stop)
{
	return VPTI_LOAD_ACQUIRE(other->index) != stop;
}

/**
 * pc_account_start() - how long did the last start take?
 *
 * Asked for at the next block, for a sleeper often works before whoever woke it is through with that.
 */
static void pc_account_start(struct pc_side *me)
{
	const struct pc_run *r = me->run;
	uint64_t told = VPTI_READ(me->told), took;

	if (me->woke && told > me->slept) {
		took = me->woke > told ? me->woke - told : 0;
		if (me->out.starts < r->b->start_samples)
			me->starts[me->out.starts] = (uint64_t)((double)took / r->ticks_per_ns);
		me->out.starts++;
		me->start_ticks += took;
	}
	me->woke = 0;
}

/**
 * pc_block() - ask for a notification, look again, sleep
 * @at:		the slot that the other side's index has to pass
 */
static void pc_block(struct pc_side *me, const struct pc_side *other, uint32_t stop, uint32_t at)
{
	uint64_t begin = pc_ticks();

	pc_account_start(me);
	me->out.wishes++;
	vpti_csb_wish(&me->need, &me->at, at);
	vpti_wished();
	if (!pc_moved(other, stop)) {
		/* Nothing for that long and nothing to do: the other side is slow. Something to do: nobody said so. */
		if (!me->run->ops->wait(me) && pc_moved(other, stop))
			me->out.late++;
		me->slept = begin;
		me->woke = pc_ticks();
		me->idle_ticks += me->woke - begin;
		me->out.blocks++;
	}
	VPTI_WRITE(me->need, 0);
}

/* Spin, if that promises anything. False: the other side has not moved. */
static bool pc_spin(struct pc_side *me, const struct pc_side *other, uint32_t stop)
{
	uint64_t begin = pc_ticks();
	bool moved = false;

	if (!me->run->spin || !vpti_spin_wanted(&me->spin))
		return false;
	while (!(moved = pc_moved(other, stop)) && pc_ticks() - begin < me->run->spin)
		vpti_cpu_relax();
	vpti_spin_done(&me->spin, moved);
	return moved;
}

static void pc_sleep(struct pc_side *me)
{
	const struct vpt_bench_pc *b = me->run->b;
	const struct timespec ts = {
		.tv_sec = (time_t)(b->sleep_ns / 1000000000u),
		.tv_nsec = (long)(b->sleep_ns % 1000000000u),
	};
	uint64_t begin = pc_ticks();

	if (b->notify_by == VPT_PC_EMULATED)
		pc_pass(me, begin, me->run->sleep);
	else
		clock_nanosleep(CLOCK_MONOTONIC, 0, &ts, NULL);
	me->idle_ticks += pc_ticks() - begin;
	me->out.sleeps++;
}

/**
 * pc_until() - wait as the policy says until the other side's index is no longer `stop`
 * @at:		slot to name in a wish
 */
static void pc_until(struct pc_side *me, const struct pc_side *other, uint32_t stop, uint32_t at)
{
	const struct pc_run *r = me->run;

	if (pc_moved(other, stop))
		return;
	while (!pc_moved(other, stop)) {
		switch (r->b->policy) {
		case VPT_POLICY_POLL:
			vpti_cpu_relax();
			break;
		case VPT_POLICY_SLEEP:
			pc_sleep(me);
			break;
		case VPT_POLICY_ADAPTIVE:
			if (!pc_spin(me, other, stop))
				pc_block(me, other, stop, at);
			break;
		default:
			pc_block(me, other, stop, at);
		}
	}
	me->lap = pc_ticks();
}

static uint64_t pc_thread_cpu_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static uint64_t pc_thread_preempted(void)
{
	struct rusage u;

	getrusage(RUSAGE_THREAD, &u);
	return (uint64_t)u.ru_nivcsw;
}

/* The warm-up is over: forget what was counted. */
static void pc_start_counting(struct pc_side *me)
{
	memset(&me->out, 0, sizeof(me->out));
	me->notify_ticks = me->start_ticks = me->idle_ticks = me->stall_ticks = me->woke = 0;
	me->cpu_ns = pc_thread_cpu_ns();
	me->out.preempted = pc_thread_preempted();
}

static void pc_stop_counting(struct pc_side *me)
{
	double per_ns = me->run->ticks_per_ns;

	pc_account_start(me);
	me->out.cpu_ns = pc_thread_cpu_ns() - me->cpu_ns;
	me->out.preempted = pc_thread_preempted() - me->out.preempted;
	me->out.notify_ns = (uint64_t)((double)me->notify_ticks / per_ns);
	me->out.start_ns = (uint64_t)((double)me->start_ticks / per_ns);
	me->out.idle_ns = (uint64_t)((double)me->idle_ticks / per_ns);
	me->out.stalled_ns = (uint64_t)((double)me->stall_ticks / per_ns);
}

/* Bind to the CPU, take real-time priority if asked, and wait for the other side to get as far. */
static bool pc_thread_begin(struct pc_side *me)
{
	const struct sched_param prio = { .sched_priority = 1 };
	struct pc_run *r = me->run;
	cpu_set_t set;

	if (me->cpu >= 0) {
		CPU_ZERO(&set);
		CPU_SET((unsigned int)me->cpu, &set);
		me->err = -pthread_setaffinity_np(pthread_self(), sizeof(set), &set);
	}
	if (!me->err && r->b->realtime)
		me->err = -pthread_setschedparam(pthread_self(), SCHED_FIFO, &prio);
	prctl(PR_SET_TIMERSLACK, 1);
	pthread_barrier_wait(&r->barrier);
	return !r->producer.err && !r->consumer.err;
}

static void *pc_producer(void *arg)
{
	struct pc_run *r = arg;
	struct pc_side *me = &r->producer, *other = &r->consumer;
	uint64_t i, total = r->b->warmup + r->b->items;
	uint32_t stop;

	if (!pc_thread_begin(me))
		return NULL;
	for (i = 0; i < total; i++) {
		if (i == r->b->warmup)
			pc_start_counting(me);
		stop = pc_add(r, me->index, 1); /* where the consumer is when the queue is full */
		pc_until(me, other, stop, pc_add(r, stop, r->b->notify_after - 1));
		r->ring[me->index] = (struct pc_entry){ .begun = pc_work(me), .seq = i };
		pc_publish(me, other, i);
	}
	pc_stop_counting(me);
	return NULL;
}

static void pc_record(struct pc_run *r, uint64_t n, uint64_t begun)
{
	uint64_t took = pc_ticks() - begun;

	r->latency_ticks += took;
	r->latency_max = VPTI_MAX(r->latency_max, took);
	if (r->b->samples && n % r->b->sample_every == 0 && n / r->b->sample_every < r->b->samples)
		r->latency[n / r->b->sample_every] = (uint64_t)((double)took / r->ticks_per_ns);
}

static void *pc_consumer(void *arg)
{
	struct pc_run *r = arg;
	struct pc_side *me = &r->consumer, *other = &r->producer;
	uint64_t i, total = r->b->warmup + r->b->items;
	struct pc_entry e;

	if (!pc_thread_begin(me))
		return NULL;
	for (i = 0; i < total; i++) {
		if (i == r->b->warmup) {
			pc_start_counting(me);
			r->begin = pc_ticks();
		}
		pc_until(me, other, me->index, me->index);
		e = r->ring[me->index];
		pc_work(me);
		r->b->bad += e.seq != i;
		if (i >= r->b->warmup)
			pc_record(r, i - r->b->warmup, e.begun);
		pc_publish(me, other, i);
	}
	r->end = pc_ticks();
	pc_stop_counting(me);
	return NULL;
}

static bool pc_valid(const struct vpt_bench_pc *b)
{
	const uint64_t times[] = { b->work_p_ns, b->work_c_ns, b->notify_p_ns, b->notify_c_ns,
				   b->start_p_ns, b->start_c_ns, b->spin_ns, b->sleep_ns };
	size_t i;

	for (i = 0; i < VPTI_ARRAY_SIZE(times); i++)
		if (times[i] > PC_MAX_TIME_NS)
			return false;
	if (b->policy < VPT_POLICY_POLL || b->policy > VPT_POLICY_ADAPTIVE)
		return false;
	if (b->notify_by < VPT_PC_EVENTFD || b->notify_by > VPT_PC_EMULATED)
		return false;
	if (b->cpu_producer >= CPU_SETSIZE || b->cpu_consumer >= CPU_SETSIZE)
		return false;
	/* Real-time threads that spin for each other on one CPU would hold it for ever. */
	if (b->realtime && (b->cpu_producer < 0 || b->cpu_consumer < 0 || b->cpu_producer == b->cpu_consumer))
		return false;
	return b->items && b->length >= 2 && b->length <= PC_MAX_LENGTH && b->notify_after >= 1 &&
	       b->notify_after <= b->length && (!b->samples || b->sample_every);
}

static void pc_side_init(struct pc_run *r, struct pc_side *side, int32_t cpu, uint64_t work, uint64_t notify, uint64_t start)
{
	side->run = r;
	side->cpu = cpu;
	side->fd = -1;
	side->work = (uint64_t)((double)work * r->ticks_per_ns);
	side->notify = (uint64_t)((double)notify * r->ticks_per_ns);
	side->start = (uint64_t)((double)start * r->ticks_per_ns);
}

static int pc_init(struct pc_run *r, struct vpt_bench_pc *b, uint64_t *latency, uint64_t *starts, uint64_t *batches)
{
	r->b = b;
	r->latency = latency;
	r->ops = &pc_ops[b->notify_by];
	r->slots = b->length + 1;
	r->ticks_per_ns = pc_ticks_per_ns();
	r->spin = (uint64_t)((double)b->spin_ns * r->ticks_per_ns);
	r->sleep = (uint64_t)((double)b->sleep_ns * r->ticks_per_ns);
	r->stall = (uint64_t)((double)PC_STALL_NS * r->ticks_per_ns);
	pc_side_init(r, &r->producer, b->cpu_producer, b->work_p_ns, b->notify_p_ns, b->start_p_ns);
	pc_side_init(r, &r->consumer, b->cpu_consumer, b->work_c_ns, b->notify_c_ns, b->start_c_ns);
	r->consumer.starts = starts;
	r->producer.starts = starts ? starts + b->start_samples : NULL;
	r->consumer.batches = batches;
	r->producer.batches = batches ? batches + b->batch_samples : NULL;
	r->ring = calloc(r->slots, sizeof(*r->ring));
	if (!r->ring)
		return -ENOMEM;
	if (b->notify_by == VPT_PC_EVENTFD) {
		r->producer.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		r->consumer.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		if (r->producer.fd < 0 || r->consumer.fd < 0)
			return -errno;
	}
	return 0;
}

static void pc_fini(struct pc_run *r)
{
	if (r->producer.fd >= 0)
		close(r->producer.fd);
	if (r->consumer.fd >= 0)
		close(r->consumer.fd);
	free(r->ring);
	free(r);
}

/**
 * pc_threads() - run both sides to the end
 *
 * The calling thread is the third: it waits. If the second thread can't be had, the first is let through the barrier
 * to find the error.
 *
 * Return: 0 or -errno
 */
static int pc_threads(struct pc_run *r)
{
	pthread_t producer, consumer;
	int err;

	pthread_barrier_init(&r->barrier, NULL, 2);
	err = -pthread_create(&consumer, NULL, pc_consumer, r);
	if (err)
		goto out;
	err = -pthread_create(&producer, NULL, pc_producer, r);
	if (err) {
		r->producer.err = err;
		pthread_barrier_wait(&r->barrier);
	} else {
		pthread_join(producer, NULL);
	}
	pthread_join(consumer, NULL);
	err = r->producer.err ? r->producer.err : r->consumer.err;
out:
	pthread_barrier_destroy(&r->barrier);
	return err;
}

int vpt_bench_pc(struct vpt_bench_pc *b, uint64_t *latency_ns, uint64_t *start_ns, uint64_t *batches)
{
	struct pc_run *r;
	int err;

	if (!pc_valid(b) || (b->samples && !latency_ns) || (b->start_samples && !start_ns) || (b->batch_samples && !batches))
		return -EINVAL;
	r = aligned_alloc(VPTI_CACHELINE, VPTI_ALIGN(sizeof(*r), VPTI_CACHELINE));
	if (!r)
		return -ENOMEM;
	memset(r, 0, sizeof(*r));
	r->producer.fd = r->consumer.fd = -1;
	b->bad = 0;
	err = pc_init(r, b, latency_ns, start_ns, batches);
	if (!err)
		err = pc_threads(r);
	if (!err) {
		b->ns = (uint64_t)((double)(r->end - r->begin) / r->ticks_per_ns);
		b->latency_sum_ns = (uint64_t)((double)r->latency_ticks / r->ticks_per_ns);
		b->latency_max_ns = (uint64_t)((double)r->latency_max / r->ticks_per_ns);
		b->producer = r->producer.out;
		b->consumer = r->consumer.out;
	}
	pc_fini(r);
	return err;
}
