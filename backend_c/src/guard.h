/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * guard.h - shared memory that vanishes takes down one port, not the process
 *
 * A front-end may shrink the file behind memory it gave us; touching what is gone raises SIGBUS. The handler looks the address up in
 * a table of guarded mappings, sets the owner's flag, puts private zero pages in place of the rest of the mapping and
 * returns: the access goes on, on zeros, and the worker sees the flag at its next check.
 */
#ifndef VPTI_GUARD_H
#define VPTI_GUARD_H

#include <stddef.h>
#include <stdint.h>

/* Install the process-wide handler, once; an existing handler goes on to get what is not ours. 0 or -errno. */
int vpti_guard_install(void);

/*
 * Guard [base, base + len): *flag becomes 1 when it vanishes. page: the mapping can only be replaced by multiples of it, a power of
 * two (hugetlbfs: a huge page). -ENOSPC if the table is full. Control thread.
 */
int vpti_guard_add(void *base, size_t len, size_t page, uint32_t *flag);
void vpti_guard_del(void *base);

#endif /* VPTI_GUARD_H */
