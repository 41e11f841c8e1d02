/* SPDX-License-Identifier: BSD-2-Clause */
/* fd.c - notification fds */
#define _GNU_SOURCE
#include "fd.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include "util.h"
#include "vpt/vpt.h"

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

/* ---- signalling a peer ---- */

/* What the kernel maps at the address that io_setup() gives (fs/aio.c, struct aio_ring); its users are told by the magic. */
struct completions {
	uint32_t id, nr, head, tail, magic;
};

#define AIO_MAGIC 0xa10a10a1u

/*
 * For good: threads that signal may outlive any engine. A child of fork() does not have it, and falls back.
 */
static aio_context_t aio;

static void aio_open(void)
{
	aio_context_t made = 0;

	if (syscall(SYS_io_setup, 1, &made))
		return;
	if (((const struct completions *)made)->magic == AIO_MAGIC)
		aio = made;
	else
		syscall(SYS_io_destroy, made);
}

void vpt_eventfd_signal(int fd)
{
	vpti_eventfd_signal_peer(fd);
}

bool vpti_eventfd_signal_peer(int fd)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	/*
	 * Reading less than eight bytes of an eventfd fails at once, and for the completion the kernel adds one to it. It does
	 * so by eventfd_signal(), which never sleeps: at the largest count it leaves the counter alone.
	 */
	struct iocb request = {
		.aio_lio_opcode = IOCB_CMD_PREAD, .aio_fildes = (uint32_t)fd,
		.aio_flags = IOCB_FLAG_RESFD, .aio_resfd = (uint32_t)fd,
	}, *requests[] = { &request };

	pthread_once(&once, aio_open);
	if (aio) {
		struct completions *done = (struct completions *)aio;

		/*
		 * Nobody wants to know of the completions: make room for more. Several threads may do so at a time, and one
		 * may put back a head that is older than another's: room is lost until the next time, no more.
		 */
		VPTI_WRITE(done->head, VPTI_READ(done->tail));
		if (syscall(SYS_io_submit, aio, 1, requests) == 1)
			return true;
	}
	vpti_eventfd_signal(fd);
	return false;
}
