"""Page tables: sizes, rights, error codes, accessed and dirty bits, what stays cached and what goes.

A kernel maps its own 2 MiB one to one by 4 KiB pages and looks at one page, `probe`, through whatever
entries a test writes. Accesses that fault come back with the error code.
"""

from __future__ import annotations

import pytest

from tests.tools.whole import machine
from vpmu_emu.asm import assemble
from vpmu_emu.tables.modes import MODES

pytestmark = pytest.mark.uncompiled

P, W, U, A, D, PS, G, NX = 1, 2, 4, 0x20, 0x40, 0x80, 0x100, 1 << 63
KERNEL = P | W | U
PRESENT, WRITE, USER, RESERVED, FETCH = 1, 2, 4, 8, 16
NONE = 0xFFFF  # no fault

# pdpt entry 1 (1 GiB up) is the test's: `high` is its page directory, `high_pt` the table below.
FRAME = """
.intel_syntax noprefix
.include "msr.inc"
.include "macros.inc"
.equ HIGH, 0x40000000
.text
.globl _start
_start:
    lea rsp, [rip + top]
    load_tss
    load_idt
    set_gate 14, page_fault
    set_gate 6, invalid
    set_gate 13, general
    set_gate 0x80, back, 3
    {efer}
    lea rdi, [rip + pt]
    mov eax, 7
    mov ecx, 512
1:  mov [rdi], rax
    add rax, 4096
    add rdi, 8
    loop 1b
    lea rax, [rip + pml4]
    mov cr3, rax
    {body}
    debug_exit 0

# Every trial leaves the error code of its fault, or 0xffff, in the next word of `codes`.
page_fault:
    mov rcx, [rsp]
    mov rax, cr2
    mov [rip + address], rax
    add rsp, 8
    jmp caught
invalid:
    mov ecx, 0x600
    jmp caught
general:
    mov ecx, 0xd00
    add rsp, 8
caught:
    mov [rsp], r15
    mov qword ptr [rsp + 8], KERNEL_CS
    mov qword ptr [rsp + 16], 2
    lea rax, [rip + top]
    mov [rsp + 24], rax
    mov qword ptr [rsp + 32], KERNEL_DS
    iretq
back:
    lea rax, [rip + caught_none]
    mov r15, rax
    mov ecx, 0xffff
    jmp caught
caught_none:
    jmp r14

idt_storage
ring3_storage
.data
.balign 4096
pml4:    .quad pdpt + 7
         .zero 4088
pdpt:    .quad pd + 7, {pdpte}
         .zero 4080
pd:      .quad pt + 7
         .zero 4088
high:    .quad {pde}
         .zero 4088
high_pt: .quad {pte}
         .balign 4096
probe:   .ascii "probe..."
         .zero 4088
other:   .ascii "other..."
         .zero 4088
codes:   .zero 256
address: .quad 0                        # CR2 of the last fault
seen:    .quad 0
{data}
.bss
.balign 4096
pt:      .zero 4096
         .zero 4096
top:
"""


def trial(access: str, user: bool = False) -> str:
    """Code that does `access` and stores its outcome at [r13], r13 going up."""
    start = (
        "push_user_frame 5f\n    iretq\n5:" if user else "5:"
    )  # local labels stay apart by number, GNU as too
    end = "int 0x80" if user else "mov ecx, 0xffff"
    return f"""
    lea r15, [rip + 6f]
    lea r14, [rip + 6f]
    {start}
    {access}
    {end}
6:  mov [r13], cx
    add r13, 2
"""


