"""The reference against the host CPU: what silicon does, where a manual can be misread."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from tests.tools.differential import compared, count_case
from tests.tools.profiles import cases as number_of_cases

from . import alu, native
from .forms import CODE, DATA, TOP, Case, cases, differing, judged
from .interpreter import Reference

if native.available():
    pytest.skip(native.available() or "", allow_module_level=True)

# Branches leave the stub; POPF could set TF; the rest would fault without the CPUID bit.
HOST_FLAGS = native.cpu_flags()
FORMS = [
    f
    for f in judged()
    if f.instruction.cost != "branch"
    and f.instruction.mnemonic not in ("popfq", "pushfq", "popfw", "pushfw")
    and not (native.is_amd() and f.encoding.opcode == b"\x0f\x0d" and not f.written)  # #UD there
    and native.NEEDS.get(f.instruction.mnemonic, "popcnt") in HOST_FLAGS
]
ORACLE = "reference against the host CPU"


@pytest.fixture(scope="module")
def host():
    try:
        return native.Host()
    except OSError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f"{f.index}-{f.text}")
def test_form_against_the_host(form, host) -> None:
    @settings(deadline=None, max_examples=number_of_cases(day=5, laws=25, night=100, uncompiled=4))
    @given(cases(form))
    def check(case: Case) -> None:
        ref = Reference([(CODE, case.code), (DATA, case.data)], CODE, TOP)
        ref.regs[:] = case.regs
        ref.rflags = case.rflags
        ref.run_one()
        count_case(ORACLE, form.text, form.width)
        if ref.delivered:
            return  # a fault here would end the test process
        regs, flags, memory = host.run(case.code, case.regs, case.rflags, case.data)
        defined = (alu.STATUS | alu.DF) & ~ref.undefined
        assert f"{flags & defined:#x}" == f"{ref.rflags & defined:#x}", case.code.hex()
        if ref.tainted:
            return
        assert [hex(r) for r in regs] == [hex(r) for r in ref.regs], case.code.hex()
        assert differing(memory, ref.mem[DATA:TOP]) == []

    check()
    assert compared(ORACLE, form.text, form.width), "a row without a case"
