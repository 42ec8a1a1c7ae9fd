/*
 * Pointers chased through a permutation that no cache holds: a wait for memory at almost every step.
 *
 * The nodes form one ring in random order, a cache line each, 1.5 MiB: L2 and LLC of a core hold a part of them.
 * A unit is a walk of thirty nodes; each gives what it holds, and a little work on it.
 *
 * #: args --defsym EVENTS=6 --defsym UNITS=300
 * #: expect all: exit_code == 0
 * #: expect all: mem64(checksum) == 0x27034bc07575904e
 * #: expect all: pmis == mem64(perf_nmis)
 * #: expect all: mem64(perf_samples) > 20
 */
#include "workload.h"

#define NODES 24576
#define STEPS 30

const char workload_name[] = "chase";

struct node {
	struct node *next;
	uint64_t cost;
	uint32_t flow, limit;
	uint64_t potential;
} __attribute__((aligned(64)));

static struct node nodes[NODES];
static struct node *walker;

void workload_setup(uint64_t seed)
{
	random_seed(seed);
	for (uint32_t i = 0; i < NODES; i++)
		nodes[i] = (struct node){ &nodes[i], random64() >> 40, 0, 16 + random_below(16), 0 };
	/* Sattolo's shuffle: one cycle through all of them */
	for (uint32_t i = NODES - 1; i; i--) {
		uint32_t other = random_below(i);
		struct node *next = nodes[i].next;

		nodes[i].next = nodes[other].next;
		nodes[other].next = next;
	}
	walker = nodes;
	/* once around, so that the caches hold what they will always hold */
	for (uint32_t i = 0; i < NODES / STEPS; i++)
		workload_unit();
}

uint64_t workload_unit(void)
{
	struct node *at = walker;
	uint64_t potential = 0;

	for (int step = 0; step < STEPS; step++) {
		/* push flow along the arc until it is full, then take it back */
		if (++at->flow == at->limit)
			at->flow = 0;
		potential = potential * 5 + (at->cost ^ at->flow);
		at->potential = potential;
		at = at->next;
	}
	walker = at;
	return potential;
}
