"""Datasets against the model and against each other: said before training."""

import copy
import json
import logging
import os
import re
import sys

import numpy as np
import pytest
import torch
from detectron2.config import LazyCall, LazyConfig
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json, register_coco_instances
from detectron2.engine import launch
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances
from detectron2.utils.file_io import PathHandler, PathManager
from PIL import Image

from skd import register_coco
from skd.data import check_datasets, coco, records
from skd.data.check import examine
from skd.data.fit import ModelFacts, check_fit, lazy_model, yaml_model
from skd.evaluation import build_evaluator
from skd.modeling.model_zoo import find_config
from skd.runtime.words import shown
from tests.helpers import problems_of, tiny_config
from tests.processes import leave_together

WIDTH, HEIGHT = 60, 40
BOXES = ModelFacts()
MASKS = ModelFacts((("MODEL.ROI_HEADS.NUM_CLASSES", 2),), "MODEL.MASK_ON True")


def content_of(folder, classes=("bolt", "nut"), images=4):
    """Images with an object of each class, at places that tell the classes apart."""
    (folder / "images").mkdir(exist_ok=True)
    content = {"images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": i + 1, "name": name} for i, name in enumerate(classes)]
    for i in range(1, images + 1):
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "images" / f"{i}.jpg")
        name = {"file_name": f"{i}.jpg", "width": WIDTH, "height": HEIGHT}
        content["images"].append({"id": i, **name})
        for c, name in enumerate(classes):
            x = 5 + 20 * sorted(classes).index(name)
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1, "image_id": i, "category_id": c + 1,
                    "bbox": [x, 5, 15, 20], "area": 300, "iscrowd": 0,
                    "segmentation": [[x, 5, x + 15, 5, x + 15, 25, x, 25]],
                }
            )  # fmt: skip
    return content


@pytest.fixture
def add(tmp_path, new_datasets):
    """Writes and registers content under a name, unchecked."""

    def register(name, content, check=False):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(content))
        register_coco(name, str(path), str(tmp_path / "images"), check=check)
        return str(path)

    return register


def logged(caplog, level=logging.INFO):
    return "\n".join(r.getMessage() for r in caplog.records if r.levelno >= level)


@pytest.fixture(autouse=True)
def log(caplog):
    logger = logging.getLogger("skd")
    before = logger.propagate, logger.level
    logger.propagate = True  # setup_logger stops it
    caplog.set_level(logging.INFO, "skd")
    yield
    logger.propagate, logger.level = before


def evaluate(name, folder, classes, masks=False):
    """Results of predictions of ``classes`` in the order the model knows, perfect for them."""
    evaluator = build_evaluator(name, str(folder))
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        found = Instances((HEIGHT, WIDTH))
        x = [5.0 + 20 * sorted(classes).index(c) for c in classes]
        found.pred_boxes = Boxes(torch.tensor([[v, 5, v + 15, 25] for v in x]))
        found.pred_classes = torch.arange(len(classes))
        found.scores = torch.ones(len(classes))
        if masks:
            found.pred_masks = torch.zeros(len(classes), HEIGHT, WIDTH, dtype=torch.bool)
            for i, v in enumerate(x):
                found.pred_masks[i, 5:25, int(v) : int(v) + 15] = True
        evaluator.process([record], [{"instances": found}])
    return evaluator.evaluate()


@pytest.mark.parametrize("keypoints", [False, True])
def test_a_clean_file_is_read_as_detectron2_reads_it(keypoints, add, tmp_path):
    content = content_of(tmp_path)
    for i, image in enumerate(content["images"]):
        image["id"] = 9 - 2 * i  # in another order than the file's, with gaps
        for annotation in content["annotations"][2 * i : 2 * i + 2]:
            annotation["image_id"] = image["id"]
    content["categories"] = [{"id": 7, "name": "bolt"}, {"id": 3, "name": "nut"}]
    for annotation in content["annotations"]:
        annotation["category_id"] = {1: 7, 2: 3}[annotation["category_id"]]
    content["annotations"][3]["segmentation"] = {
        "size": [HEIGHT, WIDTH], "counts": [40, 30, HEIGHT * WIDTH - 70]
    }  # fmt: skip
    path = add("a", with_keypoints(content) if keypoints else content)
    if keypoints:
        for annotation in content["annotations"]:
            annotation["num_keypoints"] = 3
        (tmp_path / "a.json").write_text(json.dumps(content))
    check_fit(["a"], [], MASKS._replace(mask_format=("INPUT.MASK_FORMAT", "bitmask")))
    assert records.kept("a")
    assert MetadataCatalog.get("a").json_file == path  # no copy
    own = DatasetCatalog.get("a")
    assert own == load_coco_json(path, str(tmp_path / "images"), "fit_reference")
    MetadataCatalog.remove("fit_reference")


def test_a_check_that_takes_long_says_so(add, tmp_path, caplog, monkeypatch):
    waiting = []

    class Clock:
        """A timer of five seconds that are over as soon as it runs."""

        def __init__(self, seconds, call, args):
            waiting.append((seconds, call, args))

        def start(self):
            seconds, call, args = waiting[-1]
            call(*args)

        def cancel(self):
            waiting.clear()

    monkeypatch.setattr(coco.threading, "Timer", Clock)
    monkeypatch.setattr(coco, "examine", lambda *args, **options: waiting[0][0] / 0)
    add("a", content_of(tmp_path))
    with pytest.raises(ZeroDivisionError):
        check_fit(["a"], [], BOXES)
    assert "Checking dataset 'a'" in logged(caplog) and waiting == []


def test_what_is_mended_is_told_once(add, tmp_path, caplog):
    content = content_of(tmp_path)
    del content["annotations"][0]["iscrowd"]
    add("a", content, check=True)
    check_fit(["a"], ["a"], MASKS)
    assert logged(caplog, logging.WARNING).count("iscrowd is missing") == 1
    assert logged(caplog, logging.WARNING).count("is read from a mended copy") == 1


