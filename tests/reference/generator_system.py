"""Random guests of the system side: interrupts, priorities, rings, SYSCALL, segments, paging.

Importing this adds `events`, `xapic` and `paging` to `generator.MAKERS`.
"""

from __future__ import annotations

from .generator import (
    BRANCHES,
    EN,
    INSTRUCTIONS,
    INT,
    MAKERS,
    OS,
    RINGS,
    TABLES,
    USR,
    Source,
    Writer,
    _strategy,
)

VECTORS = (0x31, 0x32, 0x45, 0x61, 0x78)
TRAP_VECTOR = 0x45  # through a trap gate: IF stays as it was
NESTING_VECTOR = 0x32  # its handler enables interrupts before it ends

_LOG = """
log_pair:
push rbx
mov rbx, qword ptr [logged]
and ebx, 126
mov qword ptr [log + rbx*8], rax
mov qword ptr [log + rbx*8 + 8], rcx
add qword ptr [logged], 2
pop rbx
ret
""".splitlines()


def _interrupt_handlers() -> list[str]:
    lines = list(_LOG)
    for vector in VECTORS:
        lines += [f"irq_{vector:x}:", "push rax", f"mov eax, {vector:#x}", "jmp irq_common"]
    lines += """
irq_common:
push rcx
push rdx
mov rcx, qword ptr [rsp + 24]
push rax
call log_pair
pop rax
cmp eax, 0x32
jne irq_eoi
sti
nop
nop
irq_eoi:
mov ecx, 0x80B
xor eax, eax
xor edx, edx
wrmsr
pop rdx
pop rcx
pop rax
iretq
nmi:
push rax
push rcx
push rdx
mov ecx, 0x38E
rdmsr
mov rcx, qword ptr [rsp + 24]
call log_pair
mov ecx, 0x390
xor edx, edx
mov eax, 0xFF
wrmsr
mov ecx, 0x834
rdmsr
and eax, 0xFFFEFFFF
wrmsr
pop rdx
pop rcx
pop rax
iretq
""".splitlines()
    for name, vector, error in (
        ("divide", 0, False),
        ("undefined", 6, False),
        ("double", 8, True),
        ("absent", 11, True),
        ("stack", 12, True),
        ("general", 13, True),
        ("page", 14, True),
    ):
        lines += [f"fault_{name}:"]
        lines += [] if error else ["push 0"]
        lines += [
            "push rax",
            "push rcx",
            "mov rcx, qword ptr [rsp + 24]",
            f"mov eax, {vector}",
            "call log_pair",
            "mov rax, qword ptr [rsp + 16]",
            "mov rcx, cr2",
            "call log_pair",
            "mov qword ptr [rsp + 24], r13",
            "pop rcx",
            "pop rax",
            "add rsp, 8",
            "iretq",
        ]
    lines += """
service:
add rbx, 1
iretq
leave_ring3:
mov rsp, qword ptr [kernel_rsp]
jmp qword ptr [kernel_back]
system_call:
add r8, 1
mov qword ptr [scratch + 1000], r11
cmp r8, r9
sysretq
""".splitlines()
    return lines


def _gates() -> tuple[list[str], int]:
    rows = [
        (0, 0x8E00, "fault_divide"),
        (2, 0x8E00, "nmi"),
        (3, 0xEE00, "service"),
        (6, 0x8E00, "fault_undefined"),
        (8, 0x8E01, "fault_double"),
        (11, 0x8E00, "fault_absent"),
        (12, 0x8E00, "fault_stack"),
        (13, 0x8E00, "fault_general"),
        (14, 0x8E00, "fault_page"),
        (0x40, 0xEE00, "service"),
        (0x41, 0xEE00, "leave_ring3"),
        (0x7A, 0x6E00, "service"),  # not present: INT 0x7A is #NP
    ]
    rows += [(v, 0x8F00 if v == TRAP_VECTOR else 0x8E00, f"irq_{v:x}") for v in VECTORS]
    lines = []
    for vector, attributes, target in rows:
        lines += [f".word {vector}, {attributes:#x}, 0, 0", f".quad {target}"]
    return lines, len(rows)


