"""Finding images without labels."""

import json
import os

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from PIL import Image

from skd import register_coco
from skd.data.unlabelled import find_images


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("b/2.PNG", "1.jpg", "3.webp"):
        Image.new("RGB", (8, 6)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / "b" / ".thumbnails").mkdir()
    (tmp_path / "b" / ".thumbnails" / "2.png").write_bytes(b"")
    return tmp_path


@pytest.fixture
def coco(folder):
    images = [{"id": 7, "file_name": "1.jpg", "width": 8, "height": 6}, {"file_name": "b/2.PNG"}]
    path = folder / "images.json"
    path.write_text(json.dumps({"images": images}))  # no annotations, no categories
    register_coco("nobody_labelled", str(path), str(folder), check=False)
    yield path
    DatasetCatalog.remove("nobody_labelled")
    MetadataCatalog.remove("nobody_labelled")


def test_images_of_folders_in_an_order_of_their_own(folder):
    records = find_images([str(folder)], "KEY")
    assert [r["file_name"] for r in records] == [
        f"{folder}/{n}" for n in ("1.jpg", "3.webp", "b/2.PNG")
    ]
    assert len(find_images([str(folder), str(folder / "b")], "KEY")) == 4


def test_a_link_to_a_folder_above_repeats_no_image(folder):
    (folder / "b" / "round").symlink_to(folder)
    (folder / "other").mkdir()
    (folder / "other" / "link").symlink_to(folder / "1.jpg")  # no image by its name
    assert len(find_images([str(folder)], "KEY")) == 3


def test_a_coco_file_needs_images_only(coco, folder):
    first, second = find_images(["nobody_labelled"], "KEY")
    assert first == {"file_name": f"{folder}/1.jpg", "image_id": 7, "width": 8, "height": 6}
    assert second == {"file_name": f"{folder}/b/2.PNG", "image_id": "b/2.PNG"}


def test_labels_of_a_registered_dataset_are_not_read(shapes):
    records = find_images(["tiny_train"], "KEY")
    assert len(records) == 8
    assert set(records[0]) == {"file_name", "image_id", "width", "height"}


def test_what_a_mapper_needs_besides_labels_is_there(new_datasets):
    labels = {"annotations": [], "sem_seg_file_name": "s.png", "proposal_boxes": []}
    record = {"file_name": __file__, "image_id": 1, "depth_file_name": "d.png"}
    DatasetCatalog.register("with_depth", lambda: [{**record, **labels}])
    assert find_images(["with_depth"], "KEY") == [record]


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"images": 3}', '{"images": [{"id": 1}]}', '{"images": [3]}']
)
def test_a_file_that_is_none_is_named(coco, content):
    coco.write_text(content)
    with pytest.raises(ValueError, match="KEY names 'nobody_labelled', whose file .*images.json"):
        find_images(["nobody_labelled"], "KEY")


def test_a_dataset_whose_files_are_not_there_is_named(new_datasets, tmp_path):
    register_coco_instances("not_there", {}, str(tmp_path / "nothing.json"), str(tmp_path))
    with pytest.raises(ValueError, match="KEY names the dataset 'not_there', which cannot be read"):
        find_images(["not_there"], "KEY")


def test_what_cannot_be_is_named(coco, folder):
    with pytest.raises(ValueError, match="KEY names 'nowhere', which is neither a folder nor a"):
        find_images(["nowhere"], "KEY")
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match="KEY names '.*empty', which has no images"):
        find_images([str(folder / "empty")], "KEY")
    coco.write_text(json.dumps({"images": [{"file_name": "elsewhere/1.jpg"}]}))
    with pytest.raises(ValueError, match="not there: '.*elsewhere/1.jpg' is no file"):
        find_images(["nobody_labelled"], "KEY")


def test_a_folder_that_cannot_be_read_is_named(folder, monkeypatch):
    """os.walk by itself would leave its images out without a word."""

    def scandir(path, real=os.scandir):
        if os.path.basename(path) == "b":
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(os.walk.__module__ + ".scandir", scandir, raising=False)
    words = "KEY names '.*', of which the folder '.*b' cannot be read: Permission denied"
    with pytest.raises(ValueError, match=words):
        find_images([str(folder)], "KEY")
