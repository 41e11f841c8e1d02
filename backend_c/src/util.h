/* SPDX-License-Identifier: BSD-2-Clause */
/* util.h - shared-memory accesses and the few idioms used everywhere */
#ifndef VPTI_UTIL_H
#define VPTI_UTIL_H

#include <stddef.h>
#include <stdint.h>
#include <time.h>

#define VPTI_CACHELINE 64u

/* One access, neither torn nor repeated: for each word that somebody else may change meanwhile. */
#define VPTI_READ(x) __atomic_load_n(&(x), __ATOMIC_RELAXED)
#define VPTI_WRITE(x, v) __atomic_store_n(&(x), (v), __ATOMIC_RELAXED)
#define VPTI_LOAD_ACQUIRE(x) __atomic_load_n(&(x), __ATOMIC_ACQUIRE)
#define VPTI_STORE_RELEASE(x, v) __atomic_store_n(&(x), (v), __ATOMIC_RELEASE)

#define VPTI_MIN(a, b) ((a) < (b) ? (a) : (b))
#define VPTI_MAX(a, b) ((a) > (b) ? (a) : (b))
#define VPTI_ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define VPTI_ALIGN(x, a) (((x) + (a) - 1) & ~((uint64_t)(a) - 1))

#define vpti_container_of(ptr, type, member) ((type *)((char *)(ptr) - offsetof(type, member)))
#define vpti_likely(x) __builtin_expect(!!(x), 1)
#define vpti_unlikely(x) __builtin_expect(!!(x), 0)

/* The uncommon case of a loop, kept out of it: inlined, it takes the registers that the common case needs. */
#define VPTI_OUTLINE static __attribute__((noinline))

#if defined(__x86_64__) || defined(__i386__)
#define vpti_cpu_relax() __builtin_ia32_pause()
#else
#define vpti_cpu_relax() __asm__ __volatile__("yield" ::: "memory")
#endif

/*
 * Fetch a cache line that is going to be written, and that a peer on another core has read or written last: to own it at once
 * saves the second trip that a store to a shared line takes. For plain x86-64 gcc makes __builtin_prefetch(p, 1) an
 * ordinary prefetch; every 64-bit processor knows prefetchw, those that do not have it as a no-op.
 */
static inline void vpti_prefetch_write(const void *p)
{
#if defined(__x86_64__)
	__asm__ __volatile__("prefetchw %0" : : "m"(*(const char *)p));
#else
	__builtin_prefetch(p, 1);
#endif
}

static inline uint64_t vpti_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

#endif /* VPTI_UTIL_H */
