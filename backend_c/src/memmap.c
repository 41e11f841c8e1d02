/* SPDX-License-Identifier: BSD-2-Clause */
/* memmap.c - mapping what a front-end says is its memory, believing nothing about it */
#define _GNU_SOURCE
#include "memmap.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "guard.h"

/* One mmap(), shared by the tables that refer to it. Control thread only. */
struct vpti_mapping {
	uint32_t refs;
	void *base;
	size_t len;
};

void vpti_mapping_put(struct vpti_mapping *m)
{
	if (--m->refs)
		return;
	vpti_guard_del(m->base);
	munmap(m->base, m->len);
	free(m);
}

static bool overlap(uint64_t a, uint64_t b, uint64_t a_len, uint64_t b_len)
{
	return a < b + b_len && b < a + a_len;
}

static int check(const struct vpt_mem_region *r, const struct vpti_mem *m)
{
	uint64_t end;
	uint32_t i;

	if (__builtin_add_overflow(r->gpa, r->size, &end) || __builtin_add_overflow(r->uva, r->size, &end))
		return -EINVAL;
	for (i = 0; i < m->n; i++) {
		if (overlap(r->gpa, m->r[i].gpa, r->size, m->r[i].size) ||
		    overlap(r->uva, m->r[i].uva, r->size, m->r[i].size))
			return -EINVAL;
	}
	return 0;
}

/*
 * memfd, tmpfs or hugetlbfs: nothing else has seals. Who serves another file's pages may let a worker wait for one as long as he
 * likes: a disk, a server, the front-end itself (FUSE). The question reaches no file system, which could keep us waiting, too.
 */
static bool is_memory(int fd)
{
	return fcntl(fd, F_GET_SEALS) >= 0;
}

/* The offset need not be page-aligned, and a page is as large as the file system says (hugetlbfs). */
int vpti_mapping_new(int fd, uint64_t offset, uint64_t size, uint32_t *flag, struct vpti_mapping **out, uint8_t **at)
{
	struct vpti_mapping *m;
	uint64_t align, start, end;
	struct stat st;
	int rc;

	if (!size || __builtin_add_overflow(offset, size, &end) || end > INT64_MAX)
		return -EINVAL;
	if (!is_memory(fd))
		return -EMEDIUMTYPE;
	if (fstat(fd, &st))
		return -errno;
	if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size < end)
		return -EBADF;
	align = st.st_blksize > 4096 ? (uint64_t)st.st_blksize : 4096u;
	if (align & (align - 1))
		return -EBADF;
	start = offset & ~(align - 1);
	m = malloc(sizeof(*m));
	if (!m)
		return -ENOMEM;
	m->refs = 1;
	m->len = (size_t)VPTI_ALIGN(end - start, align);
	/* Without MAP_NORESERVE: huge pages that are not there are missed here, and not by a SIGBUS in a worker. */
	m->base = mmap(NULL, m->len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)start);
	if (m->base == MAP_FAILED) {
		rc = -errno;
		free(m);
		return rc;
	}
	rc = vpti_guard_add(m->base, m->len, (size_t)align, flag);
	if (rc) {
		munmap(m->base, m->len);
		free(m);
		return rc;
	}
	madvise(m->base, m->len, MADV_DONTDUMP); /* a core of ours is not a copy of the guest */
	*out = m;
	*at = (uint8_t *)m->base + (offset - start);
	return 0;
}

static int map(const struct vpt_mem_region *r, uint32_t *flag, struct vpti_mem_range *out)
{
	*out = (struct vpti_mem_range){ .gpa = r->gpa, .size = r->size, .uva = r->uva };
	return vpti_mapping_new(r->fd, r->mmap_offset, r->size, flag, &out->mapping, &out->hva);
}

static int by_gpa(const void *a, const void *b)
{
	const struct vpti_mem_range *x = a, *y = b;

	return x->gpa < y->gpa ? -1 : x->gpa > y->gpa;
}

static bool same(const struct vpti_mem_range *r, const struct vpt_mem_region *w)
{
	return w && r->gpa == w->gpa && r->size == w->size && r->uva == w->uva;
}

int vpti_mem_build(const struct vpti_mem *old, const struct vpt_mem_region *add, uint32_t n,
		   const struct vpt_mem_region *without, uint32_t *flag, struct vpti_mem **out)
{
	uint32_t old_n = old ? old->n : 0;
	bool found = !without;
	struct vpti_mem *m;
	uint64_t total = 0;
	uint32_t i;
	int rc;

	if (n > VPT_MAX_MEM_REGIONS || old_n + n > VPT_MAX_MEM_REGIONS)
		return -E2BIG;
	m = calloc(1, sizeof(*m) + (old_n + n) * sizeof(m->r[0]));
	if (!m)
		return -ENOMEM;
	for (i = 0; i < old_n; i++) {
		if (same(&old->r[i], without)) {
			found = true;
			continue;
		}
		total += old->r[i].size;
		m->r[m->n++] = old->r[i];
		old->r[i].mapping->refs++;
	}
	rc = found ? 0 : -ENOENT;
	for (i = 0; i < n && !rc; i++) {
		rc = check(&add[i], m);
		/* In this order, for sizes may add up to more than 64 bits hold. */
		if (!rc && (add[i].size > VPT_MAX_MEM_BYTES || (total += add[i].size) > VPT_MAX_MEM_BYTES))
			rc = -EFBIG;
		if (!rc)
			rc = map(&add[i], flag, &m->r[m->n]);
		if (!rc)
			m->n++;
	}
	if (rc) {
		vpti_mem_free(m);
		return rc;
	}
	qsort(m->r, m->n, sizeof(m->r[0]), by_gpa);
	*out = m;
	return 0;
}

void vpti_mem_free(struct vpti_mem *m)
{
	uint32_t i;

	if (!m)
		return;
	for (i = 0; i < m->n; i++)
		vpti_mapping_put(m->r[i].mapping);
	free(m);
}

/* By halves: a front-end may share 512 regions, and a guest go back and forth between them with each descriptor. */
uint32_t vpti_mem_find(const struct vpti_mem *m, uint64_t gpa)
{
	uint32_t low = 0, high = m->n, mid;

	while (low < high) {
		mid = (low + high) / 2;
		if (gpa < m->r[mid].gpa)
			high = mid;
		else if (gpa - m->r[mid].gpa >= m->r[mid].size)
			low = mid + 1;
		else
			return mid;
	}
	return m->n;
}

void *vpti_mem_uva(const struct vpti_mem *m, uint64_t uva, uint64_t len)
{
	uint32_t i;

	for (i = 0; m && i < m->n; i++) {
		uint64_t ofs = uva - m->r[i].uva;

		if (ofs < m->r[i].size && len <= m->r[i].size - ofs)
			return m->r[i].hva + ofs;
	}
	return NULL;
}

uint64_t vpti_mem_gpa_of(const struct vpti_mem *m, const uint8_t *hva, uint32_t *hint)
{
	uint32_t i = *hint, n;

	for (n = 0; n < m->n; n++, i = i + 1 < m->n ? i + 1 : 0) {
		if (i < m->n && hva >= m->r[i].hva && (uint64_t)(hva - m->r[i].hva) < m->r[i].size) {
			*hint = i;
			return m->r[i].gpa + (uint64_t)(hva - m->r[i].hva);
		}
	}
	return UINT64_MAX;
}

uint64_t vpti_mem_end(const struct vpti_mem *m)
{
	const struct vpti_mem_range *last = m && m->n ? &m->r[m->n - 1] : NULL;

	return last ? last->gpa + last->size : 0;
}
