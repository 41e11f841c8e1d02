// SPDX-License-Identifier: BSD-2-Clause
/*
 * vpt_flow.c - numbered UDP packets from one guest to another
 *
 *   vpt_flow recv PORT IDLE_MS              until the sender says it is done, or nothing came for IDLE_MS
 *   vpt_flow send ADDR PORT COUNT SIZE PPS [BURST]
 *
 * PPS 0: as fast as it goes. BURST: so many packets in one call, as one large packet that somebody below has to cut up
 * (UDP_SEGMENT).
 *
 * Each prints "ready" when it can be relied on to be listening (recv), and at the end one line of JSON.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <netinet/udp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#define FLOW_MAX_SIZE 65507
#define FLOW_END UINT64_MAX   /* instead of a number: that was all */
#define FLOW_ENDS 20          /* how often to say so, 10 ms apart: it may get lost like any packet */

static uint8_t buf[FLOW_MAX_SIZE];

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void sleep_until(uint64_t ns)
{
	struct timespec t = { .tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000 };

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
		;
}

static int fail(const char *what)
{
	fprintf(stderr, "vpt_flow: %s: %s\n", what, strerror(errno));
	return 1;
}

/* Which numbers have been seen: one bit each, so that duplicates do not hide losses. Return: true the first time. */
static int seen_first(uint8_t **bits, uint64_t *cap, uint64_t seq)
{
	uint8_t mask = 1u << (seq % 8);

	if (seq / 8 >= *cap) {
		uint64_t grown = seq / 4 + 4096;
		uint8_t *p = grown > (1u << 28) ? NULL : realloc(*bits, grown);

		if (!p)
			return 0;
		memset(p + *cap, 0, grown - *cap);
		*bits = p;
		*cap = grown;
	}
	if ((*bits)[seq / 8] & mask)
		return 0;
	(*bits)[seq / 8] |= mask;
	return 1;
}

static int flow_recv(char **arg)
{
	struct sockaddr_in6 any = { .sin6_family = AF_INET6, .sin6_port = htons(atoi(arg[0])) };
	uint64_t packets = 0, bytes = 0, again = 0, late = 0, next = 0, first = 0, last = 0, cap = 0;
	int idle_ms = atoi(arg[1]), size = 8 << 20, fd = socket(AF_INET6, SOCK_DGRAM, 0);
	struct pollfd p = { .fd = fd, .events = POLLIN };
	uint8_t *bits = NULL;

	/* What is to be measured are losses below the socket, not in its buffer. */
	setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size));
	if (fd < 0 || bind(fd, (struct sockaddr *)&any, sizeof(any)) < 0)
		return fail("cannot listen");
	printf("ready\n");
	fflush(stdout);
	while (poll(&p, 1, idle_ms) > 0) {
		ssize_t len = recv(fd, buf, sizeof(buf), 0);
		uint64_t seq;

		if (len < (ssize_t)sizeof(seq))
			continue;
		memcpy(&seq, buf, sizeof(seq));
		seq = be64toh(seq);
		if (seq == FLOW_END)
			break;
		last = now_ns();
		if (!packets)
			first = last;
		if (!seen_first(&bits, &cap, seq)) {
			again++;
			continue;
		}
		late += seq < next;
		next = seq + 1;
		packets++;
		bytes += len;
	}
	printf("{\"received\": %llu, \"bytes\": %llu, \"duplicates\": %llu, \"reordered\": %llu, \"seconds\": %.6f}\n",
	       (unsigned long long)packets, (unsigned long long)bytes, (unsigned long long)again,
	       (unsigned long long)late, (last - first) / 1e9);
	return 0;
}

static int flow_connect(const char *addr, const char *port)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(atoi(port)) };
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	if (fd < 0 || inet_pton(AF_INET, addr, &to.sin_addr) != 1 ||
	    connect(fd, (struct sockaddr *)&to, sizeof(to)) < 0)
		return -1;
	return fd;
}

static void put_number(size_t ofs, uint64_t seq)
{
	seq = htobe64(seq);
	memcpy(buf + ofs, &seq, sizeof(seq));
}

static int flow_send(char **arg)
{
	uint64_t count = strtoull(arg[2], NULL, 10), pps = strtoull(arg[4], NULL, 10), bytes = 0, start, i;
	int size = atoi(arg[3]), burst = arg[5] ? atoi(arg[5]) : 1, fd = flow_connect(arg[0], arg[1]);
	double seconds;

	if (size < (int)sizeof(uint64_t) || burst < 1 || size > FLOW_MAX_SIZE / burst) {
		errno = EINVAL;
		return fail("size");
	}
	if (fd < 0 || (burst > 1 && setsockopt(fd, IPPROTO_UDP, UDP_SEGMENT, &size, sizeof(size)) < 0))
		return fail(arg[0]);
	start = now_ns();
	for (i = 0; i < count; i += burst) {
		int n = count - i < (uint64_t)burst ? (int)(count - i) : burst;

		for (int k = 0; k < n; k++)
			put_number((size_t)k * size, i + k);
		if (pps)
			sleep_until(start + i * 1000000000ull / pps);
		while (send(fd, buf, (size_t)n * size, 0) < 0) {
			if (errno != ENOBUFS && errno != ECONNREFUSED)
				return fail("send");
			sleep_until(now_ns() + 100000);
		}
		bytes += (uint64_t)n * size;
	}
	seconds = (now_ns() - start) / 1e9;
	put_number(0, FLOW_END);
	for (i = 0; i < FLOW_ENDS; i++) {
		sleep_until(now_ns() + 10000000);
		send(fd, buf, sizeof(uint64_t), 0);
	}
	printf("{\"sent\": %llu, \"bytes\": %llu, \"seconds\": %.6f}\n", (unsigned long long)count,
	       (unsigned long long)bytes, seconds);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 4 && !strcmp(argv[1], "recv"))
		return flow_recv(argv + 2);
	if ((argc == 7 || argc == 8) && !strcmp(argv[1], "send"))
		return flow_send(argv + 2);
	fprintf(stderr, "usage: vpt_flow recv PORT IDLE_MS | send ADDR PORT COUNT SIZE PPS [BURST]\n");
	return 2;
}
