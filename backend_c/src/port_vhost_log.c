/* SPDX-License-Identifier: BSD-2-Clause */
/* port_vhost_log.c - the dirty log of a vhost-user port: which one, which rings write to it, and who is told */
#include "fd.h"
#include "port_vhost.h"
#include "rcu.h"

/* Where the log's address space ends for a ring. */
static uint64_t log_end(const struct vpt_port *p, const struct vpti_vring *r, uint32_t num)
{
	return r->log_used == VPTI_LOG_NEVER ? 0 : r->log_used + vpti_vhost_layout(p)->used_size(num);
}

bool vpti_vhost_log_covers(const struct vpt_port *p, const struct vpti_log *log, const struct vpti_mem *mem)
{
	const struct vpti_vhost *vh = p->priv;
	uint32_t i;

	for (i = 0; i < 2 * p->opts.pairs; i++) {
		if (vh->ring[i].running && !vpti_log_covers(log, log_end(p, &vh->ring[i], vh->ring[i].cfg.num)))
			return false;
	}
	return vpti_log_covers(log, vpti_mem_end(mem));
}

struct vpti_log *vpti_vhost_log(const struct vpt_port *p, uint64_t features)
{
	return features & VPTI_F_LOG_ALL ? ((const struct vpti_vhost *)p->priv)->log : NULL;
}

bool vpti_vhost_log_covers_ring(const struct vpt_port *p, uint32_t index, uint32_t num)
{
	const struct vpti_log *log = vpti_vhost_log(p, p->features);
	const struct vpti_vhost *vh = p->priv;

	return !log || vpti_log_covers(log, log_end(p, &vh->ring[index], num));
}

void vpti_vhost_log_to_ring(struct vpt_port *p, uint32_t index)
{
	struct vpti_virtq *v = vpti_vring_virtq(p, index);

	VPTI_WRITE(v->log_used, ((const struct vpti_vhost *)p->priv)->ring[index].log_used);
	vpti_rcu_publish(v->log, vpti_vhost_log(p, p->features));
}

void vpti_vhost_log_apply(struct vpt_port *p)
{
	uint32_t i;

	for (i = 0; i < 2 * p->opts.pairs; i++)
		vpti_vhost_log_to_ring(p, i);
	vpti_synchronize();
}

void vpti_vhost_log_drop(struct vpti_vhost *vh)
{
	vpti_log_free(vh->log);
	vh->log = NULL;
}

int vpt_vhost_log_set(vpt_port *p, int fd, uint64_t offset, uint64_t size)
{
	struct vpti_log *log, *old;
	struct vpti_vhost *vh = p->priv;
	int rc;

	if (vpti_vhost_check(p, 0))
		return -EINVAL;
	rc = vpti_log_new(fd, offset, size, &p->sigbus, &vh->log_fd, &log);
	if (rc)
		return rc;
	if (!vpti_vhost_log_covers(p, log, vh->mem)) {
		vpti_log_free(log);
		return -ERANGE;
	}
	old = vh->log;
	vh->log = log;
	vpti_vhost_log_apply(p);
	/* A log that comes after the wish for one: what the rings wrote in between is not known. */
	if (!old && vpti_vhost_log(p, p->features) && vpti_vhost_runs(p))
		vpti_log_mark_all(log, vh->mem);
	vpti_log_free(old);
	return 0;
}

int vpt_vhost_log_event(vpt_port *p, int fd)
{
	struct vpti_vhost *vh = p->priv;
	int copy, old, rc;

	if (vpti_vhost_check(p, 0))
		return -EINVAL;
	rc = vpti_eventfd_dup(fd, &copy);
	if (rc)
		return rc;
	old = vh->log_fd;
	VPTI_WRITE(vh->log_fd, copy);
	vpti_synchronize(); /* a worker may be writing to the old one */
	vpti_fd_close(&old);
	return 0;
}

int vpt_vhost_vring_log(vpt_port *p, uint32_t index, int on, uint64_t used_gpa)
{
	struct vpti_vhost *vh = p->priv;
	struct vpti_vring *r;
	uint64_t was, end;

	if (vpti_vhost_check(p, index))
		return -EINVAL;
	r = &vh->ring[index];
	was = r->log_used;
	r->log_used = on ? used_gpa : VPTI_LOG_NEVER;
	if (on && __builtin_add_overflow(used_gpa, vpti_vhost_layout(p)->used_size(VPT_MAX_RING), &end))
		goto err;
	if (vpti_vhost_log(p, p->features) && !vpti_vhost_log_covers(p, vh->log, vh->mem))
		goto err;
	vpti_vhost_log_to_ring(p, index);
	vpti_synchronize();
	return 0;
err:
	r->log_used = was;
	return -ERANGE;
}
