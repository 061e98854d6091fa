"""docs/distil_your_own.md, followed from the first command to a file that detects."""

import json
import os
import re
import runpy
import shlex
import sys

import cv2
import pytest
import torch
import yaml
from detectron2 import model_zoo
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, pairwise_iou

from skd import student_config
from skd.config.safe_yaml import read_yaml_with_base
from tests.helpers import ROOT, python_blocks, read, read_config

pytestmark = pytest.mark.slow

PAGE = "docs/distil_your_own.md"
# "yours": the built-in dataset's sizes and weights in place of COCO's, and two iterations
TINY = {
    "MODEL": {"DEVICE": "cpu", "WEIGHTS": f"{ROOT}/configs/shapes/teacher.pth"},
    "SOLVER": {"MAX_ITER": 2, "STEPS": (), "IMS_PER_BATCH": 2, "WARMUP_ITERS": 0},
    "TEST": {"EVAL_PERIOD": 2},
    "DATALOADER": {"NUM_WORKERS": 0},
}


def merged(settings, *changes):
    for change in changes:
        for key, value in change.items():
            inner = isinstance(value, dict)
            settings[key] = merged(settings.get(key, {}), value) if inner else value
    return settings


def write_tiny_configs(folder):
    """The page's own configs, edited."""
    shapes = read_yaml_with_base(f"{ROOT}/configs/shapes/teacher.yaml")
    for name in ("teacher", "student"):
        settings = read_yaml_with_base(f"{ROOT}/configs/own/{name}.yaml")
        kept = {key: shapes[key] for key in ("MODEL", "INPUT")}
        text = yaml.safe_dump(merged(settings, kept, TINY))
        (folder / f"{name}.yaml").write_text(text)


def commands():
    """The page's commands, in its order, with the shell's variable put in."""
    text = re.sub(r"\\\n\s*", " ", read(PAGE))
    (data,) = re.findall(r'^    DATA="(.*)"$', text, re.M)
    for line in re.findall(r"^    python (.*)$", text, re.M):
        yield shlex.split(line.replace("$DATA", data))


@pytest.fixture
def folder(shapes, tmp_path, monkeypatch):
    """The folder as the page has it: the repository, ``data/`` and an image."""
    (tmp_path / "configs" / "own").mkdir(parents=True)
    write_tiny_configs(tmp_path / "configs" / "own")
    for name in ("tools", "train_net.py"):
        (tmp_path / name).symlink_to(os.path.join(ROOT, name))
    (tmp_path / "data").mkdir()
    for split in ("train", "val"):
        source = next(shapes.glob(f"skd_shapes/*/skd_shapes_{split}"))
        (tmp_path / "data" / f"{split}.json").symlink_to(source / "annotations.json")
        (tmp_path / "data" / split).symlink_to(source / "images")
    first = min((tmp_path / "data" / "val").iterdir())
    cv2.imwrite(str(tmp_path / "image.jpg"), cv2.imread(str(first)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def run(monkeypatch, script, *args):
    """Do as ``python script args`` does."""
    monkeypatch.setattr(sys, "argv", [script, *args])
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        assert not end.code
    for name in ("own_train", "own_val"):
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def test_the_page(folder, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    printed = {}
    for script, *args in commands():
        if "compare" in script:
            args = [part for part in args if part not in ("2", "3")]  # of the seeds
        if "doctor" in script:
            args += ["--iterations", "2", "--images", "4"]
        run(monkeypatch, script, *args)
        printed[os.path.basename(script)] = capsys.readouterr().out
    tools = ["check_dataset.py", "train_net.py", "doctor.py", "compare.py", "export.py"]
    assert list(printed) == tools
    assert printed["check_dataset.py"].endswith("0 errors, 0 warnings\n")
    assert printed["train_net.py"].count("model_best.pth") and "detector_loss" in metrics("student")
    assert not re.search("loss_distill", metrics("teacher"))
    assert len(re.findall("loss_distill_structured_(?:am|at|nl)", metrics("student"))) == 3
    assert re.search(r"\| StructuredDistiller +\| +1 \|", printed["compare.py"])
    assert os.path.exists("output/compare/report.html")
    for said in ("model.onnx", "takes   image: float32", "gives   pred_boxes", "checked: "):
        assert said in printed["export.py"] and said in read(PAGE)
    (code,) = python_blocks(PAGE)
    space = {}
    exec(code.replace("800 /", "128 /").replace("1333 /", "128 /"), space)
    lines = capsys.readouterr().out.splitlines()
    assert lines and all(re.fullmatch(r"[a-z]+ [01]\.\d\d \[.*\]", line) for line in lines)
    check_detections(space["boxes"] / space["scale"], space["classes"], space["scores"])


def metrics(name):
    with open(f"output/{name}/metrics.json") as f:
        return f.read()


def check_detections(boxes, classes, scores):
    """Most of the first image's objects are found, and little else."""
    with open("data/val.json") as f:
        content = json.load(f)
    first = min(content["images"], key=lambda image: image["file_name"])["id"]
    truth = [a for a in content["annotations"] if a["image_id"] == first]
    corners = torch.tensor([a["bbox"] for a in truth])
    corners[:, 2:] += corners[:, :2]
    sure = torch.as_tensor(scores) > 0.5
    overlap = pairwise_iou(Boxes(corners), Boxes(torch.as_tensor(boxes)[sure]))
    labels = torch.tensor([a["category_id"] - 1 for a in truth])
    right = (overlap > 0.5) & (labels[:, None] == torch.as_tensor(classes)[sure][None])
    assert right.any(1).sum() > len(truth) / 2 and right.any(0).sum() > sure.sum() / 2


@pytest.mark.parametrize("name,depth", [("teacher", 101), ("student", 50)])
def test_the_page_s_detectors_are_the_zoo_s(name, depth):
    """They are the zoo's, so that COCO's weights fit, up to the heads' last layers."""
    zoo = f"COCO-InstanceSegmentation/mask_rcnn_R_{depth}_FPN_3x.yaml"
    ours, stock = read_config(f"{ROOT}/configs/own/{name}.yaml"), model_zoo.get_config(zoo)
    path = ours.MODEL.WEIGHTS.split("://")[1]
    assert model_zoo.get_checkpoint_url(zoo).endswith(path)
    ours = student_config(ours)
    ours.MODEL.WEIGHTS, ours.MODEL.DEVICE = stock.MODEL.WEIGHTS, stock.MODEL.DEVICE
    ours.MODEL.ROI_HEADS.NUM_CLASSES = 80
    assert ours.MODEL == stock.MODEL and ours.INPUT == stock.INPUT
