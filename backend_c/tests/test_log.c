/* SPDX-License-Identifier: BSD-2-Clause */
/* test_log.c - which bits of a dirty log are set, and that no byte around it is touched */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fd.h"
#include "log.h"
#include "test.h"

#define SIZE 16u              /* bytes of the log: 128 pages */
#define OFS 5u
#define FILE_SIZE 4096u

static int fd, event_fd = -1;
static uint8_t *file;
static uint32_t flag;

static struct vpti_log *new_log(void)
{
	struct vpti_log *log = NULL;

	memset(file, 0, FILE_SIZE);
	CHECK(!vpti_log_new(fd, OFS, SIZE, &flag, &event_fd, &log));
	return log;
}

/* Pages marked, from first on, all others not; bytes around the log untouched. */
static void check_pages(uint64_t first, uint64_t n)
{
	uint64_t page;
	uint32_t i;

	for (page = 0; page < SIZE * 8u; page++)
		CHECK((file[OFS + page / 8] >> page % 8 & 1) == (page >= first && page < first + n));
	for (i = 0; i < OFS; i++)
		CHECK(!file[i]);
	for (i = OFS + SIZE; i < FILE_SIZE; i++)
		CHECK(!file[i]);
}

static void test_marks(void)
{
	static const struct {
		uint64_t gpa, len, first, n;
	} cases[] = {
		{ 0, 1, 0, 1 }, { 4095, 1, 0, 1 }, { 4095, 2, 0, 2 }, { 4096, 4096, 1, 1 }, { 4096, 4097, 1, 2 }, { 7, 0, 0, 0 },
		{ 0, 128 * 4096ull, 0, 128 }, { 127 * 4096ull, 4096, 127, 1 },
		/* beyond it, and around the end of all addresses */
		{ 127 * 4096ull, 8192, 127, 1 }, { 128 * 4096ull, 1, 0, 0 }, { UINT64_MAX, 1, 0, 0 }, { UINT64_MAX - 1, 8, 0, 0 },
		{ UINT64_MAX - 4096, 4097, 0, 0 },
	};
	uint32_t i;

	for (i = 0; i < VPTI_ARRAY_SIZE(cases); i++) {
		struct vpti_log *log = new_log();

		vpti_log_mark(log, cases[i].gpa, cases[i].len);
		check_pages(cases[i].first, cases[i].n);
		vpti_log_free(log);
	}
}

static void test_signal(void)
{
	struct vpti_log *log = new_log();

	vpti_log_signal(log);
	event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	vpti_log_signal(log);
	CHECK(vpti_eventfd_take(event_fd) == 1);
	vpti_log_free(log);
}

static void test_refusals(void)
{
	struct vpti_log *log = NULL;

	CHECK(vpti_log_new(fd, 0, 0, &flag, &event_fd, &log) == -EINVAL);
	CHECK(vpti_log_new(fd, UINT64_MAX, 2, &flag, &event_fd, &log) == -EINVAL);
	CHECK(vpti_log_new(fd, 0, UINT64_MAX / 2, &flag, &event_fd, &log) == -EINVAL);
	CHECK(vpti_log_new(fd, FILE_SIZE, 1, &flag, &event_fd, &log) == -EBADF);
	CHECK(vpti_log_new(event_fd, 0, 8, &flag, &event_fd, &log) == -EMEDIUMTYPE);
	CHECK(!log);
}

int main(void)
{
	fd = memfd_create("log", MFD_CLOEXEC);
	CHECK(fd >= 0 && !ftruncate(fd, FILE_SIZE));
	file = mmap(NULL, FILE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(file != MAP_FAILED);
	test_marks();
	test_signal();
	test_refusals();
	close(event_fd);
	close(fd);
	return 0;
}
