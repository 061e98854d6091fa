"""Precise statistics of batch norms: they change no training, and keep no signal waiting."""

import pytest
import torch
from detectron2.modeling import RetinaNet

from skd.runtime.preemption import EXIT_REQUEUE, PreemptionHook
from tests.helpers import check_resume, differing, tiny_config, train_until


@pytest.fixture
def config(shapes):
    cfg = tiny_config("retinanet", SOLVER__CHECKPOINT_PERIOD=2, SEED=1)
    cfg.DATASETS.TEST, cfg.TEST.EVAL_PERIOD = (), 2
    cfg.TEST.PRECISE_BN.ENABLED, cfg.TEST.PRECISE_BN.NUM_ITER = True, 3
    return cfg


def test_a_loss_normalizer_is_that_of_the_training(config, tmp_path):
    """Also in the checkpoint that a resume goes on from."""
    check_resume(config, tmp_path / "precise", until=2)
    precise = train_until(config, tmp_path / "again")
    config.TEST.PRECISE_BN.ENABLED = False
    plain = train_until(config, tmp_path / "plain")
    assert precise.model.loss_normalizer == plain.model.loss_normalizer
    different = differing(precise.model.state_dict(), plain.model.state_dict())
    assert different and not {*different} & {n for n, _ in precise.model.named_parameters()}


def test_a_signal_is_not_kept_waiting(config, tmp_path, monkeypatch):
    """The statistics are made by the resume, before anything else."""
    config.TEST.PRECISE_BN.NUM_ITER = 5
    whole = train_until(config, tmp_path / "whole").model.state_dict()
    made, hook = [], []
    forward, before_train = RetinaNet.forward, PreemptionHook.before_train

    def passing(self, inputs):
        made.append(not torch.is_grad_enabled())
        if made.count(True) == 2:
            hook[0]._received = 0.0  # as a signal's
        return forward(self, inputs)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(RetinaNet, "forward", passing)
        patch.setattr(
            PreemptionHook, "before_train", lambda self: hook.append(self) or before_train(self)
        )
        train_until(config, tmp_path / "parts")
    assert end.value.code == EXIT_REQUEUE and made.count(True) == 2  # of 5
    state = torch.load(tmp_path / "parts" / "model_0000001.pth")["trainer"]
    assert state["hooks"]["PreciseBN"] == {"stopped": 1}
    resumed = train_until(config, tmp_path / "parts", resume=True).model.state_dict()
    assert not differing(whole, resumed)
