import hashlib
import json
import os

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from skd.data import SHAPES_CLASSES, register_shapes
from skd.data.draw_shapes import draw, write_split
from skd.data.shapes import SIDE, SPLITS, shapes_root

# of the first 20 images of each split: changes only with the dataset's VERSION
PIXELS = {
    "skd_shapes_train": "0afe9dad9c93b158221074f92a76ef9dbb305a20a0248a15add1cb9b40570edc",
    "skd_shapes_val": "a19a69831d1e3f778cbcb26ec40a6cc98aad60d5fc6a5aafacb11cb41536ff85",
    "skd_shapes_shifted": "6af3855eeefbd6d75903d561ee659ae0dff06b8641ee2a37a8c782e3f210c26d",
    "skd_shapes_tune": "8242371b5dd4fa5f7e3fcabe48755b7ec94ff23298a503290167fa1f54536404",
    "skd_shapes_pretrain": "3c2d559d05cae0e50a6ee4137a52aa0ebe06971df819d81e256de02f4c313c5d",
}


@pytest.mark.parametrize("split", SPLITS)
def test_the_same_pixels_and_annotations_everywhere(split):
    digest = hashlib.sha256()
    for index in range(20):
        image, annotations = draw(split, index)
        digest.update(image.tobytes())
        digest.update(json.dumps(annotations, sort_keys=True).encode())
    assert digest.hexdigest() == PIXELS[split]


def test_no_two_images_are_alike():
    seen = {draw(split, i)[0].tobytes() for split in SPLITS for i in range(60)}
    assert len(seen) == len(SPLITS) * 60


@pytest.mark.parametrize("split", SPLITS)
def test_annotations_fit_the_picture(split):
    classes, small, occluded = set(), 0, 0
    for index in range(40):
        image, annotations = draw(split, index)
        assert image.shape == (SIDE, SIDE, 3) and image.dtype == np.uint8 and annotations
        union = np.zeros((SIDE, SIDE), int)
        for a in annotations:
            x, y, w, h = a["bbox"]
            assert 0 <= x < x + w <= SIDE and 0 <= y < y + h <= SIDE
            rle = mask_util.merge(mask_util.frPyObjects(a["segmentation"], SIDE, SIDE))
            mask = mask_util.decode(rle)
            assert mask[y : y + h, x : x + w].sum() >= 0.95 * mask.sum()
            # a polygon has no holes: another object right inside belongs to both
            assert 0.85 * a["area"] - 10 <= mask.sum() <= a["area"] / 0.5 + 10
            union += mask
            classes.add(a["category_id"])
            small += a["area"] < 32**2
            occluded += len(a["segmentation"]) > 1
        assert (union > 1).mean() < 0.1  # polygons of what is visible hardly overlap
    assert classes == set(range(1, len(SHAPES_CLASSES) + 1))
    assert small > 40


def test_the_shifted_domain_has_other_colors():
    def blue_minus_red(split):
        images = [draw(split, i)[0].astype(int) for i in range(20)]
        masks = []
        for i in range(20):
            mask = np.zeros((SIDE, SIDE), np.uint8)
            for a in draw(split, i)[1]:
                for polygon in a["segmentation"]:
                    points = np.array(polygon).reshape(-1, 2).round().astype(np.int32)
                    cv2.fillPoly(mask, [points], 1)
            masks.append(mask.astype(bool))
        return np.mean([(x[m][:, 0] - x[m][:, 2]).mean() for x, m in zip(images, masks)])

    assert blue_minus_red("skd_shapes_train") < -50
    assert blue_minus_red("skd_shapes_shifted") > 30


def test_registered_like_any_dataset(shapes):
    register_shapes()
    for split in SPLITS:
        assert split in DatasetCatalog.list()
        metadata = MetadataCatalog.get(split)
        assert metadata.thing_classes == SHAPES_CLASSES and metadata.evaluator_type == "coco"
    dicts = DatasetCatalog.get("tiny_train")
    assert len(dicts) == 8 and os.path.isfile(dicts[0]["file_name"])
    assert {"bbox", "bbox_mode", "category_id", "segmentation"} <= set(dicts[0]["annotations"][0])
    assert (cv2.imread(dicts[3]["file_name"]) == draw("skd_shapes_train", 3)[0]).all()


def test_an_interrupted_drawing_leaves_nothing(tmp_path, monkeypatch):
    folder = tmp_path / "v1" / "skd_shapes_val"

    def full_disk(path, image):
        if path.endswith("3.png"):
            return False
        return True

    monkeypatch.setattr(cv2, "imwrite", full_disk)
    with pytest.raises(OSError, match="Could not write .*000003.png"):
        write_split("skd_shapes_val", str(folder), num_images=5)
    assert os.listdir(tmp_path / "v1") == []
    monkeypatch.undo()
    write_split("skd_shapes_val", str(folder), num_images=5)
    assert len(os.listdir(folder / "images")) == 5


def test_lives_where_detectron2_looks(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "new"))
    assert shapes_root().startswith(str(tmp_path / "new"))
    monkeypatch.setattr(os, "access", lambda path, mode: not path.startswith(str(tmp_path)))
    assert shapes_root().startswith("datasets")
