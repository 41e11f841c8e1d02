/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * vpt.h - public API of the data plane
 *
 * Threads. Everything here is called by one control thread at a time (the caller serializes); no function is called
 * by a worker. Exceptions are named "any thread": they touch only what the handle owns (vpt_app_*) or are pure. A
 * function that says "waits for workers" blocks for one loop of the busiest worker at most (microseconds).
 *
 * Errors. Functions return 0 or a count, or a negative errno. Handles come back through `out`, which is untouched on error.
 *
 * File descriptors. The library duplicates each fd it keeps; those passed in stay the caller's. An fd that a function
 * returns is the caller's to close.
 *
 * The declarations between the cffi marks are what Python sees: backend_c/cffi_build.py reads them from here, so there is
 * no second copy.
 */
#ifndef VPT_VPT_H
#define VPT_VPT_H

#include <stdint.h>

#include "vpt/abi.h"

/* cffi: begin */

typedef struct vpt_engine vpt_engine;
typedef struct vpt_switch vpt_switch;
typedef struct vpt_port vpt_port;
typedef struct vpt_app vpt_app;
typedef struct vpt_capture vpt_capture;
typedef struct vpt_capture_reader vpt_capture_reader;

enum vpt_kind {
	VPT_KIND_PASSTHROUGH = 1,  /* region shared with a guest */
	VPT_KIND_APP = 2,          /* region shared with a host process */
	VPT_KIND_VHOST_USER = 3,
	VPT_KIND_TAP = 4,
	VPT_KIND_NULL = 5          /* sink; counts, and with VPT_PORT_TOUCH reads each byte */
};

enum vpt_policy_kind {
	VPT_POLICY_POLL = 1,       /* spin */
	VPT_POLICY_SLEEP = 2,      /* sleep sleep_us when idle; the peer never kicks */
	VPT_POLICY_NOTIFY = 3,     /* arm and sleep as soon as idle */
	VPT_POLICY_ADAPTIVE = 4    /* as notify, but spin spin_us before, unless that was in vain lately */
};

struct vpt_policy {
	uint32_t kind;             /* enum vpt_policy_kind */
	uint32_t spin_us;          /* adaptive: 0..1000000 */
	uint32_t sleep_us;         /* sleep: 1..1000000 */
};

/* ---- engine: workers, events, counters ---- */

struct vpt_engine_opts {
	uint32_t workers;          /* 1..VPT_MAX_WORKERS */
	int32_t cpus[32];          /* CPU of each worker, -1: any */
	int32_t stats_fd;          /* file to keep the counters in (truncated to size), -1: an anonymous memfd */
};

int vpt_engine_open(const struct vpt_engine_opts *opts, vpt_engine **out);
/* Stops and frees all switches, ports and workers. vpt_app handles stay valid and are freed on their own. */
void vpt_engine_close(vpt_engine *e);
/* Move the counters somewhere else is not possible; this is the fd they live in (the engine's own: do not close). */
int vpt_engine_stats_fd(const vpt_engine *e);
/*
 * Take nothing from any port, or go on. What is in the rings waits meanwhile: for a daemon that comes back, until all its
 * ports are there to forward to, and for one that ends. Waits for workers.
 */
int vpt_engine_hold(vpt_engine *e, int hold);

enum vpt_event_type {
	VPT_EVENT_NONE = 0,
	VPT_EVENT_BROKEN = 1,      /* a port was taken down; reason says why */
	VPT_EVENT_STATUS = 2       /* a ring port's peer rang the CFG doorbell: call vpt_port_ring_status() */
};

/* Why a port was taken down. Each has a counter of the same name: vpt_reason_name(). */
enum vpt_reason {
	VPT_REASON_NONE = 0,
	VPT_REASON_BAD_INDEX = 1,  /* ring index outside the ring, or more entries than the ring has */
	VPT_REASON_BAD_DESC = 2,   /* descriptor index, flags or chain that the spec forbids */
	VPT_REASON_BAD_ADDR = 3,   /* descriptor address outside the shared memory */
	VPT_REASON_LOOP = 4,       /* descriptor chain that does not end */
	VPT_REASON_SIGBUS = 5,     /* shared memory vanished (file shrunk) */
	VPT_REASON_BAD_SLOT = 6,   /* netmap slot with a buffer index or length outside the region */
	VPT_REASON_IO = 7,         /* a tap's or notification fd failed */
	VPT_REASON_COUNT = 8
};
const char *vpt_reason_name(uint32_t reason);                              /* any thread */

