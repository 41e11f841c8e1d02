// SPDX-License-Identifier: BSD-2-Clause
/* vpt_nicstat.c - a network device's driver and its counters as JSON (ethtool -i and -S, for guests without ethtool) */
#include <errno.h>
#include <linux/ethtool.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

static int ask(int fd, const char *dev, void *cmd)
{
	struct ifreq req = { .ifr_data = cmd };

	strncpy(req.ifr_name, dev, IFNAMSIZ - 1);
	return ioctl(fd, SIOCETHTOOL, &req);
}

static int counters(int fd, const char *dev, unsigned int n)
{
	struct ethtool_gstrings *names = calloc(1, sizeof(*names) + n * ETH_GSTRING_LEN);
	struct ethtool_stats *values = calloc(1, sizeof(*values) + n * sizeof(values->data[0]));
	int err = -1;

	if (!names || !values)
		goto out;
	names->cmd = ETHTOOL_GSTRINGS;
	names->string_set = ETH_SS_STATS;
	names->len = n;
	values->cmd = ETHTOOL_GSTATS;
	values->n_stats = n;
	if (n && (ask(fd, dev, names) < 0 || ask(fd, dev, values) < 0))
		goto out;
	for (unsigned int i = 0; i < n; i++)
		printf(", \"%.*s\": %llu", ETH_GSTRING_LEN, (char *)names->data + i * ETH_GSTRING_LEN,
		       (unsigned long long)values->data[i]);
	err = 0;
out:
	free(names);
	free(values);
	return err;
}

int main(int argc, char **argv)
{
	struct ethtool_drvinfo info = { .cmd = ETHTOOL_GDRVINFO };
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	if (argc != 2) {
		fprintf(stderr, "usage: vpt_nicstat DEVICE\n");
		return 2;
	}
	if (fd < 0 || ask(fd, argv[1], &info) < 0)
		goto fail;
	printf("{\"driver\": \"%s\", \"version\": \"%s\", \"bus\": \"%s\"", info.driver, info.version, info.bus_info);
	if (counters(fd, argv[1], info.n_stats) < 0)
		goto fail;
	printf("}\n");
	return 0;
fail:
	fprintf(stderr, "vpt_nicstat: %s: %s\n", argv[1], strerror(errno));
	return 1;
}
