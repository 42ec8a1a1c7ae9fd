"""Published figures that no cost comes from, predicted by runs: how far the costs can be trusted elsewhere.

Each function runs what the figure was measured on, as far as that is known, and returns the figure in its
unit. Its interval is what runs with random costs give, all of them drawn at once; what the source does not
say of its guest is drawn with them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import numpy as np

from vpmu_emu.asm import assemble
from vpmu_emu.lab.measure import WORKLOADS, Task, measure
from vpmu_emu.lab.pool import run_all
from vpmu_emu.options import HERTZ
from vpmu_emu.system import System, host_model
from vpmu_emu.tables.figures import FIGURES, VALIDATION

DRAWS = 40  # full runs with random costs, for each figure
LOOPS = 200

#: A loop of one instruction that exits.
EXIT_LOOP = """
        .intel_syntax noprefix
        .globl _start
_start: mov r12d, LOOPS
again:  xor eax, eax
        {what}
        dec r12d
        jnz again
        mov eax, 0; out 0xf4, al
"""

#: kvm-unit-tests' tscdeadline_immed, and with HLT tscdeadline_latency: a deadline, then its interrupt.
DEADLINE_LOOP = """
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .text
        .globl _start
_start: lapic_enable_x2apic
        load_idt
        set_gate 0x41, tick
        wrmsr_const IA32_X2APIC_LVT_TIMER, 0x41 | LVT_TIMER_TSC_DEADLINE
        mov r12d, LOOPS
again:  mov r13d, 0
        rdtsc
        shl rdx, 32
        or rax, rdx
        add rax, AHEAD
        mov r14, rax
        .if AHEAD
        cli
        .endif
        wrmsr_rax IA32_TSC_DEADLINE
        sti
        .if AHEAD
        hlt
        .endif
wait:   test r13d, r13d
        jz wait
        dec r12d
        jnz again
        mov eax, 0; out 0xf4, al
tick:   .if AHEAD
        rdtsc
        shl rdx, 32
        or rax, rdx
        sub rax, r14
        add [rip + late], rax
        .endif
        mov r13d, 1
        lapic_eoi
        iretq
        .data
        idt_storage
        .bss
