"""Vectors that the host kernel has given away (irq_vectors.h); nobody else defines one."""

from __future__ import annotations

RESCHEDULE_VECTOR = 0xFD
CALL_FUNCTION_SINGLE_VECTOR = 0xFB
KVM_VPMU_VECTOR = 0xF5  # of the passthrough series: a guest's PMI
LOCAL_TIMER_VECTOR = 0xEC
