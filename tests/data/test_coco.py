"""Datasets of one's own, and whether a model fits them."""

import json

import pytest
from detectron2.config import LazyConfig
from detectron2.data import DatasetCatalog, MetadataCatalog

from skd import distill, register_coco, student_config
from skd.data import check_datasets
from skd.data.shapes import SHAPES_CLASSES, VERSION
from skd.modeling.model_zoo import find_config
from tests.helpers import tiny_config
from tests.processes import call_script, run_script


@pytest.fixture
def files(shapes):
    folder = shapes / "skd_shapes" / f"v{VERSION}" / "skd_shapes_train"
    return str(folder / "annotations.json"), str(folder / "images")


@pytest.fixture
def mine(files, new_datasets):
    register_coco("mine", *files)
    return "mine"


def test_registered_as_detectron2_does(mine):
    assert MetadataCatalog.get(mine).thing_classes == list(SHAPES_CLASSES)
    assert len(DatasetCatalog.get(mine)) == 8
    assert MetadataCatalog.get(mine).evaluator_type == "coco"


@pytest.mark.parametrize(
    "content,message",
    [
        ("{", "must be in COCO's format(.|\n)*cannot be read as JSON: Expecting"),
        ("[]", "top: is a list; it must be an object"),
        ('{"images": [], "annotations": []}', "has no list 'categories'"),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1}]}',
            r"categories\[0\]: has no 'name'",
        ),
        ('{"images": [], "annotations": [], "categories": []}', "lists no images"),
    ],
)
def test_files_that_are_not_coco_are_refused(content, message, tmp_path):
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        register_coco("bad", str(path), str(tmp_path))
    assert str(path) in str(error.value)
    assert "bad" not in DatasetCatalog.list()


def test_missing_files_are_named(files, tmp_path, mine):
    with pytest.raises(FileNotFoundError, match="no annotation file '/no.json'"):
        register_coco("x", "/no.json", files[1])
    with pytest.raises(FileNotFoundError, match="no folder of images '/no'"):
        register_coco("x", files[0], "/no")
    with pytest.raises(ValueError, match="image 1 .'000001.png'.*: there is no file '"):
        register_coco("x", files[0], str(tmp_path))
    with pytest.raises(ValueError, match="'mine' is registered already"):
        register_coco("mine", *files)


@pytest.mark.parametrize("kind", ["mask_rcnn", "retinanet"])
def test_the_number_of_classes_is_compared(kind, mine):
    key = {"mask_rcnn": "ROI_HEADS", "retinanet": "RETINANET"}[kind]
    cfg = tiny_config(kind)
    check_datasets(cfg)
    cfg.merge_from_list([f"MODEL.{key}.NUM_CLASSES", 3, "DATASETS.TEST", ("mine",)])
    for config in (cfg, student_config(cfg)):
        with pytest.raises(ValueError, match=f"has 6 classes .*MODEL.{key}.NUM_CLASSES 3. Set"):
            check_datasets(config)
    distill(cfg, "any.yaml")
    with pytest.raises(ValueError, match="6 classes"):
        check_datasets(cfg)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("coco_2017_val",)
    with pytest.raises(ValueError, match=r"80 classes \(person, .*, \.\.\.\)"):
        check_datasets(cfg)


def test_class_agnostic_detectors_fit_all():
    cfg = student_config(tiny_config("faster_rcnn", MODEL__ROI_HEADS__NUM_CLASSES=3))
    cfg.MODEL.META_ARCHITECTURE = "ProposalNetwork"
    check_datasets(cfg)


@pytest.mark.parametrize("name", ["mask_rcnn_R_50_FPN_1x", "retinanet_R_50_FPN_1x"])
def test_the_same_for_lazy_configs(name, mine):
    folder = "COCO-InstanceSegmentation" if "mask" in name else "COCO-Detection"
    cfg = LazyConfig.load(find_config(f"{folder}/{name}.py"))
    check_datasets(cfg)
    cfg.dataloader.train.dataset.names = ["coco_2017_train", "mine"]
    with pytest.raises(ValueError, match="'mine' has 6 classes.* training 80 .* do not agree"):
        check_datasets(cfg)


def test_a_dataset_is_registered_and_checked_from_the_command_line(
    files, shapes, new_datasets, tmp_path
):
    cfg = student_config(tiny_config(SOLVER__MAX_ITER=2))
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("my_train",), ("my_val",)
    config = tmp_path / "student.yaml"
    config.write_text(cfg.dump())
    flags = ["--config-file", config, "OUTPUT_DIR", tmp_path / "out", "MODEL.DEVICE", "cpu"]
    for name in ("my_train", "my_val"):
        flags = ["--register-coco", name, *files, *flags]
    printed = run_script("train_net.py", *flags, datasets=shapes)
    assert "copypaste: Task: bbox" in printed
    with open(tmp_path / "out" / "inference" / "coco_instances_results.json") as f:
        assert isinstance(json.load(f), list)
    printed = call_script("train_net.py", *flags, "MODEL.ROI_HEADS.NUM_CLASSES", 5, ok=False)
    assert "Dataset 'my_train' has 6 classes" in printed and "Starting training" not in printed
