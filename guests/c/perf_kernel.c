/*
 * A guest kernel that runs one workload, alone or under `perf record -F FREQ -e N×instructions -a --overwrite`.
 *
 * What it does to the PMU, and in which order, is what Linux does (5.15; KERNEL=607 is 6.7, 700 is 7.0): each function
 * bears the name that it has there, and does its MSR accesses. What Linux does besides, in memory and registers,
 * is time: work() spends what the row of isa/costs.toml of that name says, and counts it.
 *
 * Compiled into guests/include/perf_kernel_c.inc; parameters and entry are in guests/include/perf_kernel.inc.
 */
#include <stdint.h>

#include "machine.h"
#include "perf_kernel.h"
#include "print.h"

/* --- parameters: words of perf_kernel.inc, set by --defsym --- */

extern const uint64_t HZ_, FREQ_, EVENTS_, EVENT_, KERNEL_, WATCHDOG_, UNITS_, WARM_UNITS_, SEED_, TSC_KHZ_;
extern const uint64_t work_cycles[];

/* Rows of isa/costs.toml, in the order of work_cycles. */
enum work {
	WORK_nmi_entry,
	WORK_irq_entry,
	WORK_perf_event_nmi_handler,
	WORK_perf_event_overflow,
	WORK_timer_interrupt,
	WORK_perf_adjust_freq_unthr_context,
	WORK_perf_mux_hrtimer_handler,
	WORK_event_sched_in,
	WORK_event_sched_out,
	WORKS
};

/* --- what a run leaves for who reads it --- */

uint64_t work_count[WORKS];
uint64_t elapsed_tsc, checksum, tsc_khz;
uint64_t perf_nmis, perf_unknown_nmis, perf_samples, perf_rotations, perf_throttles, perf_ticks, perf_lowered;
/* Spent in perf's NMI handler, as perf_sample_event_took() hears of it: in all, and the shortest. */
uint64_t perf_nmi_ns, perf_nmi_min_ns = ~0ull;
uint64_t max_samples_per_tick;
uint64_t timer_interrupts;
volatile uint64_t io_done;

/* When each unit ended, by the TSC, those that warm up included; as far as there is room. */
#define STAMPS (1 << 17)
uint64_t units_done, stamps[STAMPS];

#define X2APIC_EOI 0x80b
#define X2APIC_SVR 0x80f
#define X2APIC_LVTT 0x832
#define X2APIC_LVTPC 0x834
#define IA32_APIC_BASE 0x1b
#define IA32_TSC_DEADLINE 0x6e0
#define IA32_PERF_CAPABILITIES 0x345
#define IA32_PERFCTR0 0xc1
#define IA32_PMC0 0x4c1
#define IA32_PERFEVTSEL0 0x186
#define IA32_FIXED_CTR0 0x309
#define FIXED_CTR_CTRL 0x38d
#define GLOBAL_STATUS 0x38e
#define GLOBAL_CTRL 0x38f
#define GLOBAL_OVF_CTRL 0x390

#define LOCAL_TIMER_VECTOR 0xec
#define APIC_DM_NMI 0x400
#define LVT_TSC_DEADLINE 0x40000

#define EVENTSEL_USR (1u << 16)
#define EVENTSEL_OS (1u << 17)
#define EVENTSEL_INT (1u << 20)
#define EVENTSEL_ENABLE (1u << 22)
#define INTEL_PMC_IDX_FIXED 32

#define PERF_HES_STOPPED 1
#define PERF_HES_UPTODATE 2
#define PERF_HES_ARCH 4
#define PERF_EF_START 1
#define PERF_EF_RELOAD 2
#define PERF_EF_UPDATE 4
#define MAX_INTERRUPTS (~0ull)
#define MAX_EVENTS 16
#define NSEC_PER_SEC 1000000000ull
#define NR_ACCUMULATED_SAMPLES 128

_Noreturn static void die(const char *why)
{
	print("%s: %s\n", workload_name, why);
	leave(1);
}

/*
 * Time that goes by in kernel code which is not written here: two multiplications in a row, three cycles each,
 * and their loop, so six and a half cycles for four instructions, about what kernel code manages.
 */
