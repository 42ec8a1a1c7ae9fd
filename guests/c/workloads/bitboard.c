/*
 * Reversi on bit-boards: moves of a side found by shifts of 64-bit words, tried, and the best one made.
 *
 * A unit tries sixteen moves: each is made, and what the other side could answer is counted. A game that is
 * over begins anew.
 *
 * #: args --defsym EVENTS=6 --defsym UNITS=300
 * #: expect all: exit_code == 0
 * #: expect all: mem64(checksum) == 0x659f085b6445527e
 * #: expect all: pmis == mem64(perf_nmis)
 * #: expect all: mem64(perf_samples) > 20
 */
#include "workload.h"

#define TRIES 16

const char workload_name[] = "bitboard";

static uint64_t own, other; /* stones of the side that moves, and of the other one */

static const struct direction {
	int by;
	uint64_t inside; /* fields that a step to the left or right may come to */
} directions[] = {
	{ 1, 0xfefefefefefefefe }, { 7, 0x7f7f7f7f7f7f7f7f }, { 8, ~0ull }, { 9, 0xfefefefefefefefe },
};

static void new_game(void)
{
	/* four stones in the middle; a little chance in what a move is worth makes games differ */
	own = 1ull << 28 | 1ull << 35;
	other = 1ull << 27 | 1ull << 36;
}

static uint64_t step(uint64_t from, const struct direction *d, int back)
{
	return back ? (from & d->inside) >> d->by : from << d->by & d->inside;
}

/* Every empty field from which a row of the other side's stones leads to an own one. */
static uint64_t moves_of(uint64_t mine, uint64_t theirs)
{
	uint64_t moves = 0;

#pragma GCC unroll 8
	for (size_t i = 0; i < 2 * COUNT(directions); i++) {
		const struct direction *d = &directions[i / 2];
		uint64_t row = step(mine, d, i & 1) & theirs;

#pragma GCC unroll 5
		for (int k = 0; k < 5; k++)
			row |= step(row, d, i & 1) & theirs;
		moves |= step(row, d, i & 1);
	}
	return moves & ~(mine | theirs);
}

/* The stones that a stone on `field` turns. */
static uint64_t turned_by(uint64_t field, uint64_t mine, uint64_t theirs)
{
	uint64_t turned = 0;

#pragma GCC unroll 8
	for (size_t i = 0; i < 2 * COUNT(directions); i++) {
		const struct direction *d = &directions[i / 2];
		uint64_t row = 0, at = step(field, d, i & 1);

		for (; at & theirs; at = step(at, d, i & 1))
			row |= at;
		if (at & mine)
			turned |= row;
	}
	return turned;
}

static int bits_of(uint64_t word)
{
	word -= word >> 1 & 0x5555555555555555;
	word = (word & 0x3333333333333333) + (word >> 2 & 0x3333333333333333);
	word = (word + (word >> 4)) & 0x0f0f0f0f0f0f0f0f;
	return word * 0x0101010101010101 >> 56;
}

void workload_setup(uint64_t seed)
{
	random_seed(seed);
	new_game();
}

uint64_t workload_unit(void)
{
	static const uint64_t corners = 0x8100000000000081;
	uint64_t sum = 0;
	int tries = 0, passes = 0;

	while (tries < TRIES) {
		uint64_t moves = moves_of(own, other), best_field = 0, best_turned = 0, swap;
		int best = -1000;

		if (!moves && ++passes == 2) {
			sum = sum * 31 + bits_of(own);
			new_game();
			passes = 0;
			continue;
		}
		for (; moves; moves &= moves - 1, tries++) {
			uint64_t field = moves & -moves, turned = turned_by(field, own, other);
			int worth = random64() & 7;

			passes = 0;
			worth -= 4 * bits_of(moves_of(other ^ turned, own | field | turned));
			worth += field & corners ? 40 : 0;
			if (worth > best) {
				best = worth;
				best_field = field;
				best_turned = turned;
			}
		}
		swap = own | best_field | best_turned;
		own = other ^ best_turned;
		other = swap;
		sum = sum * 5 + best_field;
	}
	return sum ^ own;
}
