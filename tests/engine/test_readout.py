import logging
import math
import re
from types import SimpleNamespace

import pytest
from detectron2.engine.train_loop import TrainerBase
from detectron2.utils.events import EventStorage
from torch import nn

from skd.distillers import DISTILLER_REGISTRY, GradientBalance
from skd.engine.readout import DistillationLog
from tests.helpers import Balanced

HEALTHY = {
    "distill/share_structured_am": 0.5,
    "distill/cosine_structured_am": 0.014,
    "distill/norm_structured_am": 2.0,
    "distill/norm_detector": 0.1,
    "detector_loss": 1.5,
}


def said(caplog, scalars, iterations=(99,), period=100, end=math.inf):
    hook = DistillationLog(period)
    hook.end = end
    with EventStorage() as storage, caplog.at_level(logging.INFO):
        hook.trainer = SimpleNamespace(storage=storage, iter=0, start_iter=0)
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


def test_the_last_shares_are_not_said_again_after_the_teacher_has_stopped(caplog):
    """The shares of iteration 259 are not said at 299, though less than a period old."""
    assert said(caplog, HEALTHY, (259, 299), end=267) == []
    assert len(said(caplog, HEALTHY, (299,), end=300)) == 1


@pytest.mark.parametrize(
    "max_iter,until,said", [(240, None, [79]), (40, 1.0, [39]), (330, None, [99]), (1, None, [0])]
)
def test_a_short_training_says_what_its_terms_did_before_the_teacher_stops(
    max_iter, until, said, caplog
):
    """At iteration 99, the first, there is no teacher any more, or no training."""
    trainer = TrainerBase()
    trainer.model = nn.Sequential(Balanced(GradientBalance(max_iter=max_iter, until=until)))
    trainer.run_step = lambda: trainer.storage.put_scalars(**HEALTHY)
    trainer.register_hooks([DistillationLog()])
    with caplog.at_level(logging.INFO, logger="skd"):
        trainer.train(0, max_iter)
    words = [r.getMessage() for r in caplog.records if r.name.startswith("skd")]
    found = [re.match(r"Distillation at iteration (\d+):", w) for w in words]
    assert [int(f.group(1)) for f in found if f] == said
    assert any("stops" in w for w in words) == (until is None and max_iter > 1)


def test_levels_are_said_with_the_terms_and_without(caplog):
    """There are no shares where nothing is balanced."""
    levels = {"distill/cka_p2": 0.123, "distill/cka_p3": 0.456}
    words = "student's and teacher's maps alike (CKA): p2 0.12, p3 0.46"
    (with_terms,) = said(caplog, {**HEALTHY, **levels})
    assert with_terms.endswith(f"(cosine +0.01); {words}; detector's losses 1.5")
    caplog.clear()
    assert said(caplog, levels) == [f"Distillation at iteration 99: {words}"]


def test_a_training_without_a_teacher_is_silent(caplog):
    assert said(caplog, {"total_loss": 1.0}) == []


def log_of_a_training(caplog, start, **settings):
    trainer = TrainerBase()
    trainer.model, trainer.run_step = nn.Sequential(Balanced(GradientBalance(**settings))), int
    trainer.register_hooks([DistillationLog()])
    with caplog.at_level(logging.INFO, logger="skd"):
        trainer.train(start, 10)
    return [r.getMessage() for r in caplog.records if r.name.startswith("skd")]


def test_where_the_teacher_stops_is_said_before_and_when_it_does(caplog):
    assert log_of_a_training(caplog, 0, max_iter=10) == [
        "The teacher stops at iteration 4 of 10 (GradientBalance's until).",
        "The teacher stops here, at iteration 4: from now on the training is the student's own.",
    ]


def test_a_run_that_resumes_after_the_end_says_so(caplog):
    (said,) = log_of_a_training(caplog, 5, max_iter=10)
    assert said.startswith("The teacher has stopped at iteration 4 of 10")


class Alike(Balanced):
    """A model whose step logs a CKA that rises from 0.2 by as much in each iteration."""

    rise = 0.0

    def step(self, trainer):
        rising = {"distill/cka_p2": 0.2 + self.rise * trainer.iter, "distill/cka_p3": 0.95}
        trainer.storage.put_scalars(**rising)


@pytest.mark.parametrize(
    "rise,start,method,words",
    [
        (0.2, 0, "PKD", r" The maps have come 75% of the way to .* 0.20 to 0.80\)\.$"),
        (0.01, 0, "PKD", "4% of the way .* hardly follows .* GradientBalance's share, .*ts.md"),
        (-0.01, 0, "PKD", r" come 0% of the way .*CKA p2 0.20 to 0.17\), so .* hardly follows"),
        (0.01, 0, "AT", r"4% of the way to the teacher's \(CKA p2 0.20 to 0.23\)\.$"),
        (0.01, 0, "SP", r"4% of the way to the teacher's \(CKA p2 0.20 to 0.23\)\.$"),
        (0.01, 1, "PKD", "the student's own.$"),  # it has not seen the start
    ],
)
def test_how_far_the_student_followed_is_said_at_the_end(caplog, rise, start, method, words):
    trainer = TrainerBase()
    model = Alike(GradientBalance(max_iter=10), DISTILLER_REGISTRY.get(method))
    model.rise = rise
    trainer.model, trainer.run_step = nn.Sequential(model), lambda: model.step(trainer)
    trainer.register_hooks([DistillationLog()])
    with caplog.at_level(logging.INFO, logger="skd"):
        trainer.train(start, 10)
    (said,) = [r.getMessage() for r in caplog.records if "stops here" in r.getMessage()]
    assert re.search(words, said)


def test_a_teacher_to_the_end_is_no_message(caplog):
    assert log_of_a_training(caplog, 0, max_iter=10, until=1.0) == []


@pytest.mark.parametrize(
    "change,words",
    [
        ({"distill/norm_detector": 0.0}, "have no gradient at the student's feature maps"),
        ({"distill/norm_structured_am": 0.0}, "structured_am has no gradient"),
        ({"distill/cosine_structured_am": -0.4}, "works against the detector's .*cosine -0.40"),
    ],
)
def test_what_cannot_help_is_a_warning_and_said_once(caplog, change, words):
    messages = said(caplog, {**HEALTHY, **change}, (99, 199))
    assert len(messages) == 3
    assert re.search(words, messages[1])


def test_a_warning_is_not_repeated_because_its_number_changes(caplog):
    hook = DistillationLog(period=1)
    with EventStorage() as storage:
        for cosine in (-0.4, -0.3):
            hook.trainer = SimpleNamespace(storage=storage, iter=storage.iter, start_iter=0)
            storage.put_scalars(**{**HEALTHY, "distill/cosine_structured_am": cosine})
            hook.after_step()
            storage.step()
    (said,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "(cosine -0.40)" in said
