"""The event ring as text, in the words and the layout of the kernel's own trace points.

    0.000003420: kvm_exit: reason MSR_WRITE rip 0x10000c info 0 0
    0.000003480: kvm_msr: msr_write 38f = 0x3 (IA32_PERF_GLOBAL_CTRL pmc0 pmc1)
    0.000003560: write_msr: 38f, value 0
    0.000003580: rdpmc: 0, value 1c

`kvm_*` and `perf_*` are what the host kernel does, `read_msr write_msr rdpmc` its own accesses to the
hardware, `guest_*` what a guest does with no exit. A `# file:line` behind a line is where the program is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from vpmu_emu.linux import trace_kinds as lk
from vpmu_emu.linux.state import ACCESS_NAMES, KVM_REQ_EVENT, KVM_REQ_PMI, KVM_REQ_PMU, STATE_NAMES
from vpmu_emu.machine import ring as mk
from vpmu_emu.tables.events import LISTS
from vpmu_emu.tables.exits import exit_name
from vpmu_emu.tables.msrs import msr_name, value_words
from vpmu_emu.views.fault_chain import Fault, undelivered_words
from vpmu_emu.views.perf import counter_name
from vpmu_emu.views.words import (
    FASTPATHS,
    MSR_REASONS,
    bitmap_words,
    counter_of_bit,
    reprogram_words,
)

_REQUESTS = {
    int(KVM_REQ_PMU): "KVM_REQ_PMU",
    int(KVM_REQ_PMI): "KVM_REQ_PMI",
    int(KVM_REQ_EVENT): "KVM_REQ_EVENT",
}
_INTR_TYPES = {0: "external", 2: "NMI", 3: "exception", 4: "soft interrupt", 6: "soft exception"}
_SENT = ("dropped", "fixed", "nmi")
_VALID = 1 << 31


def _named(index: int, value: int, events: str) -> str:
    name = msr_name(index)
    if name.startswith("MSR_0x"):
        return ""
    words = value_words(index, value, events)
    return f" ({name} {words})" if words not in ("0", f"{value:#x}") else f" ({name})"


def _intr(info: int) -> str:
    if not info & _VALID:
        return "0"
    kind = _INTR_TYPES.get(info >> 8 & 7, "?")
    return f"{kind} vector {info & 0xFF:#x}"


def _guest_msr(kind: int, a: int, b: int, c: int, exited: bool, events: str) -> str:
    if kind == mk.TR_GUEST_RDMSR:
        word = "kvm_msr: msr_read" if exited else "guest_rdmsr:"
        return f"{word} {a:x} = {b:#x}{_named(a, b, events)}"
    if kind in (mk.TR_GUEST_WRMSR, mk.TR_GUEST_WRMSR_BLIND):
        word = "kvm_msr: msr_write" if exited else "guest_wrmsr:"
        return f"{word} {a:x} = {b:#x}{_named(a, b, events)}"
    if kind == mk.TR_GUEST_RDPMC:
        word = "kvm_pmu_rdpmc:" if exited else "guest_rdpmc:"
        return f"{word} {a:x}, value {b:x}"
    why = mk.GP_NAMES[c >> 1]
    why = f"(#GP: {why})" if why else "(#GP)"
    if exited:
        return f"kvm_msr: msr_{'write' if c & 1 else 'read'} {a:x} = {b:#x} {why}"
    return f"guest_{'wrmsr' if c & 1 else 'rdmsr'}: {a:x} = {b:#x} {why}"


def _machine(kind: int, rip: int, a: int, b: int, c: int) -> str:
    if kind == mk.TR_VM_EXIT:
        return f"kvm_exit: reason {exit_name(a & 0xFFFF)} rip {rip:#x} info {b:x} {c:x}"
    if kind == mk.TR_VM_ENTRY:
        return f"kvm_entry: rip {rip:#x}" + (f", injects {_intr(a)}" if a & _VALID else "")
    if kind == mk.TR_HOST_WRMSR:
        return f"write_msr: {a:x}, value {b:x}"
    if kind == mk.TR_HOST_RDMSR:
        return f"read_msr: {a:x}, value {b:x}"
    if kind == mk.TR_HOST_RDPMC:
        return f"rdpmc: {a:x}, value {b:x}"
    if kind == mk.TR_OVERFLOW:
        return f"pmu_overflow: {counter_of_bit(a)} global_status {b:x}"
    if kind == mk.TR_PMI_RAISE:
        return f"pmu_pmi: lvtpc {a:x} {_SENT[c] if c < 3 else c} global_status {b:x}"
    if kind == mk.TR_EXCEPTION:
        return f"exception: vector {a} rip {rip:#x} error_code {b:x} cr2 {c:x}"
    if kind == mk.TR_IRQ:
        return f"irq_handler: vector {a:#x} rip {rip:#x}"
    if kind == mk.TR_NMI:
        return f"nmi_handler: rip {rip:#x}"
    if kind == mk.TR_PRIVILEGE:
        return f"privilege: {mk.ACCESS_NAMES[a]} at CPL {b & 3} cr4 {c:x} (#GP)"
    if kind == mk.TR_INTERCEPT:
        word = "exits" if c & mk.ACCESS_EXITS else "passes"
        return f"intercept: {mk.ACCESS_NAMES[c & 3]} {a:x} {word}, {bitmap_words(b)}"
    if kind == mk.TR_MSR_DROPPED:
        return f"msr_dropped: {'write' if c else 'read'} {a:x} = {b:#x}"
    if kind == mk.TR_RDPMC_FAULT:
        return f"rdpmc_fault: {a:x} of {b} general-purpose and {c} fixed counters (#GP)"
    if kind == mk.TR_UNDELIVERED:
        return f"undelivered: {undelivered_words(Fault(0, kind, 0, rip, a, b, c))}"
    return f"event_{kind}: {a:x} {b:x} {c:x}"


_MSR_OF = {lk.MSR_OF_COMMON: "common", lk.MSR_OF_PMU: "pmu", lk.MSR_OF_LBR: "lbr"}
_FILTER_WORDS = {
    lk.FILTER_UNLISTED: "no entry",
    lk.FILTER_LISTED: "entry {}",
    lk.FILTER_EXCLUDED: "exclude entry {}",
    lk.FILTER_FIXED: "fixed_counter_bitmap",
}


def _linux(kind: int, rip: int, a: int, b: int, c: int) -> str:
    name = lk.LINUX_KINDS.get(kind, f"event_{kind}")
    if kind == lk.TR_PERF_STATE:
        return f"{name}: event {a} {STATE_NAMES[b - 2]} -> {STATE_NAMES[c - 2]}"
    if kind == lk.TR_PERF_CREATE:
        return f"{name}: event {a} config {b:x} period {c:x}"
    if kind == lk.TR_PERF_RELEASE:
        return f"{name}: event {a}"
    if kind == lk.TR_REPROGRAM:
        return f"{name}: {counter_name(a)} config {b:x} {reprogram_words(c)}"
    if kind == lk.TR_REQUEST:
        return f"{name}: {_REQUESTS.get(a, hex(a))}"
    if kind == lk.TR_PMI_INJECT:
        return f"{name}: lvtpc {a:x} {_SENT[b]}"
    if kind == lk.TR_NMI_HANDLER:
        return f"{name}: " + ("NMI_DONE, a guest owns the PMU" if b else f"status {a:x}")
    if kind in (lk.TR_PMU_LOAD, lk.TR_PMU_PUT):
        return f"{name}: global_ctrl {a:x} global_status {b:x}"
    if kind == lk.TR_EMULATED:
        counters = [counter_of_bit(i) for i in range(64) if a >> i & 1]
        return f"{name}: {' '.join(counters) or 'none'}"
    if kind == lk.TR_HOST_IRQ:
        return f"{name}: vector {a:#x}"
    if kind == lk.TR_PAUSE:
        return f"{name}: {counter_name(a)} counter {b:x}"
    if kind == lk.TR_EMULATE_INSN:
        code = a.to_bytes(8, "little")[:b].hex(" ")
        return f"{name}: 0:{rip:x}: {code} (prot64)" + (" failed" if c else "")
    if kind == lk.TR_LOCKUP:
        return f"{name}: hard LOCKUP on cpu {a}"
    if kind == lk.TR_FILTER:
        by = _FILTER_WORDS[c & 0xFF].format(c >> 8)
        return f"{name}: {counter_name(a)} {'allowed' if b else 'denied'} by {by}"
    if kind == lk.TR_SELECTOR_HW:
        return f"{name}: {counter_name(a)} hardware {b:x} guest {c:x}"
    if kind == lk.TR_FASTPATH:
        return f"{name}: {exit_name(a)} {FASTPATHS[b]}"
    if kind == lk.TR_KVM_MSR:
        return f"{name}: {'write' if c else 'read'} {a:x} {_MSR_OF[b]}"
    if kind == lk.TR_MSR_USER_SPACE:
        return f"{name}: {'write' if c else 'read'} {a:x} {MSR_REASONS[b]}"
    if kind == lk.TR_VMCS_ACCESS:
        return f"{name}: {ACCESS_NAMES[c]} {b:x}"
    if kind == lk.TR_INJECT_NMI:
        return f"{name}: {a} pending"
    return f"{name}:"


_GUEST_KINDS = (
    mk.TR_GUEST_RDMSR, mk.TR_GUEST_WRMSR, mk.TR_GUEST_WRMSR_BLIND, mk.TR_GUEST_RDPMC, mk.TR_MSR_FAULT,
)  # fmt: skip


# Events that an instruction of the program caused or interrupted, so that rip has a line of its source.
_OF_PROGRAM = {
    *_GUEST_KINDS, mk.TR_PRIVILEGE, mk.TR_INTERCEPT, mk.TR_RDPMC_FAULT,
    mk.TR_VM_EXIT, mk.TR_EXCEPTION, mk.TR_UNDELIVERED, mk.TR_IRQ, mk.TR_NMI,
}  # fmt: skip


class Words:
    """Events of one trace in words, in their order.

    Args:
        place: gives `file:line` of an address, or "".
        names: the CPU's list of PMU events.
    """

    def __init__(self, place: Callable[[int], str] | None = None, names: str = LISTS[0]) -> None:
        self._place, self._names = place, names
        self._outside: set[int] = set()

    def outside(self, cpu: int) -> bool:
        """Whether a core has left its guest; until its first exit it runs the program, guest or not."""
        return cpu in self._outside

    def of(self, cpu: int, kind: int, rip: int, a: int, b: int, c: int) -> str:
        """The next event: `name: words`, and `# file:line` where the program caused it."""
        if kind == mk.TR_VM_EXIT:
            self._outside.add(cpu)
        elif kind == mk.TR_VM_ENTRY:
            self._outside.discard(cpu)
        if kind in _GUEST_KINDS:
            words = _guest_msr(kind, a, b, c, exited=cpu in self._outside, events=self._names)
        elif kind < lk.TR_PERF_STATE:
            words = _machine(kind, rip, a, b, c)
        else:
            words = _linux(kind, rip, a, b, c)
        at = self._place(rip) if self._place and kind in _OF_PROGRAM else ""
        return words + (f"  # {at}" if at else "")


def decode(
    events: Iterable[Any], place: Callable[[int], str] | None = None, names: str = LISTS[0]
) -> Iterator[tuple[int, str]]:
    """(time in 1/16 cycle, words) of each event of the ring, in order; the core first if there are several.

    Args:
        events: with the fields t kind cpu rip a b c, as `System.events()` gives them.
        place, names: as for `Words`.
    """
    events = list(events)
    several = any(int(event["cpu"]) for event in events)
    words = Words(place, names)
    for event in events:
        cpu = int(event["cpu"])
        where = f"[{cpu:03}] " if several else ""
        rest = (int(event[key]) for key in ("kind", "rip", "a", "b", "c"))
        yield int(event["t"]), where + words.of(cpu, *rest)


def lines(
    events: Iterable[Any],
    core_khz: int = 0,
    place: Callable[[int], str] | None = None,
    names: str = LISTS[0],
) -> Iterator[str]:
    """The ring as lines; times in seconds if the rate of the core is given, else in cycles.

    With `place` and `names` as for `decode`, a line of the source follows what the program did, behind `#`.
    """
    for t, words in decode(events, place, names):
        if core_khz:
            nanoseconds = t * 1_000_000 // (16 * core_khz)
            yield f"{nanoseconds // 10**9}.{nanoseconds % 10**9:09}: {words}"
        else:
            yield f"{t >> 4}: {words}"
