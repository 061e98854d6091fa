"""
Another project's keys, its Trainer, the best checkpoint, averaged weights and an early end, in two
real processes.
"""

import json
import os

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import launch
from detectron2.utils import comm

from skd import distilling, student_config, train_net
from skd.engine import SKDTrainer
from skd.engine.average import WeightAverage
from tests.config.test_projects import PACKAGE
from tests.helpers import tiny_config
from tests.processes import leave_together

pytestmark = pytest.mark.slow

# What a user says of a teacher in place of its code; each process leaves a file.
PREPARE = """
def prepare(teacher, batched_inputs):
    import os
    open(os.path.join(os.path.dirname(__file__), f"prepared{os.getpid()}"), "w").close()
    return teacher.preprocess_image(batched_inputs)
"""


class Theirs(SKDTrainer):
    """A project's own Trainer, whose evaluations come out as a list says, in process 0."""

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        # of the average and of the student, at each evaluation
        cls.results = getattr(cls, "results", [1.0, 30.0, 2.0, 20.0])
        value = cls.results.pop(0)
        return {"bbox": {"AP": value}} if comm.is_main_process() else {}


def work(args, plain, teacher_files, out):
    torch.set_num_threads(1)
    train_net.main(train_net.argument_parser().parse_args(args))
    trainer = distilling(Theirs, *teacher_files)(plain)
    trainer.resume_or_load(False)
    trainer.train()
    (average,) = [h.model for h in trainer._hooks if isinstance(h, WeightAverage)]
    state = {"model": trainer.model.state_dict(), "average": average.state_dict()}
    torch.save({**state, "iter": trainer.iter, "end": trainer.max_iter}, f"{out}/{comm.get_rank()}")
    leave_together()


def losses(folder):
    rows = [json.loads(line) for line in open(os.path.join(folder, "metrics.json"))]
    return {k for row in rows for k in row if k.startswith("loss_distill")}


def test_project_best_metric_average_and_early_end(teacher_files, shapes, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shapes))
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "toy_project.py").write_text(PACKAGE + PREPARE)
    plain = tiny_config("faster_rcnn", SOLVER__MAX_ITER=1)
    plain.DATASETS.TRAIN, plain.DATASETS.TEST = ("skd_shapes_train",), ()
    toy = student_config(plain)
    toy.MODEL.META_ARCHITECTURE, toy.MODEL.TOY = "ToyRCNN", CfgNode({"SCALE": 2.0})
    (tmp_path / "toy.yaml").write_text(toy.dump())
    plain.SOLVER.MAX_ITER, plain.SOLVER.BEST_METRIC, plain.TEST.EVAL_PERIOD = 6, "bbox/AP", 1
    plain.SOLVER.PATIENCE, plain.SOLVER.EMA_DECAY = 1, 0.5
    plain.DATASETS.TEST, plain.OUTPUT_DIR = ("skd_shapes_val",), str(tmp_path / "own")
    teacher = ["--teacher", teacher_files[0], "--teacher-weights", teacher_files[1]]
    flags = ["--project", "toy_project:add_toy_config", "--config-file", str(tmp_path / "toy.yaml")]
    prepare = ["MODEL.TEACHER.PREPROCESS", "toy_project:prepare"]
    args = [*flags, *teacher, "OUTPUT_DIR", str(tmp_path / "toy"), *prepare]
    launch(work, 2, dist_url="auto", args=(args, plain, teacher_files, str(tmp_path)))
    assert losses(tmp_path / "toy") and losses(tmp_path / "own")
    assert len(list(tmp_path.glob("prepared*"))) == 2
    assert torch.load(tmp_path / "toy" / "model_final.pth")["iteration"] == 0
    best = torch.load(tmp_path / "own" / "model_best.pth", weights_only=False)
    assert best["iteration"] == 0 and any(k.startswith("distiller.") for k in best["model"])
    # one model, one average and one end in both
    first, second = (torch.load(tmp_path / str(i)) for i in range(2))
    assert [first[k] for k in ("iter", "end")] == [second[k] for k in ("iter", "end")] == [1, 2]
    for state in ("model", "average"):
        norms = [k for k in first[state] if "running" in k or "num_batches" in k]
        own = [k for k in first[state] if k not in norms]  # each process has images of its own
        assert own and all(torch.equal(first[state][k], second[state][k]) for k in own)
    written = torch.load(tmp_path / "own" / "model_ema.pth")["model"]
    assert all(torch.equal(written[k], v) for k, v in first["average"].items())
    assert torch.load(tmp_path / "own" / "model_final.pth")["iteration"] == 1