def kernel(
    body: str, pdpte: object = "high + 7", pde: object = "high_pt + 7", pte: object = "probe + 7",
    nxe: bool = False, data: str = "", mode: str = "bare", **options: object,
):  # fmt: skip
    """The machine after `body` ran with these entries for HIGH."""
    efer = "mov ecx, IA32_EFER\n rdmsr\n or eax, 0x800\n wrmsr" if nxe else ""
    text = FRAME.format(
        body="lea r13, [rip + codes]\n" + body, pdpte=pdpte, pde=pde, pte=pte, efer=efer, data=data
    )
    program = assemble(text, "paging")
    system = machine(program, mode, max_insns=100_000, ram=64, **options)
    stop = system.run()
    assert (stop.reason, stop.info) == ("debug-exit", 0), str(stop)
    return system, program.symbols


def words(system, address: int, count: int, size: int = 2) -> list[int]:
    raw = system.read(address, count * size)
    return [int.from_bytes(raw[i : i + size], "little") for i in range(0, len(raw), size)]


def codes(body: str, count: int, **entries: object) -> list[int]:
    system, symbols = kernel(body, **entries)
    return words(system, symbols["codes"], count)


LOAD, STORE, CALL = "mov rax, [HIGH]", "mov byte ptr [HIGH + 8], 1", "mov eax, HIGH\n call rax"


def test_a_page_is_seen_where_its_entry_says():
    system, symbols = kernel("mov rax, [HIGH]\n mov [rip + seen], rax")
    assert words(system, symbols["seen"], 1, 8) == [int.from_bytes(b"probe...", "little")]


# entry bits, NXE, then outcomes: supervisor load, store, fetch; user load, store, fetch
CASES = [
    ("probe + 7", False, (NONE, NONE, NONE, NONE, NONE, NONE)),
    ("probe + 5", False, (NONE, WRITE | PRESENT, NONE, NONE, WRITE | PRESENT | USER, NONE)),
    ("probe + 3", False, (NONE, NONE, NONE, PRESENT | USER, PRESENT | WRITE | USER, PRESENT | USER)),
    ("probe + 6", False, (0, WRITE, 0, USER, USER | WRITE, USER)),
    ("probe + 6", True, (0, WRITE, FETCH, USER, USER | WRITE, USER | FETCH)),
    ("probe + 7 + 0x8000000000000000", True,
     (NONE, NONE, FETCH | PRESENT, NONE, NONE, FETCH | PRESENT | USER)),
    ("probe + 7 + 0x8000000000000000", False,
     (9, 11, 9, 13, 15, 13)),  # execute-disable is a reserved bit without EFER.NXE
    ("probe + 7 + (1 << 50)", True, (9, 11, 25, 13, 15, 29)),  # above MAXPHYADDR
]  # fmt: skip


@pytest.mark.parametrize(("pte", "nxe", "expected"), CASES)
def test_rights_and_error_codes(pte, nxe, expected):
    # WP on, so that the supervisor too obeys W; the page begins with a RET where it is executed
    wp = "mov rax, cr0\n or eax, 0x10000\n mov cr0, rax\n mov byte ptr [probe], 0xc3\n"
    user_call = "mov eax, HIGH\n call rax"
    body = wp + "".join(
        trial(access, user) for user in (False, True) for access in (LOAD, STORE, user_call)
    )
    assert tuple(codes(body, 6, pte=pte, nxe=nxe)) == expected


def test_without_wp_the_supervisor_writes_read_only_pages():
    body = "mov rax, cr0\n and eax, 0xfffeffff\n mov cr0, rax\n" + trial(STORE) + trial(STORE, True)
    assert codes(body, 2, pte="probe + 5") == [NONE, 7]


@pytest.mark.parametrize("level", ["pdpte", "pde"])
def test_rights_are_the_and_over_the_levels(level):
    entry = {"pdpte": "high + 5", "pde": "high_pt + 5"}[level]
    wp = "mov rax, cr0\n or eax, 0x10000\n mov cr0, rax\n"
    assert codes(wp + trial(STORE) + trial(LOAD), 2, **{level: entry}) == [3, NONE]