struct vpt_event {
	uint32_t type;             /* enum vpt_event_type */
	uint32_t port_id;          /* vpt_port_id() */
	uint32_t reason;           /* enum vpt_reason */
	uint32_t queue;            /* queue pair it was seen on, */
	uint32_t rx;               /* and whether on its receive queue */
	uint64_t detail;           /* the offending value: index, address, ... */
};

/* Readable when an event is waiting. The engine's own: do not close. */
int vpt_engine_event_fd(const vpt_engine *e);
/* 1 and *ev filled in, or 0. Events of one port keep their order; a port reports BROKEN once until it is revived. */
int vpt_engine_next_event(vpt_engine *e, struct vpt_event *ev);

/* ---- counters: layout of the stats file, read without asking ---- */

enum vpt_counter {
	/* from the peer ("tx"); one writer: the worker that serves the queue */
	VPT_C_TX_PACKETS, VPT_C_TX_BYTES, VPT_C_TX_BATCHES,
	VPT_C_TX_KICKS,                    /* doorbells received: sum of the eventfd's values */
	VPT_C_TX_KICKS_SUPPRESSED,         /* bursts taken that no doorbell announced */
	VPT_C_TX_INTERRUPTS,               /* "there is room again" sent to the peer */
	VPT_C_TX_INTERRUPTS_SUPPRESSED,    /* bursts given back that the peer did not want to hear of */
	VPT_C_TX_BLOCKED,                  /* lossless: bursts left in the ring for want of room at the destination, or by a rate */
	VPT_C_TX_DROP_RUNT,                /* shorter than an Ethernet header */
	VPT_C_TX_DROP_OVERSIZE,            /* longer than 64 KiB, or than MTU without segmentation offload */
	VPT_C_TX_DROP_BAD_HEADER,          /* vnet header: checksum or segmentation fields that lie */
	VPT_C_TX_DROP_SPOOFED,             /* source address is multicast, zero, another port's own, or not the port's only one */
	VPT_C_TX_DROP_NO_DEST,             /* would leave through the port it came from */
	VPT_C_TX_DROP_DISABLED,            /* vhost-user: ring started but disabled */
	VPT_C_TX_MAC_LIMIT,                /* source address not learned: the port has its share of the table */
	VPT_C_TX_DROP_VLAN,                /* its VLAN is not the port's to send in */
	VPT_C_TX_DROP_ISOLATED,            /* from one isolated port to another */
	VPT_C_TX_DROP_RATE,                /* the port's rate limit */
	VPT_C_TX_DROP_STORM,               /* the port's limit for broadcast, multicast or unknown destinations */
	VPT_C_TX_SPARE0, VPT_C_TX_SPARE1, VPT_C_TX_SPARE2, VPT_C_TX_SPARE3, VPT_C_TX_SPARE4,
	/* toward the peer ("rx"); one writer at a time: whoever holds the queue's lock */
	VPT_C_RX_PACKETS, VPT_C_RX_BYTES, VPT_C_RX_BATCHES,
	VPT_C_RX_INTERRUPTS,
	VPT_C_RX_INTERRUPTS_SUPPRESSED,    /* passes that put packets there and found the peer awake */
	VPT_C_RX_COPIES,                   /* packet copies made; 1 per packet toward memory */
	VPT_C_RX_DROP_FULL,                /* no room at the peer */
	VPT_C_RX_DROP_DOWN,                /* peer not there, link down, or port broken */
	VPT_C_RX_DROP_TOO_BIG,             /* does not fit what the peer accepts */
	VPT_C_RX_SW_CSUM,                  /* checksums completed in software for this peer */
	VPT_C_RX_SW_GSO,                   /* packets segmented in software for this peer */
	VPT_C_RX_DROP_RATE,                /* the port's rate limit */
	VPT_C_RX_DROP_VLAN,                /* would arrive without its VLAN's tag and with one that its sender put behind that */
	VPT_C_RX_SPARE0, VPT_C_RX_SPARE1, VPT_C_RX_SPARE2,
	/* breakdowns, by reason; written by the control thread */
	VPT_C_BROKEN,                      /* VPT_C_BROKEN + reason */
	VPT_C_COUNT = 48
};