late:   .zero 8
"""


def _cycles(source: str, options: Mapping[str, Any], **defsym: int) -> float:
    """Cycles of one turn of a loop."""
    spent = []
    for loops in (LOOPS, 2 * LOOPS):
        system = System(assemble(source, defsym={"LOOPS": loops, **defsym}), ram=4, **options)
        system.run()
        spent.append(int(system.core.t) >> 4)
    return (spent[1] - spent[0]) / LOOPS


def cpuid_exit_emr(settings: Mapping[str, int]) -> float:
    """A CPUID exit with the mediated vPMU whose switch makes every WRMSR, on Emerald Rapids."""
    return _exit("cpuid", settings, vpmu="mediated", cpu="emr", switch="eager")


def cpuid_exit_2017(settings: Mapping[str, int]) -> float:
    """A CPUID exit of a guest without PMU."""
    return _exit("cpuid", settings, vpmu="none", cpu="skx")


def vmcall_exit_2017(settings: Mapping[str, int]) -> float:
    """A VMCALL exit of a guest without PMU."""
    return _exit("vmcall", settings, vpmu="none", cpu="skx")


def _exit(what: str, settings: Mapping[str, int], **options: Any) -> float:
    return _cycles(EXIT_LOOP.format(what=what), {**options, "settings": dict(settings)})


def tscdeadline_immed_skx(settings: Mapping[str, int]) -> float:
    """A TSC deadline that is over at once, until its interrupt is handled."""
    return _cycles(
        DEADLINE_LOOP, {"vpmu": "none", "cpu": "skx", "settings": dict(settings)}, AHEAD=0
    )


def tscdeadline_immed_skx_no_apicv(settings: Mapping[str, int]) -> float:
    """The same without APICv."""
    options: dict[str, Any] = {
        "vpmu": "none",
        "cpu": "skx",
        "apicv": False,
        "settings": dict(settings),
    }
    return _cycles(DEADLINE_LOOP, options, AHEAD=0)


def tscdeadline_latency_2016(settings: Mapping[str, int]) -> float:
    """From a deadline to the handler of the guest that waits for it in HLT, in cycles of the core."""
    program = assemble(DEADLINE_LOOP, defsym={"LOOPS": LOOPS, "AHEAD": 100_000})
    system = System(program, ram=4, vpmu="none", cpu="skx", settings=dict(settings))
    system.run()
    late = int.from_bytes(system.read(program.symbols["late"], 8), "little")
    return late / LOOPS * system.model.core_khz / system.model.tsc_khz


@attrs.frozen
class Guest:
    """What a source does not say of its guest: drawn like a cost."""

    workload: str = "sort"
    hz: int = 250
    frequency: int = 1000


def random_guests(draws: int, seed: int) -> list[Guest]:
    """Workload, CONFIG_HZ and `perf record -F`: 4000 is what it takes if not asked."""
    random = np.random.default_rng(seed)
    drawn = zip(
        random.choice(WORKLOADS, draws), random.choice(HERTZ, draws), random.choice([1000, 4000], draws),
        strict=True,
    )  # fmt: skip
    return [Guest(str(workload), int(hz), int(frequency)) for workload, hz, frequency in drawn]


def _guest_nmi(
    cpu: str, settings: Mapping[str, int], guest: Guest, events: int, **kvm: int
) -> dict[str, float]:
    """A guest's perf record under the emulated vPMU as it was before KVM counted what it emulates."""
    options: dict[str, Any] = {
        "vpmu": "emulated", "cpu": cpu, "watchdog": "nmi", "kvm": {"count_emulated": 0, **kvm},
        "settings": dict(settings),
    }  # fmt: skip
    defsym = {
        "HZ": guest.hz, "FREQ": guest.frequency, "KERNEL": 504, "TSC_KHZ": host_model(cpu).tsc_khz,
    }  # fmt: skip
    window = measure(
        Task(
            workload=guest.workload,
            events=events,
            options=options,
            defsym=defsym,
            warm_ms=20,
            ms=20,
        )
    )
    n = window.numbers
    pmis = max(n["perf_nmis"], 1)
    return {
        "ns": n["perf_nmi_ns"] / pmis,
        "exits": sum(window.exits.get(reason, 0) for reason in ("MSR_WRITE", "MSR_READ", "RDPMC"))
        / pmis,
        "status": window.msrs["IA32_PERF_GLOBAL_STATUS"]["reads"] / pmis,
        "global_ctrl": window.msrs["IA32_PERF_GLOBAL_CTRL"]["writes"] / pmis,
        "counters": window.exits.get("RDPMC", 0) / pmis,
    }


def guest_nmi_clx_reuse(settings: Mapping[str, int], guest: Guest) -> dict[str, float]:
    """A guest's NMI handler, six events on five counters, events reused."""
    return _guest_nmi("skx", settings, guest, 6)


def guest_nmi_clx(settings: Mapping[str, int], guest: Guest) -> dict[str, float]:
    """The same, with a new event for each change of a counter; at -F 4000 nothing else would get done."""
    return _guest_nmi("skx", settings, attrs.evolve(guest, frequency=1000), 6, event_reuse=0)


def guest_pmi_icx(settings: Mapping[str, int], guest: Guest) -> dict[str, float]:
    """What a guest with four events does for each PMI; ticks read counters and give new periods, too."""
    return _guest_nmi("icx", settings, guest, 4)


@attrs.frozen
class Prediction:
    """How a figure is predicted: by what, on which CPU model, and which of what it gives."""

    function: Callable[..., Any]
    cpu: str
    part: str = ""


