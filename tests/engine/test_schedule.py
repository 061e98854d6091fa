"""Schedules of the learning rate that a YAML config names."""

import pytest
import torch
from detectron2.projects.deeplab import add_deeplab_config

from skd.engine import SKDTrainer
from tests.helpers import tiny_config


@pytest.fixture
def optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)


def test_deeplabs_own_schedule(optimizer):
    cfg = tiny_config(SOLVER__MAX_ITER=4)
    add_deeplab_config(cfg)
    cfg.SOLVER.LR_SCHEDULER_NAME, cfg.SOLVER.WARMUP_ITERS = "WarmupPolyLR", 0
    scheduler = SKDTrainer.build_lr_scheduler(cfg, optimizer)
    optimizer.step()
    scheduler.step()
    assert scheduler.get_last_lr() == [pytest.approx(0.75**0.9)]


def test_a_schedule_of_another_project_names_the_way(optimizer):
    cfg = tiny_config()
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupTriangleLR"
    with pytest.raises(ValueError, match="NAME is 'WarmupTriangleLR'.*skd.distilling"):
        SKDTrainer.build_lr_scheduler(cfg, optimizer)
