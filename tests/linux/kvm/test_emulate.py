"""KVM's emulator behind the forced emulation prefix: it does what silicon does, and counts in software."""

from __future__ import annotations

from functools import cache

import pytest

from tests.linux.guests import positions, run
from tests.reference.generator import from_seed
from vpmu_emu.asm import assemble
from vpmu_emu.errors import ConfigError
from vpmu_emu.linux.trace_kinds import TR_EMULATE_INSN
from vpmu_emu.system import System
from vpmu_emu.traces.text import lines

pytestmark = [pytest.mark.uncompiled, pytest.mark.inner]

KVM = ("emulated", "passthrough")
DE, UD, SS, GP, PF = 0, 6, 12, 13, 14
NONE = (1 << 64) - 1  # what the handler leaves for an exception without error code

# Both counters run over {body}; the handler of every exception leaves vector, error code and RIP and ends.
GUEST = """
.intel_syntax noprefix
.include "msr.inc"
.include "macros.inc"
        idt_storage
        .data
        .balign 16
place:  .quad 0x1122334455667788, 0x99aabbccddeeff00, 3, 4
        .text
_start: load_idt
        .irp vector, 0, 6, 12, 13, 14
        set_gate \\vector, fault\\vector
        .endr
        .if {counting}
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERFEVTSEL0, 0x4300c0
        wrmsr_const IA32_PERFEVTSEL1, 0x4300c4
        .endif
        lea rbp, [rip + place]
        mov rbx, 0x0123456789abcdef
        mov r8, 5
        mov r9, -7
        .if {counting}
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 3
        .endif
start:  {body}
        pushfq
        pop r15
        .if {counting}
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        .endif
        debug_exit 0
fault0: mov edi, 0
        jmp bare_frame
fault6: mov edi, 6
bare_frame:
        push -1
        jmp 1f
fault12: mov edi, 12
        jmp 1f
fault13: mov edi, 13
        jmp 1f
fault14: mov edi, 14
1:      pop r13
        pop r14
        debug_exit 1
"""


@cache
def guest(body: str, counting: bool = True):
    return assemble(GUEST.format(body=body, counting=int(counting)), "guest.s")


def go(body: str, mode: str, counting: bool = True, **options):
    machine = System(guest(body, counting), vpmu=mode, ram=2, max_insns=20_000, **options)
    stop = machine.run()
    return machine, machine.result(stop).to_json()


def forced(body: str) -> str:
    """Every instruction of `body` behind the prefix."""
    pieces = [piece.strip() for piece in body.split(";")]
    return "; ".join(p if not p or p.endswith(":") else f"FEP; {p}" for p in pieces)


def test_the_row_of_the_kernels_own_test():
    """kvm-unit-tests, "emulated instruction": 22 instructions and 5 branches."""
    text = """
.intel_syntax noprefix
.include "msr.inc"
.include "macros.inc"
_start: wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERFEVTSEL0, 0x4300c4
        wrmsr_const IA32_PERFEVTSEL1, 0x4300c0
        wrmsr_const IA32_A_PMC0, (1<<48)-5
        wrmsr_const IA32_A_PMC1, (1<<48)-22
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 3
        mov eax, ecx
        mov esi, edx
        cmp eax, eax
        .rept 5
        FEP; jne 1f
1:
        .endr
        .rept 5
        mov eax, 10
        cpuid
        .endr
        mov ecx, IA32_PERF_GLOBAL_CTRL
        xor eax, eax
        xor edx, edx
        wrmsr
        debug_exit 0
"""
    program = assemble(text, "p3.s")
    # The opener counts where it is emulated, the closer where it is not.
    for mode in KVM:
        machine = System(program, vpmu=mode, ram=2)
        result = machine.result(machine.run()).to_json()
        assert (result["counters"]["pmc0"], result["counters"]["pmc1"]) == (0, 0)
        assert result["global_status"] == 3
        assert result["exits"]["CPUID"] == 5
        assert result["pmis"] == 0


