"""The words of the debugger, gdb's and their abbreviations; help and completion are made from this."""

from __future__ import annotations

import difflib

import attrs

from vpmu_emu.errors import VpmuError
from vpmu_emu.numerals import shown

GROUPS = {
    "running": "Going on, and back",
    "points": "Where to hold",
    "looking": "Looking",
    "changing": "Changing",
    "session": "The session",
}


@attrs.frozen
class Verb:
    """One command.

    Attributes:
        name, short: its name, and the abbreviations of gdb.
        group: one of GROUPS.
        usage: what may follow.
        does: what it does, in one line.
        more: what else `help NAME` says.
        takes: what its words are, for completion: place, msr, counter, expression, topic, file …
        repeats: whether an empty line does it again.
    """

    name: str
    short: tuple[str, ...]
    group: str
    usage: str
    does: str
    more: str = ""
    takes: str = ""
    repeats: bool = False


_COUNT = "N is a number or an expression."
_PLACE = "A place is an address, a symbol, symbol+N, a line of the program's source, or FILE:LINE."
_IF = "A condition is an expression over registers, MSRs, counters and memory: `if rbx == 3 and pmc0 > 9`."

VERBS: tuple[Verb, ...] = (
    Verb(
        "step",
        ("s", "si", "stepi"),
        "running",
        "[N]",
        "do N instructions",
        f"{_COUNT} An exit to the hypervisor and its handler belong to the instruction.",
        "expression",
        True,
    ),
    Verb(
        "next",
        ("n", "ni", "nexti"),
        "running",
        "[N]",
        "as step, over what a CALL, INT or REP runs",
        "",
        "expression",
        True,
    ),
    Verb(
        "stepexit",
        ("sx",),
        "running",
        "",
        "go on until the next VM-exit has been handled",
        "",
        "",
        True,
    ),
    Verb("finish", ("fin",), "running", "", "go on until this function, or this handler, returns"),
    Verb(
        "until",
        ("u",),
        "running",
        "[WHERE | CONDITION]",
        "go on until a place, a moment or a condition",
        f"{_PLACE} A moment is #N, the instruction with this number, or `tsc N`, or `tsc +N`. {_IF} "
        "Without anything: until the instruction behind this one, which leaves a loop.",
        "place",
    ),
    Verb("advance", ("adv",), "running", "PLACE", "go on until a place", _PLACE, "place"),
    Verb(
        "continue",
        ("c", "cont", "fg"),
        "running",
        "",
        "go on to the next point, or the end",
        "",
        "",
        True,
    ),
    Verb(
        "reverse-step",
        ("rs", "rsi", "reverse-stepi"),
        "running",
        "[N]",
        "undo N instructions",
        _COUNT,
        "expression",
        True,
    ),
    Verb(
        "reverse-continue",
        ("rc",),
        "running",
        "",
        "go back to the last moment at which a point held",
        "",
        "",
        True,
    ),
    Verb(
        "reverse-to",
        ("rt",),
        "running",
        "WHERE",
        "go back to a place or a moment (see until)",
        "",
        "place",
    ),
    Verb(
        "restart",
        ("r", "run", "start"),
        "running",
        "[N]",
        "begin anew, or go to checkpoint N; points stay",
        "",
        "checkpoint",
    ),
    Verb("checkpoint", (), "running", "", "remember this moment; `restart N` comes back to it"),
    Verb(
        "break",
        ("b", "br"),
        "points",
        "[PLACE] [if CONDITION]",
        "hold before an instruction",
        f"{_PLACE} {_IF}",
        "place",
    ),
    Verb("tbreak", ("tb",), "points", "[PLACE] [if CONDITION]", "the same, once", _PLACE, "place"),
    Verb(
        "watch",
        ("wa",),
        "points",
        "msr NAME [r|w|rw] [VALUE[/MASK]] [changes] [before] [if CONDITION]",
        "hold at accesses to an MSR, or to memory: watch PLACE [SIZE] [r|w|rw]",
        "NAME is an MSR, a number, FIRST..LAST or all; w without a letter. `changes`: only if the value "
        f"becomes another one. `before`: at the instruction, not behind it. {_IF}",
        "watch",
    ),
    Verb("rwatch", (), "points", "msr NAME | PLACE [SIZE]", "as watch, reads only", "", "watch"),
    Verb("awatch", (), "points", "msr NAME | PLACE [SIZE]", "as watch, reads and writes", "", "watch"),
    Verb(
        "catch",
        (),
        "points",
        "KIND [WHICH] [if CONDITION]",
        "hold when something happens",
        "KIND is exit [REASON], entry, pmi, overflow [COUNTER], exception [VECTOR], interrupt [VECTOR], "
        "nmi, perf-state [STATE] or switch. Conditions may ask for reason, vector, error, counter.",
        "catch",
    ),
    Verb("delete", ("d",), "points", "[N…]", "forget points, or all", "", "point"),
    Verb("enable", ("en",), "points", "N…", "let points hold again", "", "point"),
    Verb("disable", ("dis",), "points", "N…", "let points rest", "", "point"),
    Verb(
        "condition",
        ("cond",),
        "points",
        "N [CONDITION]",
        "give a point a condition, or take it away",
        _IF,
        "point",
    ),
    Verb("ignore", (), "points", "N COUNT", "pass over a point COUNT times", "", "point"),
    Verb(
        "commands",
        (),
        "points",
        "[N]",
        "what to do when point N holds: lines up to `end`",
        "`silent` as the first line shows no stop; a last line `continue` goes on. Stops that come "
        "too fast after each other are counted instead of shown (`set rate`).",
        "point",
    ),
    Verb(
        "info", ("i",), "looking", "TOPIC", "show a part of the machine or of the session", "", "topic"
    ),
    Verb(
        "msr", (), "looking", "NAME", "an MSR by its fields, and whether its accesses exit", "", "msr"
    ),
    Verb(
        "why",
        ("explain",),
        "looking",
        "[wrmsr|rdmsr|rdpmc [last] | pmi [COUNTER] | COUNTER]",
        "why an access exits or not, why no PMI comes, why a counter stands still",
        "An access is the next instruction if it is one (it is done and undone), else the last one. "
        "Without anything: why it holds here.",
        "why",
    ),
    Verb(
        "print",
        ("p", "inspect"),
        "looking",
        "[/FMT] EXPRESSION",
        "the value of an expression",
        "Registers (with $ or without), symbols, pmcN, fixedN, mem8 to mem64(ADDRESS), arithmetic. "
        "FMT is x d u o t c.",
        "expression",
    ),
    Verb(
        "x",
        (),
        "looking",
        "[/NFU] ADDRESS",
        "memory: N units, format x d u o t c s i, unit b h w g",
        "",
        "expression",
        True,
    ),
    Verb(
        "disassemble",
        ("disas",),
        "looking",
        "[PLACE[,END]]",
        "instructions as they are in memory",
        _PLACE,
        "place",
    ),
    Verb("list", ("l",), "looking", "[PLACE]", "source around a place", _PLACE, "place", True),
    Verb("backtrace", ("bt", "where"), "looking", "[N]", "who called whom, and what was interrupted"),
    Verb(
        "frame",
        ("f",),
        "looking",
        "[N]",
        "look at frame N of the backtrace, or say which one is looked at",
        "rip, rsp and rbp (pc, sp, fp) of p, x, list and disassemble are the frame's; all other registers"
        " are those of the innermost. Every move goes back to frame 0.",
        "expression",
    ),
    Verb("up", (), "looking", "[N]", "look at the caller's frame", _COUNT, "expression", True),
    Verb("down", (), "looking", "[N]", "look at the frame that was called", _COUNT, "expression", True),
    Verb(
        "display",
        (),
        "looking",
        "[/FMT] EXPRESSION",
        "show an expression at every stop",
        "By display/i the instruction at it: display/i $pc.",
        "expression",
    ),
    Verb("undisplay", (), "looking", "[N…]", "no longer"),
    Verb(
        "context",
        ("ctx",),
        "looking",
        "[SECTION…]",
        "what a stop shows, or the sections named",
        "",
        "section",
    ),
    Verb(
        "events",
        ("ev",),
        "looking",
        "[all] [count] [KIND…] [N]",
        "the trace since the last stop, filtered",
        "`all`: since the beginning; `count`: how many of each kind; N: the last N. KIND is a name "
        "of the trace or a part of it: msr, exit, pmi, perf, overflow.",
        "event",
    ),
    Verb("serial", (), "looking", "", "all that the program has written to its serial port"),
    Verb("when", (), "looking", "", "instructions, TSC and exits so far"),
    Verb(
        "thread", ("t",), "looking", "[N]", "look at another core, vCPU or program of the host", "", ""
    ),
    Verb(
        "set",
        (),
        "changing",
        "REGISTER VALUE | msr NAME VALUE | mem PLACE VALUE [SIZE] | OPTION VALUE",
        "change a register, an MSR, memory or an option",
        "gdb's forms work too: set $rax = 5, set {4}0x1000 = 5. Options: see `info options`.",
        "set",
    ),
    Verb("source", (), "session", "FILE", "read commands from a file", "", "file"),
    Verb("echo", (), "session", "TEXT", "say something"),
    Verb("help", ("h",), "session", "[COMMAND | TOPIC]", "this", "", "verb"),
    Verb("quit", ("q", "exit"), "session", "", "leave"),
)

