"""
YAML as data: every config, study and LazyConfig ``.yaml`` of the project is read here, once.

Detectron2 reads YAML with ``yaml.unsafe_load``, because its RetinaNet configs compute their anchors
by ``eval``; a file from elsewhere could run anything that way. This reader builds numbers, strings,
lists, tuples and mappings, works the anchors' arithmetic out itself, follows ``_BASE_`` as
Detectron2 does, and bounds what a small file can grow into. docs/security.md says what it promises.
"""

import ast
import operator
import os
from typing import Any, Dict, List, Optional, Set, Tuple

import yaml
from detectron2.layers import ShapeSpec

from ..runtime.downloads import CATALOG, is_file, open_bounded
from ..runtime.trust import TRUST_VARIABLE, is_trusted
from ..runtime.user_errors import UserError

BASE_KEY = "_BASE_"
MAX_BYTES = 2**20  # of a file and all it is based on
MAX_WRITTEN_OUT = 2**22  # characters, with every alias written out
MAX_VALUES = 20_000  # also with every alias written out; reading so many takes seconds
MAX_DEPTH = 40  # of values in values
MAX_FILES = 64
MAX_FILE_DEPTH = 16  # of files based on files
MAX_NUMBER_LENGTH = 100  # characters; base-60 numbers take quadratic time
MAX_EXPRESSION_LENGTH = 1000  # characters
MAX_STEPS = 10_000  # of one expression
MAX_INT = 2**63  # what NumPy and torch hold

_YAML = "tag:yaml.org,2002:"
_PYTHON = f"{_YAML}python/"
_EVAL = f"{_PYTHON}object/apply:eval"


class UnsafeConfigError(UserError):
    """A config file that would run code."""


def read_yaml(path: str) -> Any:
    """
    Args:
        path: a file, or a URL.

    Returns:
        The file's content. ``_BASE_`` is a key like any other here.

    Raises:
        FileNotFoundError: there is no such file.
        UnsafeConfigError: it would run code, and ``SKD_TRUST_CHECKPOINTS`` does not name it.
        ValueError: it is no YAML, or too large.
    """
    return _read(path, MAX_BYTES)[0]


def read_yaml_with_base(path: str) -> Dict[str, Any]:
    """
    What ``CfgNode.load_yaml_with_base`` returns: a config file on the files its ``_BASE_`` names,
    relative to its own folder.

    Raises:
        FileNotFoundError, UnsafeConfigError, ValueError: as :func:`read_yaml`, for each of them.
    """
    return _Bases().read(path, [])


class _Bases:
    """One config file with all it is based on, within common limits."""

    def __init__(self):
        self.files, self.bytes = 0, 0

    def read(self, path: str, above: List[str]) -> Dict[str, Any]:
        self._check(path, above)
        cfg, size = _read(path, MAX_BYTES - self.bytes)
        self.files, self.bytes = self.files + 1, self.bytes + size
        cfg = {} if cfg is None else cfg
        if not isinstance(cfg, dict):
            raise ValueError(f"Config file '{path}' holds a {_kind(cfg)}; it must be KEY: VALUE.")
        if BASE_KEY not in cfg:
            return cfg
        merged: Dict[str, Any] = {}
        for name in _base_names(cfg.pop(BASE_KEY), path):
            _merge(self.read(_base_path(name, path), [*above, path]), merged, path)
        _merge(cfg, merged, path)
        return merged

    def _check(self, path: str, above: List[str]) -> None:
        if path in above:
            raise ValueError(f"Config file '{path}' is based on itself: see {BASE_KEY} in it.")
        if len(above) >= MAX_FILE_DEPTH or self.files >= MAX_FILES:
            raise ValueError(
                f"Config file '{(above or [path])[0]}' is based on too many files; it must be at "
                f"most {MAX_FILES}, and {MAX_FILE_DEPTH} deep."
            )


def _base_names(value: Any, path: str) -> List[str]:
    names = value if isinstance(value, list) else [value]
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"{BASE_KEY} in '{path}' is {value!r:.80}; it must be a file or a list.")
    return names


def _base_path(name: str, path: str) -> str:
    """The path of a ``_BASE_``, as Detectron2 finds it."""
    if name.startswith("~"):
        name = os.path.expanduser(name)
    if name.startswith(("/", "https://", "http://")):
        return name
    return os.path.join(os.path.dirname(path), name)


def _merge(new: Dict[str, Any], into: Dict[str, Any], path: str) -> None:
    for key, value in new.items():
        if isinstance(value, dict) and key in into:
            if not isinstance(into[key], dict):
                raise ValueError(f"Config file '{path}': {key} is no mapping in its {BASE_KEY}.")
            # a copy: by an alias the mapping may stand in other places, which keep their values
            into[key] = dict(into[key])
            _merge(value, into[key], path)
        else:
            into[key] = value


def outline(path: str) -> Dict[str, Set[str]]:
    """
    A file's keys, and those of the mappings below them. Nothing is built, so that also a file that
    :func:`read_yaml` refuses can be told what it is.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no YAML, or too large.
    """
    root = _load(_bytes(path, MAX_BYTES), path, "get_single_node")
    return {name: set(_keys(node)) for name, node in _keys(root).items()}


