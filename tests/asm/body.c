/* What compilers make of ordinary C: every kind of operand, section, constant and label arithmetic. */
#include <stddef.h>
#include <stdint.h>

struct node {
	struct node *next;
	int16_t key;
	uint8_t tag : 3, flag : 1;
	int64_t value : 37;
	union {
		uint32_t word[4];
		char text[16];
	} u;
} pool[16];

static struct node *head;
static int counter;
static int8_t signs[3] = { -1, 2, -3 };
int common_one, common_many[77];
const char *const names[] = { "zero", "one", "two#;/*\"\\\n\t\001\377" };
const char wide[] = "a\0b";
double unused_constant = 2.5;
uint16_t halves[8] __attribute__((aligned(32))) = { 1, 0x8000 };
__attribute__((section(".text.special"), noinline)) int special(int x)
{
	return x * 3 + counter++;
}
__attribute__((cold, noinline)) void cold_one(void)
{
	counter = -1;
}
__attribute__((weak)) int weak_one(int a)
{
	return a ^ 0x55;
}
int alias_one(int) __attribute__((alias("weak_one")));

static int op_add(int a, int b) { return a + b; }
static int op_sub(int a, int b) { return a - b; }
static int op_mul(int a, int b) { return a * b; }
static int op_shift(int a, int b) { return (int)((unsigned)a << (b & 31)) >> 3; }
int (*const ops[])(int, int) = { op_add, op_sub, op_mul, op_shift };
int (*chosen)(int, int) = op_sub;

int dispatch(int which, int a, int b)
{
	switch (which) {
	case 0: return a / (b | 1);
	case 1: return ops[b & 3](a, b);
	case 2: return chosen(a, 7);
	case 3: return special(a) - alias_one(b);
	case 4: cold_one(); return 1;
	case 5: return names[a & 1][b & 3];
	case 9: return a % 10;
	case 11: return (int)(wide[b & 1]);
	default: return -which;
	}
}

const void *computed(int i)
{
	static const void *const labels[] = { &&a, &&b, &&c };
	static const int distances[] = { 0, (char *)&&b - (char *)&&a, (char *)&&c - (char *)&&a };
	goto *labels[i % 3];
a:	counter++;
b:	counter += 2;
c:	return (const char *)labels[0] + distances[i & 1];
}

uint64_t division(uint64_t a, uint64_t b, int64_t c, int64_t d, uint32_t e, int16_t f)
{
	return a / b + a % (b | 3) + c / d + c % d + e / 10 + e % 1000 + f / 3 + a / 1000000007u +
	       (uint64_t)(((unsigned __int128)a * b) >> 64) + (uint64_t)(((__int128)c * d) >> 64);
}

int64_t bits(uint64_t x, unsigned n, uint8_t *p)
{
	x = x << (n & 63) | x >> (-n & 63);
	p[0] |= 1 << (n & 7);
	p[1] ^= 0x80;
	p[2] &= ~4;
	if (x >> 41 & 1)
		x |= 1ull << 53;
	return x + __builtin_ctzll(x | 1) + __builtin_clz(n | 1) + __builtin_bswap32(n) +
	       __builtin_parity(n) + (x >> (n & 31) & 1) + __builtin_ffs(n);
}

struct node *insert(int key, int64_t value)
{
	static unsigned used;
	struct node **at = &head, *n = &pool[used++ % 16];
	while (*at && (*at)->key < key)
		at = &(*at)->next;
	*n = (struct node){ .next = *at, .key = key, .tag = key, .flag = value < 0, .value = value };
	for (size_t i = 0; i < sizeof(n->u.text); i++)
		n->u.text[i] = (char)("0123456789abcdef"[i] ^ signs[i % 3]);
	return *at = n;
}

int64_t walk(const struct node *n, int depth)
{
	if (!n || depth > 20)
		return depth;
	return n->value * (n->flag ? -1 : 1) + n->tag + walk(n->next, depth + 1) + n->u.word[depth & 3];
}

void copies(struct node *to, const struct node *from, char *s, size_t n)
{
	to[0] = from[1];
	to[2] = to[0];
	__builtin_memset(s, 0, 100);
	__builtin_memcpy(s + 200, s + 300, 333);
	for (size_t i = 0; i < n; i++)
		s[i] = s[n - 1 - i] + (i & 1 ? 'a' : -1);
	__builtin_prefetch(s + 64);
}

int compare(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return (unsigned char)*a - (unsigned char)*b;
}

int overflow(int a, int b, unsigned c, int64_t d)
{
	int r;
	unsigned u;
	int64_t q;
	return __builtin_add_overflow(a, b, &r) + __builtin_mul_overflow(a, b, &r) * 2 +
	       __builtin_sub_overflow(c, 7u, &u) * 4 + __builtin_mul_overflow(d, d, &q) * 8 + r + u;
}

uint64_t atomic(uint64_t *p, uint32_t *q, uint8_t *b)
{
	uint64_t old = __atomic_fetch_add(p, 5, 5) + __atomic_exchange_n(q, 1, 5);
	__atomic_or_fetch(q, 0x100, 5);
	__atomic_fetch_and(p, ~8ull, 5);
	__atomic_sub_fetch(b, 1, 5);
	__sync_synchronize();
	__atomic_compare_exchange_n(q, (uint32_t *)b, 9, 0, 5, 5);
	return old + __atomic_fetch_xor(p, old, 5);
}

typedef struct { int64_t a, b, c; } three;
three by_value(three x, int a, int b, int c, int d, int e, int f, short g, char h)
{
	x.a += a + b + c + d + e + f + g + h;
	return (three){ x.c, x.b, x.a };
}

int variable(int n)
{
	int local[n];
	for (int i = 0; i < n; i++)
		local[i] = special(i);
	return local[n / 2] + (n > 3 ? local[1] : common_many[n]) + common_one;
}

__int128 wide_math(__int128 a, __int128 b, int n)
{
	return (a << (n & 127)) + b - (a >> 3) + (a < b);
}

__attribute__((interrupt)) void handler(void *frame)
{
	(void)frame;
	counter++;
}

__attribute__((interrupt)) void handler_error(void *frame, uint64_t error)
{
	(void)frame;
	counter += error;
}

_Noreturn void stop(void)
{
	for (;;)
		__asm__ volatile("hlt");
}

int tail(int a, int b)
{
	return dispatch(a + 1, b, a);
}

_Bool flags(int a, unsigned b, long c)
{
	return (a > 3 && b <= 7) || (c >= 0) != (a == (int)b);
}