def _frame(w: Writer, extra_data: list[str] | None = None, eoi: list[str] | None = None) -> str:
    gates, count = _gates()
    start, end = TABLES.index("gates:") + 1, TABLES.index(".bss")
    tables = [*TABLES[:start], *gates, *TABLES[end:]]
    prologue = [line.replace("mov ecx, 9", f"mov ecx, {count}") for line in RINGS]
    # IST1, for the double fault.
    prologue += ["lea rax, [rip + ist_stack]", "mov qword ptr [rip + tss + 0x24], rax"]
    tables += [".zero 1024", "ist_stack:", ".zero 64", *(extra_data or [])]
    handlers = _interrupt_handlers()
    if eoi is not None:
        at = handlers.index("irq_eoi:") + 1
        handlers[at : at + 4] = eoi
    return w.text(prologue, [*handlers, *tables])


def _ring3(w: Writer, body: list[str]) -> None:
    user, back = w.label(), w.label()
    flags = w.s.pick((0x2, 0x202))
    w.emit(
        f"lea rax, [rip + {back}]",
        "mov qword ptr [kernel_back], rax",
        "mov qword ptr [kernel_rsp], rsp",
        "push 0x23",
        "lea rax, [rip + user_stack]",
        "push rax",
        f"push {flags:#x}",
        "push 0x2B",
        f"lea rax, [rip + {user}]",
        "push rax",
        "iretq",
        f"{user}:",
        *body,
        "int 0x41",
        f"{back}:",
    )
    w.dirty = True


# --- interrupts ---------------------------------------------------------------------------------


def events_program(s: Source) -> str:
    """Self-IPIs, NMIs, TPR, STI and MOV SS shadows, HLT, PMIs, rings, SYSCALL, FS and GS."""
    w = Writer(s)
    w.emit("mov ecx, 0x1B", "rdmsr", "or eax, 0x400", "wrmsr")
    w.wrmsr(0x80F, 0x1FF)
    w.emit("mov ecx, 0xC0000080", "rdmsr", "or eax, 1", "wrmsr")
    w.wrmsr(0xC0000081, 0x0018 << 48 | 0x0008 << 32)
    w.emit("lea rax, [rip + system_call]", "xor edx, edx", "mov ecx, 0xC0000082", "wrmsr")
    w.wrmsr(0xC0000084, s.pick((0, 0x200, 0x601)))
    w.wrmsr(0x834, s.pick((0x31, 0x400, 0x61, 0x10031)))
    for _ in range(s.number(4, 16)):
        _event(w)
    w.wrmsr(0x38F, 0)
    w.emit("sti", "nop", "nop", "cli")
    for msr in (0x80A, 0x821, 0x822, 0x823, 0x811, 0x813, 0x38E):
        w.emit(f"mov ecx, {msr:#x}", "rdmsr")
        w.save("rax")
    for n in (0, 1):
        w.read_counter(n)
    return _frame(w)


