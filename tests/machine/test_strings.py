"""String instructions that are repeated: many iterations at once leave what one after the other does."""

from __future__ import annotations

import random

import pytest

from tests.tools.profiles import cases
from tests.tools.whole import assert_same, machine, state
from vpmu_emu.asm import assemble

AREA = 12_288
OPS = ("rep movs", "rep stos", "repe cmps", "repne cmps", "repe scas", "repne scas")
WIDTHS = {"b": 1, "w": 2, "d": 4, "q": 8}
ONE_BY_ONE = {"horizon": 1, "horizon_seed": 0}


def program(draw: random.Random):
    lines = []
    for _ in range(40):
        op, (width, size) = draw.choice(OPS), draw.choice([*WIDTHS.items()])
        count = draw.choice((0, 1, 2, 3, 9, 64, 200, 700))
        to = draw.randrange(AREA - 700 * size)
        near = to + draw.randrange(-2 * size, 2 * size + 1)
        of = draw.choice((near, draw.randrange(AREA - 700 * size)))
        lines += [
            f"lea rdi, [rbx + {to}]", f"lea rsi, [rbx + {max(of, 0)}]", f"mov ecx, {count}",
            f"mov rax, {draw.choice((0, -1, 0x0101010101010101))}",
            draw.choice(("std", "cld", "cld", "cld")),
            f"{op}{width}", "pushfq", "pop rdx", "cld",
            f"mov byte ptr [rbx + {draw.randrange(AREA)}], {draw.choice((0, 1, 255))}",
        ]  # fmt: skip
    body = "\n".join(lines)
    return assemble(
        f"""
        .intel_syntax noprefix
_start: lea rbx, [rip + area + 8192]
        {body}
        xor eax, eax
        out 0xf4, al
        .bss
        .balign 4096
area:   .zero {AREA + 16384}
        """,
        "strings.s",
    )


@pytest.mark.parametrize("mode", ["bare", pytest.param("emulated", marks=pytest.mark.laws)])
def test_iterations_at_once_are_those_one_by_one(mode):
    draw = random.Random(11)
    for _ in range(cases(day=6, laws=60, night=1000)):
        text = program(draw)
        found = machine(text, mode)
        assert found.run().reason == "debug-exit"
        slow = machine(text, mode, **ONE_BY_ONE)
        slow.run()
        assert_same(state(found), state(slow), mode)


@pytest.mark.parametrize("mnemonic", ["movsb", "stosb", "lodsb"])
def test_a_horizon_in_the_midst_of_it_is_not_seen(mnemonic):
    text = f"""
        .intel_syntax noprefix
_start: lea rsi, [rip + area]
        lea rdi, [rip + area + 4096]
        mov ecx, 3000
        rep {mnemonic}
        xor eax, eax
        out 0xf4, al
        .bss
        .balign 4096
area:   .zero 8192
        """
    guest = assemble(text, "rep.s")
    whole = machine(guest, "bare")
    assert whole.run().reason == "debug-exit"
    for policy in ({"horizon": 7, "horizon_seed": 3}, {"horizon": 64, "horizon_seed": 9}):
        cut = machine(guest, "bare", **policy)
        cut.run()
        assert_same(state(whole), state(cut), str(policy))
