"""What the user says of a detector in place of its code: FEATURE_SHAPES and TEACHER.PREPROCESS."""

import sys

import pytest
import torch
from detectron2.config import instantiate
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.structures import ImageList
from detectron2.utils.events import EventStorage
from omegaconf import OmegaConf
from torch import nn

from skd import (
    DistillRCNN,
    FrozenTeacher,
    build_teacher,
    distilling,
    student_config,
    train_net,
    use_project,
)
from skd.config import projects, yaml_config
from skd.distillers.pkd import PKD
from skd.modeling.partial_forward import given_shapes
from tests.helpers import batch
from tests.helpers import distilling as distilling_config
from tests.helpers import lazy_config, save_detector, tiny_config
from tests.modeling.test_partial_forward import Body, YoloStudent

SHAPES = [["0", 8, 4], ["1", 16, 8]]
PREPARE = """
import os
from detectron2.structures import ImageList

os.mkdir({marker!r})

class Way:
    @staticmethod
    def prepare(detector, batched_inputs):
        images = [x["image"] / 255 - getattr(detector, 'shift', 0.5) for x in batched_inputs]
        return ImageList.from_tensors(images, 16)

def broken(detector, batched_inputs):
    return [x["image"] for x in batched_inputs]
"""


class Unrunnable(nn.Module):
    """Takes images that its data loader has prepared, and cannot be run on others."""

    input_format = "BGR"

    def __init__(self):
        super().__init__()
        self.backbone, self.shift = Body(), 0.5

    def forward(self, inputs):
        raise KeyError("prepared")


class Silent(Unrunnable):
    """Prepares its images, but its backbone says nothing of its maps."""

    def preprocess_image(self, inputs):
        return ImageList.from_tensors([x["image"] / 255 for x in inputs], 16)


@pytest.fixture
def way(tmp_path, monkeypatch):
    """A package with the function; the folder that is there when it has been imported."""
    marker = tmp_path / "imported"
    (tmp_path / "toy_way.py").write_text(PREPARE.format(marker=str(marker)))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(projects, "_used", {})
    monkeypatch.setattr(projects, "_named", set())
    yield marker
    sys.modules.pop("toy_way", None)


def teacher_of(model, **kwargs):
    return FrozenTeacher(model=model, weights=None, **kwargs)


def test_a_named_function_prepares_the_teachers_images(way):
    """Maps are those of the backbone on what it returns; their shapes are measured, or as given."""
    model = Unrunnable().eval()
    with pytest.raises(ValueError, match="that is run on an image .*'prepared'"):
        teacher_of(model)
    images = torch.stack([x["image"] for x in batch()])
    with torch.no_grad():
        expected = model.backbone(images / 255 - 0.5)
    import toy_way

    for function in ("toy_way:Way.prepare", toy_way.Way.prepare):
        teacher = teacher_of(model, preprocess=function)
        shapes = {n: (s.stride, s.channels) for n, s in teacher.output_shape().items()}
        assert shapes == {"0": (8, 4), "1": (16, 8)}
        maps = teacher(batch(), "BGR")
        assert all(torch.allclose(maps[str(i)], x) for i, x in enumerate(expected))
    assert list(
        teacher_of(model, preprocess=function, feature_shapes=SHAPES[1:]).output_shape()
    ) == ["1"]


@pytest.mark.parametrize(
    "name,words",
    [
        ("toy_way", "it must be MODULE:FUNCTION"),
        ("toy_way:nothing", "preprocess is 'toy_way:nothing': .*no attribute 'nothing'"),
        ("no_such_package:f", "no_such_package.*PYTHONPATH"),
        ("toy_way:os", "is no function"),
        ("toy_way:broken", "preprocess, <function broken.* returned a list; it must return an Im"),
    ],
)
def test_what_is_no_such_function_is_named(name, words, way):
    with pytest.raises((ImportError, ValueError), match=words):
        teacher_of(Unrunnable(), preprocess=name)


@pytest.mark.parametrize("shapes", [[], SHAPES])
def test_a_neck_that_is_not_given_the_images_is_named(shapes, way):
    import toy_way

    with pytest.raises(ValueError, match="features is 'neck', and 'neck' fails on what .*inside"):
        teacher_of(
            YoloStudent(), features="neck", preprocess=toy_way.Way.prepare, feature_shapes=shapes
        )


def test_shapes_that_are_given_are_not_measured():
    teacher = teacher_of(Silent(), feature_shapes=SHAPES)
    with torch.no_grad():
        images = torch.stack([x["image"] for x in batch()])
        assert torch.allclose(teacher(batch(), "BGR")["1"], teacher.backbone(images / 255)[1])

    class Student(YoloStudent):
        def forward(self, inputs):
            assert self.training, "it was measured"
            return super().forward(inputs)

    given = dict(teacher=teacher, distiller=PKD())
    model = DistillRCNN(student=Student(), feature_shapes=SHAPES, **given)
    with EventStorage():
        assert model.train()(batch())["loss_distill_pkd"] > 0
    with pytest.raises(ValueError, match="DistillRCNN's features is 'nowhere', which is no module"):
        DistillRCNN(student=Student(), features="nowhere", feature_shapes=SHAPES, **given)
    given["distiller"] = PKD()
    wrong = DistillRCNN(student=Student(), feature_shapes=[["0", 8, 4], ["1", 16, 9]], **given)
    said = r"'1' .*DistillRCNN's feature_shapes\) says 9 channels"
    with EventStorage(), pytest.raises(ValueError, match=said):
        wrong.train()(batch())


