# `make quickstart`, `make lab` and `make test` do all set-up; PYTHON names the interpreter (3.10 or newer), LAB options
# of JupyterLab, as in make lab LAB="--no-browser --port 8899".
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart lab notebooks site bench test clean

quickstart: $(VENV)/.package  ## the whole road on handwritten digits; results in quickstart/
	$(BIN)/python -m dwlth run digits --results quickstart

lab: $(VENV)/.notebooks  ## the notebooks, on the quickstart's results if it has run, or else on those that come with the kit
	$(if $(wildcard quickstart/digits/table.csv),DWLTH_RESULTS=../quickstart) $(BIN)/python -m jupyterlab $(LAB) notebooks/00_start_here.ipynb

notebooks: $(VENV)/.notebooks  ## run all of them headless, in place
	$(BIN)/python notebooks/execute.py

site: $(VENV)/.site  ## README, notebooks, docs, figures and code as pages in site/html/; open index.html there
	rm -rf site
	$(BIN)/python -m sphinx -q -W --keep-going --fresh-env -c docs -d site/doctrees . site/html

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

$(VENV)/.site: pyproject.toml $(VENV)/.package
	$(BIN)/python -m pip install --quiet --editable ".[site]"
	@touch $@

$(VENV)/.test: pyproject.toml $(VENV)/.package
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	$(BIN)/python -m pip install --quiet --no-deps torchattacks  # its pins are of 2020; what it needs is here
	@touch $@

clean:  ## remove the environment, the quickstart's results and the site
	rm -rf $(VENV) quickstart site
