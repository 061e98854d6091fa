# `make demo` and `make test` do everything on a fresh machine; see README.md.
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
VENV ?= .venv
PYTHON ?= python3
PYTEST_ARGS ?= -n 2
BIN = "$(VENV)/bin/python"
CODE = configs projects tools tests train_net.py

.PHONY: setup demo test lint format study bench results lock

setup:
	@VENV="$(VENV)" PYTHON="$(PYTHON)" bash tools/setup.sh

demo: setup
	@$(BIN) -W ignore tools/demo.py

test: setup
	@$(BIN) -m pytest $(PYTEST_ARGS)

lint:
	@VENV="$(VENV)" PYTHON="$(PYTHON)" bash tools/lint.sh --check $(CODE)

format:
	@VENV="$(VENV)" PYTHON="$(PYTHON)" bash tools/lint.sh $(CODE)

study: setup
	@$(BIN) -W ignore tools/compare.py configs/shapes/study.yaml --work output/compare --output docs/results/study

bench: setup
	@$(BIN) -W ignore tools/benchmark.py $(BENCH_ARGS)

# The tables of the documents, from the results that are committed.
results: setup
	@$(BIN) -W ignore tools/results.py

# Needs uv ('pip install uv'). Keeps the versions of the lock that is there where they still fit.
lock:
	@head -2 requirements.lock >requirements.lock.head
	@uv pip compile requirements.txt requirements-test.txt requirements-lint.txt -c constraints.txt \
	    --generate-hashes --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
	    --no-emit-index-url --no-header --no-annotate --quiet -o requirements.lock >/dev/null
	@cat requirements.lock.head requirements.lock >requirements.lock.new
	@mv requirements.lock.new requirements.lock && rm requirements.lock.head
