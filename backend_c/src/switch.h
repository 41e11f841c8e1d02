/* SPDX-License-Identifier: BSD-2-Clause */
/* switch.h - a set of ports and the table that says who is where */
#ifndef VPTI_SWITCH_H
#define VPTI_SWITCH_H

#include "mactable.h"
#include "port.h"

/* Ports to flood to; immutable, replaced as a whole (RCU). */
struct vpti_port_list {
	uint32_t n;
	uint16_t slot[];
};

struct vpt_switch {
	struct vpt_port *port[VPTI_MAX_PORTS]; /* by slot; read by workers */
	struct vpti_port_list *list;
	struct vpti_mactable macs;
	uint32_t vlans;            /* ports with VLANs of their own: 0, and nobody looks at tags */

	/* control thread only */
	struct vpt_engine *engine;
	char name[32];
	struct vpt_port *ports;
	struct vpt_switch *next;
};

struct vpti_pass;
struct vpti_pass *vpti_pass_new(void);
void vpti_pass_free(struct vpti_pass *pass);

/* One burst from one queue through the switch. Returns the number of packets taken. Worker. */
uint32_t vpti_switch_forward(struct vpti_worker *w, struct vpti_txq *q);

#endif /* VPTI_SWITCH_H */
