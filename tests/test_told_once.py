"""A register's number, a field's bit, a vector: one place defines each, and all others ask it by name."""

from __future__ import annotations

import ast

import numpy as np
import pytest

from tests.conftest import ROOT
from vpmu_emu.linux import irq_vectors
from vpmu_emu.machine import msr_index, processor_flags, vectors
from vpmu_emu.tables.msrs import MSRS, msr_name

pytestmark = pytest.mark.uncompiled

DEFINE = (msr_index, processor_flags, vectors, irq_vectors)
NUMBERS = {row.index + n * row.stride for row in MSRS for n in range(row.count)}
# Numbers that are something else there, as they are written: (file, text): what
OTHERS = {
    ("asm/disassemble.py", "0xC4"): "the prefix VEX",
    ("asm/encode.py", "0xC4"): "the prefix VEX",
    ("asm/instructions.py", "0xC7"): "an opcode, and bits of one",
    ("bench.py", "0xC3"): "the opcode of RET",
    ("machine/decode.py", "0xC4"): "the prefix VEX",
    ("linux/syscalls/perf.py", "0x00C4"): "an event: branches",
    ("linux/syscalls/perf.py", "0x00C5"): "an event: mispredicted branches",
    ("linux/kvm/vmx/intercepts.py", "0x600"): "bytes of a bitmap: KVM_MSR_FILTER_MAX_BITMAP_SIZE",
    ("linux/syscalls/kvm_vcpu.py", "0x390"): "offset of the current count in the page of the local APIC",
}


def defined():
    """Value by name of everything that the modules that define have."""
    found = {}
    for module in DEFINE:
        for name, value in vars(module).items():
            if name.isupper() and isinstance(value, int | np.integer):
                assert found.setdefault(name, int(value)) == int(value), name
    return found


DEFINED = defined()


def sources():
    mine = {module.__file__ for module in DEFINE}
    for path in sorted((ROOT / "vpmu_emu").rglob("*.py")):
        if "tables" not in path.parts and str(path) not in mine:
            yield path.relative_to(ROOT / "vpmu_emu").as_posix(), path.read_text(encoding="utf-8")


def numbers(text):
    """(line, as it is written) of hexadecimal literals that are the number of an MSR."""
    for node in ast.walk(ast.parse(text)):
        # The first thirty-two are counts, sizes and the like everywhere.
        if isinstance(node, ast.Constant) and type(node.value) is int and node.value > 0x1F:
            written = ast.get_source_segment(text, node) or ""
            if node.value in NUMBERS and written.startswith("0x"):
                yield node.lineno, written


def value_of(node):
    """What an expression of literals is, None for any other."""
    known = {"U64": int, "np": np, "ONE": 1}
    names = {leaf.id for leaf in ast.walk(node) if isinstance(leaf, ast.Name)}
    if names - set(known):
        return None
    try:
        value = eval(compile(ast.Expression(node), "<constant>", "eval"), {"__builtins__": {}}, known)
    except (TypeError, ValueError, NameError):
        return None
    return int(value) if isinstance(value, int | np.integer) and not isinstance(value, bool) else None


def copies(text):
    """(line, name, whose) of module constants that are a defined one by name and value."""
    for node in ast.parse(text).body:
        if not isinstance(node, ast.Assign):
            continue
        target = node.targets[0]
        pairs = [(target, node.value)]
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            pairs = list(zip(target.elts, node.value.elts, strict=True))
        for name, expression in pairs:
            if not isinstance(name, ast.Name):
                continue
            value = value_of(expression)
            tail = name.id.strip("_")
            for whose, its in DEFINED.items():
                if value is not None and value == its and (whose == tail or whose.endswith("_" + tail)):
                    yield node.lineno, name.id, whose
                    break


def test_no_code_has_the_number_of_a_register():
    found = {}
    for path, text in sources():
        for line, written in numbers(text):
            found.setdefault((path, written), []).append(line)
    wrong = [f"{path}:{found[path, text][0]}: {text}" for path, text in found.keys() - OTHERS.keys()]
    assert wrong == [], "its name is in machine/msr_index.py"
    assert OTHERS.keys() - found.keys() == set(), "is not there any more"


