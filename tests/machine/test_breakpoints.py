"""Debug registers: MOV DR, and breakpoints on instructions, data and ports (SDM 3B 18)."""

from __future__ import annotations

import random

import pytest

from tests.reference.compare import RAM_MIB, reference_run
from tests.reference.interpreter import Shape
from tests.tools.profiles import cases
from vpmu_emu.asm import Program, assemble
from vpmu_emu.system import System

# The handler notes where #DB came, DR6 and the RFLAGS of its frame, and goes on with RF set.
GUEST = """
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .equ MOST, 24
_start: load_idt
        set_gate 1, db
        set_gate 13, gp
        set_gate 6, ud
        set_gate 3, plain
        set_gate 14, gp
{before}
        mov eax, {dr7:#x}
        mov dr7, rax
start:
{body}
done:   mov eax, 0x400
        mov dr7, rax
        debug_exit 0
plain:  iretq
gp:     inc qword ptr [rip + gps]
        mov rax, [rsp + 8]
        mov [rip + fault_at], rax
        mov rax, [rsp + 24]
        mov [rip + fault_flags], rax
        lea rax, [rip + done]
        mov [rsp + 8], rax
        add rsp, 8
        iretq
ud:     inc qword ptr [rip + uds]
        lea rax, [rip + done]
        mov [rsp], rax
        iretq
db:     push rax
        push rbx
        push rcx
        mov rcx, [rip + dbs]
        cmp rcx, MOST
        jb 1f
        debug_exit 1
1:      lea rbx, [rip + notes]
        shl ecx, 5
        add rbx, rcx
        mov rax, [rsp + 24]
        mov [rbx], rax
        mov rax, [rsp + 40]
        mov [rbx + 16], rax
        mov rax, dr7
        mov [rbx + 24], rax
        mov rax, dr6
        mov [rbx + 8], rax
        and eax, ~0xe00f
{clear}
        inc qword ptr [rip + dbs]
        or qword ptr [rsp + 40], 0x10000
        pop rcx
        pop rbx
        pop rax
        iretq
        .bss
        .balign 4096
        .zero 4064
cell:   .zero 64
        .balign 8
dbs:    .zero 8
gps:    .zero 8
uds:    .zero 8
fault_at: .zero 8
fault_flags: .zero 8
notes:  .zero 32 * MOST
        idt_storage
"""
CLEAR = "        mov dr6, rax"
RF = 1 << 16
ONE = 0xFFFF0FF0


def enable(n: int, kind: int = 0, length: int = 1) -> int:
    """Bits of DR7: breakpoint n on, of R/W type `kind`, on `length` bytes."""
    return 2 << 2 * n | kind << 16 + 4 * n | {1: 0, 2: 1, 4: 3, 8: 2}[length] << 18 + 4 * n


def point(n: int, symbol: str) -> str:
    return f"        lea rax, [rip + {symbol}]\n        mov dr{n}, rax\n"


def breaks_on_its_own_frame() -> Program:
    """#DB whose frame meets a breakpoint, so that it never gets to an instruction (CVE-2015-8104)."""
    before = """
        load_tss
        lea rax, [rip + cell + 8]
        mov [rip + tss + 0x24], rax
        mov byte ptr [rip + idt + 20], 1
""" + point(0, "cell - 8")
    text = GUEST.replace("        idt_storage", "        idt_storage\n        ring3_storage")
    body = "        mov [rip + cell - 8], eax\n"
    return assemble(text.format(body=body, before=before, dr7=enable(0, 3, 8), clear=CLEAR))


class Run:
    def __init__(
        self, body: str, before: str = "", dr7: int = 0, clear: str = CLEAR, **options: object
    ):
        self.program = assemble(GUEST.format(body=body, before=before, dr7=dr7, clear=clear))
        self.system = System(self.program, ram=2, max_insns=20_000, **options)
        self.stop = self.system.run()
        assert (self.stop.reason, self.stop.info) == ("debug-exit", 0), self.stop
        names = {at: name for name, at in self.program.symbols.items()}
        rows = [[self.word("notes", 4 * k + j) for j in range(4)] for k in range(self.word("dbs"))]
        self.places = [names.get(row[0], hex(row[0])) for row in rows]
        self.dr6 = [row[1] ^ ONE for row in rows]
        self.flags = [row[2] for row in rows]
        self.dr7 = [row[3] for row in rows]

    def word(self, name: str, k: int = 0) -> int:
        return int.from_bytes(self.system.read(self.program.symbols[name] + 8 * k, 8), "little")

    def register(self, name: str) -> int:
        return self.system.registers()[name]


