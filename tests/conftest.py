"""Fixtures of all tests."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from tests.helpers import save_detector, tiny_config  # first: it sets the threads

from skd.data.draw_shapes import write_split  # isort: skip
from skd.data.shapes import VERSION  # isort: skip


@pytest.fixture(scope="session")
def teacher_files(tmp_path_factory):
    """A Mask R-CNN, wider than the tiny students: (config file, checkpoint)."""
    cfg = tiny_config(width=6, fpn=24)
    return save_detector(cfg, tmp_path_factory.mktemp("teacher"), seed=11)


@pytest.fixture
def new_datasets():
    """Datasets that a test registers are forgotten after it."""
    before = set(DatasetCatalog)
    yield
    for name in set(DatasetCatalog) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    """
    A few images of the built-in dataset: registered here as tiny_train and tiny_val, and under
    its own names in a process with DETECTRON2_DATASETS set to the path this returns.
    """
    root = tmp_path_factory.mktemp("datasets")
    for split, name in (("skd_shapes_train", "tiny_train"), ("skd_shapes_val", "tiny_val")):
        folder = str(root / "skd_shapes" / f"v{VERSION}" / split)
        write_split(split, folder, num_images=8)
        register_coco_instances(name, {}, f"{folder}/annotations.json", f"{folder}/images")
    return root