def test_no_code_defines_a_bit_or_a_vector_again():
    found = [f"{path}:{one[0]}: {one[1]} is {one[2]}" for path, text in sources() for one in copies(text)]
    assert found == []


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("x = 0x38F", ["0x38F"]),
        ("def f(S):\n    return S.msr == U64(0x4C1)", ["0x4C1"]),
        ("EVENTS = [0x309 + i for i in range(3)]", ["0x309"]),
        ("x = 0xC000_0080", ["0xC000_0080"]),
        ("x = 911, 0x10, '0x38f'", []),
    ],
)
def test_a_number_is_seen(text, what):
    assert [written for _, written in numbers(text)] == what


@pytest.mark.parametrize(
    ("text", "whose"),
    [
        ("EVENTSEL_USR = U64(1 << 16)", "ARCH_PERFMON_EVENTSEL_USR"),
        ("_INT = U64(1 << 20)", "ARCH_PERFMON_EVENTSEL_INT"),
        ("CAP_FW_WRITES = 0x2000", "PERF_CAP_FW_WRITES"),
        ("A, CR4_PCE = 1, np.uint64(256)", "X86_CR4_PCE"),
        ("VECTOR_GP = 13", "VECTOR_GP"),
        ("EFER_SCE = ONE", "EFER_SCE"),
        ("LOCAL_TIMER_VECTOR = 0xEC", "LOCAL_TIMER_VECTOR"),
        ("EVENTSEL_USR = U64(1 << 17)", None),
        ("CF = X86_EFLAGS_CF", None),
    ],
)
def test_a_copy_is_seen(text, whose):
    assert [found[2] for found in copies(text)] == ([whose] if whose else [])


