"""vCPU ioctls: while no KVM_RUN is under way, all of a guest's state is in its record row and its VMCS.

The PMU's registers alone are asked of the compiled kernel, for a host event may hold their count.
arch/x86/kvm/x86.c, lapic.c, virt/kvm/kvm_main.c.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

from vpmu_emu.linux import calls
from vpmu_emu.linux.kvm.cpuid import (
    PERF_CAP_PEBS_FORMAT,
    Leaf,
    capabilities_fit,
    has_debug_store,
    leaves_of,
)
from vpmu_emu.linux.kvm.debugregs import (
    KVM_GUESTDBG_ENABLE,
    KVM_GUESTDBG_SINGLESTEP,
    KVM_GUESTDBG_USE_HW_BP,
)
from vpmu_emu.linux.kvm.refresh import few_caps, kvm_pmu_refresh
from vpmu_emu.linux.kvm.run import INVALID_GUEST_STATE
from vpmu_emu.linux.kvm.vm import (
    kvm_set_tsc_offset,
    kvm_synchronize_tsc,
    kvm_vcpu_after_set_cpuid,
    rdtsc,
)
from vpmu_emu.linux.kvm.vmx.vmcs import ALL_ONES, vmcs_read, vmcs_write
from vpmu_emu.linux.state import (
    APIC_SIPI,
    CTX_TASK,
    KVM_REQ_EVENT,
    KVM_REQ_NMI,
    MP_STATE_HALTED,
    MP_STATE_INIT_RECEIVED,
    MP_STATE_RUNNABLE,
    MP_STATE_UNINITIALIZED,
)
from vpmu_emu.linux.syscalls.files import leave_run
from vpmu_emu.linux.syscalls.host import NS_PER_MS, Errno, Host, Restart
from vpmu_emu.linux.syscalls.signals import SIGSET, UNBLOCKABLE
from vpmu_emu.linux.syscalls.tasks import sleep_until
from vpmu_emu.machine import msr_index, processor_flags
from vpmu_emu.machine.breakpoints import DR6_RESET, DR6_TRAPS
from vpmu_emu.machine.clock import tsc_time, tsc_value
from vpmu_emu.machine.control_registers import CR4_KNOWN, HAS_FSGSBASE, HAS_XSAVE, XCR0_KNOWN
from vpmu_emu.machine.lapic import BASE_RESET, LVT_TIMER, VERSION
from vpmu_emu.machine.msr import PAT_BIT_1
from vpmu_emu.machine.msr_access import CPUID_OSXSAVE
from vpmu_emu.machine.processor_flags import X86_CR4_FSGSBASE, X86_CR4_OSXSAVE, X86_EFLAGS_TF
from vpmu_emu.machine.state import N_CPUID, NEVER, REG_FS, REG_GS
from vpmu_emu.machine.vectors import VECTOR_BP, VECTOR_DB
from vpmu_emu.tables.cpus import INDEXED, CpuModel
from vpmu_emu.tables.linux import STRUCTS, constant
from vpmu_emu.tables.modes import kernel_version
from vpmu_emu.tables.msrs import ACCESS_DROP, ACCESS_RO, ACCESS_WO, MSRS, MsrRow, row_of, rules

APIC_BASE_ROW = next(row.number for row in MSRS if row.name == "IA32_APIC_BASE")
RUN_PAGES = 3  # struct kvm_run, the data of port I/O, the ring of coalesced MMIO
MAX_CPUID_ENTRIES = 256
MAX_IO_MSRS = 256
REGS = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip
SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs")
RFLAGS_FIXED = 2
GUESTDBG_INJECT_DB, GUESTDBG_INJECT_BP = (constant(f"KVM_GUESTDBG_INJECT_{name}") for name in ("DB", "BP"))
GUESTDBG = sum(
    constant(f"KVM_GUESTDBG_{name}")
    for name in ("ENABLE", "SINGLESTEP", "USE_SW_BP", "USE_HW_BP", "INJECT_DB", "INJECT_BP")
)
X86_CR0_PE, X86_CR0_PG = int(processor_flags.X86_CR0_PE), int(processor_flags.X86_CR0_PG)
X86_CR0_NW, X86_CR0_CD = int(processor_flags.X86_CR0_NW), int(processor_flags.X86_CR0_CD)
CR0_RESERVED = ALL_ONES & ~int(processor_flags.X86_CR0_ALL)
X86_CR4_PAE = int(processor_flags.X86_CR4_PAE)
EFER_LME, EFER_LMA = int(msr_index.EFER_LME), int(msr_index.EFER_LMA)
EFER_VALID = int(msr_index.EFER_SCE | msr_index.EFER_LME | msr_index.EFER_LMA | msr_index.EFER_NX)
MSR_IA32_APICBASE_ENABLE = int(msr_index.MSR_IA32_APICBASE_ENABLE)
X2APIC_ENABLE = int(msr_index.X2APIC_ENABLE)
DEFAULT_APIC = int(BASE_RESET & msr_index.MSR_IA32_APICBASE_BASE)
APIC = 1 << 9  # CPUID.1:EDX
STI, MOV_SS, NMI = 1, 2, 8  # GUEST_INTERRUPTIBILITY_INFO


def lock(host: Host, k: int) -> None:
    """Take vcpu->mutex: KVM_RUN of another thread has it until it returns.

    Raises:
        Restart: it has; this thread sleeps until that is over, see leave_run().
    """
    vcpu, task = host.S.vcpus[k], host.task
    task.mutex = 0
    if int(vcpu.task) < 0 or int(vcpu.task) == host.task_row:
        return
    task.mutex = k + 1
    sleep_until(host, task, int(NEVER))
    raise Restart(host.cpu)


def _vcpu(host: Host, file: Any) -> Any:
    return host.S.vcpus[int(file.obj)]


def vapic_of(host: Host, k: int) -> Any:
    """The local APIC of vCPU k, on the core that has it loaded or in its record."""
    vcpu = host.S.vcpus[k]
    cpu = int(vcpu.cpu)
    if cpu >= 0 and int(host.S.percpu[cpu].vcpu) == k:
        return host.S.cores[cpu].vapic
    return vcpu.vapic


def _vm(host: Host, vcpu: Any) -> Any:
    return host.S.vms[int(vcpu.vm)]


def release_events(host: Host, k: int) -> None:
    """Give back the perf events of a vCPU's counters (kvm_pmu_destroy, kvm_pmu_reset)."""
    pmu = host.S.vcpus[k].pmu
    for pmc in pmu.pmcs:
        row = int(pmc.perf_event)
        if row < 0:
            continue
        with host.on_cpu(_cpu_of(host, row)):
            host.kernel_call(calls.CALL_PERF_RELEASE, row)
        pmc.perf_event = -1
        pmc.current_config = 0
        pmu.event_count -= 1
        pmu.released += 1
    row = int(pmu.lbr_event)
    if row >= 0:  # intel_pmu_release_guest_lbr_event()
        with host.on_cpu(_cpu_of(host, row)):
            host.kernel_call(calls.CALL_PERF_RELEASE, row)
        pmu.lbr_event = -1
        pmu.event_count -= 1
        pmu.released += 1


