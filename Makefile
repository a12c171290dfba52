# Everything happens in .venv, made from the versions in constraints.txt; nothing is installed outside this folder.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test unit contract integration e2e chaos lint bench constraints clean

VENV ?= .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
# `load` and `peer` are started by other benchmarks, with arguments.
BENCHES = $(filter-out load peer,$(basename $(notdir $(shell grep -l '^if __name__' bench/*.py))))
# Files run side by side, each worker with a broker and a ClickHouse of its own; the long ones begin first. One more
# worker than there are cores: a third of the time is spent waiting.
FOLDERS := chaos e2e model integration contract unit
WORKERS ?= 3

help: ## show this list
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.installed ## make .venv from the pinned versions (once; again when pyproject.toml or constraints.txt change)

# What is imported and compiled once here need not be by each of several processes at once.
$(VENV)/.installed: pyproject.toml constraints.txt
	@.ci/venv $(VENV)
	@echo "tallyman: installing the pinned packages into $(VENV) (about two minutes the first time)" >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[all,dev]'
	@$(BIN)/python -c 'import pipeline.worker; from pipeline.compiled import load_id_kernel, load_kernel; load_kernel(); load_id_kernel()' >/dev/null 2>&1 || true
	@touch $@

demo: setup ## this host and a month of a small cloud, through Kafka and ClickHouse, to alarms and invoices
	@$(BIN)/python -m examples.demo $(DEMO)

test: setup ## all tests, on a real Kafka broker and the real ClickHouse engine
	@folder=$$(.ci/memory); trap 'rm -rf "$$folder"' EXIT; \
	$(PYTEST) -n $(WORKERS) --dist loadfile --no-loadscope-reorder $${folder:+--basetemp="$$folder/tests"} \
		$(wildcard $(addprefix tests/,$(FOLDERS))) $(PYTEST_OPTIONS)

unit: setup ## the tests that need no services
	@$(PYTEST) $(wildcard tests/unit tests/contract) $(PYTEST_OPTIONS)

integration e2e: setup
	@$(PYTEST) tests/$@ $(PYTEST_OPTIONS)

chaos: setup ## ten million events under a hundred kills, full disks, wrong clocks and zombies, and every row compared (CHAOS="--help")
	@$(BIN)/python -m tests.chaos.whole_path $(CHAOS)

lint: setup ## ruff, mypy --strict and the import arrows
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/mypy --strict examples
	@$(BIN)/lint-imports

bench: setup ## each performance claim, measured here and printed as a table
	@missed=; \
	for name in $(BENCHES); do \
		echo "== python -m bench.$$name"; $(BIN)/python -m bench.$$name || missed="$$missed $$name"; \
	done; \
	if [ -n "$$missed" ]; then echo "missed or failed:$$missed" >&2; exit 1; fi

constraints: ## resolve all versions anew, in an empty virtual environment, and write constraints.txt
	@.ci/pin constraints.txt

clean: ## remove what the demo, the tests and the linters left (not .venv)
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
