/* SPDX-License-Identifier: BSD-2-Clause */
/* fuzz_replay.c - runs a fuzz target on the inputs of a folder: seeds, and what once broke it, as ordinary tests */

#include <dirent.h>
#include <limits.h>

#include "fuzz.h"

static int replay(const char *path)
{
	static uint8_t buf[1 << 20];
	uint8_t *own;
	size_t len;
	FILE *f;

	f = fopen(path, "rb");
	if (!f) {
		perror(path);
		return EXIT_FAILURE;
	}
	len = fread(buf, 1, sizeof(buf), f);
	fclose(f);
	fprintf(stderr, "%s: %zu bytes\n", path, len);
	own = malloc(len); /* exactly as long, so that ASan sees its end */
	if (own)
		memcpy(own, buf, len);
	if (own || !len)
		LLVMFuzzerTestOneInput(own, len);
	free(own);
	return EXIT_SUCCESS;
}

int main(int argc, char **argv)
{
	char path[PATH_MAX];
	struct dirent *entry;
	int rc = EXIT_FAILURE;
	DIR *dir;

	dir = argc == 2 ? opendir(argv[1]) : NULL;
	if (!dir) {
		fprintf(stderr, "usage: %s FOLDER\n", argv[0]);
		return EXIT_FAILURE;
	}
	while ((entry = readdir(dir))) {
		if (entry->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "%s/%s", argv[1], entry->d_name);
		rc = replay(path);
		if (rc)
			break;
	}
	closedir(dir);
	return rc;
}
