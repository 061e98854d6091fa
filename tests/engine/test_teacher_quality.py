"""MODEL.TEACHER.EVALUATE."""

import json
import logging
import math
from types import SimpleNamespace

import pytest
import torch
from detectron2.config import LazyCall
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.events import EventStorage

from skd import GradientBalance, distill
from skd.engine import describe
from skd.engine.run import check
from skd.engine.teacher_quality import TeacherQuality
from skd.evaluation import Quality, unseen_classes
from skd.modeling.teacher import FrozenTeacher
from tests.helpers import Balanced, distilling, lazy_config, tiny_config, train_until, weights


def test_teacher_and_student_are_compared_and_the_training_is_the_same(
    teacher_files, shapes, tmp_path, caplog
):
    changes = {"SOLVER__MAX_ITER": 2, "MODEL__ROI_HEADS__SCORE_THRESH_TEST": 0.5}
    with caplog.at_level(logging.INFO):
        for images in (0, 99):  # more than there are
            cfg = distilling(tiny_config(**changes), teacher_files, MODEL__TEACHER__EVALUATE=images)
            train_until(cfg, tmp_path / str(images))
            said = [r.getMessage() for r in caplog.records if r.name.startswith("skd")]
            said = [message for message in said if "AP50" in message]
            assert bool(said) == bool(images)
    # before the training, and after it; the warning once
    assert sum("On 8 images of tiny_val" in text for text in said) == 2
    assert sum("not better than your student (AP50 0.0" in text for text in said) == 1
    lines = (tmp_path / "99" / "metrics.json").read_text().splitlines()
    assert any(json.loads(line).get("distill/teacher_AP50") == 0 for line in lines)
    one, other = weights(tmp_path / "0"), weights(tmp_path / "99")
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "teacher,student,iteration,warns", [(30.0, 20.0, 0, 0), (20.0, 20.0, 2, 1), (20.0, 20.0, 3, 0)]
)
def test_only_a_teacher_that_is_no_better_is_a_warning(teacher, student, iteration, warns, caplog):
    """A teacher that is no better is a warning only while it teaches, here to iteration 3."""
    hook = TeacherQuality(SimpleNamespace(images=5, dataset="x"), period=0)
    hook._teacher, hook._evaluate = Quality(teacher, 0, 1), lambda model: Quality(student, 0, 1)
    with EventStorage() as storage:
        model = Balanced(GradientBalance(max_iter=9))
        hook.trainer = SimpleNamespace(storage=storage, model=model, iter=iteration)
        hook._compare(), hook._compare()
    assert sum(r.levelno == logging.WARNING for r in caplog.records) == warns


def test_images_without_objects_are_one_warning(caplog):
    """Of a test set whose annotations are kept back: both would find 0 of nothing."""
    hook = TeacherQuality(SimpleNamespace(images=5, dataset="x"), period=0)
    hook._teacher = Quality(math.nan, math.nan, 1)
    hook._compare(), hook._compare()  # which ask for no student
    said = [r.getMessage() for r in caplog.records]
    assert len(said) == 1 and "The 5 images of x have no object that counts" in said[0]


@pytest.mark.parametrize(
    "images,sets,words",
    [
        (-1, ("tiny_val",), "MODEL.TEACHER.EVALUATE is -1; it must be a whole number"),
        (5, (), "MODEL.TEACHER.EVALUATE is 5, and DATASETS.TEST names no validation set"),
    ],
)
def test_wrong_values_are_named(images, sets, words, teacher_files):
    cfg = distilling(tiny_config(), teacher_files, MODEL__TEACHER__EVALUATE=images)
    cfg.DATASETS.TEST = sets
    with pytest.raises(ValueError, match=words):
        check(describe(cfg))


def test_classes_that_a_teacher_never_saw():
    for name, classes in (("seen_a", ["Cell phone", "dog"]), ("seen_b", ["cell_phone", "wheel"])):
        if name not in DatasetCatalog:
            DatasetCatalog.register(name, list)
            MetadataCatalog.get(name).set(thing_classes=classes)
    assert unseen_classes("seen_b", ["seen_a"]) == ["wheel"]
    assert unseen_classes("seen_b", ["seen_b", "nobody_knows"]) == []
    assert unseen_classes("seen_b", ["nobody_knows"]) is None


def test_a_lazy_config_has_it_too(teacher_files, shapes, tmp_path):
    cfg = lazy_config(tmp_path, "+train.evaluate_teacher=2")
    distill(cfg, *teacher_files)
    hook = TeacherQuality(describe(cfg).teacher, period=0)
    hook.trainer = SimpleNamespace(model=torch.nn.Linear(1, 1))
    assert hook._look_at_teacher().ap50 == 0  # of an untrained one
    assert hook._images == 2
    cfg.model.teacher = LazyCall(FrozenTeacher)(model=None, weights="x")
    with pytest.raises(ValueError, match="train.evaluate_teacher is 2; it must be 0 where"):
        describe(cfg)
