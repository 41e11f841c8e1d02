/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * console.c - serial line, memory helpers, and the ways to stop
 */
#include "cpu.h"
#include "guest.h"

#define COM1 0x3f8
#define DEBUG_EXIT 0xf4         /* QEMU's isa-debug-exit, if the host gave one */

extern uint64_t trap_number, trap_error, trap_rip, trap_address;
void trap_report(void);

static void putch(char c)
{
	outb(COM1, (uint8_t)c);
}

void puts(const char *s)
{
	while (*s)
		putch(*s++);
}

void puthex(uint64_t v)
{
	int shift = 60;

	while (shift && !(v >> shift))
		shift -= 4;
	for (; shift >= 0; shift -= 4)
		putch("0123456789abcdef"[v >> shift & 15]);
}

int fail(int err, const char *why)
{
	size_t i;

	for (i = 0; why[i] && i < sizeof(DESK->message) - 1; i++)
		DESK->message[i] = why[i];
	DESK->message[i] = 0;
	puts("micro: ");
	puts(why);
	puts("\n");
	return err;
}

void power_off(void)
{
	DESK->state = MICRO_S_DEAD;
	outb(DEBUG_EXIT, 0);
	for (;;)
		cpu_sleep();
}

/* Where the trap stubs of boot.S end up, back at CPL 3. */
void trap_report(void)
{
	puts("micro: exception ");
	puthex(trap_number);
	puts(" error ");
	puthex(trap_error);
	puts(" at ");
	puthex(trap_rip);
	puts(" address ");
	puthex(trap_address);
	puts("\n");
	DESK->error = -EIO;
	fail(-EIO, "the payload took an exception");
	power_off();
}

void *memcpy(void *dst, const void *src, size_t n)
{
	void *ret = dst;

	__asm__ volatile("rep movsb" : "+D"(dst), "+S"(src), "+c"(n) : : "memory");
	return ret;
}

void *memset(void *dst, int c, size_t n)
{
	void *ret = dst;

	__asm__ volatile("rep stosb" : "+D"(dst), "+c"(n) : "a"(c) : "memory");
	return ret;
}

int memcmp(const void *a, const void *b, size_t n)
{
	const uint8_t *x = a, *y = b;

	for (; n; n--, x++, y++)
		if (*x != *y)
			return *x - *y;
	return 0;
}