def _cpu_of(host: Host, event: int) -> int:
    """The core on which an event of a task is scheduled, -1 if its task does not run."""
    ctx = int(host.S.perf_events[event].ctx)
    if ctx < CTX_TASK:
        return ctx
    task = host.S.tasks[ctx - CTX_TASK]
    return int(task.on_cpu) if task.used else -1


# --- general and system registers -----------------------------------------------------------------------
def _get_regs(host: Host, file: Any, arg: int) -> int:
    vcpu, row = _vcpu(host, file), STRUCTS["kvm_regs"]
    values = {name: int(vcpu.regs[n]) for n, name in enumerate(REGS)}
    values["rsp"] = vmcs_read(host.M, vcpu, "GUEST_RSP")
    rip, rflags = vmcs_read(host.M, vcpu, "GUEST_RIP"), get_rflags(host, vcpu)
    host.copy_to_user(arg, row.new(**values, rip=rip, rflags=rflags).tobytes())
    return 0


def _set_regs(host: Host, file: Any, arg: int) -> int:
    vcpu, row = _vcpu(host, file), STRUCTS["kvm_regs"]
    regs = row.read(host.copy_from_user(arg, row.size))
    for n, name in enumerate(REGS):
        vcpu.regs[n] = regs[name]
    vmcs_write(
        host.M,
        vcpu,
        GUEST_RSP=int(regs["rsp"]),
        GUEST_RIP=int(regs["rip"]),
    )
    set_rflags(host, vcpu, int(regs["rflags"]) | RFLAGS_FIXED)
    vcpu.exception = -1
    return 0


def _segment(name: str, selector: int, base: int, cpl: int, long_mode: bool) -> Any:
    """A segment as 64-bit mode has it: flat, and only its ring and its base matter."""
    code = name == "cs"
    return STRUCTS["kvm_segment"].new(
        base=base,
        limit=0xFFFF_FFFF,
        selector=selector,
        type=11 if code else 3,
        present=1,
        dpl=cpl if name in ("cs", "ss") else selector & 3,
        db=int(not (code and long_mode)),
        s=1,
        l=int(code and long_mode),
        g=1,
        unusable=int(not code and not selector & ~3),
    )


def _get_sregs(host: Host, file: Any, arg: int) -> int:
    vcpu, M = _vcpu(host, file), host.M

    def field(name: str) -> int:
        return vmcs_read(M, vcpu, name)

    efer = field("GUEST_IA32_EFER")
    cpl = field("GUEST_SS_AR_BYTES") >> 5 & 3
    found = STRUCTS["kvm_sregs"].new(
        cr0=field("GUEST_CR0"),
        cr2=int(vcpu.cr2),
        cr3=field("GUEST_CR3"),
        cr4=field("GUEST_CR4"),
        cr8=int(vcpu.vapic.tpr) >> 4,
        efer=efer,
        apic_base=int(vcpu.vapic.apic_base),
    )
    for name in SEGMENTS:
        base = field(f"GUEST_{name.upper()}_BASE") if name in ("fs", "gs") else 0
        selector = field(f"GUEST_{name.upper()}_SELECTOR")
        found[name] = _segment(name, selector, base, cpl, bool(efer & EFER_LMA))
    found["tr"]["base"] = field("GUEST_TR_BASE")
    found["tr"]["limit"] = field("GUEST_TR_LIMIT")
    found["tr"]["selector"] = field("GUEST_TR_SELECTOR")
    found["tr"]["type"], found["tr"]["present"] = 11, 1
    found["ldt"]["selector"], found["ldt"]["unusable"] = field("GUEST_LDTR_SELECTOR"), 1
    for name in ("gdt", "idt"):
        found[name]["base"] = field(f"GUEST_{name.upper()}R_BASE")
        found[name]["limit"] = field(f"GUEST_{name.upper()}R_LIMIT")
    host.copy_to_user(arg, found.tobytes())
    return 0


def _guest_leaf(vcpu: Any, number: int) -> Sequence[int]:
    """EAX to EDX of a leaf that the VMM gave, else zeros."""
    return next((rest for leaf, *rest in leaves_of(vcpu) if leaf == number), (0, 0, 0, 0))


def _cr4_valid_bits(host: Host, vcpu: Any) -> int:
    """What CPUID announces: the host's, and the guest's once the VMM has given it one."""
    has = int(host.core.features) & HAS_FSGSBASE
    if vcpu.n_cpuid:
        has = has and any(leaf == 7 and ebx & 1 for leaf, _, ebx, _, _ in leaves_of(vcpu))
    xsave = int(host.core.features) & HAS_XSAVE
    if vcpu.n_cpuid:
        xsave = xsave and _guest_leaf(vcpu, 1)[2] & XSAVE
    return int(CR4_KNOWN) | (int(X86_CR4_FSGSBASE) if has else 0) | (int(X86_CR4_OSXSAVE) if xsave else 0)


def sregs_are_valid(sregs: Any, cr4_valid: int) -> bool:
    """kvm_is_valid_sregs(), kvm_is_valid_cr4()."""
    cr0, cr4, efer = int(sregs["cr0"]), int(sregs["cr4"]), int(sregs["efer"])
    if efer & EFER_LME and cr0 & X86_CR0_PG:
        if not cr4 & X86_CR4_PAE or not efer & EFER_LMA or int(sregs["cr3"]) >> 52:
            return False
    elif efer & EFER_LMA or sregs["cs"]["l"]:
        return False
    if cr0 & CR0_RESERVED or (cr0 & X86_CR0_NW and not cr0 & X86_CR0_CD):
        return False
    if cr0 & X86_CR0_PG and not cr0 & X86_CR0_PE:
        return False
    return not cr4 & ~cr4_valid and not efer & ~EFER_VALID


def _apic_base_is_valid(vcpu: Any, value: int) -> bool:
    """kvm_apic_set_base() by the VMM: which modes follow each other is not looked at."""
    if value & int(vcpu.msr_reserved[APIC_BASE_ROW]):
        return False
    return value & X2APIC_ENABLE == 0 or value & MSR_IA32_APICBASE_ENABLE != 0


