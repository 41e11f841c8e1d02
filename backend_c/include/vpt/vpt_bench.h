/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * vpt_bench.h - public API of the benchmarks; the rules of vpt.h hold
 */
#ifndef VPT_VPT_BENCH_H
#define VPT_VPT_BENCH_H

#include <stdint.h>

#include "vpt/vpt.h"

/* cffi: begin */

/* ---- bench: what the scenarios of `vpt bench` run at full speed, without Python in the loop ---- */

struct vpt_bench_copy {
	uint32_t frame_len;        /* bytes, 60..1514 */
	uint32_t flows;            /* distinct destination addresses sent to, 1..65535 */
	uint64_t packets;          /* to be received */
	uint64_t ns;               /* out: from the first sent to the last received */
	uint64_t sent;             /* out */
	uint64_t received;         /* out */
	uint64_t bad;              /* out: frames that were not what had been sent */
};
/* Send from one app port and drain the other in the calling thread until `packets` arrived; -ETIMEDOUT after 10 s without one. */
int vpt_bench_copy(vpt_app *from, vpt_app *to, struct vpt_bench_copy *b);  /* any thread */
/* The same bytes by plain memcpy over buffers laid out as the two rings'; ns in b->ns. */
int vpt_bench_memcpy(struct vpt_bench_copy *b);                            /* any thread */

/* ---- bench: packets at a steady rate from one vhost-user device to another, through any back-end ---- */

/* A split ring that a front-end in this process has set up, without EVENT_IDX. Host addresses. */
struct vpt_bench_vq_ring {
	uint64_t desc;
	uint64_t avail;
	uint64_t used;
	uint64_t buffers;          /* num of them, one behind the other */
	uint64_t buffers_gpa;
	uint32_t buffer_size;
	uint32_t num;
	int32_t kick_fd;
	uint32_t seen;             /* used index up to which all has been looked at; 0 with a new ring, then kept */
};
struct vpt_bench_vq {
	struct vpt_bench_vq_ring tx; /* of one device */
	struct vpt_bench_vq_ring rx; /* of the other */
	uint8_t dst[6];
	uint8_t src[6];
	uint32_t frame_len;        /* bytes, 60..1514 */
	uint64_t gap_ns;           /* from packet to packet */
	uint64_t packets;
	uint64_t latency_ns;       /* address of that many uint64_t: of those that arrived, in the order in which they did */
	uint64_t received;         /* out */
	uint64_t kicks;            /* out */
	uint64_t late;             /* out: packets sent more than a gap after their time */
};
/*
 * Be the driver of both rings in the calling thread until all packets came or 2 s passed after the last was sent. -ETIMEDOUT: the
 * back-end took none for 2 s.
 */
int vpt_bench_vq(struct vpt_bench_vq *b);

/* ---- bench: a producer and a consumer on two CPUs, the subject of the notification model ---- */

enum vpt_pc_notify {
	VPT_PC_EVENTFD = 1,
	VPT_PC_FUTEX = 2,
	VPT_PC_EMULATED = 3        /* costs as given by notify_*_ns and start_*_ns; nobody sleeps in the kernel */
};

struct vpt_bench_pc_side {
	uint64_t notifications;    /* sent to the other side */
	uint64_t notify_ns;        /* spent on sending them */
	uint64_t first_notified;   /* item that caused the first of them */
	uint64_t last_notified;    /* and the last: whole cycles lie between */
	uint64_t wishes;           /* times it asked to be told */
	uint64_t blocks;           /* times it slept until told: nothing had come when it looked again */
	uint64_t starts;           /* blocks ended by a notification whose end is known */
	uint64_t start_ns;         /* from the end of those notifications until it worked again, sum */
	uint64_t sleeps;           /* policy sleep: times it slept sleep_ns */
	uint64_t idle_ns;          /* blocked or sleeping */
	uint64_t late;             /* blocks that ended by the time limit of 1 s with work there: a lost wake-up */
	uint64_t cpu_ns;
	uint64_t preempted;        /* involuntary context switches: somebody else wanted the CPU */
	uint64_t stalls;           /* times that looking at the clock again took a microsecond or more */
	uint64_t stalled_ns;       /* what they took: the CPU was with others, the host's guests included */
};

struct vpt_bench_pc {
	uint32_t policy;           /* enum vpt_policy_kind, of both sides */
	uint32_t notify_by;        /* enum vpt_pc_notify */
	uint32_t length;           /* items the queue holds, 2..65536 */
	uint32_t notify_after;     /* items consumed before a waiting producer is told, 1..length */
	int32_t cpu_producer;      /* -1: any */
	int32_t cpu_consumer;
	uint32_t realtime;         /* SCHED_FIFO; needs two different CPUs */
	uint32_t samples;          /* latencies wanted in latency_ns */
	uint32_t start_samples;    /* starts wanted in start_ns, of each side: consumer's, then producer's */
	uint32_t batch_samples;    /* items from one notification to the next wanted in batches, likewise, by who sent them */
	uint64_t sample_every;     /* items between them */
	uint64_t warmup;           /* items before counting starts */
	uint64_t items;            /* items counted */
	uint64_t work_p_ns;        /* per item; no time given may exceed 1 s */
	uint64_t work_c_ns;
	uint64_t notify_p_ns;      /* emulated: what notifying takes the producer */
	uint64_t notify_c_ns;
	uint64_t start_p_ns;       /* emulated: what the producer takes to start after a notification */
	uint64_t start_c_ns;
	uint64_t spin_ns;          /* adaptive */
	uint64_t sleep_ns;         /* sleep */
	uint64_t ns;               /* out: for `items` at the consumer */
	uint64_t latency_sum_ns;   /* out: from the start of an item's production to the end of its consumption */
	uint64_t latency_max_ns;   /* out */
	uint64_t bad;              /* out: items that were not the next one */
	struct vpt_bench_pc_side producer; /* out */
	struct vpt_bench_pc_side consumer; /* out */
};
/* Runs until all items have passed. -EINVAL values; -EPERM realtime; others from pthread_create() and eventfd(). */
int vpt_bench_pc(struct vpt_bench_pc *b, uint64_t *latency_ns, uint64_t *start_ns, uint64_t *batches); /* any thread */

/* Litmus of the two fence halves: rounds by two threads on two CPUs; returns lost wake-ups. fence 0: compiled out. */
int64_t vpt_bench_litmus(uint64_t rounds, int fence, int cpu_a, int cpu_b); /* any thread */

/*
 * Picoseconds that a cache line takes from one CPU to another: half of a round there and back, in the best of 2 or more blocks
 * of 256 rounds, the first left out. -EINVAL: fewer blocks, the same CPU twice, or one that can't be had.
 */
int64_t vpt_bench_line(uint32_t blocks, int cpu_a, int cpu_b); /* any thread */

/* cffi: end */

#endif /* VPT_VPT_BENCH_H */
