import json
import re

import pytest

from skd.data.reading import open_coco
from skd.data.split import fold_of, take_folds, take_names
from tests.processes import call_script

CONTENT = {
    "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(40)],
    "annotations": [{"id": 1 + i, "image_id": i % 40, "category_id": 1} for i in range(80)],
    "categories": [{"id": 1, "name": "x"}],
}


def test_folds_are_a_partition_that_only_names_decide():
    parts = [take_folds(CONTENT, 4, {k}) for k in range(4)]
    ids = [x["id"] for part in parts for x in part["images"]]
    assert sorted(ids) == list(range(40))
    for part in parts:
        kept = {x["id"] for x in part["images"]}
        assert [a["id"] for a in part["annotations"]] == [
            a["id"] for a in CONTENT["annotations"] if a["image_id"] in kept
        ]
    assert [fold_of(f"{i}.jpg", 4) for i in range(8)] == [fold_of(f"{i}.jpg", 4) for i in range(8)]


def test_literal_folds():
    """Other ones would be another split for everybody."""
    assert [fold_of(name, 10) for name in ("a.jpg", "b.jpg", "c.jpg", "dir/a.jpg")] == [4, 4, 6, 9]


@pytest.mark.parametrize(
    "folds,take,words",
    [
        (4, {4}, r"--take: no fold \[4\]"),
        (41, {0}, "--folds is 41; it must be at most the number of images, 40"),
    ],
)
def test_wrong_folds_are_named(folds, take, words):
    with pytest.raises(ValueError, match=words):
        take_folds(CONTENT, folds, take)


def test_ids_in_quotes_and_annotations_of_no_image():
    quoted = [{"id": 1, "image_id": "7"}, {"id": 2, "image_id": 7.0}]
    parts = [take_folds({**CONTENT, "annotations": quoted}, 4, {k}) for k in range(4)]
    assert sorted(len(part["annotations"]) for part in parts) == [0, 0, 0, 2]
    with pytest.raises(ValueError, match="1 annotations are of images that are not in the file"):
        take_folds({**CONTENT, "annotations": [{"image_id": 99}]}, 2, {0})
    hidden = {key: CONTENT[key] for key in ("images", "categories")}
    assert "annotations" not in take_folds(hidden, 2, {0})  # none is not the same as no object


@pytest.mark.parametrize(
    "text,words",
    [
        ('{"images": [], "annotations": [], "categories": []}', "lists no images"),
        ("[]", "is a list; it must be an object"),
        ('{"images": [', "cannot be read as JSON"),
        ('{"images": [7], "annotations": [], "categories": []}', "images[0]: is no object"),
        (None, "it is no regular file"),
    ],
)
def test_what_is_no_dataset_is_refused(text, words, tmp_path):
    path = tmp_path / "all.json"
    path.mkdir() if text is None else path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(words)):
        open_coco(str(path))


def test_the_command_writes_the_folds_it_is_told_to_take(tmp_path):
    (tmp_path / "all.json").write_text(json.dumps(CONTENT))
    args = [tmp_path / "all.json", tmp_path / "part.json", "--folds", 2, "--take", 1]
    out = call_script("tools/split_dataset.py", *args)
    part = json.loads((tmp_path / "part.json").read_text())
    assert part == take_folds(CONTENT, 2, {1})
    assert f"{len(part['images'])} of 40 images" in out


def test_a_list_and_what_is_not_in_it(tmp_path):
    names = [image["file_name"] for image in CONTENT["images"]]
    some, rest = take_names(CONTENT, names[:3]), take_names(CONTENT, names[:3], without=True)
    assert [x["file_name"] for x in some["images"]] == names[:3]
    assert [x["file_name"] for x in rest["images"]] == names[3:]
    for part in (some, rest):
        kept = {x["id"] for x in part["images"]}
        assert {a["image_id"] for a in part["annotations"]} <= kept
    assert len(some["annotations"]) + len(rest["annotations"]) == len(CONTENT["annotations"])
    with pytest.raises(ValueError, match="None of the .* images is in the list of 1 names"):
        take_names(CONTENT, ["x.jpg"])
    with pytest.raises(ValueError, match="Each of the .* images is in the list"):
        take_names(CONTENT, names, without=True)
