"""One machine that is used for many single instructions."""

from __future__ import annotations

import numpy as np

from vpmu_emu.asm import assemble
from vpmu_emu.machine.state import GENERATIONS
from vpmu_emu.system import Stop, System

EMPTY = assemble("hlt", "<empty>")


class Board:
    """A bare machine of 2 MiB whose state is laid anew for every case."""

    def __init__(self, **options: object) -> None:
        self.system = System(EMPTY, ram=2, **options)  # type: ignore[arg-type]
        self.core, self.E, self.M = self.system.core, self.system.E, self.system.M
        self.clean = self.system.S.tobytes()

    def lay(self, code: bytes, at: int, regs: list[int], rflags: int) -> None:
        """Code, registers and flags; everything else as after RESET."""
        self.system._array.view(np.uint8)[:] = np.frombuffer(self.clean, np.uint8)
        self.E.n_uops = 1
        self.E.generation += 1
        if self.E.generation % GENERATIONS == 0:  # as drop_decoded does
            self.E.map_key[:] = 0
        self.M[at : at + len(code)] = np.frombuffer(code, np.uint8)
        self.core.regs[:16] = np.array(regs, dtype=np.uint64)
        self.core.rip = at
        self.core.rflags = rflags

    def one(self, most: int = 5000) -> Stop:
        """Run the instruction at rip to its end, all iterations of REP included."""
        at = int(self.core.rip)
        before = int(self.core.total[0, 0])
        for _ in range(most):
            stop = self.system.step()
            if stop.reason != "step" or int(self.core.rip) != at:
                return stop
            if int(self.core.total[0, 0]) != before:
                return stop
        raise AssertionError("the instruction does not end")