def _keys(node: Optional[yaml.Node]) -> Dict[str, yaml.Node]:
    pairs = node.value if isinstance(node, yaml.MappingNode) else ()
    return {key.value: value for key, value in pairs if isinstance(key, yaml.ScalarNode)}


def _read(path: str, limit: int) -> Tuple[Any, int]:
    """Content and size, in bytes, of one file."""
    data = _bytes(path, limit)
    if is_trusted(path):
        return yaml.unsafe_load(data), len(data)
    return _load(data, path), len(data)


def _bytes(path: str, limit: int) -> bytes:
    if path.startswith(CATALOG):
        raise ValueError(f"Config file '{path}' is a name of weights; it must be a config's.")
    if not is_file(path):
        raise FileNotFoundError(f"Config file '{path}' does not exist, or is no file.")
    data = open_bounded(path, limit)
    if len(data) > limit:
        raise ValueError(
            f"Config file '{path}' is too large; with all it is based on it must be at most "
            f"{MAX_BYTES} bytes."
        )
    return data


def _load(data: bytes, path: str, what: str = "get_single_data") -> Any:
    try:
        return getattr(_Loader(data.decode("utf-8-sig")), what)()
    except _Refused as error:
        raise UnsafeConfigError(
            f"Config file '{path}', line {error.line}, would run code: {error}. If you trust who "
            f"made it, name it in the environment variable {TRUST_VARIABLE}."
        ) from None
    except Exception as error:  # a broken YAML may raise anything
        raise ValueError(f"Config file '{path}' is no YAML: {error}") from error


class _Refused(Exception):
    def __init__(self, node: yaml.Node):
        super().__init__(ascii(node.tag.replace(_YAML, "!!"))[1:-1][:100])
        self.line = node.start_mark.line + 1


class _Loader(yaml.SafeLoader):
    """PyYAML's loader of plain data, with tuples and arithmetic, and with bounds."""

    def __init__(self, text: str):
        super().__init__(text)
        self._depth, self._count = 0, 0
        self._sizes: Dict[yaml.Node, Any] = {}  # of finished nodes: characters, depth, values

    def compose_node(self, parent: Optional[yaml.Node], index: Any) -> yaml.Node:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ValueError(f"values in values, more than {MAX_DEPTH} deep")
        self._count += 1
        if self._count > MAX_VALUES:  # before it has read all of them
            raise ValueError(f"more than {MAX_VALUES} values")
        alias = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if not alias:
            self._sizes[node] = self._measure(node)
        elif node not in self._sizes:
            raise ValueError(f"the value in line {node.start_mark.line + 1} contains itself")
        return node

    def _measure(self, node: yaml.Node) -> Any:
        """Size, depth and number with all aliases written out, before any of it is constructed."""
        if isinstance(node, yaml.ScalarNode):
            return len(node.value) + 1, 1, 1
        if isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
        else:
            children = node.value
        size = MAX_STEPS if node.tag == _EVAL else 1
        size += sum(self._sizes[child][0] for child in children)
        depth = 1 + max((self._sizes[child][1] for child in children), default=0)
        count = 1 + sum(self._sizes[child][2] for child in children)
        if size > MAX_WRITTEN_OUT or depth > MAX_DEPTH or count > MAX_VALUES:
            raise ValueError(
                f"aliases in line {node.start_mark.line + 1} make it too large: at most "
                f"{MAX_WRITTEN_OUT} characters, {MAX_VALUES} values, and {MAX_DEPTH} values in "
                "values"
            )
        return size, depth, count

    def construct_yaml_int(self, node: yaml.Node) -> int:
        self._check_length(node)
        value = super().construct_yaml_int(node)
        if abs(value) >= MAX_INT:  # also, Python's hashes of such numbers can be made to collide
            raise ValueError(f"the number in line {node.start_mark.line + 1} has over 64 bits")
        return value

    def construct_yaml_float(self, node: yaml.Node) -> float:
        self._check_length(node)
        return super().construct_yaml_float(node)

    def _check_length(self, node: yaml.Node) -> None:
        if len(self.construct_scalar(node)) > MAX_NUMBER_LENGTH:
            raise ValueError(f"the number in line {node.start_mark.line + 1} is too long")

    def construct_tuple(self, node: yaml.Node) -> tuple:
        return tuple(self.construct_sequence(node, deep=True))

    def construct_arithmetic(self, node: yaml.Node) -> Any:
        values = node.value if isinstance(node, yaml.SequenceNode) else []
        if len(values) != 1 or not isinstance(values[0], yaml.ScalarNode):
            raise _Refused(node)
        try:
            return evaluate(values[0].value)
        except ValueError:
            raise _Refused(node) from None

    def construct_shape(self, node: yaml.Node) -> ShapeSpec:
        """LazyConfig.save writes the shapes of Detectron2's own models so."""
        fields = self.construct_mapping(node, deep=True)
        if not all(v is None or isinstance(v, int) for v in fields.values()):
            raise _Refused(node)
        return ShapeSpec(**fields)

    def refuse(self, node: yaml.Node) -> None:
        if node.tag.startswith(_PYTHON):
            raise _Refused(node)
        raise ValueError(f"unknown tag in line {node.start_mark.line + 1}: {node.tag!r:.100}")


