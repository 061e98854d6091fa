import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from skd.evaluation import match_classes, register_as


def test_classes_match_by_name_and_by_mapping():
    source = ["person", "traffic light", "car", "motorcycle"]
    target = ["Car", "rider", "traffic-light", "motorbike", "tram"]
    mapping = {"rider": "person", "motorbike": "motorcycle"}
    assert match_classes(source, target, mapping) == {0: 2, 1: 0, 2: 1, 3: 3}
    assert match_classes(source, target, {"Car": ""}) == {2: 1}


@pytest.mark.parametrize(
    "mapping,words",
    [
        ({"ryder": "person"}, r"has \['ryder'\], none of the dataset's classes: car, rider"),
        ({"rider": "human"}, r"has \['human'\], none of the model's classes: person"),
        ({}, "No class in common. The model has person; the dataset has car, rider"),
    ],
)
def test_what_does_not_match_is_an_error(mapping, words):
    with pytest.raises(ValueError, match=words):
        match_classes(["person"], ["car", "rider"], mapping)


def record(*annotations):
    return {
        "file_name": "x.jpg",
        "image_id": 1,
        "height": 9,
        "width": 9,
        "annotations": annotations,
    }


def annotation(category, **more):
    return {"bbox": [0, 0, 4, 4], "bbox_mode": 1, "category_id": category, **more}


def test_objects_of_other_classes_are_left_out():
    polygon = [[0, 0, 4, 0, 4, 4]]
    DatasetCatalog.register(
        "skd_test_roads",
        lambda: [
            record(annotation(0, segmentation=polygon), annotation(1, segmentation=polygon)),
            record(annotation(2, segmentation=polygon)),
        ],
    )
    name, tasks = register_as("skd_test_roads", ["person", "car"], {0: 1})
    first, second = DatasetCatalog.get(name)
    assert [a["category_id"] for a in first["annotations"]] == [1] and not second["annotations"]
    assert MetadataCatalog.get(name).thing_classes == ["person", "car"]
    assert tasks == ["bbox", "segm"]
    with pytest.raises(ValueError, match="No object of the matched classes"):
        register_as("skd_test_roads", ["person"], {7: 0})


def test_boxes_alone_are_not_evaluated_for_masks():
    DatasetCatalog.register("skd_test_boxes", lambda: [record(annotation(0))])
    assert register_as("skd_test_boxes", ["car"], {0: 0})[1] == ["bbox"]
