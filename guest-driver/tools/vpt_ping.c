// SPDX-License-Identifier: BSD-2-Clause
/*
 * vpt_ping.c - round trips, each of them, and which packets never came back
 *
 *   vpt_ping ADDR COUNT INTERVAL_US SIZE WAIT_MS
 *
 * Ends when all answers are there or WAIT_MS after the last request: a machine that gets no CPU for a second has not
 * lost a packet. Prints one line of JSON, times in microseconds.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/ip.h>
#include <netinet/ip_icmp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define PING_MAX_COUNT 65536u  /* numbers are 16 bits wide */
#define PING_MAX_SIZE 65507u

struct ping {
	int fd;
	uint16_t id;
	uint32_t count, size, answered, duplicates;
	uint64_t interval;
	struct sockaddr_in to;
	uint64_t *sent;        /* when, by number; in ns */
	int64_t *rtt;          /* -1: not back yet */
};

static uint8_t buf[65536];

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static uint16_t checksum(const uint8_t *p, uint32_t len)
{
	uint32_t sum = 0;

	for (; len > 1; p += 2, len -= 2)
		sum += p[0] | p[1] << 8;
	if (len)
		sum += p[0];
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)~sum;
}

static int send_request(struct ping *p, uint32_t seq)
{
	struct icmphdr h = { .type = ICMP_ECHO, .un.echo = { .id = p->id, .sequence = htons((uint16_t)seq) } };

	memset(buf, 0x5a, sizeof(h) + p->size);
	memcpy(buf, &h, sizeof(h));
	h.checksum = checksum(buf, sizeof(h) + p->size);
	memcpy(buf, &h, sizeof(h));
	p->sent[seq] = now_ns();
	/* No buffer space is a packet that got lost on this side. */
	if (sendto(p->fd, buf, sizeof(h) + p->size, 0, (struct sockaddr *)&p->to, sizeof(p->to)) < 0 &&
	    errno != ENOBUFS)
		return -1;
	return 0;
}

/* Take one packet off the socket, which gets all of the machine's ICMP. */
static void take_answer(struct ping *p, uint32_t sent)
{
	ssize_t len = recv(p->fd, buf, sizeof(buf), MSG_DONTWAIT);
	struct icmphdr h;
	uint32_t seq;
	size_t ip_len;

	if (len < (ssize_t)sizeof(struct iphdr))
		return;
	ip_len = (buf[0] & 15) * 4u;
	if ((size_t)len < ip_len + sizeof(h))
		return;
	memcpy(&h, buf + ip_len, sizeof(h));
	seq = ntohs(h.un.echo.sequence);
	if (h.type != ICMP_ECHOREPLY || h.un.echo.id != p->id || seq >= sent)
		return;
	if (p->rtt[seq] >= 0) {
		p->duplicates++;
		return;
	}
	p->rtt[seq] = (int64_t)(now_ns() - p->sent[seq]);
	p->answered++;
}

static int run(struct ping *p, uint64_t wait)
{
	uint64_t next = now_ns(), end = UINT64_MAX;
	uint32_t sent = 0;

	while (p->answered < p->count) {
		struct pollfd fd = { .fd = p->fd, .events = POLLIN };
		uint64_t now = now_ns(), due = sent < p->count ? next : end;
		struct timespec left = { 0 };

		if (now >= end)
			break;
		if (sent < p->count && now >= next) {
			if (send_request(p, sent) < 0)
				return -1;
			sent++;
			next += p->interval;
			if (sent == p->count)
				end = now_ns() + wait;
			continue;
		}
		left.tv_sec = (due - now) / 1000000000;
		left.tv_nsec = (due - now) % 1000000000;
		if (ppoll(&fd, 1, &left, NULL) > 0)
			take_answer(p, sent);
	}
	return 0;
}

static void report(const struct ping *p, double seconds)
{
	const char *comma = "";

	printf("{\"sent\": %u, \"received\": %u, \"duplicates\": %u, \"seconds\": %.6f, \"missing\": [", p->count,
	       p->answered, p->duplicates, seconds);
	for (uint32_t i = 0; i < p->count; i++) {
		if (p->rtt[i] < 0) {
			printf("%s%u", comma, i);
			comma = ", ";
		}
	}
	printf("], \"rtt_us\": [");
	comma = "";
	for (uint32_t i = 0; i < p->count; i++) {
		if (p->rtt[i] >= 0) {
			printf("%s%.1f", comma, p->rtt[i] / 1e3);
			comma = ", ";
		}
	}
	printf("]}\n");
}

int main(int argc, char **argv)
{
	struct ping p = { .id = (uint16_t)getpid(), .to = { .sin_family = AF_INET } };
	uint64_t start;

	if (argc != 6 || inet_pton(AF_INET, argv[1], &p.to.sin_addr) != 1) {
		fprintf(stderr, "usage: vpt_ping ADDR COUNT INTERVAL_US SIZE WAIT_MS\n");
		return 2;
	}
	p.count = (uint32_t)atoi(argv[2]);
	p.interval = strtoull(argv[3], NULL, 10) * 1000;
	p.size = (uint32_t)atoi(argv[4]);
	p.fd = socket(AF_INET, SOCK_RAW, IPPROTO_ICMP);
	errno = EINVAL;
	if (!p.count || p.count > PING_MAX_COUNT || p.size > PING_MAX_SIZE || p.fd < 0)
		goto fail;
	p.sent = calloc(p.count, sizeof(*p.sent));
	p.rtt = malloc(p.count * sizeof(*p.rtt));
	if (!p.sent || !p.rtt)
		goto fail;
	memset(p.rtt, 0xff, p.count * sizeof(*p.rtt));
	start = now_ns();
	if (run(&p, strtoull(argv[5], NULL, 10) * 1000000) < 0)
		goto fail;
	report(&p, (now_ns() - start) / 1e9);
	return 0;
fail:
	fprintf(stderr, "vpt_ping: %s: %s\n", argv[1], strerror(errno));
	return 1;
}
