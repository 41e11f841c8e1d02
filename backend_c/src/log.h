/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * log.h - the dirty log of live migration: which of a guest's pages the host has written
 *
 * A bit for each 4 KiB of guest-physical address space, page n in bit n % 8 of byte n / 8, set atomically, since other writers
 * share the bytes (vhost-user specification, "Migration"). The front-end clears a bit and then copies the page; so a bit is
 * set after the write that it stands for, and before the driver or the front-end is told of that write.
 */
#ifndef VPTI_LOG_H
#define VPTI_LOG_H

#include <stdbool.h>

#include "memmap.h"

#define VPTI_LOG_PAGE 4096u
#define VPTI_LOG_NEVER UINT64_MAX /* in place of a log address: these writes are not logged */

struct vpti_log {
	uint8_t *bits;
	uint64_t pages;            /* 8 for each byte of the log */
	const int *event_fd;       /* -1: the front-end looks by itself */
	struct vpti_mapping *mapping;
};

/* A log in a front-end's file. event_fd: where to look for an eventfd each time. Else as vpti_mapping_new(). */
int vpti_log_new(int fd, uint64_t offset, uint64_t size, uint32_t *flag, const int *event_fd, struct vpti_log **out);
void vpti_log_free(struct vpti_log *log);          /* NULL is fine */

/* Does it reach so far? */
static inline bool vpti_log_covers(const struct vpti_log *log, uint64_t end)
{
	return end <= log->pages * VPTI_LOG_PAGE;
}

/* [gpa, gpa + len) has been written. What lies beyond the log is not marked. Any worker. */
void vpti_log_mark(const struct vpti_log *log, uint64_t gpa, uint64_t len);

/* Something has been marked: tell the front-end, if it wanted to be. Any worker. */
void vpti_log_signal(const struct vpti_log *log);

/* All of the memory may have been. */
void vpti_log_mark_all(const struct vpti_log *log, const struct vpti_mem *mem);

#endif /* VPTI_LOG_H */
