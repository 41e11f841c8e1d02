/* SPDX-License-Identifier: BSD-2-Clause */
/* bench_two.h - two functions on two CPUs at the same time */
#ifndef VPTI_BENCH_TWO_H
#define VPTI_BENCH_TWO_H

/*
 * vpti_on_two_cpus() - run here() on one CPU, in this thread, and there() on another, in a new one
 *
 * Both get arg. Where the second thread can't be made, neither is called.
 *
 * Return: 0 when both have ended, and this thread may run where it could before; -EINVAL: a CPU that can't be had;
 * others from pthread_create().
 */
int vpti_on_two_cpus(int cpu_a, void (*here)(void *), int cpu_b, void (*there)(void *), void *arg);

#endif /* VPTI_BENCH_TWO_H */