def test_large_pages_of_2_mib_and_1_gib():
    # 2 MiB: HIGH + x is physical x. 1 GiB: likewise, by the entry above.
    for entries in ({"pde": "0x87"}, {"pdpte": "0x87"}):
        system, symbols = kernel(
            "mov rax, [HIGH + probe]\n mov [rip + seen], rax\n" + trial("mov rax, [HIGH + 0x4000000]"),
            **entries,
        )
        assert words(system, symbols["seen"], 1, 8) == [int.from_bytes(b"probe...", "little")]
        # above the 64 MiB of memory nobody answers: the 1 GiB page reaches there, the other does not
        expected = NONE if "pdpte" in entries else 0
        assert words(system, symbols["codes"], 1) == [expected]


def test_reserved_bits_of_large_pages():
    assert codes(trial(LOAD), 1, pde="0x2087") == [9]  # bit 13 of a 2 MiB frame
    assert codes(trial(LOAD), 1, pde="0x1087") == [NONE]  # PAT
    assert codes(trial(LOAD), 1, pdpte="0x200087") == [9]  # bit 21 of a 1 GiB frame


def test_memory_that_is_not_there_reads_ones_and_keeps_nothing():
    body = "mov rax, [HIGH]\n mov byte ptr [HIGH + 8], 1\n mov rbx, [HIGH + 8]\n and rax, rbx\n"
    system, symbols = kernel(body + "mov [rip + seen], rax\n" + trial(CALL), pte="0x10000007")
    assert words(system, symbols["seen"], 1, 8) == [(1 << 64) - 1]
    assert words(system, symbols["codes"], 1) == [0x600]  # FF FF is no instruction


def test_accessed_and_dirty_bits():
    body = "mov rax, [HIGH]\n mov r8, [high_pt]\n mov [HIGH], rax\n mov r9, [high_pt]"
    system, symbols = kernel(body, pde="high_pt + 7")
    regs = system.registers()
    assert regs["r8"] == symbols["probe"] + 7 + A
    assert regs["r9"] == symbols["probe"] + 7 + A + D
    assert words(system, symbols["high"], 1, 8) == [symbols["high_pt"] + 7 + A]  # no dirty bit above
    # a translation that is refused leaves no mark
    system, symbols = kernel(trial(LOAD, user=True), pte="probe + 3")
    assert words(system, symbols["high_pt"], 1, 8) == [symbols["probe"] + 3]


def test_cr2_is_the_first_byte_that_faults():
    system, symbols = kernel(trial("mov rax, [HIGH + 0xffc]"))
    assert words(system, symbols["address"], 1, 8) == [0x4000_1000]
    assert words(system, symbols["codes"], 1) == [0]
    system, symbols = kernel(trial("add qword ptr [HIGH + 0xffc], 1"))
    assert words(system, symbols["codes"], 1) == [WRITE]  # read and written: a write from the start


REMAP = "mov rax, [HIGH]\n lea rcx, [rip + other + 7 + {g}]\n mov [high_pt], rcx\n"
PROBE, OTHER = b"probe...", b"other..."


@pytest.mark.parametrize(
    ("flush", "shared", "pge", "seen"),
    [
        ("", 0, 0, PROBE),  # a stale entry is used until it is invalidated
        ("invlpg [HIGH]", 0, 0, OTHER),
        ("mov rax, cr3\n mov cr3, rax", 0, 0, OTHER),
        ("mov rax, cr3\n mov cr3, rax", G, 0, OTHER),  # G means nothing without CR4.PGE
        ("mov rax, cr3\n mov cr3, rax", G, 0x80, PROBE),
        ("invlpg [HIGH]", G, 0x80, OTHER),
        ("mov rax, cr4\n xor eax, 0x80\n mov cr4, rax", G, 0x80, OTHER),
        ("mov rax, cr0\n xor eax, 0x10000\n mov cr0, rax", G, 0x80, OTHER),
    ],
)
def test_what_flushes_the_tlb(flush, shared, pge, seen):
    pte = f"probe + 7 + {shared}"
    body = f"mov rax, cr4\n or eax, {pge}\n mov cr4, rax\n{REMAP.format(g=shared)}{flush}\n"
    system, symbols = kernel(body + "mov rax, [HIGH]\n mov [rip + seen], rax", pte=pte)
    assert words(system, symbols["seen"], 1, 8) == [int.from_bytes(seen, "little")]


