"""The emulated vPMU: what a guest's write costs, when events are reused, how a PMI arrives."""

from __future__ import annotations

import pytest

from tests.linux.guests import INSTRUCTIONS, run, system, window
from vpmu_emu.linux.perf.event import perf_event_release_kernel
from vpmu_emu.linux.trace_kinds import (
    REPROGRAM_NAMES,
    TR_INJECT_NMI,
    TR_PERF_STATE,
    TR_PMI_INJECT,
    TR_REPROGRAM,
)
from vpmu_emu.machine.ring import TR_VM_EXIT
from vpmu_emu.views.perf import perf_report

pytestmark = [pytest.mark.uncompiled, pytest.mark.inner]

# x2APIC on, APIC on, LVTPC and an IDT with one handler: 0x20 (fixed) or 2 (NMI)
PMI_GUEST = """
    jmp begin
.align 16
idt:  .zero 16 * 64
idtr: .word 16 * 64 - 1
      .quad idt
handled: .quad 0
status:  .quad 0
handler:
    push rax
    push rcx
    push rdx
    inc qword ptr [handled]
    {handler}
    pop rdx
    pop rcx
    pop rax
    iretq
begin:
    mov rsp, 0x1ffff0
    lea rax, [handler]
    lea rbx, [idt + 16 * {vector}]
    mov [rbx], ax
    mov word ptr [rbx + 2], 8
    mov word ptr [rbx + 4], 0x8e00
    shr rax, 16
    mov [rbx + 6], ax
    lidt [idtr]
    WRMSR32 0x1b, 0xfee00d00
    WRMSR32 0x80f, 0x1ff
    WRMSR32 0x834, {lvtpc}
    {body}
    EXIT 0
"""
FIXED, NMI = 0x20, 0x400
# counts instructions on PMC0 from `left` before overflow
START = """
    WRMSR32 0x38f, 0
    mov ecx, 0x4c1
    mov eax, -{left}
    mov edx, 0xffff
    wrmsr
    WRMSR32 0x186, 0x5300c0
    {sti}
    WRMSR32 0x38f, 1
"""
STOP = """
    WRMSR32 0x38f, 0
"""
ACK = """
    RDMSR32 0x38e
    mov [status], eax
    WRMSR32 0x38f, 0
    WRMSR32 0x390, 1
    WRMSR32 0x834, {lvtpc}
"""


def pmi_guest(body, lvtpc=FIXED, handler=ACK, left=10, nops=30):
    vector = 2 if lvtpc & NMI else lvtpc & 0xFF
    sti = "" if lvtpc & NMI else "sti"
    code = START.format(left=left, sti=sti) + " nop\n" * nops + (body or STOP)
    return PMI_GUEST.format(
        vector=vector, lvtpc=lvtpc, handler=handler.format(lvtpc=lvtpc), body=code
    )


def reprograms(machine) -> list[tuple[int, str]]:
    found = [(int(e["a"]), int(e["c"]) & 0xFF) for e in machine.events() if int(e["kind"]) == TR_REPROGRAM]
    return [(pmc, REPROGRAM_NAMES[how].split()[0]) for pmc, how in found]


def test_create_once_then_reuse():
    body = (
        "WRMSR32 0x38f, 0\n WRMSR32 0x186, 0x4300c4\n"
        "WRMSR32 0x38f, 1\n nop\n WRMSR32 0x38f, 0\n WRMSR32 0x38f, 1\n"
        "WRMSR32 0x38f, 0\n WRMSR32 0x38f, 0\n EXIT 0\n"
    )
    machine, result = run(body, "emulated", trace=True)
    # RESET has all counters on: the first write turns them off. A write of the same value does nothing.
    pmc0 = [how for i, how in reprograms(machine) if i == 0]
    assert pmc0 == ["off", "off", "create", "off", "resume", "off"]
    assert (result["kvm"]["created"], result["kvm"]["released"]) == (1, 0)


