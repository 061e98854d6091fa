"""tools/setup.sh, as far as it can be tried without the network."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

import skd
from tests.helpers import ROOT, read

REQUIREMENTS = ("requirements.txt", "requirements-test.txt", "requirements-lint.txt")


def setup(cwd=ROOT, **environment):
    return subprocess.run(
        ["bash", os.path.join(str(cwd), "tools", "setup.sh")],
        env={**os.environ, **environment}, text=True, capture_output=True, timeout=120,
    )  # fmt: skip


def test_a_second_time_does_nothing():
    stamp = os.path.join(sys.prefix, ".skd-setup")
    if not (os.path.exists(stamp) and open(stamp).read().endswith(f" {ROOT}\n")):
        pytest.skip("this environment was not made from this checkout")
    done = setup(VENV=sys.prefix)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_missing_python_is_one_clear_sentence(tmp_path):
    done = setup(VENV=str(tmp_path / "venv"), PYTHON="python-of-nowhere")
    assert done.returncode == 1 and not os.path.exists(tmp_path / "venv")
    assert (
        done.stderr.startswith("setup: 'python-of-nowhere' not found")
        and done.stderr.count("\n") == 1
    )


def test_old_python_is_one_clear_sentence(tmp_path):
    old = tmp_path / "python2"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 2.7.18" || exit 1\n')
    old.chmod(0o755)
    done = setup(VENV=str(tmp_path / "venv"), PYTHON=str(old))
    assert done.returncode == 1
    assert "Python 2.7.18 is too old" in done.stderr and done.stderr.count("\n") == 1


def test_an_installed_detectron2_is_kept(tmp_path):
    """It is kept in a folder with a space; a stand-in for Python notes what pip is told."""
    root = tmp_path / "a folder"
    for name in ("tools/setup.sh", *REQUIREMENTS, "requirements-detectron2.txt",
                 "requirements.lock", "constraints.txt", "pyproject.toml"):  # fmt: skip
        os.makedirs(os.path.dirname(root / name), exist_ok=True)
        shutil.copy(os.path.join(ROOT, name), root / name)
    python = root / "venv" / "bin" / "python"
    os.makedirs(python.parent)
    log = tmp_path / "log"
    python.write_text(f'#!/bin/sh\necho "$@" >> "{log}"\n')  # any import succeeds
    python.chmod(0o755)
    done = setup(root, VENV="venv")
    assert done.returncode == 0, done.stderr
    assert "keeping the Detectron2 and the torch that are there" in done.stdout
    calls = log.read_text()
    assert all(name in calls for name in REQUIREMENTS)
    assert "detectron2.txt" not in calls and "constraints.txt" not in calls
    log.unlink()
    assert setup(root, VENV="venv").stdout == "" and not log.exists()
    with open(root / "requirements.txt", "a") as f:
        f.write("another\n")
    assert setup(root, VENV="venv").returncode == 0 and log.exists()


def pins(name):
    """Versions by package, of lines like name==1.2."""
    found = re.findall(r"^([\w.-]+)==([^ \n]+)", read(name), re.M)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


def test_the_lock_has_the_tested_versions_with_hashes():
    lock = pins("requirements.lock")
    assert pins("constraints.txt").items() <= lock.items()
    wanted = re.findall(r"^([\w.-]+)", "\n".join(map(read, REQUIREMENTS)), re.M)
    assert {re.sub(r"[-_.]+", "-", name).lower() for name in wanted} <= set(lock)
    entries = re.split(r"\n(?=\S)", read("requirements.lock"))
    assert len(entries) > 100
    for entry in entries:
        assert entry.startswith("#") or "--hash=sha256:" in entry, entry
    hosts = re.findall(r"https?://|file:", read("requirements.lock"))
    assert not hosts


def test_pre_commit_has_the_tested_formatters():
    hooks = re.findall(r"dependencies: \[([\w.-]+)==(.+)\]", read(".pre-commit-config.yaml"))
    tested = pins("constraints.txt")
    wanted = re.findall(r"^\w+", read("requirements-lint.txt"), re.M)
    assert dict(hooks) == {name: tested[name] for name in wanted}


def test_the_citation_names_this_version():
    assert f"\nversion: {skd.__version__}\n" in read("CITATION.cff")


@pytest.mark.skipif(
    (*sys.version_info[:2], sys.platform) != (3, 11, "linux"), reason="the lock is for another"
)
def test_the_locked_set_installs():
    """pip accepts it as a whole; the packages of this environment are those of the lock."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--require-hashes",
         "--disable-pip-version-check", "--no-deps", "-r", os.path.join(ROOT, "requirements.lock"),
         "--report", "-"],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["install"] == []
