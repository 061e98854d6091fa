"""The ways of using the project that docs/plugging_in.md shows, run as they stand there."""

import argparse
import json
import os

import cv2
import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer, PeriodicCheckpointer
from detectron2.config import LazyConfig, instantiate
from detectron2.data import build_detection_train_loader
from detectron2.engine import default_writers
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.utils.events import EventStorage

from skd import student_config
from skd.modeling.state import pairs_of
from tests.helpers import python_blocks, tiny_config

ZOO = 'teacher="COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x.yaml"'


def block(words, teacher_files=None):
    """The one block with these words, with the teacher of the tests."""
    (code,) = [b for b in python_blocks("docs/plugging_in.md") if words in b]
    if teacher_files:
        assert ZOO in code
        code = code.replace(ZOO, "teacher={!r}, weights={!r}".format(*teacher_files))
    return code


@pytest.fixture
def folder(tmp_path, monkeypatch, shapes):
    """A working directory with a user's own config, without a word of distillation."""
    monkeypatch.chdir(tmp_path)
    cfg = student_config(tiny_config(SOLVER__MAX_ITER=2))
    cfg.OUTPUT_DIR = "output"
    (tmp_path / "your_config.yaml").write_text(cfg.dump())
    os.makedirs("output")
    return tmp_path


def check_plain(path):
    """The checkpoint is all of the student without a distiller."""
    state = torch.load(path)["model"]
    result = build_model(student_config(tiny_config())).load_state_dict(state, strict=False)
    assert not result.missing_keys
    return result.unexpected_keys


def test_a_default_trainer_writes_a_plain_student(folder, teacher_files):
    space = {}
    exec(block("DefaultTrainer(cfg)", teacher_files), space)
    assert space["trainer"].iter == 2
    extra = check_plain("output/model_final.pth")
    assert extra and all(k.startswith("distiller.") for k in extra)
    assert "TEACHER" not in (folder / "output" / "student.yaml").read_text()


def test_a_plain_loop_writes_a_plain_student(folder, teacher_files):
    space = {}
    exec(block("optimizer.step()", teacher_files), space)
    assert "loss_distill_structured_am" in space["losses"]
    assert "distill/structured_am_p2" in space["storage"].histories()
    assert check_plain("student.pth") == []


def test_plain_train_net_trains_and_resumes_with_another_setup(folder, teacher_files):
    """That script's setup, as changed, and its loop's calls."""
    space = {}
    exec(block("def setup(args)", teacher_files), space)
    args = argparse.Namespace(config_file="your_config.yaml", opts=["SEED", "1"], eval_only=False)
    cfg = space["setup"](args)
    model = build_model(cfg).train()
    optimizer = build_optimizer(cfg, model)
    scheduler = build_lr_scheduler(cfg, optimizer)
    checkpointer = DetectionCheckpointer(
        model, cfg.OUTPUT_DIR, optimizer=optimizer, scheduler=scheduler
    )
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=False)
    periodic = PeriodicCheckpointer(checkpointer, 1, max_iter=2)
    writers = default_writers(cfg.OUTPUT_DIR, 2)
    with EventStorage(0) as storage:
        for inputs, iteration in zip(build_detection_train_loader(cfg), range(2)):
            storage.iter = iteration
            losses = model(inputs)
            storage.put_scalars(total_loss=sum(losses.values()).item())
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            scheduler.step()
            for writer in writers:
                writer.write()
            periodic.step(iteration)
    rows = [json.loads(line) for line in open("output/metrics.json")]
    assert any("distill/structured_nl_p6" in row for row in rows)
    check_plain("output/model_final.pth")
    # resuming continues with the distiller's parameters and the optimizer's state
    again = build_model(cfg)
    optimizer = build_optimizer(cfg, again)
    loaded = DetectionCheckpointer(again, cfg.OUTPUT_DIR, optimizer=optimizer).resume_or_load(
        "", resume=True
    )
    assert loaded["iteration"] == 1
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_the_written_out_lazy_config_is_one(tmp_path):
    """Same classes as for YAML, teacher included."""
    code = block("L(FrozenTeacher)(")
    teacher = 'weights="your_teacher.pth"'
    assert teacher in code
    path = tmp_path / "lazy.py"
    path.write_text(code.replace(teacher, 'weights="", random_weights=True'))
    model = instantiate(LazyConfig.load(str(path)).model)
    assert list(pairs_of(model)) == ["p3", "p4", "p5", "p6"]
    assert model.distiller.preset == "one_stage" and model._skd.input_format == "BGR"
    names = [*model.state_dict(), *dict(model.named_parameters())]
    assert not any(k.startswith(("student", "teacher")) for k in names)
    assert not {id(p) for p in model.teacher.parameters()} & {id(p) for p in model.parameters()}


@pytest.mark.parametrize("kind", ["faster_rcnn", "mask_rcnn"])
def test_stock_detectron2_predicts_with_the_student_and_augments(kind, folder, teacher_files):
    """Stock Detectron2 predicts from a distilled student's checkpoint, with augmentation too."""
    cfg = student_config(tiny_config(kind, TEST__AUG__MIN_SIZES=(96, 128), TEST__AUG__MAX_SIZE=256))
    (folder / "your_config.yaml").write_text(cfg.dump())
    exec(block("DefaultTrainer(cfg)", teacher_files), {})
    image = np.random.default_rng(0).integers(0, 256, (100, 120, 3), dtype=np.uint8)
    cv2.imwrite("image.png", image)
    space = {}
    code = block("DefaultPredictor(cfg)").replace("image.jpg", "image.png")
    exec(code, space)
    assert space["instances"].image_size == (100, 120) and len(space["instances"])
    assert len(space["result"]["instances"]) and space["result"]["instances"].has("scores")