# --- the registers ------------------------------------------------------------------------------------
def test_reset_and_fixed_bits():
    run = Run("""
        mov r8, dr6
        mov r9, dr7
        mov eax, 0xffffffff
        mov dr6, rax
        mov r10, dr6
        mov eax, 0xffffdc00
        mov dr7, rax
        mov r11, dr7
        xor eax, eax
        mov dr6, rax
        mov dr7, rax
        mov r12, dr6
        mov r13, dr7
        mov rax, 0x8123456789abcdef
        mov dr2, rax
        mov r14, dr2
""")
    got = [run.register(f"r{n}") for n in range(8, 15)]
    assert got == [ONE, 0x400, 0xFFFFEFFF, 0xFFFF0400, ONE, 0x400, 0x8123456789ABCDEF]


@pytest.mark.parametrize("n", [4, 5, 6, 7])
def test_upper_halves_of_dr6_and_dr7_are_reserved(n):
    run = Run(f"        mov rax, 0x100000000\nat:     mov dr{n}, rax")
    assert (run.word("gps"), run.word("fault_at")) == (1, run.program.symbols["at"])
    assert run.word("fault_flags") & RF


def test_dr4_and_dr5_are_names_of_dr6_and_dr7_until_de_is_set():
    run = Run("        mov r8, dr4\n        mov r9, dr5\n")
    assert (run.register("r8"), run.register("r9"), run.word("uds")) == (ONE, 0x400, 0)
    run = Run(
        "        mov rax, cr4\n        or eax, 8\n        mov cr4, rax\n        mov r8, dr4\n"
    )
    assert run.word("uds") == 1


@pytest.mark.parametrize("text", [".byte 0x44, 0x0f, 0x21, 0xc0", ".byte 0x44, 0x0f, 0x23, 0xc0",
                                  ".byte 0xf0, 0x0f, 0x21, 0xc0"])  # fmt: skip
def test_dr8_and_lock_are_no_instructions(text):
    assert Run(text).word("uds") == 1


@pytest.mark.parametrize("prefix", ["0x66", "0xf2", "0xf3", "0x67", "0x36"])
@pytest.mark.parametrize("opcode", ["0x20, 0xc0", "0x21, 0xf8"])
def test_prefixes_and_operand_size_do_not_matter(prefix, opcode):
    run = Run(
        f"        xor eax, eax\n        .byte {prefix}, 0x0f, {opcode}\n        mov r8, rax\n"
    )
    assert run.register("r8") == {"0x20, 0xc0": 0x80000033, "0x21, 0xf8": 0x400}[opcode]


def test_the_mod_field_does_not_matter():
    assert (
        Run("        .byte 0x0f, 0x21, 0x38\n        mov r8, rax\n").register("r8") == 0x400
    )  # dr7


def test_a_program_at_cpl_3_has_no_debug_registers():
    source = "mov rax, dr4"
    text = f"""
        .intel_syntax noprefix
        .include "macros.inc"
_start: load_idt
        load_tss
        set_gate 13, gp
        mov rax, cr4
        or eax, 8
        mov cr4, rax
        push_user_frame user
        iretq
gp:     debug_exit 7
user:   {source}
        .bss
        idt_storage
        ring3_storage
"""
    stop = System(assemble(text), ram=2, max_insns=1000).run()
    assert (stop.reason, stop.info) == ("debug-exit", 7)


def test_general_detect_comes_before_the_access_and_clears_gd():
    run = Run("at:     mov rbx, dr0\n        mov r8, dr7\n", dr7=1 << 13)
    assert (run.places, run.dr6, run.dr7) == (["at"], [1 << 13], [0x400])
    assert not run.flags[0] & RF
    assert run.register("r8") == 0x400


# --- breakpoints on instructions ----------------------------------------------------------------------
def test_an_instruction_breakpoint_comes_before_the_instruction_once():
    body = "        xor ebx, ebx\nat:     inc ebx\n        mov [rip + cell], ebx\nb:      nop\n"
    run = Run(body, point(0, "at") + point(3, "b"), enable(0) | enable(3))
    assert (run.places, run.dr6, run.register("rbx")) == (["at", "b"], [1, 8], 1)
    assert not run.flags[0] & RF  # the handler has to set it


