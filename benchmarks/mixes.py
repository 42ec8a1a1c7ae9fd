"""What guest code costs, by kind: the same instructions on every engine and on whatever else runs them.

    python benchmarks/mixes.py [NAME…] [--rounds N] [--json FILE] [--page]

The interpreter, native code with no counter and with all twelve counting, Unicorn, QEMU's user mode,
cachegrind with caches and branches simulated, the processor. Rounds take turns, so that all share the
machine's good and bad moments; a figure is the median in million instructions a second, with half of the
spread. A process is timed by the difference of two lengths, so that its start is no part of it. What a mix
computes is compared first: nobody skips work. `--page` writes docs/mixes.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from shutil import which
from typing import Any

import attrs

from vpmu_emu.asm import assemble
from vpmu_emu.asm.program import Program
from vpmu_emu.machine.translate import translator
from vpmu_emu.system import Result, run

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "mixes.md"
MEGABYTE = 1 << 20

# Into r14 goes what a mix computes. rdi is `area`, r15 counts rounds.
GUEST = """
        .intel_syntax noprefix
        .globl _start
_start: lea rsp, [rip + stack_end]
        {before}
        lea rdi, [rip + area]
        xor r14d, r14d
        {setup}
        mov r15d, {rounds}
again:
        {body}
        dec r15d
        jnz again
done:   {after}
        {more}
        .bss
        .balign 4096
area:   .zero {room}
stack:  .zero 16384
stack_end:
        .zero 4096
"""
# All eight and four counters: instructions, branches, cycles, branch misses, cache references and misses.
COUNTERS = """
        mov ecx, 0x38f; xor eax, eax; xor edx, edx; wrmsr
        mov ecx, 0x186; mov eax, 0x4300c0; wrmsr
        mov ecx, 0x187; mov eax, 0x4300c4; wrmsr
        mov ecx, 0x188; mov eax, 0x43003c; wrmsr
        mov ecx, 0x189; mov eax, 0x4300c5; wrmsr
        mov ecx, 0x18a; mov eax, 0x434f2e; wrmsr
        mov ecx, 0x18b; mov eax, 0x43412e; wrmsr
        mov ecx, 0x18c; mov eax, 0x43013c; wrmsr
        mov ecx, 0x18d; mov eax, 0x4300c0; wrmsr
        mov ecx, 0x38d; mov eax, 0x3333; wrmsr
        mov ecx, 0x38f; mov eax, 0xff; mov edx, 0xf; wrmsr
"""
# 4 KiB pages under the first 32 MiB, instead of the large ones that a guest begins with.
TABLES = """
        .data
        .balign 4096
pml4:   .quad pdpt + 3
        .zero 4088
pdpt:   .quad pd + 3
        .zero 4088
pd:     .zero 4096
        .bss
        .balign 4096
pts:    .zero 65536
"""
PAGING = """
        lea rdi, [rip + pts]; mov eax, 3; mov ecx, 8192
1:      mov [rdi], rax; add rax, 4096; add rdi, 8; loop 1b
        lea rdi, [rip + pd]; lea rax, [rip + pts]; add rax, 3; mov ecx, 16
1:      mov [rdi], rax; add rax, 4096; add rdi, 8; loop 1b
        lea rax, [rip + pml4]; mov cr3, rax