_Loader.add_constructor(f"{_YAML}int", _Loader.construct_yaml_int)
_Loader.add_constructor(f"{_YAML}float", _Loader.construct_yaml_float)
_Loader.add_constructor(f"{_PYTHON}tuple", _Loader.construct_tuple)
_Loader.add_constructor(_EVAL, _Loader.construct_arithmetic)
_Loader.add_constructor(
    f"{_PYTHON}object:detectron2.layers.shape_spec.ShapeSpec", _Loader.construct_shape
)
for _tag, _as in {
    "str": "str", "unicode": "str", "int": "int", "long": "int", "float": "float", "bool": "bool",
    "none": "null", "list": "seq", "dict": "map",
}.items():  # fmt: skip
    _Loader.add_constructor(_PYTHON + _tag, _Loader.yaml_constructors[_YAML + _as])
_Loader.add_constructor(None, _Loader.refuse)


_BINARY = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.Div: operator.truediv, ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}  # fmt: skip
_UNARY = {ast.USub: operator.neg, ast.UAdd: operator.pos}


def evaluate(text: str) -> Any:
    """
    The value of an arithmetic expression: numbers, lists and tuples of them, and comprehensions,
    as in ``[[x, x * 2**(1.0/3)] for x in [32, 64]]``.

    Raises:
        ValueError: it is something else, too long, or has no finite value.
    """
    try:
        if len(text) > MAX_EXPRESSION_LENGTH:
            raise ValueError("too long")
        return _Arithmetic().value(ast.parse(text.strip(), mode="eval").body, {})
    except (SyntaxError, ArithmeticError, RecursionError, MemoryError, TypeError) as error:
        raise ValueError(f"{text!r:.100} is no arithmetic") from error


class _Arithmetic:
    def __init__(self):
        self.steps = 0

    def value(self, node: ast.AST, names: Dict[str, Any]) -> Any:
        self.steps += 1
        method = getattr(self, f"_{type(node).__name__}", None)
        if method is None or self.steps > MAX_STEPS:
            raise ValueError(f"{type(node).__name__} is no arithmetic, or there is too much of it")
        return method(node, names)

    def _Constant(self, node: ast.Constant, names: Dict[str, Any]) -> Any:
        return _number(node.value)

    def _Name(self, node: ast.Name, names: Dict[str, Any]) -> Any:
        if node.id not in names:
            raise ValueError("a name that is not a comprehension's")
        self.steps += _count(names[node.id])  # what is shared counts each time
        return names[node.id]

    def _List(self, node: ast.List, names: Dict[str, Any]) -> list:
        return [self.value(item, names) for item in node.elts]

    def _Tuple(self, node: ast.Tuple, names: Dict[str, Any]) -> tuple:
        return tuple(self.value(item, names) for item in node.elts)

    def _UnaryOp(self, node: ast.UnaryOp, names: Dict[str, Any]) -> Any:
        if type(node.op) not in _UNARY:
            raise ValueError("an operator other than + - * / // % **")
        return _number(_UNARY[type(node.op)](_number(self.value(node.operand, names))))

    def _BinOp(self, node: ast.BinOp, names: Dict[str, Any]) -> Any:
        left, right = (_number(self.value(x, names)) for x in (node.left, node.right))
        if type(node.op) not in _BINARY:
            raise ValueError("an operator other than + - * / // % **")
        if isinstance(node.op, ast.Pow) and abs(right) > 64:
            raise ValueError("a power above 64")  # each of at most 64 bits: 4096 bits at most
        return _number(_BINARY[type(node.op)](left, right))

    def _ListComp(self, node: ast.ListComp, names: Dict[str, Any]) -> list:
        scopes = [dict(names)]
        for loop in node.generators:
            if loop.ifs or loop.is_async or not isinstance(loop.target, ast.Name):
                raise ValueError("only 'for NAME in LIST'")
            scopes = [
                {**scope, loop.target.id: item}
                for scope in scopes
                for item in self._items(loop.iter, scope)
            ]
        return [self.value(node.elt, scope) for scope in scopes]

    def _items(self, node: ast.AST, names: Dict[str, Any]) -> Any:
        items = self.value(node, names)
        if not isinstance(items, (list, tuple)):
            raise ValueError("only 'for NAME in LIST'")
        self.steps += len(items)
        return items


def _count(value: Any) -> int:
    return 1 + sum(map(_count, value)) if isinstance(value, (list, tuple)) else 1


def _number(value: Any) -> Any:
    """A finite number of at most 64 bits, or ValueError."""
    if type(value) not in (int, float) or not abs(value) < MAX_INT:
        raise ValueError("not a number, or too large")
    return value


def _kind(value: Any) -> str:
    return type(value).__name__