def test_same_selector_is_free_and_another_one_makes_a_new_event():
    again = "WRMSR32 0x186, 0x4300c4\n"
    body = "WRMSR32 0x38f, 0\n {} EXIT 0\n"
    once = reprograms(run(body.format(again), "emulated", trace=True)[0])
    assert reprograms(run(body.format(again * 4), "emulated", trace=True)[0]) == once
    other = "WRMSR32 0x186, 0x4300c4\n WRMSR32 0x186, 0x4300c0\n"
    result = run(window(other), "emulated")[1]
    assert (result["kvm"]["created"], result["kvm"]["released"]) == (3, 2)


def test_an_emulated_instruction_that_counts_reprograms_its_counter():
    """kvm_pmu_incr_counter() asks for a reprogram: pause and resume at the next entry."""
    results = [run(window(" mov eax, 1\n cpuid\n" * n), "emulated")[1]["kvm"] for n in (1, 4)]
    assert results[1]["resumed"] - results[0]["resumed"] == 3
    assert results[1]["paused"] - results[0]["paused"] == 3


def test_only_toggled_counters_are_reprogrammed():
    selectors = "".join(f"WRMSR32 {0x186 + i:#x}, 0x4300c4\n" for i in range(4))
    body = "WRMSR32 0x38f, 0\n" + selectors + "WRMSR32 0x38f, 0xf\n WRMSR32 0x38f, 0xb\n EXIT 0\n"
    machine, _ = run(body, "emulated", trace=True)
    assert reprograms(machine)[-2:] == [(3, "create"), (2, "off")]
    # the injected bug turns off one of four
    body = body.replace("0xb\n", "0\n")
    assert run(body, "emulated")[1]["kvm"]["paused"] == 4
    assert run(body, "emulated", inject=["lose-reprogram"])[1]["kvm"]["paused"] < 4


@pytest.mark.parametrize("mode", ["bare", "emulated", "passthrough", "mediated"])
@pytest.mark.parametrize("lvtpc", [FIXED, NMI])
def test_one_pmi_per_overflow(mode, lvtpc):
    machine, result = run(pmi_guest(None, lvtpc), mode)
    handled = int.from_bytes(machine.read(machine.program.symbols["handled"], 8), "little")
    status = int.from_bytes(machine.read(machine.program.symbols["status"], 8), "little")
    assert (result["pmis"], handled, status) == (1, 1, 1)
    assert result["pmis_hw"] == 1
    if mode == "emulated":
        assert result["exits"]["EXCEPTION_NMI"] == 1
        assert result["perf"]["vpmi_irqs"] == 0
    if mode == "passthrough":
        assert result["exits"]["EXTERNAL_INTERRUPT"] == result["perf"]["vpmi_irqs"] == 1
        assert result["perf"]["nmis"] == 0


@pytest.mark.parametrize("mode", ["bare", "emulated", "passthrough", "mediated"])
def test_lvtpc_is_masked_by_its_pmi(mode):
    """A handler that does not unmask LVTPC gets one PMI, however often the counter wraps."""
    again = """
    RDMSR32 0x38e
    mov [status], eax
    mov ecx, 0x4c1
    mov eax, -20
    mov edx, 0xffff
    wrmsr
    """
    guest = pmi_guest(None, FIXED, again, nops=200)
    machine, result = run(guest, mode)
    assert result["pmis"] == 1
    assert int(machine.core.vapic.lvt[3] if mode != "bare" else machine.core.lapic.lvt[3]) >> 16 & 1
    assert result["global_status"] == 1
    if mode == "emulated":
        assert run(guest, mode, inject=["no-lvtpc-mask"])[1]["pmis"] > 1


@pytest.mark.parametrize("mode", ["emulated", "passthrough", "mediated"])
def test_masked_lvtpc_sets_status_and_brings_no_pmi(mode):
    guest = pmi_guest(None, FIXED | 1 << 16)
    _, result = run(guest, mode)
    assert (result["pmis"], result["global_status"]) == (0, 1)
    if mode == "passthrough":
        # Patch 07: the mask reaches hardware, so that nothing exits; without it the exit is for nothing.
        assert "EXTERNAL_INTERRUPT" not in result["exits"]
        _, result = run(guest, mode, without=[7])
        assert result["exits"]["EXTERNAL_INTERRUPT"] == 1
        assert result["pmis"] == 0


