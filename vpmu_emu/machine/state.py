"""The core's whole state as NumPy dtypes: what is not here does not change during a run.

Every field has its unit and meaning beside it. There are no holes (a test proves it), so two runs are
equal when their bytes are equal. Times are int64 in 1/16 cycle of the core, values uint64,
ids, counts of rows and codes int64. `ENGINE` is scratch: it never changes a result and is not saved.
"""

from __future__ import annotations

import numpy as np

from vpmu_emu.tables.cpus import LATENCIES
from vpmu_emu.tables.exits import EXITS
from vpmu_emu.tables.msrs import MSRS, SLOTS
from vpmu_emu.tables.ram import MAX_RAM_MIB

# --- sizes: constants, because a dtype that varied would recompile everything ---------------------------
N_GP = 8  # general-purpose counters that the record has room for
N_FIXED = 4  # fixed counters
N_CTR = N_GP + N_FIXED  # counter i < N_GP is IA32_PMCi, N_GP + j is IA32_FIXED_CTRj
N_TLB = 256  # direct-mapped entries for reads, and as many for writes, at CPL 0 and at CPL > 0
N_CORES = 2  # of the board
N_SPACES = 32  # address spaces, see core.space
GENERATIONS = 1 << 10  # of decoded code that its keys tell apart: 48 bits address, 10 these, 6 space, ring
N_ITLB = 64  # pages that instructions were fetched from since the last flush
N_PREDICTOR = 1024  # 2-bit counters
N_L1 = 512  # direct-mapped 64-byte lines
N_L2 = 4096  # at the most: the CPU model says how many are used
N_LLC = 16384
N_STREAMS = 16  # streams of misses that the prefetcher follows
N_CPUID = 16  # entries of the CPUID table
N_SLOTS = 4  # pieces of physical memory
N_LBR = 32  # last branch records
N_DR = 4  # breakpoints
N_METRICS = 8  # fields of PERF_METRICS
N_PMI = 2  # ways of a PMI to the core: PMI_NMI, PMI_FIXED
N_MMIO = 8  # accesses to devices that an emulated instruction can have (IRETQ reads five words)
PEBS_WORDS = 4 + 4 + 18 + 32 + 3 * N_LBR  # the largest PEBS record
N_EXITS = max(row.number for row in EXITS) + 1
N_MSR_ROWS = len(MSRS)
N_LATENCY = len(LATENCIES)

# --- registers ------------------------------------------------------------------------------------------
# regs[0:16] are rax rcx rdx rbx rsp rbp rsi rdi r8-r15, then what addressing reads as a register.
RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)
REG_ZERO = 16  # always 0: an absent base or index
REG_FS = 17  # FS base
REG_GS = 18  # GS base
REG_IMM = 19  # scratch of the interpreter; 0 at every stop
N_REGS = 20

PMI_NMI, PMI_FIXED = range(N_PMI)  # what the delivery mode of LVTPC says

# --- running totals, kept apart for CPL 0 (row 0) and CPL > 0 (row 1) ------------------------------------
CLASSES = (
    "inst", "branch", "load", "store", "nop", "far",  # first packed lane word of a micro-op
    "cond", "taken", "call", "ret", "indirect",  # second one
    "brmiss", "llcref", "llcmiss",  # counted where they happen
    "fetched",  # lines that came from memory, prefetched ones too
    "memory",  # time that loads and stores waited for what L1 does not hold, in 1/16 cycle
    "cycles",  # unhalted time in 1/16 cycle
)  # fmt: skip
LANES1 = CLASSES[:6]
LANES2 = CLASSES[6:11]
LANE_BITS = 10
CLASS = {name: i for i, name in enumerate(CLASSES)}
N_CLASSES = len(CLASSES)
# What tells branches apart, one after another: from `far` to `brmiss`.
FIRST_BRANCH_CLASS = CLASS["far"]
N_BRANCH_CLASSES = CLASS["brmiss"] + 1 - FIRST_BRANCH_CLASS

UOP = np.dtype(
    [
        ("imm", "u8"),
        ("disp", "u8"),
        ("rip", "u8"),  # of the instruction
        ("lanes1", "u8"),  # what it retires: 10-bit lanes inst branch load store nop far
        ("lanes2", "u8"),  # cond taken call ret indirect
        ("op", "i4"),  # arm of the interpreter
        ("cost", "i4"),  # 1/16 cycle
        ("target", "i4"),  # micro-op of a direct branch's target or of a link; -1 not looked up yet
        ("bp", "i4"),  # predictor entry
        ("a", "u1"),  # destination register
        ("r", "u1"),  # source register
        ("b", "u1"),  # base register
        ("c", "u1"),  # index register
        ("scale", "u1"),
        ("seg", "u1"),  # REG_FS, REG_GS or REG_ZERO
        ("len", "u1"),  # bytes
        ("width", "u1"),  # 8 16 32 64: operand size in bits
        ("width2", "u1"),  # of the source of MOVZX/MOVSX
        ("dst", "u1"),  # kind of operand 1, see decode
        ("src", "u1"),  # kind of operand 2
        ("cc", "u1"),  # condition, or REP kind
        ("lock", "u1"),
        ("rmw", "u1"),  # 1: operand 1 is memory that is read, then written
        ("emulator", "u1"),  # what a hypervisor's emulator does with it, see the instruction table
        ("addr32", "u1"),  # 1: addresses, and the counts of LOOP and REP, have 32 bits
    ]
)

