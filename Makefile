# tenfold: `make` lists the commands. Each creates .venv and installs what it needs by itself.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench stress docs dist clean

help: ## list the commands
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.venv/.base: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'tenfold needs Python 3.11 or newer: make PYTHON=/path/to/python3.11'; exit 1; }
	$(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) -e '.[train,report]'
	@touch $@

.venv/.dev: .venv/.base
	$(PIP) -e '.[dev]'
	@touch $@

demo: .venv/.base ## train on the embedded data, compress, recover; a table, and runs/demo/report.html
	$(BIN)/python examples/demo.py --out runs/demo

test: .venv/.dev ## the whole test suite; what CI runs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -q

lint: .venv/.dev ## style, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports --no-cache

format: .venv/.dev ## rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/.dev ## speed and memory; writes JSON to benchmarks/results
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks

stress: .venv/.dev ## kill what writes, feed what reads; some ten minutes; writes benchmarks/results/stress.json
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m tools.stress

docs: .venv/.dev ## rewrite what is made from results: tables, pictures; reports, which are not committed
	$(BIN)/python -m tools.pages

dist: .venv/.base ## build the wheel and the source archive, into dist/
	$(PIP) build
	$(BIN)/python -m build --outdir dist .

clean: ## remove the environment and caches
	rm -rf .venv build dist .pytest_cache .ruff_cache .hypothesis