"""
WRITE_AND_EXIT = """push r14; mov eax, 1; mov edi, 1; mov rsi, rsp; mov edx, 8; syscall
        mov eax, 60; xor edi, edi; syscall"""


@attrs.frozen
class Mix:
    """A kind of guest code.

    Attributes:
        name, what: it in a word, and in words.
        rounds: of its loop that the interpreter takes in a tenth of a second or so.
        room: bytes of its memory; paged: through tables of small pages in our machine.
        more: behind its end: subroutines, data.
    """

    name: str
    what: str
    rounds: int
    body: str
    setup: str = ""
    more: str = ""
    room: int = 16384
    paged: bool = False


def _lines(*parts: str, times: int = 1) -> str:
    return "\n".join(parts * times)


MIXES = (
    Mix("alu", "64-bit arithmetic, logic, shifts", 600_000, _lines(
        "add rax, rbx; xor rdx, rax; lea rsi, [rax + rdx * 2 + 5]; sub rbx, rsi; and r8, rbx; or r9, r8",
        "shl r10, 3; add r10, rdx; ror r11, 7; adc r11, r9; not r8; cmp rax, r11; cmovb rcx, rdx",
        "setc r12b; add r14, rcx; xor r14, r11; inc rax",
        times=2), "mov eax, 1; mov ebx, 0x12345; mov edx, 3; mov r11, -5"),
    Mix("narrow", "8- and 16-bit arithmetic", 300_000, _lines(
        "add al, bl; xor ah, dl; sub cx, ax; and bl, 0x7f; or dh, al; inc cl; shl ax, 1; rol bx, 3",
        "neg dl; cmp cl, dh; setg r8b; adc r9b, al; movzx r10d, ax; add r14, r10; imul r11w, ax, 7",
        "xor r14w, r11w; add r14, r8", times=2),
        "mov eax, 0x1234; mov ebx, 0x89ab; mov ecx, 0x55; mov edx, 0xcafe; xor r8d, r8d"),
    Mix("memory", "loads and stores that hit the cache", 500_000, _lines(
        "mov eax, r15d; and eax, 1023; mov rbx, [rdi + rax * 8]; add rbx, r15; mov [rdi + rax * 8], rbx",
        "mov ecx, [rdi + rax * 4 + 64]; mov [rdi + 8], rcx; movzx edx, byte ptr [rdi + rax + 3]",
        "mov [rdi + rax * 2 + 4096], dx; add r14, rbx; movsxd rsi, dword ptr [rdi + rax * 4 + 100]",
        "mov [rdi + 24], rsi; add r14, [rdi + 24]; push r14; pop r8", times=2)),
    Mix("modify", "read, modify, write", 300_000, _lines(
        "add qword ptr [rdi], r15; inc dword ptr [rdi + 8]; xor [rdi + 16], r14",
        "shl word ptr [rdi + 24], 1; sub [rdi + 32], r15d; neg byte ptr [rdi + 40]",
        "or qword ptr [rdi + 48], 5; adc [rdi + 56], r15; add r14, [rdi]",
        "xor r14, [rdi + 32]; lock add [rdi + 64], r15; xchg [rdi + 72], r14", times=2)),
    Mix("calls", "calls and returns", 600_000, _lines(
        "call outer; add r14, rax; lea rbx, [rip + leaf]; call rbx; xor r14, rax"), more="""
