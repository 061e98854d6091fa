"""Rows of tools/benchmark.py, with tiny models in place of the zoo's."""

from argparse import Namespace

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

from skd import FrozenTeacher
from skd.config import is_distilling, student_config
from skd.modeling import distill_step
from skd.study.benchmark import cases, loader, methods, scaling
from skd.study.benchmark.loader import loader_rows, startup_rows
from skd.study.benchmark.loss import growth_rows
from skd.study.benchmark.scaling import scaling_rows
from skd.study.benchmark.step import (
    balance_rows,
    every_rows,
    half_size_rows,
    heads_rows,
    unlabelled_rows,
)
from skd.study.benchmark.teacher import compile_rows, teacher_rows
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


def test_a_teacher_is_measured_with_each_way_to_make_it_cheaper(monkeypatch, capsys):
    def build(name, **options):
        asked.append({k: v for k, v in options.items() if k != "random_weights"})
        model = build_model(tiny_config())
        return FrozenTeacher(model=model, weights=None, input_format="BGR", **options)

    asked = []
    monkeypatch.setattr(cases, "build_teacher", build)
    args = Namespace(device="cpu", images=1, size=(64, 96), repeats=1, full=False)
    found = teacher_rows(args)
    names = ["teacher_folded", "teacher_channels_last", "teacher_default"]
    assert [row["name"] for row in found] == names
    assert all(row["measured"] > 0 and row["flops"] > 0 for row in found)
    plain, *others = [(x["fold_bn"], x["channels_last"]) for x in asked]
    assert plain == (False, False) and others == [(True, False), (False, True), (True, True)]
    assert compile_rows(args) == [] and "needs a GPU" in capsys.readouterr().out


def test_steps_in_several_processes(teacher_files, monkeypatch):
    """Each number of processes has its row, of one image a process."""

    def build(cfg):
        tiny = distilling(tiny_config(MODEL__ROI_HEADS__NUM_CLASSES=80), teacher_files)
        return build_model(tiny if is_distilling(cfg) else student_config(tiny))

    def launch(worker, processes, dist_url, args):  # in place of processes
        started.append(processes)
        worker(*args)

    started = []
    monkeypatch.setattr(cases, "build_model", build)
    monkeypatch.setattr(scaling, "launch", launch)
    found = scaling_rows(Namespace(device="cpu", size=(64, 96), repeats=1))
    assert started == [1, 2, 4]
    assert [row["name"] for row in found] == [f"step_{n}_processes" for n in started]
    assert all(row["measured"] > 0 and row["reference"] > 0 for row in found)


def test_what_a_dataset_costs_before_training(monkeypatch):
    def here(function, what, folder):  # in place of a process
        measured.append(what)
        try:
            return function(what, folder)
        finally:
            for catalog in (DatasetCatalog, MetadataCatalog):
                catalog.pop("large", None)

    measured = []
    monkeypatch.setattr(loader, "in_new_process", here)
    monkeypatch.setattr(loader, "IMAGES", 40), monkeypatch.setattr(loader, "OBJECTS", 80)
    found = startup_rows(Namespace(repeats=1, full=False))
    assert measured == ["checked", "detectron2", "check"]
    sides = {row["name"]: (row["measured"], row["reference"]) for row in found}
    assert list(sides) == ["startup_cpu", "startup_check_cpu", "startup_peak", "startup_check_peak"]
    assert sides["startup_cpu"][1] == sides["startup_check_cpu"][1]  # Detectron2's, both
    assert all(value > 0 for side in sides.values() for value in side)


def test_batches_of_both_loaders(shapes, monkeypatch):
    def config(workers):
        cfg = of_the_benchmark(workers)
        cfg.DATASETS.TRAIN, cfg.INPUT.MIN_SIZE_TRAIN = ("tiny_train",), (64,)
        return cfg

    of_the_benchmark = loader._config
    monkeypatch.setattr(loader, "_config", config), monkeypatch.setattr(loader, "WORKERS", (0,))
    monkeypatch.setattr(loader, "BATCH", 2), monkeypatch.setattr(loader, "BATCHES", 2)
    (found,) = loader_rows(Namespace(repeats=1))
    assert found["name"] == "loader_0_workers" and found["measured"] > 0
    assert found["images_per_s"] > 0 and found["images_per_s_reference"] > 0
