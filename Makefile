# The one list of commands. Each target makes its own environment in .venv on first use and brings it up to date when
# pyproject.toml changes. ARGS is handed on:  make test ARGS="-k fork"   make demo ARGS="--seconds 5"
# Another interpreter:  make clean test PYTHON=python3.13

PYTHON ?= python3
ARGS   ?=
BIN    := .venv/bin

# uv is used where it is installed; venv and pip do the same, slower.
ifneq ($(shell command -v uv 2>/dev/null),)
VENV    := uv venv --quiet --seed --clear --python "$(PYTHON)"
INSTALL := uv pip install --quiet --python $(BIN)/python
else
VENV    := "$(PYTHON)" -m venv --clear
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint types bench clean

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-12s %s\n", $$1, $$2 }'

demo: .venv/demo.stamp ## 15 s of a small shop's traffic on a PostgreSQL of its own, with a live view and a report
	@$(BIN)/otel-pgpool demo $(ARGS)

# Four at a time on any machine: most tests wait for a server most of their time.
test: .venv/dev.stamp ## every test, with branch coverage
	@$(BIN)/python -m pytest -n 4 --cov=otel_pgpool $(ARGS)

lint: .venv/dev.stamp ## ruff: rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: .venv/dev.stamp ## mypy, strict
	@$(BIN)/mypy

bench: .venv/dev.stamp ## side by side with the other pools; writes benchmarks/RESULTS.md
	@$(BIN)/python -m benchmarks $(ARGS)

clean: ## remove the environment, builds and caches
	@rm -rf .venv build dist .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache otel-pgpool-demo
	@find . -name .git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# The demo alone needs neither the test tools nor the peers, so it installs less. dev holds all of demo.
.venv/demo.stamp: pyproject.toml | $(BIN)/python
	@echo "Installing what the demo needs into .venv ..."
	@$(INSTALL) -e ".[demo]"
	@touch $@

.venv/dev.stamp: pyproject.toml | $(BIN)/python
	@echo "Installing the development tools into .venv (a minute or two the first time) ..."
	@$(INSTALL) -e ".[dev]"
	@touch .venv/demo.stamp $@

$(BIN)/python:
	@command -v "$(PYTHON)" >/dev/null || { echo "$(PYTHON) was not found: install Python 3.10 or later, or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "$(PYTHON) is $$("$(PYTHON)" --version 2>&1): Python 3.10 or later is needed. Name one: make PYTHON=python3.12" >&2; exit 1; }
	@echo "Making .venv with $$("$(PYTHON)" --version 2>&1) ..."
	@$(VENV) .venv