PREDICTED = {
    "cpuid_exit_emr": Prediction(cpuid_exit_emr, "emr"),
    "cpuid_exit_2017": Prediction(cpuid_exit_2017, "skx"),
    "vmcall_exit_2017": Prediction(vmcall_exit_2017, "skx"),
    "tscdeadline_immed_skx": Prediction(tscdeadline_immed_skx, "skx"),
    "tscdeadline_immed_skx_no_apicv": Prediction(tscdeadline_immed_skx_no_apicv, "skx"),
    "tscdeadline_latency_2016": Prediction(tscdeadline_latency_2016, "skx"),
    "guest_nmi_clx_reuse": Prediction(guest_nmi_clx_reuse, "skx", "ns"),
    "guest_nmi_clx": Prediction(guest_nmi_clx, "skx", "ns"),
    "guest_pmu_exits_per_pmi_icx": Prediction(guest_pmi_icx, "icx", "exits"),
    "guest_status_reads_per_pmi_icx": Prediction(guest_pmi_icx, "icx", "status"),
    "guest_global_ctrl_writes_per_pmi_icx": Prediction(guest_pmi_icx, "icx", "global_ctrl"),
    "guest_counters_per_pmi_icx": Prediction(guest_pmi_icx, "icx", "counters"),
}
"""Rows of isa/figures.toml that can be predicted."""


@attrs.frozen
class _Run:
    prediction: Prediction
    settings: dict[str, int]
    guest: Guest


def _one(run: _Run) -> Any:
    if run.prediction.part:
        return run.prediction.function(run.settings, run.guest)
    return run.prediction.function(run.settings)


def _in_unit(name: str, value: Any) -> float:
    prediction = PREDICTED[name]
    if prediction.part:
        value = value[prediction.part]
    model = host_model(prediction.cpu)
    # What was measured by RDTSC is in its cycles, what runs here takes those of the core.
    return float(value * model.tsc_khz / model.core_khz if FIGURES[name].unit == "tsc" else value)


def random_settings(cpu: str, draws: int, seed: int) -> list[dict[str, int]]:
    """`--set` words of random costs and latencies, whose low and high are the 5 and 95 % points."""
    from vpmu_emu.lab.overhead import drawn

    model = host_model(cpu)
    factors = drawn(model, draws, seed)
    settings = []
    for k in range(draws):
        one: dict[str, int] = {}
        for name, values in factors.items():
            if name.startswith("model."):
                one[name] = max(round(model.latency_of(name.removeprefix("model.")) * values[k]), 1)
            else:
                one[f"cost.{name}"] = max(round(model.cost(name).cycles[1] * values[k]), 1)
        settings.append(one)
    return settings


def validate(
    seed: int = 1, jobs: int | None = None, progress: Callable[[int, int], None] = lambda *_: None
) -> list[dict[str, Any]]:
    """Every figure that can be predicted: what was published, beside what the costs give for it."""
    guests = [Guest(), *random_guests(DRAWS, seed)]
    once = {prediction.function: prediction for prediction in PREDICTED.values()}
    runs = [
        _Run(prediction, settings, guest)
        for prediction in once.values()
        for settings, guest in zip(
            [{}, *random_settings(prediction.cpu, DRAWS, seed)], guests, strict=True
        )
    ]
    values = iter(run_all(_one, runs, jobs, progress))
    of = {function: [next(values) for _ in guests] for function in once}
    found = []
    for name, prediction in PREDICTED.items():
        typical, *others = (_in_unit(name, value) for value in of[prediction.function])
        low, high = np.percentile([typical, *others], [5, 95])
        row = FIGURES[name]
        found.append(
            {
                "name": name,
                "unit": row.unit,
                "published": row.value[0],
                "low": round(float(low), 3),
                "typical": round(typical, 3),
                "high": round(float(high), 3),
                "inside": bool(low <= row.value[1] and row.value[0] <= high),
                "context": row.context,
                "source": row.source,
            }
        )
    return found


def not_predicted() -> list[str]:
    """Figures kept for validation that nothing here predicts."""
    return [
        name for name, row in FIGURES.items() if row.use == VALIDATION and name not in PREDICTED
    ]
