import copy
import glob
import os

import pytest
from detectron2 import model_zoo
from detectron2.config import LazyConfig, get_cfg
from detectron2.modeling import build_model
from omegaconf import OmegaConf

from skd import DistillRCNN, add_skd_config, distill, student_config
from skd.config import form_of, is_distilling, is_lazy_file
from skd.modeling.model_zoo import find_config, zoo_names
from skd.modeling.state import pairs_of
from tests.helpers import ROOT, read_config, tiny_config

LEAVES = sorted(glob.glob(os.path.join(ROOT, "configs", "COCO-*", "*.yaml")))


@pytest.mark.parametrize("path", LEAVES, ids=os.path.basename)
def test_every_coco_leaf_builds(path):
    """Each config builds, and the zoo has its teacher's checkpoint, which is not fetched here."""
    cfg = read_config(path)
    assert is_distilling(cfg)
    assert model_zoo.get_checkpoint_url(cfg.MODEL.TEACHER.CONFIG_FILE).startswith("https://")
    cfg.MODEL.TEACHER.RANDOM_WEIGHTS = True
    if "MobileNet" in path:
        pytest.importorskip("timm")
        cfg.MODEL.TIMM.PRETRAINED = False
    model = build_model(cfg)
    levels = ["p2", "p3", "p4", "p5", "p6"]
    if "retinanet" in path:
        levels = ["p3", "p4", "p5", "p6", "p7"]
    elif "_C4_" in path or "_DC5_" in path:
        levels = ["res4" if "_C4_" in path else "res5"]
    assert list(pairs_of(model)) == levels
    assert cfg.SOLVER.MAX_ITER == (180000 if path.endswith("_2x.yaml") else 90000)
    preset = "one_stage" if "retinanet" in path else "two_stage"
    assert model.distiller.preset == preset


def test_there_is_a_leaf_for_each_detector_student_and_schedule():
    names = {os.path.basename(p) for p in LEAVES}
    for detector in ("faster_rcnn", "mask_rcnn", "retinanet"):
        for student in ("R_50", "R_18"):
            for schedule in ("1x", "2x"):
                assert f"skd_{detector}_{student}_FPN_{schedule}.yaml" in names


@pytest.mark.parametrize("path", [p for p in LEAVES if "R_50" in p], ids=os.path.basename)
def test_the_student_is_detectron2_s_own(path):
    task, name = path.split(os.sep)[-2:]
    name = name.replace("skd_", "").replace("2x", "1x")
    if "pointrend" in name:
        pytest.skip("Detectron2's package has no config of PointRend to compare with")
    student = student_config(read_config(path))
    stock = get_cfg()
    if "cascade" in name:
        stock.merge_from_file(find_config("Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml"))
        stock.MODEL.MASK_ON = "mask" in name
    else:
        stock.merge_from_file(find_config(f"{task}/{name}"))
    if path.endswith("2x.yaml"):
        stock.SOLVER.STEPS, stock.SOLVER.MAX_ITER = (120000, 160000), 180000
    stock.MODEL.DEVICE = "cpu"
    assert student.dump() == stock.dump()


@pytest.mark.parametrize(
    "leaf",
    [
        "COCO-Detection/skd_fcos_R_50_FPN_1x.py",
        "COCO-InstanceSegmentation/skd_mask_rcnn_regnety_4gf_dds_FPN_1x.py",
    ],
)
def test_the_lazy_student_is_detectron2_s_own(leaf):
    cfg = LazyConfig.load(os.path.join(ROOT, "configs", leaf))
    names = {n.lower(): n for n in zoo_names()}
    stock = LazyConfig.load(find_config(names[leaf.replace("skd_", "").lower()]))
    assert LazyConfig.to_py(student_config(cfg)) == LazyConfig.to_py(stock)
    assert model_zoo.get_checkpoint_url(cfg.model.teacher.config_file).startswith("https://")


@pytest.mark.parametrize("name", ["student", "teacher", "retinanet_student"])
def test_shapes_configs_build(name):
    cfg = read_config(os.path.join(ROOT, "configs", "shapes", f"{name}.yaml"))
    parameters = sum(p.numel() for p in build_model(cfg).parameters())
    assert parameters < 4.5e6


def test_a_config_that_distils_goes_back_to_the_students():
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


