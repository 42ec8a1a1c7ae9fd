/*
 * The loop of an interpreter: a program of byte codes on a stack machine, each a jump through a table.
 *
 * The program takes a random number, counts how many steps it is from 1 by Collatz' rule, counts that in a table,
 * and begins again. A unit is a thousand byte codes of it, wherever that leaves off.
 */
#include "workload.h"

#define CODES 1000
#define CELLS 512 /* below 65 537 no number needs more than 339 steps */

const char workload_name[] = "interp";

enum { PUSH, RANDOM, ADD, SUB, MUL, AND, HALF, DUP, OVER, SWAP, DROP, LOAD, STORE, JUMP, JUMP_ZERO };

enum { START = 0, TEST = 2, EVEN = 18, BACK = 19, DONE = 21 };
static const struct {
	uint8_t code, operand;
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

uint64_t workload_unit(void)
{
	uint64_t *sp = top, sum = 0;
	uint32_t pc = at;

	for (int i = 0; i < CODES; i++) {
		uint64_t operand = program[pc].operand;

		switch (program[pc++].code) {
		case PUSH: *++sp = operand; break;
		case RANDOM: *++sp = 1 + random_below(65536); break;
		case ADD: sp--; sp[0] += sp[1]; break;
		case SUB: sp--; sp[0] -= sp[1]; break;
		case MUL: sp--; sp[0] *= sp[1]; break;
		case AND: sp--; sp[0] &= sp[1]; break;
		case HALF: sp[0] >>= 1; break;
		case DUP: sp++; sp[0] = sp[-1]; break;
		case OVER: sp++; sp[0] = sp[-2]; break;
		case SWAP: operand = sp[0]; sp[0] = sp[-1]; sp[-1] = operand; break;
		case DROP: sp--; break;
		case LOAD: sp[0] = cells[sp[0] % CELLS]; break;
		case STORE: sp -= 2; cells[sp[2] % CELLS] = sp[1]; sum = sum * 5 + sp[2]; break;
		case JUMP: pc = operand; break;
		case JUMP_ZERO: pc = *sp-- ? pc : operand; break;
		}
	}
	top = sp;
	at = pc;
	return sum * 31 + pc + *sp;
}