enum vpt_wcounter {
	VPT_W_LOOPS, VPT_W_BUSY_LOOPS, VPT_W_SLEEPS, VPT_W_WAKES,
	VPT_W_LATE,                        /* work found only when the safety time-out of a sleep ran out: a lost wake-up */
	VPT_W_SYSCALLS,
	VPT_W_SPINS, VPT_W_SPINS_VAIN,     /* adaptive: idle periods that were spun; those in which nothing came meanwhile */
	VPT_W_COUNT
};

const char *vpt_counter_name(uint32_t counter);                            /* any thread; NULL for a spare */
const char *vpt_wcounter_name(uint32_t counter);                           /* any thread */

struct vpt_stats_block {           /* one per port and queue pair */
	uint32_t in_use;           /* 0: free */
	uint32_t port_id;
	uint32_t kind;             /* enum vpt_kind */
	uint32_t queue;
	char port[32];
	char sw[32];
	uint8_t pad[48];
	uint64_t c[48];            /* [VPT_C_COUNT], in 64-byte groups: tx 3, rx 2, broken 1 */
};

struct vpt_stats_worker {
	uint64_t w[8];             /* [VPT_W_COUNT] */
};

struct vpt_stats {
	uint64_t magic;            /* "VPTSTATS" */
	uint32_t version;          /* VPT_STATS_VERSION */
	uint32_t size;             /* bytes of the whole */
	uint32_t pid;
	uint32_t workers;
	uint32_t blocks;
	uint32_t pad;
	uint64_t start_ns;         /* CLOCK_REALTIME */
	uint8_t pad2[24];
	struct vpt_stats_worker worker[32];
	struct vpt_stats_block block[4096];
};

/* Add one to an eventfd that an untrusted process has too; never sleeps, whatever that does to it. Any thread. */
void vpt_eventfd_signal(int fd);

/* ---- switch ---- */

struct vpt_switch_opts {
	char name[32];
	uint32_t mac_entries;      /* table size, a power of two, 64..1048576; 0: 4096 */
	uint32_t mac_age_s;        /* 0: 300 */
};

int vpt_switch_add(vpt_engine *e, const struct vpt_switch_opts *opts, vpt_switch **out);
/* Deletes its ports too. Waits for workers. */
void vpt_switch_del(vpt_switch *sw);
/* From now on; 0: 300. */
int vpt_switch_set_mac_age(vpt_switch *sw, uint32_t mac_age_s);

struct vpt_mac_entry {
	uint8_t mac[6];
	uint16_t vlan;             /* 0: frames without tag; of configured addresses: all */
	uint32_t port_id;
	uint32_t age_s;
};
/* Up to max live entries into *out; returns how many there are. */
int vpt_switch_macs(const vpt_switch *sw, struct vpt_mac_entry *out, uint32_t max);

/* ---- port ---- */

enum vpt_port_flags {
	VPT_PORT_LOSSLESS = 1,     /* no room at the destination: leave it in this port's ring */
	VPT_PORT_TOUCH = 2         /* null: read each byte */
};

struct vpt_port_opts {
	char name[32];
	uint32_t kind;             /* enum vpt_kind */
	uint32_t pairs;            /* queue pairs: rings 1..32, vhost-user 1..128, tap and null 1 */
	int32_t worker;            /* of all its queues; -1: each goes to the worker that has the fewest */
	uint32_t flags;            /* enum vpt_port_flags */
	uint32_t max_macs;         /* addresses it may have in the MAC table; 0: 1024 */
	uint32_t mtu;              /* 68..65535; 0: 1500 */
	uint8_t mac[6];            /* its peer's address; zero: unknown. Nobody else may send from it */
	uint16_t pad;
	struct vpt_policy policy;  /* kind 0: adaptive, 50 us */
};

