# Two commands are all the set-up there is: `make demo` and `make test`. Both make .venv and install on first use only.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev

# The lowest version of every requirement, and SAELens for benchmarks side by side, each in an environment of its own.
OLDEST := .venv-oldest
PEERS := benchmarks/.peers
PEERS_PYTHON ?= $(PEERS)/bin/python
BENCHMARKS := steps growth sweep

.PHONY: demo test test-oldest fuzz check golden bench bench-peers clean

demo: $(INSTALLED)
	$(BIN)/sae-sweep run demo

test: $(INSTALLED_DEV)  ## in three processes on two cores: the one with the tests of Ray mostly waits. In the order of the files, so that these do not come last
	$(BIN)/pytest -m "" -n 3

fuzz: $(INSTALLED_DEV)  ## the tests of properties with other examples each time; keep what it finds as an @example
	$(BIN)/pytest -m "" -n 2 --hypothesis-profile=fuzz tests/property

test-oldest: $(OLDEST)/.installed  ## the same with the lowest version of every requirement, some of which use what is now deprecated
	$(OLDEST)/bin/pytest -m "" -n 3 -W ignore::DeprecationWarning

$(OLDEST)/.installed: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/pip install -q -c constraints-oldest.txt -e '.[dev]'
	touch $@

check: $(INSTALLED_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

golden: $(INSTALLED_DEV)  ## rewrite the golden losses; say why in CHANGELOG.md
	$(BIN)/python -m tests.golden.record

bench: $(INSTALLED)  ## every speed benchmark, under 20 minutes on 2 cores; beside SAELens where `make bench-peers` installed it
	set -e; $(foreach name,$(BENCHMARKS),echo "== $(name)"; PEERS_PYTHON=$(PEERS_PYTHON) $(BIN)/python benchmarks/$(name).py;)

bench-peers: $(PEERS)/.installed

$(PEERS)/.installed:
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install -q torch==2.13.0
	$(PEERS)/bin/pip install -q torch==2.13.0 sae-lens==6.54.12
	touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install -q -c constraints.txt -e .
	touch $@

$(INSTALLED_DEV): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@ $(INSTALLED)

clean:
	rm -rf $(VENV) $(OLDEST) $(PEERS)