def _set_sregs(host: Host, file: Any, arg: int) -> int:
    vcpu, M, row = _vcpu(host, file), host.M, STRUCTS["kvm_sregs"]
    sregs = row.read(host.copy_from_user(arg, row.size))
    cr4_valid, apic_base = _cr4_valid_bits(host, vcpu), int(sregs["apic_base"])
    if not sregs_are_valid(sregs, cr4_valid) or not _apic_base_is_valid(vcpu, apic_base):
        raise Errno("EINVAL")
    fields = {
        "GUEST_CR0": int(sregs["cr0"]),
        "CR0_READ_SHADOW": int(sregs["cr0"]),
        "GUEST_CR3": int(sregs["cr3"]),
        "GUEST_CR4": int(sregs["cr4"]),
        "CR4_READ_SHADOW": int(sregs["cr4"]),
        "GUEST_IA32_EFER": int(sregs["efer"]),
        "GUEST_SS_AR_BYTES": int(sregs["ss"]["dpl"]) << 5,
        "GUEST_LDTR_SELECTOR": int(sregs["ldt"]["selector"]) & 3,
        "GUEST_TR_SELECTOR": int(sregs["tr"]["selector"]),
        "GUEST_TR_BASE": int(sregs["tr"]["base"]),
        "GUEST_TR_LIMIT": int(sregs["tr"]["limit"]),
    }
    for name in SEGMENTS:
        fields[f"GUEST_{name.upper()}_SELECTOR"] = int(sregs[name]["selector"])
    for name, register in (("fs", REG_FS), ("gs", REG_GS)):
        fields[f"GUEST_{name.upper()}_BASE"] = int(sregs[name]["base"])
        vcpu.regs[register] = sregs[name]["base"]
    for name in ("gdt", "idt"):
        fields[f"GUEST_{name.upper()}R_BASE"] = int(sregs[name]["base"])
        fields[f"GUEST_{name.upper()}R_LIMIT"] = int(sregs[name]["limit"])
    vmcs_write(M, vcpu, **fields)
    vcpu.cr2 = sregs["cr2"]
    vcpu.vapic.tpr = int(sregs["cr8"]) << 4 & 0xF0 | int(vcpu.vapic.tpr) & 0xF
    vcpu.vapic.apic_base = sregs["apic_base"]
    vcpu.recalc_intercepts = 1
    _forget_translations(host)
    return 0


def _forget_translations(host: Host) -> None:
    # The guest's paging may have changed: whoever loads the vCPU next begins with an empty TLB.
    for percpu in host.S.percpu:
        if int(percpu.vcpu) < 0:
            percpu.space = -1


KVM_MAX_XCRS = 16
XSAVE = 1 << 26  # CPUID.1:ECX


def _get_xcrs(host: Host, file: Any, arg: int) -> int:
    vcpu = _vcpu(host, file)
    found = STRUCTS["kvm_xcrs"].new(nr_xcrs=int("xsave" in host.model.features))
    if found["nr_xcrs"]:
        found["xcrs"][0]["value"] = vcpu.xcr0
    host.copy_to_user(arg, found.tobytes())
    return 0


def _set_xcrs(host: Host, file: Any, arg: int) -> int:
    """XCR0 is the only one; its value is looked at as `__kvm_set_xcr` does."""
    vcpu, row = _vcpu(host, file), STRUCTS["kvm_xcrs"]
    given = row.read(host.copy_from_user(arg, row.size))
    if "xsave" not in host.model.features or given["nr_xcrs"] > KVM_MAX_XCRS or given["flags"]:
        raise Errno("EINVAL")
    for entry in given["xcrs"][: int(given["nr_xcrs"])]:
        if entry["xcr"] == 0:
            value = int(entry["value"])
            if not value & 1 or value & ~(_guest_leaf(vcpu, 0xD)[0] & int(XCR0_KNOWN) | 1):
                raise Errno("EINVAL")
            vcpu.xcr0 = value
            break
    return 0


# --- MSRs -----------------------------------------------------------------------------------------------
PMU_FAMILIES = {
    "IA32_PMC", "IA32_PERFEVTSEL", "IA32_A_PMC", "IA32_FIXED_CTR", "IA32_FIXED_CTR_CTRL",
    "IA32_PERF_GLOBAL_STATUS", "IA32_PERF_GLOBAL_CTRL", "IA32_PERF_GLOBAL_STATUS_RESET",
    "IA32_PEBS_ENABLE", "IA32_DS_AREA",
    "MSR_LBR_SELECT", "MSR_LASTBRANCH_TOS", "MSR_LASTBRANCH_{}_FROM_IP", "MSR_LASTBRANCH_{}_TO_IP",
    "MSR_LBR_INFO_{}",
}  # fmt: skip
MSR_IA32_PERF_CAPABILITIES = int(msr_index.MSR_IA32_PERF_CAPABILITIES)
BASES = {"IA32_FS_BASE": REG_FS, "IA32_GS_BASE": REG_GS}


class _NoMsrError(Exception):
    """The guest has no such MSR."""


class _RefusedError(_NoMsrError):
    """It has, but not this value or not now."""


def _family(vcpu: Any, index: int) -> MsrRow:
    """The family of an MSR that the guest has."""
    found = row_of(index)
    if found is None or found[1] >= int(vcpu.msr_n[found[0].number]):
        raise _NoMsrError
    return found[0]


def _place(vcpu: Any, path: str) -> tuple[Any, str]:
    """(record, name) of a field of the vCPU's row, such as vapic.apic_base."""
    *outer, name = path.split(".")
    return reduce(getattr, outer, vcpu), name


def pmu_msr(host: Host, k: int, index: int, value: int | None = None) -> int:
    """Read a PMU register of vCPU k by the mode's own handler, or write it as the VMM does.

    Raises:
        _NoMsrError: the handler refuses.
    """
    S = host.S
    S.this_vcpu = k
    # An event that counts is on the core of its task.
    pmu = S.vcpus[k].pmu
    rows = [row for row in (*(int(p.perf_event) for p in pmu.pmcs), int(pmu.lbr_event)) if row >= 0]
    with host.on_cpu(next((_cpu_of(host, row) for row in rows), -1)):
        if value is None:
            refused = host.kernel_call(calls.CALL_GET_MSR, index)
        else:
            refused = host.kernel_call(calls.CALL_SET_MSR, index, value - (value >> 63 << 64))
    if refused:
        raise _RefusedError
    return int(S.msr_value)


def _tsc(host: Host, vcpu: Any) -> int:
    return rdtsc(host.S) + vmcs_read(host.M, vcpu, "TSC_OFFSET") & ALL_ONES


def get_msr(host: Host, k: int, index: int) -> int:
    """kvm_get_msr() by the VMM.

    Raises:
        _NoMsrError: the guest has no such MSR.
    """
    vcpu = host.S.vcpus[k]
    if _without_pdcm(host, index):
        return int(vcpu.perf_capabilities)
    row = _family(vcpu, index)
    name, access = row.name, int(vcpu.msr_access[row.number])
    if access == ACCESS_DROP:
        return 0
    if access == ACCESS_WO:
        raise _NoMsrError
    if name in PMU_FAMILIES:
        return pmu_msr(host, k, index)
    if name == "IA32_TIME_STAMP_COUNTER":
        return _tsc(host, vcpu)
    if name == "IA32_TSC_DEADLINE":
        present = _lvtt_tscdeadline(vcpu.vapic) and int(vcpu.vapic.apic_base) & MSR_IA32_APICBASE_ENABLE
        return int(vcpu.vapic.tsc_deadline) if present else 0
    if row.lives.vcpu:
        held, field = _place(vcpu, row.lives.vcpu)
        return int(held[field])
    if row.lives.vmcs:
        return vmcs_read(host.M, vcpu, row.lives.vmcs)
    raise _NoMsrError


