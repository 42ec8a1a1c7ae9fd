"""From the rows of the instruction table to micro-operations: which arm executes which operand form.

An arm of the interpreter's loop exists for the 32- and 64-bit forms of instructions marked `hot`, one per
operand shape; every other form goes to the one arm of its meaning, where operand kind and width are data.
This module is plain Python; the decoder freezes its arrays, the generator writes its arms.
"""

from __future__ import annotations

import re

import numpy as np

from vpmu_emu.machine import state
from vpmu_emu.tables.cpus import LATENCIES
from vpmu_emu.tables.instructions import (
    BY_OPCODE,
    EMULATOR,
    FEATURES,
    FORMS,
    IMMEDIATES,
    MAPS,
    Form,
    is_memory,
    operand_width,
)

# --- operand kinds --------------------------------------------------------------------------------------
K_NONE, K_REG, K_HIGH, K_MEM, K_IMM, K_CL = range(6)
# how a form names an operand before the instruction's bytes are known
F_NONE, F_REG, F_RM, F_FIXED, F_IMM, F_REL, F_CL, F_ONE, F_MOFFS, F_PLUS, F_IMM2, F_VVVV = range(12)

# --- hot arms: semantics and the operand shapes that get an arm of their own ------------------
# rr: register <- register or immediate; rm: register <- memory; mr: memory <- register or immediate.
# Which they are: what gcc's code for guests/workloads executes more than now and then.
HOT_SHAPES = {
    "mov": ("rr", "rm", "mr"),
    "add": ("rr", "rm"),
    "adc": ("rr",),
    "sub": ("rr", "rm"),
    "sbb": ("rr",),
    "and": ("rr", "rm"),
    "or": ("rr", "rm"),
    "xor": ("rr", "rm"),
    "cmp": ("rr", "rm", "mr"),
    "test": ("rr",),
    "inc": ("rr",),
    "dec": ("rr",),
    "shl": ("rr",),
    "shr": ("rr",),
    "sar": ("rr",),
    "rol": ("rr",),
    "ror": ("rr",),
    "imul": ("rr", "rm"),
    "lea": ("rm",),
}
WIDTHS = (64, 32)
HOT: list[str] = [
    f"{sem}_{shape}{w}" for sem, shapes in HOT_SHAPES.items() for shape in shapes for w in WIDTHS
]
HOT += [
    "imul3_rr64", "imul3_rr32", "imul3_rm64", "imul3_rm32", "mov_mr8", "cmp_mr8",
    "movzx_rr8", "movzx_rr16", "movzx_rm8", "movzx_rm16", "movsxd_rr", "movsxd_rm",
    "cmov_rr64", "cmov_rr32",
    "nop", "push", "pop", "leave", "jmp", "jmp_rr", "jmp_rm", "jz", "jnz", "jcc",
    "call", "call_rr", "call_rm", "ret", "loop",
]  # fmt: skip
# Semantics that touch nothing but registers, flags and memory: the callee for the general case.
COLD = [
    "mov", "add", "or", "adc", "sbb", "and", "sub", "xor", "cmp", "test", "inc", "dec", "not", "neg",
    "shl", "shr", "sar", "rol", "ror", "rcl", "rcr", "shld", "shrd", "imul", "imul1", "mul", "div", "idiv",
    "movzx", "movsx", "lea", "xchg", "cmpxchg", "xadd", "bt", "bts", "btr", "btc", "bsf", "bsr",
    "tzcnt", "lzcnt", "popcnt", "bswap", "cdqe", "cqo", "setcc", "cmovcc", "movbe", "crc32", "adcx", "adox",
    # the ones before compute from two operands; what follows is otherwise
    "push", "pop", "jmp", "call", "ret", "loop", "loope", "loopne", "jrcxz", "enter", "leave",
    "movs", "stos", "lods", "scas", "cmps",
    "cld", "std", "clc", "stc", "cmc", "lahf", "sahf", "clflush", "xlat", "cmpxchg8b",
    "andn", "bextr", "blsi", "blsmsk", "blsr", "bzhi", "mulx", "pdep", "pext",
    "rorx", "sarx", "shlx", "shrx",
]  # fmt: skip
# Semantics that see the rest of the machine; they retire themselves (privileged.py).
SYSTEM = [
    "ud2", "int3", "int", "iretq", "syscall", "sysretq", "swapgs", "pushfq", "popfq", "cli", "sti", "hlt",
    "in", "out", "cpuid", "rdtsc", "rdtscp", "rdmsr", "wrmsr", "rdpmc", "mov_from_cr", "mov_to_cr",
    "mov_from_sreg", "mov_to_sreg", "lgdt", "lidt", "ltr", "sgdt", "sidt", "str", "sldt", "invlpg",
    "wbinvd", "vmcall", "lar", "lsl", "verr", "verw", "smsw", "ins", "outs",
    "rdfsbase", "rdgsbase", "wrfsbase", "wrgsbase", "lmsw", "clts", "invd", "xgetbv", "xsetbv", "retf",
    "lss", "lfs", "lgs", "pop_sreg", "lldt", "mov_from_dr", "mov_to_dr",
]  # fmt: skip
_NOP_LIKE = {"nop", "pause", "lfence", "mfence", "sfence"}

