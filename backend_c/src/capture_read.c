/* SPDX-License-Identifier: BSD-2-Clause */
/* capture_read.c - the observer's side of a capture, in any process: the workers' rings merged by time */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "capture.h"

#define MIN_BLOCK 32u

struct vpt_capture_reader {
	struct vpti_capture_shm *shm;
	const uint8_t *data;
	uint64_t size;
	uint32_t rings;
	uint32_t ring_bytes;
	uint64_t tail[VPT_MAX_WORKERS];
};

int vpt_capture_open(int fd, vpt_capture_reader **out)
{
	struct vpt_capture_reader *r;
	struct vpti_capture_shm *shm;
	struct stat st;

	if (fstat(fd, &st))
		return -errno;
	if ((uint64_t)st.st_size < sizeof(*shm))
		return -EPROTO;
	shm = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (shm == MAP_FAILED)
		return -errno;
	r = calloc(1, sizeof(*r));
	if (!r || VPTI_LOAD_ACQUIRE(shm->magic) != VPTI_CAPTURE_MAGIC || shm->size != sizeof(*shm) ||
	    !shm->rings || shm->rings > VPT_MAX_WORKERS ||
	    sizeof(*shm) + (uint64_t)shm->rings * shm->ring_bytes != (uint64_t)st.st_size) {
		munmap(shm, (size_t)st.st_size);
		free(r);
		return r ? -EPROTO : -ENOMEM;
	}
	r->shm = shm;
	r->data = (const uint8_t *)shm + sizeof(*shm);
	r->size = (uint64_t)st.st_size;
	r->rings = shm->rings;
	r->ring_bytes = shm->ring_bytes;
	*out = r;
	return 0;
}

void vpt_capture_close(vpt_capture_reader *r)
{
	munmap(r->shm, r->size);
	free(r);
}

static uint32_t word(const uint8_t *block, uint32_t index)
{
	uint32_t value;

	memcpy(&value, block + 4 * index, sizeof(value));
	return value;
}

/* The oldest block of a ring, NULL if there is none; what cannot be a block counts as one of no length. */
static const uint8_t *oldest(struct vpt_capture_reader *r, uint32_t i, uint32_t *bytes)
{
	uint64_t head = VPTI_LOAD_ACQUIRE(r->shm->ring[i].head); /* pairs with record(): the blocks before it are whole */
	const uint8_t *data = r->data + (uint64_t)i * r->ring_bytes, *block;
	uint32_t at = r->tail[i] & (r->ring_bytes - 1);

	if (head == r->tail[i])
		return NULL;
	if (word(data + at, 0) == VPTI_CAPTURE_SKIP) {
		r->tail[i] += r->ring_bytes - at;
		at = 0;
	}
	block = data + at;
	*bytes = word(block, 1);
	if (*bytes < MIN_BLOCK || *bytes % 4 || *bytes > r->ring_bytes - at || *bytes > head - r->tail[i])
		*bytes = 0;
	return block;
}

int64_t vpt_capture_read(vpt_capture_reader *r, void *buf, uint64_t cap, uint64_t *packets)
{
	uint64_t n = 0, most = *packets, at;
	uint32_t i;

	for (*packets = 0; *packets < most; ++*packets) {
		const uint8_t *first = NULL;
		uint32_t from = 0, bytes = 0;
		uint64_t first_ns = UINT64_MAX;

		for (i = 0; i < r->rings; i++) {
			uint32_t length;
			const uint8_t *block = oldest(r, i, &length);

			if (!block)
				continue;
			if (!length)
				return -EPROTO;
			at = (uint64_t)word(block, 3) << 32 | word(block, 4);
			if (!first || at < first_ns) {
				first = block;
				first_ns = at;
				from = i;
				bytes = length;
			}
		}
		if (!first || n + bytes > cap)
			return first && !n ? -ENOSPC : (int64_t)n;
		memcpy((uint8_t *)buf + n, first, bytes);
		n += bytes;
		r->tail[from] += bytes;
		VPTI_STORE_RELEASE(r->shm->ring[from].tail, r->tail[from]); /* pairs with record(): the bytes are copied */
	}
	return (int64_t)n;
}

uint32_t vpt_capture_interfaces(const vpt_capture_reader *r)
{
	return VPTI_MIN(VPTI_LOAD_ACQUIRE(r->shm->interfaces), VPTI_CAPTURE_INTERFACES);
}

int vpt_capture_interface(const vpt_capture_reader *r, uint32_t i, char name[32], uint64_t *lost)
{
	if (i >= vpt_capture_interfaces(r))
		return -EINVAL;
	memcpy(name, r->shm->interface[i].name, 32);
	name[31] = '\0';
	*lost = VPTI_READ(r->shm->interface[i].lost);
	return 0;
}