TOPICS = {
    "registers": "registers, flags and privilege level",
    "control": "control registers",
    "pmu": "every counter: value, distance to overflow, event",
    "msr": "the last accesses to MSRs",
    "lapic": "the local APIC, register by register",
    "lvt": "what it does with its own interrupts",
    "idt": "the gates that are present",
    "gdt": "the descriptors",
    "vmcs": "the VMCS: info vmcs [control|exit|guest|host|NAME]",
    "filter": "event filter and MSR filter of the VM",
    "perf": "perf events of the host",
    "exits": "VM-exits by reason",
    "events": "the end of the trace",
    "break": "points, with conditions and hits",
    "display": "what is displayed",
    "line": "the place of the next instruction",
    "threads": "cores, vCPUs and programs of the host",
    "checkpoints": "moments that are remembered",
    "symbols": "symbols whose name has a part: info symbols [PART]",
    "options": "what `set` may change of the debugger",
}
_TOPIC_SHORT = {
    "r": "registers", "regs": "registers", "b": "break", "breakpoints": "break", "points": "break",
    "watchpoints": "break", "apic": "lapic", "cr": "control", "functions": "symbols", "counters": "pmu",
}  # fmt: skip

BY_NAME: dict[str, Verb] = {name: verb for verb in VERBS for name in (verb.name, *verb.short)}


