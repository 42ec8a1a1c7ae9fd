"""One RDMSR, WRMSR or RDPMC in words: what the trace of its run says, in order, and nothing else.

Nothing is decided here. A word that is not an event's comes from the record that the run has left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import attrs

from vpmu_emu.linux import trace_kinds as lk
from vpmu_emu.linux.kvm.refresh import vcpu_shape
from vpmu_emu.linux.state import (
    KVM_PMU_EVENT_ALLOW,
    KVM_REQ_EVENT,
    KVM_REQ_PMI,
    KVM_REQ_PMU,
    N_GP_PMC,
    STATE_NAMES,
)
from vpmu_emu.machine import msr_index
from vpmu_emu.machine import ring as mk
from vpmu_emu.machine.processor_flags import X86_CR4_PCE
from vpmu_emu.tables.cpus import CpuModel
from vpmu_emu.tables.events import event_by_code
from vpmu_emu.tables.exits import exit_name
from vpmu_emu.tables.modes import VPMUS
from vpmu_emu.tables.msrs import RDPMC_PASSED, msr_name, row_of, value_words
from vpmu_emu.tables.passed import Met, rule_for, rule_of, rule_words
from vpmu_emu.views.perf import counter_name
from vpmu_emu.views.words import (
    EXCEPTION_NAMES,
    FASTPATHS,
    MSR_REASONS,
    counter_of_bit,
    msr_fault_words,
    rdpmc_fault_words,
    reprogram_words,
)

_REQUESTS = {KVM_REQ_PMU: "KVM_REQ_PMU", KVM_REQ_PMI: "KVM_REQ_PMI", KVM_REQ_EVENT: "KVM_REQ_EVENT"}
_HANDLERS = {
    "MSR_READ": "kvm_emulate_rdmsr",
    "MSR_WRITE": "kvm_emulate_wrmsr",
    "RDPMC": "kvm_emulate_rdpmc",
}
_FASTPATHS = {
    "IA32_TSC_DEADLINE": "handle_fastpath_set_tscdeadline",
    "IA32_X2APIC_ICR": "handle_fastpath_set_x2apic_icr_irqoff",
}
_MSR_HANDLERS = {
    lk.MSR_OF_PMU: ("kvm_pmu_get_msr", "kvm_pmu_set_msr", "a register of the guest's PMU"),
    lk.MSR_OF_LBR: ("intel_pmu_handle_lbr_msrs_access",) * 2 + ("a branch record of the guest",),
    lk.MSR_OF_COMMON: ("kvm_get_msr_common", "kvm_set_msr_common", "no register of the guest's PMU"),
}
# Families whose writes by the host are told: what the guest's PMU is made of, and LVTPC.
_PMU_ROWS = {
    "IA32_PMC", "IA32_A_PMC", "IA32_PERFEVTSEL", "IA32_FIXED_CTR", "IA32_FIXED_CTR_CTRL",
    "IA32_PERF_GLOBAL_STATUS", "IA32_PERF_GLOBAL_CTRL", "IA32_PERF_GLOBAL_STATUS_RESET",
    "IA32_PERF_GLOBAL_STATUS_SET", "MSR_PERF_METRICS", "IA32_PEBS_ENABLE", "MSR_PEBS_DATA_CFG",
    "IA32_DS_AREA", "IA32_X2APIC_LVT_PMI",
}  # fmt: skip
_VALID = 1 << 31


@attrs.frozen
class Step:
    """One thing that happened: its subject, what became of it, whether that decides the access."""

    what: str
    verdict: str
    decides: bool = False


@attrs.frozen
class Asked:
    """The access, and the state that it met.

    Attributes:
        action: rdmsr, wrmsr or rdpmc.
        index: MSR, or ECX of RDPMC.
        value: what WRMSR writes.
        cpl, pce: privilege level and CR4.PCE at the instruction.
        guest: whether a hypervisor is under it.
        events: the CPU's list of events.
        met: what decides which accesses exit, as it was at the instruction.
    """

    action: str
    index: int
    value: int
    cpl: int
    pce: int
    guest: bool
    events: str
    met: Met = attrs.field(factory=Met)


def _family(index: int) -> str:
    found = row_of(index)
    return found[0].name if found else ""


def _number(index: int) -> int:
    found = row_of(index)
    return found[1] if found else index


class Event(NamedTuple):
    """What of an event of the trace is told."""

    kind: int
    a: int
    b: int
    c: int


class _Teller:
    def __init__(self, asked: Asked, events: Iterable[Any], S: Any) -> None:
        self.asked, self.S = asked, S
        self.events = [Event(*(int(e[key]) for key in Event._fields)) for e in events]
        self.at = 0
        self.outside = False
        self.denied = False  # by the event filter
        self.handler = ""
        self.writes: list[tuple[int, int]] = []

    @property
    def who(self) -> str:
        return "KVM" if self.outside else "hardware"

    def tell(self) -> Iterator[Step]:
        if not self._happened(mk.TR_PRIVILEGE):
            yield self._allowed()
        for at, event in enumerate(self.events):
            self.at = at
            if event.kind == mk.TR_HOST_WRMSR:
                if _family(event.a) in _PMU_ROWS:
                    self.writes.append((event.a, event.b))
                continue
            word = _WORDS.get(event.kind)
            steps = [] if word is None else list(word(self, event))
            if steps:
                yield from self._host_writes()
            yield from steps
        yield from self._host_writes()

    def _allowed(self) -> Step:
        cpl = self.asked.cpl
        if self.asked.action == "rdpmc" and cpl:
            return Step("privilege", f"CPL {cpl} with CR4.PCE = {self.asked.pce}: allowed")
        return Step("privilege", f"CPL {cpl}: allowed")

    def _host_writes(self) -> Iterator[Step]:
        """What the host has written since the last step, family by family."""
        writes, self.writes = self.writes, []
        families: dict[str, list[tuple[int, int, int]]] = {}  # first MSR, how many, value
        for index, value in writes:
            runs = families.setdefault(_family(index), [])
            if runs and runs[-1][2] == value and index == runs[-1][0] + runs[-1][1]:
                runs[-1] = (runs[-1][0], runs[-1][1] + 1, value)
            else:
                runs.append((index, 1, value))
        words = []
        for first, count, value in (run for runs in families.values() for run in runs):
            last = f"…{_number(first + count - 1)}" if count > 1 else ""
            words.append(f"{msr_name(first)}{last} = {value:#x}")
        if words:
            yield Step("host WRMSR", ", ".join(words))

    def _handled(self) -> Iterator[Step]:
        handler, self.handler = self.handler, ""
        if handler:
            yield Step("handler", handler)

    def privilege(self, e: Event) -> Iterator[Step]:
        a, b, c = e.a, e.b, e.c
        why = f", and {mk.ACCESS_NAMES[a].upper()} is for CPL 0"
        if a == mk.ACCESS_RDPMC:
            why = f" with CR4.PCE = {int(c & int(X86_CR4_PCE) != 0)}"
        yield Step("privilege", f"CPL {b & 3}{why}: #GP before anything else, no exit", True)

    def intercept(self, e: Event) -> Iterator[Step]:
        index, place, c = e.a, e.b, e.c
        exits = c & mk.ACCESS_EXITS
        if place == mk.BY_RDPMC_EXITING:
            why = self._passed(rule_for(RDPMC_PASSED, self._vpmu)[0], 0)
            yield Step("RDPMC exiting", f"1: the guest exits; {why}" if exits else f"0: no exit; {why}")
        elif place == mk.BY_RANGE:
            yield Step("MSR bitmap", f"{index:#x} is outside of both ranges: the access always exits")
        elif place == mk.BY_NO_BITMAP:
            yield Step("MSR bitmap", "none is in use: the access always exits")
        else:
            bit = "1: the guest exits" if exits else "0: no exit"
            writes = c & ~mk.ACCESS_EXITS == mk.ACCESS_WRMSR
            why = self._passed(rule_of(self.asked.met.column(self._vpmu), index, writes), _number(index))
            if self._denied():
                why += "; the VMM's MSR filter denies it"
            yield Step("MSR bitmap", f"byte {place >> 3:#x}, bit {place & 7} is {bit}; {why}")

    @property
    def _vpmu(self) -> str:
        return VPMUS[int(self.S.vms[int(self.S.vcpus[0].vm)].vpmu)]

    def _passed(self, rule: str, n: int) -> str:
        return rule_words(rule, self.asked.met.names() | {"n": n})

    def vm_exit(self, e: Event) -> Iterator[Step]:
        reason = e.a
        self.outside = True
        name = exit_name(reason & 0xFFFF)
        yield Step("VM-exit", f"reason {name} ({reason & 0xFFFF})")
        for later in self.events[self.at + 1 :]:
            if later.kind == mk.TR_VM_ENTRY:
                break
            if later.kind == lk.TR_FASTPATH and later.a == reason:
                how = later.b
                handler = _FASTPATHS.get(msr_name(self.asked.index), "vmx_exit_handlers_fastpath")
                stays = "the inner run loop goes on" if how == 1 else "the inner run loop is left"
                yield Step("fast path", f"{handler}: EXIT_FASTPATH_{FASTPATHS[how]}, {stays}")
                return
        self.handler = _HANDLERS.get(name, "")

    def kvm_msr(self, e: Event) -> Iterator[Step]:
        whose, writes = e.b, e.c
        read, write, words = _MSR_HANDLERS[whose]
        self.handler += f", {write if writes else read}: {words}"
        yield from self._handled()

    def msr_fault(self, e: Event) -> Iterator[Step]:
        index, value, c = e.a, e.b, e.c
        yield from self._handled()
        why = c >> 1
        words = msr_fault_words(why, index, value & self._reserved(index))
        if why == mk.GP_FILTER:
            yield Step("MSR filter", "the VMM denies this access: #GP", True)
            return
        elif why == mk.GP_USER_SPACE:
            yield Step("VMM", "refuses this access: #GP", True)
            return
        yield Step(self.who, f"{words}: #GP, registers unchanged" if c & 1 else f"{words}: #GP", True)

    def user_space(self, e: Event) -> Iterator[Step]:
        reason, writes = MSR_REASONS[e.b], e.c
        yield from self._handled()
        why = {
            "FILTER": "the VMM denies this access", "UNKNOWN": "does not know this MSR",
            "INVAL": "it would be #GP",
        }[reason]  # fmt: skip
        yield Step("MSR filter" if reason == "FILTER" else self.who, f"{why}, and wants to hear of it")
        name = "KVM_EXIT_X86_WRMSR" if writes else "KVM_EXIT_X86_RDMSR"
        yield Step("exit to the VMM", f"{name}, KVM_MSR_EXIT_REASON_{reason}")

    def _reserved(self, index: int) -> int:
        found = row_of(index)
        if found is None:
            return 0
        core, vcpu = self.S.cores[0], self.S.vcpus[0]
        return int((vcpu if self.outside else core).msr_reserved[found[0].number])

    def dropped(self, e: Event) -> Iterator[Step]:
        writes = e.c
        words = "the write does nothing" if writes else "it reads 0"
        yield Step(self.who, f"no such register with this CPUID, yet no #GP: {words}", True)

    def rdpmc_fault(self, e: Event) -> Iterator[Step]:
        ecx, gp, fixed = e.a, e.b, e.c
        yield from self._handled()
        words = rdpmc_fault_words(ecx, gp, fixed)
        yield Step(self.who, f"{words}: #GP", True)

    def event_filter(self, e: Event) -> Iterator[Step]:
        pmc, allowed, c = e.a, e.b, e.c
        vm, how = self.S.vms[self.S.vcpus[0].vm], c & 0xFF
        listed = "allow" if int(vm.action) == KVM_PMU_EVENT_ALLOW else "deny"
        if how == lk.FILTER_FIXED:
            by = f"fixed_counter_bitmap {int(vm.fixed_counter_bitmap):#x} of the {listed} list"
        elif how == lk.FILTER_UNLISTED:
            by = f"no entry of the {listed} list has its event"
        else:
            entry = int(vm.events[c >> 8])
            kind = "exclude entry" if how == lk.FILTER_EXCLUDED else "entry"
            by = f"{kind} {_entry(entry, self.asked.events)} of the {listed} list"
        # What it is asked for: a selector, the event behind a counter, or counting this instruction.
        after = self.events[self.at + 1] if self.at + 1 < len(self.events) else Event(0, 0, 0, 0)
        selects = after[:2] == (lk.TR_SELECTOR_HW, pmc)
        counts = not selects and self.events[self.at - 1][:2] != (lk.TR_PAUSE, pmc)
        if selects and after.c == 0:
            return  # the guest wants nothing of this counter
        words = ("may count" if allowed else "may not count") + (" this instruction" if counts else "")
        self.denied |= not allowed and not counts
        yield Step("event filter", f"{counter_name(pmc)} {words}: {by}", not allowed and not counts)

    def selector_hw(self, e: Event) -> Iterator[Step]:
        pmc, given, wanted = e.a, e.b, e.c
        if given == wanted == 0 and pmc >= N_GP_PMC:
            return  # a write to FIXED_CTR_CTRL looks at every counter
        name = "eventsel_hw" if pmc < N_GP_PMC else "fixed_ctr_ctrl_hw"
        same = "as the guest wrote it" if given == wanted else f"the guest wrote {wanted:#x}"
        yield Step(name, f"{counter_name(pmc)}: {given:#x}, {same}")

    def done(self, e: Event) -> Iterator[Step]:
        index, value, old = e.a, e.b, e.c
        if not self._is_it("wrmsr", index):
            return
        words = f"{value:#x} accepted, before it was {old:#x}"
        yield Step(self.who, words, not self._settled())

    def done_blind(self, e: Event) -> Iterator[Step]:
        index, value = e.a, e.b
        if self._is_it("wrmsr", index):
            yield Step(self.who, f"{value:#x} accepted", not self._settled())

    def read(self, e: Event) -> Iterator[Step]:
        index, value = e.a, e.b
        if self._is_it("rdmsr", index):
            words = value_words(index, value, self.asked.events)
            named = f" = {words}" if words not in ("0", f"{value:#x}") else ""
            yield Step(self.who, f"EDX:EAX = {value:#x}{named}", not self._settled())

    def read_pmc(self, e: Event) -> Iterator[Step]:
        ecx, value = e.a, e.b
        yield from self._handled()
        if self._is_it("rdpmc", ecx):
            clock = ", a clock of VMware's (is_vmware_backdoor_pmc)" if ecx >> 16 == 1 else ""
            yield Step(self.who, f"EDX:EAX = {value:#x}{clock}", True)

    def _is_it(self, action: str, index: int) -> bool:
        return self.asked.action == action and self.asked.index == index

    def _settled(self) -> bool:
        return self.denied or self._happened(mk.TR_MSR_DROPPED)

    def _denied(self) -> bool:
        # by the MSR filter, whether the VMM is asked then or not
        return any(
            (e.kind == mk.TR_MSR_FAULT and e.c >> 1 == mk.GP_FILTER)
            or (e.kind == lk.TR_MSR_USER_SPACE and MSR_REASONS[e.b] == "FILTER")
            for e in self.events
        )

    def _happened(self, kind: int) -> bool:
        return any(event.kind == kind for event in self.events)

    def request(self, e: Event) -> Iterator[Step]:
        request, before = e.a, e.b
        again = ", which waits already" if before & request else ""
        yield Step("request", f"{_REQUESTS.get(request, hex(request))}{again}")  # type: ignore[call-overload]

    def emulated(self, e: Event) -> Iterator[Step]:
        names = [counter_of_bit(i) for i in range(64) if e.a >> i & 1]
        yield Step("software count", f"kvm_pmu_trigger_event: the instruction counts in {' '.join(names)}")

    def pause(self, e: Event) -> Iterator[Step]:
        pmc, value = e.a, e.b
        yield Step("pmc_pause_counter", f"{counter_name(pmc)} holds {value:#x}")

    def reprogram(self, e: Event) -> Iterator[Step]:
        pmc, config, how = e.a, e.b, e.c
        words = reprogram_words(how)
        failed = how & 0xFF == lk.REPROGRAM_FAILED
        if how & 0xFF in (lk.REPROGRAM_CREATE, lk.REPROGRAM_RESUME, lk.REPROGRAM_FAILED):
            words += f", config {config:#x}"
        yield Step("reprogram_counter", f"{counter_name(pmc)}: {words}", failed)

    def perf_create(self, e: Event) -> Iterator[Step]:
        event, config, period = e.a, e.b, e.c
        known = event_by_code(config, self.asked.events)
        name = f" {known.name}" if known and config & 0xFFFF else ""
        yield Step("perf event", f"event {event} made: config {config:#x}{name}, period {period:#x}")

    def perf_release(self, e: Event) -> Iterator[Step]:
        yield Step("perf event", f"event {e.a} released")

    def perf_state(self, e: Event) -> Iterator[Step]:
        event, old, new = e.a, e.b, e.c
        yield Step("perf event", f"event {event}: {STATE_NAMES[old - 2]} -> {STATE_NAMES[new - 2]}")

    def pmu_load(self, e: Event) -> Iterator[Step]:
        ctrl, status = e.a, e.b
        yield from self._host_writes()
        yield Step("context in", f"the guest's GLOBAL_CTRL is {ctrl:#x}, GLOBAL_STATUS {status:#x}")

    def pmu_put(self, e: Event) -> Iterator[Step]:
        ctrl, status = e.a, e.b
        yield Step("context out", f"the guest's GLOBAL_CTRL was {ctrl:#x}, GLOBAL_STATUS {status:#x}")

    def overflow(self, e: Event) -> Iterator[Step]:
        index, status = e.a, e.b
        yield Step("overflow", f"{counter_of_bit(index)}, GLOBAL_STATUS of the hardware {status:#x}")

    def pmi(self, e: Event) -> Iterator[Step]:
        lvt, sent = e.a, e.c
        yield Step("PMI", f"LVTPC {lvt:#x}: " + ("dropped", "fixed interrupt", "NMI")[sent])

    def guest_pmi(self, e: Event) -> Iterator[Step]:
        lvt, sent = e.a, e.b
        how = ("dropped", "fixed interrupt", "NMI")[sent]
        yield Step("kvm_pmu_deliver_pmi", f"the guest's LVTPC {lvt:#x}: {how}")

    def exception(self, e: Event) -> Iterator[Step]:
        vector = e.a
        name = EXCEPTION_NAMES.get(vector, f"exception {vector}")
        yield Step(name, "the program goes on in the handler that its IDT names")

    def nmi(self, _: Event) -> Iterator[Step]:
        yield Step("NMI", "delivered to the guest" if self.asked.guest else "delivered")

    def vm_entry(self, e: Event) -> Iterator[Step]:
        info = e.a
        yield from self._host_writes()
        self.outside = False
        injects = f"injects vector {info & 0xFF}" if info & _VALID else "injects nothing"
        yield Step("VM-entry", injects)


_Word = Callable[[_Teller, Event], Iterator[Step]]
_WORDS: dict[int, _Word] = {
    mk.TR_PRIVILEGE: _Teller.privilege,
    mk.TR_INTERCEPT: _Teller.intercept,
    mk.TR_VM_EXIT: _Teller.vm_exit,
    mk.TR_VM_ENTRY: _Teller.vm_entry,
    mk.TR_MSR_FAULT: _Teller.msr_fault,
    mk.TR_MSR_DROPPED: _Teller.dropped,
    mk.TR_RDPMC_FAULT: _Teller.rdpmc_fault,
    mk.TR_GUEST_WRMSR: _Teller.done,
    mk.TR_GUEST_WRMSR_BLIND: _Teller.done_blind,
    mk.TR_GUEST_RDMSR: _Teller.read,
    mk.TR_GUEST_RDPMC: _Teller.read_pmc,
    mk.TR_OVERFLOW: _Teller.overflow,
    mk.TR_PMI_RAISE: _Teller.pmi,
    mk.TR_EXCEPTION: _Teller.exception,
    mk.TR_NMI: _Teller.nmi,
    lk.TR_KVM_MSR: _Teller.kvm_msr,
    lk.TR_MSR_USER_SPACE: _Teller.user_space,
    lk.TR_FILTER: _Teller.event_filter,
    lk.TR_SELECTOR_HW: _Teller.selector_hw,
    lk.TR_REQUEST: _Teller.request,
    lk.TR_EMULATED: _Teller.emulated,
    lk.TR_PAUSE: _Teller.pause,
    lk.TR_REPROGRAM: _Teller.reprogram,
    lk.TR_PERF_CREATE: _Teller.perf_create,
    lk.TR_PERF_RELEASE: _Teller.perf_release,
    lk.TR_PERF_STATE: _Teller.perf_state,
    lk.TR_PMU_LOAD: _Teller.pmu_load,
    lk.TR_PMU_PUT: _Teller.pmu_put,
    lk.TR_PMI_INJECT: _Teller.guest_pmi,
}


def _entry(entry: int, events: str) -> str:
    # A masked entry of an event filter: [7:0] select, [15:8] match, [63:56] mask of the UMASK.
    select, match, mask = entry & 0xFF, entry >> 8 & 0xFF, entry >> 56
    known = event_by_code(match << 8 | select, events)
    name = f" ({known.name})" if known and mask == 0xFF else ""
    masked = "" if mask == 0xFF else f" mask {mask:#x}"
    return f"select {select:#x} umask {match:#x}{masked}{name}"


def intercept_state(S: Any, model: CpuModel, k: int = 0) -> Met:
    """What decides now which accesses of vCPU k, on core 0, exit."""
    x2apic = int(S.cores[0].vapic.apic_base) & int(msr_index.X2APIC_ENABLE)
    return Met(
        guest=vcpu_shape(S, model, k),
        host=model.shape(),
        all_passthrough=bool(S.config.all_passthrough),
        without=int(S.config.without),
        x2apicv=bool(S.config.apicv and x2apic),
        lazy=bool(S.vcpus[k].pmu.lazy),
        lbr_active=bool(S.vcpus[k].pmu.lbr_passthrough),
    )


def told(asked: Asked, events: Iterable[Any], S: Any) -> list[Step]:
    """The steps of an access.

    Args:
        asked: the access.
        events: the trace from its instruction to the next one that the program runs.
        S: the record after that.
    """
    return list(_Teller(asked, events, S).tell())