static void delay(uint64_t cycles)
{
	uint64_t turns = cycles * 2 / 13, x = 1;

	if (turns)
		__asm__ volatile("1: imul %1, %1\n\timul %1, %1\n\tdec %0\n\tjnz 1b" : "+r"(turns), "+r"(x)::"cc");
}

static void work(enum work row)
{
	work_count[row]++;
	delay(work_cycles[row]);
}

static inline uint64_t irqsave(void)
{
	uint64_t flags;
	__asm__ volatile("pushfq; pop %0; cli" : "=r"(flags)::"memory");
	return flags;
}

static inline void irqrestore(uint64_t flags)
{
	__asm__ volatile("push %0; popfq" ::"r"(flags) : "memory", "cc");
}

/* --- clocks --- */

uint64_t clock_tsc(void)
{
	uint32_t low, high;
	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high)::"memory");
	return low | (uint64_t)high << 32;
}

/* a * b / c; the quotient must fit. */
static uint64_t mul_div(uint64_t a, uint64_t b, uint64_t c)
{
	unsigned __int128 product = (unsigned __int128)a * b;
	uint64_t quotient, rest;

	__asm__("div %4" : "=a"(quotient), "=d"(rest) : "0"((uint64_t)product), "1"((uint64_t)(product >> 64)), "r"(c) : "cc");
	return quotient;
}

static uint64_t ns_mult; /* nanoseconds of a cycle, in 1 / 2**22 */

static uint64_t sched_clock(void)
{
	return (uint64_t)(((unsigned __int128)clock_tsc() * ns_mult) >> 22);
}

/* hrtimers: the tick, the multiplexing timer of perf, one of the workload */
enum { TICK, MUX, IO, TIMERS };
static uint64_t expires[TIMERS] = { ~0ull, ~0ull, ~0ull };
static uint64_t tick_tsc, mux_tsc, armed;

static void tick_program_event(void)
{
	uint64_t first = ~0ull;

	for (int i = 0; i < TIMERS; i++)
		if (expires[i] < first)
			first = expires[i];
	if (first != armed && first != ~0ull)
		wrmsr(IA32_TSC_DEADLINE, first);
	armed = first;
}

void hrtimer_start(unsigned timer, uint64_t tsc)
{
	uint64_t flags = irqsave();

	expires[timer] = tsc;
	tick_program_event();
	irqrestore(flags);
}

/* --- perf: struct perf_event, its hardware part, and the PMU of this CPU --- */

struct perf_event {
	int active, pinned, freq;
	uint64_t count, samples;
	/* struct hw_perf_event */
	uint32_t config, config_base, event_base, event_base_rdpmc;
	int idx, state;
	uint64_t prev_count, sample_period, last_period;
	int64_t period_left;
	uint64_t interrupts, interrupts_seq, freq_time_stamp, freq_count_stamp;
};

static struct perf_event events[MAX_EVENTS];
static struct perf_event *context[MAX_EVENTS]; /* the flexible events in the order in which they get a turn */
static int nr_events, rotate_necessary;

static struct {
	int enabled, n_events, n_added;
	struct perf_event *event_list[MAX_EVENTS];
	int assign[MAX_EVENTS];
	struct perf_event *events[64];
	uint64_t active_mask;
	uint64_t fixed_ctrl_val, active_fixed_ctrl_val;
} cpuc;

static struct {
	unsigned version, num_counters, cntval_bits, num_counters_fixed, counter_msr;
	uint64_t cntval_mask, max_period, intel_ctrl;
	int fixed_of_event; /* the fixed counter that counts EVENT, -1 if none does */
} x86_pmu;

static uint64_t perf_throttled_seq, perf_throttled_count;
static uint64_t perf_sample_allowed_ns, running_sample_length;

static void x86_perf_event_update(struct perf_event *event)
{
	unsigned shift = 64 - x86_pmu.cntval_bits;
	uint64_t prev = event->prev_count, now = rdpmc(event->event_base_rdpmc);
	int64_t delta = (int64_t)((now << shift) - (prev << shift));

	event->prev_count = now;
	delta >>= shift;
	event->count += delta;
	event->period_left -= delta;
}

