/* SPDX-License-Identifier: BSD-2-Clause */
/* guard.c - the SIGBUS handler and its table */
#define _GNU_SOURCE
#include "guard.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>

#include "util.h"

#define MAX_GUARDS 65536u

/* An entry is valid while len is not 0; the handler may read it in any thread at any time, so len is written last and cleared first. */
static struct guard {
	uintptr_t base;
	size_t len;
	size_t page;
	uint32_t *flag;
} guards[MAX_GUARDS];

static uint32_t guards_used; /* entries beyond were never used */
static struct sigaction previous;

/* Async-signal-safe: reads the table, calls mmap(). */
static int cover(uintptr_t addr)
{
	uint32_t used = VPTI_LOAD_ACQUIRE(guards_used);
	uint32_t i;

	for (i = 0; i < used; i++) {
		size_t len = VPTI_LOAD_ACQUIRE(guards[i].len);
		uintptr_t base = guards[i].base;
		uintptr_t page = addr & ~(uintptr_t)(guards[i].page - 1);

		if (!len || addr < base || addr - base >= len)
			continue;
		VPTI_WRITE(*guards[i].flag, 1);
		/* What precedes the fault is still there; all that follows in a shrunk file is not. */
		return mmap((void *)page, base + len - page, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) == MAP_FAILED ? -1 : 0;
	}
	return -1;
}

static void on_sigbus(int sig, siginfo_t *info, void *context)
{
	int saved = errno;

	if (cover((uintptr_t)info->si_addr)) {
		if (previous.sa_flags & SA_SIGINFO) {
			previous.sa_sigaction(sig, info, context);
		} else if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
			previous.sa_handler(sig);
		} else {
			signal(SIGBUS, SIG_DFL); /* the access is repeated on return, and kills as it should */
		}
	}
	errno = saved;
}

static int install_rc;

static void install(void)
{
	struct sigaction sa = { .sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_NODEFER };

	sigemptyset(&sa.sa_mask);
	install_rc = sigaction(SIGBUS, &sa, &previous) ? -errno : 0;
}

int vpti_guard_install(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, install);
	return install_rc;
}

int vpti_guard_add(void *base, size_t len, size_t page, uint32_t *flag)
{
	uint32_t i;

	for (i = 0; i < MAX_GUARDS; i++) {
		if (guards[i].len)
			continue;
		guards[i].base = (uintptr_t)base;
		guards[i].page = page;
		guards[i].flag = flag;
		VPTI_STORE_RELEASE(guards[i].len, len);
		if (i >= guards_used)
			VPTI_STORE_RELEASE(guards_used, i + 1);
		return 0;
	}
	return -ENOSPC;
}

void vpti_guard_del(void *base)
{
	uint32_t i;

	for (i = 0; i < guards_used; i++) {
		if (guards[i].len && guards[i].base == (uintptr_t)base) {
			VPTI_STORE_RELEASE(guards[i].len, 0);
			return;
		}
	}
}
