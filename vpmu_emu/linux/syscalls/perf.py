"""perf_event_open(), and what its files do: each check in the order in which Linux makes it.

kernel/events/core.c; of arch/x86/events the checks of attributes. Rows are scheduled and counted by
`linux/perf/`; here they are filled, read and given back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from vpmu_emu.linux import calls, state
from vpmu_emu.linux.perf.output import SAMPLE_SUPPORTED
from vpmu_emu.linux.syscalls import files
from vpmu_emu.linux.syscalls.host import Errno, Host, failed, signed
from vpmu_emu.linux.syscalls.mm import MAP_SHARED, MAP_TYPE, PROT_WRITE, add_vma, make_room, place
from vpmu_emu.linux.syscalls.pagetables import PAGE
from vpmu_emu.machine import msr_index
from vpmu_emu.tables.events import LISTS, event_by_name
from vpmu_emu.tables.linux import HEADERS, STRUCTS, constant
from vpmu_emu.tables.modes import kernel_version

ATTR = STRUCTS["perf_event_attr"]
CONTROL = STRUCTS["perf_event_mmap_page"]
SIZE_VER0 = constant("PERF_ATTR_SIZE_VER0")
_HEADER = HEADERS["linux/perf_event.h"]
SAMPLES = sum(1 << k for k in range(25))  # PERF_SAMPLE_MAX - 1
FORMATS = sum(value for name, value in _HEADER.items() if name.startswith("PERF_FORMAT_"))
FLAGS = sum(value for name, value in _HEADER.items() if name.startswith("PERF_FLAG_"))
CALLCHAIN_MAX = 127  # sysctl_perf_event_max_stack
CLOCKS = (0, 1, 4, 7, 11)  # CLOCK_REALTIME, MONOTONIC, MONOTONIC_RAW, BOOTTIME, TAI
NMI_SAFE_CLOCKS = (1, 4)
BRANCHES = (1 << 20) - 1  # PERF_SAMPLE_BRANCH_MAX - 1
BRANCH_RINGS = 7  # PERF_SAMPLE_BRANCH_PLM_ALL
HW_EVENT_MASK = 0xFFFF_FFFF
X86_RAW_EVENT_MASK = int(msr_index.X86_RAW_EVENT_MASK)
UNSUPPORTED = ("write_backward", "sigtrap", "aux_output")
TOP = 1 << 63

SAMPLE = {
    name: constant(f"PERF_SAMPLE_{name}")
    for name in (
        "TID", "READ", "CALLCHAIN", "BRANCH_STACK", "REGS_USER", "STACK_USER", "REGS_INTR", "WEIGHT",
        "WEIGHT_STRUCT", "CGROUP",
    )
}  # fmt: skip
FORMAT_ENABLED, FORMAT_RUNNING, FORMAT_ID, FORMAT_GROUP, FORMAT_LOST = (
    constant(f"PERF_FORMAT_{name}")
    for name in ("TOTAL_TIME_ENABLED", "TOTAL_TIME_RUNNING", "ID", "GROUP", "LOST")
)
FD_NO_GROUP, FD_OUTPUT, PID_CGROUP = (
    constant(f"PERF_FLAG_{name}") for name in ("FD_NO_GROUP", "FD_OUTPUT", "PID_CGROUP")
)
REGISTERS = (1 << 24) - 1 & ~(1 << 12 | 1 << 13 | 1 << 14 | 1 << 15)  # PERF_REG_X86_*: no DS ES FS GS

# intel_perfmon_event_map[] of each list of events
_HARDWARE_NAMES = (
    "cycles", "instructions", "cache-references", "cache-misses", "branches", "branch-misses", "bus-cycles",
    "", "", "ref-cycles",
)  # fmt: skip
HARDWARE = {
    name: [event_by_name(perf, name).code if perf else 0 for perf in _HARDWARE_NAMES] for name in LISTS
}
# hw_cache_event_ids of (cache, operation, result); of them what the model counts
_LOADS, _STORES = 0x81D0, 0x82D0
HW_CACHE = {
    (0, 0, 0): _LOADS, (0, 1, 0): _STORES,  # L1D
    (3, 0, 0): _LOADS, (3, 1, 0): _STORES,  # DTLB
    (5, 0, 0): 0x00C4, (5, 0, 1): 0x00C5,  # BPU
}  # fmt: skip
CACHES, CACHE_OPS, CACHE_RESULTS = 7, 3, 2


# --- attributes -----------------------------------------------------------------------------------------
def attr_size(host: Host) -> int:
    """sizeof(struct perf_event_attr) of this kernel: version 9 in 7.0, version 8 in 6.7."""
    return 144 if int(host.S.config.kernel) >= kernel_version(7, 0) else 136


class Attr:
    """A perf_event_attr that has passed perf_copy_attr(): its members and flags as numbers."""

    def __init__(self, data: bytes) -> None:
        self.row = ATTR.read(data)
        flags = int(self.row["flags"])
        for name, low, high in ATTR.bits:
            setattr(self, name, flags >> low & (1 << (high - low + 1)) - 1)
        for name in (
            "type", "size", "config", "sample_period", "sample_type", "read_format", "clockid",
            "branch_sample_type", "sample_regs_user", "sample_stack_user", "sample_regs_intr",
            "sample_max_stack", "bp_type",
        ):  # fmt: skip
            setattr(self, name, int(self.row[name]))

    def __getattr__(self, name: str) -> int:
        raise AttributeError(name)  # tells a type checker that all attributes are numbers

    @property
    def sampling(self) -> bool:
        """is_sampling_event(): period or frequency."""
        return self.sample_period != 0


def perf_copy_attr(host: Host, address: int) -> Attr:
    """Read the attributes of a program.

    Raises:
        Errno: EFAULT; E2BIG, with the size that this kernel knows written back; EINVAL.
    """
    known = attr_size(host)
    size = host.get_user(address + ATTR.offset("size"), 4) or SIZE_VER0
    data = b""
    if SIZE_VER0 <= size <= PAGE:
        data = host.copy_from_user(address, size)
    if not data or any(data[known:]):
        with suppress(Errno):
            host.put_user(address + ATTR.offset("size"), known, 4)
        raise Errno("E2BIG")
    attr = Attr(data[:known])
    if int(host.S.config.kernel) >= kernel_version(6, 19):
        attr.__dict__["__reserved_1"] &= ~3  # defer_callchain, defer_output
    _check_attr(attr)
    return attr


def _check_attr(attr: Attr) -> None:
    if attr.__dict__["__reserved_1"] or attr.row["__reserved_2"] or attr.row["__reserved_3"]:
        raise Errno("EINVAL")
    if attr.sample_type & ~SAMPLES or attr.read_format & ~FORMATS:
        raise Errno("EINVAL")
    kind = attr.sample_type
    if kind & SAMPLE["BRANCH_STACK"]:
        mask = attr.branch_sample_type
        if mask & ~BRANCHES or not mask & ~BRANCH_RINGS:
            raise Errno("EINVAL")
    for sample, mask in (("REGS_USER", attr.sample_regs_user), ("REGS_INTR", attr.sample_regs_intr)):
        if kind & SAMPLE[sample] and (not mask or mask & ~REGISTERS):
            raise Errno("EINVAL")
    if kind & SAMPLE["STACK_USER"] and (attr.sample_stack_user % 8 or attr.sample_stack_user >= 0xFFFF):
        raise Errno("EINVAL")
    both = SAMPLE["WEIGHT"] | SAMPLE["WEIGHT_STRUCT"]
    if kind & SAMPLE["CGROUP"] or kind & both == both:
        raise Errno("EINVAL")
    if (attr.inherit_thread and not attr.inherit) or (attr.remove_on_exec and attr.enable_on_exec):
        raise Errno("EINVAL")
    if attr.sigtrap and not attr.remove_on_exec:
        raise Errno("EINVAL")


def _hardware_config(attr: Attr, events: str) -> int:
    """Selector bits of a HARDWARE or HW_CACHE event (x86_setup_perfctr, set_ext_hw_attr)."""
    config = attr.config & HW_EVENT_MASK
    if attr.type == state.PERF_TYPE_HARDWARE:
        if config >= len(HARDWARE[events]):
            raise Errno("EINVAL")
        code = HARDWARE[events][config]
    else:
        which = config & 255, config >> 8 & 255, config >> 16 & 255
        if which[0] >= CACHES or which[1] >= CACHE_OPS or which[2] >= CACHE_RESULTS:
            raise Errno("EINVAL")
        code = HW_CACHE.get(which, 0)
    if not code:
        raise Errno("ENOENT")
    return code


def _event_init(host: Host, attr: Attr) -> tuple[int, int]:
    """perf_init_event() as far as attributes tell: (type of the PMU, config).

    Raises:
        Errno: ENOENT, no PMU has such an event; EINVAL, EOPNOTSUPP, it has but not so.
    """
    kind, config = attr.type, attr.config
    if kind in (state.PERF_TYPE_HARDWARE, state.PERF_TYPE_HW_CACHE):
        if config >> 32 not in (0, state.PERF_TYPE_RAW):  # PERF_PMU_CAP_EXTENDED_HW_TYPE
            raise Errno("ENOENT")
        config = _hardware_config(attr, host.model.events)
    elif kind == state.PERF_TYPE_RAW:
        config &= X86_RAW_EVENT_MASK
    elif kind not in (state.PERF_TYPE_SOFTWARE, state.PERF_TYPE_UNCORE):
        raise Errno("ENOENT")
    if attr.sample_type & SAMPLE["BRANCH_STACK"]:
        if kind in (state.PERF_TYPE_SOFTWARE, state.PERF_TYPE_UNCORE) or not has_lbr(host):
            raise Errno("EOPNOTSUPP")
    if kind in (state.PERF_TYPE_SOFTWARE, state.PERF_TYPE_UNCORE):
        return kind, config
    if attr.precise_ip:  # x86_pmu_hw_config()
        if attr.precise_ip > files.max_precise(host.model):
            raise Errno("EOPNOTSUPP")
        if not attr.sampling:
            raise Errno("EINVAL")
    return state.PERF_TYPE_RAW, config


def has_lbr(host: Host) -> bool:
    """Whether the CPU has last branch records."""
    return bool(int(host.S.cores[0].lbr.kind))


def _clock(attr: Attr) -> int:
    """What `clock` of a row says: 0 sched_clock(), else 1 + attr.clockid."""
    return 1 + attr.clockid if attr.use_clockid else 0


def _check_clock(attr: Attr, pmu_type: int) -> None:
    """perf_event_set_clock(): in an NMI most clocks cannot be read, and only software events know none."""
    if not attr.use_clockid:
        return
    if attr.clockid not in CLOCKS or (
        pmu_type != state.PERF_TYPE_SOFTWARE and attr.clockid not in NMI_SAFE_CLOCKS
    ):
        raise Errno("EINVAL")


def _check_guest(S: Any, attr: Attr, pmu_type: int, cpu: int, ctx: int) -> None:
    """perf_event_alloc() of patch 02: no event that includes guests where a guest has the PMU right now.

    It reads the flag of the event's CPU, or of the CPU on which its task is in a guest (PF_VCPU), as that
    is before anything is sent there.
    """
    if pmu_type != state.PERF_TYPE_RAW or attr.exclude_guest:
        return
    if cpu < 0 and ctx >= state.CTX_TASK:
        on = int(S.tasks[ctx - state.CTX_TASK].on_cpu)
        cpu = on if on >= 0 and S.cores[on].vmx.nonroot else -1
    if cpu >= 0 and S.percpu[cpu].force_exclude_guest:
        raise Errno("EBUSY")


def _check_supported(attr: Attr) -> None:
    """What Linux could do and this kernel cannot."""
    if attr.sample_type & ~int(SAMPLE_SUPPORTED) or any(getattr(attr, name) for name in UNSUPPORTED):
        raise Errno("EOPNOTSUPP")


# --- opening --------------------------------------------------------------------------------------------
def _free_row(host: Host) -> int:
    for i, event in enumerate(host.S.perf_events):
        if not event.used:
            return i
    raise Errno("ENOMEM")


def _leader(host: Host, group_fd: int) -> int:
    file = files.fget(host, group_fd)
    if int(file.kind) != state.FILE_PERF:
        raise Errno("EBADF")
    return int(file.obj)


def _context(host: Host, pid: int, cpu: int) -> int:
    """The context of an event for a thread (or -1) and a core (or -1)."""
    S = host.S
    task = -1
    if pid != -1:
        rows = [row for row, t in host.tasks() if int(t.pid) == pid] if pid else [host.task_row]
        if not rows:
            raise Errno("ESRCH")
        task = rows[0]
    if not 0 <= cpu < int(S.config.n_cores) and (task < 0 or cpu != -1):
        raise Errno("EINVAL")
    return state.CTX_TASK + task if task >= 0 else cpu


def fill_row(event: Any, **values: Any) -> None:
    """A row of perf_events with these values and everything else zero."""
    for name in event.dtype.names:
        event[name] = 0
    for name in ("idx", "pmc", "spec", "parent", "vcpu", "output"):
        event[name] = -1
    for name, value in values.items():
        event[name] = value


def active_cpu(host: Host, ctx: int) -> int:
    """The core on which time passes for a context, -1 for that of a task that does not run."""
    if ctx < state.CTX_TASK:
        return ctx
    for cpu in range(state.N_CORES):
        if int(host.S.percpu[cpu].task_ctx) == ctx:
            return cpu
    return -1


def sys_perf_event_open(
    host: Host, task: Any, address: int, pid: int, cpu: int, group_fd: int, flags: int
) -> int:
    """A file for a new event of a thread, a core, or both."""
    pid, cpu, group_fd = (signed(n, 32) for n in (pid, cpu, group_fd))
    if flags & ~FLAGS:
        raise Errno("EINVAL")
    attr = perf_copy_attr(host, address)
    if attr.freq and attr.sample_period > int(host.S.config.max_sample_rate):
        raise Errno("EINVAL")
    if not attr.freq and attr.sample_period & TOP:
        raise Errno("EINVAL")
    if flags & PID_CGROUP:
        raise Errno("EINVAL" if -1 in (pid, cpu) else "EBADF")  # no cgroup file system is mounted
    files.room(host)
    leader = output = -1
    if group_fd != -1:
        leader = _leader(host, group_fd)
        if flags & FD_OUTPUT:
            output = leader
        if flags & FD_NO_GROUP:
            leader = -1
    ctx = _context(host, pid, cpu)
    S = host.S
    if leader >= 0 and ctx >= state.CTX_TASK and int(S.perf_events[leader].inherit) != attr.inherit:
        raise Errno("EINVAL")
    if attr.inherit and attr.sample_type & SAMPLE["READ"]:
        old = int(S.config.kernel) < kernel_version(6, 12)
        if old or not attr.sample_type & SAMPLE["TID"]:
            raise Errno("EINVAL")
    pmu_type, config = _event_init(host, attr)
    if attr.sample_type & SAMPLE["CALLCHAIN"] and attr.sample_max_stack > CALLCHAIN_MAX:
        raise Errno("EOVERFLOW")
    _check_guest(S, attr, pmu_type, cpu, ctx)
    _check_clock(attr, pmu_type)
    if pmu_type == state.PERF_TYPE_UNCORE and ctx < state.CTX_TASK:
        ctx = cpu = 0  # box->cpu: one core reads it for the socket
    if leader >= 0:
        _check_group(S.perf_events[leader], leader, attr, ctx, cpu)
    _check_supported(attr)
    if ctx < state.CTX_TASK and not int(S.percpu[ctx].online):
        raise Errno("ENODEV")
    i = _free_row(host)
    if output >= 0:
        output = check_output(S, i, output, cpu, ctx, _clock(attr))
    here = host.cpu
    with host.on_cpu(active_cpu(host, ctx)):
        if pmu_type == state.PERF_TYPE_RAW:
            there, S.this_cpu = S.this_cpu, here  # perf_init_event() is the caller's work
            host.kernel_call(calls.CALL_PERF_RESERVE, i)
            S.this_cpu = there
        fill_row(
            S.perf_events[i],
            used=1,
            state=state.PERF_EVENT_STATE_OFF if attr.disabled else state.PERF_EVENT_STATE_INACTIVE,
            pmu_type=pmu_type,
            ctx=ctx,
            cpu=cpu,
            owner=state.OWNER_HOST,
            leader=leader if leader >= 0 else i,
            config=config,
            disabled=attr.disabled,
            pinned=attr.pinned,
            exclude_user=attr.exclude_user,
            exclude_kernel=attr.exclude_kernel,
            exclude_host=attr.exclude_host,
            exclude_guest=attr.exclude_guest,
            exclude_idle=attr.exclude_idle,
            inherit=attr.inherit,
            precise_ip=attr.precise_ip,
            sample_freq=attr.sample_period if attr.freq else 0,
            sample_period=0 if attr.freq else attr.sample_period,
            sample_type=attr.sample_type,
            read_format=attr.read_format,
            clock=_clock(attr),
            exclusive=attr.exclusive,
            sample_id_all=attr.sample_id_all,
        )
        failed(host.kernel_call(calls.CALL_PERF_INSTALL, i))
    S.perf_events[i].output = output
    fd = files.open_row(host, int(task.mm), state.FILE_PERF, i, constant("O_RDWR"))
    host.charge("sys_perf_event_open")
    return fd


def _check_group(leader: Any, row: int, attr: Attr, ctx: int, cpu: int) -> None:
    if int(leader.leader) != row or int(leader.clock) != _clock(attr):
        raise Errno("EINVAL")
    if int(leader.cpu) != cpu or int(leader.ctx) != ctx:
        raise Errno("EINVAL")
    if attr.exclusive or attr.pinned:  # only a leader's are obeyed
        raise Errno("EINVAL")


# --- families --------------------------------------------------------------------------------------------
def children(S: Any, i: int) -> Iterator[int]:
    """Rows of the events that were inherited from event i."""
    return (k for k, event in enumerate(S.perf_events) if event.used and int(event.parent) == i)


def members(S: Any, i: int) -> list[int]:
    """Rows of event i's group, its leader first, the others as they came."""
    leader = int(S.perf_events[i].leader)
    rows = [
        k for k, e in enumerate(S.perf_events) if e.used and int(e.leader) == leader and k != leader
    ]
    return [leader, *sorted(rows, key=lambda k: int(S.perf_events[k].id))]