static int x86_perf_event_set_period(struct perf_event *event)
{
	int64_t left = event->period_left, period = event->sample_period;
	int ret = 0;

	if (left <= -period) {
		left = period;
		event->period_left = left;
		event->last_period = period;
		ret = 1;
	}
	if (left <= 0) {
		left += period;
		event->period_left = left;
		event->last_period = period;
		ret = 1;
	}
	if (left < 2)
		left = 2;
	if (left > (int64_t)x86_pmu.max_period)
		left = x86_pmu.max_period;
	event->prev_count = (uint64_t)-left;
	wrmsr(event->event_base, (uint64_t)-left & x86_pmu.cntval_mask);
	return ret;
}

/* Since 6.1 __intel_pmu_enable_all() writes the control of the fixed counters, if it is not what it was. */
static void intel_pmu_set_fixed(struct perf_event *event, uint64_t bits)
{
	unsigned shift = 4 * (event->idx - INTEL_PMC_IDX_FIXED);
	uint64_t was = KERNEL_ < 601 ? rdmsr(event->config_base) : cpuc.fixed_ctrl_val;

	cpuc.fixed_ctrl_val = (was & ~(0xfull << shift)) | bits << shift;
	if (KERNEL_ < 601) {
		wrmsr(event->config_base, cpuc.fixed_ctrl_val);
		cpuc.active_fixed_ctrl_val = cpuc.fixed_ctrl_val;
	}
}

static void intel_pmu_enable_event(struct perf_event *event)
{
	if (event->idx >= INTEL_PMC_IDX_FIXED)
		intel_pmu_set_fixed(event, 0xb);
	else
		wrmsr(event->config_base, event->config | EVENTSEL_ENABLE);
}

static void intel_pmu_disable_event(struct perf_event *event)
{
	if (event->idx >= INTEL_PMC_IDX_FIXED)
		intel_pmu_set_fixed(event, 0);
	else
		wrmsr(event->config_base, event->config & ~EVENTSEL_ENABLE);
}

static void x86_pmu_start(struct perf_event *event, int flags)
{
	if (!(event->state & PERF_HES_STOPPED))
		return;
	if (flags & PERF_EF_RELOAD)
		x86_perf_event_set_period(event);
	event->state = 0;
	cpuc.events[event->idx] = event;
	cpuc.active_mask |= 1ull << event->idx;
	intel_pmu_enable_event(event);
}

static void x86_pmu_stop(struct perf_event *event, int flags)
{
	if (event->idx >= 0 && cpuc.active_mask >> event->idx & 1) {
		intel_pmu_disable_event(event);
		cpuc.active_mask &= ~(1ull << event->idx);
		cpuc.events[event->idx] = 0;
		event->state |= PERF_HES_STOPPED;
	}
	if (flags & PERF_EF_UPDATE && !(event->state & PERF_HES_UPTODATE)) {
		x86_perf_event_update(event);
		event->state |= PERF_HES_UPTODATE;
	}
}

/* --- which event is on which counter --- */

static uint64_t constraint_of(const struct perf_event *event)
{
	uint64_t mask = (1ull << x86_pmu.num_counters) - 1;

	if (event->pinned) /* the watchdog's cycles */
		return mask | (x86_pmu.num_counters_fixed > 1 ? 1ull << (INTEL_PMC_IDX_FIXED + 1) : 0);
	if (x86_pmu.fixed_of_event >= 0)
		mask |= 1ull << (INTEL_PMC_IDX_FIXED + x86_pmu.fixed_of_event);
	return mask;
}

/* 0 if the first `n` events of the list have a counter each; they keep the one that they had, if all can. */
static int x86_schedule_events(int n, int *assign)
{
	uint64_t used = 0;
	int i;

	for (i = 0; i < n; i++) {
		const struct perf_event *event = cpuc.event_list[i];

		if (event->idx < 0 || !(constraint_of(event) >> event->idx & 1) || used >> event->idx & 1)
			break;
		used |= 1ull << event->idx;
		assign[i] = event->idx;
	}
	if (i == n)
		return 0;
	/* perf_assign_events(): fixed counters first (perf_sched_find_counter). */
	used = 0;
	for (i = 0; i < n; i++) {
		uint64_t may = constraint_of(cpuc.event_list[i]) & ~used;
		uint64_t fixed = may & ~0ull << INTEL_PMC_IDX_FIXED;

		if (!may)
			return -1;
		assign[i] = __builtin_ctzll(fixed ? fixed : may);
		used |= 1ull << assign[i];
	}
	return 0;
}