outer:  push rbp; mov rbp, rsp; sub rsp, 16; mov [rbp - 8], r15; call leaf; add rax, [rbp - 8]; leave; ret
leaf:   lea rax, [r15 + r14]; ror rax, 5; ret
"""),
    Mix("switch", "jumps through a table", 700_000, _lines(
        "imul eax, eax, 1664525; add eax, 1013904223; mov ecx, eax; shr ecx, 29",
        "lea rbx, [rip + table]; movsxd rdx, dword ptr [rbx + rcx * 4]; add rdx, rbx; jmp rdx",
        *(f"case{k}: add r14, {k * k + 1}; rol r14, {k}; jmp joined" for k in range(8)),
        "joined:"), "mov eax, 7", more="\n".join(
        ["        .section .rodata", "        .balign 4", "table:"]
        + [f"        .long case{k} - table" for k in range(8)])),
    Mix("products", "multiplication and division", 300_000, _lines(
        "mov rax, r15; mul rax; add r14, rdx; imul rbx, rax, 31; imul rbx, r15; add r14, rbx",
        "mov eax, r15d; xor edx, edx; mov ecx, 10; div ecx; add r14, rdx",
        "mov rax, r14; shr rax, 3; xor edx, edx; lea rcx, [r15 + 7]; div rcx; xor r14, rdx",
        "mov eax, r15d; cdq; mov ecx, -7; idiv ecx; add r14, rax")),
    Mix("strings", "string instructions, by the element and by REP", 40_000, _lines(
        "lea rsi, [rdi + 4096]; lea rbx, [rdi + 8192]; xchg rdi, rbx",
        "lodsq; stosq; add r14, rax; lodsb; stosb; movsd; movsw",
        "mov ecx, 64; rep movsb; mov ecx, 32; mov rax, r15; rep stosq",
        "lea rsi, [rbx + 4096]; mov rdi, rsi; mov ecx, 48; repe cmpsb; add r14, rcx; mov rdi, rbx")),
    Mix("pages", "8 MiB in small pages, in no order", 400_000, _lines(
        "imul rax, rbx; add rax, r15; mov rcx, rax; shr rcx, 41",
        "add r14, [rdi + rcx]; mov [rdi + rcx], r14; mov rdx, rax; shr rdx, 20; and edx, 0x7ffff8",
        "xor r14, [rdi + rdx]"),
        "mov eax, 1; movabs rbx, 6364136223846793005", room=8 * MEGABYTE + 4096, paged=True),
    Mix("branches", "branches that data decide", 600_000, _lines(
        "imul eax, eax, 1664525; add eax, 1013904223; mov ecx, eax; shr ecx, 24",
        "cmp cl, 128; jae 1f; add r14, rcx; test cl, 4; jz 2f; inc r14; jmp 2f",
        "1: sub r14, rcx; cmp cl, 200; jb 2f; ror r14, 3; 2: cmp ecx, 30; jg 3f; xor r14, rax; 3:"),
        "mov eax, 7"),
    Mix("c", "lists, matrices, a scanner, bits, CRC: C by gcc -O2", 250, _lines(
        "mov edi, 1; call work; add r14, rax"), more=(HERE / "mixes_c.s").read_text(encoding="utf-8")),
)  # fmt: skip
BY_NAME = {mix.name: mix for mix in MIXES}


def source(mix: Mix, rounds: int, *, ours: bool, counters: bool = False) -> str:
    """The text of a mix for our machine or for a process."""
    before = ""
    if ours:
        before = (PAGING if mix.paged else "") + (COUNTERS if counters else "")
    more = mix.more + (TABLES if ours and mix.paged else "")
    after = "xor eax, eax; out 0xf4, al" if ours else WRITE_AND_EXIT
    text = GUEST.format(before=before, setup=mix.setup, rounds=rounds, body=mix.body, after=after,
                        more=f"{more}\n        .text", room=mix.room)  # fmt: skip
    return text.replace("; ", "\n        ")


@cache
def guest(mix: Mix, rounds: int, counters: bool = False) -> Program:
    """A mix for our machine."""
    return assemble(source(mix, rounds, ours=True, counters=counters), f"{mix.name}.s")


def ours(mix: Mix, rounds: int, *, engine: str, counters: bool = False) -> Result:
    """A run of our machine, `bare`."""
    program = guest(mix, rounds, counters)
    found = run(program, vpmu="bare", engine=engine, ram=32, max_insns=None)
    assert found.exit_code == 0, f"{mix.name}: {found.stop}"
    return found


def seconds_of(found: Result) -> float:
    """What a run took, without assembling and compiling."""
    return float(found.to_json()["wall_s"])


# --- others -------------------------------------------------------------------------------------------


def unicorn(mix: Mix, rounds: int) -> tuple[int, float]:
    """r14 and the seconds of Unicorn, translation included."""
    import unicorn as uc
    from unicorn import x86_const as x86

    program = assemble(source(mix, rounds, ours=False), f"{mix.name}.s")
    start = min(segment.addr for segment in program.segments) & -4096
    end = max(segment.addr + len(segment.data) for segment in program.segments)
    machine = uc.Uc(uc.UC_ARCH_X86, uc.UC_MODE_64)
    machine.mem_map(start, (end - start + 2 * 4096) & -4096)
    for segment in program.segments:
        machine.mem_write(segment.addr, bytes(segment.data))
    began = time.perf_counter()
    machine.emu_start(program.symbols["_start"], program.symbols["done"])
    seconds = time.perf_counter() - began
    return machine.reg_read(x86.UC_X86_REG_R14), seconds


class Processes:
    """Executables of mixes, made by GNU as and ld, and what runs them."""

    RUNNERS = {
        "native": [],
        "QEMU": ["qemu-x86_64"],
        "cachegrind": ["valgrind", "--tool=cachegrind", "--cache-sim=yes", "--branch-sim=yes",
                       "--cachegrind-out-file=/dev/null", "--quiet"],
    }  # fmt: skip

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def there() -> list[str]:
        """Those that are installed."""
        if not (which("as") and which("ld")):
            return []
        return [name for name, command in Processes.RUNNERS.items() if not command or which(command[0])]

    @cache  # noqa: B019  (one object in a process)
    def executable(self, mix: Mix, rounds: int) -> Path:
        """A static ELF file."""
        path = self.folder / f"{mix.name}-{rounds}"
        text = path.with_suffix(".s")
        text.write_text(source(mix, rounds, ours=False), encoding="utf-8")
        subprocess.run(["as", "--64", "-o", path.with_suffix(".o"), text], check=True)
        subprocess.run(["ld", "-static", "-o", path, path.with_suffix(".o")], check=True)
        return path

    def run(self, runner: str, mix: Mix, rounds: int) -> tuple[int, float]:
        """r14 and the seconds of a whole process."""
        command = [*self.RUNNERS[runner], self.executable(mix, rounds)]
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, check=True)
        return int.from_bytes(done.stdout, "little"), time.perf_counter() - began

    def seconds(self, runner: str, mix: Mix, rounds: int) -> float:
        """The seconds that so many rounds take, without the start and the end of the process."""
        few = max(1, rounds // 16)
        for _ in range(20):
            short = min(self.run(runner, mix, few)[1] for _ in range(2))
            whole = self.run(runner, mix, rounds)[1]
            if whole > short:  # else the machine did something else meanwhile
                return (whole - short) * rounds / (rounds - few)
        raise SystemExit(f"mixes: {runner} takes no time for {mix.name}: more rounds are needed")


# --- all of them --------------------------------------------------------------------------------------

# By how much the rounds of a mix are more than the interpreter's.
MORE = {"translator": 4, "counting": 4, "Unicorn": 4, "QEMU": 16, "cachegrind": 2, "native": 60}
CHECKED = 50  # rounds of which the results are compared
RATIOS = ("interpreter", "Unicorn", "QEMU", "cachegrind", "native")


def runners(processes: Processes) -> dict[str, Callable[[Mix, int], float]]:
    """What is here, and how many seconds it takes for so many rounds."""
    found: dict[str, Callable[[Mix, int], float]] = {}
    for name, options in (
        ("interpreter", {"engine": "interpreter"}),
        ("translator", {"engine": "translator"}),
        ("counting", {"engine": "translator", "counters": True}),
    ):
        found[name] = lambda mix, rounds, options=options: seconds_of(ours(mix, rounds, **options))
    try:
        import unicorn as _  # noqa: F401
    except ImportError:
        pass
    else:
        found["Unicorn"] = lambda mix, rounds: unicorn(mix, rounds)[1]
    for name in reversed(Processes.there()):
        found[name] = partial(processes.seconds, name)
    return found


def checksums(mix: Mix, processes: Processes) -> dict[str, int]:
    """What the mix computes, by whom; QEMU and cachegrind run what the processor does."""
    found = {
        engine: ours(mix, CHECKED, engine=engine).registers["r14"]
        for engine in ("interpreter", "translator")
    }
    with contextlib.suppress(ImportError):
        found["Unicorn"] = unicorn(mix, CHECKED)[0]
    return found | {name: processes.run(name, mix, CHECKED)[0] for name in Processes.there()}


def translation(mix: Mix) -> float:
    """Seconds until a mix's code is native, where neither process nor disk has any of it."""
    kept, load = dict(translator.LIBRARY.addresses), translator.Library._load
    translator.LIBRARY.addresses.clear()
    translator.Library._load = lambda *_: None  # type: ignore[method-assign]
    try:
        cold = seconds_of(ours(mix, mix.rounds, engine="translator"))
    finally:
        translator.Library._load = load  # type: ignore[method-assign]
        translator.LIBRARY.addresses.update(kept)
    return max(0.0, cold - seconds_of(ours(mix, mix.rounds, engine="translator")))