OP_LINK = len(HOT)  # go on at another micro-op, nothing retires
OP_BREAK = OP_LINK + 1  # breakpoint
OP_FETCH = OP_LINK + 2  # the bytes could not be fetched: E.fault_* says why
OP_STALE = OP_LINK + 3  # something was stored there since it was decoded: look it up again
OP_REGION = OP_LINK + 4  # from here on there is native code: machine/translate
COLD_BASE = OP_LINK + 5
SYSTEM_BASE = COLD_BASE + len(COLD)
OPS: tuple[str, ...] = (*HOT, "link", "break", "fetch", "stale", "region", *COLD, *SYSTEM)
HOT_OP = {name: i for i, name in enumerate(HOT)}
COLD_OP = {name: COLD_BASE + i for i, name in enumerate(COLD)}
SYSTEM_OP = {name: SYSTEM_BASE + i for i, name in enumerate(SYSTEM)}
OP_UD = SYSTEM_OP["ud2"]


def _general(sem: str) -> int:
    if sem in _NOP_LIKE:
        return HOT_OP["nop"]
    if sem == "loop":
        return HOT_OP["loop"]
    if sem == "jcc":
        return HOT_OP["jcc"]
    if sem in COLD_OP:
        return COLD_OP[sem]
    return SYSTEM_OP[sem]


def _without_shape(name: str) -> int:
    """The arm that does the same with operand kind and width as data; the hot arm itself if none does."""
    sem = name.split("_")[0]
    sem = {"imul3": "imul", "movsxd": "movsx", "cmov": "cmovcc"}.get(sem, sem)
    return COLD_OP.get(sem, HOT_OP[name])


# by arm of the loop: the arm for every shape and width
GENERAL_OP = np.array([_without_shape(name) for name in HOT], dtype=np.int64)


def _hot(form: Form, memory: bool) -> int:
    """The arm for this form with its r/m operand in memory or not."""
    row, ops = form.instruction, form.operands
    general = _general(row.sem)
    if not row.hot:
        return general
    where = form.memory_operand
    in_memory = where is not None and (memory or not ops[where].startswith("r/m"))
    if row.sem in HOT_SHAPES and form.width in WIDTHS and "cl" not in ops and "sreg" not in ops:
        if len(ops) == 3:
            return HOT_OP[f"imul3_r{'m' if in_memory else 'r'}{form.width}"]
        if any(o.startswith("moffs") for o in ops):
            return general
        shape = "rr" if not in_memory else "mr" if where == 0 else "rm"
        if shape in HOT_SHAPES[row.sem]:
            return HOT_OP[f"{row.sem}_{shape}{form.width}"]
        return general
    if row.sem in ("mov", "cmp") and form.width == 8 and in_memory and where == 0 and "moffs8" not in ops:
        return HOT_OP[f"{row.sem}_mr8"]
    if row.sem == "movzx" and form.width in WIDTHS:
        return HOT_OP[f"movzx_r{'m' if in_memory else 'r'}{operand_width(ops[1])}"]
    if row.sem == "movsx" and operand_width(ops[1]) == 32:
        return HOT_OP[f"movsxd_r{'m' if in_memory else 'r'}"]
    if row.sem == "cmovcc" and form.width in WIDTHS and not in_memory:
        return HOT_OP[f"cmov_rr{form.width}"]
    if row.sem == "push" and form.width == 64 and not in_memory and ops[0] not in ("fs", "gs"):
        return HOT_OP["push"]
    if row.sem == "pop" and form.width == 64 and not in_memory:
        return HOT_OP["pop"]
    if row.sem in ("jmp", "call") and ops[0].startswith("rel"):
        return HOT_OP[row.sem]
    if row.sem in ("jmp", "call") and ops == ("r/m64",):
        return HOT_OP[f"{row.sem}_r{'m' if in_memory else 'r'}"]
    if row.sem == "leave" and form.width == 64:
        return HOT_OP["leave"]
    if row.sem == "jcc":
        return HOT_OP["jz" if row.cc == 4 else "jnz" if row.cc == 5 else "jcc"]
    if row.sem == "ret" and not ops:
        return HOT_OP["ret"]
    return general


_FIXED = {"al": 0, "ax": 0, "eax": 0, "rax": 0, "dx": state.RDX, "fs": state.REG_FS, "gs": state.REG_GS}


def _operands(form: Form) -> tuple[str, ...]:
    """Operand words as the decoder takes them: behind VEX the destination, then r/m, then the third."""
    words = form.operands
    if form.encoding.vex and len(words) == 3 and is_memory(words[2]):
        return words[0], words[2], words[1]
    return words


