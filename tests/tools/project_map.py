"""Writes docs/map.md, each module with its law and where what is: `python -m tests.tools.project_map`."""

from __future__ import annotations

import ast

from tests.conftest import ROOT

HEAD = """# Map

One line per module, its own first line. Imports point up this page only: a part may use what stands
above it, and `tests/test_layers.py` holds it to that. Regenerate with `python -m tests.tools.project_map`.

Three arguments are everywhere. **S** is the record, `SYSTEM` of `linux/state.py`: everything that the
result of a run depends on but memory. **M** is physical memory, bytes: the guest's, then the host's.
**E** is the engine's scratch, `ENGINE` of `machine/state.py`: decoded code, trace ring, serial port;
nothing in it changes a result. In `machine/` a function takes `core`, one of `S.cores`; in `linux/`
`this_core(S)` is the one that runs the code, and KVM's functions take `vcpu`, as the kernel's do.

"""

# What a KVM or perf engineer asks first: (question, file, function or row that must be there).
QUESTIONS = (
    ("Where is RDPMC's exit handled?", "vpmu_emu/linux/kvm/x86.py", "kvm_emulate_rdpmc"),
    ("Where is a WRMSR that exits handled?", "vpmu_emu/linux/kvm/x86.py", "kvm_emulate_wrmsr"),
    ("What is the number of an MSR, and what are its bits?", "vpmu_emu/machine/msr_index.py",
     "MSR_CORE_PERF_GLOBAL_CTRL"),
    ("Which accesses of a guest exit?", "isa/msrs.toml", "passed"),
    ("Where is the MSR bitmap filled?", "vpmu_emu/linux/kvm/vmx/intercepts.py", "recalc_intercepts"),
    ("Where is the x2APIC's part of it?", "vpmu_emu/linux/kvm/lapic.py", "vmx_update_msr_bitmap_x2apic"),
    ("Where is kvm_pmu_refresh?", "vpmu_emu/linux/kvm/refresh.py", "kvm_pmu_refresh"),
    ("Where is PERFCTR sign-extended?", "vpmu_emu/machine/pmu_rules.py", "perfctr_value"),
    ("Where is the tick?", "vpmu_emu/linux/perf/tick.py", "perf_event_task_tick"),
    ("What is a mode?", "isa/modes.toml", "enable_pmu"),
    ("Who asks which vPMU a guest has?", "vpmu_emu/linux/kvm/pmu_ops.py", "load"),
    ("Where does a guest's counter become a perf event?", "vpmu_emu/linux/kvm/pmu_emulated.py",
     "pmc_reprogram_counter"),
    ("Where does the guest's PMU context go in and out?", "vpmu_emu/linux/kvm/pmu_passthrough.py",
     "kvm_pmu_restore_pmu_context"),
    ("How much does a switch of it write?", "vpmu_emu/linux/kvm/pmu_switch.py", "load_counter"),
    ("Where is the event filter looked up?", "vpmu_emu/linux/kvm/filter.py", "check_pmu_event_filter"),
    ("Where does KVM_SET_PMU_EVENT_FILTER check it?", "vpmu_emu/linux/kvm/eventfilter.py", "make_filter"),
    ("Where does an emulated instruction count?", "vpmu_emu/linux/kvm/trigger.py", "kvm_pmu_trigger_event"),
    ("Where is a guest's PMI delivered?", "vpmu_emu/linux/kvm/pmu.py", "kvm_pmu_deliver_pmi"),
    ("How many NMIs wait for a guest?", "vpmu_emu/linux/kvm/nmi.py", "process_nmi"),
    ("What needs no slow path?", "vpmu_emu/linux/kvm/vmx/vmx.py", "vmx_exit_handlers_fastpath"),
    ("Where do perf's events get counters?", "vpmu_emu/linux/perf/x86.py", "x86_schedule_events"),
    ("Where does perf multiplex?", "vpmu_emu/linux/perf/sched.py", "perf_rotate_context"),
    ("Where is the host's NMI handler?", "vpmu_emu/linux/perf/pmi.py", "default_do_nmi"),
    ("Where do host events stand aside for a guest?", "vpmu_emu/linux/perf/guest.py", "perf_guest_enter"),
    ("Where is perf_event_open?", "vpmu_emu/linux/syscalls/perf.py", "sys_perf_event_open"),
    ("What does a guest's CPUID show?", "vpmu_emu/linux/kvm/cpuid.py", "guest_leaves"),
    ("Where does silicon overflow?", "vpmu_emu/machine/pmu.py", "pmu_check"),
    ("Where is a VM entered and left?", "vpmu_emu/machine/vmx.py", "vm_entry"),
    ("Where is LVTPC masked?", "vpmu_emu/machine/lapic.py", "lapic_deliver_lvt"),
    ("What does the kernel's work cost?", "isa/costs.toml", "perf_event_create_kernel_counter"),
    ("Where does an MSR filter deny an access?", "vpmu_emu/linux/kvm/msrfilter.py", "kvm_msr_allowed"),
    ("Where do exits to the VMM end?", "vpmu_emu/linux/kvm/vmx/exits.py", "complete_userspace_io"),
    ("Who says why no PMI comes?", "vpmu_emu/debug/why.py", "pmi_links"),
    ("Where is an explanation put into words?", "vpmu_emu/views/access.py", "told"),
    ("Where does a run stop and go on from what was saved?", "vpmu_emu/system.py", "restore"),
)

