"""Public originals to COCO's format, on originals of the same form."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from skd.study.originals import car_parts, nuclei, voc


def picture(path, size):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), 90, np.uint8)).save(path)


def read(folder, part):
    return json.loads((folder / "annotations" / f"{part}.json").read_text())


def square(x, y, side):
    return [x, y, x + side, y, x + side, y + side, x, y + side]


def test_car_parts_lose_their_side_and_wheels_are_taken_apart(tmp_path):
    categories = [{"id": 1, "name": "_background_"}, {"id": 2, "name": "back_left_light"},
                  {"id": 3, "name": "right_mirror"}, {"id": 4, "name": "wheel"}]  # fmt: skip
    wheels = [square(0, 0, 40), square(200, 0, 50), square(190, 0, 6), square(300, 9, 1)]
    annotations = [
        {"image_id": 7, "category_id": 4, "segmentation": wheels},
        {"image_id": 7, "category_id": 3, "segmentation": [square(10, 20, 30.06)]},
    ]
    for place, size in (("trainingset", (512, 512)), ("testset", (1024, 256))):
        picture(tmp_path / place / "JPEGImages" / "a.jpg", size)
        content = {"categories": categories, "annotations": annotations,
                   "images": [{"id": 7, "file_name": "a.jpg"}]}  # fmt: skip
        (tmp_path / place / "annotations.json").write_text(json.dumps(content))
    car_parts(str(tmp_path), str(tmp_path / "out"))
    train, val = read(tmp_path / "out", "train"), read(tmp_path / "out", "val")
    assert [c["name"] for c in train["categories"]] == ["back_light", "mirror", "wheel"]
    assert [(a["category_id"], a["bbox"]) for a in train["annotations"]] == [
        (3, [0.0, 0.0, 40.0, 40.0]),
        (3, [190.0, 0.0, 60.0, 50.0]),  # with its piece, and without the speck
        (2, [10.0, 20.0, 30.1, 30.1]),
    ]
    assert train["annotations"][1]["area"] == 2536.0
    assert val["annotations"][2]["bbox"] == [5.0, 40.0, 15.0, 60.1]
    same = tmp_path / "trainingset" / "JPEGImages" / "a.jpg", tmp_path / "out" / "train" / "a.jpg"
    assert same[0].read_bytes() == same[1].read_bytes()
    assert Image.open(tmp_path / "out" / "val" / "a.jpg").size == (512, 512)


def test_voc_boxes_count_from_1_and_images_without_any_are_left_out(tmp_path):
    folder = tmp_path / "data" / "train_images"
    for name in ("2007_000033.jpg", "2007_000123.jpg", "none.jpg"):
        picture(folder / name, (500, 250))
    (tmp_path / "boxes.txt").write_text(
        "2007_000033.jpg 1 1 500 250 0\n2007_000123.jpg 11 21 60 120 19\n"
    )
    voc(str(tmp_path), str(tmp_path / "out"), str(tmp_path / "boxes.txt"))
    train, val = read(tmp_path / "out", "train"), read(tmp_path / "out", "val")
    (a,), (b,) = val["annotations"], train["annotations"]  # as their names' hash says
    assert (a["category_id"], a["bbox"]) == (1, [0.0, 0.0, 400.0, 200.0])
    assert (b["category_id"], b["bbox"], b["area"]) == (20, [8.0, 16.0, 40.0, 80.0], 3200.0)
    assert [x["width"] for x in (*train["images"], *val["images"])] == [400, 400]


@pytest.mark.parametrize("name,part", [("00071198" + "d" * 9, "train"), ("3" * 20, "val")])
def test_nuclei_have_a_mask_each(tmp_path, name, part):
    place = tmp_path / "stage1_train" / name
    picture(place / "images" / f"{name}.png", (8, 6))
    mask = np.zeros((6, 8), np.uint8)
    for i, value in enumerate((255, 0)):  # an empty one is none
        (place / "masks").mkdir(exist_ok=True)
        mask[2:4, 1:4] = value
        Image.fromarray(mask).save(place / "masks" / f"{i}.png")
    nuclei(str(tmp_path), str(tmp_path / "out"))
    content = read(tmp_path / "out", part)
    (image,), (entry,) = content["images"], content["annotations"]
    assert image["file_name"] == f"{name[:16]}.jpg" and entry["bbox"] == [1.0, 2.0, 3.0, 2.0]
    assert rle.decode(entry["segmentation"]).sum() == entry["area"] == 6