int vpt_port_add(vpt_switch *sw, const struct vpt_port_opts *opts, vpt_port **out);
/* Waits for workers. */
void vpt_port_del(vpt_port *p);
uint32_t vpt_port_id(const vpt_port *p);          /* unique within the engine, never reused while it lives */
int vpt_port_set_policy(vpt_port *p, const struct vpt_policy *policy);
/* Longest packet that its peer may send, and gets. -EINVAL: not 68..65535; -ENOTSUP: written down in the peer's region. */
int vpt_port_set_mtu(vpt_port *p, uint32_t mtu);
/* Administrative link state. Down: nothing is delivered, nothing taken. Ring peers are told by a CFG interrupt. */
int vpt_port_set_link(vpt_port *p, int up);
/*
 * Send one Ethernet frame in the place of the port's peer: its source address is learned there, and it goes where the switch
 * sends it. No offloads, not counted as the port's. -EINVAL: shorter than a header or longer than the port's frames; -ENETDOWN:
 * link down, or broken; -EPERM: dropped by the port's rules, and that is counted. Waits for the port's worker.
 */
int vpt_port_inject(vpt_port *p, const void *frame, uint32_t len);

struct vpt_heard {
	uint8_t mac[6];
	uint16_t vlan;             /* 0: without tag */
};
/*
 * As if these n addresses had been heard there; returns how many were learned. Left out is what is no unicast address, is in a VLAN
 * that the port does not carry, is another port's own, not this one's only one, or has no room.
 */
int vpt_port_learn(vpt_port *p, const struct vpt_heard *heard, uint32_t n);
/* Forget the addresses that were heard there: whoever sent from them has gone. Those that the port was given stay. */
void vpt_port_forget(vpt_port *p);
/* Up to max addresses that were heard there and are remembered into *out; returns how many there are. */
int vpt_port_macs(const vpt_port *p, struct vpt_mac_entry *out, uint32_t max);

/* ---- what a port may send and gets ---- */

enum vpt_rule_flags {
	VPT_RULE_ISOLATED = 1,     /* exchanges packets only with ports that are not */
	VPT_RULE_ANTI_SPOOFING = 2 /* its peer sends from the port's own address only; needs one */
};

enum vpt_vlan_mode {
	VPT_VLAN_ALL = 0,          /* all VLANs, with their tags; frames without are a network of their own */
	VPT_VLAN_ACCESS = 1,       /* one, without tag: frames with one are dropped, but for priority tags */
	VPT_VLAN_TRUNK = 2         /* those of `vlans` with their tags, and `native` without */
};

/* Token buckets. Each 0: no limit, or a burst of 10 ms that is 128 KiB or 64 packets at least. */
struct vpt_rate {
	uint64_t bits_per_s;       /* of frames, without preamble and checksum; 8000..10^12 */
	uint64_t packets_per_s;    /* 1..10^9; what one segmentation offload carries is one packet */
	uint64_t burst_bytes;      /* up to 2^30 */
	uint64_t burst_packets;    /* up to 2^20 */
};

struct vpt_rules {
	uint32_t flags;            /* enum vpt_rule_flags */
	uint32_t vlan_mode;        /* enum vpt_vlan_mode */
	uint32_t native;           /* access, trunk: VLAN of frames without tag, 1..4094; trunk: 0 takes none */
	uint32_t broadcast;        /* packets per second that its peer may send to everybody; 0: no limit */
	uint32_t multicast;        /* likewise to groups */
	uint32_t unknown;          /* likewise to addresses that the switch has not learned */
	uint64_t vlans[64];        /* trunk: bit VID % 64 of word VID / 64 */
	struct vpt_rate tx;        /* from its peer. Beyond it: dropped; a lossless port's stay in its ring until there are tokens */
	struct vpt_rate rx;        /* toward its peer. Beyond it: dropped, or left with a lossless sender */
};

#define VPT_BROADCAST_PER_S 10000 /* what a new port has, and no other limit */

/* All of a port's rules, while packets flow. -EINVAL: out of range, or anti-spoofing without address. Waits for workers. */
int vpt_port_set_rules(vpt_port *p, const struct vpt_rules *rules);

struct vpt_port_state {
	uint32_t up;               /* the peer is there and its rings run */
	uint32_t reason;           /* enum vpt_reason, not NONE: broken */
	uint64_t features;         /* as negotiated with the peer */
	uint32_t workers;          /* those that serve its queues, a bit each */
	uint32_t peer_status;      /* ring ports: as last mirrored */
	char driver[32];           /* ring ports: what the peer calls itself, made printable */
};
int vpt_port_state(const vpt_port *p, struct vpt_port_state *out);

/* ---- ring ports: passthrough and app ---- */

