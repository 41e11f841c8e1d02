/* SPDX-License-Identifier: BSD-2-Clause */
/* engine.h - the engine and its workers, as the rest of the library sees them */
#ifndef VPTI_ENGINE_H
#define VPTI_ENGINE_H

#include <pthread.h>

#include "port.h"

#define VPTI_MAX_WATCHES 16384u
#define VPTI_NO_RETRY UINT64_MAX

/* What a readable fd of a worker's epoll set means. */
enum vpti_watch_kind { VPTI_WATCH_KICK, VPTI_WATCH_CFG, VPTI_WATCH_DATA };

/**
 * struct vpti_watch - an fd that wakes a worker
 *
 * epoll hands back a number, not a pointer: an event may be on its way to a worker while the control thread removes the fd. The
 * worker resolves the number after it has come online again, so a grace period covers the pointer it gets.
 */
struct vpti_watch {
	enum vpti_watch_kind kind;
	int fd;                    /* owned */
	struct vpti_worker *worker;
	struct vpt_port *port;
	struct vpti_txq *q;        /* KICK, DATA */
	uint32_t id;
};

/* What a worker serves; immutable, replaced as a whole (RCU). */
struct vpti_plan {
	bool poll;                 /* some port wants its worker awake */
	bool has_data_fds;         /* some queue learns of work by epoll only: look there while busy, too */
	uint64_t spin_ns;
	uint64_t sleep_ns;         /* 0: until notified */
	uint32_t n;
	struct vpti_plan_entry {
		struct vpti_txq *q;
		uint32_t mates;    /* of the first of a port's queues, which follow each other: how many they are; of others 0 */
		bool arm;          /* its policy asks for kicks */
	} e[];
};

/* Something that the control thread has a worker do between two rounds, as if a queue of its own had come up. */
struct vpti_chore {
	void (*run)(struct vpti_worker *w, struct vpti_chore *chore);
};

struct vpti_worker {
	struct vpt_engine *engine;
	struct vpti_plan *plan;
	int epoll_fd;
	int wake_fd;
	uint32_t index;
	int cpu;
	bool stop;
	struct vpti_chore *chore;  /* set by the control thread, cleared by the worker when it is done */
	uint32_t tick;             /* seconds since the engine started, coarse */
	uint64_t *w;               /* counters */
	uint64_t retry_ns;         /* how long a sender that waits for tokens is to be left alone; VPTI_NO_RETRY: none waits */
	uint32_t ndirty;
	struct vpti_rxq *dirty[256]; /* rx queues published to in this round */
	struct vpti_burst burst;
	struct vpti_room room;
	struct vpti_offload_scratch offload;
	struct vpti_pass *pass;    /* switch.c's */

	/* control thread only */
	pthread_t thread;
	bool started;
	uint32_t nqueues;
	struct vpti_txq *txqs;
	uint32_t plan_room;        /* queues that plan and spare have room for: nqueues at least */
	struct vpti_plan *spare;   /* what the next plan is made of */
};

struct vpti_events {
	struct vpti_lock lock;
	int fd;
	uint32_t head, tail;
	struct vpt_event e[8192]; /* two types for each of at most 4096 ports: never full */
};

struct vpt_engine {
	uint32_t nworkers;
	struct vpti_worker *worker[VPT_MAX_WORKERS];
	struct vpti_events events;
	uint64_t start_ns;
	struct vpti_watch *watch[VPTI_MAX_WATCHES];

	/* control thread only */
	bool held;
	int stats_fd;
	struct vpt_stats *stats;
	uint32_t next_port_id;
	uint32_t next_watch;
	struct vpt_switch *switches;
	struct vpt_capture *captures;
};

/* worker.c */
int vpti_worker_start(struct vpt_engine *e, uint32_t index, int cpu);
void vpti_worker_stop(struct vpti_worker *w);
int vpti_worker_reserve(struct vpti_worker *w);    /* before a queue is added: room in plans for one more, or -ENOMEM */
void vpti_worker_replan(struct vpti_worker *w);    /* after a change to its queues or policies; waits for workers */
void vpti_worker_do(struct vpti_worker *w, struct vpti_chore *chore); /* control thread: returns when it is done */
void vpti_worker_rounds(struct vpti_worker *w, uint32_t n); /* control thread: wait for n whole rounds, which begin now */
int vpti_watch_add(struct vpti_worker *w, enum vpti_watch_kind kind, int fd, struct vpt_port *port,
		   struct vpti_txq *q, struct vpti_watch **out);   /* duplicates fd */
void vpti_watch_del(struct vpti_watch *watch);     /* waits for workers; NULL is fine */

/* A queue's worker: what is next in it waits for tokens. ns: how long. */
void vpti_worker_wait(struct vpti_worker *w, struct vpti_txq *q, uint64_t ns);

/* Any thread: remember that an rx queue was published to, so that the pass ends with one look at its peer. */
void vpti_worker_dirty(struct vpti_worker *w, struct vpti_rxq *q);

/* events.c */
int vpti_events_init(struct vpti_events *ev);
void vpti_events_fini(struct vpti_events *ev);
void vpti_events_post(struct vpti_events *ev, const struct vpt_event *e);   /* any thread */
void vpti_events_forget(struct vpti_events *ev, uint32_t port_id, uint32_t type);

/* stats.c */
int vpti_stats_open(struct vpt_engine *e, int fd);
void vpti_stats_close(struct vpt_engine *e);
struct vpt_stats_block *vpti_stats_block_new(struct vpt_engine *e);
void vpti_stats_block_free(struct vpt_stats_block *b);

/* Wait until every worker has passed a quiescent point: what was unpublished before is seen by nobody now. */
void vpti_synchronize(void);

#endif /* VPTI_ENGINE_H */
