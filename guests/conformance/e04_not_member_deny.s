# E4: what a deny list does not name counts.
#
#: row E4
#: upstream pmu_event_filter_test.c test_not_member_deny_list
#: args --filter e04_not_member_deny.toml
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
