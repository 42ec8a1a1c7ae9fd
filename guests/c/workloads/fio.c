/*
 * A program that waits for a disk, as fio with one request at a time: all exits and no work.
 *
 * A unit submits a request by a write to a port, sleeps by HLT until the interrupt that says that it is done, reads
 * the status port and sums up the block that it got. The disk takes 1 / IO_HZ of a second, by a timer of the
 * kernel's; so what the exits and the kernel around it take makes units slower, one for one.
 */
#include "workload.h"

#define BLOCKS 64
#define WORDS 64 /* 512 bytes */
#define IO_SLOT 2
#define COMMAND 0x1f7 /* of the first disk of a PC; nobody is there, so its status reads all ones */
#define READ 0x20

const char workload_name[] = "fio";

#ifdef HOSTED
static uint64_t io_done;
#define outb(port, value) ((void)(port), (void)(value))
#define inb(port) 0xff
#define cli() (void)0
#define sti() (void)0
#define clock_tsc() 0
#define hrtimer_start(slot, tsc) ((void)(tsc), io_done++)
#define idle() (void)0

static uint64_t tsc_of_io(void)
{
	return 0;
}
#else
#include "../machine.h"

/* The guest kernel's */
uint64_t clock_tsc(void);
void hrtimer_start(unsigned slot, uint64_t tsc);
void idle(void); /* interrupts on and HLT, as one */
extern volatile uint64_t io_done; /* how often the timer of IO_SLOT was up */

__asm__(".ifndef IO_HZ\n\t.equ IO_HZ, 20000\n\t.endif");

/* Ticks of the TSC that the disk takes. */
static uint64_t tsc_of_io(void)
{
	struct cpuid clocks = cpuid(0x15, 0); /* TSC = ECX * EBX / EAX */
	uint32_t io_hz;

	__asm__("mov {$IO_HZ, %0|%0, IO_HZ}" : "=r"(io_hz));
	return (uint64_t)clocks.ecx * clocks.ebx / clocks.eax / io_hz;
}
#endif

static uint64_t blocks[BLOCKS][WORDS];
static uint64_t latency;

void workload_setup(uint64_t seed)
{
	random_seed(seed);
	for (uint32_t i = 0; i < BLOCKS; i++)
		for (uint32_t k = 0; k < WORDS; k++)
			blocks[i][k] = random64();
	latency = tsc_of_io();
}

uint64_t workload_unit(void)
{
	uint64_t *block = blocks[random_below(BLOCKS)], before = io_done, sum = 0;

	outb(COMMAND, READ);
	hrtimer_start(IO_SLOT, clock_tsc() + latency);
	/* with interrupts off between the look and the sleep, or the one that is waited for could come there */
	cli();
	while (io_done == before) {
		idle();
		cli();
	}
	sti();
	sum = inb(COMMAND);
	for (uint32_t k = 0; k < WORDS; k++)
		sum = sum * 3 + block[k];
	block[sum % WORDS] += sum;
	return sum;
}