# asm/msr-index.h, asm/perf_event.h, asm/apicdef.h, uapi/asm/processor-flags.h, asm/irq_vectors.h
KERNEL = {
    "MSR_IA32_PERFCTR0": 0xC1, "MSR_P6_EVNTSEL0": 0x186, "MSR_IA32_PMC0": 0x4C1,
    "MSR_CORE_PERF_FIXED_CTR0": 0x309, "MSR_CORE_PERF_FIXED_CTR3": 0x30C, "MSR_PERF_METRICS": 0x329,
    "MSR_IA32_PERF_CAPABILITIES": 0x345, "MSR_CORE_PERF_FIXED_CTR_CTRL": 0x38D,
    "MSR_CORE_PERF_GLOBAL_STATUS": 0x38E, "MSR_CORE_PERF_GLOBAL_CTRL": 0x38F,
    "MSR_CORE_PERF_GLOBAL_OVF_CTRL": 0x390, "MSR_CORE_PERF_GLOBAL_STATUS_SET": 0x391,
    "MSR_IA32_PEBS_ENABLE": 0x3F1, "MSR_PEBS_DATA_CFG": 0x3F2, "MSR_IA32_DS_AREA": 0x600,
    "MSR_IA32_DEBUGCTLMSR": 0x1D9, "MSR_LBR_SELECT": 0x1C8, "MSR_LBR_TOS": 0x1C9,
    "MSR_LBR_NHM_FROM_0": 0x680, "MSR_LBR_NHM_TO_0": 0x6C0, "MSR_LBR_INFO_0": 0xDC0,
    "MSR_ARCH_LBR_CTL": 0x14CE, "MSR_ARCH_LBR_DEPTH": 0x14CF, "MSR_ARCH_LBR_INFO_0": 0x1200,
    "MSR_IA32_TSC": 0x10, "MSR_IA32_TSC_DEADLINE": 0x6E0, "MSR_IA32_MISC_ENABLE": 0x1A0,
    "MSR_IA32_APICBASE": 0x1B, "MSR_EFER": 0xC000_0080, "MSR_SYSCALL_MASK": 0xC000_0084,
    "MSR_KERNEL_GS_BASE": 0xC000_0102, "MSR_TSC_AUX": 0xC000_0103, "MSR_K7_PERFCTR0": 0xC001_0004,
    "ARCH_PERFMON_EVENTSEL_EVENT": 0xFF, "ARCH_PERFMON_EVENTSEL_UMASK": 0xFF00,
    "ARCH_PERFMON_EVENTSEL_USR": 1 << 16, "ARCH_PERFMON_EVENTSEL_OS": 1 << 17,
    "ARCH_PERFMON_EVENTSEL_EDGE": 1 << 18, "ARCH_PERFMON_EVENTSEL_PIN_CONTROL": 1 << 19,
    "ARCH_PERFMON_EVENTSEL_INT": 1 << 20, "ARCH_PERFMON_EVENTSEL_ANY": 1 << 21,
    "ARCH_PERFMON_EVENTSEL_ENABLE": 1 << 22, "ARCH_PERFMON_EVENTSEL_INV": 1 << 23,
    "ARCH_PERFMON_EVENTSEL_CMASK": 0xFF00_0000, "HSW_IN_TX": 1 << 32, "HSW_IN_TX_CHECKPOINTED": 1 << 33,
    "ICL_EVENTSEL_ADAPTIVE": 1 << 34, "ICL_FIXED_0_ADAPTIVE": 1 << 32, "INTEL_ARCH_EVENT_MASK": 0xFFFF,
    "X86_RAW_EVENT_MASK": 0xFF84_FFFF, "INTEL_FIXED_BITS_MASK": 0xF, "INTEL_FIXED_0_ENABLE_PMI": 8,
    "PERF_CAP_LBR_FMT": 0x3F, "PERF_CAP_PEBS_FORMAT": 0xF00, "PERF_CAP_FW_WRITES": 1 << 13,
    "PERF_CAP_PEBS_BASELINE": 1 << 14, "PERF_CAP_PERF_METRICS": 1 << 15,
    "GLOBAL_STATUS_BUFFER_OVF": 1 << 62, "GLOBAL_STATUS_COND_CHG": 1 << 63,
    "GLOBAL_STATUS_COUNTERS_FROZEN": 1 << 59, "GLOBAL_STATUS_LBRS_FROZEN": 1 << 58,
    "GLOBAL_STATUS_TRACE_TOPAPMI": 1 << 55, "GLOBAL_CTRL_EN_PERF_METRICS": 1 << 48,
    "DEBUGCTLMSR_LBR": 1, "DEBUGCTLMSR_BTF": 2, "DEBUGCTLMSR_FREEZE_LBRS_ON_PMI": 1 << 11,
    "DEBUGCTLMSR_FREEZE_PERFMON_ON_PMI": 1 << 12, "MSR_IA32_MISC_ENABLE_EMON": 1 << 7,
    "MSR_IA32_MISC_ENABLE_PMU_RO_MASK": 3 << 11, "EFER_SCE": 1, "EFER_LME": 1 << 8, "EFER_LMA": 1 << 10,
    "EFER_NX": 1 << 11, "X2APIC_ENABLE": 1 << 10, "MSR_IA32_APICBASE_ENABLE": 1 << 11,
    "INTEL_PMC_FIXED_RDPMC_BASE": 1 << 30, "INTEL_PMC_FIXED_RDPMC_METRICS": 1 << 29,
    "APIC_LVT_MASKED": 1 << 16, "APIC_LVT_REMOTE_IRR": 1 << 14, "APIC_SEND_PENDING": 1 << 12,
    "APIC_MODE_MASK": 0x700, "APIC_DM_NMI": 0x400, "APIC_DM_INIT": 0x500, "APIC_DM_STARTUP": 0x600,
    "APIC_DEST_SELF": 0x4_0000, "APIC_DEST_ALLINC": 0x8_0000, "APIC_DEST_ALLBUT": 0xC_0000,
    "APIC_DEST_LOGICAL": 0x800, "APIC_INT_LEVELTRIG": 0x8000, "APIC_INT_ASSERT": 0x4000,
    "APIC_LVT_TIMER_PERIODIC": 1 << 17, "APIC_LVT_TIMER_TSCDEADLINE": 2 << 17,
    "APIC_SPIV_APIC_ENABLED": 1 << 8, "X86_CR4_PCE": 1 << 8, "X86_CR4_OSXSAVE": 1 << 18,
    "X86_CR0_PG": 1 << 31, "X86_EFLAGS_IF": 1 << 9, "X86_EFLAGS_AC": 1 << 18, "LOCAL_TIMER_VECTOR": 0xEC,
    "RESCHEDULE_VECTOR": 0xFD, "CALL_FUNCTION_SINGLE_VECTOR": 0xFB,
}  # fmt: skip


def test_names_and_numbers_are_the_kernels():
    assert {name: DEFINED.get(name) for name in KERNEL} == KERNEL


def test_a_number_has_one_name():
    names: dict[int, list[str]] = {}
    for row in MSRS:
        family = (*row.kernel, row.name)[0]
        assert row.instance_name(0, family) in DEFINED, row.name
    for name, value in vars(msr_index).items():
        if name in DEFINED and value in NUMBERS and name.startswith(("MSR_", "IA32_")) and value > 0x1F:
            names.setdefault(int(value), []).append(name)
    twice = {msr_name(value): found for value, found in names.items() if len(found) > 1}
    assert twice == {}
