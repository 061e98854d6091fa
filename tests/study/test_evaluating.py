"""robustness.py and generalize.py: every task, and what does not fit told first."""

import json
import os
from argparse import Namespace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from PIL import Image

from skd import register_coco
from skd.runtime.loader import DataError
from skd.runtime.trust import CheckpointError
from skd.study import generalize, robustness
from skd.study.common.models import Model, load_predictor
from tests.helpers import tiny_config

CLEAN = {"corruption": None, "severity": 0}


@pytest.fixture
def points(tmp_path):
    """The name of a set of two images, each with an object of five keypoints."""
    (tmp_path / "images").mkdir()
    content = {"images": [], "annotations": []}
    names = ["left", "right", "top", "bottom", "middle"]
    content["categories"] = [{"id": 1, "name": "part", "keypoints": names}]
    for i in (1, 2):
        Image.new("RGB", (64, 48)).save(tmp_path / "images" / f"{i}.png")
        size = {"width": 64, "height": 48}
        content["images"].append({"id": i, "file_name": f"{i}.png", **size})
        spots = [v for k in range(5) for v in (12 + 4 * k, 12 + 3 * k, 2)]
        content["annotations"].append(
            {"id": i, "image_id": i, "category_id": 1, "iscrowd": 0, "area": 600,
             "bbox": [10, 10, 30, 20], "keypoints": spots, "num_keypoints": 5}
        )  # fmt: skip
    (tmp_path / "points.json").write_text(json.dumps(content))
    name = f"points_{tmp_path.name}"
    register_coco(name, str(tmp_path / "points.json"), str(tmp_path / "images"))
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


class Perfect(torch.nn.Module):
    """Finds what the annotations of ``points`` say."""

    def forward(self, inputs):
        found = Instances((48, 64))
        found.pred_boxes = Boxes(torch.tensor([[10.0, 10, 40, 30]]))
        found.scores, found.pred_classes = torch.ones(1), torch.zeros(1, dtype=torch.long)
        spots = [[12.5 + 4 * k, 12.5 + 3 * k, 2.0] for k in range(5)]
        found.pred_keypoints = torch.tensor([spots])
        return [{"instances": found}]


def model_of(cfg, name="m", net=None):
    return Model(name, cfg, (net or Perfect()).eval(), "w.pth")


def test_keypoints_are_evaluated_with_the_models_sigmas(points, tmp_path):
    cfg = tiny_config("faster_rcnn", TEST__KEYPOINT_OKS_SIGMAS=[0.1] * 5)
    args = Namespace(output=str(tmp_path / "out"), workers=0, seed=0)
    found = robustness.evaluate([model_of(cfg)], CLEAN, args, points)
    assert found == [{"bbox": 100.0, "keypoints": 100.0}]
    row = {**CLEAN, "model": "m", "ap": found[0]}
    bad = {**row, "corruption": "fog", "severity": 1, "ap": {"bbox": 50.0, "keypoints": 40.0}}
    assert robustness.summary([row, bad], ["m"]) == [
        ["m, box AP", "100.0", "50.0", "50.0"], ["m, keypoint AP", "100.0", "40.0", "40.0"]
    ]  # fmt: skip


def test_a_model_that_finds_nothing_has_0_and_no_nan(points, tmp_path):
    class Nothing(Perfect):
        def forward(self, inputs):
            return [{"instances": super().forward(inputs)[0]["instances"][:0]}]

    args = Namespace(output=str(tmp_path / "out"), workers=0, seed=0)
    cfg = tiny_config("faster_rcnn", TEST__KEYPOINT_OKS_SIGMAS=[0.1] * 5)
    models = [model_of(cfg, "none", Nothing()), model_of(cfg)]
    none, perfect = robustness.evaluate(models, CLEAN, args, points)
    assert none["bbox"] == 0 and perfect["bbox"] == 100
    assert not any(model.model.training for model in models)


