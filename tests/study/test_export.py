"""The exported file gives what the model gives, in processes that have nothing of this project."""

import re
import runpy
import shlex
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import DefaultPredictor
from detectron2.export.flatten import flatten_to_tuple
from detectron2.structures import Boxes, Instances
from torch import nn

from skd import distill, student_config
from skd.config import form_of
from skd.modeling.load import load_in_full
from skd.study.common.command import RunError
from skd.study.export import compare, matches, output_names, traceable
from tests.helpers import (
    ROOT,
    lazy_config,
    python_blocks,
    read,
    read_config,
    save_detector,
    tiny_config,
)

SHAPES_TEACHER = f"{ROOT}/configs/shapes/teacher"
PLAIN = """
import sys
sys.modules["skd"] = None  # as where it is not installed
{code}
import cv2, torch
from detectron2.engine import DefaultPredictor
cfg.merge_from_file({config!r})
predictor = DefaultPredictor(cfg)
torch.save(predictor(cv2.imread({image!r}))["instances"].get_fields(), {out!r})
"""


def run(monkeypatch, *args):
    """The command, in this process: its exit code."""
    monkeypatch.setattr(sys, "argv", ["export.py", *map(str, args)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(f"{ROOT}/tools/export.py", run_name="__main__")
    return end.value.code


def detections(cfg, weights, image):
    """Boxes, classes and scores by Detectron2's predictor."""
    predictor = DefaultPredictor(cfg)
    load_in_full(predictor.model, weights)
    found = predictor(image)["instances"]
    return found.pred_boxes.tensor, found.pred_classes, found.scores


def images(shapes):
    folder = next(shapes.glob("skd_shapes/*/skd_shapes_val/images"))
    return sorted(folder.iterdir())


def test_onnx_finds_the_predictor_s_boxes(shapes, tmp_path, monkeypatch, capsys):
    """A trained Mask R-CNN, in images that it was not traced with."""
    onnxruntime = pytest.importorskip("onnxruntime")
    traced, *others = images(shapes)
    weights = f"{SHAPES_TEACHER}.pth"
    args = ["--weights", weights, "--output", tmp_path, "--sample-image", traced]
    assert run(monkeypatch, f"{SHAPES_TEACHER}.yaml", *args) == 0
    printed = capsys.readouterr().out
    assert "pred_boxes, pred_classes, pred_masks, scores, image_size" in printed
    assert "of them as the model's" in printed and "BGR" in printed
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    cfg = student_config(read_config(f"{SHAPES_TEACHER}.yaml", ["INPUT.MIN_SIZE_TEST", 0]))
    for path in others[:2]:
        image = cv2.imread(str(path))[:100]
        expected = detections(cfg, weights, image)
        pixels = image.transpose(2, 0, 1).astype("float32")
        names = ["pred_boxes", "pred_classes", "scores"]
        given = session.run(names, {"image": pixels})
        assert len(given[0]) > 2
        for a, b in zip(expected, given):
            assert np.allclose(a, b, atol=1e-3)


@pytest.mark.parametrize("format", ["torchscript", "onnx"])
def test_a_one_stage_detector(format, shapes, tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    cfg = tiny_config("retinanet", MODEL__RETINANET__SCORE_THRESH_TEST=0.001)
    config, weights = save_detector(cfg, tmp_path / "detector")
    args = ["--weights", weights, "--output", tmp_path, "--format", format]
    assert run(monkeypatch, config, *args) == 0
    assert "of them as the model's" in capsys.readouterr().out


def test_the_student_of_a_lazy_config(shapes, tmp_path, monkeypatch, capsys):
    """The student is exported by the config that a run writes beside its checkpoint."""
    cfg = lazy_config(tmp_path, "model.proposal_generator.post_nms_topk=[20,20]")
    torch.manual_seed(0)
    weights, config = str(tmp_path / "model_final.pth"), str(tmp_path / "student.yaml")
    torch.save({"model": instantiate(cfg.model).state_dict()}, weights)
    distill(cfg, "teacher.yaml")
    form_of(cfg).save_trained_student(cfg, weights, config)
    args = ["--format", "torchscript", "--sample-image", images(shapes)[0], "--output", tmp_path]
    assert run(monkeypatch, config, *args) == 0  # its weights are named in the config
    assert "of them as the model's" in capsys.readouterr().out
    LazyConfig.save(cfg, config)  # of the run itself, which distils
    assert run(monkeypatch, config, *args, "--weights", "nowhere.pth") == 2
    assert "nowhere.pth not found" in capsys.readouterr().err


@pytest.mark.parametrize(
    "args,message",
    [
        (["--sample-image", "none.jpg"], "none.jpg"),
        (["--weights", ""], "--weights is missing, and MODEL.WEIGHTS is empty"),
        (
            ["--opts", "DATASETS.TEST", "()"],
            "--sample-image is missing, and DATASETS.TEST is empty",
        ),
        (["--opts", "DATASETS.TEST", "('nobody_s',)"], "'nobody_s', which nobody has registered"),
    ],
)
def test_what_is_missing_is_named(args, message, tmp_path, monkeypatch, capsys):
    given = ["--weights", f"{SHAPES_TEACHER}.pth", "--output", tmp_path / "out", *args]
    assert run(monkeypatch, f"{SHAPES_TEACHER}.yaml", *given) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda boxes, scores: [boxes + 0.1, scores],
        lambda boxes, scores: [boxes[:2], scores[:2]],
        lambda boxes, scores: [boxes[:0], scores[:0]],
        lambda boxes, scores: [boxes, scores[::-1]],
        lambda boxes, scores: [boxes * np.nan, scores],
        lambda boxes, scores: [boxes[:, :3], scores],
    ],
)
def test_other_detections_are_an_error(change):
    boxes, scores = np.arange(16.0).reshape(4, 4), np.linspace(0.2, 0.9, 4)

    def adapter(image):
        return [torch.as_tensor(boxes), torch.as_tensor(scores), image.new_ones(2)]

    def loaded(image):
        return [*change(boxes, scores), np.ones(2)]

    image = torch.zeros(3, 8, 8)
    with pytest.raises(
        RunError, match="of the model's 4 and 4 detections.*gives only [0-4] and [0-4]"
    ):
        compare(adapter, loaded, [image, image])


def test_detections_may_come_in_another_order():
    boxes, size = np.arange(16.0).reshape(4, 4), np.ones(2)
    assert matches([boxes, size], [boxes[::-1], size]) == 4
    assert matches([boxes, size], [boxes, 2 * size]) == 0


def test_a_detector_that_needs_more_than_an_image_is_told_so():
    class Sized(nn.Module):
        def forward(self, inputs):
            return [x["image"].mean() * x["height"] for x in inputs]

    with pytest.raises(ValueError, match="A Sized looks for 'height' in its input"):
        traceable(Sized(), torch.zeros(3, 8, 8))


def test_outputs_have_the_names_of_the_fields():
    found = Instances((8, 8), scores=torch.ones(1), pred_boxes=Boxes(torch.ones(1, 4)))
    _, schema = flatten_to_tuple([{"instances": found, "sem_seg": torch.ones(1)}, torch.ones(1)])
    names = ["pred_boxes", "scores", "image_size", "sem_seg", "output"]
    assert output_names(schema) == names
    _, schema = flatten_to_tuple((torch.ones(1), torch.ones(1)))
    assert output_names(schema) == ["output", "output_1"]


def test_a_student_with_a_timm_backbone_where_this_project_is_not(shapes, tmp_path):
    """The lines of docs/detectors.md find the same objects, in a process of their own."""
    pytest.importorskip("timm")
    cfg = tiny_config(MODEL__TIMM__NAME="mobilenetv3_small_050", MODEL__TIMM__NORM="FrozenBN")
    cfg.MODEL.BACKBONE.NAME = "build_timm_fpn_backbone"
    _, weights = save_detector(cfg, tmp_path)
    config = str(tmp_path / "student.yaml")
    form_of(cfg).save_trained_student(cfg, weights, config)
    image, out = str(images(shapes)[0]), str(tmp_path / "found.pth")
    (code,) = python_blocks("docs/detectors.md")
    program = PLAIN.format(code=code, config=config, image=image, out=out)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    given = torch.load(out, weights_only=False)
    boxes, classes, scores = detections(read_config(config), weights, cv2.imread(image))
    assert len(boxes) and torch.equal(given["pred_boxes"].tensor, boxes)
    assert torch.equal(given["pred_classes"], classes) and torch.equal(given["scores"], scores)


def test_the_command_of_the_document(shapes, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    folder = tmp_path / "output"
    config, weights = save_detector(tiny_config(), folder)
    (folder / "config.yaml").rename(folder / "student.yaml")
    cv2.imwrite(str(tmp_path / "image.jpg"), cv2.imread(str(images(shapes)[0])))
    monkeypatch.chdir(tmp_path)
    (line,) = re.findall(r"python tools/export.py (.*)\\\n(.*)", read("docs/plugging_in.md"))
    assert run(monkeypatch, *shlex.split("".join(line))) == 0
