"""Every command says how it is used, and every documented command is one. Nothing is run."""

import glob
import importlib.util
import os
import re
import shlex

import pytest

from tests.helpers import ROOT, read

TOOLS = sorted(
    name
    for name in os.listdir(os.path.join(ROOT, "tools"))
    if name.endswith(".py") and not name.startswith("_")
)
PAGES = [
    os.path.relpath(path, ROOT)
    for folder in ("*.md", "docs/**/*.md", "tools/*.md")
    for path in glob.glob(os.path.join(ROOT, folder), recursive=True)
]


def parser_of(script):
    path = os.path.join(ROOT, script)
    spec = importlib.util.spec_from_file_location("command_" + os.path.basename(path)[:-3], path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.argument_parser()


@pytest.mark.parametrize("name", [*(f"tools/{tool}" for tool in TOOLS), "train_net.py"])
def test_every_command_has_help(name):
    text = parser_of(name).format_help()
    assert "usage:" in text and "--help" in text


def documented():
    for page in PAGES:
        text = re.sub(r"\\\n\s*", " ", read(page))
        for found in re.findall(
            r"python (?:-W ignore )?((?:tools/\w+|train_net)\.py [^`\n]*)", text
        ):
            yield page, found


def test_documented_commands_are_found():
    assert len(list(documented())) > 5


@pytest.mark.parametrize("page,line", sorted(set(documented())))
def test_every_documented_command_parses(page, line):
    script, *args = shlex.split(re.sub(r"\[.*?\]", "", line), comments=True)
    parser = parser_of(script)
    try:
        parser.parse_args([part for part in args if part != "..."])
    except SystemExit as end:
        assert end.code == 0, f"{page}: {line}"
