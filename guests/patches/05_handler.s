# The guest's overflow, the host's interrupt 0xf5, is the guest's PMI at the next entry.
#
#: modes passthrough
#: expect all: r15 == 1

        .intel_syntax noprefix
        .include "one_pmi.inc"