# --- closing --------------------------------------------------------------------------------------------
def release(host: Host, i: int) -> None:
    """Give event i back if nobody has it open or mapped any more (perf_event_release_kernel)."""
    S = host.S
    if not S.perf_events[i].used or files.opened(host, state.FILE_PERF, i):
        return
    event = S.perf_events[i]
    for k in (*children(S, i), i):
        with host.on_cpu(active_cpu(host, int(S.perf_events[k].ctx))):
            host.kernel_call(calls.CALL_PERF_READ, k)
            if k == i:
                remember(S, i)
            else:  # for the report; nobody can read it any more
                event.child_count += S.perf_events[k].count
                event.child_enabled += S.perf_events[k].total_time_enabled
                event.child_running += S.perf_events[k].total_time_running
            host.kernel_call(calls.CALL_PERF_RELEASE, k)
    for event in S.perf_events:
        if event.used and int(event.output) == i:
            event.output = -1
    host.charge("perf_release")


def unmapped(host: Host, i: int) -> None:
    """perf_mmap_close(): with the last mapping the buffer goes."""
    S = host.S
    event = S.perf_events[i]
    if not _mappings(S, i):
        host.free_pages(int(event.buffer), 1 + int(event.buffer_pages))
        event.buffer = event.buffer_pages = event.head = 0
        for other in S.perf_events:
            if other.used and int(other.output) == i:
                other.output = -1
    _rdpmc_allowed(host, i)


