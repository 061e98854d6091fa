"""The best checkpoint: kept, overwritten by a better one only, and remembered by a resume."""

import json
from contextlib import nullcontext
from math import nan

import pytest
import torch

from skd import student_config
from skd.engine import SKDTrainer, describe
from skd.engine.best import BestCheckpointer, EarlyStopping
from skd.engine.missed import Evaluation
from skd.engine.run import _check_best_metric
from tests.helpers import tiny_config

RESULTS = {1: 10.0, 2: 30.0, 3: 20.0, 4: 25.0, 5: nan, 6: 1.0}


class Scripted(SKDTrainer):
    """Its evaluations come out as a list says."""

    def build_hooks(self):
        self.run.evaluate = lambda model: {
            "segm": {"AP": RESULTS[min(self.iter + 1, self.max_iter)]}
        }
        return super().build_hooks()


def trained(folder, iterations, resume=False, metric="segm/AP", **changes):
    changes = {"SOLVER__MAX_ITER": iterations, "SOLVER__BEST_METRIC": metric, **changes}
    cfg = tiny_config("faster_rcnn", **changes)
    cfg.TEST.EVAL_PERIOD, cfg.OUTPUT_DIR = 1, str(folder)
    trainer = Scripted(cfg)
    trainer.resume_or_load(resume)
    trainer.train()
    return trainer


def test_the_best_is_kept_through_a_resume(shapes, tmp_path):
    trained(tmp_path, 3)
    best = torch.load(tmp_path / "model_best.pth", weights_only=False)
    assert best["iteration"] == 1  # the second
    trainer = trained(tmp_path, 5, resume=True)
    assert torch.load(tmp_path / "model_best.pth", weights_only=False)["iteration"] == 1
    (hook,) = [h for h in trainer._hooks if isinstance(h, BestCheckpointer)]
    assert (hook.best_metric, hook.best_iter) == (30, 1)


class Killed(BaseException):
    """As kill -9 in the middle of a training: nothing is written any more."""


def killed(folder, monkeypatch, at, **changes):
    """A training that is killed at the beginning of an iteration."""

    def before_step(self):
        if self.trainer.iter == at:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(BestCheckpointer, "before_step", before_step)
        trained(folder, 6, **changes)


def test_a_run_that_is_killed_after_its_best_result_knows_it_when_it_resumes(
    shapes, tmp_path, monkeypatch
):
    killed(tmp_path, monkeypatch, at=2, SOLVER__PATIENCE=2)  # of results 10 and 30
    assert (tmp_path / "last_checkpoint").read_text() == "model_best.pth"
    trainer = trained(tmp_path, 6, resume=True, SOLVER__PATIENCE=2)  # 20, 25
    assert torch.load(tmp_path / "model_best.pth", weights_only=False)["iteration"] == 1
    assert trainer.iter == 3


def killed_in_evaluation(folder, monkeypatch, after, **changes):
    """A training that is killed between the checkpoint of an iteration and its result."""

    def do_eval(self):
        if self.trainer.iter == after:
            raise Killed
        evaluate(self)

    evaluate = Evaluation._do_eval
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Evaluation, "_do_eval", do_eval)
        trained(folder, 6, SOLVER__CHECKPOINT_PERIOD=1, **changes)
    assert (folder / "last_checkpoint").read_text() == f"model_{after:07d}.pth"


def test_an_evaluation_that_a_kill_cut_off_is_made_up_for(shapes, tmp_path, monkeypatch):
    changes = {"SOLVER__PATIENCE": 2, "SOLVER__CHECKPOINT_PERIOD": 1}
    killed_in_evaluation(tmp_path, monkeypatch, after=1, SOLVER__PATIENCE=2)  # after 10, before 30
    trainer = trained(tmp_path, 6, resume=True, **changes)
    best = torch.load(tmp_path / "model_best.pth", weights_only=False)
    assert best["iteration"] == best["trainer"]["iteration"] == 1
    assert best["trainer"]["hooks"]["ReproducibleSteps"]["images"] == 4
    assert trainer.start_iter == 2 and trainer.iter == 3  # 30, then 20 and 25


def test_it_may_be_the_one_that_ends_the_training(shapes, tmp_path, monkeypatch):
    changes = {"SOLVER__PATIENCE": 2, "SOLVER__CHECKPOINT_PERIOD": 1}
    killed_in_evaluation(tmp_path, monkeypatch, after=3, SOLVER__PATIENCE=2)
    trainer = trained(tmp_path, 6, resume=True, **changes)
    assert trainer.iter == 3 and trainer._last_eval_results == {"segm": {"AP": 25.0}}
    assert torch.load(tmp_path / "model_final.pth", weights_only=False)["iteration"] == 3


