/* SPDX-License-Identifier: BSD-2-Clause */
/* memmap.h - a front-end's memory: what is mapped where, and finding an address in it */
#ifndef VPTI_MEMMAP_H
#define VPTI_MEMMAP_H

#include "util.h"
#include "vpt/vpt.h"

struct vpti_mapping;

/*
 * Map [offset, offset + size) of a front-end's file, guarded: *flag becomes 1 when it vanishes. *at is where offset lies.
 * -EINVAL size 0 or wrap-around, -EMEDIUMTYPE no memfd and not on tmpfs or hugetlbfs, -EBADF too short; others from mmap().
 * Control thread.
 */
int vpti_mapping_new(int fd, uint64_t offset, uint64_t size, uint32_t *flag, struct vpti_mapping **out, uint8_t **at);
void vpti_mapping_put(struct vpti_mapping *m);

struct vpti_mem_range {
	uint64_t gpa;
	uint64_t size;
	uint64_t uva;
	uint8_t *hva;
	struct vpti_mapping *mapping;
};

/* Immutable once in use; ordered by gpa. */
struct vpti_mem {
	uint32_t n;
	struct vpti_mem_range r[];
};

/*
 * Build a new table from an old one (or NULL): add regions, leave out those that `without` names (or NULL). The old
 * table stays as it was; mappings are shared. flag: what the SIGBUS guard sets. 0 or -errno as vpt.h says.
 */
int vpti_mem_build(const struct vpti_mem *old, const struct vpt_mem_region *add, uint32_t n,
		   const struct vpt_mem_region *without, uint32_t *flag, struct vpti_mem **out);
void vpti_mem_free(struct vpti_mem *m);

/* Index of the range that holds a guest-physical address, m->n if none does. */
uint32_t vpti_mem_find(const struct vpti_mem *m, uint64_t gpa);

/* The range found last, by value: a loop keeps it in registers. All zero: none yet. */
struct vpti_mem_near {
	uint64_t gpa;
	uint64_t size;
	uint8_t *hva;
};

/* Host address of a guest-physical one, and in *contig how many bytes follow there in one piece; NULL if nowhere. */
static inline uint8_t *vpti_mem_gpa(const struct vpti_mem *m, uint64_t gpa, uint64_t *contig, struct vpti_mem_near *near)
{
	if (vpti_unlikely(gpa - near->gpa >= near->size)) {
		uint32_t i = vpti_mem_find(m, gpa);

		if (i == m->n)
			return NULL;
		*near = (struct vpti_mem_near){ m->r[i].gpa, m->r[i].size, m->r[i].hva };
	}
	*contig = near->size - (gpa - near->gpa);
	return near->hva + (gpa - near->gpa);
}

/* Host address of [gpa, gpa + len) if all of it is in one range, NULL if not. */
static inline uint8_t *vpti_mem_span(const struct vpti_mem *m, uint64_t gpa, uint32_t len, struct vpti_mem_near *near)
{
	uint64_t contig, ofs = gpa - near->gpa;
	uint8_t *p;

	if (vpti_likely(ofs < near->size && near->size - ofs >= len))
		return near->hva + ofs;
	p = vpti_mem_gpa(m, gpa, &contig, near);
	return p && contig >= len ? p : NULL;
}

/* Host address of [uva, uva + len), which must lie in one region; NULL if not. */
void *vpti_mem_uva(const struct vpti_mem *m, uint64_t uva, uint64_t len);

/*
 * Guest-physical address of a byte that is mapped here; UINT64_MAX if it is in no range. For those who keep a dirty log only: it
 * looks range by range, from *hint (anything) on.
 */
uint64_t vpti_mem_gpa_of(const struct vpti_mem *m, const uint8_t *hva, uint32_t *hint);

/* Where the guest-physical addresses end; 0 without memory. */
uint64_t vpti_mem_end(const struct vpti_mem *m);

#endif /* VPTI_MEMMAP_H */
