/* SPDX-License-Identifier: BSD-2-Clause */
/* fd.h - notification fds: taking only real eventfds, reading and writing them without ever blocking a worker */
#ifndef VPTI_FD_H
#define VPTI_FD_H

#include <stdint.h>
#include <unistd.h>

/*
 * A private duplicate of an eventfd, non-blocking; fd -1 gives *out = -1. -EBADF if it is anything else: a pipe, a
 * socket or a file handed over as "eventfd" could block the worker or wake it for ever.
 */
int vpti_eventfd_dup(int32_t fd, int *out);

/* The eventfd's count, taken; 0 if it had none. Does not block even if the peer made the file description blocking. */
uint64_t vpti_eventfd_take(int fd);

/* Add one. A full counter is a notification pending, which is what was wanted. */
void vpti_eventfd_signal(int fd);

static inline void vpti_fd_close(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

#endif /* VPTI_FD_H */
