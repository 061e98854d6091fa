"""Toy detectors that imitate those of other projects, as teachers and as what is measured."""

from types import SimpleNamespace

import pytest
import torch
from detectron2.modeling import GeneralizedRCNN, build_model
from detectron2.structures import ImageList
from detectron2.utils.events import EventStorage
from omegaconf import OmegaConf
from torch import nn

from skd import DistillRCNN, FrozenTeacher, distill, student_config
from skd.config.naming import LAZY, written_as
from skd.distillers.pkd import PKD
from skd.modeling.partial_forward import measure, output_shapes
from skd.visualization.attention import to_rgb
from tests.helpers import batch, tiny_config

MEAN = torch.tensor([0.4, 0.45, 0.48]).view(3, 1, 1)


def conv(width, stride=2, inputs=3):
    return nn.Conv2d(inputs, width, 3, stride=stride, padding=1)


class Neck(nn.Module):
    """A neck from a list of maps to a list of maps, as PAFPN has it; no output_shape()."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([conv(6, 1, 4), conv(6, 1, 8)])

    def forward(self, maps):
        return [layer(x) for layer, x in zip(self.convs, maps)]


class Body(nn.Module):
    """A backbone without strides or output_shape()."""

    def __init__(self, inputs=3):
        super().__init__()
        self.stem, self.first, self.second = conv(4, 4, inputs), conv(4, 2, 4), conv(8, 2, 4)

    def forward(self, x):
        a = self.first(self.stem(x))
        return [a, self.second(a)]


class Head(nn.Module):
    def forward(self, maps):
        raise RuntimeError("more than what is needed was run")


class YoloLike(nn.Module):
    """Divides by 255 in its forward; its maps come from a neck outside the backbone."""

    input_format = "BGR"

    def __init__(self):
        super().__init__()
        self.register_buffer("pixel_mean", MEAN, False)
        self.register_buffer("pixel_std", torch.full((3, 1, 1), 0.25), False)
        self.backbone, self.neck, self.head = Body(), Neck(), Head()

    def prepare(self, inputs):
        images = [(x["image"] / 255 - self.pixel_mean) / self.pixel_std for x in inputs]
        return ImageList.from_tensors(images, 16).tensor

    def forward(self, inputs):
        return self.head(self.neck(self.backbone(self.prepare(inputs))))


class Masked:
    """Maps with a mask, as DETR's."""

    def __init__(self, tensors, mask):
        self.tensors, self.mask = tensors, mask