def test_what_is_known_is_not_evaluated_again(points, tmp_path, monkeypatch):
    """One model of two, and one corruption of two, were evaluated before."""
    cfg = tiny_config("faster_rcnn", MODEL__ROI_HEADS__NUM_CLASSES=1)
    (tmp_path / "w.pth").write_bytes(b"1")
    seen = []

    def run(names, corruptions):
        models = [Model(name, cfg, Perfect().eval(), str(tmp_path / "w.pth")) for name in names]
        for number, model in enumerate(models):  # else they are one, by content
            model.cfg = cfg.clone()
            model.cfg.SOLVER.BASE_LR = 0.1 * (number + 1)
        monkeypatch.setattr(robustness, "load_models", lambda args: models)
        args = Namespace(
            dataset=points, output=str(tmp_path / "out"), workers=0, seed=0, severities=[1]
        )
        args.corruptions = corruptions
        seen.clear()
        robustness.robustness(args)

    def evaluate(models, key, args, dataset):
        seen.append((key["corruption"], [model.name for model in models]))
        return [{"bbox": 50.0}] * len(models)

    monkeypatch.setattr(robustness, "evaluate", evaluate)
    run(["a"], ["fog"])
    assert seen == [(None, ["a"]), ("fog", ["a"])]
    run(["a", "b"], ["fog", "snow"])
    assert seen == [(None, ["b"]), ("fog", ["b"]), ("snow", ["a", "b"])]


def test_semantic_segmentation_is_evaluated(tmp_path):
    labels = np.repeat(np.arange(2, dtype=np.uint8), 24 * 64).reshape(48, 64)
    Image.fromarray(labels).save(tmp_path / "labels.png")
    Image.new("RGB", (64, 48)).save(tmp_path / "image.png")
    record = {"file_name": str(tmp_path / "image.png"), "height": 48, "width": 64, "image_id": 1}
    record["sem_seg_file_name"] = str(tmp_path / "labels.png")
    name = f"stuff_{tmp_path.name}"
    DatasetCatalog.register(name, lambda: [record])
    MetadataCatalog.get(name).set(
        evaluator_type="sem_seg", stuff_classes=["sky", "sea"], ignore_label=255
    )

    class Segments(torch.nn.Module):
        def forward(self, inputs):
            return [
                {
                    "sem_seg": torch.nn.functional.one_hot(torch.tensor(labels).long()).permute(
                        2, 0, 1
                    )
                }
            ]

    args = Namespace(output=str(tmp_path / "out"), workers=0, seed=0)
    net = model_of(tiny_config(), net=Segments())
    assert robustness.evaluate([net], CLEAN, args, name) == [{"sem_seg": 100.0}]


def test_an_image_that_cannot_be_read_is_named(points, tmp_path):
    (tmp_path / "images" / "2.png").write_bytes(b"no image")
    args = Namespace(output=str(tmp_path / "out"), workers=0, seed=0)
    cfg = tiny_config("faster_rcnn", TEST__KEYPOINT_OKS_SIGMAS=[0.1] * 5)
    with pytest.raises(DataError, match="Image '.*2.png'"):
        robustness.evaluate([model_of(cfg)], CLEAN, args, points)


@pytest.mark.parametrize(
    "changes,dataset,words",
    [
        ({"DATASETS__TEST": ()}, None, "--model m: DATASETS.TEST of its config is empty"),
        ({}, "nowhere", "--dataset names 'nowhere', which nobody has registered"),
        (
            {"DATASETS__TEST": ("nowhere",)},
            None,
            "DATASETS.TEST names 'nowhere', which nobody has registered",
        ),
        ({"MODEL__ROI_HEADS__NUM_CLASSES": 5}, "tiny_val", "has 6 classes .*NUM_CLASSES 5"),
    ],
)
def test_robustness_tells_first_what_does_not_fit(changes, dataset, words, shapes, monkeypatch):
    model = model_of(tiny_config(**changes))
    monkeypatch.setattr(robustness, "load_models", lambda args: [model])
    DatasetCatalog.get("tiny_val")  # Detectron2 knows its classes from then on
    with pytest.raises(ValueError, match=words):
        robustness.robustness(Namespace(dataset=dataset, output="never written"))


