"""
Broken datasets: each either trains and is evaluated, or gives one error that says which file and
what is expected. For each case: what is done to a good dataset, what the check says, and how
training ends.
"""

import json
import os
import random

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as mask_util

from skd import register_coco
from skd.data import check_datasets, clean, records
from skd.data.coco import check_one, use
from skd.engine import SKDTrainer
from skd.evaluation import build_evaluator
from skd.runtime.loader import DataError
from tests.helpers import distilling, problems_of, tiny_config
from tests.processes import call_script

SIDE = 48
TRAINS = "trains"


def write(folder, content=None):
    """A good dataset of three images: (JSON file, folder of images, content)."""
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


def of_masks(change):
    """Marks what changes a mask, or where its image ends: to be trained on in both formats."""
    change.of_masks = True
    return change


def set_on(key, entry, **values):
    def change(content, images):
        for name, value in values.items():
            if value is ...:
                del content[key][entry][name]
            else:
                content[key][entry][name] = value

    return of_masks(change) if "segmentation" in values else change


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

    return of_masks(change)


def write_bytes(data):
    def change(content, images):
        with open(f"{images}/1.png", "wb") as f:
            f.write(data)

    return change


def truncate(content, images):
    with open(f"{images}/1.png", "r+b") as f:
        f.truncate(900)


def remove(content, images):
    os.remove(f"{images}/1.png")


def rename(name):
    def change(content, images):
        os.rename(f"{images}/1.png", f"{images}/{name}")
        content["images"][0]["file_name"] = name

    return change


def pipe(content, images):
    remove(content, images)
    os.mkfifo(f"{images}/1.png")


def a_folder(content, images):
    remove(content, images)
    os.mkdir(f"{images}/1.png")


def number_of_rle(value):
    """pycocotools' text for one number."""
    text, more = "", True
    while more:
        bits, value = value & 31, value >> 5
        more = value != (-1 if bits & 16 else 0)
        text += chr((bits | 32 if more else bits) + 48)
    return text


def huge_rle(content, images):
    side = 10**6
    counts = number_of_rle(0) + number_of_rle(side * side)
    image(width=side, height=side)(content, images)
    annotation(segmentation={"size": [side, side], "counts": counts})(content, images)


def rle(mask):
    code = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": code["size"], "counts": code["counts"].decode()}


GRAY = np.full((SIDE, SIDE), 90, np.uint8)
GOOD_MASK = np.pad(np.ones((20, 20), bool), ((5, 23), (5, 23)))

