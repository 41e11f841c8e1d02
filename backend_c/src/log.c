/* SPDX-License-Identifier: BSD-2-Clause */
/* log.c - the dirty log of live migration */
#include "log.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "fd.h"
#include "notify.h"

int vpti_log_new(int fd, uint64_t offset, uint64_t size, uint32_t *flag, const int *event_fd, struct vpti_log **out)
{
	struct vpti_log *log;
	int rc;

	if (size > UINT64_MAX / 8 / VPTI_LOG_PAGE)
		return -EINVAL;
	log = malloc(sizeof(*log));
	if (!log)
		return -ENOMEM;
	log->pages = size * 8;
	log->event_fd = event_fd;
	rc = vpti_mapping_new(fd, offset, size, flag, &log->mapping, &log->bits);
	if (rc) {
		free(log);
		return rc;
	}
	*out = log;
	return 0;
}

void vpti_log_free(struct vpti_log *log)
{
	if (!log)
		return;
	vpti_mapping_put(log->mapping);
	free(log);
}

/* Pages [page, end) of one byte, or more. */
static void mark_bits(const struct vpti_log *log, uint64_t page, uint64_t end)
{
	for (; page < end; page++) {
		uint8_t bit = (uint8_t)(1u << page % 8);

		/* Ordered behind the write that it stands for; pairs with the front-end's clearing before it copies. */
		__atomic_fetch_or(&log->bits[page / 8], bit, __ATOMIC_SEQ_CST);
	}
}

void vpti_log_mark(const struct vpti_log *log, uint64_t gpa, uint64_t len)
{
	uint64_t page = gpa / VPTI_LOG_PAGE, end;

	if (!len || gpa + len - 1 < gpa)
		return;
	end = VPTI_MIN((gpa + len - 1) / VPTI_LOG_PAGE + 1, log->pages);
	mark_bits(log, page, end);
}

void vpti_log_signal(const struct vpti_log *log)
{
	int fd = VPTI_READ(*log->event_fd);

	if (fd >= 0)
		vpti_eventfd_signal_peer(fd);
}

/* All of a guest's memory, by whole bytes: bit by bit a terabyte takes seconds. */
static void mark_range(const struct vpti_log *log, uint64_t gpa, uint64_t len)
{
	uint64_t page = gpa / VPTI_LOG_PAGE, end = VPTI_MIN((gpa + len - 1) / VPTI_LOG_PAGE + 1, log->pages);
	uint64_t first = VPTI_ALIGN(page, 8u), last = end & ~7ull;

	if (first >= last) {
		mark_bits(log, page, end);
		return;
	}
	mark_bits(log, page, first);
	mark_bits(log, last, end);
	/* Whoever sets bits beside it sets what is set; the front-end, who clears, meets a byte as a whole. */
	memset(&log->bits[first / 8], 0xff, (size_t)((last - first) / 8));
	vpti_full_fence();
}

void vpti_log_mark_all(const struct vpti_log *log, const struct vpti_mem *mem)
{
	uint32_t i;

	for (i = 0; mem && i < mem->n; i++)
		mark_range(log, mem->r[i].gpa, mem->r[i].size);
}
