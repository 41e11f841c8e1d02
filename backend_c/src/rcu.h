/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * rcu.h - liburcu's QSBR as this library uses it, in a form that ThreadSanitizer can follow
 *
 * A worker reads a pointer once per round and may use what it points to until its next quiescent point; the control thread
 * replaces the pointer, waits, and only then frees. liburcu orders that with barriers in its own, uninstrumented code, of which
 * ThreadSanitizer knows nothing: it would call each free a race. It is told here, in its own builds only.
 */
#ifndef VPTI_RCU_H
#define VPTI_RCU_H

#include <urcu-qsbr.h>

#include "util.h"

#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
/* What any reader did before its quiescent point happened before what the control thread does after having waited. */
__attribute__((weak)) char vpti_rcu_tag; /* weak: one for all files */
#define vpti_rcu_reader_done() __tsan_release(&vpti_rcu_tag)
#define vpti_rcu_readers_done() __tsan_acquire(&vpti_rcu_tag)
#else
#define vpti_rcu_reader_done() do { } while (0)
#define vpti_rcu_readers_done() do { } while (0)
#endif

/* Reader: valid until the next quiescent point. Pairs with vpti_rcu_publish(). */
#define vpti_rcu_get(ptr) VPTI_LOAD_ACQUIRE(ptr)
/* Control thread: whoever sees the pointer sees what it points to. */
#define vpti_rcu_publish(ptr, value) VPTI_STORE_RELEASE(ptr, value)

static inline void vpti_rcu_quiescent(void)
{
	vpti_rcu_reader_done();
	rcu_quiescent_state();
}

/* Between these two a reader holds nothing and nobody waits for it. */
static inline void vpti_rcu_offline(void)
{
	vpti_rcu_reader_done();
	rcu_thread_offline();
}

static inline void vpti_rcu_online(void)
{
	rcu_thread_online();
}

/* Control thread: wait until all readers have let go of what they had read. */
static inline void vpti_rcu_wait(void)
{
	synchronize_rcu();
	vpti_rcu_readers_done();
}

#endif /* VPTI_RCU_H */