@pytest.mark.parametrize("mode", ["bare", "emulated", "passthrough", "mediated"])
def test_second_overflow_in_an_nmi_handler_comes_once_after_iret(mode):
    """The handler unmasks LVTPC and overflows again before it returns."""
    handler = """
    cmp qword ptr [handled], 1
    jne 9f
    WRMSR32 0x38f, 0
    WRMSR32 0x390, 1
    WRMSR32 0x834, 0x400
    mov ecx, 0x4c1
    mov eax, -4
    mov edx, 0xffff
    wrmsr
    WRMSR32 0x38f, 1
    nop
    nop
    nop
    nop
    nop
    nop
    cmp qword ptr [handled], 1
    je 8f
    ud2
8:  WRMSR32 0x38f, 0
9:
    """
    machine, result = run(pmi_guest(None, NMI, handler), mode)
    handled = int.from_bytes(machine.read(machine.program.symbols["handled"], 8), "little")
    assert (handled, result["pmis"]) == (2, 2)
    if mode != "bare":
        assert result["exits"]["NMI_WINDOW"] == 1


@pytest.mark.parametrize(("mode", "left"), [("emulated", 2), ("passthrough", 1)])
def test_pmu_request_before_pmi_request(mode, left):
    """A software count that wraps is found at KVM_REQ_PMU; its PMI arrives at the same entry."""

    def exits_before_pmi(**options):
        guest = pmi_guest("cpuid\n nop\n mov eax, 1\n cpuid\n" + STOP, left=left, nops=0)
        machine, result = run(guest, mode, trace=True, **options)
        assert result["pmis"] == 1
        kinds = [int(e["kind"]) for e in machine.events()]
        return kinds[: kinds.index(TR_PMI_INJECT)].count(TR_VM_EXIT)

    # In emulated the write that opens the window counts too, and only a later one can bring a PMI.
    exits = exits_before_pmi()
    assert exits_before_pmi(inject=["pmi-before-pmu"]) > exits


def test_the_first_count_of_a_new_event_brings_no_pmi():
    """pmc->intr is known only once the event exists: a wrap before that sets GLOBAL_STATUS alone."""
    result = run(pmi_guest(None, left=1, nops=0), "emulated")[1]
    assert (result["pmis"], result["global_status"]) == (0, 1)


REARM = """
    WRMSR32 0x38f, 0
    WRMSR32 0x390, 1
    mov ecx, 0x4c1
    mov eax, -40
    mov edx, 0xffff
    wrmsr
    WRMSR32 0x834, 0x20
    WRMSR32 0x80b, 0
    WRMSR32 0x38f, 1
"""


@pytest.mark.laws
def test_throttling_ends_with_the_reprogram_that_every_overflow_brings():
    """perf stops an event after 100000 / HZ overflows in a tick; scheduling it in again forgives all."""
    guest = pmi_guest(None, FIXED, REARM, nops=600)
    machine = system(guest, "emulated")
    machine.S.config.max_samples_per_tick = 5
    machine.S.config.tick_interval = 1 << 40
    result = machine.result(machine.run()).to_json()
    assert result["perf"]["throttles"] == result["pmis"] // 5 > 1
    assert result["pmis"] == run(guest, "emulated")[1]["pmis"]
    assert result["pmis"] >= run(guest, "bare")[1]["pmis"]


def test_contention_freezes_the_guest_silently():
    body = window(" nop\n" * 50)
    _machine, result = run(body, "emulated", host_events=["instructions:D*12"])
    kvm = [e for e in result["perf"]["events"] if e["owner"] == "kvm"]
    assert [e["pmc"] for e in kvm] == ["pmc0"]
    assert kvm[0]["cause"] == "no free counter"
    assert kvm[0]["running"] == 0
    # what KVM counts in software still counts: the WRMSR that opened the window
    assert result["counters"]["pmc0"] == 1
    assert result["pmis"] == 0
    # passthrough does not care: the same events go to ERROR themselves
    assert run(body, "passthrough", host_events=["instructions:D*12"])[1]["counters"]["pmc0"] == (
        run(body, "passthrough")[1]["counters"]["pmc0"]
    )


