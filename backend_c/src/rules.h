/* SPDX-License-Identifier: BSD-2-Clause */
/* rules.h - what a port may send: VLANs and rate, between taking a burst and looking up where it goes */
#ifndef VPTI_RULES_H
#define VPTI_RULES_H

#include "port.h"

/* Each packet's VLAN; what the port does not carry is dropped. Worker. */
void vpti_admit_vlans(struct vpti_txq *q, struct vpti_burst *b);

/**
 * vpti_admit_rate() - How much of a burst the port's rate lets pass
 *
 * What is beyond it is dropped, or if the port is lossless waits, and its queue with it. Takes no tokens: what is not delivered
 * in the end is taken again. Worker.
 *
 * Return: number of packets to go on with
 */
uint32_t vpti_admit_rate(struct vpti_worker *w, struct vpti_txq *q, struct vpti_burst *b);

/* The tokens for the first n packets of the burst. */
void vpti_charge_rate(struct vpti_txq *q, const struct vpti_burst *b, uint32_t n);

/* Control thread: a new port has these; a port that goes has none. */
void vpti_rules_init(struct vpt_port *p);
void vpti_rules_fini(struct vpt_port *p);

#endif /* VPTI_RULES_H */
