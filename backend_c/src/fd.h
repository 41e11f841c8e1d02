/* SPDX-License-Identifier: BSD-2-Clause */
/* fd.h - notification fds: taking only real eventfds, reading and writing them without ever blocking a worker */
#ifndef VPTI_FD_H
#define VPTI_FD_H

#include <stdbool.h>
#include <stdint.h>
#include <unistd.h>

/*
 * A private duplicate of an eventfd, non-blocking; fd -1 gives *out = -1. -EBADF if it is anything else: a pipe, a
 * socket or a file handed over as "eventfd" could block the worker or wake it for ever.
 */
int vpti_eventfd_dup(int32_t fd, int *out);

/* The eventfd's count, taken; 0 if it had none. Does not block even if the peer made the file description blocking. */
uint64_t vpti_eventfd_take(int fd);

/* Add one to an eventfd of our own. A full counter is a notification pending, which is what was wanted. */
void vpti_eventfd_signal(int fd);

/*
 * Add one to an eventfd that a peer has too. The peer may make the file description blocking at any time and fill the counter:
 * write() would then sleep until the peer is so kind as to read. The kernel is made to add the one instead, which costs about
 * 0.2 us more and never sleeps. Returns false where there is no aio (a seccomp filter, fs.aio-max-nr): it was write() after all.
 * Any thread.
 */
bool vpti_eventfd_signal_peer(int fd);

static inline void vpti_fd_close(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

#endif /* VPTI_FD_H */
