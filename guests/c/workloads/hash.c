/*
 * A hash table with open addressing: keys inserted, found, missed and deleted at random places of 512 KiB.
 *
 * A unit is forty-eight operations: a quarter insert, a quarter delete, the others look up. The table begins as it
 * stays: half full, with half of the keys that can be asked for.
 *
 * #: args --defsym EVENTS=6 --defsym UNITS=300
 * #: expect all: exit_code == 0
 * #: expect all: mem64(checksum) == 0xd395cc47a7c5e805
 * #: expect all: pmis == mem64(perf_nmis)
 * #: expect all: mem64(perf_samples) > 20
 */
#include "workload.h"

#define SLOTS 32768u
#define KEYS 32768u
#define OPERATIONS 48

const char workload_name[] = "hash";

static struct slot {
	uint64_t key; /* 0: empty */
	uint64_t value;
} slots[SLOTS];

static uint32_t home_of(uint64_t key)
{
	return (key * 0x9e3779b97f4a7c15) >> 49;
}

/* The slot of `key`, or the empty one where it would go. */
static struct slot *slot_of(uint64_t key)
{
	uint32_t at = home_of(key);

	while (slots[at].key && slots[at].key != key)
		at = (at + 1) % SLOTS;
	return &slots[at];
}

static void insert(uint64_t key, uint64_t value)
{
	*slot_of(key) = (struct slot){ key, value };
}

/* Whatever was pushed beyond the hole moves back into it, so that there are no tombstones. */
static void delete(uint64_t key)
{
	uint32_t hole = slot_of(key) - slots;

	if (!slots[hole].key)
		return;
	for (uint32_t at = (hole + 1) % SLOTS; slots[at].key; at = (at + 1) % SLOTS) {
		if ((at - home_of(slots[at].key)) % SLOTS < (at - hole) % SLOTS)
			continue;
		slots[hole] = slots[at];
		hole = at;
	}
	slots[hole].key = 0;
}

/* Odd, so none of them is the empty slot's; spread, so that they do not come in order. */
static uint64_t some_key(uint64_t number)
{
	return (number % KEYS * 0xd6e8feb86659fd93) | 1;
}

void workload_setup(uint64_t seed)
{
	random_seed(seed);
	for (uint32_t i = 0; i < SLOTS; i++)
		slots[i].key = 0;
	for (uint32_t i = 0; i < KEYS; i++)
		if (random64() >> 63)
			insert(some_key(i), i);
}

uint64_t workload_unit(void)
{
	uint64_t sum = 0;

	for (int i = 0; i < OPERATIONS; i++) {
		uint64_t random = random64(), key = some_key(random);

		switch (random >> 61) {
		case 0: case 1:
			insert(key, random);
			break;
		case 2: case 3:
			delete(key);
			break;
		default: {
			struct slot *found = slot_of(key);

			sum = sum * 7 + (found->key ? found->value : 1);
		}
		}
	}
	return sum;
}
