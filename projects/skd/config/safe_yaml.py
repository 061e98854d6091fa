"""
Config files are data. Detectron2 loads YAML with every ``!!python`` tag enabled, because its
RetinaNet configs compute their anchors by ``eval``; a file from elsewhere could run anything that
way. Files are therefore looked through, without constructing what is in them, before Detectron2
gets them.
"""

import ast
import os
from typing import Iterator

import yaml
from detectron2.utils.file_io import PathManager

from ..runtime.checkpoint import TRUST_VARIABLE, is_trusted

_PYTHON = "tag:yaml.org,2002:python/"
_HARMLESS = tuple(_PYTHON + kind for kind in ("tuple", "str", "int", "float", "bool", "none"))
_ARITHMETIC = (
    ast.Expression, ast.Constant, ast.List, ast.Tuple, ast.ListComp, ast.comprehension, ast.Name,
    ast.Load, ast.Store, ast.BinOp, ast.UnaryOp, ast.USub, ast.UAdd, ast.Add, ast.Sub, ast.Mult,
    ast.Div, ast.FloorDiv, ast.Pow, ast.Mod,
)  # fmt: skip


class UnsafeConfigError(RuntimeError):
    """A config file that would run code."""


def check_yaml(path: str) -> None:
    """
    Look through a YAML file and those it is based on.

    Raises:
        UnsafeConfigError: it has a Python tag other than ``eval`` of plain arithmetic, and
            ``SKD_TRUST_CHECKPOINTS`` does not name it.
        ValueError: it is no YAML.
    """
    seen = set()
    waiting = [path]
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue  # Detectron2 tells what a circle is
        seen.add(path)
        try:
            with PathManager.open(path, "r") as f:
                root = yaml.compose(f, Loader=yaml.SafeLoader)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"Config file '{path}' is no YAML: {error}") from error
        if root is None:
            continue
        if not is_trusted(path):
            for node in _nodes(root):
                if node.tag.startswith(_PYTHON) and not _is_harmless(node):
                    raise UnsafeConfigError(
                        f"Config file '{path}', line {node.start_mark.line + 1}, would run code: "
                        f"{node.tag.replace('tag:yaml.org,2002:', '!!')}. If you trust who made "
                        f"it, name it in the environment variable {TRUST_VARIABLE}."
                    )
        waiting += _bases(root, os.path.dirname(path))


def _nodes(node: yaml.Node) -> Iterator[yaml.Node]:
    waiting, seen = [node], set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:  # anchors may make circles
            continue
        seen.add(id(node))
        yield node
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            waiting += [part for pair in node.value for part in pair]


def _is_harmless(node: yaml.Node) -> bool:
    if node.tag in _HARMLESS:
        return True
    if node.tag != f"{_PYTHON}object/apply:eval" or not isinstance(node, yaml.SequenceNode):
        return False
    return len(node.value) == 1 and _is_arithmetic(str(node.value[0].value))


def _is_arithmetic(text: str) -> bool:
    """Numbers, lists and comprehensions of them: nothing that is called or looked up."""
    try:
        nodes = list(ast.walk(ast.parse(text.strip(), mode="eval")))
    except (SyntaxError, ValueError, RecursionError):
        return False
    bound = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    used = {n.id for n in nodes if isinstance(n, ast.Name)}
    # powers of powers take forever
    powers = sum(isinstance(n, ast.Pow) for n in nodes)
    return all(isinstance(n, _ARITHMETIC) for n in nodes) and used <= bound and powers <= 4


def _bases(root: yaml.Node, folder: str) -> Iterator[str]:
    for key, value in root.value if isinstance(root, yaml.MappingNode) else ():
        if key.value == "_BASE_":
            names = value.value if isinstance(value, yaml.SequenceNode) else [value]
            for name in names:
                name = os.path.expanduser(str(name.value))
                absolute = name.startswith(("/", "http://", "https://"))
                yield name if absolute else os.path.join(folder, name)