static void x86_assign_hw_event(struct perf_event *event, int i)
{
	int idx = event->idx = cpuc.assign[i];

	if (idx >= INTEL_PMC_IDX_FIXED) {
		event->config_base = FIXED_CTR_CTRL;
		event->event_base = IA32_FIXED_CTR0 + idx - INTEL_PMC_IDX_FIXED;
		event->event_base_rdpmc = (unsigned)(idx - INTEL_PMC_IDX_FIXED) | 1u << 30;
	} else {
		event->config_base = IA32_PERFEVTSEL0 + idx;
		event->event_base = x86_pmu.counter_msr + idx;
		event->event_base_rdpmc = idx;
	}
}

/* --- the whole PMU --- */

static void __intel_pmu_disable_all(void)
{
	wrmsr(GLOBAL_CTRL, 0);
}

static void __intel_pmu_enable_all(void)
{
	if (cpuc.fixed_ctrl_val != cpuc.active_fixed_ctrl_val) {
		wrmsr(FIXED_CTR_CTRL, cpuc.fixed_ctrl_val);
		cpuc.active_fixed_ctrl_val = cpuc.fixed_ctrl_val;
	}
	wrmsr(GLOBAL_CTRL, x86_pmu.intel_ctrl);
}

static void perf_pmu_disable(void)
{
	if (!cpuc.enabled)
		return;
	cpuc.n_added = 0;
	cpuc.enabled = 0;
	__asm__ volatile("" ::: "memory");
	__intel_pmu_disable_all();
}

static void perf_pmu_enable(void)
{
	if (cpuc.enabled)
		return;
	if (cpuc.n_added) {
		int n_running = cpuc.n_events - cpuc.n_added;

		/* Those that move leave their old counters first. */
		for (int i = 0; i < n_running; i++) {
			struct perf_event *event = cpuc.event_list[i];

			if (event->idx < 0 || event->idx == cpuc.assign[i])
				continue;
			if (event->state & PERF_HES_STOPPED)
				event->state |= PERF_HES_ARCH;
			x86_pmu_stop(event, PERF_EF_UPDATE);
		}
		for (int i = 0; i < cpuc.n_events; i++) {
			struct perf_event *event = cpuc.event_list[i];

			if (event->idx != cpuc.assign[i])
				x86_assign_hw_event(event, i);
			else if (i < n_running)
				continue;
			if (event->state & PERF_HES_ARCH)
				continue;
			x86_pmu_start(event, PERF_EF_RELOAD);
		}
		cpuc.n_added = 0;
		wrmsr(X2APIC_LVTPC, APIC_DM_NMI); /* perf_events_lapic_init() */
	}
	cpuc.enabled = 1;
	__asm__ volatile("" ::: "memory");
	__intel_pmu_enable_all();
}

/* --- events in and out --- */

static void event_sched_out(struct perf_event *event)
{
	int i = 0;

	if (!event->active)
		return;
	work(WORK_event_sched_out);
	event->active = 0;
	/* x86_pmu_del() */
	x86_pmu_stop(event, PERF_EF_UPDATE);
	while (cpuc.event_list[i] != event)
		i++;
	if (i >= cpuc.n_events - cpuc.n_added)
		cpuc.n_added--;
	for (cpuc.n_events--; i < cpuc.n_events; i++) {
		cpuc.event_list[i] = cpuc.event_list[i + 1];
		cpuc.assign[i] = cpuc.assign[i + 1];
	}
}

/* Whether it has a counter now; event_sched_in() and x86_pmu_commit_txn(). */
static int group_sched_in(struct perf_event *event)
{
	int assign[MAX_EVENTS], n = cpuc.n_events;

	work(WORK_event_sched_in);
	if (n >= (int)(x86_pmu.num_counters + x86_pmu.num_counters_fixed))
		return 0;
	cpuc.event_list[n] = event;
	if (x86_schedule_events(n + 1, assign))
		return 0;
	event->state = PERF_HES_UPTODATE | PERF_HES_STOPPED;
	for (int i = 0; i <= n; i++)
		cpuc.assign[i] = assign[i];
	cpuc.n_events = n + 1;
	cpuc.n_added++;
	event->active = 1;
	return 1;
}

