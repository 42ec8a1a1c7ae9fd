"""The board around the core: a serial port that is captured and a port that ends the run."""

from __future__ import annotations

import numpy as np

from vpmu_emu._jit import jit
from vpmu_emu.machine.state import N_SERIAL, STOP_DEBUG_EXIT
from vpmu_emu.machine.u64 import ALL, BYTE, U64, ZERO

PORT_COM1 = U64(0x3F8)
PORT_COM1_LSR = U64(0x3FD)
PORT_DEBUG_EXIT = U64(0xF4)
LSR_EMPTY = U64(0x60)  # transmitter idle


@jit()
def port_out(core, E, port, value):
    """OUT: COM1 collects bytes, the debug-exit port stops the run. Nobody listens elsewhere."""
    if port == PORT_DEBUG_EXIT:
        core.stop = STOP_DEBUG_EXIT
        core.stop_info = value
    elif port == PORT_COM1:
        if core.serial_len < N_SERIAL:
            E.serial[core.serial_len] = np.uint8(value & BYTE)
        core.serial_len += 1


@jit()
def port_in(core, port):
    """IN: the serial port is always ready, an empty bus reads all ones."""
    if port == PORT_COM1_LSR:
        return LSR_EMPTY
    if port >= PORT_COM1 and port < PORT_COM1_LSR:
        return ZERO
    return ALL
