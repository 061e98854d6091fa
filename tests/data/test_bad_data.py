"""
Broken data sets: each either trains, or gives one error that says which file and what is expected.
For each case: what is done to a good data set, what check_coco says, and how training ends.
"""

import json
import random

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as mask_util

from skd import register_coco
from skd.data import check_classes
from skd.data.check import check_coco
from skd.engine import SKDTrainer
from skd.runtime.loader import DataError
from tests.helpers import distilling, run_script, tiny_config

SIDE = 48
TRAINS = "trains"


def write(folder, content=None):
    """A good data set of three images: (JSON file, folder of images, content)."""
    images = folder / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    content = {"images": [], "annotations": [], "categories": [{"id": 3, "name": "cat"}]}
    for i in range(1, 4):
        pixels = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{i}.png")
        content["images"].append({"id": i, "file_name": f"{i}.png", "width": SIDE, "height": SIDE})
        content["annotations"].append(
            {
                "id": i, "image_id": i, "category_id": 3, "iscrowd": 0, "area": 400.0,
                "bbox": [5.0, 5.0, 20.0, 20.0],
                "segmentation": [[5.0, 5.0, 25.0, 5.0, 25.0, 25.0, 5.0, 25.0]],
            }
        )  # fmt: skip
    return str(folder / "train.json"), str(images), content


def set_on(key, entry, **values):
    def change(content, images):
        for name, value in values.items():
            if value is ...:
                del content[key][entry][name]
            else:
                content[key][entry][name] = value

    return change


def annotation(**values):
    return set_on("annotations", 0, **values)


def image(**values):
    return set_on("images", 0, **values)


def replace(**values):
    return lambda content, images: content.update(values)


def save(pixels, **kwargs):
    def change(content, images):
        array = np.asarray(pixels)
        Image.fromarray(array).save(f"{images}/1.png", **kwargs)
        content["images"][0].update(height=array.shape[0], width=array.shape[1])

    return change


def write_bytes(data):
    def change(content, images):
        with open(f"{images}/1.png", "wb") as f:
            f.write(data)

    return change


def truncate(content, images):
    with open(f"{images}/1.png", "r+b") as f:
        f.truncate(900)


def remove(content, images):
    import os

    os.remove(f"{images}/1.png")


def rle(mask):
    code = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": code["size"], "counts": code["counts"].decode()}


GREY = np.full((SIDE, SIDE), 90, np.uint8)
GOOD_MASK = np.pad(np.ones((20, 20), bool), ((5, 23), (5, 23)))

