/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * port.h - what a port is to a worker and to the switch: two small tables of operations
 *
 * Threads. A txq is touched by its worker only; an rxq by any worker, under its lock where it matters. The control thread changes
 * either only while it is not live: it clears `live`, waits for all workers to pass a quiescent point (liburcu QSBR), and
 * then has it for itself.
 */
#ifndef VPTI_PORT_H
#define VPTI_PORT_H

#include <stdbool.h>

#include "bucket.h"
#include "lease.h"
#include "offload.h"
#include "pkt.h"
#include "util.h"
#include "vlan.h"
#include "vpt/vpt.h"

#define VPTI_MAX_PORTS 1024u      /* of one switch */
#define VPTI_BURST 64u            /* packets taken from a queue at a time */
#define VPTI_BURST_FRAGS 2048u    /* fragments of all of them */
#define VPTI_ROOM_FRAGS 4096u     /* destination fragments of one delivery */
#define VPTI_DELIVER 256u         /* packets delivered at a time: a burst, or some segments of one */

/* What a port's peer may send to many: to everybody, to groups, to whom the switch does not know. */
enum vpti_storm { VPTI_STORM_BROADCAST, VPTI_STORM_MULTICAST, VPTI_STORM_UNKNOWN, VPTI_STORMS };

#define VPTI_DST_FLOOD 0xffffu
#define VPTI_DST_DROP 0xfffeu

struct vpt_engine;
struct vpti_tap;
struct vpti_worker;
struct vpti_txq;
struct vpti_rxq;

/* A burst of packets, in place. cookie is the queue's own note on each, for release(). */
struct vpti_burst {
	uint32_t n;
	uint32_t nfrag;
	struct vpti_pkt pkt[VPTI_BURST];
	uint32_t cookie[VPTI_BURST];
	struct vpti_frag frag[VPTI_BURST_FRAGS];
};

/* Room reserved at a destination: runs of writable bytes; packet i has runs [first[i], first[i + 1]). */
struct vpti_run {
	uint8_t *p;
	uint32_t len;
};

/* A chain of a packed ring that is to be marked used, once its buffers are filled: where, and what is written there. */
struct vpti_used_mark {
	uint64_t half;
	uint32_t position;
};

struct vpti_room {
	uint32_t nrun;
	uint32_t nused;
	struct vpti_run run[VPTI_ROOM_FRAGS];
	uint32_t first[VPTI_DELIVER + 1];
	uint16_t nbuf[VPTI_DELIVER]; /* buffers a packet got: virtio's num_buffers */
	struct vpti_used_mark used[VPTI_ROOM_FRAGS];
};

/**
 * struct vpti_txq_ops - the peer transmits, one worker takes
 * @take:	fill a burst with what the peer has published, without giving anything back; entries that are not to be forwarded have
 *		dst VPTI_DST_DROP. Malformed input: vpti_txq_break() and what was good so far
 * @release:	give the first n packets of the burst back to the peer (n may be less than taken: the rest is taken again)
 * @arm:	C1 of notify.h: ask for a kick on the next packet
 * @pending:	C3: is there anything to take?
 * @disarm:	no kicks please, the worker is awake
 * @notify:	P3: tell the peer about what was released, if it wants to know
 */
struct vpti_txq_ops {
	void (*take)(struct vpti_txq *q, struct vpti_burst *b);
	void (*release)(struct vpti_txq *q, const struct vpti_burst *b, uint32_t n);
	void (*arm)(struct vpti_txq *q);
	bool (*pending)(struct vpti_txq *q);
	void (*disarm)(struct vpti_txq *q);
	void (*notify)(struct vpti_txq *q);
};

/**
 * struct vpti_rxq_ops - any worker delivers to the peer
 * @deliver:	copy the packets there and publish; the number of them that found room (a prefix) or were dropped for good.
 *		Counts what it delivers and what can never fit; the caller counts the rest
 * @notify:	P3: interrupt the peer if it wants to hear of what was published
 */
struct vpti_rxq_ops {
	uint32_t (*deliver)(struct vpti_rxq *q, struct vpti_room *room, struct vpti_pkt *const *pkt, uint32_t n);
	void (*notify)(struct vpti_rxq *q);
};

struct vpti_txq {
	const struct vpti_txq_ops *ops;
	struct vpt_port *port;
	struct vpti_worker *worker; /* who serves it */
	uint64_t *c;               /* counters of its stats block */
	uint32_t index;
	bool live;                 /* control thread: in the worker's plan */
	bool polled;               /* the peer has no way to kick: look now and then */
	bool discard;              /* vhost-user: started but disabled, consume and drop */
	bool aside;                /* vhost-user: ... and not kicked since: what is in it may be meant for when it is enabled */
	bool armed;                /* a kick has been asked for */
	bool kicked;               /* a doorbell came since the last burst */
	bool ready;                /* DATA watch: the fd has something to read */
	bool dirty;                /* released something this pass */
	bool waiting;              /* what is next has to wait for tokens: nothing to look at until w->retry_ns has passed */
	uint32_t turn;             /* of the first of a port's queues: which of them is served next */
	uint32_t resume;           /* lossless: segments of its first packet that the destination has already got */
	uint64_t last_src;         /* source address learned last, and when: skips the table for a run of packets */
	uint32_t last_tick;
	struct vpti_txq *next;     /* worker's list, control thread only */
} __attribute__((aligned(64)));