BODIES = [
    "nop; mov eax, ebx; mov al, bh; mov [rbp], rbx; mov r10, [rbp + 8]; movzx eax, bx; movsx rax, bl",
    ("movsxd rax, ebx; lea rdx, [rbp + r8 * 4 + 3]; xchg rbx, r8; bswap rbx; "
     "cmp r8, r9; setl al; cmovl rax, r9"),
    ("add rbx, r9; adc ebx, 7; sub rbx, [rbp]; sbb [rbp + 8], r8; and bl, 0x0f; "
     "or word ptr [rbp], 3; xor eax, eax"),
    ("inc r8; dec byte ptr [rbp]; neg r9; not ebx; test r8, r8; shl rbx, 3; "
     "sar r9d, 1; mov ecx, 5; ror rbx, cl"),
    ("shld rbx, r9, 9; imul rax, r9, 21; imul r8, r9; mov rax, r9; mul r8; "
     "xor edx, edx; div r8; cqo; idiv r9"),
    "push rbx; push 77; pop rax; pop rdx; push qword ptr [rbp]; pop [rbp + 8]; enter 16, 0; leave",
    ("jmp 1f; nop; 1:; call 2f; jmp 3f; 2:; ret; 3:; cmp r8, r8; jz 4f; nop; 4:; "
     "jnz 5f; 5:; jae 6f; nop; 6:"),
    "mov ecx, 4; 1:; loop 1b; jrcxz 2f; nop; 2:; mov ecx, 3; cmp ecx, ecx; 3:; loope 3b; loopne 4f; 4:",
    ("mov rsi, rbp; lea rdi, [rbp + 16]; mov ecx, 9; cld; rep movsb; mov ecx, 3; std; "
     "rep stosb; cld; lodsq"),
    ("mov eax, 5; cmpxchg [rbp], rbx; lock xadd [rbp], r8; bts [rbp], r9; "
     "bsr rax, rbx; bt ebx, 3; lahf; sahf; cmc"),
    ("cli; pushfq; pop rax; or rax, 0x400; push rax; popfq; cld; mov rax, cr4; "
     "mov cr4, rax; str ax; sgdt [rbp]"),
]  # fmt: skip


def registers(result):
    return {k: v for k, v in result["registers"].items() if k not in ("rip", "rflags")}


@pytest.mark.parametrize("mode", KVM)
@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_the_emulator_does_what_silicon_does(body, mode):
    silicon, expected = go(body, "bare")
    machine, result = go(forced(body), mode)
    assert result["stop"] == "debug-exit"
    # return addresses differ, because the prefixes make the code longer
    assert machine.read(int(machine.program.symbols["place"]), 16) == silicon.read(
        int(silicon.program.symbols["place"]), 16
    )
    assert registers(result) == registers(expected)
    # The prefix is no instruction, and each forced one counts once: so the totals are silicon's.
    assert result["counters"]["pmc0"] == expected["counters"]["pmc0"]
    assert result["counters"]["pmc1"] == expected["counters"]["pmc1"]
    assert result["instructions"] == expected["instructions"]


@pytest.mark.parametrize("mode", KVM)
def test_what_hardware_counts_is_without_the_forced_ones(mode):
    """Loads are not counted in software: those of a forced instruction count nowhere."""
    loads = """wrmsr_const IA32_PERFEVTSEL2, 0x4381d0
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 4
        mov rax, [rbp]
        """
    assert go(loads, mode)[1]["counters"]["pmc2"] == 2  # and POP
    assert go(loads + "FEP; mov rax, [rbp]", mode)[1]["counters"]["pmc2"] == 2


