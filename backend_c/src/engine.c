/* SPDX-License-Identifier: BSD-2-Clause */
/* engine.c - the engine: workers, counters, events, and the order in which they come and go */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>

#include "capture.h"
#include "engine.h"
#include "guard.h"
#include "switch.h"

int vpt_engine_open(const struct vpt_engine_opts *opts, vpt_engine **out)
{
	struct vpt_engine *e;
	uint32_t i;
	int rc;

	if (!opts->workers || opts->workers > VPT_MAX_WORKERS)
		return -EINVAL;
	e = calloc(1, sizeof(*e));
	if (!e)
		return -ENOMEM;
	e->nworkers = opts->workers;
	e->start_ns = vpti_now_ns();
	rc = vpti_guard_install();
	if (rc)
		goto err;
	rc = vpti_events_init(&e->events);
	if (rc)
		goto err;
	rc = vpti_stats_open(e, opts->stats_fd);
	if (rc)
		goto err_events;
	for (i = 0; i < e->nworkers; i++) {
		rc = vpti_worker_start(e, i, opts->cpus[i]);
		if (rc)
			goto err_workers;
	}
	*out = e;
	return 0;
err_workers:
	for (i = 0; i < e->nworkers; i++)
		vpti_worker_stop(e->worker[i]);
	vpti_stats_close(e);
err_events:
	vpti_events_fini(&e->events);
err:
	free(e);
	return rc;
}

void vpt_engine_close(vpt_engine *e)
{
	uint32_t i;

	while (e->switches)
		vpt_switch_del(e->switches);
	vpti_captures_free(e);
	for (i = 0; i < e->nworkers; i++)
		vpti_worker_stop(e->worker[i]);
	vpti_stats_close(e);
	vpti_events_fini(&e->events);
	free(e);
}

int vpt_engine_hold(vpt_engine *e, int hold)
{
	uint32_t i;

	e->held = hold != 0;
	for (i = 0; i < e->nworkers; i++)
		vpti_worker_replan(e->worker[i]);
	return 0;
}

int vpt_engine_stats_fd(const vpt_engine *e)
{
	return e->stats_fd;
}