LAPIC = np.dtype(
    [
        ("software", "i8"),  # 1: a hypervisor keeps these registers, with a version and masks of its own
        ("timer_mode_mask", "u8"),  # then: which bits of the timer's entry choose its mode
        ("apic_base", "u8"),  # IA32_APIC_BASE: 8 BSP, 10 x2APIC, 11 enable
        ("id", "u8"),
        ("tpr", "u8"),
        ("spiv", "u8"),  # bit 8: software enable
        ("esr", "u8"),
        ("icr", "u8"),  # bits 63:32 of xAPIC mode are ICR2
        ("ldr", "u8"),  # logical destination of xAPIC mode; x2APIC derives its own from the id
        ("dfr", "u8"),  # destination format: flat or cluster
        ("ipi_out", "i8"),  # 1: the message in `icr` is still to reach the other cores
        ("irr", "u8", (4,)),  # 256 request bits
        ("isr", "u8", (4,)),  # 256 in-service bits
        ("lvt", "u8", (7,)),  # CMCI, timer, thermal, PMI, LINT0, LINT1, error
        ("divide", "u8"),  # divide configuration register as written
        ("init_count", "u8"),
        ("tsc_deadline", "u8"),  # IA32_TSC_DEADLINE in the clock of this APIC's owner; 0 disarmed
        ("timer_start", "i8"),  # time at which the running count was loaded
        ("timer_at", "i8"),  # time at which the timer fires; NEVER when it is not running
        ("clock_num", "u8"),  # the timer's clock before its divider ticks clock_num / clock_den
        ("clock_den", "u8"),  # times a core cycle
    ]
)

PMU = np.dtype(
    [
        ("eventsel", "u8", (N_GP,)),  # IA32_PERFEVTSELx as written
        ("uncounted", "u8", (N_GP,)),  # selector of a program that counted nothing, 0 none
        ("fixed_ctr_ctrl", "u8"),
        ("global_ctrl", "u8"),
        ("global_status", "u8"),
        ("debugctl", "u8"),  # IA32_DEBUGCTL (bit 12: freeze on PMI)
        ("pebs_enable", "u8"),
        ("pebs_data_cfg", "u8"),
        ("ds_area", "u8"),
        ("pebs_armed", "u8"),  # bits of pebs_enable whose counters overflowed: their next event is recorded
        # A counter's value is ctr_base + (running total of its event - snap) while armed, else ctr_base.
        # Both change only on architectural events, so that no engine policy can be seen in them.
        ("ctr_base", "u8", (N_CTR,)),
        ("snap", "u8", (N_CTR,)),
        ("event", "i8", (N_CTR,)),  # row of the events table that it counts, -1 none
        ("rings", "i8", (N_CTR,)),  # 1 counts at CPL 0, 2 at CPL > 0, 3 both
        ("cmask", "i8", (N_CTR,)),  # per-cycle threshold (CMASK), 0: plain counting
        ("invert", "i8", (N_CTR,)),  # INV
        ("edge", "i8", (N_CTR,)),  # EDGE
        ("cyc_time", "i8", (N_CTR,)),  # per-cycle counting: matched time up to which it is evaluated
        ("cyc_snap", "u8", (N_CTR,)),  # and the event's total then
        ("cyc_sum", "u8", (N_CTR,)),  # events in the cycle that is not over yet
        ("cyc_last", "i8", (N_CTR,)),  # whether the last whole cycle met the condition (EDGE)
        ("cyc_at", "i8", (N_CTR,)),  # time of that evaluation: matched or not
        ("local", "u8"),  # bit i: the selector of counter i enables it
        ("armed", "u8"),  # bit i: counter i counts now
        ("stepping", "i8"),  # how many armed counters evaluate cycle by cycle
        # shape of this core (CPUID leaf 0xA and IA32_PERF_CAPABILITIES)
        ("version", "i8"),
        ("gp", "i8"),
        ("fixed", "i8"),
        ("gp_mask", "u8"),  # (1 << counter width) - 1
        ("fixed_mask", "u8"),
        ("perf_capabilities", "u8"),
        ("masks_lvtpc", "i8"),  # 1: delivering a PMI masks its LVT entry
        ("event_mask", "u8"),  # bit k: this CPU has row k of the events table
        ("events_absent", "u8"),  # CPUID.0AH:EBX
        ("events_length", "i8"),  # CPUID.0AH:EAX[31:24]
        # A PMI on its way: from the overflow to the LVT entry, from there to the core. Whose it is are bits
        # of their owners, bit 32 up those of them who would have had it without a skid; only reports look.
        ("skid_message", "i8"),  # time from the overflow to the message
        ("skid_recognition", "i8"),  # and from the message to its recognition
        ("whose", "u8"),  # who owns the counters: bit 0 the core's own program, the others as it says
        ("pmi_at", "i8"),  # the earliest of the next three
        ("message_at", "i8"),  # time at which the LVT entry decides, NEVER: none is on its way
        ("message_whose", "u8"),  # whose overflows it stands for
        ("flight_at", "i8", (N_PMI,)),  # time at which the core gets it, by PMI_*; NEVER
        ("flight_whose", "u8", (N_PMI,)),
        ("flight_vector", "i8"),  # of PMI_FIXED
        ("latched_whose", "u8", (N_PMI,)),  # of what the core has got and not yet taken
    ]
)

