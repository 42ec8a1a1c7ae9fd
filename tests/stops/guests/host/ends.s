# A program of the host that ends.
        .intel_syntax noprefix
        .include "linux.inc"
        .include "host.inc"
        .globl _start
_start: exit_program 4