class Joiner(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = Body()

    def forward(self, images):
        maps = self.body(images.tensors)
        return [Masked(x, images.mask) for x in maps], [x.mean() for x in maps]


class DetrLike(nn.Module):
    """No pixel_mean; the backbone is elsewhere, and returns a list of masked maps and positions."""

    input_format = "RGB"

    def __init__(self):
        super().__init__()
        self.detr = nn.Module()
        self.detr.backbone, self.detr.transformer = Joiner(), Head()
        self.normalizer = lambda x: x / 255 - MEAN

    def prepare(self, inputs):
        return ImageList.from_tensors([self.normalizer(x["image"]) for x in inputs]).tensor

    def forward(self, inputs):
        maps, _ = self.detr.backbone(Masked(self.prepare(inputs), None))
        return self.detr.transformer(maps)


def teacher_of(model, features, **kwargs):
    return FrozenTeacher(model=model, weights=None, features=features, **kwargs)


def test_the_input_is_the_detectors_own():
    """Equal to what the detector computes, at any place in it, and nothing behind that runs."""
    model, inputs = YoloLike().eval(), batch()
    with torch.no_grad():
        maps = model.backbone(model.prepare(inputs))
        expected = {
            "backbone": maps,
            "neck": model.neck(maps),
            "neck.convs.1": [model.neck(maps)[1]],
        }
    for features, maps in expected.items():
        teacher = teacher_of(model, features)
        ours = teacher(inputs, "BGR")
        assert list(ours) == [str(i) for i in range(len(maps))]
        assert all(torch.allclose(ours[str(i)], x) for i, x in enumerate(maps))
    assert teacher_of(model, "neck").output_shape()["1"].stride == 16


def test_a_backbone_elsewhere_with_masked_maps():
    model = DetrLike().eval()
    teacher = teacher_of(model, "detr.backbone")
    assert [(s.stride, s.channels) for s in teacher.output_shape().values()] == [(8, 4), (16, 8)]
    flipped = [{"image": x["image"].flip(0)} for x in batch()]
    with torch.no_grad():
        expected = model.detr.backbone.body(model.prepare(flipped))
    assert torch.allclose(teacher(batch(), "BGR")["1"], expected[1])
    lower = teacher_of(DetrLike(), "detr.backbone", precision="bf16")(batch(), "BGR")
    assert lower["0"].dtype == torch.bfloat16


def test_measuring_leaves_no_trace():
    model = YoloLike()
    model.backbone.norm = nn.BatchNorm2d(3)
    model.neck.eval()
    modes = [m.training for m in model.modules()]
    state = torch.get_rng_state()
    shapes = output_shapes(model, "neck", "FEATURES")
    assert {n: (s.stride, s.channels) for n, s in shapes.items()} == {"0": (8, 6), "1": (16, 6)}
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert measure(model, "neck", "").entry == "backbone"


@pytest.mark.parametrize("name", ["nothing", "head", "backbone.unused"])
def test_what_returns_no_maps_is_refused(name):
    model = YoloLike()
    model.backbone.unused = conv(3)
    with pytest.raises(ValueError, match=f"teacher's features is '{name}'"):
        teacher_of(model, name)


def test_images_of_four_channels_need_a_teacher_of_the_same():
    """A detector of four channels is measured with four."""
    model = YoloLike()
    model.backbone = Body(4)
    model.pixel_mean, model.pixel_std = torch.zeros(4, 1, 1), torch.ones(4, 1, 1)
    images = [{"image": torch.rand(4, 64, 64)}]
    teacher = teacher_of(model, "neck")
    assert teacher(images, "BGR")["0"].shape == (1, 6, 8, 8)
    with pytest.raises(ValueError, match="4 channels in the format 'RGB', the teacher's"):
        teacher(images, "RGB")


@pytest.mark.parametrize("name", ["image_format", "img_format"])
def test_the_format_is_found_where_projects_keep_it(name):
    mapper = {name: "RGB"}
    cfg = OmegaConf.create({"model": {}, "dataloader": {"train": {"mapper": mapper}}})
    distill(cfg, "teacher.yaml")
    assert cfg.model.input_format == "RGB"


def test_a_student_without_a_format_is_told_where_it_goes():
    student = YoloStudent()
    student.input_format = None
    with written_as(LAZY), pytest.raises(ValueError, match="model.input_format=RGB"):
        DistillRCNN(
            student=student, teacher=teacher_of(DetrLike(), "detr.backbone"), distiller=PKD()
        )


class YoloStudent(YoloLike):
    """Trains with a loss at its neck, which is called in eval mode too."""

    def __init__(self):
        super().__init__()
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 1, 1))

    def forward(self, inputs):
        scores = [self.head(x) for x in self.neck(self.backbone(self.prepare(inputs)))]
        return {"loss_cls": sum(s.square().mean() for s in scores)} if self.training else scores


@pytest.mark.parametrize("features", ["backbone", "neck"])
def test_students_that_say_nothing_of_their_maps(features):
    """They train, load plainly and evaluate as the plain one does."""
    model = DistillRCNN(
        student=YoloStudent(),
        teacher=teacher_of(DetrLike(), "detr.backbone"),
        distiller=PKD(),
        features=features,
    )
    with EventStorage():
        losses = model.train()(batch())
    sum(losses.values()).backward()
    assert losses["loss_distill_pkd"] > 0 and model.backbone.stem.weight.grad.abs().sum() > 0
    plain = YoloStudent()
    result = plain.load_state_dict(model.state_dict(), strict=False)
    assert not result.missing_keys
    assert all(k.startswith("distiller.") for k in result.unexpected_keys)
    with torch.no_grad():
        for a, b in zip(model.eval()(batch()), plain.eval()(batch())):
            assert torch.equal(a, b)