def _mappings(S: Any, i: int) -> int:
    return sum(
        1
        for mm in S.mms
        if mm.users
        for vma in mm.vmas
        if vma.length and int(vma.kind) == state.VMA_PERF and int(vma.obj) == i
    )


def _user_read_cnt(S: Any, i: int) -> bool:
    """PERF_EVENT_FLAG_USER_READ_CNT: only events of the core PMU are on counters that RDPMC reads."""
    return int(S.perf_events[i].pmu_type) == state.PERF_TYPE_RAW


def _rdpmc_allowed(host: Host, i: int) -> None:
    """RDPMC works at CPL 3 in processes that have such a page (x86_pmu_event_mapped); the page is told."""
    for row, mm in enumerate(host.S.mms):
        if mm.users:
            mm.perf_rdpmc_allowed = sum(
                1
                for vma in mm.vmas
                if vma.length and int(vma.kind) == state.VMA_PERF and _user_read_cnt(host.S, int(vma.obj))
            )
            host.kernel_call(calls.CALL_PERF_USERPAGE, i, row)


# --- reading --------------------------------------------------------------------------------------------
def _update(host: Host, i: int) -> None:
    """Bring event i and its children up to date, each on the core where it runs."""
    S = host.S
    for k in (i, *children(S, i)):
        with host.on_cpu(active_cpu(host, int(S.perf_events[k].ctx))):
            host.kernel_call(calls.CALL_PERF_READ, k)


