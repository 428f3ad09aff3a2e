# `make quickstart` and `make test` do all set-up; PYTHON names the interpreter (3.10 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test clean

quickstart: $(VENV)/.package  ## the whole road on handwritten digits; results in quickstart/
	$(BIN)/python -m dwlth run digits --results quickstart

test: $(VENV)/.test
	$(BIN)/python -m pytest

$(VENV)/.made:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" || { echo "$(PYTHON) is older than Python 3.10; try make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.package: pyproject.toml $(VENV)/.made
	$(BIN)/python -m pip install --editable .
	@touch $@

$(VENV)/.test: pyproject.toml $(VENV)/.package
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	$(BIN)/python -m pip install --quiet --no-deps torchattacks  # its pins are of 2020; what it needs is here
	@touch $@

clean:  ## remove the environment and the quickstart's results
	rm -rf $(VENV) quickstart
