/*
 * A program in C that says what it computed: structs, bit fields, recursion, function pointers, a jump
 * table, 64-bit division, then an IDT, exceptions, and a PMI if CPUID says that there is a PMU.
 *
 *   gcc -O2 -g -mgeneral-regs-only -mno-red-zone -ffreestanding -fno-stack-protector -fno-pic \
 *       -nostdlib -static -no-pie -Wl,-Ttext-segment=0x100000 -o report.elf report.c
 *   vpmu run report.elf --vpmu passthrough
 *
 * -mno-red-zone because interrupts push their frames onto the stack of the code that they interrupt.
 * With -S -masm=intel instead of the linker's options the output is also a source for vpmu run.
 * -DHOSTED makes an ordinary program of the first part, so that both can be compared.
 */
#include <stddef.h>
#include <stdint.h>

#include "print.h"

#ifdef HOSTED
#include <stdio.h>
void put(char c)
{
	putchar(c);
}
#else
#include "machine.h"
void put(char c)
{
	outb(COM1, c);
}

void *memcpy(void *to, const void *from, size_t n)
{
	void *start = to;
	__asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n)::"memory");
	return start;
}

void *memset(void *at, int c, size_t n)
{
	void *start = at;
	__asm__ volatile("rep stosb" : "+D"(at), "+c"(n) : "a"(c) : "memory");
	return start;
}
#endif

/* --- structs, function pointers, recursion --- */

struct city {
	const char *name;
	int32_t height; /* m */
	uint32_t people;
	struct {
		unsigned river : 1;
		signed zone : 5;
		unsigned gates : 7;
	} has;
};

static struct city cities[] = {
	{ "Riga", 7, 605273, { 1, 2, 12 } },    { "La Paz", 3625, 755732, { 0, -4, 0 } },
	{ "Baku", -28, 2336600, { 0, 4, 5 } },  { "Bern", 542, 134290, { 1, 1, 100 } },
	{ "Jericho", -258, 20907, { 0, 2, 1 } },
};

typedef int order(const struct city *, const struct city *);

static int by_height(const struct city *a, const struct city *b)
{
	return (a->height > b->height) - (a->height < b->height);
}

static int by_people(const struct city *a, const struct city *b)
{
	return (a->people > b->people) - (a->people < b->people);
}

static __attribute__((noinline)) void sort(struct city *first, long n, order *compare)
{
	struct city pivot, swap;
	long low = 0;

	if (n < 2)
		return;
	pivot = first[n / 2];
	first[n / 2] = first[n - 1];
	for (long i = 0; i < n - 1; i++) {
		if (compare(&first[i], &pivot) >= 0)
			continue;
		swap = first[low];
		first[low++] = first[i];
		first[i] = swap;
	}
	first[n - 1] = first[low];
	first[low] = pivot;
	sort(first, low, compare);
	sort(first + low + 1, n - low - 1, compare);
}

static void show_cities(const char *title, order *compare)
{
	long n = sizeof(cities) / sizeof(*cities);

	sort(cities, n, compare);
	print("%s:", title);
	for (struct city *c = cities; c < cities + n; c++)
		print(" %s %d/%u%c%d", c->name, c->height, c->people, c->has.river ? '~' : '.',
		      c->has.zone + c->has.gates);
	print("\n");
}

static __attribute__((noinline)) unsigned ackermann(unsigned m, unsigned n)
{
	if (!m)
		return n + 1;
	return ackermann(m - 1, n ? ackermann(m, n - 1) : 1);
}

/* --- a jump table: a machine inside the machine, at work on the Collatz sequence of 7 --- */

enum { PUSH, ADD, SUB, MUL, DIV, MOD, DUP, SHOW, JUMP, JUMP_NONZERO, HALT };

enum { AGAIN = 2, ODD = 15, TEST = 21 };
static const uint8_t program[] = {
	PUSH, 7,
	DUP, SHOW, DUP, PUSH, 2, MOD, JUMP_NONZERO, ODD, /* AGAIN */
	PUSH, 2, DIV, JUMP, TEST,
	PUSH, 3, MUL, PUSH, 1, ADD,                      /* ODD */
	DUP, PUSH, 1, SUB, JUMP_NONZERO, AGAIN,          /* TEST */
	SHOW, HALT,
};

static __attribute__((noinline)) int interpret(const uint8_t *code)
{
	int64_t stack[8], *top = stack;
	int steps = 0;

	for (const uint8_t *at = code;; steps++) {
		switch (*at++) {
		case PUSH: *++top = *at++; break;
		case ADD: top--; top[0] += top[1]; break;
		case SUB: top--; top[0] -= top[1]; break;
		case MUL: top--; top[0] *= top[1]; break;
		case DIV: top--; top[0] /= top[1]; break;
		case MOD: top--; top[0] %= top[1]; break;
		case DUP: top++; top[0] = top[-1]; break;
		case SHOW: print(" %ld", (long)*top--); break;
		case JUMP: at = code + *at; break;
		case JUMP_NONZERO: at = *top-- ? code + *at : at + 1; break;
		default: return steps;
		}
	}
}

