/* SPDX-License-Identifier: BSD-2-Clause */
/* bpf.h - packet filters: classic BPF (McCanne and Jacobson, USENIX Winter 1993), the machine that libpcap compiles for */
#ifndef VPTI_BPF_H
#define VPTI_BPF_H

#include <stdbool.h>

#include "vpt/vpt.h"

/* May it be run? Every instruction known, every jump forward and within, every path ends: so it takes n steps at most. */
bool vpti_bpf_ok(const struct vpt_bpf_insn *insn, uint32_t n);

/**
 * vpti_bpf_run() - Run a program that is ok on a packet
 * @data:	the first have bytes of it; nothing beyond is read
 * @len:	how long the packet is in full
 *
 * Return: 0: no match (also where the program reads beyond the packet's end)
 */
uint32_t vpti_bpf_run(const struct vpt_bpf_insn *insn, const uint8_t *data, uint32_t len, uint32_t have);

#endif /* VPTI_BPF_H */
