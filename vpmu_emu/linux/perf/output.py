"""Records go into the mapped ring of an event as Linux writes them; what finds no room is counted as lost.

struct perf_event_header and the records of include/uapi/linux/perf_event.h; kernel/events/ring_buffer.c.
The host kernel is compiled code and has no addresses: its instruction pointer is KERNEL_TEXT plus 64 bytes
for each row of the costs, so that a profile tells which work was interrupted.
"""

from __future__ import annotations

from vpmu_emu._jit import jit, memory_at
from vpmu_emu.linux.percpu import kvm_get_running_vcpu, this_core, this_cpu
from vpmu_emu.linux.perf.clocks import event_update
from vpmu_emu.linux.perf.times import next_member, perf_event_update_time, sched_clock
from vpmu_emu.linux.perf.userpage import PAGE_DATA_HEAD, PAGE_DATA_TAIL
from vpmu_emu.linux.state import FROM_GUEST, FROM_USER, PERF_EVENT_STATE_ACTIVE
from vpmu_emu.machine.bits import popcount
from vpmu_emu.machine.physical import ld64, st64
from vpmu_emu.machine.u64 import ONE, PAGE_MASK, U3, U8, U32, U48, U64, ZERO

# enum perf_event_sample_format
SAMPLE_IP = U64(1 << 0)
SAMPLE_TID = U64(1 << 1)
SAMPLE_TIME = U64(1 << 2)
SAMPLE_ADDR = U64(1 << 3)
SAMPLE_READ = U64(1 << 4)
SAMPLE_ID = U64(1 << 6)
SAMPLE_CPU = U64(1 << 7)
SAMPLE_PERIOD = U64(1 << 8)
SAMPLE_STREAM_ID = U64(1 << 9)
SAMPLE_IDENTIFIER = U64(1 << 16)
SAMPLE_ID_ALL = SAMPLE_TID | SAMPLE_TIME | SAMPLE_ID | SAMPLE_STREAM_ID | SAMPLE_CPU | SAMPLE_IDENTIFIER
SAMPLE_ONE_WORD = U64(0x103CF)  # all but READ
SAMPLE_SUPPORTED = SAMPLE_ONE_WORD | SAMPLE_READ
# enum perf_event_read_format
FORMAT_TOTAL_TIME_ENABLED = U64(1)
FORMAT_TOTAL_TIME_RUNNING = U64(2)
FORMAT_ID = U64(4)
FORMAT_GROUP = U64(8)
FORMAT_LOST = U64(16)
# enum perf_event_type
RECORD_LOST = U64(2)
RECORD_THROTTLE = U64(5)
RECORD_UNTHROTTLE = U64(6)
RECORD_SAMPLE = U64(9)
MISC_KERNEL = U64(1)
MISC_USER = U64(2)
MISC_GUEST_KERNEL = U64(4)
MISC_GUEST_USER = U64(5)

KERNEL_TEXT = U64(0xFFFF_FFFF_8100_0000)
_U24 = U64(24)
_ROW = U64(6)


@jit()
def perf_misc_flags(S):
    """PERF_RECORD_MISC_*: what the interrupt at hand came upon."""
    host = this_cpu(S)
    if host.interrupted == FROM_GUEST:
        return MISC_GUEST_USER if kvm_get_running_vcpu(S).cpl == 3 else MISC_GUEST_KERNEL
    return MISC_USER if host.interrupted == FROM_USER else MISC_KERNEL


@jit()
def perf_instruction_pointer(S):
    """Where: of a host program or a guest its own RIP, of the kernel a symbolic address."""
    host = this_cpu(S)
    if host.interrupted != 0:
        return this_core(S).rip
    return KERNEL_TEXT + (U64(host.interrupted_row) << _ROW)


@jit()
def primary_event(S, i):
    """The event that a program knows: of an inherited event the one it came from."""
    event = S.perf_events[i]
    return S.perf_events[i if event.parent < 0 else event.parent]


@jit()
def output_ring(S, owner):
    """The event into whose ring the records of `owner` go (PERF_EVENT_IOC_SET_OUTPUT), else itself."""
    return owner if owner.output < 0 else S.perf_events[owner.output]