def test_dr6_has_the_breakpoints_of_the_last_exception_and_keeps_the_rest():
    body = "        mov eax, 0x4004\n        mov dr6, rax\nat:     nop\nb:      nop\n"
    run = Run(body, point(0, "at") + point(1, "b"), enable(0) | enable(1), clear="")
    assert run.dr6 == [0x4001, 0x4002]


def test_two_breakpoints_on_one_place_are_one_exception():
    run = Run("        nop\nat:     nop\n", point(0, "at") + point(2, "at"), enable(0) | enable(2))
    assert (run.places, run.dr6) == (["at"], [5])


def test_only_the_first_byte_and_only_enabled_ones_of_length_one():
    before = point(0, "at + 1") + point(1, "at") + point(2, "at")
    run = Run("at:     mov eax, 5\n", before, enable(0) | enable(2, 0, 2))
    assert run.places == []


def test_without_rf_the_handler_is_back_again():
    text = GUEST.replace("or qword ptr [rsp + 40], 0x10000", "nop")
    program = assemble(
        text.format(body="at:     nop", before=point(0, "at"), dr7=enable(0), clear=CLEAR)
    )
    stop = System(program, ram=2, max_insns=20_000).run()
    assert (stop.reason, stop.info) == ("debug-exit", 1)


def test_rf_lasts_for_one_instruction():
    body = """
        mov ecx, 3
at:     dec ecx
        jnz at
        pushfq
        pop r8
"""
    run = Run(body, point(0, "at"), enable(0))
    assert (run.places, run.register("r8") & RF) == (["at"] * 3, 0)


def test_popf_does_not_load_rf_and_pushf_does_not_show_it():
    body = """
        pushfq
        or dword ptr [rsp], 0x10000
        popfq
at:     pushfq
        pop r8
"""
    run = Run(body, point(0, "at"), enable(0))
    assert (run.places, run.register("r8") & RF) == (["at"], 0)


def test_mov_ss_hides_the_next_instruction_and_its_own_data():
    before = (
        point(0, "at") + point(1, "cell") + "        mov eax, ss\n        mov [rip + cell], eax\n"
    )
    run = Run(
        "        mov ss, [rip + cell]\nat:     nop\nb:      nop\n",
        before,
        enable(0) | enable(1, 3, 2),
    )
    assert (run.places, run.dr6) == (["b"], [2])


def test_what_mov_ss_has_met_waits_for_the_handler_of_int3():
    before = point(1, "cell") + "        mov eax, ss\n        mov [rip + cell], eax\n"
    run = Run("        mov ss, [rip + cell]\n        int3\n", before, enable(1, 3, 2))
    assert (run.places, run.dr6) == (["plain"], [2])


def test_rep_meets_its_breakpoint_once_and_data_at_every_iteration():
    body = """
        lea rdi, [rip + cell]
        mov ecx, 4
        cld
at:     rep stosb
b:      nop
"""
    run = Run(body, point(0, "at") + point(1, "cell + 1"), enable(0) | enable(1, 1, 2))
    assert (run.places, run.dr6) == (["at", "at", "at"], [1, 2, 2])
    assert [bool(flags & RF) for flags in run.flags] == [False, True, True]


# --- breakpoints on data ------------------------------------------------------------------------------
WRITES = {
    "mov": "        mov dword ptr [rip + cell], 1\n",
    "rmw": "        add byte ptr [rip + cell], 1\n",
    "stosq": "        lea rdi, [rip + cell]\n        stosq\n",
    "push": "        lea rsp, [rip + cell + 8]\n        push rax\n",
    "call": "        lea rsp, [rip + cell + 8]\n        call at\n",
    "enter": "        lea rsp, [rip + cell + 8]\n        enter 0, 0\n",
    "pushfq": "        lea rsp, [rip + cell + 8]\n        pushfq\n",
    "pop": "        push 1\n        pop qword ptr [rip + cell]\n",
    "sgdt": "        sgdt [rip + cell]\n",
    "xchg": "        xchg [rip + cell], al\n",
    "crossing": "        mov qword ptr [rip + cell - 4], 1\n",
}
READS = {
    "mov": "        mov eax, [rip + cell]\n",
    "cmp": "        cmp byte ptr [rip + cell], 1\n",
    "lodsb": "        lea rsi, [rip + cell]\n        lodsb\n",
    "pop": "        lea rsp, [rip + cell]\n        pop rax\n",
    "popfq": "        lea rsp, [rip + cell]\n        popfq\n",
    "lidt": "        sidt [rip + cell + 8]\n        lidt [rip + cell + 8]\n",
}


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("kind", [1, 3])
@pytest.mark.parametrize("warm", [False, True])
def test_writes_trap_behind_the_instruction(name, kind, warm):
    before = point(2, "cell") + ("        mov [rip + cell], rax\n" if warm else "")
    run = Run(WRITES[name] + "at:     lea rsp, [rip + cell - 1024]\n", before, enable(2, kind))
    assert (run.places, run.dr6) == (["at"], [4])


