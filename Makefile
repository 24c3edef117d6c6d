# Every target does its own set-up: a virtual environment in .venv, from the lock.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo demo-02 demo-03 demo-04 demo-04-recorded weekly index test bench lab lint setup lock clean
.DEFAULT_GOAL := demo

demo: setup ## the experiment: notebooks 01 to 05 on the shipped sample, 02 to 04 on what was recorded
	$(BIN)/geo run 01 smoke
	$(MAKE) --no-print-directory --jobs=2 demo-02 demo-03 demo-04 demo-04-recorded
	$(BIN)/geo run 05 smoke

# Two side by side, the longest first; 01 measures time and is alone.
demo-02: ; $(BIN)/geo run 02 recorded
demo-03: ; $(BIN)/geo run 03 recorded
demo-04: ; $(BIN)/geo run 04 smoke
demo-04-recorded: ; $(BIN)/geo run 04 recorded

NOTES ?= params/05_weekly/notes.md
weekly: setup ## the meeting's deck from the newest finished runs; NOTES=FILE with questions and next steps
	$(BIN)/geo weekly "notes=$(NOTES)"

index: setup ## outputs/index.html, a page of all runs
	$(BIN)/geo runs

test: setup ## all tests: no network, no GPU; none of them measures speed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder

bench: setup ## figures of speed beside their targets; no part of the tests
	$(BIN)/python tests/bench.py

lab: setup ## JupyterLab on the notebooks
	$(BIN)/jupyter lab --notebook-dir=.

lint: setup ## style, types and stripped notebooks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/nbstripout --verify --keep-id $(wildcard notebooks/*.ipynb)

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info[:2] <= (3, 12); sys.exit(None if ok else "Python 3.11 or 3.12 is needed, this is %s; name one: make PYTHON=python3.11" % sys.version.split()[0])'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e ".[dev]"
	@touch $@

lock: ## write requirements.lock anew from the pins in pyproject.toml
	rm -rf $(VENV)-lock && $(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet -e ".[dev]"
	$(VENV)-lock/bin/python -m pip list --format=freeze --exclude-editable --exclude pip --exclude setuptools \
		| sed 's/+cpu$$//' > requirements.lock
	rm -rf $(VENV)-lock

clean: ## remove the environment and caches; outputs stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build *.egg-info
