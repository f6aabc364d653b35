# Everything here needs nothing but make and Python 3.11 or newer: each target installs first where it has to.

PYTHON ?= python3
TIER   ?= tiny
STUDY  ?= headline
CORES  ?= $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
# where jobs run, if not on all processors here: profiles/gpus or profiles/slurm
PROFILE ?=
GPUS   ?= $(shell nvidia-smi -L 2>/dev/null | grep -c '^GPU')
# two workers of one thread each: the machine that CI has
TEST_WORKERS = 2
ONE_THREAD = OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
NOTEBOOKS  = $(ONE_THREAD) $(BIN)/nbdev_test --n_workers $(TEST_WORKERS) --timing
PYTEST     = $(ONE_THREAD) $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder

# where this is set, as in some containers, every process would compile PyTorch's thousands of files anew: twice the time to import it
export PYTHONDONTWRITEBYTECODE =

UV_VERSION = 0.13.8
VENV = .venv
BIN  = $(VENV)/bin
DONE = $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install reproduce bench lab docs test test-all lint export lock clean clean-all

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-11s %s\n", $$1, $$2}' Makefile

install: $(DONE) ## an environment in .venv, from nothing but make and python3 (about 6 GB)

$(DONE): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "gdpt needs Python 3.11 or newer; '$(PYTHON)' is `$(PYTHON) --version 2>&1 || true`. Name another one: make install PYTHON=python3.12"; exit 1; }
	@echo "Installing into $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@$(BIN)/uv pip install `[ -t 2 ] || echo --quiet` --python $(BIN)/python -r requirements.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@if [ -d .git ]; then $(git-hooks); fi
	@touch $@
	@echo "Installed. 'make' lists what can be done."

# nbdev's hooks: notebooks are cleaned when Jupyter saves them and merged cell by cell. nbdev writes Jupyter's part into the home folder and
# expects its commands on the PATH; here both are kept inside .venv.
define git-hooks
  if HOME="$(CURDIR)/$(VENV)" PATH="$(CURDIR)/$(BIN):$$PATH" nbdev_install_hooks >/dev/null 2>&1; then \
    git config --local merge.nbdev-merge.driver "$(BIN)/nbdev_merge %O %A %B %P"; \
    printf '#!/bin/sh\n%s\n' '[ ! -x $(BIN)/nbdev_trust ] || $(BIN)/nbdev_trust' > .git/hooks/post-merge; \
  else echo "nbdev's git hooks could not be installed; everything else works without them."; fi
endef

# a profile says how many jobs run at a time, unless CORES is given
ON = $(if $(PROFILE),$(PROFILE:%=--profile %) $(if $(filter %gpus %gpus/,$(PROFILE)),--resources gpu=$(GPUS)) $(if $(filter-out file,$(origin CORES)),--cores $(CORES)),--cores $(CORES))

reproduce: $(DONE) ## train, measure, draw and write RESULTS.md; TIER=tiny STUDY=headline CORES=all PROFILE=
	@$(BIN)/snakemake $(ON) --nolock --rerun-incomplete --keep-going --quiet host reason --config tier=$(TIER) study=$(STUDY)

bench: $(DONE) ## images/s, memory and share of the device's peak; TIER=tiny
	$(BIN)/python -m papermill nbs/studies/bench.ipynb data/runs/$(TIER)-bench.ipynb -p tier $(TIER) --log-output --no-progress-bar
	$(BIN)/python -m gdpt results --tier $(TIER)

lab: $(DONE) ## JupyterLab, opened at the tour
	JUPYTER_CONFIG_PATH="$(CURDIR)/$(VENV)/.jupyter" $(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) nbs/index.ipynb

# Material for MkDocs announces its successor at every start; the site loads nothing from elsewhere, so it stays as it is.
docs: $(DONE) ## the site, into site/: notebooks, studies with what they left, the API; no dead link
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "Read it: $(BIN)/python -m http.server -d site 8000, then http://localhost:8000"

lint: $(DONE)
	$(BIN)/ruff check gdpt tests docs

test: lint ## lint, run the library notebooks and tests/: what CI runs
	$(NOTEBOOKS)
	$(PYTEST) -m "not slow"

test-all: lint ## the same with the slow cells and tests
	$(NOTEBOOKS) --flags slow
	$(PYTEST)

export: $(DONE) ## notebooks to library: strip outputs, clean, write gdpt/
	@grep -ls '^ *"output_type":' nbs/*.ipynb nbs/*/*.ipynb | xargs -r $(BIN)/jupyter nbconvert --log-level WARN --clear-output --inplace
	@$(BIN)/nbdev_clean
	@$(BIN)/nbdev_export

lock: $(DONE) ## requirements.txt from requirements.in (pins move only where they must)
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-annotate requirements.in -o requirements.txt

clean: ## remove runs, caches and build leftovers
	@rm -rf data/runs data/cache data/*smoke* figures/*smoke* site .snakemake build dist *.egg-info _docs _proc .pytest_cache .ruff_cache
	@find gdpt nbs tests -name __pycache__ -prune -exec rm -rf {} + -o -name .ipynb_checkpoints -prune -exec rm -rf {} +
	@echo "Kept: $(VENV), and under data/ and figures/ the tables, pictures and data sets that are no run's leftovers."

clean-all: clean ## ... and the environment
	@rm -rf $(VENV) .gitconfig
	@[ ! -d .git ] || git config --local --remove-section merge.nbdev-merge 2>/dev/null || true
	@echo "Removed $(VENV) as well."