def _total(S: Any, i: int, field: str, gone: str) -> int:
    event = S.perf_events[i]
    live = sum(int(S.perf_events[k][field]) for k in children(S, i))
    return (int(event[field]) + int(event[gone]) + live) & (1 << 64) - 1


def _times(host: Host, i: int, form: int) -> list[int]:
    words = []
    if form & FORMAT_ENABLED:
        words.append(host.ns(_total(host.S, i, "total_time_enabled", "child_enabled")))
    if form & FORMAT_RUNNING:
        words.append(host.ns(_total(host.S, i, "total_time_running", "child_running")))
    return words


def _one(host: Host, i: int, form: int) -> list[int]:
    """Count of event i, and what of it stands beside the count."""
    event = host.S.perf_events[i]
    words = [_total(host.S, i, "count", "child_count")]
    if not form & FORMAT_GROUP:
        words += _times(host, i, form)
    if form & FORMAT_ID:
        words.append(int(event.id))
    if form & FORMAT_LOST:
        words.append(int(event.lost))
    return words


def _check_children(S: Any, leader: int, size: int) -> None:
    """__perf_read_group_add(): counts of inherited groups can be added only while all are alike.

    Raises:
        Errno: ECHILD, this group has changed since a task inherited it, or that task's has.
    """
    for k in children(S, leader):
        same = int(S.perf_events[k].group_generation) == int(S.perf_events[leader].group_generation)
        if not same or len(members(S, k)) != size:
            raise Errno("ECHILD")


