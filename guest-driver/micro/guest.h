/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * guest.h - what the payload's files know of each other
 */
#ifndef MICRO_GUEST_H
#define MICRO_GUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "micro.h"

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

/* Linux's numbers: the host prints them by name. */
#define EIO 5
#define ENODEV 19
#define EINVAL 22
#define ENOTSUP 95
#define ETIMEDOUT 110

#define DESK ((struct micro_desk *)(uintptr_t)MICRO_DESK_ADDR)

/* What runs once per order or less: small rather than fast, also in a file that is built for speed. */
#define cold __attribute__((cold))

/* ---- console.c: serial line for people; the host shows its end when something goes wrong ---- */

void puts(const char *s);
void puthex(uint64_t v);
/* Puts the reason on the desk and on the console; returns err, for `return fail(-EINVAL, "...")`. */
int fail(int err, const char *why);
void power_off(void) __attribute__((noreturn));

void *memcpy(void *dst, const void *src, size_t n);
void *memset(void *dst, int c, size_t n);
int memcmp(const void *a, const void *b, size_t n);

/* ---- irq.c: interrupts, which are taken inside cpu_sleep() and nowhere else ---- */

/* Order of the stubs in boot.S. */
enum irq_kind { IRQ_RX, IRQ_TX, IRQ_CFG, IRQ_TIMER, IRQ_KINDS };

void irq_init(void);
uint8_t irq_vector(enum irq_kind kind);
uint64_t irq_taken(enum irq_kind kind);
/* Start the safety net: nobody sleeps longer than this (milliseconds); 0 stops it. */
void irq_timer(uint32_t ms);
/* HLT until an interrupt; at once if one is pending. */
void cpu_sleep(void);

/* ---- pci.c ---- */

struct pci_dev {
	uint32_t bdf;           /* bus << 8 | device << 3 | function */
	uint16_t vendor;
	uint16_t device;
};

/* Visit bus 0: false when there is no further device. Start with bdf = PCI_FIRST. */
#define PCI_FIRST UINT32_MAX
bool pci_next(struct pci_dev *dev);
uint32_t pci_read(const struct pci_dev *dev, uint32_t ofs);
void pci_write(const struct pci_dev *dev, uint32_t ofs, uint32_t v);
/* Address of a memory BAR, which is assigned if no firmware did; 0: none, or out of reach. */
uint64_t pci_bar(const struct pci_dev *dev, uint32_t n, uint64_t *size);
void pci_enable(const struct pci_dev *dev);
/* Offset of the next capability `id` behind offset `after` (0: the first); 0: none. */
uint32_t pci_capability(const struct pci_dev *dev, uint8_t id, uint32_t after);
/* Route MSI-X entry `entry` to an interrupt; false if the device has no such entry. */
bool pci_msix_route(const struct pci_dev *dev, uint32_t entry, enum irq_kind kind);

/* ---- drivers ---- */

struct pkt {
	uint8_t *data;          /* Ethernet header */
	uint32_t len;
};

/*
 * What the roles need from a device, one tx and one rx queue of it. A driver keeps its own state; the calls are
 * per burst, so that their indirection costs nothing per packet.
 */
struct driver {
	/* Find the device and start it, accepting `features`; fills *found. -ENODEV: not there, others: said why. */
	int (*open)(uint64_t features, struct micro_found *found);

	/* Slots that may be filled. Looks at the host's index only if fewer than `want` are known to be free. */
	uint32_t (*tx_room)(uint32_t want);
	/* Buffer of slot i of the idle ring, with the slot set up for `len` bytes. */
	uint8_t *(*tx_prepare)(uint32_t i, uint32_t len);
	/* Set up the next n slots for v[].len bytes and return their buffers in v[].data. */
	void (*tx_next)(struct pkt *v, uint32_t n);
	void (*tx_publish)(uint32_t n);
	/* Does the host want a kick for the last n published? Contains the fence. */
	bool (*tx_wants_kick)(uint32_t n);
	void (*tx_kick)(void);
	/* Has the host taken everything? */
	bool (*tx_idle)(void);
	/* Ask for an interrupt when there is room for `want`; false: there is already, do not sleep. */
	bool (*tx_arm)(uint32_t want);
	void (*tx_disarm)(void);

	/* Look at up to max received packets. They stay the guest's until released. */
	uint32_t (*rx_take)(struct pkt *v, uint32_t max);
	void (*rx_release)(uint32_t n);
	bool (*rx_wants_kick)(uint32_t n);
	void (*rx_kick)(void);
	bool (*rx_arm)(void);
	void (*rx_disarm)(void);
};

extern const struct driver ring_driver;
extern const struct driver virtio_pci_driver;
extern const struct driver virtio_mmio_driver;

/* ---- orders.c ---- */

void serve_orders(void) __attribute__((noreturn));

/* ---- roles.c ---- */

int run_role(const struct driver *drv, const struct micro_order *order);

/* ---- frame.c ---- */

#define MASK48 (~0ull >> 16)

struct stamp {
	uint32_t run;                   /* which order's packet it is */
	uint64_t seq;                   /* 48 bits travel of this, and of the next */
	uint64_t tsc;
};

/* A packet of the order's shape that belongs to flow `flow`; without a stamp. */
void frame_build(uint8_t *frame, const struct micro_order *order, uint32_t flow);
void frame_stamp(uint8_t *frame, const struct stamp *s);
/* false: neither a guest's nor `vpt gen`'s, whose time is no TSC */
bool frame_stamped(const struct pkt *p, struct stamp *s);
void frame_turn(uint8_t *dst, const struct pkt *p);
uint64_t frame_sum(const struct pkt *p);

/* ---- hist.c ---- */

void hist_reset(void);
void hist_add(uint64_t cycles);

#endif /* MICRO_GUEST_H */
