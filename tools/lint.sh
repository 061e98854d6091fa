#!/usr/bin/env bash
# Check or mend the format: tools/lint.sh [--check] FILE_OR_FOLDER ...
# Uses the formatters of $VENV (default .venv) if it has them. Otherwise a small environment of
# their own, .venv-lint, is made: lint needs neither torch nor Detectron2.
set -euo pipefail
cd "$(dirname "$0")/.."
py=${VENV:-.venv}/bin/python
if ! { [ -x "$py" ] && "$py" -c 'import black, isort, flake8' 2>/dev/null; }; then
  py=.venv-lint/bin/python
  wanted=$(cat requirements-lint.txt constraints.txt | cksum)
  if [ "$(cat .venv-lint/.wanted 2>/dev/null)" != "$wanted" ]; then
    echo "lint: installing the formatters into '.venv-lint' ..."
    "${PYTHON:-python3}" -m venv .venv-lint
    "$py" -m pip install --quiet --disable-pip-version-check -r requirements-lint.txt -c constraints.txt
    echo "$wanted" >.venv-lint/.wanted
  fi
fi
if [ "${1:-}" = --check ]; then
  shift
  "$py" -m black --check --quiet "$@" && "$py" -m isort --check --quiet "$@" ||
    { echo "lint: run 'make format'" >&2; exit 1; }
  "$py" -m flake8 "$@"
else
  "$py" -m black --quiet "$@"
  "$py" -m isort --quiet "$@"
fi
