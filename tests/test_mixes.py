"""The mixes that are timed compute the same on every engine."""

from __future__ import annotations

import importlib.util
import json
import os
from shutil import which

import pytest

from tests.conftest import ROOT
from vpmu_emu import _jit


def load():
    spec = importlib.util.spec_from_file_location("mixes", ROOT / "benchmarks" / "mixes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


mixes = load()
pytestmark = pytest.mark.skipif(not _jit.COMPILES, reason="without a compiler there is no native code")
ROUNDS = 40


@pytest.mark.parametrize("mix", mixes.MIXES, ids=lambda mix: mix.name)
def test_engines_agree(mix):
    runs = [mixes.ours(mix, ROUNDS, engine="interpreter", counters=counters) for counters in (False, True)]
    sums = {run.registers["r14"] for run in runs}
    sums.add(mixes.ours(mix, ROUNDS, engine="translator").registers["r14"])
    assert len(sums) == 1
    plain, counting = runs
    assert plain.counters["pmc0"] == 0
    assert 0 < counting.instructions - plain.instructions < 60
    before = 33_000 if mix.paged else 0  # its page tables
    assert counting.counters["pmc0"] > 0.9 * (plain.instructions - before)


@pytest.mark.parametrize("mix", mixes.MIXES, ids=lambda mix: mix.name)
def test_unicorn_computes_the_same(mix):
    if importlib.util.find_spec("unicorn") is None:
        assert "VPMU_REQUIRE_ORACLES" not in os.environ
        pytest.skip("no unicorn")
    assert mixes.unicorn(mix, ROUNDS)[0] == mixes.ours(mix, ROUNDS, engine="interpreter").registers["r14"]


def test_the_processor_computes_the_same(tmp_path):
    processes = mixes.Processes(tmp_path)
    if "native" not in processes.there():
        assert "VPMU_REQUIRE_ORACLES" not in os.environ
        pytest.skip("no GNU as and ld")
    for mix in mixes.MIXES:
        found = processes.run("native", mix, ROUNDS)[0]
        assert found == mixes.ours(mix, ROUNDS, engine="interpreter").registers["r14"], mix.name


def test_samples_are_the_same():
    (samples, addresses), _ = mixes.sampled("interpreter", 20_000)
    assert samples > 200
    assert mixes.sampled("translator", 20_000)[0] == (samples, addresses)


@pytest.mark.laws
def test_what_is_said(tmp_path, capsys):
    out = tmp_path / "figures.json"
    assert mixes.main(["products", "--rounds", "1", "--json", str(out)]) == 0
    text = capsys.readouterr().out
    assert "| products |" in text
    assert "geometric mean" in text
    assert "the same samples" in text
    found = json.loads(out.read_text())
    assert set(found["speed"]["products"]) >= {"interpreter", "translator", "counting"}
    assert ("QEMU" in found["speed"]["products"]) == bool(which("qemu-x86_64"))


@pytest.mark.parametrize(("words", "said"), [
    (["alw"], "no mix is named 'alw'"), (["--rounds", "0"], "1 or more"),
    (["alu", "--page"], "of all mixes"),
])  # fmt: skip
def test_bad_input_is_one_sentence(words, said, capsys):
    with pytest.raises(SystemExit) as stop:
        mixes.main(words)
    assert stop.value.code == 2
    assert said in capsys.readouterr().err
