/*
 * A program that waits for a disk, as fio with one request at a time: all exits and no work.
 *
 * A unit submits a request by a write to a port, sleeps by HLT until the interrupt that says that it is done, reads
 * the status port and sums up the block that it got. The disk takes 1 / IO_HZ of a second, by a timer of the
 * kernel's; so what the exits and the kernel around it take makes units slower, one for one.
 *
 * #: args --defsym EVENTS=6 --defsym UNITS=40
 * #: expect all: exit_code == 0
 * #: expect all: mem64(checksum) == 0x0a1cf47c0b7de9aa
 * #: expect all: pmis == mem64(perf_nmis)
 * #: expect all: mem64(perf_samples) > 20
 */
#include "workload.h"

#define BLOCKS 64
#define WORDS 64 /* 512 bytes */
#define IO_TIMER 2
#define COMMAND 0x1f7 /* of the first disk of a PC; nobody is there, so its status reads all ones */
#define READ 0x20

const char workload_name[] = "fio";

#ifdef HOSTED
volatile uint64_t io_done;
uint64_t tsc_khz;

uint64_t clock_tsc(void)
{
	return 0;
}

void hrtimer_start(unsigned timer, uint64_t tsc)
{
	(void)timer, (void)tsc;
	io_done++;
}

void idle(void)
{
}

#define outb(port, value) ((void)(port), (void)(value))
#define inb(port) 0xff
#define cli() (void)0
#define sti() (void)0
#define io_hz() 1
#else
#include "../machine.h"

__asm__(".ifndef IO_HZ # fio: requests a second, if nothing but the disk took time\n\t.equ IO_HZ, 20000\n\t.endif\n\t"
	".if IO_HZ < 1 || IO_HZ > 10000000\n\t.error \"IO_HZ must be 1 to 10000000\"\n\t.endif");

static uint64_t io_hz(void)
{
	uint64_t hz;

	__asm__("mov {$IO_HZ, %k0|%k0, IO_HZ}" : "=r"(hz));
	return hz;
}
#endif

static uint64_t blocks[BLOCKS][WORDS];
static uint64_t latency; /* of the disk, in ticks of the TSC */

void workload_setup(uint64_t seed)
{
	random_seed(seed);
	for (uint32_t i = 0; i < BLOCKS; i++)
		for (uint32_t k = 0; k < WORDS; k++)
			blocks[i][k] = random64();
	latency = tsc_khz * 1000 / io_hz();
}

uint64_t workload_unit(void)
{
	uint64_t *block = blocks[random_below(BLOCKS)], before = io_done, sum = 0;

	outb(COMMAND, READ);
	hrtimer_start(IO_TIMER, clock_tsc() + latency);
	/* with interrupts off between the look and the sleep, or the one that is waited for could come there */
	cli();
	while (io_done == before)
		idle();
	sti();
	sum = inb(COMMAND);
	for (uint32_t k = 0; k < WORDS; k++)
		sum = sum * 3 + block[k];
	block[sum % WORDS] += sum;
	return sum;
}
