/* SPDX-License-Identifier: BSD-2-Clause */
/* copy.h - the one copy: from a packet in its sender's memory into runs of its receiver's memory */
#ifndef VPTI_COPY_H
#define VPTI_COPY_H

#include <string.h>

#include "port.h"
#include "vlan.h"

#define VPTI_HDR_COMMON offsetof(struct vpt_vnet_hdr, num_buffers) /* a legacy header ends there */

struct vpti_cursor {
	const struct vpti_run *run;
	const struct vpti_run *end;
	uint32_t ofs;
};

static inline void vpti_put(struct vpti_cursor *c, const uint8_t *src, uint32_t len)
{
	while (len && c->run != c->end) {
		uint32_t k = VPTI_MIN(c->run->len - c->ofs, len);

		memcpy(c->run->p + c->ofs, src, k);
		src += k;
		len -= k;
		c->ofs += k;
		if (c->ofs == c->run->len) {
			c->run++;
			c->ofs = 0;
		}
	}
}

/*
 * The header as it was just written, in the same pieces: a load that spans two stores has to wait until they, and all
 * stores before them, are in the cache, one miss on the receiver's memory after the other.
 *
 * A buffer that has been round before mostly has this very header already. Then the line is left alone, and a driver that only
 * looks whether the header is as expected finds it in its own cache (DPDK's does; its frames start on the next line).
 */
static inline void vpti_put_header(uint8_t *d, const struct vpt_vnet_hdr *hdr, uint32_t hdr_len)
{
	const uint8_t *h = (const uint8_t *)hdr;

	if (vpti_likely(hdr_len == sizeof(*hdr))) {
		uint64_t there, here;
		uint32_t there_end, here_end;

		memcpy(&there, d, sizeof(there));
		memcpy(&here, h, sizeof(here));
		memcpy(&there_end, d + sizeof(there), sizeof(there_end));
		memcpy(&here_end, h + sizeof(here), sizeof(here_end));
		if (there != here)
			memcpy(d, &here, sizeof(here));
		if (there_end != here_end)
			memcpy(d + sizeof(here), &here_end, sizeof(here_end));
	} else {
		memcpy(d, h, VPTI_HDR_COMMON);
	}
}

/*
 * Bytes of a frame. Small ones are most of what comes at high rates: two pieces that may overlap, of a length that the
 * compiler knows, instead of a call that first finds out how long it is (a quarter of the time of copying 64 bytes).
 */
static inline void vpti_copy_frame(uint8_t *d, const uint8_t *s, uint32_t len)
{
	if (len - 32 <= 32) {
		memcpy(d, s, 32);
		memcpy(d + len - 32, s + len - 32, 32);
	} else {
		memcpy(d, s, len);
	}
}

/* General case: any number of fragments on both sides, cut anywhere. */
VPTI_OUTLINE void vpti_copy_runs(const struct vpti_run *run, uint32_t nrun, const struct vpt_vnet_hdr *hdr,
				 uint32_t hdr_len, const struct vpti_pkt *p)
{
	struct vpti_cursor c = { run, run + nrun, 0 };
	uint32_t skip = VPTI_ETH_HLEN; /* comes from the private copy */
	uint8_t head[VPTI_VLAN_HEAD];
	uint32_t i;

	vpti_put(&c, (const uint8_t *)hdr, hdr_len);
	if (vpti_unlikely(p->tag))
		vpti_put(&c, head, vpti_vlan_head(p, head));
	else
		vpti_put(&c, p->eth, VPTI_ETH_HLEN);
	for (i = 0; i <= p->nmore; i++) {
		const struct vpti_frag *f = i ? &p->more[i - 1] : &p->first;
		uint32_t cut = VPTI_MIN(skip, f->len);

		skip -= cut;
		vpti_put(&c, f->p + cut, f->len - cut);
	}
}

/**
 * vpti_copy() - Copy one packet, preceded by hdr_len bytes of vnet header
 *
 * The runs have room for all of it. Exactly len bytes are written: rounding up to cache lines, as trusted designs do, would show the
 * receiver what the sender's buffer held before.
 */
static inline void vpti_copy(const struct vpti_run *run, uint32_t nrun, const struct vpt_vnet_hdr *hdr, uint32_t hdr_len,
			     const struct vpti_pkt *p)
{
	uint8_t *d = run->p;

	if (vpti_unlikely(nrun != 1 || p->nmore || p->first.len < VPTI_ETH_HLEN)) {
		vpti_copy_runs(run, nrun, hdr, hdr_len, p);
		return;
	}
	if (hdr_len) {
		vpti_put_header(d, hdr, hdr_len);
		d += hdr_len;
	}
	if (vpti_unlikely(p->tag)) {
		memcpy(d + VPTI_VLAN_HLEN, p->first.p, p->first.len);
		vpti_vlan_head(p, d);
		return;
	}
	/* The whole frame in one aligned go, then the checked header over it: cheaper than starting at an odd offset of 14. */
	vpti_copy_frame(d, p->first.p, p->len);
	memcpy(d, p->eth, VPTI_ETH_HLEN);
}

#endif /* VPTI_COPY_H */
