/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * micro.h - the desk: how the host gives the micro guest orders and reads its results
 *
 * The guest's RAM is a file that the host maps too. The desk lies in it at MICRO_DESK_ADDR, the same for every machine
 * type, accelerator and device, and neither side needs an exit to use it. Single owner of the layout;
 * vpt/bench/micro/_desk.py is its twin, and a test holds the two equal. All fields are little-endian and naturally
 * aligned.
 *
 *   guest:  zeroes the desk; state = READY; release; magic      host:  waits for magic
 *   host:   order; release; order_seq += 1                      guest: acquires order_seq, acts
 *   guest:  result, error; release; done_seq = order_seq        host:  acquires done_seq, reads
 *
 * While an order runs the result is live: each counter has one writer, the guest, and only grows. The host ends a run
 * early by setting stop.
 */
#ifndef VPT_MICRO_H
#define VPT_MICRO_H

#include <stdint.h>

#define MICRO_MAGIC 0x6f7263696d747076ull /* "vptmicro" in memory order */
#define MICRO_VERSION 1u

#define MICRO_DESK_ADDR 0x400000u       /* guest-physical, which is the offset in the RAM file as well */
#define MICRO_DMA_ADDR 0x600000u        /* virtio rings and buffers */
#define MICRO_RAM_SIZE 0x2000000u       /* what the host must give at least */

#define MICRO_MAX_BURST 512u
#define MICRO_MIN_FRAME 60u             /* so that a stamp fits; 64 bytes on a wire */

/* Histogram of latencies in TSC cycles: 32 linear steps in each power of two, so a value is known to 3%. */
#define MICRO_HIST_STEPS 32u
#define MICRO_HIST_SIZE (MICRO_HIST_STEPS * 40u)

enum micro_state { MICRO_S_READY = 1, MICRO_S_BUSY = 2, MICRO_S_DEAD = 3 };

enum micro_cmd {
	MICRO_CMD_OPEN = 1,     /* find the device, negotiate, start its rings */
	MICRO_CMD_RUN = 2       /* play a role on the opened device */
};

enum micro_device {
	MICRO_DEV_ANY = 0,      /* the first found, in this order */
	MICRO_DEV_RING = 1,     /* ivshmem-doorbell whose BAR2 carries VPT_MAGIC: a passthrough port */
	MICRO_DEV_VIRTIO_PCI = 2,
	MICRO_DEV_VIRTIO_MMIO = 3
};

enum micro_role {
	MICRO_ROLE_GEN = 1,     /* send */
	MICRO_ROLE_SINK = 2,    /* receive */
	MICRO_ROLE_ECHO = 3,    /* send back what comes, Ethernet addresses swapped */
	MICRO_ROLE_PING = 4     /* send stamped packets, measure how long they take to come back */
};

enum micro_touch {
	MICRO_TOUCH_NONE = 0,   /* gen: slots and packets are prepared before the run; sink: packets are counted */
	MICRO_TOUCH_SLOT = 1,   /* gen: each slot is written; sink: as none */
	MICRO_TOUCH_STAMP = 2,  /* gen: and sequence number and time; sink: they are read, gaps counted */
	MICRO_TOUCH_ALL = 3     /* gen: and each byte of the packet; sink: each byte is read */
};

enum micro_kick {
	MICRO_KICK_NEVER = 0,   /* the host is known to poll */
	MICRO_KICK_EVERY = 1,   /* after each kick_every packets, wanted or not */
	MICRO_KICK_WANTED = 2   /* when the host wants it: by event index where negotiated, else by flag */
};

enum micro_wait {
	MICRO_WAIT_POLL = 0,
	MICRO_WAIT_IRQ = 1      /* arm the interrupt, HLT */
};

enum micro_flow {
	MICRO_FLOW_PORT = 1,    /* flow number is added to the UDP source port */
	MICRO_FLOW_DMAC = 2,    /* ... to the last two bytes of the destination address */
	MICRO_FLOW_SMAC = 4     /* ... of the source address */
};

