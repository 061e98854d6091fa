"""Pictures of attention, by a hook that any trainer takes."""

import copy
import logging

import torch
from detectron2.engine import SimpleTrainer
from detectron2.modeling import build_model

from skd import student_config, student_of
from skd.engine.pictures import NAME, AttentionPictures
from skd.modeling.state import pairs_of, watch_maps
from tests.helpers import batch, distilling, tiny_config


def pictures_of(model, period, iterations=3):
    """Train with Detectron2's own trainer: (iteration, shape) of each picture."""
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    trainer = SimpleTrainer(model, [batch(height=96, width=128)] * iterations, optimizer)
    trainer.register_hooks([AttentionPictures(period)])
    trainer.train(0, iterations)
    images = [(i, x.shape) for name, x, i in trainer.storage._vis_data if name == NAME]
    return images


def test_a_picture_every_period_in_detectron2_s_trainer(teacher_files):
    model = build_model(distilling(tiny_config(), teacher_files))
    shape = (3, 5 * 96, 3 * 128)  # a row for each of P2 to P6
    assert pictures_of(torch.nn.Sequential(model), period=2) == [(0, shape), (2, shape)]
    assert pictures_of(model, period=0) == []


def test_they_end_with_the_teacher_which_is_said_once(teacher_files, caplog):
    cfg = distilling(tiny_config(SOLVER__MAX_ITER=6), teacher_files, balance=True)
    cfg.MODEL.DISTILLER.BALANCE.UNTIL = None
    with caplog.at_level(logging.INFO):
        assert [i for i, _ in pictures_of(build_model(cfg), period=1, iterations=4)] == [0, 1]
    said = [r.getMessage() for r in caplog.records if "attention" in r.getMessage()]
    assert said == ["The teacher has stopped, so there are no more pictures of attention."]


def test_no_pictures_without_a_distiller():
    assert pictures_of(build_model(student_config(tiny_config())), period=1) == []


def test_watching_ends_with_one_step(teacher_files):
    model = build_model(distilling(tiny_config(), teacher_files))
    seen = []
    watch_maps(model, seen.append)
    assert "_skd" not in vars(student_of(model))
    trainer = SimpleTrainer(model, [batch()] * 2, torch.optim.SGD(model.parameters(), 0.0))
    trainer.train(0, 2)
    (maps,) = seen
    assert list(maps.student) == list(maps.teacher) == list(maps.strides) == list(pairs_of(model))
    assert all(a.shape[-2:] == maps.teacher[k].shape[-2:] for k, a in maps.student.items())
    copy.deepcopy(model)  # holds no graph
