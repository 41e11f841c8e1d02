/* SPDX-License-Identifier: BSD-2-Clause */
/* events.c - what workers have to say to the control thread; they never call it, they never wait for it */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "engine.h"
#include "fd.h"
#include "switch.h"

int vpti_events_init(struct vpti_events *ev)
{
	memset(ev, 0, sizeof(*ev));
	ev->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return ev->fd < 0 ? -errno : 0;
}

void vpti_events_fini(struct vpti_events *ev)
{
	vpti_fd_close(&ev->fd);
}

void vpti_events_post(struct vpti_events *ev, const struct vpt_event *e)
{
	vpti_lock(&ev->lock);
	ev->e[ev->head++ % VPTI_ARRAY_SIZE(ev->e)] = *e; /* a port has at most one of each type in here: there is room */
	vpti_unlock(&ev->lock);
	vpti_eventfd_signal(ev->fd);
}

/* Take one; the fd stays readable while there are more. */
static bool take(struct vpti_events *ev, struct vpt_event *e)
{
	bool found;

	vpti_lock(&ev->lock);
	found = ev->head != ev->tail;
	if (found)
		*e = ev->e[ev->tail++ % VPTI_ARRAY_SIZE(ev->e)];
	else
		vpti_eventfd_take(ev->fd);
	vpti_unlock(&ev->lock);
	return found;
}

void vpti_events_forget(struct vpti_events *ev, uint32_t port_id, uint32_t type)
{
	uint32_t i;

	vpti_lock(&ev->lock);
	for (i = ev->tail; i != ev->head; i++) {
		struct vpt_event *e = &ev->e[i % VPTI_ARRAY_SIZE(ev->e)];

		if (e->port_id == port_id && e->type == type)
			e->type = VPT_EVENT_NONE;
	}
	vpti_unlock(&ev->lock);
}

int vpt_engine_event_fd(const vpt_engine *e)
{
	return e->events.fd;
}

static struct vpt_port *port_by_id(struct vpt_engine *e, uint32_t id)
{
	struct vpt_switch *sw;
	struct vpt_port *p;

	for (sw = e->switches; sw; sw = sw->next) {
		for (p = sw->ports; p; p = p->next) {
			if (p->id == id)
				return p;
		}
	}
	return NULL;
}

int vpt_engine_next_event(vpt_engine *e, struct vpt_event *ev)
{
	while (take(&e->events, ev)) {
		struct vpt_port *p = port_by_id(e, ev->port_id);

		if (ev->type == VPT_EVENT_NONE || !p)
			continue;
		if (ev->type == VPT_EVENT_STATUS)
			VPTI_WRITE(p->status_event, 0);
		if (ev->type == VPT_EVENT_BROKEN)
			vpti_port_taken_down(p);
		return 1;
	}
	return 0;
}
