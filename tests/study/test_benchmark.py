"""Rows of tools/benchmark.py, with tiny models in place of the zoo's."""

from argparse import Namespace

import pytest
from detectron2.modeling import build_model

from skd.config import is_distilling, student_config
from skd.modeling import distill_step
from skd.study.benchmark import cases, methods
from skd.study.benchmark.loss import growth_rows
from skd.study.benchmark.step import (
    balance_rows,
    every_rows,
    half_size_rows,
    heads_rows,
    unlabelled_rows,
)
from tests.helpers import distilling, tiny_config


@pytest.mark.parametrize(
    "rows,names,options",
    [
        (
            every_rows,
            ["step_every_1", "step_every_2", "step_every_4"],
            [(1, False, 0), (2, False, 0), (4, False, 0)],
        ),
        (half_size_rows, ["step_half_size"], [(1, True, 0)]),
        (heads_rows, ["step_heads"], [(1, False, 3)]),
        (unlabelled_rows, ["step_unlabelled"], [(1, False, 0)]),
        (balance_rows, ["balance"], [(1, False, 0)]),
    ],
)
def test_rows_of_what_is_learned_from(rows, names, options, teacher_files, monkeypatch):
    """Each with its own option, against the student by itself."""

    def build(cfg):
        tiny = distilling(
            tiny_config(MODEL__ROI_HEADS__NUM_CLASSES=80), teacher_files, balance=True
        )
        heads, classes = tiny.MODEL.DISTILLER.HEADS, [str(i) for i in range(80)]
        heads.NAMES = cfg.MODEL.DISTILLER.HEADS.NAMES if is_distilling(cfg) else []
        heads.STUDENT_CLASSES, heads.TEACHER_CLASSES = classes, classes[:6]
        tiny.MODEL.DISTILLER.EVERY = cfg.MODEL.DISTILLER.EVERY if is_distilling(cfg) else 1
        tiny.MODEL.TEACHER.HALF_SIZE = is_distilling(cfg) and cfg.MODEL.TEACHER.HALF_SIZE
        model = build_model(tiny if is_distilling(cfg) else student_config(tiny))
        if is_distilling(cfg):
            kinds = model._skd.heads.kinds if model._skd.heads else []
            built.append((model._skd.every, model.teacher.half_size, len(kinds)))
        return model

    built, seen = [], []
    split = distill_step.split_call
    monkeypatch.setattr(
        distill_step, "split_call", lambda call: seen.append(len(call.args[0])) or split(call)
    )
    monkeypatch.setattr(cases, "build_model", build)
    args = Namespace(device="cpu", images=1, size=(64, 96), repeats=1, full=False)
    found = rows(args)
    assert [row["name"] for row in found] == names and built == options
    assert all(row["measured"] > 0 and row["reference"] > 0 for row in found)
    assert set(seen) == {2 if rows is unlabelled_rows else 1}


def test_rows_of_growth():
    found = growth_rows(Namespace(device="cpu", images=2, size=(64, 96), repeats=1))
    assert [row["name"] for row in found] == ["growth_area", "growth_batch", "growth_levels"]
    assert all(row["flops"] > row["flops_reference"] > 0 and row["linear"] > 1 for row in found)


def test_every_method_has_its_step_and_its_memory(teacher_files, monkeypatch):
    def build(cfg):
        tiny = distilling(tiny_config(MODEL__ROI_HEADS__NUM_CLASSES=80), teacher_files)
        tiny.MODEL.DISTILLER.NAME = cfg.MODEL.DISTILLER.NAME if is_distilling(cfg) else "PKD"
        model = build_model(tiny if is_distilling(cfg) else student_config(tiny))
        built.append(type(model.distiller).__name__ if is_distilling(cfg) else "")
        return model

    built = []
    monkeypatch.setattr(cases, "build_model", build)
    monkeypatch.setattr(methods, "methods_named", lambda names: ["CWD", "FGD"])
    # in place of a process
    monkeypatch.setattr(methods, "in_new_process", lambda function, *args: function(*args))
    args = Namespace(device="cpu", images=1, size=(64, 96), repeats=1, full=False)
    found = methods.methods_rows(args)
    names = ["step_CWD", "step_memory_CWD", "step_FGD", "step_memory_FGD"]
    assert [row["name"] for row in found] == names
    assert {"CWD", "FGD"} < set(built) and all(row["measured"] > 0 for row in found)