@pytest.mark.parametrize("name", READS)
@pytest.mark.parametrize("warm", [False, True])
def test_reads_trap_only_where_reads_are_asked_for(name, warm):
    before = point(2, "cell + 8" if name == "lidt" else "cell")
    before += "        mov rax, [rip + cell]\n" if warm else ""
    after = "at:     lea rsp, [rip + cell - 1024]\n"
    reads = Run(READS[name] + after, before, enable(2, 3)).places
    writes = Run(READS[name] + after, before, enable(2, 1)).places
    assert reads[-1] == "at"
    assert len(reads) - len(writes) == 1


@pytest.mark.parametrize("length", [1, 2, 4, 8])
def test_length_and_alignment(length):
    # A breakpoint is on the aligned bytes of its length, an access on those that it has.
    for offset in range(8):
        before = point(0, f"cell + {offset}")
        for at in range(10):
            for size, word in ((1, "byte"), (2, "word"), (4, "dword"), (8, "qword")):
                if (at * 7 + offset * 3 + size) % 5:
                    continue
                run = Run(
                    f"        mov {word} ptr [rip + cell + {at}], 1\n", before, enable(0, 1, length)
                )
                first = offset & ~(length - 1)
                assert bool(run.places) == (at < first + length and first < at + size), (
                    offset,
                    at,
                    size,
                )


def test_an_access_that_faults_has_met_nothing():
    run = Run("        mov rbx, 0x8000000000000000\n        lea rsi, [rip + cell]\n        mov rdi, rbx\n"
              "        movsq\n", point(0, "cell"), enable(0, 3))  # fmt: skip
    assert (run.places, run.word("gps")) == ([], 1)


def test_clflush_moves_no_data():
    assert Run("        clflush [rip + cell]\n", point(0, "cell"), enable(0, 3)).places == []


def test_delivery_of_an_interrupt_traps_before_its_handler():
    body = "        lea rsp, [rip + cell + 8]\n        int3\nb:      lea rsp, [rip + cell - 1024]\n"
    run = Run(body, point(0, "cell - 8"), enable(0, 1, 8))
    assert run.places[0] == "plain"
    gate = point(0, "idt + 48")  # its gate is data, too
    run = Run("        int3\nb:      nop\n", gate, enable(0, 3, 8))
    assert (run.places, run.dr6) == (["plain"], [1])


def test_single_step_and_data_are_one_exception():
    body = """
        pushfq
        or dword ptr [rsp], 0x100
        popfq
        mov dword ptr [rip + cell], 1
at:     pushfq
        and dword ptr [rsp], ~0x100
        popfq
b:      nop
"""
    run = Run(body, point(0, "cell"), enable(0, 1))
    assert (run.places[0], run.dr6) == ("at", [0x4001, 0x4000, 0x4000, 0x4000])


# --- breakpoints on ports -----------------------------------------------------------------------------
DE = "        mov rax, cr4\n        or eax, 8\n        mov cr4, rax\n"
PORT = "        mov eax, {}\n        mov dr1, rax\n"


@pytest.mark.parametrize("text", ["in al, 0x80", "out 0x80, al", "mov edx, 0x80; in al, dx", "in eax, 0x7e",
                                  "lea rsi, [rip + cell]; mov edx, 0x80; outsb",
                                  "lea rdi, [rip + cell]; mov edx, 0x80; insb"])  # fmt: skip
def test_ports(text):
    run = Run(f"        {text}\nat:     nop\n", DE + PORT.format(0x80), enable(1, 2))
    assert (run.places, run.dr6) == (["at"], [2])
    assert Run(f"        {text}\nat:     nop\n", PORT.format(0x80), enable(1, 2)).places == []
    assert (
        Run(f"        {text}\nat:     nop\n", DE + PORT.format(0x82), enable(1, 2, 2)).places == []
    )


# --- the policies of the engine, and hostile programs -------------------------------------------------
def state(system: System) -> tuple[bytes, bytes]:
    return system.core.tobytes(), bytes(system.read(0, 2 << 20))


