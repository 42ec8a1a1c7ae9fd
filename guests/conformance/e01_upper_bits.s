# E1: a filter compares the whole event, not its low byte alone.
#
# The host denies 0xC4 with unit mask 1, and an event number beyond 8 bits, 0x1C4 in bits 35:32 and 7:0, which
# only AMD's selectors can hold: on Intel's processors it matches nothing. Branches, 0xC4 with unit mask 0, are
# neither. So everything counts.
#
#: row E1
#: upstream pmu_event_filter_test.c test_amd_deny_list
#: args --filter e01_upper_bits.toml
#: modes bare emulated passthrough mediated
#: expect all: exit_code == 0
#: expect all: pmc0 == BRANCHES
#: expect all: pmc1 == insns(opened, again) + BRANCHES * insns(again, done) + insns(done, closed)
#: expect all: fixed0 == insns(opened, again) + BRANCHES * insns(again, done) + insns(done, closed)
#: expect all: mem64(selector0) == EVTSEL_OS + EVTSEL_EN + 0xc4
#: expect all: mem64(selector1) == EVTSEL_OS + EVTSEL_EN + 0xc0

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "filtered.inc"