def test_distill_and_back_with_a_lazy_config():
    """The same functions; a LazyConfig stays as it was when a student is taken out of it."""
    plain = LazyConfig.load(find_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py"))
    cfg = copy.deepcopy(plain)
    cfg.train.accumulate = 2
    distill(cfg, "teacher.yaml", "teacher.pth")
    distill(cfg, "teacher2.yaml", "teacher2.pth")
    assert is_distilling(cfg) and not is_distilling(plain)
    assert cfg.model.teacher.config_file == "teacher2.yaml" and cfg.model.input_format == "BGR"
    student = student_config(cfg)
    assert LazyConfig.to_py(student) == LazyConfig.to_py(plain)
    student.train.init_checkpoint = "elsewhere.pth"
    assert cfg.train.init_checkpoint == plain.train.init_checkpoint and cfg.train.accumulate == 2


def test_another_teacher_leaves_the_rest_of_a_lazy_config_as_it_is():
    """Published weights stay published ones, as in YAML."""
    path = os.path.join(ROOT, "configs", "COCO-Detection", "skd_fcos_R_50_FPN_1x.py")
    cfg, same = LazyConfig.load(path), LazyConfig.load(path)
    for each in (cfg, same):
        each.model.every, each.model.teacher.precision = 2, "fp16"
    distill(cfg, "teacher2.yaml", "teacher2.pth", ["toy_project"])
    teacher = cfg.model.teacher
    assert teacher.pop("projects") == ["toy_project"] and teacher.pop("weights") == "teacher2.pth"
    assert teacher.config_file == "teacher2.yaml"
    teacher.config_file = same.model.teacher.config_file
    assert LazyConfig.to_py(cfg) == LazyConfig.to_py(same)


@pytest.mark.parametrize("teacher", [{}, {"teacher": {"_target_": "a.b", "model": "built"}}])
def test_a_lazy_config_that_distils_may_name_no_teacher_or_one_of_no_file(teacher):
    model = {"_target_": "skd.DistillRCNN", "student": {"a": 1}, **teacher}
    cfg = OmegaConf.create({"model": model}, flags={"allow_objects": True})
    distill(cfg, "teacher.yaml")
    expected = {"config_file": "teacher.yaml", "weights": ""}
    assert cfg.model.teacher == {"_target_": "skd.build_teacher", **expected}
    assert cfg.model.distiller._target_ == "skd.StructuredDistiller"
    assert cfg.model.student == {"a": 1}


def test_none_keys_take_values_from_the_command_line():
    cfg = tiny_config()
    cfg.merge_from_list(["MODEL.DISTILLER.STRUCTURED.TEMPERATURE", "0.3"])
    cfg.merge_from_list(["MODEL.DISTILLER.STRUCTURED.NON_LOCAL.WIDTHS", "[[4, 8]]"])
    assert cfg.MODEL.DISTILLER.STRUCTURED.TEMPERATURE == 0.3
    assert cfg.MODEL.DISTILLER.STRUCTURED.NON_LOCAL.WIDTHS == [[4, 8]]
    with pytest.raises(AssertionError, match="Non-existent key.*TEMPRATURE"):
        cfg.merge_from_list(["MODEL.DISTILLER.STRUCTURED.TEMPRATURE", "0.3"])


def test_a_flag_behind_the_options_is_told_where_it_belongs():
    with pytest.raises(ValueError, match="'--unlabelled' stands behind KEY VALUE.*put it first"):
        form_of(tiny_config()).override(tiny_config(), ["SEED", "1", "--unlabelled", "folder"])


@pytest.mark.parametrize("value,expected", [("1", 1.0), (1, 1.0), ("0.5", 0.5), ("-1", -1.0)])
def test_a_whole_number_on_the_command_line_is_one_for_a_key_of_fractions(value, expected):
    options = ["MODEL.DISTILLER.BALANCE.SHARE", value, "SOLVER.MAX_ITER", "7"]
    cfg = form_of(tiny_config()).override(tiny_config(), options)
    assert cfg.MODEL.DISTILLER.BALANCE.SHARE == expected and cfg.SOLVER.MAX_ITER == 7
    assert isinstance(cfg.SOLVER.MAX_ITER, int) and options[1] == value
    for wrong in (["SOLVER.BASE_LR"], ["SOLVER.NO_SUCH", "1"], ["SOLVER.BASE_LR", "a"]):
        with pytest.raises((AssertionError, KeyError, ValueError)):
            form_of(cfg).override(cfg, wrong)


def test_lazy_files_are_told_from_yaml(tmp_path):
    assert is_lazy_file("anything.py")
    (tmp_path / "lazy.yaml").write_text("train:\n  x: 1\nmodel:\n  _target_: x\n")
    (tmp_path / "cfg.yaml").write_text("MODEL:\n  model: 1\n")
    assert is_lazy_file(str(tmp_path / "lazy.yaml")) and not is_lazy_file(
        str(tmp_path / "cfg.yaml")
    )


class Mine(DistillRCNN):
    """A LazyConfig may name it."""


@pytest.mark.parametrize(
    "target,distils",
    [
        ("skd.DistillRCNN", True),
        ("skd.modeling.meta_arch.DistillRCNN", True),
        (f"{__name__}.Mine", True),
        ("torch.nn.Linear", False),
        ("no.such.module", False),
    ],
)
def test_a_lazy_config_distils_by_the_class_of_its_model(target, distils):
    """Its fields do not count: a project's own model may have a student and a distiller."""
    model = {"_target_": target, "student": {}, "distiller": {}}
    assert is_distilling(OmegaConf.create({"model": model})) == distils
