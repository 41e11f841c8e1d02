/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * hist.c - latencies: extremes, sum, and a histogram with 32 linear steps in each power of two
 */
#include "guest.h"

void hist_reset(void)
{
	memset(DESK->hist, 0, sizeof(DESK->hist));
	DESK->result.lat_min = UINT64_MAX;
}

/* Values below 32 have a cell each; cell 32 * (e + 1) + s holds those in [(32 + s) << e, (33 + s) << e). */
static uint32_t cell(uint64_t v)
{
	uint32_t e, at;

	if (v < MICRO_HIST_STEPS)
		return (uint32_t)v;
	e = 63u - (uint32_t)__builtin_clzll(v) - 5;
	at = MICRO_HIST_STEPS * (e + 1) + (uint32_t)(v >> e) - MICRO_HIST_STEPS;
	return at < MICRO_HIST_SIZE ? at : MICRO_HIST_SIZE - 1;
}

void hist_add(uint64_t cycles)
{
	struct micro_result *r = &DESK->result;

	r->lat_count++;
	r->lat_sum += cycles;
	if (cycles < r->lat_min)
		r->lat_min = cycles;
	if (cycles > r->lat_max)
		r->lat_max = cycles;
	DESK->hist[cell(cycles)]++;
}