def test_state_changes_are_in_the_trace():
    machine, _ = run(window("nop"), "emulated", trace=True, host_events=["instructions:D*12"])
    changes = [(int(e["a"]), int(e["b"]) - 2, int(e["c"]) - 2) for e in machine.events()
               if int(e["kind"]) == TR_PERF_STATE]  # fmt: skip
    assert [c for c in changes if c[0] == 11] == [(11, 0, -2)]


def test_injected_nmi_is_in_the_trace():
    machine, _ = run(pmi_guest(None, NMI), "emulated", trace=True)
    assert [int(e["kind"]) for e in machine.events()].count(TR_INJECT_NMI) == 1


def test_cpuid_shows_the_guests_pmu():
    body = "mov eax, 0xa\n xor ecx, ecx\n cpuid\n mov esi, eax\n mov edi, edx\n EXIT 0\n"
    for options, version, gp, fixed in (
        ({}, 2, 8, 3),
        ({"guest": {"pmu.gp": 4, "fixed": 2}}, 2, 4, 2),
        ({"guest": {"version": 1}}, 1, 8, 0),
        ({"kvm": {"fixed_cap": 4}}, 2, 8, 3),
    ):
        registers = run(body, "emulated", **options)[1]["registers"]
        assert (registers["rsi"] & 0xFF, registers["rsi"] >> 8 & 0xFF) == (version, gp)
        assert registers["rdi"] & 0x1F == fixed
    assert run(body, "none")[1]["registers"]["rsi"] == 0


# sleeps 50000 cycles
SLEEP = """
    rdtsc
    shl rdx, 32
    or rax, rdx
    add rax, 50000
    mov rdx, rax
    shr rdx, 32
    mov ecx, 0x6e0
    wrmsr
    sti
    hlt
    cli
"""
# an event of PMC0 that has counted; its selector is off
USED = """
    WRMSR32 0x38f, 0
    WRMSR32 0x186, 0x4300c0
    WRMSR32 0x38f, 1
    nop
    WRMSR32 0x38f, 0
    WRMSR32 0x186, 0
    WRMSR32 0x832, 0x40020
"""


def sleeper(body):
    return PMI_GUEST.format(vector=0x20, lvtpc=1 << 16, handler="WRMSR32 0x80b, 0", body=body)


def test_unused_events_are_released_after_a_sleep():
    """kvm_pmu_cleanup() at the sched-in after the next: the selector is off and was not touched."""
    guest = sleeper(USED + SLEEP * 2)
    _, result = run(guest, "emulated")
    assert (result["kvm"]["created"], result["kvm"]["released"]) == (1, 1)
    assert result["counters"]["pmc0"] == run(guest, "bare")[1]["counters"]["pmc0"]


@pytest.mark.parametrize(
    ("touch", "released"),
    [
        ("WRMSR32 0xc1, 5\n", 0),
        ("WRMSR32 0x186, 0\n", 0),  # even if it changes nothing
        ("WRMSR32 0x4c1, 5\n", 1),  # intel_msr_idx_to_pmc() does not know the full-width address
        ("WRMSR32 0xc2, 5\n", 1),  # another counter
        ("WRMSR32 0x38f, 0\n", 1),
        ("RDMSR32 0xc1\n", 1),
    ],
)
def test_only_writes_to_its_own_registers_keep_an_event_for_another_slice(touch, released):
    guest = sleeper(USED + SLEEP + touch + SLEEP)
    assert run(guest, "emulated")[1]["kvm"]["released"] == released


def test_an_event_whose_selector_is_on_outlives_every_sleep():
    guest = sleeper(USED.replace("WRMSR32 0x186, 0\n", "") + SLEEP * 4)
    assert run(guest, "emulated")[1]["kvm"]["released"] == 0


