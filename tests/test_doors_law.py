"""Whatever is put into a door: refused in words or accepted, within seconds, and never a traceback.

A case is its number: VPMU_SEED=N begins there, and a run says with which N the next one goes on.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from click.testing import CliRunner

from tests.conftest import ROOT
from tests.tools.profiles import cases
from vpmu_emu import build, cli
from vpmu_emu.asm import assemble, write_elf
from vpmu_emu.debug.repl import Repl
from vpmu_emu.debug.session import Session
from vpmu_emu.errors import VpmuError
from vpmu_emu.load import load_bytes
from vpmu_emu.options import COMMAND
from vpmu_emu.setup.filterfile import parse_filter
from vpmu_emu.setup.hostevents import parse_host_event
from vpmu_emu.setup.msrfilter import parse_msr_filter
from vpmu_emu.system import System
from vpmu_emu.traces.files import check_trace

FIRST = int(os.environ.get("VPMU_SEED", "1"))
MOST_SECONDS = 5

NUMBERS = (
    "0", "1", "-1", "2", "7", "63", "64", "65", "240", "4096", str(1 << 31), str(1 << 32),
    str((1 << 63) - 1), str(1 << 63), str(1 << 64), "9" * 5000, "-" + "9" * 5000,
    "0x" + "f" * 5000, "0b" + "1" * 200, "1e400", "1e9", "nan", "inf", "-inf", "0x", "08",
    "0o9", "1_0", "_1", "1__0", "+1", "-0", "0.5", "1.", ".", "٣", "²", "½", "一",
)  # fmt: skip
WORDS = (
    "", " ", "\t", "\n", "a\nb", "\r", "\x1b[2J", "\x7f", "\udcff", "\u202e", "🙂", "é",
    "a" * 5000, "x" * 100, "-", "--", "---", "=", "=1", "a=", "a==1", ",", ",,", ";", ":",
    "::", "/", "//", "*", "{", "}", "{}", "{,}", "{{", "%s", "{0}", "\\", '"', "'", "#",
    "$", "(", ")", "((", "[", "]", "@", "@task", "~", "~nobody", "..", "/no/such", "/",
    "/dev/null", "/proc/self/mem", ".txt", "x.json", "none", "None", "True", "bare",
    "emulated", "passthrough", "emulate", "spr", "icx", "sprr", "low", "nmi", "hpet", "off",
    "pmu.gp", "pmu.gp=4", "pmu.version=2", "pmu.width=48", "fixed_cap=4",
    "force_emulation_prefix=0", "v1-fixed-no-pmi", "_start", "instructions:D", "cycles",
    "r00c0", "rffffffff", "cpu/event=0xc4/", "cpu/", "instructions*12", "cycles:uuu",
    "{instructions,cycles}:D", "cycles/period=2/", "cycles/period=1/", "cycles@cpu",
    "intel_pt//", "rdpmc", "IA32_PMC0", "IA32_PMC", "0xc1",
)  # fmt: skip
MODES = ("bare", "none", "emulated", "passthrough")
GUEST = """
_start: mov ecx, 0x38f
        rdmsr
loop:   inc rbx
        cmp ebx, 9
        jb loop
        xor eax, eax
        out 0xf4, al
