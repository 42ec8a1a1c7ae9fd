"""The host kernel's work takes time and retires, and the NMI that it raises is taken at its end."""

from __future__ import annotations

from vpmu_emu._jit import jit
from vpmu_emu.linux.native import retire_work
from vpmu_emu.linux.perf.pmi import handle_nmis, nmi_work


@jit()
def charge(S, E, row):
    """Retire one row of work of the host kernel, and take the NMI that it may have raised."""
    retire_work(S, E, row)
    if nmi_work(S):
        handle_nmis(S, E)
