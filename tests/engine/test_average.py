"""SOLVER.EMA_DECAY: the average of the student's weights, by hand, through a resume, and alone."""

import itertools
import json

import pytest
import torch
from detectron2.engine import HookBase
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from skd import student_config, student_of
from skd.engine import SKDTrainer
from skd.engine.average import WeightAverage
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


def test_it_is_torchs_average_and_takes_its_state(tmp_path):
    """Older checkpoints hold the state of torch's ``AveragedModel``."""
    model = build_model(tiny_config(MODEL__RESNETS__NORM="BN"))
    of_torch = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY), use_buffers=True)
    ours, later = (WeightAverage(model, DECAY, str(tmp_path)) for _ in range(2))

    def step():
        for x in itertools.chain(model.parameters(), model.buffers()):
            x.detach().add_(1 + torch.rand_like(x, dtype=torch.float32).to(x.dtype))

    def compare(one, other):
        assert one.keys() == other.keys() and "module.backbone.bottom_up.stem.conv1.weight" in one
        assert all(torch.equal(one[name], other[name]) for name in one)

    for _ in range(3):
        step()
        of_torch.update_parameters(model)
        ours.after_step()
        compare(ours.state_dict(), of_torch.state_dict())
    later.load_state_dict(of_torch.state_dict())
    step()
    of_torch.update_parameters(model)
    later.after_step()
    compare(later.state_dict(), of_torch.state_dict())


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


def test_begun_when_no_iteration_is_left_it_is_the_student(config, shapes, tmp_path):
    without = config.clone()
    without.SOLVER.EMA_DECAY = 0.0
    trained(without, tmp_path, 1)
    trained(config, tmp_path, 1, resume=True)
    average, student = (average_in(tmp_path, name) for name in ("model_ema", "model_final"))
    assert all(torch.equal(value, student[name]) for name, value in average.items())


def test_training_is_the_same_with_and_without(whole, config, tmp_path):
    plain = config.clone()
    plain.SOLVER.EMA_DECAY = 0.0
    _, seen = trained(plain, tmp_path, 2)
    for name, value in seen[1].items():
        assert torch.equal(value, whole[2][1][name]), name
    assert not (tmp_path / "model_ema.pth").exists()
    assert "EMA_DECAY" not in student_config(config).dump()
