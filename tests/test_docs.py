"""What the documents say is true of the code."""

import os
import re

import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

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


def test_links_and_paths_exist():
    for folder, name in (
        ("", "README.md"),
        ("docs", "docs/method.md"),
        ("docs", "docs/recipes.md"),
        ("docs", "docs/detectors.md"),
        ("docs", "docs/plugging_in.md"),
        ("docs", "docs/your_project.md"),
        ("docs", "docs/distil_your_own.md"),
        ("docs", "docs/faq.md"),
        ("docs", "docs/performance.md"),
        ("docs", "docs/reading_the_log.md"),
        ("docs", "docs/choosing_a_teacher.md"),
    ):
        for link in re.findall(r"\]\((?!http|#)([^)#]+)", read(name)):
            assert os.path.exists(os.path.join(ROOT, folder, link)), (name, link)


def test_conversion_of_weights():
    """method.md: weights tuned with "sum" at N images of R pixels, times sqrt(N R / reference)."""
    from skd.distillers.attention import difference_norm

    x = torch.randn(1, 4, 20, 30, dtype=torch.float64).repeat(3, 1, 1, 1)
    factor = (3 * (20 * 8) * (30 * 8) / (2 * 800 * 1344)) ** 0.5
    assert torch.allclose(difference_norm(x, "mean", 8) * factor, difference_norm(x, "sum"))