static void ctx_flexible_sched_in(void)
{
	for (int i = 0; i < nr_events; i++) {
		if (context[i]->active)
			continue;
		if (!group_sched_in(context[i])) {
			rotate_necessary = 1;
			if (expires[MUX] == ~0ull)
				hrtimer_start(MUX, clock_tsc() + mux_tsc);
			return;
		}
	}
}

static void ctx_flexible_sched_out(void)
{
	for (int i = 0; i < nr_events; i++)
		event_sched_out(context[i]);
}

static void perf_rotate_context(void)
{
	int i = 0;
	struct perf_event *first;

	perf_pmu_disable();
	rotate_necessary = 0;
	while (i < nr_events - 1 && !context[i]->active)
		i++;
	ctx_flexible_sched_out();
	first = context[i]; /* ctx_event_to_rotate() */
	for (; i < nr_events - 1; i++)
		context[i] = context[i + 1];
	context[i] = first;
	ctx_flexible_sched_in();
	perf_pmu_enable();
}

static void perf_mux_hrtimer_handler(uint64_t now)
{
	expires[MUX] = ~0ull;
	if (!rotate_necessary)
		return;
	perf_rotations++;
	work(WORK_perf_mux_hrtimer_handler);
	perf_rotate_context();
	expires[MUX] = now + mux_tsc;
}

/* --- samples --- */

static void perf_adjust_period(struct perf_event *event, uint64_t nsec, uint64_t count, int disable)
{
	/* perf_calculate_period(): count events in nsec nanoseconds, FREQ samples a second are wanted. */
	unsigned __int128 dividend = (unsigned __int128)count * NSEC_PER_SEC;
	uint64_t divisor = nsec * FREQ_, period;
	int64_t delta;

	while (dividend >> 64) {
		dividend >>= 1;
		divisor >>= 1;
	}
	period = divisor ? (uint64_t)dividend / divisor : (uint64_t)dividend;
	delta = (int64_t)(period - event->sample_period);
	delta = (delta >= 0 ? delta + 7 : delta - 7) / 8; /* low pass filter */
	event->sample_period += delta;
	if (!event->sample_period)
		event->sample_period = 1;
	if (event->period_left > 8 * (int64_t)event->sample_period) {
		if (disable)
			x86_pmu_stop(event, PERF_EF_UPDATE);
		event->period_left = 0;
		if (disable)
			x86_pmu_start(event, PERF_EF_RELOAD);
	}
}

static int __perf_event_account_interrupt(struct perf_event *event)
{
	int ret = 0;

	if (perf_throttled_seq != event->interrupts_seq) {
		event->interrupts_seq = perf_throttled_seq;
		event->interrupts = 1;
	} else if (++event->interrupts > max_samples_per_tick) {
		perf_throttled_count++;
		perf_throttles++;
		event->interrupts = MAX_INTERRUPTS;
		ret = 1;
	}
	if (event->freq) {
		uint64_t now = sched_clock();
		int64_t delta = (int64_t)(now - event->freq_time_stamp);

		event->freq_time_stamp = now;
		if (delta > 0 && (uint64_t)delta < 2 * (NSEC_PER_SEC / HZ_))
			perf_adjust_period(event, delta, event->last_period, 1);
	}
	return ret;
}

struct sample { /* PERF_RECORD_SAMPLE: header, IP, TID, TIME, ID, CPU, PERIOD */
	uint64_t header, ip, tid, time, id, cpu, period;
};

#define RING_SAMPLES 1024
struct sample perf_ring[RING_SAMPLES]; /* mapped by the tool, which reads it when it stops */
static uint64_t ring_head;

static int perf_event_overflow(struct perf_event *event, const struct frame *regs)
{
	int ret = __perf_event_account_interrupt(event);
	/* --overwrite: written backward, never full */
	struct sample *to = &perf_ring[--ring_head % RING_SAMPLES];

	work(WORK_perf_event_overflow);
	*to = (struct sample){ 9ull | (uint64_t)sizeof(*to) << 48, regs->rip, 1, sched_clock(),
			       event - events, 0, event->last_period };
	event->samples++;
	perf_samples++;
	return ret;
}

/* --- the PMI --- */

