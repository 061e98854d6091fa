"""Who may know whom: the imports of the package, read from its source."""

import ast
import os
import re
import subprocess
import sys
from functools import lru_cache
from typing import Dict, List, Set

import pytest

from tests.helpers import ROOT
from tests.processes import environment

PROJECTS = os.path.join(ROOT, "projects")

# What each room, and each file beside them, imports of its siblings. A name more is a decision
# about the design. A name of the package itself ("from skd import distill") is in no row: it would
# not say of which room it is.
ROOMS = {
    "config": {"distillers", "runtime"},
    "data": {"config", "runtime"},
    "distillers": set(),  # more about them in distillers/test_imports.py
    "engine": {"config", "data", "evaluation", "modeling", "runtime", "visualization"},
    "evaluation": set(),
    "modeling": {"config", "distillers", "runtime"},
    "runtime": set(),
    "study": {
        "config", "data", "distillers", "engine", "evaluation", "modeling", "runtime",
        "visualization", "files",
    },
    "visualization": {"distillers"},
}  # fmt: skip
FILES = {"files": set(), "train_net": {"config", "data", "engine", "runtime"}}


def python_files(folder: str) -> List[str]:
    return [
        os.path.join(path, name)
        for path, _, names in os.walk(folder)
        for name in names
        if name.endswith(".py")
    ]


def module_name(path: str) -> str:
    name = os.path.relpath(path, PROJECTS)[: -len(".py")].replace(os.sep, ".")
    return name[: -len(".__init__")] if name.endswith(".__init__") else name


@lru_cache(maxsize=None)
def imports(path: str) -> Set[str]:
    """Every module a file names in an import, those inside functions too, in full."""
    with open(path) as f:
        tree = ast.parse(f.read())
    package = module_name(path).split(".")
    if not path.endswith("__init__.py"):
        package = package[:-1]
    found: Set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found.update({module, *(f"{module}.{alias.name}" for alias in node.names)})
    return found


def room_imports() -> Dict[str, Set[str]]:
    """The siblings that any of a room's files imports, by room."""
    folder = os.path.join(PROJECTS, "skd")
    return {
        room: {name for path in python_files(os.path.join(folder, room)) for name in siblings(path)}
        - {room}
        for room in ROOMS
    }


def siblings(path: str) -> Set[str]:
    """The names right below the package that a file imports; "skd" for the package itself."""
    parts = [name.split(".") for name in imports(path)]
    return {p[1] if len(p) > 1 else "skd" for p in parts if p[0] == "skd"}


def test_the_rooms_are_those_of_the_design():
    folder = os.path.join(PROJECTS, "skd")
    rooms = {n for n in os.listdir(folder) if os.path.exists(f"{folder}/{n}/__init__.py")}
    assert rooms == set(ROOMS)


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_room_imports_only_whom_it_may_know(room):
    assert python_files(os.path.join(PROJECTS, "skd", room))
    assert room_imports()[room] == ROOMS[room]


@pytest.mark.parametrize("line", ["from skd import distill", "import skd", "from .. import x"])
def test_an_import_of_the_package_itself_is_seen(tmp_path, monkeypatch, line):
    monkeypatch.setattr(sys.modules[__name__], "PROJECTS", str(tmp_path))
    path = tmp_path / "skd" / "data" / "late.py"
    path.parent.mkdir(parents=True)
    path.write_text(f"def f():\n    {line}\n")
    assert "skd" in siblings(str(path))


def test_files_beside_the_rooms_import_only_whom_they_may_know():
    folder = os.path.join(PROJECTS, "skd")
    assert {n[:-3] for n in os.listdir(folder) if n.endswith(".py")} == {"__init__", *FILES}
    for name, known in FILES.items():
        assert siblings(os.path.join(folder, f"{name}.py")) == known


