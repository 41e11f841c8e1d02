/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * spin.h - policy adaptive: whether to spin for what comes next, or to go to sleep at once
 *
 * To spin costs a core for spin_us at most and pays if something comes meanwhile: no wake-up, no kick. Packets that come
 * further apart than spin_us make each spin a waste, and then none is better than all. So the last ones decide:
 *
 *      one in vain           the next idle period spins again: traffic there and back has one short gap and one long
 *      two and more in a row 2, 4, 8 ... 64 idle periods go by without, then one more try
 *      one that paid         all is forgotten
 *
 * At a steady rate with gaps longer than spin_us that is one spin in 65 idle periods; when the gaps become short, 64 of them
 * pass before that is noticed. KVM's halt polling shrinks and grows the time in the same spirit (virt/kvm/kvm_main.c).
 *
 * One thread's; not shared. vpt/bench/model.py and vpt/bench/simulate.py say what comes of it.
 */
#ifndef VPTI_SPIN_H
#define VPTI_SPIN_H

#include <stdbool.h>
#include <stdint.h>

#define VPTI_SPIN_LONGEST 6u       /* 2 to the power of it: idle periods without a spin, at most */

struct vpti_spin {
	uint32_t vain;             /* spins in vain since the last that paid, up to VPTI_SPIN_LONGEST + 1 */
	uint32_t skip;             /* idle periods still to go by without one */
};

/* An idle period begins. Shall it be spun? */
static inline bool vpti_spin_wanted(struct vpti_spin *s)
{
	if (!s->skip)
		return true;
	s->skip--;
	return false;
}

/* How the spin ended: with something to do, or in vain. */
static inline void vpti_spin_done(struct vpti_spin *s, bool paid)
{
	if (paid)
		s->vain = 0;
	else if (s->vain <= VPTI_SPIN_LONGEST)
		s->vain++;
	s->skip = s->vain < 2 ? 0 : 1u << (s->vain - 1);
}

#endif /* VPTI_SPIN_H */