static int intel_pmu_handle_irq(const struct frame *regs)
{
	int pmu_enabled = cpuc.enabled, handled = 0, loops = 0;
	uint64_t status;

	cpuc.enabled = 0;
	__intel_pmu_disable_all();
	work(WORK_perf_event_nmi_handler);
	status = rdmsr(GLOBAL_STATUS);
	while (status && ++loops <= 100) {
		wrmsr(GLOBAL_OVF_CTRL, status); /* intel_pmu_ack_status() */
		status &= ~(0x7ull << 61 | 1ull << 59 | 1ull << 58); /* handle_pmi_common() */
		while (status) {
			int bit = __builtin_ctzll(status);
			struct perf_event *event = cpuc.events[bit];

			status &= status - 1;
			handled++;
			if (!(cpuc.active_mask >> bit & 1) || !event)
				continue;
			/* intel_pmu_save_and_restart() */
			x86_perf_event_update(event);
			if (!x86_perf_event_set_period(event))
				continue;
			if (perf_event_overflow(event, regs))
				x86_pmu_stop(event, 0);
		}
		status = rdmsr(GLOBAL_STATUS);
	}
	cpuc.enabled = pmu_enabled;
	if (pmu_enabled)
		__intel_pmu_enable_all();
	wrmsr(X2APIC_LVTPC, APIC_DM_NMI); /* the late acknowledgement of all since Skylake */
	return handled;
}

static void perf_sample_event_took(uint64_t ns)
{
	uint64_t max_len = perf_sample_allowed_ns, avg_len, max;

	if (!max_len)
		return;
	running_sample_length += ns - running_sample_length / NR_ACCUMULATED_SAMPLES;
	avg_len = running_sample_length / NR_ACCUMULATED_SAMPLES;
	if (avg_len <= max_len)
		return;
	avg_len += avg_len / 4;
	max = NSEC_PER_SEC / HZ_ / 100 * 25;
	max = avg_len < max ? max / avg_len : 1;
	perf_sample_allowed_ns = avg_len;
	max_samples_per_tick = max;
	perf_lowered++;
}

static unsigned handled_before;

__attribute__((interrupt)) static void asm_exc_nmi(struct frame *regs)
{
	work(WORK_nmi_entry);
	uint64_t start = sched_clock();
	int handled = intel_pmu_handle_irq(regs);

	uint64_t took = sched_clock() - start;

	perf_nmi_ns += took;
	if (took < perf_nmi_min_ns)
		perf_nmi_min_ns = took;
	perf_sample_event_took(took);
	perf_nmis++;
	/* An NMI that finds nothing, after one that found two overflows, was the second one's (default_do_nmi()). */
	if (!handled && handled_before < 2)
		perf_unknown_nmis++;
	handled_before = handled;
}

/* --- the tick --- */

static void perf_adjust_freq_unthr_event(struct perf_event *event)
{
	uint64_t delta;

	if (event->interrupts == MAX_INTERRUPTS) {
		event->interrupts = 0;
		x86_pmu_start(event, 0);
	}
	if (!event->freq)
		return;
	work(WORK_perf_adjust_freq_unthr_context);
	x86_pmu_stop(event, PERF_EF_UPDATE);
	delta = event->count - event->freq_count_stamp;
	event->freq_count_stamp = event->count;
	if ((int64_t)delta > 0)
		perf_adjust_period(event, NSEC_PER_SEC / HZ_, delta, 0);
	x86_pmu_start(event, (int64_t)delta > 0 ? PERF_EF_RELOAD : 0);
}

static void perf_event_task_tick(void)
{
	perf_throttled_seq++;
	perf_throttled_count = 0;
	if (!nr_events)
		return;
	/* From 6.2 to 6.9 the PMU is stopped for each event, before and after once. */
	int each = KERNEL_ >= 602 && KERNEL_ < 610;

	if (!each)
		perf_pmu_disable();
	for (int i = 0; i < MAX_EVENTS; i++) {
		if (!events[i].active)
			continue;
		if (each)
			perf_pmu_disable();
		perf_adjust_freq_unthr_event(&events[i]);
		if (each)
			perf_pmu_enable();
	}
	if (!each)
		perf_pmu_enable();
}

