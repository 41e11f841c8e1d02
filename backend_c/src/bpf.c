/* SPDX-License-Identifier: BSD-2-Clause */
/* bpf.c - classic BPF: check once, then run on each packet */
#include "bpf.h"

#include <errno.h>

/* An instruction's code is its class, and what that class needs: size and mode, or operation and source. */
enum { LD = 0x00, LDX = 0x01, ST = 0x02, STX = 0x03, ALU = 0x04, JMP = 0x05, RET = 0x06, MISC = 0x07 };
enum { W = 0x00, H = 0x08, B = 0x10 };
enum { IMM = 0x00, ABS = 0x20, IND = 0x40, MEM = 0x60, LEN = 0x80, MSH = 0xa0 };
enum { ADD = 0x00, SUB = 0x10, MUL = 0x20, DIV = 0x30, OR = 0x40, AND = 0x50, LSH = 0x60, RSH = 0x70, NEG = 0x80,
       MOD = 0x90, XOR = 0xa0 };
enum { JA = 0x00, JEQ = 0x10, JGT = 0x20, JGE = 0x30, JSET = 0x40 };
enum { K = 0x00, X = 0x08, RET_A = 0x10 };
enum { TAX = 0x00, TXA = 0x80 };

#define WORDS 16u /* of scratch memory */
#define CLASS(code) ((code) & 0x07)

static bool known(const struct vpt_bpf_insn *i)
{
	switch (i->code) {
	case LD | IMM: case LD | LEN: case LDX | IMM: case LDX | LEN: case LDX | MSH | B:
	case LD | ABS | W: case LD | ABS | H: case LD | ABS | B:
	case LD | IND | W: case LD | IND | H: case LD | IND | B:
	case ALU | NEG: case RET | K: case RET | X: case RET | RET_A: case MISC | TAX: case MISC | TXA:
		return true;
	case LD | MEM: case LDX | MEM: case ST: case STX:
		return i->k < WORDS;
	case ALU | DIV | K: case ALU | MOD | K:
		return i->k != 0;
	case ALU | LSH | K: case ALU | RSH | K:
		return i->k < 32;
	case ALU | ADD | K: case ALU | SUB | K: case ALU | MUL | K: case ALU | OR | K: case ALU | AND | K: case ALU | XOR | K:
	case ALU | ADD | X: case ALU | SUB | X: case ALU | MUL | X: case ALU | OR | X: case ALU | AND | X: case ALU | XOR | X:
	case ALU | DIV | X: case ALU | MOD | X: case ALU | LSH | X: case ALU | RSH | X:
		return true;
	case JMP | JA:
	case JMP | JEQ | K: case JMP | JGT | K: case JMP | JGE | K: case JMP | JSET | K:
	case JMP | JEQ | X: case JMP | JGT | X: case JMP | JGE | X: case JMP | JSET | X:
		return true;
	default:
		return false;
	}
}

bool vpti_bpf_ok(const struct vpt_bpf_insn *insn, uint32_t n)
{
	uint32_t i;

	for (i = 0; i < n; i++) {
		const struct vpt_bpf_insn *at = &insn[i];
		uint32_t left = n - i - 1;

		if (!known(at))
			return false;
		if (CLASS(at->code) == JMP && (at->code == (JMP | JA) ? at->k >= left : at->jt >= left || at->jf >= left))
			return false;
	}
	return n && CLASS(insn[n - 1].code) == RET;
}

/* Big-endian, size bytes at `at`; false beyond the end. */
static bool load(const uint8_t *data, uint32_t have, uint64_t at, uint16_t size, uint32_t *to)
{
	uint32_t bytes = size == W ? 4 : size == H ? 2 : 1, i;

	if (at + bytes > have)
		return false;
	for (*to = 0, i = 0; i < bytes; i++)
		*to = *to << 8 | data[at + i];
	return true;
}

/* Return: false for a division by zero, which ends the program */
static bool alu(uint16_t operation, uint32_t *a, uint32_t b)
{
	switch (operation) {
	case ADD: *a += b; return true;
	case SUB: *a -= b; return true;
	case MUL: *a *= b; return true;
	case DIV: *a = b ? *a / b : 0; return b != 0;
	case MOD: *a = b ? *a % b : 0; return b != 0;
	case OR: *a |= b; return true;
	case AND: *a &= b; return true;
	case XOR: *a ^= b; return true;
	case LSH: *a = b < 32 ? *a << b : 0; return true;
	case RSH: *a = b < 32 ? *a >> b : 0; return true;
	default: *a = -*a; return true; /* NEG */
	}
}

static bool holds(uint16_t condition, uint32_t a, uint32_t b)
{
	switch (condition) {
	case JEQ: return a == b;
	case JGT: return a > b;
	case JGE: return a >= b;
	default: return a & b; /* JSET */
	}
}

int vpt_bpf_matches(const struct vpt_bpf_insn *filter, uint32_t n, const void *data, uint32_t len, uint32_t have)
{
	return vpti_bpf_ok(filter, n) ? vpti_bpf_run(filter, data, len, have) != 0 : -EINVAL;
}

uint32_t vpti_bpf_run(const struct vpt_bpf_insn *insn, const uint8_t *data, uint32_t len, uint32_t have)
{
	uint32_t a = 0, x = 0, mem[WORDS] = { 0 };

	for (;; insn++) {
		uint16_t code = insn->code;
		uint32_t k = insn->k, operand = code & X ? x : k;

		switch (CLASS(code)) {
		case LD:
			switch (code & 0xe0) {
			case IMM: a = k; break;
			case LEN: a = len; break;
			case MEM: a = mem[k]; break;
			default: /* ABS, IND */
				if (!load(data, have, (code & 0xe0) == IND ? (uint64_t)x + k : k, code & 0x18, &a))
					return 0;
			}
			break;
		case LDX:
			switch (code & 0xe0) {
			case IMM: x = k; break;
			case LEN: x = len; break;
			case MEM: x = mem[k]; break;
			default: /* MSH: the length of an IPv4 header */
				if (!load(data, have, k, B, &x))
					return 0;
				x = (x & 0xf) * 4;
			}
			break;
		case ST: mem[k] = a; break;
		case STX: mem[k] = x; break;
		case ALU:
			if (!alu(code & 0xf0, &a, operand))
				return 0;
			break;
		case JMP:
			if ((code & 0xf0) == JA)
				insn += k;
			else
				insn += holds(code & 0xf0, a, operand) ? insn->jt : insn->jf;
			break;
		case RET: return (code & 0x18) == RET_A ? a : operand;
		default: /* MISC */
			if (code == (MISC | TAX))
				x = a;
			else
				a = x;
		}
	}
}