def _event(w: Writer) -> None:
    s = w.s
    kind = s.number(0, 19)
    if kind <= 2:
        w.wrmsr(0x83F, s.pick(VECTORS))
    elif kind == 3:
        w.wrmsr(0x830, 0x40000 | s.pick((*VECTORS, 0x400)))
    elif kind == 4:
        w.emit(s.pick(("sti", "cli", "sti", "sti\nsti")))
    elif kind == 5:
        w.emit(f"push {s.pick((0x2, 0x202, 0x602))}", "popfq", "cld")
        w.dirty = False
    elif kind == 6:
        w.emit("mov ebx, 0x10", "mov ss, ebx", "nop")
    elif kind == 7:
        if s.number(0, 1):
            w.wrmsr(0x808, s.pick((0, 0x30, 0x3F, 0x45, 0x60, 0x70)))
        else:
            w.emit(f"mov eax, {s.pick((0, 3, 4, 6, 15))}", "mov cr8, rax", "mov rdx, cr8")
            w.save("rdx")
    elif kind == 8:
        w.wrmsr(0x80B, 0)
    elif kind == 9:
        w.emit(f"mov ecx, {s.pick((0x80A, 0x808, 0x821, 0x822, 0x823, 0x811, 0x812, 0x834)):#x}")
        w.emit("rdmsr")
        w.save("rax")
    elif kind == 10:
        w.wrmsr(0x83F, s.pick(VECTORS))
        w.wrmsr(0x808, 0)
        w.emit("sti", "hlt")
    elif kind <= 12:
        n = s.number(0, 1)
        w.wrmsr(0x4C1 + n, (1 << 48) - s.number(2, 40))
        event = s.pick((INSTRUCTIONS, BRANCHES))
        w.wrmsr(0x186 + n, EN | s.pick((OS, USR, OS | USR)) | INT | event)
    elif kind == 13:
        w.wrmsr(0x834, s.pick((0x31, 0x400, 0x61, 0x10061)))
    elif kind == 14:
        body = []
        for _ in range(3):
            label = w.label()
            loop = f"mov ecx, 3\n{label}: loop {label}"
            body.append(s.pick(("nop", "int 0x40", "int3", loop, "nop")))
        _ring3(w, body)
    elif kind == 15:
        # SYSCALL leaves RSP alone: the handler must not use the stack.
        _ring3(w, ["mov r8d, 5", "syscall", "nop", "syscall"])
    elif kind == 16:
        _segments(w)
    elif kind == 17:
        after = w.label()
        culprit = s.pick(
            ("ud2", "int 0x7A", "int 0x79", "xor ebx, ebx\ndiv ebx", "mov ebx, 0x3B\nmov ds, ebx",
             "movabs rbx, 0x8000000000000000\nmov rax, qword ptr [rbx]", "xor ebx, ebx\nmov ss, ebx\nnop",
             "movabs rbp, 0x8000000000000000\nmov rax, qword ptr [rbp]", "mov ecx, 0x999\nrdmsr",
             "push 0\npush 0\npush 2\npush 0x33\npush r13\niretq")
        )  # fmt: skip
        w.emit("mov r12, rsp", f"lea r13, [rip + {after}]", *culprit.splitlines(), f"{after}:")
        w.emit("mov rsp, r12", "mov ebx, 0x10", "mov ss, ebx", "nop")
        w.dirty = True
    elif kind == 18:
        after = w.label()
        pce = s.pick(("or eax, 0x100", "and eax, 0xFFFFFEFF"))
        w.emit("mov rax, cr4", pce, "mov cr4, rax")
        w.dirty = False
        _ring3(w, [f"lea r13, [rip + {after}]", "mov ecx, 1", "rdpmc", f"{after}:"])
    else:
        w.emit("cmp eax, ebx", "lahf", "xor ah, 0x55", "sahf")
        w.dirty = True
    for _ in range(s.number(0, 3)):
        w.nops()


# Registers of the xAPIC page that a program may read, and of them those it may write. The timer is not
# among them: the two interpreters have clocks of their own.
PAGE_READ = (0x20, 0x80, 0xA0, 0xB0, 0xD0, 0xE0, 0xF0, 0x110, 0x130, 0x190, 0x210, 0x220, 0x230, 0x280,
             0x300, 0x310, 0x330, 0x340, 0x350, 0x370, 0x3F0, 0x400)  # fmt: skip
PAGE_WRITE = (0x20, 0x80, 0xA0, 0xB0, 0xD0, 0xE0, 0x210, 0x280, 0x310, 0x330, 0x340, 0x350, 0x370, 0x3F0)