# name: (change, what the check says, what training gives); None for nothing
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
    "duplicate annotation": (annotation(id=2), "several times: all get new ids", TRAINS),
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
    "no mask": (
        annotation(segmentation=...), "1 of 3 objects have no segmentation", "which the model",
    ),
    "no polygon": (annotation(segmentation=[]), "its segmentation is empty: left out", TRAINS),
    "a crowd without mask": (
        annotation(segmentation=..., iscrowd=1), "is a crowd without segmentation: its", TRAINS,
    ),
    "two dots in a name": (rename("a..b.png"), None, TRAINS),
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
    "gray": (save(GRAY), None, TRAINS),
    "gray and alpha": (save(np.dstack([GRAY, GRAY])), "has the mode 'LA'", TRAINS),
    "RGBA": (save(np.dstack([GRAY] * 4)), "has the mode 'RGBA'", TRAINS),
    "16 bits": (save(GRAY.astype(np.uint16) * 200), "has the mode 'I;16'", TRAINS),
    "black and white": (save(GRAY > 9), "has the mode '1'", TRAINS),
    "1x1": (save(GRAY[:1, :1]), "outside of the image (1 x 1)", TRAINS),
    "7x11": (save(GRAY[:11, :7]), "reaches out of the image (7 x 11)", TRAINS),
    "extremely long": (save(np.full((9, 999), 9, np.uint8)), "too long to leave much", TRAINS),
    "extremely high": (save(np.full((999, 9), 9, np.uint8)), "too long to leave much", TRAINS),
    "a thread": (save(np.full((4, 4000), 9, np.uint8)), "too long to leave", "must be > 0"),
    # what only the evaluation needs
    "no area": (annotation(area=...), "area is missing or no number: computed", TRAINS),
    "area null": (annotation(area=None), "area is missing or no number: computed", TRAINS),
    "area of text": (annotation(area="big"), "area is missing or no number: computed", TRAINS),
    "area of nan": (annotation(area=float("nan")), "area is missing or no number", TRAINS),
    "negative area given": (annotation(area=-4), "area is missing or no number", TRAINS),
    "area beyond float": (annotation(area=10**400), "area is missing or no number", TRAINS),
    "area larger than pycocotools counts": (
        annotation(area=2e10), "area is missing or no number: computed", TRAINS,
    ),
    "no iscrowd": (annotation(iscrowd=...), "iscrowd is missing or null: 0 is taken", TRAINS),
    "iscrowd null": (annotation(iscrowd=None), "iscrowd is missing or null: 0 is taken", TRAINS),
    "iscrowd of text": (annotation(iscrowd="yes"), "iscrowd is text: taken for 0 or 1", TRAINS),
    "iscrowd true": (annotation(iscrowd=True), "iscrowd is no whole number: made one", TRAINS),
    "iscrowd of 7": (annotation(iscrowd=7), "iscrowd is 7; it must be 0 or 1", "must be 0 or 1"),
    "iscrowd a list": (annotation(iscrowd=[0]), "iscrowd is [0]; it must be", "must be 0 or 1"),
    "no id": (annotation(id=...), "an id is missing or no whole number of 64 bits", TRAINS),
    "id null": (annotation(id=None), "an id is missing or no whole number of 64 bits", TRAINS),
    "id of text": (annotation(id="a"), "an id is missing or no whole number of 64 bits", TRAINS),
    "id a list": (annotation(id=[1]), "an id is missing or no whole number of 64 bits", TRAINS),
    "id 0": (annotation(id=0), "an id is not above 0", TRAINS),
    "id negative": (annotation(id=-3), "an id is not above 0", TRAINS),
    "id beyond 64 bits": (annotation(id=2**70), "missing or no whole number of 64 bits", TRAINS),
    "ignore": (annotation(ignore=1), "marked 'ignore': taken for a crowd", TRAINS),
    "ignore null": (annotation(ignore=None), "ignore is no whole number: 0 is taken", TRAINS),
    "float sizes": (image(width=48.0, height=48.0), "width is a float where a whole", TRAINS),
    "half a pixel": (image(width=48.5), "width is 48.5; it must be", "width is 48.5"),
    "float ids": (
        lambda c, i: (image(id=1.0)(c, i), annotation(image_id=1.0, category_id=3.0)(c, i)),
        "image_id is a float where a whole number belongs", TRAINS,
    ),
    "a float id of a category": (
        replace(categories=[{"id": 3.0, "name": "cat"}]), "id is a float where a whole", TRAINS,
    ),
    "references of text": (
        annotation(image_id="1", category_id="3"), "is a number in quotes", TRAINS,
    ),
    "an empty polygon": (annotation(segmentation=[[]]), "has 0 points, needs 3", TRAINS),
    "two points, then a mask": (
        annotation(segmentation=[[1, 1, 9, 9], [5, 5, 25, 5, 25, 25]]), "has 2 points", TRAINS,
    ),
    "an uncompressed RLE": (
        annotation(segmentation={"size": [48, 48], "counts": [48, 48, 2208]}), None, TRAINS,
    ),
    "keypoints nobody wants": (annotation(keypoints=[]), "keypoints are empty", TRAINS),
    "keypoints of null": (annotation(keypoints=[None] * 3), "keypoints must be a list", "keypoin"),
    "keypoints of text": (annotation(keypoints="abc"), "keypoints must be a list", "keypoints"),
    # masks of which no pixel is seen: perfect predictions would have a mask AP of 44
    "a mask outside": (
        annotation(segmentation=[[90, 90, 99, 90, 99, 99]]), "has no area in the image", TRAINS,
    ),
    "a line for a mask": (
        annotation(segmentation=[[5, 5, 10, 10, 20, 20]]), "has no area in the image", TRAINS,
    ),
    "a point for a mask": (
        annotation(segmentation=[[5, 5, 5, 5, 5, 5]]), "has no area in the image", TRAINS,
    ),
    "an RLE of nothing": (
        annotation(segmentation={"size": [48, 48], "counts": [2304]}), "has no area", TRAINS,
    ),
    "a text RLE of nothing": (
        annotation(segmentation=rle(np.zeros_like(GOOD_MASK))), "has no area in the image", TRAINS,
    ),
    "a box of true": (annotation(bbox=[True] * 4), "it must be [x, y, width", "it must be [x, y"),
    "a box beside the edge": (annotation(bbox=[48, 48, 1, 1]), "is outside of the im", TRAINS),
    "a box that is hardly there": (annotation(bbox=[5, 5, 1e-6, 5]), "has no area", TRAINS),
    "keypoints counted wrong": (
        annotation(keypoints=[9, 9, 2], num_keypoints=0), "missing or wrong: counted", TRAINS,
    ),
    "EXIF of junk": (save(np.dstack([GRAY] * 3), exif=b"Exif\0\0junk"), None, TRAINS),
    # what crashes or hangs
    "an RLE of a huge image": (huge_rle, "it must be at most", "it must be at most"),
    "an RLE without end": (
        annotation(segmentation={"size": [48, 48], "counts": "o" * 10**6}), "decoded", "decoded",
    ),
    "a polygon far away": (
        annotation(segmentation=[[0, 0, 1e9, 0, 1e9, 1e9]]), "further away than", "further away",
    ),
    "a polygon beyond float": (
        annotation(segmentation=[[0, 0, 10**400, 0, 9, 9]]), "a polygon must be", "a polygon must",
    ),
    "a box far away": (annotation(bbox=[0, 0, 1e300, 9]), "further away than", "further away"),
    "a box beyond float": (annotation(bbox=[0, 0, 10**400, 9]), "it must be [x, y", "[x, y, w"),
    "a size near the end of float": (image(width=1e308), "it must be at most", "must be at most"),
    "a size of true": (image(width=True), "width is True; it must be", "width is True"),
    "a size without end": (image(width=float("inf")), "width is inf; it must be", "width is inf"),
    "a size beyond float": (image(width=10**400), "it must be at most", "it must be at most"),
    "a name with NUL": (image(file_name="1\0.png"), "has a NUL in its file_name", "has a NUL"),
    "a name with half a letter": (
        image(file_name="1\ud800.png"), "has half a letter", "has half a letter",
    ),
    "a pipe for an image": (pipe, "is a pipe or device; it must be a file", "is a pipe"),
    "a folder for an image": (a_folder, "is a folder; it must be a file", "is a folder"),
    "a link that leads nowhere": (
        lambda c, i: (remove(c, i), os.symlink("/nowhere", f"{i}/1.png")),
        "a link that leads nowhere", "leads nowhere",
    ),
    # annotations as a whole
    "annotations null": (replace(annotations=None), "for predictions only", "None of the 0 obj"),
    "no annotations": (replace(annotations=...), "for predictions only", "None of the 0 objects"),
    "nothing annotated": (replace(annotations=[]), None, "None of the 0 objects"),
    "all crowds": (
        lambda c, i: [a.update(iscrowd=1) for a in c["annotations"]] and None, None,
        "None of the 3 objects",
    ),
    "an image without objects": (lambda c, i: c["annotations"].pop(0), None, TRAINS),
    "crowds only": (annotation(iscrowd=1), None, TRAINS),
    "text for ids": (
        lambda c, i: (c["images"][0].update(id="a"), c["annotations"][0].update(image_id="a")),
        "has ids that are numbers and ids that are text", "numbers and ids",
    ),
}  # fmt: skip