def test_a_result_that_the_checkpoint_knows_is_not_made_again(shapes, tmp_path, monkeypatch):
    killed(tmp_path, monkeypatch, at=2)  # from model_best, of the result 30
    made = []
    evaluate = Evaluation._do_eval
    monkeypatch.setattr(
        Evaluation, "_do_eval", lambda self: made.append(self.trainer.iter) or evaluate(self)
    )
    trained(tmp_path, 4, resume=True)
    assert made == [2, 4]


def test_a_longer_run_from_a_best_result_at_the_end_leaves_no_iteration_out(shapes, tmp_path):
    trained(tmp_path, 2)  # the second result is the better one
    assert (tmp_path / "last_checkpoint").read_text() == "model_best.pth"
    state = torch.load(tmp_path / "model_best.pth", weights_only=False)["trainer"]
    assert state["iteration"] == 1 and state["hooks"]["ReproducibleSteps"]["images"] == 4
    assert trained(tmp_path, 3, resume=True).start_iter == 2


def test_none_without_the_key_and_errors_name_it(shapes, tmp_path):
    trainer = trained(tmp_path, 1, metric="")
    assert not any(isinstance(h, BestCheckpointer) for h in trainer._hooks)
    assert not (tmp_path / "model_best.pth").exists()
    with pytest.raises(ValueError, match="SOLVER.BEST_METRIC is 'AP'; it must be TASK/RESULT"):
        trained(tmp_path, 1, metric="AP")
    assert "BEST_METRIC" not in student_config(tiny_config()).dump()
    cfg = tiny_config(SOLVER__BEST_METRIC="bbox/AP", DATASETS__TEST=("tiny_val", "tiny_train"))
    with pytest.raises(ValueError, match="BEST_METRIC is .*2 test sets.*'tiny_val/bbox/AP'"):
        Scripted(cfg)


def test_the_best_of_another_metric_starts_anew(caplog):
    hook = BestCheckpointer(1, None, "segm/AP", ["a"])
    hook.load_state_dict({"metric": "bbox/AP", "best_metric": 40.0, "best_iter": 3})
    assert hook.best_metric is None and "so far is bbox/AP on a" in caplog.text
    best = {"best_metric": 40.0, "best_iter": 3}
    hook.load_state_dict(best)  # of an earlier version
    assert hook.state_dict() == {"metric": "segm/AP", "test_sets": ["a"], **best}


def test_the_best_on_other_test_sets_starts_anew(caplog):
    before = BestCheckpointer(1, None, "segm/AP", ["a"]).state_dict()
    state = {**before, "best_metric": 40.0, "best_iter": 3, "best": 40.0, "waited": 5}
    for hook in (
        BestCheckpointer(1, None, "segm/AP", ["b", "c"]),
        EarlyStopping(None, 1, "segm/AP", ["b", "c"], 3, "SOLVER.PATIENCE"),
    ):
        caplog.clear()
        new = hook.state_dict()
        hook.load_state_dict(state)
        assert hook.state_dict() == new
        assert "so far is segm/AP on a; the best of segm/AP on b, c starts anew" in caplog.text
    hook = BestCheckpointer(1, None, "a/segm/AP", ["b", "a"])  # which names its set
    hook.load_state_dict({**state, "metric": "a/segm/AP"})
    assert hook.best_metric == 40.0


def test_a_resume_on_another_test_set_keeps_its_own_best(shapes, tmp_path, caplog):
    trained(tmp_path, 3)
    trained(tmp_path, 5, resume=True, DATASETS__TEST=("tiny_train",))
    assert torch.load(tmp_path / "model_best.pth", weights_only=False)["iteration"] == 3
    assert "segm/AP on tiny_val; the best of segm/AP on tiny_train starts anew" in caplog.text