def test_kept_numbers_are_of_the_same_weights_config_data_and_seed(points, tmp_path):
    (tmp_path / "w.pth").write_bytes(b"1")
    args = Namespace(dataset=points, seed=0)

    def key(**changes):
        cfg = tiny_config("faster_rcnn", MODEL__WEIGHTS=str(tmp_path / "any.pth"), **changes)
        return robustness.content_of(Model("m", cfg, Perfect(), str(tmp_path / "w.pth")), args)

    first = key()
    seen = [first, key(INPUT__MIN_SIZE_TEST=99)]
    args.seed = 1
    seen.append(key())
    args.seed = 0
    (tmp_path / "w.pth").write_bytes(b"2")  # written anew under its name
    seen.append(key())
    Image.new("RGB", (64, 48), "red").save(tmp_path / "images" / "2.png")
    seen.append(key())
    assert len({json.dumps(content) for content in seen}) == len(seen)
    (tmp_path / "w.pth").write_bytes(b"1")
    Image.new("RGB", (64, 48)).save(tmp_path / "images" / "2.png")
    (tmp_path / "w.pth").rename(tmp_path / "moved.pth").rename(tmp_path / "w.pth")
    assert key(OUTPUT_DIR="elsewhere") == first


def test_a_model_of_a_report_runs_no_code(tmp_path):
    class Runs:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "marker"),)

    torch.save({"model": Runs()}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="w.pth' is refused: loading it would run"):
        load_predictor(tiny_config("faster_rcnn", MODEL__WEIGHTS=str(tmp_path / "w.pth")))
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    "text,changes,words",
    [
        ("- circle", {}, "its lines must be like 'dataset class: model class'"),
        ("yes: disk", {}, "has True for a class; it must be text"),
        ("disk: no", {}, "has False for a class; it must be text"),
        (
            "disk: rhombus",
            {},
            r"--model m, --dataset tiny_val: .*\['rhombus'\], none of the model",
        ),
        ("", {"DATASETS__TRAIN": ()}, "--model m: DATASETS.TRAIN of its config is empty"),
        ("", {"MODEL__ROI_HEADS__NUM_CLASSES": 80}, "has MODEL.ROI_HEADS.NUM_CLASSES 80, but"),
    ],
)
def test_generalize_tells_first_what_does_not_fit(
    text, changes, words, shapes, tmp_path, monkeypatch
):
    (tmp_path / "classes.yaml").write_text(text)
    model = model_of(tiny_config(**changes))
    monkeypatch.setattr(generalize, "load_models", lambda args: [model])
    monkeypatch.setattr(generalize, "evaluate", lambda *args: pytest.fail("evaluated"))
    for name in ("tiny_train", "tiny_val"):
        DatasetCatalog.get(name)
    args = SimpleNamespace(
        classes=str(tmp_path / "classes.yaml"), dataset=["tiny_val"], output=str(tmp_path / "out")
    )
    with pytest.raises(ValueError, match=words):
        generalize.generalize(args)


def test_generalize_writes_over_no_other_results(shapes, tmp_path, monkeypatch):
    model = model_of(tiny_config())
    monkeypatch.setattr(generalize, "load_models", lambda args: [model])
    monkeypatch.setattr(generalize, "evaluate", lambda *args: pytest.fail("evaluated"))
    for name in ("tiny_train", "tiny_val"):
        DatasetCatalog.get(name)
    rows = [{"dataset": "tiny_val", "model": name} for name in (model.name, "another")]
    (tmp_path / "results.json").write_text(json.dumps(rows))
    args = SimpleNamespace(classes="", dataset=["tiny_val"], output=str(tmp_path))
    with pytest.raises(ValueError, match="would be overwritten, as those of 'another' on 'tiny_va"):
        generalize.generalize(args)
    assert json.loads((tmp_path / "results.json").read_text()) == rows
