# Needs Python >= 3.10 and make; everything else is put into .venv.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.10 python; do \
	$$p -c 'import sys, venv; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
TEST_PROCESSES ?= $(shell $(PYTHON) -c 'import os; print(min(8, os.cpu_count() or 1))')

PHOTOS ?=

.PHONY: demo test slow-test gpu-test bench check format lint types clean

demo: .venv/.installed  ## the whole story on scikit-learn's digits, a few minutes on two cores
	$(BIN)/beit demo --out runs/demo --resume

test: .venv/.installed-dev  ## the test suite
	$(BIN)/pytest -n $(TEST_PROCESSES)

slow-test: .venv/.installed-dev  ## long fault injections
	$(BIN)/pytest -m slow --timeout=1800

gpu-test: .venv/.installed-dev  ## what needs a CUDA device
	$(BIN)/pytest -m gpu

bench: .venv/.installed-dev  ## every benchmark; leave the machine alone meanwhile; PHOTOS=folder
	$(BIN)/python benchmarks/everything.py $(if $(PHOTOS),--data $(PHOTOS))

check: format lint types test  ## everything, in one command

format: .venv/.installed-dev
	$(BIN)/ruff format --check .

lint: .venv/.installed-dev
	$(BIN)/ruff check .

types: .venv/.installed-dev
	$(BIN)/mypy

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "beit needs Python 3.10 or newer: none was found; set PYTHON=/path/to/python" >&2; exit 2; }
	$(PYTHON) -m venv .venv

.venv/.installed: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/.installed-dev: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@ .venv/.installed

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache
