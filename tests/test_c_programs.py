"""C from end to end: what gcc made prints in every mode what the same code prints natively."""

from __future__ import annotations

import json
import re
import subprocess

import pytest
from click.testing import CliRunner

from tests.asm.gnu import require
from tests.conftest import ROOT
from vpmu_emu.cli import main
from vpmu_emu.debug.session import Session
from vpmu_emu.load import load
from vpmu_emu.system import System
from vpmu_emu.tables.modes import MODES

SOURCE = ROOT / "guests" / "c" / "report.c"
COMPILE = ["-mgeneral-regs-only", "-mno-red-zone", "-ffreestanding", "-fno-stack-protector",
           "-fno-pic", "-Wall", "-Wextra"]  # fmt: skip
LINK = ["-nostdlib", "-static", "-no-pie", "-Wl,-Ttext-segment=0x100000"]
LEVELS = ("-O0", "-O1", "-O2")
EXCEPTIONS = "breakpoints 2, divisions by zero 1, invalid opcodes 1\n"
PMU = "pmi 1, in here 1, counter past zero, overflow cleared\n"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Compiles the program: by level and kind (elf, assembly, native), once each."""
    require("gcc", "as", "ld")
    folder = tmp_path_factory.mktemp("c")
    done = {}

    def build(level, kind="elf"):
        if (level, kind) not in done:
            path = folder / f"report{level}.{kind}"
            flags = {
                "elf": [*COMPILE, *LINK, "-g"],
                "s": [*COMPILE, "-S", "-masm=intel"],
                "native": ["-DHOSTED"],
            }[kind]
            command = ["gcc", level, *flags, "-o", str(path), str(SOURCE)]
            subprocess.run(command, check=True)
            done[level, kind] = path
        return done[level, kind]

    return build


@pytest.fixture(scope="module")
def native(built):
    """What the first part prints on this machine."""
    command = [built("-O1", "native")]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert out.startswith("by height: Jericho")
    assert len(out.splitlines()) == 9
    return out


def expected(native, mode):
    return native + EXCEPTIONS + ("no pmu\n" if mode == "none" else PMU)


# Without the compiler of the machine a run takes seconds, under KVM more.
QUICK = {("-O2", "bare")}
CASES = [
    pytest.param(level, mode, marks=[pytest.mark.uncompiled] * ((level, mode) in QUICK))
    for level in LEVELS
    for mode in MODES
]


@pytest.mark.parametrize(("level", "mode"), CASES)
def test_an_executable_prints_what_it_prints_natively(level, mode, built, native):
    path = str(built(level))
    result = CliRunner().invoke(main, ["run", path, "--vpmu", mode, "--json"])
    assert result.exit_code == 0, result.output
    values = json.loads(result.output[result.output.index("{") :])
    assert values["serial"] == expected(native, mode)
    assert values["stop"] == "debug-exit"
    assert values["unsupported"] is None
    assert values["pmis"] == (mode != "none")
    # Without optimisation a wrapper is a function of its own.
    assert ("machine.h:" if level == "-O0" else "report.c:") in values["stop_line"]


@pytest.mark.parametrize("level", ["-O0", "-O1", pytest.param("-O2", marks=pytest.mark.uncompiled)])
def test_the_compilers_assembly_prints_it_too(level, built, native):
    system = System(load(built(level, "s")))
    stop = system.run()
    assert (stop.reason, stop.info) == ("debug-exit", 0)
    assert system.serial == expected(native, "bare")


@pytest.mark.uncompiled
def test_a_trace_has_the_lines_of_the_source(built, tmp_path):
    out = tmp_path / "t.txt"
    result = CliRunner().invoke(main, ["run", str(built("-O1")), "--trace", str(out)])
    assert result.exit_code == 0
    source = SOURCE.read_text().splitlines()
    written = next(row for row in out.read_text().splitlines() if re.search(r"guest_wrmsr: +c1 = ", row))
    place = written.rpartition("  # ")[2]
    # The access itself is an inline function of machine.h; who calls that is told.
    assert re.search(r"wrmsr\(0xc1,", source[int(place.rpartition(":")[2]) - 1]), place
    assert "report.c:" in place
    taken = re.compile(r"irq_handler: +vector 0x42")
    raised = next(row for row in out.read_text().splitlines() if taken.search(row))
    file, _, line = raised.rpartition("  # ")[2].rpartition(":")
    assert file.endswith("report.c")
    assert "pmis" in source[int(line) - 1] or "nop" in source[int(line) - 1]


@pytest.mark.uncompiled
def test_a_debugger_stops_in_the_handler_of_the_pmi(built):
    session = Session(load(built("-O1")))
    session.break_at("on_pmi")
    assert session.cont().reason == "break"
    assert "<on_pmi>" in session.describe_place(session.rip)
    assert "report.c:" in session.describe_place(session.rip)
    assert any("on_pmi(struct frame *f)" in line for line in session.source_around(session.rip))
    assert session.evaluate("breakpoints") == session.program.symbols["breakpoints"]
    assert session.evaluate("mem32(divisions)") == 1