struct vpt_region_opts {
	char name[32];
	uint32_t pairs;            /* 1..VPT_MAX_PAIRS */
	uint32_t num_slots;        /* VPT_MIN_SLOTS..VPT_MAX_SLOTS; 0: 1024 */
	uint32_t buf_size;         /* multiple of 64; 0: 2112 */
	uint32_t mtu;
	uint8_t mac[6];
	uint16_t pad;
	uint64_t features;         /* to offer; 0: all that vpt has */
};

/* Bytes of the region that these options give, a power of two. Pure. */
int64_t vpt_region_size(const struct vpt_region_opts *opts);               /* any thread */
/* A sealed memfd (no shrinking, no growing) with header and empty rings; returns the fd. */
int vpt_region_create(const struct vpt_region_opts *opts);                 /* any thread */

/*
 * Serve a region. opts are those it was created with: they, not the region's header, say where things are.
 * kick_fds and intr_fds are VPT_VEC_COUNT(pairs) eventfds each. A region whose peer is already at DRIVER_OK (a daemon that
 * came back) is resumed where its indices say. Waits for workers.
 *  -EINVAL opts; -EBADF an fd is not an eventfd, or region_fd too small or not sealed; -EBUSY attached already.
 */
int vpt_port_ring_attach(vpt_port *p, int region_fd, const struct vpt_region_opts *opts, const int32_t *kick_fds,
			 const int32_t *intr_fds);
/* Act on the peer's status word: reset, start, stop; revives a broken port on reset. Waits for workers. */
int vpt_port_ring_status(vpt_port *p);

/* ---- vhost-user ports. The socket protocol is the caller's; these take what it has validated. ---- */

struct vpt_mem_region {
	uint64_t gpa;
	uint64_t size;
	uint64_t uva;              /* front-end's address, which SET_VRING_ADDR speaks in */
	uint64_t mmap_offset;
	int32_t fd;
	uint32_t pad;
};

/* virtio-net, vhost and ring feature bits that the data plane implements. Pure. */
uint64_t vpt_vhost_features(void);                                         /* any thread */
/*
 * 0, or -EINVAL: bits not offered, or a dependency (virtio 1.2, 5.1.3.1) broken; -EBUSY: rings run, and not only
 * VHOST_F_LOG_ALL would change; -ERANGE: the log that would be in use is too small. Waits for workers.
 */
int vpt_vhost_set_features(vpt_port *p, uint64_t features);
/*
 * Replace, add to, or take from the memory table. All or nothing. Rings that run go on if the new table still
 * holds them; else -EFAULT and nothing is changed. -EINVAL: size 0, wrap-around, misaligned, overlap; -EMEDIUMTYPE: not a memfd
 * or a file on tmpfs or hugetlbfs, whose pages nobody can withhold; -EBADF: the file is too short; -E2BIG: more than VPT_MAX_MEM_REGIONS; -EFBIG: more than VPT_MAX_MEM_BYTES; -ENOENT: no such region; -ERANGE: beyond the log in use; others from
 * mmap(). Waits for workers.
 */
int vpt_vhost_mem_set(vpt_port *p, const struct vpt_mem_region *regions, uint32_t n);
int vpt_vhost_mem_add(vpt_port *p, const struct vpt_mem_region *region);
int vpt_vhost_mem_del(vpt_port *p, const struct vpt_mem_region *region);
uint32_t vpt_vhost_max_mem_regions(void);                                  /* any thread */

struct vpt_inflight {
	uint64_t mmap_size;        /* bytes, from there on */
	uint64_t mmap_offset;      /* multiple of 64 */
	uint32_t queues;           /* 1..256 */
	uint32_t queue_size;       /* 1..32768: descriptors that each queue's region has room for */
	int32_t fd;
	uint32_t pad;
};

/* Bytes that a record for so many queues of so many descriptors takes. Pure. */
uint64_t vpt_vhost_inflight_size(int packed, uint32_t queues, uint32_t queue_size); /* any thread */
/*
 * The record of what is in flight (vhost-user, "Inflight I/O tracking") for rings that are started from now on; NULL: none.
 * It takes precedence over a ring's base. -EINVAL: numbers; -EMEDIUMTYPE: as for
 * memory; -EBADF: no file of that size; -EBUSY: rings run.
 */
int vpt_vhost_inflight_set(vpt_port *p, const struct vpt_inflight *record);