METRICS_TOTALS = ("cycles", "inst", "brmiss", "memory")  # that PERF_METRICS is made of

METRICS = np.dtype(
    [
        ("count", "i8"),  # fields that this silicon has: 4, with level 2 all 8
        ("written", "u8"),  # what was written last; it is read as long as there are no slots
        ("time", "u8"),  # all slots behind the shares, in 1/16 cycle
        ("share", "u8", (N_METRICS,)),  # of each field, in 1/255 of 1/16 cycle
        ("rings", "i8"),  # of fixed counter 3 while both count (1 CPL 0, 2 CPL > 0, 3 both), else 0
        ("snap", "u8", (len(METRICS_TOTALS),)),  # running totals up to which the shares are settled
    ]
)

LBR = np.dtype(
    [
        ("kind", "i8"),  # LBR_* of machine/lbr.py: none, legacy, architectural
        ("ctl", "u8"),  # IA32_LBR_CTL, or MSR_LBR_SELECT
        ("depth", "i8"),  # records in use
        ("tos", "i8"),  # MSR_LASTBRANCH_TOS: the newest record; architectural: always 0
        ("since", "u8"),  # unhalted cycles when the last record was written, or recording began
        ("source", "u8", (N_LBR,)),  # FROM_IP
        ("target", "u8", (N_LBR,)),  # TO_IP
        ("info", "u8", (N_LBR,)),
    ]
)

BOARD = np.dtype(
    [
        ("ier", "u8"),  # COM1, a 16550: interrupt enable
        ("lcr", "u8"),  # line control; bit 7: the first two ports are the divisor
        ("mcr", "u8"),  # modem control; bit 4: loop
        ("divisor", "u8"),
        ("scratch", "u8"),
        ("fifo", "u8"),  # FIFO control, bit 0
        ("received", "u8"),  # the byte that the loop sent back
        ("ready", "u8"),  # 1: it was not read yet
        ("pic_mask", "u8", (2,)),  # interrupt mask of the two 8259
        ("pic_words", "u8", (2,)),  # initialisation words that they still expect
        ("port_b", "u8"),  # port 0x61: gate and speaker
        ("rtc_index", "u8"),  # port 0x70
    ]
)

VMX = np.dtype(
    [
        ("root", "i8"),  # 1 after VMXON
        ("nonroot", "i8"),  # 1 while a guest runs
        ("vmcs", "i8"),  # physical address of the current VMCS, -1 none
        # what the processor caches of the VMCS between entry and exit
        ("pin", "u8"),
        ("proc", "u8"),
        ("exceptions", "u8"),  # exception bitmap: vectors that leave the guest
        ("exit_ctl", "u8"),
        ("entry_ctl", "u8"),
        ("msr_bitmap", "i8"),  # physical address
        ("tsc_offset", "u8"),
        ("preempt_at", "i8"),  # time at which the preemption timer expires; NEVER when off
        ("apicv", "i8"),  # 1: virtual-interrupt delivery on `vapic`, x2APIC accesses virtualised
        ("exit_reason", "u8"),
        ("exit_qual", "u8"),
        ("exit_intr_info", "u8"),
        ("exit_intr_err", "u8"),
        ("exit_insn_len", "u8"),
        ("idt_vectoring", "u8"),  # the event that was being delivered at the exit, as in the VMCS
        ("exit_t", "i8"),  # time of the last exit
    ]
)

