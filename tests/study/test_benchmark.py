"""Rows of tools/benchmark.py, with tiny models in place of the zoo's."""

from argparse import Namespace

import pytest
from detectron2.modeling import build_model

from skd.config import is_distilling, student_config
from skd.study.benchmark import cases
from skd.study.benchmark.step import every_rows, half_size_rows
from tests.helpers import distilling, tiny_config


@pytest.mark.parametrize(
    "rows,names,options",
    [
        (
            every_rows,
            ["step_every_1", "step_every_2", "step_every_4"],
            [(1, False), (2, False), (4, False)],
        ),
        (half_size_rows, ["step_half_size"], [(1, True)]),
    ],
)
def test_rows_of_a_cheaper_teacher(rows, names, options, teacher_files, monkeypatch):
    """Each with its own option, against the student by itself."""

    def build(cfg):
        tiny = distilling(tiny_config(MODEL__ROI_HEADS__NUM_CLASSES=80), teacher_files)
        tiny.MODEL.DISTILLER.EVERY = cfg.MODEL.DISTILLER.EVERY if is_distilling(cfg) else 1
        tiny.MODEL.TEACHER.HALF_SIZE = is_distilling(cfg) and cfg.MODEL.TEACHER.HALF_SIZE
        model = build_model(tiny if is_distilling(cfg) else student_config(tiny))
        if is_distilling(cfg):
            built.append((model._skd.every, model.teacher.half_size))
        return model

    built = []
    monkeypatch.setattr(cases, "build_model", build)
    args = Namespace(device="cpu", images=1, size=(64, 96), repeats=1, full=False)
    found = rows(args)
    assert [row["name"] for row in found] == names and built == options
    assert all(row["measured"] > 0 and row["reference"] > 0 for row in found)