__attribute__((interrupt)) static void sysvec_apic_timer_interrupt(struct frame *regs)
{
	uint64_t now;

	(void)regs;
	wrmsr(X2APIC_EOI, 0);
	work(WORK_irq_entry);
	timer_interrupts++;
	armed = ~0ull;
	now = clock_tsc();
	if (expires[TICK] <= now) {
		perf_ticks++;
		work(WORK_timer_interrupt);
		perf_event_task_tick();
		do
			expires[TICK] += tick_tsc;
		while (expires[TICK] <= now);
	}
	if (expires[MUX] <= now)
		perf_mux_hrtimer_handler(now);
	if (expires[IO] <= now) {
		expires[IO] = ~0ull;
		io_done++;
	}
	tick_program_event();
}

__attribute__((interrupt)) static void unexpected(struct frame *regs)
{
	print("exception at %lx\n", regs->rip);
	die("an exception that nobody expects");
}

__attribute__((interrupt)) static void unexpected_code(struct frame *regs, uint64_t code)
{
	print("exception at %lx, error code %lx\n", regs->rip, code);
	die("an exception that nobody expects");
}

/* Sleeps until an interrupt; with interrupts off, so that none slips in between a look and the sleep. */
void idle(void)
{
	__asm__ volatile("sti; hlt; cli" ::: "memory");
}

/* --- start --- */

void put(char c)
{
	outb(COM1, c);
}

void *memcpy(void *to, const void *from, unsigned long n)
{
	void *start = to;
	__asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n)::"memory");
	return start;
}

void *memset(void *at, int c, unsigned long n)
{
	void *start = at;
	__asm__ volatile("rep stosb" : "+D"(at), "+c"(n) : "a"(c) : "memory");
	return start;
}

static void calibrate_tsc(void)
{
	struct cpuid leaf = cpuid(0x15, 0);

	tsc_khz = TSC_KHZ_;
	if (!tsc_khz && leaf.eax && leaf.ebx && leaf.ecx && cpuid(0, 0).eax >= 0x15)
		tsc_khz = (uint64_t)leaf.ecx * leaf.ebx / leaf.eax / 1000;
	if (!tsc_khz)
		die("CPUID leaf 15H does not say how fast the TSC runs: --defsym TSC_KHZ=");
	ns_mult = (1000000ull << 22) / tsc_khz;
	tick_tsc = tsc_khz * 1000 / HZ_;
	mux_tsc = tick_tsc; /* PERF_CPU_HRTIMER: 1000 / HZ ms */
}

static void init_interrupts(void)
{
	for (int i = 0; i < 32; i++)
		set_gate(i, i == 8 || (i >= 10 && i <= 14) || i == 17 || i == 21 ? (void *)unexpected_code
										 : (void *)unexpected);
	set_gate(2, asm_exc_nmi);
	set_gate(LOCAL_TIMER_VECTOR, sysvec_apic_timer_interrupt);
	load_idt();
	wrmsr(IA32_APIC_BASE, rdmsr(IA32_APIC_BASE) | 0xc00); /* x2APIC */
	wrmsr(X2APIC_SVR, 0x1ff);
	wrmsr(X2APIC_LVTT, LOCAL_TIMER_VECTOR | LVT_TSC_DEADLINE);
}

static void init_hw_perf_events(void)
{
	struct cpuid leaf = cpuid(0xa, 0);

	x86_pmu.version = leaf.eax & 0xff;
	x86_pmu.num_counters = leaf.eax >> 8 & 0xff;
	x86_pmu.cntval_bits = leaf.eax >> 16 & 0xff;
	x86_pmu.num_counters_fixed = x86_pmu.version > 1 ? leaf.edx & 0x1f : 0;
	if (x86_pmu.version < 2 || !x86_pmu.num_counters)
		die("perf needs a PMU of version 2, and CPUID leaf 0AH tells of none");
	x86_pmu.cntval_mask = (1ull << x86_pmu.cntval_bits) - 1;
	/* Without full-width writes a counter takes 31 bits and their sign. */
	x86_pmu.counter_msr = IA32_PERFCTR0;
	x86_pmu.max_period = (1ull << 31) - 1;
	if (cpuid(1, 0).ecx >> 15 & 1 && rdmsr(IA32_PERF_CAPABILITIES) >> 13 & 1) {
		x86_pmu.counter_msr = IA32_PMC0;
		x86_pmu.max_period = x86_pmu.cntval_mask >> 1;
	}
	x86_pmu.intel_ctrl = (1ull << x86_pmu.num_counters) - 1;
	x86_pmu.intel_ctrl |= ((1ull << x86_pmu.num_counters_fixed) - 1) << INTEL_PMC_IDX_FIXED;
	x86_pmu.fixed_of_event = EVENT_ == 0xc0 ? 0 : EVENT_ == 0x3c ? 1 : -1;
	if (x86_pmu.fixed_of_event >= (int)x86_pmu.num_counters_fixed)
		x86_pmu.fixed_of_event = -1;
	max_samples_per_tick = (100000 + HZ_ - 1) / HZ_;
	perf_sample_allowed_ns = NSEC_PER_SEC / 100000 * 25 / 100;
	for (unsigned i = 0; i < x86_pmu.num_counters; i++)
		wrmsr(IA32_PERFEVTSEL0 + i, 0);
	wrmsr(FIXED_CTR_CTRL, 0);
	wrmsr(GLOBAL_CTRL, 0);
	wrmsr(X2APIC_LVTPC, APIC_DM_NMI);
}

