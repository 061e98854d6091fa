import logging

import pytest
import torch
from detectron2.modeling import build_model

from skd import student_config
from skd.modeling.inherit import components, inherit
from tests.helpers import distilling, save_detector, tiny_config


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A Mask R-CNN with the tiny students' FPN and heads on a backbone of the same widths."""
    return save_detector(tiny_config(width=4, fpn=16), tmp_path_factory.mktemp("wide"), seed=5)


def inheriting(student, files):
    return distilling(student, files, MODEL__STUDENT__INHERIT=True)


def test_components_are_the_fpn_and_each_head():
    model = build_model(student_config(tiny_config()))
    parts = components(model)
    assert list(parts) == [
        "backbone",
        "proposal_generator",
        "roi_heads.box_head",
        "roi_heads.box_predictor",
        "roi_heads.mask_head",
    ]
    named = [k for part in parts.values() for k in part]
    rest = [k for k in model.state_dict() if k not in named]
    assert all(k.startswith(("backbone.bottom_up.", "pixel_")) for k in rest)
    assert not any(k.startswith("backbone.bottom_up.") for k in named)


def test_a_backbone_without_fpn_is_not_inherited(tmp_path):
    cfg = tiny_config("faster_rcnn")
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res4"]
    cfg.MODEL.RPN.IN_FEATURES = cfg.MODEL.ROI_HEADS.IN_FEATURES = ["res4"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32, 64]]
    cfg.MODEL.ROI_HEADS.NAME = "Res5ROIHeads"
    assert "backbone" not in components(build_model(student_config(cfg)))


def test_nothing_is_inherited_by_default(wide):
    torch.manual_seed(0)
    model = build_model(distilling(tiny_config(), wide))
    torch.manual_seed(0)
    plain = build_model(student_config(tiny_config()))
    for name, value in plain.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_copies_all_that_agrees_and_says_so(wide, caplog):
    torch.manual_seed(0)
    student = tiny_config(MODEL__ROI_HEADS__NUM_CLASSES=4)  # two heads differ
    with caplog.at_level(logging.INFO, "skd.modeling.inherit"):
        model = build_model(inheriting(student, wide))
    torch.manual_seed(0)
    untouched = build_model(student_config(student)).state_dict()
    theirs = torch.load(wide[1])["model"]
    copied = ("backbone.fpn_", "proposal_generator.", "roi_heads.box_head.")
    for name, value in untouched.items():
        expected = theirs[name] if name.startswith(copied) else value
        assert torch.equal(model.state_dict()[name], expected), name
    lines = caplog.text.splitlines()
    rows = {line.split()[0]: line for line in lines if line.startswith(("backbone", "roi_heads"))}
    assert rows["backbone"].endswith("yes") and rows["roi_heads.box_head"].endswith("yes")
    assert "cls_score.weight is (5, 32), the teacher's (7, 32)" in rows["roi_heads.box_predictor"]
    assert "roi_heads.mask_head.predictor" in rows["roi_heads.mask_head"]


def test_a_part_is_copied_whole_or_not_at_all(tmp_path, wide, caplog):
    """RetinaNet's FPN shares names with Mask R-CNN's, but is another; so are the heads."""
    with pytest.raises(ValueError, match="nothing of the teacher's FPN and heads") as error:
        build_model(inheriting(tiny_config("retinanet"), wide))
    assert "backbone.top_block.p6.weight is in the student only" in str(error.value)
    assert "no: the teacher has none" in str(error.value)


def test_what_the_teacher_has_more_of_is_another_part(caplog):
    student, teacher = (build_model(student_config(tiny_config())) for _ in range(2))
    before = {k: v.clone() for k, v in components(student)["backbone"].items()}
    parts = components(teacher)
    parts["backbone"]["backbone.fpn_output7.weight"] = torch.ones(1)
    with caplog.at_level(logging.INFO, "skd.modeling.inherit"):
        inherit(student, parts)
    assert "no: backbone.fpn_output7.weight is in the teacher only" in caplog.text
    after = components(student)["backbone"]
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_what_is_inherited_trains_and_the_teacher_does_not(wide):
    model = build_model(inheriting(tiny_config(), wide))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert model.teacher.backbone.fpn_output2.weight.abs().sum() > 0
    for state in model.teacher.components().values():  # another student may inherit the same
        assert not any(p.abs().sum() == 0 for n, p in state.items() if n.endswith("weight"))