@pytest.mark.parametrize("value", [["p3"], [["p3", 8]], [["p3", 8, 0]], [[3, 8, 4]], [8, 16]])
def test_shapes_that_are_none_are_named(value):
    with pytest.raises(
        ValueError, match=r"^KEY is .*; it must be \[\[name, stride, channels\], ..."
    ):
        given_shapes(value, "KEY")


@pytest.mark.parametrize("node", ["STUDENT", "TEACHER"])
def test_the_keys_of_a_yaml_config(node, teacher_files):
    cfg = distilling_config(tiny_config(), teacher_files)
    cfg.MODEL[node].FEATURE_SHAPES = [["p3", 8, {"STUDENT": 16, "TEACHER": 24}[node]]]
    assert list(build_model(cfg)._skd.pairs) == ["p3"]
    cfg.MODEL[node].FEATURE_SHAPES = [["p3", 8]]
    with pytest.raises(
        ValueError, match=f"^MODEL.{node}.FEATURE_SHAPES is .*; it must be .*name, s"
    ):
        build_model(cfg)


def test_in_a_lazy_config(teacher_files, tmp_path, way):
    cfg = lazy_config(tmp_path)
    shapes = [["p3", 8, 16], ["p4", 16, 16]]
    cfg.model = OmegaConf.create(
        {
            "_target_": "skd.DistillRCNN", "student": cfg.model, "feature_shapes": shapes,
            "teacher": {
                "_target_": "skd.build_teacher", "config_file": teacher_files[0],
                "weights": teacher_files[1], "preprocess": "toy_way:Way.prepare",
                "feature_shapes": [["p4", 16, 24]],
            },
            "distiller": {"_target_": "skd.StructuredDistiller"},
        }
    )  # fmt: skip
    model = instantiate(cfg.model)
    assert list(model._skd.pairs) == ["p4"] and way.exists()
    plain = build_teacher(teacher_files[0], weights=teacher_files[1])
    assert not torch.allclose(*(t(batch(), "BGR")["p4"] for t in (model.teacher, plain)))


@META_ARCH_REGISTRY.register()
class ShiftedRCNN(META_ARCH_REGISTRY.get("GeneralizedRCNN")):
    shift = 0.5


def config_of(folder, function="toy_way:Way.prepare"):
    """A distilling config with a preparing function for the teacher, as a YAML file has it."""
    theirs = tiny_config("faster_rcnn")
    theirs.MODEL.META_ARCHITECTURE = "ShiftedRCNN"
    cfg = distilling_config(tiny_config("faster_rcnn"), save_detector(theirs, folder / "teacher"))
    cfg.MODEL.TEACHER.PREPROCESS = function
    return cfg


def test_a_yaml_file_alone_imports_nothing(way, tmp_path):
    with pytest.raises(
        ValueError, match="PREPROCESS names 'toy_way:.*--project toy_way, or skd.us"
    ):
        build_model(config_of(tmp_path))
    assert not way.exists()
    with pytest.raises(ValueError, match="PREPROCESS names 'os:system'"):
        build_model(config_of(tmp_path, "os:system"))


@pytest.mark.parametrize("word", ["option", "project", "--trust-lazy", "distilling"])
def test_these_are_the_users_word(word, way, tmp_path, shapes):
    cfg = config_of(tmp_path)
    if word == "option":
        yaml_config.override(cfg, ["MODEL.TEACHER.PREPROCESS", "toy_way:Way.prepare"])
    elif word == "project":
        use_project("toy_way")
    elif word == "--trust-lazy":
        cfg.OUTPUT_DIR = str(tmp_path / "out")
        (tmp_path / "student.yaml").write_text(cfg.dump())
        args = ["--config-file", str(tmp_path / "student.yaml"), "--trust-lazy"]
        train_net.setup(train_net.argument_parser().parse_args(args))
    else:
        opts = ["MODEL.TEACHER.PREPROCESS", "toy_way:Way.prepare"]
        teacher = (cfg.MODEL.TEACHER.CONFIG_FILE, cfg.MODEL.TEACHER.WEIGHTS)
        kind = distilling(train_net.SKDTrainer, *teacher, opts=opts)
        assert isinstance(kind.build_model(student_config(cfg)).teacher, FrozenTeacher)
        return
    model = build_model(cfg)
    maps = model.teacher(batch(), "BGR")
    plain = build_teacher(cfg.MODEL.TEACHER.CONFIG_FILE, weights=cfg.MODEL.TEACHER.WEIGHTS)
    assert not torch.allclose(maps["p3"], plain(batch(), "BGR")["p3"])
