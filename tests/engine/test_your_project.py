"""docs/your_project.md, run as it stands there, for a toy project."""

import re
import shlex
import sys

import pytest
import torch
from detectron2.config import CfgNode, LazyConfig, instantiate
from detectron2.engine import DefaultTrainer
from detectron2.modeling import META_ARCH_REGISTRY, build_model

from skd import DistillRCNN, student_config, train_net
from skd.config import projects
from tests.helpers import batch, python_blocks, read, save_detector, tiny_config

PACKAGE = """
from detectron2.config import CfgNode as CN
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN

def add_your_config(cfg):
    cfg.MODEL.YOURS = CN({"SCALE": 1.0})

@META_ARCH_REGISTRY.register()
class YourRCNN(GeneralizedRCNN):
    def __init__(self, cfg):
        super().__init__(cfg)
        self.scale = cfg.MODEL.YOURS.SCALE
"""
LAZY = """
from detectron2.config import LazyCall as L, get_cfg
from detectron2.modeling import build_model

def build():
    cfg = get_cfg()
    cfg.merge_from_file({config!r})
    return build_model(cfg)

model = L(build)()
dataloader, optimizer, lr_multiplier, train = {{}}, {{}}, {{}}, dict(max_iter=5)
"""
LAZY_BLOCK, TRAINER_BLOCK = python_blocks("docs/your_project.md")


@pytest.fixture
def project(tmp_path, monkeypatch, shapes):
    """A folder with a package, and configs and a teacher that need it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(projects, "_used", {})
    (tmp_path / "your_project.py").write_text(PACKAGE)
    cfg = tiny_config("faster_rcnn", SOLVER__MAX_ITER=1, MODEL__RPN__POST_NMS_TOPK_TEST=20)
    projects.declare(cfg, ["your_project"])
    cfg.MODEL.META_ARCHITECTURE = "YourRCNN"
    for name in ("student", "teacher"):
        (tmp_path / f"your_{name}.yaml").write_text(student_config(cfg).dump())
    _, weights = save_detector(cfg, tmp_path / "teacher")
    (tmp_path / "teacher" / "model_final.pth").rename(tmp_path / "your_teacher.pth")
    yield student_config(cfg)
    sys.modules.pop("your_project", None)
    META_ARCH_REGISTRY._obj_map.pop("YourRCNN", None)


def test_a_yaml_config_trains_and_loads_plainly(project):
    """The page's command trains and evaluates; the student loads plainly, with equal results."""
    text = re.sub(r"\\\n\s*", " ", read("docs/your_project.md"))
    (line,) = re.findall(r"python train_net.py (--project .*)", text)
    args = train_net.argument_parser().parse_args([*shlex.split(line), "OUTPUT_DIR", "out"])
    results = train_net.main(args)
    plain = build_model(project)
    state = torch.load("out/model_final.pth")["model"]
    assert not plain.load_state_dict(state, strict=False).missing_keys
    args.eval_only, args.teacher, args.teacher_weights = True, "", ""
    args.opts += ["MODEL.WEIGHTS", "out/model_final.pth"]
    assert train_net.main(args)["bbox"] == pytest.approx(results["bbox"], nan_ok=True)
    assert "YOURS" in open("out/student.yaml").read()
    assert "YourRCNN" in open("out/student.yaml").read()


def test_a_lazy_config_is_a_model_that_distils(project, teacher_files):
    for name in ("student", "teacher"):
        with open(f"your_{name}.py", "w") as f:
            f.write(LAZY.format(config=teacher_files[0]))
    with open("distilling.py", "w") as f:
        f.write(LAZY_BLOCK.replace("your_teacher.pth", teacher_files[1]))
    model = instantiate(LazyConfig.load("distilling.py").model)
    assert isinstance(model, DistillRCNN) and model.distiller.balance is not None


def test_a_trainer_of_ones_own_sees_its_config_and_distils(project):
    class Trainer(DefaultTrainer):
        @classmethod
        def build_train_loader(cls, cfg):
            assert cfg.MODEL.META_ARCHITECTURE == "YourRCNN"
            return [batch()]

    project.OUTPUT_DIR = "."
    space = {"Trainer": Trainer, "cfg": project}
    exec(TRAINER_BLOCK, space)
    trainer = space["trainer"]
    assert isinstance(project, CfgNode) and isinstance(trainer.model, DistillRCNN)
    trainer.train()
    state = torch.load("model_final.pth")["model"]
    assert not build_model(project).load_state_dict(state, strict=False).missing_keys