struct vpt_vring {
	uint32_t num;              /* entries, 1..32768; split: a power of two */
	uint32_t base;             /* split: next available index; packed: as SET_VRING_BASE carries it, lower half */
	uint64_t desc_uva;
	uint64_t avail_uva;
	uint64_t used_uva;
	int32_t kick_fd;           /* -1: the host polls */
	int32_t call_fd;           /* -1: nobody listens */
};

/*
 * Ring index: 2*i is the receive queue of pair i, 2*i+1 its transmit queue, as virtio-net numbers them (the peer's
 * receive, so the host writes 2*i and reads 2*i+1).
 * start: -EINVAL num, base, alignment; -EFAULT not in the memory table; -EBADF not an eventfd; -EBUSY runs already; -ERANGE
 *        its used part is beyond the log in use; -EILSEQ the record of what is in flight contradicts itself or the ring.
 *        A transmit ring with a kick_fd that is not enabled is left alone until it is enabled or kicked (vhost-user,
 *        "Starting and stopping rings"), and a kick from before counts for nothing.
 * stop: 0 and *base = where to go on; -ENOENT: was not running. Waits for workers.
 */
int vpt_vhost_vring_start(vpt_port *p, uint32_t index, const struct vpt_vring *ring);
int vpt_vhost_vring_stop(vpt_port *p, uint32_t index, uint32_t *base);
int vpt_vhost_vring_enable(vpt_port *p, uint32_t index, int enable);
/* Replace the notification fds of a running ring. Waits for workers. */
int vpt_vhost_vring_set_kick(vpt_port *p, uint32_t index, int32_t fd);
int vpt_vhost_vring_set_call(vpt_port *p, uint32_t index, int32_t fd);
/*
 * Kicks of this ring may end in a page of the guest's (a host notifier), where nobody hears them: whoever serves it looks now and
 * then, as if it had no kick fd, whatever the port's policy. Until that is taken back, or a reset. Waits for workers.
 */
int vpt_vhost_vring_unheard(vpt_port *p, uint32_t index, int unheard);

/*
 * The dirty log of live migration (VHOST_F_LOG_ALL): a bit for each 4 KiB of guest-physical address space, in a file of the
 * front-end's. While the feature is on, what is written to buffers is marked there, and to a ring's used part if
 * vpt_vhost_vring_log() says so. A log replaces the one before; after that returns, the old one is not written any more. One
 * that comes when the feature is on and rings run already has all pages marked: nobody knows what they wrote. It ends with
 * the feature.
 * log_set: -EINVAL size 0 or wrap-around; -EMEDIUMTYPE as for memory; -EBADF shorter than that; -ERANGE does not reach to the end of memory.
 * log_event: an eventfd to signal when something was marked, -1: none.
 * vring_log: used_gpa is where the log has the used part, which need not be in memory; -ERANGE: beyond the log in use.
 * All wait for workers.
 */
int vpt_vhost_log_set(vpt_port *p, int fd, uint64_t offset, uint64_t size);
int vpt_vhost_log_event(vpt_port *p, int fd);
int vpt_vhost_vring_log(vpt_port *p, uint32_t index, int on, uint64_t used_gpa);
/*
 * A kick that is not by eventfd. Returns when the worker has gone through the port's queues as often as it takes to empty a full
 * ring of these: for front-ends that count on it, not for speed. -ENOENT: the ring does not run.
 */
int vpt_vhost_vring_kick(vpt_port *p, uint32_t index);
/* Stop all rings, forget features, memory, log and breakdown: the state before the first message. Waits for workers. */
int vpt_vhost_reset(vpt_port *p);

/* ---- tap ports ---- */

/* fd of a tap in IFF_TAP | IFF_NO_PI | IFF_VNET_HDR mode, header 12 bytes, offloads as the caller set them. */
int vpt_port_tap_attach(vpt_port *p, int fd, uint64_t features);

/* ---- application side of an app port, in any process. Any thread, one at a time per handle and direction. ---- */

/* Maps the region and starts the handshake (status 0). kick_fds, intr_fds as the host has them. */
int vpt_app_open(int region_fd, const int32_t *kick_fds, const int32_t *intr_fds, uint64_t features, vpt_app **out);
void vpt_app_close(vpt_app *a);
/* Next step of the handshake: 1 ready, 0 call again (after the CFG interrupt fd became readable, or soon), -errno failed. */
int vpt_app_step(vpt_app *a);
uint32_t vpt_app_pairs(const vpt_app *a);
uint64_t vpt_app_features(const vpt_app *a);
int vpt_app_intr_fd(const vpt_app *a, uint32_t vector);
/*
 * Send one packet (without vnet header: hdr NULL, or with, if VPT_F_VNET_HDR was accepted). more: another one follows at
 * once, so publish later. 0, -EAGAIN no room, -EMSGSIZE, -ENOLINK host started over: vpt_app_step() again.
 */
