"""The kernel's trace points: each one's fields and format once, for text and for trace.dat alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import NamedTuple

import attrs

from vpmu_emu.linux import trace_kinds as lk
from vpmu_emu.machine import ring as mk
from vpmu_emu.machine import vmcs
from vpmu_emu.report import visible
from vpmu_emu.tables.exits import EXITS
from vpmu_emu.traces.recorder import Moment, Recording
from vpmu_emu.traces.text import Words
from vpmu_emu.views.words import EXCEPTION_NAMES

TEXT = "__data_loc char[]"
# enum trace_flag_type
IRQS_OFF, HARDIRQ, NMI = 0x01, 0x08, 0x40


@attrs.frozen
class Field:
    """A field of an event: its name, C type and bytes; an array of characters has those that it is long."""

    name: str
    c_type: str
    size: int

    @property
    def array(self) -> bool:
        """Whether it is text."""
        return self.c_type == "char"

    @property
    def declared(self) -> str:
        """As C declares it."""
        return f"{self.c_type} {self.name}" + (f"[{self.size}]" if self.array else "")

    @property
    def signed(self) -> bool:
        """Whether it has a sign."""
        return self.c_type in ("int", "char", TEXT)


@attrs.frozen(eq=False)
class Symbols:
    """A field that is printed by name: __print_symbolic()."""

    field: str
    names: Mapping[int, str]

    def name(self, number: int) -> str:
        """The name, or the number of what has none, as the kernel prints that."""
        return self.names.get(number, f"{number:#x}")


@attrs.frozen(eq=False)
class Point:
    """A trace point.

    Attributes:
        name, system: as the tracing file system has them.
        fields: after the common ones, in order.
        form: C's format, of its conversions only those with their arguments in `args`.
        args: names of fields, or Symbols.
    """

    name: str
    system: str
    fields: tuple[Field, ...]
    form: str
    args: tuple[str | Symbols, ...]

    def show(self, values: tuple[int | str, ...]) -> str:
        """What is behind the name in a line, for values of the fields in their order."""
        known = dict(zip((field.name for field in self.fields), values, strict=True))
        shown = (a.name(int(known[a.field])) if isinstance(a, Symbols) else known[a] for a in self.args)
        return self.form.replace("ll", "").replace("%lx", "%x").replace("%u", "%d") % tuple(shown)

    def print_fmt(self) -> str:
        """The same as the line `print fmt` of its description."""
        texts = {field.name for field in self.fields if field.c_type == TEXT}
        words = []
        for arg in self.args:
            if isinstance(arg, Symbols):
                pairs = ", ".join(f'{{ {number:#x}, "{name}" }}' for number, name in arg.names.items())
                words.append(f"__print_symbolic(REC->{arg.field}, {pairs})")
            else:
                words.append(f"__get_str({arg})" if arg in texts else f"REC->{arg}")
        return f'"{self.form}", {", ".join(words)}'


def _fields(text: str) -> tuple[Field, ...]:
    sizes = {"u8": ("u8", 1), "u32": ("unsigned int", 4), "u64": ("u64", 8), "int": ("int", 4),
             "text": (TEXT, 4), "comm": ("char", 16)}  # fmt: skip
    return tuple(Field(word.partition(":")[0], *sizes[word.partition(":")[2]]) for word in text.split())


# libtraceevent's plugin for the system `kvm` prints a shorter kvm_exit of long ago, and no format of the
# file can change that. Under this name the kernel's own format holds.
KVM = "kvm_x86"
_FAULTED = Symbols("exception", {0: "", 1: " (#GP)"})
_FAILED = Symbols("failed", {0: "", 1: " #GP"})
_ACCESS = ("msr:u32 val:u64 failed:int", "%x, value %llx%s", ("msr", "val", _FAILED))
_EXIT_NAMES = {row.number: row.name for row in EXITS}


OWN = "vpmu"


def _point(name: str, system: str, fields: str, form: str, *args: str | Symbols) -> Point:
    return Point(name, system, _fields(fields), form, args)


POINTS: dict[str, Point] = {
    point.name: point
    for point in (
        _point("kvm_entry", KVM, "vcpu_id:u32 rip:u64", "vcpu %u, rip 0x%lx", "vcpu_id", "rip"),
        _point(
            "kvm_exit", KVM,
            "exit_reason:u32 guest_rip:u64 isa:u32 info1:u64 info2:u64 intr_info:u32 error_code:u32 "
            "vcpu_id:u32 failed:u32",
            "vcpu %u reason %s%s rip 0x%lx info1 0x%016llx info2 0x%016llx intr_info 0x%08x "
            "error_code 0x%08x",
            "vcpu_id", Symbols("exit_reason", _EXIT_NAMES),
            Symbols("failed", {0: "", 1: " FAILED_VMENTRY"}),
            "guest_rip", "info1", "info2", "intr_info", "error_code",
        ),
        _point("kvm_inj_virq", KVM, "vector:u32 soft:u8", "%s 0x%x",
               Symbols("soft", {0: "IRQ", 1: "Soft/INTn"}), "vector"),
        _point("kvm_inj_exception", KVM, "exception:u8", "%s", Symbols("exception", EXCEPTION_NAMES)),
        _point("kvm_msr", KVM, "write:u8 ecx:u32 data:u64 exception:u8", "msr_%s %x = 0x%llx%s",
               Symbols("write", {0: "read", 1: "write"}), "ecx", "data", _FAULTED),
        _point("read_msr", "msr", _ACCESS[0], _ACCESS[1], *_ACCESS[2]),
        _point("write_msr", "msr", _ACCESS[0], _ACCESS[1], *_ACCESS[2]),
        _point("rdpmc", "msr", _ACCESS[0], _ACCESS[1], *_ACCESS[2]),
        _point("sched_switch", OWN, "prev_comm:comm prev_pid:int next_comm:comm next_pid:int",
               "%s:%d ==> %s:%d", "prev_comm", "prev_pid", "next_comm", "next_pid"),
    )
}  # fmt: skip


# The same with an error code: a format of its own, because the kernel's has conditions.
_WITH_ERROR = _point(
    "kvm_inj_exception", KVM, "exception:u8 error_code:u32", "%s (0x%x)",
    Symbols("exception", EXCEPTION_NAMES), "error_code",
)  # fmt: skip


@cache
def _own(name: str) -> Point:
    return _point(name, OWN, "text:text", "%s", "text")


class Line(NamedTuple):
    """A line of a trace.

    Attributes:
        moment: the event that it is of.
        point: what it is, with `values` of its fields.
        flags, preempt: enum trace_flag_type and the preemption count, as in the common fields.
    """

    moment: Moment
    point: Point
    values: tuple[int | str, ...]
    flags: int
    preempt: int


_MSR_POINTS = {mk.TR_HOST_RDMSR: "read_msr", mk.TR_HOST_WRMSR: "write_msr", mk.TR_HOST_RDPMC: "rdpmc"}
_GUEST_MSRS = (mk.TR_GUEST_RDMSR, mk.TR_GUEST_WRMSR, mk.TR_GUEST_WRMSR_BLIND, mk.TR_MSR_FAULT)
_OFF = (IRQS_OFF, 1)  # vcpu_enter_guest() has interrupts off
_CONTEXT = {lk.TR_NMI_HANDLER: (IRQS_OFF | HARDIRQ | NMI, 2), lk.TR_HOST_IRQ: (IRQS_OFF | HARDIRQ, 1)}
_TYPE_EXCEPTION, _TYPE_NMI = int(vmcs.TYPE_HARD_EXCEPTION), int(vmcs.TYPE_NMI)
_SOFT = (int(vmcs.TYPE_SOFT_INTR), int(vmcs.TYPE_SOFT_EXCEPTION))
_VALID, _FAILURE = int(vmcs.INTR_VALID), int(vmcs.ENTRY_FAILURE)


def told(recording: Recording) -> Iterator[Line]:
    """A recording as the kernel traces it; for what it has no trace point there are events of `vpmu`."""
    words = Words(recording.place, recording.names)
    for moment in recording.moments():
        text = words.of(*moment[2:8])
        lines = list(_kernels(moment, words.outside(moment.cpu)))
        if not lines:
            name, _, rest = text.partition(":")
            lines = [Line(moment, _own(name), (visible(rest.strip()),), *_CONTEXT.get(moment.kind, (0, 0)))]
        yield lines[0]
        yield from (line._replace(moment=moment._replace(lost=0)) for line in lines[1:])


def _kernels(moment: Moment, outside: bool) -> Iterator[Line]:
    """Trace points of the kernel that an event passes; `outside`: its CPU is not in a guest."""
    kind, rip, a, b, c = moment[3:8]
    vcpu = moment.task.vcpu[1]
    if kind in _MSR_POINTS:
        yield Line(moment, POINTS[_MSR_POINTS[kind]], (a, b, 0), 0, 0)
    elif kind in _GUEST_MSRS and outside:
        fault = kind == mk.TR_MSR_FAULT
        write = c & 1 if fault else int(kind != mk.TR_GUEST_RDMSR)
        yield Line(moment, POINTS["kvm_msr"], (write, a, b, int(fault)), 0, 0)
        why = mk.GP_NAMES[c >> 1] if fault else ""
        if why:
            yield Line(moment, _own("msr_fault"), (f"{a:x} {why}",), 0, 0)
    elif kind == mk.TR_VM_EXIT:
        values = (a & 0xFFFF, rip, 1, b, 0, c & 0xFFFFFFFF, 0, vcpu, int(a & _FAILURE != 0))
        yield Line(moment, POINTS["kvm_exit"], values, *_OFF)
    elif kind == mk.TR_VM_ENTRY:
        how, vector = a >> 8 & 7, a & 0xFF
        if a & _VALID and how == _TYPE_EXCEPTION:
            if moment.error is None:
                yield Line(moment, POINTS["kvm_inj_exception"], (vector,), *_OFF)
            else:
                yield Line(moment, _WITH_ERROR, (vector, moment.error), *_OFF)
        elif a & _VALID and how != _TYPE_NMI:
            yield Line(moment, POINTS["kvm_inj_virq"], (vector, int(how in _SOFT)), *_OFF)
        yield Line(moment, POINTS["kvm_entry"], (vcpu, rip), *_OFF)
    elif kind == lk.TR_SCHED_SWITCH:
        left, comes = moment.task, moment.comes
        yield Line(moment, POINTS["sched_switch"], (left.comm, left.pid, comes.comm, comes.pid), 0, 0)
