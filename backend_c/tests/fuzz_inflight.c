/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * fuzz_inflight.c - a ring is taken up by a record of what is in flight that says anything
 *
 * Input: layout, size of the ring and of the record's queues, base; then the ring's memory and the record's. Each has
 * exactly the bytes that it must have, so that a sanitizer sees a step beyond. A record that is accepted gives a place in the
 * ring, and is accepted again, at the same place: taking up may be interrupted anywhere.
 */
#include "fuzz.h"
#include "virtq.h"

#define MAX_NUM 64u
#define EXTRA 8u

struct image {
	struct vpti_virtq v;
	uint8_t *ring[3];
	uint8_t *region;
	uint32_t queue_size;
	bool packed;
};

static uint8_t *filled(struct fuzz_in *in, size_t size)
{
	uint8_t *p = calloc(1, size);

	MUST(p);
	fuzz_bytes(in, p, size);
	return p;
}

static void make(struct image *m, struct fuzz_in *in)
{
	uint8_t how = fuzz_u8(in), size = fuzz_u8(in);
	uint32_t base = fuzz_u16(in);

	memset(m, 0, sizeof(*m));
	m->packed = how & 1;
	m->v.num = (uint16_t)(m->packed ? 1 + size % MAX_NUM : 1u << size % 7);
	m->v.mask = (uint16_t)(m->v.num - 1);
	m->queue_size = m->v.num + (how & 2 ? EXTRA : 0);
	m->v.call_fd = -1;
	m->ring[0] = filled(in, m->v.num * sizeof(struct vpti_desc));
	m->ring[1] = filled(in, m->packed ? 4 : 4 + (m->v.num + 1u) * sizeof(uint16_t));
	m->ring[2] = filled(in, m->packed ? 4 : 4 + m->v.num * sizeof(struct vpti_used_elem) + sizeof(uint16_t));
	m->region = filled(in, vpti_inflight_size(m->packed, 1, m->queue_size));
	m->v.desc = (const void *)m->ring[0];
	m->v.avail = (const void *)m->ring[1];
	m->v.used = (void *)m->ring[2];
	if (m->packed)
		vpti_virtq_packed.set_base(&m->v, base);
	else
		vpti_virtq_split.set_base(&m->v, base);
}

static int resume(struct image *m)
{
	return m->packed ? vpti_inflight_resume_packed(&m->v, m->region, m->queue_size)
			 : vpti_inflight_resume_split(&m->v, m->region, m->queue_size);
}

static void must_be_in_the_ring(const struct image *m)
{
	if (m->packed)
		MUST(m->v.next_avail < 2u * m->v.num && m->v.next_avail == m->v.next_used);
	else
		MUST(m->v.next_avail <= UINT16_MAX && m->v.next_used <= UINT16_MAX);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuzz_in in = {data, size};
	struct image m;
	uint32_t at, i;

	make(&m, &in);
	if (!resume(&m)) {
		must_be_in_the_ring(&m);
		at = m.v.next_used;
		MUST(!resume(&m));
		MUST(m.v.next_used == at);
		must_be_in_the_ring(&m);
	}
	for (i = 0; i < 3; i++)
		free(m.ring[i]);
	free(m.region);
	return 0;
}