@pytest.mark.parametrize("eval_only", [False, True])
def test_a_test_set_that_is_trained_on_is_told(eval_only, add, tmp_path, caplog):
    add("a", content_of(tmp_path))
    check_fit(["a"], ["a"], MASKS, eval_only)
    assert ("'a' is also trained on" in logged(caplog, logging.WARNING)) != eval_only


@pytest.mark.parametrize("eval_only", [False, True])
def test_test_images_that_are_trained_on_are_told(eval_only, add, tmp_path, caplog):
    """In another file, as after a careless split; by whatever form of the path."""
    first, second = content_of(tmp_path), content_of(tmp_path)
    second["info"] = "another file"
    second["images"][0]["file_name"] = "./" + second["images"][0]["file_name"]
    add("a", first), add("b", second)
    check_fit(["a"], ["b"], MASKS, eval_only)
    images = len(second["images"])
    words = f"{images} of the {images} images of the test set 'b' are also trained on, as '"
    assert (words in logged(caplog, logging.WARNING)) != eval_only


# ------------------------------------------------------------------------------------- classes


@pytest.mark.parametrize("eval_only", [False, True])
def test_classes_in_another_order_are_mapped_by_name(eval_only, add, tmp_path, caplog):
    add("a", content_of(tmp_path, ("bolt", "nut", "cap")))
    path = add("b", content_of(tmp_path, ("nut", "cap", "bolt")))
    text = open(path).read()
    check_fit(["a"], ["b"], BOXES, eval_only)
    assert "mapped by name" in logged(caplog, logging.WARNING)
    results = evaluate("b", tmp_path, ("bolt", "nut", "cap"))["bbox"]
    assert results["AP"] == pytest.approx(100)
    assert MetadataCatalog.get("b").thing_classes == ["bolt", "nut", "cap"]
    assert open(path).read() == text


def test_classes_with_other_ids_and_fewer_of_them(add, tmp_path):
    add("a", content_of(tmp_path, ("bolt", "nut", "cap")))
    content = content_of(tmp_path, ("cap", "bolt"))
    for entry in content["categories"]:
        entry["id"] *= 10
    for entry in content["annotations"]:
        entry["category_id"] *= 10
        x = {10: 25, 20: 5}[entry["category_id"]]  # where the three have them
        entry["bbox"] = [x, 5, 15, 20]
    add("b", content)
    check_fit(["a"], ["b"], ModelFacts((("NUM_CLASSES", 3),)))
    results = evaluate("b", tmp_path, ("bolt", "nut", "cap"))["bbox"]
    assert np.isnan(results["AP-nut"])
    assert results["AP-cap"] == results["AP-bolt"] == pytest.approx(100)
    assert MetadataCatalog.get("b").thing_classes == ["bolt", "nut", "cap"]


def test_a_second_training_set_is_mapped_too(add, tmp_path):
    add("a", content_of(tmp_path, ("bolt", "nut")))
    add("b", content_of(tmp_path, ("nut", "bolt")))
    check_fit(["a", "b"], [], BOXES)
    first = {
        (o["category_id"], o["bbox"][0]) for r in DatasetCatalog.get("a") for o in r["annotations"]
    }
    assert first == {
        (o["category_id"], o["bbox"][0]) for r in DatasetCatalog.get("b") for o in r["annotations"]
    }


def test_other_names_are_an_error_in_training_and_a_warning_after_it(add, tmp_path, caplog):
    add("a", content_of(tmp_path, ("bolt", "nut")))
    add("b", content_of(tmp_path, ("Bolt", "washer")))
    with pytest.raises(ValueError, match="'b' has 2 classes .*do not agree by name: Bolt, washer"):
        check_fit(["a"], ["b"], BOXES)
    check_fit(["a"], ["b"], MASKS, eval_only=True)
    assert "do not agree by name: Bolt, washer" in caplog.text


def test_datasets_of_others_are_compared_by_name(add, tmp_path):
    add("a", content_of(tmp_path, ("bolt", "nut")))
    DatasetCatalog.register("fit_other", list)
    MetadataCatalog.get("fit_other").set(thing_classes=["nut", "bolt"], evaluator_type="coco")
    message = "'fit_other' has 2 classes .* in another order.* Register its"
    with pytest.raises(ValueError, match=message):
        check_fit(["a"], ["fit_other"], BOXES)


@pytest.mark.parametrize("eval_only", [False, True])
@pytest.mark.parametrize("known", [{}, {"thing_classes": ["nut", "bolt"]}])
def test_a_set_of_detectron2_is_mapped_by_name(known, eval_only, add, tmp_path, caplog):
    """Detectron2 knows the classes of a built-in set before it reads the file."""
    add("a", content_of(tmp_path, ("bolt", "nut")))
    path = tmp_path / "stock.json"
    path.write_text(json.dumps(content_of(tmp_path, ("nut", "bolt"))))
    before = path.read_bytes()
    register_coco_instances("fit_stock", known, str(path), str(tmp_path / "images"))
    check_fit(["a"], ["fit_stock"], MASKS, eval_only=eval_only)
    results = evaluate("fit_stock", tmp_path, ("bolt", "nut"))
    assert results["bbox"]["AP"] == pytest.approx(100)
    assert "classes nut, bolt, training bolt, nut: mapped by name" in caplog.text
    assert path.read_bytes() == before


@pytest.fixture
def stock(tmp_path, new_datasets):
    """Registers content as Detectron2 does."""

    def register(content, image_root, metadata=()):
        path = tmp_path / "stock.json"
        path.write_text(json.dumps(content))
        register_coco_instances("fit_stock", dict(metadata), path, image_root)

    return register


