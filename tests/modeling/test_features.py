import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model

from skd import student_config
from skd.modeling.features import (
    FeatureTap,
    Tapped,
    check_input,
    check_maps,
    crop,
    feature_modules,
    pair_levels,
)
from skd.modeling.partial_forward import check_module
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
    coarsest_first = dict(reversed(P3_P7.items()))
    assert names(pair_levels(coarsest_first, P2_P6)) == expected


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


@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_maps_without_a_stride_are_refused(whose):
    given = {"student": P2_P6, "teacher": P2_P6, whose: {"dark3": ShapeSpec(channels=8)}}
    with pytest.raises(ValueError, match=rf"{whose}'s feature maps \['dark3'\] have no stride"):
        pair_levels(**given)


def test_crop_is_to_the_upper_left():
    a = torch.arange(2 * 2 * 6 * 8).view(2, 2, 6, 8).float()
    b = torch.zeros(2, 3, 8, 8)  # padded to a square
    student, teacher = crop(a, b)
    assert student.shape == (2, 2, 6, 8) and teacher.shape == (2, 3, 6, 8)
    assert torch.equal(student, a)
    assert torch.equal(crop(a, b[..., :5, :7])[0], a[..., :5, :7])


IMAGES = [(90, 120), (96, 100)]


@pytest.mark.parametrize(
    "size,input_size",
    [((6, 8), (96, 128)), ((6, 7), (96, 128)), ((8, 8), (128, 128)), ((6, 8), None),
     ((12, 16), None), ((12, 16), (6, 8)), ((6, 8), (90, 120))],
)  # fmt: skip
def test_sizes_that_follow_from_the_padded_images(size, input_size):
    check_maps(Tapped({"p4": torch.zeros(2, 8, *size)}, input_size), shapes(p4=16), IMAGES, "x")


@pytest.mark.parametrize(
    "p4,input_size,message",
    [
        (torch.zeros(2, 8, 3, 4), (96, 128), r"\(2, 8, 3, 4\).*at least \(6, 7\).*stride 16"),
        (torch.zeros(2, 8, 12, 16), (96, 128), r"padded to \(96, 128\).*most \(6, 8\).*strides"),
        (torch.zeros(6, 8, 6, 8), (96, 128), "the batch has 2 images.*TridentNet"),
        (torch.zeros(2, 9, 6, 8), (96, 128), "says 8 channels"),
        ((torch.zeros(2, 8, 6, 8), "mask"), None, "student's 'p4' is tuple"),
        (None, None, "student's 'p4' is missing"),
    ],
)
def test_maps_that_cannot_be_matched_are_refused(p4, input_size, message):
    with pytest.raises(ValueError, match=message):
        check_maps(Tapped({"p4": p4}, input_size), shapes(p4=16), IMAGES, "student")


def test_tap_reads_once_and_leaves_nothing():
    model = build_model(student_config(tiny_config()))
    with FeatureTap(model.backbone) as tap:
        model.eval()(batch())
    assert list(tap.features) == ["p2", "p3", "p4", "p5", "p6"]
    assert not model.backbone._forward_hooks


def test_tap_keeps_the_maps_of_that_moment():
    module = torch.nn.Module()
    module.forward = lambda x: {"p2": x}
    image = torch.zeros(1, 3, 8, 8)
    with FeatureTap(module) as tap:
        module(image)["p2"] = "something else"
    assert tap.read() == Tapped({"p2": image}, (8, 8), image)


def test_a_map_that_is_changed_afterwards_is_refused():
    """As by a ReLU(inplace=True) behind the module: the teacher's maps would be those before it."""
    module = torch.nn.Conv2d(3, 4, 1)
    with FeatureTap(module, "KEY") as tap:
        torch.nn.functional.relu_(module(torch.randn(1, 3, 8, 8)))
    with pytest.raises(ValueError, match="KEY names a Conv2d whose 0 was changed in place"):
        tap.read()


@pytest.mark.parametrize("runs", [0, 2])
def test_a_module_that_does_not_run_once_is_refused(runs):
    module = torch.nn.Module()
    module.forward = lambda: {"p2": None}
    with FeatureTap(module, "KEY") as tap:
        for _ in range(runs):
            module()
    with pytest.raises(ValueError, match=f"KEY names a Module that ran {runs} times"):
        tap.features


def test_a_module_that_returns_no_dict_is_refused():
    module = torch.nn.Identity()
    with pytest.raises(ValueError, match="KEY names a Identity that returned a int"):
        with FeatureTap(module, "KEY"):
            module(3)


def test_tap_is_removed_after_an_error():
    model = build_model(student_config(tiny_config()))
    with pytest.raises(KeyError), FeatureTap(model.backbone):
        model.eval()([{"no image": 1}])
    assert not model.backbone._forward_hooks


def test_any_module_with_feature_maps_can_be_named():
    model = build_model(student_config(tiny_config()))
    assert list(feature_modules(model)) == ["backbone", "backbone.bottom_up"]
    check_module(model, "backbone.bottom_up", "KEY", says_shapes=True)
    for other in ("neck", "proposal_generator"):  # none, and one without an output_shape()
        with pytest.raises(ValueError, match=f"KEY is '{other}'.*backbone, backbone.bottom_up"):
            check_module(model, other, "KEY", says_shapes=True)


def canvas(left=0, top=0, sides=(200, 300), size=(90, 120)):
    x = torch.full((1, 3, *sides), 0.5)
    x[..., top : top + size[0], left : left + size[1]] = torch.rand(3, *size)
    return x


def test_images_on_a_canvas_are_looked_at():
    """Images are in the upper left corner of any canvas; elsewhere they would show other places."""
    net = torch.nn.Identity()
    check_input(canvas(), [(90, 120)], net, "student")
    check_input(canvas(4, sides=(96, 128)), [(90, 120)], net, "student")  # is not looked at
    enlarged = torch.nn.functional.interpolate(torch.rand(1, 3, 90, 120), scale_factor=2)
    for x in (canvas(left=90), canvas(top=55), enlarged):
        with pytest.raises(ValueError, match="student took images of .*largest is .90, 120."):
            check_input(x, [(90, 120)], net, "student")
    net.padding_constraints = {"square_size": 300}
    check_input(canvas(left=90), [(90, 120)], net, "student")  # Detectron2's own padding