def test_modules_do_not_import_each_other_in_circles():
    """Packages' own __init__ aside, which import the modules they stand for."""
    files = {module_name(p): p for p in python_files(os.path.join(PROJECTS, "skd"))}
    left = {
        name: {n for n in imports(path) & files.keys() if n != name}
        for name, path in files.items()
        if not path.endswith("__init__.py")
    }
    assert len(left) > 40
    while left:
        free = [name for name, known in left.items() if not known & left.keys()]
        assert free, f"these modules import each other: {sorted(left)}"
        for name in free:
            del left[name]


@pytest.mark.parametrize("name", ["features", "teacher"])
def test_features_and_teacher_know_no_loss(name):
    path = os.path.join(PROJECTS, "skd", "modeling", f"{name}.py")
    assert not [n for n in imports(path) if n.startswith("skd.distillers")]


def test_nothing_imports_tools_and_tools_are_commands():
    folder = os.path.join(ROOT, "tools")
    commands = {os.path.splitext(name)[0] for name in os.listdir(folder) if name.endswith(".py")}
    assert {"compare", "demo"} <= commands
    for path in python_files(os.path.join(PROJECTS, "skd")) + python_files(folder):
        roots = {name.split(".")[0] for name in imports(path)}
        assert not roots & ({"tools"} | commands), path
    for name in commands:
        with open(os.path.join(folder, f"{name}.py")) as f:
            assert 'if __name__ == "__main__":' in f.read(), name


def test_importing_skd_registers_no_dataset(tmp_path):
    code = (
        "from detectron2.data import DatasetCatalog as c; before = set(c.list()); import skd; "
        "print(sorted(set(c.list()) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stdout.strip() == "[]", done.stderr[-2000:]
    assert os.listdir(tmp_path) == []


# distillation, and keys of one form of config: what runtime must not know
FOREIGN = re.compile(
    r"(?i:teacher|student|distil)|\b(SOLVER|MODEL|INPUT|TEST|DATASETS|DATALOADER)\.[A-Z]|OUTPUT_DIR"
    r"|\btrain\.[a-z]|\bdataloader\."
)


@pytest.mark.parametrize("path", python_files(os.path.join(PROJECTS, "skd", "runtime")))
def test_runtime_knows_of_no_distillation_and_of_no_config(path):
    """Nor says so: whoever knows the user's config tells it the words (runtime/words.py)."""
    with open(path) as f:
        tree = ast.parse(f.read())
    said = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)]
    said += [n.id for n in ast.walk(tree) if isinstance(n, ast.Name)]
    said += [n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)]
    said += [n.name for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    allowed = ast.get_docstring(tree, clean=False) if path.endswith("__init__.py") else None
    assert said
    assert not [x for x in said if isinstance(x, str) and x != allowed and FOREIGN.search(x)]


def rooms_and_parts():
    """Every package below ``skd``, as paths from there."""
    top = os.path.join(PROJECTS, "skd")
    found = [os.path.relpath(f, top) for f, _, names in os.walk(top) if "__init__.py" in names]
    return sorted(set(found) - {"."})


def test_the_code_map_has_the_rooms_from_the_ground_up():
    """The order is from the ground up, so that no rooms import each other in a circle."""
    with open(os.path.join(ROOT, "docs", "code_map.md")) as f:
        rooms = [line.split()[0] for line in f if line.startswith("    ")][::-1]
    assert set(rooms) == set(ROOMS)
    for room, known in room_imports().items():
        assert known & set(ROOMS) <= set(rooms[: rooms.index(room)]), room


@pytest.mark.parametrize("room", rooms_and_parts())
def test_a_room_lists_its_files(room):
    """The ``__init__`` docstring lists a room's files, for who opens it for the first time."""
    folder = os.path.join(PROJECTS, "skd", room)
    with open(os.path.join(folder, "__init__.py")) as f:
        listed = ast.get_docstring(ast.parse(f.read())).split()
    names = [n for n in os.listdir(folder) if n.endswith(".py") and n != "__init__.py"]
    names += [f"{n}/" for n in os.listdir(folder) if os.path.exists(f"{folder}/{n}/__init__.py")]
    assert names
    assert sorted(n for n in names if n not in listed) == []
    assert [n for n in listed if n.endswith(".py") and "/" not in n and n not in names] == []