def _without_pdcm(host: Host, index: int) -> bool:
    """Whether the VMM has IA32_PERF_CAPABILITIES whatever CPUID says: kernels before 6.12."""
    return index == MSR_IA32_PERF_CAPABILITIES and int(host.S.config.kernel) < kernel_version(6, 12)


def _set_perf_capabilities(host: Host, k: int, value: int) -> None:
    vcpu = host.S.vcpus[k]
    if not capabilities_fit(host.model.shape(), value, few_caps(host.S, int(vcpu.vm))):
        raise _RefusedError
    if value & PERF_CAP_PEBS_FORMAT and not has_debug_store(leaves_of(vcpu)):
        raise _RefusedError
    if value == int(vcpu.perf_capabilities):
        return
    if vcpu.launched:  # feature MSRs are immutable once the vCPU has run
        raise _RefusedError
    vcpu.perf_capabilities = value
    release_events(host, k)
    kvm_pmu_refresh(host.S, host.M, host.model, k)


def _lvtt_tscdeadline(vapic: Any) -> bool:
    return int(vapic.lvt[LVT_TIMER]) & int(msr_index.APIC_LVT_TIMER_MASK) == int(
        msr_index.APIC_LVT_TIMER_TSCDEADLINE
    )


def set_deadline(host: Host, vcpu: Any, value: int) -> None:
    """kvm_set_lapic_tscdeadline_msr()."""
    vapic, now = vcpu.vapic, int(host.core.t)
    if not _lvtt_tscdeadline(vapic) or not int(vapic.apic_base) & MSR_IA32_APICBASE_ENABLE:
        return
    vapic.tsc_deadline = value
    wait = value - _tsc(host, vcpu)
    due = tsc_time(host.core, tsc_value(host.core, now) + wait) if wait > 0 else now
    vapic.timer_at = NEVER if value == 0 else due


def _canonical(value: int) -> int:
    """__canonical_address() with 48 bits."""
    return (value & (1 << 48) - 1 ^ 1 << 47) - (1 << 47) & ALL_ONES


def set_msr(host: Host, k: int, index: int, value: int) -> None:
    """kvm_set_msr() by the VMM.

    Raises:
        _NoMsrError: the guest has no such MSR, or the value is refused.
    """
    vcpu = host.S.vcpus[k]
    if _without_pdcm(host, index):
        _set_perf_capabilities(host, k, value)
        return
    row = _family(vcpu, index)
    name, access = row.name, int(vcpu.msr_access[row.number])
    if access == ACCESS_DROP:
        return
    if name in PMU_FAMILIES:
        pmu_msr(host, k, index, value)
        return
    if name == "IA32_PERF_CAPABILITIES":
        _set_perf_capabilities(host, k, value)
        return
    if access == ACCESS_RO or value & int(vcpu.msr_reserved[row.number]):
        raise _RefusedError
    if row.kvm.canonical == "fault" and _canonical(value) != value:
        raise _RefusedError
    if name == "IA32_PAT" and value & int(PAT_BIT_1) & ~(value >> 1):
        raise _RefusedError
    if row.kvm.canonical == "made":
        value = _canonical(value)
    elif name == "IA32_SYSENTER_CS":
        value &= 0xFFFF_FFFF
    if name == "IA32_TIME_STAMP_COUNTER":
        kvm_synchronize_tsc(host.S, host.M, k, value)
    elif name == "IA32_TSC_DEADLINE":
        set_deadline(host, vcpu, value)
    elif name == "IA32_APIC_BASE":
        if not _apic_base_is_valid(vcpu, value):
            raise _RefusedError
        vcpu.vapic.apic_base = value
        vcpu.recalc_intercepts = 1
    elif row.lives.vcpu:
        held, field = _place(vcpu, row.lives.vcpu)
        held[field] = value
    elif row.lives.vmcs:
        vmcs_write(host.M, vcpu, **{row.lives.vmcs: value})
        if name in BASES:
            vcpu.regs[BASES[name]] = value
    elif name != "IA32_PRED_CMD":
        raise _NoMsrError


# msrs_to_save_base[], msrs_to_save_pmu[], emulated_msrs_all[], as far as there is a model of them
MSRS_TO_SAVE = (
    "IA32_SYSENTER_CS", "IA32_SYSENTER_ESP", "IA32_SYSENTER_EIP",
    "IA32_STAR", "IA32_CSTAR", "IA32_KERNEL_GS_BASE", "IA32_FMASK", "IA32_LSTAR", "IA32_TIME_STAMP_COUNTER",
    "IA32_PAT", "IA32_TSC_AUX",
    "IA32_FIXED_CTR", "IA32_FIXED_CTR_CTRL", "IA32_PERF_GLOBAL_STATUS", "IA32_PERF_GLOBAL_CTRL",
    "IA32_PEBS_ENABLE", "IA32_DS_AREA", "MSR_PEBS_DATA_CFG", "IA32_PMC", "IA32_PERFEVTSEL",
    "IA32_TSC_DEADLINE", "IA32_PERF_CAPABILITIES", "IA32_MISC_ENABLE", "MSR_POWER_CTL",
)  # fmt: skip


def msrs_to_save(host: Host) -> list[int]:
    """KVM_GET_MSR_INDEX_LIST: a counter is in it once; what KVM_GET_SREGS has, or only clears, is not.

    Whether one is in it is the host's business (kvm_probe_msr_to_save), whatever guests get.
    """
    return msrs_supported(host.model, bool(host.S.config.enable_pmu), int(host.S.config.fixed_cap))


def msrs_supported(model: CpuModel, enable_pmu: bool, fixed_cap: int) -> list[int]:
    """The same for a host of this model."""
    on_host = rules("hw", model.shape()).exists_count
    off = set() if enable_pmu else PMU_FAMILIES | {"MSR_PEBS_DATA_CFG"}
    most = {"IA32_FIXED_CTR": fixed_cap}
    rows = {row.name: (k, row) for k, row in enumerate(MSRS)}
    found = (rows[name] for name in MSRS_TO_SAVE if name not in off)
    return [
        row.index + n * row.stride
        for k, row in found
        for n in range(min(int(on_host[k]), most.get(row.name, row.count)))
    ]


def _absent_is_fine(host: Host, index: int, value: int) -> bool:
    """An MSR of KVM_GET_MSR_INDEX_LIST that this guest lacks may be read as 0 and written 0."""
    return value == 0 and index in msrs_to_save(host)