def test_a_reprogram_that_fails_is_tried_again_with_the_next_request_and_makes_none():
    """No room for another event: the bit is set again and the guest goes on."""
    body = """
    WRMSR32 0x38f, 0
    WRMSR32 0x186, 0x4300c4
    WRMSR32 0x38f, 1
    jmp 1f
1:  mov ebx, 1
    cpuid
    in al, 0x61
    jmp 2f
2:  WRMSR32 0x186, 0x4300c4
    WRMSR32 0x187, 0x4300c4
    jmp 3f
3:  WRMSR32 0x38f, 0
    EXIT 0
    """
    full = ["instructions:H"] * 52
    machine = system(body, "emulated", trace=True, host_events=full)
    for k in range(52, 64):  # rows that nobody looks at: an order that no list has
        machine.S.perf_events[k].used = 1
        machine.S.perf_events[k].ctx = -2
    result = machine.result(machine.run()).to_json()
    assert result["stop"] == "debug-exit"
    # at the request that the write to the other selector brings, and to no end
    assert [how for i, how in reprograms(machine) if i == 0] == ["off", "off", "failed", "failed", "off"]
    assert result["counters"]["pmc0"] == 0


def test_a_counter_in_error_comes_back_at_the_next_toggle_and_not_before():
    """Pinned events hold every counter and go; the guest's own, in ERROR, does not notice."""
    half = "jmp 1f\n 1: jmp 2f\n 2: nop\n in al, 0x61\n"
    body = "WRMSR32 0x38f, 0\n WRMSR32 0x186, 0x4300c4\n WRMSR32 0x38f, 1\n" + half
    body += "here: nop\n" + half + "WRMSR32 0x38f, 0\n WRMSR32 0x38f, 1\n" + half
    body += "WRMSR32 0x38f, 0\n EXIT 0\n"
    machine = system(body, "emulated", host_events=["branches:DH*8"])
    while machine.rip != machine.program.symbols["here"]:
        machine.step()
    states = [e["state"] for e in perf_report(machine.S)]
    assert states == ["ACTIVE"] * 8 + ["ERROR"]
    for i in range(8):
        perf_event_release_kernel(machine.S, machine.E, i)
    result = machine.result(machine.run()).to_json()
    assert result["counters"]["pmc0"] == 2  # the last half's
    assert result["kvm"]["created"] == 1
    assert run(body, "emulated")[1]["counters"]["pmc0"] == 6


def test_pin_control_is_ignored():
    """Bit 19 reaches neither the event nor the hardware; another value of it is another selector."""
    jump = "jmp 1f\n 1: nop\n"
    plain, pin = (run(window(jump, INSTRUCTIONS | bit), "emulated")[1] for bit in (0, 1 << 19))
    assert plain["counters"] == pin["counters"]
    assert plain["perf"]["events"][0]["name"] == pin["perf"]["events"][0]["name"]
    body = "WRMSR32 0x186, 0x4b00c0\n WRMSR32 0x186, 0x4300c0\n"
    assert run(window(body), "emulated")[1]["kvm"]["created"] == 3


def test_halt_without_a_wake_up_ends_the_run():
    for mode in ("none", "emulated", "passthrough"):
        machine = system("cli\n hlt\n", mode)
        assert machine.run().reason == "halted"


@pytest.mark.parametrize("mode", ["emulated", "passthrough", "mediated"])
def test_without_apicv_everything_exits_and_the_result_is_the_same(mode):
    guest = pmi_guest(None, FIXED)
    fast = run(guest, mode)[1]
    slow = run(guest, mode, apicv=False)[1]
    assert (slow["pmis"], slow["counters"]) == (fast["pmis"], fast["counters"])
    assert slow["exits"]["MSR_WRITE"] >= fast["exits"]["MSR_WRITE"]


def test_a_status_that_does_not_clear_does_not_keep_the_host_in_its_handler():
    # "perfevents: irq loop stuck!": after 100 rounds the selectors are turned off.
    body = "WRMSR32 0xc1, -50\n" + window(".rept 100\nnop\n.endr")
    machine, values = run(body, "emulated", inject=["status-reset-ignored"])
    assert values["stop"] == "debug-exit"
    assert machine.S.percpu[0].nmis >= 1
