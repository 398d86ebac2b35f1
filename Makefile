# Two commands are all the set-up there is: `make demo` and `make test`. Both make .venv and install on first use only.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev

.PHONY: demo test check golden clean

demo: $(INSTALLED)
	$(BIN)/sae-sweep run demo --results results/local

test: $(INSTALLED_DEV)
	$(BIN)/pytest

check: $(INSTALLED_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

golden: $(INSTALLED_DEV)  ## rewrite the golden losses; say why in CHANGELOG.md
	$(BIN)/python -m tests.golden.record

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install -q -c constraints.txt -e .
	touch $@

$(INSTALLED_DEV): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@ $(INSTALLED)

clean:
	rm -rf $(VENV)
