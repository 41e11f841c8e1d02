/* SPDX-License-Identifier: BSD-2-Clause */
/* fd.c - notification fds */
#define _GNU_SOURCE
#include "fd.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>

int vpti_eventfd_dup(int32_t fd, int *out)
{
	static const char want[] = "anon_inode:[eventfd]";
	char path[48], what[64];
	ssize_t n;
	int copy;

	*out = -1;
	if (fd < 0)
		return 0;
	copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (copy < 0)
		return -errno;
	/* The link text is the kernel's own name for the file type; there is no other way to ask. */
	snprintf(path, sizeof(path), "/proc/self/fd/%d", copy);
	n = readlink(path, what, sizeof(what));
	if (n != sizeof(want) - 1 || memcmp(what, want, sizeof(want) - 1)) {
		close(copy);
		return -EBADF;
	}
	if (fcntl(copy, F_SETFL, O_NONBLOCK)) {
		int rc = -errno;

		close(copy);
		return rc;
	}
	*out = copy;
	return 0;
}

uint64_t vpti_eventfd_take(int fd)
{
	uint64_t n = 0;
	struct iovec iov = { &n, sizeof(n) };

	/* O_NONBLOCK belongs to the file description, which the peer shares and may clear; RWF_NOWAIT is ours alone. */
	if (preadv2(fd, &iov, 1, -1, RWF_NOWAIT) != sizeof(n))
		return 0;
	return n;
}

void vpti_eventfd_signal(int fd)
{
	static const uint64_t one = 1;

	if (write(fd, &one, sizeof(one)) < 0)
		return;
}