def verb_of(word: str) -> Verb:
    """The command that a word means: a name, an abbreviation, or what only one name begins with.

    Raises:
        VpmuError: none, with the nearest, or several.
    """
    found = BY_NAME.get(word)
    if found is not None:
        return found
    begun = [verb for verb in VERBS if verb.name.startswith(word)]
    if len(begun) == 1:
        return begun[0]
    if begun:
        raise VpmuError(f"{shown(word)} may be {', '.join(verb.name for verb in begun)}")
    near = difflib.get_close_matches(word, BY_NAME, 1)
    hint = f"did you mean {near[0]}?" if near else "try `help`"
    raise VpmuError(f"unknown command {shown(word)}; {hint}")


def topic_of(word: str) -> str:
    """The topic of `info` that a word means.

    Raises:
        VpmuError: none, with the nearest, or several.
    """
    if word in TOPICS:
        return word
    if word in _TOPIC_SHORT:
        return _TOPIC_SHORT[word]
    begun = [name for name in TOPICS if word and name.startswith(word)]
    if len(begun) == 1:
        return begun[0]
    if begun:
        raise VpmuError(f"info: {shown(word)} may be {', '.join(begun)}")
    near = difflib.get_close_matches(word, [*TOPICS, *_TOPIC_SHORT], 1)
    hint = f"; did you mean {near[0]}?" if near else f" (allowed: {', '.join(TOPICS)})"
    raise VpmuError(f"info: unknown topic {shown(word)}{hint}")