RLES = ("a good RLE", "an uncompressed RLE")
POLYGON = dict.fromkeys(RLES, "are RLE, but INPUT.MASK_FORMAT")


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
    said = "\n".join(map(str, problems_of(*broken(name, tmp_path))))
    expected = CASES[name][1]
    assert expected in said if expected else not said


def train(files, teacher_files, folder, mask_format):
    register_coco("broken", *files)
    cfg = distilling(
        tiny_config(
            SOLVER__MAX_ITER=1, SOLVER__IMS_PER_BATCH=3, MODEL__ROI_HEADS__NUM_CLASSES=1,
            INPUT__MASK_FORMAT=mask_format, SOLVER__BASE_LR=1e-5, DATASETS__TEST=(),
            DATALOADER__FILTER_EMPTY_ANNOTATIONS=False, DATALOADER__ASPECT_RATIO_GROUPING=False,
        ),
        teacher_files,
    )  # fmt: skip
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("broken",)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(MetadataCatalog.get("broken").thing_classes)
    check_datasets(cfg)
    cfg.OUTPUT_DIR = str(folder)
    SKDTrainer(cfg).train()


def evaluate_perfect(name, folder):
    """Results of predictions that are the annotations, in boxes and masks."""
    evaluator = build_evaluator(name, folder)
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        shape = record["height"], record["width"]
        objects = [a for a in record["annotations"] if not a["iscrowd"]]
        boxes = np.array([a["bbox"] for a in objects]).reshape(-1, 4)
        found = Instances(shape)
        found.pred_boxes = Boxes(BoxMode.convert(boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS))
        found.pred_classes = torch.tensor([a["category_id"] for a in objects], dtype=torch.long)
        found.scores = torch.ones(len(objects))
        masks = [np.zeros(shape, bool)] * 0
        for a in objects:
            mask = a.get("segmentation", [[0, 0, 1, 0, 1, 1]])
            if isinstance(mask, list):
                mask = mask_util.merge(mask_util.frPyObjects(mask, *shape))
            masks.append(mask_util.decode(mask).astype(bool))
        found.pred_masks = torch.tensor(np.array(masks).reshape(-1, *shape))
        evaluator.process([record], [{"instances": found}])
    return evaluator.evaluate()


