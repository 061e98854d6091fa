"""The wheel: made, installed beside Detectron2, and used outside of the checkout."""

import ast
import glob
import importlib
import os
import re
import subprocess
import sys
import zipfile

import pytest

import skd
from skd.files import configs_dir
from tests.helpers import ROOT, read
from tests.processes import environment


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Made from a copy, so that nothing is left in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    names = ["pyproject.toml", "README.md", "LICENSE", "configs", "projects"]
    subprocess.run(["cp", "-a", *(os.path.join(ROOT, n) for n in names), source], check=True)
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--disable-pip-version-check", "-w", folder, source],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = glob.glob(str(folder / "skd-*.whl"))
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder the wheel is installed into."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
         "--disable-pip-version-check", "--target", folder, wheel],
        check=True, timeout=300,
    )  # fmt: skip
    return folder


def outside(installed, cwd, *args):
    """A process elsewhere that finds the wheel first."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *args], cwd=cwd, capture_output=True, text=True,
        timeout=300, env={**environment(cwd), "PYTHONPATH": str(installed)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_wheel_holds_every_module_and_config(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = glob.glob(os.path.join(ROOT, "projects", "skd", "**", "*.py"), recursive=True)
    code = {os.path.relpath(path, os.path.join(ROOT, "projects")) for path in modules}
    configs = glob.glob(os.path.join(ROOT, "configs", "**", "*.*"), recursive=True)
    data = {"skd/" + os.path.relpath(path, ROOT) for path in configs if "__pycache__" not in path}
    assert len(code) > 40 and len(data) > 30
    assert code | data <= names
    assert f"skd-{skd.__version__}" in os.path.basename(wheel)
    assert all(name.startswith(("skd/", f"skd-{skd.__version__}.dist-info/")) for name in names)


def test_import_and_configs_outside_of_the_checkout(installed, tmp_path):
    code = (
        "import os, skd; from skd.files import configs_dir; from detectron2.config import get_cfg;"
        "from detectron2.config import LazyConfig; cfg = get_cfg(); skd.add_skd_config(cfg);"
        "f = os.path.join(configs_dir(), 'COCO-Detection', 'skd_{}');"
        "cfg.merge_from_file(f.format('retinanet_R_50_FPN_1x.yaml'));"
        "LazyConfig.load(f.format('fcos_R_50_FPN_1x.py'));"
        "print(skd.__version__, cfg.MODEL.META_ARCHITECTURE, skd.__file__)"
    )
    version, name, path = outside(installed, tmp_path, "-c", code).split()
    assert (version, name) == (skd.__version__, "DistillRCNN")
    assert path.startswith(str(installed))


def test_only_what_detectron2_brings_is_needed(installed, tmp_path):
    """Detectron2 does not ask for OpenCV, and nothing of our extras is in its environment."""
    code = (
        "import sys\n"
        "absent = 'cv2 scipy jinja2 optuna rich timm imagecorruptions onnx wandb mlflow'.split()\n"
        "sys.modules.update(dict.fromkeys(absent))\n"
        "import skd, skd.train_net, skd.evaluation, skd.visualization, skd.data\n"
        "skd.train_net.argument_parser()\n"
    )
    outside(installed, tmp_path, "-c", code)


def test_train_net_is_a_module(installed, tmp_path):
    printed = outside(installed, tmp_path, "-m", "skd.train_net", "--help")
    assert "--config-file" in printed and "--teacher" in printed


def test_the_configs_of_the_checkout_are_found():
    assert os.path.samefile(configs_dir(), os.path.join(ROOT, "configs"))


def modules():
    return glob.glob(os.path.join(ROOT, "projects", "skd", "**", "*.py"), recursive=True)


def test_every_module_is_in_the_syntax_of_the_python_that_is_promised():
    wanted = re.search(r'requires-python = ">=3\.(\d+)"', read("pyproject.toml")).group(1)
    for path in modules():
        with open(path) as f:
            ast.parse(f.read(), path, feature_version=(3, int(wanted)))


def test_extras_are_what_the_requirements_name():
    text = read("pyproject.toml").split("[project.optional-dependencies]")[1].split("\n[")[0]
    extras = dict(re.findall(r"^(\w+) = \[(.*)\]", text, re.M))
    required = (read("requirements.txt") + read("requirements-test.txt")).split()
    assert set(extras) >= {"study", "tracking", "timm", "export"}
    for name in set(extras) - {"tracking"}:  # the trackers are the user's own
        assert set(re.findall(r'"([^"]+)"', extras[name])) <= set(required), name


def test_the_entry_point_is_a_function():
    name, function = re.search(r'skd-train = "([^:"]+):(\w+)"', read("pyproject.toml")).groups()
    assert callable(getattr(importlib.import_module(name), function))