# --- a guest that samples -----------------------------------------------------------------------------

SAMPLING = """
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .globl _start
_start: load_idt
        set_gate 0x40, handler
        lapic_enable_x2apic
        wrmsr_const IA32_X2APIC_LVT_PMI, 0x40
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_A_PMC0, 0x1000000000000-1000
        wrmsr_const IA32_PERFEVTSEL0, 0x5300c0
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 1
        xor r13d, r13d
        xor r14d, r14d
        sti
        mov r15d, {rounds}
again:  add rax, rbx; xor rdx, rax; lea rsi, [rax + rdx * 2 + 5]; sub rbx, rsi; and r8, rbx; or r9, r8
        test r15d, 3; jz 1f; add r10, rdx; rol r10, 5
1:      dec r15d
        jnz again
        cli
        xor eax, eax; out 0xf4, al
handler:
        push rax; push rcx; push rdx
        inc r13                       # samples
        add r14, [rsp + 24]           # the address of each
        rol r14, 7
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERF_GLOBAL_STATUS_RESET, 1
        wrmsr_const IA32_A_PMC0, 0x1000000000000-1000
        wrmsr_const IA32_X2APIC_LVT_PMI, 0x40
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 1
        wrmsr_const IA32_X2APIC_EOI, 0
        pop rdx; pop rcx; pop rax
        iretq
        .data
        idt_storage
"""


