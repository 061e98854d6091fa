"""SOLVER.EMA_DECAY: the average of the student's weights, by hand, through a resume, and alone."""

import json

import pytest
import torch
from detectron2.engine import HookBase
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng

from skd import student_config, student_of
from skd.engine import SKDTrainer
from tests.helpers import distilling, tiny_config

DECAY = 0.7


class Watching(HookBase):
    """What the student's weights were after each iteration."""

    def __init__(self):
        self.seen = []

    def after_step(self):
        student = student_of(self.trainer.model)
        self.seen.append({k: v.clone() for k, v in student.state_dict().items()})


def trained(cfg, folder, iterations, resume=False):
    cfg = cfg.clone()
    cfg.OUTPUT_DIR, cfg.SOLVER.MAX_ITER = str(folder), iterations
    seed_all_rng(3)  # the first weights
    trainer, watching = SKDTrainer(cfg), Watching()
    trainer.register_hooks([watching])
    trainer.resume_or_load(resume)
    return trainer.train(), watching.seen


def average_in(folder, name="model_ema"):
    return torch.load(folder / f"{name}.pth")["model"]


@pytest.fixture(scope="module")
def config(teacher_files):
    plain = tiny_config("faster_rcnn", SOLVER__EMA_DECAY=DECAY, SEED=3, SOLVER__WARMUP_ITERS=0)
    return distilling(plain, teacher_files)


@pytest.fixture(scope="module")
def whole(config, shapes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return (folder, *trained(config, folder, 4))


def test_it_is_the_average_of_the_student_alone(whole, config):
    folder, _, seen = whole
    average = average_in(folder)
    assert average.keys() == seen[0].keys()  # no distiller, no teacher
    for name, value in average.items():
        if value.is_floating_point():
            expected = seen[0][name]
            for later in seen[1:]:
                expected = DECAY * expected + (1 - DECAY) * later[name]
            assert torch.allclose(value, expected, atol=1e-6), name
    assert any(not torch.equal(average[k], seen[-1][k]) for k in average)
    build_model(student_config(config)).load_state_dict(average)


def test_it_is_evaluated_beside_the_student(whole):
    folder, results, _ = whole
    assert set(results) == {"bbox", "bbox_EMA"}
    assert "bbox_EMA/AP" in [json.loads(line) for line in open(folder / "metrics.json")][-1]


def test_a_resume_goes_on_with_it(whole, config, tmp_path):
    trained(config, tmp_path, 2)
    trained(config, tmp_path, 4, resume=True)
    expected, given = average_in(whole[0]), average_in(tmp_path)
    for name, value in expected.items():
        assert torch.equal(value, given[name]), name


def test_training_is_the_same_with_and_without(whole, config, tmp_path):
    plain = config.clone()
    plain.SOLVER.EMA_DECAY = 0.0
    _, seen = trained(plain, tmp_path, 2)
    for name, value in seen[1].items():
        assert torch.equal(value, whole[2][1][name]), name
    assert not (tmp_path / "model_ema.pth").exists()
    assert "EMA_DECAY" not in student_config(config).dump()