struct micro_order {
	uint32_t cmd;           /* enum micro_cmd */
	uint32_t device;        /* open: enum micro_device */
	uint64_t features;      /* open: mask of what to accept, VPT_F_* or virtio's numbers */
	uint32_t role;          /* run, all that follows: enum micro_role */
	uint32_t touch;         /* enum micro_touch */
	uint32_t kick;          /* enum micro_kick */
	uint32_t kick_every;    /* packets */
	uint32_t wait;          /* enum micro_wait */
	uint32_t frame_len;     /* bytes without FCS */
	uint32_t burst;         /* packets published together, 1..MICRO_MAX_BURST */
	uint32_t window;        /* ping: most packets in flight, 0 as many as fit */
	uint32_t flows;         /* 1..65536; more than there are slots only with MICRO_TOUCH_ALL */
	uint32_t flow_fields;   /* enum micro_flow, or-ed */
	uint64_t count;         /* end after so many packets, 0: do not count */
	uint64_t duration;      /* end after so many TSC cycles; never 0 */
	uint64_t interval;      /* pacing: cycles << 16 from burst to burst, 0: as fast as it goes */
	uint64_t linger;        /* then wait so many cycles at most for what is still under way */
	uint8_t dst[6];
	uint8_t src[6];         /* zero: that of struct micro_found */
	uint32_t pad[7];
};

struct micro_found {
	uint32_t device;        /* enum micro_device, 0: none opened */
	uint32_t slots;         /* of the tx ring */
	uint64_t features;      /* accepted by both */
	uint8_t mac[6];         /* the device's, or one of ours if it has none */
	uint16_t irq;           /* 1: MICRO_WAIT_IRQ works on it */
	uint32_t max_frame;     /* bytes */
	char name[32];
};

struct micro_result {
	uint64_t tx_packets;
	uint64_t tx_bytes;
	uint64_t tx_bursts;
	uint64_t tx_full;       /* bursts that had to wait for room */
	uint64_t rx_packets;
	uint64_t rx_bytes;
	uint64_t rx_bursts;
	uint64_t rx_empty;      /* times it had to wait for a packet */
	uint64_t kicks;
	uint64_t kicks_suppressed; /* publications that needed none */
	uint64_t sleeps;        /* HLT */
	uint64_t interrupts;    /* that the device's wake-ups came by */
	uint64_t ticks;         /* timer interrupts while asleep: the safety net */
	uint64_t late;          /* paced bursts skipped because the guest could not keep up */
	uint64_t seq_lost;      /* stamped packets missing between those that came */
	uint64_t seq_late;      /* stamped packets that came after a later one */
	uint64_t foreign;       /* received, but without our stamp where one was looked for */
	uint64_t sum;           /* of what was read; keeps the compiler honest */
	uint64_t start;         /* TSC: before the first packet */
	uint64_t end;           /* TSC: the last one was published or received */
	uint64_t drained;       /* TSC: the host had taken all that was sent; 0: it had not when time was up */
	uint64_t lat_count;
	uint64_t lat_sum;       /* cycles */
	uint64_t lat_min;
	uint64_t lat_max;
};

struct micro_desk {
	/* guest -> host */
	uint64_t magic;
	uint32_t version;
	uint32_t size;
	uint32_t state;         /* enum micro_state */
	uint32_t done_seq;
	int32_t error;          /* negative errno of the last order */
	uint32_t pad0;
	uint64_t tsc;           /* refreshed while waiting for an order: lets the host find the frequency */
	char message[88];       /* why error is not 0, or what it died of */
	/* host -> guest */
	uint32_t order_seq;
	uint32_t stop;
	uint64_t pad1[7];
	struct micro_order order;
	/* guest -> host */
	struct micro_found found;
	struct micro_result result;
	uint32_t hist[MICRO_HIST_SIZE];
};

#endif /* VPT_MICRO_H */