def msrs_from_user(host: Host, arg: int) -> tuple[int, Any]:
    """(size of struct kvm_msrs, a copy of its entries)."""
    row = STRUCTS["kvm_msrs"]
    n = int(row.read(host.copy_from_user(arg, row.size))["nmsrs"])
    if n >= MAX_IO_MSRS:
        raise Errno("E2BIG")
    size = STRUCTS["kvm_msr_entry"].size
    return row.size, row.tails(bytes(row.size) + host.copy_from_user(arg + row.size, n * size)).copy()


def _get_msrs(host: Host, file: Any, arg: int) -> int:
    at, entries = msrs_from_user(host, arg)
    done = 0
    for entry in entries:
        try:
            entry["data"] = get_msr(host, int(file.obj), int(entry["index"]))
        except _RefusedError:
            break
        except _NoMsrError:
            if not _absent_is_fine(host, int(entry["index"]), 0):
                break
            entry["data"] = 0
        done += 1
    host.copy_to_user(arg + at, entries.tobytes())
    return done


def _set_msrs(host: Host, file: Any, arg: int) -> int:
    _, entries = msrs_from_user(host, arg)
    done = 0
    for entry in entries:
        try:
            set_msr(host, int(file.obj), int(entry["index"]), int(entry["data"]))
        except _RefusedError:
            break
        except _NoMsrError:
            if not _absent_is_fine(host, int(entry["index"]), int(entry["data"])):
                break
        done += 1
    return done


KVM_X86_REG_MSR = 0x2030_0002_0000_0000  # x86, 64 bits, type MSR; the index is in the low half


def _one_reg(host: Host, arg: int) -> tuple[int, int]:
    """(MSR, address of its value); the registers of KVM itself have no model."""
    row = STRUCTS["kvm_one_reg"]
    reg = row.read(host.copy_from_user(arg, row.size))
    if int(host.S.config.kernel) < kernel_version(6, 18) or int(reg["id"]) >> 32 << 32 != KVM_X86_REG_MSR:
        raise Errno("EINVAL")
    return int(reg["id"]) & 0xFFFF_FFFF, int(reg["addr"])


def _get_one_reg(host: Host, file: Any, arg: int) -> int:
    index, at = _one_reg(host, arg)
    try:
        value = get_msr(host, int(file.obj), index)
    except _NoMsrError as error:
        if isinstance(error, _RefusedError) or not _absent_is_fine(host, index, 0):
            raise Errno("EINVAL") from None
        value = 0
    host.put_user(at, value, 8)
    return 0


def _set_one_reg(host: Host, file: Any, arg: int) -> int:
    index, at = _one_reg(host, arg)
    value = host.get_user(at, 8)
    try:
        set_msr(host, int(file.obj), index, value)
    except _NoMsrError as error:
        if isinstance(error, _RefusedError) or not _absent_is_fine(host, index, value):
            raise Errno("EINVAL") from None
    return 0


def _get_reg_list(host: Host, file: Any, arg: int) -> int:
    """What KVM_GET_ONE_REG has besides MSRs: shadow stack pointers, so nothing."""
    if int(host.S.config.kernel) < kernel_version(6, 18):
        raise Errno("EINVAL")
    host.get_user(arg, 8)
    host.put_user(arg, 0, 8)
    return 0


# --- attributes and capabilities --------------------------------------------------------------------------
def _tsc_offset_attr(host: Host, arg: int) -> int:
    """Address of the value of KVM_VCPU_TSC_OFFSET, the only attribute of a vCPU."""
    row = STRUCTS["kvm_device_attr"]
    attr = row.read(host.copy_from_user(arg, row.size))
    wanted = constant("KVM_VCPU_TSC_CTRL"), constant("KVM_VCPU_TSC_OFFSET")
    if (int(attr["group"]), int(attr["attr"])) != wanted:
        raise Errno("ENXIO")
    return int(attr["addr"])


def _has_device_attr(host: Host, file: Any, arg: int) -> int:
    _tsc_offset_attr(host, arg)
    return 0


def _get_device_attr(host: Host, file: Any, arg: int) -> int:
    at = _tsc_offset_attr(host, arg)
    host.put_user(at, vmcs_read(host.M, _vcpu(host, file), "TSC_OFFSET"), 8)
    return 0


def _set_device_attr(host: Host, file: Any, arg: int) -> int:
    """kvm_arch_tsc_set_attr(): vCPUs that are given the same offset have one TSC."""
    offset = host.get_user(_tsc_offset_attr(host, arg), 8)
    kvm_set_tsc_offset(host.S, host.M, int(file.obj), offset)
    return 0


def _enable_cap(host: Host, file: Any, arg: int) -> int:
    row = STRUCTS["kvm_enable_cap"]
    cap = row.read(host.copy_from_user(arg, row.size))
    if cap["flags"] or int(cap["cap"]) != constant("KVM_CAP_ENFORCE_PV_FEATURE_CPUID"):
        raise Errno("EINVAL")
    _vcpu(host, file).pv_enforce = int(bool(cap["args"][0]))
    return 0


# --- CPUID ----------------------------------------------------------------------------------------------
def _with_runtime(M: Any, vcpu: Any, leaves: list[Leaf]) -> list[Leaf]:
    """kvm_update_cpuid_runtime(): CPUID.1:EDX[9] follows IA32_APIC_BASE, ECX[27] CR4.OSXSAVE."""
    on = APIC if int(vcpu.vapic.apic_base) & MSR_IA32_APICBASE_ENABLE else 0
    if vmcs_read(M, vcpu, "GUEST_CR4") & int(X86_CR4_OSXSAVE):
        os_xsave = int(CPUID_OSXSAVE)
    else:
        os_xsave = 0
    return [
        (n, a, b, c & ~int(CPUID_OSXSAVE) | os_xsave, d & ~APIC | on) if n == 1 else (n, a, b, c, d)
        for n, a, b, c, d in leaves
    ]


def _set_cpuid2(host: Host, file: Any, arg: int) -> int:
    vcpu, row, k = _vcpu(host, file), STRUCTS["kvm_cpuid2"], int(file.obj)
    nent = int(row.read(host.copy_from_user(arg, row.size))["nent"])
    if nent > min(MAX_CPUID_ENTRIES, N_CPUID):
        raise Errno("E2BIG")
    size = STRUCTS["kvm_cpuid_entry2"].size
    entries = row.tails(bytes(row.size) + host.copy_from_user(arg + row.size, nent * size))
    leaves: list[Leaf] = [
        (int(e["function"]), int(e["eax"]), int(e["ebx"]), int(e["ecx"]), int(e["edx"]))
        for e in entries
        if e["index"] == 0 or not e["flags"] & 1
    ]
    if vcpu.launched:  # kvm_cpuid_check_equal()
        if _with_runtime(host.M, vcpu, leaves) != _with_runtime(host.M, vcpu, leaves_of(vcpu)):
            raise Errno("EINVAL")
        return 0
    for leaf, eax, *_ in leaves:  # kvm_check_cpuid()
        if leaf == 0x8000_0008 and eax >> 8 & 0xFF not in (0, 48, 57):
            raise Errno("EINVAL")
    release_events(host, k)
    kvm_vcpu_after_set_cpuid(host.S, host.M, host.model, k, leaves)
    return 0


