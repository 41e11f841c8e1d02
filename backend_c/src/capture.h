/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * capture.h - copies of a port's packets for an observer (`vpt capture`)
 *
 * A port that is watched has a list of taps, which workers look at once per burst; one that is not has none, and costs one
 * test. A worker writes what it captures, as blocks of pcapng, to a ring of its own in a memfd; the observer, another
 * process, empties it. Nobody waits: what finds no room is counted.
 */
#ifndef VPTI_CAPTURE_H
#define VPTI_CAPTURE_H

#include "port.h"

#define VPTI_CAPTURE_MAGIC 0x5041435354505655ull
#define VPTI_CAPTURE_INTERFACES 1024u

/**
 * struct vpti_capture_ring - one worker's ring; positions run freely, in bytes
 * @head:	the worker's: up to where there are blocks
 * @tail:	the observer's: up to where it has read. Hostile to the worker, as all that the observer can write
 *
 * The blocks are whole: one that would run over the end begins at the start, and VPTI_CAPTURE_SKIP stands where it would have.
 */
struct vpti_capture_ring {
	uint64_t head;
	uint8_t pad[56];
	uint64_t tail;
	uint8_t pad2[56];
};

#define VPTI_CAPTURE_SKIP 0u /* in the place of a block's type, which is never 0 */

struct vpti_capture_interface {
	char name[32];             /* the port's */
	uint64_t lost;             /* packets that found no room in a ring; added to by all workers */
	uint64_t pad[3];
};

/* The memfd: this, then a ring's bytes for each worker. */
struct vpti_capture_shm {
	uint64_t magic;
	uint32_t size;             /* of this structure */
	uint32_t rings;
	uint32_t ring_bytes;       /* a power of two */
	uint32_t interfaces;       /* how many are filled in; grows */
	uint8_t pad[40];
	struct vpti_capture_ring ring[VPT_MAX_WORKERS];
	struct vpti_capture_interface interface[VPTI_CAPTURE_INTERFACES];
};

/* One port in one capture. */
struct vpti_tap {
	struct vpti_tap *next;
	struct vpt_capture *capture;
	uint32_t interface;
};

/* Worker: the first n packets of a burst that the port's peer sent, dropped ones with their cause. */
void vpti_capture_sent(struct vpti_worker *w, const struct vpt_port *p, struct vpti_burst *b, uint32_t n);
/* Worker: before packets are delivered to a watched port. What became of them at other ports is forgotten. */
void vpti_capture_deliver(struct vpti_pkt *const *pkt, uint32_t n);
/* Worker: and after. Those refused one by one have their cause; the last `lost` were dropped for `cause`. */
void vpti_capture_delivered(struct vpti_worker *w, const struct vpt_port *p, struct vpti_pkt *const *pkt, uint32_t n,
			    uint32_t lost, enum vpt_counter cause);

/* Control thread: no capture knows the port any more, or any port. The first waits for workers. */
void vpti_port_untap(struct vpt_port *p);
void vpti_captures_free(struct vpt_engine *e);

#endif /* VPTI_CAPTURE_H */
