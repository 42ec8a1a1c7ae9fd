"""Writes the golden texts of the guests as they are now, for eyes: `python -m tests.stops [NAME…]`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.stops.golden import cases, shown, stopped, written

with tempfile.TemporaryDirectory() as folder:
    for case in cases():
        if sys.argv[1:] and case.path.stem not in sys.argv[1:]:
            continue
        found = {mode: shown(str(stopped(case, mode, Path(folder))[1])) for mode in case.modes}
        case.path.write_text(written(case, found))
