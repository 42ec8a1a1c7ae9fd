/*
 * Quicksort of fresh random numbers, insertion sort of the short pieces: branches that cannot be predicted.
 *
 * A unit fills an array of 80 numbers and sorts it.
 *
 * #: args --defsym EVENTS=6 --defsym UNITS=300
 * #: expect all: exit_code == 0
 * #: expect all: mem64(checksum) == 0xfa673ace0d3d3225
 * #: expect all: pmis == mem64(perf_nmis)
 * #: expect all: mem64(perf_samples) > 20
 */
#include "workload.h"

#define NUMBERS 80
#define SHORT 12

const char workload_name[] = "sort";

static uint32_t numbers[NUMBERS];

void workload_setup(uint64_t seed)
{
	random_seed(seed);
}

static void insertion_sort(uint32_t *first, uint32_t *last)
{
	for (uint32_t *next = first + 1; next <= last; next++) {
		uint32_t value = *next, *hole = next;

		for (; hole > first && hole[-1] > value; hole--)
			*hole = hole[-1];
		*hole = value;
	}
}

static uint32_t middle_of(uint32_t a, uint32_t b, uint32_t c)
{
	if (a < b)
		return b < c ? b : a < c ? c : a;
	return a < c ? a : b < c ? c : b;
}

static void quicksort(uint32_t *first, uint32_t *last)
{
	while (last - first >= SHORT) {
		uint32_t pivot = middle_of(*first, first[(last - first) / 2], *last);
		uint32_t *low = first - 1, *high = last + 1;

		for (;;) {
			uint32_t swap;

			while (*++low < pivot)
				;
			while (*--high > pivot)
				;
			if (low >= high)
				break;
			swap = *low;
			*low = *high;
			*high = swap;
		}
		quicksort(first, high);
		first = high + 1;
	}
	insertion_sort(first, last);
}

uint64_t workload_unit(void)
{
	uint64_t sum = 0, wrong = 0;

	for (int i = 0; i < NUMBERS; i += 2) {
		uint64_t two = random64();

		numbers[i] = two;
		numbers[i + 1] = two >> 32;
	}
	quicksort(numbers, numbers + NUMBERS - 1);
	for (int i = 1; i < NUMBERS; i++) {
		wrong += numbers[i - 1] > numbers[i];
		sum = sum * 3 + numbers[i];
	}
	return wrong ? ~0ull : sum;
}