static void perf_event_open(struct perf_event *event, uint64_t select, int pinned, uint64_t period)
{
	event->config = select | EVENTSEL_USR | EVENTSEL_OS | EVENTSEL_INT;
	event->idx = -1;
	event->state = PERF_HES_UPTODATE | PERF_HES_STOPPED;
	event->pinned = pinned;
	event->freq = !period;
	event->sample_period = event->last_period = period ? period : 1;
	event->period_left = event->sample_period;
	event->freq_time_stamp = sched_clock();
}

/* Opens the events, then lets each of them run, one after the other, as perf record does. */
static void perf_record(void)
{
	if (EVENTS_ >= MAX_EVENTS)
		die("EVENTS must be less than 16");
	init_hw_perf_events();
	cpuc.enabled = 1;
	if (WATCHDOG_) {
		/* hardlockup_detector_event_create(): cycles of ten seconds, pinned */
		perf_event_open(&events[MAX_EVENTS - 1], 0x3c, 1, tsc_khz * 1000 * 10);
		perf_pmu_disable();
		group_sched_in(&events[MAX_EVENTS - 1]);
		perf_pmu_enable();
	}
	for (unsigned i = 0; i < EVENTS_; i++)
		perf_event_open(&events[i], EVENT_, 0, 0);
	for (unsigned i = 0; i < EVENTS_; i++) {
		uint64_t flags = irqsave();

		/* __perf_event_enable() and ctx_resched() */
		perf_pmu_disable();
		ctx_flexible_sched_out();
		context[nr_events++] = &events[i];
		ctx_flexible_sched_in();
		perf_pmu_enable();
		irqrestore(flags);
	}
}

static uint64_t unit(void)
{
	uint64_t value = workload_unit();

	if (units_done < STAMPS)
		stamps[units_done] = clock_tsc();
	units_done++;
	return value;
}

void kernel_main(void)
{
	uint64_t start;

	if (!HZ_ || HZ_ > 10000 || !FREQ_)
		die("HZ must be 1 to 10000, FREQ at least 1");
	calibrate_tsc();
	init_interrupts();
	workload_setup(SEED_);
	hrtimer_start(TICK, clock_tsc() + tick_tsc);
	sti();
	if (EVENTS_ || WATCHDOG_)
		perf_record();
	for (uint64_t i = 0; i < WARM_UNITS_; i++)
		unit();
	start = measured();
	for (uint64_t i = 0; i < UNITS_; i++)
		checksum = checksum * 31 + unit();
	elapsed_tsc = measured_end() - start;
	cli();
	if (EVENTS_ || WATCHDOG_)
		wrmsr(GLOBAL_CTRL, 0);
	print("%s: %lu units, %lu a second, checksum %016lx\n", workload_name, UNITS_,
	      elapsed_tsc ? mul_div(UNITS_, tsc_khz * 1000, elapsed_tsc) : 0, checksum);
	if (EVENTS_)
		print("perf: %lu samples, %lu NMIs of %lu ns, %lu unknown, %lu rotations, %lu throttled\n", perf_samples,
		      perf_nmis, perf_nmis ? perf_nmi_ns / perf_nmis : 0, perf_unknown_nmis, perf_rotations,
		      perf_throttles);
	leave(perf_unknown_nmis ? 2 : 0);
}
