# Needs Python >= 3.11 with pip, and nothing else; everything lands in .venv.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.stamp
# Compiled code of the tests, apart from the user's own.
CHECKED := NUMBA_BOUNDSCHECK=1
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal
INNER := tests/linux tests/machine
# Laws and differential tests that a night runs once more with everything native that can be.
HOT := tests/reference tests/machine tests/linux/kvm tests/compare tests/debug $(addprefix tests/test_,\
  conformance.py counts_vs_reference.py engine_vs_reference.py horizon.py leaks.py lessons.py migration.py modes.py\
  patches.py pmu_suite.py snapshot.py turns.py)
# Nights share the long profile: each takes one part in SHARES of the random tests, by the day of the year.
SHARES := 8
NIGHT := $(shell date +%j)

.PHONY: setup build wheel demo test laws lint bench records mutants patches hot nightly coverage clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("vpmu_emu needs Python 3.11 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check hatchling editables
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --editable . $$($(BIN)/python -c 'import tomllib; g = tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"]; print(*(repr(r) for n in ("lint", "test", "bench") for r in g[n]))' | tr -d "'")
	touch $@

build: setup
	$(BIN)/vpmu build

# dist/*.whl, with the compiled code that a first run would have to make (docs/interpreter.md).
wheel: setup
	$(BIN)/python -m build --wheel --no-isolation --outdir dist .

demo: setup
	$(BIN)/vpmu demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy

# The suite runs on a build with bounds checks; then the product build of two modes must give the same
# records, and what can only run without the compiler does (it calls inner functions one by one): by day at
# most three parametrisations of each test, in laws all.
test: lint
	$(CHECKED) $(BIN)/vpmu build
	$(CHECKED) $(PYTEST)
	$(CHECKED) $(BIN)/python -m tests.tools.same_records save .venv/records.xz lessons bare,passthrough
	$(BIN)/vpmu build --modes bare,passthrough
	$(BIN)/python -m tests.tools.same_records compare .venv/records.xz lessons bare,passthrough
	NUMBA_DISABLE_JIT=1 VPMU_THIN=3 $(PYTEST) -q -m "inner and uncompiled and not slow and not laws" $(INNER)

# What is too long for every change: more examples of everything random, the tests marked `laws`,
# coverage, and the deliberate bugs. At most 35 minutes on two cores.
laws: setup
	$(CHECKED) $(BIN)/vpmu build
	VPMU_HYPOTHESIS=ci $(CHECKED) $(PYTEST) -m "" -o timeout=1800
	NUMBA_DISABLE_JIT=1 $(PYTEST) -q -m "inner and uncompiled and not slow and not laws" -o timeout=1800 $(INNER)
	NUMBA_DISABLE_JIT=1 VPMU_HYPOTHESIS=ci $(PYTEST) -q -m "inner and uncompiled" -o timeout=1800 $(INNER) -k "laws or states"
	$(MAKE) coverage
	$(MAKE) mutants
	$(MAKE) patches

# True only without the compiler: machine code has no lines.
coverage: setup
	rm -f .coverage .coverage.*
	NUMBA_DISABLE_JIT=1 VPMU_HYPOTHESIS=uncompiled VPMU_THIN=2 $(BIN)/python -m coverage run -m pytest -q -n 2 --dist worksteal -m "uncompiled and not slow" -p no:cacheprovider -o timeout=1800 tests/linux tests/machine tests/asm
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

bench: setup
	$(BIN)/vpmu build
	$(BIN)/vpmu bench
	$(BIN)/python -m pytest benchmarks --benchmark-only -o addopts=--import-mode=importlib

# tests/records.txt anew, where a change of behaviour is meant (docs/contributing.md).
records: setup
	$(BIN)/vpmu build
	$(BIN)/python -m tests.tools.records renew

# Each deliberate bug of isa/mutants.toml must be found by a guest.
mutants: setup
	$(BIN)/vpmu build
	$(BIN)/python -m tests.tools.mutants

# Each patch of the series in and out: its guest is green and red, and no other but those that the table names.
patches: setup
	$(BIN)/vpmu build --modes passthrough
	$(BIN)/python -m tests.tools.patches

# The longest profile, at most an hour: hypothesis has 10 000 examples and each random test its most cases,
# for a share of them a night. Any night can be had again: make nightly NIGHT=123.
nightly: lint
	$(CHECKED) $(BIN)/vpmu build
	VPMU_HYPOTHESIS=nightly VPMU_SHARE=$(NIGHT)/$(SHARES) $(CHECKED) $(PYTEST) -m "" -o timeout=3000
	$(MAKE) hot

# Each branch that is taken a second time becomes native code: nothing may be otherwise for that.
hot: setup
	$(BIN)/vpmu build
	VPMU_ENGINE=translator VPMU_HOT=1 $(PYTEST) -q -o timeout=600 $(HOT)
	VPMU_ENGINE=translator VPMU_HOT=1 $(BIN)/python -m tests.tools.records check

clean:
	rm -rf .venv dist build .pytest_cache .mypy_cache .ruff_cache .coverage
