/*
 * LZ77: a block compressed by matches with what came before in it, decompressed, and compared.
 *
 * A unit is one block of 256 bytes of a text in which phrases come back. A byte that is not what it was
 * makes the unit's value all ones.
 *
 * #: args --defsym EVENTS=6 --defsym UNITS=300
 * #: expect all: exit_code == 0
 * #: expect all: mem64(checksum) == 0x40b1145576da3461
 * #: expect all: pmis == mem64(perf_nmis)
 * #: expect all: mem64(perf_samples) > 20
 */
#include "workload.h"

#define TEXT 24576u
#define BLOCK 256u
#define HASHES 1024u
#define SHORTEST 4u
#define LONGEST 66u

const char workload_name[] = "lz";

static IN_L1 struct {
	uint8_t text[TEXT];
	uint8_t packed[2 * BLOCK];
	uint8_t unpacked[BLOCK];
	uint16_t last[HASHES]; /* where a hash was last: of another block, that is found out */
	uint32_t block;
} lz;

/* Phrases of a small vocabulary, with a letter that is other now and then. */
void workload_setup(uint64_t seed)
{
	static uint8_t phrases[64][12];
	uint32_t at = 0;

	random_seed(seed);
	for (uint32_t i = 0; i < COUNT(phrases); i++)
		for (uint32_t k = 0; k < sizeof(*phrases); k++)
			phrases[i][k] = 'a' + random_below(24);
	while (at < TEXT) {
		uint32_t length = 3 + random_below(10);
		uint32_t low = random_below(64);
		const uint8_t *phrase = phrases[random_below(1 + low)]; /* the first are frequent */

		for (uint32_t k = 0; k < length && at < TEXT; k++)
			lz.text[at++] = random_below(24) ? phrase[k] : 'A' + random_below(24);
	}
	for (uint32_t i = 0; i < HASHES; i++)
		lz.last[i] = 0;
	lz.block = 0;
}

static uint32_t four(const uint8_t *at)
{
	return ((const struct { uint32_t all; } __attribute__((packed, may_alias)) *)at)->all;
}

/* How many bytes from `at` on have been there before, and where; fewer than SHORTEST are none. */
static uint32_t match_at(const uint8_t *from, uint32_t at, uint32_t *before)
{
	uint32_t length = SHORTEST;
	uint16_t *entry;

	if (at + SHORTEST > BLOCK)
		return 0;
	entry = &lz.last[four(from + at) * 2654435761u >> 22];
	*before = *entry;
	*entry = at;
	if (*before >= at || four(from + *before) != four(from + at))
		return 0;
	while (at + length < BLOCK && length < LONGEST && from[*before + length] == from[at + length])
		length++;
	return length;
}

/* A byte of flags, then eight items: a byte as it is, or, where the flag is set, length and distance. */
static uint8_t *pack(const uint8_t *from, uint8_t *to)
{
	uint8_t *flags = to;

	for (uint32_t at = 0, items = 0; at < BLOCK; items++) {
		uint32_t before, length = match_at(from, at, &before);

		if (items % 8 == 0)
			*(flags = to++) = 0;
		if (length < SHORTEST) {
			*to++ = from[at++];
			continue;
		}
		*flags |= 1 << items % 8;
		*to++ = length - SHORTEST;
		*to++ = at - before;
		*to++ = (at - before) >> 8;
		at += length;
	}
	return to;
}

static void unpack(const uint8_t *from, uint8_t *to)
{
	uint32_t flags = 0;

	for (uint32_t at = 0, items = 0; at < BLOCK; items++, flags >>= 1) {
		if (items % 8 == 0)
			flags = *from++;
		if (flags & 1) {
			uint32_t length = from[0] + SHORTEST, distance = from[1] | from[2] << 8;

			for (from += 3; length; length--, at++)
				to[at] = to[at - distance];
		} else {
			to[at++] = *from++;
		}
	}
}

uint64_t workload_unit(void)
{
	const uint8_t *from = lz.text + lz.block;
	const uint8_t *end = pack(from, lz.packed);
	uint64_t sum = end - lz.packed;

	unpack(lz.packed, lz.unpacked);
	for (uint32_t i = 0; i < BLOCK; i++)
		if (lz.unpacked[i] != from[i])
			return ~0ull;
	for (const uint8_t *at = lz.packed; at < end; at++)
		sum = sum * 3 + *at;
	lz.block = (lz.block + BLOCK) % (TEXT - BLOCK);
	return sum;
}
