import logging
from types import SimpleNamespace

import pytest
from detectron2.utils.events import EventStorage

from skd.distillers import GradientBalance
from skd.engine.readout import DistillationLog

HEALTHY = {
    "distill/share_structured_am": 0.5,
    "distill/cosine_structured_am": 0.014,
    "distill/norm_structured_am": 2.0,
    "distill/norm_detector": 0.1,
    "detector_loss": 1.5,
}


def said(caplog, scalars, iterations=(99,), period=100):
    hook = DistillationLog(period)
    with EventStorage() as storage, caplog.at_level(logging.INFO):
        hook.trainer = SimpleNamespace(storage=storage, iter=0)
        for hook.trainer.iter in iterations:
            storage.iter = hook.trainer.iter
            storage.put_scalars(**scalars)
            hook.after_step()
    return [record.getMessage() for record in caplog.records]


def test_shares_are_percentages(caplog):
    assert said(caplog, HEALTHY, (98, 99)) == [
        "Distillation at iteration 99: structured_am 50.0% of the detector's gradient "
        "(cosine +0.01); detector's losses 1.5"
    ]


def test_a_training_without_a_teacher_is_silent(caplog):
    assert said(caplog, {"total_loss": 1.0}) == []


@pytest.mark.parametrize(
    "until,expected", [(None, ["The teacher stops at iteration 34 of 100"]), (1.0, [])]
)
def test_where_the_teacher_stops_is_said_at_the_start(caplog, until, expected):
    balance = GradientBalance(max_iter=100, until=until)
    model = SimpleNamespace(distiller=SimpleNamespace(balance=balance))
    hook = DistillationLog()
    hook.trainer = SimpleNamespace(model=model, max_iter=100)
    with caplog.at_level(logging.INFO):
        hook.before_train()
    assert [record.getMessage()[:40] for record in caplog.records] == expected


def test_the_end_of_a_distillation_is_said_once(caplog):
    hook = DistillationLog(100)
    with EventStorage() as storage, caplog.at_level(logging.INFO):
        hook.trainer = SimpleNamespace(storage=storage, iter=0)
        for storage.iter in range(400):
            hook.trainer.iter = storage.iter
            if storage.iter < 150:
                storage.put_scalars(**HEALTHY)
            hook.after_step()
    messages = [record.getMessage()[:40] for record in caplog.records]
    assert messages == [
        "Distillation at iteration 99: structured",
        "Distillation at iteration 199: structure",
        "No distillation any more at iteration 29",
    ]


@pytest.mark.parametrize(
    "change,words",
    [
        ({"distill/norm_detector": 0.0}, "have no gradient at the student's feature maps"),
        ({"distill/norm_structured_am": 0.0}, "structured_am has no gradient"),
        ({"distill/cosine_structured_am": -0.4}, "works against the detector's .*cosine -0.40"),
    ],
)
def test_what_cannot_help_is_a_warning_and_said_once(caplog, change, words):
    import re

    messages = said(caplog, {**HEALTHY, **change}, (99, 199))
    assert len(messages) == 3
    assert re.search(words, messages[1])