PARTS = (
    ("isa/", "the machine as data"),
    ("guests/", "programs to run: lessons, workloads, includes"),
    ("vpmu_emu/", ""),
    ("vpmu_emu/tables/", ""),
    ("vpmu_emu/asm/", ""),
    ("vpmu_emu/load/", ""),
    ("vpmu_emu/_jit/", ""),
    ("vpmu_emu/machine/", ""),
    ("vpmu_emu/machine/translate/", ""),
    ("vpmu_emu/linux/", ""),
    ("vpmu_emu/linux/perf/", ""),
    ("vpmu_emu/linux/kvm/", ""),
    ("vpmu_emu/linux/kvm/vmx/", ""),
    ("vpmu_emu/linux/syscalls/", ""),
    ("vpmu_emu/views/", ""),
    ("vpmu_emu/setup/", ""),
    ("vpmu_emu/checks/", ""),
    ("vpmu_emu/debug/", ""),
    ("vpmu_emu/traces/", ""),
    ("vpmu_emu/compare/", ""),
    ("vpmu_emu/lab/", ""),
)


def law(path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split())


def text() -> str:
    out = [HEAD]
    for part, says in PARTS:
        folder = ROOT / part
        files = sorted(folder.glob("*.py"))
        data = [] if files else _content(folder)
        if not files and not data:
            continue
        own = law(folder / "__init__.py") if (folder / "__init__.py").exists() else says
        out.append(f"## {part}\n\n{own}\n\n")
        for path in files:
            out += [f"- `{path.name}`: {law(path)}\n"] * (path.name != "__init__.py")
        for path in data:
            first = next(iter(sorted(path.glob("*")))) if path.is_dir() and any(path.iterdir()) else path
            head = _comment(first) if path.is_file() else ""
            out.append(f"- `{path.name}{'/' if path.is_dir() else ''}`{': ' + head if head else ''}\n")
        out.append("\n")
    out.append("## Where is it?\n\n| question | file | look for |\n|---|---|---|\n")
    out += [f"| {question} | `{file}` | `{name}` |\n" for question, file, name in QUESTIONS]
    return "".join(out).rstrip() + "\n"


def _content(folder) -> list:
    # Git keeps no empty folders.
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return [p for p in found if p.is_file() or any(p.iterdir())]


def _comment(path) -> str:
    for line in path.read_text(encoding="utf-8").splitlines():
        words = line.lstrip("#/ ").strip()
        if words:
            return words
    return ""


if __name__ == "__main__":
    (ROOT / "docs" / "map.md").write_text(text(), encoding="utf-8")
