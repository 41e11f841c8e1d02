/* SPDX-License-Identifier: BSD-2-Clause */
/* stats.c - counters in a shared mapping, read by others without asking */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine.h"

_Static_assert(sizeof(struct vpt_stats_block) == 512, "block: 128 bytes of names, then counters in whole cache lines");
_Static_assert(offsetof(struct vpt_stats_block, c) % 64 == 0 && offsetof(struct vpt_stats, block) % 64 == 0, "aligned");
_Static_assert(VPT_C_RX_PACKETS == 24 && VPT_C_BROKEN == 40, "each writer has its own cache lines");
_Static_assert(VPT_C_BROKEN + VPT_REASON_COUNT <= VPT_C_COUNT, "a counter for each reason");

static const char *const counter_names[VPT_C_COUNT] = {
	[VPT_C_TX_PACKETS] = "tx_packets",
	[VPT_C_TX_BYTES] = "tx_bytes",
	[VPT_C_TX_BATCHES] = "tx_batches",
	[VPT_C_TX_KICKS] = "kicks",
	[VPT_C_TX_KICKS_SUPPRESSED] = "kicks_suppressed",
	[VPT_C_TX_INTERRUPTS] = "tx_interrupts",
	[VPT_C_TX_INTERRUPTS_SUPPRESSED] = "tx_interrupts_suppressed",
	[VPT_C_TX_BLOCKED] = "tx_blocked",
	[VPT_C_TX_DROP_RUNT] = "tx_drop_runt",
	[VPT_C_TX_DROP_OVERSIZE] = "tx_drop_oversize",
	[VPT_C_TX_DROP_BAD_HEADER] = "tx_drop_bad_header",
	[VPT_C_TX_DROP_SPOOFED] = "tx_drop_spoofed",
	[VPT_C_TX_DROP_NO_DEST] = "tx_drop_no_dest",
	[VPT_C_TX_DROP_DISABLED] = "tx_drop_disabled",
	[VPT_C_TX_MAC_LIMIT] = "tx_mac_limit",
	[VPT_C_TX_DROP_VLAN] = "tx_drop_vlan",
	[VPT_C_TX_DROP_ISOLATED] = "tx_drop_isolated",
	[VPT_C_TX_DROP_RATE] = "tx_drop_rate",
	[VPT_C_TX_DROP_STORM] = "tx_drop_storm",
	[VPT_C_RX_PACKETS] = "rx_packets",
	[VPT_C_RX_BYTES] = "rx_bytes",
	[VPT_C_RX_BATCHES] = "rx_batches",
	[VPT_C_RX_INTERRUPTS] = "rx_interrupts",
	[VPT_C_RX_INTERRUPTS_SUPPRESSED] = "rx_interrupts_suppressed",
	[VPT_C_RX_COPIES] = "copies",
	[VPT_C_RX_DROP_FULL] = "rx_drop_full",
	[VPT_C_RX_DROP_DOWN] = "rx_drop_down",
	[VPT_C_RX_DROP_TOO_BIG] = "rx_drop_too_big",
	[VPT_C_RX_DROP_RATE] = "rx_drop_rate",
	[VPT_C_RX_DROP_VLAN] = "rx_drop_vlan",
	[VPT_C_RX_SW_CSUM] = "rx_sw_csum",
	[VPT_C_RX_SW_GSO] = "rx_sw_gso",
	[VPT_C_BROKEN + VPT_REASON_BAD_INDEX] = "broken_bad_index",
	[VPT_C_BROKEN + VPT_REASON_BAD_DESC] = "broken_bad_desc",
	[VPT_C_BROKEN + VPT_REASON_BAD_ADDR] = "broken_bad_addr",
	[VPT_C_BROKEN + VPT_REASON_LOOP] = "broken_loop",
	[VPT_C_BROKEN + VPT_REASON_SIGBUS] = "broken_sigbus",
	[VPT_C_BROKEN + VPT_REASON_BAD_SLOT] = "broken_bad_slot",
	[VPT_C_BROKEN + VPT_REASON_IO] = "broken_io",
};

static const char *const wcounter_names[VPT_W_COUNT] = {
	[VPT_W_LOOPS] = "loops",   [VPT_W_BUSY_LOOPS] = "busy_loops", [VPT_W_SLEEPS] = "sleeps",
	[VPT_W_WAKES] = "wakes",   [VPT_W_LATE] = "late_wakes",       [VPT_W_SYSCALLS] = "syscalls",
	[VPT_W_SPINS] = "spins",   [VPT_W_SPINS_VAIN] = "spins_vain",
};

const char *vpt_counter_name(uint32_t counter)
{
	return counter < VPT_C_COUNT ? counter_names[counter] : NULL;
}

const char *vpt_wcounter_name(uint32_t counter)
{
	return counter < VPT_W_COUNT ? wcounter_names[counter] : NULL;
}

const char *vpt_reason_name(uint32_t reason)
{
	static const size_t prefix = sizeof("broken_") - 1;

	if (reason == VPT_REASON_NONE || reason >= VPT_REASON_COUNT)
		return "none";
	return counter_names[VPT_C_BROKEN + reason] + prefix;
}

int vpti_stats_open(struct vpt_engine *e, int fd)
{
	struct timespec now;
	int rc;

	e->stats_fd = fd < 0 ? memfd_create("vpt-stats", MFD_CLOEXEC) : dup(fd);
	if (e->stats_fd < 0)
		return -errno;
	/* Down to nothing first: a file left by an earlier daemon must not show old ports. */
	if (ftruncate(e->stats_fd, 0) || ftruncate(e->stats_fd, sizeof(struct vpt_stats)))
		goto err;
	e->stats = mmap(NULL, sizeof(struct vpt_stats), PROT_READ | PROT_WRITE, MAP_SHARED, e->stats_fd, 0);
	if (e->stats == MAP_FAILED)
		goto err;
	clock_gettime(CLOCK_REALTIME, &now);
	e->stats->version = VPT_STATS_VERSION;
	e->stats->size = sizeof(struct vpt_stats);
	e->stats->pid = (uint32_t)getpid();
	e->stats->workers = e->nworkers;
	e->stats->blocks = VPTI_ARRAY_SIZE(e->stats->block);
	e->stats->start_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
	VPTI_STORE_RELEASE(e->stats->magic, VPT_STATS_MAGIC); /* last: a reader that sees it sees the rest */
	return 0;
err:
	rc = -errno;
	close(e->stats_fd);
	e->stats = NULL;
	return rc;
}

void vpti_stats_close(struct vpt_engine *e)
{
	if (!e->stats)
		return;
	munmap(e->stats, sizeof(struct vpt_stats));
	close(e->stats_fd);
	e->stats = NULL;
}

struct vpt_stats_block *vpti_stats_block_new(struct vpt_engine *e)
{
	uint32_t i;

	for (i = 0; i < e->stats->blocks; i++) {
		if (!e->stats->block[i].in_use) {
			memset(&e->stats->block[i], 0, sizeof(e->stats->block[i]));
			return &e->stats->block[i];
		}
	}
	return NULL;
}

void vpti_stats_block_free(struct vpt_stats_block *b)
{
	VPTI_STORE_RELEASE(b->in_use, 0);
}