# name: (change, what check_coco says, what training gives); None for nothing
CASES = {
    # the file
    "not an object": (lambda c, i: [], "is a list; it must be an object", "is a list"),
    "no images": (replace(images=...), "has no list 'images'", "has no list 'images'"),
    "images no list": (replace(images={}), "has no list 'images'", "has no list"),
    "empty images": (replace(images=[], annotations=[]), "lists no images", "lists no images"),
    "no categories": (replace(categories=[]), "lists no images, or no cat", "lists no images"),
    "an image is text": (replace(images=["1.png"]), "images[0]: is no object", "is no object"),
    "an image without id": (image(id=...), "images[0]: has no 'id'", "has no 'id'"),
    "an image without name": (image(file_name=...), "has no 'file_name'", "has no 'file_name'"),
    "a name that is a number": (image(file_name=7), "has the file_name 7, no text", "no text"),
    "a category without name": (
        replace(categories=[{"id": 3}]), "categories[0]: has no 'name'", "has no 'name'",
    ),
    "an id that is a list": (image(id=[1]), "has the id [1], no number", "has the id [1]"),
    "an annotation without image": (annotation(image_id=...), "has no 'image_id'", "no 'image_id'"),
    "duplicate image": (image(id=2), "images 2: this id is there 2 times", "2 times"),
    "duplicate annotation": (annotation(id=2), "annotations 2: this id is there", "2 times"),
    "duplicate category": (
        replace(categories=[{"id": 3, "name": "a"}, {"id": 3, "name": "b"}]),
        "categories 3: this id is there 2 times", "2 times",
    ),
    "duplicate name": (
        replace(categories=[{"id": 3, "name": "cat"}, {"id": 4, "name": "cat"}]),
        "category 'cat': this name is there 2 times", TRAINS,
    ),
    # references
    "unknown image": (annotation(image_id=99), "there is no image 99", "no image 99"),
    "unknown category": (annotation(category_id=99), "no category 99; there are 3", "category 99"),
    "a category that is text": (annotation(category_id="cat"), "no category 'cat'", "no category"),
    # boxes
    "no box": (annotation(bbox=...), "bbox is None; it must be", "it must be [x, y, width"),
    "a box of three": (annotation(bbox=[1, 2, 3]), "bbox is [1, 2, 3]", "it must be [x, y"),
    "a box of text": (annotation(bbox=["1", 2, 3, 4]), "it must be [x, y", "it must be [x, y"),
    "a box of nan": (annotation(bbox=[1, 2, float("nan"), 4]), "bbox is [1, 2, nan", "nan, 4]"),
    "a box of inf": (annotation(bbox=[1, 2, float("inf"), 4]), "bbox is [1, 2, inf", "inf, 4]"),
    "zero area": (annotation(bbox=[5, 5, 0, 9]), "has no area, and is left out", TRAINS),
    "negative area": (annotation(bbox=[5, 5, -9, 9]), "has no area", TRAINS),
    "outside": (annotation(bbox=[99, 99, 9, 9]), "is outside of the image (48 x 48)", TRAINS),
    "reaching out": (annotation(bbox=[-9, 5, 99, 9]), "reaches out of the image", TRAINS),
    # masks
    "no mask": (annotation(segmentation=...), "1 of 3 have no segmentation", "which the model"),
    "no polygon": (annotation(segmentation=[]), "1 of 3 have no segmentation", "which the model"),
    "a list for a category": (annotation(category_id=[3]), "category_id [3], no n", "no number"),
    "a list for an image": (annotation(image_id={}), "has the image_id {}", "no number or text"),
    "a number for a class": (
        replace(categories=[{"id": 3, "name": 3}]), "has the name 3, no text", "no text",
    ),
    "two points": (annotation(segmentation=[[1, 1, 9, 9]]), "has 2 points, needs 3", TRAINS),
    "half a point": (annotation(segmentation=[[1, 1, 9, 9, 5, 5, 7]]), "a polygon must be", "x, y"),
    "a polygon of text": (annotation(segmentation=[["a"] * 6]), "a polygon must be", "x, y, x"),
    "a polygon of nan": (annotation(segmentation=[[float("nan")] * 6]), "a polygon must", "x, y"),
    "a flat polygon": (annotation(segmentation=[1, 1, 9, 9, 5, 5]), "a polygon must be", "x, y"),
    "a mask that is text": (annotation(segmentation="abc"), "is a str", "is a str"),
    "a good RLE": (annotation(segmentation=rle(GOOD_MASK)), None, TRAINS),
    "an RLE of another size": (
        annotation(segmentation=rle(GOOD_MASK[:40])), "size is [40, 48]; it must be", "[48, 48]",
    ),
    "an RLE without counts": (annotation(segmentation={"size": [48, 48]}), "the RLE's", "the RLE"),
    "an RLE too short": (
        annotation(segmentation={"size": [48, 48], "counts": [9, 9]}), "do not add up", "add up",
    ),
    "an RLE too long": (
        annotation(segmentation={"size": [48, 48], "counts": "o" * 99}), "decoded", "cannot be dec",
    ),
    "an RLE of junk": (
        annotation(segmentation={"size": [48, 48], "counts": "\x00\xff!"}), "decoded", "decoded",
    ),
    # images
    "a file that is not there": (remove, "there is no file", "there is no file"),
    "an empty file": (write_bytes(b""), "cannot be read", "1.png"),
    "text for an image": (write_bytes(b"hello"), "cannot be read: cannot identify", "1.png"),
    "truncated": (truncate, "cannot be read", "1.png"),
    "another size": (image(width=40), "is of 48 x 48 pixels; the annotations say 40", "1.png"),
    "no size": (image(width=...), "width is None", "width is None"),
    "a size of zero": (image(height=0), "height is 0; it must be", "height is 0"),
    "a negative size": (image(height=-5), "height is -5; it must be", "height is -5"),
    "a size of text": (image(width="48"), "width is '48'; it must be", "width is '48'"),
    "a name above the folder": (
        image(file_name="../../secret.png"), "is not in the folder of images", "is not in the f",
    ),
    "an absolute name": (image(file_name="/etc/passwd"), "is not in the folder", "is not in the f"),
    "grey": (save(GREY), None, TRAINS),
    "grey and alpha": (save(np.dstack([GREY, GREY])), "has the mode 'LA'", TRAINS),
    "RGBA": (save(np.dstack([GREY] * 4)), "has the mode 'RGBA'", TRAINS),
    "16 bits": (save(GREY.astype(np.uint16) * 200), "has the mode 'I;16'", TRAINS),
    "black and white": (save(GREY > 9), "has the mode '1'", TRAINS),
    "1x1": (save(GREY[:1, :1]), "outside of the image (1 x 1)", TRAINS),
    "7x11": (save(GREY[:11, :7]), "reaches out of the image (7 x 11)", TRAINS),
    "extremely long": (save(np.full((9, 999), 9, np.uint8)), "too long to leave much", TRAINS),
    "extremely high": (save(np.full((999, 9), 9, np.uint8)), "too long to leave much", TRAINS),
    "a thread": (save(np.full((4, 4000), 9, np.uint8)), "too long to leave", "must be > 0"),
    # annotations as a whole
    "an image without objects": (lambda c, i: c["annotations"].pop(0), None, TRAINS),
    "crowds only": (annotation(iscrowd=1), None, TRAINS),
    "text for ids": (
        lambda c, i: (c["images"][0].update(id="a"), c["annotations"][0].update(image_id="a")),
        "has ids that are numbers and ids that are text", "numbers and ids",
    ),
}  # fmt: skip