def read(host: Host, file: Any, buffer: int, count: int) -> int:
    """struct read_format of an event: 0 bytes (end of file) in state ERROR, ENOSPC if it does not fit."""
    S = host.S
    i = int(file.obj)
    event = S.perf_events[i]
    form = int(event.read_format)
    if int(event.state) == state.PERF_EVENT_STATE_ERROR:
        return 0
    rows = members(S, i) if form & FORMAT_GROUP else [i]
    per_event = 1 + (form & (FORMAT_ID | FORMAT_LOST)).bit_count()
    size = 8 * (per_event * len(rows) + (form & (FORMAT_ENABLED | FORMAT_RUNNING)).bit_count())
    size += 8 if form & FORMAT_GROUP else 0
    if count < size:
        raise Errno("ENOSPC")
    if form & FORMAT_GROUP:
        _check_children(S, rows[0], len(rows))
    for k in rows:
        if k == rows[0] or not S.perf_events[k].topdown:  # its leader's read was for all of PERF_METRICS
            _update(host, k)
    words = [len(rows), *_times(host, rows[0], form)] if form & FORMAT_GROUP else []
    for k in rows:
        words += _one(host, k, form)
    host.copy_to_user(buffer, b"".join(word.to_bytes(8, "little") for word in words))
    host.charge("perf_read")
    return size