@jit()
def _put(M, ring, word):
    size = U64(ring.buffer_pages << 12)
    data = U64(ring.buffer) + PAGE_MASK + ONE
    st64(M, data + (ring.head & (size - ONE)), word)
    ring.head += U8


@jit()
def _id_words(event):
    # event->id_header_size, in words: what attr.sample_id_all puts behind a record that is no sample
    return popcount(event.sample_type & SAMPLE_ID_ALL) if event.sample_id_all != 0 else ZERO


@jit()
def _current(S):
    # perf_event_pid() and perf_event_tid() in one word
    curr = this_cpu(S).curr
    return U64(S.tasks[curr].tgid) | (U64(S.tasks[curr].pid) << U32) if curr >= 0 else ZERO


@jit()
def perf_event__output_id_sample(S, M, ring, event, owner):
    """Who, when and where, behind a record that is no sample. Modifies memory."""
    if event.sample_id_all == 0:
        return
    kind = event.sample_type
    if kind & SAMPLE_TID != ZERO:
        _put(M, ring, _current(S))
    if kind & SAMPLE_TIME != ZERO:
        _put(M, ring, sched_clock(S, this_core(S).t))
    if kind & SAMPLE_ID != ZERO:
        _put(M, ring, owner.id)
    if kind & SAMPLE_STREAM_ID != ZERO:
        _put(M, ring, event.id)
    if kind & SAMPLE_CPU != ZERO:
        _put(M, ring, U64(S.this_cpu))
    if kind & SAMPLE_IDENTIFIER != ZERO:
        _put(M, ring, owner.id)


@jit()
def perf_output_begin(S, M, ring, owner, header, size):
    """Write the header of a record of `size` bytes; False if there is no room for it. Modifies memory.

    `owner` is the event that a program knows, `ring` the one whose ring it writes into.
    """
    if ring.buffer_pages == 0:
        return False
    if ring.paused != 0:
        owner.lost += ONE
        ring.rb_lost += ONE
        return False
    space = U64(ring.buffer_pages << 12)
    lost = ring.rb_lost
    need = size
    told = _U24 + _id_words(owner) * U8  # the size of a PERF_RECORD_LOST
    if lost != ZERO:
        need += told
    if ring.overwrite == 0:
        tail = ld64(M, U64(ring.buffer) + PAGE_DATA_TAIL)
        # CIRC_SPACE(): one byte stays free, and a program may write any tail
        if (tail - ring.head - ONE) & (space - ONE) < need:
            owner.lost += ONE
            ring.rb_lost += ONE
            return False
    if lost != ZERO:
        _put(M, ring, RECORD_LOST | (told << U48))
        _put(M, ring, owner.id)
        _put(M, ring, lost)
        perf_event__output_id_sample(S, M, ring, owner, owner)
        ring.rb_lost = ZERO
    _put(M, ring, header | (size << U48))
    return True


@jit()
def perf_output_end(M, ring):
    """Let the program see what was written: data_head. Modifies memory."""
    st64(M, U64(ring.buffer) + PAGE_DATA_HEAD, ring.head)


@jit()
def _members(S, leader):
    n = ZERO
    for k in range(S.perf_rows):
        if S.perf_events[k].used != 0 and S.perf_events[k].leader == leader:
            n += ONE
    return n


@jit()
def _read_words(S, i):
    form = S.perf_events[i].read_format
    words = ONE + popcount(form & (FORMAT_ID | FORMAT_LOST))
    if form & FORMAT_GROUP != ZERO:
        words = ONE + words * _members(S, S.perf_events[i].leader)
    return words + popcount(form & U3)


@jit()
def _put_value(S, E, M, ring, k):
    if S.perf_events[k].state == PERF_EVENT_STATE_ACTIVE:
        event_update(S, E, k)
    _put(M, ring, S.perf_events[k].count)


@jit()
def _put_times(S, M, ring, form, enabled, running):
    if form & FORMAT_TOTAL_TIME_ENABLED != ZERO:
        _put(M, ring, sched_clock(S, enabled))
    if form & FORMAT_TOTAL_TIME_RUNNING != ZERO:
        _put(M, ring, sched_clock(S, running))


