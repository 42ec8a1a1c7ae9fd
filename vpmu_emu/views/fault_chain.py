"""The chain of exceptions that ended a program, told from `E.faults` of the machine. Only looks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import attrs

from vpmu_emu.machine import interrupts, ring
from vpmu_emu.machine.state import N_FAULTS
from vpmu_emu.machine.vectors import (
    VECTOR_BP,
    VECTOR_DB,
    VECTOR_DE,
    VECTOR_PF,
    VECTOR_UD,
)
from vpmu_emu.tables.msrs import msr_name, row_of
from vpmu_emu.views.words import EXCEPTION_NAMES, bits_words, msr_fault_words, rdpmc_fault_words

ACCESSES = (ring.TR_MSR_FAULT, ring.TR_RDPMC_FAULT, ring.TR_PRIVILEGE)
_WITH_ERROR = ("#DF", "#TS", "#NP", "#SS", "#GP", "#PF", "#AC")
# Error code of a page fault (SDM 3A 4.7).
_PF_PRESENT, _PF_WRITE, _PF_USER, _PF_RESERVED, _PF_FETCH = 1, 2, 4, 8, 16
_GATE_TYPES = "an interrupt gate (0xe) or a trap gate (0xf)"


class Fault(NamedTuple):
    """One event of `E.faults`."""

    t: int
    kind: int
    cpu: int
    rip: int
    a: int
    b: int
    c: int


@attrs.frozen
class Where:
    """The program and its processor, as far as a chain wants to know.

    Attributes:
        statement: gives the source statement at an address, or "".
        reserved: gives the bits that are reserved in the MSR of a refused WRMSR.
        cpl, registers: where the program was, and what it had.
    """

    statement: Callable[[int], str]
    reserved: Callable[[Fault], int]
    cpl: int
    registers: Mapping[str, int]

    def wild(self, name: str) -> bool:
        """Whether a register has no canonical address."""
        return self.registers.get(name, 0) >> 47 not in (0, (1 << 17) - 1)


def noted(E: Any) -> list[Fault]:
    """What there still is of `E.faults`, oldest first."""
    n = int(E.faults_n)
    return [Fault(*map(int, E.faults[k % N_FAULTS])) for k in range(max(0, n - N_FAULTS), n)]


def last_chain(faults: Sequence[Fault]) -> list[Fault]:
    """The events of the last exception that could not be delivered, from the access that began it."""
    if not faults or faults[-1].kind != ring.TR_UNDELIVERED:
        return []
    own = [fault for fault in faults if fault.cpu == faults[-1].cpu]
    at = len(own) - 1
    while at and {own[at].kind, own[at - 1].kind} == {ring.TR_UNDELIVERED, ring.TR_EXCEPTION}:
        at -= 1
    begun_by = own[at - 1] if at else None
    if begun_by and begun_by.kind in ACCESSES and own[at].kind == ring.TR_EXCEPTION:
        at -= begun_by.rip == own[at].rip
    return own[at:]


def exception_words(vector: int, error: int = 0) -> str:
    """`#GP(0)`, `#UD`, `vector 0x50`."""
    name = EXCEPTION_NAMES.get(vector, f"vector {vector:#x}")
    return f"{name}({error and hex(error)})" if name in _WITH_ERROR else name


def told(faults: Sequence[Fault], where: Where) -> Iterator[str]:
    """The last chain in sentences, each with what comes of it behind a colon.

    Args:
        faults: from `noted`.
        where: what there is to know of the program and its processor.
    """
    chain, cause = last_chain(faults), ""
    for k, fault in enumerate(chain):
        first = k == 0 or chain[k - 1].kind in ACCESSES
        if fault.kind in ACCESSES:
            cause = access_words(fault, where.reserved(fault))
        elif fault.kind == ring.TR_EXCEPTION and first:
            cause = cause or _cause(fault, where)
            yield f"{cause}: {exception_words(fault.a, fault.b)}"
            before = [each for each in faults[: -len(chain)] if each.kind == ring.TR_EXCEPTION]
            if len(before) > 2 and all((each.a, each.rip) == (fault.a, fault.rip) for each in before[-3:]):
                name = exception_words(fault.a).partition("(")[0]
                yield f"it is the handler of {name} that raises {name} here, again and again"
        elif fault.kind == ring.TR_UNDELIVERED:
            after = chain[k + 1] if k + 1 < len(chain) else None
            comes = exception_words(after.a, after.b) if after else "a triple fault"
            yield f"{undelivered_words(fault)}: {comes}"


def access_words(fault: Fault, reserved: int = 0) -> str:
    """Which access of one of `ACCESSES` was refused, and why."""
    if fault.kind == ring.TR_PRIVILEGE:
        pce = " with CR4.PCE 0" if fault.a == ring.ACCESS_RDPMC else ""
        return f"{ring.ACCESS_NAMES[fault.a]} at CPL {fault.b & 3}{pce}"
    if fault.kind == ring.TR_RDPMC_FAULT:
        return f"rdpmc with ECX {fault.a:#x}: {rdpmc_fault_words(fault.a, fault.b, fault.c)}"
    index, value, why = fault.a, fault.b, fault.c >> 1
    bits = value & reserved
    words = msr_fault_words(why, index, bits)
    if why == ring.GP_ABSENT and not row_of(index):
        words = "there is no such MSR"
    elif why == ring.GP_RESERVED and bits:
        words = f"{bits_words(bits)} {'are' if bits.bit_count() > 1 else 'is'} reserved"
    name = msr_name(index)
    named = f"{index:#x}" if name.startswith("MSR_0x") else f"{name} ({index:#x})"
    return f"wrmsr {named} = {value:#x}: {words}" if fault.c & 1 else f"rdmsr {named}: {words}"


def page_fault_words(address: int, error: int) -> str:
    """What was done where, and why paging refused it."""
    does = "executes" if error & _PF_FETCH else "writes to" if error & _PF_WRITE else "reads"
    if error & _PF_RESERVED:
        why = "where a paging entry has reserved bits set"
    elif not error & _PF_PRESENT:
        why = "where no page is present"
    elif error & _PF_FETCH:
        why = "where the page is not for execution"
    else:
        why = "where the page is for " + ("reading" if error & _PF_WRITE else "the kernel")
    return f"{does} {address:#x} at CPL {3 if error & _PF_USER else 0}, {why}"


def _cause(fault: Fault, where: Where) -> str:
    vector, statement = fault.a, where.statement(fault.rip)
    subject = f"`{statement}`" if statement else f"the instruction at {fault.rip:#x}"
    if vector == VECTOR_PF:
        # Without EFER.NXE the error code does not tell a fetch.
        fetch = _PF_FETCH if fault.c == fault.rip else 0
        subject = "the program" if fetch else subject
        return f"{subject} {page_fault_words(fault.c, fault.b | fetch)}"
    if vector == VECTOR_DE:
        return f"{subject} divides by 0, or its quotient has no room"
    if vector == VECTOR_UD and statement == "ud2":
        return "`ud2` is there to raise it"
    if vector == VECTOR_UD:
        return f"{subject} is no instruction of this processor as it is set up"
    if vector in (VECTOR_DB, VECTOR_BP):
        return f"a trap at {subject}"
    if fault.b:
        return f"{subject} needs selector {fault.b & 0xFFF8:#x}"
    wild = [f"{name} {where.registers[name]:#x}" for name in _addressed(statement) if where.wild(name)]
    if wild:
        return f"{subject}: {' and '.join(wild)} is no canonical address"
    return f"{subject} is refused at CPL {where.cpl}"


def _addressed(statement: str) -> list[str]:
    """Registers that an address of a statement is made of; rsp of one that uses the stack."""
    inside = "".join(re.findall(r"\[[^]]*\]", statement)).lower()
    stack = re.match(r"(push|pop|call|ret|leave|enter|iret)", statement)
    return re.findall(r"\br[a-z0-9]+\b", inside) + ["rsp"] * bool(stack)


def undelivered_words(fault: Fault) -> str:
    """What is not delivered, and what is wrong with its gate."""
    vector, kind, why, second = (fault.a >> shift & 0xFF for shift in (0, 8, 16, 24))
    gate, at = fault.b, fault.c
    comes = page_fault_at(at) if second == VECTOR_PF else f"{exception_words(second, at)}"
    words = {
        ring.GATE_LIMIT: (
            f"the IDT has {(at + 1) // 16} gates (its limit is {at:#x})" if at else "no IDT is loaded"
        ),
        ring.GATE_READ: f"its gate cannot be read, {comes}",
        ring.GATE_TYPE: (
            f"its gate is of type {gate >> 40 & 0x1F:#x}, and not {_GATE_TYPES}"
            if gate
            else "its gate in the IDT is empty"
        ),
        ring.GATE_DPL: f"its gate is not for `int` at CPL 3, its DPL is {gate >> 45 & 3}",
        ring.GATE_ABSENT: "its gate is not present",
        ring.GATE_CODE: (
            f"its gate has selector {gate >> 16 & 0xFFFF:#x}, no 64-bit code to enter ({comes})"
        ),
        ring.GATE_STACK: f"the TSS has no stack for it ({comes})",
        ring.GATE_FRAME: f"its frame cannot be written to the stack, {comes}",
    }[why]
    name = exception_words(vector).partition("(")[0]
    if kind == interrupts.KIND_SOFTWARE:
        name = f"int {vector:#x}"
    elif kind in (interrupts.KIND_EXTERNAL,):
        name = f"interrupt {vector:#x}"
    return f"{name} is not delivered: {words}"


def page_fault_at(address: int) -> str:
    """Of a page fault whose error code is not at hand."""
    return f"#PF at {address:#x}"
