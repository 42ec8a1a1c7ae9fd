"""Exceptions by vector (SDM 3A table 6-1); nobody else defines one."""

from __future__ import annotations

VECTOR_DE = 0
VECTOR_DB = 1
VECTOR_NMI = 2
VECTOR_BP = 3
VECTOR_UD = 6
VECTOR_DF = 8
VECTOR_TS = 10
VECTOR_NP = 11
VECTOR_SS = 12
VECTOR_GP = 13
VECTOR_PF = 14
