"""What docs/traces.md shows is what its commands print."""

from __future__ import annotations

import re

import pytest

from tests.tools import traces_page
from vpmu_emu.traces.files import FORMATS


@pytest.mark.laws
@pytest.mark.usefixtures("trace_cmd")
def test_the_page_is_true():
    page = traces_page.PAGE.read_text(encoding="utf-8")
    assert traces_page.text(page) == page, "python -m tests.tools.traces_page"


def test_every_ending_is_on_the_page():
    page = traces_page.PAGE.read_text(encoding="utf-8")
    assert set(FORMATS) <= set(re.findall(r"`(\.[a-z-]+)`", page))
