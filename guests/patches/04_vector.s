# The guest's overflow is the host's interrupt 0xf5. Without a vector of that number it is nobody's.
#
#: modes passthrough
#: expect all: log("vector 0xf5") == 0

        .intel_syntax noprefix
        .include "one_pmi.inc"