@pytest.mark.parametrize("mode", ["none", *KVM])
@pytest.mark.parametrize(("body", "vector", "error"), [
    ("xor r8d, r8d; FEP; here: div r8", DE, NONE),
    ("mov rax, 0x800000000000; FEP; here: mov rdx, [rax]", GP, 0),
    ("mov rbp, 0x800000000000; FEP; here: mov rdx, [rbp]", SS, 0),
    ("mov eax, 0x40000000; FEP; here: mov byte ptr [rax], 1", PF, 2),
    ("mov ecx, 0x9999; FEP; here: rdmsr", GP, 0),
    ("FEP; here: ud2", UD, NONE),
    ("FEP; here: popcnt eax, eax", UD, NONE),  # not in the emulator's tables
    ("FEP; here: mfence", UD, NONE),
    ("here: ud2; .byte 'k', 'v', 'n'", UD, NONE),
    ("here: ud2", UD, NONE),
])  # fmt: skip
def test_faults(mode, body, vector, error):
    """The handler finds the address behind the prefix."""
    machine, result = go(body, mode, counting=mode != "none")
    found = result["registers"]
    assert (result["exit_code"], found["rdi"], found["r13"]) == (1, vector, error)
    assert found["r14"] == int(machine.program.symbols["here"])
    assert result["exits"]["EXCEPTION_NMI"] == 1


@pytest.mark.parametrize("mode", KVM)
def test_what_the_emulator_gives_up_on(mode):
    machine, result = go("FEP; iretq", mode)
    assert result["stop"] == "shutdown"
    assert machine.registers()["rip"] == int(machine.program.symbols["start"]) + 5


@pytest.mark.parametrize("mode", ["bare", *KVM])
def test_without_the_parameter_it_is_ud2(mode):
    options = {} if mode == "bare" else {"kvm": {"force_emulation_prefix": 0}}
    machine, result = go("FEP; nop", mode, **options)
    assert (result["exit_code"], result["registers"]["rdi"]) == (1, UD)
    assert result["registers"]["r14"] == int(machine.program.symbols["start"])


def test_the_parameter_is_checked():
    with pytest.raises(ConfigError, match="force_emulation_prefix"):
        go("nop", "emulated", kvm={"force_emulation_prefix": 2})


@pytest.mark.parametrize("mode", KVM)
@pytest.mark.parametrize(("body", "expect"), [
    ("mov ecx, IA32_PERFEVTSEL1\n FEP; rdmsr", {"rax": 0x4300C4, "rdx": 0}),
    ("wrmsr_const IA32_A_PMC2, 0x123456\n mov ecx, 2\n FEP; rdpmc", {"rax": 0x123456, "rdx": 0}),
    ("mov ecx, IA32_A_PMC2\n mov eax, 99\n xor edx, edx\n FEP; wrmsr\n rdmsr", {"rax": 99}),
    ("mov eax, 0x40000000\n FEP; cpuid", {"rbx": int.from_bytes(b"KVMK", "little")}),
    ("mov ecx, IA32_GS_BASE\n mov eax, 0x5000\n xor edx, edx\n FEP; wrmsr\n rdmsr", {"rax": 0x5000}),
    ("mov r10, 9\n FEP; vmcall\n xchg rax, r10", {"r10": (1 << 64) - 1000}),
])  # fmt: skip
def test_what_exits_anyway_goes_to_its_handler(mode, body, expect):
    result = go(body, mode)[1]
    if "r10" not in expect:
        # what the last instruction left, before the window was closed
        body += "\n mov r10, rax\n mov r11, rdx\n mov r12, rbx"
        result = go(body, mode)[1]
    where = {"rax": "r10", "rdx": "r11", "rbx": "r12", "r10": "r10"}
    assert {k: result["registers"][where[k]] for k in expect} == expect
    assert result["exits"]["EXCEPTION_NMI"] == 1


@pytest.mark.parametrize("mode", KVM)
def test_forced_rdpmc_reads_what_kvm_holds(mode):
    """In passthrough RDPMC itself does not exit; the counter runs, and KVM reads it after the put."""
    body = "nop\n nop\n xor ecx, ecx\n FEP; rdpmc\n mov r10, rax"
    opener = 0 if mode == "passthrough" else 1
    assert go(body, mode)[1]["registers"]["r10"] == 3 + opener


@pytest.mark.parametrize("mode", KVM)
def test_software_counts_overflow(mode):
    body = """wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERFEVTSEL0, 0x5300c0
        wrmsr_const IA32_A_PMC1, (1<<48)-3
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 2
        {}"""
    jumps = "FEP; jmp 1f\n1:\n"
    for count, status in ((2, 0), (3, 2), (4, 2)):
        _machine, result = go(body.format(jumps * count), mode)
        assert result["global_status"] == status
        assert result["counters"]["pmc1"] == ((1 << 48) - 3 + count) % (1 << 48)


