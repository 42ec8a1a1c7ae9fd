"""A kernel's name that a page says or one looks for is a function, or docs/kernel_names.md says why not."""

from __future__ import annotations

import io
import re
import tokenize

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.uncompiled

LIST = ROOT / "docs" / "kernel_names.md"
PAGES = [
    ROOT / "docs" / f"{name}.md"
    for name in ("modes", "divergences", "perf", "watchdog", "host", "pmu", "platform", "interpreter")
]
# What somebody who knows KVM or perf greps for first, whether a page says it or not.
LOOKED_FOR = """
vcpu_run vcpu_enter_guest vmx_vcpu_run vmx_handle_exit handle_exit_irqoff vmx_exit_handlers_fastpath
kvm_emulate_rdmsr kvm_emulate_wrmsr kvm_emulate_rdpmc complete_emulated_rdmsr
complete_emulated_wrmsr kvm_get_msr_common kvm_set_msr_common kvm_msr_allowed kvm_msr_user_space
kvm_vm_ioctl_set_msr_filter vmx_recalc_msr_intercepts vmx_set_intercept_for_msr recalc_intercepts
kvm_arch_vcpu_load kvm_arch_vcpu_put vmx_vcpu_load kvm_vcpu_ioctl kvm_skip_emulated_instruction
kvm_check_and_inject_events kvm_queue_exception process_nmi kvm_inject_nmi kvm_apic_set_irq
kvm_apic_local_deliver kvm_lapic_expired_hv_timer kvm_pmu_refresh kvm_pmu_handle_event
kvm_pmu_deliver_pmi kvm_pmu_trigger_event kvm_pmu_incr_counter kvm_pmu_cleanup kvm_pmu_is_valid_msr
kvm_pmu_rdpmc kvm_pmu_rdpmc_vmware is_vmware_backdoor_pmc check_pmu_event_filter reprogram_counter
pmc_reprogram_counter pmc_pause_counter pmc_resume_counter pmc_read_counter pmc_write_counter
kvm_perf_overflow intel_pmu_handle_lbr_msrs_access intel_pmu_cross_mapped_check
kvm_pmu_save_pmu_context kvm_pmu_restore_pmu_context perf_guest_enter perf_guest_exit
perf_guest_switch_to_kvm_pmi_vector perf_guest_switch_to_host_pmi_vector perf_event_nmi_handler
intel_pmu_handle_irq handle_pmi_common perf_event_overflow perf_event_task_tick perf_rotate_context
perf_adjust_freq_unthr_context x86_schedule_events x86_pmu_enable x86_pmu_start x86_pmu_stop
x86_perf_event_update x86_perf_event_set_period perf_event_create_kernel_counter
perf_event_release_kernel perf_event_pause perf_event_period perf_event_enable perf_event_disable
perf_event_read_value perf_event_sched_in ctx_sched_in ctx_sched_out group_sched_in event_sched_in
event_sched_out
"""
ROW = re.compile(r"^\| `(\w+)` \| `([\w/]+\.py)`: `(\w+)` \| (.+) \|$", re.MULTILINE)
CITED = re.compile(r"(?<![\w/.*])(_*[a-z][a-z0-9]*(?:_[a-z0-9]+)+)(?:\(\))?(?![\w/.=])")


def rows():
    return {name: (path, where, why) for name, path, where, why in ROW.findall(LIST.read_text("utf-8"))}


def cited(page):
    """Names of the kernel's form in the code spans of a page."""
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL))
    return {name for span in spans for name in CITED.findall(span)}


def sources():
    return [path.read_text("utf-8") for path in (ROOT / "vpmu_emu").rglob("*.py")]


def functions():
    form = re.compile(r"^\s*(?:def|class) (\w+)", re.MULTILINE)
    return {name for text in sources() for name in form.findall(text)}


def data():
    """Names of fields, variables, parameters, keys and files: they are there, and no functions."""
    found = set()
    for text in sources():
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.NAME:
                found.add(token.string)
            elif token.type == tokenize.STRING and " " not in token.string:
                found.update(re.findall(r"\w+", token.string))
    # Rows of costs are functions of the kernel, but for those that have the name of a field or a call.
    found -= set(re.findall(r"^\[(\w+)\]", (ROOT / "isa" / "costs.toml").read_text("utf-8"), re.MULTILINE))
    for path in (ROOT / "isa").rglob("*.toml"):
        if path.name != "costs.toml":
            # `by` of msrs.toml is what a page says.
            text = re.sub(r"#[^\n]*|^by = .*", "", path.read_text("utf-8"), flags=re.MULTILINE)
            found.update(re.findall(r"\w+", text))
    return found


def test_every_kernel_name_of_the_pages_is_a_function_or_in_the_list():
    known = functions() | data() | set(rows())
    missing = {page.name: sorted(cited(page) - known) for page in PAGES if cited(page) - known}
    assert missing == {}


def test_what_is_looked_for_is_a_function_or_in_the_list():
    assert sorted(set(LOOKED_FOR.split()) - functions() - set(rows())) == []


def test_the_list_is_true():
    table = rows()
    lines = [line for line in LIST.read_text("utf-8").splitlines() if line.startswith("| `")]
    assert len(table) == len(lines), "a row is | `name` | `file.py`: `function` | why |"
    assert list(table) == sorted(table, key=lambda name: name.lstrip("_"))
    used = set(LOOKED_FOR.split()).union(*map(cited, PAGES))
    here = functions()
    for name, (path, where, why) in table.items():
        assert name not in here, f"{name} is a function: it needs no row"
        assert name in used, f"{name}: no page says it"
        text = (ROOT / "vpmu_emu" / path).read_text("utf-8")
        assert f"def {where}(" in text, f"{name}: no {where} in {path}"
        assert len(why) > 10