# --- ioctls ---------------------------------------------------------------------------------------------
def _each(host: Host, i: int, arg: int, op: int) -> int:
    """An operation on an event and its children; with PERF_IOC_FLAG_GROUP on those of all its group."""
    S = host.S
    for k in members(S, i) if arg & constant("PERF_IOC_FLAG_GROUP") else [i]:
        for row in (k, *children(S, k)):
            with host.on_cpu(active_cpu(host, int(S.perf_events[row].ctx))):
                host.kernel_call(op, row)
    return 0


def _refresh(host: Host, i: int, arg: int) -> int:
    event = host.S.perf_events[i]
    if event.inherit or not (event.sample_period or event.sample_freq):
        raise Errno("EINVAL")
    with host.on_cpu(active_cpu(host, int(event.ctx))):
        host.kernel_call(calls.CALL_PERF_REFRESH, i, signed(arg, 32))
    return 0


def _period(host: Host, i: int, arg: int) -> int:
    value = host.get_user(arg, 8)
    event = host.S.perf_events[i]
    if not (event.sample_period or event.sample_freq) or not value or value & TOP:
        raise Errno("EINVAL")
    if event.sample_freq and value > int(host.S.config.max_sample_rate):
        raise Errno("EINVAL")
    with host.on_cpu(active_cpu(host, int(event.ctx))):
        failed(host.kernel_call(calls.CALL_PERF_PERIOD, i, value))
    return 0


