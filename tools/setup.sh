#!/usr/bin/env bash
# Make or complete the virtual environment in $VENV (default .venv). Safe to repeat: it installs
# nothing unless a file that says what to install has changed since the last time.
# An environment that has Detectron2 keeps it, its torch, and everything else it has.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
python=${PYTHON:-python3}
py="$venv/bin/python"
stamp="$venv/.skd-setup"

die() {
  echo "setup: $*" >&2
  exit 1
}

if [ ! -x "$py" ]; then
  command -v "$python" >/dev/null ||
    die "'$python' not found: install Python 3.11 or later, or name it with 'make PYTHON=...'."
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    die "$("$python" --version) is too old: install Python 3.11 or later, or name it with 'make PYTHON=...'."
  site=()
  if "$python" -W ignore -c 'import detectron2' 2>/dev/null; then
    site=(--system-site-packages)
  fi
  "$python" -m venv ${site[@]+"${site[@]}"} "$venv" ||
    die "could not make the environment '$venv': is Python's venv module installed (on Debian: apt-get install python3-venv)?"
fi

wanted=$(cat requirements* constraints.txt pyproject.toml tools/setup.sh | cksum)
if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted $PWD" ]; then
  exit 0
fi

echo "setup: installing into '$venv' (once; a few minutes and 6 GB on a fresh machine) ..."
pip() {
  "$py" -m pip install --quiet --disable-pip-version-check "$@"
}
if "$py" -W ignore -c 'import detectron2' 2>/dev/null; then
  echo "setup: keeping the Detectron2 and the torch that are there."
  pip -r requirements.txt -r requirements-test.txt -r requirements-lint.txt || die "pip failed; its message is above. Is the network up?"
else
  platform=$("$py" -c 'import platform, sys; print(*sys.version_info[:2], sys.platform, platform.machine())')
  if [ "$platform" = "3 11 linux x86_64" ]; then
    tested=(--require-hashes -r requirements.lock)
  else
    tested=(-r requirements.txt -r requirements-test.txt -r requirements-lint.txt -c constraints.txt)
  fi
  pip "${tested[@]}" ||
    die "pip failed; its message is above. Are the network up and 6 GB of disk free?"
  packages=$("$py" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  pip --no-deps --require-hashes --only-binary=:all: --python-version 3.10 \
    --target "$packages" -r requirements-detectron2.txt ||
    die "could not install Detectron2; pip's message is above."
  rm -rf "$packages/tools" # a stray package that comes with it
fi
pip --no-deps --no-build-isolation -e . || die "could not install skd; pip's message is above."
"$py" -W ignore -c 'import skd' || die "'import skd' failed in '$venv'; the error is above."
echo "$wanted $PWD" >"$stamp"