STATS = np.dtype(
    [
        ("exits", "u8", (N_EXITS,)),  # VM exits by basic reason
        ("msr_reads", "u8", (SLOTS,)),  # guest RDMSR that did not fault, by MSR instance
        ("msr_writes", "u8", (SLOTS,)),
        ("msr_exits", "u8", (SLOTS,)),  # those of them (faulting ones too) that left the guest
        ("rdpmcs", "u8"),  # guest RDPMC that did not fault
        ("pmis_hw", "u8"),  # PMIs that the hardware PMU raised through an unmasked LVTPC
        ("pmis", "u8"),  # PMIs that reached the guest's own LVTPC
        ("pmis_lost", "u8"),  # that found their LVT entry open at the overflow, and closed when they came
        ("overflows", "u8"),  # hardware counter overflows
        ("host_insns", "u8"),  # instructions that host work retired
        ("host_branches", "u8"),
        ("task_insns", "u8"),  # instructions of host programs at CPL 3 in root mode
        ("host_time", "i8"),  # time that host work took
        ("emulated", "u8"),  # guest instructions that a hypervisor did on this core: they retire nowhere
        ("delivered_at", "u8"),  # guest instructions done when an exception or interrupt was delivered last
        ("fruitless", "u8"),  # deliveries since whose predecessor no instruction was done
        ("exceptions", "u8", (32,)),  # delivered, by vector
    ]
)

CPUID = np.dtype(
    [
        ("leaf", "u8"),
        ("subleaf", "u8"),  # ALL: whatever ECX says
        ("eax", "u8"),
        ("ebx", "u8"),
        ("ecx", "u8"),
        ("edx", "u8"),
    ]
)