def _id(host: Host, i: int, arg: int) -> int:
    host.put_user(arg, int(host.S.perf_events[i].id), 8)
    return 0


def check_output(S: Any, i: int, output: int, cpu: int, ctx: int, clock: int) -> int:
    """perf_event_set_output(): whose ring event i writes into if it is told that of event `output`.

    Raises:
        Errno: EINVAL, it may not, or there is no ring.
    """
    to = S.perf_events[output]
    if i == output or int(to.cpu) != cpu or (cpu == -1 and int(to.ctx) != ctx):
        raise Errno("EINVAL")
    if int(to.clock) != clock or (not to.buffer and int(to.output) < 0):
        raise Errno("EINVAL")
    return output if to.buffer else int(to.output)


def _set_output(host: Host, i: int, arg: int) -> int:
    S = host.S
    event = S.perf_events[i]
    fd = signed(arg, 32)
    output = -1
    if fd != -1:
        numbers = (int(event[name]) for name in ("cpu", "ctx", "clock"))
        output = check_output(S, i, _leader(host, fd), *numbers)
    if event.buffer:
        raise Errno("EINVAL")
    event.output = output
    return 0


def _pause_output(host: Host, i: int, arg: int) -> int:
    ring = host.S.perf_events[i]
    if int(ring.output) >= 0:
        ring = host.S.perf_events[int(ring.output)]
    if not ring.buffer_pages:
        raise Errno("EINVAL")
    ring.paused = int(arg & 0xFFFFFFFF != 0)
    return 0


def _modify_attributes(host: Host, i: int, arg: int) -> int:
    attr = perf_copy_attr(host, arg)
    kind = int(host.S.perf_events[i].pmu_type)
    core = (state.PERF_TYPE_HARDWARE, state.PERF_TYPE_HW_CACHE, state.PERF_TYPE_RAW)
    same = attr.type == kind or (kind == state.PERF_TYPE_RAW and attr.type in core)
    raise Errno("EOPNOTSUPP" if same else "EINVAL")  # only breakpoints can be changed


def _no_filter(host: Host, i: int, arg: int) -> int:
    raise Errno("EINVAL")  # tracepoints and address filters of trace units have them