@pytest.mark.parametrize(
    "metric,sets,message",
    [
        ("bbox/AP", ("a/b", "c"), "2 test sets: say of which, e.g. 'a/b/bbox/AP'"),
        ("a/bbox/AP", ("a/b", "c"), "2 test sets: say of which, e.g. 'a/b/bbox/AP'"),
        ("a/b/bbox/AP", ("a/b", "c"), ""),
        ("c/bbox/AP", ("a/b", "c"), ""),
        ("c_EMA/bbox/AP", ("a/b", "c"), "SOLVER.EMA_DECAY is 0: there are no averaged weights"),
        ("bbox_EMA/AP", ("a/b",), "SOLVER.EMA_DECAY is 0: there are no averaged weights"),
        ("a/b/bbox/AP", ("a/b",), "with one test set it must be 'bbox/AP'"),
        ("bbox/AP", ("a/b",), ""),
        ("bbox/AP", ("bbox",), ""),
    ],
)
def test_a_metric_says_of_which_set_where_there_are_several(metric, sets, message):
    run = describe(tiny_config(SOLVER__BEST_METRIC=metric, DATASETS__TEST=sets))
    with pytest.raises(ValueError, match=message) if message else nullcontext():
        _check_best_metric(run)


def test_a_metric_that_is_never_computed_is_one_warning(shapes, tmp_path, caplog):
    trained(tmp_path, 3, metric="segm/mAP")
    assert caplog.text.count("BEST_METRIC is 'segm/mAP', which is not among") == 1
    assert "results: segm/AP. While" in caplog.text
    assert (tmp_path / "model_final.pth").exists()


def test_patience_begins_with_the_first_result(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr("tests.engine.test_best.RESULTS", {**RESULTS, 1: nan, 2: nan, 3: 1.0})
    trainer, results = waiting(tmp_path, iterations=5, patience=1)
    assert trainer.iter == 5 and results["segm"]["AP"] is nan


def test_a_resume_at_its_end_says_so_and_evaluates(shapes, tmp_path, caplog):
    trained(tmp_path, 3)
    assert "NOTHING IS LEFT" not in caplog.text
    trainer = trained(tmp_path, 2, resume=True)
    words = "has 3 iterations, and SOLVER.MAX_ITER is 2: NOTHING IS LEFT TO TRAIN"
    assert words in caplog.text and trainer._last_eval_results == {"segm": {"AP": 30.0}}


def waiting(folder, iterations=6, resume=False, patience=2, **changes):
    cfg = tiny_config(
        "faster_rcnn", SOLVER__MAX_ITER=iterations, SOLVER__BEST_METRIC="segm/AP",
        SOLVER__PATIENCE=patience, OUTPUT_DIR=str(folder), TEST__EVAL_PERIOD=1, **changes,
    )  # fmt: skip
    trainer = Scripted(cfg)
    trainer.resume_or_load(resume)
    return trainer, trainer.train()


def test_patience_ends_the_training_as_its_last_iteration_does(shapes, tmp_path):
    trainer, results = waiting(tmp_path)  # the second is the best
    assert trainer.iter == 3 and results == {"segm": {"AP": 25.0}}
    final = torch.load(tmp_path / "model_final.pth", weights_only=False)
    assert final["iteration"] == 3
    rows = [json.loads(line) for line in open(tmp_path / "metrics.json")]
    assert [row["segm/AP"] for row in rows][-1] == 25.0


def test_an_equal_result_is_no_better_one(shapes, tmp_path, monkeypatch):
    monkeypatch.setitem(RESULTS, 3, RESULTS[2])
    assert waiting(tmp_path)[0].iter == 3


def test_a_resume_after_an_early_end_waits_as_long_as_it_is_told(shapes, tmp_path, caplog):
    waiting(tmp_path)
    trainer, results = waiting(tmp_path, resume=True)
    assert trainer.iter == 4 and results == {} and "raise SOLVER.PATIENCE" in caplog.text
    trainer, _ = waiting(tmp_path, resume=True, patience=9)
    assert torch.load(tmp_path / "model_final.pth", weights_only=False)["iteration"] == 5


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"SOLVER__PATIENCE": -1}, "SOLVER.PATIENCE is -1; it must be a whole number, 0 or above"),
        ({"SOLVER__PATIENCE": 2}, "SOLVER.PATIENCE is 2, and SOLVER.BEST_METRIC is ''"),
        (
            {"SOLVER__PATIENCE": 2, "SOLVER__BEST_METRIC": "bbox/AP", "TEST__EVAL_PERIOD": 0},
            "SOLVER.PATIENCE is 2, and TEST.EVAL_PERIOD is 0",
        ),
        ({"SOLVER__EMA_DECAY": 1.0}, "SOLVER.EMA_DECAY is 1.0; it must be a number from 0"),
    ],
)
def test_patience_and_decay_that_cannot_be_followed_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        SKDTrainer(tiny_config(**{"TEST__EVAL_PERIOD": 1, **changes}))
