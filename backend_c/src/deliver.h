/* SPDX-License-Identifier: BSD-2-Clause */
/* deliver.h - the second walk of a pass, for one destination (switch.c has the first) */
#ifndef VPTI_DELIVER_H
#define VPTI_DELIVER_H

#include "port.h"

/* Packets dropped on the way to a queue, by any worker; the counters belong to whoever holds the queue's lock. */
void vpti_count_rx(struct vpti_rxq *q, enum vpt_counter which, uint32_t n);

/**
 * vpti_deliver() - Packets of one burst to one destination, in the order sent
 * @from:	queue they came from
 * @tagged:	there are VLANs on the switch: the destination's tags are put in
 * @may_wait:	the sender is lossless, and what finds no room stays with it; else it is dropped and counted
 *
 * Worker. Return: number of packets of the list dealt with; less than n only if may_wait
 */
uint32_t vpti_deliver(struct vpti_worker *w, struct vpti_txq *from, struct vpt_port *to, struct vpti_pkt **list, uint32_t n,
		      bool tagged, bool may_wait);

#endif /* VPTI_DELIVER_H */