def test_a_set_that_detectron2_has_registered_is_checked_as_an_own_one(stock, tmp_path, caplog):
    """An annotation id 0 is no match to pycocotools, and it stops without an area."""
    content = content_of(tmp_path, images=1)
    for i, annotation in enumerate(content["annotations"]):
        annotation["id"] = i
        del annotation["area"]
    stock(content, tmp_path / "images")
    check_fit(["fit_stock"], ["fit_stock"], BOXES)
    assert "all get new ids" in logged(caplog, logging.WARNING)
    assert "2 of 2 objects reach" in logged(caplog)
    assert evaluate("fit_stock", tmp_path, ("bolt", "nut"))["bbox"]["AP"] == pytest.approx(100)
    del content["categories"]
    (tmp_path / "stock.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="has no list 'categories'"):
        check_fit(["fit_stock"], [], BOXES)


@pytest.mark.parametrize("root", ["", "nowhere", "images"])
def test_images_of_such_a_set_may_be_anywhere(root, stock, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = content_of(tmp_path)
    os.rename("images", "store")
    for image in content["images"]:
        image["file_name"] = str(tmp_path / "store" / image["file_name"])
    if not root:
        content["images"][0]["file_name"] = "store/1.jpg"
    if root == "images":
        os.mkdir(root)
        content["images"][0]["file_name"] = "../store/1.jpg"
    stock(content, root, {"keypoint_flip_map": [("a", "b")]})
    for _ in range(2):
        check_fit(["fit_stock"], ["fit_stock"], BOXES)
        assert len(DatasetCatalog.get("fit_stock")) == 4
    os.remove("store/4.jpg")
    with pytest.raises(ValueError, match="there is no file .*4.jpg"):
        check_fit(["fit_stock"], [], BOXES)


def test_such_a_set_may_be_kept_elsewhere(stock, tmp_path):
    class Elsewhere(PathHandler):
        def _get_supported_prefixes(self):
            return ["fit://"]

        def _get_local_path(self, path, force=False, **options):
            return str(tmp_path / path[len("fit://") :])

        def _open(self, path, mode="r", buffering=-1, **options):
            return open(self._get_local_path(path), mode)

    PathManager.register_handler(Elsewhere(), allow_override=True)
    stock(content_of(tmp_path), "fit://images")
    MetadataCatalog.get("fit_stock").__dict__["json_file"] = "fit://stock.json"
    check_fit(["fit_stock"], ["fit_stock"], BOXES)
    assert len(DatasetCatalog.get("fit_stock")) == 4


def test_names_there_twice_are_not_mapped(add, tmp_path):
    content = content_of(tmp_path, ("bolt", "nut"))
    content["categories"] = [{"id": i, "name": n} for i, n in enumerate(["nut", "nut", "bolt"])]
    content["annotations"] = [{**a, "category_id": 2} for a in content["annotations"]]
    add("a", content_of(tmp_path, ("bolt", "nut")))
    add("b", content)
    with pytest.raises(ValueError, match="are not each there once. .*the same names"):
        check_fit(["a"], ["b"], BOXES)


@pytest.mark.parametrize("more", ["cap", "nut"])
@pytest.mark.parametrize("eval_only", [False, True])
def test_a_test_set_of_more_classes_does_not_change_the_model(more, eval_only, add, tmp_path):
    add("a", content_of(tmp_path))
    content = content_of(tmp_path)
    content["categories"].append({"id": 9, "name": more})
    add("b", content)
    with pytest.raises(ValueError, match="'b' has 3 classes .*bolt, nut") as error:
        check_fit(["a"], ["b"], MASKS, eval_only)
    assert "Set MODEL" not in str(error.value)


def test_ids_in_quotes_where_references_are_none(add, tmp_path, caplog):
    content = content_of(tmp_path)
    for entry in [*content["categories"], *content["images"]]:
        entry["id"] = str(entry["id"])
    add("a", content)
    check_fit(["a"], ["a"], BOXES)
    assert logged(caplog, logging.WARNING).count("an id is a number in quotes") == 1
    assert evaluate("a", tmp_path, ("bolt", "nut"))["bbox"]["AP"] == pytest.approx(100)
    for annotation in content["annotations"]:
        for key in ("image_id", "category_id"):
            annotation[key] = str(annotation[key])
    add("b", content)  # text everywhere: as it is
    check_fit(["b"], [], BOXES)
    assert MetadataCatalog.get("b").json_file == str(tmp_path / "b.json")


def test_evaluation_does_not_need_the_training_set(add, tmp_path):
    content = content_of(tmp_path)
    add("b", content)
    register_coco("fit_gone", "/no.json", "/no/images", check=False)
    add("fit_broken", [])
    add("fit_other_classes", content_of(tmp_path, ("a", "b", "c")))
    for train in ("fit_gone", "fit_broken", "fit_other_classes", "fit_nobody_knows"):
        check_fit([train], ["b"], MASKS, eval_only=True)
    with pytest.raises(FileNotFoundError, match="'fit_gone': no annotation file '/no.json'"):
        check_fit(["fit_gone"], ["b"], MASKS)


# ------------------------------------------------------------------------- what reaches the model


def test_what_reaches_the_model_is_said_by_class(add, tmp_path, caplog):
    content = content_of(tmp_path, ("bolt", "nut"))
    crowd, ignored, flat, outside = content["annotations"][:8:2]
    crowd["iscrowd"] = 1
    ignored["ignore"] = 1
    flat["segmentation"] = [[1, 1, 9, 9]]
    outside["bbox"] = [-30, 0, 20, 20]
    add("a", content)
    with pytest.raises(ValueError, match="has 2 classes"):
        check_fit(["a"], [], MASKS._replace(heads=(("X", 3),)))
    check_fit(["a"], [], MASKS)
    assert "4 of 8 objects reach the model" in logged(caplog) and "(bolt 0 of 4)" in logged(caplog)
    assert "no object that reaches the model of 1 of 2 classes: bolt" in logged(
        caplog, logging.WARNING
    )
    caplog.clear()
    check_fit(["a"], [], BOXES)  # an empty mask does not matter to boxes
    assert "5 of 8 objects reach the model" in logged(caplog) and "(bolt 1 of 4)" in logged(caplog)
    kept = [o for r in DatasetCatalog.get("a") for o in r["annotations"] if not o["iscrowd"]]
    assert len(kept) == 5


def test_no_object_at_all_is_an_error(add, tmp_path):
    content = content_of(tmp_path)
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    add("a", content)
    with pytest.raises(ValueError, match="None of the 8 objects of .*'a'.*reaches the model"):
        check_fit(["a"], [], BOXES)


def test_empty_polygons_in_a_detector_of_boxes(add, tmp_path, caplog):
    content = content_of(tmp_path)
    for annotation in content["annotations"]:
        annotation["segmentation"] = [[]]
    add("a", content)
    check_fit(["a"], ["a"], BOXES)
    assert "8 of 8 objects reach the model" in logged(caplog)
    assert sum(len(r["annotations"]) for r in DatasetCatalog.get("a")) == 8
    assert evaluate("a", tmp_path, ("bolt", "nut"))["bbox"]["AP"] == pytest.approx(100)
    with pytest.raises(ValueError, match="None of the 8 objects"):
        check_fit(["a"], [], MASKS)


# -------------------------------------------------------------------------------- the evaluation


@pytest.mark.parametrize("first", [0, 1])
def test_annotation_ids_do_not_change_the_result(first, add, tmp_path):
    content = content_of(tmp_path, images=1)
    for i, annotation in enumerate(content["annotations"]):
        annotation["id"] = i + first
    add("a", content)
    check_fit([], ["a"], BOXES)
    assert evaluate("a", tmp_path, ("bolt", "nut"))["bbox"]["AP"] == pytest.approx(100)


def test_area_is_the_masks_or_the_boxs(add, tmp_path):
    content = content_of(tmp_path)
    for annotation in content["annotations"]:
        del annotation["area"], annotation["iscrowd"], annotation["id"]
    triangle, code, box = content["annotations"][:3]
    triangle["segmentation"] = [[0, 0, 20, 0, 20, 20]]
    code["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": [40, 30, HEIGHT * WIDTH - 70]}
    del box["segmentation"]
    add("a", content, check=True)
    with open(MetadataCatalog.get("a").json_file) as f:
        mended = json.load(f)["annotations"]
    assert mended[0]["area"] == pytest.approx(200, abs=20)
    assert [a["area"] for a in mended[1:3]] == [30, 300]
    assert [a["id"] for a in mended] == list(range(1, 9))


def test_corners_in_the_place_of_sides_are_told(add, tmp_path):
    content = content_of(tmp_path, images=8)
    for annotation in content["annotations"]:
        x, y, width, height = annotation["bbox"]
        annotation["bbox"] = [x, y + 10, x + width, y + 10 + height]
    said = [str(p) for p in problems_of(add("a", content), str(tmp_path / "images"))]
    assert "all look like corners, [x1, y1, x2, y2]: they must be [x, y, w" in "\n".join(said)
    content["annotations"][0]["bbox"] = [20, 20, 15, 15]  # one that cannot be
    said = [str(p) for p in problems_of(add("b", content), str(tmp_path / "images"))]
    assert said and "corners" not in "\n".join(said)


def test_a_file_that_is_several_images_is_told(add, tmp_path):
    """Each would be trained with its own objects only."""
    content = content_of(tmp_path)
    content["images"][1]["file_name"] = "1.jpg"
    (problem,) = problems_of(add("a", content), str(tmp_path / "images"))
    assert problem.level == "warning" and "1 of the files, as '1.jpg', are several images" in str(
        problem
    )


def test_normalized_boxes_are_an_error(add, tmp_path):
    content = content_of(tmp_path)
    for annotation in content["annotations"]:
        annotation["bbox"] = [0, 0, 1, 1]  # a filler
    add("filled", content)
    check_fit([], ["filled"], BOXES)
    for i, annotation in enumerate(content["annotations"]):
        annotation["bbox"] = [0.25, 0, 1, 0.125 * i + 0.1]
    add("a", content)
    with pytest.raises(ValueError, match="nearly all others are between 0 and 1: they must be pix"):
        check_fit(["a"], [], BOXES)
    content["annotations"][0]["bbox"] = [5, 5, 15, 20]
    add("b", content)
    check_fit(["b"], [], BOXES)


@pytest.mark.parametrize("area", [0, 1e-9, 0.125, WIDTH * HEIGHT + 1000, 1e9, -1, True, "300"])
def test_an_area_that_cannot_be_meant_is_computed(area, add, tmp_path, caplog):
    content = content_of(tmp_path)
    content["annotations"][3]["area"] = area
    small = {"bbox": [5, 5, 0.5, 0.5], "segmentation": [], "area": 0.25}
    content["annotations"][4].update(small)  # may well be
    content["annotations"][5].update(bbox=[0, 0, WIDTH, HEIGHT], area=WIDTH * HEIGHT + 0.5)
    add("a", content, check=True)
    with open(MetadataCatalog.get("a").json_file) as f:
        areas = [a["area"] for a in json.load(f)["annotations"]]
    assert areas == [300, 300, 300, 300, 0.25, WIDTH * HEIGHT + 0.5, 300, 300]
    strange = type(area) in (bool, str) or area < 0
    said = "missing or no number" if strange else "0, more than its image's"
    assert f"annotations[3]: area is {said}" in caplog.text


@pytest.mark.parametrize("changes", [None, {"iscrowd": 1}, {"ignore": 1}, {"bbox": [5, 5, 0, 9]}])
def test_a_test_set_in_which_nothing_counts_is_told(changes, add, tmp_path, caplog):
    content = content_of(tmp_path)
    for annotation in content["annotations"]:
        annotation.update(changes or {})
    if changes is None:
        content["annotations"] = []
    add("a", content)
    check_fit([], ["a"], BOXES)
    said = f"None of the {8 if changes else 0} objects of dataset 'a'"
    assert said in logged(caplog, logging.WARNING)


def test_a_test_set_without_masks_is_evaluated_for_boxes(add, tmp_path, caplog):
    content = content_of(tmp_path)
    for i, annotation in enumerate(content["annotations"]):
        annotation["segmentation"] = [[], None][i % 2]
    add("b", content)
    check_fit([], ["b"], MASKS)
    assert "has nothing to evaluate segm with" in logged(caplog, logging.WARNING)
    results = evaluate("b", tmp_path, ("bolt", "nut"), masks=True)
    assert list(results) == ["bbox"] and results["bbox"]["AP"] == pytest.approx(100)
    cfg = LazyConfig.load(find_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py"))
    cfg.model.roi_heads.num_classes = 2
    cfg.dataloader.train.dataset.names, cfg.dataloader.test.dataset.names = [], "b"
    cfg.dataloader.evaluator = LazyCall(COCOEvaluator)(dataset_name="b")
    check_datasets(cfg, eval_only=True)
    assert list(cfg.dataloader.evaluator.tasks) == ["bbox"]


def test_a_lazy_evaluator_of_another_dataset_is_refused(add, tmp_path):
    add("a", content_of(tmp_path))
    add("b", content_of(tmp_path))
    cfg = LazyConfig.load(find_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py"))
    cfg.model.roi_heads.num_classes = 2
    cfg.dataloader.train.dataset.names = cfg.dataloader.test.dataset.names = "a"
    check_datasets(cfg)  # ${..test.dataset.names}
    cfg.dataloader.evaluator.dataset_name = "b"
    with pytest.raises(ValueError, match="dataset_name is 'b', but .*names is a: predictions"):
        check_datasets(cfg)
    same = MetadataCatalog.get("a").json_file
    register_coco("fit_alias", same, str(tmp_path / "images"), check=False)
    cfg.dataloader.evaluator.dataset_name = "fit_alias"
    check_datasets(cfg)


def test_a_test_set_with_some_masks_missing_is_an_error(add, tmp_path):
    content = content_of(tmp_path)
    del content["annotations"][5]["segmentation"]
    add("b", content)
    with pytest.raises(ValueError, match="1 of 8 objects of .*'b'.* have no segmentation"):
        check_fit([], ["b"], MASKS)
    check_fit([], ["b"], BOXES)


@pytest.mark.parametrize("polygons", [[[]], [[5, 5, 20, 25]], [[1, 1, 2, 2], [3, 3]]])
def test_a_flat_mask_is_not_counted(polygons, add, tmp_path):
    content = content_of(tmp_path)
    content["annotations"][5]["segmentation"] = polygons
    add("b", content)
    check_fit([], ["b"], MASKS)
    results = evaluate("b", tmp_path, ("bolt", "nut"), masks=True)
    assert results["bbox"]["AP"] == results["segm"]["AP"] == pytest.approx(100)


@pytest.mark.parametrize("box", [[5, 5, 0, 9], [5, 5, -3, 9], [WIDTH, 5, 9, 9], [5, 5, 9, 1e-6]])
def test_a_box_without_area_is_not_counted(box, add, tmp_path):
    """Detectron2 leaves it out of training; in an evaluation nothing could match it."""
    content = content_of(tmp_path)
    content["annotations"].append({**content["annotations"][5], "id": 99, "bbox": box})
    add("b", content)
    check_fit([], ["b"], BOXES)
    assert evaluate("b", tmp_path, ("bolt", "nut"))["bbox"]["AP"] == pytest.approx(100)


def test_crowds_without_masks_are_boxes_in_a_set_of_masks(add, tmp_path):
    content = content_of(tmp_path)
    crowd = {**content["annotations"][5], "id": 99, "iscrowd": 1}
    del crowd["segmentation"]
    content["annotations"].append(crowd)
    add("b", content)
    check_fit(["b"], [], MASKS)
    check_fit([], ["b"], MASKS)
    results = evaluate("b", tmp_path, ("bolt", "nut"), masks=True)
    assert results["bbox"]["AP"] == results["segm"]["AP"] == pytest.approx(100)


def test_the_area_of_a_box_ends_at_the_image(add, tmp_path):
    content = content_of(tmp_path)
    content["annotations"][0].update(bbox=[5, 5, 9000, 9000], segmentation=None)
    del content["annotations"][0]["area"]
    add("a", content, check=True)
    with open(MetadataCatalog.get("a").json_file) as f:
        assert json.load(f)["annotations"][0]["area"] == (WIDTH - 5) * (HEIGHT - 5)


def test_a_mended_copy_has_the_mode_that_the_user_gives_files(add, tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    content = content_of(tmp_path)
    del content["annotations"][0]["area"]
    before = os.umask(0o007)
    try:
        add("a", content, check=True)
    finally:
        os.umask(before)
    assert os.stat(MetadataCatalog.get("a").json_file).st_mode & 0o777 == 0o660


@pytest.mark.parametrize("annotations", [..., None, []])
def test_a_test_set_without_annotations(annotations, add, tmp_path):
    content = content_of(tmp_path)
    content["annotations"] = annotations
    if annotations is ...:
        del content["annotations"]
    add("b", content)
    check_fit([], ["b"], MASKS)
    results = evaluate("b", tmp_path, ("bolt", "nut"))
    assert set(results) == (set() if annotations != [] else {"bbox"})
    assert all(np.isnan(v) for v in results.get("bbox", {}).values())
    with open(tmp_path / "inference" / "coco_instances_results.json") as f:
        assert len(json.load(f)) == 8  # predictions for a challenge
    with pytest.raises(ValueError, match="None of the 0 objects"):
        check_fit(["b"], [], MASKS)


def test_a_file_with_a_byte_order_mark(add, tmp_path):
    path = add("b", {})
    with open(path, "w", encoding="utf-8-sig") as f:
        json.dump(content_of(tmp_path, ("bolt", "écrou")), f, ensure_ascii=False)
    check_fit([], ["b"], BOXES)
    assert evaluate("b", tmp_path, ("bolt", "écrou"))["bbox"]["AP"] == pytest.approx(100)


@pytest.mark.parametrize("installed", [True, False])
def test_numbers_of_more_than_64_bits_keep_their_digits(installed, add, tmp_path, monkeypatch):
    if installed:
        pytest.importorskip("orjson")
    else:
        monkeypatch.setitem(sys.modules, "orjson", None)
    content = content_of(tmp_path)
    for entry in [*content["images"], *content["annotations"]]:
        key = "image_id" if "image_id" in entry else "id"
        entry[key] += 2**100
    report = examine(add("a", content), str(tmp_path / "images"))
    assert report.content == content and not report.problems


def test_results_of_several_test_sets_and_sigmas(add, tmp_path):
    add("b", content_of(tmp_path), check=True)
    evaluator = build_evaluator("b", str(tmp_path), [0.1, 0.2], str(tmp_path / "here"))
    assert evaluator._output_dir == str(tmp_path / "here")
    assert evaluator._kpt_oks_sigmas == [0.1, 0.2]


# ------------------------------------------------------------------------------ masks, keypoints


def test_rle_with_polygons_is_named(add, tmp_path):
    content = content_of(tmp_path)
    counts = [40, 30, HEIGHT * WIDTH - 70]
    content["annotations"][3]["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": counts}
    add("a", content)
    with pytest.raises(ValueError, match="1 of 8 masks .* RLE, but INPUT.MASK_FORMAT is polygon"):
        check_fit(["a"], [], MASKS)
    check_fit(["a"], [], MASKS._replace(mask_format=("INPUT.MASK_FORMAT", "bitmask")))
    check_fit([], ["a"], MASKS)
    check_fit(["a"], [], BOXES)
    content["annotations"][3]["iscrowd"] = 1  # as COCO's crowds, which are not learned
    add("b", content)
    check_fit(["b"], [], MASKS)


def with_keypoints(content, names=("left", "right", "top")):
    for category in content["categories"]:
        category["keypoints"] = list(names)
    for annotation in content["annotations"]:
        annotation["keypoints"] = [10, 10, 2, 20, 20, 2, 15, 15, 1][: 3 * len(names)]
    return content


def keypoints(number, sigmas=()):
    return ModelFacts(keypoints=("NUM_KEYPOINTS", number), sigmas=("SIGMAS", sigmas))


def test_own_keypoints(add, tmp_path):
    add("a", with_keypoints(content_of(tmp_path)))
    check_fit(["a"], [], keypoints(3))
    metadata = MetadataCatalog.get("a")
    assert metadata.keypoint_names == ["left", "right", "top"]
    assert metadata.keypoint_flip_map == [("left", "right")]
    with pytest.raises(ValueError, match="has 3 keypoints, but the model has NUM_KEYPOINTS=17"):
        check_fit(["a"], [], keypoints(17))
    with pytest.raises(ValueError, match=r"SIGMAS is \[\]; it must be 3 numbers"):
        check_fit([], ["a"], keypoints(3))
    check_fit([], ["a"], keypoints(3, (0.1, 0.1, 0.1)))
    add("b", content_of(tmp_path))
    with pytest.raises(ValueError, match="the categories of .*'b'.* do not name any"):
        check_fit(["b"], [], keypoints(3))


@pytest.mark.parametrize("eval_only", [False, True])
def test_keypoints_in_another_order_than_in_training(eval_only, add, tmp_path, caplog):
    add("a", with_keypoints(content_of(tmp_path)))
    add("b", with_keypoints(content_of(tmp_path), ("top", "left", "right")))
    model = keypoints(3, (0.1, 0.1, 0.1))
    said = "'b' has the keypoints top, left, right and 'a' left, right, top, the same in another"
    if eval_only:
        check_fit(["a"], ["b"], model, eval_only=True)
    else:
        with pytest.raises(ValueError, match=said):
            check_fit(["a"], ["b"], model)
    assert (said in logged(caplog, logging.WARNING)) == eval_only


def test_keypoints_of_other_names_are_a_warning(add, tmp_path, caplog):
    add("a", with_keypoints(content_of(tmp_path)))
    add("b", with_keypoints(content_of(tmp_path), ("Left", "Right", "Top")))
    check_fit(["a"], ["a", "b"], keypoints(3, (0.1, 0.1, 0.1)))
    assert logged(caplog, logging.WARNING).count("has the keypoints") == 1


MIRRORED = keypoints(3)._replace(flip="INPUT.RANDOM_FLIP horizontal")


@pytest.mark.parametrize(
    "names",
    [("l_ear", "r_ear", "top"), ("EarLeft", "EarRight", "top"), ("eye_L", "eye_R", "top"),
     ("LEye", "REye", "top"), ("LEFT", "RIGHT", "top")],
)  # fmt: skip
def test_pairs_to_swap_in_a_mirrored_image(names, add, tmp_path, caplog):
    add("a", with_keypoints(content_of(tmp_path), names))
    check_fit(["a"], [], MIRRORED)
    assert MetadataCatalog.get("a").keypoint_flip_map == [names[:2]]
    assert "mirrored" not in caplog.text


@pytest.mark.parametrize(
    "names,said",
    [(("port", "starboard", "top"), "there is no pair of"),
     (("left", "rihgt", "top"), "there is left in no pair")],
)  # fmt: skip
def test_no_pair_to_swap_is_told_where_images_are_mirrored(names, said, add, tmp_path, caplog):
    add("a", with_keypoints(content_of(tmp_path), names))
    check_fit(["a"], [], keypoints(3))
    assert "mirrored" not in caplog.text
    check_fit(["a"], [], MIRRORED)
    assert said in logged(caplog, logging.WARNING)


def test_keypoints_of_one_name_cannot_be_mirrored(add, tmp_path):
    add("a", with_keypoints(content_of(tmp_path), ("left", "left", "right")))
    check_fit(["a"], [], keypoints(3))
    with pytest.raises(ValueError, match="several keypoints of one name: left"):
        check_fit(["a"], [], MIRRORED)


@pytest.mark.parametrize("sigmas", [(0.1, 0, 0.1), (0.1, -0.1, 0.1), (0.1, float("nan"), 0.1)])
def test_sigmas_are_above_0(sigmas, add, tmp_path):
    add("a", with_keypoints(content_of(tmp_path)))
    with pytest.raises(ValueError, match="it must be 3 numbers above 0"):
        check_fit([], ["a"], keypoints(3, sigmas))


def test_sigmas_of_persons_for_something_else(add, tmp_path, caplog):
    content = with_keypoints(content_of(tmp_path), [f"p{i}" for i in range(17)])
    for annotation in content["annotations"]:
        annotation["keypoints"] = [10, 10, 2] * 17
    add("a", content)
    check_fit([], ["a"], keypoints(17, [0.1] * 17))
    assert "sigmas" not in caplog.text
    check_fit([], ["a"], keypoints(17))
    assert "without SIGMAS they are scored with the sigmas of COCO's persons" in caplog.text


def test_objects_without_keypoints_get_invisible_ones(add, tmp_path):
    content = with_keypoints(content_of(tmp_path))
    del content["annotations"][2]["keypoints"]
    add("a", content)
    check_fit(["a"], [], keypoints(3))
    found = [o["keypoints"] for r in DatasetCatalog.get("a") for o in r["annotations"]]
    assert [len(k) for k in found] == [9] * 8 and found[2][2::3] == [0, 0, 0]


def test_metadata_set_by_hand_stays(add, tmp_path):
    MetadataCatalog.get("a").set(keypoint_names=["l", "r", "t"], keypoint_flip_map=[("l", "r")])
    add("a", with_keypoints(content_of(tmp_path)))
    check_fit(["a"], [], keypoints(3))
    assert MetadataCatalog.get("a").keypoint_names == ["l", "r", "t"]


def test_facts_of_both_forms_of_config():
    cfg = tiny_config(MODEL__KEYPOINT_ON=True, TEST__KEYPOINT_OKS_SIGMAS=[0.1])
    assert yaml_model(cfg) == ModelFacts(
        (("MODEL.ROI_HEADS.NUM_CLASSES", 6),), "MODEL.MASK_ON True",
        ("INPUT.MASK_FORMAT", cfg.INPUT.MASK_FORMAT),
        ("MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", 17), ("TEST.KEYPOINT_OKS_SIGMAS", (0.1,)),
        "INPUT.RANDOM_FLIP horizontal",
    )  # fmt: skip
    lazy = LazyConfig.load(find_config("COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.py"))
    model = lazy_model(lazy)
    assert model.heads == (("model.roi_heads.num_classes", 1),) and not model.masks
    assert model.keypoints == ("model.roi_heads.keypoint_head.num_keypoints", 17)
    assert model.flip == "dataloader.train.mapper.augmentations"


# ------------------------------------------------------------------------------------ the files


@pytest.mark.parametrize(
    "flag,size,level,said",
    [
        (3, (WIDTH, HEIGHT), "warning", "turns or mirrors it"),
        (2, (WIDTH, HEIGHT), "warning", "turns or mirrors it"),
        (6, (WIDTH, WIDTH), "warning", "turns or mirrors it"),
        (6, (WIDTH, HEIGHT), "error", "annotations are of the 60 x 40 pixels as stored"),
        (1, (WIDTH, HEIGHT), None, None),
    ],
)
def test_annotations_of_an_image_that_exif_turns(flag, size, level, said, add, tmp_path, caplog):
    content = content_of(tmp_path)
    for image in content["images"]:
        picture = Image.new("RGB", size)
        exif = picture.getexif()
        exif[0x0112] = flag
        picture.save(tmp_path / "images" / image["file_name"], exif=exif)
        image["width"], image["height"] = size
    path = add("a", content)
    problems = problems_of(path, str(tmp_path / "images"))
    assert {p.level for p in problems} == ({level} if level else set())
    assert said is None or said in str(problems[0])
    if level == "error":
        with pytest.raises(ValueError, match=said):
            check_fit(["a"], [], BOXES)
        return
    check_fit(["a"], [], BOXES)
    assert (said in logged(caplog, logging.WARNING)) if said else not caplog.text.count("EXIF")


def test_an_error_that_many_images_share_is_told_once(add, tmp_path):
    content = content_of(tmp_path)
    for image in content["images"]:
        image["width"] += 1
    path = add("a", content)
    assert len(problems_of(path, str(tmp_path / "images"))) == 4  # the tool lists all
    with pytest.raises(ValueError, match=r"4 times: image 1 .*, \.\.\.: is of 60 x 40") as error:
        check_fit(["a"], [], BOXES)
    assert str(error.value).count("is of 60") == 1


def test_names_that_cannot_be_printed(add, tmp_path):
    """TensorBoard would end the run with them when the first results are written."""
    add("a", content_of(tmp_path, classes=("\ud800", "nut")))
    with pytest.raises(ValueError, match="has half a letter .* in its name") as error:
        check_fit(["a"], [], BOXES)
    str(error.value).encode()  # or an error


def test_names_that_would_move_the_cursor_are_escaped():
    assert shown(["a\n\x1b[2Jb", "é 日", "\ud800"]) == "a\\n\\x1b[2Jb, é 日, \\ud800"


def test_exif_that_the_annotations_follow(add, tmp_path):
    """Annotations may be of the upright image, as tools show it; stored pixels lie sideways."""
    content = content_of(tmp_path)
    for image in content["images"]:
        picture = Image.new("RGB", (HEIGHT, WIDTH))
        exif = picture.getexif()
        exif[0x0112] = 6
        picture.save(tmp_path / "images" / image["file_name"], exif=exif)
    assert problems_of(add("a", content), str(tmp_path / "images")) == []


def test_images_may_be_links_and_their_root_any_folder(add, tmp_path):
    content = content_of(tmp_path)
    os.rename(tmp_path / "images", tmp_path / "store")
    (tmp_path / "images").mkdir()
    for image in content["images"]:
        name = image["file_name"]
        os.symlink(tmp_path / "store" / name, tmp_path / "images" / name)
    os.symlink("/nowhere", tmp_path / "images" / "nobody_names_it.jpg")
    path = add("a", content)
    assert problems_of(path, str(tmp_path / "images")) == []
    os.symlink(tmp_path / "store", tmp_path / "link")
    assert problems_of(path, str(tmp_path / "link")) == []
    assert problems_of(path, str(tmp_path / "link") + "/") == []
    below_root = copy.deepcopy(content)
    for image in below_root["images"]:
        image["file_name"] = str(tmp_path / "store" / image["file_name"])[1:]
    assert problems_of(add("b", below_root), "/") == []


def test_names_against_a_relative_root(add, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = content_of(tmp_path)
    folder = tmp_path / "images"
    first, second, third = content["images"][:3]
    os.rename(folder / first["file_name"], folder / "a..b.jpg")
    first["file_name"] = "a..b.jpg"
    second["file_name"] = str(folder / second["file_name"])
    third["file_name"] = f"../images/{third['file_name']}"
    assert problems_of(add("a", content), "images") == []
    os.symlink(tmp_path, tmp_path / "other")  # the working directory's name in a shell, say
    second["file_name"] = str(tmp_path / "other" / "images" / os.path.basename(second["file_name"]))
    assert problems_of(add("d", content), "images") == []
    for image in content["images"]:
        image["file_name"] = f"images/{os.path.basename(image['file_name'])}"
    assert problems_of(add("b", content), ".") == []
    second["file_name"] = str(tmp_path / "outside.jpg")
    assert "is not in the folder of images, 'images'" in str(
        problems_of(add("c", content), "images")
    )


@pytest.mark.parametrize(
    "name,there,said",
    [
        ("1.jpg", "1.JPG", r", but there is '1.JPG'$"),
        ("\u00e9.jpg", "e\u0301.jpg", r"stored in another form\)$"),
        ("a\\1.jpg", "1.jpg", r"must be separated by /$"),
        ("2.jpeg", "1.jpg", r"2.jpeg'$"),
    ],
)
def test_a_name_that_is_nearly_there_is_told(name, there, said, add, tmp_path):
    content = content_of(tmp_path, images=1)
    os.rename(tmp_path / "images" / "1.jpg", tmp_path / "images" / there)
    content["images"][0]["file_name"] = name
    (problem,) = problems_of(add("a", content), str(tmp_path / "images"))
    assert re.search(said, str(problem)), problem


def test_pipes_and_devices_do_not_hang_the_check(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    for path in (str(tmp_path / "pipe.json"), "/dev/zero"):
        assert "no regular file" in str(problems_of(path, str(tmp_path))[0])


def test_other_formats_are_named_by_what_is_supported(tmp_path):
    content = content_of(tmp_path, images=1)
    (tmp_path / "images" / "1.jpg").write_bytes(b"DICM" * 100)
    (tmp_path / "a.json").write_text(json.dumps(content))
    said = str(problems_of(str(tmp_path / "a.json"), str(tmp_path / "images"))[0])
    assert "cannot identify image file" in said and "JPEG" in said and "PNG" in said


# --------------------------------------------------------------------------- several processes


def _two_processes(folder):
    from detectron2.utils import comm

    for name in ("a", "b"):
        register_coco(name, f"{folder}/{name}.json", f"{folder}/images", check=False)
    register_coco_instances("d", {}, f"{folder}/d.json", f"{folder}/images")
    if not comm.is_main_process():
        coco.check_one = None  # it must not be needed
    check_fit(["a"], ["b", "d"], BOXES)
    ready = records.kept("a")
    with open(MetadataCatalog.get("d").json_file) as f:  # what evaluators read
        areas = {annotation["area"] for annotation in json.load(f)["annotations"]}
    areas.add(len(DatasetCatalog.get("d")))
    names = MetadataCatalog.get("b").thing_classes
    categories = {o["category_id"] for r in DatasetCatalog.get("b") for o in r["annotations"]}
    with open(f"{folder}/rank{comm.get_rank()}", "w") as f:
        f.write(f"{names} {categories} {ready} {areas}")
    with pytest.raises(ValueError, match="do not agree by name"):
        register_coco("c", f"{folder}/c.json", f"{folder}/images", check=False)
        check_fit(["a"], ["c"], BOXES)
    leave_together()


def test_one_process_checks_and_tells_the_other(tmp_path):
    for name, classes in (("a", "xy"), ("b", "yx"), ("c", "yz"), ("d", "xy")):
        content = content_of(tmp_path, tuple(classes))
        for annotation in content["annotations"] if name == "d" else ():
            del annotation["area"]  # mended
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    launch(_two_processes, 2, dist_url="auto", args=(str(tmp_path),))
    for rank in (0, 1):
        assert (tmp_path / f"rank{rank}").read_text() == "['x', 'y'] {0, 1} True {300.0, 4}"