five:   .quad 5
"""


class Reached(BaseException):
    """Everything was looked at: from here on code would be compiled."""


class Hang(BaseException):
    """It takes too long."""


def value(rng):
    """Something hostile: a number, a word, two of them put together, or one of them damaged."""
    text = rng.choice(rng.choice((NUMBERS, WORDS)))
    while rng.random() < 0.3 and len(text) < 6000:
        other = rng.choice(rng.choice((NUMBERS, WORDS)))
        glue = rng.choice(("", "=", ",", ":", ".", "/", "*", " ", "-"))
        text = rng.choice((text + glue + other, other + glue + text))
    if rng.random() < 0.15 and text:
        at = rng.randrange(len(text))
        text = text[:at] + rng.choice("\x00\x01\n\x1b~'\"\\٣-{}()=") + text[at + 1 :]
    return text


# --- the doors: each takes a generator of random numbers, and says True for accepted ------------------


def command(*args, stdin=None):
    """One command in this process."""
    result = CliRunner().invoke(cli.main, [a.replace("\0", "") for a in args], input=stdin)
    if isinstance(result.exception, Reached):
        return True
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert "Traceback" not in result.output
    assert result.exit_code in (0, 1, 2), result.exit_code
    return result.exit_code != 2


OPTIONS = [option for option in COMMAND.params if option.name != "prog"]


USUAL = {
    "vpmu": MODES, "cpu": ("icx", "spr"), "ram": ("8", "2"), "cores": ("1", "2"),
    "watchdog": ("nmi", "off"), "watchdog_thresh": ("1",), "costs": ("low", "high"),
    "kvm": ("fixed_cap=4",), "guest": ("pmu.gp=2",),
    "settings": ("pmu.gp=4",), "host_events": ("instructions:D",), "entry": ("loop",), "max_insns": ("9",),
    "quirks": ("v1-fixed-no-pmi",),
}  # fmt: skip


def run_words(rng, most=4):
    found = []
    for _ in range(rng.randrange(1, most + 1)):
        option = rng.choice(OPTIONS)
        found.append(option.opts[0])
        if not option.is_flag:
            found.append(rng.choice(USUAL.get(option.name, ("",))) if rng.random() < 0.5 else value(rng))
    return found


def door_options(rng):
    return command("run", "-", *run_words(rng), stdin=GUEST)


def door_runs(rng):
    """Settings that are accepted have to work, too."""
    words = run_words(rng)
    for k in range(len(words)):
        if words[k] in ("--trace", "--vpmu"):
            words = words[:k]
            break
    return command("run", "-", "--max-insns", "30", "--ram", "2", *words, stdin=GUEST)


def door_commands(rng):
    """The other commands, whose first steps need nothing compiled."""
    name = rng.choice(("explain", "info", "asm", "demo", "build", "check", "debug", "run"))
    if name == "explain":
        words = [rng.choice(("rdmsr", "wrmsr", "rdpmc")), *(value(rng) for _ in range(rng.choice((1, 2))))]
        return command("explain", "--vpmu", "bare", *rng.choice(((), ("--",))), *words, stdin="")
    words = {
        "info": ["--cpu", value(rng)], "asm": ["-", value(rng)], "demo": ["--modes", value(rng)],
        "build": ["--modes", value(rng)], "check": [value(rng)], "debug": ["-", "--cpu", value(rng)],
        "run": [value(rng)],
    }[name]  # fmt: skip
    if words[0] in ("/", "//", "..", "/proc/self/mem", "~"):  # folders with whatever is in them
        words[0] = "/no/such"
    if rng.random() < 0.3:
        words.append(f"--{value(rng)}")
    if name == "asm" and "-o" in words[-1]:
        words = words[:1]
    return command(name, *words, stdin=GUEST)


def door_filters(rng):
    key = rng.choice(("action", "fixed_counter_bitmap", "masked", "events", "evnts", value(rng)))
    item = rng.choice((value(rng), f'"{value(rng)}"', f"[{value(rng)}]", "[" * rng.choice((1, 50, 5000))))
    entry = f"{{ select = {value(rng)}, umask = {value(rng)} }}"
    head = rng.choice(("", 'action = "deny"\n', 'action = "allow"\nmasked = true\n'))
    parse_filter(head + rng.choice((f"{key} = {item}\n", f"events = [{entry}]\n")))
    return True


def door_msr_filters(rng):
    key = rng.choice(("default", "user_space", "ranges", "rnges", value(rng)))
    item = rng.choice((value(rng), f'"{value(rng)}"', f"[{value(rng)}]", "[" * rng.choice((1, 50, 5000))))
    field = rng.choice(("count", "access", "allow", "first", value(rng)))
    entry = f"{{ first = {value(rng)}, {field} = {item} }}"
    head = rng.choice(("", 'default = "deny"\n'))
    parse_msr_filter(head + rng.choice((f"{key} = {item}\n", f"ranges = [{entry}]\n")))
    return True


def door_host_events(rng):
    word = value(rng)
    parse_host_event(rng.choice((word, f"cycles{word}", f"cpu/event={word}/", f"{{{word},cycles}}")))
    return True


NAMES = (
    "pmc0", "fixed0", "rax", "loop", "five", "stop", "serial", "cycles", "exit_code", "exits.CPUID",
    "insns(loop, five)", "mem8(five)", "mem64(0)", "msr.IA32_PMC0.reads", 'printed("x")', "perf.nmis",
    "pass",
)  # fmt: skip
OPERATORS = ("+", "-", "*", "/", "%", "&", "|", "^", "<<", ">>", "**", "==", "<", "not")


def expression(rng):
    text = rng.choice((*NAMES, value(rng)))
    for _ in range(rng.choice((0, 0, 1, 2, 9))):
        other = rng.choice((*NAMES, value(rng)))
        text = rng.choice((
            f"({text}) {rng.choice(OPERATORS)} {other}", f"~{text}", f"mem8({text})", f"-{text}",
            f"{text}.{other}", f"{text}[{other}]",
        ))  # fmt: skip
    if rng.random() < 0.05:
        text = rng.choice(("~", "(", "-", "1+", "a.", "mem8(")) * rng.choice((50, 500, 900, 5000)) + text
    return text


def door_lines(rng, tmp_path):
    """`#:` lines of a file under check."""
    line = rng.choice((
        f"expect all: {expression(rng)} == {expression(rng)}", f"expect {value(rng)}: pmc0 == 0",
        f"args {' '.join(map(json.dumps, run_words(rng, 2)))}", f"args {value(rng)}",
        f"modes {value(rng)}", f"cpu {value(rng)}", f"row {value(rng)}", f"kernels {value(rng)}",
        f"guest {value(rng)}", value(rng), f"{value(rng)} x",
    ))  # fmt: skip
    path = tmp_path / "line.s"
    text = f"#: modes bare\n#: {line}\n#: expect all: pmc0 == 0\n{GUEST}"
    path.write_bytes(text.replace("\0", "").encode(errors="surrogateescape"))
    return command("check", str(path))


@functools.cache
def session():
    return Session(assemble(GUEST, "law.s"), ram=2, max_insns=1000)


VERBS = (
    "b", "tb", "p", "p/x", "p/c", "p/d", "p/t", "x/4xb", "x/i", "x/s", "x", "watch msr", "watch",
    "rwatch", "delete", "info", "info vmcs", "info symbols", "l", "s", "n", "c", "", "until",
    "advance", "reverse-to", "reverse-step", "restart", "catch", "condition", "ignore", "enable",
    "commands", "msr", "why", "why pmi", "disas", "bt", "display", "undisplay", "context", "events",
    "thread", "set", "set msr", "set rax", "set mem", "source", "echo", "help",
)  # fmt: skip


def door_debugger(rng):
    verb = rng.choice(VERBS) if rng.random() < 0.95 else value(rng)
    rest = rng.choice((expression(rng), value(rng), f"law.s:{value(rng)}", f"{value(rng)} rw"))
    if verb == "x" and rng.random() < 0.7:
        verb = f"x/{value(rng)}"
    said = []
    wrong = Repl(session(), said.append).run([f"{verb} {rest}"])
    assert "Traceback" not in "".join(said)
    if rng.random() < 0.1:
        with contextlib.suppress(VpmuError):
            session().delete()
    return not wrong


@functools.cache
def elf():
    return write_elf(assemble(GUEST, "law.s"))


def door_elf(rng):
    data = bytearray(elf())
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(min(len(data), rng.choice((64, 200, len(data)))))
        size = rng.choice((1, 2, 4, 8))
        number = rng.choice((0, 1, 0x7F, 0xFF, 1 << 31, (1 << 63) - 1, (1 << 64) - 1, rng.getrandbits(64)))
        data[at : at + size] = (number & (1 << 8 * size) - 1).to_bytes(size, "little")
    if rng.random() < 0.2:
        del data[rng.randrange(len(data)) :]

    def ready():
        raise Reached

    System(load_bytes(bytes(data), "law.elf"), ram=2, ready=ready)
    return True


def door_traces(rng):
    check_trace(value(rng))
    return True


VARIABLES = (
    "VPMU_CACHE_DIR", "HOME", "XDG_CACHE_HOME", "TMPDIR", "COLUMNS", "LINES", "TERM", "LANG", "LC_ALL",
    "NO_COLOR", "PYTHONUTF8", "NUMBA_DISABLE_JIT", "NUMBA_BOUNDSCHECK", "NUMBA_OPT", "PYTHONPATH",
)  # fmt: skip
COMMANDS = (
    ["run", "-"], ["check", str(ROOT / "guests/lessons/01_count.s")], ["info", "--cpu", "spr"],
    ["asm", "-"],
)  # fmt: skip


def door_environment(rng, tmp_path):
    """Real processes."""
    env = {**os.environ, "NUMBA_DISABLE_JIT": "1", "VPMU_CACHE_DIR": str(tmp_path / "cache")}
    for _ in range(rng.randrange(1, 4)):
        name, text = rng.choice(VARIABLES), value(rng).replace("\0", "").replace("\udcff", "")
        if name in ("PYTHONUTF8", "NUMBA_DISABLE_JIT"):
            text = "1"  # else the interpreter, or a compilation, is what begins
        if name in ("VPMU_CACHE_DIR", "TMPDIR", "HOME", "XDG_CACHE_HOME") and "/" in text:
            text = "/dev/null/x"  # nothing of this machine is made or looked at
        env[name] = text
    done = subprocess.run(
        [sys.executable, "-P", "-m", "vpmu_emu", *rng.choice(COMMANDS)], input=GUEST, text=True, env=env,
        capture_output=True, cwd=tmp_path, timeout=60, errors="replace",
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode in (0, 1, 2), done.returncode
    return done.returncode != 2


DOORS = {
    "options": door_options, "runs": door_runs, "commands": door_commands, "filters": door_filters,
    "MSR filters": door_msr_filters,
    "host events": door_host_events, "#: lines": door_lines, "debugger": door_debugger, "elf": door_elf,
    "traces": door_traces,
}  # fmt: skip


def attempt(door, number, tmp_path):
    """What became of one case: refused, accepted, traceback or hang; the last two with words."""
    rng = random.Random(f"{door.__name__} {number}")

    def late(*_):
        raise Hang

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, 60 if door is door_environment else MOST_SECONDS)
    try:
        with_path = door in (door_lines, door_environment)
        return ("accepted" if (door(rng, tmp_path) if with_path else door(rng)) else "refused"), ""
    except (VpmuError, ValueError) as error:
        ours = isinstance(error, VpmuError)
        return ("refused", "") if ours and str(error) else ("traceback", repr(error))
    except Reached:
        return "accepted", ""
    except Hang:
        return "hang", ""
    except Exception as error:
        return "traceback", f"{type(error).__name__}: {error}"[:300]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def go(name, door, count, tmp_path, capsys, monkeypatch):
    def reached(modes):
        if door is not door_runs:
            raise Reached

    monkeypatch.setattr(cli, "prepare", reached)
    monkeypatch.setattr(build, "build", lambda wanted, tell, workers: reached(wanted))
    monkeypatch.setattr(build, "record", reached)
    monkeypatch.chdir(tmp_path)
    figures = Counter(dict.fromkeys(("refused", "accepted", "traceback", "hang"), 0))
    wrong = []
    start = time.monotonic()
    for number in range(FIRST, FIRST + count):
        what, words = attempt(door, number, tmp_path)
        figures[what] += 1
        if what in ("traceback", "hang"):
            wrong.append(f"VPMU_SEED={number}: {what} {words}")
    if count > 1000:
        with capsys.disabled():
            told = ", ".join(f"{number} {what}" for what, number in figures.items())
            print(f"\n{name}: {count} cases, {told}; {time.monotonic() - start:.0f} s; "
                  f"next VPMU_SEED={FIRST + count}")  # fmt: skip
    assert not wrong, "\n".join(wrong[:20])


@pytest.mark.parametrize("name", DOORS)
def test_no_door_gives_a_traceback(name, tmp_path, capsys, monkeypatch):
    share = 10 if name == "runs" else 1
    count = cases(day=40, laws=5000, night=25_000, uncompiled=40) // share
    go(name, DOORS[name], count, tmp_path, capsys, monkeypatch)


@pytest.mark.slow
def test_no_environment_gives_a_traceback(tmp_path, capsys, monkeypatch):
    go("environment", door_environment, cases(day=3, laws=100, night=1000), tmp_path, capsys, monkeypatch)
