# While the guest runs LVTPC has the vector of its own. An overflow that comes as an NMI meets a handler that
# does not look, and is one for an unknown reason.
#
#: modes passthrough
#: expect all: log("unknown reason") == 0

        .intel_syntax noprefix
        .include "one_pmi.inc"