struct vpti_rxq {
	const struct vpti_rxq_ops *ops;
	struct vpt_port *port;
	uint64_t *c;
	uint32_t index;
	bool live;
	bool shared;               /* the engine has several workers */
	struct vpti_lock lock;
	struct vpti_leases leases;
} __attribute__((aligned(64)));

/**
 * struct vpti_kind_ops - what differs between kinds for the control thread
 * @init:	allocate queues; opts are checked
 * @fini:	free all; no queue is live any more
 * @broken:	the port was taken down and its queues are stopped: tell the peer, if there is a way
 * @link:	the administrative link state changed
 * @state:	add what only this kind knows
 */
struct vpti_kind_ops {
	int (*init)(struct vpt_port *p);
	void (*fini)(struct vpt_port *p);
	void (*broken)(struct vpt_port *p);
	void (*link)(struct vpt_port *p);
	void (*state)(const struct vpt_port *p, struct vpt_port_state *out);
};

struct vpt_port {
	/* read by workers */
	struct vpt_switch *sw;
	struct vpt_engine *engine;
	struct vpti_rxq **rxq;     /* opts.pairs of them */
	uint64_t accepts;          /* VPT_F_GUEST_*: offloads its peer takes */
	uint64_t sends;            /* VPT_F_CSUM, VPT_F_HOST_*: offloads its peer may use */
	uint32_t max_len;          /* longest unsegmented frame its peer takes or sends */
	uint32_t broken;           /* enum vpt_reason; set by the worker that saw it */
	uint32_t sigbus;           /* set by the signal handler */
	uint32_t status_event;     /* a VPT_EVENT_STATUS is queued */
	uint16_t slot;             /* in the switch's table */
	bool link;
	bool lossless;
	struct vpti_tap *taps;     /* RCU; NULL unless somebody watches */
	bool isolated;
	uint64_t only_mac;         /* anti-spoofing: the source address it may use; 0: any */
	const struct vpti_vlans *vlans; /* RCU */
	struct vpti_rate tx;       /* from the peer; any worker takes tokens of any of these */
	struct vpti_rate rx;       /* toward the peer */
	struct vpti_bucket storm[VPTI_STORMS];

	/* control thread only */
	uint32_t id;
	bool up;
	bool broken_told;
	uint64_t features;
	struct vpti_txq **txq;
	struct vpti_worker *worker; /* of the first queue */
	uint32_t workers;          /* of all queues, a bit each */
	const struct vpti_kind_ops *kind;
	struct vpt_port_opts opts;
	struct vpt_port *next;
	void *priv;                /* the kind's */
};

/* port.c */
int vpti_queue_new(struct vpt_port *p, uint32_t index, size_t txq_size, size_t rxq_size);
void vpti_queues_free(struct vpt_port *p);
void vpti_txq_start(struct vpti_txq *q);
void vpti_txq_stop(struct vpti_txq *q);            /* waits for workers */
void vpti_rxq_start(struct vpti_rxq *q);
void vpti_rxq_stop(struct vpti_rxq *q);            /* waits for workers */
void vpti_port_stop(struct vpt_port *p);           /* all queues; waits for workers */
void vpti_port_replan(struct vpt_port *p);          /* of all that serve it, after a change; waits for workers */
void vpti_port_revive(struct vpt_port *p);

/* Any worker: take a port down, for what was seen on this queue of it. The first reason wins. */
void vpti_txq_break(struct vpti_txq *q, uint32_t reason, uint64_t detail);
void vpti_rxq_break(struct vpti_rxq *q, uint32_t reason, uint64_t detail);

/* Control thread, once per breakdown: stop the queues, count, tell the peer. */
void vpti_port_taken_down(struct vpt_port *p);

/* Is it worth looking at? Workers. */
static inline bool vpti_port_runs(const struct vpt_port *p)
{
	return vpti_likely(!VPTI_READ(p->broken) && VPTI_READ(p->link));
}

/*
 * For what workers share of an rxq. An only worker takes no lock: the exchange would wait until all that it has written to the
 * peer's memory is in the cache, twice per delivery.
 */
static inline void vpti_rxq_lock(struct vpti_rxq *q)
{
	if (q->shared)
		vpti_lock(&q->lock);
}

static inline void vpti_rxq_unlock(struct vpti_rxq *q)
{
	if (q->shared)
		vpti_unlock(&q->lock);
}

/* After touching a peer's memory: did any of it vanish? */
static inline void vpti_txq_check_memory(struct vpti_txq *q)
{
	if (vpti_unlikely(VPTI_READ(q->port->sigbus)))
		vpti_txq_break(q, VPT_REASON_SIGBUS, 0);
}

static inline void vpti_rxq_check_memory(struct vpti_rxq *q)
{
	if (vpti_unlikely(VPTI_READ(q->port->sigbus)))
		vpti_rxq_break(q, VPT_REASON_SIGBUS, 0);
}

extern const struct vpti_kind_ops vpti_kind_ring, vpti_kind_vhost, vpti_kind_tap, vpti_kind_null;

#endif /* VPTI_PORT_H */