def _operand(form: Form, position: int) -> tuple[int, int]:
    """(F_* kind, fixed register or 0) of an operand."""
    words = _operands(form)
    if position >= len(words):
        return F_NONE, 0
    word = words[position]
    if form.encoding.vex and word.startswith("r") and not is_memory(word):
        named = position == 2 or (position == 0 and form.encoding.digit is not None)
        return (F_VVVV if named else F_REG), 0
    if word in _FIXED:
        return F_FIXED, _FIXED[word]
    if word == "cl":
        return F_CL, state.RCX
    if word == "1":
        return F_ONE, 0
    if word.startswith("imm"):
        earlier = [w for w in words[:position] if w.startswith("imm")]
        return (F_IMM2 if earlier else F_IMM), 0
    if word.startswith("rel"):
        return F_REL, 0
    if word.startswith("moffs"):
        return F_MOFFS, 0
    if is_memory(word):
        return F_RM, 0
    if word in ("cr", "dr", "sreg"):
        return F_REG, 0
    if re.fullmatch(r"r\d+", word):
        if form.encoding.plus_r:
            return F_PLUS, 0
        registers = [w for w in form.operands if re.fullmatch(r"r\d+|cr|dr|sreg", w)]
        # With no r/m operand beside it a lone register sits in ModRM.rm (mov r64, cr; mov r16, sreg).
        has_rm = any(is_memory(w) for w in form.operands)
        enc = form.encoding
        if not has_rm and enc.has_modrm and (len(registers) == 2 or enc.digit is not None):
            return F_RM, 0
        return F_REG, 0
    raise ValueError(f"{form!r}: operand {word!r}")


def pack_lanes(classes: tuple[str, ...], lanes: tuple[str, ...]) -> int:
    """The event classes of one instruction as packed counts of LANE_BITS bits each."""
    return sum(classes.count(name) << (state.LANE_BITS * i) for i, name in enumerate(lanes))


def _signed(word: str) -> bool:
    return word.endswith("s") or word.startswith("rel")


# columns of the form table
(
    FC_REQUIRES, FC_DIGIT, FC_MOD, FC_FIXED, FC_OPSIZES, FC_WIDTH, FC_WIDTH2, FC_K0, FC_R0, FC_K1, FC_R1,
    FC_K2, FC_IMM, FC_IMM2, FC_IMM_SIGNED, FC_OP_REG, FC_OP_MEM, FC_CC, FC_COST, FC_LOCK, FC_REP, FC_MODRM,
    FC_ENDS, FC_RMW, FC_EMULATOR, FC_FEATURE,
) = range(26)  # fmt: skip
N_COLUMNS = 26
MOD_CLASS = {"": 0, "r": 1, "m": 2, "rm": 3, "any": 4}
# After these, straight-line decoding has nothing to follow.
_ENDS = {"jmp", "ret", "retf", "iretq", "sysretq", "syscall", "ud2", "int3", "int", "hlt"}


def _row(form: Form) -> list[int]:
    row, enc = form.instruction, form.encoding
    kinds = [_operand(form, k) for k in range(3)]
    words = list(_operands(form))
    imms = [w for w in words if w.startswith(("imm", "rel"))]
    sizes = [IMMEDIATES[i] for i in enc.imm if i != "moffs"]
    width2 = operand_width(words[1]) if len(words) > 1 else 0
    return [
        form.requires,
        -1 if enc.digit is None else enc.digit,
        MOD_CLASS[form.mod],
        -1 if enc.modrm_fixed is None else enc.modrm_fixed,
        sum({16: 1, 32: 2, 64: 4}[s] for s in form.opsizes),
        form.width,
        width2,
        kinds[0][0], kinds[0][1], kinds[1][0], kinds[1][1], kinds[2][0],
        sizes[0] if sizes else 0,
        sizes[1] if len(sizes) > 1 else 0,
        int(bool(imms) and _signed(imms[0])),
        _hot(form, False),
        _hot(form, True),
        row.cc or 0,
        LATENCIES.index(row.cost),
        int(row.lock),
        {"": 0, "rep": 1, "repz": 2}[row.rep],
        int(enc.has_modrm),
        int(row.sem in _ENDS),
        int(row.access == "rw"),
        EMULATOR.index(row.emulator),
        1 << FEATURES.index(row.cpuid) if row.cpuid else 0,
    ]  # fmt: skip


FORM_TABLE = np.array([_row(form) for form in FORMS], dtype=np.int64)
# what a form retires, register form in column 0, memory form in column 1
FORM_LANES1 = np.array(
    [[pack_lanes(f.retires(memory=m), state.LANES1) for m in (False, True)] for f in FORMS], dtype=np.uint64
)
FORM_LANES2 = np.array(
    [[pack_lanes(f.retires(memory=m), state.LANES2) for m in (False, True)] for f in FORMS], dtype=np.uint64
)


def _index() -> tuple[np.ndarray, np.ndarray]:
    """Candidate forms by opcode, as slices of one list: (start and length, list)."""
    start = np.zeros((MAPS * 256, 2), dtype=np.int64)
    flat: list[int] = []
    for (number, byte), members in BY_OPCODE.items():
        start[number * 256 + byte] = (len(flat), len(members))
        flat += [form.index for form in members]
    return start, np.array(flat, dtype=np.int64)


OPCODE_START, CANDIDATES = _index()
