/* SPDX-License-Identifier: BSD-2-Clause */
/* test_no_memory.c - a port that can't be had for want of memory is an error, and giving one up takes none */
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

#include "test.h"
#include "vpt/vpt.h"

/* The linker puts these in the place of the library's allocations (--wrap, see meson.build). */
void *__real_calloc(size_t n, size_t size);
void *__real_malloc(size_t size);
void *__real_aligned_alloc(size_t align, size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_aligned_alloc(size_t align, size_t size);

#define NONE_FAILS (1u << 30)

static uint32_t left = NONE_FAILS; /* allocations that succeed; all after them fail */

static bool granted(void)
{
	if (left == NONE_FAILS)
		return true;
	if (!left)
		return false;
	left--;
	return true;
}

void *__wrap_calloc(size_t n, size_t size)
{
	return granted() ? __real_calloc(n, size) : NULL;
}

void *__wrap_malloc(size_t size)
{
	return granted() ? __real_malloc(size) : NULL;
}

void *__wrap_aligned_alloc(size_t align, size_t size)
{
	return granted() ? __real_aligned_alloc(align, size) : NULL;
}

/* Each allocation fails once, with all that follow it; in the end there is a port. */
static vpt_port *insist(vpt_switch *sw, uint32_t kind, uint32_t pairs)
{
	struct vpt_port_opts opts = { .kind = kind, .pairs = pairs, .worker = -1, .name = "p" };
	vpt_port *port = NULL;
	uint32_t n;
	int rc = -ENOMEM;

	for (n = 0; rc; n++) {
		left = n;
		rc = vpt_port_add(sw, &opts, &port);
		left = NONE_FAILS;
		CHECK(!rc || rc == -ENOMEM);
	}
	CHECK(n > pairs); /* or nothing has failed */
	return port;
}

int main(void)
{
	struct vpt_engine_opts eo = { .workers = 2, .cpus = { -1, -1 }, .stats_fd = -1 };
	struct vpt_switch_opts so = { .name = "sw" };
	struct vpt_port_state state;
	vpt_port *port[3];
	vpt_engine *e;
	vpt_switch *sw;
	uint32_t i;

	CHECK(!vpt_engine_open(&eo, &e));
	CHECK(!vpt_switch_add(e, &so, &sw));
	port[0] = insist(sw, VPT_KIND_NULL, 1);
	port[1] = insist(sw, VPT_KIND_VHOST_USER, 128);
	port[2] = insist(sw, VPT_KIND_NULL, 1);
	left = 0;
	for (i = 0; i < 3; i++) {
		CHECK(!vpt_port_set_link(port[i], 0));
		CHECK(!vpt_port_set_link(port[i], 1));
		CHECK(!vpt_port_state(port[i], &state));
	}
	CHECK(!vpt_vhost_reset(port[1]));
	vpt_port_del(port[2]);
	vpt_port_del(port[1]);
	vpt_engine_close(e);
	return 0;
}
