# Every command of this project. All run on .venv/bin/python, which `make setup` makes when it is missing or out of date.
#   make setup PYTHON=python3.12    makes it with an interpreter other than python3

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.setup-stamp
CONSTRAINTS := constraints.txt constraints-py310.txt
PYTEST_ARGS ?=

CHECK_VERSION = import sys; v = sys.version_info; \
	v >= (3, 10) or sys.exit("hesitant needs Python 3.10 or newer; %s is %d.%d." % ((sys.executable,) + v[:2]))
# Python 3.10 has its own pins: many packages no longer release for it.
PICK_CONSTRAINTS = import sys; print("constraints.txt" if sys.version_info >= (3, 11) else "constraints-py310.txt")

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types test-fast test-slow bench

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv with everything, at the pinned versions

# A .venv whose pip does not run is a half-made one (Debian without python3-venv leaves such a folder): made anew.
$(STAMP): pyproject.toml $(CONSTRAINTS)
	@$(PY) -m pip --version >/dev/null 2>&1 || { \
	  command -v '$(PYTHON)' >/dev/null || { echo "'$(PYTHON)' was not found: install Python 3.10 or newer, or name one: make setup PYTHON=/path/to/python" >&2; exit 1; }; \
	  '$(PYTHON)' -c '$(CHECK_VERSION)' || { echo "Name a newer one: make setup PYTHON=/path/to/python" >&2; exit 1; }; \
	  echo "Making $(VENV) with $$('$(PYTHON)' --version)"; \
	  '$(PYTHON)' -m venv --clear $(VENV); }
	@$(PY) -c '$(CHECK_VERSION)' || { echo "Remove $(VENV), then: make setup PYTHON=/path/to/python" >&2; exit 1; }
# No build isolation: the build backend, too, is then the pinned one.
	@set -e; pins="$$($(PY) -c '$(PICK_CONSTRAINTS)')"; \
	  $(PY) -m pip install --quiet --constraint "$$pins" pip setuptools; \
	  $(PY) -m pip install --prefer-binary --no-build-isolation --constraint "$$pins" --editable '.[all,test]'
	@touch $(STAMP)

demo: $(STAMP) ## train and compare the methods on two moons and on scanned digits: PNG and JSON
	$(VENV)/bin/hesitant demo two-moons
	$(VENV)/bin/hesitant demo digits

test: lint types test-fast test-slow ## every check: lint, types, tests

lint: $(STAMP) ## ruff
	$(PY) -m ruff check .

types: $(STAMP) ## mypy --strict
	$(PY) -m mypy

# One thread a worker: two processes of many threads each would fight for the cores.
test-fast: $(STAMP) ## the tests that take seconds
	OMP_NUM_THREADS=1 $(PY) -m pytest -m "not slow" -n 2 $(PYTEST_ARGS)

# pytest exits 5 where no test is marked slow.
test-slow: $(STAMP) ## the tests that take longer
	$(PY) -m pytest -m slow --durations=10 $(PYTEST_ARGS) || [ $$? -eq 5 ]

bench: $(STAMP) ## make every figure of the README again
	@set -e; for script in benchmarks/[!_]*.py; do echo "== $$script"; $(PY) "$$script"; done