@pytest.mark.parametrize("mode", KVM)
def test_a_software_count_that_wraps_brings_a_pmi(mode):
    body = """wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        set_gate 2, nmi
        lapic_enable_x2apic
        wrmsr_const IA32_X2APIC_LVT_PMI, 0x400
        wrmsr_const IA32_PERFEVTSEL1, 0x5300c4
        wrmsr_const IA32_A_PMC1, (1<<48)-2
        xor r12d, r12d
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 2
        FEP; jmp 1f
1:      FEP; jmp 2f
2:      nop
        jmp 3f
nmi:    mov r11, [rsp]
        inc r12
        iretq
3:"""
    machine, result = go(body, mode)
    assert (result["pmis"], result["registers"]["r12"]) == (1, 1)
    # at the entry after the jump that wrapped it
    code = machine.read(result["registers"]["r11"], 1)
    assert code == b"\x90"


@pytest.mark.parametrize("mode", KVM)
def test_forced_syscall_counts_where_it_arrives(mode):
    """CPL 0 after the instruction: the selector that counts user mode alone does not see it."""
    text = """
.intel_syntax noprefix
.include "msr.inc"
.include "macros.inc"
        ring3_storage
        .text
_start: load_tss
        wrmsr_const IA32_EFER, 0xd01
        wrmsr_const IA32_STAR, 0x0018000800000000
        lea rax, [rip + entry]
        wrmsr_rax IA32_LSTAR
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERFEVTSEL0, 0x4100c0
        wrmsr_const IA32_PERFEVTSEL1, 0x4200c4
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 3
        push_user_frame user
        iretq
user:   nop
        FEP; nop
        FEP; syscall
entry:  wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        debug_exit 0
"""
    machine = System(assemble(text, "syscall.s"), vpmu=mode, ram=2)
    stop = machine.run()
    assert stop.reason == "debug-exit", stop
    counters = machine.result(stop).to_json()["counters"]
    assert (counters["pmc0"], counters["pmc1"]) == (2, 2)  # two NOPs; IRETQ and SYSCALL


def test_trace():
    machine, _result = run("ud2\n .byte 'k', 'v', 'm'\n cpuid\n EXIT 0", "emulated", trace=True)
    (at,) = positions(machine, TR_EMULATE_INSN)
    text = list(lines(machine.events()))[at]
    assert text.endswith("kvm_emulate_insn: 0:100005: 0f a2 (prot64)")


@pytest.mark.parametrize("mode", ["none", *KVM])
@pytest.mark.parametrize(("body", "register", "expect"), [
    # a device: the prefix or the page, KVM's emulator makes the access either way, and makes it once
    ("mov esi, 0xfee00080\n FEP; mov dword ptr [rsi], 0x20\n mov r10, cr8", "r10", 2),
    ("mov esi, 0xfee00030\n FEP; mov r10d, [rsi]", "r10", 0x50014),
    ("mov dx, 0x3ff\n mov al, 0x5a\n FEP; out dx, al\n xor eax, eax\n FEP; in al, dx\n mov r10, rax",
     "r10", 0x5A),
    # into code that is decoded already, and executed again
    ("lea rsi, [rip + 4f + 2]\n mov ecx, 2\n4: mov r10b, 1\n FEP; mov byte ptr [rsi], 9\n loop 4b",
     "r10", 9),
    # prefix and instruction in two pages
    ("jmp 5f\n .balign 4096\n .skip 4092\n5: FEP; mov r10d, 0x12345678", "r10", 0x12345678),
    ("jmp 5f\n .balign 4096\n .skip 4088\n5: FEP; mov r10d, 0x12345678", "r10", 0x12345678),
    ("FEP; mov rax, cr0\n FEP; mov cr0, rax\n mov r10, rax", "r10", 0x80000033),
    ("FEP; mov rax, cr4\n or eax, 0x100\n FEP; mov cr4, rax\n mov r10, cr4", "r10", 0x120),
])  # fmt: skip
def test_devices_code_pages_and_control_registers(mode, body, register, expect):
    result = go(body, mode, counting=mode != "none")[1]
    assert (result["exit_code"], result["registers"][register]) == (0, expect)


