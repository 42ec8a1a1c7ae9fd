# E3: what an allow list names counts.
#
# Of the fixed counters an allow list allows those of its bitmap, and that is empty here: instructions
# count in counter 1 and not in fixed counter 0.
#
#: row E3
#: upstream pmu_event_filter_test.c test_member_allow_list
#: args --filter e03_member_allow.toml
#: modes bare emulated passthrough mediated
#: expect all: exit_code == 0
#: expect all: pmc0 == BRANCHES
#: expect all: pmc1 == insns(opened, again) + BRANCHES * insns(again, done) + insns(done, closed)
#: expect bare: fixed0 == insns(opened, again) + BRANCHES * insns(again, done) + insns(done, closed)
#: expect emulated passthrough: fixed0 == 0
#: expect all: mem64(selector0) == EVTSEL_OS + EVTSEL_EN + 0xc4
#: expect all: mem64(selector1) == EVTSEL_OS + EVTSEL_EN + 0xc0

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "filtered.inc"
