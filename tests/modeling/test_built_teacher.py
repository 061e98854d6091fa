"""skd.distill() with a teacher that is built, in either form of config, and what is refused."""

import pathlib

import pytest
import torch
from detectron2.config import get_cfg, instantiate
from detectron2.modeling import build_model
from torch import nn

from skd import (
    DistillRCNN,
    FrozenTeacher,
    StructuredDistiller,
    build_teacher,
    distill,
    student_config,
)
from skd.config import built
from skd.engine import SKDTrainer
from skd.modeling.build_detector import DetectorSource, build_detector
from tests.helpers import batch, lazy_config, tiny_config


@pytest.fixture
def detector(teacher_files, monkeypatch):
    monkeypatch.setattr(built, "_kept", {})
    cfg = get_cfg()
    cfg.merge_from_file(teacher_files[0])
    model = build_model(cfg)
    model.load_state_dict(torch.load(teacher_files[1])["model"])
    return model


def check_maps(teacher, teacher_files):
    expected = build_teacher(teacher_files[0], weights=teacher_files[1])(batch(), "BGR")
    given = teacher(batch(), "BGR")
    assert expected.keys() == given.keys()
    assert all(torch.allclose(given[k], v, atol=1e-5) for k, v in expected.items())


def test_a_yaml_config_trains(detector, teacher_files, shapes, tmp_path):
    cfg = tiny_config(SOLVER__MAX_ITER=1, OUTPUT_DIR=str(tmp_path), DATASETS__TEST=())
    plain = student_config(cfg).dump()
    distill(cfg, detector)
    assert student_config(cfg.clone()).dump() == plain  # it can be copied, and leaves no trace
    trainer = SKDTrainer(cfg)
    check_maps(trainer.model.teacher, teacher_files)
    trainer.train()
    assert trainer.storage.latest()["loss_distill_structured_am"][0] > 0
    assert "built in Python: GeneralizedRCNN 1" in cfg.dump()


def test_a_lazy_config(detector, teacher_files, tmp_path):
    cfg = lazy_config(tmp_path)
    distill(cfg, detector)
    check_maps(instantiate(cfg.model).teacher, teacher_files)


def test_a_frozen_teacher_is_taken_as_it_is(teacher_files, tmp_path):
    teacher = build_teacher(teacher_files[0], weights=teacher_files[1], precision="bf16")
    cfg, lazy = tiny_config(), lazy_config(tmp_path)
    for config in (cfg, lazy):
        distill(config, teacher)
    assert build_model(cfg).teacher is teacher and instantiate(lazy.model).teacher is teacher


def test_weights_of_a_detector_that_has_none(detector, teacher_files):
    for value in detector.parameters():
        nn.init.zeros_(value)
    cfg = tiny_config()
    distill(cfg, detector, teacher_files[1])
    check_maps(build_model(cfg).teacher, teacher_files)


def test_what_cannot_be_is_said(detector, teacher_files, tmp_path):
    with pytest.raises(TypeError, match=r"takes a config.* not a GeneralizedRCNN. .*DistillRCNN\("):
        distill(detector, teacher_files[0])
    with pytest.raises(TypeError, match="takes a config.* not a str"):
        distill(*teacher_files)
    with pytest.raises(TypeError, match="The teacher is a dict; it must be a config file, a name"):
        distill(tiny_config(), {})
    cfg = tiny_config(MODEL__TEACHER__OPTS=["MODEL.MASK_ON", False])
    distill(cfg, detector)
    with pytest.raises(ValueError, match=r"^MODEL.TEACHER.OPTS is \['MODEL.MASK_ON', False\], and"):
        build_model(cfg)
    distill(cfg, FrozenTeacher(model=detector, weights=None), "weights.pth")
    cfg.MODEL.TEACHER.OPTS = []
    with pytest.raises(ValueError, match="^MODEL.TEACHER.WEIGHTS is 'weights.pth', and the teach"):
        build_model(cfg)
    with pytest.raises(ValueError, match="evaluate.* needs one that a config file names"):
        build_detector(DetectorSource.of_config(cfg))
    built._kept.clear()  # as in another process
    with pytest.raises(ValueError, match="'built in Python: .*another process"):
        build_model(cfg)


def test_a_config_needs_no_keys_before_and_is_not_frozen(teacher_files):
    cfg = get_cfg()
    distill(cfg, *teacher_files)
    assert cfg.MODEL.META_ARCHITECTURE == "DistillRCNN"
    cfg.freeze()
    with pytest.raises(ValueError, match="frozen: call skd.distill.. before"):
        distill(cfg, *teacher_files)


def test_models_of_other_kinds_are_named(detector, teacher_files):
    config, weights = (pathlib.Path(x) for x in teacher_files)
    given = {
        "student": build_model(student_config(tiny_config())),
        "teacher": build_teacher(config, weights=weights), "distiller": StructuredDistiller(),
    }  # fmt: skip
    own = FrozenTeacher(model=given["student"], weights=None)
    for name, value, words in (
        ("student", tiny_config(), "student is a CfgNode; it must be a model"),
        ("teacher", detector, "teacher is a GeneralizedRCNN; it must be a FrozenTeacher"),
        ("teacher", str(config), "teacher is a str; it must be a FrozenTeacher"),
        ("teacher", own, "share parameters"),
        ("distiller", StructuredDistiller, "distiller is <class '.*StructuredDistiller'>; it must"),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            DistillRCNN(**{**given, name: value})
    with pytest.raises(TypeError, match="DistillRCNN takes a YAML config or arguments by their na"):
        DistillRCNN(given["student"])
    assert isinstance(DistillRCNN(**given), DistillRCNN)
