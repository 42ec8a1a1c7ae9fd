"""The board as a driver probes it: what is there answers, what is absent reads all ones."""

from __future__ import annotations

from functools import cache

import pytest

from vpmu_emu.asm import assemble
from vpmu_emu.system import System

pytestmark = pytest.mark.uncompiled

MODES = ("bare", "emulated")
COM1 = 0x3F8

GUEST = """
.intel_syntax noprefix
        .macro put port, byte
        mov edx, \\port
        mov al, \\byte
        out dx, al
        .endm
        .macro get port
        mov edx, \\port
        xor eax, eax
        in al, dx
        .endm
_start: {body}
        mov ebx, eax
        xor eax, eax
        out 0xf4, al
"""


@cache
def guest(body: str):
    return assemble(GUEST.format(body=body), "ports.s")


def go(body: str, mode: str = "bare"):
    machine = System(guest(body), vpmu=mode, ram=2, max_insns=2000)
    stop = machine.run()
    return machine.result(stop).to_json()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("body", "reads"), [
    ("put 0x3ff, 0xa5; get 0x3ff", 0xA5),  # scratch
    ("put 0x3f9, 0xff; get 0x3f9", 0x0F),
    ("put 0x3f9, 0; get 0x3fa", 1),  # no interrupt pending
    ("put 0x3f9, 2; get 0x3fa", 2),  # the transmitter is empty
    ("put 0x3fa, 1; get 0x3fa", 0xC1),  # a 16550A: it has FIFOs
    ("put 0x3fb, 3; get 0x3fb", 3),
    ("put 0x3fb, 0x80; put 0x3f8, 0x0c; put 0x3f9, 1; put 0x3fb, 3; get 0x3f9", 0),
    ("put 0x3fb, 0x80; put 0x3f8, 0x0c; put 0x3f9, 1; get 0x3f8", 0x0C),
    ("put 0x3fb, 0x80; put 0x3f8, 0x0c; put 0x3f9, 1; get 0x3f9", 1),
    ("put 0x3fc, 0xff; get 0x3fc", 0x1F),
    ("get 0x3fd", 0x60),
    ("get 0x3fe", 0xB0),
    ("put 0x3fc, 0x1a; get 0x3fe", 0x90),  # the probe of Linux
    ("put 0x3fc, 0x15; get 0x3fe", 0x60),
    ("put 0x3fc, 0x10; put 0x3f8, 0x77; get 0x3fd", 0x61),
    ("put 0x3fc, 0x10; put 0x3f8, 0x77; get 0x3f8", 0x77),
    ("put 0x3fc, 0x10; put 0x3f8, 0x77; get 0x3f8; get 0x3fd", 0x60),
    ("put 0x21, 0xfb; get 0x21", 0xFB),
    ("put 0xa1, 0xff; get 0xa1", 0xFF),
    ("put 0x20, 0x11; put 0x21, 0x20; put 0x21, 4; put 0x21, 1; put 0x21, 0xfe; get 0x21", 0xFE),
    ("put 0xa0, 0x11; put 0xa1, 0x28; put 0xa1, 2; put 0xa1, 1; get 0xa1", 0),
    ("put 0x20, 0x20; put 0x20, 0x0b; get 0x20", 0),
    ("put 0x43, 0x34; put 0x40, 0xff; get 0x40", 0),
    ("put 0x61, 0xff; get 0x61", 0x23),
    ("put 0x70, 0x8d; get 0x71", 0x80),
    ("put 0x70, 0x0a; get 0x71", 0x26),
    ("get 0x510; mov edx, 0x510; mov ax, 0; out dx, ax; get 0x511", 0xFF),  # no fw_cfg signature
    ("mov edx, 0x514; in eax, dx", 0xFFFFFFFF),
    ("mov edx, 0xcf8; mov eax, 0x80000000; out dx, eax; in eax, dx", 0xFFFFFFFF),  # no PCI
    ("mov edx, 0xcfc; in eax, dx", 0xFFFFFFFF),
    ("mov edx, 0x20; in ax, dx; movzx eax, ax", 0x0000),
    ("put 0x21, 0x12; mov edx, 0x20; in ax, dx; movzx eax, ax", 0x1200),
    ("xor eax, eax; mov esi, 0xe0000; mov ecx, 0x100; 1: or rax, [rsi]; add rsi, 8; loop 1b", 0),
])  # fmt: skip
def test_ports(mode, body, reads):
    result = go(body.replace("; ", "\n"), mode)
    assert (result["exit_code"], result["registers"]["rbx"]) == (0, reads)


@pytest.mark.parametrize("mode", MODES)
def test_what_is_sent_is_captured_and_what_is_looped_or_a_divisor_is_not(mode):
    result = go("""put 0x3f8, 'a'
        put 0x3fb, 0x80
        put 0x3f8, 'b'
        put 0x3fb, 3
        put 0x3fc, 0x10
        put 0x3f8, 'c'
        put 0x3fc, 3
        put 0x3f8, 'd'""", mode)  # fmt: skip
    assert result["serial"] == "ad"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("body", "stop"), [
    ("put 0x64, 0xfe", "reset"),
    ("put 0xcf9, 6", "reset"),
    ("put 0xcf9, 2", "debug-exit"),
    ("mov edx, 0xcf8\n mov eax, 0x80000600\n out dx, eax", "debug-exit"),
])  # fmt: skip
def test_reset(mode, body, stop):
    assert go(body, mode)["stop"] == stop