def broken(name, folder):
    json_file, images, content = write(folder)
    changed = CASES[name][0](content, images)
    content = changed if changed == [] else content
    if isinstance(content, dict):
        content = {k: v for k, v in content.items() if v is not ...}
    with open(json_file, "w") as f:
        json.dump(content, f)
    return json_file, images


def test_the_corpus_is_large_enough():
    assert len(CASES) >= 60


@pytest.mark.parametrize("name", CASES)
def test_the_check_says_what_is_wrong(name, tmp_path):
    said = "\n".join(map(str, check_coco(*broken(name, tmp_path))))
    expected = CASES[name][1]
    assert expected in said if expected else not said


@pytest.fixture
def registered():
    names = []
    yield names.append
    for name in names:
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def train(files, teacher_files, folder, registered):
    registered("broken")
    register_coco("broken", *files)
    cfg = distilling(
        tiny_config(
            SOLVER__MAX_ITER=2, SOLVER__IMS_PER_BATCH=3, MODEL__ROI_HEADS__NUM_CLASSES=1,
            INPUT__MASK_FORMAT="bitmask", SOLVER__BASE_LR=1e-5, DATASETS__TEST=(),
            DATALOADER__FILTER_EMPTY_ANNOTATIONS=False, DATALOADER__ASPECT_RATIO_GROUPING=False,
        ),
        teacher_files,
    )  # fmt: skip
    cfg.DATASETS.TRAIN = ("broken",)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(MetadataCatalog.get("broken").thing_classes)
    check_classes(cfg)
    cfg.OUTPUT_DIR = str(folder)
    SKDTrainer(cfg).train()


@pytest.mark.parametrize("name", CASES)
def test_it_trains_or_gives_one_error(name, teacher_files, tmp_path, registered):
    files = broken(name, tmp_path)
    expected = CASES[name][2]
    if expected == TRAINS:
        train(files, teacher_files, tmp_path / "out", registered)
        return
    with pytest.raises((ValueError, DataError)) as error:
        train(files, teacher_files, tmp_path / "out", registered)
    text = str(error.value)
    assert expected in text and (files[0] in text or files[1] in text)
    assert "SyntaxError" not in text


def test_the_tool_lists_everything_at_once(tmp_path, shapes):
    json_file, images, content = write(tmp_path)
    annotation(bbox=[5, 5, 0, 9])(content, images)
    set_on("annotations", 1, category_id=8)(content, images)
    truncate(content, images)
    with open(json_file, "w") as f:
        json.dump(content, f)
    printed = run_script("tools/check_dataset.py", json_file, images, datasets=shapes, ok=False)
    assert "2 errors, 1 warnings" in printed
    assert "error: annotation 2 of image 2 ('2.png'): there is no category 8" in printed
    assert "warning: annotation 1 of image 1 ('1.png'): bbox [5, 5, 0, 9] has no area" in printed
    assert "error: image 1 ('1.png'): cannot be read" in printed
    printed = run_script("tools/check_dataset.py", "/no.json", images, datasets=shapes, ok=False)
    assert "/no.json: cannot be read as JSON" in printed


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 60) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["id", "bbox", "images", "size", "counts"]), inner),
    max_leaves=8,
)
QUIET = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@QUIET
@given(value=JSON, seed=st.integers(0, 10**6))
def test_any_value_anywhere_is_reported_or_harmless(value, seed, tmp_path_factory):
    """One value of a good file is replaced by anything: the check never fails itself."""
    folder = tmp_path_factory.mktemp("any")
    json_file, images, content = write(folder)
    places = []

    def walk(node):
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], (dict, list)):
                walk(node[key])

    walk(content)
    node, key = random.Random(seed).choice(places)
    node[key] = value
    with open(json_file, "w") as f:
        json.dump(content, f)
    for problem in check_coco(json_file, images):
        assert problem.level in ("error", "warning") and problem.what


@QUIET
@given(mask=st.lists(st.booleans(), min_size=1, max_size=60), width=st.integers(1, 9))
def test_every_rle_of_pycocotools_decodes(mask, width):
    from skd.data.check import _decodes

    mask = np.resize(mask, (max(len(mask) // width, 1), width))
    code = rle(mask)
    assert _decodes(code)
    assert not _decodes({**code, "size": [code["size"][0] + 1, width]})


@QUIET
@given(text=st.text(max_size=12))
def test_no_text_for_an_rle_breaks_the_check(text):
    from skd.data.check import _decodes

    assert _decodes({"size": [4, 4], "counts": text}) in (True, False)
