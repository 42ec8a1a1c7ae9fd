"""The reference against Unicorn: every integer form, one instruction at a time."""

from __future__ import annotations

import iced_x86 as iced
import pytest
from hypothesis import given, settings

from tests.tools.differential import compared, count_case
from tests.tools.profiles import cases as number_of_cases

unicorn = pytest.importorskip("unicorn")
from unicorn import x86_const as x86  # noqa: E402

from . import alu  # noqa: E402
from .forms import BOTTOM, CODE, DATA, TOP, Case, cases, differing, judged  # noqa: E402
from .instructions import mnemonic  # noqa: E402
from .interpreter import Reference  # noqa: E402

FLAGS = alu.STATUS | alu.DF
_NAMES = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip
_REGS = [getattr(x86, f"UC_X86_REG_{name.upper()}") for name in _NAMES]
# QEMU's known differences from silicon, each confirmed on the host by test_reference_native.
UNLIKE_SILICON = {
    "cmpxchg": "a failing 32-bit register form clears the upper half of its destination",
    "neg": "flags of LOCK NEG",
}
# What it lacks or computes otherwise than silicon; the host CPU judges these.
ABSENT = {"clflushopt", "adcx", "adox", "bextr", "blsi", "bzhi", "pdep", "pext"}

# Encodings that no assembler writes are the host's to judge as well.
FORMS = [f for f in judged() if f.instruction.mnemonic not in ABSENT and f.written]
ORACLE = "reference against Unicorn"




def build():
    uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
    uc.mem_map(BOTTOM, TOP - BOTTOM)
    uc.raised = []

    def raised(uc, number, _):
        uc.raised.append(number)
        uc.emu_stop()

    uc.hook_add(unicorn.UC_HOOK_INTR, raised)
    return uc


@pytest.fixture(scope="module")
def shared():
    return build()


def reference_of(case: Case) -> Reference:
    ref = Reference([(CODE, case.code), (DATA, case.data)], CODE, TOP)
    ref.regs[:] = case.regs
    ref.rflags = case.rflags
    ref.run_one()
    return ref


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f"{f.index}-{f.text}")
def test_form_against_unicorn(form, shared) -> None:
    @settings(deadline=None, max_examples=number_of_cases(day=4, laws=25, night=100, uncompiled=4))
    @given(cases(form))
    def check(case: Case) -> None:
        count_case(ORACLE, form.text, form.width)
        ins = iced.Decoder(64, case.code, ip=CODE).decode()
        names = {form.instruction.mnemonic, *form.instruction.aliases}
        names |= {name.removesuffix("w") for name in names}
        names |= {"reservednop"} if "nop" in names else set()
        if names == {"xchg"}:
            names.add("nop")  # 90, 66 90 and 48 90 are all NOP
        assert mnemonic(ins) in names, f"{case.code.hex()} is {ins} for iced-x86"
        assert ins.len == len(case.code)
        ref = reference_of(case)
        # A machine that has met #DE stays marked by it.
        machine = build() if form.instruction.cost == "div" else shared
        machine.ctl_remove_cache(CODE, CODE + 0x1000)
        machine.mem_write(CODE, case.code + b"\x90" * 16)
        machine.mem_write(DATA, case.data)
        for reg, value in zip(_REGS, case.regs, strict=True):
            machine.reg_write(reg, value)
        machine.reg_write(x86.UC_X86_REG_EFLAGS, case.rflags)
        end = CODE + len(case.code)
        repeats = form.instruction.rep and case.code[0] in (0xF2, 0xF3)
        machine.raised.clear()
        machine.emu_start(CODE, end, count=0 if repeats else 1)
        assert machine.raised == [vector for _, vector in ref.delivered], case.code.hex()
        if machine.raised:
            return
        taken = any(where == CODE and not flags for where, flags in ref.tainted)
        got = [machine.reg_read(reg) for reg in _REGS]
        assert machine.reg_read(x86.UC_X86_REG_RIP) == ref.rip
        defined = FLAGS & ~ref.undefined
        flags = machine.reg_read(x86.UC_X86_REG_EFLAGS)
        if form.instruction.mnemonic == "neg" and case.code[0] == 0xF0:
            defined = 0
        assert f"{flags & defined:#x}" == f"{ref.rflags & defined:#x}", case.code.hex()
        if taken:
            return  # the destination itself is undefined
        if form.instruction.mnemonic in UNLIKE_SILICON and form.width == 32 and not case.memory:
            got = [g & 0xFFFFFFFF for g in got]
            want = [r & 0xFFFFFFFF for r in ref.regs]
        else:
            want = ref.regs
        assert [hex(g) for g in got] == [hex(w) for w in want], case.code.hex()
        # A pushed image of undefined flags is undefined as well; nothing here pushes one.
        assert differing(machine.mem_read(DATA, TOP - DATA), ref.mem[DATA:TOP]) == []

    check()
    assert compared(ORACLE, form.text, form.width), "a row without a case"
