"""Every command says how it is used, and every documented command is one. Nothing is run."""

import argparse
import glob
import os
import re
import shlex

import pytest
from torch.distributed.run import get_args_parser

from tests.helpers import ROOT, read
from tests.processes import parser_of

TOOLS = sorted(
    name
    for name in os.listdir(os.path.join(ROOT, "tools"))
    if name.endswith(".py") and not name.startswith("_")
)
# the configs say in comments how they are used, the commands in their help
PAGES = [
    os.path.relpath(path, ROOT)
    for folder in (
        "*.md", "docs/**/*.md", "docs/*.ipynb", "tools/*", "configs/**/*.yaml", "configs/**/*.py",
        "train_net.py", ".github/**/*.md",
    )
    for path in glob.glob(os.path.join(ROOT, folder), recursive=True)
    if os.path.isfile(path)
]  # fmt: skip
SCRIPT = r"(tools/\w+\.py|train_net\.py|-m skd\.train_net)"
PYTHON = re.compile(rf"python (?:-W ignore )?{SCRIPT}( [^`\n]*)")
TORCHRUN = re.compile(rf"torchrun ([^`\n]*?){SCRIPT}( [^`\n]*)")
BENCH = re.compile(r'BENCH_ARGS="([^"]*)"')


@pytest.mark.parametrize("name", [*(f"tools/{tool}" for tool in TOOLS), "train_net.py"])
def test_every_command_has_help(name):
    text = parser_of(name).format_help()
    assert "usage:" in text and "--help" in text


@pytest.mark.parametrize("name", TOOLS)
def test_defaults_are_in_the_help(name):
    """argparse adds a default to a help, and only where there is one."""
    for action in parser_of(f"tools/{name}")._actions:
        no_default = action.default in (None, False, argparse.SUPPRESS)
        assert no_default or action.help, action.option_strings


def joined(text):
    """Lines that end with a backslash, in comments and docstrings too, with the next."""
    return re.sub(r"\\+\n[#\s]*", " ", text)


def documented():
    """Each documented command: its page, script, arguments, and those of torchrun."""
    for page in PAGES:
        text = joined(read(page))
        for script, line in PYTHON.findall(text):
            yield page, script, line, ""
        for launcher, script, line in TORCHRUN.findall(text):
            yield page, script, line, launcher
        for line in BENCH.findall(text):
            yield page, "tools/benchmark.py", line, ""


def arguments(line):
    """Arguments as a shell hands them on: no comment or second command, variables with a value."""
    line = re.sub(r"\[.*?\]", "", re.sub(r"\$\{[^}]*\}|\$\w+", "0", line))
    words = shlex.split(line.partition(";")[0].rstrip(" &"), comments=True)
    return [word for word in words if word != "..."]


def test_documented_commands_are_found_wherever_they_are():
    pages = {page for page, _, _, launcher in documented() if not launcher}
    assert len(pages) > 5
    assert {"configs/real/voc.yaml", "docs/performance.md", "tools/tune.py"} <= pages
    assert "docs/recipes.md" in {page for page, _, _, launcher in documented() if launcher}


@pytest.mark.parametrize("page,script,line,launcher", sorted(set(documented())))
def test_every_documented_command_parses(page, script, line, launcher):
    name = "train_net.py" if script.startswith("-m") else script
    try:
        parser_of(name).parse_args(arguments(line))
        if launcher:
            given = get_args_parser().parse_args([*arguments(launcher), *script.split()])
            assert given.training_script in ("train_net.py", "skd.train_net")
    except SystemExit as end:
        assert end.code == 0, f"{page}: {line}"


def test_every_documented_target_of_make_is_one():
    targets = set(re.findall(r"^(\w+):", read("Makefile"), re.M))
    named = {(page, name) for page in PAGES for name in re.findall(r"`make (\w+)", read(page))}
    assert len(named) > 5
    assert not [(page, name) for page, name in named if name not in targets]
