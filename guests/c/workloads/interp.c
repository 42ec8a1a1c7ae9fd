/*
 * An interpreter: a program of byte codes on a stack machine, each of which ends with a jump through a table.
 *
 * The program takes a random number, counts how many steps it is from 1 by Collatz' rule, counts that in a table,
 * and begins again. A unit is a thousand byte codes of it, wherever that leaves off.
 *
 * #: args --defsym EVENTS=6 --defsym UNITS=300
 * #: expect all: exit_code == 0
 * #: expect all: mem64(checksum) == 0x6c6e939affde061a
 * #: expect all: pmis == mem64(perf_nmis)
 * #: expect all: mem64(perf_samples) > 20
 */
#include "workload.h"

#define CODES 1000
#define CELLS 512 /* below 65 537 no number needs more than 339 steps */

const char workload_name[] = "interp";

enum { PUSH, RANDOM, ADD, SUB, MUL, AND, HALF, DUP, OVER, SWAP, DROP, LOAD, STORE, JUMP, JUMP_ZERO };

enum { START = 0, TEST = 2, EVEN = 18, BACK = 19, DONE = 21 };
static const struct {
	uint32_t code, operand;
} program[] = {
	[START] = { RANDOM }, { PUSH, 0 },                        /* number, steps */
	[TEST] = { OVER }, { PUSH, 1 }, { SUB }, { JUMP_ZERO, DONE },
	{ PUSH, 1 }, { ADD }, { SWAP },                           /* steps + 1, number */
	{ DUP }, { PUSH, 1 }, { AND }, { JUMP_ZERO, EVEN },
	{ PUSH, 3 }, { MUL }, { PUSH, 1 }, { ADD }, { JUMP, BACK },
	[EVEN] = { HALF },
	[BACK] = { SWAP }, { JUMP, TEST },
	[DONE] = { DUP }, { LOAD }, { PUSH, 1 }, { ADD }, { SWAP }, { STORE }, { DROP }, { JUMP, START },
};

static uint64_t stack[8], *top;
static uint64_t cells[CELLS];
static uint32_t at;

void workload_setup(uint64_t seed)
{
	random_seed(seed);
	for (uint32_t i = 0; i < CELLS; i++)
		cells[i] = 0;
	top = stack;
	at = START;
}

/* Threaded code: each byte code ends with the jump to the next one. */
#define NEXT                                          \
	do {                                          \
		if (!left--)                          \
			goto out;                     \
		operand = program[pc].operand;        \
		goto *labels[program[pc++].code];     \
	} while (0)

uint64_t workload_unit(void)
{
	static const void *const labels[] = {
		[PUSH] = &&push, [RANDOM] = &&random, [ADD] = &&add, [SUB] = &&sub, [MUL] = &&mul,
		[AND] = &&and, [HALF] = &&half, [DUP] = &&dup, [OVER] = &&over, [SWAP] = &&swap,
		[DROP] = &&drop, [LOAD] = &&load, [STORE] = &&store, [JUMP] = &&jump,
		[JUMP_ZERO] = &&jump_zero,
	};
	uint64_t *sp = top, sum = 0, operand;
	uint32_t pc = at, left = CODES;

	NEXT;
push:
	*++sp = operand;
	NEXT;
random:
	*++sp = 1 + random_below(65536);
	NEXT;
add:
	sp--;
	sp[0] += sp[1];
	NEXT;
sub:
	sp--;
	sp[0] -= sp[1];
	NEXT;
mul:
	sp--;
	sp[0] *= sp[1];
	NEXT;
and:
	sp--;
	sp[0] &= sp[1];
	NEXT;
half:
	sp[0] >>= 1;
	NEXT;
dup:
	sp++;
	sp[0] = sp[-1];
	NEXT;
over:
	sp++;
	sp[0] = sp[-2];
	NEXT;
swap:
	operand = sp[0];
	sp[0] = sp[-1];
	sp[-1] = operand;
	NEXT;
drop:
	sp--;
	NEXT;
load:
	sp[0] = cells[sp[0] % CELLS];
	NEXT;
store:
	sp -= 2;
	cells[sp[2] % CELLS] = sp[1];
	sum = sum * 5 + sp[2];
	NEXT;
jump:
	pc = operand;
	NEXT;
jump_zero:
	pc = *sp-- ? pc : operand;
	NEXT;
out:
	top = sp;
	at = pc;
	return sum * 31 + pc + *sp;
}
