"""/dev/kvm and VMs as a VMM sees them: every ioctl that is wrong gets the errno that Linux gives.

virt/kvm/kvm_main.c, arch/x86/kvm/x86.c. vCPUs are in `kvm_vcpu.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vpmu_emu.errors import ConfigError
from vpmu_emu.linux import state
from vpmu_emu.linux.calls import CALL_APIC_SET_IRQ, CALL_CREATE_MEDIATED_PMU
from vpmu_emu.linux.kvm.cpuid import check_mediated_pmu, supported_leaves, supported_perf_cap
from vpmu_emu.linux.kvm.eventfilter import make_filter
from vpmu_emu.linux.kvm.module import carries, vpmu_of
from vpmu_emu.linux.kvm.refresh import kvm_pmu_refresh, refresh_intercepts
from vpmu_emu.linux.kvm.vm import (
    VCPU_PAGES,
    kvm_create_vcpu,
    kvm_create_vm,
    rdtsc,
    set_event_filter,
)
from vpmu_emu.linux.kvm.vmx.intercepts import MSR_FILTER_PAGES, set_msr_filter
from vpmu_emu.linux.printk import LOG_MEDIATED, say
from vpmu_emu.linux.syscalls import kvm_vcpu
from vpmu_emu.linux.syscalls.files import DEVICES, OPERATIONS, Operations, open_row, opened, room
from vpmu_emu.linux.syscalls.host import Errno, Host, failed
from vpmu_emu.linux.syscalls.mm import add_vma, place, unmap
from vpmu_emu.linux.syscalls.pagetables import PAGE
from vpmu_emu.machine import msr_index
from vpmu_emu.machine.state import N_SLOTS
from vpmu_emu.tables.linux import IOCTLS, STRUCTS, constant
from vpmu_emu.tables.modes import MODES, kernel_version, mode_of

KVM_MAX_VCPU_IDS = 4096
VM_VPMU = 0x766D_0000  # types of VMs from here on: the rows of isa/modes.toml
KVM_USER_MEM_SLOTS = 32764
KVM_MEM_MAX_NR_PAGES = (1 << 31) - 1
USER_SPACE_END = (1 << 47) - PAGE
MAX_BITMAP = constant("KVM_MSR_FILTER_MAX_BITMAP_SIZE")
FILTER_READ_WRITE = constant("KVM_MSR_FILTER_READ") | constant("KVM_MSR_FILTER_WRITE")
DEFAULT_DENY = constant("KVM_MSR_FILTER_DEFAULT_DENY")
PMU_CAP_DISABLE = constant("KVM_PMU_CAP_DISABLE")
MASKED_EVENTS = constant("KVM_PMU_EVENT_FLAG_MASKED_EVENTS")
MSR_EXIT_REASONS = sum(
    constant(f"KVM_MSR_EXIT_REASON_{name}") for name in ("INVAL", "UNKNOWN", "FILTER")
)

CLOCK_FLAGS = sum(constant(f"KVM_CLOCK_{name}") for name in ("TSC_STABLE", "REALTIME", "HOST_TSC"))
MAX_RESERVED_PINS = 24  # MAX_NR_RESERVED_IOAPIC_PINS
LAST_TSS_ADDR = (1 << 32) - 3 * PAGE
APIC_DEST_LOGICAL = int(msr_index.APIC_DEST_LOGICAL)
MSI_LOGICAL = 1 << 2

Handler = Callable[[Host, Any, int], int]


# --- the device -----------------------------------------------------------------------------------------
def _get_api_version(host: Host, file: Any, arg: int) -> int:
    if arg:
        raise Errno("EINVAL")
    return constant("KVM_API_VERSION")


def _create_vm(host: Host, file: Any, arg: int) -> int:
    vpmu = _asked_vpmu(host, arg)
    row = next((k for k in range(state.N_VMS) if not host.S.vms[k].used), None)
    if row is None:
        raise Errno("ENOMEM")
    fd = open_row(host, int(host.task.mm), state.FILE_VM, row, constant("O_RDWR"))
    kvm_create_vm(host.S, row, int(host.task.mm), vpmu)
    return fd


def _asked_vpmu(host: Host, kind: int) -> int:
    """The vPMU of KVM_CREATE_VM's type: 0 (KVM_X86_DEFAULT_VM) is the usual one, VM_VPMU + n is mode n.

    The latter is no type of Linux's. `config.other_vpmu` is what is usual beside the VMM.
    """
    other = int(host.S.config.other_vpmu) if int(host.task.program) else -1
    if not kind:
        return other
    rows = tuple(MODES.values())
    loaded = mode_of(host.S.config)
    if not VM_VPMU <= kind < VM_VPMU + len(rows) or carries(loaded, rows[kind - VM_VPMU]):
        raise Errno("EINVAL")
    mode = rows[kind - VM_VPMU]
    if mode.owns_pmu and not mode.kernel.series:
        try:
            check_mediated_pmu(host.model.shape())
        except ConfigError:
            raise Errno("EINVAL") from None
    return vpmu_of(mode, host.model.version, int(host.S.config.without))


def _check_extension(host: Host, file: Any, arg: int) -> int:
    pmu, kernel = int(host.S.config.enable_pmu), int(host.S.config.kernel)
    yes = (
        "IRQCHIP", "HLT", "USER_MEMORY", "EXT_CPUID", "MP_STATE", "USER_NMI", "VCPU_EVENTS",
        "SET_GUEST_DEBUG", "DEBUGREGS",
        "GET_TSC_KHZ", "TSC_DEADLINE_TIMER", "ENABLE_CAP_VM", "CHECK_EXTENSION_VM", "IMMEDIATE_EXIT",
        "X86_MSR_FILTER", "PMU_EVENT_FILTER", "PMU_EVENT_MASKED_EVENTS", "NOP_IO_DELAY", "SYNC_MMU",
        "DESTROY_MEMORY_REGION_WORKS", "JOIN_MEMORY_REGIONS_WORKS", "INTERNAL_ERROR_DATA",
        "GET_MSR_FEATURES", "SET_TSS_ADDR", "SET_IDENTITY_MAP_ADDR", "SET_BOOT_CPU_ID", "SIGNAL_MSI",
        "SPLIT_IRQCHIP", "VCPU_ATTRIBUTES", "ENFORCE_PV_FEATURE_CPUID", "INTR_SHADOW", "XCRS",
    )  # fmt: skip
    numbers = {
        "NR_VCPUS": host.online_cpus().bit_count(),
        "MAX_VCPUS": state.N_VCPUS,
        "MAX_VCPU_ID": KVM_MAX_VCPU_IDS,
        "NR_MEMSLOTS": N_SLOTS,
        "X86_USER_SPACE_MSR": MSR_EXIT_REASONS,
        "PMU_CAPABILITY": PMU_CAP_DISABLE if pmu else 0,
        "ONE_REG": int(kernel >= kernel_version(6, 18)),
        "USER_MEMORY2": int(kernel >= kernel_version(6, 8)),
        "VM_TYPES": int(kernel >= kernel_version(6, 8)),
        "ADJUST_CLOCK": CLOCK_FLAGS,
        **dict.fromkeys(yes, 1),
    }
    return next((n for name, n in numbers.items() if constant(f"KVM_CAP_{name}") == arg), 0)


def _get_vcpu_mmap_size(host: Host, file: Any, arg: int) -> int:
    if arg:
        raise Errno("EINVAL")
    return kvm_vcpu.RUN_PAGES * PAGE


def _get_supported_cpuid(host: Host, file: Any, arg: int) -> int:
    leaves = supported_leaves(host.model, mode_of(host.S.config), int(host.S.config.fixed_cap))
    return kvm_vcpu.give_cpuid(host, arg, leaves)


def _get_msr_index_list(host: Host, file: Any, arg: int) -> int:
    row = STRUCTS["kvm_msr_list"]
    room = int(row.read(host.copy_from_user(arg, row.size))["nmsrs"])
    found = kvm_vcpu.msrs_to_save(host)
    host.copy_to_user(arg, row.new(nmsrs=len(found)).tobytes())
    if room < len(found):
        raise Errno("E2BIG")
    host.copy_to_user(arg + row.size, b"".join(index.to_bytes(4, "little") for index in found))
    return 0


def _get_msr_feature_index_list(host: Host, file: Any, arg: int) -> int:
    row = STRUCTS["kvm_msr_list"]
    room = int(row.read(host.copy_from_user(arg, row.size))["nmsrs"])
    host.copy_to_user(arg, row.new(nmsrs=1).tobytes())
    if not room:
        raise Errno("E2BIG")
    host.put_user(arg + row.size, kvm_vcpu.MSR_IA32_PERF_CAPABILITIES, 4)
    return 0


def _get_feature_msrs(host: Host, file: Any, arg: int) -> int:
    """KVM_GET_MSRS on the device: what KVM supports of a feature MSR (do_get_feature_msr)."""
    at, entries = kvm_vcpu.msrs_from_user(host, arg)
    supported = supported_perf_cap(host.model, mode_of(host.S.config))
    done = 0
    for entry in entries:
        if int(entry["index"]) != kvm_vcpu.MSR_IA32_PERF_CAPABILITIES:
            break
        entry["data"] = supported
        done += 1
    host.copy_to_user(arg + at, entries.tobytes())
    return done


# --- VMs ------------------------------------------------------------------------------------------------
def _vcpus(host: Host, vm: int) -> list[Any]:
    return [v for v in host.S.vcpus if v.used and int(v.vm) == vm]


def _precreate_vcpu(host: Host, k: int) -> None:
    """kvm_arch_vcpu_precreate(): a VM's first vCPU makes it one whose guest will own the PMU.

    Without an in-kernel local APIC it silently gets no PMU instead.

    Raises:
        Errno: EBUSY, an event of the host counts in guests.
    """
    vm = host.S.vms[k]
    mediated = int(vm.vpmu) == state.VPMU_MEDIATED and vm.irqchip and not vm.pmu_off
    if mediated and not vm.created_mediated_pmu:
        refused = host.kernel_call(CALL_CREATE_MEDIATED_PMU, k, 0)
        if refused:
            say(host.S, LOG_MEDIATED, 0)
        failed(refused)


def _create_vcpu(host: Host, file: Any, arg: int) -> int:
    S, vm = host.S, int(file.obj)
    if arg >= KVM_MAX_VCPU_IDS:
        raise Errno("EINVAL")
    row = next((k for k in range(state.N_VCPUS) if not S.vcpus[k].used), None)
    if row is None:
        raise Errno("EINVAL")
    _precreate_vcpu(host, vm)
    if any(int(v.vcpu_id) == arg for v in _vcpus(host, vm)):
        raise Errno("EEXIST")
    room(host)
    page = host.alloc_pages(VCPU_PAGES + kvm_vcpu.RUN_PAGES)
    fd = open_row(host, int(host.task.mm), state.FILE_VCPU, row, constant("O_RDWR"))
    kvm_create_vcpu(S, host.M, host.model, row, vm, arg, page)
    kvm_pmu_refresh(S, host.M, host.model, row)  # no CPUID, no PMU; but what a guest must leave for
    vcpu = S.vcpus[row]
    vcpu.run_page = page + VCPU_PAGES * PAGE
    if S.vms[vm].irqchip and arg != int(S.vms[vm].bsp_vcpu_id):
        vcpu.mp_state = state.MP_STATE_UNINITIALIZED
    return fd


def _create_irqchip(host: Host, file: Any, arg: int) -> int:
    vm = host.S.vms[int(file.obj)]
    if vm.irqchip:
        raise Errno("EEXIST")
    if _vcpus(host, int(file.obj)):
        raise Errno("EINVAL")
    vm.irqchip = 1
    return 0


def _set_tss_addr(host: Host, file: Any, arg: int) -> int:
    """Where a real-mode guest would have its TSS; none runs here."""
    if arg > LAST_TSS_ADDR:
        raise Errno("EINVAL")
    return 0


def _set_identity_map_addr(host: Host, file: Any, arg: int) -> int:
    """Where it would have its page table."""
    host.get_user(arg, 8)
    if _vcpus(host, int(file.obj)):
        raise Errno("EINVAL")
    return 0


def _set_boot_cpu_id(host: Host, file: Any, arg: int) -> int:
    if _vcpus(host, int(file.obj)):
        raise Errno("EBUSY")
    if arg > KVM_MAX_VCPU_IDS and int(host.S.config.kernel) >= kernel_version(6, 11):
        raise Errno("EINVAL")
    host.S.vms[int(file.obj)].bsp_vcpu_id = arg
    return 0


def _clock(host: Host, vm: Any) -> int:
    """get_kvmclock_ns(): time since the VM was made, moved by KVM_SET_CLOCK."""
    return host.ns(int(host.core.t) - int(vm.created)) + int(vm.kvmclock_offset) & (1 << 64) - 1


def _get_clock(host: Host, file: Any, arg: int) -> int:
    row = STRUCTS["kvm_clock_data"]
    clock = _clock(host, host.S.vms[int(file.obj)])
    values = {"clock": clock, "flags": CLOCK_FLAGS, "realtime": host.ns(int(host.core.t))}
    host.copy_to_user(arg, row.new(**values, host_tsc=rdtsc(host.S)).tobytes())
    return 0


def _set_clock(host: Host, file: Any, arg: int) -> int:
    row = STRUCTS["kvm_clock_data"]
    data = row.read(host.copy_from_user(arg, row.size))
    vm = host.S.vms[int(file.obj)]
    clock, flags = int(data["clock"]), int(data["flags"])
    if flags & ~CLOCK_FLAGS:
        raise Errno("EINVAL")
    if flags & constant("KVM_CLOCK_REALTIME"):
        clock += max(host.ns(int(host.core.t)) - int(data["realtime"]), 0)
    vm.kvmclock_offset = int(vm.kvmclock_offset) + clock - _clock(host, vm) & (1 << 64) - 1
    return 0


def _is_named(vapic: Any, dest: int, logical: bool) -> bool:
    """kvm_apic_match_dest() of a message with an 8-bit destination."""
    x2apic = bool(int(vapic.apic_base) & int(msr_index.X2APIC_ENABLE))
    if dest == 0xFF or not logical:
        return dest in (0xFF, int(vapic.id))
    if x2apic:
        return not int(vapic.id) >> 4 and bool(dest & 1 << (int(vapic.id) & 15))
    name = int(vapic.ldr) >> 24
    if int(vapic.dfr) >> 28 == 0xF:
        return bool(dest & name)
    return dest >> 4 == name >> 4 and bool(dest & name & 15)


def _signal_msi(host: Host, file: Any, arg: int) -> int:
    """kvm_send_userspace_msi(): how many vCPUs take it; -1 (EPERM) if it names none."""
    row = STRUCTS["kvm_msi"]
    msi = row.read(host.copy_from_user(arg, row.size))
    if not host.S.vms[int(file.obj)].irqchip or msi["flags"]:
        raise Errno("EINVAL")
    address, data = int(msi["address_lo"]), int(msi["data"])
    dest, logical = address >> 12 & 0xFF, bool(address & MSI_LOGICAL)
    icr = data & 0x7FF | 1 << 14 | data & 1 << 15 | (APIC_DEST_LOGICAL if logical else 0)
    taken = -1
    for k, vcpu in enumerate(host.S.vcpus):
        if not vcpu.used or int(vcpu.vm) != int(file.obj):
            continue
        vapic = kvm_vcpu.vapic_of(host, k)
        if not int(vapic.apic_base) & int(msr_index.MSR_IA32_APICBASE_ENABLE) or not _is_named(
            vapic, dest, logical
        ):
            continue
        taken = max(taken, 0) + host.kernel_call(CALL_APIC_SET_IRQ, k, icr)
        if icr & int(msr_index.APIC_MODE_MASK) == int(msr_index.APIC_DM_LOWEST):
            break
    if taken < 0:
        raise Errno("EPERM")
    return taken


def _set_user_memory_region2(host: Host, file: Any, arg: int) -> int:
    """The same with a longer structure; its guest_memfd is refused as other flags are."""
    if int(host.S.config.kernel) < kernel_version(6, 8):
        raise Errno("ENOTTY")
    host.copy_from_user(arg, STRUCTS["kvm_userspace_memory_region2"].size)
    return _set_user_memory_region(host, file, arg)


def _set_user_memory_region(host: Host, file: Any, arg: int) -> int:
    row = STRUCTS["kvm_userspace_memory_region"]
    region = row.read(host.copy_from_user(arg, row.size))
    slot, flags, gpa, size, address = (int(region[f.name]) for f in row.fields)
    vm = host.S.vms[int(file.obj)]
    if flags:  # no dirty log, no read-only memory
        raise Errno("EINVAL")
    if size % PAGE or gpa % PAGE or address % PAGE or address + size > USER_SPACE_END:
        raise Errno("EINVAL")
    if slot >= KVM_USER_MEM_SLOTS or gpa + size > 1 << 64 or size // PAGE > KVM_MEM_MAX_NR_PAGES:
        raise Errno("EINVAL")
    rows = range(N_SLOTS)
    old = next((k for k in rows if vm.slot_size[k] and int(vm.slot_id[k]) == slot), None)
    if not size:
        if old is None:
            raise Errno("EINVAL")
        host.leave_guests(int(file.obj))
        vm.slot_size[old] = 0
        _changed(host, int(file.obj))
        return 0
    if old is not None and (size != int(vm.slot_size[old]) or address != int(vm.slot_hva[old])):
        raise Errno("EINVAL")
    for k in rows:
        first, last = int(vm.slot_gpa[k]), int(vm.slot_gpa[k]) + int(vm.slot_size[k])
        if k != old and vm.slot_size[k] and gpa < last and first < gpa + size:
            raise Errno("EEXIST")
    new = old if old is not None else next((k for k in rows if not vm.slot_size[k]), None)
    if new is None:
        raise Errno("ENOMEM")
    host.leave_guests(int(file.obj))
    vm.slot_id[new], vm.slot_gpa[new], vm.slot_size[new] = slot, gpa, size
    vm.slot_hva[new] = address  # nobody looks what is there before the guest does
    if gpa == 0:
        vm.ram_size = size
    _changed(host, int(file.obj))
    return 0


def _changed(host: Host, vm: int) -> None:
    """Memory slots of the VM are others: who is in its guests sees them, who comes back looks anew."""
    loaded = host.cpus_with(vm)
    for cpu, percpu in enumerate(host.S.percpu):
        if cpu in loaded:
            core, slots = host.S.cores[cpu], host.S.vms[vm]
            core.slot_gpa, core.slot_size, core.slot_at = (
                slots.slot_gpa, slots.slot_size, slots.slot_hva,
            )  # fmt: skip
            host.flush(cpu)
        elif int(percpu.vcpu) < 0:
            percpu.space = -1


def _enable_cap(host: Host, file: Any, arg: int) -> int:
    row = STRUCTS["kvm_enable_cap"]
    cap = row.read(host.copy_from_user(arg, row.size))
    number, value = int(cap["cap"]), int(cap["args"][0])
    vm = host.S.vms[int(file.obj)]
    if cap["flags"]:
        raise Errno("EINVAL")
    if number == constant("KVM_CAP_X86_USER_SPACE_MSR") and not value & ~MSR_EXIT_REASONS:
        vm.user_space_msr_mask = value
        return 0
    if number == constant("KVM_CAP_SPLIT_IRQCHIP"):
        if value > MAX_RESERVED_PINS:
            raise Errno("EINVAL")
        return _create_irqchip(host, file, arg)
    if number == constant("KVM_CAP_PMU_CAPABILITY"):
        enabled = bool(host.S.config.enable_pmu)
        settled = _vcpus(host, int(file.obj)) or vm.created_mediated_pmu
        if enabled and not value & ~PMU_CAP_DISABLE and not settled:
            vm.pmu_off = int(bool(value & PMU_CAP_DISABLE))
            return 0
    raise Errno("EINVAL")


def _set_pmu_event_filter(host: Host, file: Any, arg: int) -> int:
    row = STRUCTS["kvm_pmu_event_filter"]
    head = row.read(host.copy_from_user(arg, row.size))
    action, nevents, flags = int(head["action"]), int(head["nevents"]), int(head["flags"])
    if action > constant("KVM_PMU_EVENT_DENY") or flags & ~MASKED_EVENTS:
        raise Errno("EINVAL")
    if nevents > state.N_FILTER:
        raise Errno("E2BIG")
    data = bytes(row.size) + host.copy_from_user(arg + row.size, 8 * nevents)
    events = [int(event) for event in row.tails(data)]
    try:
        found = make_filter(
            action, events, int(head["fixed_counter_bitmap"]), bool(flags & MASKED_EVENTS)
        )
    except ConfigError:
        raise Errno("EINVAL") from None
    host.leave_guests(int(file.obj))
    set_event_filter(host.S, found, int(file.obj))
    return 0


def _x86_set_msr_filter(host: Host, file: Any, arg: int) -> int:
    row = STRUCTS["kvm_msr_filter"]
    head = row.read(host.copy_from_user(arg, row.size))
    vm = host.S.vms[int(file.obj)]
    flags = int(head["flags"])
    if flags & ~DEFAULT_DENY:
        raise Errno("EINVAL")
    used = [each for each in head["ranges"] if each["nmsrs"]]
    if not used and flags & DEFAULT_DENY:
        raise Errno("EINVAL")
    host.leave_guests(int(file.obj))
    ranges = []
    for each in used:
        size = -(-int(each["nmsrs"]) // 64) * 8
        if not 0 < int(each["flags"]) <= FILTER_READ_WRITE or size > MAX_BITMAP:
            raise Errno("EINVAL")
        bitmap = host.copy_from_user(int(each["bitmap"]), size)
        ranges.append((int(each["flags"]), int(each["nmsrs"]), int(each["base"]), bitmap))
    if not vm.msr_filter:
        vm.msr_filter = host.alloc_pages(MSR_FILTER_PAGES)
    set_msr_filter(host.M, vm, not flags & DEFAULT_DENY, ranges)
    for k in range(state.N_VCPUS):
        vcpu = host.S.vcpus[k]
        if vcpu.used and int(vcpu.vm) == int(file.obj):
            refresh_intercepts(host.S, host.M, host.model, k)
    return 0


_DEVICE: dict[str, Handler] = {
    "KVM_GET_API_VERSION": _get_api_version,
    "KVM_CREATE_VM": _create_vm,
    "KVM_CHECK_EXTENSION": _check_extension,
    "KVM_GET_VCPU_MMAP_SIZE": _get_vcpu_mmap_size,
    "KVM_GET_SUPPORTED_CPUID": _get_supported_cpuid,
    "KVM_GET_MSR_INDEX_LIST": _get_msr_index_list,
    "KVM_GET_MSR_FEATURE_INDEX_LIST": _get_msr_feature_index_list,
    "KVM_GET_MSRS": _get_feature_msrs,
}
_VM: dict[str, Handler] = {
    "KVM_CHECK_EXTENSION": _check_extension,
    "KVM_CREATE_VCPU": _create_vcpu,
    "KVM_CREATE_IRQCHIP": _create_irqchip,
    "KVM_SET_TSS_ADDR": _set_tss_addr,
    "KVM_SET_IDENTITY_MAP_ADDR": _set_identity_map_addr,
    "KVM_SET_BOOT_CPU_ID": _set_boot_cpu_id,
    "KVM_GET_CLOCK": _get_clock,
    "KVM_SET_CLOCK": _set_clock,
    "KVM_SIGNAL_MSI": _signal_msi,
    "KVM_SET_USER_MEMORY_REGION": _set_user_memory_region,
    "KVM_SET_USER_MEMORY_REGION2": _set_user_memory_region2,
    "KVM_GET_TSC_KHZ": kvm_vcpu.get_tsc_khz,
    "KVM_SET_TSC_KHZ": kvm_vcpu.set_tsc_khz,
    "KVM_ENABLE_CAP": _enable_cap,
    "KVM_SET_PMU_EVENT_FILTER": _set_pmu_event_filter,
    "KVM_X86_SET_MSR_FILTER": _x86_set_msr_filter,
}
_NUMBERS = {row.name: row.number for row in IOCTLS}
HANDLERS: dict[int, dict[int, Handler]] = {
    kind: {_NUMBERS[name]: function for name, function in table.items()}
    for kind, table in (
        (state.FILE_KVM, _DEVICE),
        (state.FILE_VM, _VM),
        (state.FILE_VCPU, kvm_vcpu.HANDLERS),
    )
}
"""What each kind of file does with the number of a request."""
UNKNOWN = {state.FILE_KVM: "EINVAL", state.FILE_VM: "ENOTTY", state.FILE_VCPU: "EINVAL"}


def ioctl(host: Host, file: Any, cmd: int, arg: int) -> int:
    """ioctl() on /dev/kvm, a VM or a vCPU.

    Raises:
        Errno: what Linux answers.
    """
    kind = int(file.kind)
    if kind != state.FILE_KVM:
        vm = int(file.obj) if kind == state.FILE_VM else int(host.S.vcpus[int(file.obj)].vm)
        if int(host.S.vms[vm].mm) != int(host.task.mm):
            raise Errno("EIO")
    function = HANDLERS[kind].get(cmd)
    if function is None:
        raise Errno(UNKNOWN[kind])
    if kind == state.FILE_VCPU:
        kvm_vcpu.lock(host, int(file.obj))
        host.charge("kvm_vcpu_ioctl")
    return function(host, file, arg)


def mmap(
    host: Host, file: Any, address: int, length: int, prot: int, flags: int, offset: int
) -> int:
    """Map a vCPU's struct kvm_run and the pages behind it.

    Raises:
        Errno: EINVAL, more than KVM_GET_VCPU_MMAP_SIZE says.
    """
    if offset + length > kvm_vcpu.RUN_PAGES * PAGE:
        raise Errno("EINVAL")
    start = place(host, address, length, flags)
    if flags & constant("MAP_FIXED"):
        unmap(host, host.mm, start, length)
    vcpu = host.S.vcpus[int(file.obj)]
    hpa = int(vcpu.run_page) + offset
    add_vma(host, host.mm, start, length, hpa, prot, state.VMA_KVM_RUN, int(file.obj))
    return start


def put_vm(host: Host, k: int) -> None:
    """A file of a VM or of one of its vCPUs is closed; with the last one the VM goes (kvm_destroy_vm).

    Raises:
        Restart: an event of a vCPU is on a core that is in a guest.
    """
    S = host.S
    vm = S.vms[k]
    rows = [row for row in range(state.N_VCPUS) if S.vcpus[row].used and int(S.vcpus[row].vm) == k]
    held = opened(host, state.FILE_VM, k) or any(opened(host, state.FILE_VCPU, row) for row in rows)
    if not vm.used or held:
        return
    for row in rows:
        vcpu = S.vcpus[row]
        kvm_vcpu.release_events(host, row)
        vcpu.used = 0
        host.free_pages(int(vcpu.vmcs), VCPU_PAGES + kvm_vcpu.RUN_PAGES)
    if vm.msr_filter:
        host.free_pages(int(vm.msr_filter), MSR_FILTER_PAGES)
    vm.used = vm.created_mediated_pmu = 0  # perf_release_mediated_pmu()


def _put_vcpu(host: Host, row: int) -> None:
    put_vm(host, int(host.S.vcpus[row].vm))


DEVICES["/dev/kvm"] = state.FILE_KVM
OPERATIONS[state.FILE_KVM] = Operations(ioctl=ioctl)
OPERATIONS[state.FILE_VM] = Operations(ioctl=ioctl, release=put_vm)
OPERATIONS[state.FILE_VCPU] = Operations(ioctl=ioctl, mmap=mmap, release=_put_vcpu)
