# `make quickstart`, `make lab` and `make test` do all set-up; PYTHON names the interpreter (3.10 or newer), LAB options
# of JupyterLab, as in make lab LAB="--no-browser --port 8899".
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
COPIES := $(patsubst notebooks/%,my-notebooks/%,$(wildcard notebooks/*.ipynb))

.PHONY: quickstart lab notebooks bench test clean

quickstart: $(VENV)/.package  ## the whole road on handwritten digits; results in quickstart/
	$(BIN)/python -m dwlth run digits --results quickstart

lab: $(VENV)/.notebooks $(COPIES)  ## copies of the notebooks, on the quickstart's results if it has run, or else on the kit's
	$(if $(wildcard quickstart/digits/table.csv),DWLTH_RESULTS=../quickstart) $(BIN)/python -m jupyterlab $(LAB) \
		--LabApp.default_url="/lab/tree/my-notebooks/00_start_here.ipynb?file-browser-path=/"

my-notebooks/%.ipynb:  # made where it is missing: a copy that somebody has worked on stays
	@mkdir -p my-notebooks
	@cp notebooks/$*.ipynb $@

notebooks: $(VENV)/.notebooks  ## run all of them headless, in place, as they are committed
	$(BIN)/python notebooks/execute.py

bench: $(VENV)/.test  ## ours and other libraries, in about 10 minutes
	$(BIN)/python -m pip install --quiet --editable ".[bench]"
	$(BIN)/python benchmarks/run.py

test: $(VENV)/.test  ## style, then the tests, on two processes of one thread each: small networks gain nothing from more
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

$(VENV)/.made:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" || { echo "$(PYTHON) is older than Python 3.10; try make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.package: pyproject.toml $(VENV)/.made
	$(BIN)/python -m pip install --editable .
	@touch $@

$(VENV)/.notebooks: pyproject.toml $(VENV)/.package
	$(BIN)/python -m pip install --quiet --editable ".[notebooks]"
	@touch $@

$(VENV)/.test: pyproject.toml $(VENV)/.package
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	$(BIN)/python -m pip install --quiet --no-deps torchattacks  # its pins are of 2020; what it needs is here
	@touch $@

clean:  ## remove the environment and the quickstart's results; your copies of the notebooks stay
	rm -rf $(VENV) quickstart
