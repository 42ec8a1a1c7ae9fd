/* What a compiler writes: PMU code, switch tables, strings, 128-bit products, atomics. */
#include <stddef.h>
#include <stdint.h>

struct pmu {
	int nr;
	uint64_t base[8];
	const char *name;
} pmu = { 4, { 0xc1, 0xc2 }, "abc" };

static uint64_t hist[64];
int tab[5] = { 1, 2, 3, 4, 5 };

static inline void wrmsr(uint32_t r, uint64_t v)
{
	__asm__ volatile("wrmsr" ::"c"(r), "a"((uint32_t)v), "d"((uint32_t)(v >> 32)));
}

static inline uint64_t rdmsr(uint32_t r)
{
	uint32_t a, d;
	__asm__ volatile("rdmsr" : "=a"(a), "=d"(d) : "c"(r));
	return a | ((uint64_t)d << 32);
}

static inline uint64_t rdpmc(uint32_t r)
{
	uint32_t a, d;
	__asm__ volatile("rdpmc" : "=a"(a), "=d"(d) : "c"(r));
	return a | ((uint64_t)d << 32);
}

size_t length(const char *s)
{
	size_t n = 0;
	while (s[n])
		n++;
	return n;
}

int choose(int x)
{
	switch (x) {
	case 0: return 5;
	case 1: return tab[3];
	case 2: return -7;
	case 3: return 99;
	case 4: return x * 77;
	case 5: return length("hello");
	default: return x / 7;
	}
}

int64_t mix(int64_t a, int32_t b, int16_t c, int8_t d, unsigned char e)
{
	int64_t r = a * b + c % ((d | 1));
	r ^= (a >> 3) | (r << 5);
	if (r < 0 && b > c)
		r = -r;
	hist[r & 63] += e;
	return r + (a > b ? c : d) + __builtin_ctz(b | 1) + __builtin_bswap64(a);
}

void *memset(void *p, int c, size_t n)
{
	void *q = p;
	__asm__ volatile("rep stosb" : "+D"(q), "+c"(n) : "a"(c) : "memory");
	return p;
}

void fill(char *p, size_t n)
{
	memset(p, 0, n);
	for (size_t i = 0; i < n; i += 3)
		p[i] = (char)(i * 7 >> 1);
}

uint64_t measure(void)
{
	uint64_t sum = 0;
	wrmsr(0x38f, 0);
	for (int i = 0; i < pmu.nr; i++) {
		wrmsr(0x186 + i, 0x4300c0);
		wrmsr(pmu.base[i], 0);
	}
	wrmsr(0x38f, 15);
	for (volatile int i = 0; i < 1000; i++)
		;
	wrmsr(0x38f, 0);
	for (int i = 0; i < pmu.nr; i++)
		sum += rdpmc(i) + rdmsr(pmu.base[i]);
	return sum;
}

__attribute__((noinline)) unsigned __int128 product(uint64_t a, uint64_t b)
{
	return (unsigned __int128)a * b;
}

_Bool exchange(uint64_t *p, uint64_t o, uint64_t n)
{
	return __atomic_compare_exchange_n(p, &o, n, 0, 5, 5);
}

int atomics(int *p)
{
	return __atomic_fetch_add(p, 1, 5) + __atomic_exchange_n(p, 4, 5);
}

int _start(void)
{
	char b[100];
	fill(b, 100);
	return choose(b[3]) + (int)mix(b[1], b[2], b[3], b[4], b[5]) + (int)measure() +
	       (int)product(3, 4);
}
