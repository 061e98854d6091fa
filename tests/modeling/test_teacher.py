import copy
import logging
import math
import os
import pickle
from functools import partial

import pytest
import torch
from detectron2.config import LazyConfig
from detectron2.layers import ShapeSpec
from detectron2.modeling import GeneralizedRCNN, build_model
from detectron2.modeling.backbone import Backbone
from detectron2.structures import ImageList
from detectron2.utils.events import EventStorage
from torch import nn

from skd import FrozenTeacher, build_teacher, student_config
from skd.modeling.model_zoo import find_config, zoo_names
from skd.modeling.teacher_speed import PRECISIONS
from skd.runtime.checkpoint import CheckpointError
from skd.runtime.record import RunFacts, describe_run, file_sha256
from tests.helpers import DEVICES, ROOT, batch, distilling, read_config, tiny_config

# how far features may be from fp32, as a fraction of the largest at their level
OPTIONS = {
    "exact": ({"fold_bn": False, "channels_last": False}, 0.0),
    "default": ({}, 1e-5),
    "folded": ({"channels_last": False}, 1e-5),
    "channels_last": ({"fold_bn": False}, 1e-5),
    "bf16": ({"precision": "bf16"}, 5e-2),
    "fp16": ({"precision": "fp16"}, 5e-3),
    "side_stream": ({"side_stream": True}, 1e-5),
    "all": ({"precision": "bf16", "side_stream": True}, 5e-2),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("option", OPTIONS)
def test_features_are_those_of_the_detector_itself(teacher_files, option, device, monkeypatch):
    kwargs, tolerance = OPTIONS[option]
    if device == "cuda":  # where convolutions choose their algorithms by layout and type
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
        tolerance = max(tolerance, 1e-4)
    teacher = build_teacher(teacher_files[0], weights=teacher_files[1], **kwargs).to(device)
    model = build_model(student_config(tiny_config(width=6, fpn=24))).eval().to(device)
    model.load_state_dict(torch.load(teacher_files[1])["model"])
    inputs = batch(n=3, height=70, width=90)  # padding needed
    with torch.no_grad():
        expected = model.backbone(model.preprocess_image(inputs).tensor)
    ours = teacher.start(inputs, "BGR")().maps
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        error = (ours[name].float() - value).abs().max() / value.abs().max()
        assert error <= tolerance, (name, error)
        assert not ours[name].requires_grad
    folded = [m for m in teacher.modules() if isinstance(getattr(m, "norm", None), torch.nn.Module)]
    assert bool(folded) == (not kwargs.get("fold_bn", True))


def test_a_compiled_teacher_returns_the_same(teacher_files, monkeypatch):
    """Maps agree at several sizes; with the default backend too, which compiles for minutes."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    plain = build_teacher(teacher_files[0], weights=teacher_files[1])
    compiled = build_teacher(teacher_files[0], weights=teacher_files[1], compile=True)
    assert list(plain.state_dict()) == list(compiled.state_dict())
    for height, width in ((64, 96), (96, 64), (128, 128)):
        inputs = batch(height=height, width=width)
        ours, expected = compiled(inputs, "BGR"), plain(inputs, "BGR")
        for name, value in expected.items():
            assert (ours[name] - value).abs().max() <= 1e-4 * value.abs().max(), name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_side_stream_changes_nothing(teacher_files):
    """Each stream is kept busy, so that what does not wait for it reads what is not there yet."""
    plain = build_teacher(teacher_files[0], weights=teacher_files[1]).cuda()
    beside = build_teacher(teacher_files[0], weights=teacher_files[1], side_stream=True).cuda()
    busy, streams = partial(torch.cuda._sleep, 10**8), []
    plain(batch(n=3), "BGR"), beside(batch(n=3), "BGR")  # what is made once

    def run_late(*args):
        streams.append(torch.cuda.current_stream())
        busy()

    beside.backbone.register_forward_pre_hook(run_late)
    for seed in range(3):
        inputs = batch(n=3, seed=seed)
        expected = plain(inputs, "BGR")
        late = [{**x, "image": torch.zeros_like(x["image"], device="cuda")} for x in inputs]
        torch.cuda.synchronize()
        busy()  # the images are made on the main stream, after a while
        for x, given in zip(late, inputs):
            x["image"].copy_(given["image"].pin_memory(), non_blocking=True)
        ours = beside.start(late, "BGR")().maps
        for name, value in expected.items():
            assert torch.equal(ours[name], value)
    assert len(streams) == 3 and torch.cuda.current_stream() not in streams


@pytest.mark.parametrize("precision", PRECISIONS)
def test_computes_in_its_own_precision_under_autocast(teacher_files, precision):
    teacher = build_teacher(teacher_files[0], weights=teacher_files[1], precision=precision)
    expected = teacher(batch(), "BGR")
    with torch.autocast("cpu", torch.bfloat16):
        maps = teacher(batch(), "BGR")
    for name, x in maps.items():
        assert x.dtype == PRECISIONS[precision] and torch.equal(x, expected[name])


def test_a_copy_computes_the_same(teacher_files):
    teacher = build_teacher(teacher_files[0], weights=teacher_files[1])
    expected = teacher(batch(), "BGR")
    for twin in (copy.deepcopy(teacher), pickle.loads(pickle.dumps(teacher))):
        assert all(torch.equal(x, expected[n]) for n, x in twin(batch(), "BGR").items())


def test_copies_share_it_until_one_goes_elsewhere(teacher_files):
    teacher = build_teacher(teacher_files[0], weights=teacher_files[1])
    twin = copy.deepcopy(teacher)
    assert twin is teacher and twin.follow(lambda t: t.float()) is teacher
    away = twin.follow(lambda t: t.double())
    assert away is not teacher and away.follow(lambda t: t.float()) is away
    for one, dtype in (
        (teacher, torch.float32),
        (twin.follow(lambda t: t.double()), torch.float64),
    ):
        assert {p.dtype for p in one.parameters()} == {dtype}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_done_to_a_model_leaves_its_values_and_precision(teacher_files, precision):
    teacher = build_teacher(teacher_files[0], weights=teacher_files[1], precision=precision)
    expected = teacher(batch(), "BGR")
    teacher.half().bfloat16().float().to_empty(device="cpu")
    assert {p.dtype for p in teacher.parameters()} == {PRECISIONS[precision]}
    assert all(torch.equal(x, expected[n]) for n, x in teacher(batch(), "BGR").items())


def test_what_may_be_inherited_stays():
    teacher = untrained(tiny_detector())
    assert teacher.components().keys() == teacher.components().keys() >= {"backbone"}
    assert "roi_heads.box_head" in copy.deepcopy(teacher).components()


class Centered(GeneralizedRCNN):
    """Puts images into the middle of a canvas, as many YOLOs do."""

    margin = 100

    def preprocess_image(self, inputs):
        images = super().preprocess_image(inputs)
        size = [(h + 2 * self.margin, w + 2 * self.margin) for h, w in images.image_sizes]
        return ImageList(nn.functional.pad(images.tensor, [self.margin] * 4), size)


def test_a_teacher_that_moves_its_images_is_refused():
    teacher = untrained(tiny_detector(Centered))
    with pytest.raises(ValueError, match=r"The teacher took images of \(296, 328\).*\(96, 128\)"):
        teacher(batch(), "BGR")


class Scaled(GeneralizedRCNN):
    """Divides by 255 first, as YOLOX and its kin do."""

    def preprocess_image(self, inputs):
        return super().preprocess_image([{"image": x["image"] / 255} for x in inputs])


class Closure(nn.Module):
    """Keeps its mean in a function, as DETR's line does."""

    input_format = "BGR"

    def __init__(self, detector, own=True):
        super().__init__()
        self.backbone = detector.backbone
        mean, std = detector.pixel_mean, detector.pixel_std
        self.normalizer = lambda x: (x - mean) / std
        if own:
            self.preprocess_image = self._prepare

    def _prepare(self, inputs):
        return ImageList.from_tensors([self.normalizer(x["image"]) for x in inputs], 32)


class Nested(nn.Module):
    """Has its backbone somewhere else."""

    input_format = "BGR"

    def __init__(self, detector):
        super().__init__()
        self.detr = nn.Module()
        self.detr.backbone = detector.backbone
        self.pixel_mean, self.pixel_std = detector.pixel_mean, detector.pixel_std


def tiny_detector(kind=GeneralizedRCNN, **changes):
    return kind(student_config(tiny_config("faster_rcnn", **changes))).eval()


def untrained(model, **kwargs):
    return FrozenTeacher(model=model, weights="", random_weights=True, **kwargs)


def test_images_are_prepared_as_the_detector_does():
    model = tiny_detector(Scaled, MODEL__PIXEL_MEAN=[0.4, 0.45, 0.48])
    images = model.preprocess_image(batch()).tensor
    with torch.no_grad():
        expected = model.backbone(images)["p2"]
    ours = untrained(model, fold_bn=False, channels_last=False)(batch(), "BGR")["p2"]
    assert torch.equal(ours, expected)
    assert "roi_heads" in dict(model.named_children())  # the caller's detector is whole
    assert "p2" in untrained(Closure(tiny_detector()))(batch(), "BGR")
    with pytest.raises(ValueError, match="Closure, has neither preprocess_image.* nor tensors"):
        untrained(Closure(tiny_detector(), own=False))


def test_a_backbone_somewhere_else_can_be_named():
    with pytest.raises(ValueError, match="teacher's features is 'backbone'.* do: detr.backbone"):
        untrained(Nested(tiny_detector()))
    teacher = untrained(Nested(tiny_detector()), features="detr.backbone")
    assert list(teacher(batch(), "BGR")) == ["p2", "p3", "p4", "p5", "p6"]


class Echo(Backbone):
    """Returns what it is given, to show what the network sees."""

    @property
    def size_divisibility(self):
        return 32

    def output_shape(self):
        return {"image": ShapeSpec(channels=3, stride=1)}

    def forward(self, x):
        return {"image": x}


class Detector(nn.Module):
    def __init__(self, mean, std, input_format):
        super().__init__()
        self.backbone = Echo()
        self.register_buffer("pixel_mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(std).view(3, 1, 1))
        self.input_format = input_format


@pytest.mark.parametrize("teacher_format", ["BGR", "RGB"])
def test_channels_are_flipped_before_normalizing(teacher_format):
    mean, std = [10.0, 20.0, 30.0], [1.0, 2.0, 4.0]
    teacher = FrozenTeacher(
        model=Detector(mean, std, teacher_format), weights="", random_weights=True
    )
    image = torch.stack([torch.full((5, 7), v) for v in (11.0, 24.0, 38.0)])  # B, G, R
    seen = teacher([{"image": image}], "BGR")["image"]
    assert seen.shape == (1, 3, 32, 32)
    order = (11.0, 24.0, 38.0) if teacher_format == "BGR" else (38.0, 24.0, 11.0)
    expected = [(v - m) / s for v, m, s in zip(order, mean, std)]
    assert seen[0, :, 0, 0].tolist() == pytest.approx(expected)
    assert seen[0, :, 5:].abs().max() == 0 and seen[0, :, :, 7:].abs().max() == 0


def test_unknown_input_format_is_refused():
    with pytest.raises(ValueError, match="input_format is None; it must be 'BGR' or 'RGB'"):
        FrozenTeacher(model=Detector([0.0] * 3, [1.0] * 3, None), weights="", random_weights=True)


def test_stays_in_eval_without_gradients_or_events(teacher_files):
    teacher = build_teacher(teacher_files[0], weights=teacher_files[1])
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    teacher.train()
    assert not any(m.training for m in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    with EventStorage() as storage:
        teacher(batch(), "BGR")
        assert not storage.latest() and not storage.histories()
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())


def test_only_the_backbone_is_kept(teacher_files):
    teacher = build_teacher(teacher_files[0], weights=teacher_files[1])
    assert {k.split(".")[1] for k in teacher.state_dict()} == {"backbone"}


def test_weights_that_do_not_fit_are_named(teacher_files, tmp_path):
    state = torch.load(teacher_files[1])["model"]
    del state["roi_heads.box_head.fc1.weight"]
    state["roi_heads.box_head.fc9.weight"] = torch.zeros(1)
    state["proposal_generator.rpn_head.conv.bias"] = torch.zeros(7)
    path = str(tmp_path / "broken.pth")
    torch.save({"model": state}, path)
    with pytest.raises(ValueError) as error:
        build_teacher(teacher_files[0], weights=path)
    message = str(error.value)
    assert "1 missing in the checkpoint:\n    roi_heads.box_head.fc1.weight" in message
    assert "1 unexpected in the checkpoint:\n    roi_heads.box_head.fc9.weight" in message
    assert "proposal_generator.rpn_head.conv.bias: (7,) in the checkpoint, (24,) in the" in message
    assert path in message and "the teacher's weights" in message


def test_a_distilled_student_may_teach(teacher_files, tmp_path):
    cfg = distilling(tiny_config(width=6, fpn=24), teacher_files)
    state = torch.load(teacher_files[1])["model"]
    state["distiller.levels.p2.feature_adapter.weight"] = torch.zeros(3)
    torch.save({"model": state}, tmp_path / "student.pth")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    build_teacher(str(tmp_path / "config.yaml"), weights=str(tmp_path / "student.pth"))


def test_lazy_config_teacher(tmp_path):
    source = find_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py")
    cfg = LazyConfig.load(source)
    opts = ["model.backbone.bottom_up.stages.depth=18", "model.backbone.bottom_up.freeze_at=0"]
    opts += ["model.backbone.bottom_up.stages.num_groups=1", "model.backbone.out_channels=16"]
    assert cfg.model.input_format == "BGR"
    teacher = build_teacher(source, opts=opts[-1:], random_weights=True)
    assert teacher.output_shape()["p2"] == ShapeSpec(channels=16, stride=4)
    assert teacher.input_format == "BGR"
    with pytest.raises(ValueError, match="does not match its model"):
        torch.save({"model": {}}, tmp_path / "empty.pth")
        build_teacher(source, weights=str(tmp_path / "empty.pth"))


def test_zoo_name_brings_its_own_weights(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "skd.modeling.teacher.load_in_full", lambda model, weights: asked.append(weights)
    )
    teacher = build_teacher("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")
    assert [w.split("detectron2/")[1] for w in asked] == [
        "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x/137260431/model_final_a54504.pkl"
    ]
    assert list(teacher.output_shape()) == ["p2", "p3", "p4", "p5", "p6"]


def test_zoo_checkpoint_in_pkl_form_loads(teacher_files, tmp_path):
    import pickle

    state = {k: v.numpy() for k, v in torch.load(teacher_files[1])["model"].items()}
    with open(tmp_path / "zoo.pkl", "wb") as f:
        pickle.dump({"model": state, "__author__": "Detectron2 Model Zoo"}, f)
    build_teacher(teacher_files[0], weights=str(tmp_path / "zoo.pkl"))


def test_opts_change_the_teacher(teacher_files):
    with pytest.raises(ValueError, match="does not match its model"):
        build_teacher(
            teacher_files[0], weights=teacher_files[1], opts=["MODEL.FPN.OUT_CHANNELS", 32]
        )


@pytest.mark.parametrize("key", [5, ["MODEL.FPN.OUT_CHANNELS"]])
def test_opts_with_something_else_than_a_key_are_named(teacher_files, key):
    for config, opts, form in (
        (teacher_files[0], [key, 32], "KEY, VALUE"),
        ("COCO-Detection/retinanet_R_50_FPN_1x.py", ["train.seed=1", key], "'key=value'"),
    ):
        with pytest.raises(ValueError) as error:
            build_teacher(config, opts=opts, random_weights=True)
        assert f"the teacher's opts is {opts}, with {key!r} in the place" in str(error.value)
        assert f"must be [{form}, ...]." in str(error.value)


def test_a_query_for_matching_heuristics_is_no_part_of_the_files_name(teacher_files, tmp_path):
    state = torch.load(teacher_files[1])["model"]
    name = "backbone.bottom_up.stem.conv1.weight"
    state["stem.conv1.weight"] = state.pop(name)  # what the heuristics are for
    torch.save({"model": state}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="does not match"):
        build_teacher(teacher_files[0], weights=str(tmp_path / "w.pth"))
    weights = f"{tmp_path}/w.pth?matching_heuristics=True"
    teacher = build_teacher(teacher_files[0], weights=weights)
    assert teacher.weights == weights
    record = describe_run(RunFacts([], seed=0, files={"teacher": teacher.weights}))
    assert record["files"]["teacher"]["sha256"] == file_sha256(str(tmp_path / "w.pth"))


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_weights_that_are_not_finite_teach_nothing(teacher_files, tmp_path, value):
    state = torch.load(teacher_files[1])["model"]
    state["backbone.fpn_lateral3.weight"][0] = value
    torch.save({"model": state}, tmp_path / "w.pth")
    with pytest.raises(
        CheckpointError, match="w.pth' has NaN or infinite numbers in backbone.fpn_"
    ):
        build_teacher(teacher_files[0], weights=str(tmp_path / "w.pth"))


def test_untrained_teacher_is_announced_loudly(teacher_files, caplog):
    with caplog.at_level(logging.WARNING, "skd.modeling.teacher"):
        build_teacher(teacher_files[0], random_weights=True)
    assert "THE TEACHER IS UNTRAINED" in caplog.text
    with pytest.raises(ValueError, match="Keep one of the two"):
        build_teacher(teacher_files[0], weights=teacher_files[1], random_weights=True)


@pytest.mark.parametrize(
    "config,kwargs,error,message",
    [
        ("", {}, ValueError, "the teacher's config_file is empty"),
        (
            "COCO-Detection/faster_rcnn_R_1001.yaml",
            {},
            FileNotFoundError,
            "faster_rcnn_R_101_FPN_3x.yaml",
        ),
        ("Base-RCNN-FPN.yaml", {}, ValueError, "zoo has no checkpoint for 'Base-RCNN-FPN.yaml'"),
        (None, {"weights": "/no/such.pth"}, FileNotFoundError, "'/no/such.pth'.*not found"),
        (
            None,
            {"weights": "http://127.0.0.1:9/w.pth"},
            FileNotFoundError,
            "'http://127.0.0.1:9/w.pth' .* cannot be read: .*refused",
        ),
        (
            None,
            {"opts": ["MODEL.FPN.CHANNELS", 3], "random_weights": True},
            ValueError,
            "config.yaml' with the teacher's opts .*MODEL.FPN.CHANNELS.* cannot be read: Non-ex",
        ),
        (None, {}, ValueError, "no checkpoint for.*--teacher-weights"),
        (
            None,
            {"precision": "int8", "random_weights": True},
            ValueError,
            "the teacher's precision is 'int8'.*'fp32', 'bf16', 'fp16'",
        ),
        (
            None,
            {"compile": True, "features": "backbone.bottom_up", "random_weights": True},
            ValueError,
            "the teacher's compile needs the teacher's features=backbone",
        ),
        (
            None,
            {"features": "roi_heads", "random_weights": True},
            ValueError,
            "backbone, backbone.bottom_up",
        ),
    ],
)
def test_bad_teachers_are_refused(teacher_files, config, kwargs, error, message):
    with pytest.raises(error, match=message):
        build_teacher(teacher_files[0] if config is None else config, **kwargs)


def test_images_larger_than_the_teacher_s_square_are_refused(teacher_files):
    teacher = build_teacher(teacher_files[0], weights=teacher_files[1])
    teacher.backbone._square_pad = 128
    assert teacher(batch(height=96, width=128), "BGR")["p2"].shape[-2:] == (32, 32)
    with pytest.raises(ValueError, match="160 pixels.*squares of 128.*no larger .*augmentations"):
        teacher(batch(height=96, width=160), "BGR")


def test_a_lazy_teacher_without_a_color_order_of_its_own_takes_its_images(tmp_path):
    opts = ["model.backbone.bottom_up.stages.depth=50", "dataloader.train.mapper.image_format=RGB"]
    name = "COCO-Detection/fcos_R_50_FPN_1x.py"
    assert build_teacher(name, random_weights=True).input_format == "BGR"
    assert build_teacher(name, random_weights=True, opts=opts).input_format == "RGB"


@pytest.mark.parametrize("whose", ["teacher", "student"])
def test_compiled_operators_that_are_absent_are_named(whose, teacher_files):
    try:
        from detectron2 import _C  # noqa: F401

        pytest.skip("this Detectron2 has its compiled operators")
    except ImportError:
        pass
    name = "Misc/mask_rcnn_R_50_FPN_3x_dconv_c3-c5.yaml"
    if whose == "teacher":
        with pytest.raises(ImportError, match=f"teacher '{name}' needs.*DeformConv.*not compiled"):
            build_teacher(name, random_weights=True)
    else:
        cfg = distilling(tiny_config(), teacher_files)
        cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [False, True, True, True]
        with pytest.raises(ImportError, match="DeformConv.*not compiled"):
            build_model(cfg)


def test_point_rend_teaches_from_its_own_config(tmp_path):
    leaf = os.path.join(ROOT, "configs/COCO-InstanceSegmentation/skd_pointrend_R_50_FPN_1x.yaml")
    cfg = student_config(read_config(leaf))
    (tmp_path / "pointrend.yaml").write_text(cfg.dump())
    teacher = build_teacher(str(tmp_path / "pointrend.yaml"), random_weights=True)
    assert list(teacher.output_shape()) == ["p2", "p3", "p4", "p5", "p6"]


def test_bottom_up_features(teacher_files):
    teacher = build_teacher(
        teacher_files[0], weights=teacher_files[1], features="backbone.bottom_up"
    )
    assert list(teacher(batch(), "BGR")) == ["res2", "res3", "res4", "res5"]


def test_every_zoo_name_is_found():
    names = zoo_names()
    assert "COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x.yaml" in names and len(names) > 50
    assert all(os.path.isfile(find_config(n)) for n in names)


def test_a_teacher_leaves_the_random_numbers_alone(teacher_files):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build_teacher(teacher_files[0], weights=teacher_files[1])
    assert torch.equal(torch.rand(3), expected)