int vpt_app_send(vpt_app *a, uint32_t ring, const struct vpt_vnet_hdr *hdr, const void *frame, uint32_t len, int more);
/* Receive one packet: its length (also when it was longer than cap and cut), -EAGAIN none, -ENOLINK. */
int vpt_app_recv(vpt_app *a, uint32_t ring, struct vpt_vnet_hdr *hdr, void *frame, uint32_t cap);
/* Arm the ring's interrupt and wait: 1 something to receive (or room to send, dir 0), 0 time-out, -errno. */
int vpt_app_wait(vpt_app *a, uint32_t ring, int dir, int timeout_ms);

/* ---- capture: copies of packets for an observer in another process ---- */

enum vpt_capture_direction {
	VPT_CAPTURE_IN = 1,        /* from the port's peer into the switch */
	VPT_CAPTURE_OUT = 2        /* from the switch to the port's peer */
};

/* An instruction of classic BPF, as pcap_compile() makes them for DLT_EN10MB. */
struct vpt_bpf_insn {
	uint16_t code;
	uint8_t jt;
	uint8_t jf;
	uint32_t k;
};

struct vpt_capture_opts {
	uint32_t ring_bytes;       /* for each worker: a power of two, 256 KiB..1 GiB */
	uint32_t snaplen;          /* bytes kept of a packet, 14 at least */
	uint32_t directions;       /* enum vpt_capture_direction; 0: both */
	uint32_t pad;
};

/* Of no port yet. filter: n instructions, 0..4096; 0 lets all pass. -EINVAL: opts, or a program that may not be run. */
int vpt_capture_add(vpt_engine *e, const struct vpt_capture_opts *opts, const struct vpt_bpf_insn *filter, uint32_t n,
		    vpt_capture **out);
/* A sealed memfd, for vpt_capture_open(). The capture's own: do not close. */
int vpt_capture_fd(const vpt_capture *c);
/* Watch a port until one of the two is deleted. Its number as an interface of the capture, or -ENOSPC after 1024. */
int vpt_capture_port(vpt_capture *c, vpt_port *p);
/* Waits for workers. What was captured can still be read. */
void vpt_capture_del(vpt_capture *c);

/* The observer's side, in any process; one thread at a time. -EPROTO: not a capture. fd stays the caller's. */
int vpt_capture_open(int fd, vpt_capture_reader **out);
void vpt_capture_close(vpt_capture_reader *r);
/*
 * Enhanced packet blocks of pcapng, oldest first, times in ns; *packets: at most so many, then how many there are.
 * Bytes; 0: nothing there now; -ENOSPC: the first is longer than cap; -EPROTO.
 */
int64_t vpt_capture_read(vpt_capture_reader *r, void *buf, uint64_t cap, uint64_t *packets);
/* Interfaces that blocks may name, looked up after the blocks were read; lost: packets that found no room. */
uint32_t vpt_capture_interfaces(const vpt_capture_reader *r);
int vpt_capture_interface(const vpt_capture_reader *r, uint32_t i, char name[32], uint64_t *lost);
/* Does a filter match? 1, 0, or -EINVAL: it may not be run. len: of the packet; have: bytes at data. Pure; for tests. */
int vpt_bpf_matches(const struct vpt_bpf_insn *filter, uint32_t n, const void *data, uint32_t len, uint32_t have); /* any thread */

/* ---- generator: what `vpt gen` runs, slice by slice. Any thread, one at a time per handle and direction. ---- */

/*
 * Frames are IPv4/UDP (10.118.x, ports 7000 + flow -> 7000), and begin their payload with a mark, who sends, a sequence
 * number and the time of sending (CLOCK_MONOTONIC), so sender and receiver must be on one host for latencies. The micro
 * guest's, with a mark of their own and the guest's TSC, are received, too: without latencies.
 */
