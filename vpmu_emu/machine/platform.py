"""The board around the core: a serial port that is captured, a port that ends the run, quiet old devices.

A 16550 at COM1, two 8259, an 8254 and an RTC as drivers find them, with no interrupt lines. Ports that
nobody listens to read all ones: so fw_cfg and PCI are absent.
"""

from __future__ import annotations

import numpy as np

from vpmu_emu._jit import jit
from vpmu_emu.machine.state import N_SERIAL, STOP_DEBUG_EXIT, STOP_RESET
from vpmu_emu.machine.u64 import BYTE, ONE, U2, U3, U4, U8, U64, WORD, ZERO

PORT_COM1 = U64(0x3F8)
PORT_DEBUG_EXIT = U64(0xF4)
_RBR, _IER, _IIR, _LCR, _MCR, _LSR, _MSR, _SCR = (U64(k) for k in range(8))  # offsets from COM1
_LCR_DLAB = U64(0x80)
_MCR_LOOP = U64(0x10)
_LSR_IDLE = U64(0x60)  # transmitter and its holding register are empty
_MSR_LINE = U64(0xB0)  # carrier, data set ready, clear to send: somebody is there
_IER_THRI = U2
_IIR_NONE = ONE
_IIR_FIFO = U64(0xC0)
_PIC1, _PIC2 = U64(0x20), U64(0xA0)
_ICW1 = U64(0x10)
_PIT0, _PIT_END = U64(0x40), U64(0x44)
_PORT_B = U64(0x61)
_OUT2 = U64(0x20)
_KBD = U64(0x64)
_KBD_RESET = U64(0xFE)
_RTC_INDEX, _RTC_DATA = U64(0x70), U64(0x71)
_RESET_CONTROL = U64(0xCF9)
_RESET_CPU = U4
_RTC_A, _RTC_B, _RTC_D = U64(0x0A), U64(0x0B), U64(0x0D)


@jit()
def _uart_write(core, E, offset, value):
    board = core.board
    divisor = board.lcr & _LCR_DLAB != ZERO
    if offset == _RBR:
        if divisor:
            board.divisor = (board.divisor & ~BYTE) | value
        elif board.mcr & _MCR_LOOP != ZERO:
            board.received = value
            board.ready = ONE
        else:
            if core.serial_len < N_SERIAL:
                E.serial[core.serial_len] = np.uint8(value)
            core.serial_len += 1
    elif offset == _IER:
        if divisor:
            board.divisor = (board.divisor & BYTE) | value << U8
        else:
            board.ier = value & U64(15)
    elif offset == _IIR:
        board.fifo = value & ONE
    elif offset == _LCR:
        board.lcr = value
    elif offset == _MCR:
        board.mcr = value & U64(31)
    elif offset == _SCR:
        board.scratch = value


@jit()
def _uart_read(core, offset):
    board = core.board
    divisor = board.lcr & _LCR_DLAB != ZERO
    if offset == _RBR:
        if divisor:
            return board.divisor & BYTE
        board.ready = ZERO
        return board.received
    if offset == _IER:
        return board.divisor >> U8 if divisor else board.ier
    if offset == _IIR:
        cause = _IER_THRI if board.ier & _IER_THRI != ZERO else _IIR_NONE
        return cause | (_IIR_FIFO if board.fifo != ZERO else ZERO)
    if offset == _LCR:
        return board.lcr
    if offset == _MCR:
        return board.mcr
    if offset == _LSR:
        return _LSR_IDLE | board.ready
    if offset == _MSR:
        if board.mcr & _MCR_LOOP == ZERO:
            return _MSR_LINE
        # the outputs are the inputs: RTS is CTS, DTR is DSR, OUT1 is RI, OUT2 is DCD
        out = board.mcr
        return ((out & U2) << U3) | ((out & ONE) << U64(5)) | ((out & U64(12)) << U4)
    return board.scratch


@jit()
def _pic_write(board, which, data, value):
    # 8259: ICW1 begins a sequence of ICW2, ICW3, and ICW4 if it asks for it; else data is the mask (OCW1).
    if data == 0:
        if value & _ICW1 != ZERO:
            board.pic_mask[which] = ZERO
            board.pic_words[which] = U3 if value & ONE != ZERO else U2
        return
    if board.pic_words[which] != ZERO:
        board.pic_words[which] -= ONE
    else:
        board.pic_mask[which] = value


@jit()
def _write(core, E, port, value):
    board = core.board
    if port - PORT_COM1 < U8:
        _uart_write(core, E, port - PORT_COM1, value)
    elif port - _PIC1 < U2:
        _pic_write(board, 0, np.int64(port - _PIC1), value)
    elif port - _PIC2 < U2:
        _pic_write(board, 1, np.int64(port - _PIC2), value)
    elif port == _PORT_B:
        board.port_b = value & U3
    elif port == _RTC_INDEX:
        board.rtc_index = value & U64(0x7F)


@jit()
def _read(core, port):
    board = core.board
    if port - PORT_COM1 < U8:
        return _uart_read(core, port - PORT_COM1)
    if port == _PIC1 + ONE:
        return board.pic_mask[0]
    if port == _PIC2 + ONE:
        return board.pic_mask[1]
    if port == _PIC1 or port == _PIC2:
        return ZERO  # nothing requested, nothing in service
    if port >= _PIT0 and port < _PIT_END:
        return ZERO  # a count that is over
    if port == _PORT_B:
        return board.port_b | _OUT2  # channel 2 has run out: a calibration by it gives up at once
    if port == _RTC_DATA:
        if board.rtc_index == _RTC_A:
            return U64(0x26)  # no update in progress
        if board.rtc_index == _RTC_B:
            return U2  # 24 hours, BCD
        return U64(0x80) if board.rtc_index == _RTC_D else ZERO  # the battery is good
    return BYTE


@jit()
def port_out(core, E, port, size, value):
    """OUT of `size` bytes: the debug-exit port takes them all, others one each."""
    if port == PORT_DEBUG_EXIT:
        core.stop = STOP_DEBUG_EXIT
        core.stop_info = value
        return
    if size == ONE and (
        (port == _KBD and value == _KBD_RESET)
        or (port == _RESET_CONTROL and value & _RESET_CPU != ZERO)
    ):
        core.stop = STOP_RESET
        return
    for k in range(4):
        n = U64(k)
        if n < size:
            _write(core, E, (port + n) & WORD, (value >> (n << U3)) & BYTE)


@jit()
def port_in(core, port, size):
    """IN of `size` bytes. Modifies core.board: reading takes the byte that the UART has received."""
    value = ZERO
    for k in range(4):
        n = U64(k)
        if n < size:
            value |= _read(core, (port + n) & WORD) << (n << U3)
    return value