@jit()
def _put_ids(S, M, ring, form, k):
    if form & FORMAT_ID != ZERO:
        _put(M, ring, primary_event(S, k).id)
    if form & FORMAT_LOST != ZERO:
        _put(M, ring, S.perf_events[k].lost)


@jit()
def perf_output_read(S, E, M, ring, i):
    """PERF_SAMPLE_READ: what read() gives, but of this task alone. Modifies memory.

    Of an event with its children that means counts of its own (inherit_and_sample_read). Times are those
    of the event that is sampled, in a group too.
    """
    perf_event_update_time(S, i)
    event = S.perf_events[i]
    form = event.read_format
    enabled = event.total_time_enabled
    running = event.total_time_running
    if form & FORMAT_GROUP == ZERO:
        _put_value(S, E, M, ring, i)
        _put_times(S, M, ring, form, enabled + event.child_enabled, running + event.child_running)
        _put_ids(S, M, ring, form, i)
        return
    k = event.leader
    _put(M, ring, _members(S, k))
    _put_times(S, M, ring, form, enabled, running)
    after = ZERO
    while k >= 0:  # the leader first
        _put_value(S, E, M, ring, k)
        _put_ids(S, M, ring, form, k)
        if k != event.leader:
            after = S.perf_events[k].id
        k = next_member(S, event.leader, after)


@jit()
def perf_event_output(S, E, i):
    """Write one PERF_RECORD_SAMPLE of event i into its ring. Modifies memory."""
    event = S.perf_events[i]
    owner = primary_event(S, i)
    ring = output_ring(S, owner)
    if ring.buffer_pages == 0 or E.memory_size == 0:
        return
    M = memory_at(E.memory, E.memory_size)
    kind = event.sample_type
    words = ONE + popcount(kind & SAMPLE_ONE_WORD)
    if kind & SAMPLE_READ != ZERO:
        words += _read_words(S, i)
    header = RECORD_SAMPLE | (perf_misc_flags(S) << U32)
    if not perf_output_begin(S, M, ring, owner, header, words * U8):
        return
    if kind & SAMPLE_IDENTIFIER != ZERO:
        _put(M, ring, owner.id)
    if kind & SAMPLE_IP != ZERO:
        _put(M, ring, perf_instruction_pointer(S))
    if kind & SAMPLE_TID != ZERO:
        _put(M, ring, _current(S))
    if kind & SAMPLE_TIME != ZERO:
        _put(M, ring, sched_clock(S, this_core(S).t))
    if kind & SAMPLE_ADDR != ZERO:
        _put(M, ring, ZERO)
    if kind & SAMPLE_ID != ZERO:
        _put(M, ring, owner.id)
    if kind & SAMPLE_STREAM_ID != ZERO:
        _put(M, ring, event.id)
    if kind & SAMPLE_CPU != ZERO:
        _put(M, ring, U64(S.this_cpu))
    if kind & SAMPLE_PERIOD != ZERO:
        _put(M, ring, event.last_period)
    if kind & SAMPLE_READ != ZERO:
        perf_output_read(S, E, M, ring, i)
    perf_output_end(M, ring)


@jit()
def perf_log_throttle(S, E, i, enable):
    """PERF_RECORD_THROTTLE (0) or PERF_RECORD_UNTHROTTLE (1) into the event's ring. Modifies memory."""
    event = S.perf_events[i]
    owner = primary_event(S, i)
    ring = output_ring(S, owner)
    if ring.buffer_pages == 0 or E.memory_size == 0:
        return
    M = memory_at(E.memory, E.memory_size)
    header = RECORD_UNTHROTTLE if enable != 0 else RECORD_THROTTLE
    if perf_output_begin(S, M, ring, owner, header, U32 + _id_words(event) * U8):
        _put(M, ring, sched_clock(S, this_core(S).t))
        _put(M, ring, owner.id)
        _put(M, ring, event.id)
        perf_event__output_id_sample(S, M, ring, event, owner)
        perf_output_end(M, ring)