/* When packets came or went; their rate is that of those after the first. */
struct vpt_gen_span {
	uint64_t first;            /* packets that came or went together, first */
	uint64_t first_ns;         /* CLOCK_MONOTONIC: when those did, and the last */
	uint64_t last_ns;
};
struct vpt_gen_tx {
	uint8_t dst[6];
	uint8_t src[6];
	uint32_t sizes[16];        /* frame lengths, 60..1514, sent in turn */
	uint32_t nsizes;           /* 1..16 */
	uint32_t flows;            /* distinct UDP source ports, 1..50000 */
	uint32_t burst;            /* packets published together, 1..256 */
	uint32_t run;              /* who sends: a number at random, so that a receiver takes no two senders for one */
	double pps;                /* packets per second, evenly, 0.001..1e9; 0: as fast as there is room */
	uint64_t packets;          /* to send in all, 0: no end */
	uint64_t sent;             /* from here on state and result: zero before the first slice */
	uint64_t bytes;            /* of frames */
	uint64_t full;             /* times there was no room */
	struct vpt_gen_span span;
	uint64_t due_ns;
	uint64_t paced;            /* packets since paced_ns, from which on they are evenly apart */
	uint64_t paced_ns;
};
/* Send for slice_ns at most. 1: all packets sent; 0: the slice is over; -EINVAL, -ENOLINK, -EPROTO. */
int vpt_gen_send(vpt_app *a, uint32_t ring, struct vpt_gen_tx *g, uint64_t slice_ns);

/* What came of one sender's numbers. */
struct vpt_gen_run {
	uint64_t first;            /* the lowest that came */
	uint64_t next;             /* after the highest that came */
	uint64_t seen[16];         /* a bit for each of the 1024 before next; number n's is bit n % 1024 */
};
struct vpt_gen_rx {
	uint32_t only;             /* vpt_gen_tx.run of the sender to count, from its number 0 on; 0: any, from what comes first on */
	uint32_t nruns;            /* all else is zero before the first slice */
	uint32_t current;          /* run that the latest packet was of */
	uint32_t run[64];          /* vpt_gen_tx.run of each sender */
	struct vpt_gen_run runs[64];
	uint64_t received;         /* of senders that are counted, with duplicates */
	uint64_t untimed;          /* of those: sent by another clock than CLOCK_MONOTONIC, so that they have no latency */
	uint64_t bytes;
	uint64_t other;            /* packets without our mark, and of senders that are not counted */
	uint64_t lost;             /* numbers between a sender's lowest and highest that have not come */
	uint64_t late;             /* came after a higher number; 1024 after it or more: stays counted as lost, too */
	uint64_t duplicate;        /* came again */
	struct vpt_gen_span span;
	struct vpt_gen_span other_span;
	uint64_t latency_min_ns;
	uint64_t latency_max_ns;
	/* Histogram: below 16 ns one bucket each, above it 16 per power of two, so 6% wide (as HdrHistogram). */
	uint64_t latency[1024];
};
/* Receive for slice_ns at most; sleeps when nothing comes, or spins if poll. 0; -ENOLINK, -EPROTO. */
int vpt_gen_recv(vpt_app *a, uint32_t ring, struct vpt_gen_rx *g, uint64_t slice_ns, int poll);
/* Smallest latency that bucket i of the histogram stands for, in ns. Pure. */
uint64_t vpt_gen_bucket_ns(uint32_t i);                                    /* any thread */

/* Software offload on a packet in memory, as the switch does it; for tests and fuzzing. Frames go to out, each preceded by
 * its u32 length; returns bytes written, -EINVAL header that lies, -ENOSPC. accepts: VPT_F_GUEST_* of the receiver. */
int64_t vpt_offload_frames(const struct vpt_vnet_hdr *hdr, const void *frame, uint32_t len, uint64_t accepts, void *out,
			   uint64_t cap);                                  /* any thread */

/* cffi: end */

#define VPT_MAX_WORKERS 32u
#define VPT_MAX_MEM_REGIONS 512u
#define VPT_MAX_MEM_BYTES (4ull << 40) /* of one port: a sparse file costs nothing, and addresses, 128 TiB, are for all ports */
#define VPT_MAX_VRINGS 256u
#define VPT_MAX_RING 32768u
#define VPT_STATS_MAGIC 0x5354415453545056ull
#define VPT_STATS_VERSION 2u

#endif /* VPT_VPT_H */