@cache
def sampling_guest(rounds: int) -> Program:
    """A loop with a PMI every thousand instructions."""
    return assemble(SAMPLING.format(rounds=rounds).replace("; ", "\n        "), "sampling.s")


def sampled(engine: str, rounds: int = 1_000_000) -> tuple[tuple[int, int], float]:
    """(samples, a sum over their addresses), and million instructions a second."""
    found = run(sampling_guest(rounds), vpmu="bare", engine=engine, max_insns=None)
    assert found.exit_code == 0, found.stop
    registers = found.registers
    return (registers["r13"], registers["r14"]), found.instructions / seconds_of(found) / 1e6


# --- what is said -------------------------------------------------------------------------------------


def measured(mixes: list[Mix], rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """All figures: {mix: {runner: [M instr/s, …]}}, and more beside."""
    with tempfile.TemporaryDirectory() as folder:
        processes = Processes(Path(folder))
        who = runners(processes)
        work: dict[str, float] = {}
        for mix in mixes:
            sums = checksums(mix, processes)
            if len(set(sums.values())) != 1:
                raise SystemExit(f"mixes: {mix.name} comes to different ends: {sums}")
            few, many = (ours(mix, n, engine="interpreter").instructions for n in (10, 20))
            work[mix.name] = (many - few) / 10
            for name in ("translator", "counting"):  # its code is native from here on
                who[name](mix, mix.rounds)
        speed: dict[str, dict[str, list[float]]] = {mix.name: {name: [] for name in who} for mix in mixes}
        native: dict[str, list[float]] = {mix.name: [] for mix in mixes}
        samples: dict[str, list[float]] = {"interpreter": [], "translator": []}
        for turn in range(rounds):
            say(f"round {turn + 1} of {rounds}")
            for mix in mixes:
                for name, seconds in who.items():
                    n = mix.rounds * MORE.get(name, 1)
                    speed[mix.name][name].append(n * work[mix.name] / seconds(mix, n) / 1e6)
                native[mix.name].append(translation(mix))
            found = {engine: sampled(engine) for engine in samples}
            if found["interpreter"][0] != found["translator"][0]:
                raise SystemExit(f"mixes: samples differ: {found}")
            for engine, (_, mips) in found.items():
                samples[engine].append(mips)
    return {"rounds": rounds, "speed": speed, "translation": native, "sampling": samples}


def _cell(values: list[float]) -> str:
    middle = statistics.median(values)
    spread = (max(values) - min(values)) / 2 / middle
    return f"{middle:.0f} ±{100 * spread:.0f}"


def tables(found: dict[str, Any]) -> list[str]:
    """The figures as lines of two tables in Markdown."""
    speed = found["speed"]
    who = list(next(iter(speed.values())))
    middle = {mix: {name: statistics.median(v) for name, v in row.items()} for mix, row in speed.items()}
    lines = [f"| mix | {' | '.join(who)} | made native, ms |", "|---" * (len(who) + 2) + "|"]
    for mix, row in speed.items():
        cells = [_cell(values) for values in row.values()]
        made = 1000 * statistics.median(found["translation"][mix])
        lines.append(f"| {mix} | {' | '.join(cells)} | {made:.0f} |")
    peers = [name for name in RATIOS if name in who]
    lines += ["", f"| translator over | {' | '.join(peers)} | counting 8 + 4 |"]
    lines += ["|---" * (len(peers) + 2) + "|"]
    ratios = {mix: [row["translator"] / row[name] for name in peers] + [row["counting"] / row["translator"]]
              for mix, row in middle.items()}  # fmt: skip
    for mix, row in ratios.items():
        lines.append(f"| {mix} | {' | '.join(f'{value:.2f}' for value in row)} |")
    means = [statistics.geometric_mean(column) for column in zip(*ratios.values(), strict=True)]
    lines.append(f"| **geometric mean** | {' | '.join(f'**{value:.2f}**' for value in means)} |")
    return lines


def sampling_line(found: dict[str, Any]) -> str:
    """A guest that is interrupted every thousand instructions, in a sentence."""
    slow, fast = (statistics.median(found["sampling"][name]) for name in ("interpreter", "translator"))
    return (
        f"A PMI every 1000 instructions: {slow:.0f} million instructions a second in the interpreter, "
        f"{fast:.0f} in native code ({fast / slow:.1f} ×), the same samples."
    )


def page(found: dict[str, Any]) -> str:
    """docs/mixes.md."""
    what = "\n".join(f"| {mix.name} | {mix.what} |" for mix in MIXES)
    missing = {"Unicorn", *Processes.RUNNERS} - set(next(iter(found["speed"].values())))
    absent = f"\nNot installed where this was made: {', '.join(sorted(missing))}.\n" if missing else ""
    return f"""# Guest code by kind, on every engine

Made by `python benchmarks/mixes.py --page`; the figures are of one machine and one run of it, so compare
ratios. Million instructions a second, the median of {found["rounds"]} rounds that take turns, with half of
the spread in percent. Our engines count everything at every instruction; `counting` has twelve counters on.
Unicorn and QEMU count nothing, cachegrind simulates caches and branches, native is the processor.
Translation is not in the figures of the translator: the last column says what it takes where neither the
process nor the disk has any of it (Unicorn's and QEMU's are in theirs, and are smaller).

| mix | what it is |
|---|---|
{what}
{absent}
## Speed

{chr(10).join(tables(found))}

## Sampling

{sampling_line(found)}
"""


def main(argv: list[str]) -> int:
    """Measure and say."""
    parser = argparse.ArgumentParser(prog="mixes.py", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BY_NAME)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--page", action="store_true", help=f"write {PAGE.name}")
    asked = parser.parse_args(argv)
    for name in asked.names:
        if name not in BY_NAME:
            parser.error(f"no mix is named {name!r} (allowed: {', '.join(BY_NAME)})")
    if asked.rounds < 1:
        parser.error("--rounds is 1 or more")
    if asked.page and asked.names:
        parser.error("--page is of all mixes")
    mixes = [BY_NAME[name] for name in asked.names] or list(MIXES)
    found = measured(mixes, asked.rounds, lambda line: print(line, file=sys.stderr))
    print("\n".join(tables(found)))
    print(sampling_line(found))
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if asked.page:
        PAGE.write_text(page(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
