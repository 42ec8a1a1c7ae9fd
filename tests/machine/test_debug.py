"""Debug exceptions: RFLAGS.TF with DEBUGCTL.BTF and LBR, and what #DB leaves behind (SDM 3B 17)."""

from __future__ import annotations

import pytest

from vpmu_emu.asm import assemble
from vpmu_emu.system import System

pytestmark = pytest.mark.uncompiled

# The handler notes where it was entered and what DEBUGCTL is then, and takes TF away after `{traps}` times.
GUEST = """
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
_start: load_idt
        set_gate 1, db
        {before}
        pushfq
        or qword ptr [rsp], 0x100
        popfq
{body}
        debug_exit 0
db:     push rax
        push rcx
        push rdx
        mov rcx, [rip + dbs]
        mov rax, [rsp + 24]
        lea rdx, [rip + where]
        mov [rdx + rcx * 8], rax
        inc qword ptr [rip + dbs]
        rdmsr_rax IA32_DEBUGCTL
        mov [rip + debugctl], rax
        cmp qword ptr [rip + dbs], {traps}
        jb 1f
        and qword ptr [rsp + 40], ~0x100
1:      pop rdx
        pop rcx
        pop rax
        iretq
        .bss
        .balign 8
dbs:    .zero 8
where:  .zero 64
debugctl: .zero 8
        idt_storage
"""


def traps(body: str, before: str = "", most: int = 1, **options: object):
    """(names of the places where #DB came, DEBUGCTL in its handler, the system)."""
    program = assemble(GUEST.format(body=body, before=before, traps=most))
    system = System(program, ram=2, **options)
    assert system.run().reason == "debug-exit"

    def word(name: str, k: int = 0) -> int:
        return int.from_bytes(system.read(program.symbols[name] + 8 * k, 8), "little")

    names = {at: name for name, at in program.symbols.items()}
    places = [names.get(word("where", k), hex(word("where", k))) for k in range(word("dbs"))]
    return places, word("debugctl"), system


BODY = "        nop\n a:     nop\n b:     jmp c\n        nop\n c:     nop\n d:     nop\n"


def test_with_tf_every_instruction_traps():
    assert traps(BODY, most=4)[0] == ["a", "b", "c", "d"]


def test_with_btf_only_a_branch_that_is_taken_traps_and_db_clears_it():
    places, debugctl, _ = traps(BODY, "wrmsr_const IA32_DEBUGCTL, DEBUGCTL_BTF")
    assert (places, debugctl) == (["c"], 0)
    not_taken = "        cmp esp, esp\n        jne c\n" + BODY
    assert traps(not_taken, "wrmsr_const IA32_DEBUGCTL, DEBUGCTL_BTF")[0] == ["c"]


def test_behind_the_db_that_cleared_btf_every_instruction_traps():
    places, _, _ = traps(BODY, "wrmsr_const IA32_DEBUGCTL, DEBUGCTL_BTF", most=2)
    assert places == ["c", "d"]


def test_db_clears_lbr_and_is_no_record():
    before = "wrmsr_const IA32_DEBUGCTL, DEBUGCTL_LBR\n jmp 1f\n 1:\n"
    _, debugctl, system = traps("        nop\n", before, cpu="icx")
    lbr = system.core.lbr
    assert debugctl == 0
    assert [hex(int(v)) for v in lbr.source].count("0x0") == len(lbr.source) - 1  # the jmp alone


@pytest.mark.parametrize("bit", range(6, 11))
def test_branch_traces_are_refused(bit):
    source = f"mov ecx, 0x1d9; mov eax, {1 << bit}; xor edx, edx; wrmsr; hlt"
    stop = System(assemble(source), ram=2).run()
    assert (stop.reason, stop.info) == ("triple-fault", 13)


def test_int_under_tf_traps_once_with_a_stack_in_a_page_of_code():
    # The frame of INT3 goes to the page that holds the code: decoded code is thrown away.
    body = """
        lea rsp, [rip + stack]
        int3
a:      jmp over
        .balign 16
        .zero 128
stack:  .zero 16
over:   nop
"""
    before = "set_gate 3, back\n jmp 1f\n back: iretq\n 1:\n"
    places, _, _ = traps(body, before, most=2)
    assert places[1] == "over"  # behind what follows IRETQ, not in the handler of INT3