def _get_cpuid2(host: Host, file: Any, arg: int) -> int:
    vcpu = _vcpu(host, file)
    return give_cpuid(host, arg, _with_runtime(host.M, vcpu, leaves_of(vcpu)))


def give_cpuid(host: Host, arg: int, leaves: Sequence[tuple[int, int, int, int, int]]) -> int:
    """Write (leaf, EAX, EBX, ECX, EDX) to a struct kvm_cpuid2, which must have room for all of them."""
    row, entry = STRUCTS["kvm_cpuid2"], STRUCTS["kvm_cpuid_entry2"]
    if int(row.read(host.copy_from_user(arg, row.size))["nent"]) < len(leaves):
        raise Errno("E2BIG")
    data = row.new(nent=len(leaves)).tobytes()
    for leaf, eax, ebx, ecx, edx in leaves:
        flags = int(leaf in INDEXED)  # KVM_CPUID_FLAG_SIGNIFCANT_INDEX
        data += entry.new(function=leaf, flags=flags, eax=eax, ebx=ebx, ecx=ecx, edx=edx).tobytes()
    host.copy_to_user(arg, data)
    return 0


# --- local APIC and events ------------------------------------------------------------------------------
# registers of the page by offset: field of the record; LVT entries from 0x320 on are lvt[1:]
APIC_REGISTERS = {
    0x80: "tpr", 0xD0: "ldr", 0xE0: "dfr", 0xF0: "spiv", 0x280: "esr", 0x380: "init_count", 0x3E0: "divide",
}  # fmt: skip
TMCCT = 0x390


def _word(page: bytearray, offset: int, value: int) -> None:
    page[offset : offset + 4] = (value & 0xFFFF_FFFF).to_bytes(4, "little")


def _divisor(vapic: Any) -> int:
    code = int(vapic.divide) & 3 | int(vapic.divide) >> 1 & 4
    return 1 << (code + 1 & 7)


