"""What the documents say is true of the code."""

import glob
import os
import re

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from skd import add_skd_config
from skd.config.run_settings import select
from skd.distillers import DISTILLER_REGISTRY, PRESETS
from tests.helpers import ROOT, batch, distilling, python_blocks, read, tiny_config


def test_the_example_method_trains(teacher_files):
    (code,) = python_blocks("docs/extending.md")
    assert len(code.strip().splitlines()) <= 30
    exec(code, {})
    try:
        cfg = distilling(tiny_config(), teacher_files, MODEL__DISTILLER__NAME="PlainMimic")
        with EventStorage() as storage:
            losses = build_model(cfg)(batch())
            assert "distill/plainmimic_p3" in storage.latest()
        sum(losses.values()).backward()
        assert losses["loss_distill_plainmimic"] > 0
    finally:
        DISTILLER_REGISTRY._obj_map.pop("PlainMimic")


def test_the_table_of_presets():
    rows = re.findall(r"^\| `([A-Z_]+)`.*?\|(.*)\|$", read("docs/method.md"), re.M)
    names = ["two_stage", "one_stage", "two_stage_paper", "one_stage_paper"]
    assert len(rows) == 8
    for key, cells in rows:
        values = [c.strip().strip("`") for c in cells.split("|")]
        for name, value in zip(names, values):
            expected = PRESETS[name][key.lower()]
            assert (float(value) if isinstance(expected, float) else value) == (
                expected if isinstance(expected, float) else str(expected)
            ), (key, name)


PAGES = [
    os.path.relpath(path, ROOT)
    for path in [
        *glob.glob(os.path.join(ROOT, "*.md")),
        *glob.glob(os.path.join(ROOT, "tools", "*.md")),
        *glob.glob(os.path.join(ROOT, "docs", "**", "*.md"), recursive=True),
    ]
]


@pytest.mark.parametrize("page", sorted(PAGES))
def test_links_exist(page):
    for link, anchor in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", read(page)):
        path = os.path.normpath(os.path.join(os.path.dirname(page), link)) if link else page
        there = os.path.exists(os.path.join(ROOT, path))
        # a protocol is written before its results, and may name the page to come
        assert there or page.endswith("PROTOCOL.md"), link
        if there and anchor and path.endswith(".md"):
            assert anchor in anchors(path), f"{link}#{anchor}"


def anchors(page):
    """Anchors of a page's headings, as GitHub names them."""
    prose = re.sub(r"```.*?```", "", read(page), flags=re.S)
    headings = re.findall(r"^#+ (.*)$", prose, re.M)
    shown = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in shown}


def test_the_tests_that_pages_name_are_there():
    files = glob.glob(os.path.join(ROOT, "tests", "**", "test_*.py"), recursive=True)
    there = {os.path.basename(path)[:-3] for path in files}
    for path in files:
        there.update(re.findall(r"^def (test_\w+)", read(path), re.M))
    named = {name for page in PAGES for name in re.findall(r"`[\w/]*?(test_\w+)", read(page))}
    assert len(named) > 20
    assert named <= there


def test_every_picture_that_is_kept_is_on_a_page():
    """A command makes the others again; docs/results/files.md names it."""
    shown = {
        os.path.normpath(os.path.join(os.path.dirname(page), link))
        for page in PAGES
        for link in re.findall(r"\]\((?!http|#)([^)#]+)", read(page))
    }
    pictures = glob.glob(os.path.join(ROOT, "docs", "**", "*.png"), recursive=True)
    assert len(pictures) > 5
    assert {os.path.relpath(path, ROOT) for path in pictures} <= shown


def test_the_pages_are_found():
    assert {"README.md", "docs/method.md", "docs/results/README.md"} <= set(PAGES)


def test_the_code_map_names_what_is_there():
    """A row's names are defined in one of its files."""
    rows = [
        line.split("|")[2:4] for line in read("docs/code_map.md").splitlines() if line[:2] == "| "
    ]
    rows = [(re.findall(r"`([^`]+)`", a), re.findall(r"`([^`]+)`", b)) for a, b in rows if b]
    assert len(rows) > 20
    for paths, names in rows:
        text = "".join(read(path) for path in paths if os.path.isfile(os.path.join(ROOT, path)))
        assert all(os.path.exists(os.path.join(ROOT, path)) for path in paths), paths
        for name in names:
            if name.isidentifier() and name != "Settings":
                assert re.search(rf"^(def|class) {name}\b", text, re.M), (paths, name)


KEY = re.compile(r"\b(?:MODEL|SOLVER|DATASETS|DATALOADER|INPUT|TEST)(?:\.[A-Z0-9_]+)+\b")
EXAMPLE = "MODEL.DISTILLER.PLAINMIMIC."  # the method that docs/extending.md adds


@pytest.mark.parametrize("page", sorted(PAGES))
def test_keys_that_pages_name_are_declared(page):
    cfg = get_cfg()
    add_skd_config(cfg)
    pairs = [key.rpartition(".") for key in KEY.findall(read(page)) if not key.startswith(EXAMPLE)]
    unknown = {f"{node}.{key}" for node, _, key in pairs if key not in (select(cfg, node) or ())}
    assert unknown == set()


def test_the_conversion_of_weights_in_method_md_holds():
    """method.md: weights tuned with "sum" at N images of R pixels, times sqrt(N R / reference)."""
    from skd.distillers.attention import reduce_norms

    def norm(reduction):
        given = dict(reduction=reduction, strides=[8], weight=1.0)
        return reduce_norms([torch.full((3,), 2.0)], [(20, 30)], **given)[0]

    factor = (3 * (20 * 8) * (30 * 8) / (2 * 800 * 1344)) ** 0.5
    assert torch.allclose(norm("mean") * factor, norm("sum"))
