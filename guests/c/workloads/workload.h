/* What every workload includes: what it has to define, and random numbers that a seed decides. */
#pragma once
#include <stddef.h>
#include <stdint.h>

/*
 * workload_setup(), workload_unit() and workload_name are the workload's: a unit is work of a few thousand cycles,
 * and what it returns goes into the checksum. No libc, no floats, memory in .bss.
 */
#include "../perf_kernel.h"

/*
 * For what shall stay in L1: in one piece, and away from the stack, which is at the end of memory. (The model's L1
 * has 32 KiB and one way, so a neighbour elsewhere could have the same lines.)
 */
#define IN_L1 __attribute__((aligned(32768)))

#define COUNT(array) (sizeof(array) / sizeof(*(array)))

static uint64_t random_state;

/* Any seed will do, neighbours and zero too. */
static void random_seed(uint64_t seed)
{
	random_state = seed;
}

/* SplitMix64 (Steele, Lea, Flood 2014) */
static uint64_t random64(void)
{
	uint64_t z = random_state += 0x9e3779b97f4a7c15;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

/* 0 to below - 1 */
static inline uint32_t random_below(uint32_t below)
{
	return (random64() >> 32) * below >> 32;
}

#ifdef HOSTED
/* cc -DHOSTED -o NAME NAME.c; ./NAME SEED WARM_UNITS UNITS: what the guest of these parameters must get. */
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
	uint64_t checksum = 0;

	if (argc != 4) {
		fprintf(stderr, "usage: %s SEED WARM_UNITS UNITS\n", argv[0]);
		return 2;
	}
	workload_setup(strtoull(argv[1], NULL, 0));
	for (uint64_t i = strtoull(argv[2], NULL, 0); i; i--)
		workload_unit();
	for (uint64_t i = strtoull(argv[3], NULL, 0); i; i--)
		checksum = checksum * 31 + workload_unit();
	printf("%s %#018llx\n", workload_name, (unsigned long long)checksum);
	return 0;
}
#endif