def _get_lapic(host: Host, file: Any, arg: int) -> int:
    vcpu = _vcpu(host, file)
    if not _vm(host, vcpu).irqchip:
        raise Errno("EINVAL")
    vapic, page = vcpu.vapic, bytearray(STRUCTS["kvm_lapic_state"].size)
    _word(page, 0x20, int(vapic.id) << 24)  # the format of KVM_CAP_X2APIC_API off
    _word(page, 0x30, int(VERSION[1]))
    for offset, name in APIC_REGISTERS.items():
        _word(page, offset, int(vapic[name]))
    _word(page, 0x300, int(vapic.icr))
    _word(page, 0x310, int(vapic.icr) >> 32)
    _word(page, 0x2F0, int(vapic.lvt[0]))
    for n in range(1, 7):
        _word(page, 0x310 + 16 * n, int(vapic.lvt[n]))
    for first, words in ((0x100, vapic.isr), (0x200, vapic.irr)):
        for n in range(8):
            _word(page, first + 16 * n, int(words[n // 2]) >> 32 * (n % 2))
    if not _lvtt_tscdeadline(vapic) and int(vapic.timer_at) != NEVER:
        left = max(int(vapic.timer_at) - int(host.core.t), 0)
        _word(page, TMCCT, left * NS_PER_MS // (16 * int(host.S.config.core_khz)) // _divisor(vapic))
    host.copy_to_user(arg, bytes(page))
    return 0


def _set_lapic(host: Host, file: Any, arg: int) -> int:
    vcpu = _vcpu(host, file)
    if not _vm(host, vcpu).irqchip:
        raise Errno("EINVAL")
    vapic, page = vcpu.vapic, host.copy_from_user(arg, STRUCTS["kvm_lapic_state"].size)

    def word(offset: int) -> int:
        return int.from_bytes(page[offset : offset + 4], "little")

    if int(vapic.apic_base) & X2APIC_ENABLE and word(0x20) >> 24 != int(vcpu.vcpu_id):
        raise Errno("EINVAL")  # kvm_apic_state_fixup()
    deadline_before = _lvtt_tscdeadline(vapic)
    vapic.id = word(0x20) >> 24
    for offset, name in APIC_REGISTERS.items():
        vapic[name] = word(offset)
    vapic.icr = word(0x300) | word(0x310) << 32
    vapic.lvt[0] = word(0x2F0)
    for n in range(1, 7):
        vapic.lvt[n] = word(0x310 + 16 * n)
    for first, words in ((0x100, vapic.isr), (0x200, vapic.irr)):
        for n in range(4):
            words[n] = word(first + 32 * n) | word(first + 32 * n + 16) << 32
    if _lvtt_tscdeadline(vapic) != deadline_before:  # apic_update_lvtt()
        vapic.init_count = vapic.tsc_deadline = 0
    _start_apic_timer(host, vcpu, word(TMCCT))
    vcpu.requests |= KVM_REQ_EVENT
    return 0


def _start_apic_timer(host: Host, vcpu: Any, left: int) -> None:
    """__start_apic_timer() with what is left of the count; what has run out is due now."""
    vapic, now = vcpu.vapic, int(host.core.t)
    vapic.timer_at = NEVER
    if _lvtt_tscdeadline(vapic):
        set_deadline(host, vcpu, int(vapic.tsc_deadline))
    elif vapic.init_count:
        period = int(vapic.init_count)
        if not left and int(vapic.lvt[LVT_TIMER]) & int(msr_index.APIC_LVT_TIMER_PERIODIC):
            left = period
        vapic.timer_start = now
        left = min(left, period) * _divisor(vapic)
        vapic.timer_at = now + host.time_of_ns(left)  # APIC_BUS_CYCLE_NS


def _get_vcpu_events(host: Host, file: Any, arg: int) -> int:
    vcpu = _vcpu(host, file)
    host.kernel_call(calls.CALL_PROCESS_NMI, int(file.obj))
    blocking = vmcs_read(host.M, vcpu, "GUEST_INTERRUPTIBILITY_INFO")
    pending = int(vcpu.exception) >= 0
    hard = int(vcpu.interrupt) >= 0 and not int(vcpu.interrupt_soft)
    if pending and vcpu.exception_has_payload:  # without KVM_CAP_EXCEPTION_PAYLOAD DR6 is told now
        vcpu.dr6 = int(vcpu.dr6) & ~int(DR6_TRAPS) | int(DR6_RESET) | int(vcpu.exception_payload)
        vcpu.exception_has_payload = vcpu.exception_payload = 0
    values = {
        # Without KVM_CAP_EXCEPTION_PAYLOAD what is pending is shown as injected, too.
        "exception.injected": int(pending),
        "exception.pending": int(pending and vcpu.exception_pending),
        "exception.nr": int(vcpu.exception) if pending else 0,
        "exception.has_error_code": int(pending and vcpu.exception_has_error),
        "exception.error_code": int(vcpu.exception_error) if pending else 0,
        "interrupt.shadow": (2 if blocking & STI else 0) | (1 if blocking & MOV_SS else 0),
        "interrupt.injected": int(hard),
        "interrupt.nr": max(int(vcpu.interrupt), 0),
        "nmi.injected": int(vcpu.nmi_injected),
        "nmi.pending": int(vcpu.nmi_pending),
        "nmi.masked": int(bool(blocking & NMI)),
        "flags": constant("KVM_VCPUEVENT_VALID_NMI_PENDING")
        | constant("KVM_VCPUEVENT_VALID_SHADOW")
        | constant("KVM_VCPUEVENT_VALID_SMM"),
    }
    host.copy_to_user(arg, STRUCTS["kvm_vcpu_events"].new(**values).tobytes())
    return 0


def _set_vcpu_events(host: Host, file: Any, arg: int) -> int:
    vcpu, row = _vcpu(host, file), STRUCTS["kvm_vcpu_events"]
    events = row.read(host.copy_from_user(arg, row.size))
    flags, nr = int(events["flags"]), int(events["exception.nr"])
    valid = sum(
        constant(f"KVM_VCPUEVENT_VALID_{name}")
        for name in ("NMI_PENDING", "SIPI_VECTOR", "SHADOW", "SMM")
    )
    if flags & ~valid:
        raise Errno("EINVAL")
    injected = bool(events["exception.injected"])
    if injected and (nr > 31 or nr == 2):
        raise Errno("EINVAL")
    if flags & constant("KVM_VCPUEVENT_VALID_SMM") and events["smi.smm"]:
        raise Errno("EINVAL")
    if flags & constant("KVM_VCPUEVENT_VALID_SIPI_VECTOR") and _vm(host, vcpu).irqchip:
        vcpu.sipi_vector = int(events["sipi_vector"]) & 0xFF
    vcpu.exception = nr if injected else -1
    vcpu.exception_pending = 0
    vcpu.interrupt = int(events["interrupt.nr"]) if events["interrupt.injected"] else -1
    vcpu.interrupt_soft = int(bool(events["interrupt.soft"]))
    vcpu.nmi_injected = int(bool(events["nmi.injected"]))
    vcpu.exception_has_payload = vcpu.exception_payload = 0
    vcpu.exception_has_error = int(bool(events["exception.has_error_code"]))
    vcpu.exception_error = events["exception.error_code"]
    blocking = vmcs_read(host.M, vcpu, "GUEST_INTERRUPTIBILITY_INFO") & ~NMI
    blocking |= NMI if events["nmi.masked"] else 0
    if flags & constant("KVM_VCPUEVENT_VALID_SHADOW"):
        shadow = int(events["interrupt.shadow"])
        blocking = blocking & ~(STI | MOV_SS) | (STI if shadow & 2 else 0) | (MOV_SS if shadow & 1 else 0)
    if flags & constant("KVM_VCPUEVENT_VALID_NMI_PENDING"):
        vcpu.nmi_pending, vcpu.nmi_queued = 0, events["nmi.pending"]
        vcpu.requests |= KVM_REQ_NMI
    vmcs_write(host.M, vcpu, GUEST_INTERRUPTIBILITY_INFO=blocking)
    vcpu.requests |= KVM_REQ_EVENT
    return 0


# --- debugging ------------------------------------------------------------------------------------------
def _get_debugregs(host: Host, file: Any, arg: int) -> int:
    vcpu = _vcpu(host, file)
    values = {"db": [int(v) for v in vcpu.db], "dr6": int(vcpu.dr6), "dr7": int(vcpu.dr7)}
    host.copy_to_user(arg, STRUCTS["kvm_debugregs"].new(**values).tobytes())
    return 0


def _set_debugregs(host: Host, file: Any, arg: int) -> int:
    vcpu, row = _vcpu(host, file), STRUCTS["kvm_debugregs"]
    regs = row.read(host.copy_from_user(arg, row.size))
    if regs["flags"] or int(regs["dr6"]) >> 32 or int(regs["dr7"]) >> 32:
        raise Errno("EINVAL")
    vcpu.db[:] = regs["db"]
    vcpu.dr6, vcpu.dr7 = regs["dr6"], regs["dr7"]
    host.kernel_call(calls.CALL_GUEST_DEBUG, int(file.obj))
    return 0


def _set_guest_debug(host: Host, file: Any, arg: int) -> int:
    vcpu, row = _vcpu(host, file), STRUCTS["kvm_guest_debug"]
    asked = row.read(host.copy_from_user(arg, row.size))
    control = int(asked["control"])
    if control & ~GUESTDBG:
        raise Errno("EINVAL")  # KVM_GUESTDBG_BLOCKIRQ is not there
    inject = control & (GUESTDBG_INJECT_DB | GUESTDBG_INJECT_BP)
    if inject:
        if int(vcpu.exception) >= 0:
            raise Errno("EBUSY")
        vcpu.exception = VECTOR_DB if control & GUESTDBG_INJECT_DB else VECTOR_BP
        vcpu.exception_pending = 1
        vcpu.exception_has_error = vcpu.exception_has_payload = 0
    rflags = get_rflags(host, vcpu)
    vcpu.guest_debug = control if control & int(KVM_GUESTDBG_ENABLE) else 0
    debugreg = [int(v) for v in asked["arch.debugreg"]]
    if int(vcpu.guest_debug) & int(KVM_GUESTDBG_USE_HW_BP):
        vcpu.eff_db[:] = debugreg[:4]
        vcpu.guest_debug_dr7 = debugreg[7]
    set_rflags(host, vcpu, rflags)
    host.kernel_call(calls.CALL_GUEST_DEBUG, int(file.obj))
    return 0


def get_rflags(host: Host, vcpu: Any) -> int:
    """kvm_get_rflags(): without the TF by which the VMM steps."""
    stepping = int(vcpu.guest_debug) & int(KVM_GUESTDBG_SINGLESTEP)
    return vmcs_read(host.M, vcpu, "GUEST_RFLAGS") & ~(int(X86_EFLAGS_TF) if stepping else 0)


def set_rflags(host: Host, vcpu: Any, rflags: int) -> None:
    """kvm_set_rflags(), with that TF."""
    stepping = int(vcpu.guest_debug) & int(KVM_GUESTDBG_SINGLESTEP)
    vmcs_write(host.M, vcpu, GUEST_RFLAGS=rflags | (int(X86_EFLAGS_TF) if stepping else 0))


def _get_mp_state(host: Host, file: Any, arg: int) -> int:
    host.kernel_call(calls.CALL_APIC_EVENTS, int(file.obj))
    state = {
        MP_STATE_RUNNABLE: "RUNNABLE",
        MP_STATE_UNINITIALIZED: "UNINITIALIZED",
        MP_STATE_INIT_RECEIVED: "INIT_RECEIVED",
    }.get(int(_vcpu(host, file).mp_state), "HALTED")
    number = constant(f"KVM_MP_STATE_{state}")
    host.copy_to_user(arg, STRUCTS["kvm_mp_state"].new(mp_state=number).tobytes())
    return 0


def _set_mp_state(host: Host, file: Any, arg: int) -> int:
    vcpu, row = _vcpu(host, file), STRUCTS["kvm_mp_state"]
    wanted = int(row.read(host.copy_from_user(arg, row.size))["mp_state"])
    names = {
        "RUNNABLE": MP_STATE_RUNNABLE,
        "HALTED": MP_STATE_HALTED,
        "UNINITIALIZED": MP_STATE_UNINITIALIZED,
        "INIT_RECEIVED": MP_STATE_INIT_RECEIVED,
        "SIPI_RECEIVED": MP_STATE_INIT_RECEIVED,
    }
    states = {constant(f"KVM_MP_STATE_{name}"): state for name, state in names.items()}
    if wanted not in states or (wanted and not _vm(host, vcpu).irqchip):
        raise Errno("EINVAL")
    vcpu.mp_state = states[wanted]
    if wanted == constant("KVM_MP_STATE_SIPI_RECEIVED"):
        vcpu.apic_events |= APIC_SIPI
    return 0


def _nmi(host: Host, file: Any, arg: int) -> int:
    host.kernel_call(calls.CALL_INJECT_NMI, int(file.obj))
    return 0


def _interrupt(host: Host, file: Any, arg: int) -> int:
    vcpu, row = _vcpu(host, file), STRUCTS["kvm_interrupt"]
    irq = int(row.read(host.copy_from_user(arg, row.size))["irq"])
    if irq > 255:
        raise Errno("EINVAL")
    if _vm(host, vcpu).irqchip:  # and its 8259
        raise Errno("ENXIO")
    vcpu.interrupt, vcpu.interrupt_soft = irq, 0
    vcpu.requests |= KVM_REQ_EVENT
    return 0


def _set_signal_mask(host: Host, file: Any, arg: int) -> int:
    """The signal mask that a thread has during KVM_RUN of this vCPU; none: its own."""
    vcpu, row = _vcpu(host, file), STRUCTS["kvm_signal_mask"]
    if not arg:
        vcpu.sigset_active = 0
        return 0
    if int(row.read(host.copy_from_user(arg, row.size))["len"]) != SIGSET:
        raise Errno("EINVAL")
    vcpu.sigset = host.get_user(arg + row.size, SIGSET) & ~UNBLOCKABLE
    vcpu.sigset_active = 1
    return 0


def get_tsc_khz(host: Host, file: Any, arg: int) -> int:
    """Of a vCPU, and of those that a VM will have."""
    return int(host.S.config.tsc_khz)


def set_tsc_khz(host: Host, file: Any, arg: int) -> int:
    """Only the host's."""
    if arg not in (0, int(host.S.config.tsc_khz)):  # no TSC scaling
        raise Errno("EINVAL")
    return 0


# --- KVM_RUN --------------------------------------------------------------------------------------------
def _run(host: Host, file: Any, arg: int) -> int:
    """KVM_RUN: the guest has the core from here on; `finish_run` gives the result.

    Where nothing is wrong compiled code does all this itself: kvm_run_begins(), kvm_run_ends().
    """
    vcpu, k = _vcpu(host, file), int(file.obj)
    if arg:
        raise Errno("EINVAL")
    run = STRUCTS["kvm_run"].view(host.M, int(vcpu.run_page))
    waits = int(vcpu.mp_state) in (MP_STATE_UNINITIALIZED, MP_STATE_INIT_RECEIVED)
    if not waits and not vmcs_read(host.M, vcpu, "GUEST_IA32_EFER") & EFER_LMA:
        # VM entry fails: no unrestricted guest, and nothing but 64-bit mode
        run["exit_reason"] = constant("KVM_EXIT_FAIL_ENTRY")
        run["fail_entry.hardware_entry_failure_reason"] = int(INVALID_GUEST_STATE)
        run["fail_entry.cpu"] = host.cpu
        return 0
    vcpu.user_exit = -1
    host.task.vcpu, vcpu.task = k, host.task_row
    return 0


def finish_run(host: Host, task: Any) -> int:
    """KVM_RUN of the current task returns: its result, the rest of struct kvm_run filled in."""
    result = host.kernel_call(calls.CALL_KVM_RUN_RESULT)
    leave_run(host, task)
    return result


HANDLERS: dict[str, Callable[[Host, Any, int], int]] = {
    "KVM_RUN": _run,
    "KVM_GET_REGS": _get_regs,
    "KVM_SET_REGS": _set_regs,
    "KVM_GET_SREGS": _get_sregs,
    "KVM_SET_SREGS": _set_sregs,
    "KVM_GET_MSRS": _get_msrs,
    "KVM_SET_MSRS": _set_msrs,
    "KVM_GET_LAPIC": _get_lapic,
    "KVM_SET_LAPIC": _set_lapic,
    "KVM_SET_CPUID2": _set_cpuid2,
    "KVM_GET_CPUID2": _get_cpuid2,
    "KVM_GET_MP_STATE": _get_mp_state,
    "KVM_SET_MP_STATE": _set_mp_state,
    "KVM_SET_GUEST_DEBUG": _set_guest_debug,
    "KVM_GET_DEBUGREGS": _get_debugregs,
    "KVM_SET_DEBUGREGS": _set_debugregs,
    "KVM_SET_SIGNAL_MASK": _set_signal_mask,
    "KVM_NMI": _nmi,
    "KVM_INTERRUPT": _interrupt,
    "KVM_GET_VCPU_EVENTS": _get_vcpu_events,
    "KVM_SET_VCPU_EVENTS": _set_vcpu_events,
    "KVM_GET_TSC_KHZ": get_tsc_khz,
    "KVM_SET_TSC_KHZ": set_tsc_khz,
    "KVM_GET_XCRS": _get_xcrs,
    "KVM_SET_XCRS": _set_xcrs,
    "KVM_GET_ONE_REG": _get_one_reg,
    "KVM_SET_ONE_REG": _set_one_reg,
    "KVM_GET_REG_LIST": _get_reg_list,
    "KVM_HAS_DEVICE_ATTR": _has_device_attr,
    "KVM_GET_DEVICE_ATTR": _get_device_attr,
    "KVM_SET_DEVICE_ATTR": _set_device_attr,
    "KVM_ENABLE_CAP": _enable_cap,
}
"""What a vCPU does with each request."""