@pytest.mark.parametrize(
    "mask_format,name",
    [
        *(("bitmask", name) for name in CASES),
        *(("polygon", name) for name in CASES if hasattr(CASES[name][0], "of_masks")),
    ],
)
def test_it_trains_and_evaluates_or_gives_one_error(
    name, mask_format, teacher_files, tmp_path, new_datasets
):
    files = broken(name, tmp_path)
    expected = CASES[name][2]
    if mask_format == "polygon":
        expected = POLYGON.get(name, expected)
    if expected == TRAINS:
        train(files, teacher_files, tmp_path / "out", mask_format)
        results = evaluate_perfect("broken", str(tmp_path / "out"))
        for task in ("bbox", "segm"):
            assert results[task]["AP"] == pytest.approx(100), results
        return
    with pytest.raises((ValueError, DataError)) as error:
        train(files, teacher_files, tmp_path / "out", mask_format)
    text = str(error.value)
    assert expected in text and (files[0] in text or files[1] in text)
    assert "SyntaxError" not in text


@pytest.mark.parametrize("with_masks", [True, False])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[2] == TRAINS])
def test_records_of_the_check_are_those_detectron2_reads(name, with_masks, tmp_path, new_datasets):
    files = broken(name, tmp_path)
    register_coco("broken", *files, check=False)
    use("broken", check_one("broken", *files, with_masks=with_masks, keep=True))
    assert records.kept("broken")
    made = DatasetCatalog.get("broken")
    index = MetadataCatalog.get("broken").thing_dataset_id_to_contiguous_id
    assert not records.kept("broken")
    assert made == DatasetCatalog.get("broken")  # which Detectron2 reads from the file
    assert index == MetadataCatalog.get("broken").thing_dataset_id_to_contiguous_id


