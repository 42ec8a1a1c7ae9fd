/*
 * The product of two matrices of integers: multiplications in a row, hardly a branch that is not foreseen.
 *
 * The matrices have 40 rows and columns. A unit is one row of the product; when all rows are there the product is
 * the next left factor.
 */
#include "workload.h"

#define SIZE 40

const char workload_name[] = "matrix";

static uint32_t left[SIZE][SIZE], right[SIZE][SIZE], product[SIZE][SIZE];
static uint32_t row;

void workload_setup(uint64_t seed)
{
	random_seed(seed);
	for (uint32_t i = 0; i < SIZE; i++) {
		for (uint32_t k = 0; k < SIZE; k++) {
			left[i][k] = random64();
			right[i][k] = random64() | 1;
		}
	}
	row = 0;
}

uint64_t workload_unit(void)
{
	uint64_t sum = 0;

	for (uint32_t k = 0; k < SIZE; k++) {
		uint32_t cell = 0;

#pragma GCC unroll 40
		for (uint32_t i = 0; i < SIZE; i++)
			cell += left[row][i] * right[i][k];
		product[row][k] = cell;
		sum = sum * 3 + cell;
	}
	if (++row == SIZE) {
		row = 0;
		for (uint32_t i = 0; i < SIZE; i++)
			for (uint32_t k = 0; k < SIZE; k++)
				left[i][k] = product[i][k];
	}
	return sum;
}
