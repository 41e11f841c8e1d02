/* SPDX-License-Identifier: BSD-2-Clause */
/* bench_two.c - two functions on two CPUs at the same time */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>

#include "bench_two.h"

struct there {
	void (*run)(void *);
	void *arg;
};

static void *run_there(void *arg)
{
	struct there *t = arg;

	t->run(t->arg);
	return NULL;
}

int vpti_on_two_cpus(int cpu_a, void (*here)(void *), int cpu_b, void (*there)(void *), void *arg)
{
	struct there t = { .run = there, .arg = arg };
	cpu_set_t before, a, b;
	pthread_attr_t attr;
	pthread_t thread;
	int rc;

	CPU_ZERO(&a);
	CPU_SET((size_t)cpu_a, &a);
	CPU_ZERO(&b);
	CPU_SET((size_t)cpu_b, &b);
	rc = -pthread_getaffinity_np(pthread_self(), sizeof(before), &before);
	if (rc)
		return rc;
	rc = -pthread_attr_init(&attr);
	if (rc)
		return rc;
	rc = -pthread_attr_setaffinity_np(&attr, sizeof(b), &b);
	if (rc)
		goto out;
	rc = -pthread_setaffinity_np(pthread_self(), sizeof(a), &a);
	if (rc)
		goto out;
	rc = -pthread_create(&thread, &attr, run_there, &t);
	if (!rc) {
		here(arg);
		pthread_join(thread, NULL);
	}
	pthread_setaffinity_np(pthread_self(), sizeof(before), &before);
out:
	pthread_attr_destroy(&attr);
	return rc;
}