def test_the_tool_lists_everything_at_once(tmp_path):
    json_file, images, content = write(tmp_path)
    annotation(bbox=[5, 5, 0, 9])(content, images)
    set_on("annotations", 1, category_id=8)(content, images)
    truncate(content, images)
    with open(json_file, "w") as f:
        json.dump(content, f)
    printed = call_script("tools/check_dataset.py", json_file, images, ok=False)
    assert "2 errors, 2 warnings" in printed
    assert "error: annotation 2 of image 2 ('2.png'): there is no category 8" in printed
    assert "warning: annotation 1 of image 1 ('1.png'): bbox [5, 5, 0, 9] has no area" in printed
    assert "error: image 1 ('1.png'): cannot be read" in printed
    for entry in content["annotations"]:
        entry.update(bbox=[5, 5, 9, 9], category_id=3, iscrowd=entry["id"] % 2)
    with open(json_file, "w") as f:
        json.dump(content, f)
    printed = call_script("tools/check_dataset.py", json_file, images, "--no-images")
    assert "1 of 3 objects reach the model; crowds, 'ignore' and objects without" in printed
    printed = call_script("tools/check_dataset.py", "/no.json", images, ok=False)
    assert "/no.json: there is no such file" in printed


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
    for problem in problems_of(json_file, images):
        assert problem.level in ("error", "warning") and problem.what


@QUIET
@given(mask=st.lists(st.booleans(), min_size=1, max_size=60), width=st.integers(1, 9))
def test_every_rle_of_pycocotools_decodes(mask, width):
    from skd.data.annotations import _decodes

    mask = np.resize(mask, (max(len(mask) // width, 1), width))
    code = rle(mask)
    assert _decodes(code)
    assert not _decodes({**code, "size": [code["size"][0] + 1, width]})


@QUIET
@given(text=st.text(max_size=12))
def test_no_text_for_an_rle_breaks_the_check(text):
    from skd.data.annotations import _decodes

    assert _decodes({"size": [4, 4], "counts": text}) in (True, False)


def test_a_warning_of_many_images_is_one_line(tmp_path):
    """A camera held upright gives one line, not thousands, which would hide the others."""
    json_file, images, content = write(tmp_path)
    for i in range(1, 4):
        picture = Image.open(f"{images}/{i}.png").convert("RGBA")
        exif = picture.getexif()
        exif[0x0112] = (3, 6, 8)[i - 1]
        picture.save(f"{images}/{i}.png", exif=exif)
    with open(json_file, "w") as f:
        json.dump(content, f)
    turned, alpha = problems_of(json_file, images)
    where = "3 times: image 1 ('1.png'), image 2 ('2.png'), image 3 ('3.png')"
    assert turned.where == alpha.where == where
    assert "EXIF" in turned.what and "mode 'RGBA'" in alpha.what


def test_clean_annotations_are_told_from_the_others_in_chunks(monkeypatch):
    """Each of the others by itself and in its place, whatever stands beside it."""
    monkeypatch.setattr(clean, "CHUNK", 3)
    good = {"image_id": 1, "category_id": 3, "iscrowd": 0, "bbox": [5, 5, 20.5, 20]}
    good["segmentation"] = [[5, 5, 25, 5, 25, 25], [9, 9, 19, 9, 19, 19, 9, 19]]
    far = [[0, 0, 30, 30, 20000, 0]]
    changes = [
        {"image_id": 2}, {"category_id": 4}, {"iscrowd": 2}, {"bbox": None}, {"bbox": [1, 2, 3]},
        {"bbox": [1, 2, "3", 4]}, {"bbox": [float("nan"), 2, 3, 4]}, {"bbox": [0, 0, 10**400, 5]},
        {"segmentation": {"size": [48, 48]}}, {"segmentation": 7}, {"segmentation": [7]},
        {"segmentation": [[1, 2, 30, 4, 50]]}, {"segmentation": [[5, 5, 25, 5, 25, "9"]]},
        {"segmentation": [[5, 5, 25, 5, 25, float("nan")]]}, {"segmentation": far},
        {"segmentation": [[5, 5, 10, 10, 20, 20]]}, {"segmentation": [[90, 90, 99, 90, 99, 99]]},
        {"keypoints": []},
    ]  # fmt: skip
    bad = [{**good, **change} for change in changes]
    mixed = [annotation for one in bad for annotation in (dict(good), one, dict(good))]
    mixed.append({**good, "segmentation": None})
    found = list(clean.not_clean(mixed, {1: (48, 48, 10_000)}, {3}))
    assert len(found) == len(bad) and all(a is b for a, b in zip(found, bad))