CORE = np.dtype(
    [
        ("regs", "u8", (N_REGS,)),
        ("rip", "u8"),
        ("rflags", "u8"),  # exact at every stop; inside a slice CF PF AF ZF SF OF live in fz fs cv
        ("fz", "u8"),  # zero iff ZF
        ("fs", "u8"),  # bit 63 SF, low byte gives PF
        ("cv", "u8"),  # carry vector: bit 63 CF, bit 63 ^ bit 62 OF, bit 3 AF
        ("t", "i8"),  # now
        ("turn", "i8"),  # 1: of the cores of the board this one runs
        ("turn_end", "i8"),  # time at which its turn is over; NEVER if no other core wants one
        # An instruction with REP that has begun goes on as it was decoded, whatever its bytes say now.
        ("iterations", "u8"),  # that it has done so far, 0: there is none
        ("rep", UOP, (1,)),  # it, while somebody looks between two of its iterations; else all zero
        ("cpl", "i8"),
        ("cr0", "u8"),
        ("cr2", "u8"),
        ("cr3", "u8"),
        ("cr4", "u8"),
        ("xcr0", "u8"),  # XSETBV: state that XSAVE would manage
        ("dr", "u8", (N_DR,)),  # DR0 to DR3
        ("dr6", "u8"),
        ("dr7", "u8"),
        ("pending_debug", "u8"),  # why #DB is due (B0-B3 BS, as in DR6): MOV SS or a delivery made it wait
        ("efer", "u8"),
        ("star", "u8"),
        ("lstar", "u8"),
        ("cstar", "u8"),
        ("fmask", "u8"),
        ("kernel_gs_base", "u8"),
        ("tsc_aux", "u8"),
        ("sysenter_cs", "u8"),
        ("sysenter_esp", "u8"),
        ("sysenter_eip", "u8"),
        ("pat", "u8"),
        ("power_ctl", "u8"),
        ("tsc_adjust", "u8"),  # what WRMSR to IA32_TIME_STAMP_COUNTER added
        ("misc_enable", "u8"),
        ("selectors", "u8", (6,)),  # es cs ss ds fs gs
        ("gdt_base", "u8"),
        ("gdt_limit", "u8"),
        ("idt_base", "u8"),
        ("idt_limit", "u8"),
        ("tr", "u8"),
        ("tr_base", "u8"),
        ("tr_limit", "u8"),
        ("ldtr", "u8"),
        ("shadow", "i8"),  # 1 STI, 2 MOV SS: interrupts wait for one more instruction
        ("nmi_blocked", "i8"),  # until IRET
        ("nmi_pending", "i8"),
        ("nmi_at", "i8"),  # time at which the board raises an NMI, until somebody sets another; NEVER
        ("activity", "i8"),  # 0 active, 1 halted, 2 waiting for a startup message
        ("cores", "i8"),  # cores on the board
        ("number", "i8"),  # which of them this is
        ("space", "i8"),  # address space that runs: decoded code of two is kept apart; below N_SPACES
        ("kernel", "i8"),  # 1: CPL 0 of root mode is compiled code: a program at CPL 3 traps to it
        ("trap", "i8"),  # why it did, until that is dealt with: TRAP_*, 0 none
        ("trap_error", "u8"),  # error code of the exception
        ("stop", "i8"),  # why the run ended (STOP_*), 0 while it goes on
        ("stop_info", "u8"),  # debug-exit value, vector of a triple fault
        ("serial_len", "i8"),  # bytes written to COM1
        ("slot_gpa", "u8", (N_SLOTS,)),  # physical memory seen by the running program: base,
        ("slot_size", "u8", (N_SLOTS,)),  # size in bytes,
        ("slot_at", "u8", (N_SLOTS,)),  # and where it lies: in the host array, or for its owner
        ("slot_tables", "u8"),  # host offset of the page tables of the slots' owner, 0: the host array
        ("total", "u8", (2, N_CLASSES)),  # running totals by CPL class; cycles in 1/16
        ("features", "i8"),  # bits by `tables.instructions.FEATURES`: what bytes are instructions
        ("latency", "i8", (N_LATENCY,)),  # 1/16 cycle per cost class of the CPU model
        ("tsc_num", "u8"),  # cycles of the TSC per core cycle = tsc_num / tsc_den; reference cycles are
        ("tsc_den", "u8"),  # those of unhalted time
        ("xclk_num", "u8"),  # cycles of the crystal per core cycle = xclk_num / xclk_den
        ("xclk_den", "u8"),
        ("msr_n", "i8", (N_MSR_ROWS,)),  # instances that exist on this silicon, by row of the table
        ("msr_reserved", "u8", (N_MSR_ROWS,)),  # writing any of these bits is #GP
        ("msr_access", "i8", (N_MSR_ROWS,)),  # 0 read-write, 1 read-only, 2 write-only, 3 dropped
        ("cpuid", CPUID, (N_CPUID,)),  # what the CPUID instruction answers; leaf ALL: unused entry
        ("ignore_msrs", "i8"),  # 1: unknown MSRs read 0 and drop writes instead of #GP
        ("inject", "u8"),  # bits of isa/mutants.toml: bugs that tests must find
        ("pmu", PMU),
        ("metrics", METRICS),
        ("lbr", LBR),
        ("lapic", LAPIC),  # the core's own local APIC
        ("vapic", LAPIC),  # the running guest's virtual-APIC page
        ("board", BOARD),  # serial port and the old devices of a PC
        ("vmx", VMX),
        ("stats", STATS),
        ("pa_reserved", "u8"),  # address bits of a paging entry above MAXPHYADDR
        ("tlb_read", "u8", (2, N_TLB)),  # virtual page base that may be read, 1 none
        ("tlb_write", "u8", (2, N_TLB)),
        ("add_read", "u8", (2, N_TLB)),  # add to a virtual address to index the host array
        ("add_write", "u8", (2, N_TLB)),
        ("itlb_n", "i8"),  # entries in use of the next two
        ("itlb_page", "u8", (N_ITLB,)),  # virtual page base, plus 1 at CPL 0, 2 at CPL > 0
        ("itlb_add", "u8", (N_ITLB,)),
        ("global_read", "u1", (2, N_TLB)),  # 1: a write to CR3 leaves the entry
        ("global_write", "u1", (2, N_TLB)),
        ("predictor", "u1", (N_PREDICTOR,)),
        ("l1", "u4", (N_L1,)),  # line number + 1 of what the slot holds
        ("l2_bits", "u8"),  # log2 of the lines in use
        ("llc_bits", "u8"),
        ("l2", "u2", (N_L2,)),  # line number above those bits, + 1
        ("llc", "u2", (N_LLC,)),
        ("prefetch_l2", "i8"),  # lines that the prefetcher runs ahead of a stream, in L2
        ("prefetch_llc", "i8"),  # and in the LLC; 0: there is no prefetcher
        ("stream_line", "i8", (N_STREAMS,)),  # the last line of the stream that L1 missed
        ("stream_step", "i8", (N_STREAMS,)),  # from miss to miss, in lines; 0 no stream yet
        ("stream_near", "i8", (N_STREAMS,)),  # lines ahead of it that are asked for, in L2
        ("stream_far", "i8", (N_STREAMS,)),  # and in the LLC
    ]
)

