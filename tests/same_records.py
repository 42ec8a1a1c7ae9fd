"""Two builds must give the same records: `python -m tests.same_records save|compare FILE MODES`.

The suite runs on a build with bounds checks, users on one without; what differs between them would be
a bug that only one of them has.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from tests.conftest import ROOT
from vpmu_emu._jit import BOUNDS_CHECKED
from vpmu_emu.asm import assemble_file
from vpmu_emu.check import run_as_asked
from vpmu_emu.options import parse


def digests(modes: list[str]) -> dict[str, str]:
    """Hash of the record and the memory after every lesson in every mode."""
    found = {}
    for path in sorted((ROOT / "guests" / "lessons").glob("*.s")):
        program = assemble_file(path)
        args = [e.text.split(" ", 1)[1] for e in program.expectations if e.text.startswith("args ")]
        words = " ".join(args).split()
        parse(words)
        for mode in modes:
            result = run_as_asked(program, mode, None, words)
            digest = hashlib.sha256(result.record)
            digest.update(bytes(result.memory))
            found[f"{path.name} {mode}"] = digest.hexdigest()
    return found


def main() -> int:
    """Status 0 if all records are equal."""
    what, file, modes = sys.argv[1:4]
    found = digests(modes.split(","))
    kind = "with" if BOUNDS_CHECKED else "without"
    print(f"{len(found)} runs {kind} bounds checks")
    if what == "save":
        Path(file).write_text(json.dumps(found))
        return 0
    saved = json.loads(Path(file).read_text())
    wrong = [key for key in found if saved.get(key) != found[key]]
    for key in wrong:
        print(f"{key}: the two builds differ")
    return 1 if wrong or not found else 0


if __name__ == "__main__":
    sys.exit(main())
