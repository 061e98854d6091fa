"""Methods know tensors and shapes: nothing of a detector, a teacher, a config or a training run."""

import ast
import os

import pytest

from tests.helpers import ROOT

FOLDER = os.path.join(ROOT, "projects", "skd", "distillers")
FILES = [
    os.path.relpath(os.path.join(folder, name), FOLDER)
    for folder, _, names in os.walk(FOLDER)
    for name in names
    if name.endswith(".py")
]
# of Detectron2: the config, shapes and registries, boxes
ALLOWED = {
    "detectron2.config", "detectron2.layers", "detectron2.utils.registry", "detectron2.structures",
    "detectron2.modeling.poolers",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(FILES))
def test_distillers_import_nothing_else(name):
    with open(os.path.join(FOLDER, name)) as f:
        nodes = list(ast.walk(ast.parse(f.read())))
    depth = name.count(os.sep) + 1  # as many dots lead to skd.distillers, one more beyond it
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            assert node.level <= depth, f"line {node.lineno} imports from beyond distillers/"
            modules = [node.module] if node.level == 0 else []
        else:
            modules = [n.name for n in node.names] if isinstance(node, ast.Import) else []
        for module in modules:
            root = module.split(".")[0]
            assert root != "skd" and (root != "detectron2" or module in ALLOWED), module


@pytest.mark.parametrize("name", sorted(FILES))
def test_only_from_config_is_given_a_config(name):
    """Only from_config, by which Detectron2 takes a class's arguments out of one, has a config."""
    with open(os.path.join(FOLDER, name)) as f:
        tree = ast.parse(f.read())
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    bridges = [n for n in functions if n.name == "from_config"]
    assert bool(bridges) == (name == "base.py")
    used = {id(n) for n in ast.walk(tree) if getattr(n, "id", getattr(n, "arg", "")) == "cfg"}
    assert used <= {id(n) for bridge in bridges for n in ast.walk(bridge)}