@pytest.mark.parametrize("mode", KVM)
def test_forced_hlt_halts(mode):
    machine, result = go("cli\n FEP; hlt\nafter: nop", mode)
    assert result["stop"] == "halted"
    assert machine.registers()["rip"] == int(machine.program.symbols["after"])


@pytest.mark.parametrize("mode", KVM)
def test_forced_sti_keeps_its_shadow(mode):
    """The instruction behind STI runs before the interrupt, forced or not."""
    body = """lapic_enable_x2apic
        set_gate 0x21, irq
        wrmsr_const IA32_X2APIC_ICR, 0x40021
        xor r10d, r10d
        {sti}
        inc r10
        nop
        jmp 6f
irq:    mov r11, r10
        iretq
6:      cli"""
    for sti in ("sti", "FEP; sti"):
        assert go(body.format(sti=sti), mode)[1]["registers"]["r11"] == 1


@pytest.mark.parametrize("mode", KVM)
def test_the_record_does_not_depend_on_the_engine(mode):
    body = forced("mov rsi, rbp; lea rdi, [rbp + 8]; mov ecx, 8; rep movsb; push rax; pop rbx; jmp 1f; 1:")
    records = {go(body, mode, **options)[0].record() for options in ({}, {"horizon": 1}, {"trace": True})}
    assert len(records) == 1


NOT_EMULATED = ("popcnt", "lfence", "mfence", "sfence", "tzcnt", "lzcnt")
FEP_BYTES = ".byte 0x0f, 0x0b, 'k', 'v', 'm'"
NOP_BYTES = ".byte 0x0f, 0x1f, 0x44, 0, 0"  # as long, so that every address is the same


def prefixed(text: str, prefix: str) -> str:
    """A generated program with `prefix` before every instruction of its body."""
    start, end = text.index("movabs r12"), text.index(".bss")
    body = []
    for line in text[start:end].splitlines():
        word = line.split(" ")[0]
        plain = word.endswith(":") or word.startswith(".") or word in NOT_EMULATED or line == "out 0xF4, al"
        body += [line] if plain else [prefix, line]
    return text[:start] + "\n".join(body) + "\n" + text[end:]


@pytest.mark.parametrize("seed", range(12))
def test_random_programs(seed):
    text = from_seed("integer", seed)
    systems = []
    for mode, prefix in (("bare", NOP_BYTES), ("emulated", FEP_BYTES)):
        machine = System(assemble(prefixed(text, prefix), "random.s"), vpmu=mode, ram=2, max_insns=50_000)
        assert machine.run().reason == "debug-exit"
        systems.append(machine)
    silicon, kvm = systems
    assert kvm.registers() == silicon.registers()
    at = int(silicon.program.symbols["scratch"])
    assert kvm.read(at, kvm.ram_size - at) == silicon.read(at, silicon.ram_size - at)
    # every no-operation on the one side is an exit on the other
    assert kvm.instructions == silicon.instructions - kvm.exits()["EXCEPTION_NMI"]


@pytest.mark.parametrize("mode", KVM)
@pytest.mark.parametrize(("count", "instructions"), [(0, 1), (1, 1), (1024, 1), (1025, 2), (2500, 2)])
def test_a_repeat_is_left_where_its_rest_is_a_multiple_of_1024(mode, count, instructions):
    head = f"mov ecx, {count}; lea rdi, [rip + place]; mov r14, rdi; "
    tail = "sub rdi, r14; mov [rip + place], rdi\n .data\n .zero 4096\n .text\n"
    machine, result = go(f"{head} FEP; rep stosb; {tail}", mode)
    grown = result["counters"]["pmc0"] - go(head + tail, mode)[1]["counters"]["pmc0"]
    done = machine.read(machine.program.symbols["place"], 8)
    assert (grown, int.from_bytes(done, "little")) == (instructions, count)


