"""The table of deviations in docs/assembler.md: each row is true of both assemblers."""

from __future__ import annotations

import pytest

from tests.asm.gnu import accepts
from vpmu_emu.asm import assemble
from vpmu_emu.errors import AssemblyError

# (source, accepted here, accepted by GNU as)
ACCEPTED = [
    ("mov al, 256", False, True),
    (".byte 300", False, True),
    ("mov rax, 1 << 64", False, True),
    ("mov eax, N\n.equ N, 5", False, True),
    ("mov eax, dword [rax]", False, True),
    ("mov eax, dword ptr 4", False, True),
    ("mov eax, [OFFSET x]\nx:", False, True),
    ("mov eax, %ebx", False, True),
    ("mov eax, $1", False, True),
    (".att_syntax", False, True),
    ("movsb byte ptr [rdi], byte ptr fs:[rsi]", False, True),
    ("1: jmp short 1b", False, True),
    ("mov eax, 5 shl 2", False, True),
    (".byte 1,", False, True),
    ('.ascii "open', False, True),
    ("a = 5\na: nop", False, True),
    ("jmp nowhere", False, True),
    ("fld1", False, True),
    ("nop // comment", True, False),
    ("x: mov eax, -x", False, True),
    ("mov /**/ eax, 5", False, True),
    ("x: nop\ny: mov eax, [rax + y - x]", False, True),
    ("mov ecx, byte", False, True),
    (".byte\t1,,2", False, True),
    ("é: nop", False, True),
    ("lea rax, gs:[rbx]", True, True),
    # Not deviations, next to some:
    ("mov al, -255", True, True),
    ("movsxd rax, ecx", True, True),
    ("add rax, 0x80000000", False, False),
    ("mov eax, [rax + ecx]", False, False),
    ("lock add eax, ecx", False, False),
    ("mov r8b, ah", False, False),
    ("1: nop\njmp 2f", False, False),
    (".if 1", False, False),
    ("a: jmp a\nb: .if b - a == 2\n.endif", False, False),
]


@pytest.mark.parametrize("case", ACCEPTED, ids=[f"{i}: {c[0]!r}" for i, c in enumerate(ACCEPTED)])
def test_who_accepts_what(case, tmp_path):
    source, here, there = case
    try:
        assemble(source)
    except AssemblyError:
        assert not here
    else:
        assert here
    assert accepts(source + "\n", tmp_path) == there

