# E3: what a deny list names does not count.
#
# The list has the architectural events, branches and instructions among them. The guest is not told: its
# selectors read back as written. The list is about selectors; fixed counter 0 counts the same instructions,
# and only the bitmap of the filter could stop it.
#
#: row E3
#: upstream pmu_event_filter_test.c test_member_deny_list
#: args --filter e03_member_deny.toml
#: modes bare emulated passthrough mediated
#: expect all: exit_code == 0
#: expect bare: pmc0 == BRANCHES
#: expect emulated passthrough: pmc0 == 0
#: expect bare: pmc1 == insns(opened, again) + BRANCHES * insns(again, done) + insns(done, closed)
#: expect emulated passthrough: pmc1 == 0
#: expect all: fixed0 == insns(opened, again) + BRANCHES * insns(again, done) + insns(done, closed)
#: expect all: mem64(selector0) == EVTSEL_OS + EVTSEL_EN + 0xc4
#: expect all: mem64(selector1) == EVTSEL_OS + EVTSEL_EN + 0xc0

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "filtered.inc"