def xapic_program(s: Source) -> str:
    """The page of the local APIC: every register, width and kind of message, priorities, interrupts."""
    w = Writer(s)
    w.emit("mov r12d, 0xFEE00000")
    w.emit("mov dword ptr [r12 + 0xF0], 0x1FF")
    for _ in range(s.number(4, 20)):
        _page_event(w)
    w.emit("mov dword ptr [r12 + 0x80], 0", "sti", "nop", "nop", "cli")
    for register in PAGE_READ:
        w.emit(f"mov eax, dword ptr [r12 + {register:#x}]")
        w.save("rax")
    eoi = ["mov eax, 0xFEE000B0", "mov dword ptr [rax], 0", "nop", "nop"]
    return _frame(w, eoi=eoi)


def _page_event(w: Writer) -> None:
    s = w.s
    kind = s.number(0, 9)
    if kind <= 2:
        destination = s.pick((0, 0, 0xFF000000, 0x01000000, 0x21000000, 0x80000000))
        mode = s.pick((0, 0, 0x100, 0x400, 0x600, 0x800, 0x900))
        shorthand = s.pick((0, 0, 0x40000, 0x80000, 0xC0000)) if mode == 0 else 0
        vector = s.pick((*VECTORS, 5))
        w.emit(f"mov dword ptr [r12 + 0x310], {destination:#x}")
        w.emit(f"mov dword ptr [r12 + 0x300], {mode | shorthand | vector:#x}")
    elif kind == 3:
        w.emit(f"mov dword ptr [r12 + 0xD0], {s.pick((0, 0x01000000, 0x21000000, 0xFFFFFFFF)):#x}")
        w.emit(f"mov dword ptr [r12 + 0xE0], {s.pick((0xFFFFFFFF, 0x0FFFFFFF, 0)):#x}")
    elif kind == 4:
        value = s.pick((0, 0xFFFFFFFF, 0x10045, 0x400, 0x55555555))
        w.emit(f"mov eax, {value:#x}", f"mov dword ptr [r12 + {s.pick(PAGE_WRITE):#x}], eax")
    elif kind == 5:
        at = s.pick(PAGE_READ) + s.pick((0, 0, 1, 2, 4, 8))
        w.emit("xor eax, eax", s.pick((
            f"mov al, byte ptr [r12 + {at:#x}]", f"mov ax, word ptr [r12 + {at:#x}]",
            f"mov rax, qword ptr [r12 + {at:#x}]", f"movzx eax, byte ptr [r12 + {at:#x}]",
            f"mov eax, dword ptr [r12 + {at:#x}]", f"add eax, dword ptr [r12 + {at:#x}]",
        )))  # fmt: skip
        w.save("rax")
    elif kind == 6:
        at = s.pick((0x80, 0xD0, 0x340, 0x370))
        w.emit(s.pick((
            f"or dword ptr [r12 + {at:#x}], 0x30", f"xchg dword ptr [r12 + {at:#x}], eax",
            f"mov qword ptr [r12 + {at:#x}], rax", f"mov byte ptr [r12 + {at:#x}], 0x30",
            f"lea rdi, [r12 + {at:#x}]\nmov eax, 0x30\nstosd", f"push 0x30\npop qword ptr [r12 + {at:#x}]",
            f"push qword ptr [r12 + {at:#x}]\npop rax",
        )))  # fmt: skip
        w.save("rax")
    elif kind == 7:
        w.emit(s.pick(("sti", "cli", "sti\nnop", "mov dword ptr [r12 + 0xB0], 0")))
    elif kind == 8:
        w.emit(f"mov eax, {s.pick((0, 3, 4, 6))}", "mov cr8, rax", "mov eax, dword ptr [r12 + 0x80]")
        w.save("rax")
    else:
        w.emit(f"mov dword ptr [r12 + 0xF0], {s.pick((0x1FF, 0x1FF, 0xFF, 0x130)):#x}")
    w.dirty = True


def _segments(w: Writer) -> None:
    s = w.s
    offset = s.number(0, 400)
    w.emit("lea rax, [rip + scratch]", "xor edx, edx")
    w.emit(f"mov ecx, {s.pick((0xC0000100, 0xC0000101, 0xC0000102)):#x}", "wrmsr")
    w.emit(s.pick(("swapgs", "nop")))
    # Without a base these reach the first kilobyte of memory, which is RAM as well.
    segment = s.pick(("fs", "gs"))
    w.emit(f"mov rax, qword ptr {segment}:[{offset:#x}]", f"add rax, {offset}")
    w.save("rax")
    w.dirty = False