/* --- 64-bit arithmetic --- */

static uint64_t seed = 88172645463325252u;

static __attribute__((noinline)) uint64_t next(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	return seed ^= seed << 17;
}

static __attribute__((noinline)) int64_t quotient(int64_t a, int64_t b)
{
	return a / b;
}

static __attribute__((noinline)) int64_t rest(int64_t a, int64_t b)
{
	return a % b;
}

static void show_arithmetic(void)
{
	static int calls;

	for (int i = 0; i < 4; i++, calls++) {
		uint64_t a = next(), b = next() >> (13 * i + 8);
		int64_t c = (int64_t)a >> 1, d = -(int64_t)(b >> 2) - 1;
		unsigned __int128 product = (unsigned __int128)a * b;
		print("%016lx / %lx = %lu r %lu; %ld / %ld = %ld r %ld; *%lx:%016lx <%x\n", a, b, a / b,
		      a % b, (long)c, (long)d, (long)quotient(c, d), (long)rest(c, d),
		      (uint64_t)(product >> 64), (uint64_t)product,
		      (unsigned)(__builtin_ctzll(a) << 8 | __builtin_clzll(b)));
	}
	uint32_t x = next(), y = next();
	print("calls %d, /7 %d %u, %%10 %d, rotated %08x\n", calls, (int)x / 7, x / 7, (int)(y % 10),
	      x << 5 | x >> 27);
}

static void report(void)
{
	show_cities("by height", by_height);
	show_cities("by people", by_people);
	print("ackermann %u\n", ackermann(2, 3));
	print("collatz:");
	print(" in %d steps\n", interpret(program));
	show_arithmetic();
}

#ifdef HOSTED
int main(void)
{
	report();
}
#else
/* --- exceptions and a PMI --- */

#define PMI_VECTOR 0x42

static volatile int breakpoints, divisions, invalid, pmis;
static volatile uint64_t pmi_rip;

static __attribute__((interrupt)) void on_breakpoint(struct frame *f)
{
	(void)f;
	breakpoints++;
}

static __attribute__((interrupt)) void on_divide(struct frame *f)
{
	f->rip += 2; /* div ecx */
	divisions++;
}

static __attribute__((interrupt)) void on_invalid(struct frame *f)
{
	f->rip += 2; /* ud2 */
	invalid++;
}

static __attribute__((interrupt)) void on_pmi(struct frame *f)
{
	pmi_rip = f->rip;
	pmis++;
	wrmsr(0x38f, 0);                /* IA32_PERF_GLOBAL_CTRL: stop */
	wrmsr(0x390, rdmsr(0x38e));     /* ..._OVF_CTRL = ..._STATUS */
	wrmsr(0x834, PMI_VECTOR);       /* the PMI masked LVTPC: unmask it */
	wrmsr(0x80b, 0);                /* end of interrupt */
}

static void exceptions(void)
{
	set_gate(0, on_divide);
	set_gate(3, on_breakpoint);
	set_gate(6, on_invalid);
	set_gate(PMI_VECTOR, on_pmi);
	load_idt();
	__asm__ volatile("int3\n\tint3");
	__asm__ volatile("xor {%%ecx, %%ecx|ecx, ecx}\n\tdiv {%%ecx|ecx}" ::: "eax", "ecx", "edx", "cc");
	__asm__ volatile("ud2");
	print("breakpoints %d, divisions by zero %d, invalid opcodes %d\n", breakpoints, divisions, invalid);
}

static void count(void)
{
	uint32_t leaf = cpuid(0xa, 0).eax;
	int version = leaf & 0xff, width = leaf >> 16 & 0xff;

	if (version < 2) {
		print("no pmu\n");
		return;
	}
	wrmsr(0x1b, rdmsr(0x1b) | 3 << 10);  /* x2APIC */
	wrmsr(0x80f, 0x1ff);                 /* enabled */
	wrmsr(0x834, PMI_VECTOR);            /* LVTPC */
	wrmsr(0x38f, 0);
	wrmsr(0xc1, -50);                    /* PMC0: fifty instructions to go */
	wrmsr(0x186, 0x5300c0);              /* INST_RETIRED, all rings, PMI */
	sti();
	wrmsr(0x38f, 1);
	for (int i = 0; i < 1000 && !pmis; i++)
		__asm__ volatile("nop");
	wrmsr(0x38f, 0);
	cli();
	uint64_t late = rdpmc(0);
	print("pmi %d, in here %d, counter %s, overflow %s\n", pmis,
	      pmi_rip >= (uint64_t)count && pmi_rip < (uint64_t)count + 4096,
	      late < 256 && width >= 32 ? "past zero" : "elsewhere",
	      rdmsr(0x38e) & 1 ? "still set" : "cleared");
}

void _start(void)
{
	report();
	exceptions();
	count();
	leave(0);
}
#endif
