/*
 * The product of two matrices of integers: multiplications in a row, hardly a branch that is not foreseen.
 *
 * The matrices have 40 rows and columns. A unit is one row of the product; when all rows are there the product is
 * the next left factor.
 *
 * #: args --defsym EVENTS=6 --defsym UNITS=300
 * #: expect all: exit_code == 0
 * #: expect all: mem64(checksum) == 0x6fd97a9053ebde40
 * #: expect all: pmis == mem64(perf_nmis)
 * #: expect all: mem64(perf_samples) > 20
 */
#include "workload.h"

#define SIZE 40

const char workload_name[] = "matrix";

static IN_L1 struct {
	uint32_t left[SIZE][SIZE], right[SIZE][SIZE], product[SIZE][SIZE];
	uint32_t row;
} matrix;

void workload_setup(uint64_t seed)
{
	random_seed(seed);
	for (uint32_t i = 0; i < SIZE; i++) {
		for (uint32_t k = 0; k < SIZE; k++) {
			matrix.left[i][k] = random64();
			matrix.right[i][k] = random64() | 1;
		}
	}
	matrix.row = 0;
}

uint64_t workload_unit(void)
{
	uint64_t sum = 0;

	for (uint32_t k = 0; k < SIZE; k++) {
		uint32_t cell = 0;

#pragma GCC unroll 40
		for (uint32_t i = 0; i < SIZE; i++)
			cell += matrix.left[matrix.row][i] * matrix.right[i][k];
		matrix.product[matrix.row][k] = cell;
		sum = sum * 3 + cell;
	}
	if (++matrix.row == SIZE) {
		matrix.row = 0;
		for (uint32_t i = 0; i < SIZE; i++)
			for (uint32_t k = 0; k < SIZE; k++)
				matrix.left[i][k] = matrix.product[i][k];
	}
	return sum;
}
