"""Another project's keys, its Trainer, and the best checkpoint, in two real processes."""

import json
import os

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import launch
from detectron2.utils import comm

from skd import distilling, student_config, train_net
from skd.engine import SKDTrainer
from tests.config.test_projects import PACKAGE
from tests.helpers import leave_together, tiny_config

pytestmark = pytest.mark.slow


class Theirs(SKDTrainer):
    """A project's own Trainer, whose evaluations come out as a list says, in process 0."""

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        cls.results = getattr(cls, "results", [30.0, 20.0])
        value = cls.results.pop(0)
        return {"bbox": {"AP": value}} if comm.is_main_process() else {}


def work(args, plain, teacher_files, out):
    torch.set_num_threads(1)
    train_net.main(train_net.argument_parser().parse_args(args))
    trainer = distilling(Theirs, *teacher_files)(plain)
    trainer.resume_or_load(False)
    trainer.train()
    weights = [p.detach().double().sum().item() for p in trainer.model.parameters()]
    torch.save(weights, f"{out}/{comm.get_rank()}")
    leave_together()


def losses(folder):
    rows = [json.loads(line) for line in open(os.path.join(folder, "metrics.json"))]
    return {k for row in rows for k in row if k.startswith("loss_distill")}


def test_project_best_metric_and_distilling(teacher_files, shapes, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shapes))
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "toy_project.py").write_text(PACKAGE)
    plain = student_config(tiny_config("faster_rcnn", SOLVER__MAX_ITER=1))
    plain.DATASETS.TRAIN, plain.DATASETS.TEST = ("skd_shapes_train",), ()
    toy = plain.clone()
    toy.MODEL.META_ARCHITECTURE, toy.MODEL.TOY = "ToyRCNN", CfgNode({"SCALE": 2.0})
    (tmp_path / "toy.yaml").write_text(toy.dump())
    plain.SOLVER.MAX_ITER, plain.SOLVER.BEST_METRIC, plain.TEST.EVAL_PERIOD = 2, "bbox/AP", 1
    plain.DATASETS.TEST, plain.OUTPUT_DIR = ("skd_shapes_val",), str(tmp_path / "own")
    teacher = ["--teacher", teacher_files[0], "--teacher-weights", teacher_files[1]]
    flags = ["--project", "toy_project:add_toy_config", "--config-file", str(tmp_path / "toy.yaml")]
    args = [*flags, *teacher, "OUTPUT_DIR", str(tmp_path / "toy")]
    port = 20000 + os.getpid() % 20000
    given = (args, plain, teacher_files, str(tmp_path))
    launch(work, 2, dist_url=f"tcp://127.0.0.1:{port}", args=given)
    assert losses(tmp_path / "toy") and losses(tmp_path / "own")
    assert torch.load(tmp_path / "toy" / "model_final.pth")["iteration"] == 0
    best = torch.load(tmp_path / "own" / "model_best.pth", weights_only=False)
    assert best["iteration"] == 0 and any(k.startswith("distiller.") for k in best["model"])
    assert torch.load(tmp_path / "0") == torch.load(tmp_path / "1")  # one model in both