def test_a_gray_student_learns_from_a_gray_teacher():
    cfg = tiny_config("faster_rcnn", MODEL__PIXEL_MEAN=[100.0], MODEL__PIXEL_STD=[50.0])
    cfg.INPUT.FORMAT = "L"
    teacher = teacher_of(build_model(student_config(cfg)), "backbone", input_format="L")
    student = build_model(student_config(cfg))
    model = DistillRCNN(student=student, teacher=teacher, distiller=PKD(), input_format="L")
    inputs = [{**x, "image": x["image"][:1]} for x in batch()]
    with EventStorage():
        assert model.train()(inputs)["loss_distill_pkd"] > 0
    assert to_rgb(inputs[0]["image"], "L").shape == (96, 128, 3)
    with pytest.raises(ValueError, match="format 'BGR', the teacher's have 'L'"):
        teacher(inputs, "BGR")


class Pair(GeneralizedRCNN):
    """A detector whose preprocess_image() returns the images' sizes too, as Sparse R-CNN's does."""

    def preprocess_image(self, inputs):
        return super().preprocess_image(inputs), [x["height"] for x in inputs]

    def forward(self, inputs):
        return self.backbone(self.preprocess_image(inputs)[0].tensor)


class Training(GeneralizedRCNN):
    def preprocess_image(self, inputs, training):
        return super().preprocess_image(inputs)

    def forward(self, inputs):
        return self.backbone(self.preprocess_image(inputs, self.training).tensor)


class InDict(GeneralizedRCNN):
    def preprocess_image(self, inputs):
        return {"images": super().preprocess_image(inputs)}

    def forward(self, inputs):
        return self.backbone(self.preprocess_image(inputs)["images"].tensor)


class LikeImageList(GeneralizedRCNN):
    def preprocess_image(self, inputs):
        images = super().preprocess_image(inputs)
        return SimpleNamespace(tensor=images.tensor, image_sizes=images.image_sizes)

    def forward(self, inputs):
        raise NotImplementedError  # not needed


class Labels(GeneralizedRCNN):
    def preprocess_image(self, inputs):
        return super().preprocess_image([{"image": x["scan"]} for x in inputs])


@pytest.mark.parametrize("kind", [Pair, Training, InDict, LikeImageList])
def test_a_preprocess_image_of_another_form(kind):
    model = build_model(student_config(tiny_config("faster_rcnn"))).eval()
    with torch.no_grad():
        expected = model.backbone(model.preprocess_image(batch()).tensor)
    model.__class__ = kind
    maps = teacher_of(model, "backbone")(batch(), "BGR")
    assert list(maps) == list(expected)
    assert all(torch.allclose(maps[n], x, rtol=1e-3, atol=1e-3) for n, x in expected.items())


def test_a_preprocess_image_that_fails_is_named():
    model = build_model(student_config(tiny_config("faster_rcnn")))
    model.__class__ = Labels
    with pytest.raises(ValueError, match="of Labels, fails .*'scan'.* preprocess a function"):
        teacher_of(model, "backbone")


@pytest.mark.parametrize("scale,warnings", [(1, 0), (1 / 255, 1)])
def test_images_that_are_normalized_already_are_one_warning(scale, warnings, caplog):
    inputs = [{"image": x["image"] * scale} for x in batch()]
    teacher = teacher_of(build_model(student_config(tiny_config("faster_rcnn"))), "backbone")
    for _ in range(2):
        teacher(inputs, "BGR")
    assert caplog.text.count("they look normalized already") == warnings
