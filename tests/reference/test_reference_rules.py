"""The rules of counting, in the words of the manuals, asked of the reference and of the engine."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vpmu_emu.asm import assemble

from .compare import Outcome, engine_run, reference_run
from .generator import HANDLERS, RESULTS_SIZE, RINGS, TABLES
from .pmu import CTR_FRZ, Shape

EVTSEL0, PMC0, A_PMC0 = 0x186, 0xC1, 0x4C1
FIXED0, FIXED_CTRL = 0x309, 0x38D
STATUS, CTRL, RESET, SET, INUSE = 0x38E, 0x38F, 0x390, 0x391, 0x392
LVTPC, SPIV, TPR, SELF_IPI = 0x834, 0x80F, 0x808, 0x83F
EN, OS, USR, INT = 1 << 22, 1 << 17, 1 << 16, 1 << 20
ALL = EN | OS | USR
TOP = 1 << 48


def wrmsr(msr: int, value: int) -> str:
    low, high = value & 0xFFFFFFFF, value >> 32
    return f"mov ecx, {msr:#x}; mov eax, {low:#x}; mov edx, {high:#x}; wrmsr"


def rdmsr(msr: int, slot: int) -> str:
    return f"mov ecx, {msr:#x}; rdmsr; {keep(slot)}"


def rdpmc(ecx: int, slot: int) -> str:
    return f"mov ecx, {ecx:#x}; rdpmc; {keep(slot)}"


def keep(slot: int) -> str:
    return f"shl rdx, 32; or rax, rdx; mov qword ptr [results + {8 * slot}], rax"


def store(register: str, slot: int) -> str:
    return f"mov qword ptr [results + {8 * slot}], {register}"


class Ran:
    """The outcome of a guest with its results, its log and the addresses of its labels."""

    def __init__(self, outcome: Outcome, symbols: dict[str, int]) -> None:
        self.outcome = outcome
        self.symbols = symbols

    def word(self, at: int) -> int:
        return int.from_bytes(self.outcome.memory[at : at + 8], "little")

    def _words(self, label: str, count: int) -> list[int]:
        return [self.word(self.symbols[label] + 8 * i) for i in range(count)]

    def __getitem__(self, slot: int) -> int:
        return self._words("results", RESULTS_SIZE // 8)[slot]

    @property
    def log(self) -> list[int]:
        """Pairs: of a PMI its status and the address it met, of a fault its address and error."""
        return self._words("log", min(32, self._words("logged", 1)[0]))


def text_of(body: str, after: str = "") -> str:
    lines = [".intel_syntax noprefix", ".text", ".globl _start", "_start:"]
    lines += ["lea r15, [rip + scratch]", *RINGS, body]
    lines += ["finish:", "xor eax, eax", "out 0xF4, al", after, *HANDLERS, *TABLES]
    lines += [".balign 64", "scratch:", ".zero 1024", "results:", ".zero 1024", "log:"]
    lines += [".zero 1024", "logged:", ".zero 8", ""]
    return "\n".join(lines)


@pytest.fixture(params=["reference", "engine"])
def run(request: pytest.FixtureRequest) -> Callable[..., Ran]:
    def guest(body: str, after: str = "", **shape: int) -> Ran:
        program = assemble(text_of(body, after))
        if request.param == "reference":
            outcome, _ = reference_run(program, Shape(**shape), 200_000)
        else:
            settings = {f"pmu.{name}": value for name, value in shape.items()}
            outcome = engine_run(program, 200_000, settings=settings)
        return Ran(outcome, dict(program.symbols))

    return guest


Run = Callable[..., Ran]

APIC_ON = f"mov ecx, 0x1B; rdmsr; or eax, 0x400; wrmsr; {wrmsr(SPIV, 0x1FF)}"


# --- what counts itself -------------------------------------------------------------------------


def test_evtsel_window_counts_the_closing_write_only(run: Run) -> None:
    got = run(f"{wrmsr(EVTSEL0, ALL | 0xC0)}; nop; nop; {wrmsr(EVTSEL0, 0)}; {rdpmc(0, 0)}")
    assert got[0] == 2 + 4


def test_global_window_counts_the_closing_write_only(run: Run) -> None:
    got = run(
        f"{wrmsr(CTRL, 0)}; {wrmsr(EVTSEL0, ALL | 0xC0)}; {wrmsr(FIXED_CTRL, 3)}"
        f"; {wrmsr(CTRL, 1 | 1 << 32)}; nop; nop; nop; {wrmsr(CTRL, 0)}"
        f"; {rdpmc(0, 0)}; {rdpmc(0x40000000, 1)}"
    )
    assert (got[0], got[1]) == (3 + 4, 3 + 4)


def test_fixed_window_counts_the_closing_write_only(run: Run) -> None:
    got = run(
        f"{wrmsr(CTRL, 1 << 32)}; {wrmsr(FIXED_CTRL, 3)}; nop; {wrmsr(FIXED_CTRL, 0)}"
        f"; {rdmsr(FIXED0, 0)}"
    )
    assert got[0] == 1 + 4


def test_a_running_read_does_not_see_itself(run: Run) -> None:
    got = run(f"{wrmsr(EVTSEL0, ALL | 0xC0)}; nop; mov ecx, 0; rdpmc; {keep(0)}")
    assert got[0] == 2


def test_a_write_to_a_running_counter_does_not_count_itself(run: Run) -> None:
    got = run(f"{wrmsr(EVTSEL0, ALL | 0xC0)}; {wrmsr(PMC0, 0)}; nop; {rdpmc(0, 0)}")
    assert got[0] == 1 + 1


def test_a_running_counter_written_with_minus_one_overflows_with_the_next(run: Run) -> None:
    got = run(
        f"{APIC_ON}; {wrmsr(LVTPC, 0x50)}; sti; {wrmsr(EVTSEL0, ALL | INT | 0xC0)}"
        f"; {wrmsr(PMC0, 0xFFFFFFFF)}; nop; here: nop; {wrmsr(CTRL, 0)}"
    )
    assert got.log == [1, got.symbols["here"]]


def test_a_write_that_overflows_by_retiring_takes_effect_after_that(run: Run) -> None:
    # The fourth instruction of the window is the WRMSR that clears the status.
    window = f"{APIC_ON}; {wrmsr(LVTPC, 0x50)}; {wrmsr(A_PMC0, TOP - 4)}"
    window += f"; {wrmsr(EVTSEL0, ALL | INT | 0xC0)}"
    got = run(f"{window}; {wrmsr(RESET, 1)}; {rdmsr(STATUS, 0)}; sti; nop; here: nop")
    assert got[0] == 0
    assert got.log == [0, got.symbols["here"]]
    got = run(f"{window}; {wrmsr(EVTSEL0, 0)}; {rdmsr(STATUS, 0)}; sti; nop; here: nop")
    assert got[0] == 1
    assert len(got.log) == 2
    got = run(f"{window}; {wrmsr(LVTPC, 0x10050)}; {rdmsr(STATUS, 0)}; sti; nop; nop")
    assert got[0] == 1
    assert len(got.log) == 2
    got = run(f"{window}; {wrmsr(A_PMC0, 5)}; {wrmsr(EVTSEL0, 0)}; {rdmsr(STATUS, 0)}; {rdpmc(0, 1)}")
    assert (got[0], got[1]) == (1, 9)


def test_changing_the_event_while_running_counts_under_the_old_one(run: Run) -> None:
    # The WRMSR is an instruction for the first event; the branch counts only for the second.
    got = run(
        f"{wrmsr(EVTSEL0, ALL | 0xC0)}; {wrmsr(EVTSEL0, ALL | 0xC4)}; jmp over; over:"
        f" {wrmsr(EVTSEL0, 0)}; {rdpmc(0, 0)}"
    )
    assert got[0] == 4 + 1


@pytest.mark.parametrize(("filters", "expected"), [(OS, 15), (USR, 5), (OS | USR, 20)])
def test_rings_filter_by_the_privilege_an_instruction_found(
    run: Run, filters: int, expected: int
) -> None:
    # At CPL 0: mov, push, lea, four pushes around a lea, iretq; the gate's two; the closing four.
    # At CPL 3: four NOPs and the INT that leaves.
    got = run(
        f"lea rax, [rip + back]; mov qword ptr [kernel_back], rax; {wrmsr(EVTSEL0, EN | filters | 0xC0)}"
        "; mov qword ptr [kernel_rsp], rsp; push 0x23; lea rax, [rip + user_stack]; push rax"
        "; push 2; push 0x2B; lea rax, [rip + user]; push rax; iretq"
        "; user: nop; nop; nop; nop; int 0x41"
        f"; back: {wrmsr(EVTSEL0, 0)}; {rdpmc(0, 0)}"
    )
    assert got[0] == expected


# --- registers ----------------------------------------------------------------------------------


def test_global_ctrl_resets_with_every_general_counter_on(run: Run) -> None:
    got = run(f"{rdmsr(CTRL, 0)}; {rdmsr(FIXED_CTRL, 1)}; {rdmsr(STATUS, 2)}")
    assert (got[0], got[1], got[2]) == (0xFF, 0, 0)


def test_legacy_write_sign_extends_and_aliases(run: Run) -> None:
    got = run(
        f"{wrmsr(PMC0, 0xFF_8000_0001)}; {rdmsr(PMC0, 0)}; {rdmsr(A_PMC0, 1)}; {rdpmc(0, 2)}"
        f"; {wrmsr(PMC0, 0x1234_7FFFFFFF)}; {rdmsr(A_PMC0, 3)}"
        f"; {wrmsr(A_PMC0, 0xFF0123456789)}; {rdmsr(PMC0, 4)}"
    )
    assert [got[i] for i in range(5)] == [
        *[0xFFFF80000001] * 3,
        0x7FFFFFFF,
        0xFF0123456789,
    ]


FORBIDDEN_WRITES = [
    (A_PMC0, 1 << 48),
    (FIXED0, 1 << 48),
    (EVTSEL0, 1 << 40),
    (CTRL, 1 << 8),
    (CTRL, 1 << 36),
    (FIXED_CTRL, 1 << 16),
    (STATUS, 0),
    (INUSE, 0),
    (RESET, 1 << 8),
    (SET, 1 << 8),
    (SET, 1 << 63),
    (0x345, 0x2000),
    (PMC0 + 8, 0),
    (EVTSEL0 + 8, 0),
    (FIXED0 + 4, 0),
    (0x1234, 0),
    (LVTPC, 0),
]


@pytest.mark.parametrize(("msr", "value"), FORBIDDEN_WRITES, ids=lambda v: f"{v:#x}")
def test_a_forbidden_write_faults_and_changes_nothing(run: Run, msr: int, value: int) -> None:
    got = run(
        f"{wrmsr(EVTSEL0, ALL | 0xC0)}; lea r13, [rip + after]; mov ecx, {msr:#x}"
        f"; mov eax, {value & 0xFFFFFFFF:#x}; mov edx, {value >> 32:#x}; culprit: wrmsr"
        f"; after: mov r8, rcx; {wrmsr(CTRL, 0)}; {store('r8', 0)}; {rdmsr(STATUS, 1)}"
    )
    assert got.log[::2] == [got.symbols["culprit"]]
    assert (got[0], got[1]) == (msr, 0)


@pytest.mark.parametrize("msr", [PMC0 + 8, EVTSEL0 + 8, FIXED0 + 4, 0x1234, LVTPC, 0x49])
def test_a_forbidden_read_faults(run: Run, msr: int) -> None:
    got = run(f"lea r13, [rip + after]; mov ecx, {msr:#x}; culprit: rdmsr; after: nop")
    assert got.log[::2] == [got.symbols["culprit"]]


@pytest.mark.parametrize("ecx", [8, 64, 0x40000004, 0x20000001, 0x80000000, 0xC0000000, 0x10000])
def test_rdpmc_of_an_absent_counter_faults(run: Run, ecx: int) -> None:
    got = run(f"lea r13, [rip + after]; mov ecx, {ecx:#x}; culprit: rdpmc; after: nop")
    assert got.log[::2] == [got.symbols["culprit"]]


def in_ring3(body: str) -> str:
    return (
        "lea rax, [rip + back]; mov qword ptr [kernel_back], rax; mov qword ptr [kernel_rsp], rsp"
        "; push 0x23; lea rax, [rip + user_stack]; push rax; push 2; push 0x2B"
        f"; lea rax, [rip + user]; push rax; iretq; user: {body}; int 0x41; back: nop"
    )


@pytest.mark.parametrize("pce", [0, 1])
def test_rdpmc_at_cpl3_needs_pce(run: Run, pce: int) -> None:
    allow = "mov rax, cr4; or eax, 0x100; mov cr4, rax" if pce else "nop"
    got = run(
        f"{wrmsr(PMC0, 77)}; {allow}; "
        + in_ring3(f"lea r13, [rip + after]; mov ecx, 0; culprit: rdpmc; {keep(0)}; after: nop")
    )
    assert got.log[::2] == ([] if pce else [got.symbols["culprit"]])
    assert got[0] == (77 if pce else 0)


@pytest.mark.parametrize(
    "instruction",
    ["rdmsr", "wrmsr", "hlt", "cli", "sti", "mov rax, cr0", "mov cr3, rax", "lgdt [gdtr]", "invlpg [r15]",
     "lidt [idtr]", "wbinvd", "in al, dx", "out dx, al", "swapgs", "ltr ax", "sysretq"],
)  # fmt: skip
def test_ring3_may_not(run: Run, instruction: str) -> None:
    if instruction == "sysretq":
        # Without EFER.SCE it is #UD before the privilege is looked at; both stop it.
        pytest.skip("EFER.SCE at start is the platform's choice")
    got = run(in_ring3(f"lea r13, [rip + after]; culprit: {instruction}; after: nop"))
    assert got.log[::2] == [got.symbols["culprit"]]


def test_status_is_set_by_overflow_and_cleared_by_ones(run: Run) -> None:
    got = run(
        f"{wrmsr(A_PMC0, TOP - 3)}; {wrmsr(EVTSEL0, ALL | 0xC0)}; nop; nop; nop; nop"
        f"; {wrmsr(EVTSEL0, 0)}; {rdmsr(STATUS, 0)}; {wrmsr(RESET, 2)}; {rdmsr(STATUS, 1)}"
        f"; {rdmsr(RESET, 2)}; {wrmsr(RESET, 1)}; {rdmsr(STATUS, 3)}; {rdpmc(0, 4)}"
    )
    assert [got[i] for i in range(5)] == [1, 1, 0, 0, 4 + 4 - 3]


def test_status_set_sets_and_interrupts_nobody(run: Run) -> None:
    got = run(
        f"{APIC_ON}; {wrmsr(LVTPC, 0x50)}; sti; {wrmsr(SET, 1 << 32 | 5)}; nop; {rdmsr(STATUS, 0)}"
        f"; {rdmsr(SET, 1)}"
    )
    assert (got[0], got[1], got.log) == (1 << 32 | 5, 0, [])


def test_inuse_tells_what_is_programmed(run: Run) -> None:
    got = run(
        f"{rdmsr(INUSE, 0)}; {wrmsr(EVTSEL0 + 3, 0x3C)}; {rdmsr(INUSE, 1)}"
        f"; {wrmsr(FIXED_CTRL, 0xB0)}; {rdmsr(INUSE, 2)}; {wrmsr(FIXED_CTRL, 0x20)}; {rdmsr(INUSE, 3)}"
    )
    assert [got[i] for i in range(4)] == [
        0,
        1 << 3,
        1 << 3 | 1 << 33 | 1 << 63,
        1 << 3 | 1 << 33,
    ]


# --- overflow and PMI ---------------------------------------------------------------------------

ARMED = f"{APIC_ON}; {wrmsr(LVTPC, 0x50)}; {wrmsr(A_PMC0, TOP - 3)}"


def test_pmi_arrives_right_after_the_instruction_that_overflows(run: Run) -> None:
    got = run(
        f"{ARMED}; sti; {wrmsr(EVTSEL0, ALL | INT | 0xC0)}; nop; nop; nop; here: nop"
        f"; {wrmsr(CTRL, 0)}; {rdmsr(LVTPC, 0)}"
    )
    assert got.log == [1, got.symbols["here"]]
    assert got[0] == 0x50  # the handler unmasked it


def test_no_pmi_without_int(run: Run) -> None:
    got = run(f"{ARMED}; sti; {wrmsr(EVTSEL0, ALL | 0xC0)}; nop; nop; nop; nop; {rdmsr(STATUS, 0)}")
    assert (got[0], got.log) == (1, [])


def test_delivery_masks_lvtpc_and_a_second_overflow_sends_nothing(run: Run) -> None:
    got = run(
        f"{ARMED}; {wrmsr(EVTSEL0, ALL | INT | 0xC0)}; nop; nop; nop; {rdmsr(LVTPC, 0)}"
        f"; {wrmsr(EVTSEL0, 0)}; {wrmsr(RESET, 1)}; {wrmsr(0x80B, 0)}"
        f"; {wrmsr(A_PMC0, TOP - 2)}; {wrmsr(EVTSEL0, ALL | INT | 0xC0)}; nop; nop; nop"
        f"; {wrmsr(EVTSEL0, 0)}; {rdmsr(STATUS, 1)}; {rdmsr(0x822, 2)}; sti; nop; here: nop"
    )
    assert got[0] == 0x10050
    assert got[1] == 1
    assert got[2] == 1 << 16  # one interrupt waits in IRR, vector 0x50
    assert len(got.log) == 2


def test_a_pending_pmi_outlives_its_status_and_waits_for_sti(run: Run) -> None:
    got = run(
        f"{ARMED}; {wrmsr(EVTSEL0, ALL | INT | 0xC0)}; nop; nop; nop; {wrmsr(EVTSEL0, 0)}"
        f"; {wrmsr(RESET, 1)}; sti; shadow: nop; here: nop"
    )
    assert got.log == [0, got.symbols["here"]]


def test_a_software_disabled_apic_keeps_lvtpc_masked(run: Run) -> None:
    got = run(
        f"mov ecx, 0x1B; rdmsr; or eax, 0x400; wrmsr; {wrmsr(LVTPC, 0x50)}; {rdmsr(LVTPC, 0)}"
        f"; {rdmsr(SPIV, 1)}; {wrmsr(A_PMC0, TOP - 3)}; sti; {wrmsr(EVTSEL0, ALL | INT | 0xC0)}"
        "; nop; nop; nop; nop"
    )
    assert (got[0], got[1], got.log) == (0x10050, 0xFF, [])


def test_an_overflow_inside_the_nmi_handler_arrives_once_after_iret(run: Run) -> None:
    # Counter 1 overflows in the handler after LVTPC is unmasked; NMI stays blocked until IRETQ.
    got = run(
        f"{APIC_ON}; {wrmsr(LVTPC, 0x400)}; {wrmsr(A_PMC0, TOP - 3)}; {wrmsr(A_PMC0 + 1, TOP - 32)}"
        f"; {wrmsr(EVTSEL0 + 1, ALL | INT | 0xC0)}; {wrmsr(EVTSEL0, ALL | INT | 0xC0)}"
        f"; nop; nop; nop; here: nop; nop; {wrmsr(CTRL, 0)}"
    )
    assert got.log[1::2] == [got.symbols["here"]] * 2
    assert got.log[0] == 1


def test_freeze_on_pmi_stops_every_counter_until_the_status_is_cleared(run: Run) -> None:
    got = run(
        f"{APIC_ON}; {wrmsr(0x1D9, 1 << 12)}; {wrmsr(FIXED_CTRL, 3)}; {wrmsr(CTRL, 1 | 1 << 32)}"
        f"; {wrmsr(FIXED0, 0)}; {wrmsr(A_PMC0, TOP - 3)}; {wrmsr(EVTSEL0, ALL | INT | 0xC0)}"
        f"; nop; nop; nop; nop; nop; {rdmsr(STATUS, 0)}; {rdpmc(0, 1)}; {rdpmc(0, 2)}"
        f"; {wrmsr(RESET, CTR_FRZ | 1)}; nop; nop; {rdpmc(0, 3)}; {rdmsr(CTRL, 4)}"
    )
    assert got[0] == CTR_FRZ | 1
    assert (got[1], got[2], got[3], got[4]) == (0, 0, 3, 1 | 1 << 32)


def test_freeze_on_pmi_of_version_2_clears_global_ctrl(run: Run) -> None:
    got = run(
        f"{APIC_ON}; {wrmsr(0x1D9, 1 << 12)}; {wrmsr(A_PMC0, TOP - 3)}"
        f"; {wrmsr(EVTSEL0, ALL | INT | 0xC0)}; nop; nop; nop; nop; {rdmsr(STATUS, 0)}"
        f"; {rdmsr(CTRL, 1)}; {rdpmc(0, 2)}",
        version=2,
        fixed=3,
    )
    assert (got[0], got[1], got[2]) == (1, 0, 0)


# --- what retires -------------------------------------------------------------------------------

COUNT_ALL = (
    f"{wrmsr(CTRL, 0)}; {wrmsr(EVTSEL0, ALL | 0xC0)}; {wrmsr(EVTSEL0 + 1, ALL | 0xC4)}; "
    + "; ".join(
        wrmsr(EVTSEL0 + 2 + i, ALL | event)
        for i, event in enumerate((0x11C4, 0x01C4, 0x02C4, 0x08C4, 0x20C4, 0x40C4))
    )
    + f"; {wrmsr(CTRL, 0xFF)}"
)
READ_ALL = f"{wrmsr(CTRL, 0)}; " + "; ".join(rdpmc(i, i) for i in range(8))


def counted(run: Run, body: str, after: str = "") -> dict[str, int]:
    got = run(f"{COUNT_ALL}; {body}; {READ_ALL}", after)
    names = ("inst", "branch", "cond", "cond_taken", "call", "ret", "near_taken", "far")
    row = {name: got[i] for i, name in enumerate(names)}
    row["inst"] -= 4  # the closing sequence
    return {name: n for name, n in row.items() if n}


def test_branches(run: Run) -> None:
    body = "xor eax, eax; jz one; nop; one: jnz two; two: jmp three; three: call leaf"
    assert counted(run, body, "leaf: ret") == {
        "inst": 6,
        "branch": 5,
        "cond": 2,
        "cond_taken": 1,
        "call": 1,
        "ret": 1,
        "near_taken": 4,
    }


def test_loop_is_a_conditional_branch(run: Run) -> None:
    assert counted(run, "mov ecx, 5; again: loop again") == {
        "inst": 6,
        "branch": 5,
        "cond": 5,
        "cond_taken": 4,
        "near_taken": 4,
    }


def test_software_interrupts_and_iret_are_far_branches(run: Run) -> None:
    # add, jc (not taken), nop, iretq of the service routine.
    assert counted(run, "xor ebx, ebx; int 0x40") == {
        "inst": 6,
        "branch": 3,
        "cond": 1,
        "far": 2,
    }


@pytest.mark.parametrize(
    "culprit",
    ["ud2", "div r14d", "mov rax, qword ptr [r12]", "rdpmc", "int 0x60", "add dword ptr [r12], 1"],
)
def test_a_faulting_instruction_does_not_retire(run: Run, culprit: str) -> None:
    setup = "mov ecx, 0x77; xor r14d, r14d; movabs r12, 0x7000000000; lea r13, [rip + after]"
    with_it = counted(run, f"{setup}; {culprit}; after: nop")
    # The same without the culprit: the handler's instructions are all that is added.
    without = counted(run, f"{setup}; after: nop")
    error = culprit.startswith(("mov", "rdpmc", "int", "add"))
    handler = 14 if error else 15
    assert with_it["inst"] - without["inst"] == handler
    assert with_it["far"] == 1  # the handler's IRETQ; an exception is not a branch


def test_a_repeated_string_instruction_retires_once(run: Run) -> None:
    body = "lea rsi, [r15]; lea rdi, [r15 + 512]; mov ecx, 100; rep movsb"
    assert counted(run, body) == {"inst": 4}
    assert counted(run, "xor ecx, ecx; rep stosb") == {"inst": 2}


def test_memory_events_count_instructions(run: Run) -> None:
    events = (0x81D0, 0x82D0, 0x83D0, 0x02C0)
    body = "; ".join(wrmsr(EVTSEL0 + i, ALL | e) for i, e in enumerate(events))
    work = "add dword ptr [r15], 1; mov eax, dword ptr [r15]; mov dword ptr [r15], eax; push rax"
    work += "; pop rax; lea rax, [r15]; nop; endbr64; cmp dword ptr [r15], 2"
    reads = "; ".join(rdpmc(i, i) for i in range(4))
    got = run(
        f"{wrmsr(CTRL, 0)}; {body}; {wrmsr(CTRL, 0xF)}; {work}; {wrmsr(CTRL, 0)}; {reads}"
    )
    assert [got[i] for i in range(4)] == [4, 3, 7, 2]


# --- interrupts ---------------------------------------------------------------------------------


def test_sti_shadow_lasts_one_instruction(run: Run) -> None:
    got = run(f"{APIC_ON}; {wrmsr(SELF_IPI, 0x50)}; sti; nop; here: nop")
    assert got.log[1] == got.symbols["here"]


def test_sti_holds_back_no_nmi(run: Run) -> None:
    # The fourth instruction of the window, STI itself, overflows the counter.
    got = run(
        f"{APIC_ON}; {wrmsr(LVTPC, 0x400)}; {wrmsr(A_PMC0, TOP - 4)}"
        f"; {wrmsr(EVTSEL0, ALL | INT | 0xC0)}; nop; nop; nop; sti; here: nop; nop"
    )
    assert got.log == [1, got.symbols["here"]]


def test_mov_ss_holds_back_an_nmi(run: Run) -> None:
    got = run(
        f"mov ebx, 0x10; {APIC_ON}; {wrmsr(LVTPC, 0x400)}; {wrmsr(A_PMC0, TOP - 4)}"
        f"; {wrmsr(EVTSEL0, ALL | INT | 0xC0)}; nop; nop; nop; mov ss, ebx; nop; here: nop"
    )
    assert got.log == [1, got.symbols["here"]]


def test_mov_ss_holds_interrupts_for_one_instruction(run: Run) -> None:
    got = run(
        f"{APIC_ON}; {wrmsr(SELF_IPI, 0x50)}; mov ebx, 0x10; push 0x202; popfq_next: nop"
        "; pop rax; or eax, 0x200; push rax; mov ss, bx; popfq; here: nop"
    )
    assert got.log[1] == got.symbols["here"]


def test_tpr_holds_back_lower_classes(run: Run) -> None:
    got = run(
        f"{APIC_ON}; {wrmsr(TPR, 0x50)}; {wrmsr(SELF_IPI, 0x50)}; sti; nop; nop; mov eax, 4"
        "; mov cr8, rax; here: nop"
    )
    assert got.log[1] == got.symbols["here"]


def test_hlt_wakes_by_a_pending_interrupt(run: Run) -> None:
    got = run(f"{APIC_ON}; {wrmsr(SELF_IPI, 0x50)}; sti; hlt; here: nop")
    assert got.log[1] == got.symbols["here"]
    assert got.outcome.stop == "debug-exit"


def test_hlt_that_nothing_can_wake_ends_the_run(run: Run) -> None:
    assert run("cli; hlt").outcome.stop == "halted"
    assert run("sti; hlt").outcome.stop == "halted"


def test_a_deadline_wakes_hlt(run: Run) -> None:
    got = run(
        f"{APIC_ON}; {wrmsr(0x832, 0x40050)}; rdtsc; add eax, 100000; mov ecx, 0x6E0; wrmsr"
        "; sti; hlt; here: nop; mov ecx, 0x6E0; rdmsr; shl rdx, 32; or rax, rdx"
        f"; {store('rax', 0)}"
    )
    assert got.log[1] == got.symbols["here"]
    assert got[0] == 0


def test_no_idt_means_a_triple_fault(run: Run) -> None:
    got = run("push 0; push 0; lidt [rsp]; ud2")
    assert got.outcome.stop == "triple-fault"


def test_an_interrupt_from_ring3_uses_the_stack_of_the_tss(run: Run) -> None:
    got = run(in_ring3("mov r8, rsp; int 0x40; sub r8, rsp"))
    top = got.symbols["ring0_stack"] & ~15
    frame = [got.word(top - 40 + 8 * i) for i in range(5)]
    # The last frame there is that of INT 0x41: RIP, CS, RFLAGS, RSP, SS.
    assert frame[:2] == [got.symbols["back"], 0x2B]
    assert frame[3:] == [got.symbols["user_stack"], 0x23]
    assert got.outcome.registers[8] == 0
