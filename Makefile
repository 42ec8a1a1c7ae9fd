# Needs Python >= 3.11 with pip, and nothing else; everything lands in .venv.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.stamp
# Compiled code of the tests, apart from the user's own.
CHECKED := NUMBA_BOUNDSCHECK=1

.PHONY: setup build demo test lint bench mutants nightly coverage clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("vpmu_emu needs Python 3.11 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check hatchling editables
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --editable . $$($(BIN)/python -c 'import tomllib; g = tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"]; print(*(repr(r) for n in ("lint", "test", "bench") for r in g[n]))' | tr -d "'")
	touch $@

build: setup
	$(BIN)/vpmu build

demo: setup
	$(BIN)/vpmu demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy

# The whole suite runs on a build with bounds checks; then the product build of two modes must give the
# same records, and the tests of the machine, the assembler and the host kernel run again without the
# compiler, a case of each, where coverage is true (test_uncompiled.py is for those who run pytest alone).
test: lint
	$(CHECKED) $(BIN)/vpmu build
	$(CHECKED) $(BIN)/python -m pytest -n 2 --dist worksteal --ignore tests/linux/test_uncompiled.py
	$(CHECKED) $(BIN)/python -m tests.same_records save .venv/records.json bare,passthrough
	$(BIN)/vpmu build --modes bare,passthrough
	$(BIN)/python -m tests.same_records compare .venv/records.json bare,passthrough
	$(MAKE) coverage

coverage: setup
	rm -f .coverage .coverage.*
	NUMBA_DISABLE_JIT=1 VPMU_HYPOTHESIS=uncompiled VPMU_THIN=1 $(BIN)/python -m coverage run -m pytest -q -n 2 --dist worksteal -m "uncompiled and not slow" -p no:cacheprovider tests/linux tests/machine tests/asm
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

bench: setup
	$(BIN)/vpmu build
	$(BIN)/vpmu bench
	$(BIN)/python -m pytest benchmarks --benchmark-only -o addopts=--import-mode=importlib

# Each deliberate bug of isa/mutants.toml must be found by a guest.
mutants: setup
	$(BIN)/vpmu build
	$(BIN)/python -m tests.mutants

nightly: lint mutants
	$(CHECKED) $(BIN)/vpmu build
	VPMU_HYPOTHESIS=nightly $(CHECKED) $(BIN)/python -m pytest -n 2 --dist worksteal -o timeout=7200

clean:
	rm -rf .venv dist build .pytest_cache .mypy_cache .ruff_cache .coverage
