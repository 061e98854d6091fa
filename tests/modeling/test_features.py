import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model

from skd import student_config
from skd.modeling.features import (
    FeatureTap,
    LevelPair,
    align,
    feature_modules,
    get_feature_module,
    pair_levels,
)
from tests.helpers import batch, tiny_config


def shapes(**strides):
    return {name: ShapeSpec(channels=8, stride=s) for name, s in strides.items()}


P2_P6 = shapes(p2=4, p3=8, p4=16, p5=32, p6=64)
P3_P7 = shapes(p3=8, p4=16, p5=32, p6=64, p7=128)


def names(pairs):
    return [(p.student_name, p.teacher_name) for p in pairs.values()]


def test_pairs_are_the_common_strides_finest_first():
    expected = [("p3", "p3"), ("p4", "p4"), ("p5", "p5"), ("p6", "p6")]
    assert names(pair_levels(P3_P7, P2_P6)) == expected
    assert names(pair_levels(P2_P6, P3_P7)) == expected
    assert names(pair_levels(shapes(res4=16), P2_P6)) == [("res4", "p4")]
    assert names(pair_levels(P2_P6, P2_P6, ["p5", "p3"])) == [("p3", "p3"), ("p5", "p5")]


def test_equal_names_win_among_equal_strides():
    two = shapes(p4=16, res4=16)
    assert names(pair_levels(two, two)) == [("p4", "p4"), ("res4", "res4")]


def test_no_common_stride_prints_both_tables():
    with pytest.raises(ValueError, match="no feature map of a common stride") as error:
        pair_levels(shapes(p2=4), shapes(res4=16))
    assert all(s in str(error.value) for s in ("student", "p2", "teacher", "res4", "16"))


def test_unknown_level_names_the_valid_ones():
    with pytest.raises(ValueError, match=r"\['p9'\].*\['p2', 'p3', 'p4', 'p5', 'p6'\]"):
        pair_levels(P2_P6, P2_P6, ["p3", "p9"])


def test_level_without_partner_is_refused():
    with pytest.raises(ValueError, match=r"stride of the student's \['p2'\]"):
        pair_levels(P2_P6, P3_P7, ["p2", "p3"])


def pair(stride):
    spec = ShapeSpec(channels=2, stride=stride)
    return LevelPair("p4", "p4", spec, spec)


def test_align_crops_to_the_upper_left():
    a = torch.arange(2 * 2 * 6 * 8).view(2, 2, 6, 8).float()
    b = torch.zeros(2, 3, 8, 8)  # padded to a square
    student, teacher = align(a, b, pair(16), (90, 120))
    assert student.shape == (2, 2, 6, 8) and teacher.shape == (2, 3, 6, 8)
    assert torch.equal(student, a)
    student, _ = align(a, b[..., :5, :7], pair(16), (80, 100))
    assert torch.equal(student, a[..., :5, :7])


def test_align_refuses_maps_that_do_not_cover_the_image():
    with pytest.raises(ValueError, match=r"\(2, 2, 6, 8\).*\(2, 2, 3, 4\).*stride 16"):
        align(torch.zeros(2, 2, 6, 8), torch.zeros(2, 2, 3, 4), pair(16), (96, 128))
    with pytest.raises(ValueError, match="cannot be matched"):
        align(torch.zeros(2, 2, 6, 8), torch.zeros(1, 2, 6, 8), pair(16), (96, 128))


def test_tap_reads_once_and_leaves_nothing():
    model = build_model(student_config(tiny_config()))
    with FeatureTap(model.backbone) as tap:
        model.eval()(batch())
    assert list(tap.features) == ["p2", "p3", "p4", "p5", "p6"]
    assert not model.backbone._forward_hooks


def test_tap_is_removed_after_an_error():
    model = build_model(student_config(tiny_config()))
    with pytest.raises(KeyError), FeatureTap(model.backbone):
        model.eval()([{"no image": 1}])
    assert not model.backbone._forward_hooks


def test_any_module_with_feature_maps_can_be_named():
    model = build_model(student_config(tiny_config()))
    assert list(feature_modules(model)) == ["backbone", "backbone.bottom_up"]
    assert get_feature_module(model, "backbone.bottom_up", "KEY") is model.backbone.bottom_up
    with pytest.raises(ValueError, match="KEY is 'neck'.*backbone, backbone.bottom_up"):
        get_feature_module(model, "neck", "KEY")
