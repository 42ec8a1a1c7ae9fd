/* What C cannot say: ports, MSRs, CPUID, the IDT. For programs that the emulator runs by themselves. */
#pragma once
#include <stdint.h>

#define COM1 0x3f8
#define DEBUG_EXIT 0xf4

static inline void outb(uint16_t port, uint8_t value)
{
	__asm__ volatile("out {%0, %1|%1, %0}" ::"a"(value), "Nd"(port) : "memory");
}

static inline uint8_t inb(uint16_t port)
{
	uint8_t value;
	__asm__ volatile("in {%1, %0|%0, %1}" : "=a"(value) : "Nd"(port) : "memory");
	return value;
}

static inline void wrmsr(uint32_t index, uint64_t value)
{
	__asm__ volatile("wrmsr" ::"c"(index), "a"((uint32_t)value), "d"((uint32_t)(value >> 32)) : "memory");
}

static inline uint64_t rdmsr(uint32_t index)
{
	uint32_t low, high;
	__asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(index) : "memory");
	return low | (uint64_t)high << 32;
}

static inline uint64_t rdpmc(uint32_t index)
{
	uint32_t low, high;
	__asm__ volatile("rdpmc" : "=a"(low), "=d"(high) : "c"(index) : "memory");
	return low | (uint64_t)high << 32;
}

struct cpuid {
	uint32_t eax, ebx, ecx, edx;
};

static inline struct cpuid cpuid(uint32_t leaf, uint32_t subleaf)
{
	struct cpuid r;
	__asm__ volatile("cpuid" : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx)
				 : "a"(leaf), "c"(subleaf));
	return r;
}

/* --- interrupts: the machine starts with CS 8 and no IDT --- */

struct frame {
	uint64_t rip, cs, rflags, rsp, ss;
};

struct gate {
	uint16_t low, selector, type, middle;
	uint32_t high, reserved;
};

static struct gate idt[256];

static inline void set_gate(int vector, void *handler)
{
	uint64_t at = (uint64_t)handler;
	idt[vector] = (struct gate){ at, 8, 0x8e00, at >> 16, at >> 32, 0 };
}

static inline void load_idt(void)
{
	struct __attribute__((packed)) {
		uint16_t limit;
		struct gate *base;
	} where = { sizeof(idt) - 1, idt };
	__asm__ volatile("lidt %0" ::"m"(where));
}

static inline void sti(void)
{
	__asm__ volatile("sti" ::: "memory");
}

static inline void cli(void)
{
	__asm__ volatile("cli" ::: "memory");
}

static inline _Noreturn void leave(uint8_t code)
{
	outb(DEBUG_EXIT, code);
	for (;;)
		__asm__ volatile("cli; hlt");
}