def random_body(draw: random.Random) -> str:
    lines = []
    for k in range(draw.randint(5, 25)):
        lines.append(f"l{k}:")
        lines.append("        " + draw.choice((
            f"mov dword ptr [rip + cell + {draw.randint(-8, 24)}], eax",
            f"mov rax, [rip + cell + {draw.randint(-8, 24)}]",
            "push rax", "pop rbx", "nop", "inc ebx", "int3",
            "lea rdi, [rip + cell]; mov ecx, 5; rep stosb",
            "lea rdi, [rip + cell]; lea rsi, [rip + cell + 4]; mov ecx, 3; rep movsw",
            "mov eax, ss; mov ss, eax", "mov rax, dr6", "sti; cli", "out 0x80, al",
            "pushfq; or dword ptr [rsp], 0x100; popfq", "pushfq; and dword ptr [rsp], ~0x100; popfq",
        )))  # fmt: skip
    return "\n".join(lines) + "\n"


def random_before(draw: random.Random, lines: int) -> tuple[str, int]:
    before, dr7 = DE if draw.random() < 0.5 else "", 0
    for n in range(4):
        line, cell = f"l{draw.randrange(lines)}", f"cell + {draw.randint(-8, 24)}"
        where = draw.choice((line, cell, "db", "plain", "idt + 48", "idt + 16"))
        if draw.random() < 0.2:
            before += PORT.format(0x80).replace("dr1", f"dr{n}")
        else:
            before += point(n, where)
        dr7 |= (
            enable(n, draw.choice((0, 0, 1, 2, 3)), draw.choice((1, 2, 4, 8)))
            if draw.random() < 0.8
            else 0
        )
    return before, dr7 | (1 << 13 if draw.random() < 0.2 else 0)


@pytest.mark.parametrize("seed", range(cases(day=12, laws=60, night=400)))
def test_random_breakpoints_are_the_same_however_a_run_is_cut(seed):
    draw = random.Random(seed)
    body = random_body(draw)
    before, dr7 = random_before(draw, body.count("\nl") + 1)
    program = assemble(GUEST.format(body=body, before=before, dr7=dr7, clear=CLEAR))

    def finish(**options: object) -> tuple[bytes, bytes]:
        system = System(program, ram=2, max_insns=3000, **options)
        system.run()
        return state(system)

    plain = finish()
    assert finish(horizon=1) == plain
    assert finish(horizon=5, horizon_seed=seed + 1) == plain
    stepped = System(program, ram=2, max_insns=3000)
    for _ in range(200):
        stepped.step(1)
    stepped.run()
    again = System(program, ram=2, max_insns=3000)
    again.step(200)
    again.run()
    assert state(stepped) == state(again)


@pytest.mark.parametrize("seed", range(cases(day=40, laws=300, night=3000)))
def test_random_breakpoints_do_what_the_reference_does(seed):
    draw = random.Random(f"reference {seed}")
    body = random_body(draw)
    before, dr7 = random_before(draw, body.count("\nl") + 1)
    clear = draw.choice((CLEAR, ""))
    program = assemble(GUEST.format(body=body, before=before, dr7=dr7, clear=clear))
    theirs, reference = reference_run(program, Shape(), 3000)
    if reference.stop_reason == "max_steps":
        return  # #DB after #DB, and no instruction by which the two could be stopped at one place
    system = System(program, ram=RAM_MIB, max_insns=theirs.retired)
    system.run()
    core = system.core
    mine = (
        [int(v) for v in core.regs[:16]],
        [int(v) for v in core.dr],
        int(core.dr6),
        int(core.dr7),
    )
    assert mine == (reference.regs, reference.dr, reference.dr6, reference.dr7)
    notes = program.symbols["notes"]
    assert bytes(system.read(notes, 32 * 24)) == theirs.memory[notes : notes + 32 * 24]


def test_a_breakpoint_on_the_frame_of_its_own_exception_is_no_hang():
    stop = System(breaks_on_its_own_frame(), ram=2, max_insns=5000).run()
    assert stop.reason == "max-insns", stop


def test_a_handler_that_is_its_own_breakpoint_is_no_hang():
    text = GUEST.format(body="db0:    nop", before=point(0, "db"), dr7=enable(0), clear=CLEAR)
    text = text.replace("db0:    nop", "        int 1")
    stop = System(assemble(text), ram=2, max_insns=5000).run()
    assert stop.reason in ("max-insns", "limit", "triple-fault"), stop
