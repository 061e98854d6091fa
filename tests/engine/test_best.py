"""The best checkpoint: kept, overwritten by a better one only, and remembered by a resume."""

import pytest
import torch

from skd import student_config
from skd.engine import SKDTrainer
from skd.engine.best import BestCheckpointer
from tests.helpers import tiny_config

RESULTS = {1: 10.0, 2: 30.0, 3: 20.0, 4: 25.0, 5: float("nan")}


class Scripted(SKDTrainer):
    """Its evaluations come out as a list says."""

    def build_hooks(self):
        self.run.evaluate = lambda model: {
            "segm": {"AP": RESULTS[min(self.iter + 1, self.max_iter)]}
        }
        return super().build_hooks()


def trained(folder, iterations, resume=False, metric="segm/AP"):
    cfg = tiny_config("faster_rcnn", SOLVER__MAX_ITER=iterations, SOLVER__BEST_METRIC=metric)
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


def test_none_without_the_key_and_errors_name_it(shapes, tmp_path):
    trainer = trained(tmp_path, 1, metric="")
    assert not any(isinstance(h, BestCheckpointer) for h in trainer._hooks)
    assert not (tmp_path / "model_best.pth").exists()
    with pytest.raises(ValueError, match="SOLVER.BEST_METRIC is 'AP'; it must be TASK/RESULT"):
        trained(tmp_path, 1, metric="AP")
    assert "BEST_METRIC" not in student_config(tiny_config()).dump()
