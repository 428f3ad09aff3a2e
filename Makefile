# `make quickstart`, `make lab` and `make test` do all set-up, in the conda or virtual environment that is active (but not
# conda's base), or else in .venv; PYTHON names the interpreter of .venv (3.10 or newer), and so means .venv. LAB has
# options of JupyterLab, as in make lab LAB="--no-browser --port 8899".
ifeq ($(filter command environment,$(origin PYTHON)),)
ACTIVE := $(or $(VIRTUAL_ENV),$(if $(filter-out base,$(CONDA_DEFAULT_ENV)),$(CONDA_PREFIX)))
endif
ACTIVE := $(if $(subst $(CURDIR)/.venv,,$(ACTIVE)),$(ACTIVE))
PYTHON ?= python3
BIN := $(or $(ACTIVE),.venv)/bin
# what is installed; of an environment elsewhere it is noted here, by its path and inode: make knows no path with a space
MADE := $(if $(ACTIVE),.made/$(shell ls -di "$(ACTIVE)" | cksum | cut -d ' ' -f 1),.venv)
COPIES := $(patsubst notebooks/%,my-notebooks/%,$(wildcard notebooks/*.ipynb))

.PHONY: quickstart lab notebooks site bench test clean

quickstart: $(MADE)/.notebooks  ## the whole road on handwritten digits; results in quickstart/
	"$(BIN)/python" -m dwlth run digits --results quickstart

lab: $(MADE)/.notebooks $(COPIES)  ## copies of the notebooks, on the quickstart's results if it has run, or else on the kit's
	$(if $(DWLTH_RESULTS),,$(if $(wildcard quickstart/digits/table.csv),DWLTH_RESULTS=../quickstart)) "$(BIN)/python" -m jupyterlab $(LAB) \
		--LabApp.default_url="/lab/tree/my-notebooks/00_start_here.ipynb?file-browser-path=/"

my-notebooks/%.ipynb:  # made where it is missing: a copy that somebody has worked on stays
	@mkdir -p my-notebooks
	@cp notebooks/$*.ipynb $@

notebooks: $(MADE)/.notebooks  ## run all of them headless, in place, as they are committed
	"$(BIN)/python" notebooks/execute.py

site: $(MADE)/.site  ## README, notebooks, docs, figures and code as pages in site/html/; open index.html there
	rm -rf site
	"$(BIN)/python" -m sphinx -q -W --keep-going --fresh-env -c docs -d site/doctrees . site/html

bench: $(MADE)/.test  ## ours and other libraries, in 10 to 15 minutes
	"$(BIN)/python" -m pip install --quiet --editable ".[bench]"
	"$(BIN)/python" benchmarks/run.py

test: $(MADE)/.test  ## style, then the tests, on two processes of one thread each: small networks gain nothing from more
	"$(BIN)/python" -m ruff check
	"$(BIN)/python" -m ruff format --check
	OMP_NUM_THREADS=1 "$(BIN)/python" -m pytest -n 2 --dist loadfile

$(MADE)/.made:
	@$(if $(ACTIVE),"$(BIN)/python",$(PYTHON)) -c "import sys; sys.exit(sys.version_info < (3, 10))" || { echo "$(if $(ACTIVE),$(BIN)/python,$(PYTHON)) is older than Python 3.10; try make PYTHON=python3.12"; exit 1; }
	$(if $(ACTIVE),mkdir -p $(MADE),$(PYTHON) -m venv --clear .venv)
	@touch $@

$(MADE)/.package: pyproject.toml $(MADE)/.made
	"$(BIN)/python" -m pip install --editable .
	@touch $@

$(MADE)/.notebooks: pyproject.toml $(MADE)/.package
	"$(BIN)/python" -m pip install --quiet --editable ".[notebooks]"
	@touch $@

$(MADE)/.site: pyproject.toml $(MADE)/.package
	"$(BIN)/python" -m pip install --quiet --editable ".[site]"
	@touch $@

$(MADE)/.test: pyproject.toml $(MADE)/.package
	"$(BIN)/python" -m pip install --quiet --editable ".[test]"
	"$(BIN)/python" -m pip install --quiet --no-deps torchattacks  # its pins are of 2020; what it needs is here
	@touch $@

clean:  ## remove .venv, the quickstart's results and the site; an environment elsewhere and your notebooks stay
	rm -rf .venv .made quickstart site