# --- what native code keeps in registers ------------------------------------------------------------------
WORDS = np.dtype(
    [
        ("regs", "u8", (N_REGS,)),  # as in CORE, and the flags and the time
        ("fz", "u8"),
        ("fs", "u8"),
        ("cv", "u8"),
        ("t", "i8"),
        ("taken", "u8"),  # branches taken that are not in the totals yet, as a packed lane word
        ("target", "u8"),  # where a return or an indirect jump leads to
        ("pc", "i8"),  # 1: what follows is next in memory, TAKEN_BRANCH: the target
        ("late", "i8"),  # LATE_*: whose carries nobody has asked for; 0: cv has them
        ("late_x", "u8"),  # its operands
        ("late_y", "u8"),
        ("by_one", "i8"),  # BY_ONE_*: the INC or DEC after it that gave fz; 0: there was none
    ]
)
N_WORDS = WORDS.itemsize // 8
# and what it is given by the loop, and gives back: see E.region
W_LANES1, W_LANES2, W_MARK, W_LIMIT = range(4)
N_WIDE = -(-(len(LANES1) + len(LANES2)) // 4)  # words of four 16-bit lanes
W_WIDE = 4  # what native code has counted and not yet added to the totals; TAKEN comes last
N_REGION = W_WIDE + N_WIDE + 1

# --- scratch of the engine ------------------------------------------------------------------------------
N_UOPS = 1 << 19
N_MAP = 1 << 19
MAX_HOST_MIB = 64  # of the host, above its guest's memory, at the most
N_PAGES = (MAX_RAM_MIB + MAX_HOST_MIB) << 8  # of the host array at the most
N_CODE = 1 << 10  # pages that may hold decoded code at one time
N_STORED = 1 << 10
CODE_WORDS = 64  # a bit per byte of a page
CODE_LINES = 64  # of 64 bytes in a page
MAX_LENGTH = 15  # bytes of an instruction
N_RING = 1 << 16
N_FAULTS = 16  # more than one triple fault is made of
N_SERIAL = 1 << 20
N_HOT = 64
N_NATIVE_PAGES = 16
N_BREAK = 64
N_WATCH = 16
N_CATCH = 16
N_DATA = 8
N_CONDITIONS = 128  # one for each of these, and one more
CONDITION_WORDS = 32

EVENT = np.dtype(
    [
        ("t", "i8"),  # time in 1/16 cycle
        ("kind", "i4"),  # TR_* of machine/ring.py and linux/trace kinds
        ("cpu", "i4"),  # core on which it happened
        ("rip", "u8"),
        ("a", "u8"),
        ("b", "u8"),
        ("c", "u8"),
    ]
)

ENGINE = np.dtype(
    [
        ("n_uops", "i8"),
        ("generation", "i8"),  # grows when decoded code is thrown away
        ("horizon", "i8"),  # 0 as far as is safe, else at most this many instructions (a test's knob)
        ("horizon_seed", "u8"),  # nonzero: random horizons from this state
        ("t_slice", "i8"),  # return to Python at the first edge at or after this time
        ("t_limit", "i8"),  # the run may not go beyond this time
        ("insn_limit", "u8"),  # return once the guest has done this many instructions, see guest_work()
        ("task_limit", "u8"),  # the same of the programs of the host on a core, the VMM apart
        ("due", "i8", (N_CORES,)),  # when each core can go on, while the next turn is chosen
        ("fault_vector", "i8"),
        ("fault_error", "u8"),
        ("fault_has_error", "i8"),
        ("fault_address", "u8"),  # CR2 of a page fault
        ("walk", "u8", (4,)),  # host offsets of the paging entries on the way down
        ("intent", "i8"),  # 1: what is read will be written back
        ("page_global", "i8"),  # the last translation met a global page
        ("bus_address", "u8"),  # physical address of an access that no memory answers
        ("bank", "i8"),  # core.space << 1 | (CPL > 0) of the slice: decoded code is kept apart
        ("debug_hits", "u8"),  # B0-B3: breakpoints that the instruction or delivery at hand has met
        ("debug_bits", "u8"),  # why the #DB that is noted comes, as in DR6
        ("fault_canonical", "i8"),  # 0: it is a #GP for a non-canonical address
        ("retired", "i8"),  # set by a system instruction that retired itself
        # of the instruction that is stepped over while somebody records: what was before it
        ("step_rip", "u8"),
        ("step_end", "u8"),  # address of the next one in memory
        ("step_totals", "u8", (N_BRANCH_CLASSES,)),  # running totals of both rings
        ("step_address", "u8"),  # that it loads from or stores to, 0 none
        ("step_pebs", "u8"),  # the counters that wait for an event,
        ("step_event", "i8", (N_CTR,)),  # what and where they count,
        ("step_rings", "i8", (N_CTR,)),
        ("step_events", "u8", (N_CTR,)),  # and its total
        ("pebs", "u8", (PEBS_WORDS,)),  # the record in the making
        ("stop_request", "i8"),  # a watchpoint matched: stop at the next edge
        # what else a debugger asks for
        ("stop_t", "i8"),  # stop at the first edge at or after this time, NEVER
        ("stop_cpu", "i8"),  # of this core
        ("until", "i8"),  # stop at the first edge where this condition holds: its number + 1, 0 none
        ("until_met", "i8"),  # 1: that is why it stopped
        ("returns", "u8"),  # RET and IRETQ that had retired when RETURNED was asked last
        ("pass_rip", "u8"),  # the instruction here runs, whatever waits before it,
        ("pass_cpu", "i8"),  # when it is the next one of this core + 1; 0 none
        ("passing", "i8"),  # 1: it is at hand
        ("stopped_before", "i8"),  # watchpoint + 1 that stopped before its access
        ("probe", "i8"),  # PROBE_*: the guest does this access before anything else
        ("probe_done", "i8"),  # PROBE_DONE or PROBE_FAULT once it did
        ("program_memory", "u8"),  # bytes of the program's RAM below the hole
        ("condition_op", "i8", (N_CONDITIONS, CONDITION_WORDS)),  # of machine/conditions.py
        ("condition_word", "u8", (N_CONDITIONS, CONDITION_WORDS)),
        ("condition_stack", "u8", (CONDITION_WORDS,)),
        ("n_catch", "i8"),
        ("catch_kind", "i8", (N_CATCH,)),  # TR_*: an event of it stops
        ("catch_condition", "i8", (N_CATCH,)),  # number + 1 of a condition of its words, 0 none
        ("n_data", "i8"),  # watchpoints on memory
        ("data_first", "u8", (N_DATA,)),  # linear addresses
        ("data_size", "u8", (N_DATA,)),  # bytes
        ("data_mode", "i8", (N_DATA,)),  # 1 read, 2 write, 3 both
        ("data_hit", "i8"),  # watchpoints that the instruction at hand has met (bits)
        ("n_break", "i8"),
        ("n_watch", "i8"),
        ("undelivered", "i8"),  # why the last event that did not get through its gate did not: GATE_*
        ("gate", "u8"),  # the low half of that gate, 0 if it was not read
        ("faults_n", "i8"),  # events of `faults` so far
        ("faults", EVENT, (N_FAULTS,)),  # the last of those that end runs, whether anybody traces or not
        ("outside_n", "i8"),  # how often an instruction outside of the table raised #UD
        ("outside_rip", "u8"),  # where the first one stands
        ("outside_size", "i8"),  # bytes of it that were seen
        ("trace_on", "i8"),
        ("cpu", "i8"),  # core that runs: for the trace
        ("ring_head", "i8"),  # events written so far; the ring keeps the last N_RING
        ("breaks", "u8", (N_BREAK,)),
        ("break_condition", "i8", (N_BREAK,)),  # number + 1, 0 none
        ("watch_msr", "u8", (N_WATCH,)),  # from this index
        ("watch_last", "u8", (N_WATCH,)),  # to this one
        ("watch_mode", "i8", (N_WATCH,)),  # 1 read, 2 write, 3 both
        ("watch_stage", "i8", (N_WATCH,)),  # 0 after the access, 1 before it
        ("watch_value", "u8", (N_WATCH,)),  # only with these bits
        ("watch_mask", "u8", (N_WATCH,)),  # under this mask
        ("watch_changes", "i8", (N_WATCH,)),  # 1: only writes that change something, reads that find it
        ("watch_known", "i8", (N_WATCH,)),  # 1: it has seen an access,
        ("watch_seen", "u8", (N_WATCH,)),  # and this value
        ("watch_condition", "i8", (N_WATCH,)),  # number + 1 of a condition of index, value, old; 0 none
        ("hot_after", "i8"),  # so often a direct branch is taken before native code is asked for; 0 never
        ("n_hot", "i8"),  # asked for since Python looked last:
        ("hot_uop", "i8", (N_HOT,)),  # the micro-op where it is to begin,
        ("hot_bank", "i8", (N_HOT,)),
        ("hot_generation", "i8", (N_HOT,)),  # while decoded code is this
        ("region", "u8", (N_REGION,)),  # between the loop and native code, and from region to region
        ("n_region", "u8"),  # times that the loop entered native code
        ("map_key", "u8", (N_MAP,)),  # rip + 1, with the generation and the bank above
        ("map_uop", "i4", (N_MAP,)),
        ("n_code", "i8"),  # rows of code_bytes in use
        ("code_size", "i8"),  # bytes that made the micro-op decoded last
        ("stored", "u8", (N_STORED,)),  # 8-byte pieces that lay in decoded code and were stored to, plus 1
        ("code_row", "u8", (N_PAGES,)),  # generation << 10 | row of code_bytes; another generation: none
        ("code_bytes", "u8", (N_CODE, CODE_WORDS)),  # bit per byte of a page that is decoded
        # the micro-op decoded last that begins in a line of a page, 0 none; behind them: 1 if one of the
        # page before ends in it
        ("code_line", "i4", (N_CODE, CODE_LINES + 1)),
        ("code_before", "i4", (N_UOPS,)),  # the one decoded before it that begins in the same line
        ("code_span", "u1", (N_UOPS,)),  # how many bytes it was made of
        ("code_native", "u1", (N_UOPS,)),  # 1: native code has it
        ("native_drops", "i8"),  # stores into such,
        ("native_page", "u8", (N_NATIVE_PAGES,)),  # and the linear pages of the last of them
        ("page_flags", "u1", (N_PAGES,)),  # 1 code was executed here (sticky), 2 dirty; belongs to RAM
        ("outside", "u1", (16,)),  # its bytes and what follows
        ("fetch", "u1", (16,)),  # bytes of the instruction being decoded
        ("emulating", "i8"),  # 1: a hypervisor executes an instruction of its guest; 2: that has no APIC
        ("apic_effect", "i8"),  # what that instruction did to its guest through the xAPIC page
        ("port_ready", "i8"),  # 1: its VMM has done the access of this iteration of INS or OUTS
        ("port_value", "u8"),  # what OUTS gives to the VMM, or the VMM to INS
        ("port_count", "u8"),  # elements that INS asks its VMM for at once
        ("port_left", "u8"),  # of those that it gave
        ("port_at", "u8"),  # where the next one lies in the host array
        # accesses of an emulated instruction to addresses where only its VMM may have something
        ("mmio_read", "u8", (N_MMIO,)),  # what the VMM gave so far, in the order in which it was asked
        ("mmio_reads", "i8"),  # how much of it there is
        ("mmio_next", "i8"),  # of these, the next one to be read
        ("mmio_asks", "i8"),  # 1: it has to be asked: mmio_gpa[0] and mmio_len[0]
        ("mmio_gpa", "u8", (N_MMIO,)),  # writes that it is to be told of, and their addresses,
        ("mmio_len", "u8", (N_MMIO,)),  # bytes
        ("mmio_data", "u8", (N_MMIO,)),  # and values
        ("mmio_writes", "i8"),
        ("kept_total", "u8", (2, N_CLASSES)),  # core.total while an instruction is emulated
        ("memory", "u8"),  # where physical memory is in the emulator's own, for work without M at hand
        ("memory_size", "i8"),  # its bytes; 0: there is none
        ("serial", "u1", (N_SERIAL,)),
        ("uops", UOP, (N_UOPS,)),
        ("ring", EVENT, (N_RING,)),
    ]
)

NEVER = np.int64((1 << 63) - 1)
END_OF_TIME = np.int64((1 << 63) - (1 << 48))  # no run goes on beyond, so that sums of times stay times
BEYOND = np.int64((1 << 63) - 16)  # when something happens that is to happen after the end of time

PROBE_RDMSR, PROBE_WRMSR = 1, 2  # E.probe
PROBE_DONE, PROBE_FAULT = 1, 2  # E.probe_done

# --- why a slice of execution came back -----------------------------------------------------------------
# Below CODE_NOT_RETIRED the instruction at hand retired.
CODE_NEXT = 0  # go on with the next micro-op
CODE_JUMP = 1  # rip is set; look the micro-op up
CODE_EDGE = 2  # something that ends the horizon; rip is set
CODE_REPEAT = 3  # one iteration of a REP instruction is done, more follow: nothing retired yet
CODE_NOT_RETIRED = 16
CODE_FAULT = 16  # E.fault_*: deliver an exception
CODE_EXIT = 17  # VM exit: core.vmx.exit_*
CODE_BREAK = 18  # breakpoint before the instruction at rip

# --- why a run ended (core.stop) ------------------------------------------------------------------------
STOP_NONE = 0
STOP_DEBUG_EXIT = 1
STOP_HALTED = 2
STOP_TRIPLE_FAULT = 3
STOP_SHUTDOWN = 4  # KVM gave up: internal error, reported with stop_info
STOP_RESET = 5  # the program reset the machine
STOP_HARD_LOCKUP = 6  # the host kernel panicked: a CPU does not serve its interrupts, see stop_info
STOP_NAMES = {
    STOP_NONE: "running",
    STOP_DEBUG_EXIT: "debug-exit",
    STOP_HALTED: "halted",
    STOP_TRIPLE_FAULT: "triple-fault",
    STOP_SHUTDOWN: "shutdown",
    STOP_RESET: "reset",
    STOP_HARD_LOCKUP: "hard-lockup",
}
# codes with which run functions return to Python without the run being over
RUN_SLICE = 100
RUN_BREAK = 101
RUN_WATCH = 102
RUN_STOPPED = 103  # core.stop says why
RUN_LIMIT = 104  # E.insn_limit is reached
RUN_TRAP = 105  # a program in root mode needs its kernel: core.trap
RUN_SYSCALL = 106  # a host program has a system call for Python
RUN_TURN = 109  # the core's turn is over
RUN_TIME = 110  # E.t_limit is reached, or nothing happens before it
# between the host's own loops
RUN_RESCHED = 107  # the host has something else to do on this core
RUN_USER = 108  # KVM_RUN returns to the VMM
TRAP_SYSCALL = 256  # values of core.trap
TRAP_INTERRUPT = 257
TRAP_EXCEPTION = 512  # and the vector