def test_decoded_code_follows_the_page_tables():
    # the same linear address executes another page once its entry has changed
    body = f"""
    mov dword ptr [probe], 0xc3012eb0    # mov al, 0x2e; add ebx, eax ... is not reached
    mov dword ptr [probe], 0x9090c3f8    # clc; ret
    mov dword ptr [other], 0x9090c3f9    # stc; ret
    {CALL}
    setc r8b
    lea rcx, [rip + other + 7]
    mov [high_pt], rcx
    invlpg [HIGH]
    {CALL}
    setc r9b
    """
    regs = kernel(body)[0].registers()
    assert (regs["r8"] & 1, regs["r9"] & 1) == (0, 1)


def test_a_store_through_one_mapping_reaches_code_decoded_through_another():
    body = f"""
    mov dword ptr [probe], 0x9090c3f8
    {CALL}
    setc r8b
    mov byte ptr [probe], 0xf9
    {CALL}
    setc r9b
    """
    regs = kernel(body)[0].registers()
    assert (regs["r8"] & 1, regs["r9"] & 1) == (0, 1)


def test_code_decoded_at_cpl_0_is_no_leave_to_execute_it_at_cpl_3():
    body = "mov byte ptr [probe], 0xc3\n" + CALL + "\n" + trial("mov eax, HIGH\n call rax", user=True)
    assert codes(body, 1, pte="probe + 3") == [PRESENT | USER]


def test_an_instruction_across_two_pages_faults_on_the_second():
    # one byte of a two-byte instruction lies in the page that is mapped
    body = trial("mov byte ptr [probe + 0xfff], 0x31\n mov eax, HIGH + 0xfff\n jmp rax")
    system, symbols = kernel(body)
    assert words(system, symbols["codes"], 1) == [0]
    assert words(system, symbols["address"], 1, 8) == [0x4000_1000]


def test_fetching_sets_no_accessed_bit_ahead_of_what_is_executed():
    # RET stands in the last byte of the page: the next page is not looked at
    body = "mov byte ptr [probe + 0xfff], 0xc3\n mov eax, HIGH + 0xfff\n call rax"
    system, symbols = kernel(body, pte="probe + 7, other + 7")
    assert [entry & A for entry in words(system, symbols["high_pt"], 2, 8)] == [A, 0]


@pytest.mark.parametrize(
    "write",
    ["mov rax, 1 << 50\n mov cr3, rax", "mov rax, cr4\n or eax, 1 << 20\n mov cr4, rax",
     "mov rax, cr4\n and eax, 0xffffffdf\n mov cr4, rax",
     "mov rax, cr0\n and eax, 0x7fffffff\n mov cr0, rax",
     "mov rax, cr0\n or eax, 0x20000000\n mov cr0, rax"],
)  # fmt: skip
def test_reserved_bits_of_control_registers(write):
    assert codes(trial(write), 1) == [0xD00]


@pytest.mark.parametrize("mode", [m for m in MODES if m != "bare"])
def test_page_tables_of_a_guest_need_no_exit(mode):
    """EPT: CR3, faults and the walk are the guest's own business."""
    body = trial(LOAD) + trial(STORE, True)
    system, symbols = kernel(body, pte="probe + 5", mode=mode)
    assert words(system, symbols["codes"], 2) == [NONE, 7]
    assert sum(int(n) for k, n in enumerate(system.core.stats.exits) if k != 30) == 0  # debug exit


def test_tables_outside_memory_fault_as_reserved():
    assert codes(trial(LOAD), 1, pde="0x10000007") == [9]