# --- paging -------------------------------------------------------------------------------------

P, W, U, A, D, NX = 1, 2, 4, 0x20, 0x40, 1 << 63


def paging_program(s: Source) -> str:
    """Four-level tables over 2 MiB of 4 KiB pages, then pages that lose and regain rights."""
    w = Writer(s)
    w.emit(
        "lea rax, [rip + pdpt]",
        "or rax, 7",
        "mov qword ptr [pml4], rax",
        "lea rax, [rip + pd]",
        "or rax, 7",
        "mov qword ptr [pdpt], rax",
        "lea rax, [rip + pt]",
        "or rax, 7",
        "mov qword ptr [pd], rax",
        "lea rdi, [rip + pt]",
        "mov eax, 7",
        "mov ecx, 512",
        "map:",
        "mov qword ptr [rdi], rax",
        "add rax, 0x1000",
        "add rdi, 8",
        "loop map",
        # A 2 MiB page above shows the same memory a second time.
        "mov qword ptr [pd + 8], 0x87",
    )
    if s.number(0, 1):
        w.emit("mov ecx, 0xC0000080", "rdmsr", "or eax, 0x800", "wrmsr")
    w.emit("lea rax, [rip + pml4]", "mov cr3, rax")
    for _ in range(s.number(3, 12)):
        _page_step(w)
    return _frame(
        w,
        [".balign 4096", "pml4:", ".zero 4096", "pdpt:", ".zero 4096", "pd:", ".zero 4096", "pt:"]
        + [".zero 4096", "pages:", ".zero 16384"],
    )


def _page_step(w: Writer) -> None:
    s = w.s
    page = s.number(0, 3)
    kind = s.number(0, 4)
    if kind <= 1:
        bits = s.pick((0, P, P | W, P | U, P | W | U, P | W | U, W | U, P | W | U | A | D))
        w.emit(
            f"lea rbx, [rip + pages + {page * 4096}]",
            "mov rax, rbx",
            "shr rax, 12",
            f"lea rdx, [rbx + {bits}]",
            "mov qword ptr [pt + rax*8], rdx",
            "invlpg [rbx]",
        )
        w.dirty = True
        return
    if kind == 2:
        w.emit("mov rax, cr0", s.pick(("or eax, 0x10000", "and eax, 0xFFFEFFFF")), "mov cr0, rax")
        w.dirty = False
        return
    after = w.label()
    alias = s.number(0, 3) == 0
    offset = page * 4096 + s.pick((0, 8, 0x800, 0xFFC, 0xFF8, 0xFFF))
    access = s.pick(
        ("mov rax, qword ptr [rbx]", "mov qword ptr [rbx], rax", "add dword ptr [rbx], 1",
         "mov al, byte ptr [rbx]", "push qword ptr [rbx]\npop rdx", "xchg dword ptr [rbx], eax",
         "clflush [rbx]", "cmp dword ptr [rbx], 5", "lea rdi, [rbx]\nmov ecx, 3\nrep stosd",
         "setz byte ptr [rbx]", "bts dword ptr [rbx], 3", "cmpxchg dword ptr [rbx], edx")
    )  # fmt: skip
    lines = [
        f"lea r13, [rip + {after}]",
        f"lea rbx, [rip + pages + {offset}]",
        *(["add rbx, 0x200000"] if alias else []),
        "cmp eax, 1",
        *access.splitlines(),
        f"{after}:",
    ]
    if kind == 3:
        w.emit(*lines)
    else:
        _ring3(w, lines)
    w.dirty = True


MAKERS["events"] = events_program
MAKERS["xapic"] = xapic_program
MAKERS["paging"] = paging_program
events = _strategy(events_program)
xapic = _strategy(xapic_program)
paging = _strategy(paging_program)