PORTS = "lea rsi, [rip + text]; mov edx, 0x3f8; mov ecx, 5; {} rep outsb; "
PORTS += "mov edx, 0x3fd; lea rdi, [rip + place]; mov ecx, 3; {} rep insb; "


@pytest.mark.parametrize("mode", ["none", *KVM])
@pytest.mark.parametrize("prefix", ["", "FEP;"])
def test_strings_go_to_ports_and_come_from_them_element_by_element(mode, prefix):
    data = "\n .data\n text: .ascii \"hello\"\n .text\n"
    body = PORTS.format(prefix, prefix) + data
    machine, result = go(body, mode, counting=False)
    bare = go(PORTS.format("", "") + data, "bare", counting=False)[0]
    place = machine.program.symbols["place"]
    assert result["serial"] == "hello"
    assert result["stop"] == "debug-exit"
    assert machine.read(place, 8).hex(" ") == bare.read(place, 8).hex(" ") == "60 60 60 55 44 33 22 11"


@pytest.mark.parametrize("mode", KVM)
def test_each_element_that_the_emulator_moves_counts(mode):
    body = "lea rsi, [rip + place]; mov edx, 0x80; mov ecx, 4; rep outsb"
    without = body.replace("rep outsb", "nop")
    grown = go(body, mode)[1]["counters"]["pmc0"] - go(without, mode)[1]["counters"]["pmc0"]
    assert grown == 3


@pytest.mark.parametrize("mode", ["none", *KVM])
@pytest.mark.parametrize(("instruction", "offset", "count", "batches"), [
    ("rep insb", 0, 3, 1), ("insb", 0, 3, 1),
    ("rep insb", 0, 1025, 2),  # 1024 bytes
    ("rep insb", 4096 - 5, 8, 2),  # the rest of the page
    ("rep insw", 0, 600, 2), ("rep insd", 0, 256, 1),
    ("std; rep insb", 2, 5, 3),  # 2, then 1 at the page's first byte, then 2 in the page before
    ("std; rep insb", 0, 2, 2),  # nothing below in this page: one
    ("rep insb", 0, 0, 0),
])  # fmt: skip
def test_ins_asks_for_as_many_elements_as_the_emulator_holds(mode, instruction, offset, count, batches):
    body = f"""lea rdi, [rip + room + 4095]; and rdi, -4096; add rdi, {4096 + offset}; mov r14, rdi
    mov edx, 0x3fd; mov ecx, {count}; {instruction}; cld; sub r14, rdi; mov [rip + place], r14
    mov [rip + place + 8], rcx\n .data\n room: .zero 16384\n .text\n"""
    machine, result = go(body, mode, counting=False)
    assert result["stop"] == "debug-exit"
    none = go(body.replace(instruction, "nop"), mode, counting=False)[0]
    bare = go(body, "bare", counting=False)[0]
    exits = [m.result(m.stop(0, "running")).to_json()["exits"]["IO_INSTRUCTION"] for m in (machine, none)]
    assert exits[0] - exits[1] == batches
    at, room = machine.program.symbols["place"], machine.program.symbols["room"]
    assert machine.read(at, 16) == bare.read(at, 16)
    assert machine.read(room, 16384) == bare.read(room, 16384)


@pytest.mark.parametrize("mode", KVM)
def test_a_batch_of_elements_counts_once(mode):
    body = "mov edx, 0x3fd; mov ecx, 40; lea rdi, [rip + place]; rep insb\n .data\n .zero 64\n .text\n"
    grown = go(body, mode)[1]["counters"]["pmc0"]
    assert grown == go(body.replace("rep insb", "nop"), mode)[1]["counters"]["pmc0"]


@pytest.mark.parametrize("mode", KVM)
def test_a_string_port_access_faults_where_memory_does(mode):
    body = "mov edi, 0x40000000; mov edx, 0x3fd; mov ecx, 2; here: rep insb"
    machine, result = go(body, mode, counting=False)
    assert result["exit_code"] is not None
    assert machine.result(machine.stop(0, "running")).to_json()["exits"]["IO_INSTRUCTION"] <= 2
