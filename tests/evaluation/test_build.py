import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluators

from skd.engine import SKDTrainer
from skd.evaluation import build_evaluator, check_evaluator
from skd.evaluation.build import _PACKAGES
from tests.helpers import tiny_config


@pytest.fixture
def metadata(tmp_path, new_datasets):
    """Makes datasets that have only metadata."""

    def make(kind, **more):
        name = f"test_{kind}"
        json_file = tmp_path / "coco.json"
        json_file.write_text('{"images": [], "annotations": [], "categories": []}')
        DatasetCatalog.register(name, list)
        return MetadataCatalog.get(name).set(
            evaluator_type=kind, json_file=str(json_file), thing_classes=["a"],
            stuff_classes=["b"], ignore_label=255, **more,
        )  # fmt: skip

    return make


@pytest.mark.parametrize(
    "kind,names,more",
    [
        ("coco", ["COCOEvaluator"], {}),
        ("sem_seg", ["SemSegEvaluator"], {}),
        (
            "pascal_voc",
            ["PascalVOCDetectionEvaluator"],
            {"dirname": "x", "split": "y", "year": 2012},
        ),
        ("cityscapes_instance", ["CityscapesInstanceEvaluator"], {}),
        ("cityscapes_sem_seg", ["CityscapesSemSegEvaluator"], {}),
        (
            "coco_panoptic_seg",
            ["SemSegEvaluator", "COCOEvaluator", "COCOPanopticEvaluator"],
            {"thing_dataset_id_to_contiguous_id": {}, "stuff_dataset_id_to_contiguous_id": {}},
        ),
    ],
)
def test_chosen_by_the_metadata(metadata, tmp_path, kind, names, more):
    evaluator = build_evaluator(metadata(kind, **more).name, str(tmp_path))
    several = evaluator._evaluators if isinstance(evaluator, DatasetEvaluators) else [evaluator]
    assert [type(e).__name__ for e in several] == names


@pytest.mark.parametrize("given,expected", [(None, 255), (255, 255), (0, 0)])
def test_the_value_of_pixels_to_ignore_is_the_config_s(metadata, tmp_path, given, expected):
    """The value is MODEL.SEM_SEG_HEAD.IGNORE_VALUE, as in Detectron2's own script."""
    name = metadata("sem_seg").name
    assert build_evaluator(name, str(tmp_path), ignore_value=given)._ignore_label == expected
    cfg = get_cfg()
    cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = expected
    assert SKDTrainer.build_evaluator(cfg, name)._ignore_label == expected


def test_lvis_needs_its_package_and_nothing_else(metadata, tmp_path):
    try:
        evaluator = build_evaluator(metadata("lvis").name, str(tmp_path))
    except ImportError as error:
        assert "lvis" in str(error)
    else:
        assert type(evaluator).__name__ == "LVISEvaluator"


def test_unknown_type_lists_the_known(metadata, tmp_path):
    with pytest.raises(NotImplementedError, match="is 'video'; .*coco, coco_panoptic_seg"):
        build_evaluator(metadata("video").name, str(tmp_path))


def test_a_test_set_that_nothing_evaluates_is_told_before_training(metadata, shapes, tmp_path):
    name = metadata(None).name
    cfg = tiny_config(DATASETS__TEST=("tiny_val", name), OUTPUT_DIR=str(tmp_path))
    with pytest.raises(NotImplementedError, match=f"'{name}': evaluator_type .* is None; it must"):
        SKDTrainer(cfg)

    class Mine(SKDTrainer):
        @classmethod
        def build_evaluator(cls, cfg, dataset_name):
            return None

    Mine(cfg)


def test_a_package_that_an_evaluator_misses_is_told_before_training(metadata, monkeypatch):
    name = metadata("cityscapes_instance").name
    monkeypatch.setitem(_PACKAGES, "cityscapes_instance", "os")
    check_evaluator(name)
    monkeypatch.setitem(_PACKAGES, "cityscapes_instance", "no_such_package")
    with pytest.raises(ImportError, match=f"'{name}' .* by the package 'no_such_package', which"):
        check_evaluator(name)
