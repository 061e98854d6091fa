# `make demo` and `make test` do everything on a fresh machine; see README.md.
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
VENV ?= .venv
PYTHON ?= python3
PYTEST_ARGS ?= -n 2
BIN = "$(VENV)/bin/python"
CODE = configs projects tools tests train_net.py

.PHONY: setup demo test lint format study bench lock

setup:
	@VENV="$(VENV)" PYTHON="$(PYTHON)" bash tools/setup.sh

demo: setup
	@$(BIN) -W ignore tools/demo.py

test: setup
	@$(BIN) -m pytest $(PYTEST_ARGS)

lint: setup
	@$(BIN) -m black --check --quiet $(CODE) || { echo "lint: run 'make format'"; exit 1; }
	@$(BIN) -m isort --check --quiet $(CODE) || { echo "lint: run 'make format'"; exit 1; }
	@$(BIN) -m flake8 $(CODE)

format: setup
	@$(BIN) -m black --quiet $(CODE)
	@$(BIN) -m isort --quiet $(CODE)

study: setup
	@$(BIN) -W ignore tools/compare.py configs/shapes/study.yaml --work output/compare --output docs/results/study

bench: setup
	@$(BIN) -W ignore tools/benchmark $(BENCH_ARGS)

# Needs uv ('pip install uv').
lock:
	@head -2 requirements.lock >requirements.lock.new
	@uv pip compile requirements.txt -c constraints.txt --generate-hashes --python-version 3.11 \
	    --python-platform x86_64-manylinux_2_28 --no-emit-index-url --no-header --no-annotate --quiet \
	    >>requirements.lock.new
	@mv requirements.lock.new requirements.lock
