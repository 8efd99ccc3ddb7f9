# Two commands on a fresh machine: `make demo` and `make test`. Every target makes the environment if it is missing.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
READY   = $(VENV)/.ready
# Files side by side, in a process for each core: a test never shares its file's fixtures with another process.
PYTEST  = $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile

.PHONY: demo test test-slow test-gpu lint types bench docs clean

$(READY): setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; try: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev,encoders]'
	touch $@

demo: $(READY)
	$(BIN)/python -m mmrec_lmm demo

test: $(READY)
	$(PYTEST) -m 'not slow and not gpu'

test-slow: $(READY)
	$(PYTEST) -m 'slow and not gpu'

test-gpu: $(READY)
	$(BIN)/python -m pytest -m gpu -rs

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m benchmarks.host
	$(BIN)/python -m benchmarks.models
	$(BIN)/python -m benchmarks.encoders
	$(BIN)/python -m benchmarks.joint
	$(BIN)/python -m benchmarks.small_runs

docs: $(READY)
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	$(BIN)/python -m sphinx -q -W --keep-going -c docs/site docs build/site
	$(BIN)/python docs/site/links.py build/site

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
