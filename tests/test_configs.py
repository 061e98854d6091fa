import glob
import os

import pytest
from detectron2 import model_zoo
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from skd import add_skd_config, distill, student_config
from skd.config import is_distilling, is_lazy_file
from skd.teacher import find_config

from .conftest import ROOT, tiny_config

LEAVES = sorted(glob.glob(os.path.join(ROOT, "configs", "COCO-*", "*.yaml")))


def load(path, **changes):
    cfg = get_cfg()
    add_skd_config(cfg)
    cfg.merge_from_file(path)
    cfg.MODEL.DEVICE = "cpu"
    for key, value in changes.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


@pytest.mark.parametrize("path", LEAVES, ids=os.path.basename)
def test_every_coco_leaf_builds(path):
    """With a teacher from the zoo whose checkpoint exists there, though it is not fetched here."""
    cfg = load(path)
    assert is_distilling(cfg)
    assert model_zoo.get_checkpoint_url(cfg.MODEL.TEACHER.CONFIG_FILE).startswith("https://")
    cfg.MODEL.TEACHER.RANDOM_WEIGHTS = True
    model = build_model(cfg)
    levels = (
        ["p3", "p4", "p5", "p6", "p7"] if "retinanet" in path else ["p2", "p3", "p4", "p5", "p6"]
    )
    assert list(model.pairs) == levels
    depth = 50 if "_R_50_" in path else 18
    assert cfg.MODEL.RESNETS.DEPTH == depth
    assert cfg.SOLVER.MAX_ITER == (90000 if path.endswith("_1x.yaml") else 180000)
    assert cfg.MODEL.MASK_ON == ("mask_rcnn" in path)
    preset = "one_stage" if "retinanet" in path else "two_stage"
    assert model.distiller.preset == preset


def test_there_is_a_leaf_for_each_detector_student_and_schedule():
    names = {os.path.basename(p) for p in LEAVES}
    for detector in ("faster_rcnn", "mask_rcnn", "retinanet"):
        for student in ("R_50", "R_18"):
            for schedule in ("1x", "2x"):
                assert f"skd_{detector}_{student}_FPN_{schedule}.yaml" in names


@pytest.mark.parametrize(
    "leaf,stock",
    [
        (
            "COCO-Detection/skd_faster_rcnn_R_50_FPN_1x.yaml",
            "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml",
        ),
        (
            "COCO-Detection/skd_retinanet_R_50_FPN_1x.yaml",
            "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
        ),
        (
            "COCO-InstanceSegmentation/skd_mask_rcnn_R_50_FPN_1x.yaml",
            "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
        ),
    ],
)
def test_the_student_is_detectron2_s_own(leaf, stock):
    ours = student_config(load(os.path.join(ROOT, "configs", leaf)))
    theirs = get_cfg()
    theirs.merge_from_file(find_config(stock))
    theirs.MODEL.DEVICE = "cpu"
    assert ours.dump() == theirs.dump()


@pytest.mark.parametrize("name", ["student", "teacher", "skd_student"])
def test_shapes_configs_build(name):
    cfg = load(os.path.join(ROOT, "configs", "shapes", f"{name}.yaml"))
    if is_distilling(cfg):
        cfg.MODEL.TEACHER.CONFIG_FILE = os.path.join(ROOT, cfg.MODEL.TEACHER.CONFIG_FILE)
        cfg.MODEL.TEACHER.WEIGHTS = os.path.join(ROOT, cfg.MODEL.TEACHER.WEIGHTS)
    parameters = sum(p.numel() for p in build_model(cfg).parameters())
    assert parameters < 4.5e6


def test_distill_and_back():
    plain = student_config(tiny_config("retinanet"))
    cfg = plain.clone()
    add_skd_config(cfg)
    add_skd_config(cfg)
    distill(cfg, "teacher.yaml", "teacher.pth")
    distill(cfg, "teacher2.yaml", "teacher2.pth")  # another teacher for the same student
    assert cfg.MODEL.META_ARCHITECTURE == "DistillRCNN"
    assert cfg.MODEL.STUDENT.META_ARCHITECTURE == "RetinaNet"
    assert cfg.MODEL.TEACHER.CONFIG_FILE == "teacher2.yaml"
    assert student_config(cfg).dump() == plain.dump()
    cfg.freeze()
    assert student_config(cfg).is_frozen()


def test_none_keys_take_values_from_the_command_line():
    cfg = tiny_config()
    cfg.merge_from_list(["MODEL.DISTILLER.STRUCTURED.TEMPERATURE", "0.3"])
    cfg.merge_from_list(["MODEL.DISTILLER.STRUCTURED.NON_LOCAL.WIDTHS", "[[4, 8]]"])
    assert cfg.MODEL.DISTILLER.STRUCTURED.TEMPERATURE == 0.3
    assert cfg.MODEL.DISTILLER.STRUCTURED.NON_LOCAL.WIDTHS == [[4, 8]]
    with pytest.raises(AssertionError, match="Non-existent key.*TEMPRATURE"):
        cfg.merge_from_list(["MODEL.DISTILLER.STRUCTURED.TEMPRATURE", "0.3"])


def test_lazy_files_are_told_from_yaml(tmp_path):
    assert is_lazy_file("anything.py")
    (tmp_path / "lazy.yaml").write_text("train:\n  x: 1\nmodel:\n  _target_: x\n")
    (tmp_path / "cfg.yaml").write_text("MODEL:\n  model: 1\n")
    assert is_lazy_file(str(tmp_path / "lazy.yaml")) and not is_lazy_file(
        str(tmp_path / "cfg.yaml")
    )
