"""MODEL.TEACHER.HALF_SIZE: the teacher sees each image at half its width and height."""

import copy
import logging
import pickle

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.backbone import Backbone
from detectron2.structures import ImageList
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn import functional as F

from skd import DistillRCNN, FrozenTeacher, StructuredDistiller, TeacherHeads
from skd import build_teacher as build
from skd import distill, student_config
from skd.modeling.features import check_maps
from skd.modeling.teacher_speed import PRECISIONS
from skd.study.benchmark.measure import flops
from tests.helpers import batch, distilling, lazy_config, tiny_config
from tests.modeling.test_teacher import Detector, Echo
from tests.modeling.test_unlabelled import unlabelled

EXACT = {"fold_bn": False, "channels_last": False}
ODD = [(71, 93), (64, 65), (130, 35)]
LEVELS = {"p3": "p2", "p4": "p3", "p5": "p4", "p6": "p5"}


def build_teacher(teacher_files, **kwargs):
    config, weights = teacher_files
    return build(config, weights=weights, **{"half_size": True, **kwargs})


def halved(image):
    """An image halved by itself: the mean of each 2 x 2 pixels that are there."""
    pixels = image.numpy()
    _, h, w = pixels.shape
    out = np.zeros((len(pixels), -(-h // 2), -(-w // 2)))
    for i, j in np.ndindex(*out.shape[1:]):
        out[:, i, j] = pixels[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((1, 2))
    whole = not image.is_floating_point()
    return torch.as_tensor(np.rint(out) if whole else out).to(image.dtype)


def images(dtype=torch.uint8, sizes=ODD):
    return [{"image": batch(1, h, w, seed=h)[0]["image"].to(dtype)} for h, w in sizes]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
@pytest.mark.parametrize("order", ["BGR", "RGB"])
def test_maps_are_the_detectors_own_of_the_halved_images(teacher_files, dtype, order):
    model = build_model(student_config(tiny_config(width=6, fpn=24))).eval()
    model.load_state_dict(torch.load(teacher_files[1])["model"])
    inputs = images(dtype)
    theirs = [halved(x["image"]) for x in inputs]
    theirs = [{"image": x.flip(0) if order == "RGB" else x} for x in theirs]
    with torch.no_grad():
        expected = model.backbone(model.preprocess_image(theirs).tensor)
    teacher = build_teacher(teacher_files, **EXACT)
    ours = teacher(inputs, order)
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sizes", [ODD, [(64, 64)], [(1, 1), (63, 129)], [(127, 127)]])
def test_maps_of_any_size_fit_the_whole_images(teacher_files, sizes):
    teacher = build_teacher(teacher_files)
    tapped = teacher.start(images(sizes=sizes), "BGR")()
    check_maps(tapped, teacher.output_shape(), sizes, "teacher")
    larger = [(2 * h, 2 * w + 256) for h, w in sizes]
    with pytest.raises(ValueError, match="The teacher's 'p2' .* cannot be matched"):
        check_maps(tapped, teacher.output_shape(), larger, "teacher")


class Means(Backbone):
    """Shows where each pixel of its images ends up, at two strides."""

    size_divisibility = 8

    def output_shape(self):
        return {f"x{s}": ShapeSpec(channels=3, stride=s) for s in (4, 8)}

    def forward(self, x):
        return {f"x{s}": F.avg_pool2d(x, s) for s in (4, 8)}


def seeing(backbone, **kwargs):
    model = Detector([0.0] * 3, [1.0] * 3, "BGR")
    model.backbone = backbone
    return FrozenTeacher(model=model, weights="", random_weights=True, **kwargs)


def test_a_bright_spot_is_at_the_same_position_as_in_the_whole_image():
    whole, half = seeing(Means()), seeing(Means(), half_size=True)
    for y, x in [(0, 0), (7, 8), (15, 16), (20, 33), (33, 7), (34, 50), (34, 48), (32, 50)]:
        image = torch.zeros(3, 35, 51)
        image[:, y, x] = 240.0
        inputs = [{"image": image}]
        expected, ours = whole(inputs, "BGR")["x8"], half(inputs, "BGR")["x4"]
        for maps in (expected, ours):
            assert maps[0, 0].nonzero().tolist() == [[y // 8, x // 8]], (y, x)


def test_its_strides_count_twice_and_maps_pair_by_themselves(teacher_files, caplog):
    teacher = build_teacher(teacher_files)
    strides = {name: shape.stride for name, shape in teacher.output_shape().items()}
    assert strides == {"p2": 8, "p3": 16, "p4": 32, "p5": 64, "p6": 128}
    with caplog.at_level(logging.INFO, "skd.modeling.attach"):
        model = configured(teacher_files)
    assert {n: p.teacher_name for n, p in model._skd.pairs.items()} == LEVELS
    assert caplog.text.count("Not distilled: the student's 'p2' (stride 4), as no map") == 1
    retinanet = configured(teacher_files, kind="retinanet")
    assert [p.teacher_name for p in retinanet._skd.pairs.values()] == list(teacher.output_shape())
    with pytest.raises(ValueError, match=r"(?s)\['p2'\].*HALF_SIZE is True, which doubles the"):
        configured(teacher_files, MODEL__DISTILLER__LEVELS=["p2"])


@pytest.mark.parametrize("method", ["StructuredDistiller", "FGD", "MGD", "PKD"])
def test_a_two_stage_student_keeps_the_settings_for_such(teacher_files, method):
    """Though the finest of its maps has no partner."""
    half, whole = (
        configured(teacher_files, MODEL__DISTILLER__NAME=method, MODEL__TEACHER__HALF_SIZE=half)
        for half in (True, False)
    )
    other = configured(teacher_files, kind="retinanet", MODEL__DISTILLER__NAME=method)
    assert half.distiller.settings == whole.distiller.settings != other.distiller.settings
    combined = configured(teacher_files, MODEL__DISTILLER__COMBINE=[[method, 1.0]])
    assert combined.distiller.methods[method].settings == whole.distiller.settings


def configured(teacher_files, kind="mask_rcnn", balance=False, **changes):
    """A model from a YAML config."""
    changes = {"MODEL__TEACHER__HALF_SIZE": True, **changes}
    torch.manual_seed(0)
    return build_model(distilling(tiny_config(kind), teacher_files, balance=balance, **changes))


def test_each_form_of_config_has_it_and_it_is_off(teacher_files, tmp_path):
    lazy = lazy_config(tmp_path)
    distill(lazy, *teacher_files)
    assert not instantiate(lazy.model.teacher).half_size
    lazy.model.teacher.half_size = True
    python = DistillRCNN(
        student=build_model(student_config(tiny_config())),
        teacher=build_teacher(teacher_files), distiller=StructuredDistiller(),
    )  # fmt: skip
    for model in (instantiate(lazy.model), python, configured(teacher_files)):
        assert {n: p.teacher_name for n, p in model._skd.pairs.items()} == LEVELS
    assert not configured(teacher_files, MODEL__TEACHER__HALF_SIZE=False).teacher.half_size


def test_the_teachers_heads_cannot_be_learned_from_and_nothing_is_built(teacher_files, monkeypatch):
    whole = build_model(student_config(tiny_config(width=6, fpn=24)))
    half = build_teacher(teacher_files)
    student = build_model(student_config(tiny_config()))
    monkeypatch.setattr("skd.modeling.teacher.detector_args", lambda *_, **__: pytest.fail("built"))
    names = {"MODEL__DISTILLER__HEADS__NAMES": ["RPNHead"]}
    with pytest.raises(
        ValueError, match=r"^MODEL.TEACHER.HALF_SIZE is True.*DISTILLER.HEADS.NAMES"
    ):
        configured(teacher_files, **names)
    said = "^the teacher's half_size is True.*TeacherHeads's names"
    with pytest.raises(ValueError, match=said):
        build_teacher(teacher_files, heads=True)
    with pytest.raises(ValueError, match=said):
        FrozenTeacher(model=whole, weights=None, heads=True, half_size=True)
    heads = TeacherHeads(names=["RPNHead"])
    with pytest.raises(ValueError, match=said):
        DistillRCNN(student=student, teacher=half, distiller=StructuredDistiller(), heads=heads)


@pytest.mark.parametrize("kind", ["mask_rcnn", "retinanet"])
def test_a_step_of_odd_images_and_of_images_without_labels(teacher_files, kind):
    model = configured(teacher_files, kind, balance=True)
    with EventStorage(0):
        losses = model([*batch(height=97, width=131), *unlabelled(height=75, width=91)])
    sum(losses.values()).backward()
    assert losses["loss_distill_structured_nl"] > 0 and losses["loss_distill_unlabelled"] > 0
    for name, parameter in model.named_parameters():
        assert not parameter.requires_grad or parameter.grad.isfinite().all(), name
    assert model.backbone.fpn_lateral3.weight.grad.any()


def test_it_costs_a_quarter(teacher_files):
    inputs = images(sizes=[(128, 256)])
    counts = [
        flops(lambda: build_teacher(teacher_files, half_size=half)(inputs, "BGR"))[0]
        for half in (True, False)
    ]
    assert 4 * counts[0] == counts[1] > 0


def test_copies_see_half_and_a_whole_one_cannot_take_its_place(teacher_files):
    teacher = build_teacher(teacher_files, side_stream=True)
    expected = teacher(images(), "BGR")
    away = copy.deepcopy(teacher).follow(lambda t: t.double())
    for twin in (pickle.loads(pickle.dumps(teacher)), away):
        assert twin.output_shape() == teacher.output_shape()
        for name, x in twin(images(), "BGR").items():
            torch.testing.assert_close(x.float(), expected[name])
    model = configured(teacher_files)
    model.teacher = teacher
    with pytest.raises(ValueError, match="teacher has other feature maps than the one"):
        model.teacher = build_teacher(teacher_files, half_size=False)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_in_its_own_precision_under_autocast(teacher_files, precision):
    teacher = build_teacher(teacher_files, precision=precision)
    expected = teacher(images(torch.float32), "BGR")
    with torch.autocast("cpu", torch.bfloat16):
        maps = teacher(images(torch.float32), "BGR")
    for name, x in maps.items():
        assert x.dtype == PRECISIONS[precision] and torch.equal(x, expected[name])


def test_a_function_that_prepares_gets_halved_images():
    def prepare(detector, inputs):
        assert all(x["image"].shape[1:] == (x["height"], x["width"]) for x in inputs)
        seen.extend(x["image"] for x in inputs)
        return ImageList.from_tensors([x["image"].float() for x in inputs], 32)

    seen = []
    teacher = seeing(Echo(), half_size=True, preprocess=prepare)
    seen.clear()
    inputs = images()
    maps = teacher(inputs, "BGR")["image"]
    assert all(torch.equal(a, halved(b["image"])) for a, b in zip(seen, inputs))
    assert torch.equal(maps[0, :, :36, :47], halved(inputs[0]["image"]).float())


class Own(nn.Module):
    """Runs by its own forward only."""

    input_format = "BGR"

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3, stride=4, padding=1)

    def forward(self, inputs):
        return self.body(ImageList.from_tensors([x["image"].float() for x in inputs], 32).tensor)


def test_a_detector_that_is_run_by_its_own_forward():
    model = Own().eval()
    teacher = FrozenTeacher(model=model, weights=None, features="body", half_size=True)
    assert teacher.output_shape()["0"].stride == 8
    tapped = teacher.start(images(), "BGR")()
    assert tapped.input_size == (192, 128)
    check_maps(tapped, teacher.output_shape(), ODD, "teacher")
    with torch.no_grad():
        expected = model([{"image": halved(x["image"])} for x in images()])
    torch.testing.assert_close(tapped.maps["0"], expected, rtol=1e-5, atol=1e-4)


def test_a_square_is_no_cheaper_which_is_said(caplog):
    class Square(Echo):
        padding_constraints = {"square_size": 64}

    seeing(Square())
    assert "half_size" not in caplog.text
    teacher = seeing(Square(), half_size=True)
    assert "teacher's half_size is True, and the teacher pads its images to squares of 64" in (
        caplog.text
    )
    assert teacher(images(sizes=[(128, 100)]), "BGR")["image"].shape == (1, 3, 64, 64)
    with pytest.raises(
        ValueError, match="side of 65 pixels, half of its size, and pads .* squares of 64.*than 128"
    ):
        teacher(images(sizes=[(129, 100)]), "BGR")


def test_it_comes_too_late_for_a_teacher_that_is_built(teacher_files):
    cfg = tiny_config(MODEL__TEACHER__HALF_SIZE=True)
    distill(cfg, build_teacher(teacher_files, half_size=False))
    with pytest.raises(
        ValueError, match="^MODEL.TEACHER.HALF_SIZE is True, and the teacher is a Fr"
    ):
        build_model(cfg)