IOCTLS: dict[int, Callable[[Host, int, int], int]] = {
    constant(f"PERF_EVENT_IOC_{name}"): function
    for name, function in {
        "ENABLE": lambda host, i, arg: _each(host, i, arg, calls.CALL_PERF_ENABLE),
        "DISABLE": lambda host, i, arg: _each(host, i, arg, calls.CALL_PERF_DISABLE),
        "RESET": lambda host, i, arg: _each(host, i, arg, calls.CALL_PERF_RESET),
        "REFRESH": _refresh,
        "PERIOD": _period,
        "ID": _id,
        "SET_OUTPUT": _set_output,
        "PAUSE_OUTPUT": _pause_output,
        "SET_FILTER": _no_filter,
        "SET_BPF": _no_filter,
        "MODIFY_ATTRIBUTES": _modify_attributes,
    }.items()
}
"""What an event's file can be told."""


def ioctl(host: Host, file: Any, cmd: int, arg: int) -> int:
    """Tell an event something."""
    function = IOCTLS.get(cmd)
    if function is None:
        raise Errno("ENOTTY")
    result = function(host, int(file.obj), arg)
    host.charge("perf_ioctl")
    return result


# --- mapping --------------------------------------------------------------------------------------------
def mmap(
    host: Host, file: Any, address: int, length: int, prot: int, flags: int, offset: int
) -> int:
    """perf_mmap(): a control page, and a power of two of pages for records behind it."""
    S = host.S
    i = int(file.obj)
    event = S.perf_events[i]
    pages = length // PAGE - 1
    if (int(event.cpu) == -1 and event.inherit) or flags & MAP_TYPE != MAP_SHARED or offset:
        raise Errno("EINVAL")
    if pages & (pages - 1) if pages else False:
        raise Errno("EINVAL")
    ring = event if int(event.output) < 0 else S.perf_events[int(event.output)]
    if ring.buffer and int(ring.buffer_pages) != pages:
        raise Errno("EINVAL")
    if int(event.output) >= 0:  # two events would write into one control page
        raise Errno("EBUSY")
    start = place(host, address, length, flags)
    make_room(host, start, length, flags)
    fresh = not event.buffer
    hpa = host.alloc_pages(1 + pages) if fresh else int(event.buffer)
    try:
        add_vma(host, host.mm, start, length, hpa, prot, state.VMA_PERF, i)
    except Errno:
        if fresh:
            host.free_pages(hpa, 1 + pages)
        raise
    if fresh:
        event.buffer, event.buffer_pages, event.head = hpa, pages, 0
        event.overwrite = int(not prot & PROT_WRITE)
        _init_userpage(host, i, hpa, pages)
    _rdpmc_allowed(host, i)
    return start


def _init_userpage(host: Host, i: int, at: int, pages: int) -> None:
    """perf_event_init_userpage() and what never changes of arch_perf_update_userpage()."""
    can = ["BIT0_IS_DEPRECATED", "USER_TIME", "USER_TIME_ZERO"]
    if _user_read_cnt(host.S, i):
        can.append("USER_RDPMC")
    page = CONTROL.new(
        size=CONTROL.offset("time_mask") + 8,
        data_offset=PAGE,
        data_size=pages * PAGE,
        capabilities=sum(constant(f"PERF_MMAP_CAP_{name}") for name in can),
        pmc_width=host.model.gp_width,
        time_shift=31,
        time_mult=int(host.S.config.cyc2ns_mul),
    )
    host.write_physical(at, page.tobytes())


files.OPERATIONS[state.FILE_PERF] = files.Operations(
    ioctl=ioctl, mmap=mmap, read=read, release=release, unmapped=unmapped
)


def remember(S: Any, i: int) -> None:
    """Keep event `i`, which a program closes, as it is now, for `closed_report`; it has just been read."""
    S.perf_closed[int(S.perf_closed_n) % state.N_CLOSED] = S.perf_events[i]
    S.perf_closed_n += 1
